//! Carries plans out: written down first, step by step, undone where a step fails,
//! and looked at again afterwards.

mod recover;

use std::borrow::Cow;
use std::time::Duration;

pub use recover::{Recovered, settle, take_back_open};

use crate::failure::{Exit, Failure};
use crate::journal::{
    Digest, Draining, Invocation, Journal, JournalError, Kind, Location, Locked, confirm,
};
use crate::kernel::signals::Uninterrupted;
use crate::kernel::{Kernel, KernelError, Wish};
use crate::observation::Observed;
use crate::plan::planner::{self, Planned, Stage};
use crate::plan::{Change, Plan, ending};
use crate::policy::{self, Policy, Source};
use crate::render::shell;
use crate::rules;

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
    /// What takes no new sessions; `policy` is as it is with that.
    pub draining: &'a Draining,
}

/// How often what has come to be needed meanwhile is planned and done, before a run gives up.
/// Links and addresses come one by one while a machine starts; who changes things faster than we
/// can look will not be waited for.
const ROUNDS: usize = 3;

/// A run that may change the router: it holds the lock, and everything before it has ended.
pub struct Engine<'k> {
    kernel: &'k mut dyn Kernel,
    journal: Locked,
    /// The policy in force when the run began; empty if none is.
    before: Policy,
    recovered: Option<Recovered>,
    unrecorded: Option<JournalError>,
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

    /// The same with a lock that is held already. What an earlier run has left is taken back.
    ///
    /// # Errors
    /// If a transaction waits to be confirmed, or what it says cannot be read.
    pub fn with(kernel: &'k mut dyn Kernel, mut journal: Locked) -> Result<Self, Failure> {
        let recovered = settle(kernel, &mut journal)?;
        // Only widens what is looked at; whoever needs the policy itself asks for it.
        let before = policy_in_force(&journal).unwrap_or_default();
        trust(kernel, &journal, &before);
        Ok(Self {
            kernel,
            journal,
            before,
            recovered,
            unrecorded: None,
        })
    }

    /// What had to be taken back of an earlier run before this one could begin.
    #[must_use]
    pub fn recovered(&self) -> Option<&Recovered> {
        self.recovered.as_ref()
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

    /// Makes all changes of `plan`, sees that they took, and writes down that it is done. What
    /// has come to be needed or possible meanwhile is done as well: returns all that was.
    ///
    /// # Errors
    /// After everything has been taken back, or saying what could not be.
    pub fn perform<'p>(
        &mut self,
        goal: &Goal<'_>,
        plan: &'p Plan,
    ) -> Result<Cow<'p, Plan>, Failure> {
        self.perform_and(goal, plan, Locked::done)
    }

    /// The same, but all of it goes back unless it is confirmed within `time`. Returns the
    /// transaction's number, too.
    ///
    /// # Errors
    /// Also if nobody could be set to watch over it; then nothing was changed.
    pub fn perform_unconfirmed<'p>(
        &mut self,
        goal: &Goal<'_>,
        plan: &'p Plan,
        time: Duration,
    ) -> Result<(u64, Cow<'p, Plan>), Failure> {
        let id = self.journal.last() + 1;
        confirm::arm(id).map_err(|error| {
            Failure::from(error)
                .detail("nothing was changed: without a watcher, nobody would take it back")
        })?;
        let made = self.perform_and(goal, plan, |journal| {
            let now = confirm::uptime().map_err(|source| JournalError::Read {
                path: "/proc/uptime".into(),
                source,
            })?;
            journal.await_confirmation(now.saturating_add(time))
        })?;
        Ok((id, made))
    }

    fn begin(&mut self, goal: &Goal<'_>, plan: &Plan) -> Result<u64, JournalError> {
        self.journal
            .begin(goal.kind, goal.source, goal.draining, plan)
    }

    fn perform_and<'p>(
        &mut self,
        goal: &Goal<'_>,
        plan: &'p Plan,
        end: impl FnOnce(&mut Locked) -> Result<(), JournalError>,
    ) -> Result<Cow<'p, Plan>, Failure> {
        let _guard = Uninterrupted::begin();
        // What is taken out needs nothing that may be lacking.
        if !goal.policy.is_empty() {
            self.kernel
                .rehearse(plan)
                .map_err(|error| Failure::from(error).detail("nothing was changed"))?;
        }
        if let Err(error) = self.begin(goal, plan) {
            let unwritable = error.is_unwritable()
                || self
                    .recovered
                    .as_ref()
                    .is_some_and(|recovered| recovered.unrecorded.is_some());
            if goal.kind == Kind::Teardown && unwritable {
                return self.perform_unrecorded(goal, plan, error);
            }
            return Err(Failure::from(error).detail("nothing was changed"));
        }
        self.carry_on(goal, plan, end)
    }

    /// Makes the changes that are written down already.
    fn carry_on<'p>(
        &mut self,
        goal: &Goal<'_>,
        plan: &'p Plan,
        end: impl FnOnce(&mut Locked) -> Result<(), JournalError>,
    ) -> Result<Cow<'p, Plan>, Failure> {
        let mut made = Cow::Borrowed(plan);
        let performed = self.make(goal, &mut made).and_then(|()| {
            self.journal.keep_proof(self.kernel.proof());
            Ok(end(&mut self.journal)?)
        });
        match performed {
            Ok(()) => Ok(made),
            Err(failure) => Err(self.give_up(goal, &made, failure)),
        }
    }

    /// Takes everything out although that cannot be written down, because the disk is full or
    /// read-only: what bears our marks can always be found again.
    fn perform_unrecorded<'p>(
        &mut self,
        goal: &Goal<'_>,
        plan: &'p Plan,
        error: JournalError,
    ) -> Result<Cow<'p, Plan>, Failure> {
        let mut made = Cow::Borrowed(plan);
        if let Err(failure) = self.make(goal, &mut made) {
            return Err(self.give_up(goal, &made, failure));
        }
        // Perhaps there is room by now.
        let noted = self.begin(goal, &Plan::default());
        if noted.is_err() || self.journal.done().is_err() {
            self.unrecorded = Some(error);
        }
        Ok(made)
    }

    /// Why what was performed could not be written down, if so.
    #[must_use]
    pub fn unrecorded(&self) -> Option<&JournalError> {
        self.unrecorded.as_ref()
    }

    /// Writes down that nothing had to change, where the policy's text is another all the same.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_policy(&mut self, goal: &Goal<'_>) -> Result<(), Failure> {
        self.begin(goal, &Plan::default())?;
        Ok(self.journal.done()?)
    }

    /// Makes the changes of `made`, and looks again: nothing of it may be left to do. What is left
    /// that it did not touch came up meanwhile (while a machine starts, a link gets its address
    /// after we looked): that is added to it, written down and made as well.
    fn make(&mut self, goal: &Goal<'_>, made: &mut Cow<'_, Plan>) -> Result<(), Failure> {
        carry_out(self.kernel, made)?;
        for _ in 0..ROUNDS {
            let left = self.left(goal, made)?;
            if left.plan.is_empty() {
                return Ok(());
            }
            if !left.refusals.is_empty() || left.plan.touches(made) {
                return Err(did_not_take(&left.plan));
            }
            // Where nothing could be written down to begin with, neither can this.
            if self.journal.open().is_some() {
                self.journal.extend(made, &left.plan)?;
            }
            let further = left.plan.changes.iter().cloned();
            made.to_mut().changes.extend(further);
            carry_out(self.kernel, &left.plan)?;
        }
        let left = self.left(goal, made)?.plan;
        if left.is_empty() {
            return Ok(());
        }
        Err(did_not_take(&left).detail(format!(
            "others have changed the router {ROUNDS} times meanwhile"
        )))
    }

    /// What `goal` still wants once `made` is made, by what is there.
    fn left(&mut self, goal: &Goal<'_>, made: &Plan) -> Result<Planned, Failure> {
        let ledger = self.journal.in_force().ledger.after(made);
        let observed = self.observe(goal)?;
        Ok(planner::plan(goal.policy, &observed, &ledger, goal.stage))
    }

    /// Takes everything back, writes down how it ended, and says what state the router is in.
    fn give_up(&mut self, goal: &Goal<'_>, plan: &Plan, failure: Failure) -> Failure {
        let why = failure.message.clone();
        let policies = [goal.policy, &self.before];
        let retreat = recover::retreat(self.kernel, plan, &policies);
        let mut failure = failure;
        for left in &retreat.left {
            failure = failure.detail(left.to_string());
        }
        let written = if retreat.failed.is_empty() {
            failure = failure.detail("everything was taken back: the router is as it was");
            self.journal.undone(why)
        } else {
            failure = failure.detail("NOT everything could be taken back; this remains:");
            for (_, error) in &retreat.failed {
                failure = failure.detail(format!("  {error}"));
            }
            failure.report = Some(by_hand(&retreat.failed).into());
            failure = failure.hint("run the commands above, or `redirect teardown`");
            self.journal.failed(why, &retreat.remains())
        };
        match written {
            // Where nothing could be written down to begin with, nothing is missing now.
            Ok(()) | Err(JournalError::NothingOpen) => failure,
            Err(error) => failure.detail(format!(
                "this could not be written down: {error}; the next run looks again"
            )),
        }
    }
}

/// What the router is to be like now: the policy that the journal says is in force, read from
/// the journal's own copy, with what drains.
///
/// # Errors
/// If that copy cannot be read.
pub fn policy_in_force(journal: &Journal) -> Result<Policy, Failure> {
    let in_force = journal.in_force();
    let policy = match &in_force.policy {
        Some(digest) => policy_of(journal, digest)?,
        None => Policy::default(),
    };
    let mut policy = policy.draining(&in_force.draining.appliances);
    for left in &in_force.draining.left_behind {
        let before = policy_of(journal, &left.policy)?;
        policy = ending::keeping(policy, &before, &left.redirects).map_err(|clash| {
            Failure::new(
                Exit::Failed,
                format!("what was left behind does not fit: {}", clash.message),
            )
            .hint("`redirect apply --cut` takes it out")
        })?;
    }
    Ok(policy)
}

/// A policy that was in force once: read from the journal's own copy, if it was not read before.
///
/// # Errors
/// If that copy cannot be read.
pub fn policy_of(journal: &Journal, digest: &Digest) -> Result<Policy, Failure> {
    if let Some(policy) = journal.remembered(digest) {
        return Ok(policy);
    }
    match policy::read(&journal.source(digest)?) {
        Ok(reading) => {
            journal.remember(digest, &reading.policy);
            Ok(reading.policy)
        }
        Err(errors) => Err(Failure::new(
            Exit::BadPolicy,
            format!(
                "policy {}, as kept in the journal, cannot be read: {errors}",
                digest.short()
            ),
        )
        .hint("apply a policy anew; `redirect teardown` works in any case")),
    }
}

/// Spares `kernel` from reading back what the journal proves to be there: the packet rules of
/// `policy`, which is in force.
pub fn trust(kernel: &mut dyn Kernel, journal: &Journal, policy: &Policy) {
    if let Some(proof) = &journal.in_force().proof
        && let Some(table) = rules::nftables::table(policy)
    {
        kernel.trust(proof, table);
    }
}

/// Makes all changes of `plan`, up to the first that fails. That one may be made or not.
fn carry_out(kernel: &mut dyn Kernel, plan: &Plan) -> Result<(), Failure> {
    for (at, change) in plan.changes.iter().enumerate() {
        if let Err(error) = kernel.perform(change) {
            let mut failure = Failure::from(error);
            failure.message = format!(
                "step {} of {} failed: {}",
                at + 1,
                plan.changes.len(),
                failure.message
            );
            return Err(failure.detail(format!("which is the command: {}", one_line(change))));
        }
    }
    Ok(())
}

/// What is to be said where the kernel took everything, and this is still to be done.
fn did_not_take(left: &Plan) -> Failure {
    let mut failure = Failure::new(
        Exit::Failed,
        "the kernel took all changes, but the router is not as the policy wants it",
    );
    for difference in crate::render::difference::differences(left) {
        failure = failure.detail(format!(
            "did not take: {} {} {}",
            difference.action.sign(),
            difference.object,
            difference.subject
        ));
    }
    failure.hint(
        "another program may be changing the same objects; run `redirect status` and try again",
    )
}

/// The commands for what could not be done, whole: they are to be typed.
fn by_hand(failed: &[(Change, KernelError)]) -> String {
    let changes = failed.iter().map(|(change, _)| change.clone());
    let plan = Plan {
        changes: changes.collect(),
    };
    let about = ["What could not be taken back. To be run as root.".to_owned()];
    shell::script(&plan, &about)
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
