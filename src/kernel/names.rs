//! How this router names its routing tables: iproute2's files, read as `ip` reads them.
//!
//! | iproute2 | reads |
//! |---|---|
//! | up to 4.3 | `/etc/iproute2/rt_tables` |
//! | since 4.4 | also `/etc/iproute2/rt_tables.d/*.conf` |
//! | since 6.5 | where a file is missing in `/etc/iproute2`, its namesake in `/usr/share/iproute2` or `/usr/lib/iproute2` |
//!
//! (`lib/rt_names.c`.) Whether this one reads drop-ins shows without running it: their folder is
//! there, or the distribution's files are under `/usr`; where neither is (some
//! distributions install no empty folders), the program itself holds the folder's name, or not.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{KernelError, files, process};
use crate::observation::{FileContent, TableNames};
use crate::plan::names::is_ours;

/// Where distributions put their own files, since iproute2 6.5.
const DISTRIBUTION: [&str; 2] = ["/usr/share/iproute2", "/usr/lib/iproute2"];
/// Longest file that is read, in bytes; each is a handful of lines.
const LIMIT: u64 = 1 << 20;
/// Largest program that is looked into, in bytes; `ip` has under a million, `busybox` two.
const PROGRAM_LIMIT: u64 = 64 << 20;

/// How the tables are named here.
///
/// # Errors
/// If a file that concerns us cannot be read.
pub fn observe() -> Result<TableNames, KernelError> {
    observe_below(Path::new("/"), || {
        process::find("ip").is_some_and(|program| names_drop_ins(&program))
    })
}

/// As [`observe`], with `root` in place of `/`; `ip_names_drop_ins` is asked only if nothing
/// else tells.
fn observe_below(
    root: &Path,
    ip_names_drop_ins: impl FnOnce() -> bool,
) -> Result<TableNames, KernelError> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let main = at(TableNames::MAIN);
    let distribution: Vec<PathBuf> = (DISTRIBUTION.iter())
        .map(|path| at(path))
        .filter(|path| path.join("rt_tables").exists())
        .collect();
    let folder = entries(&at(TableNames::DIRECTORY));
    let drop_ins = entries(&at(TableNames::DROP_IN_DIRECTORY));
    let drop_ins_read = drop_ins.is_some() || !distribution.is_empty() || ip_names_drop_ins();

    let mut sources = Vec::new();
    if main.exists() {
        sources.push(main.clone());
    } else {
        sources.extend(distribution.iter().map(|folder| folder.join("rt_tables")));
    }
    if drop_ins_read {
        let mut seen = BTreeSet::new();
        let folders = std::iter::once(at(TableNames::DROP_IN_DIRECTORY))
            .chain(distribution.iter().map(|folder| folder.join("rt_tables.d")));
        for folder in folders {
            for name in entries(&folder).unwrap_or_default() {
                let path = folder.join(&name);
                let is_drop_in = path.extension().is_some_and(|suffix| suffix == "conf");
                if is_drop_in && path != at(TableNames::DROP_IN) && seen.insert(name) {
                    sources.push(path);
                }
            }
        }
    }
    let mut others = Vec::new();
    for source in sources {
        others.extend(
            (named_in(&source)?.into_iter()).map(|(number, name)| (number, name, source.clone())),
        );
    }
    let shared = [
        (
            TableNames::DIRECTORY,
            &folder,
            TableNames::DROP_IN_DIRECTORY,
        ),
        (
            TableNames::DROP_IN_DIRECTORY,
            &drop_ins,
            TableNames::DROP_IN,
        ),
    ]
    .into_iter()
    .filter(|(_, entries, ours)| {
        let ours = Path::new(ours).file_name();
        (entries.iter().flatten()).any(|name| Some(name.as_os_str()) != ours)
    })
    .map(|(path, ..)| path.into())
    .collect();
    Ok(TableNames {
        main: editable(&main)?,
        drop_in: files::read(&at(TableNames::DROP_IN), LIMIT)?,
        directory: folder.is_some(),
        drop_in_directory: drop_ins.is_some(),
        drop_ins_read,
        shared,
        others,
    })
}

/// What is in a folder, sorted; `None` if there is no such folder.
fn entries(folder: &Path) -> Option<Vec<OsString>> {
    let mut names: Vec<OsString> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    names.sort();
    Some(names)
}

/// Everybody's file, if we could edit it and put it back byte for byte. A link, or
/// what is no text, is not edited: the table then goes without its name.
fn editable(path: &Path) -> Result<Option<FileContent>, KernelError> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Ok(None);
    }
    let read = files::read_with_mode(path, LIMIT)?;
    Ok(read.and_then(|(bytes, mode)| {
        let text = String::from_utf8(bytes).ok()?;
        Some(FileContent { text, mode })
    }))
}

/// The numbers and names in one file of others', links followed. Lines that `ip` would not
/// understand are passed over, as are ours.
fn named_in(path: &Path) -> Result<Vec<(u32, String)>, KernelError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let bytes = files::read_bytes(&target, LIMIT)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .filter(|line| !is_ours(line))
        .filter_map(named)
        .collect())
}

fn named(line: &str) -> Option<(u32, String)> {
    let mut words = line.split_whitespace();
    let number = words.next().filter(|word| !word.starts_with('#'))?;
    let name = words.next()?;
    if words.next().is_some_and(|word| !word.starts_with('#')) {
        return None;
    }
    let number = match number.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok()?,
        None => number.parse().ok()?,
    };
    Some((number, name.to_owned()))
}

/// Whether the folder of drop-ins is named in the text of `program`.
fn names_drop_ins(program: &Path) -> bool {
    let needle = b"rt_tables.d";
    fs::canonicalize(program)
        .ok()
        .and_then(|program| files::read_bytes(&program, PROGRAM_LIMIT).ok()?)
        .is_some_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::net::TableId;
    use crate::plan::{Change, Ledger, names};
    use crate::policy::Name;
    use crate::test_support::Scratch;

    /// A root with these files; a name that ends with `/` is a folder.
    fn root(test: &str, entries: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::new(&format!("names-{test}"));
        for (name, text) in entries {
            let path = scratch.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if name.ends_with('/') {
                fs::create_dir_all(&path).unwrap();
            } else {
                let content = FileContent {
                    text: (*text).to_owned(),
                    mode: 0o644,
                };
                files::replace(&path, &content).unwrap();
            }
        }
        scratch
    }

    fn observe_in(root: &Scratch, ip_names_drop_ins: bool) -> TableNames {
        observe_below(root.path(), || ip_names_drop_ins).unwrap()
    }

    fn others(names: &TableNames) -> Vec<(u32, &str)> {
        let others = names.others.iter();
        others.map(|(number, name, _)| (*number, &**name)).collect()
    }

    #[test]
    fn lines_are_read_as_ip_reads_them() {
        for (line, named_so) in [
            ("103 scb", Some((103, "scb"))),
            ("\t 0x67\tscb # ours", Some((103, "scb"))),
            ("103 scb #", Some((103, "scb"))),
            ("# 103 scb", None),
            ("#103 scb", None),
            ("", None),
            ("scb 103", None),
            ("103", None),
            ("103 a b", None),
            ("4294967296 big", None),
            ("-1 small", None),
        ] {
            let read = named(line);
            let read = read.as_ref().map(|(number, name)| (*number, &**name));
            assert_eq!(read, named_so, "{line:?}");
        }
    }

    /// Debian 12: iproute2 6.1.
    #[test]
    fn files_under_etc_and_a_folder_of_drop_ins() {
        let root = root(
            "etc",
            &[
                ("etc/iproute2/rt_tables", "255\tlocal\n#\n#1\tinr.ruhep\n"),
                ("etc/iproute2/rt_tables.d/README", "7 not-a-name\n"),
                ("etc/iproute2/rt_tables.d/b.conf", "200 isp2\n"),
                ("etc/iproute2/rt_tables.d/redirect.conf", "103\tscb\n"),
            ],
        );
        let names = observe_in(&root, false);
        assert_eq!(others(&names), [(255, "local"), (200, "isp2")]);
        assert!(names.drop_ins_read && names.directory && names.drop_in_directory);
        assert_eq!(names.shared.len(), 2);
        assert_eq!(names.drop_in.unwrap().text, "103\tscb\n");
    }

    /// Since 6.5: nothing under `/etc`, or only what the administrator put there.
    #[test]
    fn files_under_usr() {
        let distribution = [
            ("usr/share/iproute2/rt_tables", "255 local\n"),
            ("usr/share/iproute2/rt_tables.d/a.conf", "201 theirs\n"),
            ("usr/share/iproute2/rt_tables.d/b.conf", "202 hidden\n"),
        ];
        let pristine = root("usr", &distribution);
        let names = observe_in(&pristine, false);
        assert_eq!(
            others(&names),
            [(255, "local"), (201, "theirs"), (202, "hidden")]
        );
        assert!(names.drop_ins_read && !names.directory && names.main.is_none());
        let local = [
            ("etc/iproute2/rt_tables", "99 own\n"),
            ("etc/iproute2/rt_tables.d/b.conf", "203 shown\n"),
        ];
        let changed = root("usr-etc", &[&distribution[..], &local].concat());
        let names = observe_in(&changed, false);
        assert_eq!(
            others(&names),
            [(99, "own"), (203, "shown"), (201, "theirs")]
        );
    }

    #[test]
    fn without_a_folder_the_program_tells() {
        let root = root("old", &[("etc/iproute2/rt_tables", "255 local\n")]);
        assert!(!observe_in(&root, false).drop_ins_read);
        assert!(observe_in(&root, true).drop_ins_read);
        let new = root.path().join("new-ip");
        let text = "\x7fELF…/etc/iproute2/rt_tables.d/%s…".to_owned();
        files::replace(&new, &FileContent { text, mode: 0o755 }).unwrap();
        let link = root.path().join("ip");
        symlink(&new, &link).unwrap();
        assert!(names_drop_ins(&link));
        assert!(!names_drop_ins(&root.path().join("etc/iproute2/rt_tables")));
        assert!(!names_drop_ins(Path::new("/nowhere")));
    }

    #[test]
    fn a_link_or_what_is_no_text_is_read_and_not_edited() {
        let root = root(
            "link",
            &[("nix/rt_tables", "99 own\n"), ("etc/iproute2/", "")],
        );
        let main = root.path().join("etc/iproute2/rt_tables");
        symlink(root.path().join("nix/rt_tables"), &main).unwrap();
        let names = observe_in(&root, false);
        assert_eq!((others(&names), &names.main), (vec![(99, "own")], &None));
    }

    /// Each way in which a system can have its names, there and back.
    #[test]
    fn names_come_and_go_without_a_trace() {
        let etc: &[(&str, &str)] = &[("etc/iproute2/rt_tables", "255 local\n")];
        let usr: &[(&str, &str)] = &[("usr/share/iproute2/rt_tables", "255 local\n")];
        let unended: &[(&str, &str)] = &[("etc/iproute2/rt_tables", "255 local")];
        let folder: &[(&str, &str)] = &[("etc/iproute2/rt_tables.d/", "")];
        for (index, (entries, reads)) in [
            (etc, true),
            (etc, false),
            (usr, true),
            (unended, false),
            (folder, true),
            (&[], true),
            (&[], false),
        ]
        .into_iter()
        .enumerate()
        {
            let root = root(&format!("trace-{index}"), entries);
            fs::create_dir_all(root.path().join("etc")).unwrap();
            let pristine = tree(root.path());
            let wanted = [(TableId(103), Name::new("scb").unwrap())];
            let ledger = Ledger::default();
            let (makes, _) = names::changes(&observe_in(&root, reads), &wanted, &ledger);
            for change in &makes {
                perform(root.path(), change);
            }
            let ledger = ledger.after(&crate::plan::Plan {
                changes: makes.clone(),
            });
            // Seen again, they are ours, and all that is wanted.
            let names = observe_in(&root, reads);
            assert!(!others(&names).contains(&(103, "scb")));
            let again = names::changes(&names, &wanted, &ledger);
            assert_eq!(again, (vec![], vec![]), "{index}");
            let (_, removals) = names::changes(&names, &[], &ledger);
            for change in &removals {
                perform(root.path(), change);
            }
            assert_eq!(tree(root.path()), pristine, "{index}");
            assert_eq!(makes.is_empty(), entries.is_empty() && !reads, "{index}");
        }
    }

    /// What others put into a folder of ours keeps it.
    #[test]
    fn a_folder_that_others_use_stays() {
        let usr = [("usr/share/iproute2/rt_tables", "255 local\n")];
        let root = root("shared", &usr);
        fs::create_dir_all(root.path().join("etc")).unwrap();
        let wanted = [(TableId(103), Name::new("scb").unwrap())];
        let (makes, _) = names::changes(&observe_in(&root, true), &wanted, &Ledger::default());
        for change in &makes {
            perform(root.path(), change);
        }
        let ledger = Ledger::default().after(&crate::plan::Plan { changes: makes });
        let theirs = root.path().join("etc/iproute2/rt_tables.d/theirs.conf");
        let text = "200 isp2\n".to_owned();
        files::replace(&theirs, &FileContent { text, mode: 0o644 }).unwrap();
        let (_, removals) = names::changes(&observe_in(&root, true), &[], &ledger);
        for change in &removals {
            perform(root.path(), change);
        }
        assert_eq!(
            tree(&root.path().join("etc")),
            [
                "iproute2/",
                "iproute2/rt_tables.d/",
                "iproute2/rt_tables.d/theirs.conf: 200 isp2\n"
            ]
        );
    }

    fn perform(root: &Path, change: &Change) {
        let at = |path: &Path| root.join(path.strip_prefix("/").unwrap());
        match change {
            Change::Directory { path, to: true, .. } => {
                files::make_directory(&at(path), 0o755).unwrap();
            }
            Change::Directory { path, .. } => files::remove_directory(&at(path)).unwrap(),
            Change::File {
                path, to: Some(to), ..
            } => files::replace(&at(path), to).unwrap(),
            Change::File { path, .. } => files::remove(&at(path)).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Everything below `folder`, with contents.
    fn tree(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![folder.to_owned()];
        while let Some(next) = open.pop() {
            for name in entries(&next).unwrap() {
                let path = next.join(name);
                let shown = path.strip_prefix(folder).unwrap().display().to_string();
                if path.is_dir() {
                    found.push(format!("{shown}/"));
                    open.push(path);
                } else {
                    found.push(format!("{shown}: {}", fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}
