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

use super::abi::{self, chain, element, expression as x, message, rule, set, table};
use super::{
    Base, Chain, CtKey, Elements, Expression, MetaKey, PayloadBase, Rule, Set, TABLE, Table,
    Verdict, text,
};
use crate::kernel::netlink::attributes;
use crate::net::{MacAddr, Range, Step};

/// `NLM_F_REQUEST`, `NLM_F_ACK`.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
/// `NLM_F_EXCL`, `NLM_F_CREATE`, `NLM_F_APPEND`, for messages that make something.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// Length of `struct nlmsghdr` with `struct nfgenmsg`.
const PREAMBLE: usize = 20;
/// A list of elements is one attribute, whose length is a `u16`.
const LIST_LIMIT: usize = 60_000;
/// Longest comment that nft takes and shows (`NFTNL_UDATA_COMMENT_MAXLEN` less its NUL).
const COMMENT_LIMIT: usize = 127;

/// A table that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot make {object}: {reason}")]
pub struct Impossible {
    /// What.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// Messages that take effect together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    bytes: Vec<u8>,
    steps: Vec<Part>,
    first: u32,
    end: usize,
}

/// One message of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    start: usize,
    what: What,
}

/// What a message does, for when it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Begin,
    End,
    NewTable,
    DeleteTable,
    NewChain(String),
    EmptyChain(String),
    DeleteChain(String),
    NewSet(String),
    DeleteSet(String),
    EmptySet(String),
    AddElements(String, Key),
    DeleteElements(String, Key),
    /// A rule's chain and its number, from 1.
    Rule(String, usize),
    /// A part of that rule: its inline map.
    InlineMap(String, usize),
}

/// How an element's key reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    V4,
    V6,
    Port,
    Mac,
    Other,
}

impl Transaction {
    /// What to send, batch end and all.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same without the end: the kernel checks every message, and then applies nothing.
    #[must_use]
    pub fn without_end(&self) -> &[u8] {
        self.bytes.get(..self.end).unwrap_or_default()
    }

    /// How many sequence numbers it needs.
    #[must_use]
    pub fn length(&self) -> u32 {
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }

    /// Numbers the messages from `first` on.
    pub fn number_from(&mut self, first: u32) {
        self.first = first;
        for (number, step) in (first..).zip(&self.steps) {
            if let Some(field) = self.bytes.get_mut(step.start + 8..step.start + 12) {
                field.copy_from_slice(&number.to_ne_bytes());
            }
        }
    }

    /// The sequence number of the last message before the end. It asks for an
    /// acknowledgement, which comes only if all has been applied.
    #[must_use]
    pub fn last(&self) -> u32 {
        // First and last are begin and end.
        self.first.saturating_add(self.length().saturating_sub(2))
    }

    /// Whether a refusal with this sequence number concerns the batch as such.
    #[must_use]
    pub fn is_begin(&self, sequence: u32) -> bool {
        sequence == self.first
    }

    /// What was tried in message number `sequence`, and, where `offset` points into it, with
    /// which part: "cannot add rule 3 of chain `x`, at its `ct`".
    #[must_use]
    pub fn describe(&self, sequence: u32, offset: Option<u32>) -> String {
        let step = sequence
            .checked_sub(self.first)
            .and_then(|at| self.steps.get(usize::try_from(at).ok()?));
        let Some(step) = step else {
            return format!("cannot commit {}", What::Begin.object());
        };
        let part = offset.and_then(|offset| self.part(step, usize::try_from(offset).ok()?));
        let object = step.what.object();
        let action = match (&step.what, part) {
            (What::Begin | What::End, _) => "commit".to_owned(),
            (What::EmptyChain(_) | What::EmptySet(_), _) => "empty".to_owned(),
            (What::DeleteTable | What::DeleteChain(_) | What::DeleteSet(_), _) => {
                "delete".to_owned()
            }
            (What::AddElements(..), Some(element)) => format!("add {element} to"),
            (What::AddElements(..), None) => "add elements to".to_owned(),
            (What::DeleteElements(..), Some(element)) => format!("delete {element} from"),
            (What::DeleteElements(..), None) => "delete elements from".to_owned(),
            (What::Rule(..), Some(part)) => return format!("cannot add {object}, at its `{part}`"),
            _ => "add".to_owned(),
        };
        format!("cannot {action} {object}")
    }

    /// The element or expression at `offset` of a message.
    fn part(&self, step: &Part, offset: usize) -> Option<String> {
        let message = self.bytes.get(step.start..)?;
        let length = usize::try_from(u32::from_ne_bytes(*message.first_chunk()?)).ok()?;
        let message = message.get(..length)?;
        let (list, key) = match &step.what {
            What::AddElements(_, key) | What::DeleteElements(_, key) => {
                (element::LIST_ELEMENTS, Some(*key))
            }
            What::Rule(..) => (rule::EXPRESSIONS, None),
            _ => return None,
        };
        let position =
            |inner: &[u8]| (inner.as_ptr() as usize).checked_sub(message.as_ptr() as usize);
        let list = attributes(message.get(PREAMBLE..)?)
            .flatten()
            .find(|attribute| attribute.kind == list)?;
        // The offset is that of an item's header, or of something within the item.
        let item = list
            .nested()
            .flatten()
            .take_while(|item| position(item.value).is_some_and(|at| at <= offset + 4))
            .last()?;
        match key {
            Some(key) => item
                .nested()
                .flatten()
                .find(|inner| inner.kind == element::KEY)?
                .nested()
                .flatten()
                .find(|inner| inner.kind == element::DATA_VALUE)
                .map(|value| key.text(value.value)),
            None => item
                .nested()
                .flatten()
                .find(|inner| inner.kind == x::NAME)
                .map(|name| name.text()),
        }
    }
}

impl What {
    /// What a message is about.
    fn object(&self) -> String {
        match self {
            Self::Begin | Self::End => "the packet rules".to_owned(),
            Self::NewTable | Self::DeleteTable => format!("table `inet {TABLE}`"),
            Self::NewChain(name) | Self::EmptyChain(name) | Self::DeleteChain(name) => {
                format!("chain `{name}`")
            }
            Self::NewSet(name)
            | Self::DeleteSet(name)
            | Self::EmptySet(name)
            | Self::AddElements(name, _)
            | Self::DeleteElements(name, _) => format!("set `{name}`"),
            Self::Rule(chain, number) => format!("rule {number} of chain `{chain}`"),
            Self::InlineMap(chain, number) => {
                format!("the map in rule {number} of chain `{chain}`")
            }
        }
    }
}

impl Key {
    fn text(self, bytes: &[u8]) -> String {
        match self {
            Self::V4 => u32::from_key(bytes).map(text::v4),
            Self::V6 => u128::from_key(bytes).map(text::v6),
            Self::Port => u16::from_key(bytes).map(|port| port.to_string()),
            Self::Mac => bytes.try_into().ok().map(|mac| MacAddr(mac).to_string()),
            Self::Other => None,
        }
        .map_or_else(|| "an element".to_owned(), |text| format!("`{text}`"))
    }
}

/// A number that is the key of an interval set.
pub trait Interval: Step {
    /// nft's type number.
    const TYPE: u32;
    /// In bytes.
    const LENGTH: usize;
    /// Calls `use_` with the key as the kernel compares it: big-endian.
    fn with_key<T>(self, use_: impl FnOnce(&[u8]) -> T) -> T;
    /// The reverse.
    fn from_key(bytes: &[u8]) -> Option<Self>;
    /// The greatest.
    const LAST: Self;
    /// The smallest.
    const ZERO: Self;
}

macro_rules! interval {
    ($($number:ty, $type:expr;)*) => {$(
        impl Interval for $number {
            const TYPE: u32 = $type;
            const LENGTH: usize = size_of::<$number>();
            fn with_key<T>(self, use_: impl FnOnce(&[u8]) -> T) -> T { use_(&self.to_be_bytes()) }
            fn from_key(bytes: &[u8]) -> Option<Self> { bytes.try_into().ok().map(Self::from_be_bytes) }
            const LAST: Self = <$number>::MAX;
            const ZERO: Self = 0;
        }
    )*};
}
interval! {
    u16, set::TYPE_SERVICE;
    u32, set::TYPE_IPV4;
    u128, set::TYPE_IPV6;
}

/// The transaction that takes the kernel from `from` to `to`; none if they are equal.
/// With `generation`, the kernel refuses it (`ERESTART`) if anybody has committed since.
///
/// # Errors
/// Names what in `to` cannot be made: things of kinds that ours never have, found in a
/// table once and not to be put back.
pub fn transaction(
    from: Option<&Table>,
    to: Option<&Table>,
    generation: Option<u32>,
) -> Result<Option<Transaction>, Impossible> {
    if from == to {
        return Ok(None);
    }
    let mut writer = Writer::default();
    writer.begin_batch(generation);
    match (from, to) {
        (None, None) => return Ok(None),
        (None, Some(to)) => writer.whole(to)?,
        (Some(_), None) => writer.delete_table(),
        (Some(from), Some(to)) if is_gradual(from, to) => writer.gradual(from, to)?,
        (Some(_), Some(to)) => {
            writer.delete_table();
            writer.whole(to)?;
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

/// Puts a transaction together.
#[derive(Debug, Default)]
struct Writer {
    bytes: Vec<u8>,
    steps: Vec<Part>,
    /// The set ids of nft count up from 1 in a transaction.
    sets: u32,
    trouble: Option<Impossible>,
}

/// Where a message or an attribute began, to fill in its length.
#[derive(Debug, Clone, Copy)]
#[must_use]
struct Open(usize);

impl Writer {
    fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn string(&mut self, kind: u16, value: &str) {
        let open = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(open);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let open = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(open);
    }

    fn open(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        let [low, high] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[0, 0, low, high]);
        open
    }

    fn nest(&mut self, kind: u16) -> Open {
        self.open(kind | NESTED)
    }

    fn close(&mut self, open: Open) {
        let length = self.bytes.len() - open.0;
        if let Ok(length) = u16::try_from(length) {
            if let Some(field) = self.bytes.get_mut(open.0..open.0 + 2) {
                field.copy_from_slice(&length.to_ne_bytes());
            }
        } else {
            let object = self
                .steps
                .last()
                .map_or_else(String::new, |step| step.what.object());
            self.trouble.get_or_insert(Impossible {
                object,
                reason: format!("{length} bytes are more than one attribute can hold"),
            });
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Begins a message about our table.
    fn message(&mut self, kind: u16, flags: u16, what: What) -> Open {
        let open = self.header(kind, flags, abi::FAMILY_INET, 0, what);
        // The table's name is attribute 1 of every message.
        self.string(table::NAME, TABLE);
        open
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16, what: What) -> Open {
        let start = self.bytes.len();
        self.steps.push(Part { start, what });
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        Open(start)
    }

    fn end_message(&mut self, open: Open) {
        // A message is far below 4 GiB: its only long attribute is below 64 KiB.
        let length = u32::try_from(self.bytes.len() - open.0).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.get_mut(open.0..open.0 + 4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn begin_batch(&mut self, generation: Option<u32>) {
        let open = self.header(abi::BATCH_BEGIN, 0, 0, abi::SUBSYSTEM, What::Begin);
        if let Some(generation) = generation {
            self.u32(abi::BATCH_GENERATION, generation);
        }
        self.end_message(open);
    }

    fn finish(mut self) -> Result<Transaction, Impossible> {
        if let Some(trouble) = self.trouble {
            return Err(trouble);
        }
        if let Some(step) = self.steps.last()
            && let Some(field) = self.bytes.get_mut(step.start + 6..step.start + 8)
            && let [low, high] = *field
        {
            let flags = u16::from_ne_bytes([low, high]) | ACKNOWLEDGE;
            field.copy_from_slice(&flags.to_ne_bytes());
        }
        let end = self.bytes.len();
        let open = self.header(abi::BATCH_END, 0, 0, abi::SUBSYSTEM, What::End);
        self.end_message(open);
        let mut transaction = Transaction {
            bytes: self.bytes,
            steps: self.steps,
            first: 0,
            end,
        };
        transaction.number_from(1);
        Ok(transaction)
    }

    /// Deletes our table and all that is in it. A table deletion without a name would
    /// delete every table there is; [`Self::message`] always gives ours.
    fn delete_table(&mut self) {
        let open = self.message(message::DELETE_TABLE, 0, What::DeleteTable);
        self.end_message(open);
    }

    fn whole(&mut self, to: &Table) -> Result<(), Impossible> {
        if let Some(other) = to.others.first() {
            return Err(Impossible {
                object: other.clone(),
                reason: "`redirect` never makes such things, and cannot put it back".to_owned(),
            });
        }
        let open = self.message(message::NEW_TABLE, CREATE | EXCLUSIVE, What::NewTable);
        self.u32(table::FLAGS, to.flags);
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

    fn new_set(&mut self, new: &Set) -> Result<(), Impossible> {
        let (key, length, interval, map) = match &new.elements {
            Elements::V4(_) => (u32::TYPE, u32::LENGTH, true, false),
            Elements::V6(_) => (u128::TYPE, u128::LENGTH, true, false),
            Elements::Ports(_) => (u16::TYPE, u16::LENGTH, true, false),
            Elements::Macs(_) => (set::TYPE_ETHER, 6, false, false),
            Elements::V4Verdicts(_) => (u32::TYPE, u32::LENGTH, true, true),
            Elements::V6Verdicts(_) => (u128::TYPE, u128::LENGTH, true, true),
            Elements::PortVerdicts(_) => (u16::TYPE, u16::LENGTH, true, true),
            Elements::Foreign(description) => {
                return Err(Impossible {
                    object: format!("set `{}` ({description})", new.name),
                    reason: "`redirect` never makes such sets, and cannot put it back".to_owned(),
                });
            }
        };
        let flags =
            if interval { set::FLAG_INTERVAL } else { 0 } | if map { set::FLAG_MAP } else { 0 };
        let what = What::NewSet(new.name.clone());
        self.set_header(&new.name, flags, (key, length), None, what);
        let name = &new.name;
        match &new.elements {
            Elements::V4(ranges) => self.ranges(name, Key::V4, Fill::New, ranges),
            Elements::V6(ranges) => self.ranges(name, Key::V6, Fill::New, ranges),
            Elements::Ports(ranges) => self.ranges(name, Key::Port, Fill::New, ranges),
            Elements::V4Verdicts(list) => self.ranges(name, Key::V4, Fill::New, list),
            Elements::V6Verdicts(list) => self.ranges(name, Key::V6, Fill::New, list),
            Elements::PortVerdicts(list) => self.ranges(name, Key::Port, Fill::New, list),
            Elements::Macs(macs) => self.macs(name, Fill::New, macs.iter()),
            Elements::Foreign(_) => {}
        }
        Ok(())
    }

    /// A set's own message. `size` is given for what is inline in a rule, as nft does.
    fn set_header(
        &mut self,
        name: &str,
        flags: u32,
        (key, length): (u32, usize),
        size: Option<usize>,
        what: What,
    ) {
        self.sets += 1;
        let open = self.message(message::NEW_SET, CREATE | EXCLUSIVE, what);
        self.string(set::NAME, name);
        self.u32(set::FLAGS, flags);
        self.u32(set::KEY_TYPE, key);
        self.u32(set::KEY_LENGTH, u32::try_from(length).unwrap_or(u32::MAX));
        let is_map = flags & set::FLAG_MAP != 0;
        if is_map {
            self.u32(set::DATA_TYPE, set::DATA_VERDICT);
            self.u32(set::DATA_LENGTH, 0);
        }
        self.u32(set::ID, self.sets);
        if let Some(size) = size {
            let nest = self.nest(set::DESCRIPTION);
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            self.u32(set::DESCRIPTION_SIZE, size);
            self.close(nest);
        }
        self.set_userdata(key, is_map, size.is_some());
        self.end_message(open);
    }

    /// What nft 1.0.6 keeps with a set so as to list it again: the byte order of its keys
    /// (1 host, 2 network; `NFTNL_UDATA_SET_KEYBYTEORDER` 0), that of its data (1), for a
    /// map inline in a rule the type of its data (4: a verdict), and that data are no
    /// intervals (6). Each is type, length, value, numbers in host byte order.
    fn set_userdata(&mut self, key: u32, is_map: bool, is_inline: bool) {
        let host = matches!(key, set::TYPE_MARK | set::TYPE_IFNAME);
        let open = self.open(set::USERDATA);
        let order: u32 = if host { 1 } else { 2 };
        self.bytes.extend_from_slice(&[0, 4]);
        self.bytes.extend_from_slice(&order.to_ne_bytes());
        if is_map {
            self.bytes.extend_from_slice(&[1, 4, 0, 0, 0, 0]);
            if is_inline {
                self.bytes.extend_from_slice(&[4, 8, 0, 4]);
                self.bytes.extend_from_slice(&1_u32.to_ne_bytes());
                self.bytes.extend_from_slice(&[1, 0]);
            }
            self.bytes.extend_from_slice(&[6, 4, 0, 0, 0, 0]);
        }
        self.close(open);
    }

    fn delete_elements(&mut self, old: &Set, new: &Set) {
        let name = &old.name;
        match (&old.elements, &new.elements) {
            (Elements::V4(from), Elements::V4(to)) => {
                self.delete_ranges(name, Key::V4, from.as_slice(), to.as_slice());
            }
            (Elements::V6(from), Elements::V6(to)) => {
                self.delete_ranges(name, Key::V6, from.as_slice(), to.as_slice());
            }
            (Elements::Ports(from), Elements::Ports(to)) => {
                self.delete_ranges(name, Key::Port, from.as_slice(), to.as_slice());
            }
            (Elements::V4Verdicts(from), Elements::V4Verdicts(to)) => {
                self.delete_ranges(name, Key::V4, from, to);
            }
            (Elements::V6Verdicts(from), Elements::V6Verdicts(to)) => {
                self.delete_ranges(name, Key::V6, from, to);
            }
            (Elements::PortVerdicts(from), Elements::PortVerdicts(to)) => {
                self.delete_ranges(name, Key::Port, from, to);
            }
            (Elements::Macs(from), Elements::Macs(to)) => {
                let (removed, _) = changes(from, to);
                self.macs(name, Fill::Delete, removed);
            }
            // Of different types they are never met here, nor foreign ones that differ.
            _ => {}
        }
    }

    fn delete_ranges<E: Entry + Ord>(&mut self, name: &str, key: Key, from: &[E], to: &[E]) {
        let (removed, _) = changes(from, to);
        if removed.len() == from.len() && !from.is_empty() {
            // All of them: one message that names no element empties the set.
            let what = What::EmptySet(name.to_owned());
            let open = self.message(message::DELETE_ELEMENTS, 0, what);
            self.string(element::LIST_SET, name);
            self.end_message(open);
        } else {
            self.ranges(name, key, Fill::Delete, removed);
        }
    }

    fn add_elements(&mut self, old: &Set, new: &Set) {
        let name = &new.name;
        let add = Fill::Add;
        match (&old.elements, &new.elements) {
            (Elements::V4(from), Elements::V4(to)) => {
                let (_, added) = changes(from.as_slice(), to.as_slice());
                self.ranges(name, Key::V4, add, added);
            }
            (Elements::V6(from), Elements::V6(to)) => {
                let (_, added) = changes(from.as_slice(), to.as_slice());
                self.ranges(name, Key::V6, add, added);
            }
            (Elements::Ports(from), Elements::Ports(to)) => {
                let (_, added) = changes(from.as_slice(), to.as_slice());
                self.ranges(name, Key::Port, add, added);
            }
            (Elements::V4Verdicts(from), Elements::V4Verdicts(to)) => {
                let (_, added) = changes(from, to);
                self.ranges(name, Key::V4, add, added);
            }
            (Elements::V6Verdicts(from), Elements::V6Verdicts(to)) => {
                let (_, added) = changes(from, to);
                self.ranges(name, Key::V6, add, added);
            }
            (Elements::PortVerdicts(from), Elements::PortVerdicts(to)) => {
                let (_, added) = changes(from, to);
                self.ranges(name, Key::Port, add, added);
            }
            (Elements::Macs(from), Elements::Macs(to)) => {
                let (_, added) = changes(from, to);
                self.macs(name, add, added);
            }
            _ => {}
        }
    }

    /// Writes intervals, ascending, as pairs of elements: where each begins and, marked as
    /// its end, the first number after it. One that reaches the greatest number has no end.
    /// A new set that does not begin at 0 gets an end there, as nft does it.
    fn ranges<'e, E: Entry + 'e>(
        &mut self,
        name: &str,
        key: Key,
        fill: Fill,
        entries: impl IntoIterator<Item = &'e E>,
    ) {
        let entries = entries.into_iter();
        let mut list = List::new(name, key, fill, self.sets);
        let begin = Template::new::<E::Number>(false);
        let end = Template::new::<E::Number>(true);
        self.bytes
            .reserve(entries.size_hint().0 * (begin.length() + end.length()));
        let mut is_first = true;
        for entry in entries {
            let (range, verdict) = entry.parts();
            list.make_room(self, verdict);
            if is_first && fill == Fill::New && range.first != E::Number::ZERO {
                end.put(E::Number::ZERO, &mut self.bytes);
            }
            is_first = false;
            let next = range.last.next();
            // A verdict is of no use in a deletion, and older kernels refuse one.
            let verdict = verdict.filter(|_| fill != Fill::Delete);
            let open_ended = next.is_none() && fill != Fill::Delete;
            if verdict.is_none() && !open_ended {
                begin.put(range.first, &mut self.bytes);
            } else {
                range
                    .first
                    .with_key(|key| self.element(key, false, verdict, open_ended));
            }
            if let Some(next) = next {
                end.put(next, &mut self.bytes);
            }
        }
        list.finish(self);
    }

    fn macs<'m>(&mut self, name: &str, fill: Fill, macs: impl IntoIterator<Item = &'m MacAddr>) {
        let mut list = List::new(name, Key::Mac, fill, self.sets);
        for mac in macs {
            list.make_room(self, None);
            self.element(&mac.0, false, None, false);
        }
        list.finish(self);
    }

    fn element(&mut self, key: &[u8], is_end: bool, verdict: Option<&Verdict>, open_ended: bool) {
        let item = self.nest(element::LIST_ELEMENT);
        if is_end {
            self.u32(element::FLAGS, element::FLAG_INTERVAL_END);
        }
        let nest = self.nest(element::KEY);
        self.attribute(element::DATA_VALUE, key);
        self.close(nest);
        if let Some(verdict) = verdict {
            self.verdict(element::DATA, verdict);
        }
        if open_ended {
            // nft's own note (`NFTNL_UDATA_SET_ELEM_FLAGS` 1): there is no end because there is
            // no number after it.
            let open = self.open(element::USERDATA);
            self.bytes.extend_from_slice(&[1, 4]);
            self.bytes.extend_from_slice(&1_u32.to_ne_bytes());
            self.close(open);
        }
        self.close(item);
    }

    fn verdict(&mut self, kind: u16, verdict: &Verdict) {
        let (code, chain) = match verdict {
            Verdict::Accept => (abi::verdict::ACCEPT, None),
            Verdict::Drop => (abi::verdict::DROP, None),
            Verdict::Return => (abi::verdict::RETURN, None),
            Verdict::Jump(chain) => (abi::verdict::JUMP, Some(chain)),
            Verdict::Goto(chain) => (abi::verdict::GOTO, Some(chain)),
        };
        let data = self.nest(kind);
        let nest = self.nest(element::DATA_VERDICT);
        self.u32(element::VERDICT_CODE, code);
        if let Some(chain) = chain {
            self.string(element::VERDICT_CHAIN, chain);
        }
        self.close(nest);
        self.close(data);
    }

    fn rule(&mut self, chain: &str, number: usize, new: &Rule) -> Result<(), Impossible> {
        if new.expressions.iter().any(Expression::needs_inline_set) {
            return Err(Impossible {
                object: format!("rule {number} of chain `{chain}` (`{new}`)"),
                reason: "it had a set inline that `redirect` does not know how to make".to_owned(),
            });
        }
        let maps = self.inline_maps(chain, number, new)?;
        let what = What::Rule(chain.to_owned(), number);
        let open = self.message(message::NEW_RULE, CREATE | APPEND, what);
        self.string(rule::CHAIN, chain);
        let list = self.nest(rule::EXPRESSIONS);
        let mut maps = maps.into_iter();
        for expression in &new.expressions {
            let item = self.nest(element::LIST_ELEMENT);
            self.expression(expression, &mut maps);
            self.close(item);
        }
        self.close(list);
        if let Some(comment) = &new.comment {
            self.comment(chain, number, comment);
        }
        self.end_message(open);
        Ok(())
    }

    fn comment(&mut self, chain: &str, number: usize, comment: &str) {
        // The length of the note is one byte; the kernel lets 256 bytes of notes pass.
        let Some(length) = u8::try_from(comment.len() + 1)
            .ok()
            .filter(|_| comment.len() <= COMMENT_LIMIT && !comment.contains('\0'))
        else {
            self.trouble.get_or_insert(Impossible {
                object: format!("rule {number} of chain `{chain}`"),
                reason: format!("its comment is longer than {COMMENT_LIMIT} bytes"),
            });
            return;
        };
        let open = self.open(rule::USERDATA);
        self.bytes
            .extend_from_slice(&[rule::USERDATA_COMMENT, length]);
        self.bytes.extend_from_slice(comment.as_bytes());
        self.bytes.push(0);
        self.close(open);
    }

    /// The small maps of a rule, which must exist before it; their ids.
    fn inline_maps(
        &mut self,
        chain: &str,
        number: usize,
        rule: &Rule,
    ) -> Result<Vec<u32>, Impossible> {
        let mut ids = Vec::new();
        for expression in &rule.expressions {
            let Expression::InlineVerdictMap { elements, key_type } = expression else {
                continue;
            };
            let length = elements.first().map_or(0, |(key, _)| key.len());
            if length == 0 || elements.iter().any(|(key, _)| key.len() != length) {
                return Err(Impossible {
                    object: format!("the map in rule {number} of chain `{chain}`"),
                    reason: "its keys are not all of one length".to_owned(),
                });
            }
            let what = What::InlineMap(chain.to_owned(), number);
            let flags = set::FLAG_ANONYMOUS | set::FLAG_CONSTANT | set::FLAG_MAP;
            let key = (*key_type, length);
            self.set_header(INLINE_MAP, flags, key, Some(elements.len()), what);
            let mut list = List::new(INLINE_MAP, Key::Other, Fill::New, self.sets);
            for (key, verdict) in elements {
                list.make_room(self, Some(verdict));
                self.element(key, false, Some(verdict), false);
            }
            list.finish(self);
            ids.push(self.sets);
        }
        Ok(ids)
    }

    fn expression(&mut self, expression: &Expression, maps: &mut impl Iterator<Item = u32>) {
        self.string(x::NAME, expression.name());
        let data = self.nest(x::DATA);
        match expression {
            Expression::MetaLoad(key) => {
                self.u32(x::META_KEY, key.number());
                self.u32(x::META_DESTINATION, x::REGISTER_1);
            }
            Expression::MetaSet(key) => {
                self.u32(x::META_KEY, key.number());
                self.u32(x::META_SOURCE, x::REGISTER_1);
            }
            Expression::CtLoad(key) => {
                self.u32(x::CT_KEY, key.number());
                self.u32(x::CT_DESTINATION, x::REGISTER_1);
            }
            Expression::CtSet(key) => {
                self.u32(x::CT_KEY, key.number());
                self.u32(x::CT_SOURCE, x::REGISTER_1);
            }
            Expression::Payload {
                base,
                offset,
                length,
            } => {
                self.u32(x::PAYLOAD_DESTINATION, x::REGISTER_1);
                self.u32(x::PAYLOAD_BASE, base.number());
                self.u32(x::PAYLOAD_OFFSET, *offset);
                self.u32(x::PAYLOAD_LENGTH, *length);
            }
            Expression::Bitwise { mask, xor } => {
                self.u32(x::BITWISE_SOURCE, x::REGISTER_1);
                self.u32(x::BITWISE_DESTINATION, x::REGISTER_1);
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                self.u32(x::BITWISE_LENGTH, length);
                self.value(x::BITWISE_MASK, mask);
                self.value(x::BITWISE_XOR, xor);
            }
            Expression::Compare { equal, bytes } => {
                self.u32(x::COMPARE_SOURCE, x::REGISTER_1);
                let operation = if *equal {
                    x::COMPARE_EQUAL
                } else {
                    x::COMPARE_NOT_EQUAL
                };
                self.u32(x::COMPARE_OPERATION, operation);
                self.value(x::COMPARE_DATA, bytes);
            }
            Expression::Lookup { set, invert } => {
                self.string(x::LOOKUP_SET, set);
                self.u32(x::LOOKUP_SOURCE, x::REGISTER_1);
                if *invert {
                    self.u32(x::LOOKUP_FLAGS, x::LOOKUP_INVERT);
                }
            }
            Expression::VerdictMap { map } => {
                self.string(x::LOOKUP_SET, map);
                self.u32(x::LOOKUP_SOURCE, x::REGISTER_1);
                self.u32(x::LOOKUP_DESTINATION, x::REGISTER_VERDICT);
            }
            Expression::InlineVerdictMap { .. } => {
                self.string(x::LOOKUP_SET, INLINE_MAP);
                self.u32(x::LOOKUP_SOURCE, x::REGISTER_1);
                self.u32(x::LOOKUP_DESTINATION, x::REGISTER_VERDICT);
                if let Some(id) = maps.next() {
                    self.u32(x::LOOKUP_SET_ID, id);
                }
            }
            Expression::Counter => {}
            Expression::RejectProhibited => {
                self.u32(x::REJECT_TYPE, x::REJECT_ICMPX);
                self.attribute(x::REJECT_CODE, &[x::REJECT_PROHIBITED]);
            }
            Expression::Verdict(verdict) => {
                self.u32(x::IMMEDIATE_DESTINATION, x::REGISTER_VERDICT);
                self.verdict(x::IMMEDIATE_DATA, verdict);
            }
            Expression::Foreign { data, .. } => self.bytes.extend_from_slice(data),
        }
        self.close(data);
    }

    fn value(&mut self, kind: u16, bytes: &[u8]) {
        let nest = self.nest(kind);
        self.attribute(element::DATA_VALUE, bytes);
        self.close(nest);
    }
}

/// What the kernel makes the names of inline maps from.
const INLINE_MAP: &str = "__map%d";

/// What is done with elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Added to the set that was just made.
    New,
    /// Added to one that was there.
    Add,
    /// Deleted.
    Delete,
}

/// A list of elements, over as many messages as it needs.
struct List<'n> {
    name: &'n str,
    key: Key,
    fill: Fill,
    id: u32,
    open: Option<(Open, Open)>,
}

impl<'n> List<'n> {
    fn new(name: &'n str, key: Key, fill: Fill, id: u32) -> Self {
        Self {
            name,
            key,
            fill,
            id,
            open: None,
        }
    }

    /// Makes sure that a message is open that can take another interval.
    fn make_room(&mut self, writer: &mut Writer, verdict: Option<&Verdict>) {
        // Three elements of at most 44 bytes each, and a verdict with its chain's name.
        let chain = match verdict {
            Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => chain.len(),
            _ => 0,
        };
        let limit = LIST_LIMIT.saturating_sub(200 + chain);
        if self
            .open
            .is_some_and(|(_, list)| writer.bytes.len() - list.0 > limit)
        {
            self.finish(writer);
        }
        if self.open.is_none() {
            let (kind, flags) = match self.fill {
                Fill::New | Fill::Add => (message::NEW_ELEMENTS, CREATE),
                Fill::Delete => (message::DELETE_ELEMENTS, 0),
            };
            let name = self.name.to_owned();
            let what = match self.fill {
                _ if self.key == Key::Other => writer
                    .steps
                    .last()
                    .map_or(What::Begin, |step| step.what.clone()),
                Fill::New | Fill::Add => What::AddElements(name, self.key),
                Fill::Delete => What::DeleteElements(name, self.key),
            };
            let open = writer.message(kind, flags, what);
            writer.string(element::LIST_SET, self.name);
            if self.fill == Fill::New {
                writer.u32(element::LIST_SET_ID, self.id);
            }
            let list = writer.nest(element::LIST_ELEMENTS);
            self.open = Some((open, list));
        }
    }

    fn finish(&mut self, writer: &mut Writer) {
        if let Some((open, list)) = self.open.take() {
            writer.close(list);
            writer.end_message(open);
        }
    }
}

/// An element without extras, written once to be copied: of 200,000 each costs some
/// nanoseconds, and its length is not worked out anew.
struct Template {
    /// All that comes before the key.
    before: Vec<u8>,
    /// All that comes after it: its padding.
    after: &'static [u8],
    /// The key's length.
    key: usize,
}

/// An attribute's length is rounded up to a multiple of four.
const PADDING: &[u8] = &[0; 3];

impl Template {
    fn new<T: Interval>(is_end: bool) -> Self {
        let mut writer = Writer::default();
        T::ZERO.with_key(|key| writer.element(key, is_end, None, false));
        let padding = T::LENGTH.next_multiple_of(4) - T::LENGTH;
        let mut before = writer.bytes;
        before.truncate(before.len() - padding - T::LENGTH);
        Self {
            before,
            after: PADDING.get(..padding).unwrap_or_default(),
            key: T::LENGTH,
        }
    }

    fn length(&self) -> usize {
        self.before.len() + self.key + self.after.len()
    }

    #[inline]
    fn put<T: Interval>(&self, key: T, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.before);
        key.with_key(|key| into.extend_from_slice(key));
        into.extend_from_slice(self.after);
    }
}

/// An interval, or one with its verdict.
trait Entry {
    /// What the interval is of.
    type Number: Interval;
    fn parts(&self) -> (Range<Self::Number>, Option<&Verdict>);
}

impl<T: Interval> Entry for Range<T> {
    type Number = T;
    fn parts(&self) -> (Range<T>, Option<&Verdict>) {
        (*self, None)
    }
}

impl<T: Interval> Entry for (Range<T>, Verdict) {
    type Number = T;
    fn parts(&self) -> (Range<T>, Option<&Verdict>) {
        (self.0, Some(&self.1))
    }
}

impl Expression {
    /// Whether it looks something up in a set inline in its rule that was not understood.
    /// The kernel numbers such sets (`__set0`), and the number means nothing another time.
    fn needs_inline_set(&self) -> bool {
        matches!(self, Self::Foreign { name, data } if name == "lookup"
            && attributes(data)
                .flatten()
                .any(|part| part.kind == x::LOOKUP_SET && part.value.starts_with(b"__")))
    }

    /// The kernel's name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::MetaLoad(_) | Self::MetaSet(_) => "meta",
            Self::CtLoad(_) | Self::CtSet(_) => "ct",
            Self::Payload { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } | Self::VerdictMap { .. } | Self::InlineVerdictMap { .. } => {
                "lookup"
            }
            Self::Counter => "counter",
            Self::RejectProhibited => "reject",
            Self::Verdict(_) => "immediate",
            Self::Foreign { name, .. } => name,
        }
    }
}

impl MetaKey {
    /// All, for reading them back.
    pub(super) const ALL: [Self; 6] = [
        Self::Mark,
        Self::InputName,
        Self::OutputName,
        Self::InputType,
        Self::Family,
        Self::Protocol,
    ];

    /// `NFT_META_*`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::InputName => 6,
            Self::OutputName => 7,
            Self::InputType => 8,
            Self::Family => 15,
            Self::Protocol => 16,
        }
    }
}

impl CtKey {
    /// All, for reading them back.
    pub(super) const ALL: [Self; 2] = [Self::Mark, Self::State];

    /// `NFT_CT_*`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Mark => 3,
        }
    }
}

impl PayloadBase {
    /// All, for reading them back.
    pub(super) const ALL: [Self; 3] = [Self::Link, Self::Network, Self::Transport];

    /// `NFT_PAYLOAD_*_HEADER`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Link => 0,
            Self::Network => 1,
            Self::Transport => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::messages;
    use crate::net::Ranges;

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
        let transaction = transaction(from, to, None).unwrap().unwrap();
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
        assert_eq!(transaction(Some(&old), Some(&old), None), Ok(None));
        assert_eq!(transaction(None, None, Some(1)), Ok(None));
        // A set that is to be of another type: all anew.
        let mut other = old.clone();
        other.sets[0].elements = Elements::Macs(Vec::new());
        assert_eq!(kinds(Some(&old), Some(&other))[1], message::DELETE_TABLE);
    }

    #[test]
    fn a_refusal_is_traced_to_its_part() {
        let table = with_networks(&[(1, 1), (5, 9), (100, 200)]);
        let mut transaction = transaction(None, Some(&table), None).unwrap().unwrap();
        transaction.number_from(1000);
        let found = |what: &str| {
            let mut start = 0;
            for message in messages(transaction.bytes()).map(Result::unwrap) {
                let length = PREAMBLE - 4 + message.payload.len();
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
        let transaction = transaction(None, Some(&table), None).unwrap().unwrap();
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
        let error = transaction(None, Some(&table), None).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot make set `s`"),
            "{error}"
        );
        let mut table = with_networks(&[]);
        table.others.push("object `quota`".to_owned());
        assert!(transaction(None, Some(&table), None).is_err());
        let mut table = with_networks(&[]);
        table.chains[0].rules[0].comment = Some("x".repeat(128));
        assert!(transaction(None, Some(&table), None).is_err());
        table.chains[0].rules[0].comment = Some("x".repeat(127));
        assert!(transaction(None, Some(&table), None).is_ok());
        table.chains[0].rules[0].expressions = vec![Expression::InlineVerdictMap {
            elements: Vec::new(),
            key_type: 19,
        }];
        assert!(transaction(None, Some(&table), None).is_err());
    }
}
