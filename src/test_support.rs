//! What tests of several modules need.

use std::fs;
use std::path::{Path, PathBuf};

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
