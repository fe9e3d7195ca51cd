//! Single values: what is meant by a piece of text, or what is wrong with it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::net::{IfName, IfNameError, IfPattern, MacAddr, PortRange};

use super::Name;
use super::diagnostic::{Code, quoted};

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Of what kind it is.
    pub code: Code,
    /// What is wrong, in one line.
    pub message: String,
    /// What to write instead, or to do.
    pub hint: Option<String>,
}

impl Complaint {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

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
fn several(text: &str) -> Option<String> {
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
fn looks_like_address(text: &str) -> bool {
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

/// An address that an appliance can have.
///
/// # Errors
/// Not an address, or one that no single machine on a link can have.
pub fn appliance_address(text: &str) -> Result<IpAddr, Complaint> {
    let complain = |message: String| Complaint::new(Code::BadAddress, message);
    let Ok(address) = text.parse::<IpAddr>() else {
        let plain = complain(format!("{} is not an address", quoted(text)));
        let trimmed = text.trim();
        return Err(
            if let Some((address, _)) = trimmed
                .split_once('/')
                .filter(|(address, _)| address.parse::<IpAddr>().is_ok())
            {
                plain.hint(format!("without the prefix length: `{address}`"))
            } else if let Some((address, _)) = trimmed
                .split_once('%')
                .filter(|(address, _)| address.parse::<IpAddr>().is_ok())
            {
                plain.hint(format!("`{address}`; `interface` says where it is"))
            } else if trimmed.parse::<IpAddr>().is_ok() {
                plain.hint(format!("without the spaces: `{trimmed}`"))
            } else if trimmed.contains([',', ' ']) {
                plain.hint("one address for each family, as in `[\"10.30.0.2\", \"fd00:30::2\"]`")
            } else if looks_like_address(trimmed) {
                plain.hint(if trimmed.contains(':') {
                "an IPv6 address is up to eight groups of up to four hexadecimal digits, one run of zeros written `::`"
            } else {
                "an IPv4 address is four numbers from 0 to 255, without leading zeros"
            })
            } else {
                plain.hint("names are not looked up: write the address itself")
            },
        );
    };
    let what = match address {
        _ if address.is_unspecified() => "means no address at all",
        _ if address.is_loopback() => "is the router itself",
        _ if address.is_multicast() => "is a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "is the broadcast address",
        IpAddr::V4(v4) if v4.octets().first() == Some(&0) => {
            "is in `0.0.0.0/8`, which no machine has"
        }
        IpAddr::V4(v4) if v4.to_bits() >> 28 == 0xf => "is in `240.0.0.0/4`, which is reserved",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "is an IPv4 address in IPv6 form",
        _ => return Ok(address),
    };
    Err(complain(format!("`{address}` {what}"))
        .hint("the address of the appliance's own interface on the link to this router"))
}

/// A port, or `first-last`.
///
/// # Errors
/// Not that.
pub fn port(text: &str) -> Result<PortRange, Complaint> {
    let plain = || Complaint::new(Code::BadPort, format!("{} is not a port", quoted(text)));
    let trimmed = text.trim();
    let (first, last) = match trimmed.split_once('-') {
        Some((first, last)) => (first.trim(), last.trim()),
        None => (trimmed, trimmed),
    };
    if let (Some(first), Some(last)) = (digits(first), digits(last)) {
        let numbers = (port_number(first)?, port_number(last)?);
        return if numbers.0 <= numbers.1 {
            Ok(numbers.into())
        } else {
            Err(Complaint::new(
                Code::BadPort,
                format!("the range `{trimmed}` runs backwards"),
            )
            .hint(format!("`\"{}-{}\"`", numbers.1, numbers.0)))
        };
    }
    if let Some((first, last)) = trimmed
        .split_once([':', '–', '—', '…'])
        .or_else(|| trimmed.split_once(".."))
        && let (Some(first), Some(last)) = (digits(first.trim()), digits(last.trim()))
    {
        return Err(plain().hint(format!("a range is written with `-`: `\"{first}-{last}\"`")));
    }
    if let Some((first, "")) = trimmed.split_once('-')
        && let Some(first) = digits(first)
    {
        return Err(plain().hint(format!("a range has two ends: `\"{first}-65535\"`")));
    }
    let numbers: Vec<_> = trimmed
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .collect();
    if let [number] = numbers.as_slice()
        && !trimmed.starts_with('-')
        && port_number(number).is_ok()
    {
        return Err(plain().hint(format!(
            "the number alone: `{number}`; only TCP is redirected"
        )));
    }
    if trimmed.contains([',', ' ', ';']) {
        return Err(plain().hint("several ports are a list, as in `[22, 3389]`"));
    }
    let known = match trimmed.to_ascii_lowercase().as_str() {
        "ssh" | "sftp" => Some(22),
        "telnet" => Some(23),
        "http" => Some(80),
        "https" => Some(443),
        "ica" | "citrix" => Some(1494),
        "mssql" | "ms-sql-s" => Some(1433),
        "rdp" | "ms-wbt-server" => Some(3389),
        "vnc" | "rfb" => Some(5900),
        _ => None,
    };
    Err(match known {
        Some(number) => plain().hint(format!("ports are given by number: `{number}`")),
        None if trimmed == "*"
            || trimmed.eq_ignore_ascii_case("any")
            || trimmed.eq_ignore_ascii_case("all") =>
        {
            plain().hint("every port is `\"1-65535\"`")
        }
        None => plain(),
    })
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

fn port_number(digits: &str) -> Result<u16, Complaint> {
    match digits.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Complaint::new(
            Code::BadPort,
            format!("{} is not a port: they run from 1 to 65535", quoted(digits)),
        )),
    }
}

/// The name of one interface.
///
/// # Errors
/// Names that the kernel would not take.
pub fn interface(text: &str) -> Result<IfName, Complaint> {
    useful_interface(text)?;
    if text.len() > 1 && text.ends_with('*') {
        return Err(Complaint::new(
            Code::BadInterface,
            format!("{} means several interfaces", quoted(text)),
        )
        .hint("name the one that leads to the appliance"));
    }
    IfName::new(text).map_err(|error| interface_complaint(text, &error))
}

/// The name of one interface, or a prefix of names.
///
/// # Errors
/// Names that the kernel would not take.
pub fn interface_pattern(text: &str) -> Result<IfPattern, Complaint> {
    useful_interface(text)?;
    IfPattern::new(text).map_err(|error| interface_complaint(text, &error))
}

/// Refuses names that the kernel would take, or nearly, but never for what is meant here.
fn useful_interface(text: &str) -> Result<(), Complaint> {
    match text {
        // `sysctl_dev_name_is_allowed` in the kernel's net/ipv4/devinet.c.
        "all" | "default" => Err(Complaint::new(
            Code::BadInterface,
            format!("no interface can be called `{text}`"),
        )
        .hint("name each interface, or several by a prefix, as in `eth*`")),
        "lo" => Err(Complaint::new(
            Code::BadInterface,
            "`lo` carries the router's own traffic alone",
        )
        .hint("name the interface towards the other machines")),
        // The kernel would take these; but every program that is told of such a name
        // would understand something else, and iptables a whole family of interfaces.
        _ if text.starts_with('-') => Err(Complaint::new(
            Code::BadInterface,
            format!(
                "{} looks like an option, to every program that is told of it",
                quoted(text)
            ),
        )
        .hint("give the interface another name, with `ip link set dev … name …`")),
        _ if text.starts_with('!') => Err(Complaint::new(
            Code::BadInterface,
            format!(
                "{} excludes an interface, which cannot be said here",
                quoted(text)
            ),
        )
        .hint("name those that are meant, or a prefix of them, as in `eth*`")),
        _ => match text.strip_suffix('+') {
            Some(prefix) => Err(Complaint::new(
                Code::BadInterface,
                format!("{} is a prefix as iptables writes it", quoted(text)),
            )
            .hint(format!(
                "`{prefix}*`, in a list of client or server interfaces"
            ))),
            None => Ok(()),
        },
    }
}

fn interface_complaint(text: &str, error: &IfNameError) -> Complaint {
    let complaint = Complaint::new(
        Code::BadInterface,
        match error {
            IfNameError::Empty => error.to_string(),
            _ => format!("{} cannot name an interface: {error}", quoted(text)),
        },
    );
    match error {
        IfNameError::Character(':') => match text.split_once(':') {
            Some((name, _)) if !name.is_empty() => complaint.hint(format!(
                "`{text}` is a label of an address; the interface is `{name}`"
            )),
            _ => complaint,
        },
        IfNameError::Character(' ') if text.contains(char::is_whitespace) => {
            let names: Vec<_> = text
                .split_whitespace()
                .map(|name| format!("\"{}\"", name.trim_matches(',')))
                .collect();
            if names.len() > 1 {
                complaint.hint(format!("several are a list: `[{}]`", names.join(", ")))
            } else {
                complaint.hint("without the spaces")
            }
        }
        IfNameError::Wildcard if text == "*" => complaint
            .hint("name the interfaces that clients come in on, or prefixes of them, as in `eth*`"),
        _ => complaint,
    }
}

/// What `ip link` shows for an interface whose peer is elsewhere: the name before the `@`.
#[must_use]
pub fn shown_with_peer(text: &str) -> Option<&str> {
    text.split_once('@')
        .map(|(name, _)| name)
        .filter(|name| !name.is_empty())
}

/// The MAC address of one machine.
///
/// # Errors
/// Not that.
pub fn mac(text: &str) -> Result<MacAddr, Complaint> {
    let complain = |message: String| Complaint::new(Code::BadMac, message);
    let Ok(mac) = text.parse::<MacAddr>() else {
        let plain = complain(format!("{} is not a MAC address", quoted(text)));
        // Cisco's 0200.5e00.0001, and bare digits.
        let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
        let only = text
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '-' | ' '));
        if !only || digits.len() != 12 {
            return Err(plain);
        }
        let pairs: Vec<String> = digits
            .chunks(2)
            .map(|pair| pair.iter().collect::<String>().to_ascii_lowercase())
            .collect();
        return Err(plain.hint(format!("`{}`", pairs.join(":"))));
    };
    if mac.0 == [0; 6] {
        return Err(complain(format!("`{mac}` is no machine's address")));
    }
    // The lowest bit of the first byte marks groups (IEEE 802); nobody sends from one.
    if mac.0.first().is_some_and(|first| first & 1 == 1) {
        return Err(complain(format!(
            "`{mac}` is an address of a group, no machine sends from it"
        )));
    }
    Ok(mac)
}

/// The name of a redirect.
///
/// # Errors
/// Not one.
pub fn name(text: &str) -> Result<Name, Complaint> {
    Name::new(text).map_err(|_| {
        let complaint = Complaint::new(Code::BadName, format!("{} cannot be a name", quoted(text)));
        match suggestion(text) {
            Some(better) => complaint.hint(format!("`{better}`")),
            None => complaint,
        }
    })
}

/// The name of an appliance, which is that of its routing table too.
///
/// # Errors
/// Not one, or one that `ip` would take for something else.
pub fn appliance_name(text: &str) -> Result<Name, Complaint> {
    let name = name(text)?;
    let hexadecimal = text
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let taken = matches!(
        text,
        "main" | "local" | "default" | "unspec" | "all" | "cache"
    );
    if taken || hexadecimal || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Complaint::new(
            Code::BadName,
            format!("`{text}` cannot name a routing table: `ip` takes it for another"),
        )
        .hint("any other name, such as `scb`"));
    }
    Ok(name)
}

/// `text` with what a name cannot hold replaced, if that helps.
fn suggestion(text: &str) -> Option<String> {
    let better: String = text
        .trim()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') {
                c
            } else {
                '-'
            }
        })
        .take(Name::MAX)
        .collect();
    let better = better.trim_matches(['-', '.', '_']);
    Name::new(better).ok().map(|name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint_of(text: &str) -> String {
        network(text).unwrap_err().hint.unwrap_or_default()
    }

    #[test]
    fn networks_are_read() {
        for (text, network) in [
            ("10.20.0.0/24", "10.20.0.0/24"),
            ("10.20.0.5", "10.20.0.5/32"),
            ("fd00:20::/64", "fd00:20::/64"),
            ("fd00:20::1", "fd00:20::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(super::network(text).unwrap().to_string(), network);
        }
    }

    #[test]
    fn what_was_meant_by_a_network_is_guessed() {
        for (text, hint) in [
            (
                "10.20.0.5/24",
                "`10.20.0.0/24` is the whole network, `10.20.0.5/32` this one address",
            ),
            (
                "10.20.0.0/255.255.255.0",
                "with the prefix length for 255.255.255.0: `10.20.0.0/24`",
            ),
            (
                "10.20.0.0 255.255.0.0",
                "with the prefix length for 255.255.0.0: `10.20.0.0/16`",
            ),
            ("10.20.0.0/33", "the prefix length is a number from 0 to 32"),
            (
                "10.20.0.0/+24",
                "the prefix length is a number from 0 to 32",
            ),
            (
                "10.20/16",
                "all four numbers are needed, as in `10.20.0.0/16`",
            ),
            (
                "10.20.0.0-10.20.0.255",
                "ranges are written as prefixes: `\"10.20.0.0/24\"`",
            ),
            ("10.20.*.*", "`10.20.0.0/16`"),
            ("any", "all of IPv4 is `0.0.0.0/0`, all of IPv6 `::/0`"),
            ("10.20.0.1:22", "the port belongs in `port`"),
            (
                "10.020.0.0/24",
                "numbers are decimal, without leading zeros",
            ),
            (
                "10.20.0.300",
                "an IPv4 address is four numbers from 0 to 255",
            ),
            (
                "server.example.com",
                "names are not looked up: write the address itself",
            ),
            (" 10.20.0.0/24", "without the spaces: `10.20.0.0/24`"),
            (
                "10.20.0.0/24, 10.21.0.0/24",
                "one network each, as in `[\"10.20.0.0/24\", \"10.21.0.0/24\"]`",
            ),
            ("::ffff:10.0.0.1", "write the IPv4 address, `10.0.0.1`"),
            ("fe80::1%eth0", "without the `%` and what follows"),
        ] {
            assert_eq!(hint_of(text), hint, "{text}");
        }
    }

    #[test]
    fn ports_are_read_or_explained() {
        assert_eq!(port("3389").unwrap(), (3389, 3389).into());
        assert_eq!(port("5900-5910").unwrap(), (5900, 5910).into());
        assert_eq!(port(" 5900 - 5910 ").unwrap(), (5900, 5910).into());
        for (text, hint) in [
            ("ssh", Some("ports are given by number: `22`")),
            ("5910-5900", Some("`\"5900-5910\"`")),
            (
                "5900:5910",
                Some("a range is written with `-`: `\"5900-5910\"`"),
            ),
            (
                "22,3389",
                Some("several ports are a list, as in `[22, 3389]`"),
            ),
            ("0", None),
            ("65536", None),
            ("1-65536", None),
            ("-1", None),
            (
                "3389/tcp",
                Some("the number alone: `3389`; only TCP is redirected"),
            ),
            ("22-", Some("a range has two ends: `\"22-65535\"`")),
            ("", None),
        ] {
            assert_eq!(port(text).unwrap_err().hint.as_deref(), hint, "{text}");
        }
    }

    #[test]
    fn addresses_that_no_appliance_has_are_refused() {
        for text in [
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "0.1.2.3",
            "250.0.0.1",
            "::ffff:10.0.0.1",
            "10.30.0.2/24",
            "fe80::1%eth0",
            "sps.example.com",
            "",
        ] {
            assert!(appliance_address(text).is_err(), "{text}");
        }
        assert!(appliance_address("fe80::1").is_ok());
        assert!(appliance_address("169.254.1.1").is_ok());
    }

    #[test]
    fn interfaces_that_programs_would_misread_are_refused() {
        for text in [
            "-j", "!eth0", "ppp+", "all", "default", "lo", "eth0:1", "a b", "",
        ] {
            assert!(interface(text).is_err(), "{text}");
            assert!(interface_pattern(text).is_err(), "{text}");
        }
        assert!(interface("ppp*").is_err());
        assert!(interface_pattern("ppp*").is_ok());
        assert!(interface("br-lan.100").is_ok());
    }

    #[test]
    fn macs_of_groups_are_refused() {
        assert!(mac("02:00:5e:00:00:01").is_ok());
        for text in [
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "02:00:5e",
        ] {
            assert!(mac(text).is_err(), "{text}");
        }
        assert_eq!(
            mac("0200.5e00.0001").unwrap_err().hint.unwrap(),
            "`02:00:5e:00:00:01`"
        );
    }

    #[test]
    fn names_that_ip_would_misread_are_refused() {
        for text in ["main", "254", "0xfe", "all", "my scb", "", "-x"] {
            assert!(appliance_name(text).is_err(), "{text}");
        }
        assert!(appliance_name("scb").is_ok());
        assert!(name("254").is_ok());
        assert_eq!(name("my rdp").unwrap_err().hint.unwrap(), "`my-rdp`");
    }
}
