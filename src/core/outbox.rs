//! The outbox: `fold(events)`, what is still to be delivered, and the books of every connection.
//!
//! It is a projection and nothing else: the committer folds every event that it appends, recovery folds every event since the last
//! checkpoint, and both must come to the same value. Its memory hardly grows with the backlog: a lane keeps the send numbers
//! that are settled as ranges, and an anchor now and then from which a send can be found again in the log.
//!
//! ```text
//!   one lane, by send number
//!   0 ........ cursor ......................................... next_send
//!   └─ settled ──┘ pending, but for what is in `settled` (ranges)
//!                  of these: `released` (QoS 2, PUBREL may go out) · `moved` (found elsewhere than where it was accepted)
//!   beside it, holding numbers that are spent: `waiting` (for a retry) and `dead` (for an operator)
//! ```
//!
//! The books of a connection balance at every event: created = pending + delivered + dead + expired + discarded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::event::{Accepted, DeliveryRef, Event, LanePurpose, Proof};
use super::ranges::{RangeSet, Ranges};
use super::types::{ConnectionName, LaneKey, Millis, Protocol, SendNo, Seq};

/// A send can be found by reading at most so many sends of its lane from an anchor on. Costs 24 bytes of memory per so many pending sends.
const ANCHOR_EVERY: u64 = 1_024;

/// Idempotency keys are remembered for a day: longer than any producer retries.
pub const DEDUPE_WINDOW_MS: u64 = 24 * 60 * 60 * 1_000;

/// So many idempotency keys are remembered at most: about 10 MB of memory.
pub const DEDUPE_WINDOW_KEYS: usize = 100_000;

/// The projection of the whole log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outbox {
    /// The position after the last event folded.
    next: Seq,
    connections: BTreeMap<ConnectionName, Connection>,
    generations: VecDeque<GenerationMark>,
    requests: RequestWindow,
    replays: BTreeMap<u64, Replay>,
    /// Listener: packet ids that wait for their PUBREL, per client.
    received: BTreeMap<String, BTreeSet<u16>>,
}

/// One connection: its lanes and its books.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connection {
    /// Sets of lanes, oldest first; the last one of a purpose takes new deliveries.
    pub sets: Vec<LaneSet>,
    /// Every lane that ever was and is not empty, and those of the newest sets.
    pub lanes: BTreeMap<u32, Lane>,
    /// The books.
    pub totals: Totals,
}

/// A set of lanes over which deliveries are spread by topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneSet {
    /// The number of its first lane.
    pub first: u32,
    /// How many lanes.
    pub count: u32,
    /// What for.
    pub purpose: LanePurpose,
}

/// The cumulative books of a connection. They outlive restarts and retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Deliveries made from accepted reports.
    pub accepted: u64,
    /// Deliveries made by replays.
    pub replayed: u64,
    /// Done by PUBACK or PUBCOMP.
    pub acknowledged: u64,
    /// Done by flushing (QoS 0).
    pub sent: u64,
    /// Dead letters now.
    pub dead: u64,
    /// Expired.
    pub expired: u64,
    /// Discarded by an operator.
    pub discarded: u64,
    /// Pending now.
    pub pending: u64,
    /// Sends that may have arrived twice, because a broker's session was lost.
    pub possible_duplicates: u64,
}

impl Totals {
    /// Deliveries created.
    pub fn created(&self) -> u64 {
        self.accepted + self.replayed
    }

    /// created = pending + delivered + dead + expired + discarded.
    pub fn balance(&self) -> bool {
        self.created() == self.pending + self.acknowledged + self.sent + self.dead + self.expired + self.discarded
    }
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lane {
    next_send: SendNo,
    /// Every send below is settled.
    cursor: SendNo,
    settled: RangeSet,
    /// Sends whose PUBREC is durable, in the order of the PUBRECs.
    released: Vec<SendNo>,
    waiting: BTreeMap<SendNo, Waiting>,
    dead: BTreeMap<SendNo, Dead>,
    moved: BTreeMap<SendNo, Moved>,
    anchors: VecDeque<Anchor>,
    /// Part of the client id.
    pub epoch: u32,
    /// Server, port and user of the newest session; empty before the first.
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

/// Where a generation begins, lane by lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct GenerationMark {
    first: Seq,
    sends: BTreeMap<LaneKey, SendNo>,
}

/// A replay job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Who asked.
    pub by: String,
    /// The filters, in JSON.
    pub filter: String,
    /// Reports per second, 0 for as fast as it goes.
    pub rate: u32,
    /// Where it was asked for: only what was accepted before is replayed.
    pub started: Seq,
    /// The last position looked at.
    pub through: Seq,
    /// Deliveries created so far.
    pub created: u64,
}

/// Requests that can be recognised when they come again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct RequestWindow {
    known: BTreeMap<u128, Request>,
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

/// Why an event does not fit what came before. Either a fault of Tidings or a damaged log; never folded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The lane was never made.
    #[error("lane {0} does not exist")]
    NoSuchLane(LaneKey),
    /// An outcome for a send that is not pending.
    #[error("send {send} of lane {lane} is not pending")]
    NotPending {
        /// The lane.
        lane: LaneKey,
        /// The send.
        send: SendNo,
    },
    /// A lane number that was used before.
    #[error("lane {0} exists already")]
    LaneExists(LaneKey),
    /// A replay job that is not under way.
    #[error("replay {0} is not under way")]
    NoSuchReplay(u64),
}

impl Outbox {
    /// The outbox of an empty log.
    pub fn new() -> Self {
        let first = GenerationMark { first: Seq::FIRST, sends: BTreeMap::new() };
        Outbox { next: Seq::FIRST, generations: VecDeque::from([first]), ..Outbox::default() }
    }

    /// The position of the next event to fold.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The connections, by name.
    pub fn connections(&self) -> &BTreeMap<ConnectionName, Connection> {
        &self.connections
    }

    /// A lane.
    pub fn lane(&self, key: &LaneKey) -> Option<&Lane> {
        self.connections.get(&key.connection)?.lanes.get(&key.lane)
    }

    fn lane_mut(&mut self, key: &LaneKey) -> Option<(&mut Lane, &mut Totals)> {
        let connection = self.connections.get_mut(&key.connection)?;
        Some((connection.lanes.get_mut(&key.lane)?, &mut connection.totals))
    }

    /// The next send number of a lane; 0 for one that is not there yet.
    pub fn next_send(&self, key: &LaneKey) -> SendNo {
        self.lane(key).map_or(SendNo(0), |lane| lane.next_send)
    }

    /// The request with this key, if it was accepted within the window.
    pub fn request(&self, key: u128) -> Option<&Request> {
        self.requests.known.get(&key)
    }

    /// Replay jobs under way.
    pub fn replays(&self) -> &BTreeMap<u64, Replay> {
        &self.replays
    }

    /// Whether a listener's packet id waits for its PUBREL.
    pub fn is_received(&self, client: &str, packet_id: u16) -> bool {
        self.received.get(client).is_some_and(|ids| ids.contains(&packet_id))
    }

    /// Folds one event, which stands at [`Outbox::next`].
    ///
    /// # Errors
    /// If the event does not fit what came before; the outbox is as it was then.
    pub fn apply(&mut self, event: &Event) -> Result<Seq, FoldError> {
        self.check(event)?;
        let seq = self.next;
        self.next = seq.next();
        match event {
            Event::Accepted(accepted) => {
                self.requests.note(seq, accepted);
                let (lane, totals) = self.lane_mut(&accepted.lane).expect("checked: the lane exists");
                let send = lane.take_send();
                if send.0 % ANCHOR_EVERY == 0 || lane.anchors.is_empty() {
                    lane.anchors.push_back(Anchor { send, seq, at: accepted.at });
                }
                if accepted.replay_of.is_some() {
                    totals.replayed += 1;
                } else {
                    totals.accepted += 1;
                }
                totals.pending += 1;
            }
            Event::Released { lane, sends } => {
                let (lane, _) = self.lane_mut(lane).expect("checked: the lane exists");
                lane.released.extend(sends);
            }
            Event::Delivered { lane, sends, proof, .. } => {
                let (lane, totals) = self.lane_mut(lane).expect("checked: the lane exists");
                let count = lane.settle(sends);
                totals.pending -= count;
                match proof {
                    Proof::Flushed => totals.sent += count,
                    Proof::PubAck | Proof::PubComp | Proof::PubCompNotFound => totals.acknowledged += count,
                }
            }
            Event::Refused { delivery, attempts, retry_at, sent_through, .. } => {
                let (lane, _) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                lane.settle(&Ranges::one(delivery.send.0));
                let waiting = Waiting {
                    id: delivery.id,
                    located: delivery.located,
                    attempts: *attempts,
                    retry_at: *retry_at,
                    sent_through: *sent_through,
                };
                lane.waiting.insert(delivery.send, waiting);
            }
            Event::Resent { delivery, .. } => {
                let (lane, _) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                let (attempts, sent_through) = match lane.waiting.remove(&delivery.send) {
                    Some(waiting) => (waiting.attempts, waiting.sent_through),
                    None => {
                        let attempts = lane.moved.get(&delivery.send).map_or(0, |moved| moved.attempts);
                        lane.settle(&Ranges::one(delivery.send.0));
                        (attempts, delivery.send)
                    }
                };
                let send = lane.take_send();
                let moved = Moved { id: delivery.id, located: delivery.located, attempts, is_resent: true, sent_through };
                lane.moved.insert(send, moved);
            }
            Event::DeadLettered { delivery, at, .. } => {
                let (lane, totals) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                if lane.waiting.remove(&delivery.send).is_none() {
                    lane.settle(&Ranges::one(delivery.send.0));
                }
                lane.dead.insert(delivery.send, Dead { id: delivery.id, located: delivery.located, at: *at });
                totals.pending -= 1;
                totals.dead += 1;
            }
            Event::Requeued { delivery, at, .. } => {
                let (lane, totals) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                lane.dead.remove(&delivery.send);
                let waiting = Waiting {
                    id: delivery.id,
                    located: delivery.located,
                    attempts: 0,
                    retry_at: *at,
                    // What an operator requeues holds up nothing.
                    sent_through: SendNo(u64::MAX),
                };
                lane.waiting.insert(delivery.send, waiting);
                totals.dead -= 1;
                totals.pending += 1;
            }
            Event::Discarded { lane, sends, dead, .. } => {
                let (lane, totals) = self.lane_mut(lane).expect("checked: the lane exists");
                for send in sends.iter().map(SendNo) {
                    if *dead {
                        lane.dead.remove(&send);
                        totals.dead -= 1;
                    } else {
                        if lane.waiting.remove(&send).is_none() {
                            lane.settle(&Ranges::one(send.0));
                        }
                        totals.pending -= 1;
                    }
                    totals.discarded += 1;
                }
            }
            Event::Expired { lane, sends, .. } => {
                let (lane, totals) = self.lane_mut(lane).expect("checked: the lane exists");
                let count = lane.settle(sends);
                totals.pending -= count;
                totals.expired += count;
            }
            Event::Carried(carried) => {
                let (lane, _) = self.lane_mut(&carried.accepted.lane).expect("checked: the lane exists");
                lane.carry(carried.send, carried.id, seq);
            }
            Event::ReplayStarted { job, by, filter, rate, .. } => {
                let replay =
                    Replay { by: by.clone(), filter: filter.clone(), rate: *rate, started: seq, through: Seq::default(), created: 0 };
                self.replays.insert(*job, replay);
            }
            Event::ReplayProgress { job, through, created } => {
                let replay = self.replays.get_mut(job).expect("checked: the job is under way");
                replay.through = *through;
                replay.created = *created;
            }
            Event::ReplayEnded { job, .. } => {
                self.replays.remove(job);
            }
            Event::SessionOpened { lane, epoch, protocol, endpoint, doubt, repeated, .. } => {
                let (lane, totals) = self.lane_mut(lane).expect("checked: the lane exists");
                lane.epoch = *epoch;
                lane.doubt = *doubt;
                lane.protocol = Some(*protocol);
                lane.endpoint.clone_from(endpoint);
                totals.possible_duplicates += repeated.count();
                // The broker's session is new: what it had acknowledged as received is to be published again.
                lane.released.retain(|send| !repeated.iter().any(|again| again == send.0));
            }
            Event::LanesChanged { connection, first, count, purpose, .. } => {
                let connection = self.connections.entry(connection.clone()).or_default();
                connection.sets.push(LaneSet { first: *first, count: *count, purpose: *purpose });
                connection.lanes.extend((*first..first + count).map(|number| (number, Lane::default())));
            }
            Event::EpochBumped { .. } => {
                for lane in self.connections.values_mut().flat_map(|connection| connection.lanes.values_mut()) {
                    lane.epoch += 1;
                    lane.endpoint.clear();
                }
            }
            Event::Received { client, packet_id, .. } => {
                self.received.entry(client.clone()).or_default().insert(*packet_id);
            }
            Event::ReleasedIn { client, packet_id, .. } => {
                if let Some(ids) = self.received.get_mut(client) {
                    ids.remove(packet_id);
                    if ids.is_empty() {
                        self.received.remove(client);
                    }
                }
            }
            Event::Audit { .. } => {}
        }
        Ok(seq)
    }

    /// Whether an event fits what came before.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn check(&self, event: &Event) -> Result<(), FoldError> {
        let lane_of = |key: &LaneKey| self.lane(key).ok_or_else(|| FoldError::NoSuchLane(key.clone()));
        let pending = |key: &LaneKey, sends: &mut dyn Iterator<Item = u64>| {
            let lane = lane_of(key)?;
            for send in sends {
                if !lane.is_pending(SendNo(send)) {
                    return Err(FoldError::NotPending { lane: key.clone(), send: SendNo(send) });
                }
            }
            Ok(())
        };
        let one = |send: SendNo| std::iter::once(send.0);
        match event {
            Event::Accepted(accepted) => lane_of(&accepted.lane).map(|_| ()),
            Event::Carried(carried) => lane_of(&carried.accepted.lane).map(|_| ()),
            Event::SessionOpened { lane, .. } => lane_of(lane).map(|_| ()),
            Event::Released { lane, sends } => pending(lane, &mut sends.iter().map(|send| send.0)),
            Event::Delivered { lane, sends, .. } | Event::Expired { lane, sends, .. } => pending(lane, &mut sends.iter()),
            Event::Refused { delivery, .. } => pending(&delivery.lane, &mut one(delivery.send)),
            Event::Resent { delivery, .. } | Event::DeadLettered { delivery, .. } => {
                if lane_of(&delivery.lane)?.waiting.contains_key(&delivery.send) {
                    return Ok(());
                }
                pending(&delivery.lane, &mut one(delivery.send))
            }
            Event::Requeued { delivery, .. } => match lane_of(&delivery.lane)?.dead.contains_key(&delivery.send) {
                true => Ok(()),
                false => Err(FoldError::NotPending { lane: delivery.lane.clone(), send: delivery.send }),
            },
            Event::Discarded { lane: key, sends, dead, .. } => {
                let lane = lane_of(key)?;
                let there = |send: SendNo| match dead {
                    true => lane.dead.contains_key(&send),
                    false => lane.is_pending(send) || lane.waiting.contains_key(&send),
                };
                match sends.iter().map(SendNo).find(|send| !there(*send)) {
                    Some(send) => Err(FoldError::NotPending { lane: key.clone(), send }),
                    None => Ok(()),
                }
            }
            Event::LanesChanged { connection, first, count, .. } => {
                let taken = |number: &u32| self.connections.get(connection).is_some_and(|known| known.lanes.contains_key(number));
                match (*first..first + count).find(taken) {
                    Some(lane) => Err(FoldError::LaneExists(LaneKey { connection: connection.clone(), lane })),
                    None => Ok(()),
                }
            }
            Event::ReplayProgress { job, .. } | Event::ReplayEnded { job, .. } => match self.replays.contains_key(job) {
                true => Ok(()),
                false => Err(FoldError::NoSuchReplay(*job)),
            },
            Event::ReplayStarted { .. }
            | Event::EpochBumped { .. }
            | Event::Received { .. }
            | Event::ReleasedIn { .. }
            | Event::Audit { .. } => Ok(()),
        }
    }

    /// A generation begins at [`Outbox::next`]. To be called before the checkpoint that opens it is taken.
    pub fn begin_generation(&mut self) {
        let sends = self
            .connections
            .iter()
            .flat_map(|(name, connection)| {
                connection.lanes.iter().map(|(number, lane)| (LaneKey { connection: name.clone(), lane: *number }, lane.next_send))
            })
            .collect();
        self.generations.push_back(GenerationMark { first: self.next, sends });
    }

    /// How many deliveries that are pending or dead are held by the oldest generation, or none if it is the only one.
    pub fn needed_in_oldest_generation(&self) -> Option<u64> {
        let next = self.generations.get(1)?;
        Some(
            self.lanes()
                .map(|(key, lane)| {
                    let end = next.sends.get(&key).copied().unwrap_or_default();
                    lane.plain_pending_below(end) + lane.held_before(next.first).count() as u64
                })
                .sum(),
        )
    }

    /// What of the oldest generation is not done, for carrying: sends that are found by counting, and what is held apart.
    pub fn stragglers(&self) -> Vec<Straggler> {
        let Some(next) = self.generations.get(1) else { return Vec::new() };
        let mut stragglers = Vec::new();
        for (key, lane) in self.lanes() {
            let end = next.sends.get(&key).copied().unwrap_or_default();
            stragglers.extend(lane.plain_pending(end).map(|send| Straggler { lane: key.clone(), send, known: None }));
            let apart = lane.held_before(next.first);
            stragglers.extend(apart.map(|(send, id, located)| Straggler { lane: key.clone(), send, known: Some((id, located)) }));
        }
        stragglers
    }

    /// The oldest generation has been dropped.
    pub fn drop_oldest_generation(&mut self) {
        self.generations.pop_front();
        let Some(oldest) = self.generations.front() else { return };
        for (name, connection) in &mut self.connections {
            for (number, lane) in &mut connection.lanes {
                let key = LaneKey { connection: name.clone(), lane: *number };
                let begin = oldest.sends.get(&key).copied().unwrap_or_default();
                lane.forget_anchors_before(oldest.first, begin);
            }
        }
        self.requests.forget_before(oldest.first);
    }

    /// Every lane.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneKey, &Lane)> {
        self.connections.iter().flat_map(|(name, connection)| {
            connection.lanes.iter().map(|(number, lane)| (LaneKey { connection: name.clone(), lane: *number }, lane))
        })
    }
}

/// A delivery that is not done, in a generation that is to be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Straggler {
    /// Its lane.
    pub lane: LaneKey,
    /// Its last send number.
    pub send: SendNo,
    /// Its id and where it is, unless it is found by counting sends.
    pub known: Option<(Seq, Seq)>,
}

impl Connection {
    /// The set that takes new deliveries of this purpose.
    pub fn newest_set(&self, purpose: LanePurpose) -> Option<LaneSet> {
        self.sets.iter().rev().find(|set| set.purpose == purpose).copied()
    }

    /// The number that the first lane of a further set gets.
    pub fn next_lane(&self) -> u32 {
        self.sets.iter().map(|set| set.first + set.count).max().unwrap_or(0)
    }
}

impl Lane {
    fn take_send(&mut self) -> SendNo {
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
    fn settle(&mut self, sends: &Ranges) -> u64 {
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

    /// What stood before `first` is gone; from there on the lane's sends begin with `begin`.
    fn forget_anchors_before(&mut self, first: Seq, begin: SendNo) {
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

    fn carry(&mut self, send: SendNo, id: Seq, located: Seq) {
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
    fn plain_pending(&self, end: SendNo) -> impl Iterator<Item = SendNo> + '_ {
        (self.cursor.0..end.0).map(SendNo).filter(|send| !self.settled.contains(send.0) && !self.moved.contains_key(send))
    }

    fn plain_pending_below(&self, end: SendNo) -> u64 {
        if end <= self.cursor {
            return 0;
        }
        let moved = self.moved.range(self.cursor..end).count() as u64;
        end.0 - self.cursor.0 - self.settled.count_within(self.cursor.0, end.0 - 1) - moved
    }

    /// What is waiting, dead or moved, and held before `bound`: send number, id, and where it is.
    fn held_before(&self, bound: Seq) -> impl Iterator<Item = (SendNo, Seq, Seq)> + '_ {
        let waiting = self.waiting.iter().map(|(send, waiting)| (*send, waiting.id, waiting.located));
        let dead = self.dead.iter().map(|(send, dead)| (*send, dead.id, dead.located));
        let moved = self.moved.iter().map(|(send, moved)| (*send, moved.id, moved.located));
        waiting.chain(dead).chain(moved).filter(move |(_, _, located)| *located < bound)
    }
}

impl RequestWindow {
    fn note(&mut self, seq: Seq, accepted: &Accepted) {
        let Some(dedupe) = accepted.dedupe else { return };
        if let Some(known) = self.known.get_mut(&dedupe.key) {
            known.last = seq;
            return;
        }
        while self.oldest().is_some_and(|oldest| accepted.at.since(oldest.at) > DEDUPE_WINDOW_MS || self.order.len() >= DEDUPE_WINDOW_KEYS)
        {
            self.forget_oldest();
        }
        self.known.insert(dedupe.key, Request { first: seq, last: seq, body: dedupe.body, at: accepted.at });
        self.order.push_back(dedupe.key);
    }

    /// Forgets what is no longer stored, and could not be answered.
    fn forget_before(&mut self, first: Seq) {
        while self.oldest().is_some_and(|oldest| oldest.first < first) {
            self.forget_oldest();
        }
    }

    fn oldest(&self) -> Option<&Request> {
        self.known.get(self.order.front()?)
    }

    fn forget_oldest(&mut self) {
        if let Some(key) = self.order.pop_front() {
            self.known.remove(&key);
        }
    }
}

impl DeliveryRef {
    /// The reference to a dead letter.
    pub fn to_dead(lane: LaneKey, send: SendNo, dead: &Dead) -> Self {
        DeliveryRef { lane, send, id: dead.id, located: dead.located }
    }
}
