//! The limit: the same bytes sent to the kernel, or the same set read from it, by a program that
//! does nothing else; and the same bytes between the two syncs without which no journal is one.

use std::fs;
use std::path::Path;

use redirect::kernel::files;
use redirect::kernel::netlink::{Netlink, Payload, Protocol};
use redirect::nft::TABLE;
use redirect::observation::FileContent;

use crate::{Trouble, router};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM`, `NFPROTO_INET`, `NFTA_SET_ELEM_LIST_TABLE` and
/// `NFTA_SET_ELEM_LIST_SET` (`linux/netfilter/nf_tables.h`).
const GET_ELEMENTS: u16 = 0x0a0d;
const INET: u8 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;

/// Sends a file of netlink messages.
pub fn send(file: &Path) -> Result<(), Trouble> {
    let bytes = fs::read(file)?;
    let answer = Netlink::open(Protocol::Netfilter)?.batch(&bytes)?;
    match answer.refusals.first() {
        Some(refusal) => Err(refusal.to_string().into()),
        None if answer.acknowledged.is_empty() => Err("nothing was acknowledged".into()),
        None => Ok(()),
    }
}

/// The least that a synced journal adds: one small file is replaced before, so that it says what is
/// about to be done, and once more after, so that it says what became of it. Each time its content is
/// on the disk before its name, and its name before anything else happens.
pub fn send_journalled(file: &Path) -> Result<(), Trouble> {
    let journal = Path::new(router::STATE).join("journal.json");
    let say = |word: &str| {
        let content = FileContent {
            text: word.to_owned(),
            mode: 0o600,
        };
        files::replace(&journal, &content)
    };
    say("open")?;
    send(file)?;
    Ok(say("done")?)
}

/// Reads all elements of one of our sets, and makes nothing of them.
pub fn dump(set: &str) -> Result<(), Trouble> {
    let named = |text: &str| [text.as_bytes(), &[0]].concat();
    let about = Payload::new(&[INET, 0, 0, 0])
        .with(LIST_TABLE, &named(TABLE))
        .with(LIST_SET, &named(set));
    let mut bytes = 0;
    Netlink::open(Protocol::Netfilter)?.dump(GET_ELEMENTS, &about, |message| {
        bytes += message.payload.len();
        Ok(None::<()>)
    })?;
    if bytes == 0 {
        return Err(format!("set `{set}` is empty").into());
    }
    Ok(())
}
