//! `apply --confirm SECONDS`: back by itself unless `redirect confirm` comes.

use std::io;
use std::time::Duration;

/// `CLOCK_BOOTTIME`, which goes on while the machine sleeps and is never set, to 10 ms
/// (`/proc/uptime`, `fs/proc/uptime.c`).
///
/// # Errors
/// Passes on what reading `/proc` says.
pub fn uptime() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    text.split_ascii_whitespace()
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| io::Error::other(format!("`/proc/uptime` reads `{}`", text.trim())))
}
