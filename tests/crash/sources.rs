//! Who reports: over HTTP with an idempotency key until it is accepted, and over MQTT with a persistent session, as the standard says.
//!
//! Nobody gives up, so at the end all that was sent at QoS 1 and 2 is accepted, and each number stands in the books.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::books::{Books, Entry, SOURCE_SHIFT};
use crate::chance::Chance;
use crate::publisher::Hello;
use crate::support::ledger::action_for;
use crate::support::tidings::Client;
use crate::window::{Heard, Window};

/// What is in flight from one publisher.
const WINDOW: usize = 10;

/// Packet identifiers come round soon, so that one that is remembered too long swallows another report.
const IDS: u16 = 40;

/// A service that says nothing for so long has hung.
const SILENCE: Duration = Duration::from_secs(20);

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
        let mut publishing = Publishing { sources: self, source, chance, next: 0, window: Window::new(level, IDS) };
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

/// A source at work.
struct Publishing<'a> {
    sources: &'a Sources,
    source: u64,
    chance: Chance,
    next: u64,
    /// What is under way, by its number.
    window: Window<u64>,
}

impl Publishing<'_> {
    /// One connection, until it breaks, or all is done and it is over.
    fn converse(&mut self, address: SocketAddr, hello: &Hello) -> io::Result<()> {
        let (mut stream, mut reader) = self.window.connect(address, hello, SILENCE)?;
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
            let sources = self.sources;
            self.window.take(&mut reader, &mut stream, &mut |heard| match heard {
                Heard::Accepted(number) => sources.books().entries.get_mut(number).unwrap().order = Some(*number),
                Heard::Refused(topic) => _ = sources.books().refused.insert(topic.to_owned()),
                Heard::Completed => {}
            })?;
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
        self.window.publish(topic, payload.into_bytes(), qos, number)
    }
}
