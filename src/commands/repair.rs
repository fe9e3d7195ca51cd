//! `redirect repair`: puts back what others removed, and nothing else. Silent and cheap
//! where all is well, so that a timer can run it.

use super::sessions::{self, Next};
use super::{counted, location, refused, report_recovered, show_warnings, unsuited};
use crate::cli::Repair;
use crate::engine::{Engine, Goal, policy_in_force, policy_of, trust};
use crate::failure::{Exit, Failure};
use crate::journal::{Condition, Journal, Kind, confirm};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, KernelError, Wish};
use crate::observation::Observed;
use crate::plan::planner::{self, Stage};
use crate::plan::{Change, Ledger, Plan};
use crate::terminal::Terminal;

pub(super) fn run(args: &Repair, terminal: &Terminal) -> Result<Exit, Failure> {
    let location = location()?;
    let (journal, holder) = Journal::read_with_holder(&location)?;
    let now =
        confirm::uptime().map_err(|error| KernelError::io("cannot read `/proc/uptime`", error))?;
    let mut router = Router::open()?;
    match journal.condition(now, holder.is_some()) {
        Condition::Settled => {
            let Some(next) = wanted(&journal)? else {
                return Ok(Exit::Done);
            };
            trust(&mut router, &journal, &policy_in_force(&journal)?);
            let observed = router.observe(&Wish {
                policies: &[&next.policy],
            })?;
            let ledger = &journal.in_force().ledger;
            let planned = planner::plan(&next.policy, &observed, ledger, Stage::Complete);
            let drains_on = next.draining == journal.in_force().draining;
            if planned.plan.is_empty() && planned.refusals.is_empty() && drains_on {
                report_settings(ledger, &planned.plan, &observed, terminal);
                return Ok(Exit::Done);
            }
        }
        // It will be kept or taken back; a repair in between would be neither.
        Condition::Unconfirmed(open, left) => {
            terminal.note(&format!(
                "transaction {} waits to be confirmed, for another {} s: nothing was repaired",
                open.entry.id,
                left.as_secs()
            ));
            return Ok(Exit::Pending);
        }
        Condition::Underway(_) | Condition::Interrupted(_) => {}
    }
    let mut engine = Engine::open(&mut router, &location, args.wait.wait)?;
    if let Some(recovered) = engine.recovered() {
        report_recovered(recovered, terminal);
    }
    let Some(digest) = engine.journal().in_force().policy.clone() else {
        return Ok(Exit::Done);
    };
    let source = engine.journal().source(&digest)?;
    let Some(next) = wanted(engine.journal())? else {
        return Ok(Exit::Done);
    };
    let mut goal = Goal {
        kind: Kind::Repair,
        policy: &next.policy,
        source: Some(&source),
        stage: Stage::Complete,
        draining: &next.draining,
    };
    let observed = engine.observe(&goal)?;
    let mut planned = engine.plan(&goal, &observed);
    show_warnings(&planned, terminal);
    let waiting = std::mem::take(&mut planned.refusals);
    if !waiting.is_empty() {
        // A link that is missing must not keep the seal from being mended.
        goal.stage = Stage::Possible;
        planned = engine.plan(&goal, &observed);
        if !planned.refusals.is_empty() {
            return Err(refused(&planned.refusals, "this router cannot be repaired"));
        }
    }
    let ledger = engine.journal().in_force().ledger.clone();
    report_settings(&ledger, &planned.plan, &observed, terminal);
    let drained = engine.journal().in_force().draining != next.draining;
    if drained {
        terminal.note("drained: no connection is left of some that the policy left behind");
    }
    if !planned.plan.is_empty() || drained {
        sessions::tell_what_is_taken(&next.policy, &planned.plan, &observed, terminal)?;
        let made = engine.perform(&goal, &planned.plan)?;
        terminal.note(&format!(
            "repaired: {} made",
            counted(made.changes.len(), "change", "changes")
        ));
        for change in crate::journal::summary(&made) {
            terminal.note(&format!("  {change}"));
        }
    }
    if waiting.is_empty() {
        Ok(Exit::Done)
    } else {
        Err(unsuited(
            &waiting,
            "not everything can be in place on this router as it is",
        ))
    }
}

/// What the router is to be like, if anything: without what was left behind and has ended.
fn wanted(journal: &Journal) -> Result<Option<Next>, Failure> {
    let in_force = journal.in_force();
    let Some(digest) = &in_force.policy else {
        return Ok(None);
    };
    let policy = policy_of(journal, digest)?;
    let on_hold = in_force.draining.appliances.clone();
    Ok(Some(sessions::next(journal, &policy, on_hold, false)?))
}

/// Settings that others have changed since we wrote them, and that the policy can live
/// with: reported, not fought over.
fn report_settings(ledger: &Ledger, plan: &Plan, observed: &Observed, terminal: &Terminal) {
    for kept in &ledger.sysctls {
        let ours_again = plan.changes.iter().any(
            |change| matches!(change, Change::Sysctl { sysctl, .. } if *sysctl == kept.sysctl),
        );
        if let Some(found) = observed.sysctl(&kept.sysctl)
            && found != kept.written
            && !ours_again
        {
            terminal.note(&format!(
                "{} holds {found}, we wrote {}: somebody changed it, and the policy can live with it",
                kept.sysctl, kept.written
            ));
        }
    }
}
