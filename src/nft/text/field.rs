//! What a register may hold, and how nft calls it and its values.

use super::super::PayloadBase;
use super::super::abi::set;
use super::super::wire::Interval;
use super::elements::{v4, v6};
use super::is_quotable;
use super::statements::{IPV4, IPV6, TCP, hex};
use crate::net::MacAddr;

/// What register 1 holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Mark,
    CtMark,
    CtState,
    Interface(&'static str),
    InputType,
    Family,
    Protocol,
    V4(&'static str),
    V6(&'static str),
    Port(&'static str),
    TcpFlags,
    Ether(&'static str),
    Raw(PayloadBase, u32, u32),
}

/// Bits of the TCP flags, as nft names them.
const TCP_FLAGS: [(u8, &str); 8] = [
    (0x01, "fin"),
    (0x02, "syn"),
    (0x04, "rst"),
    (0x08, "psh"),
    (0x10, "ack"),
    (0x20, "urg"),
    (0x40, "ecn"),
    (0x80, "cwr"),
];

/// Bits of a connection's state (`NF_CT_STATE_BIT`, `nf_conntrack_common.h`).
const CT_STATES: [(u32, &str); 5] = [
    (0x01, "invalid"),
    (0x02, "established"),
    (0x04, "related"),
    (0x08, "new"),
    (0x40, "untracked"),
];

/// What register 1 holds, and what was done to it since.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) field: Field,
    pub(super) bits: Option<(Vec<u8>, Vec<u8>)>,
}

impl Field {
    fn name(self) -> String {
        match self {
            Self::Mark => "meta mark".to_owned(),
            Self::CtMark => "ct mark".to_owned(),
            Self::CtState => "ct state".to_owned(),
            Self::InputType => "meta iiftype".to_owned(),
            Self::Family => "meta nfproto".to_owned(),
            Self::Protocol => "meta l4proto".to_owned(),
            Self::TcpFlags => "tcp flags".to_owned(),
            Self::Interface(name)
            | Self::V4(name)
            | Self::V6(name)
            | Self::Port(name)
            | Self::Ether(name) => name.to_owned(),
            Self::Raw(base, offset, length) => {
                let base = match base {
                    PayloadBase::Link => "ll",
                    PayloadBase::Network => "nh",
                    PayloadBase::Transport => "th",
                };
                let bits = |bytes: u32| u64::from(bytes) * 8;
                format!("@{base},{},{}", bits(offset), bits(length))
            }
        }
    }

    /// In bytes.
    pub(super) fn length(self) -> Option<usize> {
        Some(match self {
            Self::Mark | Self::CtMark | Self::CtState | Self::V4(_) => 4,
            Self::Interface(_) | Self::V6(_) => 16,
            Self::InputType | Self::Port(_) => 2,
            Self::Family | Self::Protocol | Self::TcpFlags => 1,
            Self::Ether(_) => 6,
            Self::Raw(_, _, length) => usize::try_from(length).ok()?,
        })
    }

    /// nft's type number, of those that can be keys of a map here.
    pub(super) fn key_type(self) -> Option<u32> {
        match self {
            Self::Mark | Self::CtMark => Some(set::TYPE_MARK),
            Self::Interface(_) => Some(set::TYPE_IFNAME),
            Self::V4(_) => Some(set::TYPE_IPV4),
            Self::V6(_) => Some(set::TYPE_IPV6),
            Self::Port(_) => Some(set::TYPE_SERVICE),
            Self::Ether(_) => Some(set::TYPE_ETHER),
            _ => None,
        }
    }

    /// Where in a header it lies.
    pub(super) fn place(self) -> Option<(PayloadBase, u32, u32)> {
        Some(match self {
            Self::Port("tcp sport") => (PayloadBase::Transport, 0, 2),
            Self::Port(_) => (PayloadBase::Transport, 2, 2),
            Self::TcpFlags => (PayloadBase::Transport, 13, 1),
            Self::V4("ip saddr") => (PayloadBase::Network, 12, 4),
            Self::V4(_) => (PayloadBase::Network, 16, 4),
            Self::V6("ip6 saddr") => (PayloadBase::Network, 8, 16),
            Self::V6(_) => (PayloadBase::Network, 24, 16),
            Self::Ether("ether daddr") => (PayloadBase::Link, 0, 6),
            Self::Ether(_) => (PayloadBase::Link, 6, 6),
            Self::Raw(base, offset, length) => (base, offset, length),
            _ => return None,
        })
    }

    /// A whole value of it, or the beginning of an interface's name.
    pub(super) fn value(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Mark | Self::CtMark => Some(format!("{:#010x}", host_u32(bytes)?)),
            Self::CtState => Some(format!("{:#x}", host_u32(bytes)?)),
            Self::Interface(_) => interface(bytes),
            Self::InputType => match u16::from_ne_bytes(bytes.try_into().ok()?) {
                1 => Some("ether".to_owned()),
                other => Some(other.to_string()),
            },
            Self::Family => match bytes {
                [IPV4] => Some("ipv4".to_owned()),
                [IPV6] => Some("ipv6".to_owned()),
                _ => None,
            },
            Self::Protocol => match bytes {
                [TCP] => Some("tcp".to_owned()),
                [other] => Some(other.to_string()),
                _ => None,
            },
            Self::V4(_) => u32::from_key(bytes).map(v4),
            Self::V6(_) => u128::from_key(bytes).map(v6),
            Self::Port(_) => u16::from_key(bytes).map(|port| port.to_string()),
            Self::TcpFlags => match bytes {
                [flags] => Some(tcp_flags(*flags)),
                _ => None,
            },
            Self::Ether(_) => bytes.try_into().ok().map(|mac| MacAddr(mac).to_string()),
            Self::Raw(_, _, length) => {
                (usize::try_from(length) == Ok(bytes.len())).then(|| hex(bytes))
            }
        }
    }
}

fn host_u32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn tcp_flags(flags: u8) -> String {
    let names: Vec<_> = TCP_FLAGS
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() {
        "0x0".to_owned()
    } else {
        names.join("|")
    }
}

/// An interface's name, whole (16 bytes, filled up with NULs) or the beginning of one.
fn interface(bytes: &[u8]) -> Option<String> {
    let whole = bytes.len() == 16;
    let name = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) if whole => {
            let (name, filling) = bytes.split_at_checked(end)?;
            filling.iter().all(|byte| *byte == 0).then_some(name)?
        }
        // nft takes at most 15 bytes, the star among them.
        None if bytes.len() <= 14 => bytes,
        _ => return None,
    };
    let name = std::str::from_utf8(name).ok()?;
    (is_quotable(name) && !name.contains('*') && !name.is_empty()).then_some(())?;
    let star = if whole { "" } else { "*" };
    Some(format!("\"{name}{star}\""))
}

impl Loaded {
    /// For people.
    pub(super) fn subject(&self) -> String {
        match &self.bits {
            None => self.field.name(),
            Some((mask, xor)) => format!("{} & {} ^ {}", self.field.name(), hex(mask), hex(xor)),
        }
    }

    /// What a mark is set to.
    pub(super) fn mark(&self) -> Option<String> {
        if !matches!(self.field, Field::Mark | Field::CtMark) {
            return None;
        }
        let name = self.field.name();
        let Some((mask, xor)) = &self.bits else {
            return Some(name);
        };
        let (mask, xor) = (host_u32(mask)?, host_u32(xor)?);
        Some(match (mask, xor) {
            (mask, 0) => format!("{name} and {mask:#010x}"),
            (u32::MAX, xor) => format!("{name} xor {xor:#010x}"),
            (mask, xor) if mask & xor == 0 => format!("{name} and {mask:#010x} or {xor:#010x}"),
            (mask, xor) => format!("{name} and {mask:#010x} xor {xor:#010x}"),
        })
    }

    /// The left side of a look-up.
    pub(super) fn matched(&self) -> Option<String> {
        let name = self.field.name();
        match (&self.bits, self.field) {
            (None, Field::Raw(..)) => None,
            (None, _) => Some(name),
            (Some((mask, xor)), Field::Mark | Field::CtMark) if host_u32(xor)? == 0 => {
                Some(format!("{name} and {:#010x}", host_u32(mask)?))
            }
            (Some(_), _) => None,
        }
    }

    pub(super) fn compared(&self, equal: bool, bytes: &[u8]) -> Option<String> {
        let name = self.field.name();
        let not = if equal { "" } else { "!= " };
        let sign = if equal { "==" } else { "!=" };
        let Some((mask, xor)) = &self.bits else {
            let value = self.field.value(bytes)?;
            return Some(match self.field {
                // Without a sign these two would mean "any of these bits".
                Field::TcpFlags | Field::CtState => format!("{name} {sign} {value}"),
                _ => format!("{name} {not}{value}"),
            });
        };
        if xor.iter().any(|byte| *byte != 0) {
            return None;
        }
        match self.field {
            Field::Mark | Field::CtMark => {
                let value = self.field.value(bytes)?;
                Some(format!(
                    "{name} and {:#010x} {sign} {value}",
                    host_u32(mask)?
                ))
            }
            Field::CtState => {
                let (mask, value) = (host_u32(mask)?, host_u32(bytes)?);
                match (state_names(mask), equal, value) {
                    (Some(names), false, 0) => Some(format!("{name} {names}")),
                    _ => Some(format!("{name} and {mask:#x} {sign} {value:#x}")),
                }
            }
            Field::TcpFlags => {
                let [mask] = mask.as_slice() else { return None };
                let value = self.field.value(bytes)?;
                Some(format!("{name} & ({}) {sign} {value}", tcp_flags(*mask)))
            }
            _ => None,
        }
    }
}

/// `established,new`, if all bits have names.
fn state_names(bits: u32) -> Option<String> {
    let known = CT_STATES.iter().fold(0, |known, (bit, _)| known | bit);
    let names: Vec<_> = CT_STATES
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    (bits & !known == 0 && !names.is_empty()).then(|| names.join(","))
}
