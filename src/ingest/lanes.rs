//! Which lane a topic goes to.
//!
//! `lane = first + xxh3_64(topic) % count`, where `first` and `count` are the connection's newest set of lanes for fresh reports. **Stable for
//! ever:** order per topic rests on every report of a topic taking the same lane, before and after a restart and an upgrade.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use xxhash_rust::xxh3::xxh3_64;

use crate::core::types::{ConnectionName, LaneKey};

/// The newest lanes of every connection: what new deliveries are spread over.
#[derive(Debug, Clone, Default)]
pub struct LaneDirectory {
    sets: BTreeMap<ConnectionName, LaneSpan>,
}

/// The lanes `first..first + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSpan {
    /// The number of the first lane.
    pub first: u32,
    /// How many lanes.
    pub count: NonZeroU32,
}

impl LaneDirectory {
    /// The lane of a topic; none if the connection has none.
    pub fn lane(&self, connection: &ConnectionName, topic: &str) -> Option<LaneKey> {
        let span = self.sets.get(connection)?;
        Some(LaneKey { connection: connection.clone(), lane: span.lane(topic) })
    }

    /// The lanes of a connection, if it has any.
    pub fn span(&self, connection: &ConnectionName) -> Option<LaneSpan> {
        self.sets.get(connection).copied()
    }

    /// The connections that have lanes.
    pub fn connections(&self) -> impl Iterator<Item = &ConnectionName> {
        self.sets.keys()
    }
}

impl LaneSpan {
    /// The lane of a topic.
    pub fn lane(self, topic: &str) -> u32 {
        let place = xxh3_64(topic.as_bytes()) % u64::from(self.count.get());
        self.first + u32::try_from(place).expect("a remainder of a 32 bit number fits 32 bits")
    }
}

impl FromIterator<(ConnectionName, LaneSpan)> for LaneDirectory {
    fn from_iter<I: IntoIterator<Item = (ConnectionName, LaneSpan)>>(sets: I) -> Self {
        LaneDirectory { sets: sets.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u32, count: u32) -> LaneSpan {
        LaneSpan { first, count: NonZeroU32::new(count).unwrap() }
    }

    #[test]
    fn a_topic_keeps_its_lane_for_ever() {
        // These numbers are a promise: a release that changes one breaks the order of that topic.
        let lanes = ["", "acme/zuul/check/widgets/main/42", "a", "b", "é"].map(|topic| span(0, 1_000).lane(topic));
        assert_eq!(lanes, [138, 767, 719, 615, 795]);
    }

    #[test]
    fn a_lane_lies_within_its_set_and_topics_spread_over_all_of_them() {
        let mut seen = [0; 4];
        for number in 0..1_000 {
            let lane = span(8, 4).lane(&format!("acme/zuul/check/widgets/main/{number}"));
            seen[usize::try_from(lane - 8).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (200..300).contains(count)), "{seen:?}");
    }

    #[test]
    fn a_connection_without_lanes_has_none() {
        let directory: LaneDirectory = [("mqtt".into(), span(0, 1))].into_iter().collect();
        assert!(directory.lane(&"mqtt".into(), "t").is_some());
        assert!(directory.lane(&"other".into(), "t").is_none());
    }
}
