//! `redirect teardown`: takes all of it back, by our marks of ownership and by what the
//! journal remembers; it needs neither the policy file nor, for all but sysctls, the journal.

use std::time::Duration;

use super::drain::Drained;
use super::{counted, plan_unlocked, report_recovered, sessions, show_warnings};
use crate::cli::{Format, Teardown};
use crate::engine::{Engine, Goal, policy_in_force, take_back_open};
use crate::failure::{Exit, Failure};
use crate::journal::{self, Draining, Invocation, Kind, Location, Locked};
use crate::kernel::router::Router;
use crate::plan::planner::Stage;
use crate::policy::Policy;
use crate::render;
use crate::terminal::Terminal;

pub(super) fn run(args: &Teardown, terminal: &Terminal) -> Result<Exit, Failure> {
    let nothing = Policy::default();
    let goal = Goal {
        kind: Kind::Teardown,
        policy: &nothing,
        source: None,
        stage: Stage::Complete,
        draining: &Draining::default(),
    };
    if args.dry_run {
        let planned = plan_unlocked(&goal, true)?;
        show_warnings(&planned, terminal);
        let about = [
            "What `redirect teardown` would do, as shell commands, in the same order.".to_owned(),
            "Nothing has been changed by printing them. To be run as root.".to_owned(),
        ];
        return match args.format {
            Format::Shell => terminal.data(&render::shell::script(&planned.plan, &about)),
            Format::Json => terminal.data(&render::json::plan(&planned.plan)),
        }
        .map(|()| Exit::Done);
    }
    if args.drain {
        match super::drain::run(args, terminal)? {
            Drained::All => {}
            Drained::NotYet(exit) => return Ok(exit),
        }
    }
    let mut router = Router::open()?;
    let location = Location::new(journal::DIRECTORY)?;
    let (mut journal, aside) =
        Locked::acquire_setting_aside(&location, Invocation::current(), lock_wait(args))?;
    if let Some(aside) = aside {
        terminal.warn(
            &format!("the journal was damaged, and is now {}", aside.display()),
            Some("sysctls that it remembered cannot be restored; see `sysctl -a | grep -e rp_filter -e send_redirects`"),
        );
    }
    let unconfirmed = match journal.open() {
        Some(open) if matches!(open.stage, journal::Stage::Unconfirmed { .. }) => {
            Some(take_back_open(
                &mut router,
                &mut journal,
                "`redirect teardown` came before it was confirmed",
            )?)
        }
        _ => None,
    };
    let mut engine = Engine::with(&mut router, journal)?;
    for recovered in unconfirmed.iter().chain(engine.recovered()) {
        report_recovered(recovered, terminal);
    }
    let observed = engine.observe(&goal)?;
    let planned = engine.plan(&goal, &observed);
    if planned.plan.is_empty() && engine.journal().in_force().policy.is_none() {
        terminal.note("nothing to take back: there is nothing of redirect on this router");
        return Ok(Exit::Done);
    }
    // What is in force may be unreadable; that is no reason not to take it out.
    if let Ok(before) = policy_in_force(engine.journal()) {
        sessions::tell_what_is_given_up(&before, terminal);
    }
    engine.perform(&goal, &planned.plan)?;
    if let Some(error) = engine.unrecorded() {
        terminal.warn(
            &format!("{error}: the journal still says that a policy is in force"),
            Some("once it can be written, run `redirect teardown` again; else `redirect repair` puts all of it back"),
        );
    }
    terminal.note(&format!(
        "torn down: {} made; sessions go to the servers directly, unrecorded",
        counted(planned.plan.changes.len(), "change", "changes")
    ));
    Ok(Exit::Done)
}

/// How long to wait for other runs: with `--drain`, `--wait` is about sessions.
pub(super) fn lock_wait(args: &Teardown) -> Duration {
    if args.drain {
        Duration::from_secs(30)
    } else {
        args.wait.wait
    }
}
