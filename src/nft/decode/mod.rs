//! Reads a table out of the kernel's answers.
//!
//! Nothing is taken for granted: an expression with an attribute, a register or a value
//! that ours do not have becomes [`Expression::Foreign`], a set of another make
//! [`Elements::Foreign`]. What comes out equal to what we made is equal.

mod elements;
mod expressions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use elements::Make;
use expressions::{expression_parts, read_expression};

use super::abi::{chain, expression as x, rule, set, table};
use super::proof::Birthmark;
use super::{Base, Chain, Elements, Expression, Rule, Set, TABLE, Table, Verdict, abi};
use crate::kernel::netlink::{Attribute, Malformed, attributes};

pub use elements::{Boundaries, RawElements};

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
