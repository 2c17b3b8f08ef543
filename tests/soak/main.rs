//! The real process for as long as one likes: load over HTTP and the MQTT listener, a broker that comes and goes, reloads, and kills if asked.
//! Nothing may be lost, and nothing may grow. `ops/soak process` runs it for long; without being told otherwise it takes some seconds.
//!
//! ```text
//!   producers ── POST, the same key until 202 ──▶ Tidings ──▶ mosquitto ──▶ subscriber
//!   publisher ── MQTT, QoS 2, until PUBCOMP ────▶    │         stop · STOP       │
//!       └──────────▶ books ◀──────── compared ───────┼───────────────────────────┘
//!                    samples: memory, descriptors, threads, disk ─▶ thirds compared
//! ```
//!
//! What a report is follows from its number, so the books are numbers, and the test itself stays small over hours. The store is as small as one
//! may be and keeps delivered reports for seconds, so that generations are made and deleted all the time.
//!
//! # What "flat" means
//! The median of the last third of all samples against that of the middle third; the first third is for warming up. In a run of less than
//! [`LONG`] neither third is long enough for that, and there are only ceilings. After the load has ended, descriptors and threads have to come back
//! to what they were before it.
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_SOAK_SECONDS` | how long there is load; 15 |
//! | `TIDINGS_SOAK_RATE` | reports a second; 200 |
//! | `TIDINGS_SOAK_KILLS` | 1: `kill -9` of the service now and then |
//! | `TIDINGS_SOAK_CSV` | the file for the samples |
//! | `TIDINGS_SOAK_SEED` | what chance decides; the time if not set, and printed |

#[path = "../support/mod.rs"]
mod support;

mod books;
mod load;
mod samples;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use books::Books;
use load::Load;
use samples::{Sample, Samples};
use support::mosquitto::{Mosquitto, PERSISTENT};
use support::subscriber::Subscriber;
use support::tidings::{PIPELINES, SOON, Tidings, connection};
use support::{PATIENCE, wait_until, wait_within};

/// From here on thirds are compared: each has dozens of samples and some outages.
const LONG: Duration = Duration::from_secs(300);

/// Descriptors that a service at rest may have more than before the load: files of sealed generations that are kept open.
const KEPT_OPEN: u64 = 16;

/// Threads that it may have more: tokio and the database keep some for what may come.
const POOLED: u64 = 6;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// What goes wrong next, in turn.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    StopBroker,
    Reload,
    FreezeBroker,
    Kill,
}

struct Soak {
    tidings: Tidings,
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    books: Books,
    samples: Samples,
    began: Instant,
    /// When the next sample is due, and the time between two.
    sample_at: Instant,
    interval: Duration,
    reloads: u64,
}

impl Soak {
    fn configure(&self) {
        let attempts = 3 + self.reloads % 2;
        let retry = SOON.replace("attempts = 3", &format!("attempts = {attempts}"));
        let config = format!(
            "[store]\npath = \"{}\"\nmax_size = \"32MiB\"\nretention = \"2s\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [listener]\nlisten = \"127.0.0.1:0\"\nconnection = \"mqtt\"\n{}{retry}{PIPELINES}",
            self.tidings.store().display(),
            connection(self.mosquitto.port, ""),
        );
        let new = self.tidings.config_file().with_extension("new");
        std::fs::write(&new, config).unwrap();
        std::fs::rename(new, self.tidings.config_file()).unwrap();
    }

    /// Lets time pass: samples are taken, and what has arrived is entered.
    fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if Instant::now() >= self.sample_at {
                self.sample_at = Instant::now() + self.interval;
                let seconds = self.began.elapsed().as_secs_f64();
                let backlog = self.tidings.total("pending");
                self.samples.take(seconds, backlog, self.tidings.pid(), &self.tidings.store());
                self.books.arrived(self.subscriber.take());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn trouble(&mut self, trouble: Trouble, load: &Load, away: Duration) {
        match trouble {
            Trouble::StopBroker => {
                self.mosquitto.stop();
                self.pass(away);
                self.mosquitto.run();
            }
            Trouble::FreezeBroker => {
                self.mosquitto.freeze();
                self.pass(away);
                self.mosquitto.thaw();
            }
            Trouble::Reload => {
                self.reloads += 1;
                self.configure();
                assert!(self.tidings.reload_file(), "the configuration is put in force");
            }
            Trouble::Kill => {
                self.tidings.kill();
                self.tidings.run();
                self.tidings.assert_balanced();
                load.goes_to(&self.tidings);
            }
        }
    }

    /// A service at rest: no backlog, and everything has arrived.
    fn come_to_rest(&mut self, limit: Duration) {
        self.tidings.wait_until_delivered_within(limit);
        wait_within(limit, "everything accepted arrives", || {
            self.books.arrived(self.subscriber.take());
            self.books.missing().is_empty()
        });
    }
}

#[test]
fn a_service_under_load_and_trouble_loses_nothing_and_does_not_grow() {
    let length = Duration::from_secs(from_environment("TIDINGS_SOAK_SECONDS", 15));
    let (rate, kills) = (from_environment("TIDINGS_SOAK_RATE", 200), from_environment("TIDINGS_SOAK_KILLS", 0) > 0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut chance = from_environment("TIDINGS_SOAK_SEED", time);
    println!("{} s, {rate} reports a second, kills: {kills}, TIDINGS_SOAK_SEED={chance}", length.as_secs());
    let is_long = length >= LONG;
    let [interval, away] = if is_long { [2_000, 5_000] } else { [250, 1_000] }.map(Duration::from_millis);

    let mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let now = Instant::now();
    let mut soak = Soak {
        tidings: Tidings::prepare(""),
        mosquitto,
        subscriber,
        books: Books::default(),
        samples: Samples::to(std::env::var_os("TIDINGS_SOAK_CSV").map(PathBuf::from)),
        began: now,
        sample_at: now,
        interval,
        reloads: 0,
    };
    soak.configure();
    soak.tidings.run();
    let load = Load::default();
    load.goes_to(&soak.tidings);
    // Once round, so that everything that is opened for good is open; then it rests.
    load.at_work(20, || soak.pass(Duration::from_secs(2)));
    soak.books.accepted(load.take_accepted());
    soak.come_to_rest(PATIENCE);
    let before = Sample::of(soak.tidings.pid(), &soak.tidings.store());

    soak.samples.clear();
    soak.began = Instant::now();
    let kinds = [Trouble::StopBroker, Trouble::Reload, Trouble::FreezeBroker, Trouble::Kill];
    load.at_work(rate, || {
        for turn in 0.. {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let quiet = away * 2 + away.mul_f64((chance >> 40) as f64 / f64::from(1 << 24));
            soak.pass(quiet);
            if soak.began.elapsed() > length {
                break;
            }
            let trouble = kinds[turn % if kills { 4 } else { 3 }];
            soak.trouble(trouble, &load, away);
            soak.books.accepted(load.take_accepted());
        }
    });
    soak.books.accepted(load.take_accepted());
    soak.come_to_rest(Duration::from_secs(180));

    soak.books.check();
    soak.tidings.assert_balanced();
    assert_eq!(soak.tidings.total("created"), soak.books.count(), "what was accepted is what is in the books, once");
    assert!(soak.reloads > 0 && !soak.tidings.logged("a generation past its retention was deleted").is_empty(), "all of it came about");
    print!("{}", soak.samples.table());
    if is_long {
        soak.samples.assert_flat()
    } else {
        soak.samples.assert_below_ceilings()
    }
    let pid = soak.tidings.pid();
    let mut after = Sample::of(pid, &soak.tidings.store());
    // Threads for blocking work stay for ten seconds, and longer if there is something to do now and then.
    wait_until("descriptors and threads come back to what they were", || {
        after = Sample::of(pid, &soak.tidings.store());
        after.descriptors <= before.descriptors + KEPT_OPEN && after.threads <= before.threads + POOLED
    });
    println!("before: {before}\nafter:  {after}\n{}", soak.books);
    assert_eq!(soak.tidings.stop(), Some(0));
}
