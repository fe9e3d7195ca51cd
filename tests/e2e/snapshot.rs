//! All of a router that `redirect` could possibly touch.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::lab::Lab;

/// The state of a router, section by section. Two are equal if nothing differs but counters and
/// what time itself changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<String, Vec<String>>,
}

/// Each section's name, and what prints it.
///
/// `iptables-legacy-save` lists the tables that exist, and makes none. A legacy table without rules is
/// left out: the kernel makes it when first asked for it, and nobody can remove it. What a program
/// is not installed for cannot have been changed by it.
const SECTIONS: &[(&str, &str)] = &[
    ("nftables", "nft --json --stateless --handle list ruleset"),
    (
        "iptables-legacy",
        "iptables-legacy-save | awk '/^\\*/ { table = $0; next } /^-A|^:.* -|DROP/ { print table, $0 }'",
    ),
    (
        "ip6tables-legacy",
        "ip6tables-legacy-save | awk '/^\\*/ { table = $0; next } /^-A|^:.* -|DROP/ { print table, $0 }'",
    ),
    ("ipset", "ipset save | sort"),
    ("rules", "ip -json -details rule"),
    ("rules, IPv6", "ip -6 -json -details rule"),
    ("routes", "ip -json -details route show table all"),
    ("routes, IPv6", "ip -6 -json -details route show table all"),
    (
        "settings",
        "grep -rs '' /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/netfilter \
         /proc/sys/net/ipv4/ip_forward | grep -v conntrack_count | sort",
    ),
    (
        "files",
        "find /etc -path /etc/redirect -prune -o -printf '%p %y %m %u %g %l\\n' | sort; \
         find /etc -path /etc/redirect -prune -o -type f -print0 | sort -z | xargs -0 sha256sum",
    ),
];

impl Snapshot {
    /// The router of `lab` as it is.
    pub fn of(lab: &Lab) -> Self {
        let script: Vec<String> = SECTIONS
            .iter()
            .map(|(name, command)| {
                let program = command.split(' ').next().unwrap_or_default();
                format!(
                    "echo '=== {name}'\nif command -v {program} >/dev/null; then {command}; fi\n"
                )
            })
            .collect();
        let mut sections = BTreeMap::new();
        let mut section = "";
        let printed = lab.router(&script.concat());
        for line in printed.lines() {
            if let Some(name) = line.strip_prefix("=== ") {
                section = name;
                sections.insert(section.to_owned(), Vec::new());
            } else if let Some(lines) = sections.get_mut(section) {
                lines.extend(entries(line));
            }
        }
        assert_eq!(sections.len(), SECTIONS.len(), "{printed}");
        Self { sections }
    }

    /// The same without numbers that the kernel gives out as it goes, for comparing two routers.
    pub fn without_handles(&self) -> Self {
        let mut other = self.clone();
        for line in other.sections.get_mut("nftables").into_iter().flatten() {
            if let Ok(mut value) = serde_json::from_str::<Value>(line) {
                strip(&mut value, &["handle"]);
                *line = value.to_string();
            }
        }
        // Tables, sets and chains are listed as they were made, and a changed policy makes them in
        // another order than a fresh one. Rules stay as they follow one another in their chain.
        if let Some(lines) = other.sections.get_mut("nftables") {
            lines.sort_by_cached_key(|line| place(line));
        }
        // The seed of a set's hash.
        for line in other.sections.get_mut("ipset").into_iter().flatten() {
            if let Some((set, _seed)) = line.split_once(" initval ") {
                *line = set.to_owned();
            }
        }
        other
    }

    /// Requires the same state; else shows what is only in one of them.
    #[track_caller]
    pub fn assert_is(&self, wanted: &Self) {
        let mut differences: Vec<String> = Vec::new();
        for (name, lines) in &self.sections {
            let other = &wanted.sections[name];
            for line in other.iter().filter(|line| !lines.contains(line)) {
                differences.push(format!("{name}: missing: {line}"));
            }
            for line in lines.iter().filter(|line| !other.contains(line)) {
                differences.push(format!("{name}: too much: {line}"));
            }
            if differences.is_empty() && lines != other {
                differences.push(format!("{name}: order or number of lines"));
            }
        }
        assert!(
            differences.is_empty(),
            "the router differs:\n{}",
            differences.join("\n")
        );
    }
}

/// A line of output as entries that can be compared by themselves: the elements of JSON lists, lines
/// otherwise, without counters and comments that tell the time.
fn entries(line: &str) -> Vec<String> {
    if line.starts_with(['[', '{']) {
        let mut value: Value = serde_json::from_str(line).unwrap();
        strip(&mut value, &["packets", "bytes"]);
        let list = match value {
            Value::Array(list) => list,
            Value::Object(mut object) => match object.remove("nftables") {
                Some(Value::Array(list)) => list,
                _ => vec![Value::Object(object)],
            },
            other => vec![other],
        };
        return list.iter().map(Value::to_string).collect();
    }
    if line.starts_with('#') {
        return Vec::new();
    }
    // A chain's counters: `:INPUT ACCEPT [12:3456]`.
    let line = match line
        .strip_prefix(':')
        .and_then(|line| line.split_once(" ["))
    {
        Some((chain, _)) => format!(":{chain}"),
        None => line.to_owned(),
    };
    vec![line]
}

/// To which chain, set or table an entry of nft's listing belongs.
fn place(line: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(line).unwrap();
    let Some((kind, object)) = value.as_object().and_then(|entry| entry.iter().next()) else {
        return Vec::new();
    };
    let mut place = vec![kind.clone()];
    for key in ["family", "table", "chain", "name"] {
        place.extend(object.get(key).map(Value::to_string));
    }
    place
}

fn strip(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !keys.contains(&key.as_str()));
            object.values_mut().for_each(|value| strip(value, keys));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| strip(value, keys)),
        _ => {}
    }
}
