//! Packets to bytes and back, with rumqttc's codec for both protocol levels.
//!
//! What that codec does not give is read from the frame itself: reason codes as numbers, and the CONNACK with which a 3.1.1 broker answers
//! a CONNECT of MQTT 5 (two bytes, which a v5 decoder takes for a broken packet).

mod publish;

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use rumqttc::{mqttbytes, v5::mqttbytes as mqttbytes5};

pub use publish::{publish_size, write_publish};

use crate::config::Secret;
use crate::core::frame::{CONNACK, DISCONNECT, Frame, FrameError, PUBACK, PUBCOMP, PUBREC};
use crate::core::session::{Ack, BrokerLimits, Incoming};
use crate::core::types::{Millis, Protocol, Qos, Seq};

/// The largest packet that is taken from a broker, in bytes: a publisher gets only acknowledgements, with a reason string at most.
const LARGEST_INCOMING: usize = 64 << 10;

/// So much is kept of what a broker says beside a code, in characters: it is stored with the delivery, and shown.
const WORDS: usize = 200;

/// Why bytes of a broker make no packet. The connection is of no use after that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no MQTT.
    #[error("the broker sent something that is not MQTT: {0}")]
    Malformed(String),
    /// A packet that a broker does not send to a publisher.
    #[error("the broker sent {0}, which a publisher does not get")]
    Unexpected(&'static str),
    /// A packet beyond the limit.
    #[error("the broker announced a packet of {0} bytes; a publisher gets at most {LARGEST_INCOMING}")]
    TooLarge(usize),
}

/// User and password for CONNECT.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Secret>,
}

/// A CONNECT.
#[derive(Debug)]
pub struct Connect<'a> {
    /// The client identifier.
    pub client_id: &'a str,
    /// Clean Start, or clean session.
    pub clean: bool,
    /// Session Expiry Interval in seconds; MQTT 5 only.
    pub session_expiry_s: u32,
    /// Keep Alive in seconds.
    pub keepalive_s: u16,
    /// User and password.
    pub credentials: &'a Credentials,
}

/// Writes a CONNECT.
pub fn write_connect(protocol: Protocol, connect: &Connect<'_>, out: &mut BytesMut) {
    let user = connect.credentials.user.clone().unwrap_or_default();
    let password = connect.credentials.password.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default();
    let has_login = connect.credentials.user.is_some();
    let written = match protocol {
        Protocol::V311 => {
            let mut packet = v4::Connect::new(connect.client_id);
            packet.keep_alive = connect.keepalive_s;
            packet.clean_session = connect.clean;
            packet.login = has_login.then(|| v4::Login::new(user, password));
            packet.write(out).map_err(|error| error.to_string())
        }
        Protocol::V5 => {
            let mut properties = v5::ConnectProperties::new();
            properties.session_expiry_interval = Some(connect.session_expiry_s);
            properties.max_packet_size = u32::try_from(LARGEST_INCOMING).ok();
            let packet = v5::Connect {
                keep_alive: connect.keepalive_s,
                client_id: connect.client_id.into(),
                clean_start: connect.clean,
                properties: Some(properties),
            };
            let login = has_login.then(|| v5::Login::new(user, password));
            packet.write(&None, &login, out).map_err(|error| error.to_string())
        }
    };
    written.expect("a CONNECT is far below the size that MQTT can encode");
}

/// The user property that says which delivery it is: the same in every repetition, so a consumer can recognise one.
pub const STAMP_ID: &str = "tidings-id";

/// The user property that says when the report was accepted (RFC 3339, UTC).
pub const STAMP_ACCEPTED_AT: &str = "tidings-accepted-at";

/// What Tidings adds to a delivery over MQTT 5, so that whoever reads it can recognise a repetition. It follows from what is stored: a
/// PUBLISH that is sent again has to be the same (brokers compare).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The delivery's id.
    pub id: Seq,
    /// When it was accepted.
    pub accepted_at: Millis,
}

/// How a delivery is put into a PUBLISH.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// None at QoS 0.
    pub packet_id: Option<u16>,
    /// It may have been sent before in this session.
    pub dup: bool,
    /// The quality of service.
    pub qos: Qos,
    /// The retain flag.
    pub retain: bool,
    /// What is left of its Message Expiry Interval in seconds, over MQTT 5.
    pub expiry_s: Option<u32>,
    /// What is added to it, over MQTT 5.
    pub stamp: Option<Stamp>,
}

/// Writes a PUBREL.
pub fn write_pubrel(protocol: Protocol, packet_id: u16, out: &mut BytesMut) {
    let written = match protocol {
        Protocol::V311 => v4::PubRel::new(packet_id).write(out).map_err(|error| error.to_string()),
        Protocol::V5 => v5::PubRel::new(packet_id, None).write(out).map_err(|error| error.to_string()),
    };
    written.expect("a PUBREL is four bytes");
}

/// Writes a PINGREQ.
pub fn write_pingreq(out: &mut BytesMut) {
    v5::PingReq::write(out).expect("a PINGREQ is two bytes");
}

/// Writes a DISCONNECT. `end_session` lets an MQTT 5 broker forget the session (MQTT 5.0 §3.14.2.2.2).
pub fn write_disconnect(protocol: Protocol, end_session: bool, out: &mut BytesMut) {
    match protocol {
        Protocol::V311 => {
            v4::Disconnect.write(out).expect("a DISCONNECT is two bytes");
        }
        Protocol::V5 => {
            let mut packet = v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection);
            packet.properties = end_session.then(|| v5::DisconnectProperties {
                session_expiry_interval: Some(0),
                reason_string: None,
                user_properties: Vec::new(),
                server_reference: None,
            });
            packet.write(out).expect("a DISCONNECT is a few bytes");
        }
    }
}

/// Takes the next packet out of what has arrived; none if there is not enough yet.
///
/// # Errors
/// If the bytes make no packet that a publisher gets.
pub fn read(protocol: Protocol, arrived: &mut BytesMut) -> Result<Option<Incoming>, DecodeError> {
    let Some(frame) = Frame::find(arrived, LARGEST_INCOMING)? else { return Ok(None) };
    if let Some(ack) = plain_ack(frame, arrived) {
        arrived.advance(frame.length);
        return Ok(Some(ack));
    }
    let code = reason_code(frame, arrived);
    if let Some(connack) = connack_3_1_1(frame, arrived) {
        arrived.advance(frame.length);
        return Ok(Some(connack));
    }
    match protocol {
        Protocol::V311 => read4(arrived, frame).map(Some),
        Protocol::V5 => read5(arrived, frame, code).map(Some),
    }
}

/// An acknowledgement that says nothing but which packet it is about, as nearly all do, in both protocols (MQTT 5.0 §3.4.2.1).
fn plain_ack(frame: Frame, bytes: &[u8]) -> Option<Incoming> {
    let &[high, low] = frame.body(bytes) else { return None };
    let ack = Ack { packet_id: u16::from_be_bytes([high, low]), code: 0, reason: None };
    match frame.kind {
        PUBACK => Some(Incoming::PubAck(ack)),
        PUBREC => Some(Incoming::PubRec(ack)),
        PUBCOMP => Some(Incoming::PubComp(ack)),
        _ => None,
    }
}

fn read4(arrived: &mut BytesMut, frame: Frame) -> Result<Incoming, DecodeError> {
    let ack = |packet_id| Ack { packet_id, code: 0, reason: None };
    // The codec reads from the buffer until it has a frame; it must not run into the next one.
    let mut bytes = arrived.split_to(frame.length);
    let packet = v4::Packet::read(&mut bytes, LARGEST_INCOMING).map_err(malformed4)?;
    match packet {
        v4::Packet::PubAck(packet) => Ok(Incoming::PubAck(ack(packet.pkid))),
        v4::Packet::PubRec(packet) => Ok(Incoming::PubRec(ack(packet.pkid))),
        v4::Packet::PubComp(packet) => Ok(Incoming::PubComp(ack(packet.pkid))),
        v4::Packet::PingResp => Ok(Incoming::PingResp),
        _ => Err(DecodeError::Unexpected(frame.name())),
    }
}

fn read5(arrived: &mut BytesMut, frame: Frame, code: u8) -> Result<Incoming, DecodeError> {
    let mut bytes = arrived.split_to(frame.length);
    if frame.kind == DISCONNECT && frame.length == 2 {
        // Reason code 0x00 may be left out (MQTT 5.0 §3.14.2.1).
        return Ok(Incoming::Disconnect { code: 0, reason: None });
    }
    let whole = bytes.clone();
    let packet = match v5::Packet::read(&mut bytes, u32::try_from(LARGEST_INCOMING).ok()) {
        Err(mqttbytes5::Error::InvalidReason(_) | mqttbytes5::Error::InvalidConnectReturnCode(_)) if code >= 0x80 => {
            return refusal_of_another_kind(frame, &whole, code).ok_or(DecodeError::Unexpected(frame.name()));
        }
        Err(error) => return Err(malformed5(error)),
        Ok(packet) => packet,
    };
    match packet {
        v5::Packet::ConnAck(packet) => {
            let properties = packet.properties.as_ref();
            let limits = BrokerLimits {
                receive_maximum: properties.and_then(|known| known.receive_max),
                maximum_packet_size: properties.and_then(|known| known.max_packet_size),
                keepalive_s: properties.and_then(|known| known.server_keep_alive),
                maximum_qos: properties.and_then(|known| known.max_qos).and_then(|level| Qos::try_from(u64::from(level)).ok()),
                retain_available: properties.and_then(|known| known.retain_available).map(|available| available != 0),
            };
            let reason = properties.and_then(|known| words(known.reason_string.as_deref(), known.server_reference.as_deref()));
            let assigned_client_id = properties.and_then(|known| known.assigned_client_identifier.clone());
            Ok(Incoming::ConnAck { session_present: packet.session_present, code, limits, reason, assigned_client_id })
        }
        v5::Packet::PubAck(packet) => {
            let reason = packet.properties.and_then(|known| words(known.reason_string.as_deref(), None));
            Ok(Incoming::PubAck(Ack { packet_id: packet.pkid, code, reason }))
        }
        v5::Packet::PubRec(packet) => {
            let reason = packet.properties.and_then(|known| words(known.reason_string.as_deref(), None));
            Ok(Incoming::PubRec(Ack { packet_id: packet.pkid, code, reason }))
        }
        v5::Packet::PubComp(packet) => {
            let reason = packet.properties.and_then(|known| words(known.reason_string.as_deref(), None));
            Ok(Incoming::PubComp(Ack { packet_id: packet.pkid, code, reason }))
        }
        v5::Packet::PingResp(_) => Ok(Incoming::PingResp),
        v5::Packet::Disconnect(packet) => {
            let reason = packet.properties.and_then(|known| words(known.reason_string.as_deref(), known.server_reference.as_deref()));
            Ok(Incoming::Disconnect { code, reason })
        }
        _ => Err(DecodeError::Unexpected(frame.name())),
    }
}

/// A refusal with a reason code that the standard doesn't know in this place, and the codec doesn't take: mosquitto answers 0x95 beyond its
/// `message_size_limit`. It is about one report all the same. What the broker says beside the code is not looked at.
fn refusal_of_another_kind(frame: Frame, bytes: &[u8], code: u8) -> Option<Incoming> {
    let &[high, low, ..] = frame.body(bytes) else { return None };
    let ack = Ack { packet_id: u16::from_be_bytes([high, low]), code, reason: None };
    match frame.kind {
        PUBACK => Some(Incoming::PubAck(ack)),
        PUBREC => Some(Incoming::PubRec(ack)),
        _ => None,
    }
}

/// The broker's words: Reason String and Server Reference (MQTT 5.0 §3.2.2.3.9, §3.2.2.3.16). Which server to use is the operator's to decide,
/// so the reference is told and not followed.
fn words(reason: Option<&str>, server_reference: Option<&str>) -> Option<String> {
    let referred = server_reference.map(|server| format!("it refers to the server {}", short(server)));
    let words: Vec<String> = reason.map(short).into_iter().chain(referred).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// The beginning of what a broker says, in one line.
fn short(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let more = text.chars().nth(WORDS).map(|_| '…');
    text.chars().take(WORDS).map(plain).chain(more).collect()
}

fn malformed4(error: mqttbytes::Error) -> DecodeError {
    DecodeError::Malformed(error.to_string())
}

fn malformed5(error: mqttbytes5::Error) -> DecodeError {
    DecodeError::Malformed(error.to_string())
}

impl From<FrameError> for DecodeError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLarge(bytes) => DecodeError::TooLarge(bytes),
            FrameError::Length => DecodeError::Malformed(error.to_string()),
        }
    }
}

/// The reason code of an MQTT 5 packet; 0 (success) where it may be left out, and is.
fn reason_code(frame: Frame, bytes: &[u8]) -> u8 {
    let at = match frame.kind {
        CONNACK => 1,
        DISCONNECT => 0,
        _ => 2,
    };
    frame.body(bytes).get(at).copied().unwrap_or(0)
}

/// A CONNACK without properties: of a 3.1.1 broker, with its return code as the reason code of MQTT 5 that means the same.
fn connack_3_1_1(frame: Frame, bytes: &[u8]) -> Option<Incoming> {
    let &[flags, returned] = frame.body(bytes) else { return None };
    if frame.kind != CONNACK {
        return None;
    }
    let code = match returned {
        // MQTT 3.1.1 §3.2.2.3
        1 => 0x84,
        2 => 0x85,
        3 => 0x88,
        4 => 0x86,
        5 => 0x87,
        other => other,
    };
    Some(Incoming::ConnAck {
        session_present: flags & 1 == 1,
        code,
        limits: BrokerLimits::default(),
        reason: None,
        assigned_client_id: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(protocol: Protocol, bytes: &[u8]) -> Result<Option<Incoming>, DecodeError> {
        read(protocol, &mut BytesMut::from(bytes))
    }

    #[test]
    fn a_3_1_1_broker_that_is_asked_for_mqtt_5_is_understood() {
        let Ok(Some(Incoming::ConnAck { code, session_present, .. })) = decode(Protocol::V5, &[0x20, 2, 0, 1]) else {
            panic!("no CONNACK")
        };
        assert_eq!((code, session_present), (0x84, false));
    }

    #[test]
    fn a_connack_of_mqtt_5_tells_the_brokers_limits() {
        // Receive Maximum 20 (0x21), Maximum Packet Size 1000 (0x27), Server Keep Alive 30 (0x13), Maximum QoS 1 (0x24), Retain Available 0 (0x25)
        let bytes = [0x20, 18, 1, 0, 15, 0x21, 0, 20, 0x27, 0, 0, 3, 0xe8, 0x13, 0, 30, 0x24, 1, 0x25, 0];
        let Ok(Some(Incoming::ConnAck { session_present: true, code: 0, limits, .. })) = decode(Protocol::V5, &bytes) else {
            panic!("no CONNACK")
        };
        let expected = BrokerLimits {
            receive_maximum: Some(20),
            maximum_packet_size: Some(1_000),
            keepalive_s: Some(30),
            maximum_qos: Some(Qos::AtLeastOnce),
            retain_available: Some(false),
        };
        assert_eq!(limits, expected);
    }

    #[test]
    fn reason_codes_of_acknowledgements_are_read_as_numbers() {
        let refused = Ack { packet_id: 7, code: 0x87, reason: None };
        assert_eq!(decode(Protocol::V5, &[0x40, 3, 0, 7, 0x87]), Ok(Some(Incoming::PubAck(refused))));
        let accepted = Ack { packet_id: 7, code: 0, reason: None };
        assert_eq!(decode(Protocol::V5, &[0x50, 2, 0, 7]), Ok(Some(Incoming::PubRec(accepted))));
        let unknown = Ack { packet_id: 7, code: 0x92, reason: None };
        assert_eq!(decode(Protocol::V5, &[0x70, 3, 0, 7, 0x92]), Ok(Some(Incoming::PubComp(unknown))));
    }

    #[test]
    fn a_refusal_with_a_code_of_another_packet_is_a_refusal_and_a_success_with_one_is_broken() {
        for code in [0x95, 0x9b, 0xef] {
            let refused = Ack { packet_id: 7, code, reason: None };
            assert_eq!(decode(Protocol::V5, &[0x40, 3, 0, 7, code]), Ok(Some(Incoming::PubAck(refused.clone()))));
            assert_eq!(decode(Protocol::V5, &[0x50, 4, 0, 7, code, 0]), Ok(Some(Incoming::PubRec(refused))));
            assert!(decode(Protocol::V5, &[0x70, 3, 0, 7, code]).is_err(), "a PUBCOMP can't refuse");
        }
        assert!(decode(Protocol::V5, &[0x40, 3, 0, 7, 0x11]).is_err());
    }

    #[test]
    fn of_a_brokers_words_the_beginning_is_kept_in_one_line() {
        let refusal = |reason: &str| {
            let length = u16::try_from(reason.len()).unwrap().to_be_bytes();
            let property = [&[0x1f][..], &length, reason.as_bytes()].concat();
            let variable = |number: usize| [u8::try_from(number % 128).unwrap() | 0x80, u8::try_from(number / 128).unwrap()];
            let body = [&[0, 7, 0x87][..], &variable(property.len()), &property].concat();
            let bytes = [&[0x40][..], &variable(body.len()), &body].concat();
            match decode(Protocol::V5, &bytes) {
                Ok(Some(Incoming::PubAck(Ack { packet_id: 7, code: 0x87, reason }))) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refusal("no\u{1b}[2J\nmore").as_deref(), Some("no [2J more"));
        assert_eq!(refusal(&"é".repeat(5_000)), Some("é".repeat(WORDS) + "…"));
    }

    #[test]
    fn two_packets_in_one_read_come_out_one_by_one() {
        for protocol in [Protocol::V5, Protocol::V311] {
            let mut arrived = BytesMut::from(&[0x40, 2, 0, 1, 0x40, 2, 0, 2, 0x40][..]);
            for packet_id in [1, 2] {
                let ack = Ack { packet_id, code: 0, reason: None };
                assert_eq!(read(protocol, &mut arrived), Ok(Some(Incoming::PubAck(ack))));
            }
            assert_eq!(read(protocol, &mut arrived), Ok(None));
            assert_eq!(arrived.len(), 1);
        }
    }

    #[test]
    fn a_packet_beyond_the_limit_is_refused_before_it_has_arrived() {
        assert_eq!(decode(Protocol::V5, &[0x40, 0xff, 0xff, 0x7f]), Err(DecodeError::TooLarge(0x1f_ffff)));
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_broker_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), is_5: bool) {
            let protocol = if is_5 { Protocol::V5 } else { Protocol::V311 };
            let mut arrived = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = read(protocol, &mut arrived) {}
        }

        #[test]
        fn broken_acknowledgements_never_make_the_decoder_panic(kind in 2u8..15, body in prop::collection::vec(any::<u8>(), 0..24), is_5: bool) {
            let protocol = if is_5 { Protocol::V5 } else { Protocol::V311 };
            let mut bytes = vec![kind << 4, u8::try_from(body.len()).unwrap()];
            bytes.extend(body);
            let mut arrived = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = read(protocol, &mut arrived) {}
        }
    }
}
