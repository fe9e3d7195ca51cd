//! The text a policy is read from, kept whole: the journal stores it, and a later run can read
//! it again with no files around.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that a policy was read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The policy file's path as typed, or `<stdin>`.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The list files that it names, in order of appearance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lists: Vec<List>,
}

/// A list file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Its path as the policy has it.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}
