//! Proof, for the next process, that nobody has touched our table since this one left it.
//!
//! To read 100,000 networks back takes the kernel seconds, for it begins each 32 KiB of a dump at
//! the set's first element again (`nft_rbtree_walk`). But an element of ours comes and goes by
//! transactions alone: our sets know no timeouts, and none of our rules adds to a set. And the kernel
//! counts the transactions of a network namespace. So while that count, the generation, is what
//! it was when we left, the elements are what they were.
//!
//! That it is the same count, of the same namespace, the table itself tells: it was made with a
//! birthmark that no other table ever had, which nft neither shows nor saves. All else of
//! the table is read each time, for that is quick.

use std::fmt::Write as _;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Set, Table};

/// Sets with more elements than this are long: they are not read again while it is proven that
/// nobody has touched them.
const LONG: usize = 1_000;

/// What tells a table from every other that ever was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Birthmark(pub(crate) String);

/// What proves that the elements of a table's long sets are as they were left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The table's.
    pub birthmark: Birthmark,
    /// How many transactions its network namespace had seen by then.
    pub generation: u32,
    /// A digest of the elements. Another build of this program may count another; then
    /// they are read.
    elements: String,
}

impl Set {
    /// Whether it is worth a proof.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.elements.len() > LONG
    }
}

impl Proof {
    /// Proof that `table` was left so at this generation; none if no set of it is long.
    #[must_use]
    pub fn of(table: &Table, birthmark: &Birthmark, generation: u32) -> Option<Self> {
        Some(Self {
            birthmark: birthmark.clone(),
            generation,
            elements: digest(table)?,
        })
    }

    /// Whether it is about a table with these elements.
    #[must_use]
    pub fn is_about(&self, table: &Table) -> bool {
        digest(table).is_some_and(|digest| digest == self.elements)
    }
}

/// Of all long sets, if there is one.
fn digest(table: &Table) -> Option<String> {
    let mut long = table.sets.iter().filter(|set| set.is_long()).peekable();
    long.peek()?;
    let mut feed = Feed::default();
    for set in long {
        set.name.hash(&mut feed);
        set.elements.hash(&mut feed);
    }
    let mut digits = String::with_capacity(64);
    for byte in feed.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Some(digits)
}

/// Takes what is hashed to a digest that does not collide.
#[derive(Default)]
struct Feed {
    digest: Sha256,
    /// Numbers come one by one, and are hashed by the block.
    gathered: Vec<u8>,
}

impl Feed {
    /// Enough at a time.
    const MANY: usize = 4096;

    fn pass_on(&mut self) {
        self.digest.update(&self.gathered);
        self.gathered.clear();
    }

    fn finalize(mut self) -> impl IntoIterator<Item = u8> {
        self.pass_on();
        self.digest.finalize()
    }
}

impl Hasher for Feed {
    fn write(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= Self::MANY {
            self.pass_on();
        }
    }

    /// Nobody asks for the short one.
    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Ranges;
    use crate::nft::Elements;

    fn table(count: u32, last: u32) -> Table {
        let ranges = (0..count).map(|at| (at * 4, at * 4 + 1).into());
        let last = std::iter::once((u32::MAX - last, u32::MAX).into());
        Table {
            sets: vec![Set {
                name: "s".to_owned(),
                elements: Elements::V4(Ranges::merged(ranges.chain(last).collect())),
            }],
            ..Table::default()
        }
    }

    #[test]
    fn it_is_about_one_long_table() {
        let mark = Birthmark("mark".to_owned());
        let proof = Proof::of(&table(1_000, 0), &mark, 7).unwrap();
        assert!(proof.is_about(&table(1_000, 0)));
        assert!(!proof.is_about(&table(1_000, 1)));
        assert!(!proof.is_about(&table(1_001, 0)));
        let mut renamed = table(1_000, 0);
        renamed.sets[0].name = "t".to_owned();
        assert!(!proof.is_about(&renamed));
        assert_eq!(Proof::of(&table(999, 0), &mark, 7), None);
        assert_eq!(Proof::of(&Table::default(), &mark, 7), None);
        assert!(!proof.is_about(&Table::default()));
    }
}
