//! What others on this router may undo, and whom the policy does not reach.

use std::net::IpAddr;

use super::foreign::walk::{self, Traveller};
use super::foreign::{Hook, State};
use super::packets::{OurRules, with_ours};
use super::{Case, Finding, Subject, families};
use crate::kernel::route::Neighbour;
use crate::net::{Family, IfName};
use crate::plan::Change;
use crate::policy::{Established, Redirect};
use crate::rules::Packet;

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>) {
    drift(case, findings);
    networkd(case, findings);
    other_family(case, findings);
    open_sessions(case, findings);
}

/// The policy is in force, and something of it is not there.
fn drift(case: &Case<'_>, findings: &mut Vec<Finding>) {
    if !case.in_force {
        return;
    }
    for change in &case.planned.plan.changes {
        let (what, why) = match change {
            // Told in its own words, where it matters.
            Change::Sysctl { .. } => continue,
            Change::Route { .. } => (
                "a route of ours is",
                "packets that bear our mark find no way to the appliance",
            ),
            Change::Rule { .. } => (
                "a routing rule of ours is",
                "packets that bear our mark do not follow the appliance's table",
            ),
            Change::Directory { .. } | Change::File { .. } => (
                "the routing table's name is",
                "`ip route show table NAME` does not know it",
            ),
            _ => (
                "our packet rules are",
                "sessions may not be taken: they would reach their servers unrecorded",
            ),
        };
        let kind = if matches!(change, Change::Directory { .. } | Change::File { .. }) {
            Finding::warning("drift", Subject::Router)
        } else {
            Finding::error("drift", Subject::Router)
        };
        findings.push(
            kind.found(format!(
                "{what} not as it was applied: {}",
                super::text::change_words(change)
            ))
            .why(why)
            .mend(super::REPAIR),
        );
    }
}

/// systemd-networkd takes routing rules and routes away that it did not make, whenever it starts
/// or configures a link anew, unless it is told not to (networkd.conf(5)).
fn networkd(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let Some(files) = &case.surroundings.networkd else {
        return;
    };
    if families(case.policy).next().is_none() {
        return;
    }
    let removes = |key: &str| {
        let mut value = true;
        for (_, text) in files {
            let mut in_network = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with('[') {
                    in_network = line == "[Network]";
                } else if let Some((found, given)) = line.split_once('=')
                    && in_network
                    && found.trim() == key
                {
                    let given = given.trim().to_ascii_lowercase();
                    value = !matches!(given.as_str(), "no" | "false" | "off" | "n" | "f" | "0");
                }
            }
        }
        value
    };
    let keys: Vec<&str> = ["ManageForeignRoutingPolicyRules", "ManageForeignRoutes"]
        .into_iter()
        .filter(|key| removes(key))
        .collect();
    if keys.is_empty() {
        return;
    }
    findings.push(
        Finding::error("networkd-foreign", Subject::Router)
            .found(format!("systemd-networkd runs here, and {} not switched off", match keys.as_slice() {
                [only] => format!("{only} is"),
                many => format!("{} are", many.join(" and ")),
            }))
            .why("when it starts or configures a link anew, it removes our routing rules and routes: every session is refused until `redirect repair`")
            .owner(Some("systemd-networkd"))
            .mend("mkdir -p /etc/systemd/networkd.conf.d")
            .mend(r"printf '[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes=no\n' > /etc/systemd/networkd.conf.d/redirect.conf")
            .mend("systemctl restart systemd-networkd"),
    );
}

/// A server that a redirect covers in one family only, and that clients reach in the other.
fn other_family(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for redirect in &case.policy.redirects {
        if redirect.servers.v4.is_empty() {
            continue;
        }
        for (interface, server, other) in twins(case, redirect) {
            if redirects_to(case, redirect, other) {
                continue;
            }
            let Some(client) = redirect_clients(case, redirect).into_iter().find(|client| {
                *client != interface && reaches(case, redirect, client, &interface, other)
            }) else {
                continue;
            };
            let prefix =
                on_link_prefix(case, &interface, other).unwrap_or_else(|| other.to_string());
            findings.push(
                Finding::error("ipv6-unredirected", Subject::Redirect(redirect.name.to_string()))
                    .found(format!("the server {server} is also {other} (the same Ethernet address on `{interface}`), which no redirect covers"))
                    .why(format!("clients on `{client}` reach it over IPv6, unrecorded; covering it in `server_network` records them, the command refuses them"))
                    .mend(format!(
                        "ip6tables -I FORWARD -i {client} -d {prefix} {} -j REJECT",
                        super::packets::multiport(&redirect.ports, false)
                    )),
            );
        }
    }
}

/// Neighbours that are servers of `redirect` in IPv4, with an IPv6 address of the same host.
fn twins(case: &Case<'_>, redirect: &Redirect) -> Vec<(IfName, IpAddr, IpAddr)> {
    let neighbours = &case.surroundings.neighbours;
    let mut twins = Vec::new();
    let is_global = |found: &Neighbour| match found.address {
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_multicast(),
        IpAddr::V4(_) => false,
    };
    for (interface, server) in neighbours {
        if Family::of(server.address) != Family::V4
            || !redirect.servers.contains(server.address)
            || server.mac.is_none()
        {
            continue;
        }
        for (at, other) in neighbours {
            if at == interface && other.mac == server.mac && is_global(other) {
                twins.push((interface.clone(), server.address, other.address));
            }
        }
    }
    twins
}

/// Whether some redirect with the same ports covers `address`.
fn redirects_to(case: &Case<'_>, redirect: &Redirect, address: IpAddr) -> bool {
    case.policy.redirects.iter().any(|other| {
        other.servers.contains(address)
            && redirect
                .ports
                .iter()
                .all(|range| other.ports.contains(range.first) && other.ports.contains(range.last))
    })
}

fn redirect_clients(case: &Case<'_>, redirect: &Redirect) -> Vec<IfName> {
    case.observed
        .links
        .iter()
        .filter(|link| {
            redirect
                .client_interfaces
                .iter()
                .any(|pattern| pattern.matches(&link.name))
        })
        .map(|link| link.name.clone())
        .collect()
}

/// Whether a client behind `client` gets through to `server` in IPv6.
fn reaches(
    case: &Case<'_>,
    redirect: &Redirect,
    client: &IfName,
    interface: &IfName,
    server: IpAddr,
) -> bool {
    let Some(link) = case.observed.link(client) else {
        return false;
    };
    let source = case.observed.addresses.iter().find_map(|found| {
        let is_global =
            matches!(found.network.addr(), IpAddr::V6(address) if !address.is_unicast_link_local());
        (found.link == link.index && is_global)
            .then(|| {
                found
                    .network
                    .hosts()
                    .find(|host| *host != found.network.addr())
            })
            .flatten()
    });
    let (Some(source), Some(port)) = (
        source,
        redirect.ports.iter().next().map(|range| range.first),
    ) else {
        return false;
    };
    if !case.surroundings.forwards(Family::V6, client) {
        return false;
    }
    let mut traveller = Traveller {
        input: Some(client.clone()),
        output: None,
        source,
        destination: server,
        protocol: 6,
        ports: Some((super::legs::CLIENT_PORT, port)),
        icmp_type: None,
        flags: Packet::SYN,
        state: State::New,
        mac: None,
        way_back: Some(client.clone()),
        mark: 0,
        connection_mark: 0,
    };
    let rules = with_ours(case);
    let mut ours = OurRules::new(case.policy);
    let mut events = Vec::new();
    if !walk::pass(
        &rules,
        Hook::Prerouting,
        &mut traveller,
        &mut ours,
        &mut events,
    ) {
        return false;
    }
    traveller.output = Some(interface.clone());
    walk::pass(
        &rules,
        Hook::Forward,
        &mut traveller,
        &mut ours,
        &mut events,
    )
}

fn on_link_prefix(case: &Case<'_>, interface: &IfName, address: IpAddr) -> Option<String> {
    let link = case.observed.link(interface)?;
    case.observed
        .addresses
        .iter()
        .find(|found| found.link == link.index && found.network.contains(&address))
        .map(|found| found.network.trunc().to_string())
}

/// Sessions that apply would cut.
fn open_sessions(case: &Case<'_>, findings: &mut Vec<Finding>) {
    if case.in_force || case.policy.options.established == Established::Keep {
        return;
    }
    let Some(open) = &case.surroundings.open_sessions else {
        return;
    };
    for (index, count) in open {
        let Some(redirect) = case.policy.redirects.get(*index).filter(|_| *count > 0) else {
            continue;
        };
        let sessions = if *count == 1 {
            "session is"
        } else {
            "sessions are"
        };
        findings.push(
            Finding::warning(
                "sessions-open",
                Subject::Redirect(redirect.name.to_string()),
            )
            .found(format!(
                "{count} {sessions} open that this redirect would take"
            ))
            .why(
                "apply cuts them: the appliance did not see them start, and cannot go on with them",
            )
            .mends(case.file.set_option("established", "\"keep\"", false)),
        );
    }
}
