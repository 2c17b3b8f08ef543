//! Alive, and accepting.
//!
//! Both are about Tidings, not about brokers: a service whose broker is away is healthy and ready, because taking reports then is what it is for.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::Admin;
use super::cluster::Place;
use crate::delivery::board::LaneState;
use crate::server::error::json;

/// A commit that takes longer than this is taken for a disk or a thread that hangs for good. Disks in trouble come back within seconds.
const STUCK: Duration = Duration::from_secs(60);

/// The same of a log that is kept by other machines: it goes on by itself when they do, and ends by itself after five minutes.
const STUCK_SHARED: Duration = Duration::from_secs(360);

/// About as long as a restart takes, and not so long that a load balancer that heeds it comes back late.
const LOOK_AGAIN_S: u64 = 5;

#[derive(Serialize)]
struct Alive {
    alive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    connections: Vec<Connection>,
    /// Connections that have a backlog and are no longer configured: nobody delivers it until someone moves it.
    unconfigured: Vec<Unconfigured>,
}

#[derive(Serialize)]
struct Connection {
    name: String,
    /// Whether every lane is connected that this instance drives, and none is without an owner. Says nothing about readiness.
    up: bool,
    backlog: u64,
}

#[derive(Serialize)]
struct Unconfigured {
    name: String,
    backlog: u64,
    advice: String,
}

/// `GET /healthz`.
pub(super) async fn healthz(State(admin): State<Arc<Admin>>) -> Response<Body> {
    let reason = admin.broken();
    answer(reason.is_none(), &Alive { alive: reason.is_none(), reason })
}

/// `GET /readyz`.
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Response<Body> {
    let reason = admin.not_accepting();
    let (mut connections, mut unconfigured) = (Vec::new(), Vec::new());
    for (name, view) in admin.views(admin.peered().as_ref()) {
        let backlog = view.books.totals.pending;
        if view.is_configured {
            let is_driven = !view.lanes.is_empty() || !view.elsewhere.is_empty();
            let is_owned = view.elsewhere.values().all(|place| *place != Place::Nowhere);
            let up = is_driven && is_owned && view.lanes.values().all(|lane| lane.state == LaneState::Connected);
            connections.push(Connection { name: name.to_string(), up, backlog });
        } else if backlog > 0 {
            let advice = format!(
                "{backlog} deliveries wait for the connection {name}, which is no longer configured: \
                 configure it again, or `tidings move --from {name} --to CONNECTION`"
            );
            unconfigured.push(Unconfigured { name: name.to_string(), backlog, advice });
        }
    }
    answer(reason.is_none(), &Ready { ready: reason.is_none(), reason, connections, unconfigured })
}

/// 200, or 503 with when to look again.
fn answer(is_well: bool, body: &impl Serialize) -> Response<Body> {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = json(status, body);
    if !is_well {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(LOOK_AGAIN_S));
    }
    response
}

impl Admin {
    /// What is broken for good, so that only a restart helps.
    fn broken(&self) -> Option<String> {
        if let Some(failed) = &self.log.progress().borrow().failed {
            return Some(failed.clone());
        }
        let stuck = if self.log.is_shared() { STUCK_SHARED } else { STUCK };
        let busy = self.log.busy_for().filter(|busy| *busy > stuck)?;
        Some(format!("the store has not answered for {} s", busy.as_secs()))
    }

    /// Why reports would be refused.
    fn not_accepting(&self) -> Option<String> {
        if *self.stopping.borrow() {
            return Some("the service is stopping".into());
        }
        let full = || self.log.progress().borrow().full.as_ref().map(|full| format!("the store is full: {full}"));
        self.broken().or_else(full).or_else(|| self.cut_off())
    }

    /// Why this instance can't accept while others may: it can't write to the log.
    fn cut_off(&self) -> Option<String> {
        let is_kept = self.cluster.borrow().as_ref().is_none_or(|cluster| cluster.is_kept);
        let why = "the servers that hold the log don't answer this instance, or have no majority";
        (!is_kept).then(|| why.to_owned())
    }
}
