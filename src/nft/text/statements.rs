//! A rule's instructions, turned back into statements.

use std::fmt::Write as _;

use super::super::{CtKey, Expression, MetaKey, PayloadBase, Rule, Verdict};
use super::field::{Field, Loaded};
use super::is_identifier;

/// A rule on its way back into words.
#[derive(Debug, Default)]
pub(super) struct Statements {
    pub(super) words: Vec<String>,
    /// Why nft would not make the same instructions from these words.
    pub(super) inexact: Option<&'static str>,
    loaded: Option<Loaded>,
    /// What nft takes for settled by what stands before.
    has_ether: bool,
    family: Option<u8>,
    protocol: Option<u8>,
    /// Parts of headers that were compared with one value: base, offset, length.
    compared: Vec<(PayloadBase, u32, u32)>,
    is_ended: bool,
}

pub(super) const IPV4: u8 = 2;

pub(super) const IPV6: u8 = 10;

pub(super) const TCP: u8 = 6;

impl Statements {
    pub(super) fn of(rule: &Rule) -> Self {
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

pub(super) fn hex(bytes: &[u8]) -> String {
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
