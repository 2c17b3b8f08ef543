//! Tests of the committer over a log in memory.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::*;
use crate::core::event::{Accepted, DeadReason, DeliveryRef, LanePurpose, Proof};
use crate::core::outbox::DEDUPE_WINDOW_MS;
use crate::core::ranges::Ranges;
use crate::core::types::{ConnectionName, Qos};
use crate::log::memory_log::{Disk, MemoryLog};
use crate::log::sled_log::{self, SledLog};

const LIMITS: Limits = Limits { max_size: u64::MAX, retention_ms: 0 };

fn floor() -> u64 {
    Sizes::default().floor()
}

fn lane() -> LaneKey {
    LaneKey { connection: ConnectionName::from("mqtt"), lane: 0 }
}

fn accepted(number: u64, dedupe: Option<Dedupe>) -> Event {
    let plain = Accepted::plain(lane(), format!("topic/{}", number % 3), Qos::AtLeastOnce, Millis(number));
    Event::Accepted(Arc::new(Accepted { payload: Bytes::from(format!("report {number}")), dedupe, ..plain }))
}

fn keyed(key: u128, body: u64) -> Vec<Event> {
    vec![accepted(1, Some(Dedupe { key, body, line: 0, lines: 1, batch: false }))]
}

fn open(disk: &Disk) -> LogHandle {
    let opened = MemoryLog::open(disk).unwrap();
    let outbox = recover(&opened).unwrap();
    start(opened.log, outbox, LIMITS, Arc::new(Metrics::new())).unwrap()
}

async fn with_lane(disk: &Disk) -> LogHandle {
    let log = open(disk);
    let connection = lane().connection;
    log.record(vec![Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) }]).await.unwrap();
    log
}

fn delivered(first: u64, last: u64) -> Event {
    Event::Delivered { lane: lane(), sends: Ranges(vec![(first, last)]), proof: Proof::PubAck, at: Millis(0) }
}

#[tokio::test]
async fn a_request_that_comes_again_is_not_stored_again_even_while_the_first_is_under_way() {
    let log = with_lane(&Disk::new(1 << 20)).await;
    let (first, second) = tokio::join!(log.accept(keyed(7, 1)), log.accept(keyed(7, 1)));
    let answers = [first.unwrap().into_inner(), second.unwrap().into_inner()];
    let new = answers.iter().filter(|answer| matches!(answer, Appended::New { .. })).count();
    assert_eq!(new, 1, "{answers:?}");
    assert!(matches!(log.accept(keyed(7, 2)).await, Err(CommitError::Conflict)));
    assert!(matches!(log.accept(keyed(8, 2)).await.unwrap().get(), Appended::New { .. }));
}

#[tokio::test]
async fn a_request_is_recognised_after_a_restart() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    let first = log.accept(keyed(7, 1)).await.unwrap().into_inner();
    log.stop().await.unwrap();
    let Appended::New { first, .. } = first else { panic!("the first one is new") };
    let again = open(&disk).accept(keyed(7, 1)).await.unwrap().into_inner();
    assert!(matches!(again, Appended::Known(request) if request.first == first), "{again:?}");
}

#[tokio::test]
async fn a_key_is_free_again_after_its_day_and_another_body_is_no_conflict_then() {
    let log = with_lane(&Disk::new(1 << 20)).await;
    let at = |at: u64, body: u64| {
        let Event::Accepted(mut accepted) = keyed(7, body).remove(0) else { unreachable!("that is what it makes") };
        Arc::make_mut(&mut accepted).at = Millis(at);
        vec![Event::Accepted(accepted)]
    };
    log.accept(at(0, 1)).await.unwrap();
    assert!(matches!(log.accept(at(DEDUPE_WINDOW_MS, 2)).await, Err(CommitError::Conflict)));
    let answer = log.accept(at(DEDUPE_WINDOW_MS + 1, 2)).await.unwrap().into_inner();
    assert!(matches!(answer, Appended::New { .. }), "{answer:?}");
    let again = log.accept(at(DEDUPE_WINDOW_MS + 1, 2)).await.unwrap().into_inner();
    assert!(matches!(again, Appended::Known(_)), "{again:?}");
}

#[tokio::test]
async fn events_that_do_not_fit_are_refused_and_the_next_ones_are_not_harmed() {
    let log = with_lane(&Disk::new(1 << 20)).await;
    let refused = log.record(vec![accepted(1, None), delivered(5, 5)]).await;
    assert!(matches!(refused, Err(CommitError::DoesNotFit(_))), "{refused:?}");
    let pending = log.ask(|outbox| outbox.lane(&lane()).map(|lane| lane.pending())).await.unwrap().into_inner();
    assert_eq!(pending, Some(0), "all or nothing");
    log.accept(vec![accepted(1, None)]).await.unwrap();
    log.record(vec![delivered(0, 0)]).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fails_accepts_nothing_and_stops_everything() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    disk.fail_after(0);
    assert!(matches!(log.accept(vec![accepted(1, None)]).await, Err(CommitError::Store(_))));
    assert!(log.progress().borrow().failed.is_some(), "whoever runs the service is told");
    assert!(matches!(log.accept(vec![accepted(2, None)]).await, Err(CommitError::Stopped)));
}

#[tokio::test]
async fn a_full_disk_refuses_reports_and_still_takes_outcomes() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    log.accept(vec![accepted(1, None)]).await.unwrap();
    disk.set_free(floor() - 1);
    assert!(matches!(log.accept(vec![accepted(2, None)]).await, Err(CommitError::Full(_))));
    log.record(vec![delivered(0, 0)]).await.unwrap();
    disk.set_free(floor());
    log.accept(vec![accepted(3, None)]).await.unwrap();
}

#[tokio::test]
async fn other_limits_hold_from_the_next_commit_on() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    log.accept(vec![accepted(1, None)]).await.unwrap();
    let before = log.progress().borrow().limits;
    log.limit(Limits { max_size: 0, ..before }).await.unwrap();
    assert!(matches!(log.accept(vec![accepted(2, None)]).await, Err(CommitError::Full(_))));
    assert_eq!(log.progress().borrow().limits.max_size, 0);
    log.limit(before).await.unwrap();
    log.accept(vec![accepted(3, None)]).await.unwrap();
}

#[tokio::test]
async fn a_tick_at_which_nothing_has_happened_wakes_nobody() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    let mut progress = log.progress();
    progress.mark_unchanged();
    tokio::time::sleep(TICK * 2).await;
    assert!(!progress.has_changed().unwrap());
    disk.set_free(floor() - 1);
    tokio::time::timeout(Duration::from_secs(20), progress.changed()).await.expect("a full disk is told of").unwrap();
    assert!(progress.borrow().full.is_some());
}

#[tokio::test]
async fn outcomes_that_there_is_no_room_for_wait_in_order_and_break_nothing() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    log.accept(vec![accepted(1, None), accepted(2, None)]).await.unwrap();
    disk.set_room(false);
    let mut first = log.submit(vec![delivered(0, 0)]).await.unwrap();
    let mut second = log.submit(vec![delivered(1, 1)]).await.unwrap();
    assert!(matches!(log.accept(vec![accepted(3, None)]).await, Err(CommitError::Full(_))));
    let mut progress = log.progress();
    progress.wait_for(|progress| progress.held > 0 && progress.full.is_some()).await.unwrap();
    let pending = |outbox: &Outbox| outbox.lane(&lane()).map(|lane| lane.pending());
    assert_eq!(log.ask(pending).await.unwrap().into_inner(), Some(2), "who only looks is answered");
    // A lane that starts now has to know what it had recorded.
    let in_order = tokio::spawn({
        let log = log.clone();
        async move { log.ask_in_order(pending).await.unwrap().into_inner() }
    });
    // Over a tick, at which it is tried again.
    assert!(tokio::time::timeout(TICK * 2, first.answer()).await.is_err(), "there is no room");
    assert!(progress.borrow().failed.is_none() && !in_order.is_finished());
    disk.set_room(true);
    let in_time = async { (first.answer().await.unwrap(), second.answer().await.unwrap(), in_order.await.unwrap()) };
    let (_, _, pending) = tokio::time::timeout(Duration::from_secs(20), in_time).await.expect("it goes on by itself");
    assert_eq!(pending, Some(0));
    progress.wait_for(|progress| progress.held == 0 && progress.full.is_none()).await.unwrap();
    log.accept(vec![accepted(3, None)]).await.unwrap();
}

#[tokio::test]
async fn a_stop_on_a_disk_without_room_ends() {
    let disk = Disk::new(1 << 20);
    let log = with_lane(&disk).await;
    log.accept(vec![accepted(1, None)]).await.unwrap();
    disk.set_room(false);
    let mut outcome = log.submit(vec![delivered(0, 0)]).await.unwrap();
    log.stop().await.unwrap();
    assert!(matches!(outcome.answer().await, Err(CommitError::Stopped)), "it was not recorded, and not taken for it");
    let pending = open(&disk).ask(|outbox| outbox.lane(&lane()).map(|lane| lane.pending())).await.unwrap().into_inner();
    assert_eq!(pending, Some(1));
}

#[tokio::test]
async fn a_stop_leaves_little_to_read_however_far_its_generation_had_come() {
    let store = tempfile::tempdir().unwrap();
    let options = sled_log::Options { segment_size: 256 << 10, generation_size: 64 << 20, sled_cache: 1 << 20, page_cache: 0 };
    let open = || {
        let opened = SledLog::open(store.path(), options).unwrap();
        let outbox = recover(&opened).unwrap();
        let generations: Vec<Seq> = opened.log.generations().iter().map(|generation| generation.first).collect();
        (start(opened.log, outbox, LIMITS, Arc::new(Metrics::new())).unwrap(), generations)
    };
    let (log, _) = open();
    let connection = lane().connection;
    log.record(vec![Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) }]).await.unwrap();
    let mut payload = vec![0; 1 << 10];
    for _ in 0..1_000 {
        getrandom::fill(&mut payload).unwrap();
        let plain = Accepted::plain(lane(), "topic", Qos::AtLeastOnce, Millis(0));
        let accepted = Accepted { payload: Bytes::copy_from_slice(&payload), ..plain };
        log.accept(vec![Event::Accepted(Arc::new(accepted))]).await.unwrap();
    }
    let next = Seq(log.durable().0 + 1);
    log.stop().await.unwrap();
    for _ in 0..2 {
        let (log, generations) = open();
        assert_eq!(generations, [Seq::FIRST, next], "one that is empty, and no other for want of anything new");
        let pending = log.ask(|outbox| outbox.lane(&lane()).map(|lane| lane.pending())).await.unwrap().into_inner();
        assert_eq!(pending, Some(1_000));
        log.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_full_store_in_which_everything_waits_drains_and_takes_reports_again() {
    // Several generations, all of them pending: the broker was away for days.
    let disk = Disk::new(4 << 10);
    let log = with_lane(&disk).await;
    for number in 0..300 {
        log.accept(vec![accepted(number, None)]).await.unwrap();
    }
    disk.set_free(floor() - 1);
    assert!(matches!(log.accept(vec![accepted(300, None)]).await, Err(CommitError::Full(_))));
    tokio::time::sleep(TICK * 2).await;
    assert!(log.page(Seq(2)).is_ok(), "what waits is not deleted");
    log.record(vec![delivered(0, 299)]).await.unwrap();
    oldest_is_dropped(&log, Seq(2)).await;
    // What was deleted is free.
    disk.set_free(2 * floor());
    log.accept(vec![accepted(300, None)]).await.unwrap();
}

#[tokio::test]
async fn a_dead_letter_goes_from_generation_to_generation_and_keeps_its_id() {
    let disk = Disk::new(4 << 10);
    let log = with_lane(&disk).await;
    log.accept(vec![accepted(0, None)]).await.unwrap();
    let delivery = DeliveryRef { lane: lane(), send: SendNo(0), id: Seq(2), located: Seq(2) };
    let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: String::new() };
    log.record(vec![Event::DeadLettered { delivery, reason, attempts: 1, at: Millis(1) }]).await.unwrap();
    let mut at = Seq(2);
    for round in 1..=3 {
        let before = at;
        let mut number = round * 1_000;
        let moved = async {
            while at == before {
                log.accept(vec![accepted(number, None)]).await.unwrap();
                let last = log.ask(|outbox| outbox.next_send(&lane()).0 - 1).await.unwrap().into_inner();
                log.record(vec![delivered(last, last)]).await.unwrap();
                number += 1;
                let dead = log.ask(|outbox| outbox.lane(&lane()).and_then(|lane| lane.dead().values().next().copied())).await.unwrap();
                let dead = dead.into_inner().expect("it stays dead");
                assert_eq!(dead.id, Seq(2), "it keeps its id");
                at = dead.located;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), moved).await.expect("it is carried");
    }
    let page = log.page(at).unwrap().expect("it is durable");
    assert!(matches!(page.get().get(at), Some(Event::Carried(copy)) if copy.id == Seq(2) && copy.accepted.payload == "report 0"));
}

#[tokio::test]
async fn a_report_beyond_what_the_log_takes_is_refused_alone() {
    let log = with_lane(&Disk::new(1 << 20)).await;
    let Event::Accepted(mut huge) = accepted(1, None) else { unreachable!("that is what it makes") };
    Arc::make_mut(&mut huge).payload = Bytes::from(vec![0; LARGEST_EVENT + 1]);
    let refused = log.accept(vec![Event::Accepted(huge)]).await;
    assert!(matches!(refused, Err(CommitError::Store(AppendError::TooLarge { .. }))), "{refused:?}");
    log.accept(vec![accepted(2, None)]).await.unwrap();
}

/// Waits until the oldest generation begins behind `first`.
async fn oldest_is_dropped(log: &LogHandle, first: Seq) {
    let dropped = async {
        while log.page(first).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), dropped).await.expect("a generation past its retention is dropped");
}

#[tokio::test]
async fn what_is_not_done_is_carried_forward_before_its_generation_is_dropped() {
    // Generations of a few kilobytes: some hundred reports make several.
    let disk = Disk::new(4 << 10);
    let log = with_lane(&disk).await;
    for number in 0..400 {
        log.accept(vec![accepted(number, None)]).await.unwrap();
    }
    // All but two are delivered; one of these two is the very first.
    log.record(vec![delivered(1, 199), delivered(201, 399)]).await.unwrap();
    oldest_is_dropped(&log, Seq(2)).await;
    let (pending, moved) = log
        .ask(|outbox| {
            let lane = outbox.lane(&lane()).expect("the lane is there");
            (lane.pending(), lane.moved().clone())
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(pending, 2);
    let carried = moved[&SendNo(0)];
    assert_eq!(carried.id, Seq(2), "it keeps its id");
    let page = log.page(carried.located).unwrap().expect("it is durable");
    let Some(Event::Carried(copy)) = page.get().get(carried.located) else { panic!("it was carried") };
    assert_eq!(copy.accepted.payload, "report 0");
    // And it is still there after a restart.
    log.stop().await.unwrap();
    let again = open(&disk).ask(|outbox| outbox.lane(&lane()).map(|lane| lane.pending())).await.unwrap().into_inner();
    assert_eq!(again, Some(2));
}

#[tokio::test]
async fn history_makes_room_before_reports_are_refused() {
    let disk = Disk::new(4 << 10);
    let opened = MemoryLog::open(&disk).unwrap();
    let outbox = recover(&opened).unwrap();
    let limits = Limits { retention_ms: u64::MAX, ..LIMITS };
    let log = start(opened.log, outbox, limits, Arc::new(Metrics::new())).unwrap();
    let connection = lane().connection;
    log.record(vec![Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) }]).await.unwrap();
    for number in 0..100 {
        log.accept(vec![accepted(number, None)]).await.unwrap();
    }
    log.record(vec![delivered(0, 98)]).await.unwrap();
    let before = log.page(Seq(2));
    assert!(before.is_ok(), "history is kept as long as there is room");
    disk.set_free(floor());
    oldest_is_dropped(&log, Seq(90)).await;
    let pending = log.ask(|outbox| outbox.lane(&lane()).map(|lane| lane.pending())).await.unwrap().into_inner();
    assert_eq!(pending, Some(1), "what is not delivered stays");
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_a_checkpoint_that_the_events_behind_it_fit() {
    // Generations of a few reports: most commits are followed by a checkpoint.
    let disk = Disk::new(1 << 10);
    let log = with_lane(&disk).await;
    for number in 0..100 {
        log.accept(vec![accepted(2 * number, None), accepted(2 * number + 1, None)]).await.unwrap();
        let killed = disk.as_killed();
        let outbox = recover(&MemoryLog::open(&killed).unwrap()).unwrap_or_else(|error| panic!("after {number} commits: {error}"));
        assert_eq!(outbox.lane(&lane()).map(|lane| lane.pending()), Some(2 * number + 2));
    }
}

#[tokio::test]
async fn a_kill_after_a_generation_was_dropped_leaves_the_next_ones_alone() {
    let disk = Disk::new(1 << 20);
    let mut log = MemoryLog::open(&disk).unwrap().log;
    let mut outbox = Outbox::new();
    let put = |log: &mut Box<dyn EventLog>, outbox: &mut Outbox, event: Event| {
        let before = outbox.next_send(&lane());
        outbox.apply(&event).unwrap();
        log.append(&[event], &|_| before).unwrap()
    };
    let roll = |log: &mut Box<dyn EventLog>, outbox: &mut Outbox| {
        outbox.begin_generation();
        log.begin_generation(&encode_checkpoint(outbox)).unwrap();
    };
    let connection = lane().connection;
    put(&mut log, &mut outbox, Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) });
    put(&mut log, &mut outbox, accepted(1, None));
    put(&mut log, &mut outbox, delivered(0, 0));
    roll(&mut log, &mut outbox);
    let needed = put(&mut log, &mut outbox, accepted(2, None));
    roll(&mut log, &mut outbox);
    put(&mut log, &mut outbox, accepted(3, None));
    // That a generation was dropped is not in the checkpoint that the next start begins with.
    log.drop_oldest_generation().unwrap();
    drop(log);
    let again = open(&disk);
    tokio::time::sleep(TICK * 3).await;
    let lane = again.ask(|outbox| outbox.lane(&lane()).cloned()).await.unwrap().into_inner().expect("the lane is there");
    assert_eq!(lane.pending(), 2);
    let anchor = lane.anchor_for(lane.cursor()).expect("it has pending deliveries");
    assert!(again.page(anchor).is_ok(), "what is pending is found by reading from {anchor}");
    let is_there = again.page(needed).is_ok() || lane.moved().contains_key(&SendNo(1));
    assert!(is_there, "what is pending was not deleted");
}

#[tokio::test]
async fn a_backup_holds_what_it_copies_until_it_ends() {
    let log = with_lane(&Disk::new(1 << 20)).await;
    log.accept(vec![accepted(1, None)]).await.unwrap();
    log.record(vec![delivered(0, 0)]).await.unwrap();
    let begun = log.begin_backup().await.unwrap().expect("no other is under way");
    assert_eq!(begun.position, Seq(3));
    assert_eq!(begun.generations.iter().map(|(first, _)| *first).collect::<Vec<_>>(), [Seq::FIRST]);
    assert_eq!(log.begin_backup().await.unwrap(), None, "one at a time");
    // All in it is done and past its retention, and every tick would drop it.
    tokio::time::sleep(TICK * 3).await;
    assert!(log.page(Seq::FIRST).unwrap().is_some());
    assert!(log.renew_backup(begun.id).await.unwrap());
    assert!(!log.renew_backup(begun.id ^ 1).await.unwrap() && !log.end_backup(begun.id ^ 1).await.unwrap());
    assert!(log.end_backup(begun.id).await.unwrap());
    oldest_is_dropped(&log, Seq::FIRST).await;
    assert!(!log.renew_backup(begun.id).await.unwrap());
    // Nothing has happened since, and what there is can still be copied.
    let again = log.begin_backup().await.unwrap().expect("the first one has ended");
    assert_eq!((again.position, again.generations.len()), (Seq(4), 1));
}

/// Asks a committer that is stepped for something, and steps it.
fn accept(log: &LogHandle, stepped: &mut Stepped, events: Vec<Event>) -> Appended {
    let mut asking = Box::pin(log.accept(events));
    let mut look = || asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(look().is_pending());
    stepped.step();
    let Poll::Ready(answer) = look() else { panic!("the step has answered") };
    answer.unwrap().into_inner()
}

#[test]
fn a_request_that_was_accepted_anew_after_its_first_was_deleted_is_recognised_after_a_kill() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let disk = Disk::new(1_500);
    let start = |disk: &Disk| {
        let opened = MemoryLog::open(disk).unwrap();
        let outbox = recover(&opened).unwrap();
        stepped(opened.log, outbox, LIMITS, Arc::new(Metrics::new()))
    };
    let (log, mut committer) = start(&disk);
    let lanes = Event::LanesChanged { connection: lane().connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) };
    accept(&log, &mut committer, vec![lanes]);
    let Event::Accepted(small) = keyed(7, 1).remove(0) else { panic!("it is a report") };
    // Nothing that compresses, so that its generation is full.
    let payload: Vec<u8> = (0..500u64).flat_map(|number| xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()).to_le_bytes()).collect();
    let first = accept(
        &log,
        &mut committer,
        vec![Event::Accepted(Arc::new(Accepted { payload: Bytes::from(payload), ..Accepted::clone(&small) }))],
    );
    accept(&log, &mut committer, vec![delivered(0, 0)]);
    committer.tick();
    assert!(matches!(log.page(Seq(1)), Err(crate::log::ReadError::Gone(_))), "the first generation is deleted");
    let again = accept(&log, &mut committer, keyed(7, 1));
    assert!(matches!(again, Appended::New { .. }), "its key is forgotten: {first:?}, {again:?}");
    drop(committer);
    let (log, mut committer) = start(&disk);
    assert!(matches!(accept(&log, &mut committer, keyed(7, 1)), Appended::Known(_)));
}
