//! Damage of every class, at places that a seed chooses: it is found, and what is whole is brought back.
//!
//! `TIDINGS_CASES` sets how many stores are damaged. A failure names its seed.

use std::os::unix::fs::FileExt;

use super::story::{Dice, Held, Story, Undone, recovered, scratch, undone};
use super::*;
use crate::core::event::Proof;
use crate::core::ranges::{RangeSet, Ranges};
use crate::log::committer::recover;

const CASES: u64 = 30;

/// A page as it was before the damage.
pub(super) struct Written {
    first: Seq,
    last: Seq,
    generation: Seq,
    bytes: Vec<Vec<u8>>,
}

/// Every page of events of the store.
pub(super) fn pages_of(store: &Path) -> Vec<Written> {
    let Found::Store { identity, .. } = Identity::read(store, migrations::CURRENT).unwrap() else { panic!("no identity") };
    let mut pages = Vec::new();
    for first in open::list(store).unwrap().generations {
        let folder = store.join(open::folder_name(first));
        let db = fs::read(folder.join("db")).unwrap();
        let found = scan(&folder, identity.tag).unwrap();
        let mut parts: BTreeMap<Seq, Written> = BTreeMap::new();
        for ((at, _), place) in &found.events {
            let bytes = db[place.offset as usize..place.offset as usize + place.header.page_len()].to_vec();
            let written = Written { first: *at, last: place.header.last(), generation: first, bytes: Vec::new() };
            parts.entry(*at).or_insert(written).bytes.push(bytes);
        }
        pages.extend(parts.into_values());
    }
    pages
}

/// The positions of which the page is nowhere in the damaged files any more.
pub(super) fn hit(store: &Path, pages: &[Written]) -> Vec<(Seq, Seq)> {
    let mut files: BTreeMap<Seq, Vec<u8>> = BTreeMap::new();
    let is_hit = |page: &&Written| -> bool {
        let db = files.entry(page.generation).or_insert_with(|| {
            let db = store.join(open::folder_name(page.generation)).join("db");
            fs::read(db).unwrap_or_default()
        });
        !page.bytes.iter().all(|bytes| memchr::memmem::find(db, bytes).is_some())
    };
    pages.iter().filter(is_hit).map(|page| (page.first, page.last)).collect()
}

/// Damages the store in one way, and says which.
fn damage(store: &Path, dice: &mut Dice) -> String {
    let mut generations = open::list(store).unwrap().generations;
    // The newest ones matter most.
    let last = generations.len() - 1;
    let chosen = if dice.below(2) == 0 { last } else { dice.below(generations.len() as u64) as usize };
    let folder = store.join(open::folder_name(generations.swap_remove(chosen)));
    let file = match dice.below(14) {
        0 => store.join("identity"),
        1 => store.join("witness"),
        2 => folder.join("seal"),
        3 => folder.join("conf"),
        4 => {
            fs::remove_dir_all(&folder).unwrap();
            return format!("{} removed", folder.display());
        }
        _ => folder.join("db"),
    };
    let Ok(len) = fs::metadata(&file).map(|meta| meta.len()) else { return "nothing".into() };
    let name = file.strip_prefix(store).unwrap().display().to_string();
    let zero = |size: u64, dice: &mut Dice| {
        let at = dice.below(len) / size * size;
        let zeros = vec![0; size.min(len - at) as usize];
        fs::OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&zeros, at).unwrap();
        format!("{name}: {size} bytes zeroed at {at}")
    };
    match dice.below(9) {
        0..=3 => {
            let at = dice.below(len);
            flip(&file, at);
            format!("{name}: a bit flipped at {at}")
        }
        4 => {
            let at = dice.below(len);
            fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(at).unwrap();
            format!("{name}: cut off at {at} of {len}")
        }
        5 => {
            fs::remove_file(&file).unwrap();
            format!("{name}: removed")
        }
        6 | 7 => zero(4 << 10, dice),
        _ => zero(1 << 20, dice),
    }
}

/// What a start makes of it: refused, or what it shows, or what goes wrong when that is read.
fn start(store: &Path) -> Result<Undone, String> {
    let copy = scratch();
    copy_folder(store, copy.path());
    let opened = SledLog::open(copy.path(), SMALL).map_err(|error| error.to_string())?;
    let outbox = recover(&opened).map_err(|error| error.to_string())?;
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| undone(&*opened.log, &outbox)));
    read.map_err(|_| "a delivery can't be read".into())
}

/// The store's bytes, wherever it stands.
pub(super) fn bytes_of(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    content(store).into_iter().map(|(path, bytes)| (path.strip_prefix(store).unwrap().to_owned(), bytes)).collect()
}

pub(super) fn is_in(seq: Seq, ranges: &[(Seq, Seq)]) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&seq))
}

fn same_report(before: &Held, after: &Held) -> bool {
    (&before.lane, &before.topic, &before.payload) == (&after.lane, &after.topic, &after.payload)
}

fn one(seed: u64) {
    let mut story = Story::told(seed);
    let mut dice = Dice(story.dice.below(u64::MAX) | 1);
    let (folder, before) = if dice.below(3) > 0 { story.killed() } else { story.closed() };
    let parent = scratch();
    let store = parent.path().join("store");
    copy_folder(folder.path(), &store);
    let pages = pages_of(&store);
    let mut what = damage(&store, &mut dice);
    if dice.below(4) == 0 {
        what = format!("{what}; {}", damage(&store, &mut dice));
    }
    let what = format!("seed {seed}: {what}");
    let damaged = bytes_of(&store);
    let hit = hit(&store, &pages);

    let started = start(&store);
    let report = match fsck(&store, &()) {
        Ok(report) => report,
        Err(error) => {
            assert!(started.is_err(), "{what}: it starts, and fsck says: {error}");
            assert!(
                error.to_string().contains("nothing to save") || error.to_string().contains("is not a Tidings store"),
                "{what}: {error}"
            );
            return;
        }
    };
    assert!(damaged == bytes_of(&store), "{what}: fsck has written");
    // A copied folder is new to the broker, which changes no delivery.
    let is_right = started.as_ref().is_ok_and(|after| *after == before);
    assert!(is_right || !report.findings.is_empty(), "{what}: {started:?} is not {before:?}, and fsck finds nothing");
    assert_eq!(report.notes, [] as [String; 0], "{what}");

    let repaired = repair(&store, &()).unwrap_or_else(|error| panic!("{what}: {error}\n{:#?}", report.findings));
    let Some(done) = repaired.done else {
        assert!(report.findings.is_empty(), "{what}");
        return;
    };
    assert!(damaged == bytes_of(&done.damaged), "{what}: the damaged store is not as it was");
    assert!(done.quarantine.exists(), "{what}");
    let again = fsck(&store, &()).unwrap();
    assert!(again.findings.is_empty(), "{what}: after the repair: {:#?}", again.findings);
    let (opened, outbox) = recovered(&store);
    assert_eq!((opened.last_stop, opened.is_copy), (LastStop::Clean, false), "{what}");
    let after = undone(&*opened.log, &outbox);
    for (id, held) in before.pending.iter().chain(&before.dead) {
        let found = after.pending.get(id).or(after.dead.get(id));
        if is_in(held.located, &hit) {
            // Gone with its page, if it has not got two.
            assert!(found.is_none_or(|found| same_report(held, found)), "{what}: {id} is another report");
        } else {
            let found = found.unwrap_or_else(|| panic!("{what}: {id} stood in a whole page, and is gone. {done:#?}"));
            assert!(same_report(held, found), "{what}: {id} is another report");
            if hit.is_empty() || held.is_plain {
                assert_eq!(found.send, held.send, "{what}: {id} has another place in its lane");
            }
        }
    }
    let more = after.pending.keys().filter(|id| !before.pending.contains_key(id)).count();
    if hit.is_empty() {
        assert_eq!((more, &after.dead), (0, &before.dead), "{what}: no outcome was lost");
        assert!(done.lost_events.is_empty() && done.given_up.is_empty(), "{what}: {done:#?}");
    }
    // Nothing is said to be lost that is whole.
    for page in &pages {
        let is_lost = done.lost_events.iter().any(|(first, last)| page.first <= *last && page.last >= *first);
        assert!(!is_lost || is_in(page.first, &hit), "{what}: {} to {} are whole. {done:#?}", page.first, page.last);
    }
    assert!(outbox.imbalance().is_none(), "{what}: {:?}", outbox.imbalance());
    opened.log.close(&crate::log::committer::encode_checkpoint(&outbox)).unwrap();
}

#[test]
fn damage_anywhere_is_found_and_every_whole_page_is_brought_back() {
    let cases = std::env::var("TIDINGS_CASES").map_or(CASES, |cases| cases.parse().expect("TIDINGS_CASES is a number"));
    let from = std::env::var("TIDINGS_SEED").map_or(0, |seed| seed.parse().expect("TIDINGS_SEED is a number"));
    for seed in from..from + cases {
        one(seed);
    }
}

/// A store in a folder of its own, so that it can be moved aside, and what was not done in it.
fn placed(story: Story, is_closed: bool) -> (tempfile::TempDir, PathBuf, Undone) {
    let (folder, before) = if is_closed { story.closed() } else { story.killed() };
    let parent = scratch();
    let store = parent.path().join("store");
    copy_folder(folder.path(), &store);
    (parent, store, before)
}

fn repaired(store: &Path) -> Repaired {
    repair(store, &()).unwrap_or_else(|error| panic!("{error}")).done.expect("something was found")
}

#[test]
fn identity_and_witness_both_lost_cost_nothing() {
    for seed in [100, 101] {
        let (_parent, store, before) = placed(Story::told(seed), seed == 101);
        let Found::Store { identity, .. } = Identity::read(&store, migrations::CURRENT).unwrap() else { panic!() };
        fs::remove_file(store.join("identity")).unwrap();
        fs::write(store.join("witness"), [0; 8192]).unwrap();
        let done = repaired(&store);
        assert!(done.lost_events.is_empty() && done.new_id.is_some(), "{done:#?}");
        let (opened, outbox) = recovered(&store);
        assert_eq!((opened.log.store_id(), undone(&*opened.log, &outbox)), (done.new_id.unwrap(), before));
        assert_ne!(opened.log.store_id(), identity.store);
    }
}

#[test]
fn the_outcomes_of_a_torn_off_end_are_lost_and_nothing_else() {
    let mut story = Story::told(102);
    story.roll();
    let newest = story.log.as_ref().unwrap().next_seq();
    for _ in 0..40 {
        let report = story.report();
        story.append(vec![report]);
    }
    let (_parent, store, before) = placed(story, false);
    fs::remove_dir_all(store.join(open::folder_name(newest))).unwrap();
    let report = fsck(&store, &()).unwrap();
    assert!(
        report.findings.listed.iter().any(|found| found.code == "generation_missing" && found.generation == Some(newest)),
        "{report:#?}"
    );
    let done = repaired(&store);
    assert!(done.lost_the_end && done.lost_events[0].0 == newest, "{done:#?}");
    let (opened, outbox) = recovered(&store);
    let after = undone(&*opened.log, &outbox);
    let kept: Vec<&Seq> = before.pending.keys().filter(|id| **id < newest).collect();
    assert_eq!(after.pending.keys().collect::<Vec<_>>(), kept);
    // Ids that producers were told are not given again.
    assert!(opened.log.next_seq() > done.lost_events[0].1);
}

#[test]
fn without_any_checkpoint_everything_that_can_be_read_is_pending_or_done_as_far_as_is_known() {
    // The first generation was dropped, so nothing tells how the others begin.
    let seed = (0..).find(|seed| Story::told(*seed).outbox.oldest_generation() > Some(Seq(1))).unwrap();
    let (_parent, store, before) = placed(Story::told(seed), false);
    let tag = match Identity::read(&store, migrations::CURRENT).unwrap() {
        Found::Store { identity, .. } => identity.tag,
        other => panic!("{other:?}"),
    };
    for first in open::list(&store).unwrap().generations {
        let folder = store.join(open::folder_name(first));
        let bytes = fs::read(folder.join("db")).unwrap();
        for place in scan(&folder, tag).unwrap().checkpoints.values().flat_map(|parts| parts.values()) {
            let page = &bytes[place.offset as usize..place.offset as usize + place.header.page_len()];
            for copy in memchr::memmem::find_iter(&bytes, page) {
                flip(&folder.join("db"), copy as u64 + 73);
            }
        }
    }
    let done = repaired(&store);
    let (opened, outbox) = recovered(&store);
    assert!(outbox.imbalance().is_none(), "{:?}", outbox.imbalance());
    let after = undone(&*opened.log, &outbox);
    let readable: Vec<&Seq> = before.pending.iter().filter(|(_, held)| !is_in(held.located, &done.lost_events)).map(|(id, _)| id).collect();
    for id in readable {
        assert!(after.pending.contains_key(id) || after.dead.contains_key(id), "{id} is gone: {done:#?}");
    }
}

#[test]
fn an_event_that_does_not_fit_is_quarantined_and_the_rest_goes_on() {
    let mut story = Story::told(103);
    // A fault of some release: an outcome for a send that is not pending.
    let at = story.now();
    let event = Event::Delivered { lane: crate::log::samples::lane(0), sends: Ranges(vec![(70_000, 70_000)]), proof: Proof::PubAck, at };
    story.log.as_mut().unwrap().append(&[event], &next_send).unwrap();
    let wrong = Seq(story.log.as_ref().unwrap().next_seq().0 - 1);
    let before = undone(story.log.as_deref().unwrap(), &story.outbox);
    let parent = scratch();
    let store = parent.path().join("store");
    copy_folder(story.store.path(), &store);
    let report = fsck(&store, &()).unwrap();
    let found = &report.findings.listed[0];
    assert_eq!((found.code, found.events), ("event", Some((wrong, wrong))), "{report:#?}");
    assert_eq!(repaired(&store).lost_events, [(wrong, wrong)]);
    let (opened, outbox) = recovered(&store);
    assert_eq!(undone(&*opened.log, &outbox), before);
}

#[test]
fn a_checkpoint_that_the_events_do_not_come_to_is_found_and_taken_for_right() {
    let mut story = Story::told(104);
    // A fault of some release: a delivery that the log does not know as done.
    let lane = story.outbox.lanes().find(|(_, lane)| lane.pending() > 0 && lane.is_pending(lane.cursor())).unwrap();
    let (key, send) = (lane.0, lane.1.cursor());
    let mut other = story.outbox.clone();
    other.apply(&Event::Delivered { lane: key, sends: Ranges::one(send.0), proof: Proof::PubAck, at: Millis(1) }).unwrap();
    // The log has another event there.
    let audit = Event::Audit { who: "test".into(), what: String::new(), at: Millis(1) };
    story.log.as_mut().unwrap().append(&[audit], &next_send).unwrap();
    story.outbox = other;
    story.roll();
    let (_parent, store, before) = placed(story, true);
    let report = fsck(&store, &()).unwrap();
    assert!(report.findings.listed.iter().any(|found| found.code == "checkpoint" && found.what.contains("the books of mq")), "{report:#?}");
    assert!(repaired(&store).lost_events.is_empty());
    assert!(fsck(&store, &()).unwrap().findings.is_empty());
    let (opened, outbox) = recovered(&store);
    assert_eq!(undone(&*opened.log, &outbox), before);
}

#[test]
fn a_repaired_store_is_repaired_again_and_its_generations_can_be_dropped() {
    let (_parent, store, _) = placed(Story::told(105), false);
    for round in 0..2 {
        let generations = open::list(&store).unwrap().generations;
        let db = store.join(open::folder_name(generations[round])).join("db");
        let len = fs::metadata(&db).unwrap().len();
        fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(len / 2).unwrap();
        repaired(&store);
    }
    let report = fsck(&store, &()).unwrap();
    assert!(report.lost_before > 0 && report.findings.is_empty(), "{report:#?}");
    let (mut opened, mut outbox) = recovered(&store);
    // As the committer does when all is done.
    let sends =
        |lane: &crate::core::outbox::Lane| (lane.cursor().0..lane.next_send().0).filter(|send| lane.is_pending(SendNo(*send))).collect();
    let all: Vec<(LaneKey, RangeSet)> = outbox.lanes().map(|(key, lane)| (key, sends(lane))).collect();
    let waiting: Vec<(LaneKey, RangeSet)> =
        outbox.lanes().map(|(key, lane)| (key, lane.waiting().keys().map(|send| send.0).collect())).collect();
    let dead: Vec<(LaneKey, RangeSet)> = outbox.lanes().map(|(key, lane)| (key, lane.dead().keys().map(|send| send.0).collect())).collect();
    let lists = [(all, false), (waiting, false), (dead, true)];
    for (list, dead) in lists {
        for (lane, sends) in list.into_iter().filter(|(_, sends)| !sends.is_empty()) {
            let sends = sends.to_ranges();
            let event = Event::Discarded { lane, sends, dead, by: "test".into(), reason: String::new(), at: Millis(1) };
            outbox.apply(&event).unwrap();
            opened.log.append(&[event], &next_send).unwrap();
        }
    }
    while let Some(needed) = outbox.needed_in_oldest_generation() {
        assert_eq!(needed, 0);
        assert_eq!(outbox.oldest_generation(), opened.log.generations().first().map(|oldest| oldest.first));
        opened.log.drop_oldest_generation().unwrap();
        outbox.drop_oldest_generation();
    }
    drop(opened);
    assert!(fsck(&store, &()).unwrap().findings.is_empty());
}

#[test]
fn what_a_killed_repair_has_left_is_cleared_and_what_it_moved_aside_is_not() {
    let (parent, store, before) = placed(Story::told(106), false);
    fs::remove_file(store.join("identity")).unwrap();
    // One that was being written; and one that a repair has moved aside.
    for (name, file) in [("store.damaged-1", "unfinished-repair"), ("store.damaged-2", "identity")] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(parent.path().join(name).join(file), "").unwrap();
    }
    repaired(&store);
    assert!(!parent.path().join("store.damaged-1").exists() && parent.path().join("store.damaged-2").exists());
    let (opened, outbox) = recovered(&store);
    assert_eq!(undone(&*opened.log, &outbox), before);
    assert!(!store.join("unfinished-repair").exists());
}
