//! A replay's deliveries: the events of one commit.
//!
//! ```text
//!   Accepted         mqtt/4, a replay of 17      topic, qos, properties, expiry and payload as they were; retain is not
//!   Accepted         mqtt/4, a replay of 25
//!   ReplayProgress   through 30, 2 created       at last: what was created and how far the job is are durable together, or not at all
//! ```
//! What is replayed is accepted anew: its age and its expiry count from now. It never has the retain flag: what a broker retains of a topic is the newest
//! report, and a replay is not.

use std::sync::Arc;

use super::event::{Accepted, Event, Source};
use super::outbox::{REPLAY_PROPERTY, job_name};
use super::types::{LaneKey, Millis, Seq};

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The job.
    pub job: u64,
    /// The last position looked at.
    pub through: Seq,
    /// Deliveries created before these.
    pub created: u64,
    /// Whether nothing more is to come.
    pub is_last: bool,
}

/// Creates these deliveries again, each on its lane.
pub fn events(step: Step, originals: Vec<(Seq, LaneKey, Accepted)>, at: Millis) -> Vec<Event> {
    let Step { job, through, created, is_last } = step;
    let created = created + originals.len() as u64;
    let replays = originals.into_iter().map(|(id, lane, original)| {
        let mut properties = original.properties.clone();
        properties.user.retain(|(name, _)| name != REPLAY_PROPERTY);
        properties.user.push((REPLAY_PROPERTY.to_owned(), job_name(job)));
        Event::Accepted(Arc::new(Accepted {
            at,
            source: Source::Internal,
            lane,
            retain: false,
            properties,
            dedupe: None,
            replay_of: Some(id),
            ..original
        }))
    });
    let progress = Event::ReplayProgress { job, through, created };
    let ended = is_last.then_some(Event::ReplayEnded { job, cancelled_by: None, at });
    replays.chain([progress]).chain(ended).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::Qos;

    fn lane(lane: u32) -> LaneKey {
        LaneKey { connection: "mqtt".into(), lane }
    }

    #[test]
    fn a_replay_is_the_report_as_it_was_marked_and_never_retained() {
        let mut original = Accepted::plain(lane(0), "a/b", Qos::ExactlyOnce, Millis(1));
        original.retain = true;
        original.expiry_s = Some(9);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        original.properties.user = vec![pair("own", "1"), pair(REPLAY_PROPERTY, "somebody's")];
        let step = Step { job: 0xab, through: Seq(30), created: 5, is_last: true };
        let events = events(step, vec![(Seq(17), lane(4), original)], Millis(77));
        let [Event::Accepted(replay), progress, ended] = &events[..] else { panic!("{events:?}") };
        assert_eq!((replay.replay_of, replay.retain, replay.at, replay.expiry_s), (Some(Seq(17)), false, Millis(77), Some(9)));
        assert_eq!((&replay.lane, replay.topic.as_str()), (&lane(4), "a/b"));
        assert_eq!(replay.properties.user, [pair("own", "1"), pair(REPLAY_PROPERTY, "00000000000000ab")]);
        assert_eq!(*progress, Event::ReplayProgress { job: 0xab, through: Seq(30), created: 6 });
        assert_eq!(*ended, Event::ReplayEnded { job: 0xab, cancelled_by: None, at: Millis(77) });
    }
}
