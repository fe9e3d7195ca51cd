//! How fast, and with how much memory, as whole processes: `redirect` from its start to its end,
//! journal and all, beside what people run instead, in turn, on fresh routers.
//!
//! ```text
//! tests/run benchmark                    all of it, having installed what it compares with
//! cargo bench                            the same, with what is installed
//! cargo bench -- 1 10000 --rounds 3      only these numbers of networks, so often
//! cargo test --bench speed               whether it works: few networks, once, a debug build
//! ```
//!
//! Needs root, for network and mount namespaces of its own; this machine's rules are not touched.

mod bare;
mod networks;
mod peers;
mod report;
mod router;
mod sample;

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use redirect::kernel::nftables::Nftables;
use redirect::nft::Table;
use redirect::nft::wire::{self, Terms};
use redirect::policy::{self, Source};
use redirect::rules;

use networks::Network;
use peers::Scripts;
use report::Report;
use sample::Task;

/// Whatever goes wrong ends the run and is shown.
type Trouble = Box<dyn Error>;

/// The program that is measured: this build's.
const PROGRAM: &str = env!("CARGO_BIN_EXE_redirect");
/// The set that holds the networks.
const SET: &str = "servers4_bench";
/// More rules than a rule a network makes of so many take minutes, and every packet for ever.
const MOST_RULES: usize = 10_000;

/// Numbers of networks, and how often each is measured.
const FULL: [(usize, usize); 4] = [(1, 15), (1_000, 9), (10_000, 7), (100_000, 3)];
const SMOKE: [(usize, usize); 2] = [(1, 1), (50, 1)];

/// Which packet filter `redirect` is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Backend {
    Nftables,
    Iptables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Redirect(Backend),
    Bare,
    Journalled,
    NftFile,
    Ipset,
    RuleANetwork,
    ByHand,
}

impl Subject {
    /// In the order in which they take turns.
    const ALL: [Self; 8] = [
        Self::Redirect(Backend::Nftables),
        Self::Bare,
        Self::Journalled,
        Self::NftFile,
        Self::Redirect(Backend::Iptables),
        Self::Ipset,
        Self::RuleANetwork,
        Self::ByHand,
    ];

    /// Commands that only look, and work where it can work.
    fn needs(self) -> &'static [(&'static str, &'static [&'static str])] {
        const IPTABLES: (&str, &[&str]) = ("iptables-save", &["-t", "mangle"]);
        match self {
            Self::Redirect(Backend::Nftables) | Self::Bare | Self::Journalled => &[],
            Self::NftFile => &[("nft", &["list", "tables"])],
            Self::Redirect(Backend::Iptables) | Self::Ipset => {
                &[IPTABLES, ("ipset", &["list", "-name"])]
            }
            Self::RuleANetwork | Self::ByHand => &[IPTABLES],
        }
    }

    /// Whether it does so many networks at all.
    fn takes(self, count: usize) -> bool {
        match self {
            Self::RuleANetwork => count <= MOST_RULES,
            Self::ByHand => count == 1,
            _ => true,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirect(backend) => write!(f, "**`redirect`, {backend}**"),
            Self::Bare => f.write_str("the bare netlink batch or dump"),
            Self::Journalled => {
                f.write_str("the bare batch, and the least that a synced journal takes")
            }
            Self::NftFile => f.write_str("`nft` and `ip`"),
            Self::Ipset => f.write_str("`ipset`, `iptables-restore` and `ip`"),
            Self::RuleANetwork => f.write_str("`iptables-restore`, a rule a network, and `ip`"),
            Self::ByHand => f.write_str("the vendor's seven commands, for one port"),
        }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Apply,
    Again,
    Change,
    Status,
    Diff,
    Teardown,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apply => "apply",
            Self::Again => "apply again, nothing to change",
            Self::Change => "apply with three networks changed",
            Self::Status => "status",
            Self::Diff => "diff",
            Self::Teardown => "teardown",
        })
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            tell(&trouble.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Trouble> {
    match arguments.split_first() {
        Some((mode, words)) if mode == "time" => return sample::time(words),
        Some((mode, [file])) if mode == "send" => return bare::send(Path::new(file)),
        Some((mode, [file])) if mode == "send-journalled" => {
            return bare::send_journalled(Path::new(file));
        }
        Some((mode, [set])) if mode == "dump" => return bare::dump(set),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        tell("SKIPPED benchmark: namespaces of its own need root");
        return Ok(());
    }
    let sizes = sizes(arguments)?;
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
    if let Err(trouble) = router::own_files(&work) {
        tell(&format!(
            "SKIPPED benchmark: no files of its own: {trouble}"
        ));
        return Ok(());
    }
    let measured = measure(&work, &sizes);
    let removed = fs::remove_dir_all(&work);
    let report = measured?;
    removed?;
    report.print();
    Ok(())
}

/// What was asked for: `cargo bench` says `--bench`, `cargo test` does not.
fn sizes(arguments: &[String]) -> Result<Vec<(usize, usize)>, Trouble> {
    let usage = "usage: cargo bench -- [NETWORKS...] [--rounds N]";
    let (mut chosen, mut rounds, mut full) = (Vec::new(), None, false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => full = true,
            "--rounds" => rounds = Some(words.next().ok_or(usage)?.parse::<usize>()?),
            number => chosen.push(number.parse::<usize>().map_err(|_| usage)?),
        }
    }
    let usual: &[(usize, usize)] = if full { &FULL } else { &SMOKE };
    let often = |count| {
        let usual = usual.iter().rfind(|(usual, _)| *usual <= count);
        rounds
            .or(usual.map(|(_, often)| *often))
            .unwrap_or(1)
            .max(1)
    };
    if chosen.is_empty() {
        chosen = usual.iter().map(|(count, _)| *count).collect();
    }
    Ok(chosen
        .into_iter()
        .map(|count| (count, often(count)))
        .collect())
}

fn measure(work: &Path, sizes: &[(usize, usize)]) -> Result<Report, Trouble> {
    let mut subjects = Vec::new();
    router::new()?;
    for subject in Subject::ALL {
        // What a program needs of the kernel may be missing as well.
        let tried = (subject.needs().iter())
            .try_for_each(|(program, words)| router::run(program, words, "").map(drop));
        match tried {
            Err(trouble) => tell(&format!("SKIPPED {subject}: {trouble}")),
            Ok(()) => subjects.push(subject),
        }
    }
    let mut report = Report::default();
    for &(count, rounds) in sizes {
        let input = Input::write(work.join("inputs").join(count.to_string()), count)?;
        report.size(count, input.merged, rounds);
        for round in 1..=rounds {
            tell(&format!("{count} networks, round {round} of {rounds}"));
            for &subject in subjects.iter().filter(|subject| subject.takes(count)) {
                // What the last router held is taken apart in the background.
                std::thread::sleep(Duration::from_millis(20 + count as u64 / 200));
                router::new()?;
                for (act, task) in input.tasks(subject)? {
                    let before = generation(subject)?;
                    report.add(subject, act, count, task.measure()?);
                    if act == Act::Change {
                        report.transactions(count, generation(subject)?.wrapping_sub(before));
                    }
                }
            }
        }
    }
    Ok(report)
}

/// How many transactions nftables has seen on this router, where it matters.
fn generation(subject: Subject) -> Result<u32, Trouble> {
    if subject == Subject::Redirect(Backend::Nftables) {
        Ok(Nftables::open()?.generation()?)
    } else {
        Ok(0)
    }
}

/// The files of one number of networks.
struct Input {
    directory: PathBuf,
    /// How many intervals they come to, nested and adjacent ones merged.
    merged: usize,
}

impl Input {
    fn write(directory: PathBuf, count: usize) -> Result<Self, Trouble> {
        fs::create_dir_all(&directory)?;
        let mut this = Self {
            directory,
            merged: 0,
        };
        let networks = networks::random(count);
        let lists = [
            ("networks", &networks),
            ("changed", &networks::with_a_few_others(&networks)),
        ];
        for (name, networks) in lists {
            let lines: Vec<String> = networks.iter().map(Network::to_string).collect();
            router::write(&this.path(&format!("{name}.txt")), &lines.join("\n"))?;
            for backend in [Backend::Nftables, Backend::Iptables] {
                router::write(&this.policy(name, backend), &policy_text(name, backend))?;
            }
        }
        this.write_batches()?;
        this.write_scripts("ipset", &peers::with_ipset(&networks))?;
        this.write_scripts("rules", &peers::rule_a_network(&networks))?;
        if let [only] = networks.as_slice() {
            this.write_scripts("hand", &peers::by_hand(*only))?;
        }
        let policy = this.policy("networks", Backend::Nftables);
        let policy = policy.to_string_lossy();
        let words = ["apply", "--dry-run", "--offline", &policy];
        let nft = Scripts {
            up: router::run(PROGRAM, &words, "")?,
            down: peers::NFT_BACK.to_owned(),
        };
        this.write_scripts("nft", &nft)?;
        Ok(this)
    }

    /// The very bytes that `redirect` sends.
    fn write_batches(&mut self) -> Result<(), Trouble> {
        let table = self.table("networks")?;
        let changed = self.table("changed")?;
        let sets = table.iter().flat_map(|table| &table.sets);
        self.merged = (sets.filter(|set| set.name == SET))
            .map(|set| set.elements.len())
            .sum();
        let batches = [
            ("batch", None, table.as_ref()),
            ("batch.change", table.as_ref(), changed.as_ref()),
        ];
        for (name, from, to) in batches {
            let mut batch =
                wire::transaction(from, to, &Terms::default())?.ok_or("nothing to send")?;
            batch.number_from(1);
            #[expect(clippy::disallowed_methods, reason = "nothing of these is to survive")]
            fs::write(self.path(name), batch.bytes())?;
        }
        Ok(())
    }

    /// The packet rules that come of the policy with these networks.
    fn table(&self, networks: &str) -> Result<Option<Table>, Trouble> {
        let source = Source::load(&self.policy(networks, Backend::Nftables))?;
        let reading = policy::read(&source).map_err(|errors| errors.to_string())?;
        Ok(rules::nftables::table(&reading.policy))
    }

    fn write_scripts(&self, name: &str, scripts: &Scripts) -> Result<(), Trouble> {
        router::write(&self.path(&format!("{name}.up")), &scripts.up)?;
        router::write(&self.path(&format!("{name}.down")), &scripts.down)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn policy(&self, networks: &str, backend: Backend) -> PathBuf {
        self.path(&format!("{networks}.{backend}.toml"))
    }

    /// What `subject` does on a router, in order.
    fn tasks(&self, subject: Subject) -> Result<Vec<(Act, Task)>, Trouble> {
        let scripts = |name: &str| {
            let run = |part| Task::new("sh", &[]).and(&self.path(&format!("{name}.{part}")));
            vec![(Act::Apply, run("up")), (Act::Teardown, run("down"))]
        };
        Ok(match subject {
            Subject::Redirect(backend) => {
                let policy = self.policy("networks", backend);
                let apply = Task::new(PROGRAM, &["apply"]).and(&policy);
                let change = Task::new(PROGRAM, &["apply"]).and(&self.policy("changed", backend));
                vec![
                    (Act::Apply, apply.clone()),
                    (Act::Again, apply),
                    (Act::Status, Task::new(PROGRAM, &["status"])),
                    (Act::Diff, Task::new(PROGRAM, &["diff"]).and(&policy)),
                    (Act::Change, change),
                    (Act::Teardown, Task::new(PROGRAM, &["teardown"])),
                ]
            }
            Subject::Bare => {
                let this = std::env::current_exe()?;
                let send = |batch| Task::new(&this, &["send"]).and(&self.path(batch));
                vec![
                    (Act::Apply, send("batch")),
                    (Act::Status, Task::new(&this, &["dump", SET])),
                    (Act::Change, send("batch.change")),
                ]
            }
            Subject::Journalled => {
                let send = Task::new(std::env::current_exe()?, &["send-journalled"]);
                vec![(Act::Apply, send.and(&self.path("batch")))]
            }
            Subject::NftFile => scripts("nft"),
            Subject::Ipset => scripts("ipset"),
            Subject::RuleANetwork => scripts("rules"),
            Subject::ByHand => scripts("hand"),
        })
    }
}

fn policy_text(networks: &str, backend: Backend) -> String {
    let ports: Vec<String> = peers::PORTS
        .concat()
        .iter()
        .map(|range| format!("\"{}\"", range.replace(':', "-")))
        .collect();
    let ports = ports.join(", ");
    format!(
        r#"version = 1
[appliance.scb]
address = "10.30.0.2"
interface = "sps0"
[[redirect]]
name = "bench"
client_interface = "cli0"
server_interface = "srv0"
server_network = {{ file = "{networks}.txt" }}
port = [{ports}]
snat = true
[options]
backend = "{backend}"
"#
    )
}

/// Says how far it is.
#[expect(clippy::print_stderr, reason = "standard output is for the tables")]
fn tell(text: &str) {
    eprintln!("{text}");
}
