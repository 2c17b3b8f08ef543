//! `tidings fsck`: everything that can be checked of a store without writing a byte to it.
//!
//! ```text
//!   survey ─▶ for each generation, oldest first: raw files ─▶ pages ─▶ events ─▶ fold ─▶ what is pending can be read? ─▶ trial
//!   (identity, witness,      (length, checksum, seal)  (checksum, index)   (against each checkpoint)        (sled, on a copy)
//!    folders)
//! ```
//! * Memory is bounded by one generation and by the outbox.
//! * Every finding says what, where, and what follows for reports. A store with a finding may still open: the start looks at what it needs.
//! * What stands in place of events that an earlier repair found lost is no finding, and the fold is not held against the next checkpoint
//!   over it.

mod examine;
mod raw;
mod reach;
mod survey;
mod trial;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use examine::examine;
pub(super) use examine::{Examination, Part, UNKNOWN_CHECKPOINT};
pub(super) use raw::{Item, Raw};
pub(super) use reach::Lost;
use reach::unreadable;
pub(super) use survey::{Survey, survey};
use trial::trial;

use crate::core::ranges::Ranges;
use crate::core::types::{LaneKey, Seq};
use crate::log::{OpenError, StoreId};

/// So many findings are kept; further ones are counted.
const MAX_FINDINGS: usize = 1_000;

/// Told how far a long job is. All in bytes.
pub trait Progress {
    /// What is being done now, and how much of it there is.
    fn begins(&self, what: &str, bytes: u64);
    /// So much more is done.
    fn done(&self, bytes: u64);
}

/// Tells nobody.
impl Progress for () {
    fn begins(&self, _: &str, _: u64) {}
    fn done(&self, _: u64) {}
}

/// Something that is not as it was written, or does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable, for machines.
    pub code: &'static str,
    /// The generation that it is in.
    pub generation: Option<Seq>,
    /// The file that it is in.
    pub file: Option<String>,
    /// The first and last event that it is about.
    pub events: Option<(Seq, Seq)>,
    /// What it is, for people.
    pub what: String,
}

/// Findings, of which only so many are kept.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// The first ones.
    pub listed: Vec<Finding>,
    /// How many there are beyond them.
    pub more: u64,
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        if self.listed.len() < MAX_FINDINGS {
            self.listed.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.listed.len() as u64 + self.more
    }
}

/// What has been looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checked {
    /// Generations.
    pub generations: u64,
    /// Pages whose checksum is right.
    pub pages: u64,
    /// Events that were decoded.
    pub events: u64,
    /// Bytes of generations that were read.
    pub bytes: u64,
    /// How long reading and folding them took.
    pub took: Duration,
}

/// A pending or dead delivery of which the report can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The lane.
    pub lane: LaneKey,
    /// Their send numbers.
    pub sends: Ranges,
    /// Their id and topic, as far as they are known; of those found by counting they are not.
    pub known: Vec<(Seq, Option<String>)>,
    /// Whether they are dead letters.
    pub is_dead: bool,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Report {
    /// The store.
    pub store: PathBuf,
    /// Its id, if its identity is whole.
    pub store_id: Option<StoreId>,
    /// Whether it was closed by a clean stop.
    pub is_clean: bool,
    /// What has been looked at.
    pub checked: Checked,
    /// What is not as it should be.
    pub findings: Findings,
    /// Deliveries that are pending, by what is left of the log.
    pub pending: u64,
    /// Dead letters, by what is left of the log.
    pub dead: u64,
    /// Of these, those that can't be read.
    pub unreadable: Vec<Unreadable>,
    /// Whether these two are certain: no event is missing since the newest checkpoint.
    pub is_certain: bool,
    /// Events that an earlier repair found lost.
    pub lost_before: u64,
    /// The last position of the log.
    pub last: Seq,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl Report {
    /// How many pending or dead deliveries can't be read.
    pub fn unreadable_count(&self) -> u64 {
        self.unreadable.iter().map(|lost| lost.sends.count()).sum()
    }
}

/// Checks the store in the folder `store`. Takes its lock, and writes nothing else.
///
/// # Errors
/// [`OpenError::Locked`] while a service runs on it, [`OpenError::Newer`] and [`OpenError::NotAStore`] as for a start, [`OpenError::Io`] if
/// something can't be read. Damage is no error: it is in the report.
pub fn fsck(store: &Path, progress: &dyn Progress) -> Result<Report, OpenError> {
    let survey = survey(store)?;
    check(&survey, progress).map(|(report, ..)| report)
}

/// As [`fsck`], of a store whose lock is held, with what a repair goes on with.
pub(super) fn check(survey: &Survey, progress: &dyn Progress) -> Result<(Report, Examination, Vec<Lost>), OpenError> {
    let started = Instant::now();
    let mut examination = examine(survey, progress)?;
    examination.checked.took = started.elapsed();
    let lost = unreadable(survey, &examination)?;
    let mut findings = examination.findings.clone();
    let mut notes = Vec::new();
    for lost in &lost {
        findings.add(lost.to_finding());
    }
    if examination.is_newest_whole {
        match trial(survey) {
            Ok(None) => {}
            Ok(Some(finding)) => {
                findings.add(finding.clone());
                examination.distrusts_newest = true;
            }
            Err(note) => notes.push(note),
        }
    }
    let outbox = examination.state.outbox();
    let totals = outbox.connections().values().map(|connection| connection.totals);
    let (pending, dead) = totals.fold((0, 0), |(pending, dead), totals| (pending + totals.pending, dead + totals.dead));
    let report = Report {
        store: survey.store.clone(),
        store_id: survey.identity.map(|identity| identity.store),
        is_clean: survey.testimony.is_some_and(|testimony| testimony.clean),
        checked: examination.checked,
        findings,
        pending,
        dead,
        unreadable: lost.iter().map(Lost::to_unreadable).collect(),
        is_certain: examination.state.certainty() == crate::core::outbox::salvage::Certainty::Complete,
        lost_before: examination.placeholders,
        last: examination.last,
        notes,
    };
    Ok((report, examination, lost))
}
