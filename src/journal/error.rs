//! What can be wrong with the state directory, and what to do about it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::lock::Holder;
use crate::kernel::KernelError;

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not root, or a security module says no.
    #[error("not permitted to {action} `{}`", path.display())]
    NotPermitted {
        /// "read", "write", …
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have written there, or could make us write elsewhere.
    #[error("`{}` is not safe to use: {found}", path.display())]
    Unsafe {
        /// Which file or directory.
        path: PathBuf,
        /// What is wrong with it, and what is wanted.
        found: String,
    },
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot {action} `{}`", path.display())]
    Write {
        /// "write", "create", …
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// It is not what we wrote.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A later version of this program wrote it.
    #[error("`{}` was written by a newer `redirect` (format {found}, this one knows {known})", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Another run is at work.
    #[error("another run is at work{}", holder.as_ref().map(|holder| format!(": {holder}")).unwrap_or_default())]
    Held {
        /// Who, as far as the system tells.
        holder: Option<Holder>,
    },
    /// A transaction has not ended.
    #[error("transaction {id} has not ended")]
    Unfinished {
        /// Which.
        id: u64,
    },
    /// There is no transaction that could end.
    #[error("no transaction is under way")]
    NothingOpen,
    /// Nothing of this number is remembered.
    #[error("no transaction {id} in the history")]
    NoSuchEntry {
        /// The number asked for.
        id: u64,
    },
}

impl JournalError {
    pub(super) fn read(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted {
                action: "read",
                path,
                source,
            },
            _ => Self::Read { path, source },
        }
    }

    pub(super) fn write(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted {
                action,
                path,
                source,
            },
            _ => Self::Write {
                action,
                path,
                source,
            },
        }
    }

    pub(super) fn kernel(action: &'static str, path: PathBuf, error: KernelError) -> Self {
        match error.source {
            Some(source) => Self::write(action, path, source),
            None => Self::Unsafe {
                path,
                found: error.reason,
            },
        }
    }

    /// Whether the file system is full: then something can be deleted, and the same tried again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Write { source, .. }
            if matches!(errno(source), Some(Errno::ENOSPC | Errno::EDQUOT)))
    }

    /// Whether the state directory is sound, and only cannot be written to now.
    #[must_use]
    pub fn is_unwritable(&self) -> bool {
        matches!(self, Self::Write { .. })
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotPermitted { .. } => "run it as root".to_owned(),
            Self::Unsafe { path, .. } => format!(
                "look at who made it; then `chown root: {0}` and `chmod go-rwx {0}`, or remove it",
                path.display()
            ),
            Self::Write { source, .. } => match errno(source)? {
                Errno::ENOSPC | Errno::EDQUOT => {
                    "make room on that file system, then run this again".to_owned()
                }
                Errno::EROFS => "the file system is read-only: see `dmesg` and `findmnt`, remount \
                                 it writable, then run this again"
                    .to_owned(),
                _ => return None,
            },
            Self::Damaged { path, .. } => format!(
                "`redirect teardown` works without it: it removes everything that bears our marks \
                 and sets `{}` aside; then `redirect apply`",
                path.display()
            ),
            Self::Newer { .. } => "use the newer `redirect`".to_owned(),
            Self::Held { .. } => "wait for it with `--wait SECONDS`".to_owned(),
            Self::Unfinished { .. } => "`redirect rollback` takes it back".to_owned(),
            Self::NoSuchEntry { .. } => "`redirect history` lists them".to_owned(),
            Self::Read { .. } | Self::NothingOpen => return None,
        })
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
