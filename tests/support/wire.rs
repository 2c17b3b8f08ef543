//! MQTT as bytes: as little of it as tests need, written from the standards (OASIS MQTT 3.1.1 and 5.0), so that a fault in the service's
//! codec is not in the tests too.

use std::io::{self, Read};

pub const CONNECT: u8 = 1;
pub const CONNACK: u8 = 2;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
pub const PUBREC: u8 = 5;
pub const PUBREL: u8 = 6;
pub const PUBCOMP: u8 = 7;
pub const SUBSCRIBE: u8 = 8;
pub const SUBACK: u8 = 9;
pub const PINGREQ: u8 = 12;
pub const PINGRESP: u8 = 13;
pub const DISCONNECT: u8 = 14;

/// A packet: its first byte, and what follows the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub body: Vec<u8>,
    /// Its whole length on the wire.
    pub size: usize,
}

impl Frame {
    /// Reads the next packet; none at the end of the stream.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        let first = byte[0];
        let (mut length, mut shift, mut header) = (0_usize, 0, 1);
        loop {
            stream.read_exact(&mut byte)?;
            header += 1;
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
            assert!(shift < 28, "a Remaining Length has at most four bytes");
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Ok(Some(Frame { first, body, size: header + length }))
    }

    pub fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The packet identifier of an acknowledgement or a PUBREL.
    pub fn packet_id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }
}

/// A packet as bytes.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length % 128).unwrap();
        length /= 128;
        bytes.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. A reason code is written only if it is not success.
pub fn ack(kind: u8, packet_id: u16, code: u8) -> Vec<u8> {
    let flags = if kind == PUBREL { 2 } else { 0 };
    let mut body = packet_id.to_be_bytes().to_vec();
    if code != 0 {
        body.push(code);
    }
    packet(kind << 4 | flags, &body)
}

/// A text with its length before it.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Takes bytes apart, from the front.
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub fn text(&mut self) -> String {
        let length = usize::from(self.u16());
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    /// The properties of an MQTT 5 packet, as they stand.
    pub fn properties(&mut self) -> &'a [u8] {
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.u8();
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return self.take(length);
            }
        }
    }
}

/// A PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    /// 0 at QoS 0.
    pub packet_id: u16,
    /// The properties of MQTT 5, as they stand.
    pub properties: Vec<u8>,
    /// Its whole length on the wire.
    pub size: usize,
}

impl Publish {
    /// Reads it from its frame; `level` is the protocol level of the connection.
    pub fn parse(frame: &Frame, level: u8) -> Publish {
        let mut rest = Cursor(&frame.body);
        let qos = frame.first >> 1 & 3;
        let topic = rest.text();
        let packet_id = if qos > 0 { rest.u16() } else { 0 };
        let properties = if level == 5 { rest.properties().to_vec() } else { Vec::new() };
        let (retain, dup) = (frame.first & 1 == 1, frame.first & 8 == 8);
        Publish { topic, payload: rest.0.to_vec(), qos, retain, dup, packet_id, properties, size: frame.size }
    }
}

/// A CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// 4 is MQTT 3.1.1.
    pub level: u8,
    pub clean: bool,
    pub keepalive_s: u16,
    pub client_id: String,
    /// The broker is to forget the session when the connection ends.
    pub ends_with_connection: bool,
}

impl Connect {
    pub fn parse(frame: &Frame) -> Connect {
        let mut rest = Cursor(&frame.body);
        assert_eq!(rest.text(), "MQTT");
        let level = rest.u8();
        let clean = rest.u8() & 2 == 2;
        let keepalive_s = rest.u16();
        // On 3.1.1 a clean session ends with its connection. On MQTT 5 all do that have no Session Expiry Interval (0x11), or one of 0.
        let ends_with_connection = match level {
            5 => {
                let properties = rest.properties();
                !properties.windows(5).any(|property| property[0] == 0x11 && property[1..] != [0; 4])
            }
            _ => clean,
        };
        Connect { level, clean, keepalive_s, client_id: rest.text(), ends_with_connection }
    }
}
