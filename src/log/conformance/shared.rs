//! What a log promises on which several instances append: the claims, for every implementation that can be shared.

use std::time::{Duration, Instant};

use super::*;

/// Something on which several logs can be open at once.
pub(in crate::log) trait SharedStore {
    /// One more of them, as of everything that is in the log now.
    fn open_shared(&self) -> Opened;
}

impl SharedStore for Disk {
    fn open_shared(&self) -> Opened {
        MemoryLog::open_shared(self).unwrap_or_else(|error| panic!("{error}"))
    }
}

#[cfg(feature = "jetstream")]
impl SharedStore for OnServers {
    fn open_shared(&self) -> Opened {
        super::super::jetstream_log::tests::beside(&self.0)
    }
}

fn events_of(pages: &[Arc<Page>]) -> Vec<Event> {
    pages.iter().flat_map(|page| page.events.iter().cloned()).collect()
}

fn who_has_not_read_everything_is_overtaken_and_nothing_is_stored(store: &dyn SharedStore) {
    let (mut first, mut second) = (store.open_shared().log, store.open_shared().log);
    assert!(first.is_shared() && second.is_shared());
    append(&mut *first, &reports(1..=3));
    let reader = first.reader();
    for _ in 0..2 {
        assert!(matches!(second.append(&reports(90..=95), &next_send), Err(AppendError::Overtaken)));
        assert_eq!(second.next_seq(), Seq(1), "it has read nothing by that");
        assert_eq!(all(&*reader, Seq(1)), reports(1..=3));
    }
    assert_eq!(append(&mut *first, &reports(4..=4)), Seq(4), "and nobody else is harmed");
}

fn who_has_caught_up_can_append(store: &dyn SharedStore) {
    let (mut first, mut second) = (store.open_shared().log, store.open_shared().log);
    append(&mut *first, &reports(1..=3));
    assert!(matches!(second.append(&reports(4..=5), &next_send), Err(AppendError::Overtaken)));
    assert_eq!(events_of(&second.catch_up().unwrap()), reports(1..=3));
    assert_eq!((second.next_seq(), append(&mut *second, &reports(4..=5))), (Seq(4), Seq(5)));
    assert!(second.catch_up().unwrap().is_empty(), "its own it knows");
    assert!(matches!(first.append(&reports(6..=6), &next_send), Err(AppendError::Overtaken)), "and now it is the other's turn");
    assert_eq!(events_of(&first.catch_up().unwrap()), reports(4..=5));
    assert_eq!(append(&mut *first, &reports(6..=6)), Seq(6));
}

fn every_instance_reads_the_same(store: &dyn SharedStore) {
    let mut logs: Vec<Box<dyn EventLog>> = (0..3).map(|_| store.open_shared().log).collect();
    let mut read = vec![Vec::new(); logs.len()];
    for number in 0..60u64 {
        let at = (number as usize * 7 + number as usize / 5) % logs.len();
        // One that falls behind for a while is among them.
        if at == 2 && number < 30 {
            continue;
        }
        read[at].extend(events_of(&logs[at].catch_up().unwrap()));
        let next = logs[at].next_seq().0;
        let events = reports(next..=next + number % 4);
        append(&mut *logs[at], &events);
        read[at].extend(events);
    }
    for (log, read) in logs.iter_mut().zip(&mut read) {
        read.extend(events_of(&log.catch_up().unwrap()));
    }
    let last = logs[0].next_seq().0 - 1;
    for (log, read) in logs.iter().zip(&read) {
        assert_eq!(log.next_seq().0, last + 1);
        assert_eq!(*read, reports(1..=last), "in the order of the log, each event once");
        assert_eq!(all(&*log.reader(), Seq(1)), *read);
    }
    // And so does one that comes later.
    let late = store.open_shared();
    assert_eq!(late.log.next_seq().0, last + 1);
    assert_eq!(all(&*late.log.reader(), Seq(1)), reports(1..=last));
}

fn a_commit_is_whole_or_void_for_the_others_too(store: &dyn SharedStore) {
    let (mut first, mut second) = (store.open_shared().log, store.open_shared().log);
    let mut events = reports(1..=3);
    events.push(with_payload(4, vec![0; codec::MAX_EVENT + 1]));
    assert!(matches!(first.append(&events, &next_send), Err(AppendError::TooLarge { .. })));
    assert!(second.catch_up().unwrap().is_empty());
    // Of many pages.
    let large: Vec<Event> = (1..=8).map(|number| with_payload(number, vec![number as u8; 200_000])).collect();
    append(&mut *first, &large);
    assert_eq!(events_of(&second.catch_up().unwrap()), large);
    assert_eq!(second.next_seq(), Seq(9));
}

fn instances_that_race_append_one_after_another(store: &dyn SharedStore) {
    const EACH: usize = 25;
    let stored: Vec<(Seq, usize)> = thread::scope(|scope| {
        let racers: Vec<_> = (0..3usize)
            .map(|racer| {
                let mut log = store.open_shared().log;
                scope.spawn(move || {
                    let mut stored = Vec::new();
                    while stored.len() < EACH {
                        let next = log.next_seq();
                        match log.append(&[report(racer as u64 * 1_000 + stored.len() as u64)], &next_send) {
                            Ok(last) => {
                                assert_eq!(last, next);
                                stored.push((last, racer));
                            }
                            Err(AppendError::Overtaken) => _ = log.catch_up().unwrap(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                    stored
                })
            })
            .collect();
        racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect()
    });
    let events = all(&*store.open_shared().log.reader(), Seq(1));
    assert_eq!(events.len(), stored.len(), "each that succeeded is there, and nothing else");
    let mut counts = [0; 3];
    let mut stored = stored;
    stored.sort_unstable();
    for ((seq, racer), (number, event)) in stored.into_iter().zip((1..).zip(events)) {
        assert_eq!((seq, event), (Seq(number), report(racer as u64 * 1_000 + counts[racer])));
        counts[racer] += 1;
    }
}

fn firsts(log: &dyn EventLog) -> Vec<u64> {
    log.generations().iter().map(|generation| generation.first.0).collect()
}

fn generations_that_events_speak_of_are_the_same_for_all(store: &dyn SharedStore) {
    let (mut first, mut second, mut absent) = (store.open_shared().log, store.open_shared().log, store.open_shared().log);
    append(&mut *first, &reports(1..=2));
    append(&mut *first, &reports(3..=4));
    first.note_generation(Seq(5)).unwrap();
    append(&mut *first, &reports(5..=6));
    second.catch_up().unwrap();
    for log in [&mut first, &mut second] {
        for _ in 0..2 {
            log.note_generation(Seq(3)).unwrap();
            log.note_generation(Seq(5)).unwrap();
        }
        assert_eq!(firsts(&**log), [1, 3, 5]);
        assert_eq!(all(&*log.reader(), Seq(1)), reports(1..=6), "what is where does not change");
        assert_eq!(log.reader().generation(Seq(4)).map(|(first, _)| first), Some(Seq(3)));
    }
    first.note_dropped(Seq(3)).unwrap();
    assert!(first.keep_generations(Some(b"as of 7")).unwrap());
    second.note_dropped(Seq(3)).unwrap();
    for log in [&first, &second] {
        assert_eq!(firsts(&**log), [3, 5]);
        assert!(matches!(log.reader().page(Seq(2)), Err(ReadError::Gone(_))));
        assert_eq!(all(&*log.reader(), Seq(3)), reports(3..=6));
    }
    // It may be said again, and by another.
    assert!(second.keep_generations(None).unwrap() && first.keep_generations(None).unwrap());
    let late = store.open_shared();
    assert_eq!(late.checkpoint, Some(Checkpoint { next: Seq(7), bytes: b"as of 7".to_vec() }));
    assert_eq!((firsts(&*late.log), all(&*late.log.reader(), Seq(3))), (vec![3, 5], reports(3..=6)));
    // Who has read nothing of that can't go on: soon after, it finds out.
    let until = Instant::now() + Duration::from_secs(30);
    let gone = loop {
        match absent.catch_up() {
            Ok(pages) => assert!(pages.is_empty() && Instant::now() < until, "what it lacks is gone"),
            Err(error) => break error.to_string(),
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(gone.contains("a start goes on from the checkpoint"), "{gone}");
}

fn a_generation_that_was_begun_and_not_kept_is_kept_by_another(store: &dyn SharedStore) {
    let mut first = store.open_shared().log;
    append(&mut *first, &reports(1..=2));
    first.note_generation(Seq(3)).unwrap();
    append(&mut *first, &reports(3..=4));
    drop(first);
    let mut second = store.open_shared().log;
    second.note_generation(Seq(3)).unwrap();
    second.note_generation(Seq(5)).unwrap();
    assert!(second.keep_generations(Some(b"as of 5")).unwrap());
    drop(second);
    let opened = store.open_shared();
    assert_eq!((firsts(&*opened.log), opened.checkpoint.map(|checkpoint| checkpoint.next)), (vec![1, 3, 5], Some(Seq(5))));
    assert_eq!(all(&*opened.log.reader(), Seq(1)), reports(1..=4));
}

macro_rules! shared_claims {
    ($($claim:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $claim() { super::$claim(&super::Disk::new(64 << 20)) })*
        }
        #[cfg(feature = "jetstream")]
        mod jetstream {
            $(#[test] fn $claim() { super::$claim(&super::OnServers::fresh()) })*
        }
    };
}

shared_claims! {
    who_has_not_read_everything_is_overtaken_and_nothing_is_stored,
    who_has_caught_up_can_append,
    every_instance_reads_the_same,
    a_commit_is_whole_or_void_for_the_others_too,
    instances_that_race_append_one_after_another,
    generations_that_events_speak_of_are_the_same_for_all,
    a_generation_that_was_begun_and_not_kept_is_kept_by_another,
}
