//! The lanes at work, connection by connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::lanes::supervise;
use crate::core::event::LanePurpose;
use crate::core::notice::NoticeTo;
use crate::core::types::ConnectionName;
use crate::delivery::board::Board;
use crate::delivery::lane::{LaneConfig, Surroundings};
use crate::delivery::precedence::Precedence;
use crate::log::committer::LogHandle;
use crate::metrics::Metrics;

/// When lanes are to stop, so long they get to finish what is in flight. What is not finished by then goes on when they start again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The lanes at work. Dropped, it takes them along.
pub(super) struct Pools {
    log: LogHandle,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    notices: watch::Receiver<Option<NoticeTo>>,
    at_work: BTreeMap<ConnectionName, Pool>,
}

/// The lanes of one connection, of all its sets.
struct Pool {
    /// Turns true when they are to finish what is in flight, and stop.
    drain: watch::Sender<bool>,
    /// Turns true when they have to stop at once.
    cut: watch::Sender<bool>,
    /// Fresh first, replay in the gaps.
    precedence: Precedence,
    has_replay_lane: bool,
    lanes: JoinSet<()>,
}

impl Pools {
    /// Nobody is at work yet.
    pub(super) fn new(log: LogHandle, board: Arc<Board>, metrics: Arc<Metrics>, notices: watch::Receiver<Option<NoticeTo>>) -> Self {
        Pools { log, board, metrics, notices, at_work: BTreeMap::new() }
    }

    /// Puts the lanes of a connection to work. None of its lanes may be at work already.
    pub(super) fn start(&mut self, connection: &ConnectionName, lanes: Vec<LaneConfig>) {
        self.metrics.touch_connection(connection.as_str());
        let (drain, _) = watch::channel(false);
        let (cut, _) = watch::channel(false);
        let precedence = Precedence::default();
        let mut pool = Pool { drain, cut, precedence, has_replay_lane: false, lanes: JoinSet::new() };
        // All take their places before one begins.
        let lanes: Vec<(LaneConfig, Surroundings)> = lanes.into_iter().map(|lane| self.prepare(&pool, lane)).collect();
        pool.has_replay_lane = lanes.iter().any(|(lane, _)| lane.purpose == LanePurpose::Replay);
        for (lane, around) in lanes {
            pool.lanes.spawn(supervise(lane, around, pool.cut.subscribe()));
        }
        let before = self.at_work.insert(connection.clone(), pool);
        debug_assert!(before.is_none(), "the lanes of {connection} are at work already");
    }

    fn prepare(&self, pool: &Pool, lane: LaneConfig) -> (LaneConfig, Surroundings) {
        let turn = match lane.purpose {
            LanePurpose::Fresh => pool.precedence.fresh(),
            LanePurpose::Replay => pool.precedence.replay(),
        };
        let (log, board, metrics) = (self.log.clone(), Arc::clone(&self.board), Arc::clone(&self.metrics));
        (lane, Surroundings { log, board, metrics, turn, notices: self.notices.clone(), drain: pool.drain.subscribe() })
    }

    /// Whether the connection's replay lane is at work.
    pub(super) fn has_replay_lane(&self, connection: &ConnectionName) -> bool {
        self.at_work.get(connection).is_some_and(|pool| pool.has_replay_lane)
    }

    /// Puts the replay lane of a connection to work beside its others, if it is not.
    pub(super) fn add_replay_lane(&mut self, connection: &ConnectionName, lane: LaneConfig) {
        let Some(pool) = self.at_work.get(connection).filter(|pool| !pool.has_replay_lane) else { return };
        let (lane, around) = self.prepare(pool, lane);
        if let Some(pool) = self.at_work.get_mut(connection) {
            pool.has_replay_lane = true;
            pool.lanes.spawn(supervise(lane, around, pool.cut.subscribe()));
        }
    }

    /// Lets the lanes of these connections finish what is in flight, all at once and with a limit, and returns when they are gone. False if
    /// something was not finished in time.
    pub(super) async fn stop(&mut self, connections: &[ConnectionName]) -> bool {
        let mut stopping: Vec<Pool> = connections.iter().filter_map(|name| self.at_work.remove(name)).collect();
        for pool in &stopping {
            pool.drain.send_replace(true);
        }
        let until = Instant::now() + DRAIN_TIMEOUT;
        let mut is_in_time = true;
        for Pool { lanes, cut, .. } in &mut stopping {
            let all_ended = async { while lanes.join_next().await.is_some() {} };
            if timeout_at(until, all_ended).await.is_err() {
                is_in_time = false;
                cut.send_replace(true);
                while lanes.join_next().await.is_some() {}
            }
        }
        is_in_time
    }

    /// As [`Pools::stop`], for every connection.
    pub(super) async fn stop_all(&mut self) -> bool {
        let all: Vec<ConnectionName> = self.at_work.keys().cloned().collect();
        self.stop(&all).await
    }
}
