//! Routes, routing rules, links, addresses and neighbours: read, and, for the first two,
//! changed.
//!
//! The kernel deletes the first rule or route that has what it is told and does not ask
//! whether it has more: told of `priority 103 fwmark 0x1/0xff lookup 103`, it takes
//! another's rule that also says `iif eth0`, if that stands first. So before anything
//! is deleted or replaced, we look which one would be hit, and do nothing unless it is the one
//! that is meant. (`rule_find` in `net/core/fib_rules.c`, `fib_table_delete` in
//! `net/ipv4/fib_trie.c`, `ip6_route_del` in `net/ipv6/route.c`; tried on 6.18.)

mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc;

use self::message::{Names, RouteFilter};
use super::netlink::{Netlink, NetlinkError, Payload, Protocol};
use super::{FailureKind, KernelError};
use crate::net::{Family, IfName, MacAddr, Route, RouteKind, RouteProtocol, RoutingRule, TableId};
use crate::observation::{Address, Link, Sysctl};

const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const REPLACE: u16 = 0x100;

/// Another host on a link, as the kernel's neighbour table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address, once known.
    pub mac: Option<MacAddr>,
    /// How sure the kernel is of it.
    pub state: NeighbourState,
}

/// `NUD_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourState {
    /// Asked for; no answer yet.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Known, not confirmed lately.
    Stale,
    /// Known, about to be asked again.
    Delay,
    /// Known, being asked again.
    Probe,
    /// It does not answer.
    Failed,
    /// Needs no resolution.
    NoArp,
    /// Set by hand.
    Permanent,
    /// None of these.
    Other(u16),
}

impl NeighbourState {
    fn from_number(number: u16) -> Self {
        match number {
            libc::NUD_INCOMPLETE => Self::Incomplete,
            libc::NUD_REACHABLE => Self::Reachable,
            libc::NUD_STALE => Self::Stale,
            libc::NUD_DELAY => Self::Delay,
            libc::NUD_PROBE => Self::Probe,
            libc::NUD_FAILED => Self::Failed,
            libc::NUD_NOARP => Self::NoArp,
            libc::NUD_PERMANENT => Self::Permanent,
            other => Self::Other(other),
        }
    }

    /// Whether packets can be sent to it now (`NUD_VALID`).
    #[must_use]
    pub fn is_usable(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Failed | Self::Other(_))
    }
}

/// A packet whose way is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its destination.
    pub to: IpAddr,
    /// Its source, of the same family.
    pub from: Option<IpAddr>,
    /// Where it comes in. None: it is the router's own.
    pub input: Option<IfName>,
    /// The mark it bears.
    pub mark: u32,
    /// TCP, with these source and destination ports, for rules that select by them.
    pub tcp_ports: Option<(u16, u16)>,
}

impl Question {
    /// A packet that is forwarded.
    #[must_use]
    pub fn forwarded(from: IpAddr, to: IpAddr, input: &IfName) -> Self {
        Self {
            to,
            from: Some(from),
            input: Some(input.clone()),
            mark: 0,
            tcp_ports: None,
        }
    }

    /// With this mark.
    #[must_use]
    pub fn marked(mut self, mark: u32) -> Self {
        self.mark = mark;
        self
    }
}

/// What the kernel would do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It follows a route.
    Route(Way),
    /// It is not forwarded. IPv4, with an input interface: `EHOSTUNREACH` if no route is found or
    /// the interface does not forward; `ENETUNREACH`, `EACCES` by an unreachable or prohibit
    /// route; `EXDEV` by reverse path filtering before 6.13, `EINVAL` since (that,
    /// and any other reason to drop it: a martian, a blackhole).
    Refused(Errno),
}

/// Where a packet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// What its route does: `Unicast` sends it on. `Other(2)` is local: the router itself.
    pub kind: RouteKind,
    /// The next hop; none if the destination is on-link.
    pub via: Option<IpAddr>,
    /// The interface it leaves by.
    pub interface: Option<IfName>,
    /// The table that the route is in.
    pub table: TableId,
}

/// Settings of a link, with what they hold.
pub type Settings = Vec<(Sysctl, String)>;

/// A connection to the kernel's routing.
#[derive(Debug)]
pub struct Routing {
    netlink: Netlink,
}

impl Routing {
    /// Connects; needs no privilege.
    ///
    /// # Errors
    /// If the kernel gives no socket.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self {
            netlink: Netlink::open(Protocol::Route)
                .map_err(|error| error.during("cannot talk to the kernel about routes"))?,
        })
    }

    /// All links.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        self.netlink
            .dump(message::RTM_GETLINK, &message::all_links(), |found| {
                message::parse_link(found.payload)
            })
            .map_err(|error| error.during("cannot read the interfaces"))
    }

    /// All links, each with its settings: one question instead of five files for each.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn links_and_settings(&mut self) -> Result<Vec<(Link, Settings)>, KernelError> {
        self.netlink
            .dump(message::RTM_GETLINK, &message::all_links(), |found| {
                let Some(link) = message::parse_link(found.payload)? else {
                    return Ok(None);
                };
                let settings = message::parse_settings(found.payload)?
                    .into_iter()
                    .map(|(family, setting, value)| {
                        let sysctl = Sysctl {
                            family,
                            interface: Some(link.name.clone()),
                            setting,
                        };
                        (sysctl, value)
                    })
                    .collect();
                Ok(Some((link, settings)))
            })
            .map_err(|error| error.during("cannot read the interfaces"))
    }

    /// All addresses.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        self.netlink
            .dump(message::RTM_GETADDR, &message::all_addresses(), |found| {
                message::parse_address(found.payload)
            })
            .map_err(|error| error.during("cannot read the addresses"))
    }

    /// The neighbours at `link`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn neighbours(&mut self, link: &Link) -> Result<Vec<Neighbour>, KernelError> {
        let request = message::neighbours_at(link.index);
        self.netlink
            .dump(message::RTM_GETNEIGH, &request, |found| {
                message::parse_neighbour(found.payload, link.index)
            })
            .map_err(|error| error.during(format!("cannot read the neighbours at `{}`", link.name)))
    }

    /// All rules, IPv4's first, each family's as the kernel asks them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn rules(&mut self) -> Result<Vec<RoutingRule>, KernelError> {
        let mut rules = self.rules_of(Family::V4)?;
        rules.extend(self.rules_of(Family::V6)?);
        Ok(rules)
    }

    fn rules_of(&mut self, family: Family) -> Result<Vec<RoutingRule>, KernelError> {
        let dumped =
            self.netlink
                .dump(message::RTM_GETRULE, &message::all_rules(family), |found| {
                    message::parse_rule(found.payload)
                });
        let rules = empty_if_absent(dumped, family)
            .map_err(|error| error.during(format!("cannot read the {family} routing rules")))?;
        // A kernel without the family answers with all that it has.
        Ok((rules.into_iter())
            .filter(|rule| rule.family == family)
            .collect())
    }

    /// All routes that bear our protocol, and all in `tables`, each table's as the kernel
    /// has them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn routes(
        &mut self,
        links: &[Link],
        tables: &BTreeSet<TableId>,
    ) -> Result<Vec<Route>, KernelError> {
        let names: Names = (links.iter())
            .map(|link| (link.index, link.name.clone()))
            .collect();
        let mut routes = Vec::new();
        for family in Family::ALL {
            if self.netlink.is_strict() {
                // On a router with all the internet's routes, these are a handful of a
                // million; the kernel sorts them out.
                let ours = RouteFilter::Protocol(RouteProtocol::OURS);
                let by_protocol =
                    self.dump_routes(family, ours, &names, |route| !tables.contains(&route.table))?;
                routes.extend(by_protocol);
                for table in tables {
                    routes.extend(self.table(family, *table, &names)?);
                }
            } else {
                let wanted = |route: &Route| tables.contains(&route.table);
                routes.extend(
                    self.dump_routes(family, RouteFilter::None, &names, |route| {
                        route.protocol == RouteProtocol::OURS || wanted(route)
                    })?,
                );
            }
        }
        Ok(routes)
    }

    fn table(
        &mut self,
        family: Family,
        table: TableId,
        names: &Names,
    ) -> Result<Vec<Route>, KernelError> {
        self.dump_routes(family, RouteFilter::Table(table), names, |route| {
            route.table == table
        })
    }

    fn dump_routes(
        &mut self,
        family: Family,
        filter: RouteFilter,
        names: &Names,
        wanted: impl Fn(&Route) -> bool,
    ) -> Result<Vec<Route>, KernelError> {
        let request = message::some_routes(family, filter);
        let dumped = self.netlink.dump(message::RTM_GETROUTE, &request, |found| {
            let route = message::parse_route(found.payload, names)?;
            // What a filter let through is looked at all the same: old kernels have none.
            Ok(route.filter(|route| {
                let matches = match filter {
                    RouteFilter::Table(table) => route.table == table,
                    RouteFilter::Protocol(protocol) => route.protocol == protocol,
                    RouteFilter::None => true,
                };
                matches && route.family == family && wanted(route)
            }))
        });
        empty_if_absent(dumped, family)
            .map_err(|error| error.during(format!("cannot read the {family} routes")))
    }

    /// Asks the kernel where a packet would go.
    ///
    /// # Errors
    /// If the question cannot be asked: the input interface does not exist, the addresses are
    /// of two families, the family is switched off.
    pub fn lookup(&mut self, question: &Question) -> Result<Answer, KernelError> {
        let action = || format!("cannot look up the way to {}", question.to);
        if (question.from).is_some_and(|from| Family::of(from) != Family::of(question.to)) {
            return Err(KernelError::because(
                action(),
                "its source is of the other address family",
            ));
        }
        let input = match &question.input {
            Some(name) => Some(self.index(name).map_err(|error| error.during(action()))?),
            None => None,
        };
        let request = message::build_question(question, input);
        let answered = self
            .netlink
            .ask(message::RTM_GETROUTE, 0, &request, |found| {
                message::parse_answer(found.payload).map(Some)
            });
        let (kind, via, output, table) = match answered {
            Ok(answers) => answers.into_iter().next().ok_or_else(|| {
                KernelError::because(action(), "the kernel gave no route, and no error either")
            })?,
            Err(NetlinkError::Refused(refusal))
                if is_verdict(refusal.errno) && refusal.text.is_none() =>
            {
                return Ok(Answer::Refused(refusal.errno));
            }
            Err(error) => return Err(error.during(action())),
        };
        let interface = match output {
            Some(index) => self.name(index).map_err(|error| error.during(action()))?,
            None => None,
        };
        Ok(Answer::Route(Way {
            kind,
            via,
            interface,
            table,
        }))
    }

    fn index(&mut self, name: &IfName) -> Result<u32, NetlinkError> {
        let request = message::link_by_name(name);
        let found = self.link(&request)?;
        Ok(found.map_or(0, |link| link.index))
    }

    fn name(&mut self, index: u32) -> Result<Option<IfName>, NetlinkError> {
        let request = message::link_by_index(index);
        Ok(self.link(&request)?.map(|link| link.name))
    }

    fn link(&mut self, request: &Payload) -> Result<Option<Link>, NetlinkError> {
        let links = self
            .netlink
            .ask(message::RTM_GETLINK, 0, request, |found| {
                message::parse_link(found.payload)
            })?;
        Ok(links.into_iter().next())
    }

    /// Adds, replaces or deletes a route: from what is there to what is to be there.
    ///
    /// # Errors
    /// [`FailureKind::Exists`] if its place is taken, [`FailureKind::Gone`] if what is to go
    /// is not there, or the kernel's refusal. Nothing has then changed.
    pub fn change_route(
        &mut self,
        from: Option<&Route>,
        to: Option<&Route>,
    ) -> Result<(), KernelError> {
        match (from, to) {
            (None, None) => Ok(()),
            (None, Some(route)) => {
                self.send_route(route, message::RTM_NEWROUTE, CREATE | EXCLUSIVE, "add")
            }
            (Some(route), None) => {
                let action = format!("cannot remove {}", words_route(route));
                let there = self.neighbourhood(route)?;
                only_ours(route, &there, route_would_hit, words_route)
                    .map_err(|trouble| trouble.during(action))?;
                self.send_route(route, message::RTM_DELROUTE, 0, "remove")
            }
            (Some(old), Some(new)) => {
                let action = || format!("cannot replace {}", words_route(old));
                if !is_same_place(old, new) {
                    let reason = format!("{} stands in another place", words_route(new));
                    return Err(KernelError::because(action(), reason));
                }
                let there = self.neighbourhood(old)?;
                let would_hit = |_: &Route, found: &Route| is_same_place(old, found);
                only_ours(old, &there, would_hit, words_route)
                    .map_err(|trouble| trouble.during(action()))?;
                self.send_route(new, message::RTM_NEWROUTE, CREATE | REPLACE, "set")
            }
        }
    }

    /// The table that a route is in.
    fn neighbourhood(&mut self, route: &Route) -> Result<Vec<Route>, KernelError> {
        let names = (self.links()?.into_iter())
            .map(|link| (link.index, link.name))
            .collect();
        self.table(route.family, route.table, &names)
    }

    fn send_route(
        &mut self,
        route: &Route,
        kind: u16,
        flags: u16,
        verb: &str,
    ) -> Result<(), KernelError> {
        let failed = |error: NetlinkError| {
            let errno = error.errno();
            let mut error = error.during(format!("cannot {verb} {}", words_route(route)));
            error.kind = failure(error.kind, errno);
            if error.hint.is_none() {
                error.hint = hint_route(route, errno);
            }
            error
        };
        let output = match &route.interface {
            Some(name) => Some(self.index(name).map_err(failed)?),
            None => None,
        };
        let request = message::build_route(route, output);
        self.netlink.change(kind, flags, &request).map_err(failed)
    }

    /// Adds or deletes a rule: from what is there to what is to be there. The kernel cannot
    /// change one.
    ///
    /// # Errors
    /// [`FailureKind::Exists`] if there is one just like it, [`FailureKind::Gone`] if
    /// what is to go is not there, or the kernel's refusal. Nothing has then changed.
    pub fn change_rule(
        &mut self,
        from: Option<&RoutingRule>,
        to: Option<&RoutingRule>,
    ) -> Result<(), KernelError> {
        let (rule, kind, flags, verb) = match (from, to) {
            (None, None) => return Ok(()),
            // Without "exclusive", IPv4 and IPv6 alike take a second one just like the first.
            (None, Some(rule)) => (rule, message::RTM_NEWRULE, CREATE | EXCLUSIVE, "add"),
            (Some(rule), None) => {
                let there = self.rules_of(rule.family)?;
                only_ours(rule, &there, rule_would_hit, words_rule).map_err(|trouble| {
                    trouble.during(format!("cannot remove {}", words_rule(rule)))
                })?;
                (rule, message::RTM_DELRULE, 0, "remove")
            }
            (Some(rule), Some(_)) => {
                return Err(KernelError::because(
                    format!("cannot replace {}", words_rule(rule)),
                    "rules can only be added and removed",
                ));
            }
        };
        self.netlink
            .change(kind, flags, &message::build_rule(rule))
            .map_err(|error| {
                let errno = error.errno();
                let mut error = error.during(format!("cannot {verb} {}", words_rule(rule)));
                error.kind = failure(error.kind, errno);
                error
            })
    }
}

/// A table that does not exist (`ENOENT`) has no routes; a family that the kernel
/// was built or started without (`ipv6.disable=1`) has no rules and no routes.
fn empty_if_absent<T>(
    dumped: Result<Vec<T>, NetlinkError>,
    family: Family,
) -> Result<Vec<T>, NetlinkError> {
    match dumped {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
        Err(error)
            if family == Family::V6
                && matches!(
                    error.errno(),
                    Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT)
                ) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Whether an errno is the routing's answer, and not a fault of the question.
fn is_verdict(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EXDEV
            | Errno::EINVAL
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EACCES
            | Errno::EAGAIN
    )
}

fn failure(otherwise: FailureKind, errno: Option<Errno>) -> FailureKind {
    match errno {
        Some(Errno::EEXIST) => FailureKind::Exists,
        // Rules and routes say ENOENT and ESRCH.
        Some(Errno::ENOENT | Errno::ESRCH) => FailureKind::Gone,
        _ => otherwise,
    }
}

fn hint_route(route: &Route, errno: Option<Errno>) -> Option<String> {
    let interface = route.interface.as_ref()?;
    match errno? {
        Errno::ENODEV => Some(format!("there is no interface `{interface}`")),
        // A link that is down has no networks: the kernel then calls the gateway invalid.
        Errno::ENETDOWN | Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL => {
            route.via.map(|via| {
                format!(
                    "`{interface}` must be up and {via} in one of its networks: see \
                     `ip address show dev {interface}`"
                )
            })
        }
        _ => None,
    }
}

/// Why the kernel is not told to delete or replace something.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Obstacle {
    /// It is not there.
    Gone,
    /// The kernel would take this one instead.
    Shadowed(String),
}

impl Obstacle {
    fn during(self, action: String) -> KernelError {
        match self {
            Self::Gone => KernelError {
                kind: FailureKind::Gone,
                ..KernelError::because(action, "it is not there")
            },
            Self::Shadowed(other) => KernelError::because(
                action,
                format!("the kernel would take {other} instead, which stands before it"),
            )
            .hint("remove that one first, if it may go"),
        }
    }
}

/// Whether the kernel, told of `wanted`, would hit exactly that among what is `there`, in the
/// kernel's order.
fn only_ours<T: PartialEq>(
    wanted: &T,
    there: &[T],
    would_hit: impl Fn(&T, &T) -> bool,
    words: impl Fn(&T) -> String,
) -> Result<(), Obstacle> {
    if !there.contains(wanted) {
        return Err(Obstacle::Gone);
    }
    match there.iter().find(|found| would_hit(wanted, found)) {
        Some(first) if first != wanted => Err(Obstacle::Shadowed(words(first))),
        _ => Ok(()),
    }
}

/// Whether the kernel, told to delete `wanted`, would take `found`: it has all that `wanted` has.
/// Where kernels differ this says yes: refusing is safe, taking another's is not.
fn rule_would_hit(wanted: &RoutingRule, found: &RoutingRule) -> bool {
    fn given<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
        wanted.is_none() || wanted == found
    }
    let (want, have) = (&wanted.selectors, &found.selectors);
    wanted.family == found.family
        && wanted.priority == found.priority
        && wanted.action == found.action
        && wanted.protocol == found.protocol
        && wanted.mark.is_none_or(|mark| {
            (found.mark).is_some_and(|other| {
                (mark.value == 0 || mark.value == other.value) && mark.mask == other.mask
            })
        })
        && given(want.source.as_ref(), have.source.as_ref())
        && given(want.destination.as_ref(), have.destination.as_ref())
        && given(want.input.as_ref(), have.input.as_ref())
        && given(want.output.as_ref(), have.output.as_ref())
        && (want.tos == 0 || want.tos == have.tos)
        && given(want.ip_protocol.as_ref(), have.ip_protocol.as_ref())
        && given(want.source_port.as_ref(), have.source_port.as_ref())
        && given(
            want.destination_port.as_ref(),
            have.destination_port.as_ref(),
        )
        && given(
            want.suppress_prefix_length.as_ref(),
            have.suppress_prefix_length.as_ref(),
        )
}

/// Whether the kernel, told to delete `wanted`, would take `found`; as with rules.
fn route_would_hit(wanted: &Route, found: &Route) -> bool {
    wanted.family == found.family
        && wanted.table == found.table
        && wanted.destination == found.destination
        && message::type_of_service(wanted) == message::type_of_service(found)
        // IPv6 does not look at the kind.
        && (wanted.family == Family::V6 || wanted.kind == found.kind)
        && wanted.protocol == found.protocol
        && (wanted.metric == 0 || wanted.metric == found.metric)
        && (wanted.via.is_none() || wanted.via == found.via)
        && (wanted.interface.is_none() || wanted.interface == found.interface)
}

/// Whether two routes cannot both be there, unless appended on purpose.
fn is_same_place(one: &Route, other: &Route) -> bool {
    let place = |route: &Route| {
        let tos = message::type_of_service(route);
        (
            route.family,
            route.table,
            route.destination,
            tos,
            route.metric,
        )
    };
    place(one) == place(other)
}

fn words_route(route: &Route) -> String {
    format!("the {} route `{route}`", route.family)
}

fn words_rule(rule: &RoutingRule) -> String {
    format!("the {} routing rule `{rule}`", rule.family)
}
