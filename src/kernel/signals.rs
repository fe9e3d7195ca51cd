//! Not being stopped half-way.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// What a terminal, a lost connection, a service manager or a person sends to end or
/// stop a process. `SIGKILL` and `SIGSTOP` cannot be held back: for the first there
/// is the journal, and the second only delays.
const HELD_BACK: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGPIPE,
    Signal::SIGALRM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Holds signals back while it lives: what is being done is then finished, or undone,
/// and only afterwards does a signal that came meanwhile have its effect.
#[derive(Debug)]
pub struct Uninterrupted {
    before: Option<SigSet>,
}

impl Uninterrupted {
    /// From now on.
    #[must_use]
    pub fn begin() -> Self {
        let held_back: SigSet = HELD_BACK.into_iter().collect();
        // Fails for an unknown `how` only (pthread_sigmask(3)).
        let before = held_back.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
        Self { before }
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = before.thread_set_mask();
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn a_signal_waits_until_the_work_is_done() {
        let mask = || SigSet::thread_get_mask().unwrap();
        assert!(!mask().contains(Signal::SIGUSR1));
        let outer = Uninterrupted::begin();
        {
            let _inner = Uninterrupted::begin();
            raise(Signal::SIGUSR1).unwrap();
        }
        assert!(
            mask().contains(Signal::SIGUSR1),
            "the inner one gave back what it found"
        );
        // Still here, and it waits. It is taken away before it has its effect.
        let taken = SigSet::from(Signal::SIGUSR1).wait().unwrap();
        assert_eq!(taken, Signal::SIGUSR1);
        drop(outer);
        assert!(!mask().contains(Signal::SIGUSR1));
    }
}
