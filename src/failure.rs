//! How a command fails: what happened, what state the router is in, what to type next.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::kernel::{FailureKind, KernelError};

/// Exit codes, as the manual has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or in sync.
    Done = 0,
    /// Failed, and the router is as it was.
    Failed = 1,
    /// Drift, changes pending, or sessions that do not go where they should.
    Pending = 2,
    /// The command line cannot be understood.
    Usage = 64,
    /// The policy is not sound.
    BadPolicy = 65,
    /// The router lacks something.
    Lacking = 69,
    /// Another run holds the lock.
    Locked = 75,
    /// Not permitted.
    NotPermitted = 77,
}

impl Exit {
    /// The same as a word, for machines.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Pending => "pending",
            Self::Usage => "usage",
            Self::BadPolicy => "bad-policy",
            Self::Lacking => "lacking",
            Self::Locked => "locked",
            Self::NotPermitted => "not-permitted",
        }
    }
}

/// A command's failure, ready to be shown.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, and to what; lowercase, no full stop.
    pub message: String,
    /// More about it, a line each; what state the router is in among them.
    pub details: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
    /// Text that is complete in itself (a policy's errors with their carets), shown
    /// before the message.
    pub report: Option<Box<str>>,
    /// Its reasons one by one, each with a code of its own, for machines.
    pub findings: Vec<Value>,
}

impl Failure {
    /// A failure with nothing but a message.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            details: Vec::new(),
            hints: Vec::new(),
            report: None,
            findings: Vec::new(),
        }
    }

    /// Adds a line about what state things are in.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// Adds a reason, for machines.
    #[must_use]
    pub fn finding(mut self, finding: &impl Serialize) -> Self {
        // What cannot be written as JSON is in the report all the same.
        self.findings.extend(serde_json::to_value(finding));
        self
    }

    /// The whole of it for machines.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "code": self.exit.code(),
            "exit": self.exit as u8,
            "message": self.message,
            "details": self.details,
            "hints": self.hints,
            "findings": self.findings,
        })
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let exit = match error.kind {
            FailureKind::NotPermitted => Exit::NotPermitted,
            FailureKind::Lacking => Exit::Lacking,
            _ => Exit::Failed,
        };
        let failure = Self::new(exit, error.to_string());
        match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
