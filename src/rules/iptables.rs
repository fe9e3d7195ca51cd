//! The packet rules as iptables chains.
//!
//! ```text
//! PREROUTING ── scb-redirect ── input interface ──┬─ in-eth0 ──┐
//!                                                 ├─ in-sps0 ──┤ (from the appliance)
//!                                                 └─ marked ───┴─ connection mark ── to-scb
//!                   else, in-eth0 ── servers, ports ── on-rdp ── to-scb
//!                   else ── new
//! FORWARD, not out to the appliance ── scb-redirect-seal ── packet or connection marked ── seal-scb
//! INPUT ── scb-redirect-input ── packet or connection marked ── router
//! ```
//!
//! From chain to chain it goes by `-g`, and not back, for a packet that one redirect took is
//! not for another. Where a redirect must look closer before it takes a packet, it does so
//! in a chain that is jumped to and comes back, and the connection's mark tells whether it took it.
//! What has no connection is tried in a chain of its own, where each redirect's rules overrule those
//! before them. (A chain for the rest of the way, to which all who do not take the
//! packet lead, would be shorter to tell; but `nf_tables` follows every way through the
//! chains when it checks them, at most 16 deep and, since Linux 6.18, 65536 jumps in all.)

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{Leg, Model, patterns, seal_comment, unknown_comment};
use crate::iptables::{
    CHAIN_NAME_MAX, FORWARD_CHAIN, Flags, Hook, INPUT_CHAIN, Match, PREFIX, PREROUTING_CHAIN, Rule,
    Ruleset, SET_NAME_MAX, Set, Side, State, Target,
};
use crate::net::{Family, IfName, IfPattern, Mark, Networks, PortRange, Range};
use crate::policy::{Appliance, Established, Policy, Redirect};

/// Where packets go that come in elsewhere: what is marked stays so.
const MARKED_CHAIN: &str = "scb-redirect-marked";
/// More prefixes than these go into a set.
const HANDFUL: usize = 5;
/// Numbers that one `multiport` takes (`XT_MULTI_PORTS`); a range counts two.
const MULTIPORT: usize = 15;
/// More single rules than these are worth a warning: each costs every packet that gets there.
const MANY_RULES: usize = 200;
/// Longest interface name or pattern that `-i` takes, `+` included.
const INTERFACE_MAX: usize = 15;

/// What a policy becomes with iptables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Chains of each family that is in use.
    pub rulesets: BTreeMap<Family, Ruleset>,
    /// The sets that they look into, sorted by name.
    pub sets: Vec<Set>,
    /// What the user should know.
    pub warnings: Vec<Warning>,
}

/// Something that works, at a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Index of the redirect.
    pub redirect: usize,
    /// What it is.
    pub message: String,
}

/// What iptables cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsayable {
    /// To iptables, a `+` at the end means every interface whose name begins so.
    #[error(
        "iptables cannot tell interface `{0}` from others whose names begin with `{prefix}`, for to it the `+` is a wildcard",
        prefix = .0.as_str().trim_end_matches('+')
    )]
    Plus(IfName),
}

/// The chains and sets that make the kernel do what `policy` says. `with_sets`: whether
/// this router has ipset.
///
/// # Errors
/// Names what iptables cannot say.
pub fn render(policy: &Policy, with_sets: bool) -> Result<Rendered, Unsayable> {
    let mut whole = Rendered::default();
    if let Some(name) = patterns(policy)
        .into_iter()
        .find_map(|pattern| match pattern {
            IfPattern::Exact(name) if name.as_str().ends_with('+') => Some(name),
            // As long as a name can be: there is no room for a wildcard, nor need of one.
            IfPattern::Prefix(prefix) if prefix.len() >= INTERFACE_MAX && prefix.ends_with('+') => {
                IfName::new(&prefix).ok()
            }
            _ => None,
        })
    {
        return Err(Unsayable::Plus(name));
    }
    for family in Family::ALL {
        let used = policy
            .redirects
            .iter()
            .any(|redirect| !redirect.servers.is_empty_of(family));
        if !used {
            continue;
        }
        let mut renderer = Renderer {
            policy,
            model: Model::new(policy),
            family,
            with_sets,
            chains: BTreeMap::new(),
            towards: BTreeMap::new(),
            takers: BTreeMap::new(),
            closer: BTreeMap::new(),
            new: BTreeMap::new(),
            lookouts: BTreeMap::new(),
            sets: BTreeMap::new(),
            warnings: BTreeMap::new(),
        };
        let hooks = renderer.build();
        let ruleset = Ruleset {
            chains: renderer.chains,
            hooks,
        };
        whole.rulesets.insert(family, ruleset);
        whole.sets.extend(renderer.sets.into_values());
        whole.warnings.extend(renderer.warnings.into_values());
    }
    whole.sets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(whole)
}

/// How the servers of a redirect are tested.
#[derive(Clone)]
enum Servers {
    /// A test for each; `None` where every address is meant, which needs none.
    Each(Vec<Option<IpNet>>),
    /// One look into this set.
    Set(String),
    /// Too many for a test each in a chain that other packets pass too.
    Chain(Vec<IpNet>),
}

/// How the excepted clients of a redirect are tested.
#[derive(Clone)]
enum Exceptions {
    None,
    /// Every client is: the redirect takes nobody.
    All,
    One(IpNet),
    Set(String),
    Chain(Vec<IpNet>),
}

/// A redirect that may take a packet.
struct Taking<'p> {
    index: usize,
    redirect: &'p Redirect,
    appliance: &'p Appliance,
    lookout: Lookout,
}

/// How a redirect's servers and excepted clients are told.
#[derive(Clone)]
struct Lookout {
    servers: Servers,
    exceptions: Exceptions,
}

impl Lookout {
    /// Whether it takes more than one rule to tell, so that chains of its own are needed.
    fn is_closer(&self) -> bool {
        matches!(self.servers, Servers::Chain(_)) || !self.exceptions.singly().is_empty()
    }
}

impl Exceptions {
    /// The test that an address is none of them, where one test says it.
    fn test(&self, side: Side) -> Option<Match> {
        match self {
            Self::One(network) => Some(Match::Address {
                side,
                negated: true,
                network: *network,
            }),
            Self::Set(set) => Some(Match::InSet {
                side,
                negated: true,
                set: set.clone(),
            }),
            Self::None | Self::All | Self::Chain(_) => None,
        }
    }

    /// Those that must be tested one after the other.
    fn singly(&self) -> &[IpNet] {
        match self {
            Self::Chain(networks) => networks,
            _ => &[],
        }
    }
}

struct Renderer<'p> {
    policy: &'p Policy,
    model: Model<'p>,
    family: Family,
    with_sets: bool,
    chains: BTreeMap<String, Vec<Rule>>,
    /// The chain that marks packets for each appliance.
    towards: BTreeMap<usize, String>,
    /// The chain that takes a packet for a redirect.
    takers: BTreeMap<usize, String>,
    /// The chain that looks closer, by redirect and where it leads.
    closer: BTreeMap<(usize, String), String>,
    /// The rule that looks at what no client sent and no connection is known of, by the
    /// appliances it may be from; none where there is nothing to look for.
    new: BTreeMap<Vec<usize>, Option<Rule>>,
    /// By redirect, for to name a set of many networks takes its time.
    lookouts: BTreeMap<usize, Lookout>,
    sets: BTreeMap<String, Set>,
    /// By redirect, so that each is said once.
    warnings: BTreeMap<usize, Warning>,
}

impl<'p> Renderer<'p> {
    fn build(&mut self) -> Vec<Hook> {
        for (index, appliance) in self.model.appliances() {
            let chain = self.reserve("to", appliance.name.as_str());
            // Its counter is known by the mark: a comment would be one more test of each packet.
            let mark = Rule::new(Vec::new(), Target::SetPacketMark(appliance.mark));
            self.chains.insert(chain.clone(), vec![mark]);
            self.towards.insert(index, chain);
        }
        let mut hooks = Vec::new();
        if self.model.is_sealed() {
            let unsealed = self.seal();
            hooks.push(hook("FORWARD", unsealed, FORWARD_CHAIN));
        }
        self.input_hook();
        hooks.push(hook("INPUT", Vec::new(), INPUT_CHAIN));
        let mut marked = self.settled(&[]);
        let new = self.new_or_invalid("", &[], |_| false);
        marked.extend(new);
        self.chains.insert(MARKED_CHAIN.to_owned(), marked);
        self.prerouting();
        hooks.push(hook("PREROUTING", Vec::new(), PREROUTING_CHAIN));
        hooks
    }

    /// A name that no other chain has, cut where it is too long.
    fn reserve(&mut self, kind: &str, what: &str) -> String {
        let plain: String = what
            .chars()
            .map(|c| match c {
                c if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') => c,
                _ => '_',
            })
            .collect();
        let mut number = 1;
        loop {
            let suffix = match number {
                1 => String::new(),
                number => format!("-{number}"),
            };
            let mut name = format!("{PREFIX}{kind}-{plain}");
            name.truncate(name.trim_end_matches('-').len());
            name.truncate(CHAIN_NAME_MAX - suffix.len());
            name.push_str(&suffix);
            if !self.chains.contains_key(&name) {
                self.chains.insert(name.clone(), Vec::new());
                return name;
            }
            number += 1;
        }
    }

    /// The input interface: exact names first, then the patterns, the longest first, for
    /// they may hold one another.
    fn prerouting(&mut self) {
        let mut rules = Vec::new();
        for pattern in patterns(self.policy) {
            if !self.concerns(&pattern) {
                continue;
            }
            let chain = self.reserve("in", plain(&pattern));
            self.input(&chain, &pattern);
            rules.push(Rule::new(vec![input(&pattern)], Target::Goto(chain)));
        }
        rules.push(Rule::new(Vec::new(), Target::Goto(MARKED_CHAIN.to_owned())));
        self.chains.insert(PREROUTING_CHAIN.to_owned(), rules);
    }

    /// Whether packets of this family that come in there are treated unlike others.
    fn concerns(&self, pattern: &IfPattern) -> bool {
        self.model
            .appliances()
            .any(|(_, appliance)| IfPattern::Exact(appliance.interface.clone()) == *pattern)
            || self.policy.redirects.iter().any(|redirect| {
                !redirect.servers.is_empty_of(self.family)
                    && (means(&redirect.client_interfaces, pattern)
                        || redirect.snat && means(&redirect.server_interfaces, pattern))
            })
    }

    /// The rules for packets that came in on an interface meant by `pattern`.
    fn input(&mut self, chain: &str, pattern: &IfPattern) {
        let mut wholly = Vec::new();
        let mut by_mac = Vec::new();
        for (index, appliance) in self.model.appliances() {
            if Model::wholly_from(appliance, pattern) {
                wholly.push(index);
            } else if IfPattern::Exact(appliance.interface.clone()) == *pattern {
                by_mac.push((index, appliance));
            }
        }
        let mut rules = Vec::new();
        for (index, appliance) in by_mac {
            let own = self.reserve("mac", appliance.name.as_str());
            rules.extend(
                appliance
                    .macs
                    .iter()
                    .map(|mac| Rule::new(vec![Match::Mac(*mac)], Target::Goto(own.clone()))),
            );
            let mut from = wholly.clone();
            from.push(index);
            self.rules_for(own, Vec::new(), pattern, &from);
        }
        self.rules_for(chain.to_owned(), rules, pattern, &wholly);
    }

    /// Rules 0 to 4b, after `rules`, for packets that came in so and are from the appliances
    /// `from`.
    fn rules_for(
        &mut self,
        chain: String,
        mut rules: Vec<Rule>,
        pattern: &IfPattern,
        from: &[usize],
    ) {
        if !from.is_empty() {
            let none = Mark {
                value: 0,
                mask: self.policy.options.mark_mask,
            };
            rules.push(Rule::new(Vec::new(), Target::SetPacketMark(none)));
        }
        rules.extend(self.settled(from));
        let mut dialled = BTreeMap::new();
        for (index, redirect, appliance) in self.redirects() {
            if redirect.snat && from.contains(&redirect.appliance) {
                rules.extend(self.dialled(index, redirect, appliance));
                dialled.insert(redirect.appliance, appliance.mark);
            }
        }
        rules.extend(dialled.into_values().map(|mark| {
            let done = vec![Match::ConnectionMark(mark)];
            Rule::new(done, Target::Return)
        }));
        let picks_up =
            |redirect: &Redirect| redirect.snat && means(&redirect.server_interfaces, pattern);
        let new = self.new_or_invalid(plain(pattern), from, picks_up);
        let takers: Vec<_> = self
            .others(from)
            .into_iter()
            .filter(|(_, redirect, _)| means(&redirect.client_interfaces, pattern))
            .map(|(index, redirect, appliance)| Taking {
                index,
                redirect,
                appliance,
                lookout: self.lookout(index, redirect),
            })
            .filter(|taking| !matches!(taking.lookout.exceptions, Exceptions::All))
            .collect();
        if self.policy.options.established == Established::Keep && !takers.is_empty() {
            let goes_on = vec![Match::Connection(State::Known)];
            rules.push(Rule::new(goes_on, Target::Return));
            let in_mid_stream = vec![
                Match::Tcp,
                Match::Flags(Flags::NoPureSyn),
                Match::Connection(State::New),
            ];
            // Where one rule says all of it, that asks for no such packet.
            let on = match &new {
                Some(rule) if *rule == new_or_invalid(rule.target.clone()) => rule.target.clone(),
                _ => Target::Return,
            };
            rules.push(Rule::new(in_mid_stream, on));
        }
        if takers.iter().any(|taking| taking.lookout.is_closer()) {
            let unknown = vec![Match::Connection(State::Unknown)];
            let chain = self.unknown(plain(pattern), from, &takers);
            rules.push(Rule::new(unknown, Target::Goto(chain)));
        }
        for taking in &takers {
            let taker = self.taker(taking);
            rules.extend(self.lead(Side::Destination, taking, &taker, Target::Goto));
            if taking.lookout.is_closer() {
                let done = vec![Match::ConnectionMark(taking.appliance.mark)];
                rules.push(Rule::new(done, Target::Return));
            }
        }
        rules.extend(new);
        self.chains.insert(chain, rules);
    }

    /// Rules 4 and 4b for what is from the appliances `from`.
    fn settled(&self, from: &[usize]) -> Vec<Rule> {
        let mut rules: Vec<_> = self
            .model
            .appliances()
            .filter_map(|(index, appliance)| {
                let target = if from.contains(&index) {
                    Target::Return
                } else {
                    Target::Goto(self.towards.get(&index)?.clone())
                };
                let marked = Match::ConnectionMark(appliance.mark);
                Some(Rule::new(vec![marked], target))
            })
            .collect();
        rules.extend(self.model.left_alone().map(|mark| {
            let goes_on = vec![
                Match::Tcp,
                Match::Flags(Flags::NoPureSyn),
                Match::ConnectionMark(mark),
            ];
            Rule::new(goes_on, Target::Return)
        }));
        rules
    }

    /// The rules that lead to the chain `to` what goes to the servers of a redirect, or comes from
    /// them; those that do not look closer, so as `directly` says.
    fn lead(
        &mut self,
        side: Side,
        taking: &Taking<'p>,
        to: &str,
        directly: impl Fn(String) -> Target,
    ) -> Vec<Rule> {
        let (redirect, lookout) = (taking.redirect, &taking.lookout);
        let clients = match side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        let target = if lookout.is_closer() {
            Target::Jump(self.closer(side, taking, to))
        } else {
            directly(to.to_owned())
        };
        tests(side, redirect, &lookout.servers)
            .into_iter()
            .map(|mut tests| {
                tests.extend(lookout.exceptions.test(clients));
                Rule::new(tests, target.clone())
            })
            .collect()
    }

    /// The chain that looks at servers and clients one by one.
    fn closer(&mut self, side: Side, taking: &Taking<'p>, to: &str) -> String {
        let (redirect, lookout) = (taking.redirect, &taking.lookout);
        let key = (taking.index, to.to_owned());
        if let Some(chain) = self.closer.get(&key) {
            return chain.clone();
        }
        let clients = match side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        let singly = lookout.exceptions.singly().iter();
        let mut rules: Vec<_> = singly
            .map(|client| Rule::new(vec![is(clients, *client)], Target::Return))
            .collect();
        let goto = |tests| Rule::new(tests, Target::Goto(to.to_owned()));
        match &lookout.servers {
            Servers::Chain(networks) => {
                rules.extend(networks.iter().map(|server| goto(vec![is(side, *server)])));
            }
            _ => rules.push(goto(Vec::new())),
        }
        let chain = self.reserve("for", redirect.name.as_str());
        self.chains.insert(chain.clone(), rules);
        self.closer.insert(key, chain.clone());
        chain
    }

    /// Rules 1 and 4a for what has no connection: the last that takes it has it, so they stand in
    /// reverse.
    fn unknown(&mut self, what: &str, from: &[usize], takers: &[Taking<'p>]) -> String {
        let mut rules = Vec::new();
        let others = self.others(from);
        rules.extend(self.invalid(&others).map(|mut rule| {
            if let Target::Goto(chain) = rule.target {
                rule.target = Target::Jump(chain);
            }
            rule
        }));
        for taking in takers.iter().rev() {
            let taker = self.taker(taking);
            rules.extend(self.lead(Side::Destination, taking, &taker, Target::Jump));
        }
        let chain = self.reserve("unknown", what);
        self.chains.insert(chain.clone(), rules);
        chain
    }

    /// The redirects whose packets those from the appliances `from` may be.
    fn others(&self, from: &[usize]) -> Vec<(usize, &'p Redirect, &'p Appliance)> {
        self.redirects()
            .into_iter()
            .filter(|(_, redirect, _)| !from.contains(&redirect.appliance))
            .collect()
    }

    /// Rules 3, where `picks_up` says so, 3a and 4a, for what is from the appliances `from`: the
    /// rule that leads to the chain that holds them, if there are any. `what` is part of its name.
    fn new_or_invalid(
        &mut self,
        what: &str,
        from: &[usize],
        picks_up: impl Fn(&Redirect) -> bool,
    ) -> Option<Rule> {
        let others = self.others(from);
        let picked_up: Vec<_> = others
            .iter()
            .copied()
            .filter(|(_, redirect, _)| picks_up(redirect))
            .collect();
        if picked_up.is_empty()
            && let Some(shared) = self.new.get(from)
        {
            return shared.clone();
        }
        let mut rules = Vec::new();
        rules.extend(self.picked_up(&picked_up));
        rules.extend(self.opened(&others));
        rules.extend(self.invalid(&others));
        let rule = match rules.as_slice() {
            [] => None,
            // It looks at flags before it asks for the state, which costs bystanders less.
            [only] if picked_up.is_empty() => Some(only.clone()),
            _ => {
                let chain = self.reserve("new", what);
                self.chains.insert(chain.clone(), rules);
                Some(new_or_invalid(Target::Goto(chain)))
            }
        };
        if picked_up.is_empty() {
            self.new.insert(from.to_vec(), rule.clone());
        }
        rule
    }

    /// Rule 3.
    fn picked_up(&mut self, redirects: &[(usize, &'p Redirect, &'p Appliance)]) -> Option<Rule> {
        let mut to = BTreeMap::new();
        for (index, redirect, appliance) in redirects {
            let chain = self.reserve("pick", redirect.name.as_str());
            let comment = Match::Comment(Leg::Servers.comment(redirect));
            let rules = vec![
                Rule::new(vec![comment], Target::SetConnectionMark(appliance.mark)),
                Rule::new(Vec::new(), self.send(redirect)),
            ];
            self.chains.insert(chain.clone(), rules);
            to.insert(*index, chain);
        }
        let chain = self.answers("pick", redirects, true, |index, _| to.get(&index).cloned())?;
        let tests = vec![
            Match::Tcp,
            Match::Flags(Flags::NoPureSyn),
            Match::Connection(State::New),
        ];
        Some(Rule::new(tests, Target::Goto(chain)))
    }

    /// Rule 3a.
    fn opened(&mut self, redirects: &[(usize, &'p Redirect, &'p Appliance)]) -> Option<Rule> {
        let alone = self.model.left_alone()?;
        if redirects.is_empty() {
            return None;
        }
        let to = format!("{PREFIX}alone");
        let rules = vec![Rule::new(Vec::new(), Target::SetConnectionMark(alone))];
        self.chains.insert(to.clone(), rules);
        let chain = self.answers("opened", redirects, false, |_, _| Some(to.clone()))?;
        let tests = vec![
            Match::Tcp,
            Match::Flags(Flags::PureSyn),
            Match::Connection(State::New),
        ];
        Some(Rule::new(tests, Target::Goto(chain)))
    }

    /// Rule 4a.
    fn invalid(&mut self, redirects: &[(usize, &'p Redirect, &'p Appliance)]) -> Option<Rule> {
        let concerned: Vec<_> = redirects
            .iter()
            .copied()
            .filter(|(_, redirect, _)| redirect.snat)
            .collect();
        let towards = self.towards.clone();
        let chain = self.answers("invalid", &concerned, true, |_, redirect| {
            towards.get(&redirect.appliance).cloned()
        })?;
        let tests = vec![
            Match::Tcp,
            Match::Flags(Flags::NeitherSynNorRst),
            Match::Connection(State::Invalid),
        ];
        Some(Rule::new(tests, Target::Goto(chain)))
    }

    /// A chain that leads what comes from the servers of these redirects to the chain `to`, with
    /// `exceptions` not what goes to excepted clients; none if there is nothing to lead. The first
    /// redirect has it, and so its rules stand last and overrule.
    fn answers(
        &mut self,
        kind: &str,
        redirects: &[(usize, &'p Redirect, &'p Appliance)],
        exceptions: bool,
        to: impl Fn(usize, &Redirect) -> Option<String>,
    ) -> Option<String> {
        let mut rules = Vec::new();
        for &(index, redirect, appliance) in redirects.iter().rev() {
            let mut lookout = self.lookout(index, redirect);
            if !exceptions {
                lookout.exceptions = Exceptions::None;
            }
            let Some(to) = to(index, redirect) else {
                continue;
            };
            if matches!(lookout.exceptions, Exceptions::All) {
                continue;
            }
            let taking = Taking {
                index,
                redirect,
                appliance,
                lookout,
            };
            rules.extend(self.lead(Side::Source, &taking, &to, Target::Jump));
        }
        (!rules.is_empty()).then(|| {
            let chain = self.reserve(kind, "");
            self.chains.insert(chain.clone(), rules);
            chain
        })
    }

    /// On to the appliance of `redirect`.
    fn send(&self, redirect: &Redirect) -> Target {
        self.towards
            .get(&redirect.appliance)
            .map_or(Target::Return, |chain| Target::Goto(chain.clone()))
    }

    /// The chain that takes a packet for a redirect.
    fn taker(&mut self, taking: &Taking<'p>) -> String {
        if let Some(taker) = self.takers.get(&taking.index) {
            return taker.clone();
        }
        let redirect = taking.redirect;
        let unknown = vec![
            Match::Connection(State::Unknown),
            Match::Comment(unknown_comment(redirect)),
        ];
        let comment = Match::Comment(Leg::Clients.comment(redirect));
        let set = Target::SetConnectionMark(taking.appliance.mark);
        let rules = vec![
            Rule::new(unknown, self.send(redirect)),
            Rule::new(vec![comment], set),
            Rule::new(Vec::new(), self.send(redirect)),
        ];
        let taker = self.reserve("on", redirect.name.as_str());
        self.chains.insert(taker.clone(), rules);
        self.takers.insert(taking.index, taker.clone());
        taker
    }

    /// Rule 2.
    fn dialled(
        &mut self,
        index: usize,
        redirect: &'p Redirect,
        appliance: &'p Appliance,
    ) -> Vec<Rule> {
        let servers = self.lookout(index, redirect).servers;
        let tracked = Match::Connection(State::Tracked);
        let comment = Match::Comment(Leg::Appliance.comment(redirect));
        let set = Target::SetConnectionMark(appliance.mark);
        let last = |mut tests: Vec<Match>| {
            tests.extend([tracked.clone(), comment.clone()]);
            Rule::new(tests, set.clone())
        };
        let tests = tests(Side::Destination, redirect, &servers);
        let Servers::Chain(networks) = &servers else {
            return tests.into_iter().map(last).collect();
        };
        let networks = networks.iter();
        let rules = networks.map(|server| last(vec![is(Side::Destination, *server)]));
        let rules = rules.collect();
        let chain = self.reserve("ct", redirect.name.as_str());
        self.chains.insert(chain.clone(), rules);
        let jump = |tests| Rule::new(tests, Target::Jump(chain.clone()));
        tests.into_iter().map(jump).collect()
    }

    /// Rule 6.
    fn input_hook(&mut self) {
        let chain = self.reserve("router", "");
        let none = Mark {
            value: 0,
            mask: self.policy.options.mark_mask,
        };
        let rules = vec![
            Rule::new(Vec::new(), Target::SetPacketMark(none)),
            Rule::new(
                Vec::new(),
                Target::SetConnectionMark(self.model.alone_or_unmarked()),
            ),
        ];
        self.chains.insert(chain.clone(), rules);
        let appliances = self.model.appliances();
        let rules = appliances.flat_map(|(_, appliance)| {
            [
                Match::ConnectionMark(appliance.mark),
                Match::PacketMark(appliance.mark),
            ]
            .map(|marked| Rule::new(vec![Match::Tcp, marked], Target::Goto(chain.clone())))
        });
        let rules = rules.collect();
        self.chains.insert(INPUT_CHAIN.to_owned(), rules);
    }

    /// Rule 5. Returns the tests that what it concerns passes: what leaves towards the appliance,
    /// if there is but one, need not be looked at.
    fn seal(&mut self) -> Vec<Match> {
        let appliances: Vec<_> = self.model.appliances().collect();
        let elsewhere = |appliance: &Appliance| {
            vec![Match::Output {
                negated: true,
                interface: IfPattern::Exact(appliance.interface.clone()),
            }]
        };
        let all = match appliances.as_slice() {
            [(_, only)] => elsewhere(only),
            _ => Vec::new(),
        };
        let mut rules = Vec::new();
        for (_, appliance) in appliances {
            let from = input(&IfPattern::Exact(appliance.interface.clone()));
            let mut own = Vec::new();
            if appliance.macs.is_empty() {
                own.push(Rule::new(vec![from.clone()], Target::Return));
            }
            own.extend(
                appliance
                    .macs
                    .iter()
                    .map(|mac| Rule::new(vec![from.clone(), Match::Mac(*mac)], Target::Return)),
            );
            let comment = Match::Comment(seal_comment(appliance));
            own.push(Rule::new(vec![comment], Target::Drop));
            let chain = self.reserve("seal", appliance.name.as_str());
            self.chains.insert(chain.clone(), own);
            // Of several, the packet may bear the mark of one and its connection that of another.
            let (tests, target) = if all.is_empty() {
                (elsewhere(appliance), Target::Jump(chain))
            } else {
                (Vec::new(), Target::Goto(chain))
            };
            for marked in [
                Match::ConnectionMark(appliance.mark),
                Match::PacketMark(appliance.mark),
            ] {
                let mut tests = tests.clone();
                tests.push(marked);
                rules.push(Rule::new(tests, target.clone()));
            }
        }
        self.chains.insert(FORWARD_CHAIN.to_owned(), rules);
        all
    }

    /// The redirects that have servers of this family.
    fn redirects(&self) -> Vec<(usize, &'p Redirect, &'p Appliance)> {
        self.model
            .redirects()
            .filter(|(_, redirect, _)| !redirect.servers.is_empty_of(self.family))
            .collect()
    }

    fn lookout(&mut self, index: usize, redirect: &Redirect) -> Lookout {
        if let Some(known) = self.lookouts.get(&index) {
            return known.clone();
        }
        let lookout = Lookout {
            servers: self.servers(index, redirect),
            exceptions: self.exceptions(redirect),
        };
        self.lookouts.insert(index, lookout.clone());
        lookout
    }

    fn prefixes(&self, networks: &Networks) -> Vec<IpNet> {
        match self.family {
            Family::V4 => networks
                .v4
                .iter()
                .flat_map(Range::<u32>::prefixes)
                .collect(),
            Family::V6 => networks
                .v6
                .iter()
                .flat_map(Range::<u128>::prefixes)
                .collect(),
        }
    }

    fn servers(&mut self, index: usize, redirect: &Redirect) -> Servers {
        let prefixes = self.prefixes(&redirect.servers);
        if prefixes.iter().any(|network| network.prefix_len() == 0) {
            return Servers::Each(vec![None]);
        }
        if prefixes.len() <= HANDFUL {
            return Servers::Each(prefixes.into_iter().map(Some).collect());
        }
        if self.with_sets {
            return Servers::Set(self.set(redirect, prefixes));
        }
        if prefixes.len() > MANY_RULES {
            let message = format!(
                "redirect `{}` has {} server networks and this router has no ipset, so each is a rule that packets to its ports must pass",
                redirect.name,
                prefixes.len()
            );
            let redirect = index;
            self.warnings.insert(index, Warning { redirect, message });
        }
        Servers::Chain(prefixes)
    }

    fn exceptions(&mut self, redirect: &Redirect) -> Exceptions {
        let prefixes = self.prefixes(&redirect.except_clients);
        match *prefixes.as_slice() {
            [] => Exceptions::None,
            [network] if network.prefix_len() == 0 => Exceptions::All,
            [network] => Exceptions::One(network),
            _ if self.with_sets => Exceptions::Set(self.set(redirect, prefixes)),
            _ => Exceptions::Chain(prefixes),
        }
    }

    /// A set that is named by what is in it. Other networks make another set, so that rules
    /// and networks change over in one commit, and no rule ever sees half a set.
    fn set(&mut self, redirect: &Redirect, mut networks: Vec<IpNet>) -> String {
        networks.sort_unstable();
        let mut digest = Sha256::new();
        for network in &networks {
            match network.addr() {
                IpAddr::V4(v4) => digest.update(v4.octets()),
                IpAddr::V6(v6) => digest.update(v6.octets()),
            }
            digest.update([network.prefix_len()]);
        }
        let mut suffix = String::from("-");
        for byte in digest.finalize().iter().take(4) {
            let _ = write!(suffix, "{byte:02x}");
        }
        let mut name = format!("{PREFIX}{}", redirect.name);
        // One byte is left for the name of a spare, with which it may be swapped.
        name.truncate(SET_NAME_MAX - 1 - suffix.len());
        name.push_str(&suffix);
        let set = Set {
            name: name.clone(),
            family: self.family,
            networks,
            foreign_kind: None,
            others: Vec::new(),
        };
        self.sets.insert(name.clone(), set);
        name
    }
}

fn new_or_invalid(target: Target) -> Rule {
    let unknown = vec![Match::Connection(State::NewOrInvalid)];
    Rule::new(unknown, target)
}

fn hook(chain: &str, tests: Vec<Match>, to: &str) -> Hook {
    Hook {
        chain: chain.to_owned(),
        before: 0,
        rule: Rule::new(tests, Target::Jump(to.to_owned())),
    }
}

fn means(wide: &[IfPattern], pattern: &IfPattern) -> bool {
    wide.iter().any(|wide| wide.covers(pattern))
}

/// An interface or pattern as part of a chain's name.
fn plain(pattern: &IfPattern) -> &str {
    match pattern {
        IfPattern::Exact(name) => name.as_str(),
        IfPattern::Prefix(prefix) => prefix,
    }
}

fn input(pattern: &IfPattern) -> Match {
    let interface = match pattern {
        IfPattern::Prefix(prefix) if prefix.len() >= INTERFACE_MAX => {
            IfName::new(prefix).map_or_else(|_| pattern.clone(), IfPattern::Exact)
        }
        _ => pattern.clone(),
    };
    Match::Input {
        negated: false,
        interface,
    }
}

fn is(side: Side, network: IpNet) -> Match {
    Match::Address {
        side,
        negated: false,
        network,
    }
}

/// The tests for a redirect's ports and, as far as they are tested here, servers: one list
/// for each rule that is needed.
fn tests(side: Side, redirect: &Redirect, servers: &Servers) -> Vec<Vec<Match>> {
    let addresses: Vec<Option<Match>> = match servers {
        Servers::Each(networks) => networks
            .iter()
            .map(|network| network.map(|network| is(side, network)))
            .collect(),
        Servers::Set(set) => vec![Some(Match::InSet {
            side,
            negated: false,
            set: set.clone(),
        })],
        Servers::Chain(_) => vec![None],
    };
    let ports = port_groups(redirect);
    let mut all = Vec::with_capacity(addresses.len() * ports.len());
    for address in addresses {
        for ports in &ports {
            let mut tests = vec![
                Match::Tcp,
                Match::Ports {
                    side,
                    ports: ports.clone(),
                },
            ];
            tests.extend(address.clone());
            all.push(tests);
        }
    }
    all
}

/// The ports of a redirect, as many at a time as one `multiport` takes.
fn port_groups(redirect: &Redirect) -> Vec<Vec<PortRange>> {
    let mut groups: Vec<Vec<PortRange>> = Vec::new();
    let mut used = MULTIPORT;
    for range in &redirect.ports {
        let slots = if range.first == range.last { 1 } else { 2 };
        match groups.last_mut() {
            Some(group) if used + slots <= MULTIPORT => {
                group.push(*range);
                used += slots;
            }
            _ => {
                groups.push(vec![*range]);
                used = slots;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::test_support::policy;

    fn redirecting(networks: &[String], ports: &str, interfaces: &str, options: &str) -> Policy {
        policy(&format!(
            r#"
            version = 1
            [appliance.an-appliance-with-a-long-name]
            address = ["10.30.0.2", "fd00:30::2"]
            interface = "sps0"
            [[redirect]]
            name = "remote-desktop-of-the-branches"
            client_interface = {interfaces}
            server_network = {networks:?}
            port = {ports}
            snat = true
            {options}
            "#
        ))
    }

    fn networks(count: usize) -> Vec<String> {
        let network = |at: usize| format!("10.20.{}.{}/32", at / 100, at % 100 * 2);
        (0..count).map(network).collect()
    }

    fn rules(rendered: &Rendered) -> impl Iterator<Item = &Rule> {
        let chains = rendered.rulesets.values().flat_map(|r| r.chains.values());
        chains.flatten()
    }

    #[test]
    fn names_fit_and_every_chain_that_is_led_to_is_there() {
        let interfaces = r#"["eth0", "ppp*", "ppp0", "ppp", "a-long-interfa*", "a-long-interfac"]"#;
        for options in [
            "",
            "except_client = [\"10.1.0.0/30\", \"10.2.0.0/30\"]\n[options]\nestablished = \"keep\"",
        ] {
            for (count, sets) in [(1, true), (300, true), (300, false)] {
                let policy = redirecting(&networks(count), "3389", interfaces, options);
                let rendered = render(&policy, sets).unwrap();
                let ruleset = &rendered.rulesets[&Family::V4];
                for name in ruleset.chains.keys() {
                    assert!(name.len() <= CHAIN_NAME_MAX, "{name}");
                    assert!(crate::iptables::is_ours(name), "{name}");
                }
                let mut led_to: BTreeSet<&str> =
                    [PREROUTING_CHAIN, FORWARD_CHAIN, INPUT_CHAIN].into();
                led_to.extend(rules(&rendered).filter_map(|rule| rule.target.chain()));
                let there: BTreeSet<&str> = ruleset.chains.keys().map(String::as_str).collect();
                assert_eq!(led_to, there);
                for set in &rendered.sets {
                    assert!(set.name.len() < SET_NAME_MAX, "{}", set.name);
                }
            }
        }
    }

    #[test]
    fn a_plus_at_the_end_is_a_wildcard_to_iptables() {
        let rendered = |interfaces: &[&str]| {
            let mut policy = redirecting(&networks(1), "22", "\"eth0\"", "");
            policy.redirects[0].client_interfaces = interfaces
                .iter()
                .map(|pattern| IfPattern::new(pattern).unwrap())
                .collect();
            render(&policy, true)
        };
        assert_eq!(
            rendered(&["tun+"]),
            Err(Unsayable::Plus(IfName::new("tun+").unwrap()))
        );
        // `tun+*` is all that begin with `tun+`, which iptables writes `tun++`.
        let words: Vec<_> = rules(&rendered(&["tun+*", "exactly15-chars*"]).unwrap())
            .flat_map(Rule::words)
            .collect();
        assert!(words.contains(&"tun++".to_owned()));
        assert!(words.contains(&"exactly15-chars".to_owned()));
    }

    #[test]
    fn a_multiport_takes_fifteen_numbers_and_a_range_counts_two() {
        let ports: Vec<String> = (0..20)
            .map(|at| format!("\"{}-{}\"", at * 10 + 1, at * 10 + 5))
            .collect();
        let ports = format!("[{}, 7]", ports.join(", "));
        let policy = redirecting(&networks(1), &ports, "\"eth0\"", "");
        let groups = port_groups(&policy.redirects[0]);
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 21);
        for group in &groups {
            let slots: usize = group
                .iter()
                .map(|range| if range.first == range.last { 1 } else { 2 })
                .sum();
            assert!(slots <= MULTIPORT);
        }
        assert_eq!(groups.concat(), policy.redirects[0].ports.as_slice());
    }

    #[test]
    fn many_networks_are_a_set_or_a_warning() {
        let of = |count, sets| {
            render(&redirecting(&networks(count), "22", "\"eth0\"", ""), sets).unwrap()
        };
        assert!(of(HANDFUL, true).sets.is_empty());
        let (one, other) = (of(300, true), of(301, true));
        assert_eq!((one.sets.len(), one.sets[0].networks.len()), (1, 300));
        assert_ne!(
            one.sets[0].name, other.sets[0].name,
            "another content, another name"
        );
        assert!(one.warnings.is_empty());
        assert!(of(MANY_RULES, false).warnings.is_empty());
        let many = of(MANY_RULES + 1, false);
        assert_eq!(many.warnings.len(), 1);
        assert!(many.warnings[0].message.contains("201 server networks"));
        // Once for rules 1, 2, 3a and 4a each, and other packets pass none of them.
        let busy: Vec<_> = many.rulesets[&Family::V4]
            .chains
            .iter()
            .filter(|(_, rules)| rules.len() > 100)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(busy.len(), 4, "{busy:?}");
    }

    #[test]
    fn all_addresses_need_no_test_and_no_set() {
        let mut policy = redirecting(&networks(1), "22", "\"eth0\"", "");
        policy.redirects[0].servers =
            Networks::merged(["0.0.0.0/1", "128.0.0.0/1"].map(|half| half.parse().unwrap()));
        let rendered = render(&policy, true).unwrap();
        assert!(rendered.sets.is_empty());
        assert!(!rules(&rendered).any(|rule| {
            rule.matches
                .iter()
                .any(|m| matches!(m, Match::Address { .. }))
        }));
        assert!(
            !rendered.rulesets.contains_key(&Family::V6),
            "nothing of IPv6 is redirected"
        );
    }

    #[test]
    fn the_seal_is_hooked_unless_sessions_may_pass() {
        let hooks = |options| {
            let rendered =
                render(&redirecting(&networks(1), "22", "\"eth0\"", options), true).unwrap();
            let hooks = &rendered.rulesets[&Family::V4].hooks;
            hooks
                .iter()
                .map(|hook| hook.chain.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(hooks(""), ["FORWARD", "INPUT", "PREROUTING"]);
        assert_eq!(
            hooks("[options]\non_appliance_down = \"bypass\""),
            ["INPUT", "PREROUTING"]
        );
    }

    #[test]
    fn what_leaves_towards_the_only_appliance_is_not_looked_at_again() {
        let sealing = |policy: &Policy| {
            let rendered = render(policy, true).unwrap();
            let ruleset = &rendered.rulesets[&Family::V4];
            let hook = ruleset.hooks.iter().find(|hook| hook.chain == "FORWARD");
            let words = |rule: &Rule| rule.words().join(" ");
            let inner: Vec<_> = ruleset.chains[FORWARD_CHAIN].iter().map(words).collect();
            (words(&hook.unwrap().rule), inner)
        };
        let mut policy = redirecting(&networks(1), "22", "\"eth0\"", "");
        let (hook, inner) = sealing(&policy);
        assert_eq!(hook, "! -o sps0 -j scb-redirect-seal");
        assert!(inner.iter().all(|rule| !rule.contains("-o")), "{inner:?}");
        // Of two, a packet may bear one's mark and its connection the other's.
        let mut other = policy.appliances[0].clone();
        other.interface = IfName::new("sps1").unwrap();
        other.mark.value = 2;
        policy.appliances.push(other);
        policy.redirects.push(Redirect {
            appliance: 1,
            ..policy.redirects[0].clone()
        });
        let (hook, inner) = sealing(&policy);
        assert_eq!(hook, "-j scb-redirect-seal");
        let to_each = |name: &str| inner.iter().filter(|rule| rule.contains(name)).count();
        assert_eq!(
            (to_each("! -o sps0 "), to_each("! -o sps1 ")),
            (2, 2),
            "{inner:?}"
        );
    }
}
