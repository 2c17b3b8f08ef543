//! `GET /metrics`.
//!
//! Counters are kept up to date where things happen. Gauges of what *is* (backlog, ages, windows, lanes) are set here at each scrape, so that
//! they never disagree with `/v1/status`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};

use super::cluster::Peered;
use super::{Admin, View};
use crate::core::types::ConnectionName;
use crate::delivery::board::LaneState;
use crate::log::committer::now;

/// The Prometheus text format, as its documentation names it.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response<Body> {
    let mut response = Response::new(Body::from(admin.scrape()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    response
}

impl Admin {
    fn scrape(&self) -> String {
        let _alone = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        let (metrics, now) = (&self.metrics, now());
        let queue = self.log.queue();
        metrics.tidings_commit_queue_requests.set(gauge(queue.requests as u64));
        metrics.tidings_commit_queue_bytes.set(gauge(queue.bytes as u64));
        let committed = self.log.progress().borrow().committed;
        metrics.tidings_log_position.with_label_values(&[&self.log.store_id().to_string()]).set(gauge(committed.0));
        let peered = self.peered();
        let views = self.views(peered.as_ref());
        self.gauge_cluster(peered.as_ref(), &views);
        // Lanes come and go with their sets; the series of one that is gone must go too.
        metrics.tidings_connection_up.reset();
        for (name, view) in &views {
            let label = [name.as_str()];
            let age_ms = view.oldest_pending_at().map_or(0, |oldest| now.since(oldest));
            metrics.tidings_backlog_deliveries.with_label_values(&label).set(gauge(view.books.totals.pending));
            metrics.tidings_oldest_pending_age_seconds.with_label_values(&label).set(age_ms as f64 / 1_000.0);
            metrics.tidings_inflight_deliveries.with_label_values(&label).set(gauge(view.in_flight()));
            metrics.tidings_dead_letters.with_label_values(&label).set(gauge(view.books.totals.dead));
            let suspended = view.lanes.values().filter(|lane| lane.state == LaneState::Suspended).count();
            metrics.tidings_lanes_suspended.with_label_values(&label).set(gauge(suspended as u64));
            for (lane, status) in &view.lanes {
                let up = metrics.tidings_connection_up.with_label_values(&[name.as_str(), &lane.to_string()]);
                up.set(i64::from(status.state == LaneState::Connected));
            }
        }
        metrics.render()
    }

    /// Where the log is this service's own, there are none of these: a 0 would say that something is wrong.
    fn gauge_cluster(&self, peered: Option<&Peered>, views: &BTreeMap<ConnectionName, View>) {
        let metrics = &self.metrics;
        for family in [
            &metrics.tidings_cluster_instances,
            &metrics.tidings_cluster_leader,
            &metrics.tidings_cluster_lease_kept,
            &metrics.tidings_cluster_lanes_owned,
            &metrics.tidings_cluster_lanes_without_owner,
            &metrics.tidings_stream_leader,
            &metrics.tidings_stream_replica_lag,
            &metrics.tidings_stream_replica_up,
        ] {
            family.reset();
        }
        let Some(peered) = peered else { return };
        let alone: [&str; 0] = [];
        let (live, silent): (Vec<_>, Vec<_>) = peered.owners.members().partition(|instance| peered.is_live(*instance));
        metrics.tidings_cluster_instances.with_label_values(&["live"]).set(gauge(live.len() as u64));
        metrics.tidings_cluster_instances.with_label_values(&["silent"]).set(gauge(silent.len() as u64));
        metrics.tidings_cluster_leader.with_label_values(&alone).set(i64::from(peered.leads()));
        metrics.tidings_cluster_lease_kept.with_label_values(&alone).set(i64::from(peered.cluster.is_kept));
        metrics.tidings_cluster_lanes_without_owner.with_label_values(&alone).set(gauge(peered.without_owner(views) as u64));
        for (name, view) in views {
            metrics.tidings_cluster_lanes_owned.with_label_values(&[name.as_str()]).set(gauge(view.lanes.len() as u64));
        }
        let Some(health) = self.log.peers().and_then(|peers| peers.health()) else { return };
        metrics.tidings_stream_leader.with_label_values(&alone).set(i64::from(health.leader.is_some()));
        for replica in &health.replicas {
            let label = [replica.name.as_str()];
            metrics.tidings_stream_replica_lag.with_label_values(&label).set(gauge(replica.lag));
            metrics.tidings_stream_replica_up.with_label_values(&label).set(i64::from(!replica.is_offline));
        }
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
