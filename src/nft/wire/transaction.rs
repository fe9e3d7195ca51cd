//! Messages that take effect together, and what each of them is about.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Interval;
use crate::kernel::netlink::attributes;
use crate::net::MacAddr;
use crate::nft::TABLE;
use crate::nft::abi::{element, expression as x, rule};

/// Length of `struct nlmsghdr` with `struct nfgenmsg`.
const PREAMBLE: usize = 20;

/// Messages that take effect together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub(super) bytes: Vec<u8>,
    pub(super) steps: Vec<Part>,
    pub(super) first: u32,
    /// Where the batch's end begins.
    pub(super) end: usize,
}

/// One message of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: usize,
    pub(super) what: What,
}

/// What a message does, for when it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Begin,
    End,
    NewTable,
    DeleteTable,
    NewChain(String),
    EmptyChain(String),
    DeleteChain(String),
    NewSet(String),
    DeleteSet(String),
    EmptySet(String),
    AddElements(String, Key),
    DeleteElements(String, Key),
    /// A rule's chain and its number, from 1.
    Rule(String, usize),
    /// A part of that rule: its inline map.
    InlineMap(String, usize),
}

/// How an element's key reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    V4,
    V6,
    Port,
    Mac,
    Other,
}

impl Transaction {
    /// What to send, batch end and all.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same without the end: the kernel checks every message, and then applies nothing.
    #[must_use]
    pub fn without_end(&self) -> &[u8] {
        self.bytes.get(..self.end).unwrap_or_default()
    }

    /// How many sequence numbers it needs.
    #[must_use]
    pub fn length(&self) -> u32 {
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }

    /// Numbers the messages from `first` on.
    pub fn number_from(&mut self, first: u32) {
        self.first = first;
        for (number, step) in (first..).zip(&self.steps) {
            if let Some(field) = self.bytes.get_mut(step.start + 8..step.start + 12) {
                field.copy_from_slice(&number.to_ne_bytes());
            }
        }
    }

    /// The sequence number of the last message before the end. It asks for an
    /// acknowledgement, which comes only if all has been applied.
    #[must_use]
    pub fn last(&self) -> u32 {
        // First and last are begin and end.
        self.first.saturating_add(self.length().saturating_sub(2))
    }

    /// Whether a refusal with this sequence number concerns the batch as such.
    #[must_use]
    pub fn is_begin(&self, sequence: u32) -> bool {
        sequence == self.first
    }

    /// What was tried in message number `sequence`, and, where `offset` points into it, with
    /// which part: "cannot add rule 3 of chain `x`, at its `ct`".
    #[must_use]
    pub fn describe(&self, sequence: u32, offset: Option<u32>) -> String {
        let step = sequence
            .checked_sub(self.first)
            .and_then(|at| self.steps.get(usize::try_from(at).ok()?));
        let Some(step) = step else {
            return format!("cannot commit {}", What::Begin.object());
        };
        let part = offset.and_then(|offset| self.part(step, usize::try_from(offset).ok()?));
        let object = step.what.object();
        let action = match (&step.what, part) {
            (What::Begin | What::End, _) => "commit".to_owned(),
            (What::EmptyChain(_) | What::EmptySet(_), _) => "empty".to_owned(),
            (What::DeleteTable | What::DeleteChain(_) | What::DeleteSet(_), _) => {
                "delete".to_owned()
            }
            (What::AddElements(..), Some(element)) => format!("add {element} to"),
            (What::AddElements(..), None) => "add elements to".to_owned(),
            (What::DeleteElements(..), Some(element)) => format!("delete {element} from"),
            (What::DeleteElements(..), None) => "delete elements from".to_owned(),
            (What::Rule(..), Some(part)) => return format!("cannot add {object}, at its `{part}`"),
            _ => "add".to_owned(),
        };
        format!("cannot {action} {object}")
    }

    /// The element or expression at `offset` of a message.
    fn part(&self, step: &Part, offset: usize) -> Option<String> {
        let message = self.bytes.get(step.start..)?;
        let length = usize::try_from(u32::from_ne_bytes(*message.first_chunk()?)).ok()?;
        let message = message.get(..length)?;
        let (list, key) = match &step.what {
            What::AddElements(_, key) | What::DeleteElements(_, key) => {
                (element::LIST_ELEMENTS, Some(*key))
            }
            What::Rule(..) => (rule::EXPRESSIONS, None),
            _ => return None,
        };
        let position =
            |inner: &[u8]| (inner.as_ptr() as usize).checked_sub(message.as_ptr() as usize);
        let list = attributes(message.get(PREAMBLE..)?)
            .flatten()
            .find(|attribute| attribute.kind == list)?;
        // The offset is that of an item's header, or of something within the item.
        let item = list
            .nested()
            .flatten()
            .take_while(|item| position(item.value).is_some_and(|at| at <= offset + 4))
            .last()?;
        match key {
            Some(key) => item
                .nested()
                .flatten()
                .find(|inner| inner.kind == element::KEY)?
                .nested()
                .flatten()
                .find(|inner| inner.kind == element::DATA_VALUE)
                .map(|value| key.text(value.value)),
            None => item
                .nested()
                .flatten()
                .find(|inner| inner.kind == x::NAME)
                .map(|name| name.text()),
        }
    }
}

impl What {
    /// What a message is about.
    pub(super) fn object(&self) -> String {
        match self {
            Self::Begin | Self::End => "the packet rules".to_owned(),
            Self::NewTable | Self::DeleteTable => format!("table `inet {TABLE}`"),
            Self::NewChain(name) | Self::EmptyChain(name) | Self::DeleteChain(name) => {
                format!("chain `{name}`")
            }
            Self::NewSet(name)
            | Self::DeleteSet(name)
            | Self::EmptySet(name)
            | Self::AddElements(name, _)
            | Self::DeleteElements(name, _) => format!("set `{name}`"),
            Self::Rule(chain, number) => format!("rule {number} of chain `{chain}`"),
            Self::InlineMap(chain, number) => {
                format!("the map in rule {number} of chain `{chain}`")
            }
        }
    }
}

impl Key {
    fn text(self, bytes: &[u8]) -> String {
        match self {
            Self::V4 => {
                u32::from_key(bytes).map(|address| Ipv4Addr::from_bits(address).to_string())
            }
            Self::V6 => {
                u128::from_key(bytes).map(|address| Ipv6Addr::from_bits(address).to_string())
            }
            Self::Port => u16::from_key(bytes).map(|port| port.to_string()),
            Self::Mac => bytes.try_into().ok().map(|mac| MacAddr(mac).to_string()),
            Self::Other => None,
        }
        .map_or_else(|| "an element".to_owned(), |text| format!("`{text}`"))
    }
}
