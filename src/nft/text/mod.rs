//! The language of `nft`: what people read, and what `nft -f` takes.
//!
//! A rule's instructions are translated back into the statements that `nft` would
//! make just these instructions from. `nft` itself adds what a header's field takes for
//! granted (`meta l4proto tcp` before a TCP port, `meta nfproto ipv4` before an IPv4
//! address, `meta iiftype ether` before an Ethernet address); so these are left out where
//! it would add the very same, and stand where it would not. What the language cannot say
//! is shown to people in brackets, and refused as input for `nft`.
//!
//! Only words that nft 0.9 and later read alike are used: `and`, `or` and `xor` on marks,
//! numbers for priorities.

mod elements;
mod field;
mod statements;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};

pub(super) use elements::Written;
use statements::Statements;

use super::{Base, Chain, Elements, Impossible, Rule, Set, TABLE, Table, Verdict};

/// Columns after which a list of elements goes on in the next line.
const WIDTH: usize = 96;

/// What `nft -f` takes to bring `from` to `to`, all in one transaction; none if they are equal.
///
/// # Errors
/// Names what in `to` nft's language cannot say.
pub fn commands(from: Option<&Table>, to: Option<&Table>) -> Result<Option<String>, Impossible> {
    if from == to {
        return Ok(None);
    }
    Ok(match (from, to) {
        (None, None) => None,
        (Some(_), None) => Some(format!("{DELETE}\n")),
        (None, Some(to)) => Some(table(to)?),
        // The first line makes the second succeed even if the table has gone meanwhile.
        (Some(_), Some(to)) => Some(format!("add table inet {TABLE}\n{DELETE}\n{}", table(to)?)),
    })
}

/// The command that takes all of it away, after `nft`.
pub const DELETE: &str = "delete table inet scb-redirect";

/// A table as `nft -f` takes it, and as `nft list table` shows it.
///
/// # Errors
/// Names what nft's language cannot say.
pub fn table(table: &Table) -> Result<String, Impossible> {
    if let Some(other) = table.others.first() {
        return Err(impossible(
            other.clone(),
            "`redirect` never makes such things",
        ));
    }
    let mut out = format!("table inet {TABLE} {{\n");
    match table.flags {
        0 => {}
        1 => out.push_str("\tflags dormant;\n\n"),
        flags => {
            let reason = format!("its flags {flags:#x} cannot be written");
            return Err(impossible(format!("table `inet {TABLE}`"), &reason));
        }
    }
    let mut is_first = true;
    for set in &table.sets {
        separate(&mut out, &mut is_first);
        write_set(&mut out, set)?;
    }
    for chain in &table.chains {
        separate(&mut out, &mut is_first);
        write_chain(&mut out, chain)?;
    }
    out.push_str("}\n");
    Ok(out)
}

fn separate(out: &mut String, is_first: &mut bool) {
    if !std::mem::take(is_first) {
        out.push('\n');
    }
}

fn impossible(object: String, reason: &str) -> Impossible {
    Impossible {
        object,
        reason: reason.to_owned(),
    }
}

/// Whether `nft` reads `name` as one word (nftables' `src/scanner.l`). Its keywords are not
/// known here.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || matches!(first, b'_' | b'.'))
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"/\\-_.".contains(&byte))
}

fn check_identifier(kind: &str, name: &str) -> Result<(), Impossible> {
    if is_identifier(name) {
        Ok(())
    } else {
        Err(impossible(
            format!("{kind} `{name}`"),
            "nft cannot read its name",
        ))
    }
}

fn write_set(out: &mut String, set: &Set) -> Result<(), Impossible> {
    check_identifier("set", &set.name)?;
    let (word, kind, interval) = match &set.elements {
        Elements::V4(_) => ("set", "ipv4_addr", true),
        Elements::V6(_) => ("set", "ipv6_addr", true),
        Elements::Ports(_) => ("set", "inet_service", true),
        Elements::Macs(_) => ("set", "ether_addr", false),
        Elements::V4Verdicts(_) => ("map", "ipv4_addr : verdict", true),
        Elements::V6Verdicts(_) => ("map", "ipv6_addr : verdict", true),
        Elements::PortVerdicts(_) => ("map", "inet_service : verdict", true),
        Elements::Foreign(description) => {
            return Err(impossible(
                format!("set `{}` ({description})", set.name),
                "`redirect` never makes such sets",
            ));
        }
    };
    let _ = writeln!(out, "\t{word} {} {{\n\t\ttype {kind};", set.name);
    if interval {
        out.push_str("\t\tflags interval;\n");
    }
    if !set.elements.is_empty() {
        out.push_str("\t\telements = { ");
        let mut column = 32;
        let mut is_first = true;
        set.elements.each(|element| {
            if std::mem::take(&mut is_first) {
                column += element.len();
            } else {
                out.push(',');
                column += element.len() + 2;
                if column > WIDTH {
                    out.push_str("\n\t\t\t     ");
                    column = 32 + element.len();
                } else {
                    out.push(' ');
                }
            }
            out.push_str(element);
        });
        out.push_str(" };\n");
    }
    out.push_str("\t}\n");
    Ok(())
}

fn write_chain(out: &mut String, chain: &Chain) -> Result<(), Impossible> {
    check_identifier("chain", &chain.name)?;
    let _ = writeln!(out, "\tchain {} {{", chain.name);
    if let Some(base) = &chain.base {
        let cannot = |reason: &str| Err(impossible(format!("chain `{}`", chain.name), reason));
        let Some(hook) = base.hook_name() else {
            return cannot("its hook cannot be written");
        };
        let policy = match base.policy {
            0 => "drop",
            1 => "accept",
            _ => return cannot("its policy cannot be written"),
        };
        let near = base
            .relative_priority()
            .map(|words| format!("  # {words}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "\t\ttype {} hook {hook} priority {}; policy {policy};{near}",
            base.kind, base.priority
        );
    }
    for (number, rule) in (1..).zip(&chain.rules) {
        let cannot = |reason: &str| {
            let name = &chain.name;
            impossible(
                format!("rule {number} of chain `{name}` (`{rule}`)"),
                reason,
            )
        };
        let statements = Statements::of(rule);
        if let Some(reason) = statements.inexact {
            return Err(cannot(reason));
        }
        if rule.comment.as_ref().is_some_and(|text| !is_quotable(text)) {
            return Err(cannot("its comment cannot be quoted"));
        }
        let _ = writeln!(out, "\t\t{rule}");
    }
    out.push_str("\t}\n");
    Ok(())
}

/// Whether text can stand between double quotes: nft knows no escape for them.
fn is_quotable(text: &str) -> bool {
    !text
        .chars()
        .any(|c| matches!(c, '"' | '\\') || c.is_control())
}

impl Base {
    /// The hook's name.
    #[must_use]
    pub fn hook_name(&self) -> Option<&'static str> {
        ["prerouting", "input", "forward", "output", "postrouting"]
            .get(usize::try_from(self.hook).ok()?)
            .copied()
    }

    /// The priority as people speak of it: `mangle + 10`.
    #[must_use]
    pub fn relative_priority(&self) -> Option<String> {
        const NAMES: [(i32, &str); 4] = [
            (-300, "raw"),
            (-150, "mangle"),
            (0, "filter"),
            (50, "security"),
        ];
        NAMES
            .iter()
            .find_map(|(number, name)| match self.priority.checked_sub(*number)? {
                0 => Some((*name).to_owned()),
                more @ 1..=49 => Some(format!("{name} + {more}")),
                less @ -49..=-1 => Some(format!("{name} - {}", -less)),
                _ => None,
            })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Rule {
    /// As nft writes it; what its language cannot say, in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statements = Statements::of(self);
        f.write_str(&statements.words.join(" "))?;
        match &self.comment {
            Some(comment) if statements.words.is_empty() => write!(f, "comment \"{comment}\""),
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}
