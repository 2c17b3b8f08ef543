//! Replay jobs, and what has become of the deliveries that they made.
//!
//! ```text
//!   ReplayStarted ─▶ Accepted ×n, ReplayProgress (one commit) … ─▶ ReplayEnded       the job
//!                       └─ open (by lane and number) ─▶ delivered · expired, discarded · dead ⇄ open
//! ```
//! A delivery belongs to the job that its user property names. What is open is kept as ranges, and a job goes ahead only while its lanes are nearly
//! empty: so it stays small, whatever is replayed. Jobs that have ended are kept for a while, so that asking for one again finds it.
//!
//! All of this stands behind the outbox in a checkpoint, and is left out where there are no jobs: what was written before there were any is read as
//! none.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::core::event::{Accepted, DeliveryRef, Event};
use crate::core::handover::is_move;
use crate::core::ranges::{RangeSet, Ranges};
use crate::core::types::{LaneKey, Millis, SendNo, Seq};

/// So many jobs that have ended are remembered: more than anybody looks through, and about 100 KiB.
pub const ENDED_KEPT: usize = 100;

/// The user property of MQTT 5 that says which job has sent a replay: 16 hexadecimal digits.
pub const REPLAY_PROPERTY: &str = "tidings-replay";

/// A job's id as it is written.
pub fn job_name(job: u64) -> String {
    format!("{job:016x}")
}

/// The job that is written so.
pub fn job_named(text: &str) -> Option<u64> {
    let is_name = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    is_name.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The jobs that are under way, and the last ones that have ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Jobs(BTreeMap<u64, Job>);

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Who asked.
    pub by: String,
    /// What was asked for, in JSON.
    pub filter: String,
    /// Reports per second, 0 for as fast as it goes.
    pub rate: u32,
    /// Where it was asked for: only what was accepted before is replayed.
    pub asked: Seq,
    /// When.
    pub at: Millis,
    /// The last position looked at.
    pub through: Seq,
    /// Deliveries created so far.
    pub created: u64,
    /// Of these, done.
    pub delivered: u64,
    /// Of these, expired or discarded.
    pub given_up: u64,
    /// Of these, dead letters now.
    pub dead: u64,
    /// Those that are pending or dead, by their last numbers.
    open: BTreeMap<LaneKey, RangeSet>,
    /// Originals that were found where they had been carried to: each may stand in the log several times.
    copies: BTreeSet<Seq>,
    /// How it ended, if it has.
    pub end: Option<JobEnd>,
}

/// How a job has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// Who cancelled it, if it was.
    pub cancelled_by: Option<String>,
    /// When.
    pub at: Millis,
    /// The position of the event.
    seq: Seq,
}

impl Job {
    /// How many of its deliveries are pending.
    pub fn pending(&self) -> u64 {
        self.open.values().map(RangeSet::len).sum::<u64>().saturating_sub(self.dead)
    }

    /// The originals that were replayed from where they had been carried to.
    pub fn copied(&self) -> &BTreeSet<Seq> {
        &self.copies
    }
}

impl Jobs {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A job.
    pub fn get(&self, job: u64) -> Option<&Job> {
        self.0.get(&job)
    }

    /// All jobs.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Job)> {
        self.0.iter().map(|(id, job)| (*id, job))
    }

    /// Folds an event that is accepted at `seq`, and if it takes a number takes `send`.
    pub(super) fn note(&mut self, seq: Seq, event: &Event, send: Option<SendNo>) {
        match event {
            Event::ReplayStarted { job, by, filter, rate, at } => {
                let job_begun = Job {
                    by: by.clone(),
                    filter: filter.clone(),
                    rate: *rate,
                    asked: seq,
                    at: *at,
                    through: Seq::default(),
                    created: 0,
                    delivered: 0,
                    given_up: 0,
                    dead: 0,
                    open: BTreeMap::new(),
                    copies: BTreeSet::new(),
                    end: None,
                };
                self.0.insert(*job, job_begun);
            }
            Event::ReplayProgress { job, through, created } => {
                if let Some(job) = self.0.get_mut(job) {
                    (job.through, job.created) = (*through, *created);
                }
            }
            Event::ReplayEnded { job, cancelled_by, at } => {
                if let Some(job) = self.0.get_mut(job) {
                    job.end = Some(JobEnd { cancelled_by: cancelled_by.clone(), at: *at, seq });
                }
                self.forget();
            }
            Event::Accepted(accepted) => self.created(accepted, send),
            Event::Delivered { lane, sends, .. } => self.settle(lane, sends, |job, count| job.delivered += count),
            Event::Expired { lane, sends, .. } => self.settle(lane, sends, |job, count| job.given_up += count),
            Event::Discarded { lane, sends, dead, reason, .. } => {
                // What is moved goes on as the same job's, under another number.
                let is_moved = is_move(reason);
                self.settle(lane, sends, |job, count| {
                    job.dead = job.dead.saturating_sub(if *dead { count } else { 0 });
                    job.given_up += if is_moved { 0 } else { count };
                });
            }
            Event::Resent { delivery, .. } => {
                if let (Some(send), Some(job)) = (send, self.holding(delivery))
                    && let Some(open) = job.open.get_mut(&delivery.lane)
                {
                    open.remove(delivery.send.0);
                    open.insert(send.0);
                }
            }
            Event::DeadLettered { delivery, .. } => {
                if let Some(job) = self.holding(delivery) {
                    job.dead += 1;
                }
            }
            Event::Requeued { delivery, .. } => {
                if let Some(job) = self.holding(delivery) {
                    job.dead = job.dead.saturating_sub(1);
                }
            }
            _ => {}
        }
    }

    fn created(&mut self, accepted: &Accepted, send: Option<SendNo>) {
        let (Some(original), Some(send)) = (accepted.replay_of, send) else { return };
        let named = accepted.properties.user.iter().rev().find(|(name, _)| name == REPLAY_PROPERTY);
        let Some(job) = named.and_then(|(_, job)| self.0.get_mut(&job_named(job)?)) else { return };
        job.open.entry(accepted.lane.clone()).or_default().insert(send.0);
        // Whatever stands in its own place comes after what was looked at before. Of the first piece all are remembered: where it began is not said.
        if original <= job.through || job.through == Seq::default() {
            job.copies.insert(original);
        }
    }

    /// Takes what has ended out of what is open.
    fn settle(&mut self, lane: &LaneKey, sends: &Ranges, book: impl Fn(&mut Job, u64)) {
        for job in self.0.values_mut() {
            let Some(open) = job.open.get_mut(lane) else { continue };
            let count = sends.iter().filter(|send| open.remove(*send)).count() as u64;
            if open.is_empty() {
                job.open.remove(lane);
            }
            if count > 0 {
                book(job, count);
            }
        }
    }

    fn holding(&mut self, delivery: &DeliveryRef) -> Option<&mut Job> {
        self.0.values_mut().find(|job| job.open.get(&delivery.lane).is_some_and(|open| open.contains(delivery.send.0)))
    }

    /// Forgets those that ended first, if there are many.
    fn forget(&mut self) {
        let mut ended: Vec<(Seq, u64)> = self.0.iter().filter_map(|(id, job)| Some((job.end.as_ref()?.seq, *id))).collect();
        ended.sort_unstable();
        for (_, id) in ended.iter().take(ended.len().saturating_sub(ENDED_KEPT)) {
            self.0.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::event::{LanePurpose, Proof};
    use crate::core::outbox::Outbox;
    use crate::core::types::Qos;

    const JOB: u64 = 0xabc;

    fn lane(lane: u32) -> LaneKey {
        LaneKey { connection: "mqtt".into(), lane }
    }

    fn replay(original: u64, job: u64) -> Event {
        let mut accepted = Accepted::plain(lane(0), "t", Qos::ExactlyOnce, Millis(1));
        accepted.replay_of = Some(Seq(original));
        accepted.properties.user = vec![(REPLAY_PROPERTY.to_owned(), job_name(job))];
        Event::Accepted(Arc::new(accepted))
    }

    fn started(job: u64) -> Event {
        Event::ReplayStarted { job, by: "ops".into(), filter: "{}".into(), rate: 0, at: Millis(1) }
    }

    fn outbox(events: &[Event]) -> Outbox {
        let mut outbox = Outbox::new();
        let purpose = LanePurpose::Replay;
        outbox.apply(&Event::LanesChanged { connection: "mqtt".into(), first: 0, count: 2, purpose, at: Millis(0) }).unwrap();
        events.iter().for_each(|event| _ = outbox.apply(event).unwrap());
        outbox
    }

    fn reference(send: u64) -> DeliveryRef {
        DeliveryRef { lane: lane(0), send: SendNo(send), id: Seq(send + 3), located: Seq(send + 3) }
    }

    #[test]
    fn a_job_knows_what_has_become_of_each_of_its_deliveries() {
        let (at, by) = (Millis(2), "ops".to_owned());
        let reason = crate::core::event::DeadReason { code: "refused".into(), broker_code: None, message: String::new() };
        let refused = Event::Refused { delivery: reference(0), code: 0x87, attempts: 1, retry_at: at, sent_through: SendNo(4), at };
        let mut events = vec![started(JOB)];
        events.extend((1..=5).map(|original| replay(original, JOB)));
        events.extend([
            Event::ReplayProgress { job: JOB, through: Seq(7), created: 5 },
            refused,
            Event::Resent { delivery: reference(0), at },
            Event::Delivered { lane: lane(0), sends: Ranges(vec![(1, 1), (5, 5)]), proof: Proof::PubComp, at },
            Event::DeadLettered { delivery: reference(2), reason, attempts: 1, at },
            Event::Expired { lane: lane(0), sends: Ranges::one(3), at },
        ]);
        let numbers = |outbox: &Outbox| {
            let job = outbox.jobs().get(JOB).unwrap();
            (job.created, job.delivered, job.given_up, job.dead, job.pending())
        };
        assert_eq!(numbers(&outbox(&events)), (5, 2, 1, 1, 1));
        events.push(Event::Discarded { lane: lane(0), sends: Ranges::one(2), dead: true, by: by.clone(), reason: "gone".into(), at });
        assert_eq!(numbers(&outbox(&events)), (5, 2, 2, 0, 1));
        events.push(Event::Discarded { lane: lane(0), sends: Ranges::one(4), dead: false, by, reason: "moved to other".into(), at });
        events.push(replay(5, JOB));
        assert_eq!(numbers(&outbox(&events)), (5, 2, 2, 0, 1), "what is moved stays the job's");
    }

    #[test]
    fn an_original_that_is_replayed_from_where_it_was_carried_to_is_remembered() {
        let progress = |through, created| Event::ReplayProgress { job: JOB, through: Seq(through), created };
        let events = [started(JOB), replay(9, JOB), progress(10, 1), replay(12, JOB), replay(7, JOB), progress(20, 3), replay(19, JOB)];
        let outbox = outbox(&events);
        let job = outbox.jobs().get(JOB).unwrap();
        assert_eq!(job.copied().iter().copied().collect::<Vec<_>>(), [Seq(7), Seq(9), Seq(19)]);
    }

    #[test]
    fn the_jobs_that_ended_first_are_forgotten_and_none_that_is_under_way() {
        let mut events = vec![started(1_000)];
        for job in 0..=ENDED_KEPT as u64 {
            events.extend([started(job), Event::ReplayEnded { job, cancelled_by: None, at: Millis(3) }]);
        }
        let outbox = outbox(&events);
        assert!(outbox.jobs().get(0).is_none() && outbox.jobs().get(1).is_some());
        assert!(outbox.jobs().get(1_000).unwrap().end.is_none());
    }

    #[test]
    fn a_job_is_known_by_its_name() {
        assert_eq!(job_named(&job_name(JOB)), Some(JOB));
        for wrong in ["", "abc", "000000000000000G", "000000000000000A", "+000000000000abc"] {
            assert_eq!(job_named(wrong), None, "{wrong:?}");
        }
    }
}
