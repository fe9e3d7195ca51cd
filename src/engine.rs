//! Carries plans out: written down first, step by step, undone where a step fails,
//! and looked at again afterwards.

use std::time::Duration;

use crate::failure::{Exit, Failure};
use crate::journal::{Invocation, JournalError, Kind, Location, Locked};
use crate::kernel::{Kernel, KernelError, Wish};
use crate::observation::Observed;
use crate::plan::planner::{self, Planned, Stage};
use crate::plan::{Change, Plan};
use crate::policy::{self, Policy, Source};
use crate::render::shell;

/// What a run is to reach.
#[derive(Debug, Clone, Copy)]
pub struct Goal<'a> {
    /// What for, as history shows it.
    pub kind: Kind,
    /// The policy to match; an empty one takes everything back.
    pub policy: &'a Policy,
    /// Where it was read from; none for the empty one.
    pub source: Option<&'a Source>,
    /// How much of it can be there yet.
    pub stage: Stage,
}

/// A run that may change the router: it holds the lock, and everything before it has ended.
pub struct Engine<'k> {
    kernel: &'k mut dyn Kernel,
    journal: Locked,
    /// The policy in force when the run began; empty if none is.
    before: Policy,
}

impl<'k> Engine<'k> {
    /// Takes the lock, waiting for it at most `wait`.
    ///
    /// # Errors
    /// If another run holds it, or the journal cannot be read.
    pub fn open(
        kernel: &'k mut dyn Kernel,
        location: &Location,
        wait: Duration,
    ) -> Result<Self, Failure> {
        let journal = Locked::acquire(location, Invocation::current(), wait)?;
        Self::with(kernel, journal)
    }

    /// The same with a lock that is held already.
    ///
    /// # Errors
    /// If the policy in force cannot be read.
    pub fn with(kernel: &'k mut dyn Kernel, journal: Locked) -> Result<Self, Failure> {
        let before = policy_in_force(&journal)?;
        Ok(Self {
            kernel,
            journal,
            before,
        })
    }

    /// The journal, locked.
    pub fn journal(&mut self) -> &mut Locked {
        &mut self.journal
    }

    /// The router.
    pub fn kernel(&mut self) -> &mut dyn Kernel {
        self.kernel
    }

    /// Looks at the router, as far as `goal` and the policy in force concern it.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn observe(&mut self, goal: &Goal<'_>) -> Result<Observed, Failure> {
        Ok(self.kernel.observe(&Wish {
            policies: &[goal.policy, &self.before],
        })?)
    }

    /// What would have to change.
    #[must_use]
    pub fn plan(&self, goal: &Goal<'_>, observed: &Observed) -> Planned {
        planner::plan(
            goal.policy,
            observed,
            &self.journal.in_force().ledger,
            goal.stage,
        )
    }

    /// Makes all changes of `plan`, sees that they took, and writes down that it is done.
    ///
    /// # Errors
    /// After everything has been taken back, or saying what could not be.
    pub fn perform(&mut self, goal: &Goal<'_>, plan: &Plan) -> Result<(), Failure> {
        self.journal.begin(goal.kind, goal.source, plan)?;
        let outcome = match carry_out(self.kernel, plan) {
            Ok(()) => self.verify(goal, plan),
            Err(broken) => Err(broken),
        };
        match outcome {
            Ok(()) => match self.journal.done() {
                Ok(()) => Ok(()),
                Err(error) => {
                    let left = take_back(self.kernel, plan.clone());
                    Err(self.ended(Failure::from(error), &left))
                }
            },
            Err(broken) => {
                let Broken { failure, left } = *broken;
                Err(self.ended(failure, &left))
            }
        }
    }

    /// Writes down that nothing had to change, where the policy's text is another all the same.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_policy(&mut self, goal: &Goal<'_>) -> Result<(), Failure> {
        self.journal
            .begin(goal.kind, goal.source, &Plan::default())?;
        Ok(self.journal.done()?)
    }

    /// Looks again: nothing may be left to do.
    fn verify(&mut self, goal: &Goal<'_>, plan: &Plan) -> Result<(), Box<Broken>> {
        let ledger = self.journal.in_force().ledger.after(plan);
        let wish = Wish {
            policies: &[goal.policy, &self.before],
        };
        let failure = match self.kernel.observe(&wish) {
            Err(error) => Failure::from(error),
            Ok(observed) => {
                let left = planner::plan(goal.policy, &observed, &ledger, goal.stage).plan;
                if left.is_empty() {
                    return Ok(());
                }
                let mut failure = Failure::new(
                    Exit::Failed,
                    "the kernel took all changes, but the router is not as the policy wants it",
                );
                for difference in crate::render::difference::differences(&left) {
                    failure = failure.detail(format!(
                        "did not take: {} {} {}",
                        difference.action.sign(),
                        difference.object,
                        difference.subject
                    ));
                }
                failure.hint("another program may be changing the same objects; run `redirect status` and try again")
            }
        };
        Err(Box::new(Broken {
            failure,
            left: take_back(self.kernel, plan.clone()),
        }))
    }

    /// Writes down how it ended, and says what state the router is in.
    fn ended(&mut self, failure: Failure, left: &[(Change, KernelError)]) -> Failure {
        let why = failure.message.clone();
        if left.is_empty() {
            let failure = failure.detail("everything was taken back: the router is as it was");
            return match self.journal.undone(why) {
                Ok(()) => failure,
                Err(error) => failure.detail(format!("this could not be written down: {error}")),
            };
        }
        let remains = Plan {
            changes: left
                .iter()
                .map(|(change, _)| change.clone().inverse())
                .collect(),
        };
        let mut failure = failure.detail("NOT everything could be taken back; this remains:");
        for (change, error) in left {
            failure = failure.detail(format!("  {error}; by hand: {}", one_line(change)));
        }
        failure = failure.hint("type these commands, or run `redirect teardown`");
        match self.journal.failed(why, &remains) {
            Ok(()) => failure,
            Err(error) => failure.detail(format!("this could not be written down: {error}")),
        }
    }
}

/// The policy that the journal says is in force, read from the journal's own copy.
///
/// # Errors
/// If that copy cannot be read.
pub fn policy_in_force(journal: &crate::journal::Journal) -> Result<Policy, Failure> {
    let Some(digest) = &journal.in_force().policy else {
        return Ok(Policy::default());
    };
    let source = journal.source(digest)?;
    match policy::read(&source) {
        Ok(reading) => Ok(reading.policy),
        Err(errors) => Err(Failure::new(
            Exit::BadPolicy,
            format!("the policy in force, as kept in the journal, cannot be read: {errors}"),
        )
        .hint("apply a policy anew; `redirect teardown` works in any case")),
    }
}

/// Why a plan was not carried out, and what of it could not be taken back.
struct Broken {
    failure: Failure,
    left: Vec<(Change, KernelError)>,
}

/// Makes all changes of `plan`, or none.
fn carry_out(kernel: &mut dyn Kernel, plan: &Plan) -> Result<(), Box<Broken>> {
    for (at, change) in plan.changes.iter().enumerate() {
        let Err(error) = kernel.perform(change) else {
            continue;
        };
        let done = Plan {
            changes: plan.changes.iter().take(at).cloned().collect(),
        };
        let left = take_back(kernel, done);
        let mut failure = Failure::from(error);
        failure.message = format!(
            "step {} of {} failed: {}",
            at + 1,
            plan.changes.len(),
            failure.message
        );
        let failure = failure.detail(format!("which is the command: {}", one_line(change)));
        return Err(Box::new(Broken { failure, left }));
    }
    Ok(())
}

/// Takes back all changes of `plan`, the last one first, and goes on where one cannot
/// be: as much as possible is to be as it was. Returns what could not be taken back.
fn take_back(kernel: &mut dyn Kernel, plan: Plan) -> Vec<(Change, KernelError)> {
    let mut left = Vec::new();
    for change in plan.inverse().changes {
        if let Err(error) = kernel.perform(&change) {
            left.push((change, error));
        }
    }
    left
}

/// The command that makes a change, its input left out.
fn one_line(change: &Change) -> String {
    let commands = shell::commands(change);
    let mut lines = commands.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.next() {
        Some(_) if first.contains("<<") => format!("{first} …"),
        Some(_) => commands.replace('\n', "; "),
        None => first,
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let exit = match &error {
            JournalError::Held { .. } => Exit::Locked,
            JournalError::NotPermitted { .. } => Exit::NotPermitted,
            _ => Exit::Failed,
        };
        let failure = Self::new(exit, error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
