//! What survives a crash: the record of what is being done, of what was done, and of what
//! is to be restored.
//!
//! A transaction is written down whole before its first change, and its outcome after its
//! last. One small file, `journal.json`, says everything that must agree with itself: which policy
//! is in force, what teardown restores, which transaction is open, what happened before. It is
//! only ever replaced by `rename`, so whoever reads it, without any lock, sees one consistent
//! state. What is large lies beside it and is never changed once written:
//!
//! | file | holds |
//! |---|---|
//! | `journal.json` | the state, and the last transactions |
//! | `plan-ID.json` | the plan of the last transaction; needed while that has not ended |
//! | `policy-DIGEST.json` | a policy's text and lists, once, however often it was applied |
//!
//! A transaction waits for the disk four times, and for nothing else of the journal's:
//!
//! 1. before its first change, for the content of all that describes it: its plan, the policy where
//!    that is new, the journal. They are written together, so one commit of the file system's own
//!    journal takes them all, and the syncs after the first find little left to do;
//! 2. then for their names, by one sync of the directory. So a plan that is missing after a loss of
//!    power was never begun;
//! 3. after its last change, for the content of the journal with the outcome;
//! 4. then for its name. Before that nobody is told that it is done.
//!
//! Where it finds more to do than was planned, it waits for 1 and 2 once more, for that.
//!
//! What it changes below `/etc` it changes after the second and before the third, and waits for
//! that as well: a file's content before its name, and the name before the outcome ([`files`]).

pub mod confirm;
mod entry;
mod error;
mod lock;
mod recovery;
mod store;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use entry::{BootId, Digest, Entry, Invocation, Kind, Outcome, Stamp, Who, summarise, summary};
pub use error::JournalError;
pub use lock::Holder;
pub use recovery::{Left, Reach, Recovery, recovery};

use crate::kernel::files;
use crate::nft::proof::Proof;
use crate::plan::{Ledger, Plan};
use crate::policy::{Name, Policy, Source};
use lock::Lock;
use store::Store;

/// Where the state is kept.
pub const DIRECTORY: &str = "/var/lib/redirect";
/// The format that this version writes. It reads this and all before.
pub const FORMAT: u32 = 1;
/// How many ended transactions are remembered.
pub const HISTORY: usize = 100;

/// How many of a transaction's changes the history names one by one. A policy that pins a
/// setting of each of a thousand interfaces must not make every run write megabytes.
const LINES: usize = 50;

/// Bytes that a transaction's plan takes up on the disk beyond its own length, at least.
const ROOM: usize = 16 * 1024;

const NAMESPACE: &str = "/proc/self/ns/net";
const JOURNAL: &str = "journal.json";

/// Which state directory, during which boot.
#[derive(Debug, Clone)]
pub struct Location {
    /// Usually [`DIRECTORY`].
    pub directory: PathBuf,
    /// The present boot.
    pub boot: BootId,
}

impl Location {
    /// `directory`, now.
    ///
    /// # Errors
    /// If `/proc` does not say which boot this is.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let boot = entry::boot_id().map_err(|source| JournalError::Read {
            path: "/proc/sys/kernel/random/boot_id".into(),
            source,
        })?;
        Ok(Self {
            directory: directory.into(),
            boot,
        })
    }
}

/// A policy in force, and what taking it out restores.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The policy; none: nothing is redirected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
    /// The transaction that made it so; none: none ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<u64>,
    /// What takes no new sessions.
    #[serde(default, skip_serializing_if = "Draining::is_empty")]
    pub draining: Draining,
    /// The boot during which the ledger's settings were written.
    pub boot: BootId,
    /// What teardown restores.
    pub ledger: Ledger,
    /// What spares the next run from reading long lists of networks back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

impl Applied {
    /// The same, as it counts during `boot`: neither settings under `/proc/sys` nor packet rules
    /// outlive one.
    fn at(mut self, boot: &BootId) -> Self {
        if self.boot != *boot {
            self.ledger.sysctls.clear();
            self.proof = None;
            self.boot = boot.clone();
        }
        self
    }
}

/// What takes no new sessions, while those that run go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Appliances of the policy in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub appliances: Vec<Name>,
    /// What policies before it had and it has not, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<LeftBehind>,
}

impl Draining {
    /// Whether everything takes new sessions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.appliances.is_empty() && self.left_behind.is_empty()
    }

    /// Adds a redirect of a policy before.
    pub fn leave_behind(&mut self, policy: &Digest, redirect: Name) {
        let last = self.left_behind.last_mut();
        if let Some(left) = last.filter(|left| left.policy == *policy) {
            left.redirects.push(redirect);
        } else {
            self.left_behind.push(LeftBehind {
                policy: policy.clone(),
                redirects: vec![redirect],
            });
        }
    }
}

/// Redirects of a policy that is no longer in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// That policy.
    pub policy: Digest,
    /// Those of its redirects through which sessions went when they were left behind.
    pub redirects: Vec<Name>,
}

/// How far an open transaction has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Some, all or none of its changes are made.
    Performing,
    /// All are made; unless it is confirmed in time, they are taken back.
    Unconfirmed {
        /// `CLOCK_BOOTTIME`, in milliseconds, of the boot that the transaction began in.
        deadline_ms: u64,
    },
}

/// A transaction that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// What is known of it.
    pub entry: Entry,
    /// How far it has come.
    pub stage: Stage,
    /// What will be in force once it has ended well.
    pub after: Applied,
}

/// Why a journal does not say what was done to this router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// There is none: nothing was ever applied, or somebody removed it.
    Missing,
    /// It was damaged, and now has this name.
    SetAside(PathBuf),
    /// It is damaged, has this name, and cannot be given another.
    Damaged(PathBuf),
}

/// All that `journal.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    version: u32,
    /// The last number given to a transaction.
    last: u64,
    /// What is in force, and confirmed.
    applied: Applied,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open: Option<Open>,
    /// Oldest first.
    history: Vec<Entry>,
}

/// How the last transaction stands, for who is not it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    /// It has ended; or there never was one.
    Settled,
    /// It is being made, or taken back, right now.
    Underway(&'a Open),
    /// It was cut short, or not confirmed in time, and is still to be taken back.
    Interrupted(&'a Open),
    /// It waits to be confirmed.
    Unconfirmed(&'a Open, Duration),
}

/// The state as it was when it was read.
#[derive(Debug, Clone)]
pub struct Journal {
    store: Store,
    boot: BootId,
    state: State,
    /// What is known already of policies' texts. Lists of 100,000 networks are read once a run.
    read: RefCell<BTreeMap<Digest, Policy>>,
}

impl Journal {
    /// Reads the state, without a lock and without creating anything. Where there is no
    /// state directory yet, nothing was ever applied.
    ///
    /// # Errors
    /// If it cannot be read, is not safe, or not what we wrote.
    pub fn read(location: &Location) -> Result<Self, JournalError> {
        let store = Store::new(location.directory.clone());
        let bytes = match store.open()? {
            Some(_) => store.read(JOURNAL)?,
            None => None,
        };
        let state = match bytes {
            Some(bytes) => State::decode(&bytes, &store)?,
            None => State::empty(),
        };
        Ok(Self::holding(store, state, location))
    }

    /// One that says nothing, in the place of one that cannot be read.
    fn blank(location: &Location) -> Self {
        let store = Store::new(location.directory.clone());
        Self::holding(store, State::empty(), location)
    }

    fn holding(store: Store, state: State, location: &Location) -> Self {
        let mut journal = Self {
            store,
            boot: location.boot.clone(),
            state,
            read: RefCell::default(),
        };
        let applied = std::mem::take(&mut journal.state.applied);
        journal.state.applied = applied.at(&location.boot);
        journal
    }

    /// The same, and who holds the lock. A run that ends in between is not mistaken for one
    /// that died: that the lock was free is known before its outcome is read.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_with_holder(location: &Location) -> Result<(Self, Option<Holder>), JournalError> {
        let holder = Store::new(location.directory.clone())
            .open()?
            .as_ref()
            .and_then(lock::holder);
        Ok((Self::read(location)?, holder))
    }

    /// What was confirmed last: what a reboot comes up with.
    #[must_use]
    pub fn confirmed(&self) -> &Applied {
        &self.state.applied
    }

    /// What the router is to be like now: what waits to be confirmed, else what was
    /// confirmed last.
    #[must_use]
    pub fn in_force(&self) -> &Applied {
        match &self.state.open {
            Some(open)
                if open.entry.boot == self.boot
                    && matches!(open.stage, Stage::Unconfirmed { .. }) =>
            {
                &open.after
            }
            _ => &self.state.applied,
        }
    }

    /// The transaction that has not ended, if there is one.
    #[must_use]
    pub fn open(&self) -> Option<&Open> {
        self.state.open.as_ref()
    }

    /// The present boot.
    #[must_use]
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// The last number that was given to a transaction; 0: none yet.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.state.last
    }

    /// How the last transaction stands at `now` (`CLOCK_BOOTTIME`), `busy` telling whether
    /// some other run holds the lock.
    #[must_use]
    pub fn condition(&self, now: Duration, busy: bool) -> Condition<'_> {
        let Some(open) = &self.state.open else {
            return Condition::Settled;
        };
        let left = match open.stage {
            Stage::Unconfirmed { deadline_ms } if open.entry.boot == self.boot => {
                Duration::from_millis(deadline_ms).saturating_sub(now)
            }
            _ => Duration::ZERO,
        };
        if !left.is_zero() {
            Condition::Unconfirmed(open, left)
        } else if busy {
            Condition::Underway(open)
        } else {
            Condition::Interrupted(open)
        }
    }

    /// Why an open transaction that nobody works on is taken back.
    #[must_use]
    pub fn why_back(&self, open: &Open) -> &'static str {
        let restarted = open.entry.boot != self.boot;
        match (&open.stage, restarted) {
            (Stage::Performing, false) => "it was cut short",
            (Stage::Performing, true) => "it was cut short by a restart of the machine",
            (Stage::Unconfirmed { .. }, false) => "it was not confirmed in time",
            (Stage::Unconfirmed { .. }, true) => "the machine restarted before it was confirmed",
        }
    }

    /// Who holds the lock now, as far as the kernel shows it.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        self.store
            .open()
            .ok()
            .flatten()
            .as_ref()
            .and_then(lock::holder)
    }

    /// How much of the open transaction's work can still be there.
    #[must_use]
    pub fn reach(&self) -> Reach {
        match &self.state.open {
            Some(open) if open.entry.boot == self.boot => Reach::Everything,
            _ => Reach::Files,
        }
    }

    /// Ended transactions, oldest first.
    #[must_use]
    pub fn history(&self) -> &[Entry] {
        &self.state.history
    }

    /// An ended transaction.
    ///
    /// # Errors
    /// If it is not, or no longer, remembered.
    pub fn entry(&self, id: u64) -> Result<&Entry, JournalError> {
        self.state
            .history
            .iter()
            .find(|entry| entry.id == id)
            .ok_or(JournalError::NoSuchEntry { id })
    }

    /// The policy that the last transaction which changed the policy found in force:
    /// what `redirect rollback` goes back to. None: no such transaction; `Some(None)`: nothing
    /// was in force.
    #[must_use]
    pub fn policy_before(&self) -> Option<Option<&Digest>> {
        self.state
            .history
            .iter()
            .rev()
            .find(|entry| {
                entry.outcome == Some(Outcome::Done)
                    && (entry.policy != entry.before || entry.kind == Kind::Drain)
            })
            .map(|entry| entry.before.as_ref())
    }

    /// Takes note of what the text with this digest says, so that it is not read again.
    pub fn remember(&self, digest: &Digest, policy: &Policy) {
        // Nobody holds it for longer than these two functions do.
        if let Ok(mut read) = self.read.try_borrow_mut() {
            read.insert(digest.clone(), policy.clone());
        }
    }

    /// What the text with this digest says, if that was noted.
    #[must_use]
    pub fn remembered(&self, digest: &Digest) -> Option<Policy> {
        self.read.try_borrow().ok()?.get(digest).cloned()
    }

    /// The text of a policy that was applied once.
    ///
    /// # Errors
    /// If it is gone or damaged.
    pub fn source(&self, digest: &Digest) -> Result<Source, JournalError> {
        let name = policy_name(digest);
        let damaged = |reason: String| JournalError::Damaged {
            path: self.store.path(&name),
            reason,
        };
        let bytes = self
            .store
            .read(&name)?
            .ok_or_else(|| damaged("it is missing".to_owned()))?;
        let source: Source =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if Digest::of(&source) == *digest {
            Ok(source)
        } else {
            Err(damaged("its content has another digest".to_owned()))
        }
    }

    /// The plan of the open transaction.
    ///
    /// After a loss of power it may be missing; then the transaction never began, and
    /// the plan is empty.
    ///
    /// # Errors
    /// If there is no open transaction, or its plan cannot be read.
    pub fn open_plan(&self) -> Result<Plan, JournalError> {
        let open = self.open().ok_or(JournalError::NothingOpen)?;
        let name = plan_name(open.entry.id);
        let damaged = |reason: String| JournalError::Damaged {
            path: self.store.path(&name),
            reason,
        };
        let Some(bytes) = self.store.read(&name)? else {
            return if open.entry.boot == self.boot {
                Err(damaged("it is missing".to_owned()))
            } else {
                Ok(Plan::default())
            };
        };
        serde_json::from_slice::<PlanFile<Plan>>(&bytes)
            .map(|file| file.plan)
            .map_err(|error| damaged(error.to_string()))
    }
}

impl State {
    fn empty() -> Self {
        Self {
            version: FORMAT,
            last: 0,
            applied: Applied::default(),
            open: None,
            history: Vec::new(),
        }
    }

    fn decode(bytes: &[u8], store: &Store) -> Result<Self, JournalError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| JournalError::Damaged {
            path: store.path(JOURNAL),
            reason: error.to_string(),
        };
        let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version > FORMAT {
            return Err(JournalError::Newer {
                path: store.path(JOURNAL),
                found: version,
                known: FORMAT,
            });
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// Every policy that something still refers to.
    fn policies(&self) -> BTreeSet<String> {
        let open = self.open.as_ref();
        let entries = (self.history.iter()).chain(open.map(|open| &open.entry));
        let applied = [Some(&self.applied), open.map(|open| &open.after)];
        let applied = applied.into_iter().flatten();
        let left_behind = (applied.clone())
            .flat_map(|applied| &applied.draining.left_behind)
            .map(|left| &left.policy);
        entries
            .flat_map(|entry| [&entry.policy, &entry.before])
            .chain(applied.map(|applied| &applied.policy))
            .flatten()
            .chain(left_behind)
            .map(policy_name)
            .collect()
    }
}

#[derive(Serialize, Deserialize)]
struct PlanFile<P> {
    version: u32,
    plan: P,
}

/// What history says of a plan: its first changes, and how many more there are.
fn lines(plan: &Plan) -> (Vec<String>, usize) {
    let named = plan.changes.iter().take(LINES).map(summarise).collect();
    (named, plan.changes.len().saturating_sub(LINES))
}

fn plan_name(id: u64) -> String {
    format!("plan-{id}.json")
}

fn policy_name(digest: &Digest) -> String {
    format!("policy-{digest}.json")
}

/// The state, and the right to change it: nobody else has one of these for this directory.
#[derive(Debug)]
pub struct Locked {
    journal: Journal,
    invocation: Invocation,
    lock: Lock,
}

impl Deref for Locked {
    type Target = Journal;
    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl Locked {
    /// Takes the lock, waiting for it at most `wait`, and reads the state. Makes the
    /// directory if it is not there.
    ///
    /// # Errors
    /// If another run holds on to it, or as [`Journal::read`].
    pub fn acquire(
        location: &Location,
        invocation: Invocation,
        wait: Duration,
    ) -> Result<Self, JournalError> {
        let lock = lock(location, wait)?;
        Ok(Self::holding(lock, Journal::read(location)?, invocation))
    }

    /// The same for teardown, which must work whatever state the journal is in: what is
    /// lost of it is returned, and an empty one takes its place.
    ///
    /// # Errors
    /// As [`Self::acquire`], damage aside.
    pub fn acquire_setting_aside(
        location: &Location,
        invocation: Invocation,
        wait: Duration,
    ) -> Result<(Self, Option<Lost>), JournalError> {
        let lock = match lock(location, wait) {
            // Nothing can be written down then, but what bears our marks can be removed. The
            // router's own namespace stands in for the directory that cannot be made.
            Err(error) if error.is_unwritable() => File::open(NAMESPACE)
                .map_err(|source| JournalError::read(NAMESPACE.into(), source))
                .and_then(|namespace| take(namespace, wait))?,
            other => other?,
        };
        let (journal, lost) = match Journal::read(location) {
            Ok(journal) if journal.last() == 0 => (journal, Some(Lost::Missing)),
            Ok(journal) => (journal, None),
            Err(JournalError::Damaged { path, .. }) => {
                let name = format!("{JOURNAL}.damaged-{}", String::from(Stamp::now()));
                let journal = Journal::blank(location);
                let lost = match journal.store.rename(JOURNAL, &name) {
                    Ok(()) => Lost::SetAside(journal.store.path(&name)),
                    Err(error) if error.is_unwritable() => Lost::Damaged(path),
                    Err(error) => return Err(error),
                };
                (journal, Some(lost))
            }
            Err(error) => return Err(error),
        };
        Ok((Self::holding(lock, journal, invocation), lost))
    }

    /// Takes it that these directories were made for us, where the journal that knew is lost.
    pub fn presume_made(&mut self, directories: Vec<PathBuf>) {
        self.journal.state.applied.ledger.directories = directories;
    }

    fn holding(lock: Lock, journal: Journal, invocation: Invocation) -> Self {
        // Taking back is work as well.
        lock.pass_on(journal.open().is_some());
        Self {
            journal,
            invocation,
            lock,
        }
    }

    /// Writes down what is about to be done; once this returns, it may begin. `policy` is what
    /// will be in force after it, `draining` what takes no new sessions then.
    ///
    /// # Errors
    /// If it cannot be written, or another transaction has not ended. Then nothing may be
    /// changed.
    pub fn begin(
        &mut self,
        kind: Kind,
        policy: Option<&Source>,
        draining: &Draining,
        plan: &Plan,
    ) -> Result<u64, JournalError> {
        if let Some(open) = self.open() {
            return Err(JournalError::Unfinished { id: open.entry.id });
        }
        self.prune();
        let before = &self.journal.state.applied;
        let id = self.journal.state.last + 1;
        let digest = policy.map(Digest::of);
        let (changes, more_changes) = lines(plan);
        let entry = Entry {
            id,
            kind,
            boot: self.journal.boot.clone(),
            started: Stamp::now(),
            finished: None,
            who: self.invocation.who.clone(),
            command: self.invocation.command.clone(),
            policy: digest.clone(),
            policy_name: policy.map(|source| source.name.clone()),
            before: before.policy.clone(),
            changes,
            more_changes,
            outcome: None,
        };
        let after = Applied {
            policy: digest.clone(),
            transaction: Some(id),
            draining: draining.clone(),
            boot: self.journal.boot.clone(),
            ledger: before.ledger.after(plan),
            proof: before.proof.clone(),
        };
        let mut state = self.journal.state.clone();
        state.last = id;
        state.open = Some(Open {
            entry,
            stage: Stage::Performing,
            after,
        });
        // What is there may be damaged; then it is written anew.
        let new = policy
            .zip(digest)
            .filter(|(_, digest)| self.journal.source(digest).is_err());
        let policy = match new {
            Some((source, digest)) => {
                Some((policy_name(&digest), encode(source, &self.journal.store)?))
            }
            None => None,
        };
        self.commit_with_plan(state, plan, policy.as_ref())?;
        self.lock.pass_on(true);
        Ok(id)
    }

    /// Writes down that the open transaction, which has made `made` so far, is about to do `more`
    /// as well; once this returns, it may.
    ///
    /// # Errors
    /// If it cannot be written, or none is open. Then no more may be done.
    pub fn extend(&mut self, made: &Plan, more: &Plan) -> Result<(), JournalError> {
        let whole = Plan {
            changes: [&*made.changes, &*more.changes].concat(),
        };
        let mut state = self.journal.state.clone();
        let open = state.open.as_mut().ok_or(JournalError::NothingOpen)?;
        (open.entry.changes, open.entry.more_changes) = lines(&whole);
        open.after.ledger = open.after.ledger.after(more);
        self.commit_with_plan(state, &whole, None)
    }

    /// Writes the plan of the transaction that is open in `state`, that and, where it is new, the
    /// policy: a name and a text.
    fn commit_with_plan(
        &mut self,
        state: State,
        plan: &Plan,
        policy: Option<&(String, String)>,
    ) -> Result<(), JournalError> {
        let store = &self.journal.store;
        let text = encode(&state, store)?;
        let file = PlanFile {
            version: FORMAT,
            plan,
        };
        let mut plan = encode(&file, store)?;
        let length = plan.len();
        // The file stays until the next transaction begins, and then makes room for that
        // one's plan (the way back is about as long as the way there) and for two
        // journals: so what was applied can be taken back on a full disk, too.
        plan.extend(std::iter::repeat_n(' ', ROOM + 2 * text.len()));
        let plan_name = plan_name(state.last);
        let write = |plan: &str| {
            let policy = policy.map(|(name, text)| (&**name, &**text)).into_iter();
            let others = [(&*plan_name, plan), (JOURNAL, &*text)];
            store.write(&policy.chain(others).collect::<Vec<_>>())
        };
        match write(&plan) {
            Err(error) if error.is_full() => {
                plan.truncate(length);
                write(&plan)?;
            }
            other => other?,
        }
        self.journal.state = state;
        Ok(())
    }

    /// Keeps what proves that the packet rules are as the open transaction has left them,
    /// to be written with its outcome.
    pub fn keep_proof(&mut self, proof: Option<Proof>) {
        if let Some(open) = &mut self.journal.state.open {
            open.after.proof = proof;
        }
    }

    /// All changes are made, and stay.
    ///
    /// # Errors
    /// If it cannot be written. Then the transaction is still open, and the next run would take
    /// it back; so take it back at once.
    pub fn done(&mut self) -> Result<(), JournalError> {
        self.end(Outcome::Done, |open, _| open.after.clone())
    }

    /// All changes are made, and stay if [`Self::confirm`] comes before `deadline`
    /// (`CLOCK_BOOTTIME`).
    ///
    /// # Errors
    /// As [`Self::done`].
    pub fn await_confirmation(&mut self, deadline: Duration) -> Result<(), JournalError> {
        let mut state = self.journal.state.clone();
        let open = state.open.as_mut().ok_or(JournalError::NothingOpen)?;
        open.stage = Stage::Unconfirmed {
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        };
        self.commit(state)
    }

    /// What waited to be confirmed stays.
    ///
    /// # Errors
    /// If nothing waits, or it cannot be written.
    pub fn confirm(&mut self) -> Result<(), JournalError> {
        match self.open().map(|open| &open.stage) {
            Some(Stage::Unconfirmed { .. }) => self.done(),
            _ => Err(JournalError::NothingOpen),
        }
    }

    /// Everything is as it was before the transaction.
    ///
    /// # Errors
    /// If it cannot be written. Then the next run finds the transaction open, and that
    /// there is nothing left to take back.
    pub fn undone(&mut self, why: impl Into<String>) -> Result<(), JournalError> {
        let outcome = Outcome::Undone { why: why.into() };
        self.end(outcome, |_, before| before.clone())
    }

    /// Some changes could not be taken back: `remains` is what is still made of the plan.
    ///
    /// # Errors
    /// As [`Self::undone`].
    pub fn failed(&mut self, why: impl Into<String>, remains: &Plan) -> Result<(), JournalError> {
        let outcome = Outcome::Failed {
            why: why.into(),
            remains: summary(remains),
        };
        self.end(outcome, |_, before| Applied {
            ledger: before.ledger.after(remains),
            ..before.clone()
        })
    }

    fn end(
        &mut self,
        outcome: Outcome,
        applied: impl FnOnce(&Open, &Applied) -> Applied,
    ) -> Result<(), JournalError> {
        let mut state = self.journal.state.clone();
        let open = state.open.take().ok_or(JournalError::NothingOpen)?;
        state.applied = applied(&open, &state.applied).at(&self.journal.boot);
        state.history.push(Entry {
            finished: Some(Stamp::now()),
            outcome: Some(outcome),
            ..open.entry
        });
        let surplus = state.history.len().saturating_sub(HISTORY);
        state.history.drain(..surplus);
        self.commit(state)?;
        self.lock.pass_on(false);
        Ok(())
    }

    fn commit(&mut self, state: State) -> Result<(), JournalError> {
        let store = &self.journal.store;
        let text = encode(&state, store)?;
        match store.write(&[(JOURNAL, &text)]) {
            Err(error) if error.is_full() => {
                self.prune();
                self.journal.store.write(&[(JOURNAL, &text)])?;
            }
            other => other?,
        }
        self.journal.state = state;
        Ok(())
    }

    /// Removes what nothing refers to any more.
    fn prune(&self) {
        let state = &self.journal.state;
        let policies = state.policies();
        let plan = state.open.as_ref().map(|open| plan_name(open.entry.id));
        for name in self.journal.store.names() {
            let surplus = files::is_temporary(&name)
                || name.starts_with("policy-") && !policies.contains(&name)
                || name.starts_with("plan-") && Some(&name) != plan.as_ref();
            if surplus {
                self.journal.store.remove(&name);
            }
        }
    }
}

fn encode(value: &impl Serialize, store: &Store) -> Result<String, JournalError> {
    serde_json::to_string(value).map_err(|error| {
        JournalError::write("encode", store.path(JOURNAL), std::io::Error::other(error))
    })
}

/// Takes the lock on the directory that is there under this name, even if somebody
/// removes and remakes it meanwhile.
fn lock(location: &Location, wait: Duration) -> Result<Lock, JournalError> {
    let store = Store::new(location.directory.clone());
    take(store.open_or_create()?, wait)
}

fn take(file: File, wait: Duration) -> Result<Lock, JournalError> {
    Lock::take(file, wait).map_err(|file| JournalError::Held {
        holder: lock::holder(&file),
    })
}

#[cfg(test)]
mod tests;
