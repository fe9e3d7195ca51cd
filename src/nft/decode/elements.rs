//! The elements of sets, as the kernel hands them over.

use super::super::abi::element;
use super::super::wire::Interval;
use super::super::{Elements, Verdict, abi};
use super::inet;
use crate::kernel::netlink::{Attribute, Malformed, attributes};
use crate::net::{MacAddr, Range, Ranges};

/// What a set's elements are to be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
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
    pub(super) fn of(self, elements: &Elements) -> bool {
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
    pub(super) begins: Vec<(T, Option<Verdict>)>,
    /// The first number after an interval.
    pub(super) ends: Vec<T>,
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
    pub(super) fn finish(self, make: Make) -> Option<Elements> {
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
pub(super) fn value(attribute: Attribute<'_>) -> Result<Option<&[u8]>, Malformed> {
    for inner in attribute.nested() {
        let inner = inner?;
        if inner.kind == element::DATA_VALUE {
            return Ok(Some(inner.value));
        }
    }
    Ok(None)
}

/// What a `NFTA_DATA_VERDICT` holds, if it is one of ours.
pub(super) fn read_verdict(attribute: Attribute<'_>) -> Result<Option<Verdict>, Malformed> {
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

    pub(super) fn plain(self) -> Option<Ranges<T>> {
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

    pub(super) fn mapped(self) -> Option<Vec<(Range<T>, Verdict)>> {
        self.intervals()
            .map(|interval| {
                let (range, verdict) = interval?;
                Some((range, verdict?))
            })
            .collect()
    }
}
