//! iptables and ipset, through their own commands: `iptables-save` to read,
//! `iptables-restore --noflush` for every commit, `ipset` for sets.
//!
//! Two kernel interfaces go by this name (see [`Variant`]), and their commands by several.
//! What a command is, its `-V` says; what it can do, a rehearsal in an empty network
//! namespace shows, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::netlink::{Malformed, Message, Netlink, NetlinkError, Payload, Protocol, attributes};
use super::process::{self, Output};
use super::{FailureKind, KernelError};
use crate::iptables::parse::{self, Saved};
use crate::iptables::{
    Frame, Match, PREROUTING_CHAIN, Ruleset, Set, Target, Variant, Version, command_of, write,
};
use crate::net::Family;
use crate::nft::abi;
use crate::observation::{Availability, Iptables, IptablesProgram, IptablesRules};
use crate::plan::{Change, Plan};

/// The one table that ours are in.
const TABLE: &str = "mangle";
/// Longest time that a command may take. A commit of 100,000 rules takes the legacy
/// commands seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long `iptables-restore` is told to wait for the lock.
const LOCK_SECONDS: u32 = 10;
/// How long a command is tried again that failed for somebody else's lock or change.
const PERSISTENCE: Duration = Duration::from_secs(10);
/// How long a set may still be in use after the rules that looked into it are gone.
const GRACE: Duration = Duration::from_secs(2);
/// Between two of these attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// The exit status for a lock that is held, or a table that changed meanwhile
/// (`RESOURCE_PROBLEM` in `include/xtables.h` of iptables).
const RESOURCE_PROBLEM: i32 = 4;
/// The last resort of old versions: the commit failed, and why is not told.
const OTHER_PROBLEM: i32 = 1;

/// The exit status of a program whose libraries cannot be loaded (ld.so(8)).
const NOT_STARTED: i32 = 127;

/// The names under which the commands may be found, the one that people type first.
const COMMANDS: [&str; 3] = ["iptables", "iptables-legacy", "iptables-nft"];

/// Reads what iptables commands there are, and what the kernel holds for them.
///
/// # Errors
/// If a command that is there cannot be run, or prints what makes no sense.
pub fn observe() -> Result<Iptables, KernelError> {
    let mut programs: Vec<IptablesProgram> = Vec::new();
    for (command, version, variant) in commands()? {
        if programs.iter().any(|program| program.variant == variant) {
            continue;
        }
        let mut families = BTreeMap::new();
        let mut unreadable = None;
        for family in Family::ALL {
            let command = command_of(command, family);
            let there = ["-save", "-restore"]
                .iter()
                .all(|part| process::find(&format!("{command}{part}")).is_some());
            if there {
                let found = rules(&command, variant, family).unwrap_or_else(|error| {
                    // It may not matter: that is for the planner to know.
                    unreadable = Some(error.to_string());
                    IptablesRules::default()
                });
                families.insert(family, found);
            }
        }
        programs.push(IptablesProgram {
            variant,
            command: command.to_owned(),
            version,
            unreadable,
            families,
        });
    }
    if programs.is_empty() {
        return Ok(Iptables::default());
    }
    let (ipset, sets) = ipset()?;
    Ok(Iptables {
        programs,
        ipset,
        sets,
    })
}

/// The commands that are there, with what they say of themselves.
fn commands() -> Result<Vec<(&'static str, Version, Variant)>, KernelError> {
    let mut found = Vec::new();
    for command in COMMANDS {
        // What matters is what reads and commits; before 1.8 these do not say what they are.
        if process::find(&format!("{command}-restore")).is_none() {
            continue;
        }
        for name in [format!("{command}-restore"), command.to_owned()] {
            if process::find(&name).is_none() {
                continue;
            }
            let output = process::run(&name, &["-V"], b"", PATIENCE)?;
            if let Some((version, variant)) = parse::version(&text(&output.stdout)) {
                found.push((command, version, variant));
                break;
            }
            // It is there and does not even start: that it holds nothing of ours nobody knows.
            if output.status.code() == Some(NOT_STARTED) {
                return Err(refused(format!("cannot run `{name} -V`"), &output));
            }
        }
    }
    Ok(found)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads what the kernel holds for one variant and family.
fn rules(command: &str, variant: Variant, family: Family) -> Result<IptablesRules, KernelError> {
    // Reading a legacy table that is not there would make it, with hooks in every packet's way.
    let read = match variant {
        Variant::Legacy => legacy_tables(family).and_then(|tables| {
            if tables.is_empty() {
                Ok(Saved::default())
            } else {
                saved(command)
            }
        }),
        Variant::Nft => saved(command),
    };
    match read {
        Ok(Saved {
            ours, others, busy, ..
        }) => Ok(IptablesRules {
            ours,
            others,
            busy,
            frame: match variant {
                Variant::Legacy => Frame::default(),
                Variant::Nft => frame(family)?,
            },
        }),
        // A dry-run by somebody who may not see them: as if there were none.
        Err(error) if error.kind == FailureKind::NotPermitted => Ok(IptablesRules::default()),
        Err(error) => Err(error),
    }
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

/// `AF_INET`, `AF_INET6`.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// `text` as the kernel's interface has it.
fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Our table's frame as `nf_tables` has it: `iptables-nft-save` shows what is not there, too.
fn frame(family: Family) -> Result<Frame, KernelError> {
    let chains = Netlink::open(Protocol::Netfilter).and_then(|mut socket| {
        let about = Payload::new(&[number(family), 0, 0, 0]);
        let table = about.clone().with(abi::table::NAME, &c_string(TABLE));
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
fn change_frame(family: Family, from: &Frame, to: &Frame) -> Result<(), KernelError> {
    let (made, gone) = (to.without(from), from.without(to));
    if !made.is_empty() {
        let input = write::frame_input(&made.chains);
        restore(Variant::Nft, family, &input, false)?;
    }
    if gone.is_empty() {
        return Ok(());
    }
    let action = || format!("cannot remove the empty {family} table `{TABLE}`");
    let removed = Netlink::open(Protocol::Netfilter).and_then(|mut socket| {
        let about = Payload::new(&[number(family), 0, 0, 0]);
        let chains = gone.chains.iter().map(|chain| {
            let payload = about.clone().with(abi::chain::TABLE, &c_string(TABLE));
            let payload = payload.with(abi::chain::NAME, &c_string(chain));
            (abi::message::DELETE_CHAIN, payload)
        });
        let table = gone.table.then(|| {
            let payload = about.clone().with(abi::table::NAME, &c_string(TABLE));
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
        .with(abi::chain::TABLE, &c_string(TABLE))
        .with(abi::chain::NAME, &c_string(PREROUTING_CHAIN));
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

/// How often our rules with comments matched, those of both families.
///
/// # Errors
/// If they cannot be read.
pub fn counters(program: &IptablesProgram) -> Result<Vec<parse::Counter>, KernelError> {
    let mut counters = Vec::new();
    for (family, rules) in &program.families {
        if !rules.ours.is_empty() {
            counters.extend(saved(&command_of(&program.command, *family))?.counters);
        }
    }
    Ok(counters)
}

/// The tables that the kernel's `ip_tables` has made so far.
fn legacy_tables(family: Family) -> Result<String, KernelError> {
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

/// Whether sets can be used, and ours.
fn ipset() -> Result<(Availability, Vec<Set>), KernelError> {
    if process::find("ipset").is_none() {
        let why = "there is no `ipset` command".to_owned();
        return Ok((Availability::Missing(why), Vec::new()));
    }
    let names = process::run("ipset", &["list", "-n"], b"", PATIENCE)?;
    if !names.status.success() {
        let error = refused("cannot list sets".to_owned(), &names);
        let availability = match error.kind {
            FailureKind::NotPermitted => Availability::Unknown(error.reason),
            _ => Availability::Missing(error.reason),
        };
        return Ok((availability, Vec::new()));
    }
    let mut sets = Vec::new();
    for name in text(&names.stdout).lines().map(str::trim) {
        if !crate::iptables::is_ours(name) {
            continue;
        }
        let action = format!("cannot read set `{name}`");
        let output = process::run("ipset", &["save", name], b"", PATIENCE)?;
        if !output.status.success() {
            return Err(refused(action, &output));
        }
        sets.extend(
            parse::sets(&text(&output.stdout))
                .map_err(|error| KernelError::because(action, error.to_string()))?,
        );
    }
    Ok((Availability::Available, sets))
}

/// Makes a change of sets or chains.
///
/// # Errors
/// In the words of the command that refused it; nothing is changed then.
pub fn perform(change: &Change) -> Result<(), KernelError> {
    match change {
        Change::Ipset { from, to } => swap_sets(from.as_ref(), to.as_ref()),
        Change::Frame {
            family, from, to, ..
        } => change_frame(*family, from, to),
        Change::Iptables {
            variant,
            family,
            from,
            to,
            ..
        } => commit(*variant, *family, from, to, false),
        _ => Ok(()),
    }
}

fn commit(
    variant: Variant,
    family: Family,
    from: &Ruleset,
    to: &Ruleset,
    test: bool,
) -> Result<(), KernelError> {
    restore(variant, family, &write::restore_input(from, to), test)
}

/// Feeds `iptables-restore`.
fn restore(variant: Variant, family: Family, input: &str, test: bool) -> Result<(), KernelError> {
    let (command, version) = commands()?
        .into_iter()
        .find_map(|(command, version, found)| (found == variant).then_some((command, version)))
        .ok_or_else(|| KernelError {
            kind: FailureKind::Lacking,
            ..KernelError::because(
                format!("cannot change the {family} packet rules"),
                format!("there is no `{variant}-restore`"),
            )
        })?;
    let program = format!("{}-restore", command_of(command, family));
    let wait = format!("--wait={LOCK_SECONDS}");
    let mut arguments = vec!["--noflush"];
    if version.can_wait() {
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

/// What a command complained of, and what it means.
fn refused(action: String, output: &Output) -> KernelError {
    let reason = output.complaint();
    let error = KernelError::because(action, reason.clone());
    let says = |part: &str| reason.contains(part);
    if says("Permission denied")
        || says("Operation not permitted")
        || says("must be root")
        || says("you need to be root")
    {
        KernelError {
            kind: FailureKind::NotPermitted,
            ..error.hint("run it as root")
        }
    } else if says("Couldn't load match") || says("Couldn't load target") || says("unknown option")
    {
        // The last is what iptables-nft says of an option of a target that it has no file for.
        KernelError {
            kind: FailureKind::Lacking,
            ..error.hint("the iptables package of this router lacks that extension; install all of it, or set `backend = \"nftables\"`")
        }
    } else if says("No chain/target/match by that name") || says("can't initialize") {
        KernelError {
            kind: FailureKind::Lacking,
            ..error.hint("the kernel of this router lacks a netfilter module; see `/proc/net/ip_tables_matches` and `/proc/net/ip_tables_targets` for those it has")
        }
    } else {
        error
    }
}

fn swap_sets(from: Option<&Set>, to: Option<&Set>) -> Result<(), KernelError> {
    match (from, to) {
        (None, Some(set)) => create_set(set, &set.name),
        (Some(_), Some(set)) => {
            let spare = write::spare_name(&set.name);
            create_set(set, &spare)?;
            let swapped = ipset_command(&["swap", &spare, &set.name], b"");
            // Whatever came of it: the spare now holds what nobody needs.
            ipset_command(&["destroy", &spare], b"").and(swapped)
        }
        (Some(set), None) => destroy_set(&set.name),
        (None, None) => Ok(()),
    }
}

/// Removes the set that a run which was killed while it made `change` had only for the swap.
///
/// # Errors
/// In the words of the command that refused it.
pub fn tidy(change: &Change) -> Result<(), KernelError> {
    let Change::Ipset {
        from: Some(set),
        to: Some(_),
    } = change
    else {
        return Ok(());
    };
    match ipset_command(&["destroy", &write::spare_name(&set.name)], b"") {
        Err(error) if error.reason.contains("does not exist") => Ok(()),
        other => other,
    }
}

fn create_set(set: &Set, name: &str) -> Result<(), KernelError> {
    let input = write::set_input(set, name);
    ipset_command(&["restore"], input.as_bytes()).inspect_err(|_| {
        // Half of a set is no set. One that somebody else made has others in it, or is in
        // use; then this fails too, and changes nothing.
        let _ = ipset_command(&["destroy", name], b"");
    })
}

/// A rule that looked into the set may be gone for a while before its reference is: the
/// kernel frees nft's rules later (`nf_tables_trans_destroy_work`).
fn destroy_set(name: &str) -> Result<(), KernelError> {
    let begun = Instant::now();
    loop {
        match ipset_command(&["destroy", name], b"") {
            Err(error) if error.reason.contains("in use") && begun.elapsed() < GRACE => {
                thread::sleep(PAUSE / 5);
            }
            outcome => return outcome,
        }
    }
}

fn ipset_command(arguments: &[&str], input: &[u8]) -> Result<(), KernelError> {
    let output = process::run("ipset", arguments, input, PATIENCE)?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(
        format!("cannot run `ipset {}`", arguments.join(" ")),
        &output,
    ))
}

/// Tries what `plan` has for iptables where it can do no harm: in a network namespace of
/// its own, which goes when this returns. What the commands or the kernel lack is found
/// here, before anything is changed.
///
/// # Errors
/// In the words of the command that refused it.
pub fn rehearse(plan: &Plan) -> Result<(), KernelError> {
    let concerned = plan
        .changes
        .iter()
        .any(|change| matches!(change, Change::Iptables { to, .. } if !to.is_empty()));
    if !concerned {
        return Ok(());
    }
    let outcome = thread::scope(|scope| {
        let rehearsal = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => play(plan),
            // Without namespaces, or the right to make one, the commands at least can be
            // asked; what the kernel lacks then shows in the commit, which is taken back.
            Err(Errno::EPERM | Errno::EINVAL | Errno::ENOSPC | Errno::ENOSYS) => test(plan),
            Err(errno) => Err(KernelError::io(
                "cannot rehearse in a network namespace",
                errno.into(),
            )),
        });
        rehearsal.join()
    });
    outcome.unwrap_or_else(|_| {
        Err(KernelError::because(
            "cannot rehearse the packet rules",
            "the rehearsal broke off",
        ))
    })
}

/// Makes all sets and chains of `plan` anew.
fn play(plan: &Plan) -> Result<(), KernelError> {
    let mut made = BTreeSet::new();
    for change in &plan.changes {
        match change {
            Change::Ipset { to: Some(set), .. } => {
                create_set(set, &set.name)?;
                made.insert(set.name.clone());
            }
            Change::Iptables {
                variant,
                family,
                to,
                ..
            } if !to.is_empty() => {
                for name in sets_of(to) {
                    if made.insert(name.clone()) {
                        let set = Set {
                            name: name.clone(),
                            family: *family,
                            networks: Vec::new(),
                            foreign_kind: None,
                            others: Vec::new(),
                        };
                        create_set(&set, &name)?;
                    }
                }
                commit(*variant, *family, &Ruleset::default(), to, false)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Has the commands read what they will be given.
fn test(plan: &Plan) -> Result<(), KernelError> {
    for change in &plan.changes {
        if let Change::Iptables {
            variant,
            family,
            from,
            to,
            ..
        } = change
        {
            // `--match-set` looks the set up in the kernel.
            let known = sets_of(to).is_empty();
            if known && !to.is_empty() {
                commit(*variant, *family, from, to, true)?;
            }
        }
    }
    Ok(())
}

/// The sets that these rules look into.
fn sets_of(ruleset: &Ruleset) -> BTreeSet<String> {
    ruleset
        .chains
        .values()
        .flatten()
        .filter(|rule| !matches!(rule.target, Target::Foreign(_)))
        .flat_map(|rule| &rule.matches)
        .filter_map(|found| match found {
            Match::InSet { set, .. } => Some(set.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::rules::iptables::render;
    use crate::test_support::{own_network, own_table_names};

    /// Others' rules, among which ours must leave no trace. One refers to the other.
    const OTHERS: &str = "*mangle\n:theirs - [0:0]\n-A PREROUTING -i lo -m comment --comment \"a \\\"b\\\" scb-redirect\" -j MARK --set-xmark 0x100/0x100\n-A PREROUTING -j theirs\n-A theirs -p udp -m limit --limit 5/min -j RETURN\n-A FORWARD -j theirs\nCOMMIT\n*filter\n-A FORWARD -s 192.0.2.0/24 -j DROP\nCOMMIT\n";

    fn policy(networks: usize, ports: &[u16]) -> Policy {
        let networks: Vec<String> = (0..networks)
            .map(|at| format!("10.20.{}.{}/32", at / 100, at % 100 * 2))
            .collect();
        crate::test_support::policy(&format!(
            r#"
            version = 1
            [appliance.scb]
            address = ["10.30.0.2", "fd00:30::2"]
            interface = "sps0"
            [[redirect]]
            name = "rdp"
            client_interface = ["eth0", "ppp*"]
            server_interface = "eth1"
            server_network = {:?}
            port = {ports:?}
            snat = true
            except_client = ["10.10.0.99", "10.10.0.3"]
            "#,
            [networks, vec!["fd00:20::/64".to_owned()]].concat()
        ))
    }

    fn run(program: &str, arguments: &[&str], input: &str) -> String {
        let output = process::run(program, arguments, input.as_bytes(), PATIENCE).unwrap();
        assert!(output.status.success(), "{program}: {}", output.complaint());
        text(&output.stdout)
    }

    fn listing(variant: Variant) -> String {
        let all = run(&format!("{}-save", variant.command()), &[], "")
            + &run(
                &format!("{}-save", command_of(variant.command(), Family::V6)),
                &[],
                "",
            );
        let lines: Vec<_> = all.lines().filter(|line| !line.starts_with('#')).collect();
        lines.join("\n")
    }

    /// What `perform` must do for `to`, given what is there: sets, chains, old sets.
    fn changes(variant: Variant, now: &Iptables, to: &crate::rules::iptables::Rendered) -> Plan {
        let mut changes = Vec::new();
        for set in &to.sets {
            let from = now.set(&set.name).cloned();
            if from.as_ref() != Some(set) {
                changes.push(Change::Ipset {
                    from,
                    to: Some(set.clone()),
                });
            }
        }
        for family in Family::ALL {
            let from = now.ours(variant, family);
            let to = to.rulesets.get(&family).cloned().unwrap_or_default();
            if from != to {
                changes.push(Change::Iptables {
                    variant,
                    command: variant.command().to_owned(),
                    family,
                    from,
                    to,
                });
            }
        }
        for set in &now.sets {
            if !to.sets.iter().any(|wanted| wanted.name == set.name) {
                changes.push(Change::Ipset {
                    from: Some(set.clone()),
                    to: None,
                });
            }
        }
        Plan { changes }
    }

    fn carry_out(plan: &Plan) {
        rehearse(plan).unwrap();
        for change in &plan.changes {
            perform(change).unwrap();
        }
    }

    fn comes_and_goes(variant: Variant) {
        for family in Family::ALL {
            let others = match family {
                Family::V4 => OTHERS.to_owned(),
                Family::V6 => OTHERS.replace("192.0.2.0/24", "2001:db8::/32"),
            };
            let command = command_of(variant.command(), family);
            run(&format!("{command}-restore"), &["--noflush"], &others);
        }
        let pristine = listing(variant);
        assert!(observe().unwrap().ours(variant, Family::V4).is_empty());
        for with_sets in [true, false] {
            for (networks, ports) in [
                (1, vec![3389]),
                (300, vec![3389, 22]),
                (300, (1000..1040).map(|at| at * 2).collect()),
                (2, vec![22]),
            ] {
                let wanted = render(&policy(networks, &ports), with_sets).unwrap();
                carry_out(&changes(variant, &observe().unwrap(), &wanted));
                let now = observe().unwrap();
                for (family, ruleset) in &wanted.rulesets {
                    assert_eq!(now.ours(variant, *family), *ruleset);
                }
                assert_eq!(now.sets, wanted.sets);
                assert_eq!(changes(variant, &now, &wanted), Plan::default());
                assert!(now.program(variant).unwrap().families[&Family::V4].others);
            }
        }
        carry_out(&changes(
            variant,
            &observe().unwrap(),
            &crate::rules::iptables::Rendered::default(),
        ));
        assert_eq!(listing(variant), pristine);
        assert_eq!(observe().unwrap().sets, []);
    }

    #[test]
    fn of_a_swap_that_was_cut_short_nothing_stays() {
        if !own_network("a swap cut short") {
            return;
        }
        let set = |network: &str| Set {
            name: "scb-redirect-cut".to_owned(),
            family: Family::V4,
            networks: vec![network.parse().unwrap()],
            foreign_kind: None,
            others: Vec::new(),
        };
        let (from, to) = (set("10.20.0.0/24"), set("10.21.0.0/24"));
        create_set(&from, &from.name).unwrap();
        create_set(&to, &write::spare_name(&to.name)).unwrap();
        let change = Change::Ipset {
            from: Some(from.clone()),
            to: Some(to),
        };
        // And again where there is nothing.
        for _ in 0..2 {
            tidy(&change).unwrap();
            assert_eq!(observe().unwrap().sets, std::slice::from_ref(&from));
        }
    }

    #[test]
    fn legacy_rules_come_and_go_and_leave_others_alone() {
        if own_network("legacy rules") {
            comes_and_goes(Variant::Legacy);
        }
    }

    #[test]
    fn nft_rules_come_and_go_and_leave_others_alone() {
        if own_network("nft rules") {
            comes_and_goes(Variant::Nft);
        }
    }

    /// A shell's reading of the same changes.
    fn script(plan: &Plan) {
        let script = crate::render::shell::script(plan, &[]);
        run("sh", &["-eu", "-c", &script], "");
    }

    /// What `ipset save` says, without the seeds of its hashes, which are random.
    fn sets_listing() -> Vec<String> {
        let text = run("ipset", &["save"], "");
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| line.split(" initval").next().unwrap().to_owned())
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn the_commands_that_are_printed_do_the_same() {
        for variant in Variant::ALL {
            let play = move |how: fn(&Plan)| {
                let outcome = std::thread::spawn(move || {
                    if !own_network("printed commands") {
                        return None;
                    }
                    let mut seen = Vec::new();
                    for wanted in [
                        render(&policy(2, &[3389]), true).unwrap(),
                        render(&policy(40, &[22, 3389]), true).unwrap(),
                        render(&policy(41, &[22]), false).unwrap(),
                        crate::rules::iptables::Rendered::default(),
                    ] {
                        how(&changes(variant, &observe().unwrap(), &wanted));
                        seen.push((listing(variant), sets_listing()));
                    }
                    Some(seen)
                });
                outcome.join().unwrap()
            };
            assert_eq!(play(carry_out), play(script), "{variant}");
        }
    }

    #[test]
    fn whatever_others_do_to_ours_is_seen_and_mended() {
        for variant in Variant::ALL {
            std::thread::spawn(move || {
                if !own_network("drift") {
                    return;
                }
                let wanted = render(&policy(40, &[22, 3389]), true).unwrap();
                carry_out(&changes(variant, &observe().unwrap(), &wanted));
                let set = &wanted.sets[0].name;
                for harm in [
                    "$I -t mangle -I PREROUTING 1 -p udp -j ACCEPT",
                    "$I -t mangle -D PREROUTING -j scb-redirect",
                    "$I -t mangle -A PREROUTING -j scb-redirect",
                    "$I -t mangle -A POSTROUTING -o lo -g scb-redirect-marked",
                    "$I -t mangle -F scb-redirect-to-scb",
                    "$I -t mangle -I scb-redirect-in-eth0 1 -m limit --limit 1/sec -m comment --comment 'a \"b\" c' -j ACCEPT",
                    "$I -t mangle -R scb-redirect-to-scb 1 -j MARK --set-xmark 0x2/0xff",
                    "$I -t mangle -N scb-redirect-x; $I -t mangle -A scb-redirect-x -j LOG",
                    "ipset add $S 192.0.2.0/24",
                    "ipset flush $S; ipset add $S 192.0.2.0/24 nomatch",
                    "$I -t mangle -F; $I -t mangle -X",
                ] {
                    let harm = harm.replace("$I", variant.command()).replace("$S", set);
                    run("sh", &["-eu", "-c", &harm], "");
                    let mending = changes(variant, &observe().unwrap(), &wanted);
                    assert_ne!(mending, Plan::default(), "{variant}: not seen: {harm}");
                    let harmed = (listing(variant), sets_listing());
                    carry_out(&mending);
                    let now = observe().unwrap();
                    assert_eq!(changes(variant, &now, &wanted), Plan::default(), "{variant}: {harm}");
                    // And taken back it is as somebody left it, to the word.
                    if !harm.contains("-F; ") {
                        for change in mending.clone().inverse().changes {
                            perform(&change).unwrap_or_else(|error| panic!("{harm}: {error}"));
                        }
                        assert_eq!((listing(variant), sets_listing()), harmed, "{variant}: {harm}");
                        carry_out(&changes(variant, &observe().unwrap(), &wanted));
                    }
                    let others = format!("{variant} -t mangle -D PREROUTING -p udp -j ACCEPT 2>&1 || true");
                    run("sh", &["-c", &others], "");
                }
            })
            .join()
            .unwrap();
        }
    }

    /// The directory of iptables' extensions.
    fn extensions() -> Option<std::path::PathBuf> {
        [
            "/usr/lib/x86_64-linux-gnu/xtables",
            "/usr/lib/aarch64-linux-gnu/xtables",
            "/usr/lib64/xtables",
            "/usr/lib/xtables",
        ]
        .into_iter()
        .map(std::path::PathBuf::from)
        .find(|path| path.is_dir())
    }

    #[test]
    fn a_missing_extension_is_found_before_anything_is_changed() {
        let Some(extensions) = extensions() else {
            eprintln!("SKIPPED a missing extension: the extensions of iptables were not found");
            return;
        };
        if !own_network("a missing extension") || !own_table_names("a missing extension") {
            return;
        }
        let none = None::<&str>;
        nix::mount::mount(
            Some("tmpfs"),
            &extensions,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            none,
        )
        .unwrap();
        let wanted = render(&policy(1, &[22]), false).unwrap();
        let plan = changes(Variant::Legacy, &observe().unwrap(), &wanted);
        let error = rehearse(&plan).unwrap_err();
        assert_eq!(error.kind, FailureKind::Lacking, "{error}");
        assert!(error.hint.is_some(), "{error}");
        assert_eq!(
            legacy_tables(Family::V4).unwrap(),
            "",
            "nothing was changed"
        );
    }
}
