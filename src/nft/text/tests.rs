//! What is written is what nft takes, and what people read.

use super::super::abi::set;
use super::super::{CtKey, Expression, MetaKey, PayloadBase};
use super::*;
use crate::net::Range;
use crate::net::Ranges;

fn load(key: MetaKey) -> Expression {
    Expression::MetaLoad(key)
}

fn equals(bytes: &[u8]) -> Expression {
    Expression::Compare {
        equal: true,
        bytes: bytes.to_vec(),
    }
}

fn bits(mask: u32, xor: u32) -> Expression {
    Expression::Bitwise {
        mask: mask.to_ne_bytes().to_vec(),
        xor: xor.to_ne_bytes().to_vec(),
    }
}

fn payload(base: PayloadBase, offset: u32, length: u32) -> Expression {
    Expression::Payload {
        base,
        offset,
        length,
    }
}

fn lookup(set: &str) -> Expression {
    Expression::Lookup {
        set: set.to_owned(),
        invert: false,
    }
}

fn tcp_port(set: &str) -> Vec<Expression> {
    vec![
        load(MetaKey::Protocol),
        equals(&[6]),
        payload(PayloadBase::Transport, 2, 2),
        lookup(set),
    ]
}

fn words(expressions: Vec<Expression>) -> (String, bool) {
    let rule = Rule {
        expressions,
        comment: None,
    };
    (rule.to_string(), Statements::of(&rule).inexact.is_none())
}

fn exact(expressions: Vec<Expression>) -> String {
    let (words, is_exact) = words(expressions);
    assert!(is_exact, "{words}");
    words
}

#[test]
fn what_nft_adds_by_itself_is_left_out() {
    let mut rule = tcp_port("ports_rdp");
    rule.extend([
        load(MetaKey::Family),
        equals(&[2]),
        payload(PayloadBase::Network, 16, 4),
        lookup("servers4_rdp"),
        Expression::Verdict(Verdict::Jump("redirect_rdp".to_owned())),
    ]);
    assert_eq!(
        exact(rule),
        "tcp dport @ports_rdp ip daddr @servers4_rdp jump redirect_rdp"
    );
    let ether = vec![
        load(MetaKey::InputType),
        equals(&1_u16.to_ne_bytes()),
        payload(PayloadBase::Link, 6, 6),
        equals(&[2, 0, 0x5e, 0, 0, 1]),
    ];
    assert_eq!(exact(ether), "ether saddr 02:00:5e:00:00:01");
}

#[test]
fn what_nft_would_not_add_stands_there() {
    // Nothing follows that needs it.
    let alone = vec![load(MetaKey::Protocol), equals(&[6]), Expression::Counter];
    assert_eq!(exact(alone), "meta l4proto tcp counter");
    // Asked for twice: nft adds it once.
    let mut twice = tcp_port("a");
    twice.extend(tcp_port("b"));
    assert_eq!(exact(twice), "tcp dport @a meta l4proto tcp tcp dport @b");
    // Not asked for: nft would add it, so the field must not bear its name.
    let mut raw = tcp_port("a").split_off(2);
    raw.pop();
    raw.push(equals(&[0, 22]));
    assert_eq!(exact(raw), "@th,16,16 0x0016");
    // After an Ethernet address nft would ask the Ethernet header for the family.
    let after_ether = vec![
        load(MetaKey::InputType),
        equals(&1_u16.to_ne_bytes()),
        payload(PayloadBase::Link, 6, 6),
        lookup("macs"),
        load(MetaKey::Family),
        equals(&[2]),
        payload(PayloadBase::Network, 12, 4),
        lookup("v4"),
    ];
    assert_eq!(
        exact(after_ether),
        "ether saddr @macs meta nfproto ipv4 ip saddr @v4"
    );
}

#[test]
fn marks_in_words_that_every_nft_reads() {
    let set = |mask, xor| {
        exact(vec![
            load(MetaKey::Mark),
            bits(mask, xor),
            Expression::MetaSet(MetaKey::Mark),
        ])
    };
    assert_eq!(
        set(0xffff_ff00, 1),
        "meta mark set meta mark and 0xffffff00 or 0x00000001"
    );
    assert_eq!(
        set(0xffff_ff00, 0),
        "meta mark set meta mark and 0xffffff00"
    );
    assert_eq!(set(u32::MAX, 3), "meta mark set meta mark xor 0x00000003");
    assert_eq!(
        set(0xff, 0xf),
        "meta mark set meta mark and 0x000000ff xor 0x0000000f"
    );
    let map = vec![
        Expression::CtLoad(CtKey::Mark),
        bits(0xff, 0),
        Expression::InlineVerdictMap {
            elements: vec![(
                1_u32.to_ne_bytes().to_vec(),
                Verdict::Goto("to_scb".to_owned()),
            )],
            key_type: set::TYPE_MARK,
        },
    ];
    assert_eq!(
        exact(map),
        "ct mark and 0x000000ff vmap { 0x00000001 : goto to_scb }"
    );
}

#[test]
fn flags_states_and_names() {
    let flags = vec![
        load(MetaKey::Protocol),
        equals(&[6]),
        payload(PayloadBase::Transport, 13, 1),
        Expression::Bitwise {
            mask: vec![0x17],
            xor: vec![0],
        },
        equals(&[2]),
    ];
    assert_eq!(exact(flags), "tcp flags & (fin|syn|rst|ack) == syn");
    let state = vec![
        Expression::CtLoad(CtKey::State),
        bits(8, 0),
        Expression::Compare {
            equal: false,
            bytes: vec![0; 4],
        },
    ];
    assert_eq!(exact(state), "ct state new");
    let prefix = vec![load(MetaKey::InputName), equals(b"ppp")];
    assert_eq!(exact(prefix), "iifname \"ppp*\"");
    let mut whole = b"eth0".to_vec();
    whole.resize(16, 0);
    let whole = vec![load(MetaKey::OutputName), equals(&whole)];
    assert_eq!(exact(whole), "oifname \"eth0\"");
}

#[test]
fn what_cannot_be_said_is_shown_and_refused() {
    let quota = Expression::Foreign {
        name: "quota".to_owned(),
        data: vec![1, 0xff],
    };
    let cases = [
        (vec![quota], "[ quota 01ff ]"),
        (vec![load(MetaKey::Mark)], ""),
        (
            vec![Expression::RejectProhibited, Expression::Counter],
            "reject with icmpx type admin-prohibited counter",
        ),
        (
            vec![load(MetaKey::InputName), equals(b"a\"b")],
            "[ cmp iifname == 0x612262 ]",
        ),
        // nft would compare both at once.
        (
            vec![
                payload(PayloadBase::Transport, 0, 2),
                equals(&[0, 1]),
                payload(PayloadBase::Transport, 2, 2),
                equals(&[0, 2]),
            ],
            "@th,0,16 0x0001 @th,16,16 0x0002",
        ),
        (
            vec![Expression::Verdict(Verdict::Goto("a b".to_owned()))],
            "goto a b",
        ),
    ];
    for (expressions, shown) in cases {
        assert_eq!(words(expressions.clone()), (shown.to_owned(), false));
        let chain = Chain {
            name: "x".to_owned(),
            base: None,
            rules: vec![Rule {
                expressions,
                comment: None,
            }],
        };
        let table = Table {
            chains: vec![chain],
            ..Table::default()
        };
        assert!(super::table(&table).is_err(), "{shown}");
    }
}

#[test]
fn ranges_are_prefixes_where_they_can_be() {
    let text = |first: u32, last: u32| {
        let mut text = String::new();
        Range { first, last }.write(&mut text);
        text
    };
    assert_eq!(text(0, u32::MAX), "0.0.0.0/0");
    assert_eq!(text(0x0a00_0000, 0x0a00_00ff), "10.0.0.0/24");
    assert_eq!(text(7, 7), "0.0.0.7");
    assert_eq!(text(7, 8), "0.0.0.7-0.0.0.8");
    assert_eq!(text(6, 7), "0.0.0.6/31");
    let mut v6 = String::new();
    Range {
        first: 0_u128,
        last: u128::MAX,
    }
    .write(&mut v6);
    assert_eq!(v6, "::/0");
}

#[test]
fn a_whole_table_as_it_is_printed() {
    let table = Table {
        sets: vec![Set {
            name: "ports_rdp".to_owned(),
            elements: Elements::Ports(Ranges::merged(vec![
                (3389, 3389).into(),
                (5900, 5910).into(),
            ])),
        }],
        chains: vec![Chain {
            name: "prerouting".to_owned(),
            base: Some(Base {
                kind: "filter".to_owned(),
                hook: 0,
                priority: -140,
                policy: 1,
            }),
            rules: vec![Rule {
                expressions: tcp_port("ports_rdp")
                    .into_iter()
                    .chain([Expression::Counter])
                    .collect(),
                comment: Some("rdp: from clients".to_owned()),
            }],
        }],
        ..Table::default()
    };
    let expected = "\
table inet scb-redirect {
	set ports_rdp {
		type inet_service;
		flags interval;
		elements = { 3389, 5900-5910 };
	}

	chain prerouting {
		type filter hook prerouting priority -140; policy accept;  # mangle + 10
		tcp dport @ports_rdp counter comment \"rdp: from clients\"
	}
}
";
    assert_eq!(super::table(&table).unwrap(), expected);
    assert_eq!(
        commands(Some(&Table::default()), Some(&table)).unwrap(),
        Some(format!(
            "add table inet scb-redirect\ndelete table inet scb-redirect\n{expected}"
        ))
    );
    assert_eq!(
        commands(Some(&table), None).unwrap().as_deref(),
        Some("delete table inet scb-redirect\n")
    );
    assert_eq!(commands(Some(&table), Some(&table)).unwrap(), None);
}
