//! PUBLISH to bytes: what is stored goes straight into the socket's buffer, in one copy.
//!
//! ```text
//!   fixed header · Remaining Length · topic · packet id (QoS 1, 2) · properties (MQTT 5) · payload
//! ```
//! The order of the properties is the one in which they have always been written: what is sent again is the same, byte for byte.

use std::fmt::Write;

use bytes::{BufMut, BytesMut};

use super::{DecodeError, Manner, STAMP_ACCEPTED_AT, STAMP_ID, Stamp};
use crate::core::content::Content;
use crate::core::event::Properties;
use crate::core::frame::PUBLISH;
use crate::core::types::{Protocol, Qos};

/// The most that a Remaining Length can say (MQTT 5.0 §1.5.5).
const MOST: usize = 268_435_455;

/// The most that stands behind a length of two bytes (MQTT 5.0 §1.5.4).
const LONGEST: usize = u16::MAX as usize;

/// Length of a time as [`Millis::rfc3339`](crate::core::types::Millis::rfc3339) writes it.
const TIME: usize = "1970-01-01T00:00:00.000Z".len();

// Property identifiers (MQTT 5.0 §2.2.2.2).
const PAYLOAD_FORMAT: u8 = 0x01;
const MESSAGE_EXPIRY: u8 = 0x02;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
const USER_PROPERTY: u8 = 0x26;

/// Writes a PUBLISH.
///
/// # Errors
/// If MQTT has no words for it: it is too long, or packet identifier and QoS don't go together. Nothing is written then.
pub fn write_publish(protocol: Protocol, content: &Content<'_>, manner: Manner, out: &mut BytesMut) -> Result<(), DecodeError> {
    let malformed = |what: &str| DecodeError::Malformed(format!("a PUBLISH can't be written: {what}"));
    let packet_id = manner.packet_id.filter(|id| *id != 0);
    if packet_id.is_some() != (manner.qos != Qos::AtMostOnce) {
        return Err(malformed("packet identifier and QoS don't go together"));
    }
    let properties = properties_length(content.properties, manner.expiry_s.is_some(), manner.stamp);
    let remaining = remaining_length(protocol, content, manner.qos, properties);
    if remaining > MOST || !has_words(content) {
        return Err(malformed("it is longer than MQTT can say"));
    }
    out.reserve(1 + 4 + remaining);
    out.put_u8(PUBLISH << 4 | u8::from(manner.dup) << 3 | manner.qos.level() << 1 | u8::from(manner.retain));
    put_length(remaining, out);
    put_text(content.topic, out);
    if let Some(id) = packet_id {
        out.put_u16(id);
    }
    if protocol == Protocol::V5 {
        put_length(properties, out);
        put_properties(content.properties, manner, out);
    }
    out.extend_from_slice(content.payload);
    Ok(())
}

/// The size of a delivery's PUBLISH over MQTT 5, in bytes.
pub fn publish_size(content: &Content<'_>, stamp: Option<Stamp>) -> usize {
    let properties = properties_length(content.properties, content.expiry_s.is_some(), stamp);
    // With a packet identifier, also where it has none.
    let remaining = remaining_length(Protocol::V5, content, Qos::AtLeastOnce, properties);
    1 + length_length(remaining) + remaining
}

/// Whether each text and each piece of data is short enough for the length that stands before it.
fn has_words(content: &Content<'_>) -> bool {
    let stored = content.properties;
    let texts = [&stored.response_topic, &stored.content_type].into_iter().flatten();
    let texts = texts.chain(stored.user.iter().flat_map(|(name, value)| [name, value])).map(String::len);
    let data = stored.correlation_data.as_ref().map(|data| data.len());
    texts.chain(data).chain([content.topic.len()]).all(|length| length <= LONGEST)
}

fn remaining_length(protocol: Protocol, content: &Content<'_>, qos: Qos, properties: usize) -> usize {
    let packet_id = if qos == Qos::AtMostOnce { 0 } else { 2 };
    let properties = if protocol == Protocol::V5 { length_length(properties) + properties } else { 0 };
    2 + content.topic.len() + packet_id + properties + content.payload.len()
}

fn properties_length(stored: &Properties, has_expiry: bool, stamp: Option<Stamp>) -> usize {
    let text = |text: &String| 1 + 2 + text.len();
    let pair = |name: usize, value: usize| 1 + 2 + name + 2 + value;
    let pairs = stored.user.iter().map(|(name, value)| pair(name.len(), value.len())).sum::<usize>();
    let stamped = stamp.map_or(0, |stamp| pair(STAMP_ID.len(), digits(stamp.id.0)) + pair(STAMP_ACCEPTED_AT.len(), TIME));
    stored.payload_format.map_or(0, |_| 2)
        + if has_expiry { 5 } else { 0 }
        + stored.response_topic.as_ref().map_or(0, text)
        + stored.correlation_data.as_ref().map_or(0, |data| 1 + 2 + data.len())
        + pairs
        + stamped
        + stored.content_type.as_ref().map_or(0, text)
}

fn put_properties(stored: &Properties, manner: Manner, out: &mut BytesMut) {
    if let Some(format) = stored.payload_format {
        out.put_u8(PAYLOAD_FORMAT);
        out.put_u8(format);
    }
    if let Some(seconds) = manner.expiry_s {
        out.put_u8(MESSAGE_EXPIRY);
        out.put_u32(seconds);
    }
    if let Some(topic) = &stored.response_topic {
        out.put_u8(RESPONSE_TOPIC);
        put_text(topic, out);
    }
    if let Some(data) = &stored.correlation_data {
        out.put_u8(CORRELATION_DATA);
        put_bytes(data, out);
    }
    for (name, value) in &stored.user {
        out.put_u8(USER_PROPERTY);
        put_text(name, out);
        put_text(value, out);
    }
    if let Some(Stamp { id, accepted_at }) = manner.stamp {
        out.put_u8(USER_PROPERTY);
        put_text(STAMP_ID, out);
        put_short(digits(id.0), out);
        // Writing into memory does not fail.
        let _ = write!(out, "{id}");
        out.put_u8(USER_PROPERTY);
        put_text(STAMP_ACCEPTED_AT, out);
        put_text(&accepted_at.rfc3339(), out);
    }
    if let Some(kind) = &stored.content_type {
        out.put_u8(CONTENT_TYPE);
        put_text(kind, out);
    }
}

fn put_text(text: &str, out: &mut BytesMut) {
    put_bytes(text.as_bytes(), out);
}

/// With its length before it.
fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    put_short(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn put_short(length: usize, out: &mut BytesMut) {
    out.put_u16(u16::try_from(length).expect("looked at before anything was written"));
}

/// A Variable Byte Integer (MQTT 5.0 §1.5.5).
fn put_length(mut length: usize, out: &mut BytesMut) {
    while length > 0x7f {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

fn length_length(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use rumqttc::mqttbytes::v4;
    use rumqttc::v5::mqttbytes::v5;
    use rumqttc::{mqttbytes, v5::mqttbytes as mqttbytes5};

    use super::*;
    use crate::core::event::Accepted;
    use crate::core::types::{LaneKey, Millis, Seq};

    /// As rumqttc writes it.
    fn expected(protocol: Protocol, accepted: &Accepted, manner: Manner) -> BytesMut {
        let mut out = BytesMut::new();
        let level = usize::from(manner.qos.level());
        match protocol {
            Protocol::V311 => {
                let qos = [mqttbytes::QoS::AtMostOnce, mqttbytes::QoS::AtLeastOnce, mqttbytes::QoS::ExactlyOnce][level];
                let mut packet = v4::Publish::from_bytes(accepted.topic.as_str(), qos, accepted.payload.clone());
                (packet.pkid, packet.dup, packet.retain) = (manner.packet_id.unwrap_or(0), manner.dup, manner.retain);
                packet.write(&mut out).unwrap();
            }
            Protocol::V5 => {
                let stored = &accepted.properties;
                let stamped = |stamp: Stamp| {
                    [(STAMP_ID.to_owned(), stamp.id.to_string()), (STAMP_ACCEPTED_AT.to_owned(), stamp.accepted_at.rfc3339())]
                };
                let properties = v5::PublishProperties {
                    payload_format_indicator: stored.payload_format,
                    message_expiry_interval: manner.expiry_s,
                    topic_alias: None,
                    response_topic: stored.response_topic.clone(),
                    correlation_data: stored.correlation_data.clone(),
                    user_properties: stored.user.iter().cloned().chain(manner.stamp.map(stamped).into_iter().flatten()).collect(),
                    subscription_identifiers: Vec::new(),
                    content_type: stored.content_type.clone(),
                };
                let properties = (properties != v5::PublishProperties::default()).then_some(properties);
                let qos = [mqttbytes5::QoS::AtMostOnce, mqttbytes5::QoS::AtLeastOnce, mqttbytes5::QoS::ExactlyOnce][level];
                let mut packet = v5::Publish::new(accepted.topic.as_str(), qos, accepted.payload.clone(), properties);
                (packet.pkid, packet.dup, packet.retain) = (manner.packet_id.unwrap_or(0), manner.dup, manner.retain);
                packet.write(&mut out).unwrap();
            }
        }
        out
    }

    fn plain(topic: impl Into<String>, qos: Qos) -> Accepted {
        Accepted::plain(LaneKey { connection: "mqtt".into(), lane: 0 }, topic, qos, Millis(0))
    }

    proptest! {
        #[test]
        fn a_publish_is_what_another_encoder_makes_of_it(
            (topic, payload) in ("[a-z/ä]{1,40}", prop_oneof![0usize..300, 16_000usize..17_000]),
            (level, dup, retain, packet_id) in (0u64..3, any::<bool>(), any::<bool>(), 1u16..),
            expiry_s in any::<Option<u32>>(),
            stamp in prop::option::of((1u64.., any::<u64>())),
            (payload_format, content_type, response_topic) in (any::<Option<u8>>(), any::<Option<String>>(), any::<Option<String>>()),
            (correlation, user) in (any::<Option<Vec<u8>>>(), prop::collection::vec(any::<(String, String)>(), 0..4)),
        ) {
            let qos = Qos::try_from(level).unwrap();
            let correlation_data = correlation.map(Bytes::from);
            let properties = Properties { payload_format, content_type, response_topic, correlation_data, user };
            let accepted = Accepted { payload: Bytes::from(vec![7; payload]), properties, expiry_s, ..plain(topic, qos) };
            let stamp = stamp.map(|(id, at)| Stamp { id: Seq(id), accepted_at: Millis(at) });
            let packet_id = (qos != Qos::AtMostOnce).then_some(packet_id);
            let manner = Manner { packet_id, dup, qos, retain, expiry_s, stamp };
            for protocol in [Protocol::V311, Protocol::V5] {
                let mut out = BytesMut::new();
                write_publish(protocol, &Content::from(&accepted), manner, &mut out).unwrap();
                prop_assert_eq!(&out, &expected(protocol, &accepted, manner));
                if protocol == Protocol::V5 && qos != Qos::AtMostOnce {
                    prop_assert_eq!(publish_size(&Content::from(&accepted), stamp), out.len());
                }
            }
        }
    }

    #[test]
    fn what_mqtt_has_no_words_for_is_not_written() {
        let at = |qos, packet_id| Manner { packet_id, dup: false, qos, retain: false, expiry_s: None, stamp: None };
        let written = |accepted: &Accepted, manner| {
            let mut out = BytesMut::new();
            let written = write_publish(Protocol::V5, &Content::from(accepted), manner, &mut out);
            assert_eq!(written.is_err(), out.is_empty(), "nothing is written in part");
            written.is_ok()
        };
        for (qos, packet_id) in [(Qos::AtLeastOnce, None), (Qos::ExactlyOnce, Some(0)), (Qos::AtMostOnce, Some(1))] {
            assert!(!written(&plain("t", qos), at(qos, packet_id)));
        }
        let mut accepted = plain("t".repeat(LONGEST), Qos::AtMostOnce);
        assert!(written(&accepted, at(Qos::AtMostOnce, None)));
        accepted.properties.user.push(("n".into(), "v".repeat(LONGEST + 1)));
        assert!(!written(&accepted, at(Qos::AtMostOnce, None)));
    }
}
