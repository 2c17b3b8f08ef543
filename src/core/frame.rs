//! Where an MQTT control packet begins and ends in a stream of bytes. Both directions need it: what comes from brokers, and what comes from
//! publishers.

/// CONNECT (MQTT 5.0 §2.1.2, as all that follow).
pub const CONNECT: u8 = 1;
/// CONNACK.
pub const CONNACK: u8 = 2;
/// PUBLISH.
pub const PUBLISH: u8 = 3;
/// PUBACK.
pub const PUBACK: u8 = 4;
/// PUBREC.
pub const PUBREC: u8 = 5;
/// PUBREL.
pub const PUBREL: u8 = 6;
/// PUBCOMP.
pub const PUBCOMP: u8 = 7;
/// SUBSCRIBE.
pub const SUBSCRIBE: u8 = 8;
/// SUBACK.
pub const SUBACK: u8 = 9;
/// UNSUBSCRIBE.
pub const UNSUBSCRIBE: u8 = 10;
/// UNSUBACK.
pub const UNSUBACK: u8 = 11;
/// PINGREQ.
pub const PINGREQ: u8 = 12;
/// PINGRESP.
pub const PINGRESP: u8 = 13;
/// DISCONNECT.
pub const DISCONNECT: u8 = 14;

/// The first bytes of a packet: its fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Control packet type (MQTT 5.0 §2.1.2).
    pub kind: u8,
    /// The four bits that each type uses in its own way (MQTT 5.0 §2.1.3).
    pub flags: u8,
    /// Length of the fixed header.
    pub header: usize,
    /// Length of the whole packet.
    pub length: usize,
}

/// Why bytes can't be the beginning of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than four bytes (MQTT 5.0 §1.5.5).
    #[error("the Remaining Length has more than four bytes")]
    Length,
    /// It announces more than is taken, in bytes.
    #[error("a packet of {0} bytes is announced")]
    TooLarge(usize),
}

impl Frame {
    /// The fixed header at the beginning of `bytes`, if all of it is there; the rest of the packet need not be.
    ///
    /// # Errors
    /// If it is no fixed header, or announces more than `most` bytes after it.
    pub fn begin(bytes: &[u8], most: usize) -> Result<Option<Frame>, FrameError> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        // Remaining Length: a Variable Byte Integer of at most four bytes (MQTT 5.0 §1.5.5).
        let mut remaining = 0_usize;
        for (index, &byte) in rest.iter().take(4).enumerate() {
            remaining |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                if remaining > most {
                    return Err(FrameError::TooLarge(remaining));
                }
                let header = index + 2;
                return Ok(Some(Frame { kind: first >> 4, flags: first & 0x0f, header, length: header + remaining }));
            }
        }
        match rest.len() >= 4 {
            true => Err(FrameError::Length),
            false => Ok(None),
        }
    }

    /// The packet at the beginning of `bytes`, if all of it is there.
    ///
    /// # Errors
    /// As [`Frame::begin`].
    pub fn find(bytes: &[u8], most: usize) -> Result<Option<Frame>, FrameError> {
        Ok(Frame::begin(bytes, most)?.filter(|frame| bytes.len() >= frame.length))
    }

    /// What follows the fixed header. `bytes` begin with the packet.
    pub fn body(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.header..self.length]
    }

    /// The packet's name.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 16] = [
            "a reserved packet",
            "CONNECT",
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "PINGREQ",
            "PINGRESP",
            "DISCONNECT",
            "AUTH",
        ];
        NAMES[usize::from(self.kind & 0x0f)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_found_once_all_of_it_is_there() {
        assert_eq!(Frame::find(&[], 10), Ok(None));
        assert_eq!(Frame::find(&[0x30], 10), Ok(None));
        assert_eq!(Frame::find(&[0x3b, 2, 0], 10), Ok(None));
        let frame = Frame::find(&[0x3b, 2, 7, 8, 9], 10).unwrap().unwrap();
        assert_eq!(frame, Frame { kind: PUBLISH, flags: 0x0b, header: 2, length: 4 });
        assert_eq!(frame.body(&[0x3b, 2, 7, 8, 9]), [7, 8]);
    }

    #[test]
    fn a_length_beyond_the_limit_is_known_from_the_first_bytes() {
        assert_eq!(Frame::begin(&[0x30, 0x80, 0x01], 127), Err(FrameError::TooLarge(128)));
        assert_eq!(Frame::begin(&[0x30, 0xff, 0xff, 0xff], 127), Ok(None));
        assert_eq!(Frame::begin(&[0x30, 0xff, 0xff, 0xff, 0xff], usize::MAX), Err(FrameError::Length));
    }
}
