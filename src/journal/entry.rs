//! What is remembered of a transaction: when, who, what, with what result.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::plan::{Change, Plan};
use crate::policy::Source;

/// A moment, in UTC, written as RFC 3339 with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stamp(jiff::Timestamp);

impl Stamp {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self::from_millisecond(jiff::Timestamp::now().as_millisecond())
    }

    /// Milliseconds since 1970; what no calendar can show becomes 1970.
    #[must_use]
    pub fn from_millisecond(millisecond: i64) -> Self {
        Self(jiff::Timestamp::from_millisecond(millisecond).unwrap_or_default())
    }

    /// Whole seconds from `earlier` to this; 0 if the clock was set back.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.as_second() - earlier.0.as_second()).unwrap_or(0)
    }
}

impl fmt::Display for Stamp {
    /// For people: whole seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}", self.0)
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> Self {
        format!("{:.3}", stamp.0)
    }
}

impl TryFrom<String> for Stamp {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        jiff::Timestamp::from_str(&text)
            .map(Self)
            .map_err(|error| format!("`{text}` is not a moment in RFC 3339: {error}"))
    }
}

/// Which boot of the machine: `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl BootId {
    /// Of the 32 hexadecimal digits that systemd writes (systemd.unit(5), `%b`), in the kernel's
    /// spelling.
    pub(super) fn of_systemd(digits: &str) -> Option<Self> {
        if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits.get(part));
        let parts: Option<Vec<&str>> = parts.into_iter().collect();
        parts.map(|parts| Self(parts.join("-").to_ascii_lowercase()))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of a policy, in hexadecimal: of its text as it stands, so that
/// `sha256sum policy.toml` shows the same; where it has list files, of its text and of
/// each list's path and text, each with its length before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of `source`.
    #[must_use]
    pub fn of(source: &Source) -> Self {
        let mut hash = Sha256::new();
        if source.lists.is_empty() {
            hash.update(source.text.as_bytes());
        } else {
            let lists = source.lists.iter();
            let parts = lists.flat_map(|list| {
                [
                    list.path.as_os_str().as_encoded_bytes(),
                    list.text.as_bytes(),
                ]
            });
            for part in std::iter::once(source.text.as_bytes()).chain(parts) {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        let mut hex = String::with_capacity(64);
        for byte in hash.finalize() {
            for nibble in [byte >> 4, byte & 15] {
                hex.extend(char::from_digit(u32::from(nibble), 16));
            }
        }
        Self(hex)
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, which tell policies apart for people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    /// It becomes part of a file's name, so nothing but digits gets through.
    fn try_from(text: String) -> Result<Self, String> {
        let sound = text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if sound {
            Ok(Self(text))
        } else {
            Err(format!("`{}` is not a SHA-256 digest", text.escape_debug()))
        }
    }
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A policy was put in force.
    Apply,
    /// Everything was taken out.
    Teardown,
    /// An earlier policy was put back.
    Rollback,
    /// The policy in force was put right where others had changed the router.
    Repair,
    /// New sessions go direct, those that run end through the appliance.
    Drain,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apply => "apply",
            Self::Teardown => "teardown",
            Self::Rollback => "rollback",
            Self::Repair => "repair",
            Self::Drain => "drain",
        })
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As planned.
    Done,
    /// Everything was taken back.
    Undone {
        /// Why, as a person would say it: "interrupted", "not confirmed within 60 seconds".
        why: String,
    },
    /// Neither made nor wholly taken back.
    Failed {
        /// Why.
        why: String,
        /// Each object that is not as it was before.
        remains: Vec<String>,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Undone { why } => write!(f, "undone: {why}"),
            Self::Failed { why, remains } => {
                write!(f, "failed: {why}")?;
                for (at, object) in remains.iter().enumerate() {
                    let before = if at == 0 { "; remains: " } else { ", " };
                    write!(f, "{before}{object}")?;
                }
                Ok(())
            }
        }
    }
}

/// Who ran a command, as far as the system tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Effective user.
    pub uid: u32,
    /// Its name.
    pub user: Option<String>,
    /// Who called `sudo`.
    pub sudo_user: Option<String>,
    /// Who logged in (`/proc/self/loginuid`, which `sudo` and `su` leave alone).
    pub login_user: Option<String>,
    /// The terminal, without `/dev/`.
    pub tty: Option<String>,
    /// The address that an SSH session comes from.
    pub ssh_client: Option<String>,
    /// The process.
    pub pid: u32,
}

impl Who {
    /// The most telling name: of who logged in, who called `sudo`, or the user.
    #[must_use]
    pub fn name(&self) -> String {
        [&self.sudo_user, &self.login_user, &self.user]
            .into_iter()
            .flatten()
            .next()
            .cloned()
            .unwrap_or_else(|| format!("uid {}", self.uid))
    }

    /// What the system tells of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        Self {
            uid,
            user: user_name(uid),
            sudo_user: std::env::var("SUDO_USER")
                .ok()
                .filter(|name| !name.is_empty()),
            login_user: std::fs::read_to_string("/proc/self/loginuid")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .filter(|uid| *uid != u32::MAX)
                .and_then(user_name),
            tty: (0..3).find_map(terminal),
            ssh_client: ssh_client(),
            pid: std::process::id(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tty) = &self.tty {
            write!(f, " on {tty}")?;
        }
        if let Some(client) = &self.ssh_client {
            write!(f, " from {client}")?;
        }
        Ok(())
    }
}

/// The name of a user, if there is one.
pub(super) fn user_name(uid: u32) -> Option<String> {
    nix::unistd::User::from_uid(uid.into())
        .ok()
        .flatten()
        .map(|user| user.name)
}

fn terminal(descriptor: u32) -> Option<String> {
    let target = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?;
    let name = target.to_str()?.strip_prefix("/dev/")?;
    (name.starts_with("pts/") || name.starts_with("tty")).then(|| name.to_owned())
}

/// `sudo` does not pass `SSH_CONNECTION` on, so the parents are asked as well.
fn ssh_client() -> Option<String> {
    // As deep as shells under sudo under shells go; each level is two small reads.
    const DEPTH: usize = 8;
    let first_word = |value: &str| {
        let word = value.split(' ').next()?;
        word.parse::<std::net::IpAddr>()
            .ok()
            .map(|ip| ip.to_string())
    };
    if let Ok(value) = std::env::var("SSH_CONNECTION") {
        return first_word(&value);
    }
    let mut pid = nix::unistd::getppid().as_raw();
    for _ in 0..DEPTH {
        if pid <= 1 {
            return None;
        }
        if let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) {
            let found = environment
                .split(|byte| *byte == 0)
                .find_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="));
            if let Some(value) = found {
                return first_word(std::str::from_utf8(value).ok()?);
            }
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; after its last `)`: state, parent.
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?;
        pid = parent.parse().ok()?;
    }
    None
}

/// The start of a transaction: by whom, with what command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Who.
    pub who: Who,
    /// The command line, word by word.
    pub command: Vec<String>,
}

impl Invocation {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        Self {
            who: Who::of_this_process(),
            command: std::env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        }
    }
}

/// A transaction, as `redirect history` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted up from 1, never reused.
    pub id: u64,
    /// What for.
    pub kind: Kind,
    /// During which boot.
    pub boot: BootId,
    /// When it began.
    pub started: Stamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Stamp>,
    /// By whom.
    pub who: Who,
    /// With which command, word by word.
    pub command: Vec<String>,
    /// The policy that it puts in force; none: none is, afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
    /// That policy's file, as it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_name: Option<String>,
    /// The policy that was in force before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Digest>,
    /// What changed, one line an object; of very many, the first ones.
    pub changes: Vec<String>,
    /// How many more there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_changes: usize,
    /// How it ended; none while it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Entry {
    /// How many changes it made, or was to make.
    #[must_use]
    pub fn change_count(&self) -> usize {
        self.changes.len() + self.more_changes
    }
}

/// One line for each change.
#[must_use]
pub fn summary(plan: &Plan) -> Vec<String> {
    plan.changes.iter().map(summarise).collect()
}

/// What a change does to which object, in one line.
#[must_use]
pub fn summarise(change: &Change) -> String {
    let verb = |from: bool, to: bool| match (from, to) {
        (false, _) => "add",
        (true, false) => "remove",
        (true, true) => "change",
    };
    match change {
        Change::Directory { path, from, to } => {
            format!("{} directory {}", verb(*from, *to), path.display())
        }
        Change::File { path, from, to } => {
            format!(
                "{} file {}",
                verb(from.is_some(), to.is_some()),
                path.display()
            )
        }
        Change::Route { from, to } => {
            let verb = verb(from.is_some(), to.is_some());
            match to.as_ref().or(from.as_ref()) {
                Some(route) => format!("{verb} {}", route_name(route)),
                None => format!("{verb} route"),
            }
        }
        Change::Rule { from, to } => {
            let verb = verb(from.is_some(), to.is_some());
            match to.as_ref().or(from.as_ref()) {
                Some(rule) => format!("{verb} {}", rule_name(rule)),
                None => format!("{verb} rule"),
            }
        }
        Change::Sysctl { sysctl, from, to } => {
            format!("change {sysctl} from {} to {}", from.trim(), to.trim())
        }
        Change::Nftables { from, to } => format!(
            "{} nftables table inet {}",
            verb(from.is_some(), to.is_some()),
            crate::nft::TABLE
        ),
        Change::Ipset { from, to } => {
            let verb = verb(from.is_some(), to.is_some());
            match to.as_ref().or(from.as_ref()) {
                Some(set) => format!("{verb} set {}", set.name),
                None => format!("{verb} set"),
            }
        }
        Change::Frame {
            command,
            family,
            from,
            to,
        } => format!(
            "{} what {} makes of table mangle at its first use",
            verb(to.without(from).is_empty(), !to.without(from).is_empty()),
            crate::iptables::command_of(command, *family)
        ),
        Change::Iptables {
            variant,
            family,
            from,
            to,
            ..
        } => format!(
            "{} {} chains in table mangle",
            verb(!from.is_empty(), !to.is_empty()),
            crate::iptables::command_of(variant.command(), *family)
        ),
    }
}

fn route_name(route: &crate::net::Route) -> String {
    use std::fmt::Write as _;
    let mut name = format!("{} ", route.family);
    if route.kind == crate::net::RouteKind::Unreachable {
        name.push_str("unreachable ");
    }
    let _ = match route.destination {
        Some(network) => write!(name, "route {network}"),
        None => write!(name, "default route"),
    };
    if let Some(via) = route.via {
        let _ = write!(name, " via {via}");
    }
    if let Some(interface) = &route.interface {
        let _ = write!(name, " dev {interface}");
    }
    let _ = write!(name, " of table {}", route.table);
    name
}

fn rule_name(rule: &crate::net::RoutingRule) -> String {
    use std::fmt::Write as _;
    let mut name = format!("{} rule {}", rule.family, rule.priority);
    if let Some(mark) = rule.mark {
        let _ = write!(name, " fwmark {mark}");
    }
    if let crate::net::Action::Lookup(table) = rule.action {
        let _ = write!(name, " lookup {table}");
    }
    name
}

/// Set by our units of systemd to `%b`, the boot id as systemd itself reads it.
///
/// systemd-nspawn and LXC give a container a boot id of its own by a mount over the file in `/proc`,
/// and a unit for which systemd mounts `/proc` afresh (`ProtectKernelTunables=`,
/// `ProtectControlGroups=`, `ProtectProc=`: `src/core/namespace.c`) reads the host's there: to it,
/// the machine would have restarted since the administrator's last command.
const BOOT_VARIABLE: &str = "REDIRECT_BOOT_ID";

/// This machine's boot.
///
/// # Errors
/// Passes on what reading `/proc` says.
pub(super) fn boot_id() -> std::io::Result<BootId> {
    let told = std::env::var(BOOT_VARIABLE).ok();
    if let Some(told) = told.as_deref().and_then(BootId::of_systemd) {
        return Ok(told);
    }
    std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))
        .map(|text| BootId(text.trim().to_owned()))
}
