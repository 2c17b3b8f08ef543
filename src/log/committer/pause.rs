//! Between two commits of outcomes the disk has a pause.
//!
//! ```text
//!   without:  [commit of 12][commit of 12][commit of 12]…      with:  [commit of 25]  pause  [commit of 25]  pause …
//! ```
//! A commit costs much the same whatever is in it. At QoS 2 every PUBREL waits for one, and what the broker answers to it comes a little at a time: so a commit
//! that begins as soon as the one before has ended never has more than what came meanwhile, and the processors are busy with commits. After a pause as long
//! as that commit twice as much has come, and the wait is longer by half a commit.
//!
//! It ends when every lane is in the commit that was in one of the two before it: lanes with much in flight hand in what has come during a commit when that has ended, all of
//! them at about the same time, and nothing after that until the next one has ended (`core::session::hearing`). To wait on would be for nothing. Without any wait two groups
//! of lanes would come about, of which each waits for the other's commit.
//!
//! Nobody waits for a pause who would notice: a producer, or a session that opens, ends it. Where outcomes are so few that the disk rests anyway there is none, and
//! where the disk is slow it stays short: a window is full long before such a commit has ended.

use std::time::{Duration, Instant};

use super::{Batch, Command, Committer};
use crate::core::event::Event;
use crate::core::types::LaneKey;

/// No pause is longer.
const LONGEST: Duration = Duration::from_millis(1);

/// So often is looked who has come meanwhile: a producer waits for this at most.
const LOOK: Duration = Duration::from_micros(50);

/// The commit before.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) ended: Instant,
    pub(super) took: Duration,
    /// The lanes that had releases in it, and in the one before it.
    lanes: Vec<LaneKey>,
    earlier: Vec<LaneKey>,
}

impl Before {
    /// A commit of `events` has ended, which came after `before`.
    pub(super) fn of(events: &[Event], ended: Instant, took: Duration, before: Option<Before>) -> Before {
        Before { ended, took, lanes: lanes(events).cloned().collect(), earlier: before.map(|before| before.lanes).unwrap_or_default() }
    }

    /// Whether a lane may still come for its releases that is not among these.
    fn misses_one(&self, events: &[Event]) -> bool {
        self.lanes.iter().chain(&self.earlier).any(|lane| !lanes(events).any(|here| here == lane))
    }

    /// How long the disk still rests.
    fn rest(&self, now: Instant) -> Duration {
        self.took.min(LONGEST).saturating_sub(now.saturating_duration_since(self.ended))
    }
}

impl Committer {
    /// Waits until the pause is over, or somebody comes.
    pub(super) fn pause(&mut self, batch: &Batch) -> Option<Command> {
        // On a shared log others take their turns: see `shared`.
        if self.shared.is_some() || !can_wait(&batch.events) {
            return None;
        }
        let before = self.before.as_ref().filter(|before| before.misses_one(&batch.events))?;
        loop {
            let rest = before.rest(Instant::now());
            if rest.is_zero() {
                return None;
            }
            std::thread::sleep(rest.min(LOOK));
            if let Ok(command) = self.inbox.try_recv() {
                return Some(command);
            }
        }
    }
}

/// The lanes that have releases among these.
fn lanes(events: &[Event]) -> impl Iterator<Item = &LaneKey> {
    events.iter().filter_map(|event| match event {
        Event::Released { lane, .. } => Some(lane),
        _ => None,
    })
}

/// There are releases among them, and nothing but outcomes of deliveries: nothing that a producer or a connection waits for. That deliveries are done comes in
/// large pieces by itself.
fn can_wait(events: &[Event]) -> bool {
    events.iter().all(|event| matches!(event, Event::Released { .. } | Event::Delivered { .. }))
        && events.iter().any(|event| matches!(event, Event::Released { .. }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::event::{Accepted, Proof};
    use crate::core::ranges::RangeSet;
    use crate::core::types::{LaneKey, Millis, Qos, SendNo};

    #[test]
    fn the_disk_rests_as_long_as_a_commit_takes_and_a_slow_one_for_a_moment() {
        let ended = Instant::now();
        let rest = |took_us: u64, later_us: u64| {
            let before = Before::of(&[], ended, Duration::from_micros(took_us), None);
            before.rest(ended + Duration::from_micros(later_us)).as_micros()
        };
        assert_eq!((rest(300, 0), rest(300, 100), rest(300, 300), rest(300, 9_000)), (300, 200, 0, 0));
        assert_eq!((rest(20_000, 0), rest(20_000, 1_000)), (1_000, 0));
    }

    #[test]
    fn a_pause_ends_when_every_lane_is_there_that_was_in_the_last_two_commits() {
        let of = |lanes: &[u32]| -> Vec<Event> {
            let lane = |lane: &u32| LaneKey { connection: "mqtt".into(), lane: *lane };
            lanes.iter().map(|number| Event::Released { lane: lane(number), sends: vec![SendNo(1)] }).collect()
        };
        let after = |events: Vec<Event>, before| Some(Before::of(&events, Instant::now(), Duration::ZERO, before));
        let before = after(of(&[0, 1, 2]), after(of(&[3]), None)).unwrap();
        assert!(before.misses_one(&of(&[0, 1, 2])) && before.misses_one(&of(&[3, 4])));
        assert!(!before.misses_one(&of(&[2, 3, 1, 0])));
        let before = after(of(&[0]), after(of(&[0]), Some(before))).unwrap();
        assert!(!before.misses_one(&of(&[0])), "the others have nothing more");
    }

    #[test]
    fn releases_wait_for_more_of_them_unless_somebody_else_does() {
        let lane = LaneKey { connection: "mqtt".into(), lane: 0 };
        let released = Event::Released { lane: lane.clone(), sends: vec![SendNo(1)] };
        let delivered = Event::Delivered { lane: lane.clone(), sends: RangeSet::new().to_ranges(), proof: Proof::PubComp, at: Millis(0) };
        let report = Event::Accepted(Arc::new(Accepted::plain(lane, "t", Qos::AtLeastOnce, Millis(0))));
        let audit = Event::Audit { who: String::new(), what: String::new(), at: Millis(0) };
        assert!(can_wait(&[delivered.clone(), released.clone()]));
        assert!(!can_wait(std::slice::from_ref(&delivered)));
        for other in [report, audit] {
            assert!(!can_wait(&[released.clone(), other, delivered.clone()]));
        }
    }
}
