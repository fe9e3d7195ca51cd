//! iptables and ipset: `iptables-save` to read, `iptables-restore --noflush` for every commit;
//! sets over netlink.
//!
//! Two kernel interfaces go by this name (see [`Variant`]), and their commands by several.
//! What a command is, its `-V` says; what it can do, a rehearsal in an empty network
//! namespace shows, before anything is changed. To start a command takes as long as the kernel
//! takes for thousands of rules: none is started twice for the same answer.

mod programs;
mod rehearsal;
mod sets;
mod tables;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use super::process::{self, Output};
use super::{FailureKind, KernelError};
use crate::iptables::parse::Counter;
use crate::iptables::{Ruleset, Variant, command_of, write};
use crate::net::Family;
use crate::observation::{Iptables, IptablesProgram, IptablesRules};
use crate::plan::{Change, Plan};
use programs::Program;

pub(super) use rehearsal::Rehearsal;
pub use tables::{may_hold_ours, nft_is_bare};

/// Longest time that a command may take. A commit of 100,000 rules takes the legacy
/// commands seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The way to the router's iptables and sets.
#[derive(Debug, Default)]
pub struct Xtables {
    /// The commands, once they are known: they are not replaced during a run.
    programs: Option<Vec<Program>>,
    counters: Vec<Counter>,
}

impl Xtables {
    fn programs(&mut self) -> Result<&[Program], KernelError> {
        let programs = match self.programs.take() {
            Some(known) => known,
            None => programs::find()?,
        };
        Ok(self.programs.insert(programs))
    }

    /// Reads what iptables commands there are, and what the kernel holds for them.
    ///
    /// # Errors
    /// If a command that is there cannot be run, or prints what makes no sense.
    pub fn observe(&mut self) -> Result<Iptables, KernelError> {
        let mut programs: Vec<IptablesProgram> = Vec::new();
        let mut questions = Vec::new();
        for (index, program) in self.programs()?.iter().enumerate() {
            for family in Family::ALL {
                let command = command_of(program.command, family);
                let there = ["-save", "-restore"]
                    .iter()
                    .all(|part| process::find(&format!("{command}{part}")).is_some());
                if there {
                    questions.push((index, command, program.variant, family));
                }
            }
            programs.push(IptablesProgram {
                variant: program.variant,
                command: program.command.to_owned(),
                version: program.version,
                unreadable: None,
                families: BTreeMap::new(),
            });
        }
        self.counters.clear();
        if programs.is_empty() {
            return Ok(Iptables::default());
        }
        let answers = at_once(&questions, |(_, command, variant, family)| {
            tables::rules(command, *variant, *family)
        });
        for ((index, _, _, family), answer) in questions.iter().zip(answers) {
            let Some(program) = programs.get_mut(*index) else {
                continue;
            };
            let rules = match answer {
                Ok((rules, counters)) => {
                    self.counters.extend(counters);
                    rules
                }
                Err(error) => {
                    // It may not matter: that is for the planner to know.
                    program.unreadable = Some(error.to_string());
                    IptablesRules::default()
                }
            };
            program.families.insert(*family, rules);
        }
        let (ipset, sets) = sets::observe()?;
        Ok(Iptables {
            programs,
            ipset,
            sets,
        })
    }

    /// How often our rules with comments had matched when they were last observed.
    #[must_use]
    pub fn counters(&self) -> &[Counter] {
        &self.counters
    }

    /// Makes a change of sets or chains.
    ///
    /// # Errors
    /// In the words of the command that refused it; nothing is changed then.
    pub fn perform(&mut self, change: &Change) -> Result<(), KernelError> {
        match change {
            Change::Ipset { from, to } => sets::change(from.as_ref(), to.as_ref()),
            Change::Frame {
                family, from, to, ..
            } => tables::change_frame(self.programs()?, *family, from, to),
            Change::Iptables {
                variant,
                family,
                from,
                to,
                ..
            } => commit(self.programs()?, *variant, *family, from, to, false),
            _ => Ok(()),
        }
    }

    /// What `plan` has for iptables that rules in force do not show to be there, to be tried where it
    /// can do no harm; none if there is nothing.
    ///
    /// # Errors
    /// If the commands cannot be looked for.
    pub(super) fn rehearsal<'a>(
        &'a mut self,
        plan: &'a Plan,
    ) -> Result<Option<Rehearsal<'a>>, KernelError> {
        if !rehearsal::is_worthwhile(plan) {
            return Ok(None);
        }
        let programs = self.programs()?;
        Ok(Some(Rehearsal { programs, plan }))
    }
}

/// Removes the set that a run which was killed while it made `change` had only for the swap.
///
/// # Errors
/// In the words of the command that refused it.
pub fn tidy(change: &Change) -> Result<(), KernelError> {
    match change {
        Change::Ipset {
            from: Some(set),
            to: Some(_),
        } => sets::remove(&write::spare_name(&set.name)),
        _ => Ok(()),
    }
}

fn commit(
    programs: &[Program],
    variant: Variant,
    family: Family,
    from: &Ruleset,
    to: &Ruleset,
    test: bool,
) -> Result<(), KernelError> {
    let input = write::restore_input(from, to);
    tables::restore(programs, variant, family, &input, test)
}

/// What `ask` says to each, all asked at once, for each waits for a program.
fn at_once<Q: Sync, A: Send>(questions: &[Q], ask: impl Fn(&Q) -> A + Sync) -> Vec<A> {
    let ask = &ask;
    thread::scope(|scope| {
        let asked: Vec<_> = questions
            .iter()
            .map(|question| scope.spawn(move || ask(question)))
            .collect();
        let answers = asked.into_iter().map(thread::ScopedJoinHandle::join);
        answers
            .map(|answer| answer.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `AF_INET`, `AF_INET6`.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
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

#[cfg(test)]
mod tests;
