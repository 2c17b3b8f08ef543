//! All of it together: a broker, its readers, the service, and four who report to it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::books::Books;
use crate::chance::Chance;
use crate::sources::Sources;
use crate::support::mosquitto::{Mosquitto, PERSISTENT, free_port};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;
use crate::watcher::Watcher;

/// Small generations, so that kills meet their beginning, sealing and dropping too, and what is delivered goes at once.
const SMALL: &str = "max_size = \"32MiB\"\nretention = \"1s\"\n";

/// How long the service may take for what it is to die in.
const DIES_WITHIN: Duration = Duration::from_secs(60);

/// How long what is delivered may take through the broker; what has not come by then is missing.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

/// Bytes that the store takes: in time before its end, which is 32 MiB.
const MUCH: f64 = (20 << 20) as f64;

/// Deliveries that wait.
const FAR_BEHIND: u64 = 1_200;

pub struct Scene {
    pub mosquitto: Mosquitto,
    pub subscriber: Subscriber,
    pub watcher: Watcher,
    pub tidings: Tidings,
    pub sources: Sources,
    pub chance: Chance,
    listener: SocketAddr,
    began: Instant,
}

impl Scene {
    /// A service that delivers over this protocol, started; reports have so many bytes of noise at most. `more` is further configuration.
    pub fn start(protocol: &str, noise: u64, more: &str) -> Scene {
        let mosquitto = Mosquitto::start(PERSISTENT);
        let (subscriber, watcher) = (Subscriber::start(mosquitto.port), Watcher::start(mosquitto.port));
        let listener = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let settings = format!("[listener]\nlisten = \"{listener}\"\nconnection = \"mqtt\"\n");
        let lanes = format!("protocol = \"{protocol}\"\nwindow = 20\nwindow_3_1_1 = 20\nworkers = 4\n");
        let config = settings + &connection(mosquitto.port, &lanes) + SOON + PIPELINES + more;
        let mut tidings = Tidings::prepare("");
        tidings.store_settings = SMALL.into();
        tidings.configure(&config);
        tidings.run();
        let (phase, is_over, books) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Books::default()));
        let noise = AtomicU64::new(noise);
        let sources =
            Sources { client: RwLock::new(Some(tidings.client())), books, phase, is_over, is_paused: AtomicBool::new(false), noise };
        Scene { mosquitto, subscriber, watcher, tidings, sources, chance: Chance::new(), listener, began: Instant::now() }
    }

    /// Has all report while `trouble` goes on, and until all of theirs is accepted.
    pub fn under_load(&mut self, trouble: impl FnOnce(&mut Trouble)) {
        let Scene { mosquitto, subscriber, tidings, sources, chance, listener, began, .. } = self;
        let (sources, listener) = (&*sources, *listener);
        sources.is_over.store(false, Ordering::Relaxed);
        let chances: Vec<Chance> = (0..4).map(|_| chance.fork()).collect();
        std::thread::scope(|scope| {
            for (source, chance) in (1..).zip(chances) {
                scope.spawn(move || match source {
                    1 | 2 => sources.post(source, chance),
                    3 => sources.publish(source, 4, listener, chance),
                    _ => sources.publish(source, 5, listener, chance),
                });
            }
            // Also when the trouble panics, so that the panic is seen.
            let _stop = StopAtDrop(&sources.is_over);
            trouble(&mut Trouble { mosquitto, subscriber, tidings, sources, chance, began: *began });
        });
    }

    /// Waits until all is delivered, and holds the books against each other.
    pub fn check(&mut self, what: &str, with_qos_0: bool) {
        let tidings = &self.tidings;
        tidings.wait_until_delivered_within(Duration::from_secs(180));
        let books = self.sources.books();
        let until = Instant::now() + ARRIVES_WITHIN;
        while Instant::now() < until && !(self.subscriber.count() >= books.accepted() && books.is_complete(&self.subscriber.arrivals())) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let found = books.assert_kept(&self.subscriber.arrivals());
        let seen = self.watcher.seen();
        let passed_over = topics_with_refused(&books, tidings);
        println!(
            "{what}: accepted {}, arrived {}, seen in order {}, of QoS 0 and 1 repeated {}, of QoS 0 lost in a socket {}; disturbances {}, topics with \
             a refused report {}, possible duplicates counted {}",
            found.accepted,
            found.arrived,
            seen.len(),
            found.repeated.len(),
            found.missing_qos_0,
            books.marks.len(),
            passed_over.len(),
            tidings.total("possible_duplicates"),
        );
        for line in tidings.logged("the broker's session is lost") {
            println!("  {} {}: {} in doubt, {}", line["timestamp"], line["lane"], line["in_doubt"], line["reason"]);
        }
        books.assert_in_order(&seen, &found.repeated, &passed_over, with_qos_0);
        tidings.assert_balanced();
        let created = tidings.total("created");
        let (known, sent) = (found.accepted as u64, books.entries.len() as u64);
        assert!((known..=sent).contains(&created), "{known} were accepted, {sent} sent, and {created} are in the service's books");
    }
}

/// Of the topics of which mosquitto has refused a report for a moment the order is not promised. Those of the listener's are not told apart.
fn topics_with_refused(books: &Books, tidings: &Tidings) -> HashSet<String> {
    let refused: HashSet<u64> =
        tidings.logged("the broker refused a report").iter().map(|line| line["delivery"].as_str().unwrap().parse().unwrap()).collect();
    let topic_of = |id: &u64| books.entries.values().find(|entry| entry.order == Some(*id)).map(|entry| entry.topic.clone());
    let mut topics: HashSet<String> = refused.iter().filter_map(topic_of).collect();
    if topics.len() < refused.len() && refused.iter().any(|id| topic_of(id).is_none()) {
        topics.extend(books.entries.values().map(|entry| entry.topic.clone()).filter(|topic| topic.starts_with("mqtt/")));
    }
    topics.extend(books.refused.iter().cloned());
    topics
}

struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What can be done to all of it while reports come.
pub struct Trouble<'a> {
    pub mosquitto: &'a mut Mosquitto,
    pub subscriber: &'a Subscriber,
    pub tidings: &'a mut Tidings,
    pub sources: &'a Sources,
    pub chance: &'a mut Chance,
    began: Instant,
}

impl Trouble<'_> {
    fn note(&self, what: &str) {
        let mut books = self.sources.books();
        let line = format!("{:7.3} s, phase {}: {what}", self.began.elapsed().as_secs_f64(), books.marks.len());
        books.chronicle.push(line);
    }

    /// Something that gives reports a reason to arrive again.
    pub fn disturb<T>(&mut self, what: &str, act: impl FnOnce(&mut Self) -> T) -> T {
        self.note(what);
        let count = self.subscriber.count();
        self.sources.books().marks.push(count);
        let done = act(self);
        self.sources.phase.fetch_add(1, Ordering::SeqCst);
        done
    }

    fn kill(&mut self) {
        self.tidings.kill();
        // Its port may be somebody else's next.
        *self.sources.client.write().unwrap() = None;
    }

    /// Starts it, and looks into its books.
    fn start(&mut self) {
        self.tidings.run();
        self.tidings.assert_balanced();
        *self.sources.client.write().unwrap() = Some(self.tidings.client());
    }

    /// `kill -9`, start, and a look into the books.
    pub fn kill_and_start(&mut self) {
        self.disturb("kill", |this| this.kill());
        self.start();
    }

    /// Waits where deliveries are so far behind that the small store could be full soon.
    pub fn catch_up(&mut self) {
        let store = || self.tidings.metric("tidings_store_bytes");
        if self.tidings.total("pending") > FAR_BEHIND || store() > MUCH {
            self.note("the sources wait for deliveries to catch up");
            self.sources.is_paused.store(true, Ordering::Relaxed);
            wait_until("deliveries catch up", || self.tidings.total("pending") < FAR_BEHIND / 4 && store() < MUCH / 4.0 * 3.0);
            self.sources.is_paused.store(false, Ordering::Relaxed);
        }
    }

    pub fn stop_broker(&mut self) {
        self.disturb("the broker stops", |this| this.mosquitto.stop());
    }

    pub fn run_broker(&mut self) {
        self.disturb("the broker starts", |this| this.mosquitto.run());
    }

    pub fn freeze_broker(&mut self) {
        self.disturb("the broker is frozen", |this| this.mosquitto.freeze());
    }

    pub fn thaw_broker(&mut self) {
        self.disturb("the broker is thawed", |this| this.mosquitto.thaw());
    }

    /// Has the service run with this in its environment until it ends, which it has to, and starts it again without. `meanwhile` is called
    /// once it answers, and again and again.
    pub fn run_to_the_end(&mut self, variable: &'static str, value: &str, mut meanwhile: impl FnMut(&mut Self)) -> Option<i32> {
        self.disturb(&format!("kill, and {variable}={value}"), |this| this.kill());
        self.tidings.environment = vec![(variable, value.to_owned())];
        let until = Instant::now() + DIES_WITHIN;
        let exit = self.disturb("it runs to its end", |this| {
            if this.tidings.try_run() {
                *this.sources.client.write().unwrap() = Some(this.tidings.client());
                while !this.tidings.has_ended() {
                    assert!(Instant::now() < until, "{variable}={value}: it goes on and on");
                    meanwhile(this);
                    std::thread::sleep(Duration::from_millis(5));
                }
                *this.sources.client.write().unwrap() = None;
                this.tidings.end();
            }
            this.tidings.exit
        });
        self.tidings.environment.clear();
        self.start();
        exit
    }
}
