//! Rules and their expressions.

use super::elements::{Fill, List};
use super::transaction::{Key, What};
use super::writer::Writer;
use super::{APPEND, CREATE};
use crate::kernel::netlink::attributes;
use crate::nft::abi::{self, element, expression as x, message, rule, set};
use crate::nft::{CtKey, Expression, Impossible, MetaKey, PayloadBase, Rule, Verdict};

/// Longest comment that nft takes and shows (`NFTNL_UDATA_COMMENT_MAXLEN` less its NUL).
const COMMENT_LIMIT: usize = 127;
/// What the kernel makes the names of inline maps from.
const INLINE_MAP: &str = "__map%d";

impl Writer {
    pub(super) fn verdict(&mut self, kind: u16, verdict: &Verdict) {
        let (code, chain) = match verdict {
            Verdict::Accept => (abi::verdict::ACCEPT, None),
            Verdict::Drop => (abi::verdict::DROP, None),
            Verdict::Return => (abi::verdict::RETURN, None),
            Verdict::Jump(chain) => (abi::verdict::JUMP, Some(chain)),
            Verdict::Goto(chain) => (abi::verdict::GOTO, Some(chain)),
        };
        let data = self.nest(kind);
        let nest = self.nest(element::DATA_VERDICT);
        self.u32(element::VERDICT_CODE, code);
        if let Some(chain) = chain {
            self.string(element::VERDICT_CHAIN, chain);
        }
        self.close(nest);
        self.close(data);
    }

    pub(super) fn rule(
        &mut self,
        chain: &str,
        number: usize,
        new: &Rule,
    ) -> Result<(), Impossible> {
        if new.expressions.iter().any(Expression::needs_inline_set) {
            return Err(Impossible {
                object: format!("rule {number} of chain `{chain}` (`{new}`)"),
                reason: "it had a set inline that `redirect` does not know how to make".to_owned(),
            });
        }
        let maps = self.inline_maps(chain, number, new)?;
        let what = What::Rule(chain.to_owned(), number);
        let open = self.message(message::NEW_RULE, CREATE | APPEND, what);
        self.string(rule::CHAIN, chain);
        let list = self.nest(rule::EXPRESSIONS);
        let mut maps = maps.into_iter();
        for expression in &new.expressions {
            let item = self.nest(element::LIST_ELEMENT);
            self.expression(expression, &mut maps);
            self.close(item);
        }
        self.close(list);
        if let Some(comment) = &new.comment {
            self.comment(chain, number, comment);
        }
        self.end_message(open);
        Ok(())
    }

    fn comment(&mut self, chain: &str, number: usize, comment: &str) {
        // The length of the note is one byte; the kernel lets 256 bytes of notes pass.
        let Some(length) = u8::try_from(comment.len() + 1)
            .ok()
            .filter(|_| comment.len() <= COMMENT_LIMIT && !comment.contains('\0'))
        else {
            self.trouble.get_or_insert(Impossible {
                object: format!("rule {number} of chain `{chain}`"),
                reason: format!("its comment is longer than {COMMENT_LIMIT} bytes"),
            });
            return;
        };
        let open = self.open(rule::USERDATA);
        self.bytes
            .extend_from_slice(&[rule::USERDATA_COMMENT, length]);
        self.bytes.extend_from_slice(comment.as_bytes());
        self.bytes.push(0);
        self.close(open);
    }

    /// The small maps of a rule, which must exist before it; their ids.
    fn inline_maps(
        &mut self,
        chain: &str,
        number: usize,
        rule: &Rule,
    ) -> Result<Vec<u32>, Impossible> {
        let mut ids = Vec::new();
        for expression in &rule.expressions {
            let Expression::InlineVerdictMap { elements, key_type } = expression else {
                continue;
            };
            let length = elements.first().map_or(0, |(key, _)| key.len());
            if length == 0 || elements.iter().any(|(key, _)| key.len() != length) {
                return Err(Impossible {
                    object: format!("the map in rule {number} of chain `{chain}`"),
                    reason: "its keys are not all of one length".to_owned(),
                });
            }
            let what = What::InlineMap(chain.to_owned(), number);
            let flags = set::FLAG_ANONYMOUS | set::FLAG_CONSTANT | set::FLAG_MAP;
            let key = (*key_type, length);
            self.set_header(INLINE_MAP, flags, key, Some(elements.len()), what);
            let mut list = List::new(INLINE_MAP, Key::Other, Fill::New, self.sets);
            for (key, verdict) in elements {
                list.make_room(self, Some(verdict));
                self.element(key, false, Some(verdict), false);
            }
            list.finish(self);
            ids.push(self.sets);
        }
        Ok(ids)
    }

    fn expression(&mut self, expression: &Expression, maps: &mut impl Iterator<Item = u32>) {
        self.string(x::NAME, expression.name());
        let data = self.nest(x::DATA);
        match expression {
            Expression::MetaLoad(key) => {
                self.u32(x::META_KEY, key.number());
                self.u32(x::META_DESTINATION, x::REGISTER_1);
            }
            Expression::MetaSet(key) => {
                self.u32(x::META_KEY, key.number());
                self.u32(x::META_SOURCE, x::REGISTER_1);
            }
            Expression::CtLoad(key) => {
                self.u32(x::CT_KEY, key.number());
                self.u32(x::CT_DESTINATION, x::REGISTER_1);
            }
            Expression::CtSet(key) => {
                self.u32(x::CT_KEY, key.number());
                self.u32(x::CT_SOURCE, x::REGISTER_1);
            }
            Expression::Payload {
                base,
                offset,
                length,
            } => {
                self.u32(x::PAYLOAD_DESTINATION, x::REGISTER_1);
                self.u32(x::PAYLOAD_BASE, base.number());
                self.u32(x::PAYLOAD_OFFSET, *offset);
                self.u32(x::PAYLOAD_LENGTH, *length);
            }
            Expression::Bitwise { mask, xor } => {
                self.u32(x::BITWISE_SOURCE, x::REGISTER_1);
                self.u32(x::BITWISE_DESTINATION, x::REGISTER_1);
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                self.u32(x::BITWISE_LENGTH, length);
                self.value(x::BITWISE_MASK, mask);
                self.value(x::BITWISE_XOR, xor);
            }
            Expression::Compare { equal, bytes } => {
                self.u32(x::COMPARE_SOURCE, x::REGISTER_1);
                let operation = if *equal {
                    x::COMPARE_EQUAL
                } else {
                    x::COMPARE_NOT_EQUAL
                };
                self.u32(x::COMPARE_OPERATION, operation);
                self.value(x::COMPARE_DATA, bytes);
            }
            Expression::Lookup { set, invert } => {
                self.string(x::LOOKUP_SET, set);
                self.u32(x::LOOKUP_SOURCE, x::REGISTER_1);
                if *invert {
                    self.u32(x::LOOKUP_FLAGS, x::LOOKUP_INVERT);
                }
            }
            Expression::VerdictMap { map } => {
                self.string(x::LOOKUP_SET, map);
                self.u32(x::LOOKUP_SOURCE, x::REGISTER_1);
                self.u32(x::LOOKUP_DESTINATION, x::REGISTER_VERDICT);
            }
            Expression::InlineVerdictMap { .. } => {
                self.string(x::LOOKUP_SET, INLINE_MAP);
                self.u32(x::LOOKUP_SOURCE, x::REGISTER_1);
                self.u32(x::LOOKUP_DESTINATION, x::REGISTER_VERDICT);
                if let Some(id) = maps.next() {
                    self.u32(x::LOOKUP_SET_ID, id);
                }
            }
            Expression::Counter => {}
            Expression::RejectProhibited => {
                self.u32(x::REJECT_TYPE, x::REJECT_ICMPX);
                self.attribute(x::REJECT_CODE, &[x::REJECT_PROHIBITED]);
            }
            Expression::Verdict(verdict) => {
                self.u32(x::IMMEDIATE_DESTINATION, x::REGISTER_VERDICT);
                self.verdict(x::IMMEDIATE_DATA, verdict);
            }
            Expression::Foreign { data, .. } => self.bytes.extend_from_slice(data),
        }
        self.close(data);
    }

    fn value(&mut self, kind: u16, bytes: &[u8]) {
        let nest = self.nest(kind);
        self.attribute(element::DATA_VALUE, bytes);
        self.close(nest);
    }
}

impl Expression {
    /// Whether it looks something up in a set inline in its rule that was not understood.
    /// The kernel numbers such sets (`__set0`), and the number means nothing another time.
    fn needs_inline_set(&self) -> bool {
        matches!(self, Self::Foreign { name, data } if name == "lookup"
            && attributes(data)
                .flatten()
                .any(|part| part.kind == x::LOOKUP_SET && part.value.starts_with(b"__")))
    }

    /// The kernel's name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::MetaLoad(_) | Self::MetaSet(_) => "meta",
            Self::CtLoad(_) | Self::CtSet(_) => "ct",
            Self::Payload { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } | Self::VerdictMap { .. } | Self::InlineVerdictMap { .. } => {
                "lookup"
            }
            Self::Counter => "counter",
            Self::RejectProhibited => "reject",
            Self::Verdict(_) => "immediate",
            Self::Foreign { name, .. } => name,
        }
    }
}

impl MetaKey {
    /// All, for reading them back.
    pub(in crate::nft) const ALL: [Self; 6] = [
        Self::Mark,
        Self::InputName,
        Self::OutputName,
        Self::InputType,
        Self::Family,
        Self::Protocol,
    ];

    /// `NFT_META_*`.
    pub(in crate::nft) fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::InputName => 6,
            Self::OutputName => 7,
            Self::InputType => 8,
            Self::Family => 15,
            Self::Protocol => 16,
        }
    }
}

impl CtKey {
    /// All, for reading them back.
    pub(in crate::nft) const ALL: [Self; 2] = [Self::Mark, Self::State];

    /// `NFT_CT_*`.
    pub(in crate::nft) fn number(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Mark => 3,
        }
    }
}

impl PayloadBase {
    /// All, for reading them back.
    pub(in crate::nft) const ALL: [Self; 3] = [Self::Link, Self::Network, Self::Transport];

    /// `NFT_PAYLOAD_*_HEADER`.
    pub(in crate::nft) fn number(self) -> u32 {
        match self {
            Self::Link => 0,
            Self::Network => 1,
            Self::Transport => 2,
        }
    }
}
