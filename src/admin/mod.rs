//! Admin: how the service does, for operators, load balancers and Prometheus.
//!
//! Everything that is shown is read from two places that others keep up to date: the committer's [`Progress`](crate::log::committer::Progress) (books and disk, as of the last
//! commit) and the lanes' [`Board`] (sockets and windows). Nothing is asked of the committer, so these
//! routes answer while it is busy, and don't slow it down.
//!
//! | Module | Route | Says |
//! |---|---|---|
//! | [`health`] | `GET /healthz` | alive: 503 means restart it |
//! | [`health`] | `GET /readyz` | accepting: 503 means send reports elsewhere or later |
//! | [`scrape`] | `GET /metrics` | Prometheus text |
//! | [`status`] | `GET /v1/status` | everything at a glance, in JSON |
//! | [`moves`] | `POST /v1/moves` | gives what is pending on one connection to another; the app does it |
//! | [`deliveries`] | `GET /v1/deliveries`, `…/{id}`, `…/{id}/payload` | which there are, and the history of each; reads the log |
//! | [`events`] | `GET /v1/events` | what happens, live; reads the log as it grows |
//! | [`cluster`] | | what is known of other instances over the same log |
//! | [`history`] | `GET /v1/history` | the last hour in figures, for charts |
//! | [`page`] | `GET /`, `/page/…` | the dashboard, which asks the routes above |
//! | [`repairs`] | `POST /v1/dead/requeue`, `/v1/dead/discard`, `/v1/deliveries/discard` | what operators decide about deliveries; the app does it |
//! | [`audit`] | `GET /v1/audit` | who did what; reads the log |
//! | [`replays`] | `/v1/replays`, `…/{id}` | what was delivered is delivered again; the app does it |
//! | [`openapi`] | `GET /openapi.json` | the API, for programs |
//! | [`backups`] | `POST /v1/backups` | what to copy for a backup, and keeps it meanwhile; asks the committer |

pub mod audit;
pub mod backups;
pub mod cluster;
pub mod deliveries;
pub mod events;
pub mod health;
pub mod history;
pub mod moves;
pub mod openapi;
pub mod page;
pub mod repairs;
pub mod replays;
pub mod scrape;
pub mod settings;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::{mpsc, watch};

use cluster::{Cluster, Peered, Place};
use history::History;
use settings::Settings;

use crate::core::types::{ConnectionName, LaneKey, Millis};
use crate::delivery::board::{Board, LaneStatus};
use crate::log::committer::{Books, LogHandle};
use crate::metrics::Metrics;

/// What admin looks at.
pub struct Admin {
    log: LogHandle,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    settings: watch::Receiver<Settings>,
    moves: mpsc::Sender<moves::Ask>,
    /// Where MQTT publishers connect.
    listener: Option<SocketAddr>,
    /// What is known of the other instances; none where the log is this service's own.
    cluster: watch::Receiver<Option<Cluster>>,
    started: Instant,
    /// True once the service has been told to stop.
    stopping: watch::Receiver<bool>,
    /// Scrapes rebuild gauges, one at a time.
    scraping: Mutex<()>,
    /// What it looked like.
    history: History,
}

impl Admin {
    /// Looks at these.
    pub fn new(
        log: LogHandle,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
        settings: watch::Receiver<Settings>,
        moves: mpsc::Sender<moves::Ask>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (started, scraping, history) = (Instant::now(), Mutex::new(()), History::new());
        // Its sender is gone: it says none for good.
        let cluster = watch::channel(None).1;
        Admin { log, board, metrics, settings, moves, listener: None, cluster, started, stopping, scraping, history }
    }

    /// And at this listener.
    pub fn with_listener(self, listener: Option<SocketAddr>) -> Self {
        Admin { listener, ..self }
    }

    /// And at the other instances over the same log.
    pub fn with_cluster(self, cluster: watch::Receiver<Option<Cluster>>) -> Self {
        Admin { cluster, ..self }
    }
}

/// The routes.
pub fn routes(admin: impl Into<Arc<Admin>>) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(scrape::metrics))
        .route("/v1/status", get(status::status))
        .route("/v1/history", get(history::history))
        .route("/v1/moves", post(moves::post))
        .route("/openapi.json", get(openapi::describe))
        .with_state(admin.into())
}

/// One connection, as the books and the board have it.
struct View {
    books: Books,
    /// Those that this instance drives.
    lanes: BTreeMap<u32, LaneStatus>,
    /// Those that it does not, although they have an owner or should have one.
    elsewhere: BTreeMap<u32, Place>,
    is_configured: bool,
}

impl View {
    /// When the oldest pending delivery was accepted, replays apart: these wait for gaps.
    ///
    /// A lane that has read its backlog's head knows precisely; the books know within about a thousand deliveries, and never too late. One lane that
    /// doesn't know yet could hold the oldest, so the books count then. What another instance drives is for that one to say.
    fn oldest_pending_at(&self) -> Option<Millis> {
        if self.books.totals.pending == 0 {
            return None;
        }
        let is_driven_by_another = |lane: &u32| matches!(self.elsewhere.get(lane), Some(Place::At(_)));
        let is_busy =
            |(lane, pending): &(&u32, &u64)| **pending > 0 && !self.books.replay_lanes.contains(lane) && !is_driven_by_another(lane);
        let busy = self.books.lanes.iter().filter(is_busy);
        let precise: Option<Vec<Millis>> = busy.map(|(lane, _)| self.lanes.get(lane).and_then(|status| status.oldest_pending_at)).collect();
        match precise {
            Some(times) if times.is_empty() && !self.elsewhere.is_empty() => None,
            precise => precise.and_then(|times| times.into_iter().min()).or(self.books.oldest_pending_at),
        }
    }

    fn in_flight(&self) -> u64 {
        self.lanes.values().map(|lane| lane.in_flight).sum()
    }
}

impl Admin {
    /// Every connection that is configured, or has ever had a delivery.
    fn views(&self, peered: Option<&Peered>) -> BTreeMap<ConnectionName, View> {
        let books = self.log.progress().borrow().connections.clone();
        let mut lanes: BTreeMap<ConnectionName, BTreeMap<u32, LaneStatus>> = BTreeMap::new();
        for (LaneKey { connection, lane }, status) in self.board.snapshot() {
            lanes.entry(connection).or_default().insert(lane, status);
        }
        let configured = self.settings.borrow().connections.clone();
        let names: BTreeSet<ConnectionName> = configured.iter().chain(books.keys()).chain(lanes.keys()).cloned().collect();
        let view = |name: ConnectionName| {
            let view = View {
                books: books.get(&name).cloned().unwrap_or_default(),
                lanes: lanes.remove(&name).unwrap_or_default(),
                elsewhere: BTreeMap::new(),
                is_configured: configured.contains(&name),
            };
            (name, view)
        };
        let mut views = names.into_iter().map(view).collect();
        if let Some(peered) = peered {
            peered.place_lanes(&mut views);
        }
        views
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::InstanceId;

    fn view(lanes: &[(u32, u64, Option<u64>)], books: Option<u64>) -> View {
        let mut view = View { books: Books::default(), lanes: BTreeMap::new(), elsewhere: BTreeMap::new(), is_configured: true };
        view.books.oldest_pending_at = books.map(Millis);
        for (lane, pending, oldest) in lanes {
            view.books.totals.pending += pending;
            view.books.lanes.insert(*lane, *pending);
            view.lanes.insert(*lane, LaneStatus { oldest_pending_at: oldest.map(Millis), ..LaneStatus::default() });
        }
        view
    }

    #[test]
    fn the_oldest_pending_is_the_lanes_word_where_every_busy_lane_has_one() {
        assert_eq!(view(&[(0, 5, Some(70)), (1, 2, Some(60)), (2, 0, None)], Some(10)).oldest_pending_at(), Some(Millis(60)));
    }

    #[test]
    fn the_books_count_while_a_busy_lane_does_not_know_its_oldest() {
        assert_eq!(view(&[(0, 5, Some(70)), (1, 2, None)], Some(10)).oldest_pending_at(), Some(Millis(10)));
        assert_eq!(view(&[(0, 5, None)], None).oldest_pending_at(), None);
    }

    #[test]
    fn what_another_instance_drives_is_for_that_one_to_say() {
        let mut view = view(&[(0, 5, Some(70)), (1, 2, None)], Some(10));
        view.elsewhere.insert(1, Place::At(InstanceId(7)));
        assert_eq!(view.oldest_pending_at(), Some(Millis(70)));
        view.elsewhere.insert(1, Place::Nowhere);
        assert_eq!(view.oldest_pending_at(), Some(Millis(10)), "nobody else says it");
        view.elsewhere.extend([0, 1].map(|lane| (lane, Place::At(InstanceId(7)))));
        assert_eq!(view.oldest_pending_at(), None);
    }

    #[test]
    fn nothing_pending_has_no_age_whatever_a_lane_says() {
        assert_eq!(view(&[(0, 0, Some(70))], Some(10)).oldest_pending_at(), None);
    }
}
