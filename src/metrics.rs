//! Every metric: name, help, labels, in one table. Label values are bounded by configuration, never by what a client sends.

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Accept → ack, in seconds: from a broker on the same machine to a report that waited out a long weekend.
const LATENCY_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0, 3_600.0, 86_400.0];

/// One commit, in seconds: from a fast NVMe drive to a disk in trouble.
const COMMIT_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2.0, 10.0];

/// Events in one commit: the committer takes at most 1,024, and single requests with more.
const COMMIT_EVENT_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0];

macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $field:ident: $kind:ident = $make:expr;)*) => {
        /// The metrics of one service.
        pub struct Metrics {
            registry: Registry,
            $(#[doc = concat!($($doc),*)] pub $field: $kind,)*
        }

        impl Metrics {
            /// Registers every metric.
            ///
            /// # Panics
            /// Never: the table below names each metric once, which a test holds.
            pub fn new() -> Self {
                let registry = Registry::new();
                $(
                    let help = concat!($($doc),*).trim();
                    let $field: $kind = $make(stringify!($field), help);
                    registry.register(Box::new($field.clone())).expect("each metric is named once");
                )*
                #[cfg(target_os = "linux")]
                {
                    let process = prometheus::process_collector::ProcessCollector::for_self();
                    registry.register(Box::new(process)).expect("the process collector is registered once");
                }
                let metrics = Metrics { registry, $($field,)* };
                for result in ["ok", "refused"] {
                    metrics.tidings_config_reloads_total.with_label_values(&[result]);
                }
                // A service that has taken nothing since its start is to be told from one that is not watched. Of refusals one code
                // stands for all: a sum over them is there from the start, and sees the first one.
                for (source, code) in [("http", "internal"), ("mqtt", "internal")] {
                    metrics.tidings_reports_accepted_total.with_label_values(&[source]);
                    metrics.tidings_ingest_rejected_total.with_label_values(&[source, code]);
                }
                metrics.tidings_config_last_reload_successful.set(1);
                metrics.tidings_build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
                metrics
            }
        }
    };
}

metrics! {
    /// Reports accepted, durably, by the way they came in.
    tidings_reports_accepted_total: IntCounterVec = counters(&["source"]);
    /// Deliveries created: reports bound to a connection.
    tidings_deliveries_created_total: IntCounterVec = counters(&["connection"]);
    /// Reports that no reporter wanted.
    tidings_reports_unrouted_total: IntCounter = counter;
    /// Requests and packets refused, by the way they came in and by the error's code.
    tidings_ingest_rejected_total: IntCounterVec = counters(&["source", "code"]);
    /// Requests over HTTP that were not let in, by why (code: unauthorized, forbidden, forbidden_tenant, too_many_attempts, rate_limited, tls).
    tidings_http_refused_total: IntCounterVec = counters(&["code"]);
    /// Deliveries that are pending.
    tidings_backlog_deliveries: IntGaugeVec = gauges(&["connection"]);
    /// Age of the oldest pending delivery.
    tidings_oldest_pending_age_seconds: GaugeVec = float_gauges(&["connection"]);
    /// Deliveries sent and not yet acknowledged.
    tidings_inflight_deliveries: IntGaugeVec = gauges(&["connection"]);
    /// PUBLISH packets sent, by what became of them (outcome: acknowledged, sent, refused, lost).
    tidings_attempts_total: IntCounterVec = counters(&["connection", "outcome"]);
    /// Deliveries that came to an end since the start (result: acknowledged, sent, dead, expired, discarded).
    tidings_deliveries_total: IntCounterVec = counters(&["connection", "qos", "result"]);
    /// From accept to ack.
    tidings_delivery_latency_seconds: HistogramVec = histograms(&["connection", "qos"], &LATENCY_BUCKETS);
    /// Deliveries sent again although they may have arrived, because a broker's session was lost.
    tidings_possible_duplicates_total: IntCounterVec = counters(&["connection"]);
    /// Dead letters that wait for an operator.
    tidings_dead_letters: IntGaugeVec = gauges(&["connection"]);
    /// Deliveries created by replays.
    tidings_replayed_total: IntCounterVec = counters(&["connection"]);
    /// Lanes that are suspended, because the broker hangs up at whatever they send.
    tidings_lanes_suspended: IntGaugeVec = gauges(&["connection"]);
    /// Whether a lane is connected to its broker.
    tidings_connection_up: IntGaugeVec = gauges(&["connection", "lane"]);
    /// Connections to a broker that were lost or failed, each failed try included.
    tidings_reconnects_total: IntCounterVec = counters(&["connection"]);
    /// Connections to a broker that it has accepted.
    tidings_connects_total: IntCounterVec = counters(&["connection"]);
    /// When a certificate ends, as a Unix time, by where it is used (place: connection, listener, http; name: the connection's) and by option.
    tidings_certificate_expiry_timestamp_seconds: IntGaugeVec = gauges(&["place", "name", "option"]);
    /// Time of one commit: write, flush and sync.
    tidings_commit_seconds: Histogram = histogram(&COMMIT_BUCKETS);
    /// Events in one commit.
    tidings_commit_events: Histogram = histogram(&COMMIT_EVENT_BUCKETS);
    /// Appends that another instance's came before, on a shared log. Each was tried again.
    tidings_log_overtaken_total: IntCounter = counter;
    /// Events of other instances that were new at the last look, on a shared log.
    tidings_log_lag_events: IntGauge = gauge;
    /// The position of the last durable event of the log, by the store's id: the same at all instances over one log, but for what they have yet to read.
    tidings_log_position: IntGaugeVec = gauges(&["store"]);
    /// Instances over the log that have joined and not left (state: live, silent), as this one has heard.
    tidings_cluster_instances: IntGaugeVec = gauges(&["state"]);
    /// Whether this instance leads: it does what is done once for all.
    tidings_cluster_leader: IntGaugeVec = gauges(&[]);
    /// Whether this instance's own sign of life was written within the lease; 0 while others take its lanes.
    tidings_cluster_lease_kept: IntGaugeVec = gauges(&[]);
    /// Lanes that this instance owns.
    tidings_cluster_lanes_owned: IntGaugeVec = gauges(&["connection"]);
    /// Lanes that have work, or will have, and no owner.
    tidings_cluster_lanes_without_owner: IntGaugeVec = gauges(&[]);
    /// Lanes that this instance has taken, on a shared log.
    tidings_cluster_takeovers_total: IntCounter = counter;
    /// Whether one of the servers that hold the log leads; 0 while they have no majority.
    tidings_stream_leader: IntGaugeVec = gauges(&[]);
    /// Operations that a server is behind the one that leads.
    tidings_stream_replica_lag: IntGaugeVec = gauges(&["replica"]);
    /// Whether a server that follows is there.
    tidings_stream_replica_up: IntGaugeVec = gauges(&["replica"]);
    /// What the store takes on disk.
    tidings_store_bytes: IntGauge = gauge;
    /// What it may take on disk: `store.max_size`.
    tidings_store_max_bytes: IntGauge = gauge;
    /// Whether accepts are refused because the store is full.
    tidings_store_full: IntGauge = gauge;
    /// Changes of the configuration while running, by what became of them (result: ok, refused).
    tidings_config_reloads_total: IntCounterVec = counters(&["result"]);
    /// Whether the configuration that is in force is the one that was last asked for; 0 if that had mistakes.
    tidings_config_last_reload_successful: IntGauge = gauge;
    /// What is left on the file system of the store.
    tidings_store_free_bytes: IntGauge = gauge;
    /// What has to be free on the file system of the store for reports to be accepted.
    tidings_store_reserved_bytes: IntGauge = gauge;
    /// What the store keeps to be given up when the disk is full; 0 if it has been.
    tidings_store_ballast_bytes: IntGauge = gauge;
    /// Outcomes of deliveries that wait for room on the disk.
    tidings_store_held_outcomes: IntGauge = gauge;
    /// Requests and outcomes that wait for the committer.
    tidings_commit_queue_requests: IntGauge = gauge;
    /// Bytes of reports that wait for their commit.
    tidings_commit_queue_bytes: IntGauge = gauge;
    /// Connections of publishers to the MQTT listener.
    tidings_listener_connections: IntGauge = gauge;
    /// The version that runs.
    tidings_build_info: IntGaugeVec = gauges(&["version"]);
}

/// What counts deliveries of one connection and QoS that are done: looked up once, and not by their names for each.
pub struct Done {
    attempts: IntCounter,
    deliveries: IntCounter,
    latency: Histogram,
}

impl Done {
    /// One more. `latency_s`: from accept to now, in seconds; none if that says nothing.
    pub fn count(&self, latency_s: Option<f64>) {
        self.attempts.inc();
        self.deliveries.inc();
        if let Some(seconds) = latency_s {
            self.latency.observe(seconds);
        }
    }
}

impl Metrics {
    /// What counts deliveries of a connection that are done at a QoS; `outcome` as in `tidings_attempts_total`.
    pub fn done(&self, connection: &str, qos: &str, outcome: &str) -> Done {
        Done {
            attempts: self.tidings_attempts_total.with_label_values(&[connection, outcome]),
            deliveries: self.tidings_deliveries_total.with_label_values(&[connection, qos, outcome]),
            latency: self.tidings_delivery_latency_seconds.with_label_values(&[connection, qos]),
        }
    }

    /// The Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Encoding into memory fails only for a metric without values, which `gather` leaves out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Makes every series of a connection exist from the start, so that a rate over them is right from the first event.
    pub fn touch_connection(&self, connection: &str) {
        for family in [&self.tidings_deliveries_created_total, &self.tidings_possible_duplicates_total] {
            family.with_label_values(&[connection]);
        }
        for family in [&self.tidings_replayed_total, &self.tidings_reconnects_total, &self.tidings_connects_total] {
            family.with_label_values(&[connection]);
        }
        for family in [&self.tidings_backlog_deliveries, &self.tidings_inflight_deliveries, &self.tidings_dead_letters] {
            family.with_label_values(&[connection]);
        }
        self.tidings_oldest_pending_age_seconds.with_label_values(&[connection]);
        for outcome in ["acknowledged", "sent", "refused", "lost"] {
            self.tidings_attempts_total.with_label_values(&[connection, outcome]);
        }
        for (qos, done) in [("0", "sent"), ("1", "acknowledged"), ("2", "acknowledged")] {
            for result in [done, "dead", "expired", "discarded"] {
                self.tidings_deliveries_total.with_label_values(&[connection, qos, result]);
            }
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("names and help texts of the table are valid")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("names and help texts of the table are valid")
}

fn counters(labels: &'static [&'static str]) -> impl Fn(&str, &str) -> IntCounterVec {
    |name, help| IntCounterVec::new(Opts::new(name, help), labels).expect("names and labels of the table are valid")
}

fn gauges(labels: &'static [&'static str]) -> impl Fn(&str, &str) -> IntGaugeVec {
    |name, help| IntGaugeVec::new(Opts::new(name, help), labels).expect("names and labels of the table are valid")
}

fn float_gauges(labels: &'static [&'static str]) -> impl Fn(&str, &str) -> GaugeVec {
    |name, help| GaugeVec::new(Opts::new(name, help), labels).expect("names and labels of the table are valid")
}

fn histogram(buckets: &'static [f64]) -> impl Fn(&str, &str) -> Histogram {
    |name, help| {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        Histogram::with_opts(options).expect("names and buckets of the table are valid")
    }
}

fn histograms(labels: &'static [&'static str], buckets: &'static [f64]) -> impl Fn(&str, &str) -> HistogramVec {
    |name, help| {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        HistogramVec::new(options, labels).expect("names, labels and buckets of the table are valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_alert_counts_is_there_before_there_is_anything_to_count() {
        let metrics = Metrics::new();
        metrics.touch_connection("mqtt");
        let text = metrics.render();
        for series in [
            "tidings_reports_accepted_total{source=\"http\"} 0",
            "tidings_reports_accepted_total{source=\"mqtt\"} 0",
            "tidings_ingest_rejected_total{code=\"internal\",source=\"mqtt\"} 0",
            "tidings_connects_total{connection=\"mqtt\"} 0",
            "tidings_possible_duplicates_total{connection=\"mqtt\"} 0",
            "tidings_deliveries_total{connection=\"mqtt\",qos=\"2\",result=\"dead\"} 0",
        ] {
            assert!(text.contains(series), "{series} is missing: an increase from nothing is none\n{text}");
        }
    }

    #[test]
    fn every_metric_of_the_table_can_be_rendered() {
        let metrics = Metrics::new();
        metrics.touch_connection("mqtt");
        let text = metrics.render();
        assert!(text.contains("tidings_backlog_deliveries{connection=\"mqtt\"} 0"), "{text}");
        assert!(text.contains("# HELP tidings_store_full Whether accepts are refused"), "{text}");
        assert!(text.contains(concat!("tidings_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")), "{text}");
    }
}
