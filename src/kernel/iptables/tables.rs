//! The tables: read by `iptables-save`, changed by `iptables-restore --noflush`. What needs no rule
//! read, the kernel is asked itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::programs::Program;
use super::{PATIENCE, number, refused, text};
use crate::iptables::parse::{self, Counter, Saved};
use crate::iptables::{Frame, PREROUTING_CHAIN, Variant, command_of, write};
use crate::kernel::netlink::{
    Malformed, Message, Netlink, NetlinkError, Payload, Protocol, attributes,
};
use crate::kernel::process::{self, Output};
use crate::kernel::{FailureKind, KernelError};
use crate::net::Family;
use crate::nft::abi;
use crate::observation::IptablesRules;

/// The one table that ours are in.
const TABLE: &str = "mangle";
/// All that iptables has.
const TABLES: [&str; 5] = ["filter", TABLE, "nat", "raw", "security"];
/// How long `iptables-restore` is told to wait for the lock.
const LOCK_SECONDS: u32 = 10;
/// How long a command is tried again that failed for somebody else's lock or change.
const PERSISTENCE: Duration = Duration::from_secs(10);
/// Between two of these attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// The exit status for a lock that is held, or a table that changed meanwhile
/// (`RESOURCE_PROBLEM` in `include/xtables.h` of iptables).
const RESOURCE_PROBLEM: i32 = 4;
/// The last resort of old versions: the commit failed, and why is not told.
const OTHER_PROBLEM: i32 = 1;

/// Whether there may be chains of ours: asked of the kernel, and no program started. Its legacy
/// part does not say which chains it has, only whether it has any.
///
/// # Errors
/// If the kernel does not say.
pub fn may_hold_ours(socket: &mut Netlink) -> Result<bool, KernelError> {
    for family in Family::ALL {
        let has_legacy = legacy_tables(family)?.lines().any(|table| table == TABLE);
        if has_legacy || nft_has_ours(socket, family)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads what the kernel holds for one variant and family.
pub(super) fn rules(
    command: &str,
    variant: Variant,
    family: Family,
) -> Result<(IptablesRules, Vec<Counter>), KernelError> {
    let is_bare = match variant {
        // Reading a table that is not there would make it, with hooks in every packet's way.
        Variant::Legacy => legacy_tables(family)?.is_empty(),
        // Reading starts a program, for nothing here.
        Variant::Nft => nft_is_bare(family),
    };
    if is_bare {
        return Ok((IptablesRules::default(), Vec::new()));
    }
    match saved(command) {
        Ok(Saved {
            ours,
            others,
            busy,
            counters,
        }) => {
            let frame = match variant {
                Variant::Legacy => Frame::default(),
                Variant::Nft => frame(family)?,
            };
            let rules = IptablesRules {
                ours,
                others,
                busy,
                frame,
            };
            Ok((rules, counters))
        }
        // A dry-run by somebody who may not see them: as if there were none.
        Err(error) if error.kind == FailureKind::NotPermitted => {
            Ok((IptablesRules::default(), Vec::new()))
        }
        Err(error) => Err(error),
    }
}

/// Whether the kernel's `nf_tables` is known to have none of the tables that iptables has.
#[must_use]
pub fn nft_is_bare(family: Family) -> bool {
    let about = Payload::new(&[number(family), 0, 0, 0]);
    let tables = Netlink::open(Protocol::Netfilter).and_then(|mut socket| {
        socket.dump(abi::message::GET_TABLE, &about, |message| {
            let rest = message.payload.get(4..);
            for attribute in attributes(rest.ok_or(Malformed("table: no header"))?) {
                let attribute = attribute?;
                if attribute.kind == abi::table::NAME {
                    return Ok(Some(attribute.text()));
                }
            }
            Ok(None)
        })
    });
    // Why it cannot be known, the program says.
    tables.is_ok_and(|tables| !tables.iter().any(|table| TABLES.contains(&table.as_str())))
}

/// What `iptables-save` says, counters included.
fn saved(command: &str) -> Result<Saved, KernelError> {
    let program = format!("{command}-save");
    let action = || format!("cannot read the rules with `{program}`");
    let output = patiently(|| process::run(&program, &["-c"], b"", PATIENCE))?;
    if !output.status.success() {
        return Err(refused(action(), &output));
    }
    parse::saved(&text(&output.stdout)).map_err(|error| {
        KernelError::because(action(), error.to_string()).hint(format!(
            "look with `{program}`; rules that it cannot show must be made with iptables, or go elsewhere"
        ))
    })
}

/// The tables that the kernel's `ip_tables` has made so far.
pub(super) fn legacy_tables(family: Family) -> Result<String, KernelError> {
    let file = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    // Of this thread's network namespace; before Linux 3.17 only the process's can be asked.
    for directory in ["/proc/thread-self/net", "/proc/net"] {
        let path = format!("{directory}/{file}");
        match fs::read_to_string(&path) {
            Ok(names) => return Ok(names),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(KernelError::io(format!("cannot read {path}"), error)),
        }
    }
    Ok(String::new())
}

/// Our table's frame as `nf_tables` has it: `iptables-nft-save` shows what is not there, too.
fn frame(family: Family) -> Result<Frame, KernelError> {
    let chains = Netlink::open(Protocol::Netfilter).and_then(|mut socket| {
        let about = Payload::new(&[number(family), 0, 0, 0]);
        let table = about.clone().with_name(abi::table::NAME, TABLE);
        match socket.ask(abi::message::GET_TABLE, 0, &table, |_| Ok(Some(()))) {
            Ok(_) => {}
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        socket
            .dump(abi::message::GET_CHAIN, &about, base_chain)
            .map(|chains| Some(chains.into_iter().collect()))
    });
    match chains {
        Ok(None) => Ok(Frame::default()),
        Ok(Some(chains)) => Ok(Frame {
            table: true,
            chains,
        }),
        Err(error) => Err(error.during("cannot list the base chains made with iptables")),
    }
}

/// The name of a base chain of our table, if it is one.
fn base_chain(message: Message<'_>) -> Result<Option<String>, Malformed> {
    let rest = message
        .payload
        .get(4..)
        .ok_or(Malformed("chain: no header"))?;
    let (mut name, mut is_base, mut is_in_table) = (None, false, false);
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind {
            abi::chain::TABLE => is_in_table = attribute.text() == TABLE,
            abi::chain::NAME => name = Some(attribute.text()),
            abi::chain::HOOK => is_base = true,
            _ => {}
        }
    }
    Ok(name.filter(|_| is_base && is_in_table))
}

/// Makes and removes base chains. The kernel refuses to remove what holds rules by then, and
/// that stays.
pub(super) fn change_frame(
    programs: &[Program],
    family: Family,
    from: &Frame,
    to: &Frame,
) -> Result<(), KernelError> {
    let (made, gone) = (to.without(from), from.without(to));
    if !made.is_empty() {
        let input = write::frame_input(&made.chains);
        restore(programs, Variant::Nft, family, &input, false)?;
    }
    if gone.is_empty() {
        return Ok(());
    }
    let action = || format!("cannot remove the empty {family} table `{TABLE}`");
    let removed = Netlink::open(Protocol::Netfilter).and_then(|mut socket| {
        let about = Payload::new(&[number(family), 0, 0, 0]);
        let chains = gone.chains.iter().map(|chain| {
            let payload = about.clone().with_name(abi::chain::TABLE, TABLE);
            let payload = payload.with_name(abi::chain::NAME, chain);
            (abi::message::DELETE_CHAIN, payload)
        });
        let table = gone.table.then(|| {
            let payload = about.clone().with_name(abi::table::NAME, TABLE);
            (abi::message::DELETE_TABLE, payload)
        });
        // One after another: where a chain is in use by now, so is the table.
        for (kind, payload) in chains.chain(table) {
            let batch = batch(&mut socket, kind, &payload)?;
            let answer = socket.batch(&batch)?;
            if let Some(refusal) = answer
                .refusals
                .into_iter()
                .find(|refusal| !matches!(refusal.errno, Errno::EBUSY | Errno::ENOENT))
            {
                return Err(NetlinkError::Refused(refusal));
            }
        }
        Ok(())
    });
    removed.map_err(|error| error.during(action()))
}

/// A transaction of one message.
fn batch(socket: &mut Netlink, kind: u16, payload: &Payload) -> Result<Vec<u8>, NetlinkError> {
    // `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_NONREC`: not with what is in it.
    const REQUEST: u16 = 1;
    const ACKNOWLEDGE: u16 = 4;
    const ALONE: u16 = 0x100;
    let [high, low] = abi::SUBSYSTEM.to_be_bytes();
    let ends = Payload::new(&[0, 0, high, low]);
    let first = socket.reserve_sequences(3);
    Ok([
        ends.message(abi::BATCH_BEGIN, REQUEST, first)?,
        payload.message(kind, REQUEST | ACKNOWLEDGE | ALONE, first + 1)?,
        ends.message(abi::BATCH_END, REQUEST, first + 2)?,
    ]
    .concat())
}

/// Whether the table that `iptables-nft` keeps in `nf_tables` has our chain.
fn nft_has_ours(socket: &mut Netlink, family: Family) -> Result<bool, KernelError> {
    let chain = Payload::new(&[number(family), 0, 0, 0])
        .with_name(abi::chain::TABLE, TABLE)
        .with_name(abi::chain::NAME, PREROUTING_CHAIN);
    match socket.ask(abi::message::GET_CHAIN, 0, &chain, |_| Ok(Some(()))) {
        Ok(chains) => Ok(!chains.is_empty()),
        // No such chain; no such table; no `nf_tables`.
        Err(error)
            if matches!(
                error.errno(),
                Some(
                    Errno::ENOENT
                        | Errno::EOPNOTSUPP
                        | Errno::EAFNOSUPPORT
                        | Errno::EPROTONOSUPPORT
                )
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.during("cannot look for chains made with iptables")),
    }
}

/// Feeds `iptables-restore`.
pub(super) fn restore(
    programs: &[Program],
    variant: Variant,
    family: Family,
    input: &str,
    test: bool,
) -> Result<(), KernelError> {
    let program = programs
        .iter()
        .find(|program| program.variant == variant)
        .ok_or_else(|| KernelError {
            kind: FailureKind::Lacking,
            ..KernelError::because(
                format!("cannot change the {family} packet rules"),
                format!("there is no `{variant}-restore`"),
            )
        })?;
    let can_wait = program.version.can_wait();
    let program = format!("{}-restore", command_of(program.command, family));
    let wait = format!("--wait={LOCK_SECONDS}");
    let mut arguments = vec!["--noflush"];
    if can_wait {
        arguments.push(&wait);
    }
    if test {
        arguments.push("--test");
    }
    let output = patiently(|| process::run(&program, &arguments, input.as_bytes(), PATIENCE))?;
    if output.status.success() {
        return Ok(());
    }
    let mut error = refused(
        format!("cannot change the {family} packet rules with `{program}`"),
        &output,
    );
    if let Some(line) = line_of(&error.reason).and_then(|at| input.lines().nth(at.checked_sub(1)?))
    {
        error.reason = format!("{}, which is `{line}`", error.reason);
    }
    Err(error)
}

/// The number in "line 4 failed" or "line: 4".
fn line_of(complaint: &str) -> Option<usize> {
    let (_, rest) = complaint.split_once("line")?;
    rest.trim_start_matches([':', ' '])
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Tries again while somebody else holds the lock, or has just changed the table.
fn patiently(
    mut attempt: impl FnMut() -> Result<Output, KernelError>,
) -> Result<Output, KernelError> {
    let begun = Instant::now();
    let mut tried = 0;
    loop {
        let output = attempt()?;
        tried += 1;
        let passing = match output.status.code() {
            Some(RESOURCE_PROBLEM) => true,
            // "line 7 failed": the kernel refused, in legacy commands also because the table
            // had changed since it was read. Not worth many attempts.
            Some(OTHER_PROBLEM) => tried < 3 && output.complaint().ends_with("failed"),
            _ => false,
        };
        if !passing || begun.elapsed() >= PERSISTENCE {
            return Ok(output);
        }
        thread::sleep(PAUSE);
    }
}
