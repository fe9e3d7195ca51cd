//! What people run instead, as shell scripts: one that applies, one that takes back.

use std::fmt::Write as _;

use crate::networks::Network;

/// Ten port ranges, in the two lists that iptables wants: `multiport` takes fifteen numbers, and a
/// range is two.
pub const PORTS: [&[&str]; 2] = [
    &[
        "22:23",
        "80:89",
        "443:444",
        "1433:1434",
        "1521:1530",
        "2222:2230",
        "3306:3307",
    ],
    &["3389:3390", "5432:5433", "5900:5910"],
];

/// What applies something, and what takes it back.
#[derive(Debug)]
pub struct Scripts {
    /// Applies.
    pub up: String,
    /// Takes back.
    pub down: String,
}

/// Steps 4 to 7 of the vendor's procedure.
const ROUTES: &str = "\
echo '103 scb' >> /etc/iproute2/rt_tables
ip route add default via 10.30.0.2 table scb
ip rule add from all fwmark 1 table scb
echo 0 > /proc/sys/net/ipv4/conf/sps0/rp_filter
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
";

/// And back.
const ROUTES_BACK: &str = "\
ip rule del from all fwmark 1 table scb
ip route del default table scb
sed -i /scb/d /etc/iproute2/rt_tables
echo 1 > /proc/sys/net/ipv4/conf/sps0/rp_filter
echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter
";

/// Step 3.
const TO_PACKET_MARK: &str = "-A PREROUTING ! -i sps0 -m connmark --mark 1 -j MARK --set-mark 1";

/// The vendor's seven commands, for one network and one port.
pub fn by_hand(network: Network) -> Scripts {
    let mark = "-j CONNMARK --set-mark 1";
    Scripts {
        up: format!(
            "set -e
iptables -t mangle -I PREROUTING -i cli0 -p tcp -d {network} --dport 3389 {mark}
iptables -t mangle -I PREROUTING -i srv0 -p tcp -s {network} --sport 3389 {mark}
iptables -t mangle {TO_PACKET_MARK}
{ROUTES}"
        ),
        down: format!("set -e\niptables -t mangle -F PREROUTING\n{ROUTES_BACK}"),
    }
}

/// The vendor's rules, one for each network, direction and list of ports, by `iptables-restore`.
pub fn rule_a_network(networks: &[Network]) -> Scripts {
    let mut rules = String::new();
    for network in networks {
        for ports in PORTS.map(|ports| ports.join(",")) {
            let _ = writeln!(
                rules,
                "-A PREROUTING -i cli0 -p tcp -d {network} -m multiport --dports {ports} -j CONNMARK --set-mark 1\n\
                 -A PREROUTING -i srv0 -p tcp -s {network} -m multiport --sports {ports} -j CONNMARK --set-mark 1"
            );
        }
    }
    Scripts {
        up: format!("set -e\n{}{ROUTES}", restore(&rules)),
        down: format!("set -e\niptables -t mangle -F PREROUTING\n{ROUTES_BACK}"),
    }
}

/// The vendor's rules with the networks in an ipset, by `ipset restore` and `iptables-restore`.
pub fn with_ipset(networks: &[Network]) -> Scripts {
    let most = networks.len().max(1) * 2;
    let mut set = format!("create servers hash:net maxelem {most}\n");
    for network in networks {
        // What is there twice is no error for ipset, being told so.
        let _ = writeln!(set, "add servers {network}");
    }
    let mut rules = String::new();
    for ports in PORTS.map(|ports| ports.join(",")) {
        let _ = writeln!(
            rules,
            "-A PREROUTING -i cli0 -p tcp -m set --match-set servers dst -m multiport --dports {ports} -j CONNMARK --set-mark 1\n\
             -A PREROUTING -i srv0 -p tcp -m set --match-set servers src -m multiport --sports {ports} -j CONNMARK --set-mark 1"
        );
    }
    Scripts {
        up: format!(
            "set -e\nipset -exist restore <<'EOF'\n{set}EOF\n{}{ROUTES}",
            restore(&rules)
        ),
        down: format!(
            "set -e\niptables -t mangle -F PREROUTING\nipset destroy servers\n{ROUTES_BACK}"
        ),
    }
}

fn restore(rules: &str) -> String {
    format!("iptables-restore --noflush <<'EOF'\n*mangle\n{rules}{TO_PACKET_MARK}\nCOMMIT\nEOF\n")
}

/// What takes back what `redirect apply --dry-run` prints: `nft -f` and the `ip` commands.
pub const NFT_BACK: &str = "\
set -e
nft delete table inet scb-redirect
ip rule del priority 103
ip route flush table 103
rm /etc/iproute2/rt_tables.d/redirect.conf
echo 1 > /proc/sys/net/ipv4/conf/sps0/rp_filter
";
