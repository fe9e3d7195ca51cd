//! rtnetlink messages to and from our types: pure.
//!
//! The fixed part of each message is a struct of `include/uapi/linux/rtnetlink.h`,
//! `fib_rules.h`, `if_link.h`, `if_addr.h` or `neighbour.h`; what follows are
//! attributes. An attribute of a rule or route that we do not know is kept with its
//! bytes: a rule with one more selector is not our rule, and what we take away we must
//! be able to put back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Neighbour, NeighbourState};
use crate::kernel::netlink::{Attribute, Malformed, Payload, attributes};
use crate::net::{
    Action, Family, IfName, MacAddr, Mark, Route, RouteKind, RouteProtocol, RoutingRule,
    RulePriority, RuleSelectors, TableId,
};
use crate::observation::{Address, Link, Setting};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Message types that libc names for some platforms only.
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_GETNEIGH: u16 = 30;
pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
pub(super) const RTM_GETRULE: u16 = 34;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;

const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_BROADCAST: u8 = 3;
const RTN_ANYCAST: u8 = 4;
const RTN_MULTICAST: u8 = 5;
const RTN_UNREACHABLE: u8 = 7;
/// `RTN_BLACKHOLE` to `RTN_THROW`: routes that lead nowhere.
const RTN_NOWHERE: std::ops::RangeInclusive<u8> = 6..=9;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;
/// A cached copy of a route, not a route.
const RTM_F_CLONED: u32 = 0x200;
/// The answer to a lookup names the table (IPv4; IPv6 always does).
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
/// `RTNH_F_PERVASIVE | RTNH_F_ONLINK`: the flags that are configured; others are states.
const ROUTE_FLAGS: u32 = 0x2 | 0x4;

/// What a route's fixed part may hold that ours never have is kept among
/// [`Route::others`], under types that no attribute has.
const FIELD_TOS: u16 = 0x3ff0;
const FIELD_SCOPE: u16 = 0x3ff1;
const FIELD_FLAGS: u16 = 0x3ff2;
const FIELD_SOURCE_LENGTH: u16 = 0x3ff3;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
/// `IFLA_INET_CONF` and `IFLA_INET6_CONF`: all settings of a link, 32 bits each.
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
/// Which of them are ours: `IPV4_DEVCONF_*` of `linux/ip.h`, less 1 (`inet_fill_link_af`), and
/// `DEVCONF_*` of `linux/ipv6.h`.
const IPV4_SETTINGS: [(usize, Setting); 4] = [
    (0, Setting::Forwarding),
    (5, Setting::SendRedirects),
    (7, Setting::RpFilter),
    (23, Setting::SrcValidMark),
];
const IPV6_SETTINGS: [(usize, Setting); 1] = [(0, Setting::Forwarding)];
const IFLA_INFO_KIND: u16 = 1;
/// `RTEXT_FILTER_SKIP_STATS`: no counters, which are most of the bytes.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const ARPHRD_ETHER: u16 = 1;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;

/// Names of links by index.
pub(super) type Names = BTreeMap<u32, IfName>;

fn family(number: u8) -> Option<Family> {
    match number {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn fixed<'a, const N: usize>(
    payload: &'a [u8],
    what: &'static str,
) -> Result<
    (
        [u8; N],
        impl Iterator<Item = Result<Attribute<'a>, Malformed>>,
    ),
    Malformed,
> {
    let (fixed, rest) = payload.split_first_chunk().ok_or(Malformed(what))?;
    Ok((*fixed, attributes(rest)))
}

fn address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(|v6| Ipv6Addr::from(v6).into())
        .map_err(|_| Malformed("address"))
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn network(address_bytes: &[u8], length: u8) -> Result<IpNet, Malformed> {
    IpNet::new(address(address_bytes)?, length).map_err(|_| Malformed("prefix length"))
}

/// An attribute as it is kept among the others, flags included.
fn kept(attribute: &Attribute<'_>) -> (u16, Vec<u8>) {
    (attribute.kind | attribute.flags, attribute.value.to_vec())
}

// Links

/// Asks for all links.
pub(super) fn all_links() -> Payload {
    Payload::new(&[0; 16]).with(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
}

/// Asks for the link of this name.
pub(super) fn link_by_name(name: &IfName) -> Payload {
    let mut text = name.as_str().as_bytes().to_vec();
    text.push(0);
    all_links().with(IFLA_IFNAME, &text)
}

/// Asks for the link of this index.
pub(super) fn link_by_index(index: u32) -> Payload {
    let mut fixed = [0; 16];
    let [_, _, _, _, a, b, c, d, ..] = &mut fixed;
    [*a, *b, *c, *d] = index.to_ne_bytes();
    Payload::new(&fixed).with(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
}

/// A link (`struct ifinfomsg`). `None` if its name has characters that ours cannot have (the
/// kernel takes quotes): no policy can mean it.
pub(super) fn parse_link(payload: &[u8]) -> Result<Option<Link>, Malformed> {
    let (header, attributes) = fixed::<16>(payload, "link")?;
    let [_, _, t0, t1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = header;
    let hardware = u16::from_ne_bytes([t0, t1]);
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let (mut name, mut mac, mut kind, mut master) = (None, None, None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => name = IfName::new(&attribute.text()).ok(),
            // Other kinds of hardware (tunnels) keep addresses of other lengths there.
            IFLA_ADDRESS if hardware == ARPHRD_ETHER => mac = attribute.array().ok().map(MacAddr),
            IFLA_MASTER => master = Some(attribute.u32()?),
            IFLA_LINKINFO => {
                for inner in attribute.nested() {
                    let inner = inner?;
                    if inner.kind == IFLA_INFO_KIND {
                        kind = Some(inner.text());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(name.map(|name| Link {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name,
        up: flags & IFF_UP != 0,
        running: flags & IFF_LOWER_UP != 0,
        mac,
        kind,
        master,
    }))
}

/// The settings of that link that are ours, as `/proc/sys/net` would show them.
pub(super) fn parse_settings(payload: &[u8]) -> Result<Vec<(Family, Setting, String)>, Malformed> {
    let (_, attributes) = fixed::<16>(payload, "link")?;
    let mut found = Vec::new();
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind != IFLA_AF_SPEC {
            continue;
        }
        for part in attribute.nested() {
            let part = part?;
            let (family, list, settings) = match u8::try_from(part.kind) {
                Ok(AF_INET) => (Family::V4, IFLA_INET_CONF, &IPV4_SETTINGS[..]),
                Ok(AF_INET6) => (Family::V6, IFLA_INET6_CONF, &IPV6_SETTINGS[..]),
                _ => continue,
            };
            for inner in part.nested() {
                let inner = inner?;
                if inner.kind != list {
                    continue;
                }
                let (values, _) = inner.value.as_chunks::<4>();
                for (at, setting) in settings {
                    if let Some(value) = values.get(*at) {
                        let value = i32::from_ne_bytes(*value);
                        found.push((family, *setting, value.to_string()));
                    }
                }
            }
        }
    }
    Ok(found)
}

// Addresses

/// Asks for all addresses of both families.
pub(super) fn all_addresses() -> Payload {
    Payload::new(&[0; 8])
}

/// An address (`struct ifaddrmsg`).
pub(super) fn parse_address(payload: &[u8]) -> Result<Option<Address>, Malformed> {
    let (header, attributes) = fixed::<8>(payload, "address")?;
    let [number, length, _, _, i0, i1, i2, i3] = header;
    if family(number).is_none() {
        return Ok(None);
    }
    let (mut here, mut there) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFA_LOCAL => here = Some(address(attribute.value)?),
            IFA_ADDRESS => there = Some(address(attribute.value)?),
            _ => {}
        }
    }
    // IPv4 gives both always, and equal ones unless there is a peer; IPv6 gives the
    // local one only if there is a peer.
    let Some(own) = here.or(there) else {
        return Ok(None);
    };
    let peer = there.filter(|peer| *peer != own);
    let whole = IpNet::new(own, length).map_err(|_| Malformed("prefix length"))?;
    let network = match peer {
        // The prefix is the peer's: it says nothing about our own neighbourhood.
        Some(peer) if !whole.contains(&peer) => IpNet::from(own),
        _ => whole,
    };
    Ok(Some(Address {
        link: u32::from_ne_bytes([i0, i1, i2, i3]),
        network,
        peer,
    }))
}

// Neighbours

/// Asks for the neighbours at the link of this index.
pub(super) fn neighbours_at(link: u32) -> Payload {
    Payload::new(&[0; 12]).with(NDA_IFINDEX, &link.to_ne_bytes())
}

/// A neighbour (`struct ndmsg`), if it is one at the link of this index.
pub(super) fn parse_neighbour(payload: &[u8], link: u32) -> Result<Option<Neighbour>, Malformed> {
    let (header, attributes) = fixed::<12>(payload, "neighbour")?;
    let [number, _, _, _, i0, i1, i2, i3, s0, s1, ..] = header;
    if family(number).is_none() || u32::from_ne_bytes([i0, i1, i2, i3]) != link {
        return Ok(None);
    }
    let (mut found, mut mac) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            NDA_DST => found = Some(address(attribute.value)?),
            NDA_LLADDR => mac = attribute.array().ok().map(MacAddr),
            _ => {}
        }
    }
    Ok(found.map(|address| Neighbour {
        address,
        mac,
        state: NeighbourState::from_number(u16::from_ne_bytes([s0, s1])),
    }))
}

// Routes

/// Which routes to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteFilter {
    /// Those of one table.
    Table(TableId),
    /// Those of one protocol.
    Protocol(RouteProtocol),
    /// All.
    None,
}

/// Asks for the routes of a family. Kernels before 4.20 heed no filter.
pub(super) fn some_routes(family: Family, filter: RouteFilter) -> Payload {
    let protocol = match filter {
        RouteFilter::Protocol(protocol) => protocol.0,
        RouteFilter::Table(_) | RouteFilter::None => 0,
    };
    let fixed = [
        family_number(family),
        0,
        0,
        0,
        0,
        protocol,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let payload = Payload::new(&fixed);
    match filter {
        RouteFilter::Table(table) => payload.with(RTA_TABLE, &table.0.to_ne_bytes()),
        RouteFilter::Protocol(_) | RouteFilter::None => payload,
    }
}

fn kind(number: u8) -> RouteKind {
    match number {
        RTN_UNICAST => RouteKind::Unicast,
        RTN_UNREACHABLE => RouteKind::Unreachable,
        other => RouteKind::Other(other),
    }
}

fn kind_number(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Unicast => RTN_UNICAST,
        RouteKind::Unreachable => RTN_UNREACHABLE,
        RouteKind::Other(number) => number,
    }
}

/// The scope that `ip route` gives a route if none is said.
fn usual_scope(family: Family, kind: u8, has_gateway: bool) -> u8 {
    match (family, kind) {
        (Family::V4, RTN_LOCAL) => RT_SCOPE_HOST,
        (Family::V4, RTN_BROADCAST | RTN_MULTICAST | RTN_ANYCAST) => RT_SCOPE_LINK,
        (Family::V4, RTN_UNICAST) if !has_gateway => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    }
}

/// A route (`struct rtmsg`); `None` if it is none of IPv4 or IPv6, or a cached copy.
pub(super) fn parse_route(payload: &[u8], names: &Names) -> Result<Option<Route>, Malformed> {
    let (header, attributes) = fixed::<12>(payload, "route")?;
    let [
        number,
        length,
        source_length,
        tos,
        table,
        protocol,
        scope,
        kind_found,
        f0,
        f1,
        f2,
        f3,
    ] = header;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let Some(family) = family(number) else {
        return Ok(None);
    };
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let mut route = Route {
        family,
        table: TableId(table.into()),
        destination: None,
        kind: kind(kind_found),
        via: None,
        interface: None,
        metric: 0,
        protocol: RouteProtocol(protocol),
        others: Vec::new(),
    };
    let mut has_nexthops = false;
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            RTA_DST => route.destination = Some(network(attribute.value, length)?),
            RTA_TABLE => route.table = TableId(attribute.u32()?),
            RTA_GATEWAY => route.via = Some(address(attribute.value)?),
            RTA_PRIORITY => route.metric = attribute.u32()?,
            RTA_OIF => match names.get(&attribute.u32()?) {
                // Where it leads nowhere, IPv6 says `lo`.
                _ if RTN_NOWHERE.contains(&kind_found) => {}
                Some(name) => route.interface = Some(name.clone()),
                None => route.others.push(kept(&attribute)),
            },
            // Age and use, which change by themselves.
            RTA_CACHEINFO => {}
            // Medium, as everyone has it (RFC 4191).
            RTA_PREF if attribute.value == [0] => {}
            _ => {
                // Next hops in other forms: RTA_MULTIPATH, RTA_VIA, RTA_NH_ID.
                has_nexthops |= matches!(attribute.kind, 9 | RTA_VIA | 30);
                route.others.push(kept(&attribute));
            }
        }
    }
    let mut field = |kind, value: &[u8]| route.others.push((kind, value.to_vec()));
    if tos != 0 {
        field(FIELD_TOS, &[tos]);
    }
    if scope != usual_scope(family, kind_found, route.via.is_some() || has_nexthops) {
        field(FIELD_SCOPE, &[scope]);
    }
    if flags & ROUTE_FLAGS != 0 {
        field(FIELD_FLAGS, &(flags & ROUTE_FLAGS).to_ne_bytes());
    }
    if source_length != 0 {
        field(FIELD_SOURCE_LENGTH, &[source_length]);
    }
    Ok(Some(route))
}

/// A field of the header that ours never have.
fn field(route: &Route, wanted: u16) -> Option<&[u8]> {
    let other = route.others.iter().find(|(kind, _)| *kind == wanted);
    other.map(|(_, value)| value.as_slice())
}

/// The type of service that a route is for.
pub(super) fn type_of_service(route: &Route) -> u8 {
    let value = field(route, FIELD_TOS).and_then(<[u8]>::first);
    value.copied().unwrap_or(0)
}

/// A route with every attribute that it has, to be added, replaced or deleted. `output` is the
/// index of its interface.
pub(super) fn build_route(route: &Route, output: Option<u32>) -> Payload {
    let kind = kind_number(route.kind);
    let byte = |wanted| field(route, wanted).and_then(|value| value.first().copied());
    let has_nexthops = (route.others.iter()).any(|(kind, _)| matches!(kind & 0x3fff, 9 | 18 | 30));
    let scope = byte(FIELD_SCOPE)
        .unwrap_or_else(|| usual_scope(route.family, kind, route.via.is_some() || has_nexthops));
    let [f0, f1, f2, f3] = field(route, FIELD_FLAGS)
        .and_then(|value| value.try_into().ok())
        .unwrap_or_default();
    let mut payload = Payload::new(&[
        family_number(route.family),
        route.destination.map_or(0, |network| network.prefix_len()),
        byte(FIELD_SOURCE_LENGTH).unwrap_or(0),
        type_of_service(route),
        // Larger ones do not fit: the attribute says it.
        u8::try_from(route.table.0).unwrap_or(0),
        route.protocol.0,
        scope,
        kind,
        f0,
        f1,
        f2,
        f3,
    ]);
    payload.push(RTA_TABLE, &route.table.0.to_ne_bytes());
    if let Some(network) = route.destination {
        payload.push(RTA_DST, &address_bytes(network.addr()));
    }
    payload.push(RTA_PRIORITY, &route.metric.to_ne_bytes());
    if let Some(via) = route.via {
        payload.push(RTA_GATEWAY, &address_bytes(via));
    }
    if let Some(index) = output {
        payload.push(RTA_OIF, &index.to_ne_bytes());
    }
    for (kind, value) in &route.others {
        if !(FIELD_TOS..=FIELD_SOURCE_LENGTH).contains(kind) {
            payload.push(*kind, value);
        }
    }
    payload
}

// Rules

/// Asks for the rules of a family.
pub(super) fn all_rules(family: Family) -> Payload {
    let mut fixed = [0; 12];
    let [number, ..] = &mut fixed;
    *number = family_number(family);
    Payload::new(&fixed)
}

/// A rule (`struct fib_rule_hdr`); `None` if it is none of IPv4 or IPv6.
pub(super) fn parse_rule(payload: &[u8]) -> Result<Option<RoutingRule>, Malformed> {
    let (header, attributes) = fixed::<12>(payload, "routing rule")?;
    let [
        number,
        destination_length,
        source_length,
        tos,
        table,
        _,
        _,
        action,
        f0,
        f1,
        f2,
        f3,
    ] = header;
    let Some(family) = family(number) else {
        return Ok(None);
    };
    let mut selectors = RuleSelectors {
        invert: u32::from_ne_bytes([f0, f1, f2, f3]) & FIB_RULE_INVERT != 0,
        tos,
        ..RuleSelectors::default()
    };
    let (mut priority, mut protocol, mut table) = (0, 0, u32::from(table));
    let (mut value, mut bits) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            FRA_DST => selectors.destination = Some(network(attribute.value, destination_length)?),
            FRA_SRC => selectors.source = Some(network(attribute.value, source_length)?),
            FRA_IIFNAME => selectors.input = Some(attribute.text()),
            FRA_OIFNAME => selectors.output = Some(attribute.text()),
            FRA_PRIORITY => priority = attribute.u32()?,
            FRA_FWMARK => value = Some(attribute.u32()?),
            FRA_FWMASK => bits = Some(attribute.u32()?),
            FRA_TABLE => table = attribute.u32()?,
            FRA_PROTOCOL => protocol = attribute.u8()?,
            FRA_IP_PROTO => selectors.ip_protocol = Some(attribute.u8()?),
            FRA_SPORT_RANGE => selectors.source_port = Some(ports(&attribute)?),
            FRA_DPORT_RANGE => selectors.destination_port = Some(ports(&attribute)?),
            FRA_SUPPRESS_PREFIXLEN => {
                // -1 is sent for none.
                selectors.suppress_prefix_length =
                    Some(attribute.u32()?).filter(|length| *length != u32::MAX);
            }
            FRA_PAD => {}
            _ => selectors.others.push(kept(&attribute)),
        }
    }
    let action = if action == FR_ACT_TO_TBL {
        Action::Lookup(TableId(table))
    } else {
        if table != 0 {
            (selectors.others).push((FRA_TABLE, table.to_ne_bytes().to_vec()));
        }
        Action::Other(action)
    };
    let mark = (value.is_some() || bits.is_some()).then(|| Mark {
        value: value.unwrap_or(0),
        mask: bits.unwrap_or(u32::MAX),
    });
    Ok(Some(RoutingRule {
        family,
        priority: RulePriority(priority),
        mark,
        selectors,
        action,
        protocol: RouteProtocol(protocol),
    }))
}

/// `struct fib_rule_port_range`: first and last, in the host's byte order.
fn ports(attribute: &Attribute<'_>) -> Result<(u16, u16), Malformed> {
    let [a, b, c, d] = attribute.array()?;
    Ok((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
}

fn port_bytes((first, last): (u16, u16)) -> Vec<u8> {
    [first.to_ne_bytes(), last.to_ne_bytes()].concat()
}

/// A rule with every attribute that it has, to be added or deleted.
pub(super) fn build_rule(rule: &RoutingRule) -> Payload {
    let selectors = &rule.selectors;
    let (action, table) = match rule.action {
        // Left out, the action is "unspecified", and every lookup that meets the rule fails
        // with EINVAL.
        Action::Lookup(table) => (FR_ACT_TO_TBL, Some(table.0)),
        Action::Other(number) => (number, None),
    };
    let flags = if selectors.invert { FIB_RULE_INVERT } else { 0 };
    let [f0, f1, f2, f3] = flags.to_ne_bytes();
    let length = |network: Option<IpNet>| network.map_or(0, |network| network.prefix_len());
    let mut payload = Payload::new(&[
        family_number(rule.family),
        length(selectors.destination),
        length(selectors.source),
        selectors.tos,
        table
            .and_then(|table| u8::try_from(table).ok())
            .unwrap_or(0),
        0,
        0,
        action,
        f0,
        f1,
        f2,
        f3,
    ]);
    payload.push(FRA_PRIORITY, &rule.priority.0.to_ne_bytes());
    payload.push(FRA_PROTOCOL, &[rule.protocol.0]);
    if let Some(table) = table {
        payload.push(FRA_TABLE, &table.to_ne_bytes());
    }
    if let Some(mark) = rule.mark {
        payload.push(FRA_FWMARK, &mark.value.to_ne_bytes());
        payload.push(FRA_FWMASK, &mark.mask.to_ne_bytes());
    }
    for (kind, network) in [
        (FRA_DST, selectors.destination),
        (FRA_SRC, selectors.source),
    ] {
        if let Some(network) = network {
            payload.push(kind, &address_bytes(network.addr()));
        }
    }
    for (kind, name) in [
        (FRA_IIFNAME, &selectors.input),
        (FRA_OIFNAME, &selectors.output),
    ] {
        if let Some(name) = name {
            payload.push(kind, &[name.as_bytes(), &[0]].concat());
        }
    }
    if let Some(number) = selectors.ip_protocol {
        payload.push(FRA_IP_PROTO, &[number]);
    }
    if let Some(range) = selectors.source_port {
        payload.push(FRA_SPORT_RANGE, &port_bytes(range));
    }
    if let Some(range) = selectors.destination_port {
        payload.push(FRA_DPORT_RANGE, &port_bytes(range));
    }
    if let Some(length) = selectors.suppress_prefix_length {
        payload.push(FRA_SUPPRESS_PREFIXLEN, &length.to_ne_bytes());
    }
    for (kind, value) in &selectors.others {
        payload.push(*kind, value);
    }
    payload
}

// Lookups

/// Asks where a packet would go.
pub(super) fn build_question(question: &super::Question, input: Option<u32>) -> Payload {
    let family = Family::of(question.to);
    let flags = match family {
        Family::V4 => RTM_F_LOOKUP_TABLE,
        Family::V6 => 0,
    };
    let [f0, f1, f2, f3] = flags.to_ne_bytes();
    let source_length = question.from.map_or(0, |_| family.bits());
    let mut payload = Payload::new(&[
        family_number(family),
        family.bits(),
        source_length,
        0,
        0,
        0,
        0,
        0,
        f0,
        f1,
        f2,
        f3,
    ]);
    payload.push(RTA_DST, &address_bytes(question.to));
    if let Some(from) = question.from {
        payload.push(RTA_SRC, &address_bytes(from));
    }
    if let Some(index) = input {
        payload.push(RTA_IIF, &index.to_ne_bytes());
    }
    if question.mark != 0 {
        payload.push(RTA_MARK, &question.mark.to_ne_bytes());
    }
    if let Some((source, destination)) = question.tcp_ports {
        payload.push(RTA_IP_PROTO, &[6]);
        payload.push(RTA_SPORT, &source.to_be_bytes());
        payload.push(RTA_DPORT, &destination.to_be_bytes());
    }
    payload
}

/// Where a packet would go, as the kernel answers: kind, next hop, index of the output
/// interface, table.
pub(super) fn parse_answer(
    payload: &[u8],
) -> Result<(RouteKind, Option<IpAddr>, Option<u32>, TableId), Malformed> {
    let (header, attributes) = fixed::<12>(payload, "route")?;
    let [_, _, _, _, table, _, _, kind_found, ..] = header;
    let (mut via, mut output, mut table) = (None, None, TableId(table.into()));
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            RTA_GATEWAY => via = Some(address(attribute.value)?),
            // An IPv4 route by an IPv6 next hop: family, then address.
            RTA_VIA => via = Some(address(attribute.value.get(2..).unwrap_or_default())?),
            RTA_OIF => output = Some(attribute.u32()?),
            RTA_TABLE => table = TableId(attribute.u32()?),
            _ => {}
        }
    }
    Ok((kind(kind_found), via, output, table))
}
