//! A rehearsal: what commands and kernel can do shows where it can do no harm.

use std::collections::BTreeSet;

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

/// What a plan has for iptables, to be tried before anything is changed.
pub(in crate::kernel) struct Rehearsal<'a> {
    pub(super) programs: &'a [Program],
    pub(super) plan: &'a Plan,
}

impl Rehearsal<'_> {
    /// Makes all sets and chains of `plan` anew, but of networks that are tested one by one only the
    /// first, and none in sets: more of the same takes time, and nothing that may be lacking.
    pub(in crate::kernel) fn play(&self) -> Result<(), KernelError> {
        let mut made = BTreeSet::new();
        for change in &self.plan.changes {
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
                    commit(
                        self.programs,
                        *variant,
                        *family,
                        &Ruleset::default(),
                        &to,
                        false,
                    )?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the commands read what they will be given.
    pub(in crate::kernel) fn test(&self) -> Result<(), KernelError> {
        for change in &self.plan.changes {
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
                    commit(self.programs, *variant, *family, from, to, true)?;
                }
            }
        }
        Ok(())
    }
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
    use crate::iptables::Variant;
    use crate::net::Family;
    use crate::rules::iptables::render;
    use crate::test_support::policy;

    fn rules(networks: usize, options: &str, with_sets: bool) -> Ruleset {
        let networks: Vec<String> = (0..networks).map(|at| format!("10.20.{at}.0/25")).collect();
        let policy = policy(&format!(
            "version = 1\n[appliance.scb]\naddress = \"10.30.0.2\"\ninterface = \"sps0\"\n[[redirect]]\nname = \"rdp\"\nclient_interface = \"eth0\"\nserver_network = {networks:?}\nport = 3389\nsnat = true\n{options}"
        ));
        let mut rendered = render(&policy, with_sets).unwrap();
        rendered.rulesets.remove(&Family::V4).unwrap()
    }

    #[test]
    fn what_rules_in_force_show_needs_no_rehearsal() {
        let is_worthwhile = |from: &Ruleset, to: &Ruleset| {
            is_worthwhile(&Plan {
                changes: vec![Change::Iptables {
                    variant: Variant::Legacy,
                    command: "iptables".to_owned(),
                    family: Family::V4,
                    from: from.clone(),
                    to: to.clone(),
                }],
            })
        };
        let (none, few, set) = (Ruleset::default(), rules(2, "", true), rules(20, "", true));
        assert!(is_worthwhile(&none, &few));
        assert!(
            is_worthwhile(&few, &set),
            "nothing looked into a set before"
        );
        assert!(!is_worthwhile(&set, &rules(21, "", true)));
        assert!(!is_worthwhile(&few, &rules(3, "", true)));
        let keep = rules(2, "[options]\nestablished = \"keep\"", true);
        assert!(is_worthwhile(&few, &keep), "another state is asked for");
        assert!(!is_worthwhile(&set, &none), "what goes needs nothing");
    }

    #[test]
    fn of_a_rule_a_network_the_first_is_rehearsed() {
        let (many, few) = (rules(200, "", false), rules(6, "", false));
        let (many, few) = (many.abridged(), few.abridged());
        assert!(many.chains.values().all(|rules| rules.len() < 10));
        assert_eq!(many, few);
        assert_eq!(rules(2, "", false).abridged().hooks, many.hooks);
    }
}
