//! Why an event can't be folded.

use crate::core::ranges::NoRange;
use crate::core::types::{ConnectionName, InstanceId, LaneKey, SendNo, Seq};

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
    /// A pair of sends that is no range.
    #[error("of lane {lane}, {range}")]
    NoRange {
        /// The lane.
        lane: LaneKey,
        /// The pair.
        range: NoRange,
    },
    /// More lanes than a connection may ever have.
    #[error("lanes {first} and the {count} from there on are too many for {connection}")]
    TooManyLanes {
        /// The connection.
        connection: ConnectionName,
        /// The first one.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A lane number that was used before.
    #[error("lane {0} exists already")]
    LaneExists(LaneKey),
    /// A replay job that is not under way.
    #[error("replay {0} is not under way")]
    NoSuchReplay(u64),
    /// An instance that has not joined, or has left.
    #[error("instance {0} has not joined, or has left")]
    NoSuchInstance(InstanceId),
    /// Another has taken the lane since.
    #[error("term {term} of lane {lane} can't begin or end: the last one is {known}")]
    NotTheTerm {
        /// The lane.
        lane: LaneKey,
        /// The term that was asked for.
        term: u64,
        /// The lane's last term.
        known: u64,
    },
    /// The lane is another instance's.
    #[error("lane {0} is not owned by this instance")]
    NotOwner(LaneKey),
    /// What one instance does for all is done by another one.
    #[error("another instance does the work that one does for all")]
    NotLeader,
    /// An instance speaks for itself only.
    #[error("instance {0} speaks for itself only")]
    NotYours(InstanceId),
    /// Shared log: the sessions of a copy are left to the original once.
    #[error("another instance has bumped the epochs")]
    AlreadyBumped,
    /// Shared log: no generation begins there, or it has been dropped.
    #[error("no generation begins with event {0}")]
    NoSuchGeneration(Seq),
    /// Shared log: a generation in which something is needed can't be dropped.
    #[error("{count} deliveries before event {before} are not done")]
    StillNeeded {
        /// What was to be dropped ends here.
        before: Seq,
        /// So many deliveries in it are pending or dead.
        count: u64,
    },
}
