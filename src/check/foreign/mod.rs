//! The packet rules of others, as far as they can touch our sessions.
//!
//! Read from `nft --json list ruleset` and from what `iptables-save` prints, into one
//! small language; [`walk`] then takes a packet through them. Netlink would do for our own
//! table, whose few expressions we know; rules of others may hold any of the kernel's, and
//! `nft` is what decodes them all. What this language cannot say becomes
//! [`Test::Unknown`], and [`walk`] answers with a doubt instead of a guess.

pub mod iptables;
pub mod nft;
pub mod walk;

use serde::{Deserialize, Serialize};

use crate::net::{Family, IfPattern, MacAddr, Mark, Networks, Ports};

/// All chains of all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// In the order in which they were listed.
    pub chains: Vec<Chain>,
    /// Flowtables.
    pub flowtables: Vec<Flowtable>,
}

impl Ruleset {
    /// The chain that a rule in `from` calls `name`.
    #[must_use]
    pub fn target(&self, from: &Chain, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| {
            chain.name == name
                && chain.system == from.system
                && chain.table_family == from.table_family
                && chain.table == from.table
        })
    }
}

/// Who holds a rule, and so by which program it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// `nft`.
    Nft,
    /// `iptables` and `ip6tables`, whose kernel side is `nf_tables`.
    IptablesNft,
    /// `iptables` and `ip6tables` of old.
    IptablesLegacy,
}

/// A place in the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// After it, between two interfaces.
    Forward,
    /// What the router itself sends.
    Output,
    /// After all.
    Postrouting,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Who holds it.
    pub system: System,
    /// The command that changes it: `nft`, `iptables`, `ip6tables-legacy`.
    pub command: String,
    /// The family of its table: `ip`, `ip6`, `inet`.
    pub table_family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it hangs; none: only jumped to.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Where a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// At which hook.
    pub hook: Hook,
    /// Lower is earlier.
    pub priority: i32,
    /// Whether what reaches its end is dropped.
    pub drops: bool,
    /// Whether it is asked about the first packet of a connection alone.
    pub nat: bool,
}

impl Base {
    /// Where in its hook the kernel asks it. All chains of NAT share one place, whatever their own
    /// priority, which orders them among each other (`nf_nat_ipv4_ops` in the kernel's
    /// `net/netfilter/nf_nat_proto.c`, since Linux 4.18).
    #[must_use]
    pub fn place(self) -> (i32, i32) {
        let place = match (self.nat, self.hook) {
            (false, _) => self.priority,
            (true, Hook::Prerouting | Hook::Output) => -100,
            (true, Hook::Forward | Hook::Postrouting) => 100,
        };
        (place, self.priority)
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// As its own program shows it.
    pub text: String,
    /// nft's handle, or iptables' number in the chain (from 1).
    pub handle: u64,
    /// In order.
    pub steps: Vec<Step>,
}

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Goes on only if this holds.
    If(Test),
    /// Goes on only if this does not hold.
    Unless(Test),
    /// Does this.
    Do(Effect),
}

/// What a rule may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// In on one of these.
    Input(Vec<IfPattern>),
    /// Out of one of these.
    Output(Vec<IfPattern>),
    /// From one of these.
    Source(Networks),
    /// To one of these.
    Destination(Networks),
    /// From one of these ports.
    SourcePort(Ports),
    /// To one of these ports.
    DestinationPort(Ports),
    /// Of this family.
    Family(Family),
    /// Of one of these protocols (`IPPROTO_*`).
    Protocol(Vec<u8>),
    /// In one of these states.
    State(Vec<State>),
    /// TCP flags: those under the mask are exactly these.
    TcpFlags {
        /// Which are looked at.
        mask: u8,
        /// Which of them are set.
        set: u8,
    },
    /// The packet mark, under a mask, is one of these.
    PacketMark {
        /// Which bits are looked at.
        mask: u32,
        /// Their values.
        values: Vec<u32>,
    },
    /// The connection mark, under a mask, is one of these.
    ConnectionMark {
        /// Which bits are looked at.
        mask: u32,
        /// Their values.
        values: Vec<u32>,
    },
    /// From one of these Ethernet addresses.
    Mac(Vec<MacAddr>),
    /// The source would not be reached by the interface that the packet came in on (or, if
    /// `loose`, by none).
    NoReversePath {
        /// Any interface will do.
        loose: bool,
        /// The packet's mark takes part in the question.
        marked: bool,
    },
    /// To an address of the router itself.
    ToRouter,
    /// Of this type of ICMP or `ICMPv6`.
    IcmpType(Vec<u8>),
    /// Something that cannot be told from outside.
    Unknown,
    /// Never.
    Never,
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The first of its connection.
    New,
    /// Of a known connection.
    Established,
    /// Not tracked.
    Untracked,
    /// It fits no connection.
    Invalid,
    /// Any other (`related`), which our packets are not.
    Other,
}

/// Which of the two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// The packet's.
    Packet,
    /// Its connection's.
    Connection,
}

/// What a rule may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// mark := (mark & keep) ^ (the other mark & take) ^ constant.
    Mark {
        /// Which is set.
        which: Which,
        /// Bits of it that stay.
        keep: u32,
        /// Bits of the other mark that come in.
        take: u32,
        /// Bits that are flipped then.
        constant: u32,
    },
    /// Connection tracking shall not see it.
    Untrack,
    /// Its connection goes by this flowtable from now on.
    Offload(String),
    /// The connection's source is rewritten.
    SourceNat,
    /// The connection's destination is rewritten.
    DestinationNat(NewDestination),
    /// This chain is done with it.
    Accept,
    /// It is gone.
    Drop,
    /// It is gone, and its sender is told.
    Reject,
    /// Back to the chain that jumped here.
    Return,
    /// Into a chain, and back.
    Jump(String),
    /// Into a chain, and not back.
    Goto(String),
    /// Our own rules of this hook.
    Ours,
    /// Something of which the outcome cannot be told (a queue, an unknown target).
    Unknown,
}

/// Where destination NAT leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDestination {
    /// To which address.
    pub address: NewAddress,
    /// To which port, the first of several; none: as before.
    pub port: Option<u16>,
}

/// To which address destination NAT leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewAddress {
    /// As before.
    Same,
    /// One of the router's own.
    Router,
    /// One of these.
    Among(Networks),
    /// That cannot be told from outside.
    Unknown,
}

impl NewDestination {
    /// An address that cannot be told.
    pub const UNKNOWN: Self = Self {
        address: NewAddress::Unknown,
        port: None,
    };
}

/// A flowtable: connections in it pass its interfaces without seeing any rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flowtable {
    /// The family of its table.
    pub table_family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its interfaces.
    pub devices: Vec<String>,
}

impl Chain {
    /// Whether it sees packets of `family`.
    #[must_use]
    pub fn sees(&self, family: Family) -> bool {
        match self.table_family.as_str() {
            "ip" => family == Family::V4,
            "ip6" => family == Family::V6,
            _ => true,
        }
    }

    /// As its program names it.
    #[must_use]
    pub fn title(&self) -> String {
        match self.system {
            System::Nft => format!(
                "nft chain `{} {} {}`",
                self.table_family, self.table, self.name
            ),
            System::IptablesNft | System::IptablesLegacy => {
                format!(
                    "{} chain `{}` of table `{}`",
                    self.command, self.name, self.table
                )
            }
        }
    }

    /// Whether it is one of ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self.system {
            System::Nft => self.table == crate::nft::TABLE,
            _ => self.name.starts_with(OUR_CHAINS),
        }
    }

    /// Who put it there, if its names tell.
    #[must_use]
    pub fn owner(&self, rule: Option<&Rule>) -> Option<&'static str> {
        let text = rule.map_or("", |rule| rule.text.as_str());
        OWNERS.iter().find_map(|(sign, owner)| {
            let found =
                self.table.contains(sign) || self.name.contains(sign) || text.contains(sign);
            found.then_some(*owner)
        })
    }
}

/// How the names of our iptables chains begin.
pub const OUR_CHAINS: &str = "scb-redirect";

/// What in a table's, a chain's or a rule's text tells whose it is. The earlier stands first.
const OWNERS: [(&str, &str); 18] = [
    ("DOCKER", "Docker"),
    ("docker", "Docker"),
    ("firewalld", "firewalld"),
    ("ts-forward", "Tailscale"),
    ("ts-input", "Tailscale"),
    ("ts-postrouting", "Tailscale"),
    ("tailscale", "Tailscale"),
    ("cali-", "Calico"),
    ("cali:", "Calico"),
    ("KUBE-", "kube-proxy"),
    ("kube-proxy", "kube-proxy"),
    ("mwan3", "mwan3"),
    ("LIBVIRT_", "libvirt"),
    ("libvirt", "libvirt"),
    ("ufw", "ufw"),
    ("wg-quick", "wg-quick"),
    ("fw4", "OpenWrt's firewall4"),
    ("NETAVARK", "Podman"),
];

/// Mark bits that are somebody's by custom: mask and owner.
pub const KNOWN_BITS: [(u32, &str); 5] = [
    // `wgengine/router` of Tailscale.
    (0x00ff_0000, "Tailscale"),
    // The default of `IptablesMarkMask` of Calico's Felix.
    (0xffff_0000, "Calico"),
    // The default of `mmx_mask` of OpenWrt's mwan3.
    (0x0000_3f00, "mwan3"),
    // `iptables.masqueradeBit` 14 and its drop mark 15.
    (0x0000_c000, "kube-proxy"),
    // Mullvad's split tunnel and exclusion marks (`talpid-core`).
    (0x6d6f_6c65, "Mullvad"),
];

/// Who uses exactly these bits by custom.
#[must_use]
pub fn owner_of_bits(mask: u32) -> Option<&'static str> {
    KNOWN_BITS
        .iter()
        .find(|(known, _)| *known == mask)
        .map(|(_, owner)| *owner)
}

impl Rule {
    /// The changes to either mark that it makes by itself: bits that stay, bits that are set.
    pub fn marks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.steps.iter().filter_map(|step| match step {
            Step::Do(Effect::Mark {
                keep,
                take: 0,
                constant,
                ..
            }) => Some((*keep, *constant)),
            _ => None,
        })
    }

    /// Whether it makes unmarked packets bear `mark`, or their connections, from which our own
    /// rules would bring it to the packets.
    #[must_use]
    pub fn sets(&self, mark: Mark) -> bool {
        self.marks().any(|(_, constant)| mark.is_borne_by(constant))
    }
}
