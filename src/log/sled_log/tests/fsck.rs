//! What fsck says of whole stores, and that it writes nothing.

use super::story::Story;
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
