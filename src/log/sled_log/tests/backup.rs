//! Backups and what is restored from them.

use std::os::unix::fs::MetadataExt;

use super::story::{Story, recovered, scratch, undone};
use super::*;

fn copied(story: Story, is_closed: bool) -> (tempfile::TempDir, PathBuf, super::story::Undone, Copied) {
    let (store, before) = if is_closed { story.closed() } else { story.killed() };
    let folder = scratch();
    let target = folder.path().join("backup");
    let copied = backup_stopped(store.path(), &target, &()).unwrap_or_else(|error| panic!("{error}"));
    (folder, target, before, copied)
}

#[test]
fn what_is_restored_is_what_was_backed_up_and_knows_that_it_is_a_copy() {
    for (seed, is_closed) in [(1, true), (2, false), (3, true), (4, false)] {
        let story = Story::told(seed);
        let last = story.log.as_ref().unwrap().next_seq().0 - 1;
        let (folder, backup, before, copied) = copied(story, is_closed);
        assert_eq!(copied.manifest.position, last);
        let store = folder.path().join("store");
        let restored = restore(&backup, &store, &()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(restored, copied);
        let report = fsck(&store, &()).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        let (opened, outbox) = recovered(&store);
        assert!(opened.is_copy);
        assert_eq!(undone(&*opened.log, &outbox), before);
    }
}

#[test]
fn a_restored_store_is_a_copy_even_where_its_file_gets_the_same_inode_and_time() {
    let (folder, backup, ..) = copied(Story::told(5), true);
    let store = folder.path().join("store");
    restore(&backup, &store, &()).unwrap();
    let text = fs::read_to_string(store.join("identity")).unwrap();
    assert!(text.contains("\nhome 0 0\n"), "{text}");
    let mut opened = open(&store);
    assert!(opened.is_copy);
    opened.log.adopt_copy().unwrap();
    drop(opened);
    assert!(!open(&store).is_copy);
}

#[test]
fn what_stands_still_of_an_open_store_is_a_backup_of_everything_up_to_there() {
    let mut story = Story::told(6);
    // Pages of a later start are right where both have some, so the restored store must not begin to count anew.
    for _ in 0..3 {
        story.restart();
        let report = story.report();
        story.append(vec![report]);
    }
    story.roll();
    let (generations, position) = {
        let log = story.log.as_ref().unwrap();
        let firsts: Vec<Seq> = log.generations().iter().map(|generation| generation.first).collect();
        (firsts[..firsts.len() - 1].to_vec(), Seq(log.next_seq().0 - 1))
    };
    let before = undone(story.log.as_deref().unwrap(), &story.outbox);
    let folder = scratch();
    let backup = folder.path().join("backup");
    // The store goes on meanwhile.
    for _ in 0..20 {
        let report = story.report();
        story.append(vec![report]);
    }
    backup_running(story.store.path(), &generations, position, &backup, &(), &mut || Ok(())).unwrap();
    let store = folder.path().join("store");
    assert_eq!(restore(&backup, &store, &()).unwrap().manifest.position, position.0);
    for _ in 0..2 {
        // Twice: after this start the store is written, and killed.
        let (mut opened, outbox) = recovered(&store);
        assert_eq!(undone(&*opened.log, &outbox), before);
        let at = Millis(9);
        opened.log.append(&[Event::Audit { who: "test".into(), what: "goes on".into(), at }], &next_send).unwrap();
    }
}

#[test]
fn a_backup_that_was_cut_short_or_changed_is_none() {
    let (folder, backup, ..) = copied(Story::told(7), true);
    let refused = |what: &str| {
        let store = folder.path().join("store");
        let error = restore(&backup, &store, &()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(!store.join("identity").exists(), "it would pass for a store");
        let _ = fs::remove_dir_all(&store);
    };
    let manifest = backup.join("backup");
    let kept = fs::read(&manifest).unwrap();
    for offset in (0..kept.len() as u64).step_by(41) {
        flip(&manifest, offset);
        refused("is not what was written");
        flip(&manifest, offset);
    }
    let generation = fs::read_dir(&backup).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    for file in ["db", "conf", "seal"] {
        flip(&generation.join(file), 30);
        refused("is damaged: its file");
        flip(&generation.join(file), 30);
    }
    fs::rename(&generation, folder.path().join("away")).unwrap();
    refused("its file `seal` is missing");
    fs::rename(folder.path().join("away"), &generation).unwrap();
    fs::remove_file(&manifest).unwrap();
    refused("no backup that was finished");
    fs::write(&manifest, kept).unwrap();
    restore(&backup, &folder.path().join("store"), &()).unwrap();
}

#[test]
fn neither_a_backup_nor_a_restore_writes_over_anything() {
    let (folder, backup, ..) = copied(Story::told(8), true);
    let store = folder.path().join("store");
    restore(&backup, &store, &()).unwrap();
    let before = content(&store);
    assert!(matches!(restore(&backup, &store, &()), Err(BackupError::NotEmpty { .. })));
    assert!(matches!(backup_stopped(&store, &backup, &()), Err(BackupError::NotEmpty { .. })));
    assert!(before == content(&store));
    // A backup is no store, and no service runs in it.
    let error = SledLog::open(&backup, SMALL).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
}

#[test]
fn a_damaged_store_gives_no_backup() {
    let (store, _) = Story::told(9).closed();
    let generation = fs::read_dir(store.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    flip(&generation.join("db"), 5_000);
    let folder = scratch();
    let target = folder.path().join("backup");
    let error = backup_stopped(store.path(), &target, &()).unwrap_err();
    assert!(error.to_string().contains("has been changed since it was closed (checksum); see `tidings fsck`"), "{error}");
    assert!(manifest(&target).is_err());
}

#[test]
fn a_tool_that_opens_a_small_store_leaves_its_ballast_as_it_is() {
    let folder = scratch();
    let store = folder.path().join("store");
    copy_folder(Story::told(10).killed().0.path(), &store);
    drop(SledLog::open(&store, Options { generation_size: 1 << 20, ..SMALL }).unwrap());
    let length = || fs::metadata(store.join("ballast")).unwrap().len();
    let before = length();
    assert_eq!(before, Sizes { segment: 256 << 10, generation: 1 << 20 }.ballast());
    backup_stopped(&store, &folder.path().join("backup"), &()).unwrap();
    assert_eq!(length(), before);
    // A damaged one is repaired into one that takes no more.
    let generation = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    flip(&generation.join("db"), 5_000);
    assert!(repair(&store, &()).unwrap().done.is_some());
    assert_eq!(length(), before);
}

#[test]
fn a_backup_by_root_of_a_store_that_was_killed_leaves_all_of_it_to_the_service() {
    const SERVICE: u32 = 12_345;
    if std::env::var("TIDINGS_WITHOUT_LOOP").is_ok_and(|value| value == "1") {
        return println!("TIDINGS_WITHOUT_LOOP=1: passed over");
    }
    let (store, _) = Story::told(11).killed();
    let given = std::os::unix::fs::chown(store.path(), Some(SERVICE), Some(SERVICE));
    assert!(given.is_ok(), "this test needs root; TIDINGS_WITHOUT_LOOP=1 passes it over");
    durable::give_to_owner_of(store.path(), store.path()).unwrap();
    backup_stopped(store.path(), &scratch().path().join("backup"), &()).unwrap();
    for path in content(store.path()).into_keys().chain([store.path().join("lock")]) {
        assert_eq!(fs::metadata(&path).unwrap().uid(), SERVICE, "{}", path.display());
    }
}
