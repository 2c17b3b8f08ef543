//! `GET /v1/status`: everything at a glance. The same types are what `tidings status` reads.
//!
//! | Module | Says |
//! |---|---|
//! | [`cluster`] | the instances over one log, their lanes, and the servers that hold it |
//! | [`verdict`] | whether reports flow, and if not, why and since when |

pub mod cluster;
pub mod verdict;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use self::cluster::Cluster;
use self::verdict::Verdict;
use super::cluster::{Peered, Place};
use super::settings::Settings;
use super::{Admin, View};
use crate::core::outbox::Totals;
use crate::core::types::{ConnectionName, Millis, Protocol};
use crate::delivery::board::LaneStatus;
use crate::log::committer::now;
use crate::server::caller::Caller;
use crate::server::error::json;

/// The service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version that runs.
    pub version: String,
    /// The id of its store.
    pub store_id: String,
    /// When this was so (RFC 3339).
    pub now: String,
    /// Since when it runs, in seconds.
    pub uptime_seconds: u64,
    /// Whether it has been told to stop.
    pub stopping: bool,
    /// The store.
    pub store: Store,
    /// The configuration.
    pub config: Config,
    /// The MQTT listener; null if there is none.
    #[serde(default)]
    pub listener: Option<Listener>,
    /// Connections, by name.
    pub connections: Vec<Connection>,
    /// Replay jobs under way.
    pub replays: usize,
    /// The instances over one log; not there where the log is this service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// Whether reports flow, and why not: [`Verdict::of`] this status. None from an older service.
    #[serde(default)]
    pub verdict: Option<Verdict>,
}

/// The MQTT listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where publishers connect.
    pub address: String,
    /// How many are connected.
    pub connections: u64,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// What it takes on disk.
    pub bytes: u64,
    /// What is left on its file system for it.
    pub free_bytes: u64,
    /// Reports are refused when less than so much is free.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// Reports are refused beyond so many bytes.
    pub max_bytes: u64,
    /// How long delivered reports stay.
    pub retention_seconds: u64,
    /// The position of the last durable event, as text.
    pub committed: String,
    /// Whether reports are refused because it is full.
    pub full: bool,
    /// Why.
    pub full_reason: Option<String>,
    /// Since when (RFC 3339).
    #[serde(default)]
    pub full_since: Option<String>,
    /// Why it is dead, if it is.
    pub failed: Option<String>,
}

/// So many mistakes of a configuration are shown. The log has more of them.
const MISTAKES: usize = 50;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The file that it is from.
    pub file: Option<String>,
    /// Since when it is in force (RFC 3339).
    pub since: String,
    /// Whether the last try to change it was successful; true if there was none.
    pub last_reload_successful: bool,
    /// When the last one was refused, if it was (RFC 3339).
    pub refused_at: Option<String>,
    /// The mistakes that it was refused for.
    pub mistakes: Vec<String>,
    /// Keys that the file has changed, and that keep their old values until a restart.
    pub restart_needed: Vec<String>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its name.
    pub name: String,
    /// Whether the configuration names it.
    pub configured: bool,
    /// Pending deliveries.
    pub backlog: u64,
    /// Age of the oldest of them; null if there is none.
    pub oldest_pending_age_seconds: Option<f64>,
    /// Sent and not acknowledged.
    pub inflight: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// The books, over restarts.
    pub totals: Books,
    /// Its lanes.
    pub lanes: Vec<Lane>,
}

/// The books of a connection: created = pending + acknowledged + sent + dead + expired + discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Deliveries created: accepted + replayed.
    pub created: u64,
    /// From accepted reports.
    pub accepted: u64,
    /// By replays.
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
    /// Sends that may have arrived twice.
    pub possible_duplicates: u64,
    /// Whether the equation holds.
    pub balanced: bool,
}

/// A lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Its number.
    pub lane: u32,
    /// Whether it is for replays, and sends when the others have nothing to send.
    #[serde(default)]
    pub replay: bool,
    /// What it is doing: idle, connecting, connected, backing_off, suspended, stopped; of several instances also elsewhere (another one drives it: ask
    /// that one how) and unowned.
    pub state: String,
    /// What the instance is called that drives it, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Since when it is connected, or since when it is not (RFC 3339); null for one that is not at work.
    #[serde(default)]
    pub since: Option<String>,
    /// The MQTT version of its session, once there is one.
    pub protocol: Option<String>,
    /// The server that it was connected to last.
    #[serde(default)]
    pub server: Option<String>,
    /// Pending deliveries.
    pub pending: u64,
    /// Sent and not acknowledged.
    pub in_flight: u64,
    /// Refused, and waiting for a retry.
    pub waiting: u64,
    /// The last trouble.
    pub last_error: Option<LaneError>,
}

/// Trouble of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneError {
    /// When (RFC 3339).
    pub at: String,
    /// What.
    pub message: String,
}

pub(super) async fn status(State(admin): State<Arc<Admin>>, Extension(caller): Extension<Caller>) -> Response<Body> {
    let mut status = admin.status(now());
    if caller.tenants().is_some() {
        status.leave_out_what_others_wrote();
    }
    // At last: it quotes what the status says, and nothing that has been left out.
    status.verdict = Some(Verdict::of(&status));
    json(StatusCode::OK, &status)
}

impl Status {
    /// For a caller who may see some tenants only: numbers and states stay, and every text goes in which a topic, a report or a setting of another tenant
    /// might be quoted.
    fn leave_out_what_others_wrote(&mut self) {
        self.config.file = None;
        self.config.mistakes.clear();
        for lane in self.connections.iter_mut().flat_map(|connection| &mut connection.lanes) {
            lane.last_error = None;
        }
    }
}

impl Admin {
    pub(super) fn status(&self, now: Millis) -> Status {
        let progress = self.log.progress().borrow().clone();
        let settings = self.settings.borrow().clone();
        let store = Store {
            bytes: progress.space.used,
            free_bytes: progress.space.free,
            reserved_bytes: progress.reserved,
            max_bytes: progress.limits.max_size,
            retention_seconds: progress.limits.retention_ms / 1_000,
            committed: progress.committed.to_string(),
            full: progress.full.is_some(),
            full_reason: progress.full,
            full_since: progress.full_since.map(Millis::rfc3339),
            failed: progress.failed,
        };
        let peered = self.peered();
        let views = self.views(peered.as_ref());
        let health = || self.log.peers().and_then(|peers| peers.health());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_id: self.log.store_id().to_string(),
            now: now.rfc3339(),
            uptime_seconds: self.started.elapsed().as_secs(),
            stopping: *self.stopping.borrow(),
            store,
            config: config(&settings),
            listener: self.listener.map(|address| Listener {
                address: address.to_string(),
                connections: u64::try_from(self.metrics.tidings_listener_connections.get()).unwrap_or_default(),
            }),
            connections: views.iter().map(|(name, view)| connection(name, view, peered.as_ref(), now)).collect(),
            replays: progress.replays,
            cluster: peered.map(|peered| Cluster::of(&peered, &views, health())),
            verdict: None,
        }
    }
}

fn config(settings: &Settings) -> Config {
    let refused = settings.refused.as_ref();
    Config {
        file: settings.file.as_ref().map(|file| file.display().to_string()),
        since: settings.since.rfc3339(),
        last_reload_successful: refused.is_none(),
        refused_at: refused.map(|refused| refused.at.rfc3339()),
        mistakes: refused.map(|refused| refused.mistakes.lines().take(MISTAKES).map(str::to_owned).collect()).unwrap_or_default(),
        restart_needed: settings.restart_needed.iter().map(|key| (*key).to_owned()).collect(),
    }
}

fn connection(name: &ConnectionName, view: &View, peered: Option<&Peered>, now: Millis) -> Connection {
    // Where lanes are at work, those of earlier sets that are empty and gone are of no interest.
    let is_shown = |(_, pending): &(&u32, &u64)| **pending > 0 || (view.lanes.is_empty() && view.elsewhere.is_empty());
    let in_books = view.books.lanes.iter().filter(is_shown).map(|(number, _)| number);
    let numbers: std::collections::BTreeSet<u32> = in_books.chain(view.lanes.keys()).chain(view.elsewhere.keys()).copied().collect();
    let lane = |number: u32| {
        let pending = view.books.lanes.get(&number).copied().unwrap_or_default();
        let is_replay = view.books.replay_lanes.contains(&number);
        let here = lane(number, is_replay, pending, view.lanes.get(&number).cloned().unwrap_or_default());
        match view.elsewhere.get(&number) {
            None | Some(Place::Here) => here,
            Some(Place::At(owner)) => {
                let member = peered.and_then(|peered| peered.owners.member(*owner));
                let owner = member.map_or_else(|| owner.to_string(), |member| member.name.clone());
                Lane { state: "elsewhere".to_owned(), owner: Some(owner), ..here }
            }
            Some(Place::Nowhere) => Lane { state: "unowned".to_owned(), ..here },
        }
    };
    Connection {
        name: name.to_string(),
        configured: view.is_configured,
        backlog: view.books.totals.pending,
        oldest_pending_age_seconds: view.oldest_pending_at().map(|oldest| now.since(oldest) as f64 / 1_000.0),
        inflight: view.in_flight(),
        dead_letters: view.books.totals.dead,
        totals: view.books.totals.into(),
        lanes: numbers.into_iter().map(lane).collect(),
    }
}

fn lane(number: u32, replay: bool, pending: u64, status: LaneStatus) -> Lane {
    Lane {
        lane: number,
        replay,
        state: status.state.name().to_owned(),
        owner: None,
        since: status.since.map(Millis::rfc3339),
        protocol: status.protocol.map(|protocol: Protocol| protocol.name().to_owned()),
        server: status.server,
        pending,
        in_flight: status.in_flight,
        waiting: status.waiting,
        last_error: status.last_error.map(|(at, message)| LaneError { at: at.rfc3339(), message }),
    }
}

impl From<Totals> for Books {
    fn from(totals: Totals) -> Self {
        Books {
            created: totals.created(),
            accepted: totals.accepted,
            replayed: totals.replayed,
            acknowledged: totals.acknowledged,
            sent: totals.sent,
            dead: totals.dead,
            expired: totals.expired,
            discarded: totals.discarded,
            pending: totals.pending,
            possible_duplicates: totals.possible_duplicates,
            balanced: totals.balance(),
        }
    }
}
