//! Rules as words, and the input of `iptables-restore` and `ipset restore`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::{
    FORWARD_CHAIN, Frame, Hook, INPUT_CHAIN, Match, PREFIX, PREROUTING_CHAIN, Rule, Ruleset, Set,
    Side, Target,
};
use crate::net::{Family, IfPattern, PortRange};

/// Networks that `hash:net` takes unless told otherwise.
const DEFAULT_MAXELEM: usize = 65_536;
/// Buckets that it has unless told otherwise; a set that outgrows them is built anew, again and again.
const DEFAULT_HASHSIZE: usize = 1_024;

impl Rule {
    /// The rule as the words that follow `-A CHAIN`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for found in &self.matches {
            found.words(&mut words);
        }
        let mut add = |parts: &[&str]| words.extend(parts.iter().map(|part| (*part).to_owned()));
        match &self.target {
            Target::None => {}
            Target::Jump(chain) => add(&["-j", chain]),
            Target::Goto(chain) => add(&["-g", chain]),
            Target::Return => add(&["-j", "RETURN"]),
            Target::Drop => add(&["-j", "DROP"]),
            Target::SetConnectionMark(mark) => {
                add(&["-j", "CONNMARK", "--set-xmark", &mark.to_string()]);
            }
            Target::SetPacketMark(mark) => add(&["-j", "MARK", "--set-xmark", &mark.to_string()]),
            Target::Foreign(verbatim) => words.extend(verbatim.iter().cloned()),
        }
        words
    }
}

impl Match {
    fn words(&self, words: &mut Vec<String>) {
        let mut add = |parts: &[&str]| words.extend(parts.iter().map(|part| (*part).to_owned()));
        let not = |negated: &bool| if *negated { &["!"][..] } else { &[] };
        match self {
            Self::Address {
                side,
                negated,
                network,
            } => {
                add(not(negated));
                add(&[
                    match side {
                        Side::Source => "-s",
                        Side::Destination => "-d",
                    },
                    &network.to_string(),
                ]);
            }
            Self::Input { negated, interface } => {
                add(not(negated));
                add(&["-i", &interface_word(interface)]);
            }
            Self::Output { negated, interface } => {
                add(not(negated));
                add(&["-o", &interface_word(interface)]);
            }
            Self::Tcp => add(&["-p", "tcp"]),
            Self::Flags(flags) => {
                let (negated, asked, set) = flags.words();
                add(&["-m", "tcp"]);
                add(not(&negated));
                add(&["--tcp-flags", asked, set]);
            }
            Self::Ports { side, ports } => {
                let (extension, option) = match (ports.len(), side) {
                    (1, Side::Source) => ("tcp", "--sport"),
                    (1, Side::Destination) => ("tcp", "--dport"),
                    (_, Side::Source) => ("multiport", "--sports"),
                    (_, Side::Destination) => ("multiport", "--dports"),
                };
                add(&["-m", extension, option, &ports_word(ports)]);
            }
            Self::InSet { side, negated, set } => {
                add(&["-m", "set"]);
                add(not(negated));
                let side = match side {
                    Side::Source => "src",
                    Side::Destination => "dst",
                };
                add(&["--match-set", set, side]);
            }
            Self::Connection(state) => add(&["-m", "conntrack", "--ctstate", state.words()]),
            Self::ConnectionMark(mark) => add(&["-m", "connmark", "--mark", &mark.to_string()]),
            Self::PacketMark(mark) => add(&["-m", "mark", "--mark", &mark.to_string()]),
            Self::Mac(mac) => add(&["-m", "mac", "--mac-source", &mac.to_string()]),
            Self::Comment(comment) => add(&["-m", "comment", "--comment", comment]),
            Self::Foreign(verbatim) => words.extend(verbatim.iter().cloned()),
        }
    }
}

fn interface_word(interface: &IfPattern) -> String {
    match interface {
        IfPattern::Exact(name) => name.to_string(),
        IfPattern::Prefix(prefix) => format!("{prefix}+"),
    }
}

fn ports_word(ports: &[PortRange]) -> String {
    let words: Vec<_> = ports
        .iter()
        .map(|range| {
            if range.first == range.last {
                range.first.to_string()
            } else {
                format!("{}:{}", range.first, range.last)
            }
        })
        .collect();
    words.join(",")
}

/// A word as `iptables-restore` reads it, and `ipset restore`.
fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains([' ', '\t', '"', '\\', '\'', '\n']);
    if plain {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in word.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

fn line(command: &[&str], rule: &Rule) -> String {
    let words = rule.words();
    let all = command
        .iter()
        .copied()
        .chain(words.iter().map(String::as_str));
    all.map(quoted).collect::<Vec<_>>().join(" ")
}

/// The steps from one ruleset to another, in an order that works.
struct Steps<'r> {
    /// Hooks that go, in order.
    unhooked: Vec<&'r Hook>,
    /// Chains that are new.
    created: Vec<&'r str>,
    /// Chains that are there and hold something else.
    refilled: Vec<&'r str>,
    /// Chains that go.
    removed: Vec<&'r str>,
    /// What new and refilled chains are to hold.
    filled: Vec<(&'r str, &'r [Rule])>,
    /// Hooks that come, each with its place in its chain, counted from 1.
    hooked: Vec<(usize, &'r Hook)>,
}

impl<'r> Steps<'r> {
    fn new(from: &'r Ruleset, to: &'r Ruleset) -> Self {
        let mut steps = Self {
            unhooked: Vec::new(),
            created: Vec::new(),
            refilled: Vec::new(),
            removed: Vec::new(),
            filled: Vec::new(),
            hooked: Vec::new(),
        };
        for (name, rules) in &to.chains {
            match from.chains.get(name) {
                Some(found) if found == rules => continue,
                Some(_) => steps.refilled.push(name),
                None => steps.created.push(name),
            }
            steps.filled.push((name, rules));
        }
        steps.removed = from
            .chains
            .keys()
            .filter(|name| !to.chains.contains_key(*name))
            .map(String::as_str)
            .collect();
        if from.hooks != to.hooks {
            steps.unhooked = from.hooks.iter().collect();
            let mut ours_before: BTreeMap<&str, usize> = BTreeMap::new();
            for hook in &to.hooks {
                let before = ours_before.entry(&hook.chain).or_default();
                steps.hooked.push((hook.before + *before + 1, hook));
                *before += 1;
            }
        }
        steps
    }
}

/// The input that makes `iptables-restore --noflush` turn `from` into `to`, all or nothing.
#[must_use]
pub fn restore_input(from: &Ruleset, to: &Ruleset) -> String {
    let steps = Steps::new(from, to);
    let mut input = String::from("*mangle\n");
    // A chain that is there is emptied by this, one that is not is made.
    for chain in [&steps.created, &steps.refilled, &steps.removed]
        .into_iter()
        .flatten()
    {
        let _ = writeln!(input, ":{chain} - [0:0]");
    }
    for hook in steps.unhooked.iter().rev() {
        let _ = writeln!(input, "{}", line(&["-D", &hook.chain], &hook.rule));
    }
    for (chain, rules) in &steps.filled {
        for rule in *rules {
            let _ = writeln!(input, "{}", line(&["-A", chain], rule));
        }
    }
    for (place, hook) in &steps.hooked {
        let place = place.to_string();
        let _ = writeln!(input, "{}", line(&["-I", &hook.chain, &place], &hook.rule));
    }
    for chain in &steps.removed {
        let _ = writeln!(input, "-X {}", quoted(chain));
    }
    input.push_str("COMMIT\n");
    input
}

/// The input that makes `iptables-restore --noflush` of the nft variant make base chains.
#[must_use]
pub fn frame_input<'c>(chains: impl IntoIterator<Item = &'c String>) -> String {
    let mut input = String::from("*mangle\n");
    for chain in chains {
        let _ = writeln!(input, ":{chain} ACCEPT [0:0]");
    }
    input.push_str("COMMIT\n");
    input
}

/// The input that makes `ipset restore` create `set` under `name`, and fill it.
#[must_use]
pub fn set_input(set: &Set, name: &str) -> String {
    let family = match set.family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    let mut input = match &set.foreign_kind {
        Some(kind) => format!("create {name} {kind}"),
        None => format!("create {name} hash:net family {family}"),
    };
    if set.foreign_kind.is_none() {
        if let Some(size) = hash_size(set) {
            let _ = write!(input, " hashsize {size}");
        }
        if let Some(most) = most_elements(set) {
            let _ = write!(input, " maxelem {most}");
        }
    }
    input.push('\n');
    for network in &set.networks {
        let _ = writeln!(input, "add {name} {}", element(network));
    }
    for other in &set.others {
        let _ = writeln!(input, "add {name} {other}");
    }
    input
}

/// How many buckets a set has from the beginning, where it would have to grow into more.
#[must_use]
pub fn hash_size(set: &Set) -> Option<usize> {
    let count = set.networks.len();
    (count > DEFAULT_HASHSIZE).then(|| count.next_power_of_two())
}

/// How many networks it is to take, where that is more than usual.
#[must_use]
pub fn most_elements(set: &Set) -> Option<usize> {
    let count = set.networks.len();
    (count > DEFAULT_MAXELEM).then_some(count)
}

/// A network as `ipset` prints it: hosts without their prefix length.
fn element(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// One step of the same change as a person would make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A remark on what follows.
    Remark(String),
    /// A program and its arguments.
    Run(Vec<String>),
    /// A program with its standard input.
    Feed(Vec<String>, String),
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// The commands that turn `from` into `to`; `iptables` is the command of the family.
///
/// Building up and taking down are single commands in an order in which no half-built rule
/// is ever in force. A change of rules that are in force is one commit of
/// `iptables-restore`, for no order of single commands would be free of a gap.
#[must_use]
pub fn commands(iptables: &str, from: &Ruleset, to: &Ruleset) -> Vec<Command> {
    let steps = Steps::new(from, to);
    let run = |rest: &[&str], rule: Option<&Rule>| {
        let mut words = words([iptables, "-t", "mangle"]);
        words.extend(rest.iter().map(|word| (*word).to_owned()));
        words.extend(rule.map(Rule::words).unwrap_or_default());
        Command::Run(words)
    };
    let mut commands = Vec::new();
    if !from.is_empty() && !to.is_empty() {
        commands.push(Command::Remark(
            "change our chains, and nothing else, in one commit".to_owned(),
        ));
        commands.push(Command::Feed(
            vec![format!("{iptables}-restore"), "--noflush".to_owned()],
            restore_input(from, to),
        ));
        return commands;
    }
    let remark = |text: &str| Command::Remark(text.to_owned());
    if !steps.created.is_empty() {
        commands.push(remark("our own chains; nothing leads into them yet"));
        commands.extend(steps.created.iter().map(|chain| run(&["-N", chain], None)));
    }
    for (chain, rules) in &steps.filled {
        commands.extend(purpose(chain).map(Command::Remark));
        commands.extend(rules.iter().map(|rule| run(&["-A", chain], Some(rule))));
    }
    // FORWARD's comes first: the seal before the marks, so that no marked packet is unsealed.
    if !steps.hooked.is_empty() {
        commands.push(remark("from here on they are in force"));
    }
    for (place, hook) in &steps.hooked {
        let place = place.to_string();
        commands.push(run(&["-I", &hook.chain, &place], Some(&hook.rule)));
    }
    if !steps.unhooked.is_empty() {
        commands.push(remark("from here on our chains are out of force"));
    }
    for hook in steps.unhooked.iter().rev() {
        commands.push(run(&["-D", &hook.chain], Some(&hook.rule)));
    }
    if !steps.removed.is_empty() {
        commands.push(remark(
            "remove them, emptied first, for they lead into each other",
        ));
        commands.extend(steps.removed.iter().map(|chain| run(&["-F", chain], None)));
        commands.extend(steps.removed.iter().map(|chain| run(&["-X", chain], None)));
    }
    commands
}

/// The commands that turn one frame into another; `iptables` is the command of the family.
#[must_use]
pub fn frame_commands(iptables: &str, family: Family, from: &Frame, to: &Frame) -> Vec<Command> {
    let (made, gone) = (to.without(from), from.without(to));
    let mut commands = Vec::new();
    if !made.is_empty() {
        commands.push(Command::Feed(
            vec![format!("{iptables}-restore"), "--noflush".to_owned()],
            frame_input(&made.chains),
        ));
    }
    let family = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    for chain in &gone.chains {
        commands.push(Command::Run(words([
            "nft", "delete", "chain", family, "mangle", chain,
        ])));
    }
    if gone.table {
        commands.push(Command::Run(words([
            "nft", "delete", "table", family, "mangle",
        ])));
    }
    commands
}

/// What our rendering has a chain for, as its name says.
fn purpose(chain: &str) -> Option<String> {
    if chain == PREROUTING_CHAIN {
        return Some("where a packet comes in decides which rules it meets".to_owned());
    }
    if chain == FORWARD_CHAIN {
        return Some(
            "the seal: what is marked leaves towards its appliance or not at all".to_owned(),
        );
    }
    if chain == INPUT_CHAIN {
        return Some("what is delivered to the router itself goes to no appliance".to_owned());
    }
    let (kind, what) = match chain.strip_prefix(PREFIX)?.split_once('-') {
        Some((kind, what)) => (kind, what),
        None => (chain.strip_prefix(PREFIX)?, ""),
    };
    Some(match kind {
        "in" => format!("what comes in on {what}"),
        "mac" => format!("what has the MAC address of appliance {what}"),
        "for" => format!("whether it is for redirect {what}, at a closer look"),
        "on" => format!("what redirect {what} takes"),
        "ct" => format!("connections of redirect {what}"),
        "marked" => "what comes in elsewhere: it goes on as its connection does".to_owned(),
        "unknown" => "what has no connection: the last of these that takes it has it".to_owned(),
        "new" => "what no client sent and no connection is known of".to_owned(),
        "pick" => format!("answers to clients of redirect {what}, first seen in mid-stream"),
        "opened" => "sessions that servers open".to_owned(),
        "alone" => "their connections go on as they are".to_owned(),
        "invalid" => "answers of servers that fit no connection".to_owned(),
        "router" => "the router's own sessions: unmarked, and left alone from now on".to_owned(),
        "to" => format!("what is sent to appliance {what}"),
        "seal" => format!("what bears the mark of appliance {what}"),
        _ => return None,
    })
}

/// The commands that turn one set into another.
#[must_use]
pub fn set_commands(from: Option<&Set>, to: Option<&Set>) -> Vec<Command> {
    let mut commands = Vec::new();
    match (from, to) {
        (None, Some(set)) => commands.push(Command::Feed(
            words(["ipset", "restore"]),
            set_input(set, &set.name),
        )),
        (Some(_), Some(set)) => {
            let spare = spare_name(&set.name);
            commands.push(Command::Feed(
                words(["ipset", "restore"]),
                set_input(set, &spare),
            ));
            commands.push(Command::Run(words(["ipset", "swap", &spare, &set.name])));
            commands.push(Command::Run(words(["ipset", "destroy", &spare])));
        }
        (Some(set), None) => {
            commands.push(Command::Run(words(["ipset", "destroy", &set.name])));
        }
        (None, None) => {}
    }
    commands
}

/// The name of a set that is built beside `name` and then swapped with it.
#[must_use]
pub fn spare_name(name: &str) -> String {
    format!("{name}~")
}
