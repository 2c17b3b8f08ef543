//! `GET /v1/history`: what the last hour looked like, for whoever draws it.
//!
//! ```text
//!   status ─▶ a sample each 5 s ─▶ a ring of an hour, in memory ─▶ GET /v1/history?after=17 ─▶ those since
//! ```
//! Counts are cumulative and outlive restarts, so that rates are right over gaps, too. The ring doesn't: samples are numbered from 1 in each run, and
//! `started_at` tells runs apart. Prometheus is for what is older.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::Admin;
use super::status::Status;
use super::status::verdict::{Flow, Verdict};
use crate::core::types::Millis;
use crate::log::committer::now;
use crate::server::error::{invalid, json};

/// From one sample to the next: an outage of some seconds is seen, and an hour is little to keep and to send.
const STEP: Duration = Duration::from_secs(5);

/// So many samples are kept: an hour of them, in about 100 KiB.
const KEPT: usize = 720;

/// How it was at one moment, summed over all connections.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Sample {
    /// Its number in this run, from 1 on.
    n: u64,
    /// When (RFC 3339).
    at: String,
    /// What the verdict was.
    flow: Flow,
    /// Pending deliveries.
    backlog: u64,
    /// Age of the oldest of them; null if there is none.
    oldest_pending_age_seconds: Option<f64>,
    /// Sent and not acknowledged.
    inflight: u64,
    /// Deliveries made from accepted reports, ever.
    accepted: u64,
    /// Deliveries made by replays, ever.
    replayed: u64,
    /// Acknowledged, or sent at QoS 0, ever.
    delivered: u64,
    /// Dead letters then.
    dead: u64,
    /// Expired, ever.
    expired: u64,
    /// Discarded, ever.
    discarded: u64,
    /// What the store took on disk.
    store_bytes: u64,
}

impl Sample {
    fn of(n: u64, status: &Status) -> Self {
        let sum = |of: fn(&super::status::Connection) -> u64| status.connections.iter().map(of).sum();
        let ages = status.connections.iter().filter_map(|connection| connection.oldest_pending_age_seconds);
        Sample {
            n,
            at: status.now.clone(),
            flow: Verdict::of(status).flow,
            backlog: sum(|connection| connection.backlog),
            oldest_pending_age_seconds: ages.max_by(f64::total_cmp),
            inflight: sum(|connection| connection.inflight),
            accepted: sum(|connection| connection.totals.accepted),
            replayed: sum(|connection| connection.totals.replayed),
            delivered: sum(|connection| connection.totals.acknowledged + connection.totals.sent),
            dead: sum(|connection| connection.dead_letters),
            expired: sum(|connection| connection.totals.expired),
            discarded: sum(|connection| connection.totals.discarded),
            store_bytes: status.store.bytes,
        }
    }
}

/// The ring.
pub(super) struct History {
    started_at: Millis,
    samples: Mutex<VecDeque<Sample>>,
}

impl History {
    pub(super) fn new() -> Self {
        History { started_at: now(), samples: Mutex::new(VecDeque::with_capacity(KEPT)) }
    }

    fn add(&self, status: &Status) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let number = samples.back().map_or(1, |last| last.n + 1);
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(Sample::of(number, status));
    }

    fn after(&self, number: u64) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.n > number).cloned().collect()
    }
}

/// Takes samples until the service stops.
pub async fn sample(admin: Arc<Admin>) {
    let mut stopping = admin.stopping.clone();
    let mut ticks = tokio::time::interval(STEP);
    // Late ones are not made up for: a sample is of its moment.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => admin.history.add(&admin.status(now())),
            // The sender going away is a stop, too.
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

#[derive(Serialize)]
struct Answer {
    /// The run whose numbers these are.
    started_at: String,
    step_s: u64,
    samples: Vec<Sample>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Asked {
    after: Option<String>,
}

pub(super) async fn history(State(admin): State<Arc<Admin>>, asked: Result<Query<Asked>, QueryRejection>) -> Response<Body> {
    let after = match asked {
        Err(_) => return invalid("after", "nothing else can be asked for").into_response(),
        Ok(Query(Asked { after: None })) => 0,
        Ok(Query(Asked { after: Some(text) })) => match text.parse() {
            Ok(number) => number,
            Err(_) => return invalid("after", "expected the number of a sample").into_response(),
        },
    };
    let history = &admin.history;
    let answer = Answer { started_at: history.started_at.rfc3339(), step_s: STEP.as_secs(), samples: history.after(after) };
    let mut response = json(StatusCode::OK, &answer);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(backlog: u64, lane: &str) -> Status {
        let totals = json!({ "created": 9, "accepted": 7, "replayed": 2, "acknowledged": 3, "sent": 2, "dead": 1, "expired": 0, "discarded": 1,
            "pending": backlog, "possible_duplicates": 0, "balanced": true });
        let lane = json!({ "lane": 0, "state": lane, "protocol": null, "pending": 0, "in_flight": 0, "waiting": 0, "last_error": null });
        let connection = |name: &str, age: Option<f64>| {
            json!({ "name": name, "configured": true, "backlog": backlog, "oldest_pending_age_seconds": age, "inflight": 1, "dead_letters": 1,
                "totals": totals, "lanes": [lane] })
        };
        serde_json::from_value(json!({
            "version": "0.1.0", "store_id": "ab", "now": "2026-01-01T00:10:00.000Z", "uptime_seconds": 1, "stopping": false,
            "store": { "bytes": 77, "free_bytes": 1, "max_bytes": 1, "retention_seconds": 1, "committed": "12", "full": false,
                "full_reason": null, "failed": null },
            "config": { "file": null, "since": "2026-01-01T00:00:00.000Z", "last_reload_successful": true, "refused_at": null, "mistakes": [],
                "restart_needed": [] },
            "connections": [connection("a", Some(3.5)), connection("b", None)], "replays": 0
        }))
        .unwrap()
    }

    #[test]
    fn a_sample_sums_over_connections_and_judges_as_the_status_does() {
        let sample = Sample::of(1, &status(4, "connected"));
        assert_eq!((sample.flow, sample.backlog, sample.oldest_pending_age_seconds), (Flow::Flowing, 8, Some(3.5)));
        assert_eq!((sample.accepted, sample.replayed, sample.delivered, sample.dead, sample.store_bytes), (14, 4, 10, 2, 77));
        assert_eq!(Sample::of(2, &status(4, "backing_off")).flow, Flow::NotFlowing);
    }

    #[test]
    fn an_hour_is_kept_and_only_what_is_new_is_told() {
        let history = History::new();
        for backlog in 0..KEPT as u64 + 30 {
            history.add(&status(backlog, "connected"));
        }
        let all = history.after(0);
        assert_eq!((all.len(), all[0].n, all[KEPT - 1].n), (KEPT, 31, 750));
        assert_eq!(history.after(748).iter().map(|sample| sample.backlog).collect::<Vec<_>>(), [2 * 748, 2 * 749]);
        assert!(history.after(750).is_empty() && history.after(u64::MAX).is_empty());
    }
}
