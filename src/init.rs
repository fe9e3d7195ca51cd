//! A first policy for a router, from what is there.
//!
//! Where somebody has typed the vendor's procedure by hand (marks by iptables or nft, a rule
//! that looks at them, a table with one route), it is recognised, and the policy says the same.
//! That policy takes over the old mark, so that sessions which bear it stay with the appliance
//! while the old rules go: `removal` has the commands, in an order that leaks nothing.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::check::foreign::{Chain, Effect, Hook, Rule, Ruleset, Step, System, Test, Which};
use crate::kernel::route::Neighbour;
use crate::net::{
    Action, IfName, IfPattern, Mark, Networks, PortRange, Ports, Range, Route, RouteKind,
    RouteProtocol, RoutingRule, TableId,
};
use crate::observation::Observed;
use crate::shell;

/// What the router tells.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Links, addresses, rules.
    pub observed: &'a Observed,
    /// The routes of all tables that rules name, and of `main`.
    pub routes: &'a [Route],
    /// The packet rules of others.
    pub rules: &'a Ruleset,
    /// Neighbours, by interface.
    pub neighbours: &'a [(IfName, Neighbour)],
}

/// The vendor's procedure, as somebody typed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByHand {
    /// The appliance, an address for each family.
    pub appliance: Vec<IpAddr>,
    /// Where it is.
    pub interface: IfName,
    /// What its sessions are marked with.
    pub mark: u32,
    /// What is redirected.
    pub entries: Vec<Entry>,
    /// The rules that mark connections, each with its chain.
    marking: Vec<(Chain, Rule)>,
    /// The rules that bring the mark to packets.
    copying: Vec<(Chain, Rule)>,
    /// The routing rules.
    routing_rules: Vec<RoutingRule>,
    /// The routes of its table.
    routes: Vec<Route>,
    /// Lines of `/etc/iproute2/rt_tables` that name its table: number and name.
    names: Vec<(u32, String)>,
}

/// What is redirected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where clients come in.
    pub clients: Vec<String>,
    /// Where servers answer.
    pub server_interfaces: Vec<String>,
    /// The servers.
    pub servers: Networks,
    /// Their ports.
    pub ports: Vec<PortRange>,
    /// Whether the appliance dials servers with clients' addresses.
    pub snat: bool,
}

/// What a first policy is to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    /// The appliance's name; empty: `scb`, as the vendor's manual calls its table.
    pub name: String,
    /// The appliance's addresses.
    pub appliance: Vec<IpAddr>,
    /// Where it is.
    pub interface: String,
    /// What is redirected.
    pub entries: Vec<Entry>,
    /// The number of its table, and a mark with its mask, where not the usual ones.
    pub table: Option<u32>,
    /// See there.
    pub mark: Option<Mark>,
}

/// The parts of a rule that the procedure uses.
#[derive(Default)]
struct Parts<'r> {
    input: Option<&'r [IfPattern]>,
    not_input: Option<&'r [IfPattern]>,
    source: Option<&'r Networks>,
    destination: Option<&'r Networks>,
    source_port: Option<&'r Ports>,
    destination_port: Option<&'r Ports>,
    connection_mark: Option<u32>,
    effect: Option<&'r Effect>,
    strange: bool,
}

fn parts(rule: &Rule) -> Parts<'_> {
    let mut parts = Parts::default();
    for step in &rule.steps {
        match step {
            Step::If(Test::Input(patterns)) => parts.input = Some(patterns),
            Step::Unless(Test::Input(patterns)) => parts.not_input = Some(patterns),
            Step::If(Test::Source(networks)) => parts.source = Some(networks),
            Step::If(Test::Destination(networks)) => parts.destination = Some(networks),
            Step::If(Test::SourcePort(range)) => parts.source_port = Some(range),
            Step::If(Test::DestinationPort(range)) => parts.destination_port = Some(range),
            Step::If(Test::ConnectionMark { values, .. }) => {
                parts.connection_mark = values.first().copied();
            }
            Step::If(Test::Protocol(_) | Test::Family(_)) => {}
            Step::Do(effect) => parts.effect = Some(effect),
            _ => parts.strange = true,
        }
    }
    parts
}

/// Recognises the vendor's procedure.
#[must_use]
pub fn recognise(facts: &Facts<'_>) -> Option<ByHand> {
    facts
        .observed
        .rules
        .iter()
        .filter(|rule| rule.protocol != RouteProtocol::OURS)
        .find_map(|rule| recognise_from(facts, rule))
}

fn recognise_from(facts: &Facts<'_>, first: &RoutingRule) -> Option<ByHand> {
    let mark = first.mark?.value;
    let Action::Lookup(table) = first.action else {
        return None;
    };
    let in_table = |route: &&Route| route.table == table && route.protocol != RouteProtocol::OURS;
    let routes: Vec<Route> = facts.routes.iter().filter(in_table).cloned().collect();
    // Exactly what the procedure makes: a default route by an appliance.
    let default = routes.iter().find(|route| {
        route.destination.is_none() && route.kind == RouteKind::Unicast && route.via.is_some()
    })?;
    let interface = default.interface.clone()?;
    let is_its = |rule: &&RoutingRule| {
        rule.action == first.action
            && rule.mark.is_some_and(|found| found.value == mark)
            && rule.protocol != RouteProtocol::OURS
    };
    let mut found = ByHand {
        appliance: routes.iter().filter_map(|route| route.via).collect(),
        interface,
        mark,
        entries: Vec::new(),
        marking: Vec::new(),
        copying: Vec::new(),
        routing_rules: facts
            .observed
            .rules
            .iter()
            .filter(is_its)
            .cloned()
            .collect(),
        names: facts
            .observed
            .table_names
            .others
            .iter()
            .filter(|(number, ..)| *number == table.0)
            .map(|(number, name, _)| (*number, name.clone()))
            .collect(),
        routes: routes.clone(),
    };
    found.appliance.sort_unstable();
    found.appliance.dedup();
    let mut answers: Vec<Entry> = Vec::new();
    for chain in facts.rules.chains.iter().filter(|chain| !chain.is_ours()) {
        let at_prerouting = chain.base.is_some_and(|base| base.hook == Hook::Prerouting);
        if !at_prerouting {
            continue;
        }
        for rule in &chain.rules {
            found.take(chain, rule, &mut answers);
        }
    }
    if found.entries.is_empty() {
        return None;
    }
    for entry in &mut found.entries {
        let answer = answers
            .iter()
            .find(|answer| answer.servers == entry.servers);
        if let Some(answer) = answer {
            entry.snat = true;
            entry
                .server_interfaces
                .clone_from(&answer.server_interfaces);
        }
    }
    found.entries = merged(std::mem::take(&mut found.entries));
    Some(found)
}

impl ByHand {
    /// Takes a rule for one of the procedure's, if it is.
    fn take(&mut self, chain: &Chain, rule: &Rule, answers: &mut Vec<Entry>) {
        let parts = parts(rule);
        if parts.strange {
            return;
        }
        let names = |patterns: Option<&[IfPattern]>| -> Vec<String> {
            let patterns = patterns.unwrap_or_default();
            patterns.iter().map(ToString::to_string).collect()
        };
        let here = (chain.clone(), rule.clone());
        match parts.effect {
            Some(Effect::Mark {
                which: Which::Connection,
                take: 0,
                constant,
                ..
            }) if *constant == self.mark => {
                let from_appliance = names(parts.input) == [self.interface.to_string()];
                match parts {
                    Parts {
                        destination: Some(servers),
                        destination_port: Some(range),
                        input: Some(_),
                        ..
                    } => {
                        let entry = Entry {
                            clients: names(parts.input),
                            servers: servers.clone(),
                            ports: range.iter().copied().collect(),
                            ..Entry::default()
                        };
                        if from_appliance {
                            answers.push(Entry {
                                clients: Vec::new(),
                                ..entry
                            });
                        } else {
                            self.entries.push(entry);
                        }
                        self.marking.push(here);
                    }
                    Parts {
                        source: Some(servers),
                        source_port: Some(_),
                        ..
                    } => {
                        answers.push(Entry {
                            servers: servers.clone(),
                            server_interfaces: names(parts.input),
                            ..Entry::default()
                        });
                        self.marking.push(here);
                    }
                    _ => {}
                }
            }
            Some(Effect::Mark {
                which: Which::Packet,
                take,
                constant,
                ..
            }) => {
                let sets = *take == 0 && *constant == self.mark;
                let by_mark = parts.connection_mark == Some(self.mark);
                let restores = *take != 0 && *constant == 0;
                if (sets && by_mark) || (restores && parts.not_input.is_some()) {
                    self.copying.push(here);
                }
            }
            _ => {}
        }
    }

    /// The policy that says the same.
    #[must_use]
    pub fn draft(&self, facts: &Facts<'_>) -> Draft {
        let used = |number: u32| {
            facts
                .routes
                .iter()
                .any(|route| route.table == TableId(number))
                || facts
                    .observed
                    .table_names
                    .others
                    .iter()
                    .any(|(other, ..)| *other == number)
        };
        // The least byte that holds it: its sessions stay with the appliance.
        let mask = [0xff, 0xff00, 0x00ff_0000, 0xff00_0000]
            .into_iter()
            .find(|mask| self.mark & !mask == 0)
            .unwrap_or(u32::MAX);
        let usual = mask == 0xff && self.mark == 1;
        let is_named_scb =
            |(number, name, _): &(u32, String, std::path::PathBuf)| name == "scb" && *number == 103;
        Draft {
            // The old table keeps its name until it goes.
            name: if facts.observed.table_names.others.iter().any(is_named_scb) {
                "recorder".to_owned()
            } else {
                String::new()
            },
            appliance: self.appliance.clone(),
            interface: self.interface.to_string(),
            entries: self.entries.clone(),
            table: (103..253)
                .find(|number| !used(*number))
                .filter(|number| *number != 103),
            mark: Mark::new(self.mark, mask).filter(|_| !usual),
        }
    }

    /// The commands that remove the old setup once ours is in, with what to know about them.
    #[must_use]
    pub fn removal(&self) -> Vec<String> {
        let mut commands = vec![
            "# To be run once the new policy is applied: `redirect apply`. Sessions keep their mark,"
                .to_owned(),
            "# which both setups share, and stay with the appliance; none leaks in between.".to_owned(),
        ];
        for (chain, rule) in self.marking.iter().chain(&self.copying) {
            commands.push(match chain.system {
                System::Nft => format!(
                    "nft delete rule {} {} {} handle {}",
                    chain.table_family, chain.table, chain.name, rule.handle
                ),
                System::IptablesNft | System::IptablesLegacy => format!(
                    "{} -t {} {}",
                    chain.command,
                    chain.table,
                    rule.text.replacen("-A ", "-D ", 1)
                ),
            });
        }
        for rule in &self.routing_rules {
            let mark = rule.mark.map_or_else(String::new, |mark| match mark.mask {
                u32::MAX => format!(" fwmark {:#x}", mark.value),
                _ => format!(" fwmark {mark}"),
            });
            let Action::Lookup(table) = rule.action else {
                continue;
            };
            commands.push(format!(
                "ip {} rule del priority {}{mark} lookup {table}",
                rule.family.ip_flag(),
                rule.priority
            ));
        }
        for route in &self.routes {
            let destination = route
                .destination
                .map_or_else(|| "default".to_owned(), |network| network.to_string());
            commands.push(format!(
                "ip {} route del {destination} table {}",
                route.family.ip_flag(),
                route.table
            ));
        }
        for (number, name) in &self.names {
            commands.push(format!(
                r"sed -i '/^{number}[[:blank:]]\+{}$/d' /etc/iproute2/rt_tables",
                shell::word(name)
            ));
        }
        commands.push(format!(
            "# rp_filter: the old setup wrote 0 to `all` and to `{0}`. What was there before is not known;\n# `sysctl -w net.ipv4.conf.{0}.rp_filter=2 net.ipv4.conf.all.rp_filter=1` is strict everywhere\n# but there. And take the old commands out of whatever runs them at boot.",
            self.interface
        ));
        commands
    }
}

/// Entries of the same clients and servers become one, with all their ports; those of the same
/// servers and ports too, with all their clients.
fn merged(entries: Vec<Entry>) -> Vec<Entry> {
    let mut merged: Vec<Entry> = Vec::new();
    for entry in entries {
        let same = merged.iter_mut().find(|other| {
            other.servers == entry.servers
                && other.snat == entry.snat
                && (other.clients == entry.clients || other.ports == entry.ports)
        });
        match same {
            Some(other) => {
                if other.clients == entry.clients {
                    other.ports.extend(entry.ports);
                    other.ports.sort_unstable();
                    other.ports.dedup();
                } else {
                    other.clients.extend(entry.clients);
                    other.clients.sort_unstable();
                    other.clients.dedup();
                }
            }
            None => merged.push(entry),
        }
    }
    merged
}

/// A name for a redirect, from what its first port is mostly used for.
fn name(ports: &[PortRange], taken: &[String]) -> String {
    let known = ports.first().map_or("sessions", |range| match range.first {
        22 => "ssh",
        23 => "telnet",
        80 | 8080 => "http",
        443 | 8443 => "https",
        1433 => "mssql",
        3389 => "rdp",
        5900..=5999 => "vnc",
        _ => "sessions",
    });
    let mut name = known.to_owned();
    let mut number = 2;
    while taken.contains(&name) {
        name = format!("{known}-{number}");
        number += 1;
    }
    name
}

/// The policy, commented.
#[must_use]
pub fn policy_text(draft: &Draft, facts: &Facts<'_>) -> String {
    let mut text = String::from(
        "# Sessions that this router sends through the recording appliance. Written by\n# `redirect init`; look it over, then `redirect check`, `redirect apply --dry-run`,\n# `redirect apply --confirm 120`.\n\nversion = 1\n\n",
    );
    let addresses = list(draft.appliance.iter().map(ToString::to_string));
    _ = writeln!(
        text,
        "[appliance.{name}]\naddress   = {addresses}\ninterface = \"{}\"",
        draft.interface,
        name = if draft.name.is_empty() {
            "scb"
        } else {
            &draft.name
        },
    );
    for (interface, neighbour) in facts.neighbours {
        if interface.as_str() == draft.interface
            && draft.appliance.contains(&neighbour.address)
            && let Some(mac) = neighbour.mac
        {
            _ = writeln!(
                text,
                "# mac     = \"{mac}\"  # as seen; needed where clients or servers share the interface"
            );
            break;
        }
    }
    if let Some(table) = draft.table {
        _ = writeln!(text, "table     = {table}  # 103 is taken");
    }
    if let Some(mark) = draft.mark {
        _ = writeln!(text, "mark      = {:#x}", mark.value);
    }
    let mut taken = Vec::new();
    for entry in &draft.entries {
        let name = name(&entry.ports, &taken);
        let servers = networks(&entry.servers);
        let ports = entry.ports.iter().map(|range| {
            if range.first == range.last {
                range.first.to_string()
            } else {
                format!("\"{range}\"")
            }
        });
        let ports: Vec<String> = ports.collect();
        _ = writeln!(
            text,
            "\n[[redirect]]\nname             = \"{name}\"\nclient_interface = {}",
            list(entry.clients.iter().cloned())
        );
        if !entry.server_interfaces.is_empty() {
            _ = writeln!(
                text,
                "server_interface = {}",
                list(entry.server_interfaces.iter().cloned())
            );
        }
        _ = writeln!(
            text,
            "server_network   = {}\nport             = [{}]\nsnat             = {}  # whether the appliance dials servers with the client's own address",
            list(servers.into_iter()),
            ports.join(", "),
            entry.snat
        );
        taken.push(name);
    }
    if let Some(mark) = draft.mark {
        _ = writeln!(text, "\n[options]\nmark_mask = {:#x}", mark.mask);
    }
    text.push_str("\n# What this router has:\n");
    text.push_str(&inventory(facts));
    text
}

fn networks(servers: &Networks) -> Vec<String> {
    let v4 = servers.v4.iter().flat_map(Range::<u32>::prefixes);
    let v6 = servers.v6.iter().flat_map(Range::<u128>::prefixes);
    v4.chain(v6).map(|network| network.to_string()).collect()
}

fn list(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
    match words.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Interfaces with their networks, what is routed there, and how many neighbours are known, a
/// comment line each.
#[must_use]
pub fn inventory(facts: &Facts<'_>) -> String {
    const SHOWN: usize = 4;
    let mut text = String::new();
    for link in facts
        .observed
        .links
        .iter()
        .filter(|link| link.name.as_str() != "lo")
    {
        let addresses: Vec<String> = facts
            .observed
            .addresses
            .iter()
            .filter(|found| found.link == link.index)
            .map(|found| found.network.to_string())
            .filter(|network| !network.starts_with("fe80:"))
            .collect();
        let routed: Vec<String> = facts
            .routes
            .iter()
            .filter(|route| {
                route.table == TableId::MAIN
                    && route.interface.as_ref() == Some(&link.name)
                    && route.via.is_some()
            })
            .map(|route| match route.destination {
                Some(network) => network.to_string(),
                None => format!("default ({})", route.family),
            })
            .collect();
        let neighbours = facts
            .neighbours
            .iter()
            .filter(|(at, found)| *at == link.name && found.state.is_usable())
            .count();
        _ = write!(
            text,
            "#   {:<15} {}",
            link.name,
            if link.up { "" } else { "down; " }
        );
        text.push_str(&if addresses.is_empty() {
            "no address".to_owned()
        } else {
            addresses.join(", ")
        });
        if !routed.is_empty() {
            let more = routed.len().saturating_sub(SHOWN);
            let shown: Vec<String> = routed.into_iter().take(SHOWN).collect();
            _ = write!(text, "; routes to {}", shown.join(", "));
            if more > 0 {
                _ = write!(text, " and {more} more");
            }
        }
        if neighbours > 0 {
            let word = if neighbours == 1 {
                "neighbour"
            } else {
                "neighbours"
            };
            _ = write!(text, "; {neighbours} {word}");
        }
        text.push('\n');
    }
    text
}

/// The interface at which an address is on-link.
#[must_use]
pub fn interface_of(observed: &Observed, address: IpAddr) -> Option<IfName> {
    observed
        .links
        .iter()
        .find(|link| observed.is_on_link(address, &link.name))
        .map(|link| link.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::foreign::iptables;
    use crate::net::{RulePriority, RuleSelectors};
    use crate::policy::{self, Source};

    const BY_HAND: &str = "*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 10.20.0.0/24 -i eth1 -p tcp -m tcp --sport 3389 -j CONNMARK --set-xmark 0x1/0xffffffff
-A PREROUTING -d 10.20.0.0/24 -i eth0 -p tcp -m tcp --dport 22 -j CONNMARK --set-xmark 0x1/0xffffffff
-A PREROUTING -d 10.20.0.0/24 -i eth0 -p tcp -m tcp --dport 3389 -j CONNMARK --set-xmark 0x1/0xffffffff
-A PREROUTING ! -i sps0 -m connmark --mark 0x1 -j MARK --set-xmark 0x1/0xffffffff
COMMIT
";

    fn name(name: &str) -> IfName {
        IfName::new(name).unwrap()
    }

    #[test]
    fn what_somebody_typed_is_recognised() {
        let rules = iptables::read(
            BY_HAND,
            System::IptablesNft,
            crate::net::Family::V4,
            "iptables",
        );
        let mut observed = Observed::clean(&crate::policy::Policy::default());
        observed.rules.push(RoutingRule {
            family: crate::net::Family::V4,
            priority: RulePriority(32765),
            mark: Mark::new(1, u32::MAX),
            selectors: RuleSelectors::default(),
            action: Action::Lookup(TableId(103)),
            protocol: RouteProtocol(3),
        });
        let route = Route {
            family: crate::net::Family::V4,
            table: TableId(103),
            destination: None,
            kind: RouteKind::Unicast,
            via: Some("10.30.0.2".parse().unwrap()),
            interface: Some(name("sps0")),
            metric: 0,
            protocol: RouteProtocol(3),
            others: Vec::new(),
        };
        let routes = [route];
        let facts = Facts {
            observed: &observed,
            routes: &routes,
            rules: &rules,
            neighbours: &[],
        };
        let by_hand = recognise(&facts).unwrap();
        let text = policy_text(&by_hand.draft(&facts), &facts);
        let source = Source {
            name: "policy.toml".to_owned(),
            text: text.clone(),
            lists: Vec::new(),
            unreadable: Vec::new(),
        };
        let policy = policy::read(&source).unwrap().policy;
        let [redirect] = policy.redirects.as_slice() else {
            panic!("{text}");
        };
        assert_eq!(redirect.name.as_str(), "ssh");
        assert!(redirect.ports.contains(22) && redirect.ports.contains(3389));
        assert!(redirect.snat);
        assert_eq!(redirect.server_interfaces, [IfPattern::Exact(name("eth1"))]);
        assert_eq!(policy.appliances[0].table, TableId(104));
        assert_eq!(policy.appliances[0].mark, Mark::new(1, 0xff).unwrap());
        let removal = by_hand.removal();
        let commands: Vec<&str> = removal
            .iter()
            .map(String::as_str)
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert_eq!(
            commands,
            [
                "iptables -t mangle -D PREROUTING -s 10.20.0.0/24 -i eth1 -p tcp -m tcp --sport 3389 -j CONNMARK --set-xmark 0x1/0xffffffff",
                "iptables -t mangle -D PREROUTING -d 10.20.0.0/24 -i eth0 -p tcp -m tcp --dport 22 -j CONNMARK --set-xmark 0x1/0xffffffff",
                "iptables -t mangle -D PREROUTING -d 10.20.0.0/24 -i eth0 -p tcp -m tcp --dport 3389 -j CONNMARK --set-xmark 0x1/0xffffffff",
                "iptables -t mangle -D PREROUTING ! -i sps0 -m connmark --mark 0x1 -j MARK --set-xmark 0x1/0xffffffff",
                "ip -4 rule del priority 32765 fwmark 0x1 lookup 103",
                "ip -4 route del default table 103",
            ]
        );
        // A rule that looks at a mark which nobody sets is not the procedure.
        let none = Ruleset::default();
        assert_eq!(
            recognise(&Facts {
                rules: &none,
                ..facts
            }),
            None
        );
    }
}
