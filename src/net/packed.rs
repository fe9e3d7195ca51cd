//! Many ranges as one short text, for the journal: 100,000 networks take 0.6 MB and not 2.4, and it
//! is synced before each change.
//!
//! Each range is two numbers: how far its first is beyond the last of the one before, and
//! its length less 1. A number is written in digits of five bits, the lowest first, each a letter or
//! a digit of the alphabet below; those that another follows come from its second half.

use super::{Range, Step};

/// 32 digits that end a number, and 32 that another follows.
const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

/// The text of `ranges`, which must be sorted and disjoint.
pub(super) fn pack<T: Step + Into<u128>>(ranges: &[Range<T>]) -> String {
    let mut text = String::with_capacity(ranges.len() * 8);
    let mut before = 0;
    for range in ranges {
        let (first, last): (u128, u128) = (range.first.into(), range.last.into());
        put(&mut text, first.wrapping_sub(before));
        put(&mut text, last.wrapping_sub(first));
        before = last;
    }
    text
}

/// The ranges of a text; none if it is not one of ours.
pub(super) fn unpack<T: Step + TryFrom<u128>>(text: &str) -> Option<Vec<Range<T>>> {
    let mut ranges = Vec::with_capacity(text.len() / 8);
    let mut digits = text.bytes();
    let mut before: u128 = 0;
    while digits.len() > 0 {
        let first = before.checked_add(take(&mut digits)?)?;
        let last = first.checked_add(take(&mut digits)?)?;
        ranges.push(Range {
            first: T::try_from(first).ok()?,
            last: T::try_from(last).ok()?,
        });
        before = last;
    }
    Some(ranges)
}

fn put(text: &mut String, number: u128) {
    let mut rest = number;
    loop {
        let low = usize::try_from(rest & 31).unwrap_or(0);
        rest >>= 5;
        let digit = if rest == 0 { low } else { low + 32 };
        text.extend(DIGITS.get(digit).copied().map(char::from));
        if rest == 0 {
            return;
        }
    }
}

fn take(digits: &mut impl Iterator<Item = u8>) -> Option<u128> {
    let mut number: u128 = 0;
    let mut shift = 0;
    loop {
        let digit = value(digits.next()?)?;
        let low = u128::from(digit & 31);
        // What is shifted out is lost, and must be nothing.
        let placed = low.checked_shl(shift)?;
        if placed >> shift != low {
            return None;
        }
        number |= placed;
        if digit < 32 {
            return Some(number);
        }
        shift += 5;
    }
}

fn value(digit: u8) -> Option<u8> {
    Some(match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'z' => digit - b'a' + 10,
        b'A'..=b'Z' => digit - b'A' + 36,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        for ranges in [
            vec![],
            vec![(0, 0)],
            vec![(0, u128::MAX)],
            vec![
                (5, 9),
                (11, 11),
                (1 << 100, (1 << 100) + 70_000),
                (u128::MAX, u128::MAX),
            ],
        ] {
            let ranges: Vec<Range<u128>> = ranges.into_iter().map(Range::from).collect();
            let text = pack(&ranges);
            assert_eq!(unpack(&text), Some(ranges), "{text}");
        }
        // The form is written down: it must stay readable.
        let ranges: Vec<Range<u32>> = vec![(1, 1).into(), (0x0a14_0000, 0x0a14_00ff).into()];
        assert_eq!(pack(&ranges), "10___Dx5_7");
    }

    #[test]
    fn what_is_not_packed_is_refused() {
        let (long, high) = ("W".repeat(40), format!("0{}v", "W".repeat(25)));
        for text in ["W", "1", "1W", "0 0", "é0", &long, &high] {
            assert_eq!(unpack::<u128>(text), None, "{text}");
        }
        // Beyond the last address.
        let beyond = pack(&[Range::from((1_u128 << 32, 1_u128 << 32))]);
        assert_eq!(unpack::<u32>(&beyond), None);
        assert!(unpack::<u128>(&beyond).is_some());
    }
}
