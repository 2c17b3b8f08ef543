//! A store moves to servers and back, generation by generation.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::core::event::{DeadReason, DeliveryRef, LanePurpose, Proof};
use crate::core::outbox::Outbox;
use crate::core::ranges::Ranges;
use crate::core::types::{InstanceId, Millis};
use crate::log::ImportError;
use crate::log::committer::{encode_checkpoint, recover};
use crate::log::sled_log::{self, SledLog};

/// Small, so that there are generations.
const SMALL: sled_log::Options =
    sled_log::Options { segment_size: 256 << 10, generation_size: 24 << 10, sled_cache: 1 << 20, page_cache: 32 << 10 };

/// The lane of the n-th report.
fn lane(n: u64) -> LaneKey {
    LaneKey { connection: "mq".into(), lane: (n % 4) as u32 }
}

/// The n-th report of a producer that replays nothing.
fn fresh(n: u64) -> Event {
    let Event::Accepted(mut accepted) = report(n) else { panic!("it is a report") };
    Arc::make_mut(&mut accepted).replay_of = None;
    Event::Accepted(accepted)
}

/// Four generations, of which the oldest is gone: what was delivered, a dead letter, what is pending, an instance with a lane.
fn fill(log: &mut dyn EventLog) -> Outbox {
    let mut outbox = Outbox::new();
    let put = |log: &mut dyn EventLog, outbox: &mut Outbox, events: Vec<Event>| {
        for event in events {
            let before = outbox.clone();
            outbox.apply(&event).unwrap();
            log.append(&[event], &|lane| before.next_send(lane)).unwrap();
        }
    };
    let roll = |log: &mut dyn EventLog, outbox: &mut Outbox| {
        outbox.begin_generation();
        log.begin_generation(&encode_checkpoint(outbox)).unwrap();
    };
    let at = Millis(1);
    let lanes = Event::LanesChanged { connection: "mq".into(), first: 0, count: 4, purpose: LanePurpose::Fresh, at };
    put(log, &mut outbox, vec![lanes, Event::InstanceJoined { instance: InstanceId(7), name: "ci-1".into(), at }]);
    put(log, &mut outbox, (0..8).map(fresh).collect());
    let done = (0..4).map(|n| Event::Delivered { lane: lane(n), sends: Ranges(vec![(0, 1)]), proof: Proof::PubComp, at });
    put(log, &mut outbox, done.collect());
    roll(log, &mut outbox);
    put(log, &mut outbox, (8..20).map(fresh).collect());
    let delivery = DeliveryRef { lane: lane(8), send: SendNo(2), id: Seq(15), located: Seq(15) };
    let reason = DeadReason { code: "refused".into(), broker_code: Some(0x99), message: "payload format invalid".into() };
    put(log, &mut outbox, vec![Event::DeadLettered { delivery, reason, attempts: 1, at }]);
    roll(log, &mut outbox);
    put(log, &mut outbox, (20..30).map(fresh).collect());
    roll(log, &mut outbox);
    put(log, &mut outbox, (30..35).map(fresh).collect());
    log.drop_oldest_generation().unwrap();
    outbox.drop_oldest_generation();
    outbox
}

#[test]
fn a_store_of_several_generations_moves_to_a_folder_and_to_servers_again() {
    let (first, second) = (options(), options());
    let mut log = opened(&first).log;
    let outbox = fill(&mut *log);
    let events: Vec<Event> = read_from(&*log.reader(), log.generations()[0].first);
    log.close(&encode_checkpoint(&outbox)).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let moved = export(first.clone(), &store, SMALL, &|_| ()).unwrap();
    assert_eq!((moved.first, moved.last, moved.pending), (Seq(15), Seq(42), 26));
    assert!(JetStreamLog::open(first.clone()).map(|_| ()).unwrap_err().to_string().contains("it was moved to "));
    assert!(matches!(export(second.clone(), &store, SMALL, &|_| ()), Err(ImportError::Open(OpenError::NotAStream { .. }))));

    let on_disk = SledLog::open(&store, SMALL).unwrap();
    assert!(!on_disk.is_copy, "it takes the sessions along");
    assert_eq!(read_from(&*on_disk.log.reader(), Seq(15)), events);
    assert_eq!(encode_checkpoint(&recover(&on_disk).unwrap()), encode_checkpoint(&outbox));
    let moved = import(&on_disk, second.clone(), &|_| ()).unwrap();
    assert_eq!((moved.first, moved.last, moved.pending), (Seq(15), Seq(42), 26));
    // A kill of the service on the folder leaves a store that starts.
    drop(on_disk);
    assert_eq!(encode_checkpoint(&recover(&SledLog::open(&store, SMALL).unwrap()).unwrap()), encode_checkpoint(&outbox));
    let checked = sled_log::fsck(&store, &()).unwrap();
    assert!(checked.findings.listed.is_empty(), "{:?}", checked.findings);
    assert_eq!((checked.pending, checked.dead), (26, 1));
    let again = opened(&second);
    assert_eq!(read_from(&*again.log.reader(), Seq(15)), events);
}

#[test]
fn a_stream_on_which_somebody_comes_to_work_is_not_left() {
    let options = options();
    fill(&mut *opened(&options).log);
    let folder = tempfile::tempdir().unwrap();
    // It has appended nothing yet.
    let (started, beats) = (OnceLock::new(), AtomicU32::new(0));
    let is_over = AtomicBool::new(false);
    let exported = std::thread::scope(|scope| {
        let come = |_| {
            let peers = started.get_or_init(|| opened(&Options { instance: "ci-2".into(), ..options.clone() })).log.peers().unwrap();
            scope.spawn({
                let (is_over, beats) = (&is_over, &beats);
                move || {
                    while !is_over.load(Ordering::Relaxed) {
                        peers.put_beat(InstanceId(2), beats.fetch_add(1, Ordering::Relaxed).into()).unwrap();
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            });
        };
        let exported = export(options.clone(), &folder.path().join("store"), SMALL, &come);
        is_over.store(true, Ordering::Relaxed);
        exported
    });
    let error = exported.unwrap_err().to_string();
    assert!(error.contains("ci-2 has come to work"), "{error}");
    assert_eq!(opened(&options).log.next_seq(), Seq(43), "it goes on where it is");
}

#[test]
fn a_stream_is_not_left_as_long_as_the_servers_do_not_say_that_nobody_has_appended() {
    // What was copied can be read from any replica; what comes next is read from the leader.
    let rights = "authorization { users = [
        { user: mute, password: secret, permissions: { publish: { deny: [\"$JS.API.STREAM.MSG.GET.reports\"] } } }
        { user: tidings, password: secret }
    ] }";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nats.conf");
    std::fs::write(&file, rights).unwrap();
    let server = Nats::start_with(&["-c", file.to_str().unwrap()]);
    let by = |user: &str| {
        let login = Login::User { user: user.into(), password: "secret".into() };
        Options { login, stream: "reports".into(), ..on(&server.address()) }
    };
    fill(&mut *opened(&by("tidings")).log);
    let error = export(by("mute"), &folder.path().join("store"), SMALL, &|_| ()).unwrap_err().to_string();
    assert!(error.contains("whether an instance has appended to the stream meanwhile can't be found out"), "{error}");
    assert_eq!(opened(&by("tidings")).log.next_seq(), Seq(43), "it goes on where it is");
}

fn read_from(reader: &dyn LogReader, first: Seq) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(page) = reader.page(Seq(first.0 + events.len() as u64)).unwrap() {
        events.extend_from_slice(&page.events);
    }
    events
}
