//! The one place that knows every room: channels, start order, stop order.
//!
//! ```text
//!   start: store ─▶ recovery ─▶ committer ─▶ lane sets ─▶ HTTP ─▶ lanes      (what accepts is up before what delivers)
//!   stop:  HTTP ─▶ lanes finish what is in flight ─▶ checkpoint ─▶ exit      (each with a limit)
//! ```

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::admin::{self, Admin};
use crate::config::{Config, ConnectionConfig, ProtocolChoice};
use crate::core::event::{Event, LanePurpose};
use crate::core::outbox::LaneSet;
use crate::core::retry::RetryPolicy;
use crate::core::session::Settings;
use crate::core::types::LaneKey;
use crate::delivery::board::Board;
use crate::delivery::codec::Credentials;
use crate::delivery::lane::{self, LaneConfig, LaneError, Surroundings};
use crate::ingest::accept::Ingest;
use crate::ingest::http;
use crate::ingest::lanes::{LaneDirectory, LaneSpan};
use crate::log::committer::{self, CommitError, Limits, LogHandle, RecoverError, now};
use crate::log::sled_log::{Options, SledLog};
use crate::log::{LastStop, OpenError};
use crate::metrics::Metrics;
use crate::server;

/// At a stop, so long the lanes get to finish what is in flight. What is not finished by then goes on at the next start.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A commit that takes longer than this hangs: the disk is gone, or a thread of the store has died. The process ends, and restarts.
const COMMIT_HANGS: Duration = Duration::from_secs(60);

/// How long a broker keeps a lane's session while Tidings is away, in seconds: a week, as long as reports are kept by default.
const SESSION_EXPIRY_S: u32 = 7 * 24 * 60 * 60;

/// From the start of a connection attempt to CONNACK, in milliseconds: a broker that is slower is of no use.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// From a packet to its acknowledgement, in milliseconds: long enough for a broker that writes to a slow disk.
const ACK_TIMEOUT_MS: u64 = 30_000;

/// A lane that failed starts again after this, and after twice as long each time: soon, but not in a busy loop.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// And after this at most.
const AFTER_FAILURE_AT_MOST: Duration = Duration::from_secs(300);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store could not be read.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The address is taken, or not this machine's.
    #[error("listening on {address} failed: {error}; choose another `http.listen`, or stop what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// A task ended before it should.
    #[error("internal fault at the start, please report it: {0}")]
    Internal(String),
}

/// Why the service did not stop cleanly. Nothing that was accepted is lost; the next start takes a little longer.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The store could not be closed.
    #[error("closing the store failed: {0}")]
    Close(#[from] CommitError),
}

/// A running service.
pub struct Running {
    address: SocketAddr,
    log: LogHandle,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    stopping: watch::Sender<bool>,
    drain: watch::Sender<bool>,
    http: JoinHandle<()>,
    lanes: JoinSet<()>,
    store: PathBuf,
}

/// Opens the store, recovers what is in it, and starts everything.
///
/// # Errors
/// See [`StartError`]; nothing has been accepted then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let metrics = Arc::new(Metrics::new());
    let limits = Limits { max_size: config.store.max_size, retention_ms: config.store.retention_ms };
    let log = open_log(&config, limits, &metrics).await?;
    let lanes = arrange_lanes(&config, &log).await?;
    let address = config.http.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
    let address = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
    let board = Arc::new(Board::default());
    let (stopping, stop) = watch::channel(false);
    let (drain, drained) = watch::channel(false);
    let ingest = Ingest {
        log: log.clone(),
        routes: Arc::new(config.routes.clone()),
        lanes: Arc::new(lanes.directory),
        metrics: Arc::clone(&metrics),
        max_report: config.http.max_report,
    };
    let configured = config.connections.iter().map(|connection| connection.name.clone()).collect();
    let admin = Admin::new(log.clone(), Arc::clone(&board), Arc::clone(&metrics), configured, limits, stop.clone());
    let http_limits = http::Limits { max_batch: config.http.max_batch, ..http::Limits::default() };
    let app = http::routes(ingest, http_limits).merge(admin::routes(admin));
    let mut told = stop;
    let shutdown = async move {
        // The sender going away is a stop, too.
        let _ = told.wait_for(|stopping| *stopping).await;
    };
    let http = tokio::spawn(server::serve(listener, app, server::Limits::default(), shutdown));
    let mut tasks = JoinSet::new();
    let around = Surroundings { log: log.clone(), board: Arc::clone(&board), metrics: Arc::clone(&metrics), drain: drained };
    for lane in lanes.to_run {
        metrics.touch_connection(lane.settings.lane.connection.as_str());
        tasks.spawn(supervise(lane, around.clone()));
    }
    tracing::info!(%address, store = %config.store.path.display(), store_id = %log.store_id(), "tidings is accepting reports");
    Ok(Running { address, log, board, metrics, stopping, drain, http, lanes: tasks, store: config.store.path })
}

/// Runs a lane, and again if it fails or panics: trouble in one lane must not end in reports that wait for ever, and the log has all that it
/// needs. Only a log that has stopped ends it.
async fn supervise(config: LaneConfig, around: Surroundings) {
    let config = Arc::new(config);
    let mut wait = AFTER_FAILURE;
    loop {
        let (lane, around_it) = (Arc::clone(&config), around.clone());
        // Dropped with this task, it takes the lane with it.
        let mut task = JoinSet::new();
        task.spawn(async move { lane::run(&lane, &around_it).await });
        match task.join_next().await {
            Some(Ok(Ok(()) | Err(LaneError::Log(CommitError::Stopped | CommitError::Store(_))))) | None => return,
            // It is logged, and on the board.
            Some(Ok(Err(_))) => {}
            Some(Err(error)) if error.is_panic() => {
                let key = &config.settings.lane;
                tracing::error!(lane = %key, "the lane panicked, which is a fault in Tidings: please report it; it starts again from the log");
            }
            Some(Err(_)) => return,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AFTER_FAILURE_AT_MOST);
    }
}

/// Opens and recovers the store, off the runtime's threads.
async fn open_log(config: &Config, limits: Limits, metrics: &Arc<Metrics>) -> Result<LogHandle, StartError> {
    let path = config.store.path.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let opened = SledLog::open(&path, Options::default())?;
        let outbox = committer::recover(&opened)?;
        Ok::<_, StartError>((opened, outbox))
    });
    let (opened, outbox) = opening.await.map_err(|error| StartError::Internal(error.to_string()))??;
    match opened.last_stop {
        LastStop::Fresh => tracing::info!(store = %config.store.path.display(), "a new store"),
        LastStop::Clean => {}
        LastStop::Unclean => tracing::warn!("the last run did not stop cleanly; everything that was accepted has been recovered"),
    }
    let log = committer::start(opened.log, outbox, limits, Arc::clone(metrics))?;
    if opened.is_copy {
        let reason = "the store's folder is a copy of another".to_owned();
        tracing::warn!("the store's folder is a copy: the broker's sessions are left to the original, and new ones are opened");
        log.record(vec![Event::EpochBumped { reason, at: now() }]).await?;
        log.adopt_copy().await?;
    }
    Ok(log)
}

struct Lanes {
    directory: LaneDirectory,
    to_run: Vec<LaneConfig>,
}

/// Makes sure that every connection has its set of lanes, and says which lanes are to run.
async fn arrange_lanes(config: &Config, log: &LogHandle) -> Result<Lanes, StartError> {
    let mut directory = Vec::new();
    let mut to_run = Vec::new();
    for connection in &config.connections {
        let name = connection.name.clone();
        let asked = name.clone();
        let known = log.ask(move |outbox| outbox.connections().get(&asked).map(known_lanes)).await?.into_inner().unwrap_or_default();
        let set = match known.newest {
            Some(set) if set.count == connection.workers => set,
            _ => {
                let set = LaneSet { first: known.next_lane, count: connection.workers, purpose: LanePurpose::Fresh };
                let (first, count, purpose) = (set.first, set.count, set.purpose);
                log.record(vec![Event::LanesChanged { connection: name.clone(), first, count, purpose, at: now() }]).await?;
                set
            }
        };
        let count = NonZeroU32::new(set.count).ok_or_else(|| StartError::Internal(format!("connection {name} has no lanes")))?;
        directory.push((name.clone(), LaneSpan { first: set.first, count }));
        let lane = |number: u32, after: Option<u32>, is_retired: bool| {
            let key = LaneKey { connection: name.clone(), lane: number };
            lane_config(connection, config, log, key, after, is_retired)
        };
        // Also those of the set that was the newest until just now.
        let older: Vec<_> = known.with_backlog.iter().filter(|(_, first)| *first != set.first).collect();
        let after = (!older.is_empty()).then_some(set.first);
        to_run.extend(older.into_iter().map(|(number, first)| lane(*number, Some(*first), true)));
        to_run.extend((set.first..set.first + set.count).map(|number| lane(number, after, false)));
    }
    Ok(Lanes { directory: directory.into_iter().collect(), to_run })
}

#[derive(Default)]
struct KnownLanes {
    newest: Option<LaneSet>,
    next_lane: u32,
    /// Lanes with a backlog, each with the first number of its set.
    with_backlog: Vec<(u32, u32)>,
}

fn known_lanes(connection: &crate::core::outbox::Connection) -> KnownLanes {
    let newest = connection.newest_set(LanePurpose::Fresh);
    let has_backlog = |number: &u32| connection.lanes.get(number).is_some_and(|lane| lane.pending() > 0);
    let lanes =
        |set: &LaneSet| (set.first..set.first + set.count).filter(has_backlog).map(|number| (number, set.first)).collect::<Vec<_>>();
    let with_backlog = connection.sets.iter().flat_map(lanes).collect();
    KnownLanes { newest, next_lane: connection.next_lane(), with_backlog }
}

fn lane_config(
    connection: &ConnectionConfig,
    config: &Config,
    log: &LogHandle,
    key: LaneKey,
    after: Option<u32>,
    is_retired: bool,
) -> LaneConfig {
    let user = connection.user.clone().unwrap_or_default();
    // Two connections may lead to the same broker, where a client id is one session.
    let origin = format!("{} {}", log.store_id(), connection.name);
    let origin = xxhash_rust::xxh3::xxh3_64(origin.as_bytes()) >> 32;
    let settings = Settings {
        lane: key,
        // Eight digits for store and connection: with the default client id it stays within the 23 bytes that every broker has to take
        // (MQTT 5.0 §3.1.3.1).
        client_id: format!("{}-{origin:08x}", connection.client_id),
        endpoint: format!("{}:{} {user}", connection.server, connection.port),
        protocol: match connection.protocol {
            ProtocolChoice::Auto => None,
            ProtocolChoice::Only(protocol) => Some(protocol),
        },
        keepalive_s: connection.keepalive_s,
        window_5: connection.window,
        window_3_1_1: connection.window_3_1_1,
        session_expiry_s: SESSION_EXPIRY_S,
        connect_timeout_ms: CONNECT_TIMEOUT_MS,
        ack_timeout_ms: ACK_TIMEOUT_MS,
        retry: RetryPolicy { initial_ms: config.retry.initial_ms, max_ms: config.retry.max_ms, attempts: config.retry.attempts },
    };
    LaneConfig {
        settings,
        server: connection.server.clone(),
        port: connection.port,
        credentials: Credentials { user: connection.user.clone(), password: connection.password.clone() },
        after,
        is_retired,
    }
}

impl Running {
    /// Where the API is.
    pub fn http_addr(&self) -> SocketAddr {
        self.address
    }

    /// The log.
    pub fn log(&self) -> &LogHandle {
        &self.log
    }

    /// What every lane is doing.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Waits until the store fails or hangs, and says how.
    pub async fn failed(&self) -> String {
        let mut progress = self.log.progress();
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                failed = progress.wait_for(|progress| progress.failed.is_some()) => {
                    return match failed {
                        Ok(progress) => progress.failed.clone().unwrap_or_default(),
                        Err(_) => "the committer is gone".into(),
                    };
                }
                _ = look.tick() => {
                    if let Some(busy) = self.log.busy_for().filter(|busy| *busy > COMMIT_HANGS) {
                        let store = self.store.display();
                        return format!("a commit to {store} has not ended for {} s; look at the disk", busy.as_secs());
                    }
                }
            }
        }
    }

    /// Whether the committer is at work, or waiting for work: the sign of life for a watchdog.
    pub fn is_alive(&self) -> bool {
        self.log.busy_for().is_none_or(|busy| busy < COMMIT_HANGS)
    }

    /// Stops: takes no more reports, lets the lanes finish what is in flight, and closes the store. Each with a limit.
    ///
    /// # Errors
    /// [`StopError::Close`]; nothing is lost then.
    pub async fn stop(mut self) -> Result<(), StopError> {
        self.stopping.send_replace(true);
        if let Err(error) = (&mut self.http).await {
            tracing::error!(%error, "the HTTP server ended badly");
        }
        self.drain.send_replace(true);
        let finish = async { while self.lanes.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, finish).await.is_err() {
            tracing::warn!("what is in flight was not acknowledged in time; it goes on at the next start");
            self.lanes.shutdown().await;
        }
        self.log.stop().await?;
        tracing::info!("stopped");
        Ok(())
    }
}
