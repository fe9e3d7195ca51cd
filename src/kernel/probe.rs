//! Asks the appliance itself: does it answer, and does it take sessions?
//!
//! The vendor's manual has people try ping and a connection to the port. A session that the
//! router itself opens to a *server* with the appliance's mark follows the appliance's
//! routing table as clients' sessions do: if the appliance is there, it is the appliance
//! that answers in the server's name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect,
    getsockopt, recv, sendto, setsockopt, socket, sockopt,
};

use crate::net::{Family, IfName, Mark};

/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_secs(2);

fn family(address: IpAddr) -> AddressFamily {
    match Family::of(address) {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Sends an ICMP echo to `address` by `interface`; how long the answer took.
///
/// # Errors
/// If it cannot be sent, or none came within [`PATIENCE`].
pub fn echo(address: IpAddr, interface: &IfName) -> io::Result<Duration> {
    // RFC 792 and RFC 4443: type, code, checksum, identifier, sequence number.
    const REQUEST: [u8; 2] = [8, 128];
    const REPLY: [u8; 2] = [0, 129];
    let (protocol, kind, reply) = match Family::of(address) {
        Family::V4 => (SockProtocol::Icmp, REQUEST[0], REPLY[0]),
        Family::V6 => (SockProtocol::IcmpV6, REQUEST[1], REPLY[1]),
    };
    let socket = socket(
        family(address),
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.as_str().into())?;
    let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or(0);
    let [high, low] = identifier.to_be_bytes();
    let mut packet = [kind, 0, 0, 0, high, low, 0, 1];
    // The kernel fills ICMPv6's in.
    let sum = checksum(&packet).to_be_bytes();
    packet[2] = sum[0];
    packet[3] = sum[1];
    let begun = Instant::now();
    let to = SockaddrStorage::from(SocketAddr::new(address, 0));
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    loop {
        wait(&socket, PollFlags::POLLIN, begun)?;
        let mut buffer = [0; 1500];
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        // IPv4's header comes with it, its length in words in the low half of the first byte.
        let start = match Family::of(address) {
            Family::V4 => usize::from(bytes.first().copied().unwrap_or(0) & 0xf) * 4,
            Family::V6 => 0,
        };
        let message = bytes.get(start..).unwrap_or_default();
        if message.first() == Some(&reply) && message.get(4..6) == Some(&[high, low]) {
            return Ok(begun.elapsed());
        }
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let high = u32::from(pair.first().copied().unwrap_or(0));
        let low = u32::from(pair.get(1).copied().unwrap_or(0));
        sum += high << 8 | low;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Opens a TCP session with this mark, and closes it at once; how long it took.
///
/// # Errors
/// If it is refused, or not answered within [`PATIENCE`].
pub fn session(to: SocketAddr, mark: Mark) -> io::Result<Duration> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family(to.ip()), SockType::Stream, flags, SockProtocol::Tcp)?;
    setsockopt(&socket, sockopt::Mark, &mark.value)?;
    let begun = Instant::now();
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => return Ok(begun.elapsed()),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    wait(&socket, PollFlags::POLLOUT, begun)?;
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => Ok(begun.elapsed()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn wait(socket: &OwnedFd, what: PollFlags, begun: Instant) -> io::Result<()> {
    use std::os::fd::AsFd;
    let left = PATIENCE
        .checked_sub(begun.elapsed())
        .filter(|left| !left.is_zero())
        .ok_or(io::ErrorKind::TimedOut)?;
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(socket.as_fd(), what)], timeout)?;
    if ready == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
    }
}
