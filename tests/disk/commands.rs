//! A disk that is full in the middle of a backup, a restore or a repair: what was there before is as it was, and what was begun is seen to be
//! nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::small::SmallDisk;
use super::{LONG, reports};
use crate::support::ledger::Ledger;
use crate::support::tidings::{PIPELINES, Tidings, connection};
use crate::support::{signal, wait_for_end, wait_within};

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for variable in ["TIDINGS_CONFIG", "TIDINGS_URL", "TIDINGS_TOKEN", "TIDINGS_LOG"] {
        command.env_remove(variable);
    }
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the binary to its end: its exit code, and all it said.
fn tidings(words: &[&str]) -> (Option<i32>, String) {
    said(&command(words).output().unwrap())
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A stopped service with thousands of reports that wait.
fn stopped(count: u64) -> Tidings {
    // Nobody listens there.
    let mut service = Tidings::start(&(connection(1, "") + PIPELINES));
    Ledger::default().post_many(&service.client(), &reports(0..count));
    assert_eq!(service.stop(), Some(0));
    service
}

/// Every file below a folder but the lock.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
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

/// Starts a command, freezes it once it has begun to write, fills the disk, and lets it go on.
fn on_a_disk_that_fills(disk: &SmallDisk, words: &[&str], has_begun: impl Fn() -> bool) -> (Option<i32>, String) {
    let mut child: Child = command(words).spawn().unwrap();
    wait_within(LONG, "it writes", || has_begun() || child.try_wait().unwrap().is_some());
    if child.try_wait().unwrap().is_some() {
        panic!("it is done already: {:?}", said(&child.wait_with_output().unwrap()));
    }
    signal(&child, "STOP");
    disk.fill();
    signal(&child, "CONT");
    wait_for_end(&mut child, "it ends");
    said(&child.wait_with_output().unwrap())
}

/// A copy to `target`, on a disk that is too small for it, then on one that fills meanwhile, then on one that is large enough.
fn copied_to(disk: &SmallDisk, target: &Path, copy: &[&str], what_is_left_is_none: impl Fn()) {
    disk.fill_but(1 << 20);
    let (code, message) = tidings(copy);
    assert!(code == Some(1) && message.contains("nothing was written"), "{message}");
    disk.free();
    let has_generation = || fs::read_dir(target).is_ok_and(|mut entries| entries.any(|entry| entry.unwrap().path().join("db").exists()));
    let (code, message) = on_a_disk_that_fills(disk, copy, has_generation);
    assert!(code == Some(1) && message.contains("No space left on device"), "{message}");
    assert!(message.contains("what was written so far is no backup and no store, and can be deleted"), "{message}");
    what_is_left_is_none();
    fs::remove_dir_all(target).unwrap();
    disk.free();
    let (code, message) = tidings(copy);
    assert_eq!(code, Some(0), "{message}");
}

#[test]
fn a_backup_or_a_restore_that_meets_a_full_disk_leaves_nothing_that_passes_for_one() {
    let service = stopped(3_000);
    let mount = service.folder().join("disk");
    let Some(disk) = SmallDisk::mount(&mount, 48) else { return };
    let (store, backup, restored) = (service.store(), mount.join("backup"), mount.join("restored"));
    let before = content(&store);

    let nothing = tidings(&["backup", text(&backup), "--store", text(&store), "--url", "http://127.0.0.1:1"]);
    assert_eq!(nothing.0, Some(0), "what it takes fits: {}", nothing.1);
    fs::remove_dir_all(&backup).unwrap();
    copied_to(&disk, &backup, &["backup", text(&backup), "--store", text(&store), "--url", "http://127.0.0.1:1"], || {
        let (code, message) = tidings(&["restore", text(&backup), "--store", text(&service.folder().join("never"))]);
        assert!(code == Some(1) && message.contains("is no backup that was finished"), "{message}");
        assert!(!service.folder().join("never").exists(), "nothing is restored");
    });
    assert!(before == content(&store), "the store was only read");

    let elsewhere = service.folder().join("backup");
    let (code, message) = tidings(&["backup", text(&elsewhere), "--store", text(&store), "--url", "http://127.0.0.1:1"]);
    assert_eq!(code, Some(0), "{message}");
    fs::remove_dir_all(&backup).unwrap();
    copied_to(&disk, &restored, &["restore", text(&elsewhere), "--store", text(&restored)], || {
        let (code, message) = tidings(&["fsck", "--store", text(&restored)]);
        assert!(code == Some(1) && !message.contains("no damage found"), "{message}");
        let (code, message) = tidings(&["restore", text(&elsewhere), "--store", text(&restored)]);
        assert!(code == Some(1) && message.contains("what a restore leaves that was cut short is no store"), "{message}");
    });
    let (code, message) = tidings(&["fsck", "--store", text(&restored)]);
    assert!(code == Some(0) && message.contains("pending: 3000"), "{message}");
}

/// Zeroes a piece in the middle of the newest database.
fn damage(store: &Path) {
    let newest = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).max().unwrap();
    let file = fs::File::options().write(true).open(newest.join("db")).unwrap();
    file.write_all_at(&[0; 20_000], file.metadata().unwrap().len() / 4).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_repair_that_meets_a_full_disk_leaves_the_damaged_store_as_it_was_and_nothing_beside_it() {
    let service = stopped(2_000);
    let mount = service.folder().join("disk");
    let Some(disk) = SmallDisk::mount(&mount, 192) else { return };
    let beside = mount.join("var");
    fs::create_dir(&beside).unwrap();
    let store = beside.join("store");
    copy_folder(&service.store(), &store);
    damage(&store);
    let damaged = content(&store);
    let untouched = |what: &str| {
        assert!(damaged == content(&store), "{what}: the store is as it was");
        let names: Vec<_> = fs::read_dir(&beside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["store"], "{what}");
    };

    disk.fill();
    let (code, message) = tidings(&["fsck", "--repair", "--store", text(&store)]);
    assert!(code == Some(1) && message.contains("bytes"), "{message}");
    untouched(&message);
    disk.free();
    let (code, message) = on_a_disk_that_fills(&disk, &["fsck", "--repair", "--store", text(&store)], || {
        let names = fs::read_dir(&beside).unwrap().map(|entry| entry.unwrap().file_name());
        names.into_iter().any(|name| name.to_string_lossy().starts_with("store.damaged-"))
    });
    assert!(code == Some(1) && message.contains("No space left on device"), "{code:?} {message}");
    untouched(&message);
    disk.free();
    let (code, message) = tidings(&["fsck", "--repair", "--store", text(&store)]);
    assert_eq!(code, Some(0), "{message}");
    let (code, message) = tidings(&["fsck", "--store", text(&store)]);
    assert_eq!(code, Some(0), "{message}");
}
