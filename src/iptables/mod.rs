//! Packet rules as `iptables-save` prints them and `iptables-restore` takes them.
//!
//! A rule is a list of typed [`Match`]es and a [`Target`]; whatever ours never have is
//! kept verbatim, so that a chain can be put back exactly as it was found. [`parse`] reads
//! the output of `iptables-save` and `ipset save`, [`mod@write`] makes the input of their
//! counterparts, and the commands that a person would type.

pub mod parse;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::net::{Family, IfPattern, MacAddr, Mark, PortRange};

/// The chain that PREROUTING jumps to.
pub const PREROUTING_CHAIN: &str = "scb-redirect";
/// The chain that FORWARD jumps to.
pub const FORWARD_CHAIN: &str = "scb-redirect-seal";
/// The chain that INPUT jumps to.
pub const INPUT_CHAIN: &str = "scb-redirect-input";
/// What the names of all other chains of ours, and of our sets, begin with.
pub const PREFIX: &str = "scb-redirect-";
/// Longest name of a chain, in bytes (`XT_EXTENSION_MAXNAMELEN` less its NUL,
/// `include/uapi/linux/netfilter/x_tables.h`; userland takes no more than 28).
pub const CHAIN_NAME_MAX: usize = 28;
/// Longest name of a set, in bytes (`IPSET_MAXNAMELEN` less its NUL,
/// `include/uapi/linux/netfilter/ipset/ip_set.h`).
pub const SET_NAME_MAX: usize = 31;

/// Whether a chain or set of this name is ours.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name == PREROUTING_CHAIN || name.starts_with(PREFIX)
}

/// The two packet filters that the iptables commands may be made for. A router may have
/// commands for both; what one holds, the other does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The kernel's `ip_tables`.
    Legacy,
    /// The kernel's `nf_tables`, in tables that look like the old ones.
    Nft,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Nft];

    /// The IPv4 command that is always this variant, where distributions have both.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command())
    }
}

/// The version of the iptables commands: `1.8.9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// Whether `iptables-restore` of this version can wait for the lock that all legacy
    /// commands take (its release notes: since 1.6.2).
    #[must_use]
    pub fn can_wait(self) -> bool {
        self >= Self(1, 6, 2)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The command of `family` where IPv4's is `command`: `ip6tables-nft` for `iptables-nft`.
#[must_use]
pub fn command_of(command: &str, family: Family) -> String {
    match family {
        Family::V4 => command.to_owned(),
        Family::V6 => command.replacen("iptables", "ip6tables", 1),
    }
}

/// All of ours in the `mangle` table of one family and variant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// Our chains by name, their rules in order.
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// The rules in other chains that lead into ours, sorted by those chains' names, then in
    /// order. So FORWARD's, the seal, is first to come and last to go.
    pub hooks: Vec<Hook>,
}

impl Ruleset {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.is_empty()
    }

    /// The same, but of rules that follow each other and test one network each, only the first.
    #[must_use]
    pub fn abridged(&self) -> Self {
        let without_networks = |rule: &Rule| {
            let tests = rule.matches.iter();
            let tests = tests.filter(|found| !matches!(found, Match::Address { .. }));
            (tests.cloned().collect::<Vec<_>>(), rule.target.clone())
        };
        let mut abridged = self.clone();
        for rules in abridged.chains.values_mut() {
            rules.dedup_by(|a, b| {
                a.matches.len() == b.matches.len() && without_networks(a) == without_networks(b)
            });
        }
        abridged
    }

    /// What of iptables it takes: options, extensions, and those of their values that not every
    /// version may know.
    #[must_use]
    pub fn features(&self) -> BTreeSet<String> {
        let mut features = BTreeSet::new();
        let hooks = self.hooks.iter().map(|hook| &hook.rule);
        for rule in self.abridged().chains.values().flatten().chain(hooks) {
            let words = rule.words();
            for (at, word) in words
                .iter()
                .enumerate()
                .filter(|(_, word)| word.starts_with('-'))
            {
                let is_chain = word == "-j" && rule.target.chain().is_some();
                let value = match word.as_str() {
                    "-m" | "-j" | "-p" | "--ctstate" if !is_chain => words.get(at + 1),
                    _ => None,
                };
                let value = value.map(String::as_str).unwrap_or_default();
                features.insert(format!("{word} {value}"));
            }
        }
        features
    }
}

/// What `iptables-nft` makes before the first rule of a family, and never removes: the table
/// `mangle`, and those of its base chains that were used. (The kernel's own part, `ip_tables`, has
/// its tables whole or not at all, and keeps them.)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Whether the table is there.
    pub table: bool,
    /// Its base chains: `PREROUTING`, `FORWARD` and so on.
    pub chains: BTreeSet<String>,
}

impl Frame {
    /// With these base chains too.
    #[must_use]
    pub fn with(&self, chains: impl IntoIterator<Item = String>) -> Self {
        Self {
            table: true,
            chains: self.chains.iter().cloned().chain(chains).collect(),
        }
    }

    /// What of it is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            table: self.table && !other.table,
            chains: self.chains.difference(&other.chains).cloned().collect(),
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.table && self.chains.is_empty()
    }
}

/// A rule outside our chains that leads into one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The chain it stands in; for ours `PREROUTING`, `FORWARD` or `INPUT`.
    pub chain: String,
    /// How many rules of others stand before it there; for ours none.
    pub before: usize,
    /// The rule.
    pub rule: Rule,
}

/// A rule: what is tested, and what is done with a packet that passes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// All must hold. Sorted, for variants print them in different orders and ours mean the
    /// same in any; as they came where one is foreign.
    pub matches: Vec<Match>,
    /// What is done.
    pub target: Target,
}

impl Rule {
    /// A rule of these parts.
    #[must_use]
    pub fn new(mut matches: Vec<Match>, target: Target) -> Self {
        if !matches.iter().any(|m| matches!(m, Match::Foreign(_))) {
            matches.sort();
        }
        Self { matches, target }
    }

    /// Its comment.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        self.matches.iter().find_map(|m| match m {
            Match::Comment(comment) => Some(comment.as_str()),
            _ => None,
        })
    }
}

/// Which end of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// TCP flags that our rules ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flags {
    /// SYN, and neither FIN, RST nor ACK.
    PureSyn,
    /// Anything else.
    NoPureSyn,
    /// Neither SYN nor RST.
    NeitherSynNorRst,
}

impl Flags {
    /// Whether it is negated, which flags are looked at, and which of them must be set, as
    /// iptables names them.
    #[must_use]
    pub fn words(self) -> (bool, &'static str, &'static str) {
        match self {
            Self::PureSyn => (false, "FIN,SYN,RST,ACK", "SYN"),
            Self::NoPureSyn => (true, "FIN,SYN,RST,ACK", "SYN"),
            Self::NeitherSynNorRst => (false, "SYN,RST", "NONE"),
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::PureSyn, Self::NoPureSyn, Self::NeitherSynNorRst];
}

/// What connection tracking says of a packet, as far as our rules ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is the first of a connection.
    New,
    /// It fits no connection.
    Invalid,
    /// It has no connection: it fits none, or was not looked at.
    Unknown,
    /// It is the first of a connection, or fits none.
    NewOrInvalid,
    /// It has a connection.
    Tracked,
    /// It has one, and is not the first of it.
    Known,
}

impl State {
    /// As iptables names it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Invalid => "INVALID",
            Self::Unknown => "INVALID,UNTRACKED",
            Self::NewOrInvalid => "INVALID,NEW",
            Self::Tracked => "NEW,RELATED,ESTABLISHED",
            Self::Known => "RELATED,ESTABLISHED",
        }
    }

    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::New,
        Self::Invalid,
        Self::Unknown,
        Self::NewOrInvalid,
        Self::Tracked,
        Self::Known,
    ];
}

/// One test of a rule. The order of the variants is the order in which they are written, and so
/// asked: what costs least and tells most comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// `-s` or `-d`.
    Address {
        /// Which address.
        side: Side,
        /// `!`.
        negated: bool,
        /// Host bits are zero; never all addresses, for which there is no test.
        network: IpNet,
    },
    /// `-i`.
    Input {
        /// `!`.
        negated: bool,
        /// `ppp+` is the prefix `ppp`.
        interface: IfPattern,
    },
    /// `-o`.
    Output {
        /// `!`.
        negated: bool,
        /// As for the input.
        interface: IfPattern,
    },
    /// `-p tcp`.
    Tcp,
    /// `-m connmark --mark`. Fails where there is no connection (untracked, invalid).
    ConnectionMark(Mark),
    /// `-m tcp --tcp-flags`.
    Flags(Flags),
    /// `-m tcp --sport` or `--dport` for one port or range, `-m multiport --sports` or `--dports`
    /// for more: at most 15 numbers, a range being two.
    Ports {
        /// Which port.
        side: Side,
        /// Sorted.
        ports: Vec<PortRange>,
    },
    /// `-m set --match-set NAME src` or `dst`.
    InSet {
        /// Which address.
        side: Side,
        /// `!`.
        negated: bool,
        /// The set's name.
        set: String,
    },
    /// `-m conntrack --ctstate`.
    Connection(State),
    /// `-m mark --mark`.
    PacketMark(Mark),
    /// `-m mac --mac-source`. Fails where the link is not Ethernet.
    Mac(MacAddr),
    /// `-m comment --comment`.
    Comment(String),
    /// Anything that ours never have, as `iptables-save` words it.
    Foreign(Vec<String>),
}

/// What a rule does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Nothing: it only counts.
    #[default]
    None,
    /// Into this chain, and back.
    Jump(String),
    /// Into this chain, and from its end to where the last jump came from.
    Goto(String),
    /// Back to where the last jump came from.
    Return,
    /// The packet is gone.
    Drop,
    /// `-j CONNMARK --set-xmark`: our bits of the connection mark. Goes on with the next rule;
    /// does nothing where there is no connection.
    SetConnectionMark(Mark),
    /// `-j MARK --set-xmark`: our bits of the packet mark. Goes on with the next rule.
    SetPacketMark(Mark),
    /// Anything that ours never have, as `iptables-save` words it.
    Foreign(Vec<String>),
}

impl Target {
    /// The chain it leads to, if any.
    #[must_use]
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// A set of ours: `hash:net` of one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Of its networks.
    pub family: Family,
    /// Sorted; none with prefix length 0, which `hash:net` does not take.
    pub networks: Vec<IpNet>,
    /// Its type and options in the words of `ipset save`, where they are not as in ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_kind: Option<String>,
    /// Elements that ours never have, in the words of `ipset save`, sorted.
    pub others: Vec<String>,
}
