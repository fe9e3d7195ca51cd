//! The changes that make the router match a policy, as data.
//!
//! Each change records what is there (`from`) and what is to be there (`to`), so
//! that undoing is a swap and not code.

pub mod ending;
mod ledger;
pub mod names;
pub mod packets;
pub mod planner;

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use ledger::{Kept, Ledger};

use crate::iptables;
use crate::net::{Family, Route, RoutingRule, TableId};
use crate::nft;
use crate::observation::{FileContent, Sysctl};

/// Something about this router that does not suit the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is: never changes its meaning from one version to the next.
    pub code: &'static str,
    /// The policy's key that it is about, as in `appliance.scb.interface`; none if
    /// it is about no key in particular.
    pub key: Option<String>,
    /// What was found, and why it matters.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

/// One change. `from` and `to` are never equal.
// Tagged from outside: serde buffers what is tagged inside, and loses the digits of
// IPv6 addresses on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A directory, with mode 0755.
    Directory {
        /// Where.
        path: PathBuf,
        /// Whether it is there.
        from: bool,
        /// Whether it is to be there.
        to: bool,
    },
    /// A file, replaced whole.
    File {
        /// Where.
        path: PathBuf,
        /// What it holds; `None`: it does not exist.
        from: Option<FileContent>,
        /// What it is to hold; `None`: it is removed.
        to: Option<FileContent>,
    },
    /// A route. Where both are given they are one route's place
    /// (family, table, destination, metric), and the kernel replaces it in one step.
    Route {
        /// What is there.
        from: Option<Route>,
        /// What is to be there.
        to: Option<Route>,
    },
    /// A routing rule. The kernel cannot change one: exactly one of the two is given.
    Rule {
        /// What is there.
        from: Option<RoutingRule>,
        /// What is to be there.
        to: Option<RoutingRule>,
    },
    /// A setting under `/proc/sys`.
    Sysctl {
        /// Which.
        sysctl: Sysctl,
        /// What it holds.
        from: String,
        /// What it is to hold.
        to: String,
    },
    /// All packet rules, in one transaction.
    Nftables {
        /// The table that is there.
        from: Option<nft::Table>,
        /// The table that is to be there.
        to: Option<nft::Table>,
    },
    /// A set of networks that iptables rules look into. Where both are given it is the same
    /// set with other networks, swapped in one step.
    Ipset {
        /// What is there.
        from: Option<iptables::Set>,
        /// What is to be there.
        to: Option<iptables::Set>,
    },
    /// The empty table and base chains in which `iptables-nft` has its rules.
    Frame {
        /// The command a person would type for it, IPv4's.
        command: String,
        /// IPv4 or IPv6.
        family: Family,
        /// What is there.
        from: iptables::Frame,
        /// What is to be there. What somebody else uses by then stays.
        to: iptables::Frame,
    },
    /// Our iptables chains of one family, in one commit.
    Iptables {
        /// For which packet filter.
        variant: iptables::Variant,
        /// The command a person would type for it, IPv4's: `iptables`, `iptables-legacy`.
        command: String,
        /// IPv4 or IPv6.
        family: Family,
        /// What is there; empty if nothing is.
        from: iptables::Ruleset,
        /// What is to be there; empty to remove all of it.
        to: iptables::Ruleset,
    },
}

impl Change {
    /// The change that takes this one back.
    #[must_use]
    pub fn inverse(self) -> Self {
        match self {
            Self::Directory { path, from, to } => Self::Directory {
                path,
                from: to,
                to: from,
            },
            Self::File { path, from, to } => Self::File {
                path,
                from: to,
                to: from,
            },
            Self::Route { from, to } => Self::Route { from: to, to: from },
            Self::Rule { from, to } => Self::Rule { from: to, to: from },
            Self::Sysctl { sysctl, from, to } => Self::Sysctl {
                sysctl,
                from: to,
                to: from,
            },
            Self::Nftables { from, to } => Self::Nftables { from: to, to: from },
            Self::Ipset { from, to } => Self::Ipset { from: to, to: from },
            Self::Frame {
                command,
                family,
                from,
                to,
            } => Self::Frame {
                command,
                family,
                from: to,
                to: from,
            },
            Self::Iptables {
                variant,
                command,
                family,
                from,
                to,
            } => Self::Iptables {
                variant,
                command,
                family,
                from: to,
                to: from,
            },
        }
    }
}

/// What a change is about, whatever it does to it.
#[derive(PartialEq, Eq)]
enum Object<'a> {
    Path(&'a Path),
    /// By its place.
    Route(Option<(Family, TableId, Option<IpNet>, u32)>),
    Rule(Option<&'a RoutingRule>),
    Sysctl(&'a Sysctl),
    Nftables,
    Ipset(Option<&'a str>),
    Frame(Family),
    Iptables(iptables::Variant, Family),
}

impl Change {
    fn object(&self) -> Object<'_> {
        match self {
            Self::Directory { path, .. } | Self::File { path, .. } => Object::Path(path),
            Self::Route { from, to } => Object::Route(
                (from.as_ref().or(to.as_ref()))
                    .map(|route| (route.family, route.table, route.destination, route.metric)),
            ),
            Self::Rule { from, to } => Object::Rule(from.as_ref().or(to.as_ref())),
            Self::Sysctl { sysctl, .. } => Object::Sysctl(sysctl),
            Self::Nftables { .. } => Object::Nftables,
            Self::Ipset { from, to } => {
                Object::Ipset(from.as_ref().or(to.as_ref()).map(|set| set.name.as_str()))
            }
            Self::Frame { family, .. } => Object::Frame(*family),
            Self::Iptables {
                variant, family, ..
            } => Object::Iptables(*variant, *family),
        }
    }
}

/// Changes in the order in which they are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Plan {
    /// In order.
    pub changes: Vec<Change>,
}

impl Plan {
    /// The plan that takes this one back: each change swapped, in reverse order.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self {
            changes: self
                .changes
                .into_iter()
                .rev()
                .map(Change::inverse)
                .collect(),
        }
    }

    /// Whether some object is changed by both.
    #[must_use]
    pub fn touches(&self, other: &Self) -> bool {
        let touched: Vec<_> = other.changes.iter().map(Change::object).collect();
        (self.changes.iter()).any(|change| touched.contains(&change.object()))
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
