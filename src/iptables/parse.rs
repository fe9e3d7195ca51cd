//! Reads what `iptables-save` and `ipset save` print.
//!
//! Strict where it matters: a line that is none of the few kinds that these programs print
//! is an error, and so is output that ends early. Inside a rule, what we do not know is
//! kept verbatim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Flags, Hook, Match, Rule, Ruleset, Set, Side, State, Target, Variant, Version, is_ours,
};
use crate::net::{Family, IfPattern, Mark, PortRange, Ranges};

/// What `iptables-save` printed, as far as it concerns us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Ours in `mangle`.
    pub ours: Ruleset,
    /// Whether others hold rules, chains or refusing policies in any table.
    pub others: bool,
    /// Those chains of `mangle` that hold something of others, or are others'.
    pub busy: BTreeSet<String>,
    /// How often each rule of ours that is [`Counted`] matched, in order.
    pub counters: Vec<Counter>,
}

/// By what a rule is known whose matches count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counted {
    /// Its comment.
    Comment(String),
    /// The mark that it gives to packets, without a comment: that would be one more test of
    /// every redirected packet.
    Sent(Mark),
}

impl Counted {
    fn of(rule: &Rule) -> Option<Self> {
        match (rule.comment(), &rule.target) {
            (Some(comment), _) => Some(Self::Comment(comment.to_owned())),
            (None, Target::SetPacketMark(mark)) => Some(Self::Sent(*mark)),
            _ => None,
        }
    }
}

/// How often a rule matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Which.
    pub rule: Counted,
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Output that is not what these programs print.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A line of no known kind.
    #[error("line {number} makes no sense: `{line}`")]
    Line {
        /// Counted from 1.
        number: usize,
        /// All of it.
        line: String,
    },
    /// The end of a table is missing.
    #[error("it ends in the middle of table `{0}`")]
    Cut(String),
    /// Made with nft, so that iptables cannot show it.
    #[error("table `{0}` holds rules made with `nft` that iptables cannot show")]
    Incompatible(String),
}

/// Reads the output of `iptables-save`, with or without `-c`, of one table or of all.
///
/// # Errors
/// Names the line that makes no sense.
pub fn saved(text: &str) -> Result<Saved, ParseError> {
    let mut saved = Saved::default();
    let mut table: Option<Table> = None;
    for (at, line) in text.lines().enumerate() {
        let senseless = || ParseError::Line {
            number: at + 1,
            line: line.to_owned(),
        };
        if let Some(remark) = line.strip_prefix('#') {
            if let Some((name, _)) = remark
                .strip_prefix(" Table `")
                .and_then(|rest| rest.split_once('\''))
                && remark.contains("incompatible")
            {
                if name == "mangle" {
                    return Err(ParseError::Incompatible(name.to_owned()));
                }
                saved.others = true;
            }
        } else if line.trim().is_empty() {
        } else if let Some(name) = line.strip_prefix('*') {
            if table.is_some() {
                return Err(senseless());
            }
            table = Some(Table::new(name.trim()));
        } else if line.trim() == "COMMIT" {
            table.take().ok_or_else(senseless)?.finish(&mut saved);
        } else {
            table
                .as_mut()
                .and_then(|table| table.line(line, &mut saved))
                .ok_or_else(senseless)?;
        }
    }
    match table {
        Some(table) => Err(ParseError::Cut(table.name)),
        None => Ok(saved),
    }
}

/// A table while it is being read.
struct Table {
    name: String,
    chains: BTreeSet<String>,
    ours: Ruleset,
    /// How many rules of others each chain has so far.
    others: BTreeMap<String, usize>,
}

impl Table {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            chains: BTreeSet::new(),
            ours: Ruleset::default(),
            others: BTreeMap::new(),
        }
    }

    /// One line between `*table` and `COMMIT`; `None` if it is of no known kind.
    fn line(&mut self, line: &str, saved: &mut Saved) -> Option<()> {
        let mangle = self.name == "mangle";
        if let Some(rest) = line.strip_prefix(':') {
            let mut parts = rest.split_whitespace();
            let (chain, policy) = (parts.next()?, parts.next()?);
            if mangle && is_ours(chain) && policy == "-" {
                self.ours.chains.insert(chain.to_owned(), Vec::new());
            } else if policy != "ACCEPT" {
                // A chain that somebody made, or a policy that somebody set.
                saved.others = true;
                if mangle {
                    saved.busy.insert(chain.to_owned());
                }
            }
            self.chains.insert(chain.to_owned());
            return Some(());
        }
        let (count, rest) = counted(line)?;
        let mut words = words(rest)?;
        if words.len() < 2 || words.first()? != "-A" {
            return None;
        }
        let chain = words.get(1)?.clone();
        if !self.chains.contains(&chain) {
            return None;
        }
        let rule = rule(&words.split_off(2), &self.chains);
        if let Some(rules) = self.ours.chains.get_mut(&chain) {
            if let (Some((packets, bytes)), Some(known)) = (count, Counted::of(&rule)) {
                saved.counters.push(Counter {
                    rule: known,
                    packets,
                    bytes,
                });
            }
            rules.push(rule);
            return Some(());
        }
        let others = self.others.entry(chain.clone()).or_default();
        if mangle && rule.target.chain().is_some_and(is_ours) {
            let before = *others;
            self.ours.hooks.push(Hook {
                chain,
                before,
                rule,
            });
        } else {
            *others += 1;
            saved.others = true;
            if mangle {
                saved.busy.insert(chain);
            }
        }
        Some(())
    }

    fn finish(mut self, saved: &mut Saved) {
        self.ours.hooks.sort_by(|a, b| a.chain.cmp(&b.chain));
        if self.name == "mangle" {
            saved.ours = self.ours;
        }
    }
}

/// Splits off `[packets:bytes]`, if it is there.
fn counted(line: &str) -> Option<(Option<(u64, u64)>, &str)> {
    let Some(rest) = line.strip_prefix('[') else {
        return Some((None, line));
    };
    let (count, rest) = rest.split_once("] ")?;
    let (packets, bytes) = count.split_once(':')?;
    Some((Some((packets.parse().ok()?, bytes.parse().ok()?)), rest))
}

/// Words as `iptables-restore` splits them: at blanks, save in double quotes, in which a
/// backslash takes the next character as it is (`add_param_to_argv` in `xshared.c`).
#[must_use]
pub fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(characters.next()?),
            ' ' | '\t' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

/// Reads the words of a rule after its chain.
fn rule(words: &[String], chains: &BTreeSet<String>) -> Rule {
    let mut matches = Vec::new();
    let mut rest = words;
    loop {
        if rest.is_empty() {
            return Rule::new(matches, Target::None);
        }
        if let Some(target) = target(rest, chains) {
            return Rule::new(matches, target);
        }
        let (found, after) = known(rest)
            .filter(|(_, after)| begins_anew(after))
            .unwrap_or_else(|| foreign(rest));
        matches.push(found);
        rest = after;
    }
}

/// Whether a new test or the target begins here, or the rule ends.
fn begins_anew(rest: &[String]) -> bool {
    let first = match rest.first().map(String::as_str) {
        Some("!") => rest.get(1).map(String::as_str),
        first => first,
    };
    first.is_none_or(|word| {
        matches!(
            word,
            "-s" | "-d" | "-i" | "-o" | "-p" | "-f" | "-m" | "-j" | "-g"
        )
    })
}

/// Everything up to where something new begins.
fn foreign(rest: &[String]) -> (Match, &[String]) {
    let skip = if rest.first().is_some_and(|word| word == "!") {
        2
    } else {
        1
    };
    let end = (skip..rest.len())
        .find(|at| rest.get(*at..).is_none_or(begins_anew))
        .unwrap_or(rest.len());
    let (found, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
    (Match::Foreign(found.to_vec()), after)
}

fn target(rest: &[String], chains: &BTreeSet<String>) -> Option<Target> {
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    let is_chain = |name: &&str| chains.contains(*name) || is_ours(name);
    Some(match *words.as_slice() {
        ["-j", "RETURN"] => Target::Return,
        ["-j", "DROP"] => Target::Drop,
        ["-j", chain] if is_chain(&chain) => Target::Jump(chain.to_owned()),
        ["-g", chain] => Target::Goto(chain.to_owned()),
        ["-j", "CONNMARK", "--set-xmark", value] if mark(value).is_some() => {
            Target::SetConnectionMark(mark(value)?)
        }
        ["-j", "MARK", "--set-xmark", value] if mark(value).is_some() => {
            Target::SetPacketMark(mark(value)?)
        }
        ["-j" | "-g", ..] => Target::Foreign(rest.to_vec()),
        _ => return None,
    })
}

/// A test that ours may have, and the words after it.
fn known(rest: &[String]) -> Option<(Match, &[String])> {
    let (negated, after) = match rest.split_first() {
        Some((first, after)) if first == "!" => (true, after),
        _ => (false, rest),
    };
    let (name, after) = after.split_first()?;
    let (value, after) = after.split_first()?;
    let found = match name.as_str() {
        "-s" => address(Side::Source, negated, value)?,
        "-d" => address(Side::Destination, negated, value)?,
        "-i" => Match::Input {
            negated,
            interface: interface(value)?,
        },
        "-o" => Match::Output {
            negated,
            interface: interface(value)?,
        },
        "-p" if value == "tcp" && !negated => Match::Tcp,
        "-m" if !negated => return extension(value, after),
        _ => return None,
    };
    Some((found, after))
}

/// A test of the extension `name`, and the words after it.
fn extension<'w>(name: &str, rest: &'w [String]) -> Option<(Match, &'w [String])> {
    let (negated, rest) = match rest.split_first() {
        Some((first, after)) if first == "!" => (true, after),
        _ => (false, rest),
    };
    let (option, rest) = rest.split_first()?;
    let (value, rest) = rest.split_first()?;
    Some(match (name, option.as_str(), negated) {
        ("tcp", "--sport", false) | ("multiport", "--sports", false) => {
            (ports(Side::Source, value)?, rest)
        }
        ("tcp", "--dport", false) | ("multiport", "--dports", false) => {
            (ports(Side::Destination, value)?, rest)
        }
        ("tcp", "--tcp-flags", negated) => {
            let (set, rest) = rest.split_first()?;
            let flags = Flags::ALL
                .into_iter()
                .find(|flags| flags.words() == (negated, value, set))?;
            (Match::Flags(flags), rest)
        }
        ("set", "--match-set", negated) => {
            let (side, rest) = rest.split_first()?;
            let side = match side.as_str() {
                "src" => Side::Source,
                "dst" => Side::Destination,
                _ => return None,
            };
            let set = value.clone();
            (Match::InSet { side, negated, set }, rest)
        }
        ("conntrack", "--ctstate", false) => {
            let state = State::ALL
                .into_iter()
                .find(|state| state.words() == value)?;
            (Match::Connection(state), rest)
        }
        ("connmark", "--mark", false) => (Match::ConnectionMark(mark(value)?), rest),
        ("mark", "--mark", false) => (Match::PacketMark(mark(value)?), rest),
        ("mac", "--mac-source", false) => (Match::Mac(value.parse().ok()?), rest),
        ("comment", "--comment", false) => (Match::Comment(value.clone()), rest),
        _ => return None,
    })
}

fn address(side: Side, negated: bool, text: &str) -> Option<Match> {
    let network = network(text)?;
    (network == network.trunc()).then_some(Match::Address {
        side,
        negated,
        network,
    })
}

fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn interface(text: &str) -> Option<IfPattern> {
    match text.strip_suffix('+') {
        Some(prefix) => IfPattern::new(&format!("{prefix}*")),
        None => IfPattern::new(text),
    }
    .ok()
}

fn ports(side: Side, text: &str) -> Option<Match> {
    let ports: Vec<PortRange> = text
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?).into())
        })
        .collect::<Option<_>>()?;
    // Only what merging would leave as it is can be ours.
    (Ranges::merged(ports.clone()).as_slice() == ports).then_some(Match::Ports { side, ports })
}

/// `0x1/0xff`, or `0x1` for all bits.
fn mark(text: &str) -> Option<Mark> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    Some(Mark {
        value: number(value)?,
        mask: number(mask)?,
    })
}

/// Reads what `iptables -V` prints: `iptables v1.8.9 (nf_tables)`. Before 1.8 it names no
/// variant, and is the legacy one.
#[must_use]
pub fn version(text: &str) -> Option<(Version, Variant)> {
    let mut parts = text.split_whitespace().skip(1);
    let mut numbers = parts.next()?.strip_prefix('v')?.split('.');
    let mut number = || numbers.next().map_or(Some(0), |part| part.parse().ok());
    let version = Version(number()?, number()?, number()?);
    let variant = match parts.next() {
        None | Some("(legacy)") => Variant::Legacy,
        Some("(nf_tables)") => Variant::Nft,
        Some(_) => return None,
    };
    Some((version, variant))
}

/// Reads the output of `ipset save`: the sets that are ours.
///
/// # Errors
/// Names the line that makes no sense.
pub fn sets(text: &str) -> Result<Vec<Set>, ParseError> {
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        set_line(line, &mut sets).ok_or_else(|| ParseError::Line {
            number: at + 1,
            line: line.to_owned(),
        })?;
    }
    let mut sets: Vec<_> = sets.into_values().collect();
    for set in &mut sets {
        set.networks.sort();
        set.others.sort();
    }
    Ok(sets)
}

fn set_line(line: &str, sets: &mut BTreeMap<String, Set>) -> Option<()> {
    let words = words(line)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["create", name, ref kind @ ..] if is_ours(name) => {
            let (family, is_ours) = set_kind(kind);
            let set = Set {
                name: name.to_owned(),
                family,
                networks: Vec::new(),
                foreign_kind: (!is_ours).then(|| kind.join(" ")),
                others: Vec::new(),
            };
            sets.insert(name.to_owned(), set);
        }
        ["add", name, ref element @ ..] if is_ours(name) => {
            let set = sets.get_mut(name)?;
            match *element {
                [text] if network(text).is_some() => set.networks.push(network(text)?),
                _ => set.others.push(element.join(" ")),
            }
        }
        ["create" | "add", _, ..] => {}
        _ => return None,
    }
    Some(())
}

/// The family of a set, and whether the set is of the kind of ours.
fn set_kind(words: &[&str]) -> (Family, bool) {
    let mut family = Family::V4;
    let mut is_ours = words.first() == Some(&"hash:net");
    let mut options = words.iter().skip(1);
    while let Some(option) = options.next() {
        match (*option, options.next().copied()) {
            ("family", Some("inet6")) => family = Family::V6,
            // How the kernel stores it; these do not change what is in it.
            ("family", Some("inet")) | ("hashsize" | "maxelem" | "bucketsize" | "initval", _) => {}
            _ => is_ours = false,
        }
    }
    (family, is_ours)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iptables::write;

    /// `iptables-nft-save -t mangle -c`, as version 1.8.9 printed it.
    const SAVED: &str = r#"# Generated by iptables-nft-save v1.8.9 (nf_tables) on Sun Nov 22 20:25:16 2026
*mangle
:PREROUTING ACCEPT [12:3400]
:FORWARD ACCEPT [0:0]
:scb-redirect - [0:0]
:scb-redirect-on-rdp - [0:0]
:theirs - [0:0]
[1:60] -A PREROUTING -m comment --comment "to \"scb-redirect\"" -j theirs
[2:120] -A PREROUTING -j scb-redirect
[0:0] -A PREROUTING -i ppp+ -j scb-redirect
[0:0] -A scb-redirect -d 10.20.0.0/24 ! -i eth+ -p tcp -m multiport --dports 22,5900:5910 -g scb-redirect-on-rdp
[0:0] -A scb-redirect -p tcp -m tcp --dport 3389 -m mac --mac-source 02:00:5E:00:00:01 -m connmark --mark 0x1 -j RETURN
[0:0] -A scb-redirect -p udp -m limit --limit 5/min -m comment --comment "-j x" -j ACCEPT
[7:420] -A scb-redirect-on-rdp -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -m comment --comment "rdp: from clients" -j CONNMARK --set-xmark 0x1/0xff
[0:0] -A scb-redirect-on-rdp -m set ! --match-set scb-redirect-rdp-00ff dst -m mark --mark 0x1/0xff -j LOG --log-prefix "a \\ b"
COMMIT
# Completed on Sun Nov 22 20:25:16 2026
"#;

    fn mark(value: u32, mask: u32) -> Mark {
        Mark { value, mask }
    }

    #[test]
    fn what_is_ours_is_read_and_what_is_not_is_kept_verbatim() {
        let saved = saved(SAVED).unwrap();
        assert!(saved.others);
        let busy: Vec<_> = saved.busy.iter().map(String::as_str).collect();
        assert_eq!(busy, ["PREROUTING", "theirs"]);
        assert_eq!(
            saved.counters.last(),
            Some(&Counter {
                rule: Counted::Comment("rdp: from clients".to_owned()),
                packets: 7,
                bytes: 420
            })
        );
        let hooks: Vec<_> = saved.ours.hooks.iter().map(|h| h.before).collect();
        assert_eq!(hooks, [1, 1], "others' rules before ours");
        let main = &saved.ours.chains["scb-redirect"];
        assert_eq!(
            main[0],
            Rule {
                matches: vec![
                    Match::Address {
                        side: Side::Destination,
                        negated: false,
                        network: "10.20.0.0/24".parse().unwrap()
                    },
                    Match::Input {
                        negated: true,
                        interface: IfPattern::Prefix("eth".to_owned())
                    },
                    Match::Tcp,
                    Match::Ports {
                        side: Side::Destination,
                        ports: vec![(22, 22).into(), (5900, 5910).into()]
                    },
                ],
                target: Target::Goto("scb-redirect-on-rdp".to_owned()),
            }
        );
        assert_eq!(
            main[1].matches[1..],
            [
                Match::ConnectionMark(mark(1, u32::MAX)),
                Match::Ports {
                    side: Side::Destination,
                    ports: vec![(3389, 3389).into()]
                },
                Match::Mac("02:00:5e:00:00:01".parse().unwrap()),
            ]
        );
        let foreign = ["-m", "limit", "--limit", "5/min"].map(str::to_owned);
        assert_eq!(main[2].matches[1], Match::Foreign(foreign.to_vec()));
        assert_eq!(
            main[2].target,
            Target::Foreign(vec!["-j".to_owned(), "ACCEPT".to_owned()])
        );
        let on = &saved.ours.chains["scb-redirect-on-rdp"];
        assert_eq!(on[0].target, Target::SetConnectionMark(mark(1, 0xff)));
        assert_eq!(
            on[1].target,
            Target::Foreign(
                ["-j", "LOG", "--log-prefix", "a \\ b"]
                    .map(str::to_owned)
                    .to_vec()
            )
        );
    }

    #[test]
    fn what_was_read_can_be_put_back() {
        let ours = saved(SAVED).unwrap().ours;
        let others = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:theirs - [0:0]\n";
        let input = write::restore_input(&Ruleset::default(), &ours);
        let appended = input
            .replace("*mangle\n", others)
            .replace("-I PREROUTING 2", "-A PREROUTING")
            .replace("-I PREROUTING 3", "-A PREROUTING");
        let again = saved(&appended).unwrap().ours;
        assert_eq!(again.chains, ours.chains);
        let rules = |ruleset: &Ruleset| {
            ruleset
                .hooks
                .iter()
                .map(|h| h.rule.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(rules(&again), rules(&ours));
    }

    #[test]
    fn a_name_within_another_name_or_comment_is_not_ours() {
        let text = "*mangle\n:PREROUTING ACCEPT [0:0]\n:my-scb-redirect - [0:0]\n:scb-redirected - [0:0]\n-A PREROUTING -m comment --comment scb-redirect -j my-scb-redirect\n-A PREROUTING -j scb-redirected\nCOMMIT\n";
        assert!(saved(text).unwrap().ours.is_empty());
        // Our name in another table is not ours, either.
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n:scb-redirect - [0:0]\n-A PREROUTING -j scb-redirect\nCOMMIT\n";
        let nat = saved(text).unwrap();
        assert!(nat.ours.is_empty() && nat.others);
    }

    #[test]
    fn empty_tables_are_nobodys_and_a_refusing_policy_is_somebodys() {
        let text = "*filter\n:INPUT ACCEPT [5:300]\n:FORWARD POLICY [0:0]\nCOMMIT\n";
        assert!(!saved(&text.replace("POLICY", "ACCEPT")).unwrap().others);
        assert!(saved(&text.replace("POLICY", "DROP")).unwrap().others);
    }

    #[test]
    fn what_makes_no_sense_is_an_error_that_names_the_line() {
        for (text, number) in [
            ("iptables: command not found\n", 1),
            ("*mangle\n:PREROUTING\nCOMMIT\n", 2),
            ("*mangle\n-A PREROUTING -j DROP\nCOMMIT\n", 2),
            ("*mangle\n:P ACCEPT [0:0]\n[x:0] -A P -j DROP\nCOMMIT\n", 3),
            (
                "*mangle\n:P ACCEPT [0:0]\n-A P -m comment --comment \"x\nCOMMIT\n",
                3,
            ),
            ("*mangle\n*nat\nCOMMIT\n", 2),
            ("COMMIT\n", 1),
        ] {
            match saved(text) {
                Err(ParseError::Line { number: found, .. }) => assert_eq!(found, number, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(
            saved("*mangle\n:P ACCEPT [0:0]\n"),
            Err(ParseError::Cut("mangle".to_owned()))
        );
        assert_eq!(
            saved("# Table `mangle' is incompatible, use 'nft' tool.\n"),
            Err(ParseError::Incompatible("mangle".to_owned()))
        );
    }

    #[test]
    fn versions_of_all_ages_are_told() {
        for (text, wanted) in [
            (
                "iptables v1.8.9 (nf_tables)\n",
                Some((Version(1, 8, 9), Variant::Nft)),
            ),
            (
                "ip6tables v1.8.10 (legacy)\n",
                Some((Version(1, 8, 10), Variant::Legacy)),
            ),
            (
                "iptables v1.4.21\n",
                Some((Version(1, 4, 21), Variant::Legacy)),
            ),
            (
                "iptables v1.8 (legacy)",
                Some((Version(1, 8, 0), Variant::Legacy)),
            ),
            ("iptables v1.9.0 (something)", None),
            ("BusyBox", None),
        ] {
            assert_eq!(version(text), wanted, "{text}");
        }
        assert!(!Version(1, 6, 1).can_wait());
    }

    #[test]
    fn our_sets_are_read_and_others_are_passed_over() {
        let text = "create scb-redirect-rdp-1 hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x0875573b\nadd scb-redirect-rdp-1 10.20.0.7\nadd scb-redirect-rdp-1 10.20.0.0/30\nadd scb-redirect-rdp-1 10.20.1.0/24 nomatch\ncreate theirs hash:ip,port family inet\nadd theirs 1.2.3.4,tcp:80\ncreate scb-redirect-x bitmap:port range 0-5\n";
        let sets = sets(text).unwrap();
        assert_eq!(sets.len(), 2);
        let networks: Vec<_> = sets[0].networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.20.0.0/30", "10.20.0.7/32"]);
        assert_eq!(sets[0].others, ["10.20.1.0/24 nomatch"]);
        assert_eq!(sets[0].foreign_kind, None);
        assert_eq!(
            sets[1].foreign_kind.as_deref(),
            Some("bitmap:port range 0-5")
        );
        assert!(super::sets("add scb-redirect-y 1.2.3.4\n").is_err());
        assert!(super::sets("ipset v7.17: error\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*", line in 0..20_usize) {
            let _ = saved(&text);
            let _ = sets(&text);
            let _ = version(&text);
            let _ = words(&text);
            // Something strange in the midst of something sound.
            let mut lines: Vec<&str> = SAVED.lines().collect();
            lines.insert(line.min(lines.len()), &text);
            let _ = saved(&lines.join("\n"));
        }

        #[test]
        fn no_words_make_it_panic_and_all_are_kept(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "!", "-s", "-d", "-i", "-o", "-p", "-m", "-j", "-g", "-f", "tcp", "mark", "--mark",
                    "0x1/0xff", "comment", "--comment", "multiport", "--dports", "22,1:5", "5,5", "set",
                    "--match-set", "src", "10.0.0.0/8", "10.0.0.1/8", "eth0", "+", "MARK", "--set-xmark",
                    "conntrack", "--ctstate", "NEW", "tcp", "--tcp-flags", "SYN", "a b", "\"", "",
                ]),
                0..12,
            )
        ) {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            let read = rule(&words, &BTreeSet::new());
            // What a rule holds is neither lost nor made up: read again it is the same.
            let again = rule(&read.words(), &BTreeSet::new());
            prop_assert_eq!(&again, &read);
            if read.matches.iter().any(|m| matches!(m, Match::Foreign(_))) {
                prop_assert_eq!(read.words().len(), words.len());
            }
        }
    }
}
