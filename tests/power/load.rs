//! Load over HTTP and MQTT that nobody gives up: what was not answered is sent again after the cut, as producers do.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::LONG;
use crate::support::ledger::{Arrival, Ledger, action_for};
use crate::support::tidings::{Client, Tidings};
use crate::support::wire::{self, Frame};

const PRODUCERS: u64 = 3;
/// What comes over MQTT is published below this.
const TOPIC: &str = "listener/";

/// Everybody who sends, and the books of what was answered.
#[derive(Default)]
pub struct Load {
    /// None while the service is down.
    service: RwLock<Option<(Client, SocketAddr)>>,
    ledger: Mutex<Ledger>,
    /// Over MQTT: the QoS of each number.
    published: Mutex<HashMap<u64, u8>>,
    /// Deliveries that were answered: by 202, PUBACK or PUBREC.
    answered: AtomicU64,
    is_over: AtomicBool,
    /// The test has failed: nobody waits for an answer any more.
    is_given_up: AtomicBool,
}

/// So many bytes that do not compress, as text.
pub fn noise(number: u64, length: usize) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for piece in 0..10.min(length - text.len()) {
            text.push(char::from(letters[(state >> (6 * piece)) as usize % 64]));
        }
    }
    text
}

/// Most are small, one in ten is large.
fn length(number: u64) -> usize {
    if number % 10 == 7 { 120_000 + (number * 977 % 80_000) as usize } else { 100 }
}

impl Load {
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    pub fn is_up(&self, tidings: &Tidings) {
        *self.service.write().unwrap() = Some((tidings.client(), tidings.listener()));
    }

    pub fn is_down(&self) {
        *self.service.write().unwrap() = None;
    }

    /// Runs it as long as `trouble` lasts, and until all that was begun is answered.
    pub fn while_there_is(&self, trouble: impl FnOnce()) {
        std::thread::scope(|scope| {
            for producer in 0..PRODUCERS {
                scope.spawn(move || self.produce(producer));
            }
            scope.spawn(|| Publisher::new(self).publish());
            // Also when the trouble panics, so that the panic is seen.
            let _stop = StopAtDrop(self);
            trouble();
        });
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn produce(&self, producer: u64) {
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let count = if number % 12 == 5 { 15 } else { 1 };
            let reports: Vec<String> = (0..count)
                .map(|of| {
                    let id = (producer << 40) + (number << 8) + of;
                    let (qos, message) = (1 + u8::from(number % 3 > 0), noise(id, if count > 1 { 100 } else { length(number) }));
                    let action = action_for(qos);
                    format!(
                        r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"p{producer}q{qos}","change":"{id}","message":"{message}"}}"#
                    )
                })
                .collect();
            self.post_until_accepted(&reports, &format!("{producer}-{number}"));
        }
    }

    fn post_until_accepted(&self, reports: &[String], key: &str) {
        let began = Instant::now();
        loop {
            let client = self.service.read().unwrap().as_ref().map(|(client, _)| client.clone());
            let body = reports.join("\n");
            match client.and_then(|client| client.post(body.as_bytes(), "application/x-ndjson", Some(key))) {
                Some(reply) if reply.status == 202 => {
                    let answer = reply.json();
                    let mut ledger = self.ledger.lock().unwrap();
                    for (report, answer) in reports.iter().zip(answer["reports"].as_array().unwrap()) {
                        ledger.enter(report.as_bytes(), &answer["deliveries"]);
                    }
                    self.answered.fetch_add(reports.len() as u64, Ordering::SeqCst);
                    return;
                }
                Some(reply) => assert!([503, 507].contains(&reply.status), "only what passes is tried again: {reply:?}"),
                None => {}
            }
            if self.is_given_up.load(Ordering::Relaxed) {
                return;
            }
            assert!(began.elapsed() < LONG, "{key} is not accepted");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What of the answered reports has not arrived yet.
    pub fn missing(&self, arrivals: &[Arrival]) -> usize {
        let (over_mqtt, over_http): (Vec<Arrival>, Vec<Arrival>) =
            arrivals.iter().cloned().partition(|arrival| arrival.topic.starts_with(TOPIC));
        let found = self.ledger.lock().unwrap().compare(&over_http);
        let times = times(&over_mqtt);
        found.missing.len() + self.published.lock().unwrap().keys().filter(|number| !times.contains_key(number)).count()
    }

    /// Nothing that was answered is missing, nothing is there that nobody sent, and with `once` no QoS 2 came twice.
    pub fn assert_kept(&self, arrivals: &[Arrival], once: bool) {
        let (over_mqtt, over_http): (Vec<Arrival>, Vec<Arrival>) =
            arrivals.iter().cloned().partition(|arrival| arrival.topic.starts_with(TOPIC));
        let found = self.ledger.lock().unwrap().compare(&over_http);
        let (published, times) = (self.published.lock().unwrap(), times(&over_mqtt));
        let missing: Vec<&u64> = published.keys().filter(|number| !times.contains_key(number)).collect();
        let twice: Vec<&u64> =
            published.iter().filter(|(number, qos)| **qos == 2 && times.get(number) > Some(&1)).map(|(number, _)| number).collect();
        println!(
            "over HTTP: accepted {}, lost {}, QoS 2 twice {}, QoS 1 repeated {}; over MQTT: acknowledged {}, lost {}, QoS 2 twice {}",
            found.accepted,
            found.missing.len(),
            found.twice.len(),
            found.repeated.len(),
            published.len(),
            missing.len(),
            twice.len()
        );
        assert!(found.missing.is_empty() && found.unknown.is_empty() && missing.is_empty(), "lost: {found:#?} {missing:?}");
        assert!(!once || found.twice.is_empty() && twice.is_empty(), "twice: {found:#?} {twice:?}");
        assert!(times.keys().all(|number| published.contains_key(number)), "what arrived was published");
    }

    /// How many deliveries there must be at least, and at most: at QoS 1 a publisher that was not answered makes another.
    pub fn assert_booked(&self, tidings: &Tidings) {
        let answered = (self.ledger.lock().unwrap().accepted.len() + self.published.lock().unwrap().len()) as u64;
        assert!(tidings.total("created") >= answered, "{} in the books, {answered} answered", tidings.total("created"));
    }
}

fn times(over_mqtt: &[Arrival]) -> HashMap<u64, u64> {
    let mut times = HashMap::new();
    for arrival in over_mqtt {
        let text = String::from_utf8_lossy(&arrival.payload[..arrival.payload.len().min(24)]).into_owned();
        let number = text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(arrival.payload, payload(number).into_bytes(), "{} came through as it was", arrival.topic);
        *times.entry(number).or_default() += 1;
    }
    times
}

fn payload(number: u64) -> String {
    format!("{number} {}", noise(number, length(number)))
}

/// A publisher over MQTT 3.1.1 with a session that lasts: it sends a few, waits for their acknowledgements, and sends again after a cut what
/// was not acknowledged.
struct Publisher<'a> {
    load: &'a Load,
    next: u64,
    /// Sent and not done: its number, its QoS, and whether its PUBREC has come.
    window: Vec<(u64, u8, bool)>,
}

impl<'a> Publisher<'a> {
    fn new(load: &'a Load) -> Publisher<'a> {
        Publisher { load, next: 1, window: Vec::new() }
    }

    fn publish(mut self) {
        let mut last = Instant::now();
        while !self.load.is_over() || !self.window.is_empty() {
            let address = self.load.service.read().unwrap().as_ref().map(|(_, address)| *address);
            let before = (self.next, self.window.len());
            let result = address.map(|address| self.converse(address));
            if matches!(result, Some(Ok(()))) {
                return;
            }
            if self.load.is_given_up.load(Ordering::Relaxed) {
                return;
            }
            if before != (self.next, self.window.len()) {
                last = Instant::now();
            }
            assert!(last.elapsed() < LONG, "{:?} are not acknowledged: {result:?}", self.window);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn packet(number: u64) -> u16 {
        u16::try_from(number % 60_000 + 1).unwrap()
    }

    fn send(stream: &mut TcpStream, number: u64, qos: u8, is_again: bool) -> io::Result<()> {
        let mut body = wire::text(&format!("{TOPIC}q{qos}"));
        body.extend(Self::packet(number).to_be_bytes());
        body.extend(payload(number).as_bytes());
        stream.write_all(&wire::packet(wire::PUBLISH << 4 | qos << 1 | u8::from(is_again) << 3, &body))
    }

    /// One connection, until it breaks or all is over.
    fn converse(&mut self, address: SocketAddr) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(&wire::packet(wire::CONNECT << 4, &[wire::text("MQTT"), vec![4, 0, 0, 0], wire::text("publisher")].concat()))?;
        let next = |stream: &mut TcpStream| Frame::read(stream)?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof));
        let connack = next(&mut stream)?;
        if connack.body[1] == 3 {
            // Server unavailable (MQTT 3.1.1 §3.2.2.3): its disk is slow or gone, and a session has to be written down.
            return Err(io::Error::other("it is not available now"));
        }
        assert_eq!(connack.body[1], 0, "welcome");
        let is_known = connack.body[0] == 1;
        assert!(
            is_known || self.window.iter().all(|(_, _, has_come)| !has_come),
            "a session with a PUBREC in it is lost: {:?}",
            self.window
        );
        for (number, qos, has_come) in &self.window {
            match has_come {
                true => stream.write_all(&wire::ack(wire::PUBREL, Self::packet(*number), 0))?,
                false => Self::send(&mut stream, *number, *qos, is_known)?,
            }
        }
        loop {
            while self.window.len() < 5 && !self.load.is_over() {
                let (number, qos) = (self.next, 1 + (self.next % 2) as u8);
                self.next += 1;
                self.window.push((number, qos, false));
                Self::send(&mut stream, number, qos, false)?;
            }
            if self.window.is_empty() {
                return Ok(());
            }
            let frame = next(&mut stream)?;
            let of = |window: &[(u64, u8, bool)]| window.iter().position(|(number, ..)| Self::packet(*number) == frame.packet_id());
            let Some(at) = of(&self.window) else { continue };
            let (number, qos, has_come) = self.window[at];
            match frame.kind() {
                wire::PUBACK | wire::PUBREC => {
                    if !has_come {
                        self.load.published.lock().unwrap().insert(number, qos);
                        self.load.answered.fetch_add(1, Ordering::SeqCst);
                    }
                    if qos == 1 {
                        self.window.remove(at);
                    } else {
                        self.window[at].2 = true;
                        stream.write_all(&wire::ack(wire::PUBREL, frame.packet_id(), 0))?;
                    }
                }
                wire::PUBCOMP => drop(self.window.remove(at)),
                kind => panic!("packet {kind}"),
            }
        }
    }
}

struct StopAtDrop<'a>(&'a Load);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.is_given_up.store(std::thread::panicking(), Ordering::Relaxed);
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}
