//! Netlink: how the kernel is asked and told about routes and packet rules.
//!
//! One small synchronous socket serves `NETLINK_ROUTE` and `NETLINK_NETFILTER`
//! alike. The kernel works on a request while it is being sent, so its answers are
//! there, or begun, once `send` returns; nothing here needs threads or a runtime.
//! Messages go in and come out as bytes; what they mean is for [`super::route`]
//! and [`super::nftables`].
//!
//! Facts are from `net/netlink/af_netlink.c` and `include/uapi/linux/netlink.h`.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{FailureKind, KernelError};

/// Length of `struct nlmsghdr`.
pub const HEADER_LENGTH: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the extended acknowledgement's text.
const ERROR_TEXT: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`: which byte of the request displeased.
const ERROR_OFFSET: u16 = 2;
/// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS`, on acknowledgements only.
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
/// `NLM_F_DUMP_INTR`: what was dumped changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often a dump is begun before it is given up. On a router whose routes never rest, a
/// filtered dump is interrupted too; each try takes well under a millisecond.
const DUMP_TRIES: u32 = 20;
/// Seconds without an answer after which the kernel is given up. It answers at once, or, behind
/// somebody else's rtnl lock, late; it never forgets.
const PATIENCE: i64 = 30;
/// A first guess at the length of what comes; longer datagrams make the buffer grow.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Which part of the kernel a socket speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, rules, neighbours.
    Route,
    /// `nf_tables`, connection tracking.
    Netfilter,
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The socket itself failed.
    #[error("netlink: `{call}` failed: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
    /// What was being read changed each time that it was read.
    #[error("it changed each of the {DUMP_TRIES} times it was read")]
    Interrupted,
    /// The kernel's answer makes no sense to us.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Bytes that are not what the protocol says they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("netlink: malformed {0}")]
pub struct Malformed(
    /// What was being read or written.
    pub &'static str,
);

/// The kernel's no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub struct Refusal {
    /// Which error.
    pub errno: Errno,
    /// The extended acknowledgement, which says more than the errno.
    pub text: Option<String>,
    /// Which byte of the request, counted from the start of its message header.
    pub offset: Option<u32>,
    /// Which request: its sequence number.
    pub sequence: u32,
}

impl Refusal {
    fn words(&self) -> String {
        match &self.text {
            Some(text) => format!("{text} ({})", self.errno.desc()),
            None => self.errno.desc().to_owned(),
        }
    }
}

impl NetlinkError {
    /// The kernel's errno, where it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            Self::System { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Interrupted | Self::Malformed(_) => None,
        }
    }

    /// This error as what became of `action`, such as "cannot add the routing rule".
    #[must_use]
    pub fn during(self, action: impl Into<String>) -> KernelError {
        let errno = self.errno();
        let (kind, hint) = match errno {
            Some(Errno::EPERM) => (
                FailureKind::NotPermitted,
                Some("run it as root, or with `CAP_NET_ADMIN`".to_owned()),
            ),
            Some(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => {
                (FailureKind::Lacking, None)
            }
            _ => (FailureKind::Other, None),
        };
        let reason = self.to_string();
        let source = match self {
            Self::System { source, .. } => Some(source),
            Self::Refused(refusal) => Some(io::Error::from_raw_os_error(refusal.errno as i32)),
            Self::Interrupted | Self::Malformed(_) => None,
        };
        KernelError {
            action: action.into(),
            reason,
            hint,
            kind,
            source,
        }
    }
}

/// What became of a batch of messages that were sent as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchAnswer {
    /// Sequence numbers of the messages that were acknowledged.
    pub acknowledged: Vec<u32>,
    /// What was refused, in the order of the kernel's answers.
    pub refusals: Vec<Refusal>,
    /// The answers did not fit the receive buffer (`ENOBUFS`), and some are lost. Whether the
    /// batch took effect must then be read back.
    pub overrun: bool,
}

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    strict: bool,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket to the kernel, with extended acknowledgements, and with filtered dumps
    /// where the kernel has them (4.20; see [`Self::is_strict`]).
    ///
    /// # Errors
    /// If the kernel lacks the protocol.
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let number = match protocol {
            Protocol::Route => protocols::NETLINK_ROUTE,
            Protocol::Netfilter => protocols::NETLINK_NETFILTER,
        };
        let mut socket = Socket::new(number).map_err(system("socket"))?;
        socket
            .bind(&SocketAddr::new(0, 0))
            .map_err(system("bind"))?;
        // Connected: no other process can then put words into the kernel's mouth.
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(system("connect"))?;
        // All three are niceties of newer kernels (4.3, 4.12, 4.20): without them there is less
        // text, not less truth.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        let strict = socket.set_netlink_get_strict_chk(true).is_ok();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))
            .map_err(|errno| system("setsockopt")(errno.into()))?;
        Ok(Self {
            socket,
            sequence: 0,
            strict,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Whether the kernel filters dumps by what is in the request. Where it does not,
    /// it sends everything.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// As on a kernel before 4.20.
    #[cfg(test)]
    pub(super) fn forget_strictness(&mut self) {
        let _ = self.socket.set_netlink_get_strict_chk(false);
        self.strict = false;
    }

    /// Makes a change and waits for the kernel's yes or no. `flags` are added to
    /// `NLM_F_REQUEST | NLM_F_ACK`.
    ///
    /// # Errors
    /// The kernel's refusal, or a broken socket.
    pub fn change(&mut self, kind: u16, flags: u16, payload: &Payload) -> Result<(), NetlinkError> {
        self.ask::<()>(kind, flags, payload, |_| Ok(None)).map(drop)
    }

    /// Asks a question that is answered by some messages and an acknowledgement; returns what
    /// `parse` made of them.
    ///
    /// # Errors
    /// The kernel's refusal, a broken socket, or the first error of `parse`.
    pub fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &Payload,
        parse: impl FnMut(Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, NetlinkError> {
        let flags = flags | flag(libc::NLM_F_REQUEST) | flag(libc::NLM_F_ACK);
        let mut found = Vec::new();
        self.exchange(kind, flags, payload, &mut found, parse)?;
        Ok(found)
    }

    /// Reads all objects of a kind; returns what `parse` made of them, without those of which it
    /// made `None`. Begun anew if they changed meanwhile.
    ///
    /// # Errors
    /// The kernel's refusal (`ENOENT` if a table that was asked for does not exist), a broken
    /// socket, the first error of `parse`, or [`NetlinkError::Interrupted`].
    pub fn dump<T>(
        &mut self,
        kind: u16,
        payload: &Payload,
        mut parse: impl FnMut(Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, NetlinkError> {
        let flags = flag(libc::NLM_F_REQUEST) | flag(libc::NLM_F_DUMP);
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let whole = self.exchange(kind, flags, payload, &mut found, &mut parse)?;
            if whole {
                return Ok(found);
            }
        }
        Err(NetlinkError::Interrupted)
    }

    /// Sends one request and reads its answers to their end; whether they are of one piece.
    fn exchange<T>(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &Payload,
        found: &mut Vec<T>,
        mut parse: impl FnMut(Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<bool, NetlinkError> {
        let sequence = self.reserve_sequences(1);
        let request = payload.message(kind, flags, sequence)?;
        self.send(&request)?;
        let mut whole = true;
        // Answers are read to their end even if one cannot be understood: a dump left
        // unfinished would make the kernel refuse the next one as busy.
        let mut trouble: Option<Malformed> = None;
        loop {
            self.receive(0)?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & DUMP_INTERRUPTED == 0;
                match message.verdict()? {
                    Some(Err(refusal)) => return Err(NetlinkError::Refused(refusal)),
                    Some(Ok(())) => return trouble.map_or(Ok(whole), |error| Err(error.into())),
                    None => match parse(message) {
                        Ok(Some(item)) => found.push(item),
                        Ok(None) => {}
                        Err(error) => trouble = trouble.or(Some(error)),
                    },
                }
            }
        }
    }

    /// Sends messages that were put together elsewhere, as one datagram, and reads every
    /// acknowledgement and refusal. Their sequence numbers should come from
    /// [`Self::reserve_sequences`].
    ///
    /// # Errors
    /// A broken socket, or answers that cannot be understood. Refusals are no error here.
    pub fn batch(&mut self, messages_sent: &[u8]) -> Result<BatchAnswer, NetlinkError> {
        self.make_room(messages_sent.len());
        self.send(messages_sent)?;
        let mut answer = BatchAnswer::default();
        loop {
            // All answers were queued while we sent: when there is none left, that is all.
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.errno() == Some(Errno::EAGAIN) => return Ok(answer),
                Err(error) if error.errno() == Some(Errno::ENOBUFS) => {
                    answer.overrun = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in messages(&self.buffer) {
                let message = message?;
                match message.verdict()? {
                    Some(Ok(())) => answer.acknowledged.push(message.sequence),
                    Some(Err(refusal)) => answer.refusals.push(refusal),
                    None => {}
                }
            }
        }
    }

    /// The first of `count` consecutive sequence numbers that nothing else on this socket
    /// bears. Never 0, which the kernel uses for what nobody asked for.
    pub fn reserve_sequences(&mut self, count: u32) -> u32 {
        let (first, last) = match self.sequence.checked_add(count) {
            Some(last) => (self.sequence.saturating_add(1), last),
            None => (1, count),
        };
        self.sequence = last;
        first
    }

    /// Makes the buffers of the socket large enough for a datagram of `length` bytes and for one
    /// acknowledgement for each of its messages.
    fn make_room(&self, length: usize) {
        // The kernel wants 32 bytes more than the datagram, and books each answer with
        // what its bookkeeping takes; a message has at least 20 bytes, an answer costs up to 1 KiB.
        let send = length.saturating_add(64 * 1024);
        let receive = length.saturating_mul(16).clamp(1 << 20, 64 << 20);
        // Beyond the machine's limit only the initial user namespace's `CAP_NET_ADMIN` may go.
        // Should neither suffice, `send` says so itself, and lost answers are noticed.
        if setsockopt(&self.socket, sockopt::SndBufForce, &send).is_err() {
            let _ = setsockopt(&self.socket, sockopt::SndBuf, &send);
        }
        if setsockopt(&self.socket, sockopt::RcvBufForce, &receive).is_err() {
            let _ = setsockopt(&self.socket, sockopt::RcvBuf, &receive);
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match self.socket.send(bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(system("send")(error)),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Reads one datagram, whole, into the buffer.
    fn receive(&mut self, flags: libc::c_int) -> Result<(), NetlinkError> {
        // Its length first: what does not fit the buffer would be cut off and lost.
        let length = self.receive_with(flags | libc::MSG_PEEK | libc::MSG_TRUNC)?;
        if length > self.buffer.capacity() {
            self.buffer.clear();
            self.buffer.reserve_exact(length);
        }
        self.receive_with(flags).map(drop)
    }

    fn receive_with(&mut self, flags: libc::c_int) -> Result<usize, NetlinkError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(system("recv")(error)),
                Ok(length) => return Ok(length),
            }
        }
    }
}

fn system(call: &'static str) -> impl FnOnce(io::Error) -> NetlinkError {
    move |source| NetlinkError::System { call, source }
}

/// libc declares the flags as `int`, the header holds 16 bits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "all flags are within 16 bits"
)]
const fn flag(flag: libc::c_int) -> u16 {
    flag as u16
}

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
    fn verdict(&self) -> Result<Option<Result<(), Refusal>>, Malformed> {
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
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split_message(&mut rest);
        if message.is_none() {
            rest = &[];
        }
        Some(message.ok_or(Malformed("message")))
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
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let attribute = split_attribute(&mut rest);
        if attribute.is_none() {
            rest = &[];
        }
        Some(attribute.ok_or(Malformed("attribute")))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel answers to `ip route add default via 192.0.2.1 dev lo`, with
    /// capped and extended acknowledgements on.
    fn refusal_bytes() -> Vec<u8> {
        let text = b"Nexthop has invalid gateway\0";
        let mut note = Payload::default();
        note.push(ERROR_TEXT, text);
        note.push(ERROR_OFFSET, &36u32.to_ne_bytes());
        let mut bytes = (-101i32).to_ne_bytes().to_vec();
        bytes.extend(
            Payload::new(&[0; 12])
                .message(24, 5, 7)
                .unwrap()
                .get(..16)
                .unwrap(),
        );
        bytes.extend(note.as_bytes());
        Payload::new(&bytes)
            .message(flag(libc::NLMSG_ERROR), CAPPED | ACK_TLVS, 7)
            .unwrap()
    }

    #[test]
    fn a_refusal_says_what_the_kernel_said() {
        let bytes = refusal_bytes();
        let message = messages(&bytes).next().unwrap().unwrap();
        let refusal = message.verdict().unwrap().unwrap().unwrap_err();
        assert_eq!(refusal.errno, Errno::ENETUNREACH);
        assert_eq!(refusal.offset, Some(36));
        assert_eq!(refusal.sequence, 7);
        assert_eq!(
            refusal.to_string(),
            "Nexthop has invalid gateway (Network is unreachable)"
        );
    }

    #[test]
    fn an_uncapped_refusal_is_read_past_the_request() {
        let request = Payload::new(&[9; 12])
            .with(1, &[1, 2, 3])
            .message(24, 5, 7)
            .unwrap();
        let mut bytes = (-22i32).to_ne_bytes().to_vec();
        bytes.extend(&request);
        bytes.extend(Payload::default().with(ERROR_TEXT, b"no\0").as_bytes());
        let bytes = Payload::new(&bytes).message(2, ACK_TLVS, 7).unwrap();
        let message = messages(&bytes).next().unwrap().unwrap();
        let refusal = message.verdict().unwrap().unwrap().unwrap_err();
        assert_eq!(refusal.text.as_deref(), Some("no"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let payload = Payload::new(&[1, 2, 3, 4])
            .with(5, b"abc")
            .with(0x8006, b"");
        let bytes = payload.message(24, 5, 9).unwrap();
        let message = messages(&bytes).next().unwrap().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (24, 5, 9));
        let (fixed, rest) = message.payload.split_at(4);
        assert_eq!(fixed, [1, 2, 3, 4]);
        let found: Vec<_> = attributes(rest).map(Result::unwrap).collect();
        assert_eq!(found[0].value, b"abc");
        assert_eq!((found[1].kind, found[1].flags), (6, 0x8000));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn an_attribute_too_long_is_not_cut() {
        let payload = Payload::default().with(1, &vec![0; 70_000]);
        assert!(payload.message(1, 0, 1).is_err());
    }

    #[test]
    fn sequence_numbers_start_over_before_they_overflow() {
        let mut socket = Netlink::open(Protocol::Route).unwrap();
        assert_eq!(socket.reserve_sequences(3), 1);
        assert_eq!(socket.reserve_sequences(1), 4);
        socket.sequence = u32::MAX - 1;
        assert_eq!(socket.reserve_sequences(1), u32::MAX);
        assert_eq!(socket.reserve_sequences(2), 1);
        assert_eq!(socket.reserve_sequences(1), 3);
    }

    /// Whatever the bytes, reading them ends, and without a panic.
    #[test]
    fn no_bytes_cause_a_panic() {
        let seed = refusal_bytes();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap()
        };
        let mut refused = 0;
        for _ in 0..200_000 {
            let mut bytes = seed.clone();
            for _ in 0..=random() % 4 {
                let at = random() % bytes.len();
                bytes[at] = u8::try_from(random() % 256).unwrap();
            }
            bytes.truncate(1 + random() % bytes.len());
            for message in messages(&bytes).flatten() {
                if let Ok(Some(Err(_))) = message.verdict() {
                    refused += 1;
                }
                for attribute in attributes(message.payload).flatten() {
                    let _ = (
                        attribute.text(),
                        attribute.u32(),
                        attribute.nested().count(),
                    );
                }
            }
            let _ = attributes(&bytes).count();
        }
        assert!(
            refused > 1000,
            "the mutations should leave some intact: {refused}"
        );
    }

    #[test]
    fn the_kernel_answers() {
        let mut socket = Netlink::open(Protocol::Route).unwrap();
        // ip link
        let mut request = Payload::new(&[0; 16]);
        let links = socket
            .dump(libc::RTM_GETLINK, &request, |message| {
                Ok(Some(message.kind))
            })
            .unwrap();
        assert!(!links.is_empty());
        assert!(links.iter().all(|kind| *kind == libc::RTM_NEWLINK));
        // ip link show dev <an index that no link has>
        request = Payload::new(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]);
        let error = socket
            .ask::<()>(libc::RTM_GETLINK, 0, &request, |_| Ok(None))
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        // And the socket is as good as before.
        request = Payload::new(&[0; 16]);
        let again = socket
            .dump(libc::RTM_GETLINK, &request, |_| Ok(Some(())))
            .unwrap();
        assert_eq!(again.len(), links.len());
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_is_read_whole() {
        let mut socket = Netlink::open(Protocol::Route).unwrap();
        socket.buffer = Vec::with_capacity(64);
        let request = Payload::new(&[0; 16]);
        let lengths = socket
            .dump(libc::RTM_GETLINK, &request, |message| {
                Ok(Some(message.payload.len()))
            })
            .unwrap();
        assert!(lengths.iter().all(|length| *length > 64), "{lengths:?}");
    }

    #[test]
    fn every_message_of_a_batch_is_answered() {
        let mut socket = Netlink::open(Protocol::Route).unwrap();
        let flags = flag(libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        let nobody = Payload::new(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]);
        let count = 20_000;
        let first = socket.reserve_sequences(count);
        let mut bytes = Vec::new();
        for sequence in first..first + count {
            bytes.extend(nobody.message(libc::RTM_GETLINK, flags, sequence).unwrap());
        }
        let answer = socket.batch(&bytes).unwrap();
        assert!(!answer.overrun);
        let refused: Vec<u32> = answer.refusals.iter().map(|no| no.sequence).collect();
        assert_eq!(refused, (first..first + count).collect::<Vec<_>>());
    }

    #[test]
    fn a_lost_permission_is_said_so() {
        let refusal = Refusal {
            errno: Errno::EPERM,
            text: None,
            offset: None,
            sequence: 1,
        };
        let error = NetlinkError::Refused(refusal).during("cannot add the routing rule");
        assert_eq!(error.kind, FailureKind::NotPermitted);
        assert_eq!(
            error.to_string(),
            "cannot add the routing rule: Operation not permitted"
        );
    }
}
