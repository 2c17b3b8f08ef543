//! A publisher's window: it sends in order, and after a reconnect sends again, in order, what was not acknowledged, as the standard says (MQTT 5.0 §4.4).
//!
//! Whoever uses it says what its reports are, and keeps the books of what was acknowledged.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::publisher::{Hello, publish};
use crate::support::wire::{self, Frame};

/// The reason code of what is not taken for the moment: a store that is full, or has no majority (MQTT 5.0 §3.4.2.1).
const QUOTA_EXCEEDED: u8 = 0x97;

/// Before that is sent once more.
const AGAIN: Duration = Duration::from_millis(20);

/// A server takes a connection within this.
const CONNECT: Duration = Duration::from_secs(2);

/// Sent, and not done with.
pub struct Sent<T> {
    packet_id: u16,
    qos: u8,
    topic: String,
    payload: Vec<u8>,
    /// What the test knows it by.
    pub about: T,
    /// PUBREC has come: from here on it is PUBREL that is sent again (MQTT 5.0 §4.3.3).
    is_received: bool,
}

/// What a packet of the server comes to.
pub enum Heard<'a, T> {
    /// PUBACK or PUBREC: it is the server's from here on.
    Accepted(&'a T),
    /// It was not taken, and is sent again. What came behind it may have been: about the order of its topic nothing can be said any more.
    Refused(&'a str),
    /// PUBCOMP.
    Completed,
}

pub struct Window<T> {
    level: u8,
    /// Packet identifiers come round after so many: soon, so that one that is remembered too long swallows another report.
    ids: u16,
    next_id: u16,
    sent: VecDeque<Sent<T>>,
    /// Something was acknowledged, so the session is durable.
    is_known: bool,
}

impl<T> Sent<T> {
    fn bytes(&self, level: u8, dup: bool) -> Vec<u8> {
        match self.is_received {
            true => wire::ack(wire::PUBREL, self.packet_id, 0),
            false => publish(level, &self.topic, &self.payload, self.qos, self.packet_id, dup, &[]),
        }
    }
}

impl<T> Window<T> {
    pub fn new(level: u8, ids: u16) -> Window<T> {
        Window { level, ids, next_id: 1, sent: VecDeque::new(), is_known: false }
    }

    pub fn len(&self) -> usize {
        self.sent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Everything that is not done with.
    pub fn sent(&self) -> impl Iterator<Item = &T> {
        self.sent.iter().map(|sent| &sent.about)
    }

    /// Connects, and sends again what is not done with. What is read waits for `silence` at most.
    pub fn connect(&self, address: SocketAddr, hello: &Hello, silence: Duration) -> io::Result<(TcpStream, BufReader<TcpStream>)> {
        let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.write_all(&hello.bytes())?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let connack = read(&mut reader)?;
        assert_eq!(connack.kind(), wire::CONNACK, "{connack:?}");
        // The server is unavailable: its store has failed, or has nobody to be written by, or it is about to end.
        if connack.body[1] == if self.level == 5 { 0x88 } else { 3 } {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        assert_eq!(connack.body[1], 0, "{connack:?}");
        assert!(connack.body[0] == 1 || !self.is_known, "the session of {} is lost", hello.client_id);
        for sent in &self.sent {
            stream.write_all(&sent.bytes(self.level, true))?;
        }
        Ok((stream, reader))
    }

    /// A PUBLISH that has its place in the window. At QoS 0 it has none.
    pub fn publish(&mut self, topic: String, payload: Vec<u8>, qos: u8, about: T) -> Vec<u8> {
        let packet_id = if qos > 0 { self.free_id() } else { 0 };
        let sent = Sent { packet_id, qos, topic, payload, about, is_received: false };
        let bytes = sent.bytes(self.level, false);
        if qos > 0 {
            self.sent.push_back(sent);
        }
        bytes
    }

    fn free_id(&mut self) -> u16 {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id % self.ids + 1;
            if self.sent.iter().all(|sent| sent.packet_id != id) {
                return id;
            }
        }
    }

    /// Waits for a packet, answers it, and says what it comes to.
    pub fn take(&mut self, reader: &mut impl Read, stream: &mut TcpStream, heard: &mut dyn FnMut(Heard<'_, T>)) -> io::Result<()> {
        let frame = read(reader)?;
        if frame.kind() == wire::DISCONNECT {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let (kind, id) = (frame.kind(), frame.packet_id());
        let code = frame.body.get(2).copied().unwrap_or(0);
        let place = self.sent.iter().position(|sent| sent.packet_id == id);
        let place = place.unwrap_or_else(|| panic!("{frame:?} is about nothing that was sent"));
        let sent = &mut self.sent[place];
        let is_fitting = match kind {
            wire::PUBACK => sent.qos == 1,
            wire::PUBREC => sent.qos == 2,
            wire::PUBCOMP => sent.is_received,
            _ => false,
        };
        if code == QUOTA_EXCEEDED && is_fitting && kind != wire::PUBCOMP {
            heard(Heard::Refused(&sent.topic));
            std::thread::sleep(AGAIN);
            return stream.write_all(&sent.bytes(self.level, false));
        }
        // A PUBREL is sent again where its PUBCOMP was lost, and then the packet identifier is not known any more (MQTT 5.0 §3.7.2.1).
        assert!(is_fitting && (code == 0 || (kind == wire::PUBCOMP && code == 0x92)), "{frame:?}");
        self.is_known = true;
        if kind == wire::PUBREC {
            sent.is_received = true;
            stream.write_all(&wire::ack(wire::PUBREL, id, 0))?;
        }
        heard(match kind {
            wire::PUBCOMP => Heard::Completed,
            _ => Heard::Accepted(&sent.about),
        });
        if kind != wire::PUBREC {
            self.sent.remove(place);
        }
        Ok(())
    }
}

fn read(reader: &mut impl Read) -> io::Result<Frame> {
    Frame::read(reader)?.ok_or(io::ErrorKind::UnexpectedEof.into())
}
