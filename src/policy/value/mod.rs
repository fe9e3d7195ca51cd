//! Single values: what is meant by a piece of text, or what is wrong with it.

mod network;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use network::looks_like_address;

use super::Name;
use super::diagnostic::{Code, quoted};
use crate::net::{IfName, IfNameError, IfPattern, MacAddr, PortRange};

pub use network::network;

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
