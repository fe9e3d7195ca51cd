//! The printed script does what apply does: for every policy in examples/, one router gets `apply`, another
//! the output of `apply --dry-run`, and both are the same afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::snapshot::Snapshot;

fn policies() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut policies: Vec<PathBuf> = fs::read_dir(examples)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    policies.sort();
    assert!(policies.len() >= 5, "{policies:?}");
    policies
}

#[test]
fn the_printed_script_does_what_apply_does() {
    for policy in policies() {
        let name = policy.file_name().unwrap().to_str().unwrap();
        let policy = policy.to_str().unwrap();
        let (Some(one), Some(other)) = (Lab::up(name, &[]), Lab::up(name, &[])) else {
            return;
        };
        let pristine = Snapshot::of(&other);
        Snapshot::of(&one)
            .without_handles()
            .assert_is(&pristine.without_handles());

        let script = other
            .redirect(&["apply", "--dry-run", policy])
            .ended(0)
            .stdout;
        Snapshot::of(&other).assert_is(&pristine);
        one.redirect(&["apply", policy]).ended(0);
        other.run_with("router", &["sh", "-eu"], &script).ended(0);
        Snapshot::of(&other)
            .without_handles()
            .assert_is(&Snapshot::of(&one).without_handles());
        // What the script left is what apply wants.
        other.redirect(&["diff", policy]).ended(0);

        let script = one.redirect(&["teardown", "--dry-run"]).ended(0).stdout;
        one.run_with("router", &["sh", "-eu"], &script).ended(0);
        Snapshot::of(&one)
            .without_handles()
            .assert_is(&pristine.without_handles());
    }
}
