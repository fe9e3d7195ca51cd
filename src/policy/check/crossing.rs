//! Redirects that do not go with their appliance, or with one another.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::diagnostic::{Code, Diagnostic};
use super::super::raw::{Many, Networks as RawNetworks, Raw, RawAppliance};
use super::super::reader::Reader;
use super::super::source::Span;
use super::super::{list, value};
use super::Known;
use crate::net::{Family, Networks, Range};

/// Where in the policy, or in a list file, the network stands for which `wanted` holds.
fn place_of(
    many: &Many<RawNetworks>,
    reader: &Reader<'_>,
    wanted: impl Fn(&IpNet) -> bool,
) -> Option<(Span, String)> {
    many.items.iter().find_map(|field| match &field.value {
        RawNetworks::One(network) => wanted(network).then(|| (field.span, field.key.clone())),
        RawNetworks::File(_, file) => list::texts(reader.source.text_of(*file))
            .find(|(_, line)| value::network(line).is_ok_and(|network| wanted(&network)))
            .map(|(start, line)| {
                let span = Span {
                    file: *file,
                    start,
                    end: start + line.len(),
                };
                (span, field.key.clone())
            }),
    })
}

fn family_of(network: &IpNet) -> Family {
    Family::of(network.addr())
}

pub(super) fn family_without_address(
    redirect: &Known<'_>,
    appliance: &RawAppliance,
    reader: &mut Reader<'_>,
) {
    if !appliance.addresses.complete {
        return;
    }
    for family in Family::ALL {
        let lacking = appliance
            .addresses
            .items
            .iter()
            .all(|field| Family::of(field.value) != family);
        if !lacking || redirect.servers.is_empty_of(family) {
            continue;
        }
        let Some((span, key)) = place_of(&redirect.raw.servers, reader, |network| {
            family_of(network) == family
        }) else {
            continue;
        };
        let (example, other) = match family {
            Family::V4 => ("10.30.0.2", "`address`"),
            Family::V6 => ("fd00:30::2", "`address`"),
        };
        let diagnostic = reader
            .diagnostic(
                Code::NoAddressOfFamily,
                span,
                key,
                format!(
                    "{} has {family} servers, but appliance `{}` has no {family} address",
                    redirect.raw.called(),
                    appliance.typed
                ),
            )
            .wanted(format!(
                "no {family} network, or an {family} address for the appliance"
            ))
            .related(
                reader.source,
                appliance.addresses.span,
                format!("no {family} address here"),
            )
            .hint(format!(
                "add the appliance's {family} address, such as `\"{example}\"`, to {other}"
            ));
        reader.report(diagnostic);
    }
}

pub(super) fn among_servers(
    redirect: &Known<'_>,
    appliance: &RawAppliance,
    reader: &mut Reader<'_>,
) {
    for address in &appliance.addresses.items {
        if !redirect.servers.contains(address.value) {
            continue;
        }
        let Some((span, key)) = place_of(&redirect.raw.servers, reader, |network| {
            network.contains(&address.value)
        }) else {
            continue;
        };
        let diagnostic = reader
            .diagnostic(
                Code::ApplianceAmongServers,
                span,
                key,
                format!(
                    "appliance `{}` stands among the servers of {}",
                    appliance.typed,
                    redirect.raw.called()
                ),
            )
            .wanted(format!("networks without {}", address.value))
            .related(reader.source, address.span, "the appliance")
            .hint(format!(
                "`except_server = \"{}\"` takes it out",
                address.value
            ));
        reader.report(diagnostic);
    }
}

/// On an interface that the appliance shares with others, only its MAC addresses tell who sent a packet.
pub(super) fn shared_interface(
    redirect: &Known<'_>,
    appliance: &RawAppliance,
    reader: &mut Reader<'_>,
) {
    if !appliance.macs.items.is_empty() || !appliance.macs.complete {
        return;
    }
    let Some(interface) = appliance.interface.good() else {
        return;
    };
    let snat = redirect.raw.snat.good().is_some_and(|snat| snat.value);
    let sides = [
        (Some(&redirect.raw.clients), "clients"),
        (snat.then_some(&redirect.raw.server_interfaces), "servers"),
    ];
    for (side, who) in sides {
        let shared = side
            .into_iter()
            .flat_map(|side| &side.items)
            .find(|field| field.value.matches(&interface.value));
        let Some(field) = shared else { continue };
        let diagnostic = reader
            .diagnostic(
                Code::SharedInterface,
                field.span,
                field.key.as_str(),
                format!(
                    "`{}` leads to {who} and to appliance `{}`: the router could not tell who sent a packet",
                    interface.value, appliance.typed
                ),
            )
            .wanted(format!("another interface, or `mac` in `[appliance.{}]`", appliance.typed))
            .related(reader.source, interface.span, "the appliance's interface")
            .hint(format!(
                "`ip neigh show dev {}` shows the appliance's MAC address",
                interface.value
            ));
        reader.report(diagnostic);
    }
}

/// Two redirects that would take the same session to different appliances.
pub(super) fn overlaps(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
    for (index, second) in known.iter().enumerate() {
        for first in known.iter().take(index) {
            let (Some(one), Some(two)) = (first.appliance, second.appliance) else {
                continue;
            };
            if one == two {
                continue;
            }
            let interfaces = second.raw.clients.items.iter().find_map(|two| {
                first
                    .raw
                    .clients
                    .items
                    .iter()
                    .find(|one| one.value.overlaps(&two.value))
                    .map(|one| {
                        if one.value.covers(&two.value) {
                            &two.value
                        } else {
                            &one.value
                        }
                    })
            });
            let (Some(interface), Some(network), Some(ports)) = (
                interfaces,
                common_network(&first.servers, &second.servers),
                first.ports.overlap(&second.ports),
            ) else {
                continue;
            };
            let name = |index: usize| {
                raw.appliances
                    .get(index)
                    .map_or("", |appliance| appliance.typed.as_str())
            };
            let diagnostic = reader
                .diagnostic(
                    Code::Overlap,
                    second.raw.servers.span,
                    second.raw.servers.key.as_str(),
                    format!(
                        "{} and {} both take sessions from `{interface}` to {network}, port {ports}, but `{}` would record the one, `{}` the other",
                        first.raw.called(),
                        second.raw.called(),
                        name(one),
                        name(two),
                    ),
                )
                .wanted("interfaces, networks or ports that do not overlap")
                .related(reader.source, first.raw.servers.span, format!("those of {}", first.raw.called()))
                .hint(format!("`except_server` in one of them takes {network} out of it"));
            reader.report(diagnostic);
        }
    }
}

/// The first network that is in both, for a message.
fn common_network(one: &Networks, two: &Networks) -> Option<String> {
    fn shown<T: Copy>(
        range: Range<T>,
        address: impl Fn(T) -> IpAddr,
        prefixes: &[IpNet],
    ) -> String {
        match prefixes {
            [one] => format!("`{one}`"),
            _ => format!("`{}` to `{}`", address(range.first), address(range.last)),
        }
    }
    one.v4
        .overlap(&two.v4)
        .map(|range| {
            shown(
                range,
                |bits| Family::V4.address(bits.into()),
                &range.prefixes(),
            )
        })
        .or_else(|| {
            one.v6
                .overlap(&two.v6)
                .map(|range| shown(range, |bits| Family::V6.address(bits), &range.prefixes()))
        })
}

/// Two appliances on one interface: with `snat`, what one of them sends to a server is told from what
/// the other sends by networks and ports, or by MAC address, or not at all.
pub(super) fn shared_by_appliances(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
    for (index, second) in raw.appliances.iter().enumerate() {
        for (before, first) in raw.appliances.iter().enumerate().take(index) {
            let (Some(one), Some(two)) = (first.interface.good(), second.interface.good()) else {
                continue;
            };
            let complete = first.macs.complete && second.macs.complete;
            if one.value != two.value || !complete {
                continue;
            }
            let tells = |own: &RawAppliance, other: &RawAppliance| {
                !own.macs.items.is_empty()
                    && own.macs.items.iter().all(|mac| {
                        other
                            .macs
                            .items
                            .iter()
                            .all(|theirs| theirs.value != mac.value)
                    })
            };
            let clash = |index: usize, other: usize| {
                known
                    .iter()
                    .filter(|redirect| redirect.appliance == Some(index))
                    .filter(|redirect| redirect.raw.snat.good().is_some_and(|snat| snat.value))
                    .find_map(|redirect| {
                        known
                            .iter()
                            .filter(|theirs| theirs.appliance == Some(other))
                            .find(|theirs| {
                                redirect.ports.overlap(&theirs.ports).is_some()
                                    && common_network(&redirect.servers, &theirs.servers).is_some()
                            })
                            .map(|theirs| (redirect, theirs))
                    })
            };
            let found = clash(index, before)
                .filter(|_| !tells(second, first))
                .or_else(|| clash(before, index).filter(|_| !tells(first, second)));
            let Some((redirect, theirs)) = found else {
                continue;
            };
            let diagnostic: Diagnostic = reader
                .diagnostic(
                    Code::SharedInterface,
                    two.span,
                    two.key.as_str(),
                    format!(
                        "appliances `{}` and `{}` share `{}` and dial the same servers ({}, {}): the router could not tell who sent a packet",
                        first.typed,
                        second.typed,
                        two.value,
                        redirect.raw.called(),
                        theirs.raw.called()
                    ),
                )
                .wanted("another interface, or `mac` for both appliances")
                .related(reader.source, one.span, "the same interface")
                .hint(format!("`ip neigh show dev {}` shows their MAC addresses", two.value));
            reader.report(diagnostic);
        }
    }
}

/// What an appliance sends to a server comes in on its own interface; a redirect through another
/// appliance that has this interface among those of its clients takes it for a client's.
pub(super) fn chained(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
    for second in known {
        for first in known {
            let (Some(one), Some(two)) = (first.appliance, second.appliance) else {
                continue;
            };
            let (Some(sender), Some(recorder)) = (raw.appliances.get(one), raw.appliances.get(two))
            else {
                continue;
            };
            let Some(interface) = sender.interface.good().filter(|_| one != two) else {
                continue;
            };
            let taken = second
                .raw
                .clients
                .items
                .iter()
                .find(|field| field.value.matches(&interface.value));
            let (Some(field), Some(network), Some(ports)) = (
                taken,
                common_network(&first.servers, &second.servers),
                first.ports.overlap(&second.ports),
            ) else {
                continue;
            };
            let dials_as_client = first.raw.snat.good().is_some_and(|snat| snat.value);
            // What the second sends back to a client's address goes to the client, and not to
            // the first, which dialled with it.
            let (code, outcome) = if dials_as_client {
                (Code::Overlap, "is recorded by it, and would go on")
            } else {
                (Code::Chained, "goes on")
            };
            let diagnostic = reader
                .diagnostic(
                    code,
                    field.span,
                    field.key.as_str(),
                    format!(
                        "what appliance `{}` sends from `{}` to {network}, port {ports}, {outcome} to appliance `{}`",
                        sender.typed, interface.value, recorder.typed
                    ),
                )
                .related(reader.source, interface.span, format!("the interface of `{}`", sender.typed))
                .hint("name the clients' interfaces one by one, without this one");
            reader.report(diagnostic);
        }
    }
}

pub(super) fn unused(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
    // A redirect whose appliance could not be told may mean any.
    if !raw.redirects_complete
        || raw.redirects.is_empty()
        || known.iter().any(|redirect| redirect.appliance.is_none())
    {
        return;
    }
    for (index, appliance) in raw.appliances.iter().enumerate() {
        if known
            .iter()
            .all(|redirect| redirect.appliance != Some(index))
        {
            let diagnostic = reader.diagnostic(
                Code::UnusedAppliance,
                appliance.span,
                appliance.key.as_str(),
                format!("no redirect uses appliance `{}`", appliance.typed),
            );
            reader.report(diagnostic);
        }
    }
}
