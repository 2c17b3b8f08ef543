//! The one place that knows every room: channels, start order, stop order.
//!
//! ```text
//!   start: listener bound ─▶ store ─▶ recovery ─▶ committer ─▶ lane sets ─▶ listener, HTTP ─▶ lanes      (what accepts is up before what delivers)
//!   stop:  HTTP, listener ─▶ lanes finish what is in flight ─▶ checkpoint ─▶ exit      (each with a limit)
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`control`] | the one task that changes what runs |
//! | [`reload`] | another configuration, while the service runs |
//! | [`files`] | whether a certificate was renewed |
//! | [`certificates`] | when certificates end |
//! | [`access`] | who may come in over HTTP |
//! | [`moving`] | what is pending on one connection is given to another |
//! | [`repairing`] | dead letters go back or are given up, and so is what is pending |
//! | [`replaying`] | what was delivered is delivered again |
//! | [`listener`] | the MQTT listener's place: bound first, served once the store is open |
//! | [`lanes`] | which lanes a connection has, and that each of them runs |
//! | [`members`] | which of them run here, where several instances share a log |
//! | [`pools`] | the lanes at work, and how they stop |
//! | [`store_move`] | a store moves from a folder to servers, or back |
//! | [`store`] | which log is opened, and how |

mod access;
mod certificates;
mod control;
mod files;
mod lanes;
mod listener;
mod members;
mod moving;
mod patience;
mod pools;
mod reload;
mod repairing;
mod replaying;
mod store;
mod store_move;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use control::{Command, Control};
use members::Member;
use pools::{DRAIN_TIMEOUT, Pools};
pub use reload::{Changes, ReloadError};
use replaying::Replaying;
pub use store_move::{MoveStoreError, Moved, MovedStore, move_store, move_store_back};

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::core::types::ConnectionName;
use crate::delivery::board::Board;
use crate::ingest::accept::Ingest;
use crate::ingest::http;
use crate::ingest::routing::InForce;
use crate::log::OpenError;
use crate::log::committer::{CommitError, LogHandle, RecoverError};
use crate::metrics::Metrics;
use crate::server;

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store was moved to servers.
    #[error(transparent)]
    Moved(#[from] Moved),
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
    /// The same, of the MQTT listener.
    #[error("listening on {address} failed: {error}; choose another `listener.listen`, or stop what uses it")]
    ListenMqtt {
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
    /// The store does not answer.
    #[error(
        "the store was not closed within {} s, and is left as it is: nothing that was accepted is lost, and the next start reads a little more; look at the disk, or at \
         the store's servers",
        CLOSE_TIMEOUT.as_secs()
    )]
    Hangs,
    /// Something waited for a commit that did not come. The store is closed all the same.
    #[error(
        "what was under way did not end within {} s, because the store takes nothing in, and was given up: nothing that was accepted is lost; look at the disk, or at \
         the store's servers",
        LANES_TIMEOUT.as_secs()
    )]
    GivenUp,
}

/// So long what is under way and then the lanes get to finish: a decision may be waiting for lanes itself, and so takes as long as these. Where it waits for a commit
/// it might do so for ever, on a disk that is full to the last byte, or over servers without a majority.
const LANES_TIMEOUT: Duration = Duration::from_secs(2 * DRAIN_TIMEOUT.as_secs());

/// The store is given so long to close: a commit of it may hang for minutes where its servers are gone. A little more than these have for a
/// checkpoint; with the 20 s at most of publishers and requests, and those of lanes, it stays within the minute that a service manager waits.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// A running service.
pub struct Running {
    address: SocketAddr,
    log: LogHandle,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    stopping: watch::Sender<bool>,
    http: JoinHandle<()>,
    /// Where publishers connect, and what serves them.
    listener: Option<(SocketAddr, JoinHandle<()>)>,
    /// Takes the lanes along when it is gone; and what samples for charts.
    control: JoinSet<()>,
    commands: mpsc::Sender<Command>,
    /// Where the store is, in words.
    store: String,
    /// A commit that takes longer hangs.
    commit_hangs: Duration,
}

/// Opens the store, recovers what is in it, and starts everything.
///
/// # Errors
/// See [`StartError`]; nothing has been accepted then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let bound = listener::bind(&config)?;
    let metrics = Arc::new(Metrics::new());
    let (log, member) = store::open(&config, control::limits(&config), &metrics).await?;
    let mut newest = Vec::with_capacity(config.connections.len());
    for connection in &config.connections {
        newest.push(lanes::newest(connection, &log).await?);
    }
    let address = config.http.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
    let address = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
    let board = Arc::new(Board::default());
    let (stopping, stop) = watch::channel(false);
    let routing = InForce::new(control::routing(&config, &newest));
    let ingest = Ingest { log: log.clone(), routing: routing.clone(), metrics: Arc::clone(&metrics) };
    let (settings, shown) = watch::channel(control::settings(&config, Vec::new()));
    let (moves, asked_moves) = mpsc::channel(admin::moves::WAITING);
    let (repairs, asked_repairs) = mpsc::channel(admin::repairs::WAITING);
    let admin = Admin::new(log.clone(), Arc::clone(&board), Arc::clone(&metrics), shown, moves, stop.clone());
    let admin = match &member {
        Some(member) => admin.with_cluster(member.shown()),
        None => admin,
    };
    let admin = Arc::new(admin.with_listener(bound.as_ref().map(|bound| bound.address)));
    let backups = admin::backups::routes(log.clone(), store::folder(&config));
    let limits = http::Limits { commit_timeout: store::commit_timeout(&config), ..http::Limits::default() };
    let app = http::routes(ingest, limits).merge(admin::routes(Arc::clone(&admin))).merge(backups);
    let app = app.merge(admin::deliveries::routes(log.clone())).merge(admin::repairs::routes(repairs));
    let (replays, asked_replays) = mpsc::channel(admin::replays::WAITING);
    let lives = admin::replays::Lives::default();
    let app = app.merge(admin::replays::routes(log.clone(), replays, lives.clone()));
    let app = app.merge(admin::events::routes(log.clone(), Arc::clone(&board), stop.clone()));
    let app = app.merge(admin::audit::routes(log.clone()));
    let app = app.merge(admin::page::routes());
    let mut told = stop.clone();
    let shutdown = async move {
        // The sender going away is a stop, too.
        let _ = told.wait_for(|stopping| *stopping).await;
    };
    let (publishers, admitted) = watch::channel(listener::access(&config, &log));
    let listening = bound.map(|bound| (bound.address, listener::serve(bound, admitted, &log, routing.clone(), &metrics, stop.clone())));
    let (door, rules) = access::door(&config, &metrics);
    access::warn(&config.http);
    let http = tokio::spawn(server::serve_behind(door, listener, app, server::Limits::default(), shutdown));
    let (notices, notified) = watch::channel(control::notice_to(&config, &newest));
    let mut pools = Pools::new(log.clone(), Arc::clone(&board), Arc::clone(&metrics), notified);
    // Where the log is shared they are taken, one by one.
    for (connection, newest) in config.connections.iter().zip(&newest).filter(|_| member.is_none()) {
        pools.start(&connection.name, lanes::to_run(connection, &config.retry, newest, &log).await?);
    }
    let (store, commit_hangs) = (config.store.place(), store::commit_hangs(&config));
    let is_encrypted = config.http.tls.is_some();
    tracing::info!(%address, tls = is_encrypted, store, store_id = %log.store_id(), "tidings is accepting reports");
    let (commands, told) = mpsc::channel(control::COMMANDS);
    let files = read_files(&config).await;
    let (control, stopping_replays) = (commands.clone(), stop.clone());
    let leads = member.as_ref().map(Member::leads);
    let replaying = Replaying { log: log.clone(), metrics: Arc::clone(&metrics), lives, control, leads, stopping: stopping_replays };
    let mut beating = JoinSet::new();
    if let Some(member) = &member {
        beating.spawn(member.clone().beat(log.clone()));
        beating.spawn(member.clone().look_at_lease());
        pools = pools.while_kept(member.kept());
    }
    let control = Control {
        config,
        files,
        log: log.clone(),
        metrics: Arc::clone(&metrics),
        routing,
        settings,
        rules,
        publishers,
        pools,
        notices,
        stopping: stop,
        member,
        beating,
        leaving: BTreeSet::new(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(control.run(told, asked_moves, asked_repairs));
    tasks.spawn(replaying.run(asked_replays));
    tasks.spawn(admin::history::sample(admin));
    Ok(Running { address, log, board, metrics, stopping, http, listener: listening, control: tasks, commands, store, commit_hangs })
}

/// What the files hold that the connections' TLS is made of.
async fn read_files(config: &Config) -> BTreeMap<ConnectionName, u64> {
    let connections = config.connections.clone();
    tokio::task::spawn_blocking(move || files::fingerprints(&connections)).await.unwrap_or_default()
}

impl Running {
    /// Where the API is.
    pub fn http_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where MQTT publishers connect, if they may.
    pub fn listener_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|(address, _)| *address)
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
                // It ends by itself at a stop only.
                () = self.commands.closed() => return "the task that starts and stops lanes has ended, which is a fault in Tidings".into(),
                _ = look.tick() => {
                    if let Some(busy) = self.log.busy_for().filter(|busy| *busy > self.commit_hangs) {
                        let store = &self.store;
                        return format!("a commit to {store} has not ended for {} s; look at the disk, or the servers, that it is kept on", busy.as_secs());
                    }
                }
            }
        }
    }

    /// Whether the committer is at work, or waiting for work: the sign of life for a watchdog.
    pub fn is_alive(&self) -> bool {
        self.log.busy_for().is_none_or(|busy| busy < self.commit_hangs)
    }

    /// Puts another configuration in force: one that has been read, or its mistakes, which are logged and counted then. Returns when it is in
    /// force, and everything that had to stop or start for it has.
    ///
    /// # Errors
    /// See [`ReloadError`]; what was in force before still is, if it had mistakes.
    pub async fn reload(&self, read: Result<Config, String>) -> Result<Changes, ReloadError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Reload { read: read.map(Box::new), reply };
        self.commands.send(command).await.map_err(|_| ReloadError::Stopping)?;
        answer.await.unwrap_or(Err(ReloadError::Stopping))
    }

    /// Stops: takes no more reports, lets the lanes finish what is in flight, and closes the store. Each with a limit.
    ///
    /// # Errors
    /// See [`StopError`]; nothing is lost then.
    pub async fn stop(mut self) -> Result<(), StopError> {
        self.stopping.send_replace(true);
        if let Err(error) = (&mut self.http).await {
            tracing::error!(%error, "the HTTP server ended badly");
        }
        if let Some((_, serving)) = &mut self.listener
            && let Err(error) = serving.await
        {
            tracing::error!(%error, "the MQTT listener ended badly");
        }
        let is_ended = timeout(LANES_TIMEOUT, self.stop_lanes()).await.is_ok();
        // With control its lanes go, if it is still there.
        self.control.shutdown().await;
        timeout(CLOSE_TIMEOUT, self.log.stop()).await.map_err(|_| StopError::Hangs)??;
        if !is_ended {
            return Err(StopError::GivenUp);
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Has the lanes finish what is in flight, and waits until nobody changes anything any more.
    async fn stop_lanes(&mut self) {
        let (reply, answer) = oneshot::channel();
        // A control that is gone has taken its lanes along.
        let _ = self.commands.send(Command::Stop { reply }).await;
        if !answer.await.unwrap_or(true) {
            tracing::warn!("what is in flight was not acknowledged in time; it goes on at the next start");
        }
        while self.control.join_next().await.is_some() {}
    }
}
