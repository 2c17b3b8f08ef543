//! Stores that can't be opened: refused with what and where, and nothing on disk is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::ledger::{Ledger, report};
use crate::support::scripted::ScriptedBroker;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};

/// Every file of a store but its lock, with its content.
fn content(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(content(&path)),
            false if path.file_name().unwrap() == "lock" => {}
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

/// A store that was killed with a backlog in it, and the broker that is to get it.
fn killed() -> (Tidings, Ledger, ScriptedBroker) {
    let broker = ScriptedBroker::start(|_| vec![]);
    let mut tidings = Tidings::start(&(connection(broker.port, "protocol = \"5\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    for batch in 0..10 {
        let reports: Vec<String> = (0..20).map(|number| report("success", "one", batch * 20 + number)).collect();
        ledger.post_many(&tidings.client(), &reports);
    }
    tidings.kill();
    (tidings, ledger, broker)
}

fn newest_database(tidings: &Tidings) -> PathBuf {
    let folders = fs::read_dir(tidings.store()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.max().unwrap().join("db")
}

fn is_refused_untouched(tidings: &Tidings, words: &[&str]) {
    let before = content(&tidings.store());
    let (code, log) = tidings.refused();
    assert_eq!(code, Some(1), "{log}");
    for word in words {
        assert!(log.contains(word), "no {word:?} in: {log}");
    }
    assert!(log.contains(&tidings.store().display().to_string()), "which store: {log}");
    assert!(content(&tidings.store()) == before, "nothing is changed on disk");
}

#[test]
fn a_store_that_was_killed_and_then_cut_off_is_refused_untouched_and_opens_when_it_is_whole_again() {
    let (mut tidings, ledger, broker) = killed();
    let database = newest_database(&tidings);
    let whole = fs::read(&database).unwrap();
    // What stands behind that are zeros, written ahead.
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for length in [0, written / 100, 4_096] {
        fs::write(&database, &whole[..length]).unwrap();
        is_refused_untouched(&tidings, &["is damaged", "generation g", "Nothing was opened or changed"]);
    }
    fs::write(&database, &whole).unwrap();
    broker.behave();
    tidings.run();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    tidings.assert_balanced();
}

#[test]
fn a_byte_that_was_flipped_in_a_page_is_refused_untouched_with_the_events_that_are_missing() {
    /// What every page begins with, and where its kind and its first position stand: see `log::codec`.
    const MAGIC: &[u8] = b"\xf1TIDPAG\x01";
    const EVENTS: u8 = 2;
    let (tidings, _ledger, _broker) = killed();
    let database = newest_database(&tidings);
    let mut bytes = fs::read(&database).unwrap();
    let pages: Vec<usize> = memchr::memmem::find_iter(&bytes, MAGIC).filter(|at| bytes[at + 18] == EVENTS).collect();
    let first_of = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at + 44..at + 52].try_into().unwrap());
    let firsts: std::collections::BTreeSet<u64> = pages.iter().map(|at| first_of(&bytes, *at)).collect();
    let target = *firsts.iter().nth(firsts.len() / 2).unwrap();
    // sled may have written it more than once.
    for at in pages.into_iter().filter(|at| first_of(&bytes, *at) == target).collect::<Vec<_>>() {
        bytes[at + 90] ^= 0x10;
    }
    fs::write(&database, &bytes).unwrap();
    is_refused_untouched(&tidings, &["is damaged", "generation g", &format!("events {target} to ")]);
}

#[test]
fn a_store_of_a_newer_format_is_refused_untouched_with_both_versions() {
    let (tidings, _ledger, _broker) = killed();
    let identity = tidings.store().join("identity");
    let text = fs::read_to_string(&identity).unwrap();
    assert!(text.contains("format 2\n"), "{text}");
    fs::write(&identity, text.replace("format 2\n", "format 7\n")).unwrap();
    is_refused_untouched(&tidings, &["has format 7", "knows formats up to 2"]);
}
