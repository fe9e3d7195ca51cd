//! What libnftnl leaves in the kernel is what we leave there.

use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use redirect::kernel::nftables::Nftables;
use redirect::net::{IfPattern, MacAddr, Networks};
use redirect::nft::{
    Base, Chain, Elements, Expression, MetaKey, PayloadBase, Rule, Set, Table, Verdict,
};
use redirect::policy::{self, Established, Policy, Source};
use redirect::rules;
use serde_json::Value;

/// Batches of the `nftnl` crate are cut at 128 KiB, and each part is then a transaction of its own.
const MOST: usize = 1000;

fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => Some(test()),
            Err(errno) => {
                eprintln!("SKIPPED: needs root to make a network namespace ({errno})");
                None
            }
        });
        thread.join().unwrap()
    })
}

fn commit_through_libnftnl(table: &Table) {
    let batch = witness::transaction(table);
    assert_eq!(batch.iter().count(), 1, "must be one transaction");
    let socket = mnl::Socket::new(mnl::Bus::Netfilter).unwrap();
    let port = socket.portid();
    socket.send_all(&batch).unwrap();
    // Aligned as `struct nlmsghdr` must be.
    let mut buffer = vec![0_u64; 1 << 13];
    let mut expected = batch.sequence_numbers();
    while !expected.is_empty() {
        // SAFETY: any bytes will do, and the length is that of the numbers in bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), buffer.len() * 8)
        };
        for message in socket.recv(bytes).unwrap() {
            let sequence = expected.next().expect("one answer a message");
            mnl::cb_run(message.unwrap(), sequence, port)
                .unwrap_or_else(|error| panic!("message {sequence}: {error}"));
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test starts `nft` as a person would"
)]
fn listing() -> Vec<Value> {
    let output = Command::new("nft")
        .args(["-j", "list", "ruleset"])
        .output()
        .expect("`nft` must be installed for these tests");
    let mut found: Value = serde_json::from_slice(&output.stdout).unwrap();
    strip(&mut found);
    let Value::Array(objects) = found["nftables"].take() else {
        panic!("no list");
    };
    objects
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn check(name: &str, table: &Table) {
    let Some(theirs) = in_namespace(|| {
        commit_through_libnftnl(table);
        let found = Nftables::open().unwrap().read().unwrap();
        assert_eq!(found.as_ref(), Some(table), "{name}: read back");
        listing()
    }) else {
        return;
    };
    let ours = in_namespace(|| {
        Nftables::open().unwrap().commit(None, Some(table)).unwrap();
        listing()
    });
    let ours = ours.unwrap();
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{name}");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}");
}

/// The policies in examples/, and variants that reach what these leave out.
fn policies() -> Vec<(String, Policy)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let source = Source::load(&path).unwrap_or_else(|_| panic!("{}", path.display()));
        let Ok(reading) = policy::read(&source) else {
            panic!("{}", path.display());
        };
        let name = path.file_name().unwrap().display().to_string();
        let plain = reading.policy;
        if plain
            .redirects
            .iter()
            .any(|redirect| redirect.servers.len() > MOST)
        {
            eprintln!("SKIPPED: {name} has more networks than one batch of `nftnl` can hold");
            continue;
        }
        let mut rich = plain.clone();
        rich.options.established = Established::Keep;
        for appliance in &mut rich.appliances {
            appliance.macs = vec![MacAddr([2, 0, 0, 0, 0, 1])];
        }
        for redirect in &mut rich.redirects {
            redirect.snat = true;
            redirect.server_interfaces = vec![IfPattern::new("srv*").unwrap()];
            redirect.except_clients =
                Networks::merged(["10.9.0.0/16", "fd09::/32"].map(|net| net.parse().unwrap()));
        }
        all.extend([(format!("{name}, enriched"), rich), (name, plain)]);
    }
    assert!(all.len() >= 12, "{}", all.len());
    all
}

#[test]
fn every_policy_means_the_same_to_us_and_to_libnftnl() {
    for (name, policy) in policies() {
        check(&name, &rules::nftables::table(&policy).unwrap());
    }
}

/// What no policy asks for, but tables can hold.
#[test]
fn maps_macs_and_both_ends_mean_the_same_to_us_and_to_libnftnl() {
    let goto = || Verdict::Goto("end".to_owned());
    let table = Table {
        sets: vec![
            Set {
                name: "macs".to_owned(),
                elements: Elements::Macs(vec![MacAddr([2; 6]), MacAddr([4; 6])]),
            },
            Set {
                name: "map".to_owned(),
                elements: Elements::V4Verdicts(vec![
                    ((0, 9).into(), Verdict::Accept),
                    ((10, 20).into(), goto()),
                    ((30, u32::MAX).into(), Verdict::Drop),
                ]),
            },
            Set {
                name: "ports".to_owned(),
                elements: Elements::PortVerdicts(vec![
                    ((22, 22).into(), Verdict::Jump("end".to_owned())),
                    ((65_535, 65_535).into(), Verdict::Return),
                ]),
            },
        ],
        chains: vec![
            Chain {
                name: "end".to_owned(),
                base: None,
                rules: Vec::new(),
            },
            Chain {
                name: "input".to_owned(),
                base: Some(Base {
                    kind: "filter".to_owned(),
                    hook: 1,
                    priority: 5,
                    policy: 0,
                }),
                rules: vec![
                    Rule {
                        expressions: vec![
                            Expression::MetaLoad(MetaKey::InputType),
                            Expression::Compare {
                                equal: true,
                                bytes: 1_u16.to_ne_bytes().to_vec(),
                            },
                            Expression::Payload {
                                base: PayloadBase::Link,
                                offset: 6,
                                length: 6,
                            },
                            Expression::Lookup {
                                set: "macs".to_owned(),
                                invert: true,
                            },
                            Expression::RejectProhibited,
                        ],
                        comment: Some("not these".to_owned()),
                    },
                    Rule {
                        expressions: vec![
                            Expression::MetaLoad(MetaKey::Family),
                            Expression::Compare {
                                equal: true,
                                bytes: vec![2],
                            },
                            Expression::Payload {
                                base: PayloadBase::Network,
                                offset: 16,
                                length: 4,
                            },
                            Expression::VerdictMap {
                                map: "map".to_owned(),
                            },
                        ],
                        comment: None,
                    },
                ],
            },
        ],
        ..Table::default()
    };
    check("a table of what is rare", &table);
}
