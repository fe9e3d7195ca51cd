//! Takes a packet through the packet rules of others, and through ours at their place.

use std::net::{IpAddr, SocketAddr};

use super::{
    Chain, Effect, Hook, NewAddress, NewDestination, Rule, Ruleset, State, Step, Test, Which,
};
use crate::net::{Family, IfName, MacAddr, Networks};
use crate::rules::Packet;

/// A packet on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traveller {
    /// Where it came in.
    pub input: Option<IfName>,
    /// Where it goes out, once routed.
    pub output: Option<IfName>,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Whether that is the router itself.
    pub to_router: bool,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Its TCP ports, source and destination.
    pub ports: Option<(u16, u16)>,
    /// Its ICMP type.
    pub icmp_type: Option<u8>,
    /// Its TCP flags, as in [`Packet::SYN`].
    pub flags: u8,
    /// What connection tracking says of it.
    pub state: State,
    /// Its Ethernet source.
    pub mac: Option<MacAddr>,
    /// The interface by which its source is reached, if it is.
    pub way_back: Option<IfName>,
    /// Its mark.
    pub mark: u32,
    /// Its connection's mark.
    pub connection_mark: u32,
}

impl Traveller {
    fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// The first packet of a session that somebody opens.
    #[must_use]
    pub fn opening(input: &IfName, from: SocketAddr, to: SocketAddr) -> Self {
        Self {
            input: Some(input.clone()),
            output: None,
            source: from.ip(),
            destination: to.ip(),
            to_router: false,
            protocol: 6,
            ports: Some((from.port(), to.port())),
            icmp_type: None,
            flags: Packet::SYN,
            state: State::New,
            mac: None,
            way_back: Some(input.clone()),
            mark: 0,
            connection_mark: 0,
        }
    }

    /// Gives it another destination.
    fn send_to(&mut self, to: &NewDestination) -> Whither {
        if let (Some(port), Some((_, own))) = (to.port, &mut self.ports) {
            *own = port;
        }
        let port = self.ports.map_or(0, |(_, port)| port);
        let is_one_of = matches!(&to.address, NewAddress::Among(networks) if !is_single(networks));
        let address = match &to.address {
            NewAddress::Same => Some(self.destination),
            NewAddress::Among(networks) => networks.sample(self.family()),
            NewAddress::Router => {
                self.to_router = true;
                return Whither::Router;
            }
            NewAddress::Unknown => None,
        };
        let Some(address) = address else {
            return Whither::Unknown;
        };
        self.to_router &= address == self.destination;
        self.destination = address;
        let to = SocketAddr::new(address, port);
        if is_one_of {
            Whither::OneOf(to)
        } else {
            Whither::To(to)
        }
    }
}

fn is_single(networks: &Networks) -> bool {
    match (networks.v4.as_slice(), networks.v6.as_slice()) {
        ([only], []) => only.first == only.last,
        ([], [only]) => only.first == only.last,
        _ => false,
    }
}

/// A rule's place; without a rule: the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site<'r> {
    /// The base chain through which it was reached.
    pub base: &'r Chain,
    /// The chain.
    pub chain: &'r Chain,
    /// The rule.
    pub rule: Option<&'r Rule>,
}

/// What happened to a packet, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'r> {
    /// Where.
    pub site: Site<'r>,
    /// What.
    pub what: What,
}

/// What may happen to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A mark was changed.
    Marked {
        /// Which.
        which: Which,
        /// What it was.
        from: u32,
        /// What it is.
        to: u32,
        /// Whether our own rules had been passed.
        after_ours: bool,
    },
    /// It is not tracked from here on.
    Untracked,
    /// Its connection goes by a flowtable from here on.
    Offloaded,
    /// Its source is rewritten.
    SourceNat,
    /// Its destination is rewritten.
    DestinationNat(Whither),
    /// It is gone.
    Dropped,
    /// It met a rule of which the outcome cannot be told, and that may accept it.
    Doubt,
}

/// Where a packet's new destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whither {
    /// The router itself.
    Router,
    /// Here.
    To(SocketAddr),
    /// One of several, such as this one.
    OneOf(SocketAddr),
    /// That cannot be told.
    Unknown,
}

/// What our own rules do, where they stand.
pub trait Ours {
    /// At `hook`; false: dropped.
    fn act(&mut self, hook: Hook, traveller: &mut Traveller) -> bool;
}

/// How a chain was left.
enum End {
    /// It came to its end, or returned.
    Ran,
    /// The base chain is done with it.
    Accepted,
    /// It is gone.
    Dropped,
}

/// Takes `traveller` through all chains at `hook`; whether it came out again.
pub fn pass<'r>(
    ruleset: &'r Ruleset,
    hook: Hook,
    traveller: &mut Traveller,
    ours: &mut dyn Ours,
    events: &mut Vec<Event<'r>>,
) -> bool {
    let mut bases: Vec<(&Chain, super::Base)> = ruleset
        .chains
        .iter()
        .filter_map(|chain| Some((chain, chain.base?)))
        .filter(|(chain, base)| base.hook == hook && chain.sees(traveller.family()))
        .collect();
    bases.sort_by_key(|(_, base)| base.place());
    let mut walk = Walk {
        ruleset,
        hook,
        ours,
        events,
        // Ours stand in prerouting, which comes before all others.
        passed_ours: hook != Hook::Prerouting,
        is_translated: false,
    };
    for (chain, base) in bases {
        // Once its addresses are settled, nobody else is asked.
        if base.nat && (traveller.state != State::New || walk.is_translated) {
            continue;
        }
        let end = walk.chain(chain, chain, traveller, 0);
        let dropped = match end {
            End::Dropped => return false,
            End::Accepted => false,
            End::Ran => base.drops,
        };
        if dropped {
            walk.happened(chain, chain, None, What::Dropped);
            return false;
        }
    }
    true
}

/// How deep chains may jump (`NFT_JUMP_STACK_SIZE`).
pub const DEPTH: usize = 16;

struct Walk<'r, 'w> {
    ruleset: &'r Ruleset,
    hook: Hook,
    ours: &'w mut dyn Ours,
    events: &'w mut Vec<Event<'r>>,
    passed_ours: bool,
    is_translated: bool,
}

impl<'r> Walk<'r, '_> {
    fn happened(&mut self, base: &'r Chain, chain: &'r Chain, rule: Option<&'r Rule>, what: What) {
        self.events.push(Event {
            site: Site { base, chain, rule },
            what,
        });
    }

    fn chain(
        &mut self,
        base: &'r Chain,
        chain: &'r Chain,
        traveller: &mut Traveller,
        depth: usize,
    ) -> End {
        if depth > DEPTH {
            return End::Ran;
        }
        'rules: for rule in &chain.rules {
            let mut certain = true;
            for step in &rule.steps {
                match step {
                    Step::If(test) => match holds(test, traveller) {
                        Some(true) => {}
                        Some(false) => continue 'rules,
                        None => certain = false,
                    },
                    Step::Unless(test) => match holds(test, traveller) {
                        Some(false) => {}
                        Some(true) => continue 'rules,
                        None => certain = false,
                    },
                    Step::Do(effect) if !certain => {
                        if may_accept(effect) {
                            self.happened(base, chain, Some(rule), What::Doubt);
                        }
                        continue 'rules;
                    }
                    Step::Do(effect) => {
                        let end = self.effect(effect, (base, chain, rule), traveller, depth);
                        match end {
                            Some(End::Ran) => return End::Ran,
                            Some(end) => return end,
                            None => {}
                        }
                    }
                }
            }
        }
        End::Ran
    }

    /// How the chain ends with this effect, if it does.
    fn effect(
        &mut self,
        effect: &'r Effect,
        (base, chain, rule): (&'r Chain, &'r Chain, &'r Rule),
        traveller: &mut Traveller,
        depth: usize,
    ) -> Option<End> {
        match effect {
            Effect::Mark {
                which,
                keep,
                take,
                constant,
            } => {
                if *which == Which::Connection && traveller.state == State::Untracked {
                    return None;
                }
                let (own, other) = match which {
                    Which::Packet => (traveller.mark, traveller.connection_mark),
                    Which::Connection => (traveller.connection_mark, traveller.mark),
                };
                let to = (own & keep) ^ (other & take) ^ constant;
                match which {
                    Which::Packet => traveller.mark = to,
                    Which::Connection => traveller.connection_mark = to,
                }
                if to != own {
                    let marked = What::Marked {
                        which: *which,
                        from: own,
                        to,
                        after_ours: self.passed_ours,
                    };
                    self.happened(base, chain, Some(rule), marked);
                }
                None
            }
            Effect::Untrack => {
                if traveller.state != State::Untracked {
                    traveller.state = State::Untracked;
                    traveller.connection_mark = 0;
                    self.happened(base, chain, Some(rule), What::Untracked);
                }
                None
            }
            Effect::Offload(_) => {
                self.happened(base, chain, Some(rule), What::Offloaded);
                None
            }
            Effect::SourceNat => {
                self.is_translated = true;
                self.happened(base, chain, Some(rule), What::SourceNat);
                Some(End::Accepted)
            }
            Effect::DestinationNat(to) => {
                self.is_translated = true;
                let to = traveller.send_to(to);
                self.happened(base, chain, Some(rule), What::DestinationNat(to));
                Some(End::Accepted)
            }
            Effect::Accept => Some(End::Accepted),
            Effect::Drop | Effect::Reject => {
                self.happened(base, chain, Some(rule), What::Dropped);
                Some(End::Dropped)
            }
            Effect::Return => Some(End::Ran),
            Effect::Jump(name) | Effect::Goto(name) => {
                let Some(target) = self.ruleset.target(chain, name) else {
                    // An iptables target that is no chain.
                    self.happened(base, chain, Some(rule), What::Doubt);
                    return None;
                };
                let end = self.chain(base, target, traveller, depth + 1);
                match (end, effect) {
                    (End::Ran, Effect::Jump(_)) => None,
                    (end, _) => Some(end),
                }
            }
            Effect::Ours => {
                self.passed_ours = true;
                (!self.ours.act(self.hook, traveller)).then_some(End::Dropped)
            }
            Effect::Unknown => {
                self.happened(base, chain, Some(rule), What::Doubt);
                None
            }
        }
    }
}

fn may_accept(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Accept | Effect::Return | Effect::Jump(_) | Effect::Goto(_) | Effect::Unknown
    )
}

/// Whether a test holds; none: it cannot be told.
fn holds(test: &Test, traveller: &Traveller) -> Option<bool> {
    let meant = |patterns: &[crate::net::IfPattern], name: &Option<IfName>| {
        name.as_ref()
            .is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
    };
    Some(match test {
        Test::Input(patterns) => meant(patterns, &traveller.input),
        Test::Output(patterns) => meant(patterns, &traveller.output),
        Test::Source(networks) => networks.contains(traveller.source),
        Test::Destination(networks) => networks.contains(traveller.destination),
        Test::SourcePort(ports) => traveller
            .ports
            .is_some_and(|(port, _)| ports.contains(port)),
        Test::DestinationPort(ports) => traveller
            .ports
            .is_some_and(|(_, port)| ports.contains(port)),
        Test::Family(family) => *family == traveller.family(),
        Test::Protocol(numbers) => numbers.contains(&traveller.protocol),
        Test::State(states) => states.contains(&traveller.state),
        Test::TcpFlags { mask, set } => traveller.ports.is_some() && traveller.flags & mask == *set,
        Test::PacketMark { mask, values } => values.contains(&(traveller.mark & mask)),
        Test::ConnectionMark { mask, values } => {
            traveller.state != State::Untracked
                && values.contains(&(traveller.connection_mark & mask))
        }
        Test::Mac(macs) => traveller.mac.map(|mac| macs.contains(&mac))?,
        Test::NoReversePath { loose, .. } => {
            traveller.way_back.is_none() || (!loose && traveller.way_back != traveller.input)
        }
        Test::IcmpType(types) => traveller
            .icmp_type
            .is_some_and(|kind| types.contains(&kind)),
        Test::ToRouter => traveller.to_router,
        Test::Never => false,
        Test::Unknown => return None,
    })
}
