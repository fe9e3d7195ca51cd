//! What no value shows by itself: numbers handed out, and everything that two keys
//! together make impossible.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::{Family, Mark, Networks, PortRange, Ports, Range, RulePriority, TableId};

use super::diagnostic::{Code, Diagnostic, quoted};
use super::raw::{Field, Given, Many, Networks as RawNetworks, Raw, RawAppliance, RawRedirect};
use super::reader::{Reader, join};
use super::source::Span;
use super::words::{listed, nearest};
use super::{Appliance, Options, Policy, Redirect, keys, list, value};

/// The last priority before that of the main table's rule, 32766
/// (`fib_default_rules_init` in the kernel's `net/ipv4/fib_rules.c`).
pub const LAST_PRIORITY: u32 = 32765;

/// The table of the first appliance.
const FIRST_TABLE: u32 = 103;

/// A redirect as far as it could be worked out.
struct Known<'r> {
    raw: &'r RawRedirect,
    appliance: Option<usize>,
    servers: Networks,
    ports: Ports,
    except_clients: Networks,
}

/// Checks everything together, and builds the policy if it is sound.
pub fn together(raw: &Raw, reader: &mut Reader<'_>) -> Option<Policy> {
    something_to_do(raw, reader);
    let tables = tables(raw, reader);
    let marks = marks(raw, reader);
    let priorities = priorities(raw, reader);
    for appliance in &raw.appliances {
        one_address_a_family(appliance, reader);
    }
    unique_names(raw, reader);
    let known: Vec<Known<'_>> = raw
        .redirects
        .iter()
        .map(|redirect| known(redirect, raw, reader))
        .collect();
    for redirect in &known {
        if let Some(appliance) = redirect
            .appliance
            .and_then(|index| raw.appliances.get(index))
        {
            family_without_address(redirect, appliance, reader);
            among_servers(redirect, appliance, reader);
            shared_interface(redirect, appliance, reader);
        }
    }
    overlaps(&known, raw, reader);
    shared_by_appliances(&known, raw, reader);
    chained(&known, raw, reader);
    unused(&known, raw, reader);

    let appliances = raw
        .appliances
        .iter()
        .zip(tables)
        .zip(marks.into_iter().zip(priorities))
        .map(|((appliance, table), (mark, rule_priority))| {
            Some(Appliance {
                name: appliance.name.clone()?,
                addresses: appliance
                    .addresses
                    .items
                    .iter()
                    .map(|field| field.value)
                    .collect(),
                interface: appliance.interface.good()?.value.clone(),
                macs: merged(appliance.macs.items.iter().map(|field| field.value)),
                table: table?,
                mark: mark?,
                rule_priority: rule_priority?,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    let redirects = known
        .into_iter()
        .map(|redirect| {
            let Known {
                raw,
                appliance,
                servers,
                ports,
                except_clients,
            } = redirect;
            Some(Redirect {
                name: raw.name.good()?.value.clone(),
                appliance: appliance?,
                client_interfaces: values(&raw.clients),
                server_interfaces: values(&raw.server_interfaces),
                servers,
                except_clients,
                ports,
                snat: raw.snat.good().is_some_and(|field| field.value),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Policy {
        appliances,
        redirects,
        options: raw.options.others.clone(),
    })
}

fn values<T: Clone>(many: &Many<T>) -> Vec<T> {
    many.items.iter().map(|field| field.value.clone()).collect()
}

fn merged<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<BTreeSet<_>>().into_iter().collect()
}

/// All addresses of a family.
fn everything(family: Family) -> Networks {
    let all = match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    Networks::merged([all])
}

/// An applied policy that redirects nothing would take the redirection back: that
/// must not come from an empty file.
fn something_to_do(raw: &Raw, reader: &mut Reader<'_>) {
    let end = reader.source.text.trim_end().len();
    let end = Span::of_policy(end..end);
    let none = raw.appliances.is_empty() && raw.redirects.is_empty();
    if none && raw.appliances_complete && raw.redirects_complete {
        let diagnostic = reader
            .diagnostic(
                Code::NothingToDo,
                end,
                "",
                "this policy redirects nothing: it has no appliance and no redirect",
            )
            .wanted("`[appliance.NAME]` and `[[redirect]]`, their keys below")
            .hint("take the `#` away from what you need, or let `redirect init` write a first policy; `redirect teardown` takes an applied one back");
        reader.report(diagnostic);
        return;
    }
    if raw.appliances.is_empty() && raw.appliances_complete {
        let diagnostic = reader
            .diagnostic(
                Code::NothingToDo,
                end,
                "appliance",
                "the policy has no appliance",
            )
            .wanted("`[appliance.NAME]`, its keys below");
        reader.report(diagnostic);
    }
    if raw.redirects.is_empty() && raw.redirects_complete {
        let diagnostic = reader
            .diagnostic(
                Code::NothingToDo,
                end,
                "redirect",
                "the policy redirects nothing",
            )
            .wanted("`[[redirect]]`, its keys below")
            .hint("`redirect teardown` takes an applied policy back");
        reader.report(diagnostic);
    }
}

/// The routing table of each appliance.
fn tables(raw: &Raw, reader: &mut Reader<'_>) -> Vec<Option<TableId>> {
    let mut taken: Vec<(u32, &Field<u32>, &str)> = Vec::new();
    let mut sound = Vec::with_capacity(raw.appliances.len());
    for appliance in &raw.appliances {
        let Some(field) = appliance.table.good() else {
            sound.push(None);
            continue;
        };
        let table = TableId(field.value);
        if table.is_reserved() {
            let name = match field.value {
                0 => "unspec",
                253 => "default",
                254 => "main",
                _ => "local",
            };
            let diagnostic = reader
                .diagnostic(
                    Code::TableReserved,
                    field.span,
                    field.key.as_str(),
                    format!("table {table} is the kernel's own `{name}`"),
                )
                .wanted("any number but 0, 253, 254 and 255")
                .hint("leave the key out to get 103, 104, … in order of appearance");
            reader.report(diagnostic);
            sound.push(None);
        } else if let Some((_, other, name)) =
            taken.iter().find(|(number, ..)| *number == field.value)
        {
            let diagnostic = reader
                .diagnostic(
                    Code::TableTwice,
                    field.span,
                    field.key.as_str(),
                    format!("table {table} is that of appliance `{name}`"),
                )
                .wanted("a table of its own")
                .related(reader.source, other.span, format!("table {table} here"));
            reader.report(diagnostic);
            sound.push(None);
        } else {
            taken.push((field.value, field, &appliance.typed));
            sound.push(Some(table));
        }
    }
    let mut free = (FIRST_TABLE..=u32::MAX).map(TableId).filter(|table| {
        !table.is_reserved() && taken.iter().all(|(number, ..)| *number != table.0)
    });
    raw.appliances
        .iter()
        .zip(sound)
        .map(|(appliance, table)| match appliance.table {
            Given::Missing => free.next(),
            _ => table,
        })
        .collect()
}

/// `number` in the bits of `mask`, lowest first: 1 under 0xff00 is 0x100. `None` if it has no room.
fn spread(number: u32, mask: u32) -> Option<u32> {
    let mut left = number;
    let mut spread = 0;
    for bit in (0..u32::BITS).map(|shift| 1_u32 << shift) {
        if mask & bit != 0 {
            if left & 1 == 1 {
                spread |= bit;
            }
            left >>= 1;
        }
    }
    (left == 0).then_some(spread)
}

/// The mark of each appliance.
fn marks(raw: &Raw, reader: &mut Reader<'_>) -> Vec<Option<Mark>> {
    let mark_mask = match &raw.options.mark_mask {
        // Nothing can be said without the mask.
        Given::Bad => return vec![None; raw.appliances.len()],
        Given::Missing => Options::default().mark_mask,
        Given::Good(field) => field.value,
    };
    let mut taken: Vec<(Mark, &Field<u32>, &str)> = Vec::new();
    let mut explicit = Vec::with_capacity(raw.appliances.len());
    for appliance in &raw.appliances {
        let Some(field) = appliance.mark.good() else {
            explicit.push(None);
            continue;
        };
        let mark = Mark::new(field.value, mark_mask);
        let complaint = match mark {
            None => Some(mark_outside_mask(field, mark_mask, raw, reader)),
            Some(mark) => {
                taken
                    .iter()
                    .find(|(other, ..)| *other == mark)
                    .map(|(_, other, name)| {
                        reader
                            .diagnostic(
                                Code::MarkTwice,
                                field.span,
                                field.key.as_str(),
                                format!("mark {:#x} is that of appliance `{name}`", field.value),
                            )
                            .wanted("a mark of its own")
                            .related(reader.source, other.span, "the same mark")
                    })
            }
        };
        match (mark, complaint) {
            (Some(mark), None) => {
                taken.push((mark, field, &appliance.typed));
                explicit.push(Some(mark));
            }
            (_, complaint) => {
                if let Some(complaint) = complaint {
                    reader.report(complaint);
                }
                explicit.push(None);
            }
        }
    }
    let mut free = (1..=u32::MAX)
        .map_while(|number| Mark::new(spread(number, mark_mask)?, mark_mask))
        .filter(|mark| taken.iter().all(|(other, ..)| other != mark));
    let marks: Vec<_> = raw
        .appliances
        .iter()
        .zip(explicit)
        .map(|(appliance, mark)| match appliance.mark {
            Given::Missing => free.next(),
            _ => mark,
        })
        .collect();
    let full = raw
        .appliances
        .iter()
        .zip(&marks)
        .find(|(appliance, mark)| mark.is_none() && matches!(appliance.mark, Given::Missing));
    if let Some((appliance, _)) = full {
        let given = raw.options.mark_mask.good();
        let room = (1_u64 << mark_mask.count_ones()) - 1;
        let diagnostic = reader
            .diagnostic(
                Code::MaskTooSmall,
                given.map_or(appliance.span, |given| given.span),
                "options.mark_mask",
                format!(
                    "the mask {mark_mask:#x} has room for {room} {}, there are {} appliances",
                    if room == 1 { "mark" } else { "marks" },
                    raw.appliances.len()
                ),
            )
            .wanted("a mask with more bits");
        reader.report(diagnostic);
    }
    marks
}

fn mark_outside_mask(
    field: &Field<u32>,
    mark_mask: u32,
    raw: &Raw,
    reader: &Reader<'_>,
) -> Diagnostic {
    let mut diagnostic = reader
        .diagnostic(
            Code::MarkOutsideMask,
            field.span,
            field.key.as_str(),
            if field.value == 0 {
                "mark 0 is what packets without a mark have".to_owned()
            } else {
                format!(
                    "mark {:#x} has bits outside the mask {mark_mask:#x}",
                    field.value
                )
            },
        )
        .wanted(format!("bits of {mark_mask:#x}, at least one"));
    if let Some(given) = raw.options.mark_mask.good() {
        diagnostic = diagnostic.related(reader.source, given.span, "the mask");
    }
    match spread(field.value, mark_mask) {
        Some(better) if better != 0 => diagnostic.hint(format!(
            "`mark = {better:#x}`, or a `mark_mask` in `[options]` that has these bits"
        )),
        _ => diagnostic.hint("leave the key out to get one that fits"),
    }
}

/// The rule priority of each appliance.
fn priorities(raw: &Raw, reader: &mut Reader<'_>) -> Vec<Option<RulePriority>> {
    let first = match &raw.options.rule_priority {
        Given::Bad => return vec![None; raw.appliances.len()],
        Given::Missing => Options::default().rule_priority.0,
        Given::Good(field) => field.value,
    };
    let priorities: Vec<_> = (0..raw.appliances.len())
        .map(|index| {
            u32::try_from(index)
                .ok()
                .and_then(|index| first.checked_add(index))
                .filter(|priority| *priority <= LAST_PRIORITY)
                .map(RulePriority)
        })
        .collect();
    if priorities.contains(&None) {
        let span = raw
            .options
            .rule_priority
            .good()
            .map(|field| field.span)
            .or(raw.options.span)
            .unwrap_or(Span::of_policy(0..0));
        let needed = raw.appliances.len();
        let diagnostic = reader
            .diagnostic(
                Code::PriorityTooHigh,
                span,
                "options.rule_priority",
                format!("{needed} rules from {first} on reach the main table's, which has 32766"),
            )
            .wanted(format!(
                "at most {}",
                LAST_PRIORITY.saturating_sub(u32::try_from(needed).unwrap_or(u32::MAX)) + 1
            ));
        reader.report(diagnostic);
    }
    priorities
}

fn one_address_a_family(appliance: &RawAppliance, reader: &mut Reader<'_>) {
    for family in Family::ALL {
        let mut of_family = appliance
            .addresses
            .items
            .iter()
            .filter(|field| Family::of(field.value) == family);
        let Some(first) = of_family.next() else {
            continue;
        };
        for second in of_family {
            let diagnostic = reader
                .diagnostic(
                    Code::TwoAddresses,
                    second.span,
                    second.key.as_str(),
                    format!(
                        "a second {family} address for appliance `{}`",
                        appliance.typed
                    ),
                )
                .wanted("at most one of each family")
                .related(reader.source, first.span, "the first")
                .hint("two appliances are two tables, `[appliance.NAME]` each");
            reader.report(diagnostic);
        }
    }
}

fn unique_names(raw: &Raw, reader: &mut Reader<'_>) {
    let mut seen: Vec<&Field<_>> = Vec::new();
    for name in raw
        .redirects
        .iter()
        .filter_map(|redirect| redirect.name.good())
    {
        if let Some(first) = seen.iter().find(|first| first.value == name.value) {
            let diagnostic = reader
                .diagnostic(
                    Code::NameTwice,
                    name.span,
                    name.key.as_str(),
                    format!("a second redirect called `{}`", name.value),
                )
                .wanted("a name of its own")
                .related(reader.source, first.span, "the first");
            reader.report(diagnostic);
        } else {
            seen.push(name);
        }
    }
}

/// Works a redirect out: its appliance, its networks with the exceptions taken out.
fn known<'r>(redirect: &'r RawRedirect, raw: &Raw, reader: &mut Reader<'_>) -> Known<'r> {
    let all = redirect.servers.merged();
    let except = redirect.except_servers.merged();
    let servers = all.without(&except);
    let clients = redirect.except_clients.merged();
    for family in Family::ALL {
        if !redirect.servers.complete || all.is_empty_of(family) {
            continue;
        }
        let what = |whose: &str| {
            let of_family = if Family::ALL.iter().any(|other| all.is_empty_of(*other)) {
                String::new()
            } else {
                format!("{family} ")
            };
            format!(
                "this leaves no {of_family}{whose} for {}",
                redirect.called()
            )
        };
        let many = &redirect.except_servers;
        if servers.is_empty_of(family) {
            let diagnostic = reader
                .diagnostic(
                    Code::NothingLeft,
                    many.span,
                    many.key.as_str(),
                    what("server"),
                )
                .wanted("less than all of `server_network`")
                .related(reader.source, redirect.servers.span, "all of these");
            reader.report(diagnostic);
        }
        let many = &redirect.except_clients;
        if everything(family).without(&clients).is_empty() {
            let diagnostic = reader
                .diagnostic(
                    Code::NothingLeft,
                    many.span,
                    many.key.as_str(),
                    what("client"),
                )
                .wanted("less than all addresses that there are");
            reader.report(diagnostic);
        }
    }
    if redirect.servers.complete {
        for field in &redirect.except_servers.items {
            let excepted = field.value.merged();
            if excepted.v4.overlap(&all.v4).is_none() && excepted.v6.overlap(&all.v6).is_none() {
                let diagnostic = reader
                    .diagnostic(
                        Code::IdleException,
                        field.span,
                        field.key.as_str(),
                        "this excepts nothing: it is not in `server_network`",
                    )
                    .related(reader.source, redirect.servers.span, "not in here");
                reader.report(diagnostic);
            }
        }
    }
    Known {
        raw: redirect,
        appliance: appliance_of(redirect, raw, reader),
        servers,
        ports: Ports::merged(values::<PortRange>(&redirect.ports)),
        except_clients: clients,
    }
}

fn appliance_of(redirect: &RawRedirect, raw: &Raw, reader: &mut Reader<'_>) -> Option<usize> {
    let names = || {
        raw.appliances
            .iter()
            .map(|appliance| appliance.typed.as_str())
    };
    match &redirect.appliance {
        Given::Bad => None,
        Given::Good(field) => {
            let found = names().position(|name| name == field.value);
            if found.is_none() && raw.appliances_complete {
                let message = match field.value.as_str() {
                    "" => "an empty text names no appliance".to_owned(),
                    typed => format!("there is no appliance {}", quoted(typed)),
                };
                let mut diagnostic = reader.diagnostic(
                    Code::UnknownAppliance,
                    field.span,
                    field.key.as_str(),
                    message,
                );
                if !raw.appliances.is_empty() {
                    diagnostic = diagnostic.wanted(listed(names()).replace(" and ", " or "));
                }
                diagnostic.hint = Some(appliance_hint(&field.value, raw));
                reader.report(diagnostic);
            }
            found
        }
        Given::Missing if raw.appliances.len() > 1 => {
            let diagnostic = reader
                .diagnostic(
                    Code::WhichAppliance,
                    redirect.span,
                    format!("{}.{}", redirect.key, keys::APPLIANCE.name),
                    format!("which appliance records {}?", redirect.called()),
                )
                .wanted(format!(
                    "`appliance = \"{}\"`, or another",
                    names().next().unwrap_or_default()
                ))
                .hint(format!("there are {}", listed(names())));
            reader.report(diagnostic);
            None
        }
        Given::Missing => (raw.appliances.len() == 1).then_some(0),
    }
}

/// What to write instead of `typed`, which names no appliance.
fn appliance_hint(typed: &str, raw: &Raw) -> String {
    let names = || {
        raw.appliances
            .iter()
            .map(|appliance| appliance.typed.as_str())
    };
    let by_address = typed.parse().ok().and_then(|address: IpAddr| {
        raw.appliances.iter().find(|appliance| {
            let mut addresses = appliance.addresses.items.iter();
            addresses.any(|field| field.value == address)
        })
    });
    if let Some(appliance) = by_address {
        return format!("appliances go by their names: `\"{}\"`", appliance.typed);
    }
    if let Some(near) = nearest(typed, names()) {
        return format!("did you mean `{near}`?");
    }
    match (raw.appliances.as_slice(), value::appliance_name(typed)) {
        ([_], Err(_)) => "there is only one: the key may be left out".to_owned(),
        (_, Ok(name)) => format!(
            "`[{}]` describes an appliance, with at least `address` and `interface`",
            join("appliance", name.as_str())
        ),
        _ => "the names are those in the headers, `[appliance.NAME]`".to_owned(),
    }
}

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

fn family_without_address(redirect: &Known<'_>, appliance: &RawAppliance, reader: &mut Reader<'_>) {
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

fn among_servers(redirect: &Known<'_>, appliance: &RawAppliance, reader: &mut Reader<'_>) {
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
fn shared_interface(redirect: &Known<'_>, appliance: &RawAppliance, reader: &mut Reader<'_>) {
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
fn overlaps(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
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
fn shared_by_appliances(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
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
fn chained(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
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

fn unused(known: &[Known<'_>], raw: &Raw, reader: &mut Reader<'_>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_in_the_bits_of_the_mask() {
        assert_eq!(spread(1, 0xff), Some(1));
        assert_eq!(spread(3, 0xff00), Some(0x300));
        assert_eq!(spread(3, 0b1001), Some(0b1001));
        assert_eq!(spread(4, 0b1001), None);
        assert_eq!(spread(u32::MAX, u32::MAX), Some(u32::MAX));
    }
}
