//! Looks at the router on behalf of the commands that explain it: `check`, `trace`, `support`.

use crate::check::{Backend, Case, PolicyFile, Surroundings};
use crate::engine::policy_in_force;
use crate::failure::Failure;
use crate::journal::{self, Journal, Location};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, Wish, surroundings};
use crate::observation::Observed;
use crate::plan::packets;
use crate::plan::planner::{self, Planned, Stage};
use crate::policy::{Policy, Source};

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
        let before = policy_in_force(&journal)?;
        let in_force = !before.is_empty() && before == policy;
        let mut router = Router::open()?;
        let observed = router.observe(&Wish {
            policies: &[&policy, &before],
        })?;
        let ledger = &journal.in_force().ledger;
        let planned = planner::plan(&policy, &observed, ledger, Stage::Complete);
        let surroundings = surroundings::gather(&policy, &observed, &mut router);
        Ok(Self {
            file: PolicyFile {
                path: source.name.clone(),
                text: source.text.clone(),
            },
            policy,
            in_force,
            observed,
            planned,
            surroundings,
        })
    }

    /// Looks again, for the neighbours that have answered meanwhile.
    pub(super) fn look_again(&mut self) -> Result<(), Failure> {
        self.surroundings =
            surroundings::gather(&self.policy, &self.observed, &mut Router::open()?);
        Ok(())
    }

    pub(super) fn case(&self) -> Case<'_> {
        let backend = match packets::backend(&self.policy, &self.observed) {
            Ok(packets::Backend::Iptables(_)) => Backend::Iptables,
            _ => Backend::Nftables,
        };
        Case {
            policy: &self.policy,
            file: &self.file,
            in_force: self.in_force,
            observed: &self.observed,
            planned: &self.planned,
            backend,
            surroundings: &self.surroundings,
        }
    }
}
