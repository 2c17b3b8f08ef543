//! A store that is full: nothing is acknowledged, nothing is lost, and it goes on by itself.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::listener;
use crate::publisher::{Hello, Publisher, publish};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{SOON, Tidings, connection};
use crate::support::wait_until;
use crate::support::wire::{self, Frame};

/// Housekeeping comes about once a second: what is full for so long is full.
const STAYS: Duration = Duration::from_secs(3);

/// A service with a store of the least size, before a broker that is not there yet.
struct Scene {
    tidings: Tidings,
    broker: Mosquitto,
    /// It has subscribed before the broker went.
    subscriber: Subscriber,
    number: u16,
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(&payload[..payload.iter().position(|byte| *byte == b' ').unwrap_or(payload.len())]).into_owned()
}

impl Scene {
    fn new() -> Scene {
        let mut broker = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
        let subscriber = Subscriber::start(broker.port);
        broker.stop();
        let tidings = Tidings::prepare("");
        let config = listener("") + &connection(broker.port, "workers = 1") + SOON;
        let path = tidings.store();
        let limited = format!(
            "[store]\npath = \"{}\"\nmax_size = \"256MiB\"\n[http]\nlisten = \"127.0.0.1:0\"\nmax_report = \"2MiB\"\n{config}",
            path.display()
        );
        std::fs::write(tidings.config_file(), limited).unwrap();
        let mut scene = Scene { tidings, broker, subscriber, number: 0 };
        scene.tidings.run();
        scene
    }

    /// Fills the store with what doesn't compress, until it takes no more and stays so: a generation that has been closed takes less than before.
    /// What was acknowledged.
    fn fill(&mut self, publisher: &mut Publisher) -> Vec<String> {
        let mut acknowledged = Vec::new();
        let mut noise = vec![0; 1 << 20];
        let mut full_since = None;
        loop {
            if self.tidings.metric("tidings_store_full") == 1.0 {
                if full_since.get_or_insert_with(Instant::now).elapsed() > STAYS {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            full_since = None;
            self.number += 1;
            let number = self.number.to_string();
            std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
            let payload = [number.as_bytes(), b" ", &noise].concat();
            publisher.send(&publish(publisher.level, "full", &payload, 1, self.number, false, &[]));
            match publisher.expect_ack(wire::PUBACK, self.number) {
                0 => acknowledged.push(number),
                code => {
                    assert_eq!(code, 0x97);
                }
            }
        }
        acknowledged
    }
}

/// Keeps a connection alive while the test waits for something else.
fn ping_on(publisher: &Publisher, is_over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (mut stream, is_over) = (publisher.stream.try_clone().unwrap(), Arc::clone(is_over));
    std::thread::spawn(move || {
        // If the connection ends, whoever reads from it says so.
        while !is_over.load(Ordering::Relaxed) && stream.write_all(&[wire::PINGREQ << 4, 0]).is_ok() {
            std::thread::sleep(Duration::from_millis(500));
        }
    })
}

/// The next packet that does not answer a ping.
fn next_but_for_pings(publisher: &mut Publisher) -> Frame {
    let mut next = None;
    wait_until("what waited is answered", || {
        next = Some(publisher.next().expect("the connection is open")).filter(|frame| frame.kind() != wire::PINGRESP);
        next.is_some()
    });
    next.unwrap()
}

#[test]
fn a_full_store_acknowledges_nothing_answers_pings_and_goes_on_by_itself() {
    let mut scene = Scene::new();
    let (mut filler, _) = Publisher::connect(scene.tidings.listener(), &Hello::v5("").clean());
    let mut expected = scene.fill(&mut filler);
    // MQTT 5 is told.
    filler.publish("full", "refused 1", 1, 1, false);
    assert_eq!(filler.expect_ack(wire::PUBACK, 1), 0x97);
    filler.publish("full", "refused 2", 2, 2, false);
    assert_eq!(filler.expect_ack(wire::PUBREC, 2), 0x97);
    filler.ping();
    // MQTT 3.1.1 can't be told, and is kept waiting, its pings answered.
    let (mut waiting, _) = Publisher::connect(scene.tidings.listener(), &Hello { keepalive_s: 2, ..Hello::v4("waiting") });
    for id in 1..=20 {
        waiting.publish("full", &format!("waited-{id}"), if id % 2 == 0 { 1 } else { 2 }, id, false);
    }
    for _ in 0..8 {
        waiting.ping();
        std::thread::sleep(Duration::from_millis(500));
    }
    waiting.expect_silence();
    let is_over = Arc::new(AtomicBool::new(false));
    let pinging = ping_on(&waiting, &is_over);
    // Who can't wait takes what was not acknowledged along, and brings it again.
    let (mut impatient, _) = Publisher::connect(scene.tidings.listener(), &Hello::v4(""));
    impatient.publish("full", "impatient", 2, 1, false);
    impatient.ping();
    impatient.cut();
    let (mut impatient, _) = Publisher::connect(scene.tidings.listener(), &Hello::v4(""));
    impatient.publish("full", "impatient", 2, 1, true);
    impatient.ping();
    assert!(scene.tidings.metric("tidings_ingest_rejected_total{code=\"store_full\",source=\"mqtt\"}") >= 1.0);
    scene.broker.run();
    let subscriber = &scene.subscriber;
    for id in 1..=20 {
        let answer = next_but_for_pings(&mut waiting);
        assert_eq!((answer.kind(), answer.packet_id()), (if id % 2 == 0 { wire::PUBACK } else { wire::PUBREC }, id), "{answer:?}");
    }
    is_over.store(true, Ordering::Relaxed);
    pinging.join().unwrap();
    impatient.expect_ack(wire::PUBREC, 1);
    filler.publish("full", "there is room", 1, 3, false);
    assert_eq!(filler.expect_ack(wire::PUBACK, 3), 0);
    scene.tidings.wait_until_delivered();
    let count = expected.len() + 22;
    wait_until("all have arrived", || subscriber.count() >= count);
    let mut arrived: Vec<(String, u8)> = subscriber.arrivals().iter().map(|arrival| (text(&arrival.payload), arrival.qos)).collect();
    expected.extend((1..=20).map(|id| format!("waited-{id}")));
    expected.extend(["impatient", "there"].map(str::to_owned));
    arrived.sort();
    // At least once is the promise of QoS 1, exactly once that of QoS 2.
    arrived.dedup_by(|again, first| again == first && again.1 == 1);
    expected.sort();
    assert_eq!(arrived.into_iter().map(|(text, _)| text).collect::<Vec<_>>(), expected);
}
