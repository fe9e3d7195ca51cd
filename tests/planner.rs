//! The planner against a router in memory: whatever was there, whatever is wanted, and
//! wherever it breaks off.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what does not hold fails the test"
)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use redirect::iptables::{Variant, Version};
use redirect::kernel::fake::FakeKernel;
use redirect::kernel::{Kernel, Wish};
use redirect::net::{
    Action, Family, IfName, Mark, Route, RouteKind, RouteProtocol, RoutingRule, RulePriority,
    RuleSelectors, TableId,
};
use redirect::observation::{
    Address, Availability, FileContent, Iptables, IptablesProgram, IptablesRules, Link, Observed,
    Setting, Sysctl, TableNames,
};
use redirect::plan::planner::{Stage, plan};
use redirect::plan::{Change, Ledger, Plan};
use redirect::policy::{self, Policy, Source};
use redirect::rules::nftables;

const LINKS: [(&str, &str, &str); 4] = [
    ("lo", "127.0.0.1/8", "::1/128"),
    ("sps0", "10.30.0.1/24", "fd00:30::1/64"),
    ("sps1", "10.31.0.1/24", "fd00:31::1/64"),
    ("cli0", "10.40.0.1/24", "fd00:40::1/64"),
];

#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
/// What a policy may say, small enough that anything is met soon.
#[derive(Debug, Clone)]
struct Wanted {
    two_appliances: bool,
    six: bool,
    snat: bool,
    shared: bool,
    table: u32,
    priority: u32,
    mask: &'static str,
    rp_filter: &'static str,
    backend: &'static str,
    down: &'static str,
    ports: u16,
}

impl Wanted {
    fn policy(&self) -> Policy {
        let mut text = format!(
            "version = 1\n\
             [options]\n\
             rp_filter = \"{}\"\nbackend = \"{}\"\non_appliance_down = \"{}\"\n\
             mark_mask = {}\nrule_priority = {}\n",
            self.rp_filter, self.backend, self.down, self.mask, self.priority
        );
        for (index, name) in ["scb", "other"].into_iter().enumerate() {
            if index == 1 && !self.two_appliances {
                break;
            }
            let (six, networks_of_six) = if self.six {
                (
                    format!(", \"fd00:3{index}::2\""),
                    format!(", \"fd00:2{index}::/64\""),
                )
            } else {
                (String::new(), String::new())
            };
            let client = if self.shared {
                format!("sps{index}")
            } else {
                "cli0".to_owned()
            };
            let section = format!(
                "[appliance.{name}]\n\
                 address = [\"10.3{index}.0.2\"{six}]\ninterface = \"sps{index}\"\n\
                 mac = \"02:00:5e:00:00:0{index}\"\ntable = {}\n\
                 [[redirect]]\nname = \"r{index}\"\nappliance = \"{name}\"\n\
                 client_interface = \"{client}\"\n\
                 server_network = [\"10.2{index}.0.0/24\"{networks_of_six}]\n\
                 port = {}\nsnat = {}\n",
                self.table + u32::try_from(index).unwrap(),
                self.ports,
                self.snat,
            );
            text.push_str(&section);
        }
        let source = Source {
            name: "policy.toml".to_owned(),
            text,
            lists: Vec::new(),
            unreadable: Vec::new(),
        };
        match policy::read(&source) {
            Ok(reading) => reading.policy,
            Err(errors) => panic!("{errors:?}\n{}", source.text),
        }
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (
        any::<[bool; 4]>(),
        prop_oneof![Just(103_u32), Just(200)],
        prop_oneof![Just(103_u32), Just(1000)],
        prop_oneof![Just("0xff"), Just("0xf00")],
        prop_oneof![Just("loose"), Just("off"), Just("keep")],
        prop_oneof![Just("auto"), Just("nftables"), Just("iptables")],
        prop_oneof![Just("block"), Just("bypass")],
        1_u16..4,
    )
        .prop_map(
            |(flags, table, priority, mask, rp_filter, backend, down, ports)| {
                let [two_appliances, six, snat, shared] = flags;
                Wanted {
                    two_appliances,
                    six,
                    snat,
                    shared,
                    table,
                    priority,
                    mask,
                    rp_filter,
                    backend,
                    down,
                    ports,
                }
            },
        )
        .prop_map(|mut wanted| {
            // Marks count up from 1: they must be within the mask.
            if wanted.mask == "0xf00" {
                wanted.mask = "0xf0f";
            }
            wanted
        })
}

fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// A router with some of everything that others have.
fn router() -> impl Strategy<Value = Observed> {
    (
        proptest::collection::vec(0_u8..3, 12),
        any::<[bool; 6]>(),
        0_usize..3,
    )
        .prop_map(|(values, flags, foreign)| {
            let [drop_ins, directory, main, ended, with_ipset, legacy] = flags;
            let mut values = values.into_iter().cycle();
            let mut sysctls = BTreeMap::new();
            for setting in [Setting::RpFilter, Setting::SendRedirects] {
                let names = LINKS.iter().map(|(link, ..)| *link).chain(["default"]);
                let each = names.map(|link| Sysctl::ipv4(&name(link), setting));
                for sysctl in each.chain([Sysctl::ipv4_all(setting)]) {
                    let value = values.next().unwrap().min(match setting {
                        Setting::RpFilter => 2,
                        _ => 1,
                    });
                    sysctls.insert(sysctl.to_string(), (sysctl, value.to_string()));
                }
            }
            let text = if ended { "255\tlocal\n" } else { "255\tlocal" };
            let main = (main && directory).then(|| FileContent {
                text: text.to_owned(),
                mode: 0o644,
            });
            let variant = if legacy {
                Variant::Legacy
            } else {
                Variant::Nft
            };
            Observed {
                links: links(),
                addresses: addresses(),
                rules: foreign_rules(foreign),
                routes: foreign_routes(foreign),
                nftables: None,
                nftables_availability: Availability::Available,
                iptables: Iptables {
                    programs: vec![IptablesProgram {
                        variant,
                        command: "iptables".to_owned(),
                        version: Version(1, 8, 9),
                        unreadable: None,
                        families: Family::ALL
                            .map(|family| (family, IptablesRules::default()))
                            .into(),
                    }],
                    ipset: if with_ipset {
                        Availability::Available
                    } else {
                        Availability::Missing("none".to_owned())
                    },
                    sets: Vec::new(),
                },
                sysctls,
                table_names: TableNames {
                    shared: if main.is_some() {
                        vec!["/etc/iproute2".into()]
                    } else {
                        Vec::new()
                    },
                    main,
                    directory,
                    drop_ins_read: drop_ins,
                    ..TableNames::default()
                },
            }
        })
}

fn links() -> Vec<Link> {
    (1..)
        .zip(LINKS)
        .map(|(index, (link, ..))| Link {
            index,
            name: name(link),
            up: true,
            running: true,
            mac: None,
            kind: None,
            master: None,
        })
        .collect()
}

fn addresses() -> Vec<Address> {
    (1..)
        .zip(LINKS)
        .flat_map(|(link, (_, four, six))| {
            [four, six].map(|network| Address {
                link,
                network: network.parse().unwrap(),
                peer: None,
            })
        })
        .collect()
}

/// Others' rules: the kernel's, and near relations of ours.
fn foreign_rules(count: usize) -> Vec<RoutingRule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let rule = |priority, mark, table, protocol| RoutingRule {
            family,
            priority: RulePriority(priority),
            mark,
            selectors: RuleSelectors::default(),
            action: Action::Lookup(TableId(table)),
            protocol: RouteProtocol(protocol),
        };
        rules.push(rule(0, None, 255, 2));
        rules.extend(
            [
                rule(103, Mark::new(1, 0xff), 103, 4),
                rule(103, Mark::new(1, 0xff), 9, 0),
            ]
            .into_iter()
            .take(count),
        );
        rules.push(rule(32766, None, 254, 2));
    }
    rules
}

fn foreign_routes(count: usize) -> Vec<Route> {
    let route = |table, protocol, metric| Route {
        family: Family::V4,
        table: TableId(table),
        destination: None,
        kind: RouteKind::Unicast,
        via: Some("10.40.0.254".parse().unwrap()),
        interface: Some(name("cli0")),
        metric,
        protocol: RouteProtocol(protocol),
        others: Vec::new(),
    };
    [route(9, 4, 0), route(254, 4, 0), route(254, 16, 100)]
        .into_iter()
        .take(count)
        .collect()
}

struct Run {
    kernel: FakeKernel,
    ledger: Ledger,
}

impl Run {
    fn on(observed: Observed) -> Self {
        Self {
            kernel: FakeKernel::new(observed),
            ledger: Ledger::default(),
        }
    }

    fn plan(&mut self, policy: &Policy) -> Plan {
        let policies = [policy];
        let wish = Wish {
            policies: &policies,
        };
        let observed = self.kernel.observe(&wish).unwrap();
        let planned = plan(policy, &observed, &self.ledger, Stage::Complete);
        assert_eq!(planned.refusals, []);
        planned.plan
    }

    fn apply(&mut self, policy: &Policy) {
        let plan = self.plan(policy);
        let before = self.kernel.observed.nftables.clone();
        for change in &plan.changes {
            self.step(change);
            if self.kernel.observed.nftables != before {
                self.assert_led(policy);
            }
        }
        self.ledger = self.ledger.after(&plan);
        let again = self.plan(policy);
        assert_eq!(again, Plan::default());
    }

    fn step(&mut self, change: &Change) {
        if let Err(error) = self.kernel.perform(change) {
            panic!("{error}\n{change:#?}");
        }
    }

    /// Make before break: once the packet rules of `policy` are there, every packet that they
    /// mark has its rule and its route.
    fn assert_led(&self, policy: &Policy) {
        let observed = &self.kernel.observed;
        if observed.nftables.is_none() || observed.nftables != nftables::table(policy) {
            return;
        }
        for (index, appliance) in policy.appliances.iter().enumerate() {
            for family in Family::ALL {
                let (Some(address), true) = (appliance.address(family), policy.uses(index, family))
                else {
                    continue;
                };
                assert!(observed.rules.iter().any(|rule| {
                    rule.family == family
                        && rule.mark == Some(appliance.mark)
                        && rule.action == Action::Lookup(appliance.table)
                }));
                assert!(
                    observed.routes.iter().any(|route| {
                        route.table == appliance.table && route.via == Some(address)
                    })
                );
            }
        }
    }
}

/// Whoever may not look is told so, and gets a plan all the same.
#[test]
fn what_cannot_be_seen_is_said() {
    let wanted = Wanted {
        two_appliances: false,
        six: false,
        snat: false,
        shared: false,
        table: 103,
        priority: 103,
        mask: "0xff",
        rp_filter: "loose",
        backend: "auto",
        down: "block",
        ports: 1,
    };
    let policy = wanted.policy();
    let mut observed = Observed::clean(&policy);
    let seen = plan(&policy, &observed, &Ledger::default(), Stage::Complete);
    observed.nftables_availability = Availability::Unknown("Operation not permitted".to_owned());
    let unseen = plan(&policy, &observed, &Ledger::default(), Stage::Complete);
    assert_eq!(unseen.plan, seen.plan);
    assert_eq!(seen.warnings, []);
    let [warning] = &*unseen.warnings else {
        panic!("{:?}", unseen.warnings);
    };
    assert!(
        warning
            .message
            .contains("cannot be seen (Operation not permitted)")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn policies_come_change_and_go_without_a_trace(
        router in router(),
        wanted in proptest::collection::vec(wanted(), 1..4),
    ) {
        let mut run = Run::on(router.clone());
        for wanted in &wanted {
            run.apply(&wanted.policy());
        }
        run.apply(&Policy::default());
        prop_assert_eq!(run.kernel.observed, router);
        prop_assert_eq!(run.ledger, Ledger::default());
    }

    #[test]
    fn wherever_it_breaks_off_all_is_taken_back(
        router in router(),
        before in proptest::option::of(wanted()),
        wanted in wanted(),
    ) {
        let mut run = Run::on(router);
        if let Some(before) = before {
            run.apply(&before.policy());
        }
        let pristine = run.kernel.observed.clone();
        let plan = run.plan(&wanted.policy());
        for failing in 0..plan.changes.len() {
            run.kernel.fail_at(failing);
            let mut done = Plan::default();
            for change in &plan.changes {
                if run.kernel.perform(change).is_err() {
                    break;
                }
                done.changes.push(change.clone());
            }
            prop_assert_eq!(done.changes.len(), failing);
            for change in &done.inverse().changes {
                run.step(change);
            }
            prop_assert_eq!(&run.kernel.observed, &pristine);
        }
    }

    /// Before the links are up, all goes in that needs none; what follows when they are makes it
    /// whole; and no link that comes or goes in between makes a difference.
    #[test]
    fn early_needs_no_link_and_the_rest_follows(router in router(), wanted in wanted()) {
        let policy = wanted.policy();
        let mut without_links = router.clone();
        without_links.links.clear();
        without_links.addresses.clear();
        let early = |observed: &Observed| {
            plan(&policy, observed, &Ledger::default(), Stage::Early)
        };
        let planned = early(&without_links);
        prop_assert_eq!(&planned.refusals, &[]);
        prop_assert_eq!(&planned, &early(&router));

        let mut run = Run::on(without_links);
        for change in &planned.plan.changes {
            run.step(change);
        }
        run.ledger = run.ledger.after(&planned.plan);
        prop_assert_eq!(early(&run.kernel.observed).plan, Plan::default());
        let sealed = run.kernel.observed.nftables.clone();
        prop_assert_eq!(
            run.kernel.observed.rules.iter().filter(|rule| rule.protocol == RouteProtocol::OURS).count(),
            policy.appliances.len() * if wanted.six { 2 } else { 1 }
        );

        // One of the links comes: what is possible is done, and only that.
        run.kernel.observed.links = links().into_iter().take(2).collect();
        run.kernel.observed.addresses = addresses().into_iter().filter(|a| a.link <= 2).collect();
        let observed = run.kernel.observed.clone();
        let possible = plan(&policy, &observed, &run.ledger, Stage::Possible);
        prop_assert_eq!(&possible.refusals, &[]);
        for change in &possible.plan.changes {
            run.step(change);
        }
        run.ledger = run.ledger.after(&possible.plan);
        let leading = |run: &Run| run.kernel.observed.routes.iter()
            .filter(|route| route.protocol == RouteProtocol::OURS && route.via.is_some()).count();
        prop_assert_eq!(leading(&run), if wanted.six { 2 } else { 1 });

        run.kernel.observed.links = links();
        run.kernel.observed.addresses = addresses();
        run.apply(&policy);
        prop_assert_eq!(&run.kernel.observed.nftables, &sealed);
        run.apply(&Policy::default());
        prop_assert_eq!(run.kernel.observed, router);
    }

    /// What others took away is put back, and nothing else is touched.
    #[test]
    fn drift_is_repaired(
        router in router(),
        wanted in wanted(),
        losses in proptest::collection::vec(any::<prop::sample::Index>(), 1..5),
        is_packet_table_lost in any::<bool>(),
    ) {
        let mut run = Run::on(router.clone());
        let policy = wanted.policy();
        run.apply(&policy);
        let sound = run.kernel.observed.clone();
        let observed = &mut run.kernel.observed;
        for loss in &losses {
            let ours: Vec<usize> = (observed.rules.iter().enumerate())
                .filter(|(_, rule)| rule.protocol == RouteProtocol::OURS)
                .map(|(at, _)| at)
                .collect();
            if !ours.is_empty() {
                observed.rules.remove(ours[loss.index(ours.len())]);
            }
            let ours: Vec<usize> = (observed.routes.iter().enumerate())
                .filter(|(_, route)| route.protocol == RouteProtocol::OURS)
                .map(|(at, _)| at)
                .collect();
            if !ours.is_empty() {
                observed.routes.remove(ours[loss.index(ours.len())]);
            }
        }
        if is_packet_table_lost {
            observed.nftables = None;
        }
        observed.table_names.drop_in = None;
        run.apply(&policy);
        let observed = &mut run.kernel.observed;
        // Where a rule of ours and another's have one priority, the one that was put back
        // comes last.
        observed.rules.sort();
        observed.routes.sort();
        let mut sound = sound;
        sound.rules.sort();
        sound.routes.sort();
        prop_assert_eq!(&run.kernel.observed, &sound);
        run.apply(&Policy::default());
        let mut pristine = router;
        pristine.rules.sort();
        pristine.routes.sort();
        run.kernel.observed.rules.sort();
        run.kernel.observed.routes.sort();
        prop_assert_eq!(run.kernel.observed, pristine);
    }
}
