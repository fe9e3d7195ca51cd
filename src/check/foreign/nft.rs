//! Reads what `nft --json` and `nft --handle list ruleset` print.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;

use super::{
    Base, Chain, Effect, Flowtable, Hook, NewAddress, NewDestination, Rule, Ruleset, State, Step,
    System, Test, Which,
};
use crate::net::{Family, IfPattern, Networks, Ports, Range};

/// A table's family and name.
pub type TableName = (String, String);

/// The tables of a terse listing whose named sets matter: ours are read elsewhere, and can be
/// too long to be listed.
///
/// # Errors
/// If it is not what nft prints.
pub fn with_sets(json: &str) -> Result<BTreeSet<TableName>, String> {
    let objects = objects(json)?;
    let sets = objects
        .iter()
        .filter_map(|object| object.get("set").or_else(|| object.get("map")));
    Ok(sets
        .map(table_of)
        .filter(|table| table.1 != crate::nft::TABLE)
        .collect())
}

/// Reads a ruleset. `json` may be terse: the elements of sets stand in `listings` of single
/// tables then. Tables in `without` (iptables' own, which are read with `iptables-save`) are
/// left out. `text` is the same ruleset as people see it, with handles.
///
/// # Errors
/// If it is not what nft prints.
pub fn read(
    json: &str,
    listings: &[String],
    text: &str,
    without: &[TableName],
) -> Result<Ruleset, String> {
    let objects = objects(json)?;
    let texts = rule_texts(text);
    let mut reader = Reader {
        sets: BTreeMap::new(),
    };
    let mut ruleset = Ruleset::default();
    reader.learn(&objects);
    for listing in listings {
        reader.learn(&self::objects(listing)?);
    }
    for object in &objects {
        if let Some(chain) = object.get("chain") {
            let chain = chain_of(chain);
            let table = (chain.table_family.clone(), chain.table.clone());
            // A base chain of another name is nobody's but nft's, even in a table of theirs.
            let is_theirs = without.contains(&table)
                && (chain.base.is_none() || super::iptables::is_built_in(&chain.name));
            if !is_theirs {
                ruleset.chains.push(chain);
            }
        } else if let Some(flowtable) = object.get("flowtable") {
            ruleset.flowtables.push(Flowtable {
                table_family: string(flowtable, "family"),
                table: string(flowtable, "table"),
                name: string(flowtable, "name"),
                devices: strings(flowtable.get("dev")),
            });
        } else if let Some(rule) = object.get("rule") {
            let (table, chain) = (table_of(rule), string(rule, "chain"));
            let found = ruleset.chains.iter_mut().find(|known| {
                known.table_family == table.0 && known.table == table.1 && known.name == chain
            });
            if let Some(found) = found {
                let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or(0);
                let text = texts
                    .get(&(table.clone(), handle))
                    .cloned()
                    .unwrap_or_else(|| format!("rule {handle}"));
                found
                    .rules
                    .extend(reader.rules(&table, rule, handle, &text));
            }
        }
    }
    Ok(ruleset)
}

fn objects(json: &str) -> Result<Vec<Value>, String> {
    let mut parsed: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    match parsed.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Err("it holds no `nftables`".to_owned()),
    }
}

fn table_of(object: &Value) -> TableName {
    (string(object, "family"), string(object, "table"))
}

fn string(object: &Value, key: &str) -> String {
    object
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

/// Every rule as people see it, by table and handle.
fn rule_texts(text: &str) -> BTreeMap<(TableName, u64), String> {
    let mut texts = BTreeMap::new();
    let mut table = (String::new(), String::new());
    for line in text.lines() {
        let line = line.trim();
        let Some((rule, handle)) = line.rsplit_once(" # handle ") else {
            continue;
        };
        let mut words = rule.split_whitespace();
        if words.next() == Some("table") && rule.ends_with('{') {
            table = (
                words.next().unwrap_or_default().to_owned(),
                words.next().unwrap_or_default().to_owned(),
            );
        } else if let Ok(handle) = handle.parse() {
            texts.insert((table.clone(), handle), without_counts(rule));
        }
    }
    texts
}

/// Without `packets 1 bytes 2`, which differ from one listing to the next.
fn without_counts(rule: &str) -> String {
    let words: Vec<&str> = rule.split(' ').collect();
    let mut kept = Vec::with_capacity(words.len());
    let mut at = 0;
    while let Some(word) = words.get(at) {
        kept.push(*word);
        at += match (*word, words.get(at + 1)) {
            ("counter", Some(&"packets")) => 5,
            _ => 1,
        };
    }
    kept.join(" ")
}

fn chain_of(chain: &Value) -> Chain {
    let hook = match chain.get("hook").and_then(Value::as_str) {
        Some("prerouting") => Some(Hook::Prerouting),
        Some("forward") => Some(Hook::Forward),
        Some("output") => Some(Hook::Output),
        Some("postrouting") => Some(Hook::Postrouting),
        _ => None,
    };
    let priority = chain.get("prio").and_then(Value::as_i64).unwrap_or(0);
    Chain {
        system: System::Nft,
        command: "nft".to_owned(),
        table_family: string(chain, "family"),
        table: string(chain, "table"),
        name: string(chain, "name"),
        base: hook.map(|hook| Base {
            hook,
            priority: i32::try_from(priority).unwrap_or(0),
            drops: chain.get("policy").and_then(Value::as_str) == Some("drop"),
            nat: chain.get("type").and_then(Value::as_str) == Some("nat"),
        }),
        rules: Vec::new(),
    }
}

struct Reader {
    sets: BTreeMap<(TableName, String), Vec<Value>>,
}

impl Reader {
    /// Takes in what sets and maps hold.
    fn learn(&mut self, objects: &[Value]) {
        for set in objects
            .iter()
            .filter_map(|object| object.get("set").or_else(|| object.get("map")))
        {
            let key = (table_of(set), string(set, "name"));
            let elements = set.get("elem").and_then(Value::as_array);
            self.sets.insert(key, elements.cloned().unwrap_or_default());
        }
    }

    /// A rule; one with a verdict map, or a map of new destinations, becomes one for each of its
    /// elements.
    fn rules(&self, table: &TableName, rule: &Value, handle: u64, text: &str) -> Vec<Rule> {
        let mut steps: Vec<Step> = Vec::new();
        let mut branches: Vec<Rule> = Vec::new();
        let made = |steps: Vec<Step>| Rule {
            text: text.to_owned(),
            handle,
            steps,
        };
        let expressions = rule.get("expr").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            let Some((kind, body)) = expression.as_object().and_then(|map| map.iter().next())
            else {
                continue;
            };
            match kind.as_str() {
                "match" => steps.extend(self.matching(table, body)),
                "mangle" => steps.extend(mangle(body)),
                "vmap" => {
                    for (key, verdict) in self.elements(table, body.get("data")) {
                        let left = body.get("key").unwrap_or(&Value::Null);
                        let mut branch = steps.clone();
                        branch.push(Step::If(self.test(table, left, &[key])));
                        branch.push(Step::Do(verdict_of(&verdict)));
                        branches.push(made(branch));
                    }
                    return branches;
                }
                "counter" | "log" | "continue" | "last" | "quota" | "meter" | "set" | "map"
                | "synproxy" => {}
                "limit" | "ct count" | "xt" => steps.push(Step::If(Test::Unknown)),
                "notrack" => steps.push(Step::Do(Effect::Untrack)),
                "flow" => {
                    let name = body.get("flowtable").and_then(Value::as_str);
                    let name = name.unwrap_or_default().trim_start_matches('@');
                    steps.push(Step::Do(Effect::Offload(name.to_owned())));
                }
                "masquerade" | "snat" => steps.push(Step::Do(Effect::SourceNat)),
                "dnat" => {
                    if let Some(map) = body.get("addr").and_then(|address| address.get("map")) {
                        for (key, to) in self.elements(table, map.get("data")) {
                            let left = map.get("key").unwrap_or(&Value::Null);
                            let mut branch = steps.clone();
                            branch.push(Step::If(self.test(table, left, &[key])));
                            let to = mapped_destination(&to, body.get("port"));
                            branch.push(Step::Do(Effect::DestinationNat(to)));
                            branches.push(made(branch));
                        }
                        return branches;
                    }
                    let to = new_destination(body.get("addr"), body.get("port"));
                    steps.push(Step::Do(Effect::DestinationNat(to)));
                }
                "redirect" => steps.push(Step::Do(Effect::DestinationNat(NewDestination {
                    address: NewAddress::Router,
                    port: body.get("port").and_then(first_port),
                }))),
                "tproxy" => steps.push(Step::Do(Effect::DestinationNat(NewDestination::UNKNOWN))),
                _ => steps.push(Step::Do(verdict_of(expression))),
            }
        }
        vec![made(steps)]
    }

    /// Keys and values of a map that is written out or named.
    fn elements(&self, table: &TableName, data: Option<&Value>) -> Vec<(Value, Value)> {
        let list = match data {
            Some(Value::String(name)) => {
                let key = (table.clone(), name.trim_start_matches('@').to_owned());
                self.sets.get(&key).cloned().unwrap_or_default()
            }
            Some(other) => other
                .get("set")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let pair = |item: &Value| match item.as_array().map(Vec::as_slice) {
            Some([key, verdict]) => Some((plain(key), verdict.clone())),
            _ => None,
        };
        list.iter().filter_map(pair).collect()
    }

    fn matching(&self, table: &TableName, body: &Value) -> Option<Step> {
        let left = body.get("left")?;
        let right = body.get("right")?;
        let values: Vec<Value> = match right {
            Value::String(name) if name.starts_with('@') => {
                let key = (table.clone(), name.trim_start_matches('@').to_owned());
                self.sets.get(&key)?.iter().map(plain).collect()
            }
            Value::Array(many) => many.clone(),
            other => match other.get("set").and_then(Value::as_array) {
                Some(many) => many.iter().map(plain).collect(),
                None => vec![other.clone()],
            },
        };
        let test = self.test(table, left, &values);
        match body.get("op").and_then(Value::as_str) {
            Some("==" | "in") => Some(Step::If(test)),
            // `ct state != { … }` is no subset test, but our packets have one state only.
            Some("!=") if test == Test::Unknown => Some(Step::If(test)),
            Some("!=") => Some(Step::Unless(test)),
            _ => Some(Step::If(Test::Unknown)),
        }
    }

    fn test(&self, table: &TableName, left: &Value, values: &[Value]) -> Test {
        self.try_test(table, left, values).unwrap_or(Test::Unknown)
    }

    fn try_test(&self, table: &TableName, left: &Value, values: &[Value]) -> Option<Test> {
        let (kind, body) = left.as_object()?.iter().next()?;
        let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        match kind.as_str() {
            "meta" => match field("key") {
                "iifname" | "iif" => Some(Test::Input(patterns(values)?)),
                "oifname" | "oif" => Some(Test::Output(patterns(values)?)),
                "nfproto" => match values {
                    [Value::String(one)] if one == "ipv4" => Some(Test::Family(Family::V4)),
                    [Value::String(one)] if one == "ipv6" => Some(Test::Family(Family::V6)),
                    _ => None,
                },
                "protocol" => match values {
                    [Value::String(one)] if one == "ip" => Some(Test::Family(Family::V4)),
                    [Value::String(one)] if one == "ip6" => Some(Test::Family(Family::V6)),
                    _ => None,
                },
                "l4proto" => Some(Test::Protocol(protocols(values)?)),
                "mark" => Some(Test::PacketMark {
                    mask: u32::MAX,
                    values: marks(values)?,
                }),
                _ => None,
            },
            "ct" if body.get("dir").is_none() => match field("key") {
                "state" => Some(Test::State(values.iter().map(state).collect())),
                "mark" => Some(Test::ConnectionMark {
                    mask: u32::MAX,
                    values: marks(values)?,
                }),
                _ => None,
            },
            "&" => self.masked(table, body, values),
            "fib" => {
                let flags = strings(body.get("flags"));
                let has = |flag: &str| flags.iter().any(|found| found == flag);
                let nothing = matches!(values, [Value::Bool(false)])
                    || matches!(values, [Value::String(zero)] if zero == "0");
                match field("result") {
                    "oif" if has("saddr") && nothing => Some(Test::NoReversePath {
                        loose: !has("iif"),
                        marked: has("mark"),
                    }),
                    "type" if has("daddr") => {
                        let local = values.iter().any(|value| value.as_str() == Some("local"));
                        Some(if local { Test::ToRouter } else { Test::Never })
                    }
                    _ => None,
                }
            }
            "payload" => match (field("protocol"), field("field")) {
                ("ip" | "ip6", "saddr") => Some(Test::Source(networks(values)?)),
                ("ip" | "ip6", "daddr") => Some(Test::Destination(networks(values)?)),
                ("ip", "protocol") | ("ip6", "nexthdr") => Some(Test::Protocol(protocols(values)?)),
                ("tcp" | "th", "sport") => Some(Test::SourcePort(ports(values)?)),
                ("tcp" | "th", "dport") => Some(Test::DestinationPort(ports(values)?)),
                // Other protocols' headers: our packets are TCP.
                ("udp" | "sctp" | "dccp" | "arp" | "icmp", _) => Some(Test::Never),
                ("icmpv6", "type") => Some(Test::IcmpType(icmp_types(values)?)),
                ("ether", "saddr") => Some(Test::Mac(
                    values
                        .iter()
                        .map(|value| value.as_str()?.parse().ok())
                        .collect::<Option<_>>()?,
                )),
                _ => None,
            },
            _ => None,
        }
    }

    /// `X & mask == values`.
    fn masked(&self, table: &TableName, body: &Value, values: &[Value]) -> Option<Test> {
        let [inner, mask] = body.as_array()?.as_slice() else {
            return None;
        };
        if let Some(payload) = inner.get("payload")
            && payload.get("field").and_then(Value::as_str) == Some("flags")
        {
            return Some(Test::TcpFlags {
                mask: tcp_flags(mask)?,
                set: tcp_flags(&Value::Array(values.to_vec()))?,
            });
        }
        let mask = number(mask)?;
        match self.try_test(table, inner, values)? {
            Test::PacketMark { values, .. } => Some(Test::PacketMark { mask, values }),
            Test::ConnectionMark { values, .. } => Some(Test::ConnectionMark { mask, values }),
            _ => None,
        }
    }
}

/// A set's element without its counter, timeout or comment.
fn plain(element: &Value) -> Value {
    element
        .get("elem")
        .and_then(|inner| inner.get("val"))
        .unwrap_or(element)
        .clone()
}

fn verdict_of(expression: &Value) -> Effect {
    let Some((kind, body)) = expression.as_object().and_then(|map| map.iter().next()) else {
        return Effect::Unknown;
    };
    let target = || string(body, "target");
    match kind.as_str() {
        "accept" => Effect::Accept,
        "drop" => Effect::Drop,
        "reject" => Effect::Reject,
        "return" => Effect::Return,
        "jump" => Effect::Jump(target()),
        "goto" => Effect::Goto(target()),
        _ => Effect::Unknown,
    }
}

fn new_destination(address: Option<&Value>, port: Option<&Value>) -> NewDestination {
    NewDestination {
        address: match address {
            None => NewAddress::Same,
            Some(address) => networks(std::slice::from_ref(address))
                .map_or(NewAddress::Unknown, NewAddress::Among),
        },
        port: port.and_then(first_port),
    }
}

/// An element of a map may hold the port, too.
fn mapped_destination(element: &Value, port: Option<&Value>) -> NewDestination {
    match element.get("concat").and_then(Value::as_array) {
        Some(both) => new_destination(both.first(), both.get(1)),
        None => new_destination(Some(element), port),
    }
}

fn first_port(value: &Value) -> Option<u16> {
    let (first, _) = bounds(value).unwrap_or((value, value));
    u16::try_from(first.as_u64()?).ok()
}

/// `meta mark set …` and `ct mark set …`; other fields do not concern us.
fn mangle(body: &Value) -> Option<Step> {
    let which = which(body.get("key")?)?;
    let effect = assignment(which, body.get("value")?).unwrap_or(Effect::Unknown);
    Some(Step::Do(effect))
}

fn which(value: &Value) -> Option<Which> {
    let key = |kind: &str| value.get(kind).and_then(|body| body.get("key")?.as_str());
    match (key("meta"), key("ct")) {
        (Some("mark"), _) => Some(Which::Packet),
        (_, Some("mark")) => Some(Which::Connection),
        _ => None,
    }
}

fn assignment(target: Which, value: &Value) -> Option<Effect> {
    // What the value is made of: bits of which mark pass, then which are flipped.
    fn terms(value: &Value) -> Option<(Option<Which>, u32, u32)> {
        if let Some(constant) = number(value) {
            return Some((None, 0, constant));
        }
        if let Some(which) = which(value) {
            return Some((Some(which), u32::MAX, 0));
        }
        let (operator, sides) = value.as_object()?.iter().next()?;
        let [left, right] = sides.as_array()?.as_slice() else {
            return None;
        };
        let (source, pass, flip) = terms(left)?;
        let right = number(right)?;
        Some(match operator.as_str() {
            "&" => (source, pass & right, flip & right),
            "|" => (source, pass & !right, flip | right),
            "^" => (source, pass, flip ^ right),
            _ => return None,
        })
    }
    let (source, pass, constant) = terms(value)?;
    let (keep, take) = match source {
        None => (0, 0),
        Some(source) if source == target => (pass, 0),
        Some(_) => (0, pass),
    };
    Some(Effect::Mark {
        which: target,
        keep,
        take,
        constant,
    })
}

fn number(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => u32::try_from(number.as_u64()?).ok(),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
    }
}

fn marks(values: &[Value]) -> Option<Vec<u32>> {
    values.iter().map(number).collect()
}

fn patterns(values: &[Value]) -> Option<Vec<IfPattern>> {
    values
        .iter()
        .map(|value| IfPattern::new(value.as_str()?).ok())
        .collect()
}

fn state(value: &Value) -> State {
    match value.as_str() {
        Some("new") => State::New,
        Some("established") => State::Established,
        Some("untracked") => State::Untracked,
        Some("invalid") => State::Invalid,
        _ => State::Other,
    }
}

fn protocols(values: &[Value]) -> Option<Vec<u8>> {
    values
        .iter()
        .map(|value| match value {
            Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
            Value::String(name) => super::iptables::protocol(name),
            _ => None,
        })
        .collect()
}

fn icmp_types(values: &[Value]) -> Option<Vec<u8>> {
    values
        .iter()
        .map(|value| match value {
            Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
            Value::String(name) => Some(u8::from(name == "nd-redirect") * REDIRECT),
            _ => None,
        })
        .collect()
}

/// Type 137 of `ICMPv6` (RFC 4861, 4.5).
pub const REDIRECT: u8 = 137;

fn ports(values: &[Value]) -> Option<Ports> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let mut ranges = Vec::with_capacity(values.len());
    for value in values {
        let (first, last) = match bounds(value) {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(value)?, port(value)?),
        };
        ranges.push(Range { first, last });
    }
    Some(Ports::merged(ranges))
}

fn bounds(value: &Value) -> Option<(&Value, &Value)> {
    match value.get("range")?.as_array()?.as_slice() {
        [first, last] => Some((first, last)),
        _ => None,
    }
}

fn networks(values: &[Value]) -> Option<Networks> {
    let mut all: Vec<IpNet> = Vec::new();
    for value in values {
        if let Some((first, last)) = bounds(value) {
            all.extend(super::iptables::address_range(
                first.as_str()?,
                last.as_str()?,
            )?);
        } else if let Some(prefix) = value.get("prefix") {
            let address = prefix.get("addr")?.as_str()?.parse().ok()?;
            let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
            all.push(IpNet::new(address, length).ok()?);
        } else {
            let address: std::net::IpAddr = value.as_str()?.parse().ok()?;
            all.push(address.into());
        }
    }
    Some(Networks::merged(all))
}

fn tcp_flags(value: &Value) -> Option<u8> {
    match value {
        Value::Array(many) => many
            .iter()
            .try_fold(0, |flags, one| Some(flags | tcp_flags(one)?)),
        Value::String(name) => super::iptables::tcp_flag(name),
        Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
        Value::Object(map) => {
            let sides = map.get("|")?.as_array()?;
            sides
                .iter()
                .try_fold(0, |flags, one| Some(flags | tcp_flags(one)?))
        }
        _ => None,
    }
}
