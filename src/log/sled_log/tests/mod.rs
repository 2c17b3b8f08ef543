//! What only the log on disk promises: damage is refused untouched, no kill needs an operator, and what is not ours is left alone.

mod backup;
mod damage;
mod every_file;
mod fsck;
mod kills;
mod migrating;
mod salvage;
mod space;
mod story;
mod strangers;
mod zeros;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

use super::database::Database;
use super::identity::Found;
use super::scan::scan;
use super::*;
use crate::core::types::Millis;
use crate::log::codec::{Limits, PageKey};
use crate::log::samples::{report, with_payload};
use crate::log::{AnyPage, LastStop, OpenError, ReadError};
use crate::migrations;

const SMALL: Options = Options { segment_size: 256 << 10, generation_size: 24 << 10, sled_cache: 1 << 20, page_cache: 0 };

fn next_send(_: &LaneKey) -> SendNo {
    SendNo(0)
}

fn reports(range: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    range.map(report).collect()
}

fn open(store: &Path) -> Opened {
    SledLog::open(store, SMALL).unwrap_or_else(|error| panic!("{error}"))
}

fn all(log: &dyn EventLog, first: u64) -> Vec<Event> {
    let reader = log.reader();
    (first..log.next_seq().0).map(|seq| reader.page(Seq(seq)).unwrap().unwrap().get(Seq(seq)).unwrap().clone()).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(|_| ()).unwrap()
        }
    }
}

/// Every file below `folder` but the lock.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.insert(path.clone(), Vec::new());
            files.extend(content(&path));
        } else if !path.ends_with("lock") {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

/// A store with three generations: two sealed ones, and one that is written. `last` is its last event.
struct Sample {
    store: tempfile::TempDir,
    firsts: Vec<Seq>,
    last: u64,
}

impl Sample {
    /// As a kill leaves it: what the files hold while the log is open.
    fn killed() -> Sample {
        Self::make(false)
    }

    /// As a clean stop leaves it.
    fn closed() -> Sample {
        Self::make(true)
    }

    fn make(clean: bool) -> Sample {
        let live = tempfile::tempdir().unwrap();
        let mut log = open(live.path()).log;
        for _ in 0..2 {
            while !log.is_generation_full() {
                let next = log.next_seq().0;
                log.append(&reports(next..=next + 9), &next_send).unwrap();
            }
            log.begin_generation(&[7; 5000]).unwrap();
        }
        for _ in 0..5 {
            let next = log.next_seq().0;
            log.append(&reports(next..=next + 9), &next_send).unwrap();
        }
        let (last, firsts) = (log.next_seq().0 - 1, log.generations().iter().map(|generation| generation.first).collect());
        let store = tempfile::tempdir().unwrap();
        if clean {
            log.close(b"closed").unwrap();
            copy_folder(live.path(), store.path());
        } else {
            // Sealing goes on beside appending.
            while sealed(live.path()) < 2 {
                std::thread::yield_now();
            }
            copy_folder(live.path(), store.path());
        }
        Sample { store, firsts, last }
    }

    fn path(&self) -> &Path {
        self.store.path()
    }

    fn folder(&self, generation: usize) -> PathBuf {
        self.path().join(open::folder_name(self.firsts[generation]))
    }

    /// Asserts that the store is refused as damaged, with `what` in the message, and that not a byte has changed.
    fn is_refused(&self, what: &str) {
        let before = content(self.path());
        let error = SledLog::open(self.path(), SMALL).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(before == content(self.path()), "nothing is changed");
    }

    /// Asserts that the store opens and holds everything.
    fn opens(&self) -> Opened {
        let opened = open(self.path());
        assert_eq!(all(&*opened.log, 1), reports(1..=self.last));
        opened
    }

    fn tag(&self) -> u64 {
        match Identity::read(self.path(), migrations::CURRENT).unwrap() {
            Found::Store { identity, .. } => identity.tag,
            other => panic!("{other:?}"),
        }
    }
}

fn sealed(store: &Path) -> usize {
    let folders = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|folder| folder.join(seal::SEAL).exists()).count()
}

fn flip(file: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x04], offset).unwrap();
}

#[test]
fn reading_a_sealed_generation_changes_no_file() {
    let sample = Sample::killed();
    let before: Vec<_> = (0..2).map(|generation| content(&sample.folder(generation))).collect();
    sample.opens().log.close(b"c").unwrap();
    let after: Vec<_> = (0..2).map(|generation| content(&sample.folder(generation))).collect();
    assert!(before == after);
}

#[test]
fn what_is_not_durable_is_not_read() {
    let store = tempfile::tempdir().unwrap();
    let database = Database::open(store.path(), SMALL.segment_size, 1 << 20).unwrap();
    let pages = Encoder::new(7, 1, Limits::for_segment(SMALL.segment_size)).unwrap().events(Seq(1), &reports(1..=3), &next_send).unwrap();
    database.commit(&pages, &open_database_file(store.path()).unwrap()).unwrap();
    // sled shows them already, and the commit has not returned.
    let generation = Handle::new(Seq(1), store.path().to_owned(), State::Active(database), None);
    let shared = Shared::new(7, Seq(0), vec![generation], 0);
    assert!(shared.page(Seq(1)).unwrap().is_none() && shared.any_page(Seq(1)).unwrap().is_none());
    shared.publish(Seq(3), std::iter::empty());
    assert!(shared.page(Seq(1)).unwrap().is_some() && shared.any_page(Seq(1)).unwrap().is_some());
}

#[test]
fn lanes_that_come_for_a_page_together_get_the_one_that_the_first_has_read() {
    const PAGES: u64 = 100;
    let store = tempfile::tempdir().unwrap();
    let database = Database::open(store.path(), SMALL.segment_size, 1 << 20).unwrap();
    let mut encoder = Encoder::new(7, 1, Limits::for_segment(SMALL.segment_size)).unwrap();
    for n in 1..=PAGES {
        let pages = encoder.events(Seq(n), &[report(n)], &next_send).unwrap();
        database.commit(&pages, &open_database_file(store.path()).unwrap()).unwrap();
    }
    let generation = Handle::new(Seq(1), store.path().to_owned(), State::Active(database), None);
    let shared = Shared::new(7, Seq(PAGES), vec![generation], 8 << 20);
    let together = std::sync::Barrier::new(8);
    let come = || {
        let come_for = |seq| {
            together.wait();
            match shared.any_page(Seq(seq)) {
                Ok(Some(AnyPage::Raw(page))) => page,
                other => panic!("{other:?}"),
            }
        };
        (1..=PAGES).map(come_for).collect::<Vec<_>>()
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..8).map(|_| scope.spawn(come)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    let are_same = |pages: &Vec<_>| pages.iter().zip(&found[0]).all(|(page, first)| Arc::ptr_eq(page, first));
    assert!(found.iter().all(are_same), "a page was read more than once");
    // Somebody who looks for something in it gets it decoded, and so do lanes from then on.
    assert_eq!(shared.page(Seq(1)).unwrap().unwrap().get(Seq(1)), Some(&report(1)));
    assert!(matches!(shared.any_page(Seq(1)), Ok(Some(AnyPage::Decoded(_)))));
    // What can't be read holds nobody up.
    assert!(matches!(shared.any_page(Seq(0)), Err(ReadError::Gone(_))));
    assert!(matches!(shared.any_page(Seq(0)), Err(ReadError::Gone(_))));
}

#[test]
fn a_failure_is_final_also_when_its_cause_is_gone() {
    let sample = Sample::killed();
    let mut log = sample.opens().log;
    let event = report(log.next_seq().0);
    log.append(std::slice::from_ref(&event), &next_send).unwrap();
    let in_the_way = sample.store.path().join(open::folder_name(log.next_seq()));
    fs::write(&in_the_way, "not a folder").unwrap();
    assert!(matches!(log.begin_generation(b"c"), Err(AppendError::Io(_))));
    fs::remove_file(&in_the_way).unwrap();
    assert!(matches!(log.append(std::slice::from_ref(&event), &next_send), Err(AppendError::Io(_))));
    assert!(matches!(log.begin_generation(b"c"), Err(AppendError::Io(_))));
}

#[test]
fn a_panic_in_the_background_is_a_failure_of_the_store() {
    let work = |name: &str, work: fn() -> Result<(), String>| std::thread::Builder::new().name(name.into()).spawn(work).unwrap();
    assert_eq!(outcome_of(work("seal", || Ok(()))), Ok(()));
    assert_eq!(outcome_of(work("seal", || Err("sealing".into()))), Err("sealing".into()));
    let what = outcome_of(work("seal", || panic!("the disk does not sync"))).unwrap_err();
    assert!(what.starts_with("the thread `seal` of the store panicked"), "{what}");
}

#[test]
fn opening_a_sealed_generation_with_sled_would_write_to_it() {
    let sample = Sample::killed();
    let before = content(&sample.folder(0));
    drop(Database::open(&sample.folder(0), SMALL.segment_size, 1 << 20).unwrap());
    assert!(before != content(&sample.folder(0)), "if this ever stays as it is, sealed generations could be read through sled");
}

#[test]
fn no_page_ever_goes_to_a_blob_file() {
    let sample = Sample::killed();
    let mut log = sample.opens().log;
    let mut noise = vec![0; 200_000];
    getrandom::fill(&mut noise).unwrap();
    let first = log.next_seq().0;
    for n in 0..20 {
        let events: Vec<Event> =
            noise[n as usize * 1000..].chunks(1900).take(30).zip(first..).map(|(noise, n)| with_payload(n, noise.to_vec())).collect();
        log.append(&events, &next_send).unwrap();
    }
    assert_eq!(fs::read_dir(sample.folder(2).join("blobs")).unwrap().count(), 0);
}
