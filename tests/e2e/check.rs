//! A router, spoilt in one way at a time: `check` names it, what it prints mends it, and
//! `trace` says beforehand what real packets then do. And a router on which the vendor's
//! procedure was typed by hand, moved over without a leak.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, Mode, SERVERS, Session, Way, skipped, under_test};

const POLICY: &str = r#"version = 1
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
except_client = "10.10.0.99"
except_server = "10.20.0.53"
"#;

/// When a router is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before apply.
    Before,
    /// After it.
    After,
}
use When::{After, Before};

type Spoilt = (When, &'static str, &'static str);

/// When, what spoils the router, and what `check` must then call it.
const SETTINGS: &[Spoilt] = &[
    (Before, "sysctl -qw net.ipv4.ip_forward=0", "forwarding-off"),
    (After, "sysctl -qw net.ipv4.ip_forward=0", "forwarding-off"),
    (
        After,
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "forwarding-off",
    ),
    (
        After,
        "sysctl -qw net.ipv4.conf.eth1.forwarding=0",
        "forwarding-off",
    ),
    (
        After,
        "sysctl -qw net.ipv4.conf.sps0.rp_filter=1",
        "rp-filter-strict",
    ),
    (
        Before,
        "sysctl -qw net.ipv4.conf.all.src_valid_mark=1",
        "src-valid-mark",
    ),
    (
        After,
        "sysctl -qw net.ipv4.conf.eth1.src_valid_mark=1",
        "src-valid-mark",
    ),
    (After, "ip link set sps0 down", "interface-down"),
    (After, "ip rule del priority 103", "drift"),
    (After, "ip -6 route del default table 103", "drift"),
    (After, "nft delete table inet scb-redirect", "drift"),
    (
        After,
        "ip neighbour replace 10.30.0.2 dev sps0 nud failed",
        "appliance-silent",
    ),
    (
        After,
        "cp /bin/sleep /run/systemd-networkd; setsid /run/systemd-networkd 120 >/dev/null 2>&1 & sleep 0.2",
        "networkd-foreign",
    ),
];

const ROUTING: &[Spoilt] = &[
    (
        Before,
        "ip rule add priority 50 iif eth0 lookup 200; ip route add 10.20.0.0/24 via 10.40.0.2 table 200; sysctl -qw net.ipv4.conf.eth2.rp_filter=2",
        "rule-before-ours",
    ),
    (
        After,
        "ip -6 rule add priority 50 iif eth0 lookup 200; ip -6 route add fd00:20::/64 via fd00:40::2 table 200",
        "rule-before-ours",
    ),
    (
        After,
        "nft 'table inet qos { chain pre { type filter hook prerouting priority mangle; iifname \"eth0\" meta mark set meta mark or 0x100; }; }'; ip rule add priority 50 fwmark 0x100/0x100 lookup 200; ip route add 10.20.0.0/24 via 10.40.0.2 table 200",
        "rule-before-ours",
    ),
    (
        After,
        "iptables-nft -t mangle -A PREROUTING -i sps0 -j MARK --or-mark 0x100; ip rule add priority 50 fwmark 0x100/0x100 lookup 200; ip route add 10.20.0.0/24 via 10.40.0.2 table 200",
        "rule-before-ours",
    ),
    (
        After,
        "ip rule add priority 60 fwmark 0x1 lookup 200; ip route add default via 10.40.0.2 table 200",
        "mark-bits-shared",
    ),
    (
        After,
        "nft 'table inet qos { chain pre { type filter hook prerouting priority mangle; ip dscp ef meta mark set 0x1; }; }'",
        "mark-bits-shared",
    ),
    (
        Before,
        "iptables-nft -t mangle -A PREROUTING -i eth2 -j CONNMARK --or-mark 0x1",
        "mark-bits-shared",
    ),
    (
        After,
        "nft 'table inet qos { chain pre { type filter hook prerouting priority dstnat; tcp dport 3389 meta mark set 0x10; }; }'",
        "mark-overwritten",
    ),
    (
        After,
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 3389 -j ACCEPT; nft 'table inet qos { chain pre { type filter hook prerouting priority -100; ct mark set 0x20; }; }'",
        "connmark-overwritten",
    ),
    (
        After,
        "nft 'table ip nat { chain post { type nat hook postrouting priority srcnat; oifname \"sps0\" masquerade; }; }'",
        "client-hidden",
    ),
    (
        After,
        "iptables-legacy -A INPUT -p udp --dport 9 -j ACCEPT; iptables-nft -A INPUT -p udp --dport 9 -j ACCEPT",
        "iptables-both",
    ),
];

const FILTERS: &[Spoilt] = &[
    (
        After,
        "nft 'table ip nat { chain pre { type nat hook prerouting priority dstnat; ip daddr 10.20.0.2 tcp dport 3389 dnat to 10.20.0.2:8080; }; }'",
        "dnat-astray",
    ),
    (
        After,
        "nft 'table ip nat { chain pre { type nat hook prerouting priority dstnat; iifname \"eth0\" tcp dport 3389 redirect to :9; }; }'",
        "dnat-to-router",
    ),
    (
        Before,
        "iptables-nft -t nat -A PREROUTING -i eth0 -p tcp --dport 3389 -j DNAT --to-destination 10.40.0.1",
        "dnat-to-router",
    ),
    (
        Before,
        "nft 'table inet rp { chain pre { type filter hook prerouting priority raw + 10; fib saddr . iif oif missing drop; }; }'",
        "fib-filter",
    ),
    (
        After,
        "nft 'table inet rp { chain pre { type filter hook prerouting priority mangle; fib saddr . mark . iif oif missing log prefix \"spoof \" drop; }; }'",
        "fib-filter",
    ),
    (
        After,
        "iptables-nft -t raw -A PREROUTING -m rpfilter --invert -j DROP",
        "fib-filter",
    ),
    (
        After,
        "nft 'table inet raw { chain pre { type filter hook prerouting priority raw; tcp dport 3389 notrack; tcp sport 3389 notrack; }; }'",
        "notrack",
    ),
    (
        Before,
        "iptables-nft -t raw -A PREROUTING -p tcp --dport 3389 -j CT --notrack",
        "notrack",
    ),
    (
        Before,
        "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -A FORWARD -i docker0 -j ACCEPT",
        "forward-drop",
    ),
    (
        After,
        "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i eth0 -o eth1 -j ACCEPT; iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "forward-drop",
    ),
    (
        After,
        "nft 'table inet filter { chain forward { type filter hook forward priority filter; policy drop; ct state vmap { established : accept, related : accept }; iifname \"eth0\" oifname \"eth1\" accept; iifname \"sps0\" jump from_sps; }; chain from_sps { ip daddr 10.20.0.0/24 drop; accept; }; }'",
        "forward-drop",
    ),
];

/// `redirect` and `systemctl` as the printed commands call them.
fn tools(lab: &Lab) {
    lab.router(&format!(
        "mkdir -p /run/bin; ln -sf {} /run/bin/redirect; ln -sf /bin/true /run/bin/systemctl",
        under_test()
    ));
}

fn check(lab: &Lab) -> (i32, Value) {
    let outcome = lab.redirect(&["check", "--json"]);
    let report = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|_| panic!("{}{}", outcome.stdout, outcome.stderr));
    (outcome.code, report)
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    let mut codes: Vec<&str> = findings
        .iter()
        .map(|finding| finding["code"].as_str().unwrap())
        .collect();
    codes.dedup();
    codes
}

/// Runs the commands that are printed, as printed, until nothing is found any more.
fn mend(lab: &Lab, why: &str) {
    let mut ran = String::new();
    for _ in 0..10 {
        let (code, report) = check(lab);
        let Some(finding) = report["findings"].get(0) else {
            assert_eq!(code, 0, "{why}");
            return;
        };
        let commands: Vec<&str> = finding["mend"]
            .as_array()
            .unwrap()
            .iter()
            .map(|command| command.as_str().unwrap())
            .collect();
        let script = commands.join("\n");
        ran.push_str(&script);
        ran.push('\n');
        lab.router(&format!("export PATH=/run/bin:$PATH\n{script}\n"));
        if finding["code"] == "appliance-silent" {
            // The appliance is there again as soon as somebody asks.
            lab.ask("client", SERVERS[0], 3389);
        }
    }
    let (_, report) = check(lab);
    panic!("{why}: not mended by\n{ran}which leaves\n{report:#}");
}

fn is_recorded(session: &Session) -> bool {
    session.way() == Some(Way::Recorded)
}

/// Whether `trace` says that such a session is redirected.
fn traced(lab: &Lab, from: &str, to: &str, interface: &str) -> bool {
    traced_with(
        lab,
        &["trace", "--from", from, "--to", to, "--in", interface],
    )
}

fn traced_with(lab: &Lab, words: &[&str]) -> bool {
    let outcome = lab.redirect(words);
    assert!(matches!(outcome.code, 0 | 2), "{}", outcome.stderr);
    outcome.code == 0
}

const TRACE: &str = "\
10.10.0.2:50000 to 10.20.0.2:3389, in on `eth0`: redirected by `rdp` through appliance `scb`

leg 1, client to appliance: 10.10.0.2:50000 to 10.20.0.2:3389, in on `eth0`
  marks   `rdp: from clients` takes it: packet mark 0x1, connection mark 0x1
  route   rule 103 fwmark 0x1/0xff -> table 103 (scb): via 10.30.0.2 dev sps0
  kernel  via 10.30.0.2 dev sps0: ok

leg 2, appliance to server: 10.10.0.2:50000 to 10.20.0.2:3389, in on `sps0`
  marks   `rdp: from the appliance` takes it: packet mark 0x0, connection mark 0x1
  route   unmarked, as ever: dev eth1
  kernel  dev eth1: ok

leg 3, server to appliance: 10.20.0.2:3389 to 10.10.0.2:50000, in on `eth1`
  marks   its connection is marked: packet mark 0x1, connection mark 0x1
  route   rule 103 fwmark 0x1/0xff -> table 103 (scb): via 10.30.0.2 dev sps0
  kernel  via 10.30.0.2 dev sps0: ok

leg 4, appliance to client: 10.20.0.2:3389 to 10.10.0.2:50000, in on `sps0`
  marks   from the appliance, so its packets stay unmarked: packet mark 0x0, connection mark 0x1
  route   unmarked, as ever: dev eth0
  kernel  dev eth0: ok
";

fn spoil(test: &str, spoilt: &[Spoilt]) {
    for (number, (when, how, code)) in spoilt.iter().enumerate() {
        let Some(lab) = Lab::up(&format!("{test}-{number}"), &[]) else {
            return;
        };
        tools(&lab);
        lab.mode(Mode::ClientAddress);
        if *when == After {
            lab.apply(POLICY);
        } else {
            lab.policy(POLICY);
        }
        lab.router(how);
        let (exit, report) = check(&lab);
        let found = codes(&report);
        assert!(found.contains(code), "{how}: {report:#}");
        let errors = report["findings"].as_array().unwrap();
        let is_error = errors.iter().any(|finding| finding["severity"] == "error");
        assert_eq!(exit, if is_error { 2 } else { 0 }, "{how}");
        // A host's neighbour that did not answer once is asked again.
        if *when == After && *code != "appliance-silent" {
            let said = traced(&lab, "10.10.0.2", "10.20.0.2:3389", "eth0");
            let session = lab.ask("client", SERVERS[0], 3389);
            assert_eq!(
                is_recorded(&session),
                said,
                "trace and {session:?} after {how}"
            );
        }
        mend(&lab, how);
        if *when == Before {
            lab.redirect(&["apply"]).ended(0);
            mend(&lab, how);
        }
        for server in SERVERS {
            let session = lab.ask("client", server, 3389);
            assert!(is_recorded(&session), "{server} {session:?} after {how}");
        }
    }
}

#[test]
fn check_names_settings_and_what_it_prints_mends_them() {
    spoil("check-settings", SETTINGS);
}

#[test]
fn check_names_routing_and_marks_and_what_it_prints_mends_them() {
    spoil("check-routing", ROUTING);
}

#[test]
fn check_names_filters_and_what_it_prints_mends_them() {
    spoil("check-filters", FILTERS);
    skipped(
        "check of flowtables and VRFs with real packets",
        "this kernel has neither; see the unit tests in src/check",
    );
}

/// What sends sessions to the router on to the server: to which port they are opened.
const FORWARDS: [(&str, u16); 3] = [
    // As early as any may be, and late.
    (
        "nft 'table ip nat { chain pre { type nat hook prerouting priority -199; ip daddr 10.10.0.1 tcp dport 13389 dnat to 10.20.0.2:3389; }; }'",
        13389,
    ),
    (
        "nft 'table ip nat { map m { type inet_service : ipv4_addr . inet_service; elements = { 13389 : 10.20.0.2 . 3389 }; }; chain pre { type nat hook prerouting priority 0; ip daddr 10.10.0.1 dnat ip addr . port to tcp dport map @m; }; }'",
        13389,
    ),
    (
        "iptables-nft -t nat -N FORWARDED; iptables-nft -t nat -A PREROUTING -d 10.10.0.1 -i eth0 -j FORWARDED; iptables-nft -t nat -A FORWARDED -p tcp --dport 3389 -j DNAT --to-destination 10.20.0.2",
        3389,
    ),
];

#[test]
fn port_forwarding_past_us_is_named_and_what_check_prints_has_it_recorded() {
    for (number, (how, port)) in FORWARDS.into_iter().enumerate() {
        let Some(lab) = Lab::up(&format!("check-forward-{number}"), &[]) else {
            return;
        };
        tools(&lab);
        lab.mode(Mode::ClientAddress);
        lab.apply(POLICY);
        lab.router(how);
        let opened = format!("10.10.0.1:{port}");
        assert_eq!(
            lab.ask("client", "10.10.0.1", port).way(),
            Some(Way::Direct),
            "{how}"
        );
        let (code, report) = check(&lab);
        assert_eq!((code, codes(&report)), (2, vec!["dnat-past-us"]), "{how}");
        let words = ["trace", "--from", "10.10.0.2", "--to", &opened];
        let said = lab.redirect(&words).ended(2).stdout;
        assert!(said.contains("not redirected, goes dev eth1"), "{said}");
        assert!(said.contains("our rules look before that"), "{said}");
        mend(&lab, how);
        let session = lab.ask("client", "10.10.0.1", port);
        assert!(is_recorded(&session), "{session:?} after {how}");
        let said = lab.redirect(&words).ended(0).stdout;
        assert!(said.contains("redirected by `rdp`"), "{said}");
        for server in SERVERS {
            assert!(is_recorded(&lab.ask("client", server, 3389)), "{server}");
        }
    }
}

#[test]
fn what_drops_invalid_packets_breaks_appliances_that_keep_the_clients_port() {
    let Some(lab) = Lab::up("check-invalid", &[]) else {
        return;
    };
    tools(&lab);
    lab.mode(Mode::ClientAddressAndPort);
    lab.apply(POLICY);
    // What tells the two connections of a session from each other is their sequence numbers, which
    // one kernel makes of addresses, ports and the time. The server's are to be other ones: it hears
    // of the session a second late, when the appliance asks again. Even so it is a matter of which
    // packet comes first.
    let hangs = (0..12).any(|_| {
        lab.router(
            "nft 'table inet f; delete table inet f; table inet f { chain c {
                type filter hook forward priority filter
                iifname \"sps0\" oifname \"eth1\" tcp flags & (syn | ack) == syn limit rate 1/hour burst 1 packets drop
                ct state { established, related } accept
                ct state invalid drop
            }; }'",
        );
        lab.ask("client", SERVERS[0], 3389).way().is_none()
    });
    if !hangs {
        skipped(
            "sessions that hang where invalid packets are dropped",
            "the sequence numbers of all that were tried fitted",
        );
    }
    let (code, report) = check(&lab);
    assert_eq!(
        (code, codes(&report)),
        (0, vec!["invalid-dropped"]),
        "{report:#}"
    );
    mend(&lab, "what drops invalid packets");
    for server in SERVERS {
        assert!(is_recorded(&lab.ask("client", server, 3389)), "{server}");
    }
}

const SOUND: &str = "\
redirect `rdp`, IPv4: 10.10.0.2 on eth0 to 10.20.0.2 port 3389
  1 client to appliance  in on eth0     -> via 10.30.0.2 dev sps0       ok
  2 appliance to server  in on sps0     -> dev eth1                     ok
  3 server to appliance  in on eth1     -> via 10.30.0.2 dev sps0       ok
  4 appliance to client  in on sps0     -> dev eth0                     ok

redirect `rdp`, IPv6: fd00:10::2 on eth0 to fd00:20::2 port 3389
  1 client to appliance  in on eth0     -> via fd00:30::2 dev sps0      ok
  2 appliance to server  in on sps0     -> dev eth1                     ok
  3 server to appliance  in on eth1     -> via fd00:30::2 dev sps0      ok
  4 appliance to client  in on sps0     -> dev eth0                     ok

sound; the policy is in force
";

#[test]
fn a_sound_router_gets_a_clean_bill_whatever_holds_the_rules() {
    for backend in ["nftables", "iptables"] {
        let Some(lab) = Lab::up(&format!("check-sound-{backend}"), &[]) else {
            return;
        };
        let policy = format!("{POLICY}[options]\nbackend = \"{backend}\"\n");
        lab.policy(&policy);
        let before = lab.redirect(&["check"]).ended(0);
        assert!(
            before
                .stdout
                .ends_with("\nsound; the policy is not in force yet\n")
        );
        assert_eq!(
            before.stdout.matches("once applied").count(),
            6,
            "{}",
            before.stdout
        );
        let nothing = lab.redirect(&["status"]).ended(0);
        assert_eq!(nothing.stdout, "no policy in force\n");
        lab.apply(&policy);
        assert_eq!(lab.redirect(&["check"]).ended(0).stdout, SOUND);
        let probed = lab.redirect(&["check", "--probe"]).ended(0).stdout;
        assert_eq!(probed.matches("ICMP echo").count(), 2, "{probed}");
        assert_eq!(probed.matches("ok, ").count(), 4, "{probed}");
        numbers_go_up(&lab);
    }
}

/// What `status` counts.
fn numbers_go_up(lab: &Lab) {
    let mut held = lab.hold(SERVERS[0], 3389);
    assert!(held.is_alive());
    let status = lab.redirect(&["status", "--json"]).ended(0);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    let redirect = &status["redirects"][0];
    assert!(redirect["taken"].as_u64().unwrap() > 0, "{status:#}");
    assert!(redirect["dialled"].as_u64().unwrap() > 0, "{status:#}");
    let sent = &status["appliances"][0]["sent"];
    assert!(sent["packets"].as_u64().unwrap() > 3, "{status:#}");
    assert!(
        redirect["connections"]["scb"].as_u64().unwrap() > 0,
        "{status:#}"
    );
    assert_eq!(status["appliances"][0]["sealed"]["packets"], 0);
    assert_eq!(status["appliances"][0]["next_hops"][0]["usable"], true);
    // Without its rule, packets that bear the mark go nowhere, and are counted.
    lab.router("ip rule del priority 103");
    let session = lab.ask("client", SERVERS[0], 3389);
    assert_eq!(session.way(), None, "{session:?}");
    let metrics = lab.redirect(&["status", "--prometheus"]).ended(2).stdout;
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("redirect_sealed_packets_total") > 0, "{metrics}");
    assert_eq!(value("redirect_in_sync"), 0);
    assert_eq!(value("redirect_drift_objects"), 1);
}

#[test]
fn trace_agrees_with_what_packets_do() {
    let Some(lab) = Lab::up("check-trace", &[]) else {
        return;
    };
    lab.apply(POLICY);
    let mut ways = 0;
    for (role, from, interface) in [
        ("client", ["10.10.0.2", "fd00:10::2"], "eth0"),
        ("bystander", ["10.40.0.2", "fd00:40::2"], "eth2"),
    ] {
        for (family, server) in [(0, "10.20.0.2"), (0, "10.20.0.53"), (1, "fd00:20::2")] {
            for port in [3389, 5900, 8080] {
                let to = match family {
                    0 => format!("{server}:{port}"),
                    _ => format!("[{server}]:{port}"),
                };
                let said = traced(&lab, from[family], &to, interface);
                let session = lab.ask(role, server, port);
                assert_eq!(is_recorded(&session), said, "{role} to {to}: {session:?}");
                let offline = [
                    "trace",
                    "--offline",
                    "--from",
                    from[family],
                    "--to",
                    &to,
                    "--in",
                ];
                let offline = traced_with(&lab, &[offline.as_slice(), &[interface]].concat());
                assert_eq!(offline, said, "offline, {role} to {to}");
                ways += usize::from(said);
            }
        }
    }
    assert_eq!(ways, 4, "some go through the appliance, and some do not");
    let from = [
        "trace",
        "--from",
        "10.10.0.2:50000",
        "--to",
        "10.20.0.2:3389",
    ];
    assert_eq!(lab.redirect(&from).ended(0).stdout, TRACE);
    let excepted = lab.redirect(&["trace", "--from", "10.10.0.99", "--to", "10.20.0.2:3389"]);
    assert_eq!(
        excepted.ended(2).stdout,
        "10.10.0.99:40000 to 10.20.0.2:3389, in on `eth0`: not redirected, goes dev eth1\n  redirect `rdp`: 10.10.0.99 is an excepted client\n"
    );
}

/// What `status` ends with, and its report.
fn status(lab: &Lab) -> (i32, Value) {
    let outcome = lab.redirect(&["status", "--json"]);
    let report = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|_| panic!("{}{}", outcome.stdout, outcome.stderr));
    (outcome.code, report)
}

/// Each of these lets sessions past the appliance, or ends them, with everything of ours in place.
const OTHERS: &[(&str, &str, &str, &str)] = &[
    (
        "ip rule add priority 50 iif eth0 lookup 200; ip route add 10.20.0.0/24 via 10.40.0.2 table 200",
        "ip rule del priority 50",
        "rule-before-ours",
        "is refused",
    ),
    (
        "nft 'table inet wipe { chain pre { type filter hook prerouting priority -100; ct mark set 0; meta mark set 0; }; }'",
        "nft delete table inet wipe",
        "mark-overwritten",
        "reaches its server unrecorded",
    ),
    (
        "ip route add 10.20.0.0/24 via 10.40.0.2 table 103",
        "ip route del 10.20.0.0/24 table 103",
        "foreign-route",
        "is refused",
    ),
    (
        "nft 'table inet stop { chain c { type filter hook forward priority 0; iifname \"eth0\" oifname \"sps0\" drop; }; }'",
        "nft delete table inet stop",
        "forward-drop",
        "hangs",
    ),
    (
        "sysctl -qw net.ipv4.conf.eth1.src_valid_mark=1",
        "sysctl -qw net.ipv4.conf.eth1.src_valid_mark=0",
        "src-valid-mark",
        "hangs",
    ),
];

#[test]
fn status_and_trace_say_what_others_do_to_sessions() {
    let Some(lab) = Lab::up("status-others", &[]) else {
        return;
    };
    lab.mode(Mode::ClientAddress);
    lab.apply(POLICY);
    // The policy in force is what is meant where no other is.
    lab.router("rm /etc/redirect/policy.toml");
    let checked = lab.redirect(&["check"]).ended(0);
    assert!(
        checked.stderr.starts_with(
            "there is no `/etc/redirect/policy.toml`; this is about the policy in force, "
        ),
        "{}",
        checked.stderr
    );
    let trace = ["trace", "--from", "10.10.0.2", "--to", "10.20.0.2:3389"];
    for (spoils, mends, code, ending) in OTHERS {
        let (exit, report) = status(&lab);
        assert_eq!((exit, &report["troubles"]), (0, &serde_json::json!([])));
        lab.router(spoils);
        let (exit, report) = status(&lab);
        assert_eq!(exit, 2, "{spoils}: {report:#}");
        assert_eq!(report["drift"], serde_json::json!([]), "{spoils}");
        assert_eq!(report["troubles"][0]["code"], *code, "{report:#}");
        let shown = lab.redirect(&["status"]).ended(2).stdout;
        assert!(shown.contains("ASTRAY") && shown.contains(code), "{shown}");
        let metrics = lab.redirect(&["status", "--prometheus"]).ended(2).stdout;
        assert!(metrics.contains("redirect_in_sync 0\n"), "{metrics}");
        let traced = lab.redirect(&trace).ended(2).stdout;
        let headline = traced.lines().next().unwrap();
        assert!(headline.contains(ending), "{spoils}: {traced}");
        let session = lab.ask("client", SERVERS[0], 3389);
        let leaked = ending.contains("unrecorded").then_some(Way::Direct);
        assert_eq!(session.way(), leaked, "{spoils}: {session:?}");
        lab.router(mends);
    }
    let metrics = lab.redirect(&["status", "--prometheus"]).ended(0).stdout;
    let names = metric_names(&metrics);
    let dashboard = include_str!("../../packaging/grafana/redirect.json");
    let mut asked = 0;
    for rest in dashboard.split("redirect_").skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        let name = format!("redirect_{}", &rest[..end.unwrap_or(rest.len())]);
        assert!(
            names.contains(&name),
            "the dashboard asks for {name}: {metrics}"
        );
        asked += 1;
    }
    assert!(asked > 5, "{asked}");
    // The router itself is no server behind it.
    let own = lab.redirect(&["trace", "--from", "10.10.0.2", "--to", "10.20.0.1:3389"]);
    assert_eq!(
        own.ended(2).stdout,
        "10.10.0.2:40000 to 10.20.0.1:3389, in on `eth0`: not redirected, goes no further than this router\n  \
         10.20.0.1 is this router itself: what it answers itself crosses no appliance and is not recorded\n"
    );
}

/// Reads the text format of Prometheus (version 0.0.4) as strictly as it can be read: every metric
/// is described, then typed, then has its samples, no two of the same labels.
fn metric_names(text: &str) -> BTreeSet<String> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    assert!(text.ends_with('\n'), "{text}");
    let (mut names, mut samples) = (BTreeSet::new(), BTreeSet::new());
    let (mut described, mut typed) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(names.insert(name.to_owned()), "twice: {line}");
            name.clone_into(&mut described);
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, described, "{line}");
            // By convention, and `promtool check metrics` insists.
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            name.clone_into(&mut typed);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<u64>().unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert_eq!(name, typed, "{line}");
        let labels = labels.strip_suffix('}').unwrap();
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once('=').unwrap();
            let value = value
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            assert!(is_name(name), "{line}");
            assert!(
                value.is_some_and(|value| !value.contains(['"', '\\'])),
                "{line}"
            );
        }
        assert!(samples.insert(series.to_owned()), "twice: {line}");
    }
    names
}

#[test]
fn init_asks_on_a_terminal() {
    let Some(lab) = Lab::up("init-terminal", &[]) else {
        return;
    };
    if lab.run("router", &["script", "--version"]).code != 0 {
        skipped("init on a terminal", "there is no `script` to make one");
        return;
    }
    let command = format!("{} init --output /etc/redirect/asked.toml", under_test());
    let answers = "10.30.0.2\neth0\n10.20.0.0/24\n22, 3389\ny\n";
    let words = [
        "script",
        "--quiet",
        "--return",
        "--command",
        &command,
        "/dev/null",
    ];
    let asked = lab.run_with("router", &words, answers).ended(0);
    assert!(
        asked.stdout.contains("This router has:"),
        "{}",
        asked.stdout
    );
    assert!(
        asked.stdout.contains("The appliance's addresses?"),
        "{}",
        asked.stdout
    );
    let policy = lab.router("cat /etc/redirect/asked.toml");
    assert!(policy.contains("snat"), "{policy}");
    lab.mode(Mode::ClientAddress);
    lab.apply(&policy);
    assert!(is_recorded(&lab.ask("client", SERVERS[0], 3389)));
}

#[test]
fn failures_are_json_where_json_is_asked_for() {
    let Some(lab) = Lab::up("json-failures", &[]) else {
        return;
    };
    lab.policy("version = 1\nport = 22\n");
    for words in [
        "check --json",
        "diff --json",
        "trace --json --from 10.10.0.2 --to 10.20.0.2:22",
        "apply --dry-run --format json",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let outcome = lab.redirect(&words).ended(65);
        let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(value["error"]["code"], "bad-policy", "{value:#}");
        assert_eq!(value["error"]["findings"][0]["code"], "P002", "{value:#}");
        assert!(outcome.stderr.contains("error[P002]"), "{}", outcome.stderr);
    }
    // What the router lacks, too.
    lab.policy(&POLICY.replace("sps0", "sps9"));
    let outcome = lab.redirect(&["diff", "--json"]).ended(69);
    let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(value["error"]["findings"][0]["code"], "interface-missing");
    // Output that cannot be written is a failure, that of `--help` too.
    let redirect = under_test();
    for words in ["--help", "--version", "schema"] {
        let script = format!("{redirect} {words} > /dev/full");
        lab.run("router", &["sh", "-c", &script]).ended(1);
    }
    // Servers that the appliance shares its interface with, and no `mac`: nothing is missing of
    // the router.
    lab.policy(&POLICY.replace("\"10.20.0.0/24\"", "\"10.30.0.128/25\""));
    let (code, report) = check(&lab);
    assert_eq!(
        (code, codes(&report)[0]),
        (2, "shared-without-mac"),
        "{report:#}"
    );
}

#[test]
fn a_rule_that_gets_before_our_iptables_chain_is_named() {
    for variant in ["nft", "legacy"] {
        let Some(lab) = Lab::up(&format!("check-before-{variant}"), &[]) else {
            return;
        };
        tools(&lab);
        // The commands of the variant that holds others' rules are the ones that are used.
        lab.router(&format!(
            "iptables-{variant} -A INPUT -p udp --dport 9 -j ACCEPT"
        ));
        lab.apply(&format!("{POLICY}[options]\nbackend = \"iptables\"\n"));
        let (code, report) = check(&lab);
        assert_eq!((code, codes(&report)), (0, vec![]), "{report:#}");
        lab.router(&format!(
            "iptables-{variant} -t mangle -I PREROUTING -p tcp --dport 3389 -j ACCEPT"
        ));
        let (code, report) = check(&lab);
        assert_eq!(code, 2);
        assert!(codes(&report).contains(&"accepted-before-us"), "{report:#}");
        assert!(!traced(&lab, "10.10.0.2", "10.20.0.2:3389", "eth0"));
        let session = lab.ask("client", SERVERS[0], 3389);
        assert_eq!(session.way(), Some(Way::Direct), "{session:?}");
        mend(&lab, variant);
        assert!(is_recorded(&lab.ask("client", SERVERS[0], 3389)));
    }
}

#[test]
fn troubles_of_shared_interfaces_and_second_families() {
    let only_v4 = POLICY.replace(", \"fd00:20::/64\"", "");
    if let Some(lab) = Lab::up("check-v6", &[]) {
        tools(&lab);
        lab.apply(&only_v4);
        // The router knows both addresses of the server once it has heard of them.
        for server in SERVERS {
            lab.ask("client", server, 3389);
        }
        let (_, report) = check(&lab);
        assert_eq!(codes(&report), ["ipv6-unredirected"], "{report:#}");
        assert_eq!(lab.ask("client", SERVERS[1], 3389).way(), Some(Way::Direct));
        mend(&lab, "IPv6");
        assert_eq!(lab.ask("client", SERVERS[1], 3389).way(), None);
    }
    let shared = POLICY
        .replace("sps0\"", "eth0\"\nmac = \"02:00:5e:00:00:01\"")
        .replace("10.30.0.2", "10.10.0.100")
        .replace("fd00:30::2", "fd00:10::100");
    if let Some(lab) = Lab::up("check-shared", &["shared-client"]) {
        tools(&lab);
        lab.apply(&shared);
        let (_, report) = check(&lab);
        assert_eq!(codes(&report), ["icmpv6-redirects"], "{report:#}");
        mend(&lab, "ICMPv6 redirects");
        lab.router("sysctl -qw net.ipv4.conf.all.send_redirects=1");
        let (_, report) = check(&lab);
        assert_eq!(codes(&report), ["icmp-redirects"], "{report:#}");
        mend(&lab, "ICMP redirects");
        for server in SERVERS {
            assert!(is_recorded(&lab.ask("client", server, 3389)), "{server}");
        }
        let wrong = shared.replace("02:00:5e:00:00:01", "02:00:5e:00:00:09");
        lab.apply(&wrong);
        let (_, report) = check(&lab);
        assert!(
            codes(&report).contains(&"appliance-mac-differs"),
            "{report:#}"
        );
        mend(&lab, "another card");
        assert!(is_recorded(&lab.ask("client", SERVERS[0], 3389)));
    }
    if let Some(lab) = Lab::up("check-bridge", &[]) {
        tools(&lab);
        lab.policy(POLICY);
        lab.router("nft 'table inet firewall { chain c { type filter hook forward priority filter; ct state established accept; }; }'");
        let mut held = lab.hold(SERVERS[0], 3389);
        assert!(held.is_alive());
        let (code, report) = check(&lab);
        assert_eq!(
            (code, codes(&report)),
            (0, vec!["sessions-open"]),
            "{report:#}"
        );
        mend(&lab, "open sessions");
        lab.redirect(&["apply"]).ended(0);
        assert!(held.is_alive(), "it goes on as it is");
        // The client's interface becomes a bridge's port.
        lab.router(
            "ip link add br0 type bridge forward_delay 0; ip link set br0 up
             ip link set eth0 master br0; ip addr flush dev eth0
             ip addr add 10.10.0.1/24 dev br0; ip addr add fd00:10::1/64 dev br0 nodad",
        );
        let (_, report) = check(&lab);
        assert!(codes(&report).contains(&"enslaved-interface"), "{report:#}");
        assert_eq!(lab.ask("client", SERVERS[0], 3389).way(), Some(Way::Direct));
        mend(&lab, "a bridge");
        assert!(is_recorded(&lab.ask("client", SERVERS[0], 3389)));
    }
}

/// The vendor's procedure, as typed: by iptables, or by nft.
const BY_IPTABLES: &str = "
    for port in 3389 5900; do
        iptables -t mangle -I PREROUTING -i eth0 -p tcp -d 10.20.0.0/24 --dport $port -j CONNMARK --set-mark 1
        iptables -t mangle -I PREROUTING -i eth1 -p tcp -s 10.20.0.0/24 --sport $port -j CONNMARK --set-mark 1
    done
    iptables -t mangle -A PREROUTING ! -i sps0 -m connmark --mark 1 -j MARK --set-mark 1";
const BY_NFT: &str = "
    nft 'table ip byhand { chain pre { type filter hook prerouting priority mangle;
        iifname \"eth0\" ip daddr 10.20.0.0/24 tcp dport { 3389, 5900 } ct mark set 1
        iifname \"eth1\" ip saddr 10.20.0.0/24 tcp sport { 3389, 5900 } ct mark set 1
        iifname != \"sps0\" ct mark 1 meta mark set 1
    }; }'";
const BY_HAND: &str = "
    mkdir -p /etc/iproute2
    echo '103 scb' >> /etc/iproute2/rt_tables
    ip route add default via 10.30.0.2 table 103
    ip rule add from all fwmark 1 table 103
    echo 0 > /proc/sys/net/ipv4/conf/sps0/rp_filter
    echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter";

#[test]
fn what_was_typed_by_hand_is_moved_over_without_a_leak() {
    for (test, rules) in [("init-iptables", BY_IPTABLES), ("init-nft", BY_NFT)] {
        let Some(lab) = Lab::up(test, &[]) else {
            return;
        };
        tools(&lab);
        lab.mode(Mode::ClientAddress);
        lab.router(&format!("{rules}{BY_HAND}"));
        assert!(is_recorded(&lab.ask("client", SERVERS[0], 3389)));
        let mut held = lab.hold(SERVERS[0], 3389);
        let stream = lab.stream(SERVERS[0], 20);
        let wrote = lab
            .redirect(&["init", "--output", "/etc/redirect/policy.toml"])
            .ended(0);
        let removal: Vec<&str> = wrote
            .stderr
            .lines()
            .skip_while(|line| !line.starts_with("# To be run"))
            .collect();
        assert!(removal.len() > 5, "{}", wrote.stderr);
        // It does not write over anything.
        lab.redirect(&["init", "--output", "/etc/redirect/policy.toml"])
            .ended(1);
        lab.redirect(&["apply"]).ended(0);
        assert!(held.is_alive(), "{test}");
        for line in removal {
            lab.router(line);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(held.is_alive(), "{test}");
        assert!(is_recorded(&lab.ask("client", SERVERS[0], 3389)));
        let sessions = stream.end();
        assert!(sessions.len() > 10);
        let past = lab.packets_past_appliance("10.10.0.2", SERVERS[0], &[3389, 5900]);
        assert_eq!(past, 0, "{test}: packets past the appliance");
        let rules =
            lab.router("iptables-nft-save; ip rule; ip route show table all; nft list ruleset");
        assert!(
            !rules.contains("0x00000001 ct mark") && !rules.contains("--set-xmark 0x1/0xffffffff")
        );
        mend(&lab, test);
    }
}

#[test]
fn a_first_policy_is_written_from_flags() {
    let Some(lab) = Lab::up("init-flags", &[]) else {
        return;
    };
    let lacking = lab.redirect(&["init"]).ended(64);
    assert!(
        lacking
            .stderr
            .contains("--appliance, --client-interface, --server-network, --port")
    );
    let flags = "init --appliance 10.30.0.2 --appliance fd00:30::2 --client-interface eth0 \
                 --server-network 10.20.0.0/24 --server-network fd00:20::/64 --port 3389 --snat";
    let words: Vec<&str> = flags.split_whitespace().collect();
    let policy = lab.redirect(&words).ended(0).stdout;
    assert!(policy.contains("interface = \"sps0\""), "{policy}");
    lab.apply(&policy);
    for server in SERVERS {
        assert!(is_recorded(&lab.ask("client", server, 3389)));
    }
}

#[test]
fn support_packs_what_a_ticket_needs() {
    let Some(lab) = Lab::up("support", &[]) else {
        return;
    };
    lab.apply(POLICY);
    let said = lab
        .redirect(&["support", "--output", "/run/ticket.tar.gz"])
        .ended(0)
        .stdout;
    let listed = lab.router("tar -tzf /run/ticket.tar.gz; stat -c %a /run/ticket.tar.gz");
    for name in [
        "about.txt",
        "policy.toml",
        "policy-in-force.toml",
        "plan.json",
        "observed.json",
        "check.txt",
        "history.json",
        "nft.txt",
        "rules.txt",
        "settings.txt",
    ] {
        assert!(listed.contains(&format!("/{name}\n")), "{name}: {listed}");
        assert!(said.contains(name), "{name}: {said}");
    }
    assert!(listed.ends_with("\n600\n"), "{listed}");
    let check = lab.router("tar -xzOf /run/ticket.tar.gz --wildcards '*/check.txt'");
    assert!(
        check.ends_with("sound; the policy is in force\n"),
        "{check}"
    );
    lab.redirect(&["support", "--output", "/run/ticket.tar.gz"])
        .ended(1);
}
