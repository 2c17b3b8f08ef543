//! A broker that answers each packet as the test says, and otherwise as the standard says.
//!
//! ```text
//!   packet ─▶ manners noted ─▶ script(packet) ─▶ acts: Usual · Refuse · Ack · Bytes · Stall · Deaf · Close · (none: silence)
//! ```
//!
//! It keeps sessions over connections, at QoS 2 by packet identifier as a receiver has to, and notes in `violations` whatever a publisher
//! must not do: more in flight than the Receive Maximum, a packet beyond the Maximum Packet Size, sending again on a live connection, DUP
//! in a new session, a PUBREL for what was never received.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ledger::Arrival;
use super::wire::{self, Connect, Frame, Publish};

/// What a publisher sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Connect(Connect),
    Publish(Publish),
    PubRel(u16),
    PingReq,
    Disconnect,
}

/// One packet, and where it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Connections count from 1.
    pub connection: usize,
    pub heard: Heard,
}

impl Packet {
    pub fn is_connect(&self) -> bool {
        matches!(self.heard, Heard::Connect(_))
    }

    pub fn publish(&self) -> Option<&Publish> {
        match &self.heard {
            Heard::Publish(publish) => Some(publish),
            _ => None,
        }
    }

    pub fn is_pubrel(&self) -> bool {
        matches!(self.heard, Heard::PubRel(_))
    }

    /// Whether it is a PUBLISH whose payload holds this text.
    pub fn carries(&self, text: &str) -> bool {
        self.publish().is_some_and(|publish| String::from_utf8_lossy(&publish.payload).contains(text))
    }
}

/// What the broker does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// What the standard says.
    Usual,
    /// CONNACK, PUBACK or PUBREC with this reason code, whichever is due.
    Refuse(u8),
    /// PUBACK or PUBREC for an earlier PUBLISH of this connection.
    Ack(u16),
    /// CONNACK without a session, whatever there was.
    Forget,
    Bytes(Vec<u8>),
    /// What was to be said before is said; then nothing is read or said for so long, on this connection.
    Stall(Duration),
    /// Reads no more, and keeps the connection open.
    Deaf,
    Close,
}

pub type Script = Box<dyn FnMut(&Packet) -> Vec<Act> + Send>;

/// What a broker says about itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// On MQTT 3.1.1 it is not told, and checked all the same.
    pub receive_maximum: Option<u16>,
    pub maximum_packet_size: Option<u32>,
    pub maximum_qos: Option<u8>,
    pub retain_available: Option<bool>,
    pub keepalive_s: Option<u16>,
}

pub struct ScriptedBroker {
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    script: Script,
    limits: Limits,
    sessions: HashMap<String, Session>,
    arrivals: Vec<Arrival>,
    heard: Vec<Packet>,
    violations: Vec<String>,
    most_in_flight: usize,
    streams: Vec<TcpStream>,
    is_closing: bool,
}

/// A client's session: what was received at QoS 2 and not released. As with mosquitto, it is passed on only at PUBREL: a later report of
/// another QoS could overtake it, and a session that is lost takes it along.
#[derive(Debug, Clone, Default)]
struct Session {
    /// The connection that works in it, or was the last to. Only its end can end the session: one that is over may be noticed late.
    connection: usize,
    /// It was asked for as clean: whoever comes next does not find it, however late the end of that connection is noticed (MQTT 3.1.1 §3.1.2.4).
    is_clean: bool,
    unreleased: HashMap<u16, Arrival>,
}

/// What is known of one connection.
struct Peer {
    number: usize,
    level: u8,
    client_id: String,
    is_resumed: bool,
    ends_clean: bool,
    /// PUBLISH without an outcome, and its QoS.
    in_flight: HashMap<u16, u8>,
}

/// What is said, and how long nothing happens after that.
struct Answer {
    bytes: Vec<u8>,
    stall: Duration,
}

enum Next {
    GoOn,
    Deaf,
    Close,
}

impl ScriptedBroker {
    /// A broker that behaves.
    pub fn usual() -> ScriptedBroker {
        ScriptedBroker::start(|_| vec![Act::Usual])
    }

    pub fn start(script: impl FnMut(&Packet) -> Vec<Act> + Send + 'static) -> ScriptedBroker {
        ScriptedBroker::with_limits(Limits::default(), script)
    }

    pub fn with_limits(limits: Limits, script: impl FnMut(&Packet) -> Vec<Act> + Send + 'static) -> ScriptedBroker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Mutex::new(Shared {
            script: Box::new(script),
            limits,
            sessions: HashMap::new(),
            arrivals: Vec::new(),
            heard: Vec::new(),
            violations: Vec::new(),
            most_in_flight: 0,
            streams: Vec::new(),
            is_closing: false,
        }));
        let of_all = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let stream = stream.unwrap();
                let mut shared = lock(&of_all);
                if shared.is_closing {
                    return;
                }
                shared.streams.push(stream.try_clone().unwrap());
                let of_one = Arc::clone(&of_all);
                // A connection may break at any moment: that is what the tests are about.
                std::thread::spawn(move || drop(serve(&of_one, stream, index + 1)));
            }
        });
        ScriptedBroker { port, shared, accepting: Some(accepting) }
    }

    /// From now on it does this.
    pub fn change(&self, script: impl FnMut(&Packet) -> Vec<Act> + Send + 'static) {
        lock(&self.shared).script = Box::new(script);
    }

    /// From now on it says this about itself, to whoever connects.
    pub fn limit(&self, limits: Limits) {
        lock(&self.shared).limits = limits;
    }

    /// From now on it behaves.
    pub fn behave(&self) {
        self.change(|_| vec![Act::Usual]);
    }

    /// Breaks all connections.
    pub fn hang_up(&self) {
        for stream in lock(&self.shared).streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// What it has passed on.
    pub fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.shared).arrivals.clone()
    }

    pub fn heard(&self) -> Vec<Packet> {
        lock(&self.shared).heard.clone()
    }

    pub fn connects(&self) -> Vec<Connect> {
        let connects = |packet: Packet| match packet.heard {
            Heard::Connect(connect) => Some(connect),
            _ => None,
        };
        self.heard().into_iter().filter_map(connects).collect()
    }

    /// How many packets of a kind it has heard.
    pub fn count(&self, is_counted: impl Fn(&Packet) -> bool) -> usize {
        lock(&self.shared).heard.iter().filter(|packet| is_counted(packet)).count()
    }

    /// The client identifiers of the sessions that it keeps.
    pub fn sessions(&self) -> Vec<String> {
        let mut sessions: Vec<String> = lock(&self.shared).sessions.keys().cloned().collect();
        sessions.sort();
        sessions
    }

    pub fn most_in_flight(&self) -> usize {
        lock(&self.shared).most_in_flight
    }

    /// The publisher did nothing that the standard forbids.
    pub fn assert_no_violations(&self) {
        let violations = lock(&self.shared).violations.clone();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        lock(&self.shared).is_closing = true;
        self.hang_up();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A script that panics is the test's to report.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(shared: &Mutex<Shared>, stream: TcpStream, number: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut peer = Peer { number, level: 5, client_id: String::new(), is_resumed: false, ends_clean: false, in_flight: HashMap::new() };
    while let Some(frame) = Frame::read(&mut reader)? {
        let (answers, next) = lock(shared).hear(&mut peer, &frame);
        for Answer { bytes, stall } in answers {
            writer.write_all(&bytes)?;
            std::thread::sleep(stall);
        }
        match next {
            Next::GoOn => {}
            Next::Close => {
                // What is still on its way here is taken and dropped: a reset would take along what is on its way there.
                writer.shutdown(Shutdown::Write)?;
                io::copy(&mut reader, &mut io::sink())?;
                break;
            }
            Next::Deaf => {
                while !lock(shared).is_closing {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
    if peer.ends_clean {
        lock(shared).end_session(&peer);
    }
    Ok(())
}

impl Shared {
    fn hear(&mut self, peer: &mut Peer, frame: &Frame) -> (Vec<Answer>, Next) {
        let heard = match frame.kind() {
            wire::CONNECT => Heard::Connect(Connect::parse(frame)),
            wire::PUBLISH => Heard::Publish(Publish::parse(frame, peer.level)),
            wire::PUBREL => Heard::PubRel(frame.packet_id()),
            wire::PINGREQ => Heard::PingReq,
            wire::DISCONNECT => Heard::Disconnect,
            other => {
                self.violate(peer, &format!("a publisher does not send packets of type {other}"));
                return (Vec::new(), Next::Close);
            }
        };
        if let Heard::Connect(connect) = &heard {
            (peer.level, peer.client_id) = (connect.level, connect.client_id.clone());
        }
        // Another connection works in its session now: this one is over (MQTT 5.0 §3.1.4), and what it still had to say was never heard.
        if self.sessions.get(&peer.client_id).is_some_and(|session| session.connection > peer.number) {
            return (Vec::new(), Next::Close);
        }
        self.watch_manners(peer, &heard, frame);
        let packet = Packet { connection: peer.number, heard };
        let acts = (self.script)(&packet);
        let (mut answers, mut answer) = (Vec::new(), Vec::new());
        let mut next = Next::GoOn;
        for act in acts {
            match act {
                Act::Usual => self.usual(peer, &packet.heard, frame, &mut answer),
                Act::Forget => {
                    self.sessions.remove(&peer.client_id);
                    self.usual(peer, &packet.heard, frame, &mut answer);
                }
                Act::Refuse(code) => refuse(peer, &packet.heard, code, &mut answer),
                Act::Ack(packet_id) => acknowledge(peer, packet_id, &mut answer),
                Act::Bytes(bytes) => answer.extend(bytes),
                Act::Stall(stall) => answers.push(Answer { bytes: std::mem::take(&mut answer), stall }),
                Act::Deaf => next = Next::Deaf,
                Act::Close => next = Next::Close,
            }
        }
        self.heard.push(packet);
        answers.push(Answer { bytes: answer, stall: Duration::ZERO });
        (answers, next)
    }

    fn violate(&mut self, peer: &Peer, what: &str) {
        self.violations.push(format!("connection {}: {what}", peer.number));
    }

    fn watch_manners(&mut self, peer: &mut Peer, heard: &Heard, frame: &Frame) {
        if self.limits.maximum_packet_size.is_some_and(|limit| frame.size > limit as usize) {
            self.violate(peer, &format!("a packet of {} bytes is beyond the Maximum Packet Size", frame.size));
        }
        let Heard::Publish(publish) = heard else { return };
        if self.limits.maximum_qos.is_some_and(|most| publish.qos > most) {
            self.violate(peer, &format!("QoS {} is beyond the Maximum QoS", publish.qos));
        }
        if self.limits.retain_available == Some(false) && publish.retain {
            self.violate(peer, "the retain flag, though Retain Available is 0");
        }
        if publish.dup && (!peer.is_resumed || publish.qos == 0) {
            self.violate(peer, &format!("DUP in a new session or at QoS 0: {publish:?}"));
        }
        if publish.qos == 0 {
            return;
        }
        if publish.packet_id == 0 {
            self.violate(peer, "packet identifier 0");
        }
        if peer.in_flight.insert(publish.packet_id, publish.qos).is_some() {
            self.violate(peer, &format!("packet {} sent again on a live connection", publish.packet_id));
        }
        self.most_in_flight = self.most_in_flight.max(peer.in_flight.len());
        if self.limits.receive_maximum.is_some_and(|limit| peer.in_flight.len() > usize::from(limit)) {
            self.violate(peer, &format!("{} in flight are more than the Receive Maximum", peer.in_flight.len()));
        }
    }

    fn usual(&mut self, peer: &mut Peer, heard: &Heard, frame: &Frame, answer: &mut Vec<u8>) {
        match heard {
            Heard::Connect(connect) => {
                peer.ends_clean = connect.ends_with_connection;
                if connect.clean || self.sessions.get(&connect.client_id).is_some_and(|session| session.is_clean) {
                    self.sessions.remove(&connect.client_id);
                }
                peer.is_resumed = self.sessions.contains_key(&connect.client_id);
                let session = self.sessions.entry(connect.client_id.clone()).or_default();
                (session.connection, session.is_clean) = (peer.number, connect.ends_with_connection);
                answer.extend(connack(peer, self.limits));
            }
            Heard::Publish(publish) => {
                let Publish { topic, payload, qos, retain, packet_id, .. } = publish.clone();
                let session = self.sessions.entry(peer.client_id.clone()).or_default();
                let arrival = Arrival { topic, payload, qos, retain };
                match qos {
                    2 => drop(session.unreleased.entry(packet_id).or_insert(arrival)),
                    _ => self.arrivals.push(arrival),
                }
                if qos > 0 {
                    acknowledge(peer, packet_id, answer);
                }
            }
            Heard::PubRel(packet_id) => {
                let session = self.sessions.entry(peer.client_id.clone()).or_default();
                let released = session.unreleased.remove(packet_id);
                let is_known = released.is_some();
                self.arrivals.extend(released);
                if !is_known && !peer.is_resumed {
                    self.violate(peer, &format!("PUBREL for packet {packet_id}, which was never received"));
                }
                peer.in_flight.remove(packet_id);
                // Packet Identifier not found (MQTT 5.0 §3.7.2.1).
                let code = if is_known || peer.level == 4 { 0 } else { 0x92 };
                answer.extend(wire::ack(wire::PUBCOMP, *packet_id, code));
            }
            Heard::PingReq => answer.extend(wire::packet(wire::PINGRESP << 4, &[])),
            // Normal disconnection with a Session Expiry Interval of 0 (MQTT 5.0 §3.14.2.2.2).
            Heard::Disconnect => {
                peer.ends_clean |= frame.body == [0, 5, 0x11, 0, 0, 0, 0];
                if peer.ends_clean {
                    self.end_session(peer);
                }
            }
        }
    }

    fn end_session(&mut self, peer: &Peer) {
        if self.sessions.get(&peer.client_id).is_some_and(|session| session.connection == peer.number) {
            self.sessions.remove(&peer.client_id);
        }
    }
}

fn connack(peer: &Peer, limits: Limits) -> Vec<u8> {
    let mut body = vec![u8::from(peer.is_resumed), 0];
    if peer.level == 5 {
        let mut properties = Vec::new();
        if let Some(maximum) = limits.receive_maximum {
            properties.push(0x21);
            properties.extend(maximum.to_be_bytes());
        }
        if let Some(maximum) = limits.maximum_packet_size {
            properties.push(0x27);
            properties.extend(maximum.to_be_bytes());
        }
        // MQTT 5.0 §3.2.2.3.4 knows no Maximum QoS of 2.
        properties.extend(limits.maximum_qos.into_iter().filter(|most| *most < 2).flat_map(|most| [0x24, most]));
        properties.extend(limits.retain_available.into_iter().flat_map(|available| [0x25, u8::from(available)]));
        if let Some(seconds) = limits.keepalive_s {
            properties.push(0x13);
            properties.extend(seconds.to_be_bytes());
        }
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
    }
    wire::packet(wire::CONNACK << 4, &body)
}

fn refuse(peer: &mut Peer, heard: &Heard, code: u8, answer: &mut Vec<u8>) {
    match heard {
        Heard::Connect(_) => answer.extend(wire::packet(wire::CONNACK << 4, &[0, code, 0])),
        Heard::Publish(publish) => {
            peer.in_flight.remove(&publish.packet_id);
            let kind = if publish.qos == 1 { wire::PUBACK } else { wire::PUBREC };
            answer.extend(wire::ack(kind, publish.packet_id, code));
        }
        other => panic!("{other:?} can't be refused"),
    }
}

fn acknowledge(peer: &mut Peer, packet_id: u16, answer: &mut Vec<u8>) {
    match peer.in_flight.get(&packet_id) {
        Some(1) => {
            peer.in_flight.remove(&packet_id);
            answer.extend(wire::ack(wire::PUBACK, packet_id, 0));
        }
        Some(_) => answer.extend(wire::ack(wire::PUBREC, packet_id, 0)),
        None => panic!("packet {packet_id} is not in flight"),
    }
}
