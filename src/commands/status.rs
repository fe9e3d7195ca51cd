//! `redirect status`: whether what was applied is in place.

use std::fmt::Write as _;

use serde_json::json;

use super::counted;
use crate::cli::Status;
use crate::engine::policy_in_force;
use crate::failure::{Exit, Failure};
use crate::journal::{self, Journal, Location};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, Wish};
use crate::plan::planner::{self, Stage};
use crate::render::difference::{self, Action, Difference};
use crate::render::json;
use crate::terminal::{Style, Terminal, paint};

pub(super) fn run(args: &Status, terminal: &Terminal) -> Result<Exit, Failure> {
    let journal = Journal::read(&Location::new(journal::DIRECTORY)?)?;
    let policy = policy_in_force(&journal)?;
    let observed = Router::open()?.observe(&Wish {
        policies: &[&policy],
    })?;
    let ledger = &journal.in_force().ledger;
    let planned = planner::plan(&policy, &observed, ledger, Stage::Complete);
    let drift = difference::differences(&planned.plan);
    let in_force = journal.in_force();
    let digest = in_force.policy.as_ref().map(journal::Digest::short);
    let exit = if drift.is_empty() {
        Exit::Done
    } else {
        Exit::Pending
    };
    if args.json {
        terminal.data(&json::pretty(&json!({
            "version": json::VERSION,
            "policy": in_force.policy.as_ref().map(journal::Digest::as_str),
            "in_sync": drift.is_empty(),
            "drift": drift,
        })))?;
        return Ok(exit);
    }
    let mut text = match digest {
        Some(digest) => format!(
            "policy {digest} in force: {}\n",
            counted(policy.redirects.len(), "redirect", "redirects")
        ),
        None => "no policy in force\n".to_owned(),
    };
    if drift.is_empty() {
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
    terminal.data(&text)?;
    Ok(exit)
}
