//! The packet rules: one model, several renderings.
//!
//! A policy means a short list of rules, the same for every backend; [`nftables`]
//! and the others render them. [`Model::prerouting`] and [`Model::forward`] say in
//! pure code what the kernel is to make of a packet: `trace` explains with them, and
//! tests hold the kernel against them.
//!
//! | rule | packet | what is done |
//! |---|---|---|
//! | 0 | from the appliance | our bits of the packet mark are cleared |
//! | 1 | in on a client interface, not from the appliance, to a server and port | connection and packet mark set |
//! | 2 | with SNAT: from the appliance, to a server and port | connection mark set |
//! | 3 | with SNAT and a server interface: in on it, from a server and port, connection new | connection mark set |
//! | 4 | not from the appliance, connection marked | packet mark set |
//! | 4a | with SNAT: not from the appliance, from a server and port, invalid, neither SYN nor RST | packet mark set |
//! | 5 | forwarded, marked, not from the appliance, not out towards it | refused (the seal) |
//!
//! Three of them say more than one would expect, each for something that was measured:
//!
//! - Rule 1 marks the packet itself and not only its connection, for packets that
//!   connection tracking does not know (NOTRACK, or out of its window) have none, and
//!   would go to the server.
//! - Rule 4a is for an appliance that dials servers with the client's address *and* port. Both
//!   connections are then one to connection tracking, with two sequence spaces, so that
//!   packets of one of them are invalid; without this rule, the servers' answers among them
//!   would go to the client, and most sessions hang. A SYN or RST is left alone, for
//!   those of a bystander whose packets come another way are invalid here too.
//! - The seal asks for the packet's mark *or* its connection's, for a later chain of
//!   somebody else may overwrite the packet's before it is routed.
//!
//! Where several appliances are in use, rule 1 leaves a connection with the appliance
//! whose mark it bears already: sessions are never handed over in mid-stream.

pub mod iptables;
pub mod nftables;

use std::net::IpAddr;

use crate::net::{IfName, IfPattern, MacAddr};
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

    /// What rules 0 to 4 make of `packet`.
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
        for (index, redirect, appliance) in self.redirects() {
            if redirect.snat && from(appliance) && to_servers(redirect, packet) {
                marked.set_connection(appliance);
                marked.taken.push((index, Leg::Appliance));
            }
        }
        for (index, redirect, appliance) in self.redirects() {
            let clients = matches_any(&redirect.client_interfaces, &packet.input)
                && !from(appliance)
                && to_servers(redirect, packet)
                && !redirect.except_clients.contains(packet.source);
            if clients && let Some(taker) = self.taker(packet, marked.connection, appliance) {
                marked.set_connection(taker);
                marked.mark = taker.mark.set_on(marked.mark);
                marked.taken.push((index, Leg::Clients));
                return marked;
            }
            let servers = redirect.snat
                && matches_any(&redirect.server_interfaces, &packet.input)
                && !from(appliance)
                && from_servers(redirect, packet)
                && !redirect.except_clients.contains(packet.destination)
                && matches!(packet.connection, Connection::New(_));
            if servers {
                marked.set_connection(appliance);
                marked.taken.push((index, Leg::Servers));
            }
        }
        let bearer = self.appliances().find(|(_, appliance)| {
            !from(appliance)
                && marked
                    .connection
                    .mark()
                    .is_some_and(|mark| appliance.mark.is_borne_by(mark))
        });
        if let Some((_, appliance)) = bearer {
            marked.mark = appliance.mark.set_on(marked.mark);
        } else if packet.connection == Connection::Invalid
            && packet.flags & (Packet::SYN | Packet::RST) == 0
            && let Some((_, _, appliance)) = self.redirects().find(|(_, redirect, appliance)| {
                redirect.snat
                    && !from(appliance)
                    && from_servers(redirect, packet)
                    && !redirect.except_clients.contains(packet.destination)
            })
        {
            marked.mark = appliance.mark.set_on(marked.mark);
        }
        marked
    }

    /// The appliance that a client's packet goes to, if rule 1 takes it: the one that its
    /// connection has already, or this redirect's.
    fn taker(
        self,
        packet: &Packet,
        connection: Connection,
        appliance: &'p Appliance,
    ) -> Option<&'p Appliance> {
        let bears = |appliance: &Appliance| {
            !Self::is_from(appliance, packet)
                && connection
                    .mark()
                    .is_some_and(|mark| appliance.mark.is_borne_by(mark))
        };
        if let Some((_, bearer)) = self.appliances().find(|(_, appliance)| bears(appliance)) {
            return Some(bearer);
        }
        // What has no connection has none to go on with, either.
        if connection.mark().is_none() {
            return Some(appliance);
        }
        let begins = packet.is_pure_syn() && matches!(connection, Connection::New(_));
        (self.policy.options.established == Established::Redirect || begins).then_some(appliance)
    }

    /// Which redirect would take the packets of a connection that is established already and
    /// bears this mark: its session is cut when the rules go in. None if its appliance has it.
    #[must_use]
    pub fn cuts(
        self,
        (source, destination): (IpAddr, IpAddr),
        port: u16,
        mark: u32,
    ) -> Option<&'p Redirect> {
        if self.policy.options.established == Established::Keep {
            return None;
        }
        let (_, redirect, _) = self.redirects().find(|(_, redirect, _)| {
            redirect.servers.contains(destination)
                && redirect.ports.contains(port)
                && !redirect.except_clients.contains(source)
        })?;
        // What an appliance opened itself is what its clients' sessions go on by.
        let is_taken = self.appliances().any(|(_, appliance)| {
            appliance.mark.is_borne_by(mark) || appliance.addresses.contains(&source)
        });
        (!is_taken).then_some(redirect)
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
    fn set_connection(&mut self, appliance: &Appliance) {
        if let Some(mark) = self.connection.mark() {
            self.connection.set_mark(appliance.mark.set_on(mark));
        }
    }
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
