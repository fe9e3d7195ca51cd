//! The packet rules of others: each leg is taken through them, with ours at their place.

mod invalid;
mod mend;
mod others;
mod translations;
mod troubles;

use super::foreign::walk::{self, Ours, Traveller};
use super::foreign::{
    Base, Chain, Effect, Hook, OUR_CHAINS, Rule, Ruleset, State, Step, System, Which,
};
use super::legs::{Asked, Number, Session, addresses, is_marked, ports};
use super::routing::catcher_by_more_bits;
use super::{Backend, Case, Explained, Finding, Severity};
use crate::net::IfName;
use crate::policy::{Appliance, Policy};
use crate::rules::{Connection, Model, Packet};

pub(super) use mend::{Refused, multiport, refuse};
use others::{both_iptables, same_marks};
pub(super) use translations::{are_led_away, names_server, new_destination, translation};
pub(super) use troubles::place;
use troubles::{Borne, Way};

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    both_iptables(case, findings);
    same_marks(case, findings);
    let rules = with_ours(case);
    for (index, asked) in case.surroundings.asked.iter().enumerate() {
        findings.extend(translations::past_us(case, &rules, asked));
        findings.extend(invalid::dropped(case, &rules, asked));
        for number in Number::ALL {
            for state in states(number) {
                let found = leg(case, &rules, asked, number, *state);
                let error = found.iter().find(|found| found.severity == Severity::Error);
                if let Some(error) = error {
                    explained.insert(index, number, error.code);
                }
                findings.extend(found);
            }
        }
    }
}

/// The states in which packets of a leg come.
fn states(number: Number) -> &'static [State] {
    match number {
        Number::ClientToAppliance | Number::ApplianceToServer => &[State::New, State::Established],
        Number::ServerToAppliance | Number::ApplianceToClient => &[State::Established],
    }
}

/// The rules, with [`Effect::Ours`] where ours stand, or will, and our chains left out.
#[must_use]
pub fn with_ours(case: &Case<'_>) -> Ruleset {
    place_ours(&case.surroundings.rules, case.backend, case.in_force)
}

/// See [`with_ours`].
#[must_use]
pub fn place_ours(rules: &Ruleset, backend: Backend, in_force: bool) -> Ruleset {
    let keep_jumps = in_force && backend == Backend::Iptables;
    let mut rules = rules.clone();
    rules.chains.retain(|chain| !chain.is_ours());
    if !keep_jumps {
        for chain in &mut rules.chains {
            chain
                .rules
                .retain(|rule| !rule.steps.contains(&Step::Do(Effect::Ours)));
        }
    }
    if keep_jumps {
        return rules;
    }
    let (table, priority) = match backend {
        Backend::Nftables => (crate::nft::TABLE, -140),
        // First in mangle.
        Backend::Iptables => ("mangle", -151),
    };
    for hook in [Hook::Prerouting, Hook::Forward] {
        rules.chains.push(Chain {
            system: System::Nft,
            command: "nft".to_owned(),
            table_family: "inet".to_owned(),
            table: table.to_owned(),
            name: OUR_CHAINS.to_owned(),
            base: Some(Base {
                hook,
                priority,
                drops: false,
                nat: false,
            }),
            rules: vec![Rule {
                text: "ours".to_owned(),
                handle: 0,
                steps: vec![Step::Do(Effect::Ours)],
            }],
        });
    }
    rules
}

/// What our own rules do to a packet.
pub struct OurRules<'p> {
    model: Model<'p>,
    acted: bool,
}

impl<'p> OurRules<'p> {
    /// Of this policy.
    #[must_use]
    pub fn new(policy: &'p Policy) -> Self {
        Self {
            model: Model::new(policy),
            acted: false,
        }
    }
}

fn packet(traveller: &Traveller) -> Option<Packet> {
    Some(Packet {
        input: traveller.input.clone()?,
        mac: traveller.mac,
        source: traveller.source,
        destination: traveller.destination,
        ports: traveller.ports,
        flags: traveller.flags,
        connection: match traveller.state {
            State::New => Connection::New(traveller.connection_mark),
            State::Established => Connection::Known(traveller.connection_mark),
            State::Untracked => Connection::Untracked,
            State::Invalid | State::Other => Connection::Invalid,
        },
        mark: traveller.mark,
    })
}

impl Ours for OurRules<'_> {
    fn act(&mut self, hook: Hook, traveller: &mut Traveller) -> bool {
        let Some(packet) = packet(traveller) else {
            return true;
        };
        if hook == Hook::Prerouting {
            self.acted = true;
            let marked = self.model.prerouting(&packet);
            traveller.mark = marked.mark;
            traveller.connection_mark = marked.connection.mark().unwrap_or(0);
        }
        // The seal is not asked here: what it refuses has gone astray before, for a reason
        // that is told.
        true
    }
}

/// The first packet of a leg, or a later one, as it comes in.
#[must_use]
pub fn traveller(
    policy: &Policy,
    session: &Session,
    server_interface: Option<&IfName>,
    number: Number,
    state: State,
) -> Option<Traveller> {
    let redirect = policy.redirects.get(session.redirect)?;
    let appliance = policy.appliance_of(redirect)?;
    let address = appliance.address(session.family)?;
    let (source, destination) = addresses(number, session, redirect.snat, address);
    let from_appliance = matches!(
        number,
        Number::ApplianceToServer | Number::ApplianceToClient
    );
    let input = match number {
        Number::ClientToAppliance => session.client_interface.clone(),
        Number::ServerToAppliance => server_interface?.clone(),
        _ => appliance.interface.clone(),
    };
    let way_back = if source == session.server {
        server_interface?.clone()
    } else if source == session.client {
        session.client_interface.clone()
    } else {
        appliance.interface.clone()
    };
    let borne = match (number, state) {
        // The first packet has none yet; with SNAT, answers to the appliance bear it from
        // its own first packet.
        (Number::ClientToAppliance | Number::ApplianceToServer, State::New) => false,
        (Number::ApplianceToServer | Number::ServerToAppliance, _) => redirect.snat,
        _ => true,
    };
    Some(Traveller {
        input: Some(input),
        output: None,
        source,
        destination,
        to_router: false,
        protocol: 6,
        ports: Some(ports(number, session)),
        icmp_type: None,
        flags: match (number, state) {
            (_, State::New) => Packet::SYN,
            (Number::ClientToAppliance | Number::ApplianceToServer, _) => Packet::ACK,
            // The first answer of a session, which is the one that must find its way.
            _ => Packet::SYN | Packet::ACK,
        },
        state,
        mac: from_appliance
            .then(|| appliance.macs.first().copied())
            .flatten(),
        way_back: Some(way_back),
        mark: 0,
        connection_mark: if borne { appliance.mark.value } else { 0 },
    })
}

/// A leg, and its packet.
fn way<'a>(
    case: &'a Case<'a>,
    asked: &'a Asked,
    number: Number,
    state: State,
) -> Option<(Way<'a>, Traveller)> {
    let redirect = case.policy.redirects.get(asked.session.redirect)?;
    let appliance = case.policy.appliance_of(redirect)?;
    let server_interface = asked.server_interface.as_ref();
    let traveller = traveller(case.policy, &asked.session, server_interface, number, state)?;
    let way = Way {
        case,
        redirect,
        appliance,
        asked,
        number,
        input: traveller.input.clone(),
        output: output(number, asked, appliance),
    };
    Some((way, traveller))
}

/// What keeps a packet of this leg from its way.
fn leg(
    case: &Case<'_>,
    rules: &Ruleset,
    asked: &Asked,
    number: Number,
    state: State,
) -> Vec<Finding> {
    let Some((way, mut traveller)) = way(case, asked, number, state) else {
        return Vec::new();
    };
    let (redirect, appliance) = (way.redirect, way.appliance);
    let mut findings = Vec::new();
    let mut ours = OurRules::new(case.policy);
    let mut events = Vec::new();
    let mut pass = |hook, traveller: &mut Traveller, events: &mut Vec<_>| {
        walk::pass(rules, hook, traveller, &mut ours, events)
    };
    if !pass(Hook::Prerouting, &mut traveller, &mut events) {
        findings.extend(way.dropped(&events, Hook::Prerouting));
        return findings;
    }
    findings.extend(way.untracked(&events));
    findings.extend(way.translated(&events));
    if !ours.acted && case.in_force && case.backend == Backend::Iptables {
        findings.extend(way.passed_by(rules));
    }
    let should = is_marked(number, redirect.snat);
    let bears = |mark: u32| appliance.mark.is_borne_by(mark);
    let marks = Borne {
        packet: bears(traveller.mark),
        connection: bears(traveller.connection_mark),
    };
    let caught = (asked.legs.iter())
        .find(|leg| leg.number == number)
        .and_then(|leg| catcher_by_more_bits(case, asked, leg, traveller.mark));
    if should != marks.packet {
        let overwritten = way.overwritten(&events, Which::Packet, marks);
        findings.extend(overwritten.map(|finding| way.and_caught(finding, caught.as_ref())));
    } else if let Some(rule) = &caught {
        findings.extend(way.caught(&events, rule));
    }
    traveller.output.clone_from(&way.output);
    let mut later = Vec::new();
    let mut pass = |hook, traveller: &mut Traveller, events: &mut Vec<_>| {
        walk::pass(rules, hook, traveller, &mut ours, events)
    };
    if !pass(Hook::Forward, &mut traveller, &mut later) {
        findings.extend(way.dropped(&later, Hook::Forward));
        return findings;
    }
    findings.extend(way.offloaded(&later, rules));
    let mut last = Vec::new();
    if state == State::New {
        pass(Hook::Postrouting, &mut traveller, &mut last);
    }
    if number == Number::ClientToAppliance {
        findings.extend(way.hidden(&last));
    }
    // Wherever it is wiped, the answers come back without it.
    events.extend(later);
    events.extend(last);
    let needs_connection = should || redirect.snat || number == Number::ApplianceToClient;
    if needs_connection && !bears(traveller.connection_mark) {
        findings.extend(way.overwritten(&events, Which::Connection, marks));
    }
    findings
}

fn output(number: Number, asked: &Asked, appliance: &Appliance) -> Option<IfName> {
    match number {
        Number::ClientToAppliance | Number::ServerToAppliance => Some(appliance.interface.clone()),
        Number::ApplianceToServer => asked.server_interface.clone(),
        Number::ApplianceToClient => Some(asked.session.client_interface.clone()),
    }
}
