//! One measurement: a process from its start to its end, and the most memory that it, or one that it
//! waited for, ever had.
//!
//! The kernel counts a process's peak on from that of the program which it was before
//! (`exec_mmap` in `fs/exec.c`), and `getrusage` adds up all children there ever were. So each
//! measured process is started by a small one that starts nothing else: this very program, as `time`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::Trouble;

/// What one process took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// From just before its start to just after its end.
    pub time: Duration,
    /// In KiB.
    pub memory: u64,
}

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Task(Vec<String>);

impl Task {
    /// `program`, by its path or to be found.
    pub fn new(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let program = program.as_ref().to_string_lossy().into_owned();
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        Self(std::iter::once(program).chain(arguments).collect())
    }

    /// With one more argument.
    pub fn and(mut self, path: &Path) -> Self {
        self.0.push(path.to_string_lossy().into_owned());
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// If it fails, with what it printed as errors.
    #[expect(
        clippy::disallowed_methods,
        reason = "starting processes is what is measured"
    )]
    pub fn measure(&self) -> Result<Sample, Trouble> {
        let output = Command::new(std::env::current_exe()?)
            .arg("time")
            .args(&self.0)
            .stdin(Stdio::null())
            .output()?;
        let failed = || {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("`{}`: {}", self.0.join(" "), said.trim())
        };
        if !output.status.success() {
            return Err(failed().into());
        }
        let printed = String::from_utf8(output.stdout)?;
        let (nanoseconds, memory) = printed.trim().split_once(' ').ok_or_else(failed)?;
        Ok(Sample {
            time: Duration::from_nanos(nanoseconds.parse()?),
            memory: memory.parse()?,
        })
    }
}

/// What this program does as `time`: starts `words` and prints nanoseconds and KiB.
#[expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "starting a process is what is measured, and its figures are for the one who asked"
)]
pub fn time(words: &[String]) -> Result<(), Trouble> {
    let (program, arguments) = words.split_first().ok_or("no program is named")?;
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null());
    let begun = Instant::now();
    let status = command.status()?;
    let time = begun.elapsed();
    if !status.success() {
        return Err(status.to_string().into());
    }
    let memory = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    println!("{} {memory}", time.as_nanos());
    Ok(())
}
