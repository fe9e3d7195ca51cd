#!/bin/sh
# What `redirect apply examples/rdp-snat.toml` would do, as shell commands, in the same order.
# Nothing has been changed by printing them. To be run as root.
# Printed offline: no router was looked at, a clean one is assumed.
set -eu

# 1. Give the routing table its name, so that `ip` can show it.
cat > /etc/iproute2/rt_tables.d/redirect.conf <<'EOF'
# Written by redirect, and removed by `redirect teardown`.
103	scb
EOF
chmod 0644 /etc/iproute2/rt_tables.d/redirect.conf

# 2. Where the appliance cannot be reached, refuse its sessions instead of letting
#    them pass it by: the kernel comes to this route only when the next one is gone.
ip -4 route add unreachable default table 103 metric 4294967295 proto 103

# 3. The way to the appliance, in a table of its own.
ip -4 route add default via 10.30.0.2 dev sps0 table 103 proto 103

# 4. Route what bears the mark by that table. Other bits of the mark do not matter.
ip -4 rule add priority 103 fwmark 0x1/0xff lookup 103 protocol 103

# 5. Accept packets from the appliance with other hosts' addresses: loose reverse
#    path filtering, here only (it holds 1).
echo 2 > /proc/sys/net/ipv4/conf/sps0/rp_filter

# 6. Mark the sessions, all rules in one commit: from here on they go to the appliance.
nft -f - <<'EOF'
table inet scb-redirect {
	set except4_rdp {
		type ipv4_addr;
		flags interval;
		elements = { 10.10.0.99 };
	}

	set servers4_rdp {
		type ipv4_addr;
		flags interval;
		elements = { 10.20.0.0/24 };
	}

	chain forward {
		type filter hook forward priority -140; policy accept;  # mangle + 10
		ct mark and 0x000000ff == 0x00000001 goto seal_scb
		meta mark and 0x000000ff == 0x00000001 goto seal_scb
	}

	chain in_eth0 {
		ct mark and 0x000000ff == 0x00000001 goto to_scb
		ct mark and 0x000000ff == 0x000000ff jump left_alone
		tcp dport 3389 ip daddr @servers4_rdp jump redirect_rdp
		ct state invalid,new goto new_or_invalid
	}

	chain in_eth1 {
		ct mark and 0x000000ff == 0x00000001 goto to_scb
		ct mark and 0x000000ff == 0x000000ff jump left_alone
		ct state invalid,new goto new_or_invalid_eth1
	}

	chain in_sps0 {
		meta mark set meta mark and 0xffffff00
		ct mark and 0x000000ff == 0x00000001 accept
		ct mark and 0x000000ff == 0x000000ff jump left_alone
		tcp dport 3389 ip daddr @servers4_rdp ct mark set ct mark and 0xffffff00 or 0x00000001 counter accept comment "rdp: from the appliance"
	}

	chain input {
		type filter hook input priority -140; policy accept;  # mangle + 10
		meta l4proto tcp ct mark and 0x000000ff == 0x00000001 goto to_router
		meta l4proto tcp meta mark and 0x000000ff == 0x00000001 goto to_router
	}

	chain left_alone {
		tcp flags & (fin|syn|rst|ack) != syn accept
	}

	chain new_or_invalid {
		ct state new tcp flags & (fin|syn|rst|ack) == syn tcp sport 3389 ip saddr @servers4_rdp ct mark set ct mark and 0xffffff00 or 0x000000ff accept comment "rdp: opened by a server"
		ct state invalid tcp flags & (syn|rst) == 0x0 tcp sport 3389 ip saddr @servers4_rdp ip daddr != @except4_rdp goto to_scb
	}

	chain new_or_invalid_eth1 {
		ct state new tcp flags & (fin|syn|rst|ack) != syn tcp sport 3389 ip saddr @servers4_rdp ip daddr != @except4_rdp ct mark set ct mark and 0xffffff00 or 0x00000001 counter goto to_scb comment "rdp: from servers"
		ct state new tcp flags & (fin|syn|rst|ack) == syn tcp sport 3389 ip saddr @servers4_rdp ct mark set ct mark and 0xffffff00 or 0x000000ff accept comment "rdp: opened by a server"
		ct state invalid tcp flags & (syn|rst) == 0x0 tcp sport 3389 ip saddr @servers4_rdp ip daddr != @except4_rdp goto to_scb
	}

	chain prerouting {
		type filter hook prerouting priority -140; policy accept;  # mangle + 10
		iifname vmap { "eth0" : goto in_eth0, "eth1" : goto in_eth1, "sps0" : goto in_sps0 }
		ct mark and 0x000000ff == 0x00000001 goto to_scb
		ct mark and 0x000000ff == 0x000000ff jump left_alone
		ct state invalid,new goto new_or_invalid
	}

	chain redirect_rdp {
		ip saddr @except4_rdp return
		ct mark set ct mark and 0xffffff00 or 0x00000001 counter goto to_scb comment "rdp: from clients"
		ct state invalid,untracked counter goto to_scb comment "rdp: without a connection"
	}

	chain seal_scb {
		oifname "sps0" return
		iifname "sps0" return
		counter reject with icmpx type admin-prohibited comment "scb: sealed"
	}

	chain to_router {
		meta mark set meta mark and 0xffffff00
		ct mark set ct mark and 0xffffff00 or 0x000000ff
	}

	chain to_scb {
		counter meta mark set meta mark and 0xffffff00 or 0x00000001 accept comment "scb: sent to the appliance"
	}
}
EOF
