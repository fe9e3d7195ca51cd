//! The packet rules as an nftables table.
//!
//! ```text
//! prerouting ── input interface, decided once ──┬─ in_eth0 ── ports, servers ── redirect_rdp ── to_scb
//!                                               ├─ in_sps0 (from the appliance)
//!                                               └─ marked ── connection mark ── to_scb
//! forward ── packet or connection marked ── seal_scb
//! ```
//!
//! One chain an interface that the policy names holds all rules that could take a
//! packet that came in there, so that a packet of any other interface costs one
//! look-up. Where only MAC addresses tell the appliance's packets from its
//! neighbours', a chain of its own holds the rules for them.

use std::collections::BTreeMap;

use super::{Leg, Model, patterns, seal_comment};
use crate::net::{IfName, IfPattern, Mark, Networks};
use crate::nft::{
    Base, Chain, CtKey, Elements, Expression, MetaKey, PayloadBase, Rule, Set, Table, Verdict,
};
use crate::policy::{Appliance, Established, Policy, Redirect};

/// `mangle + 10`: after all who mark at mangle themselves
/// (`NF_IP_PRI_MANGLE`, `include/uapi/linux/netfilter_ipv4.h`).
const PRIORITY: i32 = -140;
/// `NF_INET_PRE_ROUTING` and `NF_INET_FORWARD` (`include/uapi/linux/netfilter.h`).
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// nft's number for the type `mark` (`include/datatype.h` of nftables).
const TYPE_MARK: u32 = 19;
/// nft's number for the type `ifname`.
const TYPE_IFNAME: u32 = 41;

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
    };
    renderer.prerouting();
    for redirect in &policy.redirects {
        renderer.redirect(redirect);
    }
    renderer.marked();
    if renderer.model.is_sealed() {
        renderer.seal();
    }
    Some(Table {
        flags: 0,
        sets: sets(policy),
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
        add("ports", Elements::Ports(redirect.ports.clone()));
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
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    sets
}

struct Renderer<'p> {
    policy: &'p Policy,
    model: Model<'p>,
    chains: BTreeMap<String, (Option<Base>, Vec<Rule>)>,
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
        if !exact.is_empty() {
            exact.sort();
            rules.insert(
                0,
                Rule::of([
                    Expression::MetaLoad(MetaKey::InputName),
                    Expression::InlineVerdictMap {
                        elements: exact,
                        key_type: TYPE_IFNAME,
                    },
                ]),
            );
        }
        rules.push(Rule::of([Expression::Verdict(Verdict::Goto(
            "marked".to_owned(),
        ))]));
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
            let own_rules = self.rules_for(pattern, &from);
            self.chain(&own, own_rules);
        }
        rules.extend(self.rules_for(pattern, &wholly));
        self.chain(chain, rules);
    }

    /// Rules 0 to 4 for packets that came in so and are from the appliances `from`.
    fn rules_for(&self, pattern: &IfPattern, from: &[usize]) -> Vec<Rule> {
        let mut rules = Vec::new();
        if !from.is_empty() {
            rules.push(Rule::of(clear_packet_mark(self.policy.options.mark_mask)));
        }
        for redirect in &self.policy.redirects {
            if redirect.snat && from.contains(&redirect.appliance) {
                each_family(redirect, Side::Destination, |matched| {
                    rules.push(Rule::counted(
                        matched,
                        set_connection_mark(self.mark_of(redirect)),
                        Leg::Appliance.comment(redirect),
                    ));
                });
            }
        }
        for redirect in &self.policy.redirects {
            if from.contains(&redirect.appliance) {
                continue;
            }
            let meant = |patterns: &[IfPattern]| patterns.iter().any(|wide| wide.covers(pattern));
            if meant(&redirect.client_interfaces) {
                each_family(redirect, Side::Destination, |mut matched| {
                    matched.push(Expression::Verdict(Verdict::Jump(redirect_chain(redirect))));
                    rules.push(Rule::of(matched));
                });
            }
            if redirect.snat && meant(&redirect.server_interfaces) {
                each_family(redirect, Side::Source, |matched| {
                    rules.push(Rule::counted(
                        in_state(NEW).into_iter().chain(matched),
                        set_connection_mark(self.mark_of(redirect)),
                        Leg::Servers.comment(redirect),
                    ));
                });
            }
        }
        if from.is_empty() {
            rules.push(Rule::of([Expression::Verdict(Verdict::Goto(
                "marked".to_owned(),
            ))]));
        } else {
            rules.extend(self.by_connection_mark(|index| !from.contains(&index)));
            rules.extend(self.invalid(from));
        }
        rules
    }

    /// Rule 4a, for what is from the appliances `from`.
    fn invalid(&self, from: &[usize]) -> Vec<Rule> {
        let mut rules = Vec::new();
        for redirect in &self.policy.redirects {
            let Some(appliance) = self.policy.appliance_of(redirect) else {
                continue;
            };
            if redirect.snat && !from.contains(&redirect.appliance) {
                each_family(redirect, Side::Source, |matched| {
                    let send = Expression::Verdict(Verdict::Goto(appliance_chain(appliance)));
                    let invalid = in_state(INVALID).into_iter().chain(neither_syn_nor_rst());
                    rules.push(Rule::of(invalid.chain(matched).chain([send])));
                });
            }
        }
        rules
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
        rules.extend(self.by_connection_mark(|index| index != redirect.appliance));
        if self.policy.options.established == Established::Keep {
            let mut matched = connection_mark_under(appliance.mark.mask);
            matched.push(equals(appliance.mark.value.to_ne_bytes().to_vec()));
            rules.push(Rule::counted(
                matched,
                [send.clone()],
                Leg::Clients.comment(redirect),
            ));
        }
        let matched: Vec<_> = match self.policy.options.established {
            Established::Redirect => Vec::new(),
            Established::Keep => pure_syn().into_iter().chain(in_state(NEW)).collect(),
        };
        // Without a connection the rule ends where its mark is loaded, so that the counter is
        // not reached, and the last rule takes the packet.
        let matched = matched
            .into_iter()
            .chain(set_connection_mark(appliance.mark));
        rules.push(Rule::counted(
            matched,
            [send.clone()],
            Leg::Clients.comment(redirect),
        ));
        let unknown = in_state(INVALID | UNTRACKED);
        rules.push(Rule::counted(
            unknown,
            [send],
            Leg::Clients.comment(redirect),
        ));
        self.chain(&redirect_chain(redirect), rules);
    }

    /// Rule 4, and what it does.
    fn marked(&mut self) {
        let mut marked: Vec<Rule> = self.by_connection_mark(|_| true).into_iter().collect();
        let invalid = self.invalid(&[]);
        if !invalid.is_empty() {
            // One test for all that is valid, however many redirects there are.
            let look = Expression::Verdict(Verdict::Goto("invalid".to_owned()));
            marked.push(Rule::of(in_state(INVALID).into_iter().chain([look])));
            self.chain("invalid", invalid);
        }
        self.chain("marked", marked);
        for (_, appliance) in self.model.appliances() {
            let rules = vec![Rule::counted(
                [],
                set_packet_mark(appliance.mark)
                    .into_iter()
                    .chain([Expression::Verdict(Verdict::Accept)]),
                format!("{}: sent to the appliance", appliance.name),
            )];
            self.chain(&appliance_chain(appliance), rules);
        }
    }

    /// Sends on what bears the mark of one of the appliances `wanted`.
    fn by_connection_mark(&self, wanted: impl Fn(usize) -> bool) -> Option<Rule> {
        self.by_mark(
            connection_mark_under(self.policy.options.mark_mask),
            wanted,
            appliance_chain,
        )
    }

    fn by_mark(
        &self,
        load: Vec<Expression>,
        wanted: impl Fn(usize) -> bool,
        chain: impl Fn(&Appliance) -> String,
    ) -> Option<Rule> {
        let mut elements: Vec<_> = self
            .model
            .appliances()
            .filter(|(index, _)| wanted(*index))
            .map(|(_, appliance)| {
                (
                    appliance.mark.value.to_ne_bytes().to_vec(),
                    Verdict::Goto(chain(appliance)),
                )
            })
            .collect();
        elements.sort();
        (!elements.is_empty()).then(|| {
            let map = Expression::InlineVerdictMap {
                elements,
                key_type: TYPE_MARK,
            };
            Rule::of(load.into_iter().chain([map]))
        })
    }

    /// Rule 5.
    fn seal(&mut self) {
        let mask = self.policy.options.mark_mask;
        let loads = [connection_mark_under(mask), packet_mark_under(mask)];
        let rules = loads
            .into_iter()
            .filter_map(|load| self.by_mark(load, |_| true, seal_chain))
            .collect();
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

/// Ports, then servers, once a family that the redirect has networks of.
fn each_family(redirect: &Redirect, side: Side, mut emit: impl FnMut(Vec<Expression>)) {
    let name = &redirect.name;
    let Networks { v4, v6 } = &redirect.servers;
    for (present, family) in [(!v4.is_empty(), '4'), (!v6.is_empty(), '6')] {
        if !present {
            continue;
        }
        let mut matched = tcp_port(side, format!("ports_{name}"));
        matched.extend(address(
            side,
            family,
            format!("servers{family}_{name}"),
            false,
        ));
        let except = match family {
            '4' => &redirect.except_clients.v4.is_empty(),
            _ => &redirect.except_clients.v6.is_empty(),
        };
        // Rule 1 asks for excepted clients in the redirect's own chain; rule 2
        // never sees one, for they never come to the appliance.
        if side == Side::Source && !except {
            let set = format!("except{family}_{name}");
            matched.extend(address(Side::Destination, family, set, true));
        }
        emit(matched);
    }
}

impl Rule {
    fn of(expressions: impl IntoIterator<Item = Expression>) -> Self {
        Self {
            expressions: expressions.into_iter().collect(),
            comment: None,
        }
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

/// `tcp dport @set`, or `sport`.
fn tcp_port(side: Side, set: String) -> Vec<Expression> {
    let offset = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    vec![
        Expression::MetaLoad(MetaKey::Protocol),
        equals(vec![6]),
        Expression::Payload {
            base: PayloadBase::Transport,
            offset,
            length: 2,
        },
        Expression::Lookup { set, invert: false },
    ]
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

/// `tcp flags & (fin | syn | rst | ack) == syn`.
fn pure_syn() -> Vec<Expression> {
    vec![
        Expression::MetaLoad(MetaKey::Protocol),
        equals(vec![6]),
        Expression::Payload {
            base: PayloadBase::Transport,
            offset: 13,
            length: 1,
        },
        Expression::Bitwise {
            mask: vec![0x17],
            xor: vec![0],
        },
        equals(vec![0x02]),
    ]
}

/// `tcp flags & (syn | rst) == 0`.
fn neither_syn_nor_rst() -> Vec<Expression> {
    vec![
        Expression::MetaLoad(MetaKey::Protocol),
        equals(vec![6]),
        Expression::Payload {
            base: PayloadBase::Transport,
            offset: 13,
            length: 1,
        },
        Expression::Bitwise {
            mask: vec![0x06],
            xor: vec![0],
        },
        equals(vec![0]),
    ]
}

/// `ct state new`: `NF_CT_STATE_BIT(IP_CT_NEW)`
/// (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
const NEW: u32 = 1 << 3;
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
    vec![
        Expression::CtLoad(CtKey::Mark),
        Expression::Bitwise {
            mask: mask.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
    ]
}

fn packet_mark_under(mask: u32) -> Vec<Expression> {
    vec![
        Expression::MetaLoad(MetaKey::Mark),
        Expression::Bitwise {
            mask: mask.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
    ]
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
