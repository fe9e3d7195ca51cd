//! The text a policy is read from, kept whole: the journal stores it, and a later run can read
//! it again with no files around.

use std::ops::Range;
use std::path::{Path, PathBuf};

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
    /// List files that could not be read; [`super::read`] refuses the policy
    /// because of them, and points to where they are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A list file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Its path as the policy has it.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A list file that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its path as the policy has it.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Bytes of one of a [`Source`]'s files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// 0 is the policy file, `n` is `lists[n - 1]`.
    pub file: usize,
    /// First byte.
    pub start: usize,
    /// First byte after it.
    pub end: usize,
}

impl Span {
    /// Bytes of the policy file itself.
    #[must_use]
    pub fn of_policy(range: Range<usize>) -> Self {
        Self {
            file: 0,
            start: range.start,
            end: range.end,
        }
    }
}

/// A place as people name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The file's name.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The line of the last character.
    pub end_line: usize,
    /// The column after the last character.
    pub end_column: usize,
}

/// A place, in both ways of naming it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// For machines that have the text.
    #[serde(skip)]
    pub span: Span,
    /// For people.
    #[serde(flatten)]
    pub position: Position,
}

impl Source {
    /// A policy that names no list files, from text alone.
    #[must_use]
    pub fn from_text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            ..Self::default()
        }
    }

    /// The text of a file; empty if there is no such file.
    #[must_use]
    pub fn text_of(&self, file: usize) -> &str {
        match file.checked_sub(1) {
            None => &self.text,
            Some(list) => self.lists.get(list).map_or("", |list| list.text.as_str()),
        }
    }

    /// The name of a file, as seen from where the policy's name was typed.
    #[must_use]
    pub fn name_of(&self, file: usize) -> String {
        match file.checked_sub(1).and_then(|list| self.lists.get(list)) {
            None => self.name.clone(),
            Some(list) => self.beside(&list.path),
        }
    }

    /// A path that the policy names, as seen from where the policy's own name was typed.
    #[must_use]
    pub fn beside(&self, path: &Path) -> String {
        Path::new(&self.name)
            .parent()
            .map_or_else(|| path.to_owned(), |folder| folder.join(path))
            .display()
            .to_string()
    }

    /// Lines and columns for `span`.
    #[must_use]
    pub fn place(&self, span: Span) -> Place {
        let text = self.text_of(span.file);
        let (line, column) = line_and_column(text, span.start);
        let (end_line, end_column) = line_and_column(text, span.end);
        Place {
            span,
            position: Position {
                file: self.name_of(span.file),
                line,
                column,
                end_line,
                end_column,
            },
        }
    }
}

/// Line and column, counted from 1, of the byte at `at`.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = text.get(..at).unwrap_or_default();
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before
        .get(start..)
        .unwrap_or_default()
        .trim_start_matches('\u{feff}')
        .chars()
        .count()
        + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        let text = "\u{feff}aä\nbö ü";
        assert_eq!(line_and_column(text, 3), (1, 1));
        assert_eq!(line_and_column(text, 6), (1, 3));
        assert_eq!(line_and_column(text, 7), (2, 1));
        assert_eq!(line_and_column(text, text.len()), (2, 5));
        assert_eq!(line_and_column(text, 1000), (2, 5));
        assert_eq!(line_and_column("", 0), (1, 1));
    }
}
