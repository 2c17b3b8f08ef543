//! What brokers answer, as the lanes read it.
//!
//! It holds: the same packets come out however the stream is cut; an acknowledgement has the identifier and the reason code that stand in its
//! bytes; nothing that a publisher doesn't get passes; memory stays within what one packet may have.

use tidings::core::session::{Ack, Incoming};
use tidings::core::types::Protocol;
use tidings::delivery::codec;

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, kind_of, run};
use crate::stream::read_however_cut;
use crate::support::wire::{self, Frame};

fn seeds() -> Vec<Vec<u8>> {
    let text = wire::text;
    let connack5 = [
        vec![0x21, 0, 20, 0x27, 0, 1, 0, 0, 0x24, 1, 0x25, 0, 0x13, 0, 30, 0x12],
        text("assigned"),
        vec![0x1f],
        text("words"),
        vec![0x1c],
        text("other:1883"),
    ]
    .concat();
    let reason = [vec![0x1f], text("no space"), vec![0x26], text("a"), text("b")].concat();
    let with = |head: &[u8], properties: &[u8]| [head, &[u8::try_from(properties.len()).unwrap()], properties].concat();
    let acks: Vec<u8> = [wire::PUBACK, wire::PUBREC, wire::PUBCOMP]
        .into_iter()
        .flat_map(|kind| [wire::ack(kind, 1, 0), wire::ack(kind, 0x1234, 0x97)].concat())
        .collect();
    vec![
        [
            wire::packet(0x20, &[0, 0]),
            wire::ack(wire::PUBACK, 1, 0),
            wire::ack(wire::PUBREC, 2, 0),
            wire::ack(wire::PUBCOMP, 2, 0),
            vec![0xd0, 0],
        ]
        .concat(),
        [wire::packet(0x20, &[1, 5])].concat(),
        [wire::packet(0x20, &with(&[1, 0], &connack5)), acks, wire::packet(0xe0, &[0x8b])].concat(),
        [
            wire::packet(0x20, &with(&[0, 0x97], &reason)),
            wire::packet(0x40, &with(&[0, 7, 0x91], &reason)),
            wire::packet(0x50, &with(&[0xff, 0xff, 0x10], &reason)),
            wire::packet(0x70, &[0, 9, 0x92, 0]),
        ]
        .concat(),
        [wire::packet(0xe0, &with(&[0x9c], &reason)), vec![0xe0, 0], vec![0xd0, 0]].concat(),
        [wire::packet(0x30, b"\0\x01tpayload"), wire::packet(0x90, &[0, 1, 2]), wire::packet(0xf0, &[0x18, 0])].concat(),
    ]
}

fn check(bytes: &[u8]) -> Outcome {
    let mut outcomes = Vec::new();
    let mut is_clean = false;
    for protocol in [Protocol::V311, Protocol::V5] {
        let read = bounded(bytes.len(), 64, || read_however_cut(bytes, || |arrived: &mut bytes::BytesMut| codec::read(protocol, arrived)));
        let mut rest = bytes;
        for packet in &read.packets {
            let frame = Frame::read(&mut rest).unwrap().expect("there is a frame for each packet");
            agree(protocol, packet, &frame);
        }
        if let Err(error) = &read.end {
            assert!(error.to_string().len() < 1_000, "{error}");
        }
        is_clean |= !read.packets.is_empty();
        outcomes.push(format!(
            "{} {}",
            read.packets.len().min(4),
            read.end.map_or_else(|error| kind_of(&error.to_string()), |_| "open".to_owned())
        ));
    }
    let outcome = outcomes.join(", ");
    if is_clean { Outcome::accepted(outcome) } else { Outcome::refused(outcome) }
}

/// The packet says what stands in the frame.
fn agree(protocol: Protocol, packet: &Incoming, frame: &Frame) {
    let (kind, ack) = match packet {
        Incoming::ConnAck { session_present, .. } => {
            assert_eq!((frame.kind(), *session_present), (wire::CONNACK, frame.body[0] & 1 == 1));
            return;
        }
        Incoming::PubAck(ack) => (wire::PUBACK, ack),
        Incoming::PubRec(ack) => (wire::PUBREC, ack),
        Incoming::PubComp(ack) => (wire::PUBCOMP, ack),
        Incoming::PingResp => return assert_eq!(frame.kind(), wire::PINGRESP),
        Incoming::Disconnect { code, .. } => {
            assert_eq!((frame.kind(), *code), (wire::DISCONNECT, frame.body.first().copied().unwrap_or(0)));
            return;
        }
    };
    let Ack { packet_id, code, .. } = ack;
    let said = if protocol == Protocol::V5 { frame.body.get(2).copied().unwrap_or(0) } else { 0 };
    assert_eq!((frame.kind(), frame.packet_id(), said), (kind, *packet_id, *code), "{packet:?} {frame:?}");
}

#[test]
fn what_a_broker_answers_is_the_same_however_the_stream_is_cut() {
    run("broker", 8_000, seeds(), &Mutator { form: Form::Packets, words: &[] }, check);
}
