//! What no value shows by itself: numbers handed out, and everything that two keys
//! together make impossible.

mod crossing;
mod numbers;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crossing::{
    among_servers, chained, family_without_address, overlaps, shared_by_appliances,
    shared_interface, unused,
};
use ipnet::IpNet;
use numbers::{marks, priorities, tables};

use super::diagnostic::{Code, quoted};
use super::raw::{Field, Given, Many, Raw, RawAppliance, RawRedirect};
use super::reader::{Reader, join};
use super::source::Span;
use super::words::{listed, nearest};
use super::{Appliance, Policy, Redirect, keys, value};
use crate::net::{Family, Networks, PortRange, Ports};

pub use numbers::LAST_PRIORITY;

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
