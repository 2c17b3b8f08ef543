//! Requests that can be recognised when they come again: a bounded window.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::core::event::{Accepted, Event, Source};
use crate::core::types::{Millis, Seq};

/// Idempotency keys are remembered for a day: longer than any producer retries.
pub const DEDUPE_WINDOW_MS: u64 = 24 * 60 * 60 * 1_000;

/// So many idempotency keys are remembered at most: about 10 MB of memory.
pub const DEDUPE_WINDOW_KEYS: usize = 100_000;

/// Requests that can be recognised when they come again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct RequestWindow {
    pub(super) known: BTreeMap<u128, Request>,
    /// Oldest first.
    order: VecDeque<u128>,
}

/// A request that was accepted, and where its deliveries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its first delivery.
    pub first: Seq,
    /// Its last delivery.
    pub last: Seq,
    /// Hash of its body.
    pub body: u64,
    /// When it was accepted.
    pub at: Millis,
}

impl Request {
    fn is_within_window(&self, at: Millis) -> bool {
        at.since(self.at) <= DEDUPE_WINDOW_MS
    }
}

impl RequestWindow {
    pub(super) fn note(&mut self, seq: Seq, accepted: &Accepted) {
        let Some(dedupe) = accepted.dedupe.filter(|_| is_recognised(accepted)) else { return };
        match self.known.get_mut(&dedupe.key) {
            Some(known) if known.is_within_window(accepted.at) => {
                known.last = seq;
                return;
            }
            // Another request. Logs that earlier builds have written are folded as before: there such a one was refused, or given the first answer.
            Some(_) => self.forget(dedupe.key),
            None => {}
        }
        while self.oldest().is_some_and(|oldest| !oldest.is_within_window(accepted.at) || self.order.len() >= DEDUPE_WINDOW_KEYS) {
            self.forget_oldest();
        }
        self.known.insert(dedupe.key, Request { first: seq, last: seq, body: dedupe.body, at: accepted.at });
        self.order.push_back(dedupe.key);
    }

    /// The request with this key, if it is within the window at the time `at`.
    ///
    /// Forgetting in order is for the memory alone: it waits for the next new key, and behind one of a clock that was ahead for the time that it said.
    pub(super) fn known_at(&self, key: u128, at: Millis) -> Option<&Request> {
        self.known.get(&key).filter(|known| known.is_within_window(at))
    }

    /// Forgets what is no longer stored, and could not be answered.
    pub(super) fn forget_before(&mut self, first: Seq) {
        while self.oldest().is_some_and(|oldest| oldest.first < first) {
            self.forget_oldest();
        }
    }

    /// Becomes as `confirmed`, which these events have not been noted in.
    pub(super) fn take_back(&mut self, events: &[Event], confirmed: &RequestWindow) {
        let keys = events.iter().filter_map(|event| match event {
            Event::Accepted(accepted) if is_recognised(accepted) => accepted.dedupe.map(|dedupe| dedupe.key),
            _ => None,
        });
        for key in keys {
            let Some(was) = confirmed.known.get(&key) else { continue };
            // It had been forgotten to make room, and came again: its place in the order is another.
            if self.known.get(&key).is_none_or(|known| known.first != was.first) {
                return self.clone_from(confirmed);
            }
            self.known.insert(key, *was);
        }
        while self.order.back().is_some_and(|key| !confirmed.known.contains_key(key)) {
            self.order.pop_back().inspect(|key| _ = self.known.remove(key));
        }
        let forgotten = confirmed.order.len() - self.order.len();
        for key in confirmed.order.range(..forgotten).rev() {
            self.order.push_front(*key);
            self.known.insert(*key, confirmed.known[key]);
        }
    }

    fn oldest(&self) -> Option<&Request> {
        self.known.get(self.order.front()?)
    }

    fn forget(&mut self, key: u128) {
        self.known.remove(&key);
        self.order.retain(|known| *known != key);
    }

    fn forget_oldest(&mut self) {
        if let Some(key) = self.order.pop_front() {
            self.known.remove(&key);
        }
    }
}

/// What came over MQTT is recognised by other means.
fn is_recognised(accepted: &Accepted) -> bool {
    accepted.dedupe.is_some() && accepted.source == Source::Http
}
