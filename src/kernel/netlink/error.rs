//! What may go wrong between us and the kernel.

use std::io;

use nix::errno::Errno;

use super::super::{FailureKind, KernelError};
use super::DUMP_TRIES;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The socket itself failed.
    #[error("netlink: `{call}` failed: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
    /// What was being read changed each time that it was read.
    #[error("it changed each of the {DUMP_TRIES} times it was read")]
    Interrupted,
    /// The kernel's answer makes no sense to us.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Bytes that are not what the protocol says they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("netlink: malformed {0}")]
pub struct Malformed(
    /// What was being read or written.
    pub &'static str,
);

/// The kernel's no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub struct Refusal {
    /// Which error.
    pub errno: Errno,
    /// The extended acknowledgement, which says more than the errno.
    pub text: Option<String>,
    /// Which byte of the request, counted from the start of its message header.
    pub offset: Option<u32>,
    /// Which request: its sequence number.
    pub sequence: u32,
}

impl Refusal {
    fn words(&self) -> String {
        match &self.text {
            Some(text) => format!("{text} ({})", self.errno.desc()),
            None => self.errno.desc().to_owned(),
        }
    }
}

impl NetlinkError {
    /// The kernel's errno, where it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            Self::System { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Interrupted | Self::Malformed(_) => None,
        }
    }

    /// This error as what became of `action`, such as "cannot add the routing rule".
    #[must_use]
    pub fn during(self, action: impl Into<String>) -> KernelError {
        let errno = self.errno();
        let (kind, hint) = match errno {
            Some(Errno::EPERM) => (
                FailureKind::NotPermitted,
                Some("run it as root, or with `CAP_NET_ADMIN`".to_owned()),
            ),
            Some(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => {
                (FailureKind::Lacking, None)
            }
            _ => (FailureKind::Other, None),
        };
        let reason = self.to_string();
        let source = match self {
            Self::System { source, .. } => Some(source),
            Self::Refused(refusal) => Some(io::Error::from_raw_os_error(refusal.errno as i32)),
            Self::Interrupted | Self::Malformed(_) => None,
        };
        KernelError {
            action: action.into(),
            reason,
            hint,
            kind,
            source,
        }
    }
}

pub(super) fn system(call: &'static str) -> impl FnOnce(io::Error) -> NetlinkError {
    move |source| NetlinkError::System { call, source }
}
