//! Reads a table out of the kernel's answers.
//!
//! Nothing is taken for granted: an expression with an attribute, a register or a value
//! that ours do not have becomes [`Expression::Foreign`], a set of another make
//! [`Elements::Foreign`]. What comes out equal to what we made is equal.

use std::collections::BTreeMap;

use super::abi::{self, chain, element, expression as x, rule, set, table};
use super::proof::Birthmark;
use super::wire::Interval;
use super::{
    Base, Chain, CtKey, Elements, Expression, MetaKey, PayloadBase, Rule, Set, TABLE, Table,
    Verdict,
};
use crate::kernel::netlink::{Attribute, Malformed, attributes};
use crate::net::{MacAddr, Range, Ranges};

/// Length of `struct nfgenmsg`, with which each payload begins.
const PREAMBLE: usize = 4;

/// The attributes of a message of the `inet` family; none for other families.
fn inet(payload: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let (fixed, rest) = payload
        .split_first_chunk::<PREAMBLE>()
        .ok_or(Malformed("nf_tables message"))?;
    let [family, ..] = fixed;
    Ok((*family == abi::FAMILY_INET).then_some(rest))
}

/// Of a table's own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHead {
    /// `NFT_TABLE_F_*`.
    pub flags: u32,
    /// How many chains, sets, objects and flowtables are in it.
    pub uses: u32,
    /// What it was made with, where the kernel keeps that.
    pub birthmark: Option<Birthmark>,
}

/// Reads a table's message, if it is our table.
///
/// # Errors
/// If it is malformed.
pub fn table_head(payload: &[u8]) -> Result<Option<TableHead>, Malformed> {
    let Some(rest) = inet(payload)? else {
        return Ok(None);
    };
    let mut head = TableHead {
        flags: 0,
        uses: 0,
        birthmark: None,
    };
    let mut is_ours = false;
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            table::NAME => is_ours = attribute.text() == TABLE,
            table::FLAGS => head.flags = attribute.be32()?,
            table::USE => head.uses = attribute.be32()?,
            table::USERDATA => head.birthmark = birthmark(attribute.value),
            _ => {}
        }
    }
    Ok(is_ours.then_some(head))
}

/// Our note among those of a table.
fn birthmark(notes: &[u8]) -> Option<Birthmark> {
    let text = note(notes, table::USERDATA_BIRTHMARK)?;
    String::from_utf8(text.to_vec()).ok().map(Birthmark)
}

/// Reads the rules' generation.
///
/// # Errors
/// If it is malformed or absent.
pub fn generation(payload: &[u8]) -> Result<u32, Malformed> {
    let rest = payload
        .get(PREAMBLE..)
        .ok_or(Malformed("nf_tables message"))?;
    for attribute in attributes(rest) {
        let attribute = attribute?;
        if attribute.kind == abi::generation::ID {
            return attribute.be32();
        }
    }
    Err(Malformed("generation"))
}

/// Of a chain's own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    name: String,
    base: Option<Base>,
    /// Nameless, within a rule (`jump { … }`).
    is_inline: bool,
}

/// Reads a chain's message, if it is in our table.
///
/// # Errors
/// If it is malformed.
pub fn chain_head(payload: &[u8]) -> Result<Option<ChainHead>, Malformed> {
    let Some(rest) = inet(payload)? else {
        return Ok(None);
    };
    let (mut name, mut flags, mut policy, mut kind) = (String::new(), 0, 1, String::new());
    let (mut is_ours, mut hook) = (false, None);
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            chain::TABLE => is_ours = attribute.text() == TABLE,
            chain::NAME => name = attribute.text(),
            chain::FLAGS => flags = attribute.be32()?,
            chain::POLICY => policy = attribute.be32()?,
            chain::TYPE => kind = attribute.text(),
            chain::HOOK => {
                let (mut number, mut priority) = (0, 0);
                for inner in attribute.nested() {
                    let inner = inner?;
                    match inner.kind {
                        chain::HOOK_NUMBER => number = inner.be32()?,
                        chain::HOOK_PRIORITY => priority = i32::from_be_bytes(inner.array()?),
                        _ => {}
                    }
                }
                hook = Some((number, priority));
            }
            _ => {}
        }
    }
    let base = hook.map(|(hook, priority)| Base {
        kind,
        hook,
        priority,
        policy,
    });
    Ok(is_ours.then_some(ChainHead {
        name,
        base,
        is_inline: flags & chain::FLAG_BINDING != 0,
    }))
}

/// Of a set's own message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetHead {
    /// Its name, by which its elements are asked for.
    pub name: String,
    flags: u32,
    key_type: u32,
    key_length: u32,
    data_type: u32,
    /// It has a timeout, expressions, a size: whatever ours have not.
    is_odd: bool,
    has_size: bool,
}

/// Reads a set's message, if it is in our table.
///
/// # Errors
/// If it is malformed.
pub fn set_head(payload: &[u8]) -> Result<Option<SetHead>, Malformed> {
    let Some(rest) = inet(payload)? else {
        return Ok(None);
    };
    let mut head = SetHead::default();
    let mut is_ours = false;
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            set::TABLE => is_ours = attribute.text() == TABLE,
            set::NAME => head.name = attribute.text(),
            set::FLAGS => head.flags = attribute.be32()?,
            set::KEY_TYPE => head.key_type = attribute.be32()?,
            set::KEY_LENGTH => head.key_length = attribute.be32()?,
            set::DATA_TYPE => head.data_type = attribute.be32()?,
            set::DESCRIPTION => {
                for inner in attribute.nested() {
                    let inner = inner?;
                    if inner.kind == set::DESCRIPTION_SIZE {
                        head.has_size = inner.be32()? != 0;
                    } else {
                        head.is_odd = true;
                    }
                }
            }
            set::POLICY | set::TIMEOUT | set::OBJECT_TYPE | set::EXPRESSION | set::EXPRESSIONS => {
                head.is_odd = true;
            }
            _ => {}
        }
    }
    Ok(is_ours.then_some(head))
}

/// What a set's elements are to be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    V4,
    V6,
    Ports,
    Macs,
    V4Verdicts,
    V6Verdicts,
    PortVerdicts,
    Inline,
    Foreign,
}

impl Make {
    /// Whether `elements` are of this make.
    fn of(self, elements: &Elements) -> bool {
        self == match elements {
            Elements::V4(_) => Self::V4,
            Elements::V6(_) => Self::V6,
            Elements::Ports(_) => Self::Ports,
            Elements::Macs(_) => Self::Macs,
            Elements::V4Verdicts(_) => Self::V4Verdicts,
            Elements::V6Verdicts(_) => Self::V6Verdicts,
            Elements::PortVerdicts(_) => Self::PortVerdicts,
            Elements::Foreign(_) => return false,
        }
    }
}

impl SetHead {
    /// Whether a set with this head can hold `elements`.
    #[must_use]
    pub fn can_hold(&self, elements: &Elements) -> bool {
        self.make().of(elements)
    }

    fn make(&self) -> Make {
        let is_map = self.flags & set::FLAG_MAP != 0;
        if self.is_odd || is_map && self.data_type != set::DATA_VERDICT {
            return Make::Foreign;
        }
        if self.flags == set::FLAG_ANONYMOUS | set::FLAG_CONSTANT | set::FLAG_MAP {
            return Make::Inline;
        }
        if self.has_size {
            return Make::Foreign;
        }
        match (self.flags & !set::FLAG_MAP, self.key_type, is_map) {
            (set::FLAG_INTERVAL, set::TYPE_IPV4, false) => Make::V4,
            (set::FLAG_INTERVAL, set::TYPE_IPV6, false) => Make::V6,
            (set::FLAG_INTERVAL, set::TYPE_SERVICE, false) => Make::Ports,
            (set::FLAG_INTERVAL, set::TYPE_IPV4, true) => Make::V4Verdicts,
            (set::FLAG_INTERVAL, set::TYPE_IPV6, true) => Make::V6Verdicts,
            (set::FLAG_INTERVAL, set::TYPE_SERVICE, true) => Make::PortVerdicts,
            (0, set::TYPE_ETHER, false) => Make::Macs,
            _ => Make::Foreign,
        }
    }

    fn is_anonymous(&self) -> bool {
        self.flags & set::FLAG_ANONYMOUS != 0
    }

    /// Whether its elements can be understood, and are worth asking for.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.make() != Make::Foreign
    }

    fn description(&self) -> String {
        let what = if self.is_known() {
            // Only its elements can be the reason.
            "elements that touch each other or have extras"
        } else if self.is_odd {
            "with a timeout, a size or other extras"
        } else {
            "of another type"
        };
        format!(
            "{what}; key type {}, flags {:#x}",
            self.key_type, self.flags
        )
    }

    /// An empty list for this set's elements.
    #[must_use]
    pub fn elements(&self) -> RawElements {
        match self.make() {
            Make::V4 | Make::V4Verdicts => RawElements::V4(Boundaries::default()),
            Make::V6 | Make::V6Verdicts => RawElements::V6(Boundaries::default()),
            Make::Ports | Make::PortVerdicts => RawElements::Ports(Boundaries::default()),
            Make::Macs => RawElements::Macs(Vec::new()),
            Make::Inline => RawElements::Inline(Vec::new()),
            Make::Foreign => RawElements::Foreign,
        }
    }
}

/// A set's elements as they come, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawElements {
    /// IPv4 addresses.
    V4(Boundaries<u32>),
    /// IPv6 addresses.
    V6(Boundaries<u128>),
    /// Ports.
    Ports(Boundaries<u16>),
    /// Ethernet addresses.
    Macs(Vec<MacAddr>),
    /// Of a map inline in a rule.
    Inline(Vec<(Vec<u8>, Verdict)>),
    /// They need not be read, for it is known what they are.
    Known(Elements),
    /// Something unlike ours was among them.
    Foreign,
}

/// Where intervals begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundaries<T> {
    begins: Vec<(T, Option<Verdict>)>,
    /// The first number after an interval.
    ends: Vec<T>,
}

impl<T> Default for Boundaries<T> {
    fn default() -> Self {
        Self {
            begins: Vec::new(),
            ends: Vec::new(),
        }
    }
}

/// One element.
struct Element<'a> {
    key: &'a [u8],
    is_end: bool,
    verdict: Option<Verdict>,
}

impl RawElements {
    /// Adds the elements of one message.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let Some(rest) = inet(payload)? else {
            return Ok(());
        };
        for attribute in attributes(rest) {
            let attribute = attribute?;
            if attribute.kind != element::LIST_ELEMENTS {
                continue;
            }
            for item in attribute.nested() {
                let known = read_element(item?)?.is_some_and(|element| self.push(element));
                if !known {
                    *self = Self::Foreign;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Adds an element; `false` if it does not belong here.
    fn push(&mut self, element: Element<'_>) -> bool {
        match self {
            Self::V4(boundaries) => boundaries.push(element),
            Self::V6(boundaries) => boundaries.push(element),
            Self::Ports(boundaries) => boundaries.push(element),
            Self::Macs(macs) => match (element.key.try_into(), element.verdict) {
                (Ok(mac), None) if !element.is_end => {
                    macs.push(MacAddr(mac));
                    true
                }
                _ => false,
            },
            Self::Inline(elements) => match element.verdict {
                Some(verdict) if !element.is_end => {
                    elements.push((element.key.to_vec(), verdict));
                    true
                }
                _ => false,
            },
            Self::Known(_) | Self::Foreign => false,
        }
    }

    /// Takes in what another part of the same set's dump held.
    pub fn append(&mut self, other: Self) {
        match (self, other) {
            (Self::V4(all), Self::V4(more)) => all.append(more),
            (Self::V6(all), Self::V6(more)) => all.append(more),
            (Self::Ports(all), Self::Ports(more)) => all.append(more),
            (Self::Macs(all), Self::Macs(mut more)) => all.append(&mut more),
            (Self::Inline(all), Self::Inline(mut more)) => all.append(&mut more),
            (this, _) => *this = Self::Foreign,
        }
    }

    /// The set's elements, sorted; `None` if some are unlike ours.
    fn finish(self, make: Make) -> Option<Elements> {
        Some(match (make, self) {
            (Make::V4, Self::V4(found)) => Elements::V4(found.plain()?),
            (Make::V6, Self::V6(found)) => Elements::V6(found.plain()?),
            (Make::Ports, Self::Ports(found)) => Elements::Ports(found.plain()?),
            (Make::V4Verdicts, Self::V4(found)) => Elements::V4Verdicts(found.mapped()?),
            (Make::V6Verdicts, Self::V6(found)) => Elements::V6Verdicts(found.mapped()?),
            (Make::PortVerdicts, Self::Ports(found)) => Elements::PortVerdicts(found.mapped()?),
            (Make::Macs, Self::Macs(mut macs)) => {
                macs.sort_unstable();
                Elements::Macs(macs)
            }
            (make, Self::Known(elements)) if make.of(&elements) => elements,
            _ => return None,
        })
    }
}

fn read_element(item: Attribute<'_>) -> Result<Option<Element<'_>>, Malformed> {
    let mut key: Option<&[u8]> = None;
    let (mut is_end, mut verdict) = (false, None);
    for attribute in item.nested() {
        let attribute = attribute?;
        match attribute.kind {
            element::KEY => key = value(attribute)?,
            element::FLAGS => match attribute.be32()? {
                0 => {}
                element::FLAG_INTERVAL_END => is_end = true,
                _ => return Ok(None),
            },
            element::DATA => match read_verdict(attribute)? {
                Some(found) => verdict = Some(found),
                None => return Ok(None),
            },
            // A comment of somebody's, or nft's own note: no packet is treated otherwise.
            element::USERDATA => {}
            _ => return Ok(None),
        }
    }
    Ok(key.map(|key| Element {
        key,
        is_end,
        verdict,
    }))
}

/// What a `NFTA_DATA_VALUE` holds.
fn value(attribute: Attribute<'_>) -> Result<Option<&[u8]>, Malformed> {
    for inner in attribute.nested() {
        let inner = inner?;
        if inner.kind == element::DATA_VALUE {
            return Ok(Some(inner.value));
        }
    }
    Ok(None)
}

/// What a `NFTA_DATA_VERDICT` holds, if it is one of ours.
fn read_verdict(attribute: Attribute<'_>) -> Result<Option<Verdict>, Malformed> {
    let (mut code, mut chain) = (None, None);
    for data in attribute.nested() {
        let data = data?;
        if data.kind != element::DATA_VERDICT {
            continue;
        }
        for inner in data.nested() {
            let inner = inner?;
            match inner.kind {
                element::VERDICT_CODE => code = Some(inner.be32()?),
                element::VERDICT_CHAIN => chain = Some(inner.text()),
                _ => {}
            }
        }
    }
    Ok(match (code, chain) {
        (Some(abi::verdict::ACCEPT), None) => Some(Verdict::Accept),
        (Some(abi::verdict::DROP), None) => Some(Verdict::Drop),
        (Some(abi::verdict::RETURN), None) => Some(Verdict::Return),
        (Some(abi::verdict::JUMP), Some(chain)) => Some(Verdict::Jump(chain)),
        (Some(abi::verdict::GOTO), Some(chain)) => Some(Verdict::Goto(chain)),
        _ => None,
    })
}

impl<T: Interval> Boundaries<T> {
    fn push(&mut self, element: Element<'_>) -> bool {
        match T::from_key(element.key) {
            Some(end) if element.is_end => {
                self.ends.push(end);
                true
            }
            Some(begin) => {
                self.begins.push((begin, element.verdict));
                true
            }
            None => false,
        }
    }

    fn append(&mut self, mut other: Self) {
        self.begins.append(&mut other.begins);
        self.ends.append(&mut other.ends);
    }

    /// Each beginning with what ends it: the first end after it, or the next beginning.
    /// An end without a beginning is that which nft puts at 0; it means nothing.
    fn intervals(mut self) -> impl Iterator<Item = Option<(Range<T>, Option<Verdict>)>> {
        self.begins.sort_unstable();
        self.ends.sort_unstable();
        let nexts: Vec<Option<T>> = self
            .begins
            .iter()
            .skip(1)
            .map(|(begin, _)| Some(*begin))
            .chain([None])
            .collect();
        let mut ends = self.ends.into_iter().peekable();
        self.begins
            .into_iter()
            .zip(nexts)
            .map(move |((first, verdict), next)| {
                while ends.next_if(|end| *end <= first).is_some() {}
                let after = match (ends.peek().copied(), next) {
                    (Some(end), Some(next)) => Some(end.min(next)),
                    (end, next) => end.or(next),
                };
                let last = match after {
                    Some(after) => after.previous().filter(|last| *last >= first)?,
                    None => T::LAST,
                };
                Some((Range { first, last }, verdict))
            })
    }

    fn plain(self) -> Option<Ranges<T>> {
        let mut ranges = Vec::with_capacity(self.begins.len());
        for interval in self.intervals() {
            match interval? {
                (range, None) => ranges.push(range),
                (_, Some(_)) => return None,
            }
        }
        // Ours never touch each other. Two that do are the same to a packet, but each has
        // its own elements in the kernel, and would have to be deleted as such.
        let count = ranges.len();
        let merged = Ranges::merged(ranges);
        (merged.len() == count).then_some(merged)
    }

    fn mapped(self) -> Option<Vec<(Range<T>, Verdict)>> {
        self.intervals()
            .map(|interval| {
                let (range, verdict) = interval?;
                Some((range, verdict?))
            })
            .collect()
    }
}

/// Whether a rule's message concerns our table; the rule's place in the dump is its place
/// in its chain.
///
/// # Errors
/// If it is malformed.
pub fn is_our_rule(payload: &[u8]) -> Result<bool, Malformed> {
    let Some(rest) = inet(payload)? else {
        return Ok(false);
    };
    for attribute in attributes(rest) {
        let attribute = attribute?;
        if attribute.kind == rule::TABLE {
            return Ok(attribute.text() == TABLE);
        }
    }
    Ok(false)
}

/// The kernel's answers about our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The table's own.
    pub table: TableHead,
    /// Its chains, in any order.
    pub chains: Vec<ChainHead>,
    /// Its sets, in any order, with their elements.
    pub sets: Vec<(SetHead, RawElements)>,
    /// Payloads of its rules, in order.
    pub rules: Vec<Vec<u8>>,
    /// Names of objects and flowtables.
    pub others: Vec<String>,
}

/// Puts a table together.
///
/// # Errors
/// If an answer is malformed, or a rule's chain is missing.
pub fn assemble(answers: Answers) -> Result<Table, Malformed> {
    let mut others = answers.others;
    let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
    for head in answers.chains {
        if head.is_inline {
            others.push(format!("inline chain `{}`", head.name));
        }
        let chain = Chain {
            name: head.name.clone(),
            base: head.base,
            rules: Vec::new(),
        };
        chains.insert(head.name, chain);
    }
    let mut sets = Vec::new();
    let mut inline: BTreeMap<String, Inline> = BTreeMap::new();
    for (head, elements) in answers.sets {
        let make = head.make();
        if head.is_anonymous() {
            let content = match (make, elements) {
                (Make::Inline, RawElements::Inline(mut elements)) => {
                    elements.sort();
                    Some((elements, head.key_type))
                }
                _ => None,
            };
            inline.insert(head.name, content);
            continue;
        }
        let elements = elements
            .finish(make)
            .unwrap_or_else(|| Elements::Foreign(head.description()));
        sets.push(Set {
            name: head.name,
            elements,
        });
    }
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    for payload in &answers.rules {
        let (chain, rule) = read_rule(payload, &inline)?;
        chains
            .get_mut(&chain)
            .ok_or(Malformed("rule without its chain"))?
            .rules
            .push(rule);
    }
    others.sort();
    Ok(Table {
        flags: answers.table.flags,
        sets,
        chains: chains.into_values().collect(),
        others,
    })
}

/// What a set inline in a rule holds, and its keys' type, if it is a map like ours.
type Inline = Option<(Vec<(Vec<u8>, Verdict)>, u32)>;

/// A rule's parts, not yet understood.
struct RuleParts<'a> {
    chain: String,
    comment: Option<String>,
    expressions: Vec<Attribute<'a>>,
}

fn rule_parts(payload: &[u8]) -> Result<RuleParts<'_>, Malformed> {
    let rest = payload
        .get(PREAMBLE..)
        .ok_or(Malformed("nf_tables message"))?;
    let mut parts = RuleParts {
        chain: String::new(),
        comment: None,
        expressions: Vec::new(),
    };
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            rule::CHAIN => parts.chain = attribute.text(),
            rule::EXPRESSIONS => {
                parts.expressions = attribute.nested().collect::<Result<_, _>>()?;
            }
            rule::USERDATA => parts.comment = comment(attribute.value),
            _ => {}
        }
    }
    Ok(parts)
}

/// The comment among nft's notes.
fn comment(notes: &[u8]) -> Option<String> {
    let text = note(notes, rule::USERDATA_COMMENT)?;
    let text = text.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The first of these notes that is of this type: each is type, length, value.
fn note(notes: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = notes;
    while let [kind, length, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        rest = next;
    }
    None
}

fn read_rule(
    payload: &[u8],
    inline: &BTreeMap<String, Inline>,
) -> Result<(String, Rule), Malformed> {
    let parts = rule_parts(payload)?;
    let mut expressions = Vec::with_capacity(parts.expressions.len());
    for item in parts.expressions {
        let (name, data) = expression_parts(item)?;
        let known = read_expression(&name, data, inline)?;
        expressions.push(known.unwrap_or_else(|| Expression::Foreign {
            name,
            data: data.to_vec(),
        }));
    }
    let rule = Rule {
        expressions,
        comment: parts.comment,
    };
    Ok((parts.chain, rule))
}

fn expression_parts(item: Attribute<'_>) -> Result<(String, &[u8]), Malformed> {
    let (mut name, mut data): (_, &[u8]) = (String::new(), &[]);
    for attribute in item.nested() {
        let attribute = attribute?;
        match attribute.kind {
            x::NAME => name = attribute.text(),
            x::DATA => data = attribute.value,
            _ => {}
        }
    }
    Ok((name, data))
}

/// What a rule counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The chain and comment of a rule, and what it counted; none if it does not count.
///
/// # Errors
/// If it is malformed.
pub fn count(payload: &[u8]) -> Result<Option<(String, Option<String>, Count)>, Malformed> {
    let parts = rule_parts(payload)?;
    let mut total = None;
    for item in parts.expressions {
        let (name, data) = expression_parts(item)?;
        if name != "counter" {
            continue;
        }
        let total = total.get_or_insert_with(Count::default);
        for attribute in attributes(data) {
            let attribute = attribute?;
            match attribute.kind {
                x::COUNTER_BYTES => total.bytes = attribute.be64()?,
                x::COUNTER_PACKETS => total.packets = attribute.be64()?,
                _ => {}
            }
        }
    }
    Ok(total.map(|total| (parts.chain, parts.comment, total)))
}

/// The name of an object or flowtable, if it is in our table.
///
/// # Errors
/// If it is malformed.
pub fn other(kind: &str, payload: &[u8]) -> Result<Option<String>, Malformed> {
    let Some(rest) = inet(payload)? else {
        return Ok(None);
    };
    let (mut is_ours, mut name) = (false, String::new());
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            // Of objects and flowtables alike.
            1 => is_ours = attribute.text() == TABLE,
            2 => name = attribute.text(),
            _ => {}
        }
    }
    Ok(is_ours.then(|| format!("{kind} `{name}`")))
}

/// The attributes of an expression, each at most once, by number.
struct Parts<'a>([Option<Attribute<'a>>; 8]);

impl<'a> Parts<'a> {
    /// `None` if there are any that we do not know.
    fn read(data: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let mut parts = Self([None; 8]);
        for attribute in attributes(data) {
            let attribute = attribute?;
            match parts.0.get_mut(usize::from(attribute.kind)) {
                Some(slot) if slot.is_none() => *slot = Some(attribute),
                _ => return Ok(None),
            }
        }
        Ok(Some(parts))
    }

    /// Whether there are these attributes and no others.
    fn are(&self, wanted: &[u16]) -> bool {
        (0..)
            .zip(&self.0)
            .all(|(kind, slot)| slot.is_some() == wanted.contains(&kind))
    }

    fn get(&self, kind: u16) -> Option<Attribute<'a>> {
        self.0.get(usize::from(kind)).copied().flatten()
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.be32().ok()
    }

    fn is_register_1(&self, kind: u16) -> bool {
        self.number(kind) == Some(x::REGISTER_1)
    }

    fn bytes(&self, kind: u16) -> Option<Vec<u8>> {
        let mut nested = self.get(kind)?.nested();
        let only = nested.next()?.ok()?;
        (only.kind == element::DATA_VALUE && nested.next().is_none()).then(|| only.value.to_vec())
    }
}

/// An expression, if it is one that ours have.
fn read_expression(
    name: &str,
    data: &[u8],
    inline: &BTreeMap<String, Inline>,
) -> Result<Option<Expression>, Malformed> {
    let Some(parts) = Parts::read(data)? else {
        return Ok(None);
    };
    Ok(match name {
        "meta" => read_meta(&parts),
        "ct" => read_ct(&parts),
        "payload" => read_payload(&parts),
        "bitwise" => read_bitwise(&parts),
        "cmp" => read_compare(&parts),
        "lookup" => read_lookup(&parts, inline),
        // What it has counted is not part of what it does.
        "counter" => Some(Expression::Counter),
        "reject" => (parts.are(&[x::REJECT_TYPE, x::REJECT_CODE])
            && parts.number(x::REJECT_TYPE) == Some(x::REJECT_ICMPX)
            && parts.get(x::REJECT_CODE).and_then(|code| code.u8().ok())
                == Some(x::REJECT_PROHIBITED))
        .then_some(Expression::RejectProhibited),
        "immediate" => {
            let is_verdict = parts.are(&[x::IMMEDIATE_DESTINATION, x::IMMEDIATE_DATA])
                && parts.number(x::IMMEDIATE_DESTINATION) == Some(x::REGISTER_VERDICT);
            match parts.get(x::IMMEDIATE_DATA) {
                Some(data) if is_verdict => read_verdict(data)?.map(Expression::Verdict),
                _ => None,
            }
        }
        _ => None,
    })
}

fn read_meta(parts: &Parts<'_>) -> Option<Expression> {
    let number = parts.number(x::META_KEY)?;
    let key = MetaKey::ALL
        .into_iter()
        .find(|key| key.number() == number)?;
    if parts.are(&[x::META_KEY, x::META_DESTINATION]) && parts.is_register_1(x::META_DESTINATION) {
        Some(Expression::MetaLoad(key))
    } else if parts.are(&[x::META_KEY, x::META_SOURCE]) && parts.is_register_1(x::META_SOURCE) {
        Some(Expression::MetaSet(key))
    } else {
        None
    }
}

fn read_ct(parts: &Parts<'_>) -> Option<Expression> {
    let number = parts.number(x::CT_KEY)?;
    let key = CtKey::ALL.into_iter().find(|key| key.number() == number)?;
    if parts.are(&[x::CT_KEY, x::CT_DESTINATION]) && parts.is_register_1(x::CT_DESTINATION) {
        Some(Expression::CtLoad(key))
    } else if parts.are(&[x::CT_KEY, x::CT_SOURCE]) && parts.is_register_1(x::CT_SOURCE) {
        Some(Expression::CtSet(key))
    } else {
        None
    }
}

fn read_payload(parts: &Parts<'_>) -> Option<Expression> {
    let wanted = [
        x::PAYLOAD_DESTINATION,
        x::PAYLOAD_BASE,
        x::PAYLOAD_OFFSET,
        x::PAYLOAD_LENGTH,
    ];
    let number = parts.number(x::PAYLOAD_BASE)?;
    let base = PayloadBase::ALL
        .into_iter()
        .find(|base| base.number() == number)?;
    (parts.are(&wanted) && parts.is_register_1(x::PAYLOAD_DESTINATION)).then_some(())?;
    Some(Expression::Payload {
        base,
        offset: parts.number(x::PAYLOAD_OFFSET)?,
        length: parts.number(x::PAYLOAD_LENGTH)?,
    })
}

fn read_bitwise(parts: &Parts<'_>) -> Option<Expression> {
    let old = [
        x::BITWISE_SOURCE,
        x::BITWISE_DESTINATION,
        x::BITWISE_LENGTH,
        x::BITWISE_MASK,
        x::BITWISE_XOR,
    ];
    let is_new = match parts.number(x::BITWISE_OPERATION) {
        Some(0) => true,
        Some(_) => return None,
        None => false,
    };
    let mut wanted = old.to_vec();
    if is_new {
        wanted.push(x::BITWISE_OPERATION);
    }
    let registers =
        parts.is_register_1(x::BITWISE_SOURCE) && parts.is_register_1(x::BITWISE_DESTINATION);
    let (mask, xor) = (parts.bytes(x::BITWISE_MASK)?, parts.bytes(x::BITWISE_XOR)?);
    let length = usize::try_from(parts.number(x::BITWISE_LENGTH)?).ok()?;
    (parts.are(&wanted) && registers && mask.len() == length && xor.len() == length)
        .then_some(Expression::Bitwise { mask, xor })
}

fn read_compare(parts: &Parts<'_>) -> Option<Expression> {
    let equal = match parts.number(x::COMPARE_OPERATION)? {
        x::COMPARE_EQUAL => true,
        x::COMPARE_NOT_EQUAL => false,
        _ => return None,
    };
    let wanted = [x::COMPARE_SOURCE, x::COMPARE_OPERATION, x::COMPARE_DATA];
    (parts.are(&wanted) && parts.is_register_1(x::COMPARE_SOURCE)).then_some(())?;
    Some(Expression::Compare {
        equal,
        bytes: parts.bytes(x::COMPARE_DATA)?,
    })
}

fn read_lookup(parts: &Parts<'_>, inline: &BTreeMap<String, Inline>) -> Option<Expression> {
    let set = parts.get(x::LOOKUP_SET)?.text();
    parts.is_register_1(x::LOOKUP_SOURCE).then_some(())?;
    let flags = parts.number(x::LOOKUP_FLAGS).unwrap_or(0);
    let mut wanted = vec![x::LOOKUP_SET, x::LOOKUP_SOURCE];
    if parts.get(x::LOOKUP_FLAGS).is_some() {
        wanted.push(x::LOOKUP_FLAGS);
    }
    if parts.are(&wanted) && flags <= x::LOOKUP_INVERT && !inline.contains_key(&set) {
        return Some(Expression::Lookup {
            set,
            invert: flags == x::LOOKUP_INVERT,
        });
    }
    wanted.push(x::LOOKUP_DESTINATION);
    let is_map = parts.are(&wanted)
        && flags == 0
        && parts.number(x::LOOKUP_DESTINATION) == Some(x::REGISTER_VERDICT);
    is_map.then_some(())?;
    match inline.get(&set) {
        None => Some(Expression::VerdictMap { map: set }),
        Some(content) => content
            .clone()
            .map(|(elements, key_type)| Expression::InlineVerdictMap { elements, key_type }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boundaries(begins: &[u16], ends: &[u16]) -> Boundaries<u16> {
        Boundaries {
            begins: begins.iter().map(|begin| (*begin, None)).collect(),
            ends: ends.to_vec(),
        }
    }

    fn ranges(begins: &[u16], ends: &[u16]) -> Option<Vec<(u16, u16)>> {
        let ranges = boundaries(begins, ends).plain()?;
        Some(
            ranges
                .iter()
                .map(|range| (range.first, range.last))
                .collect(),
        )
    }

    #[test]
    fn intervals_are_put_together_in_whatever_order_they_come() {
        assert_eq!(ranges(&[], &[]), Some(vec![]));
        assert_eq!(ranges(&[30, 10], &[11, 40]), Some(vec![(10, 10), (30, 39)]));
        // nft's end at 0 means nothing.
        assert_eq!(ranges(&[], &[0]), Some(vec![]));
        assert_eq!(ranges(&[5], &[0, 6]), Some(vec![(5, 5)]));
        // What reaches the greatest number has no end.
        assert_eq!(
            ranges(&[0, 65_535], &[9]),
            Some(vec![(0, 8), (65_535, 65_535)])
        );
        assert_eq!(ranges(&[0], &[]), Some(vec![(0, u16::MAX)]));
    }

    #[test]
    fn intervals_that_touch_are_not_ours() {
        assert_eq!(ranges(&[1, 5], &[5, 9]), None);
        assert_eq!(ranges(&[1, 1], &[5]), None);
        let mut with_verdict = boundaries(&[1], &[2]);
        with_verdict.begins[0].1 = Some(Verdict::Drop);
        assert_eq!(with_verdict.plain(), None);
        assert_eq!(boundaries(&[1], &[2]).mapped(), None);
    }

    #[test]
    fn a_comment_is_found_among_other_notes() {
        assert_eq!(comment(b"\x00\x04rdp\x00"), Some("rdp".to_owned()));
        assert_eq!(comment(b"\x01\x01x\x00\x03ab\x00"), Some("ab".to_owned()));
        assert_eq!(comment(b"\x00\x09rdp\x00"), None);
        assert_eq!(comment(b""), None);
    }
}
