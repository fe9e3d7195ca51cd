//! Sets and their elements.

use super::transaction::{Key, What};
use super::writer::{Open, Writer};
use super::{CREATE, EXCLUSIVE, changes};
use crate::net::{MacAddr, Range, Step};
use crate::nft::abi::{element, message, set};
use crate::nft::{Elements, Impossible, Set, Verdict};

/// A list of elements is one attribute, whose length is a `u16`.
const LIST_LIMIT: usize = 60_000;

/// A number that is the key of an interval set.
pub trait Interval: Step {
    /// nft's type number.
    const TYPE: u32;
    /// In bytes.
    const LENGTH: usize;
    /// Calls `use_` with the key as the kernel compares it: big-endian.
    fn with_key<T>(self, use_: impl FnOnce(&[u8]) -> T) -> T;
    /// The reverse.
    fn from_key(bytes: &[u8]) -> Option<Self>;
    /// The greatest.
    const LAST: Self;
    /// The smallest.
    const ZERO: Self;
}

macro_rules! interval {
    ($($number:ty, $type:expr;)*) => {$(
        impl Interval for $number {
            const TYPE: u32 = $type;
            const LENGTH: usize = size_of::<$number>();
            fn with_key<T>(self, use_: impl FnOnce(&[u8]) -> T) -> T { use_(&self.to_be_bytes()) }
            fn from_key(bytes: &[u8]) -> Option<Self> { bytes.try_into().ok().map(Self::from_be_bytes) }
            const LAST: Self = <$number>::MAX;
            const ZERO: Self = 0;
        }
    )*};
}
interval! {
    u16, set::TYPE_SERVICE;
    u32, set::TYPE_IPV4;
    u128, set::TYPE_IPV6;
}

impl Writer {
    pub(super) fn new_set(&mut self, new: &Set) -> Result<(), Impossible> {
        let (key, length, interval, map) = match &new.elements {
            Elements::V4(_) => (u32::TYPE, u32::LENGTH, true, false),
            Elements::V6(_) => (u128::TYPE, u128::LENGTH, true, false),
            Elements::Ports(_) => (u16::TYPE, u16::LENGTH, true, false),
            Elements::Macs(_) => (set::TYPE_ETHER, 6, false, false),
            Elements::V4Verdicts(_) => (u32::TYPE, u32::LENGTH, true, true),
            Elements::V6Verdicts(_) => (u128::TYPE, u128::LENGTH, true, true),
            Elements::PortVerdicts(_) => (u16::TYPE, u16::LENGTH, true, true),
            Elements::Foreign(description) => {
                return Err(Impossible {
                    object: format!("set `{}` ({description})", new.name),
                    reason: "`redirect` never makes such sets, and cannot put it back".to_owned(),
                });
            }
        };
        let flags =
            if interval { set::FLAG_INTERVAL } else { 0 } | if map { set::FLAG_MAP } else { 0 };
        let what = What::NewSet(new.name.clone());
        self.set_header(&new.name, flags, (key, length), None, what);
        let name = &new.name;
        match &new.elements {
            Elements::V4(ranges) => self.ranges(name, Key::V4, Fill::New, ranges),
            Elements::V6(ranges) => self.ranges(name, Key::V6, Fill::New, ranges),
            Elements::Ports(ranges) => self.ranges(name, Key::Port, Fill::New, ranges),
            Elements::V4Verdicts(list) => self.ranges(name, Key::V4, Fill::New, list),
            Elements::V6Verdicts(list) => self.ranges(name, Key::V6, Fill::New, list),
            Elements::PortVerdicts(list) => self.ranges(name, Key::Port, Fill::New, list),
            Elements::Macs(macs) => self.macs(name, Fill::New, macs.iter()),
            Elements::Foreign(_) => {}
        }
        Ok(())
    }

    /// A set's own message. `size` is given for what is inline in a rule, as nft does.
    pub(super) fn set_header(
        &mut self,
        name: &str,
        flags: u32,
        (key, length): (u32, usize),
        size: Option<usize>,
        what: What,
    ) {
        self.sets += 1;
        let open = self.message(message::NEW_SET, CREATE | EXCLUSIVE, what);
        self.string(set::NAME, name);
        self.u32(set::FLAGS, flags);
        self.u32(set::KEY_TYPE, key);
        self.u32(set::KEY_LENGTH, u32::try_from(length).unwrap_or(u32::MAX));
        let is_map = flags & set::FLAG_MAP != 0;
        if is_map {
            self.u32(set::DATA_TYPE, set::DATA_VERDICT);
            self.u32(set::DATA_LENGTH, 0);
        }
        self.u32(set::ID, self.sets);
        if let Some(size) = size {
            let nest = self.nest(set::DESCRIPTION);
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            self.u32(set::DESCRIPTION_SIZE, size);
            self.close(nest);
        }
        self.set_userdata(key, is_map, size.is_some());
        self.end_message(open);
    }

    /// What nft 1.0.6 keeps with a set so as to list it again: the byte order of its keys
    /// (1 host, 2 network; `NFTNL_UDATA_SET_KEYBYTEORDER` 0), that of its data (1), for a
    /// map inline in a rule the type of its data (4: a verdict), and that data are no
    /// intervals (6). Each is type, length, value, numbers in host byte order.
    fn set_userdata(&mut self, key: u32, is_map: bool, is_inline: bool) {
        let host = matches!(key, set::TYPE_MARK | set::TYPE_IFNAME);
        let open = self.open(set::USERDATA);
        let order: u32 = if host { 1 } else { 2 };
        self.bytes.extend_from_slice(&[0, 4]);
        self.bytes.extend_from_slice(&order.to_ne_bytes());
        if is_map {
            self.bytes.extend_from_slice(&[1, 4, 0, 0, 0, 0]);
            if is_inline {
                self.bytes.extend_from_slice(&[4, 8, 0, 4]);
                self.bytes.extend_from_slice(&1_u32.to_ne_bytes());
                self.bytes.extend_from_slice(&[1, 0]);
            }
            self.bytes.extend_from_slice(&[6, 4, 0, 0, 0, 0]);
        }
        self.close(open);
    }

    pub(super) fn delete_elements(&mut self, old: &Set, new: &Set) {
        let name = &old.name;
        match (&old.elements, &new.elements) {
            (Elements::V4(from), Elements::V4(to)) => {
                self.delete_ranges(name, Key::V4, from.as_slice(), to.as_slice());
            }
            (Elements::V6(from), Elements::V6(to)) => {
                self.delete_ranges(name, Key::V6, from.as_slice(), to.as_slice());
            }
            (Elements::Ports(from), Elements::Ports(to)) => {
                self.delete_ranges(name, Key::Port, from.as_slice(), to.as_slice());
            }
            (Elements::V4Verdicts(from), Elements::V4Verdicts(to)) => {
                self.delete_ranges(name, Key::V4, from, to);
            }
            (Elements::V6Verdicts(from), Elements::V6Verdicts(to)) => {
                self.delete_ranges(name, Key::V6, from, to);
            }
            (Elements::PortVerdicts(from), Elements::PortVerdicts(to)) => {
                self.delete_ranges(name, Key::Port, from, to);
            }
            (Elements::Macs(from), Elements::Macs(to)) => {
                let (removed, _) = changes(from, to);
                self.macs(name, Fill::Delete, removed);
            }
            // Of different types they are never met here, nor foreign ones that differ.
            _ => {}
        }
    }

    fn delete_ranges<E: Entry + Ord>(&mut self, name: &str, key: Key, from: &[E], to: &[E]) {
        let (removed, _) = changes(from, to);
        if removed.len() == from.len() && !from.is_empty() {
            // All of them: one message that names no element empties the set.
            let what = What::EmptySet(name.to_owned());
            let open = self.message(message::DELETE_ELEMENTS, 0, what);
            self.string(element::LIST_SET, name);
            self.end_message(open);
        } else {
            self.ranges(name, key, Fill::Delete, removed);
        }
    }

    pub(super) fn add_elements(&mut self, old: &Set, new: &Set) {
        let name = &new.name;
        let add = Fill::Add;
        match (&old.elements, &new.elements) {
            (Elements::V4(from), Elements::V4(to)) => {
                let (_, added) = changes(from.as_slice(), to.as_slice());
                self.ranges(name, Key::V4, add, added);
            }
            (Elements::V6(from), Elements::V6(to)) => {
                let (_, added) = changes(from.as_slice(), to.as_slice());
                self.ranges(name, Key::V6, add, added);
            }
            (Elements::Ports(from), Elements::Ports(to)) => {
                let (_, added) = changes(from.as_slice(), to.as_slice());
                self.ranges(name, Key::Port, add, added);
            }
            (Elements::V4Verdicts(from), Elements::V4Verdicts(to)) => {
                let (_, added) = changes(from, to);
                self.ranges(name, Key::V4, add, added);
            }
            (Elements::V6Verdicts(from), Elements::V6Verdicts(to)) => {
                let (_, added) = changes(from, to);
                self.ranges(name, Key::V6, add, added);
            }
            (Elements::PortVerdicts(from), Elements::PortVerdicts(to)) => {
                let (_, added) = changes(from, to);
                self.ranges(name, Key::Port, add, added);
            }
            (Elements::Macs(from), Elements::Macs(to)) => {
                let (_, added) = changes(from, to);
                self.macs(name, add, added);
            }
            _ => {}
        }
    }

    /// Writes intervals, ascending, as pairs of elements: where each begins and, marked as
    /// its end, the first number after it. One that reaches the greatest number has no end.
    /// A new set that does not begin at 0 gets an end there, as nft does it.
    fn ranges<'e, E: Entry + 'e>(
        &mut self,
        name: &str,
        key: Key,
        fill: Fill,
        entries: impl IntoIterator<Item = &'e E>,
    ) {
        let entries = entries.into_iter();
        let mut list = List::new(name, key, fill, self.sets);
        let begin = Template::new::<E::Number>(false);
        let end = Template::new::<E::Number>(true);
        self.bytes
            .reserve(entries.size_hint().0 * (begin.length() + end.length()));
        let mut is_first = true;
        for entry in entries {
            let (range, verdict) = entry.parts();
            list.make_room(self, verdict);
            if is_first && fill == Fill::New && range.first != E::Number::ZERO {
                end.put(E::Number::ZERO, &mut self.bytes);
            }
            is_first = false;
            let next = range.last.next();
            // A verdict is of no use in a deletion, and older kernels refuse one.
            let verdict = verdict.filter(|_| fill != Fill::Delete);
            let open_ended = next.is_none() && fill != Fill::Delete;
            if verdict.is_none() && !open_ended {
                begin.put(range.first, &mut self.bytes);
            } else {
                range
                    .first
                    .with_key(|key| self.element(key, false, verdict, open_ended));
            }
            if let Some(next) = next {
                end.put(next, &mut self.bytes);
            }
        }
        list.finish(self);
    }

    fn macs<'m>(&mut self, name: &str, fill: Fill, macs: impl IntoIterator<Item = &'m MacAddr>) {
        let mut list = List::new(name, Key::Mac, fill, self.sets);
        for mac in macs {
            list.make_room(self, None);
            self.element(&mac.0, false, None, false);
        }
        list.finish(self);
    }

    pub(super) fn element(
        &mut self,
        key: &[u8],
        is_end: bool,
        verdict: Option<&Verdict>,
        open_ended: bool,
    ) {
        let item = self.nest(element::LIST_ELEMENT);
        if is_end {
            self.u32(element::FLAGS, element::FLAG_INTERVAL_END);
        }
        let nest = self.nest(element::KEY);
        self.attribute(element::DATA_VALUE, key);
        self.close(nest);
        if let Some(verdict) = verdict {
            self.verdict(element::DATA, verdict);
        }
        if open_ended {
            // nft's own note (`NFTNL_UDATA_SET_ELEM_FLAGS` 1): there is no end because there is
            // no number after it.
            let open = self.open(element::USERDATA);
            self.bytes.extend_from_slice(&[1, 4]);
            self.bytes.extend_from_slice(&1_u32.to_ne_bytes());
            self.close(open);
        }
        self.close(item);
    }
}

/// What is done with elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// Added to the set that was just made.
    New,
    /// Added to one that was there.
    Add,
    /// Deleted.
    Delete,
}

/// A list of elements, over as many messages as it needs.
pub(super) struct List<'n> {
    name: &'n str,
    key: Key,
    fill: Fill,
    id: u32,
    open: Option<(Open, Open)>,
}

impl<'n> List<'n> {
    pub(super) fn new(name: &'n str, key: Key, fill: Fill, id: u32) -> Self {
        Self {
            name,
            key,
            fill,
            id,
            open: None,
        }
    }

    /// Makes sure that a message is open that can take another interval.
    pub(super) fn make_room(&mut self, writer: &mut Writer, verdict: Option<&Verdict>) {
        // Three elements of at most 44 bytes each, and a verdict with its chain's name.
        let chain = match verdict {
            Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => chain.len(),
            _ => 0,
        };
        let limit = LIST_LIMIT.saturating_sub(200 + chain);
        if self
            .open
            .is_some_and(|(_, list)| writer.bytes.len() - list.0 > limit)
        {
            self.finish(writer);
        }
        if self.open.is_none() {
            let (kind, flags) = match self.fill {
                Fill::New | Fill::Add => (message::NEW_ELEMENTS, CREATE),
                Fill::Delete => (message::DELETE_ELEMENTS, 0),
            };
            let name = self.name.to_owned();
            let what = match self.fill {
                _ if self.key == Key::Other => writer
                    .steps
                    .last()
                    .map_or(What::Begin, |step| step.what.clone()),
                Fill::New | Fill::Add => What::AddElements(name, self.key),
                Fill::Delete => What::DeleteElements(name, self.key),
            };
            let open = writer.message(kind, flags, what);
            writer.string(element::LIST_SET, self.name);
            if self.fill == Fill::New {
                writer.u32(element::LIST_SET_ID, self.id);
            }
            let list = writer.nest(element::LIST_ELEMENTS);
            self.open = Some((open, list));
        }
    }

    pub(super) fn finish(&mut self, writer: &mut Writer) {
        if let Some((open, list)) = self.open.take() {
            writer.close(list);
            writer.end_message(open);
        }
    }
}

/// An element without extras, written once to be copied: of 200,000 each costs some
/// nanoseconds, and its length is not worked out anew.
struct Template {
    /// All that comes before the key.
    before: Vec<u8>,
    /// All that comes after it: its padding.
    after: &'static [u8],
    /// The key's length.
    key: usize,
}

/// An attribute's length is rounded up to a multiple of four.
const PADDING: &[u8] = &[0; 3];

impl Template {
    fn new<T: Interval>(is_end: bool) -> Self {
        let mut writer = Writer::default();
        T::ZERO.with_key(|key| writer.element(key, is_end, None, false));
        let padding = T::LENGTH.next_multiple_of(4) - T::LENGTH;
        let mut before = writer.bytes;
        before.truncate(before.len() - padding - T::LENGTH);
        Self {
            before,
            after: PADDING.get(..padding).unwrap_or_default(),
            key: T::LENGTH,
        }
    }

    fn length(&self) -> usize {
        self.before.len() + self.key + self.after.len()
    }

    #[inline]
    fn put<T: Interval>(&self, key: T, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.before);
        key.with_key(|key| into.extend_from_slice(key));
        into.extend_from_slice(self.after);
    }
}

/// An interval, or one with its verdict.
trait Entry {
    /// What the interval is of.
    type Number: Interval;
    fn parts(&self) -> (Range<Self::Number>, Option<&Verdict>);
}

impl<T: Interval> Entry for Range<T> {
    type Number = T;
    fn parts(&self) -> (Range<T>, Option<&Verdict>) {
        (*self, None)
    }
}

impl<T: Interval> Entry for (Range<T>, Verdict) {
    type Number = T;
    fn parts(&self) -> (Range<T>, Option<&Verdict>) {
        (self.0, Some(&self.1))
    }
}
