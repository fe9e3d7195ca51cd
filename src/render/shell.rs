//! A plan as the shell commands that someone would type: the dry-run.
//!
//! It is rendered from the very plan that would be performed, so it cannot say
//! anything else; tests run it in one namespace and the plan in another, and compare.

use std::fmt::Write as _;
use std::path::Path;

use crate::iptables::command_of;
use crate::iptables::write::{self, Command};
use crate::net::{Action, Family, Route, RouteKind, RoutingRule};
use crate::nft;
use crate::observation::{FileContent, Sysctl};
use crate::plan::{Change, Plan};
use crate::shell;

/// A POSIX sh script that does what `plan` does. `about` says, a line each, what it is.
#[must_use]
pub fn script(plan: &Plan, about: &[String]) -> String {
    let mut text = "#!/bin/sh\n".to_owned();
    for line in about {
        _ = writeln!(text, "{}", format!("# {line}").trim_end());
    }
    text.push_str("set -eu\n");
    for (at, change) in plan.changes.iter().enumerate() {
        let number = at + 1;
        _ = write!(
            text,
            "\n# {number}. {}\n{}\n",
            purpose(change),
            commands(change)
        );
    }
    text
}

/// What a change is for, in one sentence.
#[must_use]
pub fn purpose(change: &Change) -> String {
    match change {
        Change::Directory { to: true, .. } => {
            "Make the folder in which routing tables are named.".to_owned()
        }
        Change::Directory { to: false, .. } => {
            "Remove the folder that was made for it, if nobody else uses it.".to_owned()
        }
        Change::File { to: Some(_), .. } => {
            "Give the routing table its name, so that `ip` can show it.".to_owned()
        }
        Change::File { to: None, .. } => "Take back the routing table's name.".to_owned(),
        Change::Route { to: Some(Route { kind: RouteKind::Unreachable, .. }), .. } => {
            "Where the appliance cannot be reached, refuse its sessions instead of letting\n#    them pass it by: the kernel comes to this route only when the next one is gone."
                .to_owned()
        }
        Change::Route { from: None, to: Some(_) } => {
            "The way to the appliance, in a table of its own.".to_owned()
        }
        Change::Route { from: Some(_), to: Some(_) } => {
            "Change the way to the appliance, in one step.".to_owned()
        }
        Change::Route { .. } => "Remove the way to the appliance.".to_owned(),
        Change::Rule { to: Some(_), .. } => {
            "Route what bears the mark by that table. Other bits of the mark do not matter."
                .to_owned()
        }
        Change::Rule { .. } => "Route by the mark no longer.".to_owned(),
        Change::Sysctl { sysctl, from, to } => {
            let now = format!("(it holds {from})");
            match (sysctl.setting, to.as_str()) {
                (crate::observation::Setting::RpFilter, "2") => format!(
                    "Accept packets from the appliance with other hosts' addresses: loose reverse\n#    path filtering, here only {now}."
                ),
                _ if sysctl.is_default() => format!(
                    "Set {} for interfaces to come {now}. The others are written first,\n#    each with what it holds: one that nobody ever wrote would follow.",
                    sysctl.setting.name()
                ),
                _ => format!("Set {} {now}.", sysctl.setting.name()),
            }
        }
        Change::Nftables { from: None, .. } => {
            "Mark the sessions, all rules in one commit: from here on they go to the appliance."
                .to_owned()
        }
        Change::Nftables { to: Some(_), .. } => {
            "Replace all packet rules in one commit: no packet sees half of them.".to_owned()
        }
        Change::Nftables { .. } => {
            "Remove all packet rules: from here on sessions go to the servers directly.".to_owned()
        }
        Change::Ipset { from: None, .. } => "The servers' networks, as a set.".to_owned(),
        Change::Ipset { to: Some(_), .. } => {
            "Other networks in that set, swapped in one step.".to_owned()
        }
        Change::Ipset { .. } => "Remove a set that no rule looks into any more.".to_owned(),
        Change::Frame { from, to, .. } if from.without(to).is_empty() => {
            "What iptables makes of its table at its first use, in `nf_tables`.".to_owned()
        }
        Change::Frame { .. } => {
            "Remove what iptables made of its table, for nobody else uses it.".to_owned()
        }
        Change::Iptables {
            family, from, to, ..
        } => match (from.is_empty(), to.is_empty()) {
            (true, _) => format!(
                "Mark the {family} sessions, in chains of our own: from here on they go to the\n#    appliance."
            ),
            (false, false) => format!("Replace the {family} packet rules."),
            (false, true) => format!(
                "Remove the {family} packet rules: from here on sessions go to the servers\n#    directly."
            ),
        },
    }
}

/// The commands that make one change.
#[must_use]
pub fn commands(change: &Change) -> String {
    match change {
        Change::Directory { path, to: true, .. } => format!("mkdir -m 0755 {}", quoted(path)),
        Change::Directory {
            path, to: false, ..
        } => {
            format!("rmdir {} 2>/dev/null || true", quoted(path))
        }
        Change::File {
            path, to: Some(to), ..
        } => file(path, to),
        Change::File { path, .. } => format!("rm -f {}", quoted(path)),
        Change::Route { from, to } => route(from.as_ref(), to.as_ref()),
        Change::Rule { from, to } => [
            from.as_ref().map(|rule| rule_command("del", rule)),
            to.as_ref().map(|rule| rule_command("add", rule)),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n"),
        Change::Sysctl { sysctl, to, .. } => setting(sysctl, to),
        Change::Nftables { from, to } => nftables(from.as_ref(), to.as_ref()),
        Change::Ipset { from, to } => typed(write::set_commands(from.as_ref(), to.as_ref())),
        Change::Frame {
            command,
            family,
            from,
            to,
        } => {
            let command = command_of(command, *family);
            typed(write::frame_commands(&command, *family, from, to))
        }
        Change::Iptables {
            command,
            family,
            from,
            to,
            ..
        } => typed(write::commands(&command_of(command, *family), from, to)),
    }
}

/// What a person would type at iptables or ipset.
fn typed(commands: Vec<Command>) -> String {
    let line = |words: Vec<String>| {
        let quoted: Vec<_> = words.iter().map(|word| shell::word(word)).collect();
        quoted.join(" ")
    };
    let lines: Vec<_> = commands
        .into_iter()
        .map(|command| match command {
            Command::Remark(remark) => format!("# {remark}"),
            Command::Run(words) => line(words),
            Command::Feed(words, text) => heredoc(&line(words), &text),
        })
        .collect();
    lines.join("\n")
}

/// See `kernel::sysctl::write`, which does the same.
fn setting(sysctl: &Sysctl, to: &str) -> String {
    let write = format!("echo {to} > {}", quoted(&sysctl.path()));
    if !sysctl.is_default() {
        return write;
    }
    let each = format!(
        "/proc/sys/net/{}/conf/*/{}",
        sysctl.family.sysctl_name(),
        sysctl.setting.name()
    );
    format!(
        "for setting in {each}; do\n    \
         case $setting in\n        \
         */all/* | */default/*) ;;\n        \
         *) value=$(cat \"$setting\") && echo \"$value\" > \"$setting\" ;;\n    \
         esac\ndone\n{write}"
    )
}

fn file(path: &Path, to: &FileContent) -> String {
    let path = quoted(path);
    let mode = format!("chmod {:04o} {path}", to.mode & 0o7777);
    if to.text.ends_with('\n') {
        format!("{}\n{mode}", heredoc(&format!("cat > {path}"), &to.text))
    } else {
        format!("printf %s {} > {path}\n{mode}", shell::word(&to.text))
    }
}

fn nftables(from: Option<&nft::Table>, to: Option<&nft::Table>) -> String {
    match (nft::text::commands(from, to), to) {
        (Ok(None), _) => String::new(),
        (Ok(Some(_)), None) => format!("nft {}", nft::text::DELETE),
        (Ok(Some(text)), Some(_)) => heredoc("nft -f -", &text),
        // Only what somebody else put into our table can be so; we never make it.
        (Err(impossible), _) => format!("# not possible with nft: {impossible}\nfalse"),
    }
}

fn route(from: Option<&Route>, to: Option<&Route>) -> String {
    match (from, to) {
        (None, Some(to)) => route_command("add", to),
        (Some(_), Some(to)) => route_command("replace", to),
        (Some(from), None) => route_command("del", from),
        (None, None) => String::new(),
    }
}

/// `ip route VERB …` with all attributes of `route`.
#[must_use]
pub fn route_command(verb: &str, route: &Route) -> String {
    let mut text = format!("ip {} route {verb} ", route.family.ip_flag());
    match route.kind {
        RouteKind::Unicast => {}
        RouteKind::Unreachable => text.push_str("unreachable "),
        RouteKind::Other(number) => _ = write!(text, "type {number} "),
    }
    match route.destination {
        Some(destination) => _ = write!(text, "{destination}"),
        None => text.push_str("default"),
    }
    if let Some(via) = route.via {
        _ = write!(text, " via {via}");
    }
    if let Some(interface) = &route.interface {
        _ = write!(text, " dev {}", shell::word(interface.as_str()));
    }
    _ = write!(text, " table {}", route.table);
    if route.metric != 0 && !(route.family == Family::V6 && route.metric == 1024) {
        _ = write!(text, " metric {}", route.metric);
    }
    _ = write!(text, " proto {}", route.protocol.0);
    text
}

/// `ip rule VERB …` with all attributes of `rule`.
#[must_use]
pub fn rule_command(verb: &str, rule: &RoutingRule) -> String {
    let selectors = &rule.selectors;
    let mut text = format!(
        "ip {} rule {verb} priority {}",
        rule.family.ip_flag(),
        rule.priority
    );
    if selectors.invert {
        text.push_str(" not");
    }
    if let Some(source) = selectors.source {
        _ = write!(text, " from {source}");
    }
    if let Some(destination) = selectors.destination {
        _ = write!(text, " to {destination}");
    }
    if selectors.tos != 0 {
        _ = write!(text, " tos {:#x}", selectors.tos);
    }
    if let Some(mark) = rule.mark {
        _ = write!(text, " fwmark {mark}");
    }
    for (word, name) in [("iif", &selectors.input), ("oif", &selectors.output)] {
        if let Some(name) = name {
            _ = write!(text, " {word} {}", shell::word(name));
        }
    }
    if let Some(number) = selectors.ip_protocol {
        _ = write!(text, " ipproto {number}");
    }
    for (word, ports) in [
        ("sport", selectors.source_port),
        ("dport", selectors.destination_port),
    ] {
        if let Some((first, last)) = ports {
            _ = write!(text, " {word} {first}-{last}");
        }
    }
    match rule.action {
        Action::Lookup(table) => _ = write!(text, " lookup {table}"),
        Action::Other(number) => _ = write!(text, " type {number}"),
    }
    if let Some(length) = selectors.suppress_prefix_length {
        _ = write!(text, " suppress_prefixlength {length}");
    }
    _ = write!(text, " protocol {}", rule.protocol.0);
    text
}

fn heredoc(command: &str, text: &str) -> String {
    let mut end = "EOF".to_owned();
    while text.lines().any(|line| line == end) {
        end.push('_');
    }
    let line_end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{command} <<'{end}'\n{text}{line_end}{end}")
}

fn quoted(path: &Path) -> String {
    shell::word(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heredoc_ends_where_its_text_does() {
        assert_eq!(heredoc("cat", "EOF\n"), "cat <<'EOF_'\nEOF\nEOF_");
    }
}
