//! What tests of several modules need.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::kernel::process;
use crate::policy::{self, Policy, Source};

/// A directory of a test's own, removed when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// `name` must be unique among the tests.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("redirect-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Moves the calling thread into a network namespace of its own, with `lo` up: nothing that a
/// test does there concerns the machine. `false`, said loudly, where that is not permitted.
#[must_use]
pub(crate) fn own_network(test: &str) -> bool {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("SKIPPED {test}: no network namespace of its own: {errno}");
        return false;
    }
    ip("link set dev lo up");
    true
}

/// `ip` with these words as arguments, as the calling thread's namespace has it; what it printed.
pub(crate) fn ip(arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = process::run("ip", &arguments, b"", Duration::from_secs(30)).unwrap();
    assert!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        output.complaint()
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip -j` says.
pub(crate) fn ip_json(arguments: &str) -> serde_json::Value {
    let printed = ip(&format!("-j {arguments}"));
    if printed.trim().is_empty() {
        return serde_json::Value::Array(Vec::new());
    }
    serde_json::from_str(&printed).unwrap()
}

/// The policy that `text` says.
pub(crate) fn policy(text: &str) -> Policy {
    match policy::read(&Source::from_text("test", text)) {
        Ok(reading) => reading.policy,
        Err(errors) => panic!("{:#?}", errors.diagnostics),
    }
}
