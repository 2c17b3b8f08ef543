//! What was delivered, oldest first: for a replay, which goes through the log piece by piece.
//!
//! ```text
//!   from ──▶ pages ──▶ … ──▶ until (where the replay was asked for)
//!             └ glimpse: filter, times, lanes ─ no: passed over, undecoded
//!                   └ yes: decode ─▶ fits? ended? (snapshot) ─▶ delivered, or expired or discarded? (forward from there)
//! ```
//! A delivery that was carried forward stands in the log more than once. It is found where it was accepted; where that was gone before the replay began,
//! where it was carried to, the first time. Replays and notices, which Tidings has made itself, are not replayed: their originals are.

use std::collections::BTreeSet;

use super::answers::Row;
use super::budget::Budget;
use super::scan::{Candidate, deliveries, find_ends, may_hold, not_gone};
use crate::core::event::{Accepted, Source};
use crate::core::search::{Filter, Snapshot, State};
use crate::core::types::{Millis, Seq};
use crate::log::committer::LogHandle;
use crate::log::{Page, ReadError};

/// Copies that are to be taken, because their originals can't be.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    /// What was accepted before this was gone at the beginning.
    pub from: Seq,
    /// Gone since then, before it was looked at: first and last position.
    pub gone: Vec<(Seq, Seq)>,
    /// Taken already.
    pub taken: BTreeSet<Seq>,
}

impl Copies {
    /// Whether the original at this position is to be taken from a copy.
    fn wants(&self, original: Seq) -> bool {
        let is_gone = original < self.from || self.gone.iter().any(|(first, last)| (*first..=*last).contains(&original));
        is_gone && !self.taken.contains(&original)
    }
}

/// How much a piece holds at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deliveries.
    pub count: usize,
    /// Payloads and topics, in bytes; a single delivery may have more.
    pub bytes: usize,
}

/// A delivery that was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: Seq,
    /// What was accepted.
    pub accepted: Accepted,
}

/// One piece.
#[derive(Debug, Default)]
pub struct Piece {
    /// Oldest first.
    pub found: Vec<Found>,
    /// Everything before this position has been looked at.
    pub next: Seq,
    /// What stands there is no longer stored.
    pub is_gone: bool,
}

/// Looks on from a position. Blocks on the disk.
///
/// # Errors
/// See [`ReadError`]; [`ReadError::Gone`] is not among them.
pub fn seek(
    log: &LogHandle,
    snapshot: &Snapshot,
    filter: &Filter,
    copies: &Copies,
    from: Seq,
    until: Seq,
    limits: Limits,
) -> Result<Piece, ReadError> {
    let mut budget = Budget::of_a_piece();
    let keys = filter.keys();
    let mut gathered = Gathered { next: from, ..Gathered::default() };
    let mut is_gone = false;
    while gathered.next < until && !gathered.is_full && budget.glimpse() {
        if let Some(since) = filter.since {
            gathered.next = pass_generations(log, gathered.next, until, since);
            if gathered.next >= until {
                break;
            }
        }
        let Some(glimpse) = not_gone(log.glimpse(gathered.next))? else {
            is_gone = true;
            break;
        };
        if !may_hold(&glimpse, filter, &keys) {
            gathered.next = glimpse.last.next();
            continue;
        }
        budget.page();
        let Some(page) = not_gone(log.page(gathered.next))? else {
            is_gone = true;
            break;
        };
        gathered.take(page.get(), snapshot, filter, copies, until, limits);
    }
    let Gathered { mut candidates, accepted, next, .. } = gathered;
    // What ended in pages that were deleted meanwhile is gone itself.
    find_ends(log, snapshot, &mut candidates, &mut Budget::of_a_job())?;
    let found = candidates.into_iter().zip(accepted).filter(|(candidate, _)| candidate.row.state == State::Delivered);
    let found = found.map(|(candidate, accepted)| Found { id: candidate.id, accepted }).collect();
    Ok(Piece { found, next: next.min(until), is_gone })
}

#[derive(Default)]
struct Gathered {
    candidates: Vec<Candidate>,
    accepted: Vec<Accepted>,
    bytes: usize,
    /// The next position to look at.
    next: Seq,
    is_full: bool,
}

impl Gathered {
    fn take(&mut self, page: &Page, snapshot: &Snapshot, filter: &Filter, copies: &Copies, until: Seq, limits: Limits) {
        for (at, id, send, accepted) in deliveries(page) {
            if at < self.next || at >= until || !is_wanted(filter, accepted) {
                continue;
            }
            let is_taken = || self.candidates.iter().any(|known| known.id == id);
            if at != id && (!copies.wants(id) || is_taken()) {
                continue;
            }
            let standing = snapshot.standing(id, &accepted.lane, send);
            if !standing.state.is_end() {
                continue;
            }
            let size = accepted.payload.len() + accepted.topic.len();
            if self.candidates.len() >= limits.count || (self.bytes > 0 && self.bytes + size > limits.bytes) {
                (self.next, self.is_full) = (at, true);
                return;
            }
            self.bytes += size;
            self.candidates.push(Candidate { at, id, lane: accepted.lane.clone(), standing, row: Row::new(id, accepted, &standing) });
            self.accepted.push(accepted.clone());
        }
        self.next = page.last().next();
    }
}

/// Whether it is what is looked for.
fn is_wanted(filter: &Filter, accepted: &Accepted) -> bool {
    accepted.source != Source::Internal && filter.matches(accepted)
}

/// Passes over whole generations of which the newest event is older than what is looked for.
fn pass_generations(log: &LogHandle, mut at: Seq, until: Seq, since: Millis) -> Seq {
    while at < until
        && let Some((first, Some(newest))) = log.generation(at)
        && newest < since
    {
        // Where the next one begins is not said; it is where the answer changes.
        let is_same = |position: Seq| log.generation(position).is_some_and(|(begin, _)| begin == first);
        let (mut low, mut high) = (at, until);
        if is_same(Seq(until.0 - 1)) {
            return until;
        }
        while high.0 - low.0 > 1 {
            let middle = Seq(low.0 + (high.0 - low.0) / 2);
            if is_same(middle) { low = middle } else { high = middle }
        }
        at = high;
    }
    at
}
