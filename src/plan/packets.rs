//! The packet rules: which packet filter is to hold them, and the changes that take them
//! there, whichever holds them now.

use super::{Change, Finding, Ledger};
use crate::iptables::Variant;
use crate::net::Family;
use crate::observation::{Availability, Iptables, IptablesProgram, Observed};
use crate::policy::{BackendChoice, Policy};
use crate::rules::iptables::Rendered;
use crate::{nft, rules};

/// What a router has that can hold no packet rules of ours.
pub const PACKET_FILTER_MISSING: &str = "packet-filter-missing";

/// Where the rules are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend<'o> {
    /// In our nftables table.
    Nftables,
    /// In chains of these commands.
    Iptables(&'o IptablesProgram),
}

/// The packet filter for `policy` on this router.
///
/// # Errors
/// Says what the router lacks.
pub fn backend<'o>(policy: &Policy, observed: &'o Observed) -> Result<Backend<'o>, Finding> {
    let choice = policy.options.backend;
    let key = (choice != BackendChoice::Auto).then(|| "options.backend".to_owned());
    let lacks_nftables = match &observed.nftables_availability {
        Availability::Available | Availability::Unknown(_) if choice != BackendChoice::Iptables => {
            return Ok(Backend::Nftables);
        }
        Availability::Available | Availability::Unknown(_) => String::new(),
        Availability::Missing(why) if choice == BackendChoice::Nftables => {
            return Err(Finding {
                code: PACKET_FILTER_MISSING,
                key,
                message: format!("this kernel cannot hold nftables rules: {why}"),
                hint: "a kernel with `CONFIG_NF_TABLES_INET` is needed; `modprobe nf_tables` may load it; or set `backend = \"iptables\"`".to_owned(),
            });
        }
        Availability::Missing(why) => format!(", and its kernel cannot hold nftables rules: {why}"),
    };
    let program = program(&observed.iptables).map_err(|(message, hint)| Finding {
        code: PACKET_FILTER_MISSING,
        key: key.clone(),
        message: format!("{message}{lacks_nftables}"),
        hint,
    })?;
    for family in Family::ALL {
        let used = policy
            .redirects
            .iter()
            .any(|redirect| !redirect.servers.is_empty_of(family));
        if used && !program.families.contains_key(&family) {
            let command = crate::iptables::command_of(&program.command, family);
            return Err(Finding {
                code: PACKET_FILTER_MISSING,
                key,
                message: format!(
                    "the policy has {family} networks, and there is no `{command}-restore` or no `{command}-save` on this router"
                ),
                hint: format!(
                    "install the package that `{}` comes from in full",
                    program.command
                ),
            });
        }
    }
    Ok(Backend::Iptables(program))
}

/// The commands to use: those of the variant that holds others' rules, for packets then pass
/// one packet filter and not two; where none does, what the plain command is.
fn program(iptables: &Iptables) -> Result<&IptablesProgram, (String, String)> {
    if let Some((why, hint)) = iptables.programs.iter().find_map(unreadable) {
        return Err((why, hint));
    }
    let in_use: Vec<_> = iptables
        .programs
        .iter()
        .filter(|program| program.families.values().any(|rules| rules.others))
        .collect();
    match *in_use.as_slice() {
        [] => iptables.programs.first().ok_or_else(|| {
            (
                "there is no `iptables` on this router".to_owned(),
                "install iptables, with `iptables-save` and `iptables-restore`".to_owned(),
            )
        }),
        [program] => Ok(program),
        _ => Err((
            "iptables-legacy and iptables-nft both hold rules on this router, and what one does the other does not see".to_owned(),
            "move the rules of one to the other, as in `iptables-legacy-save | iptables-nft-restore`, flush the old ones, and try again".to_owned(),
        )),
    }
}

/// Why not all of a program's rules are known, and what to do about it.
fn unreadable(program: &IptablesProgram) -> Option<(String, String)> {
    let hint = format!(
        "look with `{}-save`; rules that it cannot show must be made with iptables, or go elsewhere",
        program.command
    );
    program.unreadable.clone().map(|why| (why, hint))
}

/// The changes that take the rules where they are to be, and from everywhere else, and what
/// the user should know.
///
/// # Errors
/// Says why they cannot be there on this router.
pub fn changes(
    policy: &Policy,
    observed: &Observed,
    ledger: &Ledger,
) -> Result<(Vec<Change>, Vec<Finding>), Finding> {
    let mut warnings = Vec::new();
    if let Availability::Unknown(why) = &observed.nftables_availability {
        warnings.push(Finding {
            code: "not-permitted",
            key: None,
            message: format!(
                "the packet rules that are there cannot be seen ({why}): none of ours are assumed"
            ),
            hint: "run it as root to plan from what is there".to_owned(),
        });
    }
    // Where it does not matter for what is wanted, what we cannot see may still hold ours.
    let unseen = observed.iptables.programs.iter().filter_map(unreadable);
    warnings.extend(unseen.map(|(why, hint)| Finding {
        code: "packet-rules-unread",
        key: None,
        message: format!("whether rules of ours are left there is not known: {why}"),
        hint,
    }));
    let (mut table, mut chains) = (None, None);
    if !policy.is_empty() {
        match backend(policy, observed)? {
            Backend::Nftables => table = rules::nftables::table(policy),
            Backend::Iptables(program) => {
                let rendered = render(policy, &observed.iptables)?;
                warnings.extend(rendered.warnings.iter().map(|warning| {
                    Finding {
                        code: "many-rules",
                        key: Some(format!("redirect[{}].server_network", warning.redirect)),
                        message: warning.message.clone(),
                        hint:
                            "install ipset, or set `backend = \"nftables\"` where the kernel has it"
                                .to_owned(),
                    }
                }));
                chains = Some((program.variant, rendered));
            }
        }
    }
    let (variant, rendered) = match chains {
        Some((variant, rendered)) => (Some(variant), rendered),
        None => (None, Rendered::default()),
    };
    // What comes stands before what goes: while both are in force they say the same.
    let mut changes = sets_to_make(&rendered, &observed.iptables);
    let (makes, removals) = chains_to_change(variant, &rendered, &observed.iptables);
    let (frames, bare_frames) = frames(variant, &rendered, &observed.iptables, ledger);
    changes.extend(frames);
    changes.extend(makes);
    changes.extend(nftables(observed.nftables.clone(), table));
    changes.extend(removals);
    changes.extend(bare_frames);
    changes.extend(sets_to_remove(&rendered, &observed.iptables));
    Ok((changes, warnings))
}

fn render(policy: &Policy, iptables: &Iptables) -> Result<Rendered, Finding> {
    let with_sets = !matches!(iptables.ipset, Availability::Missing(_));
    rules::iptables::render(policy, with_sets).map_err(|error| Finding {
        code: "interface-unusable",
        key: Some("options.backend".to_owned()),
        message: error.to_string(),
        hint: "rename the interface, or set `backend = \"nftables\"`".to_owned(),
    })
}

fn nftables(from: Option<nft::Table>, to: Option<nft::Table>) -> Option<Change> {
    (from != to).then_some(Change::Nftables { from, to })
}

/// Chains to make or change, and chains to remove.
fn chains_to_change(
    wanted: Option<Variant>,
    rendered: &Rendered,
    iptables: &Iptables,
) -> (Vec<Change>, Vec<Change>) {
    let (mut makes, mut removals) = (Vec::new(), Vec::new());
    for program in &iptables.programs {
        for (family, found) in &program.families {
            let to = rendered
                .rulesets
                .get(family)
                .filter(|_| wanted == Some(program.variant))
                .cloned()
                .unwrap_or_default();
            if found.ours == to {
                continue;
            }
            let into = if to.is_empty() {
                &mut removals
            } else {
                &mut makes
            };
            into.push(Change::Iptables {
                variant: program.variant,
                command: program.command.clone(),
                family: *family,
                from: found.ours.clone(),
                to,
            });
        }
    }
    (makes, removals)
}

/// What `iptables-nft` needs around our rules, and what it made for them and nobody uses.
fn frames(
    wanted: Option<Variant>,
    rendered: &Rendered,
    iptables: &Iptables,
    ledger: &Ledger,
) -> (Vec<Change>, Vec<Change>) {
    let (mut makes, mut removals) = (Vec::new(), Vec::new());
    let Some(program) = iptables.program(Variant::Nft) else {
        return (makes, removals);
    };
    for (family, found) in &program.families {
        let change = |to| Change::Frame {
            command: program.command.clone(),
            family: *family,
            from: found.frame.clone(),
            to,
        };
        let ruleset = rendered
            .rulesets
            .get(family)
            .filter(|_| wanted == Some(Variant::Nft));
        if let Some(ruleset) = ruleset {
            let hooks = ruleset.hooks.iter().map(|hook| hook.chain.clone());
            let to = found.frame.with(hooks);
            if to != found.frame {
                makes.push(change(to));
            }
        } else if let Some(ours) = ledger.frames.get(family) {
            let mut unused = ours.clone();
            unused.chains.retain(|chain| !found.busy.contains(chain));
            let mut to = found.frame.without(&unused);
            // A table stays that has anything in it.
            to.table =
                found.frame.table && !(ours.table && to.chains.is_empty() && found.busy.is_empty());
            if to != found.frame {
                removals.push(change(to));
            }
        }
    }
    (makes, removals)
}

fn sets_to_make(rendered: &Rendered, iptables: &Iptables) -> Vec<Change> {
    rendered
        .sets
        .iter()
        .filter(|set| iptables.set(&set.name) != Some(set))
        .map(|set| Change::Ipset {
            from: iptables.set(&set.name).cloned(),
            to: Some(set.clone()),
        })
        .collect()
}

fn sets_to_remove(rendered: &Rendered, iptables: &Iptables) -> Vec<Change> {
    iptables
        .sets
        .iter()
        .filter(|set| !rendered.sets.iter().any(|wanted| wanted.name == set.name))
        .map(|set| Change::Ipset {
            from: Some(set.clone()),
            to: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::{Frame, Version};
    use crate::observation::IptablesRules;
    use crate::test_support::policy;

    fn wanting(backend: &str, network: &str) -> Policy {
        policy(&format!(
            "version = 1\n[appliance.scb]\naddress = [\"10.30.0.2\", \"fd00:30::2\"]\ninterface = \"sps0\"\n[[redirect]]\nname = \"rdp\"\nclient_interface = \"eth0\"\nserver_network = \"{network}\"\nport = 3389\nsnat = false\n[options]\nbackend = \"{backend}\"\n"
        ))
    }

    fn program(variant: Variant, command: &str, others: bool) -> IptablesProgram {
        let rules = IptablesRules {
            others,
            ..IptablesRules::default()
        };
        IptablesProgram {
            variant,
            command: command.to_owned(),
            version: Version(1, 8, 9),
            unreadable: None,
            families: [(Family::V4, rules)].into(),
        }
    }

    fn router(policy: &Policy, programs: Vec<IptablesProgram>) -> Observed {
        let mut observed = Observed::clean(policy);
        observed.iptables.programs = programs;
        observed
    }

    #[test]
    fn the_variant_in_use_is_taken_and_two_are_refused() {
        let policy = wanting("iptables", "10.20.0.0/24");
        let legacy = |others| program(Variant::Legacy, "iptables-legacy", others);
        let nft = |others| program(Variant::Nft, "iptables", others);
        for (programs, wanted) in [
            (vec![nft(false), legacy(false)], Ok("iptables")),
            (vec![nft(false), legacy(true)], Ok("iptables-legacy")),
            (vec![nft(true), legacy(false)], Ok("iptables")),
            (vec![nft(true), legacy(true)], Err("both hold rules")),
            (vec![], Err("no `iptables`")),
        ] {
            let observed = router(&policy, programs);
            match (backend(&policy, &observed), wanted) {
                (Ok(Backend::Iptables(found)), Ok(wanted)) => assert_eq!(found.command, wanted),
                (Err(refusal), Err(wanted)) => {
                    assert!(refusal.message.contains(wanted), "{}", refusal.message);
                    assert!(!refusal.hint.is_empty());
                }
                (found, wanted) => panic!("{found:?}, wanted {wanted:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_where_it_matters_and_told_where_not() {
        let unreadable = || {
            let mut unreadable = program(Variant::Nft, "iptables", false);
            unreadable.unreadable = Some("table `mangle` holds rules made with `nft`".to_owned());
            vec![unreadable]
        };
        let policy = wanting("iptables", "10.20.0.0/24");
        let refusal = backend(&policy, &router(&policy, unreadable())).unwrap_err();
        assert!(refusal.message.contains("mangle"), "{refusal:?}");
        let policy = wanting("nftables", "10.20.0.0/24");
        let observed = router(&policy, unreadable());
        let (_, warnings) = changes(&policy, &observed, &Ledger::default()).unwrap();
        assert!(warnings[0].message.contains("not known"), "{warnings:?}");
    }

    #[test]
    fn auto_is_nftables_where_the_kernel_has_it() {
        let policy = wanting("auto", "10.20.0.0/24");
        let programs = vec![program(Variant::Legacy, "iptables", false)];
        let mut observed = router(&policy, programs);
        assert_eq!(backend(&policy, &observed), Ok(Backend::Nftables));
        observed.nftables_availability = Availability::Missing("no module".to_owned());
        assert!(matches!(
            backend(&policy, &observed),
            Ok(Backend::Iptables(_))
        ));
        observed.iptables.programs.clear();
        let refusal = backend(&policy, &observed).unwrap_err();
        assert!(refusal.message.contains("no module"), "{refusal:?}");
    }

    #[test]
    fn ip6tables_is_needed_only_for_ipv6() {
        let programs = || vec![program(Variant::Legacy, "iptables", false)];
        let policy = wanting("iptables", "fd00:20::/64");
        let refusal = backend(&policy, &router(&policy, programs())).unwrap_err();
        assert!(refusal.message.contains("ip6tables-restore"), "{refusal:?}");
        let policy = wanting("iptables", "10.20.0.0/24");
        assert!(backend(&policy, &router(&policy, programs())).is_ok());
    }

    #[test]
    fn what_comes_is_in_force_before_what_goes_is_out() {
        let iptables = wanting("iptables", "10.20.0.0/24");
        let nftables = wanting("nftables", "10.20.0.0/24");
        let mut observed = router(&iptables, vec![program(Variant::Nft, "iptables", false)]);
        let ledger = Ledger::default();
        observed.nftables = rules::nftables::table(&nftables);
        let (changes, _) = changes(&iptables, &observed, &ledger).unwrap();
        assert!(
            matches!(
                changes.as_slice(),
                [
                    Change::Frame { .. },
                    Change::Iptables { .. },
                    Change::Nftables { to: None, .. }
                ]
            ),
            "{changes:?}"
        );
        // And back, with what iptables-nft made for it: known from the ledger alone.
        let ledger = ledger.after(&crate::plan::Plan {
            changes: changes.clone(),
        });
        let rendered = rules::iptables::render(&iptables, true).unwrap();
        let found = observed.iptables.programs[0]
            .families
            .get_mut(&Family::V4)
            .unwrap();
        found.ours = rendered.rulesets[&Family::V4].clone();
        found.frame =
            Frame::default().with(["FORWARD", "INPUT", "PREROUTING", "OUTPUT"].map(str::to_owned));
        observed.nftables = None;
        let (back, _) = super::changes(&nftables, &observed, &ledger).unwrap();
        let [
            Change::Nftables { to: Some(_), .. },
            Change::Iptables { to, .. },
            Change::Frame { to: frame, .. },
        ] = back.as_slice()
        else {
            panic!("{back:?}");
        };
        assert!(to.is_empty());
        // Somebody else's chain holds the table.
        assert_eq!(*frame, Frame::default().with(["OUTPUT".to_owned()]));
        let (unknown, _) = super::changes(&nftables, &observed, &Ledger::default()).unwrap();
        assert_eq!(unknown.len(), 2, "what we did not make stays");
    }
}
