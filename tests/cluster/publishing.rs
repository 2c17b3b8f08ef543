//! A publisher over MQTT with a persistent session, which goes on at the next instance where one fails: in order, and what was not acknowledged again.
//!
//! What the standard gives there: an instance that ends its connection has said all that it will say, so QoS 2 stays exactly once. One that
//! is silent may have read what nobody will ask it about again; who leaves it and goes on elsewhere may be heard twice. Such reports are noted as *in
//! doubt*, and counted apart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::load::{GIVEN_UP, Load};
use crate::publisher::Hello;
use crate::support::ledger::Arrival;
use crate::window::{Heard, Window};

/// In flight from one publisher.
const WINDOW: usize = 5;

/// Packet identifiers come round soon, so that one that is remembered too long swallows another report.
const IDS: u16 = 30;

/// An instance that says nothing for so long is left.
const SILENCE: Duration = Duration::from_secs(2);

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

/// A source at work.
struct Publishing<'a> {
    load: &'a Load,
    source: u64,
    next: u64,
    /// What is under way, by its place.
    window: Window<u64>,
}

impl Load {
    /// A source over MQTT of this version.
    pub fn publish(&self, source: u64, level: u8) {
        let client = format!("source-{source}");
        let hello = if level == 5 { Hello::v5(&client) } else { Hello::v4(&client) };
        let mut publishing = Publishing { load: self, source, next: 0, window: Window::new(level, IDS) };
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
        for place in self.window.sent() {
            books.published.get_mut(&(self.source, *place)).expect("it was sent").is_in_doubt = true;
        }
    }

    /// One connection, until it breaks, or all is done and it is over.
    fn converse(&mut self, address: SocketAddr, hello: &Hello) -> io::Result<()> {
        let (mut stream, mut reader) = self.window.connect(address, hello, SILENCE)?;
        loop {
            while self.window.len() < WINDOW && !self.load.is_over() {
                let bytes = self.new_publish();
                stream.write_all(&bytes)?;
            }
            if self.window.is_empty() {
                return Ok(());
            }
            let (load, source) = (self.load, self.source);
            self.window.take(&mut reader, &mut stream, &mut |heard| match heard {
                Heard::Accepted(place) => {
                    load.books().published.get_mut(&(source, *place)).expect("it was sent").is_acknowledged = true;
                }
                Heard::Refused(topic) => _ = load.books().refused.insert(topic.to_owned()),
                Heard::Completed => {}
            })?;
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
        self.window.publish(topic, format!("{}-{place}", self.source).into_bytes(), qos, place)
    }
}
