//! `redirect schema`: the JSON Schema of the policy.

use crate::failure::{Exit, Failure};
use crate::policy;
use crate::render::json;
use crate::terminal::Terminal;

pub(super) fn run(terminal: &Terminal) -> Result<Exit, Failure> {
    terminal.data(&json::pretty(&policy::schema()))?;
    Ok(Exit::Done)
}
