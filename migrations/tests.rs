use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::core::event::Event;
use crate::core::types::{InstanceId, LaneKey, Millis, SendNo, Seq};
use crate::log::sled_log::{Options, SledLog};
use crate::log::{Checkpoint, LastStop};

/// The smallest segments, so that the fixture stays small in git.
const OPTIONS: Options = Options { segment_size: 64 << 10, generation_size: 64 << 20, sled_cache: 1 << 20, page_cache: 0 };

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("migrations/fixtures/v{version:04}"))
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if from.is_dir() {
            copy_folder(&from, &to.join(name));
        } else {
            fs::copy(&from, to.join(name)).unwrap();
        }
    }
}

/// Run once per version, by hand: `cargo test --lib write_the_fixture -- --ignored`. A fixture that exists is never written again.
#[test]
#[ignore = "writes a file of the repository, once per version of the format"]
fn write_the_fixture_of_the_newest_version() {
    let store = fixture(CURRENT);
    assert!(!store.exists(), "{} exists, and must stay as it is", store.display());
    let events = v0001::events();
    let mut log = SledLog::open(&store, OPTIONS).unwrap().log;
    let (sealed, written) = events.split_at(events.len() / 2);
    for commit in sealed.chunks(5) {
        log.append(commit, &|_| SendNo(70_000)).unwrap();
    }
    log.begin_generation(&[1; 2000]).unwrap();
    // Each run begins a tree of its own.
    let (before, after) = written.split_at(written.len() / 2);
    log.append(before, &|_| SendNo(70_100)).unwrap();
    drop(log);
    let mut log = SledLog::open(&store, OPTIONS).unwrap().log;
    log.append(after, &|_| SendNo(70_150)).unwrap();
    log.close(&[2; 3000]).unwrap();
    for rest in ["lock", "ballast"] {
        fs::remove_file(store.join(rest)).unwrap();
    }
}

#[test]
fn a_store_of_any_version_opens_for_ever() {
    for version in 1..=CURRENT {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        copy_folder(&fixture(version), &store);
        let expected = v0001::events();
        for round in 0..2 {
            let opened = SledLog::open(&store, OPTIONS).unwrap_or_else(|error| panic!("version {version}: {error}"));
            let next = Seq(expected.len() as u64 + 1);
            assert_eq!((opened.log.next_seq(), opened.is_copy), (next, true));
            assert_eq!(opened.last_stop, if round == 0 { LastStop::Clean } else { LastStop::Unclean });
            assert_eq!(opened.checkpoint, Some(Checkpoint { next, bytes: vec![2; 3000] }));
            assert_eq!(opened.log.generations().len(), 2);
            let reader = opened.log.reader();
            for (seq, event) in (1..).zip(&expected) {
                assert_eq!(reader.page(Seq(seq)).unwrap().unwrap().get(Seq(seq)), Some(event));
            }
            // The second round is after a kill: the same files, by way of the scan.
        }
        let copy = folder.path().join(format!("store.before-format-{CURRENT}"));
        assert_eq!(copy.exists(), version < CURRENT, "what was there before is kept");
    }
}

#[test]
fn the_fixture_holds_every_kind_of_event() {
    let kind = |event: &Event| match event {
        // A new variant belongs to a new version, with a fixture of its own.
        Event::Accepted(_) => 0,
        Event::Released { .. } => 1,
        Event::Delivered { .. } => 2,
        Event::Refused { .. } => 3,
        Event::Resent { .. } => 4,
        Event::DeadLettered { .. } => 5,
        Event::Requeued { .. } => 6,
        Event::Discarded { .. } => 7,
        Event::Expired { .. } => 8,
        Event::Carried(_) => 9,
        Event::ReplayStarted { .. } => 10,
        Event::ReplayProgress { .. } => 11,
        Event::ReplayEnded { .. } => 12,
        Event::SessionOpened { .. } => 13,
        Event::LanesChanged { .. } => 14,
        Event::EpochBumped { .. } => 15,
        Event::Received { .. } => 16,
        Event::ReleasedIn { .. } => 17,
        Event::Audit { .. } => 18,
        // Only a shared log holds these, which no store of version 1 is: nothing that was written before has become unreadable by them.
        Event::InstanceJoined { .. } => 19,
        Event::InstanceLeft { .. } => 20,
        Event::LaneTaken { .. } => 21,
        Event::LaneLeft { .. } => 22,
        Event::GenerationBegun { .. } => 23,
        Event::GenerationDropped { .. } => 24,
    };
    let mut kinds: Vec<usize> = v0001::events().iter().map(kind).collect();
    kinds.dedup();
    assert_eq!(kinds, (0..=18).collect::<Vec<_>>());
    // The number that postcard writes is the variant's place.
    let (lane, instance, at) = (LaneKey { connection: "mqtt".into(), lane: 1 }, InstanceId(7), Millis(0));
    let of_a_shared_log = [
        Event::InstanceJoined { instance, name: "a".into(), at },
        Event::InstanceLeft { instance, by: instance, at },
        Event::LaneTaken { lane: lane.clone(), instance, term: 1, at },
        Event::LaneLeft { lane, instance, term: 1, at },
        Event::GenerationBegun { at },
        Event::GenerationDropped { before: Seq(5), at },
    ];
    for event in v0001::events().into_iter().chain(of_a_shared_log) {
        assert_eq!(usize::from(postcard::to_stdvec(&event).unwrap()[0]), kind(&event));
    }
}

#[test]
fn there_is_a_fixture_of_every_version() {
    for version in 1..=CURRENT {
        assert!(fixture(version).join("identity").exists(), "version {version}");
    }
}

#[test]
fn the_steps_are_in_order_and_end_with_the_newest_version() {
    let made: Vec<u32> = STEPS.iter().map(|step| step.to()).collect();
    let numbered: Vec<u32> = (2..).take(STEPS.len()).collect();
    assert_eq!(made, numbered);
    assert_eq!(CURRENT as usize, STEPS.len() + 1);
}

/// Appends its number to a file; `killed` makes the first run end after half of its work.
struct Mark {
    to: u32,
    killed: bool,
}

impl Mark {
    fn file(&self, store: &Path) -> PathBuf {
        store.join(format!("mark-{}", self.to))
    }
}

impl Step for Mark {
    fn to(&self) -> u32 {
        self.to
    }

    fn title(&self) -> &'static str {
        "leaves a mark"
    }

    fn prepare(&self, store: &Path) -> Result<(), String> {
        if store.join("full").exists() { Err("no space".into()) } else { Ok(()) }
    }

    fn run(&self, store: &Path) -> Result<(), String> {
        let again = self.file(store).exists();
        fs::write(self.file(store), if self.killed && !again { "half" } else { "whole" }).map_err(|error| error.to_string())?;
        if self.killed && !again { Err("killed".into()) } else { Ok(()) }
    }

    fn validate(&self, store: &Path) -> Result<(), String> {
        let left = fs::read_to_string(self.file(store)).map_err(|error| error.to_string())?;
        if left == "whole" { Ok(()) } else { Err(left) }
    }
}

fn steps(plan: Plan<'_>) -> Vec<u32> {
    match plan {
        Plan::Steps(steps) => steps.iter().map(|step| step.to()).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn a_plan_takes_every_step_between_two_versions_and_no_other() {
    let (two, three) = (Mark { to: 2, killed: false }, Mark { to: 3, killed: false });
    let known: [&dyn Step; 2] = [&two, &three];
    assert_eq!(steps(plan(&known, 1, 3)), [2, 3]);
    assert_eq!(steps(plan(&known, 2, 3)), [3]);
    assert!(matches!(plan(&known, 3, 3), Plan::Current));
    assert!(matches!(plan(&known, 4, 3), Plan::Newer));
    assert!(matches!(plan(&known, 0, 3), Plan::Unknown));
}

#[test]
fn a_step_that_was_killed_runs_again_and_no_version_is_recorded_before_it_is_proven() {
    let store = tempfile::tempdir().unwrap();
    let (two, three) = (Mark { to: 2, killed: false }, Mark { to: 3, killed: true });
    let known: [&dyn Step; 2] = [&two, &three];
    let recorded = std::cell::RefCell::new(vec![1]);
    let go = || {
        let found = *recorded.borrow().last().unwrap();
        let Plan::Steps(steps) = plan(&known, found, 3) else { panic!("steps from {found}") };
        run(store.path(), &steps, |version| {
            recorded.borrow_mut().push(version);
            Ok(())
        })
    };
    fs::write(store.path().join("full"), "").unwrap();
    assert_eq!(go().unwrap_err(), "migration to format 2 (leaves a mark): no space");
    fs::remove_file(store.path().join("full")).unwrap();
    assert_eq!(go().unwrap_err(), "migration to format 3 (leaves a mark): killed");
    assert_eq!(*recorded.borrow(), [1, 2]);
    go().unwrap();
    assert_eq!(*recorded.borrow(), [1, 2, 3]);
}
