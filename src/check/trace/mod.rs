//! What becomes of one session, step by step.
//!
//! Our own rules are asked of [`Model`], which tests hold against the kernel; those of
//! others of [`walk`]; the routes of the kernel itself, or, where there is no kernel to ask,
//! of what apply would make.

mod failing;
mod text;
mod travel;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use failing::failing;
pub use text::text;
use travel::travel;

use super::foreign::State;
#[cfg(doc)]
use super::foreign::walk;
use super::foreign::walk::Traveller;
use super::legs::{self, Asked, Leg, Number, Session};
use super::packets::{names_server, place, translation, with_ours};
use super::{Case, Outcome, routing};
use crate::net::{IfName, IfPattern};
use crate::policy::{Policy, Redirect};
use crate::rules::{Connection, Leg as RuleLeg, Model, Packet};

/// A session to follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// The client.
    pub client: IpAddr,
    /// Its port.
    pub client_port: u16,
    /// The server.
    pub server: IpAddr,
    /// Its port.
    pub port: u16,
    /// Where the client comes in.
    pub input: IfName,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Fate {
    /// It goes through the appliance.
    Redirected {
        /// The redirect.
        redirect: String,
        /// The appliance.
        appliance: String,
    },
    /// A redirect takes it, and then something fails.
    Broken {
        /// The redirect.
        redirect: String,
        /// The appliance.
        appliance: String,
        /// The first leg that fails.
        leg: usize,
        /// How.
        #[serde(flatten)]
        failing: Failing,
    },
    /// It goes to no appliance.
    Direct {
        /// Why not; by redirect, where none takes it.
        why: Vec<String>,
        /// Where it goes.
        way: String,
    },
}

/// How a session fails that a redirect takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failing {
    /// What becomes of it.
    pub ending: Ending,
    /// What happens to the packet.
    pub because: String,
}

/// What becomes of a session that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// It reaches its server, and no appliance sees it.
    Leaks,
    /// Its opener is told so at once.
    Refused,
    /// Packets vanish; its opener waits.
    Hangs,
    /// It comes no further than the router itself.
    Ends,
}

impl Ending {
    /// What a session does that ends so.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Leaks => "reaches its server unrecorded",
            Self::Refused => "is refused",
            Self::Hangs => "hangs",
            Self::Ends => "ends on this router, unrecorded",
        }
    }
}

/// The whole trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// What was asked.
    pub request: Request,
    /// What becomes of it.
    #[serde(flatten)]
    pub fate: Fate,
    /// Whether the policy is in force; if not, this is how it will be.
    pub in_force: bool,
    /// Its legs.
    pub legs: Vec<TraceLeg>,
}

/// One leg, followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceLeg {
    /// 1 to 4.
    pub leg: usize,
    /// In words.
    pub title: &'static str,
    /// Where it comes in.
    pub input: String,
    /// Source address and port.
    pub from: String,
    /// Destination address and port.
    pub to: String,
    /// What our rules do.
    pub marks: String,
    /// What rules of others do, where they do something.
    pub others: Vec<String>,
    /// How its route is chosen.
    pub route: String,
    /// What the kernel says, if it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What to make of it.
    pub verdict: Outcome,
    /// What happens to the packet instead, where it goes astray.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fails: Option<Failing>,
}

/// The redirect that takes the first packet of a session.
///
/// # Errors
/// Where none does: why not, by redirect.
pub fn taker(policy: &Policy, request: &Request) -> Result<usize, Vec<String>> {
    let packet = first_packet(request);
    let marked = Model::new(policy).prerouting(&packet);
    let client = marked
        .taken
        .iter()
        .find(|(_, leg)| *leg == RuleLeg::Clients);
    if let Some((index, _)) = client {
        return Ok(*index);
    }
    Err(policy
        .redirects
        .iter()
        .map(|redirect| why_not(policy, redirect, &packet))
        .collect())
}

fn first_packet(request: &Request) -> Packet {
    Packet {
        input: request.input.clone(),
        mac: None,
        source: request.client,
        destination: request.server,
        ports: Some((request.client_port, request.port)),
        flags: Packet::SYN,
        connection: Connection::New(0),
        mark: 0,
    }
}

fn why_not(policy: &Policy, redirect: &Redirect, packet: &Packet) -> String {
    let listed = |patterns: &[IfPattern]| {
        let words: Vec<String> = patterns
            .iter()
            .map(|pattern| format!("`{pattern}`"))
            .collect();
        words.join(", ")
    };
    let mut reasons = Vec::new();
    if !redirect.servers.contains(packet.destination) {
        reasons.push(format!("{} is none of its servers", packet.destination));
    }
    let port = packet.ports.map_or(0, |(_, port)| port);
    if !redirect.ports.contains(port) {
        let ports: Vec<String> = redirect.ports.iter().map(ToString::to_string).collect();
        reasons.push(format!("port {port} is none of {}", ports.join(", ")));
    }
    let comes_in = redirect
        .client_interfaces
        .iter()
        .any(|pattern| pattern.matches(&packet.input));
    if !comes_in {
        reasons.push(format!(
            "it comes in on `{}`, clients on {}",
            packet.input,
            listed(&redirect.client_interfaces)
        ));
    }
    if redirect.except_clients.contains(packet.source) {
        reasons.push(format!("{} is an excepted client", packet.source));
    }
    let is_appliance = policy
        .appliance_of(redirect)
        .is_some_and(|appliance| appliance.macs.is_empty() && Model::is_from(appliance, packet));
    if is_appliance {
        reasons.push("it comes from the appliance itself".to_owned());
    }
    format!("redirect `{}`: {}", redirect.name, reasons.join("; "))
}

/// Another destination that a rule of others gives a session, behind our own rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// There; none: the router itself.
    pub to: Option<SocketAddr>,
    /// In words.
    pub by: String,
}

/// The other destination that a session gets, if it gets one.
#[must_use]
pub fn moved(case: &Case<'_>, request: &Request) -> Option<Moved> {
    let rules = with_ours(case);
    let from = SocketAddr::new(request.client, request.client_port);
    let to = SocketAddr::new(request.server, request.port);
    let first = Traveller::opening(&request.input, from, to);
    let found = translation(case, &rules, first)?;
    let whither = found
        .to
        .map_or_else(|| "of the router itself".to_owned(), |to| to.to_string());
    let by = place(found.site, &format!("gives it the destination {whither}"));
    Some(Moved { to: found.to, by })
}

/// The session of a redirect that a request is.
#[must_use]
pub fn session(redirect: usize, request: &Request, moved: Option<&Moved>) -> Session {
    let opened = SocketAddr::new(request.server, request.port);
    let to = moved.and_then(|moved| moved.to).unwrap_or(opened);
    Session {
        redirect,
        family: crate::net::Family::of(request.server),
        client_interface: request.input.clone(),
        client: request.client,
        client_port: request.client_port,
        server: to.ip(),
        port: to.port(),
    }
}

/// Follows a session that `asked` was asked about; `kernel`: by the kernel itself.
#[must_use]
pub fn follow(case: &Case<'_>, request: Request, asked: &Asked, kernel: bool) -> Option<Trace> {
    let redirect = case.policy.redirects.get(asked.session.redirect)?;
    let appliance = case.policy.appliance_of(redirect)?;
    let mut legs_followed = Vec::new();
    let mut broken = None;
    // What became of the two connections, the client's and the appliance's own, in their
    // first packets: answers are judged by it.
    let mut opened: [Option<(State, u32)>; 2] = [None, None];
    for leg in &asked.legs {
        let [of_client, of_appliance] = &mut opened;
        let connection = match leg.number {
            Number::ClientToAppliance | Number::ApplianceToClient => of_client,
            Number::ApplianceToServer | Number::ServerToAppliance => of_appliance,
        };
        let followed = follow_leg(case, &request, asked, leg, connection, kernel)?;
        if let (None, Some(failing)) = (&broken, &followed.fails) {
            broken = Some((followed.leg, failing.clone()));
        }
        legs_followed.push(followed);
    }
    if broken.is_none() && asked.legs.len() < Number::ALL.len() {
        let failing = Failing {
            ending: Ending::Refused,
            because: format!("the router knows no way to {}", asked.session.server),
        };
        broken = Some((Number::ApplianceToServer.number(), failing));
    }
    let (redirect, appliance) = (redirect.name.to_string(), appliance.name.to_string());
    Some(Trace {
        request,
        fate: match broken {
            None => Fate::Redirected {
                redirect,
                appliance,
            },
            Some((leg, failing)) => Fate::Broken {
                redirect,
                appliance,
                leg,
                failing,
            },
        },
        in_force: case.in_force,
        legs: legs_followed,
    })
}

fn follow_leg(
    case: &Case<'_>,
    request: &Request,
    asked: &Asked,
    leg: &Leg,
    connection: &mut Option<(State, u32)>,
    kernel: bool,
) -> Option<TraceLeg> {
    let redirect = case.policy.redirects.get(asked.session.redirect)?;
    let (source_port, destination_port) = leg.question.tcp_ports.unwrap_or_default();
    let to = match leg.number {
        Number::ClientToAppliance => endpoint(request.server, request.port),
        _ => endpoint(leg.question.to, destination_port),
    };
    let input = leg
        .question
        .input
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut followed = TraceLeg {
        leg: leg.number.number(),
        title: leg.number.title(),
        input,
        from: leg
            .question
            .from
            .map_or_else(String::new, |from| endpoint(from, source_port)),
        to,
        marks: String::new(),
        others: Vec::new(),
        route: String::new(),
        kernel: None,
        verdict: Outcome::AsExpected,
        fails: None,
    };
    let through = travel(case, request, asked, leg, connection, &mut followed);
    followed.marks = if routing::packets_drifted(case) {
        "our packet rules are not as they were applied".to_owned()
    } else {
        marks(case, redirect, leg, through.mark, through.connection_mark)
    };
    followed.route = route_words(case, redirect, leg);
    if kernel {
        let outcome = routing::outcome(case, leg);
        let answer = if outcome == Outcome::OnceApplied {
            &leg.unmarked
        } else {
            &leg.answer
        };
        followed.kernel = Some(legs::words(answer));
        followed.verdict = outcome;
    }
    followed.fails = failing(case, redirect, asked, leg, &through, followed.verdict);
    if followed.fails.is_some() {
        followed.verdict = Outcome::Astray;
    }
    Some(followed)
}

fn marks(
    case: &Case<'_>,
    redirect: &Redirect,
    leg: &Leg,
    mark: u32,
    connection_mark: u32,
) -> String {
    let (source, destination) = leg.question.tcp_ports.unwrap_or_default();
    let is_named = match (leg.number, leg.question.from) {
        (Number::ServerToAppliance, Some(server)) => {
            names_server(case, redirect, SocketAddr::new(server, source))
        }
        _ => names_server(
            case,
            redirect,
            SocketAddr::new(leg.question.to, destination),
        ),
    };
    let rule = match leg.number {
        Number::ClientToAppliance => format!("`{}: from clients` takes it", redirect.name),
        Number::ApplianceToServer | Number::ServerToAppliance if redirect.snat && !is_named => {
            "no redirect names this server, so no rule takes it".to_owned()
        }
        Number::ApplianceToServer if redirect.snat => {
            format!("`{}: from the appliance` takes it", redirect.name)
        }
        Number::ServerToAppliance if redirect.snat => "its connection is marked".to_owned(),
        Number::ApplianceToClient => "from the appliance, so its packets stay unmarked".to_owned(),
        _ => "the appliance's own connection, which no rule touches".to_owned(),
    };
    let bits = case
        .policy
        .appliance_of(redirect)
        .map_or(u32::MAX, |appliance| appliance.mark.mask);
    format!(
        "{rule}: packet mark {:#x}, connection mark {:#x}",
        mark & bits,
        connection_mark & bits
    )
}

fn route_words(case: &Case<'_>, redirect: &Redirect, leg: &Leg) -> String {
    let way = legs::way_words(leg.expected.via, Some(&leg.expected.interface));
    match case.policy.appliance_of(redirect) {
        Some(appliance) if leg.question.mark != 0 => format!(
            "rule {} fwmark {} -> table {} ({}): {way}",
            appliance.rule_priority, appliance.mark, appliance.table, appliance.name
        ),
        _ => format!("unmarked, as ever: {way}"),
    }
}

fn endpoint(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// A session that no redirect takes.
#[must_use]
pub fn direct(in_force: bool, request: Request, why: Vec<String>, way: String) -> Trace {
    Trace {
        request,
        fate: Fate::Direct { why, way },
        in_force,
        legs: Vec::new(),
    }
}
