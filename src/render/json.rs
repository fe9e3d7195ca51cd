//! For machines.

use serde_json::{Value, json};

use super::difference::{self, Difference};
use crate::failure::Failure;
use crate::plan::Plan;

/// Version of the forms below; it changes when a field goes or means something else.
pub const VERSION: u32 = 1;

/// A plan: every change, what it is for, and the commands that make it.
#[must_use]
pub fn plan(plan: &Plan) -> String {
    let changes: Vec<_> = plan
        .changes
        .iter()
        .map(|change| {
            json!({
                "purpose": super::shell::purpose(change).replace("\n#    ", " "),
                "commands": super::shell::commands(change),
                "difference": difference::difference(change),
            })
        })
        .collect();
    pretty(&json!({ "version": VERSION, "in_sync": plan.is_empty(), "changes": changes }))
}

/// Differences.
#[must_use]
pub fn differences(differences: &[Difference]) -> String {
    pretty(&json!({
        "version": VERSION,
        "in_sync": differences.is_empty(),
        "differences": differences,
    }))
}

/// A failure.
#[must_use]
pub fn failure(failure: &Failure) -> String {
    pretty(&json!({ "version": VERSION, "error": failure.json() }))
}

/// Indented, with a line's end.
#[must_use]
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
