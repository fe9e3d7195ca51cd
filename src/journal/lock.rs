//! One run at a time.
//!
//! The lock is `flock` on the state directory itself: it needs no file of its own, so
//! it works on a full and on a read-only file system, nothing of it is ever stale, and only
//! root can take it. Who holds it is read from `/proc/locks`, so the word is always the
//! kernel's.

use std::fmt;
use std::fs::{File, Metadata};
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
///
/// `/proc/locks` names who took it, by inode alone: the device that it gives is another than
/// `stat` shows on btrfs and overlayfs, and file systems of a kind number their inodes alike. So
/// whoever it names is asked for the file. A taker that has ended is not named twice: then
/// the lock is with a program that it had started.
pub(super) fn holder(directory: &File) -> Option<Holder> {
    let directory = directory.metadata().ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let takers = takers(&locks, directory.ino());
    if takers.is_empty() {
        return None;
    }
    let pid = takers
        .into_iter()
        .find(|pid| holds(*pid, &directory))
        .or_else(|| processes().find(|pid| holds(*pid, &directory)))?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let uid = std::fs::metadata(format!("/proc/{pid}")).map_or(0, |process| process.uid());
    Some(Holder {
        pid,
        command: command_line(&command),
        user: user_name(uid).unwrap_or_else(|| format!("uid {uid}")),
        since: started(pid),
    })
}

/// Who took a lock on a file with this inode, by `/proc/locks`, whose lines read
/// `1: FLOCK  ADVISORY  WRITE 8235 fe:00:246951 0 EOF` (`fs/locks.c`, `lock_get_status`; those
/// who wait have `->` after the number).
fn takers(locks: &str, inode: u64) -> Vec<u32> {
    let taker = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            return None;
        }
        let pid = words.nth(2)?.parse().ok()?;
        let place = words.next()?.rsplit(':').next()?;
        (place.parse() == Ok(inode)).then_some(pid)
    };
    locks.lines().filter_map(taker).collect()
}

/// Whether a process has this file open and locked; proc(5): `fdinfo` shows the locks
/// of an open file.
fn holds(pid: u32, file: &Metadata) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.filter_map(Result::ok).any(|descriptor| {
        std::fs::metadata(descriptor.path())
            .is_ok_and(|open| open.dev() == file.dev() && open.ino() == file.ino())
            && std::fs::read_to_string(format!(
                "/proc/{pid}/fdinfo/{}",
                descriptor.file_name().display()
            ))
            .is_ok_and(|information| information.contains("FLOCK"))
    })
}

/// All processes that this one sees.
fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
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
    use crate::test_support::Scratch;

    #[test]
    fn the_holder_is_found_among_other_locks() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 700 fe:00:246951 0 EOF
2: FLOCK  ADVISORY  WRITE 8235 fe:00:246951 0 EOF
2: -> FLOCK  ADVISORY  WRITE 8300 fe:00:246951 0 EOF
3: FLOCK  ADVISORY  WRITE 9 fe:00:24695 0 EOF
";
        assert_eq!(takers(locks, 246_951), [8235]);
        assert_eq!(takers(locks, 24_695), [9]);
        assert_eq!(takers(locks, 1), [0; 0]);
        assert_eq!(takers("garbage\n\n1: FLOCK\n", 1), [0; 0]);
    }

    #[test]
    fn a_lock_is_held_by_who_has_the_file_not_by_who_has_it_open() {
        let scratch = Scratch::new("lock-holder");
        let open = || File::open(scratch.path()).unwrap();
        let file = open();
        let place = file.metadata().unwrap();
        let this = std::process::id();
        assert!(!holds(this, &place));
        let lock = Lock::take(open(), Duration::ZERO).unwrap();
        assert!(holds(this, &place));
        assert!(processes().any(|pid| pid == this));
        assert_eq!(holder(&file).unwrap().pid, this);
        drop(lock);
        assert_eq!(holder(&file), None);
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
