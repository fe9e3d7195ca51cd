//! Ethernet frames with a TCP segment and nothing in it.

use std::net::Ipv4Addr;

/// TCP's flags (RFC 9293, 3.1).
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// One end of a session.
pub type End = (Ipv4Addr, u16);

/// A segment from one end to the other, for the station `to`.
pub fn frame(to: [u8; 6], source: End, destination: End, flags: u8) -> Vec<u8> {
    // Whoever opened the session counts from 1000, the other from 5000.
    let (sequence, acknowledged): (u32, u32) = match flags {
        SYN => (1000, 0),
        ACK => (1001, 5001),
        _ => (5000, 1001),
    };
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(source.1.to_be_bytes());
    tcp.extend(destination.1.to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = Vec::with_capacity(32);
    pseudo.extend(source.0.octets());
    pseudo.extend(destination.0.octets());
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&tcp);
    put(&mut tcp, 16, sum(&pseudo));
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(source.0.octets());
    ip.extend(destination.0.octets());
    let checksum = sum(&ip);
    put(&mut ip, 10, checksum);
    let from = [2, 0, 0, 0, 0, 0xfe];
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(tcp);
    // The shortest that Ethernet has.
    frame.resize(60, 0);
    frame
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    for (byte, value) in bytes.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *byte = value;
    }
}

/// The Internet checksum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        if let [high, low] = *pair {
            sum += u32::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
