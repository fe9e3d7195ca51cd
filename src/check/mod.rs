//! Whether a policy is sound on this router: everything that is known to break or to leak.
//!
//! [`Surroundings`] is the router as plain data beyond [`Observed`]; [`check`] is pure. One
//! file a kind of trouble. Nothing is reported that is not a problem on this router, and
//! every finding carries commands that mend it, to be run as they are.

pub mod edit;
pub mod foreign;
mod hosts;
pub mod legs;
mod links;
mod packets;
mod routing;
mod second_family;
mod settings;
pub mod surroundings;
#[cfg(test)]
mod tests;
pub mod text;
pub mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

pub use edit::PolicyFile;
pub use surroundings::{Probe, Surroundings, Unseen};

use crate::net::Family;
use crate::observation::Observed;
use crate::plan::planner::Planned;
use crate::plan::{Change, Plan};
use crate::policy::{Established, Policy};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Sessions would break, or reach their server unrecorded.
    Error,
    /// Somebody should know.
    Warning,
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Subject {
    /// A redirect.
    Redirect(String),
    /// An appliance.
    Appliance(String),
    /// An interface.
    Interface(String),
    /// The whole router.
    Router,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirect(name) => write!(f, "redirect `{name}`"),
            Self::Appliance(name) => write!(f, "appliance `{name}`"),
            Self::Interface(name) => write!(f, "interface `{name}`"),
            Self::Router => f.write_str("this router"),
        }
    }
}

/// A trouble.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which trouble: never changes its meaning from one version to the next.
    pub code: &'static str,
    /// What it is about.
    pub subject: Subject,
    /// What was found.
    pub found: String,
    /// Why it matters here.
    pub why: String,
    /// Who seems to own what was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Commands that mend it, a line each.
    pub mend: Vec<String>,
    /// Whether the router lacks a part: exit code 69.
    #[serde(skip)]
    pub lacking: bool,
}

impl Finding {
    fn new(severity: Severity, code: &'static str, subject: Subject) -> Self {
        Self {
            severity,
            code,
            subject,
            found: String::new(),
            why: String::new(),
            owner: None,
            mend: Vec::new(),
            lacking: false,
        }
    }

    fn error(code: &'static str, subject: Subject) -> Self {
        Self::new(Severity::Error, code, subject)
    }

    fn warning(code: &'static str, subject: Subject) -> Self {
        Self::new(Severity::Warning, code, subject)
    }

    /// Whether it keeps sessions from their way at this moment, so that they are refused, hang, or
    /// reach their servers unrecorded. The other errors are about what will be, or might.
    #[must_use]
    pub fn is_acute(&self) -> bool {
        self.severity == Severity::Error && !LATENT.contains(&self.code)
    }

    fn found(mut self, found: impl Into<String>) -> Self {
        self.found = found.into();
        self
    }

    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    fn owner(mut self, owner: Option<impl Into<String>>) -> Self {
        self.owner = owner.map(Into::into);
        self
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend.push(command.into());
        self
    }

    fn mends(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        self.mend.extend(commands);
        self
    }
}

/// Errors by which no session of the policy has lost its way yet. (Drift is here because
/// `status`, which asks, lists it object by object.)
const LATENT: [&str; 5] = [
    "drift",
    "icmp-redirects",
    "ipv6-unredirected",
    "mark-bits-shared",
    "networkd-foreign",
];

/// Which packet filter holds our rules, or will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// What is judged.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Where it was read from, for commands that edit it.
    pub file: &'a PolicyFile,
    /// Whether it is the policy in force. If not, the router is judged as it will be once
    /// `planned` has been carried out.
    pub in_force: bool,
    /// The router.
    pub observed: &'a Observed,
    /// What apply would do.
    pub planned: &'a Planned,
    /// Which packet filter holds our rules, or will.
    pub backend: Backend,
    /// The rest of the router.
    pub surroundings: &'a Surroundings,
}

impl Case<'_> {
    /// What a setting holds, or will hold: `net/ipv4/conf/all/rp_filter`.
    #[must_use]
    fn setting(&self, path: &str) -> Option<i64> {
        let planned = |change: &Change| match change {
            Change::Sysctl { sysctl, to, .. } if sysctl.to_string() == path => to.parse().ok(),
            _ => None,
        };
        let will = (!self.in_force)
            .then(|| self.planned.plan.changes.iter().find_map(planned))
            .flatten();
        will.or_else(|| self.surroundings.settings.get(path).copied())
    }

    /// The greater of `all`'s and the interface's own value.
    fn in_force_at(&self, interface: &crate::net::IfName, setting: &str) -> i64 {
        let all = self.setting(&format!("net/ipv4/conf/all/{setting}"));
        let own = self.setting(&format!("net/ipv4/conf/{interface}/{setting}"));
        all.unwrap_or(0).max(own.unwrap_or(0))
    }
}

/// The outcome of one leg.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LegReport {
    /// Which.
    pub leg: legs::Number,
    /// Where the packet comes in.
    pub input: String,
    /// Where it is from.
    pub from: String,
    /// Where it is for.
    pub to: String,
    /// The mark it bears, as in `0x1/0xff`, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// Where it should go.
    pub expected: String,
    /// What the kernel answers.
    pub kernel: String,
    /// What to make of it.
    pub outcome: Outcome,
    /// The code of the finding that says why, where it goes astray.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<&'static str>,
}

/// What to make of the kernel's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As expected.
    AsExpected,
    /// Not yet, but once the policy is applied.
    OnceApplied,
    /// Elsewhere, or nowhere.
    Astray,
}

/// A session's legs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionReport {
    /// The redirect's name.
    pub redirect: String,
    /// The session that was asked about.
    #[serde(flatten)]
    pub session: legs::Session,
    /// In order.
    pub legs: Vec<LegReport>,
}

/// The whole outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the policy is the one in force.
    pub in_force: bool,
    /// Errors first.
    pub findings: Vec<Finding>,
    /// The legs of each redirect.
    pub sessions: Vec<SessionReport>,
    /// How the appliances answered, where they were asked.
    pub probes: Vec<Probe>,
    /// What could not be looked at.
    pub not_checked: Vec<Unseen>,
}

impl Report {
    /// How many findings of a severity there are.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    }

    /// Whether nothing would break or leak.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// Whether the router lacks a part.
    #[must_use]
    pub fn is_lacking(&self) -> bool {
        self.findings.iter().any(|finding| finding.lacking)
    }
}

/// The command that puts back what others removed.
const REPAIR: &str = "redirect repair";

/// Legs that go astray, and the code of the finding that says why: by session and leg.
#[derive(Debug, Default)]
struct Explained(BTreeMap<(usize, legs::Number), &'static str>);

impl Explained {
    /// The first reason counts.
    fn insert(&mut self, session: usize, leg: legs::Number, code: &'static str) {
        self.0.entry((session, leg)).or_insert(code);
    }

    fn why(&self, session: usize, leg: legs::Number) -> Option<&'static str> {
        self.0.get(&(session, leg)).copied()
    }
}

/// Judges a policy on a router.
#[must_use]
pub fn check(case: &Case<'_>) -> Report {
    let mut findings = Vec::new();
    let mut explained = Explained::default();
    links::check(case, &mut findings);
    settings::check(case, &mut findings, &mut explained);
    routing::check(case, &mut findings, &mut explained);
    packets::check(case, &mut findings, &mut explained);
    hosts::check(case, &mut findings);
    second_family::check(case, &mut findings);
    let sessions = routing::legs(case, &mut findings, &explained);
    // The same trouble may be met on several ways; it is told once.
    let mut told = BTreeSet::new();
    findings.retain(|finding| {
        // What one command mends may be several things all the same.
        let found = (finding.mend == [REPAIR]).then(|| finding.found.clone());
        let mend = finding.mend.clone();
        told.insert((finding.code, finding.subject.clone(), mend, found))
    });
    let mut not_checked = case.surroundings.unseen.clone();
    let cuts = !case.in_force && case.policy.options.established == Established::Redirect;
    let is_told = not_checked
        .iter()
        .any(|unseen| unseen.what == surroundings::OPEN_SESSIONS);
    if cuts && !is_told && case.surroundings.open_sessions.is_none() {
        not_checked.push(Unseen {
            what: "sessions that apply would cut".to_owned(),
            why: "nothing on this router tracks connections yet, so they cannot be counted"
                .to_owned(),
        });
    }
    findings.sort_by_key(|finding| finding.severity);
    Report {
        in_force: case.in_force,
        findings,
        sessions,
        probes: case.surroundings.probes.clone(),
        not_checked,
    }
}

/// The families that are in use, each with the appliances that it is used with.
fn families(policy: &Policy) -> impl Iterator<Item = (usize, Family)> + '_ {
    let used = move |index: usize| {
        Family::ALL.into_iter().filter_map(move |family| {
            let appliance = policy.appliances.get(index)?;
            (policy.uses(index, family) && appliance.address(family).is_some())
                .then_some((index, family))
        })
    };
    (0..policy.appliances.len()).flat_map(used)
}

/// The routes and rules that are there, once `plan` has been carried out.
fn rules_after(observed: &Observed, plan: &Plan) -> Vec<crate::net::RoutingRule> {
    let mut rules = observed.rules.clone();
    for change in &plan.changes {
        if let Change::Rule { from, to } = change {
            if let Some(at) = from
                .as_ref()
                .and_then(|from| rules.iter().position(|rule| rule == from))
            {
                rules.remove(at);
            }
            rules.extend(to.clone());
        }
    }
    // The kernel asks by priority; of the same, the older first.
    rules.sort_by_key(|rule| (rule.family, rule.priority));
    rules
}
