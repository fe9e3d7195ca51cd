//! What `check` looks at beyond an observation: plain data, gathered once.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::check::foreign::Ruleset;
use crate::check::legs::Asked;
use crate::kernel::route::Neighbour;
use crate::net::{Family, IfName, Route};
use crate::policy::Policy;

/// The rest of the router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The packet rules of others, and ours among them.
    pub rules: Ruleset,
    /// Whether both `iptables-legacy` and `iptables-nft` hold rules: how many each.
    pub iptables: (usize, usize),
    /// Settings under `/proc/sys`, by path without that, as in `net/ipv4/ip_forward`.
    pub settings: BTreeMap<String, i64>,
    /// Neighbours, by interface.
    pub neighbours: Vec<(IfName, Neighbour)>,
    /// Routes of the tables that routing rules name, and of table `main`.
    pub routes: Vec<Route>,
    /// The legs, with the kernel's answers.
    pub asked: Vec<Asked>,
    /// Open sessions that match a redirect and do not bear its mark, if they could be counted.
    pub open_sessions: Option<BTreeMap<usize, u64>>,
    /// Where the router itself listens for TCP sessions.
    pub listeners: Vec<SocketAddr>,
    /// systemd-networkd, if it runs here: its configuration files, the last one wins.
    pub networkd: Option<Vec<(PathBuf, String)>>,
    /// How appliances answered, where they were asked.
    pub probes: Vec<Probe>,
    /// What could not be looked at, and why.
    pub unseen: Vec<Unseen>,
}

/// How an appliance answered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Probe {
    /// Its name.
    pub appliance: String,
    /// The address that was asked.
    pub address: IpAddr,
    /// How long an ICMP echo took, or why none came.
    pub echo: Result<Duration, String>,
    /// Sessions that were opened through it: to whom, and how long it took or why it failed.
    pub sessions: Vec<(SocketAddr, Result<Duration, String>)>,
}

/// Something that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unseen {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What open sessions are called where they could not be counted.
pub const OPEN_SESSIONS: &str = "open sessions";

/// Whether connection tracking takes a packet that is outside of its connection's window for one of
/// that connection all the same (`Documentation/networking/nf_conntrack-sysctl.rst`).
pub const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Whether `policy` names `interface`.
#[must_use]
pub fn concerns(policy: &Policy, interface: &IfName) -> bool {
    policy
        .appliances
        .iter()
        .any(|appliance| appliance.interface == *interface)
        || policy.redirects.iter().any(|redirect| {
            redirect
                .client_interfaces
                .iter()
                .chain(&redirect.server_interfaces)
                .any(|pattern| pattern.matches(interface))
        })
}

impl Surroundings {
    /// The neighbour with this address at `interface`.
    #[must_use]
    pub fn neighbour(&self, interface: &IfName, address: std::net::IpAddr) -> Option<&Neighbour> {
        self.neighbours
            .iter()
            .find(|(at, found)| at == interface && found.address == address)
            .map(|(_, found)| found)
    }

    /// Whether the router forwards packets of `family` that come in on `interface`.
    #[must_use]
    pub fn forwards(&self, family: Family, interface: &IfName) -> bool {
        let path = match family {
            Family::V4 => format!("net/ipv4/conf/{interface}/forwarding"),
            Family::V6 => "net/ipv6/conf/all/forwarding".to_owned(),
        };
        // A setting that cannot be read is not held against the router.
        self.settings.get(&path).is_none_or(|value| *value != 0)
    }
}
