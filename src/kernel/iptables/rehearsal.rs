//! A rehearsal: what commands and kernel can do shows where it can do no harm.

use std::collections::BTreeSet;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::programs::Program;
use super::{commit, sets};
use crate::iptables::{Match, Ruleset, Set, Target};
use crate::kernel::KernelError;
use crate::plan::{Change, Plan};

/// Whether `plan` takes something of iptables that rules in force do not show to be there.
pub(super) fn is_worthwhile(plan: &Plan) -> bool {
    plan.changes.iter().any(|change| match change {
        Change::Iptables { from, to, .. } => !to.features().is_subset(&from.features()),
        _ => false,
    })
}

/// Tries what `plan` has for iptables where it can do no harm: in a network namespace of
/// its own, which goes when this returns. What the commands or the kernel lack is found
/// here, before anything is changed.
///
/// # Errors
/// In the words of the command that refused it.
pub(super) fn rehearse(programs: &[Program], plan: &Plan) -> Result<(), KernelError> {
    let outcome = thread::scope(|scope| {
        let rehearsal = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => play(programs, plan),
            // Without namespaces, or the right to make one, the commands at least can be
            // asked; what the kernel lacks then shows in the commit, which is taken back.
            Err(Errno::EPERM | Errno::EINVAL | Errno::ENOSPC | Errno::ENOSYS) => {
                test(programs, plan)
            }
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

/// Makes all sets and chains of `plan` anew, but of networks that are tested one by one only the
/// first, and none in sets: more of the same takes time, and nothing that may be lacking.
fn play(programs: &[Program], plan: &Plan) -> Result<(), KernelError> {
    let mut made = BTreeSet::new();
    for change in &plan.changes {
        match change {
            Change::Ipset { to: Some(set), .. } if made.insert(set.name.clone()) => {
                let empty = Set {
                    networks: Vec::new(),
                    others: Vec::new(),
                    ..set.clone()
                };
                sets::create(&empty, &set.name)?;
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
                        sets::create(&set, &name)?;
                    }
                }
                let to = to.abridged();
                commit(programs, *variant, *family, &Ruleset::default(), &to, false)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Has the commands read what they will be given.
fn test(programs: &[Program], plan: &Plan) -> Result<(), KernelError> {
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
                commit(programs, *variant, *family, from, to, true)?;
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
