//! `redirect teardown`: takes all of it back, by our marks of ownership and by what the
//! journal remembers; it needs neither the policy file nor, for all but sysctls, the journal.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::drain::Drained;
use super::{counted, plan_unlocked, report_recovered, sessions, show_warnings};
use crate::cli::{Format, Teardown};
use crate::engine::{Engine, Goal, policy_in_force, take_back_open};
use crate::failure::{Exit, Failure};
use crate::journal::{self, Draining, Invocation, Kind, Location, Locked, Lost};
use crate::kernel::router::Router;
use crate::net::{IfName, RouteProtocol};
use crate::observation::{Observed, Setting, Sysctl, TableNames};

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
    let (mut journal, lost) = Locked::acquire_setting_aside(
        &location,
        Invocation::current(),
        super::drain::lock_wait(args),
    )?;
    match &lost {
        None | Some(Lost::Missing) => {}
        Some(Lost::SetAside(path)) => terminal.warn(
            &format!("the journal was damaged, and is now {}", path.display()),
            None,
        ),
        Some(Lost::Damaged(path)) => terminal.warn(
            &format!("the journal is damaged, and cannot be set aside: {}", path.display()),
            Some("remount its file system writable and run `redirect teardown` again: until then every other command refuses to build on it"),
        ),
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
    if lost.is_some() {
        if observed.table_names.drop_in.is_some() {
            let directories = [TableNames::DIRECTORY, TableNames::DROP_IN_DIRECTORY];
            let directories = directories.map(PathBuf::from).to_vec();
            engine.journal().presume_made(directories);
        }
        warn_of_settings(&observed, terminal);
    }
    let planned = engine.plan(&goal, &observed);
    if planned.plan.is_empty() && engine.journal().in_force().policy.is_none() {
        terminal.note("nothing to take back: there is nothing of redirect on this router");
        return Ok(Exit::Done);
    }
    // What is in force may be unreadable; that is no reason not to take it out.
    if let Ok(before) = policy_in_force(engine.journal()) {
        sessions::tell_what_is_given_up(&before, terminal);
    }
    let made = engine.perform(&goal, &planned.plan)?;
    if let Some(error) = engine.unrecorded() {
        terminal.warn(
            &format!("{error}: the journal still says that a policy is in force"),
            Some("once it can be written, run `redirect teardown` again; else `redirect repair` puts all of it back"),
        );
    }
    terminal.note(&format!(
        "torn down: {} made; sessions go to the servers directly, unrecorded",
        counted(made.changes.len(), "change", "changes")
    ));
    Ok(Exit::Done)
}

/// Names the settings that may be ours, and that only the journal knew the former values of.
fn warn_of_settings(observed: &Observed, terminal: &Terminal) {
    let interfaces: BTreeSet<&IfName> = (observed.routes.iter())
        .filter(|route| route.protocol == RouteProtocol::OURS)
        .filter_map(|route| route.interface.as_ref())
        .collect();
    if interfaces.is_empty() {
        return;
    }
    let of_all = [Setting::RpFilter, Setting::SendRedirects].map(Sysctl::ipv4_all);
    let own = interfaces.iter().flat_map(|interface| {
        [Setting::RpFilter, Setting::SendRedirects].map(|setting| Sysctl::ipv4(interface, setting))
    });
    for sysctl in own.chain(of_all) {
        let found = observed.sysctl(&sysctl).map(str::trim);
        let is_what_we_write = match (sysctl.setting, &sysctl.interface) {
            (Setting::RpFilter, Some(_)) => matches!(found, Some("0" | "2")),
            (_, None) | (Setting::SendRedirects, _) => found == Some("0"),
            _ => false,
        };
        let (true, Some(found)) = (is_what_we_write, found) else {
            continue;
        };
        let default = IfName::new("default")
            .ok()
            .map(|name| Sysctl::ipv4(&name, sysctl.setting));
        let usual = default
            .as_ref()
            .and_then(|default| observed.sysctl(default));
        terminal.warn(
            &format!(
                "{sysctl} holds {found} and is left so: redirect may have written that, and what it held before is not known without the journal"
            ),
            Some(&match usual.map(str::trim) {
                Some(usual) if usual != found => format!(
                    "new interfaces get {usual} here: perhaps `sysctl -w {sysctl}={usual}`"
                ),
                _ => format!("see `/etc/sysctl.d` for what `{sysctl}` is to be"),
            }),
        );
    }
}
