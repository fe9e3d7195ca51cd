//! Interface names, patterns of them, and MAC addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest interface name the kernel takes, in bytes (`IFNAMSIZ` less its NUL,
/// `include/uapi/linux/if.h`).
pub const IFNAME_MAX: usize = 15;

/// A name the kernel would accept for an interface (`dev_valid_name` in `net/core/dev.c`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

/// Why a string cannot name an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IfNameError {
    /// Nothing there.
    #[error("an interface name cannot be empty")]
    Empty,
    /// Over 15 bytes.
    #[error("{length} bytes long, the kernel takes at most {IFNAME_MAX}")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// `.` and `..` are directories in `/proc/sys`.
    #[error("`.` and `..` cannot name an interface")]
    Dots,
    /// `/`, `:` or white space, which the kernel refuses; control and quote
    /// characters, which no tool could print safely.
    #[error("{0:?} cannot be part of an interface name")]
    Character(char),
    /// `*` anywhere but at the end, or in a place where one exact name is wanted.
    #[error(
        "`*` may stand only at the end, after at least one character, and only in a list of client or server interfaces"
    )]
    Wildcard,
}

impl IfName {
    /// Checks `name` as the kernel does.
    ///
    /// # Errors
    /// Says what the kernel would refuse.
    pub fn new(name: &str) -> Result<Self, IfNameError> {
        check_characters(name)?;
        if name == "." || name == ".." {
            return Err(IfNameError::Dots);
        }
        if name.contains('*') {
            return Err(IfNameError::Wildcard);
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_characters(name: &str) -> Result<(), IfNameError> {
    if name.is_empty() {
        return Err(IfNameError::Empty);
    }
    if name.len() > IFNAME_MAX {
        return Err(IfNameError::TooLong { length: name.len() });
    }
    let refused = |c: &char| {
        matches!(c, '/' | ':' | '"' | '\'' | '\\' | '`' | '$')
            || c.is_whitespace()
            || c.is_control()
    };
    match name.chars().find(refused) {
        Some(character) => Err(IfNameError::Character(character)),
        None => Ok(()),
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = IfNameError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl TryFrom<String> for IfName {
    type Error = IfNameError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

/// One interface by name, or all whose name begins so (`ppp*`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IfPattern {
    /// This interface.
    Exact(IfName),
    /// Every interface whose name begins with this (the `*` is not part of it).
    Prefix(String),
}

impl IfPattern {
    /// Reads `eth0` or `ppp*`.
    ///
    /// # Errors
    /// Says what the kernel would refuse.
    pub fn new(pattern: &str) -> Result<Self, IfNameError> {
        let Some(prefix) = pattern.strip_suffix('*') else {
            return IfName::new(pattern).map(Self::Exact);
        };
        if prefix.is_empty() || prefix.contains('*') {
            return Err(IfNameError::Wildcard);
        }
        check_characters(prefix)?;
        // As long as a name can be, it begins one name only: itself. (And nft takes no longer pattern.)
        if prefix.len() == IFNAME_MAX {
            return IfName::new(prefix).map(Self::Exact);
        }
        Ok(Self::Prefix(prefix.to_owned()))
    }

    /// Whether an interface of this name is meant.
    #[must_use]
    pub fn matches(&self, name: &IfName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix.as_str()),
        }
    }

    /// Whether every interface that `other` means is meant by this too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(name)) => self.matches(name),
            (Self::Prefix(prefix), Self::Prefix(longer)) => longer.starts_with(prefix.as_str()),
            (Self::Exact(_), Self::Prefix(_)) => false,
        }
    }

    /// Whether some interface could be meant by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl fmt::Display for IfPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl FromStr for IfPattern {
    type Err = IfNameError;
    fn from_str(pattern: &str) -> Result<Self, Self::Err> {
        Self::new(pattern)
    }
}

impl TryFrom<String> for IfPattern {
    type Error = IfNameError;
    fn try_from(pattern: String) -> Result<Self, Self::Error> {
        Self::new(&pattern)
    }
}

impl From<IfPattern> for String {
    fn from(pattern: IfPattern) -> Self {
        pattern.to_string()
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for MacAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = || "six pairs of hexadecimal digits, such as `02:00:5e:00:00:01`".to_owned();
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wanted)?;
            if part.len() != 2 || !part.chars().all(|c| c.is_ascii_hexdigit()) {
                return Err(wanted());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wanted())?;
        }
        if parts.next().is_some() {
            return Err(wanted());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        for (name, error) in [
            ("", IfNameError::Empty),
            ("sixteen-bytes-xx", IfNameError::TooLong { length: 16 }),
            ("..", IfNameError::Dots),
            ("a/b", IfNameError::Character('/')),
            ("a b", IfNameError::Character(' ')),
            ("a:1", IfNameError::Character(':')),
            ("ppp*", IfNameError::Wildcard),
        ] {
            assert_eq!(IfName::new(name), Err(error), "{name:?}");
        }
        assert!(IfName::new("br-lan.100@x").is_ok());
    }

    #[test]
    fn patterns_match_by_prefix() {
        let ppp = IfPattern::new("ppp*").unwrap();
        assert!(ppp.matches(&IfName::new("ppp0").unwrap()));
        assert!(!ppp.matches(&IfName::new("pp0").unwrap()));
        assert!(IfPattern::new("p*").unwrap().covers(&ppp));
        assert!(ppp.overlaps(&IfPattern::new("p*").unwrap()));
        let longest = "fifteen-bytes--";
        assert_eq!(
            IfPattern::new(&format!("{longest}*")),
            IfPattern::new(longest)
        );
        assert!(IfPattern::new("*").is_err());
        assert!(IfPattern::new("p*p*").is_err());
    }

    #[test]
    fn mac_addresses_round_trip() {
        let mac: MacAddr = "02:00:5E:00:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:00:00:01");
        assert!("02:00:5e:00:00".parse::<MacAddr>().is_err());
        assert!("+2:00:5e:00:00:01".parse::<MacAddr>().is_err());
    }
}
