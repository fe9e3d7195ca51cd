//! Killed at every system call, and failed at every one: the router is as it was, or as
//! it was to be, and nothing of us is left in between.
//!
//! Needs root, `unshare`, `nsenter`, `strace`, `ip` and `nft`; says so loudly where they are
//! missing. A sample of the faults is tried, all of them with `REDIRECT_CRASH=all`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, starts the program that it tests, and says what it did"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};

/// The program under test: this build's, or that of `REDIRECT_PROGRAM`.
fn program() -> String {
    std::env::var("REDIRECT_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_redirect").to_owned())
}

/// Of everything that somebody else could have on a router, something of each kind: among
/// it a rule of our priority, marks in other bits, a table of routes, packet rules of both
/// kinds, and settings.
const SETUP: &str = r#"
set -e
mount -t tmpfs none /var/lib
cp -a /etc/iproute2 /var/lib/copy
mount -t tmpfs none /etc/iproute2
cp -a /var/lib/copy/. /etc/iproute2/
rm -rf /etc/iproute2/rt_tables.d
mkdir /var/lib/policies
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
ip link set lo up
for link in sps0:10.30.0.1/24:fd00:30::1/64 eth0:10.10.0.1/24:fd00:10::1/64; do
    name=${link%%:*}; rest=${link#*:}
    ip link add "$name" type veth peer name "${name}p"
    ip address add "${rest%%:*}" dev "$name"
    ip address add "${rest#*:}" dev "$name" nodad
    ip link set "$name" up
    ip link set "${name}p" up
done
echo 1 > /proc/sys/net/ipv4/conf/sps0/rp_filter
echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
ip rule add priority 50 fwmark 0x100/0xff00 lookup 200
ip rule add priority 103 from 192.0.2.0/24 lookup 201
ip -6 rule add priority 103 from 2001:db8::/32 lookup 201
ip route add default via 10.10.0.2 table 200
ip route add 198.51.100.0/24 dev eth0 table 201
nft -f - <<'EOF'
table inet theirs {
    set servers { type ipv4_addr; flags interval; elements = { 10.20.0.0/24 }; }
    chain prerouting {
        type filter hook prerouting priority mangle;
        ip daddr @servers meta mark set meta mark | 0x100
    }
    chain redirect_rdp { counter accept; }
}
table ip scb-redirect-not {
    chain forward { type filter hook forward priority mangle; }
}
EOF
echo ready
exec sleep 86400
"#;

/// All of the router that anybody could notice, as text.
const SNAPSHOT: &str = r"
ip -d -4 rule; ip -d -6 rule
ip -d -4 route show table all; ip -d -6 route show table all
nft -s list ruleset
grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf 2>/dev/null |
    grep -v -e /stable_secret -e base_reachable
cd /etc/iproute2 && find . -printf '%p %y %m %U:%G\n' | sort &&
    find . -type f -print0 | sort -z | xargs -0 sha256sum
";

/// A router in namespaces of its own.
struct Router {
    holder: Child,
    pid: String,
}

impl Router {
    /// `None`, having said why, where this machine cannot make one.
    fn new() -> Option<Self> {
        for program in ["unshare", "nsenter", "strace", "ip", "nft"] {
            let found = Command::new(program).arg("--version").output();
            if found.is_err() {
                eprintln!("SKIPPED: `{program}` is missing");
                return None;
            }
        }
        let namespaces = Command::new("unshare")
            .args(["--net", "--mount", "true"])
            .output();
        if !namespaces.unwrap().status.success() {
            eprintln!("SKIPPED: no router can be made: this needs root and namespaces");
            return None;
        }
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                SETUP,
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = holder.id().to_string();
        let mut said = BufReader::new(holder.stdout.take().unwrap());
        let router = Self { holder, pid };
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the router could not be made");
        Some(router)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--net", "--mount", "--", program]);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().unwrap()
    }

    fn shell(&self, script: &str) -> String {
        let output = self.run("sh", &["-c", script]);
        assert!(output.status.success(), "{script}: {}", error_of(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn redirect(&self, arguments: &[&str]) -> Output {
        self.run(&program(), arguments)
    }

    fn must(&self, arguments: &[&str]) {
        let output = self.redirect(arguments);
        assert!(
            output.status.success(),
            "redirect {}: {}",
            arguments.join(" "),
            error_of(&output)
        );
    }

    fn write(&self, path: &str, text: &str) {
        let mut child = self
            .command("sh")
            .args(["-c", &format!("cat > {path}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }

    fn snapshot(&self) -> String {
        self.shell(SNAPSHOT)
    }

    /// Which system calls a run makes, and how often.
    fn system_calls(&self, arguments: &[&str]) -> BTreeMap<String, usize> {
        let log = "/var/lib/strace.log";
        let output = self
            .command("strace")
            .args(["-f", "-qq", "-o", log])
            .arg(program())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", error_of(&output));
        let mut calls = BTreeMap::new();
        for line in self.shell(&format!("cat {log}; rm {log}")).lines() {
            let call = line
                .split_once(' ')
                .map_or("", |(_, call)| call.trim_start());
            let name = call.split('(').next().unwrap_or_default();
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if call.contains('(') && !name.is_empty() && name.chars().all(is_name) {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        calls
    }

    /// Runs with a fault at the `nth` call of `call`.
    fn faulty(&self, arguments: &[&str], call: &str, nth: usize, fault: &str) -> Output {
        self.command("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(["-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:{fault}:when={nth}")])
            .arg(program())
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Whether a transaction is open.
    fn is_open(&self) -> bool {
        let output = self.redirect(&["history", "--json"]);
        assert!(output.status.success(), "{}", error_of(&output));
        let history: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        !history["open"].is_null()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn error_of(output: &Output) -> String {
    format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
}

fn policy(port: u16, more: &str) -> String {
    let mut text = String::from("version = 1\n");
    let _ = write!(
        text,
        r#"
[appliance.scb]
address = ["10.30.0.2", "fd00:30::2"]
interface = "sps0"
[[redirect]]
name = "rdp"
client_interface = "eth0"
server_network = ["10.20.0.0/24", "fd00:20::/64"]
port = {port}
{more}
"#
    );
    text
}

/// A command, and the state that it starts from.
struct Story {
    name: &'static str,
    /// Leads to the state before.
    before: &'static [&'static str],
    /// The command that is disturbed.
    command: &'static [&'static str],
}

const STORIES: [Story; 3] = [
    Story {
        name: "first apply",
        before: &["teardown", "--wait", "20"],
        command: &["apply", "/var/lib/policies/a.toml"],
    },
    Story {
        name: "change of policy",
        before: &["apply", "--wait", "20", "/var/lib/policies/a.toml"],
        command: &["apply", "/var/lib/policies/b.toml"],
    },
    Story {
        name: "teardown",
        before: &["apply", "--wait", "20", "/var/lib/policies/a.toml"],
        command: &["teardown"],
    },
];

fn prepared() -> Option<Router> {
    let router = Router::new()?;
    router.write("/var/lib/policies/a.toml", &policy(3389, ""));
    router.write(
        "/var/lib/policies/b.toml",
        &policy(
            3390,
            "snat = true\n[options]\nrp_filter = \"off\"\nrule_priority = 110",
        ),
    );
    Some(router)
}

/// Every point at which a run can be disturbed, or a sample of them.
fn points(calls: &BTreeMap<String, usize>, sample: usize) -> Vec<(String, usize)> {
    let all: Vec<_> = calls
        .iter()
        .flat_map(|(call, count)| (1..=*count).map(move |nth| (call.clone(), nth)))
        .collect();
    if std::env::var("REDIRECT_CRASH").is_ok_and(|value| value == "all") {
        return all;
    }
    let stride = all.len().div_ceil(sample).max(1);
    // Not always the same ones: the number of this process shifts the sample.
    let shift = std::process::id() as usize % stride;
    all.into_iter().skip(shift).step_by(stride).collect()
}

/// Disturbs `story` with `fault` at `points`; returns how many disturbances there were.
fn disturb(
    router: &Router,
    story: &Story,
    fault: &str,
    points: &[(String, usize)],
    traces: &mut Vec<String>,
) -> usize {
    router.must(story.before);
    let before = router.snapshot();
    router.must(story.command);
    let after = router.snapshot();
    assert_ne!(before, after);
    let mut tried = 0;
    for (at, (call, nth)) in points.iter().enumerate() {
        router.must(story.before);
        assert_eq!(router.snapshot(), before, "before {}", story.name);
        let output = router.faulty(story.command, call, *nth, fault);
        let killed = output.status.code().is_none_or(|code| code > 128);
        tried += 1;
        let open = router.is_open();
        if open {
            let status = router.redirect(&["status"]);
            assert_eq!(status.status.code(), Some(2), "{}", error_of(&status));
            // Any command that may change something brings the router back.
            let next: &[&str] = if at % 2 == 0 {
                &["rollback", "--wait", "20"]
            } else {
                &["repair", "--wait", "20"]
            };
            router.must(next);
            assert!(!router.is_open());
        }
        let found = router.snapshot();
        let wanted: &[&String] = if open
            || output
                .status
                .code()
                .is_some_and(|code| code != 0 && !killed)
        {
            &[&before]
        } else if killed {
            // Before it was written down, or after it had ended.
            &[&before, &after]
        } else {
            &[&after]
        };
        if !wanted.contains(&&found) {
            traces.push(format!(
                "{}, {fault} at {call} {nth} ({}):\n{}",
                story.name,
                error_of(&output),
                difference(wanted[0], &found)
            ));
            router.must(&["teardown", "--wait", "20"]);
        }
    }
    tried
}

fn difference(wanted: &str, found: &str) -> String {
    let (wanted, found): (Vec<_>, Vec<_>) = (wanted.lines().collect(), found.lines().collect());
    let mut text = String::new();
    for line in wanted.iter().filter(|line| !found.contains(line)) {
        let _ = writeln!(text, "  missing: {line}");
    }
    for line in found.iter().filter(|line| !wanted.contains(line)) {
        let _ = writeln!(text, "  left over: {line}");
    }
    text
}

fn report(tried: usize, what: &str, traces: &[String]) {
    println!("{what}: {tried} tried, {} left traces", traces.len());
    assert!(traces.is_empty(), "{}", traces.join("\n"));
}

#[test]
fn killed_anywhere() {
    let Some(router) = prepared() else { return };
    let mut traces = Vec::new();
    for story in &STORIES {
        router.must(story.before);
        let points = points(&router.system_calls(story.command), 12);
        let tried = disturb(&router, story, "signal=KILL", &points, &mut traces);
        report(tried, &format!("kill -9 during {}", story.name), &traces);
    }
}

/// The system calls by which the router, its files and the journal are changed.
const CHANGING: [&str; 16] = [
    "fchmod",
    "fchmodat",
    "fchown",
    "flock",
    "fsync",
    "mkdir",
    "mkdirat",
    "openat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendmsg",
    "sendto",
    "unlink",
    "write",
];

#[test]
fn failing_anywhere() {
    let Some(router) = prepared() else { return };
    let mut traces = Vec::new();
    for story in &STORIES {
        router.must(story.before);
        let mut calls = router.system_calls(story.command);
        calls.retain(|call, _| CHANGING.contains(&call.as_str()));
        let points = points(&calls, 8);
        for fault in ["error=EIO", "error=ENOSPC", "error=EROFS"] {
            let tried = disturb(&router, story, fault, &points, &mut traces);
            report(tried, &format!("{fault} during {}", story.name), &traces);
        }
    }
}
