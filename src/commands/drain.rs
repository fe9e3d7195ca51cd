//! `redirect teardown --drain`: new sessions go direct, those that are open end through the
//! appliance that they began with.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use super::{counted, location, refused, report_recovered, sessions};
use crate::cli::Teardown;
use crate::engine::{Engine, Goal, policy_of};
use crate::failure::{Exit, Failure};
use crate::journal::Kind;
use crate::kernel::router::Router;
use crate::net::Mark;
use crate::plan::planner::Stage;
use crate::policy::{Name, Policy};
use crate::terminal::Terminal;

/// How far a drain has come.
pub(super) enum Drained {
    /// No session is left anywhere: what remains is to tear down.
    All,
    /// It goes on, or was about one appliance only.
    NotYet(Exit),
}

/// How often the connections are counted.
const COUNT: Duration = Duration::from_secs(1);

pub(super) fn run(args: &Teardown, terminal: &Terminal) -> Result<Drained, Failure> {
    let marks = begin(args, terminal)?;
    let deadline = Instant::now() + args.wait.wait;
    let shows = io::stderr().is_terminal();
    loop {
        let left = sessions::through(marks.iter().copied())?;
        if left == 0 {
            terminal.note("drained: no connection is left");
            return Ok(if args.appliance.is_none() {
                Drained::All
            } else {
                terminal.note("take it out of the policy, and `redirect apply`, when you like");
                Drained::NotYet(Exit::Done)
            });
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            terminal.note(&format!(
                "{} still through the appliance; a later `redirect teardown` ends them",
                counted(left, "connection goes", "connections go")
            ));
            return Ok(Drained::NotYet(Exit::Pending));
        }
        if shows {
            terminal.prompt(&format!(
                "\r{} left  ",
                counted(left, "connection", "connections")
            ));
        }
        std::thread::sleep(COUNT.min(remaining));
    }
}

/// Lets the appliances drain; returns the marks of their connections.
fn begin(args: &Teardown, terminal: &Terminal) -> Result<Vec<Mark>, Failure> {
    let mut router = Router::open()?;
    let mut engine = Engine::open(&mut router, &location()?, lock_wait(args))?;
    if let Some(recovered) = engine.recovered() {
        report_recovered(recovered, terminal);
    }
    let Some(digest) = engine.journal().in_force().policy.clone() else {
        return Err(Failure::new(
            Exit::Failed,
            "no policy is in force: there is nothing to drain",
        ));
    };
    let source = engine.journal().source(&digest)?;
    let policy = policy_of(engine.journal(), &digest)?;
    let mut names = chosen(&policy, args.appliance.as_deref())?;
    // Those that drain already go on.
    for name in &engine.journal().in_force().draining.appliances {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let next = sessions::next(engine.journal(), &policy, names, false)?;
    let marks = (next.policy.appliances.iter())
        .filter(|appliance| {
            let only = args.appliance.as_deref();
            only.is_none_or(|only| appliance.name.as_str() == only)
        })
        .map(|appliance| appliance.mark)
        .collect();
    let goal = Goal {
        kind: Kind::Drain,
        policy: &next.policy,
        source: Some(&source),
        stage: Stage::Complete,
        draining: &next.draining,
    };
    let observed = engine.observe(&goal)?;
    let planned = engine.plan(&goal, &observed);
    if !planned.refusals.is_empty() {
        return Err(refused(&planned.refusals, "this router cannot be drained"));
    }
    if !planned.plan.is_empty() || engine.journal().in_force().draining != next.draining {
        engine.perform(&goal, &planned.plan)?;
        terminal.note(
            "draining: new sessions go to the servers directly, unrecorded; open ones end as they began",
        );
    }
    Ok(marks)
}

/// The appliances that are to drain: all, or the one that was named.
fn chosen(policy: &Policy, named: Option<&str>) -> Result<Vec<Name>, Failure> {
    let all = policy.appliances.iter().map(|appliance| &appliance.name);
    let chosen: Vec<Name> = all
        .filter(|name| named.is_none_or(|named| name.as_str() == named))
        .cloned()
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = (policy.appliances.iter())
            .map(|appliance| appliance.name.as_str())
            .collect();
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "the policy in force has no appliance `{}`",
                named.unwrap_or_default()
            ),
        )
        .hint(format!("it has {}", known.join(", "))));
    }
    Ok(chosen)
}

/// How long to wait for other runs: with `--drain`, `--wait` is about sessions.
pub(super) fn lock_wait(args: &Teardown) -> Duration {
    if args.drain {
        Duration::from_secs(30)
    } else {
        args.wait.wait
    }
}
