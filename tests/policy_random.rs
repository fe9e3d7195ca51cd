//! Policies that nobody wrote: whatever the text, the reader answers, points into the text, and what it
//! accepts is sound. `PROPTEST_CASES=100000 cargo test --test policy_random` looks longer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use redirect::net::{Family, Networks, Ranges};
use redirect::policy::{self, List, Policy, Severity, Source, Style};

/// Asks everything of the reader that can be asked, and checks what must hold of every answer.
fn judge(source: &Source) -> bool {
    let answer = policy::read(source);
    let diagnostics = match &answer {
        Ok(reading) => {
            check_policy(&reading.policy);
            assert!(
                reading
                    .warnings
                    .iter()
                    .all(|warning| warning.severity == Severity::Warning)
            );
            for (key, span) in reading.locations.iter() {
                assert!(
                    source
                        .text_of(span.file)
                        .get(span.start..span.end)
                        .is_some()
                );
                assert_eq!(reading.locations.get(key), Some(span));
            }
            &reading.warnings
        }
        Err(errors) => {
            assert!(errors.count() > 0);
            assert!(!errors.to_string().is_empty());
            &errors.diagnostics
        }
    };
    for diagnostic in diagnostics {
        let span = diagnostic.place.span;
        let text = source.text_of(span.file);
        assert!(text.get(span.start..span.end).is_some(), "{diagnostic:?}");
        assert!(diagnostic.place.position.line <= text.split('\n').count());
        assert!(!diagnostic.message.contains('\n'), "{diagnostic:?}");
    }
    for color in [false, true] {
        let shown = policy::render(diagnostics, source, Style { color, width: 80 });
        let control = |c: char| c.is_control() && c != '\n' && !(color && c == '\u{1b}');
        assert!(!shown.contains(control), "{shown:?}");
    }
    let json = serde_json::to_string(diagnostics).unwrap();
    assert!(json.starts_with('['));
    // The journal keeps the source as JSON; what is read from that must be the same.
    let kept: Source = serde_json::from_str(&serde_json::to_string(source).unwrap()).unwrap();
    assert_eq!(policy::read(&kept), answer);
    answer.is_ok()
}

fn is_merged<T: redirect::net::Step>(ranges: &Ranges<T>) -> bool
where
    Ranges<T>: PartialEq,
{
    Ranges::merged(ranges.as_slice().to_vec()) == *ranges
        && ranges.iter().all(|range| range.first <= range.last)
}

fn check_policy(policy: &Policy) {
    let options = &policy.options;
    let count = policy.appliances.len();
    assert!(count > 0 && !policy.redirects.is_empty());
    let mut tables = BTreeSet::new();
    let mut marks = BTreeSet::new();
    for (index, appliance) in policy.appliances.iter().enumerate() {
        assert!(!appliance.addresses.is_empty());
        for family in Family::ALL {
            let of_family = appliance
                .addresses
                .iter()
                .filter(|address| Family::of(**address) == family);
            assert!(of_family.count() <= 1);
        }
        assert!(!appliance.table.is_reserved());
        assert!(tables.insert(appliance.table));
        assert_eq!(appliance.mark.mask, options.mark_mask);
        assert!(appliance.mark.value != 0 && appliance.mark.value & !options.mark_mask == 0);
        assert!(marks.insert(appliance.mark.value));
        assert_eq!(
            appliance.rule_priority.0,
            options.rule_priority.0 + u32::try_from(index).unwrap()
        );
        assert!(appliance.rule_priority.0 < 32766);
    }
    let mut names = BTreeSet::new();
    for redirect in &policy.redirects {
        assert!(names.insert(&redirect.name));
        let appliance = policy.appliance_of(redirect).unwrap();
        assert!(!redirect.client_interfaces.is_empty());
        for (index, pattern) in redirect.client_interfaces.iter().enumerate() {
            assert!(
                redirect
                    .client_interfaces
                    .iter()
                    .enumerate()
                    .all(|(other, covering)| other == index || !covering.covers(pattern))
            );
        }
        assert!(!redirect.ports.is_empty() && !redirect.ports.contains(0));
        assert!(!redirect.servers.is_empty());
        for Networks { v4, v6 } in [&redirect.servers, &redirect.except_clients] {
            assert!(is_merged(v4) && is_merged(v6));
        }
        assert!(is_merged(&redirect.ports));
        for family in Family::ALL {
            assert!(redirect.servers.is_empty_of(family) || appliance.address(family).is_some());
        }
        assert!(
            !appliance
                .addresses
                .iter()
                .any(|address| redirect.servers.contains(*address))
        );
        if appliance.macs.is_empty() {
            assert!(
                !redirect
                    .client_interfaces
                    .iter()
                    .any(|pattern| pattern.matches(&appliance.interface))
            );
        }
        for other in &policy.redirects {
            let clash = other.appliance != redirect.appliance
                && other.ports.overlap(&redirect.ports).is_some()
                && (other.servers.v4.overlap(&redirect.servers.v4).is_some()
                    || other.servers.v6.overlap(&redirect.servers.v6).is_some())
                && other.client_interfaces.iter().any(|one| {
                    redirect
                        .client_interfaces
                        .iter()
                        .any(|two| one.overlaps(two))
                });
            assert!(!clash);
        }
    }
}

fn with_list(text: String, list: String) -> Source {
    let mut source = Source::from_text("dir/policy.toml", text);
    source.lists.push(List {
        path: "networks.txt".into(),
        text: list,
    });
    source
}

/// All policies of the examples and the stories.
static CORPUS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stories = fs::read_dir(root.join("tests/policy"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("policy.toml"));
    let examples = fs::read_dir(root.join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        });
    let mut paths: Vec<_> = stories.chain(examples).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
});

/// Few by default, for every build runs them.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(64)
}

/// What people put where it does not belong, and what makes parsers stumble.
const SCRAPS: &[&str] = &[
    "",
    "\n",
    "\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    "#",
    ".",
    ":",
    "-",
    "0",
    "1",
    "0x",
    "99999999999999999999",
    "-1",
    "1.5",
    "nan",
    "1979-05-27",
    "true",
    "\"\"",
    "\"a\"",
    "\"*\"",
    "\"ppp*\"",
    "\"sps0\"",
    "\"eth0\"",
    "\"10.30.0.2\"",
    "\"fe80::1\"",
    "\"0.0.0.0/0\"",
    "\"::/0\"",
    "\"10.20.0.0/33\"",
    "\"10.20.0.5/24\"",
    "\"65535-1\"",
    "0",
    "{ file = \"networks.txt\" }",
    "{ file = \"missing.txt\" }",
    "{}",
    "[]",
    "[[]]",
    "\n[options]\n",
    "\n[[redirect]]\n",
    "\n[redirect]\n",
    "\n[appliance.x]\n",
    "\n[appliance]\n",
    "\nappliance = 1\n",
    "\nsnat = true\n",
    "\nmark = 1\n",
    "\nmark_mask = 1\n",
    "\ntable = 254\n",
    "\u{feff}",
    "\r\n",
    "\r",
    "\0",
    "\u{1b}[31m",
    "\u{202e}",
    "“",
    "ä",
    "𝄞",
    "\\u0000",
    "\\",
];

#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, usize),
    Delete(usize, usize),
    Swap(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 0..10_000_usize;
    prop_oneof![
        (at.clone(), 0..SCRAPS.len()).prop_map(|(at, scrap)| Edit::Insert(at, scrap)),
        (at.clone(), 1..40_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (at.clone(), at).prop_map(|(one, two)| Edit::Swap(one, two)),
    ]
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for edit in edits {
        let length = characters.len().max(1);
        match *edit {
            Edit::Insert(at, scrap) => {
                let at = (at % length).min(characters.len());
                characters.splice(at..at, SCRAPS.get(scrap).unwrap_or(&"").chars());
            }
            Edit::Delete(at, count) => {
                let at = (at % length).min(characters.len());
                let end = (at + count).min(characters.len());
                characters.drain(at..end);
            }
            // Whole lines, so that keys end up in other tables.
            Edit::Swap(one, two) => {
                let text: String = characters.iter().collect();
                let mut lines: Vec<&str> = text.split('\n').collect();
                let count = lines.len();
                lines.swap(one % count, two % count);
                characters = lines.join("\n").chars().collect();
            }
        }
    }
    characters.into_iter().collect()
}

/// A policy out of parts that are sound each, and may or may not fit together.
fn assembled() -> impl Strategy<Value = String> {
    let address = prop_oneof![
        Just("\"10.30.0.2\""),
        Just("[\"10.40.0.2\", \"fd00:40::2\"]"),
        Just("\"fd00:30::2\""),
        Just("\"10.20.0.9\""),
    ];
    let interface = prop_oneof![Just("sps0"), Just("sps1"), Just("eth0"), Just("eth1")];
    let extra = prop_oneof![
        Just(""),
        Just("mac = \"02:00:5e:00:00:01\"\n"),
        Just("mac = \"02:00:5e:00:00:02\"\n"),
        Just("table = 104\n"),
        Just("mark = 2\n"),
        Just("mark = 0x100\n"),
    ];
    let appliance = (address, interface, extra);
    let clients = prop_oneof![
        Just("\"eth0\""),
        Just("[\"eth*\", \"ppp0\"]"),
        Just("\"ppp*\""),
        Just("[\"wan0\", \"eth1\"]"),
    ];
    let servers = prop_oneof![
        Just("\"10.20.0.0/24\""),
        Just("[\"10.20.0.0/16\", \"fd00:20::/64\"]"),
        Just("\"fd00:20::/64\""),
        Just("{ file = \"networks.txt\" }"),
        Just("\"10.0.0.0/8\""),
    ];
    let port = prop_oneof![
        Just("22"),
        Just("[3389, \"5900-5910\"]"),
        Just("\"1-65535\""),
        Just("[5905]"),
    ];
    let rest = prop_oneof![
        Just(""),
        Just("snat = true\n"),
        Just("snat = true\nserver_interface = \"eth1\"\n"),
        Just("except_server = \"10.20.0.9\"\n"),
        Just("except_server = [\"10.20.0.0/24\", \"fd00::/16\"]\n"),
        Just("except_client = { file = \"networks.txt\" }\n"),
    ];
    let redirect = (0..4_usize, clients, servers, port, rest);
    let options = prop_oneof![
        Just(""),
        Just("[options]\nmark_mask = 0xff00\n"),
        Just("[options]\nmark_mask = 3\nrule_priority = 32764\n"),
        Just("[options]\nbackend = \"iptables\"\nestablished = \"keep\"\n"),
    ];
    (
        prop::collection::vec(appliance, 1..5),
        prop::collection::vec(redirect, 1..4),
        options,
    )
        .prop_map(|(appliances, redirects, options)| {
            let mut text = "version = 1\n".to_owned();
            for (index, (address, interface, extra)) in appliances.iter().enumerate() {
                let _ = write!(text, "[appliance.a{index}]\naddress = {address}\ninterface = \"{interface}\"\n{extra}"
                );
            }
            for (index, (appliance, clients, servers, port, rest)) in redirects.iter().enumerate() {
                let appliance = appliance % appliances.len();
                let _ = write!(text, "[[redirect]]\nname = \"r{index}\"\nappliance = \"a{appliance}\"\nclient_interface = {clients}\nserver_network = {servers}\nport = {port}\n{rest}"
                );
            }
            text + options
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>(), list in any::<String>()) {
        judge(&with_list(text, list));
    }

    #[test]
    fn any_list_is_answered(list in "([0-9a-f.:/# *-]{0,24}\r?\n){0,30}") {
        let text = CORPUS.iter().find(|text| text.contains("networks.txt\" }")).unwrap();
        judge(&with_list(text.clone(), list));
    }

    #[test]
    fn a_spoilt_policy_is_answered(
        which in 0..1000_usize,
        edits in prop::collection::vec(edit(), 1..6),
    ) {
        let text = CORPUS.get(which % CORPUS.len()).unwrap();
        judge(&with_list(apply(text, &edits), "10.21.0.0/24\nfd00:21::/64\n".into()));
    }

    #[test]
    fn what_is_assembled_is_sound_or_refused(text in assembled()) {
        judge(&with_list(text, "10.21.0.0/24\n10.22.0.0/24 # more\n".into()));
    }
}

/// That some of the assembled are accepted, and some are not; else the test above would say nothing.
#[test]
fn assembled_policies_are_of_both_kinds() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let accepted = (0..400)
        .filter(|_| {
            let text = assembled().new_tree(&mut runner).unwrap().current();
            judge(&with_list(text, "10.21.0.0/24\n".into()))
        })
        .count();
    assert!((20..380).contains(&accepted), "{accepted} of 400");
}

/// How long a large list takes. `cargo test --release --test policy_random -- --ignored --nocapture large`
#[test]
#[ignore = "a measurement"]
fn a_large_list() {
    let mut list = String::new();
    for number in 0..100_000_u32 {
        let bits = 0x0a00_0000 + (number << 9);
        let _ = writeln!(list, "{}/24", std::net::Ipv4Addr::from_bits(bits));
    }
    let text = "version = 1\n[appliance.scb]\naddress = \"192.168.0.2\"\ninterface = \"sps0\"\n\
        [[redirect]]\nname = \"all\"\nclient_interface = \"eth0\"\nserver_network = { file = \"networks.txt\" }\nport = 22\n";
    let source = with_list(text.to_owned(), list);
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let reading = policy::read(&source).unwrap();
        println!(
            "{} networks in {:?}",
            reading
                .policy
                .redirects
                .iter()
                .map(|redirect| redirect.servers.len())
                .sum::<usize>(),
            start.elapsed()
        );
    }
}

/// A file with far more mistakes than anybody reads is refused without walking through it for each.
#[test]
fn thousands_of_mistakes_are_answered() {
    let mut text = "version = 1\n[[redirect]]\nserver_network = [\n".to_owned();
    for number in 0..20_000 {
        let _ = writeln!(text, "\"x{number}\",");
    }
    text += "]\n";
    let errors = policy::read(&Source::from_text("policy.toml", text)).unwrap_err();
    assert_eq!(errors.diagnostics.len(), 1000);
    let json = serde_json::to_string(&errors).unwrap();
    assert!(json.contains("more are not listed"), "{}", json.len());
    let text = "address = 10.30.0.2\n".repeat(10_000);
    let errors = policy::read(&Source::from_text("policy.toml", text)).unwrap_err();
    assert!(errors.count() >= 1000);
}
