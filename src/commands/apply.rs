//! `redirect apply`: makes the router match the policy.

use super::{
    Typed, offline, plan_unlocked, read_policy, read_source, report_recovered, sessions,
    show_warnings,
};
use crate::cli::{Apply, Format};
use crate::engine::{Engine, Goal};
use crate::failure::{Exit, Failure};
use crate::journal::{self, Digest, Draining, Invocation, Journal, Kind, Location, Locked};
use crate::kernel::router::Router;
use crate::plan::planner::Stage;
use crate::render;
use crate::terminal::Terminal;

pub(super) fn run(args: &Apply, terminal: &Terminal) -> Result<Exit, Failure> {
    let typed = if args.confirmed {
        let Some(confirmed) = confirmed_policy(terminal)? else {
            terminal.note("nothing to do: no policy was ever confirmed on this router");
            return Ok(Exit::Done);
        };
        confirmed
    } else {
        read_policy(&args.policy.policy, terminal)?
    };
    let Typed { policy, source, .. } = &typed;
    let goal = Goal {
        // What was confirmed before is not applied anew, it is put back.
        kind: if args.confirmed {
            Kind::Repair
        } else {
            Kind::Apply
        },
        policy,
        source: Some(source),
        stage: if args.early {
            Stage::Early
        } else {
            Stage::Complete
        },
        draining: &Draining::default(),
    };
    if args.dry_run {
        let planned = if args.offline {
            offline(&goal)
        } else {
            plan_unlocked(&goal, args.cut)?
        };
        show_warnings(&planned, terminal);
        if !planned.refusals.is_empty() {
            return Err(typed.refused(&planned.refusals, terminal));
        }
        let about = about(args, &source.name);
        return match args.format {
            Format::Shell => terminal.data(&render::shell::script(&planned.plan, &about)),
            Format::Json => terminal.data(&render::json::plan(&planned.plan)),
        }
        .map(|()| Exit::Done);
    }
    let mut router = Router::open()?;
    let location = Location::new(journal::DIRECTORY)?;
    let journal = Locked::acquire(&location, Invocation::current(), args.wait.wait)?;
    // Most often the policy in force is this one.
    let digest = Digest::of(source);
    journal.remember(&digest, policy);
    let mut engine = Engine::with(&mut router, journal)?;
    if let Some(recovered) = engine.recovered() {
        report_recovered(recovered, terminal);
    }
    // What was put on hold stays so; who types a policy wants all of it.
    let on_hold = match goal.kind {
        Kind::Repair => engine.journal().in_force().draining.appliances.clone(),
        _ => Vec::new(),
    };
    let next = sessions::next(engine.journal(), policy, on_hold, args.cut)?;
    let goal = Goal {
        policy: &next.policy,
        draining: &next.draining,
        ..goal
    };
    let observed = engine.observe(&goal)?;
    let mut planned = engine.plan(&goal, &observed);
    if planned.refusals.is_empty() {
        next.must_cut_none()?;
        planned.warnings.extend(next.findings());
    }
    show_warnings(&planned, terminal);
    if !planned.refusals.is_empty() {
        return Err(typed.refused(&planned.refusals, terminal));
    }
    if planned.plan.is_empty() {
        let in_force = engine.journal().in_force();
        if in_force.policy.as_ref() != Some(&digest) || in_force.draining != next.draining {
            engine.note_policy(&goal)?;
        }
        terminal.note("nothing to change: the router matches the policy");
        return Ok(Exit::Done);
    }
    // Early there are none; and what merely informs must not stand in the way of the seal.
    if !args.early {
        sessions::tell_what_is_taken(&next.policy, &planned.plan, &observed, terminal)?;
    }
    let (unconfirmed, made) = if let Some(time) = args.confirm {
        let (id, made) = engine.perform_unconfirmed(&goal, &planned.plan, time)?;
        (Some((id, time)), made)
    } else {
        (None, engine.perform(&goal, &planned.plan)?)
    };
    // Whoever confirms needs the lock.
    drop(engine);
    let count = made.changes.len();
    terminal.note(&format!(
        "applied: {} in place, {count} {} made",
        super::counted(policy.redirects.len(), "redirect", "redirects"),
        if count == 1 { "change" } else { "changes" },
    ));
    match unconfirmed {
        Some((id, time)) => super::confirm::ask(id, time, terminal),
        None => Ok(Exit::Done),
    }
}

/// The policy that was confirmed last, from the journal's own copy. (One that still waits for
/// that keeps every other run out, and a reboot ends its wait.)
fn confirmed_policy(terminal: &Terminal) -> Result<Option<Typed>, Failure> {
    let journal = Journal::read(&Location::new(journal::DIRECTORY)?)?;
    let Some(digest) = &journal.confirmed().policy else {
        return Ok(None);
    };
    Ok(Some(read_source(journal.source(digest)?, terminal)?))
}

fn about(args: &Apply, name: &str) -> Vec<String> {
    let mut about = vec![
        format!("What `redirect apply {name}` would do, as shell commands, in the same order."),
        "Nothing has been changed by printing them. To be run as root.".to_owned(),
    ];
    if args.offline {
        about.push("Printed offline: no router was looked at, a clean one is assumed.".to_owned());
    }
    about
}
