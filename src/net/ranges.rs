//! Sets of addresses and ports as sorted, disjoint, non-adjacent ranges.
//!
//! The kernel refuses nested intervals in a set, and nft's own auto-merge is
//! not applied to what comes over netlink; so all merging happens here, once.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Family, packed};

/// A number that ranges are made of: a port, or an address as an integer.
pub trait Step: Copy + Ord {
    /// The next number, if there is one.
    fn next(self) -> Option<Self>;
    /// The number before, if there is one.
    fn previous(self) -> Option<Self>;
}

macro_rules! step {
    ($($number:ty),*) => {$(
        impl Step for $number {
            fn next(self) -> Option<Self> { self.checked_add(1) }
            fn previous(self) -> Option<Self> { self.checked_sub(1) }
        }
    )*};
}
step!(u16, u32, u128);

/// From `first` to `last`, both included; `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(T, T)", into = "(T, T)")]
pub struct Range<T: Clone> {
    /// The first that belongs to it.
    pub first: T,
    /// The last that belongs to it.
    pub last: T,
}

impl<T: Clone> From<(T, T)> for Range<T> {
    fn from((first, last): (T, T)) -> Self {
        Self { first, last }
    }
}

impl<T: Clone> From<Range<T>> for (T, T) {
    fn from(range: Range<T>) -> Self {
        (range.first, range.last)
    }
}

/// Sorted, disjoint ranges with a gap between any two. In the journal, a list of pairs, or, where
/// there are many, one text.
///
/// Never changed once made, and shared: the networks of a policy, of the table that is rendered of
/// it and of what the kernel is known to hold are one list, and comparing it with itself costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ranges<T: Clone>(Arc<Vec<Range<T>>>);

/// So many are written for people to read.
const READABLE: usize = 100;

impl<T: Step + Into<u128> + Serialize> Serialize for Ranges<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.len() <= READABLE {
            self.0.as_slice().serialize(serializer)
        } else {
            serializer.serialize_str(&packed::pack(&self.0))
        }
    }
}

impl<'de, T: Step + TryFrom<u128> + Deserialize<'de>> Deserialize<'de> for Ranges<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ranges = deserializer.deserialize_any(Reader(PhantomData))?;
        Ok(Self::of_sorted(ranges))
    }
}

/// Reads both forms.
struct Reader<T>(PhantomData<T>);

impl<'de, T: Step + TryFrom<u128> + Deserialize<'de>> Visitor<'de> for Reader<T> {
    type Value = Vec<Range<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ranges")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        packed::unpack(text).ok_or_else(|| E::custom("ranges that are not packed as ours are"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut ranges = Vec::new();
        while let Some(range) = list.next_element()? {
            ranges.push(range);
        }
        Ok(ranges)
    }
}

impl<T: Clone> Default for Ranges<T> {
    fn default() -> Self {
        Self::of_sorted(Vec::new())
    }
}

impl<T: Step> Ranges<T> {
    /// Sorts and merges: nested, overlapping and adjacent ranges become one.
    #[must_use]
    pub fn merged(mut ranges: Vec<Range<T>>) -> Self {
        ranges.sort_unstable_by_key(|range| range.first);
        ranges.dedup_by(|range, before| {
            let is_one = (before.last.next()).is_none_or(|next| range.first <= next);
            if is_one {
                before.last = before.last.max(range.last);
            }
            is_one
        });
        Self::of_sorted(ranges)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        let mut left = Vec::with_capacity(self.0.len());
        let mut holes = other.0.iter().peekable();
        for range in self {
            let mut first = Some(range.first);
            while holes.next_if(|hole| hole.last < range.first).is_some() {}
            let mut ahead = holes.clone();
            while let (Some(from), Some(hole)) =
                (first, ahead.next_if(|hole| hole.first <= range.last))
            {
                if let Some(before) = hole.first.previous().filter(|before| *before >= from) {
                    left.push(Range {
                        first: from,
                        last: before,
                    });
                }
                first = hole.last.next().filter(|next| *next <= range.last);
            }
            if let Some(first) = first {
                left.push(Range {
                    first,
                    last: range.last,
                });
            }
        }
        Self::of_sorted(left)
    }

    /// The first range that is in both, if any.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<Range<T>> {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (a.first.max(b.first), a.last.min(b.last));
            if first <= last {
                return Some(Range { first, last });
            }
            if a.last < b.last {
                ours.next();
            } else {
                theirs.next();
            }
        }
        None
    }

    /// Whether `item` is in one of the ranges.
    #[must_use]
    pub fn contains(&self, item: T) -> bool {
        let after = self.0.partition_point(|range| range.first <= item);
        after
            .checked_sub(1)
            .and_then(|at| self.0.get(at))
            .is_some_and(|range| item <= range.last)
    }
}

impl<T: Clone> Ranges<T> {
    fn of_sorted(ranges: Vec<Range<T>>) -> Self {
        Self(Arc::new(ranges))
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> std::slice::Iter<'_, Range<T>> {
        self.0.iter()
    }

    /// How many ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges as a slice, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[Range<T>] {
        &self.0
    }
}

impl<'a, T: Clone> IntoIterator for &'a Ranges<T> {
    type Item = &'a Range<T>;
    type IntoIter = std::slice::Iter<'a, Range<T>>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// A TCP port, or a range of them.
pub type PortRange = Range<u16>;
/// TCP ports, merged.
pub type Ports = Ranges<u16>;

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Addresses of both families, merged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Networks {
    /// IPv4 addresses as integers, host byte order.
    pub v4: Ranges<u32>,
    /// IPv6 addresses as integers, host byte order.
    pub v6: Ranges<u128>,
}

/// Networks as they come, not yet merged.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    v4: Vec<Range<u32>>,
    v6: Vec<Range<u128>>,
}

impl Gathered {
    /// With room for so many IPv4 networks.
    #[must_use]
    pub fn with_capacity(v4: usize) -> Self {
        Self {
            v4: Vec::with_capacity(v4),
            v6: Vec::new(),
        }
    }

    /// Adds a prefix.
    pub fn add(&mut self, network: IpNet) {
        match network {
            IpNet::V4(net) => self.add_v4(Range {
                first: net.network().to_bits(),
                last: net.broadcast().to_bits(),
            }),
            IpNet::V6(net) => self.v6.push(Range {
                first: net.network().to_bits(),
                last: net.broadcast().to_bits(),
            }),
        }
    }

    /// Adds IPv4 addresses.
    pub fn add_v4(&mut self, range: Range<u32>) {
        self.v4.push(range);
    }

    /// Adds what was merged before.
    pub fn add_all(&mut self, networks: &Networks) {
        self.v4.extend(&networks.v4);
        self.v6.extend(&networks.v6);
    }

    /// How many were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether none was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Merges them.
    #[must_use]
    pub fn merged(self) -> Networks {
        Networks {
            v4: Ranges::merged(self.v4),
            v6: Ranges::merged(self.v6),
        }
    }
}

impl Networks {
    /// Merges prefixes of both families.
    #[must_use]
    pub fn merged(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let mut gathered = Gathered::default();
        networks
            .into_iter()
            .for_each(|network| gathered.add(network));
        gathered.merged()
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.without(&other.v4),
            v6: self.v6.without(&other.v6),
        }
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address.to_bits()),
            IpAddr::V6(address) => self.v6.contains(address.to_bits()),
        }
    }

    /// Whether there is nothing of `family` in it.
    #[must_use]
    pub fn is_empty_of(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4.is_empty(),
            Family::V6 => self.v6.is_empty(),
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many merged ranges, both families together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// One address of `family` in it, to ask the kernel about: the first that
    /// is not a network's own address where there is a choice.
    #[must_use]
    pub fn sample(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.as_slice().first().map(|range| {
                IpAddr::V4(Ipv4Addr::from_bits(
                    range.first.saturating_add(1).min(range.last),
                ))
            }),
            Family::V6 => self.v6.as_slice().first().map(|range| {
                IpAddr::V6(Ipv6Addr::from_bits(
                    range.first.saturating_add(1).min(range.last),
                ))
            }),
        }
    }
}

/// A range of addresses as prefixes, as few as possible.
fn prefixes(family: Family, first: u128, last: u128, into: &mut Vec<IpNet>) {
    let width = family.bits();
    let mut first = first;
    loop {
        let aligned = if first == 0 {
            u32::from(width)
        } else {
            first.trailing_zeros()
        };
        let size = last - first;
        let fits = match size.checked_add(1) {
            Some(count) => count.ilog2(),
            None => 128,
        };
        let host_bits = aligned.min(fits).min(u32::from(width));
        let length = width - u8::try_from(host_bits).unwrap_or(width);
        let address = family.address(first);
        if let Ok(network) = IpNet::new(address, length) {
            into.push(network);
        }
        let step = 1u128.checked_shl(host_bits);
        match step.and_then(|step| first.checked_add(step)) {
            Some(next) if next <= last => first = next,
            _ => return,
        }
    }
}

impl Range<u32> {
    /// This range as prefixes, as few as possible.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let mut into = Vec::new();
        prefixes(Family::V4, self.first.into(), self.last.into(), &mut into);
        into
    }
}

impl Range<u128> {
    /// This range as prefixes, as few as possible.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let mut into = Vec::new();
        prefixes(Family::V6, self.first, self.last, &mut into);
        into
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u16, u16)]) -> Ranges<u16> {
        Ranges::merged(pairs.iter().map(|&pair| pair.into()).collect())
    }

    /// Few for people to read, many in one text; what an older build wrote is read all the same.
    #[test]
    fn both_forms_are_read() {
        fn check<T>(ranges: &Ranges<T>, is_readable: bool)
        where
            T: Step + Into<u128> + TryFrom<u128> + Serialize + serde::de::DeserializeOwned,
            T: std::fmt::Debug,
        {
            let text = serde_json::to_string(ranges).unwrap();
            assert_eq!(text.starts_with('['), is_readable, "{text}");
            assert_eq!(&serde_json::from_str::<Ranges<T>>(&text).unwrap(), ranges);
            let old = serde_json::to_string(ranges.as_slice()).unwrap();
            assert_eq!(&serde_json::from_str::<Ranges<T>>(&old).unwrap(), ranges);
        }
        let addresses = |count: u32| {
            let ranges = (0..count).map(|at| Range::from((at * 70_000, at * 70_000 + at)));
            Ranges::merged(ranges.collect())
        };
        check(&addresses(100), true);
        check(&addresses(101), false);
        check(&addresses(0), true);
        let v6 = (0..200_u128).map(|at| Range::from((at << 120, (at << 120) + 5)));
        check(&Ranges::merged(v6.collect()), false);
        assert!(serde_json::from_str::<Ranges<u16>>("\"0!\"").is_err());
    }

    #[test]
    fn nested_and_adjacent_ranges_merge() {
        assert_eq!(
            ranges(&[(5, 9), (1, 3), (4, 4), (6, 7), (11, 12)]),
            ranges(&[(1, 9), (11, 12)])
        );
        assert_eq!(ranges(&[(0, u16::MAX), (3, 4)]).len(), 1);
        assert_eq!(ranges(&[(u16::MAX, u16::MAX), (0, 5)]).len(), 2);
    }

    #[test]
    fn a_hole_may_split_cut_or_remove() {
        let all = ranges(&[(0, 100), (200, 300), (400, u16::MAX)]);
        let holes = ranges(&[(0, 9), (50, 60), (90, 210), (250, 250), (390, u16::MAX)]);
        assert_eq!(
            all.without(&holes),
            ranges(&[(10, 49), (61, 89), (211, 249), (251, 300)])
        );
        assert_eq!(all.without(&Ranges::default()), all);
        assert_eq!(all.without(&all), Ranges::default());
    }

    #[test]
    fn every_number_is_where_the_definition_says() {
        // Small numbers, all combinations of three ranges against three holes, by brute force.
        let mut state = 1u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            u16::try_from(state >> 59).unwrap()
        };
        for _ in 0..5000 {
            let mut some = || {
                let pairs: Vec<_> = (0..3)
                    .map(|_| {
                        let (a, b) = (random(), random());
                        (a.min(b), a.max(b))
                    })
                    .collect();
                (ranges(&pairs), pairs)
            };
            let ((a, raw_a), (b, raw_b)) = (some(), some());
            let left = a.without(&b);
            for n in 0..40 {
                let in_a = raw_a.iter().any(|&(x, y)| (x..=y).contains(&n));
                let in_b = raw_b.iter().any(|&(x, y)| (x..=y).contains(&n));
                assert_eq!(a.contains(n), in_a);
                assert_eq!(left.contains(n), in_a && !in_b);
            }
            let both = (0..40).any(|n| a.contains(n) && b.contains(n));
            assert_eq!(a.overlap(&b).is_some(), both);
            assert_eq!(left, Ranges::merged(left.as_slice().to_vec()));
        }
    }

    #[test]
    fn prefixes_cover_the_range_exactly() {
        let range = Range {
            first: 0x0a00_0001_u32,
            last: 0x0a00_0106,
        };
        let texts: Vec<_> = range.prefixes().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "10.0.0.1/32",
                "10.0.0.2/31",
                "10.0.0.4/30",
                "10.0.0.8/29",
                "10.0.0.16/28",
                "10.0.0.32/27",
                "10.0.0.64/26",
                "10.0.0.128/25",
                "10.0.1.0/30",
                "10.0.1.4/31",
                "10.0.1.6/32"
            ]
        );
        assert_eq!(
            Range {
                first: 0_u32,
                last: u32::MAX
            }
            .prefixes()
            .len(),
            1
        );
        assert_eq!(
            Range {
                first: 0_u128,
                last: u128::MAX
            }
            .prefixes()
            .len(),
            1
        );
        assert_eq!(
            Range {
                first: 1_u128,
                last: u128::MAX
            }
            .prefixes()
            .len(),
            128
        );
    }

    #[test]
    fn networks_of_both_families() {
        let networks = Networks::merged(
            ["10.0.0.0/25", "10.0.0.128/25", "fd00::/64"].map(|net| net.parse().unwrap()),
        );
        assert_eq!(networks.v4.len(), 1);
        assert!(networks.contains("10.0.0.255".parse().unwrap()));
        assert!(!networks.contains("fd00:0:0:1::1".parse().unwrap()));
        assert_eq!(
            networks.sample(Family::V4),
            Some("10.0.0.1".parse().unwrap())
        );
    }
}
