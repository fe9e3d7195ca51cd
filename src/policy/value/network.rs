//! Networks, and what was meant by what is none.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::super::diagnostic::{Code, quoted};
use super::{Complaint, digits};

/// A network; an address alone is the network of that one address.
///
/// # Errors
/// Not a network, or an address with a prefix length that cuts it off.
pub fn network(text: &str) -> Result<IpNet, Complaint> {
    // What is sound goes a short way; everything else is for the one that fails.
    match parse_network(text) {
        None => Err(why_no_network(text)),
        Some(network) if network.network() != network.addr() => Err(Complaint::new(
            Code::HostBits,
            format!("`{text}` has bits set beyond its prefix length"),
        )
        .hint(format!(
            "`{}` is the whole network, `{}` this one address",
            network.trunc(),
            IpNet::from(network.addr())
        ))),
        Some(network) => mapped(network.addr()).map_or(Ok(network), Err),
    }
}

/// An address with or without prefix length, whatever its bits.
fn parse_network(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    // `parse` would take `+24`.
    digits(length)?;
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}

/// IPv4 addresses in IPv6 clothes never appear in a packet.
fn mapped(address: IpAddr) -> Option<Complaint> {
    let IpAddr::V6(v6) = address else { return None };
    let v4 = v6.to_ipv4_mapped()?;
    Some(
        Complaint::new(
            Code::BadNetwork,
            format!("`{address}` is an IPv4 address as programs write it, no packet bears it"),
        )
        .hint(format!("write the IPv4 address, `{v4}`")),
    )
}

/// Why `text` is no network: guesses what was meant.
fn why_no_network(text: &str) -> Complaint {
    let complaint = Complaint::new(
        Code::BadNetwork,
        format!("{} is not a network", quoted(text)),
    );
    match network_hint(text.trim()) {
        Some(hint) => complaint.hint(hint),
        None if text.trim().is_empty() => complaint,
        None => complaint.hint("names are not looked up: write the address itself"),
    }
}

fn network_hint(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    masked(text)
        .or_else(|| several(text))
        .or_else(|| with_length(text))
        .or_else(|| address_range(text))
        .or_else(|| everything(text))
        .or_else(|| misspelt(text))
}

/// `10.20.0.0/255.255.255.0`, or with a space or comma between.
fn masked(text: &str) -> Option<String> {
    let (address, mask) = text.split_once(['/', ' ', ','])?;
    let address: Ipv4Addr = address.parse().ok()?;
    let mask: Ipv4Addr = mask.trim().parse().ok()?;
    let length = ipnet::ip_mask_to_prefix(IpAddr::V4(mask)).ok();
    Some(
        match length.and_then(|length| IpNet::new(IpAddr::V4(address), length).ok()) {
            Some(network) => format!("with the prefix length for {mask}: `{}`", network.trunc()),
            None => "write the prefix length after the `/`, as in `10.20.0.0/24`".to_owned(),
        },
    )
}

/// More than one network in one text, or one with something else.
pub(super) fn several(text: &str) -> Option<String> {
    if parse_network(text).is_some() {
        return Some(format!("without the spaces: `{text}`"));
    }
    let (first, rest) = text.split_once([',', ';', ' ', '\t'])?;
    let rest = rest.trim_start_matches([',', ';', ' ', '\t']);
    let first = first
        .parse::<IpNet>()
        .ok()
        .filter(|_| !rest.starts_with('-'))?;
    Some(if looks_like_address(rest) {
        "one network each, as in `[\"10.20.0.0/24\", \"10.21.0.0/24\"]`".to_owned()
    } else {
        format!("`{first}` alone; comments begin with `#`, outside of the quotes")
    })
}

/// Something is wrong on one side of the `/`.
fn with_length(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/')?;
    if let Ok(address) = address.parse::<IpAddr>() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let plain = !length.is_empty()
            && length
                .chars()
                .all(|c| c.is_alphanumeric() || "+-.".contains(c));
        return plain.then(|| format!("the prefix length is a number from 0 to {most}"));
    }
    let whole = short_v4(address)?;
    let network = IpNet::new(IpAddr::V4(whole), length.parse().ok()?).ok()?;
    Some(format!(
        "all four numbers are needed, as in `{}`",
        network.trunc()
    ))
}

/// `10.20.0.0-10.20.0.255`
fn address_range(text: &str) -> Option<String> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let prefixes = match (first.parse::<IpAddr>(), last.parse::<IpAddr>()) {
        (Ok(first), Ok(last)) => range_as_prefixes(first, last),
        _ if first.parse::<IpNet>().is_ok() && last.parse::<IpNet>().is_ok() => None,
        _ => return None,
    };
    Some(match prefixes {
        Some(prefixes) => format!("ranges are written as prefixes: {prefixes}"),
        None => "ranges are written as prefixes, as in `10.20.0.0/24`".to_owned(),
    })
}

/// `any`, `*`, `10.20.*`
fn everything(text: &str) -> Option<String> {
    if let Some(network) = star_v4(text) {
        return Some(format!("`{network}`"));
    }
    let all = text.contains('*')
        || ["any", "all"]
            .iter()
            .any(|all| text.eq_ignore_ascii_case(all));
    all.then(|| "all of IPv4 is `0.0.0.0/0`, all of IPv6 `::/0`".to_owned())
}

/// Anything else that is not a host's name.
fn misspelt(text: &str) -> Option<String> {
    let fixed = text.replace('\\', "/");
    if fixed != text && parse_network(&fixed).is_some() {
        return Some(format!("`{fixed}`"));
    }
    let fixed = text.replace(',', ".");
    if fixed != text && parse_network(&fixed).is_some() {
        return Some(format!("`{fixed}`"));
    }
    let path = text.strip_prefix('@').unwrap_or(text);
    let extension = std::path::Path::new(path)
        .extension()
        .is_some_and(|extension| {
            ["txt", "list", "lst", "csv", "conf"]
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        });
    if extension || path.starts_with(['/', '~']) || path.starts_with("./") {
        return Some(format!("a file of networks is `{{ file = \"{path}\" }}`"));
    }
    if text.contains("://") {
        return Some("the address alone, without what stands around it".to_owned());
    }
    if let Some(network) = text
        .strip_prefix('!')
        .filter(|rest| parse_network(rest.trim()).is_some())
    {
        return Some(format!(
            "what is not meant goes into `except_server`: `\"{}\"`",
            network.trim()
        ));
    }
    if text.contains('%') {
        return Some("without the `%` and what follows".to_owned());
    }
    if text.starts_with('[') {
        return Some("without the brackets".to_owned());
    }
    if let Some((address, port)) = text.rsplit_once(':')
        && address.parse::<Ipv4Addr>().is_ok()
        && port.parse::<u16>().is_ok()
    {
        return Some("the port belongs in `port`".to_owned());
    }
    let mut parts = text.split(['.', '/']);
    if parts.any(|part| part.len() > 1 && part.starts_with('0') && digits(part).is_some()) {
        return Some("numbers are decimal, without leading zeros".to_owned());
    }
    looks_like_address(text).then(|| {
        if text.contains(':') {
            "an IPv6 address is up to eight groups of up to four hexadecimal digits, one run of zeros written `::`"
        } else {
            "an IPv4 address is four numbers from 0 to 255"
        }
        .to_owned()
    })
}

/// Nothing but what addresses are made of, and a number or colon first.
pub(super) fn looks_like_address(text: &str) -> bool {
    let all = text
        .chars()
        .all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '/'));
    all && (text.contains("::")
        || text.matches(':').count() > 1
        || text.starts_with(|c: char| c.is_ascii_digit()))
        && text.contains(['.', ':'])
}

/// `10.20` or `10.20.0`, filled up with zeros.
fn short_v4(text: &str) -> Option<Ipv4Addr> {
    let dots = text.matches('.').count();
    (dots < 3)
        .then(|| format!("{text}{}", ".0".repeat(3 - dots)).parse().ok())
        .flatten()
}

/// `10.20.0.*` as a prefix.
fn star_v4(text: &str) -> Option<String> {
    let parts: Vec<_> = text.split('.').collect();
    let numbers: Vec<_> = parts
        .iter()
        .take_while(|part| **part != "*")
        .copied()
        .collect();
    let stars = parts.iter().skip(numbers.len()).all(|part| *part == "*");
    if !stars || numbers.is_empty() || parts.len() > 4 || numbers.len() == parts.len() {
        return None;
    }
    let address = short_v4(&numbers.join("."))?;
    Some(format!("{address}/{}", numbers.len() * 8))
}

fn range_as_prefixes(first: IpAddr, last: IpAddr) -> Option<String> {
    const MOST: usize = 4;
    let prefixes: Vec<_> = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => ipnet::Ipv4Subnets::new(first, last, 0)
            .take(MOST + 1)
            .map(|net| format!("`\"{net}\"`"))
            .collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => ipnet::Ipv6Subnets::new(first, last, 0)
            .take(MOST + 1)
            .map(|net| format!("`\"{net}\"`"))
            .collect(),
        _ => return None,
    };
    (!prefixes.is_empty() && prefixes.len() <= MOST).then(|| prefixes.join(", "))
}
