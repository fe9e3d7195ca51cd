//! Destination NAT of others, before which our rules look at a packet.

use super::*;
use crate::check::trace::{self, Ending, Fate, Request, Trace};

/// A chain of type nat with one rule, as nft lists it.
fn nat(world: &mut World, expressions: &str, words: &str, priority: i32) {
    let json = format!(
        r#"{{"nftables":[{{"chain":{{"family":"ip","table":"nat","name":"pre","type":"nat","hook":"prerouting","prio":{priority},"policy":"accept"}}}},{{"rule":{{"family":"ip","table":"nat","chain":"pre","handle":7,"expr":[{expressions}]}}}}]}}"#
    );
    let text =
        format!("table ip nat {{ # handle 1\n chain pre {{ # handle 1\n{words} # handle 7\n");
    world.surroundings.rules = nft::read(&json, &[], &text, &[]).unwrap();
}

const TO_ROUTER: &str = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"daddr"}},"right":"10.10.0.1"}}"#;
const PORT_13389: &str =
    r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":13389}}"#;
const PORT_3389: &str =
    r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":3389}}"#;
const FORWARD: &str = r#"{"dnat":{"addr":"10.20.0.2","port":3389}}"#;

fn traced(world: &mut World, server: &str, port: u16) -> Trace {
    let planned = plan(
        &world.policy,
        &world.observed,
        &Ledger::default(),
        Stage::Complete,
    );
    let case = Case {
        policy: &world.policy,
        file: &world.file,
        in_force: world.applied,
        observed: &world.observed,
        planned: &planned,
        backend: Backend::Nftables,
        surroundings: &world.surroundings,
    };
    let request = Request {
        client: "10.10.0.2".parse().unwrap(),
        client_port: 50000,
        server: server.parse().unwrap(),
        port,
        input: name("eth0"),
    };
    let moved = trace::moved(&case, &request);
    let redirect = trace::taker(&world.policy, &request).unwrap();
    let session = trace::session(redirect, &request, moved.as_ref());
    let asked = ask(&world.policy, vec![session], &mut |question| {
        Ok(world.answer(question))
    });
    trace::follow(&case, request, &asked[0], true).unwrap()
}

#[test]
fn port_forwarding_goes_past_us_whatever_its_priority() {
    let rule = format!("{TO_ROUTER},{PORT_13389},{FORWARD}");
    let words = "ip daddr 10.10.0.1 tcp dport 13389 dnat to 10.20.0.2:3389";
    for priority in [-199, -150, -100, 0] {
        let mut world = World::new(POLICY).applied();
        nat(&mut world, &rule, words, priority);
        let report = world.check();
        assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
        let finding = &report.findings[0];
        assert_eq!(finding.code, "dnat-past-us");
        assert!(finding.is_acute());
        assert_eq!(
            finding.found,
            format!(
                "rule `{words}` of nft chain `ip nat pre` gives sessions to 10.10.0.1:13389 that come in on `eth0` the destination 10.20.0.2:3389, a server of this redirect"
            )
        );
        assert_eq!(
            finding.mend,
            [
                r#"sed -i 's|^server_network = \["10\.20\.0\.0/24", "fd00:20::/64"\]$|server_network = ["10.20.0.0/24", "fd00:20::/64", "10.10.0.1"]|' policy.toml"#,
                r#"sed -i 's|^port = \[3389, "5900-5910"\]$|port = [3389, "5900-5910", 13389]|' policy.toml"#,
                "redirect apply policy.toml",
            ]
        );
    }
    // What those commands write.
    let mended = POLICY
        .replace("::/64\"", "::/64\", \"10.10.0.1\"")
        .replace("5910\"", "5910\", 13389");
    let mut world = World::new(&mended).applied();
    nat(&mut world, &rule, words, -100);
    assert_eq!(world.codes(), [""; 0]);
    let trace = traced(&mut world, "10.10.0.1", 13389);
    assert!(
        matches!(trace.fate, Fate::Redirected { .. }),
        "{:#?}",
        trace.fate
    );
    assert_eq!(trace.legs[0].to, "10.10.0.1:13389");
    assert_eq!(trace.legs[1].to, "10.20.0.2:3389");
    // The router listens there, too, but nobody comes that far.
    world.surroundings.listeners = vec!["10.10.0.1:13389".parse().unwrap()];
    assert_eq!(world.codes(), [""; 0]);
}

#[test]
fn port_forwarding_that_is_no_trouble_is_not_told() {
    let only_from = |interface: &str| {
        format!(
            r#"{{"match":{{"op":"==","left":{{"meta":{{"key":"iifname"}}}},"right":"{interface}"}}}},{PORT_13389},{FORWARD}"#
        )
    };
    for (rule, codes) in [
        // Where clients do not come in.
        (only_from("eth2"), vec![]),
        (only_from("eth0"), vec!["dnat-past-us"]),
        // To what is no server of ours, or none of its ports.
        (
            format!("{TO_ROUTER},{PORT_3389},{}", FORWARD.replace(".20.", ".40.")),
            vec![],
        ),
        (
            format!("{TO_ROUTER},{PORT_3389},{}", FORWARD.replace("3389", "80")),
            vec![],
        ),
        // From one server to another: taken by the one, dialled by the other.
        (
            format!("{PORT_3389},{}", FORWARD.replace("10.20.0.2", "10.20.0.9")),
            vec!["dnat-past-us"],
        ),
        (
            format!(
                r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"ip","field":"daddr"}}}},"right":{{"prefix":{{"addr":"10.20.0.0","len":24}}}}}}}},{PORT_3389},{FORWARD}"#
            ),
            vec![],
        ),
        // A port of its servers that is none of the redirect's.
        (
            format!(r#"{PORT_13389},{{"dnat":{{"port":3389}}}}"#),
            vec!["dnat-past-us"],
        ),
        // By a map.
        (
            r#"{"dnat":{"family":"ip","addr":{"map":{"key":{"payload":{"protocol":"tcp","field":"dport"}},"data":{"set":[[80,"10.40.0.2"],[13389,{"concat":["10.20.0.2",3389]}]]}}}}}"#
                .to_owned(),
            vec!["dnat-past-us"],
        ),
    ] {
        let mut world = World::new(POLICY).applied();
        nat(&mut world, &rule, "the rule", -100);
        assert_eq!(world.codes(), codes, "{rule}");
    }
}

#[test]
fn port_forwarding_of_iptables_is_found_through_its_chains() {
    let rules = |target: &str| {
        format!(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:PRE_allow - [0:0]\n-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL -j PRE_allow\n-A PRE_allow -p tcp -m tcp --dport 13389 -j {target}\nCOMMIT\n"
        )
    };
    for (target, codes) in [
        ("DNAT --to-destination 10.20.0.2:3389", vec!["dnat-past-us"]),
        (
            "DNAT --to-destination 10.20.0.2-10.20.0.9:3389-3390 --random",
            vec!["dnat-past-us"],
        ),
        ("DNAT --to-destination 10.40.0.2:3389", vec![]),
        ("DNAT --to-destination 10.20.0.2", vec![]),
        ("REDIRECT --to-ports 3389", vec![]),
        ("ACCEPT", vec![]),
    ] {
        let mut world = World::new(POLICY).applied();
        world.iptables(&rules(target));
        assert_eq!(world.codes(), codes, "{target}");
    }
    let mut world = World::new(POLICY).applied();
    world.iptables(&rules("DNAT --to-destination 10.20.0.2:3389"));
    let report = world.check();
    // The router's own addresses, for any will do.
    assert_eq!(report.findings.len(), 4, "{:#?}", report.findings);
    assert!(
        report.findings[0]
            .found
            .contains("gives sessions to 10.10.0.1:13389")
    );
    let mut world = World::new(POLICY).applied();
    world.iptables("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.99.0.0/24 -j NETMAP --to 10.20.0.0/24\nCOMMIT\n");
    let report = world.check();
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert!(
        report.findings[0].mend[0].contains(r#", "10.99.0.0/24"]"#),
        "{:?}",
        report.findings[0].mend
    );
}

#[test]
fn a_server_that_others_move_is_followed() {
    let moves = |to: &str| format!(r#"{PORT_3389},{{"dnat":{to}}}"#);
    let elsewhere = moves(r#"{"addr":"10.40.0.2"}"#);
    let mut world = World::new(POLICY).applied();
    nat(&mut world, &elsewhere, "the rule", -100);
    let report = world.check();
    let finding = &report.findings[0];
    assert_eq!(finding.code, "dnat-astray");
    assert_eq!(
        finding.found,
        "leg 1, client to appliance, IPv4: rule `the rule` of nft chain `ip nat pre` gives it the destination 10.40.0.2:3389"
    );
    assert!(finding.mend[0].contains(r#", "10.40.0.2"]"#));
    let trace = traced(&mut world, "10.20.0.2", 3389);
    let Fate::Broken { leg, failing, .. } = &trace.fate else {
        panic!("{:#?}", trace.fate);
    };
    assert_eq!((*leg, failing.ending), (3, Ending::Hangs));
    assert!(trace.legs[1].marks.starts_with("no redirect names this"));
    // The appliance dials it with its own address: nothing of it comes back unmarked.
    let mut world = World::new(&POLICY.replace("snat = true", "")).applied();
    nat(&mut world, &elsewhere, "the rule", -100);
    assert_eq!(world.codes(), [""; 0]);
}

#[test]
fn what_is_sent_to_the_router_itself_crosses_no_appliance() {
    for to in [
        r#"{"redirect":{"port":8080}}"#,
        r#"{"dnat":{"addr":"10.40.0.1"}}"#,
    ] {
        let mut world = World::new(POLICY).applied();
        nat(&mut world, &format!("{PORT_3389},{to}"), "the rule", -100);
        let report = world.check();
        assert_eq!(report.findings.len(), 2, "{:#?}", report.findings);
        assert!(
            report
                .findings
                .iter()
                .all(|finding| finding.code == "dnat-to-router")
        );
        assert_eq!(
            report.findings[0].mend,
            [
                r#"nft 'insert rule ip nat pre position 7 iifname "eth0" tcp dport { 3389, 5900-5910 } accept'"#
            ]
        );
        let trace = traced(&mut world, "10.20.0.2", 3389);
        let Fate::Broken { leg, failing, .. } = &trace.fate else {
            panic!("{:#?}", trace.fate);
        };
        assert_eq!((*leg, failing.ending), (1, Ending::Ends));
    }
}

/// A rule of others that sets bits beside ours, and a routing rule that goes by them.
#[test]
fn bits_beside_ours_and_the_routing_rule_that_goes_by_them_are_named_together() {
    let sets = |bits: u32| {
        format!(
            r#"{{"match":{{"op":"==","left":{{"meta":{{"key":"iifname"}}}},"right":"eth0"}}}},{{"mangle":{{"key":{{"meta":{{"key":"mark"}}}},"value":{{"|":[{{"meta":{{"key":"mark"}}}},{bits}]}}}}}}"#
        )
    };
    let with = |bits: u32, hook_priority: i32, rule_priority: u32| {
        let mut world = World::new(POLICY).applied();
        world.nft(&sets(bits), "prerouting", hook_priority);
        let mark = Mark::new(bits, bits);
        let mut theirs = rule(rule_priority, mark, 200);
        theirs.family = Family::V4;
        world.observed.rules.insert(0, theirs);
        world.surroundings.routes.push(route(200));
        world
    };
    for priority in [-150, -100] {
        let report = with(0x100, priority, 50).check();
        assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
        let finding = &report.findings[0];
        assert_eq!(finding.code, "rule-before-ours");
        assert!(
            finding
                .found
                .contains("rule `the rule` of nft chain `inet t c` changes the packet mark from ")
                && finding.found.contains(
                    "`priority 50 from all fwmark 0x100/0x100 lookup 200`, which stands before"
                ),
            "{}",
            finding.found
        );
        assert!(finding.why.ends_with("no session gets through"));
        assert_eq!(
            finding.mend,
            [
                r"printf '\n[options]\nrule_priority = 49\n' >> policy.toml",
                "redirect apply policy.toml"
            ]
        );
        assert_eq!(report.sessions[0].legs[0].because, Some("rule-before-ours"));
        let trace = traced(&mut with(0x100, priority, 50), "10.20.0.2", 3389);
        let Fate::Broken { leg, failing, .. } = &trace.fate else {
            panic!("{:#?}", trace.fate);
        };
        assert_eq!((*leg, failing.ending), (1, Ending::Refused));
    }
    // Behind ours it takes nothing of ours, and without any it is nobody's matter.
    let mut behind = with(0x100, -150, 200);
    let theirs = behind.observed.rules.remove(0);
    behind.observed.rules.push(theirs);
    assert_eq!(behind.codes(), [""; 0]);
    // In our own mask, behind our rules: ours misses it, and theirs has it.
    let report = with(0x2, -100, 50).check();
    let overwritten = report
        .findings
        .iter()
        .find(|finding| finding.code == "mark-overwritten")
        .unwrap();
    assert!(
        overwritten
            .found
            .ends_with("`priority 50 from all fwmark 0x2/0x2 lookup 200`, which stands before ours, takes it then"),
        "{}",
        overwritten.found
    );
}

#[test]
fn what_drops_invalid_packets_is_told_where_it_may_matter() {
    let drops = |states: &str| {
        format!(
            r#"{{"match":{{"op":"in","left":{{"ct":{{"key":"state"}}}},"right":{states}}}}},{{"drop":null}}"#
        )
    };
    let liberal = surroundings::BE_LIBERAL;
    let codes = |policy: &str, rule: &str, hook: &str, value: i64| {
        let mut world = World::new(policy).applied();
        world.nft(rule, hook, 0);
        world
            .surroundings
            .settings
            .insert(liberal.to_owned(), value);
        world.codes()
    };
    let invalid = drops(r#""invalid""#);
    for hook in ["forward", "prerouting"] {
        assert_eq!(codes(POLICY, &invalid, hook, 0), ["invalid-dropped"]);
        assert_eq!(codes(POLICY, &invalid, hook, 1), [""; 0]);
    }
    let own = POLICY.replace("snat = true", "");
    assert_eq!(codes(&own, &invalid, "forward", 0), [""; 0]);
    assert_eq!(
        codes(POLICY, &drops(r#""untracked""#), "forward", 0),
        [""; 0]
    );
    // Firewalld's, by iptables.
    let mut world = World::new(POLICY).applied();
    world.surroundings.settings.insert(liberal.to_owned(), 0);
    world.iptables("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n");
    let report = world.check();
    assert!(report.is_sound());
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert_eq!(
        report.findings[0].mend,
        ["sysctl -w net/netfilter/nf_conntrack_tcp_be_liberal=1"]
    );
}
