//! List files: one network a line, and hundreds of thousands of lines.

use crate::net::Range;

/// What stands on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'t> {
    /// An IPv4 network and nothing else, as on nearly all lines: what [`super::value::network`] would
    /// make of it.
    Plain(Range<u32>),
    /// Anything else: comments and white space taken off, and the byte at which it begins.
    Text(usize, &'t str),
}

/// The lines of a list file; those with nothing on them, or a comment alone, left out.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
            if let Some((range, length)) = plain(rest.as_bytes()) {
                at += length;
                return Some(Line::Plain(range));
            }
            let whole = rest.split_inclusive('\n').next()?;
            let (start, line) = content(whole);
            let start = at + start;
            at += whole.len();
            if !line.is_empty() {
                return Some(Line::Text(start, line));
            }
        }
    })
}

/// What the lines of a list file say as text, and the byte at which each begins.
pub fn texts(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').filter_map(move |whole| {
        let (start, line) = content(whole);
        let start = at + start;
        at += whole.len();
        (!line.is_empty()).then_some((start, line))
    })
}

/// A line without comment and white space, and where in it that begins.
fn content(whole: &str) -> (usize, &str) {
    let content = match whole.split_once('#') {
        Some((content, _)) => content,
        None => whole,
    };
    // Windows leaves its mark at the beginning of a file, and before every line's end.
    let content = content.trim_end();
    let line = content.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    (content.len() - line.len(), line)
}

/// The network of the first line, if that is all there is on it, and how many bytes the line has.
/// Whatever is odd in the least is left to those who can explain it.
fn plain(bytes: &[u8]) -> Option<(Range<u32>, usize)> {
    let mut rest = bytes;
    let mut address = number(&mut rest, 255)?;
    for _ in 0..3 {
        rest = rest.strip_prefix(b".")?;
        address = address << 8 | number(&mut rest, 255)?;
    }
    let length = match rest.strip_prefix(b"/") {
        Some(after) => {
            rest = after;
            number(&mut rest, 32)?
        }
        None => 32,
    };
    rest = rest.strip_prefix(b"\r").unwrap_or(rest);
    if !rest.is_empty() {
        rest = rest.strip_prefix(b"\n")?;
    }
    let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
    let range = Range {
        first: address,
        last: address | hosts,
    };
    (address & hosts == 0).then_some((range, bytes.len() - rest.len()))
}

/// A decimal number without leading zeros; `bytes` go on behind it.
fn number(bytes: &mut &[u8], most: u32) -> Option<u32> {
    let (mut value, mut digits) = (0, 0);
    while let Some((digit @ b'0'..=b'9', rest)) = bytes.split_first() {
        let is_led_by_zero = digits > 0 && value == 0;
        value = value * 10 + u32::from(digit - b'0');
        if is_led_by_zero || value > most {
            return None;
        }
        digits += 1;
        *bytes = rest;
    }
    (digits > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::value;

    fn range(network: IpNet) -> Option<Range<u32>> {
        match network {
            IpNet::V4(net) => Some(Range {
                first: net.network().to_bits(),
                last: net.broadcast().to_bits(),
            }),
            IpNet::V6(_) => None,
        }
    }

    #[test]
    fn every_line_is_found_where_it_stands() {
        let text = "\u{feff}10.0.0.0/8 # ten\r\n\r\n#\n10.1.0.0/16\r\n 10.2.0.1\n10.3.0.1";
        let found: Vec<_> = lines(text).collect();
        let plain = |text: &str| Line::Plain(range(value::network(text).unwrap()).unwrap());
        let wanted = [
            Line::Text(3, "10.0.0.0/8"),
            plain("10.1.0.0/16"),
            Line::Text(39, "10.2.0.1"),
            plain("10.3.0.1"),
        ];
        assert_eq!(found, wanted);
        let found: Vec<_> = texts(text).collect();
        let wanted = [
            (3, "10.0.0.0/8"),
            (25, "10.1.0.0/16"),
            (39, "10.2.0.1"),
            (48, "10.3.0.1"),
        ];
        assert_eq!(found, wanted);
        for (start, line) in found {
            assert!(text[start..].starts_with(line));
        }
        assert_eq!(lines("").count(), 0);
    }

    #[test]
    fn what_is_odd_is_not_plain() {
        for odd in [
            "10.0.0.1/8",
            "010.0.0.0/8",
            "10.0.0.0/08",
            "10.0.0.0/00",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.256",
            "10.0.0",
            "10.0.0.0.0",
            "10.0.0.0/+8",
            "10.0.0.0/8 x",
            "10.0.0.0 ",
            "",
            "10..0.0",
            "1000.0.0.0",
            "fd00::/8",
            "10.0.0.0\r\r",
            "10.0.0.0#",
            "/8",
            "0.0.0.1/0",
        ] {
            assert_eq!(plain(odd.as_bytes()), None, "{odd}");
        }
        for end in ["", "\n", "\r\n", "\r"] {
            let line = format!("0.0.0.0/0{end}");
            let all = Range {
                first: 0,
                last: u32::MAX,
            };
            assert_eq!(plain(line.as_bytes()), Some((all, line.len())));
        }
    }

    proptest! {
        /// What is taken the short way is what the long way makes of it.
        #[test]
        fn plain_lines_mean_what_they_mean_elsewhere(text in "[0-9]{1,3}(\\.[0-9]{1,3}){2,4}(/[0-9]{1,2})?\r?") {
            if let Some((found, length)) = plain(text.as_bytes()) {
                prop_assert_eq!(Ok(Some(found)), value::network(text.trim_end()).map(range));
                prop_assert_eq!(length, text.len());
            }
        }

        /// And all that we write ourselves goes the short way.
        #[test]
        fn every_network_is_plain(address in any::<u32>(), length in 0_u8..=32) {
            let network = IpNet::new(std::net::Ipv4Addr::from_bits(address).into(), length).unwrap().trunc();
            let text = network.to_string();
            prop_assert_eq!(plain(text.as_bytes()), range(network).map(|range| (range, text.len())));
        }
    }
}
