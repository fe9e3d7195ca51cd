//! Taking back what an earlier run has left: cut short, or not confirmed in time.

use crate::failure::{Exit, Failure};
use crate::journal::{
    Condition, Digest, Entry, Journal, JournalError, Left, Locked, Reach, Recovery, confirm,
    recovery, summarise,
};
use crate::kernel::signals::Uninterrupted;
use crate::kernel::{FailureKind, Kernel, KernelError, Wish};
use crate::plan::{Change, Ledger, Plan, planner};
use crate::policy::{self, Policy};

/// What was taken back.
#[derive(Debug)]
pub struct Recovered {
    /// The transaction that had not ended.
    pub entry: Entry,
    /// Why it was taken back.
    pub why: String,
    /// How many changes that took.
    pub changes: usize,
    /// What others changed meanwhile, and was left to them.
    pub left: Vec<Left>,
    /// What could not be taken back, and why.
    pub failed: Vec<(Change, KernelError)>,
    /// Why this could not be written down, if so.
    pub unrecorded: Option<JournalError>,
}

impl Recovered {
    /// What happened, in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!(
            "transaction {} (`{}` by {}, begun {}) was taken back: {}; {}",
            self.entry.id,
            self.entry.command.join(" ").escape_debug(),
            self.entry.who,
            self.entry.started,
            self.why,
            match self.changes {
                0 => "nothing was left of it".to_owned(),
                1 => "1 change".to_owned(),
                many => format!("{many} changes"),
            }
        )
    }
}

/// Takes back a transaction of an earlier run that was cut short, or not confirmed in time.
///
/// # Errors
/// If one still waits to be confirmed, or its record cannot be read or written.
pub fn settle(kernel: &mut dyn Kernel, journal: &mut Locked) -> Result<Option<Recovered>, Failure> {
    let now =
        confirm::uptime().map_err(|error| KernelError::io("cannot read `/proc/uptime`", error))?;
    let why = match journal.condition(now, false) {
        Condition::Settled => return Ok(None),
        Condition::Unconfirmed(open, left) => {
            return Err(Failure::new(
                Exit::Locked,
                format!(
                    "transaction {} (`{}` by {}) waits to be confirmed, for another {} s",
                    open.entry.id,
                    open.entry.command.join(" ").escape_debug(),
                    open.entry.who,
                    left.as_secs().max(1)
                ),
            )
            .detail("nothing was changed")
            .hint("`redirect confirm` keeps it, `redirect rollback` takes it back at once"));
        }
        Condition::Interrupted(open) | Condition::Underway(open) => journal.why_back(open),
    };
    take_back_open(kernel, journal, why).map(Some)
}

/// Takes back the open transaction, whatever stage it is in, and writes down that it ended.
///
/// # Errors
/// If there is none, or its record cannot be read or written.
pub fn take_back_open(
    kernel: &mut dyn Kernel,
    journal: &mut Locked,
    why: &str,
) -> Result<Recovered, Failure> {
    let _guard = Uninterrupted::begin();
    let open = journal.open().ok_or(JournalError::NothingOpen)?.clone();
    let record = match journal.open_plan() {
        Ok(plan) => Some(plan),
        // Then the way back is planned anew, from what is there.
        Err(JournalError::Damaged { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let way_back = WayBack {
        before: readable_policy(journal, journal.confirmed().policy.as_ref()),
        after: readable_policy(journal, open.after.policy.as_ref()),
        ledger: open.after.ledger,
        reach: journal.reach(),
        record,
    };
    let tidied = tidy(kernel, way_back.record.as_ref());
    let Retreat {
        changes,
        left,
        mut failed,
    } = go_back(kernel, &mut |kernel| way_back.look(kernel)).map_err(|error| {
        Failure::from(error).detail(format!(
            "transaction {} is not taken back yet; the next run tries again",
            open.entry.id
        ))
    })?;
    let remains = remains(&failed);
    failed.extend(tidied);
    let written = if failed.is_empty() {
        journal.undone(why)
    } else {
        let why = format!("{why}, and not all could be taken back");
        journal.failed(why, &remains)
    };
    Ok(Recovered {
        entry: open.entry,
        why: why.to_owned(),
        changes,
        left,
        failed,
        // Then the next run finds it open once more, and that there is nothing left to do.
        unrecorded: written.err(),
    })
}

/// What came of going back.
#[derive(Debug, Default)]
pub(super) struct Retreat {
    /// How many changes that took.
    pub(super) changes: usize,
    /// What others changed meanwhile, and was left to them.
    pub(super) left: Vec<Left>,
    /// What could not be done, and why.
    pub(super) failed: Vec<(Change, KernelError)>,
}

impl Retreat {
    /// What is still made of the plan.
    pub(super) fn remains(&self) -> Plan {
        remains(&self.failed)
    }
}

fn remains(failed: &[(Change, KernelError)]) -> Plan {
    let changes = failed.iter().map(|(change, _)| change.clone());
    Plan {
        changes: changes.collect(),
    }
    .inverse()
}

/// Takes `plan` back after it failed somewhere: by what is there, for the change that failed
/// may have been made all the same.
pub(super) fn retreat(kernel: &mut dyn Kernel, plan: &Plan, policies: &[&Policy]) -> Retreat {
    let tidied = tidy(kernel, Some(plan));
    let looked = go_back(kernel, &mut |kernel| {
        let observed = kernel.observe(&Wish { policies })?;
        Ok(recovery(plan, Reach::Everything, &observed))
    });
    let mut retreat = looked.unwrap_or_else(|_| blindly(kernel, plan));
    retreat.failed.extend(tidied);
    retreat
}

/// Takes `plan` back without looking, where nothing can be seen. What was not made cannot be
/// taken back, and says so.
fn blindly(kernel: &mut dyn Kernel, plan: &Plan) -> Retreat {
    let mut retreat = Retreat::default();
    for change in plan.clone().inverse().changes {
        retreat.changes += 1;
        match kernel.perform(&change) {
            Err(error) if !matches!(error.kind, FailureKind::Gone | FailureKind::Exists) => {
                retreat.failed.push((change, error));
            }
            _ => {}
        }
    }
    // What still holds rules stays, and that is no error; so it may be there yet.
    if !retreat.failed.is_empty() {
        let frames = plan.clone().inverse().changes.into_iter();
        let frames = frames.filter(|change| matches!(change, Change::Frame { .. }));
        retreat.failed.extend(frames.map(|change| {
            let action = summarise(&change);
            (
                change,
                KernelError::because(action, "whether it took cannot be seen"),
            )
        }));
    }
    retreat
}

/// Goes where `look` leads, as far as possible, and looks again: only what is still out of
/// place then has failed.
fn go_back(
    kernel: &mut dyn Kernel,
    look: &mut dyn FnMut(&mut dyn Kernel) -> Result<Recovery, KernelError>,
) -> Result<Retreat, KernelError> {
    let Recovery { plan, mut left } = look(kernel)?;
    let changes = plan.changes.len();
    let mut refused = Vec::new();
    for change in plan.changes {
        match kernel.perform(&change) {
            Ok(()) => {}
            // Others have put something into it.
            Err(error) if matches!(change, Change::Directory { to: false, .. }) => {
                left.push(Left {
                    change: summarise(&change.inverse()),
                    found: error.reason,
                });
            }
            Err(error) => refused.push((change, error)),
        }
    }
    let mut failed = Vec::new();
    for change in look(kernel)?.plan.changes {
        if matches!(change, Change::Directory { to: false, .. }) {
            continue;
        }
        let error = refused
            .iter()
            .position(|(other, _)| *other == change)
            .map_or_else(
                || KernelError::because(summarise(&change), "it did not take"),
                |at| refused.swap_remove(at).1,
            );
        failed.push((change, error));
    }
    Ok(Retreat {
        changes,
        left,
        failed,
    })
}

/// Removes what a killed run may have left half-made.
fn tidy(kernel: &mut dyn Kernel, plan: Option<&Plan>) -> Vec<(Change, KernelError)> {
    plan.iter()
        .flat_map(|plan| &plan.changes)
        .filter_map(|change| {
            let error = kernel.tidy(change).err()?;
            Some((change.clone().inverse(), error))
        })
        .collect()
}

/// All that is known of how the router was before a transaction.
struct WayBack {
    before: Policy,
    after: Policy,
    /// As it would be after the transaction.
    ledger: Ledger,
    reach: Reach,
    /// The transaction's plan, if it can be read.
    record: Option<Plan>,
}

impl WayBack {
    /// What leads back from what is there now.
    fn look(&self, kernel: &mut dyn Kernel) -> Result<Recovery, KernelError> {
        let observed = kernel.observe(&Wish {
            policies: &[&self.before, &self.after],
        })?;
        Ok(match &self.record {
            Some(plan) => recovery(plan, self.reach, &observed),
            None => Recovery {
                plan: planner::plan(
                    &self.before,
                    &observed,
                    &self.ledger,
                    planner::Stage::Complete,
                )
                .plan,
                left: Vec::new(),
            },
        })
    }
}

/// The policy, if it can still be read: it only widens what is looked at.
fn readable_policy(journal: &Journal, digest: Option<&Digest>) -> Policy {
    digest
        .and_then(|digest| journal.source(digest).ok())
        .and_then(|source| policy::read(&source).ok())
        .map(|reading| reading.policy)
        .unwrap_or_default()
}
