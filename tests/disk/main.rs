//! Full disks, real ones: an ext4 of 64 MiB, filled by the service itself, or to the last byte by somebody else.
//!
//! | Module | Claims about |
//! |---|---|
//! | here | the service: what it refuses, what goes on, what comes back by itself |
//! | `commits` | a disk that is full all at once in the middle of a commit |
//! | `commands` | a disk that is full in the middle of a backup, a restore, a repair |
//!
//! They need root and loop devices, and fail without; `TIDINGS_WITHOUT_LOOP=1` passes them over where there are none.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod commits;
mod small;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use small::SmallDisk;
use support::ledger::{Ledger, action_for};
use support::mosquitto::{Mosquitto, PERSISTENT};
use support::subscriber::Subscriber;
use support::tidings::{Client, PIPELINES, SOON, Tidings, connection};
use support::{wait_until, wait_within};

const DISK_MIB: u64 = 64;

/// Nothing here takes so long, on a busy machine either.
const LONG: Duration = Duration::from_secs(180);

struct Setting {
    tidings: Tidings,
    disk: SmallDisk,
    subscriber: Subscriber,
    mosquitto: Mosquitto,
}

/// A service that does not run yet, with its store on a disk of its own, and a broker that does.
fn setting() -> Option<Setting> {
    let mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::prepare(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let disk = SmallDisk::mount(&tidings.store(), DISK_MIB)?;
    Some(Setting { tidings, disk, subscriber, mosquitto })
}

/// A report of about 2 KiB that hardly compresses.
fn report(qos: u8, number: u64) -> String {
    let mut noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut message = String::with_capacity(1_800);
    for _ in 0..1_800 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        message.push(char::from(letters[(noise % 64) as usize]));
    }
    let (action, project) = (action_for(qos), format!("p{}", number % 8));
    format!(r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"{project}","change":"{number}","message":"{message}"}}"#)
}

/// The QoS of a report by its number: those of one topic have one.
fn qos_of(number: u64) -> u8 {
    if number % 8 < 2 { 1 } else { 2 }
}

fn reports(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| report(qos_of(number), number)).collect()
}

/// Posts a batch; the status of the answer, if there was one.
fn try_post(client: &Client, ledger: &mut Ledger, reports: &[String]) -> Option<u16> {
    let reply = client.post(reports.join("\n").as_bytes(), "application/x-ndjson", None)?;
    if reply.status == 202 {
        let answer = reply.json();
        for (report, answer) in reports.iter().zip(answer["reports"].as_array().unwrap()) {
            ledger.enter(report.as_bytes(), &answer["deliveries"]);
        }
    } else {
        assert_eq!(reply.json()["error"]["code"], if reply.status == 507 { "store_full" } else { "" }, "{reply:?}");
    }
    Some(reply.status)
}

/// Waits until reports are accepted again, without a restart.
fn accepts_again(tidings: &Tidings, ledger: &mut Ledger, numbers: &mut u64) {
    let client = tidings.client();
    wait_within(LONG, "reports are accepted again", || {
        *numbers += 1;
        try_post(&client, ledger, &reports(*numbers..*numbers + 1)) == Some(202)
    });
    wait_until("it is ready", || tidings.get("/readyz").unwrap().status == 200);
    wait_until("the metrics say so", || tidings.metric("tidings_store_full") == 0.0);
}

#[test]
fn a_disk_that_the_service_has_filled_itself_drains_and_takes_reports_again() {
    let Some(Setting { mut tidings, disk, subscriber, mut mosquitto }) = setting() else { return };
    mosquitto.stop();
    tidings.run();
    let (client, mut ledger, mut number) = (tidings.client(), Ledger::default(), 0);
    let began = Instant::now();
    // Full is full: not only for the moment in which a generation begins.
    let mut refused = 0;
    while refused < 20 {
        match try_post(&client, &mut ledger, &reports(number..number + 25)) {
            Some(202) => refused = 0,
            Some(507) => refused += 1,
            other => panic!("{other:?}"),
        }
        number += 25;
        assert!(began.elapsed() < LONG, "{} reports are in, {} bytes are left", ledger.accepted.len(), disk.left());
    }
    println!("{} reports of 2 KiB fit; {} bytes are left", ledger.accepted.len(), disk.left());
    assert!(ledger.accepted.len() > 8_000, "only {} fit", ledger.accepted.len());
    assert_eq!(tidings.get("/healthz").unwrap().status, 200, "it is well");
    let ready = tidings.get("/readyz").unwrap();
    assert!(ready.status == 503 && ready.text.contains("are kept for outcomes"), "{ready:?}");
    wait_until("the metrics say so", || tidings.metric("tidings_store_full") == 1.0);
    assert!(tidings.metric("tidings_store_ballast_bytes") > 0.0, "which is no reason to give up the ballast");
    mosquitto.run();
    tidings.wait_until_delivered_within(LONG);
    accepts_again(&tidings, &mut ledger, &mut number);
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    tidings.assert_balanced();
    assert_eq!(tidings.stop(), Some(0));
}

#[test]
fn a_disk_that_somebody_else_fills_to_the_last_byte_stops_no_delivery_and_repeats_none() {
    let Some(Setting { mut tidings, disk, subscriber, mosquitto }) = setting() else { return };
    tidings.run();
    let (client, mut ledger, mut number) = (tidings.client(), Ledger::default(), 2_000);
    mosquitto.freeze();
    ledger.post_many(&client, &reports(0..number));
    disk.fill();
    assert_eq!(disk.left(), 0);
    assert_eq!(try_post(&client, &mut ledger, &reports(number..number + 1)), Some(507));
    mosquitto.thaw();
    // On the disk, as the books say: outcomes are recorded.
    tidings.wait_until_delivered_within(LONG);
    // Once more, all of it from the disk: nothing is repeated.
    tidings.kill();
    disk.fill();
    assert!(tidings.try_run(), "a start on a full disk");
    assert_eq!(tidings.total("acknowledged"), number);
    assert_eq!(tidings.total("pending"), 0);
    disk.free();
    accepts_again(&tidings, &mut ledger, &mut number);
    wait_until("the ballast is kept again", || tidings.metric("tidings_store_ballast_bytes") > 0.0);
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    let found = ledger.assert_kept_in_any_order(&subscriber.arrivals());
    assert!(found.repeated.is_empty() && found.missing_qos_0 == 0, "{found:#?}");
    assert_eq!(tidings.stop(), Some(0));
}

#[test]
fn a_service_that_is_killed_on_a_full_disk_starts_on_it_delivers_and_stops_cleanly() {
    let Some(Setting { mut tidings, disk, subscriber, mut mosquitto }) = setting() else { return };
    mosquitto.stop();
    tidings.run();
    let (mut ledger, mut number) = (Ledger::default(), 1_000);
    ledger.post_many(&tidings.client(), &reports(0..number));
    disk.fill();
    tidings.kill();
    disk.fill();
    assert!(tidings.try_run(), "a start on a full disk");
    assert!(!tidings.logged("the ballast was released").is_empty());
    assert_eq!(try_post(&tidings.client(), &mut ledger, &reports(number..number + 1)), Some(507));
    let ready = tidings.get("/readyz").unwrap();
    assert!(ready.status == 503 && ready.text.contains("ballast"), "{ready:?}");
    mosquitto.run();
    tidings.wait_until_delivered_within(LONG);
    // What the start gave up is not there to be given up again: this start has to do with what is left.
    assert_eq!(tidings.stop(), Some(0), "a stop on a full disk");
    assert!(tidings.try_run(), "and a start after that");
    assert_eq!(tidings.total("acknowledged"), number);
    disk.free();
    accepts_again(&tidings, &mut ledger, &mut number);
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    tidings.assert_balanced();
}

/// Fills the disk so far that what becomes of this many reports can't be recorded any more.
fn hold_outcomes(tidings: &mut Tidings, disk: &SmallDisk, mosquitto: &mut Mosquitto, ledger: &mut Ledger, number: u64) {
    mosquitto.stop();
    tidings.run();
    ledger.post_many(&tidings.client(), &reports(0..number));
    tidings.kill();
    disk.fill();
    assert!(tidings.try_run(), "a start on a full disk, with the ballast");
    // Thousands of outcomes fit what is allocated ahead by now. So give it back, as the database does when it truncates its file.
    disk.truncate_databases(&tidings.store());
    disk.fill();
    mosquitto.run();
    wait_until("outcomes wait for room", || tidings.metric("tidings_store_held_outcomes") > 0.0);
}

#[test]
fn deliveries_pause_when_even_the_ballast_is_used_up_and_go_on_by_themselves() {
    let Some(Setting { mut tidings, disk, subscriber, mut mosquitto }) = setting() else { return };
    let (mut ledger, mut number) = (Ledger::default(), 500);
    hold_outcomes(&mut tidings, &disk, &mut mosquitto, &mut ledger, number);
    assert!(!tidings.logged("deliveries pause until there is").is_empty());
    assert_eq!(tidings.total("pending"), number);
    assert_eq!(tidings.get("/healthz").unwrap().status, 200, "it is well");
    let ready = tidings.get("/readyz").unwrap();
    assert!(ready.text.contains("outcomes of deliveries wait for room"), "{ready:?}");
    disk.free();
    tidings.wait_until_delivered_within(LONG);
    accepts_again(&tidings, &mut ledger, &mut number);
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    let found = ledger.assert_kept_in_any_order(&subscriber.arrivals());
    assert!(found.repeated.is_empty() && found.missing_qos_0 == 0, "{found:#?}");
    tidings.assert_balanced();
    assert_eq!(tidings.metric("tidings_store_held_outcomes"), 0.0);
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_change_that_waits_for_room() {
    let Some(Setting { mut tidings, disk, subscriber, mut mosquitto }) = setting() else { return };
    let mut ledger = Ledger::default();
    hold_outcomes(&mut tidings, &disk, &mut mosquitto, &mut ledger, 500);
    let since = |tidings: &Tidings| tidings.get("/v1/status").unwrap().json()["config"]["since"].clone();
    let before = since(&tidings);
    tidings.hang_up();
    // In force, and about to stand in the history.
    wait_until("the configuration is read again", || since(&tidings) != before);
    assert_eq!(tidings.stop(), Some(1));
    assert!(!tidings.logged("did not end within 20 s, because the store takes nothing in").is_empty());
    disk.free();
    tidings.run();
    tidings.wait_until_delivered_within(LONG);
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    tidings.assert_balanced();
}

/// Tells producers to stop, also when the test panics.
struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Posts until it is told to stop, each report until it is accepted.
fn produce(producer: u64, client: &RwLock<Client>, ledger: &Mutex<Ledger>, is_over: &AtomicBool, accepted: &AtomicU64) {
    for number in (0..).map(|number| number * 16 + producer) {
        // One topic a producer, and every report exactly once.
        let report = report(2, number);
        let (key, began) = (format!("{number}"), Instant::now());
        loop {
            let reply = client.read().unwrap().clone().post(report.as_bytes(), "application/json", Some(&key));
            if let Some(reply) = reply.filter(|reply| reply.status == 202) {
                ledger.lock().unwrap().enter(report.as_bytes(), &reply.json()["deliveries"]);
                accepted.fetch_add(1, Ordering::Relaxed);
                break;
            }
            assert!(began.elapsed() < LONG, "{key} is not accepted");
            std::thread::sleep(Duration::from_millis(20));
        }
        if is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Waits until some more reports are accepted, and says how often the service ended by itself meanwhile: it may meet the full disk of a moment
/// ago only now, and is started again.
fn wait_until_accepted(tidings: &mut Tidings, accepted: &AtomicU64, mut start_again: impl FnMut(&mut Tidings)) -> u32 {
    let (before, mut own_ends) = (accepted.load(Ordering::Relaxed), 0);
    wait_within(LONG, "reports are accepted", || {
        if tidings.has_ended() {
            own_ends += 1;
            tidings.end();
            start_again(tidings);
        }
        accepted.load(Ordering::Relaxed) > before + 20
    });
    own_ends
}

#[test]
fn a_disk_that_fills_and_empties_at_random_under_load_and_kills_loses_and_repeats_nothing() {
    let Some(Setting { mut tidings, disk, subscriber, mosquitto: _mosquitto }) = setting() else { return };
    tidings.run();
    let (client, ledger) = (RwLock::new(tidings.client()), Mutex::new(Ledger::default()));
    let (is_over, accepted) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut chance = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    println!("seed {chance}");
    let mut below = |limit: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % limit
    };
    let (mut refusals, mut own_ends) = (0, 0);
    std::thread::scope(|scope| {
        let _stop = StopAtDrop(&is_over);
        for producer in 0..4 {
            let (client, ledger, is_over, accepted) = (&client, &ledger, &is_over, &accepted);
            scope.spawn(move || produce(producer, client, ledger, is_over, accepted));
        }
        // As systemd does: again, until it goes.
        let mut start_again = |tidings: &mut Tidings| {
            while !tidings.try_run() {
                refusals += 1;
                assert!(refusals < 50, "it does not start any more");
                disk.free();
            }
            *client.write().unwrap() = tidings.client();
        };
        for round in 0..12 {
            own_ends += wait_until_accepted(&mut tidings, &accepted, &mut start_again);
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(below(150)));
                match below(3) {
                    0 => disk.fill(),
                    1 => disk.fill_but(below(12 << 20)),
                    _ => disk.free(),
                }
            }
            if tidings.has_ended() || round % 2 == 1 {
                own_ends += u32::from(tidings.has_ended());
                tidings.kill();
                if below(2) == 0 {
                    disk.fill();
                }
                start_again(&mut tidings);
            }
            disk.free();
        }
        own_ends += wait_until_accepted(&mut tidings, &accepted, &mut start_again);
    });
    println!("{} accepted, {own_ends} ended by themselves, {refusals} starts refused", accepted.load(Ordering::Relaxed));
    let ledger = ledger.into_inner().unwrap();
    tidings.wait_until_delivered_within(LONG);
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    tidings.assert_balanced();
}
