//! What fsck says of whole stores, and that it writes nothing.

use super::story::{Story, recovered};
use super::*;

#[test]
fn a_whole_store_has_no_finding_and_is_not_written_to() {
    for seed in 0..12 {
        let story = Story::told(seed);
        let (store, undone) = if seed % 2 == 0 { story.killed() } else { story.closed() };
        let before = content(store.path());
        let report = fsck(store.path(), &()).unwrap();
        assert!(report.findings.is_empty(), "seed {seed}: {:#?}", report.findings);
        assert_eq!((report.pending, report.dead), (undone.pending.len() as u64, undone.dead.len() as u64), "seed {seed}");
        assert!(report.is_certain && report.unreadable.is_empty() && report.notes.is_empty(), "{:?}", report.notes);
        assert_eq!(report.is_clean, seed % 2 == 1);
        assert!(report.checked.generations >= 2 && report.checked.pages > 20 && report.checked.events > 50, "{:?}", report.checked);
        assert!(before == content(store.path()), "seed {seed}: something was written");
    }
}

#[test]
fn a_store_in_which_a_generation_was_marked_twice_is_sound_and_its_next_checkpoint_marks_it_once() {
    let mut story = Story::told(5);
    story.roll();
    story.outbox = story.outbox.with_newest_generation_twice();
    // It stands in the checkpoint at the end, and in the one that the next generation begins with.
    story.restart();
    let report = story.report();
    story.append(vec![report]);
    let last = story.outbox.generations().next_back();
    story.roll();
    assert_eq!(story.outbox.generations().filter(|first| Some(*first) == last).count(), 2, "as earlier builds had it");
    let (store, _) = story.closed();
    let report = fsck(store.path(), &()).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let (opened, outbox) = recovered(store.path());
    let firsts: Vec<Seq> = opened.log.generations().iter().map(|generation| generation.first).collect();
    assert_eq!(outbox.generations().collect::<Vec<_>>(), firsts);
}
