//! Settings under `/proc/sys/net`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use super::{KernelError, files};
use crate::observation::Sysctl;

/// Longest value that is read, in bytes; ours are a digit.
const LIMIT: u64 = 4096;

/// What `sysctl` holds, without its line's end; `None` if it does not exist: no such interface,
/// or a kernel without it.
///
/// # Errors
/// If it exists and cannot be read.
pub fn read(sysctl: &Sysctl) -> Result<Option<String>, KernelError> {
    Ok(files::read(&sysctl.path(), LIMIT)?.map(|content| content.text.trim_end().to_owned()))
}

/// Writes `value` to `sysctl`, if it holds `expected`, and changes no other setting by that.
///
/// # Errors
/// If it does not exist, holds something else by now, or cannot be written.
pub fn write(sysctl: &Sysctl, expected: &str, value: &str) -> Result<(), KernelError> {
    let action = || format!("cannot set `{sysctl}` to {value}");
    match read(sysctl)? {
        None => return Err(KernelError::because(action(), "it does not exist")),
        Some(found) if found == expected => {}
        Some(found) => {
            return Err(KernelError::because(
                action(),
                format!("it holds {found} instead of {expected}: somebody else has just set it"),
            )
            .hint("run it again"));
        }
    }
    if sysctl.is_default() {
        detach(sysctl).map_err(|error| KernelError::io(action(), error))?;
    }
    put(&sysctl.path(), value).map_err(|error| KernelError::io(action(), error))
}

/// Makes every interface keep its own value when `default` changes.
///
/// What is written to `default` goes to every interface whose own value nobody has ever written
/// and that never had an address (`devinet_copy_dflt_conf` in `net/ipv4/devinet.c`), not only
/// to new ones. Writing to each
/// what it holds ends that.
fn detach(default: &Sysctl) -> io::Result<()> {
    let folder = format!("/proc/sys/net/{}/conf", default.family.sysctl_name());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "all" || name == "default" {
            continue;
        }
        let path = entry.path().join(default.setting.name());
        // Interfaces come and go.
        match fs::read_to_string(&path).and_then(|held| put(&path, held.trim_end())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Writes in one go: the kernel would take parts for values of their own.
fn put(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?
        .write_all(format!("{value}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::IfName;
    use crate::observation::Setting;
    use crate::plan::Change;
    use crate::render::shell::commands;
    use crate::test_support::{ip, own_network, shell};

    #[test]
    fn a_setting_is_read_and_an_absent_one_is_absent() {
        let lo = IfName::new("lo").unwrap();
        let found = read(&Sysctl::ipv4(&lo, Setting::RpFilter))
            .unwrap()
            .unwrap();
        assert!(["0", "1", "2"].contains(&found.as_str()), "{found:?}");
        let nobody = IfName::new("nobody0").unwrap();
        assert_eq!(
            read(&Sysctl::ipv4(&nobody, Setting::RpFilter)).unwrap(),
            None
        );
        // IPv6 has no rp_filter.
        let absent = Sysctl {
            family: crate::net::Family::V6,
            interface: Some(lo),
            setting: Setting::RpFilter,
        };
        assert_eq!(read(&absent).unwrap(), None);
        let error = write(&absent, "0", "1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set `net/ipv6/conf/lo/rp_filter` to 1: it does not exist"
        );
    }

    #[test]
    fn what_is_written_to_default_stays_there() {
        if !own_network("what_is_written_to_default_stays_there") {
            return;
        }
        ip("link add sps0 type veth peer name far0");
        let of = |name: &str| Sysctl::ipv4(&IfName::new(name).unwrap(), Setting::RpFilter);
        let value = |name: &str| read(&of(name)).unwrap().unwrap();
        let (before, other) = match value("default").as_str() {
            "1" => ("1", "2"),
            "2" => ("2", "1"),
            _ => ("0", "1"),
        };
        let own = value("sps0");
        // The kernel's way.
        shell(&format!(
            "echo {other} >/proc/sys/net/ipv4/conf/default/rp_filter"
        ));
        assert_eq!(
            (value("default").as_str(), value("sps0").as_str()),
            (other, other)
        );
        shell(&format!(
            "echo {before} >/proc/sys/net/ipv4/conf/default/rp_filter"
        ));
        assert_eq!(value("sps0"), own);
        // Ours, and the script's, which has to be tried before it.
        let change = Change::Sysctl {
            sysctl: of("default"),
            from: before.to_owned(),
            to: other.to_owned(),
        };
        shell(&commands(&change));
        assert_eq!(
            (value("default").as_str(), value("sps0")),
            (other, own.clone())
        );
        shell(&commands(&change.inverse()));
        ip("link add sps1 type veth peer name far1");
        write(&of("default"), before, other).unwrap();
        assert_eq!((value("default").as_str(), value("sps1")), (other, own));
        ip("link add new0 type veth peer name new1");
        assert_eq!(value("new0"), other);
    }
}
