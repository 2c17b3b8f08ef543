//! What is on the way: sent and not done, or done and not durable.
//!
//! Each send asks for the sums of all that, and each wait for what is oldest; with a full window there are some hundred of them, and an acknowledgement that comes
//! alone must not cost a look at every one. So the sums are kept, and every change goes through here.

use super::packet::Delivery;
use super::{End, Finishing, InFlight, Send};
use crate::core::keyed::Keyed;
use crate::core::types::{Millis, Qos, SendNo};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Way {
    in_flight: Keyed<SendNo, InFlight>,
    finishing: Keyed<SendNo, Finishing>,
    sums: Sums,
    /// Nothing that the broker has to answer was sent before, if anything was sent.
    oldest: Millis,
}

/// Of all that is on the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// How many are in flight at each QoS.
    at_qos: [usize; 3],
    /// So many wait for nothing but a PUBACK.
    pub(super) at_puback: usize,
    /// All that is in flight, in bytes.
    pub(super) bytes: usize,
    /// Sends that a restart would not find as released or done: how many, and of how many bytes.
    pub(super) undurable: usize,
    pub(super) undurable_bytes: usize,
    /// Refusals that are not durable.
    pub(super) refusing: usize,
    /// What has expired, which is not durable either.
    pub(super) expiring: usize,
}

impl Sums {
    /// So many take a place in the window.
    pub(super) fn in_window(&self) -> usize {
        self.at_qos[1] + self.at_qos[2]
    }

    fn of_sent(known: &InFlight) -> Sums {
        let size = known.delivery.size;
        let is_undurable = !matches!(known.state, Send::Releasable | Send::Releasing);
        let mut at_qos = [0; 3];
        at_qos[usize::from(known.qos.level())] = 1;
        Sums {
            at_qos,
            at_puback: usize::from(known.qos == Qos::AtLeastOnce && known.state == Send::Sent),
            bytes: size,
            undurable: usize::from(is_undurable),
            undurable_bytes: if is_undurable { size } else { 0 },
            ..Sums::default()
        }
    }

    fn of_finishing(known: &Finishing) -> Sums {
        let is_undurable = known.end != End::DoneReleased;
        Sums {
            refusing: usize::from(known.end == End::Refused),
            expiring: usize::from(known.end == End::Expired),
            undurable: usize::from(is_undurable),
            undurable_bytes: if is_undurable { known.size } else { 0 },
            ..Sums::default()
        }
    }

    fn combine(self, other: Sums, each: fn(usize, usize) -> usize) -> Sums {
        Sums {
            at_qos: std::array::from_fn(|level| each(self.at_qos[level], other.at_qos[level])),
            at_puback: each(self.at_puback, other.at_puback),
            bytes: each(self.bytes, other.bytes),
            undurable: each(self.undurable, other.undurable),
            undurable_bytes: each(self.undurable_bytes, other.undurable_bytes),
            refusing: each(self.refusing, other.refusing),
            expiring: each(self.expiring, other.expiring),
        }
    }

    fn add(&mut self, other: Sums) {
        *self = self.combine(other, |one, other| one + other);
    }

    fn take(&mut self, other: Sums) {
        *self = self.combine(other, |one, other| one - other);
    }
}

impl Way {
    pub(super) fn insert(&mut self, known: InFlight) {
        self.sums.add(Sums::of_sent(&known));
        // Time goes on: what is sent now is never the oldest, unless it is alone.
        if self.in_flight.is_empty() {
            self.oldest = known.at;
        }
        if let Some(before) = self.in_flight.insert(known.delivery.send, known) {
            self.sums.take(Sums::of_sent(&before));
        }
    }

    pub(super) fn remove(&mut self, send: SendNo) -> Option<InFlight> {
        let known = self.in_flight.remove(&send)?;
        self.sums.take(Sums::of_sent(&known));
        Some(known)
    }

    /// Everything in flight, in the order of the sends.
    pub(super) fn take_all(&mut self) -> Vec<InFlight> {
        let mut all: Vec<InFlight> = std::mem::take(&mut self.in_flight).into_values().collect();
        all.iter().for_each(|known| self.sums.take(Sums::of_sent(known)));
        all.sort_by_key(|known| known.delivery.send);
        all
    }

    /// Does something to what is in flight under this number, if there is something.
    pub(super) fn change(&mut self, send: SendNo, change: impl FnOnce(&mut InFlight)) {
        if let Some(known) = self.in_flight.get_mut(&send) {
            self.sums.take(Sums::of_sent(known));
            change(known);
            self.sums.add(Sums::of_sent(known));
        }
    }

    /// Does something to all that is in flight, in no order.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut InFlight)) {
        for known in self.in_flight.values_mut() {
            self.sums.take(Sums::of_sent(known));
            change(known);
            self.sums.add(Sums::of_sent(known));
        }
    }

    pub(super) fn get(&self, send: SendNo) -> Option<&InFlight> {
        self.in_flight.get(&send)
    }

    pub(super) fn contains(&self, send: SendNo) -> bool {
        self.in_flight.contains_key(&send)
    }

    /// What is in flight, in no order.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &InFlight> {
        self.in_flight.values()
    }

    /// What is in flight, in the order of the sends.
    pub(super) fn in_order(&self) -> Vec<&InFlight> {
        let mut all: Vec<&InFlight> = self.in_flight.values().collect();
        all.sort_by_key(|known| known.delivery.send);
        all
    }

    /// Whether something of the same topic is in flight at another QoS than this. Mostly all is at one, and nothing has to be looked for.
    pub(super) fn has_at_another_qos(&self, delivery: &Delivery, qos: Qos) -> bool {
        let is_mixed = self.in_flight.len() != self.sums.at_qos[usize::from(qos.level())];
        is_mixed && self.in_flight.values().any(|known| known.qos != qos && known.delivery.topic == delivery.topic)
    }

    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// The outcome of a send is known, and not durable.
    pub(super) fn finish(&mut self, send: SendNo, known: Finishing) {
        self.sums.add(Sums::of_finishing(&known));
        if let Some(before) = self.finishing.insert(send, known) {
            self.sums.take(Sums::of_finishing(&before));
        }
    }

    /// The outcome of a send is durable.
    pub(super) fn settle(&mut self, send: SendNo) -> Option<Finishing> {
        let known = self.finishing.remove(&send)?;
        self.sums.take(Sums::of_finishing(&known));
        Some(known)
    }

    pub(super) fn has_finishing(&self) -> bool {
        !self.finishing.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.finishing.is_empty()
    }

    pub(super) fn sums(&self) -> Sums {
        debug_assert_eq!(self.sums, self.counted(), "the sums are those of what is there");
        self.sums
    }

    /// The sums, by looking at everything.
    fn counted(&self) -> Sums {
        let mut sums = Sums::default();
        self.in_flight.values().for_each(|known| sums.add(Sums::of_sent(known)));
        self.finishing.values().for_each(|known| sums.add(Sums::of_finishing(known)));
        sums
    }

    /// When the broker was given what it has owed an answer for longest, or before that.
    pub(super) fn oldest_unanswered_bound(&self) -> Option<Millis> {
        self.has_in_flight().then_some(self.oldest)
    }

    /// When the broker was given what it has owed an answer for longest.
    pub(super) fn oldest_unanswered(&mut self, now: Millis) -> Option<Millis> {
        let oldest = self.in_flight.values().filter(|known| known.is_unanswered()).map(|known| known.at).min();
        self.oldest = oldest.unwrap_or(now);
        oldest
    }
}
