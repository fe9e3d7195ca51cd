//! A rule's instructions.

use std::collections::BTreeMap;

use super::super::abi::{element, expression as x};
use super::super::{CtKey, Expression, MetaKey, PayloadBase};
use super::Inline;
use super::elements::read_verdict;
use crate::kernel::netlink::{Attribute, Malformed, attributes};

pub(super) fn expression_parts(item: Attribute<'_>) -> Result<(String, &[u8]), Malformed> {
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
pub(super) fn read_expression(
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
