//! One target: its corpus, its cases, and what becomes of an input that fails.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::chance::Chance;
use crate::mutate::Mutator;

/// What chance decides if nobody says: a run is the same on every machine.
const SEED: u64 = 0x7469_6469_6e67_7321;

/// Inputs with an outcome of their own that are kept, at most. Each of them is short: what is mutated grows.
const POPULATION: usize = 256;

/// A longer input is not mutated further, in bytes.
const LONGEST_KEPT: usize = 8 << 10;

/// How often an input that fails is tried smaller.
const SMALLER: usize = 2_000;

/// A case that takes so long has hung. Machines that are busy included.
const HUNG: Duration = Duration::from_secs(60);

/// What has come of an input.
pub enum Outcome {
    /// It was taken.
    Accepted(String),
    /// It was refused, and this is how.
    Refused(String),
}

impl Outcome {
    pub fn accepted(how: impl Into<String>) -> Outcome {
        Outcome::Accepted(how.into())
    }

    pub fn refused(how: impl Into<String>) -> Outcome {
        Outcome::Refused(how.into())
    }

    fn key(&self) -> String {
        match self {
            Outcome::Accepted(how) => format!("+{how}"),
            Outcome::Refused(how) => format!("-{how}"),
        }
    }
}

thread_local! {
    /// While an input is made smaller: its panics are expected.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

pub fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

pub fn seed() -> u64 {
    let time = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    from_environment("TIDINGS_FUZZ_SEED").unwrap_or_else(|| if is_timed() { time() } else { SEED })
}

fn is_timed() -> bool {
    from_environment("TIDINGS_FUZZ_SECONDS").is_some()
}

/// The folder of a target's corpus, and what is in it, in order of names.
fn corpus(target: &str) -> (PathBuf, Vec<(PathBuf, Vec<u8>)>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default();
    files.sort();
    let read = files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect();
    (folder, read)
}

/// Runs a target: its corpus and `seeds` as they are, and then so many mutations of them. `check` panics where what the target claims does
/// not hold.
pub fn run(target: &'static str, cases: u64, seeds: Vec<Vec<u8>>, mutator: &Mutator, mut check: impl FnMut(&[u8]) -> Outcome) {
    be_quiet_where_told();
    let seed = seed();
    let (folder, known) = corpus(target);
    let note = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"))).unwrap();
    let mut outcomes: HashMap<String, u64> = HashMap::new();
    let mut population: Vec<Vec<u8>> = Vec::new();
    let mut try_one = |bytes: &[u8], population: &mut Vec<Vec<u8>>, from: &str| {
        // In case it takes the whole process with it.
        note.set_len(0).and_then(|()| note.write_all_at(bytes, 0)).unwrap();
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| check(bytes))) {
            Ok(outcome) => {
                let count = outcomes.entry(outcome.key()).or_default();
                *count += 1;
                if *count == 1 && population.len() < POPULATION && bytes.len() <= LONGEST_KEPT {
                    population.push(bytes.to_vec());
                }
            }
            Err(_) => fail(target, &folder, bytes, seed, from, &mut check),
        }
        assert!(began.elapsed() < HUNG, "{target}: {from} took {:?}, see target/tmp/fuzz-{target}", began.elapsed());
    };
    for (file, bytes) in &known {
        try_one(bytes, &mut population, &file.display().to_string());
    }
    let all: Vec<Vec<u8>> = known.into_iter().map(|(_, bytes)| bytes).chain(seeds).collect();
    assert!(!all.is_empty(), "{target}: there is nothing to begin with in {}", folder.display());
    for bytes in &all {
        try_one(bytes, &mut population, "a seed of the target");
    }
    population.extend(all.into_iter().filter(|bytes| bytes.len() <= LONGEST_KEPT));
    let cases = from_environment("TIDINGS_FUZZ_CASES").unwrap_or(cases);
    let seconds = from_environment("TIDINGS_FUZZ_SECONDS").map(Duration::from_secs);
    let began = Instant::now();
    let mut case = 0;
    while seconds.map_or(case < cases, |seconds| began.elapsed() < seconds) {
        let mut chance = Chance::of(seed, target, case);
        let bytes = mutator.mutate(&mut chance, &population);
        try_one(&bytes, &mut population, &format!("case {case}"));
        case += 1;
    }
    let accepted: u64 = outcomes.iter().filter(|(key, _)| key.starts_with('+')).map(|(_, count)| count).sum();
    let all: u64 = outcomes.values().sum();
    println!(
        "{target}: {case} cases, {accepted} accepted, {} outcomes, seed {seed}, {:.1} s",
        outcomes.len(),
        began.elapsed().as_secs_f32()
    );
    // What only ever fails at the first byte, or is never wrong, tests nothing.
    if case >= 500 {
        assert!(accepted * 200 > all && (all - accepted) * 200 > all, "{target}: {accepted} of {all} were accepted: {outcomes:#?}");
    }
}

/// Makes the input smaller for as long as it fails, keeps it, and fails.
fn fail(target: &str, folder: &Path, bytes: &[u8], seed: u64, from: &str, check: &mut impl FnMut(&[u8]) -> Outcome) {
    let mut smallest = bytes.to_vec();
    let mut fails = |bytes: &[u8]| {
        IS_QUIET.set(true);
        let is_failing = catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err();
        IS_QUIET.set(false);
        is_failing
    };
    let (mut tried, mut piece) = (0, smallest.len() / 2);
    while piece > 0 && tried < SMALLER {
        let mut at = 0;
        while at < smallest.len() && tried < SMALLER {
            let mut smaller = smallest.clone();
            smaller.drain(at..(at + piece).min(smallest.len()));
            tried += 1;
            if fails(&smaller) { smallest = smaller } else { at += piece }
        }
        piece /= 2;
    }
    fs::create_dir_all(folder).unwrap();
    let file = folder
        .join(format!("found-{:016x}", smallest.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))));
    fs::write(&file, &smallest).unwrap();
    panic!("{target}: {from} of TIDINGS_FUZZ_SEED={seed} fails, for the reason above; what is left of it is {}", file.display());
}

fn be_quiet_where_told() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                loud(panic)
            }
        }));
    });
}

/// A message that a person reads: there, in one piece, and not as long as what it is about.
pub fn assert_readable(message: &str) {
    assert!(!message.trim().is_empty() && message.len() < 2_000, "{} bytes: {message:.300}", message.len());
}

/// Words that don't depend on what was quoted: up to the first thing that an input could have put there.
pub fn kind_of(message: &str) -> String {
    message.chars().take_while(|c| !c.is_ascii_digit() && !"`\"'{".contains(*c)).take(60).collect()
}

/// Every one is different.
pub fn are_distinct<T: std::hash::Hash + Eq>(all: impl IntoIterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    all.into_iter().all(|one| seen.insert(one))
}
