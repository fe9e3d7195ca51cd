//! `redirect history`: who applied what, when, with what result.

use std::path::Path;

use serde_json::json;

use super::location;
use crate::cli::{History, HistoryCommand};
use crate::failure::{Exit, Failure};
use crate::journal::{Entry, Journal, Outcome, Stage};
use crate::render::json;
use crate::terminal::{Style, Terminal, paint};

pub(super) fn run(args: &History, terminal: &Terminal) -> Result<Exit, Failure> {
    let journal = Journal::read(&location()?)?;
    match &args.command {
        None => list(&journal, args.json, terminal),
        Some(HistoryCommand::Show { id, list }) => {
            show(&journal, *id, list.as_deref(), args.json, terminal)
        }
    }
}

fn list(journal: &Journal, json: bool, terminal: &Terminal) -> Result<Exit, Failure> {
    if json {
        terminal.data(&json::pretty(&json!({
            "version": json::VERSION,
            "open": journal.open(),
            "transactions": journal.history(),
        })))?;
        return Ok(Exit::Done);
    }
    let entries: Vec<&Entry> = journal.history().iter().collect();
    let open = journal.open();
    if entries.is_empty() && open.is_none() {
        terminal.note("nothing was ever applied here");
        return Ok(Exit::Done);
    }
    let colour = terminal.colour_out();
    let mut text = table(&entries, colour);
    if let Some(open) = open {
        let state = match open.stage {
            Stage::Performing => "not ended",
            Stage::Unconfirmed { .. } => "waits to be confirmed",
        };
        text.push_str(&row(&open.entry, &paint(colour, Style::Warning, state)));
    }
    terminal.data(&text)?;
    Ok(Exit::Done)
}

fn table(entries: &[&Entry], colour: bool) -> String {
    let heading = format!(
        "{:>4}  {:<20}  {:<8}  {:<12}  {:<8}  {}\n",
        "N", "BEGUN", "WHAT", "POLICY", "CHANGES", "RESULT, BY WHOM"
    );
    let mut text = paint(colour, Style::Bold, heading.trim_end());
    text.push('\n');
    for entry in entries {
        let result = match &entry.outcome {
            Some(outcome @ Outcome::Done) => paint(colour, Style::Good, &outcome.to_string()),
            Some(outcome @ Outcome::Undone { .. }) => {
                paint(colour, Style::Warning, &outcome.to_string())
            }
            Some(outcome @ Outcome::Failed { .. }) => {
                paint(colour, Style::Error, &outcome.to_string())
            }
            None => "not ended".to_owned(),
        };
        text.push_str(&row(entry, &result));
    }
    text
}

fn row(entry: &Entry, result: &str) -> String {
    format!(
        "{:>4}  {:<20}  {:<8}  {:<12}  {:>7}   {result}, {}\n",
        entry.id,
        entry.started.to_string(),
        entry.kind.to_string(),
        entry.policy.as_ref().map_or("-", |digest| digest.short()),
        entry.change_count(),
        entry.who,
    )
}

fn show(
    journal: &Journal,
    id: u64,
    list: Option<&Path>,
    json: bool,
    terminal: &Terminal,
) -> Result<Exit, Failure> {
    let open = journal.open().map(|open| &open.entry);
    let entry = match open.filter(|entry| entry.id == id) {
        Some(entry) => entry,
        None => journal.entry(id)?,
    };
    let source = match &entry.policy {
        Some(digest) => Some(journal.source(digest)?),
        None => None,
    };
    if json {
        terminal.data(&json::pretty(&json!({
            "version": json::VERSION,
            "transaction": entry,
            "source": source,
        })))?;
        return Ok(Exit::Done);
    }
    terminal.note(&format!(
        "# transaction {id}: {}, begun {} by {}, `{}`",
        entry.kind,
        entry.started,
        entry.who,
        entry.command.join(" ").escape_debug()
    ));
    for change in &entry.changes {
        terminal.note(&format!("#   {change}"));
    }
    if entry.more_changes > 0 {
        terminal.note(&format!("#   and {} more", entry.more_changes));
    }
    if let Some(outcome) = &entry.outcome {
        terminal.note(&format!("# {outcome}"));
    }
    let Some(source) = source else {
        terminal.note("# no policy is in force after it");
        return Ok(Exit::Done);
    };
    if let Some(path) = list {
        let found = source.lists.iter().find(|list| list.path == path);
        let found = found.ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format!("that policy names no list file `{}`", path.display()),
            )
        })?;
        terminal.data(&found.text)?;
        return Ok(Exit::Done);
    }
    for list in &source.lists {
        terminal.note(&format!(
            "# names the list file `{0}`: `redirect history show {id} --list {0}` prints it",
            list.path.display()
        ));
    }
    terminal.data(&source.text)?;
    Ok(Exit::Done)
}
