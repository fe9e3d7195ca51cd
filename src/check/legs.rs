//! The four ways on which a redirected session crosses the router, as questions to the
//! kernel.
//!
//! A question needs addresses. The server is a neighbour in the redirect's networks if one is
//! known, else the first address of its first network. The client is, on each client interface:
//! a neighbour that is no exception; else the first address of the interface's own network that
//! is neither the router's nor an exception; else one of a network that is routed there; else,
//! where only a default route leads there, 198.51.100.7 or `2001:db8::7` (documentation addresses,
//! RFC 5737 and RFC 3849).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;
use serde::Serialize;

use crate::kernel::route::{Answer, Question, Way};
use crate::net::{Family, IfName, Range, Route, RouteKind, TableId};
use crate::observation::Observed;
use crate::policy::{Appliance, Policy, Redirect};

use super::surroundings::Surroundings;

/// A client's port to ask with: some rules look at source ports.
pub const CLIENT_PORT: u16 = 40_000;

/// The ways, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Number {
    /// Client to appliance.
    ClientToAppliance,
    /// Appliance to server.
    ApplianceToServer,
    /// Server to appliance.
    ServerToAppliance,
    /// Appliance to client.
    ApplianceToClient,
}

impl Number {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ClientToAppliance,
        Self::ApplianceToServer,
        Self::ServerToAppliance,
        Self::ApplianceToClient,
    ];

    /// 1 to 4.
    #[must_use]
    pub fn number(self) -> usize {
        match self {
            Self::ClientToAppliance => 1,
            Self::ApplianceToServer => 2,
            Self::ServerToAppliance => 3,
            Self::ApplianceToClient => 4,
        }
    }

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::ClientToAppliance => "client to appliance",
            Self::ApplianceToServer => "appliance to server",
            Self::ServerToAppliance => "server to appliance",
            Self::ApplianceToClient => "appliance to client",
        }
    }
}

/// A session to ask about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Index of the redirect.
    pub redirect: usize,
    /// Which family.
    pub family: Family,
    /// Where the client comes in.
    pub client_interface: IfName,
    /// The client.
    pub client: IpAddr,
    /// Its port.
    pub client_port: u16,
    /// The server.
    pub server: IpAddr,
    /// Its port.
    pub port: u16,
}

/// A session with all its legs, as the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The session.
    pub session: Session,
    /// By which interface the server is reached, unmarked.
    pub server_interface: Option<IfName>,
    /// By which interface the client is reached, unmarked.
    pub client_interface: Option<IfName>,
    /// Its legs, in order; those that cannot be asked (no way to the server) are missing.
    pub legs: Vec<Leg>,
}

/// One leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// Which.
    pub number: Number,
    /// The packet, with the mark that it should bear when it is routed.
    pub question: Question,
    /// Where it should go.
    pub expected: Expected,
    /// The kernel's answer, or why it could not be asked.
    pub answer: Result<Answer, String>,
    /// Its answer for the same packet without a mark.
    pub unmarked: Result<Answer, String>,
    /// Its answer for the router's own unmarked packets to the same destination: no filter
    /// looks at these.
    pub plain: Result<Answer, String>,
}

/// Where a leg should go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// The next hop; none: any, or none at all.
    pub via: Option<IpAddr>,
    /// The interface.
    pub interface: IfName,
}

impl Expected {
    /// Whether this is where `way` goes.
    #[must_use]
    pub fn is(&self, way: &Way) -> bool {
        way.kind == RouteKind::Unicast
            && way.interface.as_ref() == Some(&self.interface)
            && (self.via.is_none() || way.via == self.via)
    }
}

/// The sessions to ask about: one for each redirect, family, and client interface there is.
#[must_use]
pub fn sessions(policy: &Policy, observed: &Observed, surroundings: &Surroundings) -> Vec<Session> {
    let mut sessions = Vec::new();
    for (index, redirect) in policy.redirects.iter().enumerate() {
        let Some(appliance) = policy.appliance_of(redirect) else {
            continue;
        };
        for family in Family::ALL {
            if appliance.address(family).is_none() {
                continue;
            }
            let Some(server) = server(redirect, appliance, family, observed, surroundings) else {
                continue;
            };
            let Some(port) = redirect.ports.iter().next().map(|range| range.first) else {
                continue;
            };
            for link in &observed.links {
                let is_client = redirect
                    .client_interfaces
                    .iter()
                    .any(|pattern| pattern.matches(&link.name));
                if is_client
                    && let Some(client) = client(
                        redirect,
                        appliance,
                        &link.name,
                        family,
                        observed,
                        surroundings,
                    )
                {
                    sessions.push(Session {
                        redirect: index,
                        family,
                        client_interface: link.name.clone(),
                        client,
                        client_port: CLIENT_PORT,
                        server,
                        port,
                    });
                }
            }
        }
    }
    sessions
}

fn server(
    redirect: &Redirect,
    appliance: &Appliance,
    family: Family,
    observed: &Observed,
    surroundings: &Surroundings,
) -> Option<IpAddr> {
    let fits = |address: &IpAddr| {
        Family::of(*address) == family
            && redirect.servers.contains(*address)
            && !is_own(observed, *address)
            && !appliance.addresses.contains(address)
    };
    let neighbour = surroundings
        .neighbours
        .iter()
        .filter(|(_, found)| found.state.is_usable())
        .map(|(_, found)| found.address)
        .find(fits);
    let listed = || {
        let networks: Vec<IpNet> = match family {
            Family::V4 => redirect
                .servers
                .v4
                .iter()
                .flat_map(Range::<u32>::prefixes)
                .collect(),
            Family::V6 => redirect
                .servers
                .v6
                .iter()
                .flat_map(Range::<u128>::prefixes)
                .collect(),
        };
        networks.into_iter().flat_map(hosts).find(fits)
    };
    neighbour.or_else(listed)
}

/// Whether it is an address of the router itself.
#[must_use]
pub fn is_own(observed: &Observed, address: IpAddr) -> bool {
    observed
        .addresses
        .iter()
        .any(|found| found.network.addr() == address)
}

fn client(
    redirect: &Redirect,
    appliance: &Appliance,
    interface: &IfName,
    family: Family,
    observed: &Observed,
    surroundings: &Surroundings,
) -> Option<IpAddr> {
    let link = observed.link(interface)?;
    let fits = |address: &IpAddr| {
        Family::of(*address) == family
            && !is_own(observed, *address)
            && !is_link_local(*address)
            && !address.is_multicast()
            && !redirect.except_clients.contains(*address)
            && !redirect.servers.contains(*address)
            && !appliance.addresses.contains(address)
    };
    let neighbour = surroundings
        .neighbours
        .iter()
        .filter(|(at, found)| at == interface && found.state.is_usable())
        .map(|(_, found)| found.address)
        .find(fits);
    let on_link = || {
        observed
            .addresses
            .iter()
            .filter(|found| found.link == link.index)
            .flat_map(|found| found.peer.into_iter().chain(hosts(found.network)))
            .find(|address| fits(address))
    };
    let routed = || {
        surroundings
            .routes
            .iter()
            .filter(|route| is_towards(route, interface, family))
            .filter_map(|route| route.destination)
            .flat_map(hosts)
            .find(|address| fits(address))
    };
    let by_default = || {
        surroundings
            .routes
            .iter()
            .any(|route| is_towards(route, interface, family) && route.destination.is_none())
            .then_some(match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
                Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
            })
    };
    neighbour
        .or_else(on_link)
        .or_else(routed)
        .or_else(by_default)
}

fn is_towards(route: &Route, interface: &IfName, family: Family) -> bool {
    route.family == family
        && route.table == TableId::MAIN
        && route.kind == RouteKind::Unicast
        && route.interface.as_ref() == Some(interface)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The first few addresses of a network: more than there can be exceptions in a row is not
/// needed, and a network may be large.
fn hosts(network: IpNet) -> impl Iterator<Item = IpAddr> {
    // A longer network's first address is, in IPv6, any router's (RFC 4291, 2.6.1).
    let anycast = match network {
        IpNet::V6(network) if network.prefix_len() < 127 => Some(IpAddr::V6(network.network())),
        _ => None,
    };
    network
        .hosts()
        .filter(move |address| Some(*address) != anycast)
        .take(1024)
}

/// Asks the kernel about all legs of all `sessions`.
pub fn ask(
    policy: &Policy,
    sessions: Vec<Session>,
    lookup: &mut dyn FnMut(&Question) -> Result<Answer, String>,
) -> Vec<Asked> {
    sessions
        .into_iter()
        .filter_map(|session| ask_one(policy, session, lookup))
        .collect()
}

fn ask_one(
    policy: &Policy,
    session: Session,
    lookup: &mut dyn FnMut(&Question) -> Result<Answer, String>,
) -> Option<Asked> {
    let redirect = policy.redirects.get(session.redirect)?;
    let appliance = policy.appliance_of(redirect)?;
    let address = appliance.address(session.family)?;
    let plain = |to: IpAddr| Question {
        to,
        from: None,
        input: None,
        mark: 0,
        tcp_ports: None,
    };
    let output = |answer: &Result<Answer, String>| match answer {
        Ok(Answer::Route(way)) if way.kind == RouteKind::Unicast => way.interface.clone(),
        _ => None,
    };
    let server_interface = output(&lookup(&plain(session.server)));
    let client_interface = output(&lookup(&plain(session.client)));
    let mut legs = Vec::with_capacity(4);
    for number in Number::ALL {
        let (from, to) = addresses(number, &session, redirect.snat, address);
        let input = match number {
            Number::ClientToAppliance => Some(&session.client_interface),
            Number::ServerToAppliance => server_interface.as_ref(),
            _ => Some(&appliance.interface),
        };
        let expected = match number {
            Number::ClientToAppliance => Some((Some(address), &appliance.interface)),
            Number::ServerToAppliance if redirect.snat => {
                Some((Some(address), &appliance.interface))
            }
            Number::ServerToAppliance => Some((None, &appliance.interface)),
            Number::ApplianceToServer => {
                let exact = redirect.server_interfaces.iter().find_map(|pattern| {
                    server_interface
                        .as_ref()
                        .filter(|name| pattern.matches(name))
                });
                exact.or(server_interface.as_ref()).map(|name| (None, name))
            }
            Number::ApplianceToClient => Some((None, &session.client_interface)),
        };
        let (Some(input), Some((via, interface))) = (input, expected) else {
            continue;
        };
        let expected = Expected {
            via,
            interface: interface.clone(),
        };
        let mut question = Question::forwarded(from, to, input);
        question.tcp_ports = Some(ports(number, &session));
        let unmarked = lookup(&question);
        if is_marked(number, redirect.snat) {
            question.mark = appliance.mark.value;
        }
        let answer = if question.mark == 0 {
            unmarked.clone()
        } else {
            lookup(&question)
        };
        legs.push(Leg {
            number,
            plain: lookup(&plain(to)),
            question,
            expected,
            answer,
            unmarked,
        });
    }
    Some(Asked {
        session,
        server_interface,
        client_interface,
        legs,
    })
}

/// Whether packets of this leg bear the appliance's mark when they are routed.
#[must_use]
pub fn is_marked(number: Number, snat: bool) -> bool {
    match number {
        Number::ClientToAppliance => true,
        Number::ServerToAppliance => snat,
        Number::ApplianceToServer | Number::ApplianceToClient => false,
    }
}

/// Source and destination of a leg's packets.
#[must_use]
pub fn addresses(
    number: Number,
    session: &Session,
    snat: bool,
    appliance: IpAddr,
) -> (IpAddr, IpAddr) {
    let dials_as = if snat { session.client } else { appliance };
    match number {
        Number::ClientToAppliance => (session.client, session.server),
        Number::ApplianceToServer => (dials_as, session.server),
        Number::ServerToAppliance => (session.server, dials_as),
        Number::ApplianceToClient => (session.server, session.client),
    }
}

/// Source and destination ports of a leg's packets.
#[must_use]
pub fn ports(number: Number, session: &Session) -> (u16, u16) {
    match number {
        Number::ClientToAppliance | Number::ApplianceToServer => {
            (session.client_port, session.port)
        }
        Number::ServerToAppliance | Number::ApplianceToClient => {
            (session.port, session.client_port)
        }
    }
}

/// An answer in few words, as `ip route get` has them.
#[must_use]
pub fn words(answer: &Result<Answer, String>) -> String {
    match answer {
        Ok(Answer::Route(way)) => way_words(way.via, way.interface.as_ref()),
        // `fib_validate_source` in the kernel's `net/ipv4/fib_frontend.c`.
        Ok(Answer::Refused(Errno::EINVAL | Errno::EXDEV)) => {
            "dropped, its source is not expected there (rp_filter)".to_owned()
        }
        Ok(Answer::Refused(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => "no route".to_owned(),
        Ok(Answer::Refused(errno)) => format!("refused: {}", errno.desc().to_lowercase()),
        Err(reason) => reason.clone(),
    }
}

/// `via 10.30.0.2 dev sps0`.
#[must_use]
pub fn way_words(via: Option<IpAddr>, interface: Option<&IfName>) -> String {
    let mut words = Vec::new();
    if let Some(via) = via {
        words.push(format!("via {via}"));
    }
    match interface {
        Some(interface) => words.push(format!("dev {interface}")),
        None => words.push("nowhere".to_owned()),
    }
    words.join(" ")
}
