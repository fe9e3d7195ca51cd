//! Plan fixtures, one folder a story.
//!
//! | file | holds |
//! |---|---|
//! | `story.txt` | what it is about |
//! | `router.json` | how the router differs from a clean one that has all that the policies name (a JSON merge patch, RFC 7396, of the observation); may be left out |
//! | `before.toml` | the policy that was applied before; may be left out |
//! | `policy.toml` | the policy that is wanted; left out: teardown |
//! | `plan.txt` | refusals, warnings, and the changes in order |
//! | `revert.txt` | the changes that take the plan back |
//!
//! `UPDATE_GOLDEN=1 cargo test --test plan` writes the last two anew; read the difference then.
//!
//! For every story, performing the plan leaves nothing to plan, and reverting it leaves
//! exactly the router that was there before.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and writes its own fixtures"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use redirect::kernel::Kernel;
use redirect::kernel::fake::FakeKernel;
use redirect::observation::Observed;
use redirect::plan::planner::{self, Planned, Stage};
use redirect::plan::{Ledger, Plan};
use redirect::policy::{self, Policy, Source};
use redirect::render::difference;
use serde_json::Value;

fn read(folder: &Path, name: &str) -> Option<Policy> {
    let text = fs::read_to_string(folder.join(name)).ok()?;
    let source = Source::from_text(name, text);
    Some(policy::read(&source).unwrap().policy)
}

/// RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(serde_json::Map::new());
    }
    for (key, value) in patch {
        let fields = into.as_object_mut().unwrap();
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// A clean router that has the links and neighbours of both policies.
fn router(folder: &Path, policies: [&Policy; 2]) -> Observed {
    let mut all = Policy::default();
    for policy in policies {
        all.appliances.extend(policy.appliances.iter().cloned());
        all.redirects.extend(policy.redirects.iter().cloned());
    }
    let mut observed = serde_json::to_value(Observed::clean(&all)).unwrap();
    if let Ok(patch) = fs::read_to_string(folder.join("router.json")) {
        merge(&mut observed, serde_json::from_str(&patch).unwrap());
    }
    serde_json::from_value(observed).unwrap()
}

fn perform(kernel: &mut FakeKernel, plan: &Plan) {
    for change in &plan.changes {
        kernel.perform(change).unwrap();
    }
}

fn shown(planned: &Planned) -> String {
    let mut text = String::new();
    for (kind, findings) in [
        ("refused", &planned.refusals),
        ("warning", &planned.warnings),
    ] {
        for finding in findings {
            let key = finding.key.as_deref().unwrap_or("-");
            writeln!(
                text,
                "{kind} {key}: {}\n    hint: {}",
                finding.message, finding.hint
            )
            .unwrap();
        }
    }
    text + &difference::text(&difference::differences(&planned.plan), false)
}

fn golden(path: &Path, found: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| !value.is_empty()) {
        fs::write(path, found).unwrap();
    }
    if fs::read_to_string(path).unwrap_or_default() != found {
        wrong.push(format!("=== {}\n{found}", path.display()));
    }
}

fn tell(folder: &Path, wrong: &mut Vec<String>) {
    assert!(
        folder.join("story.txt").exists(),
        "{} has no story",
        folder.display()
    );
    let before = read(folder, "before.toml").unwrap_or_default();
    let policy = read(folder, "policy.toml").unwrap_or_default();
    let mut kernel = FakeKernel::new(router(folder, [&before, &policy]));
    let clean = kernel.observed.clone();
    let first = planner::plan(
        &before,
        &kernel.observed,
        &Ledger::default(),
        Stage::Complete,
    )
    .plan;
    perform(&mut kernel, &first);
    let ledger = Ledger::default().after(&first);

    let there = kernel.observed.clone();
    let planned = planner::plan(&policy, &there, &ledger, Stage::Complete);
    golden(&folder.join("plan.txt"), &shown(&planned), wrong);
    let revert = planned.plan.clone().inverse();
    let reverted = difference::text(&difference::differences(&revert), false);
    golden(&folder.join("revert.txt"), &reverted, wrong);
    if !planned.refusals.is_empty() {
        return;
    }
    perform(&mut kernel, &planned.plan);
    let after = ledger.after(&planned.plan);
    let left = planner::plan(&policy, &kernel.observed, &after, Stage::Complete).plan;
    assert!(
        left.is_empty(),
        "{}: still to do: {left:?}",
        folder.display()
    );
    perform(&mut kernel, &revert);
    assert_eq!(kernel.observed, there, "{}: reverted", folder.display());
    let teardown = planner::plan(
        &Policy::default(),
        &kernel.observed,
        &ledger,
        Stage::Complete,
    )
    .plan;
    perform(&mut kernel, &teardown);
    if !before.is_empty() {
        assert_eq!(kernel.observed, clean, "{}: torn down", folder.display());
    }
}

#[test]
fn every_story_is_as_written() {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
    folders.sort();
    assert!(folders.len() >= 10, "{folders:?}");
    let mut wrong = Vec::new();
    for folder in &folders {
        tell(folder, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
