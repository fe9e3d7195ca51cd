//! Packet rules as the kernel's `nf_tables` holds them.
//!
//! A rule is a list of [`Expression`]s, the instructions of the kernel's own small
//! machine. We build them with helpers that read like sentences, send them as
//! they are, read them back as they are and compare them one by one; the text
//! that `nft` takes is a rendering of the very same list. So the dry-run, the
//! comparison and the kernel cannot mean different things.

pub(crate) mod abi;
pub mod decode;
pub mod difference;
pub mod proof;
pub mod text;
pub mod wire;

use serde::{Deserialize, Serialize};

use crate::net::{MacAddr, Range, Ranges};

/// The one table that is ours: `inet scb-redirect` (`redirect` is a keyword of nft).
pub const TABLE: &str = "scb-redirect";

/// A table that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot make {object}: {reason}")]
pub struct Impossible {
    /// What.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// All of our table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// `NFT_TABLE_F_*`: 0 for ours; 1 is dormant, which would switch off every chain.
    pub flags: u32,
    /// Named sets and maps, sorted by name.
    pub sets: Vec<Set>,
    /// Chains, sorted by name.
    pub chains: Vec<Chain>,
    /// Things of other kinds that somebody put into our table (objects,
    /// flowtables), by their names: never ours, so whatever is here is drift.
    pub others: Vec<String>,
}

impl Table {
    /// Whether both have the same rules and the same sets, though perhaps with other elements: a
    /// kernel that holds the one lacks nothing for the other.
    #[must_use]
    pub fn is_same_but_for_elements(&self, other: &Self) -> bool {
        let kind = |set: &Set| std::mem::discriminant(&set.elements);
        let kinds = |table: &Self| -> Vec<_> {
            let sets = table.sets.iter();
            sets.map(|set| (set.name.clone(), kind(set))).collect()
        };
        self.flags == other.flags
            && self.chains == other.chains
            && self.others == other.others
            && kinds(self) == kinds(other)
    }

    /// The same with nothing in its sets.
    #[must_use]
    pub fn without_elements(&self) -> Self {
        let emptied = |set: &Set| Set {
            name: set.name.clone(),
            elements: set.elements.emptied(),
        };
        Self {
            sets: self.sets.iter().map(emptied).collect(),
            ..self.clone()
        }
    }
}

/// A named set, or, with [`Elements`] that hold verdicts, a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Unique in the table.
    pub name: String,
    /// What is in it, and of what type.
    pub elements: Elements,
}

/// What a set holds. The variant is the set's type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Elements {
    /// `type ipv4_addr; flags interval`.
    V4(Ranges<u32>),
    /// `type ipv6_addr; flags interval`.
    V6(Ranges<u128>),
    /// `type inet_service; flags interval`.
    Ports(Ranges<u16>),
    /// `type ether_addr`, sorted.
    Macs(Vec<MacAddr>),
    /// `type ipv4_addr : verdict; flags interval`, sorted, disjoint.
    V4Verdicts(Vec<(Range<u32>, Verdict)>),
    /// `type ipv6_addr : verdict; flags interval`, sorted, disjoint.
    V6Verdicts(Vec<(Range<u128>, Verdict)>),
    /// `type inet_service : verdict; flags interval`, sorted, disjoint.
    PortVerdicts(Vec<(Range<u16>, Verdict)>),
    /// A set of a type or with flags that ours never have; described for people.
    Foreign(String),
}

impl Elements {
    /// None, of the same type.
    fn emptied(&self) -> Self {
        match self {
            Self::V4(_) => Self::V4(Ranges::default()),
            Self::V6(_) => Self::V6(Ranges::default()),
            Self::Ports(_) => Self::Ports(Ranges::default()),
            Self::Macs(_) => Self::Macs(Vec::new()),
            Self::V4Verdicts(_) => Self::V4Verdicts(Vec::new()),
            Self::V6Verdicts(_) => Self::V6Verdicts(Vec::new()),
            Self::PortVerdicts(_) => Self::PortVerdicts(Vec::new()),
            Self::Foreign(what) => Self::Foreign(what.clone()),
        }
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Unique in the table.
    pub name: String,
    /// Where it hangs in the packet's way; none: only jumped to.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A base chain's place. All of ours are `type filter`, `policy accept`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// `filter`, `route` or `nat`.
    pub kind: String,
    /// `NF_INET_*`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u32,
    /// Lower is earlier.
    pub priority: i32,
    /// `NF_DROP` 0 or `NF_ACCEPT` 1.
    pub policy: u32,
}

/// A rule: what is tested and done, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The instructions.
    pub expressions: Vec<Expression>,
    /// Shown by `nft list ruleset`; at most 127 bytes.
    pub comment: Option<String>,
}

/// A register of the kernel's machine that holds 32 bits or more. We use number 1 only
/// (`NFT_REG_1`, 16 bytes), as nft does for all that we need.
pub type Register = u32;

/// An instruction. Those that we never make are kept as they came, so that a
/// table can be put back exactly as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expression {
    /// Loads something about the packet (`NFT_META_*`) into register 1.
    MetaLoad(MetaKey),
    /// Sets something about the packet from register 1.
    MetaSet(MetaKey),
    /// Loads something about its connection (`NFT_CT_*`) into register 1. Ends the rule
    /// without a match where the packet has no connection (untracked, invalid).
    CtLoad(CtKey),
    /// Sets something about its connection from register 1. Does nothing where
    /// the packet has no connection.
    CtSet(CtKey),
    /// Loads bytes of the packet into register 1.
    Payload {
        /// `NFT_PAYLOAD_*`: where to count from.
        base: PayloadBase,
        /// Bytes from there.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// register 1 := (register 1 & mask) ^ xor, byte by byte.
    Bitwise {
        /// As long as `xor`.
        mask: Vec<u8>,
        /// As long as `mask`.
        xor: Vec<u8>,
    },
    /// Goes on only if register 1 equals (or does not equal) these bytes.
    Compare {
        /// `==` or `!=`.
        equal: bool,
        /// As in the packet, or in host byte order for meta and ct numbers.
        bytes: Vec<u8>,
    },
    /// Goes on only if register 1 is (or is not) in this named set.
    Lookup {
        /// The set's name.
        set: String,
        /// `!= @set`.
        invert: bool,
    },
    /// Looks register 1 up in this named map, and does what is found there;
    /// goes on where nothing is.
    VerdictMap {
        /// The map's name.
        map: String,
    },
    /// Looks register 1 up in a small map of its own.
    InlineVerdictMap {
        /// Key as it stands in the register, and what to do; sorted by key.
        elements: Vec<(Vec<u8>, Verdict)>,
        /// nft's type number of the key (`mark` 19, `ifname` 41).
        key_type: u32,
    },
    /// Counts packets and bytes.
    Counter,
    /// Refuses the packet: `icmpx admin-prohibited`.
    RejectProhibited,
    /// Ends the rule with this.
    Verdict(Verdict),
    /// An instruction that ours never have.
    Foreign {
        /// Its kernel name.
        name: String,
        /// Its attributes, as they came.
        data: Vec<u8>,
    },
}

/// What [`Expression::MetaLoad`] loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetaKey {
    /// The packet mark, 4 bytes, host byte order.
    Mark,
    /// Input interface's name, 16 bytes, NUL-padded.
    InputName,
    /// Output interface's name, 16 bytes, NUL-padded.
    OutputName,
    /// `ARPHRD_*` of the input interface, 2 bytes, host byte order.
    InputType,
    /// `NFPROTO_*`: 2 IPv4, 10 IPv6; 1 byte.
    Family,
    /// `IPPROTO_*`; 1 byte.
    Protocol,
}

/// What [`Expression::CtLoad`] loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CtKey {
    /// The connection mark, 4 bytes, host byte order.
    Mark,
    /// The state's bit, 4 bytes, host byte order.
    State,
}

/// Where [`Expression::Payload`] counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadBase {
    /// The Ethernet header.
    Link,
    /// The IP header.
    Network,
    /// The TCP header.
    Transport,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This hook is done with it; other chains still see it.
    Accept,
    /// It is gone.
    Drop,
    /// Back to where the chain was jumped from.
    Return,
    /// Into this chain, and back.
    Jump(String),
    /// Into this chain, and not back.
    Goto(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules;
    use crate::test_support::policy;

    #[test]
    fn other_networks_and_ports_need_nothing_that_the_kernel_has_not_shown() {
        let table = |server: &str, port: u16, option: &str| {
            let text = format!(
                "version = 1\n[appliance.scb]\naddress = [\"10.30.0.2\", \"fd00:30::2\"]\n\
                 interface = \"sps0\"\n[[redirect]]\nname = \"rdp\"\nclient_interface = \"eth0\"\n\
                 server_network = [{server}]\nport = {port}\n{option}\n"
            );
            rules::nftables::table(&policy(&text)).unwrap()
        };
        let one = table("\"10.20.0.0/24\", \"10.21.0.0/24\"", 3389, "");
        for (other, is_same) in [
            (
                table("\"10.20.0.0/24\", \"10.22.0.0/16\", \"10.9.9.9\"", 3389, ""),
                true,
            ),
            (
                table("\"10.20.0.0/24\", \"10.21.0.0/24\"", 3389, "snat = true"),
                false,
            ),
            (table("\"10.20.0.0/24\", \"fd00:20::/64\"", 3389, ""), false),
        ] {
            assert_ne!(one, other);
            assert_eq!(one.is_same_but_for_elements(&other), is_same);
            assert_eq!(other.is_same_but_for_elements(&one), is_same);
        }
        let mut of_others = one.clone();
        of_others.others.push("counter".to_owned());
        assert!(!of_others.is_same_but_for_elements(&one));
        let mut of_another_kind = one.clone();
        for set in &mut of_another_kind.sets {
            set.elements = Elements::Foreign("theirs".to_owned());
        }
        assert!(!of_another_kind.is_same_but_for_elements(&one));
    }
}
