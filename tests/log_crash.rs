//! The log under `kill -9`: a child process writes, is killed at a random moment, and whatever it had been told is durable must be there.
//!
//! The child is this test binary again, running only [`writer`], with the store in an environment variable.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tidings::core::event::Event;
use tidings::core::types::{Millis, SendNo, Seq};
use tidings::log::sled_log::{Options, SledLog};
use tidings::log::{LastStop, Opened, ReadError};

const STORE: &str = "TIDINGS_CRASH_TEST_STORE";
const ROUND: &str = "TIDINGS_CRASH_TEST_ROUND";
const ROUNDS: u64 = 20;
/// Small generations, so that kills also meet the beginning, sealing and dropping of generations.
const OPTIONS: Options = Options { segment_size: 512 << 10, generation_size: 96 << 10, sled_cache: 1 << 20, page_cache: 1 << 20 };

fn open(store: &Path) -> Opened {
    SledLog::open(store, OPTIONS).unwrap_or_else(|error| panic!("{error}"))
}

/// An event that says where and by whom it was written, with noise that does not compress.
fn event(seq: u64, round: u64) -> Event {
    let mut noise = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round.wrapping_mul(0xd134_2543_de82_ef95);
    let mut what = format!("{seq} {round} ");
    for _ in 0..seq % 60 {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        what.push_str(&format!("{noise:x}"));
    }
    Event::Audit { who: round.to_string(), what, at: Millis(seq) }
}

/// Not a test of its own: appends until it is killed, and prints the last position of each commit that was accepted.
#[test]
fn writer() {
    let (Ok(store), Ok(round)) = (std::env::var(STORE), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().unwrap();
    let mut log = open(Path::new(&store)).log;
    let mut out = std::io::stdout();
    for commit in 0u64.. {
        let first = log.next_seq().0;
        let events: Vec<Event> = (first..first + 1 + commit * 7 % 90).map(|seq| event(seq, round)).collect();
        let last = log.append(&events, &|_| SendNo(0)).unwrap();
        writeln!(out, "accepted {first} {last}").unwrap();
        if log.is_generation_full() {
            log.begin_generation(&vec![round as u8; 30_000]).unwrap();
            writeln!(out, "began {}", log.next_seq()).unwrap();
        }
        if log.generations().len() > 4 {
            let lowest = log.generations()[1].first;
            // Said before it is done: from here on it may be gone.
            writeln!(out, "dropping {lowest}").unwrap();
            log.drop_oldest_generation().unwrap();
        }
        if commit % 20 == 0 {
            log.tick().unwrap();
        }
    }
}

/// What the writer has been told.
#[derive(Default)]
struct Told {
    /// Each accepted position, and the round that wrote it.
    accepted: BTreeMap<u64, u64>,
    began: u64,
    lowest: u64,
}

fn run_until_killed(store: &Path, round: u64, after: Duration, told: &mut Told) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(STORE, store)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut killer = Some(std::thread::spawn(move || {
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }));
    for line in lines {
        let line = line.unwrap();
        let mut words = line.split(' ').rev();
        let last = words.next().and_then(|word| word.parse::<u64>().ok());
        match (line.split(' ').next(), last) {
            (Some("accepted"), Some(last)) => {
                let first = words.next().unwrap().parse().unwrap();
                told.accepted.extend((first..=last).map(|seq| (seq, round)));
            }
            (Some("began"), Some(first)) => told.began = first,
            (Some("dropping"), Some(lowest)) => told.lowest = lowest,
            _ => {}
        }
    }
    killer.take().unwrap().join().unwrap();
}

#[test]
fn nothing_accepted_is_lost_to_kill_9() {
    if std::env::var(STORE).is_ok() {
        return;
    }
    let store = tempfile::tempdir().unwrap();
    let mut told = Told { lowest: 1, ..Told::default() };
    for round in 1..=ROUNDS {
        let mut random = [0];
        getrandom::fill(&mut random).unwrap();
        let after = Duration::from_millis(40 + u64::from(random[0]) * 2);
        run_until_killed(store.path(), round, after, &mut told);

        let Opened { log, last_stop, checkpoint, is_copy } = open(store.path());
        assert!(!is_copy);
        if !told.accepted.is_empty() {
            assert_ne!(last_stop, LastStop::Clean, "round {round}");
        }
        if told.began > 0 {
            assert!(checkpoint.unwrap().next >= Seq(told.began), "round {round}");
        }
        let reader = log.reader();
        let last_accepted = told.accepted.last_key_value().map_or(0, |(&seq, _)| seq);
        assert!(log.next_seq().0 > last_accepted, "round {round}: {} events were lost", last_accepted + 1 - log.next_seq().0);
        for seq in 1..log.next_seq().0 {
            match reader.page(Seq(seq)) {
                Err(ReadError::Gone(_)) => assert!(seq < told.lowest, "round {round}: event {seq} is gone"),
                found => {
                    let page = found.unwrap().unwrap();
                    // What was not accepted but is there was written whole by somebody, and counts from now on.
                    let Some(found @ Event::Audit { who, .. }) = page.get(Seq(seq)) else { panic!("round {round}: event {seq}") };
                    let by = *told.accepted.entry(seq).or_insert_with(|| who.parse().unwrap());
                    assert_eq!(*found, event(seq, by), "round {round}");
                }
            }
        }
        drop(reader);
        if round % 5 == 0 {
            // A clean stop in between. The next start has to show its checkpoint.
            let next = log.next_seq();
            log.close(b"clean").unwrap();
            let again = open(store.path());
            assert_eq!((again.last_stop, again.checkpoint.unwrap().next), (LastStop::Clean, next));
        }
    }
    assert!(told.accepted.len() as u64 > ROUNDS && told.began > 0 && told.lowest > 1, "the rounds were long enough to mean something");
}
