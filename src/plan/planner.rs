//! From a policy and an observation to a plan: all decisions, no action.
//!
//! The order keeps sessions safe while it is carried out: names, fallback route,
//! route, rule and reverse path filter first, which do nothing by themselves; then the
//! packet rules in one commit, which is the moment at which traffic changes over; then
//! the removals, which by then nobody uses. So it is make before break, and teardown,
//! which has only removals, runs in the opposite order of apply.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Change, Finding, Ledger, Plan, names, packets};
use crate::net::{
    Action, Family, IfName, IfPattern, Networks, Range, Route, RouteKind, RouteProtocol,
    RoutingRule, RuleSelectors,
};
use crate::observation::{Observed, Setting, Sysctl};
use crate::policy::{Appliance, OnApplianceDown, Policy, Redirect, RpFilterChoice};
use crate::rules::Model;

/// What was planned, and what speaks against it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// The changes.
    pub plan: Plan,
    /// Why it must not be applied here. Empty: it may.
    pub refusals: Vec<Finding>,
    /// What the user should know, and may want.
    pub warnings: Vec<Finding>,
}

/// How much of the policy can be there yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// All of it.
    #[default]
    Complete,
    /// Before the links are there: everything that needs none, whether or not they are. Until
    /// the route follows, sessions of the policy are refused.
    Early,
    /// What the links allow that are there: for repair, which is not to leave all undone because
    /// one link is.
    Possible,
}

/// The changes that make the router that was `observed` match `policy`.
///
/// An empty policy plans a teardown. `ledger` holds what our earlier runs overwrote.
#[must_use]
pub fn plan(policy: &Policy, observed: &Observed, ledger: &Ledger, stage: Stage) -> Planned {
    let mut planner = Planner {
        policy,
        model: Model::new(policy),
        observed,
        ledger,
        stage,
        planned: Planned::default(),
    };
    planner.check_links();
    planner.check_tables();
    let names = names::changes(
        &observed.table_names,
        &planner
            .model
            .appliances()
            .map(|(_, a)| (a.table, a.name.clone()))
            .collect::<Vec<_>>(),
        ledger,
    );
    let (name_makes, name_removals) = names;
    let (route_makes, route_removals) = planner.routes();
    let (rule_makes, rule_removals) = planner.rules();
    let (sysctl_makes, sysctl_restores) = planner.sysctls();
    let packets = planner.packets();
    planner.planned.plan.changes = [
        name_makes,
        route_makes,
        rule_makes,
        sysctl_makes,
        packets,
        sysctl_restores,
        rule_removals,
        route_removals,
        name_removals,
    ]
    .concat();
    if stage == Stage::Early {
        // Links come while we are at work: what they allow at one moment and not at the next
        // must not be part of a transaction that stands or falls as a whole.
        let changes = &mut planner.planned.plan.changes;
        changes.retain(|change| !needs_link(change));
    }
    planner.planned
}

/// Whether a change can only be made while some link is there.
fn needs_link(change: &Change) -> bool {
    match change {
        Change::Sysctl { .. } => true,
        Change::Route { from, to } => [from, to]
            .into_iter()
            .flatten()
            .any(|route| route.interface.is_some()),
        _ => false,
    }
}

struct Planner<'a> {
    policy: &'a Policy,
    model: Model<'a>,
    observed: &'a Observed,
    ledger: &'a Ledger,
    stage: Stage,
    planned: Planned,
}

impl Planner<'_> {
    fn refuse(&mut self, code: &'static str, key: String, message: String, hint: String) {
        self.planned.refusals.push(Finding {
            code,
            key: Some(key),
            message,
            hint,
        });
    }

    fn warn(&mut self, code: &'static str, key: String, message: String, hint: String) {
        self.planned.warnings.push(Finding {
            code,
            key: Some(key),
            message,
            hint,
        });
    }

    /// Every interface that is named is there, and every appliance is on-link at its own.
    fn check_links(&mut self) {
        if self.stage != Stage::Complete {
            return;
        }
        let appliances: Vec<_> = self.model.appliances().collect();
        for (_, appliance) in appliances {
            let key = |part: &str| format!("appliance.{}.{part}", appliance.name);
            let interface = &appliance.interface;
            let Some(link) = self.observed.link(interface) else {
                self.refuse(
                    "interface-missing",
                    key("interface"),
                    format!("there is no interface `{interface}` on this router"),
                    self.which_interfaces(),
                );
                continue;
            };
            if !link.up {
                self.refuse(
                    "interface-down",
                    key("interface"),
                    format!("interface `{interface}` is down, so no route can lead through it"),
                    format!("bring it up with `ip link set {interface} up`; until then, `redirect apply --early` and `redirect repair` put in place all that needs no link, so that no session leaks"),
                );
                continue;
            }
            for address in &appliance.addresses {
                if !is_link_local(*address) && !self.observed.is_on_link(*address, interface) {
                    let family = Family::of(*address);
                    self.refuse(
                        "appliance-not-on-link",
                        key("address"),
                        format!(
                            "appliance address {address} is not on-link at `{interface}`{}",
                            self.addresses_of(interface, family)
                        ),
                        format!(
                            "see `ip {} address show dev {interface}`; the appliance must be a direct neighbour of the router",
                            family.ip_flag()
                        ),
                    );
                }
            }
        }
        for (index, redirect) in self.policy.redirects.iter().enumerate() {
            for (kind, patterns) in [
                ("client_interface", &redirect.client_interfaces),
                ("server_interface", &redirect.server_interfaces),
            ] {
                for pattern in patterns {
                    if let IfPattern::Exact(name) = pattern
                        && self.observed.link(name).is_none()
                    {
                        self.refuse(
                            "interface-missing",
                            format!("redirect[{}].{kind}", index + 1),
                            format!("there is no interface `{name}` on this router"),
                            self.which_interfaces(),
                        );
                    }
                }
            }
            self.check_shared(index, redirect);
        }
    }

    /// Where servers are neighbours of the appliance, only MAC addresses tell their answers
    /// to it from its own packets.
    fn check_shared(&mut self, index: usize, redirect: &Redirect) {
        let Some(appliance) = self.policy.appliance_of(redirect) else {
            return;
        };
        if redirect.snat
            && appliance.macs.is_empty()
            && shares_with_servers(appliance, redirect, self.observed)
        {
            self.refuse(
                "shared-without-mac",
                format!("redirect[{}].appliance", index + 1),
                format!(
                    "servers of redirect `{}` are on `{}`, as the appliance is, and with `snat = true` the router cannot tell their answers from the appliance's own packets",
                    redirect.name, appliance.interface
                ),
                format!("give the appliance's MAC address: `mac = \"…\"` in [appliance.{}]", appliance.name),
            );
        }
    }

    fn which_interfaces(&self) -> String {
        let names: Vec<_> = self
            .observed
            .links
            .iter()
            .map(|link| format!("`{}`", link.name))
            .collect();
        format!("it has {}", names.join(", "))
    }

    fn addresses_of(&self, interface: &IfName, family: Family) -> String {
        let index = self.observed.link(interface).map(|link| link.index);
        let networks: Vec<_> = self
            .observed
            .addresses
            .iter()
            .filter(|found| Some(found.link) == index && Family::of(found.network.addr()) == family)
            .map(|found| found.network.to_string())
            .collect();
        if networks.is_empty() {
            format!(", which has no {family} address")
        } else {
            format!(", which has {}", networks.join(", "))
        }
    }

    /// Our tables are nobody else's, by number and by name.
    fn check_tables(&mut self) {
        let appliances: Vec<_> = self.model.appliances().collect();
        for (_, appliance) in appliances {
            let key = format!("appliance.{}.table", appliance.name);
            let foreign = self.observed.routes.iter().find(|route| {
                route.table == appliance.table && route.protocol != RouteProtocol::OURS
            });
            if let Some(route) = foreign {
                // Where the table is ours already, somebody else's route in it must not keep us from
                // putting back the rest: the seal holds whatever it leads to.
                let is_ours = self.observed.routes.iter().any(|route| {
                    route.table == appliance.table && route.protocol == RouteProtocol::OURS
                }) || self.stage != Stage::Complete;
                let findings = if is_ours {
                    &mut self.planned.warnings
                } else {
                    &mut self.planned.refusals
                };
                findings.push(Finding {
                    code: "table-in-use",
                    key: Some(key.clone()),
                    message: format!(
                        "table {} is in use by others: it holds a route to {} that is not ours",
                        appliance.table,
                        route.destination.map_or_else(|| "default".to_owned(), |net| net.to_string()),
                    ),
                    hint: format!(
                        "look with `ip {} route show table {}`; take another table number, or remove that route",
                        route.family.ip_flag(),
                        appliance.table
                    ),
                });
            }
            for (number, name, file) in &self.observed.table_names.others {
                let (same_number, same_name) = (
                    *number == appliance.table.0,
                    name == appliance.name.as_str(),
                );
                if same_number != same_name {
                    self.refuse(
                        "table-name-differs",
                        key.clone(),
                        format!(
                            "{} calls table {number} `{name}`, the policy calls table {} `{}`",
                            file.display(),
                            appliance.table,
                            appliance.name
                        ),
                        "take another table number or another name for the appliance".to_owned(),
                    );
                }
            }
        }
    }

    /// The families in which an appliance is in use, with its address in each.
    fn used(&self) -> Vec<(&Appliance, Family, IpAddr)> {
        let mut used = Vec::new();
        for (index, appliance) in self.model.appliances() {
            for family in Family::ALL {
                if let Some(address) = appliance.address(family)
                    && self.policy.uses(index, family)
                {
                    used.push((appliance, family, address));
                }
            }
        }
        used
    }

    fn wanted_routes(&self) -> Vec<Route> {
        let mut wanted = Vec::new();
        for (appliance, family, address) in self.used() {
            let base = Route {
                family,
                table: appliance.table,
                destination: None,
                kind: RouteKind::Unreachable,
                via: None,
                interface: None,
                // The highest there is, so that any route stands before it.
                metric: u32::MAX,
                protocol: RouteProtocol::OURS,
                others: Vec::new(),
            };
            if self.policy.options.on_appliance_down == OnApplianceDown::Block {
                wanted.push(base.clone());
            }
            let ready = self
                .observed
                .link(&appliance.interface)
                .is_some_and(|link| link.up)
                && (is_link_local(address)
                    || self.observed.is_on_link(address, &appliance.interface));
            let metric = match family {
                // The kernel's defaults (`IP6_RT_PRIO_USER` is 1024).
                Family::V4 => 0,
                Family::V6 => 1024,
            };
            // Somebody else's route in this very place is not ours to replace.
            let is_taken = self.observed.routes.iter().any(|route| {
                route.protocol != RouteProtocol::OURS
                    && (route.family, route.table, route.destination, route.metric)
                        == (family, appliance.table, None, metric)
            });
            if self.stage == Stage::Complete || (ready && !is_taken) {
                wanted.push(Route {
                    kind: RouteKind::Unicast,
                    via: Some(address),
                    interface: Some(appliance.interface.clone()),
                    metric,
                    ..base
                });
            }
        }
        wanted
    }

    fn routes(&self) -> (Vec<Change>, Vec<Change>) {
        let wanted = self.wanted_routes();
        let mut ours: Vec<&Route> = self
            .observed
            .routes
            .iter()
            .filter(|route| route.protocol == RouteProtocol::OURS)
            .collect();
        let mut makes = Vec::new();
        for route in wanted {
            if let Some(at) = ours.iter().position(|found| **found == route) {
                ours.swap_remove(at);
                continue;
            }
            let at = ours.iter().position(|found| is_same_place(found, &route));
            let from = at.map(|at| ours.swap_remove(at).clone());
            makes.push(Change::Route {
                from,
                to: Some(route),
            });
        }
        ours.sort();
        // The route goes before its fallback, so that at no time it is alone.
        ours.sort_by_key(|route| route.kind == RouteKind::Unreachable);
        let removals = ours.into_iter().map(|route| Change::Route {
            from: Some(route.clone()),
            to: None,
        });
        (makes, removals.collect())
    }

    fn rules(&self) -> (Vec<Change>, Vec<Change>) {
        let mut ours: Vec<&RoutingRule> = self
            .observed
            .rules
            .iter()
            .filter(|rule| rule.protocol == RouteProtocol::OURS)
            .collect();
        let mut makes = Vec::new();
        for (appliance, family, _) in self.used() {
            let rule = RoutingRule {
                family,
                priority: appliance.rule_priority,
                mark: Some(appliance.mark),
                selectors: RuleSelectors::default(),
                action: Action::Lookup(appliance.table),
                protocol: RouteProtocol::OURS,
            };
            match ours.iter().position(|found| **found == rule) {
                Some(at) => _ = ours.remove(at),
                None => makes.push(Change::Rule {
                    from: None,
                    to: Some(rule),
                }),
            }
        }
        let removals = ours.into_iter().map(|rule| Change::Rule {
            from: Some(rule.clone()),
            to: None,
        });
        (makes, removals.collect())
    }

    fn packets(&mut self) -> Vec<Change> {
        match packets::changes(self.policy, self.observed, self.ledger) {
            Ok((changes, warnings)) => {
                self.planned.warnings.extend(warnings);
                changes
            }
            Err(refusal) => {
                self.planned.refusals.push(refusal);
                Vec::new()
            }
        }
    }

    /// Settings to write before the packet rules, and settings to put back after them.
    fn sysctls(&mut self) -> (Vec<Change>, Vec<Change>) {
        let without_us: BTreeMap<Sysctl, &str> = self
            .observed
            .sysctls
            .values()
            .map(|(sysctl, value)| (sysctl.clone(), self.ledger.without_us(sysctl, value)))
            .collect();
        let mut wanted: Vec<(Sysctl, String)> = Vec::new();
        self.want_rp_filter(&without_us, &mut wanted);
        self.want_no_redirects(&without_us, &mut wanted);
        let mut makes = Vec::new();
        for (sysctl, to) in &wanted {
            if let Some(from) = self.observed.sysctl(sysctl)
                && from != to
            {
                let (from, to) = (from.to_owned(), to.clone());
                makes.push(Change::Sysctl {
                    sysctl: sysctl.clone(),
                    from,
                    to,
                });
            }
        }
        let mut restores = Vec::new();
        for kept in self.ledger.sysctls.iter().rev() {
            let still_wanted = wanted.iter().any(|(sysctl, _)| *sysctl == kept.sysctl);
            let holds_ours = self.observed.sysctl(&kept.sysctl) == Some(kept.written.as_str());
            if !still_wanted && holds_ours {
                restores.push(Change::Sysctl {
                    sysctl: kept.sysctl.clone(),
                    from: kept.written.clone(),
                    to: kept.original.clone(),
                });
            }
        }
        (makes, restores)
    }

    fn want_rp_filter(
        &mut self,
        without_us: &BTreeMap<Sysctl, &str>,
        wanted: &mut Vec<(Sysctl, String)>,
    ) {
        const STRICT: i64 = 1;
        let value = |sysctl: &Sysctl| without_us.get(sysctl).and_then(|value| value.parse().ok());
        let all = Sysctl::ipv4_all(Setting::RpFilter);
        let of_all: i64 = value(&all).unwrap_or(0);
        let mut interfaces: Vec<&Appliance> = self
            .used()
            .into_iter()
            .filter(|(_, family, _)| *family == Family::V4)
            .map(|(appliance, ..)| appliance)
            .collect();
        interfaces.dedup_by_key(|appliance| &appliance.interface);
        let in_force = |name: &IfName| {
            value(&Sysctl::ipv4(name, Setting::RpFilter))
                .unwrap_or(0)
                .max(of_all)
        };
        match self.policy.options.rp_filter {
            RpFilterChoice::Loose => {
                for appliance in interfaces {
                    if in_force(&appliance.interface) == STRICT {
                        let sysctl = Sysctl::ipv4(&appliance.interface, Setting::RpFilter);
                        wanted.push((sysctl, "2".to_owned()));
                    }
                }
            }
            RpFilterChoice::Off => {
                let ours: Vec<IfName> = interfaces
                    .iter()
                    .map(|appliance| appliance.interface.clone())
                    .collect();
                if ours.iter().all(|name| in_force(name) == 0) {
                    return;
                }
                if of_all != 0 {
                    pin(
                        without_us,
                        Setting::RpFilter,
                        &ours,
                        |own| own.max(of_all),
                        wanted,
                    );
                }
                for name in &ours {
                    wanted.push((Sysctl::ipv4(name, Setting::RpFilter), "0".to_owned()));
                }
                wanted.push((all, "0".to_owned()));
            }
            RpFilterChoice::Keep => {
                let strict: Vec<IfName> = interfaces
                    .iter()
                    .map(|appliance| appliance.interface.clone())
                    .filter(|name| in_force(name) == STRICT)
                    .collect();
                for name in strict {
                    self.warn(
                        "rp-filter-strict",
                        "options.rp_filter".to_owned(),
                        format!("strict reverse path filtering is in force on `{name}` and will drop what the appliance sends with the servers' addresses: sessions will hang"),
                        format!("leave `rp_filter` at \"loose\", or `sysctl -w net.ipv4.conf.{name}.rp_filter=2`"),
                    );
                }
            }
        }
    }

    /// Where a packet leaves by the interface that it came in on, the kernel would tell
    /// its sender to go to the appliance directly, and later packets would miss the router.
    fn want_no_redirects(
        &self,
        without_us: &BTreeMap<Sysctl, &str>,
        wanted: &mut Vec<(Sysctl, String)>,
    ) {
        let value = |sysctl: &Sysctl| without_us.get(sysctl).and_then(|value| value.parse().ok());
        let mut shared: Vec<IfName> = Vec::new();
        for redirect in &self.policy.redirects {
            let Some(appliance) = self.policy.appliance_of(redirect) else {
                continue;
            };
            let with_clients = redirect
                .client_interfaces
                .iter()
                .any(|pattern| pattern.matches(&appliance.interface));
            let with_servers =
                redirect.snat && shares_with_servers(appliance, redirect, self.observed);
            if (with_clients || with_servers) && !shared.contains(&appliance.interface) {
                shared.push(appliance.interface.clone());
            }
        }
        let all = Sysctl::ipv4_all(Setting::SendRedirects);
        let of_all: i64 = value(&all).unwrap_or(0);
        if shared.is_empty() {
            return;
        }
        if of_all != 0 {
            pin(
                without_us,
                Setting::SendRedirects,
                &shared,
                |own| own | of_all,
                wanted,
            );
        }
        for name in &shared {
            wanted.push((Sysctl::ipv4(name, Setting::SendRedirects), "0".to_owned()));
        }
        wanted.push((all, "0".to_owned()));
    }
}

/// Gives every interface but `except` (and `default`, from which new ones copy) for its own
/// value what is in force on it, so that changing `all` changes nothing for it.
fn pin(
    without_us: &BTreeMap<Sysctl, &str>,
    setting: Setting,
    except: &[IfName],
    in_force: impl Fn(i64) -> i64,
    wanted: &mut Vec<(Sysctl, String)>,
) {
    for (sysctl, value) in without_us {
        let Some(interface) = &sysctl.interface else {
            continue;
        };
        if sysctl.family != Family::V4 || sysctl.setting != setting || except.contains(interface) {
            continue;
        }
        if let Ok(own) = value.parse() {
            wanted.push((sysctl.clone(), in_force(own).to_string()));
        }
    }
}

/// Whether servers of `redirect` are behind the interface of its appliance: the policy says
/// so, or some of their addresses are on-link there.
#[must_use]
pub fn shares_with_servers(
    appliance: &Appliance,
    redirect: &Redirect,
    observed: &Observed,
) -> bool {
    let named = redirect
        .server_interfaces
        .iter()
        .any(|pattern| pattern.matches(&appliance.interface));
    named
        || observed.link(&appliance.interface).is_some_and(|link| {
            let on_link = Networks::merged(
                observed
                    .addresses
                    .iter()
                    .filter(|found| found.link == link.index)
                    .map(|found| found.network.trunc()),
            );
            on_link
                .v4
                .overlap(&redirect.servers.v4)
                .is_some_and(|shared| !is_only(shared, appliance))
                || on_link.v6.overlap(&redirect.servers.v6).is_some()
        })
}

/// Whether the overlap is nothing but the appliance itself.
fn is_only(shared: Range<u32>, appliance: &Appliance) -> bool {
    let own = appliance.address(Family::V4).map(|address| match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(_) => 0,
    });
    shared.first == shared.last && Some(shared.first) == own
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether the kernel would take one for the other's replacement.
fn is_same_place(a: &Route, b: &Route) -> bool {
    (a.family, a.table, a.destination, a.metric, a.kind)
        == (b.family, b.table, b.destination, b.metric, b.kind)
}
