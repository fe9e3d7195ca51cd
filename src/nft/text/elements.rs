//! Elements of sets.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::{Elements, Verdict};
use crate::net::{MacAddr, Range};

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
pub(in crate::nft) trait Written {
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
pub(super) fn v4(address: u32) -> String {
    Ipv4Addr::from_bits(address).to_string()
}

/// An IPv6 address that is held as a number.
#[must_use]
pub(super) fn v6(address: u128) -> String {
    Ipv6Addr::from_bits(address).to_string()
}
