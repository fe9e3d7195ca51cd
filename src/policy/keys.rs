//! Every key of the policy, described once. From here come the detection of unknown keys, what
//! messages say is wanted, the JSON Schema and the reference.

use super::words::nearest;

/// A table of the policy.
#[derive(Debug)]
pub struct Section {
    /// As it is written: `[appliance.NAME]`. Empty for the top.
    pub header: &'static str,
    /// What it is, for the reference and for editors.
    pub about: &'static str,
    /// In the order in which they are best written.
    pub keys: &'static [&'static Key],
}

/// A key.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What one value of it is.
    pub kind: Kind,
    /// Whether it takes a list too.
    pub list: bool,
    /// Whether it must be given.
    pub needed: Needed,
    /// What it is, in one line.
    pub summary: &'static str,
    /// What one should know about it. May be empty.
    pub details: &'static str,
    /// A value as it stands in a policy.
    pub example: &'static str,
}

/// Whether a key must be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// It must.
    Always,
    /// Unless this holds.
    Unless(&'static str),
    /// It may be left out, and then this is the value, as it stands in a policy.
    Default(&'static str),
    /// It may be left out, and then this is so.
    Otherwise(&'static str),
}

/// What one value of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The policy's version.
    Version,
    /// A name of an appliance or a redirect.
    Name,
    /// An address without prefix length.
    Address,
    /// The name of one interface.
    Interface,
    /// The name of one interface, or a prefix of names with `*`.
    InterfacePattern,
    /// An Ethernet address.
    Mac,
    /// A network, an address, or a file of them.
    Network,
    /// A port or a range of ports.
    Port,
    /// `true` or `false`.
    Bool,
    /// A routing table's number.
    Table,
    /// A mark, or a mask of marks.
    Mark,
    /// A rule's priority.
    Priority,
    /// One of these words, each with its meaning.
    Choice(&'static [(&'static str, &'static str)]),
}

impl Kind {
    /// What to say when something else was found.
    #[must_use]
    pub fn wanted(self) -> String {
        match self {
            Self::Version => "the integer 1".to_owned(),
            Self::Name => {
                "up to 32 letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
                    .to_owned()
            }
            Self::Address => "an address such as `\"10.30.0.2\"` or `\"fd00:30::2\"`".to_owned(),
            Self::Interface => "an interface name such as `\"eth0\"`".to_owned(),
            Self::InterfacePattern => {
                "an interface name such as `\"eth0\"` or `\"ppp*\"`".to_owned()
            }
            Self::Mac => "a MAC address such as `\"02:00:5e:00:00:01\"`".to_owned(),
            Self::Network => {
                "a network such as `\"10.20.0.0/24\"`, or `{ file = \"networks.txt\" }`".to_owned()
            }
            Self::Port => "a port such as `3389`, or a range such as `\"5900-5910\"`".to_owned(),
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Table => "an integer from 1 to 4294967295".to_owned(),
            Self::Mark => "an integer from 1 to 0xffffffff".to_owned(),
            Self::Priority => "an integer from 1 to 32765".to_owned(),
            Self::Choice(words) => {
                let words: Vec<_> = words
                    .iter()
                    .map(|(word, _)| format!("`\"{word}\"`"))
                    .collect();
                match words.split_last() {
                    Some((last, [])) => last.clone(),
                    Some((last, others)) => format!("{} or {last}", others.join(", ")),
                    None => String::new(),
                }
            }
        }
    }
}

macro_rules! key {
    ($id:ident $name:literal $kind:expr, $list:literal, $needed:expr, $example:literal, $summary:literal, $details:literal) => {
        #[doc = $summary]
        pub static $id: Key = Key {
            name: $name,
            kind: $kind,
            list: $list,
            needed: $needed,
            summary: $summary,
            details: $details,
            example: $example,
        };
    };
}

key!(VERSION "version" Kind::Version, false, Needed::Always, "1",
    "The version of this format.",
    "A later version of the program that gives a key another meaning counts this up, and goes on reading 1 as it is meant today.");

key!(ADDRESS "address" Kind::Address, true, Needed::Always, r#"["10.30.0.2", "fd00:30::2"]"#,
    "The appliance's address, or one for each family.",
    "The next hop of redirected sessions. It must be on-link at `interface`, for the appliance has to get packets that bear somebody else's destination. A redirect with IPv6 networks needs an appliance with an IPv6 address; a link-local one will do.");
key!(INTERFACE "interface" Kind::Interface, false, Needed::Always, r#""sps0""#,
    "The router's interface towards the appliance.",
    "What comes in here is taken to come from the appliance, unless `mac` narrows that down.");
key!(MAC "mac" Kind::Mac, true, Needed::Otherwise("all that comes in on `interface` is the appliance's"), r#""02:00:5e:00:00:01""#,
    "The appliance's MAC address, or all of them.",
    "Needed where clients come in on the appliance's interface too, or, with `snat = true`, where servers answer on it: only the MAC address tells the appliance's packets from theirs. Give those of every port that the appliance may send from (a bond, a cluster's second node).");
key!(TABLE "table" Kind::Table, false, Needed::Otherwise("103, 104, … in order of appearance, numbers given elsewhere skipped"), "103",
    "The number of the appliance's routing table.",
    "The table is named after the appliance. 0 and 253 to 255 are the kernel's own.");
key!(MARK "mark" Kind::Mark, false, Needed::Otherwise("1, 2, … in order of appearance, numbers given elsewhere skipped, counted in the bits of `mark_mask`: under the mask 0xff00 the first is 0x100"), "1",
    "What packets and connections of the appliance bear.",
    "As it stands in the packet: it must lie within `mark_mask` and not be 0.");

key!(NAME "name" Kind::Name, false, Needed::Always, r#""rdp""#,
    "Shown in status, in the comments of rules and in errors.",
    "Two redirects cannot have the same.");
key!(APPLIANCE "appliance" Kind::Name, false, Needed::Unless("there is only one appliance"), r#""scb""#,
    "The appliance that records these sessions.",
    "The NAME of an `[appliance.NAME]`.");
key!(CLIENT_INTERFACE "client_interface" Kind::InterfacePattern, true, Needed::Always, r#"["eth0", "ppp*"]"#,
    "Where the clients' connections come in.",
    "`ppp*` means every interface whose name begins with `ppp`, also those that appear later.");
key!(SERVER_INTERFACE "server_interface" Kind::InterfacePattern, true, Needed::Otherwise("sessions the router picks up in mid-stream are not told by their answers"), r#""eth1""#,
    "Where the servers' answers come in.",
    "Of use with `snat = true` only: answers of a session that the router does not know, because it has rebooted since, then still go to the appliance.");
key!(SERVER_NETWORK "server_network" Kind::Network, true, Needed::Always, r#"["10.20.0.0/24", "fd00:20::/64"]"#,
    "The servers.",
    "Prefixes and single addresses of both families, and files that list them: `{ file = \"networks.txt\" }`, one a line, `#` for comments, found from the policy's own folder. They may overlap. An address of the appliance must not be among them.");
key!(PORT "port" Kind::Port, true, Needed::Always, r#"[3389, "5900-5910"]"#,
    "The servers' TCP ports.",
    "");
key!(SNAT "snat" Kind::Bool, false, Needed::Default("false"), "true",
    "Whether the appliance dials servers with the client's own address.",
    "What the appliance calls \"SNAT: use original IP address of the client\". With `true` the router sends the servers' answers to the appliance, which they do not name.");
key!(EXCEPT_CLIENT "except_client" Kind::Network, true, Needed::Otherwise("all clients are redirected"), r#"["10.10.0.99"]"#,
    "Clients that are never redirected.",
    "Their sessions go to the server directly, unrecorded.");
key!(EXCEPT_SERVER "except_server" Kind::Network, true, Needed::Otherwise("all of `server_network` is redirected"), r#"["10.20.0.53/32"]"#,
    "Servers to which nothing is redirected.",
    "Taken out of `server_network`.");

key!(BACKEND "backend" Kind::Choice(&[
        ("auto", "nftables where the kernel has it, else iptables"),
        ("nftables", "nftables, over netlink; the `nft` program is not needed"),
        ("iptables", "iptables and ip6tables, legacy or nft, as found on the router"),
    ]), false, Needed::Default("\"auto\""), r#""nftables""#,
    "Which packet filter holds the rules.",
    "");
key!(ON_APPLIANCE_DOWN "on_appliance_down" Kind::Choice(&[
        ("block", "they are refused: no session goes unrecorded"),
        ("bypass", "they go to the server directly, unrecorded"),
    ]), false, Needed::Default("\"block\""), r#""block""#,
    "What becomes of sessions while the appliance's link is down.",
    "");
key!(ESTABLISHED "established" Kind::Choice(&[
        ("redirect", "they are sent to the appliance, which cuts them; `apply` says how many"),
        ("keep", "they go on, unrecorded, until they end"),
    ]), false, Needed::Default("\"redirect\""), r#""keep""#,
    "What becomes of sessions that are open when the policy is applied.",
    "");
key!(RP_FILTER "rp_filter" Kind::Choice(&[
        ("loose", "2 on the appliance's interface if the filter is strict there, and nothing else"),
        ("off", "0 on the appliance's interface and in `all`; every other interface keeps what was in force"),
        ("keep", "nothing is written"),
    ]), false, Needed::Default("\"loose\""), r#""loose""#,
    "How packets of the appliance get past the reverse path filter.",
    "The appliance sends with other people's addresses, which a strict filter (1) drops without a word.");
key!(MARK_MASK "mark_mask" Kind::Mark, false, Needed::Default("0xff"), "0xff00",
    "Which bits of the packet and connection marks are ours.",
    "All other bits are left to other programs: Tailscale uses 0xff0000, Calico 0xffff0000, mwan3 0x3f00, kube-proxy 0xc000.");
key!(RULE_PRIORITY "rule_priority" Kind::Priority, false, Needed::Default("103"), "103",
    "Where the first appliance's routing rule stands.",
    "Each further appliance has the next number. Lower ones are asked first; the main table's is 32766.");

/// Keys before the first table.
pub static TOP: Section = Section {
    header: "",
    about: "At the top of the file, before the first table.",
    keys: &[&VERSION],
};

/// `[appliance.NAME]`
pub static APPLIANCE_TABLE: Section = Section {
    header: "[appliance.NAME]",
    about: "A recorder. NAME names its routing table; up to 32 letters, digits, `_`, `.` and `-`.",
    keys: &[&ADDRESS, &INTERFACE, &MAC, &TABLE, &MARK],
};

/// `[[redirect]]`
pub static REDIRECT_TABLE: Section = Section {
    header: "[[redirect]]",
    about: "Sessions that go through an appliance. Once for each kind of session.",
    keys: &[
        &NAME,
        &APPLIANCE,
        &CLIENT_INTERFACE,
        &SERVER_INTERFACE,
        &SERVER_NETWORK,
        &PORT,
        &SNAT,
        &EXCEPT_CLIENT,
        &EXCEPT_SERVER,
    ],
};

/// `[options]`
pub static OPTIONS_TABLE: Section = Section {
    header: "[options]",
    about: "How it is done. All optional.",
    keys: &[
        &BACKEND,
        &ON_APPLIANCE_DOWN,
        &ESTABLISHED,
        &RP_FILTER,
        &MARK_MASK,
        &RULE_PRIORITY,
    ],
};

/// All sections, in the order in which they are best written.
pub static SECTIONS: [&Section; 4] = [&TOP, &APPLIANCE_TABLE, &REDIRECT_TABLE, &OPTIONS_TABLE];

/// Names of the tables at the top of the file.
pub const TABLES: [&str; 3] = ["appliance", "redirect", "options"];

/// What other tools call our keys. Only for guessing what was meant.
const ALIASES: [(&str, &str); 27] = [
    ("gateway", "address"),
    ("next_hop", "address"),
    ("nexthop", "address"),
    ("via", "address"),
    ("ip", "address"),
    ("host", "address"),
    ("device", "interface"),
    ("dev", "interface"),
    ("iface", "interface"),
    ("nic", "interface"),
    ("fwmark", "mark"),
    ("connmark", "mark"),
    ("rt_table", "table"),
    ("iif", "client_interface"),
    ("in_interface", "client_interface"),
    ("source", "client_interface"),
    ("client", "client_interface"),
    ("server", "server_network"),
    ("destination", "server_network"),
    ("dest", "server_network"),
    ("dst", "server_network"),
    ("target", "server_network"),
    ("service", "port"),
    ("file", "server_network"),
    ("recorder", "appliance"),
    ("fail_open", "on_appliance_down"),
    ("priority", "rule_priority"),
];

/// What to say to those who look for a key that does not exist on purpose.
#[must_use]
pub fn no_such_key(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_lowercase().as_str() {
        "protocol" | "proto" => "only TCP is redirected, nothing has to be said",
        "enabled" | "enable" | "disabled" | "disable" => {
            "to switch something off, put `#` before each of its lines"
        }
        "comment" | "description" | "note" => "comments begin with `#`, anywhere",
        "udp" | "udp_port" => "only TCP is redirected",
        _ => return None,
    })
}

/// The one of `names` that was probably meant by `typed`.
#[must_use]
pub fn meant_by(
    typed: &str,
    names: impl Iterator<Item = &'static str> + Clone,
) -> Option<&'static str> {
    let plain = typed.to_ascii_lowercase().replace('-', "_");
    let singular = plain.strip_suffix('s').unwrap_or(&plain);
    let alias = ALIASES
        .iter()
        .filter(|(alias, _)| *alias == plain || *alias == singular)
        .find_map(|(_, name)| names.clone().find(|known| known == name));
    alias.or_else(|| nearest(typed, names))
}

impl Section {
    /// The key of this name.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().copied().find(|key| key.name == name)
    }
}
