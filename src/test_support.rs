//! What tests of several modules need.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::kernel::{files, process};
use crate::observation::FileContent;
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

/// Gives the calling thread an `/etc/iproute2` of its own, as Debian has it. `false`, said loudly,
/// where that is not permitted.
#[must_use]
pub(crate) fn own_table_names(test: &str) -> bool {
    let none = None::<&str>;
    let mounted = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none)
        })
        .and_then(|()| {
            let (kind, at) = (Some("tmpfs"), "/etc/iproute2");
            mount(kind, at, kind, MsFlags::empty(), none)
        });
    if let Err(errno) = mounted {
        eprintln!("SKIPPED {test}: no mounts of its own: {errno}");
        return false;
    }
    fs::create_dir("/etc/iproute2/rt_tables.d").unwrap();
    let lines = "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n".to_owned();
    let content = FileContent {
        text: lines,
        mode: 0o644,
    };
    files::replace(Path::new("/etc/iproute2/rt_tables"), &content).unwrap();
    true
}

/// What a shell prints for this script, whatever its status.
pub(crate) fn shell(script: &str) -> String {
    let output = process::run("sh", &["-c", script], b"", Duration::from_secs(30)).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Writes to a file that is there, such as one under `/proc/sys`.
pub(crate) fn write(path: &str, value: &str) {
    let file = OpenOptions::new().write(true).open(path);
    file.unwrap().write_all(value.as_bytes()).unwrap();
}

/// Waits until the kernel has noticed that both ends of a veth pair are up; until then it calls
/// their routes `linkdown`.
pub(crate) fn wait_for_carrier(link: &str) {
    for _ in 0..1000 {
        if ip_json(&format!("link show dev {link}"))[0]["operstate"] == "UP" {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{link} does not come up");
}
