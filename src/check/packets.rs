//! The packet rules of others: each leg is taken through them, with ours at their place.

use super::foreign::walk::{self, Event, Ours, Site, Traveller, What};
use super::foreign::{
    Base, Chain, Effect, Hook, OUR_CHAINS, Rule, Ruleset, State, Step, System, Test, Which,
};
use super::legs::{Asked, Number, Session, addresses, is_marked, ports};
use super::routing::shared_bits;
use super::{Backend, Case, Explained, Finding, Severity, Subject, families};
use crate::net::{Family, IfName, Ports};
use crate::policy::{Appliance, Policy, Redirect};
use crate::rules::{Connection, Model, Packet};

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    both_iptables(case, findings);
    same_marks(case, findings);
    let rules = with_ours(case);
    for (index, asked) in case.surroundings.asked.iter().enumerate() {
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
            State::Other => Connection::Invalid,
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

/// What keeps a packet of this leg from its way.
fn leg(
    case: &Case<'_>,
    rules: &Ruleset,
    asked: &Asked,
    number: Number,
    state: State,
) -> Vec<Finding> {
    let made = case
        .policy
        .redirects
        .get(asked.session.redirect)
        .and_then(|redirect| {
            let server_interface = asked.server_interface.as_ref();
            let traveller =
                traveller(case.policy, &asked.session, server_interface, number, state)?;
            Some((redirect, case.policy.appliance_of(redirect)?, traveller))
        });
    let Some((redirect, appliance, mut traveller)) = made else {
        return Vec::new();
    };
    let way = Way {
        case,
        redirect,
        appliance,
        asked,
        number,
        input: traveller.input.clone(),
        output: output(number, asked, appliance),
    };
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
    if !ours.acted && case.in_force && case.backend == Backend::Iptables {
        findings.extend(way.passed_by(rules));
    }
    let should = is_marked(number, redirect.snat);
    let bears = |mark: u32| appliance.mark.is_borne_by(mark);
    let marks = Borne {
        packet: bears(traveller.mark),
        connection: bears(traveller.connection_mark),
    };
    if should != marks.packet {
        findings.extend(way.overwritten(&events, Which::Packet, marks));
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

/// Which of a packet's marks are ours when its route is chosen.
#[derive(Debug, Clone, Copy)]
struct Borne {
    packet: bool,
    connection: bool,
}

fn output(number: Number, asked: &Asked, appliance: &Appliance) -> Option<IfName> {
    match number {
        Number::ClientToAppliance | Number::ServerToAppliance => Some(appliance.interface.clone()),
        Number::ApplianceToServer => asked.server_interface.clone(),
        Number::ApplianceToClient => Some(asked.session.client_interface.clone()),
    }
}

/// A leg on its way, to tell of.
struct Way<'a> {
    case: &'a Case<'a>,
    redirect: &'a Redirect,
    appliance: &'a Appliance,
    asked: &'a Asked,
    number: Number,
    input: Option<IfName>,
    output: Option<IfName>,
}

impl Way<'_> {
    fn subject(&self) -> Subject {
        Subject::Redirect(self.redirect.name.to_string())
    }

    fn is_sealed(&self) -> bool {
        Model::new(self.case.policy).is_sealed()
    }

    fn leg_words(&self) -> String {
        format!(
            "leg {}, {}, {}",
            self.number.number(),
            self.number.title(),
            self.asked.session.family
        )
    }

    fn dropped(&self, events: &[Event<'_>], hook: Hook) -> Option<Finding> {
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

    fn untracked(&self, events: &[Event<'_>]) -> Option<Finding> {
        let event = events.iter().find(|event| event.what == What::Untracked)?;
        Some(
            Finding::error("notrack", self.subject())
                .found(format!("{}: {}", self.leg_words(), place(event.site, "takes it from connection tracking")))
                .why("without a tracked connection there is no connection mark, and answers do not find the way through the appliance")
                .owner(event.site.chain.owner(event.site.rule))
                .mend(self.before(event.site, &Match::Early { ports: true })),
        )
    }

    fn passed_by(&self, rules: &Ruleset) -> Option<Finding> {
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
                .mend(super::REPAIR),
        )
    }

    fn overwritten(&self, events: &[Event<'_>], mark: Which, left: Borne) -> Option<Finding> {
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

    fn offloaded(&self, events: &[Event<'_>], rules: &Ruleset) -> Option<Finding> {
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

    fn hidden(&self, events: &[Event<'_>]) -> Option<Finding> {
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

    /// A command that accepts this leg's packets just before what happened at `site`.
    fn before(&self, site: Site<'_>, what: &Match) -> String {
        let family = self.asked.session.family;
        match site.chain.system {
            System::Nft => {
                let words = self.nft_match(what);
                let chain = format!(
                    "{} {} {}",
                    site.chain.table_family, site.chain.table, site.chain.name
                );
                match site.rule {
                    Some(rule) => format!(
                        "nft 'insert rule {chain} position {} {words} accept'",
                        rule.handle
                    ),
                    None => format!("nft 'add rule {chain} {words} accept'"),
                }
            }
            System::IptablesNft | System::IptablesLegacy => {
                let words = self.iptables_match(what);
                let program = &site.base.command;
                let table = &site.chain.table;
                let docker = site.base.name == "FORWARD"
                    && table == "filter"
                    && self.case.surroundings.rules.chains.iter().any(|chain| {
                        chain.name == "DOCKER-USER"
                            && chain.sees(family)
                            && chain.system == site.base.system
                    });
                let place = match site.rule {
                    // Docker leaves this chain to its user.
                    _ if docker => "-I DOCKER-USER".to_owned(),
                    Some(rule) => format!("-I {} {}", site.chain.name, rule.handle),
                    None => format!("-A {}", site.chain.name),
                };
                format!("{program} -t {table} {place} {words} -j ACCEPT")
            }
        }
    }

    fn nft_match(&self, what: &Match) -> String {
        let mark = self.appliance.mark;
        let input = |name: &Option<IfName>| {
            name.as_ref()
                .map_or_else(String::new, |name| format!("iifname \"{name}\" "))
        };
        let output = self
            .output
            .as_ref()
            .map_or_else(String::new, |name| format!("oifname \"{name}\" "));
        let server_side = matches!(
            self.number,
            Number::ServerToAppliance | Number::ApplianceToClient
        );
        let words = match what {
            Match::Early { ports: false } => input(&self.input),
            Match::Early { ports: true } => {
                let which = if server_side { "sport" } else { "dport" };
                let ports: Vec<String> = self
                    .redirect
                    .ports
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                format!(
                    "{}tcp {which} {{ {} }}",
                    input(&self.input),
                    ports.join(", ")
                )
            }
            Match::Late => format!("{}{output}{}", input(&self.input), self.nft_session()),
            Match::Leaving => format!("{output}{}", self.nft_session()),
            Match::Marked => format!("meta mark and {:#x} == {:#x}", mark.mask, mark.value),
            Match::Connection => format!("ct mark and {:#x} == {:#x}", mark.mask, mark.value),
        };
        words.trim_end().to_owned()
    }

    /// What tells this leg's packets from others between the same interfaces.
    fn nft_session(&self) -> String {
        let mark = self.appliance.mark;
        match (self.number, self.appliance_address()) {
            (Number::ApplianceToServer, Some((family, address))) if !self.redirect.snat => {
                format!("{} saddr {address}", nft_family(family))
            }
            (Number::ServerToAppliance, Some((family, address))) if !self.redirect.snat => {
                format!("{} daddr {address}", nft_family(family))
            }
            _ => format!("ct mark and {:#x} == {:#x}", mark.mask, mark.value),
        }
    }

    fn appliance_address(&self) -> Option<(Family, std::net::IpAddr)> {
        let family = self.asked.session.family;
        Some((family, self.appliance.address(family)?))
    }

    fn iptables_match(&self, what: &Match) -> String {
        let mark = self.appliance.mark;
        let mut words: Vec<String> = Vec::new();
        let input = self.input.as_ref().map(|name| format!("-i {name}"));
        let output = self.output.as_ref().map(|name| format!("-o {name}"));
        let server_side = matches!(
            self.number,
            Number::ServerToAppliance | Number::ApplianceToClient
        );
        match what {
            Match::Early { ports } => {
                words.extend(input);
                if *ports {
                    words.push(multiport(&self.redirect.ports, server_side));
                }
            }
            Match::Late | Match::Leaving => {
                // POSTROUTING knows no input interface.
                words.extend(input.filter(|_| matches!(what, Match::Late)));
                words.extend(output);
                words.push(match (self.number, self.appliance_address()) {
                    (Number::ApplianceToServer, Some((_, address))) if !self.redirect.snat => {
                        format!("-s {address}")
                    }
                    (Number::ServerToAppliance, Some((_, address))) if !self.redirect.snat => {
                        format!("-d {address}")
                    }
                    _ => format!("-m connmark --mark {mark}"),
                });
            }
            Match::Marked => words.push(format!("-m mark --mark {mark}")),
            Match::Connection => words.push(format!("-m connmark --mark {mark}")),
        }
        words.join(" ")
    }
}

fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// `-p tcp -m multiport --dports 22,80:90`; without ports where there are more than it takes
/// (15, a range counting twice: `XT_MULTI_PORTS`).
pub(super) fn multiport(ports: &Ports, source: bool) -> String {
    let slots: usize = ports
        .iter()
        .map(|range| if range.first == range.last { 1 } else { 2 })
        .sum();
    if slots > 15 {
        return "-p tcp".to_owned();
    }
    let words: Vec<String> = ports
        .iter()
        .map(|range| range.to_string().replace('-', ":"))
        .collect();
    let which = if source { "--sports" } else { "--dports" };
    format!("-p tcp -m multiport {which} {}", words.join(","))
}

/// What is to be refused in IPv6, in the words of either command.
pub(super) struct Refused {
    /// Where.
    pub(super) hook: Hook,
    /// The rule of nft.
    pub(super) nft: String,
    /// The rule of ip6tables.
    pub(super) iptables: String,
}

/// A command that refuses it, by what this router has for IPv6.
pub(super) fn refuse(case: &Case<'_>, refused: &Refused) -> String {
    let (chain, hook) = match refused.hook {
        Hook::Output => ("OUTPUT", "output"),
        _ => ("FORWARD", "forward"),
    };
    let of_iptables =
        case.surroundings.rules.chains.iter().find(|chain| {
            chain.system != System::Nft && chain.sees(Family::V6) && !chain.is_ours()
        });
    match (of_iptables, case.backend) {
        (None, Backend::Nftables) => format!(
            "nft 'add table ip6 {GUARD}; add chain ip6 {GUARD} {hook} {{ type filter hook {hook} priority filter; }}; add rule ip6 {GUARD} {hook} {}'",
            refused.nft
        ),
        (found, _) => {
            let command = found.map_or("ip6tables", |chain| chain.command.as_str());
            format!("{command} -I {chain} {}", refused.iptables)
        }
    }
}

/// The table that holds what [`refuse`] refuses, for want of another.
const GUARD: &str = "guard";

/// How a mending rule is to know our packets.
enum Match {
    /// Before they are marked: by the interface they come in on, and the ports.
    Early {
        /// By these, too.
        ports: bool,
    },
    /// On a leg, once marked.
    Late,
    /// The same, where the input interface is not known any more.
    Leaving,
    /// By the packet mark.
    Marked,
    /// By the connection mark.
    Connection,
}

/// `rule … of chain … drops it`.
fn place(site: Site<'_>, does: &str) -> String {
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

/// Both kinds of iptables hold rules.
fn both_iptables(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let (legacy, nft) = case.surroundings.iptables;
    if legacy == 0 || nft == 0 {
        return;
    }
    findings.push(
        Finding::warning("iptables-both", Subject::Router)
            .found(format!("iptables-legacy holds {legacy} rules and iptables-nft {nft}"))
            .why("both are in force, but either command shows its own alone: what one lets pass, the other may drop or mark")
            .mends(move_legacy(case)),
    );
}

/// Commands that move what iptables-legacy holds to iptables-nft.
fn move_legacy(case: &Case<'_>) -> Vec<String> {
    let mut commands = Vec::new();
    for (family, prefix) in [("ip", "iptables"), ("ip6", "ip6tables")] {
        let tables: std::collections::BTreeSet<&str> = case
            .surroundings
            .rules
            .chains
            .iter()
            .filter(|chain| chain.system == System::IptablesLegacy && chain.table_family == family)
            .map(|chain| chain.table.as_str())
            .collect();
        let holds = case.surroundings.rules.chains.iter().any(|chain| {
            chain.system == System::IptablesLegacy
                && chain.table_family == family
                && !chain.rules.is_empty()
        });
        if !holds {
            continue;
        }
        commands.push(format!(
            "{prefix}-legacy-save | {prefix}-nft-restore --noflush"
        ));
        for table in tables {
            commands.push(format!("{prefix}-legacy -t {table} -F"));
            commands.push(format!("{prefix}-legacy -t {table} -X"));
        }
    }
    commands
}

/// Rules of others that give other packets our mark.
fn same_marks(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for (index, family) in families(case.policy) {
        let Some(appliance) = case.policy.appliances.get(index) else {
            continue;
        };
        let foreign = case
            .surroundings
            .rules
            .chains
            .iter()
            .filter(|chain| !chain.is_ours() && chain.sees(family));
        for chain in foreign {
            for rule in &chain.rules {
                if rule.sets(appliance.mark) {
                    findings.push(shared_bits(
                        case,
                        appliance,
                        format!(
                            "rule `{}` of {} sets the mark {}, which is ours",
                            rule.text,
                            chain.title(),
                            appliance.mark
                        ),
                        "packets that no redirect names would be led to the appliance",
                        chain.owner(Some(rule)),
                    ));
                }
            }
        }
    }
}
