//! What goes through the redirects right now: counters, connections, neighbours.

use std::collections::BTreeMap;

use super::KernelError;
use super::conntrack::Conntrack;
use super::route::NeighbourState;
use super::router::Router;
use crate::iptables::parse::Counted;
use crate::net::Family;
use crate::observation::Observed;
use crate::policy::Policy;
use crate::render::status::{
    ApplianceNumbers, NextHop, Numbers, RedirectNumbers, Traffic, comments,
};
use crate::rules::{seal_comment, sent_comment};

/// Reads all numbers of `policy`, which is in force.
///
/// # Errors
/// If counters or neighbours cannot be read.
pub fn numbers(
    policy: &Policy,
    observed: &Observed,
    router: &mut Router,
) -> Result<Numbers, KernelError> {
    let counted = counters(policy, observed, router)?;
    let of = |comment: &str| counted.get(comment).copied().unwrap_or_default();
    let mut numbers = Numbers::default();
    let connections = connections(policy).ok();
    for (index, redirect) in policy.redirects.iter().enumerate() {
        let (clients, appliance) = comments(redirect);
        numbers.redirects.push(RedirectNumbers {
            redirect: redirect.name.to_string(),
            taken: of(&clients).packets,
            dialled: appliance.map(|comment| of(&comment).packets),
            connections: connections
                .as_ref()
                .map(|counted| counted.get(index).cloned().unwrap_or_default()),
        });
    }
    for (index, appliance) in policy.appliances.iter().enumerate() {
        let neighbours = match observed.link(&appliance.interface) {
            Some(link) => router.routing().neighbours(link)?,
            None => Vec::new(),
        };
        let next_hops = appliance
            .addresses
            .iter()
            .filter(|address| policy.uses(index, Family::of(**address)))
            .map(|address| {
                let found = neighbours.iter().find(|found| found.address == *address);
                NextHop {
                    address: *address,
                    interface: appliance.interface.to_string(),
                    state: found.map(|found| state(found.state).to_owned()),
                    usable: found.map(|found| found.state.is_usable()),
                }
            });
        numbers.appliances.push(ApplianceNumbers {
            appliance: appliance.name.to_string(),
            sent: of(&sent_comment(appliance)),
            sealed: of(&seal_comment(appliance)),
            next_hops: next_hops.collect(),
        });
    }
    Ok(numbers)
}

/// By redirect and appliance: connections that are open. One keeps the appliance that it began
/// with, also when its redirect has another now.
fn connections(policy: &Policy) -> Result<Vec<BTreeMap<String, usize>>, KernelError> {
    let mut counted = vec![BTreeMap::new(); policy.redirects.len()];
    for (index, redirect) in policy.redirects.iter().enumerate() {
        if let (Some(counts), Some(appliance)) =
            (counted.get_mut(index), policy.appliance_of(redirect))
        {
            counts.insert(appliance.name.to_string(), 0);
        }
    }
    let mut connections = Conntrack::open()?;
    for appliance in &policy.appliances {
        connections.count(Some(appliance.mark), |connection| {
            if connection.is_established_tcp() {
                for (redirect, counts) in policy.redirects.iter().zip(&mut counted) {
                    if redirect.servers.contains(connection.destination)
                        && redirect.ports.contains(connection.destination_port)
                    {
                        *counts.entry(appliance.name.to_string()).or_default() += 1;
                    }
                }
            }
            false
        })?;
    }
    Ok(counted)
}

fn state(state: NeighbourState) -> &'static str {
    match state {
        NeighbourState::Incomplete => "incomplete",
        NeighbourState::Reachable => "reachable",
        NeighbourState::Stale => "stale",
        NeighbourState::Delay => "delay",
        NeighbourState::Probe => "probe",
        NeighbourState::Failed => "failed",
        NeighbourState::NoArp => "noarp",
        NeighbourState::Permanent => "permanent",
        NeighbourState::Other(_) => "unknown",
    }
}

/// What our rules counted, by comment, whichever packet filter holds them.
fn counters(
    policy: &Policy,
    observed: &Observed,
    router: &mut Router,
) -> Result<BTreeMap<String, Traffic>, KernelError> {
    let mut counted: BTreeMap<String, Traffic> = BTreeMap::new();
    let mut add = |comment: &str, packets: u64, bytes: u64| {
        let sum = counted.entry(comment.to_owned()).or_default();
        sum.packets += packets;
        sum.bytes += bytes;
    };
    if observed.nftables.is_some()
        && let Some(packets) = router.packets()
    {
        for (_, comment, count) in packets.counters()?.iter() {
            if let Some(comment) = comment {
                add(comment, count.packets, count.bytes);
            }
        }
    }
    for counter in router.xtables().counters() {
        let comment = match &counter.rule {
            Counted::Comment(comment) => Some(comment.clone()),
            Counted::Sent(mark) => (policy.appliances.iter())
                .find(|appliance| appliance.mark == *mark)
                .map(sent_comment),
        };
        if let Some(comment) = comment {
            add(&comment, counter.packets, counter.bytes);
        }
    }
    Ok(counted)
}
