//! Dead letters that are past their retention, and notices of what will not be delivered.

use serde_json::{Value, json};

use crate::support::ledger::{Arrival, Ledger, action_for, report};
use crate::support::mosquitto::free_port;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection, named_connection};
use crate::support::wait_until;

/// Notices go to another broker than the reports.
fn noticed(port: u16, more: &str) -> String {
    named_connection("told", port, "workers = 1") + "[gap_notice]\nconnection = \"told\"\ntopic = \"ci/gaps\"\n" + more
}

fn gap(arrival: &Arrival) -> Value {
    assert_eq!((arrival.topic.as_str(), arrival.qos), ("ci/gaps", 1));
    serde_json::from_slice::<Value>(&arrival.payload).unwrap()["gap"].clone()
}

#[test]
fn what_is_given_up_is_told_once_on_the_topic_for_it_also_when_the_service_is_killed() {
    let told = ScriptedBroker::usual();
    let config = connection(free_port(), "") + &noticed(told.port, SOON) + PIPELINES;
    let mut tidings = Tidings::prepare(&config);
    tidings.run();
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..150).map(|number| report(action_for(2), "one", number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    let ask = json!({ "filter": { "topic": "zuul/one" }, "state": "pending", "by": "ops", "reason": "wrong branch" }).to_string();
    // Otherwise the first commit of the next run may be about its session.
    wait_until("it is connected", || tidings.status("told")["lanes"][0]["state"] == "connected");
    // It dies when the commit is durable, and nobody has been answered.
    tidings.stop();
    tidings.environment = vec![("TIDINGS_CRASH_AT", "before-answer:1".to_owned())];
    tidings.run();
    assert!(tidings.post("/v1/deliveries/discard", &ask).is_none());
    assert_eq!(tidings.end(), None);
    tidings.environment.clear();
    tidings.run();
    let again = tidings.post("/v1/deliveries/discard", &ask).unwrap().json();
    let done = again["done"].as_u64().unwrap();
    assert!(done == 0 || done == 150, "{again}");
    tidings.wait_until_delivered();
    let notices = told.arrivals();
    assert_eq!(notices.len(), 1, "one commit, one notice");
    let gap = gap(&notices[0]);
    assert_eq!((&gap["count"], &gap["reason"], &gap["by"], &gap["more"]), (&json!(150), &json!("wrong branch"), &json!("ops"), &json!(50)));
    let first = &ledger.accepted[0];
    assert_eq!(gap["deliveries"][0], json!({ "id": first.id.to_string(), "connection": "mqtt", "topic": "zuul/one" }));
    tidings.assert_balanced();
}

#[test]
fn about_a_notice_that_is_given_up_there_is_no_notice() {
    let tidings = Tidings::start(&(connection(free_port(), "") + &noticed(free_port(), SOON) + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    let discard = |filter: Value| {
        let ask = json!({ "filter": filter, "state": "pending", "by": "ops" }).to_string();
        tidings.post("/v1/deliveries/discard", &ask).unwrap().json()["done"].as_u64().unwrap()
    };
    assert_eq!(discard(json!({ "connection": "mqtt" })), 1);
    assert_eq!(tidings.status("told")["backlog"], 1, "the notice");
    assert_eq!(discard(json!({ "connection": "told" })), 1);
    assert_eq!(tidings.status("told")["backlog"], 0);
    tidings.assert_balanced();
}

#[test]
fn a_dead_letter_past_its_retention_is_discarded_by_it_and_told() {
    let broker = ScriptedBroker::start(|packet| match packet.carries("bad") {
        true => vec![Act::Refuse(0x90)],
        false => vec![Act::Usual],
    });
    let told = ScriptedBroker::usual();
    let mut tidings = Tidings::prepare("");
    tidings.store_settings = "dead_retention = \"1s\"\n".to_owned();
    tidings.configure(&(connection(broker.port, "") + &noticed(told.port, SOON) + PIPELINES));
    tidings.run();
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "bad", 1);
    ledger.post(&tidings, 2, "good", 2);
    wait_until("it is discarded", || tidings.total("discarded") == 1);
    let story = tidings.get(&format!("/v1/deliveries/{}", ledger.accepted[0].id)).unwrap().json();
    let last = story["history"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["event"], &last["by"], &story["state"]), (&json!("discarded"), &json!("dead_retention"), &json!("discarded")));
    wait_until("it is told", || told.arrivals().len() == 1);
    let gap = gap(&told.arrivals()[0]);
    assert_eq!((&gap["count"], &gap["by"]), (&json!(1), &json!("dead_retention")));
    assert_eq!((tidings.total("dead"), tidings.total("acknowledged")), (0, 1));
    tidings.assert_balanced();
}
