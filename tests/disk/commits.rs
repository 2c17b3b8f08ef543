//! A disk that is full all at once, in the middle of a commit: the database itself meets the error.
//!
//! Before each commit the service has made sure of its room, so nobody who only fills the disk comes between. Here the service is frozen at a
//! random moment, what it has allocated is taken away, and the disk filled to the last byte; then it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use super::*;

/// Ends of the service in the middle of a commit that are to be seen, and how often they are tried for.
const ENDS: u32 = 3;
const TRIES: u32 = 200;

/// Posts batches until it is told to stop, each until it is accepted.
fn produce(producer: u64, client: &RwLock<Client>, ledger: &Mutex<Ledger>, is_over: &AtomicBool, accepted: &AtomicU64) {
    for batch in 0.. {
        let first = (producer << 40) + batch * 64;
        let (body, began) = (reports(first..first + 64), Instant::now());
        loop {
            let key = format!("{producer}-{batch}");
            let reply = client.read().unwrap().clone().post(body.join("\n").as_bytes(), "application/x-ndjson", Some(&key));
            if let Some(reply) = reply.filter(|reply| reply.status == 202) {
                let answer = reply.json();
                let mut ledger = ledger.lock().unwrap();
                for (report, answer) in body.iter().zip(answer["reports"].as_array().unwrap()) {
                    ledger.enter(report.as_bytes(), &answer["deliveries"]);
                }
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

fn filled_in_the_middle_of_commits(features: &[&str]) {
    let mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let mut tidings = Tidings::prepare(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let Some(disk) = SmallDisk::mount_with(&tidings.store(), DISK_MIB, features) else { return };
    tidings.run();
    let (client, ledger) = (RwLock::new(tidings.client()), Mutex::new(Ledger::default()));
    let (is_over, accepted) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut chance = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    println!("seed {chance}");
    let (mut ends, mut refusals, mut tries) = (0, 0, 0);
    std::thread::scope(|scope| {
        let _stop = StopAtDrop(&is_over);
        for producer in 0..2 {
            let (client, ledger, is_over, accepted) = (&client, &ledger, &is_over, &accepted);
            scope.spawn(move || produce(producer, client, ledger, is_over, accepted));
        }
        while ends < ENDS {
            tries += 1;
            assert!(tries <= TRIES, "{ends} of {ENDS} commits have met a full disk in {TRIES} tries");
            let before = accepted.load(Ordering::Relaxed);
            wait_within(LONG, "reports are accepted", || accepted.load(Ordering::Relaxed) > before || tidings.has_ended());
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            // It may have met the disk of the last round only now.
            if !tidings.has_ended() {
                std::thread::sleep(Duration::from_micros(chance % 30_000));
                tidings.freeze();
                disk.truncate_databases(&tidings.store());
                disk.fill();
                tidings.thaw();
                // It has noticed: it refuses, or it has ended. A few bytes may still fit without either.
                let seen = Instant::now();
                while !tidings.has_ended() && seen.elapsed() < Duration::from_millis(400) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            if tidings.has_ended() {
                assert_eq!(tidings.end(), Some(1), "it says that it has failed");
                ends += 1;
                let said = tidings.logged("writing to the store failed");
                assert!(!said.is_empty() && said.iter().any(|line| line.to_string().contains("No space left")), "{said:#?}");
                // On the disk as it is, and as systemd does: again, until it goes.
                disk.fill();
                while !tidings.try_run() {
                    refusals += 1;
                    assert!(refusals <= ends, "it does not start on a disk with space");
                    assert!(!tidings.logged("free some space and start again").is_empty(), "a start that is refused says what to do");
                    disk.free();
                }
                *client.write().unwrap() = tidings.client();
            }
            disk.free();
        }
    });
    println!("{} batches accepted, {ends} ends in {tries} tries, {refusals} starts refused", accepted.load(Ordering::Relaxed));
    let ledger = ledger.into_inner().unwrap();
    tidings.wait_until_delivered_within(LONG);
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    tidings.assert_balanced();
    assert_eq!(tidings.total("created"), ledger.accepted.len() as u64, "what was not accepted is not there");
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_commit_ends_the_service_which_starts_again_and_has_lost_nothing() {
    filled_in_the_middle_of_commits(&[]);
}

/// As on NFS before 4.2: nothing can be allocated ahead, and the ballast is written.
#[test]
fn where_nothing_can_be_allocated_ahead_a_disk_that_is_full_in_the_middle_of_a_commit_costs_nothing_either() {
    filled_in_the_middle_of_commits(&["-O", "^extents,^64bit"]);
}
