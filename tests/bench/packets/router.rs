//! A router in a network namespace, and what is sent through it.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, sendmmsg, sendto, socket,
};
use redirect::kernel::process;

use super::frames::{ACK, End, SYN, frame};
use crate::Trouble;

/// Three links: where clients come in, where the servers are, where the appliance is. The far
/// end of each is `p0` and so on, and throws away what does not bear its own address.
const LINKS: [(&str, &str); 3] = [
    ("cli0", "10.10.0.1/16"),
    ("srv0", "10.99.0.1/24"),
    ("sps0", "10.30.0.1/24"),
];
/// Sessions that take turns.
const SESSIONS: u16 = 64;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packets that one system call sends.
const BATCH: usize = 32;

/// Whose packets they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// Of a bystander, to a port that no redirect names.
    OtherPort,
    /// Of a bystander, to a port of a redirect at a server of none.
    OtherServer,
    /// Of a redirected session.
    Redirected,
}

impl Traffic {
    pub const ALL: [Self; 3] = [Self::OtherPort, Self::OtherServer, Self::Redirected];

    fn server(self) -> End {
        match self {
            Self::OtherPort => (Ipv4Addr::new(10, 20, 0, 5), 443),
            Self::OtherServer => (Ipv4Addr::new(10, 21, 0, 5), super::rules::PORT),
            Self::Redirected => (Ipv4Addr::new(10, 20, 0, 5), super::rules::PORT),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherPort => "bystander, other port",
            Self::OtherServer => "bystander, same port",
            Self::Redirected => "redirected",
        })
    }
}

/// A router of its own.
pub struct Router {
    namespace: fs::File,
    socket: OwnedFd,
    /// By link: its far end, and its own station address.
    ends: Vec<(LinkAddr, [u8; 6])>,
}

impl Router {
    /// Makes one and goes there.
    pub fn new() -> Result<Self, Trouble> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        if fs::metadata("/proc/sys/net/ipv6").is_ok() {
            // Links that look for neighbours of themselves send what we do not count.
            for name in ["all", "default"] {
                write(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
            }
        }
        let mut batch = String::new();
        for (at, (link, address)) in LINKS.iter().enumerate() {
            write!(
                batch,
                "link add {link} type veth peer name p{at}\naddress add {address} dev {link}\n\
                 link set {link} up\nlink set p{at} up\n"
            )?;
        }
        batch.push_str(
            "route add 10.20.0.0/15 via 10.99.0.2 dev srv0\n\
             neighbour add 10.99.0.2 lladdr 02:00:00:00:00:99 dev srv0 nud permanent\n\
             neighbour add 10.30.0.2 lladdr 02:00:00:00:00:99 dev sps0 nud permanent\n\
             neighbour add 10.10.0.9 lladdr 02:00:00:00:00:99 dev cli0 nud permanent\n\
             route add default via 10.30.0.2 dev sps0 table 103 proto 103\n\
             rule add priority 103 fwmark 0x1/0xff lookup 103\n",
        );
        run("ip", &["-batch", "-"], &batch)?;
        write("ipv4/ip_forward", "1")?;
        for name in LINKS.map(|(link, _)| link).into_iter().chain(["all"]) {
            write(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
        }
        let links: Vec<_> = getifaddrs()?
            .filter_map(|found| {
                let link = found.address?.as_link_addr().copied()?;
                Some((found.interface_name, link))
            })
            .collect();
        let link = |name: &str| {
            let found = links.iter().find(|(found, _)| found == name);
            found
                .map(|(_, link)| *link)
                .ok_or_else(|| format!("no link `{name}`"))
        };
        let mut ends = Vec::new();
        for (at, (name, _)) in LINKS.iter().enumerate() {
            let station = link(name)?.addr().ok_or("no station address")?;
            ends.push((link(&format!("p{at}"))?, station));
        }
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        Ok(Self {
            namespace: fs::File::open("/proc/thread-self/ns/net")?,
            socket,
            ends,
        })
    }

    fn end(&self, link: usize) -> Result<&(LinkAddr, [u8; 6]), Trouble> {
        self.ends.get(link).ok_or_else(|| "no such link".into())
    }

    fn send(&self, link: usize, from: End, to: End, flags: u8) -> Result<(), Trouble> {
        let (end, station) = self.end(link)?;
        let frame = frame(*station, from, to, flags);
        sendto(self.socket.as_raw_fd(), &frame, end, MsgFlags::empty())?;
        Ok(())
    }

    /// Makes the sessions stand whose packets are forwarded.
    pub fn open_sessions(&mut self) -> Result<(), Trouble> {
        if fs::metadata("/proc/sys/net/netfilter").is_ok() {
            // As where a network card has looked at checksums.
            write("netfilter/nf_conntrack_checksum", "0")?;
        }
        for traffic in Traffic::ALL {
            let server = traffic.server();
            for session in 0..SESSIONS {
                let client = client(session);
                self.send(0, client, server, SYN)?;
                let way_back = if traffic == Traffic::Redirected { 2 } else { 1 };
                self.send(way_back, server, client, SYN | ACK)?;
                self.send(0, client, server, ACK)?;
            }
        }
        Ok(())
    }

    /// Packets a second: of all turns of the sessions, the median one, so that what else runs on
    /// this machine does not count. None if they did not come out at once.
    pub fn forward(&mut self, traffic: Traffic, time: Duration) -> Result<Option<f64>, Trouble> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
        let (end, station) = *self.end(0)?;
        let frames: Vec<_> = (0..SESSIONS)
            .map(|session| frame(station, client(session), traffic.server(), ACK))
            .collect();
        let slices: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut headers = MultiHeaders::preallocate(BATCH, None);
        let ends = [Some(end); BATCH];
        let mut times = Vec::new();
        let before = sent()?;
        let begun = Instant::now();
        while begun.elapsed() < time {
            let begun = Instant::now();
            for batch in slices.chunks(BATCH) {
                sendmmsg(
                    self.socket.as_raw_fd(),
                    &mut headers,
                    batch,
                    ends,
                    [],
                    MsgFlags::empty(),
                )?;
            }
            times.push(begun.elapsed());
        }
        let after = sent()?;
        let by = |link: usize| {
            let of = |counts: &[u64]| counts.get(link).copied().unwrap_or(0);
            of(&after) - of(&before)
        };
        let (straight, towards) = (by(1), by(2));
        if straight > 0 && towards > 0 {
            return Err(format!("{traffic}: {straight} one way and {towards} the other").into());
        }
        let all = u64::try_from(times.len() * slices.len())?;
        if straight.max(towards) * 100 < all * 95 {
            // They were put off, or thrown away: their cost is not in these times.
            return Ok(None);
        }
        times.sort();
        let middle = times.get(times.len() / 2).ok_or("no time to measure")?;
        Ok(Some(f64::from(SESSIONS) / middle.as_secs_f64()))
    }

    /// Whether redirected packets go to the appliance, and others do not.
    pub fn redirects(&mut self) -> Result<bool, Trouble> {
        let mut ways = Vec::new();
        for traffic in Traffic::ALL {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            let before = sent()?;
            self.send(0, client(0), traffic.server(), ACK)?;
            let begun = Instant::now();
            let link = loop {
                let after = sent()?;
                let link = (1..LINKS.len()).find(|link| after.get(*link) > before.get(*link));
                if link.is_some() || begun.elapsed() > PATIENCE {
                    break link;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            ways.push(link.ok_or_else(|| format!("{traffic}: nothing comes out"))?);
        }
        match *ways.as_slice() {
            [1, 1, 2] => Ok(true),
            [1, 1, 1] => Ok(false),
            _ => Err(format!("packets go astray: {ways:?}").into()),
        }
    }
}

fn client(session: u16) -> End {
    (Ipv4Addr::new(10, 10, 0, 9), 40_000 + session)
}

/// Packets that each link has sent.
fn sent() -> Result<Vec<u64>, Trouble> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let of = |name: &str| -> Option<u64> {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().nth(9)?.parse().ok()
    };
    let counts: Option<Vec<u64>> = LINKS.iter().map(|(name, _)| of(name)).collect();
    counts.ok_or_else(|| "/proc/net/dev lacks a link".into())
}

fn write(setting: &str, value: &str) -> Result<(), Trouble> {
    let path = format!("/proc/sys/net/{setting}");
    #[expect(clippy::disallowed_methods, reason = "a benchmark's own namespace")]
    fs::write(&path, value).map_err(|error| format!("{path}: {error}").into())
}

/// Runs a program; its failure is ours.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), Trouble> {
    let output = process::run(program, arguments, input.as_bytes(), PATIENCE)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program} {}: {}", arguments.join(" "), output.complaint()).into())
    }
}
