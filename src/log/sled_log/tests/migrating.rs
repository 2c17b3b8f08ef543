//! A store of an older format, with steps that exist here only: a copy first, and a kill anywhere.

use std::process::{Command, Stdio};

use super::open::At;
use super::story::scratch;
use super::*;
use crate::failpoint::Point;
use crate::log::sled_log::upgrade::{migrate_with, upgrade};
use crate::migrations::{self, Step};

/// Leaves a file; the first run is killed half way where the store says so.
struct Mark(u32);

impl Step for Mark {
    fn to(&self) -> u32 {
        self.0
    }

    fn title(&self) -> &'static str {
        "leaves a mark"
    }

    fn prepare(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    fn run(&self, store: &Path) -> Result<(), String> {
        let kill = store.join(format!("kill-{}", self.0));
        if kill.exists() {
            fs::remove_file(kill).unwrap();
            fs::write(store.join(format!("mark-{}", self.0)), "half").unwrap();
            return Err("the disk said no".into());
        }
        fs::write(store.join(format!("mark-{}", self.0)), "whole").map_err(|error| error.to_string())
    }

    fn validate(&self, store: &Path) -> Result<(), String> {
        let left = fs::read_to_string(store.join(format!("mark-{}", self.0))).map_err(|error| error.to_string())?;
        if left == "whole" { Ok(()) } else { Err(left) }
    }
}

const STEPS: [&dyn Step; 2] = [&Mark(2), &Mark(3)];

fn store_of(sample: &Sample) -> (tempfile::TempDir, PathBuf) {
    let folder = scratch();
    let store = folder.path().join("store");
    copy_folder(sample.path(), &store);
    identity::set_format(&store, 1).unwrap();
    (folder, store)
}

fn format_of(store: &Path) -> String {
    fs::read_to_string(store.join("identity")).unwrap().lines().nth(1).unwrap().to_owned()
}

fn below(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    content(store).into_iter().map(|(path, bytes)| (path.strip_prefix(store).unwrap().to_owned(), bytes)).collect()
}

#[test]
fn a_migration_is_preceded_by_a_copy_of_the_whole_store() {
    let (folder, store) = store_of(&Sample::closed());
    let before = below(&store);
    let done = migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
    assert_eq!(format_of(&store), "format 3");
    let copy = folder.path().join("store.before-format-3");
    assert_eq!(done.copy, Some(copy.canonicalize().unwrap()));
    assert!(before == below(&copy), "the copy is the store as it was");
    assert!(!store.join("migrating").exists());
    // Going back is putting the copy in its place.
    open(&copy);
    let again = migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
    assert!(again.plan.steps.is_empty() && again.copy.is_none());
}

#[test]
fn a_step_that_fails_names_itself_and_the_copy_and_goes_on_with_the_same_copy() {
    let (folder, store) = store_of(&Sample::closed());
    let before = below(&store);
    fs::write(store.join("kill-3"), "").unwrap();
    let error = migrate_with(&At { store: &store }, &STEPS, 3).unwrap_err().to_string();
    assert!(error.contains("migration to format 3 (leaves a mark): the disk said no"), "{error}");
    assert!(error.contains("store.before-format-3"), "{error}");
    assert_eq!(format_of(&store), "format 2", "the first step is done and recorded");
    // Now the store is half of something; the copy must stay what there was before.
    let done = upgrade(&At { store: &store }, &STEPS, 3).unwrap();
    assert_eq!((format_of(&store).as_str(), done.plan.found), ("format 3", 2));
    assert!(!folder.path().join("store.before-format-3-1").exists(), "no second copy");
    let mut copy = below(&folder.path().join("store.before-format-3"));
    copy.remove(Path::new("kill-3"));
    assert!(before == copy);
}

#[test]
fn a_kill_while_the_copy_is_made_leaves_nothing_that_passes_for_one() {
    let (folder, store) = store_of(&Sample::closed());
    let unfinished = folder.path().join("store.before-format-3.unfinished");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("identity"), "half").unwrap();
    let before = below(&store);
    migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
    assert!(!unfinished.exists());
    assert!(before == below(&folder.path().join("store.before-format-3")));
}

#[test]
fn where_no_copy_can_be_made_nothing_is_changed() {
    let (folder, store) = store_of(&Sample::closed());
    // Something stands where it is to be written, and can't be removed as a folder.
    fs::write(folder.path().join("store.before-format-3.unfinished"), "").unwrap();
    let before = below(&store);
    let error = migrate_with(&At { store: &store }, &STEPS, 3).unwrap_err().to_string();
    assert!(error.contains("nothing was changed"), "{error}");
    assert!(before == below(&store));
}

#[test]
fn a_newer_or_unknown_format_is_refused_with_both_numbers() {
    let (_folder, store) = store_of(&Sample::closed());
    identity::set_format(&store, 4).unwrap();
    let error = migrate_with(&At { store: &store }, &STEPS, 3).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 4, known: 3, .. }), "{error}");
    identity::set_format(&store, 1).unwrap();
    let only_the_last: [&dyn Step; 1] = [&Mark(3)];
    let error = migrate_with(&At { store: &store }, &only_the_last, 3).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    let known = migrations::CURRENT;
    identity::set_format(&store, known).unwrap();
    assert_eq!(plan(&store).unwrap(), Plan { found: known, known, steps: Vec::new(), copy_bytes: 0 });
}

/// A file system in memory of so many bytes and files, gone with the test. None if it can't be had and `TIDINGS_WITHOUT_LOOP=1` says so.
struct SmallSpace(tempfile::TempDir);

impl SmallSpace {
    fn mount(bytes: u64, files: u64) -> Option<SmallSpace> {
        if std::env::var("TIDINGS_WITHOUT_LOOP").is_ok_and(|value| value == "1") {
            println!("TIDINGS_WITHOUT_LOOP=1: passed over");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},nr_inodes={files}");
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "this test needs root; TIDINGS_WITHOUT_LOOP=1 passes it over");
        Some(SmallSpace(folder))
    }
}

impl Drop for SmallSpace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn without_space_for_the_copy_nothing_is_changed_and_with_it_the_migration_goes_on() {
    let sample = Sample::closed();
    let needed = durable::tree_on_disk(sample.path());
    let files = content(sample.path()).len() as u64 + 2;
    // Too few bytes, which is seen before; too few files, so that the disk is full in the middle of the copy.
    for (bytes, files, what) in [(needed * 3 / 2, files * 4, "are free there"), (needed * 4, files * 3 / 2, "No space left on device")] {
        let Some(space) = SmallSpace::mount(bytes, files) else { return };
        let store = space.0.path().join("store");
        copy_folder(sample.path(), &store);
        identity::set_format(&store, 1).unwrap();
        let before = below(&store);
        let error = migrate_with(&At { store: &store }, &STEPS, 3).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("nothing was changed"), "{error}");
        assert!(before == below(&store));
        let beside = fs::read_dir(space.0.path()).unwrap().count();
        assert_eq!(beside, 1, "what was copied is taken away, as it may be what fills the disk");
        let more = ["mount", "-o", "remount,size=64m,nr_inodes=1000"];
        assert!(std::process::Command::new(more[0]).args(&more[1..]).arg(space.0.path()).status().unwrap().success());
        migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
        assert_eq!(format_of(&store), "format 3");
    }
}

const KILLED: &str = "TIDINGS_MIGRATING_TEST_STORE";

/// Not a test of its own: migrates until it dies where the environment says.
#[test]
fn migrates_until_it_dies() {
    let Ok(store) = std::env::var(KILLED) else { return };
    migrate_with(&At { store: Path::new(&store) }, &STEPS, 3).unwrap();
}

#[test]
fn a_migration_that_is_killed_at_any_point_goes_on_with_the_same_copy() {
    let points = [
        (Point::MigrationCopied, 1),
        (Point::MigrationMarked, 1),
        (Point::MigrationRun, 1),
        (Point::MigrationRun, 2),
        (Point::MigrationRecorded, 1),
    ];
    for (point, times) in points {
        let (folder, store) = store_of(&Sample::closed());
        let before = below(&store);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log::sled_log::tests::migrating::migrates_until_it_dies", "--nocapture", "--test-threads=1"])
            .env(KILLED, &store)
            .env("TIDINGS_CRASH_AT", format!("{}:{times}", point.name()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.code().is_none() && said.contains(&format!("the process dies at {}", point.name())), "{point:?}: {child:?}");
        migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
        assert_eq!(format_of(&store), "format 3", "{point:?}");
        assert!(!store.join("migrating").exists(), "{point:?}");
        let copy = folder.path().join("store.before-format-3");
        assert!(before == below(&copy), "{point:?}: the copy is the store as it was before all of it");
        // Before there is a mark nobody knows of the copy, and another one is made.
        assert_eq!(folder.path().join("store.before-format-3-1").exists(), point == Point::MigrationCopied);
        open(&copy);
    }
}

#[test]
fn a_migration_that_was_killed_when_all_was_done_leaves_no_mark_behind_the_next_start() {
    let (folder, store) = store_of(&Sample::closed());
    migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
    // The steps of these tests lead further than this release; and a kill came before the mark was taken away.
    identity::set_format(&store, migrations::CURRENT).unwrap();
    fs::write(store.join("migrating"), format!("{}\n", folder.path().join("store.before-format-3").display())).unwrap();
    open(&store).log.close(b"closed").unwrap();
    assert!(!store.join("migrating").exists());
    // So the next migration makes a copy of the store as it is then.
    identity::set_format(&store, 1).unwrap();
    let done = migrate_with(&At { store: &store }, &STEPS, 3).unwrap();
    assert_eq!(done.copy, Some(folder.path().canonicalize().unwrap().join("store.before-format-3-1")));
}
