//! Which commands there are: what one is, its `-V` says.

use std::collections::BTreeSet;
use std::fs;

use super::{PATIENCE, at_once, refused, text};
use crate::iptables::{Variant, Version, parse};
use crate::kernel::{KernelError, process};

/// The exit status of a program whose libraries cannot be loaded (ld.so(8)).
const NOT_STARTED: i32 = 127;

/// The names under which the commands may be found, the one that people type first.
const COMMANDS: [&str; 3] = ["iptables", "iptables-legacy", "iptables-nft"];

/// Commands that belong together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// The IPv4 one.
    pub(super) command: &'static str,
    pub(super) version: Version,
    pub(super) variant: Variant,
}

/// Those that are there, with what they say of themselves; the first of each variant.
pub(super) fn find() -> Result<Vec<Program>, KernelError> {
    let mut files = BTreeSet::new();
    let there: Vec<_> = COMMANDS
        .into_iter()
        // What matters is what reads and commits; before 1.8 these do not say what they are.
        .filter(|command| {
            process::find(&format!("{command}-restore")).is_some_and(|path| {
                // Often the plain one is another by a second name.
                files.insert(fs::canonicalize(&path).unwrap_or(path))
            })
        })
        .collect();
    let mut found: Vec<Program> = Vec::new();
    for answer in at_once(&there, |command| ask(command)) {
        if let Some(program) = answer?
            && !found.iter().any(|other| other.variant == program.variant)
        {
            found.push(program);
        }
    }
    Ok(found)
}

fn ask(command: &'static str) -> Result<Option<Program>, KernelError> {
    for name in [format!("{command}-restore"), command.to_owned()] {
        if process::find(&name).is_none() {
            continue;
        }
        let output = process::run(&name, &["-V"], b"", PATIENCE)?;
        if let Some((version, variant)) = parse::version(&text(&output.stdout)) {
            return Ok(Some(Program {
                command,
                version,
                variant,
            }));
        }
        // It is there and does not even start: that it holds nothing of ours nobody knows.
        if output.status.code() == Some(NOT_STARTED) {
            return Err(refused(format!("cannot run `{name} -V`"), &output));
        }
    }
    Ok(None)
}
