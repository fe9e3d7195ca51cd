//! What may befall a leg among the packet rules of others, told.

use super::super::foreign::walk::{Event, Site, What};
use super::super::foreign::{Effect, Hook, Ruleset, Step, Test, Which, owner_of_bits};
use super::super::legs::{Asked, Number, is_marked};
use super::super::routing::{lower_than, rule_words};
use super::super::{Case, Finding, REPAIR, Severity, Subject};
use super::mend::Match;
use crate::net::{IfName, RoutingRule};
use crate::policy::{Appliance, Redirect};
use crate::rules::Model;

/// Which of a packet's marks are ours when its route is chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Borne {
    pub(super) packet: bool,
    pub(super) connection: bool,
}

/// A leg on its way, to tell of.
pub(super) struct Way<'a> {
    pub(super) case: &'a Case<'a>,
    pub(super) redirect: &'a Redirect,
    pub(super) appliance: &'a Appliance,
    pub(super) asked: &'a Asked,
    pub(super) number: Number,
    pub(super) input: Option<IfName>,
    pub(super) output: Option<IfName>,
}

impl Way<'_> {
    pub(super) fn subject(&self) -> Subject {
        Subject::Redirect(self.redirect.name.to_string())
    }

    fn is_sealed(&self) -> bool {
        Model::new(self.case.policy).is_sealed()
    }

    pub(super) fn leg_words(&self) -> String {
        format!(
            "leg {}, {}, {}",
            self.number.number(),
            self.number.title(),
            self.asked.session.family
        )
    }

    pub(super) fn dropped(&self, events: &[Event<'_>], hook: Hook) -> Option<Finding> {
        let event = events
            .iter()
            .rev()
            .find(|event| event.what == What::Dropped)?;
        let site = event.site;
        let doubts: Vec<&Event<'_>> = events
            .iter()
            .filter(|event| event.what == What::Doubt && event.site.base == site.base)
            .collect();
        let filters_paths = site.rule.is_some_and(|rule| {
            rule.steps
                .iter()
                .any(|step| matches!(step, Step::If(Test::NoReversePath { .. })))
        });
        let (code, why) = if filters_paths {
            (
                "fib-filter",
                "it drops what comes from where the router would not send to, and the appliance sends with the addresses of clients and servers: every session hangs",
            )
        } else if hook == Hook::Forward {
            ("forward-drop", "every session ends here")
        } else {
            ("packet-dropped", "every session ends here")
        };
        let severity = if doubts.is_empty() {
            Severity::Error
        } else {
            Severity::Warning
        };
        let mut found = format!("{}: {}", self.leg_words(), place(site, "drops it"));
        if let Some(doubt) = doubts.first() {
            found = format!("{found}, unless {}", place(doubt.site, "takes it"));
        }
        let command = if filters_paths {
            self.before(site, &Match::Early { ports: false })
        } else if hook == Hook::Forward {
            self.before(site, &Match::Late)
        } else {
            self.before(site, &Match::Early { ports: true })
        };
        Some(
            Finding::new(severity, code, self.subject())
                .found(found)
                .why(why)
                .owner(
                    site.base
                        .owner(site.rule)
                        .or(site.chain.owner(site.rule))
                        .or(docker(self.case)),
                )
                .mend(command),
        )
    }

    pub(super) fn untracked(&self, events: &[Event<'_>]) -> Option<Finding> {
        let event = events.iter().find(|event| event.what == What::Untracked)?;
        Some(
            Finding::error("notrack", self.subject())
                .found(format!("{}: {}", self.leg_words(), place(event.site, "takes it from connection tracking")))
                .why("without a tracked connection there is no connection mark, and answers do not find the way through the appliance")
                .owner(event.site.chain.owner(event.site.rule))
                .mend(self.before(event.site, &Match::Early { ports: true })),
        )
    }

    pub(super) fn passed_by(&self, rules: &Ruleset) -> Option<Finding> {
        let family = self.asked.session.family;
        let mangle = rules.chains.iter().find(|chain| {
            chain.sees(family) && chain.table == "mangle" && chain.name == "PREROUTING"
        })?;
        Some(
            Finding::error("accepted-before-us", self.subject())
                .found(format!(
                    "{}: a rule of {} takes it before ours are reached",
                    self.leg_words(),
                    mangle.title()
                ))
                .why("it is never marked: sessions reach their servers unrecorded")
                .mend(REPAIR),
        )
    }

    pub(super) fn overwritten(
        &self,
        events: &[Event<'_>],
        mark: Which,
        left: Borne,
    ) -> Option<Finding> {
        let ours = self.appliance.mark.mask;
        let event = events.iter().rev().find(|event| {
            matches!(event.what, What::Marked { which, from, to, after_ours: true }
                if which == mark && (from ^ to) & ours != 0)
        })?;
        let What::Marked { from, to, .. } = event.what else {
            return None;
        };
        let should = is_marked(self.number, self.redirect.snat);
        let is_held = self.is_sealed() && left.connection;
        let (code, which) = match mark {
            Which::Packet => ("mark-overwritten", "packet"),
            Which::Connection => ("connmark-overwritten", "connection"),
        };
        let why = match mark {
            Which::Packet if !should => {
                "the route is chosen by this mark: the appliance's own packets are sent back to it, in circles"
            }
            Which::Packet if is_held => {
                "the route is chosen by this mark: sessions miss the appliance, and the seal refuses them"
            }
            _ if should && !left.packet && !is_held => {
                "the route is chosen by the packet's mark, and the seal knows a packet by it or by its connection's: with neither left, sessions reach their servers unrecorded"
            }
            _ => {
                "answers find their way through the appliance by this mark: sessions hang, or are refused"
            }
        };
        Some(
            Finding::error(code, self.subject())
                .found(format!("{}: {} the {which} mark from {from:#x} to {to:#x}, and {ours:#x} of it is ours", self.leg_words(), place(event.site, "changes")))
                .why(why)
                .owner(event.site.chain.owner(event.site.rule))
                .mend(self.before(event.site, match mark {
                    Which::Packet => &Match::Marked,
                    Which::Connection => &Match::Connection,
                })),
        )
    }

    /// The same, with the routing rule that takes such packets then.
    pub(super) fn and_caught(&self, finding: Finding, by: Option<&RoutingRule>) -> Finding {
        match by {
            None => finding,
            Some(rule) => Finding {
                found: format!(
                    "{}; the {} routing rule `{}`, which stands before ours, takes it then",
                    finding.found,
                    self.asked.session.family,
                    rule_words(rule)
                ),
                ..finding
            },
        }
    }

    /// Bits of the mark that are not ours, and a routing rule before ours that goes by them.
    pub(super) fn caught(&self, events: &[Event<'_>], by: &RoutingRule) -> Option<Finding> {
        let bits = by.mark.map_or(u32::MAX, |mark| mark.mask);
        let event = events.iter().rev().find(|event| {
            matches!(event.what, What::Marked { which: Which::Packet, from, to, .. }
                if (from ^ to) & bits != 0)
        })?;
        let What::Marked { from, to, .. } = event.what else {
            return None;
        };
        let is_marked = is_marked(self.number, self.redirect.snat);
        let why = match (is_marked, self.is_sealed()) {
            (true, true) => {
                "it misses the appliance, and the seal refuses it: no session gets through"
            }
            (true, false) => {
                "it misses the appliance: sessions hang, or reach their servers unrecorded"
            }
            (false, _) => "it does not come where it should: sessions hang",
        };
        // Ours can only come first where there is a mark for it to go by.
        let priority = lower_than(by.priority.0, self.case).filter(|_| is_marked);
        let mend = match priority {
            Some(priority) => self.case.file.set_option(
                "rule_priority",
                &priority.to_string(),
                self.case.in_force,
            ),
            None => vec![self.before(event.site, &Match::Early { ports: true })],
        };
        let owner = by.mark.and_then(|mark| owner_of_bits(mark.mask));
        Some(
            Finding::error("rule-before-ours", self.subject())
                .found(format!(
                    "{}: {} the packet mark from {from:#x} to {to:#x}, and the {} routing rule `{}`, which stands before ours, takes it by that",
                    self.leg_words(),
                    place(event.site, "changes"),
                    self.asked.session.family,
                    rule_words(by)
                ))
                .why(why)
                .owner(event.site.chain.owner(event.site.rule).or(owner))
                .mends(mend),
        )
    }

    pub(super) fn offloaded(&self, events: &[Event<'_>], rules: &Ruleset) -> Option<Finding> {
        let event = events.iter().find(|event| event.what == What::Offloaded)?;
        let name = event.site.rule?.steps.iter().find_map(|step| match step {
            Step::Do(Effect::Offload(name)) => Some(name),
            _ => None,
        })?;
        let table = rules
            .flowtables
            .iter()
            .find(|table| table.name == *name && table.table == event.site.chain.table);
        // By an interface that is not the flowtable's, packets come in as ever.
        let covers = table.is_none_or(|table| {
            [&self.input, &self.output]
                .into_iter()
                .flatten()
                .any(|name| table.devices.iter().any(|device| device == name.as_str()))
        });
        covers.then(|| {
            Finding::error("flowtable", self.subject())
                .found(format!("{}: {}", self.leg_words(), place(event.site, "hands it to a flowtable")))
                .why("packets of a connection in a flowtable see neither our rules nor the routing rule: answers go past the appliance")
                .owner(event.site.chain.owner(event.site.rule))
                .mend(self.before(event.site, &Match::Connection))
        })
    }

    pub(super) fn hidden(&self, events: &[Event<'_>]) -> Option<Finding> {
        let event = events.iter().find(|event| event.what == What::SourceNat)?;
        let (severity, why) = if self.redirect.snat {
            (
                Severity::Error,
                "the appliance sees the router's address and not the client's, and dials the server with it: the router drops such packets, and sessions hang",
            )
        } else {
            (
                Severity::Warning,
                "the appliance sees the router's address and not the client's: its records name the wrong client",
            )
        };
        Some(
            Finding::new(severity, "client-hidden", self.subject())
                .found(format!(
                    "{}: {}",
                    self.leg_words(),
                    place(event.site, "rewrites its source")
                ))
                .why(why)
                .owner(event.site.chain.owner(event.site.rule))
                .mend(self.before(event.site, &Match::Leaving)),
        )
    }
}

/// `rule … of chain … drops it`.
pub(in crate::check) fn place(site: Site<'_>, does: &str) -> String {
    match site.rule {
        Some(rule) => format!("rule `{}` of {} {does}", rule.text, site.chain.title()),
        None => format!("the policy of {} {does}", site.chain.title()),
    }
}

/// Docker sets the policy of FORWARD, which bears no name.
fn docker(case: &Case<'_>) -> Option<&'static str> {
    case.surroundings
        .rules
        .chains
        .iter()
        .any(|chain| chain.name == "DOCKER-USER")
        .then_some("Docker")
}
