//! Looks at the router on behalf of the commands that explain it: `status`, `check`, `trace`, `support`.

use std::path::Path;

use super::{Typed, read_policy, read_source, trusting_router};
use crate::check::{Backend, Case, PolicyFile, Surroundings};
use crate::cli::{POLICY, PolicyArg};
use crate::engine::policy_in_force;
use crate::failure::Failure;
use crate::journal::{self, Digest, Journal, Location};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, Wish, surroundings};
use crate::observation::Observed;
use crate::plan::packets;
use crate::plan::planner::{self, Planned, Stage};
use crate::policy::{Policy, Source};
use crate::terminal::Terminal;

/// All that was seen.
pub(super) struct Seen {
    pub(super) policy: Policy,
    pub(super) file: PolicyFile,
    pub(super) in_force: bool,
    pub(super) observed: Observed,
    pub(super) planned: Planned,
    pub(super) surroundings: Surroundings,
}

impl Seen {
    /// Looks at everything that matters to `policy`.
    pub(super) fn of(policy: Policy, source: &Source) -> Result<Self, Failure> {
        let journal = Journal::read(&Location::new(journal::DIRECTORY)?)?;
        let digest = Digest::of(source);
        journal.remember(&digest, &policy);
        let before = policy_in_force(&journal)?;
        // Something of a policy before it may go on beside it.
        let in_force = journal.in_force().policy.as_ref() == Some(&digest) || before == policy;
        let in_force = in_force && !before.is_empty();
        let mut router = trusting_router(&journal, &before)?;
        let observed = router.observe(&Wish {
            policies: &[&policy, &before],
        })?;
        let ledger = &journal.in_force().ledger;
        let wanted = if in_force { &before } else { &policy };
        let planned = planner::plan(wanted, &observed, ledger, Stage::Complete);
        let surroundings = surroundings::gather(&policy, in_force, &observed, &mut router);
        Ok(Self {
            file: policy_file(source),
            policy,
            in_force,
            observed,
            planned,
            surroundings,
        })
    }

    /// Looks again, for the neighbours that have answered meanwhile.
    pub(super) fn look_again(&mut self) -> Result<(), Failure> {
        self.surroundings = surroundings::gather(
            &self.policy,
            self.in_force,
            &self.observed,
            &mut Router::open()?,
        );
        Ok(())
    }

    pub(super) fn case(&self) -> Case<'_> {
        Case {
            policy: &self.policy,
            file: &self.file,
            in_force: self.in_force,
            observed: &self.observed,
            planned: &self.planned,
            backend: backend(&self.policy, &self.observed),
            surroundings: &self.surroundings,
        }
    }
}

/// Which packet filter holds our rules, or would.
pub(super) fn backend(policy: &Policy, observed: &Observed) -> Backend {
    match packets::backend(policy, observed) {
        Ok(packets::Backend::Iptables(_)) => Backend::Iptables,
        _ => Backend::Nftables,
    }
}

/// What commands that edit the policy have to know of it.
pub(super) fn policy_file(source: &Source) -> PolicyFile {
    PolicyFile {
        path: source.name.clone(),
        text: source.text.clone(),
    }
}

/// The policy that was named; where none was, and the usual file is not there, the one in force.
pub(super) fn named_or_in_force(args: &PolicyArg, terminal: &Terminal) -> Result<Typed, Failure> {
    let usual = Path::new(POLICY);
    // What cannot be looked at is told by whoever reads it.
    if args.policy == usual && usual.try_exists().is_ok_and(|exists| !exists) {
        let journal = Journal::read(&Location::new(journal::DIRECTORY)?)?;
        if let Some(digest) = &journal.in_force().policy {
            let source = journal.source(digest)?;
            terminal.note(&format!(
                "there is no `{POLICY}`; this is about the policy in force, {}",
                digest.short()
            ));
            return read_source(source, terminal);
        }
    }
    read_policy(&args.policy, terminal)
}
