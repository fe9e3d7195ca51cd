//! The outcome as people read it.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Finding, Outcome, Probe, Report, Severity};
use crate::plan::Change;

/// How a piece of text is to stand out. Never the only carrier of meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emphasis {
    /// An error.
    Error,
    /// A warning.
    Warning,
    /// Something that is well.
    Good,
    /// A heading.
    Heading,
    /// Of less interest.
    Quiet,
}

/// A change in few words, as `ip` has them.
#[must_use]
pub fn change_words(change: &Change) -> String {
    match change {
        Change::Route {
            to: Some(route), ..
        } => format!("`{}` is missing", super::routing::route_words(route)),
        Change::Route {
            from: Some(route), ..
        } => format!("`{}` is left over", super::routing::route_words(route)),
        Change::Rule { to: Some(rule), .. } => {
            format!("`{}` is missing", super::routing::rule_words(rule))
        }
        Change::Rule {
            from: Some(rule), ..
        } => format!("`{}` is left over", super::routing::rule_words(rule)),
        Change::File { path, .. } | Change::Directory { path, .. } => path.display().to_string(),
        Change::Sysctl { sysctl, from, to } => format!("{sysctl} is {from} instead of {to}"),
        Change::Nftables { from: None, .. } => {
            format!("table `inet {}` is missing", crate::nft::TABLE)
        }
        _ => "they were changed".to_owned(),
    }
}

/// The whole report; `paint` gives a piece of text its looks.
#[must_use]
pub fn report(report: &Report, paint: &dyn Fn(Emphasis, &str) -> String) -> String {
    let mut text = String::new();
    for session in &report.sessions {
        let heading = format!(
            "redirect `{}`, {}",
            session.redirect, session.session.family
        );
        _ = writeln!(
            text,
            "{}: {} on {} to {} port {}",
            paint(Emphasis::Heading, &heading),
            session.session.client,
            session.session.client_interface,
            session.session.server,
            session.session.port
        );
        for leg in &session.legs {
            let (word, emphasis) = match leg.outcome {
                Outcome::AsExpected => ("ok", Emphasis::Good),
                Outcome::OnceApplied => ("once applied", Emphasis::Quiet),
                Outcome::Astray => ("ASTRAY", Emphasis::Error),
            };
            _ = write!(
                text,
                "  {} {:<19}  in on {:<8} -> {:<28} ",
                leg.leg.number(),
                leg.leg.title(),
                leg.input,
                leg.expected
            );
            text.push_str(&paint(emphasis, word));
            if let Some(because) = leg.because {
                _ = write!(text, ": {because}");
                if leg.kernel != leg.expected {
                    _ = write!(text, " (kernel: {})", leg.kernel);
                }
            }
            text.push('\n');
        }
        text.push('\n');
    }
    for probe in &report.probes {
        write_probe(&mut text, probe, paint);
    }
    for finding in &report.findings {
        write_finding(&mut text, finding, paint);
    }
    for unseen in &report.not_checked {
        let label = paint(Emphasis::Warning, "not checked");
        _ = writeln!(text, "{label}: {}: {}\n", unseen.what, unseen.why);
    }
    text.push_str(&summary(report, paint));
    text
}

fn write_finding(text: &mut String, finding: &Finding, paint: &dyn Fn(Emphasis, &str) -> String) {
    let (label, emphasis) = match finding.severity {
        Severity::Error => ("error", Emphasis::Error),
        Severity::Warning => ("warning", Emphasis::Warning),
    };
    let label = paint(emphasis, &format!("{label}[{}]", finding.code));
    _ = writeln!(text, "{label}: {}", finding.subject);
    _ = writeln!(text, "  found: {}", finding.found);
    _ = writeln!(text, "  why:   {}", finding.why);
    if let Some(owner) = &finding.owner {
        _ = writeln!(text, "  owner: {owner}");
    }
    for (at, command) in finding.mend.iter().enumerate() {
        let label = if at == 0 { "mend: " } else { "      " };
        _ = writeln!(text, "  {label} {command}");
    }
    text.push('\n');
}

fn write_probe(text: &mut String, probe: &Probe, paint: &dyn Fn(Emphasis, &str) -> String) {
    let heading = format!("appliance `{}`, {}", probe.appliance, probe.address);
    _ = writeln!(text, "{}", paint(Emphasis::Heading, &heading));
    let mut line = |what: &str, answer: &Result<Duration, String>| {
        let answer = match answer {
            Ok(took) => {
                let took = format!("{:.1} ms", took.as_secs_f64() * 1000.0);
                paint(Emphasis::Good, &format!("ok, {took}"))
            }
            Err(reason) => paint(Emphasis::Error, &format!("FAILED: {reason}")),
        };
        _ = writeln!(text, "  {what:<40} {answer}");
    };
    line("ICMP echo", &probe.echo);
    for (to, answer) in &probe.sessions {
        line(&format!("session through it to {to}"), answer);
    }
    if probe.sessions.is_empty() {
        text.push_str("  sessions through it are tried once the policy is in force\n");
    }
    text.push('\n');
}

fn summary(report: &Report, paint: &dyn Fn(Emphasis, &str) -> String) -> String {
    let (errors, warnings) = (
        report.count(Severity::Error),
        report.count(Severity::Warning),
    );
    let counted = |count: usize, word: &str| {
        let ending = if count == 1 { "" } else { "s" };
        format!("{count} {word}{ending}")
    };
    let state = if report.in_force {
        "in force"
    } else {
        "not in force yet"
    };
    let verdict = match (errors, warnings) {
        (0, 0) => paint(Emphasis::Good, "sound"),
        (0, warnings) => format!(
            "{}, with {}",
            paint(Emphasis::Good, "sound"),
            counted(warnings, "warning")
        ),
        (errors, 0) => paint(Emphasis::Error, &counted(errors, "error")),
        (errors, warnings) => format!(
            "{}, {}",
            paint(Emphasis::Error, &counted(errors, "error")),
            counted(warnings, "warning")
        ),
    };
    format!("{verdict}; the policy is {state}\n")
}
