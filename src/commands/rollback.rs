//! `redirect rollback`: back to the policy before, or to that of any transaction which is
//! still remembered; and before that, the end of one that has none.

use super::sessions::{self, Next};
use super::{counted, location, plan_unlocked, refused, report_recovered, show_warnings};
use crate::cli::{Format, Rollback};
use crate::engine::{Engine, Goal, policy_in_force, settle, take_back_open};
use crate::failure::{Exit, Failure};
use crate::journal::{
    Condition, Digest, Draining, Invocation, Journal, Kind, Locked, Outcome, confirm,
};
use crate::kernel::KernelError;
use crate::kernel::router::Router;
use crate::plan::planner::Stage;
use crate::policy::{self, Policy, Source};
use crate::render;
use crate::terminal::Terminal;

pub(super) fn run(args: &Rollback, terminal: &Terminal) -> Result<Exit, Failure> {
    let location = location()?;
    if args.dry_run {
        let journal = Journal::read(&location)?;
        if journal.open().is_some() {
            return Err(Failure::new(
                Exit::Locked,
                "a transaction has not ended: what goes back depends on what is there by then",
            )
            .hint("`redirect status` shows what is there"));
        }
        let target = target(&journal, args.to)?;
        let (policy, source) = read(&journal, target.as_ref())?;
        let planned = plan_unlocked(&goal(&policy, source.as_ref(), &Draining::default()), false)?;
        show_warnings(&planned, terminal);
        let about = [
            format!(
                "What `redirect rollback` to {} would do, as shell",
                named(target.as_ref())
            ),
            "commands, in the same order. Nothing has been changed by printing them.".to_owned(),
        ];
        return match args.format {
            Format::Shell => terminal.data(&render::shell::script(&planned.plan, &about)),
            Format::Json => terminal.data(&render::json::plan(&planned.plan)),
        }
        .map(|()| Exit::Done);
    }
    let mut router = Router::open()?;
    let mut journal = Locked::acquire(&location, Invocation::current(), args.wait.wait)?;
    let now =
        confirm::uptime().map_err(|error| KernelError::io("cannot read `/proc/uptime`", error))?;
    let recovered = match journal.condition(now, false) {
        Condition::Settled => None,
        Condition::Unconfirmed(..) => Some(take_back_open(
            &mut router,
            &mut journal,
            "`redirect rollback` came before it was confirmed",
        )?),
        Condition::Interrupted(_) | Condition::Underway(_) => settle(&mut router, &mut journal)?,
    };
    if let Some(recovered) = &recovered {
        report_recovered(recovered, terminal);
        if args.to.is_none() {
            return if recovered.failed.is_empty() {
                Ok(Exit::Done)
            } else {
                Err(Failure::new(Exit::Failed, "not all could be taken back"))
            };
        }
    }
    let target = target(&journal, args.to)?;
    let (policy, source) = read(&journal, target.as_ref())?;
    let mut engine = Engine::with(&mut router, journal)?;
    let next = if target.is_some() {
        sessions::next(engine.journal(), &policy, Vec::new(), false)?
    } else {
        if let Ok(before) = policy_in_force(engine.journal()) {
            sessions::tell_what_is_given_up(&before, terminal);
        }
        Next::default()
    };
    let goal = goal(&next.policy, source.as_ref(), &next.draining);
    let observed = engine.observe(&goal)?;
    let mut planned = engine.plan(&goal, &observed);
    planned.warnings.extend(next.findings());
    show_warnings(&planned, terminal);
    if !planned.refusals.is_empty() {
        return Err(refused(
            &planned.refusals,
            "that policy cannot be put back here",
        ));
    }
    let made = if planned.plan.is_empty() {
        engine.note_policy(&goal)?;
        0
    } else {
        sessions::tell_what_is_taken(&next.policy, &planned.plan, &observed, terminal)?;
        engine.perform(&goal, &planned.plan)?.changes.len()
    };
    terminal.note(&format!(
        "rolled back to {}: {} made",
        named(target.as_ref()),
        counted(made, "change", "changes")
    ));
    Ok(Exit::Done)
}

/// The policy to go back to; none: to nothing.
fn target(journal: &Journal, to: Option<u64>) -> Result<Option<Digest>, Failure> {
    let Some(id) = to else {
        return match journal.policy_before() {
            Some(before) => Ok(before.cloned()),
            None => Err(Failure::new(
                Exit::Failed,
                "nothing to roll back: no policy was ever put in force here",
            )
            .hint("`redirect history` shows what was done")),
        };
    };
    let entry = journal.entry(id)?;
    match &entry.outcome {
        Some(Outcome::Done) => Ok(entry.policy.clone()),
        other => {
            let outcome = other
                .as_ref()
                .map_or_else(String::new, |other| format!(": {other}"));
            Err(Failure::new(
                Exit::Failed,
                format!("transaction {id} never came into force{outcome}"),
            )
            .hint("`redirect history` shows those that did"))
        }
    }
}

fn read(journal: &Journal, target: Option<&Digest>) -> Result<(Policy, Option<Source>), Failure> {
    let Some(digest) = target else {
        return Ok((Policy::default(), None));
    };
    let source = journal.source(digest)?;
    match policy::read(&source) {
        Ok(reading) => {
            journal.remember(digest, &reading.policy);
            Ok((reading.policy, Some(source)))
        }
        Err(errors) => {
            let failure = Failure::new(
                Exit::BadPolicy,
                format!("policy {} cannot be read by this version", digest.short()),
            );
            let style = policy::Style::default();
            Err(Failure {
                report: Some(policy::render(&errors.diagnostics, &source, style).into()),
                ..failure
            })
        }
    }
}

fn goal<'a>(policy: &'a Policy, source: Option<&'a Source>, draining: &'a Draining) -> Goal<'a> {
    Goal {
        kind: Kind::Rollback,
        policy,
        source,
        stage: Stage::Complete,
        draining,
    }
}

fn named(target: Option<&Digest>) -> String {
    match target {
        Some(digest) => format!("policy {}", digest.short()),
        None => "no policy (sessions go to the servers directly, unrecorded)".to_owned(),
    }
}
