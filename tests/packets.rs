//! What the rules mean, asked of the real kernel.
//!
//! Random policies are put into a network namespace by each backend in turn; random packets
//! are sent through it as Ethernet frames, and a table of ours at other priorities writes
//! down what became of each: its mark, its connection's mark, and whether it was let
//! through. All of it must be what [`Model`] says, for every backend.
//!
//! `REDIRECT_TEST_POLICIES` sets how many policies are tried, `REDIRECT_TEST_SEED` the first.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on is to fail, and one that is skipped is to say so"
)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use redirect::iptables::{Ruleset, Variant};
use redirect::kernel::iptables::Xtables;
use redirect::kernel::nftables::Nftables;
use redirect::kernel::process;
use redirect::net::{Family, IfName, MacAddr};
use redirect::observation::Iptables;
use redirect::plan::Change;
use redirect::policy::{self, Policy, Source};
use redirect::rules::{self, Connection, Leg, Model, Packet};

/// The router's interfaces. Each has a peer, `p0` and so on, in the same namespace.
const INTERFACES: [&str; 7] = ["eth0", "eth1", "ppp0", "ppp1", "sps0", "sps1", "far0"];
const APPLIANCE_MAC: MacAddr = MacAddr([2, 0, 0x5e, 0, 0, 1]);
const OTHER_MAC: MacAddr = MacAddr([2, 0, 0x5e, 0, 0, 2]);
const PATIENCE: Duration = Duration::from_secs(60);
const PACKETS: u32 = 300;

const FIN: u8 = Packet::FIN;
const SYN: u8 = Packet::SYN;
const RST: u8 = Packet::RST;
const ACK: u8 = Packet::ACK;

/// The router's own, among those of the servers.
const OWN: [&str; 2] = ["10.20.0.9", "fd00:20::9"];

/// Where the router would route to, packet marks aside.
const ROUTES: [(&str, &str); 10] = [
    ("10.10.0.0/16", "eth0"),
    ("10.20.0.0/16", "eth1"),
    ("10.20.0.128/26", "sps0"),
    ("10.20.1.64/26", "sps1"),
    ("10.30.0.0/16", "sps0"),
    ("fd00:10::/32", "ppp0"),
    ("fd00:20::/32", "eth1"),
    ("fd00:20::8000/113", "sps0"),
    ("fd00:20::4000/114", "sps1"),
    ("fd00:30::/32", "sps0"),
];

/// The identity of a packet stands 20 bytes after its IP header: for TCP that is where the
/// payload begins.
const OBSERVER: &str = r"
table inet observer {
    set untracked { typeof @th,160,32; }
    map packet_marks { typeof @th,160,32 : meta mark; }
    map connection_marks { typeof @th,160,32 : ct mark; }
    set seen { typeof @th,160,32 . meta mark; flags dynamic; size 65535; }
    set connections { typeof @th,160,32 . ct mark; flags dynamic; size 65535; }
    set forwarded { typeof @th,160,32; flags dynamic; size 65535; }
    set delivered { typeof @th,160,32 . meta mark; flags dynamic; size 65535; }
    set delivered_connections { typeof @th,160,32 . ct mark; flags dynamic; size 65535; }
    chain raw {
        type filter hook prerouting priority raw
        @th,160,32 @untracked notrack
    }
    chain before {
        type filter hook prerouting priority -175
        meta mark set @th,160,32 map @packet_marks
        ct mark set @th,160,32 map @connection_marks
    }
    chain after {
        type filter hook prerouting priority -120
        add @connections { @th,160,32 . ct mark }
        add @seen { @th,160,32 . meta mark }
    }
    chain forward {
        type filter hook forward priority 0
        add @forwarded { @th,160,32 }
    }
    chain input {
        type filter hook input priority 0
        add @delivered_connections { @th,160,32 . ct mark }
        add @delivered { @th,160,32 . meta mark }
    }
    # Nobody listens here; a refusal would end the connections that are to stand.
    chain output {
        type filter hook output priority -350
        drop
    }
}
";

/// Numbers as good as random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, items: &[T]) -> T {
        items.get(self.below(items.len())).unwrap().clone()
    }

    fn some<T: Clone>(&mut self, items: &[T], most: usize) -> Vec<T> {
        (0..=self.below(most)).map(|_| self.of(items)).collect()
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let output = process::run(program, arguments, input.as_bytes(), PATIENCE).unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{input}",
        output.complaint()
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A policy that the reader takes. Few networks, ports and interfaces, so that they meet.
fn random_policy(random: &mut Random) -> (String, Policy) {
    loop {
        let text = random_text(random);
        if let Ok(reading) = policy::read(&Source::from_text("random", text.as_str()))
            && !reading.policy.is_empty()
        {
            return (text, reading.policy);
        }
    }
}

fn random_text(random: &mut Random) -> String {
    let mut text = String::from("version = 1\n");
    let two = random.one_in(3);
    let (mask, marks) = random.of(&[
        ("0xff", [1, 2]),
        ("0xf0", [0x10, 0xf0]),
        ("0xffffffff", [7, 9]),
        ("0x3", [1, 2]),
        ("0x3", [1, 3]),
        ("0x1", [1, 1]),
    ]);
    for at in 0..=usize::from(two) {
        let interface = if at == 0 {
            random.of(&["sps0", "sps0", "eth1"])
        } else {
            random.of(&["sps1", "sps1", "eth1"])
        };
        let _ = writeln!(
            text,
            "[appliance.a{at}]\naddress = [\"10.30.{at}.2\", \"fd00:30:{at}::2\"]\ninterface = \"{interface}\"\nmark = {}",
            marks.get(at).unwrap()
        );
        if interface == "eth1" || random.one_in(4) {
            let mac = if at == 0 { APPLIANCE_MAC } else { OTHER_MAC };
            let _ = writeln!(text, "mac = \"{mac}\"");
        }
    }
    for at in 0..=random.below(5) {
        let clients = random.some(
            &["eth0", "eth0", "ppp0", "ppp*", "p*", "eth1", "far0", "sps0"],
            2,
        );
        let _ = writeln!(
            text,
            "[[redirect]]\nname = \"r{at}\"\nappliance = \"a{}\"\nclient_interface = {clients:?}\nsnat = {}",
            random.below(1 + usize::from(two)),
            random.one_in(2),
        );
        if random.one_in(2) {
            let servers = random.some(&["eth1", "eth1", "ppp*", "far0", "eth0"], 2);
            let _ = writeln!(text, "server_interface = {servers:?}");
        }
        let networks: &[&str] = &[
            "10.20.0.0/24",
            "10.20.0.128/25",
            "10.20.1.0/24",
            "10.20.0.7",
            "10.20.0.130/31",
            "fd00:20::/112",
            "fd00:20::1:0/112",
            "fd00:20::4007",
            "0.0.0.0/0",
        ];
        let networks = if random.one_in(3) {
            // Too many for a rule each.
            (0..40)
                .map(|_| format!("10.20.{}.{}", random.below(2), random.below(256)))
                .collect()
        } else {
            let some = random.some(networks, 3);
            some.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let _ = writeln!(text, "server_network = {networks:?}");
        let ports = if random.one_in(4) {
            // Too many for one test.
            (0..25).map(|port| format!("{}", 3000 + port * 2)).collect()
        } else {
            let some = random.some(&["22", "3010", "3000-3009", "1-65535", "80"], 2);
            some.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let _ = writeln!(text, "port = {ports:?}");
        if random.one_in(2) {
            let clients = random.some(
                &[
                    "10.10.0.0/28",
                    "10.10.0.77",
                    "10.10.1.0/24",
                    "fd00:10::/120",
                    "10.20.0.0/28",
                ],
                3,
            );
            let _ = writeln!(text, "except_client = {clients:?}");
        }
        if random.one_in(3) {
            let _ = writeln!(text, "except_server = [\"10.20.0.64/27\", \"fd00:20::7\"]");
        }
    }
    let _ = writeln!(
        text,
        "[options]\nmark_mask = {mask}\non_appliance_down = \"{}\"\nestablished = \"{}\"",
        random.of(&["block", "block", "bypass"]),
        random.of(&["redirect", "keep"]),
    );
    // Ports given as numbers are numbers.
    text.replace("[\"22\"]", "[22]")
}

fn random_address(random: &mut Random, family: Family) -> IpAddr {
    let host = random.below(256);
    let address = match family {
        Family::V4 => format!(
            "10.{}.{}.{host}",
            random.of(&[10, 10, 20, 20, 20, 30]),
            random.below(2)
        ),
        Family::V6 => format!(
            "fd00:{}::{}{:x}",
            random.of(&[10, 10, 20, 20, 20, 30]),
            random.of(&["", "", "1:", "40"]),
            if random.one_in(4) { 7 } else { host }
        ),
    };
    address.parse().unwrap()
}

/// Packets of the families that the policy redirects, each of a connection of its own.
fn random_packets(random: &mut Random, policy: &Policy) -> Vec<Packet> {
    let families: Vec<Family> = Family::ALL
        .into_iter()
        .filter(|family| {
            policy
                .redirects
                .iter()
                .any(|r| !r.servers.is_empty_of(*family))
        })
        .collect();
    let marks: Vec<u32> = policy
        .appliances
        .iter()
        .map(|a| a.mark.value)
        .chain([0, 0, 0, 0x100, 0xdead_be00, u32::MAX])
        .chain(Model::new(policy).left_alone().map(|mark| mark.value))
        .collect();
    let mut connections = HashSet::new();
    let mut packets = Vec::new();
    while packets.len() < usize::try_from(PACKETS).unwrap() {
        let family = random.of(&families);
        let source = random_address(random, family);
        let destination = if random.one_in(10) {
            OWN[usize::from(family == Family::V6)].parse().unwrap()
        } else {
            random_address(random, family)
        };
        let mut port = || match random.below(3) {
            0 => random.of(&[22, 80, 3010]),
            1 => u16::try_from(2998 + random.below(60)).unwrap(),
            _ => u16::try_from(1 + random.below(65_535)).unwrap(),
        };
        let ports = (port(), port());
        let tcp = !random.one_in(12);
        let fresh = source != destination
            && !is_own(source)
            && connections.insert((source, destination, ports.0, ports.1))
            && connections.insert((destination, source, ports.1, ports.0));
        if !fresh {
            continue;
        }
        let mark = random.of(&marks);
        let (connection, flags) = match random.below(8) {
            0 => (
                Connection::Untracked,
                random.of(&[SYN, ACK, FIN, RST, SYN | ACK]),
            ),
            // What no connection can begin with (`tcp_conntracks` in the kernel).
            1 if tcp => (
                Connection::Invalid,
                random.of(&[0, FIN, FIN | ACK, RST, SYN | ACK]),
            ),
            // A SYN in a connection that stands, connection tracking takes for something else.
            2 | 3 if tcp => (Connection::Known(mark), ACK),
            _ => (Connection::New(mark), random.of(&[SYN, SYN, SYN, ACK])),
        };
        let flags = if tcp { flags } else { 0 };
        packets.push(Packet {
            input: IfName::new(random.of(&INTERFACES)).unwrap(),
            mac: Some(random.of(&[APPLIANCE_MAC, OTHER_MAC, MacAddr([2, 0, 0, 0, 0, 9])])),
            source,
            destination,
            ports: tcp.then_some(ports),
            flags,
            connection,
            mark: random.of(&marks),
        });
    }
    packets
}

fn is_own(address: IpAddr) -> bool {
    OWN.iter().any(|own| own.parse() == Ok(address))
}

/// Where a packet goes.
fn output(packet: &Packet) -> IfName {
    let (_, interface) = ROUTES
        .iter()
        .map(|(network, interface)| (network.parse::<ipnet::IpNet>().unwrap(), interface))
        .filter(|(network, _)| network.contains(&packet.destination))
        .max_by_key(|(network, _)| network.prefix_len())
        .unwrap();
    IfName::new(interface).unwrap()
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match *pair {
            [a, b] => u32::from(u16::from_be_bytes([a, b])),
            [a] => u32::from(a) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A packet as an Ethernet frame; `reversed`, as the other end would answer it.
fn frame(packet: &Packet, id: u32, flags: u8, reversed: bool, to: MacAddr) -> Vec<u8> {
    let (mut source, mut destination) = (packet.source, packet.destination);
    let mut ports = packet.ports.unwrap_or((3010, 3010));
    if reversed {
        (source, destination) = (destination, source);
        ports = (ports.1, ports.0);
    }
    let mut transport = Vec::new();
    transport.extend(ports.0.to_be_bytes());
    transport.extend(ports.1.to_be_bytes());
    let protocol = if packet.ports.is_some() {
        let (sequence, acknowledged) = if reversed {
            (5000_u32, 1001_u32)
        } else if flags == SYN {
            (1000, 0)
        } else {
            (1001, 5001)
        };
        transport.extend(sequence.to_be_bytes());
        transport.extend(acknowledged.to_be_bytes());
        transport.extend([0x50, flags]);
        transport.extend([0xff, 0xff, 0, 0, 0, 0]);
        6
    } else {
        transport.extend([0, 24, 0, 0]);
        transport.extend([0; 12]);
        17
    };
    transport.extend(id.to_be_bytes());
    let length = u16::try_from(transport.len()).unwrap();
    let mac = packet.mac.unwrap();
    let mut frame = [to.0, mac.0].concat();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let [high, low] = sum(&header).to_be_bytes();
            header.splice(10..12, [high, low]);
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("two families in one packet"),
    }
    frame.extend(transport);
    frame
}

/// A router with its links, and the way to send into them.
struct Router {
    socket: OwnedFd,
    peers: BTreeMap<String, (LinkAddr, MacAddr)>,
}

impl Router {
    fn new() -> Self {
        for (at, interface) in INTERFACES.iter().enumerate() {
            let peer = format!("p{at}");
            run(
                "ip",
                &[
                    "link", "add", interface, "type", "veth", "peer", "name", &peer,
                ],
                "",
            );
            for link in [interface, peer.as_str()] {
                run("ip", &["link", "set", link, "arp", "off", "up"], "");
            }
        }
        run("ip", &["link", "set", "lo", "up"], "");
        for address in OWN {
            run("ip", &["addr", "add", address, "dev", "lo"], "");
        }
        for (network, interface) in ROUTES {
            let family = if network.contains(':') { "-6" } else { "-4" };
            run(
                "ip",
                &[family, "route", "add", network, "dev", interface],
                "",
            );
        }
        let mut settings = vec![
            ("net/ipv4/ip_forward".to_owned(), "1"),
            ("net/ipv6/conf/all/forwarding".to_owned(), "1"),
            ("net/ipv4/conf/all/rp_filter".to_owned(), "0"),
            ("net/ipv4/conf/all/send_redirects".to_owned(), "0"),
            // Frames without TCP checksums, and packets in the middle of connections.
            ("net/netfilter/nf_conntrack_checksum".to_owned(), "0"),
            ("net/netfilter/nf_conntrack_tcp_loose".to_owned(), "1"),
            ("net/netfilter/nf_conntrack_tcp_be_liberal".to_owned(), "1"),
        ];
        for interface in INTERFACES {
            for setting in ["rp_filter", "send_redirects"] {
                settings.push((format!("net/ipv4/conf/{interface}/{setting}"), "0"));
            }
        }
        run("nft", &["-f", "-"], OBSERVER);
        for (setting, value) in settings {
            let path = format!("/proc/sys/{setting}");
            #[expect(clippy::disallowed_methods, reason = "a test's own namespace")]
            fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        let mut found = BTreeMap::new();
        for address in getifaddrs().unwrap() {
            if let Some(link) = address.address.and_then(|a| a.as_link_addr().copied()) {
                found.insert(address.interface_name, link);
            }
        }
        let peers = INTERFACES
            .iter()
            .enumerate()
            .map(|(at, interface)| {
                let mac = MacAddr(found.get(*interface).unwrap().addr().unwrap());
                (
                    (*interface).to_owned(),
                    (*found.get(&format!("p{at}")).unwrap(), mac),
                )
            })
            .collect();
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        Self { socket, peers }
    }

    fn send(&self, packet: &Packet, id: u32, flags: u8, reversed: bool) {
        let (peer, mac) = self.peers.get(packet.input.as_str()).unwrap();
        let frame = frame(packet, id, flags, reversed, *mac);
        sendto(self.socket.as_raw_fd(), &frame, peer, MsgFlags::empty()).unwrap();
    }

    /// Makes the connections stand that are to be known.
    fn prepare(&self, packets: &[Packet]) {
        for packet in packets {
            if matches!(packet.connection, Connection::Known(_)) {
                self.send(packet, u32::MAX, SYN, false);
                self.send(packet, u32::MAX, SYN | ACK, true);
                self.send(packet, u32::MAX, ACK, false);
            }
        }
        let (mut untracked, mut packet_marks, mut connection_marks) =
            (Vec::new(), Vec::new(), Vec::new());
        for (id, packet) in packets.iter().enumerate() {
            packet_marks.push(format!("{id} : {}", packet.mark));
            match packet.connection {
                Connection::Untracked => untracked.push(id.to_string()),
                Connection::Invalid => {}
                Connection::New(mark) | Connection::Known(mark) => {
                    connection_marks.push(format!("{id} : {mark}"));
                }
            }
        }
        let mut script = String::new();
        for (name, kind, elements) in [
            ("untracked", "set", untracked),
            ("packet_marks", "map", packet_marks),
            ("connection_marks", "map", connection_marks),
        ] {
            let _ = writeln!(script, "flush {kind} inet observer {name}");
            if !elements.is_empty() {
                let _ = writeln!(
                    script,
                    "add element inet observer {name} {{ {} }}",
                    elements.join(", ")
                );
            }
        }
        run("nft", &["-f", "-"], &script);
    }

    /// Sends them all, and returns what became of each.
    fn ask(&self, packets: &[Packet]) -> Vec<Fate> {
        run(
            "nft",
            &["-f", "-"],
            "flush set inet observer seen\nflush set inet observer connections\nflush set inet observer forwarded\nflush set inet observer delivered\nflush set inet observer delivered_connections\n",
        );
        for (id, packet) in packets.iter().enumerate() {
            self.send(packet, u32::try_from(id).unwrap(), packet.flags, false);
        }
        let begun = Instant::now();
        loop {
            let seen = elements("seen");
            let ids: BTreeSet<_> = seen
                .iter()
                .filter_map(|words| words.first())
                .copied()
                .collect();
            if ids.len() >= packets.len() {
                return fates(packets.len(), &seen);
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{} of {} packets arrived",
                ids.len(),
                packets.len()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fate {
    mark: Option<u32>,
    connection: Option<u32>,
    forwarded: bool,
    /// Its mark and its connection's, if the router itself gets it.
    delivered: Option<(u32, Option<u32>)>,
}

fn fates(count: usize, seen: &[Vec<u32>]) -> Vec<Fate> {
    let mut fates = vec![Fate::default(); count];
    let mut with = |elements: &[Vec<u32>], set: fn(&mut Fate, Option<u32>)| {
        for words in elements {
            let id = usize::try_from(*words.first().unwrap()).unwrap();
            if let Some(fate) = fates.get_mut(id) {
                set(fate, words.get(1).copied());
            }
        }
    };
    with(seen, |fate, mark| fate.mark = mark);
    with(&elements("connections"), |fate, mark| {
        fate.connection = mark;
    });
    with(&elements("forwarded"), |fate, _| fate.forwarded = true);
    with(&elements("delivered"), |fate, mark| {
        fate.delivered = mark.map(|mark| (mark, None));
    });
    with(&elements("delivered_connections"), |fate, found| {
        if let Some((_, connection)) = &mut fate.delivered {
            *connection = found;
        }
    });
    fates
}

/// The elements of a set of the observer's.
fn elements(set: &str) -> Vec<Vec<u32>> {
    let text = run("nft", &["-j", "list", "set", "inet", "observer", set], "");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = json["nftables"].as_array().unwrap();
    let elements = items.iter().find_map(|item| item["set"]["elem"].as_array());
    let number = |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    elements
        .into_iter()
        .flatten()
        .map(|element| match element["concat"].as_array() {
            Some(parts) => parts.iter().map(number).collect(),
            None => vec![number(element)],
        })
        .collect()
}

/// One way of having rules in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Nftables,
    Iptables { variant: Variant, sets: bool },
}

const BACKENDS: [Backend; 5] = [
    Backend::Nftables,
    Backend::Iptables {
        variant: Variant::Legacy,
        sets: true,
    },
    Backend::Iptables {
        variant: Variant::Legacy,
        sets: false,
    },
    Backend::Iptables {
        variant: Variant::Nft,
        sets: true,
    },
    Backend::Iptables {
        variant: Variant::Nft,
        sets: false,
    },
];

/// Puts the rules of `policy` in and returns what takes them out again.
fn apply(backend: Backend, policy: &Policy) -> Vec<Change> {
    let changes = match backend {
        Backend::Nftables => vec![Change::Nftables {
            from: None,
            to: rules::nftables::table(policy),
        }],
        Backend::Iptables { variant, sets } => {
            let rendered = rules::iptables::render(policy, sets).unwrap();
            let sets = rendered.sets.into_iter().map(|set| Change::Ipset {
                from: None,
                to: Some(set),
            });
            let chains = rendered
                .rulesets
                .into_iter()
                .map(|(family, to)| Change::Iptables {
                    variant,
                    command: variant.command().to_owned(),
                    family,
                    from: Ruleset::default(),
                    to,
                });
            sets.chain(chains).collect()
        }
    };
    for change in &changes {
        perform(change);
    }
    changes.into_iter().rev().map(Change::inverse).collect()
}

fn perform(change: &Change) {
    match change {
        Change::Nftables { from, to } => {
            let mut nftables = Nftables::open().unwrap();
            nftables.read().unwrap();
            nftables.commit(from.as_ref(), to.as_ref()).unwrap();
        }
        change => Xtables::default().perform(change).unwrap(),
    }
}

fn check(router: &Router, random: &mut Random, covered: &mut BTreeSet<String>) {
    let (text, policy) = random_policy(random);
    let model = Model::new(&policy);
    let packets = random_packets(random, &policy);
    router.prepare(&packets);
    for backend in BACKENDS {
        let removal = apply(backend, &policy);
        let fates = router.ask(&packets);
        for (packet, fate) in packets.iter().zip(fates) {
            let marked = model.prerouting(packet);
            let is_own = is_own(packet.destination);
            let input = is_own.then(|| model.input(packet, marked.clone()));
            let expected = Fate {
                mark: Some(marked.mark),
                connection: marked.connection.mark(),
                forwarded: !is_own && model.forward(packet, &marked, &output(packet)),
                delivered: input.map(|input| (input.mark, input.connection.mark())),
            };
            if fate != expected {
                let rules =
                    run("iptables-legacy-save", &[], "") + &run("iptables-nft-save", &[], "");
                panic!(
                    "{backend:?}: the kernel makes {fate:x?} of {packet:x?},\nthe model {expected:x?} by {:?}\n{text}\n{rules}",
                    marked.taken
                );
            }
            covered.extend(marked.taken.iter().map(|(_, leg)| format!("{leg:?}")));
            covered.insert(format!(
                "forwarded {} {:?}",
                expected.forwarded,
                packet.connection.mark().is_some()
            ));
            if let Some((mark, _)) = expected.delivered
                && mark != marked.mark
            {
                covered.insert("delivered to the router".to_owned());
            }
            if marked.connection != packet.connection && marked.taken.is_empty() {
                covered.insert("left alone".to_owned());
            }
            if expected.mark != Some(packet.mark) && marked.taken.is_empty() {
                covered.insert(format!(
                    "marked by its connection or cleared: {}",
                    marked.mark == 0
                ));
            }
        }
        removal.iter().for_each(perform);
    }
    assert_eq!(
        Xtables::default().observe().unwrap().sets,
        Iptables::default().sets
    );
}

#[test]
fn every_backend_means_what_the_model_says() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |value| value.parse().unwrap())
    };
    let outcome = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: needs root to make a network namespace ({errno})");
            return;
        }
        let router = Router::new();
        let seed = number("REDIRECT_TEST_SEED", 1);
        let mut covered = BTreeSet::new();
        for seed in seed..seed + number("REDIRECT_TEST_POLICIES", 12) {
            eprintln!("seed {seed}");
            check(
                &router,
                &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                &mut covered,
            );
        }
        for leg in [Leg::Clients, Leg::Appliance, Leg::Servers] {
            assert!(
                covered.contains(&format!("{leg:?}")),
                "no packet was for {leg:?}: {covered:?}"
            );
        }
        for rule in ["delivered to the router", "left alone"] {
            assert!(covered.contains(rule), "no packet was {rule}: {covered:?}");
        }
        eprintln!("covered: {covered:?}");
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
