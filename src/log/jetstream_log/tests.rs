//! What is special about a log on servers; what every log promises is in `log::conformance`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::log::samples::{report, with_payload};
use crate::log::{Checkpoint, LastStop, ReadError};

mod ids;
mod moves;
mod rights;
mod several;

#[path = "../../../tests/support/nats.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod nats;

use nats::Nats;

/// Nothing that works takes so long, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has such patience itself has ended by then.
const LONG: Duration = Duration::from_secs(120);

/// The server of the whole run.
fn address() -> String {
    static SERVER: OnceLock<Nats> = OnceLock::new();
    SERVER.get_or_init(Nats::for_the_process).address()
}

/// Options for a fresh stream on the server of the whole run.
pub(in crate::log) fn options() -> Options {
    on(&address())
}

fn on(address: &str) -> Options {
    static STREAMS: AtomicU32 = AtomicU32::new(0);
    let stream = format!("test{}", STREAMS.fetch_add(1, Ordering::Relaxed));
    Options { generation_size: 24 << 10, page_cache: 32 << 10, ..Options::new(vec![address.to_owned()], &stream, 64 << 20) }
}

fn opened(options: &Options) -> Opened {
    JetStreamLog::open(options.clone()).unwrap_or_else(|error| panic!("{error}"))
}

fn sends(_: &LaneKey) -> SendNo {
    SendNo::default()
}

fn reports(range: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    range.map(report).collect()
}

fn read_all(reader: &dyn LogReader) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(page) = reader.page(Seq(events.len() as u64 + 1)).unwrap() {
        events.extend_from_slice(&page.events);
    }
    events
}

/// Opens the store though others have it.
pub(in crate::log) fn beside(options: &Options) -> Opened {
    opened(options)
}

#[test]
fn who_was_overtaken_stores_nothing_until_it_has_caught_up() {
    let options = options();
    let (mut a, mut b) = (beside(&options).log, beside(&options).log);
    assert!(a.is_shared());
    a.append(&reports(1..=10), &sends).unwrap();
    assert!(matches!(b.append(&reports(1..=3), &sends), Err(AppendError::Overtaken)));
    assert_eq!(b.next_seq(), Seq(1));
    let caught: Vec<Event> = b.catch_up().unwrap().iter().flat_map(|page| page.events.clone()).collect();
    assert_eq!((caught, b.next_seq()), (reports(1..=10), Seq(11)));
    assert_eq!(b.append(&reports(11..=12), &sends).unwrap(), Seq(12));
    // A commit of several pages is as void as one of one.
    let large: Vec<Event> = (11..=14).map(|n| with_payload(n, vec![n as u8; 50_000])).collect();
    assert!(matches!(a.append(&large, &sends), Err(AppendError::Overtaken)));
    a.catch_up().unwrap();
    assert_eq!(a.append(&reports(13..=13), &sends).unwrap(), Seq(13));
    assert!(a.catch_up().unwrap().is_empty());
    b.catch_up().unwrap();
    for log in [&a, &b] {
        assert_eq!(read_all(&*log.reader()), reports(1..=13));
    }
    drop((a, b));
    assert_eq!(read_all(&*opened(&options).log.reader()), reports(1..=13));
}

#[test]
fn a_generation_that_another_instance_has_begun_is_taken_over() {
    let options = options();
    let (mut a, mut b) = (beside(&options).log, beside(&options).log);
    a.append(&reports(1..=10), &sends).unwrap();
    b.catch_up().unwrap();
    a.begin_generation(b"ten").unwrap();
    b.begin_generation(b"also ten").unwrap();
    for log in [&a, &b] {
        assert_eq!(log.generations().iter().map(|generation| generation.first).collect::<Vec<_>>(), [Seq(1), Seq(11)]);
    }
    drop((a, b));
    assert_eq!(opened(&options).checkpoint, Some(Checkpoint { next: Seq(11), bytes: b"ten".to_vec() }));
}

/// A commit of another start that was begun and not ended, with the connection that it goes over.
struct Torn {
    bridge: Bridge,
    rest: Publication,
}

impl Torn {
    /// Publishes the rest.
    fn end(self) -> Result<(), NotStored> {
        self.bridge.wait(LONG, self.rest.store()).expect("it ends")
    }
}

/// Publishes the first `count` pages of a commit of `of` pages as another start would, behind what `log` has read.
fn tear(log: &dyn EventLog, options: &Options, count: usize, of: u64) -> Torn {
    let bridge = Bridge::new().unwrap();
    let asked = options.clone();
    let next = log.next_seq().0;
    let events: Vec<Event> = (next..next + of).map(|n| with_payload(n, vec![9; 50_000])).collect();
    let rest = bridge.wait(LONG, async move {
        let context = servers::connect(&asked).await.unwrap();
        let info = servers::find(&context, &asked.stream).await.unwrap();
        let bucket = Bucket::open(&context, &asked, true).await.unwrap();
        let identity = bucket.read::<bucket::Identity>("identity").await.unwrap().unwrap().value;
        let tag = u64::from_str_radix(&identity.tag, 16).unwrap();
        let mut encoder = Encoder::new(tag, 1_000, crate::log::codec::Limits::for_segment(8 << 20)).unwrap();
        let pages = encoder.events(Seq(next), &events, &sends).unwrap();
        let stream = Pages::open(&context, &asked, info).await.unwrap();
        let base = stream.info().await.unwrap().state.last_sequence;
        let mut messages: Vec<Bytes> = pages.into_iter().map(|page| page.bytes.into()).collect();
        let rest = messages.split_off(count);
        let publication = |messages: Vec<Bytes>, base| {
            let pages = stream.clone();
            Publication { pages, id: "torn".into(), base, messages, patience: PATIENCE }
        };
        publication(messages, base).store().await.unwrap();
        publication(rest, base + count as u64)
    });
    Torn { bridge, rest: rest.expect("it is published") }
}

#[test]
fn what_was_torn_is_passed_over_by_every_reader() {
    let options = Options { page_cache: 1, ..options() };
    let mut log = opened(&options).log;
    for n in 0..60 {
        if n % 7 == 3 {
            tear(&*log, &options, 2, 3);
            // Whoever tore it came first.
            assert!(matches!(log.append(&reports(1..=1), &sends), Err(AppendError::Overtaken)));
            assert!(log.catch_up().unwrap().is_empty());
        }
        let next = n * 5 + 1;
        log.append(&reports(next..=next + 4), &sends).unwrap();
    }
    assert_eq!(read_all(&*log.reader()), reports(1..=300));
    drop(log);
    let log = opened(&options).log;
    let reader = log.reader();
    // Without anchors, in no order.
    for n in 0..300u64 {
        let seq = n * 127 % 300 + 1;
        let page = reader.page(Seq(seq)).unwrap().unwrap();
        assert_eq!(page.get(Seq(seq)), Some(&report(seq)));
        let glimpse = reader.glimpse(Seq(seq)).unwrap().unwrap();
        assert_eq!((glimpse.first, glimpse.last), (page.first, page.last()));
    }
}

#[test]
fn pages_are_found_in_a_generation_that_this_start_has_not_written() {
    let options = Options { page_cache: 1, generation_size: 1 << 20, ..options() };
    let mut log = opened(&options).log;
    for n in 0..100 {
        log.append(&reports(n * 3 + 1..=n * 3 + 3), &sends).unwrap();
    }
    tear(&*log, &options, 1, 2);
    log.catch_up().unwrap();
    log.close(b"closed").unwrap();
    let reopened = opened(&options);
    assert_eq!(reopened.last_stop, LastStop::Clean);
    let reader = reopened.log.reader();
    for n in 0..300u64 {
        let seq = n * 127 % 300 + 1;
        assert_eq!(reader.page(Seq(seq)).unwrap().unwrap().get(Seq(seq)), Some(&report(seq)));
    }
    assert_eq!(reader.page(Seq(301)), Ok(None));
}

#[test]
fn a_server_that_stops_answering_delays_a_commit_and_makes_it_neither_lost_nor_doubled() {
    let mut server = Nats::start();
    let options = on(&server.address());
    let mut log = opened(&options).log;
    log.append(&reports(1..=5), &sends).unwrap();
    let (go, told) = std::sync::mpsc::channel();
    let appending = std::thread::spawn(move || {
        for n in 1..200 {
            let next = log.next_seq().0;
            log.append(&reports(next..=next + n % 3), &sends).unwrap();
            let _ = go.send(());
        }
        log
    });
    for round in 0..2 {
        told.iter().take(10 + round * 30).for_each(drop);
        // Frozen, and crashed: both while a commit is under way.
        match round {
            0 => {
                server.signal("-STOP");
                std::thread::sleep(Duration::from_secs(6));
                server.signal("-CONT");
            }
            _ => {
                server.kill();
                server.run();
            }
        }
    }
    let log = appending.join().unwrap();
    let last = log.next_seq().0 - 1;
    assert_eq!(read_all(&*log.reader()), reports(1..=last));
    drop(log);
    assert_eq!(read_all(&*opened(&options).log.reader()), reports(1..=last));
}

#[test]
fn what_can_not_be_found_out_ends_the_log() {
    let mut server = Nats::start();
    let options = Options { patience: Duration::from_millis(500), ..on(&server.address()) };
    let mut log = opened(&options).log;
    log.append(&reports(1..=5), &sends).unwrap();
    server.kill();
    assert!(matches!(log.append(&reports(6..=6), &sends), Err(AppendError::Io(_))));
    server.run();
    // The servers are back, and it is final all the same: the start finds out.
    assert!(matches!(log.append(&reports(6..=6), &sends), Err(AppendError::Io(_))));
    drop(log);
    let log = opened(&options).log;
    let last = log.next_seq().0 - 1;
    assert!(last == 5 || last == 6, "stored, or not, as a whole");
    assert_eq!(read_all(&*log.reader()), reports(1..=last));
}

/// Does something to the stream and the bucket behind the log's back.
fn meddle<F: Future<Output = ()> + Send + 'static>(
    options: &Options,
    act: impl FnOnce(async_nats::jetstream::Context) -> F + Send + 'static,
) {
    let (bridge, options) = (Bridge::new().unwrap(), options.clone());
    bridge.wait(PATIENCE, async move { act(servers::connect(&options).await.unwrap()).await }).expect("it is done");
}

#[test]
fn a_stream_that_has_lost_what_was_stored_is_refused() {
    let options = options();
    let mut log = opened(&options).log;
    log.append(&reports(1..=5), &sends).unwrap();
    log.append(&reports(6..=9), &sends).unwrap();
    drop(log);
    let stream = options.stream.clone();
    meddle(&options, move |context| async move {
        let mut found = context.get_stream(&stream).await.unwrap();
        let config = found.info().await.unwrap().config.clone();
        context.delete_stream(&stream).await.unwrap();
        context.create_stream(config).await.unwrap();
    });
    let error = JetStreamLog::open(options.clone()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("the stream ends with message 0, and 2 had been stored"), "{error}");
    // Whoever has to go on without it can say so.
    let bucket = options.stream.clone();
    let witness = |last: &'static str| {
        let bucket = bucket.clone();
        meddle(&options, move |context| async move {
            context.get_key_value(&bucket).await.unwrap().put("witness", last.into()).await.unwrap();
        });
    };
    witness(r#"{"last":0}"#);
    assert_eq!(opened(&options).log.next_seq(), Seq(1));
    witness(r#"{"last":2}"#);
    let stream = options.stream.clone();
    meddle(&options, move |context| async move { assert!(context.delete_stream(&stream).await.unwrap().success) });
    let error = JetStreamLog::open(options).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("the stream is gone with everything"), "{error}");
}

#[test]
fn a_newer_format_and_a_strangers_stream_are_refused() {
    let options = options();
    drop(opened(&options));
    let bucket = options.stream.clone();
    meddle(&options, move |context| async move {
        let bucket = context.get_key_value(&bucket).await.unwrap();
        bucket.put("identity", r#"{"format":7,"store":"1","tag":"2"}"#.into()).await.unwrap();
    });
    let error = JetStreamLog::open(options).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 7, known: FORMAT, .. }), "{error}");
    let options = self::options();
    let stream = options.stream.clone();
    meddle(&options, move |context| async move {
        let config =
            async_nats::jetstream::stream::Config { name: stream.clone(), subjects: vec![format!("{stream}.pages")], ..Default::default() };
        context.create_stream(config).await.unwrap();
    });
    let error = JetStreamLog::open(options).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("it discards old messages"), "{error}");
}

#[test]
fn there_is_no_room_before_the_stream_refuses() {
    let options = Options { max_size: 1 << 20, ..options() };
    let mut log = opened(&options).log;
    let mut noise = vec![0u8; 50_000];
    getrandom::fill(&mut noise).unwrap();
    let mut appended = 0;
    while log.make_room(60_000, Urgency::LastResort).unwrap() {
        appended += 1;
        log.append(&[with_payload(appended, noise.clone())], &sends).unwrap();
        assert!(appended < 100, "it grows without end");
    }
    assert!(log.space().used >= options.max_size, "reports are refused before outcomes are");
    // Dropping makes room.
    log.begin_generation(b"c").unwrap();
    log.drop_oldest_generation().unwrap();
    let until = std::time::Instant::now() + PATIENCE;
    while !log.make_room(60_000, Urgency::LastResort).unwrap() {
        assert!(std::time::Instant::now() < until, "there is no room though everything was dropped");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(log.reader().page(Seq(1)), Err(ReadError::Gone(Seq(1))));
}

#[test]
fn a_checkpoint_that_can_not_be_read_is_replaced_by_the_one_before() {
    let options = options();
    let mut log = opened(&options).log;
    for n in 0..3u64 {
        log.append(&reports(n * 5 + 1..=n * 5 + 5), &sends).unwrap();
        log.begin_generation(format!("{n}").as_bytes()).unwrap();
    }
    drop(log);
    let bucket = options.stream.clone();
    meddle(&options, move |context| async move {
        let bucket = context.get_key_value(&bucket).await.unwrap();
        bucket.put("checkpoint.1-3.0", "rubbish".into()).await.unwrap();
    });
    let again = opened(&options);
    assert_eq!(again.checkpoint, Some(Checkpoint { next: Seq(11), bytes: b"1".to_vec() }));
    assert_eq!(again.log.next_seq(), Seq(16));
    assert_eq!(read_all(&*again.log.reader()), reports(1..=15));
}
