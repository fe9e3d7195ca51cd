//! A lab of `examples/lab` of a test's own, and what one does in it.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redirect::kernel::process;

/// The command that Cargo built for these tests.
const BUILT: &str = env!("CARGO_BIN_EXE_redirect");

/// The servers, one of each family.
pub const SERVERS: [&str; 2] = ["10.20.0.2", "fd00:20::2"];

/// Longest that anything in a lab may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lab, taken away when dropped.
pub struct Lab {
    name: String,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Requires this exit code; `self` again, for what it printed.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code (found, wanted); it printed:\n{}{}",
            self.stdout, self.stderr
        );
        self
    }
}

/// With which address the appliance dials servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Its own.
    Own,
    /// The client's, with a port of its own choice.
    ClientAddress,
    /// The client's, and the client's port.
    ClientAddressAndPort,
}

impl Mode {
    /// What the policy has to say for it.
    pub fn snat(self) -> bool {
        self != Self::Own
    }

    fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::ClientAddress => "clientip",
            Self::ClientAddressAndPort => "client",
        }
    }
}

/// The way that a session took, as its server saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the appliance.
    Recorded,
    /// Past it.
    Direct,
}

/// A session that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// The server answered.
    Answered {
        way: Way,
        /// Whom the server saw.
        peer: (IpAddr, u16),
        /// The client's own port.
        port: u16,
    },
    /// It did not, and why, in the word that `examples/session.rs` has for it.
    Failed(String),
}

impl Session {
    pub fn way(&self) -> Option<Way> {
        match self {
            Self::Answered { way, .. } => Some(*way),
            Self::Failed(_) => None,
        }
    }

    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [way @ ("recorded" | "direct"), peer, peer_port, "from", port] => Self::Answered {
                way: Way::parse(way).unwrap(),
                peer: (peer.parse().unwrap(), peer_port.parse().unwrap()),
                port: port.parse().unwrap(),
            },
            [word] => Self::Failed(word.to_owned()),
            _ => panic!("`session` said `{line}`"),
        }
    }
}

impl Way {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "recorded" => Some(Self::Recorded),
            "direct" => Some(Self::Direct),
            _ => None,
        }
    }
}

/// Says, even where the test harness swallows output, that a check was not made.
pub fn skipped(what: &str, why: &str) {
    // Nothing more can be done where standard error is closed.
    let _ = writeln!(io::stderr(), "SKIPPED {what}: {why}");
}

impl Lab {
    /// Builds one; `None`, said loudly, where that is not permitted.
    pub fn up(test: &str, variants: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        if !nix::unistd::Uid::effective().is_root() {
            skipped(test, "a lab needs root");
            return None;
        }
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let mut arguments = vec!["up", &name];
        arguments.extend(variants);
        lab(&arguments).ended(0);
        Some(Self { name })
    }

    /// Runs a command as `role`.
    pub fn run(&self, role: &str, command: &[&str]) -> Outcome {
        self.run_with(role, command, "")
    }

    /// Runs a command as `role`, with `input` on its standard input.
    pub fn run_with(&self, role: &str, command: &[&str], input: &str) -> Outcome {
        let mut arguments = vec!["run", &self.name, role, "--"];
        arguments.extend(command);
        lab_with(&arguments, input)
    }

    /// Runs shell commands on the router, all of which must succeed; what they printed.
    #[track_caller]
    pub fn router(&self, script: &str) -> String {
        self.run_with("router", &["sh", "-eu"], script)
            .ended(0)
            .stdout
    }

    /// Runs `redirect` on the router.
    pub fn redirect(&self, arguments: &[&str]) -> Outcome {
        let redirect = under_test();
        let mut command = vec![redirect.as_str()];
        command.extend(arguments);
        self.run("router", &command)
    }

    /// Makes `text` the router's policy.
    pub fn policy(&self, text: &str) {
        self.run_with("router", &["tee", "/etc/redirect/policy.toml"], text)
            .ended(0);
    }

    /// Makes `text` the router's policy and applies it.
    #[track_caller]
    pub fn apply(&self, text: &str) -> Outcome {
        self.policy(text);
        self.redirect(&["apply"]).ended(0)
    }

    /// Lets the appliance dial servers this way.
    pub fn mode(&self, mode: Mode) {
        lab(&["mode", &self.name, mode.word()]).ended(0);
    }

    /// Tries a session from `role`.
    pub fn ask(&self, role: &str, server: &str, port: u16) -> Session {
        let session = session_binary();
        let outcome = self.run(role, &[&session, "ask", server, &port.to_string(), "4000"]);
        Session::parse(outcome.stdout.trim())
    }

    /// Sends or receives so many bytes, each of which is checked; which way they went.
    pub fn transfer(&self, direction: &str, server: &str, bytes: u64) -> Result<Way, String> {
        let session = session_binary();
        let outcome = self.run(
            "client",
            &[&session, direction, server, "3389", &bytes.to_string()],
        );
        let mut lines = outcome.stdout.lines();
        let (first, second) = (lines.next(), lines.next());
        if second == Some(&format!("{bytes} bytes")) {
            let way = Session::parse(first.unwrap_or_default()).way();
            return way.ok_or(outcome.stdout);
        }
        Err(outcome.stdout)
    }

    /// The appliance's record: for each session that has ended, client and server.
    pub fn log(&self) -> Vec<Record> {
        let lines = lab(&["log", &self.name]).ended(0).stdout;
        lines.lines().map(Record::parse).collect()
    }

    /// Whether the appliance has recorded, or within a moment records, a session from this port
    /// of a client to this server. (It writes its line when both sides have ended.)
    pub fn recorded(&self, client_port: u16, server: &str, port: u16) -> bool {
        let server: IpAddr = server.parse().unwrap();
        (0..50).any(|_| {
            let found = self
                .log()
                .iter()
                .any(|record| record.client.1 == client_port && record.server == (server, port));
            if !found {
                std::thread::sleep(Duration::from_millis(20));
            }
            found
        })
    }

    /// How many packets from `client` ever reached `server` past the appliance, on one of `ports`.
    pub fn packets_past_appliance(&self, client: &str, server: &str, ports: &[u16]) -> u64 {
        let lines = lab(&["direct", &self.name]).ended(0).stdout;
        let packets = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [from, to, port, packets] = words[..] else {
                panic!("`lab direct` said `{line}`");
            };
            let meant = from == client && to == server && ports.contains(&port.parse().unwrap());
            if meant { packets.parse().unwrap() } else { 0 }
        };
        lines.lines().map(packets).sum()
    }

    /// Begins new sessions from the client, `rate` a second, until [`Stream::end`].
    pub fn stream(&self, server: &str, rate: u32) -> Stream {
        let session = session_binary();
        let rate = rate.to_string();
        let words = ["stream", server, "3389", &rate];
        Stream(Running::start(&self.name, "client", &session, &words))
    }

    /// Opens a session from the client and keeps it open.
    pub fn hold(&self, server: &str, port: u16) -> Held {
        let session = session_binary();
        let words = ["hold", server, &port.to_string()];
        let mut running = Running::start(&self.name, "client", &session, &words);
        let opened = Session::parse(&running.line().unwrap_or_default());
        Held { running, opened }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let outcome = lab(&["down", &self.name]);
        if outcome.code != 0 {
            eprintln!("lab {} is left over: {}", self.name, outcome.stderr);
        }
    }
}

/// A line of the appliance's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub client: (IpAddr, u16),
    pub server: (IpAddr, u16),
}

impl Record {
    fn parse(line: &str) -> Self {
        let value = |key: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
                .unwrap_or_else(|| panic!("no `{key}` in `{line}`"))
        };
        Self {
            client: (
                value("client").parse().unwrap(),
                value("client_port").parse().unwrap(),
            ),
            server: (
                value("server").parse().unwrap(),
                value("port").parse().unwrap(),
            ),
        }
    }
}

// --- sessions that run beside the test -------------------------------------------

struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(lab: &str, role: &str, program: &str, words: &[&str]) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "`kernel::process` waits for what it starts; this runs beside the test"
        )]
        let mut child = Command::new(script())
            .args(["run", lab, role, "--", program])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Closes its input, by which it ends; the rest of what it prints.
    fn end(&mut self) -> Vec<String> {
        drop(self.input.take());
        let lines = std::iter::from_fn(|| self.line()).collect();
        self.child.wait().unwrap();
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Sessions begun one after another.
pub struct Stream(Running);

impl Stream {
    /// Lets the last ones end.
    pub fn end(mut self) -> Vec<Streamed> {
        let lines = self.0.end();
        lines.iter().map(|line| Streamed::parse(line)).collect()
    }
}

/// One of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streamed {
    /// Since 1970.
    pub begun: Duration,
    /// Since 1970.
    pub ended: Duration,
    /// The way it went, or the word for how it failed.
    pub became: Result<Way, String>,
}

impl Streamed {
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [begun, ended, _port, outcome, ..] = words[..] else {
            panic!("`session` said `{line}`");
        };
        let time = |word: &str| Duration::from_micros(word.parse().unwrap());
        Self {
            begun: time(begun),
            ended: time(ended),
            became: Way::parse(outcome).ok_or_else(|| outcome.to_owned()),
        }
    }
}

impl fmt::Display for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "begun {:.6}, ended {:.6}: {:?}",
            self.begun.as_secs_f64(),
            self.ended.as_secs_f64(),
            self.became
        )
    }
}

/// The clock by which a [`Stream`] tells its times.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// A session that is kept open.
pub struct Held {
    running: Running,
    /// How it began.
    pub opened: Session,
}

impl Held {
    /// Whether it still carries a line there and back.
    pub fn is_alive(&mut self) -> bool {
        let Some(input) = &mut self.running.input else {
            return false;
        };
        if writeln!(input, "alive").is_err() {
            return false;
        }
        self.running.line().as_deref() == Some("alive")
    }
}

// --- the script --------------------------------------------------------------------

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/lab")
}

/// The command under test; `REDIRECT_PROGRAM` names another, such as the static one.
pub fn under_test() -> String {
    std::env::var("REDIRECT_PROGRAM").unwrap_or_else(|_| BUILT.to_owned())
}

/// `examples/session.rs`, which Cargo builds together with the tests.
fn session_binary() -> String {
    let binary = Path::new(BUILT).parent().unwrap().join("examples/session");
    assert!(binary.exists(), "build it: `cargo build --example session`");
    binary.to_str().unwrap().to_owned()
}

fn lab(arguments: &[&str]) -> Outcome {
    lab_with(arguments, "")
}

fn lab_with(arguments: &[&str], input: &str) -> Outcome {
    let session = format!("REDIRECT_LAB_SESSION={}", session_binary());
    let script = script();
    let mut words = vec![session.as_str(), script.to_str().unwrap()];
    words.extend(arguments);
    let output = process::run("env", &words, input.as_bytes(), PATIENCE).unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Takes away labs of test runs that were killed.
fn sweep() {
    for name in lab(&["list"]).stdout.lines() {
        let owner = name
            .strip_prefix("test-")
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            lab(&["down", name]);
        }
    }
}
