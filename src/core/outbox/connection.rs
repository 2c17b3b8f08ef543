//! A connection in the outbox: its sets of lanes, its lanes, and its books.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Lane;
use crate::core::event::LanePurpose;

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
