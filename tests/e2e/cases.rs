//! What has to hold whatever holds the packet rules: one list, run for each backend.

use std::time::{Duration, Instant};

use crate::lab::{Held, Lab, Mode, SERVERS, Session, Stream, Streamed, Way, now};
use crate::snapshot::Snapshot;

/// What holds the packet rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Backend {
    /// Its name in the policy.
    fn option(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft | Self::IptablesLegacy => "iptables",
        }
    }

    /// Makes it the one that the router's `iptables` is, in the lab's own `/etc`.
    fn choose(self, lab: &Lab) {
        let variant = match self {
            Self::Nftables => return,
            Self::IptablesNft => "nft",
            Self::IptablesLegacy => "legacy",
        };
        lab.router(&format!(
            "for program in iptables iptables-save iptables-restore; do
                 ln -sf /usr/sbin/iptables-{variant}${{program#iptables}} /etc/alternatives/$program
                 ln -sf /usr/sbin/ip6tables-{variant}${{program#iptables}} /etc/alternatives/ip6${{program#ip}}
             done
             iptables --version | grep -q {}",
            if variant == "nft" { "nf_tables" } else { "legacy" }
        ));
    }
}

/// A lab whose router uses `backend`.
fn lab(test: &str, backend: Backend, variants: &[&str]) -> Option<Lab> {
    let lab = Lab::up(test, variants)?;
    backend.choose(&lab);
    Some(lab)
}

/// A policy for the lab. `options` go below `[options]`.
fn policy(backend: Backend, mode: Mode, options: &str) -> String {
    policy_for(backend, mode, "[3389, \"5900-5910\"]", options)
}

fn policy_for(backend: Backend, mode: Mode, ports: &str, options: &str) -> String {
    format!(
        r#"version = 1

[appliance.scb]
address   = ["10.30.0.2", "fd00:30::2"]
interface = "sps0"

[[redirect]]
name             = "desktop"
client_interface = "eth0"
server_network   = ["10.20.0.0/24", "fd00:20::/64"]
port             = {ports}
snat             = {}
except_client    = ["10.10.0.99", "fd00:10::99"]
except_server    = ["10.20.0.53", "fd00:20::53"]

[options]
backend = "{}"
{options}
"#,
        mode.snat(),
        backend.option()
    )
}

const CLIENTS: [&str; 2] = ["10.10.0.2", "fd00:10::2"];

/// Packets of the client that reached a redirected port of the server past the appliance.
fn leaked(lab: &Lab) -> u64 {
    CLIENTS
        .into_iter()
        .zip(SERVERS)
        .map(|(client, server)| lab.packets_past_appliance(client, server, &[3389, 5900]))
        .sum()
}

/// Requires that both families' sessions go this way.
#[track_caller]
fn assert_way(lab: &Lab, way: Way) {
    for server in SERVERS {
        let session = lab.ask("client", server, 3389);
        assert_eq!(session.way(), Some(way), "{server}: {session:?}");
    }
}

/// Requires that both families' sessions are refused, at once, and that nothing leaks.
#[track_caller]
fn assert_sealed(lab: &Lab) {
    let before = leaked(lab);
    for server in SERVERS {
        let begun = Instant::now();
        let session = lab.ask("client", server, 3389);
        let Session::Failed(word) = session else {
            panic!("{server}: {session:?}");
        };
        // iptables can only drop there.
        if word != "timeout" {
            assert!(
                ["unreachable", "prohibited"].contains(&word.as_str()),
                "{word}"
            );
            assert!(begun.elapsed() < Duration::from_secs(2), "not at once");
        }
    }
    assert_eq!(leaked(lab), before, "packets past the appliance");
}

// --- sessions ------------------------------------------------------------------------

pub fn sessions_are_recorded(backend: Backend, mode: Mode) {
    let Some(lab) = lab("sessions_are_recorded", backend, &[]) else {
        return;
    };
    assert_way(&lab, Way::Direct);
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    let before = leaked(&lab);
    for (server, client) in SERVERS.into_iter().zip(CLIENTS) {
        for port in [3389, 5900] {
            let session = lab.ask("client", server, port);
            let Session::Answered {
                way,
                peer,
                port: from,
            } = session
            else {
                panic!("{server} {port}: {session:?}");
            };
            assert_eq!(way, Way::Recorded, "{server} {port}");
            let spoofed = peer.0.to_string() == client;
            assert_eq!(spoofed, mode.snat(), "the server saw {peer:?}");
            if mode == Mode::ClientAddressAndPort {
                assert_eq!(peer.1, from);
            }
            assert!(
                lab.recorded(from, server, port),
                "not in the appliance's record"
            );
        }
        // Another port, and others.
        for (role, port) in [("client", 8080), ("client", 2222), ("bystander", 3389)] {
            let session = lab.ask(role, server, port);
            assert_eq!(
                session.way(),
                Some(Way::Direct),
                "{role} {server} {port}: {session:?}"
            );
        }
    }
    for server in ["10.20.0.53", "fd00:20::53"] {
        assert_eq!(
            lab.ask("client", server, 3389).way(),
            Some(Way::Direct),
            "except_server"
        );
    }
    assert_eq!(leaked(&lab), before, "packets past the appliance");
    // The excepted client: the kernel takes the source that the route names.
    lab.run(
        "client",
        &[
            "ip",
            "route",
            "change",
            "default",
            "via",
            "10.10.0.1",
            "src",
            "10.10.0.99",
        ],
    )
    .ended(0);
    assert_eq!(
        lab.ask("client", SERVERS[0], 3389).way(),
        Some(Way::Direct),
        "except_client"
    );
}

pub fn transfers_arrive_whole(backend: Backend, mode: Mode) {
    const BYTES: u64 = 50_000_000;
    let Some(lab) = lab("transfers_arrive_whole", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    for server in SERVERS {
        for direction in ["fetch", "push"] {
            assert_eq!(
                lab.transfer(direction, server, BYTES),
                Ok(Way::Recorded),
                "{direction} {server}"
            );
        }
    }
    assert_eq!(leaked(&lab), 0, "packets past the appliance");
}

/// In mode `client`, the router's connection tracking sees a session's two connections as one, with
/// sequence numbers that do not fit. Which of the two it follows depends on what passes first;
/// here the client has sent data before the server's first answer, as is usual where the
/// way to the server is long.
pub fn slow_servers_are_recorded(backend: Backend, mode: Mode) {
    let Some(lab) = lab("slow_servers_are_recorded", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    // The server's answer waits until it has found the router's Ethernet address.
    lab.run_with(
        "server",
        &["sh", "-eu"],
        "echo 50 >/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms
         echo 100 >/proc/sys/net/ipv4/neigh/eth0/mcast_solicit",
    )
    .ended(0);
    let mac = lab
        .run(
            "server",
            &["sh", "-c", "ip -br link show eth0 | awk '{print $3}'"],
        )
        .stdout;
    for _ in 0..6 {
        lab.router(&format!(
            "ip neigh replace 10.20.0.2 lladdr {} dev eth1
             nft 'table arp slow {{ chain in {{ type filter hook input priority 0; iifname eth1 drop; }}; }}'",
            mac.trim()
        ));
        lab.run("server", &["ip", "neigh", "flush", "dev", "eth0"])
            .ended(0);
        let way = std::thread::scope(|scope| {
            let transfer = scope.spawn(|| lab.transfer("push", SERVERS[0], 200_000));
            std::thread::sleep(Duration::from_millis(300));
            lab.router("nft delete table arp slow");
            transfer.join().unwrap()
        });
        assert_eq!(way, Ok(Way::Recorded));
    }
    assert_eq!(leaked(&lab), 0, "packets past the appliance");
}

/// An appliance on the servers' or the clients' segment: only its Ethernet address tells what is from it.
pub fn a_shared_interface_is_told_apart(backend: Backend, mode: Mode) {
    for (variant, interface, networks) in [
        ("shared-server", "eth1", ["10.20.0", "fd00:20:"]),
        ("shared-client", "eth0", ["10.10.0", "fd00:10:"]),
    ] {
        let Some(lab) = lab("a_shared_interface_is_told_apart", backend, &[variant]) else {
            return;
        };
        lab.mode(mode);
        let [net4, net6] = networks;
        let addresses = format!("[\"{net4}.100\", \"{net6}:100\"]");
        let text = policy(backend, mode, "")
            .replace("[\"10.30.0.2\", \"fd00:30::2\"]", &addresses)
            .replace(
                "interface = \"sps0\"",
                &format!("interface = \"{interface}\"\nmac = \"02:00:5e:00:00:01\""),
            )
            // An appliance among the servers must not be one of them.
            .replace("\"10.20.0.53\"", "\"10.20.0.53\", \"10.20.0.100\"")
            .replace("\"fd00:20::53\"", "\"fd00:20::53\", \"fd00:20::100\"");
        let before = Snapshot::of(&lab);
        lab.apply(&text);
        assert_way(&lab, Way::Recorded);
        for server in SERVERS {
            let way = lab.transfer("fetch", server, 5_000_000);
            assert_eq!(way, Ok(Way::Recorded), "{variant} {server}");
            for (role, port) in [("client", 8080), ("bystander", 3389)] {
                let session = lab.ask(role, server, port);
                assert_eq!(
                    session.way(),
                    Some(Way::Direct),
                    "{variant} {role}: {session:?}"
                );
            }
        }
        assert_eq!(leaked(&lab), 0, "{variant}");
        lab.redirect(&["teardown"]).ended(0);
        Snapshot::of(&lab).assert_is(&before);
    }
}

/// Two recorders, each for its own ports, and clients on a dial-up link.
pub fn two_appliances_share_the_work(backend: Backend, mode: Mode) {
    let Some(lab) = lab("two_appliances_share_the_work", backend, &["second", "ppp"]) else {
        return;
    };
    lab.mode(mode);
    let text = policy(backend, mode, "")
        .replace("client_interface = \"eth0\"", "client_interface = \"ppp*\"")
        .replace("snat  ", "appliance        = \"scb\"\nsnat  ")
        .replace(
            "[options]",
            r#"[appliance.other]
address   = ["10.31.0.2", "fd00:31::2"]
interface = "sps1"

[[redirect]]
name             = "shell"
appliance        = "other"
client_interface = "ppp0"
server_network   = ["10.20.0.0/24", "fd00:20::/64"]
port             = 2222

[options]"#,
        );
    lab.apply(&text);
    assert_way(&lab, Way::Recorded);
    for (server, other) in SERVERS.into_iter().zip(["10.31.0.2", "fd00:31::2"]) {
        let session = lab.ask("client", server, 2222);
        let Session::Answered { way, peer, .. } = session else {
            panic!("{server}: {session:?}");
        };
        assert_eq!((way, peer.0.to_string().as_str()), (Way::Recorded, other));
        assert_eq!(lab.ask("client", server, 8080).way(), Some(Way::Direct));
    }
    // One fails: the other's sessions go on.
    lab.router("ip link set sps1 down");
    assert_way(&lab, Way::Recorded);
    let session = lab.ask("client", SERVERS[0], 2222);
    assert_eq!(session.way(), None, "{session:?}");
    assert_eq!(leaked(&lab), 0);
}

/// From this backend to the other and back, under a stream of sessions.
pub fn a_changed_backend_disturbs_none(backend: Backend, mode: Mode) {
    let Some(lab) = lab("a_changed_backend_disturbs_none", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    let before = Snapshot::of(&lab);
    let other = match backend {
        Backend::Nftables => Backend::IptablesNft,
        Backend::IptablesNft | Backend::IptablesLegacy => Backend::Nftables,
    };
    lab.apply(&policy(backend, mode, ""));
    let mut held = lab.hold(SERVERS[0], 3389);
    for next in [other, backend] {
        lab.policy(&policy(next, mode, ""));
        let change = change_over(&lab, SERVERS[0], || {
            lab.redirect(&["apply"]).ended(0);
        });
        for sessions in [&change.before, &change.during, &change.after] {
            assert_all(sessions, Way::Recorded);
        }
        assert!(
            held.is_alive(),
            "the session was cut on the way to {next:?}"
        );
    }
    assert_eq!(leaked(&lab), 0);
    lab.redirect(&["teardown"]).ended(0);
    Snapshot::of(&lab).assert_is(&before);
}

// --- what may happen to a router -------------------------------------------------------

pub fn a_lost_link_leaks_nothing(backend: Backend, mode: Mode) {
    let Some(lab) = lab("a_lost_link_leaks_nothing", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    assert_way(&lab, Way::Recorded);
    lab.router("ip link set sps0 down");
    assert_sealed(&lab);
    // The kernel has dropped the route through it for good.
    lab.router("ip link set sps0 up");
    assert_sealed(&lab);
    lab.redirect(&["apply"]).ended(0);
    assert_way(&lab, Way::Recorded);
    assert_eq!(leaked(&lab), 0);
}

pub fn what_others_delete_leaks_nothing(backend: Backend, mode: Mode) {
    let Some(lab) = lab("what_others_delete_leaks_nothing", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    for deletion in [
        "ip rule del fwmark 1/0xff; ip -6 rule del fwmark 1/0xff",
        "ip route flush table 103; ip -6 route flush table 103",
        "ip rule del fwmark 1/0xff; ip -6 rule del fwmark 1/0xff; ip route flush table 103; ip -6 route flush table 103",
    ] {
        assert_way(&lab, Way::Recorded);
        lab.router(deletion);
        assert_sealed(&lab);
        lab.redirect(&["status"]).ended(2);
        lab.redirect(&["apply"]).ended(0);
    }
    assert_way(&lab, Way::Recorded);
    assert_eq!(leaked(&lab), 0);
}

/// Another program's chain after ours takes all packet marks away.
pub fn a_wiped_mark_leaks_nothing(backend: Backend, mode: Mode) {
    let Some(lab) = lab("a_wiped_mark_leaks_nothing", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    lab.router("nft 'table inet wiper { chain in { type filter hook prerouting priority -50; meta mark set 0; }; }'");
    assert_sealed(&lab);
    lab.router("nft delete table inet wiper");
    assert_way(&lab, Way::Recorded);
}

// --- changing over ---------------------------------------------------------------------

/// What became of a stream's sessions while `change` was made.
struct Changeover {
    /// Ended before it began.
    before: Vec<Streamed>,
    /// Open at the time of it.
    during: Vec<Streamed>,
    /// Begun after it was over.
    after: Vec<Streamed>,
}

const RATE: u32 = 100;

fn change_over(lab: &Lab, server: &str, change: impl FnOnce()) -> Changeover {
    let stream: Stream = lab.stream(server, RATE);
    std::thread::sleep(Duration::from_millis(700));
    let begun = now();
    change();
    let ended = now();
    std::thread::sleep(Duration::from_millis(700));
    let (before, rest): (Vec<_>, Vec<_>) = stream
        .end()
        .into_iter()
        .partition(|session| session.ended < begun);
    let (during, after): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|session| session.begun < ended);
    // A test without sessions would pass whatever happens.
    assert!(before.len() > 20, "{} sessions before", before.len());
    assert!(after.len() > 20, "{} sessions after", after.len());
    Changeover {
        before,
        during,
        after,
    }
}

#[track_caller]
fn assert_all(sessions: &[Streamed], way: Way) {
    for session in sessions {
        assert_eq!(session.became, Ok(way), "{session}");
    }
}

#[track_caller]
fn assert_none_lost(sessions: &[Streamed]) {
    for session in sessions {
        assert!(session.became.is_ok(), "lost: {session}");
    }
}

pub fn apply_loses_and_leaks_none(backend: Backend, mode: Mode) {
    let Some(lab) = lab("apply_loses_and_leaks_none", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.policy(&policy(backend, mode, "established = \"keep\""));
    for server in SERVERS {
        let mut leaked_by_then = 0;
        let change = change_over(&lab, server, || {
            lab.redirect(&["apply"]).ended(0);
            leaked_by_then = leaked(&lab);
        });
        assert_all(&change.before, Way::Direct);
        assert_none_lost(&change.during);
        assert_all(&change.after, Way::Recorded);
        lab.redirect(&["teardown"]).ended(0);
    }
}

/// With `established = "redirect"`, sessions that are open at the time are cut, and no packet
/// of any passes the appliance once apply has returned.
pub fn apply_cuts_what_is_open(backend: Backend, mode: Mode) {
    let Some(lab) = lab("apply_cuts_what_is_open", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.policy(&policy(backend, mode, ""));
    let mut held: Held = lab.hold(SERVERS[0], 3389);
    assert!(held.is_alive());
    let mut leaked_by_then = 0;
    let change = change_over(&lab, SERVERS[0], || {
        lab.redirect(&["apply"]).ended(0);
        leaked_by_then = leaked(&lab);
    });
    assert_all(&change.before, Way::Direct);
    assert_all(&change.after, Way::Recorded);
    assert!(!held.is_alive(), "an unrecorded session went on");
    assert_eq!(leaked(&lab), leaked_by_then, "packets past the appliance");
}

pub fn established_sessions_are_kept(backend: Backend, mode: Mode) {
    let Some(lab) = lab("established_sessions_are_kept", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    for server in SERVERS {
        let mut direct = lab.hold(server, 3389);
        assert_eq!(direct.opened.way(), Some(Way::Direct));
        // Whether the router knows of it: connection tracking begins with the first rule that asks.
        lab.apply(&policy(backend, mode, "established = \"keep\""));
        assert!(
            direct.is_alive(),
            "{server}: the session from before apply was cut"
        );
        let mut recorded = lab.hold(server, 3389);
        assert_eq!(recorded.opened.way(), Some(Way::Recorded));
        assert!(recorded.is_alive() && direct.is_alive());
        lab.redirect(&["teardown"]).ended(0);
        assert!(direct.is_alive(), "{server}: teardown cut a direct session");
    }
}

pub fn applying_again_disturbs_none(backend: Backend, mode: Mode) {
    let Some(lab) = lab("applying_again_disturbs_none", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    let mut held = lab.hold(SERVERS[0], 3389);
    let state = Snapshot::of(&lab);
    let change = change_over(&lab, SERVERS[0], || {
        lab.redirect(&["apply"]).ended(0);
    });
    Snapshot::of(&lab).assert_is(&state);
    for sessions in [&change.before, &change.during, &change.after] {
        assert_all(sessions, Way::Recorded);
    }
    assert!(held.is_alive());
    assert_eq!(leaked(&lab), 0);
}

pub fn a_changed_policy_disturbs_none(backend: Backend, mode: Mode) {
    let Some(lab) = lab("a_changed_policy_disturbs_none", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    if mode == Mode::ClientAddressAndPort {
        // The two connections that are one to the router: packets out of its window belong to none,
        // so nothing remembers that their session was once redirected, unless the window is not looked at.
        lab.router("echo 1 >/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    }
    let first = policy(backend, mode, "");
    let second = policy_for(backend, mode, "[2222, 3389, 8080]", "");
    for server in SERVERS {
        lab.apply(&first);
        let mut held = lab.hold(server, 5900);
        assert_eq!(held.opened.way(), Some(Way::Recorded));
        lab.policy(&second);
        let change = change_over(&lab, server, || {
            lab.redirect(&["apply"]).ended(0);
        });
        for sessions in [&change.before, &change.during, &change.after] {
            assert_all(sessions, Way::Recorded);
        }
        for (port, way) in [(8080, Way::Recorded), (5900, Way::Direct)] {
            assert_eq!(lab.ask("client", server, port).way(), Some(way), "{port}");
        }
        assert!(
            held.is_alive(),
            "a session must stay with its appliance until it ends"
        );
        assert_eq!(lab.ask("bystander", server, 3389).way(), Some(Way::Direct));
    }
    // As if it had never been otherwise, once the last of those sessions has ended.
    repair_until_drained(&lab);
    let changed = Snapshot::of(&lab).without_handles();
    lab.redirect(&["teardown"]).ended(0);
    lab.redirect(&["apply"]).ended(0);
    Snapshot::of(&lab).without_handles().assert_is(&changed);
}

/// Sessions that run through the appliance end with teardown; all others go on.
pub fn teardown_loses_none(backend: Backend, mode: Mode) {
    let Some(lab) = lab("teardown_loses_none", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    for server in SERVERS {
        lab.apply(&policy(backend, mode, ""));
        let change = change_over(&lab, server, || {
            lab.redirect(&["teardown"]).ended(0);
        });
        assert_all(&change.before, Way::Recorded);
        assert_all(&change.after, Way::Direct);
    }
}

/// With `--drain` nobody is cut: new sessions go direct, open ones end through the appliance.
pub fn draining_cuts_none(backend: Backend, mode: Mode) {
    let Some(lab) = lab("draining_cuts_none", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    let pristine = Snapshot::of(&lab);
    lab.apply(&policy(backend, mode, ""));
    let mut held: Vec<Held> = SERVERS.map(|server| lab.hold(server, 3389)).into();
    for session in &held {
        assert_eq!(session.opened.way(), Some(Way::Recorded));
    }
    let change = change_over(&lab, SERVERS[0], || {
        // Not done yet: two are open.
        lab.redirect(&["teardown", "--drain"]).ended(2);
    });
    assert_all(&change.before, Way::Recorded);
    assert_none_lost(&change.during);
    assert_all(&change.after, Way::Direct);
    assert!(
        held.iter_mut().all(Held::is_alive),
        "an open session was cut"
    );
    drop(held);
    lab.redirect(&["teardown"]).ended(0);
    Snapshot::of(&lab).assert_is(&pristine);
}

/// Repairs, as a timer does, until what was left behind is gone.
fn repair_until_drained(lab: &Lab) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.redirect(&["status"]).stdout.contains("draining") {
        assert!(Instant::now() < deadline, "it still drains");
        lab.redirect(&["repair"]).ended(0);
    }
}

const OTHER: &str = r#"
[appliance.other]
address   = ["10.31.0.2", "fd00:31::2"]
interface = "sps1"
table     = 104
mark      = 2
"#;

const SHELL: &str = r#"
[[redirect]]
name             = "shell"
appliance        = "other"
client_interface = "eth0"
server_network   = ["10.20.0.0/24", "fd00:20::/64"]
port             = 2222
"#;

/// One appliance of two: by `teardown --drain --appliance`, by a policy that no longer has it,
/// and by one that gives what it had to the other.
pub fn one_of_two_appliances_drains(backend: Backend, mode: Mode) {
    let Some(lab) = lab("one_of_two_appliances_drains", backend, &["second"]) else {
        return;
    };
    lab.mode(mode);
    let pristine = Snapshot::of(&lab);
    let one = policy(backend, mode, "").replace("snat  ", "appliance        = \"scb\"\nsnat  ");
    let two = one.replace("[options]", &format!("{OTHER}{SHELL}[options]"));
    lab.apply(&one);
    let with_one = Snapshot::of(&lab).without_handles();
    let way = |port| lab.ask("client", SERVERS[1], port).way();

    // By hand; who waits sees it end.
    lab.apply(&two);
    let mut held = lab.hold(SERVERS[0], 2222);
    assert_eq!(held.opened.way(), Some(Way::Recorded));
    let drain = ["teardown", "--drain", "--appliance", "other"];
    lab.redirect(&drain).ended(2);
    assert_eq!(
        (way(2222), way(3389)),
        (Some(Way::Direct), Some(Way::Recorded))
    );
    lab.redirect(&["status"]).ended(0);
    lab.redirect(&["repair"]).ended(0);
    assert!(held.is_alive(), "cut by `teardown --drain --appliance`");
    drop(held);
    lab.redirect(&[&drain[..], &["--wait", "30s"]].concat())
        .ended(0);

    // By the policy: the appliance is no longer in it.
    lab.apply(&two);
    assert_eq!(way(2222), Some(Way::Recorded));
    let mut held = lab.hold(SERVERS[0], 2222);
    let mut other = lab.hold(SERVERS[0], 3389);
    let told = lab.apply(&one).stderr;
    assert!(
        told.contains("through `other` for redirect `shell`"),
        "{told}"
    );
    assert_eq!(
        (way(2222), way(3389)),
        (Some(Way::Direct), Some(Way::Recorded))
    );
    let status = lab.redirect(&["status"]).ended(0).stdout;
    assert!(status.contains("draining: redirect `shell`"), "{status}");
    lab.redirect(&["repair"]).ended(0);
    // The same policy again is no reason to cut it either.
    lab.redirect(&["apply"]).ended(0);
    assert!(held.is_alive() && other.is_alive(), "cut by apply");
    drop(held);
    repair_until_drained(&lab);
    Snapshot::of(&lab).without_handles().assert_is(&with_one);

    // What it had goes to the other one, which may not have its mark.
    let shell = SHELL.replace("2222", "[2222, 3389, \"5900-5910\"]");
    let takes_over = format!(
        "version = 1\n{OTHER}{shell}[options]\nbackend = \"{}\"\n",
        backend.option()
    );
    lab.policy(&takes_over.replace("mark      = 2", "mark = 1"));
    let refused = lab.redirect(&["apply"]).ended(1).stderr;
    assert!(
        refused.contains("`other` takes over its mark 1"),
        "{refused}"
    );
    assert!(other.is_alive(), "cut by a refusal");
    assert_eq!(way(3389), Some(Way::Recorded));
    lab.apply(&takes_over);
    assert!(other.is_alive(), "handed over");
    let session = lab.ask("client", SERVERS[0], 3389);
    assert!(
        matches!(session, Session::Answered { peer, .. } if peer.0.to_string() == "10.31.0.2"),
        "{session:?}"
    );

    // All of it, ended by whoever does not want to wait, who is told what that costs.
    lab.redirect(&["teardown", "--drain"]).ended(2);
    assert!(other.is_alive(), "cut by `teardown --drain`");
    assert_eq!(way(3389), Some(Way::Direct));
    let told = lab.redirect(&["teardown"]).ended(0).stderr;
    assert!(
        told.contains("1 open connection through an appliance is cut"),
        "{told}"
    );
    drop(other);
    Snapshot::of(&lab).assert_is(&pristine);
}

/// What others remove, `repair` puts back, while what runs goes on.
pub fn repair_puts_back(backend: Backend, mode: Mode) {
    let Some(lab) = lab("repair_puts_back", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    lab.apply(&policy(backend, mode, ""));
    let state = Snapshot::of(&lab).without_handles();
    lab.redirect(&["repair"]).ended(0);
    for damage in [
        "ip link set sps0 down; ip link set sps0 up",
        "ip rule flush; ip rule add priority 32766 lookup main protocol kernel; \
         ip -6 rule del fwmark 1/0xff",
        "ip route flush table 103; ip -6 route flush table 103",
    ] {
        lab.router(damage);
        assert_sealed(&lab);
        lab.redirect(&["status"]).ended(2);
        lab.redirect(&["repair"]).ended(0);
        lab.redirect(&["status"]).ended(0);
        assert_way(&lab, Way::Recorded);
    }
    assert_eq!(leaked(&lab), 0);
    // `ip rule flush` took the default rules too; those are not ours.
    lab.router("ip rule add priority 32767 lookup default protocol kernel");
    Snapshot::of(&lab).without_handles().assert_is(&state);
}

/// Everything of others is there throughout and afterwards, and nothing of ours is left.
pub fn teardown_leaves_no_trace(backend: Backend, mode: Mode) {
    let Some(lab) = lab("teardown_leaves_no_trace", backend, &[]) else {
        return;
    };
    lab.mode(mode);
    // What other programs have on routers; some of it close to ours.
    lab.router(
        "nft -f - <<'NFT'
         table inet filter {
             set blocked {
                 type ipv4_addr
                 flags interval
                 elements = { 192.0.2.0/24 }
             }
             chain forward {
                 type filter hook forward priority 0; policy accept;
                 ct state established,related counter accept
                 ip saddr @blocked drop comment \"scb\"
             }
             chain marks {
                 type filter hook prerouting priority mangle;
                 iifname \"eth2\" meta mark set meta mark | 0x100
             }
         }
         table ip scb {
             chain prerouting {
                 type filter hook prerouting priority -150;
             }
         }
NFT
         ip rule add priority 100 fwmark 0x100/0x100 lookup 200
         ip rule add priority 103 from 192.0.2.1 lookup 200
         ip -6 rule add priority 104 fwmark 0x200/0x200 lookup 201
         ip route add 198.51.100.0/24 via 10.40.0.2 table 200
         ip route add 198.51.100.0/24 via 10.40.0.2 proto 104
         ip -6 route add 2001:db8::/32 via fd00:40::2 table 201
         mkdir -p /etc/iproute2/rt_tables.d
         echo '200 other' >/etc/iproute2/rt_tables.d/other.conf
         echo 1 >/proc/sys/net/ipv4/conf/eth2/src_valid_mark",
    );
    if backend != Backend::Nftables {
        lab.router(
            "iptables -t mangle -A PREROUTING -i eth2 -j MARK --set-xmark 0x400/0x400
             iptables -t mangle -N scb && iptables -t mangle -A FORWARD -j scb
             ip6tables -t filter -A FORWARD -s 2001:db8::/32 -j DROP",
        );
    }
    let before = Snapshot::of(&lab);
    let bystanders = || {
        for server in SERVERS {
            assert_eq!(
                lab.ask("bystander", server, 3389).way(),
                Some(Way::Direct),
                "{server}"
            );
        }
    };
    for rp_filter in ["loose", "off"] {
        lab.apply(&policy(
            backend,
            mode,
            &format!("rp_filter = \"{rp_filter}\""),
        ));
        assert_way(&lab, Way::Recorded);
        bystanders();
        lab.redirect(&["status"]).ended(0);
        lab.redirect(&["teardown"]).ended(0);
        assert_way(&lab, Way::Direct);
        bystanders();
        Snapshot::of(&lab).assert_is(&before);
    }
    // Without the policy's file, and a second time.
    lab.apply(&policy(backend, mode, ""));
    lab.router("rm /etc/redirect/policy.toml");
    lab.redirect(&["teardown"]).ended(0);
    Snapshot::of(&lab).assert_is(&before);
    lab.redirect(&["teardown"]).ended(0);
    Snapshot::of(&lab).assert_is(&before);
}

// --- the list, for each backend ------------------------------------------------------

macro_rules! list {
    ($backend:expr; $($case:ident: $($name:ident = $mode:ident),+;)+) => {
        $($(
            #[test]
            fn $name() {
                super::$case($backend, super::Mode::$mode);
            }
        )+)+
    };
    ($($module:ident = $backend:ident),+ $(,)?) => {
        $(
            mod $module {
                list! { super::Backend::$backend;
                    sessions_are_recorded: sessions_are_recorded_own = Own,
                        sessions_are_recorded_client_address = ClientAddress,
                        sessions_are_recorded_client_address_and_port = ClientAddressAndPort;
                    transfers_arrive_whole: transfers_arrive_whole_own = Own,
                        transfers_arrive_whole_client_address = ClientAddress,
                        transfers_arrive_whole_client_address_and_port = ClientAddressAndPort;
                    slow_servers_are_recorded: slow_servers_are_recorded_client_address = ClientAddress,
                        slow_servers_are_recorded_client_address_and_port = ClientAddressAndPort;
                    a_shared_interface_is_told_apart: a_shared_interface_is_told_apart_own = Own,
                        a_shared_interface_is_told_apart_client_address = ClientAddress;
                    two_appliances_share_the_work: two_appliances_share_the_work = ClientAddress;
                    a_changed_backend_disturbs_none: a_changed_backend_disturbs_none = ClientAddress;
                    a_lost_link_leaks_nothing: a_lost_link_leaks_nothing = ClientAddress;
                    what_others_delete_leaks_nothing: what_others_delete_leaks_nothing = ClientAddress;
                    a_wiped_mark_leaks_nothing: a_wiped_mark_leaks_nothing = ClientAddress;
                    apply_loses_and_leaks_none: apply_loses_and_leaks_none_own = Own,
                        apply_loses_and_leaks_none_client_address = ClientAddress;
                    apply_cuts_what_is_open: apply_cuts_what_is_open_own = Own,
                        apply_cuts_what_is_open_client_address = ClientAddress;
                    established_sessions_are_kept: established_sessions_are_kept = ClientAddress;
                    applying_again_disturbs_none: applying_again_disturbs_none = ClientAddress;
                    a_changed_policy_disturbs_none: a_changed_policy_disturbs_none_own = Own,
                        a_changed_policy_disturbs_none_client_address = ClientAddress,
                        a_changed_policy_disturbs_none_client_address_and_port = ClientAddressAndPort;
                    teardown_loses_none: teardown_loses_none_own = Own,
                        teardown_loses_none_client_address = ClientAddress;
                    draining_cuts_none: draining_cuts_none_own = Own,
                        draining_cuts_none_client_address = ClientAddress;
                    one_of_two_appliances_drains: one_of_two_appliances_drains = Own;
                    repair_puts_back: repair_puts_back = ClientAddress;
                    teardown_leaves_no_trace: teardown_leaves_no_trace = ClientAddress;
                }
            }
        )+
    };
}

list! {
    nftables = Nftables,
    iptables_nft = IptablesNft,
    iptables_legacy = IptablesLegacy,
}

#[test]
fn what_iptables_lacks_is_found_before_anything_is_changed() {
    for backend in [Backend::IptablesNft, Backend::IptablesLegacy] {
        let Some(lab) = lab("what_iptables_lacks", backend, &[]) else {
            return;
        };
        let before = Snapshot::of(&lab);
        // iptables without its extensions, on this router alone.
        let extensions =
            lab.router("dirname \"$(find -L /usr/lib* -name libxt_CONNMARK.so -print -quit)\"");
        lab.router(&format!("mount -t tmpfs none {}", extensions.trim()));
        lab.policy(&policy(backend, Mode::ClientAddress, ""));
        let outcome = lab.redirect(&["apply"]).ended(69);
        assert!(
            outcome.stderr.contains("nothing was changed"),
            "{outcome:?}"
        );
        lab.router(&format!("umount {}", extensions.trim()));
        Snapshot::of(&lab).assert_is(&before);
        lab.redirect(&["apply"]).ended(0);
        assert_way(&lab, Way::Recorded);
    }
}
