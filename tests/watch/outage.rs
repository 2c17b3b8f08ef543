//! An outage, as whoever is on duty sees it.

use std::cell::Cell;

use crate::load::under_load;
use crate::prometheus::Prometheus;
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

/// The first line of `tidings status`.
fn verdict(tidings: &Tidings) -> String {
    let (code, text) = tidings.command(&["status"]);
    assert_eq!(code, Some(0), "{text}");
    text.lines().next().unwrap_or_default().to_owned()
}

fn value(prometheus: &Prometheus, query: &str) -> f64 {
    let found = prometheus.query(query).unwrap();
    found.first().map_or(f64::NAN, |series| series["value"][1].as_str().unwrap().parse().unwrap())
}

#[test]
fn an_outage_under_load_is_seen_in_status_in_prometheus_and_by_an_alert_and_so_is_its_end() {
    let mut mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let prometheus = Prometheus::start(tidings.address());
    let waited = Cell::new(0.0);
    let ledger = under_load(&tidings, || {
        wait_until("reports flow", || subscriber.count() > 50 && verdict(&tidings).starts_with("flowing: "));
        wait_until("all is well", || prometheus.firing().is_empty());

        mosquitto.stop();
        wait_until("status says so", || verdict(&tidings).starts_with("NOT FLOWING for "));
        wait_until("an alert fires", || prometheus.firing().contains(&"TidingsBrokerAway".to_owned()));
        let said = verdict(&tidings);
        assert!(
            said.contains("no lane of mqtt is connected to its broker; ") && said.contains("reports are accepted and kept, "),
            "{said}"
        );
        assert!(tidings.command(&["status"]).1.lines().nth(1).unwrap().contains("Connection refused"));
        assert!(!said.contains("for 0s:"), "it is so since it was lost, and not since the last try: {said}");
        let json = tidings.get("/v1/status").unwrap().json();
        assert_eq!((&json["verdict"]["flow"], &json["verdict"]["reasons"][0]["code"]), (&"not_flowing".into(), &"broker_away".into()));
        assert_eq!(tidings.get("/readyz").unwrap().status, 200, "that is what it is for");
        wait_until("the backlog is seen", || {
            waited.set(value(&prometheus, "tidings_backlog_deliveries{connection=\"mqtt\"}"));
            waited.get() > 0.0
        });
        let age = "tidings_oldest_pending_age_seconds{connection=\"mqtt\"}";
        wait_until("the age of the oldest is seen", || value(&prometheus, age) > 0.0);
        wait_until("one thing is wrong, and one alert fires", || prometheus.firing() == ["TidingsBrokerAway"]);

        mosquitto.run();
        wait_until("the alert ends", || prometheus.firing().is_empty());
        wait_until("reports flow again", || verdict(&tidings).starts_with("flowing: "));
        assert!(value(&prometheus, "max_over_time(tidings_backlog_deliveries[1h])") >= waited.get(), "the outage is in the records");
    });
    tidings.wait_until_delivered();
    wait_until("Prometheus sees that the backlog is gone", || value(&prometheus, "sum(tidings_backlog_deliveries)") == 0.0);
    assert_eq!(verdict(&tidings), "flowing: reports are accepted and delivered; nothing waits");
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    tidings.assert_balanced();
    // Four lanes, twice each.
    assert!(value(&prometheus, "tidings_connects_total{connection=\"mqtt\"}") >= 8.0, "each connect counts");
    for (alert, error) in prometheus.rules() {
        assert_eq!(error, "", "{alert} can't be evaluated");
    }
}
