//! What every implementation of the log promises: one list of claims, run against each.

mod properties;
mod shared;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::memory_log::{Disk, MemoryLog};
use super::samples::{report, with_payload};
use super::sled_log::{Options, SledLog};
use super::*;

/// Something that a log can be opened on again and again.
trait Store {
    fn open(&self) -> Result<Opened, OpenError>;
}

struct OnDisk(tempfile::TempDir);

/// Small, so that a test goes through many pages and generations.
const SMALL: Options = Options { segment_size: 256 << 10, generation_size: 24 << 10, sled_cache: 1 << 20, page_cache: 32 << 10 };

impl Store for OnDisk {
    fn open(&self) -> Result<Opened, OpenError> {
        SledLog::open(self.0.path(), SMALL)
    }
}

/// A stream of its own, on the server of the whole run.
#[cfg(feature = "jetstream")]
struct OnServers(super::jetstream_log::Options);

#[cfg(feature = "jetstream")]
impl OnServers {
    fn fresh() -> OnServers {
        OnServers(super::jetstream_log::tests::options())
    }
}

#[cfg(feature = "jetstream")]
impl Store for OnServers {
    fn open(&self) -> Result<Opened, OpenError> {
        super::jetstream_log::JetStreamLog::open(self.0.clone())
    }
}

impl Store for Disk {
    fn open(&self) -> Result<Opened, OpenError> {
        MemoryLog::open(self)
    }
}

fn opened(store: &dyn Store) -> Opened {
    store.open().unwrap_or_else(|error| panic!("{error}"))
}

/// Lane n has sent 1,000 n before.
fn next_send(lane: &LaneKey) -> SendNo {
    SendNo(u64::from(lane.lane) * 1000)
}

fn append(log: &mut dyn EventLog, events: &[Event]) -> Seq {
    log.append(events, &next_send).unwrap()
}

fn reports(range: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    range.map(report).collect()
}

/// Everything from `first` on.
fn all(reader: &dyn LogReader, first: Seq) -> Vec<Event> {
    let mut events = Vec::new();
    let mut next = first;
    while let Some(page) = reader.page(next).unwrap() {
        events.extend_from_slice(&page.events[(next.0 - page.first.0) as usize..]);
        next = page.last().next();
    }
    events
}

fn what_was_appended_is_read_back_in_order(store: &dyn Store) {
    let mut log = opened(store).log;
    assert_eq!(log.next_seq(), Seq(1));
    assert_eq!(append(&mut *log, &reports(1..=40)), Seq(40));
    assert_eq!(append(&mut *log, &reports(41..=41)), Seq(41));
    assert_eq!(append(&mut *log, &[]), Seq(41));
    assert_eq!(log.next_seq(), Seq(42));
    let reader = log.reader();
    assert_eq!(all(&*reader, Seq(1)), reports(1..=41));
    for seq in 1..=41 {
        let page = reader.page(Seq(seq)).unwrap().unwrap();
        assert_eq!(page.get(Seq(seq)), Some(&report(seq)));
    }
    assert_eq!(reader.page(Seq(42)).unwrap(), None);
    assert_eq!(reader.page(Seq(0)), Err(ReadError::Gone(Seq(0))));
}

fn nothing_of_an_append_that_is_refused_is_stored(store: &dyn Store) {
    let mut log = opened(store).log;
    let mut events = reports(1..=3);
    events.push(with_payload(4, vec![0; codec::MAX_EVENT + 1]));
    assert!(matches!(log.append(&events, &next_send), Err(AppendError::TooLarge { .. })));
    assert_eq!(log.next_seq(), Seq(1));
    // And the log goes on.
    assert_eq!(append(&mut *log, &reports(1..=3)), Seq(3));
    assert_eq!(all(&*log.reader(), Seq(1)), reports(1..=3));
}

fn a_kill_loses_nothing(store: &dyn Store) {
    let mut log = opened(store).log;
    append(&mut *log, &reports(1..=30));
    drop(log);
    let again = opened(store);
    assert_eq!((again.last_stop, again.checkpoint, again.is_copy), (LastStop::Unclean, None, false));
    assert_eq!(again.log.next_seq(), Seq(31));
    assert_eq!(all(&*again.log.reader(), Seq(1)), reports(1..=30));
}

fn a_clean_stop_hands_its_checkpoint_to_the_next_start(store: &dyn Store) {
    let first = opened(store);
    assert_eq!((first.last_stop, first.checkpoint), (LastStop::Fresh, None));
    let mut log = first.log;
    append(&mut *log, &reports(1..=30));
    let large: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    log.close(&large).unwrap();
    for round in 0..3u8 {
        let again = opened(store);
        let bytes = if round == 0 { large.clone() } else { vec![round - 1; 10] };
        assert_eq!((again.last_stop, again.checkpoint), (LastStop::Clean, Some(Checkpoint { next: Seq(31), bytes })));
        assert_eq!(all(&*again.log.reader(), Seq(1)), reports(1..=30));
        again.log.close(&[round; 10]).unwrap();
    }
}

fn after_a_kill_the_newest_checkpoint_counts(store: &dyn Store) {
    let mut log = opened(store).log;
    append(&mut *log, &reports(1..=10));
    log.close(b"ten").unwrap();
    let mut log = opened(store).log;
    append(&mut *log, &reports(11..=20));
    drop(log);
    let again = opened(store);
    assert_eq!((again.last_stop, again.checkpoint), (LastStop::Unclean, Some(Checkpoint { next: Seq(11), bytes: b"ten".to_vec() })));
    assert_eq!(all(&*again.log.reader(), Seq(1)), reports(1..=20));
}

fn an_empty_checkpoint_is_one(store: &dyn Store) {
    opened(store).log.close(b"").unwrap();
    assert_eq!(opened(store).checkpoint, Some(Checkpoint { next: Seq(1), bytes: Vec::new() }));
}

/// Fills `count` generations and begins the next one.
fn fill(log: &mut dyn EventLog, count: usize) -> u64 {
    for generation in 1..=count {
        while !log.is_generation_full() {
            let next = log.next_seq().0;
            append(log, &reports(next..=next + 9));
        }
        log.begin_generation(format!("checkpoint {generation}").as_bytes()).unwrap();
        assert!(!log.is_generation_full());
    }
    log.next_seq().0 - 1
}

fn a_full_generation_is_followed_by_one_that_begins_with_a_checkpoint(store: &dyn Store) {
    let mut log = opened(store).log;
    let last = fill(&mut *log, 3);
    let generations = log.generations();
    assert_eq!(generations.len(), 4);
    assert_eq!((generations[0].first, generations[3].first), (Seq(1), Seq(last + 1)));
    assert_eq!(generations[2].newest, report(last).at());
    assert_eq!(generations[3].newest, None);
    assert!(generations[..3].iter().all(|generation| generation.bytes > 0));
    assert!(log.space().used > 0 && log.space().free > 0);
    assert_eq!(all(&*log.reader(), Seq(1)), reports(1..=last));
    // Beginning another at the same place changes nothing.
    log.begin_generation(b"again").unwrap();
    assert_eq!(log.generations().len(), 4);
    drop(log);
    let again = opened(store);
    assert_eq!(again.checkpoint, Some(Checkpoint { next: Seq(last + 1), bytes: b"checkpoint 3".to_vec() }));
    let firsts = |generations: &[Generation]| generations.iter().map(|g| (g.first, g.newest)).collect::<Vec<_>>();
    assert_eq!(firsts(&again.log.generations()), firsts(&generations));
    assert_eq!(all(&*again.log.reader(), Seq(1)), reports(1..=last));
}

fn what_was_dropped_is_gone_for_good(store: &dyn Store) {
    let mut log = opened(store).log;
    let last = fill(&mut *log, 3);
    let reader = log.reader();
    assert!(reader.page(Seq(1)).unwrap().is_some());
    let second = log.generations()[1].first;
    log.drop_oldest_generation().unwrap();
    assert_eq!(log.generations()[0].first, second);
    assert_eq!(reader.page(Seq(1)), Err(ReadError::Gone(Seq(1))));
    assert_eq!(reader.page(Seq(second.0 - 1)), Err(ReadError::Gone(Seq(second.0 - 1))));
    assert_eq!(all(&*reader, second), reports(second.0..=last));
    drop(log);
    let again = opened(store);
    assert_eq!(again.log.generations()[0].first, second);
    assert_eq!(again.log.reader().page(Seq(1)), Err(ReadError::Gone(Seq(1))));
    assert_eq!(all(&*again.log.reader(), second), reports(second.0..=last));
}

fn the_generation_that_is_written_is_never_dropped(store: &dyn Store) {
    let mut log = opened(store).log;
    append(&mut *log, &reports(1..=2));
    log.drop_oldest_generation().unwrap();
    assert_eq!(all(&*log.reader(), Seq(1)), reports(1..=2));
}

fn an_event_larger_than_a_page_comes_back_whole(store: &dyn Store) {
    let mut log = opened(store).log;
    let mut noise = vec![0u8; 300_000];
    getrandom::fill(&mut noise).unwrap();
    let events = vec![report(1), with_payload(2, noise), report(3), with_payload(4, vec![7; 200_000])];
    append(&mut *log, &events);
    append(&mut *log, &reports(5..=6));
    log.begin_generation(b"c").unwrap();
    drop(log);
    let log = opened(store).log;
    let reader = log.reader();
    for (seq, event) in (1..).zip(&events) {
        assert_eq!(reader.page(Seq(seq)).unwrap().unwrap().get(Seq(seq)), Some(event));
    }
    assert_eq!(reader.page(Seq(2)).unwrap().unwrap().events.len(), 1);
    assert_eq!(all(&*reader, Seq(5)), reports(5..=6));
}

fn a_page_says_what_each_lane_had_sent_before_it(store: &dyn Store) {
    let mut log = opened(store).log;
    append(&mut *log, &reports(1..=200));
    drop(log);
    let reader = opened(store).log.reader();
    let mut counted = std::collections::BTreeMap::new();
    let mut next = Seq(1);
    while let Some(page) = reader.page(next).unwrap_or(None) {
        for (lane, number) in &page.sends {
            assert_eq!(*number, *counted.entry(lane.clone()).or_insert_with(|| next_send(lane)));
        }
        for event in &page.events {
            let Event::Accepted(accepted) = event else { continue };
            counted.entry(accepted.lane.clone()).and_modify(|number| *number = number.next());
        }
        next = page.last().next();
    }
    assert!(counted.len() <= 4);
}

fn a_second_log_on_the_store_is_refused_unless_it_is_shared(store: &dyn Store) {
    let first = opened(store);
    let second = store.open();
    assert!(first.log.is_shared() && second.is_ok() || matches!(second, Err(OpenError::Locked { .. })));
    drop((first, second));
    opened(store);
}

fn readers_on_other_threads_see_whole_durable_pages(store: &dyn Store) {
    let mut log = opened(store).log;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let reader = log.reader();
            let done = &done;
            scope.spawn(move || {
                let mut next = Seq(1);
                loop {
                    let ended = done.load(Ordering::SeqCst);
                    match reader.page(next).unwrap() {
                        Some(page) => {
                            assert_eq!(page.get(next), Some(&report(next.0)));
                            next = page.last().next();
                        }
                        None if ended => break,
                        None => thread::yield_now(),
                    }
                }
                assert_eq!(next, Seq(401));
            });
        }
        for n in 0..40 {
            append(&mut *log, &reports(n * 10 + 1..=n * 10 + 10));
            if log.is_generation_full() {
                log.begin_generation(b"c").unwrap();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(log.generations().len() > 2);
}

/// Begins an append, and says whether it is under way.
fn begin(log: &mut dyn EventLog, events: &[Event]) -> bool {
    let (done, written) = std::sync::mpsc::channel();
    let begun = log.begin_append(events, &next_send, Box::new(move || _ = done.send(()))).unwrap();
    if begun == Begun::UnderWay {
        written.recv().unwrap();
    }
    begun == Begun::UnderWay
}

fn what_was_begun_is_there_once_it_is_finished_and_not_before(store: &dyn Store) {
    let mut log = opened(store).log;
    let reader = log.reader();
    if begin(&mut *log, &reports(1..=120)) {
        assert_eq!((log.next_seq(), reader.page(Seq(1)).unwrap()), (Seq(1), None));
        // The next one, in pieces, meanwhile.
        log.prepare(&reports(121..=150), &next_send);
        log.prepare(&reports(151..=151), &next_send);
        assert_eq!(reader.page(Seq(121)).unwrap(), None);
    }
    assert_eq!(log.finish_append().unwrap(), Seq(120));
    assert_eq!((log.next_seq(), all(&*reader, Seq(1))), (Seq(121), reports(1..=120)));
    begin(&mut *log, &reports(121..=240));
    assert_eq!(log.finish_append().unwrap(), Seq(240));
    // What was prepared may be appended in one go, too.
    if begin(&mut *log, &reports(241..=300)) {
        log.prepare(&reports(301..=302), &next_send);
    }
    log.finish_append().unwrap();
    assert_eq!(append(&mut *log, &reports(301..=303)), Seq(303));
    drop(log);
    let again = opened(store);
    assert_eq!(all(&*again.log.reader(), Seq(1)), reports(1..=303));
}

fn a_kill_leaves_all_of_what_was_under_way_or_nothing(store: &dyn Store) {
    let mut log = opened(store).log;
    append(&mut *log, &reports(1..=10));
    log.begin_append(&reports(11..=130), &next_send, Box::new(|| ())).unwrap();
    drop(log);
    let again = opened(store);
    let last = again.log.next_seq().0 - 1;
    assert!(last == 10 || last == 130, "{last}");
    assert_eq!(all(&*again.log.reader(), Seq(1)), reports(1..=last));
}

fn what_is_under_way_counts_for_a_full_generation(store: &dyn Store) {
    let mut log = opened(store).log;
    begin(&mut *log, &reports(1..=400));
    assert!(log.is_generation_full());
    log.finish_append().unwrap();
    log.begin_generation(b"four hundred").unwrap();
    begin(&mut *log, &reports(401..=500));
    log.finish_append().unwrap();
    log.close(b"five hundred").unwrap();
    assert_eq!(all(&*opened(store).log.reader(), Seq(1)), reports(1..=500));
}

macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $claim() { super::$claim(&super::Disk::new(24 << 10)) })*
        }
        mod sled {
            $(#[test] fn $claim() { super::$claim(&super::OnDisk(tempfile::tempdir().unwrap())) })*
        }
        #[cfg(feature = "jetstream")]
        mod jetstream {
            $(#[test] fn $claim() { super::$claim(&super::OnServers::fresh()) })*
        }
    };
}

claims! {
    what_was_appended_is_read_back_in_order,
    nothing_of_an_append_that_is_refused_is_stored,
    a_kill_loses_nothing,
    a_clean_stop_hands_its_checkpoint_to_the_next_start,
    after_a_kill_the_newest_checkpoint_counts,
    an_empty_checkpoint_is_one,
    a_full_generation_is_followed_by_one_that_begins_with_a_checkpoint,
    what_was_dropped_is_gone_for_good,
    the_generation_that_is_written_is_never_dropped,
    an_event_larger_than_a_page_comes_back_whole,
    a_page_says_what_each_lane_had_sent_before_it,
    a_second_log_on_the_store_is_refused_unless_it_is_shared,
    readers_on_other_threads_see_whole_durable_pages,
    what_was_begun_is_there_once_it_is_finished_and_not_before,
    a_kill_leaves_all_of_what_was_under_way_or_nothing,
    what_is_under_way_counts_for_a_full_generation,
}
