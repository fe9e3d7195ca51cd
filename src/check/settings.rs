//! Settings under `/proc/sys`: forwarding, reverse path filters, ICMP redirects.

use super::legs::Number;
use super::packets::{Refused, refuse};
use super::{Case, Explained, Finding, Subject, families};
use crate::check::foreign::Hook;
use crate::check::foreign::walk::{self, Ours, Traveller};
use crate::net::{Family, IfName};
use crate::plan::planner;
use crate::policy::Appliance;

const STRICT: i64 = 1;

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    forwarding(case, findings, explained);
    appliance_rp_filter(case, findings, explained);
    src_valid_mark(case, findings, explained);
    redirects(case, findings);
}

/// A router that does not forward redirects nothing.
fn forwarding(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    for (index, asked) in case.surroundings.asked.iter().enumerate() {
        let family = asked.session.family;
        for leg in &asked.legs {
            let Some(input) = &leg.question.input else {
                continue;
            };
            if case.surroundings.forwards(family, input) {
                continue;
            }
            explained.insert(index, leg.number, "forwarding-off");
            let value = |path: &str| case.surroundings.settings.get(path).copied();
            let whole = match family {
                Family::V4 => "net/ipv4/ip_forward",
                Family::V6 => "net/ipv6/conf/all/forwarding",
            };
            let (path, subject) = if family == Family::V6 || value(whole) == Some(0) {
                (whole.to_owned(), Subject::Router)
            } else {
                (
                    format!("net/ipv4/conf/{input}/forwarding"),
                    Subject::Interface(input.to_string()),
                )
            };
            findings.push(
                Finding::error("forwarding-off", subject)
                    .found(format!("{path} is 0"))
                    .why(format!("the router forwards no {family} packet that comes in on `{input}`: no session would get through"))
                    .mend(format!("sysctl -w {path}=1")),
            );
        }
    }
}

/// What the appliance sends with others' addresses comes in on the wrong interface, in the eyes
/// of a strict filter.
fn appliance_rp_filter(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    for (index, family) in families(case.policy) {
        let Some(appliance) = case.policy.appliances.get(index) else {
            continue;
        };
        let interface = &appliance.interface;
        if family == Family::V6 || case.in_force_at(interface, "rp_filter") != STRICT {
            continue;
        }
        let suffers = |asked: &super::legs::Asked| {
            asked.session.family == Family::V4
                && case
                    .policy
                    .redirects
                    .get(asked.session.redirect)
                    .is_some_and(|redirect| redirect.appliance == index)
                // On a shared interface, clients and servers are where the filter expects them.
                && asked.client_interface.as_ref() != Some(interface)
        };
        let mut any = false;
        for (at, asked) in case.surroundings.asked.iter().enumerate() {
            if suffers(asked) || asked.server_interface.as_ref() != Some(interface) {
                explained.insert(at, Number::ApplianceToServer, "rp-filter-strict");
                explained.insert(at, Number::ApplianceToClient, "rp-filter-strict");
                any = true;
            }
        }
        if !any && !case.surroundings.asked.is_empty() {
            continue;
        }
        let value = |name: &str| {
            case.setting(&format!("net/ipv4/conf/{name}/rp_filter"))
                .unwrap_or(0)
        };
        findings.push(
            Finding::error("rp-filter-strict", Subject::Interface(interface.to_string()))
                .found(format!(
                    "net/ipv4/conf/all/rp_filter is {}, net/ipv4/conf/{interface}/rp_filter is {}; the greater counts, and 1 is strict",
                    value("all"),
                    value(interface.as_str())
                ))
                .why("the appliance sends with the addresses of servers and clients, which are not behind this interface: the kernel drops that without a word, and sessions hang")
                .mend(format!("sysctl -w net/ipv4/conf/{interface}/rp_filter=2")),
        );
    }
}

/// With `src_valid_mark`, a marked packet's source is looked up with its mark, which leads to the
/// appliance and not to where the packet came from.
fn src_valid_mark(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    for (index, asked) in case.surroundings.asked.iter().enumerate() {
        if asked.session.family == Family::V6 {
            continue;
        }
        for leg in &asked.legs {
            let (Some(input), true) = (&leg.question.input, leg.question.mark != 0) else {
                continue;
            };
            let trouble = case.in_force_at(input, "src_valid_mark") != 0
                && case.in_force_at(input, "rp_filter") == STRICT
                && *input != leg.expected.interface;
            if !trouble {
                continue;
            }
            explained.insert(index, leg.number, "src-valid-mark");
            let at = |name: &str| {
                let path = format!("net/ipv4/conf/{name}/src_valid_mark");
                (case.setting(&path).unwrap_or(0) != 0).then_some(path)
            };
            let path = at("all").or_else(|| at(input.as_str())).unwrap_or_default();
            findings.push(
                Finding::error("src-valid-mark", Subject::Interface(input.to_string()))
                    .found(format!("{path} is 1, and reverse path filtering on `{input}` is strict"))
                    .why(format!("the kernel then looks for the source of a marked packet by its mark, finds the appliance and not `{input}`, and drops every redirected packet without a word"))
                    .owner(Some("wg-quick, Mullvad and Tailscale set it"))
                    .mend(format!("sysctl -w net/ipv4/conf/{input}/rp_filter=2")),
            );
        }
    }
}

/// A packet that leaves by the interface it came in on makes the kernel tell its sender of a
/// shorter way, past the router.
fn redirects(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for redirect in &case.policy.redirects {
        let Some(appliance) = case.policy.appliance_of(redirect) else {
            continue;
        };
        let interface = &appliance.interface;
        let with_clients = redirect
            .client_interfaces
            .iter()
            .any(|pattern| pattern.matches(interface));
        let with_servers =
            redirect.snat && planner::shares_with_servers(appliance, redirect, case.observed);
        if !with_clients && !with_servers {
            continue;
        }
        let who = if with_clients { "clients" } else { "servers" };
        let why = format!(
            "the appliance shares `{interface}` with {who}: the router tells them to send to the appliance directly, all sessions to that address and not only redirected ones, past its own rules"
        );
        if !redirect.servers.v4.is_empty() && appliance.address(Family::V4).is_some() {
            let on: Vec<String> = ["all", interface.as_str()]
                .into_iter()
                .map(|name| format!("net/ipv4/conf/{name}/send_redirects"))
                .filter(|path| case.setting(path).unwrap_or(0) != 0)
                .collect();
            if !on.is_empty() {
                findings.push(
                    Finding::error("icmp-redirects", Subject::Interface(interface.to_string()))
                        .found(format!("{} is 1", on.join(" and ")))
                        .why(why.clone())
                        .mends(on.iter().map(|path| format!("sysctl -w {path}=0"))),
                );
            }
        }
        if !redirect.servers.v6.is_empty()
            && appliance.address(Family::V6).is_some()
            && sends_icmpv6_redirects(case, appliance, interface)
        {
            findings.push(
                Finding::warning("icmpv6-redirects", Subject::Interface(interface.to_string()))
                    .found(format!("the router sends ICMPv6 redirects on `{interface}`; IPv6 has no setting against it"))
                    .why(why)
                    .mend(refuse(case, &Refused {
                        hook: Hook::Output,
                        nft: format!("oifname \"{interface}\" icmpv6 type nd-redirect drop"),
                        iptables: format!("-o {interface} -p icmpv6 --icmpv6-type redirect -j DROP"),
                    })),
            );
        }
    }
}

struct Nobody;

impl Ours for Nobody {
    fn act(&mut self, _: Hook, _: &mut Traveller) -> bool {
        true
    }
}

/// Whether a redirect that the router sends gets out.
fn sends_icmpv6_redirects(case: &Case<'_>, appliance: &Appliance, interface: &IfName) -> bool {
    let Some(address) = appliance.address(Family::V6) else {
        return false;
    };
    let mut traveller = Traveller {
        input: None,
        output: Some(interface.clone()),
        source: address,
        destination: address,
        to_router: false,
        protocol: 58,
        ports: None,
        icmp_type: Some(super::foreign::nft::REDIRECT),
        flags: 0,
        state: super::foreign::State::Untracked,
        mac: None,
        way_back: None,
        mark: 0,
        connection_mark: 0,
    };
    let mut events = Vec::new();
    walk::pass(
        &case.surroundings.rules,
        Hook::Output,
        &mut traveller,
        &mut Nobody,
        &mut events,
    )
}
