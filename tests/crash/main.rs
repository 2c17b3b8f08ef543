//! The promise under `kill -9` and broker outages, with the books kept outside of the process.
//!
//! ```text
//!   producers ─ POST, the same Idempotency-Key until 202 ─▶ Tidings ──▶ mosquitto ──▶ subscriber with a persistent session
//!       └──────────────▶ ledger: accepted ◀───── compared ─────▶ arrived ◀─────────────────┘
//! ```
//!
//! mosquitto has `persistence true` and `max_queued_messages 0`; everything else is its default. The order is read from its log: what it
//! has taken from Tidings. With its default window for a subscriber it does not keep that order itself, see `IN_ORDER`.
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_CRASH_ROUNDS` | kills under load; 20 if not set |
//! | `TIDINGS_CRASH_OUTAGE_SECONDS` | how long the broker is away while the service is killed again and again; 6 |
//! | `TIDINGS_CRASH_OUTAGE_KILLS` | how often; 4 |
//! | `TIDINGS_CRASH_SEED` | what chance decides; the time if not set, and printed |

#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::ledger::{Ledger, action_for, report};
use support::mosquitto::{Mosquitto, PERSISTENT, WITH_PACKETS};
use support::subscriber::Subscriber;
use support::tidings::{Client, PIPELINES, SOON, Tidings, connection};
use support::{wait_until, wait_within};

const PRODUCERS: u64 = 4;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// Chance that can be repeated, as far as the machine allows (xorshift).
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let seed = from_environment("TIDINGS_CRASH_SEED", u64::try_from(time & 0xffff_ffff).unwrap());
        println!("TIDINGS_CRASH_SEED={seed}");
        Chance(seed | 1 << 40)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn wait_ms(&mut self, from: u64, to: u64) {
        std::thread::sleep(Duration::from_millis(from + self.below(to - from)));
    }
}

/// Producers that post until they are told to stop, and never give up a report before it is accepted.
#[derive(Default)]
struct Producers {
    /// None while the service is down.
    client: RwLock<Option<Client>>,
    ledger: Mutex<Ledger>,
    is_over: AtomicBool,
    retries: AtomicU64,
}

impl Producers {
    /// One producer: topics of its own at QoS 1, at 2 and at both, and one that it shares with all the others.
    fn produce(&self, producer: u64) {
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let own = |name: &str| format!("{name}{producer}");
            let (qos, topic) = match number % 6 {
                0 => (1, own("once")),
                1 | 2 => (2, own("exactly")),
                3 => (1 + u8::from(number % 12 > 5), own("both")),
                4 => (2, "shared".to_owned()),
                _ => (1, "shared at least once".to_owned()),
            };
            let count = if number % 10 == 9 { 20 } else { 1 };
            let id = |of: u64| (producer << 40) + (number << 8) + of;
            let reports: Vec<String> = (0..count).map(|of| report(action_for(qos), &topic, id(of))).collect();
            self.post_until_accepted(&reports, &format!("{producer}-{number}"));
        }
    }

    fn post_until_accepted(&self, reports: &[String], key: &str) {
        let began = Instant::now();
        loop {
            let client = self.client.read().unwrap().clone();
            let body = reports.join("\n");
            let reply = client.and_then(|client| client.post(body.as_bytes(), "application/x-ndjson", Some(key)));
            match reply {
                Some(reply) if reply.status == 202 => {
                    let answer = reply.json();
                    let mut ledger = self.ledger.lock().unwrap();
                    for (report, answer) in reports.iter().zip(answer["reports"].as_array().unwrap()) {
                        ledger.enter(report.as_bytes(), &answer["deliveries"]);
                    }
                    return;
                }
                Some(reply) => assert!(reply.status == 503, "only a moment's trouble is tried again: {reply:?}"),
                None => {}
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{key} is not accepted");
            self.retries.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn at_work(&self, trouble: impl FnOnce()) {
        std::thread::scope(|scope| {
            for producer in 0..PRODUCERS {
                scope.spawn(move || self.produce(producer));
            }
            // Also when the trouble panics, so that the panic is seen.
            let _stop = StopAtDrop(&self.is_over);
            trouble();
        });
    }

    fn accepted(&self) -> usize {
        self.ledger.lock().unwrap().accepted.len()
    }

    fn up(&self, tidings: &Tidings) {
        *self.client.write().unwrap() = Some(tidings.client());
    }
}

struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `kill -9`, start, and a look into the books.
fn kill_and_start(tidings: &mut Tidings, producers: &Producers) -> Duration {
    tidings.kill();
    let began = Instant::now();
    tidings.run();
    let recovery = began.elapsed();
    tidings.assert_balanced();
    producers.up(tidings);
    recovery
}

fn check_and_print(what: &str, mosquitto: &Mosquitto, tidings: &Tidings, subscriber: &Subscriber, producers: &Producers) {
    tidings.wait_until_delivered_within(Duration::from_secs(180));
    let ledger = producers.ledger.lock().unwrap();
    wait_within(Duration::from_secs(60), "everything accepted arrives", || ledger.is_complete(&subscriber.arrivals()));
    let (found, taken) = (ledger.compare(&subscriber.arrivals()), mosquitto.taken());
    // More than were accepted: what it refuses for a moment, and has taken before, comes again under another identifier.
    assert!(taken.len() >= found.accepted, "mosquitto's log tells of everything");
    println!(
        "{what}: accepted {}, arrived {}, lost {}, QoS 2 twice {}, turned round by mosquitto {}, unknown {}, QoS 1 repeated {}; \
         posts repeated {}, possible duplicates counted {}",
        found.accepted,
        found.arrived,
        found.missing.len(),
        found.twice.len(),
        found.out_of_order.len(),
        found.unknown.len(),
        found.repeated.len(),
        producers.retries.load(Ordering::Relaxed),
        tidings.total("possible_duplicates"),
    );
    for line in tidings.logged("the broker's session is lost") {
        println!("  {} {}: {} in doubt, {}", line["timestamp"], line["lane"], line["in_doubt"], line["reason"]);
    }
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    let with_refused = ledger.topics_with_refused(tidings);
    println!("  topics with a report that mosquitto refused for a moment: {}", with_refused.len());
    mosquitto.assert_taken_in_order(&with_refused);
    tidings.assert_balanced();
    assert_eq!(tidings.total("created"), found.accepted as u64, "what was accepted is what is in the books, once");
}

/// Producers post all the time; the service is killed at random moments, and now and then the broker goes away.
fn kills_under_load(protocol: &str, rounds: u64) {
    let mut chance = Chance::new();
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, WITH_PACKETS].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let mut tidings = Tidings::start(&(connection(mosquitto.port, &format!("protocol = \"{protocol}\"")) + SOON + PIPELINES));
    let producers = Producers::default();
    producers.up(&tidings);
    producers.at_work(|| {
        for round in 1..=rounds {
            chance.wait_ms(100, 900);
            if chance.below(3) == 0 {
                mosquitto.stop();
                chance.wait_ms(200, 1_500);
                let is_killed_while_away = chance.below(2) == 0;
                if is_killed_while_away {
                    kill_and_start(&mut tidings, &producers);
                    chance.wait_ms(0, 300);
                }
                mosquitto.run();
                chance.wait_ms(0, 300);
            }
            let recovery = kill_and_start(&mut tidings, &producers);
            let (accepted, arrived) = (producers.accepted(), subscriber.count());
            println!("round {round}: accepted {accepted}, arrived {arrived}, ready again after {} ms", recovery.as_millis());
        }
    });
    check_and_print(&format!("{rounds} kills over MQTT {protocol}"), &mosquitto, &tidings, &subscriber, &producers);
}

#[test]
fn kills_and_broker_stops_under_load_lose_nothing_and_repeat_no_qos_2_over_mqtt_5() {
    kills_under_load("5", from_environment("TIDINGS_CRASH_ROUNDS", 20));
}

#[test]
fn kills_and_broker_stops_under_load_lose_nothing_and_repeat_no_qos_2_over_mqtt_3_1_1() {
    kills_under_load("3.1.1", from_environment("TIDINGS_CRASH_ROUNDS", 20));
}

#[test]
fn kills_while_the_broker_is_away_lose_nothing() {
    let seconds = from_environment("TIDINGS_CRASH_OUTAGE_SECONDS", 6);
    let kills = from_environment("TIDINGS_CRASH_OUTAGE_KILLS", 4);
    let mut chance = Chance::new();
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, WITH_PACKETS].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let mut tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let producers = Producers::default();
    producers.up(&tidings);
    producers.at_work(|| {
        wait_until("reports flow", || subscriber.count() > 200);
        mosquitto.stop();
        let began = Instant::now();
        let arrived = subscriber.count();
        let mut longest = Duration::ZERO;
        for _ in 0..kills {
            let spread = seconds * 1_000 / (kills + 1);
            chance.wait_ms(spread / 2, spread + 1);
            longest = longest.max(kill_and_start(&mut tidings, &producers));
        }
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
        let (accepted, pending) = (producers.accepted(), tidings.total("pending"));
        println!(
            "the broker was away for {} s with {kills} kills: accepted {accepted}, arrived {arrived}, pending {pending}, \
             longest start {} ms",
            began.elapsed().as_secs(),
            longest.as_millis()
        );
        mosquitto.run();
    });
    check_and_print("outage with kills", &mosquitto, &tidings, &subscriber, &producers);
}
