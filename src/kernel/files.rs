//! The one home for writing files.
//!
//! A file is replaced whole or not at all, also if the power fails: a new one beside it,
//! synced, renamed over it, the directory synced. Both syncs are needed, in this order: a name that
//! reached the disk before what it names would stand for an empty file, and without the second
//! one the old file could be back. Several files are replaced with as few waits as one, see
//! [`replace_all`].
//!
//! Symbolic links are never followed in the last component: what they point at is not ours to
//! replace, and replacing the link itself would change more than was asked for.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

use super::KernelError;
use crate::observation::FileContent;

/// Bits of a file's mode that `chmod` sets.
const PERMISSIONS: u32 = 0o7777;

/// How the name of a file that is being written ends.
const TEMPORARY: &str = ".redirect-new";

/// The file at `path`, or `None` if there is none.
///
/// # Errors
/// If it is longer than `limit` bytes, a symbolic link, not a plain file, not UTF-8, or
/// cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Option<FileContent>, KernelError> {
    let Some((bytes, mode)) = read_with_mode(path, limit)? else {
        return Ok(None);
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(FileContent { text, mode })),
        Err(_) => Err(KernelError::because(
            format!("cannot read `{}`", path.display()),
            "it is not UTF-8 text",
        )),
    }
}

/// The bytes of the file at `path`, or `None` if there is none.
///
/// # Errors
/// If it is longer than `limit` bytes, a symbolic link, not a plain file, or cannot be read.
pub fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, KernelError> {
    Ok(read_with_mode(path, limit)?.map(|(bytes, _)| bytes))
}

/// The bytes and the mode of the file at `path`; as [`read_bytes`].
pub(super) fn read_with_mode(
    path: &Path,
    limit: u64,
) -> Result<Option<(Vec<u8>, u32)>, KernelError> {
    let action = || format!("cannot read `{}`", path.display());
    let failed = |error| explain(action(), error);
    // Non-blocking: a pipe put there by someone must not hold us up.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Err(error) if is_absent(&error) => return Ok(None),
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KernelError::because(action(), "it is not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(KernelError::because(
            action(),
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(Some((bytes, metadata.mode() & PERMISSIONS)))
}

/// Makes `path` a file with this text and mode, in one step; keeps the owner of one that is
/// there. `path` should be absolute.
///
/// # Errors
/// If what is there is no plain file, or something cannot be written. `path` is then as it was,
/// unless only the sync of its directory failed.
pub fn replace(path: &Path, content: &FileContent) -> Result<(), KernelError> {
    replace_all(&[(path.to_owned(), &content.text)], content.mode).map_err(|(_, error)| error)
}

/// The same for several files of one directory and one mode, the last of which refers to those
/// before it: each is replaced in one step, in this order, and all are safe from a loss of power
/// once this returns.
///
/// All are on their way to the disk before the first is waited for, so that a file system which
/// commits its own journal for one of them (ext4, XFS) does so for all: that is one wait, and one
/// for the names.
///
/// # Errors
/// As [`replace`], and for which file. The last one is as it was if any sync of content failed;
/// those before it may have been replaced.
pub fn replace_all(files: &[(PathBuf, &str)], mode: u32) -> Result<(), (PathBuf, KernelError)> {
    let failed = |path: &Path, error| (path.to_owned(), unwritten(path, error));
    let mut written = Vec::new();
    for (path, text) in files {
        let beside = Beside::write(path, text, mode).map_err(|error| (path.clone(), error))?;
        written.push(beside);
    }
    // The last first: once that is on the disk, most likely so are those before it.
    for beside in written.iter().rev() {
        (beside.file.sync_all()).map_err(|error| failed(beside.path, error))?;
    }
    for beside in written {
        let path = beside.path;
        beside.rename().map_err(|error| failed(path, error))?;
    }
    match files.last() {
        Some((path, _)) => sync_parent(path).map_err(|error| failed(path, error)),
        None => Ok(()),
    }
}

fn unwritten(path: &Path, error: io::Error) -> KernelError {
    explain(format!("cannot write `{}`", path.display()), error)
}

/// Makes a new file of these bytes, which nobody but its owner may read.
///
/// # Errors
/// If something is there already, or it cannot be written; nothing is left then.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    let failed = |error| explain(format!("cannot write `{}`", path.display()), error);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        let _ = fs::remove_file(path);
        return Err(failed(error));
    }
    Ok(())
}

/// New content, beside the file that it is for; removed unless it takes that one's place.
struct Beside<'a> {
    path: &'a Path,
    temporary: PathBuf,
    file: File,
    is_named: bool,
}

impl<'a> Beside<'a> {
    /// Writes `text` and sends it on its way to the disk, without waiting.
    fn write(path: &'a Path, text: &str, mode: u32) -> Result<Self, KernelError> {
        let failed = |error| unwritten(path, error);
        let owner = match fs::symlink_metadata(path) {
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(failed(error)),
            Ok(found) if found.is_file() => Some((found.uid(), found.gid())),
            Ok(found) if found.is_symlink() => {
                return Err(failed(io::Error::from_raw_os_error(libc::ELOOP)));
            }
            Ok(_) => {
                let action = format!("cannot write `{}`", path.display());
                return Err(KernelError::because(action, "it is not a plain file"));
            }
        };
        let temporary = temporary(path).map_err(failed)?;
        let mut this = Self {
            path,
            file: create_anew(&temporary).map_err(failed)?,
            temporary,
            is_named: false,
        };
        this.fill(text, mode, owner).map_err(failed)?;
        Ok(this)
    }

    fn fill(&mut self, text: &str, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        if let Some((user, group)) = owner {
            let ours = self.file.metadata()?;
            if (ours.uid(), ours.gid()) != (user, group) {
                fchown(&self.file, Some(user), Some(group))?;
            }
        }
        // After the owner: changing that one clears the set-id bits.
        let mode = Permissions::from_mode(mode & PERMISSIONS);
        self.file.set_permissions(mode)?;
        // What is not to stay in memory is written out, now (`mm/fadvise.c`, `generic_fadvise`).
        // Where that has no effect, the sync takes a little longer.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    fn rename(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, self.path)?;
        self.is_named = true;
        Ok(())
    }
}

fn create_anew(path: &Path) -> io::Result<File> {
    let create = || {
        // Nobody else may read it before its mode is set, nor put a link in its place.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
    };
    match create() {
        // Left over by a run of ours that was killed: the name is ours, and runs hold a lock.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        other => other,
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        if !self.is_named {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes the file at `path`.
///
/// # Errors
/// If there is none, if it is no plain file, or if it cannot be removed.
pub fn remove(path: &Path) -> Result<(), KernelError> {
    let failed = |error| explain(format!("cannot remove `{}`", path.display()), error);
    let found = fs::symlink_metadata(path).map_err(failed)?;
    if found.is_symlink() {
        return Err(failed(io::Error::from_raw_os_error(libc::ELOOP)));
    }
    fs::remove_file(path).map_err(failed)?;
    // What a killed run may have left beside it.
    if let Ok(beside) = temporary(path) {
        let _ = fs::remove_file(beside);
    }
    sync_parent(path).map_err(failed)
}

/// Takes the file at `path` from what is in it to what is to be in it; `None`: there is none.
///
/// # Errors
/// If something else than `from` is there by now, or it cannot be written. It is then
/// as it was.
pub fn change(
    path: &Path,
    from: Option<&FileContent>,
    to: Option<&FileContent>,
) -> Result<(), KernelError> {
    let limit = from.map_or(0, |from| from.text.len() as u64);
    let is_as_expected = match read_with_mode(path, limit) {
        Ok(Some((bytes, mode))) => {
            from.is_some_and(|from| from.text.as_bytes() == bytes && from.mode == mode)
        }
        Ok(None) => from.is_none(),
        // Longer than it should be.
        Err(error) if error.source.is_none() => false,
        Err(error) => return Err(error),
    };
    if !is_as_expected {
        return Err(KernelError::because(
            format!("cannot change `{}`", path.display()),
            "somebody else has just changed it",
        )
        .hint("run it again"));
    }
    match to {
        Some(to) => replace(path, to),
        None if from.is_some() => remove(path),
        None => Ok(()),
    }
}

/// Makes the directory `path`, whatever the umask with this mode. Its parent must exist.
///
/// # Errors
/// If there is something already, or if it cannot be made.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), KernelError> {
    let failed = |error| explain(format!("cannot make `{}`", path.display()), error);
    DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(mode & PERMISSIONS)).map_err(failed)?;
    sync_parent(path).map_err(failed)
}

/// Removes the empty directory `path`.
///
/// # Errors
/// If it is not there, not empty, or cannot be removed.
pub fn remove_directory(path: &Path) -> Result<(), KernelError> {
    let failed = |error| explain(format!("cannot remove `{}`", path.display()), error);
    fs::remove_dir(path).map_err(failed)?;
    sync_parent(path).map_err(failed)
}

/// Whether nothing is there: neither the file, nor, perhaps, the directory that it would be in.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

/// Where the new content is written first: hidden, and with a suffix that no reader of
/// drop-ins looks for.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EISDIR))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(TEMPORARY);
    Ok(path.with_file_name(hidden))
}

/// Whether a file of this name is one that a killed run was writing.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

/// Removes what a killed run that was writing the file at `path` may have left beside it.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn sweep(path: &Path) -> Result<(), KernelError> {
    let swept = temporary(path).and_then(|beside| {
        // On a read-only file system, removing what is not there is refused as well.
        fs::symlink_metadata(&beside)?;
        fs::remove_file(&beside)
    });
    match swept {
        Err(error) if !is_absent(&error) => Err(explain(
            format!("cannot remove what was left beside `{}`", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn explain(action: String, error: io::Error) -> KernelError {
    let is_link = error.raw_os_error() == Some(Errno::ELOOP as i32);
    let mut explained = KernelError::io(action, error);
    if is_link {
        "it is a symbolic link".clone_into(&mut explained.reason);
        explained.hint = Some("replace the link by the file it points at".to_owned());
    }
    explained
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::kernel::FailureKind;
    use crate::test_support::Scratch;

    fn text(text: &str, mode: u32) -> FileContent {
        FileContent {
            text: text.to_owned(),
            mode,
        }
    }

    #[test]
    fn a_file_is_written_read_and_removed_without_a_trace() {
        let scratch = Scratch::new("files-round-trip");
        let path = scratch.path().join("a.conf");
        assert_eq!(read(&path, 10).unwrap(), None);
        for content in [text("one\n", 0o644), text("two\n", 0o640), text("", 0o600)] {
            replace(&path, &content).unwrap();
            assert_eq!(read(&path, 10).unwrap(), Some(content));
        }
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert!(remove(&path).is_err());
    }

    #[test]
    fn a_file_is_changed_only_if_it_is_as_it_was() {
        let scratch = Scratch::new("files-change");
        let path = scratch.path().join("a");
        let (one, two) = (text("one", 0o644), text("two, longer", 0o600));
        change(&path, None, Some(&one)).unwrap();
        for wrong in [
            None,
            Some(&two),
            Some(&text("one", 0o600)),
            Some(&text("uno", 0o644)),
        ] {
            let error = change(&path, wrong, Some(&two)).unwrap_err();
            assert_eq!(error.reason, "somebody else has just changed it");
            assert_eq!(read(&path, 99).unwrap().as_ref(), Some(&one));
        }
        change(&path, Some(&one), Some(&two)).unwrap();
        assert_eq!(read(&path, 99).unwrap().as_ref(), Some(&two));
        change(&path, Some(&two), None).unwrap();
        assert!(change(&path, Some(&two), None).is_err());
        change(&path, None, None).unwrap();
    }

    #[test]
    fn the_owner_stays() {
        let scratch = Scratch::new("files-owner");
        let path = scratch.path().join("a");
        replace(&path, &text("1", 0o644)).unwrap();
        if std::os::unix::fs::chown(&path, Some(1234), Some(4321)).is_err() {
            eprintln!("SKIPPED the_owner_stays: needs root to give a file away");
            return;
        }
        replace(&path, &text("2", 0o4755)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (1234, 4321));
        assert_eq!(found.mode() & PERMISSIONS, 0o4755);
    }

    #[test]
    fn links_are_refused_and_left_alone() {
        let scratch = Scratch::new("files-links");
        let target = scratch.path().join("target");
        let link = scratch.path().join("link");
        replace(&target, &text("precious", 0o600)).unwrap();
        symlink(&target, &link).unwrap();
        for error in [
            read(&link, 10).unwrap_err(),
            replace(&link, &text("x", 0o600)).unwrap_err(),
            remove(&link).unwrap_err(),
        ] {
            assert_eq!(error.reason, "it is a symbolic link");
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // Nor is a link followed that someone put where the new content is written first.
        let path = scratch.path().join("file");
        symlink(&target, temporary(&path).unwrap()).unwrap();
        replace(&path, &text("new", 0o600)).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn several_files_are_replaced_or_none_of_them_where_one_cannot_be_written() {
        let scratch = Scratch::new("files-several");
        let paths = ["a", "b", "c"].map(|name| scratch.path().join(name));
        let all = |words: [&'static str; 3]| -> Vec<(PathBuf, &str)> {
            paths.iter().cloned().zip(words).collect()
        };
        let found = || paths.clone().map(|path| fs::read_to_string(path).unwrap());
        replace_all(&all(["1", "2", "3"]), 0o600).unwrap();
        assert_eq!(found(), ["1", "2", "3"]);
        replace_all(&all(["one", "two", "three"]), 0o640).unwrap();
        assert_eq!(found(), ["one", "two", "three"]);
        assert_eq!(read(&paths[2], 9).unwrap(), Some(text("three", 0o640)));
        let mut files = all(["x", "y", "z"]);
        files.push((scratch.path().to_owned(), "a directory"));
        let (path, error) = replace_all(&files, 0o600).unwrap_err();
        assert_eq!(path, scratch.path());
        assert_eq!(error.reason, "it is not a plain file");
        assert_eq!(found(), ["one", "two", "three"]);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3);
        replace_all(&[], 0o600).unwrap();
    }

    #[test]
    fn what_a_killed_run_left_does_not_stay() {
        let scratch = Scratch::new("files-left-over");
        let path = scratch.path().join("file");
        replace(&temporary(&path).unwrap(), &text("half", 0o600)).unwrap();
        replace(&path, &text("whole", 0o600)).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_plain_files_of_a_sane_length_are_read() {
        let scratch = Scratch::new("files-plain");
        let path = scratch.path().join("long");
        replace(&path, &text("12345", 0o600)).unwrap();
        assert_eq!(
            read(&path, 4).unwrap_err().reason,
            "it is longer than 4 bytes"
        );
        assert!(read(&path, 5).unwrap().is_some());
        let error = read(scratch.path(), 10).unwrap_err();
        assert_eq!(error.reason, "it is not a plain file");
        let binary = scratch.path().join("binary");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&binary)
            .unwrap()
            .write_all(&[0xff, 0xfe])
            .unwrap();
        assert_eq!(
            read(&binary, 10).unwrap_err().reason,
            "it is not UTF-8 text"
        );
        // A file where a directory was expected is simply absent.
        assert_eq!(read(&path.join("below"), 10).unwrap(), None);
    }

    #[test]
    fn directories_are_made_and_removed_empty_only() {
        let scratch = Scratch::new("files-directories");
        let path = scratch.path().join("d");
        make_directory(&path, 0o755).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & PERMISSIONS, 0o755);
        assert!(make_directory(&path, 0o755).is_err());
        replace(&path.join("f"), &text("", 0o600)).unwrap();
        let error = remove_directory(&path).unwrap_err();
        assert_eq!(
            (error.reason.as_str(), error.kind),
            ("Directory not empty", FailureKind::Other)
        );
        remove(&path.join("f")).unwrap();
        remove_directory(&path).unwrap();
        assert!(!path.exists());
    }
}
