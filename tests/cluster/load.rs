//! Who reports, and the books of it: over HTTP with a key until some instance says 202; over MQTT see [`crate::publisher`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::publishing::Published;
use crate::scene::LANES;
use crate::support::ledger::{Arrival, Ledger, action_for, report};
use crate::support::subscriber::Subscriber;
use crate::support::{wait_until, wait_within};

/// Topics of the reports over HTTP: enough that every lane has some.
const TOPICS: u64 = 36;

/// So many bits count within a source.
pub const SOURCE_SHIFT: u32 = 40;

/// A producer that has no answer by then asks the next instance.
const PATIENCE: Duration = Duration::from_secs(2);

/// No report waits longer to be accepted, whatever is done to the instances.
pub const GIVEN_UP: Duration = Duration::from_secs(90);

#[derive(Default)]
pub struct Books {
    /// What was accepted over HTTP.
    pub ledger: Ledger,
    /// When each of those was posted first, and its topic.
    posted: HashMap<u64, (Instant, String)>,
    /// What was published over MQTT, by source and place.
    pub published: BTreeMap<(u64, u64), Published>,
    /// Topics over MQTT of which one was not taken for the moment.
    pub refused: HashSet<String>,
    lanes: HashMap<String, u64>,
    /// In which order the topics are used: once it is known, lane by lane, so that each of them has something new soon.
    order: Vec<u64>,
}

/// The load, and what it needs to know of the instances.
pub struct Load {
    pub addresses: Mutex<Vec<SocketAddr>>,
    pub listeners: Mutex<Vec<SocketAddr>>,
    books: Mutex<Books>,
    is_over: AtomicBool,
    /// Arrivals that nobody needs to look at again to see what comes now.
    seen: AtomicUsize,
}

/// Where the one at this place goes: some topics have one QoS, and some both by turns.
fn topic_and_qos(place: u64, order: &[u64]) -> (String, u8) {
    let topic = order[usize::try_from(place % TOPICS).expect("small")];
    let qos = match topic % 3 {
        0 => 2,
        1 => 1,
        _ => 1 + (place / TOPICS % 2) as u8,
    };
    (format!("p{topic}"), qos)
}

impl Load {
    pub fn new(addresses: Vec<SocketAddr>, listeners: Vec<SocketAddr>) -> Load {
        Load {
            addresses: Mutex::new(addresses),
            listeners: Mutex::new(listeners),
            books: Mutex::new(Books { order: (0..TOPICS).collect(), ..Books::default() }),
            is_over: AtomicBool::new(false),
            seen: AtomicUsize::new(0),
        }
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        // A source that has failed its test has nothing half done in there.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Two post and, where there are listeners, two publish, while `meanwhile` goes on, and until all of theirs is accepted.
    pub fn run<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            for source in 1..=2 {
                scope.spawn(move || self.post(source));
            }
            if !self.listeners.lock().unwrap().is_empty() {
                scope.spawn(move || self.publish(3, 4));
                scope.spawn(move || self.publish(4, 5));
            }
            // Also when it panics, so that the panic is seen.
            let _stop = StopAtDrop(&self.is_over);
            meanwhile()
        })
    }

    /// A producer that stays with an instance as long as that answers.
    fn post(&self, source: u64) {
        let agent =
            ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(PATIENCE)).build().new_agent();
        let mut at = usize::try_from(source).expect("small");
        for place in 0.. {
            if self.is_over() {
                return;
            }
            let number = source << SOURCE_SHIFT | place;
            let (topic, qos) = topic_and_qos(place, &self.books().order);
            let (body, key, began) = (report(action_for(qos), &topic, number), format!("{source}-{place}"), Instant::now());
            self.books().posted.insert(number, (began, topic));
            loop {
                let address = {
                    let addresses = self.addresses.lock().unwrap();
                    addresses[at % addresses.len()]
                };
                let request =
                    agent.post(format!("http://{address}/v1/reports")).content_type("application/json").header("Idempotency-Key", &key);
                let answer = request.send(body.as_bytes()).ok();
                let answer = answer.and_then(|mut reply| Some((reply.status().as_u16(), reply.body_mut().read_to_string().ok()?)));
                match answer {
                    Some((202, text)) => {
                        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                        self.books().ledger.enter(body.as_bytes(), &answer["deliveries"]);
                        break;
                    }
                    Some((status, text)) => {
                        assert!([503, 507].contains(&status), "only a moment's trouble is tried again: {status} {text}")
                    }
                    None => {}
                }
                assert!(began.elapsed() < GIVEN_UP, "{key} is not accepted");
                at += 1;
                sleep(Duration::from_millis(20));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Learns in which lane each topic goes; waits until every topic has been used.
    pub fn learn_lanes(&self, ask: impl Fn(&str) -> Option<serde_json::Value>) {
        wait_until("all topics are in use", || {
            let books = self.books();
            (0..TOPICS).all(|topic| books.ledger.accepted.iter().any(|known| known.topic == format!("zuul/p{topic}")))
        });
        let known: HashMap<String, u64> = self.books().ledger.accepted.iter().map(|known| (known.topic.clone(), known.id)).collect();
        let lane_of = |id: u64| {
            let mut lane = None;
            wait_until("the lane is told", || {
                lane = ask(&format!("/v1/deliveries/{id}")).and_then(|story| story["lane"].as_u64());
                lane.is_some()
            });
            lane.unwrap()
        };
        let lanes: HashMap<String, u64> = known.into_iter().map(|(topic, id)| (topic, lane_of(id))).collect();
        assert_eq!(lanes.values().collect::<BTreeSet<_>>().len(), LANES, "every lane has topics: {lanes:?}");
        let lane = |topic: &u64| lanes[&format!("zuul/p{topic}")];
        let mut order: Vec<(usize, u64)> = Vec::new();
        for topic in 0..TOPICS {
            let before = order.iter().filter(|(_, other)| lane(other) == lane(&topic)).count();
            order.push((before, topic));
        }
        order.sort_unstable();
        let mut books = self.books();
        (books.order, books.lanes) = (order.into_iter().map(|(_, topic)| topic).collect(), lanes);
    }

    /// The lane of what has arrived, if it was posted after this.
    pub fn lane_if_posted_after(&self, arrival: &Arrival, began: Instant) -> Option<u64> {
        let value: serde_json::Value = serde_json::from_slice(&arrival.payload).ok()?;
        let number: u64 = value["change"].as_str()?.parse().ok()?;
        let books = self.books();
        let (posted, _) = books.posted.get(&number)?;
        (*posted > began).then(|| books.lanes.get(&arrival.topic).copied())?
    }

    /// Arrivals so far need not be looked at to see what comes now.
    pub fn pass_over(&self, arrivals: usize) {
        self.seen.store(arrivals, Ordering::Relaxed);
    }

    pub fn first_seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// Waits until all has arrived, and holds the books against it. `with_doubts`: instances were silent, so a publisher that left one may have been
    /// heard twice.
    pub fn check(&self, subscriber: &Subscriber, with_doubts: bool) {
        self.check_but_for(subscriber, None, with_doubts);
    }

    /// The same, but for what the test posted itself, to this topic.
    pub fn check_but_for(&self, subscriber: &Subscriber, passed_over: Option<&str>, with_doubts: bool) {
        let books = self.books();
        let split = || -> (Vec<Arrival>, Vec<Arrival>) {
            let arrivals = subscriber.arrivals().into_iter().filter(|arrival| Some(arrival.topic.as_str()) != passed_over);
            arrivals.partition(|arrival| !arrival.topic.starts_with("mqtt/"))
        };
        let is_complete = || {
            let (posted, published) = split();
            books.ledger.is_complete(&posted) && Published::missing(&books.published, &published).is_empty()
        };
        let until = Instant::now() + GIVEN_UP;
        while !is_complete() && Instant::now() < until {
            sleep(Duration::from_millis(200));
        }
        let (posted, published) = split();
        let found = books.ledger.compare(&posted);
        let over_mqtt = Published::compare(&books.published, &books.refused, &published);
        println!(
            "over HTTP accepted {}, arrived {}, QoS 1 repeated {}; over MQTT acknowledged {}, arrived {}, QoS 1 repeated {}, QoS 2 repeated for whoever left \
             an instance that was silent {}; lost {}, QoS 2 twice {}, out of order {}",
            found.accepted,
            found.arrived,
            found.repeated.len(),
            books.published.values().filter(|one| one.is_acknowledged).count(),
            published.len(),
            over_mqtt.repeated,
            over_mqtt.doubts.len(),
            found.missing.len() + over_mqtt.missing.len(),
            found.twice.len() + over_mqtt.twice.len(),
            found.out_of_order.len() + over_mqtt.out_of_order.len(),
        );
        let is_kept = found.missing.is_empty() && found.twice.is_empty() && found.out_of_order.is_empty() && found.unknown.is_empty();
        assert!(is_kept, "the promise is broken: {found:#?}");
        over_mqtt.assert_kept();
        assert!(with_doubts || over_mqtt.doubts.is_empty(), "{over_mqtt:#?}");
    }

    /// Waits until something has arrived that is posted from now on, in every lane.
    pub fn wait_until_all_lanes_deliver(&self, subscriber: &Subscriber, lanes: usize) {
        let (began, mut seen, mut delivering) = (Instant::now(), self.first_seen(), BTreeSet::new());
        wait_within(GIVEN_UP, "every lane delivers", || {
            for arrival in subscriber.arrivals_behind(seen) {
                seen += 1;
                delivering.extend(self.lane_if_posted_after(&arrival, began));
            }
            delivering.len() == lanes
        });
        self.pass_over(seen);
    }
}

struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
