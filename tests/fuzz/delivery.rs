//! Deliveries as bytes: whatever a publisher could hand in, written for a broker.
//!
//! It holds: another reader finds topic, payload, QoS, retain and identifier in the PUBLISH; the listener, which checks more than brokers do,
//! reads the same properties out of it that went in, and the stamp behind them; `publish_size` is its size.

use bytes::{Bytes, BytesMut};
use tidings::core::content::Content;
use tidings::core::event::{Accepted, Source};
use tidings::core::listener::{self, Incoming};
use tidings::core::topic::Topic;
use tidings::core::types::{LaneKey, Millis, Protocol, Qos, Seq};
use tidings::delivery::codec::{self, Manner, Stamp};
use tidings::ingest;

use crate::mutate::{Form, Mutator};
use crate::publisher::{read, seeds};
use crate::run::{Outcome, run};
use crate::support::wire::{Frame, Publish};

fn accepted(publish: &listener::Publish) -> Accepted {
    Accepted {
        at: Millis(u64::from(publish.packet_id) << 40),
        source: Source::Http,
        user: String::new(),
        tenant: String::new(),
        pipeline: String::new(),
        action: String::new(),
        project: String::new(),
        change: String::new(),
        lane: LaneKey { connection: "mqtt".into(), lane: 0 },
        topic: publish.topic.clone(),
        qos: publish.qos,
        retain: publish.retain,
        expiry_s: publish.expiry_s,
        properties: publish.properties.clone(),
        payload: publish.payload.clone(),
        dedupe: None,
        replay_of: None,
    }
}

fn deliver(publish: &listener::Publish, protocol: Protocol) {
    let accepted = accepted(publish);
    let stamp = (protocol == Protocol::V5 && publish.dup).then_some(Stamp { id: Seq(7), accepted_at: accepted.at });
    let packet_id = (publish.qos != Qos::AtMostOnce).then_some(publish.packet_id);
    let dup = publish.qos != Qos::AtMostOnce && publish.dup;
    let manner = Manner { packet_id, dup, qos: publish.qos, retain: publish.retain, expiry_s: publish.expiry_s, stamp };
    let mut out = BytesMut::new();
    codec::write_publish(protocol, &Content::from(&accepted), manner, &mut out).expect("it is small enough");
    let level = if protocol == Protocol::V5 { 5 } else { 4 };
    let mut stream = &out[..];
    let frame = Frame::read(&mut stream).unwrap().expect("it is a packet");
    assert!(stream.is_empty(), "it is one packet");
    if protocol == Protocol::V5 && packet_id.is_some() {
        assert_eq!(codec::publish_size(&Content::from(&accepted), stamp), out.len());
    }
    let found = Publish::parse(&frame, level);
    assert_eq!((&found.topic, Bytes::from(found.payload), found.qos), (&publish.topic, publish.payload.clone(), publish.qos.level()));
    assert_eq!((found.retain, found.dup, found.packet_id), (publish.retain, dup, packet_id.unwrap_or(0)));
    let back = ingest::mqtt::codec::read(Some(protocol), &mut out, usize::MAX).expect("the listener takes it").expect("all of it is there");
    let Incoming::Publish(back) = back else { panic!("{back:?}") };
    if protocol == Protocol::V311 {
        return assert_eq!(back.properties, Default::default());
    }
    assert_eq!(back.expiry_s, publish.expiry_s);
    let mut properties = back.properties.clone();
    let added = properties.user.split_off(publish.properties.user.len());
    assert_eq!(properties, publish.properties);
    assert_eq!(
        added.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        stamp.map_or(vec![], |_| vec![codec::STAMP_ID, codec::STAMP_ACCEPTED_AT])
    );
}

#[test]
fn a_delivery_says_to_every_reader_what_was_accepted() {
    let mutator = Mutator { form: Form::Packets, words: &["a/b", "\u{e9}\u{1f980}", "application/json"] };
    run("publish", 3_500, seeds(), &mutator, |bytes| {
        let mut delivered = 0;
        for packet in read(bytes).packets {
            // What is no topic is refused at the door.
            if let Incoming::Publish(publish) = packet
                && Topic::new(publish.topic.clone()).is_ok()
            {
                deliver(&publish, Protocol::V311);
                deliver(&publish, Protocol::V5);
                delivered += 1;
            }
        }
        if delivered > 0 { Outcome::accepted(delivered.to_string()) } else { Outcome::refused("nothing to deliver") }
    });
}
