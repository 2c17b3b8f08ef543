//! Generations of the log, as the outbox sees them: where each begins, what in the oldest is still needed, and what has to be carried when it goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Outbox;
use crate::core::types::{LaneKey, SendNo, Seq};

/// Where a generation begins, lane by lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GenerationMark {
    pub(super) first: Seq,
    pub(super) sends: BTreeMap<LaneKey, SendNo>,
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

impl Outbox {
    /// A generation begins at [`Outbox::next`]. To be called before the checkpoint that opens it is taken.
    ///
    /// Where one has just begun there this is nothing new: a second mark of it would pass for the end of the first one, which then looks
    /// as if nothing in it was needed.
    pub fn begin_generation(&mut self) {
        if self.generations.back().is_some_and(|mark| mark.first >= self.next) {
            return;
        }
        let sends = self
            .connections
            .iter()
            .flat_map(|(name, connection)| {
                connection.lanes.iter().map(|(number, lane)| (LaneKey { connection: name.clone(), lane: *number }, lane.next_send))
            })
            .collect();
        self.generations.push_back(GenerationMark { first: self.next, sends });
    }

    /// The same outbox with each generation marked once: earlier builds marked one again that had just begun, and have stored it so.
    pub fn with_each_generation_once(self) -> Outbox {
        let mut marks = Vec::from(self.generations);
        marks.dedup_by_key(|mark| mark.first);
        Outbox { generations: marks.into(), ..self }
    }

    /// As earlier builds stored it: the newest generation is marked twice.
    #[cfg(test)]
    pub(crate) fn with_newest_generation_twice(mut self) -> Outbox {
        self.generations.extend(self.generations.back().cloned());
        self
    }

    /// How many deliveries that are pending or dead are held by the oldest generation, or none if it is the only one.
    pub fn needed_in_oldest_generation(&self) -> Option<u64> {
        self.needed_before_generation(1)
    }

    /// How many deliveries that are pending or dead are held by the generations before the `number`-th, counted from 0; none if there are
    /// not so many.
    pub fn needed_before_generation(&self, number: usize) -> Option<u64> {
        let next = self.generations.get(number)?;
        Some(
            self.lanes()
                .map(|(key, lane)| {
                    let end = next.sends.get(&key).copied().unwrap_or_default();
                    lane.plain_pending_below(end) + lane.held_before(next.first).count() as u64
                })
                .sum(),
        )
    }

    /// What of the oldest generation is not done, for carrying: of each lane sends that are found by counting, and then what is held apart.
    pub fn stragglers(&self) -> impl Iterator<Item = Straggler> + '_ {
        self.generations.get(1).into_iter().flat_map(move |next| {
            self.lanes().flat_map(move |(key, lane)| {
                let end = next.sends.get(&key).copied().unwrap_or_default();
                let plain = lane.plain_pending(end).map(|send| (send, None));
                let apart = lane.held_before(next.first).map(|(send, id, located)| (send, Some((id, located))));
                plain.chain(apart).map(move |(send, known)| Straggler { lane: key.clone(), send, known })
            })
        })
    }

    /// Where the oldest generation begins that has not been dropped.
    pub fn oldest_generation(&self) -> Option<Seq> {
        self.generations.front().map(|mark| mark.first)
    }

    /// Where the generations begin that have not been dropped, oldest first.
    pub fn generations(&self) -> impl DoubleEndedIterator<Item = Seq> + '_ {
        self.generations.iter().map(|mark| mark.first)
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
}
