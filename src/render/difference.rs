//! A plan as differences, object by object: for `diff`, `status` and history.

use std::fmt::Write as _;

use serde::Serialize;

use super::shell;
use crate::iptables::{self, command_of};
use crate::nft;
use crate::plan::{Change, Plan};
use crate::terminal::{Style, paint};

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is not there, and is to be.
    Add,
    /// It is there, and differs.
    Change,
    /// It is there, and is not to be.
    Remove,
}

impl Action {
    /// The sign before a line.
    #[must_use]
    pub fn sign(self) -> char {
        match self {
            Self::Add => '+',
            Self::Change => '~',
            Self::Remove => '-',
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Add => Style::Good,
            Self::Change => Style::Warning,
            Self::Remove => Style::Error,
        }
    }
}

/// One object's difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What happens to it.
    pub action: Action,
    /// What it is: `name`, `route`, `rule`, `sysctl`, `nftables`, …
    pub object: &'static str,
    /// Which one, in the words of `ip`, `sysctl` or `nft`.
    pub subject: String,
    /// What is there, where it differs from what is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What differs within it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Difference>,
}

impl Difference {
    fn of<T>(
        object: &'static str,
        (from, to): (Option<&T>, Option<&T>),
        subject: impl Fn(&T) -> String,
    ) -> Self {
        let (from, to) = (from.map(&subject), to.map(&subject));
        let (action, subject, from, to) = match (from, to) {
            (None, Some(to)) => (Action::Add, to, None, None),
            (Some(from), None) => (Action::Remove, from, None, None),
            (from, to) => (Action::Change, to.clone().unwrap_or_default(), from, to),
        };
        Self {
            action,
            object,
            subject,
            from,
            to,
            parts: Vec::new(),
        }
    }
}

/// The differences that `plan` would make away with.
#[must_use]
pub fn differences(plan: &Plan) -> Vec<Difference> {
    plan.changes.iter().map(difference).collect()
}

/// One change as a difference.
#[must_use]
pub fn difference(change: &Change) -> Difference {
    match change {
        Change::Directory { path, from, to } => {
            let at = |there: bool| there.then_some(path);
            Difference::of("directory", (at(*from), at(*to)), |path| {
                path.display().to_string()
            })
        }
        Change::File { path, from, to } => {
            let mut difference = Difference::of("name", (from.as_ref(), to.as_ref()), |file| {
                let lines: Vec<_> = file
                    .text
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .collect();
                lines.join(", ").replace('\t', " ")
            });
            difference.subject = format!("{} in {}", difference.subject, path.display());
            difference
        }
        Change::Route { from, to } => {
            Difference::of("route", (from.as_ref(), to.as_ref()), |route| {
                without_verb(&shell::route_command("", route), "route")
            })
        }
        Change::Rule { from, to } => Difference::of("rule", (from.as_ref(), to.as_ref()), |rule| {
            without_verb(&shell::rule_command("", rule), "rule")
        }),
        Change::Sysctl { sysctl, from, to } => Difference {
            action: Action::Change,
            object: "sysctl",
            subject: sysctl.to_string(),
            from: Some(from.clone()),
            to: Some(to.clone()),
            parts: Vec::new(),
        },
        Change::Nftables { from, to } => {
            let mut difference = Difference::of("nftables", (from.as_ref(), to.as_ref()), |_| {
                format!("table inet {}", nft::TABLE)
            });
            (difference.from, difference.to) = (None, None);
            // A table that comes or goes whole needs no list of what is in it.
            if let (Some(from), Some(to)) = (from, to) {
                let parts = nft::difference::between(Some(from), Some(to));
                difference.parts = parts.iter().map(part).collect();
            }
            difference
        }
        Change::Ipset { from, to } => {
            let mut difference = Difference::of("ipset", (from.as_ref(), to.as_ref()), |set| {
                format!("{} ({} networks)", set.name, set.networks.len())
            });
            if difference.action == Action::Change && difference.from == difference.to {
                (difference.from, difference.to) = (None, None);
            }
            difference
        }
        Change::Frame {
            command,
            family,
            from,
            to,
        } => {
            let action = match (to.without(from).is_empty(), from.without(to).is_empty()) {
                (false, true) => Action::Add,
                (true, false) => Action::Remove,
                _ => Action::Change,
            };
            let command = command_of(command, *family);
            Difference {
                action,
                object: "iptables",
                subject: format!("the empty table mangle of {command}"),
                from: None,
                to: None,
                parts: Vec::new(),
            }
        }
        Change::Iptables {
            command,
            family,
            from,
            to,
            ..
        } => {
            let held = |rules: &iptables::Ruleset| (!rules.is_empty()).then_some(());
            let (from, to) = (held(from), held(to));
            let mut difference = Difference::of("iptables", (from.as_ref(), to.as_ref()), |()| {
                format!(
                    "our chains in table mangle of {}",
                    command_of(command, *family)
                )
            });
            (difference.from, difference.to) = (None, None);
            difference
        }
    }
}

/// A set or chain of our table, with the elements or rules of it that differ.
fn part(part: &nft::difference::Difference) -> Difference {
    use nft::difference::{Change, Object};
    let lines = part.lines.iter().map(|line| Difference {
        action: if line.is_added {
            Action::Add
        } else {
            Action::Remove
        },
        object: if matches!(part.object, Object::Set { .. }) {
            "element"
        } else {
            "rule"
        },
        subject: line.text.clone(),
        from: None,
        to: None,
        parts: Vec::new(),
    });
    let object = match part.object {
        Object::Set { .. } | Object::ForeignSet { .. } => "set",
        Object::Chain { .. } => "chain",
        Object::Flags { .. } => "table",
        Object::Other => "other",
    };
    let text = part.to_string();
    Difference {
        action: match part.change {
            Change::Added => Action::Add,
            Change::Removed => Action::Remove,
            Change::Changed => Action::Change,
        },
        object,
        subject: text
            .strip_prefix(object)
            .map_or(text.as_str(), str::trim_start)
            .to_owned(),
        from: None,
        to: None,
        parts: lines.collect(),
    }
}

/// `-4 default via …` of `ip -4 route default via …`.
fn without_verb(command: &str, object: &str) -> String {
    let words: Vec<_> = command
        .split_whitespace()
        .filter(|word| *word != "ip" && *word != object)
        .collect();
    words.join(" ")
}

/// The differences as text, a line each, parts indented.
#[must_use]
pub fn text(differences: &[Difference], colour: bool) -> String {
    let mut text = String::new();
    for difference in differences {
        write_lines(difference, 0, colour, &mut text);
    }
    text
}

fn write_lines(difference: &Difference, depth: usize, colour: bool, text: &mut String) {
    let Difference {
        action,
        object,
        subject,
        from,
        to,
        parts,
    } = difference;
    let line = match (from, to) {
        (Some(from), Some(to)) if *object == "sysctl" => format!("{subject}: {from} -> {to}"),
        (Some(from), Some(to)) => format!("{to} (is: {from})"),
        _ => subject.clone(),
    };
    let sign = paint(colour, action.style(), &action.sign().to_string());
    _ = writeln!(
        text,
        "{:indent$}{sign} {object:<8} {line}",
        "",
        indent = depth * 2
    );
    for part in parts {
        write_lines(part, depth + 1, colour, text);
    }
}
