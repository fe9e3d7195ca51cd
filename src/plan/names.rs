//! The routing tables' names: a drop-in file of ours, or tagged lines where
//! iproute2 reads no drop-ins.

use std::path::Path;

use super::{Change, Ledger};
use crate::net::TableId;
use crate::observation::{FileContent, TableNames};
use crate::policy::Name;

const HEADER: &str = "# Written by redirect, and removed by `redirect teardown`.\n";
/// Ends each line of ours in everybody's file.
const TAG: &str = "\t# redirect";

/// Whether a line of [`TableNames::MAIN`] is ours.
#[must_use]
pub fn is_ours(line: &str) -> bool {
    line.trim_end_matches('\n').ends_with(TAG)
}

/// What to make so that the tables have their names, and what to remove afterwards.
#[must_use]
pub fn changes(
    names: &TableNames,
    wanted: &[(TableId, Name)],
    ledger: &Ledger,
) -> (Vec<Change>, Vec<Change>) {
    let (mut makes, mut removals) = (Vec::new(), Vec::new());
    // A table that bears its name already, by somebody else's hand, needs no second one.
    let lines: Vec<String> = wanted
        .iter()
        .filter(|(table, name)| {
            !names
                .others
                .iter()
                .any(|(number, other, _)| *number == table.0 && other == name.as_str())
        })
        .map(|(table, name)| format!("{table}\t{name}"))
        .collect();
    let in_drop_in = names.drop_ins_read && !lines.is_empty();
    if in_drop_in {
        for (path, exists) in [
            (TableNames::DIRECTORY, names.directory),
            (TableNames::DROP_IN_DIRECTORY, names.drop_in_directory),
        ] {
            if !exists {
                makes.push(Change::Directory {
                    path: path.into(),
                    from: false,
                    to: true,
                });
            }
        }
    }
    let drop_in = in_drop_in.then(|| FileContent {
        text: lines
            .iter()
            .fold(HEADER.to_owned(), |text, line| text + line + "\n"),
        mode: 0o644,
    });
    if let Some(main) = &names.main {
        let text = if names.drop_ins_read {
            strip(&main.text)
        } else {
            with(&main.text, &lines)
        };
        if text != main.text {
            let to = FileContent {
                text,
                mode: main.mode,
            };
            let change = Change::File {
                path: TableNames::MAIN.into(),
                from: Some(main.clone()),
                to: Some(to),
            };
            let only_removes = names.drop_ins_read || lines.is_empty();
            let place = if only_removes {
                &mut removals
            } else {
                &mut makes
            };
            place.push(change);
        }
    }
    if drop_in != names.drop_in {
        let gone = drop_in.is_none();
        let change = Change::File {
            path: TableNames::DROP_IN.into(),
            from: names.drop_in.clone(),
            to: drop_in,
        };
        let place = if gone { &mut removals } else { &mut makes };
        place.push(change);
    }
    if !in_drop_in {
        for path in ledger.directories.iter().rev() {
            let exists = (path == Path::new(TableNames::DIRECTORY) && names.directory)
                || (path == Path::new(TableNames::DROP_IN_DIRECTORY) && names.drop_in_directory);
            // What others have since put there keeps it, and those above it.
            let is_shared = names.shared.iter().any(|shared| shared.starts_with(path));
            if exists && !is_shared {
                removals.push(Change::Directory {
                    path: path.clone(),
                    from: true,
                    to: false,
                });
            }
        }
    }
    (makes, removals)
}

/// `text` without our lines, byte for byte as it was before them.
fn strip(text: &str) -> String {
    let mut kept: String = text
        .split_inclusive('\n')
        .filter(|line| !is_ours(line))
        .collect();
    // Where the file's last line had no end, ours came with the end before them.
    if text.ends_with(TAG) && kept.ends_with('\n') {
        kept.pop();
    }
    kept
}

/// `text` with `lines` in place of whatever lines of ours it has.
fn with(text: &str, lines: &[String]) -> String {
    let text = strip(text);
    let ended = text.is_empty() || text.ends_with('\n');
    lines.iter().fold(text, |text, line| {
        if ended {
            format!("{text}{line}{TAG}\n")
        } else {
            format!("{text}\n{line}{TAG}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Vec<(TableId, Name)> {
        vec![
            (TableId(103), Name::new("scb").unwrap()),
            (TableId(104), Name::new("b").unwrap()),
        ]
    }

    fn file(text: &str) -> FileContent {
        FileContent {
            text: text.to_owned(),
            mode: 0o644,
        }
    }

    #[test]
    fn lines_come_and_go_without_a_trace() {
        for text in [
            "",
            "255\tlocal\n",
            "255\tlocal",
            "255\tlocal\n\n",
            "\n",
            "# redirect\n",
        ] {
            let lines = ["103\tscb".to_owned(), "104\tb".to_owned()];
            let grown = with(text, &lines);
            assert!(grown.contains("103\tscb\t# redirect"), "{grown:?}");
            assert_eq!(strip(&grown), text);
            assert_eq!(with(&grown, &lines), grown);
        }
    }

    #[test]
    fn a_drop_in_where_drop_ins_are_read() {
        let names = TableNames {
            main: Some(file("255\tlocal\n")),
            directory: true,
            drop_ins_read: true,
            ..TableNames::default()
        };
        let (makes, removals) = changes(&names, &wanted(), &Ledger::default());
        assert!(removals.is_empty());
        let [
            Change::Directory { path, to: true, .. },
            Change::File { to: Some(to), .. },
        ] = &*makes
        else {
            panic!("{makes:?}")
        };
        assert_eq!(path, Path::new(TableNames::DROP_IN_DIRECTORY));
        assert_eq!(to.text, format!("{HEADER}103\tscb\n104\tb\n"));
    }

    #[test]
    fn lines_where_they_are_not() {
        let names = TableNames {
            main: Some(file("255\tlocal\n")),
            directory: true,
            ..TableNames::default()
        };
        let (makes, removals) = changes(&names, &wanted(), &Ledger::default());
        let [
            Change::File {
                path,
                from: Some(from),
                to: Some(to),
            },
        ] = &*makes
        else {
            panic!("{makes:?}")
        };
        assert!(removals.is_empty());
        assert_eq!(
            (path.as_path(), &*from.text),
            (Path::new(TableNames::MAIN), "255\tlocal\n")
        );
        assert_eq!(
            to.text,
            "255\tlocal\n103\tscb\t# redirect\n104\tb\t# redirect\n"
        );
    }

    #[test]
    fn nothing_where_there_is_nothing_to_write_to() {
        let (makes, removals) = changes(&TableNames::default(), &wanted(), &Ledger::default());
        assert_eq!((makes, removals), (vec![], vec![]));
    }

    #[test]
    fn a_name_given_by_others_is_enough() {
        let names = TableNames {
            drop_ins_read: true,
            directory: true,
            drop_in_directory: true,
            others: vec![
                (103, "scb".to_owned(), TableNames::MAIN.into()),
                (104, "b".to_owned(), TableNames::MAIN.into()),
            ],
            ..TableNames::default()
        };
        assert_eq!(
            changes(&names, &wanted(), &Ledger::default()),
            (vec![], vec![])
        );
    }

    #[test]
    fn a_folder_of_ours_goes_with_the_last_name() {
        let names = TableNames {
            drop_in: Some(file(HEADER)),
            directory: true,
            drop_in_directory: true,
            drop_ins_read: true,
            ..TableNames::default()
        };
        let ledger = Ledger {
            directories: vec![TableNames::DROP_IN_DIRECTORY.into()],
            ..Ledger::default()
        };
        let (_, removals) = changes(&names, &[], &ledger);
        assert!(matches!(
            &*removals,
            [
                Change::File { to: None, .. },
                Change::Directory { to: false, .. }
            ]
        ));
    }
}
