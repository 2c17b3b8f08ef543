//! When certificates end, for [`tidings_certificate_expiry_timestamp_seconds`](Metrics::tidings_certificate_expiry_timestamp_seconds).
//!
//! The files are looked at once a minute: a renewed one is in use from the next connect on, and the metric should not warn of the old one. What
//! a broker shows of itself is seen at the handshake, by its lanes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::config::{Config, ConnectionConfig, End, ListenerTls};
use crate::metrics::Metrics;

/// How often the files are looked at.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// The options of a connection under which a certificate can stand; `server` is the broker's own.
const OF_CONNECTION: [&str; 3] = ["ca_certs", "certfile", "server"];

/// Keeps the metric up to date.
pub(super) struct Certificates {
    metrics: Arc<Metrics>,
    /// Connections that have, or had, a series.
    known: BTreeSet<String>,
    /// The look that is under way: a file system that hangs holds up this one, and no other.
    looking: Option<JoinHandle<()>>,
}

impl Certificates {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Certificates { metrics, known: BTreeSet::new(), looking: None }
    }

    /// Reads the files of this configuration, off the runtime's threads, unless the last reading is still under way.
    pub(super) fn look(&mut self, config: &Config) {
        if self.looking.as_ref().is_some_and(|looking| !looking.is_finished()) {
            return;
        }
        let (metrics, connections) = (Arc::clone(&self.metrics), config.connections.clone());
        let listeners =
            [("listener", config.listener.as_ref().and_then(|listener| listener.tls.clone())), ("http", config.http.tls.clone())];
        let names: BTreeSet<String> = connections.iter().map(|connection| connection.name.to_string()).collect();
        for gone in self.known.difference(&names) {
            forget(&metrics, gone, &OF_CONNECTION);
        }
        self.known = names;
        self.looking = Some(tokio::task::spawn_blocking(move || show(&metrics, &connections, &listeners)));
    }
}

fn show(metrics: &Metrics, connections: &[ConnectionConfig], listeners: &[(&str, Option<ListenerTls>)]) {
    for connection in connections {
        let name = connection.name.as_str();
        match &connection.tls {
            None => forget(metrics, name, &OF_CONNECTION),
            Some(tls) => set(metrics, "connection", name, &["ca_certs", "certfile"], &tls.ends()),
        }
    }
    for (place, tls) in listeners {
        let ends = tls.as_ref().map(ListenerTls::ends).unwrap_or_default();
        set(metrics, place, "", &["certfile", "client_ca"], &ends);
    }
}

/// Sets what there is of these options, and takes away what there is no more: a file that can't be read has no end.
fn set(metrics: &Metrics, place: &str, name: &str, options: &[&str], ends: &[End]) {
    for option in options {
        let labels = [place, name, option];
        match ends.iter().find(|(found, _)| found == option) {
            Some((_, end)) => metrics.tidings_certificate_expiry_timestamp_seconds.with_label_values(&labels).set(*end),
            // There may have been none.
            None => drop(metrics.tidings_certificate_expiry_timestamp_seconds.remove_label_values(&labels)),
        }
    }
}

fn forget(metrics: &Metrics, connection: &str, options: &[&str]) {
    set(metrics, "connection", connection, options, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn a_certificate_that_is_not_used_any_more_has_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let authority = config::certificates::Authority::new("authority");
        authority.write(&folder.path().join("ca.pem"));
        authority.issue(&config::certificates::LOCAL).write(folder.path(), "client");
        let read = |text: &str| config::from_str(&text.replace("@", &path.to_string()), "t").unwrap();
        let encrypted = "[connection.mqtt]\ndriver = 'mqtt'\nca_certs = '@/ca.pem'\ncertfile = '@/client.pem'\nkeyfile = '@/client.key'\n";
        let metrics = Arc::new(Metrics::new());
        let mut certificates = Certificates::new(Arc::clone(&metrics));
        let mut look = async |config: Config| {
            certificates.look(&config);
            certificates.looking.take().unwrap().await.unwrap();
            let text = metrics.render();
            let series = text.lines().filter_map(|line| line.strip_prefix("tidings_certificate_expiry_timestamp_seconds{"));
            series
                .map(|line| line.split_once("} ").unwrap())
                .map(|(labels, end)| (labels.to_owned(), end.parse::<u64>().unwrap()))
                .collect()
        };
        let shown: Vec<(String, u64)> = look(read(encrypted)).await;
        let labels: Vec<&str> = shown.iter().map(|(labels, _)| labels.as_str()).collect();
        let expected = ["ca_certs", "certfile"].map(|option| format!("name=\"mqtt\",option=\"{option}\",place=\"connection\""));
        assert_eq!(labels, expected);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        // The authority's in 60 days, its client's in 30.
        let days: Vec<u64> = shown.iter().map(|(_, end)| (end - now + 43_200) / 86_400).collect();
        assert_eq!(days, [60, 30]);
        // What a lane has seen goes with its connection.
        metrics.tidings_certificate_expiry_timestamp_seconds.with_label_values(&["connection", "mqtt", "server"]).set(1);
        assert_eq!(look(read(encrypted)).await.len(), 3);
        let other = "[connection.other]\ndriver = 'mqtt'\n";
        assert_eq!(look(read(other)).await, Vec::new());
    }
}
