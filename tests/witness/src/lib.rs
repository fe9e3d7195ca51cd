//! Builds `redirect`'s packet rules through libnftnl, the library of `nft` itself.
//!
//! An encoder of its own, by other people, from the same [`Table`]: if the kernel ends in the same
//! state by both, then what ours writes is what it means to write. Tests only; nothing of
//! this is linked into `redirect`.
//!
//! What the `nftnl` crate (0.9) cannot say, and what is therefore said to libnftnl directly,
//! each in one small unsafe function:
//!
//! - a set's flags, so no interval set and no map; nor the byte order of its keys, without which
//!   `nft` lists marks and names in an inline map the wrong way round;
//! - an element's flags and verdict, so neither where an interval ends nor what a map leads to;
//! - a look-up that is inverted, or whose result is a verdict.
//!
//! It cannot read anything back, and its batches break apart at 128 KiB: rules with more than
//! some thousand networks cannot be committed by it in one transaction.

#![expect(
    clippy::cast_possible_truncation,
    reason = "libnftnl's attribute numbers are declared with 32 bits and taken with 16"
)]

use std::ffi::{CString, c_void};
use std::ptr::NonNull;

use nftnl::expr::{
    self, Cmp, CmpOp, Conntrack, LLHeaderField, NetworkHeaderField, TransportHeaderField,
};
use nftnl::nftnl_sys::{self as sys, libc};
use nftnl::set::{Set, SetKey};
use nftnl::{Batch, Chain, ChainType, FinalizedBatch, Hook, MsgType, Policy, ProtoFamily, Rule};
use redirect::net::{Range, Step};
use redirect::nft::{
    self, CtKey, Elements, Expression, MetaKey, PayloadBase, TABLE, Table, Verdict,
};

/// A key of some bytes and of nft's type `TYPE`.
struct Key<const TYPE: u32, const LENGTH: usize>(Vec<u8>);

impl<const TYPE: u32, const LENGTH: usize> SetKey for Key<TYPE, LENGTH> {
    const TYPE: u32 = TYPE;
    const LEN: u32 = LENGTH as u32;

    fn data(&self) -> Box<[u8]> {
        self.0.clone().into_boxed_slice()
    }
}

type V4 = Key<7, 4>;
type V6 = Key<8, 16>;
type Mac = Key<9, 6>;
type Port = Key<13, 2>;
type Mark = Key<19, 4>;
type Name = Key<41, 16>;

const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 2;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
/// `NFT_DATA_VERDICT`.
const DATA_VERDICT: u32 = 0xffff_ff00;
/// nft's `BYTEORDER_HOST_ENDIAN`.
const HOST_ORDER: u32 = 1;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// What is to be an element.
struct Element {
    key: Vec<u8>,
    is_end: bool,
    verdict: Option<Verdict>,
}

/// # Panics
/// If `text` holds a NUL.
fn c_string(text: &str) -> CString {
    CString::new(text).expect("names hold no NUL")
}

/// The transaction that makes `table`, where there is none.
///
/// # Panics
/// If there is something in `table` that `redirect` never makes.
#[must_use]
pub fn transaction(table: &Table) -> FinalizedBatch {
    let mut batch = Batch::new();
    let inet = nftnl::Table::new(c_string(TABLE), ProtoFamily::Inet);
    batch.add(&inet, MsgType::Add);
    let chains: Vec<Chain<'_>> = table
        .chains
        .iter()
        .map(|chain| make_chain(chain, &inet))
        .collect();
    for chain in &chains {
        batch.add(chain, MsgType::Add);
    }
    let mut ids = 0;
    let mut id = || {
        ids += 1;
        ids
    };
    for set in &table.sets {
        make_set(&mut batch, &inet, set, id());
    }
    for (chain, rules) in chains.iter().zip(&table.chains) {
        for rule in &rules.rules {
            make_rule(&mut batch, &inet, chain, rule, &mut id);
        }
    }
    batch.finalize()
}

fn make_chain<'t>(chain: &nft::Chain, table: &'t nftnl::Table) -> Chain<'t> {
    let mut made = Chain::new(c_string(&chain.name), table);
    if let Some(base) = &chain.base {
        assert_eq!(base.kind, "filter");
        let hook = match base.hook {
            0 => Hook::PreRouting,
            1 => Hook::In,
            2 => Hook::Forward,
            3 => Hook::Out,
            4 => Hook::PostRouting,
            other => panic!("hook {other}"),
        };
        made.set_hook(hook, base.priority);
        made.set_type(ChainType::Filter);
        made.set_policy(match base.policy {
            0 => Policy::Drop,
            _ => Policy::Accept,
        });
    }
    made
}

fn make_set(batch: &mut Batch, table: &nftnl::Table, set: &nft::Set, id: u32) {
    let name = &set.name;
    match &set.elements {
        Elements::V4(ranges) => {
            let elements = intervals(ranges.iter().map(|range| (*range, None)), u32::to_be_bytes);
            add_set::<V4>(batch, table, (name, id), INTERVAL, &elements);
        }
        Elements::V6(ranges) => {
            let elements = intervals(ranges.iter().map(|range| (*range, None)), u128::to_be_bytes);
            add_set::<V6>(batch, table, (name, id), INTERVAL, &elements);
        }
        Elements::Ports(ranges) => {
            let elements = intervals(ranges.iter().map(|range| (*range, None)), u16::to_be_bytes);
            add_set::<Port>(batch, table, (name, id), INTERVAL, &elements);
        }
        Elements::Macs(macs) => {
            let elements = macs.iter().map(|mac| Element {
                key: mac.0.to_vec(),
                is_end: false,
                verdict: None,
            });
            add_set::<Mac>(batch, table, (name, id), 0, &elements.collect::<Vec<_>>());
        }
        Elements::V4Verdicts(list) => {
            let elements = intervals(list.iter().cloned().map(some), u32::to_be_bytes);
            add_set::<V4>(batch, table, (name, id), INTERVAL | MAP, &elements);
        }
        Elements::V6Verdicts(list) => {
            let elements = intervals(list.iter().cloned().map(some), u128::to_be_bytes);
            add_set::<V6>(batch, table, (name, id), INTERVAL | MAP, &elements);
        }
        Elements::PortVerdicts(list) => {
            let elements = intervals(list.iter().cloned().map(some), u16::to_be_bytes);
            add_set::<Port>(batch, table, (name, id), INTERVAL | MAP, &elements);
        }
        Elements::Foreign(description) => panic!("{description}"),
    }
}

fn some<T>((range, verdict): (T, Verdict)) -> (T, Option<Verdict>) {
    (range, Some(verdict))
}

/// Where each interval begins, and the first number after it. None after the greatest.
fn intervals<T: Step, const N: usize>(
    ranges: impl Iterator<Item = (Range<T>, Option<Verdict>)>,
    bytes: impl Fn(T) -> [u8; N],
) -> Vec<Element> {
    let mut elements = Vec::new();
    for (range, verdict) in ranges {
        elements.push(Element {
            key: bytes(range.first).to_vec(),
            is_end: false,
            verdict,
        });
        if let Some(next) = range.last.next() {
            elements.push(Element {
                key: bytes(next).to_vec(),
                is_end: true,
                verdict: None,
            });
        }
    }
    elements
}

/// Adds a set and its elements.
fn add_set<K: SetKey>(
    batch: &mut Batch,
    table: &nftnl::Table,
    (name, id): (&str, u32),
    flags: u32,
    elements: &[Element],
) {
    let name = c_string(name);
    let set = Set::<K>::new_named(&name, id, table, ProtoFamily::Inet);
    set_flags(&set, flags, elements.len());
    for element in elements {
        add_element(&set, element);
    }
    batch.add(&set, MsgType::Add);
    if !elements.is_empty() {
        batch.add_iter(set.elems_iter(), MsgType::Add);
    }
}

fn set_flags<K>(set: &Set<'_, K>, flags: u32, size: usize) {
    let set = set.as_ptr().as_ptr();
    // SAFETY: `set` is a valid set of libnftnl for as long as its wrapper lives, and these are
    // numbers that libnftnl copies.
    unsafe {
        sys::nftnl_set_set_u32(set, sys::NFTNL_SET_FLAGS as u16, flags);
        if flags & MAP != 0 {
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_DATA_TYPE as u16, DATA_VERDICT);
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_DATA_LEN as u16, 0);
        }
        if flags & ANONYMOUS != 0 {
            let size = u32::try_from(size).expect("an inline map is small");
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_DESC_SIZE as u16, size);
            let notes = sys::nftnl_udata_buf_alloc(64);
            assert!(!notes.is_null(), "out of memory");
            let order = sys::NFTNL_UDATA_SET_KEYBYTEORDER as u8;
            assert!(sys::nftnl_udata_put_u32(notes, order, HOST_ORDER));
            sys::nftnl_set_set_data(
                set,
                sys::NFTNL_SET_USERDATA as u16,
                sys::nftnl_udata_buf_data(notes),
                sys::nftnl_udata_buf_len(notes),
            );
            sys::nftnl_udata_buf_free(notes);
        }
    }
}

fn add_element<K>(set: &Set<'_, K>, element: &Element) {
    let length = u32::try_from(element.key.len()).expect("keys have at most 16 bytes");
    // SAFETY: the new element is checked for null, filled with copies of what is passed (the key
    // with its right length, the chain's name with its NUL), and then owned by the set.
    unsafe {
        let made = sys::nftnl_set_elem_alloc();
        assert!(!made.is_null(), "out of memory");
        let key = element.key.as_ptr().cast::<c_void>();
        sys::nftnl_set_elem_set(made, sys::NFTNL_SET_ELEM_KEY as u16, key, length);
        if element.is_end {
            sys::nftnl_set_elem_set_u32(made, sys::NFTNL_SET_ELEM_FLAGS as u16, INTERVAL_END);
        }
        if let Some(verdict) = &element.verdict {
            let (code, chain) = verdict_parts(verdict);
            sys::nftnl_set_elem_set_u32(made, sys::NFTNL_SET_ELEM_VERDICT as u16, code);
            if let Some(chain) = chain {
                let at = sys::NFTNL_SET_ELEM_CHAIN as u16;
                sys::nftnl_set_elem_set_str(made, at, chain.as_ptr());
            }
        }
        sys::nftnl_set_elem_add(set.as_ptr().as_ptr(), made);
    }
}

/// A verdict's number, as the kernel's headers have it, and its chain.
#[expect(clippy::cast_sign_loss, reason = "libnftnl takes the bits as they are")]
fn verdict_parts(verdict: &Verdict) -> (u32, Option<CString>) {
    match verdict {
        Verdict::Accept => (libc::NF_ACCEPT as u32, None),
        Verdict::Drop => (libc::NF_DROP as u32, None),
        Verdict::Return => (libc::NFT_RETURN as u32, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP as u32, Some(c_string(chain))),
        Verdict::Goto(chain) => (libc::NFT_GOTO as u32, Some(c_string(chain))),
    }
}

fn make_rule(
    batch: &mut Batch,
    table: &nftnl::Table,
    chain: &Chain<'_>,
    rule: &nft::Rule,
    id: &mut impl FnMut() -> u32,
) {
    let mut made = Rule::new(chain);
    for expression in &rule.expressions {
        let mut map = 0;
        if let Expression::InlineVerdictMap { elements, key_type } = expression {
            map = id();
            let elements: Vec<_> = elements
                .iter()
                .map(|(key, verdict)| Element {
                    key: key.clone(),
                    is_end: false,
                    verdict: Some(verdict.clone()),
                })
                .collect();
            let flags = ANONYMOUS | CONSTANT | MAP;
            let name = ("__map%d", map);
            match *key_type {
                Mark::TYPE => add_set::<Mark>(batch, table, name, flags, &elements),
                Name::TYPE => add_set::<Name>(batch, table, name, flags, &elements),
                other => panic!("a map of type {other}"),
            }
        }
        made.add_expr(&Translated { expression, map });
    }
    if let Some(comment) = &rule.comment {
        made.set_comment(c_string(comment)).expect("short enough");
    }
    batch.add(&made, MsgType::Add);
}

/// One of our expressions, for libnftnl.
struct Translated<'e> {
    expression: &'e Expression,
    /// The id of its map, if it has one inline.
    map: u32,
}

impl expr::Expression for Translated<'_> {
    fn to_expr(&self, rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        match self.expression {
            Expression::MetaLoad(key) => match key {
                MetaKey::Mark => expr::Meta::Mark { set: false },
                MetaKey::InputName => expr::Meta::IifName,
                MetaKey::OutputName => expr::Meta::OifName,
                MetaKey::InputType => expr::Meta::IifType,
                MetaKey::Family => expr::Meta::NfProto,
                MetaKey::Protocol => expr::Meta::L4Proto,
            }
            .to_expr(rule),
            Expression::MetaSet(MetaKey::Mark) => expr::Meta::Mark { set: true }.to_expr(rule),
            Expression::CtLoad(CtKey::Mark) => Conntrack::Mark { set: false }.to_expr(rule),
            Expression::CtLoad(CtKey::State) => Conntrack::State.to_expr(rule),
            Expression::CtSet(CtKey::Mark) => Conntrack::Mark { set: true }.to_expr(rule),
            Expression::Payload {
                base,
                offset,
                length,
            } => payload(*base, *offset, *length).to_expr(rule),
            Expression::Bitwise { mask, xor } => {
                expr::Bitwise::new(mask.as_slice(), xor.as_slice()).to_expr(rule)
            }
            Expression::Compare { equal, bytes } => {
                let sign = if *equal { CmpOp::Eq } else { CmpOp::Neq };
                Cmp::new(sign, bytes.as_slice()).to_expr(rule)
            }
            Expression::Lookup { set, invert } => look_up(set, None, *invert, false),
            Expression::VerdictMap { map } => look_up(map, None, false, true),
            Expression::InlineVerdictMap { .. } => look_up("__map%d", Some(self.map), false, true),
            Expression::Counter => expr::Counter.to_expr(rule),
            Expression::RejectProhibited => {
                let how = expr::RejectionType::Icmp(expr::IcmpCode::AdminProhibited);
                expr::Verdict::Reject(how).to_expr(rule)
            }
            Expression::Verdict(verdict) => match verdict {
                Verdict::Accept => expr::Verdict::Accept,
                Verdict::Drop => expr::Verdict::Drop,
                Verdict::Return => expr::Verdict::Return,
                Verdict::Jump(chain) => expr::Verdict::Jump {
                    chain: c_string(chain),
                },
                Verdict::Goto(chain) => expr::Verdict::Goto {
                    chain: c_string(chain),
                },
            }
            .to_expr(rule),
            other => panic!("`redirect` never makes {other:?}"),
        }
    }
}

/// The crate calls them bits, and passes them on as bytes.
fn payload(base: PayloadBase, offset_bits: u32, length_bits: u32) -> expr::Payload {
    match base {
        PayloadBase::Link => expr::Payload::LinkLayer(LLHeaderField::Raw {
            offset_bits,
            length_bits,
        }),
        PayloadBase::Network => expr::Payload::Network(NetworkHeaderField::Raw {
            offset_bits,
            length_bits,
        }),
        PayloadBase::Transport => expr::Payload::Transport(TransportHeaderField::Raw {
            offset_bits,
            length_bits,
        }),
    }
}

fn look_up(
    set: &str,
    id: Option<u32>,
    is_inverted: bool,
    is_verdict: bool,
) -> NonNull<sys::nftnl_expr> {
    let set = c_string(set);
    // SAFETY: the new expression is checked for null and filled with copies of what is passed;
    // the rule that it is added to owns it from then on.
    unsafe {
        let made = NonNull::new(sys::nftnl_expr_alloc(c"lookup".as_ptr())).expect("out of memory");
        let put = |attribute: u32, value: u32| {
            let attribute = u16::try_from(attribute).expect("a small number");
            sys::nftnl_expr_set_u32(made.as_ptr(), attribute, value);
        };
        put(sys::NFTNL_EXPR_LOOKUP_SREG, libc::NFT_REG_1 as u32);
        sys::nftnl_expr_set_str(
            made.as_ptr(),
            sys::NFTNL_EXPR_LOOKUP_SET as u16,
            set.as_ptr(),
        );
        if let Some(id) = id {
            put(sys::NFTNL_EXPR_LOOKUP_SET_ID, id);
        }
        if is_inverted {
            put(sys::NFTNL_EXPR_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32);
        }
        if is_verdict {
            put(sys::NFTNL_EXPR_LOOKUP_DREG, libc::NFT_REG_VERDICT as u32);
        }
        made
    }
}
