//! Damage of every class, at places that a seed chooses: it is found, and what is whole is brought back.
//!
//! `TIDINGS_CASES` sets how many stores are damaged. A failure names its seed.

use std::os::unix::fs::FileExt;

use super::story::{Dice, Held, Story, Undone, recovered, scratch, undone};
use super::*;
use crate::log::committer::recover;

const CASES: u64 = 60;

/// A page as it was before the damage.
struct Written {
    first: Seq,
    last: Seq,
    generation: Seq,
    bytes: Vec<Vec<u8>>,
}

/// Every page of events of the store.
fn pages_of(store: &Path) -> Vec<Written> {
    let Found::Store { identity, .. } = Identity::read(store, 1).unwrap() else { panic!("no identity") };
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
fn hit(store: &Path, pages: &[Written]) -> Vec<(Seq, Seq)> {
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
fn bytes_of(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    content(store).into_iter().map(|(path, bytes)| (path.strip_prefix(store).unwrap().to_owned(), bytes)).collect()
}

fn is_in(seq: Seq, ranges: &[(Seq, Seq)]) -> bool {
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
