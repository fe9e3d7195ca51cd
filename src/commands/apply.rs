//! `redirect apply`: makes the router match the policy.

use super::{
    Typed, offline, plan_unlocked, read_policy, read_source, report_recovered, show_warnings,
};
use crate::cli::{Apply, Format};
use crate::engine::{Engine, Goal};
use crate::failure::{Exit, Failure};
use crate::journal::{self, Journal, Kind, Location};
use crate::kernel::conntrack::Conntrack;
use crate::kernel::router::Router;
use crate::observation::Observed;
use crate::plan::planner::Stage;
use crate::plan::{Change, Plan};
use crate::policy::{Established, Policy};
use crate::render;
use crate::rules::Model;
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
    };
    if args.dry_run {
        let planned = if args.offline {
            offline(&goal)
        } else {
            plan_unlocked(&goal)?
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
    let mut engine = Engine::open(&mut router, &location, args.wait.wait)?;
    if let Some(recovered) = engine.recovered() {
        report_recovered(recovered, terminal);
    }
    let observed = engine.observe(&goal)?;
    let planned = engine.plan(&goal, &observed);
    show_warnings(&planned, terminal);
    if !planned.refusals.is_empty() {
        return Err(typed.refused(&planned.refusals, terminal));
    }
    let digest = journal::Digest::of(source);
    if planned.plan.is_empty() {
        if engine.journal().in_force().policy.as_ref() != Some(&digest) {
            engine.note_policy(&goal)?;
        }
        terminal.note("nothing to change: the router matches the policy");
        return Ok(Exit::Done);
    }
    // Early there are none; and what merely informs must not stand in the way of the seal.
    if !args.early && changes_packet_rules(&planned.plan) {
        tell_what_is_cut(policy, &observed, terminal)?;
    }
    let unconfirmed = if let Some(time) = args.confirm {
        let id = engine.perform_unconfirmed(&goal, &planned.plan, time)?;
        Some((id, time))
    } else {
        engine.perform(&goal, &planned.plan)?;
        None
    };
    // Whoever confirms needs the lock.
    drop(engine);
    let count = planned.plan.changes.len();
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

fn changes_packet_rules(plan: &Plan) -> bool {
    plan.changes
        .iter()
        .any(|change| matches!(change, Change::Nftables { .. } | Change::Iptables { .. }))
}

/// Sessions that are open now reach an appliance that never saw them begin.
fn tell_what_is_cut(
    policy: &Policy,
    observed: &Observed,
    terminal: &Terminal,
) -> Result<(), Failure> {
    if policy.is_empty() {
        return Ok(());
    }
    let model = Model::new(policy);
    let (mut seen, mut parted) = (0_usize, 0_usize);
    let cut = Conntrack::open()?.count(None, |connection| {
        seen += 1;
        if connection.is_established_tcp() && model.parts(connection.ends(), connection.mark) {
            parted += 1;
        }
        connection.is_established_tcp()
            && !observed.is_own(connection.destination)
            && model.cuts(connection.ends(), connection.mark).is_some()
    })?;
    if seen == 0 && policy.options.established == Established::Redirect {
        terminal.note(
            "connection tracking has seen no connection here yet, so sessions that are open cannot \
             be counted; those of the policy are cut",
        );
    } else if cut > 0 {
        terminal.note(&format!(
            "cutting {}: the appliance never saw them begin (`established = \"keep\"` lets them go on)",
            super::counted(cut, "open session", "open sessions")
        ));
    }
    if parted > 0 {
        terminal.note(&format!(
            "{} with the appliance they have, though the policy now names another for them; where it \
             dials servers with the client's own port, they are reset (unless \
             `net.netfilter.nf_conntrack_tcp_be_liberal` is 1)",
            super::counted(parted, "open connection stays", "open connections stay")
        ));
    }
    Ok(())
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
