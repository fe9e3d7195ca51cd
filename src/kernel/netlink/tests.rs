//! Messages as bytes, and the kernel's own answers.

use super::super::FailureKind;
use super::*;

/// What the kernel answers to `ip route add default via 192.0.2.1 dev lo`, with
/// capped and extended acknowledgements on.
fn refusal_bytes() -> Vec<u8> {
    let text = b"Nexthop has invalid gateway\0";
    let mut note = Payload::default();
    note.push(ERROR_TEXT, text);
    note.push(ERROR_OFFSET, &36u32.to_ne_bytes());
    let mut bytes = (-101i32).to_ne_bytes().to_vec();
    bytes.extend(
        Payload::new(&[0; 12])
            .message(24, 5, 7)
            .unwrap()
            .get(..16)
            .unwrap(),
    );
    bytes.extend(note.as_bytes());
    Payload::new(&bytes)
        .message(flag(libc::NLMSG_ERROR), CAPPED | ACK_TLVS, 7)
        .unwrap()
}

#[test]
fn a_refusal_says_what_the_kernel_said() {
    let bytes = refusal_bytes();
    let message = messages(&bytes).next().unwrap().unwrap();
    let refusal = message.verdict().unwrap().unwrap().unwrap_err();
    assert_eq!(refusal.errno, Errno::ENETUNREACH);
    assert_eq!(refusal.offset, Some(36));
    assert_eq!(refusal.sequence, 7);
    assert_eq!(
        refusal.to_string(),
        "Nexthop has invalid gateway (Network is unreachable)"
    );
}

#[test]
fn an_uncapped_refusal_is_read_past_the_request() {
    let request = Payload::new(&[9; 12])
        .with(1, &[1, 2, 3])
        .message(24, 5, 7)
        .unwrap();
    let mut bytes = (-22i32).to_ne_bytes().to_vec();
    bytes.extend(&request);
    bytes.extend(Payload::default().with(ERROR_TEXT, b"no\0").as_bytes());
    let bytes = Payload::new(&bytes).message(2, ACK_TLVS, 7).unwrap();
    let message = messages(&bytes).next().unwrap().unwrap();
    let refusal = message.verdict().unwrap().unwrap().unwrap_err();
    assert_eq!(refusal.text.as_deref(), Some("no"));
}

#[test]
fn what_is_written_is_read_back() {
    let payload = Payload::new(&[1, 2, 3, 4])
        .with(5, b"abc")
        .with(0x8006, b"");
    let bytes = payload.message(24, 5, 9).unwrap();
    let message = messages(&bytes).next().unwrap().unwrap();
    assert_eq!((message.kind, message.flags, message.sequence), (24, 5, 9));
    let (fixed, rest) = message.payload.split_at(4);
    assert_eq!(fixed, [1, 2, 3, 4]);
    let found: Vec<_> = attributes(rest).map(Result::unwrap).collect();
    assert_eq!(found[0].value, b"abc");
    assert_eq!((found[1].kind, found[1].flags), (6, 0x8000));
    assert_eq!(found.len(), 2);
}

#[test]
fn an_attribute_too_long_is_not_cut() {
    let payload = Payload::default().with(1, &vec![0; 70_000]);
    assert!(payload.message(1, 0, 1).is_err());
}

#[test]
fn sequence_numbers_start_over_before_they_overflow() {
    let mut socket = Netlink::open(Protocol::Route).unwrap();
    assert_eq!(socket.reserve_sequences(3), 1);
    assert_eq!(socket.reserve_sequences(1), 4);
    socket.sequence = u32::MAX - 1;
    assert_eq!(socket.reserve_sequences(1), u32::MAX);
    assert_eq!(socket.reserve_sequences(2), 1);
    assert_eq!(socket.reserve_sequences(1), 3);
}

/// Whatever the bytes, reading them ends, and without a panic.
#[test]
fn no_bytes_cause_a_panic() {
    let seed = refusal_bytes();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    let mut refused = 0;
    for _ in 0..200_000 {
        let mut bytes = seed.clone();
        for _ in 0..=random() % 4 {
            let at = random() % bytes.len();
            bytes[at] = u8::try_from(random() % 256).unwrap();
        }
        bytes.truncate(1 + random() % bytes.len());
        for message in messages(&bytes).flatten() {
            if let Ok(Some(Err(_))) = message.verdict() {
                refused += 1;
            }
            for attribute in attributes(message.payload).flatten() {
                let _ = (
                    attribute.text(),
                    attribute.u32(),
                    attribute.nested().count(),
                );
            }
        }
        let _ = attributes(&bytes).count();
    }
    assert!(
        refused > 1000,
        "the mutations should leave some intact: {refused}"
    );
}

#[test]
fn the_kernel_answers() {
    let mut socket = Netlink::open(Protocol::Route).unwrap();
    // ip link
    let mut request = Payload::new(&[0; 16]);
    let links = socket
        .dump(libc::RTM_GETLINK, &request, |message| {
            Ok(Some(message.kind))
        })
        .unwrap();
    assert!(!links.is_empty());
    assert!(links.iter().all(|kind| *kind == libc::RTM_NEWLINK));
    // ip link show dev <an index that no link has>
    request = Payload::new(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]);
    let error = socket
        .ask::<()>(libc::RTM_GETLINK, 0, &request, |_| Ok(None))
        .unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENODEV));
    // And the socket is as good as before.
    request = Payload::new(&[0; 16]);
    let again = socket
        .dump(libc::RTM_GETLINK, &request, |_| Ok(Some(())))
        .unwrap();
    assert_eq!(again.len(), links.len());
}

#[test]
fn a_datagram_longer_than_the_buffer_is_read_whole() {
    let mut socket = Netlink::open(Protocol::Route).unwrap();
    socket.buffer = Vec::with_capacity(64);
    let request = Payload::new(&[0; 16]);
    let lengths = socket
        .dump(libc::RTM_GETLINK, &request, |message| {
            Ok(Some(message.payload.len()))
        })
        .unwrap();
    assert!(lengths.iter().all(|length| *length > 64), "{lengths:?}");
}

#[test]
fn every_message_of_a_batch_is_answered() {
    let mut socket = Netlink::open(Protocol::Route).unwrap();
    let flags = flag(libc::NLM_F_REQUEST | libc::NLM_F_ACK);
    let nobody = Payload::new(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]);
    let count = 20_000;
    let first = socket.reserve_sequences(count);
    let mut bytes = Vec::new();
    for sequence in first..first + count {
        bytes.extend(nobody.message(libc::RTM_GETLINK, flags, sequence).unwrap());
    }
    let answer = socket.batch(&bytes).unwrap();
    assert!(!answer.overrun);
    let refused: Vec<u32> = answer.refusals.iter().map(|no| no.sequence).collect();
    assert_eq!(refused, (first..first + count).collect::<Vec<_>>());
}

#[test]
fn a_lost_permission_is_said_so() {
    let refusal = Refusal {
        errno: Errno::EPERM,
        text: None,
        offset: None,
        sequence: 1,
    };
    let error = NetlinkError::Refused(refusal).during("cannot add the routing rule");
    assert_eq!(error.kind, FailureKind::NotPermitted);
    assert_eq!(
        error.to_string(),
        "cannot add the routing rule: Operation not permitted"
    );
}
