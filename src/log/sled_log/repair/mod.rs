//! `tidings fsck --repair`: a new store out of what is whole in a damaged one.
//!
//! ```text
//!   check ─▶ write a new store beside ─▶ open it as a service would ─▶ check it ─▶ swap the two folders (one step) ─▶ done
//!     └ nothing found: nothing done        a kill, a full disk, a doubt: the old store is where it was, and as it was
//! ```
//! * The damaged store is never written to, and nothing of it is deleted: it is moved aside as it is, to `<store>.damaged-<time>`.
//! * A generation that is whole is copied as it is. Of any other the pages that are whole are copied, byte for byte, and lost positions are
//!   filled with events that say so: positions are ids, and operators know them.
//! * Nothing is folded over what is lost if a newer checkpoint knows better. The state that is come to opens a new generation, which begins
//!   with what the repair did: what can't be read is booked as discarded, and the epochs are bumped, because nobody knows what became of what
//!   was in flight.
//! * What is lost is said: in the report, in the history, and with its raw bytes in a quarantine file beside the damaged store.

mod quarantine;
mod rebuild;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::fsck::{self, Examination, Lost, Progress, Report, Survey};
use super::identity::Identity;
use super::open::{self, At, Whole, folder_name};
use super::witness::{Testimony, Witness};
use super::{Active, Options, SledLog, durable, room, seal};
use crate::core::event::Event;
use crate::core::outbox::Outbox;
use crate::core::outbox::salvage::REPAIRED_BY;
use crate::core::ranges::{RangeSet, Ranges};
use crate::core::types::{LaneKey, Seq};
use crate::failpoint::{self, Point};
use crate::log::codec::{Encoder, Kind, Limits};
use crate::log::committer::{encode_checkpoint, now, recover};
use crate::log::{EventLog, OpenError, StoreId};
use crate::migrations;

/// Stands in a store that a repair is still writing.
const UNFINISHED: &str = "unfinished-repair";

/// So many ranges of sends go into one event.
const RANGES_PER_EVENT: usize = 1_000;

/// So many gaps are named in the history.
const GAPS_NAMED: usize = 50;

/// What a new store needs beside what the old one takes, in bytes: a database's first segments, and its checkpoint.
const ROOM: u64 = 32 << 20;

/// What a repair has done.
#[derive(Debug)]
pub struct Repair {
    /// The damaged store, as it was found.
    pub before: Report,
    /// What was done; nothing if nothing was found.
    pub done: Option<Repaired>,
}

/// A store that was repaired.
#[derive(Debug)]
pub struct Repaired {
    /// Where the damaged store is now.
    pub damaged: PathBuf,
    /// Where the raw bytes are of what could not be saved.
    pub quarantine: PathBuf,
    /// The first and last of each run of events that are lost.
    pub lost_events: Vec<(Seq, Seq)>,
    /// Per lane: how many deliveries were given up because they can't be read.
    pub given_up: Vec<(LaneKey, u64)>,
    /// Deliveries that were saved from another place.
    pub carried: u64,
    /// Events at the end of the log are lost: what was accepted and delivered in them is not known.
    pub lost_the_end: bool,
    /// The identity was lost, and the store has a new id.
    pub new_id: Option<StoreId>,
    /// What the repaired store looks like.
    pub after: Report,
}

/// Why a store was not repaired. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It can't be looked at.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no place beside it.
    #[error(
        "the store {path} can't be replaced: {what}. Copy it into a folder that has room beside it, and repair the copy there (--store)"
    )]
    NoPlace {
        /// The store.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// There is no room beside it.
    #[error("repairing takes {needed} bytes beside the store, and {free} are free in {path}; nothing was changed")]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// How many it takes.
        needed: u64,
        /// How many there are.
        free: u64,
    },
    /// Writing failed.
    #[error("writing the repaired store failed: {0}; the damaged one is where it was, and as it was")]
    Io(String),
    /// What was written is not right.
    #[error("the repaired store does not pass its own check: {0}; the damaged one is where it was, and as it was. Please report this")]
    NotRight(String),
    /// The file system can't swap two folders.
    #[error(
        "the file system can't swap two folders at once ({error}). The repaired store is whole, in {repaired}. \
         Swap them by hand while no service runs: mv {store} {store}.aside && mv {repaired} {store}"
    )]
    NotSwapped {
        /// The damaged store.
        store: PathBuf,
        /// The repaired one.
        repaired: PathBuf,
        /// What the system says.
        error: String,
    },
}

impl RepairError {
    /// Stable name for logs and machines.
    pub fn code(&self) -> &'static str {
        match self {
            RepairError::Open(error) => error.code(),
            RepairError::NoPlace { .. } => "no_place",
            RepairError::NoRoom { .. } => "no_room",
            RepairError::Io(_) => "store_failed",
            RepairError::NotRight(_) => "not_repaired",
            RepairError::NotSwapped { .. } => "not_swapped",
        }
    }
}

/// Repairs the store in the folder `store`, if anything is wrong with it.
///
/// # Errors
/// See [`RepairError`]: the store is as it was then.
pub fn repair(store: &Path, progress: &dyn Progress) -> Result<Repair, RepairError> {
    let store = &store.canonicalize().map_err(|error| At { store }.io(error))?;
    let survey = fsck::survey(store)?;
    let (before, examination, lost) = fsck::check(&survey, progress)?;
    if before.findings.is_empty() {
        return Ok(Repair { before, done: None });
    }
    let beside = Beside::find(store)?;
    let writing = Writing { survey: &survey, examination: &examination, lost: &lost, beside: &beside, progress };
    let done = writing.write().inspect_err(|error| {
        if !matches!(error, RepairError::NotSwapped { .. }) {
            beside.clear();
        }
    })?;
    Ok(Repair { before, done: Some(done) })
}

/// The places beside the store.
struct Beside {
    store: PathBuf,
    parent: PathBuf,
    /// Where the new store is written, and where the damaged one is after the two are swapped.
    other: PathBuf,
    quarantine: PathBuf,
}

impl Beside {
    fn find(store: &Path) -> Result<Beside, RepairError> {
        let no_place = |what: String| RepairError::NoPlace { path: store.to_owned(), what };
        let (Some(parent), Some(name)) = (store.parent(), store.file_name()) else {
            return Err(no_place("it is the root of the file system".into()));
        };
        let io = |error: std::io::Error| no_place(error.to_string());
        let (here, above) = (fs::metadata(store).map_err(io)?, fs::metadata(parent).map_err(io)?);
        if here.dev() != above.dev() {
            return Err(no_place("it is the root of a volume, so nothing stands beside it on the same file system".into()));
        }
        let name = name.to_string_lossy();
        // What a repair has left that was killed: the mark stands in new stores only, and goes when they have taken their place.
        let old = format!("{name}.damaged-");
        for entry in fs::read_dir(parent).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().starts_with(&old) && is_unfinished(&entry.path()) {
                remove_unfinished(&entry.path()).map_err(io)?;
                let _ = fs::remove_file(quarantine_of(&entry.path()));
            }
        }
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace([':', '-'], "");
        let place = |n: u32| parent.join(if n == 0 { format!("{old}{time}") } else { format!("{old}{time}-{n}") });
        let other = (0..).map(place).find(|place| !place.exists() && !quarantine_of(place).exists()).expect("a number is free");
        let free = room::known_free(parent).unwrap_or(u64::MAX);
        let needed = durable::tree_on_disk(store).saturating_add(ROOM);
        if free < needed {
            return Err(RepairError::NoRoom { path: parent.to_owned(), needed, free });
        }
        Ok(Beside { store: store.to_owned(), parent: parent.to_owned(), quarantine: quarantine_of(&other), other })
    }

    /// Takes away what was written so far.
    fn clear(&self) {
        // What stays is deleted by the next repair.
        let _ = fs::remove_file(&self.quarantine);
        let _ = remove_unfinished(&self.other);
    }
}

/// A repair that was killed has left it: with its mark, or, at its very beginning or end, with nothing in it.
fn is_unfinished(folder: &Path) -> bool {
    folder.join(UNFINISHED).exists() || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Deletes what a repair has written, its mark last: what is left by a kill has to be known for what it is.
fn remove_unfinished(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() == UNFINISHED => {}
            false => fs::remove_file(entry.path())?,
        }
    }
    failpoint::reach(Point::RepairCleared);
    match fs::remove_file(folder.join(UNFINISHED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir(folder),
    }
}

fn quarantine_of(damaged: &Path) -> PathBuf {
    let mut name = damaged.as_os_str().to_owned();
    name.push(".quarantine.ndjson");
    name.into()
}

struct Writing<'a> {
    survey: &'a Survey,
    examination: &'a Examination,
    lost: &'a [Lost],
    beside: &'a Beside,
    progress: &'a dyn Progress,
}

impl Writing<'_> {
    fn write(&self) -> Result<Repaired, RepairError> {
        let io = |error: std::io::Error| RepairError::Io(error.to_string());
        let target = &self.beside.other;
        let mode = fs::metadata(&self.beside.store).map_err(io)?.permissions();
        open::create_private(target).map_err(io)?;
        failpoint::reach(Point::RepairBegun);
        fs::write(target.join(UNFINISHED), "").map_err(io)?;
        durable::sync_folder(target).map_err(io)?;

        let mut state = self.examination.state.clone();
        let next = self.examination.last.next().max(state.outbox().next());
        state.gap(next);
        let generations: Vec<Seq> = self.generations(state.outbox(), next);
        for (n, &first) in generations.iter().enumerate() {
            let end = generations.get(n + 1).copied().unwrap_or(next);
            self.generation(first, end).map_err(|error| RepairError::Io(format!("{}: {error}", folder_name(first))))?;
        }
        quarantine::write(&self.beside.quarantine, self.survey, self.examination).map_err(io)?;
        state.begin_generation();
        let (identity, new_id) = self.identity()?;
        let given_up = self.begin(state.into_outbox(), identity, generations.first().copied().unwrap_or(next))?;

        // As a service would, before it is trusted with anything.
        let not_right = |error: &dyn std::fmt::Display| RepairError::NotRight(error.to_string());
        let opened = SledLog::open(target, self.options(identity.segment_size)).map_err(|error| not_right(&error))?;
        let outbox = recover(&opened).map_err(|error| not_right(&error))?;
        opened.log.close(&encode_checkpoint(&outbox)).map_err(|error| not_right(&error))?;
        let after = fsck::fsck(target, self.progress).map_err(|error| not_right(&error))?;
        if let Some(finding) = after.findings.listed.first() {
            return Err(not_right(&finding.what));
        }
        fs::set_permissions(target, mode).map_err(io)?;
        durable::give_to_owner_of(&self.beside.store, target).map_err(io)?;
        durable::give_to_owner_of(&self.beside.store, &self.beside.quarantine).map_err(io)?;
        durable::sync_folder(&self.beside.parent).map_err(io)?;
        self.swap()?;
        Ok(Repaired {
            damaged: target.clone(),
            quarantine: self.beside.quarantine.clone(),
            lost_events: self.lost_events(),
            given_up,
            carried: self.lost.iter().flat_map(|lost| &lost.known).filter(|one| one.copy.is_some()).count() as u64,
            lost_the_end: self.examination.gaps.last().is_some_and(|(_, last)| *last == self.examination.last),
            new_id,
            after: Report { store: self.beside.store.clone(), ..after },
        })
    }

    /// Both take each other's place in one step, so that at any moment one of them stands there.
    fn swap(&self) -> Result<(), RepairError> {
        let (store, other) = (&self.beside.store, &self.beside.other);
        failpoint::reach(Point::RepairWritten);
        if let Err(error) = renameat_with(CWD, other, CWD, store, RenameFlags::EXCHANGE) {
            // It is whole: not to be deleted by the next repair.
            let _ = fs::remove_file(other.join(UNFINISHED));
            return Err(RepairError::NotSwapped { store: store.clone(), repaired: other.clone(), error: error.to_string() });
        }
        failpoint::reach(Point::RepairSwapped);
        // From here on the repaired store is in place, whatever happens. The mark is of no meaning there.
        let finished = fs::remove_file(store.join(UNFINISHED)).and_then(|()| durable::sync_folder(store));
        if let Err(error) = finished.and_then(|()| durable::sync_folder(&self.beside.parent)) {
            tracing::warn!("the repaired store is in place, and syncing its folder failed: {error}");
        }
        Ok(())
    }

    /// Where the generations of the new store begin. Those at the beginning that are gone stay away: nothing in them can be saved.
    fn generations(&self, outbox: &Outbox, next: Seq) -> Vec<Seq> {
        let is_there = |first: &Seq| self.examination.parts.iter().any(|part| part.first == *first && !part.is_missing);
        outbox.marks().filter(|first| *first < next).skip_while(|first| !is_there(first)).collect()
    }

    fn generation(&self, first: Seq, end: Seq) -> Result<(), String> {
        let folder = self.beside.other.join(folder_name(first));
        let from = self.survey.folder(first);
        let part = self.examination.parts.iter().find(|part| part.first == first && !part.is_missing);
        if part.is_some_and(|part| part.is_whole && !part.is_disowned && part.end == end) {
            return durable::copy_files(&from, &folder, &mut |bytes| self.progress.done(bytes)).map_err(|error| error.to_string());
        }
        rebuild::rebuild(self.survey, part, &folder, first, end)?;
        seal::make(&folder, self.survey.tag, first, end).map(|_| ()).map_err(|error| error.to_string())
    }

    fn identity(&self) -> Result<(Identity, Option<StoreId>), RepairError> {
        if let Some(identity) = self.survey.identity {
            return Ok((identity, None));
        }
        // Its id is part of client ids only, and the epochs are bumped anyway.
        let store = StoreId(getrandom::u64().map_err(|error| RepairError::Io(error.to_string()))?);
        let segment_size = Options::default().segment_size;
        let identity = Identity { format: migrations::CURRENT, store, tag: self.survey.tag, segment_size, created: now() };
        Ok((identity, Some(store)))
    }

    /// The repaired store takes no more than the damaged one.
    fn options(&self, segment_size: usize) -> Options {
        Options::for_tool(&self.beside.store, segment_size)
    }

    /// Begins the generation that the repaired store goes on with, and writes what was done into it.
    fn begin(&self, mut outbox: Outbox, identity: Identity, lowest: Seq) -> Result<Vec<(LaneKey, u64)>, RepairError> {
        let failed = |what: String| RepairError::Io(what);
        let (target, next) = (&self.beside.other, outbox.next());
        let at = At { store: target };
        let run = self.survey.testimony.map_or(0, |said| said.run).max(self.examination.newest_run) + 1;
        let options = self.options(identity.segment_size);
        let mut encoder =
            Encoder::new(identity.tag, run, Limits::for_segment(identity.segment_size)).map_err(|error| failed(error.to_string()))?;
        let checkpoint = encoder.checkpoint(Kind::OpeningCheckpoint, next, &encode_checkpoint(&outbox));
        let checkpoint = checkpoint.map_err(|error| failed(error.to_string()))?;
        let active = Active::create(target, next, identity.segment_size, &options, &checkpoint).map_err(failed)?;
        let testimony = Testimony { lowest, generation: next, last: Seq(next.0 - 1), run, clean: false };
        let made = || -> std::io::Result<Witness> {
            let mut witness = Witness::create(target, identity.tag, &testimony)?;
            witness.sync()?;
            identity.write(target)?;
            Ok(witness)
        };
        let witness = made().map_err(|error| failed(error.to_string()))?;
        let lock = open::lock(&at)?;
        let sealed = Vec::new();
        let whole = Whole { lock, identity, witness, testimony, sealed, active, options };
        let mut log = Box::new(whole.into_log(&at)?);

        let (events, given_up) = self.events();
        for piece in events.chunks(100) {
            for event in piece {
                outbox.apply(event).map_err(|error| RepairError::NotRight(error.to_string()))?;
            }
            log.append(piece, &|_| crate::core::types::SendNo(0)).map_err(|error| failed(error.to_string()))?;
        }
        log.close(&encode_checkpoint(&outbox)).map_err(|error| failed(error.to_string()))?;
        Ok(given_up)
    }

    /// What the history says of the repair.
    fn events(&self) -> (Vec<Event>, Vec<(LaneKey, u64)>) {
        let at = now();
        let mut events = vec![Event::Audit { who: REPAIRED_BY.into(), what: self.summary(), at }];
        let mut given_up: Vec<(LaneKey, u64)> = Vec::new();
        for lost in self.lost {
            let mut sends = lost.sends.clone();
            for one in &lost.known {
                if let Some(copy) = &one.copy {
                    sends.remove(one.send.0);
                    events.push(Event::Carried(copy.clone()));
                }
            }
            match given_up.iter_mut().find(|(lane, _)| *lane == lost.lane) {
                Some((_, count)) => *count += sends.len(),
                None if sends.is_empty() => {}
                None => given_up.push((lost.lane.clone(), sends.len())),
            }
            for ranges in RangeSet::to_ranges(&sends).0.chunks(RANGES_PER_EVENT) {
                let reason = "its report is lost by damage to the store".to_owned();
                let sends = Ranges(ranges.to_vec());
                events.push(Event::Discarded { lane: lost.lane.clone(), sends, dead: lost.is_dead, by: REPAIRED_BY.into(), reason, at });
            }
        }
        events.push(Event::EpochBumped { reason: "the store was repaired".into(), at });
        (events, given_up)
    }

    fn lost_events(&self) -> Vec<(Seq, Seq)> {
        let mut lost: Vec<(Seq, Seq)> = Vec::new();
        let misfits = self.examination.parts.iter().flat_map(|part| &part.misfits).map(|seq| (*seq, *seq));
        let mut all: Vec<(Seq, Seq)> = self.examination.gaps.iter().copied().chain(misfits).collect();
        all.sort_unstable();
        for (first, last) in all {
            match lost.last_mut() {
                Some(before) if before.1.next() >= first => before.1 = before.1.max(last),
                _ => lost.push((first, last)),
            }
        }
        lost
    }

    fn summary(&self) -> String {
        let lost = self.lost_events();
        let named: Vec<String> = lost.iter().take(GAPS_NAMED).map(|(first, last)| format!("{first} to {last}")).collect();
        let more = lost.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let lost = if lost.is_empty() { "no event is lost".into() } else { format!("lost are the events {}{more}", named.join(", ")) };
        format!("repaired the store; {lost}; the damaged one is kept in {}", self.beside.other.display())
    }
}
