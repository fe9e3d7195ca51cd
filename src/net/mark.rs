//! Packet and connection marks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A mark under its mask: the bits of `mask` are ours, and hold `value`.
/// All other bits belong to other programs and are kept as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// What our bits hold; no bit of it outside `mask`.
    pub value: u32,
    /// Which bits are ours.
    pub mask: u32,
}

impl Mark {
    /// The mark `value` under `mask`; `None` if it is zero (no mark at all) or
    /// has bits outside the mask.
    #[must_use]
    pub fn new(value: u32, mask: u32) -> Option<Self> {
        (value != 0 && value & !mask == 0).then_some(Self { value, mask })
    }

    /// Whether a packet or connection with the mark `bits` bears this mark.
    #[must_use]
    pub fn is_borne_by(self, bits: u32) -> bool {
        bits & self.mask == self.value
    }

    /// `bits` with ours set to this mark, others kept.
    #[must_use]
    pub fn set_on(self, bits: u32) -> u32 {
        bits & !self.mask | self.value
    }
}

impl fmt::Display for Mark {
    /// As `ip rule` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}
