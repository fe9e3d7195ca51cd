#!/bin/sh
# What `redirect apply examples/vendor.toml` would do, as shell commands, in the same order.
# Nothing has been changed by printing them. To be run as root.
# Printed offline: no router was looked at, a clean one is assumed.
set -eu

# 1. Give the routing table its name, so that `ip` can show it.
cat > /etc/iproute2/rt_tables.d/redirect.conf <<'EOF'
# Written by redirect, and removed by `redirect teardown`.
103	scb
EOF
chmod 0644 /etc/iproute2/rt_tables.d/redirect.conf

# 2. The way to the appliance, in a table of its own.
ip -4 route add default via 10.30.0.2 dev sps0 table 103 proto 103

# 3. Route what bears the mark by that table. Other bits of the mark do not matter.
ip -4 rule add priority 32765 fwmark 0x1/0xffffffff lookup 103 protocol 103

# 4. Set rp_filter (it holds 1).
echo 0 > /proc/sys/net/ipv4/conf/sps0/rp_filter

# 5. Set rp_filter (it holds 1).
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter

# 6. Mark the IPv4 sessions, in chains of our own: from here on they go to the
#    appliance.
# our own chains; nothing leads into them yet
iptables -t mangle -N scb-redirect
iptables -t mangle -N scb-redirect-alone
iptables -t mangle -N scb-redirect-in-eth0
iptables -t mangle -N scb-redirect-in-eth1
iptables -t mangle -N scb-redirect-in-sps0
iptables -t mangle -N scb-redirect-input
iptables -t mangle -N scb-redirect-invalid
iptables -t mangle -N scb-redirect-invalid-2
iptables -t mangle -N scb-redirect-marked
iptables -t mangle -N scb-redirect-new
iptables -t mangle -N scb-redirect-new-eth1
iptables -t mangle -N scb-redirect-on-rdp
iptables -t mangle -N scb-redirect-opened
iptables -t mangle -N scb-redirect-opened-2
iptables -t mangle -N scb-redirect-pick
iptables -t mangle -N scb-redirect-pick-rdp
iptables -t mangle -N scb-redirect-router
iptables -t mangle -N scb-redirect-to-scb
# where a packet comes in decides which rules it meets
iptables -t mangle -A scb-redirect -i eth0 -g scb-redirect-in-eth0
iptables -t mangle -A scb-redirect -i eth1 -g scb-redirect-in-eth1
iptables -t mangle -A scb-redirect -i sps0 -g scb-redirect-in-sps0
iptables -t mangle -A scb-redirect -g scb-redirect-marked
# their connections go on as they are
iptables -t mangle -A scb-redirect-alone -j CONNMARK --set-xmark 0xffffffff/0xffffffff
# what comes in on eth0
iptables -t mangle -A scb-redirect-in-eth0 -m connmark --mark 0x1/0xffffffff -g scb-redirect-to-scb
iptables -t mangle -A scb-redirect-in-eth0 -p tcp -m connmark --mark 0xffffffff/0xffffffff -m tcp '!' --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
iptables -t mangle -A scb-redirect-in-eth0 -d 10.20.0.0/24 -p tcp -m tcp --dport 3389 -g scb-redirect-on-rdp
iptables -t mangle -A scb-redirect-in-eth0 -m conntrack --ctstate INVALID,NEW -g scb-redirect-new
# what comes in on eth1
iptables -t mangle -A scb-redirect-in-eth1 -m connmark --mark 0x1/0xffffffff -g scb-redirect-to-scb
iptables -t mangle -A scb-redirect-in-eth1 -p tcp -m connmark --mark 0xffffffff/0xffffffff -m tcp '!' --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
iptables -t mangle -A scb-redirect-in-eth1 -m conntrack --ctstate INVALID,NEW -g scb-redirect-new-eth1
# what comes in on sps0
iptables -t mangle -A scb-redirect-in-sps0 -j MARK --set-xmark 0x0/0xffffffff
iptables -t mangle -A scb-redirect-in-sps0 -m connmark --mark 0x1/0xffffffff -j RETURN
iptables -t mangle -A scb-redirect-in-sps0 -p tcp -m connmark --mark 0xffffffff/0xffffffff -m tcp '!' --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
iptables -t mangle -A scb-redirect-in-sps0 -d 10.20.0.0/24 -p tcp -m tcp --dport 3389 -m conntrack --ctstate NEW,RELATED,ESTABLISHED -m comment --comment 'rdp: from the appliance' -j CONNMARK --set-xmark 0x1/0xffffffff
iptables -t mangle -A scb-redirect-in-sps0 -m connmark --mark 0x1/0xffffffff -j RETURN
# what is delivered to the router itself goes to no appliance
iptables -t mangle -A scb-redirect-input -p tcp -m connmark --mark 0x1/0xffffffff -g scb-redirect-router
iptables -t mangle -A scb-redirect-input -p tcp -m mark --mark 0x1/0xffffffff -g scb-redirect-router
# answers of servers that fit no connection
iptables -t mangle -A scb-redirect-invalid -s 10.20.0.0/24 -p tcp -m tcp --sport 3389 -j scb-redirect-to-scb
# answers of servers that fit no connection
iptables -t mangle -A scb-redirect-invalid-2 -s 10.20.0.0/24 -p tcp -m tcp --sport 3389 -j scb-redirect-to-scb
# what comes in elsewhere: it goes on as its connection does
iptables -t mangle -A scb-redirect-marked -m connmark --mark 0x1/0xffffffff -g scb-redirect-to-scb
iptables -t mangle -A scb-redirect-marked -p tcp -m connmark --mark 0xffffffff/0xffffffff -m tcp '!' --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
iptables -t mangle -A scb-redirect-marked -m conntrack --ctstate INVALID,NEW -g scb-redirect-new
# what no client sent and no connection is known of
iptables -t mangle -A scb-redirect-new -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -g scb-redirect-opened
iptables -t mangle -A scb-redirect-new -p tcp -m tcp --tcp-flags SYN,RST NONE -m conntrack --ctstate INVALID -g scb-redirect-invalid
# what no client sent and no connection is known of
iptables -t mangle -A scb-redirect-new-eth1 -p tcp -m tcp '!' --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -g scb-redirect-pick
iptables -t mangle -A scb-redirect-new-eth1 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -g scb-redirect-opened-2
iptables -t mangle -A scb-redirect-new-eth1 -p tcp -m tcp --tcp-flags SYN,RST NONE -m conntrack --ctstate INVALID -g scb-redirect-invalid-2
# what redirect rdp takes
iptables -t mangle -A scb-redirect-on-rdp -m conntrack --ctstate INVALID,UNTRACKED -m comment --comment 'rdp: without a connection' -g scb-redirect-to-scb
iptables -t mangle -A scb-redirect-on-rdp -m comment --comment 'rdp: from clients' -j CONNMARK --set-xmark 0x1/0xffffffff
iptables -t mangle -A scb-redirect-on-rdp -g scb-redirect-to-scb
# sessions that servers open
iptables -t mangle -A scb-redirect-opened -s 10.20.0.0/24 -p tcp -m tcp --sport 3389 -j scb-redirect-alone
# sessions that servers open
iptables -t mangle -A scb-redirect-opened-2 -s 10.20.0.0/24 -p tcp -m tcp --sport 3389 -j scb-redirect-alone
# answers to clients of redirect , first seen in mid-stream
iptables -t mangle -A scb-redirect-pick -s 10.20.0.0/24 -p tcp -m tcp --sport 3389 -j scb-redirect-pick-rdp
# answers to clients of redirect rdp, first seen in mid-stream
iptables -t mangle -A scb-redirect-pick-rdp -m comment --comment 'rdp: from servers' -j CONNMARK --set-xmark 0x1/0xffffffff
iptables -t mangle -A scb-redirect-pick-rdp -g scb-redirect-to-scb
# the router's own sessions: unmarked, and left alone from now on
iptables -t mangle -A scb-redirect-router -j MARK --set-xmark 0x0/0xffffffff
iptables -t mangle -A scb-redirect-router -j CONNMARK --set-xmark 0xffffffff/0xffffffff
# what is sent to appliance scb
iptables -t mangle -A scb-redirect-to-scb -j MARK --set-xmark 0x1/0xffffffff
# from here on they are in force
iptables -t mangle -I INPUT 1 -j scb-redirect-input
iptables -t mangle -I PREROUTING 1 -j scb-redirect
