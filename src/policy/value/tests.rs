//! What is typed, and what is said about it.

use super::*;

fn hint_of(text: &str) -> String {
    network(text).unwrap_err().hint.unwrap_or_default()
}

#[test]
fn networks_are_read() {
    for (text, network) in [
        ("10.20.0.0/24", "10.20.0.0/24"),
        ("10.20.0.5", "10.20.0.5/32"),
        ("fd00:20::/64", "fd00:20::/64"),
        ("fd00:20::1", "fd00:20::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(super::network(text).unwrap().to_string(), network);
    }
}

#[test]
fn what_was_meant_by_a_network_is_guessed() {
    for (text, hint) in [
        (
            "10.20.0.5/24",
            "`10.20.0.0/24` is the whole network, `10.20.0.5/32` this one address",
        ),
        (
            "10.20.0.0/255.255.255.0",
            "with the prefix length for 255.255.255.0: `10.20.0.0/24`",
        ),
        (
            "10.20.0.0 255.255.0.0",
            "with the prefix length for 255.255.0.0: `10.20.0.0/16`",
        ),
        ("10.20.0.0/33", "the prefix length is a number from 0 to 32"),
        (
            "10.20.0.0/+24",
            "the prefix length is a number from 0 to 32",
        ),
        (
            "10.20/16",
            "all four numbers are needed, as in `10.20.0.0/16`",
        ),
        (
            "10.20.0.0-10.20.0.255",
            "ranges are written as prefixes: `\"10.20.0.0/24\"`",
        ),
        ("10.20.*.*", "`10.20.0.0/16`"),
        ("any", "all of IPv4 is `0.0.0.0/0`, all of IPv6 `::/0`"),
        ("10.20.0.1:22", "the port belongs in `port`"),
        (
            "10.020.0.0/24",
            "numbers are decimal, without leading zeros",
        ),
        (
            "10.20.0.300",
            "an IPv4 address is four numbers from 0 to 255",
        ),
        (
            "server.example.com",
            "names are not looked up: write the address itself",
        ),
        (" 10.20.0.0/24", "without the spaces: `10.20.0.0/24`"),
        (
            "10.20.0.0/24, 10.21.0.0/24",
            "one network each, as in `[\"10.20.0.0/24\", \"10.21.0.0/24\"]`",
        ),
        ("::ffff:10.0.0.1", "write the IPv4 address, `10.0.0.1`"),
        ("fe80::1%eth0", "without the `%` and what follows"),
    ] {
        assert_eq!(hint_of(text), hint, "{text}");
    }
}

#[test]
fn ports_are_read_or_explained() {
    assert_eq!(port("3389").unwrap(), (3389, 3389).into());
    assert_eq!(port("5900-5910").unwrap(), (5900, 5910).into());
    assert_eq!(port(" 5900 - 5910 ").unwrap(), (5900, 5910).into());
    for (text, hint) in [
        ("ssh", Some("ports are given by number: `22`")),
        ("5910-5900", Some("`\"5900-5910\"`")),
        (
            "5900:5910",
            Some("a range is written with `-`: `\"5900-5910\"`"),
        ),
        (
            "22,3389",
            Some("several ports are a list, as in `[22, 3389]`"),
        ),
        ("0", None),
        ("65536", None),
        ("1-65536", None),
        ("-1", None),
        (
            "3389/tcp",
            Some("the number alone: `3389`; only TCP is redirected"),
        ),
        ("22-", Some("a range has two ends: `\"22-65535\"`")),
        ("", None),
    ] {
        assert_eq!(port(text).unwrap_err().hint.as_deref(), hint, "{text}");
    }
}

#[test]
fn addresses_that_no_appliance_has_are_refused() {
    for text in [
        "0.0.0.0",
        "::",
        "127.0.0.1",
        "::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "0.1.2.3",
        "250.0.0.1",
        "::ffff:10.0.0.1",
        "10.30.0.2/24",
        "fe80::1%eth0",
        "sps.example.com",
        "",
    ] {
        assert!(appliance_address(text).is_err(), "{text}");
    }
    assert!(appliance_address("fe80::1").is_ok());
    assert!(appliance_address("169.254.1.1").is_ok());
}

#[test]
fn interfaces_that_programs_would_misread_are_refused() {
    for text in [
        "-j", "!eth0", "ppp+", "all", "default", "lo", "eth0:1", "a b", "",
    ] {
        assert!(interface(text).is_err(), "{text}");
        assert!(interface_pattern(text).is_err(), "{text}");
    }
    assert!(interface("ppp*").is_err());
    assert!(interface_pattern("ppp*").is_ok());
    assert!(interface("br-lan.100").is_ok());
}

#[test]
fn macs_of_groups_are_refused() {
    assert!(mac("02:00:5e:00:00:01").is_ok());
    for text in [
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02:00:5e",
    ] {
        assert!(mac(text).is_err(), "{text}");
    }
    assert_eq!(
        mac("0200.5e00.0001").unwrap_err().hint.unwrap(),
        "`02:00:5e:00:00:01`"
    );
}

#[test]
fn names_that_ip_would_misread_are_refused() {
    for text in ["main", "254", "0xfe", "all", "my scb", "", "-x"] {
        assert!(appliance_name(text).is_err(), "{text}");
    }
    assert!(appliance_name("scb").is_ok());
    assert!(name("254").is_ok());
    assert_eq!(name("my rdp").unwrap_err().hint.unwrap(), "`my-rdp`");
}
