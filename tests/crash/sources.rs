//! Who reports: over HTTP with an idempotency key until it is accepted, and over MQTT with a persistent session, as the standard says.
//!
//! Nobody gives up, so at the end all that was sent at QoS 1 and 2 is accepted, and each number stands in the books.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::books::{Books, Entry, SOURCE_SHIFT};
use crate::chance::Chance;
use crate::publisher::{Hello, publish};
use crate::support::ledger::action_for;
use crate::support::tidings::Client;
use crate::support::wire::{self, Frame};

/// What is in flight from one publisher.
const WINDOW: usize = 10;

/// Packet identifiers come round soon, so that one that is remembered too long swallows another report.
const IDS: u16 = 40;

/// The reason code of a store that is full (MQTT 5.0 §3.4.2.1).
const QUOTA_EXCEEDED: u8 = 0x97;

/// No report waits longer to be accepted, however often the service is killed.
const GIVEN_UP: Duration = Duration::from_secs(120);

/// What all sources share.
pub struct Sources {
    /// None while the service is down.
    pub client: RwLock<Option<Client>>,
    pub books: Mutex<Books>,
    /// The disturbances that are over.
    pub phase: AtomicUsize,
    pub is_over: AtomicBool,
    /// Nothing new is sent; what is under way goes on.
    pub is_paused: AtomicBool,
    /// Bytes of noise in a report, at most.
    pub noise: AtomicU64,
}

impl Sources {
    pub fn books(&self) -> MutexGuard<'_, Books> {
        // A source that has failed its test has nothing half done in there.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed) && !self.is_over()
    }

    pub fn entry(&self, topic: &str, qos: u8) -> Entry {
        Entry { topic: topic.to_owned(), qos, phase: self.phase.load(Ordering::SeqCst), order: None }
    }

    /// A source over HTTP: topics of its own at each QoS and at all of them, and two that it shares.
    pub fn post(&self, source: u64, mut chance: Chance) {
        let mut next = 0;
        for turn in 0u64.. {
            while self.is_paused() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if self.is_over() {
                return;
            }
            let own = |name: &str| format!("{name}{source}");
            let (qos, project) = match turn % 8 {
                0 => (0, own("perhaps")),
                1 => (1, own("once")),
                2 | 3 => (2, own("exactly")),
                4 | 5 => ([1, 2, 0, 2][(turn / 8 % 4) as usize], own("any")),
                6 => (2, "shared".to_owned()),
                _ => (1, "shared at least once".to_owned()),
            };
            let count = if turn % 10 == 9 { 12 } else { 1 };
            let numbers: Vec<u64> = (next..next + count).map(|number| source << SOURCE_SHIFT | number).collect();
            next += count;
            let bodies: Vec<String> = numbers.iter().map(|number| self.report(action_for(qos), &project, *number, &mut chance)).collect();
            let entry = self.entry(&format!("zuul/{project}"), qos);
            self.books().entries.extend(numbers.iter().map(|number| (*number, entry.clone())));
            self.post_until_accepted(&numbers, &bodies.join("\n"), &format!("{source}-{turn}"));
            // So that lanes keep up between two kills, and the kills meet them at work.
            std::thread::sleep(Duration::from_millis(4));
        }
    }

    fn report(&self, action: &str, project: &str, number: u64, chance: &mut Chance) -> String {
        let noise = chance.below(self.noise.load(Ordering::Relaxed));
        let noise = chance.noise(usize::try_from(noise).unwrap());
        format!(
            r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"{project}","change":"{number}","message":"{noise}"}}"#
        )
    }

    /// Posts the reports of these numbers, which are in the books, until they are accepted.
    pub fn post_until_accepted(&self, numbers: &[u64], body: &str, key: &str) {
        let began = Instant::now();
        loop {
            let client = self.client.read().unwrap().clone();
            match client.and_then(|client| client.post(body.as_bytes(), "application/x-ndjson", Some(key))) {
                Some(reply) if reply.status == 202 => {
                    let answer = reply.json();
                    let mut books = self.books();
                    for (number, report) in numbers.iter().zip(answer["reports"].as_array().unwrap()) {
                        let deliveries = report["deliveries"].as_array().unwrap();
                        assert_eq!(deliveries.len(), 1, "{report}");
                        let id = deliveries[0]["id"].as_str().unwrap().parse().unwrap();
                        books.entries.get_mut(number).unwrap().order = Some(id);
                    }
                    return;
                }
                Some(reply) => assert!([503, 507].contains(&reply.status), "only a moment's trouble is tried again: {reply:?}"),
                None => {}
            }
            assert!(began.elapsed() < GIVEN_UP, "{key} is not accepted");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A source over MQTT.
    pub fn publish(&self, source: u64, level: u8, address: SocketAddr, chance: Chance) {
        let client = format!("source-{source}");
        let hello = if level == 5 { Hello::v5(&client) } else { Hello::v4(&client) };
        let (next, next_id, window) = (0, 1, VecDeque::new());
        let mut publishing = Publishing { sources: self, source, level, chance, next, next_id, window, is_known: false };
        let mut came_through = Instant::now();
        loop {
            let before = publishing.next;
            let outcome = publishing.converse(address, &hello);
            if outcome.is_ok() {
                return;
            }
            if publishing.next > before {
                came_through = Instant::now();
            }
            assert!(came_through.elapsed() < GIVEN_UP, "{client} does not come through");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sent, and not done with.
struct Sent {
    packet_id: u16,
    number: u64,
    qos: u8,
    topic: String,
    payload: String,
    /// PUBREC has come: from here on it is PUBREL that is sent again (MQTT 5.0 §4.3.3).
    is_received: bool,
}

/// A publisher that sends in order, and after a reconnect sends again, in order, what was not acknowledged.
struct Publishing<'a> {
    sources: &'a Sources,
    source: u64,
    level: u8,
    chance: Chance,
    next: u64,
    next_id: u16,
    window: VecDeque<Sent>,
    /// Something was acknowledged, so the session is durable.
    is_known: bool,
}

impl Publishing<'_> {
    /// One connection, until it breaks, or all is done and it is over.
    fn converse(&mut self, address: SocketAddr, hello: &Hello) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(&hello.bytes())?;
        let mut reader = io::BufReader::new(stream.try_clone()?);
        let connack = read(&mut reader)?;
        assert_eq!(connack.kind(), wire::CONNACK, "{connack:?}");
        // The server is unavailable: its store has failed, and it is about to end.
        if connack.body[1] == if self.level == 5 { 0x88 } else { 3 } {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        assert_eq!(connack.body[1], 0, "{connack:?}");
        assert!(connack.body[0] == 1 || !self.is_known, "the session of source {} is lost", self.source);
        for sent in &self.window {
            let again = match sent.is_received {
                true => wire::ack(wire::PUBREL, sent.packet_id, 0),
                false => publish(self.level, &sent.topic, sent.payload.as_bytes(), sent.qos, sent.packet_id, true, &[]),
            };
            stream.write_all(&again)?;
        }
        loop {
            while self.window.is_empty() && self.sources.is_paused() {
                std::thread::sleep(Duration::from_millis(5));
            }
            while self.window.len() < WINDOW && !self.sources.is_over() && !self.sources.is_paused() {
                let bytes = self.new_publish();
                stream.write_all(&bytes)?;
            }
            if self.window.is_empty() {
                if self.sources.is_over() {
                    return Ok(());
                }
                continue;
            }
            self.take(&read(&mut reader)?, &mut stream)?;
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn new_publish(&mut self) -> Vec<u8> {
        let (place, number) = (self.next, self.source << SOURCE_SHIFT | self.next);
        self.next += 1;
        let (qos, name) = match place % 6 {
            0 => (0, "perhaps"),
            1 => (1, "once"),
            2 | 3 => (2, "exactly"),
            _ => ([1, 2, 0, 2][(place / 6 % 4) as usize], "any"),
        };
        let topic = format!("mqtt/{}/{name}", self.source);
        let payload = self.sources.report("success", "any", number, &mut self.chance);
        self.sources.books().entries.insert(number, self.sources.entry(&topic, qos));
        let packet_id = if qos > 0 { self.free_id() } else { 0 };
        let bytes = publish(self.level, &topic, payload.as_bytes(), qos, packet_id, false, &[]);
        if qos > 0 {
            self.window.push_back(Sent { packet_id, number, qos, topic, payload, is_received: false });
        }
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
        // A PUBREL is sent again where its PUBCOMP was lost, and then the packet identifier is not known any more (MQTT 5.0 §3.7.2.1).
        if code == QUOTA_EXCEEDED && is_fitting && kind != wire::PUBCOMP {
            // It was not taken, and what came behind it may have been: about the order of its topic nothing can be said any more.
            self.sources.books().refused.insert(sent.topic.clone());
            std::thread::sleep(Duration::from_millis(20));
            return stream.write_all(&publish(self.level, &sent.topic, sent.payload.as_bytes(), sent.qos, id, false, &[]));
        }
        assert!(is_fitting && (code == 0 || (kind == wire::PUBCOMP && code == 0x92)), "{frame:?}");
        self.is_known = true;
        if kind == wire::PUBREC {
            sent.is_received = true;
            stream.write_all(&wire::ack(wire::PUBREL, id, 0))?;
        }
        if kind != wire::PUBCOMP {
            let number = sent.number;
            self.sources.books().entries.get_mut(&number).unwrap().order = Some(number);
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
