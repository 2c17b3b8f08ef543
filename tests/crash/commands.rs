//! Kills at the named points of commands, and at the creation of a store.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tidings::failpoint::Point;

use crate::points::CRASH_AT;
use crate::support::ledger::{Ledger, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

/// Runs a command; it dies at the point, if there is one.
fn tidings(arguments: &[&str], dies_at: Option<(Point, u64)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for variable in ["TIDINGS_CONFIG", "TIDINGS_URL", "TIDINGS_TOKEN", "TIDINGS_LOG"] {
        command.env_remove(variable);
    }
    if let Some((point, times)) = dies_at {
        command.env(CRASH_AT, format!("{}:{times}", point.name()));
    }
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    if let Some((point, _)) = dies_at {
        let told = format!("{CRASH_AT}: the process dies at {}", point.name());
        assert!(output.status.code().is_none() && error_of(&output).contains(&told), "{arguments:?}: {output:?}");
    }
    output
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Posts 300 reports of QoS 2 in 30 requests, each with a page of its own.
fn fill(service: &Tidings) -> Ledger {
    let mut ledger = Ledger::default();
    for batch in 0..30 {
        let reports: Vec<String> = (0..10).map(|number| report("success", &format!("p{number}"), batch * 10 + number)).collect();
        ledger.post_many(&service.client(), &reports);
    }
    ledger
}

#[test]
fn a_store_whose_creation_was_killed_is_created_by_the_next_start() {
    for point in [Point::StoreGeneration, Point::StoreWitness] {
        let mut service = Tidings::prepare(&(connection(1, "") + PIPELINES));
        service.environment = vec![(CRASH_AT, point.name().to_owned())];
        assert!(!service.try_run(), "{point:?} is not reached");
        assert_eq!(service.logged(&format!("the process dies at {}", point.name())).len(), 1);
        service.environment.clear();
        service.run();
        let ledger = fill(&service);
        service.kill();
        service.run();
        assert_eq!(service.total("pending"), ledger.accepted.len() as u64);
    }
}

#[test]
fn a_backup_or_restore_that_was_killed_is_none_and_the_next_one_is_whole() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    let config = connection(mosquitto.port, "") + SOON + PIPELINES;
    let mut service = Tidings::start(&config);
    let mut ledger = fill(&service);
    let folder = service.folder().to_owned();
    let dies_at = [(Point::BackupGeneration, 1), (Point::BackupGeneration, 2), (Point::BackupManifest, 1)];
    for (attempt, (point, times)) in dies_at.into_iter().enumerate() {
        let (target, url) = (folder.join(format!("backup-{attempt}")), format!("http://{}", service.address()));
        tidings(&["backup", text(&target), "--url", &url], Some((point, times)));
        let refused = tidings(&["restore", text(&target), "--store", text(&folder.join("nothing"))], None);
        assert!(refused.status.code() == Some(1) && error_of(&refused).contains("is no backup that was finished"), "{refused:?}");
        assert!(!folder.join("nothing").exists());
        // It goes on, whatever became of the one who asked it, and so does its next start.
        ledger.post(&service, 2, "between", 1_000 + attempt as u64);
        service.kill();
        service.run();
    }
    let (backup, url) = (folder.join("backup"), format!("http://{}", service.address()));
    let made = tidings(&["backup", text(&backup), "--url", &url], None);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    service.kill();
    let half = folder.join("half");
    tidings(&["restore", text(&backup), "--store", text(&half)], Some((Point::RestoreIdentity, 1)));
    let refused = tidings(&["fsck", "--store", text(&half)], None);
    assert_eq!(refused.status.code(), Some(1), "what was cut short is no store: {refused:?}");
    let restored = folder.join("restored");
    let done = tidings(&["restore", text(&backup), "--store", text(&restored)], None);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    fs::rename(service.store(), folder.join("original")).unwrap();
    fs::rename(&restored, service.store()).unwrap();
    mosquitto.run();
    service.run();
    service.wait_until_delivered();
    service.assert_balanced();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
}

/// Zeroes a part of the page that holds the `number`-th commit, wherever it stands.
fn damage(service: &Tidings, number: usize) {
    let folders = fs::read_dir(service.store()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let database = folders.max().unwrap().join("db");
    let bytes = fs::read(&database).unwrap();
    let starts: Vec<usize> = memchr::memmem::find_iter(&bytes, b"\xf1TIDPAG\x01").collect();
    let first = |at: usize| u64::from_le_bytes(bytes[at + 44..at + 52].try_into().unwrap());
    let mut pages: Vec<u64> = starts.iter().map(|at| first(*at)).collect();
    pages.sort_unstable();
    pages.dedup();
    let file = fs::OpenOptions::new().write(true).open(&database).unwrap();
    for at in starts.into_iter().filter(|at| first(*at) == pages[number]) {
        file.write_all_at(&[0; 64], at as u64 + 72).unwrap();
    }
}

/// Every file below a folder but its lock.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(content(&path)),
            false if path.file_name().unwrap() == "lock" => {}
            false => _ = found.insert(path.clone(), fs::read(&path).unwrap()),
        }
    }
    found
}

#[test]
fn a_repair_that_is_killed_leaves_the_damaged_store_or_the_repaired_one_and_nothing_else_for_good() {
    for point in [Point::RepairBegun, Point::RepairCleared, Point::RepairWritten, Point::RepairSwapped] {
        let mut service = Tidings::start(&(connection(1, "") + SOON + PIPELINES));
        let ledger = fill(&service);
        service.kill();
        damage(&service, 8);
        let store = service.store();
        let damaged = content(&store);
        if point == Point::RepairCleared {
            // There has to be something to clear away.
            tidings(&["fsck", "--repair", "--store", text(&store)], Some((Point::RepairWritten, 1)));
        }
        tidings(&["fsck", "--repair", "--store", text(&store)], Some((point, 1)));
        let is_in_place = point == Point::RepairSwapped;
        assert_eq!(content(&store) == damaged, !is_in_place, "{point:?}");
        let found = tidings(&["fsck", "--store", text(&store)], None);
        assert_eq!(found.status.code(), Some(i32::from(!is_in_place)), "{point:?}: {found:?}");
        let again = tidings(&["fsck", "--repair", "--store", text(&store)], None);
        assert_eq!(again.status.code(), Some(0), "{point:?}: {again:?}");
        let beside = fs::read_dir(service.folder()).unwrap().map(|entry| entry.unwrap().path());
        let beside: Vec<PathBuf> = beside.filter(|path| path.is_dir() && path != &store).collect();
        assert_eq!(beside.len(), 1, "{point:?}: the damaged store is kept, and nothing that is none: {beside:?}");
        service.run();
        service.assert_balanced();
        let (pending, discarded) = (service.total("pending"), service.total("discarded"));
        assert_eq!(pending + discarded, ledger.accepted.len() as u64, "{point:?}");
        assert!((1..=10).contains(&discarded), "{point:?}: what stood in the damaged page is given up, and no more: {discarded}");
    }
}
