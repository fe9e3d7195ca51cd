//! A rehearsal: what commands and kernel lack shows where it can do no harm, before anything is
//! changed.

use std::panic::resume_unwind;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::KernelError;

/// Does `play` in a network namespace of its own, which goes when this returns; `None` if there
/// can be none here: it wants `CAP_SYS_ADMIN`.
///
/// # Errors
/// What `play` says, or if what it is to run in cannot be made for another reason.
pub(super) fn in_an_empty_namespace(
    play: impl FnOnce() -> Result<(), KernelError> + Send,
) -> Result<Option<()>, KernelError> {
    let action = "cannot rehearse in a network namespace";
    // A namespace is a thread's own; this one ends with it.
    let rehearsal = || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => play().map(Some),
        Err(Errno::EPERM | Errno::EINVAL | Errno::ENOSPC | Errno::ENOSYS) => Ok(None),
        Err(errno) => Err(KernelError::io(action, errno.into())),
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .spawn_scoped(scope, rehearsal)
            .map_err(|error| KernelError::io(action, error))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
