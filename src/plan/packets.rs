//! The packet rules: which packet filter is to hold them, and the changes that take them
//! there, whichever holds them now.

use super::planner::Finding;
use super::{Change, Ledger};
use crate::iptables::Variant;
use crate::net::Family;
use crate::observation::{Availability, Iptables, IptablesProgram, Observed};
use crate::policy::{BackendChoice, Policy};
use crate::rules::iptables::Rendered;
use crate::{nft, rules};

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
                key,
                message: format!("this kernel cannot hold nftables rules: {why}"),
                hint: "a kernel with `CONFIG_NF_TABLES_INET` is needed; `modprobe nf_tables` may load it; or set `backend = \"iptables\"`".to_owned(),
            });
        }
        Availability::Missing(why) => format!(", and its kernel cannot hold nftables rules: {why}"),
    };
    let program = program(&observed.iptables).map_err(|(message, hint)| Finding {
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
    let (mut table, mut chains) = (None, None);
    if !policy.is_empty() {
        match backend(policy, observed)? {
            Backend::Nftables => table = rules::nftables::table(policy),
            Backend::Iptables(program) => {
                let rendered = render(policy, &observed.iptables)?;
                warnings.extend(rendered.warnings.iter().map(|warning| {
                    Finding {
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
