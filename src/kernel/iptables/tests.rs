use super::*;
use crate::iptables::Set;
use crate::kernel::Kernel as _;
use crate::kernel::router::Router;
use crate::policy::Policy;
use crate::rules::iptables::render;
use crate::test_support::{own_network, own_table_names};

fn observe() -> Iptables {
    Xtables::default().observe().unwrap()
}

/// Others' rules, among which ours must leave no trace. One refers to the other.
const OTHERS: &str = "*mangle\n:theirs - [0:0]\n-A PREROUTING -i lo -m comment --comment \"a \\\"b\\\" scb-redirect\" -j MARK --set-xmark 0x100/0x100\n-A PREROUTING -j theirs\n-A theirs -p udp -m limit --limit 5/min -j RETURN\n-A FORWARD -j theirs\nCOMMIT\n*filter\n-A FORWARD -s 192.0.2.0/24 -j DROP\nCOMMIT\n";

fn policy(networks: usize, ports: &[u16]) -> Policy {
    let networks: Vec<String> = (0..networks)
        .map(|at| format!("10.20.{}.{}/32", at / 100, at % 100 * 2))
        .collect();
    crate::test_support::policy(&format!(
        r#"
        version = 1
        [appliance.scb]
        address = ["10.30.0.2", "fd00:30::2"]
        interface = "sps0"
        [[redirect]]
        name = "rdp"
        client_interface = ["eth0", "ppp*"]
        server_interface = "eth1"
        server_network = {:?}
        port = {ports:?}
        snat = true
        except_client = ["10.10.0.99", "10.10.0.3"]
        "#,
        [networks, vec!["fd00:20::/64".to_owned()]].concat()
    ))
}

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let output = process::run(program, arguments, input.as_bytes(), PATIENCE).unwrap();
    assert!(output.status.success(), "{program}: {}", output.complaint());
    text(&output.stdout)
}

fn listing(variant: Variant) -> String {
    let all = run(&format!("{}-save", variant.command()), &[], "")
        + &run(
            &format!("{}-save", command_of(variant.command(), Family::V6)),
            &[],
            "",
        );
    let lines: Vec<_> = all.lines().filter(|line| !line.starts_with('#')).collect();
    lines.join("\n")
}

/// What `perform` must do for `to`, given what is there: sets, chains, old sets.
fn changes(variant: Variant, now: &Iptables, to: &crate::rules::iptables::Rendered) -> Plan {
    let mut changes = Vec::new();
    for set in &to.sets {
        let from = now.set(&set.name).cloned();
        if from.as_ref() != Some(set) {
            changes.push(Change::Ipset {
                from,
                to: Some(set.clone()),
            });
        }
    }
    for family in Family::ALL {
        let from = now.ours(variant, family);
        let to = to.rulesets.get(&family).cloned().unwrap_or_default();
        if from != to {
            changes.push(Change::Iptables {
                variant,
                command: variant.command().to_owned(),
                family,
                from,
                to,
            });
        }
    }
    for set in &now.sets {
        if !to.sets.iter().any(|wanted| wanted.name == set.name) {
            changes.push(Change::Ipset {
                from: Some(set.clone()),
                to: None,
            });
        }
    }
    Plan { changes }
}

fn carry_out(plan: &Plan) {
    Router::open().unwrap().rehearse(plan).unwrap();
    let mut xtables = Xtables::default();
    for change in &plan.changes {
        xtables.perform(change).unwrap();
    }
}

fn comes_and_goes(variant: Variant) {
    for family in Family::ALL {
        let others = match family {
            Family::V4 => OTHERS.to_owned(),
            Family::V6 => OTHERS.replace("192.0.2.0/24", "2001:db8::/32"),
        };
        let command = command_of(variant.command(), family);
        run(&format!("{command}-restore"), &["--noflush"], &others);
    }
    let pristine = listing(variant);
    assert!(observe().ours(variant, Family::V4).is_empty());
    for with_sets in [true, false] {
        for (networks, ports) in [
            (1, vec![3389]),
            (300, vec![3389, 22]),
            (300, (1000..1040).map(|at| at * 2).collect()),
            (2, vec![22]),
        ] {
            let wanted = render(&policy(networks, &ports), with_sets).unwrap();
            carry_out(&changes(variant, &observe(), &wanted));
            let now = observe();
            for (family, ruleset) in &wanted.rulesets {
                assert_eq!(now.ours(variant, *family), *ruleset);
            }
            assert_eq!(now.sets, wanted.sets);
            assert_eq!(changes(variant, &now, &wanted), Plan::default());
            assert!(now.program(variant).unwrap().families[&Family::V4].others);
        }
    }
    carry_out(&changes(
        variant,
        &observe(),
        &crate::rules::iptables::Rendered::default(),
    ));
    assert_eq!(listing(variant), pristine);
    assert_eq!(observe().sets, []);
}

#[test]
fn of_a_swap_that_was_cut_short_nothing_stays() {
    if !own_network("a swap cut short") {
        return;
    }
    let set = |network: &str| Set {
        name: "scb-redirect-cut".to_owned(),
        family: Family::V4,
        networks: vec![network.parse().unwrap()],
        foreign_kind: None,
        others: Vec::new(),
    };
    let (from, to) = (set("10.20.0.0/24"), set("10.21.0.0/24"));
    sets::create(&from, &from.name).unwrap();
    sets::create(&to, &write::spare_name(&to.name)).unwrap();
    let change = Change::Ipset {
        from: Some(from.clone()),
        to: Some(to),
    };
    // And again where there is nothing.
    for _ in 0..2 {
        tidy(&change).unwrap();
        assert_eq!(observe().sets, std::slice::from_ref(&from));
    }
}

#[test]
fn legacy_rules_come_and_go_and_leave_others_alone() {
    if own_network("legacy rules") {
        comes_and_goes(Variant::Legacy);
    }
}

#[test]
fn nft_rules_come_and_go_and_leave_others_alone() {
    if own_network("nft rules") {
        comes_and_goes(Variant::Nft);
    }
}

/// A shell's reading of the same changes.
fn script(plan: &Plan) {
    let script = crate::render::shell::script(plan, &[]);
    run("sh", &["-eu", "-c", &script], "");
}

/// What `ipset save` says, without the seeds of its hashes, which are random.
fn sets_listing() -> Vec<String> {
    let text = run("ipset", &["save"], "");
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.split(" initval").next().unwrap().to_owned())
        .collect();
    lines.sort();
    lines
}

#[test]
fn the_commands_that_are_printed_do_the_same() {
    for variant in Variant::ALL {
        let play = move |how: fn(&Plan)| {
            let outcome = std::thread::spawn(move || {
                if !own_network("printed commands") {
                    return None;
                }
                let mut seen = Vec::new();
                for wanted in [
                    render(&policy(2, &[3389]), true).unwrap(),
                    render(&policy(40, &[22, 3389]), true).unwrap(),
                    render(&policy(41, &[22]), false).unwrap(),
                    crate::rules::iptables::Rendered::default(),
                ] {
                    how(&changes(variant, &observe(), &wanted));
                    seen.push((listing(variant), sets_listing()));
                }
                Some(seen)
            });
            outcome.join().unwrap()
        };
        assert_eq!(play(carry_out), play(script), "{variant}");
    }
}

#[test]
fn whatever_others_do_to_ours_is_seen_and_mended() {
    for variant in Variant::ALL {
        std::thread::spawn(move || {
            if !own_network("drift") {
                return;
            }
            let wanted = render(&policy(40, &[22, 3389]), true).unwrap();
            carry_out(&changes(variant, &observe(), &wanted));
            let set = &wanted.sets[0].name;
            for harm in [
                "$I -t mangle -I PREROUTING 1 -p udp -j ACCEPT",
                "$I -t mangle -D PREROUTING -j scb-redirect",
                "$I -t mangle -A PREROUTING -j scb-redirect",
                "$I -t mangle -A POSTROUTING -o lo -g scb-redirect-marked",
                "$I -t mangle -F scb-redirect-to-scb",
                "$I -t mangle -I scb-redirect-in-eth0 1 -m limit --limit 1/sec -m comment --comment 'a \"b\" c' -j ACCEPT",
                "$I -t mangle -R scb-redirect-to-scb 1 -j MARK --set-xmark 0x2/0xff",
                "$I -t mangle -N scb-redirect-x; $I -t mangle -A scb-redirect-x -j LOG",
                "ipset add $S 192.0.2.0/24",
                "ipset flush $S; ipset add $S 192.0.2.0/24 nomatch",
                "$I -t mangle -F; $I -t mangle -X",
            ] {
                let harm = harm.replace("$I", variant.command()).replace("$S", set);
                run("sh", &["-eu", "-c", &harm], "");
                let mending = changes(variant, &observe(), &wanted);
                assert_ne!(mending, Plan::default(), "{variant}: not seen: {harm}");
                let harmed = (listing(variant), sets_listing());
                carry_out(&mending);
                let now = observe();
                assert_eq!(changes(variant, &now, &wanted), Plan::default(), "{variant}: {harm}");
                // And taken back it is as somebody left it, to the word.
                if !harm.contains("-F; ") {
                    for change in mending.clone().inverse().changes {
                        Xtables::default().perform(&change).unwrap_or_else(|error| panic!("{harm}: {error}"));
                    }
                    assert_eq!((listing(variant), sets_listing()), harmed, "{variant}: {harm}");
                    carry_out(&changes(variant, &observe(), &wanted));
                }
                let others = format!("{variant} -t mangle -D PREROUTING -p udp -j ACCEPT 2>&1 || true");
                run("sh", &["-c", &others], "");
            }
        })
        .join()
        .unwrap();
    }
}

/// The directory of iptables' extensions.
fn extensions() -> Option<std::path::PathBuf> {
    [
        "/usr/lib/x86_64-linux-gnu/xtables",
        "/usr/lib/aarch64-linux-gnu/xtables",
        "/usr/lib64/xtables",
        "/usr/lib/xtables",
    ]
    .into_iter()
    .map(std::path::PathBuf::from)
    .find(|path| path.is_dir())
}

#[test]
fn a_missing_extension_is_found_before_anything_is_changed() {
    let Some(extensions) = extensions() else {
        eprintln!("SKIPPED a missing extension: the extensions of iptables were not found");
        return;
    };
    if !own_network("a missing extension") || !own_table_names("a missing extension") {
        return;
    }
    let none = None::<&str>;
    nix::mount::mount(
        Some("tmpfs"),
        &extensions,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .unwrap();
    let wanted = render(&policy(1, &[22]), false).unwrap();
    let plan = changes(Variant::Legacy, &observe(), &wanted);
    let error = Router::open().unwrap().rehearse(&plan).unwrap_err();
    assert_eq!(error.kind, FailureKind::Lacking, "{error}");
    assert!(error.hint.is_some(), "{error}");
    assert_eq!(
        tables::legacy_tables(Family::V4).unwrap(),
        "",
        "nothing was changed"
    );
}
