//! `redirect support`: what a ticket needs, in one file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::utsname::uname;
use serde::Serialize;
use serde_json::json;

use super::location;
use super::look::Seen;
use crate::archive::{Member, tar_gz};
use crate::check::{self, text};
use crate::cli::{POLICY, Support};
use crate::failure::{Exit, Failure};
use crate::journal::Journal;
use crate::kernel::{files, process};
use crate::policy::{self, Source};
use crate::terminal::Terminal;

/// What each program may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Programs to run, by the name of the file that takes their output. Nothing here shows a
/// key: those of `WireGuard` and `IPsec` are shown by other commands, and by files that are not read.
const PROGRAMS: [(&str, &[&str]); 16] = [
    ("rules.txt", &["ip", "-details", "rule"]),
    ("rules6.txt", &["ip", "-6", "-details", "rule"]),
    ("links.txt", &["ip", "-details", "-statistics", "link"]),
    ("addresses.txt", &["ip", "address"]),
    ("neighbours.txt", &["ip", "-statistics", "neighbour"]),
    (
        "routes.txt",
        &[
            "ip", "-details", "route", "show", "table", "all", "proto", "103",
        ],
    ),
    (
        "routes6.txt",
        &[
            "ip", "-6", "-details", "route", "show", "table", "all", "proto", "103",
        ],
    ),
    ("nft.txt", &["nft", "-a", "list", "ruleset"]),
    ("iptables.txt", &["iptables-save", "-c"]),
    ("ip6tables.txt", &["ip6tables-save", "-c"]),
    ("ipset.txt", &["ipset", "list", "-terse"]),
    ("version-ip.txt", &["ip", "-V"]),
    ("version-nft.txt", &["nft", "-V"]),
    ("version-iptables.txt", &["iptables", "-V"]),
    ("kernel.log", &["dmesg"]),
    (
        "journal.log",
        &[
            "journalctl",
            "--no-pager",
            "--boot",
            "--lines",
            "2000",
            "--output",
            "short-iso",
        ],
    ),
];

/// Lines of logs that concern us hold one of these.
const RELEVANT: [&str; 12] = [
    "redirect",
    "martian",
    "nf_",
    "conntrack",
    "nftables",
    "iptables",
    "netfilter",
    "networkd",
    "rp_filter",
    "neighbour",
    "Link is",
    "link becomes",
];

/// A line with one of these is left out: it may hold a secret.
const SECRET: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "private",
    "psk",
    "credential",
    "apikey",
];

pub(super) fn run(args: &Support, terminal: &Terminal) -> Result<Exit, Failure> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let system = uname().map_err(|errno| Failure::new(Exit::Failed, errno.desc()))?;
    let host = system.nodename().to_string_lossy().into_owned();
    let directory = format!("redirect-support-{host}-{now}");
    let path = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{directory}.tar.gz")));
    let mut pack = Pack {
        directory,
        members: Vec::new(),
        missing: Vec::new(),
    };
    let release = system.release().to_string_lossy();
    let machine = system.machine().to_string_lossy();
    pack.add(
        "about.txt",
        &format!(
            "redirect {}\nhost {host}\nLinux {release} {machine}\nseconds since 1970: {now}\n",
            env!("CARGO_PKG_VERSION")
        ),
    );
    pack.own();
    for (name, command) in PROGRAMS {
        pack.program(name, command);
    }
    pack.settings();
    if !pack.missing.is_empty() {
        let missing = pack.missing.join("\n");
        pack.add("missing.txt", &format!("{missing}\n"));
    }
    let packed = tar_gz(&pack.members, now).map_err(|error| Failure::new(Exit::Failed, error))?;
    let whole = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    files::create(&whole, &packed)?;
    let mut text = format!("{} holds:\n", path.display());
    for member in &pack.members {
        let name = member.name.rsplit('/').next().unwrap_or_default();
        _ = writeln!(text, "  {:>9}  {name}", member.bytes.len());
    }
    text.push_str("lines that look like secrets are left out; look it over before you send it\n");
    terminal.data(&text)?;
    Ok(Exit::Done)
}

struct Pack {
    directory: String,
    members: Vec<Member>,
    missing: Vec<String>,
}

impl Pack {
    fn add(&mut self, name: &str, text: &str) {
        self.members.push(Member {
            name: format!("{}/{name}", self.directory),
            bytes: text.as_bytes().to_vec(),
        });
    }

    fn json(&mut self, name: &str, value: &impl Serialize) {
        // As text at once: `serde_json`'s own values have no room for IPv6 addresses as numbers.
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.add(name, &format!("{text}\n")),
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }

    /// What we know ourselves: policy, plan, router, check, history.
    fn own(&mut self) {
        let journal = location().and_then(|location| Ok(Journal::read(&location)?));
        let source = match journal {
            Ok(journal) => {
                self.json(
                    "history.json",
                    &json!({ "open": journal.open(), "transactions": journal.history() }),
                );
                let digest = journal.in_force().policy.as_ref();
                digest.and_then(|digest| journal.source(digest).ok())
            }
            Err(failure) => {
                self.missing.push(format!("history.json: {failure}"));
                None
            }
        };
        // What was applied, and what is in the usual place.
        if let Some(source) = &source {
            self.add("policy-in-force.toml", &source.text);
        }
        let usual = Source::load(Path::new(POLICY)).ok();
        if let Some(usual) = &usual {
            self.add("policy.toml", &usual.text);
        }
        let Some(source) = source.or(usual) else {
            self.missing
                .push("plan, check: there is no policy".to_owned());
            return;
        };
        let policy = match policy::read(&source) {
            Ok(reading) => reading.policy,
            Err(errors) => {
                self.missing.push(format!("plan, check: {errors}"));
                return;
            }
        };
        match Seen::of(policy, &source) {
            Ok(seen) => {
                let report = check::check(&seen.case());
                self.json("observed.json", &seen.observed);
                self.json("plan.json", &seen.planned.plan);
                self.json("check.json", &report);
                self.add(
                    "check.txt",
                    &text::report(&report, &|_, text| text.to_owned()),
                );
            }
            Err(failure) => self.missing.push(format!("plan, check: {failure}")),
        }
    }

    fn program(&mut self, name: &str, command: &[&str]) {
        let Some((program, arguments)) = command.split_first() else {
            return;
        };
        if process::find(program).is_none() {
            self.missing
                .push(format!("{name}: `{program}` is not installed"));
            return;
        }
        let is_log = Path::new(name)
            .extension()
            .is_some_and(|ending| ending == "log");
        match process::run(program, arguments, b"", PATIENCE) {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                let kept = without_secrets(&text, is_log);
                self.add(name, &format!("# {}\n{kept}", command.join(" ")));
            }
            Ok(output) => self.missing.push(format!("{name}: {}", output.complaint())),
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }

    /// The settings that decide about forwarding, of all interfaces.
    fn settings(&mut self) {
        let mut text = String::new();
        let mut read = |path: PathBuf| {
            if let Ok(Some(content)) = files::read(&path, 4096) {
                _ = writeln!(text, "{} = {}", path.display(), content.text.trim());
            }
        };
        read(PathBuf::from("/proc/sys/net/ipv4/ip_forward"));
        for (family, settings) in [
            (
                "ipv4",
                [
                    "rp_filter",
                    "src_valid_mark",
                    "send_redirects",
                    "forwarding",
                    "accept_local",
                ]
                .as_slice(),
            ),
            (
                "ipv6",
                ["forwarding", "disable_ipv6", "accept_ra"].as_slice(),
            ),
        ] {
            let directory = PathBuf::from(format!("/proc/sys/net/{family}/conf"));
            let mut interfaces: Vec<PathBuf> = std::fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            interfaces.sort();
            for interface in interfaces {
                for setting in settings {
                    read(interface.join(setting));
                }
            }
        }
        self.add("settings.txt", &text);
    }
}

/// Without lines that may hold a secret; of a log, only lines that concern us.
fn without_secrets(text: &str, is_log: bool) -> String {
    let mut kept = String::with_capacity(text.len());
    for line in text.lines() {
        let small = line.to_ascii_lowercase();
        if is_log
            && !RELEVANT
                .iter()
                .any(|word| small.contains(&word.to_ascii_lowercase()))
        {
            continue;
        }
        if SECRET.iter().any(|word| small.contains(word)) {
            kept.push_str("(left out: it may hold a secret)\n");
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_what_does_not_concern_us_stay_here() {
        let log = "martian source 10.0.0.1\nusb 1-1: new device\nnetworkd: PSK=abc\n";
        assert_eq!(
            without_secrets(log, true),
            "martian source 10.0.0.1\n(left out: it may hold a secret)\n"
        );
        assert_eq!(without_secrets("eth0: up\n", false), "eth0: up\n");
    }
}
