//! The board on which every lane posts what it is doing, for status, health and metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::core::types::{LaneKey, Millis, Protocol};
use crate::log::committer::now;

/// What a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LaneState {
    /// It has not begun, or waits for an earlier set of lanes to drain.
    #[default]
    Idle,
    /// It is connecting.
    Connecting,
    /// It is connected.
    Connected,
    /// The connection failed; it waits before the next try.
    BackingOff,
    /// The broker hangs up at whatever is sent: reports are kept, one is tried now and then, and an operator is needed.
    Suspended,
    /// It has stopped for good, and an operator is needed.
    Stopped,
}

impl LaneState {
    /// The name in `/v1/status`.
    pub fn name(self) -> &'static str {
        match self {
            LaneState::Idle => "idle",
            LaneState::Connecting => "connecting",
            LaneState::Connected => "connected",
            LaneState::BackingOff => "backing_off",
            LaneState::Suspended => "suspended",
            LaneState::Stopped => "stopped",
        }
    }
}

/// One lane, as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneStatus {
    /// What it is doing.
    pub state: LaneState,
    /// Since when it is connected, or since when it is not. The board keeps it.
    pub since: Option<Millis>,
    /// The protocol of its session, once there is one.
    pub protocol: Option<Protocol>,
    /// The server that it was connected to last.
    pub server: Option<String>,
    /// Sent and not acknowledged.
    pub in_flight: u64,
    /// Refused, and waiting for a retry.
    pub waiting: u64,
    /// When the oldest delivery that it has read and that is not done was accepted.
    pub oldest_pending_at: Option<Millis>,
    /// The last trouble, and when.
    pub last_error: Option<(Millis, String)>,
}

/// The board.
#[derive(Debug, Default)]
pub struct Board {
    lanes: Mutex<BTreeMap<LaneKey, LaneStatus>>,
}

impl Board {
    /// Changes the entry of a lane.
    pub fn post(&self, lane: &LaneKey, change: impl FnOnce(&mut LaneStatus)) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let status = match lanes.get_mut(lane) {
            Some(status) => status,
            None => lanes.entry(lane.clone()).or_default(),
        };
        let was_connected = status.state == LaneState::Connected;
        change(status);
        // An outage begins once, however often the lane tries to connect meanwhile.
        if status.since.is_none() || was_connected != (status.state == LaneState::Connected) {
            status.since = Some(now());
        }
    }

    /// Takes a lane off the board.
    pub fn remove(&self, lane: &LaneKey) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).remove(lane);
    }

    /// All entries.
    pub fn snapshot(&self) -> BTreeMap<LaneKey, LaneStatus> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::ConnectionName;

    #[test]
    fn an_outage_has_begun_when_the_connection_went_and_not_at_the_last_try() {
        let (board, lane) = (Board::default(), LaneKey { connection: ConnectionName::from("mqtt"), lane: 0 });
        let at = Some(Millis(7));
        let step = |state| {
            let mut before = None;
            board.post(&lane, |status| (before, status.state) = (status.since, state));
            let after = board.snapshot()[&lane].since;
            board.post(&lane, |status| status.since = at);
            (before, after)
        };
        assert!(step(LaneState::Connecting).1.is_some_and(|since| Some(since) != at));
        assert_eq!(step(LaneState::BackingOff), (at, at));
        assert_ne!(step(LaneState::Connected).1, at);
        assert_eq!(step(LaneState::Connected), (at, at));
        assert_ne!(step(LaneState::BackingOff).1, at);
        assert_eq!(step(LaneState::Suspended), (at, at));
    }
}
