//! The packet rules: one model, several renderings.
//!
//! A policy means a short list of rules, the same for every backend; [`nftables`]
//! and the others render them. [`Model::prerouting`] and [`Model::forward`] say in
//! pure code what the kernel is to make of a packet: `trace` explains with them, and
//! tests hold the kernel against them.
//!
//! | rule | packet | what is done |
//! |---|---|---|
//! | 0 | from an appliance | our bits of the packet mark are cleared |
//! | 4 | of a marked connection | packet mark set, unless it is from that appliance; settled |
//! | 4b | of a connection that is left alone, but no opening SYN | nothing; settled |
//! | 2 | with SNAT: from the appliance, to a server and port | connection mark set; settled |
//! | 1 | in on a client interface, not from the appliance, to a server and port | connection and packet mark set; settled |
//! | 3 | with SNAT and a server interface: in on it, from a server and port, connection new, no opening SYN | the same |
//! | 3a | not from the appliance, from a server and port, connection new, an opening SYN | connection left alone |
//! | 4a | with SNAT: not from the appliance, from a server and port, invalid, neither SYN nor RST | packet mark set |
//! | 5 | forwarded, marked, not from the appliance, not out towards it | refused (the seal) |
//! | 6 | delivered to the router itself, TCP, marked | packet mark cleared, connection left alone |
//!
//! They stand in the order in which they are asked. Several say more than one would expect,
//! each for something that was measured:
//!
//! - Rule 4 comes before all that looks into sets: of a session, only the first packet pays for
//!   many networks. It also keeps a connection with the appliance that has it, whatever the
//!   policy says now: sessions are never handed over in mid-stream.
//! - Rule 1 marks the packet itself and not only its connection, for packets that
//!   connection tracking does not know (NOTRACK, or out of its window) have none, and
//!   would go to the server.
//! - Rule 3a is for sessions that a server opens, where a redirect's ports reach into those
//!   that servers dial from: what clients answer looks like what rule 1 takes. The direction
//!   that connection tracking knows would not tell them from sessions that it first saw in
//!   mid-stream, by a server's packet, say after a reboot; those must be redirected. So such a
//!   connection is marked when it begins, with [`Model::left_alone`]. A client's own opening
//!   SYN is taken even so.
//! - Rule 4a is for an appliance that dials servers with the client's address *and* port. Both
//!   connections are then one to connection tracking, with two sequence spaces, so that
//!   packets of one of them are invalid; without this rule, the servers' answers among them
//!   would go to the client, and most sessions hang. A SYN or RST is left alone, for
//!   those of a bystander whose packets come another way are invalid here too.
//! - The seal asks for the packet's mark *or* its connection's, for a later chain of
//!   somebody else may overwrite the packet's before it is routed.
//! - Rule 6 is for redirects whose networks hold an address of the router's own. What is for
//!   the router is known only when it is delivered, after address translation. The mark
//!   would do no harm by itself, for the table `local` comes first; but the router's
//!   answers would go to the appliance, if something restores connection marks on output, or
//!   `tcp_fwmark_accept` is set: whoever manages the router would be locked out.

pub mod iptables;
pub mod nftables;

use std::net::IpAddr;

use crate::net::{IfName, IfPattern, MacAddr, Mark};
use crate::policy::{Appliance, Established, OnApplianceDown, Policy, Redirect};

/// Which of the rules marks a connection for a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leg {
    /// Rule 1: what clients open.
    Clients,
    /// Rule 2: what the appliance opens with a client's address.
    Appliance,
    /// Rule 3: what servers answer, if first seen in mid-stream.
    Servers,
}

impl Leg {
    /// The comment of this leg's rule, by which counters are found again.
    #[must_use]
    pub fn comment(self, redirect: &Redirect) -> String {
        let from = match self {
            Self::Clients => "from clients",
            Self::Appliance => "from the appliance",
            Self::Servers => "from servers",
        };
        format!("{}: {from}", redirect.name)
    }
}

/// The comment of the rule that sends on what a client sends and has no connection.
#[must_use]
pub fn unknown_comment(redirect: &Redirect) -> String {
    format!("{}: without a connection", redirect.name)
}

/// The comment of the rule that counts all packets on their way to an appliance.
#[must_use]
pub fn sent_comment(appliance: &Appliance) -> String {
    format!("{}: sent to the appliance", appliance.name)
}

/// The comment of the rule that refuses what would pass an appliance by.
#[must_use]
pub fn seal_comment(appliance: &Appliance) -> String {
    format!("{}: sealed", appliance.name)
}

/// A packet, as far as rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it came in.
    pub input: IfName,
    /// Its Ethernet source, where there is one.
    pub mac: Option<MacAddr>,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its TCP ports, source and destination; none for other protocols.
    pub ports: Option<(u16, u16)>,
    /// Its TCP flags, as [`Packet::SYN`] and its like; 0 for other protocols.
    pub flags: u8,
    /// What connection tracking says of it.
    pub connection: Connection,
    /// Its mark.
    pub mark: u32,
}

impl Packet {
    /// TCP's FIN (RFC 9293, 3.1).
    pub const FIN: u8 = 0x01;
    /// TCP's SYN.
    pub const SYN: u8 = 0x02;
    /// TCP's RST.
    pub const RST: u8 = 0x04;
    /// TCP's ACK.
    pub const ACK: u8 = 0x10;

    /// Whether it opens a connection: a SYN and nothing else.
    fn is_pure_syn(&self) -> bool {
        self.flags & (Self::FIN | Self::SYN | Self::RST | Self::ACK) == Self::SYN
    }
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It was told not to look (NOTRACK).
    Untracked,
    /// The packet fits no connection, or is out of its window.
    Invalid,
    /// The first packet of a connection that bears this mark.
    New(u32),
    /// A packet of a known connection that bears this mark.
    Known(u32),
}

impl Connection {
    /// The connection's mark, if there is a connection.
    #[must_use]
    pub fn mark(self) -> Option<u32> {
        match self {
            Self::Untracked | Self::Invalid => None,
            Self::New(mark) | Self::Known(mark) => Some(mark),
        }
    }

    fn set_mark(&mut self, to: u32) {
        match self {
            Self::Untracked | Self::Invalid => {}
            Self::New(mark) | Self::Known(mark) => *mark = to,
        }
    }
}

/// What prerouting made of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The packet's mark afterwards.
    pub mark: u32,
    /// Its connection afterwards.
    pub connection: Connection,
    /// Which redirects' rules took it, in order.
    pub taken: Vec<(usize, Leg)>,
}

/// What a policy means for packets.
#[derive(Debug, Clone, Copy)]
pub struct Model<'p> {
    policy: &'p Policy,
}

impl<'p> Model<'p> {
    /// The rules of `policy`.
    #[must_use]
    pub fn new(policy: &'p Policy) -> Self {
        Self { policy }
    }

    /// Whether everything that comes in on an interface meant by `pattern` is from `appliance`.
    #[must_use]
    pub fn wholly_from(appliance: &Appliance, pattern: &IfPattern) -> bool {
        appliance.macs.is_empty() && *pattern == IfPattern::Exact(appliance.interface.clone())
    }

    /// Whether `packet` is from `appliance`.
    #[must_use]
    pub fn is_from(appliance: &Appliance, packet: &Packet) -> bool {
        appliance.interface == packet.input
            && (appliance.macs.is_empty()
                || packet.mac.is_some_and(|mac| appliance.macs.contains(&mac)))
    }

    /// The appliances that some redirect goes through, with their indices.
    pub fn appliances(self) -> impl Iterator<Item = (usize, &'p Appliance)> + use<'p> {
        let policy = self.policy;
        policy
            .appliances
            .iter()
            .enumerate()
            .filter(move |(index, _)| {
                policy
                    .redirects
                    .iter()
                    .any(|redirect| redirect.appliance == *index)
            })
    }

    /// Whether marked packets are refused that would not leave towards the appliance.
    #[must_use]
    pub fn is_sealed(self) -> bool {
        self.policy.options.on_appliance_down == OnApplianceDown::Block
    }

    /// The mark of connections that are left alone: the highest under the mask that no
    /// appliance has. None where they have them all; then nothing is left alone for good.
    #[must_use]
    pub fn left_alone(self) -> Option<Mark> {
        let mask = self.policy.options.mark_mask;
        let mut value = mask;
        while self
            .policy
            .appliances
            .iter()
            .any(|appliance| appliance.mark.value == value)
        {
            value = value.wrapping_sub(1) & mask;
        }
        (value != 0).then_some(Mark { value, mask })
    }

    /// What rules 0 to 4b make of `packet`.
    #[must_use]
    pub fn prerouting(self, packet: &Packet) -> Marked {
        let mut marked = Marked {
            mark: packet.mark,
            connection: packet.connection,
            taken: Vec::new(),
        };
        let from = |appliance: &Appliance| Self::is_from(appliance, packet);
        if self.appliances().any(|(_, appliance)| from(appliance)) {
            marked.mark &= !self.policy.options.mark_mask;
        }
        if let Some(bearer) = self.bearer(packet.connection) {
            if !from(bearer) {
                marked.mark = bearer.mark.set_on(marked.mark);
            }
            return marked;
        }
        if self.is_left_alone(packet.connection) && !packet.is_pure_syn() {
            return marked;
        }
        let is_tracked = packet.connection.mark().is_some();
        for (index, redirect, appliance) in self.redirects() {
            if is_tracked && redirect.snat && from(appliance) && to_servers(redirect, packet) {
                marked.set_connection(appliance.mark);
                marked.taken.push((index, Leg::Appliance));
                return marked;
            }
        }
        let taken = self
            .redirects()
            .filter(|(_, _, appliance)| !from(appliance))
            .find(|(_, redirect, _)| self.is_clients(redirect, packet))
            .map(|found| (found, Leg::Clients))
            .or_else(|| {
                self.redirects()
                    .filter(|(_, _, appliance)| !from(appliance))
                    .find(|(_, redirect, _)| is_picked_up(redirect, packet))
                    .map(|found| (found, Leg::Servers))
            });
        if let Some(((index, _, appliance), leg)) = taken {
            marked.set_connection(appliance.mark);
            marked.mark = appliance.mark.set_on(marked.mark);
            marked.taken.push((index, leg));
            return marked;
        }
        self.new_or_invalid(packet, &mut marked);
        marked
    }

    /// Rules 3a and 4a.
    fn new_or_invalid(self, packet: &Packet, marked: &mut Marked) {
        let mut others = self
            .redirects()
            .filter(|(_, _, appliance)| !Self::is_from(appliance, packet));
        match packet.connection {
            Connection::New(_) if packet.is_pure_syn() => {
                if let Some(mark) = self.left_alone()
                    && others.any(|(_, redirect, _)| from_servers(redirect, packet))
                {
                    marked.set_connection(mark);
                }
            }
            Connection::Invalid if packet.flags & (Packet::SYN | Packet::RST) == 0 => {
                let answered =
                    others.find(|(_, redirect, _)| redirect.snat && is_answer(redirect, packet));
                if let Some((_, _, appliance)) = answered {
                    marked.mark = appliance.mark.set_on(marked.mark);
                }
            }
            _ => {}
        }
    }

    /// Whether rule 1 takes `packet`, if it is not from the appliance nor settled.
    fn is_clients(self, redirect: &Redirect, packet: &Packet) -> bool {
        let begins = packet.is_pure_syn() && matches!(packet.connection, Connection::New(_));
        let may = self.policy.options.established == Established::Redirect
            || begins
            // What has no connection has none to go on with, either.
            || packet.connection.mark().is_none();
        may && matches_any(&redirect.client_interfaces, &packet.input)
            && to_servers(redirect, packet)
            && !redirect.except_clients.contains(packet.source)
    }

    /// The appliance that a connection has.
    fn bearer(self, connection: Connection) -> Option<&'p Appliance> {
        let mark = connection.mark()?;
        self.appliances()
            .map(|(_, appliance)| appliance)
            .find(|appliance| appliance.mark.is_borne_by(mark))
    }

    fn is_left_alone(self, connection: Connection) -> bool {
        match (self.left_alone(), connection.mark()) {
            (Some(alone), Some(mark)) => alone.is_borne_by(mark),
            _ => false,
        }
    }

    /// What rule 6 makes of `packet`, with the marks that prerouting gave it, where it is
    /// delivered to the router itself.
    #[must_use]
    pub fn input(self, packet: &Packet, mut marked: Marked) -> Marked {
        let bears = self.appliances().any(|(_, appliance)| {
            let connection = marked.connection.mark();
            appliance.mark.is_borne_by(marked.mark)
                || connection.is_some_and(|mark| appliance.mark.is_borne_by(mark))
        });
        if packet.ports.is_some() && bears {
            marked.mark &= !self.policy.options.mark_mask;
            marked.set_connection(self.alone_or_unmarked());
        }
        marked
    }

    /// What rule 6 gives a connection.
    fn alone_or_unmarked(self) -> Mark {
        self.left_alone().unwrap_or(Mark {
            value: 0,
            mask: self.policy.options.mark_mask,
        })
    }

    /// Which redirect would take the packets of a connection that is established already and
    /// bears this mark: its session is cut when the rules go in. None if its appliance has it.
    ///
    /// The one that opened it and the one that answered, with their ports. What a server
    /// opened is cut, too, if the ports are those of a redirect: the rules have not seen it begin.
    #[must_use]
    pub fn cuts(self, ends: [(IpAddr, u16); 2], mark: u32) -> Option<usize> {
        if self.policy.options.established == Established::Keep {
            return None;
        }
        // What an appliance opened itself is what its clients' sessions go on by.
        let is_taken = self.appliances().any(|(_, appliance)| {
            appliance.mark.is_borne_by(mark) || appliance.addresses.contains(&ends[0].0)
        });
        if is_taken || self.is_left_alone(Connection::Known(mark)) {
            return None;
        }
        let [opener, answerer] = ends;
        self.policy.redirects.iter().position(|redirect| {
            is_session(redirect, opener, answerer) || is_session(redirect, answerer, opener)
        })
    }

    /// Whether a connection that bears this mark stays with its appliance, although such
    /// sessions now go through another, with SNAT. That does not hold for packets that fit no
    /// connection, for they bear no mark: if the appliance dials servers with the client's address
    /// *and* port, half of a session's packets are such, and the session is reset. (The kernel keeps
    /// no tuple of theirs to go by; `nf_conntrack_tcp_be_liberal` makes them fit.)
    #[must_use]
    pub fn parts(self, [opener, answerer]: [(IpAddr, u16); 2], mark: u32) -> bool {
        let Some(bearer) = self.bearer(Connection::Known(mark)) else {
            return false;
        };
        self.redirects()
            .find(|(_, redirect, _)| is_session(redirect, opener, answerer))
            .is_some_and(|(_, redirect, appliance)| redirect.snat && appliance != bearer)
    }

    /// Whether rule 5 lets `packet`, with the marks that prerouting gave it, out of `output`.
    #[must_use]
    pub fn forward(self, packet: &Packet, marked: &Marked, output: &IfName) -> bool {
        !self.is_sealed()
            || self.appliances().all(|(_, appliance)| {
                let connection = marked.connection.mark();
                let bears = appliance.mark.is_borne_by(marked.mark)
                    || connection.is_some_and(|mark| appliance.mark.is_borne_by(mark));
                !bears || appliance.interface == *output || Self::is_from(appliance, packet)
            })
    }

    fn redirects(self) -> impl Iterator<Item = (usize, &'p Redirect, &'p Appliance)> + use<'p> {
        let policy = self.policy;
        policy
            .redirects
            .iter()
            .enumerate()
            .filter_map(move |(index, redirect)| {
                Some((index, redirect, policy.appliance_of(redirect)?))
            })
    }
}

impl Marked {
    fn set_connection(&mut self, to: Mark) {
        if let Some(mark) = self.connection.mark() {
            self.connection.set_mark(to.set_on(mark));
        }
    }
}

/// Whether a client's session with a server is one of the redirect's, wherever it comes in.
fn is_session(
    redirect: &Redirect,
    (client, _): (IpAddr, u16),
    (server, port): (IpAddr, u16),
) -> bool {
    redirect.servers.contains(server)
        && redirect.ports.contains(port)
        && !redirect.except_clients.contains(client)
}

/// Whether a packet may be a server's answer to a client that is not excepted.
fn is_answer(redirect: &Redirect, packet: &Packet) -> bool {
    from_servers(redirect, packet) && !redirect.except_clients.contains(packet.destination)
}

/// Whether rule 3 takes `packet`, if it is not from the appliance nor settled.
fn is_picked_up(redirect: &Redirect, packet: &Packet) -> bool {
    redirect.snat
        && matches_any(&redirect.server_interfaces, &packet.input)
        && is_answer(redirect, packet)
        && matches!(packet.connection, Connection::New(_))
        && !packet.is_pure_syn()
}

/// All interfaces that the policy names, exact names first, then patterns, the longest first.
fn patterns(policy: &Policy) -> Vec<IfPattern> {
    let model = Model::new(policy);
    let mut patterns: Vec<IfPattern> = model
        .appliances()
        .map(|(_, appliance)| appliance.interface.clone())
        .map(IfPattern::Exact)
        .collect();
    for redirect in &policy.redirects {
        patterns.extend(redirect.client_interfaces.iter().cloned());
        if redirect.snat {
            patterns.extend(redirect.server_interfaces.iter().cloned());
        }
    }
    let length = |pattern: &IfPattern| match pattern {
        IfPattern::Exact(_) => usize::MAX,
        IfPattern::Prefix(prefix) => prefix.len(),
    };
    patterns.sort_by(|a, b| length(b).cmp(&length(a)).then_with(|| a.cmp(b)));
    patterns.dedup();
    patterns
}

fn matches_any(patterns: &[IfPattern], name: &IfName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

fn to_servers(redirect: &Redirect, packet: &Packet) -> bool {
    redirect.servers.contains(packet.destination)
        && packet
            .ports
            .is_some_and(|(_, port)| redirect.ports.contains(port))
}

fn from_servers(redirect: &Redirect, packet: &Packet) -> bool {
    redirect.servers.contains(packet.source)
        && packet
            .ports
            .is_some_and(|(port, _)| redirect.ports.contains(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::policy;

    fn two_appliances() -> Policy {
        policy(
            r#"
            version = 1
            [appliance.a]
            address = "10.30.0.2"
            interface = "sps0"
            [appliance.b]
            address = "10.40.0.2"
            interface = "sps1"
            [[redirect]]
            name = "rdp"
            appliance = "b"
            client_interface = "eth0"
            server_network = "10.20.0.0/24"
            port = 3389
            snat = true
            [[redirect]]
            name = "high"
            appliance = "a"
            client_interface = "eth0"
            server_network = "10.21.0.0/24"
            port = "1024-65535"
            snat = false
            "#,
        )
    }

    fn ends(opener: (&str, u16), answerer: (&str, u16)) -> [(IpAddr, u16); 2] {
        [opener, answerer].map(|(address, port)| (address.parse().unwrap(), port))
    }

    #[test]
    fn open_sessions_are_cut_kept_or_parted() {
        let policy = two_appliances();
        let model = Model::new(&policy);
        let rdp = ends(("10.10.0.7", 40000), ("10.20.0.2", 3389));
        for (mark, cut, parted) in [
            (0, Some(0), false),
            // With the other appliance, before the policy was changed.
            (1, None, true),
            (2, None, false),
            (0xff, None, false),
        ] {
            assert_eq!(model.cuts(rdp, mark), cut, "{mark}");
            assert_eq!(model.parts(rdp, mark), parted, "{mark}");
        }
        // A server opened it, before the rules could see.
        let opened = ends(("10.21.0.2", 40000), ("10.10.0.7", 22));
        assert_eq!(model.cuts(opened, 0), Some(1));
        assert_eq!(
            model.cuts(ends(("10.21.0.2", 22), ("10.10.0.7", 22)), 0),
            None
        );
        // Nor does one without SNAT part.
        assert!(!model.parts(ends(("10.10.0.7", 40000), ("10.21.0.2", 3389)), 2));
    }

    #[test]
    fn what_a_server_opens_is_left_alone_and_what_a_client_opens_never() {
        let policy = two_appliances();
        let model = Model::new(&policy);
        let alone = model.left_alone().unwrap();
        assert_eq!(
            alone,
            Mark {
                value: 0xff,
                mask: 0xff
            }
        );
        let packet = |input: &str, [from, to]: [(IpAddr, u16); 2], flags, connection| Packet {
            input: IfName::new(input).unwrap(),
            mac: None,
            source: from.0,
            destination: to.0,
            ports: Some((from.1, to.1)),
            flags,
            connection,
            mark: 0,
        };
        let (server, client) = (("10.21.0.2", 40000), ("10.10.0.7", 22));
        let opening = packet(
            "eth1",
            ends(server, client),
            Packet::SYN,
            Connection::New(0),
        );
        let opened = model.prerouting(&opening);
        assert_eq!((opened.mark, opened.connection.mark()), (0, Some(0xff)));
        let answer = |flags, connection| {
            model.prerouting(&packet("eth0", ends(client, server), flags, connection))
        };
        let known = Connection::Known(0xff);
        assert_eq!(answer(Packet::SYN | Packet::ACK, known).mark, 0);
        assert_eq!(answer(Packet::ACK, known).mark, 0);
        // The client itself opens a session with the same ends.
        assert_eq!(answer(Packet::SYN, known).mark, 1);
        // First seen in mid-stream, by whichever side: redirected.
        let middle = packet(
            "eth1",
            ends(server, client),
            Packet::ACK,
            Connection::New(0),
        );
        let picked_up = model.prerouting(&middle).connection;
        assert_eq!(picked_up.mark(), Some(0));
        assert_eq!(answer(Packet::ACK, Connection::Known(0)).mark, 1);
    }

    #[test]
    fn the_router_itself_is_locked_out_by_no_mark() {
        let policy = two_appliances();
        let model = Model::new(&policy);
        let [source, destination] = ends(("10.10.0.7", 40000), ("10.20.0.1", 3389));
        let mut packet = Packet {
            input: IfName::new("eth0").unwrap(),
            mac: None,
            source: source.0,
            destination: destination.0,
            ports: Some((source.1, destination.1)),
            flags: Packet::SYN,
            connection: Connection::New(0x100),
            mark: 0x100,
        };
        let marked = model.prerouting(&packet);
        assert_eq!(
            (marked.mark, marked.connection.mark()),
            (0x102, Some(0x102))
        );
        let delivered = model.input(&packet, marked);
        assert_eq!(
            (delivered.mark, delivered.connection.mark()),
            (0x100, Some(0x1ff))
        );
        packet.connection = delivered.connection;
        packet.flags = Packet::ACK;
        assert_eq!(model.prerouting(&packet).mark, 0x100);
    }

    #[test]
    fn a_mask_without_room_leaves_nothing_alone() {
        let mut policy = two_appliances();
        policy.options.mark_mask = 0b11;
        for (appliance, value) in policy.appliances.iter_mut().zip([3, 1]) {
            appliance.mark = Mark { value, mask: 0b11 };
        }
        let alone = |policy: &Policy| Model::new(policy).left_alone().map(|mark| mark.value);
        assert_eq!(alone(&policy), Some(2));
        policy.options.mark_mask = 1;
        for appliance in &mut policy.appliances {
            appliance.mark = Mark { value: 1, mask: 1 };
        }
        assert_eq!(alone(&policy), None);
    }
}
