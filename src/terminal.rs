//! The one home for writing to the terminal.
//!
//! Standard output is for data, everything else goes to standard error. A reader
//! who goes away (`| head`) is no error. Colour is used on a terminal only, never alone.

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::Failure;

/// Where output goes, and how it may look.
#[derive(Debug)]
pub struct Terminal {
    /// Whether standard output takes colour.
    colour_out: bool,
    /// Whether standard error takes colour.
    colour_err: bool,
    /// Whether only errors are shown on standard error.
    quiet: bool,
}

/// Looks that carry no meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// An error.
    Error,
    /// A warning, or a change.
    Warning,
    /// Something that is well.
    Good,
    /// A heading.
    Bold,
    /// Something of less interest.
    Dim,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Error => "\x1b[1;31m",
            Self::Warning => "\x1b[33m",
            Self::Good => "\x1b[32m",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
        }
    }
}

impl Terminal {
    /// The process's own, colour as the environment says (`NO_COLOR`, no-color.org).
    #[must_use]
    pub fn of_this_process(quiet: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            colour_out: wanted && io::stdout().is_terminal(),
            colour_err: wanted && io::stderr().is_terminal(),
            quiet,
        }
    }

    /// Whether standard output is a terminal, which can be drawn on again.
    #[must_use]
    pub fn is_drawn_on(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Whether a person is there to answer.
    #[must_use]
    pub fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Asks a person; `None` where none is there, or no answer is given.
    #[must_use]
    pub fn ask(&self, question: &str) -> Option<String> {
        if !self.can_ask() {
            return None;
        }
        self.prompt(&format!("{question} "));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).ok()?;
        let answer = answer.trim();
        (!answer.is_empty()).then(|| answer.to_owned())
    }

    /// Whether somebody still reads standard output: a pipe's reader may have gone.
    #[must_use]
    pub fn is_read(&self) -> bool {
        let stdout = io::stdout();
        let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        let answered = poll(&mut asked, PollTimeout::ZERO);
        !matches!(answered, Ok(1..))
    }

    /// Whether standard output takes colour.
    #[must_use]
    pub fn colour_out(&self) -> bool {
        self.colour_out
    }

    /// Whether standard error takes colour.
    #[must_use]
    pub fn colour_err(&self) -> bool {
        self.colour_err
    }

    /// Writes data to standard output, as it is.
    ///
    /// # Errors
    /// When the output cannot be written, a reader's absence aside.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
                crate::failure::Exit::Failed,
                format!("cannot write to standard output: {error}"),
            )),
            _ => Ok(()),
        }
    }

    /// Tells the user something on standard error.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            to_stderr(&format!("{text}\n"));
        }
    }

    /// Asks the user something on standard error, and stays on that line.
    pub fn prompt(&self, text: &str) {
        to_stderr(&paint(self.colour_err, Style::Bold, text));
    }

    /// Warns on standard error, with what to do about it.
    pub fn warn(&self, message: &str, hint: Option<&str>) {
        let label = paint(self.colour_err, Style::Warning, "warning");
        to_stderr(&format!("{label}: {message}\n"));
        if let Some(hint) = hint {
            to_stderr(&format!(
                "{}: {hint}\n",
                paint(self.colour_err, Style::Bold, "hint")
            ));
        }
    }

    /// Shows a failure on standard error.
    pub fn fail(&self, failure: &Failure) {
        let mut text = String::new();
        if let Some(report) = &failure.report {
            text.push_str(report);
            if !report.ends_with('\n') {
                text.push('\n');
            }
        }
        text.push_str(&paint(self.colour_err, Style::Error, "error"));
        text.push_str(": ");
        text.push_str(&failure.message);
        text.push('\n');
        for detail in &failure.details {
            text.push_str("  ");
            text.push_str(detail);
            text.push('\n');
        }
        for hint in &failure.hints {
            text.push_str(&paint(self.colour_err, Style::Bold, "hint"));
            text.push_str(": ");
            text.push_str(hint);
            text.push('\n');
        }
        to_stderr(&text);
    }
}

fn to_stderr(text: &str) {
    // Nobody is left to tell where standard error itself cannot be written.
    _ = io::stderr().lock().write_all(text.as_bytes());
}

/// `text` in `style`, where colour is wanted.
#[must_use]
pub fn paint(colour: bool, style: Style, text: &str) -> String {
    if colour {
        format!("{}{text}\x1b[0m", style.code())
    } else {
        text.to_owned()
    }
}
