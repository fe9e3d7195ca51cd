//! `redirect status`: whether what was applied is in place.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use super::counted;
use crate::cli::Status;
use crate::engine::policy_in_force;
use crate::failure::{Exit, Failure};
use crate::journal::{self, Applied, Condition, Journal, Location, confirm};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, KernelError, Wish, live};
use crate::plan::Finding;
use crate::plan::planner::{self, Planned, Stage};
use crate::policy::Name;
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
    let policy = policy_in_force(&journal)?;
    let mut router = Router::open()?;
    let observed = router.observe(&Wish {
        policies: &[&policy],
    })?;
    let numbers = live::numbers(&policy, &observed, &mut router)?;
    let ledger = &journal.in_force().ledger;
    let planned = planner::plan(&policy, &observed, ledger, Stage::Complete);
    let drift = difference::differences(&planned.plan);
    let troubles = troubles(&planned);
    let in_sync = drift.is_empty() && troubles.is_empty();
    let in_force = journal.in_force();
    let digest = in_force.policy.as_ref().map(journal::Digest::short);
    let settled = matches!(condition, Condition::Settled | Condition::Unconfirmed(..));
    let exit = if in_sync && settled {
        Exit::Done
    } else {
        Exit::Pending
    };
    if args.json {
        terminal.data(&json::pretty(&json!({
            "version": json::VERSION,
            "policy": in_force.policy.as_ref().map(journal::Digest::as_str),
            "in_sync": in_sync,
            "drift": drift,
            "troubles": troubles.iter().map(|trouble| json!({
                "key": trouble.key, "message": trouble.message, "hint": trouble.hint,
            })).collect::<Vec<_>>(),
            "draining": in_force.draining,
            "transaction": transaction(condition),
            "redirects": numbers.redirects,
            "appliances": numbers.appliances,
        })))?;
        return Ok((exit, numbers));
    }
    if args.prometheus {
        let state = status::State {
            policy: in_force.policy.as_ref().map(journal::Digest::as_str),
            in_sync,
            drift: drift.len() + troubles.len(),
        };
        terminal.data(&status::prometheus(state, &numbers))?;
        return Ok((exit, numbers));
    }
    let mut text = match digest {
        Some(digest) => format!(
            "policy {digest} in force: {}\n",
            counted(policy.redirects.len(), "redirect", "redirects")
        ),
        None => "no policy in force\n".to_owned(),
    };
    for (sentence, style) in notices(condition, in_force) {
        _ = writeln!(text, "{}", paint(terminal.colour_out(), style, &sentence));
    }
    if in_sync && settled && digest.is_some() {
        let mark = paint(terminal.colour_out(), Style::Good, "ok");
        _ = writeln!(text, "{mark}: everything is in place");
    }
    for Difference {
        action,
        object,
        subject,
        ..
    } in &drift
    {
        let (state, style) = match action {
            Action::Add => ("missing", Style::Error),
            Action::Change => ("changed", Style::Warning),
            Action::Remove => ("left over", Style::Warning),
        };
        let state = paint(terminal.colour_out(), style, &format!("{state:<9}"));
        _ = writeln!(text, "{state} {object:<9} {subject}");
    }
    for trouble in troubles {
        let state = paint(terminal.colour_out(), Style::Error, "trouble  ");
        _ = writeln!(
            text,
            "{state} {}\n          hint: {}",
            trouble.message, trouble.hint
        );
    }
    text.push_str(&status::picture(
        &policy,
        &numbers,
        before,
        terminal.colour_out(),
    ));
    if args.watch.is_some() {
        text = if terminal.is_drawn_on() {
            // Home, and away with what was there.
            format!("\x1b[H\x1b[2J{text}")
        } else {
            format!("{text}\n")
        };
    }
    terminal.data(&text)?;
    Ok((exit, numbers))
}

/// What is not ours, and keeps what is ours from doing its work.
fn troubles(planned: &Planned) -> Vec<&Finding> {
    let in_our_tables = |finding: &&Finding| {
        finding
            .key
            .as_ref()
            .is_some_and(|key| key.rsplit('.').next() == Some("table"))
    };
    let foreign = planned.warnings.iter().filter(in_our_tables);
    planned.refusals.iter().chain(foreign).collect()
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

/// What is to be known before anything else, and how it looks.
fn notices(condition: Condition<'_>, in_force: &Applied) -> Vec<(String, Style)> {
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
                "interrupted: transaction {} (`{}` by {}, begun {}) was cut short; `redirect \
                 rollback` takes it back",
                open.entry.id,
                open.entry.command.join(" ").escape_debug(),
                open.entry.who,
                open.entry.started
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
    let names: Vec<&str> = in_force.draining.iter().map(Name::as_str).collect();
    let about_draining = (!names.is_empty()).then(|| {
        let sentence = format!(
            "draining: new sessions of {} go to the servers directly, unrecorded",
            names.join(", ")
        );
        (sentence, Style::Warning)
    });
    about_transaction
        .into_iter()
        .chain(about_draining)
        .collect()
}
