//! `redirect confirm`, the question that `apply --confirm` asks on a terminal, and the
//! watcher that takes back what nobody confirms.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::{counted, location, report_recovered, trusting_router};
use crate::cli::{Confirm, ConfirmWatch};
use crate::engine::{Recovered, policy_in_force, settle, take_back_open};
use crate::failure::{Exit, Failure};
use crate::journal::{
    Condition, Entry, Invocation, Journal, Kind, Location, Locked, Outcome, confirm,
};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, KernelError, Wish};
use crate::plan::planner::{self, Stage};
use crate::terminal::Terminal;

pub(super) fn run(args: &Confirm, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut journal = Locked::acquire(&location()?, Invocation::current(), args.wait.wait)?;
    let now = now()?;
    match journal.condition(now, false) {
        Condition::Unconfirmed(open, _) => {
            let what = open.entry.kind;
            journal.confirm()?;
            terminal.note(&format!("confirmed: {} stays", said(what)));
            still_there(&journal, terminal)
        }
        Condition::Settled => Err(nothing_waits(&journal)),
        Condition::Interrupted(_) | Condition::Underway(_) => {
            // Too late. What nobody has taken back yet is taken back now.
            let mut router = Router::open()?;
            if let Some(recovered) = settle(&mut router, &mut journal)? {
                report_recovered(&recovered, terminal);
            }
            Err(Failure::new(
                Exit::Failed,
                "too late to confirm: it was taken back",
            ))
        }
    }
}

/// Who confirms is told where others have changed meanwhile what is confirmed.
fn still_there(journal: &Locked, terminal: &Terminal) -> Result<Exit, Failure> {
    let policy = policy_in_force(journal)?;
    let observed = trusting_router(journal, &policy)?.observe(&Wish {
        policies: &[&policy],
    })?;
    let ledger = &journal.in_force().ledger;
    let left = planner::plan(&policy, &observed, ledger, Stage::Complete).plan;
    if left.is_empty() {
        return Ok(Exit::Done);
    }
    terminal.warn(
        &format!(
            "others have changed {} since it was applied",
            counted(left.changes.len(), "object", "objects")
        ),
        Some("`redirect status` names them, `redirect repair` puts them back"),
    );
    Ok(Exit::Pending)
}

fn nothing_waits(journal: &Journal) -> Failure {
    let failure = Failure::new(Exit::Failed, "nothing waits to be confirmed");
    match journal.history().last() {
        Some(Entry {
            id,
            outcome: Some(outcome @ (Outcome::Undone { .. } | Outcome::Failed { .. })),
            finished: Some(finished),
            ..
        }) => failure.detail(format!(
            "transaction {id}, the last one, ended {finished}: {outcome}"
        )),
        Some(Entry { id, .. }) => {
            failure.detail(format!("transaction {id}, the last one, is in force"))
        }
        None => failure,
    }
}

fn said(kind: Kind) -> &'static str {
    match kind {
        Kind::Apply => "what was applied",
        Kind::Rollback => "what was rolled back",
        Kind::Teardown | Kind::Drain => "what was torn down",
        Kind::Repair => "what was repaired",
    }
}

/// Asks whether transaction `id`, which goes back after `time`, is to stay; where nobody
/// can be asked, says how to confirm.
pub(super) fn ask(id: u64, time: Duration, terminal: &Terminal) -> Result<Exit, Failure> {
    let interactive = io::stdin().is_terminal() && io::stderr().is_terminal();
    terminal.note(&format!(
        "it goes back by itself in {} s unless you confirm it: `redirect confirm`, best over a new \
         connection",
        time.as_secs()
    ));
    if !interactive {
        return Ok(Exit::Done);
    }
    let location = location()?;
    loop {
        let journal = Journal::read(&location)?;
        let left = match journal.condition(now()?, false) {
            Condition::Unconfirmed(open, left) if open.entry.id == id => left,
            // Past the deadline, and the watcher is not there yet.
            Condition::Interrupted(open) | Condition::Underway(open) if open.entry.id == id => {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            _ => return ended(&journal, id, terminal),
        };
        terminal.prompt(&format!(
            "\rkeep it? [y]es, [n]o: it goes back in {:>4} s  ",
            left.as_millis().div_ceil(1000)
        ));
        match answer()? {
            Answer::None => {}
            Answer::Yes => {
                Locked::acquire(&location, Invocation::current(), Duration::from_secs(5))?
                    .confirm()?;
            }
            Answer::No => {
                take_back(&location, "`no` was the answer", terminal)?;
                return Err(Failure::new(Exit::Failed, "taken back, as you wished"));
            }
            Answer::Gone => {
                terminal.note("");
                return Ok(Exit::Done);
            }
        }
    }
}

/// What became of a transaction that was asked about.
fn ended(journal: &Journal, id: u64, terminal: &Terminal) -> Result<Exit, Failure> {
    terminal.note("");
    match &journal.entry(id)?.outcome {
        Some(Outcome::Done) => {
            terminal.note("confirmed: it stays");
            Ok(Exit::Done)
        }
        Some(outcome) => Err(Failure::new(Exit::Failed, outcome.to_string())),
        None => Ok(Exit::Done),
    }
}

enum Answer {
    None,
    Yes,
    No,
    /// Standard input is at its end.
    Gone,
}

/// What was typed, waiting for it a second at most.
fn answer() -> Result<Answer, Failure> {
    let stdin = io::stdin();
    let failed = |error: io::Error| {
        Failure::from(KernelError::io("cannot read the answer", error))
            .hint("`redirect confirm` keeps it, `redirect rollback` takes it back")
    };
    let mut waits = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waits, PollTimeout::from(1000_u16)) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Answer::None),
        Ok(_) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    let mut line = String::new();
    if stdin.read_line(&mut line).map_err(failed)? == 0 {
        return Ok(Answer::Gone);
    }
    Ok(match line.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Answer::Yes,
        "n" | "no" => Answer::No,
        _ => Answer::None,
    })
}

fn take_back(location: &Location, why: &str, terminal: &Terminal) -> Result<Recovered, Failure> {
    let mut journal = Locked::acquire(location, Invocation::current(), Duration::from_secs(60))?;
    let mut router = Router::open()?;
    let recovered = take_back_open(&mut router, &mut journal, why)?;
    report_recovered(&recovered, terminal);
    Ok(recovered)
}

/// The watcher of a transaction: outlives the session that started it.
pub(super) fn watch(args: &ConfirmWatch) -> Result<Exit, Failure> {
    // Fails where this leads a session already, as under systemd.
    let _ = nix::unistd::setsid();
    let held_back: SigSet = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGPIPE,
    ]
    .into_iter()
    .collect();
    let _ = held_back.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    // Whoever waits for this word may be gone.
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(confirm::READY.as_bytes())
        .and_then(|()| stdout.flush());
    let location = location()?;
    confirm::watch(&location, args.transaction, &confirm::MachineClock, || {
        let mut journal =
            Locked::acquire(&location, Invocation::current(), Duration::from_secs(600))?;
        if journal
            .open()
            .is_some_and(|open| open.entry.id == args.transaction)
        {
            let mut router = Router::open()?;
            let router: &mut dyn Kernel = &mut router;
            settle(router, &mut journal)?;
        }
        Ok::<_, Failure>(())
    });
    Ok(Exit::Done)
}

fn now() -> Result<Duration, Failure> {
    confirm::uptime().map_err(|error| KernelError::io("cannot read `/proc/uptime`", error).into())
}
