//! Taking back what an interrupted run has done, from its record and from what is there.
//!
//! A run may have died between any two of its changes, and others may have touched the
//! router since. So nothing is assumed: each object of the recorded plan is compared
//! with what is there now. Recovery may itself be interrupted and simply runs again.

use std::path::Path;

use super::entry::summarise;
use crate::net::{Route, RouteProtocol, RoutingRule};
use crate::observation::Observed;
use crate::plan::{Change, Plan};

/// What brings the router back to where it was before a transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The changes to make, in order.
    pub plan: Plan,
    /// What somebody else changed meanwhile, and is theirs to keep.
    pub left: Vec<Left>,
}

/// An object that is neither as it was before the transaction nor as that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// What the transaction did to it.
    pub change: String,
    /// What is there now.
    pub found: String,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not taken back: {}; found {}", self.change, self.found)
    }
}

/// How much of a transaction's work can still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All of it: it ran during this boot.
    Everything,
    /// The machine has started anew since: only what it did to files.
    Files,
}

/// What takes `plan` back, wherever in it the run stopped.
///
/// Objects that bear our marks (packet rules, routes and rules) go back to what they were,
/// whoever touched them meanwhile. Files and settings belong to the router: where they
/// hold something else by now, they are left alone and reported.
#[must_use]
pub fn recovery(plan: &Plan, reach: Reach, observed: &Observed) -> Recovery {
    let mut recovery = Recovery::default();
    let mut kept = Vec::new();
    for change in plan.changes.iter().rev() {
        match standing(change, reach, observed) {
            Standing::Before => {}
            Standing::Made(Change::Directory {
                path, to: false, ..
            }) if kept.iter().any(|file: &&Path| file.starts_with(&path)) => {
                recovery.left.push(Left {
                    change: summarise(change),
                    found: "a file that stays in it".to_owned(),
                });
            }
            Standing::Made(back) => recovery.plan.changes.push(back),
            Standing::Foreign(found) => {
                if let Change::File { path, .. } = change {
                    kept.push(path);
                }
                recovery.left.push(Left {
                    change: summarise(change),
                    found,
                });
            }
        }
    }
    recovery
}

/// Where one object stands between before and after.
#[expect(clippy::large_enum_variant, reason = "one at a time, and gone at once")]
enum Standing {
    /// As before the transaction.
    Before,
    /// Not as before; this change makes it so.
    Made(Change),
    /// As somebody else left it, described.
    Foreign(String),
}

fn standing(change: &Change, reach: Reach, observed: &Observed) -> Standing {
    match change {
        Change::Directory { path, from, to } => {
            let Some(now) = observed.table_names.has_directory(path) else {
                return Standing::Foreign("a place that this version never looks at".to_owned());
            };
            place(&now, from, to, change, |_| "no directory".to_owned())
        }
        Change::File { path, from, to } => {
            let Some(now) = observed.table_names.file(path) else {
                return Standing::Foreign("a place that this version never looks at".to_owned());
            };
            place(
                &now,
                &from.as_ref(),
                &to.as_ref(),
                change,
                |now| match now {
                    Some(content) => format!("other content, {} bytes", content.text.len()),
                    None => "no such file".to_owned(),
                },
            )
        }
        _ if reach == Reach::Files => Standing::Before,
        Change::Sysctl { sysctl, from, to } => {
            // A setting that is gone went with its interface.
            let Some(now) = observed.sysctl(sysctl) else {
                return Standing::Before;
            };
            place(&now.trim(), &from.trim(), &to.trim(), change, |now| {
                format!("`{now}`")
            })
        }
        Change::Route { from, to } => route(from.as_ref(), to.as_ref(), observed),
        Change::Rule { from, to } => rule(from.as_ref(), to.as_ref(), observed),
        Change::Nftables { from, .. } => {
            if observed.nftables == *from {
                Standing::Before
            } else {
                Standing::Made(Change::Nftables {
                    from: observed.nftables.clone(),
                    to: from.clone(),
                })
            }
        }
        Change::Ipset { from, to } => {
            let name = from.as_ref().or(to.as_ref()).map(|set| set.name.as_str());
            let now = name.and_then(|name| observed.iptables.set(name)).cloned();
            if now == *from {
                Standing::Before
            } else {
                Standing::Made(Change::Ipset {
                    from: now,
                    to: from.clone(),
                })
            }
        }
        Change::Frame {
            command,
            family,
            from,
            ..
        } => {
            let now = observed.iptables.frame(*family);
            if now == *from {
                Standing::Before
            } else {
                Standing::Made(Change::Frame {
                    command: command.clone(),
                    family: *family,
                    from: now,
                    to: from.clone(),
                })
            }
        }
        Change::Iptables {
            variant,
            command,
            family,
            from,
            ..
        } => {
            let now = observed.iptables.ours(*variant, *family);
            if now == *from {
                Standing::Before
            } else {
                Standing::Made(Change::Iptables {
                    variant: *variant,
                    command: command.clone(),
                    family: *family,
                    from: now,
                    to: from.clone(),
                })
            }
        }
    }
}

/// Compares what an object holds with both sides of a change.
fn place<T: PartialEq>(
    now: &T,
    from: &T,
    to: &T,
    change: &Change,
    describe: impl Fn(&T) -> String,
) -> Standing {
    if now == from {
        Standing::Before
    } else if now == to {
        Standing::Made(change.clone().inverse())
    } else {
        Standing::Foreign(describe(now))
    }
}

fn route(from: Option<&Route>, to: Option<&Route>, observed: &Observed) -> Standing {
    let there = |route: &&Route| observed.routes.contains(route);
    let (new, old) = (to.filter(there), from.filter(|route| !there(route)));
    let in_the_way = match (new, old) {
        (None, None) => return Standing::Before,
        (None, Some(old)) => observed.routes.iter().find(|route| same_place(route, old)),
        (Some(_), _) => new,
    };
    match in_the_way {
        Some(other) if other.protocol != RouteProtocol::OURS => {
            Standing::Foreign(format!("a route of protocol {}", other.protocol.0))
        }
        ours => Standing::Made(Change::Route {
            from: ours.cloned(),
            to: old.cloned(),
        }),
    }
}

/// Whether the kernel takes two routes for one place.
fn same_place(a: &Route, b: &Route) -> bool {
    (a.family, a.table, a.destination, a.metric) == (b.family, b.table, b.destination, b.metric)
}

fn rule(from: Option<&RoutingRule>, to: Option<&RoutingRule>, observed: &Observed) -> Standing {
    let there = |rule: &&RoutingRule| observed.rules.contains(rule);
    let (new, old) = (to.filter(there), from.filter(|rule| !there(rule)));
    if new.is_none() && old.is_none() {
        Standing::Before
    } else {
        Standing::Made(Change::Rule {
            from: new.cloned(),
            to: old.cloned(),
        })
    }
}
