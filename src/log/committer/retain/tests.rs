//! What retention deletes, and what it never does.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::*;
use crate::core::event::{DeadReason, Dedupe, DeliveryRef, LanePurpose, Proof};
use crate::core::ranges::Ranges;
use crate::core::types::{Millis, Qos};
use crate::log::Opened;
use crate::log::committer::{Limits, LogHandle, Stepped, recover, stepped};
use crate::log::memory_log::{Disk, MemoryLog};
use crate::log::sled_log::{self, SledLog};
use crate::metrics::Metrics;

const LIMITS: Limits = Limits { max_size: u64::MAX, retention_ms: 0 };

fn inside(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    test();
}

fn lane() -> LaneKey {
    LaneKey { connection: "mqtt".into(), lane: 0 }
}

fn lanes() -> Event {
    Event::LanesChanged { connection: lane().connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) }
}

fn accepted(at: u64, payload: &str) -> Accepted {
    let plain = Accepted::plain(lane(), "topic", Qos::AtLeastOnce, Millis(at));
    Accepted { payload: Bytes::copy_from_slice(payload.as_bytes()), ..plain }
}

fn delivered(first: u64, last: u64) -> Event {
    Event::Delivered { lane: lane(), sends: Ranges(vec![(first, last)]), proof: Proof::PubAck, at: Millis(0) }
}

fn start(opened: Opened, limits: Limits) -> (LogHandle, Stepped) {
    let outbox = recover(&opened).unwrap();
    stepped(opened.log, outbox, limits, Arc::new(Metrics::new()))
}

/// What comes of it, once the committer has done all that it needs.
fn done<T>(committer: &mut Stepped, asking: impl Future<Output = T>) -> T {
    let mut asking = pin!(asking);
    loop {
        if let Poll::Ready(answer) = asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return answer;
        }
        assert!(committer.step(), "it waits for something else than a commit");
    }
}

fn accept(log: &LogHandle, committer: &mut Stepped, accepted: Accepted) {
    done(committer, log.accept(vec![Event::Accepted(Arc::new(accepted))])).unwrap();
}

fn record(log: &LogHandle, committer: &mut Stepped, events: Vec<Event>) {
    done(committer, log.record(events)).unwrap();
}

fn open(store: &Path, generation_size: u64) -> Opened {
    let options = sled_log::Options { segment_size: 256 << 10, generation_size, sled_cache: 1 << 20, page_cache: 0 };
    let opened = SledLog::open(store, options).unwrap();
    let firsts: Vec<Seq> = opened.log.generations().iter().map(|generation| generation.first).collect();
    assert_eq!(recover(&opened).unwrap().generations().collect::<Vec<_>>(), firsts, "log and outbox have the same generations");
    opened
}

#[test]
fn what_is_accepted_after_many_idle_stops_is_not_deleted_before_it_is_done() {
    inside(|| {
        let store = tempfile::tempdir().unwrap();
        let (log, mut committer) = start(open(store.path(), 64 << 20), LIMITS);
        record(&log, &mut committer, vec![lanes()]);
        // So many keys that a checkpoint is long to read after two or three stops.
        const KEYS: u64 = 8_000;
        for first in (0..KEYS).step_by(1_000) {
            let keyed = |number: u64| {
                let (key, body) = (xxh3_128(&number.to_le_bytes()), xxh3_64(&number.to_le_bytes()));
                let dedupe = Some(Dedupe { key, body, line: 0, lines: 1, batch: false });
                Event::Accepted(Arc::new(Accepted { dedupe, ..accepted(0, "report") }))
            };
            done(&mut committer, log.accept((first..first + 1_000).map(keyed).collect())).unwrap();
        }
        record(&log, &mut committer, vec![delivered(0, KEYS - 1)]);
        done(&mut committer, log.stop()).unwrap();
        for _ in 0..8 {
            let (log, mut committer) = start(open(store.path(), 64 << 20), LIMITS);
            done(&mut committer, log.stop()).unwrap();
        }
        // Here a generation is full with every commit, and past its retention at once.
        let opened = open(store.path(), 1);
        assert!(opened.log.generations().len() > 1, "the stops have begun one");
        let (log, mut committer) = start(opened, LIMITS);
        let needed = Seq(log.durable().0 + 1);
        accept(&log, &mut committer, accepted(0, "wanted"));
        committer.tick();
        let outbox = committer.outbox().unwrap();
        let kept = outbox.lane(&lane()).unwrap();
        assert_eq!(kept.pending(), 1);
        let at = kept.moved().get(&SendNo(KEYS)).map_or(needed, |moved| moved.located);
        let page = log.page(at).unwrap().expect("it is durable");
        let payload = match page.get().get(at) {
            Some(Event::Accepted(accepted)) => accepted.payload.clone(),
            Some(Event::Carried(carried)) => carried.accepted.payload.clone(),
            other => panic!("a delivery should be here: {other:?}"),
        };
        assert_eq!(payload, "wanted");
    });
}

/// A payload that does not compress, another one for each number.
fn noise(number: u64) -> Bytes {
    (0..2_000u64).flat_map(|at| xxh3_64(&[number, at].map(u64::to_le_bytes).concat()).to_le_bytes()).collect::<Vec<u8>>().into()
}

fn dead(send: u64, id: u64) -> Event {
    let delivery = DeliveryRef { lane: lane(), send: SendNo(send), id: Seq(id), located: Seq(id) };
    let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: String::new() };
    Event::DeadLettered { delivery, reason, attempts: 1, at: Millis(1) }
}

#[test]
fn thousands_of_dead_letters_do_not_keep_the_history_behind_them() {
    inside(|| {
        const DEAD: u64 = 5_000;
        let disk = Disk::new(1 << 20);
        let limits = Limits { max_size: 16 << 20, retention_ms: u64::MAX };
        let (log, mut committer) = start(MemoryLog::open(&disk).unwrap(), limits);
        record(&log, &mut committer, vec![lanes()]);
        for _ in 0..DEAD / 1_000 {
            let reports = (0..1_000).map(|_| Event::Accepted(Arc::new(accepted(0, "refused"))));
            done(&mut committer, log.accept(reports.collect())).unwrap();
        }
        for first in (0..DEAD).step_by(1_000) {
            record(&log, &mut committer, (first..first + 1_000).map(|send| dead(send, send + 2)).collect());
        }
        assert_eq!(disk.generations(), 1, "all of them are in the first one");
        for number in DEAD..DEAD + 1_600 {
            let accepted = Accepted { payload: noise(number), ..accepted(0, "") };
            accept(&log, &mut committer, accepted);
            record(&log, &mut committer, vec![delivered(number, number)]);
            if number % 10 == 0 {
                committer.tick();
            }
        }
        let outbox = committer.outbox().unwrap();
        let oldest = outbox.oldest_generation().unwrap();
        let dead = outbox.lane(&lane()).unwrap().dead();
        assert!(oldest > Seq::FIRST && dead.values().all(|dead| dead.located >= oldest), "they are where they can be read");
        assert_eq!(dead.len() as u64, DEAD);
    });
}

#[test]
fn a_clock_that_was_ahead_for_a_while_does_not_stop_retention() {
    inside(|| {
        const HOUR: u64 = 60 * 60 * 1_000;
        let disk = Disk::new(2 << 10);
        let limits = Limits { max_size: u64::MAX, retention_ms: 2 * HOUR };
        let (log, mut committer) = start(MemoryLog::open(&disk).unwrap(), limits);
        record(&log, &mut committer, vec![lanes()]);
        let (ahead, right) = (now().0 + 10_000 * HOUR, now().0 - 3 * HOUR);
        for (send, at) in [ahead, right, now().0, now().0].into_iter().enumerate() {
            accept(&log, &mut committer, Accepted { payload: noise(at), ..accepted(at, "") });
            record(&log, &mut committer, vec![delivered(send as u64, send as u64)]);
        }
        committer.tick();
        // A generation each: they stand at 2, 4, 6 and 8.
        for gone in [2, 4] {
            assert!(matches!(log.page(Seq(gone)), Err(ReadError::Gone(_))), "{gone} is past its retention, whatever the clock said");
        }
        assert!(log.page(Seq(6)).is_ok() && disk.generations() == 3, "what is not past its retention stays");
    });
}

#[test]
fn what_is_carried_a_second_time_tells_once_what_has_happened_to_it() {
    inside(|| {
        let disk = Disk::new(2 << 10);
        let (log, mut committer) = start(MemoryLog::open(&disk).unwrap(), LIMITS);
        record(&log, &mut committer, vec![lanes()]);
        accept(&log, &mut committer, accepted(0, "refused"));
        for number in 1..=2 {
            let before = disk.generations();
            accept(&log, &mut committer, Accepted { payload: noise(number), ..accepted(0, "") });
            assert!(disk.generations() > before, "that has filled one");
            record(&log, &mut committer, vec![delivered(number, number)]);
            if number == 1 {
                // It dies in the generation that it is carried into.
                record(&log, &mut committer, vec![dead(0, 2)]);
            }
            for _ in 0..2 {
                committer.tick();
            }
            assert_eq!(disk.generations(), 1, "what was left in it is carried");
        }
        let located = committer.outbox().unwrap().lane(&lane()).unwrap().dead()[&SendNo(0)].located;
        let page = log.page(located).unwrap().expect("it is durable");
        let Some(Event::Carried(copy)) = page.get().get(located) else { panic!("it was carried") };
        assert_eq!(copy.history, ["1970-01-01T00:00:00.001Z  given up after 1 refusals: "]);
    });
}
