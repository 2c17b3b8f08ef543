//! What is accepted, what is refused, and what is in the log then.

use serde_json::json;
use tidings::core::event::{Event, Source};
use tidings::core::types::Qos;

use super::service::{JSON, NDJSON, Reply, padded, report, start};

#[test]
fn an_accepted_report_is_in_the_log_byte_for_byte() {
    let service = start();
    let odd = "\u{20}{ \"project\":\"wid\\u0067ets\", \"action\" : \"success\",\n\"tenant\":\"acme\",\"pipeline\":\"check\",\"change\":\"42\",\"extra\":[1.50e3,\"é\"]}\r\n";
    let reply = service.post(JSON, odd.as_bytes());
    assert_eq!(reply.status, 202, "{reply:?}");
    assert_eq!(reply.header("content-type").as_deref(), Some("application/json"));
    assert_eq!(reply.json(), json!({"deliveries":[{"id":"3","connection":"mqtt","topic":"acme/check/widgets/42","qos":2}]}));
    let events = service.disk.events();
    let Some(Event::Accepted(accepted)) = events.last() else { panic!("{events:?}") };
    assert_eq!(accepted.payload, odd.as_bytes());
    assert_eq!((accepted.topic.as_str(), accepted.qos, accepted.retain), ("acme/check/widgets/42", Qos::ExactlyOnce, false));
    assert_eq!((accepted.source, accepted.user.as_str()), (Source::Http, ""));
    let named = [&accepted.tenant, &accepted.pipeline, &accepted.action, &accepted.project, &accepted.change];
    assert_eq!(named, ["acme", "check", "success", "widgets", "42"]);
}

#[test]
fn each_reporter_gets_a_delivery_of_its_own_and_all_are_one_commit() {
    let service = start();
    let before = service.disk.appends();
    let body = r#"{"action":"failure","tenant":"acme","pipeline":"check","project":"widgets","buildset":{"builds":[{"job_name":"x","returned_data":{"a":1}}]}}"#;
    let reply = service.post(JSON, body.as_bytes());
    let expected = json!({"deliveries":[
        {"id":"3","connection":"mqtt","topic":"acme/failed/widgets","qos":1},
        {"id":"4","connection":"second","topic":"all","qos":0},
    ]});
    assert_eq!(reply.json(), expected);
    assert_eq!(service.disk.appends(), before + 1);
    let without = body.replace(r#","returned_data":{"a":1}"#, "");
    assert_eq!(service.disk.payloads(), [without.as_bytes(), body.as_bytes()]);
    let Event::Accepted(first) = &service.disk.events()[2] else { panic!() };
    assert!(first.retain);
}

#[test]
fn a_batch_is_one_commit_and_answered_with_an_entry_for_each_report() {
    let service = start();
    let before = service.disk.appends();
    let body = format!("{}\r\n\n{}\n{}", report("success", 1), report("dequeue", 2), report("failure", 3));
    let reply = service.post("Content-Type: application/x-ndjson; charset=utf-8\r\n", body.as_bytes());
    let expected = json!({"reports":[
        {"deliveries":[{"id":"3","connection":"mqtt","topic":"acme/check/widgets/1","qos":2}]},
        {"deliveries":[]},
        {"deliveries":[{"id":"4","connection":"mqtt","topic":"acme/failed/widgets","qos":1},{"id":"5","connection":"second","topic":"all","qos":0}]},
    ]});
    assert_eq!((reply.status, reply.json()), (202, expected));
    assert_eq!(service.disk.appends(), before + 1);
    let (first, third) = (report("success", 1).into_bytes(), report("failure", 3).into_bytes());
    assert_eq!(service.disk.payloads(), [first, third.clone(), third]);
}

#[test]
fn a_batch_with_one_wrong_line_is_refused_whole_and_the_line_is_named() {
    let service = start();
    let before = service.disk.events();
    let good = report("success", 1);
    let wrong = [
        ("{", 400, "invalid_json", "line 3"),
        (
            r#"{"action":"success","tenant":"acme","pipeline":"check","buildset":{"builds":[{"voting":"yes"}]}}"#,
            422,
            "invalid_report",
            "line 3: buildset.builds[0].voting",
        ),
        (&report("start", 1), 422, "topic_unrenderable", "line 3: changes[0]"),
        (&padded(65_537), 413, "too_large", "line 3"),
    ];
    for (line, status, code, field) in wrong {
        let reply = service.post(NDJSON, format!("{good}\n\n{line}\n{good}\n").as_bytes());
        assert_eq!((reply.status, reply.code().as_str(), reply.field().as_deref()), (status, code, Some(field)), "{reply:?}");
        assert!(reply.json()["error"]["message"].as_str().unwrap().starts_with("line 3: "), "{reply:?}");
    }
    assert_eq!(service.disk.events(), before);
    assert_eq!(service.metric(r#"tidings_reports_accepted_total{source="http"}"#), 0.0);
    assert_eq!(service.metric(r#"tidings_ingest_rejected_total{code="topic_unrenderable",source="http"}"#), 1.0);
}

#[test]
fn every_refusal_has_its_status_and_its_code_and_leaves_nothing_behind() {
    let service = start();
    let before = service.disk.events();
    let good = report("success", 1);
    let post = |headers: &str, body: &str| service.post(headers, body.as_bytes());
    let refusals: Vec<(Reply, u16, &str)> = vec![
        (post(JSON, ""), 400, "invalid_json"),
        (post(JSON, "rubbish"), 400, "invalid_json"),
        (service.post(JSON, b"\xff{}"), 400, "invalid_json"),
        (post(JSON, &format!("{good}{good}")), 400, "invalid_json"),
        (post(JSON, &"[".repeat(50_000)), 400, "invalid_json"),
        (post(JSON, "[]"), 422, "invalid_report"),
        (post(JSON, r#"{"action":"success","tenant":"acme"}"#), 422, "invalid_report"),
        (post(JSON, &report("start", 1)), 422, "topic_unrenderable"),
        (post(NDJSON, "\n \r\n"), 400, "empty_batch"),
        (post(NDJSON, &"{}\n".repeat(10_001)), 413, "too_many_reports"),
        (post("", &good), 415, "unsupported_media_type"),
        (post("Content-Type: text/plain\r\n", &good), 415, "unsupported_media_type"),
        (post("Content-Type: application/json; charset=utf-16\r\n", &good), 415, "unsupported_media_type"),
        (post(&format!("{JSON}Content-Encoding: gzip\r\n"), &good), 415, "unsupported_media_type"),
        (post(&format!("{JSON}Idempotency-Key: \r\n"), &good), 400, "invalid_idempotency_key"),
        (post(&format!("{JSON}Idempotency-Key: {}\r\n", "k".repeat(256)), &good), 400, "invalid_idempotency_key"),
        (post(&format!("{JSON}Idempotency-Key: a\r\nIdempotency-Key: a\r\n"), &good), 400, "invalid_idempotency_key"),
        (post(&format!("{JSON}Origin: http://evil.example\r\n"), &good), 403, "forbidden_origin"),
    ];
    for (reply, status, code) in refusals {
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{reply:?}");
        assert_eq!(reply.header("content-type").as_deref(), Some("application/json"));
        assert!(!reply.json()["error"]["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(service.disk.events(), before);
}

#[test]
fn what_is_not_there_is_said_in_json() {
    let service = start();
    let ask = |line: &str, host: &str| service.say(format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
    for path in ["/", "/v1", "/v1/reports/", "/v2/reports", "/%00", "//"] {
        let reply = ask(&format!("GET {path}"), "localhost");
        assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"), "{path}");
    }
    for line in ["GET /v1/reports", "DELETE /v1/reports", "OPTIONS /v1/reports", "POST /metrics", "PUT /healthz", "BREW /v1/status"] {
        let reply = ask(line, "localhost");
        assert_eq!((reply.status, reply.code().as_str()), (405, "method_not_allowed"), "{line}");
        assert!(reply.header("allow").is_some(), "{reply:?}");
    }
    let reply = ask("GET /metrics", "evil.example");
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden_host"));
    let reply = service.say(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_host"));
    assert_eq!(service.say(b"GET /healthz HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn a_report_that_nobody_wants_is_accepted_counted_and_not_stored() {
    let service = start();
    let before = service.disk.events();
    for unwanted in [report("dequeue", 1), report("success", 1).replace("check", "gate")] {
        let reply = service.post(JSON, unwanted.as_bytes());
        assert_eq!((reply.status, reply.json()), (202, json!({"deliveries":[]})));
    }
    assert_eq!(service.disk.events(), before);
    assert_eq!(service.metric("tidings_reports_unrouted_total"), 2.0);
}

#[test]
fn what_is_durable_is_counted() {
    let service = start();
    service.post(JSON, report("failure", 1).as_bytes());
    service.post(NDJSON, format!("{}\n{}\n", report("success", 1), report("success", 2)).as_bytes());
    service.post(JSON, b"rubbish");
    assert_eq!(service.metric(r#"tidings_reports_accepted_total{source="http"}"#), 3.0);
    assert_eq!(service.metric(r#"tidings_deliveries_created_total{connection="mqtt"}"#), 3.0);
    assert_eq!(service.metric(r#"tidings_deliveries_created_total{connection="second"}"#), 1.0);
    assert_eq!(service.metric(r#"tidings_ingest_rejected_total{code="invalid_json",source="http"}"#), 1.0);
}

#[test]
fn reports_of_one_topic_share_a_lane() {
    let service = start();
    for change in [1, 2, 1, 2, 1] {
        service.post(JSON, report("success", change).as_bytes());
    }
    let mut lanes: Vec<(String, u32)> = Vec::new();
    for event in service.disk.events() {
        if let Event::Accepted(accepted) = event {
            lanes.push((accepted.topic.clone(), accepted.lane.lane));
        }
    }
    assert_eq!(lanes.len(), 5);
    lanes.sort();
    lanes.dedup();
    assert_eq!(lanes.len(), 2, "{lanes:?}");
}
