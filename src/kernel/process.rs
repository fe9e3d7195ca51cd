//! The one home for starting a process.
//!
//! A program is looked for in directories that only root can write, runs with an
//! environment of ours, in `/`, in a process group of its own (a Ctrl-C meant for us must
//! not stop it half-way), and within bounds of time and output.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{FailureKind, KernelError};

/// Where programs are looked for, in order.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];

/// Most bytes that a program may print to each of its two streams.
pub const OUTPUT_LIMIT: usize = 64 << 20;

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub stdout: Vec<u8>,
    /// What it printed on standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// What it printed on standard error as one line of text, for messages.
    #[must_use]
    pub fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if lines.is_empty() {
            return self.status.to_string();
        }
        lines.join("; ")
    }
}

/// The absolute path of `program`, if this machine has it.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| {
            path.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// Runs `program` (a name to look for, or an absolute path) with `arguments`, gives it `input`
/// on standard input, and waits until it ends, whatever its exit status.
///
/// # Errors
/// If it is not found, cannot be started, is killed (what it printed is then no answer), prints
/// more than [`OUTPUT_LIMIT`], or does not end within `timeout`; it is then killed.
pub fn run(
    program: &str,
    arguments: &[&str],
    input: &[u8],
    timeout: Duration,
) -> Result<Output, KernelError> {
    let action = || format!("cannot run `{program}`");
    let path = if program.starts_with('/') {
        PathBuf::from(program)
    } else {
        find(program).ok_or_else(|| KernelError {
            kind: FailureKind::Lacking,
            ..KernelError::because(
                action(),
                format!("it is in none of {}", DIRECTORIES.join(", ")),
            )
        })?
    };
    #[expect(clippy::disallowed_methods, reason = "this is their one home")]
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| KernelError::io(action(), error))?;
    let talked = talk(&mut child, input, Instant::now() + timeout);
    let (stdout, stderr, status) = match talked {
        Ok(output) => output,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(match error.kind() {
                io::ErrorKind::TimedOut => KernelError::because(
                    action(),
                    format!("it did not end within {} seconds", timeout.as_secs_f32()),
                ),
                io::ErrorKind::FileTooLarge => KernelError::because(
                    action(),
                    format!("it printed more than {OUTPUT_LIMIT} bytes"),
                ),
                _ => KernelError::io(action(), error),
            });
        }
    };
    if let Some(signal) = status.signal() {
        return Err(KernelError::because(
            action(),
            format!("it was killed by signal {signal}"),
        ));
    }
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

/// Starts `program` (an absolute path) and leaves it running, once it has printed `ready` on its
/// standard output. It is to give itself a session of its own before that; whatever becomes
/// of us afterwards is then nothing to it.
///
/// # Errors
/// If it cannot be started, ends, or is not ready within `timeout`; it is then killed.
pub fn detach(
    program: &str,
    arguments: &[&str],
    ready: &str,
    timeout: Duration,
) -> Result<(), KernelError> {
    let action = || format!("cannot start `{program} {}`", arguments.join(" "));
    #[expect(clippy::disallowed_methods, reason = "this is their one home")]
    let mut command = Command::new(program);
    let mut child = command
        .args(arguments)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| KernelError::io(action(), error))?;
    let failed = match await_ready(&mut child, ready, Instant::now() + timeout) {
        Ok(true) => return Ok(()),
        Ok(false) => KernelError::because(action(), "it ended, or said something else, at once"),
        Err(error) => KernelError::io(action(), error),
    };
    let _ = child.kill();
    let _ = child.wait();
    Err(failed)
}

fn await_ready(child: &mut Child, ready: &str, deadline: Instant) -> io::Result<bool> {
    let Some(mut stdout) = child.stdout.take() else {
        return Ok(false);
    };
    let mut said = vec![0; ready.len()];
    let mut length = 0;
    while let Some(rest) = said.get_mut(length..).filter(|rest| !rest.is_empty()) {
        let mut waits = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, remaining(deadline)?) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if !waits.iter().any(|wait| wait.any().unwrap_or(false)) {
            continue;
        }
        match stdout.read(rest)? {
            0 => return Ok(false),
            read => length += read,
        }
    }
    Ok(said == ready.as_bytes())
}

/// Feeds and reads a child until it has ended: all pipes at once, so that neither side waits
/// for the other.
fn talk(
    child: &mut Child,
    mut input: &[u8],
    deadline: Instant,
) -> io::Result<(Vec<u8>, Vec<u8>, ExitStatus)> {
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let pipes = [
        stdin.as_ref().map(AsFd::as_fd),
        stdout.as_ref().map(AsFd::as_fd),
        stderr.as_ref().map(AsFd::as_fd),
    ];
    for pipe in pipes.into_iter().flatten() {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    while stdout.is_some() || stderr.is_some() || stdin.is_some() {
        if let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(written) => input = input.get(written..).unwrap_or_default(),
                // It reads no further: its status will say why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => input = &[],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
            if input.is_empty() {
                stdin = None;
            }
        }
        if drain(&mut stdout, &mut printed)? {
            stdout = None;
        }
        if drain(&mut stderr, &mut complained)? {
            stderr = None;
        }
        let mut waits: Vec<PollFd<'_>> = Vec::with_capacity(3);
        if let Some(pipe) = &stdin {
            waits.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
        }
        if let Some(pipe) = &stdout {
            waits.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if let Some(pipe) = &stderr {
            waits.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if !waits.is_empty() {
            match poll(&mut waits, remaining(deadline)?) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    // It has closed its streams, so it is about to end.
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((printed, complained, status));
        }
        remaining(deadline)?;
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Reads what there is; whether that was the end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(pipe) = pipe else {
        return Ok(false);
    };
    let mut part = [0; 16 * 1024];
    loop {
        match pipe.read(&mut part) {
            Ok(0) => return Ok(true),
            Ok(length) => into.extend(part.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        if into.len() > OUTPUT_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Time left, for `poll`: at least a millisecond, or it would spin.
fn remaining(deadline: Instant) -> io::Result<PollTimeout> {
    let left = deadline
        .checked_duration_since(Instant::now())
        .ok_or(io::ErrorKind::TimedOut)?;
    Ok(PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_killed_has_not_answered() {
        let error = run("sh", &["-c", "echo half; kill -9 $$"], b"", SOON).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot run `sh`: it was killed by signal 9"
        );
    }

    #[test]
    fn output_status_and_complaint_are_kept_apart() {
        let output = run("sh", &["-c", "echo out; echo err >&2; exit 3"], b"", SOON).unwrap();
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.complaint(), "err");
        assert_eq!(output.status.code(), Some(3));
        let quiet = run("false", &[], b"", SOON).unwrap();
        assert_eq!(quiet.complaint(), "exit status: 1");
    }

    #[test]
    fn more_than_a_pipe_holds_goes_through_both_ways() {
        let input: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_ne_bytes).collect();
        let output = run("sh", &["-c", "exec tee /dev/stderr"], &input, SOON).unwrap();
        assert_eq!(output.stdout, input);
        assert_eq!(output.stderr, input);
    }

    #[test]
    fn one_that_does_not_read_its_input_is_no_error() {
        let input = vec![0; 1_000_000];
        let output = run("true", &[], &input, SOON).unwrap();
        assert!(output.status.success());
    }

    #[test]
    fn the_environment_is_ours() {
        let output = run("env", &[], b"", SOON).unwrap();
        let mut names: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0.to_owned()))
            .collect();
        names.sort();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let begun = Instant::now();
        for script in ["exec sleep 60", "exec >/dev/null 2>&1; exec sleep 60"] {
            let error = run("sh", &["-c", script], b"", Duration::from_millis(100)).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot run `sh`: it did not end within 0.1 seconds"
            );
        }
        assert!(begun.elapsed() < SOON);
    }

    #[test]
    fn one_that_is_not_there_is_lacking() {
        let error = run("no-such-program", &[], b"", SOON).unwrap_err();
        assert_eq!(error.kind, FailureKind::Lacking);
        assert_eq!(find("sh").unwrap().file_name().unwrap(), "sh");
        assert_eq!(find("no-such-program"), None);
    }

    #[test]
    fn one_that_prints_without_end_is_stopped() {
        let error = run("yes", &[], b"", SOON).unwrap_err();
        assert!(error.reason.contains("more than"), "{error}");
    }
}
