//! What is not as it was applied, what others may undo, and which sessions apply would cut.

use std::net::{IpAddr, SocketAddr};

use super::packets::are_led_away;
use super::{Case, Finding, Subject, families};
use crate::plan::Change;
use crate::policy::{Established, Redirect};

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>) {
    drift(case, findings);
    networkd(case, findings);
    router_among_servers(case, findings);
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

/// Servers' networks that hold the router's own addresses: what is delivered here is not forwarded,
/// and no appliance sees it.
fn router_among_servers(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let listens_on = |own: IpAddr, redirect: &Redirect| {
        case.surroundings.listeners.iter().find_map(|listener| {
            // A socket that is bound to no address takes IPv4, too, if it is IPv6 (ipv6(7)).
            let any = listener.ip().is_unspecified() && (own.is_ipv4() || listener.is_ipv6());
            ((any || listener.ip() == own) && redirect.ports.contains(listener.port()))
                .then_some(listener.port())
        })
    };
    for (index, redirect) in case.policy.redirects.iter().enumerate() {
        for found in &case.observed.addresses {
            let own = found.network.addr();
            if !redirect.servers.contains(own) {
                continue;
            }
            let Some(port) = listens_on(own, redirect) else {
                continue;
            };
            if are_led_away(case, index, SocketAddr::new(own, port)) {
                continue;
            }
            findings.push(
                Finding::warning(
                    "router-among-servers",
                    Subject::Redirect(redirect.name.to_string()),
                )
                .found(format!("{own} is this router's own, is among the servers, and something listens there on port {port}"))
                .why("sessions to the router itself end on it: they do not cross it, and are not recorded")
                .mends(case.file.except_server(redirect.name.as_str(), own, case.in_force)),
            );
        }
    }
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
