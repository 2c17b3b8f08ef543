//! The lanes at work, connection by connection.
//!
//! On a log of one's own all lanes of a connection start together and stop together. On a shared one they come and go one by one, as they are taken and given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::lanes::supervise;
use crate::core::event::LanePurpose;
use crate::core::notice::NoticeTo;
use crate::core::types::{ConnectionName, LaneKey};
use crate::delivery::board::Board;
use crate::delivery::lane::{LaneConfig, Surroundings};
use crate::delivery::precedence::Precedence;
use crate::log::committer::LogHandle;
use crate::metrics::Metrics;

/// When lanes are to stop, so long they get to finish what is in flight. What is not finished by then goes on when they start again.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The lanes at work. Dropped, it takes them along.
pub(super) struct Pools {
    log: LogHandle,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    notices: watch::Receiver<Option<NoticeTo>>,
    /// Where the log is shared: false when all lanes have to stop at once.
    kept: Option<watch::Receiver<bool>>,
    pools: BTreeMap<ConnectionName, Pool>,
}

/// The lanes of one connection, of all its sets.
#[derive(Default)]
struct Pool {
    /// Fresh first, replay in the gaps.
    precedence: Precedence,
    lanes: BTreeMap<u32, Worker>,
}

/// A lane at work, or one that has ended.
struct Worker {
    /// Turns true when it is to finish what is in flight, and stop.
    drain: watch::Sender<bool>,
    /// Turns true when it has to stop at once.
    cut: watch::Sender<bool>,
    purpose: LanePurpose,
    is_retired: bool,
    /// On a shared log, the term in which it was taken: what it knows of the lane is as of then.
    term: u64,
    /// Since when it is to finish.
    leaving: Option<Instant>,
    task: JoinSet<()>,
}

impl Worker {
    fn is_at_work(&mut self) -> bool {
        while self.task.try_join_next().is_some() {}
        !self.task.is_empty()
    }

    async fn ended(&mut self) {
        while self.task.join_next().await.is_some() {}
    }
}

impl Pools {
    /// Nobody is at work yet.
    pub(super) fn new(log: LogHandle, board: Arc<Board>, metrics: Arc<Metrics>, notices: watch::Receiver<Option<NoticeTo>>) -> Self {
        Pools { log, board, metrics, notices, kept: None, pools: BTreeMap::new() }
    }

    /// The same, whose lanes run only while the others hear of this instance.
    pub(super) fn while_kept(self, kept: watch::Receiver<bool>) -> Self {
        Pools { kept: Some(kept), ..self }
    }

    /// Puts the lanes of a connection to work. None of its lanes may be at work already.
    pub(super) fn start(&mut self, connection: &ConnectionName, lanes: Vec<LaneConfig>) {
        self.metrics.touch_connection(connection.as_str());
        let mut pool = Pool::default();
        // All take their places before one begins.
        let lanes: Vec<_> = lanes.into_iter().map(|lane| self.prepare(&pool, lane)).collect();
        lanes.into_iter().for_each(|lane| pool.put(lane, 0, self.kept.clone()));
        let before = self.pools.insert(connection.clone(), pool);
        debug_assert!(before.is_none(), "the lanes of {connection} are at work already");
    }

    /// Puts one lane to work beside the others of its connection, unless it is at work already. `term`: see [`Owner`](crate::core::outbox::Owner).
    pub(super) fn add(&mut self, lane: LaneConfig, term: u64) {
        let key = lane.settings.lane.clone();
        if self.at_work(&key).is_some() {
            return;
        }
        self.metrics.touch_connection(key.connection.as_str());
        let mut pool = self.pools.remove(&key.connection).unwrap_or_default();
        pool.put(self.prepare(&pool, lane), term, self.kept.clone());
        self.pools.insert(key.connection, pool);
    }

    fn prepare(&self, pool: &Pool, lane: LaneConfig) -> Prepared {
        let turn = match lane.purpose {
            LanePurpose::Fresh => pool.precedence.fresh(),
            LanePurpose::Replay => pool.precedence.replay(),
        };
        let (log, board, metrics) = (self.log.clone(), Arc::clone(&self.board), Arc::clone(&self.metrics));
        let (drain, drained) = watch::channel(false);
        (lane, drain, Surroundings { log, board, metrics, turn, notices: self.notices.clone(), drain: drained })
    }

    /// Whether the connection has lanes at work, and its replay lane is one of them.
    pub(super) fn has_replay_lane(&self, connection: &ConnectionName) -> bool {
        self.pools.get(connection).is_some_and(|pool| pool.lanes.values().any(|worker| worker.purpose == LanePurpose::Replay))
    }

    /// Puts the replay lane of a connection to work beside its others, if it is not, and they are.
    pub(super) fn add_replay_lane(&mut self, connection: &ConnectionName, lane: LaneConfig) {
        if self.pools.contains_key(connection) && !self.has_replay_lane(connection) {
            self.add(lane, 0);
        }
    }

    /// How a lane is at work, if it is: since which term, and whether it ends when it is empty.
    pub(super) fn at_work(&mut self, lane: &LaneKey) -> Option<(u64, bool)> {
        let worker = self.pools.get_mut(&lane.connection)?.lanes.get_mut(&lane.lane)?;
        worker.is_at_work().then_some((worker.term, worker.is_retired))
    }

    /// The lanes at work.
    pub(super) fn keys(&mut self) -> Vec<LaneKey> {
        let mut keys = Vec::new();
        for (connection, pool) in &mut self.pools {
            pool.lanes.retain(|_, worker| worker.is_at_work());
            keys.extend(pool.lanes.keys().map(|lane| LaneKey { connection: connection.clone(), lane: *lane }));
        }
        keys
    }

    /// Has a lane finish what is in flight and end, without waiting for it. What is asked again after [`DRAIN_TIMEOUT`] ends at once.
    pub(super) fn let_finish(&mut self, lane: &LaneKey) {
        let Some(worker) = self.pools.get_mut(&lane.connection).and_then(|pool| pool.lanes.get_mut(&lane.lane)) else { return };
        let since = *worker.leaving.get_or_insert_with(Instant::now);
        worker.drain.send_replace(true);
        if since.elapsed() >= DRAIN_TIMEOUT {
            worker.cut.send_replace(true);
        }
    }

    /// Ends a lane at once, and returns when it is gone: what is in flight is another's, or nobody's for now.
    pub(super) async fn cut(&mut self, lane: &LaneKey) {
        let Some(mut worker) = self.pools.get_mut(&lane.connection).and_then(|pool| pool.lanes.remove(&lane.lane)) else { return };
        worker.cut.send_replace(true);
        worker.ended().await;
    }

    /// Lets the lanes of these connections finish what is in flight, all at once and with a limit, and returns when they are gone. False if
    /// something was not finished in time.
    pub(super) async fn stop(&mut self, connections: &[ConnectionName]) -> bool {
        let pools = connections.iter().filter_map(|name| self.pools.remove(name));
        let mut stopping: Vec<Worker> = pools.flat_map(|pool| pool.lanes.into_values()).collect();
        for worker in &stopping {
            worker.drain.send_replace(true);
        }
        let until = Instant::now() + DRAIN_TIMEOUT;
        let mut is_in_time = true;
        for worker in &mut stopping {
            if timeout_at(until, worker.ended()).await.is_err() {
                is_in_time = false;
                worker.cut.send_replace(true);
                worker.ended().await;
            }
        }
        is_in_time
    }

    /// As [`Pools::stop`], for every connection.
    pub(super) async fn stop_all(&mut self) -> bool {
        let all: Vec<ConnectionName> = self.pools.keys().cloned().collect();
        self.stop(&all).await
    }
}

/// A lane with its place among the others, and what ends it.
type Prepared = (LaneConfig, watch::Sender<bool>, Surroundings);

impl Pool {
    fn put(&mut self, (lane, drain, around): Prepared, term: u64, kept: Option<watch::Receiver<bool>>) {
        let (cut, told) = watch::channel(false);
        let (number, purpose, is_retired) = (lane.settings.lane.lane, lane.purpose, lane.settings.is_retired);
        let mut task = JoinSet::new();
        task.spawn(supervise(lane, around, told, kept));
        self.lanes.insert(number, Worker { drain, cut, purpose, is_retired, term, leaving: None, task });
    }
}
