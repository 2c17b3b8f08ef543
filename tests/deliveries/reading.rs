//! Lists, histories and payloads.

use serde_json::{Value, json};

use crate::support::ledger::{Ledger, report};
use crate::support::mosquitto::free_port;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};

/// One report is dead, one was refused once, the others are delivered.
fn story() -> (ScriptedBroker, Tidings, Ledger) {
    let mut refused = false;
    let broker = ScriptedBroker::start(move |packet| {
        if packet.carries(r#""change":"3""#) {
            return vec![Act::Refuse(0x90)];
        }
        if packet.carries(r#""change":"4""#) && !std::mem::replace(&mut refused, true) {
            return vec![Act::Refuse(0x87)];
        }
        vec![Act::Usual]
    });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    for number in 0..8 {
        ledger.post(&tidings, [2, 1][number as usize % 2], ["one", "two"][number as usize / 4], number);
    }
    tidings.wait_for_total("dead", 1);
    tidings.wait_until_delivered();
    (broker, tidings, ledger)
}

fn get(tidings: &Tidings, path: &str) -> Value {
    let reply = tidings.get(path).expect("the service answers");
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    reply.json()
}

fn ids(list: &Value) -> Vec<u64> {
    list["deliveries"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn deliveries_are_found_by_what_they_are_and_by_what_has_become_of_them() {
    let (_broker, tidings, ledger) = story();
    let newest_first = |numbers: &[usize]| -> Vec<u64> { numbers.iter().rev().map(|number| ledger.accepted[*number].id).collect() };
    for (query, expected) in [
        ("", newest_first(&[0, 1, 2, 3, 4, 5, 6, 7])),
        ("state=dead", newest_first(&[3])),
        ("state=pending", vec![]),
        ("state=delivered&topic=zuul/one", newest_first(&[0, 1, 2])),
        ("topic=zuul/%2B&tenant=acme&pipeline=check&connection=mqtt&since=1h", newest_first(&[0, 1, 2, 3, 4, 5, 6, 7])),
        ("action=failure&topic=%23", newest_first(&[1, 3, 5, 7])),
        ("change=6", newest_first(&[6])),
        ("tenant=other", vec![]),
        ("until=1h", vec![]),
        ("connection=nobody", vec![]),
    ] {
        assert_eq!(ids(&get(&tidings, &format!("/v1/deliveries?{query}"))), expected, "{query}");
    }
    let dead = get(&tidings, "/v1/deliveries?state=dead");
    let row = &dead["deliveries"][0];
    assert_eq!(
        (&row["state"], &row["change"], &row["dead"]["code"], &row["dead"]["broker_code"]),
        (&json!("dead"), &json!("3"), &json!("refused"), &json!(0x90))
    );
}

#[test]
fn paging_neither_repeats_nor_misses_while_new_reports_come_in() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let mut ledger = Ledger::default();
    for number in 0..30 {
        ledger.post(&tidings, 2, "one", number);
    }
    let (mut found, mut cursor, mut number) = (Vec::new(), String::new(), 100);
    loop {
        let page = get(&tidings, &format!("/v1/deliveries?state=pending&limit=4{cursor}"));
        found.extend(ids(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
        Ledger::default().post(&tidings, 2, "one", number);
        number += 1;
    }
    let expected: Vec<u64> = ledger.accepted.iter().rev().map(|known| known.id).collect();
    assert_eq!(found, expected);
    assert_eq!(ids(&get(&tidings, "/v1/deliveries?limit=1000")).len(), 30 + (number - 100) as usize);
}

#[test]
fn a_delivery_tells_its_whole_story_also_after_a_restart() {
    let (_broker, mut tidings, ledger) = story();
    for _ in 0..2 {
        let events = |number: usize| -> Vec<String> {
            let story = get(&tidings, &format!("/v1/deliveries/{}", ledger.accepted[number].id));
            assert_eq!((&story["complete"], &story["next_from"]), (&json!(true), &Value::Null));
            story["history"].as_array().unwrap().iter().map(|chapter| chapter["event"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(events(0), ["accepted", "received_by_broker", "delivered"]);
        assert_eq!(events(1), ["accepted", "delivered"]);
        assert_eq!(events(3), ["accepted", "dead"]);
        assert_eq!(events(4), ["accepted", "refused", "sent_again", "received_by_broker", "delivered"]);
        tidings.kill();
        tidings.run();
    }
    let (code, text) = tidings.command(&["show", &ledger.accepted[4].id.to_string()]);
    assert_eq!(code, Some(0), "{text}");
    for part in
        ["topic       zuul/two", "connection  mqtt, lane", "QoS 2", "accepted over http", "0x87 (not authorized)", "completed by PUBCOMP"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_payload_is_what_was_posted_and_no_browser_will_run_it() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let mut ledger = Ledger::default();
    let body = report("success", "<script>alert(1)</script>", 1);
    ledger.post_raw(&tidings.client(), &body);
    let id = ledger.accepted[0].id;
    let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
    let mut response = agent.get(format!("http://{}/v1/deliveries/{id}/payload", tidings.address())).call().unwrap();
    assert_eq!(response.body_mut().read_to_string().unwrap(), body);
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!((header("content-type"), header("x-content-type-options")), ("application/json".into(), "nosniff".into()));
    assert_eq!(
        (header("content-disposition"), header("content-security-policy")),
        ("attachment".into(), "default-src 'none'; sandbox".into())
    );
    let (code, text) = tidings.command(&["show", &id.to_string(), "--payload"]);
    assert_eq!((code, text), (Some(0), body));
}

#[test]
fn what_is_not_there_and_what_makes_no_sense_is_said_to_be_so() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    Ledger::default().post(&tidings, 2, "one", 1);
    for (path, status, code) in [
        ("/v1/deliveries/999999", 404, "unknown_delivery"),
        ("/v1/deliveries/0", 404, "unknown_delivery"),
        ("/v1/deliveries/1", 404, "unknown_delivery"),
        ("/v1/deliveries/99999999999999999999999", 404, "unknown_delivery"),
        ("/v1/deliveries/%ff", 404, "unknown_delivery"),
        ("/v1/deliveries/-1/payload", 404, "unknown_delivery"),
        ("/v1/deliveries/2?from=x", 422, "invalid_query"),
        ("/v1/deliveries?state=lost", 422, "invalid_query"),
        ("/v1/deliveries?limit=100000", 422, "invalid_query"),
        ("/v1/deliveries?cursor=%00", 422, "invalid_query"),
        ("/v1/deliveries?since=later", 422, "invalid_query"),
        ("/v1/deliveries?topic=a%23", 422, "invalid_query"),
        ("/v1/deliveries?tenat=acme", 422, "invalid_query"),
        ("/v1/deliveries?state=dead&state=pending", 422, "invalid_query"),
    ] {
        let reply = tidings.get(path).expect("the service answers");
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (status, Some(code)), "{path}: {reply:?}");
    }
    for (path, field) in
        [("/v1/deliveries?tenat=acme", "tenat"), ("/v1/deliveries?state=dead&state=pending", "state"), ("/v1/audit?who=me", "who")]
    {
        assert_eq!(tidings.get(path).unwrap().json()["error"]["field"], field, "{path}");
    }
    assert_eq!(tidings.command(&["show", "999999"]).0, Some(1));
    assert_eq!(tidings.command(&["show", "one"]).0, Some(2));
    assert_eq!(tidings.command(&["list", "--state", "lost"]).0, Some(2));
    let (code, text) = tidings.command(&["list", "--topic", "a#"]);
    assert!(code == Some(2) && text.contains("invalid_query"), "{text}");
}

#[test]
fn what_strangers_wrote_reaches_the_terminal_as_text() {
    let pipeline = "[[pipeline]]\nname = \"check\"\nsuccess.mqtt = { topic = \"zuul/{change}\" }\n";
    let tidings = Tidings::start(&(connection(free_port(), "") + pipeline));
    // In JSON, as anybody could post it.
    let body = r#"{"action":"success","tenant":"acme","pipeline":"check","project":"x\u001b[2J","change":"1\u202ey"}"#;
    let reply = tidings.client().post(body.as_bytes(), "application/json", None).unwrap();
    assert_eq!(reply.status, 202, "{reply:?}");
    let id = reply.json()["deliveries"][0]["id"].as_str().unwrap().to_owned();
    let (code, text) = tidings.command(&["list"]);
    assert!(code == Some(0) && text.contains("zuul/1\\u{202e}y") && !text.contains('\u{202e}'), "{text:?}");
    let (code, text) = tidings.command(&["show", &id]);
    assert!(code == Some(0) && text.contains("x\\u{1b}[2J") && !text.contains('\u{1b}'), "{text:?}");
    let list: Value = serde_json::from_str(&tidings.command(&["list", "--json", "--state", "pending"]).1).unwrap();
    assert_eq!(list["deliveries"][0]["project"], "x\u{1b}[2J", "JSON has it as it is, escaped as JSON does");
}

#[test]
fn what_the_service_finds_wrong_in_what_was_asked_is_wrong_usage() {
    let tidings = Tidings::start(&(connection(free_port(), "workers = 1") + PIPELINES));
    for arguments in [
        &["list", "--since", "yesterday"][..],
        &["dead", "requeue", "--topic", "a#", "--by", "ops"],
        &["dead", "discard", "--yes", "--reason", "moved to B", "--by", "ops"],
        &["replay", "--dry-run", "--since", "yesterday"],
        &["replay", "--yes", "--rate", "2000000", "--by", "ops"],
        &["move", "--from", "mqtt", "--to", "mqtt", "--by", "ops"],
    ] {
        let (code, said) = tidings.command(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains("(HTTP 422)") && said.contains("field: "), "{arguments:?}: {said}");
    }
}
