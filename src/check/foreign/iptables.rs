//! Reads what `iptables-save` prints.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Base, Chain, Effect, Hook, NewAddress, NewDestination, OUR_CHAINS, Rule, Ruleset, State, Step,
    System, Test, Which,
};
use crate::net::{Family, IfPattern, Networks, Ports, Range};

/// Reads all tables that `COMMAND-save` printed. Of a chain that it does not know the hook of, the rules
/// are kept all the same: others jump there.
#[must_use]
pub fn read(text: &str, system: System, family: Family, command: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.trim().clone_into(&mut table);
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let (name, policy) = (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
            );
            ruleset.chains.push(Chain {
                system,
                command: command.to_owned(),
                table_family: match family {
                    Family::V4 => "ip".to_owned(),
                    Family::V6 => "ip6".to_owned(),
                },
                table: table.clone(),
                name: name.to_owned(),
                base: base(&table, name, policy == "DROP"),
                rules: Vec::new(),
            });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = words(rule);
            let Some((chain, rest)) = words.split_first() else {
                continue;
            };
            let found = ruleset
                .chains
                .iter_mut()
                .find(|known| known.table == table && known.name == *chain);
            if let Some(found) = found {
                let handle = u64::try_from(found.rules.len()).unwrap_or(0) + 1;
                found.rules.push(Rule {
                    text: format!("-A {rule}"),
                    handle,
                    steps: steps(chain, rest),
                });
            }
        }
    }
    ruleset
}

/// The tables that are printed, with the family that nft calls them by.
#[must_use]
pub fn tables(text: &str, family: Family) -> Vec<(String, String)> {
    let family = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    text.lines()
        .filter_map(|line| line.strip_prefix('*'))
        .map(|name| (family.to_owned(), name.trim().to_owned()))
        .collect()
}

/// Whether iptables itself hangs a chain of this name somewhere.
#[must_use]
pub fn is_built_in(chain: &str) -> bool {
    matches!(
        chain,
        "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING"
    )
}

/// Where a built-in chain hangs (`include/uapi/linux/netfilter_ipv4.h`).
fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let priority = match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Postrouting) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    };
    Some(Base {
        hook,
        priority,
        drops,
        nat: table == "nat",
    })
}

/// Splits a rule into words, as `iptables-save` quotes them.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

fn steps(chain: &str, words: &[String]) -> Vec<Step> {
    let mut reader = Reader {
        is_before_routing: matches!(chain, "PREROUTING" | "OUTPUT"),
        words,
        at: 0,
        steps: Vec::new(),
    };
    while reader.at < words.len() {
        reader.option();
    }
    reader.steps
}

struct Reader<'a> {
    /// Whether the chain is one in which NAT is that of destinations.
    is_before_routing: bool,
    words: &'a [String],
    at: usize,
    steps: Vec<Step>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> &'a str {
        let word = self.words.get(self.at).map_or("", String::as_str);
        self.at += 1;
        word
    }

    fn push(&mut self, negated: bool, test: Option<Test>) {
        self.steps.push(match test {
            None | Some(Test::Unknown) => Step::If(Test::Unknown),
            Some(test) if negated => Step::Unless(test),
            Some(test) => Step::If(test),
        });
    }

    /// Options of an extension up to the next one that is not a value.
    fn skip_values(&mut self) {
        while self
            .words
            .get(self.at)
            .is_some_and(|word| !word.starts_with('-') && word != "!")
        {
            self.at += 1;
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm an option, nothing else")]
    fn option(&mut self) {
        let mut word = self.next();
        let negated = word == "!";
        if negated {
            word = self.next();
        }
        match word {
            "-i" => {
                let test = interface(self.next()).map(Test::Input);
                self.push(negated, test);
            }
            "-o" => {
                let test = interface(self.next()).map(Test::Output);
                self.push(negated, test);
            }
            "-s" => {
                let test = network(self.next()).map(Test::Source);
                self.push(negated, test);
            }
            "-d" => {
                let test = network(self.next()).map(Test::Destination);
                self.push(negated, test);
            }
            "-p" => {
                let test = match self.next() {
                    "all" | "0" => return,
                    name => protocol(name).map(|number| Test::Protocol(vec![number])),
                };
                self.push(negated, test);
            }
            "-m" => {
                let name = self.next();
                // Only of these do we know all options.
                let readable = [
                    "tcp",
                    "udp",
                    "multiport",
                    "comment",
                    "mark",
                    "connmark",
                    "conntrack",
                    "state",
                    "mac",
                    "addrtype",
                    "iprange",
                    "rpfilter",
                    "icmp6",
                    "icmp",
                ];
                if !readable.contains(&name) {
                    self.push(false, None);
                    self.skip_options();
                } else if name == "rpfilter" {
                    self.rpfilter();
                }
            }
            "--comment" => _ = self.next(),
            "--dport" | "--dports" | "--destination-ports" => {
                let test = ports(self.next()).map(Test::DestinationPort);
                self.push(negated, test);
            }
            "--sport" | "--sports" | "--source-ports" => {
                let test = ports(self.next()).map(Test::SourcePort);
                self.push(negated, test);
            }
            "--ctstate" | "--state" => {
                let states = self.next().split(',').map(state).collect();
                self.push(negated, Some(Test::State(states)));
            }
            "--mark" => {
                let connection = self.before_is("connmark");
                let test = mark(self.next()).map(|(value, mask)| {
                    let values = vec![value];
                    if connection {
                        Test::ConnectionMark { mask, values }
                    } else {
                        Test::PacketMark { mask, values }
                    }
                });
                self.push(negated, test);
            }
            "--mac-source" => {
                let test = self.next().parse().ok().map(|mac| Test::Mac(vec![mac]));
                self.push(negated, test);
            }
            "--dst-type" => {
                let test = match self.next() {
                    "LOCAL" => Test::ToRouter,
                    _ => Test::Never,
                };
                self.push(negated, Some(test));
            }
            "--src-range" | "--dst-range" => {
                let range = self
                    .next()
                    .split_once('-')
                    .and_then(|(first, last)| Some(Networks::merged(address_range(first, last)?)));
                let test = match word {
                    "--src-range" => range.map(Test::Source),
                    _ => range.map(Test::Destination),
                };
                self.push(negated, test);
            }
            "--tcp-flags" => {
                let (mask, set) = (tcp_flags(self.next()), tcp_flags(self.next()));
                let test = mask
                    .zip(set)
                    .map(|(mask, set)| Test::TcpFlags { mask, set });
                self.push(negated, test);
            }
            "--icmpv6-type" => {
                let kind = self.next();
                let test = kind
                    .split('/')
                    .next()
                    .and_then(|number| number.parse().ok())
                    .map(|number| Test::IcmpType(vec![number]));
                self.push(negated, test);
            }
            "-j" | "-g" => {
                let target = self.next();
                let effects = self.target(word == "-g", target);
                self.steps.extend(effects.into_iter().map(Step::Do));
                self.at = self.words.len();
            }
            _ => {
                self.push(false, None);
                self.skip_values();
            }
        }
    }

    /// Whether the last `-m` or `-j` before this option named `extension`.
    fn before_is(&self, extension: &str) -> bool {
        let before = self.words.get(..self.at).unwrap_or_default();
        before
            .windows(2)
            .rev()
            .find_map(|pair| match pair {
                [flag, name] if flag == "-m" || flag == "-j" => Some(name == extension),
                _ => None,
            })
            .unwrap_or(false)
    }

    /// Past all options of an extension that we do not know.
    fn skip_options(&mut self) {
        while let Some(word) = self.words.get(self.at) {
            if matches!(word.as_str(), "-m" | "-j" | "-g") {
                return;
            }
            self.at += 1;
        }
    }

    fn rpfilter(&mut self) {
        let (mut loose, mut marked, mut inverted) = (false, false, false);
        while let Some(word) = self.words.get(self.at) {
            match word.as_str() {
                "--loose" => loose = true,
                "--validmark" => marked = true,
                "--invert" => inverted = true,
                "--accept-local" => {}
                _ => break,
            }
            self.at += 1;
        }
        self.push(!inverted, Some(Test::NoReversePath { loose, marked }));
    }

    fn target(&mut self, goes: bool, target: &str) -> Vec<Effect> {
        let rest = self.words.get(self.at..).unwrap_or_default();
        let value = |option: &str| {
            let at = rest.iter().position(|word| word == option)?;
            rest.get(at + 1).map(String::as_str)
        };
        let has = |option: &str| rest.iter().any(|word| word == option);
        let constant = |which: Which, (value, mask): (u32, u32)| Effect::Mark {
            which,
            keep: !mask,
            take: 0,
            constant: value,
        };
        match target {
            "ACCEPT" => vec![Effect::Accept],
            "DROP" => vec![Effect::Drop],
            "REJECT" => vec![Effect::Reject],
            "RETURN" => vec![Effect::Return],
            "NOTRACK" => vec![Effect::Untrack],
            "CT" if has("--notrack") => vec![Effect::Untrack],
            "CT" | "LOG" | "NFLOG" | "TCPMSS" | "CLASSIFY" | "TOS" | "DSCP" | "AUDIT" | "TRACE"
            | "SET" | "CHECKSUM" | "ECN" | "TTL" | "HL" => Vec::new(),
            "FLOWOFFLOAD" => vec![Effect::Offload(String::new())],
            "NETMAP" if self.is_before_routing => {
                let to = value("--to").map_or(NewDestination::UNKNOWN, new_destination);
                vec![Effect::DestinationNat(to)]
            }
            "MASQUERADE" | "SNAT" | "NETMAP" => vec![Effect::SourceNat],
            "DNAT" => {
                let to = value("--to-destination").map_or(NewDestination::UNKNOWN, new_destination);
                vec![Effect::DestinationNat(to)]
            }
            "REDIRECT" => vec![Effect::DestinationNat(NewDestination {
                address: NewAddress::Router,
                port: value("--to-ports").and_then(first_port),
            })],
            "TPROXY" => vec![Effect::DestinationNat(NewDestination::UNKNOWN)],
            "MARK" => match value("--set-xmark").and_then(mark) {
                Some(change) => vec![constant(Which::Packet, change)],
                None => vec![Effect::Unknown],
            },
            "CONNMARK" => {
                let masks = || {
                    let mask = |option| match value(option) {
                        Some(text) => mark(text).map(|(value, _)| value),
                        None => Some(u32::MAX),
                    };
                    Some((mask("--nfmask")?, mask("--ctmask")?))
                };
                let made = if let Some(change) = value("--set-xmark").and_then(mark) {
                    Some(constant(Which::Connection, change))
                } else if has("--save-mark") {
                    masks().map(|(packet, connection)| Effect::Mark {
                        which: Which::Connection,
                        keep: !connection,
                        take: packet,
                        constant: 0,
                    })
                } else if has("--restore-mark") {
                    masks().map(|(packet, connection)| Effect::Mark {
                        which: Which::Packet,
                        keep: !packet,
                        take: connection,
                        constant: 0,
                    })
                } else {
                    None
                };
                vec![made.unwrap_or(Effect::Unknown)]
            }
            ours if ours == OUR_CHAINS || ours.starts_with("scb-redirect-") => vec![Effect::Ours],
            // iptables prints targets in capitals, but chains may be, too; a target that is no
            // chain is found out when it is jumped to.
            chain if goes => vec![Effect::Goto(chain.to_owned())],
            chain => vec![Effect::Jump(chain.to_owned())],
        }
    }
}

/// `10.20.0.2`, `10.20.0.2-10.20.0.4:3389`, `[fd00::2]:80-90`, `:8080`.
fn new_destination(text: &str) -> NewDestination {
    let (address, port) = if let Some((address, port)) =
        (text.strip_prefix('[')).and_then(|rest| rest.split_once(']'))
    {
        (address, port.strip_prefix(':'))
    } else {
        match text.split_once(':') {
            Some((address, port)) if !port.contains(':') => (address, Some(port)),
            // IPv6 without a port.
            _ => (text, None),
        }
    };
    let networks = match address.split_once('-') {
        Some((first, last)) => address_range(first, last).map(Networks::merged),
        None => network(address),
    };
    NewDestination {
        address: match networks {
            _ if address.is_empty() => NewAddress::Same,
            Some(networks) => NewAddress::Among(networks),
            None => NewAddress::Unknown,
        },
        port: port.and_then(first_port),
    }
}

/// The first of `80-90`, of `80-90/80`, or `80`.
fn first_port(text: &str) -> Option<u16> {
    text.split(['-', '/']).next()?.parse().ok()
}

fn interface(name: &str) -> Option<Vec<IfPattern>> {
    let pattern = match name.strip_suffix('+') {
        Some(prefix) => format!("{prefix}*"),
        None => name.to_owned(),
    };
    Some(vec![IfPattern::new(&pattern).ok()?])
}

fn network(text: &str) -> Option<Networks> {
    let network: IpNet = match text.parse() {
        Ok(network) => network,
        Err(_) => text.parse::<IpAddr>().ok()?.into(),
    };
    Some(Networks::merged([network]))
}

/// All addresses from `first` to `last`, as prefixes.
#[must_use]
pub fn address_range(first: &str, last: &str) -> Option<Vec<IpNet>> {
    match (first.parse().ok()?, last.parse().ok()?) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            let (first, last) = (first.to_bits(), last.to_bits());
            Some(Range { first, last }.prefixes())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            let (first, last) = (first.to_bits(), last.to_bits());
            Some(Range { first, last }.prefixes())
        }
        _ => None,
    }
}

/// A protocol's number, of those that rules name most.
#[must_use]
pub fn protocol(name: &str) -> Option<u8> {
    Some(match name {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "icmpv6" | "ipv6-icmp" => 58,
        "sctp" => 132,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "igmp" => 2,
        "ipip" | "ipencap" => 4,
        "ipv6" => 41,
        "ospf" => 89,
        "vrrp" => 112,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

/// `0x1/0xff`, or `1`, which means all bits.
fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn ports(text: &str) -> Option<Ports> {
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        ranges.push(Range {
            first: first.parse().ok()?,
            last: last.parse().ok()?,
        });
    }
    Some(Ports::merged(ranges))
}

fn state(name: &str) -> State {
    match name {
        "NEW" => State::New,
        "ESTABLISHED" => State::Established,
        "UNTRACKED" => State::Untracked,
        "INVALID" => State::Invalid,
        _ => State::Other,
    }
}

/// A TCP flag's bit (RFC 9293, 3.1).
#[must_use]
pub fn tcp_flag(name: &str) -> Option<u8> {
    Some(match name.to_ascii_lowercase().as_str() {
        "fin" => 0x01,
        "syn" => 0x02,
        "rst" => 0x04,
        "psh" => 0x08,
        "ack" => 0x10,
        "urg" => 0x20,
        "ecn" => 0x40,
        "cwr" => 0x80,
        "none" => 0,
        "all" => 0x3f,
        _ => return None,
    })
}

fn tcp_flags(names: &str) -> Option<u8> {
    names
        .split(',')
        .try_fold(0, |flags, name| Some(flags | tcp_flag(name)?))
}
