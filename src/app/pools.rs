//! The lanes at work, connection by connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::lanes::supervise;
use crate::core::types::ConnectionName;
use crate::delivery::board::Board;
use crate::delivery::lane::{LaneConfig, Surroundings};
use crate::log::committer::LogHandle;
use crate::metrics::Metrics;

/// When lanes are to stop, so long they get to finish what is in flight. What is not finished by then goes on when they start again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The lanes at work. Dropped, it takes them along.
pub(super) struct Pools {
    log: LogHandle,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    at_work: BTreeMap<ConnectionName, Pool>,
}

/// The lanes of one connection, of all its sets.
struct Pool {
    /// Turns true when they are to finish what is in flight, and stop.
    drain: watch::Sender<bool>,
    /// Turns true when they have to stop at once.
    cut: watch::Sender<bool>,
    lanes: JoinSet<()>,
}

impl Pools {
    /// Nobody is at work yet.
    pub(super) fn new(log: LogHandle, board: Arc<Board>, metrics: Arc<Metrics>) -> Self {
        Pools { log, board, metrics, at_work: BTreeMap::new() }
    }

    /// Puts the lanes of a connection to work. None of its lanes may be at work already.
    pub(super) fn start(&mut self, connection: &ConnectionName, lanes: Vec<LaneConfig>) {
        self.metrics.touch_connection(connection.as_str());
        let (drain, drained) = watch::channel(false);
        let (cut, is_cut) = watch::channel(false);
        let (log, board, metrics) = (self.log.clone(), Arc::clone(&self.board), Arc::clone(&self.metrics));
        let around = Surroundings { log, board, metrics, drain: drained };
        let mut pool = Pool { drain, cut, lanes: JoinSet::new() };
        for lane in lanes {
            pool.lanes.spawn(supervise(lane, around.clone(), is_cut.clone()));
        }
        let before = self.at_work.insert(connection.clone(), pool);
        debug_assert!(before.is_none(), "the lanes of {connection} are at work already");
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
