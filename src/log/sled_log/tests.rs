//! What only the log on disk promises: damage is refused untouched, and no kill needs an operator.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

use super::database::Database;
use super::identity::Found;
use super::scan::scan;
use super::*;
use crate::log::codec::{Limits, PageKey};
use crate::log::samples::report;
use crate::log::{LastStop, OpenError, ReadError};

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
        match Identity::read(self.path(), 1).unwrap() {
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

// Damage.

#[test]
fn a_page_that_is_gone_from_the_newest_generation_is_refused_by_name() {
    let sample = Sample::killed();
    let (first, tag) = (sample.firsts[2], sample.tag());
    let db = sample.folder(2).join("db");
    // Every copy of the page is hit.
    let bytes = fs::read(&db).unwrap();
    let target = scan(&sample.folder(2), tag).unwrap().events[&(Seq(first.0 + 10), 0)];
    let start = target.offset as usize;
    let page = &bytes[start..start + target.header.page_len()];
    for copy in memchr::memmem::find_iter(&bytes, page) {
        flip(&db, copy as u64 + 80);
    }
    let missing = format!("generation {}: events {} to ", open::folder_name(first), first.0 + 10);
    sample.is_refused(&missing);
}

#[test]
fn a_newest_file_that_was_cut_off_is_refused() {
    for clean in [false, true] {
        let sample = Sample::make(clean);
        let db = sample.folder(2).join("db");
        for len in [0, 4096, 40_000] {
            fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(len).unwrap();
            sample.is_refused(&open::folder_name(sample.firsts[2]));
        }
        fs::remove_file(&db).unwrap();
        sample.is_refused("`db`");
    }
}

#[test]
fn after_a_clean_stop_any_flipped_bit_is_refused() {
    let sample = Sample::closed();
    for file in ["db", "conf"] {
        let path = sample.folder(2).join(file);
        let len = fs::metadata(&path).unwrap().len();
        for step in 0..12 {
            let offset = step * (len / 12);
            flip(&path, offset);
            sample.is_refused(&format!("its file `{file}` has been changed"));
            flip(&path, offset);
        }
    }
    sample.opens();
}

#[test]
fn a_generation_that_is_missing_is_named() {
    for (generation, what) in [(0, "its folder is missing"), (1, "are missing: no generation begins with"), (2, "its folder is missing")] {
        let sample = Sample::killed();
        fs::remove_dir_all(sample.folder(generation)).unwrap();
        sample.is_refused(what);
    }
}

#[test]
fn a_sealed_generation_that_was_cut_off_is_refused() {
    let sample = Sample::killed();
    let db = sample.folder(0).join("db");
    let len = fs::metadata(&db).unwrap().len();
    fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(len - 1).unwrap();
    sample.is_refused("its file `db` has");
}

#[test]
fn a_flipped_bit_in_a_sealed_generation_is_found_when_it_is_read() {
    let sample = Sample::killed();
    let tag = sample.tag();
    let place = scan(&sample.folder(0), tag).unwrap().events[&(Seq(1), 0)];
    for copy in 0..place.header.page_len() as u64 {
        if copy % 97 == 0 {
            let bytes = fs::read(sample.folder(0).join("db")).unwrap();
            let page = bytes[place.offset as usize..place.offset as usize + place.header.page_len()].to_vec();
            let copies: Vec<u64> = memchr::memmem::find_iter(&bytes, &page).map(|at| at as u64 + copy).collect();
            copies.iter().for_each(|&at| flip(&sample.folder(0).join("db"), at));
            let opened = open(sample.path());
            let found = opened.log.reader().page(Seq(1));
            assert!(matches!(found, Err(ReadError::Damaged { seq: Seq(1), .. })), "{found:?}");
            drop(opened);
            copies.iter().for_each(|&at| flip(&sample.folder(0).join("db"), at));
        }
    }
    sample.opens();
}

#[test]
fn a_witness_that_is_garbage_or_missing_is_refused() {
    let sample = Sample::killed();
    let witness = sample.path().join("witness");
    fs::write(&witness, [0x5a; 8192]).unwrap();
    sample.is_refused("the file `witness`");
    fs::remove_file(&witness).unwrap();
    sample.is_refused("the file `witness`");
}

#[test]
fn an_identity_that_was_changed_or_is_missing_is_refused() {
    let sample = Sample::killed();
    let identity = sample.path().join("identity");
    flip(&identity, 40);
    sample.is_refused("the file `identity` is not what was written");
    fs::remove_file(&identity).unwrap();
    sample.is_refused("its file `identity` is missing");
}

#[test]
fn a_generation_that_the_witness_does_not_know_but_holds_events_is_refused() {
    let sample = Sample::killed();
    copy_folder(&sample.folder(2), &sample.path().join(open::folder_name(Seq(sample.last + 100))));
    sample.is_refused("the witness does not know it");
}

// Not ours to open.

#[test]
fn a_newer_store_is_refused_with_both_versions() {
    let sample = Sample::killed();
    let identity = sample.path().join("identity");
    let text = fs::read_to_string(&identity).unwrap().replace("format 1\n", "format 9\nsomething new\n");
    fs::write(&identity, text).unwrap();
    let before = content(sample.path());
    let error = SledLog::open(sample.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 9, known: 1, .. }), "{error}");
    assert!(before == content(sample.path()), "nothing is changed");
}

#[test]
fn a_folder_with_something_else_in_it_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letters.txt"), "dear").unwrap();
    let error = SledLog::open(folder.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    assert!(error.to_string().contains("letters.txt"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_store_in_use_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let _opened = open(folder.path());
    let error = SledLog::open(folder.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
}

#[test]
fn a_copied_folder_is_seen_until_it_is_adopted() {
    let sample = Sample::closed();
    for _ in 0..2 {
        let opened = sample.opens();
        assert!(opened.is_copy);
        opened.log.close(b"c").unwrap();
    }
    let mut opened = sample.opens();
    opened.log.adopt_copy().unwrap();
    drop(opened);
    assert!(!sample.opens().is_copy);
    // A folder that is moved, not copied, is still the same store.
    let parent = tempfile::tempdir_in(sample.path().parent().unwrap()).unwrap();
    let elsewhere = parent.path().join("elsewhere");
    fs::rename(sample.path(), &elsewhere).unwrap();
    assert!(!open(&elsewhere).is_copy);
}

// Kills, at every step.

#[test]
fn a_creation_that_was_killed_begins_anew() {
    let full = tempfile::tempdir().unwrap();
    drop(open(full.path()));
    let first = open::folder_name(Seq(1));
    for left in [&["lock"][..], &["lock", &first], &["lock", &first, "witness"], &["lock", &first, "witness", "identity.tmp"]] {
        let store = tempfile::tempdir().unwrap();
        for name in left {
            match *name {
                "identity.tmp" => fs::write(store.path().join(name), "tidings").unwrap(),
                name if name == first => copy_folder(&full.path().join(name), &store.path().join(name)),
                name => drop(fs::copy(full.path().join(name), store.path().join(name)).unwrap()),
            }
        }
        let mut opened = open(store.path());
        assert_eq!(opened.last_stop, LastStop::Fresh);
        assert_eq!(opened.log.append(&reports(1..=3), &next_send).unwrap(), Seq(3));
    }
}

#[test]
fn a_generation_that_was_being_made_is_made_again() {
    let sample = Sample::killed();
    let next = Seq(sample.last + 1);
    let left = sample.path().join(open::folder_name(next));
    // Nothing in it yet.
    fs::create_dir(&left).unwrap();
    drop(sample.opens());
    assert!(!left.exists());
    // An empty database, then half a checkpoint, then a whole one that the witness did not name yet.
    let tag = sample.tag();
    let pages = Encoder::new(tag, 9, Limits::for_segment(SMALL.segment_size))
        .unwrap()
        .checkpoint(Kind::OpeningCheckpoint, next, &[1; 9000])
        .unwrap();
    for written in [0, 2, pages.len()] {
        drop(Active::create(sample.path(), next, SMALL.segment_size, &SMALL, &pages[..written]).unwrap());
        let mut opened = sample.opens();
        assert!(!left.exists());
        opened.log.begin_generation(b"again").unwrap();
        assert!(left.exists());
        opened.log.begin_generation(b"again").unwrap();
        drop(opened);
        let opened = sample.opens();
        assert_eq!(opened.checkpoint.unwrap().bytes, b"again");
        drop(opened.log);
        // Back to before.
        return_to_before(&sample, &left);
    }
}

/// Makes the witness name the third generation again, and takes the fourth away.
fn return_to_before(sample: &Sample, left: &Path) {
    let (mut witness, mut testimony) = Witness::open(sample.path(), sample.tag()).unwrap().unwrap();
    testimony.generation = sample.firsts[2];
    witness.write(&testimony).unwrap();
    fs::remove_dir_all(left).unwrap();
}

#[test]
fn a_generation_that_was_not_sealed_yet_is_sealed_at_the_next_start() {
    let sample = Sample::killed();
    let before = content(&sample.folder(1));
    fs::remove_file(sample.folder(1).join("seal")).unwrap();
    fs::write(sample.folder(1).join("seal.tmp"), "half").unwrap();
    drop(sample.opens());
    assert!(before == content(&sample.folder(1)), "the same seal again");
    // Not sealed, and damaged.
    fs::remove_file(sample.folder(1).join("seal")).unwrap();
    fs::write(sample.folder(1).join("db"), []).unwrap();
    sample.is_refused(&format!("events {} to {} are not in it", sample.firsts[1], sample.firsts[2].0 - 1));
}

#[test]
fn what_a_killed_deletion_left_is_deleted() {
    let sample = Sample::killed();
    let kept = tempfile::tempdir().unwrap();
    copy_folder(&sample.folder(0), kept.path());
    let mut log = sample.opens().log;
    log.drop_oldest_generation().unwrap();
    drop(log);
    assert!(!sample.folder(0).exists());
    // The witness was written, and nothing else done; or the folder was moved and half deleted.
    copy_folder(kept.path(), &sample.folder(0));
    let trash = sample.path().join("trash-g00000000000000000001");
    fs::create_dir(&trash).unwrap();
    fs::write(trash.join("conf"), "half").unwrap();
    let opened = open(sample.path());
    assert_eq!(all(&*opened.log, sample.firsts[1].0), reports(sample.firsts[1].0..=sample.last));
    assert_eq!(opened.log.reader().page(Seq(1)), Err(ReadError::Gone(Seq(1))));
    assert!(!sample.folder(0).exists() && !trash.exists());
}

#[test]
fn a_seal_of_a_stop_that_was_not_finished_counts_for_nothing() {
    let sample = Sample::closed();
    // The witness is not clean yet: closing was killed right before it.
    let (mut witness, mut testimony) = Witness::open(sample.path(), sample.tag()).unwrap().unwrap();
    testimony.clean = false;
    witness.write(&testimony).unwrap();
    let opened = sample.opens();
    assert_eq!((opened.last_stop, opened.checkpoint.unwrap().bytes), (LastStop::Unclean, b"closed".to_vec()));
    drop(opened.log);
    assert!(!sample.folder(2).join("seal").exists());
}

#[test]
fn a_commit_of_which_a_kill_left_a_part_is_taken_out() {
    let sample = Sample::killed();
    let (tag, next) = (sample.tag(), sample.last + 1);
    let torn: Vec<Event> = (1..=20).map(|n| report(n + 5000)).collect();
    for written in [1, 2] {
        let run = Witness::open(sample.path(), tag).unwrap().unwrap().1.run;
        let mut encoder = Encoder::new(tag, run, Limits::for_segment(SMALL.segment_size)).unwrap();
        let pages = encoder.events(Seq(next), &torn, &next_send).unwrap();
        assert!(pages.len() > 2);
        let database = Database::open(&sample.folder(2), SMALL.segment_size, 1 << 20).unwrap();
        database.commit(&pages[..written], &File::open(sample.folder(2).join("db")).unwrap()).unwrap();
        drop(database);
        let opened = sample.opens();
        assert_eq!(opened.log.next_seq(), Seq(next));
        drop(opened);
    }
    // The positions are used again, and the stale pages in the file deceive nobody: not after a kill, not when sealed.
    let mut log = sample.opens().log;
    log.append(&reports(next..=next + 30), &next_send).unwrap();
    drop(log);
    let sample = Sample { last: next + 30, ..sample };
    let mut log = sample.opens().log;
    log.begin_generation(b"c").unwrap();
    drop(log);
    sample.opens();
}

#[test]
fn a_whole_commit_that_was_not_witnessed_stays() {
    let sample = Sample::killed();
    let (mut witness, mut testimony) = Witness::open(sample.path(), sample.tag()).unwrap().unwrap();
    testimony.last = Seq(testimony.last.0 - 10);
    witness.write(&testimony).unwrap();
    sample.opens();
}

#[test]
fn an_accepted_event_that_sled_does_not_show_is_never_passed_over() {
    let sample = Sample::killed();
    let tag = sample.tag();
    let database = Database::open(&sample.folder(2), SMALL.segment_size, 1 << 20).unwrap();
    let last_page = *scan(&sample.folder(2), tag).unwrap().events.keys().next_back().unwrap();
    let key = PageKey { first: last_page.0, kind: Kind::Events, run: 0, part: last_page.1 };
    database.remove(&[key.to_bytes()[..].into()], &File::open(sample.folder(2).join("db")).unwrap()).unwrap();
    drop(database);
    let error = SledLog::open(sample.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("were accepted"), "{error}");
}

// Sealed means still.

#[test]
fn reading_a_sealed_generation_changes_no_file() {
    let sample = Sample::killed();
    let before: Vec<_> = (0..2).map(|generation| content(&sample.folder(generation))).collect();
    sample.opens().log.close(b"c").unwrap();
    let after: Vec<_> = (0..2).map(|generation| content(&sample.folder(generation))).collect();
    assert!(before == after);
}

#[test]
fn no_page_ever_goes_to_a_blob_file() {
    let sample = Sample::killed();
    let mut log = sample.opens().log;
    let mut noise = vec![0; 200_000];
    getrandom::fill(&mut noise).unwrap();
    let first = log.next_seq().0;
    for n in 0..20 {
        let events: Vec<Event> = noise[n as usize * 1000..]
            .chunks(1900)
            .take(30)
            .zip(first..)
            .map(|(noise, n)| crate::log::samples::with_payload(n, noise.to_vec()))
            .collect();
        log.append(&events, &next_send).unwrap();
    }
    assert_eq!(fs::read_dir(sample.folder(2).join("blobs")).unwrap().count(), 0);
}
