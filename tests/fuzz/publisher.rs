//! What publishers send, as the listener reads it.
//!
//! It holds: the same packets come out however the stream is cut; a PUBLISH says to the listener what another reader finds in its bytes;
//! what is refused has a code, and over MQTT 5 a reason code that is an error; memory stays within a few times what has arrived.

use bytes::BytesMut;
use tidings::core::listener::{Close, Incoming};
use tidings::core::types::Protocol;
use tidings::ingest::mqtt::codec;

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, assert_readable, kind_of, run};
use crate::stream::{Read, read_however_cut};
use crate::support::wire::{self, Frame, Publish};

/// The largest packet, in bytes.
pub const MOST: usize = 32 << 10;

/// A CONNECT, with everything that one can have.
fn connect(level: u8, flags: u8, properties: &[u8], rest: &[Vec<u8>]) -> Vec<u8> {
    let properties = if level == 5 { [vec![u8::try_from(properties.len()).unwrap()], properties.to_vec()].concat() } else { Vec::new() };
    wire::packet(0x10, &[wire::text("MQTT"), vec![level, flags, 0, 60], properties, rest.concat()].concat())
}

fn publish(level: u8, flags: u8, packet_id: u16, properties: &[u8], payload: &str) -> Vec<u8> {
    let id = if flags & 6 > 0 { packet_id.to_be_bytes().to_vec() } else { Vec::new() };
    let properties = if level == 5 { [vec![u8::try_from(properties.len()).unwrap()], properties.to_vec()].concat() } else { Vec::new() };
    wire::packet(0x30 | flags, &[wire::text("acme/zuul"), id, properties, payload.as_bytes().to_vec()].concat())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = wire::text;
    let all = [
        vec![1, 1, 2, 0, 0, 0, 9, 3],
        text("application/json"),
        vec![8],
        text("reply/to"),
        vec![9, 0, 2, 1, 2, 0x23, 0, 1, 0x26],
        text("a"),
        text("b"),
        vec![0x26],
        text("a"),
        text("c"),
    ]
    .concat();
    let hello = [0x11, 0, 0, 0x0e, 0x10, 0x21, 0, 9, 0x27, 0, 1, 0, 0, 0x26, 0, 1, b'x', 0, 0];
    let end = vec![0xe0, 0];
    let of4 = [
        connect(4, 2, &[], &[text("")]),
        publish(4, 0, 0, &[], "0"),
        publish(4, 2, 1, &[], "{}"),
        publish(4, 4, 2, &[], ""),
        wire::ack(wire::PUBREL, 2, 0),
        vec![0xc0, 0],
        end.clone(),
    ];
    let of5 = [
        connect(5, 2, &hello, &[text("client")]),
        publish(5, 3, 1, &all, "{\"action\":1}"),
        publish(5, 12, 0xffff, &all, "x"),
        wire::packet(0x62, &[0xff, 0xff, 0, 0]),
        wire::packet(0x82, &[vec![0, 9, 0], text("#"), vec![2], text("a/+"), vec![0]].concat()),
        wire::packet(0xa2, &[vec![0, 9, 0], text("#")].concat()),
        wire::packet(0xe0, &[4, 5, 0x11, 0, 0, 0, 9]),
    ];
    let will = [text("id"), vec![6, 0x18, 0, 0, 0, 5, 1], vec![1], text("will/topic"), text("gone"), text("user"), text("password")];
    vec![
        of4.concat(),
        of5.concat(),
        connect(
            5,
            0xee,
            &hello,
            &[vec![0, 2, b'i', b'd', 7, 0x18, 0, 0, 0, 5, 1, 1], text("will/topic"), text("gone"), text("user"), text("password")],
        ),
        [
            connect(4, 0xf6, &[], &[text("id"), text("will/topic"), text("gone"), text("user"), text("password")]),
            publish(4, 0, 0, &[], "x"),
            end,
        ]
        .concat(),
        connect(5, 0xc6, &hello, &will),
        connect(3, 2, &[], &[text("old")]),
    ]
}

/// Reads a publisher's stream.
pub fn read(bytes: &[u8]) -> Read<Incoming, Close> {
    read_however_cut(bytes, || {
        let mut protocol: Option<Protocol> = None;
        move |arrived: &mut BytesMut| {
            let packet = codec::read(protocol, arrived, MOST)?;
            if let Some(Incoming::Connect(connect)) = &packet {
                protocol = Some(connect.protocol);
            }
            Ok(packet)
        }
    })
}

fn check(bytes: &[u8]) -> Outcome {
    let found = bounded(bytes.len(), 64, || read(bytes));
    let mut rest = bytes;
    let mut level = 0;
    for packet in &found.packets {
        let frame = Frame::read(&mut rest).unwrap().expect("there is a frame for each packet");
        match packet {
            Incoming::Connect(connect) => level = if connect.protocol == Protocol::V5 { 5 } else { 4 },
            Incoming::Publish(publish) => {
                let Publish { topic, payload, qos, retain, dup, packet_id, .. } = Publish::parse(&frame, level);
                assert_eq!((&publish.topic, &publish.payload[..], publish.qos.level()), (&topic, &payload[..], qos));
                assert_eq!((publish.retain, publish.dup, publish.packet_id), (retain, dup, packet_id));
                assert_eq!(packet_id > 0, qos > 0, "an identifier goes with QoS 1 and 2");
            }
            Incoming::PubRel { packet_id } => assert_eq!(*packet_id, frame.packet_id()),
            Incoming::Subscribe { filters, .. } | Incoming::Unsubscribe { filters, .. } => assert!(*filters > 0),
            Incoming::PingReq | Incoming::Disconnect { .. } | Incoming::Unexpected(_) => {}
        }
    }
    let end = match &found.end {
        Ok(_) => "open".to_owned(),
        Err(close) => {
            assert_readable(&close.message);
            assert!(!close.code.is_empty() && (close.reason_code == 0 || close.reason_code >= 0x80), "{close:?}");
            format!("{} {}", close.code, kind_of(&close.message))
        }
    };
    let outcome = format!("{level} {} {end}", found.packets.len().min(8));
    if found.packets.len() > 1 { Outcome::accepted(outcome) } else { Outcome::refused(outcome) }
}

#[test]
fn what_a_publisher_sends_is_the_same_however_the_stream_is_cut() {
    run("publisher", 6_000, seeds(), &Mutator { form: Form::Packets, words: &["a/b", "$SYS/x", "+", "\u{0}", "MQTT", "MQIsdp"] }, check);
}
