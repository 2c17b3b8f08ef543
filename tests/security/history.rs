//! The audit: who did what.

use serde_json::{Value, json};

use crate::setup::{Tokens, ask_as, id_of, report, token};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

fn entries(tidings: &Tidings, query: &str) -> (Vec<(String, String)>, Value) {
    let answer = ask_as(tidings, "prometheus", "GET", &format!("/v1/audit{query}"), "");
    assert_eq!(answer.status, 200, "{answer:?}");
    let found = answer.json();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
    let entries = found["audit"].as_array().unwrap().iter().map(|entry| (text(entry, "who"), text(entry, "what")));
    (entries.collect(), found["next_cursor"].clone())
}

#[test]
fn every_act_is_in_the_history_with_who_did_it() {
    let tokens = Tokens::new();
    let rest = "metrics = 'anyone'\n".to_owned() + &connection(free_port(), "") + PIPELINES;
    let mut tidings = Tidings::start(&(tokens.all() + &rest));
    let id = id_of(&ask_as(&tidings, "ci", "POST", "/v1/reports", &report("acme", "one", 1)));
    let discard = json!({ "ids": [id], "state": "pending", "by": "anna", "reason": "wrong branch" });
    assert_eq!(ask_as(&tidings, "ops", "POST", "/v1/deliveries/discard", &discard.to_string()).json()["done"], 1);
    let backup = ask_as(&tidings, "ops", "POST", "/v1/backups", "").json();
    ask_as(&tidings, "ops", "DELETE", &format!("/v1/backups/{}", backup["id"].as_str().unwrap()), "");
    tokens.write("ci", &(token("ci") + "-renewed"));
    let pipeline = "[[pipeline]]\nname = \"gate\"\nsuccess.mqtt = { topic = \"gate\" }\n";
    assert!(tidings.reload(&(tokens.setting(|name| name != "acme") + "max_report = '2MiB'\n" + &rest + pipeline)));
    let reload = "reloaded the configuration: token acme removed; token ci renewed; the pipelines; http.max_report";
    let expected = [
        ("SIGHUP".to_owned(), reload.to_owned()),
        ("ops".to_owned(), format!("began a backup of everything up to event {}", backup["position"])),
        ("anna (token ops)".to_owned(), format!("discarded 1 pending delivery (wrong branch): {id}")),
    ];
    assert_eq!(entries(&tidings, ""), (expected.to_vec(), Value::Null));
    // Page by page, and behind the restart.
    tidings.stop();
    tidings.run();
    let (mut paged, mut query) = (Vec::new(), "?limit=1".to_owned());
    loop {
        let (found, next) = entries(&tidings, &query);
        assert!(found.len() <= 1);
        paged.extend(found);
        match next.as_str() {
            Some(cursor) => query = format!("?limit=1&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, expected);
    for (query, field) in [("?limit=0", "limit"), ("?limit=x", "limit"), ("?cursor=x", "cursor"), ("?since=2h", "since")] {
        let answer = ask_as(&tidings, "prometheus", "GET", &format!("/v1/audit{query}"), "");
        assert_eq!((answer.status, answer.json()["error"]["field"].as_str().unwrap_or_default()), (422, field), "{query}");
    }
    let file = tokens.path("prometheus").display().to_string();
    let (code, text) = tidings.command(&["audit", "--token-file", &file]);
    assert!(code == Some(0) && text.contains("anna (token ops)") && text.contains(reload), "{text}");
    let (_, text) = tidings.command(&["audit", "--json", "--limit", "2", "--token-file", &file]);
    let text = text.lines().next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap()["audit"].as_array().unwrap().len(), 2);
}

#[test]
fn what_changes_nothing_is_no_act() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let post = |path: &str, body: Value| tidings.post(path, &body.to_string()).unwrap();
    assert_eq!(post("/v1/dead/requeue", json!({ "filter": {}, "by": "ops" })).json()["done"], 0);
    assert_eq!(post("/v1/deliveries/discard", json!({ "filter": {}, "by": "ops", "state": "pending", "dry_run": true })).status, 200);
    assert_eq!(tidings.get("/v1/audit").unwrap().json()["audit"], json!([]));
}
