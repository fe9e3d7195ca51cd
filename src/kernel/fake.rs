//! A router in memory, for tests: changes are made to an [`Observed`], with the
//! kernel's own conditions, and any step can be made to fail.

use std::path::Path;

use super::{FailureKind, Kernel, KernelError, Wish};
use crate::iptables::{Frame, Match, Ruleset, Set, Variant};
use crate::net::{Family, Route, RouteKind, RouteProtocol, RoutingRule};
use crate::observation::{Availability, FileContent, IptablesRules, Observed, Sysctl, TableNames};
use crate::plan::{Change, Plan};

/// A router in memory.
#[derive(Debug, Clone)]
pub struct FakeKernel {
    /// All that is there.
    pub observed: Observed,
    /// Which step fails, counted from 0 over all that are tried.
    pub fail_at: Option<usize>,
    /// What it lacks; a rehearsal finds that.
    pub lacks: Option<&'static str>,
    /// Every change that was made, in order.
    pub log: Vec<Change>,
    tried: usize,
}

impl FakeKernel {
    /// A router that holds this.
    #[must_use]
    pub fn new(observed: Observed) -> Self {
        Self {
            observed,
            fail_at: None,
            lacks: None,
            log: Vec::new(),
            tried: 0,
        }
    }

    /// Fails at the step of this number, counted from now.
    pub fn fail_at(&mut self, step: usize) {
        self.fail_at = Some(self.tried + step);
    }
}

impl Kernel for FakeKernel {
    fn observe(&mut self, wish: &Wish<'_>) -> Result<Observed, KernelError> {
        let mut observed = self.observed.clone();
        let wished = |route: &Route| {
            (wish.policies.iter())
                .flat_map(|policy| &policy.appliances)
                .any(|appliance| appliance.table == route.table)
        };
        observed
            .routes
            .retain(|route| route.protocol == RouteProtocol::OURS || wished(route));
        Ok(observed)
    }

    fn rehearse(&mut self, _: &Plan) -> Result<(), KernelError> {
        let lack = |what| KernelError {
            kind: FailureKind::Lacking,
            ..refusal(what)
        };
        self.lacks.map_or(Ok(()), |what| Err(lack(what)))
    }

    fn perform(&mut self, change: &Change) -> Result<(), KernelError> {
        let step = self.tried;
        self.tried += 1;
        if self.fail_at == Some(step) {
            return Err(refusal("it was told to fail here"));
        }
        // Whole or not at all.
        let mut after = self.observed.clone();
        make(&mut after, change)?;
        self.observed = after;
        self.log.push(change.clone());
        Ok(())
    }
}

fn refusal(reason: &str) -> KernelError {
    KernelError::because("cannot change the router in memory", reason)
}

fn gone(reason: &str) -> KernelError {
    KernelError {
        kind: FailureKind::Gone,
        ..refusal(reason)
    }
}

fn exists(reason: &str) -> KernelError {
    KernelError {
        kind: FailureKind::Exists,
        ..refusal(reason)
    }
}

fn expect(holds: bool, reason: &str) -> Result<(), KernelError> {
    if holds { Ok(()) } else { Err(refusal(reason)) }
}

fn make(router: &mut Observed, change: &Change) -> Result<(), KernelError> {
    match change {
        Change::Directory { path, from, to } => directory(router, path, *from, *to),
        Change::File { path, from, to } => file(router, path, from.as_ref(), to.as_ref()),
        Change::Route { from, to } => route(router, from.as_ref(), to.as_ref()),
        Change::Rule { from, to } => rule(router, from.as_ref(), to.as_ref()),
        Change::Sysctl { sysctl, from, to } => setting(router, sysctl, from, to),
        Change::Nftables { from, to } => {
            expect(
                router.nftables_availability == Availability::Available,
                "it has no nftables",
            )?;
            expect(from != to, "a change from something to itself")?;
            expect(router.nftables == *from, "another nftables table is there")?;
            router.nftables.clone_from(to);
            Ok(())
        }
        Change::Ipset { from, to } => ipset(router, from.as_ref(), to.as_ref()),
        Change::Frame {
            family, from, to, ..
        } => frame(router, *family, from, to),
        Change::Iptables {
            variant,
            family,
            from,
            to,
            ..
        } => iptables(router, *variant, *family, from, to),
    }
}

fn directory(router: &mut Observed, path: &Path, from: bool, to: bool) -> Result<(), KernelError> {
    let names = &mut router.table_names;
    let holds = if path == Path::new(TableNames::DIRECTORY) {
        names.drop_in_directory || names.main.is_some()
    } else {
        expect(
            names.directory,
            "the directory that it would be in does not exist",
        )?;
        names.drop_in.is_some()
    };
    let is_shared = names.shared.iter().any(|shared| shared.starts_with(path));
    let there = if path == Path::new(TableNames::DIRECTORY) {
        &mut names.directory
    } else if path == Path::new(TableNames::DROP_IN_DIRECTORY) {
        &mut names.drop_in_directory
    } else {
        return Err(refusal("a directory that is not ours"));
    };
    expect(
        *there == from && from != to,
        "the directory is not as it was",
    )?;
    expect(to || !(holds || is_shared), "the directory is not empty")?;
    *there = to;
    Ok(())
}

fn file(
    router: &mut Observed,
    path: &Path,
    from: Option<&FileContent>,
    to: Option<&FileContent>,
) -> Result<(), KernelError> {
    let names = &mut router.table_names;
    let (there, parent) = if path == Path::new(TableNames::MAIN) {
        expect(from.is_some() && to.is_some(), "everybody's file must stay")?;
        (&mut names.main, names.directory)
    } else if path == Path::new(TableNames::DROP_IN) {
        (&mut names.drop_in, names.drop_in_directory)
    } else {
        return Err(refusal("a file that is not ours"));
    };
    expect(parent, "its directory does not exist")?;
    expect(from != to, "a change from something to itself")?;
    expect(there.as_ref() == from, "the file is not as it was")?;
    *there = to.cloned();
    Ok(())
}

fn route(
    router: &mut Observed,
    from: Option<&Route>,
    to: Option<&Route>,
) -> Result<(), KernelError> {
    fn place(route: &Route) -> impl PartialEq + '_ {
        (route.family, route.table, route.destination, route.metric)
    }
    expect(from != to, "a change from something to itself")?;
    if let Some(to) = to {
        expect(
            from.is_none_or(|from| place(from) == place(to)),
            "routes of two places",
        )?;
        if to.kind == RouteKind::Unicast {
            let reaches = to.interface.as_ref().is_some_and(|name| {
                router.link(name).is_some_and(|link| link.up)
                    && (to.via).is_none_or(|via| router.is_on_link(via, name))
            });
            expect(reaches, "Nexthop has invalid gateway")?;
        }
    }
    let at = match from {
        Some(from) => {
            let at = router.routes.iter().position(|found| found == from);
            Some(at.ok_or_else(|| gone("there is no such route"))?)
        }
        None => None,
    };
    if let Some(at) = at {
        router.routes.remove(at);
    }
    if let Some(to) = to {
        if router.routes.iter().any(|found| place(found) == place(to)) {
            return Err(exists("there is a route in its place"));
        }
        let at = at.unwrap_or_else(|| {
            // As the kernel has them: lower metrics first.
            let key = |route: &Route| (route.family, route.table, route.destination, route.metric);
            let after = |found: &Route| key(found) > key(to);
            (router.routes.iter().position(after)).unwrap_or(router.routes.len())
        });
        router.routes.insert(at, to.clone());
    }
    Ok(())
}

fn rule(
    router: &mut Observed,
    from: Option<&RoutingRule>,
    to: Option<&RoutingRule>,
) -> Result<(), KernelError> {
    match (from, to) {
        (Some(from), None) => {
            let at = router.rules.iter().position(|found| found == from);
            router
                .rules
                .remove(at.ok_or_else(|| gone("there is no such rule"))?);
        }
        (None, Some(to)) => {
            if router.rules.contains(to) {
                return Err(exists("there is such a rule"));
            }
            let place = |rule: &RoutingRule| (rule.family, rule.priority);
            let at = router
                .rules
                .partition_point(|found| place(found) <= place(to));
            router.rules.insert(at, to.clone());
        }
        _ => return Err(refusal("a rule can only be added or removed")),
    }
    Ok(())
}

fn setting(
    router: &mut Observed,
    sysctl: &Sysctl,
    from: &str,
    to: &str,
) -> Result<(), KernelError> {
    expect(from != to, "a change from something to itself")?;
    let held = router.sysctls.get_mut(&sysctl.to_string());
    let (_, held) = held.ok_or_else(|| refusal("there is no such setting"))?;
    expect(held == from, "the setting is not as it was")?;
    to.clone_into(held);
    Ok(())
}

fn ipset(router: &mut Observed, from: Option<&Set>, to: Option<&Set>) -> Result<(), KernelError> {
    expect(from != to, "a change from something to itself")?;
    let name = |set: &Set| (set.name.clone(), set.family);
    if let (Some(from), Some(to)) = (from, to) {
        expect(name(from) == name(to), "sets of two names")?;
    }
    if let Some(from) = from {
        let at = (router.iptables.sets.iter()).position(|found| found == from);
        router
            .iptables
            .sets
            .remove(at.ok_or_else(|| gone("there is no such set"))?);
        let is_in_use = (router.iptables.programs.iter())
            .flat_map(|program| program.families.values())
            .any(|rules| uses(&rules.ours, &from.name));
        expect(to.is_some() || !is_in_use, "the set is in use")?;
    }
    if let Some(to) = to {
        if router.iptables.set(&to.name).is_some() {
            return Err(exists("there is a set of this name"));
        }
        router.iptables.sets.push(to.clone());
        (router.iptables.sets).sort_by(|one, other| one.name.cmp(&other.name));
    }
    Ok(())
}

fn sets(rules: &Ruleset) -> impl Iterator<Item = &str> {
    let chains = rules.chains.values().flatten();
    chains
        .chain(rules.hooks.iter().map(|hook| &hook.rule))
        .flat_map(|rule| &rule.matches)
        .filter_map(|test| match test {
            Match::InSet { set, .. } => Some(set.as_str()),
            _ => None,
        })
}

fn uses(rules: &Ruleset, set: &str) -> bool {
    sets(rules).any(|name| name == set)
}

/// The rules of this variant and family.
fn rules(
    router: &mut Observed,
    variant: Variant,
    family: Family,
) -> Result<&mut IptablesRules, KernelError> {
    (router.iptables.programs.iter_mut())
        .find(|program| program.variant == variant)
        .and_then(|program| program.families.get_mut(&family))
        .ok_or_else(|| refusal("it has no such iptables"))
}

fn frame(
    router: &mut Observed,
    family: Family,
    from: &Frame,
    to: &Frame,
) -> Result<(), KernelError> {
    expect(from != to, "a change from something to itself")?;
    let rules = rules(router, Variant::Nft, family)?;
    expect(rules.frame == *from, "the base chains are not as they were")?;
    let mut hooks = rules.ours.hooks.iter();
    let is_in_use = hooks.any(|hook| !to.chains.contains(&hook.chain));
    expect(!is_in_use, "a base chain is in use")?;
    rules.frame.clone_from(to);
    Ok(())
}

fn iptables(
    router: &mut Observed,
    variant: Variant,
    family: Family,
    from: &Ruleset,
    to: &Ruleset,
) -> Result<(), KernelError> {
    expect(from != to, "a change from something to itself")?;
    let missing = sets(to).find(|name| router.iptables.set(name).is_none());
    expect(missing.is_none(), "a set that it looks into is not there")?;
    let rules = rules(router, variant, family)?;
    let is_framed = |chain| variant == Variant::Legacy || rules.frame.chains.contains(chain);
    let hooks_have_chains = to.hooks.iter().all(|hook| is_framed(&hook.chain));
    expect(hooks_have_chains, "a base chain is not there")?;
    expect(rules.ours == *from, "the chains are not as they were")?;
    rules.ours.clone_from(to);
    Ok(())
}
