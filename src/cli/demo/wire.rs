//! MQTT as a proxy sees it: whole packets, and what of them is in flight.
//!
//! Only the outside of a packet is read: type, length, packet id. That is the same in MQTT 3.1.1 and 5.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};

/// The largest packet that is let through. The demo's reports have 8 KiB at most.
const MAX_PACKET: usize = 4 << 20;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the service to the broker.
    Up,
    /// From the broker to the service.
    Down,
}

/// What a packet means for what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A report at QoS 1 or 2, with its packet id.
    Publish(u16),
    /// QoS 1 is done.
    Puback(u16),
    /// QoS 2: the broker has it.
    Pubrec(u16),
    /// QoS 2: the broker refuses it.
    Refusal(u16),
    /// QoS 2: it may be passed on.
    Pubrel(u16),
    /// QoS 2 is done.
    Pubcomp(u16),
    /// Nothing.
    Other,
}

/// The stream is not MQTT, or a packet is too large.
#[derive(Debug, PartialEq, Eq)]
pub struct Garbled;

/// Takes the first whole packet off the buffer; none if it has not arrived yet.
pub fn take_packet(buffer: &mut BytesMut) -> Result<Option<Bytes>, Garbled> {
    let (mut length, mut shift) = (0_usize, 0);
    // The remaining length: seven bits a byte, at most four bytes (MQTT 5.0 §1.5.5).
    for place in 1..=4 {
        let Some(byte) = buffer.get(place) else { return Ok(None) };
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let whole = 1 + place + length;
            if whole > MAX_PACKET {
                return Err(Garbled);
            }
            return Ok((buffer.len() >= whole).then(|| buffer.split_to(whole).freeze()));
        }
    }
    Err(Garbled)
}

/// What a whole packet means.
pub fn kind_of(packet: &Bytes) -> Kind {
    let mut rest = packet.clone();
    let Ok(first) = rest.try_get_u8() else { return Kind::Other };
    while rest.try_get_u8().is_ok_and(|byte| byte & 0x80 != 0) {}
    if first >> 4 == 3 {
        let qos = first >> 1 & 3;
        let topic = rest.try_get_u16().map_or(usize::MAX, usize::from);
        if qos == 0 || rest.remaining() < topic {
            return Kind::Other;
        }
        rest.advance(topic);
    }
    let Ok(id) = rest.try_get_u16() else { return Kind::Other };
    let refused = rest.try_get_u8().is_ok_and(|reason| reason >= 0x80);
    match first >> 4 {
        3 => Kind::Publish(id),
        4 => Kind::Puback(id),
        5 if refused => Kind::Refusal(id),
        5 => Kind::Pubrec(id),
        6 => Kind::Pubrel(id),
        7 => Kind::Pubcomp(id),
        _ => Kind::Other,
    }
}

/// How far a delivery at QoS 1 or 2 has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// PUBLISH has passed.
    Published,
    /// PUBREC has passed.
    Received,
    /// PUBREL has passed.
    Released,
}

/// What is in flight on one connection.
#[derive(Debug, Default)]
pub struct InFlight {
    stages: BTreeMap<u16, Stage>,
}

impl InFlight {
    /// Notes a packet that is passed on.
    pub fn pass(&mut self, way: Way, kind: Kind) {
        match (way, kind) {
            (Way::Up, Kind::Publish(id)) => _ = self.stages.insert(id, Stage::Published),
            (Way::Down, Kind::Pubrec(id)) => _ = self.stages.insert(id, Stage::Received),
            (Way::Up, Kind::Pubrel(id)) => _ = self.stages.insert(id, Stage::Released),
            (Way::Down, Kind::Puback(id) | Kind::Refusal(id) | Kind::Pubcomp(id)) => _ = self.stages.remove(&id),
            _ => {}
        }
    }

    /// How many deliveries are in flight.
    pub fn len(&self) -> usize {
        self.stages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(qos: u8, id: u16, payload: usize) -> Vec<u8> {
        let mut body = vec![0, 3, b'a', b'/', b'b'];
        if qos > 0 {
            body.extend(id.to_be_bytes());
        }
        body.resize(body.len() + payload, b'x');
        let mut packet = vec![0x30 | qos << 1];
        let mut length = body.len();
        while length > 127 {
            packet.push(u8::try_from(length % 128).unwrap() | 0x80);
            length /= 128;
        }
        packet.push(u8::try_from(length).unwrap());
        packet.extend(body);
        packet
    }

    #[test]
    fn packets_are_found_however_the_bytes_arrive() {
        let packets = [publish(2, 7, 300), vec![0x40, 2, 0, 9], publish(0, 0, 20_000), vec![0xC0, 0]];
        let stream = packets.concat();
        for step in [1, 2, 3, 129, stream.len()] {
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for bytes in stream.chunks(step) {
                buffer.extend_from_slice(bytes);
                while let Some(packet) = take_packet(&mut buffer).unwrap() {
                    found.push(packet.to_vec());
                }
            }
            assert!(found == packets && buffer.is_empty(), "in steps of {step}");
        }
    }

    #[test]
    fn what_is_no_packet_is_garbled() {
        assert_eq!(take_packet(&mut BytesMut::from(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1][..])), Err(Garbled));
        assert_eq!(take_packet(&mut BytesMut::from(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F][..])), Err(Garbled));
    }

    #[test]
    fn kinds_are_told_by_type_and_packet_id() {
        let kind = |bytes: &[u8]| kind_of(&Bytes::copy_from_slice(bytes));
        assert_eq!(kind(&publish(0, 0, 3)), Kind::Other);
        assert_eq!(kind(&publish(1, 258, 200)), Kind::Publish(258));
        assert_eq!(kind(&publish(2, 7, 0)), Kind::Publish(7));
        assert_eq!(kind(&[0x40, 2, 1, 2]), Kind::Puback(258));
        assert_eq!(kind(&[0x50, 4, 1, 2, 0x10, 0]), Kind::Pubrec(258));
        assert_eq!(kind(&[0x50, 3, 1, 2, 0x97]), Kind::Refusal(258));
        assert_eq!(kind(&[0x62, 2, 1, 2]), Kind::Pubrel(258));
        assert_eq!(kind(&[0x70, 2, 1, 2]), Kind::Pubcomp(258));
        for odd in [&[][..], &[0x40], &[0x40, 0], &[0x40, 1, 1], &[0x32, 2, 0, 9], &[0x20, 3, 0, 0, 0], &[0xE0, 0]] {
            assert_eq!(kind(odd), Kind::Other, "{odd:?}");
        }
    }

    #[test]
    fn a_delivery_is_in_flight_until_its_last_ack_has_passed() {
        let mut flight = InFlight::default();
        flight.pass(Way::Up, Kind::Publish(1));
        flight.pass(Way::Up, Kind::Publish(2));
        flight.pass(Way::Up, Kind::Publish(3));
        flight.pass(Way::Down, Kind::Puback(1));
        flight.pass(Way::Down, Kind::Pubrec(2));
        flight.pass(Way::Down, Kind::Refusal(3));
        assert_eq!(flight.stages, BTreeMap::from([(2, Stage::Received)]));
        flight.pass(Way::Up, Kind::Pubrel(2));
        assert_eq!(flight.len(), 1);
        flight.pass(Way::Down, Kind::Pubcomp(2));
        assert_eq!(flight.len(), 0);
    }
}
