//! What a store says of itself: `identity`, `witness`, and the seals of its generations.
//!
//! An input is the number of one of these files and what stands in it. The store is the fixture of the first format. It holds: the store is
//! refused with a code, and then no file of it has changed; or it opens, and each event that was accepted is there or is said to be damaged
//! (where the pages of a sealed generation stand is not read at start). `fsck` changes nothing, and is content only with a store that
//! opens and has everything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tidings::core::event::Event;
use tidings::core::types::Seq;
use tidings::log::sled_log::{Options, SledLog, fsck};
use tidings::log::{OpenError, Opened, ReadError};

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, assert_readable, kind_of, run};

const FILES: [&str; 4] = ["identity", "witness", "g00000000000000000001/seal", "g00000000000000000013/seal"];

const OPTIONS: Options = Options { segment_size: 512 << 10, generation_size: 96 << 10, sled_cache: 1 << 20, page_cache: 1 << 20 };

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/fixtures/v0001")
}

/// Every file below a folder, but for the lock.
fn files(folder: &Path, below: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), &path, found);
        } else if path != Path::new("lock") {
            found.insert(path, fs::read(entry.path()).unwrap());
        }
    }
}

fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    files(folder, Path::new(""), &mut found);
    found
}

/// Every event, in order; none where it is damaged.
fn events(opened: &Opened) -> Vec<Option<Event>> {
    let reader = opened.log.reader();
    let event = |seq: Seq| match reader.page(seq) {
        Ok(page) => page.expect("what was accepted is there").get(seq).cloned(),
        Err(ReadError::Damaged { .. }) => None,
        Err(error) => panic!("{error}"),
    };
    (Seq::FIRST.0..opened.log.next_seq().0).map(|seq| event(Seq(seq))).collect()
}

fn check(bytes: &[u8], original: &BTreeMap<PathBuf, Vec<u8>>, expected: &[Option<Event>]) -> Outcome {
    let Some((number, content)) = bytes.split_first() else { return Outcome::refused("empty") };
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    for (path, bytes) in original {
        fs::create_dir_all(store.join(path).parent().unwrap()).unwrap();
        fs::write(store.join(path), bytes).unwrap();
    }
    let name = FILES[usize::from(number % 4)];
    fs::write(store.join(name), content).unwrap();
    let before = everything(&store);
    // Scanning takes a buffer of a fixed size.
    let checked = bounded(content.len() + (1 << 20), 64, || fsck(&store, &()));
    assert!(everything(&store) == before, "fsck has changed the store");
    let is_content = checked.as_ref().is_ok_and(|report| report.findings.is_empty());
    match bounded(content.len() + (1 << 20), 64, || SledLog::open(&store, OPTIONS)) {
        Ok(opened) => {
            let found = events(&opened);
            let is_right =
                found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| found.is_none() || found == expected);
            assert!(is_right, "{name}: it opened with something else than what was accepted");
            assert!(!is_content || found == expected, "{name}: fsck is content, and not everything is there");
            Outcome::accepted(format!("{name} {is_content}"))
        }
        Err(error) => {
            assert_readable(&error.to_string());
            assert!(!is_content, "{name}: fsck is content, and opening says: {error}");
            if !matches!(error, OpenError::NotShown { .. }) {
                assert!(everything(&store) == before, "{name}: refused and changed: {error}");
            }
            let said = error.to_string().replace(&store.display().to_string(), "");
            Outcome::refused(format!("{name} {} {}", error.code(), kind_of(&said)))
        }
    }
}

#[test]
fn a_store_whose_own_files_are_damaged_is_refused_or_says_what_is_missing() {
    let original = everything(&fixture());
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in &original {
        fs::create_dir_all(folder.path().join(path).parent().unwrap()).unwrap();
        fs::write(folder.path().join(path), bytes).unwrap();
    }
    let expected = events(&SledLog::open(folder.path(), OPTIONS).unwrap());
    assert!(expected.len() > 15 && expected.iter().all(Option::is_some));
    let seeds = (0..4_u8).map(|number| [&[number], &original[Path::new(FILES[usize::from(number)])][..]].concat()).collect();
    run(
        "store",
        60,
        seeds,
        &Mutator { form: Form::Bytes, words: &["format 1", "format 2", "segment 65536", "TIDWITN", "TIDSEAL"] },
        |bytes| check(bytes, &original, &expected),
    );
}
