//! What becomes of one session, step by step.
//!
//! Our own rules are asked of [`Model`], which tests hold against the kernel; those of
//! others of [`walk`]; the routes of the kernel itself, or, where there is no kernel to ask,
//! of what apply would make.

mod text;
mod travel;

use std::net::IpAddr;

use nix::errno::Errno;
use serde::Serialize;

pub use text::text;
use travel::{Through, travel};

use super::foreign::State;
#[cfg(doc)]
use super::foreign::walk;
use super::legs::{self, Asked, Leg, Number, Session};
use super::{Case, Outcome, routing};
use crate::kernel::route::Answer;
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
}

impl Ending {
    /// What a session does that ends so.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Leaks => "reaches its server unrecorded",
            Self::Refused => "is refused",
            Self::Hangs => "hangs",
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

/// The session of a redirect that a request is.
#[must_use]
pub fn session(redirect: usize, request: &Request) -> Session {
    Session {
        redirect,
        family: crate::net::Family::of(request.server),
        client_interface: request.input.clone(),
        client: request.client,
        client_port: request.client_port,
        server: request.server,
        port: request.port,
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
        let followed = follow_leg(case, redirect, asked, leg, connection, kernel);
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
    redirect: &Redirect,
    asked: &Asked,
    leg: &Leg,
    connection: &mut Option<(State, u32)>,
    kernel: bool,
) -> TraceLeg {
    let (source_port, destination_port) = leg.question.tcp_ports.unwrap_or_default();
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
        to: endpoint(leg.question.to, destination_port),
        marks: String::new(),
        others: Vec::new(),
        route: String::new(),
        kernel: None,
        verdict: Outcome::AsExpected,
        fails: None,
    };
    let through = travel(case, asked, leg, connection, &mut followed);
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
    followed
}

/// What keeps a leg's packet from its way, and what that means for the session; in the order in
/// which the packet meets it.
fn failing(
    case: &Case<'_>,
    redirect: &Redirect,
    asked: &Asked,
    leg: &Leg,
    through: &Through,
    outcome: Outcome,
) -> Option<Failing> {
    let fails = |ending, because: String| Some(Failing { ending, because });
    let family = asked.session.family;
    let question = &leg.question;
    let input = question.input.as_ref()?;
    let should = question.mark != 0;
    let is_first = leg.number == Number::ClientToAppliance;
    // Where a packet goes that should go to the appliance, and does not.
    let past = if is_first {
        (Ending::Leaks, "it goes to its server directly")
    } else {
        (
            Ending::Hangs,
            "it goes to the client directly, and the appliance waits for it",
        )
    };
    if routing::packets_drifted(case) {
        return fails(
            past.0,
            "our packet rules are not as they were applied; `redirect repair` puts them back"
                .to_owned(),
        );
    }
    if let Some((ending, by)) = &through.dropped {
        return fails(*ending, by.clone());
    }
    let mark = case.policy.appliance_of(redirect)?.mark;
    let bears = mark.is_borne_by(through.mark);
    if bears && !should {
        return fails(
            Ending::Hangs,
            "it comes from the appliance and bears its mark, so it is sent back there, in circles"
                .to_owned(),
        );
    }
    let is_sealed = Model::new(case.policy).is_sealed();
    if should && !bears {
        let is_held = is_sealed && mark.is_borne_by(through.connection_mark);
        return if is_held {
            let because = "it has lost its mark when its route is chosen; the seal, which knows its connection's, refuses it";
            fails(Ending::Refused, because.to_owned())
        } else {
            fails(
                past.0,
                format!(
                    "it has lost its mark when its route is chosen, and its connection's, too: {}",
                    past.1
                ),
            )
        };
    }
    if !case.surroundings.forwards(family, input) {
        return fails(
            Ending::Hangs,
            format!("the router forwards no {family} packets that come in on `{input}`"),
        );
    }
    if outcome != Outcome::Astray {
        return through.hidden.clone().and_then(|by| {
            fails(
                Ending::Hangs,
                format!("{by}: the appliance dials the server with the router's own address, and the router drops that"),
            )
        });
    }
    let expected = legs::way_words(leg.expected.via, Some(&leg.expected.interface));
    match &leg.answer {
        Ok(Answer::Refused(Errno::EINVAL | Errno::EXDEV)) => fails(
            Ending::Hangs,
            format!(
                "the reverse path filter drops it: {} is not expected to come in on `{input}` (rp_filter)",
                question.from.map_or_else(|| "its source".to_owned(), |from| from.to_string())
            ),
        ),
        Ok(Answer::Route(way)) => {
            let way_there = legs::way_words(way.via, way.interface.as_ref());
            let leaves = way.interface.as_ref() != Some(&leg.expected.interface);
            match (should && leaves, is_sealed) {
                (true, true) => fails(
                    Ending::Refused,
                    format!("it is routed {way_there} instead of {expected}; the seal refuses it"),
                ),
                (true, false) => fails(
                    past.0,
                    format!("it is routed {way_there} instead of {expected}"),
                ),
                (false, _) => fails(
                    Ending::Hangs,
                    format!("it is routed {way_there} instead of {expected}"),
                ),
            }
        }
        Ok(Answer::Refused(_)) if should => fails(
            Ending::Refused,
            "no route leads to the appliance (its link is down, or its route is gone), so it is refused".to_owned(),
        ),
        Ok(Answer::Refused(_)) => fails(
            Ending::Refused,
            format!("the router has no route to {}", question.to),
        ),
        Err(reason) => fails(Ending::Hangs, format!("the kernel could not be asked: {reason}")),
    }
}

fn marks(
    case: &Case<'_>,
    redirect: &Redirect,
    leg: &Leg,
    mark: u32,
    connection_mark: u32,
) -> String {
    let rule = match leg.number {
        Number::ClientToAppliance => format!("`{}: from clients` takes it", redirect.name),
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
