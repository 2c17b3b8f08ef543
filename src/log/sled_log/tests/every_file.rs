//! Every kind of file that is in a store, damaged in every way: a start refuses and says where, or shows everything; `fsck` finds what a start
//! would miss; and what a repair counts as lost is what is lost.
//!
//! `salvage` damages mostly pages, and looks at what is brought back. Here no kind of file is left out, and the counts are held against what is
//! known. `TIDINGS_CASES` sets how many stores are damaged, `TIDINGS_SEED` with which seed that begins.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::salvage::{bytes_of, hit, is_in, pages_of};
use super::story::{Dice, Story, Undone, recovered, scratch, undone};
use super::*;
use crate::log::committer::recover;

const CASES: u64 = 18;

/// All kinds of files that a store has. Each is damaged as often as the others.
const KINDS: [&str; 9] = ["identity", "witness", "lock", "ballast", "db", "conf", "snap.", "seal", "blobs"];

/// The files and folders of one kind, below the store.
fn of_kind(store: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name == kind || kind.ends_with('.') && name.starts_with(kind) {
                found.push(path);
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Damages one file, and says how.
fn damage(file: &Path, dice: &mut Dice) -> String {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    if file.is_dir() {
        return match dice.below(2) {
            0 => {
                fs::remove_dir_all(file).unwrap();
                format!("{name}: removed")
            }
            _ => {
                fs::write(file.join("12345"), b"not a blob").unwrap();
                format!("{name}: a stranger in it")
            }
        };
    }
    let mut bytes = fs::read(file).unwrap();
    let len = bytes.len() as u64;
    let at = dice.below(len.max(1)) as usize;
    let how = match dice.below(7) {
        0 if len > 0 => {
            bytes[at] ^= 1 << dice.below(8);
            format!("a bit flipped at {at}")
        }
        1 if len > 0 => {
            for _ in 0..=dice.below(60) {
                let at = dice.below(len) as usize;
                bytes[at] ^= 1 << dice.below(8);
            }
            "bits flipped all over".into()
        }
        2 => {
            bytes.truncate(at);
            format!("cut off at {at}")
        }
        3 => {
            bytes.extend((0..1 + dice.below(5_000)).map(|n| (n * 31) as u8));
            "something behind its end".into()
        }
        4 => {
            bytes.fill(0);
            "zeroed".into()
        }
        5 => {
            bytes.iter_mut().for_each(|byte| *byte = dice.below(256) as u8);
            "noise".into()
        }
        _ => {
            fs::remove_file(file).unwrap();
            return format!("{name}: removed");
        }
    };
    fs::write(file, bytes).unwrap();
    format!("{name}: {how}")
}

/// What a start makes of a copy of the store: what it shows, or what it says.
fn start(store: &Path) -> Result<Undone, String> {
    let copy = scratch();
    copy_folder(store, copy.path());
    let opened = catch_unwind(|| SledLog::open(copy.path(), SMALL)).expect("a start does not panic").map_err(|error| error.to_string())?;
    let outbox = recover(&opened).map_err(|error| error.to_string())?;
    // What is damaged in a generation that was not read is found when it is.
    catch_unwind(AssertUnwindSafe(|| undone(&*opened.log, &outbox))).map_err(|_| "a delivery can't be read".to_owned())
}

#[derive(Debug, Default)]
struct Seen {
    refused: u64,
    right: u64,
    found_when_read: u64,
    repaired: u64,
    lost_pages: u64,
}

fn one(seed: u64, seen: &mut Seen) {
    let mut story = Story::told(seed);
    let mut dice = Dice(seed.wrapping_mul(0xd134_2543_de82_ef95) | 1);
    let kind = KINDS[seed as usize % KINDS.len()];
    if kind == "snap." {
        // A start writes it.
        story.restart();
    }
    let (folder, before) = if dice.below(2) == 0 { story.killed() } else { story.closed() };
    let parent = scratch();
    let store = parent.path().join("store");
    copy_folder(folder.path(), &store);
    let files = of_kind(&store, kind);
    if files.is_empty() {
        return;
    }
    let pages = pages_of(&store);
    let chosen = &files[dice.below(files.len() as u64) as usize];
    let what = format!("seed {seed}: {}", damage(chosen, &mut dice));
    let (hit, damaged) = (hit(&store, &pages), bytes_of(&store));
    let generation = chosen.strip_prefix(&store).unwrap().iter().next().unwrap().to_string_lossy().into_owned();

    let started = start(&store);
    println!(
        "{what}: {}",
        match &started {
            Ok(after) => format!("{}", *after == before),
            Err(what) => what.clone(),
        }
    );
    match &started {
        Ok(after) if *after == before => seen.right += 1,
        Ok(_) => {}
        Err(what_was_said) if what_was_said == "a delivery can't be read" => seen.found_when_read += 1,
        Err(said) => {
            seen.refused += 1;
            assert!(!said.contains("panicked"), "{what}: {said}");
            assert!(
                said.contains(&generation) || said.contains(kind) || said.contains("damaged: events"),
                "{what}: it does not say where: {said}"
            );
        }
    }
    let report = match fsck(&store, &()) {
        Ok(report) => report,
        Err(error) => panic!("{what}: fsck can't say: {error}"),
    };
    assert!(damaged == bytes_of(&store), "{what}: fsck has written");
    assert!(
        started.as_ref().is_ok_and(|after| *after == before) || !report.findings.is_empty(),
        "{what}: {started:?}, and fsck finds nothing"
    );
    // What is found names its file or its place.
    for finding in &report.findings.listed {
        assert!(
            finding.file.is_some() || finding.generation.is_some() || finding.events.is_some() || finding.code == "unreadable",
            "{what}: {finding:?}"
        );
    }
    let Some(done) = repair(&store, &()).unwrap_or_else(|error| panic!("{what}: {error}")).done else { return };
    seen.repaired += 1;
    assert!(damaged == bytes_of(&done.damaged), "{what}: what was damaged is kept as it was");
    // Exactly the events of the pages that were hit are said to be lost.
    let lost: u64 = done.lost_events.iter().map(|(first, last)| last.0 - first.0 + 1).sum();
    let known: u64 = hit.iter().map(|(first, last)| last.0 - first.0 + 1).sum();
    assert_eq!(lost, known, "{what}: {:?} are said to be lost, {hit:?} are", done.lost_events);
    seen.lost_pages += hit.len() as u64;
    let (opened, outbox) = recovered(&store);
    let after = undone(&*opened.log, &outbox);
    drop(opened);
    let all = |undone: &Undone| undone.pending.keys().chain(undone.dead.keys()).copied().collect::<std::collections::BTreeSet<_>>();
    let (was, is) = (all(&before), all(&after));
    // What waited and is not there any more is what was given up, no more and no less, and stood in a page that was hit.
    let located = |id: &Seq| before.pending.get(id).or(before.dead.get(id)).expect("it waited").located;
    let gone: Vec<Seq> = was.difference(&is).copied().collect();
    let given_up: u64 = done.given_up.iter().map(|(_, count)| count).sum();
    // What was accepted or carried in an end that is lost is not known to have been there.
    let end = done.lost_events.last().filter(|_| done.lost_the_end);
    let unknown = gone.iter().filter(|id| end.is_some_and(|(first, _)| located(id) >= *first)).count();
    assert!(given_up as usize + unknown >= gone.len(), "{what}: {given_up} are given up, {gone:?} are gone");
    for id in gone {
        assert!(is_in(located(&id), &hit), "{what}: {id} is gone and stood in a whole page");
    }
    if hit.is_empty() {
        assert_eq!((given_up, was), (0, is), "{what}");
    }
    assert!(fsck(&store, &()).unwrap().findings.is_empty(), "{what}: after the repair");
}

#[test]
fn damage_to_any_file_of_a_store_is_refused_by_name_or_costs_nothing_and_losses_are_counted() {
    let from_environment = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().expect("it is a number"));
    let (cases, from) = (from_environment("TIDINGS_CASES", CASES), from_environment("TIDINGS_SEED", 0));
    let mut seen = Seen::default();
    for seed in from..from + cases {
        one(seed, &mut seen);
    }
    println!("{seen:?}");
    assert!(cases < CASES || seen.refused > 0 && seen.right > 0 && seen.lost_pages > 0, "all kinds of ends are seen: {seen:?}");
}

#[test]
fn no_kind_of_file_of_a_store_is_left_out() {
    for (folder, _) in [Story::told(1).killed(), Story::told(2).closed()] {
        for path in content(folder.path()).into_keys() {
            let below = path.strip_prefix(folder.path()).unwrap();
            let name = below.file_name().unwrap().to_string_lossy();
            let is_generation = open::folder_first(&name).is_some();
            assert!(is_generation || KINDS.iter().any(|kind| name.starts_with(kind)), "{} is damaged by no test", below.display());
        }
    }
}
