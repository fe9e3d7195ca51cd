//! IPv6 that goes past a redirect of IPv4.
//!
//! Servers that a redirect covers in IPv4 alone may be reached over IPv6 where their network has
//! an IPv6 prefix, clients have one too, the router forwards IPv6 between the two, and
//! nobody's rules refuse it. That is a warning; once the router has met a server with both
//! kinds of addresses, it is an error.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};

use super::foreign::Hook;
use super::foreign::walk::{self, Traveller};
use super::packets::{OurRules, Refused, refuse, with_ours};
use super::{Case, Finding, Subject};
use crate::net::{Family, IfName, Networks};
use crate::observation::Link;
use crate::policy::Redirect;

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for redirect in &case.policy.redirects {
        for link in &case.observed.links {
            if !holds_servers(case, redirect, link) {
                continue;
            }
            for prefix in prefixes(case, link) {
                if is_covered(case, redirect, prefix) {
                    continue;
                }
                let client = case.observed.links.iter().find(|client| {
                    is_for_clients(redirect, client)
                        && client.index != link.index
                        && reaches(case, redirect, client, link, prefix)
                });
                if let Some(client) = client {
                    findings.push(finding(case, redirect, client, link, prefix));
                }
            }
        }
    }
}

/// Whether IPv4 servers of `redirect` are neighbours at `link`.
fn holds_servers(case: &Case<'_>, redirect: &Redirect, link: &Link) -> bool {
    case.observed.addresses.iter().any(|found| {
        let on_link = Networks::merged([found.network]);
        found.link == link.index && redirect.servers.v4.overlap(&on_link.v4).is_some()
    })
}

fn is_for_clients(redirect: &Redirect, link: &Link) -> bool {
    redirect
        .client_interfaces
        .iter()
        .any(|pattern| pattern.matches(&link.name))
}

/// The IPv6 networks at `link`, those of every link aside.
fn prefixes(case: &Case<'_>, link: &Link) -> Vec<Ipv6Net> {
    let mut prefixes: Vec<Ipv6Net> = case
        .observed
        .addresses
        .iter()
        .filter(|found| found.link == link.index)
        .filter_map(|found| match found.network {
            IpNet::V6(network) if !network.addr().is_unicast_link_local() => Some(network.trunc()),
            _ => None,
        })
        .collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// Whether some redirect of the same ports covers a part of it: then somebody has thought of it.
fn is_covered(case: &Case<'_>, redirect: &Redirect, prefix: Ipv6Net) -> bool {
    let network = Networks::merged([IpNet::V6(prefix)]);
    case.policy.redirects.iter().any(|other| {
        other.servers.v6.overlap(&network.v6).is_some()
            && redirect
                .ports
                .iter()
                .all(|range| other.ports.contains(range.first) && other.ports.contains(range.last))
    })
}

fn finding(
    case: &Case<'_>,
    redirect: &Redirect,
    client: &Link,
    link: &Link,
    prefix: Ipv6Net,
) -> Finding {
    let subject = Subject::Redirect(redirect.name.to_string());
    let (interface, client) = (&link.name, &client.name);
    let base = match twin(case, redirect, interface, prefix) {
        Some((server, other)) => Finding::error(CODE, subject).found(format!(
            "the server {server} is also {other} (the same Ethernet address on `{interface}`), which no redirect covers"
        )),
        None => Finding::warning(CODE, subject).found(format!(
            "servers on `{interface}` may have addresses of {prefix}, too, which no redirect covers"
        )),
    };
    let ports: Vec<String> = redirect.ports.iter().map(ToString::to_string).collect();
    base.why(format!("the router forwards IPv6 from `{client}` to them: such sessions reach the servers unrecorded; covering the network in `server_network` records them, the command refuses them"))
        .mend(refuse(
            case,
            &Refused {
                hook: Hook::Forward,
                nft: format!(
                    "iifname \"{client}\" ip6 daddr {prefix} tcp dport {{ {} }} reject",
                    ports.join(", ")
                ),
                iptables: format!(
                    "-i {client} -d {prefix} {} -j REJECT",
                    super::packets::multiport(&redirect.ports, false)
                ),
            },
        ))
}

const CODE: &str = "ipv6-unredirected";

/// A server of `redirect` in IPv4, with the IPv6 address by which the same host is known.
fn twin(
    case: &Case<'_>,
    redirect: &Redirect,
    interface: &IfName,
    prefix: Ipv6Net,
) -> Option<(IpAddr, IpAddr)> {
    let here = || {
        case.surroundings
            .neighbours
            .iter()
            .filter(|(at, _)| at == interface)
            .map(|(_, neighbour)| neighbour)
    };
    here()
        .filter(|server| {
            server.address.is_ipv4()
                && server.mac.is_some()
                && redirect.servers.contains(server.address)
        })
        .find_map(|server| {
            let other = here().find(|other| {
                other.mac == server.mac && IpNet::V6(prefix).contains(&other.address)
            })?;
            Some((server.address, other.address))
        })
}

/// Whether a client behind `client` gets through to `prefix` at `link`.
fn reaches(
    case: &Case<'_>,
    redirect: &Redirect,
    client: &Link,
    link: &Link,
    prefix: Ipv6Net,
) -> bool {
    let host = |prefix: Ipv6Net| {
        // The first one is any router's (RFC 4291, 2.6.1).
        let mut hosts = prefix.hosts().filter(|host| *host != prefix.network());
        hosts.find(|host| {
            let own = |found: &crate::observation::Address| found.network.addr() == *host;
            !case.observed.addresses.iter().any(own)
        })
    };
    let from = prefixes(case, client).into_iter().find_map(host);
    let port = redirect.ports.iter().next().map(|range| range.first);
    let (Some(source), Some(destination), Some(port)) = (from, host(prefix), port) else {
        return false;
    };
    if !case.surroundings.forwards(Family::V6, &client.name) {
        return false;
    }
    let mut traveller = Traveller::opening(
        &client.name,
        (source, super::legs::CLIENT_PORT).into(),
        (destination, port).into(),
    );
    let rules = with_ours(case);
    let mut ours = OurRules::new(case.policy);
    let mut events = Vec::new();
    let mut passes = |hook, traveller: &mut Traveller| {
        walk::pass(&rules, hook, traveller, &mut ours, &mut events)
    };
    if !passes(Hook::Prerouting, &mut traveller) {
        return false;
    }
    traveller.output = Some(link.name.clone());
    passes(Hook::Forward, &mut traveller)
}
