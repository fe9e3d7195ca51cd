//! A router of our own, without anything on it: what is measured never meets the machine's rules,
//! nor what was measured before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use redirect::kernel::process;

use crate::Trouble;

/// Three links: where clients come in, where the servers are, where the appliance is.
const LINKS: [(&str, &str); 3] = [
    ("cli0", "10.10.0.1/24"),
    ("srv0", "10.20.0.1/24"),
    ("sps0", "10.30.0.1/24"),
];

/// Where `redirect` keeps its state: of the disk that `work` is on, for what it writes is synced.
pub const STATE: &str = "/var/lib/redirect";

/// Gives this process, and all that it starts, files of their own where routers are configured.
pub fn own_files(work: &Path) -> Result<(), Trouble> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let state = work.join("state");
    fs::create_dir_all(&state)?;
    for place in ["/etc/iproute2", "/var/lib", "/run"] {
        if Path::new(place).is_dir() && !work.starts_with(place) {
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)?;
        }
    }
    fs::create_dir_all(STATE)?;
    mount(Some(&state), STATE, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

/// Moves this process to a new router. The one that it leaves ends with the last who was on it.
pub fn new() -> Result<(), Trouble> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let links = LINKS.map(|(near, address)| {
        format!(
            "link add {near} type veth peer name {near}p\naddress add {address} dev {near}\n\
             link set {near} up\nlink set {near}p up\n"
        )
    });
    // Without a way to the servers, `status` would rightly complain.
    let way = "route add default via 10.20.0.2\n";
    run("ip", &["-batch", "-"], &(links.concat() + way))?;
    let settings = ["ip_forward", "conf/all/rp_filter"].map(PathBuf::from);
    let own = LINKS.map(|(link, _)| Path::new("conf").join(link).join("rp_filter"));
    for setting in settings.iter().chain(&own) {
        write(&Path::new("/proc/sys/net/ipv4").join(setting), "1")?;
    }
    for directory in [Path::new(STATE), Path::new("/etc/iproute2")] {
        empty(directory)?;
    }
    fs::create_dir_all("/etc/iproute2/rt_tables.d")?;
    let names = "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n";
    write(Path::new("/etc/iproute2/rt_tables"), names)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    for (link, _) in LINKS {
        while !run("ip", &["-o", "link", "show", "dev", link], "")?.contains("state UP") {
            if Instant::now() > deadline {
                return Err(format!("`{link}` does not come up").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn empty(directory: &Path) -> Result<(), Trouble> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file.
pub fn write(path: &Path, text: &str) -> Result<(), Trouble> {
    #[expect(clippy::disallowed_methods, reason = "nothing of these is to survive")]
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// What a program prints; its failure is ours.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Trouble> {
    let output = process::run(
        program,
        arguments,
        input.as_bytes(),
        Duration::from_secs(60),
    )?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(format!("{program} {}: {}", arguments.join(" "), output.complaint()).into())
    }
}
