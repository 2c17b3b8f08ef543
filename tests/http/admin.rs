//! Health, status and metrics.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;
use tidings::core::types::{LaneKey, Millis, Protocol};
use tidings::delivery::board::LaneState;
use tidings::log::committer::now;

use super::service::{JSON, NDJSON, Service, Setup, report, start, start_with};

fn lane(connection: &str, lane: u32) -> LaneKey {
    LaneKey { connection: connection.into(), lane }
}

/// Two deliveries for `mqtt`, one of them in flight on lane 1.
fn busy() -> Service {
    let service = start();
    service.post(NDJSON, format!("{}\n{}\n", report("success", 1), report("success", 2)).as_bytes());
    service.board.post(&lane("mqtt", 1), |status| {
        status.state = LaneState::Connected;
        status.protocol = Some(Protocol::V5);
        status.in_flight = 1;
    });
    service.board.post(&lane("mqtt", 0), |status| {
        status.state = LaneState::BackingOff;
        status.last_error = Some((Millis(1_524_801_179_855), "connection refused".into()));
    });
    service
}

#[test]
fn ready_and_alive_while_every_broker_is_away() {
    let service = busy();
    assert_eq!((service.get("/healthz").status, service.get("/healthz").json()), (200, json!({"alive": true})));
    let reply = service.get("/readyz");
    let expected = json!({"ready": true, "unconfigured": [], "connections": [
        {"name": "mqtt", "up": false, "backlog": 2}, {"name": "second", "up": false, "backlog": 0}]});
    assert_eq!((reply.status, reply.json()), (200, expected));
}

#[test]
fn a_backlog_of_a_connection_that_is_gone_is_named_and_does_no_harm() {
    let disk = busy().end();
    let service = start_with(Setup { config: "[connection.other]\ndriver = 'mqtt'\n", disk, ..Setup::default() });
    let reply = service.get("/readyz");
    assert_eq!(reply.status, 200);
    let unconfigured = &reply.json()["unconfigured"];
    assert_eq!((&unconfigured[0]["name"], &unconfigured[0]["backlog"]), (&json!("mqtt"), &json!(2)));
    assert_eq!(unconfigured[1], json!(null), "`second` has nothing to deliver");
    assert_eq!(service.get("/v1/status").json()["connections"][0]["configured"], json!(false));
}

#[test]
fn not_ready_once_it_is_told_to_stop() {
    let service = start();
    service.announce_stop();
    let reply = service.get("/readyz");
    assert_eq!((reply.status, &reply.json()["ready"]), (503, &json!(false)));
    assert_eq!(service.get("/healthz").status, 200, "a stop is no illness");
    assert_eq!(service.get("/v1/status").json()["stopping"], json!(true));
}

#[test]
fn status_shows_books_lanes_and_store() {
    let began = Instant::now();
    let service = busy();
    let status = service.get("/v1/status").json();
    assert_eq!(status["version"], json!(env!("CARGO_PKG_VERSION")));
    assert_eq!(status["store_id"], json!("00000000000000ab"));
    assert_eq!(status["store"]["full"], json!(false));
    assert_eq!(status["store"]["retention_seconds"], json!(3_600));
    let mqtt = &status["connections"][0];
    assert_eq!(
        (&mqtt["name"], &mqtt["backlog"], &mqtt["inflight"], &mqtt["dead_letters"]),
        (&json!("mqtt"), &json!(2), &json!(1), &json!(0))
    );
    assert_eq!(mqtt["totals"]["created"], json!(2));
    assert_eq!(mqtt["totals"]["balanced"], json!(true));
    assert!(mqtt["oldest_pending_age_seconds"].as_f64().unwrap() < began.elapsed().as_secs_f64() + 1.0);
    let lanes = mqtt["lanes"].as_array().unwrap();
    assert_eq!(lanes.len(), 4);
    assert_eq!(lanes[0]["last_error"], json!({"at": "2018-04-27T03:52:59.855Z", "message": "connection refused"}));
    assert_eq!((&lanes[1]["state"], &lanes[1]["protocol"], &lanes[1]["in_flight"]), (&json!("connected"), &json!("5"), &json!(1)));
    assert_eq!(status["connections"][1]["oldest_pending_age_seconds"], json!(null));
}

#[test]
fn gauges_say_what_is_so_at_the_scrape() {
    let began = Instant::now();
    let service = busy();
    let hour_ago = Millis(now().0 - 3_600_000);
    for number in 0..4 {
        service.board.post(&lane("mqtt", number), |status| status.oldest_pending_at = Some(hour_ago));
    }
    assert_eq!(service.metric(r#"tidings_backlog_deliveries{connection="mqtt"}"#), 2.0);
    assert_eq!(service.metric(r#"tidings_inflight_deliveries{connection="mqtt"}"#), 1.0);
    assert_eq!(service.metric(r#"tidings_dead_letters{connection="mqtt"}"#), 0.0);
    assert_eq!(service.metric(r#"tidings_backlog_deliveries{connection="second"}"#), 0.0);
    assert_eq!(service.metric(r#"tidings_connection_up{connection="mqtt",lane="1"}"#), 1.0);
    assert_eq!(service.metric(r#"tidings_connection_up{connection="mqtt",lane="0"}"#), 0.0);
    let age = service.metric(r#"tidings_oldest_pending_age_seconds{connection="mqtt"}"#);
    assert!((3_600.0..3_601.0 + began.elapsed().as_secs_f64()).contains(&age), "{age}");
    service.board.remove(&lane("mqtt", 1));
    assert!(!service.get("/metrics").text.contains(r#"tidings_connection_up{connection="mqtt",lane="1"}"#));
}

#[test]
fn prometheus_finds_no_fault_with_the_metrics() {
    let service = busy();
    service.post(JSON, report("failure", 1).as_bytes());
    service.post(JSON, b"rubbish");
    let reply = service.get("/metrics");
    assert_eq!(reply.header("content-type").as_deref(), Some("text/plain; version=0.0.4; charset=utf-8"));
    let checking =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut checking = checking.expect("promtool is needed: it is in Debian's package `prometheus`");
    checking.stdin.take().unwrap().write_all(reply.text.as_bytes()).unwrap();
    let checked = checking.wait_with_output().unwrap();
    assert!(checked.status.success(), "{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
}
