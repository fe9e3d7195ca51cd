//! Interfaces, the appliance as a neighbour, and what the planner refuses.

use std::net::IpAddr;

use super::{Case, Finding, Subject, families};
use crate::kernel::route::NeighbourState;
use crate::observation::Link;
use crate::plan::Finding as Refusal;
use crate::plan::packets::PACKET_FILTER_MISSING;
use crate::policy::Appliance;

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>) {
    refusals(case, findings);
    carriers(case, findings);
    masters(case, findings);
    neighbours(case, findings);
    probes(case, findings);
}

/// How the appliances answered.
fn probes(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for probe in &case.surroundings.probes {
        let subject = || Subject::Appliance(probe.appliance.clone());
        let flag = crate::net::Family::of(probe.address).ip_flag();
        if let Err(reason) = &probe.echo {
            findings.push(
                Finding::warning("appliance-no-echo", subject())
                    .found(format!(
                        "{} does not answer an ICMP echo: {reason}",
                        probe.address
                    ))
                    .why("it may be off, or filter them; that it is there could not be shown")
                    .mend(format!("ping -c 3 {}", probe.address)),
            );
        }
        for (to, answer) in &probe.sessions {
            if let Err(reason) = answer {
                findings.push(
                    Finding::error("appliance-takes-no-session", subject())
                        .found(format!(
                            "a session to {to} through the appliance failed: {reason}"
                        ))
                        .why("clients' sessions take the same way, and fail the same way")
                        .mend(format!("ip {flag} neighbour show {}", probe.address)),
                );
            }
        }
    }
}

/// What apply would refuse.
fn refusals(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for refusal in &case.planned.refusals {
        let key = refusal.key.as_deref().unwrap_or_default();
        let mut finding = Finding::error(refusal.code, subject(case, key))
            .found(refusal.message.clone())
            .why(if case.in_force {
                "sessions are refused as long as it is so, and may not all be taken"
            } else {
                "apply refuses this"
            })
            .mend(refusal_mend(case, refusal));
        finding.lacking = matches!(refusal.code, PACKET_FILTER_MISSING | "interface-missing");
        findings.push(finding);
    }
}

/// What a key of the policy is about.
fn subject(case: &Case<'_>, key: &str) -> Subject {
    if let Some(appliance) = appliance_of(case, key) {
        return Subject::Appliance(appliance.name.to_string());
    }
    let index = key
        .strip_prefix("redirect[")
        .and_then(|rest| rest.split(']').next())
        .and_then(|number| number.parse::<usize>().ok()?.checked_sub(1));
    match index.and_then(|index| case.policy.redirects.get(index)) {
        Some(redirect) => Subject::Redirect(redirect.name.to_string()),
        None => Subject::Router,
    }
}

fn appliance_of<'a>(case: &Case<'a>, key: &str) -> Option<&'a Appliance> {
    case.policy
        .appliances
        .iter()
        .find(|appliance| key.starts_with(&format!("appliance.{}.", appliance.name)))
}

/// The hint as a command, where there is one.
fn refusal_mend(case: &Case<'_>, refusal: &Refusal) -> String {
    let appliance = appliance_of(case, refusal.key.as_deref().unwrap_or_default());
    match (refusal.code, appliance) {
        ("interface-down", Some(appliance)) => format!("ip link set {} up", appliance.interface),
        _ => format!("# {}", refusal.hint),
    }
}

/// The interfaces that the policy names, with why each matters.
fn named<'a>(case: &'a Case<'_>) -> Vec<(&'a Link, Role)> {
    let mut named = Vec::new();
    for link in &case.observed.links {
        let is_appliance = families(case.policy).any(|(index, _)| {
            case.policy
                .appliances
                .get(index)
                .is_some_and(|appliance| appliance.interface == link.name)
        });
        let is_client = case.policy.redirects.iter().any(|redirect| {
            redirect
                .client_interfaces
                .iter()
                .any(|pattern| pattern.matches(&link.name))
        });
        if is_appliance {
            named.push((link, Role::Appliance));
        }
        if is_client {
            named.push((link, Role::Client));
        }
    }
    named
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Appliance,
    Client,
}

fn carriers(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for (link, role) in named(case) {
        if role == Role::Appliance && link.up && !link.running {
            findings.push(
                Finding::error("no-carrier", Subject::Interface(link.name.to_string()))
                    .found(format!("`{}` has no carrier: nothing is plugged in at the other end, or it is switched off", link.name))
                    .why("the appliance is behind it: no session can be recorded")
                    .mend(format!("ip -statistics link show dev {}", link.name)),
            );
        }
    }
}

/// Packets that come in by a bridge port, a bond's member or a VRF's are seen as the master's.
fn masters(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for (link, role) in named(case) {
        let Some(master) = link
            .master
            .and_then(|index| case.observed.links.iter().find(|link| link.index == index))
        else {
            continue;
        };
        let kind = master.kind.as_deref().unwrap_or("master");
        let subject = Subject::Interface(link.name.to_string());
        let finding = if kind == "vrf" {
            Finding::error("vrf", subject)
                .found(format!("`{}` belongs to the VRF `{}`", link.name, master.name))
                .why(match role {
                    Role::Appliance => "packets of a VRF pass prerouting twice, the second time as coming in on the VRF: the appliance's own packets would be taken for others' and sent back to it",
                    Role::Client => "the appliance's answers to these clients are looked up outside of the VRF, where the clients are not",
                })
                .mend(format!("ip link set dev {} nomaster", link.name))
        } else {
            Finding::error("enslaved-interface", subject)
                .found(format!("`{}` belongs to the {kind} `{}`", link.name, master.name))
                .why(match role {
                    Role::Appliance => format!("what the appliance sends comes in as from `{}`, so no packet is ever known to be from the appliance", master.name),
                    Role::Client => format!("what clients send comes in as from `{}`, so no session is ever taken, and all go to their servers unrecorded", master.name),
                })
                .mends(case.file.replace_word(
                    link.name.as_str(),
                    master.name.as_str(),
                    case.in_force,
                ))
        };
        findings.push(finding);
    }
}

/// What the router knows of the appliances as neighbours.
fn neighbours(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for (index, family) in families(case.policy) {
        let Some(appliance) = case.policy.appliances.get(index) else {
            continue;
        };
        let Some(address) = appliance.address(family) else {
            continue;
        };
        let subject = || Subject::Appliance(appliance.name.to_string());
        let interface = &appliance.interface;
        let Some(neighbour) = case.surroundings.neighbour(interface, address) else {
            continue;
        };
        let protocol = match address {
            IpAddr::V4(_) => "ARP",
            IpAddr::V6(_) => "neighbour discovery",
        };
        if matches!(
            neighbour.state,
            NeighbourState::Failed | NeighbourState::Incomplete
        ) {
            findings.push(
                Finding::error("appliance-silent", subject())
                    .found(format!(
                        "{address} does not answer {protocol} on `{interface}`"
                    ))
                    .why("the router cannot deliver a packet to it: every session is refused")
                    .mend(format!(
                        "ip {} neighbour show {address} dev {interface}",
                        family.ip_flag()
                    )),
            );
        }
        if let Some(mac) = neighbour.mac
            && neighbour.state.is_usable()
            && !appliance.macs.is_empty()
            && !appliance.macs.contains(&mac)
        {
            let known: Vec<String> = appliance.macs.iter().map(ToString::to_string).collect();
            findings.push(
                Finding::error("appliance-mac-differs", subject())
                    .found(format!("{address} has the Ethernet address {mac}, the policy says {}", known.join(", ")))
                    .why("what the appliance sends is not known to be from it: it would be sent back to the appliance, in circles")
                    .mends(match known.as_slice() {
                        [only] => case.file.replace_word(only, &mac.to_string(), case.in_force),
                        _ => vec![format!("# add `{mac}` to `mac` in [appliance.{}] of the policy", appliance.name)],
                    }),
            );
        }
    }
}
