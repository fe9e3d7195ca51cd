//! Settings under `/proc/sys/net`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

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

/// Writes `value` to `sysctl`, if it holds `expected`.
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
    // In one write, or the kernel would take the parts for values of their own.
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(sysctl.path())
        .and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()))
        .map_err(|error| KernelError::io(action(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::IfName;
    use crate::observation::Setting;

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
}
