//! The list: goes back through the log from where the last page ended, and passes over what can't hold anything that is looked for.
//!
//! ```text
//!   oldest ······· pages ······· cursor ◀── the last answer ended here          next
//!                    ◀── glimpse: its filter, times, lanes ─ no: passed over, undecoded
//!                              └ yes: decode ─▶ matches? ─▶ how it stands (snapshot) ─▶ how it ended (forward from there)
//! ```
//! A cursor is a position in the log, and what comes in later stands behind it: so paging neither repeats nor misses anything. What is pending or dead
//! is known to the [`Snapshot`]; of what has ended the outcome is searched forward, for all rows of an answer at once.

use std::collections::{BTreeMap, HashMap};

use super::answers::{Dead, Row};
use super::budget::Budget;
use crate::core::event::{Accepted, Event};
use crate::core::search::{Filter, Snapshot, Standing, State, end_of};
use crate::core::types::{LaneKey, SendNo, Seq};
use crate::log::committer::LogHandle;
use crate::log::{Glimpse, Page, ReadError};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What was accepted.
    pub filter: Filter,
    /// What has become of it; none: whatever.
    pub state: Option<State>,
    /// At most so many.
    pub limit: usize,
    /// What stands before this position; none: all.
    pub before: Option<Seq>,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// Newest first.
    pub rows: Vec<Row>,
    /// Everything before this position is still to be looked at; none if there is nothing more.
    pub next: Option<Seq>,
}

/// A row that may be one of the answer's.
pub(super) struct Candidate {
    pub(super) at: Seq,
    pub(super) id: Seq,
    pub(super) lane: LaneKey,
    pub(super) standing: Standing,
    pub(super) row: Row,
}

/// One request at work.
struct Scan<'a> {
    log: &'a LogHandle,
    snapshot: &'a Snapshot,
    wanted: &'a Wanted,
    keys: Vec<String>,
    /// Where what is pending or dead is held apart, if that is looked for.
    places: Vec<Seq>,
    /// Below this nothing is looked for but `places`.
    floor: Option<Seq>,
    /// The next position to look at is the one before.
    before: Seq,
    /// The next send number of each lane at `before`, as far as it is known.
    ends: HashMap<LaneKey, SendNo>,
}

/// Looks for deliveries. Blocks on the disk.
///
/// # Errors
/// See [`ReadError`]; [`ReadError::Gone`] is not among them.
pub fn list(log: &LogHandle, snapshot: &Snapshot, wanted: &Wanted, mut budget: Budget) -> Result<Found, ReadError> {
    let (places, floor) = match wanted.state {
        Some(state @ State::Pending) => (snapshot.places(state), snapshot.pending_from()),
        Some(state @ State::Dead) => (snapshot.places(state), None),
        _ => (Vec::new(), Some(snapshot.oldest)),
    };
    let before = wanted.before.unwrap_or(snapshot.next).min(snapshot.next);
    let keys = wanted.filter.keys();
    let mut scan = Scan { log, snapshot, wanted, keys, places, floor, before, ends: HashMap::new() };
    let mut rows = Vec::new();
    loop {
        let (mut batch, has_more) = scan.gather(wanted.limit - rows.len(), &mut budget)?;
        let is_spent = !find_ends(log, snapshot, &mut batch, &mut Budget::of_a_request())? || !budget.glimpse();
        let is_wanted = |candidate: &Candidate| {
            let state = candidate.row.state;
            wanted.state.is_none_or(|wanted| wanted == state || (state == State::Ended && wanted.is_end()))
        };
        rows.extend(batch.into_iter().filter(is_wanted).map(|candidate| candidate.row));
        if !has_more {
            return Ok(Found { rows, next: None });
        }
        if rows.len() >= wanted.limit || is_spent {
            return Ok(Found { rows, next: Some(scan.before) });
        }
    }
}

impl Scan<'_> {
    /// The next position to look at.
    fn next_place(&self) -> Option<Seq> {
        let mut at = Seq(self.before.0.checked_sub(1)?);
        let apart = || self.places[..self.places.partition_point(|place| *place < self.before)].last().copied();
        while self.floor.is_some_and(|floor| at >= floor) && at >= self.snapshot.oldest && at > Seq(0) {
            // A whole generation from before the time that is looked for.
            match (self.wanted.filter.since, self.log.generation(at)) {
                (Some(since), Some((first, Some(newest)))) if newest < since => at = Seq(first.0 - 1),
                _ => return Some(at),
            }
        }
        apart()
    }

    /// Up to `count` candidates, and whether there may be more.
    fn gather(&mut self, count: usize, budget: &mut Budget) -> Result<(Vec<Candidate>, bool), ReadError> {
        let mut batch = Vec::new();
        while batch.len() < count {
            let Some(at) = self.next_place() else { return Ok((batch, false)) };
            if !budget.glimpse() {
                break;
            }
            let Some(glimpse) = not_gone(self.log.glimpse(at))? else {
                // The oldest generation has been dropped this moment; what is held apart may stand elsewhere by now.
                (self.before, self.floor) = (at, None);
                continue;
            };
            if self.may_hold(&glimpse) {
                budget.page();
                let Some(page) = not_gone(self.log.page(at))? else {
                    (self.before, self.floor) = (at, None);
                    continue;
                };
                let mut found = self.candidates(page.get());
                while let Some(candidate) = found.pop() {
                    self.before = candidate.at;
                    batch.push(candidate);
                    if batch.len() == count {
                        break;
                    }
                }
                if !found.is_empty() {
                    break;
                }
            }
            self.before = glimpse.first;
            self.ends.extend(glimpse.index.sends);
        }
        Ok((batch, true))
    }

    /// Whether a page may hold something that is looked for; false is certain.
    fn may_hold(&self, glimpse: &Glimpse) -> bool {
        let index = &glimpse.index;
        if !may_hold(glimpse, &self.wanted.filter, &self.keys) {
            return false;
        }
        if self.wanted.state != Some(State::Pending) {
            return true;
        }
        let from = self.places.partition_point(|place| *place < glimpse.first);
        self.places.get(from).is_some_and(|place| *place <= glimpse.last)
            || index.sends.iter().any(|(lane, first)| self.snapshot.has_pending(lane, *first, self.ends.get(lane).copied()))
    }

    /// What of a page is looked for, as far as its state is known; rising.
    fn candidates(&self, page: &Page) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (at, id, send, accepted) in deliveries(page) {
            if at >= self.before || !self.wanted.filter.matches(accepted) {
                continue;
            }
            let standing = self.snapshot.standing(id, &accepted.lane, send);
            // It is listed where it is held now.
            if !standing.state.is_end() && standing.located != at {
                continue;
            }
            let fits = match self.wanted.state {
                None => true,
                Some(wanted) if wanted.is_end() => standing.state.is_end(),
                Some(wanted) => standing.state == wanted,
            };
            if fits {
                found.push(Candidate { at, id, lane: accepted.lane.clone(), standing, row: Row::new(id, accepted, &standing) });
            }
        }
        found
    }
}

/// Whether a page may hold a delivery that fits; false is certain. `keys` are the filter's.
pub(super) fn may_hold(glimpse: &Glimpse, filter: &Filter, keys: &[String]) -> bool {
    let index = &glimpse.index;
    let (Some((low, high)), false) = (index.times, index.filter.is_empty()) else { return false };
    if filter.since.is_some_and(|since| high < since) || filter.until.is_some_and(|until| low >= until) {
        return false;
    }
    if let Some(connection) = &filter.connection {
        let mut lanes = index.sends.iter().map(|(lane, _)| lane).chain(index.touched.iter().map(|touched| &touched.lane));
        if !lanes.any(|lane| lane.connection == *connection) {
            return false;
        }
    }
    keys.iter().all(|key| index.may_hold(key))
}

/// Finds how the candidates ended, and why they died. False if the log had to be read too far.
pub(super) fn find_ends(log: &LogHandle, snapshot: &Snapshot, batch: &mut [Candidate], budget: &mut Budget) -> Result<bool, ReadError> {
    let mut searched = Searched::default();
    let mut from = snapshot.next;
    for (number, candidate) in batch.iter_mut().enumerate() {
        let is_delivered = candidate.standing.state == State::Ended && snapshot.ends_delivered(&candidate.lane.connection);
        if is_delivered {
            candidate.row.state = State::Delivered;
        } else if candidate.standing.state != State::Pending {
            from = from.min(candidate.at);
            searched.add(number, candidate);
        }
    }
    while !searched.is_empty() && from < snapshot.next {
        if !budget.glimpse() {
            return Ok(false);
        }
        let Some(glimpse) = not_gone(log.glimpse(from))? else { return Ok(false) };
        if searched.may_end_in(&glimpse) {
            budget.page();
            let Some(page) = not_gone(log.page(from))? else { return Ok(false) };
            searched.look_into(page.get(), batch);
        }
        from = glimpse.last.next();
    }
    Ok(true)
}

/// Those whose end is searched: by the numbers that they have at that point of the log.
#[derive(Default)]
struct Searched {
    sends: HashMap<LaneKey, BTreeMap<SendNo, usize>>,
    ids: BTreeMap<Seq, (LaneKey, SendNo, usize)>,
}

impl Searched {
    fn add(&mut self, number: usize, candidate: &Candidate) {
        let (lane, send) = (candidate.lane.clone(), candidate.standing.send);
        if candidate.standing.state.is_end() {
            self.sends.entry(lane.clone()).or_default().insert(send, number);
        }
        self.ids.insert(candidate.id, (lane, send, number));
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    fn may_end_in(&self, glimpse: &Glimpse) -> bool {
        glimpse.index.touched.iter().any(|touched| {
            let sends = self.sends.get(&touched.lane);
            let has_send = sends.zip(touched.sends).is_some_and(|(known, (low, high))| known.range(low..=high).next().is_some());
            has_send || touched.ids.is_some_and(|(low, high)| self.ids.range(low..=high).any(|(_, (lane, ..))| *lane == touched.lane))
        })
    }

    fn look_into(&mut self, page: &Page, batch: &mut [Candidate]) {
        let mut next: HashMap<LaneKey, SendNo> = page.sends.iter().cloned().collect();
        for event in &page.events {
            if let Some((lane, ranges, state)) = end_of(event)
                && let Some(sends) = self.sends.get_mut(lane)
            {
                let ended: Vec<SendNo> =
                    ranges.0.iter().flat_map(|(first, last)| sends.range(SendNo(*first)..=SendNo(*last))).map(|(send, _)| *send).collect();
                for send in ended {
                    if let Some(number) = sends.remove(&send) {
                        batch[number].row.state = state;
                        self.ids.remove(&batch[number].id);
                    }
                }
            }
            match event {
                Event::Accepted(accepted) => _ = take_number(&mut next, &accepted.lane),
                Event::Resent { delivery, .. } => {
                    let taken = take_number(&mut next, &delivery.lane);
                    if let (Some(send), Some((lane, before, number))) = (taken, self.ids.get_mut(&delivery.id))
                        && let Some(sends) = self.sends.get_mut(lane)
                    {
                        sends.remove(before);
                        sends.insert(send, *number);
                        *before = send;
                    }
                }
                Event::DeadLettered { delivery, reason, attempts, at } => {
                    if let Some((_, _, number)) = self.ids.get(&delivery.id)
                        && batch[*number].standing.dead_at == Some(*at)
                    {
                        let candidate = &mut batch[*number];
                        let (code, broker_code, message) = (reason.code.clone(), reason.broker_code, reason.message.clone());
                        candidate.row.dead = Some(Dead { code, broker_code, message, attempts: *attempts });
                        self.ids.remove(&candidate.id);
                    }
                }
                _ => {}
            }
        }
    }
}

/// None for what has been dropped.
pub fn not_gone<T>(read: Result<Option<T>, ReadError>) -> Result<Option<T>, ReadError> {
    match read {
        Err(ReadError::Gone(_)) => Ok(None),
        other => other,
    }
}

/// The number that the next send of a lane takes.
pub fn take_number(next: &mut HashMap<LaneKey, SendNo>, lane: &LaneKey) -> Option<SendNo> {
    let counted = next.get_mut(lane)?;
    let send = *counted;
    *counted = send.next();
    Some(send)
}

/// The deliveries that a page holds: position, id, and the number that each has there; rising.
pub fn deliveries(page: &Page) -> impl Iterator<Item = (Seq, Seq, SendNo, &Accepted)> {
    let mut next: HashMap<LaneKey, SendNo> = page.sends.iter().cloned().collect();
    page.events.iter().enumerate().filter_map(move |(offset, event)| {
        let at = Seq(page.first.0 + offset as u64);
        match event {
            Event::Accepted(accepted) => Some((at, at, take_number(&mut next, &accepted.lane)?, accepted.as_ref())),
            Event::Carried(carried) => Some((at, carried.id, carried.send, &carried.accepted)),
            Event::Resent { delivery, .. } => {
                take_number(&mut next, &delivery.lane);
                None
            }
            _ => None,
        }
    })
}
