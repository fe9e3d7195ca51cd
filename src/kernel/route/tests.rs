//! Against the kernel, in network namespaces of our own, with `ip` as the witness; and
//! against captures.

use std::fmt::Debug;

use serde_json::Value;

use super::*;
use crate::net::{Action, Mark, RulePriority, RuleSelectors};
use crate::test_support::{ip, ip_json, own_network, wait_for_carrier, write};

fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// A veth pair with addresses at its near end, `sps0`; true if there is one.
fn with_veth(test: &str) -> bool {
    if !own_network(test) {
        return false;
    }
    ip("link add sps0 type veth peer name far0");
    // Link-local addresses and their routes would come in their own time.
    ip("link set sps0 addrgenmode none");
    ip("link set far0 addrgenmode none");
    ip("address add 10.30.0.1/24 dev sps0");
    ip("address add fd00:30::1/64 dev sps0 nodad");
    ip("link set sps0 up");
    ip("link set far0 up");
    wait_for_carrier("sps0");
    true
}

fn with_second_veth() {
    ip("link add cli0 type veth peer name far1");
    ip("link set cli0 addrgenmode none");
    ip("link set far1 addrgenmode none");
    ip("address add 10.40.0.1/24 dev cli0");
    ip("address add fd00:40::1/64 dev cli0 nodad");
    ip("link set cli0 up");
    ip("link set far1 up");
    wait_for_carrier("cli0");
}

fn our_rule(family: Family) -> RoutingRule {
    RoutingRule {
        family,
        priority: RulePriority(103),
        mark: Mark::new(1, 0xff),
        selectors: RuleSelectors::default(),
        action: Action::Lookup(TableId(103)),
        protocol: RouteProtocol::OURS,
    }
}

fn our_route(family: Family, table: u32) -> Route {
    let via: IpAddr = match family {
        Family::V4 => "10.30.0.2".parse().unwrap(),
        Family::V6 => "fd00:30::2".parse().unwrap(),
    };
    Route {
        family,
        table: TableId(table),
        destination: None,
        kind: RouteKind::Unicast,
        via: Some(via),
        interface: Some(name("sps0")),
        metric: if family == Family::V6 { 1024 } else { 0 },
        protocol: RouteProtocol::OURS,
        others: Vec::new(),
    }
}

fn our_fallback(family: Family, table: u32) -> Route {
    Route {
        kind: RouteKind::Unreachable,
        via: None,
        interface: None,
        metric: u32::MAX,
        ..our_route(family, table)
    }
}

fn read_routes(routing: &mut Routing, tables: &[u32]) -> Vec<Route> {
    let links = routing.links().unwrap();
    let tables = tables.iter().copied().map(TableId).collect();
    routing.routes(&links, &tables).unwrap()
}

/// The items that are in `after` and not in `before`.
fn added<T: PartialEq + Clone + Debug>(before: &[T], after: &[T]) -> Vec<T> {
    (after.iter())
        .filter(|item| !before.contains(item))
        .cloned()
        .collect()
}

#[test]
fn a_rule_of_ours_is_as_ip_would_have_made_it() {
    if !own_network("a_rule_of_ours_is_as_ip_would_have_made_it") {
        return;
    }
    let mut routing = Routing::open().unwrap();
    for family in Family::ALL {
        let flag = family.ip_flag();
        let pristine = ip_json(&format!("{flag} -details rule"));
        let rule = our_rule(family);
        routing.change_rule(None, Some(&rule)).unwrap();
        let ours = ip_json(&format!("{flag} -details rule"));
        assert!(routing.rules().unwrap().contains(&rule));
        routing.change_rule(Some(&rule), None).unwrap();
        assert_eq!(ip_json(&format!("{flag} -details rule")), pristine);
        ip(&format!(
            "{flag} rule add priority 103 fwmark 1/0xff lookup 103 protocol 103"
        ));
        assert_eq!(ip_json(&format!("{flag} -details rule")), ours);
        assert_ne!(ours, pristine);
        let twice = routing.change_rule(None, Some(&rule)).unwrap_err();
        assert_eq!(twice.kind, FailureKind::Exists, "{twice}");
        routing.change_rule(Some(&rule), None).unwrap();
        let again = routing.change_rule(Some(&rule), None).unwrap_err();
        assert_eq!(again.kind, FailureKind::Gone);
        assert_eq!(
            again.to_string(),
            format!(
                "cannot remove the {family} routing rule `priority 103 fwmark 0x1/0xff \
                 lookup 103 protocol 103`: it is not there"
            )
        );
    }
}

/// Everything that `ip rule` can say, read, taken away and put back.
#[test]
fn every_rule_is_read_removed_and_put_back_exactly() {
    if !with_veth("every_rule_is_read_removed_and_put_back_exactly") {
        return;
    }
    let mut routing = Routing::open().unwrap();
    let rules = [
        "fwmark 1 lookup 103",
        "fwmark 0/0xff lookup 103",
        "fwmark 0x10/0xf0 lookup 300",
        "from 10.0.0.0/8 to 192.0.2.0/24 lookup 103",
        "not from 10.0.0.0/8 lookup 103 protocol 103",
        "iif sps0 oif far0 lookup main",
        "iif nobody0 lookup main",
        "tos 0x10 lookup 103",
        "ipproto tcp sport 1000-2000 dport 3389 lookup 103",
        "lookup main suppress_prefixlength 0",
        "lookup main suppress_ifgroup 5",
        "uidrange 1000-2000 lookup 103",
        "tun_id 77 lookup 103",
        "goto 32766",
        "nop",
        "blackhole from 10.66.0.0/16",
        "unreachable from 10.66.0.0/16",
        "prohibit from 10.66.0.0/16",
        "l3mdev",
        "from 10.1.2.3 lookup 4294967294 protocol 250",
    ];
    for family in Family::ALL {
        let flag = family.ip_flag();
        for rule in rules {
            let rule = match family {
                Family::V4 => rule.to_owned(),
                Family::V6 => (rule.replace("10.0.0.0/8", "fd00::/8"))
                    .replace("192.0.2.0/24", "2001:db8::/32")
                    .replace("10.66.0.0/16", "fd66::/16")
                    .replace("10.1.2.3", "fd00::3"),
            };
            let before = routing.rules_of(family).unwrap();
            let pristine = ip_json(&format!("{flag} -details rule"));
            ip(&format!("{flag} rule add priority 77 {rule}"));
            let with = ip_json(&format!("{flag} -details rule"));
            let [read] = &added(&before, &routing.rules_of(family).unwrap())[..] else {
                panic!("{rule}: not read as one rule");
            };
            routing.change_rule(Some(read), None).unwrap();
            assert_eq!(
                ip_json(&format!("{flag} -details rule")),
                pristine,
                "{rule}"
            );
            routing.change_rule(None, Some(read)).unwrap();
            assert_eq!(ip_json(&format!("{flag} -details rule")), with, "{rule}");
            routing.change_rule(Some(read), None).unwrap();
        }
    }
}

/// The kernel's own way would take the first that has what is asked for.
#[test]
fn another_rule_is_never_taken_for_ours() {
    if !with_veth("another_rule_is_never_taken_for_ours") {
        return;
    }
    let mut routing = Routing::open().unwrap();
    for family in Family::ALL {
        let flag = family.ip_flag();
        let near = [
            "priority 103 fwmark 1/0xff lookup 103",
            "priority 103 fwmark 1/0xff lookup 103 protocol 4",
            "priority 103 fwmark 1/0xf lookup 103 protocol 103",
            "priority 103 fwmark 2/0xff lookup 103 protocol 103",
            "priority 103 fwmark 1/0xff lookup 104 protocol 103",
            "priority 104 fwmark 1/0xff lookup 103 protocol 103",
        ];
        for rule in near {
            ip(&format!("{flag} rule add {rule}"));
        }
        let foreign = ip_json(&format!("{flag} -details rule"));
        let rule = our_rule(family);
        // Not there: nothing is taken in its stead.
        let error = routing.change_rule(Some(&rule), None).unwrap_err();
        assert_eq!(error.kind, FailureKind::Gone);
        routing.change_rule(None, Some(&rule)).unwrap();
        routing.change_rule(Some(&rule), None).unwrap();
        assert_eq!(ip_json(&format!("{flag} -details rule")), foreign);
        // One that has more than ours, before ours: the kernel would take it.
        ip(&format!(
            "{flag} rule add priority 103 fwmark 1/0xff iif sps0 lookup 103 protocol 103"
        ));
        routing.change_rule(None, Some(&rule)).unwrap();
        let both = ip_json(&format!("{flag} -details rule"));
        let error = routing.change_rule(Some(&rule), None).unwrap_err();
        assert!(
            error.reason.contains("iif sps0") && error.reason.contains("instead"),
            "{error}"
        );
        assert_eq!(ip_json(&format!("{flag} -details rule")), both);
        // After ours it is in nobody's way.
        ip(&format!(
            "{flag} rule del priority 103 fwmark 1/0xff iif sps0 lookup 103 protocol 103"
        ));
        ip(&format!(
            "{flag} rule add priority 103 fwmark 1/0xff iif sps0 lookup 103 protocol 103"
        ));
        routing.change_rule(Some(&rule), None).unwrap();
        assert!(!routing.rules().unwrap().contains(&rule));
    }
}

#[test]
fn routes_of_ours_are_as_ip_would_have_made_them() {
    if !with_veth("routes_of_ours_are_as_ip_would_have_made_them") {
        return;
    }
    let mut routing = Routing::open().unwrap();
    for family in Family::ALL {
        let flag = family.ip_flag();
        let show = format!("{flag} -details route show table all");
        let (route, fallback) = (our_route(family, 103), our_fallback(family, 103));
        assert_eq!(read_routes(&mut routing, &[103]), []);
        let pristine = ip_json(&show);
        routing.change_route(None, Some(&fallback)).unwrap();
        routing.change_route(None, Some(&route)).unwrap();
        let ours = ip_json(&show);
        // Read alike by table, by protocol, and from a kernel that filters nothing.
        for tables in [&[103][..], &[], &[103, 104, 4_000_000]] {
            let read = read_routes(&mut routing, tables);
            assert_eq!(read, [route.clone(), fallback.clone()], "{tables:?}");
        }
        routing.netlink.forget_strictness();
        let read = read_routes(&mut routing, &[103]);
        assert_eq!(read, [route.clone(), fallback.clone()]);
        routing = Routing::open().unwrap();
        for route in [&route, &fallback] {
            let twice = routing.change_route(None, Some(route)).unwrap_err();
            assert_eq!(twice.kind, FailureKind::Exists, "{twice}");
            routing.change_route(Some(route), None).unwrap();
            let again = routing.change_route(Some(route), None).unwrap_err();
            assert_eq!(again.kind, FailureKind::Gone);
        }
        assert_eq!(ip_json(&show), pristine);
        let via = route.via.unwrap();
        ip(&format!(
            "{flag} route add unreachable default table 103 metric 4294967295 proto 103"
        ));
        ip(&format!(
            "{flag} route add default via {via} dev sps0 table 103 proto 103"
        ));
        assert_eq!(ip_json(&show), ours);
        for route in [&route, &fallback] {
            routing.change_route(Some(route), None).unwrap();
        }
    }
}

/// Everything that `ip route` can say and this kernel has, read, taken away and put back.
#[test]
fn every_route_is_read_removed_and_put_back_exactly() {
    if !with_veth("every_route_is_read_removed_and_put_back_exactly") {
        return;
    }
    ip("address add 10.30.0.5/32 dev sps0");
    ip("address add fd00:30::5/128 dev sps0 nodad");
    let mut routing = Routing::open().unwrap();
    let routes = [
        "default via 10.30.0.2 dev sps0",
        "default dev sps0",
        "192.0.2.0/24 via 10.30.0.2 dev sps0 metric 7 mtu 1400 advmss 1300",
        "192.0.2.0/24 via 10.30.0.2 dev sps0 src 10.30.0.5",
        "192.0.2.1 via 10.99.0.1 dev sps0 onlink",
        "192.0.2.0/24 dev sps0 scope global",
        "192.0.2.0/24 nexthop via 10.30.0.2 dev sps0 weight 2 nexthop via 10.30.0.3 dev sps0",
        "blackhole 192.0.2.0/24",
        "prohibit 192.0.2.0/24",
        "unreachable 192.0.2.0/24 metric 9",
        "throw 192.0.2.0/24",
        "local 192.0.2.9 dev sps0",
        "v4 default via inet6 fd00:30::9 dev sps0",
        "v4 tos 0x10 192.0.2.0/24 via 10.30.0.2 dev sps0",
        "v4 192.0.2.0/24 via 10.30.0.2 dev sps0 realms 5",
        "v4 broadcast 192.0.2.255 dev sps0",
        "v4 multicast 239.0.0.0/8 dev sps0",
        "v6 fd66::/16 via fd00:30::2 dev sps0 pref high",
        "v6 anycast fd66::9 dev sps0",
    ];
    for family in Family::ALL {
        let flag = family.ip_flag();
        let show = format!("{flag} -details route show table 103");
        for route in routes {
            let route = match (route.strip_prefix("v4 "), route.strip_prefix("v6 "), family) {
                (Some(route), _, Family::V4) | (_, Some(route), Family::V6) => route.to_owned(),
                (None, None, Family::V4) => route.to_owned(),
                (None, None, Family::V6) => (route.replace("192.0.2.0/24", "2001:db8::/32"))
                    .replace("192.0.2.", "2001:db8::")
                    .replace("10.30.0.", "fd00:30::")
                    .replace("10.99.0.", "fd00:99::"),
                _ => continue,
            };
            ip(&format!("{flag} route add table 103 proto 250 {route}"));
            let with = ip_json(&show);
            let read = read_routes(&mut routing, &[103]);
            for read in &read {
                routing
                    .change_route(Some(read), None)
                    .unwrap_or_else(|error| panic!("{flag} {route}: {error}\n{read:#?}"));
            }
            assert_eq!(ip_json(&show), Value::Array(Vec::new()), "{route}");
            for read in &read {
                routing
                    .change_route(None, Some(read))
                    .unwrap_or_else(|error| panic!("{flag} {route}: {error}\n{read:#?}"));
            }
            assert_eq!(ip_json(&show), with, "{route}");
            for read in &read {
                routing.change_route(Some(read), None).unwrap();
            }
        }
    }
}

#[test]
fn another_route_is_never_taken_for_ours() {
    if !with_veth("another_route_is_never_taken_for_ours") {
        return;
    }
    let mut routing = Routing::open().unwrap();
    let route = our_route(Family::V4, 103);
    // Appended ones may differ in no more than the type of service, or stand before
    // ours with more attributes than ours.
    for before in [
        "default via 10.30.0.2 dev sps0 table 103 proto 103 src 10.30.0.1",
        "default via 10.30.0.2 dev sps0 table 103 proto 103 mtu 1400",
    ] {
        ip(&format!("route append {before}"));
        ip("route append default via 10.30.0.2 dev sps0 table 103 proto 103");
        let both = ip_json("-details route show table 103");
        assert!(
            read_routes(&mut routing, &[103]).contains(&route),
            "{before}"
        );
        let error = routing.change_route(Some(&route), None).unwrap_err();
        assert!(error.reason.contains("instead"), "{error}");
        let new = Route {
            via: Some("10.30.0.3".parse().unwrap()),
            ..route.clone()
        };
        let error = routing.change_route(Some(&route), Some(&new)).unwrap_err();
        assert!(error.reason.contains("instead"), "{error}");
        assert_eq!(ip_json("-details route show table 103"), both);
        ip("route flush table 103");
    }
    // These are not in the way, and stay.
    for other in [
        "default via 10.30.0.2 dev sps0 table 103 proto 4 metric 5",
        "default via 10.30.0.2 dev sps0 table 103 proto 103 metric 6",
        "default via 10.30.0.2 dev sps0 table 104 proto 103",
        "0.0.0.0/1 via 10.30.0.2 dev sps0 table 103 proto 103",
        "tos 0x10 default via 10.30.0.2 dev sps0 table 103 proto 103",
    ] {
        ip(&format!("route add {other}"));
    }
    let foreign = ip_json("-details route show table all");
    let error = routing.change_route(Some(&route), None).unwrap_err();
    assert_eq!(error.kind, FailureKind::Gone);
    routing.change_route(None, Some(&route)).unwrap();
    routing.change_route(Some(&route), None).unwrap();
    assert_eq!(ip_json("-details route show table all"), foreign);

    let route = our_route(Family::V6, 103);
    for other in [
        "default via fd00:30::2 dev sps0 table 103 proto 4 metric 5",
        "default via fd00:30::2 dev sps0 table 103 proto 103 metric 6",
        "default via fd00:30::2 dev sps0 table 104 proto 103",
        "::/1 via fd00:30::2 dev sps0 table 103 proto 103",
    ] {
        ip(&format!("-6 route add {other}"));
    }
    let foreign = ip_json("-6 -details route show table all");
    let error = routing.change_route(Some(&route), None).unwrap_err();
    assert_eq!(error.kind, FailureKind::Gone);
    routing.change_route(None, Some(&route)).unwrap();
    routing.change_route(Some(&route), None).unwrap();
    assert_eq!(ip_json("-6 -details route show table all"), foreign);
}

#[test]
fn a_route_is_replaced_in_one_step() {
    if !with_veth("a_route_is_replaced_in_one_step") {
        return;
    }
    with_second_veth();
    let mut routing = Routing::open().unwrap();
    for family in Family::ALL {
        let route = our_route(family, 103);
        let fallback = our_fallback(family, 103);
        let elsewhere = Route {
            via: Some(match family {
                Family::V4 => "10.40.0.2".parse().unwrap(),
                Family::V6 => "fd00:40::2".parse().unwrap(),
            }),
            interface: Some(name("cli0")),
            ..route.clone()
        };
        let nowhere = Route {
            metric: route.metric,
            ..fallback.clone()
        };
        routing.change_route(None, Some(&fallback)).unwrap();
        routing.change_route(None, Some(&route)).unwrap();
        for (from, to) in [
            (&route, &elsewhere),
            (&elsewhere, &nowhere),
            (&nowhere, &route),
        ] {
            routing.change_route(Some(from), Some(to)).unwrap();
            let read = read_routes(&mut routing, &[103]);
            let read: Vec<_> = read.into_iter().filter(|r| r.family == family).collect();
            assert_eq!(read, [to.clone(), fallback.clone()], "{from} -> {to}");
            let error = routing.change_route(Some(from), Some(to)).unwrap_err();
            assert_eq!(error.kind, FailureKind::Gone);
        }
        let error = routing
            .change_route(Some(&route), Some(&fallback))
            .unwrap_err();
        assert!(error.reason.contains("another place"), "{error}");
    }
}

#[test]
fn refusals_say_what_the_kernel_says_and_what_to_do() {
    if !with_veth("refusals_say_what_the_kernel_says_and_what_to_do") {
        return;
    }
    let mut routing = Routing::open().unwrap();
    let far = Route {
        via: Some("192.0.2.1".parse().unwrap()),
        ..our_route(Family::V4, 103)
    };
    let error = routing.change_route(None, Some(&far)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot add the IPv4 route `default via 192.0.2.1 dev sps0 table 103 proto 103`: \
         Nexthop has invalid gateway (Network is unreachable)"
    );
    assert_eq!(
        error.hint.as_deref(),
        Some(
            "`sps0` must be up and 192.0.2.1 in one of its networks: see \
             `ip address show dev sps0`"
        )
    );
    let nowhere = Route {
        interface: Some(name("nobody0")),
        ..our_route(Family::V4, 103)
    };
    let error = routing.change_route(None, Some(&nowhere)).unwrap_err();
    assert_eq!(
        error.hint.as_deref(),
        Some("there is no interface `nobody0`")
    );
    ip("link set sps0 down");
    let error = routing
        .change_route(None, Some(&our_route(Family::V4, 103)))
        .unwrap_err();
    assert_eq!(
        error.hint.as_deref(),
        Some(
            "`sps0` must be up and 10.30.0.2 in one of its networks: see \
             `ip address show dev sps0`"
        ),
        "{error}"
    );
}

#[test]
fn links_addresses_and_neighbours_are_read() {
    if !with_veth("links_addresses_and_neighbours_are_read") {
        return;
    }
    ip("link add br0 type bridge");
    ip("link set far0 master br0");
    ip("address add 10.50.0.1 peer 10.50.0.2 dev sps0");
    ip("address add 10.60.0.1/24 dev br0");
    ip("neighbour add 10.30.0.2 lladdr 02:00:5e:00:00:01 dev sps0 nud permanent");
    ip("neighbour add fd00:30::2 lladdr 02:00:5e:00:00:02 dev sps0 nud stale");
    ip("neighbour add 10.60.0.2 lladdr 02:00:5e:00:00:03 dev br0 nud permanent");
    let mut routing = Routing::open().unwrap();
    let links = routing.links().unwrap();
    let witness = ip_json("-details link");
    let witness = witness.as_array().unwrap();
    assert_eq!(links.len(), witness.len());
    for (link, json) in links.iter().zip(witness) {
        assert_eq!(json["ifname"], link.name.as_str());
        assert_eq!(json["ifindex"], link.index);
        let flags = json["flags"].as_array().unwrap();
        assert_eq!(flags.contains(&"UP".into()), link.up);
        assert_eq!(flags.contains(&"LOWER_UP".into()), link.running);
        let kind = json["linkinfo"]["info_kind"].as_str();
        assert_eq!(kind, link.kind.as_deref());
        let mac = (json["link_type"] == "ether").then(|| json["address"].as_str().unwrap());
        assert_eq!(mac.map(str::to_owned), link.mac.map(|mac| mac.to_string()));
        let master = links.iter().find(|other| Some(other.index) == link.master);
        let master = master.map(|link| link.name.as_str());
        assert_eq!(json["master"].as_str(), master);
    }
    let index = |name: &str| {
        links
            .iter()
            .find(|l| l.name.as_str() == name)
            .unwrap()
            .index
    };
    let addresses = routing.addresses().unwrap();
    let address = |link: &str, network: &str, peer: Option<&str>| Address {
        link: index(link),
        network: network.parse().unwrap(),
        peer: peer.map(|peer| peer.parse().unwrap()),
    };
    for wanted in [
        address("sps0", "10.30.0.1/24", None),
        address("sps0", "10.50.0.1/32", Some("10.50.0.2")),
        address("sps0", "fd00:30::1/64", None),
        address("br0", "10.60.0.1/24", None),
        address("lo", "127.0.0.1/8", None),
    ] {
        assert!(addresses.contains(&wanted), "{wanted:?} in {addresses:?}");
    }
    let a = links.iter().find(|link| link.name == name("sps0")).unwrap();
    let neighbours = routing.neighbours(a).unwrap();
    let mut known: Vec<_> = (neighbours.into_iter())
        .filter_map(|one| Some((one.address.to_string(), one.mac?.to_string(), one.state)))
        .filter(|(_, mac, _)| mac.starts_with("02:00:5e"))
        .collect();
    known.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        known,
        [
            (
                "10.30.0.2".into(),
                "02:00:5e:00:00:01".into(),
                NeighbourState::Permanent
            ),
            (
                "fd00:30::2".into(),
                "02:00:5e:00:00:02".into(),
                NeighbourState::Stale
            ),
        ]
    );
}

#[test]
fn the_kernel_says_where_a_packet_goes() {
    if !with_veth("the_kernel_says_where_a_packet_goes") {
        return;
    }
    with_second_veth();
    let mut routing = Routing::open().unwrap();
    for family in Family::ALL {
        let network = |part: u8, host: u8| -> IpAddr {
            match family {
                Family::V4 => format!("10.{part}.0.{host}").parse().unwrap(),
                Family::V6 => format!("fd00:{part}::{host}").parse().unwrap(),
            }
        };
        let name_of_table = TableId(103);
        routing.change_rule(None, Some(&our_rule(family))).unwrap();
        routing
            .change_route(None, Some(&our_fallback(family, 103)))
            .unwrap();
        routing
            .change_route(None, Some(&our_route(family, 103)))
            .unwrap();
        let (client, server) = (network(40, 9), network(30, 200));
        let question = Question::forwarded(client, server, &name("cli0"));
        if family == Family::V4 {
            write("/proc/sys/net/ipv4/conf/all/forwarding", "0");
            let answer = routing.lookup(&question).unwrap();
            assert_eq!(answer, Answer::Refused(Errno::EHOSTUNREACH));
        }
        write("/proc/sys/net/ipv4/conf/all/forwarding", "1");
        write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
        let unmarked = Way {
            kind: RouteKind::Unicast,
            via: None,
            interface: Some(name("sps0")),
            table: TableId::MAIN,
        };
        let marked = Way {
            via: Some(network(30, 2)),
            table: name_of_table,
            ..unmarked.clone()
        };
        assert_eq!(routing.lookup(&question).unwrap(), Answer::Route(unmarked));
        let question = question.marked(0x7701);
        assert_eq!(
            routing.lookup(&question).unwrap(),
            Answer::Route(marked.clone())
        );
        // The router's own.
        let own = Question {
            from: None,
            input: None,
            ..question.clone()
        };
        assert_eq!(routing.lookup(&own).unwrap(), Answer::Route(marked));
        // To the router itself.
        let local = Question::forwarded(client, network(30, 1), &name("cli0"));
        let Answer::Route(way) = routing.lookup(&local).unwrap() else {
            panic!("refused");
        };
        assert_eq!(way.kind, RouteKind::Other(2));
        // Our fallback.
        routing
            .change_route(Some(&our_route(family, 103)), None)
            .unwrap();
        let answer = routing.lookup(&question).unwrap();
        match family {
            Family::V4 => assert!(matches!(answer, Answer::Refused(_)), "{answer:?}"),
            Family::V6 => assert!(
                matches!(
                    &answer,
                    Answer::Refused(Errno::EHOSTUNREACH | Errno::ENETUNREACH)
                ),
                "{answer:?}"
            ),
        }
    }
    let nobody = Question::forwarded(
        "10.40.0.9".parse().unwrap(),
        "10.30.0.200".parse().unwrap(),
        &name("nobody0"),
    );
    let error = routing.lookup(&nobody).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot look up the way to 10.30.0.200: No such device"
    );
}

#[test]
fn a_rule_by_port_answers_for_tcp_alone() {
    if !with_veth("a_rule_by_port_answers_for_tcp_alone") {
        return;
    }
    ip("rule add priority 50 ipproto tcp dport 3389 lookup 105");
    ip("route add default via 10.30.0.9 dev sps0 table 105");
    let mut routing = Routing::open().unwrap();
    let mut question = Question {
        to: "192.0.2.1".parse().unwrap(),
        from: None,
        input: None,
        mark: 0,
        tcp_ports: Some((50_000, 3389)),
    };
    let Answer::Route(way) = routing.lookup(&question).unwrap() else {
        panic!("refused");
    };
    assert_eq!(way.table, TableId(105));
    question.tcp_ports = Some((50_000, 3390));
    let answer = routing.lookup(&question).unwrap();
    assert_eq!(answer, Answer::Refused(Errno::ENETUNREACH));
}

#[test]
fn a_lookup_runs_reverse_path_filtering() {
    if !with_veth("a_lookup_runs_reverse_path_filtering") {
        return;
    }
    with_second_veth();
    write("/proc/sys/net/ipv4/conf/all/forwarding", "1");
    write("/proc/sys/net/ipv4/conf/all/rp_filter", "0");
    write("/proc/sys/net/ipv4/conf/cli0/rp_filter", "1");
    let mut routing = Routing::open().unwrap();
    let spoofed = Question::forwarded(
        "10.30.0.7".parse().unwrap(),
        "10.30.0.200".parse().unwrap(),
        &name("cli0"),
    );
    let answer = routing.lookup(&spoofed).unwrap();
    assert!(
        matches!(answer, Answer::Refused(Errno::EXDEV | Errno::EINVAL)),
        "{answer:?}"
    );
    write("/proc/sys/net/ipv4/conf/cli0/rp_filter", "2");
    let answer = routing.lookup(&spoofed).unwrap();
    assert!(matches!(answer, Answer::Route(_)), "{answer:?}");
}

// What Linux 6.18 answers, after the message header, once the command above each was given.

/// `ip rule add priority 103 fwmark 1/0xff lookup 103 protocol 103`
const RULE: &str = "02000000670000010000000008000f006700000008000e00ffffffff05001500670000000800060067\
    00000008000a000100000008001000ff000000";
/// `ip -6 rule add priority 77 not from fd00::/8 iif sps0
/// ipproto tcp dport 3389 lookup 300 suppress_prefixlength 0`
const RULE_OF_OTHERS: &str = "0a000800fc0000010200000008000f002c01000008000e000000000005001500000000000900\
    03007370733000000000080006004d000000080018003d0d3d0d06001d00ffff0000050016000600000014000200fd00\
    0000000000000000000000000000";
/// `ip route add default via 10.30.0.2 dev sps0 table 103 proto 103`
const ROUTE: &str = "02000000676700010000000008000f0067000000080005000a1e00020800040003000000";
/// `ip -6 route add unreachable default table 103 metric 4294967295 proto 103`
const FALLBACK: &str = "0a000000676700070000000008000f006700000008000600ffffffff080004000100000024000c00\
    00000000000000000000000000000000000000000000000000000000000000000500140000000000";
/// `ip address add 10.30.0.1/24 dev sps0`
const ADDRESS: &str = "0218800003000000080001000a1e0001080002000a1e0001090003007370733000000000080008008000\
    000014000600ffffffffffffffff10e0090010e00900";
/// `ip link add sps0 type veth peer name far0; ip link set sps0 up` (some attributes left out)
const LINK: &str = "00000100030000004310010000000000090003007370733000000000080008003000000005001000060000\
    000a00010076ebe6d423fc00000a000200ffffffffffff0000100012000900010076657468000000000800050002000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn names() -> Names {
    [(1, name("lo")), (3, name("sps0"))].into()
}

#[test]
fn captures_are_read() {
    assert_eq!(
        message::parse_rule(&bytes(RULE)).unwrap(),
        Some(our_rule(Family::V4))
    );
    let others = message::parse_rule(&bytes(RULE_OF_OTHERS))
        .unwrap()
        .unwrap();
    assert_eq!(
        others.to_string(),
        "priority 77 not from fd00::/8 iif sps0 ipproto 6 dport 3389-3389 lookup 300 \
         suppress_prefixlength 0 protocol 0 (attribute 0x1d)"
    );
    assert_eq!(
        message::parse_route(&bytes(ROUTE), &names()).unwrap(),
        Some(our_route(Family::V4, 103))
    );
    assert_eq!(
        message::parse_route(&bytes(FALLBACK), &names()).unwrap(),
        Some(our_fallback(Family::V6, 103))
    );
    // A link that has come since they were listed: known by number alone, and not ours.
    let route = message::parse_route(&bytes(ROUTE), &Names::new()).unwrap();
    assert_eq!(route.unwrap().others, [(4, vec![3, 0, 0, 0])]);
    let address = message::parse_address(&bytes(ADDRESS)).unwrap().unwrap();
    assert_eq!(
        (address.link, address.network.to_string(), address.peer),
        (3, "10.30.0.1/24".to_owned(), None)
    );
    let link = message::parse_link(&bytes(LINK)).unwrap().unwrap();
    assert_eq!(
        link,
        Link {
            index: 3,
            name: name("sps0"),
            up: true,
            running: true,
            mac: Some("76:eb:e6:d4:23:fc".parse().unwrap()),
            kind: Some("veth".to_owned()),
            master: None,
        }
    );
}

proptest::proptest! {
    /// Whatever bytes come, nothing panics; and a rule or route that can be read at all is the
    /// same after it was written and read again.
    #[test]
    fn what_can_be_read_can_be_written(
        which in 0_usize..6,
        damage in proptest::collection::vec(proptest::prelude::any::<(u16, u8)>(), 0..6),
        length in proptest::option::of(0_usize..128),
    ) {
        let mut bytes = bytes([RULE, RULE_OF_OTHERS, ROUTE, FALLBACK, ADDRESS, LINK][which]);
        for (at, byte) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(length.unwrap_or(bytes.len()));
        let _ = message::parse_link(&bytes);
        let _ = message::parse_address(&bytes);
        let _ = message::parse_neighbour(&bytes, 3);
        let _ = message::parse_answer(&bytes);
        if let Ok(Some(rule)) = message::parse_rule(&bytes) {
            let _ = rule.to_string();
            let written = message::build_rule(&rule);
            let again = message::parse_rule(written.as_bytes());
            // Attributes that came twice count once.
            if let Ok(Some(again)) = again {
                let twice = message::parse_rule(message::build_rule(&again).as_bytes());
                proptest::prop_assert_eq!(twice, Ok(Some(again)));
            }
        }
        if let Ok(Some(route)) = message::parse_route(&bytes, &names()) {
            let _ = route.to_string();
            let output = route.interface.as_ref().map(|name| if name.as_str() == "lo" { 1 } else { 3 });
            let written = message::build_route(&route, output);
            let again = message::parse_route(written.as_bytes(), &names());
            if let Ok(Some(again)) = again {
                let written = message::build_route(&again, output);
                let twice = message::parse_route(written.as_bytes(), &names());
                proptest::prop_assert_eq!(twice, Ok(Some(again)));
            }
        }
    }
}
