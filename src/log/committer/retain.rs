//! Retention: generations that are not needed any more are dropped; what is left in them is carried forward first.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::handle::{Append, Command, size_of_event};
use super::{CommitError, Committer, history, now};
use crate::core::event::{Accepted, Carried, Event};
use crate::core::outbox::{Lane, Straggler};
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::failpoint::{self, Point};
use crate::log::{Generation, LogReader, Page, ReadError};

/// So many deliveries that are not done are carried forward at once, which bounds the memory that it takes. Where there are more, the next ones follow.
const CARRY_AT_ONCE: u64 = 4_096;

/// After one try to carry, so long nothing is tried again: what is too much now will hardly be little in a second.
const CARRY_AGAIN: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 30 });

/// What is carried is appended in pieces of so many bytes: no commit of others waits long behind one.
const PIECE_BYTES: usize = 1 << 20;

/// What was too much to be carried: reading it again would end as before, until some of it is done or more is freed by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooHeavy {
    /// The generation.
    first: Seq,
    /// The deliveries that were left in it.
    count: u64,
    /// The bytes at which it was too much.
    weight: u64,
}

impl Committer {
    /// Drops the oldest generations when nothing in them is needed and they are past their retention, or space is short: reports to come are
    /// worth more than the history of those that are delivered. What is left in the oldest is carried forward first.
    pub(super) fn retain(&mut self) {
        if self.is_pinned() {
            return;
        }
        if self.is_tight(self.being_freed()) {
            self.roll_to_free();
        }
        // What is being deleted counts as free already, or too much history would go.
        let mut freed = self.being_freed();
        while let Some(bytes) = self.drop_or_carry(freed) {
            freed += bytes;
        }
    }

    /// Drops the oldest generation if it may go, and says how many bytes that frees; or begins to carry what is left in it.
    fn drop_or_carry(&mut self, freed: u64) -> Option<u64> {
        let is_tight = self.is_tight(freed);
        let log = self.log.as_ref()?;
        let generations = log.generations();
        let [oldest, second, ..] = generations.as_slice() else { return None };
        let is_past = oldest.newest.is_none_or(|newest| now().since(newest_at_most(newest, &generations)) >= self.limits.retention_ms);
        if !is_past && !is_tight {
            return None;
        }
        if !self.outbox.generations().take(2).eq([oldest.first, second.first]) {
            tracing::error!(generation = %oldest.first, "log and outbox disagree about the oldest generations, a fault in Tidings; nothing is deleted");
            return None;
        }
        match self.outbox.needed_in_oldest_generation() {
            Some(0) => {
                let (first, bytes, before) = (oldest.first, oldest.bytes, second.first);
                match self.shared.is_some() {
                    true => self.drop_generations_for_all(before, bytes)?,
                    false => {
                        self.with_log(|log, _| log.drop_oldest_generation()).ok()?;
                        self.outbox.drop_oldest_generation();
                    }
                }
                match is_past {
                    true => tracing::info!(generation = %first, "a generation past its retention was deleted"),
                    false => tracing::warn!(generation = %first, "space is short: delivered reports were deleted before their retention"),
                }
                Some(bytes)
            }
            Some(count) if !self.is_carrying && self.carry_again.is_none_or(|at| at <= Instant::now()) => {
                // What is carried is written once more: it has to be little beside what is freed, and fit.
                let room = log.space().free.saturating_sub(self.sizes.commit(PIECE_BYTES as u64));
                let most = (self.freed_by_carrying(&generations, count) / 2).min(room);
                let limit = share(most, count.min(CARRY_AT_ONCE), count);
                let first = oldest.first;
                let is_hopeless = self.too_heavy.is_some_and(|known| known.first == first && known.count == count && known.weight > limit);
                if !is_hopeless {
                    self.carry_again = Some(Instant::now() + CARRY_AGAIN);
                    self.too_heavy = Some(TooHeavy { first, count, weight: 0 });
                    self.start_carrying(limit);
                }
                None
            }
            Some(_) | None => None,
        }
    }

    /// The bytes that can be deleted once the `count` deliveries that are left in the oldest generation are carried: its own, and those of
    /// the ones behind it in which nothing is needed.
    fn freed_by_carrying(&self, generations: &[Generation], count: u64) -> u64 {
        let sealed = &generations[..generations.len() - 1];
        let goes = |number: &usize| self.outbox.needed_before_generation(number + 1) == Some(count);
        (0..sealed.len()).take_while(goes).map(|number| sealed[number].bytes).sum()
    }

    /// The carrier has ended. `weight` is what it would have had to carry, if that was too much.
    pub(super) fn carried_forward(&mut self, weight: Option<u64>) {
        self.is_carrying = false;
        let left = self.outbox.needed_in_oldest_generation();
        if self.too_heavy.is_some_and(|known| left.is_some_and(|left| (1..known.count).contains(&left))) {
            // It went well, and there is more.
            self.carry_again = None;
        }
        match (&mut self.too_heavy, weight) {
            (Some(known), Some(weight)) => known.weight = weight,
            _ => self.too_heavy = None,
        }
    }

    /// The generation that is being written can't be dropped. Where almost nothing in the whole store is needed any more, a new one is
    /// begun, so that it can.
    fn roll_to_free(&mut self) {
        let Some(log) = self.log.as_ref() else { return };
        let generations = log.generations();
        let [newest] = generations.as_slice() else { return };
        let is_worth_it = newest.bytes >= self.sizes.worth_rolling() && newest.first < log.next_seq();
        let needed: u64 = self.outbox.connections().values().map(|connection| connection.totals.pending + connection.totals.dead).sum();
        if is_worth_it && needed <= CARRY_AT_ONCE && !self.is_carrying {
            self.begin_generation();
        }
    }

    /// Reads the stragglers on a thread of its own, so that commits go on, and appends copies of them, if these have at most `limit` bytes.
    fn start_carrying(&mut self, limit: u64) {
        let stragglers: Vec<Straggler> = self.outbox.stragglers().take(CARRY_AT_ONCE as usize).collect();
        let reader = Arc::clone(&self.reader);
        let sought = |key: &LaneKey| stragglers.iter().find(|straggler| straggler.known.is_none() && straggler.lane == *key);
        let anchor = |key: &LaneKey, lane: &Lane| lane.anchor_for(sought(key)?.send);
        let anchors: BTreeMap<LaneKey, Option<Seq>> = self.outbox.lanes().map(|(key, lane)| (key.clone(), anchor(&key, lane))).collect();
        let Some(commands) = self.own.upgrade() else { return };
        let (from, to) = (self.outbox.oldest_generation().unwrap_or(Seq::FIRST), self.outbox.next());
        let carry = move || {
            let mut ended = CarrierEnded { commands: &commands, weight: None };
            // Of what is found by counting nothing has been told: it was never refused.
            let ids = stragglers.iter().filter_map(|straggler| Some(straggler.known?.0)).collect();
            let histories = history::tell(reader.as_ref(), &ids, from, to).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is carried forward goes without its history");
                BTreeMap::new()
            });
            let mut weight = 0;
            let weighed = visit_stragglers(reader.as_ref(), &stragglers, &anchors, &histories, &mut |carried| {
                weight += size_of_event(&Event::Carried(Box::new(carried))) as u64;
                weight <= limit
            });
            let mut carrier = Carrier { commands: &commands, events: Vec::new(), bytes: 0 };
            let carried = match weighed {
                Ok(()) if weight <= limit => {
                    visit_stragglers(reader.as_ref(), &stragglers, &anchors, &histories, &mut |carried| carrier.carry(carried))
                }
                other => other,
            };
            match carried {
                Ok(()) => {
                    carrier.append();
                }
                Err(error) => tracing::warn!(%error, "stragglers could not be carried forward; their generation stays"),
            };
            ended.weight = (weight > limit).then_some(weight);
        };
        self.is_carrying = std::thread::Builder::new().name("carrier".into()).spawn(carry).is_ok();
    }
}

/// The time of the newest event in the oldest generation, which was `said` by the clock. What stands behind it came later, whatever the clock said by
/// then: one that was ahead for a while must not hold up retention until that time has come. The generation that is written says nothing yet: its few
/// events may come from a clock that is still to be set.
fn newest_at_most(said: Millis, generations: &[Generation]) -> Millis {
    let sealed = &generations[..generations.len() - 1];
    sealed.iter().filter_map(|generation| generation.newest).min().unwrap_or(said)
}

/// What `part` of `whole` deliveries may weigh, if all of them may weigh so many bytes.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(bytes)
}

/// Says at the end of the carrier that it has ended, however it does: nothing is carried as long as the committer takes one to be under way.
struct CarrierEnded<'a> {
    commands: &'a mpsc::Sender<Command>,
    weight: Option<u64>,
}

impl Drop for CarrierEnded<'_> {
    fn drop(&mut self) {
        // Without a committer there is nobody to tell.
        let _ = self.commands.blocking_send(Command::CarriedForward { weight: self.weight });
    }
}

/// Appends what is carried, a piece at a time.
struct Carrier<'a> {
    commands: &'a mpsc::Sender<Command>,
    events: Vec<Event>,
    bytes: usize,
}

impl Carrier<'_> {
    /// False if there is nobody to append to any more.
    fn carry(&mut self, carried: Carried) -> bool {
        let event = Event::Carried(Box::new(carried));
        self.bytes += size_of_event(&event);
        self.events.push(event);
        self.bytes < PIECE_BYTES || self.append()
    }

    fn append(&mut self) -> bool {
        let (events, bytes) = (std::mem::take(&mut self.events), std::mem::take(&mut self.bytes));
        if events.is_empty() {
            return true;
        }
        let (reply, answer) = oneshot::channel();
        let append = Append { events, bytes, is_accept: false, reply, place: None, handed_in: Instant::now(), claim: None };
        // One piece at a time: what waits for the disk stays bounded.
        let is_sent = self.commands.blocking_send(Command::Append(append)).is_ok();
        let is_done = match answer.blocking_recv() {
            Ok(Ok(_)) => is_sent,
            // Nobody is there any more: it is done after the next start.
            Ok(Err(CommitError::Stopped)) | Err(_) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "what is left in the oldest generation could not be carried forward; the generation stays");
                false
            }
        };
        failpoint::reach(Point::Carried);
        is_done
    }
}

/// Finds what is to be carried, one by one, until `visit` says no: looks up what is held apart, and reads the sends that are found by
/// counting.
fn visit_stragglers(
    reader: &dyn LogReader,
    stragglers: &[Straggler],
    anchors: &BTreeMap<LaneKey, Option<Seq>>,
    histories: &BTreeMap<Seq, Vec<String>>,
    visit: &mut dyn FnMut(Carried) -> bool,
) -> Result<(), ReadError> {
    let mut wanted: BTreeMap<&LaneKey, Vec<SendNo>> = BTreeMap::new();
    for straggler in stragglers {
        match straggler.known {
            Some((id, located)) => {
                let page = reader.page(located)?.ok_or(ReadError::Gone(located))?;
                let (accepted, history) = match page.get(located) {
                    Some(Event::Accepted(accepted)) => (accepted.as_ref().clone(), Vec::new()),
                    Some(Event::Carried(carried)) => (carried.accepted.clone(), carried.history.clone()),
                    _ => return Err(ReadError::Damaged { seq: located, what: "a delivery should be here".into() }),
                };
                let history = history::join(history, histories.get(&id));
                if !visit(Carried { id, send: straggler.send, accepted, history }) {
                    return Ok(());
                }
            }
            None => wanted.entry(&straggler.lane).or_default().push(straggler.send),
        }
    }
    for (lane, mut sends) in wanted {
        sends.sort_unstable();
        let mut at = anchors.get(lane).copied().flatten().unwrap_or(Seq::FIRST);
        let mut sends = sends.into_iter().peekable();
        while let Some(wanted) = sends.peek() {
            let page = reader.page(at)?.ok_or(ReadError::Damaged { seq: at, what: format!("send {wanted} of lane {lane} is missing") })?;
            for (send, seq, accepted) in sends_of(&page, lane) {
                if sends.next_if_eq(&send).is_some() {
                    let carried = Carried { id: seq, send, accepted: accepted.clone(), history: Vec::new() };
                    if !visit(carried) {
                        return Ok(());
                    }
                }
            }
            at = page.last().next();
        }
    }
    Ok(())
}

/// The accepted deliveries of one lane in a page, with their send numbers and positions.
fn sends_of<'a>(page: &'a Page, lane: &'a LaneKey) -> impl Iterator<Item = (SendNo, Seq, &'a Accepted)> {
    let mut next = page.sends.iter().find(|(key, _)| key == lane).map(|(_, send)| *send);
    page.events.iter().enumerate().filter_map(move |(offset, event)| {
        let send = next?;
        match event {
            Event::Accepted(accepted) if accepted.lane == *lane => {
                next = Some(send.next());
                Some((send, Seq(page.first.0 + offset as u64), accepted.as_ref()))
            }
            Event::Resent { delivery, .. } if delivery.lane == *lane => {
                next = Some(send.next());
                None
            }
            _ => None,
        }
    })
}
