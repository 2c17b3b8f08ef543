//! What becomes of an append, and how far the log is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::Limits;
use crate::core::outbox::{FoldError, Owners, Request, Totals};
use crate::core::types::{ConnectionName, LaneKey, Millis, SendNo, Seq};
use crate::log::{AppendError, Space};

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// The events stand at these positions.
    New {
        /// The first one's.
        first: Seq,
        /// The last one's.
        last: Seq,
        /// The new send number of each `Resent` among them, in order.
        resent: Vec<SendNo>,
    },
    /// The same request was accepted before; nothing was appended.
    Known(Request),
}

/// Why a commit did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The store is full.
    #[error("the store is full: {0}")]
    Full(String),
    /// The idempotency key was used with another body.
    #[error("this Idempotency-Key was used before with another body; use a new key for a new request")]
    Conflict,
    /// Too much waits already.
    #[error("too many reports wait for the disk; try again in a moment")]
    Overloaded,
    /// The service stops.
    #[error("the service is stopping; try again when it is back")]
    Stopped,
    /// A fault in Tidings: the events do not fit the log.
    #[error("internal fault, please report it: {0}")]
    DoesNotFit(#[from] FoldError),
    /// Shared log: it is another instance's to say. Nothing of it was recorded.
    #[error("nothing of this was recorded: {0}")]
    NotOwner(FoldError),
    /// Shared log: it does not fit what the log holds by now, because another instance was first. Nothing of it was recorded.
    #[error("nothing of this was recorded, because another instance was first: {0}; look how it is now, and decide again")]
    ChangedMeanwhile(FoldError),
    /// Shared log: a report was bound to a lane that takes no new ones, because the connection has other lanes by now. Nothing was accepted. To be bound
    /// again, to the newest lanes.
    #[error(
        "nothing was accepted: the lanes of the connection have just been changed by another instance (lane {0} takes no new reports); try again in a moment"
    )]
    LanesChanged(LaneKey),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] AppendError),
}

impl CommitError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            CommitError::Full(_) => "store_full",
            CommitError::Conflict => "idempotency_conflict",
            CommitError::Overloaded => "overloaded",
            CommitError::Stopped => "stopping",
            CommitError::DoesNotFit(_) => "internal",
            CommitError::NotOwner(_) => "not_owner",
            CommitError::ChangedMeanwhile(_) => "changed_meanwhile",
            CommitError::LanesChanged(_) => "lanes_changed",
            CommitError::Store(error) => error.code(),
        }
    }
}

/// How far the log is, and how the store does. Published after every commit.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The last durable position.
    pub committed: Seq,
    /// The books, per connection.
    pub connections: BTreeMap<ConnectionName, Books>,
    /// Disk space.
    pub space: Space,
    /// The limits in force.
    pub limits: Limits,
    /// What has to be free for accepts, in bytes.
    pub reserved: u64,
    /// Why accepts are refused, if they are.
    pub full: Option<String>,
    /// Since when.
    pub full_since: Option<Millis>,
    /// Outcomes that wait for room on the disk.
    pub held: usize,
    /// Why the log is dead, if it is.
    pub failed: Option<String>,
    /// Replay jobs under way.
    pub replays: usize,
    /// Who owns which lane, where the log is shared.
    pub owners: Arc<Owners>,
}

/// The books of one connection.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// Cumulative, over restarts.
    pub totals: Totals,
    /// Pending per lane.
    pub lanes: BTreeMap<u32, u64>,
    /// Those of the lanes that are for replays.
    pub replay_lanes: BTreeSet<u32>,
    /// Those that take new deliveries.
    pub newest: Range<u32>,
    /// When the oldest pending delivery was accepted, replays apart; exact to about a thousand deliveries of a lane.
    pub oldest_pending_at: Option<Millis>,
}
