//! Rules of others that no leg has to meet to be a trouble.

use super::super::foreign::System;
use super::super::routing::shared_bits;
use super::super::{Case, Finding, Subject, families};

/// Both kinds of iptables hold rules.
pub(super) fn both_iptables(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let (legacy, nft) = case.surroundings.iptables;
    if legacy == 0 || nft == 0 {
        return;
    }
    findings.push(
        Finding::warning("iptables-both", Subject::Router)
            .found(format!("iptables-legacy holds {legacy} rules and iptables-nft {nft}"))
            .why("both are in force, but either command shows its own alone: what one lets pass, the other may drop or mark")
            .mends(move_legacy(case)),
    );
}

/// Commands that move what iptables-legacy holds to iptables-nft.
fn move_legacy(case: &Case<'_>) -> Vec<String> {
    let mut commands = Vec::new();
    for (family, prefix) in [("ip", "iptables"), ("ip6", "ip6tables")] {
        let tables: std::collections::BTreeSet<&str> = case
            .surroundings
            .rules
            .chains
            .iter()
            .filter(|chain| chain.system == System::IptablesLegacy && chain.table_family == family)
            .map(|chain| chain.table.as_str())
            .collect();
        let holds = case.surroundings.rules.chains.iter().any(|chain| {
            chain.system == System::IptablesLegacy
                && chain.table_family == family
                && !chain.rules.is_empty()
        });
        if !holds {
            continue;
        }
        commands.push(format!(
            "{prefix}-legacy-save | {prefix}-nft-restore --noflush"
        ));
        for table in tables {
            commands.push(format!("{prefix}-legacy -t {table} -F"));
            commands.push(format!("{prefix}-legacy -t {table} -X"));
        }
    }
    commands
}

/// Rules of others that give other packets our mark.
pub(super) fn same_marks(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for (index, family) in families(case.policy) {
        let Some(appliance) = case.policy.appliances.get(index) else {
            continue;
        };
        let foreign = case
            .surroundings
            .rules
            .chains
            .iter()
            .filter(|chain| !chain.is_ours() && chain.sees(family));
        for chain in foreign {
            for rule in &chain.rules {
                if rule.sets(appliance.mark) {
                    findings.push(shared_bits(
                        case,
                        appliance,
                        format!(
                            "rule `{}` of {} sets the mark {}, which is ours",
                            rule.text,
                            chain.title(),
                            appliance.mark
                        ),
                        "packets that no redirect names would be led to the appliance",
                        chain.owner(Some(rule)),
                    ));
                }
            }
        }
    }
}
