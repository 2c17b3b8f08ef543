//! Tokens that are for some tenants only: what belongs to others is as if it were not there.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::setup::{Tokens, ask_as, ask_with, id_of, report, token};
use crate::support::mosquitto::free_port;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::{PATIENCE, wait_until};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// A service whose broker is away.
fn start() -> (Tokens, Tidings) {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES));
    (tokens, tidings)
}

fn post(tidings: &Tidings, name: &str, body: &str) -> crate::setup::Answer {
    ask_as(tidings, name, "POST", "/v1/reports", body)
}

fn created(tidings: &Tidings) -> u64 {
    let status = ask_as(tidings, "ops", "GET", "/v1/status", "").json();
    status["connections"][0]["totals"]["created"].as_u64().unwrap()
}

#[test]
fn a_token_posts_for_its_tenants_and_nothing_of_a_request_for_another_is_accepted() {
    let (_tokens, tidings) = start();
    let id = id_of(&post(&tidings, "acme-ci", &report("acme", "one", 1)));
    let shown = ask_as(&tidings, "ops", "GET", &format!("/v1/deliveries/{id}"), "").json();
    assert_eq!((&shown["user"], &shown["tenant"]), (&json!("acme-ci"), &json!("acme")));
    for tenant in ["umbrella", "acm", "acme ", "ACME"] {
        let answer = post(&tidings, "acme-ci", &report(tenant, "one", 2));
        assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden_tenant"), "{tenant:?}: {answer:?}");
        assert_eq!(answer.json()["error"]["field"], "tenant");
    }
    let batch = [report("acme", "one", 3), report("umbrella", "one", 4), report("acme", "one", 5)].join("\n");
    let answer = ask_with(&tidings, "POST", "/v1/reports", Some(&token("acme-ci")), &[("Content-Type", "application/x-ndjson")], &batch);
    assert_eq!((answer.status, answer.json()["error"]["field"].as_str()), (403, Some("line 2: tenant")), "{answer:?}");
    assert_eq!(created(&tidings), 1);
    assert_eq!(tidings.metric("tidings_ingest_rejected_total{code=\"forbidden_tenant\",source=\"http\"}"), 5.0);
    assert_eq!(post(&tidings, "ci", &report("umbrella", "one", 6)).status, 202, "others are not narrowed");
}

#[test]
fn an_idempotency_key_belongs_to_the_token_that_it_came_with() {
    let (_tokens, tidings) = start();
    let post = |name: &str| {
        let headers = [JSON, ("Idempotency-Key", "the-same-key")];
        id_of(&ask_with(&tidings, "POST", "/v1/reports", Some(&token(name)), &headers, &report("acme", "one", 1)))
    };
    let (first, other) = (post("ci"), post("acme-ci"));
    assert_ne!(first, other, "two producers happened on one key");
    assert_eq!((post("ci"), post("acme-ci"), created(&tidings)), (first, other, 2));
}

#[test]
fn a_token_sees_what_belongs_to_its_tenants_and_the_rest_is_not_there() {
    let (_tokens, tidings) = start();
    let own = id_of(&post(&tidings, "ci", &report("acme", "one", 1)));
    let other = id_of(&post(&tidings, "ci", &report("umbrella", "two", 2)));
    let ids = |name: &str, query: &str| -> Vec<String> {
        let found = ask_as(&tidings, name, "GET", &format!("/v1/deliveries{query}"), "").json();
        found["deliveries"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids("prometheus", ""), [other.clone(), own.clone()]);
    assert_eq!(
        (ids("acme", ""), ids("acme", "?tenant=umbrella"), ids("acme", "?topic=zuul/%2B")),
        (vec![own.clone()], vec![], vec![own.clone()])
    );
    for path in [format!("/v1/deliveries/{own}"), format!("/v1/deliveries/{own}/payload")] {
        assert_eq!(ask_as(&tidings, "acme", "GET", &path, "").status, 200, "{path}");
    }
    for path in [format!("/v1/deliveries/{other}"), format!("/v1/deliveries/{other}/payload")] {
        let answer = ask_as(&tidings, "acme", "GET", &path, "");
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_delivery"), "{path}");
        assert!(!answer.text.contains("umbrella") && !answer.text.contains("two"), "{answer:?}");
    }
    for (method, path) in [("GET", "/v1/audit"), ("POST", "/v1/moves"), ("POST", "/v1/backups")] {
        let answer = ask_as(&tidings, "acme-ops", method, path, "");
        assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden_tenant"), "{method} {path}");
    }
    let status = ask_as(&tidings, "acme", "GET", "/v1/status", "").json();
    assert_eq!((&status["connections"][0]["backlog"], &status["config"]["file"]), (&json!(2), &json!(null)));
    let is_silent = |lane: &serde_json::Value| lane["last_error"].is_null();
    assert!(status["connections"][0]["lanes"].as_array().unwrap().iter().all(is_silent), "{status}");
}

#[test]
fn a_decision_is_about_deliveries_of_its_tenants_and_leaves_the_others_alone() {
    let tokens = Tokens::new();
    let broker = ScriptedBroker::start(|packet| match packet.publish().is_some() {
        true => vec![Act::Refuse(0x90)],
        false => vec![Act::Usual],
    });
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(broker.port, "") + SOON + PIPELINES));
    let own: Vec<String> = (0..2).map(|number| id_of(&post(&tidings, "ci", &report("acme", "one", number)))).collect();
    let other = id_of(&post(&tidings, "ci", &report("umbrella", "two", 9)));
    let dead = || ask_as(&tidings, "ops", "GET", "/v1/status", "").json()["connections"][0]["dead_letters"].as_u64().unwrap();
    wait_until("all are dead letters", || dead() == 3);
    let decide = |body: serde_json::Value| ask_as(&tidings, "acme-ops", "POST", "/v1/dead/discard", &body.to_string()).json();
    let named = decide(json!({ "ids": [own[0], other] }));
    assert_eq!((&named["done"], &named["skipped"]), (&json!(1), &json!([other])));
    let all = decide(json!({ "filter": {} }));
    assert_eq!((&all["done"], &all["ids"], &all["remaining"], dead()), (&json!(1), &json!([own[1]]), &json!(0), 1));
    // And what is pending.
    let away = start();
    let own = id_of(&post(&away.1, "ci", &report("acme", "one", 1)));
    let other = id_of(&post(&away.1, "ci", &report("umbrella", "two", 2)));
    for (which, done) in [(json!({ "ids": [other.clone()] }), 0), (json!({ "filter": {} }), 1)] {
        let mut body = which;
        body["state"] = json!("pending");
        let found = ask_as(&away.1, "acme-ops", "POST", "/v1/deliveries/discard", &body.to_string()).json();
        assert_eq!(found["done"], done, "{found}");
    }
    let state = |id: &str| ask_as(&away.1, "ops", "GET", &format!("/v1/deliveries/{id}"), "").json()["state"].clone();
    assert_eq!((state(&own), state(&other)), (json!("discarded"), json!("pending")));
}

#[test]
fn who_follows_the_events_is_told_of_his_own_tenants() {
    let tokens = Tokens::new();
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(broker.port, "workers = 1") + SOON + PIPELINES));
    let mut stream = TcpStream::connect(tidings.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", token("acme"));
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut seen = String::new();
    let mut until = |what: &str, times: usize| {
        while seen.matches(what).count() < times {
            seen += &(lines.next().expect("the events go on").unwrap() + "\n");
        }
        seen.clone()
    };
    until(": these are the events", 1);
    post(&tidings, "ci", &report("acme", "one", 1));
    until("event: delivered", 1);
    for number in 0..5 {
        post(&tidings, "ci", &report("umbrella", "two", number));
    }
    post(&tidings, "ci", &report("acme", "three", 1));
    let seen = until("event: delivered", 2);
    assert_eq!(seen.matches("event: accepted").count(), 2, "{seen}");
    assert!(!seen.contains("umbrella") && !seen.contains("two"), "{seen}");
}

#[test]
fn a_replay_is_of_its_tenants_and_other_replays_are_not_there() {
    let tokens = Tokens::new();
    let broker = ScriptedBroker::start(|_| vec![Act::Usual]);
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(broker.port, "") + SOON + PIPELINES));
    post(&tidings, "ci", &report("acme", "one", 1));
    post(&tidings, "ci", &report("umbrella", "two", 2));
    let totals = || ask_as(&tidings, "ops", "GET", "/v1/status", "").json()["connections"][0]["totals"].clone();
    wait_until("both are delivered", || totals()["pending"] == 0 && totals()["created"] == 2);
    let replay = |name: &str, body: serde_json::Value| ask_as(&tidings, name, "POST", "/v1/replays", &body.to_string());
    let matches = |name: &str| replay(name, json!({ "filter": {}, "dry_run": true })).json()["matches"].clone();
    assert_eq!((matches("ops"), matches("acme-ops")), (json!(2), json!(1)));
    let refused = replay("acme-ops", json!({ "filter": { "tenant": "umbrella" } }));
    assert_eq!((refused.status, refused.json()["error"]["field"].as_str()), (422, Some("tenant")), "{refused:?}");
    let everything = replay("ops", json!({ "filter": {} })).json()["id"].as_str().unwrap().to_owned();
    let own = replay("acme-ops", json!({ "filter": {} })).json()["id"].as_str().unwrap().to_owned();
    wait_until("three are replayed", || totals()["created"] == 5 && totals()["pending"] == 0);
    let listed = |name: &str| -> Vec<serde_json::Value> {
        let found = ask_as(&tidings, name, "GET", "/v1/replays", "").json();
        found["replays"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect()
    };
    assert_eq!((listed("acme"), listed("ops")), (vec![json!(own)], vec![json!(own), json!(everything)]));
    for (method, name) in [("GET", "acme"), ("DELETE", "acme-ops")] {
        let answer = ask_as(&tidings, name, method, &format!("/v1/replays/{everything}"), "");
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_replay"), "{method}");
    }
}
