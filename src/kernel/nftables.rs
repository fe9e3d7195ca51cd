//! Our nftables table: read, checked and replaced.
//!
//! Every write is one transaction that names the generation of the rules that was read
//! before: if anybody has committed anything since, the kernel refuses it, and we look
//! again. So nothing is overwritten that was not seen.

use std::collections::BTreeMap;
use std::fs;

use nix::errno::Errno;

use super::netlink::{BatchAnswer, Malformed, Netlink, NetlinkError, Payload, Protocol, Refusal};
use super::{FailureKind, KernelError};
use crate::nft::abi::{self, message, set, table};
use crate::nft::decode::{self, Answers, Count};
use crate::nft::proof::{Birthmark, Proof};
use crate::nft::wire::{self, Terms, Transaction};
use crate::nft::{Elements, TABLE, Table};
use crate::observation::Availability;

/// How often a read is begun anew because somebody committed meanwhile, and a commit
/// because somebody committed elsewhere. Each takes milliseconds.
const TRIES: u32 = 20;

/// A text that the kernel gives once and never again.
const UNIQUE: &str = "/proc/sys/kernel/random/uuid";

/// The way to the kernel's packet rules.
#[derive(Debug)]
pub struct Nftables {
    socket: Netlink,
    /// What was last read or committed: it is there as long as the generation is. A network
    /// namespace that we are in does not begin to count anew.
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    generation: u32,
    table: Option<Table>,
    /// The table's, as it was read; the kernel may not keep it.
    birthmark: Option<Birthmark>,
    /// Another run saw it; perhaps in another network namespace.
    is_hearsay: bool,
}

/// What our rules counted: by chain and comment, rules of the same comment added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(String, Option<String>), Count>);

impl Counters {
    /// What all rules with this comment counted.
    #[must_use]
    pub fn with_comment(&self, comment: &str) -> Count {
        self.sum(|_, found| found == Some(comment))
    }

    /// What the rules counted whose chain and comment `are`.
    #[must_use]
    pub fn sum(&self, are: impl Fn(&str, Option<&str>) -> bool) -> Count {
        let mut total = Count::default();
        for ((chain, comment), count) in &self.0 {
            if are(chain, comment.as_deref()) {
                total += *count;
            }
        }
        total
    }

    /// Chain, comment and count of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>, Count)> {
        self.0
            .iter()
            .map(|((chain, comment), count)| (chain.as_str(), comment.as_deref(), *count))
    }
}

/// A request about our family, without attributes.
fn request() -> Payload {
    Payload::new(&[abi::FAMILY_INET, 0, 0, 0])
}

/// A request about our table.
fn about_table() -> Payload {
    request().with_name(table::NAME, TABLE)
}

impl Nftables {
    /// Opens the way.
    ///
    /// # Errors
    /// If the kernel has no netfilter netlink at all.
    pub fn open() -> Result<Self, KernelError> {
        let socket = Netlink::open(Protocol::Netfilter)
            .map_err(|error| lacking(error, "cannot reach the kernel's packet filter"))?;
        Ok(Self { socket, seen: None })
    }

    /// The socket, for questions about others' tables. To close one waits until all is freed that a
    /// transaction has taken out (`nft_rcv_nl_event`): 40 ms for 100,000 networks, which this
    /// process has better uses for.
    pub(super) fn socket(&mut self) -> &mut Netlink {
        &mut self.socket
    }

    /// Whether this kernel has `nf_tables`. Asking makes it load the module.
    ///
    /// # Errors
    /// If it cannot be asked, most likely for want of permission.
    pub fn availability() -> Result<Availability, KernelError> {
        let missing = |error: &KernelError| Ok(Availability::Missing(error.reason.clone()));
        let mut this = match Self::open() {
            Err(error) if error.kind == FailureKind::Lacking => return missing(&error),
            other => other?,
        };
        match this.generation() {
            Ok(_) => Ok(Availability::Available),
            Err(error) if error.kind == FailureKind::Lacking => missing(&error),
            Err(error) => Err(error),
        }
    }

    /// The generation of all packet rules of this network namespace: it changes whenever
    /// anybody commits anything.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        self.ask_generation()
            .map_err(|error| lacking(error, "cannot ask for the packet rules' generation"))
    }

    fn ask_generation(&mut self) -> Result<u32, NetlinkError> {
        let answers = self.socket.ask(
            message::GET_GENERATION,
            0,
            &Payload::new(&[0; 4]),
            |answer| decode::generation(answer.payload).map(Some),
        )?;
        answers
            .first()
            .copied()
            .ok_or(Malformed("answer: no generation").into())
    }

    /// What proves, to a later run, that the long sets of our table are as they were last read
    /// here; none if there are none, or if the kernel keeps no birthmark.
    #[must_use]
    pub fn proof(&self) -> Option<Proof> {
        let seen = self.seen.as_ref()?;
        Proof::of(
            seen.table.as_ref()?,
            seen.birthmark.as_ref()?,
            seen.generation,
        )
    }

    /// Takes `table` for what is there, as far as `proof` goes, of which an earlier run has
    /// made sure.
    pub fn trust(&mut self, proof: &Proof, table: Table) {
        // What we saw ourselves we know better.
        if self.seen.is_none() && proof.is_about(&table) {
            self.seen = Some(Seen {
                generation: proof.generation,
                table: Some(table),
                birthmark: Some(proof.birthmark.clone()),
                is_hearsay: true,
            });
        }
    }

    /// Reads our table, all of it as of one moment; `None` if there is none. The elements of a
    /// long set are taken as they were last read or committed, if the generation
    /// proves that nobody has committed anything since (see [`crate::nft::proof`]).
    ///
    /// # Errors
    /// If the kernel does not say, or never rests.
    pub fn read(&mut self) -> Result<Option<Table>, KernelError> {
        let action = || format!("cannot read table `inet {TABLE}`");
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let known = self
                .seen
                .take()
                .filter(|seen| seen.generation == generation);
            let (table, birthmark) = match self.read_once(known.as_ref()) {
                // A chain or set that goes while it is asked about.
                Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
                other => other.map_err(|error| lacking(error, &action()))?,
            };
            if self.generation()? == generation {
                self.seen = Some(Seen {
                    generation,
                    table: table.clone(),
                    birthmark,
                    is_hearsay: false,
                });
                return Ok(table);
            }
        }
        Err(NetlinkError::Interrupted.during(action()))
    }

    fn read_once(
        &mut self,
        known: Option<&Seen>,
    ) -> Result<(Option<Table>, Option<Birthmark>), NetlinkError> {
        let heads = self
            .socket
            .ask(message::GET_TABLE, 0, &about_table(), |answer| {
                decode::table_head(answer.payload)
            });
        let head = match heads {
            Ok(heads) => heads.into_iter().next(),
            Err(error) if error.errno() == Some(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        let Some(head) = head else {
            return Ok((None, None));
        };
        let birthmark = head.birthmark.clone();
        let known = known
            .filter(|seen| !seen.is_hearsay || seen.birthmark == birthmark)
            .and_then(|seen| seen.table.as_ref());
        let chains = self
            .socket
            .dump(message::GET_CHAIN, &about_table(), |answer| {
                decode::chain_head(answer.payload)
            })?;
        let rules = self.read_rules()?;
        let heads = self
            .socket
            .dump(message::GET_SET, &about_table(), |answer| {
                decode::set_head(answer.payload)
            })?;
        // Objects and flowtables are asked for only if the table's count of what is in it
        // says that there are any.
        let others = if chains.len() + heads.len() == usize::try_from(head.uses).unwrap_or(0) {
            Vec::new()
        } else {
            self.read_others()?
        };
        let mut sets = Vec::with_capacity(heads.len());
        for head in heads {
            let known = known.and_then(|table| long_set(table, &head));
            let elements = match known {
                Some(elements) => decode::RawElements::Known(elements.clone()),
                None => self.read_elements(&head)?,
            };
            sets.push((head, elements));
        }
        let answers = Answers {
            table: head,
            chains,
            sets,
            rules,
            others,
        };
        Ok((Some(decode::assemble(answers)?), birthmark))
    }

    fn read_elements(
        &mut self,
        head: &decode::SetHead,
    ) -> Result<decode::RawElements, NetlinkError> {
        let mut all = head.elements();
        if !head.is_known() {
            return Ok(all);
        }
        let about = about_table().with_name(set::NAME, &head.name);
        let parts = self.socket.dump(message::GET_ELEMENTS, &about, |answer| {
            let mut part = head.elements();
            part.read(answer.payload)?;
            Ok(Some(part))
        })?;
        for part in parts {
            all.append(part);
        }
        Ok(all)
    }

    fn read_rules(&mut self) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.socket
            .dump(message::GET_RULE, &about_table(), |answer| {
                Ok(decode::is_our_rule(answer.payload)?.then(|| answer.payload.to_vec()))
            })
    }

    fn read_others(&mut self) -> Result<Vec<String>, NetlinkError> {
        let mut others = Vec::new();
        for (kind, request) in [
            ("object", message::GET_OBJECT),
            ("flowtable", message::GET_FLOWTABLE),
        ] {
            let found = self.socket.dump(request, &about_table(), |answer| {
                decode::other(kind, answer.payload)
            });
            match found {
                Ok(found) => others.extend(found),
                // Kernels before 4.16 have no flowtables.
                Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(others)
    }

    /// Reads what our rules counted.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn counters(&mut self) -> Result<Counters, KernelError> {
        let counted = self
            .socket
            .dump(message::GET_RULE, &about_table(), |answer| {
                if decode::is_our_rule(answer.payload)? {
                    decode::count(answer.payload)
                } else {
                    Ok(None)
                }
            })
            .map_err(|error| lacking(error, "cannot read the packet rules' counters"))?;
        let mut counters = Counters::default();
        for (chain, comment, count) in counted {
            *counters.0.entry((chain, comment)).or_default() += count;
        }
        Ok(counters)
    }

    /// Has the kernel check the step from `from`, which must be there, to `to`, and change nothing.
    /// All but this: jumps in a circle may be found by [`Self::commit`] alone.
    ///
    /// # Errors
    /// What [`Self::commit`] would come back with.
    pub fn validate(
        &mut self,
        from: Option<&Table>,
        to: Option<&Table>,
    ) -> Result<(), KernelError> {
        self.transact(from, to, |this, transaction| {
            let answer = this.send(transaction, Transaction::without_end)?;
            Ok(match refusal(transaction, &answer) {
                // Answers that were lost can only be refusals.
                None if answer.overrun => Outcome::Unknown,
                None => Outcome::Valid,
                Some(refusal) => Outcome::Refused(refusal.clone()),
            })
        })
    }

    /// Makes `table` in the network namespace of this thread, where there must be none; of its sets
    /// only that they are there: to fill one takes time, and shows nothing more.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub(super) fn rehearse(table: &Table) -> Result<(), KernelError> {
        Self::open()?.commit(None, Some(&table.without_elements()))
    }

    /// Takes the kernel from `from`, which must be there, to `to`, in one transaction. Sends
    /// nothing if they are equal.
    ///
    /// # Errors
    /// Says which object the kernel refused and in what words, or that something else than
    /// `from` is there. Then all is as it was.
    pub fn commit(&mut self, from: Option<&Table>, to: Option<&Table>) -> Result<(), KernelError> {
        self.transact(from, to, |this, transaction| {
            let answer = this.send(transaction, Transaction::bytes)?;
            let is_done = answer.acknowledged.contains(&transaction.last());
            Ok(match refusal(transaction, &answer) {
                None if is_done => Outcome::Committed,
                None => Outcome::Unknown,
                Some(refusal) => Outcome::Refused(refusal.clone()),
            })
        })
    }

    /// Sends a transaction by `act`, anew as long as others commit elsewhere in between.
    fn transact(
        &mut self,
        from: Option<&Table>,
        to: Option<&Table>,
        mut act: impl FnMut(&mut Self, &mut Transaction) -> Result<Outcome, KernelError>,
    ) -> Result<(), KernelError> {
        if from == to {
            return Ok(());
        }
        for _ in 0..TRIES {
            let generation = self.generation_of(from)?;
            let terms = Terms {
                generation: Some(generation),
                birthmark: fs::read_to_string(UNIQUE)
                    .ok()
                    .map(|unique| Birthmark(unique.trim_end().to_owned())),
            };
            let transaction =
                wire::transaction(from, to, &terms).map_err(|impossible| KernelError {
                    action: format!("cannot make {}", impossible.object),
                    reason: impossible.reason,
                    hint: None,
                    kind: FailureKind::Other,
                    source: None,
                })?;
            let Some(mut transaction) = transaction else {
                return Ok(());
            };
            match act(self, &mut transaction)? {
                Outcome::Valid => return Ok(()),
                Outcome::Committed => {
                    // The kernel counts on by one, and leaves out 0 (`nf_tables_commit`).
                    let next = generation.checked_add(1).unwrap_or(1);
                    self.seen = Some(Seen {
                        generation: next,
                        table: to.cloned(),
                        birthmark: None,
                        is_hearsay: false,
                    });
                    return Ok(());
                }
                // Somebody committed something between our look and our step.
                Outcome::Refused(no)
                    if transaction.is_begin(no.sequence)
                        && matches!(no.errno, Errno::ERESTART | Errno::EINTR | Errno::EAGAIN) =>
                {
                    self.seen = None;
                }
                Outcome::Refused(no) => return Err(explain(&transaction, no)),
                Outcome::Unknown => {
                    // The answers were lost. What is there tells.
                    self.seen = None;
                    if self.read()?.as_ref() == to {
                        return Ok(());
                    }
                    return Err(KernelError {
                        action: "cannot commit the packet rules".to_owned(),
                        reason: "the kernel's answers were lost, and the rules are not there"
                            .to_owned(),
                        hint: Some(
                            "raise `net.core.rmem_max`, or run it in the initial user namespace"
                                .to_owned(),
                        ),
                        kind: FailureKind::Other,
                        source: None,
                    });
                }
            }
        }
        Err(KernelError {
            action: "cannot commit the packet rules".to_owned(),
            reason: format!("others committed theirs in between, {TRIES} times"),
            hint: Some("find out who changes nftables all the time: `nft monitor`".to_owned()),
            kind: FailureKind::Other,
            source: None,
        })
    }

    /// A generation at which `from` was there.
    fn generation_of(&mut self, from: Option<&Table>) -> Result<u32, KernelError> {
        if let Some(seen) = &self.seen
            && !seen.is_hearsay
            && seen.table.as_ref() == from
        {
            return Ok(seen.generation);
        }
        let found = self.read()?;
        match &self.seen {
            Some(seen) if found.as_ref() == from => Ok(seen.generation),
            _ => Err(KernelError {
                action: "cannot commit the packet rules".to_owned(),
                reason: format!("table `inet {TABLE}` is not as it was when it was read"),
                hint: Some("somebody else changed it: look at it, and run this again".to_owned()),
                kind: FailureKind::Other,
                source: None,
            }),
        }
    }

    fn send(
        &mut self,
        transaction: &mut Transaction,
        bytes: impl Fn(&Transaction) -> &[u8],
    ) -> Result<BatchAnswer, KernelError> {
        transaction.number_from(self.socket.reserve_sequences(transaction.length()));
        self.socket
            .batch(bytes(transaction))
            .map_err(|error| error.during("cannot send the packet rules"))
    }
}

/// The elements of a set that is long and, as far as its head says, still what it was.
fn long_set<'t>(table: &'t Table, head: &decode::SetHead) -> Option<&'t Elements> {
    table
        .sets
        .iter()
        .find(|set| set.name == head.name && set.is_long())
        .map(|set| &set.elements)
        .filter(|elements| head.can_hold(elements))
}

/// What became of a transaction.
enum Outcome {
    Valid,
    Committed,
    Refused(Refusal),
    /// Answers were lost.
    Unknown,
}

/// The refusal that explains the others: the earliest message's. One that concerns the
/// batch as such comes last, and counts only if no message was refused.
fn refusal<'a>(transaction: &Transaction, answer: &'a BatchAnswer) -> Option<&'a Refusal> {
    answer
        .refusals
        .iter()
        .min_by_key(|refusal| (transaction.is_begin(refusal.sequence), refusal.sequence))
}

fn explain(transaction: &Transaction, refusal: Refusal) -> KernelError {
    let action = transaction.describe(refusal.sequence, refusal.offset);
    let errno = refusal.errno;
    let mut error = NetlinkError::Refused(refusal).during(action);
    // Of these two, `ENOENT` means that the set or the chain is not there.
    let names_another = ["`lookup`", "`immediate`"]
        .iter()
        .any(|name| error.action.ends_with(name));
    if matches!(errno, Errno::ENOENT | Errno::EOPNOTSUPP)
        && error.action.contains(", at its ")
        && !names_another
    {
        error.kind = FailureKind::Lacking;
        error.hint = Some(
            "the kernel lacks this instruction: its module may be absent or barred from loading"
                .to_owned(),
        );
    }
    error
}

/// Without `nf_tables`, nfnetlink answers `EINVAL` or `EOPNOTSUPP`; without nfnetlink, there is no socket.
fn lacking(error: NetlinkError, action: &str) -> KernelError {
    let is_lacking = matches!(
        error.errno(),
        Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)
    );
    let mut error = error.during(action);
    if is_lacking {
        error.kind = FailureKind::Lacking;
        error.reason = format!("the kernel has no `nf_tables` ({})", error.reason);
        error.hint =
            Some("load the module `nf_tables`, or use `backend = \"iptables\"`".to_owned());
    }
    error
}
