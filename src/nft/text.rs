//! The language of `nft`: what people read, and what `nft -f` takes.
//!
//! A rule's instructions are translated back into the statements that `nft` would
//! make just these instructions from. `nft` itself adds what a header's field takes for
//! granted (`meta l4proto tcp` before a TCP port, `meta nfproto ipv4` before an IPv4
//! address, `meta iiftype ether` before an Ethernet address); so these are left out where
//! it would add the very same, and stand where it would not. What the language cannot say
//! is shown to people in brackets, and refused as input for `nft`.
//!
//! Only words that nft 0.9 and later read alike are used: `and`, `or` and `xor` on marks,
//! numbers for priorities.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::abi::set;
use super::wire::Interval;
use super::{
    Base, Chain, CtKey, Elements, Expression, Impossible, MetaKey, PayloadBase, Rule, Set, TABLE,
    Table, Verdict,
};
use crate::net::{MacAddr, Range};

/// Columns after which a list of elements goes on in the next line.
const WIDTH: usize = 96;

/// What `nft -f` takes to bring `from` to `to`, all in one transaction; none if they are equal.
///
/// # Errors
/// Names what in `to` nft's language cannot say.
pub fn commands(from: Option<&Table>, to: Option<&Table>) -> Result<Option<String>, Impossible> {
    if from == to {
        return Ok(None);
    }
    Ok(match (from, to) {
        (None, None) => None,
        (Some(_), None) => Some(format!("{DELETE}\n")),
        (None, Some(to)) => Some(table(to)?),
        // The first line makes the second succeed even if the table has gone meanwhile.
        (Some(_), Some(to)) => Some(format!("add table inet {TABLE}\n{DELETE}\n{}", table(to)?)),
    })
}

/// The command that takes all of it away, after `nft`.
pub const DELETE: &str = "delete table inet scb-redirect";

/// A table as `nft -f` takes it, and as `nft list table` shows it.
///
/// # Errors
/// Names what nft's language cannot say.
pub fn table(table: &Table) -> Result<String, Impossible> {
    if let Some(other) = table.others.first() {
        return Err(impossible(
            other.clone(),
            "`redirect` never makes such things",
        ));
    }
    let mut out = format!("table inet {TABLE} {{\n");
    match table.flags {
        0 => {}
        1 => out.push_str("\tflags dormant;\n\n"),
        flags => {
            let reason = format!("its flags {flags:#x} cannot be written");
            return Err(impossible(format!("table `inet {TABLE}`"), &reason));
        }
    }
    let mut is_first = true;
    for set in &table.sets {
        separate(&mut out, &mut is_first);
        write_set(&mut out, set)?;
    }
    for chain in &table.chains {
        separate(&mut out, &mut is_first);
        write_chain(&mut out, chain)?;
    }
    out.push_str("}\n");
    Ok(out)
}

fn separate(out: &mut String, is_first: &mut bool) {
    if !std::mem::take(is_first) {
        out.push('\n');
    }
}

fn impossible(object: String, reason: &str) -> Impossible {
    Impossible {
        object,
        reason: reason.to_owned(),
    }
}

/// Whether `nft` reads `name` as one word (nftables' `src/scanner.l`). Its keywords are not
/// known here.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || matches!(first, b'_' | b'.'))
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"/\\-_.".contains(&byte))
}

fn check_identifier(kind: &str, name: &str) -> Result<(), Impossible> {
    if is_identifier(name) {
        Ok(())
    } else {
        Err(impossible(
            format!("{kind} `{name}`"),
            "nft cannot read its name",
        ))
    }
}

fn write_set(out: &mut String, set: &Set) -> Result<(), Impossible> {
    check_identifier("set", &set.name)?;
    let (word, kind, interval) = match &set.elements {
        Elements::V4(_) => ("set", "ipv4_addr", true),
        Elements::V6(_) => ("set", "ipv6_addr", true),
        Elements::Ports(_) => ("set", "inet_service", true),
        Elements::Macs(_) => ("set", "ether_addr", false),
        Elements::V4Verdicts(_) => ("map", "ipv4_addr : verdict", true),
        Elements::V6Verdicts(_) => ("map", "ipv6_addr : verdict", true),
        Elements::PortVerdicts(_) => ("map", "inet_service : verdict", true),
        Elements::Foreign(description) => {
            return Err(impossible(
                format!("set `{}` ({description})", set.name),
                "`redirect` never makes such sets",
            ));
        }
    };
    let _ = writeln!(out, "\t{word} {} {{\n\t\ttype {kind};", set.name);
    if interval {
        out.push_str("\t\tflags interval;\n");
    }
    if !set.elements.is_empty() {
        out.push_str("\t\telements = { ");
        let mut column = 32;
        let mut is_first = true;
        set.elements.each(|element| {
            if std::mem::take(&mut is_first) {
                column += element.len();
            } else {
                out.push(',');
                column += element.len() + 2;
                if column > WIDTH {
                    out.push_str("\n\t\t\t     ");
                    column = 32 + element.len();
                } else {
                    out.push(' ');
                }
            }
            out.push_str(element);
        });
        out.push_str(" };\n");
    }
    out.push_str("\t}\n");
    Ok(())
}

impl Elements {
    /// Whether there are none. Of a foreign set that is not known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many; of a foreign set, 0.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.len(),
            Self::V6(ranges) => ranges.len(),
            Self::Ports(ranges) => ranges.len(),
            Self::Macs(macs) => macs.len(),
            Self::V4Verdicts(list) => list.len(),
            Self::V6Verdicts(list) => list.len(),
            Self::PortVerdicts(list) => list.len(),
            Self::Foreign(_) => 0,
        }
    }

    /// Calls `with` with each element as nft writes it, ascending.
    pub fn each(&self, mut with: impl FnMut(&str)) {
        let mut text = String::new();
        let mut show = |write: &dyn Fn(&mut String)| {
            text.clear();
            write(&mut text);
            with(&text);
        };
        match self {
            Self::V4(ranges) => ranges.iter().for_each(|range| show(&|to| range.write(to))),
            Self::V6(ranges) => ranges.iter().for_each(|range| show(&|to| range.write(to))),
            Self::Ports(ranges) => ranges.iter().for_each(|range| show(&|to| range.write(to))),
            Self::Macs(macs) => macs.iter().for_each(|mac| show(&|to| mac.write(to))),
            Self::V4Verdicts(list) => list.iter().for_each(|pair| show(&|to| pair.write(to))),
            Self::V6Verdicts(list) => list.iter().for_each(|pair| show(&|to| pair.write(to))),
            Self::PortVerdicts(list) => list.iter().for_each(|pair| show(&|to| pair.write(to))),
            Self::Foreign(_) => {}
        }
    }
}

/// Something that can be an element.
pub(super) trait Written {
    /// Appends it as nft writes it.
    fn write(&self, to: &mut String);
}

impl Written for Range<u16> {
    fn write(&self, to: &mut String) {
        let _ = write!(to, "{self}");
    }
}

impl Written for Range<u32> {
    fn write(&self, to: &mut String) {
        let _ = write!(to, "{}", Ipv4Addr::from_bits(self.first));
        match prefix_length(self.first.into(), self.last.into(), 32) {
            Some(32) => {}
            Some(length) => {
                let _ = write!(to, "/{length}");
            }
            None => {
                let _ = write!(to, "-{}", Ipv4Addr::from_bits(self.last));
            }
        }
    }
}

impl Written for Range<u128> {
    fn write(&self, to: &mut String) {
        let _ = write!(to, "{}", Ipv6Addr::from_bits(self.first));
        match prefix_length(self.first, self.last, 128) {
            Some(128) => {}
            Some(length) => {
                let _ = write!(to, "/{length}");
            }
            None => {
                let _ = write!(to, "-{}", Ipv6Addr::from_bits(self.last));
            }
        }
    }
}

impl Written for MacAddr {
    fn write(&self, to: &mut String) {
        let _ = write!(to, "{self}");
    }
}

impl<T: Clone> Written for (Range<T>, Verdict)
where
    Range<T>: Written,
{
    fn write(&self, to: &mut String) {
        self.0.write(to);
        let _ = write!(to, " : {}", self.1);
    }
}

/// The length of the one prefix that a range is, if it is one.
fn prefix_length(first: u128, last: u128, width: u32) -> Option<u32> {
    let differing = first ^ last;
    let host = 128 - differing.leading_zeros();
    // All host bits 0 in the first and 1 in the last.
    let is_prefix = first & differing == 0 && differing.trailing_ones() == host;
    is_prefix.then(|| width.saturating_sub(host))
}

/// An IPv4 address that is held as a number.
#[must_use]
fn v4(address: u32) -> String {
    Ipv4Addr::from_bits(address).to_string()
}

/// An IPv6 address that is held as a number.
#[must_use]
fn v6(address: u128) -> String {
    Ipv6Addr::from_bits(address).to_string()
}

fn write_chain(out: &mut String, chain: &Chain) -> Result<(), Impossible> {
    check_identifier("chain", &chain.name)?;
    let _ = writeln!(out, "\tchain {} {{", chain.name);
    if let Some(base) = &chain.base {
        let cannot = |reason: &str| Err(impossible(format!("chain `{}`", chain.name), reason));
        let Some(hook) = base.hook_name() else {
            return cannot("its hook cannot be written");
        };
        let policy = match base.policy {
            0 => "drop",
            1 => "accept",
            _ => return cannot("its policy cannot be written"),
        };
        let near = base
            .relative_priority()
            .map(|words| format!("  # {words}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "\t\ttype {} hook {hook} priority {}; policy {policy};{near}",
            base.kind, base.priority
        );
    }
    for (number, rule) in (1..).zip(&chain.rules) {
        let cannot = |reason: &str| {
            let name = &chain.name;
            impossible(
                format!("rule {number} of chain `{name}` (`{rule}`)"),
                reason,
            )
        };
        let statements = Statements::of(rule);
        if let Some(reason) = statements.inexact {
            return Err(cannot(reason));
        }
        if rule.comment.as_ref().is_some_and(|text| !is_quotable(text)) {
            return Err(cannot("its comment cannot be quoted"));
        }
        let _ = writeln!(out, "\t\t{rule}");
    }
    out.push_str("\t}\n");
    Ok(())
}

/// Whether text can stand between double quotes: nft knows no escape for them.
fn is_quotable(text: &str) -> bool {
    !text
        .chars()
        .any(|c| matches!(c, '"' | '\\') || c.is_control())
}

impl Base {
    /// The hook's name.
    #[must_use]
    pub fn hook_name(&self) -> Option<&'static str> {
        ["prerouting", "input", "forward", "output", "postrouting"]
            .get(usize::try_from(self.hook).ok()?)
            .copied()
    }

    /// The priority as people speak of it: `mangle + 10`.
    #[must_use]
    pub fn relative_priority(&self) -> Option<String> {
        const NAMES: [(i32, &str); 4] = [
            (-300, "raw"),
            (-150, "mangle"),
            (0, "filter"),
            (50, "security"),
        ];
        NAMES
            .iter()
            .find_map(|(number, name)| match self.priority.checked_sub(*number)? {
                0 => Some((*name).to_owned()),
                more @ 1..=49 => Some(format!("{name} + {more}")),
                less @ -49..=-1 => Some(format!("{name} - {}", -less)),
                _ => None,
            })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Rule {
    /// As nft writes it; what its language cannot say, in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statements = Statements::of(self);
        f.write_str(&statements.words.join(" "))?;
        match &self.comment {
            Some(comment) if statements.words.is_empty() => write!(f, "comment \"{comment}\""),
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

/// What register 1 holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Mark,
    CtMark,
    CtState,
    Interface(&'static str),
    InputType,
    Family,
    Protocol,
    V4(&'static str),
    V6(&'static str),
    Port(&'static str),
    TcpFlags,
    Ether(&'static str),
    Raw(PayloadBase, u32, u32),
}

/// Bits of the TCP flags, as nft names them.
const TCP_FLAGS: [(u8, &str); 8] = [
    (0x01, "fin"),
    (0x02, "syn"),
    (0x04, "rst"),
    (0x08, "psh"),
    (0x10, "ack"),
    (0x20, "urg"),
    (0x40, "ecn"),
    (0x80, "cwr"),
];

/// Bits of a connection's state (`NF_CT_STATE_BIT`, `nf_conntrack_common.h`).
const CT_STATES: [(u32, &str); 5] = [
    (0x01, "invalid"),
    (0x02, "established"),
    (0x04, "related"),
    (0x08, "new"),
    (0x40, "untracked"),
];

/// What register 1 holds, and what was done to it since.
#[derive(Debug, Clone)]
struct Loaded {
    field: Field,
    bits: Option<(Vec<u8>, Vec<u8>)>,
}

/// A rule on its way back into words.
#[derive(Debug, Default)]
struct Statements {
    words: Vec<String>,
    /// Why nft would not make the same instructions from these words.
    inexact: Option<&'static str>,
    loaded: Option<Loaded>,
    /// What nft takes for settled by what stands before.
    has_ether: bool,
    family: Option<u8>,
    protocol: Option<u8>,
    /// Parts of headers that were compared with one value: base, offset, length.
    compared: Vec<(PayloadBase, u32, u32)>,
    is_ended: bool,
}

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;

impl Statements {
    fn of(rule: &Rule) -> Self {
        let mut this = Self::default();
        let mut rest = rule.expressions.as_slice();
        while let [first, after @ ..] = rest {
            if let Some(settled) = this.implied(rest) {
                rest = settled;
                continue;
            }
            this.expression(first);
            rest = after;
        }
        if this.loaded.is_some() {
            this.cannot("what its last instruction loads is used for nothing");
        }
        this
    }

    fn cannot(&mut self, reason: &'static str) {
        self.inexact.get_or_insert(reason);
    }

    fn say(&mut self, words: impl Into<String>) {
        if std::mem::take(&mut self.is_ended) {
            self.cannot("it goes on after its verdict");
        }
        self.words.push(words.into());
    }

    /// If `rest` begins with a condition that nft adds by itself before what follows:
    /// takes note of it, and returns what follows.
    fn implied<'e>(&mut self, rest: &'e [Expression]) -> Option<&'e [Expression]> {
        let [
            Expression::MetaLoad(key),
            Expression::Compare { equal: true, bytes },
            after @ ..,
        ] = rest
        else {
            return None;
        };
        let Expression::Payload {
            base,
            offset,
            length,
        } = after.first()?
        else {
            return None;
        };
        if self.loaded.is_some() {
            return None;
        }
        match (key, bytes.as_slice(), base) {
            (MetaKey::Protocol, [TCP], PayloadBase::Transport)
                if self.protocol.is_none() && tcp_field(*offset, *length).is_some() =>
            {
                self.protocol = Some(TCP);
            }
            // After an Ethernet address nft would ask the Ethernet header for the family.
            (MetaKey::Family, [family @ (IPV4 | IPV6)], PayloadBase::Network)
                if self.family.is_none()
                    && !self.has_ether
                    && ip_field(*family, *offset, *length).is_some() =>
            {
                self.family = Some(*family);
            }
            (MetaKey::InputType, bytes, PayloadBase::Link)
                if bytes == 1_u16.to_ne_bytes()
                    && !self.has_ether
                    && ether_field(*offset, *length).is_some() =>
            {
                self.has_ether = true;
            }
            _ => return None,
        }
        Some(after)
    }

    fn expression(&mut self, expression: &Expression) {
        match expression {
            Expression::MetaLoad(key) => self.load(match key {
                MetaKey::Mark => Field::Mark,
                MetaKey::InputName => Field::Interface("iifname"),
                MetaKey::OutputName => Field::Interface("oifname"),
                MetaKey::InputType => Field::InputType,
                MetaKey::Family => Field::Family,
                MetaKey::Protocol => Field::Protocol,
            }),
            Expression::CtLoad(key) => self.load(match key {
                CtKey::Mark => Field::CtMark,
                CtKey::State => Field::CtState,
            }),
            Expression::Payload {
                base,
                offset,
                length,
            } => {
                let field = self.payload_field(*base, *offset, *length);
                self.load(field);
            }
            Expression::Bitwise { mask, xor } => match &mut self.loaded {
                Some(loaded) if loaded.bits.is_none() => {
                    loaded.bits = Some((mask.clone(), xor.clone()));
                }
                _ => self.bracket(expression),
            },
            Expression::MetaSet(key) => self.set(*key == MetaKey::Mark, "meta mark", expression),
            Expression::CtSet(key) => self.set(*key == CtKey::Mark, "ct mark", expression),
            Expression::Compare { equal, bytes } => self.compare(*equal, bytes, expression),
            Expression::Lookup { set, invert } => {
                let not = if *invert { "!= " } else { "" };
                self.look_up(&format!("{not}@{set}"), set, expression);
            }
            Expression::VerdictMap { map } => {
                self.look_up(&format!("vmap @{map}"), map, expression);
            }
            Expression::InlineVerdictMap { elements, key_type } => {
                self.inline_map(elements, *key_type, expression);
            }
            Expression::Counter => self.say("counter"),
            Expression::RejectProhibited => {
                self.say("reject with icmpx type admin-prohibited");
                self.is_ended = true;
            }
            Expression::Verdict(verdict) => {
                if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict
                    && !is_identifier(chain)
                {
                    self.cannot("nft cannot read the name of its chain");
                }
                self.say(verdict.to_string());
                self.is_ended = true;
            }
            Expression::Foreign { .. } => self.bracket(expression),
        }
    }

    fn load(&mut self, field: Field) {
        if self.loaded.is_some() {
            self.cannot("it loads something that is used for nothing");
        }
        self.loaded = Some(Loaded { field, bits: None });
    }

    /// Shows an instruction that the language has no words for.
    fn bracket(&mut self, expression: &Expression) {
        self.cannot("nft's language has no words for it");
        let loaded = self.loaded.take();
        let subject = loaded.map_or_else(String::new, |loaded| format!(" {}", loaded.subject()));
        let words = match expression {
            Expression::Foreign { name, data } => {
                let hex: String = data.iter().fold(String::new(), |mut hex, byte| {
                    let _ = write!(hex, "{byte:02x}");
                    hex
                });
                format!("[ {name}{subject} {hex} ]")
            }
            Expression::Bitwise { mask, xor } => {
                format!("[ bitwise{subject} & {} ^ {} ]", hex(mask), hex(xor))
            }
            Expression::Compare { equal, bytes } => {
                let sign = if *equal { "==" } else { "!=" };
                format!("[ cmp{subject} {sign} {} ]", hex(bytes))
            }
            Expression::InlineVerdictMap { elements, .. } => {
                let elements: Vec<_> = elements
                    .iter()
                    .map(|(key, verdict)| format!("{} : {verdict}", hex(key)))
                    .collect();
                format!("[ lookup{subject} {{ {} }} ]", elements.join(", "))
            }
            Expression::Lookup { set, .. } | Expression::VerdictMap { map: set } => {
                format!("[ lookup{subject} @{set} ]")
            }
            other => format!("[ {}{subject} ]", other.name()),
        };
        self.say(words);
    }

    /// The field that nft would know at this place.
    fn payload_field(&self, base: PayloadBase, offset: u32, length: u32) -> Field {
        let known = match base {
            PayloadBase::Link if self.has_ether => ether_field(offset, length),
            PayloadBase::Network => self
                .family
                .and_then(|family| ip_field(family, offset, length)),
            PayloadBase::Transport if self.protocol == Some(TCP) => tcp_field(offset, length),
            _ => None,
        };
        known.unwrap_or(Field::Raw(base, offset, length))
    }

    fn set(&mut self, is_known: bool, what: &str, expression: &Expression) {
        match self.loaded.as_ref().and_then(Loaded::mark) {
            Some(value) if is_known => {
                self.loaded = None;
                self.say(format!("{what} set {value}"));
            }
            _ => self.bracket(expression),
        }
    }

    fn look_up(&mut self, words: &str, name: &str, expression: &Expression) {
        match self.loaded.as_ref().and_then(Loaded::matched) {
            Some(subject) if is_identifier(name) => {
                self.loaded = None;
                self.say(format!("{subject} {words}"));
            }
            _ => self.bracket(expression),
        }
    }

    fn inline_map(
        &mut self,
        elements: &[(Vec<u8>, Verdict)],
        key_type: u32,
        expression: &Expression,
    ) {
        let words = self.loaded.as_ref().and_then(|loaded| {
            let subject = loaded.matched()?;
            (loaded.field.key_type()? == key_type).then_some(())?;
            let elements: Option<Vec<_>> = elements
                .iter()
                .map(|(key, verdict)| {
                    let is_whole = key.len() == loaded.field.length()?;
                    let key = loaded.field.value(key).filter(|_| is_whole)?;
                    Some(format!("{key} : {verdict}"))
                })
                .collect();
            Some(format!("{subject} vmap {{ {} }}", elements?.join(", ")))
        });
        match words {
            Some(words) if !elements.is_empty() => {
                self.loaded = None;
                self.say(words);
            }
            _ => self.bracket(expression),
        }
    }

    fn compare(&mut self, equal: bool, bytes: &[u8], expression: &Expression) {
        let words = self
            .loaded
            .as_ref()
            .and_then(|loaded| loaded.compared(equal, bytes));
        let Some(words) = words else {
            self.bracket(expression);
            return;
        };
        if let Some(Loaded { field, bits }) = self.loaded.take()
            && equal
            && bits.is_none()
        {
            self.note(field, bytes);
        }
        self.say(words);
    }

    /// Takes note of what nft knows from now on, when a field equals a value.
    fn note(&mut self, field: Field, bytes: &[u8]) {
        match (field, bytes) {
            (Field::Protocol, [protocol]) => {
                if self.protocol.is_some_and(|known| known != *protocol) {
                    self.cannot("it asks for two protocols at once");
                }
                self.protocol = Some(*protocol);
            }
            (Field::Family, [family]) => {
                if self.family.is_some_and(|known| known != *family) {
                    self.cannot("it asks for two families at once");
                }
                self.family = Some(*family);
            }
            (Field::InputType, bytes) => {
                if self.has_ether && bytes != 1_u16.to_ne_bytes() {
                    self.cannot("it asks for two kinds of links at once");
                }
                self.has_ether = bytes == 1_u16.to_ne_bytes();
            }
            _ => {}
        }
        if let Some(place @ (base, offset, length)) = field.place() {
            // nft joins what lies side by side, even across other statements
            // (`payload_try_merge`, nftables' `src/rule.c`).
            let is_joined = self.compared.iter().any(|(other, start, size)| {
                *other == base && (start + size == offset || offset + length == *start)
            });
            if is_joined {
                self.cannot("nft would join its comparisons of neighbouring fields");
            }
            self.compared.push(place);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn tcp_field(offset: u32, length: u32) -> Option<Field> {
    match (offset, length) {
        (0, 2) => Some(Field::Port("tcp sport")),
        (2, 2) => Some(Field::Port("tcp dport")),
        (13, 1) => Some(Field::TcpFlags),
        _ => None,
    }
}

fn ip_field(family: u8, offset: u32, length: u32) -> Option<Field> {
    match (family, offset, length) {
        (IPV4, 12, 4) => Some(Field::V4("ip saddr")),
        (IPV4, 16, 4) => Some(Field::V4("ip daddr")),
        (IPV6, 8, 16) => Some(Field::V6("ip6 saddr")),
        (IPV6, 24, 16) => Some(Field::V6("ip6 daddr")),
        _ => None,
    }
}

fn ether_field(offset: u32, length: u32) -> Option<Field> {
    match (offset, length) {
        (0, 6) => Some(Field::Ether("ether daddr")),
        (6, 6) => Some(Field::Ether("ether saddr")),
        _ => None,
    }
}

impl Field {
    fn name(self) -> String {
        match self {
            Self::Mark => "meta mark".to_owned(),
            Self::CtMark => "ct mark".to_owned(),
            Self::CtState => "ct state".to_owned(),
            Self::InputType => "meta iiftype".to_owned(),
            Self::Family => "meta nfproto".to_owned(),
            Self::Protocol => "meta l4proto".to_owned(),
            Self::TcpFlags => "tcp flags".to_owned(),
            Self::Interface(name)
            | Self::V4(name)
            | Self::V6(name)
            | Self::Port(name)
            | Self::Ether(name) => name.to_owned(),
            Self::Raw(base, offset, length) => {
                let base = match base {
                    PayloadBase::Link => "ll",
                    PayloadBase::Network => "nh",
                    PayloadBase::Transport => "th",
                };
                let bits = |bytes: u32| u64::from(bytes) * 8;
                format!("@{base},{},{}", bits(offset), bits(length))
            }
        }
    }

    /// In bytes.
    fn length(self) -> Option<usize> {
        Some(match self {
            Self::Mark | Self::CtMark | Self::CtState | Self::V4(_) => 4,
            Self::Interface(_) | Self::V6(_) => 16,
            Self::InputType | Self::Port(_) => 2,
            Self::Family | Self::Protocol | Self::TcpFlags => 1,
            Self::Ether(_) => 6,
            Self::Raw(_, _, length) => usize::try_from(length).ok()?,
        })
    }

    /// nft's type number, of those that can be keys of a map here.
    fn key_type(self) -> Option<u32> {
        match self {
            Self::Mark | Self::CtMark => Some(set::TYPE_MARK),
            Self::Interface(_) => Some(set::TYPE_IFNAME),
            Self::V4(_) => Some(set::TYPE_IPV4),
            Self::V6(_) => Some(set::TYPE_IPV6),
            Self::Port(_) => Some(set::TYPE_SERVICE),
            Self::Ether(_) => Some(set::TYPE_ETHER),
            _ => None,
        }
    }

    /// Where in a header it lies.
    fn place(self) -> Option<(PayloadBase, u32, u32)> {
        Some(match self {
            Self::Port("tcp sport") => (PayloadBase::Transport, 0, 2),
            Self::Port(_) => (PayloadBase::Transport, 2, 2),
            Self::TcpFlags => (PayloadBase::Transport, 13, 1),
            Self::V4("ip saddr") => (PayloadBase::Network, 12, 4),
            Self::V4(_) => (PayloadBase::Network, 16, 4),
            Self::V6("ip6 saddr") => (PayloadBase::Network, 8, 16),
            Self::V6(_) => (PayloadBase::Network, 24, 16),
            Self::Ether("ether daddr") => (PayloadBase::Link, 0, 6),
            Self::Ether(_) => (PayloadBase::Link, 6, 6),
            Self::Raw(base, offset, length) => (base, offset, length),
            _ => return None,
        })
    }

    /// A whole value of it, or the beginning of an interface's name.
    fn value(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Mark | Self::CtMark => Some(format!("{:#010x}", host_u32(bytes)?)),
            Self::CtState => Some(format!("{:#x}", host_u32(bytes)?)),
            Self::Interface(_) => interface(bytes),
            Self::InputType => match u16::from_ne_bytes(bytes.try_into().ok()?) {
                1 => Some("ether".to_owned()),
                other => Some(other.to_string()),
            },
            Self::Family => match bytes {
                [IPV4] => Some("ipv4".to_owned()),
                [IPV6] => Some("ipv6".to_owned()),
                _ => None,
            },
            Self::Protocol => match bytes {
                [TCP] => Some("tcp".to_owned()),
                [other] => Some(other.to_string()),
                _ => None,
            },
            Self::V4(_) => u32::from_key(bytes).map(v4),
            Self::V6(_) => u128::from_key(bytes).map(v6),
            Self::Port(_) => u16::from_key(bytes).map(|port| port.to_string()),
            Self::TcpFlags => match bytes {
                [flags] => Some(tcp_flags(*flags)),
                _ => None,
            },
            Self::Ether(_) => bytes.try_into().ok().map(|mac| MacAddr(mac).to_string()),
            Self::Raw(_, _, length) => {
                (usize::try_from(length) == Ok(bytes.len())).then(|| hex(bytes))
            }
        }
    }
}

fn host_u32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn tcp_flags(flags: u8) -> String {
    let names: Vec<_> = TCP_FLAGS
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() {
        "0x0".to_owned()
    } else {
        names.join("|")
    }
}

/// An interface's name, whole (16 bytes, filled up with NULs) or the beginning of one.
fn interface(bytes: &[u8]) -> Option<String> {
    let whole = bytes.len() == 16;
    let name = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) if whole => {
            let (name, filling) = bytes.split_at_checked(end)?;
            filling.iter().all(|byte| *byte == 0).then_some(name)?
        }
        // nft takes at most 15 bytes, the star among them.
        None if bytes.len() <= 14 => bytes,
        _ => return None,
    };
    let name = std::str::from_utf8(name).ok()?;
    (is_quotable(name) && !name.contains('*') && !name.is_empty()).then_some(())?;
    let star = if whole { "" } else { "*" };
    Some(format!("\"{name}{star}\""))
}

impl Loaded {
    /// For people.
    fn subject(&self) -> String {
        match &self.bits {
            None => self.field.name(),
            Some((mask, xor)) => format!("{} & {} ^ {}", self.field.name(), hex(mask), hex(xor)),
        }
    }

    /// What a mark is set to.
    fn mark(&self) -> Option<String> {
        if !matches!(self.field, Field::Mark | Field::CtMark) {
            return None;
        }
        let name = self.field.name();
        let Some((mask, xor)) = &self.bits else {
            return Some(name);
        };
        let (mask, xor) = (host_u32(mask)?, host_u32(xor)?);
        Some(match (mask, xor) {
            (mask, 0) => format!("{name} and {mask:#010x}"),
            (u32::MAX, xor) => format!("{name} xor {xor:#010x}"),
            (mask, xor) if mask & xor == 0 => format!("{name} and {mask:#010x} or {xor:#010x}"),
            (mask, xor) => format!("{name} and {mask:#010x} xor {xor:#010x}"),
        })
    }

    /// The left side of a look-up.
    fn matched(&self) -> Option<String> {
        let name = self.field.name();
        match (&self.bits, self.field) {
            (None, Field::Raw(..)) => None,
            (None, _) => Some(name),
            (Some((mask, xor)), Field::Mark | Field::CtMark) if host_u32(xor)? == 0 => {
                Some(format!("{name} and {:#010x}", host_u32(mask)?))
            }
            (Some(_), _) => None,
        }
    }

    fn compared(&self, equal: bool, bytes: &[u8]) -> Option<String> {
        let name = self.field.name();
        let not = if equal { "" } else { "!= " };
        let sign = if equal { "==" } else { "!=" };
        let Some((mask, xor)) = &self.bits else {
            let value = self.field.value(bytes)?;
            return Some(match self.field {
                // Without a sign these two would mean "any of these bits".
                Field::TcpFlags | Field::CtState => format!("{name} {sign} {value}"),
                _ => format!("{name} {not}{value}"),
            });
        };
        if xor.iter().any(|byte| *byte != 0) {
            return None;
        }
        match self.field {
            Field::Mark | Field::CtMark => {
                let value = self.field.value(bytes)?;
                Some(format!(
                    "{name} and {:#010x} {sign} {value}",
                    host_u32(mask)?
                ))
            }
            Field::CtState => {
                let (mask, value) = (host_u32(mask)?, host_u32(bytes)?);
                match (state_names(mask), equal, value) {
                    (Some(names), false, 0) => Some(format!("{name} {names}")),
                    _ => Some(format!("{name} and {mask:#x} {sign} {value:#x}")),
                }
            }
            Field::TcpFlags => {
                let [mask] = mask.as_slice() else { return None };
                let value = self.field.value(bytes)?;
                Some(format!("{name} & ({}) {sign} {value}", tcp_flags(*mask)))
            }
            _ => None,
        }
    }
}

/// `established,new`, if all bits have names.
fn state_names(bits: u32) -> Option<String> {
    let known = CT_STATES.iter().fold(0, |known, (bit, _)| known | bit);
    let names: Vec<_> = CT_STATES
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    (bits & !known == 0 && !names.is_empty()).then(|| names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Ranges;

    fn load(key: MetaKey) -> Expression {
        Expression::MetaLoad(key)
    }

    fn equals(bytes: &[u8]) -> Expression {
        Expression::Compare {
            equal: true,
            bytes: bytes.to_vec(),
        }
    }

    fn bits(mask: u32, xor: u32) -> Expression {
        Expression::Bitwise {
            mask: mask.to_ne_bytes().to_vec(),
            xor: xor.to_ne_bytes().to_vec(),
        }
    }

    fn payload(base: PayloadBase, offset: u32, length: u32) -> Expression {
        Expression::Payload {
            base,
            offset,
            length,
        }
    }

    fn lookup(set: &str) -> Expression {
        Expression::Lookup {
            set: set.to_owned(),
            invert: false,
        }
    }

    fn tcp_port(set: &str) -> Vec<Expression> {
        vec![
            load(MetaKey::Protocol),
            equals(&[6]),
            payload(PayloadBase::Transport, 2, 2),
            lookup(set),
        ]
    }

    fn words(expressions: Vec<Expression>) -> (String, bool) {
        let rule = Rule {
            expressions,
            comment: None,
        };
        (rule.to_string(), Statements::of(&rule).inexact.is_none())
    }

    fn exact(expressions: Vec<Expression>) -> String {
        let (words, is_exact) = words(expressions);
        assert!(is_exact, "{words}");
        words
    }

    #[test]
    fn what_nft_adds_by_itself_is_left_out() {
        let mut rule = tcp_port("ports_rdp");
        rule.extend([
            load(MetaKey::Family),
            equals(&[2]),
            payload(PayloadBase::Network, 16, 4),
            lookup("servers4_rdp"),
            Expression::Verdict(Verdict::Jump("redirect_rdp".to_owned())),
        ]);
        assert_eq!(
            exact(rule),
            "tcp dport @ports_rdp ip daddr @servers4_rdp jump redirect_rdp"
        );
        let ether = vec![
            load(MetaKey::InputType),
            equals(&1_u16.to_ne_bytes()),
            payload(PayloadBase::Link, 6, 6),
            equals(&[2, 0, 0x5e, 0, 0, 1]),
        ];
        assert_eq!(exact(ether), "ether saddr 02:00:5e:00:00:01");
    }

    #[test]
    fn what_nft_would_not_add_stands_there() {
        // Nothing follows that needs it.
        let alone = vec![load(MetaKey::Protocol), equals(&[6]), Expression::Counter];
        assert_eq!(exact(alone), "meta l4proto tcp counter");
        // Asked for twice: nft adds it once.
        let mut twice = tcp_port("a");
        twice.extend(tcp_port("b"));
        assert_eq!(exact(twice), "tcp dport @a meta l4proto tcp tcp dport @b");
        // Not asked for: nft would add it, so the field must not bear its name.
        let mut raw = tcp_port("a").split_off(2);
        raw.pop();
        raw.push(equals(&[0, 22]));
        assert_eq!(exact(raw), "@th,16,16 0x0016");
        // After an Ethernet address nft would ask the Ethernet header for the family.
        let after_ether = vec![
            load(MetaKey::InputType),
            equals(&1_u16.to_ne_bytes()),
            payload(PayloadBase::Link, 6, 6),
            lookup("macs"),
            load(MetaKey::Family),
            equals(&[2]),
            payload(PayloadBase::Network, 12, 4),
            lookup("v4"),
        ];
        assert_eq!(
            exact(after_ether),
            "ether saddr @macs meta nfproto ipv4 ip saddr @v4"
        );
    }

    #[test]
    fn marks_in_words_that_every_nft_reads() {
        let set = |mask, xor| {
            exact(vec![
                load(MetaKey::Mark),
                bits(mask, xor),
                Expression::MetaSet(MetaKey::Mark),
            ])
        };
        assert_eq!(
            set(0xffff_ff00, 1),
            "meta mark set meta mark and 0xffffff00 or 0x00000001"
        );
        assert_eq!(
            set(0xffff_ff00, 0),
            "meta mark set meta mark and 0xffffff00"
        );
        assert_eq!(set(u32::MAX, 3), "meta mark set meta mark xor 0x00000003");
        assert_eq!(
            set(0xff, 0xf),
            "meta mark set meta mark and 0x000000ff xor 0x0000000f"
        );
        let map = vec![
            Expression::CtLoad(CtKey::Mark),
            bits(0xff, 0),
            Expression::InlineVerdictMap {
                elements: vec![(
                    1_u32.to_ne_bytes().to_vec(),
                    Verdict::Goto("to_scb".to_owned()),
                )],
                key_type: set::TYPE_MARK,
            },
        ];
        assert_eq!(
            exact(map),
            "ct mark and 0x000000ff vmap { 0x00000001 : goto to_scb }"
        );
    }

    #[test]
    fn flags_states_and_names() {
        let flags = vec![
            load(MetaKey::Protocol),
            equals(&[6]),
            payload(PayloadBase::Transport, 13, 1),
            Expression::Bitwise {
                mask: vec![0x17],
                xor: vec![0],
            },
            equals(&[2]),
        ];
        assert_eq!(exact(flags), "tcp flags & (fin|syn|rst|ack) == syn");
        let state = vec![
            Expression::CtLoad(CtKey::State),
            bits(8, 0),
            Expression::Compare {
                equal: false,
                bytes: vec![0; 4],
            },
        ];
        assert_eq!(exact(state), "ct state new");
        let prefix = vec![load(MetaKey::InputName), equals(b"ppp")];
        assert_eq!(exact(prefix), "iifname \"ppp*\"");
        let mut whole = b"eth0".to_vec();
        whole.resize(16, 0);
        let whole = vec![load(MetaKey::OutputName), equals(&whole)];
        assert_eq!(exact(whole), "oifname \"eth0\"");
    }

    #[test]
    fn what_cannot_be_said_is_shown_and_refused() {
        let quota = Expression::Foreign {
            name: "quota".to_owned(),
            data: vec![1, 0xff],
        };
        let cases = [
            (vec![quota], "[ quota 01ff ]"),
            (vec![load(MetaKey::Mark)], ""),
            (
                vec![Expression::RejectProhibited, Expression::Counter],
                "reject with icmpx type admin-prohibited counter",
            ),
            (
                vec![load(MetaKey::InputName), equals(b"a\"b")],
                "[ cmp iifname == 0x612262 ]",
            ),
            // nft would compare both at once.
            (
                vec![
                    payload(PayloadBase::Transport, 0, 2),
                    equals(&[0, 1]),
                    payload(PayloadBase::Transport, 2, 2),
                    equals(&[0, 2]),
                ],
                "@th,0,16 0x0001 @th,16,16 0x0002",
            ),
            (
                vec![Expression::Verdict(Verdict::Goto("a b".to_owned()))],
                "goto a b",
            ),
        ];
        for (expressions, shown) in cases {
            assert_eq!(words(expressions.clone()), (shown.to_owned(), false));
            let chain = Chain {
                name: "x".to_owned(),
                base: None,
                rules: vec![Rule {
                    expressions,
                    comment: None,
                }],
            };
            let table = Table {
                chains: vec![chain],
                ..Table::default()
            };
            assert!(super::table(&table).is_err(), "{shown}");
        }
    }

    #[test]
    fn ranges_are_prefixes_where_they_can_be() {
        let text = |first: u32, last: u32| {
            let mut text = String::new();
            Range { first, last }.write(&mut text);
            text
        };
        assert_eq!(text(0, u32::MAX), "0.0.0.0/0");
        assert_eq!(text(0x0a00_0000, 0x0a00_00ff), "10.0.0.0/24");
        assert_eq!(text(7, 7), "0.0.0.7");
        assert_eq!(text(7, 8), "0.0.0.7-0.0.0.8");
        assert_eq!(text(6, 7), "0.0.0.6/31");
        let mut v6 = String::new();
        Range {
            first: 0_u128,
            last: u128::MAX,
        }
        .write(&mut v6);
        assert_eq!(v6, "::/0");
    }

    #[test]
    fn a_whole_table_as_it_is_printed() {
        let table = Table {
            sets: vec![Set {
                name: "ports_rdp".to_owned(),
                elements: Elements::Ports(Ranges::merged(vec![
                    (3389, 3389).into(),
                    (5900, 5910).into(),
                ])),
            }],
            chains: vec![Chain {
                name: "prerouting".to_owned(),
                base: Some(Base {
                    kind: "filter".to_owned(),
                    hook: 0,
                    priority: -140,
                    policy: 1,
                }),
                rules: vec![Rule {
                    expressions: tcp_port("ports_rdp")
                        .into_iter()
                        .chain([Expression::Counter])
                        .collect(),
                    comment: Some("rdp: from clients".to_owned()),
                }],
            }],
            ..Table::default()
        };
        let expected = "\
table inet scb-redirect {
	set ports_rdp {
		type inet_service;
		flags interval;
		elements = { 3389, 5900-5910 };
	}

	chain prerouting {
		type filter hook prerouting priority -140; policy accept;  # mangle + 10
		tcp dport @ports_rdp counter comment \"rdp: from clients\"
	}
}
";
        assert_eq!(super::table(&table).unwrap(), expected);
        assert_eq!(
            commands(Some(&Table::default()), Some(&table)).unwrap(),
            Some(format!(
                "add table inet scb-redirect\ndelete table inet scb-redirect\n{expected}"
            ))
        );
        assert_eq!(
            commands(Some(&table), None).unwrap().as_deref(),
            Some("delete table inet scb-redirect\n")
        );
        assert_eq!(commands(Some(&table), Some(&table)).unwrap(), None);
    }
}
