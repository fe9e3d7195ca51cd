//! The real router. No decisions here: what is read goes out as data, and each change
//! is handed to the part that makes it.

use std::collections::{BTreeMap, BTreeSet};

use super::iptables::{Rehearsal, Xtables};
use super::nftables::Nftables;
use super::route::Routing;
use super::{FailureKind, Kernel, KernelError, Wish, files, iptables, names, rehearsal, sysctl};
use crate::net::{Family, IfName, TableId};
use crate::nft::proof::Proof;
use crate::nft::{Set, Table};
use crate::observation::{Availability, Iptables, Observed, Setting, Sysctl};
use crate::plan::{Change, Plan};
use crate::policy::BackendChoice;

/// Mode of a directory that we make.
const DIRECTORY_MODE: u32 = 0o755;

/// The router that we run on, as the network namespace of the thread that opened it has it.
#[derive(Debug)]
pub struct Router {
    routing: Routing,
    /// Or why the kernel has none.
    packets: Result<Nftables, String>,
    xtables: Xtables,
}

impl Router {
    /// Opens the ways to the kernel; needs no privilege.
    ///
    /// # Errors
    /// If the kernel gives no socket.
    pub fn open() -> Result<Self, KernelError> {
        let packets = match Nftables::open() {
            Ok(packets) => Ok(packets),
            Err(error) if error.kind == FailureKind::Lacking => Err(error.reason),
            Err(error) => return Err(error),
        };
        Ok(Self {
            routing: Routing::open()?,
            packets,
            xtables: Xtables::default(),
        })
    }

    /// The way to the kernel's routing, for questions beyond an observation.
    pub fn routing(&mut self) -> &mut Routing {
        &mut self.routing
    }

    /// The way to the kernel's packet rules, if it has any.
    pub fn packets(&mut self) -> Option<&mut Nftables> {
        self.packets.as_mut().ok()
    }

    /// The way to iptables.
    pub fn xtables(&mut self) -> &mut Xtables {
        &mut self.xtables
    }

    /// Our nftables table. Who may not see it is told so, and sees everything else.
    fn read_packets(&mut self) -> Result<(Option<Table>, Availability), KernelError> {
        let read = match &mut self.packets {
            Ok(packets) => packets.read(),
            Err(why) => return Ok((None, Availability::Missing(why.clone()))),
        };
        match read {
            Ok(table) => Ok((table, Availability::Available)),
            Err(error) => match error.kind {
                FailureKind::Lacking => Ok((None, Availability::Missing(error.reason))),
                FailureKind::NotPermitted => Ok((None, Availability::Unknown(error.reason))),
                _ => Err(error),
            },
        }
    }
}

/// iptables is asked only where it matters, for each question starts a program: some policy
/// wants it, there is nothing else, or there may be chains of ours.
fn iptables_matters(
    wish: &Wish<'_>,
    nftables: &Availability,
    packets: Option<&mut Nftables>,
) -> Result<bool, KernelError> {
    let is_wanted =
        (wish.policies.iter()).any(|policy| policy.options.backend == BackendChoice::Iptables);
    Ok(is_wanted
        || match (nftables, packets) {
            (Availability::Available, Some(packets)) => iptables::may_hold_ours(packets.socket())?,
            (Availability::Unknown(_), _) => false,
            (Availability::Missing(_), _) | (_, None) => true,
        })
}

impl Kernel for Router {
    fn observe(&mut self, wish: &Wish<'_>) -> Result<Observed, KernelError> {
        let mut sysctls = shared_settings()?;
        let mut links = Vec::new();
        for (link, settings) in self.routing.links_and_settings()? {
            links.push(link);
            sysctls.extend(settings.into_iter().map(named));
        }
        let tables: BTreeSet<TableId> = (wish.policies.iter())
            .flat_map(|policy| &policy.appliances)
            .map(|appliance| appliance.table)
            .collect();
        let (nftables, nftables_availability) = self.read_packets()?;
        let iptables = if iptables_matters(wish, &nftables_availability, self.packets())? {
            self.xtables.observe()?
        } else {
            Iptables::default()
        };
        Ok(Observed {
            addresses: self.routing.addresses()?,
            rules: self.routing.rules()?,
            routes: self.routing.routes(&links, &tables)?,
            nftables,
            iptables,
            nftables_availability,
            sysctls,
            table_names: names::observe()?,
            links,
        })
    }

    fn proof(&self) -> Option<Proof> {
        self.packets.as_ref().ok()?.proof()
    }

    fn trust(&mut self, proof: &Proof, table: Table) {
        if let Ok(packets) = &mut self.packets {
            packets.trust(proof, table);
        }
    }

    fn rehearse(&mut self, plan: &Plan) -> Result<(), KernelError> {
        // Only what may be lacking is worth it, and a long set only its making: should the kernel refuse
        // that one step, no packet has met a rule yet, and the few before it are taken back.
        let is_long = |table: &Table| table.sets.iter().any(Set::is_long);
        let table = plan.changes.iter().find_map(|change| match change {
            Change::Nftables { from, to: Some(to) } => {
                let is_known = |from: &Table| from.is_same_but_for_elements(to);
                let is_short = !from.iter().chain([to]).any(is_long);
                (is_short && !from.as_ref().is_some_and(is_known)).then_some((from.as_ref(), to))
            }
            _ => None,
        });
        let xtables = self.xtables.rehearsal(plan)?;
        if table.is_none() && xtables.is_none() {
            return Ok(());
        }
        let played = rehearsal::in_an_empty_namespace(|| {
            table.map_or(Ok(()), |(_, to)| Nftables::rehearse(to))?;
            xtables.as_ref().map_or(Ok(()), Rehearsal::play)
        })?;
        if played.is_some() {
            return Ok(());
        }
        // Without namespaces, the kernel can check a table and drop it, for which it waits a grace
        // period (5 to 10 milliseconds; `nf_tables_abort`).
        if let (Some((from, to)), Ok(packets)) = (table, &mut self.packets) {
            packets.validate(from, Some(to))?;
        }
        // What the kernel lacks for these shows in the commit, which is taken back.
        xtables.map_or(Ok(()), |xtables| xtables.test())
    }

    fn perform(&mut self, change: &Change) -> Result<(), KernelError> {
        match change {
            Change::Directory { path, to: true, .. } => files::make_directory(path, DIRECTORY_MODE),
            Change::Directory { path, .. } => files::remove_directory(path),
            Change::File { path, from, to } => files::change(path, from.as_ref(), to.as_ref()),
            Change::Route { from, to } => self.routing.change_route(from.as_ref(), to.as_ref()),
            Change::Rule { from, to } => self.routing.change_rule(from.as_ref(), to.as_ref()),
            Change::Sysctl { sysctl, from, to } => sysctl::write(sysctl, from, to),
            Change::Nftables { from, to } => match &mut self.packets {
                Ok(packets) => packets.commit(from.as_ref(), to.as_ref()),
                Err(why) => Err(KernelError {
                    kind: FailureKind::Lacking,
                    ..KernelError::because("cannot change nftables rules", why.clone())
                }),
            },
            Change::Ipset { .. } | Change::Frame { .. } | Change::Iptables { .. } => {
                self.xtables.perform(change)
            }
        }
    }

    fn tidy(&mut self, change: &Change) -> Result<(), KernelError> {
        match change {
            Change::File { path, .. } => files::sweep(path),
            Change::Ipset { .. } => iptables::tidy(change),
            // The kernel makes each of these whole or not at all.
            _ => Ok(()),
        }
    }
}

/// The settings that some policy could be about and that no interface has: those of `all`, and of
/// `default`, from which new interfaces copy.
fn shared_settings() -> Result<BTreeMap<String, (Sysctl, String)>, KernelError> {
    const IPV4: [Setting; 4] = [
        Setting::RpFilter,
        Setting::SrcValidMark,
        Setting::SendRedirects,
        Setting::Forwarding,
    ];
    // It is named as an interface is.
    let default = IfName::new("default").ok();
    let mut found = BTreeMap::new();
    for interface in std::iter::once(None).chain(default.map(Some)) {
        let ipv4 = IPV4.map(|setting| (Family::V4, setting));
        for (family, setting) in ipv4.into_iter().chain([(Family::V6, Setting::Forwarding)]) {
            let sysctl = Sysctl {
                family,
                interface: interface.clone(),
                setting,
            };
            if let Some(value) = sysctl::read(&sysctl)? {
                found.extend([named((sysctl, value))]);
            }
        }
    }
    Ok(found)
}

/// A setting by its name.
fn named((sysctl, value): (Sysctl, String)) -> (String, (Sysctl, String)) {
    (sysctl.to_string(), (sysctl, value))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::kernel::process;
    use crate::plan::Ledger;
    use crate::plan::planner::{Stage, plan};
    use crate::policy::{self, Policy, Source};
    use crate::render::shell::script;
    use crate::test_support::{
        ip, ip_json, own_network, own_table_names, shell, wait_for_carrier, write,
    };

    const POLICY: &str = r#"
        version = 1
        [appliance.scb]
        address = ["10.30.0.2", "fd00:30::2"]
        interface = "sps0"
        [[redirect]]
        name = "rdp"
        client_interface = "cli0"
        server_network = ["10.20.0.0/24", "fd00:20::/64"]
        port = [3389, "5900-5910"]
        snat = true
        [options]
        rp_filter = "RP_FILTER"
        backend = "BACKEND"
    "#;

    fn policy(rp_filter: &str, backend: &str) -> Policy {
        let text = POLICY
            .replace("RP_FILTER", rp_filter)
            .replace("BACKEND", backend);
        let source = Source {
            name: "policy.toml".to_owned(),
            text,
            lists: Vec::new(),
            unreadable: Vec::new(),
        };
        policy::read(&source).unwrap().policy
    }

    /// A router with two legs and strict reverse path filtering.
    fn with_router(test: &str) -> bool {
        if !own_network(test) || !own_table_names(test) {
            return false;
        }
        for (near, far, part) in [("sps0", "far0", 30), ("cli0", "far1", 40)] {
            ip(&format!("link add {near} type veth peer name {far}"));
            for link in [near, far] {
                ip(&format!("link set {link} addrgenmode none"));
                ip(&format!("link set {link} up"));
            }
            ip(&format!("address add 10.{part}.0.1/24 dev {near}"));
            ip(&format!("address add fd00:{part}::1/64 dev {near} nodad"));
            wait_for_carrier(near);
            wait_for_carrier(far);
        }
        write("/proc/sys/net/ipv4/conf/all/rp_filter", "1");
        true
    }

    /// Everything of the router that others can see, by others' tools.
    fn witnessed() -> String {
        let mut seen = String::new();
        for family in ["-4", "-6"] {
            for what in ["rule", "route show table all"] {
                seen += &ip_json(&format!("{family} -details {what}")).to_string();
                seen.push('\n');
            }
        }
        seen += &shell("nft -s list ruleset; iptables-save; ip6tables-save");
        seen += &shell("grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | sort");
        seen += &shell("find /etc/iproute2 | sort; cat /etc/iproute2/rt_tables*/* || true");
        // Counters and dates of iptables-save.
        (seen.lines())
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn assert_same(found: &str, wanted: &str, when: &str) {
        let only = |one: &str, other: &str| {
            let other: Vec<&str> = other.lines().collect();
            let missing = one.lines().filter(|line| !other.contains(line));
            missing.collect::<Vec<_>>().join("\n")
        };
        assert!(
            found == wanted,
            "{when}:\ntoo much:\n{}\nmissing:\n{}",
            only(found, wanted),
            only(wanted, found)
        );
    }

    fn plan_for(router: &mut Router, policy: &Policy, ledger: &Ledger) -> Plan {
        let policies = [policy];
        let observed = router
            .observe(&Wish {
                policies: &policies,
            })
            .unwrap();
        let planned = plan(policy, &observed, ledger, Stage::Complete);
        assert_eq!(planned.refusals, []);
        planned.plan
    }

    fn perform(router: &mut Router, plan: &Plan) {
        for change in &plan.changes {
            router
                .perform(change)
                .unwrap_or_else(|error| panic!("{error}\n{change:#?}"));
        }
    }

    #[test]
    fn a_policy_is_applied_found_in_place_and_taken_out_without_a_trace() {
        let test = "a_policy_is_applied_found_in_place_and_taken_out_without_a_trace";
        if !with_router(test) {
            return;
        }
        let mut router = Router::open().unwrap();
        // The first look may make the kernel load what it then lists.
        let empty = Policy::default();
        assert!(plan_for(&mut router, &empty, &Ledger::default()).is_empty());
        for (rp_filter, backend) in [("loose", "nftables"), ("off", "iptables"), ("off", "auto")] {
            // iptables-nft makes its tables and chains at their first use, and leaves them.
            for command in ["iptables-nft", "ip6tables-nft"] {
                for chain in ["PREROUTING", "INPUT", "FORWARD"] {
                    let rule = format!("-t mangle -A {chain} -j ACCEPT");
                    let back = rule.replace("-A", "-D");
                    shell(&format!("{command} {rule} && {command} {back}"));
                }
            }
            let pristine = witnessed();
            let policy = policy(rp_filter, backend);
            let plan = plan_for(&mut router, &policy, &Ledger::default());
            perform(&mut router, &plan);
            let ledger = Ledger::default().after(&plan);
            let applied = witnessed();
            assert_ne!(applied, pristine);
            assert!(applied.contains("103\tscb"), "{applied}");
            let again = plan_for(&mut router, &policy, &ledger);
            assert_eq!(again, Plan::default(), "{rp_filter} {backend}");
            let teardown = plan_for(&mut router, &empty, &ledger);
            perform(&mut router, &teardown);
            assert_same(&witnessed(), &pristine, &format!("{rp_filter} {backend}"));
            assert!(plan_for(&mut router, &empty, &ledger.after(&teardown)).is_empty());
        }
    }

    /// The dry-run's promise, both ways.
    #[test]
    fn a_plan_and_its_script_do_the_same() {
        if !with_router("a_plan_and_its_script_do_the_same") {
            return;
        }
        // A value that nobody has written follows what is written to `default`.
        write("/proc/sys/net/ipv4/conf/default/rp_filter", "0");
        let mut router = Router::open().unwrap();
        for (rp_filter, backend) in [("off", "nftables"), ("loose", "nftables")] {
            let plan = plan_for(&mut router, &policy(rp_filter, backend), &Ledger::default());
            let pristine = witnessed();
            let run = |plan: &Plan| {
                let script = script(plan, &[]);
                let output =
                    process::run("sh", &["-s"], script.as_bytes(), Duration::from_secs(30));
                let output = output.unwrap();
                assert!(output.status.success(), "{}\n{script}", output.complaint());
            };
            // The script first: once performed, no value is unwritten any more.
            run(&plan);
            let scripted = witnessed();
            run(&plan.clone().inverse());
            assert_same(&witnessed(), &pristine, "taken back by script");
            perform(&mut router, &plan);
            assert_same(&scripted, &witnessed(), "made by script");
            perform(&mut router, &plan.inverse());
            assert_same(&witnessed(), &pristine, "taken back");
        }
    }

    #[test]
    fn a_plan_and_its_inverse_leave_no_trace() {
        if !with_router("a_plan_and_its_inverse_leave_no_trace") {
            return;
        }
        let mut router = Router::open().unwrap();
        let policy = policy("off", "nftables");
        let plan = plan_for(&mut router, &policy, &Ledger::default());
        let pristine = witnessed();
        // Wherever it stops.
        for steps in 0..=plan.changes.len() {
            let begun = Plan {
                changes: plan.changes.iter().take(steps).cloned().collect(),
            };
            perform(&mut router, &begun);
            perform(&mut router, &begun.inverse());
            assert_same(&witnessed(), &pristine, &format!("after {steps} steps"));
        }
    }

    #[test]
    fn settings_are_what_their_files_say() {
        if !with_router("settings_are_what_their_files_say") {
            return;
        }
        let mut odd = ["0", "1", "2"].iter().cycle();
        for link in ["sps0", "cli0", "far1"] {
            let ipv4 = format!("/proc/sys/net/ipv4/conf/{link}");
            write(&format!("{ipv4}/rp_filter"), odd.next().unwrap());
            write(&format!("{ipv4}/send_redirects"), "0");
        }
        write("/proc/sys/net/ipv4/conf/cli0/src_valid_mark", "1");
        write("/proc/sys/net/ipv4/conf/far0/forwarding", "1");
        write("/proc/sys/net/ipv6/conf/sps0/forwarding", "1");
        let wish = Wish { policies: &[] };
        let observed = Router::open().unwrap().observe(&wish).unwrap();
        for link in &observed.links {
            let ipv4 = [
                Setting::RpFilter,
                Setting::SrcValidMark,
                Setting::SendRedirects,
                Setting::Forwarding,
            ];
            let mut settings = ipv4
                .map(|setting| Sysctl::ipv4(&link.name, setting))
                .to_vec();
            settings.push(Sysctl {
                family: Family::V6,
                ..Sysctl::ipv4(&link.name, Setting::Forwarding)
            });
            for sysctl in settings {
                let found = observed.sysctls.get(&sysctl.to_string());
                let found = found.map(|(_, value)| value.clone());
                assert_eq!(found, sysctl::read(&sysctl).unwrap(), "{sysctl}");
            }
        }
    }

    /// Not a limit to be met on every machine, but one whose crossing means that something
    /// is read that should not be. In release: see the figures in the log.
    #[test]
    fn an_observation_is_quick() {
        if !with_router("an_observation_is_quick") {
            return;
        }
        let mut router = Router::open().unwrap();
        let policy = policy("loose", "auto");
        let plan = plan_for(&mut router, &policy, &Ledger::default());
        perform(&mut router, &plan);
        let wish = Wish {
            policies: &[&policy],
        };
        let mut times: Vec<_> = (0..50)
            .map(|_| {
                let begun = Instant::now();
                router.observe(&wish).unwrap();
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("observe: median {:?}, worst {:?}", times[25], times[49]);
        assert!(times[25].as_millis() < 50, "{times:?}");
    }
}
