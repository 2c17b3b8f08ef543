//! What rumqttc's codec does not check, read from the frame: reserved flags, lengths that don't add up, properties given twice, rubbish behind
//! a packet. What has passed here can be decoded, and says the same to every reader.

use crate::core::frame::{self, Frame};
use crate::core::listener::{Close, code};
use crate::core::types::Protocol;

/// Property identifiers and how their values are stored (MQTT 5.0 §2.2.2.2).
const PROPERTIES: [(u8, Kind); 27] = [
    (1, Kind::Bytes(1)),
    (2, Kind::Bytes(4)),
    (3, Kind::Text),
    (8, Kind::Text),
    (9, Kind::Text),
    (11, Kind::Number),
    (17, Kind::Bytes(4)),
    (18, Kind::Text),
    (19, Kind::Bytes(2)),
    (21, Kind::Text),
    (22, Kind::Text),
    (23, Kind::Bytes(1)),
    (24, Kind::Bytes(4)),
    (25, Kind::Bytes(1)),
    (26, Kind::Text),
    (28, Kind::Text),
    (31, Kind::Text),
    (33, Kind::Bytes(2)),
    (34, Kind::Bytes(2)),
    (35, Kind::Bytes(2)),
    (36, Kind::Bytes(1)),
    (37, Kind::Bytes(1)),
    (USER_PROPERTY, Kind::Pair),
    (39, Kind::Bytes(4)),
    (40, Kind::Bytes(1)),
    (41, Kind::Bytes(1)),
    (42, Kind::Bytes(1)),
];

/// The one that may be given more than once.
const USER_PROPERTY: u8 = 38;

/// Session Expiry Interval.
const SESSION_EXPIRY: u8 = 17;

#[derive(Clone, Copy)]
enum Kind {
    Bytes(usize),
    /// Text or binary data: two bytes of length before it.
    Text,
    Pair,
    /// A Variable Byte Integer.
    Number,
}

/// The flags that each type of packet has to have (MQTT 5.0 §2.1.3).
///
/// # Errors
/// If they are others.
pub fn check_flags(frame: Frame) -> Result<(), Close> {
    let wanted = match frame.kind {
        frame::PUBLISH => return Ok(()),
        frame::PUBREL | frame::SUBSCRIBE | frame::UNSUBSCRIBE => 2,
        _ => 0,
    };
    match frame.flags == wanted {
        true => Ok(()),
        false => Err(Close::malformed(format!("{} has the reserved flags {:#06b}", frame.name(), frame.flags))),
    }
}

/// A CONNECT: which protocol it speaks.
///
/// # Errors
/// If its parts don't add up, or the protocol is none that is spoken here.
pub fn connect(body: &[u8]) -> Result<Protocol, Close> {
    let mut rest = Cursor(body);
    let name = rest.text()?;
    let level = rest.byte()?;
    let protocol = match (name, level) {
        (b"MQTT", 4) => Protocol::V311,
        (b"MQTT", 5) => Protocol::V5,
        (b"MQTT" | b"MQIsdp", _) => {
            let message = format!("it speaks level {level} of MQTT; 4 (3.1.1) and 5 are spoken here");
            return Err(Close::new("protocol_version", code::PROTOCOL_VERSION, message));
        }
        _ => return Err(Close::malformed("CONNECT names another protocol than MQTT")),
    };
    let flags = rest.byte()?;
    let (has_user, has_password, has_will) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 0x04 != 0);
    if flags & 1 != 0 {
        // MQTT 5.0 §3.1.2.3
        return Err(Close::malformed("CONNECT has its reserved flag set"));
    }
    if has_password && !has_user && protocol == Protocol::V311 {
        // MQTT 3.1.1 §3.1.2.9
        return Err(Close::malformed("CONNECT has a password and no user"));
    }
    rest.take(2)?;
    if protocol == Protocol::V5 {
        rest.properties()?;
    }
    rest.text()?;
    if has_will {
        if protocol == Protocol::V5 {
            rest.properties()?;
        }
        rest.text()?;
        rest.text()?;
    }
    for _ in 0..usize::from(has_user) + usize::from(has_password) {
        rest.text()?;
    }
    empty(rest.0)?;
    Ok(protocol)
}

/// A PUBLISH.
///
/// # Errors
/// If its parts don't add up.
pub fn publish(protocol: Protocol, frame: Frame, body: &[u8]) -> Result<(), Close> {
    let qos = frame.flags >> 1 & 3;
    if qos == 3 {
        return Err(Close::malformed("a PUBLISH has QoS 3"));
    }
    if qos == 0 && frame.flags & 8 != 0 {
        // MQTT 5.0 §3.3.1.1
        return Err(Close::malformed("a PUBLISH of QoS 0 has DUP set"));
    }
    let mut rest = Cursor(body);
    rest.text()?;
    if qos > 0 {
        rest.packet_id()?;
    }
    if protocol == Protocol::V5 {
        rest.properties()?;
    }
    Ok(())
}

/// A PUBREL: its packet identifier.
///
/// # Errors
/// If its parts don't add up.
pub fn pubrel(protocol: Protocol, body: &[u8]) -> Result<u16, Close> {
    let mut rest = Cursor(body);
    let packet_id = rest.packet_id()?;
    if protocol == Protocol::V5 && !rest.0.is_empty() {
        rest.byte()?;
        if !rest.0.is_empty() {
            rest.properties()?;
        }
    }
    empty(rest.0)?;
    Ok(packet_id)
}

/// A SUBSCRIBE: its packet identifier, and how many filters it has.
///
/// # Errors
/// If its parts don't add up.
pub fn subscribe(protocol: Protocol, body: &[u8]) -> Result<(u16, usize), Close> {
    filters(protocol, body, true)
}

/// An UNSUBSCRIBE: its packet identifier, and how many filters it has.
///
/// # Errors
/// If its parts don't add up.
pub fn unsubscribe(protocol: Protocol, body: &[u8]) -> Result<(u16, usize), Close> {
    filters(protocol, body, false)
}

fn filters(protocol: Protocol, body: &[u8], have_options: bool) -> Result<(u16, usize), Close> {
    let mut rest = Cursor(body);
    let packet_id = rest.packet_id()?;
    if protocol == Protocol::V5 {
        rest.properties()?;
    }
    let mut count = 0;
    while !rest.0.is_empty() {
        rest.text()?;
        if have_options && rest.byte()? & 3 == 3 {
            return Err(Close::malformed("a subscription has QoS 3"));
        }
        count += 1;
    }
    match count {
        0 => Err(Close::protocol("a subscription has no filter")),
        _ => Ok((packet_id, count)),
    }
}

/// A DISCONNECT: its reason code, and its session expiry if it has one.
///
/// # Errors
/// If its parts don't add up.
pub fn disconnect(protocol: Protocol, body: &[u8]) -> Result<(u8, Option<u32>), Close> {
    if protocol == Protocol::V311 || body.is_empty() {
        return empty(body).map(|()| (0, None));
    }
    let mut rest = Cursor(body);
    let reason = rest.byte()?;
    let expiry = if rest.0.is_empty() { None } else { rest.properties()? };
    empty(rest.0)?;
    Ok((reason, expiry))
}

/// There is nothing more.
///
/// # Errors
/// If there is.
pub fn empty(rest: &[u8]) -> Result<(), Close> {
    match rest.len() {
        0 => Ok(()),
        count => Err(Close::malformed(format!("a packet has {count} bytes more than belong to it"))),
    }
}

/// What is left of a packet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Close> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| Close::malformed("a packet ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Close> {
        Ok(self.take(1)?[0])
    }

    fn short(&mut self) -> Result<u16, Close> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn packet_id(&mut self) -> Result<u16, Close> {
        match self.short()? {
            // MQTT 5.0 §2.2.1
            0 => Err(Close::malformed("a packet identifier is 0")),
            packet_id => Ok(packet_id),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], Close> {
        let length = self.short()?;
        self.take(usize::from(length))
    }

    /// A Variable Byte Integer, in as few bytes as it takes (MQTT 5.0 §1.5.5).
    fn number(&mut self) -> Result<usize, Close> {
        let mut value = 0;
        for place in 0..4 {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return match place > 0 && byte == 0 {
                    true => Err(Close::malformed("a length has more bytes than it takes")),
                    false => Ok(value),
                };
            }
        }
        Err(Close::malformed("a length has more than four bytes"))
    }

    /// Passes over properties, each known, whole, and given once. The session expiry among them is returned.
    fn properties(&mut self) -> Result<Option<u32>, Close> {
        let length = self.number()?;
        let mut inside = Cursor(self.take(length)?);
        let (mut seen, mut expiry) = (0_u64, None);
        while !inside.0.is_empty() {
            let id = inside.byte()?;
            let kind = PROPERTIES.iter().find(|(known, _)| *known == id).map(|(_, kind)| *kind);
            let kind = kind.ok_or_else(|| Close::malformed(format!("there is no property {id}")))?;
            if id != USER_PROPERTY && seen & 1 << id != 0 {
                // MQTT 5.0 §2.2.2.2
                return Err(Close::protocol(format!("property {id} is given twice")));
            }
            seen |= 1 << id;
            match kind {
                Kind::Bytes(count) => {
                    let value = inside.take(count)?;
                    if id == SESSION_EXPIRY {
                        expiry = value.try_into().ok().map(u32::from_be_bytes);
                    }
                }
                Kind::Text => _ = inside.text()?,
                Kind::Pair => {
                    inside.text()?;
                    inside.text()?;
                }
                Kind::Number => _ = inside.number()?,
            }
        }
        Ok(expiry)
    }
}
