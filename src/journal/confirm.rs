//! `apply --confirm SECONDS`: back by itself unless `redirect confirm` comes.
//!
//! A watcher is started before the first change, and does not belong to the session that
//! is about to change the router under itself: a transient unit where systemd runs, else a
//! process with a session of its own. It only reads the journal: who confirms writes there,
//! and so does who is killed half-way, in that the lock is free and the transaction still
//! open. In either case the watcher knows what to do, at the deadline at the latest.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::{Condition, Journal, JournalError, Location};
use crate::kernel::{KernelError, process};

/// The hidden command that the watcher runs.
pub const COMMAND: &str = "confirm-watch";
/// What the watcher prints once nothing but its own end can stop it.
pub const READY: &str = "watching\n";

/// How often the watcher looks whether it is still needed.
const LOOK: Duration = Duration::from_secs(1);
/// How often while a run is at work, or before it has begun.
const LOOK_AT_WORK: Duration = Duration::from_millis(100);
/// How long to wait after a failure before trying again.
const RETRY: Duration = Duration::from_secs(5);

/// `CLOCK_BOOTTIME`, which goes on while the machine sleeps and is never set, to 10 ms
/// (`/proc/uptime`, `fs/proc/uptime.c`).
///
/// # Errors
/// Passes on what reading `/proc` says.
pub fn uptime() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    text.split_ascii_whitespace()
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| io::Error::other(format!("`/proc/uptime` reads `{}`", text.trim())))
}

/// The passing of time, so that tests need not wait.
pub trait Clock {
    /// `CLOCK_BOOTTIME`.
    ///
    /// # Errors
    /// If it cannot be read.
    fn now(&self) -> io::Result<Duration>;

    /// Lets `time` pass.
    fn sleep(&self, time: Duration);
}

/// The machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> io::Result<Duration> {
        uptime()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// What the watcher of a transaction does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The transaction has ended, one way or the other.
    Over,
    /// Look again after this long.
    Wait(Duration),
    /// Take the transaction back.
    GoBack,
}

/// What the watcher of transaction `id` does at `now`, `busy` telling whether another run
/// holds the lock.
#[must_use]
pub fn step(journal: &Journal, id: u64, now: Duration, busy: bool) -> Step {
    match journal.condition(now, busy) {
        // The watcher is up before the transaction is written down.
        Condition::Settled if journal.last() < id && busy => Step::Wait(LOOK_AT_WORK),
        Condition::Underway(open)
        | Condition::Interrupted(open)
        | Condition::Unconfirmed(open, _)
            if open.entry.id != id =>
        {
            Step::Over
        }
        Condition::Settled => Step::Over,
        Condition::Underway(_) => Step::Wait(LOOK_AT_WORK),
        Condition::Unconfirmed(_, left) => Step::Wait(left.min(LOOK)),
        Condition::Interrupted(_) => Step::GoBack,
    }
}

/// Watches over transaction `id` until it has ended; `go_back` takes it back, under the
/// lock and having looked again.
pub fn watch<E>(
    location: &Location,
    id: u64,
    clock: &dyn Clock,
    mut go_back: impl FnMut() -> Result<(), E>,
) {
    loop {
        let next = look(location, id, clock);
        match next {
            Ok(Step::Over) => return,
            Ok(Step::Wait(time)) => clock.sleep(time),
            Ok(Step::GoBack) => {
                if go_back().is_err() {
                    clock.sleep(RETRY);
                }
            }
            Err(_) => clock.sleep(RETRY),
        }
    }
}

fn look(location: &Location, id: u64, clock: &dyn Clock) -> Result<Step, JournalError> {
    let now = clock
        .now()
        .map_err(|error| JournalError::read("/proc/uptime".into(), error))?;
    let (journal, holder) = Journal::read_with_holder(location)?;
    Ok(step(&journal, id, now, holder.is_some()))
}

/// How the watcher was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watcher {
    /// As this unit of systemd.
    Unit(String),
    /// As a process with a session of its own.
    Process,
}

/// Starts the watcher of transaction `id`, which is about to begin.
///
/// # Errors
/// If it does not come up. Then nothing may be changed.
pub fn arm(id: u64) -> Result<Watcher, KernelError> {
    let program = std::env::current_exe()
        .map_err(|error| KernelError::io("cannot find the path of this program", error))?;
    let program = program.to_string_lossy();
    if is_machines_own() {
        let unit = format!("redirect-confirm-{id}");
        let command = systemd_run(&unit, &program, id);
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        // Where systemd refuses (a container that only looks like it runs there), a
        // process does as well.
        let started = process::run("systemd-run", &arguments, b"", Duration::from_secs(10));
        if started.is_ok_and(|output| output.status.success()) {
            return Ok(Watcher::Unit(unit));
        }
    }
    process::detach(
        &program,
        &[COMMAND, &id.to_string()],
        READY,
        Duration::from_secs(10),
    )
    .map(|()| Watcher::Process)
}

/// Whether a unit of systemd would see the router that we see: systemd runs, and its
/// namespaces are ours. (With `ip netns exec` they are not.)
fn is_machines_own() -> bool {
    let same = |namespace: &str| {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}"));
        matches!((of("self"), of("1")), (Ok(ours), Ok(systemds)) if ours == systemds)
    };
    Path::new("/run/systemd/system").is_dir() && same("net") && same("mnt")
}

/// The arguments of `systemd-run`. The unit is a service that waits, not a timer: so it also
/// takes back at once what a killed run has left, and timers fire up to a minute late.
fn systemd_run(unit: &str, program: &str, id: u64) -> Vec<String> {
    [
        "--quiet",
        "--collect",
        &format!("--unit={unit}"),
        "--description=redirect: goes back unless the change is confirmed",
        "--service-type=exec",
        "--property=Restart=on-failure",
        "--",
        program,
        COMMAND,
        &id.to_string(),
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::journal::{BootId, Draining, Invocation, Kind, Locked, Who};
    use crate::plan::Plan;
    use crate::test_support::Scratch;

    type Event<'a> = Box<dyn FnOnce() + 'a>;

    /// A clock that stands still but for sleeping; things happen at given times.
    struct Fake<'a> {
        now: Cell<Duration>,
        events: RefCell<Vec<(Duration, Event<'a>)>>,
    }

    impl<'a> Fake<'a> {
        fn new(events: Vec<(u64, Event<'a>)>) -> Self {
            Self {
                now: Cell::new(Duration::ZERO),
                events: RefCell::new(
                    events
                        .into_iter()
                        .map(|(second, event)| (Duration::from_secs(second), event))
                        .collect(),
                ),
            }
        }
    }

    impl Clock for Fake<'_> {
        fn now(&self) -> io::Result<Duration> {
            Ok(self.now.get())
        }

        fn sleep(&self, time: Duration) {
            assert!(!time.is_zero(), "a watcher that does not sleep spins");
            self.now.set(self.now.get() + time);
            let mut events = self.events.borrow_mut();
            if events.first().is_some_and(|(at, _)| *at <= self.now.get()) {
                events.remove(0).1();
            }
        }
    }

    fn location(scratch: &Scratch) -> Location {
        Location {
            directory: scratch.path().join("state"),
            boot: BootId("boot-1".to_owned()),
        }
    }

    fn acquire(location: &Location) -> Locked {
        let invocation = Invocation {
            who: Who::default(),
            command: Vec::new(),
        };
        Locked::acquire(location, invocation, Duration::ZERO).unwrap()
    }

    fn unconfirmed(location: &Location, deadline: u64) {
        let mut run = acquire(location);
        run.begin(Kind::Apply, None, &Draining::default(), &Plan::default())
            .unwrap();
        run.await_confirmation(Duration::from_secs(deadline))
            .unwrap();
    }

    /// Watches transaction 1; returns when it went back, if it did.
    fn watched(location: &Location, clock: &Fake<'_>) -> Option<Duration> {
        let mut went_back = None;
        watch(location, 1, clock, || {
            went_back = Some(clock.now.get());
            acquire(location).undone("not confirmed")
        });
        went_back
    }

    #[test]
    fn it_goes_back_at_the_deadline_and_not_before() {
        let scratch = Scratch::new("confirm-deadline");
        let location = location(&scratch);
        unconfirmed(&location, 60);
        let clock = Fake::new(Vec::new());
        assert_eq!(watched(&location, &clock), Some(Duration::from_secs(60)));
    }

    #[test]
    fn it_ends_once_confirmed() {
        let scratch = Scratch::new("confirm-confirmed");
        let location = location(&scratch);
        unconfirmed(&location, 60);
        let confirm = || acquire(&location).confirm().unwrap();
        let clock = Fake::new(vec![(59, Box::new(confirm))]);
        assert_eq!(watched(&location, &clock), None);
        assert_eq!(clock.now.get(), Duration::from_secs(59));
    }

    #[test]
    fn a_run_that_is_killed_is_taken_back_at_once() {
        let scratch = Scratch::new("confirm-killed");
        let location = location(&scratch);
        let run = RefCell::new(Some(acquire(&location)));
        let begin = || {
            let mut run = run.borrow_mut();
            let begun = run.as_mut().unwrap().begin(
                Kind::Apply,
                None,
                &Draining::default(),
                &Plan::default(),
            );
            begun.unwrap();
        };
        let die = || drop(run.borrow_mut().take());
        let clock = Fake::new(vec![(1, Box::new(begin)), (2, Box::new(die))]);
        let back = watched(&location, &clock).unwrap();
        assert!(
            back >= Duration::from_secs(2) && back < Duration::from_secs(3),
            "{back:?}"
        );
    }

    #[test]
    fn it_ends_where_the_run_never_began() {
        let scratch = Scratch::new("confirm-never");
        let location = location(&scratch);
        let run = RefCell::new(Some(acquire(&location)));
        let give_up = || drop(run.borrow_mut().take());
        let clock = Fake::new(vec![(1, Box::new(give_up))]);
        assert_eq!(watched(&location, &clock), None);
    }

    #[test]
    fn it_tries_again_where_going_back_fails() {
        let scratch = Scratch::new("confirm-again");
        let location = location(&scratch);
        unconfirmed(&location, 60);
        let clock = Fake::new(Vec::new());
        let mut tries = 0;
        watch(&location, 1, &clock, || {
            tries += 1;
            if tries < 3 {
                return Err(JournalError::NothingOpen);
            }
            acquire(&location).undone("not confirmed")
        });
        assert_eq!((tries, clock.now.get()), (3, Duration::from_secs(70)));
    }

    #[test]
    fn another_transaction_is_none_of_its_business() {
        let scratch = Scratch::new("confirm-another");
        let location = location(&scratch);
        unconfirmed(&location, 60);
        let journal = Journal::read(&location).unwrap();
        let late = Duration::from_secs(100);
        assert_eq!(step(&journal, 7, late, false), Step::Over);
        assert_eq!(step(&journal, 1, late, false), Step::GoBack);
        assert_eq!(step(&journal, 1, late, true), Step::Wait(LOOK_AT_WORK));
    }

    #[test]
    fn the_unit_is_named_after_the_transaction() {
        assert_eq!(
            systemd_run("redirect-confirm-7", "/usr/sbin/redirect", 7).join(" "),
            "--quiet --collect --unit=redirect-confirm-7 \
             --description=redirect: goes back unless the change is confirmed \
             --service-type=exec --property=Restart=on-failure -- \
             /usr/sbin/redirect confirm-watch 7"
        );
    }
}
