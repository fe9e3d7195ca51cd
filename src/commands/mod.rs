//! One file a command. Each reads what was typed, asks a planner, and hands the plan
//! to one interpreter.

mod apply;
mod check;
mod confirm;
mod diff;
mod drain;
mod history;
mod init;
mod look;
mod repair;
mod rollback;
mod schema;
mod sessions;
mod status;
mod support;
mod teardown;
mod trace;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::engine::{Goal, Recovered, policy_in_force, trust};
use crate::failure::{Exit, Failure};
use crate::journal::{self, Digest, Journal, JournalError, Location};
use crate::kernel::router::Router;
use crate::kernel::{FailureKind, Kernel, Wish};
use crate::observation::Observed;
use crate::plan::Finding;
use crate::plan::Ledger;
use crate::plan::planner::{self, Planned};
use crate::policy::{self, Code, Diagnostic, Locations, Policy, Reading, Source, Style};
use crate::render;
use crate::terminal::Terminal;

/// Runs the command that was typed; what it fails with is shown here and nowhere else.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(not_a_command(&error) as u8),
    };
    let terminal = Terminal::of_this_process(cli.quiet);
    let exit = match perform(&cli, &terminal) {
        Ok(exit) => exit,
        Err(failure) => {
            terminal.fail(&failure);
            if cli.wants_json() {
                // Where even this cannot be written, standard error has it.
                _ = terminal.data(&render::json::failure(&failure));
            }
            failure.exit
        }
    };
    ExitCode::from(exit as u8)
}

/// What was typed asks for help or the version, or cannot be understood.
fn not_a_command(error: &clap::Error) -> Exit {
    if error.use_stderr() {
        // Nobody is left to tell where standard error itself cannot be written.
        _ = error.print();
        return Exit::Usage;
    }
    let terminal = Terminal::of_this_process(false);
    let text = error.render();
    let text = if terminal.colour_out() {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    match terminal.data(&text) {
        Ok(()) => Exit::Done,
        Err(failure) => {
            terminal.fail(&failure);
            failure.exit
        }
    }
}

fn perform(cli: &Cli, terminal: &Terminal) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Apply(args) => apply::run(args, terminal),
        Command::Diff(args) => diff::run(args, terminal),
        Command::Teardown(args) => teardown::run(args, terminal),
        Command::Status(args) => status::run(args, terminal),
        Command::Confirm(args) => confirm::run(args, terminal),
        Command::Rollback(args) => rollback::run(args, terminal),
        Command::Repair(args) => repair::run(args, terminal),
        Command::History(args) => history::run(args, terminal),
        Command::ConfirmWatch(args) => confirm::watch(args),
        Command::Init(args) => init::run(args, terminal),
        Command::Support(args) => support::run(args, terminal),
        Command::Check(args) => check::run(args, terminal),
        Command::Trace(args) => trace::run(args, terminal),
        Command::Schema => schema::run(terminal),
    }
}

/// Reads the policy that was named; its warnings are shown, its errors are the failure.
fn read_policy(path: &Path, terminal: &Terminal) -> Result<Typed, Failure> {
    let source = if path == Path::new("-") {
        Source::from_stdin()
    } else {
        Source::load(path)
    };
    let source = source.map_err(|error| {
        let failure = Failure::new(Exit::BadPolicy, error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    read_source(source, terminal)
}

/// Reads a policy's text; its warnings are shown, its errors are the failure.
fn read_source(source: Source, terminal: &Terminal) -> Result<Typed, Failure> {
    match policy::read(&source) {
        Ok(Reading {
            policy,
            warnings,
            locations,
        }) => {
            if !warnings.is_empty() {
                let text = policy::render(&warnings, &source, style(terminal));
                terminal.note(text.trim_end());
            }
            Ok(Typed {
                policy,
                source,
                locations,
            })
        }
        Err(errors) => {
            let message = format!(
                "`{}` is not a sound policy; nothing was changed",
                source.name
            );
            let mut failure = Failure::new(Exit::BadPolicy, message);
            let report = policy::render(&errors.diagnostics, &source, style(terminal));
            failure.report = Some(report.into());
            Err(errors.diagnostics.iter().fold(failure, Failure::finding))
        }
    }
}

fn style(terminal: &Terminal) -> Style {
    Style {
        color: terminal.colour_err(),
        ..Style::default()
    }
}

/// A policy as it was typed: what it means, its text, and what stands where.
struct Typed {
    policy: Policy,
    source: Source,
    locations: Locations,
}

impl Typed {
    /// A failure because the router does not suit this policy, each reason shown at its place.
    fn refused(&self, refusals: &[Finding], terminal: &Terminal) -> Failure {
        let (mut placed, mut others) = (Vec::new(), Vec::new());
        for refusal in refusals {
            let place = refusal
                .key
                .as_ref()
                .and_then(|key| Some((key, self.locations.get(key)?)));
            match place {
                Some((key, span)) => placed.push(
                    Diagnostic::new(Code::Router, &self.source, span, key, &refusal.message)
                        .hint(&refusal.hint),
                ),
                None => others.push(refusal),
            }
        }
        let name = &self.source.name;
        let mut failure = Failure::new(
            Exit::Lacking,
            format!("`{name}` cannot be applied on this router; nothing was changed"),
        );
        if !placed.is_empty() {
            failure.report = Some(policy::render(&placed, &self.source, style(terminal)).into());
        }
        for other in others {
            failure = failure.detail(&other.message).hint(&other.hint);
        }
        refusals.iter().fold(failure, Failure::finding)
    }
}

/// A failure because the router does not suit the policy, before anything was changed.
fn refused(refusals: &[Finding], what: &str) -> Failure {
    unsuited(refusals, what).detail("nothing was changed")
}

/// A failure because the router does not suit the policy.
fn unsuited(refusals: &[Finding], what: &str) -> Failure {
    let message = match refusals {
        [only] => format!("{what}: {}", only.message),
        many => format!("{what}, for {} reasons", many.len()),
    };
    let mut failure = Failure::new(Exit::Lacking, message);
    for refusal in refusals {
        let key = refusal
            .key
            .as_ref()
            .map_or_else(String::new, |key| format!("`{key}`: "));
        if refusals.len() > 1 {
            failure = failure.detail(format!("{key}{}", refusal.message));
        }
        failure = failure.hint(format!("{key}{}", refusal.hint));
    }
    refusals.iter().fold(failure, Failure::finding)
}

fn show_warnings(planned: &Planned, terminal: &Terminal) {
    for warning in &planned.warnings {
        terminal.warn(&warning.message, Some(&warning.hint));
    }
}

/// Where this router's state is kept.
fn location() -> Result<Location, Failure> {
    Ok(Location::new(journal::DIRECTORY)?)
}

/// Tells what had to be taken back of an earlier run.
fn report_recovered(recovered: &Recovered, terminal: &Terminal) {
    terminal.warn(&recovered.sentence(), None);
    for left in &recovered.left {
        terminal.warn(
            &left.to_string(),
            Some("somebody changed it meanwhile, so it was left alone"),
        );
    }
    for (change, error) in &recovered.failed {
        terminal.warn(
            &format!("not taken back: {}: {error}", journal::summarise(change)),
            error.hint.as_deref(),
        );
    }
    if let Some(error) = &recovered.unrecorded {
        terminal.warn(
            &format!("this could not be written down: {error}"),
            error.hint().as_deref(),
        );
    }
}

/// The way to the router, on which what the journal proves of `in_force` need not be read again.
fn trusting_router(journal: &Journal, in_force: &Policy) -> Result<Router, Failure> {
    let mut router = Router::open()?;
    trust(&mut router, journal, in_force);
    Ok(router)
}

/// The plan of a command that changes nothing: no lock is taken, no journal is made, and no
/// privilege needed; what cannot be seen without is said. The goal's policy is all that its source says.
fn plan_unlocked(goal: &Goal<'_>, cut: bool) -> Result<Planned, Failure> {
    let mut router = Router::open()?;
    let mut policy = goal.policy.clone();
    let mut findings = Vec::new();
    let (before, ledger) = match Journal::read(&Location::new(journal::DIRECTORY)?) {
        Ok(journal) => {
            if let Some(source) = goal.source {
                journal.remember(&Digest::of(source), goal.policy);
            }
            let before = policy_in_force(&journal)?;
            trust(&mut router, &journal, &before);
            match sessions::next(&journal, goal.policy, Vec::new(), cut) {
                // A teardown leaves nothing behind.
                Ok(next) if !goal.policy.is_empty() => {
                    findings = next.findings();
                    policy = next.policy;
                }
                Ok(_) => {}
                Err(error) if error.kind == FailureKind::NotPermitted => findings.push(Finding {
                    code: "not-permitted",
                    key: None,
                    message: format!("{error}: sessions that are open are not looked at"),
                    hint: "run it as root to see what becomes of them".to_owned(),
                }),
                Err(error) => return Err(error.into()),
            }
            (before, journal.in_force().ledger.clone())
        }
        // A teardown without what it takes back would be none.
        Err(error @ JournalError::NotPermitted { .. }) if !goal.policy.is_empty() => {
            findings.push(Finding {
                code: "not-permitted",
                key: None,
                message: format!("{error}: what was applied before is not known"),
                hint: "run it as root to plan from what was applied".to_owned(),
            });
            (Policy::default(), Ledger::default())
        }
        Err(error) => return Err(error.into()),
    };
    let observed = router.observe(&Wish {
        policies: &[&policy, &before],
    })?;
    let mut planned = planner::plan(&policy, &observed, &ledger, goal.stage);
    planned.warnings.extend(findings);
    Ok(planned)
}

/// The plan for a clean router that has what the policy names.
fn offline(goal: &Goal<'_>) -> Planned {
    let observed = Observed::clean(goal.policy);
    planner::plan(goal.policy, &observed, &Ledger::default(), goal.stage)
}

/// `1 change`, `2 changes`.
fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
