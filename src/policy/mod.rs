//! What is wanted: the policy, read, checked and resolved.
//!
//! Everything here is already sound in itself: numbers assigned, networks merged,
//! exceptions subtracted, appliances referred to by index. Whether it suits *this*
//! router is for the planner and for `check`.

mod check;
mod diagnostic;
mod keys;
mod list;
mod load;
mod raw;
mod read;
mod reader;
mod schema;
mod source;
mod syntax;
mod value;
mod words;

pub use diagnostic::{Code, Diagnostic, PolicyErrors, Related, Severity, Style, render};
pub use load::LoadError;
pub use read::{Locations, Reading, read};
pub use schema::{reference, schema};
pub use source::{List, Place, Position, Source, Span, Unreadable};

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::net::{
    Family, IfName, IfPattern, MacAddr, Mark, Networks, Ports, RulePriority, TableId,
};

/// The name of an appliance or a redirect: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most
/// [`Name::MAX`] bytes, so that it can stand in a set's, a chain's and a routing
/// table's name as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Longest name, in bytes.
    pub const MAX: usize = 32;

    /// Checks the characters and the length.
    ///
    /// # Errors
    /// Says what a name looks like.
    pub fn new(name: &str) -> Result<Self, String> {
        let sound = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
            && name.len() <= Self::MAX;
        if sound {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!(
                "up to {} letters, digits, `_`, `.` and `-`, beginning with a letter or digit",
                Self::MAX
            ))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        Self::new(&name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// The whole policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// In order of appearance.
    pub appliances: Vec<Appliance>,
    /// In order of appearance; where two could match, both name the same appliance.
    pub redirects: Vec<Redirect>,
    /// Defaults filled in.
    pub options: Options,
}

/// A recorder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appliance {
    /// Names its routing table.
    pub name: Name,
    /// At least one, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Where it is reached.
    pub interface: IfName,
    /// Tell what comes from it on a shared interface; empty: everything on
    /// [`Self::interface`] does.
    pub macs: Vec<MacAddr>,
    /// Its routing table.
    pub table: TableId,
    /// What redirected packets and connections bear.
    pub mark: Mark,
    /// Where its fwmark rules stand.
    pub rule_priority: RulePriority,
}

impl Appliance {
    /// Its address of `family`, if it has one.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// Sessions that go through an appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Shown in status, comments, errors.
    pub name: Name,
    /// Index into [`Policy::appliances`].
    pub appliance: usize,
    /// Where clients come in.
    pub client_interfaces: Vec<IfPattern>,
    /// Where servers answer, if given.
    pub server_interfaces: Vec<IfPattern>,
    /// The servers, exceptions taken out, merged.
    pub servers: Networks,
    /// Clients never redirected, merged.
    pub except_clients: Networks,
    /// TCP ports of the servers, merged.
    pub ports: Ports,
    /// Whether the appliance dials servers with the client's own address.
    pub snat: bool,
}

impl Redirect {
    /// The same for sessions that run already: without interfaces, no rule takes what
    /// clients open, or what is first seen in mid-stream; all other rules stay.
    #[must_use]
    pub fn without_clients(&self) -> Self {
        Self {
            client_interfaces: Vec::new(),
            server_interfaces: Vec::new(),
            ..self.clone()
        }
    }
}

/// Which packet filter holds the rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// nftables where the kernel has it.
    #[default]
    Auto,
    /// nftables over netlink.
    Nftables,
    /// iptables, legacy or nft.
    Iptables,
}

/// What becomes of a redirect's sessions while its appliance cannot be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnApplianceDown {
    /// They are refused.
    #[default]
    Block,
    /// They go to the server, unrecorded.
    Bypass,
}

/// What becomes of sessions that are open when the rules go in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// They are sent to the appliance, which cuts them.
    #[default]
    Redirect,
    /// They go on, unrecorded, until they end.
    Keep,
}

/// How the appliance's spoofed sources get past reverse path filtering.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RpFilterChoice {
    /// 2 on the appliance's interface, if strict is in force there.
    #[default]
    Loose,
    /// 0 there and in `all`, every other interface pinned to what was in force.
    Off,
    /// Nothing is written.
    Keep,
}

/// `[options]`, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// `backend`.
    pub backend: BackendChoice,
    /// `on_appliance_down`.
    pub on_appliance_down: OnApplianceDown,
    /// `established`.
    pub established: Established,
    /// `rp_filter`.
    pub rp_filter: RpFilterChoice,
    /// `mark_mask`: which bits of the marks are ours.
    pub mark_mask: u32,
    /// `rule_priority`: of the first appliance's rules.
    pub rule_priority: RulePriority,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: BackendChoice::default(),
            on_appliance_down: OnApplianceDown::default(),
            established: Established::default(),
            rp_filter: RpFilterChoice::default(),
            mark_mask: 0xff,
            rule_priority: RulePriority(103),
        }
    }
}

impl Policy {
    /// The appliance of `redirect`.
    #[must_use]
    pub fn appliance_of(&self, redirect: &Redirect) -> Option<&Appliance> {
        self.appliances.get(redirect.appliance)
    }

    /// Whether some redirect through `appliance` (an index) has networks of `family`.
    #[must_use]
    pub fn uses(&self, appliance: usize, family: Family) -> bool {
        self.redirects.iter().any(|redirect| {
            redirect.appliance == appliance && !redirect.servers.is_empty_of(family)
        })
    }

    /// The same policy with these appliances (by name) draining: no redirect takes new
    /// connections to them, while those that bear their marks go on through them.
    #[must_use]
    pub fn draining(mut self, appliances: &[Name]) -> Self {
        for redirect in &mut self.redirects {
            let appliance = self.appliances.get(redirect.appliance);
            if appliance.is_some_and(|appliance| appliances.contains(&appliance.name)) {
                *redirect = redirect.without_clients();
            }
        }
        self
    }

    /// Whether it redirects nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.redirects.is_empty()
    }
}
