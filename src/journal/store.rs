//! The state directory's files: read whole, replaced whole, never through a symlink.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::JournalError;
use crate::kernel::files;

/// A directory that only its owner can enter.
#[derive(Debug, Clone)]
pub(super) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Opens the directory if it exists, and refuses one that others could have written to.
    pub(super) fn open(&self) -> Result<Option<File>, JournalError> {
        let path = &self.directory;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
            .open(path);
        let directory = match opened {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A symlink here is ELOOP or ENOTDIR, by kernel version.
            Err(_) if path.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) => {
                return Err(JournalError::Unsafe {
                    path: path.clone(),
                    found: "it is not a directory".to_owned(),
                });
            }
            Err(error) => return Err(JournalError::read(path.clone(), error)),
        };
        check_owner(&directory, path)?;
        Ok(Some(directory))
    }

    /// Opens the directory, having made it if it was not there, with mode 0700.
    pub(super) fn open_or_create(&self) -> Result<File, JournalError> {
        let path = &self.directory;
        if let Some(directory) = self.open()? {
            let mode = directory
                .metadata()
                .map_err(|error| JournalError::read(path.clone(), error))?
                .mode();
            if mode & 0o077 != 0 {
                // Readable by others, as packagers may leave it. On a read-only file
                // system it stays so, and that is no reason not to go on.
                let _ = directory.set_permissions(Permissions::from_mode(0o700));
            }
            return Ok(directory);
        }
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Ok(()) => {}
            // Another run was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(JournalError::write("create", path.clone(), error)),
        }
        if let Some(parent) = path.parent() {
            sync(parent)?;
        }
        self.open()?.ok_or_else(|| {
            JournalError::read(path.clone(), io::Error::from(io::ErrorKind::NotFound))
        })
    }

    /// All of a file; none if there is no such file.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        let path = self.path(name);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(_) if path.is_symlink() => {
                return Err(JournalError::Unsafe {
                    path,
                    found: "it is a symbolic link".to_owned(),
                });
            }
            Err(error) => return Err(JournalError::read(path, error)),
        };
        check_owner(&file, &path)?;
        let mut bytes = Vec::new();
        match file.read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) => Err(JournalError::read(path, error)),
        }
    }

    /// Replaces files, in one step each and in this order, safe from a loss of power once this
    /// returns. The last one refers to those before it.
    pub(super) fn write(&self, files: &[(&str, &str)]) -> Result<(), JournalError> {
        let files: Vec<_> = (files.iter())
            .map(|(name, text)| (self.path(name), *text))
            .collect();
        files::replace_all(&files, 0o600)
            .map_err(|(path, error)| JournalError::kernel("write", path, error))
    }

    /// Removes a file, if it is there. Not being able to costs room, nothing else.
    pub(super) fn remove(&self, name: &str) {
        let _ = std::fs::remove_file(self.path(name));
    }

    /// Gives a file another name.
    pub(super) fn rename(&self, name: &str, to: &str) -> Result<(), JournalError> {
        std::fs::rename(self.path(name), self.path(to))
            .map_err(|error| JournalError::write("rename", self.path(name), error))?;
        sync(&self.directory)
    }

    /// The names of all files.
    pub(super) fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

fn sync(directory: &Path) -> Result<(), JournalError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| JournalError::write("sync", directory.to_owned(), error))
}

/// Root's, or, for tests, the user's who runs us; and nobody else may write there.
fn check_owner(file: &File, path: &Path) -> Result<(), JournalError> {
    let meta = file
        .metadata()
        .map_err(|error| JournalError::read(path.to_owned(), error))?;
    let unsafe_because = |found: String| {
        Err(JournalError::Unsafe {
            path: path.to_owned(),
            found,
        })
    };
    if !meta.is_dir() && !meta.is_file() {
        return unsafe_because("it is not a regular file".to_owned());
    }
    let owner = meta.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return unsafe_because(format!("it belongs to uid {owner}, not to root"));
    }
    if meta.mode() & 0o022 != 0 {
        return unsafe_because(format!(
            "others may write to it (mode {:04o})",
            meta.mode() & 0o7777
        ));
    }
    Ok(())
}
