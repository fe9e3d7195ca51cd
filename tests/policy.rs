//! Policies, good and bad, and all that the reader says about them.
//!
//! Each folder under `tests/policy` has a `policy.toml`, its list files, and `expected.txt`: the errors and
//! warnings as shown, and, if it is accepted, the policy. `UPDATE_GOLDEN=1 cargo test
//! --test policy` writes these anew; read the difference before committing it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use redirect::policy::{self, Code, Source, Style};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Loads `policy` from a copy of its folder: the modes of a checkout depend on the umask, and
/// the reader refuses files that a group may write.
fn load(folder: &Path, policy: &str) -> Source {
    let name = folder.file_name().unwrap();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("policy-{}-{policy}", std::process::id()))
        .join(name);
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            let to = copy.join(from.file_name().unwrap());
            fs::copy(&from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    let mut source = Source::load(&copy.join(policy)).unwrap();
    policy.clone_into(&mut source.name);
    fs::remove_dir_all(&copy).unwrap();
    source
}

fn shown(source: &Source) -> String {
    match policy::read(source) {
        Ok(reading) => {
            let mut out = policy::render(&reading.warnings, source, Style::default());
            if !out.is_empty() {
                out.push('\n');
            }
            let _ = writeln!(
                out,
                "accepted:\n{}",
                serde_json::to_string_pretty(&reading.policy).unwrap()
            );
            out
        }
        Err(errors) => policy::render(&errors.diagnostics, source, Style::default()),
    }
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(root().join("tests/policy"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
}

#[test]
fn every_story_ends_as_expected() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for folder in folders() {
        let got = shown(&load(&folder, "policy.toml"));
        let file = folder.join("expected.txt");
        if update {
            #[expect(clippy::disallowed_methods, reason = "a test writes its own fixture")]
            fs::write(&file, &got).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if got != expected {
            wrong.push(format!("=== {}\n{got}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_story() {
    let stories: String = folders()
        .iter()
        .map(|folder| fs::read_to_string(folder.join("expected.txt")).unwrap())
        .collect();
    for code in Code::ALL {
        assert!(
            stories.contains(&format!("[{code}]")),
            "no folder under tests/policy shows {code}: {}",
            code.summary()
        );
    }
}
