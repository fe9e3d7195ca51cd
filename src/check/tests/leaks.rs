//! What lets sessions past the appliance, and what the router itself takes.

use super::*;

#[test]
fn a_leak_is_called_one() {
    let wipes_packet = r#"{"mangle":{"key":{"meta":{"key":"mark"}},"value":0}}"#;
    let wipes_both =
        format!(r#"{{"mangle":{{"key":{{"ct":{{"key":"mark"}}}},"value":0}}}},{wipes_packet}"#);
    let why = |world: &mut World, code: &str| {
        let report = world.check();
        let found = report.findings.iter().find(|found| found.code == code);
        found.map_or_else(String::new, |found| found.why.clone())
    };
    let mut world = World::new(POLICY).applied();
    world.nft(wipes_packet, "prerouting", -100);
    assert!(why(&mut world, "mark-overwritten").ends_with("the seal refuses them"));
    world.nft(&wipes_both, "prerouting", -100);
    assert!(why(&mut world, "mark-overwritten").ends_with("unrecorded"));
    let open = format!("{POLICY}[options]\non_appliance_down = \"bypass\"\n");
    let mut world = World::new(&open).applied();
    world.nft(wipes_packet, "prerouting", -100);
    assert!(why(&mut world, "mark-overwritten").ends_with("unrecorded"));
    let leg = &world.check().sessions[0].legs[0];
    assert_eq!(
        (leg.outcome, leg.because),
        (Outcome::Astray, Some("mark-overwritten"))
    );
}

#[test]
fn a_connection_mark_may_be_wiped_behind_the_routes_too() {
    let wipe = r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":0}}"#;
    for hook in ["prerouting", "forward", "postrouting"] {
        let mut world = World::new(POLICY).applied();
        world.nft(wipe, hook, 10);
        assert_eq!(world.codes(), ["connmark-overwritten"], "{hook}");
    }
    let mut world = World::new(POLICY).applied();
    world.nft(wipe, "prerouting", -150);
    assert_eq!(world.codes(), [""; 0], "before ours");
}

#[test]
fn a_foreign_route_in_our_table_is_named_and_its_removal_mends_it() {
    let mut world = World::new(POLICY).applied();
    world.observed.routes.push(Route {
        destination: Some("10.20.0.0/24".parse().unwrap()),
        ..route(103)
    });
    let report = world.check();
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert_eq!(report.findings[0].code, "foreign-route");
    assert!(report.findings[0].is_acute());
    assert_eq!(
        report.findings[0].mend,
        ["ip -4 route del 10.20.0.0/24 via 10.40.0.2 dev eth2 table 103"]
    );
    assert_eq!(report.sessions[0].legs[0].because, Some("foreign-route"));
}

#[test]
fn ipv6_past_a_redirect_of_ipv4_is_told_before_anybody_goes_there() {
    let only_v4 = POLICY.replace(", \"fd00:20::/64\"", "");
    let mut world = World::new(&only_v4);
    let report = world.check();
    assert!(report.is_sound());
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert_eq!(
        report.findings[0].found,
        "servers on `eth1` may have addresses of fd00:20::/64, too, which no redirect covers"
    );
    // No problem on this router: it forwards no IPv6; clients have none; servers have none.
    world
        .surroundings
        .settings
        .insert("net/ipv6/conf/all/forwarding".to_owned(), 0);
    assert_eq!(world.codes(), [""; 0]);
    for link in [1, 2] {
        let mut world = World::new(&only_v4);
        let keeps = |found: &Address| found.link != link || found.network.addr().is_ipv4();
        world.observed.addresses.retain(keeps);
        assert_eq!(world.codes(), [""; 0], "{link}");
    }
    // Somebody has thought of it.
    let part = POLICY.replace("fd00:20::/64", "fd00:20::1:0/112");
    assert_eq!(World::new(&part).codes(), [""; 0]);
    // By what the router has.
    let mut world = World::new(&only_v4);
    world.surroundings.rules = iptables::read(
        "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n",
        System::IptablesLegacy,
        Family::V6,
        "ip6tables-legacy",
    );
    assert_eq!(
        world.check().findings[0].mend,
        [
            "ip6tables-legacy -I FORWARD -i eth0 -d fd00:20::/64 -p tcp -m multiport --dports 3389,5900:5910 -j REJECT"
        ]
    );
}

#[test]
fn a_router_that_listens_among_its_servers_is_told() {
    let mut world = World::new(POLICY);
    let listens = |world: &mut World, at: &str| {
        world.surroundings.listeners = vec![at.parse().unwrap()];
        world.codes()
    };
    assert_eq!(listens(&mut world, "0.0.0.0:22"), [""; 0]);
    assert_eq!(listens(&mut world, "10.30.0.1:3389"), [""; 0]);
    for at in ["0.0.0.0:3389", "10.20.0.1:5901", "[::]:3389"] {
        assert_eq!(listens(&mut world, at), ["router-among-servers"], "{at}");
    }
    world.surroundings.listeners = vec!["[fd00:20::1]:3389".parse().unwrap()];
    let report = world.check();
    assert!(report.is_sound());
    assert_eq!(
        report.findings[0].mend,
        [
            r#"sed -i '/^[[:blank:]]*name[[:blank:]]*=[[:blank:]]*"rdp"/a except_server = "fd00:20::1"' policy.toml"#
        ]
    );
    let excepted = POLICY.replace(
        "snat",
        "except_server = [\"10.20.0.1\", \"fd00:20::1\"]\nsnat",
    );
    assert_eq!(listens(&mut World::new(&excepted), "[::]:3389"), [""; 0]);
}
