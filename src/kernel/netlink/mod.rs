//! Netlink: how the kernel is asked and told about routes and packet rules.
//!
//! One small synchronous socket serves `NETLINK_ROUTE` and `NETLINK_NETFILTER`
//! alike. The kernel works on a request while it is being sent, so its answers are
//! there, or begun, once `send` returns; nothing here needs threads or a runtime.
//! Messages go in and come out as bytes; what they mean is for [`super::route`]
//! and [`super::nftables`].
//!
//! Facts are from `net/netlink/af_netlink.c` and `include/uapi/linux/netlink.h`.

mod error;
mod message;
#[cfg(test)]
mod tests;

use std::io;

use error::system;
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

pub use error::{Malformed, NetlinkError, Refusal};
pub use message::{Attribute, Message, Payload, attributes, messages};

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

/// libc declares the flags as `int`, the header holds 16 bits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "all flags are within 16 bits"
)]
const fn flag(flag: libc::c_int) -> u16 {
    flag as u16
}
