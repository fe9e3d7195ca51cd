//! Golden dry-runs: what `apply --dry-run --offline` and `diff --offline` print for every policy
//! in `examples/`, whole.
//!
//! `UPDATE_GOLDEN=1 cargo test --test dry_run` writes them anew; read the difference then.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts the program that it tests"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A copy of `examples/`: the modes of a checkout depend on the umask, and files that a group
/// may write are refused.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dry-run");
        std::fs::create_dir_all(folder.join("examples")).unwrap();
        for entry in std::fs::read_dir("examples").unwrap() {
            let entry = entry.unwrap();
            let copy = folder.join("examples").join(entry.file_name());
            std::fs::copy(entry.path(), &copy).unwrap();
            std::fs::set_permissions(&copy, Permissions::from_mode(0o644)).unwrap();
        }
        folder
    })
}

fn redirect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_redirect"))
        .args(arguments)
        .current_dir(folder())
        .env_clear()
        .output()
        .unwrap()
}

fn examples() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("examples")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names
}

fn golden(name: &str, found: &str) {
    let path: PathBuf = Path::new("tests/dry-run").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| !value.is_empty()) {
        std::fs::create_dir_all("tests/dry-run").unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let wanted = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; see UPDATE_GOLDEN", path.display()));
    assert!(
        wanted == found,
        "{} is not what is printed now:\n{found}",
        path.display()
    );
}

#[test]
fn every_example_prints_its_script() {
    for name in examples() {
        let policy = format!("examples/{name}.toml");
        let output = redirect(&["apply", "--dry-run", "--offline", &policy]);
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert!(output.stderr.is_empty(), "{name}: {output:?}");
        golden(
            &format!("{name}.sh"),
            &String::from_utf8(output.stdout).unwrap(),
        );
    }
}

#[test]
fn every_example_shows_its_differences() {
    for name in examples() {
        let policy = format!("examples/{name}.toml");
        let output = redirect(&["diff", "--offline", &policy]);
        assert_eq!(output.status.code(), Some(2), "{name}: {output:?}");
        golden(
            &format!("{name}.diff"),
            &String::from_utf8(output.stdout).unwrap(),
        );
    }
}

#[test]
fn json_holds_the_same_changes() {
    for name in examples() {
        let policy = format!("examples/{name}.toml");
        let plan = redirect(&[
            "apply",
            "--dry-run",
            "--offline",
            "--format",
            "json",
            &policy,
        ]);
        let diff = redirect(&["diff", "--offline", "--json", &policy]);
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        let diff: serde_json::Value = serde_json::from_slice(&diff.stdout).unwrap();
        let from_plan: Vec<_> = plan["changes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| &change["difference"])
            .collect();
        let from_diff: Vec<_> = diff["differences"].as_array().unwrap().iter().collect();
        assert_eq!(from_plan, from_diff, "{name}");
        assert!(!from_diff.is_empty());
    }
}

#[test]
fn the_scripts_are_sound_posix_shell() {
    // `sh -n` parses and runs nothing.
    for name in examples() {
        let policy = format!("examples/{name}.toml");
        let script = redirect(&["apply", "--dry-run", "--offline", &policy]).stdout;
        let path = std::env::temp_dir().join(format!("redirect-{}-{name}.sh", std::process::id()));
        std::fs::write(&path, script).unwrap();
        let output = Command::new("sh").arg("-n").arg(&path).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
}
