//! Checking and repairing what services wrote.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::ledger::{Ledger, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;
use crate::{text, tidings};

/// A store with a backlog that no broker has seen, killed.
fn killed(port: u16) -> (Tidings, Ledger) {
    let mut service = Tidings::start(&(connection(port, "") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    for batch in 0..30 {
        let reports: Vec<String> = (0..10).map(|number| report("success", &format!("p{number}"), batch * 10 + number)).collect();
        ledger.post_many(&service.client(), &reports);
    }
    service.kill();
    (service, ledger)
}

fn newest_database(service: &Tidings) -> PathBuf {
    let folders = fs::read_dir(service.store()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.max().unwrap().join("db")
}

/// Zeroes the page that holds this report, wherever it stands, and says how many there were.
fn lose_the_page_of(service: &Tidings, number: usize) -> usize {
    let database = newest_database(service);
    let bytes = fs::read(&database).unwrap();
    let magic = b"\xf1TIDPAG\x01";
    let starts: Vec<usize> = memchr::memmem::find_iter(&bytes, magic).collect();
    let first = |at: usize| u64::from_le_bytes(bytes[at + 44..at + 52].try_into().unwrap());
    let (mut pages, mut hit) = (starts.iter().map(|at| first(*at)).collect::<Vec<_>>(), 0);
    pages.sort_unstable();
    pages.dedup();
    let wanted = pages[number];
    let file = fs::OpenOptions::new().write(true).open(&database).unwrap();
    for at in starts.into_iter().filter(|at| first(*at) == wanted) {
        file.write_all_at(&[0; 64], at as u64 + 72).unwrap();
        hit += 1;
    }
    hit
}

#[test]
fn a_running_service_is_left_alone_and_a_whole_store_is_fine() {
    let mut service = Tidings::start(&(connection(1, "") + PIPELINES));
    Ledger::default().post(&service, 2, "one", 1);
    let config = service.config_file();
    for arguments in [&["fsck", "--config", text(&config)][..], &["fsck", "--repair", "--config", text(&config)]] {
        let refused = tidings(arguments);
        assert_eq!(refused.code, Some(1));
        assert!(refused.err.contains("stop the service first") && refused.err.contains("`tidings backup`"), "{refused:?}");
    }
    assert_eq!(service.stop(), Some(0));
    let fine = tidings(&["fsck", "--config", text(&config)]);
    assert!(fine.code == Some(0) && fine.out.contains("no damage found") && fine.out.contains("pending: 1"), "{fine:?}");
    let fine = tidings(&["fsck", "--repair", "--store", text(&service.store())]);
    assert!(fine.code == Some(0) && fine.out.contains("nothing to repair"), "{fine:?}");
    let planned = tidings(&["migrate", "--dry-run", "--config", text(&config)]);
    assert!(planned.code == Some(0) && planned.out.contains("nothing to do"), "{planned:?}");
    let nowhere = tidings(&["fsck", "--config", "/nowhere/tidings.toml"]);
    assert_eq!(nowhere.code, Some(2), "{nowhere:?}");
    let nothing = tidings(&["fsck", "--store", text(service.folder())]);
    assert!(nothing.code == Some(1) && nothing.err.contains("is not a Tidings store"), "{nothing:?}");
}

#[test]
fn a_damaged_store_is_refused_and_once_repaired_delivers_all_but_what_stood_in_the_damaged_page() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    let (mut service, mut ledger) = killed(mosquitto.port);
    assert!(lose_the_page_of(&service, 8) > 0);
    let (code, log) = service.refused();
    assert!(code == Some(1) && log.contains("is damaged"), "{log}");

    let config = service.config_file();
    let found = tidings(&["fsck", "--config", text(&config), "--json"]);
    assert_eq!(found.code, Some(1), "{found:?}");
    let found = found.json();
    let events: Vec<u64> = found["findings"][0]["events"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect();
    let lost: Vec<u64> = ledger.accepted.iter().map(|known| known.id).filter(|id| (events[0]..=events[1]).contains(id)).collect();
    assert_eq!(lost.len(), 10, "one batch stood in the page: {found:#}");
    let unreadable: u64 = found["unreadable"].as_array().unwrap().iter().map(|lane| lane["count"].as_u64().unwrap()).sum();
    assert_eq!(unreadable, 10, "{found:#}");

    let repaired = tidings(&["fsck", "--repair", "--config", text(&config), "--json"]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    let repaired = repaired.json();
    assert_eq!(repaired["repaired"]["lost_events"], serde_json::json!([events]));
    let damaged = PathBuf::from(repaired["repaired"]["damaged_store"].as_str().unwrap());
    assert!(damaged.join("identity").exists() && damaged.file_name().unwrap().to_str().unwrap().starts_with("store.damaged-"));
    let quarantine = fs::read_to_string(repaired["repaired"]["quarantine"].as_str().unwrap()).unwrap();
    assert!(quarantine.lines().count() >= 1 && quarantine.contains("\"bytes\":\"f1544944504147"), "{quarantine}");

    mosquitto.run();
    service.run();
    service.wait_until_delivered();
    service.assert_balanced();
    assert_eq!((service.total("discarded"), service.total("acknowledged")), (10, 290));
    ledger.accepted.retain(|known| !lost.contains(&known.id));
    wait_until("the others arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
}

/// Every file of a folder but its lock, by its name below it.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.file_name().unwrap() != "lock" {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn a_repair_that_is_killed_at_any_moment_leaves_the_old_store_or_the_new_one_in_place() {
    let (mut service, ledger) = killed(1);
    assert!(lose_the_page_of(&service, 8) > 0);
    let store = service.store();
    let damaged = content(&store);
    let (mut cut_short, mut wait) = (0, Duration::from_millis(1));
    let mut repair = Command::new(env!("CARGO_BIN_EXE_tidings"));
    repair.args(["fsck", "--repair", "--store", text(&store)]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    while content(&store) == damaged {
        assert!(wait < Duration::from_secs(60), "it is never done");
        let mut child = repair.spawn().unwrap();
        std::thread::sleep(wait);
        wait = wait * 5 / 4 + Duration::from_millis(1);
        // One that is done has ended by itself.
        child.kill().unwrap();
        let is_done = child.wait().unwrap().success();
        let found = tidings(&["fsck", "--store", text(&store)]);
        match content(&store) == damaged {
            true => assert_eq!(found.code, Some(1), "{found:?}"),
            false => assert_eq!(found.code, Some(0), "{found:?}"),
        }
        cut_short += usize::from(!is_done);
    }
    assert!(cut_short > 3, "only {cut_short} were cut short");
    let aside: Vec<PathBuf> = fs::read_dir(service.folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && path != &store && !path.join("unfinished-repair").exists())
        .collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(content(&aside[0]) == damaged, "the damaged store is kept as it was");
    service.run();
    assert_eq!(service.total("pending") + service.total("discarded"), ledger.accepted.len() as u64);
}

/// A kind of file, where the store has it, and what is done to it.
type Damage = (&'static str, fn(&Tidings) -> PathBuf, fn(&Path));

#[test]
fn a_store_with_any_file_damaged_says_which_is_repaired_and_goes_on() {
    let damages: [Damage; 4] = [
        ("conf", |service| newest_database(service).with_file_name("conf"), |file| fs::write(file, [0x5a; 500]).unwrap()),
        ("witness", |service| service.store().join("witness"), |file| fs::write(file, [0; 8_192]).unwrap()),
        ("identity", |service| service.store().join("identity"), |file| fs::remove_file(file).unwrap()),
        ("db", newest_database, |file| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(9_000).unwrap()),
    ];
    for (name, file, damage) in damages {
        let (mut service, ledger) = killed(1);
        damage(&file(&service));
        let (code, log) = service.refused();
        assert!(code == Some(1) && !log.contains("panicked"), "{name}: {log}");
        assert!(log.contains(name) || log.contains("g00000000000000000001"), "{name}: it does not say where: {log}");
        let store = service.store();
        let found = tidings(&["fsck", "--store", text(&store)]);
        assert!(found.code == Some(1) && !found.err.contains("panicked"), "{name}: {found:?}");
        let repaired = tidings(&["fsck", "--repair", "--store", text(&store), "--json"]);
        assert_eq!(repaired.code, Some(0), "{name}: {repaired:?}");
        let lost = repaired.json()["repaired"]["lost_events"].clone();
        service.run();
        service.assert_balanced();
        let (pending, accepted) = (service.total("pending"), ledger.accepted.len() as u64);
        match name {
            "db" => {
                // Its end is lost: what it held is counted by its events, and is not in the books.
                let events: u64 = lost.as_array().unwrap().iter().map(|of| of[1].as_u64().unwrap() - of[0].as_u64().unwrap() + 1).sum();
                assert!(pending < accepted && pending + events >= accepted, "{pending} of {accepted} are left, {events} events are lost");
            }
            _ => assert_eq!((pending, lost), (accepted, serde_json::json!([])), "{name} holds no report"),
        }
    }
}
