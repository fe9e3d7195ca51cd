//! Elements and notes, as the kernel hands them over.

use super::*;

fn boundaries(begins: &[u16], ends: &[u16]) -> Boundaries<u16> {
    Boundaries {
        begins: begins.iter().map(|begin| (*begin, None)).collect(),
        ends: ends.to_vec(),
    }
}

fn ranges(begins: &[u16], ends: &[u16]) -> Option<Vec<(u16, u16)>> {
    let ranges = boundaries(begins, ends).plain()?;
    Some(
        ranges
            .iter()
            .map(|range| (range.first, range.last))
            .collect(),
    )
}

#[test]
fn intervals_are_put_together_in_whatever_order_they_come() {
    assert_eq!(ranges(&[], &[]), Some(vec![]));
    assert_eq!(ranges(&[30, 10], &[11, 40]), Some(vec![(10, 10), (30, 39)]));
    // nft's end at 0 means nothing.
    assert_eq!(ranges(&[], &[0]), Some(vec![]));
    assert_eq!(ranges(&[5], &[0, 6]), Some(vec![(5, 5)]));
    // What reaches the greatest number has no end.
    assert_eq!(
        ranges(&[0, 65_535], &[9]),
        Some(vec![(0, 8), (65_535, 65_535)])
    );
    assert_eq!(ranges(&[0], &[]), Some(vec![(0, u16::MAX)]));
}

#[test]
fn intervals_that_touch_are_not_ours() {
    assert_eq!(ranges(&[1, 5], &[5, 9]), None);
    assert_eq!(ranges(&[1, 1], &[5]), None);
    let mut with_verdict = boundaries(&[1], &[2]);
    with_verdict.begins[0].1 = Some(Verdict::Drop);
    assert_eq!(with_verdict.plain(), None);
    assert_eq!(boundaries(&[1], &[2]).mapped(), None);
}

#[test]
fn a_comment_is_found_among_other_notes() {
    assert_eq!(comment(b"\x00\x04rdp\x00"), Some("rdp".to_owned()));
    assert_eq!(comment(b"\x01\x01x\x00\x03ab\x00"), Some("ab".to_owned()));
    assert_eq!(comment(b"\x00\x09rdp\x00"), None);
    assert_eq!(comment(b""), None);
}
