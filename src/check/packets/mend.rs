//! Commands that let our packets pass where others keep them, and keep others' where they must not pass.

use super::super::foreign::walk::Site;
use super::super::foreign::{Hook, System};
use super::super::legs::Number;
use super::super::{Backend, Case};
use super::troubles::Way;
use crate::net::{Family, IfName, Ports};

impl Way<'_> {
    /// A command that accepts this leg's packets just before what happened at `site`.
    pub(super) fn before(&self, site: Site<'_>, what: &Match) -> String {
        let family = self.asked.session.family;
        match site.chain.system {
            System::Nft => {
                let words = self.nft_match(what);
                let chain = format!(
                    "{} {} {}",
                    site.chain.table_family, site.chain.table, site.chain.name
                );
                match site.rule {
                    Some(rule) => format!(
                        "nft 'insert rule {chain} position {} {words} accept'",
                        rule.handle
                    ),
                    None => format!("nft 'add rule {chain} {words} accept'"),
                }
            }
            System::IptablesNft | System::IptablesLegacy => {
                let words = self.iptables_match(what);
                let program = &site.base.command;
                let table = &site.chain.table;
                let docker = site.base.name == "FORWARD"
                    && table == "filter"
                    && self.case.surroundings.rules.chains.iter().any(|chain| {
                        chain.name == "DOCKER-USER"
                            && chain.sees(family)
                            && chain.system == site.base.system
                    });
                let place = match site.rule {
                    // Docker leaves this chain to its user.
                    _ if docker => "-I DOCKER-USER".to_owned(),
                    Some(rule) => format!("-I {} {}", site.chain.name, rule.handle),
                    None => format!("-A {}", site.chain.name),
                };
                format!("{program} -t {table} {place} {words} -j ACCEPT")
            }
        }
    }

    fn nft_match(&self, what: &Match) -> String {
        let mark = self.appliance.mark;
        let input = |name: &Option<IfName>| {
            name.as_ref()
                .map_or_else(String::new, |name| format!("iifname \"{name}\" "))
        };
        let output = self
            .output
            .as_ref()
            .map_or_else(String::new, |name| format!("oifname \"{name}\" "));
        let server_side = matches!(
            self.number,
            Number::ServerToAppliance | Number::ApplianceToClient
        );
        let words = match what {
            Match::Early { ports: false } => input(&self.input),
            Match::Early { ports: true } => {
                let which = if server_side { "sport" } else { "dport" };
                let ports: Vec<String> = self
                    .redirect
                    .ports
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                format!(
                    "{}tcp {which} {{ {} }}",
                    input(&self.input),
                    ports.join(", ")
                )
            }
            Match::Late => format!("{}{output}{}", input(&self.input), self.nft_session()),
            Match::Leaving => format!("{output}{}", self.nft_session()),
            Match::Marked => format!("meta mark and {:#x} == {:#x}", mark.mask, mark.value),
            Match::Connection => format!("ct mark and {:#x} == {:#x}", mark.mask, mark.value),
        };
        words.trim_end().to_owned()
    }

    /// What tells this leg's packets from others between the same interfaces.
    fn nft_session(&self) -> String {
        let mark = self.appliance.mark;
        match (self.number, self.appliance_address()) {
            (Number::ApplianceToServer, Some((family, address))) if !self.redirect.snat => {
                format!("{} saddr {address}", nft_family(family))
            }
            (Number::ServerToAppliance, Some((family, address))) if !self.redirect.snat => {
                format!("{} daddr {address}", nft_family(family))
            }
            _ => format!("ct mark and {:#x} == {:#x}", mark.mask, mark.value),
        }
    }

    fn appliance_address(&self) -> Option<(Family, std::net::IpAddr)> {
        let family = self.asked.session.family;
        Some((family, self.appliance.address(family)?))
    }

    fn iptables_match(&self, what: &Match) -> String {
        let mark = self.appliance.mark;
        let mut words: Vec<String> = Vec::new();
        let input = self.input.as_ref().map(|name| format!("-i {name}"));
        let output = self.output.as_ref().map(|name| format!("-o {name}"));
        let server_side = matches!(
            self.number,
            Number::ServerToAppliance | Number::ApplianceToClient
        );
        match what {
            Match::Early { ports } => {
                words.extend(input);
                if *ports {
                    words.push(multiport(&self.redirect.ports, server_side));
                }
            }
            Match::Late | Match::Leaving => {
                // POSTROUTING knows no input interface.
                words.extend(input.filter(|_| matches!(what, Match::Late)));
                words.extend(output);
                words.push(match (self.number, self.appliance_address()) {
                    (Number::ApplianceToServer, Some((_, address))) if !self.redirect.snat => {
                        format!("-s {address}")
                    }
                    (Number::ServerToAppliance, Some((_, address))) if !self.redirect.snat => {
                        format!("-d {address}")
                    }
                    _ => format!("-m connmark --mark {mark}"),
                });
            }
            Match::Marked => words.push(format!("-m mark --mark {mark}")),
            Match::Connection => words.push(format!("-m connmark --mark {mark}")),
        }
        words.join(" ")
    }
}

fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// `-p tcp -m multiport --dports 22,80:90`; without ports where there are more than it takes
/// (15, a range counting twice: `XT_MULTI_PORTS`).
pub(in crate::check) fn multiport(ports: &Ports, source: bool) -> String {
    let slots: usize = ports
        .iter()
        .map(|range| if range.first == range.last { 1 } else { 2 })
        .sum();
    if slots > 15 {
        return "-p tcp".to_owned();
    }
    let words: Vec<String> = ports
        .iter()
        .map(|range| range.to_string().replace('-', ":"))
        .collect();
    let which = if source { "--sports" } else { "--dports" };
    format!("-p tcp -m multiport {which} {}", words.join(","))
}

/// What is to be refused in IPv6, in the words of either command.
pub(in crate::check) struct Refused {
    /// Where.
    pub(in crate::check) hook: Hook,
    /// The rule of nft.
    pub(in crate::check) nft: String,
    /// The rule of ip6tables.
    pub(in crate::check) iptables: String,
}

/// A command that refuses it, by what this router has for IPv6.
pub(in crate::check) fn refuse(case: &Case<'_>, refused: &Refused) -> String {
    let (chain, hook) = match refused.hook {
        Hook::Output => ("OUTPUT", "output"),
        _ => ("FORWARD", "forward"),
    };
    let of_iptables =
        case.surroundings.rules.chains.iter().find(|chain| {
            chain.system != System::Nft && chain.sees(Family::V6) && !chain.is_ours()
        });
    match (of_iptables, case.backend) {
        (None, Backend::Nftables) => format!(
            "nft 'add table ip6 {GUARD}; add chain ip6 {GUARD} {hook} {{ type filter hook {hook} priority filter; }}; add rule ip6 {GUARD} {hook} {}'",
            refused.nft
        ),
        (found, _) => {
            let command = found.map_or("ip6tables", |chain| chain.command.as_str());
            format!("{command} -I {chain} {}", refused.iptables)
        }
    }
}

/// The table that holds what [`refuse`] refuses, for want of another.
const GUARD: &str = "guard";

/// How a mending rule is to know our packets.
pub(super) enum Match {
    /// Before they are marked: by the interface they come in on, and the ports.
    Early {
        /// By these, too.
        ports: bool,
    },
    /// On a leg, once marked.
    Late,
    /// The same, where the input interface is not known any more.
    Leaving,
    /// By the packet mark.
    Marked,
    /// By the connection mark.
    Connection,
}
