//! Our packet rules against the kernel and against `nft`.
//!
//! Each test makes network namespaces of its own, which go with the threads that made them.
//! Random tables are sent by us in one and as text by `nft -f` in another: what
//! `nft -j list ruleset` then says must be the same, handles and counters aside.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on is to fail, and one that is skipped is to say so"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use redirect::kernel::Kernel as _;
use redirect::kernel::netlink::{attributes, messages};
use redirect::kernel::nftables::Nftables;
use redirect::kernel::router::Router;
use redirect::net::{IfPattern, MacAddr, Mark, Networks, Range, Ranges, Step};
use redirect::nft::{
    Base, Chain, CtKey, Elements, Expression, MetaKey, PayloadBase, Rule, Set, TABLE, Table,
    Verdict, decode,
    proof::Proof,
    text,
    wire::{self, Terms},
};
use redirect::plan::{Change, Plan};
use redirect::policy::{self, Established, OnApplianceDown, Policy, Source};
use redirect::rules;
use serde_json::Value;

/// Runs `test` in a network namespace of its own; `None`, and says so, where that is not allowed.
fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
                Ok(()) => Some(test()),
                Err(errno) => {
                    eprintln!("SKIPPED: needs root to make a network namespace ({errno})");
                    None
                }
            })
            .join()
            .unwrap()
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tests start `nft` and `ip` as a person would"
)]
fn run(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("these tests need `{program}`: {error}"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn nft(arguments: &[&str], input: &str) -> Output {
    run("nft", arguments, input)
}

fn nft_file(input: &str) {
    let output = nft(&["-f", "-"], input);
    assert!(
        output.status.success(),
        "nft refused our text: {}\n{input}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The kernel's state as `nft` writes it down for itself.
fn saved() -> String {
    let output = nft(&["list", "ruleset"], "");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// What `nft` makes of the kernel's state, without what differs from run to run.
fn listing() -> Vec<Value> {
    let output = nft(&["-j", "list", "ruleset"], "");
    assert!(output.status.success());
    let mut found: Value = serde_json::from_slice(&output.stdout).unwrap();
    strip(&mut found);
    let Value::Array(objects) = found["nftables"].take() else {
        panic!("no list");
    };
    objects
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.remove("metainfo");
            for name in ["packets", "bytes"] {
                if fields.contains_key(name) {
                    fields[name] = 0.into();
                }
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// What was made piece by piece may stand in another order; rules of a chain may not.
fn sorted(objects: &[Value]) -> Vec<String> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut texts: Vec<String> = objects
        .iter()
        .map(|object| match object.get("rule") {
            Some(rule) => {
                let place = places.entry(rule["chain"].to_string()).or_default();
                *place += 1;
                format!("{} rule {place}: {rule}", rule["chain"])
            }
            None => object.to_string(),
        })
        .collect();
    texts.sort();
    texts
}

/// A small generator of numbers: the same seed, the same test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn number(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// A number that has a least, a greatest, and a few that lie close together.
trait Sample: Step + From<u8> {
    fn any(random: &mut Random) -> Self;
    const LAST: Self;
}

macro_rules! sample {
    ($($number:ty),*) => {$(
        impl Sample for $number {
            fn any(random: &mut Random) -> Self {
                <$number>::from_le_bytes(*random.number().to_le_bytes().first_chunk().unwrap())
            }
            const LAST: Self = <$number>::MAX;
        }
    )*};
}
sample!(u16, u32, u128);

/// Ranges that are often close together, and often touch both ends of what there is.
fn ranges<T: Sample>(random: &mut Random) -> Ranges<T> {
    let count = random.below(8);
    let mut list = Vec::new();
    for _ in 0..count {
        let (a, b) = match random.below(4) {
            0 => (T::any(random), T::any(random)),
            1 => {
                let one = T::any(random);
                (one, one)
            }
            _ => {
                let mut near = || T::from(u8::try_from(random.below(40)).unwrap());
                (near(), near())
            }
        };
        list.push(Range {
            first: a.min(b),
            last: a.max(b),
        });
    }
    if random.chance(4) {
        let first = T::any(random);
        list.push(Range {
            first,
            last: T::LAST,
        });
    }
    Ranges::merged(list)
}

/// The same, each with a verdict; adjacent ones have different ones, or the same.
fn verdicts<T: Sample>(random: &mut Random) -> Vec<(Range<T>, Verdict)> {
    let mut list: Vec<(Range<T>, Verdict)> = Vec::new();
    for range in &ranges::<T>(random) {
        let middle = range.first.next().filter(|next| *next <= range.last);
        match middle {
            Some(middle) if random.chance(2) => {
                list.push((
                    Range {
                        first: range.first,
                        last: range.first,
                    },
                    some_verdict(random, MAP_CHAINS),
                ));
                list.push((
                    Range {
                        first: middle,
                        last: range.last,
                    },
                    some_verdict(random, MAP_CHAINS),
                ));
            }
            _ => list.push((*range, some_verdict(random, MAP_CHAINS))),
        }
    }
    list
}

/// Chains without rules of their own that jump: no loops come of them.
const MAP_CHAINS: &[&str] = &["leaf_1", "leaf_2", "in_eth0.5"];

fn some_verdict(random: &mut Random, chains: &[&str]) -> Verdict {
    let chain = (*random.pick(chains)).to_owned();
    match random.below(5) {
        0 => Verdict::Accept,
        1 => Verdict::Drop,
        2 => Verdict::Return,
        3 => Verdict::Jump(chain),
        _ => Verdict::Goto(chain),
    }
}

fn equals(bytes: impl Into<Vec<u8>>) -> Expression {
    Expression::Compare {
        equal: true,
        bytes: bytes.into(),
    }
}

fn payload(base: PayloadBase, offset: u32, length: u32) -> Expression {
    Expression::Payload {
        base,
        offset,
        length,
    }
}

fn name16(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn masked(mask: u32, xor: u32) -> Expression {
    Expression::Bitwise {
        mask: mask.to_ne_bytes().to_vec(),
        xor: xor.to_ne_bytes().to_vec(),
    }
}

/// Tables of everything that the renderer emits, and more, at random.
struct Maker<'r> {
    random: &'r mut Random,
    sets: Vec<Set>,
    /// What a rule has asked for already, so that it is not asked for twice.
    asked: Vec<&'static str>,
}

impl Maker<'_> {
    fn set_of(&mut self, prefix: &str) -> Option<String> {
        let names: Vec<String> = self
            .sets
            .iter()
            .filter(|set| set.name.starts_with(prefix))
            .map(|set| set.name.clone())
            .collect();
        (!names.is_empty()).then(|| self.random.pick(&names).clone())
    }

    fn once(&mut self, what: &'static str) -> bool {
        let is_new = !self.asked.contains(&what);
        self.asked.push(what);
        is_new
    }

    /// What nft adds before a TCP field, once a rule.
    fn tcp(&mut self, into: &mut Vec<Expression>) {
        if self.once("tcp") {
            into.push(Expression::MetaLoad(MetaKey::Protocol));
            into.push(equals([6]));
        }
    }

    /// What nft adds before an address, or what stands for it.
    fn family(&mut self, family: u8, into: &mut Vec<Expression>) -> bool {
        let (this, other) = if family == 2 {
            ("v4", "v6")
        } else {
            ("v6", "v4")
        };
        if self.asked.contains(&other) {
            return false;
        }
        if self.once(this) {
            into.push(Expression::MetaLoad(MetaKey::Family));
            into.push(equals([family]));
        }
        true
    }

    fn lookup(&mut self, set: Option<String>, into: &mut Vec<Expression>) -> bool {
        let Some(set) = set else { return false };
        into.push(Expression::Lookup {
            set,
            invert: self.random.chance(4),
        });
        true
    }

    #[expect(
        clippy::too_many_lines,
        reason = "a list of seventeen kinds of conditions"
    )]
    fn condition(&mut self) -> Vec<Expression> {
        let mut all = Vec::new();
        let done = match self.random.below(17) {
            0 | 1 => {
                self.tcp(&mut all);
                let offset = *self.random.pick(&[0, 2]);
                all.push(payload(PayloadBase::Transport, offset, 2));
                let set = self.set_of("ports");
                self.lookup(set, &mut all)
            }
            2 | 3 => {
                let offset = *self.random.pick(&[12, 16]);
                let known = self.family(2, &mut all);
                all.push(payload(PayloadBase::Network, offset, 4));
                let set = self.set_of("v4");
                known && self.lookup(set, &mut all)
            }
            4 => {
                let offset = *self.random.pick(&[8, 24]);
                let known = self.family(10, &mut all);
                all.push(payload(PayloadBase::Network, offset, 16));
                let set = self.set_of("v6");
                known && self.lookup(set, &mut all)
            }
            5 => {
                if self.once("ether") {
                    all.push(Expression::MetaLoad(MetaKey::InputType));
                    all.push(equals(1_u16.to_ne_bytes()));
                }
                all.push(payload(PayloadBase::Link, 6, 6));
                let set = self.set_of("macs");
                if self.random.chance(2) && self.once("ether saddr ==") {
                    all.push(equals([2, 0, 0x5e, 0, 0, 1]));
                    true
                } else {
                    self.lookup(set, &mut all)
                }
            }
            6 => {
                let key = *self.random.pick(&[MetaKey::InputName, MetaKey::OutputName]);
                all.push(Expression::MetaLoad(key));
                let bytes = match self.random.below(3) {
                    0 => b"ppp".to_vec(),
                    1 => b"fourteen-bytes".to_vec(),
                    _ => name16(self.random.pick::<&str>(&[
                        "eth0",
                        "fifteen-bytes--",
                        "br-lan.100@x",
                        "é",
                    ])),
                };
                all.push(Expression::Compare {
                    equal: !self.random.chance(3),
                    bytes,
                });
                true
            }
            7 => {
                self.tcp(&mut all);
                all.push(payload(PayloadBase::Transport, 13, 1));
                all.push(Expression::Bitwise {
                    mask: vec![0x17],
                    xor: vec![0],
                });
                all.push(Expression::Compare {
                    equal: self.random.chance(2),
                    bytes: vec![*self.random.pick(&[2, 0, 0x12])],
                });
                true
            }
            8 => {
                all.push(Expression::CtLoad(CtKey::State));
                all.push(masked(*self.random.pick(&[8, 10, 0x4f, 1]), 0));
                all.push(Expression::Compare {
                    equal: false,
                    bytes: 0_u32.to_ne_bytes().to_vec(),
                });
                true
            }
            9 | 10 => {
                self.mark_loaded(&mut all);
                all.push(Expression::Compare {
                    equal: self.random.chance(2),
                    bytes: 7_u32.to_ne_bytes().to_vec(),
                });
                true
            }
            11 => {
                all.push(Expression::MetaLoad(MetaKey::Protocol));
                if self.asked.contains(&"tcp") {
                    all.push(equals([6]));
                } else {
                    all.push(Expression::Compare {
                        equal: false,
                        bytes: vec![6],
                    });
                }
                true
            }
            12 => {
                let family = *self.random.pick(&[2, 10]);
                let mut dependency = Vec::new();
                let known = self.family(family, &mut dependency);
                all.push(Expression::MetaLoad(MetaKey::Family));
                all.push(equals([family]));
                known
            }
            13 => {
                all.push(Expression::MetaLoad(MetaKey::InputType));
                all.push(Expression::Compare {
                    equal: false,
                    bytes: 772_u16.to_ne_bytes().to_vec(),
                });
                true
            }
            14 => {
                self.tcp(&mut all);
                all.push(payload(PayloadBase::Transport, 2, 2));
                all.push(Expression::Compare {
                    equal: false,
                    bytes: 3389_u16.to_be_bytes().to_vec(),
                });
                true
            }
            15 => {
                let known = self.family(2, &mut all);
                all.push(payload(PayloadBase::Network, 16, 4));
                all.push(Expression::Compare {
                    equal: false,
                    bytes: vec![10, 0, 0, 1],
                });
                known
            }
            _ => {
                all.push(payload(PayloadBase::Network, 8, 1));
                all.push(equals([1]));
                self.once("ttl")
            }
        };
        if done { all } else { Vec::new() }
    }

    fn mark_loaded(&mut self, into: &mut Vec<Expression>) {
        into.push(if self.random.chance(2) {
            Expression::MetaLoad(MetaKey::Mark)
        } else {
            Expression::CtLoad(CtKey::Mark)
        });
        if self.random.chance(2) {
            into.push(masked(*self.random.pick(&[0xff, u32::MAX, 0xff00_0000]), 0));
        }
    }

    fn action(&mut self) -> Vec<Expression> {
        match self.random.below(4) {
            0 => vec![Expression::Counter],
            1 | 2 => {
                let mut all = vec![if self.random.chance(2) {
                    Expression::MetaLoad(MetaKey::Mark)
                } else {
                    Expression::CtLoad(CtKey::Mark)
                }];
                let bits = [
                    (0xffff_ff00, 1),
                    (0xffff_ff00, 0),
                    (0, 1),
                    (0xff, 0xf),
                    (u32::MAX, 3),
                    (u32::MAX, 0),
                    (0x00ff_ffff, 0xab00_0000),
                ];
                if self.random.below(5) > 0 {
                    let (mask, xor) = *self.random.pick(&bits);
                    all.push(masked(mask, xor));
                }
                all.push(if self.random.chance(2) {
                    Expression::MetaSet(MetaKey::Mark)
                } else {
                    Expression::CtSet(CtKey::Mark)
                });
                all
            }
            _ => Vec::new(),
        }
    }

    fn end(&mut self, chains: &[&str]) -> Vec<Expression> {
        let verdict = |random: &mut Random| some_verdict(random, chains);
        match self.random.below(9) {
            0 => vec![Expression::RejectProhibited],
            1 => {
                let mut elements: Vec<(Vec<u8>, Verdict)> = ["eth0", "sps0", "fifteen-bytes--"]
                    .iter()
                    .take(1 + self.random.below(3))
                    .map(|name| (name16(name), verdict(self.random)))
                    .collect();
                elements.sort();
                vec![
                    Expression::MetaLoad(MetaKey::InputName),
                    Expression::InlineVerdictMap {
                        elements,
                        key_type: 41,
                    },
                ]
            }
            2 => {
                let mut all = Vec::new();
                self.mark_loaded(&mut all);
                let mut elements: Vec<(Vec<u8>, Verdict)> = (1..=1 + self.random.below(3))
                    .map(|mark| {
                        let mark = u32::try_from(mark).unwrap();
                        (mark.to_ne_bytes().to_vec(), verdict(self.random))
                    })
                    .collect();
                elements.sort();
                all.push(Expression::InlineVerdictMap {
                    elements,
                    key_type: 19,
                });
                all
            }
            3 => {
                let mut all = Vec::new();
                match self.set_of("map_v4") {
                    Some(map) if self.family(2, &mut all) => {
                        all.push(payload(PayloadBase::Network, 16, 4));
                        all.push(Expression::VerdictMap { map });
                        all
                    }
                    _ => Vec::new(),
                }
            }
            4 => match self.set_of("map_ports") {
                Some(map) => {
                    let mut all = Vec::new();
                    self.tcp(&mut all);
                    all.push(payload(PayloadBase::Transport, 2, 2));
                    all.push(Expression::VerdictMap { map });
                    all
                }
                None => Vec::new(),
            },
            5 | 6 => Vec::new(),
            _ => vec![Expression::Verdict(verdict(self.random))],
        }
    }

    fn rule(&mut self, chains: &[&str]) -> Rule {
        self.asked.clear();
        loop {
            let mut expressions = Vec::new();
            for _ in 0..self.random.below(4) {
                expressions.extend(self.condition());
            }
            for _ in 0..self.random.below(3) {
                expressions.extend(self.action());
            }
            expressions.extend(self.end(chains));
            let comment = self.random.chance(3).then(|| {
                (*self
                    .random
                    .pick(&["rdp: from clients", "ü", &"x".repeat(127)]))
                .to_owned()
            });
            if !expressions.is_empty() {
                return Rule {
                    expressions,
                    comment,
                };
            }
            self.asked.clear();
        }
    }
}

/// A table at random. A chain jumps only to those named after it here, so that there is no loop.
fn table(random: &mut Random) -> Table {
    let mut sets = Vec::new();
    let add = |sets: &mut Vec<Set>, name: &str, elements| {
        sets.push(Set {
            name: name.to_owned(),
            elements,
        });
    };
    for name in ["v4_a", "v4_b"] {
        if random.below(4) > 0 {
            let elements = Elements::V4(ranges(random));
            add(&mut sets, name, elements);
        }
    }
    for name in ["ports_a", "ports_b"] {
        if random.below(4) > 0 {
            let elements = Elements::Ports(ranges(random));
            add(&mut sets, name, elements);
        }
    }
    if random.below(4) > 0 {
        let elements = Elements::V6(ranges(random));
        add(&mut sets, "v6_a", elements);
    }
    if random.below(4) > 0 {
        let mut macs: Vec<MacAddr> = (0..random.below(4))
            .map(|_| MacAddr([2, 0, 0, 0, 0, u8::try_from(random.below(6)).unwrap()]))
            .collect();
        macs.sort();
        macs.dedup();
        add(&mut sets, "macs_a", Elements::Macs(macs));
    }
    if random.chance(2) {
        let elements = Elements::V4Verdicts(verdicts(random));
        add(&mut sets, "map_v4", elements);
    }
    if random.chance(2) {
        let elements = Elements::PortVerdicts(verdicts(random));
        add(&mut sets, "map_ports", elements);
    }
    if random.chance(2) {
        let elements = Elements::V6Verdicts(verdicts(random));
        add(&mut sets, "map_v6", elements);
    }
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    let order = ["prerouting", "forward", "mid_1", "mid_2"];
    let mut maker = Maker {
        random,
        sets,
        asked: Vec::new(),
    };
    let mut chains: Vec<Chain> = MAP_CHAINS
        .iter()
        .map(|name| Chain {
            name: (*name).to_owned(),
            base: None,
            rules: Vec::new(),
        })
        .collect();
    for (at, name) in order.iter().enumerate() {
        let mut below: Vec<&str> = order[at + 1..]
            .iter()
            .copied()
            .filter(|name| name.starts_with("mid"))
            .collect();
        below.extend(MAP_CHAINS);
        let rules = (0..maker.random.below(5))
            .map(|_| maker.rule(&below))
            .collect();
        let base = match *name {
            "prerouting" => Some((0, "filter")),
            "forward" => Some((2, "filter")),
            _ => None,
        };
        chains.push(Chain {
            name: (*name).to_owned(),
            base: base.map(|(hook, kind)| Base {
                kind: kind.to_owned(),
                hook,
                priority: -140,
                policy: 1,
            }),
            rules,
        });
    }
    let sets = maker.sets;
    chains.sort_by(|a, b| a.name.cmp(&b.name));
    Table {
        flags: 0,
        sets,
        chains,
        others: Vec::new(),
    }
}

#[test]
fn what_we_send_is_what_nft_makes_of_our_text_and_what_we_read_back() {
    let mut random = Random(20_261_122);
    for round in 0..60 {
        let table = table(&mut random);
        let text = text::table(&table).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let Some(theirs) = in_namespace(|| {
            nft_file(&text);
            let found = Nftables::open().unwrap().read().unwrap();
            (listing(), found)
        }) else {
            return;
        };
        let ours = in_namespace(|| {
            let mut kernel = Nftables::open().unwrap();
            kernel.commit(None, Some(&table)).unwrap();
            let found = kernel.read().unwrap();
            assert_eq!(found.as_ref(), Some(&table), "round {round}: read back");
            listing()
        })
        .unwrap();
        assert_eq!(ours, theirs.0, "round {round}, {text}");
        assert_eq!(theirs.1.as_ref(), Some(&table), "round {round}, {text}");
    }
}
/// A table not unlike `old`: some sets and chains of it kept, some changed a little, some new.
fn neighbour(old: &Table, random: &mut Random) -> Table {
    let mut new = table(random);
    for set in &mut new.sets {
        let Some(before) = old.sets.iter().find(|other| other.name == set.name) else {
            continue;
        };
        match random.below(3) {
            0 => set.elements = before.elements.clone(),
            1 => set.elements = changed_little(&before.elements, random),
            _ => {}
        }
    }
    for chain in &mut new.chains {
        let before = old.chains.iter().find(|other| other.name == chain.name);
        if let Some(before) = before.filter(|_| random.chance(2)) {
            let fits = before.rules.iter().all(|rule| {
                rule.expressions.iter().all(|expression| match expression {
                    Expression::Lookup { set: name, .. } | Expression::VerdictMap { map: name } => {
                        new.sets.iter().any(|set| set.name == *name)
                    }
                    _ => true,
                })
            });
            if fits {
                chain.rules.clone_from(&before.rules);
            }
        }
    }
    new
}

/// One range more, less, longer, shorter or split.
fn changed_little(elements: &Elements, random: &mut Random) -> Elements {
    fn change<T: Sample>(ranges: &Ranges<T>, random: &mut Random) -> Ranges<T> {
        let near = |random: &mut Random| T::from(u8::try_from(random.below(45)).unwrap());
        let (a, b) = (near(random), near(random));
        let part = Ranges::merged(vec![Range {
            first: a.min(b),
            last: a.max(b),
        }]);
        let mut all: Vec<Range<T>> = ranges.as_slice().to_vec();
        match random.below(3) {
            0 => ranges.without(&part),
            1 => {
                all.extend(part.as_slice());
                Ranges::merged(all)
            }
            _ if all.is_empty() => part,
            _ => {
                all.remove(random.below(all.len()));
                Ranges::merged(all)
            }
        }
    }
    match elements {
        Elements::V4(ranges) => Elements::V4(change(ranges, random)),
        Elements::V6(ranges) => Elements::V6(change(ranges, random)),
        Elements::Ports(ranges) => Elements::Ports(change(ranges, random)),
        other => other.clone(),
    }
}

#[test]
fn a_change_piece_by_piece_ends_where_a_fresh_table_does() {
    let mut random = Random(42);
    let done = in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        let mut now: Option<Table> = None;
        for round in 0..300 {
            let next = match (&now, random.below(25)) {
                (Some(_), 0) => None,
                (Some(old), 1..18) => Some(neighbour(old, &mut random)),
                _ => Some(table(&mut random)),
            };
            kernel.validate(now.as_ref(), next.as_ref()).unwrap();
            assert_eq!(
                kernel.read().unwrap(),
                now,
                "round {round}: merely validated"
            );
            if let Err(error) = kernel.commit(now.as_ref(), next.as_ref()) {
                panic!("round {round}: {error}\n{now:#?}\n{next:#?}");
            }
            assert_eq!(kernel.read().unwrap(), next, "round {round}");
            if round % 10 == 0 {
                let piecewise = sorted(&listing());
                let fresh = in_namespace(|| {
                    Nftables::open()
                        .unwrap()
                        .commit(None, next.as_ref())
                        .unwrap();
                    sorted(&listing())
                });
                assert_eq!(Some(piecewise), fresh, "round {round}");
            }
            now = next;
        }
    });
    let _ = done;
}

/// A chain that hangs nowhere.
fn plain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.to_owned(),
        base: None,
        rules,
    }
}

fn rule(expressions: Vec<Expression>) -> Rule {
    Rule {
        expressions,
        comment: None,
    }
}

fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

fn v4_set(name: &str, ranges: &[(u32, u32)]) -> Set {
    let ranges = ranges.iter().map(|&pair| Range::from(pair)).collect();
    Set {
        name: name.to_owned(),
        elements: Elements::V4(Ranges::merged(ranges)),
    }
}

/// A small table: one set, a base chain that counts what is to its networks.
fn small() -> Table {
    Table {
        sets: vec![v4_set("v4_a", &[(0x7f00_0000, 0x7fff_ffff)])],
        chains: vec![
            Chain {
                name: "input".to_owned(),
                base: Some(Base {
                    kind: "filter".to_owned(),
                    hook: 1,
                    priority: 0,
                    policy: 1,
                }),
                rules: vec![Rule {
                    expressions: vec![
                        Expression::MetaLoad(MetaKey::Family),
                        equals([2]),
                        payload(PayloadBase::Network, 16, 4),
                        Expression::Lookup {
                            set: "v4_a".to_owned(),
                            invert: false,
                        },
                        Expression::Counter,
                    ],
                    comment: Some("counted".to_owned()),
                }],
            },
            plain("other", Vec::new()),
        ],
        ..Table::default()
    }
}

const CIRCLE: &str = "cannot add rule 1 of chain `third`";

#[test]
fn a_failure_in_the_middle_leaves_all_as_it_was_and_says_where() {
    let mut missing_chain = small();
    missing_chain.chains[1].rules = vec![rule(vec![Expression::Counter]), rule(vec![goto("no")])];
    let mut missing_set = small();
    missing_set.chains[1].rules = vec![rule(vec![
        Expression::MetaLoad(MetaKey::Mark),
        Expression::Lookup {
            set: "no".to_owned(),
            invert: false,
        },
    ])];
    let mut circle = small();
    circle.chains[1].rules = vec![rule(vec![goto("third")])];
    circle
        .chains
        .push(plain("third", vec![rule(vec![goto("other")])]));
    circle.chains[0].rules.push(rule(vec![goto("other")]));
    let mut overlapping = small();
    let verdict = |first, last| (Range { first, last }, Verdict::Drop);
    overlapping.sets.insert(
        0,
        Set {
            name: "map".to_owned(),
            elements: Elements::V4Verdicts(vec![verdict(1, 9), verdict(5, 12)]),
        },
    );
    let mut unknown = small();
    unknown.chains[1].rules = vec![rule(vec![Expression::Foreign {
        name: "no-such-instruction".to_owned(),
        data: Vec::new(),
    }])];
    let mut nowhere = small();
    nowhere.chains.push(Chain {
        name: "x".to_owned(),
        base: Some(Base {
            kind: "filter".to_owned(),
            hook: 77,
            priority: 0,
            policy: 1,
        }),
        rules: Vec::new(),
    });
    let cases = [
        (
            missing_chain,
            "cannot add rule 2 of chain `other`, at its `immediate`",
        ),
        (
            missing_set,
            "cannot add rule 1 of chain `other`, at its `lookup`",
        ),
        (circle, CIRCLE),
        (overlapping, "cannot add `0.0.0.5` to set `map`"),
        (
            unknown,
            "cannot add rule 1 of chain `other`, at its `no-such-instruction`",
        ),
        (nowhere, "cannot add chain `x`"),
    ];
    let _ = in_namespace(|| {
        nft_file("table ip others { chain c { counter; }; }");
        let mut kernel = Nftables::open().unwrap();
        for from in [None, Some(small())] {
            kernel.commit(None, from.as_ref()).unwrap();
            let before = listing();
            for (to, words) in &cases {
                for is_real in [false, true] {
                    let result = if is_real {
                        kernel.commit(from.as_ref(), Some(to))
                    } else {
                        kernel.validate(from.as_ref(), Some(to))
                    };
                    // A circle in a fresh table is only looked for at the batch's end.
                    if result.is_ok() && !is_real && *words == CIRCLE {
                        continue;
                    }
                    let error = result.unwrap_err();
                    assert!(error.action.starts_with(words), "{words}: {error}");
                    assert_eq!(kernel.read().unwrap(), from);
                    assert_eq!(listing(), before, "{words}");
                }
            }
            // A rehearsal puts nothing in sets.
            let mut router = Router::open().unwrap();
            for (to, words) in &cases {
                let plan = Plan {
                    changes: vec![Change::Nftables {
                        from: from.clone(),
                        to: Some(to.clone()),
                    }],
                };
                let result = router.rehearse(&plan);
                assert_eq!(result.is_ok(), words.ends_with("set `map`"), "{words}");
                assert_eq!(listing(), before, "{words}");
            }
        }
    });
}

#[test]
fn nothing_is_overwritten_that_was_not_seen() {
    let _ = in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        kernel.commit(None, Some(&small())).unwrap();
        let found = kernel.read().unwrap();
        let mut to = small();
        to.sets[0] = v4_set("v4_a", &[(1, 1)]);
        // Somebody commits elsewhere: that is none of our business.
        nft_file("table ip others { chain c { counter; }; }");
        kernel.commit(found.as_ref(), Some(&to)).unwrap();
        assert_eq!(kernel.read().unwrap().as_ref(), Some(&to));
        // Somebody changes our table after we looked.
        nft_file("add element inet scb-redirect v4_a { 9.9.9.9 }");
        let error = kernel.commit(Some(&to), Some(&small())).unwrap_err();
        assert!(error.reason.contains("not as it was"), "{error}");
        let error = kernel.commit(Some(&to), None).unwrap_err();
        assert!(error.reason.contains("not as it was"), "{error}");
        let error = kernel.commit(None, Some(&to)).unwrap_err();
        assert!(error.reason.contains("not as it was"), "{error}");
        let listed = listing()
            .iter()
            .any(|object| object.to_string().contains("9.9.9.9"));
        assert!(listed, "what the other one did must still be there");
        // Having looked again, we may.
        let found = kernel.read().unwrap();
        assert_ne!(found.as_ref(), Some(&to));
        kernel.commit(found.as_ref(), Some(&small())).unwrap();
        assert_eq!(kernel.read().unwrap(), Some(small()));
    });
}

#[test]
fn others_keep_all_that_is_theirs() {
    let _ = in_namespace(|| {
        let theirs = "table inet other { set s { type ipv4_addr; flags interval; elements = { 1.2.3.0/24 }; }
            chain c { type filter hook forward priority 0; ip saddr @s counter drop; }; }
            table ip scb-redirect { chain c { counter; }; }
            table inet scb-redirect-2 { chain c { counter; }; }";
        nft_file(theirs);
        let before = listing();
        let mut kernel = Nftables::open().unwrap();
        assert_eq!(kernel.read().unwrap(), None);
        let mut random = Random(3);
        let mut now = None;
        for round in 0..20 {
            let next = (round % 4 != 0).then(|| table(&mut random));
            kernel.commit(now.as_ref(), next.as_ref()).unwrap();
            now = next;
        }
        kernel.commit(now.as_ref(), None).unwrap();
        assert_eq!(listing(), before);
    });
}

#[test]
fn what_others_put_into_our_table_is_seen_and_goes() {
    let _ = in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        let ours = small();
        for drift in [
            "add rule inet scb-redirect other limit rate 1/second accept",
            "add rule inet scb-redirect other tcp dport { 1, 2 } accept",
            "add rule inet scb-redirect other ip saddr . tcp dport vmap { 1.2.3.4 . 5 : drop }",
            "add rule inet scb-redirect other jump { counter; }",
            "insert rule inet scb-redirect input meta mark set ct mark",
            "add set inet scb-redirect zz { type ipv4_addr; timeout 3s; }",
            "add set inet scb-redirect zz { type ipv4_addr . inet_service; }",
            "add element inet scb-redirect v4_a { 128.0.0.0/8 }",
            "add element inet scb-redirect v4_a { 0.0.0.0/8 }",
            "delete element inet scb-redirect v4_a { 127.0.0.0/8 }",
            "add counter inet scb-redirect c",
            "add chain inet scb-redirect hooked { type nat hook output priority 5; policy drop; }",
            "add chain inet scb-redirect other2; add rule inet scb-redirect other2 goto other",
            "add table inet scb-redirect { flags dormant; }",
            "flush chain inet scb-redirect input",
            "delete chain inet scb-redirect other",
            "add map inet scb-redirect m { type ipv4_addr : verdict; flags interval; elements = { 1.2.3.4 : goto other }; }",
        ] {
            kernel.commit(None, Some(&ours)).unwrap();
            nft_file(drift);
            let found = kernel.read().unwrap();
            assert_ne!(found.as_ref(), Some(&ours), "{drift}");
            let differences = redirect::nft::difference::between(Some(&ours), found.as_ref());
            assert!(!differences.is_empty(), "{drift}");
            for one in &differences {
                eprintln!("{drift}\n    {one} {:?}", one.lines);
            }
            let before = listing();
            kernel
                .commit(found.as_ref(), Some(&ours))
                .unwrap_or_else(|error| panic!("{drift}: {error}"));
            assert_eq!(kernel.read().unwrap().as_ref(), Some(&ours), "{drift}");
            // And back, as far as it can be put back: else it is said, and nothing happens.
            match kernel.commit(Some(&ours), found.as_ref()) {
                Ok(()) => {
                    assert_eq!(kernel.read().unwrap(), found, "{drift}");
                    assert_eq!(sorted(&listing()), sorted(&before), "{drift}");
                    eprintln!("    put back");
                }
                Err(error) => {
                    eprintln!("    {error}");
                    assert_eq!(kernel.read().unwrap().as_ref(), Some(&ours), "{drift}");
                }
            }
            let now = kernel.read().unwrap();
            kernel.commit(now.as_ref(), None).unwrap();
        }
    });
}

#[test]
fn unchanged_chains_keep_their_counters() {
    let _ = in_namespace(|| {
        assert!(run("ip", &["link", "set", "lo", "up"], "").status.success());
        let mut kernel = Nftables::open().unwrap();
        kernel.commit(None, Some(&small())).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let count = kernel.counters().unwrap().with_comment("counted");
        assert_eq!((count.packets, count.bytes), (1, 29));
        let mut to = small();
        to.sets[0] = v4_set("v4_a", &[(0x7f00_0000, 0x7fff_ffff), (1, 1)]);
        to.chains[1].rules.push(rule(vec![Expression::Counter]));
        kernel.commit(Some(&small()), Some(&to)).unwrap();
        assert_eq!(kernel.counters().unwrap().with_comment("counted"), count);
        assert_eq!(kernel.counters().unwrap().iter().count(), 2);
    });
}

#[test]
fn a_long_set_that_somebody_changed_is_read_anew() {
    let _ = in_namespace(|| {
        let mut long = small();
        long.sets[0] = v4_set(
            "v4_a",
            &(0..3000).map(|n| (n * 4, n * 4)).collect::<Vec<_>>(),
        );
        let mut kernel = Nftables::open().unwrap();
        kernel.commit(None, Some(&long)).unwrap();
        assert_eq!(kernel.read().unwrap().as_ref(), Some(&long));
        assert_eq!(
            Nftables::open().unwrap().read().unwrap().as_ref(),
            Some(&long)
        );
        nft_file("delete element inet scb-redirect v4_a { 0.0.0.8 }");
        let mut less = long.clone();
        let without: Vec<_> = (0..3000)
            .filter(|n| *n != 2)
            .map(|n| (n * 4, n * 4))
            .collect();
        less.sets[0] = v4_set("v4_a", &without);
        assert_eq!(kernel.read().unwrap().as_ref(), Some(&less));
        assert_eq!(kernel.read().unwrap().as_ref(), Some(&less));
        kernel.commit(Some(&less), Some(&long)).unwrap();
        nft_file("flush set inet scb-redirect v4_a");
        less.sets[0] = v4_set("v4_a", &[]);
        assert_eq!(kernel.read().unwrap().as_ref(), Some(&less));
    });
}

/// What another run has proven is believed, and nothing beyond that.
#[test]
fn a_proof_holds_until_somebody_commits_and_in_its_own_namespace() {
    let every_fourth: Vec<_> = (0..3000).map(|n| (n * 4, n * 4)).collect();
    let mut long = small();
    long.sets[0] = v4_set("v4_a", &every_fourth);
    // The same but for an element; only whoever does not read can take it for what is there.
    let mut other = long.clone();
    other.sets[0] = v4_set("v4_a", &every_fourth[1..]);
    let read = |proof: &Proof, table: &Table| {
        let mut fresh = Nftables::open().unwrap();
        fresh.trust(proof, table.clone());
        fresh.read().unwrap()
    };
    let proven = in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        kernel.commit(None, Some(&long)).unwrap();
        assert_eq!(kernel.read().unwrap().as_ref(), Some(&long));
        let proof = kernel.proof().unwrap();
        assert_eq!(read(&proof, &long).as_ref(), Some(&long));
        // It is about these elements and no others.
        assert_eq!(read(&proof, &other).as_ref(), Some(&long));
        // A lie that only reading would show: so nothing is read.
        let lie = Proof::of(&other, &proof.birthmark, proof.generation).unwrap();
        assert_eq!(read(&lie, &other).as_ref(), Some(&other));
        // Rules are read all the same.
        let mut without_rules = other.clone();
        without_rules.chains.clear();
        assert_eq!(read(&lie, &without_rules).as_ref(), Some(&other));
        // Nothing is committed on hearsay.
        let mut fresh = Nftables::open().unwrap();
        fresh.trust(&proof, other.clone());
        assert!(fresh.commit(Some(&other), Some(&long)).is_err());
        let generation = kernel.generation().unwrap();
        nft_file("add table ip elsewhere");
        assert_eq!(kernel.generation().unwrap(), generation + 1);
        assert_eq!(read(&lie, &other).as_ref(), Some(&long));
        // A change that keeps the table keeps its birthmark.
        kernel.read().unwrap();
        kernel.commit(Some(&long), Some(&other)).unwrap();
        kernel.read().unwrap();
        let later = kernel.proof().unwrap();
        assert_eq!(later.birthmark, proof.birthmark);
        assert_eq!(read(&later, &other).as_ref(), Some(&other));
        // One that is made anew has another.
        kernel.commit(Some(&other), None).unwrap();
        kernel.commit(None, Some(&long)).unwrap();
        kernel.read().unwrap();
        assert_ne!(kernel.proof().unwrap().birthmark, proof.birthmark);
        lie
    });
    let Some(lie) = proven else { return };
    // Another namespace that has come as far, with a table that looks the same.
    let _ = in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        kernel.commit(None, Some(&long)).unwrap();
        assert_eq!(kernel.generation().unwrap(), lie.generation);
        assert_eq!(read(&lie, &other).as_ref(), Some(&long));
    });
}

#[test]
fn no_write_is_sent_where_nothing_changes() {
    let _ = in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        kernel.commit(None, Some(&small())).unwrap();
        let generation = kernel.generation().unwrap();
        kernel.commit(Some(&small()), Some(&small())).unwrap();
        kernel.commit(None, None).unwrap();
        kernel.validate(Some(&small()), None).unwrap();
        kernel.read().unwrap();
        assert_eq!(kernel.generation().unwrap(), generation);
        kernel.commit(Some(&small()), None).unwrap();
        assert_ne!(kernel.generation().unwrap(), generation);
    });
}

/// Every message of every transaction, from anything to anything, names our table. A table's
/// deletion that did not would delete all tables of the family.
#[test]
fn every_message_is_about_our_table() {
    let mut random = Random(99);
    let mut now: Option<Table> = None;
    let mut deletions = 0;
    for _ in 0..300 {
        let next = (!random.chance(6)).then(|| match &now {
            Some(old) if random.chance(2) => neighbour(old, &mut random),
            _ => table(&mut random),
        });
        let transaction = wire::transaction(
            now.as_ref(),
            next.as_ref(),
            &Terms {
                generation: Some(7),
                birthmark: None,
            },
        )
        .unwrap();
        now = next;
        let Some(transaction) = transaction else {
            continue;
        };
        let all: Vec<_> = messages(transaction.bytes()).map(Result::unwrap).collect();
        let [begin, inner @ .., end] = all.as_slice() else {
            panic!("no batch");
        };
        assert_eq!((begin.kind, end.kind), (0x10, 0x11));
        assert!(!inner.is_empty());
        for message in inner {
            let (preamble, rest) = message.payload.split_at(4);
            assert_eq!(preamble, [1, 0, 0, 0], "family inet");
            let first = attributes(rest).next().unwrap().unwrap();
            assert_eq!((first.kind, first.text().as_str()), (1, TABLE));
            deletions += usize::from(message.kind == 10 << 8 | 2);
        }
        for (sequence, message) in (1..).zip(&all) {
            assert_eq!(message.sequence, sequence);
        }
    }
    assert!(deletions > 10);
}

/// Whatever the kernel, or what says it is the kernel, answers, reading it ends without a panic.
#[test]
fn no_answer_causes_a_panic() {
    let mut random = Random(5);
    let transaction = wire::transaction(None, Some(&table(&mut random)), &Terms::default())
        .unwrap()
        .unwrap();
    let payloads: Vec<Vec<u8>> = messages(transaction.bytes())
        .map(|message| message.unwrap().payload.to_vec())
        .collect();
    let mut understood = 0;
    for _ in 0..100_000 {
        let mut bytes = random.pick(&payloads).clone();
        for _ in 0..random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.below(256)).unwrap();
        }
        if random.chance(4) {
            bytes.truncate(random.below(bytes.len()));
        }
        let _ = decode::table_head(&bytes);
        let _ = decode::chain_head(&bytes);
        let _ = decode::count(&bytes);
        let _ = decode::other("object", &bytes);
        let _ = decode::generation(&bytes);
        let mut sets = Vec::new();
        for payload in [&bytes, random.pick(&payloads)] {
            if let Ok(Some(head)) = decode::set_head(payload) {
                let mut elements = head.elements();
                let _ = elements.read(random.pick::<Vec<u8>>(&payloads));
                let _ = elements.read(&bytes);
                sets.push((head, elements));
            }
        }
        let answers = decode::Answers {
            table: decode::TableHead {
                flags: 0,
                uses: 0,
                birthmark: None,
            },
            chains: payloads
                .iter()
                .chain([&bytes])
                .filter_map(|payload| decode::chain_head(payload).ok().flatten())
                .collect(),
            sets,
            rules: vec![bytes],
            others: Vec::new(),
        };
        if let Ok(table) = decode::assemble(answers) {
            understood += 1;
            let _ = text::table(&table);
            for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
                let _ = rule.to_string();
            }
        }
    }
    assert!(
        understood > 1000,
        "some should have stayed intact: {understood}"
    );
}

/// The policies in examples/, and variants of them that reach every option of the renderer.
fn policies() -> Vec<(String, Policy)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let source = Source::load(&path).unwrap_or_else(|_| panic!("{}", path.display()));
        let policy = match policy::read(&source) {
            Ok(reading) => reading.policy,
            Err(errors) => panic!("{}: {:?}", path.display(), errors.diagnostics),
        };
        let name = path.file_name().unwrap().display().to_string();
        let mut keep = policy.clone();
        keep.options.established = Established::Keep;
        let mut bypass = policy.clone();
        bypass.options.on_appliance_down = OnApplianceDown::Bypass;
        let mut mask = policy.clone();
        mask.options.mark_mask = u32::MAX;
        for appliance in &mut mask.appliances {
            appliance.mark = Mark::new(appliance.mark.value, u32::MAX).unwrap();
        }
        let mut macs = policy.clone();
        for appliance in &mut macs.appliances {
            appliance.macs = vec![MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
        }
        let mut snat = policy.clone();
        for redirect in &mut snat.redirects {
            redirect.snat = true;
            redirect.server_interfaces = vec![IfPattern::new("srv*").unwrap()];
            redirect.except_clients =
                Networks::merged(["10.9.0.0/16", "fd09::/32"].map(|net| net.parse().unwrap()));
        }
        all.extend([
            (format!("{name}, established kept"), keep),
            (format!("{name}, with bypass"), bypass),
            (format!("{name}, all of the mark"), mask),
            (format!("{name}, by MAC address"), macs),
            (format!("{name}, with SNAT and exceptions"), snat),
            (name, policy),
        ]);
    }
    assert!(all.len() >= 48, "{}", all.len());
    all
}

#[test]
fn every_policy_means_the_same_to_us_and_to_nft() {
    let policies = policies();
    let mut previous: Option<Table> = None;
    for (name, policy) in &policies {
        let table = rules::nftables::table(policy).unwrap();
        let text = text::table(&table).unwrap_or_else(|error| panic!("{name}: {error}"));
        let Some(theirs) = in_namespace(|| {
            nft_file(&text);
            listing()
        }) else {
            return;
        };
        let ours = in_namespace(|| {
            let mut kernel = Nftables::open().unwrap();
            kernel.commit(None, Some(&table)).unwrap();
            assert_eq!(kernel.read().unwrap().as_ref(), Some(&table), "{name}");
            let ours = listing();
            // As distributions save and restore all rules: in `nft`'s own words and encoding.
            nft_file(&format!("flush ruleset\n{}", saved()));
            assert_eq!(
                kernel.read().unwrap().as_ref(),
                Some(&table),
                "{name}, saved"
            );
            ours
        })
        .unwrap();
        assert_eq!(ours, theirs, "{name}\n{text}");
        // From the policy before to this one: by us, and by nft as the dry-run would have it.
        let to = Some(&table);
        let piecewise = in_namespace(|| {
            let mut kernel = Nftables::open().unwrap();
            kernel.commit(None, previous.as_ref()).unwrap();
            kernel.commit(previous.as_ref(), to).unwrap();
            assert_eq!(kernel.read().unwrap().as_ref(), to, "{name}");
            sorted(&listing())
        })
        .unwrap();
        assert_eq!(piecewise, sorted(&ours), "{name}");
        let commands = text::commands(previous.as_ref(), to).unwrap();
        let scripted = in_namespace(|| {
            Nftables::open()
                .unwrap()
                .commit(None, previous.as_ref())
                .unwrap();
            if let Some(commands) = &commands {
                nft_file(commands);
            }
            sorted(&listing())
        })
        .unwrap();
        assert_eq!(scripted, sorted(&ours), "{name}");
        previous = Some(table);
    }
}

/// Random networks of 8 to 32 bits, nested and adjacent ones among them, merged.
fn many(random: &mut Random, count: usize) -> Ranges<u32> {
    let mut list = Vec::with_capacity(count);
    let mut kept = Ranges::default();
    while kept.len() < count {
        for _ in kept.len()..count {
            let address = u32::any(random);
            let host = *random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
            let first = address & (u32::MAX << host);
            let end = first | !(u32::MAX << host);
            list.push(Range::from((first, end)));
        }
        kept = Ranges::merged(std::mem::take(&mut list));
        list.extend(kept.as_slice());
    }
    kept
}

/// Not a test that can fail on a slow day: `cargo test --release --test nftables -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn speed() {
    let mut random = Random(1);
    eprintln!(
        "networks   encode    first   second few-more   reread     read   counts   nft -f nft list   delete  [ms]"
    );
    for count in [1, 1_000, 10_000, 100_000] {
        let mut table = small();
        table.sets[0].elements = Elements::V4(many(&mut random, count));
        table.sets.push(Set {
            name: "zz".to_owned(),
            elements: Elements::Ports(Ranges::merged(
                (1..=10)
                    .map(|n| Range {
                        first: n * 100,
                        last: n * 100 + n,
                    })
                    .collect(),
            )),
        });
        let text = text::table(&table).unwrap();
        let mut more = table.clone();
        if let Elements::V4(ranges) = &mut more.sets[0].elements {
            let mut list = ranges.as_slice().to_vec();
            list.extend((0..3).map(|n| Range::from((n * 0x0100_0000 + 7, n * 0x0100_0000 + 7))));
            *ranges = Ranges::merged(list);
        }
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for _ in 0..5 {
            let row = in_namespace(|| {
                let mut row = Vec::new();
                let mut time = |act: &mut dyn FnMut()| {
                    let begin = Instant::now();
                    act();
                    row.push(begin.elapsed().as_secs_f64() * 1e3);
                };
                let mut kernel = Nftables::open().unwrap();
                time(&mut || {
                    drop(wire::transaction(None, Some(&table), &Terms::default()).unwrap());
                });
                time(&mut || kernel.commit(None, Some(&table)).unwrap());
                assert_eq!(kernel.read().unwrap().as_ref(), Some(&table));
                time(&mut || kernel.commit(Some(&table), Some(&table)).unwrap());
                time(&mut || kernel.commit(Some(&table), Some(&more)).unwrap());
                time(&mut || drop(kernel.read().unwrap()));
                let mut fresh = Nftables::open().unwrap();
                time(&mut || drop(fresh.read().unwrap()));
                time(&mut || drop(kernel.counters().unwrap()));
                kernel.commit(Some(&more), None).unwrap();
                time(&mut || nft_file(&text));
                time(&mut || drop(nft(&["list", "ruleset"], "")));
                kernel.read().unwrap();
                time(&mut || kernel.commit(Some(&table), None).unwrap());
                row
            });
            rows.extend(row);
        }
        let medians: Vec<String> = (0..rows.first().map_or(0, Vec::len))
            .map(|column| {
                let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
                values.sort_by(f64::total_cmp);
                format!("{:8.2}", values[values.len() / 2])
            })
            .collect();
        eprintln!("{count:8} {}", medians.join(" "));
    }
}

/// A program that runs until the test is over, however it ends.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Others commit all the time, elsewhere. Each of our steps gets through, and each is right.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "somebody else's script, which runs while we work"
)]
fn we_get_through_where_others_never_rest() {
    const SCRIPT: &str =
        "while :; do nft add rule ip others c counter; nft flush chain ip others c; done";
    let _ = in_namespace(|| {
        nft_file("table ip others { chain c { counter; }; }");
        let others = Background(Command::new("sh").args(["-c", SCRIPT]).spawn().unwrap());
        let mut random = Random(11);
        let mut kernel = Nftables::open().unwrap();
        let mut now: Option<Table> = None;
        for _ in 0..40 {
            let next = (!random.chance(5)).then(|| table(&mut random));
            kernel.commit(now.as_ref(), next.as_ref()).unwrap();
            assert_eq!(kernel.read().unwrap(), next);
            now = next;
            let ours = kernel.generation().unwrap();
            let begun = Instant::now();
            while kernel.generation().unwrap() == ours {
                assert!(begun.elapsed() < Duration::from_secs(60), "the others rest");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        drop(others);
    });
}
