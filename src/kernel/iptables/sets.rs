//! Sets: read and made over netlink, in a tenth of the time that `ipset` takes for many networks,
//! which asks for the time zone with every line. Where the kernel refuses, or a set is
//! not as ours are, the command does it: the kernel's refusals are numbers of its own, for
//! which only the command has words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{PATIENCE, refused, text};
use crate::iptables::{Set, is_ours, parse, write};
use crate::kernel::netlink::{
    Attribute, Malformed, Message, Netlink, NetlinkError, Payload, Protocol, attributes,
};
use crate::kernel::{FailureKind, KernelError, process};
use crate::net::Family;
use crate::observation::Availability;

/// How long a set may still be in use after the rules that looked into it are gone.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at whether it still is.
const PAUSE: Duration = Duration::from_millis(4);
/// Networks that go in one message, of which an attribute takes 64 KiB.
const AT_ONCE: usize = 1_500;

/// What both sides say (`include/uapi/linux/netfilter/ipset/ip_set.h`).
mod abi {
    /// `IPSET_PROTOCOL_MIN`, which all kernels take.
    pub const PROTOCOL: u8 = 6;
    /// The highest revision of `hash:net` of which all is known here: the one with `bucketsize`.
    pub const REVISION: u8 = 7;
    pub const HASH_NET: &[u8] = b"hash:net\0";

    pub mod message {
        /// `NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_…`.
        const fn kind(number: u16) -> u16 {
            6 << 8 | number
        }
        pub const CREATE: u16 = kind(2);
        pub const DESTROY: u16 = kind(3);
        pub const LIST: u16 = kind(7);
        pub const ADD: u16 = kind(9);
        pub const TYPE: u16 = kind(13);
    }

    /// `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`.
    pub const NESTED: u16 = 0x8000;
    pub const BIG_ENDIAN: u16 = 0x4000;
    /// `NLM_F_EXCL`, `NLM_F_CREATE`: what is there already is an error.
    pub const NEW: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    /// `IPSET_FLAG_LIST_SETNAME`: nothing but names.
    pub const NAMES_ONLY: u32 = 2;

    /// `IPSET_ATTR_*` of a message.
    pub const VERSION: u16 = 1;
    pub const NAME: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const TYPE_REVISION: u16 = 4;
    pub const FAMILY: u16 = 5;
    pub const FLAGS: u16 = 6;
    pub const DATA: u16 = 7;
    pub const ELEMENTS: u16 = 8;
    pub const LINE: u16 = 9;
    /// Of its data.
    pub const ADDRESS: u16 = 1;
    pub const PREFIX_LENGTH: u16 = 3;
    pub const SEED: u16 = 17;
    pub const HASH_SIZE: u16 = 18;
    pub const MOST: u16 = 19;
    pub const BUCKET_SIZE: u16 = 21;
    pub const COUNT: u16 = 24;
    pub const REFERENCES: u16 = 25;
    pub const MEMORY: u16 = 26;
    /// Of an address.
    pub const V4: u16 = 1;
    pub const V6: u16 = 2;
}

/// Whether sets can be used, and ours.
pub(super) fn observe() -> Result<(Availability, Vec<Set>), KernelError> {
    if process::find("ipset").is_none() {
        let why = "there is no `ipset` command".to_owned();
        return Ok((Availability::Missing(why), Vec::new()));
    }
    let mut socket = Netlink::open(Protocol::Netfilter).ok();
    let names = if let Some(Ok(names)) = socket.as_mut().map(names) {
        names
    } else {
        let output = process::run("ipset", &["list", "-n"], b"", PATIENCE)?;
        if !output.status.success() {
            let error = refused("cannot list sets".to_owned(), &output);
            let availability = match error.kind {
                FailureKind::NotPermitted => Availability::Unknown(error.reason),
                _ => Availability::Missing(error.reason),
            };
            return Ok((availability, Vec::new()));
        }
        let names = text(&output.stdout);
        names.lines().map(|name| name.trim().to_owned()).collect()
    };
    let mut sets = Vec::new();
    for name in names.iter().filter(|name| is_ours(name)) {
        match socket.as_mut().map(|socket| read(socket, name)) {
            Some(Ok(Some(set))) => sets.push(set),
            _ => sets.extend(saved(name)?),
        }
    }
    Ok((Availability::Available, sets))
}

/// The set as `ipset save` words it, whatever is in it.
fn saved(name: &str) -> Result<Vec<Set>, KernelError> {
    let action = format!("cannot read set `{name}`");
    let output = process::run("ipset", &["save", name], b"", PATIENCE)?;
    if !output.status.success() {
        return Err(refused(action, &output));
    }
    parse::sets(&text(&output.stdout))
        .map_err(|error| KernelError::because(action, error.to_string()))
}

/// A request about the set `name`, or about all.
fn request(name: Option<&str>) -> Payload {
    // `AF_INET`: of no meaning here.
    let payload = Payload::new(&[2, 0, 0, 0]).with(abi::VERSION, &[abi::PROTOCOL]);
    match name {
        Some(name) => payload.with_name(abi::NAME, name),
        None => payload,
    }
}

fn names(socket: &mut Netlink) -> Result<Vec<String>, NetlinkError> {
    let flags = abi::FLAGS | abi::BIG_ENDIAN;
    let names = request(None).with(flags, &abi::NAMES_ONLY.to_be_bytes());
    socket.dump(abi::message::LIST, &names, |message| {
        for attribute in body(message)? {
            let attribute = attribute?;
            if attribute.kind == abi::NAME {
                return Ok(Some(attribute.text()));
            }
        }
        Ok(None)
    })
}

fn body(
    message: Message<'_>,
) -> Result<impl Iterator<Item = Result<Attribute<'_>, Malformed>>, Malformed> {
    let rest = message.payload.get(4..);
    Ok(attributes(rest.ok_or(Malformed("set: no header"))?))
}

/// Reads a set; none if it is not as ours are.
fn read(socket: &mut Netlink, name: &str) -> Result<Option<Set>, NetlinkError> {
    let parts = socket.dump(abi::message::LIST, &request(Some(name)), |message| {
        part(message).map(Some)
    })?;
    let Some(family) = parts.iter().find_map(|part| part.family) else {
        return Ok(None);
    };
    if parts.iter().any(|part| part.is_strange) {
        return Ok(None);
    }
    let mut networks: Vec<IpNet> = parts.into_iter().flat_map(|part| part.networks).collect();
    networks.sort_unstable();
    Ok(Some(Set {
        name: name.to_owned(),
        family,
        networks,
        foreign_kind: None,
        others: Vec::new(),
    }))
}

/// What one message says of a set.
#[derive(Debug, Default, PartialEq)]
struct Part {
    /// Only the first has it.
    family: Option<Family>,
    networks: Vec<IpNet>,
    /// Whether there is anything that sets of ours have not.
    is_strange: bool,
}

fn part(message: Message<'_>) -> Result<Part, Malformed> {
    let mut part = Part::default();
    for attribute in body(message)? {
        let attribute = attribute?;
        match attribute.kind {
            abi::VERSION | abi::NAME | abi::TYPE_REVISION => {}
            abi::TYPE => part.is_strange |= attribute.value != abi::HASH_NET,
            abi::FAMILY => {
                let families = Family::ALL.into_iter();
                let mut named =
                    families.filter(|family| Ok(super::number(*family)) == attribute.u8());
                part.family = named.next();
            }
            abi::DATA => {
                for option in attribute.nested() {
                    // How the kernel stores it; these do not change what is in it.
                    part.is_strange |= !matches!(
                        option?.kind,
                        abi::SEED
                            | abi::HASH_SIZE
                            | abi::MOST
                            | abi::BUCKET_SIZE
                            | abi::COUNT
                            | abi::REFERENCES
                            | abi::MEMORY
                    );
                }
            }
            abi::ELEMENTS => {
                for element in attribute.nested() {
                    match network(element?)? {
                        Some(network) => part.networks.push(network),
                        None => part.is_strange = true,
                    }
                }
            }
            _ => part.is_strange = true,
        }
    }
    Ok(part)
}

/// An element, if it is nothing but a network.
fn network(element: Attribute<'_>) -> Result<Option<IpNet>, Malformed> {
    let (mut address, mut length) = (None, None);
    for attribute in element.nested() {
        let attribute = attribute?;
        match attribute.kind {
            abi::ADDRESS => {
                for form in attribute.nested() {
                    let form = form?;
                    address = Some(match form.kind {
                        abi::V4 => IpAddr::from(Ipv4Addr::from(form.array::<4>()?)),
                        abi::V6 => IpAddr::from(Ipv6Addr::from(form.array::<16>()?)),
                        _ => return Ok(None),
                    });
                }
            }
            abi::PREFIX_LENGTH => length = Some(attribute.u8()?),
            _ => return Ok(None),
        }
    }
    let found = address.zip(length);
    Ok(found.and_then(|(address, length)| IpNet::new(address, length).ok()))
}

/// Makes one set of another.
pub(super) fn change(from: Option<&Set>, to: Option<&Set>) -> Result<(), KernelError> {
    match (from, to) {
        (None, Some(set)) => create(set, &set.name),
        (Some(_), Some(set)) => {
            let spare = write::spare_name(&set.name);
            create(set, &spare)?;
            let swapped = command(&["swap", &spare, &set.name], b"");
            // Whatever came of it: the spare now holds what nobody needs.
            command(&["destroy", &spare], b"").and(swapped)
        }
        (Some(set), None) => destroy(&set.name),
        (None, None) => Ok(()),
    }
}

/// Removes a set that may be there.
pub(super) fn remove(name: &str) -> Result<(), KernelError> {
    match command(&["destroy", name], b"") {
        Err(error) if error.reason.contains("does not exist") => Ok(()),
        other => other,
    }
}

/// Makes `set` under this name.
pub(super) fn create(set: &Set, name: &str) -> Result<(), KernelError> {
    let is_plain = set.foreign_kind.is_none() && set.others.is_empty();
    if is_plain && make(set, name).is_ok() {
        return Ok(());
    }
    let input = write::set_input(set, name);
    command(&["restore"], input.as_bytes()).inspect_err(|_| {
        // Half of a set is no set. One that somebody else made has others in it, or is in
        // use; then this fails too, and changes nothing.
        let _ = command(&["destroy", name], b"");
    })
}

/// The same over netlink; nothing stays of what fails.
fn make(set: &Set, name: &str) -> Result<(), NetlinkError> {
    let mut socket = Netlink::open(Protocol::Netfilter)?;
    let family = super::number(set.family);
    let of_type = |payload: Payload| payload.with(abi::TYPE, abi::HASH_NET);
    let question = of_type(request(None)).with(abi::FAMILY, &[family]);
    let newest = socket.ask(abi::message::TYPE, 0, &question, |message| {
        for attribute in body(message)? {
            let attribute = attribute?;
            if attribute.kind == abi::TYPE_REVISION {
                return attribute.u8().map(Some);
            }
        }
        Ok(None)
    })?;
    let revision = newest.first().copied().unwrap_or(0).min(abi::REVISION);
    let mut options = Payload::default();
    for (option, number) in [
        (abi::HASH_SIZE, write::hash_size(set)),
        (abi::MOST, write::most_elements(set)),
    ] {
        if let Some(number) = number.and_then(|number| u32::try_from(number).ok()) {
            options.push(option | abi::BIG_ENDIAN, &number.to_be_bytes());
        }
    }
    let create = of_type(request(Some(name)))
        .with(abi::TYPE_REVISION, &[revision])
        .with(abi::FAMILY, &[family])
        .with(abi::DATA | abi::NESTED, options.as_bytes());
    socket.change(abi::message::CREATE, abi::NEW | abi::CREATE, &create)?;
    let filled = set.networks.chunks(AT_ONCE).try_for_each(|networks| {
        let mut elements = Payload::default();
        for network in networks {
            elements.push(abi::DATA | abi::NESTED, element(network).as_bytes());
        }
        let add = request(Some(name))
            // Wanted with elements (`ip_set_ad`), for errors to name.
            .with(abi::LINE | abi::BIG_ENDIAN, &1_u32.to_be_bytes())
            .with(abi::ELEMENTS | abi::NESTED, elements.as_bytes());
        socket.change(abi::message::ADD, abi::NEW, &add)
    });
    filled.inspect_err(|_| {
        let _ = socket.change(abi::message::DESTROY, 0, &request(Some(name)));
    })
}

fn element(network: &IpNet) -> Payload {
    let mut address = Payload::default();
    match network.network() {
        IpAddr::V4(v4) => address.push(abi::V4 | abi::BIG_ENDIAN, &v4.octets()),
        IpAddr::V6(v6) => address.push(abi::V6 | abi::BIG_ENDIAN, &v6.octets()),
    }
    Payload::default()
        .with(abi::ADDRESS | abi::NESTED, address.as_bytes())
        .with(abi::PREFIX_LENGTH, &[network.prefix_len()])
}

/// A rule that looked into the set may be gone for a while before its reference is: the
/// kernel frees nft's rules later (`nf_tables_trans_destroy_work`).
fn destroy(name: &str) -> Result<(), KernelError> {
    if let Ok(mut socket) = Netlink::open(Protocol::Netfilter) {
        let begun = Instant::now();
        while begun.elapsed() < GRACE {
            let request = request(Some(name));
            match socket.change(abi::message::DESTROY, 0, &request) {
                Ok(()) => return Ok(()),
                // `IPSET_ERR_BUSY` is no errno.
                Err(error) if error.errno() == Some(Errno::UnknownErrno) => thread::sleep(PAUSE),
                Err(_) => break,
            }
        }
    }
    command(&["destroy", name], b"")
}

fn command(arguments: &[&str], input: &[u8]) -> Result<(), KernelError> {
    let output = process::run("ipset", arguments, input, PATIENCE)?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(
        format!("cannot run `ipset {}`", arguments.join(" ")),
        &output,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::own_network;

    fn set(name: &str, family: Family, networks: impl Iterator<Item = String>) -> Set {
        let mut networks: Vec<IpNet> = networks.map(|text| text.parse().unwrap()).collect();
        networks.sort();
        Set {
            name: format!("scb-redirect-{name}"),
            family,
            networks,
            foreign_kind: None,
            others: Vec::new(),
        }
    }

    /// Without the seed, which is random.
    fn listed(name: &str) -> Vec<String> {
        let output = process::run("ipset", &["save", name], b"", PATIENCE).unwrap();
        assert!(output.status.success(), "{}", output.complaint());
        let text = text(&output.stdout);
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| line.split(" initval").next().unwrap().replace(name, "NAME"))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn netlink_and_the_command_make_and_read_the_same() {
        if !own_network("sets over netlink") {
            return;
        }
        for set in [
            set(
                "few",
                Family::V4,
                ["10.0.0.0/8", "10.1.2.3/32"].map(str::to_owned).into_iter(),
            ),
            set(
                "six",
                Family::V6,
                ["fd00::/64", "fd00:1::1/128"]
                    .map(str::to_owned)
                    .into_iter(),
            ),
            set(
                "many",
                Family::V4,
                (0..70_000_u32).map(|at| format!("{}/30", Ipv4Addr::from(at << 8))),
            ),
            set("none", Family::V6, std::iter::empty()),
        ] {
            make(&set, &set.name).unwrap();
            let by_command = write::spare_name(&set.name);
            command(&["restore"], write::set_input(&set, &by_command).as_bytes()).unwrap();
            assert_eq!(listed(&set.name), listed(&by_command));
            let mut socket = Netlink::open(Protocol::Netfilter).unwrap();
            assert_eq!(read(&mut socket, &set.name).unwrap().as_ref(), Some(&set));
            assert_eq!(saved(&set.name).unwrap(), std::slice::from_ref(&set));
            assert!(make(&set, &set.name).is_err(), "it is there");
            assert!(!listed(&set.name).is_empty(), "and stays");
            destroy(&set.name).unwrap();
            destroy(&by_command).unwrap();
            assert_eq!(names(&mut socket).unwrap(), [""; 0]);
        }
    }

    #[test]
    fn what_ours_never_have_is_left_to_the_command() {
        if !own_network("strange sets") {
            return;
        }
        let name = "scb-redirect-x";
        let mut socket = Netlink::open(Protocol::Netfilter).unwrap();
        for strange in [
            "create N hash:ip\nadd N 10.0.0.1\n",
            "create N hash:net timeout 60\n",
            "create N hash:net counters\n",
            "create N hash:net\nadd N 10.0.0.0/8 nomatch\n",
            "create N bitmap:port range 1-9\n",
            "create N list:set\n",
        ] {
            let input = strange.replace('N', name);
            command(&["restore"], input.as_bytes()).unwrap();
            assert_eq!(read(&mut socket, name).unwrap(), None, "{strange}");
            let (_, sets) = observe().unwrap();
            assert_eq!(sets, saved(name).unwrap(), "{strange}");
            destroy(name).unwrap();
        }
    }

    #[test]
    fn half_a_set_does_not_stay() {
        if !own_network("half a set") {
            return;
        }
        let mut twice = set("x", Family::V4, ["10.0.0.0/8".to_owned()].into_iter());
        twice.networks.extend(twice.networks.clone());
        assert!(make(&twice, &twice.name).is_err());
        let mut socket = Netlink::open(Protocol::Netfilter).unwrap();
        assert_eq!(names(&mut socket).unwrap(), [""; 0]);
        let error = create(&twice, &twice.name).unwrap_err();
        assert!(error.reason.contains("already added"), "{error}");
        assert_eq!(names(&mut socket).unwrap(), [""; 0]);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for length in 0..40 {
            for fill in [0, 1, 4, 7, 8, 0x80, 0xff] {
                let payload = vec![fill; length];
                let _ = part(Message {
                    kind: abi::message::LIST,
                    flags: 0,
                    sequence: 1,
                    payload: &payload,
                });
            }
        }
    }
}
