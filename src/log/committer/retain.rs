//! Retention: generations that are not needed any more are dropped; what is left in them is carried forward first.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::{Append, Command, size_of_event};
use super::{COMMIT_EVENTS, Committer, now};
use crate::core::event::{Accepted, Carried, Event};
use crate::core::outbox::Straggler;
use crate::core::types::{LaneKey, SendNo, Seq};
use crate::log::{LogReader, Page, ReadError};

/// A generation with at most so many deliveries that are not done is emptied by carrying them forward; one with more stays.
const CARRY_AT_MOST: u64 = 4_096;

impl Committer {
    /// Drops the oldest generation when it is past its retention and nothing in it is needed; has stragglers carried forward first.
    pub(super) fn retain(&mut self) {
        let Some(log) = self.log.as_ref() else { return };
        let generations = log.generations();
        let now = now();
        let [oldest, _, ..] = generations.as_slice() else { return };
        if oldest.newest.is_some_and(|newest| now.since(newest) < self.limits.retention_ms) {
            return;
        }
        match self.outbox.needed_in_oldest_generation() {
            None => {}
            Some(0) => {
                let first = oldest.first;
                if self.with_log(|log, _| log.drop_oldest_generation()).is_ok() {
                    self.outbox.drop_oldest_generation();
                    tracing::info!(generation = %first, "a generation past its retention was deleted");
                }
            }
            Some(count) if count <= CARRY_AT_MOST && !self.is_carrying => self.start_carrying(),
            Some(_) => {}
        }
    }

    /// Reads the stragglers on a thread of its own, so that commits go on, and appends copies of them.
    pub(super) fn start_carrying(&mut self) {
        let (stragglers, reader) = (self.outbox.stragglers(), Arc::clone(&self.reader));
        let anchors: BTreeMap<LaneKey, Option<Seq>> =
            self.outbox.lanes().map(|(key, lane)| (key, lane.anchor_for(lane.cursor()))).collect();
        let Some(commands) = self.own.upgrade() else { return };
        let carry = move || {
            match collect_stragglers(reader.as_ref(), &stragglers, &anchors) {
                Ok(carried) => {
                    for events in carried.chunks(COMMIT_EVENTS / 4) {
                        let (reply, _) = oneshot::channel();
                        let events: Vec<Event> = events.to_vec();
                        let bytes = events.iter().map(size_of_event).sum();
                        let append = Append { events, bytes, is_accept: false, reply, place: None };
                        if commands.blocking_send(Command::Append(append)).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "stragglers could not be carried forward; their generation stays"),
            }
            // The committer is gone: nothing to tell.
            let _ = commands.blocking_send(Command::CarriedForward);
        };
        self.is_carrying = std::thread::Builder::new().name("carrier".into()).spawn(carry).is_ok();
    }
}

/// Finds what is to be carried: reads the sends that are found by counting, and looks up the others.
fn collect_stragglers(
    reader: &dyn LogReader,
    stragglers: &[Straggler],
    anchors: &BTreeMap<LaneKey, Option<Seq>>,
) -> Result<Vec<Event>, ReadError> {
    let mut carried = Vec::new();
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
                carried.push(Event::Carried(Box::new(Carried { id, send: straggler.send, accepted, history })));
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
                    carried.push(Event::Carried(Box::new(Carried { id: seq, send, accepted: accepted.clone(), history: Vec::new() })));
                }
            }
            at = page.last().next();
        }
    }
    Ok(carried)
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
