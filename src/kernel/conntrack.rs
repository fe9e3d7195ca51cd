//! Connections that the kernel knows, counted.
//!
//! Read-only: a deletion without attributes would flush all connections of the
//! router, and nothing here needs one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::KernelError;
use super::netlink::{Attribute, Malformed, Netlink, NetlinkError, Payload, Protocol, attributes};
use crate::net::Mark;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`, and what comes back, `IPCTNL_MSG_CT_NEW`
/// (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
const GET: u16 = 1 << 8 | 1;
const NEW: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET_STATS`, and `CTA_STATS_GLOBAL_ENTRIES` of its answer.
const GET_STATISTICS: u16 = 1 << 8 | 5;
const ENTRIES: u16 = 1;
/// `CTA_*` of the same file.
const TUPLE_ORIGINAL: u16 = 1;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
const PROTOCOL_DESTINATION_PORT: u16 = 3;
const PROTOCOL_INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `TCP_CONNTRACK_ESTABLISHED` (`nf_conntrack_tcp.h`).
const ESTABLISHED: u8 = 3;
/// `IPS_SEEN_REPLY` (`nf_conntrack_common.h`).
const SEEN_REPLY: u32 = 2;

/// A connection, as its opener made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub source: IpAddr,
    /// Whom it was opened to, before any address translation.
    pub destination: IpAddr,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// 0 where the protocol has none.
    pub source_port: u16,
    /// 0 where the protocol has none.
    pub destination_port: u16,
    /// Its mark.
    pub mark: u32,
    /// `IPS_*`.
    pub status: u32,
    /// `TCP_CONNTRACK_*`, of TCP.
    pub tcp_state: Option<u8>,
}

impl Connection {
    /// Whether it is TCP, has been answered, and has not begun to close.
    #[must_use]
    pub fn is_established_tcp(&self) -> bool {
        self.protocol == TCP && self.tcp_state == Some(ESTABLISHED) && self.status & SEEN_REPLY != 0
    }

    /// Who opened it and whom it was opened to, with their ports.
    #[must_use]
    pub fn ends(&self) -> [(IpAddr, u16); 2] {
        [
            (self.source, self.source_port),
            (self.destination, self.destination_port),
        ]
    }
}

/// The way to the kernel's list of connections.
#[derive(Debug)]
pub struct Conntrack {
    socket: Netlink,
}

impl Conntrack {
    /// Opens the way.
    ///
    /// # Errors
    /// If the kernel has no netfilter netlink at all.
    pub fn open() -> Result<Self, KernelError> {
        let socket = Netlink::open(Protocol::Netfilter)
            .map_err(|error| error.during("cannot reach the kernel's connection tracking"))?;
        Ok(Self { socket })
    }

    /// Counts the connections that `are` so. With a mark, only those that bear it; then
    /// the kernel does not even send the others.
    ///
    /// # Errors
    /// If the kernel does not say. Where connection tracking is not loaded there are
    /// none, and this is no error.
    pub fn count(
        &mut self,
        mark: Option<Mark>,
        mut are: impl FnMut(&Connection) -> bool,
    ) -> Result<usize, KernelError> {
        // The list is that of all network namespaces, and walking its empty buckets takes
        // longer than all the rest of a small change (`ctnetlink_dump_table`).
        if self.is_empty() {
            return Ok(0);
        }
        let mut request = Payload::new(&[0; 4]);
        if let Some(mark) = mark {
            request.push(MARK, &mark.value.to_be_bytes());
            request.push(MARK_MASK, &mark.mask.to_be_bytes());
        }
        let counted = self.socket.dump(GET, &request, |answer| {
            if answer.kind != NEW {
                return Ok(None);
            }
            let Some(connection) = connection(answer.payload)? else {
                return Ok(None);
            };
            // Old kernels ignore the filter.
            let bears = mark.is_none_or(|mark| mark.is_borne_by(connection.mark));
            Ok((bears && are(&connection)).then_some(()))
        });
        match counted {
            Ok(counted) => Ok(counted.len()),
            Err(error) if is_absent(&error) => Ok(0),
            Err(error) => Err(error.during("cannot count connections")),
        }
    }

    /// Whether the kernel says that this network namespace has no connection at all.
    fn is_empty(&mut self) -> bool {
        let asked = self
            .socket
            .ask(GET_STATISTICS, 0, &Payload::new(&[0; 4]), |answer| {
                let rest = answer.payload.get(4..).ok_or(Malformed("statistics"))?;
                for attribute in attributes(rest) {
                    let attribute = attribute?;
                    if attribute.kind == ENTRIES {
                        return attribute.be32().map(Some);
                    }
                }
                Ok(None)
            });
        // Where it does not say, the list itself is asked.
        asked.is_ok_and(|entries| entries == [0])
    }
}

/// Without `nf_conntrack_netlink`, nfnetlink answers so.
fn is_absent(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP))
}

/// Reads a connection; `None` if it has no addresses, as no IP connection has.
fn connection(payload: &[u8]) -> Result<Option<Connection>, Malformed> {
    let rest = payload.get(4..).ok_or(Malformed("connection"))?;
    let (mut tuple, mut mark, mut status, mut tcp_state) = (None, 0, 0, None);
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            TUPLE_ORIGINAL => tuple = Some(read_tuple(attribute)?),
            STATUS => status = attribute.be32()?,
            MARK => mark = attribute.be32()?,
            PROTOCOL_INFO => tcp_state = read_tcp_state(attribute)?,
            _ => {}
        }
    }
    let Some(Tuple {
        source: Some(source),
        destination: Some(destination),
        protocol,
        ports: (source_port, destination_port),
    }) = tuple
    else {
        return Ok(None);
    };
    Ok(Some(Connection {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        mark,
        status,
        tcp_state,
    }))
}

#[derive(Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    ports: (u16, u16),
}

fn read_tuple(attribute: Attribute<'_>) -> Result<Tuple, Malformed> {
    let v4 = |inner: Attribute<'_>| Ok(Some(IpAddr::V4(Ipv4Addr::from(inner.array::<4>()?))));
    let v6 = |inner: Attribute<'_>| Ok(Some(IpAddr::V6(Ipv6Addr::from(inner.array::<16>()?))));
    let number = |inner: Attribute<'_>| inner.array().map(u16::from_be_bytes);
    let mut tuple = Tuple::default();
    for part in attribute.nested() {
        let part = part?;
        for inner in part.nested() {
            let inner = inner?;
            match (part.kind, inner.kind) {
                (TUPLE_IP, IP_V4_SOURCE) => tuple.source = v4(inner)?,
                (TUPLE_IP, IP_V4_DESTINATION) => tuple.destination = v4(inner)?,
                (TUPLE_IP, IP_V6_SOURCE) => tuple.source = v6(inner)?,
                (TUPLE_IP, IP_V6_DESTINATION) => tuple.destination = v6(inner)?,
                (TUPLE_PROTOCOL, PROTOCOL_NUMBER) => tuple.protocol = inner.u8()?,
                (TUPLE_PROTOCOL, PROTOCOL_SOURCE_PORT) => tuple.ports.0 = number(inner)?,
                (TUPLE_PROTOCOL, PROTOCOL_DESTINATION_PORT) => tuple.ports.1 = number(inner)?,
                _ => {}
            }
        }
    }
    Ok(tuple)
}

fn read_tcp_state(attribute: Attribute<'_>) -> Result<Option<u8>, Malformed> {
    for part in attribute.nested() {
        let part = part?;
        if part.kind != PROTOCOL_INFO_TCP {
            continue;
        }
        for inner in part.nested() {
            let inner = inner?;
            if inner.kind == TCP_STATE {
                return inner.u8().map(Some);
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::kernel::nftables::Nftables;
    use crate::nft::{Base, Chain, CtKey, Expression, Rule, Table};
    use crate::test_support::own_network;

    /// Marks every connection that comes in: `ct mark set ct mark and 0xffffff00 or 0x5`.
    fn marking() -> Table {
        let bytes = |number: u32| number.to_ne_bytes().to_vec();
        Table {
            chains: vec![Chain {
                name: "prerouting".to_owned(),
                base: Some(Base {
                    kind: "filter".to_owned(),
                    hook: 0,
                    priority: -140,
                    policy: 1,
                }),
                rules: vec![Rule {
                    expressions: vec![
                        Expression::CtLoad(CtKey::Mark),
                        Expression::Bitwise {
                            mask: bytes(0xffff_ff00),
                            xor: bytes(5),
                        },
                        Expression::CtSet(CtKey::Mark),
                    ],
                    comment: None,
                }],
            }],
            ..Table::default()
        }
    }

    #[test]
    fn established_connections_are_counted_by_mark_and_by_address() {
        if !own_network("conntrack") {
            return;
        }
        Nftables::open()
            .unwrap()
            .commit(None, Some(&marking()))
            .unwrap();
        let mut kernel = Conntrack::open().unwrap();
        assert_eq!(kernel.count(None, |_| true).unwrap(), 0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ends: Vec<_> = (0..3)
            .map(|_| {
                let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                (client, listener.accept().unwrap())
            })
            .collect();
        let ours = Mark::new(5, 0xff).unwrap();
        let others = Mark::new(6, 0xff).unwrap();
        let mut seen = Vec::new();
        let established = kernel.count(Some(ours), |connection| {
            seen.push(*connection);
            connection.is_established_tcp()
        });
        assert_eq!(established.unwrap(), 3, "{seen:?}");
        assert_eq!(kernel.count(Some(others), |_| true).unwrap(), 0);
        let to_port = |connection: &Connection| {
            connection.destination == IpAddr::V4(Ipv4Addr::LOCALHOST)
                && connection.destination_port == port
                && connection.mark == 5
        };
        assert_eq!(kernel.count(None, to_port).unwrap(), 3);
        let one = ends[0].0.local_addr().unwrap().port();
        let from_port = |connection: &Connection| connection.source_port == one;
        assert_eq!(kernel.count(None, from_port).unwrap(), 1);
        drop(ends);
        let established = kernel.count(Some(ours), Connection::is_established_tcp);
        assert_eq!(
            established.unwrap(),
            0,
            "closed ones are established no more"
        );
    }

    #[test]
    fn no_bytes_cause_a_panic() {
        let mut tuple = Payload::default();
        tuple.push(
            TUPLE_IP,
            Payload::default()
                .with(IP_V4_SOURCE, &[1, 2, 3, 4])
                .as_bytes(),
        );
        let bytes = Payload::new(&[2, 0, 0, 0])
            .with(TUPLE_ORIGINAL, tuple.as_bytes())
            .with(MARK, &[0, 0, 0, 1])
            .as_bytes()
            .to_vec();
        for length in 0..bytes.len() {
            let _ = connection(&bytes[..length]);
        }
        for at in 0..bytes.len() {
            for byte in 0..=255 {
                let mut changed = bytes.clone();
                changed[at] = byte;
                let _ = connection(&changed);
            }
        }
    }
}
