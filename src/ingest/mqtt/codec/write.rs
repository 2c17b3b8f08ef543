//! Answers as bytes.
//!
//! An acknowledgement takes the proof that what it acknowledges is durable: an ack that isn't committed does not compile.

use bytes::{BufMut, BytesMut};

use crate::core::frame::{CONNACK, DISCONNECT, PINGRESP, PUBACK, PUBCOMP, PUBREC, SUBACK, UNSUBACK};
use crate::core::listener::{Ack, AckKind, Outgoing, Refused, code};
use crate::core::types::Protocol;
use crate::log::committer::Committed;

/// PUBCOMP: Packet Identifier not found (MQTT 5.0 §3.7.2.1).
const ID_NOT_FOUND: u8 = 0x92;

/// UNSUBACK: No subscription existed (MQTT 5.0 §3.11.3).
const NO_SUBSCRIPTION: u8 = 0x11;

/// What an MQTT 5 client is told in its CONNACK.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Receive Maximum.
    pub receive_maximum: u16,
    /// Maximum Packet Size in bytes.
    pub maximum_packet_size: u32,
    /// Topic Alias Maximum.
    pub topic_alias_maximum: u16,
}

/// Writes an acknowledgement, with the proof of what it says.
pub fn ack(protocol: Protocol, _proof: &Committed<()>, ack: Ack, out: &mut BytesMut) {
    let code = if ack.is_unknown { ID_NOT_FOUND } else { 0 };
    write_ack(protocol, ack.kind, ack.packet_id, code, out);
}

/// Writes that a PUBLISH is not taken. Needs no proof: nothing is promised.
pub fn refused(protocol: Protocol, refused: Refused, out: &mut BytesMut) {
    // Below that, it would be an acknowledgement.
    write_ack(protocol, refused.kind, refused.packet_id, refused.code.max(0x80), out);
}

fn write_ack(protocol: Protocol, kind: AckKind, packet_id: u16, code: u8, out: &mut BytesMut) {
    let kind = match kind {
        AckKind::PubAck => PUBACK,
        AckKind::PubRec => PUBREC,
        AckKind::PubComp => PUBCOMP,
    };
    let is_told = protocol == Protocol::V5 && code != 0;
    out.put_u8(kind << 4);
    out.put_u8(if is_told { 3 } else { 2 });
    out.put_u16(packet_id);
    if is_told {
        out.put_u8(code);
    }
}

/// Writes what needs nothing to be durable before.
pub fn outgoing(protocol: Protocol, packet: &Outgoing, told: Told, out: &mut BytesMut) {
    match packet {
        Outgoing::Welcome { session_present, assigned, session_expiry_s } => {
            let mut properties = BytesMut::new();
            if protocol == Protocol::V5 {
                welcome(told, assigned.as_deref(), *session_expiry_s, &mut properties);
            }
            out.put_u8(CONNACK << 4);
            write_length(2 + lengthy(protocol, properties.len()), out);
            out.put_u8(u8::from(*session_present));
            out.put_u8(0);
            write_properties(protocol, &properties, out);
        }
        Outgoing::Refusal { code } => {
            out.put_u8(CONNACK << 4);
            write_length(2 + lengthy(protocol, 0), out);
            out.put_u8(0);
            out.put_u8(if protocol == Protocol::V5 { *code } else { return_code(*code) });
            write_properties(protocol, &[], out);
        }
        Outgoing::SubAck { packet_id, filters } => {
            let code = if protocol == Protocol::V5 { code::NOT_SERVED } else { 0x80 };
            write_suback(protocol, SUBACK, *packet_id, &vec![code; *filters], out);
        }
        Outgoing::UnsubAck { packet_id, filters } => {
            let codes = if protocol == Protocol::V5 { vec![NO_SUBSCRIPTION; *filters] } else { Vec::new() };
            write_suback(protocol, UNSUBACK, *packet_id, &codes, out);
        }
        Outgoing::PingResp => {
            out.put_u8(PINGRESP << 4);
            out.put_u8(0);
        }
        // A server of 3.1.1 has no DISCONNECT.
        Outgoing::Disconnect { .. } if protocol == Protocol::V311 => {}
        Outgoing::Disconnect { code } => {
            out.put_u8(DISCONNECT << 4);
            out.put_u8(1);
            out.put_u8(*code);
        }
        Outgoing::Refused(packet) => refused(protocol, *packet, out),
    }
}

/// Writes the CONNACK for a protocol that is not spoken here, which every version understands (MQTT 3.1.1 §3.1.2.2).
pub fn unknown_protocol(out: &mut BytesMut) {
    out.extend_from_slice(&[CONNACK << 4, 2, 0, 1]);
}

fn welcome(told: Told, assigned: Option<&str>, session_expiry_s: Option<u32>, out: &mut BytesMut) {
    if let Some(expiry) = session_expiry_s {
        out.put_u8(0x11);
        out.put_u32(expiry);
    }
    out.put_u8(0x21);
    out.put_u16(told.receive_maximum);
    out.put_u8(0x27);
    out.put_u32(told.maximum_packet_size);
    out.put_u8(0x22);
    out.put_u16(told.topic_alias_maximum);
    if let Some(assigned) = assigned {
        out.put_u8(0x12);
        out.put_u16(u16::try_from(assigned.len()).expect("an assigned client id is short"));
        out.extend_from_slice(assigned.as_bytes());
    }
}

fn write_suback(protocol: Protocol, kind: u8, packet_id: u16, codes: &[u8], out: &mut BytesMut) {
    out.put_u8(kind << 4);
    write_length(2 + lengthy(protocol, 0) + codes.len(), out);
    out.put_u16(packet_id);
    write_properties(protocol, &[], out);
    out.extend_from_slice(codes);
}

/// What properties take with their length.
fn lengthy(protocol: Protocol, properties: usize) -> usize {
    match protocol {
        Protocol::V311 => 0,
        Protocol::V5 => properties + length_of_length(properties),
    }
}

fn write_properties(protocol: Protocol, properties: &[u8], out: &mut BytesMut) {
    if protocol == Protocol::V5 {
        write_length(properties.len(), out);
        out.extend_from_slice(properties);
    }
}

fn length_of_length(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// A Variable Byte Integer (MQTT 5.0 §1.5.5).
fn write_length(mut length: usize, out: &mut BytesMut) {
    loop {
        let low = u8::try_from(length & 0x7f).expect("seven bits");
        length >>= 7;
        out.put_u8(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

/// The return code of 3.1.1 for a reason code of MQTT 5 (MQTT 3.1.1 §3.2.2.3).
fn return_code(code: u8) -> u8 {
    match code {
        code::PROTOCOL_VERSION => 1,
        code::CLIENT_ID => 2,
        code::NOT_AUTHORIZED | code::AUTHENTICATION => 5,
        _ => 3,
    }
}
