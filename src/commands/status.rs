//! `redirect status`: whether what was applied is in place.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use super::look::{backend, policy_file};
use super::{counted, trusting_router};
use crate::check::{self, Case, Finding, PolicyFile, Report, Surroundings};
use crate::cli::Status;
use crate::engine::policy_in_force;
use crate::failure::{Exit, Failure};
use crate::journal::{self, Applied, Condition, Draining, Journal, Location, confirm};
use crate::kernel::{Kernel, KernelError, Wish, live, surroundings};
use crate::plan::planner::{self, Stage};
use crate::policy::{Name, Policy};
use crate::render::difference::{self, Action, Difference};
use crate::render::json;
use crate::render::status::{self, Numbers};
use crate::terminal::{Style, Terminal, paint};

pub(super) fn run(args: &Status, terminal: &Terminal) -> Result<Exit, Failure> {
    let Some(every) = args.watch else {
        return show(args, terminal, None).map(|(exit, _)| exit);
    };
    // Until Ctrl-C, or until nobody reads any more.
    let mut before: Option<(Numbers, Instant)> = None;
    while terminal.is_read() {
        let begun = Instant::now();
        let earlier = before
            .as_ref()
            .map(|(numbers, at)| (numbers, begun.duration_since(*at)));
        let (_, numbers) = show(args, terminal, earlier)?;
        before = Some((numbers, begun));
        std::thread::sleep(every.saturating_sub(begun.elapsed()));
    }
    Ok(Exit::Done)
}

/// Shows it once. `before`: the numbers of so long ago.
fn show(
    args: &Status,
    terminal: &Terminal,
    before: Option<(&Numbers, Duration)>,
) -> Result<(Exit, Numbers), Failure> {
    let (journal, holder) = Journal::read_with_holder(&Location::new(journal::DIRECTORY)?)?;
    let now =
        confirm::uptime().map_err(|error| KernelError::io("cannot read `/proc/uptime`", error))?;
    let condition = journal.condition(now, holder.is_some());
    let in_force = journal.in_force();
    let policy = policy_in_force(&journal)?;
    let mut router = trusting_router(&journal, &policy)?;
    let observed = router.observe(&Wish {
        policies: &[&policy],
    })?;
    let numbers = live::numbers(&policy, &observed, &mut router)?;
    let planned = planner::plan(&policy, &observed, &in_force.ledger, Stage::Complete);
    let drift = difference::differences(&planned.plan);
    // Also what others do counts: nothing is well while sessions do not get where they should.
    let surroundings = match &in_force.policy {
        Some(_) => surroundings::gather(&policy, true, &observed, &mut router),
        None => Surroundings::default(),
    };
    let file = match &in_force.policy {
        Some(digest) => policy_file(&journal.source(digest)?),
        None => PolicyFile::default(),
    };
    let report = check::check(&Case {
        policy: &policy,
        file: &file,
        in_force: true,
        observed: &observed,
        planned: &planned,
        backend: backend(&policy, &observed),
        surroundings: &surroundings,
    });
    let shown = Shown {
        troubles: report
            .findings
            .iter()
            .filter(|finding| finding.is_acute())
            .collect(),
        policy,
        drift,
        report: &report,
        condition,
        journal: &journal,
        in_force,
        numbers,
    };
    let text = if args.json {
        shown.json()
    } else if args.prometheus {
        shown.metrics()
    } else {
        let text = shown.text(before, terminal.colour_out());
        match args.watch {
            // Home, and away with what was there.
            Some(_) if terminal.is_drawn_on() => format!("\x1b[H\x1b[2J{text}"),
            Some(_) => format!("{text}\n"),
            None => text,
        }
    };
    terminal.data(&text)?;
    Ok((shown.exit(), shown.numbers))
}

/// All that is to be shown.
struct Shown<'a> {
    policy: Policy,
    /// Objects of ours that are not as they were applied.
    drift: Vec<Difference>,
    /// What is not ours, and keeps sessions from their way.
    troubles: Vec<&'a Finding>,
    report: &'a Report,
    condition: Condition<'a>,
    journal: &'a Journal,
    in_force: &'a Applied,
    numbers: Numbers,
}

impl Shown<'_> {
    fn in_sync(&self) -> bool {
        self.drift.is_empty() && self.troubles.is_empty()
    }

    fn is_settled(&self) -> bool {
        matches!(
            self.condition,
            Condition::Settled | Condition::Unconfirmed(..)
        )
    }

    fn exit(&self) -> Exit {
        if self.in_sync() && self.is_settled() {
            Exit::Done
        } else {
            Exit::Pending
        }
    }

    fn json(&self) -> String {
        json::pretty(&json!({
            "version": json::VERSION,
            "policy": self.in_force.policy.as_ref().map(journal::Digest::as_str),
            "in_sync": self.in_sync(),
            "drift": self.drift,
            "troubles": self.troubles,
            "sessions": self.report.sessions,
            "not_checked": self.report.not_checked,
            "draining": self.in_force.draining,
            "transaction": transaction(self.condition),
            "redirects": self.numbers.redirects,
            "appliances": self.numbers.appliances,
        }))
    }

    fn metrics(&self) -> String {
        let state = status::State {
            policy: self.in_force.policy.as_ref().map(journal::Digest::as_str),
            in_sync: self.in_sync(),
            drift: self.drift.len(),
            troubles: &self.troubles,
            sessions: &self.report.sessions,
        };
        status::prometheus(state, &self.numbers)
    }

    fn text(&self, before: Option<(&Numbers, Duration)>, colour: bool) -> String {
        let digest = self.in_force.policy.as_ref().map(journal::Digest::short);
        let mut text = headline(digest, &self.policy);
        for (sentence, style) in notices(self.journal, self.condition) {
            _ = writeln!(text, "{}", paint(colour, style, &sentence));
        }
        if self.exit() == Exit::Done && digest.is_some() {
            let mark = paint(colour, Style::Good, "ok");
            _ = writeln!(
                text,
                "{mark}: everything is in place, and sessions go where they should"
            );
        }
        for difference in &self.drift {
            let (state, style) = match difference.action {
                Action::Add => ("missing", Style::Error),
                Action::Change => ("changed", Style::Warning),
                Action::Remove => ("left over", Style::Warning),
            };
            let state = paint(colour, style, &format!("{state:<9}"));
            _ = writeln!(
                text,
                "{state} {:<9} {}",
                difference.object, difference.subject
            );
        }
        if !self.drift.is_empty() {
            text.push_str("          mend: redirect repair\n");
        }
        text.push_str(&status::troubles(&self.troubles, colour));
        for unseen in &self.report.not_checked {
            let label = paint(colour, Style::Warning, "not checked");
            _ = writeln!(text, "{label}: {}: {}", unseen.what, unseen.why);
        }
        text.push_str(&status::picture(
            &self.policy,
            &self.report.sessions,
            &self.numbers,
            before,
            colour,
        ));
        text
    }
}

/// The last transaction, for machines.
fn transaction(condition: Condition<'_>) -> serde_json::Value {
    match condition {
        Condition::Settled => json!({ "state": "settled" }),
        Condition::Underway(open) => json!({ "state": "underway", "id": open.entry.id }),
        Condition::Interrupted(open) => json!({ "state": "interrupted", "id": open.entry.id }),
        Condition::Unconfirmed(open, left) => json!({
            "state": "unconfirmed",
            "id": open.entry.id,
            "seconds_left": left.as_millis().div_ceil(1000),
        }),
    }
}

fn headline(digest: Option<&str>, policy: &Policy) -> String {
    let Some(digest) = digest else {
        return "no policy in force\n".to_owned();
    };
    // Without interfaces they only let sessions end.
    let taking = (policy.redirects.iter()).filter(|one| !one.client_interfaces.is_empty());
    format!(
        "policy {digest} in force: {}\n",
        counted(taking.count(), "redirect", "redirects")
    )
}

/// What is to be known before anything else, and how it looks.
fn notices(journal: &Journal, condition: Condition<'_>) -> Vec<(String, Style)> {
    let about_transaction = match condition {
        Condition::Settled => None,
        Condition::Underway(open) => Some((
            format!(
                "underway: transaction {} is being made right now",
                open.entry.id
            ),
            Style::Warning,
        )),
        Condition::Interrupted(open) => Some((
            format!(
                "interrupted: transaction {} (`{}` by {}, begun {}) is to be taken back: {}; \
                 `redirect rollback` does that, and so does any other command that changes something",
                open.entry.id,
                open.entry.command.join(" ").escape_debug(),
                open.entry.who,
                open.entry.started,
                journal.why_back(open)
            ),
            Style::Error,
        )),
        Condition::Unconfirmed(open, left) => Some((
            format!(
                "unconfirmed: transaction {} goes back by itself in {} s; `redirect confirm` keeps it",
                open.entry.id,
                left.as_millis().div_ceil(1000)
            ),
            Style::Warning,
        )),
    };
    let listed = |names: &[Name]| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        names.join(", ")
    };
    let Draining {
        appliances,
        left_behind,
    } = &journal.in_force().draining;
    let on_hold = (!appliances.is_empty()).then(|| {
        format!(
            "draining: new sessions of {} go to the servers directly, unrecorded",
            listed(appliances)
        )
    });
    let left_behind = left_behind.iter().map(|left| {
        format!(
            "draining: redirect {} of policy {} takes nothing new; `redirect repair` takes it out \
             once its sessions have ended",
            listed(&left.redirects),
            left.policy.short()
        )
    });
    let about_draining = on_hold
        .into_iter()
        .chain(left_behind)
        .map(|sentence| (sentence, Style::Warning));
    about_transaction
        .into_iter()
        .chain(about_draining)
        .collect()
}
