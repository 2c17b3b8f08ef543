//! A publisher of bytes, which does what the test says.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::wire::{self, Frame};

pub struct Publisher {
    pub stream: TcpStream,
    pub level: u8,
}

/// Topic, payload, QoS, retain; and the properties on MQTT 5.
pub type Will = (String, Vec<u8>, u8, bool, Vec<u8>);

/// A CONNECT.
#[derive(Clone)]
pub struct Hello {
    pub level: u8,
    pub client_id: String,
    pub clean: bool,
    pub keepalive_s: u16,
    /// MQTT 5: the properties of CONNECT.
    pub properties: Vec<u8>,
    pub will: Option<Will>,
    pub login: Option<(String, String)>,
}

impl Hello {
    pub fn v4(client_id: &str) -> Hello {
        let client_id = client_id.to_owned();
        Hello { level: 4, clean: client_id.is_empty(), client_id, keepalive_s: 0, properties: Vec::new(), will: None, login: None }
    }

    /// With a session that outlives its connection by an hour.
    pub fn v5(client_id: &str) -> Hello {
        Hello { level: 5, clean: false, properties: vec![0x11, 0, 0, 0x0e, 0x10], ..Hello::v4(client_id) }
    }

    pub fn clean(self) -> Hello {
        Hello { clean: true, properties: Vec::new(), ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut flags = u8::from(self.clean) << 1;
        let mut payload = wire::text(&self.client_id);
        if let Some((topic, message, qos, retain, properties)) = &self.will {
            flags |= 4 | qos << 3 | u8::from(*retain) << 5;
            if self.level == 5 {
                payload.extend(with_length(properties));
            }
            payload.extend(wire::text(topic));
            payload.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
            payload.extend(message);
        }
        if let Some((user, password)) = &self.login {
            flags |= 0xc0;
            payload.extend([wire::text(user), wire::text(password)].concat());
        }
        let mut body = wire::text("MQTT");
        body.extend([self.level, flags]);
        body.extend(self.keepalive_s.to_be_bytes());
        if self.level == 5 {
            body.extend(with_length(&self.properties));
        }
        body.extend(payload);
        wire::packet(wire::CONNECT << 4, &body)
    }
}

/// Properties with their length, which is short.
pub fn with_length(properties: &[u8]) -> Vec<u8> {
    let length = u8::try_from(properties.len()).unwrap();
    assert!(length < 0x80);
    [vec![length], properties.to_vec()].concat()
}

/// A PUBLISH as bytes; `properties` on MQTT 5 only.
pub fn publish(level: u8, topic: &str, payload: &[u8], qos: u8, packet_id: u16, dup: bool, properties: &[u8]) -> Vec<u8> {
    let mut body = wire::text(topic);
    if qos > 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if level == 5 {
        body.extend(with_length(properties));
    }
    body.extend(payload);
    wire::packet(wire::PUBLISH << 4 | qos << 1 | u8::from(dup) << 3, &body)
}

impl Publisher {
    /// Connected, and not greeted yet.
    pub fn open(address: SocketAddr, level: u8) -> Publisher {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Publisher { stream, level }
    }

    /// Sends CONNECT; the body of the CONNACK.
    pub fn try_connect(address: SocketAddr, hello: &Hello) -> (Publisher, Vec<u8>) {
        let mut publisher = Publisher::open(address, hello.level);
        publisher.send(&hello.bytes());
        let connack = publisher.expect(wire::CONNACK);
        (publisher, connack.body)
    }

    /// Connected and welcome; whether there was a session.
    pub fn connect(address: SocketAddr, hello: &Hello) -> (Publisher, bool) {
        let (publisher, connack) = Publisher::try_connect(address, hello);
        assert_eq!(connack[1], 0, "welcome");
        (publisher, connack[0] == 1)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn publish(&mut self, topic: &str, payload: &str, qos: u8, packet_id: u16, dup: bool) {
        self.send(&publish(self.level, topic, payload.as_bytes(), qos, packet_id, dup, &[]));
    }

    pub fn release(&mut self, packet_id: u16) {
        self.send(&wire::ack(wire::PUBREL, packet_id, 0));
    }

    /// The next packet; none at the end.
    pub fn next(&mut self) -> Option<Frame> {
        match Frame::read(&mut self.stream) {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing came: {error}"),
        }
    }

    /// The next packet, which has to be of this kind.
    pub fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.next().expect("the connection is open");
        assert_eq!(frame.kind(), kind, "{frame:?}");
        frame
    }

    /// The next packet is this acknowledgement; its reason code.
    pub fn expect_ack(&mut self, kind: u8, packet_id: u16) -> u8 {
        let frame = self.expect(kind);
        assert_eq!(frame.packet_id(), packet_id, "{frame:?}");
        frame.body.get(2).copied().unwrap_or(0)
    }

    /// Nothing comes, for a moment that is long enough for what comes at once.
    pub fn expect_silence(&mut self) {
        self.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let read = self.stream.read(&mut [0]);
        assert!(matches!(&read, Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)), "{read:?}");
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// The connection was closed; on MQTT 5 with which reason code, if it was told.
    pub fn expect_end(&mut self) -> Option<u8> {
        let mut code = None;
        while let Some(frame) = self.next() {
            if frame.kind() == wire::DISCONNECT {
                code = frame.body.first().copied();
            }
        }
        code
    }

    /// PINGREQ is answered, and with that everything before it was looked at.
    pub fn ping(&mut self) {
        self.send(&[wire::PINGREQ << 4, 0]);
        self.expect(wire::PINGRESP);
    }

    pub fn disconnect(mut self) {
        self.send(&[wire::DISCONNECT << 4, 0]);
        assert_eq!(self.expect_end(), None);
    }

    /// Vanishes.
    pub fn cut(self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }
}
