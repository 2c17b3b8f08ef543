//! One lane: which of its sends are settled, and where the others are to be found.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::core::event::DeliveryRef;
use crate::core::ranges::{RangeSet, Ranges};
use crate::core::types::{LaneKey, Millis, Protocol, SendNo, Seq};

/// A send can be found by reading at most so many sends of its lane from an anchor on. Costs 24 bytes of memory per so many pending sends.
const ANCHOR_EVERY: u64 = 1_024;

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lane {
    pub(super) next_send: SendNo,
    /// Every send below is settled.
    pub(super) cursor: SendNo,
    pub(super) settled: RangeSet,
    /// Sends whose PUBREC is durable, in the order of the PUBRECs.
    pub(super) released: Vec<SendNo>,
    pub(super) waiting: BTreeMap<SendNo, Waiting>,
    pub(super) dead: BTreeMap<SendNo, Dead>,
    pub(super) moved: BTreeMap<SendNo, Moved>,
    anchors: VecDeque<Anchor>,
    /// Part of the client id.
    pub epoch: u32,
    /// Server, port and user of the newest session; empty before the first, and no server's if that was left behind.
    pub endpoint: String,
    /// The protocol of the newest session.
    pub protocol: Option<Protocol>,
    /// So many sends may be on the wire without a durable outcome at once.
    pub doubt: u32,
}

/// A refused delivery that waits for its retry, under its spent number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its id.
    pub id: Seq,
    /// The event that holds it.
    pub located: Seq,
    /// Refusals charged so far.
    pub attempts: u32,
    /// Not before this time is it sent again.
    pub retry_at: Millis,
    /// What of its topic was sent up to this number was in flight when it was refused.
    pub sent_through: SendNo,
}

/// A dead letter, under its last number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// Its id.
    pub id: Seq,
    /// The event that holds it.
    pub located: Seq,
    /// Since when.
    pub at: Millis,
}

/// A pending delivery that is not found by counting sends: it was sent again under a new number, or carried forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Its id.
    pub id: Seq,
    /// The event that holds it.
    pub located: Seq,
    /// Refusals charged so far.
    pub attempts: u32,
    /// It has a new number (after a refusal, a requeue, or waiting behind another), rather than only a new place.
    pub is_resent: bool,
    /// As in [`Waiting::sent_through`], once it is sent again.
    pub sent_through: SendNo,
}

/// Where a send is to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Anchor {
    send: SendNo,
    seq: Seq,
    at: Millis,
}

impl Lane {
    /// Gives the next number to what is accepted at `seq`.
    pub(super) fn accept(&mut self, seq: Seq, at: Millis) {
        let was_empty = self.pending() == 0;
        let send = self.take_send();
        // On an empty lane nothing older is pending: what is then the oldest is known precisely, and an idle lane does not look late.
        if send.0.is_multiple_of(ANCHOR_EVERY) || self.anchors.is_empty() || was_empty {
            self.anchors.push_back(Anchor { send, seq, at });
        }
    }

    pub(super) fn take_send(&mut self) -> SendNo {
        let send = self.next_send;
        self.next_send = send.next();
        send
    }

    /// Whether the send is neither settled nor still to come.
    pub fn is_pending(&self, send: SendNo) -> bool {
        send >= self.cursor && send < self.next_send && !self.settled.contains(send.0)
    }

    /// Whether every send below `end` is settled.
    pub fn is_settled_through(&self, end: SendNo) -> bool {
        self.cursor >= end
    }

    /// The number of the next send.
    pub fn next_send(&self) -> SendNo {
        self.next_send
    }

    /// The lowest send that may be pending; all below are settled.
    pub fn cursor(&self) -> SendNo {
        self.cursor
    }

    /// Settled sends at or above the cursor.
    pub fn settled(&self) -> &RangeSet {
        &self.settled
    }

    /// Sends whose PUBREC is durable and whose completion is not, in the order of the PUBRECs.
    pub fn released(&self) -> &[SendNo] {
        &self.released
    }

    /// Deliveries that wait for a retry.
    pub fn waiting(&self) -> &BTreeMap<SendNo, Waiting> {
        &self.waiting
    }

    /// Dead letters.
    pub fn dead(&self) -> &BTreeMap<SendNo, Dead> {
        &self.dead
    }

    /// Pending deliveries that are held elsewhere than where counting sends finds them.
    pub fn moved(&self) -> &BTreeMap<SendNo, Moved> {
        &self.moved
    }

    /// How many deliveries are pending, those that wait for a retry included.
    pub fn pending(&self) -> u64 {
        self.next_send.0 - self.cursor.0 - self.settled.len() + self.waiting.len() as u64
    }

    /// How many deliveries are pending, but for those that an operator has requeued, which hold nothing up.
    pub fn pending_in_order(&self) -> u64 {
        let free = SendNo(u64::MAX);
        let waiting = self.waiting.values().filter(|waiting| waiting.sent_through == free).count();
        let resent = self.moved.values().filter(|moved| moved.sent_through == free).count();
        self.pending() - (waiting + resent) as u64
    }

    /// A place in the log from which the send is found by reading on.
    pub fn anchor_for(&self, send: SendNo) -> Option<Seq> {
        let after = self.anchors.partition_point(|anchor| anchor.send <= send);
        Some(self.anchors.get(after.saturating_sub(1))?.seq)
    }

    /// When the oldest pending delivery was accepted, at the earliest: within an anchor's distance.
    pub fn oldest_pending_at(&self) -> Option<Millis> {
        if self.pending() == 0 {
            return None;
        }
        let after = self.anchors.partition_point(|anchor| anchor.send <= self.cursor);
        Some(self.anchors.get(after.saturating_sub(1))?.at)
    }

    /// Marks sends as settled, and says how many were not.
    pub(super) fn settle(&mut self, sends: &Ranges) -> u64 {
        let mut count = 0;
        for &(first, last) in &sends.0 {
            count += self.settled.insert_range(first, last);
            if !self.moved.is_empty() {
                let gone: Vec<SendNo> = self.moved.range(SendNo(first)..=SendNo(last)).map(|(send, _)| *send).collect();
                for send in gone {
                    self.moved.remove(&send);
                }
            }
            self.released.retain(|send| send.0 < first || send.0 > last);
        }
        let cursor = self.settled.next_missing(self.cursor.0);
        if cursor > self.cursor.0 {
            self.cursor = SendNo(cursor);
            self.settled.remove_below(cursor);
            while self.anchors.get(1).is_some_and(|anchor| anchor.send <= self.cursor) {
                self.anchors.pop_front();
            }
        }
        count
    }

    /// Where a delivery is held: what the fold knows itself wins over what an event says, because who wrote that may not have heard yet that
    /// it was carried forward.
    pub(super) fn place_of(&self, delivery: &DeliveryRef) -> Seq {
        let waiting = self.waiting.get(&delivery.send).map(|known| known.located);
        let dead = self.dead.get(&delivery.send).map(|known| known.located);
        let moved = self.moved.get(&delivery.send).map(|known| known.located);
        waiting.or(dead).or(moved).unwrap_or(delivery.located)
    }

    /// What stood before `first` is gone; from there on the lane's sends begin with `begin`.
    pub(super) fn forget_anchors_before(&mut self, first: Seq, begin: SendNo) {
        let mut gone = None;
        while self.anchors.front().is_some_and(|anchor| anchor.seq < first) {
            gone = self.anchors.pop_front();
        }
        // Sends between the beginning of the generation and its first own anchor have to be found as well.
        if let Some(gone) = gone
            && begin < self.next_send
        {
            self.anchors.push_front(Anchor { send: begin, seq: first, at: gone.at });
        }
    }

    pub(super) fn carry(&mut self, send: SendNo, id: Seq, located: Seq) {
        if let Some(waiting) = self.waiting.get_mut(&send) {
            waiting.located = located;
        } else if let Some(dead) = self.dead.get_mut(&send) {
            dead.located = located;
        } else if self.is_pending(send) {
            let moved = Moved { id, located, attempts: 0, is_resent: false, sent_through: SendNo(0) };
            self.moved.entry(send).and_modify(|known| known.located = located).or_insert(moved);
        }
    }

    /// Pending sends below `end` that are found by counting.
    pub(super) fn plain_pending(&self, end: SendNo) -> impl Iterator<Item = SendNo> + '_ {
        (self.cursor.0..end.0).map(SendNo).filter(|send| !self.settled.contains(send.0) && !self.moved.contains_key(send))
    }

    /// How many sends below `end` are pending and found by counting.
    pub fn plain_pending_below(&self, end: SendNo) -> u64 {
        if end <= self.cursor {
            return 0;
        }
        let moved = self.moved.range(self.cursor..end).count() as u64;
        end.0 - self.cursor.0 - self.settled.count_within(self.cursor.0, end.0 - 1) - moved
    }

    /// What is waiting, dead or moved, and held before `bound`: send number, id, and where it is.
    pub(super) fn held_before(&self, bound: Seq) -> impl Iterator<Item = (SendNo, Seq, Seq)> + '_ {
        let waiting = self.waiting.iter().map(|(send, waiting)| (*send, waiting.id, waiting.located));
        let dead = self.dead.iter().map(|(send, dead)| (*send, dead.id, dead.located));
        let moved = self.moved.iter().map(|(send, moved)| (*send, moved.id, moved.located));
        waiting.chain(dead).chain(moved).filter(move |(_, _, located)| *located < bound)
    }
}

impl DeliveryRef {
    /// The reference to a dead letter.
    pub fn to_dead(lane: LaneKey, send: SendNo, dead: &Dead) -> Self {
        DeliveryRef { lane, send, id: dead.id, located: dead.located }
    }
}
