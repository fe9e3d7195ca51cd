//! Routes and routing rules, as `ip route` and `ip rule` speak of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{IfName, Mark};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits in an address.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The flag of `ip`: `-4` or `-6`.
    #[must_use]
    pub fn ip_flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// The directory under `/proc/sys/net`.
    #[must_use]
    pub fn sysctl_name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The address whose integer value is `bits`; bits too many for IPv4 are cut off.
    #[must_use]
    pub fn address(self, bits: u128) -> IpAddr {
        match self {
            #[expect(clippy::cast_possible_truncation, reason = "documented: cut off")]
            Self::V4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            Self::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A routing table's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub u32);

impl TableId {
    /// `main`, where routes go that name no table.
    pub const MAIN: Self = Self(254);

    /// Whether the kernel keeps this number for itself: 0, and `default`,
    /// `main` and `local` (`include/uapi/linux/rtnetlink.h`).
    #[must_use]
    pub fn is_reserved(self) -> bool {
        matches!(self.0, 0 | 253..=255)
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a rule stands: lower ones are asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RulePriority(pub u32);

impl fmt::Display for RulePriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who installed a route or rule (`RTPROT_*`, `proto` in `ip`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// Everything of ours in the routing tables bears this.
    pub const OURS: Self = Self(103);
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Refuses it with an ICMP error.
    Unreachable,
    /// Any other, by its number (`RTN_*`).
    Other(u8),
}

/// One route, with all attributes that tell it from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The table it stands in.
    pub table: TableId,
    /// What it leads to; `None` is the default route.
    pub destination: Option<IpNet>,
    /// What it does.
    pub kind: RouteKind,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The interface it leaves by. None for unreachable routes, whatever the
    /// kernel reports for them (for IPv6 it says `lo`).
    pub interface: Option<IfName>,
    /// Lower is preferred. What the kernel reports: IPv6 turns 0 into 1024.
    pub metric: u32,
    /// Who installed it.
    pub protocol: RouteProtocol,
    /// Attributes that ours never have, as type and bytes; whatever is here makes
    /// a route unlike ours. Types from 0x3ff0 stand for fields of the message's header.
    pub others: Vec<(u16, Vec<u8>)>,
}

/// What a rule does with a packet that it selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Looks in this table, and goes on with the next rule if nothing is found there.
    Lookup(TableId),
    /// Any other, by its number (`FR_ACT_*`).
    Other(u8),
}

/// What a rule selects by, the mark aside. Ours have none of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleSelectors {
    /// `not`: selects what the others do not.
    pub invert: bool,
    /// `from`.
    pub source: Option<IpNet>,
    /// `to`.
    pub destination: Option<IpNet>,
    /// `iif`.
    pub input: Option<String>,
    /// `oif`.
    pub output: Option<String>,
    /// `tos`.
    pub tos: u8,
    /// `ipproto`, by number.
    pub ip_protocol: Option<u8>,
    /// `sport`.
    pub source_port: Option<(u16, u16)>,
    /// `dport`.
    pub destination_port: Option<(u16, u16)>,
    /// `suppress_prefixlength`.
    pub suppress_prefix_length: Option<u32>,
    /// Any other attribute, as type and bytes.
    pub others: Vec<(u16, Vec<u8>)>,
}

/// One rule of the routing policy database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoutingRule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Where it stands.
    pub priority: RulePriority,
    /// The packet mark it selects by; a mask alone, or a value of 0, counts too.
    pub mark: Option<Mark>,
    /// What else it selects by.
    pub selectors: RuleSelectors,
    /// What it does.
    pub action: Action,
    /// Who installed it.
    pub protocol: RouteProtocol,
}

impl fmt::Display for Route {
    /// As `ip route` takes it, what is usual left out; for people to read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
        }
        match self.destination {
            Some(network) => write!(f, "{network}")?,
            None => f.write_str("default")?,
        }
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " dev {interface}")?;
        }
        write!(f, " table {}", self.table)?;
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        write!(f, " proto {}", self.protocol.0)?;
        for (kind, _) in &self.others {
            write!(f, " (attribute {kind:#x})")?;
        }
        Ok(())
    }
}

impl fmt::Display for RoutingRule {
    /// As `ip rule` takes it, what is usual left out; for people to read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selectors = &self.selectors;
        write!(f, "priority {}", self.priority)?;
        if selectors.invert {
            f.write_str(" not")?;
        }
        for (word, network) in [("from", selectors.source), ("to", selectors.destination)] {
            if let Some(network) = network {
                write!(f, " {word} {network}")?;
            }
        }
        if selectors.tos != 0 {
            write!(f, " tos {:#x}", selectors.tos)?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark}")?;
        }
        for (word, name) in [("iif", &selectors.input), ("oif", &selectors.output)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        if let Some(number) = selectors.ip_protocol {
            write!(f, " ipproto {number}")?;
        }
        for (word, range) in [
            ("sport", selectors.source_port),
            ("dport", selectors.destination_port),
        ] {
            if let Some((first, last)) = range {
                write!(f, " {word} {first}-{last}")?;
            }
        }
        match self.action {
            Action::Lookup(table) => write!(f, " lookup {table}")?,
            Action::Other(number) => write!(f, " action {number}")?,
        }
        if let Some(length) = selectors.suppress_prefix_length {
            write!(f, " suppress_prefixlength {length}")?;
        }
        write!(f, " protocol {}", self.protocol.0)?;
        for (kind, _) in &selectors.others {
            write!(f, " (attribute {kind:#x})")?;
        }
        Ok(())
    }
}
