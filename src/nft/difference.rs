//! What differs between two tables, object by object, for people.

use std::fmt;

use super::text::Written;
use super::wire::{Pair, changes, pairs};
use super::{Base, Chain, Elements, Rule, Set, Table};

/// How many elements of each kind are shown of a set.
const SAMPLES: usize = 3;

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is not there, and is to be.
    Added,
    /// It is there, and is not to be.
    Removed,
    /// It is there, and is to be otherwise.
    Changed,
}

impl Change {
    fn of<T>(pair: &Pair<'_, T>) -> Self {
        match pair {
            Pair::Left(_) => Self::Removed,
            Pair::Right(_) => Self::Added,
            Pair::Both(..) => Self::Changed,
        }
    }
}

/// A line within an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Added or removed.
    pub is_added: bool,
    /// The rule, or the element, as nft writes it.
    pub text: String,
}

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The table's flags: 1 is dormant.
    Flags {
        /// What they are.
        from: u32,
        /// What they are to be.
        to: u32,
    },
    /// A set or map.
    Set {
        /// How many elements are not there and are to be.
        added: usize,
        /// How many are there and are not to be.
        removed: usize,
    },
    /// A set that is of a make which ours never have, or is to be.
    ForeignSet {
        /// What make.
        description: String,
    },
    /// A chain.
    Chain {
        /// Where it hangs and where it is to hang, if that differs.
        moved: Option<(String, String)>,
    },
    /// Something that ours never have.
    Other,
}

/// One object's difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What happens to it.
    pub change: Change,
    /// What it is.
    pub object: Object,
    /// Its name.
    pub name: String,
    /// All rules that differ, in order; of a set, the first few elements.
    pub lines: Vec<Line>,
}

impl fmt::Display for Difference {
    /// In one line, without the sign and without [`Self::lines`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.object {
            Object::Flags { from, to } => write!(f, "table flags {from:#x} -> {to:#x}"),
            Object::Set { added, removed } => {
                write!(f, "set {name}: ")?;
                match (added, removed) {
                    (0, 0) => f.write_str("empty"),
                    (added, 0) => write!(f, "{added} added"),
                    (0, removed) => write!(f, "{removed} removed"),
                    (added, removed) => write!(f, "{added} added, {removed} removed"),
                }
            }
            Object::ForeignSet { description } => write!(f, "set {name}: not ours ({description})"),
            Object::Chain { moved: None } => write!(f, "chain {name}"),
            Object::Chain {
                moved: Some((from, to)),
            } => write!(f, "chain {name}: {from} -> {to}"),
            Object::Other => f.write_str(name),
        }
    }
}

/// What differs between two tables; nothing if they are equal. Of a table that is wholly new or
/// wholly gone, all that is in it.
#[must_use]
pub fn between(from: Option<&Table>, to: Option<&Table>) -> Vec<Difference> {
    let nothing = Table::default();
    let (from, to) = (from.unwrap_or(&nothing), to.unwrap_or(&nothing));
    let mut all = Vec::new();
    if from.flags != to.flags {
        all.push(Difference {
            change: Change::Changed,
            object: Object::Flags {
                from: from.flags,
                to: to.flags,
            },
            name: String::new(),
            lines: Vec::new(),
        });
    }
    for pair in pairs(&from.sets, &to.sets, |set| &set.name) {
        all.extend(set(&pair));
    }
    for pair in pairs(&from.chains, &to.chains, |chain| &chain.name) {
        all.extend(chain(&pair));
    }
    for pair in pairs(&from.others, &to.others, |name| name) {
        if let Pair::Left(name) | Pair::Right(name) = pair {
            all.push(Difference {
                change: Change::of(&pair),
                object: Object::Other,
                name: name.clone(),
                lines: Vec::new(),
            });
        }
    }
    all
}

fn set(pair: &Pair<'_, Set>) -> Option<Difference> {
    let (name, from, to) = match *pair {
        Pair::Left(from) => (&from.name, Some(&from.elements), None),
        Pair::Right(to) => (&to.name, None, Some(&to.elements)),
        Pair::Both(from, to) if from == to => return None,
        Pair::Both(from, to) => (&from.name, Some(&from.elements), Some(&to.elements)),
    };
    if let (Some(Elements::Foreign(description)), _) | (_, Some(Elements::Foreign(description))) =
        (from, to)
    {
        return Some(Difference {
            change: Change::of(pair),
            object: Object::ForeignSet {
                description: description.clone(),
            },
            name: name.clone(),
            lines: Vec::new(),
        });
    }
    let (added, removed, lines) = match (from, to) {
        (Some(Elements::V4(from)), Some(Elements::V4(to))) => {
            elements(from.as_slice(), to.as_slice())
        }
        (Some(Elements::V6(from)), Some(Elements::V6(to))) => {
            elements(from.as_slice(), to.as_slice())
        }
        (Some(Elements::Ports(from)), Some(Elements::Ports(to))) => {
            elements(from.as_slice(), to.as_slice())
        }
        (Some(Elements::Macs(from)), Some(Elements::Macs(to))) => elements(from, to),
        (Some(Elements::V4Verdicts(from)), Some(Elements::V4Verdicts(to))) => elements(from, to),
        (Some(Elements::V6Verdicts(from)), Some(Elements::V6Verdicts(to))) => elements(from, to),
        (Some(Elements::PortVerdicts(from)), Some(Elements::PortVerdicts(to))) => {
            elements(from, to)
        }
        // One is missing, or they are of two types: all of both.
        (from, to) => {
            let mut lines = Vec::new();
            for (side, is_added) in [(from, false), (to, true)] {
                let mut left = SAMPLES;
                if let Some(side) = side {
                    side.each(|text| {
                        if let Some(fewer) = left.checked_sub(1) {
                            left = fewer;
                            lines.push(Line {
                                is_added,
                                text: text.to_owned(),
                            });
                        }
                    });
                }
            }
            let count = |side: Option<&Elements>| side.map_or(0, Elements::len);
            (count(to), count(from), lines)
        }
    };
    Some(Difference {
        change: Change::of(pair),
        object: Object::Set { added, removed },
        name: name.clone(),
        lines,
    })
}

fn elements<T: Ord + Written>(from: &[T], to: &[T]) -> (usize, usize, Vec<Line>) {
    let (removed, added) = changes(from, to);
    let mut lines = Vec::new();
    for (items, is_added) in [(&removed, false), (&added, true)] {
        lines.extend(items.iter().take(SAMPLES).map(|item| {
            let mut text = String::new();
            item.write(&mut text);
            Line { is_added, text }
        }));
    }
    (added.len(), removed.len(), lines)
}

fn chain(pair: &Pair<'_, Chain>) -> Option<Difference> {
    let (name, moved, lines) = match *pair {
        Pair::Left(from) => (&from.name, None, rules(&from.rules, &[])),
        Pair::Right(to) => (&to.name, None, rules(&[], &to.rules)),
        Pair::Both(from, to) if from == to => return None,
        Pair::Both(from, to) => {
            let moved = (from.base != to.base).then(|| {
                let place = |base: &Option<Base>| {
                    base.as_ref()
                        .map_or_else(|| "no hook".to_owned(), ToString::to_string)
                };
                (place(&from.base), place(&to.base))
            });
            (&from.name, moved, rules(&from.rules, &to.rules))
        }
    };
    Some(Difference {
        change: Change::of(pair),
        object: Object::Chain { moved },
        name: name.clone(),
        lines,
    })
}

impl fmt::Display for Base {
    /// `type filter hook forward priority mangle + 10; policy accept`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = &self.kind;
        let hook = self
            .hook_name()
            .map_or_else(|| self.hook.to_string(), str::to_owned);
        let priority = self
            .relative_priority()
            .unwrap_or_else(|| self.priority.to_string());
        let policy = match self.policy {
            0 => "drop".to_owned(),
            1 => "accept".to_owned(),
            other => other.to_string(),
        };
        write!(
            f,
            "type {kind} hook {hook} priority {priority}; policy {policy}"
        )
    }
}

/// The rules that go and the rules that come, in their places, about the longest part that
/// both lists have in common.
fn rules(from: &[Rule], to: &[Rule]) -> Vec<Line> {
    // common[i][j]: how much from[i..] and to[j..] have in common. A chain has
    // a few rules a redirect.
    let width = to.len() + 1;
    let mut common = vec![0_usize; (from.len() + 1) * width];
    let at = |i: usize, j: usize| i * width + j;
    let get = |common: &[usize], i, j| common.get(at(i, j)).copied().unwrap_or(0);
    for (i, a) in from.iter().enumerate().rev() {
        for (j, b) in to.iter().enumerate().rev() {
            let length = if a == b {
                get(&common, i + 1, j + 1) + 1
            } else {
                get(&common, i + 1, j).max(get(&common, i, j + 1))
            };
            if let Some(slot) = common.get_mut(at(i, j)) {
                *slot = length;
            }
        }
    }
    let mut lines = Vec::new();
    let (mut i, mut j) = (0, 0);
    loop {
        let (old, new) = (from.get(i), to.get(j));
        let (rule, is_added) = match (old, new) {
            (Some(a), Some(b)) if a == b => {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            (Some(a), Some(_)) if get(&common, i + 1, j) >= get(&common, i, j + 1) => (a, false),
            (_, Some(b)) => (b, true),
            (Some(a), None) => (a, false),
            (None, None) => return lines,
        };
        if is_added {
            j += 1;
        } else {
            i += 1;
        }
        lines.push(Line {
            is_added,
            text: rule.to_string(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Range, Ranges};
    use crate::nft::{Expression, Verdict};

    fn rule(chain: &str) -> Rule {
        Rule {
            expressions: vec![Expression::Verdict(Verdict::Goto(chain.to_owned()))],
            comment: None,
        }
    }

    fn table(networks: &[(u32, u32)], targets: &[&str]) -> Table {
        let ranges = networks.iter().map(|&pair| Range::from(pair)).collect();
        Table {
            sets: vec![Set {
                name: "servers4_rdp".to_owned(),
                elements: Elements::V4(Ranges::merged(ranges)),
            }],
            chains: vec![Chain {
                name: "marked".to_owned(),
                base: None,
                rules: targets.iter().map(|target| rule(target)).collect(),
            }],
            ..Table::default()
        }
    }

    fn shown(differences: &[Difference]) -> Vec<String> {
        let mut lines = Vec::new();
        for difference in differences {
            lines.push(difference.to_string());
            lines.extend(difference.lines.iter().map(|line| {
                let sign = if line.is_added { '+' } else { '-' };
                format!("{sign} {}", line.text)
            }));
        }
        lines
    }

    #[test]
    fn only_what_differs_is_shown() {
        let old = table(&[(0x0a00_0000, 0x0a00_00ff), (1, 1)], &["a", "b", "c"]);
        let new = table(&[(0x0a00_0000, 0x0a00_01ff), (1, 1)], &["a", "c", "d"]);
        assert_eq!(
            shown(&between(Some(&old), Some(&new))),
            [
                "set servers4_rdp: 1 added, 1 removed",
                "- 10.0.0.0/24",
                "+ 10.0.0.0/23",
                "chain marked",
                "- goto b",
                "+ goto d",
            ]
        );
        assert!(between(Some(&old), Some(&old)).is_empty());
        assert!(between(None, None).is_empty());
    }

    #[test]
    fn a_new_table_is_all_new_and_a_long_set_is_only_sampled() {
        let many: Vec<_> = (0..1000).map(|n| (n * 4, n * 4)).collect();
        let new = table(&many, &["a"]);
        let differences = between(None, Some(&new));
        assert_eq!(
            shown(&differences),
            [
                "set servers4_rdp: 1000 added",
                "+ 0.0.0.0",
                "+ 0.0.0.4",
                "+ 0.0.0.8",
                "chain marked",
                "+ goto a",
            ]
        );
        assert!(differences.iter().all(|one| one.change == Change::Added));
        let gone = between(Some(&new), None);
        assert!(gone.iter().all(|one| one.change == Change::Removed));
    }

    #[test]
    fn a_moved_chain_says_where_to() {
        let mut old = table(&[], &[]);
        let new = old.clone();
        old.chains[0].base = Some(Base {
            kind: "filter".to_owned(),
            hook: 2,
            priority: -140,
            policy: 1,
        });
        old.flags = 1;
        old.others.push("object `quota`".to_owned());
        assert_eq!(
            shown(&between(Some(&old), Some(&new))),
            [
                "table flags 0x1 -> 0x0",
                "chain marked: type filter hook forward priority mangle + 10; policy accept -> no hook",
                "object `quota`",
            ]
        );
    }
}
