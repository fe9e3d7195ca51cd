//! What is there: the router as plain data, read once before a plan is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::iptables;
use crate::net::{Family, IfName, IfPattern, MacAddr, Route, RoutingRule};
use crate::nft;
use crate::policy::Policy;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOWER_UP`: it has a carrier.
    pub running: bool,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// What kind of virtual link it is (`veth`, `vrf`, …); none for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it belongs to, by index.
    pub master: Option<u32>,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address with its on-link prefix.
    pub network: IpNet,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
}

/// A setting under `/proc/sys/net`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sysctl {
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// `all`, `default`, or an interface; none for `ip_forward`, which stands by itself.
    pub interface: Option<IfName>,
    /// `rp_filter`, `send_redirects`, …
    pub setting: Setting,
}

/// The settings that we read, and those that we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Reverse path filter: 0 off, 1 strict, 2 loose; in force is the greater of `all` and the
    /// interface (`Documentation/networking/ip-sysctl.rst`).
    RpFilter,
    /// Whether the mark takes part in the reverse path lookup; in force if either is 1.
    SrcValidMark,
    /// Whether ICMP redirects are sent; in force if either is 1.
    SendRedirects,
    /// Whether packets are forwarded.
    Forwarding,
}

impl Setting {
    /// The file's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RpFilter => "rp_filter",
            Self::SrcValidMark => "src_valid_mark",
            Self::SendRedirects => "send_redirects",
            Self::Forwarding => "forwarding",
        }
    }
}

impl Sysctl {
    /// An IPv4 setting of `interface`.
    #[must_use]
    pub fn ipv4(interface: &IfName, setting: Setting) -> Self {
        Self {
            family: Family::V4,
            interface: Some(interface.clone()),
            setting,
        }
    }

    /// An IPv4 setting of `all`.
    #[must_use]
    pub fn ipv4_all(setting: Setting) -> Self {
        Self {
            family: Family::V4,
            interface: None,
            setting,
        }
    }

    /// Whether it is what new interfaces copy from.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.interface
            .as_ref()
            .is_some_and(|name| name.as_str() == "default")
    }

    /// Where it is read and written.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/sys/{self}"))
    }
}

impl fmt::Display for Sysctl {
    /// With slashes, for interface names may hold dots: `net/ipv4/conf/eth0.5/rp_filter`.
    /// `sysctl` takes this form as it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface.as_ref().map_or("all", IfName::as_str);
        write!(
            f,
            "net/{}/conf/{interface}/{}",
            self.family.sysctl_name(),
            self.setting.name()
        )
    }
}

/// A file as found: what is in it, and who may do what with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// All of it. These files are text; one that is not UTF-8 is refused when read.
    pub text: String,
    /// Permission bits, as in `chmod`.
    pub mode: u32,
}

/// How this router names its routing tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableNames {
    /// `/etc/iproute2/rt_tables`, if it exists.
    pub main: Option<FileContent>,
    /// Our drop-in, `/etc/iproute2/rt_tables.d/redirect.conf`, if it exists.
    pub drop_in: Option<FileContent>,
    /// Whether `/etc/iproute2` exists.
    pub directory: bool,
    /// Whether `/etc/iproute2/rt_tables.d` exists.
    pub drop_in_directory: bool,
    /// Whether this iproute2 reads drop-ins.
    pub drop_ins_read: bool,
    /// Which of the two directories hold something that is not ours.
    #[serde(default)]
    pub shared: Vec<PathBuf>,
    /// Names that others gave to table numbers: number, name and file.
    pub others: Vec<(u32, String, PathBuf)>,
}

impl TableNames {
    /// iproute2's folder.
    pub const DIRECTORY: &str = "/etc/iproute2";
    /// The folder of drop-ins.
    pub const DROP_IN_DIRECTORY: &str = "/etc/iproute2/rt_tables.d";
    /// Ours alone.
    pub const DROP_IN: &str = "/etc/iproute2/rt_tables.d/redirect.conf";
    /// Everybody's; touched only where drop-ins are not read, and never made.
    pub const MAIN: &str = "/etc/iproute2/rt_tables";

    /// What the file at `path` holds; `None` if it is none of those that we look at.
    #[must_use]
    pub fn file(&self, path: &Path) -> Option<Option<&FileContent>> {
        if path == Path::new(TableNames::MAIN) {
            Some(self.main.as_ref())
        } else if path == Path::new(TableNames::DROP_IN) {
            Some(self.drop_in.as_ref())
        } else {
            None
        }
    }

    /// Whether the directory `path` exists; `None` if it is none of those that we look at.
    #[must_use]
    pub fn has_directory(&self, path: &Path) -> Option<bool> {
        if path == Path::new(TableNames::DIRECTORY) {
            Some(self.directory)
        } else if path == Path::new(TableNames::DROP_IN_DIRECTORY) {
            Some(self.drop_in_directory)
        } else {
            None
        }
    }
}

/// Whether a packet filter can be used here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It can.
    Available,
    /// It cannot, and why.
    Missing(String),
    /// Nobody may ask without privilege. What is there is then not known either.
    Unknown(String),
}

/// What iptables commands this router has, and what its kernel holds for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iptables {
    /// At most one a variant; where the plain command is one of them, it comes first.
    pub programs: Vec<IptablesProgram>,
    /// Whether sets can be used: by an ipset command and the kernel.
    pub ipset: Availability,
    /// Our sets, sorted by name.
    pub sets: Vec<iptables::Set>,
}

impl Default for Iptables {
    /// As where it was not looked for.
    fn default() -> Self {
        Self {
            programs: Vec::new(),
            ipset: Availability::Missing("it was not looked for".to_owned()),
            sets: Vec::new(),
        }
    }
}

impl Iptables {
    /// The commands of `variant`.
    #[must_use]
    pub fn program(&self, variant: iptables::Variant) -> Option<&IptablesProgram> {
        self.programs
            .iter()
            .find(|program| program.variant == variant)
    }

    /// Our rules of this variant and family; empty if there are none.
    #[must_use]
    pub fn ours(&self, variant: iptables::Variant, family: Family) -> iptables::Ruleset {
        self.program(variant)
            .and_then(|program| program.families.get(&family))
            .map(|rules| rules.ours.clone())
            .unwrap_or_default()
    }

    /// The table `mangle` that `iptables-nft` has for this family.
    #[must_use]
    pub fn frame(&self, family: Family) -> iptables::Frame {
        self.program(iptables::Variant::Nft)
            .and_then(|program| program.families.get(&family))
            .map(|rules| rules.frame.clone())
            .unwrap_or_default()
    }

    /// Our set of this name.
    #[must_use]
    pub fn set(&self, name: &str) -> Option<&iptables::Set> {
        self.sets.iter().find(|set| set.name == name)
    }
}

/// The iptables commands of one variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IptablesProgram {
    /// Which.
    pub variant: iptables::Variant,
    /// Its IPv4 command: `iptables` where that is this variant, else one that always is.
    pub command: String,
    /// Its version.
    pub version: iptables::Version,
    /// Why not all that the kernel holds for it could be read, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// What the kernel holds for it, by family; a family is absent where its
    /// commands are missing.
    pub families: BTreeMap<Family, IptablesRules>,
}

/// What the kernel holds for one variant and family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IptablesRules {
    /// Ours.
    pub ours: iptables::Ruleset,
    /// Whether others have rules there.
    pub others: bool,
    /// Those chains of `mangle` that hold something of others, or are others'.
    #[serde(default)]
    pub busy: BTreeSet<String>,
    /// The table itself, where it is one of `nf_tables`.
    #[serde(default)]
    pub frame: iptables::Frame,
}

/// The router, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All routing rules of both families, in order of priority.
    pub rules: Vec<RoutingRule>,
    /// All routes that bear our protocol, and all in the tables that were asked for.
    pub routes: Vec<Route>,
    /// Our nftables table, if there is one.
    pub nftables: Option<nft::Table>,
    /// Whether the kernel speaks `nf_tables`.
    pub nftables_availability: Availability,
    /// The iptables commands, and what is there for them.
    pub iptables: Iptables,
    /// The settings that were asked for, without their line's end; absent ones do not exist.
    pub sysctls: BTreeMap<String, (Sysctl, String)>,
    /// Names of routing tables.
    pub table_names: TableNames,
}

impl Observed {
    /// A router on which nothing of ours is, which has the links that `policy` names, all
    /// appliances on-link, strict reverse path filtering, as distributions set it, and a
    /// present-day iptables with ipset.
    #[must_use]
    pub fn clean(policy: &Policy) -> Self {
        let mut names: Vec<IfName> = Vec::new();
        let mut name = |wanted: &IfName| {
            if !names.contains(wanted) {
                names.push(wanted.clone());
            }
        };
        for appliance in &policy.appliances {
            name(&appliance.interface);
        }
        for redirect in &policy.redirects {
            for pattern in redirect
                .client_interfaces
                .iter()
                .chain(&redirect.server_interfaces)
            {
                if let IfPattern::Exact(exact) = pattern {
                    name(exact);
                }
            }
        }
        let links: Vec<Link> = (1..)
            .zip(&names)
            .map(|(index, name)| Link {
                index,
                name: name.clone(),
                up: true,
                running: true,
                mac: None,
                kind: None,
                master: None,
            })
            .collect();
        let mut addresses = Vec::new();
        for appliance in &policy.appliances {
            let link = links.iter().find(|link| link.name == appliance.interface);
            addresses.extend(link.into_iter().flat_map(|link| {
                appliance.addresses.iter().map(|address| Address {
                    link: link.index,
                    network: IpNet::from(*address),
                    peer: Some(*address),
                })
            }));
        }
        let mut sysctls = BTreeMap::new();
        for setting in [Setting::RpFilter, Setting::SendRedirects] {
            let of_links = names.iter().map(|name| Sysctl::ipv4(name, setting));
            for sysctl in of_links.chain([Sysctl::ipv4_all(setting)]) {
                sysctls.insert(sysctl.to_string(), (sysctl, "1".to_owned()));
            }
        }
        Self {
            links,
            addresses,
            rules: Vec::new(),
            routes: Vec::new(),
            nftables: None,
            nftables_availability: Availability::Available,
            iptables: Iptables {
                programs: vec![IptablesProgram {
                    variant: iptables::Variant::Legacy,
                    command: "iptables".to_owned(),
                    version: iptables::Version(1, 8, 9),
                    unreadable: None,
                    families: Family::ALL
                        .into_iter()
                        .map(|family| (family, IptablesRules::default()))
                        .collect(),
                }],
                ipset: Availability::Available,
                sets: Vec::new(),
            },
            sysctls,
            table_names: TableNames {
                directory: true,
                drop_in_directory: true,
                drop_ins_read: true,
                ..TableNames::default()
            },
        }
    }

    /// The interface of this name.
    #[must_use]
    pub fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == *name)
    }

    /// The value of `sysctl`, if it was asked for and exists.
    #[must_use]
    pub fn sysctl(&self, sysctl: &Sysctl) -> Option<&str> {
        self.sysctls
            .get(&sysctl.to_string())
            .map(|(_, value)| value.as_str())
    }

    /// Whether `address` is the router's own.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses
            .iter()
            .any(|found| found.network.addr() == address)
    }

    /// Whether `address` is on-link at `interface`.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr, interface: &IfName) -> bool {
        self.link(interface).is_some_and(|link| {
            self.addresses.iter().any(|found| {
                found.link == link.index
                    && (found.network.contains(&address) || found.peer == Some(address))
            })
        })
    }
}
