use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::net::{
    Action, Family, IfName, Mark, Range, Ranges, Route, RouteKind, RouteProtocol, RoutingRule,
    RulePriority, RuleSelectors, TableId,
};
use crate::nft;
use crate::observation::{
    Availability, FileContent, Iptables, Observed, Setting, Sysctl, TableNames,
};
use crate::plan::Change;
use crate::policy::List;
use crate::test_support::Scratch;

fn location(scratch: &Scratch) -> Location {
    Location {
        directory: scratch.path().join("state"),
        boot: BootId("boot-1".to_owned()),
    }
}

fn invocation() -> Invocation {
    Invocation {
        who: Who {
            uid: 0,
            user: Some("root".to_owned()),
            sudo_user: Some("alice".to_owned()),
            tty: Some("pts/3".to_owned()),
            ssh_client: Some("10.10.0.5".to_owned()),
            pid: 4711,
            ..Who::default()
        },
        command: ["redirect", "apply", "policy.toml"]
            .map(str::to_owned)
            .to_vec(),
    }
}

fn acquire(location: &Location) -> Locked {
    Locked::acquire(location, invocation(), Duration::ZERO).unwrap()
}

/// Begins to apply the policy with this text. Returns the transaction's number.
fn begin_apply(run: &mut Locked, text: &str, plan: &Plan) -> u64 {
    let nothing = Draining::default();
    run.begin(Kind::Apply, Some(&source(text)), &nothing, plan)
        .unwrap()
}

fn source(text: &str) -> Source {
    Source {
        name: "/etc/redirect/policy.toml".to_owned(),
        text: text.to_owned(),
        ..Source::default()
    }
}

fn interface() -> IfName {
    IfName::new("sps0").unwrap()
}

fn default_route(via: &str) -> Route {
    Route {
        family: Family::V4,
        table: TableId(103),
        destination: None,
        kind: RouteKind::Unicast,
        via: Some(via.parse().unwrap()),
        interface: Some(interface()),
        metric: 0,
        protocol: RouteProtocol::OURS,
        others: Vec::new(),
    }
}

fn fallback_route() -> Route {
    Route {
        kind: RouteKind::Unreachable,
        via: None,
        interface: None,
        metric: u32::MAX,
        ..default_route("10.30.0.2")
    }
}

fn fwmark_rule() -> RoutingRule {
    RoutingRule {
        family: Family::V4,
        priority: RulePriority(103),
        mark: Mark::new(1, 0xff),
        selectors: RuleSelectors::default(),
        action: Action::Lookup(TableId(103)),
        protocol: RouteProtocol::OURS,
    }
}

fn table(first: u128) -> nft::Table {
    nft::Table {
        sets: vec![
            nft::Set {
                name: "servers6".to_owned(),
                elements: nft::Elements::V6(Ranges::merged(vec![Range {
                    first,
                    last: u128::MAX - 7,
                }])),
            },
            nft::Set {
                name: "servers4".to_owned(),
                elements: nft::Elements::V4(Ranges::merged(vec![Range {
                    first: 0x0a14_0000,
                    last: 0x0a14_00ff,
                }])),
            },
        ],
        ..nft::Table::default()
    }
}

fn text(text: &str) -> FileContent {
    FileContent {
        text: text.to_owned(),
        mode: 0o644,
    }
}

fn rp_filter() -> Sysctl {
    Sysctl::ipv4(&interface(), Setting::RpFilter)
}

/// A first apply, with a change of every kind.
fn first_apply() -> Plan {
    Plan {
        changes: vec![
            Change::Directory {
                path: TableNames::DROP_IN_DIRECTORY.into(),
                from: false,
                to: true,
            },
            Change::File {
                path: TableNames::DROP_IN.into(),
                from: None,
                to: Some(text("103 scb\n")),
            },
            Change::Route {
                from: None,
                to: Some(fallback_route()),
            },
            Change::Route {
                from: None,
                to: Some(default_route("10.30.0.2")),
            },
            Change::Rule {
                from: None,
                to: Some(fwmark_rule()),
            },
            Change::Sysctl {
                sysctl: rp_filter(),
                from: "1".to_owned(),
                to: "2".to_owned(),
            },
            Change::Nftables {
                from: None,
                to: Some(table(1 << 100)),
            },
        ],
    }
}

/// A change of policy afterwards, that replaces where the first one added.
fn second_apply() -> Plan {
    Plan {
        changes: vec![
            Change::File {
                path: TableNames::DROP_IN.into(),
                from: Some(text("103 scb\n")),
                to: Some(text("103 recorder\n")),
            },
            Change::Route {
                from: Some(default_route("10.30.0.2")),
                to: Some(default_route("10.30.0.3")),
            },
            Change::Sysctl {
                sysctl: rp_filter(),
                from: "2".to_owned(),
                to: "0".to_owned(),
            },
            Change::Nftables {
                from: Some(table(1 << 100)),
                to: Some(table(1 << 101)),
            },
            Change::Rule {
                from: Some(fwmark_rule()),
                to: None,
            },
        ],
    }
}

fn pristine() -> Observed {
    Observed {
        links: Vec::new(),
        addresses: Vec::new(),
        rules: Vec::new(),
        routes: Vec::new(),
        nftables: None,
        nftables_availability: Availability::Available,
        iptables: Iptables::default(),
        sysctls: [(rp_filter().to_string(), (rp_filter(), "1".to_owned()))].into(),
        table_names: TableNames {
            directory: true,
            ..TableNames::default()
        },
    }
}

/// What a router is like after `change`, by the meaning of the data alone.
fn perform(router: &mut Observed, change: &Change) {
    match change {
        Change::Directory { path, from, to } => {
            assert_eq!(router.table_names.has_directory(path), Some(*from));
            assert_eq!(path, Path::new(TableNames::DROP_IN_DIRECTORY));
            router.table_names.drop_in_directory = *to;
        }
        Change::File { path, from, to } => {
            assert_eq!(router.table_names.file(path), Some(from.as_ref()));
            router.table_names.drop_in.clone_from(to);
        }
        Change::Route { from, to } => {
            if let Some(from) = from {
                let at = router.routes.iter().position(|route| route == from);
                router
                    .routes
                    .remove(at.expect("a route to remove is there"));
            }
            if let Some(to) = to {
                assert!(!router.routes.contains(to), "a route to add is not there");
                router.routes.push(to.clone());
                router.routes.sort();
            }
        }
        Change::Rule { from, to } => {
            if let Some(from) = from {
                let at = router.rules.iter().position(|rule| rule == from);
                router.rules.remove(at.expect("a rule to remove is there"));
            }
            if let Some(to) = to {
                assert!(!router.rules.contains(to), "a rule to add is not there");
                router.rules.push(to.clone());
            }
        }
        Change::Sysctl { sysctl, from, to } => {
            let entry = router.sysctls.get_mut(&sysctl.to_string()).unwrap();
            assert_eq!(entry.1, *from);
            entry.1.clone_from(to);
        }
        Change::Nftables { from, to } => {
            assert_eq!(router.nftables, *from);
            router.nftables.clone_from(to);
        }
        Change::Ipset { .. } | Change::Frame { .. } | Change::Iptables { .. } => {
            unreachable!("these plans are for nftables")
        }
    }
}

fn performed(router: &Observed, changes: &[Change]) -> Observed {
    let mut router = router.clone();
    for change in changes {
        perform(&mut router, change);
    }
    router
}

#[test]
fn cut_short_anywhere_everything_is_taken_back() {
    let bare = pristine();
    let applied = performed(&bare, &first_apply().changes);
    let changed = performed(&applied, &second_apply().changes);
    let stories = [
        (&bare, first_apply()),
        (&applied, second_apply()),
        (&applied, first_apply().inverse()),
        (&changed, second_apply().inverse()),
    ];
    let mut tried = 0;
    for (before, plan) in stories {
        for cut in 0..=plan.changes.len() {
            let torn = performed(before, &plan.changes[..cut]);
            let back = recovery(&plan, Reach::Everything, &torn);
            assert_eq!(back.left, []);
            assert_eq!(back.plan.changes.len(), cut);
            // The recovery itself may be cut short, and then simply runs again.
            for second_cut in 0..=back.plan.changes.len() {
                let torn = performed(&torn, &back.plan.changes[..second_cut]);
                let again = recovery(&plan, Reach::Everything, &torn);
                let end = performed(&torn, &again.plan.changes);
                assert_eq!(end, *before, "cut at {cut}, then at {second_cut}");
                assert!(recovery(&plan, Reach::Everything, &end).plan.is_empty());
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 2 * 36 + 2 * 21);
}

#[test]
fn after_a_reboot_only_files_are_taken_back() {
    let mut router = performed(&pristine(), &first_apply().changes);
    // The machine came up: nothing of ours in the kernel; and a boot script set what we had set.
    router.routes.clear();
    router.rules.clear();
    router.nftables = None;
    let back = recovery(&first_apply(), Reach::Files, &router);
    assert_eq!(back.left, []);
    assert_eq!(
        summary(&back.plan),
        [
            "remove file /etc/iproute2/rt_tables.d/redirect.conf",
            "remove directory /etc/iproute2/rt_tables.d"
        ]
    );
}

#[test]
fn what_others_changed_meanwhile_stays_theirs() {
    let mut router = performed(&pristine(), &first_apply().changes);
    router.table_names.drop_in = Some(text("103 scb\n200 theirs\n"));
    router.sysctls.get_mut(&rp_filter().to_string()).unwrap().1 = "0".to_owned();
    let back = recovery(&first_apply(), Reach::Everything, &router);
    let left: Vec<_> = back.left.iter().map(ToString::to_string).collect();
    assert_eq!(
        left,
        [
            "not taken back: change net/ipv4/conf/sps0/rp_filter from 1 to 2; found `0`",
            "not taken back: add file /etc/iproute2/rt_tables.d/redirect.conf; \
             found other content, 19 bytes",
            "not taken back: add directory /etc/iproute2/rt_tables.d; found a file that stays in it",
        ]
    );
    assert!(
        back.plan
            .changes
            .iter()
            .all(|change| !matches!(change, Change::Directory { .. })),
        "a directory with somebody's file in it stays"
    );
}

#[test]
fn our_own_objects_go_back_to_what_they_were_whoever_removed_them() {
    let before = performed(&pristine(), &first_apply().changes);
    let mut router = performed(&before, &second_apply().changes[..4]);
    // A link flap took the route, `nft flush ruleset` our table, `ip rule flush` the rule.
    router
        .routes
        .retain(|route| route.kind == RouteKind::Unreachable);
    router.nftables = None;
    router.rules.clear();
    let back = recovery(&second_apply(), Reach::Everything, &router);
    assert_eq!(performed(&router, &back.plan.changes), before);
}

#[test]
fn a_setting_that_went_with_its_interface_needs_nothing() {
    let mut router = performed(&pristine(), &first_apply().changes);
    router.sysctls.clear();
    let back = recovery(&first_apply(), Reach::Everything, &router);
    assert_eq!(back.left, []);
    assert!(
        back.plan
            .changes
            .iter()
            .all(|change| !matches!(change, Change::Sysctl { .. }))
    );
}

#[test]
fn reading_creates_nothing() {
    let scratch = Scratch::new("journal-reading");
    let location = location(&scratch);
    let journal = Journal::read(&location).unwrap();
    assert_eq!(
        journal.in_force(),
        &Applied {
            boot: location.boot.clone(),
            ..Applied::default()
        }
    );
    assert_eq!(journal.condition(Duration::ZERO, false), Condition::Settled);
    assert!(!location.directory.exists());
}

/// What proves that long lists are as they were left lasts until another transaction leaves others.
#[test]
fn a_proof_is_kept_with_what_is_in_force() {
    let scratch = Scratch::new("journal-proof");
    let location = location(&scratch);
    let networks = (0..2_000).map(|at| Range::from((at * 2, at * 2)));
    let table = nft::Table {
        sets: vec![nft::Set {
            name: "s".to_owned(),
            elements: nft::Elements::V4(Ranges::merged(networks.collect())),
        }],
        ..nft::Table::default()
    };
    let mark = nft::proof::Birthmark("unique".to_owned());
    let proof = |generation| Proof::of(&table, &mark, generation);
    let kept = || {
        let journal = Journal::read(&location).unwrap();
        journal.in_force().proof.clone()
    };
    let mut run = acquire(&location);
    run.begin(Kind::Apply, None, &Draining::default(), &first_apply())
        .unwrap();
    run.keep_proof(proof(7));
    assert_eq!(kept(), None);
    run.done().unwrap();
    assert_eq!(kept(), proof(7));
    run.begin(Kind::Apply, None, &Draining::default(), &Plan::default())
        .unwrap();
    run.done().unwrap();
    assert_eq!(kept(), proof(7));
    // What was taken back has left nothing.
    run.begin(Kind::Apply, None, &Draining::default(), &Plan::default())
        .unwrap();
    run.keep_proof(proof(8));
    run.undone("it was told to").unwrap();
    assert_eq!(kept(), proof(7));
    run.begin(Kind::Teardown, None, &Draining::default(), &Plan::default())
        .unwrap();
    run.keep_proof(None);
    run.done().unwrap();
    assert_eq!(kept(), None);
}

#[test]
fn a_transaction_is_open_until_it_ends() {
    let scratch = Scratch::new("journal-open");
    let location = location(&scratch);
    let policy = source("version = 1\n");
    let mut run = acquire(&location);
    assert_eq!(
        run.begin(
            Kind::Apply,
            Some(&policy),
            &Draining::default(),
            &first_apply()
        )
        .unwrap(),
        1
    );

    // What another process sees meanwhile, without a lock.
    let seen = Journal::read(&location).unwrap();
    assert!(matches!(
        seen.condition(Duration::ZERO, true),
        Condition::Underway(_)
    ));
    assert_eq!(seen.open_plan().unwrap(), first_apply());
    assert_eq!(seen.in_force().policy, None);

    run.done().unwrap();
    let seen = Journal::read(&location).unwrap();
    assert_eq!(seen.condition(Duration::ZERO, false), Condition::Settled);
    let digest = seen.in_force().policy.clone().unwrap();
    assert_eq!(seen.source(&digest).unwrap(), policy);
    assert_eq!(seen.in_force().transaction, Some(1));
    assert_eq!(
        seen.in_force().ledger,
        Ledger::default().after(&first_apply())
    );
    let entry = seen.entry(1).unwrap();
    assert_eq!(entry.outcome, Some(Outcome::Done));
    assert_eq!(entry.changes.len(), first_apply().changes.len());
    assert!(matches!(
        seen.entry(2),
        Err(JournalError::NoSuchEntry { id: 2 })
    ));

    let mut names = Store::new(location.directory.clone()).names();
    names.sort();
    assert_eq!(
        names,
        [JOURNAL.to_owned(), plan_name(1), policy_name(&digest)]
    );
    for name in names {
        let meta = std::fs::metadata(location.directory.join(name)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    }
    let meta = std::fs::metadata(&location.directory).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o700);
}

#[test]
fn what_comes_up_meanwhile_is_written_down_before_it_is_done() {
    let scratch = Scratch::new("journal-extend");
    let location = location(&scratch);
    let mut run = acquire(&location);
    let whole = first_apply();
    let (made, more) = whole.changes.split_at(whole.changes.len() / 2);
    let [made, more] = [made, more].map(|changes| Plan {
        changes: changes.to_vec(),
    });
    assert!(matches!(
        run.extend(&made, &more),
        Err(JournalError::NothingOpen)
    ));
    let policy = source("version = 1\n");
    run.begin(Kind::Apply, Some(&policy), &Draining::default(), &made)
        .unwrap();
    run.extend(&made, &more).unwrap();
    let seen = Journal::read(&location).unwrap();
    assert_eq!(seen.open_plan().unwrap(), whole);
    let open = seen.open().unwrap();
    assert_eq!(open.entry.changes.len(), whole.changes.len());
    assert_eq!(open.after.ledger, Ledger::default().after(&whole));
    run.done().unwrap();
    let seen = Journal::read(&location).unwrap();
    assert_eq!(seen.in_force().ledger, Ledger::default().after(&whole));
    assert_eq!(seen.history().len(), 1);
}

#[test]
fn a_run_that_died_is_found_interrupted() {
    let scratch = Scratch::new("journal-died");
    let location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "a", &first_apply());
    drop(run);

    let mut run = acquire(&location);
    assert!(matches!(
        run.condition(Duration::ZERO, false),
        Condition::Interrupted(_)
    ));
    assert_eq!(run.reach(), Reach::Everything);
    let error = run
        .begin(Kind::Apply, None, &Draining::default(), &Plan::default())
        .unwrap_err();
    assert!(matches!(error, JournalError::Unfinished { id: 1 }));
    assert_eq!(run.open_plan().unwrap(), first_apply());
    run.undone("interrupted").unwrap();
    assert_eq!(run.in_force().policy, None);
    assert_eq!(run.in_force().ledger, Ledger::default());
    assert!(matches!(run.open_plan(), Err(JournalError::NothingOpen)));
    assert_eq!(
        run.entry(1).unwrap().outcome.as_ref().unwrap().to_string(),
        "undone: interrupted"
    );
    // Its number is not used again.
    assert_eq!(
        run.begin(Kind::Repair, None, &Draining::default(), &Plan::default())
            .unwrap(),
        2
    );
}

/// Names and what they stand for, as they are on the disk.
fn disk(location: &Location) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| {
        let bytes = std::fs::read(location.directory.join(&name)).unwrap();
        (name, bytes)
    };
    let names = Store::new(location.directory.clone()).names();
    names.into_iter().map(read).collect()
}

/// A file's content is on the disk before its name, but until the directory is synced any of the
/// names that were changed may be there, and any other not.
#[test]
fn the_power_may_fail_before_any_of_the_names_is_on_the_disk() {
    let scratch = Scratch::new("journal-power");
    let location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "first", &first_apply());
    run.done().unwrap();
    let before = disk(&location);
    begin_apply(&mut run, "second", &second_apply());
    let after = disk(&location);
    drop(run);

    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed: Vec<&String> = (names.into_iter())
        .filter(|name| before.get(*name) != after.get(*name))
        .collect();
    // One plan goes; a plan, a policy and a journal come.
    assert_eq!(changed.len(), 4, "{changed:?}");
    for chosen in 0..1_u32 << changed.len() {
        let is_new = |name: &String| {
            let at = changed.iter().position(|changed| *changed == name);
            at.is_some_and(|at| chosen & (1 << at) != 0)
        };
        let restarted = Location {
            directory: scratch.path().join(format!("restarted-{chosen}")),
            boot: BootId("boot-2".to_owned()),
        };
        std::fs::create_dir(&restarted.directory).unwrap();
        let old = before.iter().filter(|(name, _)| !is_new(name));
        let new = after.iter().filter(|(name, _)| is_new(name));
        for (name, bytes) in old.chain(new) {
            files::create(&restarted.directory.join(name), bytes).unwrap();
        }

        let mut run = acquire(&restarted);
        // What is in force is known, with its text, whatever became of the rest.
        let first = Digest::of(&source("first"));
        assert_eq!(run.confirmed().policy.as_ref(), Some(&first));
        assert_eq!(run.source(&first).unwrap(), source("first"));
        assert_eq!(run.open().is_some(), is_new(&JOURNAL.to_owned()));
        if run.open().is_some() {
            let planned = run.open_plan().unwrap();
            let is_there = is_new(&plan_name(2));
            assert_eq!(planned == second_apply(), is_there);
            assert!(is_there || planned.is_empty(), "it never began");
            run.undone("power").unwrap();
        }
        begin_apply(&mut run, "second", &second_apply());
        run.done().unwrap();
        let second = Digest::of(&source("second"));
        assert_eq!(run.in_force().policy.as_ref(), Some(&second));
        assert_eq!(run.source(&second).unwrap(), source("second"));
    }
}

#[test]
fn after_a_reboot_only_files_are_within_reach_and_settings_are_forgotten() {
    let scratch = Scratch::new("journal-reboot");
    let mut location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "a", &first_apply());
    run.done().unwrap();
    begin_apply(&mut run, "b", &second_apply());
    drop(run);

    location.boot = BootId("boot-2".to_owned());
    let mut run = acquire(&location);
    assert_eq!(run.reach(), Reach::Files);
    assert!(matches!(
        run.condition(Duration::ZERO, false),
        Condition::Interrupted(_)
    ));
    assert_eq!(run.in_force().policy, Some(Digest::of(&source("a"))));
    assert_eq!(run.in_force().ledger.sysctls, []);
    assert_eq!(run.in_force().ledger.directories.len(), 1);
    run.undone("interrupted").unwrap();
    assert_eq!(Journal::read(&location).unwrap().in_force(), run.in_force());

    // A plan whose name had not reached the disk was never begun.
    begin_apply(&mut run, "b", &second_apply());
    drop(run);
    std::fs::remove_file(location.directory.join("plan-3.json")).unwrap();
    assert!(matches!(
        acquire(&location).open_plan(),
        Err(JournalError::Damaged { .. })
    ));
    location.boot = BootId("boot-3".to_owned());
    assert!(acquire(&location).open_plan().unwrap().is_empty());
}

#[test]
fn what_waits_for_confirmation_is_in_force_but_not_confirmed() {
    let scratch = Scratch::new("journal-confirm");
    let mut location = location(&scratch);
    let (a, b) = (source("a"), source("b"));
    let mut run = acquire(&location);
    run.begin(Kind::Apply, Some(&a), &Draining::default(), &first_apply())
        .unwrap();
    run.done().unwrap();
    assert!(matches!(run.confirm(), Err(JournalError::NothingOpen)));
    run.begin(Kind::Apply, Some(&b), &Draining::default(), &second_apply())
        .unwrap();
    assert!(matches!(run.confirm(), Err(JournalError::NothingOpen)));
    run.await_confirmation(Duration::from_secs(100)).unwrap();
    drop(run);

    let seen = Journal::read(&location).unwrap();
    assert_eq!(seen.in_force().policy, Some(Digest::of(&b)));
    assert_eq!(seen.confirmed().policy, Some(Digest::of(&a)));
    let at = |seconds| seen.condition(Duration::from_secs(seconds), false);
    assert!(matches!(at(40), Condition::Unconfirmed(open, left)
            if open.entry.id == 2 && left == Duration::from_secs(60)));
    assert!(matches!(at(100), Condition::Interrupted(_)));

    let here = location.boot.clone();
    location.boot = BootId("boot-2".to_owned());
    let rebooted = Journal::read(&location).unwrap();
    assert_eq!(rebooted.in_force().policy, Some(Digest::of(&a)));
    assert!(matches!(
        rebooted.condition(Duration::from_secs(1), false),
        Condition::Interrupted(_)
    ));

    location.boot = here;
    let mut run = acquire(&location);
    run.confirm().unwrap();
    assert_eq!(run.confirmed().policy, Some(Digest::of(&b)));
    assert_eq!(run.policy_before(), Some(Some(&Digest::of(&a))));
}

#[test]
fn rollback_goes_to_the_policy_before_the_last_change_of_policy() {
    let scratch = Scratch::new("journal-before");
    let location = location(&scratch);
    let (a, b) = (source("a"), source("b"));
    let mut run = acquire(&location);
    assert_eq!(run.policy_before(), None);
    run.begin(Kind::Apply, Some(&a), &Draining::default(), &first_apply())
        .unwrap();
    run.done().unwrap();
    assert_eq!(run.policy_before(), Some(None));
    run.begin(Kind::Apply, Some(&b), &Draining::default(), &second_apply())
        .unwrap();
    run.done().unwrap();
    // Neither a repair nor what was undone changes the policy.
    run.begin(
        Kind::Repair,
        Some(&b),
        &Draining::default(),
        &Plan::default(),
    )
    .unwrap();
    run.done().unwrap();
    run.begin(Kind::Teardown, None, &Draining::default(), &Plan::default())
        .unwrap();
    run.undone("it did not take").unwrap();
    assert_eq!(run.policy_before(), Some(Some(&Digest::of(&a))));
}

#[test]
fn what_could_not_be_taken_back_is_remembered() {
    let scratch = Scratch::new("journal-failed");
    let location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "a", &first_apply());
    let remains = Plan {
        changes: vec![first_apply().changes.swap_remove(5)],
    };
    run.failed("the route did not take", &remains).unwrap();
    assert_eq!(run.in_force().policy, None);
    assert_eq!(run.in_force().ledger.sysctls.len(), 1);
    assert_eq!(
        run.history()[0].outcome.as_ref().unwrap().to_string(),
        "failed: the route did not take; remains: change net/ipv4/conf/sps0/rp_filter from 1 to 2"
    );
}

#[test]
fn the_history_is_bounded_and_keeps_the_texts_it_names() {
    let scratch = Scratch::new("journal-bounded");
    let location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "first", &Plan::default());
    run.done().unwrap();
    begin_apply(&mut run, "kept", &Plan::default());
    run.done().unwrap();
    for _ in 0..=HISTORY {
        run.begin(
            Kind::Repair,
            Some(&source("kept")),
            &Draining::default(),
            &Plan::default(),
        )
        .unwrap();
        run.done().unwrap();
    }
    assert_eq!(run.history().len(), HISTORY);
    run.begin(Kind::Teardown, None, &Draining::default(), &Plan::default())
        .unwrap();
    assert!(run.source(&Digest::of(&source("first"))).is_err());
    assert_eq!(
        run.source(&Digest::of(&source("kept"))).unwrap(),
        source("kept")
    );
}

#[test]
fn one_run_at_a_time_and_the_other_is_named() {
    let scratch = Scratch::new("journal-lock");
    let location = location(&scratch);
    let run = acquire(&location);
    let error = Locked::acquire(&location, invocation(), Duration::from_millis(30)).unwrap_err();
    let JournalError::Held {
        holder: Some(holder),
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(holder.pid, std::process::id());
    assert!(error.to_string().starts_with(&format!(
        "another run is at work: process {}, `",
        std::process::id()
    )));
    // When it began is known to some milliseconds only.
    let again = run.holder().unwrap();
    assert_eq!((again.pid, &again.command), (holder.pid, &holder.command));
    drop(run);
    assert_eq!(acquire(&location).history(), []);
    assert_eq!(Journal::read(&location).unwrap().holder(), None);
}

#[test]
fn a_program_that_outlives_a_killed_run_keeps_the_lock() {
    let scratch = Scratch::new("journal-inherited");
    let location = location(&scratch);
    let mut run = acquire(&location);
    let sleep = |seconds: &str| {
        #[expect(
            clippy::disallowed_methods,
            reason = "a program like those that a run starts"
        )]
        std::process::Command::new("sleep")
            .arg(seconds)
            .spawn()
            .unwrap()
    };
    // Started before the transaction: the watcher, which must not hold the lock.
    let mut watcher = sleep("60");
    run.begin(Kind::Apply, None, &Draining::default(), &Plan::default())
        .unwrap();
    let mut program = sleep("60");
    // Ends like a process that was killed: the descriptor is closed, and not unlocked first.
    run.lock.abandon();
    // It holds the lock, and so may what other tests have started meanwhile; this process does not.
    assert!(matches!(
        Locked::acquire(&location, invocation(), Duration::ZERO),
        Err(JournalError::Held { holder: Some(holder) }) if holder.pid != std::process::id()
    ));
    program.kill().unwrap();
    program.wait().unwrap();
    // With patience: what other tests start at this very moment inherits it too.
    let run = Locked::acquire(&location, invocation(), Duration::from_secs(20)).unwrap();
    assert!(run.open().is_some());
    watcher.kill().unwrap();
    watcher.wait().unwrap();
}

#[test]
fn a_run_that_waits_sees_what_the_one_before_it_wrote() {
    let scratch = Scratch::new("journal-wait");
    let location = location(&scratch);
    let ids = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let wait = Duration::from_secs(60);
                    let mut run = Locked::acquire(&location, invocation(), wait).unwrap();
                    let id = run
                        .begin(Kind::Repair, None, &Draining::default(), &first_apply())
                        .unwrap();
                    run.done().unwrap();
                    id
                })
            })
            .collect();
        let mut ids: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        ids.sort_unstable();
        ids
    });
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
    assert_eq!(acquire(&location).history().len(), 20);
}

#[test]
fn a_directory_that_others_could_have_written_to_is_refused() {
    let scratch = Scratch::new("journal-unsafe");
    let location = location(&scratch);
    let directory = &location.directory;
    let refusal = || match Journal::read(&location).unwrap_err() {
        JournalError::Unsafe { found, .. } => found,
        other => panic!("{other:?}"),
    };
    std::fs::create_dir(directory).unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(refusal(), "others may write to it (mode 0777)");

    // Merely readable, as a package may leave it: tightened by the first that writes.
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    drop(acquire(&location));
    let meta = std::fs::metadata(directory).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o700);

    let elsewhere = scratch.path().join("elsewhere");
    std::fs::rename(directory, &elsewhere).unwrap();
    symlink(&elsewhere, directory).unwrap();
    assert_eq!(refusal(), "it is not a directory");
    std::fs::remove_file(directory).unwrap();
    std::fs::rename(&elsewhere, directory).unwrap();

    symlink("/etc/shadow", directory.join(JOURNAL)).unwrap();
    assert_eq!(refusal(), "it is a symbolic link");
    std::fs::remove_file(directory.join(JOURNAL)).unwrap();

    if std::os::unix::fs::chown(directory, Some(1234), None).is_err() {
        eprintln!("SKIPPED the owner's check: needs root to give a directory away");
        return;
    }
    assert_eq!(refusal(), "it belongs to uid 1234, not to root");
}

#[test]
fn a_damaged_journal_is_refused_but_does_not_hinder_teardown() {
    let scratch = Scratch::new("journal-damaged");
    let location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "a", &first_apply());
    drop(run);
    let path = location.directory.join(JOURNAL);
    let whole = std::fs::read(&path).unwrap();
    let damage = |bytes: &[u8]| {
        let content = FileContent {
            text: String::from_utf8(bytes.to_vec()).unwrap(),
            mode: 0o600,
        };
        files::replace(&path, &content).unwrap();
    };
    // A loss of power may leave a file of any shorter length on some file systems.
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        damage(&whole[..cut]);
        let error = Journal::read(&location).unwrap_err();
        assert!(
            matches!(error, JournalError::Damaged { .. }),
            "cut at {cut}"
        );
        assert!(error.hint().unwrap().contains("redirect teardown"));
    }
    let wait = Duration::ZERO;
    let (run, lost) = Locked::acquire_setting_aside(&location, invocation(), wait).unwrap();
    let Some(Lost::SetAside(aside)) = lost else {
        panic!("{lost:?}");
    };
    assert_eq!(run.in_force().policy, None);
    assert!(run.open().is_none());
    assert_eq!(std::fs::read(aside).unwrap(), whole[..whole.len() - 1]);
    drop(run);

    damage(br#"{"version":2,"everything":"new"}"#);
    let error = Journal::read(&location).unwrap_err();
    assert!(matches!(
        error,
        JournalError::Newer {
            found: 2,
            known: 1,
            ..
        }
    ));
    // A newer one is not damaged, and not ours to set aside.
    assert!(Locked::acquire_setting_aside(&location, invocation(), wait).is_err());
}

#[test]
fn a_policy_whose_text_was_tampered_with_is_not_taken_for_it() {
    let scratch = Scratch::new("journal-tampered");
    let location = location(&scratch);
    let mut run = acquire(&location);
    begin_apply(&mut run, "a", &Plan::default());
    run.done().unwrap();
    let digest = Digest::of(&source("a"));
    let path = location.directory.join(policy_name(&digest));
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"a\"", "\"b\"");
    files::replace(&path, &FileContent { text, mode: 0o600 }).unwrap();
    assert!(matches!(
        run.source(&digest),
        Err(JournalError::Damaged { .. })
    ));
    // The next apply of it writes it anew.
    begin_apply(&mut run, "a", &Plan::default());
    assert_eq!(run.source(&digest).unwrap(), source("a"));
}

#[test]
fn what_a_killed_run_left_half_written_is_swept() {
    let scratch = Scratch::new("journal-swept");
    let location = location(&scratch);
    drop(acquire(&location));
    let left = location.directory.join(".journal.json.redirect-new");
    files::replace(&left, &text("{")).unwrap();
    acquire(&location)
        .begin(Kind::Apply, None, &Draining::default(), &Plan::default())
        .unwrap();
    assert!(!left.exists());
}

#[test]
fn the_digest_is_that_of_sha256sum_and_covers_the_lists() {
    assert_eq!(
        Digest::of(&source("version = 1\n")).as_str(),
        // printf 'version = 1\n' | sha256sum
        "dbab12665d98aef021ba64953c61b0ed8a908cfb56a1c01e2fcb4b052b71a2a1"
    );
    let with = |path: &str, text: &str| {
        let mut source = source("version = 1\n");
        source.lists.push(List {
            path: path.into(),
            text: text.to_owned(),
        });
        Digest::of(&source)
    };
    let digests: BTreeSet<_> = [with("a", "b"), with("ab", ""), with("a", "bb")].into();
    assert_eq!(digests.len(), 3);
    assert!(Digest::try_from("../../etc/passwd".to_owned()).is_err());
}

#[test]
fn every_change_survives_being_written_down() {
    for plan in [first_apply(), second_apply(), first_apply().inverse()] {
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}

/// State directories as earlier versions left them: they stay readable for ever.
#[test]
fn old_formats_stay_readable() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journal/v1");
    let scratch = Scratch::new("journal-v1");
    let location = location(&scratch);
    if std::env::var_os("REDIRECT_WRITE_FIXTURE").is_some() {
        write_fixture(&fixture, &location);
    }
    // A checkout's files belong to whoever checked out, and may be writable by a group.
    let copied: Vec<_> = std::fs::read_dir(&fixture)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    drop(acquire(&location));
    for path in &copied {
        let text = std::fs::read_to_string(path).unwrap();
        let to = location.directory.join(path.file_name().unwrap());
        files::replace(&to, &FileContent { text, mode: 0o600 }).unwrap();
    }
    let journal = Journal::read(&location).unwrap();
    assert_eq!(journal.history().len(), 2);
    assert_eq!(
        journal.entry(1).unwrap().who.to_string(),
        "alice on pts/3 from 10.10.0.5"
    );
    let digest = journal.in_force().policy.clone().unwrap();
    assert_eq!(journal.source(&digest).unwrap().lists.len(), 1);
    assert_eq!(journal.open().unwrap().entry.id, 3);
    assert_eq!(journal.open_plan().unwrap(), second_apply());
    assert_eq!(
        journal.in_force().ledger,
        Ledger::default().after(&first_apply())
    );
}

/// Writes the present format's fixture: done once a format, by hand.
fn write_fixture(fixture: &Path, location: &Location) {
    let mut policy = source("version = 1\n");
    policy.lists.push(List {
        path: "/etc/redirect/networks.txt".into(),
        text: "10.20.0.0/24\n".to_owned(),
    });
    let mut run = acquire(location);
    begin_apply(&mut run, "version = 1 #\n", &first_apply());
    run.undone("interrupted").unwrap();
    run.begin(
        Kind::Apply,
        Some(&policy),
        &Draining::default(),
        &first_apply(),
    )
    .unwrap();
    run.done().unwrap();
    begin_apply(&mut run, "version = 1 # second\n", &second_apply());
    drop(run);
    std::fs::create_dir_all(fixture).unwrap();
    for name in Store::new(location.directory.clone()).names() {
        std::fs::copy(location.directory.join(&name), fixture.join(&name)).unwrap();
    }
    std::fs::remove_dir_all(&location.directory).unwrap();
}

/// What a plan of 100,000 networks costs to write down: `cargo test --release --lib
/// journal_at_scale -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: meaningful in a release build only"]
fn journal_at_scale() {
    let scratch = Scratch::new("journal-scale");
    let location = location(&scratch);
    let networks = (0..100_000_u32).map(|at| Range {
        first: 0x0a00_0000 + at * 512,
        last: 0x0a00_00ff + at * 512,
    });
    let mut policy = source("version = 1\n");
    let text: String = networks
        .clone()
        .map(|range| format!("{}/24", std::net::Ipv4Addr::from_bits(range.first)))
        .collect::<Vec<_>>()
        .join("\n");
    policy.lists.push(List {
        path: "/etc/redirect/networks.txt".into(),
        text,
    });
    let mut table = table(1);
    table.sets[1].elements = nft::Elements::V4(Ranges::merged(networks.collect()));
    let mut plan = first_apply();
    plan.changes[6] = Change::Nftables {
        from: None,
        to: Some(table),
    };
    let time = |what: &str, work: &mut dyn FnMut()| {
        let begun = std::time::Instant::now();
        work();
        eprintln!("{what}: {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0);
    };
    let mut digest = Digest::of(&source(""));
    time("digest of the policy", &mut || digest = Digest::of(&policy));
    let mut size = 0;
    time("plan as JSON", &mut || {
        size = serde_json::to_string(&plan).unwrap().len();
    });
    eprintln!("plan: {size} bytes");
    let mut run = acquire(&location);
    time("begin, files and syncs included", &mut || {
        run.begin(Kind::Apply, Some(&policy), &Draining::default(), &plan)
            .unwrap();
    });
    time("done", &mut || run.done().unwrap());
    time("begin of the same policy again", &mut || {
        run.begin(Kind::Repair, Some(&policy), &Draining::default(), &plan)
            .unwrap();
    });
    time("plan read back", &mut || {
        assert_eq!(run.open_plan().unwrap(), plan);
    });
    time("policy read back", &mut || {
        assert_eq!(run.source(&digest).unwrap(), policy);
    });
    time("journal read", &mut || {
        drop(Journal::read(&location).unwrap());
    });
}

#[test]
fn systemd_and_the_kernel_name_the_same_boot() {
    assert_eq!(
        BootId::of_systemd("9c6206afb743467fad353423D2c6399c"),
        Some(BootId("9c6206af-b743-467f-ad35-3423d2c6399c".to_owned()))
    );
    for other in [
        "",
        "%b",
        "9c6206af-b743-467f-ad35-3423d2c6399c",
        "ä9c6206afb743467fad353423D2c639",
    ] {
        assert_eq!(BootId::of_systemd(other), None, "{other}");
    }
}
