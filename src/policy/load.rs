//! A policy's files, read from disk: only such as nobody else may write.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::Uid;

use crate::shell;

use super::read;
use super::source::{List, Source, Unreadable, line_and_column};

/// Longest policy file, in bytes. A policy is written by people.
pub const MAX_POLICY: u64 = 1024 * 1024;
/// Longest list file, in bytes. The whole Internet's routing table, a million
/// prefixes, is about 18 MB.
pub const MAX_LIST: u64 = 32 * 1024 * 1024;
/// Most list files.
pub const MAX_LISTS: usize = 64;

/// Why a policy file could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel said no.
    #[error("cannot read the policy `{name}`: {}", reason(source))]
    Io {
        /// The file, as typed.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("the policy `{name}` is not to be trusted: {reason}")]
    Untrusted {
        /// The file, as typed.
        name: String,
        /// Who may write it.
        reason: String,
        /// The command that mends it.
        hint: String,
    },
    /// Not text, too long, not a file.
    #[error("cannot use the policy `{name}`: {reason}")]
    Unfit {
        /// The file, as typed.
        name: String,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl LoadError {
    /// What to do about it, where we know.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "name the policy file, as in `redirect check ./policy.toml`; `-` is standard input"
                    .to_owned(),
            ),
            Self::Io { .. } => None,
            Self::Untrusted { hint, .. } => Some(hint.clone()),
            Self::Unfit { hint, .. } => hint.clone(),
        }
    }
}

/// Why one file, policy or list, was not taken.
enum Refusal {
    Io(io::Error),
    Untrusted {
        reason: String,
        hint: String,
    },
    Unfit {
        reason: String,
        hint: Option<String>,
    },
}

impl Source {
    /// Reads a policy file and the list files that it names.
    ///
    /// A list file that cannot be read is not an error yet: [`super::read`] reports it together with
    /// everything else that is wrong.
    ///
    /// # Errors
    /// The policy file cannot be read, is too long or not UTF-8, or others than root, its
    /// owner and the user who runs this may write it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let text = open(path)
            .map_err(Refusal::Io)
            .and_then(|file| {
                check_trust(&file, path)?;
                read_text(file, MAX_POLICY)
            })
            .map_err(|refusal| policy_error(name.clone(), refusal))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(Self::with_lists(name, text, folder))
    }

    /// Reads a policy from standard input. List files are looked for in the working directory.
    ///
    /// # Errors
    /// Standard input cannot be read, is too long or not UTF-8.
    pub fn from_stdin() -> Result<Self, LoadError> {
        let name = "<stdin>".to_owned();
        let text = read_text(io::stdin().lock(), MAX_POLICY)
            .map_err(|refusal| policy_error(name.clone(), refusal))?;
        Ok(Self::with_lists(name, text, Path::new("")))
    }

    fn with_lists(name: String, text: String, folder: &Path) -> Self {
        let mut source = Self::from_text(name, text);
        for path in read::list_files(&source.text) {
            if source.lists.iter().any(|list| list.path == path)
                || source.unreadable.iter().any(|list| list.path == path)
            {
                continue;
            }
            match load_list(&folder.join(&path), source.lists.len()) {
                Ok(text) => source.lists.push(List { path, text }),
                Err(refusal) => source.unreadable.push(unreadable(path, refusal)),
            }
        }
        source
    }
}

/// The kernel's words without the number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error")
                .next()
                .unwrap_or_default()
                .to_lowercase()
        }
    }
}

fn policy_error(name: String, refusal: Refusal) -> LoadError {
    match refusal {
        Refusal::Io(source) => LoadError::Io { name, source },
        Refusal::Untrusted { reason, hint } => LoadError::Untrusted { name, reason, hint },
        Refusal::Unfit { reason, hint } => LoadError::Unfit { name, reason, hint },
    }
}

fn load_list(path: &Path, already: usize) -> Result<String, Refusal> {
    if already >= MAX_LISTS {
        return Err(Refusal::Unfit {
            reason: format!("a policy may name at most {MAX_LISTS} list files"),
            hint: None,
        });
    }
    let file = open(path).map_err(Refusal::Io)?;
    check_trust(&file, path)?;
    read_text(file, MAX_LIST)
}

fn unreadable(path: PathBuf, refusal: Refusal) -> Unreadable {
    let (reason, hint) = match refusal {
        Refusal::Io(error) if error.kind() == io::ErrorKind::NotFound => (
            reason(&error),
            Some("the path is taken from the policy's own folder".to_owned()),
        ),
        Refusal::Io(error) => (reason(&error), None),
        Refusal::Untrusted { reason, hint } => {
            (format!("it is not to be trusted: {reason}"), Some(hint))
        }
        Refusal::Unfit { reason, hint } => (reason, hint),
    };
    Unreadable { path, reason, hint }
}

/// Opens for reading. A terminal does not become ours (`O_NOCTTY`), and a pipe that nobody writes
/// to does not keep us waiting (`O_NONBLOCK`).
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)
}

/// Refuses a file that others may write: whoever writes it decides what is recorded.
/// Asked of the open file, so that it cannot be exchanged between the question and the reading. An
/// access control list that lets others write shows in the group's bits, which are its mask then.
fn check_trust(file: &File, path: &Path) -> Result<(), Refusal> {
    let found = fstat(file).map_err(|errno| Refusal::Io(errno.into()))?;
    if found.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR {
        return Err(Refusal::Unfit {
            reason: "it is a directory".to_owned(),
            hint: None,
        });
    }
    if found.st_mode & nix::libc::S_IFMT != nix::libc::S_IFREG {
        return Err(Refusal::Unfit {
            reason: "it is not a regular file".to_owned(),
            hint: Some("`-` reads the policy from standard input".to_owned()),
        });
    }
    let trusted = trusted_owners();
    let path = shell::word(&path.to_string_lossy());
    verdict(found.st_mode, found.st_uid, &trusted).map_err(|(reason, mend)| Refusal::Untrusted {
        reason,
        hint: format!("look at what it says, then `{mend} {path}`"),
    })
}

/// Who may own a policy: root, the user who runs this, and, as root under `sudo`, the user who typed it.
fn trusted_owners() -> Vec<u32> {
    let own = Uid::effective();
    let mut trusted = vec![0, own.as_raw()];
    if own.is_root() {
        // sudo sets this itself, whatever the caller had there.
        trusted.extend(
            std::env::var("SUDO_UID")
                .ok()
                .and_then(|uid| uid.parse::<u32>().ok()),
        );
    }
    trusted
}

/// Why not, and the command that mends it.
fn verdict(mode: u32, owner: u32, trusted: &[u32]) -> Result<(), (String, &'static str)> {
    let who = match (mode & 0o020 != 0, mode & 0o002 != 0) {
        (_, true) => "everyone",
        (true, false) => "its group",
        (false, false) if trusted.contains(&owner) => return Ok(()),
        (false, false) => {
            return Err((
                format!("it belongs to user {owner}, who is neither root nor you"),
                "chown root",
            ));
        }
    };
    Err((
        format!("{who} may write it (mode {:04o})", mode & 0o7777),
        "chmod go-w",
    ))
}

/// Reads all of it, if it is not too long and UTF-8.
fn read_text(from: impl Read, limit: u64) -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    from.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(Refusal::Io)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(Refusal::Unfit {
            reason: format!("it is longer than {} MiB", limit / 1024 / 1024),
            hint: None,
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let sound = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
        let before = String::from_utf8_lossy(bytes.get(..sound).unwrap_or_default());
        let (line, column) = line_and_column(&before, sound);
        Refusal::Unfit {
            reason: format!("it is not UTF-8 text at line {line}, column {column}"),
            hint: utf16.then(|| "it looks like UTF-16: save it as UTF-8".to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write_it_decides() {
        assert_eq!(verdict(0o100_600, 0, &[0]), Ok(()));
        assert_eq!(verdict(0o100_644, 1000, &[0, 1000]), Ok(()));
        assert_eq!(
            verdict(0o100_664, 0, &[0]).unwrap_err(),
            ("its group may write it (mode 0664)".into(), "chmod go-w")
        );
        assert_eq!(
            verdict(0o100_646, 0, &[0]).unwrap_err(),
            ("everyone may write it (mode 0646)".into(), "chmod go-w")
        );
        assert_eq!(
            verdict(0o100_600, 1000, &[0]).unwrap_err(),
            (
                "it belongs to user 1000, who is neither root nor you".into(),
                "chown root"
            )
        );
    }
}
