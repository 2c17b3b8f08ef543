//! Space: what is made ready is enough, and an unfinished snapshot of sled's stops nobody.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::core::event::Proof;
use crate::core::ranges::Ranges;
use crate::log::samples::lane;
use crate::log::sizes::OUTCOME_BYTES;

fn outcome(n: u64) -> [Event; 2] {
    let sends = Ranges::one(n);
    let delivered = Event::Delivered { lane: lane(0), sends, proof: Proof::PubComp, at: Millis(n) };
    [Event::Released { lane: lane(0), sends: vec![SendNo(n)] }, delivered]
}

/// What the first generation takes.
fn taken(store: &Path) -> u64 {
    durable::bytes_on_disk(&store.join(open::folder_name(Seq(1))))
}

fn with_segments(store: &Path, segment_size: usize) -> Box<dyn EventLog> {
    let options = Options { segment_size, generation_size: 8 << 20, ..SMALL };
    SledLog::open(store, options).unwrap_or_else(|error| panic!("{error}")).log
}

#[test]
fn a_commit_takes_no_more_than_was_made_ready_for_it() {
    for segment_size in [256 << 10, 1 << 20, 8 << 20] {
        let store = tempfile::tempdir().unwrap();
        let mut log = with_segments(store.path(), segment_size);
        let mut noise = vec![0; 3 << 20];
        getrandom::fill(&mut noise).unwrap();
        let mut n = 0;
        for round in 0..60_usize {
            // One and many, small and large, none of which compresses.
            let (count, len) = [(1, 300), (40, 1_900), (1, 100_000), (3, 20), (400, 2_000), (7, 9_000)][round % 6];
            let events: Vec<Event> = (0..count).map(|at| with_payload(n + at as u64, noise[at * len + round..][..len].to_vec())).collect();
            n += count as u64;
            let bytes = (count * (len + 300)) as u64;
            let before = taken(store.path());
            log.append(&events, &next_send).unwrap();
            let took = taken(store.path()).saturating_sub(before);
            assert!(took <= log.sizes().commit(bytes), "{count} events of {len} bytes took {took} bytes in segments of {segment_size}");
        }
    }
}

#[test]
fn one_outcome_takes_no_more_than_is_reserved_for_it() {
    for segment_size in [256 << 10, 1 << 20, 8 << 20] {
        let store = tempfile::tempdir().unwrap();
        let mut log = with_segments(store.path(), segment_size);
        log.append(&reports(1..=500), &next_send).unwrap();
        let before = taken(store.path());
        const COUNT: u64 = 1_000;
        for n in 0..COUNT {
            for event in outcome(n) {
                log.append(&[event], &next_send).unwrap();
            }
        }
        let each = (taken(store.path()) - before) / COUNT;
        assert!(each <= OUTCOME_BYTES, "an outcome took {each} bytes in segments of {segment_size}");
    }
}

#[test]
fn a_snapshot_that_sled_did_not_finish_stops_no_start() {
    let sample = Sample::killed();
    // What a kill, or a full disk, leaves of it. Its name comes behind that of every finished one.
    fs::write(sample.folder(2).join("snap.7FFFFFFFFFFFFFFF.generating"), b"half a snap").unwrap();
    sample.opens();
}

#[test]
fn a_generation_that_was_made_ready_and_never_begun_is_cleared_away() {
    let store = tempfile::tempdir().unwrap();
    let mut log = with_segments(store.path(), 256 << 10);
    log.append(&reports(1..=3), &next_send).unwrap();
    assert!(log.make_room_to_begin(1_000).unwrap());
    let next = store.path().join(open::folder_name(Seq(4)));
    assert!(next.exists());
    drop(log);
    let mut log = with_segments(store.path(), 256 << 10);
    assert!(!next.exists());
    // And one that is begun holds what it is to hold, whatever was made ready.
    assert!(log.make_room_to_begin(1_000).unwrap());
    log.begin_generation(b"a checkpoint").unwrap();
    assert_eq!(log.append(&reports(4..=5), &next_send).unwrap(), Seq(5));
}

#[test]
fn what_was_allocated_ahead_is_given_back_when_a_generation_is_sealed() {
    let store = tempfile::tempdir().unwrap();
    let mut log = with_segments(store.path(), 256 << 10);
    log.append(&reports(1..=3), &next_send).unwrap();
    let db = store.path().join(open::folder_name(Seq(1))).join("db");
    let file = File::options().write(true).open(&db).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 8 << 20).unwrap();
    log.begin_generation(b"a checkpoint").unwrap();
    while sealed(store.path()) < 1 {
        std::thread::yield_now();
    }
    let meta = fs::metadata(db).unwrap();
    assert!(meta.blocks() * 512 < meta.len() + (64 << 10), "{} bytes for {}", meta.blocks() * 512, meta.len());
}

#[test]
fn stops_with_nothing_to_do_leave_their_checkpoint_once() {
    let store = tempfile::tempdir().unwrap();
    let mut checkpoint = vec![0; 50_000];
    getrandom::fill(&mut checkpoint).unwrap();
    let mut log = open(store.path()).log;
    log.append(&reports(1..=3), &next_send).unwrap();
    log.begin_generation(b"another").unwrap();
    let folder = store.path().join(open::folder_name(Seq(4)));
    let Found::Store { identity, .. } = Identity::read(store.path(), migrations::CURRENT).unwrap() else { panic!("it is a store") };
    log.close(&checkpoint).unwrap();
    let written = || scan(&folder, identity.tag).unwrap().closing_checkpoints_len();
    let once = written();
    assert!(once > 50_000);
    for _ in 0..3 {
        let opened = open(store.path());
        assert_eq!((opened.last_stop, opened.checkpoint.unwrap().bytes == checkpoint), (LastStop::Clean, true));
        opened.log.close(&checkpoint).unwrap();
        assert_eq!(written(), once);
    }
    // One that says something else is written.
    open(store.path()).log.close(b"changed").unwrap();
    assert_eq!(open(store.path()).checkpoint.unwrap().bytes, b"changed");
}
