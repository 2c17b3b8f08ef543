//! The form for replays, and its jobs, before something that answers as the API is described to.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::door::{Asked, Door};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

fn job(state: &str, delivered: u64) -> Value {
    json!({
        "id": "00c0ffee00c0ffee", "state": state, "by": "anna", "filter": { "pipeline": "check", "topic": "zuul/#" }, "rate": 50,
        "started_at": "2026-05-04T12:00:00.000Z", "ended_at": null, "cancelled_by": if state == "cancelled" { json!("anna") } else { Value::Null },
        "created": 40, "delivered": delivered, "pending": 40 - delivered, "not_delivered": 0, "searched_percent": 75,
    })
}

#[test]
fn a_replay_is_counted_confirmed_watched_and_cancelled() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let known = Arc::new(Mutex::new(Vec::<Value>::new()));
    let jobs = Arc::clone(&known);
    let door = Door::before(tidings.address(), move |asked: &Asked| {
        let mut jobs = jobs.lock().unwrap();
        Some(match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", "/v1/replays") => (200, json!({ "replays": *jobs }).to_string()),
            ("POST", "/v1/replays") if asked.body.contains("\"tenant\":\"nobody\"") => (
                422,
                json!({ "error": { "code": "invalid_query", "message": "tenant: nobody is none", "field": "filter.tenant" } }).to_string(),
            ),
            ("POST", "/v1/replays") if asked.body.contains("\"dry_run\":true") => {
                (200, json!({ "dry_run": true, "matches": 40, "bytes": 81_920, "complete": false }).to_string())
            }
            ("POST", "/v1/replays") => {
                *jobs = vec![job("running", 10)];
                (201, jobs[0].to_string())
            }
            ("DELETE", "/v1/replays/00c0ffee00c0ffee") => {
                *jobs = vec![job("cancelled", 12)];
                (200, jobs[0].to_string())
            }
            _ => return None,
        })
    });
    let browser = Browser::open(&format!("{}/#replays", door.url()));
    browser.wait_for_text("#replay-note", "No replay was asked for.");
    browser.type_into("#replay-tenant", "nobody");
    browser.click("#replay-form .primary");
    browser.wait_for_text("#replay-error", "nobody is none");
    browser.wait_until("the field is marked", "document.querySelector('#replay-tenant').getAttribute('aria-invalid') === 'true'");
    browser.run("document.querySelector('#replay-tenant').value = '';");
    browser.type_into("#replay-pipeline", "check");
    browser.type_into("#replay-topic", "zuul/#");
    browser.type_into("#replay-form [name=rate]", "50");
    browser.click("#replay-form .primary");
    browser.wait_for_text("#replay-count", "at least 40 delivered reports are delivered again (at least 80.0 KiB), at most 50 each second");
    browser.wait_for_text("#replay-which", "pipeline check, topic zuul/#");
    assert!(known.lock().unwrap().is_empty(), "counting begins nothing");
    browser.type_into("#replay-by", "anna");
    browser.type_into("#replay-reason", "the index was rebuilt");
    browser.click("#replay-go");
    browser.wait_for_text("#notices", "Replay 00c0ffee00c0ffee has begun.");
    let asked = door.asked("POST", "/v1/replays");
    let begun = asked.last().unwrap();
    let body: Value = serde_json::from_str(&begun.body).unwrap();
    assert_eq!(
        body,
        json!({ "filter": { "pipeline": "check", "topic": "zuul/#" }, "rate": 50, "by": "anna", "reason": "the index was rebuilt" })
    );
    assert_eq!(begun.header("idempotency-key").map(str::len), Some(32));
    browser.wait_for_text("#replay-jobs", "75 % searched; 10 of 40 delivered");
    *known.lock().unwrap() = vec![job("running", 25)];
    browser.wait_for_text("#replay-jobs", "25 of 40 delivered");
    browser.click("[data-cancel]");
    browser.wait_for_text("#replay-end-which", "creates no further deliveries");
    browser.click("#replay-end .danger");
    browser.wait_for_text("#replay-jobs", "cancelled by anna");
    assert_eq!(door.asked("DELETE", "/v1/replays/00c0ffee00c0ffee").len(), 1);
    browser.resize(360, 740);
    browser.picture("replays-360.png");
    assert_eq!(browser.logged(), [""; 0]);
}

#[test]
fn a_service_without_replays_is_said_to_have_none() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let door = Door::before(tidings.address(), |asked: &Asked| {
        let none = json!({ "error": { "code": "not_found", "message": "there is nothing here; reports go to POST /v1/reports" } });
        asked.path.starts_with("/v1/replays").then(|| (404, none.to_string()))
    });
    let browser = Browser::open(&format!("{}/#replays", door.url()));
    browser.wait_for_text("#replay-note", "This service has no replays.");
    browser.click("#replay-form .primary");
    browser.wait_for_text("#replay-error", "This service has no replays.");
    assert_eq!(browser.logged(), [""; 0]);
}
