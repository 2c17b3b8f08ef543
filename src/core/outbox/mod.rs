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

mod backlog;
mod connection;
mod error;
mod generations;
mod lane;
mod owners;
mod publishers;
mod replays;
mod requests;
pub mod salvage;
mod take_back;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

pub use backlog::{Apart, Backlog, WhyApart};
pub use connection::{Connection, LaneSet, Totals};
pub use error::FoldError;
use generations::GenerationMark;
pub use generations::Straggler;
pub use lane::{Dead, Lane, Moved, Waiting};
pub use owners::{Member, Owner, Owners};
use publishers::Publishers;
pub use publishers::{PublishKey, PublisherSession, RECENT_PER_CONNECTION, RecentPublishes};
pub use replays::{ENDED_KEPT, Job, JobEnd, Jobs, REPLAY_PROPERTY, job_name, job_named};
use requests::RequestWindow;
pub use requests::{DEDUPE_WINDOW_KEYS, DEDUPE_WINDOW_MS, Request};

use super::event::{Event, LanePurpose, Proof};
use super::ranges::Ranges;
use super::types::{ConnectionName, InstanceId, LaneKey, Millis, SendNo, Seq};

/// One event makes so many lanes at most: many times what a connection may be given.
const MOST_LANES: u32 = 4_096;

/// The projection of the whole log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outbox {
    /// The position after the last event folded.
    next: Seq,
    connections: BTreeMap<ConnectionName, Connection>,
    generations: VecDeque<GenerationMark>,
    requests: RequestWindow,
    replays: BTreeMap<u64, Replay>,
    /// Listener: its publishers' sessions, and what they have published lately.
    publishers: Publishers,
    /// Replay jobs in full. Stands behind everything else in a checkpoint, where there are any.
    #[serde(skip)]
    jobs: Jobs,
    /// Who owns which lane, where the log is shared. Stands behind the jobs in a checkpoint, where there is anything.
    #[serde(skip)]
    owners: Owners,
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

/// As a lane's endpoint: it had a session, which is another's now. No server is called so.
const LEFT_BEHIND: &str = "(left behind)";

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

    /// The request with this key, if it was accepted within the window before `at`.
    pub fn request(&self, key: u128, at: Millis) -> Option<&Request> {
        self.requests.known_at(key, at)
    }

    /// Replay jobs under way.
    pub fn replays(&self) -> &BTreeMap<u64, Replay> {
        &self.replays
    }

    /// Replay jobs, those that have ended a while ago included.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The same outbox with these replay jobs, which a checkpoint holds beside it.
    pub fn with_jobs(self, jobs: Jobs) -> Outbox {
        Outbox { jobs, ..self }
    }

    /// Who owns which lane, where the log is shared.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The same outbox with these owners, which a checkpoint holds beside it.
    pub fn with_owners(self, owners: Owners) -> Outbox {
        Outbox { owners, ..self }
    }

    /// Sessions of the listener's publishers that outlive their connections, by their keys.
    pub fn publisher_sessions(&self) -> &BTreeMap<String, PublisherSession> {
        &self.publishers.sessions
    }

    /// What the listener's publishers have published lately.
    pub fn recent_publishes(&self) -> &RecentPublishes {
        &self.publishers.recent
    }

    /// Folds one event, which stands at [`Outbox::next`].
    ///
    /// # Errors
    /// If the event does not fit what came before; the outbox is as it was then.
    pub fn apply(&mut self, event: &Event) -> Result<Seq, FoldError> {
        self.check(event)?;
        let seq = self.next;
        self.next = seq.next();
        self.note_job(seq, event);
        match event {
            Event::Accepted(accepted) => {
                self.requests.note(seq, accepted);
                self.publishers.note(seq, accepted);
                let (lane, totals) = self.lane_mut(&accepted.lane).expect("checked: the lane exists");
                lane.accept(seq, accepted.at);
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
                let located = lane.place_of(delivery);
                lane.settle(&Ranges::one(delivery.send.0));
                let waiting = Waiting { id: delivery.id, located, attempts: *attempts, retry_at: *retry_at, sent_through: *sent_through };
                lane.waiting.insert(delivery.send, waiting);
            }
            Event::Resent { delivery, .. } => {
                let (lane, _) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                let located = lane.place_of(delivery);
                let (attempts, sent_through) = match lane.waiting.remove(&delivery.send) {
                    Some(waiting) => (waiting.attempts, waiting.sent_through),
                    None => {
                        let attempts = lane.moved.get(&delivery.send).map_or(0, |moved| moved.attempts);
                        lane.settle(&Ranges::one(delivery.send.0));
                        (attempts, delivery.send)
                    }
                };
                let send = lane.take_send();
                let moved = Moved { id: delivery.id, located, attempts, is_resent: true, sent_through };
                lane.moved.insert(send, moved);
            }
            Event::DeadLettered { delivery, at, .. } => {
                let (lane, totals) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                let located = lane.place_of(delivery);
                if lane.waiting.remove(&delivery.send).is_none() {
                    lane.settle(&Ranges::one(delivery.send.0));
                }
                lane.dead.insert(delivery.send, Dead { id: delivery.id, located, at: *at });
                totals.pending -= 1;
                totals.dead += 1;
            }
            Event::Requeued { delivery, at, .. } => {
                let (lane, totals) = self.lane_mut(&delivery.lane).expect("checked: the lane exists");
                let located = lane.place_of(delivery);
                lane.dead.remove(&delivery.send);
                let waiting = Waiting {
                    id: delivery.id,
                    located,
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
                // What was in flight in it stays so, until the lane has given the session up and says in its `SessionOpened` what is sent again.
                for lane in self.connections.values_mut().flat_map(|connection| connection.lanes.values_mut()) {
                    lane.epoch += 1;
                    if !lane.endpoint.is_empty() {
                        LEFT_BEHIND.clone_into(&mut lane.endpoint);
                    }
                }
            }
            Event::Received { client, packet_id, at } => self.publishers.received(seq, client, *packet_id, *at),
            Event::ReleasedIn { client, packet_id, at } => self.publishers.released(client, *packet_id, *at),
            Event::Audit { .. } => {}
            Event::InstanceJoined { .. } | Event::InstanceLeft { .. } | Event::LaneTaken { .. } | Event::LaneLeft { .. } => {
                self.owners.fold(seq, event);
            }
            // `next` is behind the event already.
            Event::GenerationBegun { .. } => self.begin_generation(),
            Event::GenerationDropped { before, .. } => {
                while self.oldest_generation().is_some_and(|first| first < *before) {
                    self.drop_oldest_generation();
                }
            }
        }
        Ok(seq)
    }

    fn note_job(&mut self, seq: Seq, event: &Event) {
        if self.jobs.is_empty() && !matches!(event, Event::ReplayStarted { .. }) {
            return;
        }
        let send = match event {
            Event::Accepted(accepted) => Some(self.next_send(&accepted.lane)),
            Event::Resent { delivery, .. } => Some(self.next_send(&delivery.lane)),
            _ => None,
        };
        self.jobs.note(seq, event, send);
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
        let ranges = |lane: &LaneKey, sends: &Ranges| sends.check().map_err(|range| FoldError::NoRange { lane: lane.clone(), range });
        match event {
            Event::Accepted(accepted) => lane_of(&accepted.lane).map(|_| ()),
            Event::Carried(carried) => lane_of(&carried.accepted.lane).map(|_| ()),
            Event::SessionOpened { lane, repeated, .. } => lane_of(lane).and_then(|_| ranges(lane, repeated)),
            Event::Released { lane, sends } => pending(lane, &mut sends.iter().map(|send| send.0)),
            Event::Delivered { lane, sends, .. } | Event::Expired { lane, sends, .. } => {
                ranges(lane, sends)?;
                pending(lane, &mut sends.iter())
            }
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
                ranges(key, sends)?;
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
                if *count > MOST_LANES || first.checked_add(*count).is_none() {
                    return Err(FoldError::TooManyLanes { connection: connection.clone(), first: *first, count: *count });
                }
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
            | Event::GenerationBegun { .. }
            | Event::Audit { .. } => Ok(()),
            Event::GenerationDropped { before, .. } => {
                let number = self.generations.iter().position(|mark| mark.first == *before);
                let number = number.ok_or(FoldError::NoSuchGeneration(*before))?;
                match self.needed_before_generation(number).filter(|_| number > 0).unwrap_or(0) {
                    0 => Ok(()),
                    count => Err(FoldError::StillNeeded { before: *before, count }),
                }
            }
            Event::LaneTaken { lane, .. } => lane_of(lane).and_then(|_| self.owners.check(event)),
            Event::InstanceJoined { .. } | Event::InstanceLeft { .. } | Event::LaneLeft { .. } => self.owners.check(event),
        }
    }

    /// Whether `instance` may say this, on a shared log: see [`owners`](Owners). Beside [`Outbox::check`], which asks whether it fits.
    ///
    /// # Errors
    /// Says whose it would be.
    pub fn check_from(&self, instance: InstanceId, event: &Event) -> Result<(), FoldError> {
        self.owners.check_from(instance, event)
    }

    /// Whether new deliveries are bound to the lane: it is one of the newest set of its purpose.
    pub fn takes_new(&self, key: &LaneKey) -> bool {
        let Some(connection) = self.connections.get(&key.connection) else { return false };
        let is_in = |set: LaneSet| (set.first..set.first + set.count).contains(&key.lane);
        [LanePurpose::Fresh, LanePurpose::Replay].into_iter().filter_map(|purpose| connection.newest_set(purpose)).any(is_in)
    }

    /// Every lane.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneKey, &Lane)> {
        self.connections.iter().flat_map(|(name, connection)| {
            connection.lanes.iter().map(|(number, lane)| (LaneKey { connection: name.clone(), lane: *number }, lane))
        })
    }
}
