//! The code that acts: thin, without decisions of its own.

pub mod conntrack;
pub mod fake;
pub mod files;
pub mod iptables;
pub mod live;
pub mod names;
pub mod netlink;
pub mod nftables;
pub mod probe;
pub mod process;
mod rehearsal;
pub mod route;
pub mod router;
pub mod signals;
pub mod surroundings;
pub mod sysctl;

use std::io;

use nix::errno::Errno;

use crate::nft::Table;
use crate::nft::proof::Proof;
use crate::observation::Observed;
use crate::plan::{Change, Plan};
use crate::policy::Policy;

/// What observation is to look at, beyond what is always looked at.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Policies whose tables, interfaces and settings matter.
    pub policies: &'a [&'a Policy],
}

/// A router: the real one, or a fake that tests can break at every step.
pub trait Kernel {
    /// Reads what is there.
    ///
    /// # Errors
    /// Says what could not be read, and why.
    fn observe(&mut self, wish: &Wish<'_>) -> Result<Observed, KernelError>;

    /// Tries what can be tried of `plan` without changing anything, so that what the router
    /// lacks is found before the first change.
    ///
    /// # Errors
    /// Says what would fail, and why.
    fn rehearse(&mut self, plan: &Plan) -> Result<(), KernelError> {
        let _ = plan;
        Ok(())
    }

    /// What proves, to a later run, that the packet rules are as they were last observed.
    fn proof(&self) -> Option<Proof> {
        None
    }

    /// Takes `table` for the packet rules that are there, as far as `proof` goes, of which an
    /// earlier run has made sure.
    fn trust(&mut self, proof: &Proof, table: Table) {
        let _ = (proof, table);
    }

    /// Makes one change, whole or not at all.
    ///
    /// # Errors
    /// Says what could not be done, in the kernel's own words.
    fn perform(&mut self, change: &Change) -> Result<(), KernelError>;

    /// Removes what a run that was killed while it made `change` may have left half-made.
    ///
    /// # Errors
    /// Says what could not be removed.
    fn tidy(&mut self, change: &Change) -> Result<(), KernelError> {
        let _ = change;
        Ok(())
    }
}

/// Something the kernel, a file or a program refused.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct KernelError {
    /// What was tried, as a person would say it: "cannot add the default route of table `scb`".
    pub action: String,
    /// The kernel's own words: its extended acknowledgement where there is one, else the errno's.
    pub reason: String,
    /// What to do about it, where we know.
    pub hint: Option<String>,
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// The cause.
    #[source]
    pub source: Option<std::io::Error>,
}

impl KernelError {
    /// What a system call returned, as what became of `action`.
    pub fn io(action: impl Into<String>, error: io::Error) -> Self {
        let (kind, hint) = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                (FailureKind::NotPermitted, Some("run it as root".to_owned()))
            }
            io::ErrorKind::ReadOnlyFilesystem => (
                FailureKind::Other,
                Some("remount the file system writable".to_owned()),
            ),
            _ => (FailureKind::Other, None),
        };
        let reason = match error.raw_os_error() {
            Some(errno) => Errno::from_raw(errno).desc().to_owned(),
            None => error.to_string(),
        };
        Self {
            action: action.into(),
            reason,
            hint,
            kind,
            source: Some(error),
        }
    }

    /// What became of `action` for a reason of our own.
    pub fn because(action: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            reason: reason.into(),
            hint: None,
            kind: FailureKind::Other,
            source: None,
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Tells failures apart where the exit code or the caller's next step differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Permission: exit 77.
    NotPermitted,
    /// The router lacks a part: exit 69.
    Lacking,
    /// What was to be removed is not there: for whoever takes back, as good as done.
    Gone,
    /// What was to be added is there already, or its place is taken.
    Exists,
    /// Anything else: exit 1.
    Other,
}
