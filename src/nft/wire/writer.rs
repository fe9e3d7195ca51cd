//! Netlink messages and attributes, written one after the other into one buffer.

use super::transaction::{Part, Transaction, What};
use crate::nft::abi::{self, table};
use crate::nft::{Impossible, TABLE};

/// `NLM_F_REQUEST`, `NLM_F_ACK`.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Puts a transaction together.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    pub(super) steps: Vec<Part>,
    /// The set ids of nft count up from 1 in a transaction.
    pub(super) sets: u32,
    pub(super) trouble: Option<Impossible>,
}

/// Where a message or an attribute began, to fill in its length.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(super) struct Open(pub(super) usize);

impl Writer {
    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(super) fn string(&mut self, kind: u16, value: &str) {
        let open = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(open);
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let open = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(open);
    }

    pub(super) fn open(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        let [low, high] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[0, 0, low, high]);
        open
    }

    pub(super) fn nest(&mut self, kind: u16) -> Open {
        self.open(kind | NESTED)
    }

    pub(super) fn close(&mut self, open: Open) {
        let length = self.bytes.len() - open.0;
        if let Ok(length) = u16::try_from(length) {
            if let Some(field) = self.bytes.get_mut(open.0..open.0 + 2) {
                field.copy_from_slice(&length.to_ne_bytes());
            }
        } else {
            let object = self
                .steps
                .last()
                .map_or_else(String::new, |step| step.what.object());
            self.trouble.get_or_insert(Impossible {
                object,
                reason: format!("{length} bytes are more than one attribute can hold"),
            });
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Begins a message about our table.
    pub(super) fn message(&mut self, kind: u16, flags: u16, what: What) -> Open {
        let open = self.header(kind, flags, abi::FAMILY_INET, 0, what);
        // The table's name is attribute 1 of every message.
        self.string(table::NAME, TABLE);
        open
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16, what: What) -> Open {
        let start = self.bytes.len();
        self.steps.push(Part { start, what });
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        Open(start)
    }

    pub(super) fn end_message(&mut self, open: Open) {
        // A message is far below 4 GiB: its only long attribute is below 64 KiB.
        let length = u32::try_from(self.bytes.len() - open.0).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.get_mut(open.0..open.0 + 4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    pub(super) fn begin_batch(&mut self, generation: Option<u32>) {
        let open = self.header(abi::BATCH_BEGIN, 0, 0, abi::SUBSYSTEM, What::Begin);
        if let Some(generation) = generation {
            self.u32(abi::BATCH_GENERATION, generation);
        }
        self.end_message(open);
    }

    pub(super) fn finish(mut self) -> Result<Transaction, Impossible> {
        if let Some(trouble) = self.trouble {
            return Err(trouble);
        }
        if let Some(step) = self.steps.last()
            && let Some(field) = self.bytes.get_mut(step.start + 6..step.start + 8)
            && let [low, high] = *field
        {
            let flags = u16::from_ne_bytes([low, high]) | ACKNOWLEDGE;
            field.copy_from_slice(&flags.to_ne_bytes());
        }
        let end = self.bytes.len();
        let open = self.header(abi::BATCH_END, 0, 0, abi::SUBSYSTEM, What::End);
        self.end_message(open);
        let mut transaction = Transaction {
            bytes: self.bytes,
            steps: self.steps,
            first: 0,
            end,
        };
        transaction.number_from(1);
        Ok(transaction)
    }
}
