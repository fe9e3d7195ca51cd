//! One run at a time.
//!
//! The lock is `flock` on the state directory itself: it needs no file of its own, so
//! it works on a full and on a read-only file system, nothing of it is ever stale, and only
//! root can take it. Who holds it is read from `/proc/locks`, so the word is always the
//! kernel's.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::entry::{Stamp, user_name};

/// How often a waiting run looks again. `flock` cannot wait for a limited time without
/// signals; a run holds the lock for milliseconds.
const POLL: Duration = Duration::from_millis(20);

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Its command line.
    pub command: String,
    /// Its user.
    pub user: String,
    /// Since when it runs.
    pub since: Option<Stamp>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {}, `{}`, of {}",
            self.pid, self.command, self.user
        )?;
        match self.since {
            Some(since) => write!(f, ", since {since}"),
            None => Ok(()),
        }
    }
}

/// Held until dropped, or until the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    held: File,
}

impl Lock {
    /// Takes the lock on `directory` within `wait`; gives the directory back if another
    /// holds on to it.
    pub(super) fn take(directory: File, wait: Duration) -> Result<Self, File> {
        let begun = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self { held: directory }),
                Err(_) if begun.elapsed() >= wait => return Err(directory),
                Err(_) => thread::sleep(POLL.min(wait.saturating_sub(begun.elapsed()))),
            }
        }
    }

    /// Whether programs that are started from now on hold the lock as well. While a
    /// transaction is open they do: should this process be killed, a program that it has
    /// started may still be at work, and nobody may take its work back before it has ended.
    pub(super) fn pass_on(&self, pass_on: bool) {
        let flags = if pass_on {
            FdFlag::empty()
        } else {
            FdFlag::FD_CLOEXEC
        };
        // Fails for a descriptor that is not open, and this one is.
        let _ = fcntl(&self.held, FcntlArg::F_SETFD(flags));
    }

    /// Lets go as a process does that is killed: without unlocking what others hold too.
    #[cfg(test)]
    pub(super) fn abandon(self) {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&self.held);
        std::mem::forget(self);
        nix::unistd::close(descriptor).unwrap();
    }
}

impl Drop for Lock {
    /// Lets go also for programs that were started meanwhile and have not ended. Should that
    /// fail, closing does it for this process.
    fn drop(&mut self) {
        let _ = self.held.unlock();
    }
}

/// Who holds the lock on `directory`, if the kernel shows it.
pub(super) fn holder(directory: &File) -> Option<Holder> {
    let inode = directory.metadata().ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = holding_pid(&locks, inode)?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let uid = std::fs::metadata(format!("/proc/{pid}")).map_or(0, |process| process.uid());
    Some(Holder {
        pid,
        command: command_line(&command),
        user: user_name(uid).unwrap_or_else(|| format!("uid {uid}")),
        since: started(pid),
    })
}

/// Finds the process in `/proc/locks`, whose lines read
/// `1: FLOCK  ADVISORY  WRITE 8235 fe:00:246951 0 EOF` (`fs/locks.c`, `lock_get_status`; those
/// who wait have `->` after the number). The device is not compared: on btrfs and
/// overlayfs it is another than `stat` shows.
fn holding_pid(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            return None;
        }
        let pid = words.nth(2)?.parse().ok()?;
        let place = words.next()?.rsplit(':').next()?;
        (place.parse() == Ok(inode)).then_some(pid)
    })
}

/// Words with blanks between, control characters escaped, cut where it gets long.
fn command_line(words: &[u8]) -> String {
    const LONGEST: usize = 200;
    let words = String::from_utf8_lossy(words);
    let line = words.trim_end_matches('\0').replace('\0', " ");
    line.chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect()
}

/// When a process began: its age, by the kernel's ticks since boot, before now.
fn started(pid: u32) -> Option<Stamp> {
    /// `USER_HZ`, which is 100 on every architecture that we build for.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): field 22; the second one, in parentheses, may hold anything.
    let ticks: f64 = stat
        .rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    let uptime = super::confirm::uptime().ok()?.as_secs_f64();
    let now = jiff::Timestamp::now().as_millisecond();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "milliseconds since boot fit by far"
    )]
    let age = ((uptime - ticks / TICKS) * 1000.0).max(0.0) as i64;
    Some(Stamp::from_millisecond(now - age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_other_locks() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 700 fe:00:246951 0 EOF
2: FLOCK  ADVISORY  WRITE 8235 fe:00:246951 0 EOF
2: -> FLOCK  ADVISORY  WRITE 8300 fe:00:246951 0 EOF
3: FLOCK  ADVISORY  WRITE 9 fe:00:24695 0 EOF
";
        assert_eq!(holding_pid(locks, 246_951), Some(8235));
        assert_eq!(holding_pid(locks, 24_695), Some(9));
        assert_eq!(holding_pid(locks, 1), None);
        assert_eq!(holding_pid("garbage\n\n1: FLOCK\n", 1), None);
    }

    #[test]
    fn a_command_line_cannot_garble_the_terminal() {
        assert_eq!(
            command_line(b"redirect\0apply\0\x1b[2J\0"),
            "redirect apply \\u{1b}[2J"
        );
    }

    #[test]
    fn this_process_began_before_now() {
        let began = started(std::process::id()).unwrap();
        assert!(Stamp::now().seconds_since(began) < 3600);
    }
}
