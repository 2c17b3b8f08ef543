//! Who owns which lane, where several instances work over one log.
//!
//! A lane has one owner at most, and who that is stands in the log: an owner is made and unmade by events, and each taking has a term, one higher than
//! the last. Only the owner may say what becomes of its lane's deliveries. Whoever thinks that it is the owner, and is not any more, is stopped by the log
//! itself, without clocks:
//!
//! ```text
//!    A, owner of the lane (term 4)             the log                        B
//!    PUBREC comes in                            …
//!    ─ stopped for longer than a lease ─        LaneTaken B, term 5  ◀──────  takes the lane, and resumes its session
//!    appends Released ────────────────────▶     refused: A has not read everything
//!    reads on, and finds term 5
//!    Released does not come from the owner:
//!    refused before it is appended              (nothing of it is stored)
//!    so no Committed, so no PUBREL leaves
//! ```
//!
//! An append to a shared log succeeds only for one who has read everything before it, so what [`Owners::check_from`] says right before an append
//! is so at the place where the events come to stand. Leases and heartbeats decide *when* somebody takes a lane, and may be as wrong as clocks are: the
//! harm is a lane that changes hands for nothing.
//!
//! A PUBLISH needs no commit before it, so one more rule holds for whoever drives a lane of a shared log: connect, then commit `SessionOpened`, then send,
//! at *every* connect and not for a new session only. The broker ends the connection of whoever had the client id before; an owner that was stopped and
//! connects again after its successor is refused the commit, and says nothing on a connection that would publish once more what is completed.
//!
//! What one instance does for all (carrying, retention, replays) is done by the *leader*: the member that has been there longest. It is fenced the same
//! way.
//!
//! | Event | By whom | Fits |
//! |---|---|---|
//! | `InstanceJoined` | itself | always |
//! | `InstanceLeft` | anybody | if it is a member; what it owned has no owner then |
//! | `LaneTaken` | the new owner, a member | with the next term, whoever owned it |
//! | `LaneLeft` | the owner | with its own term |
//! | outcomes, `SessionOpened`, pending ones discarded | the owner | |
//! | `Carried`, `ReplayProgress`, `GenerationBegun`, `GenerationDropped` | the leader | |
//! | reports, decisions about dead letters, all else | anybody | |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FoldError;
use crate::core::event::Event;
use crate::core::types::{InstanceId, LaneKey, Millis, Seq};

/// The members, and what they own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owners {
    members: BTreeMap<InstanceId, Member>,
    lanes: BTreeMap<LaneKey, Owner>,
}

/// An instance that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The event since which it has been there.
    pub since: Seq,
    /// When that was, by its own clock.
    pub joined_at: Millis,
    /// What people call it.
    pub name: String,
}

/// Whose a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owner {
    /// The instance, if the lane has an owner.
    pub instance: Option<InstanceId>,
    /// Its last term; 0 before the first.
    pub term: u64,
}

impl Owners {
    /// Whether there never was anybody: the log is not shared.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.lanes.is_empty()
    }

    /// Those who have joined and not left.
    pub fn members(&self) -> impl Iterator<Item = InstanceId> + '_ {
        self.members.keys().copied()
    }

    /// What is known of one that has joined and not left.
    pub fn member(&self, instance: InstanceId) -> Option<&Member> {
        self.members.get(&instance)
    }

    /// Whether it has joined and not left.
    pub fn is_member(&self, instance: InstanceId) -> bool {
        self.members.contains_key(&instance)
    }

    /// Whose a lane is.
    pub fn of(&self, lane: &LaneKey) -> Owner {
        self.lanes.get(lane).copied().unwrap_or_default()
    }

    /// The lanes of an instance.
    pub fn lanes_of(&self, instance: InstanceId) -> impl Iterator<Item = &LaneKey> {
        self.lanes.iter().filter(move |(_, owner)| owner.instance == Some(instance)).map(|(lane, _)| lane)
    }

    /// The one that does what is done once for all: it has been there longest.
    pub fn leader(&self) -> Option<InstanceId> {
        self.members.iter().min_by_key(|(_, member)| member.since).map(|(instance, _)| *instance)
    }

    /// Whether an event about owners fits what came before.
    pub(super) fn check(&self, event: &Event) -> Result<(), FoldError> {
        match event {
            Event::InstanceLeft { instance, .. } => self.check_member(*instance),
            Event::LaneTaken { lane, instance, term, .. } => {
                let known = self.of(lane).term;
                self.check_member(*instance)?;
                (*term == known + 1).then_some(()).ok_or_else(|| FoldError::NotTheTerm { lane: lane.clone(), term: *term, known })
            }
            Event::LaneLeft { lane, instance, term, .. } => match self.of(lane) {
                owner if owner.instance != Some(*instance) => Err(FoldError::NotOwner(lane.clone())),
                owner if owner.term != *term => Err(FoldError::NotTheTerm { lane: lane.clone(), term: *term, known: owner.term }),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn check_member(&self, instance: InstanceId) -> Result<(), FoldError> {
        self.is_member(instance).then_some(()).ok_or(FoldError::NoSuchInstance(instance))
    }

    /// Folds an event about owners, which fits and stands at `seq`.
    pub(super) fn fold(&mut self, seq: Seq, event: &Event) {
        match event {
            Event::InstanceJoined { instance, name, at } => {
                let member = || Member { since: seq, joined_at: *at, name: name.clone() };
                self.members.entry(*instance).or_insert_with(member);
            }
            Event::InstanceLeft { instance, .. } => {
                self.members.remove(instance);
                for owner in self.lanes.values_mut().filter(|owner| owner.instance == Some(*instance)) {
                    owner.instance = None;
                }
            }
            Event::LaneTaken { lane, instance, term, .. } => {
                self.lanes.insert(lane.clone(), Owner { instance: Some(*instance), term: *term });
            }
            Event::LaneLeft { lane, term, .. } => {
                self.lanes.insert(lane.clone(), Owner { instance: None, term: *term });
            }
            _ => {}
        }
    }

    /// Whether this instance may say it. The fence: see the module.
    pub(super) fn check_from(&self, by: InstanceId, event: &Event) -> Result<(), FoldError> {
        match event {
            Event::Released { lane, .. }
            | Event::Delivered { lane, .. }
            | Event::Expired { lane, .. }
            | Event::SessionOpened { lane, .. }
            | Event::Discarded { lane, dead: false, .. } => self.check_owner(by, lane),
            Event::Refused { delivery, .. } | Event::Resent { delivery, .. } | Event::DeadLettered { delivery, .. } => {
                self.check_owner(by, &delivery.lane)
            }
            Event::Carried(_) | Event::ReplayProgress { .. } | Event::GenerationBegun { .. } | Event::GenerationDropped { .. } => {
                match self.leader() == Some(by) {
                    true => Ok(()),
                    false => Err(FoldError::NotLeader),
                }
            }
            Event::InstanceJoined { instance, .. } | Event::LaneTaken { instance, .. } | Event::LaneLeft { instance, .. } => {
                match *instance == by {
                    true => Ok(()),
                    false => Err(FoldError::NotYours(by)),
                }
            }
            Event::Accepted(_)
            | Event::Requeued { .. }
            | Event::Discarded { dead: true, .. }
            | Event::ReplayStarted { .. }
            | Event::ReplayEnded { .. }
            | Event::LanesChanged { .. }
            | Event::EpochBumped { .. }
            | Event::Received { .. }
            | Event::ReleasedIn { .. }
            | Event::Audit { .. }
            | Event::InstanceLeft { .. } => Ok(()),
        }
    }

    fn check_owner(&self, by: InstanceId, lane: &LaneKey) -> Result<(), FoldError> {
        match self.of(lane).instance == Some(by) {
            true => Ok(()),
            false => Err(FoldError::NotOwner(lane.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{LanePurpose, Proof};
    use crate::core::outbox::Outbox;
    use crate::core::ranges::Ranges;
    use crate::core::types::SendNo;

    const A: InstanceId = InstanceId(1);
    const B: InstanceId = InstanceId(2);

    fn lane() -> LaneKey {
        LaneKey { connection: "mqtt".into(), lane: 0 }
    }

    fn joined(instance: InstanceId) -> Event {
        Event::InstanceJoined { instance, name: format!("host-{instance}"), at: Millis(0) }
    }

    fn taken(instance: InstanceId, term: u64) -> Event {
        Event::LaneTaken { lane: lane(), instance, term, at: Millis(0) }
    }

    fn fold(events: Vec<Event>) -> Outbox {
        let mut outbox = Outbox::new();
        let connection = lane().connection;
        let lanes = Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) };
        for event in std::iter::once(lanes).chain(events) {
            outbox.apply(&event).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        outbox
    }

    #[test]
    fn of_two_that_take_a_lane_at_once_the_second_is_refused() {
        let outbox = fold(vec![joined(A), joined(B), taken(A, 1)]);
        assert_eq!(outbox.check(&taken(B, 1)), Err(FoldError::NotTheTerm { lane: lane(), term: 1, known: 1 }));
        assert_eq!(outbox.check(&taken(B, 2)), Ok(()));
        assert_eq!(outbox.check(&taken(InstanceId(9), 2)), Err(FoldError::NoSuchInstance(InstanceId(9))), "who takes has joined");
        assert_eq!(outbox.check_from(A, &taken(B, 2)), Err(FoldError::NotYours(A)), "nobody takes for another");
    }

    #[test]
    fn only_the_owner_says_what_becomes_of_a_lane() {
        let released = Event::Released { lane: lane(), sends: vec![SendNo(0)] };
        let delivered = Event::Delivered { lane: lane(), sends: Ranges::one(0), proof: Proof::PubComp, at: Millis(0) };
        let mut outbox = fold(vec![joined(A), joined(B)]);
        for (taking, owner, other) in [(taken(A, 1), A, B), (taken(B, 2), B, A)] {
            assert_eq!(outbox.check_from(owner, &released), Err(FoldError::NotOwner(lane())), "not before it has taken it");
            outbox.apply(&taking).unwrap();
            for outcome in [&released, &delivered] {
                assert_eq!(outbox.check_from(owner, outcome), Ok(()));
                assert_eq!(outbox.check_from(other, outcome), Err(FoldError::NotOwner(lane())));
            }
        }
    }

    #[test]
    fn a_lane_that_was_left_has_no_owner_and_keeps_its_term() {
        let left = |instance, term| Event::LaneLeft { lane: lane(), instance, term, at: Millis(0) };
        let outbox = fold(vec![joined(A), joined(B), taken(A, 1)]);
        assert_eq!(outbox.check(&left(B, 1)), Err(FoldError::NotOwner(lane())));
        assert_eq!(outbox.check(&left(A, 2)), Err(FoldError::NotTheTerm { lane: lane(), term: 2, known: 1 }));
        let given = fold(vec![joined(A), joined(B), taken(A, 1), left(A, 1)]);
        let declared = fold(vec![joined(A), joined(B), taken(A, 1), Event::InstanceLeft { instance: A, by: B, at: Millis(0) }]);
        for outbox in [given, declared] {
            assert_eq!(outbox.owners().of(&lane()), Owner { instance: None, term: 1 });
            assert_eq!(outbox.check(&taken(B, 2)), Ok(()));
        }
    }

    #[test]
    fn the_leader_is_who_has_been_there_longest() {
        let left = Event::InstanceLeft { instance: B, by: A, at: Millis(0) };
        assert_eq!(fold(vec![joined(B), joined(A), joined(B)]).owners().leader(), Some(B));
        assert_eq!(fold(vec![joined(B), joined(A), left.clone(), joined(B)]).owners().leader(), Some(A), "who comes back is the newest");
        let progress = Event::ReplayProgress { job: 1, through: Seq(1), created: 0 };
        let outbox = fold(vec![joined(B), joined(A), left]);
        assert_eq!(outbox.check_from(B, &progress), Err(FoldError::NotLeader));
        assert_eq!(outbox.check_from(A, &progress), Ok(()));
    }
}
