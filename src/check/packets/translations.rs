//! Destination NAT of others.
//!
//! Our rules look at a packet's destination before anybody rewrites it: the kernel does that behind
//! them, whatever the priority of the chain that asks for it ([`Base::place`]), and only then
//! chooses the route. So what is given a server of a redirect as its destination there goes past
//! us, unless the redirect names what it was sent to as well.
//!
//! [`Base::place`]: super::super::foreign::Base::place

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::super::foreign::walk::{self, Event, Site, Traveller, What, Whither};
use super::super::foreign::{Chain, Effect, Hook, NewAddress, NewDestination, Ruleset, Step, Test};
use super::super::legs::{self, Asked, Number, Session};
use super::super::{Case, Finding, Severity, Subject};
use super::OurRules;
use super::mend::Match;
use super::troubles::{Way, place};
use crate::net::{Family, Networks, Range};
use crate::policy::Redirect;

/// Where a rule of others sends a session that somebody opens, and which rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation<'r> {
    /// There; none: to the router itself.
    pub to: Option<SocketAddr>,
    /// By this rule.
    pub site: Site<'r>,
    /// Whether our rules have taken it before that.
    pub is_taken: bool,
}

/// What becomes of the destination of a session's first packet.
#[must_use]
pub fn translation<'r>(
    case: &Case<'_>,
    rules: &'r Ruleset,
    mut first: Traveller,
) -> Option<Translation<'r>> {
    first.to_router = legs::is_own(case.observed, first.destination);
    let mut ours = OurRules::new(case.policy);
    let mut events = Vec::new();
    if !walk::pass(rules, Hook::Prerouting, &mut first, &mut ours, &mut events) {
        return None;
    }
    let (to, site) = new_destination(case, &events)?;
    let is_taken =
        (case.policy.appliances.iter()).any(|appliance| appliance.mark.is_borne_by(first.mark));
    Some(Translation { to, site, is_taken })
}

/// The last of a packet's new destinations that can be told; none: the router itself.
pub(in crate::check) fn new_destination<'r>(
    case: &Case<'_>,
    events: &[Event<'r>],
) -> Option<(Option<SocketAddr>, Site<'r>)> {
    events.iter().rev().find_map(|event| match event.what {
        What::DestinationNat(Whither::Router) => Some((None, event.site)),
        What::DestinationNat(Whither::To(to)) => {
            let is_elsewhere = !legs::is_own(case.observed, to.ip());
            Some((is_elsewhere.then_some(to), event.site))
        }
        What::DestinationNat(Whither::OneOf(to)) => Some((Some(to), event.site)),
        _ => None,
    })
}

impl Way<'_> {
    /// A new destination with which the session does not come where it should.
    pub(super) fn translated(&self, events: &[Event<'_>]) -> Option<Finding> {
        let (to, site) = new_destination(self.case, events)?;
        let gives = |to: &str| {
            let does = format!("gives it the destination {to}");
            format!("{}: {}", self.leg_words(), place(site, &does))
        };
        let is_first = self.number == Number::ClientToAppliance;
        let Some(to) = to else {
            let why = if is_first {
                "the kernel delivers it to the router, whatever its mark: such sessions cross no appliance, and are not recorded"
            } else {
                "the appliance's connection to the server ends on the router: no session gets through"
            };
            return Some(
                Finding::error("dnat-to-router", self.subject())
                    .found(gives("of the router itself"))
                    .why(why)
                    .owner(site.chain.owner(site.rule))
                    .mend(self.before(site, &Match::Early { ports: true })),
            );
        };
        if !is_first || !self.redirect.snat || names_server(self.case, self.redirect, to) {
            return None;
        }
        Some(
            Finding::error("dnat-astray", self.subject())
                .found(gives(&to.to_string()))
                .why(format!("the appliance dials {to} with the client's address, and no redirect of its has that: the answers go to the client directly, and sessions hang"))
                .owner(site.chain.owner(site.rule))
                .mends(named(self.case, self.redirect, &[to.ip().into()], to.port())),
        )
    }
}

/// Whether our rules know what the appliance of `redirect` opens to this server with its client's
/// address.
pub(in crate::check) fn names_server(case: &Case<'_>, redirect: &Redirect, to: SocketAddr) -> bool {
    case.policy
        .redirects
        .iter()
        .any(|other| other.appliance == redirect.appliance && other.snat && has(other, to))
}

fn has(redirect: &Redirect, to: SocketAddr) -> bool {
    redirect.servers.contains(to.ip()) && redirect.ports.contains(to.port())
}

/// Commands by which a redirect names these servers, and this port.
fn named(case: &Case<'_>, redirect: &Redirect, servers: &[IpNet], port: u16) -> Vec<String> {
    let mut more: Vec<(&str, String)> = (servers.iter())
        .filter(|network| !redirect.servers.contains(network.network()))
        .map(|network| ("server_network", format!("\"{}\"", short(network))))
        .collect();
    if !redirect.ports.contains(port) {
        more.push(("port", port.to_string()));
    }
    case.file
        .extend(redirect.name.as_str(), &more, case.in_force)
}

fn short(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// Addresses or ports which no redirect names, and which are given a server of a redirect as their
/// destination: port forwarding.
pub(super) fn past_us(case: &Case<'_>, rules: &Ruleset, asked: &Asked) -> Vec<Finding> {
    let session = &asked.session;
    let Some(redirect) = case.policy.redirects.get(session.redirect) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for path in paths(rules, session.family) {
        let Some(port) = path.port_for(redirect, session.port) else {
            continue;
        };
        for servers in path.addresses_for(case, redirect, session) {
            let Some(address) = sample(&servers) else {
                continue;
            };
            let opened = SocketAddr::new(address, port);
            let Some(found) = translation(case, rules, first(session, opened)) else {
                continue;
            };
            let Some(to) = found.to.filter(|to| !found.is_taken && has(redirect, *to)) else {
                continue;
            };
            let does = format!(
                "gives sessions to {opened} that come in on `{}` the destination {to}, a server of this redirect",
                session.client_interface
            );
            findings.push(
                Finding::new(Severity::Error, "dnat-past-us", Subject::Redirect(redirect.name.to_string()))
                    .found(place(found.site, &does))
                    .why(format!("our rules look at destinations before any is rewritten, and the redirect does not name {opened}: such sessions reach the server unrecorded"))
                    .owner(found.site.chain.owner(found.site.rule))
                    .mends(named(case, redirect, &servers, port)),
            );
        }
    }
    findings
}

fn first(session: &Session, to: SocketAddr) -> Traveller {
    let from = SocketAddr::new(session.client, session.client_port);
    Traveller::opening(&session.client_interface, from, to)
}

/// Whether sessions to `to` that clients of `redirect` open are led away from the router.
pub(in crate::check) fn are_led_away(case: &Case<'_>, redirect: usize, to: SocketAddr) -> bool {
    let rules = super::with_ours(case);
    let mut sessions = (case.surroundings.asked.iter())
        .map(|asked| &asked.session)
        .filter(|session| session.redirect == redirect && session.family == Family::of(to.ip()))
        .peekable();
    sessions.peek().is_some()
        && sessions.all(|session| {
            translation(case, &rules, first(session, to)).is_some_and(|found| found.to.is_some())
        })
}

/// One address of these networks.
fn sample(networks: &[IpNet]) -> Option<IpAddr> {
    let network = networks.first()?;
    Networks::merged([*network]).sample(match network {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    })
}

/// A rule that rewrites destinations, with all that is asked on the way to it.
struct Path<'r> {
    steps: Vec<&'r Step>,
    to: &'r NewDestination,
}

impl Path<'_> {
    /// A port that leads to one of the redirect's.
    fn port_for(&self, redirect: &Redirect, usual: u16) -> Option<u16> {
        let asked = self.steps.iter().rev().find_map(|step| match step {
            Step::If(Test::DestinationPort(ports)) => Some(ports),
            _ => None,
        });
        match (self.to.port, asked) {
            (Some(to), _) if !redirect.ports.contains(to) => None,
            (Some(_), Some(ports)) => ports.iter().next().map(|range| range.first),
            (None, Some(ports)) => ports.overlap(&redirect.ports).map(|range| range.first),
            (_, None) => Some(usual),
        }
    }

    /// Addresses that may lead to one of the redirect's servers: networks that are told of together.
    fn addresses_for(
        &self,
        case: &Case<'_>,
        redirect: &Redirect,
        session: &Session,
    ) -> Vec<Vec<IpNet>> {
        let leads = match &self.to.address {
            NewAddress::Among(networks) => {
                networks.v4.overlap(&redirect.servers.v4).is_some()
                    || networks.v6.overlap(&redirect.servers.v6).is_some()
            }
            NewAddress::Same => true,
            NewAddress::Router | NewAddress::Unknown => false,
        };
        if !leads {
            return Vec::new();
        }
        let asked = self.steps.iter().rev().find_map(|step| match step {
            Step::If(Test::Destination(networks)) => Some(networks),
            _ => None,
        });
        match asked {
            Some(networks) => vec![prefixes(networks, session.family)],
            None if self.to.address == NewAddress::Same => vec![vec![session.server.into()]],
            None => (case.observed.addresses.iter())
                .map(|found| found.network.addr())
                .filter(|own| Family::of(*own) == session.family)
                .map(|own| vec![own.into()])
                .collect(),
        }
    }
}

fn prefixes(networks: &Networks, family: Family) -> Vec<IpNet> {
    match family {
        Family::V4 => (networks.v4.iter())
            .flat_map(Range::<u32>::prefixes)
            .collect(),
        Family::V6 => (networks.v6.iter())
            .flat_map(Range::<u128>::prefixes)
            .collect(),
    }
}

/// How many chains are gone into at most: they may be nested in as many ways as one likes.
const MOST_CHAINS: usize = 10_000;

fn paths(rules: &Ruleset, family: Family) -> Vec<Path<'_>> {
    let mut search = Search {
        rules,
        entered: 0,
        found: Vec::new(),
    };
    for chain in &rules.chains {
        let is_nat = chain
            .base
            .is_some_and(|base| base.nat && base.hook == Hook::Prerouting);
        if is_nat && chain.sees(family) {
            search.enter(chain, &mut Vec::new(), 0);
        }
    }
    search.found
}

struct Search<'r> {
    rules: &'r Ruleset,
    entered: usize,
    found: Vec<Path<'r>>,
}

impl<'r> Search<'r> {
    fn enter(&mut self, chain: &'r Chain, way: &mut Vec<&'r Step>, depth: usize) {
        self.entered += 1;
        if self.entered > MOST_CHAINS || depth > walk::DEPTH {
            return;
        }
        let before = way.len();
        for rule in &chain.rules {
            for step in &rule.steps {
                match step {
                    Step::Do(Effect::DestinationNat(to)) => self.found.push(Path {
                        steps: way.clone(),
                        to,
                    }),
                    Step::Do(Effect::Jump(name) | Effect::Goto(name)) => {
                        if let Some(target) = self.rules.target(chain, name) {
                            self.enter(target, way, depth + 1);
                        }
                    }
                    Step::Do(_) => {}
                    Step::If(_) | Step::Unless(_) => way.push(step),
                }
            }
            way.truncate(before);
        }
    }
}
