//! The packet rules as an nftables table.
//!
//! ```text
//! prerouting ── input interface, decided once ──┬─ in_eth0 ──┐
//!                                               ├─ in_sps0 ──┤ (from the appliance)
//!                                               └────────────┴─ connection mark ── to_scb
//!                 else, in_eth0 ── ports, servers ── redirect_rdp ── to_scb
//!                 else ── new_or_invalid
//! forward ── packet or connection marked ── seal_scb
//! input ── packet or connection marked ── to_router
//! ```
//!
//! One chain an interface that the policy names holds all rules that could take a
//! packet that came in there, so that a packet of any other interface costs one
//! look-up. Where only MAC addresses tell the appliance's packets from its
//! neighbours', a chain of its own holds the rules for them.

use std::collections::BTreeMap;

use super::{Leg, Model, Packet, patterns, seal_comment, sent_comment, unknown_comment};
use crate::net::{IfName, IfPattern, Mark, Networks, Range, Ranges};
use crate::nft::{
    Base, Chain, CtKey, Elements, Expression, MetaKey, PayloadBase, Rule, Set, Table, Verdict,
};
use crate::policy::{Appliance, Established, Policy, Redirect};

/// `mangle + 10`: after all who mark at mangle themselves
/// (`NF_IP_PRI_MANGLE`, `include/uapi/linux/netfilter_ipv4.h`).
const PRIORITY: i32 = -140;
/// `NF_INET_PRE_ROUTING` and so on (`include/uapi/linux/netfilter.h`).
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// nft's number for the type `mark` (`include/datatype.h` of nftables).
const TYPE_MARK: u32 = 19;
/// nft's number for the type `ifname`.
const TYPE_IFNAME: u32 = 41;

/// What has no known connection and that no client sent.
const NEW_OR_INVALID: &str = "new_or_invalid";
/// Connections that go on as they are.
const LEFT_ALONE: &str = "left_alone";
/// What is delivered to the router itself, and bears a mark.
const TO_ROUTER: &str = "to_router";

/// The table that makes the kernel do what `policy` says, if it redirects anything.
#[must_use]
pub fn table(policy: &Policy) -> Option<Table> {
    if policy.is_empty() {
        return None;
    }
    let mut renderer = Renderer {
        policy,
        model: Model::new(policy),
        chains: BTreeMap::new(),
        sets: sets(policy),
        any: None,
    };
    renderer.fixed();
    renderer.prerouting();
    for redirect in &policy.redirects {
        renderer.redirect(redirect);
    }
    renderer.input_hook();
    if renderer.model.is_sealed() {
        renderer.seal();
    }
    let mut sets = renderer.sets;
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    Some(Table {
        flags: 0,
        sets,
        chains: renderer
            .chains
            .into_iter()
            .map(|(name, (base, rules))| Chain { name, base, rules })
            .collect(),
        others: Vec::new(),
    })
}

/// Name of the chain that counts what clients open for a redirect.
#[must_use]
pub fn redirect_chain(redirect: &Redirect) -> String {
    format!("redirect_{}", redirect.name)
}

/// Name of the chain through which every packet goes that is sent to an appliance.
#[must_use]
pub fn appliance_chain(appliance: &Appliance) -> String {
    format!("to_{}", appliance.name)
}

fn seal_chain(appliance: &Appliance) -> String {
    format!("seal_{}", appliance.name)
}

fn sets(policy: &Policy) -> Vec<Set> {
    let mut sets = Vec::new();
    for redirect in &policy.redirects {
        let name = &redirect.name;
        let mut add = |kind: &str, elements: Elements| {
            sets.push(Set {
                name: format!("{kind}_{name}"),
                elements,
            });
        };
        if one_port(&redirect.ports).is_none() {
            add("ports", Elements::Ports(redirect.ports.clone()));
        }
        for (kind, networks) in [
            ("servers", &redirect.servers),
            ("except", &redirect.except_clients),
        ] {
            if !networks.v4.is_empty() {
                add(&format!("{kind}4"), Elements::V4(networks.v4.clone()));
            }
            if !networks.v6.is_empty() {
                add(&format!("{kind}6"), Elements::V6(networks.v6.clone()));
            }
        }
    }
    sets
}

struct Renderer<'p> {
    policy: &'p Policy,
    model: Model<'p>,
    chains: BTreeMap<String, (Option<Base>, Vec<Rule>)>,
    sets: Vec<Set>,
    /// See [`Self::any_redirect`].
    any: Option<Vec<Vec<Expression>>>,
}

impl Renderer<'_> {
    fn base(&mut self, name: &str, hook: u32, rules: Vec<Rule>) {
        let base = Base {
            kind: "filter".to_owned(),
            hook,
            priority: PRIORITY,
            policy: ACCEPT,
        };
        self.chains.insert(name.to_owned(), (Some(base), rules));
    }

    fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), (None, rules));
    }

    /// A name for an interface's chain that nft can read and no other chain has.
    fn interface_chain(&self, pattern: &IfPattern) -> String {
        let plain: String = pattern
            .to_string()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let mut name = format!("in_{plain}");
        let mut number = 2;
        while self.chains.contains_key(&name) {
            name = format!("in_{plain}_{number}");
            number += 1;
        }
        name
    }

    /// The input interface, decided once: an exact name by one look-up, then the
    /// patterns, the longest first, for they may hold one another.
    fn prerouting(&mut self) {
        let mut exact = Vec::new();
        let mut rules = Vec::new();
        for pattern in patterns(self.policy) {
            let chain = self.interface_chain(&pattern);
            self.input(&chain, &pattern);
            match pattern {
                IfPattern::Exact(name) => exact.push((name_bytes(&name), Verdict::Goto(chain))),
                IfPattern::Prefix(prefix) => rules.push(Rule::of([
                    Expression::MetaLoad(MetaKey::InputName),
                    equals(prefix.into_bytes()),
                    Expression::Verdict(Verdict::Goto(chain)),
                ])),
            }
        }
        let input = [Expression::MetaLoad(MetaKey::InputName)];
        rules.splice(0..0, dispatch(&input, TYPE_IFNAME, exact));
        rules.extend(self.settled(&[]));
        rules.extend(self.new_or_invalid(NEW_OR_INVALID, &[], |_| false));
        self.base("prerouting", PREROUTING, rules);
    }

    /// The rules for packets that came in on an interface meant by `pattern`.
    fn input(&mut self, chain: &str, pattern: &IfPattern) {
        let wholly: Vec<usize> = self
            .model
            .appliances()
            .filter(|(_, appliance)| Model::wholly_from(appliance, pattern))
            .map(|(index, _)| index)
            .collect();
        let mut rules = Vec::new();
        let by_mac: Vec<(usize, &Appliance)> = self
            .model
            .appliances()
            .filter(|(_, appliance)| {
                !appliance.macs.is_empty()
                    && IfPattern::Exact(appliance.interface.clone()) == *pattern
            })
            .collect();
        // The name is taken before its rules are known, so that no other chain gets it.
        self.chain(chain, Vec::new());
        for (index, appliance) in by_mac {
            let own = format!("{chain}_from_{}", appliance.name);
            for mac in &appliance.macs {
                rules.push(Rule::of([
                    Expression::MetaLoad(MetaKey::InputType),
                    // `ARPHRD_ETHER`: other links have no such header.
                    equals(1_u16.to_ne_bytes().to_vec()),
                    Expression::Payload {
                        base: PayloadBase::Link,
                        offset: 6,
                        length: 6,
                    },
                    equals(mac.0.to_vec()),
                    Expression::Verdict(Verdict::Goto(own.clone())),
                ]));
            }
            let mut from = wholly.clone();
            from.push(index);
            let own_rules = self.rules_for(&own, pattern, &from);
            self.chain(&own, own_rules);
        }
        rules.extend(self.rules_for(chain, pattern, &wholly));
        self.chain(chain, rules);
    }

    /// Rules 0 to 4b for packets that came in so and are from the appliances `from`; what `chain`
    /// is to hold.
    fn rules_for(&mut self, chain: &str, pattern: &IfPattern, from: &[usize]) -> Vec<Rule> {
        let mut rules = Vec::new();
        if !from.is_empty() {
            rules.push(Rule::of(clear_packet_mark(self.policy.options.mark_mask)));
        }
        rules.extend(self.settled(from));
        for redirect in &self.policy.redirects {
            if redirect.snat && from.contains(&redirect.appliance) {
                each_family(redirect, Side::Destination, |matched| {
                    let matched = matched
                        .into_iter()
                        .chain(set_connection_mark(self.mark_of(redirect)));
                    let done = [Expression::Verdict(Verdict::Accept)];
                    rules.push(Rule::counted(
                        matched,
                        done,
                        Leg::Appliance.comment(redirect),
                    ));
                });
            }
        }
        let meant = |patterns: &[IfPattern]| patterns.iter().any(|wide| wide.covers(pattern));
        let picks_up = |redirect: &Redirect| redirect.snat && meant(&redirect.server_interfaces);
        let own = if from.is_empty() && !self.policy.redirects.iter().any(picks_up) {
            NEW_OR_INVALID.to_owned()
        } else {
            format!("{NEW_OR_INVALID}_{}", chain.trim_start_matches("in_"))
        };
        let new = self.new_or_invalid(&own, from, picks_up);
        let takers: Vec<_> = self
            .policy
            .redirects
            .iter()
            .filter(|redirect| !from.contains(&redirect.appliance))
            .filter(|redirect| meant(&redirect.client_interfaces))
            .collect();
        if self.policy.options.established == Established::Keep && !takers.is_empty() {
            let goes_on = [Expression::Verdict(Verdict::Accept)];
            rules.push(Rule::of(
                in_state(ESTABLISHED | RELATED)
                    .into_iter()
                    .chain(goes_on.clone()),
            ));
            let on = if new.is_some() {
                [Expression::Verdict(Verdict::Goto(own))]
            } else {
                goes_on
            };
            rules.push(Rule::of(
                in_state(NEW).into_iter().chain(pure_syn(false)).chain(on),
            ));
        }
        let mut taking = Vec::new();
        for redirect in &takers {
            each_family(redirect, Side::Destination, |mut matched| {
                matched.push(Expression::Verdict(Verdict::Jump(redirect_chain(redirect))));
                taking.push(Rule::of(matched));
            });
        }
        if takers.len() > FEW {
            let name = chain.replacen("in_", "clients_", 1);
            for mut matched in self.any_redirect() {
                matched.push(Expression::Verdict(Verdict::Jump(name.clone())));
                rules.push(Rule::of(matched));
            }
            self.chain(&name, taking);
        } else {
            rules.extend(taking);
        }
        rules.extend(new);
        rules
    }

    /// A port and a server of any redirects, once a family: what tells nearly all bystanders, however
    /// many redirects there are. Makes the sets that this needs and no redirect has.
    fn any_redirect(&mut self) -> Vec<Vec<Expression>> {
        if let Some(any) = &self.any {
            return any.clone();
        }
        let redirects = &self.policy.redirects;
        let ports = redirects.iter().flat_map(|redirect| &redirect.ports);
        let ports = Ranges::merged(ports.copied().collect());
        let v4 = redirects.iter().flat_map(|redirect| &redirect.servers.v4);
        let v4 = Ranges::merged(v4.copied().collect());
        let v6 = redirects.iter().flat_map(|redirect| &redirect.servers.v6);
        let v6 = Ranges::merged(v6.copied().collect());
        let among = ports_among(&ports, || {
            self.set_of("all_ports", Elements::Ports(ports.clone()))
        });
        let mut any = Vec::new();
        for (family, name, is_empty, servers) in [
            ('4', "all_servers4", v4.is_empty(), Elements::V4(v4)),
            ('6', "all_servers6", v6.is_empty(), Elements::V6(v6)),
        ] {
            if !is_empty {
                let mut matched = tcp_port(Side::Destination, among.clone());
                let set = self.set_of(name, servers);
                matched.extend(address(Side::Destination, family, set, false));
                any.push(matched);
            }
        }
        self.any = Some(any.clone());
        any
    }

    /// The name of a set that holds these: one that is there, or a new one.
    fn set_of(&mut self, name: &str, elements: Elements) -> String {
        if let Some(same) = self.sets.iter().find(|set| set.elements == elements) {
            return same.name.clone();
        }
        let name = name.to_owned();
        self.sets.push(Set {
            name: name.clone(),
            elements,
        });
        name
    }

    /// Rules 4 and 4b for what is from the appliances `from`.
    fn settled(&self, from: &[usize]) -> Vec<Rule> {
        let mut elements: Vec<_> = self
            .model
            .appliances()
            .map(|(index, appliance)| {
                let verdict = if from.contains(&index) {
                    Verdict::Accept
                } else {
                    Verdict::Goto(appliance_chain(appliance))
                };
                (appliance.mark, verdict)
            })
            .collect();
        let alone = self.model.left_alone();
        elements.extend(alone.map(|mark| (mark, Verdict::Jump(LEFT_ALONE.to_owned()))));
        by_mark(
            &connection_mark_under(self.policy.options.mark_mask),
            elements,
        )
    }

    /// Rules 3, where `picks_up` says so, 3a and 4a for what is from the appliances `from`: makes the
    /// chain `name` hold them, if it does not yet, and returns the rule that leads there, if
    /// there are any.
    fn new_or_invalid(
        &mut self,
        name: &str,
        from: &[usize],
        picks_up: impl Fn(&Redirect) -> bool,
    ) -> Option<Rule> {
        let others: Vec<_> = self
            .model
            .redirects()
            .filter(|(_, redirect, _)| !from.contains(&redirect.appliance))
            .collect();
        let mut rules = Vec::new();
        for (_, redirect, appliance) in &others {
            let send = Expression::Verdict(Verdict::Goto(appliance_chain(appliance)));
            if picks_up(redirect) {
                each_family(redirect, Side::Source, |matched| {
                    let matched = in_state(NEW)
                        .into_iter()
                        .chain(pure_syn(false))
                        .chain(matched)
                        .chain(set_connection_mark(appliance.mark));
                    let comment = Leg::Servers.comment(redirect);
                    rules.push(Rule::counted(matched, [send.clone()], comment));
                });
            }
        }
        if let Some(alone) = self.model.left_alone() {
            for (_, redirect, _) in &others {
                each_family_of_servers(redirect, Side::Source, |_, matched| {
                    let opened = in_state(NEW).into_iter().chain(pure_syn(true));
                    let done = set_connection_mark(alone)
                        .into_iter()
                        .chain([Expression::Verdict(Verdict::Accept)]);
                    rules.push(
                        Rule::of(opened.chain(matched).chain(done))
                            .commented(format!("{}: opened by a server", redirect.name)),
                    );
                });
            }
        }
        for (_, redirect, appliance) in &others {
            if redirect.snat {
                each_family(redirect, Side::Source, |matched| {
                    let send = Expression::Verdict(Verdict::Goto(appliance_chain(appliance)));
                    let invalid = in_state(INVALID).into_iter().chain(neither_syn_nor_rst());
                    rules.push(Rule::of(invalid.chain(matched).chain([send])));
                });
            }
        }
        if rules.is_empty() {
            return None;
        }
        self.chain(name, rules);
        let look = Expression::Verdict(Verdict::Goto(name.to_owned()));
        Some(Rule::of(in_state(INVALID | NEW).into_iter().chain([look])))
    }

    /// Rule 1, once interface, port and server have matched.
    fn redirect(&mut self, redirect: &Redirect) {
        let Some(appliance) = self.policy.appliance_of(redirect) else {
            return;
        };
        let mut rules = Vec::new();
        for (present, family) in [
            (!redirect.except_clients.v4.is_empty(), '4'),
            (!redirect.except_clients.v6.is_empty(), '6'),
        ] {
            if present {
                let set = format!("except{family}_{}", redirect.name);
                let mut matched = address(Side::Source, family, set, false);
                matched.push(Expression::Verdict(Verdict::Return));
                rules.push(Rule::of(matched));
            }
        }
        let send = Expression::Verdict(Verdict::Goto(appliance_chain(appliance)));
        // Without a connection the rule ends where its mark is loaded, so that the counter is
        // not reached, and the last rule takes the packet.
        rules.push(Rule::counted(
            set_connection_mark(appliance.mark),
            [send.clone()],
            Leg::Clients.comment(redirect),
        ));
        let unknown = in_state(INVALID | UNTRACKED);
        rules.push(Rule::counted(unknown, [send], unknown_comment(redirect)));
        self.chain(&redirect_chain(redirect), rules);
    }

    /// What rules 4 and 4b lead to.
    fn fixed(&mut self) {
        for (_, appliance) in self.model.appliances() {
            let rules = vec![Rule::counted(
                [],
                set_packet_mark(appliance.mark)
                    .into_iter()
                    .chain([Expression::Verdict(Verdict::Accept)]),
                sent_comment(appliance),
            )];
            self.chain(&appliance_chain(appliance), rules);
        }
        if self.model.left_alone().is_some() {
            let goes_on = pure_syn(false)
                .into_iter()
                .chain([Expression::Verdict(Verdict::Accept)]);
            self.chain(LEFT_ALONE, vec![Rule::of(goes_on)]);
        }
    }

    /// By packet or connection mark to a chain for each appliance.
    fn by_either_mark(&self, chain: impl Fn(&Appliance) -> String) -> Vec<Rule> {
        let mask = self.policy.options.mark_mask;
        [connection_mark_under(mask), packet_mark_under(mask)]
            .into_iter()
            .flat_map(|load| {
                let appliances = self.model.appliances();
                let elements = appliances
                    .map(|(_, appliance)| (appliance.mark, Verdict::Goto(chain(appliance))));
                by_mark(&load, elements.collect())
            })
            .collect()
    }

    /// Rule 6.
    fn input_hook(&mut self) {
        let mask = self.policy.options.mark_mask;
        let mut rules = self.by_either_mark(|_| TO_ROUTER.to_owned());
        for rule in &mut rules {
            rule.expressions.splice(0..0, tcp());
        }
        self.base("input", INPUT, rules);
        // What has no connection ends at the second rule.
        let rules = vec![
            Rule::of(clear_packet_mark(mask)),
            Rule::of(set_connection_mark(self.model.alone_or_unmarked())),
        ];
        self.chain(TO_ROUTER, rules);
    }

    /// Rule 5.
    fn seal(&mut self) {
        let rules = self.by_either_mark(seal_chain);
        self.base("forward", FORWARD, rules);
        for (_, appliance) in self.model.appliances() {
            let interface = name_bytes(&appliance.interface);
            let pass = Expression::Verdict(Verdict::Return);
            let mut rules = vec![Rule::of([
                Expression::MetaLoad(MetaKey::OutputName),
                equals(interface.clone()),
                pass.clone(),
            ])];
            let from = [Expression::MetaLoad(MetaKey::InputName), equals(interface)];
            if appliance.macs.is_empty() {
                rules.push(Rule::of(from.into_iter().chain([pass])));
            } else {
                for mac in &appliance.macs {
                    rules.push(Rule::of(from.clone().into_iter().chain([
                        Expression::MetaLoad(MetaKey::InputType),
                        equals(1_u16.to_ne_bytes().to_vec()),
                        Expression::Payload {
                            base: PayloadBase::Link,
                            offset: 6,
                            length: 6,
                        },
                        equals(mac.0.to_vec()),
                        pass.clone(),
                    ])));
                }
            }
            rules.push(Rule::counted(
                [],
                [Expression::RejectProhibited],
                seal_comment(appliance),
            ));
            self.chain(&seal_chain(appliance), rules);
        }
    }

    fn mark_of(&self, redirect: &Redirect) -> Mark {
        // A redirect without its appliance cannot come out of the policy's reader; a
        // mark of nothing would do nothing.
        self.policy
            .appliance_of(redirect)
            .map_or(Mark { value: 0, mask: 0 }, |appliance| appliance.mark)
    }
}

/// Ports, then servers, once a family that the redirect has networks of; of what goes to
/// clients, those that are excepted left out.
fn each_family(redirect: &Redirect, side: Side, mut emit: impl FnMut(Vec<Expression>)) {
    let name = &redirect.name;
    let excepts = |family| match family {
        '4' => !redirect.except_clients.v4.is_empty(),
        _ => !redirect.except_clients.v6.is_empty(),
    };
    each_family_of_servers(redirect, side, |family, mut matched| {
        // Rule 1 asks for excepted clients in the redirect's own chain; rule 2
        // never sees one, for they never come to the appliance.
        if side == Side::Source && excepts(family) {
            let set = format!("except{family}_{name}");
            matched.extend(address(Side::Destination, family, set, true));
        }
        emit(matched);
    });
}

/// Ports, then servers, once a family that the redirect has networks of.
fn each_family_of_servers(
    redirect: &Redirect,
    side: Side,
    mut emit: impl FnMut(char, Vec<Expression>),
) {
    let name = &redirect.name;
    let Networks { v4, v6 } = &redirect.servers;
    for (present, family) in [(!v4.is_empty(), '4'), (!v6.is_empty(), '6')] {
        if present {
            let among = ports_among(&redirect.ports, || format!("ports_{name}"));
            let mut matched = tcp_port(side, among);
            let set = format!("servers{family}_{name}");
            matched.extend(address(side, family, set, false));
            emit(family, matched);
        }
    }
}

/// Measured: up to so many comparisons cost a packet less than one look into a map or set.
const FEW: usize = 2;

/// Does what stands beside the value that was loaded.
fn dispatch(
    load: &[Expression],
    key_type: u32,
    mut elements: Vec<(Vec<u8>, Verdict)>,
) -> Vec<Rule> {
    elements.sort();
    if elements.len() <= FEW {
        return elements
            .into_iter()
            .map(|(value, verdict)| {
                let compare = [equals(value), Expression::Verdict(verdict)];
                Rule::of(load.iter().cloned().chain(compare))
            })
            .collect();
    }
    let map = Expression::InlineVerdictMap { elements, key_type };
    vec![Rule::of(load.iter().cloned().chain([map]))]
}

fn by_mark(load: &[Expression], verdicts: Vec<(Mark, Verdict)>) -> Vec<Rule> {
    let elements = verdicts
        .into_iter()
        .map(|(mark, verdict)| (mark.value.to_ne_bytes().to_vec(), verdict));
    dispatch(load, TYPE_MARK, elements.collect())
}

impl Rule {
    /// Of these, with no question asked twice: nft would leave out the second.
    fn of(expressions: impl IntoIterator<Item = Expression>) -> Self {
        let mut rule = Self::default();
        let mut asked = Vec::new();
        for expression in expressions {
            rule.expressions.push(expression);
            if let [
                ..,
                question @ Expression::MetaLoad(_),
                Expression::Compare { equal: true, bytes },
            ] = rule.expressions.as_slice()
            {
                let settled = (question.clone(), bytes.clone());
                if asked.contains(&settled) {
                    rule.expressions.truncate(rule.expressions.len() - 2);
                } else {
                    asked.push(settled);
                }
            }
        }
        rule
    }

    /// Counts what matched, before what is then done with it.
    fn counted(
        matched: impl IntoIterator<Item = Expression>,
        done: impl IntoIterator<Item = Expression>,
        comment: String,
    ) -> Self {
        Self::of(matched.into_iter().chain([Expression::Counter]).chain(done)).commented(comment)
    }

    fn commented(mut self, comment: String) -> Self {
        self.comment = Some(comment);
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

fn equals(bytes: Vec<u8>) -> Expression {
    Expression::Compare { equal: true, bytes }
}

/// A whole interface name as the kernel compares it: 16 bytes, NUL-padded.
fn name_bytes(name: &IfName) -> Vec<u8> {
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// `tcp dport @set` and so on.
fn tcp_port(side: Side, among: Expression) -> Vec<Expression> {
    let offset = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    let port = [
        Expression::Payload {
            base: PayloadBase::Transport,
            offset,
            length: 2,
        },
        among,
    ];
    tcp().into_iter().chain(port).collect()
}

/// Whether what was loaded is one of these ports, all of which, if there are several, are in a set.
/// Measured: a look into a set with intervals costs every packet 0.2 µs, a comparison next to nothing.
fn ports_among(ports: &Ranges<u16>, set: impl FnOnce() -> String) -> Expression {
    match one_port(ports) {
        Some(port) => equals(port.to_be_bytes().to_vec()),
        None => Expression::Lookup {
            set: set(),
            invert: false,
        },
    }
}

fn one_port(ports: &Ranges<u16>) -> Option<u16> {
    match ports.as_slice() {
        [Range { first, last }] if first == last => Some(*first),
        _ => None,
    }
}

/// `meta l4proto tcp`.
fn tcp() -> [Expression; 2] {
    [Expression::MetaLoad(MetaKey::Protocol), equals(vec![6])]
}

/// `ip daddr @set`, `ip6 saddr != @set` and so on.
fn address(side: Side, family: char, set: String, invert: bool) -> Vec<Expression> {
    // `NFPROTO_IPV4`, `NFPROTO_IPV6`; offsets in the IP headers of RFC 791 and RFC 8200.
    let (protocol, offset, length) = match (family, side) {
        ('4', Side::Source) => (2, 12, 4),
        ('4', Side::Destination) => (2, 16, 4),
        (_, Side::Source) => (10, 8, 16),
        (_, Side::Destination) => (10, 24, 16),
    };
    vec![
        Expression::MetaLoad(MetaKey::Family),
        equals(vec![protocol]),
        Expression::Payload {
            base: PayloadBase::Network,
            offset,
            length,
        },
        Expression::Lookup { set, invert },
    ]
}

/// `tcp flags & (fin | syn | rst | ack) == syn`, or `!=`.
fn pure_syn(is: bool) -> Vec<Expression> {
    let flags = Packet::FIN | Packet::SYN | Packet::RST | Packet::ACK;
    tcp_flags(flags, is, Packet::SYN)
}

/// `tcp flags & (syn | rst) == 0`.
fn neither_syn_nor_rst() -> Vec<Expression> {
    tcp_flags(Packet::SYN | Packet::RST, true, 0)
}

fn tcp_flags(mask: u8, equal: bool, value: u8) -> Vec<Expression> {
    let flags = [
        Expression::Payload {
            base: PayloadBase::Transport,
            offset: 13,
            length: 1,
        },
        Expression::Bitwise {
            mask: vec![mask],
            xor: vec![0],
        },
        Expression::Compare {
            equal,
            bytes: vec![value],
        },
    ];
    tcp().into_iter().chain(flags).collect()
}

/// `ct state new`: `NF_CT_STATE_BIT(IP_CT_NEW)`
/// (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
const NEW: u32 = 1 << 3;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, `NF_CT_STATE_BIT(IP_CT_RELATED)`.
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
/// `NF_CT_STATE_INVALID_BIT`.
const INVALID: u32 = 1;
/// `NF_CT_STATE_UNTRACKED_BIT`.
const UNTRACKED: u32 = 1 << 6;

/// In one of these states. Asking for it never ends a rule, as asking for a mark does.
fn in_state(states: u32) -> Vec<Expression> {
    vec![
        Expression::CtLoad(CtKey::State),
        Expression::Bitwise {
            mask: states.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expression::Compare {
            equal: false,
            bytes: vec![0; 4],
        },
    ]
}

fn connection_mark_under(mask: u32) -> Vec<Expression> {
    under(Expression::CtLoad(CtKey::Mark), mask)
}

fn packet_mark_under(mask: u32) -> Vec<Expression> {
    under(Expression::MetaLoad(MetaKey::Mark), mask)
}

/// Of all bits, nft takes the mask away.
fn under(load: Expression, mask: u32) -> Vec<Expression> {
    let bits = (mask != u32::MAX).then(|| Expression::Bitwise {
        mask: mask.to_ne_bytes().to_vec(),
        xor: vec![0; 4],
    });
    [load].into_iter().chain(bits).collect()
}

/// (mark & ~mask) | value, which is the same as (mark & ~mask) ^ value.
fn masked(mark: Mark) -> Expression {
    Expression::Bitwise {
        mask: (!mark.mask).to_ne_bytes().to_vec(),
        xor: mark.value.to_ne_bytes().to_vec(),
    }
}

fn set_connection_mark(mark: Mark) -> Vec<Expression> {
    vec![
        Expression::CtLoad(CtKey::Mark),
        masked(mark),
        Expression::CtSet(CtKey::Mark),
    ]
}

fn set_packet_mark(mark: Mark) -> Vec<Expression> {
    vec![
        Expression::MetaLoad(MetaKey::Mark),
        masked(mark),
        Expression::MetaSet(MetaKey::Mark),
    ]
}

fn clear_packet_mark(mask: u32) -> Vec<Expression> {
    set_packet_mark(Mark { value: 0, mask })
}
