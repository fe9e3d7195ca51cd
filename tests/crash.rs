//! Killed at every system call, and failed at every one: the router is as it was, or as
//! it was to be, and nothing of us is left in between.
//!
//! Needs root, `unshare`, `nsenter`, `strace`, `ip` and `nft`; says so loudly where they are
//! missing. A sample of the faults is tried; with `REDIRECT_CRASH=changing` those at every system
//! call that changes something (to be killed before one that does not is to be killed before
//! the next that does), and with `REDIRECT_CRASH=all` at every single one, for hours;
//! `REDIRECT_CRASH_STORY=teardown` tries those of one story.

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
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
for link in sps0:10.30.0.1/24:fd00:30::1/64 eth0:10.10.0.1/24:fd00:10::1/64 \
    eth1:10.20.0.1/24:fd00:20::1/64; do
    name=${link%%:*}; rest=${link#*:}
    ip link add "$name" type veth peer name "${name}p"
    ip address add "${rest%%:*}" dev "$name"
    ip address add "${rest#*:}" dev "$name" nodad
    ip link set "$name" up
    ip link set "${name}p" up
done
echo 1 > /proc/sys/net/ipv4/conf/sps0/rp_filter
echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
ip rule add priority 50 fwmark 0x200/0xff00 lookup 200
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
iptables -t mangle -A PREROUTING -i eth0 -j MARK --or-mark 0x400
ip6tables -t mangle -A FORWARD -j ACCEPT
echo ready
exec sleep 86400
"#;

/// All of the router that anybody could notice, as text.
const SNAPSHOT: &str = r"
ip -d -4 rule; ip -d -6 rule
ip -d -4 route show table all; ip -d -6 route show table all
nft -s list ruleset
iptables-save -t mangle | sed -e '/^#/d' -e 's/\[.*\]//'; ip6tables-save -t mangle | sed -e '/^#/d' -e 's/\[.*\]//'
ipset list -n 2>/dev/null || true
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
        self.disturbed(arguments, &["-f"], (call, nth), fault)
    }

    /// The same with further arguments of `strace`; without `-f`, only this one process.
    fn disturbed(
        &self,
        arguments: &[&str],
        strace: &[&str],
        (call, nth): (&str, usize),
        fault: &str,
    ) -> Output {
        self.command("strace")
            .args(["-qq", "-o", "/dev/null"])
            .args(strace)
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
    /// How many times fewer faults make a sample: each run of iptables takes its time.
    slow: usize,
}

const STORIES: [Story; 4] = [
    Story {
        name: "first apply",
        before: &["teardown", "--wait", "20"],
        command: &["apply", "/var/lib/policies/a.toml"],
        slow: 1,
    },
    Story {
        name: "change of policy",
        before: &["apply", "--wait", "20", "/var/lib/policies/a.toml"],
        command: &["apply", "/var/lib/policies/b.toml"],
        slow: 1,
    },
    Story {
        name: "teardown",
        before: &["apply", "--wait", "20", "/var/lib/policies/a.toml"],
        command: &["teardown"],
        slow: 1,
    },
    Story {
        name: "change to iptables",
        before: &["apply", "--wait", "20", "/var/lib/policies/a.toml"],
        command: &["apply", "/var/lib/policies/iptables.toml"],
        slow: 2,
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
    router.write(
        "/var/lib/policies/iptables.toml",
        // More networks than a handful: a set is among what is made.
        &policy(3389, "[options]\nbackend = \"iptables\"").replace(
            "\"10.20.0.0/24\"",
            &[0, 2, 4, 6, 8, 10]
                .map(|net| format!("\"10.20.{net}.0/24\""))
                .join(", "),
        ),
    );
    Some(router)
}

/// The system calls by which the router, its files and the journal are changed, or seen
/// to be on the disk. A file that is made by `openat` is there before the `write` that follows.
const CHANGING: [&str; 19] = [
    "execve",
    "exit_group",
    "fchmod",
    "fchmodat",
    "fchown",
    "flock",
    "fsync",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendmsg",
    "sendto",
    "setsockopt",
    "unlink",
    "unlinkat",
    "write",
];

impl Router {
    /// Where the fault struck every program that was started, also those that would take
    /// things back, a run ends and says what remains. That must be true, and the next
    /// command without such faults must not stumble over it.
    fn mended(&self, output: &Output, story: &Story) {
        let said = error_of(output);
        if said.contains("NOT everything could be taken back")
            || said.contains("not all could be taken back")
        {
            self.must(story.before);
        }
    }
}

/// The stories to disturb: all, or those whose name holds `REDIRECT_CRASH_STORY`.
fn stories() -> impl Iterator<Item = &'static Story> {
    let wanted = std::env::var("REDIRECT_CRASH_STORY").unwrap_or_default();
    (STORIES.iter()).filter(move |story| story.name.contains(&wanted))
}

/// Every point at which a run can be disturbed, or a sample of them.
fn points(calls: &BTreeMap<String, usize>, sample: usize) -> Vec<(String, usize)> {
    let all: Vec<_> = calls
        .iter()
        .flat_map(|(call, count)| (1..=*count).map(move |nth| (call.clone(), nth)))
        .collect();
    match std::env::var("REDIRECT_CRASH").as_deref() {
        Ok("all") => return all,
        Ok("changing") => {
            return all
                .into_iter()
                .filter(|(call, _)| CHANGING.contains(&call.as_str()))
                .collect();
        }
        _ => {}
    }
    let stride = all.len().div_ceil(sample).max(1);
    // The same ones every time, unless others are asked for.
    let shift = match std::env::var("REDIRECT_CRASH").as_deref() {
        Ok("random") => std::process::id() as usize % stride,
        _ => 0,
    };
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
    let mut is_before = false;
    for (at, (call, nth)) in points.iter().enumerate() {
        if !is_before {
            router.must(story.before);
            assert_eq!(router.snapshot(), before, "before {}", story.name);
        }
        let output = router.faulty(story.command, call, *nth, fault);
        let killed = output.status.code().is_none_or(|code| code > 128);
        let open = router.is_open();
        // Signals that can be held back never stop a run half-way.
        assert!(!open || fault != "signal=TERM", "open after {call} {nth}");
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
        router.mended(&output, story);
        let found = router.snapshot();
        let failed = output.status.code().is_some_and(|code| code != 0) && !killed;
        let wanted: &[&String] = match (open || failed, killed) {
            (true, _) => &[&before],
            // Before it was written down, or after it had ended.
            (false, true) => &[&before, &after],
            (false, false) => &[&after],
        };
        is_before = found == before;
        if !wanted.contains(&&found) {
            let how = format!("{fault} at {call} {nth} ({})", error_of(&output));
            trace(traces, story, &how, &difference(wanted[0], &found));
            is_before = false;
            router.must(&["teardown", "--wait", "20"]);
        }
    }
    points.len()
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

/// Tells of a trace at once: all of them take hours.
fn trace(traces: &mut Vec<String>, story: &Story, how: &str, left: &str) {
    let text = format!("{}, {how}:\n{left}", story.name);
    println!("{text}");
    traces.push(text);
}

fn report(tried: usize, what: &str, traces: &[String]) {
    println!("{what}: {tried} tried, {} left traces", traces.len());
    assert!(traces.is_empty(), "{}", traces.join("\n"));
}

#[test]
fn killed_anywhere() {
    let Some(router) = prepared() else { return };
    let mut traces = Vec::new();
    for story in stories() {
        router.must(story.before);
        let points = points(&router.system_calls(story.command), 12 / story.slow);
        let tried = disturb(&router, story, "signal=KILL", &points, &mut traces);
        report(tried, &format!("kill -9 during {}", story.name), &traces);
    }
}

#[test]
fn failing_anywhere() {
    let Some(router) = prepared() else { return };
    let mut traces = Vec::new();
    for story in stories() {
        router.must(story.before);
        let mut calls = router.system_calls(story.command);
        // Neither can sensibly fail: what is not started, and what does not end.
        calls.retain(|call, _| {
            call == "openat" || CHANGING.contains(&call.as_str()) && !call.starts_with("ex")
        });
        let points = points(&calls, 8 / story.slow);
        for fault in ["error=EIO", "error=ENOSPC", "error=EROFS"] {
            let tried = disturb(&router, story, fault, &points, &mut traces);
            report(tried, &format!("{fault} during {}", story.name), &traces);
        }
    }
}

#[test]
fn told_to_stop_anywhere() {
    let Some(router) = prepared() else { return };
    let mut traces = Vec::new();
    for story in stories() {
        router.must(story.before);
        let points = points(&router.system_calls(story.command), 6 / story.slow);
        let tried = disturb(&router, story, "signal=TERM", &points, &mut traces);
        report(tried, &format!("SIGTERM during {}", story.name), &traces);
    }
}

/// How often a run makes this system call.
fn count(router: &Router, story: &Story, call: &str) -> usize {
    // Once without counting: the first run also writes down the policy.
    router.must(story.before);
    router.must(story.command);
    router.must(story.before);
    let calls = router.system_calls(story.command);
    calls.get(call).copied().unwrap_or_default()
}

/// Kills `story` where all changes are made and only the outcome is not written down.
fn kill_at_the_end(router: &Router, story: &Story, renames: usize) {
    let output = router.faulty(story.command, "rename", renames, "signal=KILL");
    assert!(!output.status.success());
    assert!(router.is_open());
}

#[test]
fn recovery_killed_anywhere() {
    let Some(router) = prepared() else { return };
    let mut traces = Vec::new();
    for story in stories() {
        let renames = count(&router, story, "rename");
        router.must(story.before);
        let before = router.snapshot();
        kill_at_the_end(&router, story, renames);
        let points = points(&router.system_calls(&["rollback"]), 8 / story.slow);
        for (call, nth) in &points {
            kill_at_the_end(&router, story, renames);
            let output = router.faulty(&["rollback"], call, *nth, "signal=KILL");
            if router.is_open() {
                router.must(&["repair", "--wait", "20"]);
            }
            assert!(!router.is_open());
            router.mended(&output, story);
            let found = router.snapshot();
            if found != before {
                let how = format!("recovery killed at {call} {nth}");
                trace(&mut traces, story, &how, &difference(&before, &found));
                // Afresh: the tables of before, in their order.
                router.must(&["teardown", "--wait", "20"]);
                router.must(story.before);
            }
        }
        let what = format!("kill -9 during the recovery of {}", story.name);
        report(points.len(), &what, &traces);
    }
}

#[test]
fn fifty_runs_at_once() {
    let Some(router) = prepared() else { return };
    let pristine = router.snapshot();
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    let applied = router.snapshot();
    let commands: [&[&str]; 5] = [
        &["apply", "--wait", "300", "/var/lib/policies/a.toml"],
        &["apply", "--wait", "300", "/var/lib/policies/b.toml"],
        &["teardown", "--wait", "300"],
        &["repair", "--wait", "300"],
        &["apply", "--wait", "300", "/var/lib/policies/a.toml"],
    ];
    let runs: Vec<_> = (0..50)
        .map(|at| {
            let mut command = router.command(&program());
            command.args(commands[at % commands.len()]);
            command.stderr(Stdio::piped()).stdout(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", error_of(&output));
    }
    assert!(!router.is_open());
    let output = router.redirect(&["history", "--json"]);
    let history: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let transactions = history["transactions"].as_array().unwrap();
    for (at, entry) in transactions.iter().enumerate() {
        assert_eq!(entry["id"], at + 1);
        assert_eq!(entry["outcome"], "done", "{entry}");
    }
    // Without patience, the lock's holder is named.
    let mut holder = router.command("strace");
    holder
        .args(["-qq", "-o", "/dev/null", "-e", "trace=flock", "-e"])
        .arg("inject=flock:delay_exit=10000000:when=1+")
        .arg(program())
        // Whoever looks below whether the lock is taken takes it for an instant: it may come second.
        .args(["apply", "--wait", "60", "/var/lib/policies/b.toml"]);
    let mut holder = holder.spawn().unwrap();
    wait_until("the lock is taken", || {
        let tried = router.run("flock", &["--nonblock", "/var/lib/redirect", "true"]);
        !tried.status.success()
    });
    let output = router.redirect(&["apply", "/var/lib/policies/a.toml"]);
    assert_eq!(output.status.code(), Some(75), "{}", error_of(&output));
    assert!(
        error_of(&output).contains("apply --wait 60 /var/lib/policies/b.toml"),
        "{}",
        error_of(&output)
    );
    assert!(holder.wait().unwrap().success());

    router.must(&["apply", "/var/lib/policies/a.toml"]);
    assert_eq!(router.snapshot(), applied);
    router.must(&["teardown"]);
    assert_eq!(router.snapshot(), pristine);
    println!(
        "50 runs at once: {} transactions, all done, no traces",
        transactions.len()
    );
}

#[test]
fn on_a_full_disk_and_on_a_read_only_one() {
    let Some(router) = prepared() else { return };
    router.shell("mkdir -m 700 /var/lib/redirect; mount -t tmpfs -o size=256k,mode=700 none /var/lib/redirect");
    let fill =
        || router.shell("dd if=/dev/zero of=/var/lib/redirect/filler bs=1k 2>/dev/null || true");
    let free = || router.shell("rm -f /var/lib/redirect/filler");
    let pristine = router.snapshot();

    fill();
    let output = router.redirect(&["apply", "/var/lib/policies/a.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_of(&output).contains("make room"),
        "{}",
        error_of(&output)
    );
    assert_eq!(router.snapshot(), pristine);
    free();
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    let applied = router.snapshot();
    // A change of policy fails or not; either way the router is in one state or the other.
    fill();
    let output = router.redirect(&["apply", "/var/lib/policies/b.toml"]);
    if !output.status.success() {
        assert_eq!(router.snapshot(), applied);
    }
    // What was applied can be taken back without anybody making room.
    router.must(&["teardown"]);
    assert_eq!(router.snapshot(), pristine);
    let status = router.redirect(&["status"]);
    assert!(status.status.success(), "{}", error_of(&status));
    free();

    router.must(&["apply", "/var/lib/policies/a.toml"]);
    router.shell("mount -o remount,ro /var/lib/redirect");
    let output = router.redirect(&["apply", "/var/lib/policies/b.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_of(&output).contains("read-only"),
        "{}",
        error_of(&output)
    );
    assert_eq!(router.snapshot(), applied);
    let output = router.redirect(&["teardown"]);
    assert!(output.status.success(), "{}", error_of(&output));
    assert!(
        error_of(&output).contains("run `redirect teardown` again"),
        "{}",
        error_of(&output)
    );
    assert_eq!(router.snapshot(), pristine);
    router.shell("mount -o remount,rw /var/lib/redirect");
    // The journal could not know, and says so.
    assert_eq!(router.redirect(&["status"]).status.code(), Some(2));
    router.must(&["teardown"]);
    assert!(router.redirect(&["status"]).status.success());
    assert_eq!(router.snapshot(), pristine);
}

#[test]
fn without_a_state_directory_and_with_a_damaged_journal() {
    let Some(router) = prepared() else { return };
    let pristine = router.snapshot();
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    let applied = router.snapshot();

    // A damaged journal: nothing is built on it, but everything can be taken out.
    router.shell("truncate --size 100 /var/lib/redirect/journal.json");
    for command in [
        &["apply", "/var/lib/policies/b.toml"][..],
        &["repair"],
        &["status"],
    ] {
        let output = router.redirect(command);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            error_of(&output).contains("`redirect teardown` works"),
            "{}",
            error_of(&output)
        );
    }
    assert_eq!(router.snapshot(), applied);
    let output = router.redirect(&["teardown"]);
    assert!(output.status.success());
    assert!(
        error_of(&output).contains("journal.json.damaged-"),
        "{}",
        error_of(&output)
    );
    // What only the journal knew cannot be put back, and is named; nothing else is left.
    let told = "net/ipv4/conf/sps0/rp_filter holds 2 and is left so";
    let by_hand = "echo 1 > /proc/sys/net/ipv4/conf/sps0/rp_filter";
    assert!(error_of(&output).contains(told), "{}", error_of(&output));
    assert_eq!(
        difference(&pristine, &router.snapshot()),
        "  missing: /proc/sys/net/ipv4/conf/sps0/rp_filter:1\n  \
         left over: /proc/sys/net/ipv4/conf/sps0/rp_filter:2\n"
    );
    router.shell(by_hand);

    // The same where it cannot even be set aside.
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    router.shell(
        "mount --bind /var/lib/redirect /var/lib/redirect
         truncate --size 100 /var/lib/redirect/journal.json
         mount -o remount,bind,ro /var/lib/redirect",
    );
    let output = router.redirect(&["teardown"]);
    assert!(output.status.success(), "{}", error_of(&output));
    assert!(error_of(&output).contains(told), "{}", error_of(&output));
    router.shell(&format!("{by_hand}; umount /var/lib/redirect"));
    assert_eq!(router.snapshot(), pristine);
    router.must(&["teardown"]);

    // Where the name cannot be taken back, all else comes back, and that is what is said.
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    router.shell("mount -o remount,ro /etc/iproute2");
    let output = router.redirect(&["teardown"]);
    assert_eq!(output.status.code(), Some(1));
    let said = error_of(&output);
    assert!(said.contains("the router is as it was"), "{said}");
    assert!(!said.contains("NOT everything"), "{said}");
    assert_eq!(router.snapshot(), applied);
    router.shell("mount -o remount,rw /etc/iproute2");
    router.must(&["teardown"]);

    // No state directory, and none can be made.
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    router.shell("rm -r /var/lib/redirect; mount -o remount,ro /var/lib");
    let output = router.redirect(&["apply", "/var/lib/policies/b.toml"]);
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    assert_eq!(router.snapshot(), applied);
    router.must(&["teardown"]);
    router.shell(by_hand);
    assert_eq!(router.snapshot(), pristine);
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..300 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(holds(), "{what} within 30 seconds");
}

#[test]
fn what_nobody_confirms_goes_back() {
    let Some(router) = prepared() else { return };
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    let before = router.snapshot();

    // The session that applied it is lost: its terminal hangs up, its processes are killed.
    let session = format!(
        "setsid sh -c '{} apply --confirm 10 /var/lib/policies/b.toml; kill -HUP 0'",
        program()
    );
    router.run("sh", &["-c", &session]);
    assert_ne!(router.snapshot(), before);
    assert!(
        router.redirect(&["status"]).status.success(),
        "in force, if unconfirmed"
    );
    let second = router.redirect(&["apply", "/var/lib/policies/a.toml"]);
    assert_eq!(second.status.code(), Some(75));
    assert!(
        error_of(&second).contains("waits to be confirmed"),
        "{}",
        error_of(&second)
    );
    wait_until("it goes back", || !router.is_open());
    assert_eq!(router.snapshot(), before);

    // Confirmed in time, it stays.
    router.must(&["apply", "--confirm", "60", "/var/lib/policies/b.toml"]);
    let after = router.snapshot();
    router.must(&["confirm"]);
    assert_eq!(router.snapshot(), after);
    assert_eq!(
        router.redirect(&["confirm"]).status.code(),
        Some(1),
        "nothing waits any more"
    );

    // Taken back by hand before it was confirmed.
    router.must(&["apply", "--confirm", "60", "/var/lib/policies/a.toml"]);
    router.must(&["rollback"]);
    assert_eq!(router.snapshot(), after);

    // Killed half-way: the watcher sees to it, long before the deadline.
    router.must(&["apply", "/var/lib/policies/a.toml"]);
    let arguments = ["apply", "--confirm", "600", "/var/lib/policies/b.toml"];
    router.disturbed(&arguments, &[], ("sendto", 40), "signal=KILL");
    wait_until("the watcher takes it back", || !router.is_open());
    let found = router.snapshot();
    assert_eq!(found, before, "{}", difference(&before, &found));

    // The machine restarts before it is confirmed: it comes up with what was confirmed last.
    router.must(&["apply", "--confirm", "600", "/var/lib/policies/b.toml"]);
    router.shell(
        "echo 11111111-2222-3333-4444-555555555555 > /var/lib/boot_id
         mount --bind /var/lib/boot_id /proc/sys/kernel/random/boot_id",
    );
    assert_eq!(router.redirect(&["status"]).status.code(), Some(2));
    router.must(&["repair"]);
    assert!(router.redirect(&["status"]).status.success());
    let output = router.redirect(&["history", "--json"]);
    let history: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entries = history["transactions"].as_array().unwrap();
    let undone = &entries[entries.len() - 2];
    assert!(
        undone["outcome"]["undone"]["why"]
            .as_str()
            .unwrap()
            .contains("restarted"),
        "{undone}"
    );
}
