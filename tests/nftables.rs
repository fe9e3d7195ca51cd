//! Our packet rules against the kernel and against `nft`.
//!
//! Each test makes network namespaces of its own, which go with the threads that made them.
//! Random tables are sent by us in one and as text by `nft -f` in another: what
//! `nft -j list ruleset` then says must be the same, handles and counters aside.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on is to fail, and one that is skipped is to say so"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use redirect::kernel::nftables::Nftables;
use redirect::net::{MacAddr, Range, Ranges, Step};
use redirect::nft::{
    Base, Chain, CtKey, Elements, Expression, MetaKey, PayloadBase, Rule, Set, Table, Verdict, text,
};
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
    reason = "the tests start `nft` as a witness, as a person would"
)]
fn nft(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`nft` must be installed for these tests");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn nft_file(input: &str) {
    let output = nft(&["-f", "-"], input);
    assert!(
        output.status.success(),
        "nft refused our text: {}\n{input}",
        String::from_utf8_lossy(&output.stderr)
    );
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
