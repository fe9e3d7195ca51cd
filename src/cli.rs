//! What can be typed. Man page and completions come from this very definition.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::net::IfName;

/// Where the policy is, unless given.
pub const POLICY: &str = "/etc/redirect/policy.toml";

/// Sends selected sessions that cross this router to a session-recording appliance,
/// and proves that it did.
#[derive(Debug, Parser)]
#[command(
    name = "redirect",
    version,
    max_term_width = 100,
    infer_subcommands = false
)]
#[command(after_help = "\
Exit status: 0 done, or in sync; 1 failed, and the router is as it was; 2 drift, changes pending, or
sessions that do not go where they should (`status`, `check`, `trace`); 64 usage; 65 bad policy;
69 the router lacks something; 75 another run holds the lock; 77 not permitted.

First steps: `redirect check policy.toml`, `redirect apply --dry-run policy.toml`,
`redirect apply --confirm 120 policy.toml`, then `redirect confirm` over a fresh connection.")]
pub struct Cli {
    /// Say nothing on standard error but warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Whether what it prints is for machines, its failure included.
    #[must_use]
    pub fn wants_json(&self) -> bool {
        match &self.command {
            Command::Apply(args) => args.format == Format::Json,
            Command::Rollback(args) => args.format == Format::Json,
            Command::Teardown(args) => args.format == Format::Json,
            Command::Diff(args) => args.json,
            Command::Status(args) => args.json,
            Command::Check(args) => args.json,
            Command::Trace(args) => args.json,
            Command::History(args) => args.json,
            Command::Confirm(_)
            | Command::Repair(_)
            | Command::Init(_)
            | Command::Support(_)
            | Command::Schema
            | Command::ConfirmWatch(_) => false,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the router match the policy; a second run changes nothing
    Apply(Apply),
    /// Show what apply would change, object by object
    Diff(Diff),
    /// Take all of it back, and restore what was there before
    Teardown(Teardown),
    /// Show whether what was applied is in place, and what goes through it
    Status(Status),
    /// Keep what `apply --confirm` has applied
    Confirm(Confirm),
    /// Go back to the policy before; also ends an interrupted run
    Rollback(Rollback),
    /// Put back what others removed; does nothing where all is well
    Repair(Repair),
    /// Show who applied what, when, and with what result
    History(History),
    /// Is the policy sound on this router, and does each leg go where it should; changes nothing
    Check(Check),
    /// Follow one packet: which redirect takes it, by which rule, mark, table and next hop
    Trace(Trace),
    /// Look at the router and write a commented first policy; changes nothing
    Init(Init),
    /// Pack what a ticket needs into one .tar.gz, and say what it holds
    Support(Support),
    /// Print the JSON Schema of the policy, for editors
    Schema,
    /// Take a transaction back unless it is confirmed: what `apply --confirm` starts
    #[command(name = crate::journal::confirm::COMMAND, hide = true)]
    ConfirmWatch(ConfirmWatch),
}

/// `redirect confirm`.
#[derive(Debug, Args)]
pub struct Confirm {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArg,
}

/// `redirect rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The transaction whose policy is to be in force again, as `redirect history` counts them
    #[arg(long, value_name = "N")]
    pub to: Option<u64>,
    /// Print the equivalent shell commands instead; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t, requires = "dry_run")]
    pub format: Format,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArg,
}

/// `redirect repair`.
#[derive(Debug, Args)]
pub struct Repair {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArg,
}

/// `redirect history`.
#[derive(Debug, Args)]
pub struct History {
    /// What to show of it.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,
    /// For machines
    #[arg(long, global = true)]
    pub json: bool,
}

/// Parts of the history.
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// Print the policy of a transaction, as it was applied
    Show {
        /// Its number
        #[arg(value_name = "N")]
        id: u64,
        /// Print this list file of it instead
        #[arg(long, value_name = "FILE")]
        list: Option<PathBuf>,
    },
}

/// `redirect confirm-watch`.
#[derive(Debug, Args)]
pub struct ConfirmWatch {
    /// Its number.
    pub transaction: u64,
}

/// Which policy.
#[derive(Debug, Args)]
pub struct PolicyArg {
    /// The policy file; `-` reads standard input
    #[arg(value_name = "POLICY", default_value = POLICY)]
    pub policy: PathBuf,
}

/// How the router is looked at.
#[derive(Debug, Args)]
pub struct OfflineArg {
    /// Look at nothing, and assume a clean router: for another machine than the router
    #[arg(long)]
    pub offline: bool,
}

/// Waiting for others.
#[derive(Debug, Args)]
pub struct WaitArg {
    /// How long to wait at most for another run to finish: seconds, or `90s`, `10m`, `8h`
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0")]
    pub wait: Duration,
}

/// `redirect apply`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag to be typed")]
pub struct Apply {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub policy: PolicyArg,
    /// Go back by itself unless `redirect confirm` follows within this time: seconds, or `90s`, `5m`
    #[arg(long, value_name = "TIME", value_parser = time_to_confirm, conflicts_with_all = ["dry_run", "confirmed", "early"])]
    pub confirm: Option<Duration>,
    /// Cut sessions that the policy leaves behind; without it they end as they began, through the
    /// appliance that they began with
    #[arg(long, conflicts_with_all = ["confirmed", "early"])]
    pub cut: bool,
    /// Apply the policy that was confirmed last, as the journal keeps it; does nothing if there is none
    #[arg(long, conflicts_with = "policy")]
    pub confirmed: bool,
    /// Before the links are up: put in place all that needs none; sessions are refused until
    /// `redirect repair` or another apply adds the rest
    #[arg(long)]
    pub early: bool,
    /// Print the equivalent shell commands instead; changes nothing and needs no privilege
    #[arg(long)]
    pub dry_run: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t, requires = "dry_run")]
    pub format: Format,
    /// With --dry-run: look at nothing, and assume a clean router
    #[arg(long, requires = "dry_run")]
    pub offline: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArg,
}

/// `redirect diff`.
#[derive(Debug, Args)]
pub struct Diff {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub policy: PolicyArg,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub offline: OfflineArg,
    /// For machines
    #[arg(long)]
    pub json: bool,
}

/// `redirect teardown`.
#[derive(Debug, Args)]
pub struct Teardown {
    /// Let open sessions end through the appliance first: new ones go direct from now on. With
    /// --wait, tear down once none is left
    #[arg(long, conflicts_with = "dry_run")]
    pub drain: bool,
    /// With --drain: only this appliance, which then takes no new sessions; nothing is torn down
    #[arg(long, value_name = "NAME", requires = "drain")]
    pub appliance: Option<String>,
    /// Print the equivalent shell commands instead; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t, requires = "dry_run")]
    pub format: Format,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArg,
}

/// `redirect status`.
#[derive(Debug, Args)]
pub struct Status {
    /// For machines
    #[arg(long)]
    pub json: bool,
    /// For `node_exporter`'s textfile collector
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
    /// Draw it again and again, with rates, every so often: seconds, or `500ms`, `10s`, `1m`
    #[arg(long, value_name = "TIME", value_parser = interval, num_args = 0..=1,
        default_missing_value = "2", conflicts_with_all = ["json", "prometheus"])]
    pub watch: Option<Duration>,
}

/// `redirect check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub policy: PolicyArg,
    /// Ask the appliance itself, too: neighbour, ICMP echo, a session through it to each server port
    #[arg(long)]
    pub probe: bool,
    /// For machines
    #[arg(long)]
    pub json: bool,
}

/// `redirect init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Write it here, where nothing may be yet, instead of printing it
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The appliance's address; once for each family
    #[arg(long, value_name = "ADDRESS")]
    pub appliance: Vec<String>,
    /// Where the appliance is; unless given, where its address is on-link
    #[arg(long, value_name = "IFACE")]
    pub interface: Option<IfName>,
    /// Where clients come in; may be given again
    #[arg(long, value_name = "IFACE")]
    pub client_interface: Vec<String>,
    /// A network of servers; may be given again
    #[arg(long, value_name = "NETWORK")]
    pub server_network: Vec<String>,
    /// A TCP port of the servers, or a range of them; may be given again
    #[arg(long, value_name = "PORT")]
    pub port: Vec<String>,
    /// The appliance dials servers with the client's own address
    #[arg(long)]
    pub snat: bool,
}

/// `redirect support`.
#[derive(Debug, Args)]
pub struct Support {
    /// Write it here, where nothing may be yet; unless given, a name with host and time
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `redirect trace`.
#[derive(Debug, Args)]
pub struct Trace {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub policy: PolicyArg,
    /// The client: `10.10.0.2`, `10.10.0.2:50000`, `[fd00:10::2]:50000`
    #[arg(long, value_name = "CLIENT[:PORT]", value_parser = endpoint)]
    pub from: (IpAddr, Option<u16>),
    /// The server and its port: `10.20.0.2:3389`, `[fd00:20::2]:3389`
    #[arg(long, value_name = "SERVER:PORT")]
    pub to: SocketAddr,
    /// Where the client comes in; unless given, where the router would send answers to it
    #[arg(long = "in", value_name = "IFACE")]
    pub input: Option<IfName>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub offline: OfflineArg,
    /// For machines
    #[arg(long)]
    pub json: bool,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A POSIX shell script
    #[default]
    Shell,
    /// The plan as JSON
    Json,
}

/// Reads an address, with or without a port.
fn endpoint(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = text.parse() {
        return Ok((address, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok((address.ip(), Some(address.port()))),
        Err(_) => {
            Err("an address, or one with a port: `10.10.0.2:50000`, `[fd00::2]:50000`".to_owned())
        }
    }
}

/// How long `--watch` waits: not so short that it only burns the processor.
fn interval(text: &str) -> Result<Duration, String> {
    at_least(Duration::from_millis(100), "100ms", text)
}

/// How long `--confirm` waits: long enough to answer.
fn time_to_confirm(text: &str) -> Result<Duration, String> {
    at_least(
        Duration::from_secs(1),
        "1s; without --confirm it stays",
        text,
    )
}

fn at_least(least: Duration, named: &str, text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time < least => Err(format!("at least {named}")),
        time => Ok(time),
    }
}

/// Reads a time, wherever one can be typed: `90`, `90s`, `500ms`, `10m`, `8h` or `2d`.
fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(366 * 86400);
    let (number, unit) = match text.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        Some((at, _)) => text.split_at(at),
        None => (text, "s"),
    };
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(
                "a whole number of seconds, or one with `ms`, `s`, `m`, `h` or `d`".to_owned(),
            );
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a whole number is wanted, as in `90s`".to_owned())?;
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .filter(|time| *time <= LONGEST)
        .ok_or_else(|| "at most a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_time_is_read_alike() {
        for (typed, milliseconds) in [
            ("0", 0),
            ("90", 90_000),
            ("90s", 90_000),
            ("500ms", 500),
            ("10m", 600_000),
            ("8h", 8 * 3_600_000),
            ("366d", 366 * 86_400_000),
        ] {
            assert_eq!(duration(typed), Ok(Duration::from_millis(milliseconds)));
        }
        for wrong in [
            "",
            "h",
            "8x",
            "-1",
            "1.5s",
            "8 h",
            "99999999999999999999",
            "9999999999h",
            "367d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn some_times_are_too_short() {
        assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(interval("99ms"), Err("at least 100ms".to_owned()));
        assert_eq!(time_to_confirm("1"), Ok(Duration::from_secs(1)));
        assert!(time_to_confirm("0").is_err());
        assert!(time_to_confirm("999ms").is_err());
    }
}
