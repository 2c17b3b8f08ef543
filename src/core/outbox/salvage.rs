//! The fold over a log that has holes: as much of the outbox as what is left can say.
//!
//! ```text
//!   Complete ── gap, or an event that does not fit ──▶ Partial ──┐
//!      ▲                                                          │  a checkpoint says the state again
//!      └────────────────────────── checkpoint ◀── Unknown ◀── no checkpoint and not the first event
//! ```
//! * **Complete**: the fold is strict; what does not fit is a fault.
//! * **Partial**: events are missing. Positions stay as they were. Send numbers are counted by the fold, so a lost `Accepted` or `Resent`
//!   would shift all later ones: the pages' indexes say each lane's next number, and outcomes name numbers that must have existed.
//!   What was lost in between exists from then on as sends that are pending and that nothing can be read of.
//! * **Unknown**: nothing is known of what came before. A lane begins with the first number that is named, as if all before were done.

use std::collections::BTreeMap;

use super::{Connection, GenerationMark, Lane, LaneSet, Outbox};
use crate::core::event::{DeliveryRef, Event, LanePurpose};
use crate::core::outbox::lane::Moved;
use crate::core::ranges::{RangeSet, Ranges};
use crate::core::types::{LaneKey, Millis, SendNo, Seq};

/// The name under which a repair writes into the history.
pub const REPAIRED_BY: &str = "tidings fsck --repair";

/// What stands in the place of an event that is lost.
const LOST: &str = "lost by damage to the store";

/// An event for a position whose own one is lost, so that positions stay gap-free and ids what they were.
pub fn placeholder(at: Millis) -> Event {
    Event::Audit { who: REPAIRED_BY.into(), what: LOST.into(), at }
}

/// Whether an event only stands in the place of one that was lost.
pub fn is_placeholder(event: &Event) -> bool {
    matches!(event, Event::Audit { who, what, .. } if who == REPAIRED_BY && what == LOST)
}

/// How much the fold knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// Every event since a known state.
    Complete,
    /// Events are missing since then.
    Partial,
    /// There was no known state.
    Unknown,
}

/// An outbox that is folded over what is left.
#[derive(Debug, Clone)]
pub struct Salvage {
    outbox: Outbox,
    certainty: Certainty,
    lost_sends: u64,
}

impl Salvage {
    /// Begins at the first event of all.
    pub fn from_the_first() -> Salvage {
        Salvage { outbox: Outbox::new(), certainty: Certainty::Complete, lost_sends: 0 }
    }

    /// Begins at `next`, and knows nothing of what came before.
    pub fn unknown(next: Seq) -> Salvage {
        let mark = GenerationMark { first: next, sends: BTreeMap::new() };
        let outbox = Outbox { next, generations: [mark].into(), ..Outbox::default() };
        Salvage { outbox, certainty: Certainty::Unknown, lost_sends: 0 }
    }

    /// What is known.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// What is known, to keep.
    pub fn into_outbox(self) -> Outbox {
        self.outbox
    }

    /// How much that is.
    pub fn certainty(&self) -> Certainty {
        self.certainty
    }

    /// Sends that must have existed and of which nothing is known, so far.
    pub fn lost_sends(&self) -> u64 {
        self.lost_sends
    }

    /// The events before `next` that have not been folded are lost.
    pub fn gap(&mut self, next: Seq) {
        if next > self.outbox.next {
            self.outbox.next = next;
            self.weaken();
        }
    }

    /// What the fold knows is not to be held against the next checkpoint.
    pub fn doubt(&mut self) {
        self.weaken();
    }

    fn weaken(&mut self) {
        if self.certainty == Certainty::Complete {
            self.certainty = Certainty::Partial;
        }
    }

    /// A generation begins with the next event.
    pub fn begin_generation(&mut self) {
        if self.outbox.generations.back().is_none_or(|mark| mark.first < self.outbox.next) {
            self.outbox.begin_generation();
        }
    }

    /// A checkpoint says the state before the next event: it is taken over. Returns what the fold says otherwise, if it was complete.
    pub fn checkpoint(&mut self, said: Outbox) -> Option<String> {
        let differs = (self.certainty == Certainty::Complete).then(|| self.outbox.difference(&said)).flatten();
        self.outbox = said;
        self.certainty = Certainty::Complete;
        differs
    }

    /// A page begins, whose index names these next send numbers.
    ///
    /// # Errors
    /// What of the index contradicts a fold that is complete.
    pub fn page(&mut self, sends: &[(LaneKey, SendNo)]) -> Result<(), String> {
        let mut wrong = None;
        for (lane, said) in sends {
            let counted = self.outbox.next_send(lane);
            if self.certainty == Certainty::Complete && counted != *said {
                wrong.get_or_insert(format!(
                    "its index says that the next send of lane {lane} is {said}, and by the events before it is {counted}"
                ));
                self.weaken();
            }
            if counted < *said {
                self.exist(lane, *said);
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    /// Folds the next event, or as much of it as fits.
    ///
    /// # Errors
    /// Why an event does not fit a fold that is complete. Its position is counted; nothing else of it.
    pub fn event(&mut self, event: &Event) -> Result<(), String> {
        if is_placeholder(event) {
            self.weaken();
        }
        if self.certainty != Certainty::Complete {
            self.make_room_for(event);
        }
        match self.outbox.apply(event) {
            Ok(_) => Ok(()),
            Err(error) => {
                let was_complete = self.certainty == Certainty::Complete;
                let rest = if was_complete { None } else { self.what_fits(event) };
                // What is made of parts that were checked fits.
                let folded = rest.is_some_and(|event| self.outbox.apply(&event).is_ok());
                if !folded {
                    self.outbox.next = self.outbox.next.next();
                }
                self.weaken();
                if was_complete { Err(error.to_string()) } else { Ok(()) }
            }
        }
    }

    /// What the event names has existed, whatever else is known of it.
    fn make_room_for(&mut self, event: &Event) {
        match event {
            Event::Accepted(accepted) => self.exist(&accepted.lane, SendNo(0)),
            Event::Carried(carried) => {
                let lane = &carried.accepted.lane;
                self.exist(lane, carried.send.next());
                // Carrying and delivering may cross, so what is known to be done stays done.
                if self.certainty == Certainty::Unknown {
                    self.unsettle(lane, carried.send);
                }
            }
            Event::Released { lane, sends } => {
                let end = sends.iter().max().map_or(SendNo(0), |send| send.next());
                self.exist(lane, end);
            }
            Event::Delivered { lane, sends, .. } | Event::Discarded { lane, sends, .. } | Event::Expired { lane, sends, .. } => {
                self.exist(lane, end_of(sends));
            }
            Event::SessionOpened { lane, repeated, .. } => self.exist(lane, end_of(repeated)),
            Event::Refused { delivery, .. }
            | Event::Resent { delivery, .. }
            | Event::DeadLettered { delivery, .. }
            | Event::Requeued { delivery, .. } => self.revive(delivery),
            Event::LanesChanged { .. }
            | Event::ReplayStarted { .. }
            | Event::ReplayProgress { .. }
            | Event::ReplayEnded { .. }
            | Event::EpochBumped { .. }
            | Event::Received { .. }
            | Event::ReleasedIn { .. }
            | Event::Audit { .. }
            // A repaired store is one machine's.
            | Event::InstanceJoined { .. }
            | Event::InstanceLeft { .. }
            | Event::LaneTaken { .. }
            | Event::LaneLeft { .. }
            | Event::GenerationBegun { .. }
            | Event::GenerationDropped { .. } => {}
        }
    }

    /// The lane exists, and so do its sends below `end`.
    fn exist(&mut self, key: &LaneKey, end: SendNo) {
        if self.outbox.lane(key).is_none() {
            self.make_lane(key, end);
        }
        let is_partial = self.certainty == Certainty::Partial;
        let Some((lane, totals)) = self.outbox.lane_mut(key) else { return };
        if end <= lane.next_send {
            return;
        }
        if is_partial {
            let lost = end.0 - lane.next_send.0;
            totals.accepted += lost;
            totals.pending += lost;
            self.lost_sends += lost;
        } else {
            // Nobody knows whether they were ever pending here.
            lane.settle(&Ranges(vec![(lane.next_send.0, end.0 - 1)]));
        }
        lane.next_send = lane.next_send.max(end);
    }

    /// Makes a lane whose beginning is lost, in a set of its own, so that its number is never given again.
    fn make_lane(&mut self, key: &LaneKey, begin: SendNo) {
        // In a fold that misses events the lane was made in one of them, and its sends with it.
        let begin = if self.certainty == Certainty::Unknown { begin } else { SendNo(0) };
        let connection = self.outbox.connections.entry(key.connection.clone()).or_default();
        let lane = connection.lanes.entry(key.lane).or_default();
        (lane.next_send, lane.cursor) = (begin, begin);
        if !connection.is_in_a_set(key.lane) {
            connection.sets.push(LaneSet { first: key.lane, count: 1, purpose: LanePurpose::Fresh });
        }
    }

    /// An event says that this delivery was not done: it is pending, if the fold took it for done or has never heard of it.
    fn revive(&mut self, delivery: &DeliveryRef) {
        self.exist(&delivery.lane, delivery.send.next());
        if self.unsettle(&delivery.lane, delivery.send)
            && let Some((lane, _)) = self.outbox.lane_mut(&delivery.lane)
        {
            let sent_through = delivery.send;
            let moved = Moved { id: delivery.id, located: delivery.located, attempts: 0, is_resent: true, sent_through };
            lane.moved.insert(delivery.send, moved);
        }
    }

    /// Makes a send pending that was taken for done; false if it was not.
    fn unsettle(&mut self, key: &LaneKey, send: SendNo) -> bool {
        let Some((lane, totals)) = self.outbox.lane_mut(key) else { return false };
        if lane.is_pending(send) || lane.waiting.contains_key(&send) || lane.dead.contains_key(&send) {
            return false;
        }
        lane.unsettle(send);
        totals.accepted += 1;
        totals.pending += 1;
        true
    }

    /// The part of an event that fits, once what it names exists.
    fn what_fits(&mut self, event: &Event) -> Option<Event> {
        let pending = |outbox: &Outbox, key: &LaneKey, sends: &Ranges| -> Option<Ranges> {
            let lane = outbox.lane(key)?;
            let left: RangeSet = sends.iter().filter(|send| lane.is_pending(SendNo(*send))).collect();
            (!left.is_empty()).then(|| left.to_ranges())
        };
        match event {
            Event::Released { lane, sends } => {
                let known = self.outbox.lane(lane)?;
                let sends: Vec<SendNo> = sends.iter().copied().filter(|send| known.is_pending(*send)).collect();
                Some(Event::Released { lane: lane.clone(), sends })
            }
            Event::Delivered { lane, sends, proof, at } => {
                let sends = pending(&self.outbox, lane, sends)?;
                Some(Event::Delivered { lane: lane.clone(), sends, proof: *proof, at: *at })
            }
            Event::Expired { lane, sends, at } => {
                let sends = pending(&self.outbox, lane, sends)?;
                Some(Event::Expired { lane: lane.clone(), sends, at: *at })
            }
            Event::Discarded { lane: key, sends, by, reason, at, .. } => {
                // Whether they had become dead letters may be among what is lost.
                let lane = self.outbox.lane(key)?;
                let of = |wanted: &dyn Fn(SendNo) -> bool| -> RangeSet { sends.iter().filter(|send| wanted(SendNo(*send))).collect() };
                let dead = of(&|send| lane.dead.contains_key(&send));
                let alive = of(&|send| lane.is_pending(send) || lane.waiting.contains_key(&send));
                let discarded = |sends: RangeSet, dead| Event::Discarded {
                    lane: key.clone(),
                    sends: sends.to_ranges(),
                    dead,
                    by: by.clone(),
                    reason: reason.clone(),
                    at: *at,
                };
                if !dead.is_empty() && !alive.is_empty() {
                    let position = self.outbox.next;
                    if self.outbox.apply(&discarded(dead, true)).is_ok() {
                        self.outbox.next = position;
                    }
                    return Some(discarded(alive, false));
                }
                if dead.is_empty() { Some(discarded(alive, false)) } else { Some(discarded(dead, true)) }
            }
            // Its `DeadLettered` is lost, so it is still pending, which is what it becomes by this. Or its `Requeued` is lost, and it is dead.
            Event::Resent { delivery, at } => {
                let requeued = Event::Requeued { delivery: delivery.clone(), by: REPAIRED_BY.into(), at: *at };
                let position = self.outbox.next;
                self.outbox.apply(&requeued).ok()?;
                self.outbox.next = position;
                Some(event.clone())
            }
            Event::Refused { delivery, .. } => {
                // It was waiting, and its `Resent` is among what is lost.
                let (lane, _) = self.outbox.lane_mut(&delivery.lane)?;
                let waiting = lane.waiting.remove(&delivery.send)?;
                lane.unsettle(delivery.send);
                let located = waiting.located;
                let moved = Moved { id: waiting.id, located, attempts: 0, is_resent: true, sent_through: delivery.send };
                lane.moved.insert(delivery.send, moved);
                Some(event.clone())
            }
            Event::LanesChanged { connection, first, count, purpose, .. } => {
                let known = self.outbox.connections.entry(connection.clone()).or_default();
                for number in *first..first.saturating_add(*count) {
                    known.lanes.entry(number).or_default();
                }
                known.sets.retain(|set| set.first < *first || set.first >= first.saturating_add(*count));
                known.sets.push(LaneSet { first: *first, count: *count, purpose: *purpose });
                None
            }
            _ => None,
        }
    }
}

fn end_of(sends: &Ranges) -> SendNo {
    SendNo(sends.0.iter().map(|range| range.1).max().map_or(0, |last| last + 1))
}

impl Connection {
    fn is_in_a_set(&self, lane: u32) -> bool {
        self.sets.iter().any(|set| lane >= set.first && lane - set.first < set.count)
    }
}

impl Lane {
    /// Takes back that a send is settled. The cursor goes back to it, and what is between stays settled.
    fn unsettle(&mut self, send: SendNo) {
        if send < self.cursor {
            self.settled.insert_range(send.0, self.cursor.0 - 1);
            self.cursor = send;
        }
        self.settled.remove(send.0);
    }
}

/// What can be compared of two outboxes that were come to in different ways: not where lanes begin to look for a send, nor what is only
/// remembered to recognise requests, both of which depend on when a generation was dropped.
impl Outbox {
    /// The first thing in which `said` differs.
    pub fn difference(&self, said: &Outbox) -> Option<String> {
        if self.next != said.next {
            return Some(format!("the next event is {} by the fold, and {} by the checkpoint", self.next, said.next));
        }
        for name in self.connections.keys().chain(said.connections.keys()) {
            let (Some(folded), Some(known)) = (self.connections.get(name), said.connections.get(name)) else {
                return Some(format!("only one of fold and checkpoint knows the connection {name}"));
            };
            if folded.totals != known.totals {
                return Some(format!("the books of {name} are {:?} by the fold, and {:?} by the checkpoint", folded.totals, known.totals));
            }
            if folded.sets != known.sets || !folded.lanes.keys().eq(known.lanes.keys()) {
                return Some(format!("fold and checkpoint have different lanes of {name}"));
            }
            for (number, lane) in &folded.lanes {
                if let Some(what) = known.lanes.get(number).and_then(|known| lane.difference(known)) {
                    return Some(format!("fold and checkpoint differ in lane {name}/{number}: {what}"));
                }
            }
        }
        // That a generation was dropped is no event.
        let lowest = self.oldest_generation().max(said.oldest_generation());
        let marks = |outbox: &Outbox| -> Vec<Seq> { outbox.marks().filter(|first| Some(*first) >= lowest).collect() };
        if marks(self) != marks(said) {
            return Some("fold and checkpoint have different generations".into());
        }
        if self.replays != said.replays {
            return Some("fold and checkpoint differ in the replays under way".into());
        }
        if self.jobs != said.jobs {
            return Some("fold and checkpoint differ in what the replays have come to".into());
        }
        let is_other = self.publishers.sessions != said.publishers.sessions;
        is_other.then(|| "fold and checkpoint differ in the sessions of the listener's publishers".into())
    }

    /// Where the generations begin that it knows, oldest first.
    pub fn marks(&self) -> impl Iterator<Item = Seq> + '_ {
        self.generations.iter().map(|mark| mark.first)
    }

    /// What does not add up in the books, if anything.
    pub fn imbalance(&self) -> Option<String> {
        self.connections.iter().find_map(|(name, connection)| {
            let totals = &connection.totals;
            let pending: u64 = connection.lanes.values().map(Lane::pending).sum();
            let dead: usize = connection.lanes.values().map(|lane| lane.dead.len()).sum();
            if !totals.balance() {
                return Some(format!("the books of {name} do not balance: {totals:?}"));
            }
            let differs = totals.pending != pending || totals.dead != dead as u64;
            differs.then(|| {
                format!("the books of {name} say {} pending and {} dead, and its lanes {pending} and {dead}", totals.pending, totals.dead)
            })
        })
    }
}

impl Lane {
    fn difference(&self, said: &Lane) -> Option<&'static str> {
        if self.next_send != said.next_send {
            return Some("the next send");
        }
        if (self.cursor, &self.settled) != (said.cursor, &said.settled) {
            return Some("what is settled");
        }
        if self.released != said.released {
            return Some("what is released");
        }
        if self.waiting != said.waiting {
            return Some("what waits for a retry");
        }
        if self.dead != said.dead {
            return Some("the dead letters");
        }
        if self.moved != said.moved {
            return Some("where deliveries are to be found");
        }
        let session = |lane: &Lane| (lane.epoch, lane.endpoint.clone(), lane.protocol, lane.doubt);
        (session(self) != session(said)).then_some("the session")
    }
}
