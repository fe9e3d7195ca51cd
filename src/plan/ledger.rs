//! What the router held before us, where undoing needs to know.
//!
//! Everything else of ours is known by its marks of ownership and simply removed; a
//! sysctl has no owner, so its old value must be remembered.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Change, Plan};
use crate::iptables::Frame;
use crate::net::Family;
use crate::observation::Sysctl;

/// Originals of what we changed and did not make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Settings that we wrote.
    pub sysctls: Vec<Kept>,
    /// Directories that we made, in the order in which we made them.
    pub directories: Vec<PathBuf>,
    /// What `iptables-nft` made for our rules, by family.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub frames: BTreeMap<Family, Frame>,
}

/// A setting that we wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which.
    pub sysctl: Sysctl,
    /// What it held before we first wrote it.
    pub original: String,
    /// What we wrote last. Only while it still holds this is it ours to restore.
    pub written: String,
}

impl Ledger {
    /// What `sysctl`, which now holds `observed`, would hold without us: its original
    /// while it holds what we wrote, else what others have since put there.
    #[must_use]
    pub fn without_us<'a>(&'a self, sysctl: &Sysctl, observed: &'a str) -> &'a str {
        self.sysctls
            .iter()
            .find(|kept| kept.sysctl == *sysctl && kept.written == observed)
            .map_or(observed, |kept| kept.original.as_str())
    }

    /// The ledger once `plan` has been performed.
    #[must_use]
    pub fn after(&self, plan: &Plan) -> Self {
        let mut after = self.clone();
        for change in &plan.changes {
            match change {
                Change::Sysctl { sysctl, from, to } => after.wrote(sysctl, from, to),
                // Once is enough, though others may have removed it and we have made it anew.
                Change::Directory { path, to: true, .. } if !after.directories.contains(path) => {
                    after.directories.push(path.clone());
                }
                Change::Directory {
                    path, to: false, ..
                } => {
                    after.directories.retain(|made| made != path);
                }
                Change::Frame {
                    family, from, to, ..
                } => after.framed(*family, from, to),
                _ => {}
            }
        }
        after
    }

    fn framed(&mut self, family: Family, from: &Frame, to: &Frame) {
        let made = to.without(from);
        let mut ours = self.frames.remove(&family).unwrap_or_default();
        ours.table |= made.table;
        ours.chains.extend(made.chains);
        let ours = ours.without(&from.without(to));
        if !ours.is_empty() {
            self.frames.insert(family, ours);
        }
    }

    fn wrote(&mut self, sysctl: &Sysctl, from: &str, to: &str) {
        let original = self.without_us(sysctl, from).to_owned();
        self.sysctls.retain(|kept| kept.sysctl != *sysctl);
        if original != to {
            self.sysctls.push(Kept {
                sysctl: sysctl.clone(),
                original,
                written: to.to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::IfName;
    use crate::observation::Setting;

    fn write(from: &str, to: &str) -> Plan {
        let sysctl = Sysctl::ipv4(&IfName::new("sps0").unwrap(), Setting::RpFilter);
        Plan {
            changes: vec![Change::Sysctl {
                sysctl,
                from: from.into(),
                to: to.into(),
            }],
        }
    }

    #[test]
    fn the_earliest_original_is_kept() {
        let ledger = Ledger::default()
            .after(&write("1", "2"))
            .after(&write("2", "0"));
        assert_eq!(ledger.sysctls.len(), 1);
        assert_eq!(
            (&*ledger.sysctls[0].original, &*ledger.sysctls[0].written),
            ("1", "0")
        );
    }

    #[test]
    fn what_is_back_at_its_original_is_forgotten() {
        assert_eq!(
            Ledger::default()
                .after(&write("1", "2"))
                .after(&write("2", "1")),
            Ledger::default()
        );
    }

    #[test]
    fn what_others_wrote_since_becomes_the_original() {
        let ledger = Ledger::default()
            .after(&write("1", "2"))
            .after(&write("0", "2"));
        assert_eq!(ledger.sysctls[0].original, "0");
    }
}
