//! One transaction that takes the kernel from one table to another.
//!
//! All messages go out between a batch's begin and its end, and take effect in one
//! moment: a packet sees the old rules or the new ones. What both tables have is
//! left alone, so unchanged chains keep their counters, and a changed list of 100,000
//! networks costs what changed.
//!
//! Attributes are written straight into one buffer. `netlink-packet-netfilter` (0.4.0)
//! was left out after reading it: it lacks `ct`, `counter` and `reject`, builds a
//! tree of allocations for each set element, and panics on short answers.
//!
//! The order within a transaction follows what the kernel demands (`net/netfilter/nf_tables_api.c`):
//! a verdict's chain must exist before the verdict; a chain or set must be referred to by
//! nothing when it is deleted; a set's intervals must not overlap after any message.

mod elements;
mod rules;
mod transaction;
mod writer;

use super::abi::{chain, message, rule, set, table};
use super::proof::Birthmark;
use super::{Base, Chain, Elements, Impossible, Table};
pub use elements::Interval;
pub use transaction::Transaction;
use transaction::What;
use writer::Writer;

/// `NLM_F_EXCL`, `NLM_F_CREATE`, `NLM_F_APPEND`, for messages that make something.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// What a transaction says beside what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// With it, the kernel refuses the transaction (`ERESTART`) if anybody has committed since.
    pub generation: Option<u32>,
    /// Of the table, if it is made anew.
    pub birthmark: Option<Birthmark>,
}

/// The transaction that takes the kernel from `from` to `to`; none if they are equal.
///
/// # Errors
/// Names what in `to` cannot be made: things of kinds that ours never have, found in a
/// table once and not to be put back.
pub fn transaction(
    from: Option<&Table>,
    to: Option<&Table>,
    terms: &Terms,
) -> Result<Option<Transaction>, Impossible> {
    if from == to {
        return Ok(None);
    }
    let mut writer = Writer::default();
    writer.begin_batch(terms.generation);
    let mark = terms.birthmark.as_ref();
    match (from, to) {
        (None, None) => return Ok(None),
        (None, Some(to)) => writer.whole(to, mark)?,
        (Some(_), None) => writer.delete_table(),
        (Some(from), Some(to)) if is_gradual(from, to) => writer.gradual(from, to)?,
        (Some(_), Some(to)) => {
            writer.delete_table();
            writer.whole(to, mark)?;
        }
    }
    writer.finish().map(Some)
}

/// Whether the difference can be made piece by piece. What a piece is
/// (a set's type, a chain's hook) the kernel cannot change: then all is replaced.
fn is_gradual(from: &Table, to: &Table) -> bool {
    let sets = pairs(&from.sets, &to.sets, |set| &set.name).all(|pair| match pair {
        Pair::Both(from, to) => {
            from == to
                || (from.elements.is_same_type(&to.elements)
                    && !matches!(from.elements, Elements::Foreign(_)))
        }
        Pair::Left(_) | Pair::Right(_) => true,
    });
    let chains = pairs(&from.chains, &to.chains, |chain| &chain.name)
        .all(|pair| !matches!(pair, Pair::Both(from, to) if from.base != to.base));
    from.flags == to.flags && from.others == to.others && sets && chains
}

impl Elements {
    /// Whether both are of one type, whatever is in them.
    #[must_use]
    pub fn is_same_type(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What two sorted lists have of one key.
#[derive(Debug)]
pub(super) enum Pair<'a, T> {
    Left(&'a T),
    Right(&'a T),
    Both(&'a T, &'a T),
}

/// Walks two lists that are sorted by `key` side by side.
pub(super) fn pairs<'a, T, K: Ord + ?Sized + 'a>(
    left: &'a [T],
    right: &'a [T],
    key: impl Fn(&'a T) -> &'a K,
) -> impl Iterator<Item = Pair<'a, T>> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) => key(a).cmp(key(b)),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return None,
        };
        match order {
            std::cmp::Ordering::Less => left.next().map(Pair::Left),
            std::cmp::Ordering::Greater => right.next().map(Pair::Right),
            std::cmp::Ordering::Equal => Some(Pair::Both(left.next()?, right.next()?)),
        }
    })
}

/// What must be removed from and added to a sorted list to make another.
pub(super) fn changes<'a, T: Ord>(from: &'a [T], to: &'a [T]) -> (Vec<&'a T>, Vec<&'a T>) {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for pair in pairs(from, to, |item| item) {
        match pair {
            Pair::Left(gone) => removed.push(gone),
            Pair::Right(new) => added.push(new),
            Pair::Both(..) => {}
        }
    }
    (removed, added)
}

impl Writer {
    /// Deletes our table and all that is in it. A table deletion without a name would
    /// delete every table there is; [`Self::message`] always gives ours.
    fn delete_table(&mut self) {
        let open = self.message(message::DELETE_TABLE, 0, What::DeleteTable);
        self.end_message(open);
    }

    fn whole(&mut self, to: &Table, mark: Option<&Birthmark>) -> Result<(), Impossible> {
        if let Some(other) = to.others.first() {
            return Err(Impossible {
                object: other.clone(),
                reason: "`redirect` never makes such things, and cannot put it back".to_owned(),
            });
        }
        let open = self.message(message::NEW_TABLE, CREATE | EXCLUSIVE, What::NewTable);
        self.u32(table::FLAGS, to.flags);
        if let Some(Birthmark(mark)) = mark
            && let Ok(length) = u8::try_from(mark.len())
        {
            let note = [&[table::USERDATA_BIRTHMARK, length], mark.as_bytes()].concat();
            self.attribute(table::USERDATA, &note);
        }
        self.end_message(open);
        let nothing = Table {
            flags: to.flags,
            ..Table::default()
        };
        self.gradual(&nothing, to)
    }

    fn gradual(&mut self, from: &Table, to: &Table) -> Result<(), Impossible> {
        for pair in pairs(&from.chains, &to.chains, |chain| &chain.name) {
            if let Pair::Right(new) = pair {
                self.new_chain(new);
            }
        }
        for pair in pairs(&from.chains, &to.chains, |chain| &chain.name) {
            match pair {
                Pair::Both(old, new) if old.rules == new.rules => {}
                Pair::Both(old, _) | Pair::Left(old) if !old.rules.is_empty() => {
                    self.empty_chain(&old.name);
                }
                _ => {}
            }
        }
        // Elements go before chains, for a verdict holds its chain.
        for pair in pairs(&from.sets, &to.sets, |set| &set.name) {
            match pair {
                Pair::Left(old) => self.delete_set(&old.name),
                Pair::Both(old, new) => self.delete_elements(old, new),
                Pair::Right(_) => {}
            }
        }
        for pair in pairs(&from.chains, &to.chains, |chain| &chain.name) {
            if let Pair::Left(old) = pair {
                let open = self.message(
                    message::DELETE_CHAIN,
                    0,
                    What::DeleteChain(old.name.clone()),
                );
                self.string(chain::NAME, &old.name);
                self.end_message(open);
            }
        }
        for pair in pairs(&from.sets, &to.sets, |set| &set.name) {
            match pair {
                Pair::Right(new) => self.new_set(new)?,
                Pair::Both(old, new) => self.add_elements(old, new),
                Pair::Left(_) => {}
            }
        }
        for pair in pairs(&from.chains, &to.chains, |chain| &chain.name) {
            let (Pair::Both(_, new) | Pair::Right(new)) = pair else {
                continue;
            };
            if matches!(pair, Pair::Both(old, new) if old.rules == new.rules) {
                continue;
            }
            for (number, rule) in (1..).zip(&new.rules) {
                self.rule(&new.name, number, rule)?;
            }
        }
        Ok(())
    }

    fn new_chain(&mut self, new: &Chain) {
        let what = What::NewChain(new.name.clone());
        let open = self.message(message::NEW_CHAIN, CREATE | EXCLUSIVE, what);
        self.string(chain::NAME, &new.name);
        if let Some(Base {
            kind,
            hook,
            priority,
            policy,
        }) = &new.base
        {
            self.string(chain::TYPE, kind);
            self.u32(chain::POLICY, *policy);
            let nest = self.nest(chain::HOOK);
            self.u32(chain::HOOK_NUMBER, *hook);
            self.attribute(chain::HOOK_PRIORITY, &priority.to_be_bytes());
            self.close(nest);
        }
        self.end_message(open);
    }

    /// Deletes all rules of a chain: a deletion that names no rule.
    fn empty_chain(&mut self, name: &str) {
        let what = What::EmptyChain(name.to_owned());
        let open = self.message(message::DELETE_RULE, 0, what);
        self.string(rule::CHAIN, name);
        self.end_message(open);
    }

    fn delete_set(&mut self, name: &str) {
        let what = What::DeleteSet(name.to_owned());
        let open = self.message(message::DELETE_SET, 0, what);
        self.string(set::NAME, name);
        self.end_message(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{attributes, messages};
    use crate::net::Ranges;
    use crate::nft::abi::{self, element};
    use crate::nft::{CtKey, Expression, MetaKey, Rule, Set};

    fn with_networks(ranges: &[(u32, u32)]) -> Table {
        Table {
            sets: vec![Set {
                name: "s".to_owned(),
                elements: Elements::V4(Ranges::merged(
                    ranges.iter().map(|&pair| pair.into()).collect(),
                )),
            }],
            chains: vec![Chain {
                name: "c".to_owned(),
                base: None,
                rules: vec![Rule {
                    expressions: vec![
                        Expression::MetaLoad(MetaKey::Mark),
                        Expression::CtSet(CtKey::Mark),
                    ],
                    comment: None,
                }],
            }],
            ..Table::default()
        }
    }

    fn kinds(from: Option<&Table>, to: Option<&Table>) -> Vec<u16> {
        let transaction = transaction(from, to, &Terms::default()).unwrap().unwrap();
        let kinds = messages(transaction.bytes()).map(|message| message.unwrap().kind);
        kinds.collect()
    }

    #[test]
    fn only_what_changed_is_sent() {
        let old = with_networks(&[(1, 1), (5, 9)]);
        let new = with_networks(&[(1, 1), (5, 12)]);
        assert_eq!(
            kinds(Some(&old), Some(&new)),
            [
                abi::BATCH_BEGIN,
                message::DELETE_ELEMENTS,
                message::NEW_ELEMENTS,
                abi::BATCH_END
            ]
        );
        assert_eq!(
            kinds(Some(&old), None),
            [abi::BATCH_BEGIN, message::DELETE_TABLE, abi::BATCH_END]
        );
        assert_eq!(
            transaction(Some(&old), Some(&old), &Terms::default()),
            Ok(None)
        );
        assert_eq!(transaction(None, None, &Terms::default()), Ok(None));
        // A set that is to be of another type: all anew.
        let mut other = old.clone();
        other.sets[0].elements = Elements::Macs(Vec::new());
        assert_eq!(kinds(Some(&old), Some(&other))[1], message::DELETE_TABLE);
    }

    #[test]
    fn a_refusal_is_traced_to_its_part() {
        let table = with_networks(&[(1, 1), (5, 9), (100, 200)]);
        let mut transaction = transaction(None, Some(&table), &Terms::default())
            .unwrap()
            .unwrap();
        transaction.number_from(1000);
        let found = |what: &str| {
            let mut start = 0;
            for message in messages(transaction.bytes()).map(Result::unwrap) {
                let length = 16 + message.payload.len();
                for offset in 0..length {
                    let offset = u32::try_from(offset).unwrap();
                    let words = transaction.describe(message.sequence, Some(offset));
                    if words == what {
                        return;
                    }
                }
                start += length;
            }
            panic!("nothing in {start} bytes is described as {what:?}");
        };
        found("cannot add table `inet scb-redirect`");
        found("cannot add chain `c`");
        found("cannot add set `s`");
        found("cannot add `0.0.0.5` to set `s`");
        found("cannot add `0.0.0.201` to set `s`");
        found("cannot add rule 1 of chain `c`, at its `ct`");
        let last = transaction.describe(transaction.last(), None);
        assert_eq!(last, "cannot add rule 1 of chain `c`");
        assert_eq!(
            transaction.describe(7, None),
            "cannot commit the packet rules"
        );
        assert!(transaction.is_begin(1000));
    }

    #[test]
    fn long_lists_are_cut_into_messages() {
        let many: Vec<_> = (0..100_000).map(|n| (n * 8, n * 8 + 1)).collect();
        let table = with_networks(&many);
        let transaction = transaction(None, Some(&table), &Terms::default())
            .unwrap()
            .unwrap();
        let mut elements = 0;
        for message in messages(transaction.bytes()).map(Result::unwrap) {
            assert!(message.payload.len() < 65_536);
            for attribute in attributes(&message.payload[4..]).map(Result::unwrap) {
                if message.kind == message::NEW_ELEMENTS && attribute.kind == element::LIST_ELEMENTS
                {
                    elements += attribute.nested().map(Result::unwrap).count();
                }
            }
        }
        assert_eq!(elements, 200_000);
    }

    #[test]
    fn what_cannot_be_made_is_said_before_anything_is_sent() {
        let mut table = with_networks(&[]);
        table.sets[0].elements = Elements::Foreign("of another type".to_owned());
        let error = transaction(None, Some(&table), &Terms::default()).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot make set `s`"),
            "{error}"
        );
        let mut table = with_networks(&[]);
        table.others.push("object `quota`".to_owned());
        assert!(transaction(None, Some(&table), &Terms::default()).is_err());
        let mut table = with_networks(&[]);
        table.chains[0].rules[0].comment = Some("x".repeat(128));
        assert!(transaction(None, Some(&table), &Terms::default()).is_err());
        table.chains[0].rules[0].comment = Some("x".repeat(127));
        assert!(transaction(None, Some(&table), &Terms::default()).is_ok());
        table.chains[0].rules[0].expressions = vec![Expression::InlineVerdictMap {
            elements: Vec::new(),
            key_type: 19,
        }];
        assert!(transaction(None, Some(&table), &Terms::default()).is_err());
    }
}
