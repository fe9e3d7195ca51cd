//! Gathers what `check`, `trace` and `init` look at beyond an observation. No decisions
//! here, and nothing is changed: what cannot be read is noted, and the rest is read all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::conntrack::Conntrack;
use super::iptables::nft_is_bare;
use super::route::{Neighbour, Question};
use super::router::Router;
use super::{KernelError, files, process};
use crate::check::foreign::nft::TableName;
use crate::check::foreign::{Ruleset, System, iptables, nft};
use crate::check::legs;
use crate::check::surroundings::{BE_LIBERAL, OPEN_SESSIONS, Surroundings, Unseen, concerns};
use crate::net::{Action, Family, RouteProtocol, TableId};
use crate::observation::Observed;
use crate::policy::Policy;
use crate::rules::Model;

/// Rulesets of tens of thousands of rules take seconds to print.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at everything that matters to `policy`, which may be in force already.
#[must_use]
pub fn gather(
    policy: &Policy,
    in_force: bool,
    observed: &Observed,
    router: &mut Router,
) -> Surroundings {
    let mut found = Surroundings {
        settings: settings(observed),
        networkd: networkd(),
        listeners: listeners(),
        ..Surroundings::default()
    };
    rules(&mut found);
    for link in &observed.links {
        let is_servers = observed.addresses.iter().any(|address| {
            address.link == link.index
                && policy
                    .redirects
                    .iter()
                    .any(|redirect| redirect.servers.contains(address.network.network()))
        });
        if concerns(policy, &link.name) || is_servers {
            neighbours(&mut found, router, link);
        }
    }
    routes(policy, observed, router, &mut found);
    let sessions = legs::sessions(policy, observed, &found);
    found.asked = legs::ask(policy, sessions, &mut |question: &Question| {
        router
            .routing()
            .lookup(question)
            .map_err(|error| error.to_string())
    });
    // Nothing of a policy in force is yet to be cut; and there may be a million connections.
    if !in_force {
        let counted = noted(
            &mut found.unseen,
            OPEN_SESSIONS,
            open_sessions(policy, observed),
        );
        found.open_sessions = counted.flatten();
    }
    found
}

/// Looks at everything that a first policy could be about.
#[must_use]
pub fn inventory(observed: &Observed, router: &mut Router) -> Surroundings {
    let mut found = Surroundings::default();
    rules(&mut found);
    for link in &observed.links {
        neighbours(&mut found, router, link);
    }
    let mut tables: BTreeSet<TableId> = observed
        .rules
        .iter()
        .filter_map(|rule| match rule.action {
            Action::Lookup(table) => Some(table),
            Action::Other(_) => None,
        })
        .collect();
    tables.remove(&LOCAL);
    tables.insert(TableId::MAIN);
    let read = router.routing().routes(&observed.links, &tables);
    found.routes = noted(&mut found.unseen, "routes", read).unwrap_or_default();
    found
}

/// `RT_TABLE_LOCAL`, which every router asks first, and which never leads on.
const LOCAL: TableId = TableId(255);

/// What was read, or nothing and a note.
fn noted<T>(unseen: &mut Vec<Unseen>, what: &str, read: Result<T, KernelError>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(error) => {
            unseen.push(Unseen {
                what: what.to_owned(),
                why: error.to_string(),
            });
            None
        }
    }
}

fn settings(observed: &Observed) -> BTreeMap<String, i64> {
    let mut settings: BTreeMap<String, i64> = observed
        .sysctls
        .iter()
        .filter_map(|(path, (_, value))| Some((path.clone(), value.trim().parse().ok()?)))
        .collect();
    for path in ["net/ipv4/ip_forward", BE_LIBERAL] {
        let content = files::read(&Path::new("/proc/sys").join(path), 64);
        if let Ok(Some(content)) = content
            && let Ok(value) = content.text.trim().parse()
        {
            settings.insert(path.to_owned(), value);
        }
    }
    settings
}

/// Where TCP sockets of this network namespace listen (`Documentation/networking/proc_net_tcp.rst`).
fn listeners() -> Vec<SocketAddr> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|path| fs::File::open(path).ok())
        .flat_map(|file| {
            // Those that listen come first, and there may be a million others behind them.
            let lines = BufReader::new(file).lines().skip(1);
            lines.map_while(|line| listener(&line.ok()?))
        })
        .collect()
}

/// `0: 0100007F:0016 00000000:0000 0A …`: an address as the words of the kernel's memory, a port,
/// and the state; 0A is `TCP_LISTEN`.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| -> Option<[u8; 4]> {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::from(word(0)?)
    } else {
        let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
        IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)
    };
    (state == "0A").then_some(SocketAddr::new(address, port))
}

fn neighbours(found: &mut Surroundings, router: &mut Router, link: &crate::observation::Link) {
    let read = router.routing().neighbours(link);
    let what = format!("neighbours at `{}`", link.name);
    if let Some(read) = noted(&mut found.unseen, &what, read) {
        let of_link = |neighbour: Neighbour| (link.name.clone(), neighbour);
        found.neighbours.extend(read.into_iter().map(of_link));
    }
}

/// The tables that routing rules before ours name, and `main` where it is needed: on a router with
/// all the Internet's routes it is large.
fn routes(policy: &Policy, observed: &Observed, router: &mut Router, found: &mut Surroundings) {
    let last = policy
        .appliances
        .iter()
        .map(|appliance| appliance.rule_priority)
        .max();
    let mut tables: BTreeSet<TableId> = observed
        .rules
        .iter()
        .filter(|rule| rule.protocol != RouteProtocol::OURS && Some(rule.priority) <= last)
        .filter_map(|rule| match rule.action {
            Action::Lookup(table) => Some(table),
            Action::Other(_) => None,
        })
        .collect();
    tables.remove(&LOCAL);
    let without_addresses = observed.links.iter().any(|link| {
        let is_client = policy.redirects.iter().any(|redirect| {
            redirect
                .client_interfaces
                .iter()
                .any(|pattern| pattern.matches(&link.name))
        });
        is_client
            && !observed
                .addresses
                .iter()
                .any(|address| address.link == link.index)
    });
    if without_addresses {
        tables.insert(TableId::MAIN);
    }
    if tables.is_empty() {
        return;
    }
    let read = router.routing().routes(&observed.links, &tables);
    found.routes = noted(&mut found.unseen, "routes", read).unwrap_or_default();
}

/// The packet rules of others: iptables' by `iptables-save`, all others by `nft`.
fn rules(found: &mut Surroundings) {
    let mut ruleset = Ruleset::default();
    let mut of_iptables: Vec<TableName> = Vec::new();
    for (system, family, command) in iptables_commands() {
        let program = format!("{command}-save");
        let what = format!("what `{program}` prints");
        let Some(text) = noted(&mut found.unseen, &what, output(&program, &[])) else {
            continue;
        };
        let read = iptables::read(&text, system, family, &command);
        let count = read
            .chains
            .iter()
            .filter(|chain| !chain.is_ours())
            .map(|chain| {
                chain
                    .rules
                    .iter()
                    .filter(|rule| !is_jump_to_us(rule))
                    .count()
            })
            .sum::<usize>();
        if system == System::IptablesNft {
            of_iptables.extend(iptables::tables(&text, family));
            found.iptables.1 += count;
        } else {
            found.iptables.0 += count;
        }
        ruleset.chains.extend(read.chains);
    }
    if let Some(others) = nft_rules(&mut found.unseen, &of_iptables) {
        ruleset.chains.extend(others.chains);
        ruleset.flowtables.extend(others.flowtables);
    }
    found.rules = ruleset;
}

fn is_jump_to_us(rule: &crate::check::foreign::Rule) -> bool {
    use crate::check::foreign::{Effect, Step};
    rule.steps.contains(&Step::Do(Effect::Ours))
}

/// The commands that show each family and variant, where there are rules to be shown.
fn iptables_commands() -> Vec<(System, Family, String)> {
    let mut commands = Vec::new();
    for (family, plain, tables) in [
        (Family::V4, "iptables", "/proc/net/ip_tables_names"),
        (Family::V6, "ip6tables", "/proc/net/ip6_tables_names"),
    ] {
        let is_nft = || output(plain, &["-V"]).is_ok_and(|version| version.contains("nf_tables"));
        // Without a table there are no rules, and the command might make one, and takes its time.
        let has_legacy = files::read(Path::new(tables), 4096)
            .is_ok_and(|names| names.is_some_and(|names| !names.text.trim().is_empty()));
        for (system, variant, is_bare) in [
            (System::IptablesLegacy, "legacy", !has_legacy),
            (System::IptablesNft, "nft", nft_is_bare(family)),
        ] {
            if is_bare {
                continue;
            }
            let exact = format!("{plain}-{variant}");
            if process::find(&format!("{exact}-save")).is_some() {
                commands.push((system, family, exact));
            } else if process::find(&format!("{plain}-save")).is_some()
                && is_nft() == (system == System::IptablesNft)
            {
                commands.push((system, family, plain.to_owned()));
            }
        }
    }
    commands
}

fn nft_rules(unseen: &mut Vec<Unseen>, without: &[TableName]) -> Option<Ruleset> {
    let what = "nftables rules of others";
    if process::find("nft").is_none() {
        // Somebody may have made rules without it.
        if Path::new("/proc/sys/net/netfilter").exists() {
            unseen.push(Unseen {
                what: what.to_owned(),
                why: "`nft` is not installed; install it to have them checked".to_owned(),
            });
        }
        return None;
    }
    noted(unseen, what, read_nft(without))
}

fn read_nft(without: &[TableName]) -> Result<Ruleset, KernelError> {
    let strange = |error| KernelError::because("cannot read what `nft` prints", error);
    // Without the elements of sets: ours may have 100,000, which nft takes seconds to list.
    let json = output("nft", &["-j", "-t", "list", "ruleset"])?;
    let mut listings = Vec::new();
    for (family, name) in nft::with_sets(&json).map_err(strange)? {
        listings.push(output("nft", &["-j", "list", "table", &family, &name])?);
    }
    // This one has the texts of the rules, found by their handles.
    let text = output("nft", &["-a", "-t", "list", "ruleset"])?;
    nft::read(&json, &listings, &text, without).map_err(strange)
}

/// What a program prints, if it succeeds.
fn output(program: &str, arguments: &[&str]) -> Result<String, KernelError> {
    let output = process::run(program, arguments, b"", PATIENCE)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let words = [&[program], arguments].concat().join(" ");
        Err(KernelError::because(
            format!("`{words}` failed"),
            output.complaint(),
        ))
    }
}

/// By redirect: established sessions that it would cut. `None` where no connection at all is
/// tracked.
fn open_sessions(
    policy: &Policy,
    observed: &Observed,
) -> Result<Option<BTreeMap<usize, u64>>, KernelError> {
    let model = Model::new(policy);
    let mut tracked = false;
    let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
    Conntrack::open()?.count(None, |connection| {
        tracked = true;
        if connection.is_established_tcp()
            && !observed.is_own(connection.destination)
            && let Some(index) = model.cuts(connection.ends(), connection.mark)
        {
            *counts.entry(index).or_default() += 1;
        }
        false
    })?;
    Ok(tracked.then_some(counts))
}

/// Where systemd-networkd looks for its configuration, the first one last, for it wins.
const NETWORKD_DIRECTORIES: [&str; 4] = [
    "/usr/lib/systemd",
    "/usr/local/lib/systemd",
    "/run/systemd",
    "/etc/systemd",
];

/// Its configuration files, if it runs in this network namespace.
fn networkd() -> Option<Vec<(PathBuf, String)>> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    let runs = fs::read_dir("/proc").ok()?.flatten().any(|entry| {
        let path = entry.path();
        // A process's name is cut off after 15 bytes.
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "systemd-network")
            && fs::read_link(path.join("ns/net")).is_ok_and(|namespace| namespace == own)
    });
    if !runs {
        return None;
    }
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut read = |path: PathBuf| {
        if let Ok(text) = fs::read_to_string(&path) {
            files.push((path, text));
        }
    };
    // The main file first; drop-ins by name, whichever directory they are in; of the same
    // name, the last directory's counts.
    for directory in NETWORKD_DIRECTORIES {
        read(Path::new(directory).join("networkd.conf"));
    }
    let mut drop_ins: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for directory in NETWORKD_DIRECTORIES {
        let directory = Path::new(directory).join("networkd.conf.d");
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                drop_ins.insert(entry.file_name(), path);
            }
        }
    }
    drop_ins.into_values().for_each(&mut read);
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_others() {
        let of = |words: [u32; 4]| words.map(|word| format!("{:08X}", word.to_be())).concat();
        let v4 = format!(
            "   0: {:08X}:0016 00000000:0000 0A 0:0",
            0x0a14_0001_u32.to_be()
        );
        assert_eq!(listener(&v4), Some("10.20.0.1:22".parse().unwrap()));
        let v6 = format!("   1: {}:0D3D 0:0 0A", of([0xfd00_0020, 0, 0, 1]));
        assert_eq!(listener(&v6), Some("[fd00:20::1]:3389".parse().unwrap()));
        for other in [
            "  sl  local_address rem_address   st",
            &v4.replace("0A 0:0", "01 0:0"),
            "",
        ] {
            assert_eq!(listener(other), None, "{other}");
        }
        let mine = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listeners().contains(&mine.local_addr().unwrap()));
    }
}
