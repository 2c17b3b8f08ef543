//! What is handed to the log, and what follows when it is durable.

use super::link::Link;
use super::packet::{Delivery, Note, Output};
use super::{End, Send, Session};
use crate::core::event::{Event, Proof};
use crate::core::ranges::RangeSet;
use crate::core::types::{Millis, SendNo};

/// Appends under way at once. While one is made durable the next forms, and what comes a little later still finds a place in that: the less a release waits
/// for the commit that it is in, the more go through the same window.
const APPENDS: usize = 4;

/// That deliveries are done waits so long to be recorded at most, in milliseconds, for more of the kind: a commit costs as much for one as for a hundred.
/// It is the next multiple of it by the clock, so that all lanes come at once, and share a commit.
pub(super) const OUTCOMES_EVERY_MS: u64 = 4;

/// Outcomes that are there at `since` are recorded then, at the latest.
pub(super) fn next_recording(since: Millis) -> Millis {
    Millis((since.0 / OUTCOMES_EVERY_MS + 1) * OUTCOMES_EVERY_MS)
}

/// Events to append next.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) released: Vec<SendNo>,
    pub(super) delivered: Vec<(SendNo, Proof)>,
    pub(super) expired: RangeSet,
    /// In order, before the others: what changes numbers.
    pub(super) events: Vec<Event>,
    /// How many of `events` are `Resent`.
    pub(super) resents: usize,
    pub(super) settled: Vec<SendNo>,
    /// Since when there is something.
    since: Option<Millis>,
}

/// What follows when an append is durable.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) number: u64,
    pub(super) released: Vec<SendNo>,
    pub(super) settled: Vec<SendNo>,
    pub(super) resents: usize,
    pub(super) opened: bool,
}

impl Session {
    pub(super) fn append_if_needed(&mut self, now: Millis) {
        if self.record.is_empty() || self.appends.len() >= APPENDS {
            return;
        }
        self.record.since.get_or_insert(now);
        if self.record_due().is_none_or(|due| due <= now) {
            self.append_now(now, false);
        }
    }

    /// Until when what is to be recorded can wait. None if it can't, or there is nothing, or it can't be recorded yet.
    pub(super) fn record_due(&self) -> Option<Millis> {
        let since = self.record.since.filter(|_| !self.record.is_empty() && self.appends.len() < APPENDS)?;
        let is_more_to_come = || self.way.in_flight().any(|in_flight| in_flight.state != Send::InDoubt);
        // At most so many that those which come meanwhile find room in what may be in doubt.
        let are_few = self.record.delivered.len() < self.settings.doubt() as usize / 3;
        let is_in_its_stride = self.is_up() && !self.is_draining && self.moving_to.is_none();
        let can_wait = self.record.is_only_outcomes() && are_few && is_in_its_stride && is_more_to_come();
        can_wait.then(|| next_recording(since))
    }

    /// Hands everything that is to be recorded to the log.
    pub(super) fn append_now(&mut self, now: Millis, opened: bool) {
        let record = std::mem::take(&mut self.record);
        let lane = &self.settings.lane;
        let mut events = record.events;
        if !record.released.is_empty() {
            events.push(Event::Released { lane: lane.clone(), sends: record.released.clone() });
        }
        for proof in [Proof::Flushed, Proof::PubAck, Proof::PubComp, Proof::PubCompNotFound] {
            let sends: RangeSet = record.delivered.iter().filter(|(_, by)| *by == proof).map(|(send, _)| send.0).collect();
            if !sends.is_empty() {
                events.push(Event::Delivered { lane: lane.clone(), sends: sends.to_ranges(), proof, at: now });
            }
        }
        if !record.expired.is_empty() {
            events.push(Event::Expired { lane: lane.clone(), sends: record.expired.to_ranges(), at: now });
        }
        self.append_number += 1;
        let number = self.append_number;
        let effects = Effects { number, released: record.released, settled: record.settled, resents: record.resents, opened };
        self.appends.push_back(effects);
        self.out.push_back(Output::Append(events));
    }

    pub(super) fn on_committed(&mut self, now: Millis, resent: Vec<SendNo>) {
        let Some(effects) = self.appends.pop_front() else { return };
        if let Link::Confirming { up, append, resumed } = self.link
            && append == effects.number
        {
            self.go_on(now, up, resumed);
        }
        debug_assert_eq!(effects.resents, resent.len(), "each Resent has its number");
        for send in resent {
            let Some(delivery) = self.renumbering.pop_front() else { break };
            self.out.push_back(Output::Note(Note::Renumbered { from: delivery.send, to: send }));
            self.queue.push_resent(Delivery { send, is_resent: true, ..delivery });
        }
        if !effects.released.is_empty() {
            self.out.push_back(Output::Note(Note::Releasable { sends: effects.released.clone() }));
        }
        for send in effects.released {
            if self.way.get(send).is_some_and(|in_flight| in_flight.state == Send::Recording) {
                self.way.change(send, |in_flight| in_flight.state = Send::Releasable);
                if self.is_up() {
                    self.release(now, send);
                }
            }
        }
        let mut settled = Vec::new();
        for send in effects.settled {
            let Some(finished) = self.way.settle(send) else { continue };
            if finished.end == End::Refused {
                continue;
            }
            let packet_id = self.packet_id(send);
            if self.ids.get(&packet_id) == Some(&send) {
                self.ids.remove(&packet_id);
            }
            if finished.is_resent {
                self.queue.release_if_free(&finished.topic);
            }
            settled.push(send);
        }
        if !settled.is_empty() {
            self.out.push_back(Output::Note(Note::Settled { sends: settled }));
        }
    }
}

impl Record {
    /// What is put in next has waited since then, unless something has waited longer.
    pub(super) fn waits_since(&mut self, since: Millis) {
        self.since.get_or_insert(since);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.is_only_outcomes() && self.delivered.is_empty()
    }

    /// It says of deliveries that they are done, and nothing that somebody waits for.
    fn is_only_outcomes(&self) -> bool {
        self.released.is_empty() && self.expired.is_empty() && self.events.is_empty()
    }
}
