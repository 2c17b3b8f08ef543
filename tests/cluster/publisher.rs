//! A publisher over MQTT with a persistent session, which goes on at the next instance where one fails: in order, and what was not acknowledged again.
//!
//! What the standard gives there: an instance that ends its connection has said all that it will say, so QoS 2 stays exactly once. One that
//! is silent may have read what nobody will ask it about again; who leaves it and goes on elsewhere may be heard twice. Such reports are noted as *in
//! doubt*, and counted apart.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::hello::{Hello, publish};
use crate::load::{GIVEN_UP, Load};
use crate::support::ledger::Arrival;
use crate::support::wire::{self, Frame};

/// In flight from one publisher.
const WINDOW: usize = 5;

/// Packet identifiers come round soon, so that one that is remembered too long swallows another report.
const IDS: u16 = 30;

/// An instance that says nothing for so long is left.
const SILENCE: Duration = Duration::from_secs(2);

/// The reason code of what is not taken for the moment (MQTT 5.0 §3.4.2.1).
const QUOTA_EXCEEDED: u8 = 0x97;

#[derive(Debug, Clone)]
pub struct Published {
    pub topic: String,
    pub qos: u8,
    /// PUBACK or PUBREC has come.
    pub is_acknowledged: bool,
    /// It was in flight at an instance that was left without a word.
    pub is_in_doubt: bool,
}

/// What came of it; by source and place.
#[derive(Debug, Default)]
pub struct Comparison {
    pub missing: Vec<(u64, u64)>,
    pub twice: Vec<(u64, u64)>,
    /// Of QoS 2, and twice, where that can't be known.
    pub doubts: Vec<(u64, u64)>,
    pub repeated: usize,
    pub out_of_order: Vec<String>,
    pub unknown: Vec<String>,
}

impl Comparison {
    pub fn assert_kept(&self) {
        let is_kept = self.missing.is_empty() && self.twice.is_empty() && self.out_of_order.is_empty() && self.unknown.is_empty();
        assert!(is_kept, "the promise is broken: {self:#?}");
    }
}

fn place_of(arrival: &Arrival) -> Option<(u64, u64)> {
    let text = String::from_utf8(arrival.payload.clone()).ok()?;
    let (source, place) = text.split_once('-')?;
    Some((source.parse().ok()?, place.parse().ok()?))
}

impl Published {
    /// Acknowledged, and not arrived.
    pub fn missing(published: &BTreeMap<(u64, u64), Published>, arrivals: &[Arrival]) -> Vec<(u64, u64)> {
        let arrived: HashSet<_> = arrivals.iter().filter_map(place_of).collect();
        published.iter().filter(|(key, one)| one.is_acknowledged && !arrived.contains(*key)).map(|(key, _)| *key).collect()
    }

    /// The order is not looked at of topics of which one was `refused`.
    pub fn compare(published: &BTreeMap<(u64, u64), Published>, refused: &HashSet<String>, arrivals: &[Arrival]) -> Comparison {
        let mut found = Comparison { missing: Published::missing(published, arrivals), ..Comparison::default() };
        let (mut times, mut newest) = (HashMap::<(u64, u64), u64>::new(), HashMap::<&str, u64>::new());
        for arrival in arrivals {
            let known = place_of(arrival).and_then(|key| Some((key, published.get(&key)?)));
            let Some((key, one)) = known.filter(|(_, one)| one.topic == arrival.topic && one.qos == arrival.qos) else {
                found.unknown.push(format!("{}: {}", arrival.topic, String::from_utf8_lossy(&arrival.payload)));
                continue;
            };
            let times = times.entry(key).or_default();
            *times += 1;
            match (*times, one.qos, one.is_in_doubt) {
                (1, _, _) => {
                    let newest = newest.entry(&one.topic).or_default();
                    if key.1 < *newest && !refused.contains(&one.topic) {
                        found.out_of_order.push(format!("{}: {key:?} after {newest}", one.topic));
                    }
                    *newest = (*newest).max(key.1);
                }
                (_, 2, false) => found.twice.push(key),
                (_, 2, true) => found.doubts.push(key),
                _ => found.repeated += 1,
            }
        }
        found
    }
}

/// Sent, and not done with.
struct Sent {
    packet_id: u16,
    place: u64,
    qos: u8,
    topic: String,
    /// PUBREC has come: from here on it is PUBREL that is sent again (MQTT 5.0 §4.3.3).
    is_received: bool,
}

impl Sent {
    fn bytes(&self, source: u64, level: u8, dup: bool) -> Vec<u8> {
        match self.is_received {
            true => wire::ack(wire::PUBREL, self.packet_id, 0),
            false => publish(level, &self.topic, format!("{source}-{}", self.place).as_bytes(), self.qos, self.packet_id, dup, &[]),
        }
    }
}

struct Publishing<'a> {
    load: &'a Load,
    source: u64,
    level: u8,
    next: u64,
    next_id: u16,
    window: VecDeque<Sent>,
    /// Something was acknowledged, so the session is durable.
    is_known: bool,
}

impl Load {
    /// A source over MQTT of this version.
    pub fn publish(&self, source: u64, level: u8) {
        let client = format!("source-{source}");
        let hello = if level == 5 { Hello::v5(&client) } else { Hello::v4(&client) };
        let mut publishing = Publishing { load: self, source, level, next: 0, next_id: 1, window: VecDeque::new(), is_known: false };
        let (mut came_through, mut at) = (Instant::now(), usize::try_from(source).expect("small"));
        loop {
            let address = {
                let listeners = self.listeners.lock().unwrap();
                listeners[at % listeners.len()]
            };
            let before = publishing.next;
            match publishing.converse(address, &hello) {
                Ok(()) => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => publishing.leave(),
                Err(_) => {}
            }
            if publishing.next > before {
                came_through = Instant::now();
            }
            assert!(came_through.elapsed() < GIVEN_UP, "{client} does not come through");
            at += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Publishing<'_> {
    /// Without having heard of the end.
    fn leave(&self) {
        let mut books = self.load.books();
        for sent in &self.window {
            books.published.get_mut(&(self.source, sent.place)).expect("it was sent").is_in_doubt = true;
        }
    }

    /// One connection, until it breaks, or all is done and it is over.
    fn converse(&mut self, address: SocketAddr, hello: &Hello) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, SILENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.write_all(&hello.bytes())?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let connack = read(&mut reader)?;
        assert_eq!(connack.kind(), wire::CONNACK, "{connack:?}");
        // The server is unavailable: without a log behind it, or about to end.
        if connack.body[1] == if self.level == 5 { 0x88 } else { 3 } {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        assert_eq!(connack.body[1], 0, "{connack:?}");
        assert!(connack.body[0] == 1 || !self.is_known, "the session of source {} is lost", self.source);
        for sent in &self.window {
            stream.write_all(&sent.bytes(self.source, self.level, true))?;
        }
        loop {
            while self.window.len() < WINDOW && !self.load.is_over() {
                let bytes = self.new_publish();
                stream.write_all(&bytes)?;
            }
            if self.window.is_empty() {
                return Ok(());
            }
            let frame = read(&mut reader)?;
            self.take(&frame, &mut stream)?;
            std::thread::sleep(Duration::from_millis(8));
        }
    }

    fn new_publish(&mut self) -> Vec<u8> {
        let place = self.next;
        self.next += 1;
        let (qos, name) = match place % 4 {
            0 => (1, "once"),
            1 | 2 => (2, "exactly"),
            _ => (1 + (place / 4 % 2) as u8, "any"),
        };
        let topic = format!("mqtt/{}/{name}", self.source);
        let published = Published { topic: topic.clone(), qos, is_acknowledged: false, is_in_doubt: false };
        self.load.books().published.insert((self.source, place), published);
        let sent = Sent { packet_id: self.free_id(), place, qos, topic, is_received: false };
        let bytes = sent.bytes(self.source, self.level, false);
        self.window.push_back(sent);
        bytes
    }

    fn free_id(&mut self) -> u16 {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id % IDS + 1;
            if self.window.iter().all(|sent| sent.packet_id != id) {
                return id;
            }
        }
    }

    fn take(&mut self, frame: &Frame, stream: &mut TcpStream) -> io::Result<()> {
        if frame.kind() == wire::DISCONNECT {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let (kind, id) = (frame.kind(), frame.packet_id());
        let code = frame.body.get(2).copied().unwrap_or(0);
        let place = self.window.iter().position(|sent| sent.packet_id == id);
        let place = place.unwrap_or_else(|| panic!("{frame:?} is about nothing that was sent"));
        let sent = &mut self.window[place];
        let is_fitting = match kind {
            wire::PUBACK => sent.qos == 1,
            wire::PUBREC => sent.qos == 2,
            wire::PUBCOMP => sent.is_received,
            _ => false,
        };
        if code == QUOTA_EXCEEDED && is_fitting && kind != wire::PUBCOMP {
            // It was not taken, and what came behind it may have been: about the order of its topic nothing can be said any more.
            self.load.books().refused.insert(sent.topic.clone());
            let again = sent.bytes(self.source, self.level, false);
            std::thread::sleep(Duration::from_millis(20));
            return stream.write_all(&again);
        }
        // A PUBREL is sent again where its PUBCOMP was lost, and then the packet identifier is not known any more (MQTT 5.0 §3.7.2.1).
        assert!(is_fitting && (code == 0 || (kind == wire::PUBCOMP && code == 0x92)), "{frame:?}");
        self.is_known = true;
        if kind == wire::PUBREC {
            sent.is_received = true;
            stream.write_all(&wire::ack(wire::PUBREL, id, 0))?;
        }
        if kind != wire::PUBCOMP {
            let key = (self.source, sent.place);
            self.load.books().published.get_mut(&key).expect("it was sent").is_acknowledged = true;
        }
        if kind != wire::PUBREC {
            self.window.remove(place);
        }
        Ok(())
    }
}

fn read(reader: &mut impl io::Read) -> io::Result<Frame> {
    Frame::read(reader)?.ok_or(io::ErrorKind::UnexpectedEof.into())
}
