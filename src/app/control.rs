//! The one task that changes what runs: lanes start and stop by its hand alone, and one thing after another.
//!
//! ```text
//!   SIGHUP ──▶ Reload ─┐
//!   stop   ──▶ Stop   ─┼─▶ control ─▶ lane sets ─▶ routing ─▶ pools ─▶ settings for admin
//!   POST /v1/moves    ─┤
//!   POST /v1/dead/…   ─┤
//!   a replay job      ─┘ (its lane)
//! ```
//!
//! So a second SIGHUP finds what the first has made of it, a move never meets a reload halfway, and nobody starts a lane that is at work already.
//! A stop waits for the one thing under way, which sees that the service stops and comes to an end. Where it waits for a commit that does not come it is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};

use super::StartError;
use super::certificates::{self, Certificates};
use super::lanes::{self, Newest};
use super::members::{self, Member};
use super::pools::Pools;
use super::reload::{Changes, ReloadError};
use super::repairing;
use crate::admin::moves::Ask;
use crate::admin::repairs;
use crate::admin::settings::Settings;
use crate::config::{Config, ConnectionConfig, GapNotice};
use crate::core::notice::NoticeTo;
use crate::core::types::{ConnectionName, LaneKey};
use crate::ingest::mqtt::access::Access;
use crate::ingest::routing::{InForce, Routing};
use crate::log::committer::{Limits, LogHandle, now};
use crate::metrics::Metrics;
use crate::server::door::Rules;

/// So many commands wait. Who asks waits for its answer, so there are never more than a few.
pub(super) const COMMANDS: usize = 4;

/// What is to be done.
pub(super) enum Command {
    /// Another configuration is to be in force: one that has been read, or its mistakes.
    Reload { read: Result<Box<Config>, String>, reply: oneshot::Sender<Result<Changes, ReloadError>> },
    /// Replays are coming for a connection: its replay lane is to be at work. The reply is the lane; none where the connection is not configured.
    ReplayLane { connection: ConnectionName, reply: oneshot::Sender<Result<Option<LaneKey>, StartError>> },
    /// The lanes are to stop. The reply says whether they finished in time.
    Stop { reply: oneshot::Sender<bool> },
}

/// See the module.
pub(super) struct Control {
    /// What is in force.
    pub(super) config: Config,
    /// What the files held that its connections' TLS is made of.
    pub(super) files: BTreeMap<ConnectionName, u64>,
    pub(super) log: LogHandle,
    pub(super) metrics: Arc<Metrics>,
    pub(super) routing: InForce,
    pub(super) settings: watch::Sender<Settings>,
    /// What is asked of whoever comes over HTTP.
    pub(super) rules: watch::Sender<Arc<Rules>>,
    /// And over MQTT.
    pub(super) publishers: watch::Sender<Access>,
    pub(super) pools: Pools,
    /// Where gap notices go, for whoever has to tell of a gap.
    pub(super) notices: watch::Sender<Option<NoticeTo>>,
    /// True once the service stops.
    pub(super) stopping: watch::Receiver<bool>,
    /// Who this is among others, where the log is shared.
    pub(super) member: Option<Member>,
    /// And that it is heard of.
    pub(super) beating: JoinSet<()>,
    /// Lanes that finish what is in flight, to be given up.
    pub(super) leaving: BTreeSet<LaneKey>,
}

impl Control {
    /// Works until it is told to stop the lanes, or nobody is there to tell it anything.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut moves: mpsc::Receiver<Ask>,
        mut repairs: mpsc::Receiver<repairs::Ask>,
    ) {
        let mut certificates = Certificates::new(Arc::clone(&self.metrics));
        let mut look = tokio::time::interval(certificates::EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_at_dead = tokio::time::interval(repairing::LOOK_AT_DEAD);
        look_at_dead.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_at_lanes = tokio::time::interval(members::LOOK);
        look_at_lanes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_shared = self.member.is_some();
        loop {
            tokio::select! {
                _ = look_at_lanes.tick(), if is_shared => self.look_after_lanes().await,
                _ = look.tick() => certificates.look(&self.config),
                _ = look_at_dead.tick() => self.discard_old_dead_letters().await,
                command = commands.recv() => match command {
                    Some(Command::Reload { read, reply }) => {
                        // Who asked may have been told to stop meanwhile; the log has what came of it.
                        let _ = reply.send(self.reload(read).await);
                    }
                    Some(Command::ReplayLane { connection, reply }) => {
                        let _ = reply.send(self.replay_lane(&connection).await);
                    }
                    Some(Command::Stop { reply }) => {
                        let is_in_time = self.pools.stop_all().await;
                        self.beating.shutdown().await;
                        if let Some(member) = &self.member {
                            member.leave(&self.log).await;
                        }
                        let _ = reply.send(is_in_time);
                        return;
                    }
                    None => return,
                },
                Some(Ask { from, to, by, reply }) = moves.recv() => {
                    let _ = reply.send(self.hand_over(from, to, by).await);
                }
                Some(repairs::Ask { decision, reply }) = repairs.recv() => {
                    let _ = reply.send(self.repair(decision).await);
                }
            }
        }
    }

    /// Puts the lanes of a connection to work, as it is configured now.
    pub(super) async fn start_lanes(&mut self, name: &ConnectionName) -> Result<(), StartError> {
        let Some(connection) = self.config.connections.iter().find(|connection| connection.name == *name) else { return Ok(()) };
        // The set that reports are bound to now, whatever a reload that was given up has left behind.
        let Some(span) = self.routing.current().await.lanes.span(name) else { return Ok(()) };
        let newest = Newest { connection: name.clone(), span, replaced: None };
        self.start_lanes_of(&connection.clone(), &newest).await
    }

    /// Puts the lanes of a connection to work: all of them, or those that are this instance's.
    pub(super) async fn start_lanes_of(&mut self, connection: &ConnectionConfig, newest: &Newest) -> Result<(), StartError> {
        if self.member.is_some() {
            self.look_after_lanes().await;
            return Ok(());
        }
        let lanes = lanes::to_run(connection, &self.config.retry, newest, &self.log).await?;
        self.pools.start(&connection.name, lanes);
        Ok(())
    }

    /// Makes sure that the replay lane of a connection is there and at work.
    pub(super) async fn replay_lane(&mut self, name: &ConnectionName) -> Result<Option<LaneKey>, StartError> {
        let Some(connection) = self.config.connections.iter().find(|connection| connection.name == *name) else { return Ok(None) };
        let key = lanes::replay(name, &self.log).await?;
        // Where the log is shared it is taken like any other.
        if self.member.is_none() && !self.pools.has_replay_lane(name) {
            let lane = lanes::replay_lane(connection, &self.config.retry, &self.log, &key);
            self.pools.add_replay_lane(name, lane);
        }
        Ok(Some(key))
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits so long, or until the service stops: true if it does.
    pub(super) async fn stops_within(&self, time: Duration) -> bool {
        let mut stopping = self.stopping.clone();
        timeout(time, stopping.wait_for(|stopping| *stopping)).await.is_ok()
    }
}

/// The routing that a configuration and its lanes make.
pub(super) fn routing(config: &Config, newest: &[Newest]) -> Routing {
    Routing {
        routes: config.routes.clone(),
        lanes: newest.iter().map(|newest| (newest.connection.clone(), newest.span)).collect(),
        max_report: config.http.max_report,
        max_batch: config.http.max_batch,
    }
}

/// The committer's limits.
pub(super) fn limits(config: &Config) -> Limits {
    Limits { max_size: config.store.max_size, retention_ms: config.store.retention_ms }
}

/// Where gap notices go, with these lanes.
pub(super) fn notice_to(config: &Config, newest: &[Newest]) -> Option<NoticeTo> {
    let GapNotice { connection, topic, qos } = config.gap_notice.clone()?;
    let newest = newest.iter().find(|newest| newest.connection == connection)?;
    let lane = LaneKey { connection, lane: newest.span.lane(&topic) };
    Some(NoticeTo { lane, topic, qos })
}

/// What admin shows of a configuration.
pub(super) fn settings(config: &Config, restart_needed: Vec<&'static str>) -> Settings {
    Settings {
        connections: config.connections.iter().map(|connection| connection.name.clone()).collect(),
        file: config.file.clone(),
        since: now(),
        refused: None,
        restart_needed,
    }
}
