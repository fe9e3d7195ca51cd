//! The kinds of rules that are compared.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use redirect::iptables::{Ruleset, Variant};
use redirect::kernel::iptables::Xtables;
use redirect::kernel::nftables::Nftables;
use redirect::kernel::process;
use redirect::plan::Change;
use redirect::policy::{self, Policy, Source};
use redirect::rules;

use super::router::run;
use crate::Trouble;

/// The port of the redirect that takes the sessions that are sent; of several, the last.
pub const PORT: u16 = 3389;

/// Which rules are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rules {
    /// None at all.
    None,
    /// None that a packet meets, but connections are tracked.
    Tracking,
    /// Steps 1 and 3 of the vendor's procedure.
    Vendor(Variant),
    /// The same with so many networks in an ipset: the least that so many cost.
    VendorSet(Variant, usize),
    /// Ours as an nftables table.
    Nftables {
        networks: usize,
        redirects: u16,
        ports: Ports,
    },
    /// Ours as iptables chains, with or without ipset.
    Iptables {
        variant: Variant,
        networks: usize,
        sets: bool,
    },
}

/// The ports of several redirects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// One for each.
    Own,
    /// One for all.
    Same,
}

impl Rules {
    /// All that are measured, in the order in which they take turns, with at most so many networks.
    pub fn all(most: usize) -> Vec<Self> {
        let ours = |networks: usize, redirects: u16, ports| Self::Nftables {
            networks: networks.min(most).max(redirects.into()),
            redirects,
            ports,
        };
        let iptables = |variant, networks: usize, sets| Self::Iptables {
            variant,
            networks: networks.min(most),
            sets,
        };
        let mut all = vec![
            Self::None,
            Self::Tracking,
            Self::Vendor(Variant::Nft),
            Self::Vendor(Variant::Legacy),
            Self::VendorSet(Variant::Nft, most.min(100_000)),
            Self::VendorSet(Variant::Legacy, most.min(100_000)),
            ours(1, 1, Ports::Own),
            ours(1_000, 1, Ports::Own),
            ours(100_000, 1, Ports::Own),
            ours(20, 20, Ports::Own),
            ours(100_000, 20, Ports::Own),
            ours(20, 20, Ports::Same),
        ];
        for variant in [Variant::Nft, Variant::Legacy] {
            all.push(iptables(variant, 1, true));
            all.push(iptables(variant, 100_000, true));
            all.push(iptables(variant, 1_000, false));
        }
        all
    }

    /// A program that it needs and this machine lacks.
    pub fn missing_program(self) -> Option<&'static str> {
        let needed: &[&str] = match self {
            Self::None | Self::Nftables { .. } => &["ip"],
            Self::Tracking => &["ip", "nft"],
            Self::Vendor(variant) => &["ip", variant.command()],
            Self::VendorSet(variant, _) | Self::Iptables { variant, .. } => {
                &["ip", variant.command(), "ipset"]
            }
        };
        needed
            .iter()
            .copied()
            .find(|program| process::find(program).is_none())
    }

    /// Makes them so in the namespace that we are in.
    pub fn put_in(self) -> Result<(), Trouble> {
        match self {
            Self::None => Ok(()),
            Self::Tracking => run(
                "nft",
                &["-f", "-"],
                // Nothing leads there, but it is what turns tracking on.
                "table inet tracking { chain unused { ct state new; }; }",
            ),
            Self::Vendor(variant) | Self::VendorSet(variant, _) => {
                let command = variant.command();
                let port = PORT.to_string();
                let servers = if let Self::VendorSet(_, networks) = self {
                    let mut set = format!("create servers hash:net maxelem {networks}\n");
                    let own = std::iter::once("10.20.0.0/24".to_owned());
                    for network in own.chain(elsewhere().take(networks - 1)) {
                        writeln!(set, "add servers {network}")?;
                    }
                    run("ipset", &["restore"], &set)?;
                    "-m set --match-set servers dst"
                } else {
                    "-d 10.20.0.0/24"
                };
                for rule in [
                    format!(
                        "-I PREROUTING -i cli0 -p tcp --dport {port} {servers} -j CONNMARK --set-mark 1"
                    ),
                    "-A PREROUTING ! -i sps0 -m connmark --mark 1 -j MARK --set-mark 1".to_owned(),
                ] {
                    let words: Vec<_> = ["-t", "mangle"]
                        .into_iter()
                        .chain(rule.split_whitespace())
                        .collect();
                    run(command, &words, "")?;
                }
                Ok(())
            }
            Self::Nftables {
                networks,
                redirects,
                ports,
            } => {
                let policy = policy(networks, redirects, ports)?;
                let table = rules::nftables::table(&policy);
                let mut kernel = Nftables::open()?;
                kernel.read()?;
                kernel.commit(None, table.as_ref())?;
                Ok(())
            }
            Self::Iptables {
                variant,
                networks,
                sets,
            } => {
                let policy = policy(networks, 1, Ports::Own)?;
                let rendered = rules::iptables::render(&policy, sets)?;
                let mut xtables = Xtables::default();
                for set in rendered.sets {
                    xtables.perform(&Change::Ipset {
                        from: None,
                        to: Some(set),
                    })?;
                }
                for (family, to) in rendered.rulesets {
                    xtables.perform(&Change::Iptables {
                        variant,
                        command: variant.command().to_owned(),
                        family,
                        from: Ruleset::default(),
                        to,
                    })?;
                }
                Ok(())
            }
        }
    }

    /// Whether sessions of [`super::router::Traffic::Redirected`] are.
    pub fn redirects(self) -> bool {
        !matches!(self, Self::None | Self::Tracking)
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no rules, no connection tracking"),
            Self::Tracking => f.write_str("connection tracking alone"),
            Self::Vendor(variant) => write!(f, "the vendor's rules, {variant}"),
            Self::VendorSet(variant, networks) => {
                write!(
                    f,
                    "the vendor's rules, {variant}, {networks} networks in an ipset"
                )
            }
            Self::Nftables {
                networks,
                redirects,
                ports,
            } => {
                write!(
                    f,
                    "**`redirect`, nftables**: networks {networks}, redirects {redirects}"
                )?;
                match ports {
                    Ports::Own => Ok(()),
                    Ports::Same => f.write_str(", all of one port"),
                }
            }
            Self::Iptables {
                variant,
                networks,
                sets,
            } => {
                let how = if *sets { "" } else { ", without ipset" };
                write!(f, "**`redirect`, {variant}**: networks {networks}{how}")
            }
        }
    }
}

/// A policy whose last redirect takes 10.20.0.0/24; all others are of networks elsewhere.
fn policy(networks: usize, redirects: u16, ports: Ports) -> Result<Policy, Trouble> {
    let mut text = String::from(
        "version = 1\n[appliance.scb]\naddress = \"10.30.0.2\"\ninterface = \"sps0\"\nmark = 1\n",
    );
    let mut others = elsewhere();
    let each = networks / usize::from(redirects);
    for index in 0..redirects {
        let is_last = index + 1 == redirects;
        let mut list: Vec<String> = others.by_ref().take(each - usize::from(is_last)).collect();
        list.extend(is_last.then(|| "10.20.0.0/24".to_owned()));
        let port = match ports {
            Ports::Own => PORT - (redirects - 1 - index),
            Ports::Same => PORT,
        };
        write!(
            text,
            "[[redirect]]\nname = \"r{index}\"\nappliance = \"scb\"\nclient_interface = \"cli0\"\n\
             server_network = {list:?}\nport = {port}\nsnat = false\n"
        )?;
    }
    match policy::read(&Source::from_text("benchmark", text.as_str())) {
        Ok(reading) => Ok(reading.policy),
        Err(errors) => Err(errors.to_string().into()),
    }
}

/// Networks of 24 to 32 bits from 20.0.0.0 on, none beside another.
fn elsewhere() -> impl Iterator<Item = String> {
    (0_u32..).map(|at| {
        let length = 24 + at % 9;
        let first = Ipv4Addr::from((20 << 24) + (at << 9));
        format!("{first}/{length}")
    })
}
