//! A router as data, spoilt in one way at a time.

mod leaks;
mod translations;

use std::net::IpAddr;

use nix::errno::Errno;

use super::foreign::{Effect, Step, System, Test, Which, iptables, nft};
use super::legs::{ask, sessions};
use super::surroundings::Surroundings;
use super::*;
use crate::kernel::route::{Answer, Neighbour, NeighbourState, Question, Way};
use crate::net::{
    Action, IfName, Mark, Route, RouteKind, RouteProtocol, RoutingRule, RulePriority,
    RuleSelectors, TableId,
};
use crate::observation::{Address, Availability, Iptables, Link, Setting, Sysctl, TableNames};
use crate::plan::Ledger;
use crate::plan::planner::{Stage, plan};
use crate::policy::{self, Source};

const POLICY: &str = r#"
version = 1
[appliance.scb]
address = ["10.30.0.2", "fd00:30::2"]
interface = "sps0"
[[redirect]]
name = "rdp"
client_interface = "eth0"
server_interface = "eth1"
server_network = ["10.20.0.0/24", "fd00:20::/64"]
port = [3389, "5900-5910"]
snat = true
"#;

const NETWORKS: [(&str, &str, &str); 4] = [
    ("eth0", "10.10.0.1/24", "fd00:10::1/64"),
    ("eth1", "10.20.0.1/24", "fd00:20::1/64"),
    ("eth2", "10.40.0.1/24", "fd00:40::1/64"),
    ("sps0", "10.30.0.1/24", "fd00:30::1/64"),
];

fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// A router of data, and how it answers.
struct World {
    policy: Policy,
    file: PolicyFile,
    observed: Observed,
    surroundings: Surroundings,
    applied: bool,
}

impl World {
    fn new(text: &str) -> Self {
        let source = Source {
            name: "policy.toml".to_owned(),
            text: text.to_owned(),
            lists: Vec::new(),
            unreadable: Vec::new(),
        };
        let policy = policy::read(&source).unwrap().policy;
        let mut observed = Observed {
            links: Vec::new(),
            addresses: Vec::new(),
            rules: Vec::new(),
            routes: Vec::new(),
            nftables: None,
            nftables_availability: Availability::Available,
            iptables: Iptables::default(),
            sysctls: std::collections::BTreeMap::new(),
            table_names: TableNames {
                directory: true,
                drop_in_directory: true,
                drop_ins_read: true,
                ..TableNames::default()
            },
        };
        for (index, (link, v4, v6)) in (1..).zip(NETWORKS) {
            observed.links.push(Link {
                index,
                name: name(link),
                up: true,
                running: true,
                mac: None,
                kind: Some("veth".to_owned()),
                master: None,
            });
            for network in [v4, v6] {
                observed.addresses.push(Address {
                    link: index,
                    network: network.parse().unwrap(),
                    peer: None,
                });
            }
        }
        let mut world = Self {
            policy,
            file: PolicyFile {
                path: "policy.toml".to_owned(),
                text: text.to_owned(),
            },
            observed,
            surroundings: Surroundings::default(),
            applied: false,
        };
        for interface in ["all", "eth0", "eth1", "eth2", "sps0"] {
            world.set(interface, Setting::RpFilter, 1);
            world.set(interface, Setting::SrcValidMark, 0);
            world.set(interface, Setting::SendRedirects, 1);
            world.set(interface, Setting::Forwarding, 1);
        }
        let settings = &mut world.surroundings.settings;
        settings.insert("net/ipv4/ip_forward".to_owned(), 1);
        settings.insert("net/ipv6/conf/all/forwarding".to_owned(), 1);
        world
    }

    fn set(&mut self, interface: &str, setting: Setting, value: i64) {
        let interface = (interface != "all").then(|| name(interface));
        let sysctl = Sysctl {
            family: Family::V4,
            interface,
            setting,
        };
        let path = sysctl.to_string();
        self.surroundings.settings.insert(path.clone(), value);
        self.observed
            .sysctls
            .insert(path, (sysctl, value.to_string()));
    }

    /// The whole plan, as if it had been carried out.
    fn applied(mut self) -> Self {
        let planned = plan(
            &self.policy,
            &self.observed,
            &Ledger::default(),
            Stage::Complete,
        );
        assert_eq!(planned.refusals, []);
        for change in planned.plan.changes {
            match change {
                Change::Route { to: Some(to), .. } => self.observed.routes.push(to),
                Change::Rule { to: Some(to), .. } => self.observed.rules.push(to),
                Change::Nftables { to, .. } => self.observed.nftables = to,
                Change::File { to, .. } => self.observed.table_names.drop_in = to,
                Change::Sysctl { sysctl, to, .. } => {
                    let interface = sysctl.interface.as_ref().map_or("all", IfName::as_str);
                    let interface = interface.to_owned();
                    self.set(&interface, sysctl.setting, to.parse().unwrap());
                }
                _ => {}
            }
        }
        self.applied = true;
        self
    }

    /// As the kernel would: the rules in order, then the on-link networks.
    fn answer(&self, question: &Question) -> Answer {
        let family = Family::of(question.to);
        let mut rules: Vec<&RoutingRule> = self
            .observed
            .rules
            .iter()
            .filter(|rule| rule.family == family)
            .collect();
        rules.sort_by_key(|rule| rule.priority);
        if let Some(input) = &question.input
            && family == Family::V4
            && self
                .surroundings
                .settings
                .get(&format!("net/ipv4/conf/{input}/rp_filter"))
                == Some(&1)
            && question.from.and_then(|from| self.on_link(from)) != Some(input.clone())
        {
            return Answer::Refused(Errno::EINVAL);
        }
        for rule in rules {
            let matches = rule.mark.is_none_or(|mark| mark.is_borne_by(question.mark));
            let Action::Lookup(table) = rule.action else {
                continue;
            };
            if matches
                && let Some(route) = self
                    .observed
                    .routes
                    .iter()
                    .chain(&self.surroundings.routes)
                    .filter(|route| route.family == family && route.table == table)
                    .filter(|route| {
                        let destination = route.destination;
                        destination.is_none_or(|network| network.contains(&question.to))
                    })
                    .min_by_key(|route| {
                        let length = route.destination.map_or(0, |network| network.prefix_len());
                        (std::cmp::Reverse(length), route.metric)
                    })
            {
                return Answer::Route(Way {
                    kind: route.kind,
                    via: route.via,
                    interface: route.interface.clone(),
                    table,
                });
            }
        }
        match self.on_link(question.to) {
            Some(interface) => Answer::Route(Way {
                kind: RouteKind::Unicast,
                via: None,
                interface: Some(interface),
                table: TableId::MAIN,
            }),
            None => Answer::Refused(Errno::EHOSTUNREACH),
        }
    }

    fn on_link(&self, address: IpAddr) -> Option<IfName> {
        let found = self
            .observed
            .addresses
            .iter()
            .find(|found| found.network.contains(&address))?;
        let link = self
            .observed
            .links
            .iter()
            .find(|link| link.index == found.link)?;
        Some(link.name.clone())
    }

    fn check(&mut self) -> Report {
        let asked = sessions(&self.policy, &self.observed, &self.surroundings);
        self.surroundings.asked = ask(&self.policy, asked, &mut |question| {
            Ok(self.answer(question))
        });
        let planned = plan(
            &self.policy,
            &self.observed,
            &Ledger::default(),
            Stage::Complete,
        );
        check(&Case {
            policy: &self.policy,
            file: &self.file,
            in_force: self.applied,
            observed: &self.observed,
            planned: &planned,
            backend: Backend::Nftables,
            surroundings: &self.surroundings,
        })
    }

    fn codes(&mut self) -> Vec<&'static str> {
        let mut codes: Vec<_> = self.check().findings.iter().map(|f| f.code).collect();
        codes.dedup();
        codes
    }

    fn nft(&mut self, expressions: &str, hook: &str, priority: i32) {
        let json = format!(
            r#"{{"nftables":[{{"chain":{{"family":"inet","table":"t","name":"c","type":"filter","hook":"{hook}","prio":{priority},"policy":"accept"}}}},{{"rule":{{"family":"inet","table":"t","chain":"c","handle":7,"expr":[{expressions}]}}}}]}}"#
        );
        let text = "table inet t { # handle 1\n chain c { # handle 2\n the rule # handle 7\n";
        self.surroundings.rules = nft::read(&json, &[], text, &[]).unwrap();
    }

    fn iptables(&mut self, rules: &str) {
        self.surroundings.rules =
            iptables::read(rules, System::IptablesNft, Family::V4, "iptables-nft");
    }
}

#[test]
fn a_sound_router_has_a_clean_bill_before_and_after() {
    let mut before = World::new(POLICY);
    let report = before.check();
    assert_eq!(report.findings, []);
    let outcomes: Vec<_> = report.sessions[0]
        .legs
        .iter()
        .map(|leg| leg.outcome)
        .collect();
    assert_eq!(outcomes, [Outcome::OnceApplied; 4]);
    let mut after = World::new(POLICY).applied();
    let report = after.check();
    assert_eq!(report.findings, []);
    assert_eq!(report.sessions.len(), 2);
    let legs = report.sessions.iter().flat_map(|session| &session.legs);
    assert!(legs.clone().all(|leg| leg.outcome == Outcome::AsExpected));
    assert_eq!(legs.count(), 8);
}

#[test]
fn settings_that_drop_our_packets_are_named() {
    let mut world = World::new(POLICY).applied();
    world.set("sps0", Setting::RpFilter, 1);
    let report = world.check();
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert_eq!(report.findings[0].code, "rp-filter-strict");
    assert_eq!(
        report.findings[0].mend,
        ["sysctl -w net/ipv4/conf/sps0/rp_filter=2"]
    );

    let mut world = World::new(POLICY);
    world.set("all", Setting::SrcValidMark, 1);
    assert_eq!(world.codes(), ["src-valid-mark"]);
    world.set("eth0", Setting::RpFilter, 2);
    world.set("eth1", Setting::RpFilter, 2);
    assert_eq!(world.codes(), [""; 0]);

    let mut world = World::new(POLICY);
    world.set("eth0", Setting::Forwarding, 0);
    assert_eq!(world.codes(), ["forwarding-off"]);
    world
        .surroundings
        .settings
        .insert("net/ipv6/conf/all/forwarding".to_owned(), 0);
    let report = world.check();
    let mends: Vec<_> = report.findings.iter().flat_map(|f| &f.mend).collect();
    assert_eq!(
        mends,
        [
            "sysctl -w net/ipv4/conf/eth0/forwarding=1",
            "sysctl -w net/ipv6/conf/all/forwarding=1"
        ]
    );
}

fn rule(priority: u32, mark: Option<Mark>, table: u32) -> RoutingRule {
    RoutingRule {
        family: Family::V4,
        priority: RulePriority(priority),
        mark,
        selectors: RuleSelectors::default(),
        action: Action::Lookup(TableId(table)),
        protocol: RouteProtocol(3),
    }
}

fn route(table: u32) -> Route {
    Route {
        family: Family::V4,
        table: TableId(table),
        destination: None,
        kind: RouteKind::Unicast,
        via: Some("10.40.0.2".parse().unwrap()),
        interface: Some(name("eth2")),
        metric: 0,
        protocol: RouteProtocol(3),
        others: Vec::new(),
    }
}

#[test]
fn a_rule_before_ours_is_named_if_it_catches_the_packet() {
    let mut world = World::new(POLICY);
    world.observed.rules.push(rule(50, None, 200));
    assert_eq!(world.codes(), [""; 0], "its table is empty");
    world.surroundings.routes.push(route(200));
    let report = world.check();
    assert_eq!(report.findings[0].code, "rule-before-ours");
    assert_eq!(
        report.findings[0].mend,
        [r"printf '\n[options]\nrule_priority = 49\n' >> policy.toml"]
    );
    world.observed.rules[0] = rule(50, Mark::new(0x100, 0xff00), 200);
    assert_eq!(world.codes(), [""; 0], "its mark is another");
    world.observed.rules[0] = rule(200, Mark::new(1, 0xffff_ffff), 200);
    assert_eq!(world.codes(), ["mark-bits-shared"]);
}

#[test]
fn what_is_missing_of_an_applied_policy_is_drift() {
    let mut world = World::new(POLICY).applied();
    world
        .observed
        .rules
        .retain(|rule| rule.family == Family::V6);
    let report = world.check();
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["drift"]);
    assert_eq!(
        report.findings[0].found,
        "a routing rule of ours is not as it was applied: `priority 103 from all fwmark 0x1/0xff lookup 103` is missing"
    );
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.mend == ["redirect repair"])
    );
}

#[test]
fn packet_rules_of_others_are_gone_through() {
    let drop =
        r#"{"match":{"op":"==","left":{"meta":{"key":"oifname"}},"right":"sps0"}},{"drop":null}"#;
    let path = r#"{"match":{"op":"==","left":{"fib":{"result":"oif","flags":["saddr","iif"]}},"right":false}},{"drop":null}"#;
    let untrack = r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":3389}},{"notrack":null}"#;
    let wipe = r#"{"mangle":{"key":{"meta":{"key":"mark"}},"value":16}}"#;
    let wipe_connection = r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":16}}"#;
    for (expressions, hook, priority, codes) in [
        (drop, "forward", 0, vec!["forward-drop"]),
        (path, "prerouting", -290, vec!["fib-filter"]),
        (untrack, "prerouting", -300, vec!["notrack"]),
        (wipe, "prerouting", -100, vec!["mark-overwritten"]),
        (wipe, "prerouting", -150, vec![]),
        (
            wipe_connection,
            "prerouting",
            -100,
            vec!["connmark-overwritten"],
        ),
        (
            r#"{"limit":{"rate":1}},{"drop":null}"#,
            "forward",
            0,
            vec![],
        ),
        (
            r#"{"masquerade":null}"#,
            "postrouting",
            100,
            vec!["client-hidden"],
        ),
    ] {
        for mut world in [World::new(POLICY), World::new(POLICY).applied()] {
            world.nft(expressions, hook, priority);
            assert_eq!(world.codes(), codes, "{expressions}");
        }
    }
    let mut world = World::new(POLICY);
    world.nft(drop, "forward", 0);
    let mends: Vec<_> = world
        .check()
        .findings
        .into_iter()
        .flat_map(|f| f.mend)
        .collect();
    assert_eq!(
        mends,
        [
            r#"nft 'insert rule inet t c position 7 iifname "eth0" oifname "sps0" ct mark and 0xff == 0x1 accept'"#,
            r#"nft 'insert rule inet t c position 7 iifname "eth1" oifname "sps0" ct mark and 0xff == 0x1 accept'"#,
        ]
    );
}

#[test]
fn docker_drops_what_it_does_not_know() {
    let mut world = World::new(POLICY);
    world.iptables(
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\nCOMMIT\n",
    );
    let report = world.check();
    assert_eq!(report.findings.len(), 4);
    assert_eq!(report.findings[0].code, "forward-drop");
    assert_eq!(report.findings[0].owner.as_deref(), Some("Docker"));
    assert_eq!(
        report.findings[0].mend,
        [
            "iptables-nft -t filter -I DOCKER-USER -i eth0 -o sps0 -m connmark --mark 0x1/0xff -j ACCEPT"
        ]
    );
    // What may be accepted by a rule that cannot be read is told with that doubt.
    world.iptables(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m set --match-set ok src -j ACCEPT\nCOMMIT\n",
    );
    let report = world.check();
    assert!(report.is_sound());
    assert!(
        report.findings[0]
            .found
            .contains("unless rule `-A FORWARD -m set")
    );
}

#[test]
fn interfaces_that_belong_to_others_are_named() {
    let mut world = World::new(POLICY);
    world.observed.links.push(Link {
        index: 9,
        name: name("br0"),
        up: true,
        running: true,
        mac: None,
        kind: Some("bridge".to_owned()),
        master: None,
    });
    world.observed.links[0].master = Some(9);
    let report = world.check();
    assert_eq!(report.findings[0].code, "enslaved-interface");
    assert_eq!(
        report.findings[0].mend,
        [r#"sed -i 's|"eth0"|"br0"|g' policy.toml"#]
    );
    world.observed.links[4].kind = Some("vrf".to_owned());
    assert_eq!(world.codes(), ["vrf"]);
    let mut world = World::new(POLICY);
    world.observed.links[3].running = false;
    assert_eq!(world.codes(), ["no-carrier"]);
}

#[test]
fn networkd_is_a_trouble_unless_it_is_told() {
    let mut world = World::new(POLICY);
    world.surroundings.networkd = Some(Vec::new());
    assert_eq!(world.codes(), ["networkd-foreign"]);
    let conf = "[Network]\n#ManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
    world.surroundings.networkd = Some(vec![("a".into(), conf.to_owned())]);
    assert_eq!(world.codes(), ["networkd-foreign"]);
    let routes = "[Network]\nManageForeignRoutes=false\n".to_owned();
    world.surroundings.networkd = Some(vec![("a".into(), conf.to_owned()), ("b".into(), routes)]);
    assert_eq!(world.codes(), [""; 0]);
}

fn neighbour(address: &str, mac: &str, state: NeighbourState) -> Neighbour {
    Neighbour {
        address: address.parse().unwrap(),
        mac: Some(mac.parse().unwrap()),
        state,
    }
}

#[test]
fn neighbours_tell_of_a_silent_appliance_and_of_servers_with_two_families() {
    let mac = "02:00:00:00:00:01";
    let mut world = World::new(POLICY);
    let silent = neighbour("10.30.0.2", mac, NeighbourState::Failed);
    world.surroundings.neighbours.push((name("sps0"), silent));
    assert_eq!(world.codes(), ["appliance-silent"]);

    let only_v4 = POLICY.replace(", \"fd00:20::/64\"", "");
    let mut world = World::new(&only_v4);
    for address in ["10.20.0.2", "fd00:20::2"] {
        let found = neighbour(address, mac, NeighbourState::Stale);
        world.surroundings.neighbours.push((name("eth1"), found));
    }
    let report = world.check();
    assert_eq!(report.findings[0].code, "ipv6-unredirected");
    assert_eq!(
        report.findings[0].mend,
        [
            "nft 'add table ip6 guard; add chain ip6 guard forward { type filter hook forward priority filter; }; add rule ip6 guard forward iifname \"eth0\" ip6 daddr fd00:20::/64 tcp dport { 3389, 5900-5910 } reject'"
        ]
    );
    let blocked = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d fd00:20::/64 -i eth0 -p tcp -m multiport --dports 3389,5900:5910 -j REJECT --reject-with icmp6-port-unreachable\nCOMMIT\n";
    world.surroundings.rules =
        iptables::read(blocked, System::IptablesNft, Family::V6, "ip6tables-nft");
    assert_eq!(world.codes(), [""; 0]);
}

#[test]
fn sessions_that_apply_would_cut_are_counted() {
    let mut world = World::new(POLICY);
    world.surroundings.open_sessions = Some([(0, 3)].into());
    let report = world.check();
    assert!(report.is_sound());
    assert_eq!(
        report.findings[0].found,
        "3 sessions are open that this redirect would take"
    );
}

#[test]
fn what_sets_of_others_hold_is_read_apart() {
    let terse = r#"{"nftables": [{"metainfo": {}},
        {"table": {"family": "inet", "name": "scb-redirect"}},
        {"set": {"family": "inet", "table": "scb-redirect", "name": "long", "type": "ipv4_addr"}},
        {"table": {"family": "ip", "name": "nat"}},
        {"set": {"family": "ip", "table": "nat", "name": "theirs", "type": "ipv4_addr"}},
        {"table": {"family": "ip", "name": "others"}},
        {"set": {"family": "ip", "table": "others", "name": "bad", "type": "ipv4_addr"}},
        {"chain": {"family": "ip", "table": "others", "name": "c", "handle": 1}},
        {"rule": {"family": "ip", "table": "others", "chain": "c", "handle": 3, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                "right": "@bad"}}, {"drop": null}]}}]}"#;
    // A table that iptables calls its own, too, for somebody may have put more into it.
    let names = ["nat", "others"].map(|name| ("ip".to_owned(), name.to_owned()));
    assert_eq!(nft::with_sets(terse).unwrap(), BTreeSet::from(names));
    let listing = r#"{"nftables": [{"metainfo": {}},
        {"set": {"family": "ip", "table": "others", "name": "bad", "elem": ["192.0.2.1"]}}]}"#;
    let ruleset = nft::read(terse, &[listing.to_owned()], "", &[]).unwrap();
    let Step::If(Test::Source(networks)) = &ruleset.chains[0].rules[0].steps[0] else {
        panic!("{:?}", ruleset.chains[0].rules[0]);
    };
    assert!(networks.contains("192.0.2.1".parse().unwrap()));
    assert!(nft::with_sets("[]").is_err());
}

fn set(which: Which, keep: u32, take: u32, constant: u32) -> Step {
    Step::Do(Effect::Mark {
        which,
        keep,
        take,
        constant,
    })
}

#[test]
fn what_nft_prints_is_understood() {
    let json = include_str!("../../../tests/check/ruleset.json");
    let text = include_str!("../../../tests/check/ruleset.nft");
    let ruleset = nft::read(json, &[], text, &[]).unwrap();
    let chain = &ruleset.chains[0];
    let by_handle = |handle: u64| {
        chain
            .rules
            .iter()
            .find(|rule| rule.handle == handle)
            .unwrap()
    };
    assert_eq!(by_handle(14).text, "tcp dport { 22, 80-90 } notrack");
    assert_eq!(
        by_handle(11).text,
        "fib saddr . iif oif 0 counter drop",
        "counts are left out"
    );
    // Written in three ways, the same: no way back by the interface it came in on.
    for handle in [9, 10, 11] {
        let strict = Test::NoReversePath {
            loose: false,
            marked: false,
        };
        assert_eq!(by_handle(handle).steps[0], Step::If(strict));
    }
    let mark = |handle: u64| by_handle(handle).steps.last().unwrap().clone();
    assert_eq!(mark(15), set(Which::Packet, 0xffff_ff00, 0, 5));
    assert_eq!(mark(16), set(Which::Packet, 0, 0, 16));
    assert_eq!(mark(17), set(Which::Packet, 0, u32::MAX, 0));
    assert_eq!(mark(18), set(Which::Connection, 0, u32::MAX, 0));
    assert_eq!(mark(19), set(Which::Connection, 0xffff, 0, 0x10000));
    assert_eq!(mark(20), set(Which::Connection, 0, 0xff, 0));
    // A verdict map is as many rules as it has elements.
    assert_eq!(
        chain.rules.iter().filter(|rule| rule.handle == 23).count(),
        3
    );
    assert_eq!(
        chain.rules.iter().filter(|rule| rule.handle == 25).count(),
        2
    );
    let unknown: Vec<u64> = chain
        .rules
        .iter()
        .filter(|rule| rule.steps.contains(&Step::If(Test::Unknown)))
        .map(|rule| rule.handle)
        .collect();
    // ct status, iiftype, limit, concatenation, ct original, pkttype: told apart from all others.
    assert_eq!(unknown, [30, 32, 34, 36, 39, 43]);
    assert_eq!(ruleset.flowtables[0].devices, ["eth1", "sps0"]);
    let mut world = World::new(POLICY);
    world.surroundings.rules = ruleset;
    world.surroundings.rules.chains[0].rules.clear();
    world.surroundings.rules.chains[2]
        .base
        .as_mut()
        .unwrap()
        .drops = false;
    let codes = world.codes();
    assert!(codes.contains(&"flowtable"), "{codes:?}");
}

#[test]
fn what_iptables_prints_is_understood() {
    let text = include_str!("../../../tests/check/iptables-save");
    let ruleset = iptables::read(text, System::IptablesNft, Family::V4, "iptables");
    let unknown: Vec<&str> = ruleset
        .chains
        .iter()
        .flat_map(|chain| &chain.rules)
        .filter(|rule| rule.steps.contains(&Step::If(Test::Unknown)))
        .map(|rule| rule.text.as_str())
        .collect();
    assert_eq!(
        unknown,
        [
            "-A FORWARD -m set --match-set x src -j ACCEPT",
            "-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -m limit --limit 5/sec -j LOG",
        ]
    );
    let mangle = ruleset
        .chains
        .iter()
        .find(|chain| chain.table == "mangle")
        .unwrap();
    let last = |at: usize| mangle.rules[at].steps.last().unwrap().clone();
    assert_eq!(last(1), set(Which::Packet, 0, 0, 0x10));
    assert_eq!(last(2), set(Which::Packet, !0x10, 0, 0x10));
    assert_eq!(last(3), set(Which::Packet, 0x10, 0, 0));
    assert_eq!(last(4), set(Which::Packet, 0, u32::MAX, 0));
    assert_eq!(last(5), set(Which::Connection, !0xff, 0xff, 0));
    assert_eq!(last(6), set(Which::Connection, 0, 0, 1));
    assert_eq!(
        mangle.rules[0].steps[0],
        Step::If(Test::NoReversePath {
            loose: false,
            marked: false
        })
    );
    let forward = ruleset
        .chains
        .iter()
        .find(|chain| chain.name == "FORWARD" && chain.table == "filter")
        .unwrap();
    assert!(forward.base.unwrap().drops);
    assert_eq!(
        forward.rules[6].steps.last(),
        Some(&Step::Do(Effect::Goto("DOCKER".to_owned())))
    );
}
