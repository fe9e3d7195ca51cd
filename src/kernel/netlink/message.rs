//! Messages and their attributes, as bytes.

use nix::errno::Errno;
use nix::libc;

use super::error::{Malformed, Refusal};
use super::{ACK_TLVS, CAPPED, ERROR_OFFSET, ERROR_TEXT, HEADER_LENGTH};

/// One message as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// That of the request which it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// Whether this message ends the answers, and how; `None` if it is one of them.
    pub(super) fn verdict(&self) -> Result<Option<Result<(), Refusal>>, Malformed> {
        // `NLMSG_ERROR`, with 0 for a yes, holds a header and maybe all of the request;
        // `NLMSG_DONE` ends a dump, with an error if it broke off. (`NLMSG_DONE` without
        // payload was seen from old kernels' netfilter.)
        let is_error = i32::from(self.kind) == libc::NLMSG_ERROR;
        if !is_error && i32::from(self.kind) != libc::NLMSG_DONE {
            return Ok(None);
        }
        let (code, rest) = match self.payload.split_first_chunk() {
            Some((code, rest)) => (i32::from_ne_bytes(*code), rest),
            None if is_error => return Err(Malformed("acknowledgement")),
            None => (0, &[][..]),
        };
        if code >= 0 {
            // Dumps end with the length of their last part at times.
            return Ok(Some(Ok(())));
        }
        let mut refusal = Refusal {
            errno: Errno::from_raw(code.saturating_neg()),
            text: None,
            offset: None,
            sequence: self.sequence,
        };
        let mut notes = &[][..];
        if self.flags & ACK_TLVS != 0 {
            notes = if is_error {
                let header = rest.first_chunk().ok_or(Malformed("acknowledgement"))?;
                let request = if self.flags & CAPPED == 0 {
                    align(u32::from_ne_bytes(*header) as usize)
                } else {
                    HEADER_LENGTH
                };
                rest.get(request..).unwrap_or_default()
            } else {
                rest
            };
        }
        for note in attributes(notes) {
            let note = note?;
            match note.kind {
                ERROR_TEXT => refusal.text = Some(note.text()),
                ERROR_OFFSET => refusal.offset = Some(note.u32()?),
                _ => {}
            }
        }
        Ok(Some(Err(refusal)))
    }
}

/// The messages of a datagram. Ends after the first that is malformed.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    all(datagram, "message", split_message)
}

/// All that `split` takes off `rest`, up to and with the first that it cannot.
fn all<'a, T>(
    mut rest: &'a [u8],
    what: &'static str,
    split: impl Fn(&mut &'a [u8]) -> Option<T>,
) -> impl Iterator<Item = Result<T, Malformed>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let item = split(&mut rest);
        if item.is_none() {
            rest = &[];
        }
        Some(item.ok_or(Malformed(what)))
    })
}

fn split_message<'a>(rest: &mut &'a [u8]) -> Option<Message<'a>> {
    let all: &'a [u8] = rest;
    let length = u32::from_ne_bytes(*all.first_chunk()?) as usize;
    let message = all.get(..length)?;
    let (header, payload) = message.split_first_chunk::<HEADER_LENGTH>()?;
    let [_, _, _, _, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
    *rest = all.get(align(length)..).unwrap_or_default();
    Some(Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        payload,
    })
}

/// Messages and attributes begin at multiples of four (`NLMSG_ALIGN`, `NLA_ALIGN`).
const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// One attribute of a message, or of another attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without the flags.
    pub kind: u16,
    /// `NLA_F_NESTED` 0x8000 and `NLA_F_NET_BYTEORDER` 0x4000.
    pub flags: u16,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes within it.
    pub fn nested(&self) -> impl Iterator<Item = Result<Attribute<'a>, Malformed>> + use<'a> {
        attributes(self.value)
    }

    /// The value as text, up to the NUL that ends it.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.value.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }

    /// The value as an array of exactly this length.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value
            .try_into()
            .map_err(|_| Malformed("attribute: wrong length"))
    }

    /// The value as a byte.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.array().map(u8::from_ne_bytes)
    }

    /// The value as a 16-bit number of the host's byte order.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn u16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The value as a 32-bit number of the host's byte order.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn u32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The value as a 32-bit number of the network's byte order.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn be32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// The value as a 64-bit number of the network's byte order.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn be64(&self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }
}

/// The attributes in `bytes`. Ends after the first that is malformed.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, Malformed>> {
    all(bytes, "attribute", split_attribute)
}

fn split_attribute<'a>(rest: &mut &'a [u8]) -> Option<Attribute<'a>> {
    const FLAGS: u16 = 0xc000;
    let all: &'a [u8] = rest;
    let [l0, l1, k0, k1] = *all.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([l0, l1]));
    let value = all.get(4..length)?;
    let kind = u16::from_ne_bytes([k0, k1]);
    *rest = all.get(align(length)..).unwrap_or_default();
    Some(Attribute {
        kind: kind & !FLAGS,
        flags: kind & FLAGS,
        value,
    })
}

/// What a request says: the fixed part of its protocol, then attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Payload {
    /// Begins with the fixed part.
    #[must_use]
    pub fn new(fixed: &[u8]) -> Self {
        let mut bytes = fixed.to_vec();
        bytes.resize(align(bytes.len()), 0);
        Self {
            bytes,
            too_long: false,
        }
    }

    /// Adds an attribute. `kind` may bear flags. One too long for its length field
    /// makes the sending fail.
    pub fn push(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len().saturating_add(4)) else {
            self.too_long = true;
            return;
        };
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// With one more attribute; see [`Self::push`].
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// With a name, ended by a NUL as the kernel wants it (`NLA_NUL_STRING`).
    #[must_use]
    pub fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }

    /// The bytes so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole message, header included, as it is sent.
    ///
    /// # Errors
    /// If an attribute or the message is too long for its length field.
    pub fn message(&self, kind: u16, flags: u16, sequence: u32) -> Result<Vec<u8>, Malformed> {
        let length = u32::try_from(self.bytes.len() + HEADER_LENGTH)
            .ok()
            .filter(|_| !self.too_long)
            .ok_or(Malformed("request: too long"))?;
        let mut message = Vec::with_capacity(self.bytes.len() + HEADER_LENGTH);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        // The sender's address: the kernel knows it.
        message.extend(0u32.to_ne_bytes());
        message.extend(&self.bytes);
        Ok(message)
    }
}
