//! What becomes of sessions that run while the router changes: counted, and said, before. What is
//! said must be true also if the router then stays as it was.

use std::collections::{BTreeMap, BTreeSet};

use super::counted;
use crate::engine::policy_of;
use crate::failure::{Exit, Failure};
use crate::journal::{Digest, Draining, Journal};
use crate::kernel::KernelError;
use crate::kernel::conntrack::{Connection, Conntrack};
use crate::net::Mark;
use crate::observation::Observed;
use crate::plan::ending::{self, Clash, Session};
use crate::plan::{Change, Finding, Plan};
use crate::policy::{Established, Name, Policy};
use crate::rules::Model;
use crate::terminal::Terminal;

/// The next policy, and what goes on beside it.
#[derive(Default)]
pub(super) struct Next {
    /// The policy, and what it leaves behind while connections go through that.
    pub(super) policy: Policy,
    /// What of it takes no new sessions.
    pub(super) draining: Draining,
    kept: Vec<Left>,
    cut: Vec<(Left, Option<Clash>)>,
}

/// A redirect that is left behind.
struct Left {
    redirect: Name,
    appliance: Name,
    connections: usize,
}

impl Left {
    fn sentence(&self, subject: &str) -> String {
        format!(
            "{} {subject} through `{}` for redirect `{}`, which the policy leaves behind",
            counted(self.connections, "connection", "connections"),
            self.appliance,
            self.redirect,
        )
    }
}

/// What `policy`, of which these appliances take no new sessions, leaves behind of what is in
/// force; all of that is to be cut if `cut`.
///
/// # Errors
/// If the kernel does not say what connections there are; it is asked only where that matters.
pub(super) fn next(
    journal: &Journal,
    policy: &Policy,
    appliances: Vec<Name>,
    cut: bool,
) -> Result<Next, KernelError> {
    let mut next = Next {
        policy: policy.clone().draining(&appliances),
        draining: Draining {
            appliances,
            left_behind: Vec::new(),
        },
        kept: Vec::new(),
        cut: Vec::new(),
    };
    let sources = sources(journal);
    for ((source, index), connections) in left_behind(&sources, &next.policy)? {
        let Some(Before { digest, policy, .. }) = sources.get(source) else {
            continue;
        };
        let Some(redirect) = policy.redirects.get(index) else {
            continue;
        };
        let left = Left {
            redirect: redirect.name.clone(),
            appliance: (policy.appliance_of(redirect))
                .map_or_else(|| redirect.name.clone(), |appliance| appliance.name.clone()),
            connections,
        };
        if cut {
            next.cut.push((left, None));
            continue;
        }
        let names = std::slice::from_ref(&redirect.name);
        match ending::keeping(next.policy.clone(), policy, names) {
            Ok(policy) => {
                next.policy = policy;
                next.draining.leave_behind(digest, redirect.name.clone());
                next.kept.push(left);
            }
            Err(clash) => next.cut.push((left, Some(clash))),
        }
    }
    Ok(next)
}

impl Next {
    /// What is to be known of sessions that end as they began.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let kept = self.kept.iter().map(|left| Finding {
            code: "sessions-end",
            key: None,
            message: format!("{}: they end as they began", left.sentence("go")),
            hint: "once none is left, `redirect repair` or another apply takes it out; `redirect apply --cut` cuts them".to_owned(),
        });
        let cut = self.cut.iter().map(|(left, clash)| match clash {
            None => Finding {
                code: "sessions-cut",
                key: None,
                message: left.sentence("are cut that go"),
                hint: "without `--cut` they end as they began".to_owned(),
            },
            Some(clash) => Finding {
                code: "sessions-cut",
                key: None,
                message: format!(
                    "{}, and cannot go on: {}",
                    left.sentence("go"),
                    clash.message
                ),
                hint: format!("{}: then they end as they began", clash.hint),
            },
        });
        kept.chain(cut).collect()
    }

    /// A failure where connections would be cut that nobody asked to cut.
    pub(super) fn must_cut_none(&self) -> Result<(), Failure> {
        let clashes: Vec<_> = (self.cut.iter())
            .filter_map(|(left, clash)| Some((left, clash.as_ref()?)))
            .collect();
        if clashes.is_empty() {
            return Ok(());
        }
        let total = clashes.iter().map(|(left, _)| left.connections).sum();
        let mut failure = Failure::new(
            Exit::Failed,
            format!(
                "{} would be cut; nothing was changed",
                counted(total, "open connection", "open connections")
            ),
        );
        for (left, clash) in clashes {
            failure = failure
                .detail(format!("{}: {}", left.sentence("go"), clash.message))
                .hint(format!("{}: then they end as they began", clash.hint));
        }
        Err(failure.hint("or cut them: `redirect apply --cut`"))
    }
}

/// A policy that connections may still go by, and which of its redirects.
struct Before {
    digest: Digest,
    policy: Policy,
    redirects: Vec<Name>,
}

/// The policy in force and what it left behind, as far as the journal can still tell.
fn sources(journal: &Journal) -> Vec<Before> {
    let in_force = journal.in_force();
    let whole = in_force.policy.as_ref().map(|digest| (digest, None));
    let left = (in_force.draining.left_behind.iter())
        .map(|left| (&left.policy, Some(left.redirects.clone())));
    (whole.into_iter().chain(left))
        .filter_map(|(digest, redirects)| {
            let policy = policy_of(journal, digest).ok()?;
            let all = || policy.redirects.iter().map(|one| one.name.clone());
            Some(Before {
                digest: digest.clone(),
                redirects: redirects.unwrap_or_else(|| all().collect()),
                policy,
            })
        })
        .collect()
}

/// How many connections go by each redirect (by source and index) that `next` leaves behind.
fn left_behind(
    sources: &[Before],
    next: &Policy,
) -> Result<BTreeMap<(usize, usize), usize>, KernelError> {
    let marks: BTreeSet<Mark> = (sources.iter())
        .flat_map(|before| {
            let redirects = before.policy.redirects.iter();
            redirects
                .filter(|one| before.redirects.contains(&one.name))
                .filter(|one| !ending::goes_on(&before.policy, one, next))
                .filter_map(|one| Some(before.policy.appliance_of(one)?.mark))
        })
        .collect();
    let mut counts = BTreeMap::new();
    if marks.is_empty() {
        return Ok(counts);
    }
    let mut conntrack = Conntrack::open()?;
    for mark in marks {
        conntrack.count(Some(mark), |connection| {
            if connection.is_established_tcp() {
                let session = Session {
                    client: connection.source,
                    server: connection.destination,
                    port: connection.destination_port,
                    mark: connection.mark,
                };
                let left = sources.iter().enumerate().find_map(|(source, before)| {
                    let index = ending::left_behind(&before.policy, next, &session)?;
                    let name = &before.policy.redirects.get(index)?.name;
                    before.redirects.contains(name).then_some((source, index))
                });
                if let Some(left) = left {
                    *counts.entry(left).or_default() += 1;
                }
            }
            false
        })?;
    }
    Ok(counts)
}

/// Says how many sessions are cut that no appliance saw begin, where `plan` takes them to one.
pub(super) fn tell_what_is_taken(
    policy: &Policy,
    plan: &Plan,
    observed: &Observed,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let takes = (plan.changes.iter())
        .any(|change| matches!(change, Change::Nftables { .. } | Change::Iptables { .. }));
    if !takes || policy.is_empty() {
        return Ok(());
    }
    let model = Model::new(policy);
    let (mut seen, mut parted) = (0_usize, 0_usize);
    let cut = Conntrack::open()?.count(None, |connection| {
        seen += 1;
        if connection.is_established_tcp() && model.parts(connection.ends(), connection.mark) {
            parted += 1;
        }
        connection.is_established_tcp()
            && !observed.is_own(connection.destination)
            && model.cuts(connection.ends(), connection.mark).is_some()
    })?;
    if seen == 0 && policy.options.established == Established::Redirect {
        terminal.note(
            "connection tracking has seen no connection here yet, so sessions that are open cannot \
             be counted; once the policy is in force, those of it are cut",
        );
    } else if cut > 0 {
        terminal.note(&format!(
            "once the policy is in force, {} cut: the appliance never saw them begin \
             (`established = \"keep\"` lets them go on)",
            counted(cut, "open session is", "open sessions are")
        ));
    }
    if parted > 0 {
        terminal.note(&format!(
            "{} with the appliance they have, though the policy now names another for them; where it \
             dials servers with the client's own port, they are reset (unless \
             `net.netfilter.nf_conntrack_tcp_be_liberal` is 1)",
            counted(parted, "open connection stays", "open connections stay")
        ));
    }
    Ok(())
}

/// Says how many connections are cut when everything of `policy` goes. Not being able to count
/// them hinders nobody.
pub(super) fn tell_what_is_given_up(policy: &Policy, terminal: &Terminal) {
    match through(policy.appliances.iter().map(|appliance| appliance.mark)) {
        Ok(0) | Err(_) => {}
        Ok(cut) => terminal.note(&format!(
            "once nothing is redirected, {} cut (`redirect teardown --drain` lets them end)",
            counted(
                cut,
                "open connection through an appliance is",
                "open connections through an appliance are"
            ),
        )),
    }
}

/// Established connections that bear one of `marks`.
pub(super) fn through(marks: impl IntoIterator<Item = Mark>) -> Result<usize, KernelError> {
    let mut conntrack = Conntrack::open()?;
    let mut found = 0;
    for mark in marks {
        found += conntrack.count(Some(mark), Connection::is_established_tcp)?;
    }
    Ok(found)
}
