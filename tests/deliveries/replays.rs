//! What was delivered and is delivered again: once, marked, behind what is fresh; also when the service is killed meanwhile.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::ledger::{Arrival, Ledger, action_for, report};
use crate::support::mosquitto::Mosquitto;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, Reply, SOON, Tidings, connection, named_connection};
use crate::support::wait_until;

const CRASH_AT: &str = "TIDINGS_CRASH_AT";

/// So many reports about each of these projects, delivered at this QoS.
fn delivered(tidings: &Tidings, ledger: &mut Ledger, qos: u8, projects: &[&str], count: u64) {
    let number = |project: usize, number: u64| project as u64 * 100_000 + number;
    let of = |place: usize, of: u64| report(action_for(qos), projects[place], number(place, of));
    let reports: Vec<String> = (0..count)
        .flat_map(|number| (0..projects.len()).map(move |place| (place, number)))
        .map(|(place, number)| of(place, number))
        .collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).http_status_as_error(false).max_idle_connections(0).build().new_agent()
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Option<Reply> {
    let text = response.body_mut().read_to_string().ok()?;
    Some(Reply { status: response.status().as_u16(), text })
}

fn ask(tidings: &Tidings, body: &Value, key: Option<&str>) -> Option<Reply> {
    let mut request = agent().post(format!("http://{}/v1/replays", tidings.address())).content_type("application/json");
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    read(request.send(body.to_string()).ok()?)
}

fn begin(tidings: &Tidings, body: &Value) -> String {
    let reply = ask(tidings, body, None).expect("the service answers");
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()["id"].as_str().unwrap().to_owned()
}

fn job(tidings: &Tidings, id: &str) -> Value {
    let reply = tidings.get(&format!("/v1/replays/{id}")).expect("the service answers");
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

fn cancel(tidings: &Tidings, id: &str) -> Reply {
    read(agent().delete(format!("http://{}/v1/replays/{id}?by=ops", tidings.address())).call().unwrap()).unwrap()
}

/// Waits until the job has created everything, and that is delivered.
fn wait_for(tidings: &Tidings, id: &str) -> Value {
    wait_until("the replay has ended", || {
        let job = job(tidings, id);
        job["state"] == "ended" && job["pending"] == 0
    });
    job(tidings, id)
}

fn times(arrivals: &[Arrival]) -> BTreeMap<(String, Vec<u8>), usize> {
    let mut times = BTreeMap::new();
    arrivals.iter().for_each(|arrival| *times.entry((arrival.topic.clone(), arrival.payload.clone())).or_default() += 1);
    times
}

/// Payloads of a topic, in order.
fn of<'a>(arrivals: &'a [Arrival], topic: &str) -> Vec<&'a [u8]> {
    arrivals.iter().filter(|arrival| arrival.topic == topic).map(|arrival| arrival.payload.as_slice()).collect()
}

#[test]
fn a_replay_delivers_what_fits_once_more_in_order_and_marked_and_nothing_else() {
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 2, &["one", "two", "three"], 400);
    let before = broker.arrivals().len();
    let filter = json!({ "topic": "zuul/one", "since": "1h" });
    let dry = ask(&tidings, &json!({ "filter": filter, "dry_run": true }), None).unwrap();
    let bytes: usize = ledger.accepted.iter().filter(|known| known.topic == "zuul/one").map(|known| known.payload.len()).sum();
    assert_eq!((dry.status, dry.json()), (200, json!({ "dry_run": true, "matches": 400, "bytes": bytes, "complete": true })));
    let id = begin(&tidings, &json!({ "filter": filter, "by": "ops", "reason": "a consumer lost its disk" }));
    let ended = wait_for(&tidings, &id);
    let numbers = ["created", "delivered", "pending", "not_delivered", "searched_percent"].map(|name| ended[name].as_u64().unwrap());
    assert_eq!(
        (numbers, ended["by"].as_str(), ended["reason"].as_str()),
        ([400, 400, 0, 0, 100], Some("ops"), Some("a consumer lost its disk"))
    );
    let all = broker.arrivals();
    let replayed = &all[before..];
    assert_eq!(replayed.len(), 400);
    assert_eq!(of(replayed, "zuul/one"), of(&all[..before], "zuul/one"), "in the order of before");
    let marked = |packet: &crate::support::scripted::Packet| {
        packet.publish().is_some_and(|publish| String::from_utf8_lossy(&publish.properties).contains(&format!("tidings-replay\0\x10{id}")))
    };
    assert_eq!(broker.count(marked), 400);
    assert_eq!((tidings.total("replayed"), tidings.total("created"), tidings.total("acknowledged")), (400, 1_600, 1_600));
    wait_until("it is counted", || tidings.metric("tidings_replayed_total{connection=\"mqtt\"}") == 400.0);
    tidings.assert_balanced();
    let list = tidings.get("/v1/deliveries?limit=1").unwrap().json();
    let story = tidings.get(&format!("/v1/deliveries/{}", list["deliveries"][0]["id"].as_str().unwrap())).unwrap().json();
    let last = ledger.accepted.iter().rfind(|known| known.topic == "zuul/one").unwrap().id.to_string();
    assert_eq!(story["replay_of"], last.as_str());
    assert!(story["history"][0]["says"].as_str().unwrap().starts_with(&format!("replayed from {last} by replay {id}")), "{story}");
    // What a replay has sent is not replayed; what it was made from is.
    let again = begin(&tidings, &json!({ "filter": filter, "by": "ops" }));
    assert_eq!(wait_for(&tidings, &again)["delivered"], 400);
    broker.assert_no_violations();
    let jobs = tidings.get("/v1/replays").unwrap().json();
    let ids: Vec<&str> = jobs["replays"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [again.as_str(), id.as_str()]);
}

#[test]
fn asking_twice_with_a_key_is_one_replay_also_after_a_restart() {
    let broker = ScriptedBroker::usual();
    let mut tidings = Tidings::start(&(connection(broker.port, "") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 2, &["one"], 50);
    let body = json!({ "filter": {}, "by": "ops" });
    let first = ask(&tidings, &body, Some("k-1")).unwrap();
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(first.status, 201);
    for _ in 0..2 {
        let again = ask(&tidings, &body, Some("k-1")).unwrap();
        assert_eq!((again.status, again.json()["id"].as_str()), (200, Some(id.as_str())));
        let other = ask(&tidings, &json!({ "filter": { "topic": "a" }, "by": "ops" }), Some("k-1")).unwrap();
        assert_eq!((other.status, other.json()["error"]["code"].as_str()), (409, Some("idempotency_conflict")));
        wait_for(&tidings, &id);
        assert_eq!((tidings.total("replayed"), broker.arrivals().len()), (50, 100));
        tidings.stop();
        tidings.run();
    }
    assert_eq!(job(&tidings, &id)["delivered"], 50, "a job that has ended is known after a restart");
}

#[test]
fn what_is_no_replay_is_refused_and_begins_nothing() {
    let tidings = Tidings::start(&(connection(1, "") + PIPELINES));
    let refused = |body: Value, status: u16, code: &str, says: &str| {
        let reply = ask(&tidings, &body, None).unwrap();
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, error["code"].as_str()), (status, Some(code)), "{body}: {reply:?}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    };
    refused(json!({ "filter": { "state": "dead" }, "by": "ops" }), 422, "invalid_query", "only what was delivered");
    refused(json!({ "filter": { "topics": "a" }, "by": "ops" }), 422, "invalid_query", "topics");
    refused(json!({ "filter": [null], "by": "ops" }), 422, "invalid_query", "object");
    refused(json!({ "filter": { "since": "yesterday" }, "by": "ops" }), 422, "invalid_query", "since");
    refused(json!({ "filter": {} }), 422, "invalid_query", "by");
    refused(json!({ "by": "ops" }), 422, "invalid_query", "filter");
    refused(json!({ "filter": {}, "by": "ops", "rate": 2_000_000 }), 422, "invalid_query", "rate");
    refused(json!({ "filter": {}, "by": "ops", "rate": -1 }), 422, "invalid_query", "whole number");
    refused(json!({ "filter": {}, "by": "ops", "reason": " " }), 422, "invalid_query", "reason");
    assert_eq!(
        ask(&tidings, &json!({ "filter": {}, "by": "ops" }), Some("a b")).unwrap().json()["error"]["code"],
        "invalid_idempotency_key"
    );
    for unknown in ["0", "0123456789abcdef", "%ff"] {
        assert_eq!(tidings.get(&format!("/v1/replays/{unknown}")).unwrap().json()["error"]["code"], "unknown_replay");
        assert_eq!(cancel(&tidings, unknown).status, 404);
    }
    assert_eq!(tidings.get("/v1/replays").unwrap().json(), json!({ "replays": [] }));
}

#[test]
fn fresh_reports_go_before_everything_that_a_replay_has_not_sent_yet() {
    const WINDOW: usize = 10;
    let mut broker = Mosquitto::start("persistence true");
    let subscriber = Subscriber::start(broker.port);
    let tidings = Tidings::start(&(connection(broker.port, &format!("workers = 1\nwindow = {WINDOW}")) + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 2, &["old"], 600);
    wait_until("all have arrived", || subscriber.count() == 600);
    subscriber.take();
    broker.stop();
    // Both wait for the broker; the replays were there first.
    let id = begin(&tidings, &json!({ "filter": { "topic": "zuul/old" }, "by": "ops" }));
    wait_until("the replay has created everything", || job(&tidings, &id)["state"] == "ended");
    let reports: Vec<String> = (0..400).map(|number| report(action_for(2), "fresh", number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    assert_eq!(tidings.total("pending"), 1_000);
    broker.run();
    wait_for(&tidings, &id);
    tidings.wait_until_delivered();
    wait_until("all have arrived", || subscriber.count() == 1_000);
    let arrivals = subscriber.arrivals();
    let first = arrivals.iter().position(|arrival| arrival.topic == "zuul/old").unwrap();
    let late = arrivals[first..].iter().filter(|arrival| arrival.topic == "zuul/fresh").count();
    assert!(late <= WINDOW, "{late} fresh reports came after the first replay, and only those in flight may");
    assert!(times(&arrivals).values().all(|count| *count == 1));
    tidings.assert_balanced();
}

#[test]
fn a_dead_letter_that_goes_back_does_not_go_before_fresh_reports() {
    const COUNT: usize = 300;
    let is_picky = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = std::sync::Arc::clone(&is_picky);
    let broker = ScriptedBroker::start(move |packet| match packet.carries("dead") && asked.load(std::sync::atomic::Ordering::SeqCst) {
        true => vec![Act::Refuse(0x90)],
        false => vec![Act::Usual],
    });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1\nwindow = 10") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..COUNT as u64).map(|number| report(action_for(2), &format!("dead-{}", number % 50), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_for_total("dead", COUNT as u64);
    // Both wait for the broker; the dead letters were given back first.
    broker.change(|_| vec![Act::Close]);
    broker.hang_up();
    let reply = tidings.post("/v1/dead/requeue", r#"{"filter":{},"by":"ops"}"#).unwrap();
    assert_eq!(reply.json()["done"], COUNT, "{reply:?}");
    let fresh: Vec<String> = (0..400).map(|number| report(action_for(2), "fresh", number)).collect();
    ledger.post_many(&tidings.client(), &fresh);
    broker.behave();
    tidings.wait_until_delivered();
    let arrivals = broker.arrivals();
    let late = arrivals.iter().rposition(|arrival| arrival.topic == "zuul/fresh").unwrap();
    let before = arrivals[..late].iter().filter(|arrival| arrival.topic.starts_with("zuul/dead")).count();
    assert!(before <= 60, "{before} dead letters came before the last fresh report");
    assert_eq!(arrivals.len(), COUNT + 400);
    tidings.assert_balanced();
    broker.assert_no_violations();
}

#[test]
fn a_kill_anywhere_in_a_replay_leaves_it_to_end_once() {
    let broker = ScriptedBroker::usual();
    let mut tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 2, &["one", "two"], 800);
    for (number, point) in ["replay-asked", "replay-piece", "replay-piece:3", "replay-ended", "before-delivered:2", "after-fdatasync:9"]
        .into_iter()
        .enumerate()
    {
        tidings.stop();
        tidings.environment = vec![(CRASH_AT, point.to_owned())];
        tidings.run();
        let before = broker.arrivals().len();
        let (body, key) = (json!({ "filter": { "topic": "zuul/+" }, "by": "ops" }), format!("kill-{number}"));
        let _ = ask(&tidings, &body, Some(&key));
        assert_eq!(tidings.end(), None, "{point}: it was to die");
        tidings.environment.clear();
        tidings.run();
        let answer = ask(&tidings, &body, Some(&key)).unwrap();
        assert!(answer.status == 200 || (answer.status == 201 && number >= 4), "{point}: {answer:?}");
        let ended = wait_for(&tidings, answer.json()["id"].as_str().unwrap());
        assert_eq!((&ended["created"], &ended["delivered"]), (&json!(1_600), &json!(1_600)), "{point}: {ended}");
        tidings.wait_until_delivered();
        let arrivals = broker.arrivals();
        let replayed = times(&arrivals[before..]);
        assert!(replayed.len() == 1_600 && replayed.values().all(|count| *count == 1), "{point}: {} of 1600", replayed.len());
        tidings.assert_balanced();
    }
    broker.assert_no_violations();
}

#[test]
fn a_replay_that_is_cancelled_creates_no_more_and_one_with_a_rate_keeps_it() {
    let broker = ScriptedBroker::usual();
    let mut tidings = Tidings::start(&(connection(broker.port, "") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 1, &["one"], 500);
    let id = begin(&tidings, &json!({ "filter": {}, "by": "ops", "rate": 8 }));
    wait_until("some are replayed", || job(&tidings, &id)["delivered"].as_u64().unwrap() >= 4);
    let status = tidings.get("/v1/status").unwrap().json();
    assert_eq!(status["replays"], 1);
    assert!(status["connections"][0]["lanes"].as_array().unwrap().iter().any(|lane| lane["replay"] == true), "{status}");
    // It goes on after a restart.
    tidings.stop();
    tidings.run();
    let before = job(&tidings, &id)["created"].as_u64().unwrap();
    wait_until("it goes on", || job(&tidings, &id)["created"].as_u64().unwrap() > before);
    let cancelled = cancel(&tidings, &id);
    assert_eq!(
        (cancelled.status, cancelled.json()["state"].as_str(), cancelled.json()["cancelled_by"].as_str()),
        (200, Some("cancelled"), Some("ops"))
    );
    let created = cancelled.json()["created"].as_u64().unwrap();
    assert!(created < 500, "{created}");
    tidings.wait_until_delivered();
    let again = cancel(&tidings, &id).json();
    assert_eq!((&again["state"], &again["created"], &again["delivered"]), (&json!("cancelled"), &json!(created), &json!(created)));
    assert_eq!(tidings.total("replayed"), created);
    assert_eq!(tidings.get("/v1/status").unwrap().json()["replays"], 0);
    tidings.assert_balanced();
}

#[test]
fn a_replay_by_command_is_followed_to_its_end_listed_and_cancelled() {
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(connection(broker.port, "") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 1, &["one", "two"], 30);
    let (code, text) = tidings.command(&["replay", "--topic", "zuul/one", "--dry-run"]);
    assert!(code == Some(0) && text.starts_with("would replay 30 reports ("), "{text}");
    // Nobody is there to confirm.
    let (code, text) = tidings.command(&["replay"]);
    assert!(code == Some(2) && text.contains("--yes"), "{text}");
    let (code, text) = tidings.command(&["replay", "--topic", "zuul/one"]);
    assert!(code == Some(0) && text.contains("has ended: 30 reports created, 30 delivered\n"), "{text}");
    let (code, text) = tidings.command(&["replay", "--yes", "--rate", "1", "--detach", "--reason", "a test"]);
    assert!(code == Some(0) && text.contains("--cancel"), "{text}");
    let id = text.split(' ').nth(1).unwrap().to_owned();
    let (code, text) = tidings.command(&["replay", "--list"]);
    assert!(code == Some(0) && text.lines().count() == 3 && text.lines().nth(1).unwrap().starts_with(&format!("{id}  running")), "{text}");
    let (code, text) = tidings.command(&["replay", "--cancel", &id]);
    assert!(code == Some(0) && text.contains("is cancelled"), "{text}");
    let (code, text) = tidings.command(&["replay", "--cancel", "17"]);
    assert!(code == Some(1) && text.contains("unknown_replay"), "{text}");
}

#[test]
fn a_replay_ends_without_a_connection_that_a_reload_has_taken_out() {
    let (broker, other) = (ScriptedBroker::usual(), ScriptedBroker::usual());
    let reporters = |names: &[&str]| {
        let reporter = |name: &&str| format!("success.{name} = {{ topic = \"zuul/{{project}}\", qos = 2 }}\n");
        "[[pipeline]]\nname = \"check\"\n".to_owned() + &names.iter().map(reporter).collect::<String>()
    };
    let with = connection(broker.port, "") + &named_connection("other", other.port, "") + SOON + &reporters(&["mqtt", "other"]);
    let without = connection(broker.port, "") + SOON + &reporters(&["mqtt"]);
    let tidings = Tidings::start(&with);
    let reports: Vec<String> = (0..1_500).map(|number| report(action_for(2), &format!("p{}", number % 8), number)).collect();
    Ledger::default().post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    let id = begin(&tidings, &json!({ "filter": {}, "by": "ops", "rate": 400 }));
    wait_until("some are replayed", || job(&tidings, &id)["delivered"].as_u64().unwrap() >= 200);
    assert!(tidings.reload(&without));
    wait_until("the replay has ended", || job(&tidings, &id)["state"] == "ended");
    let ended = job(&tidings, &id);
    let [created, left_out] = ["created", "not_configured"].map(|name| ended[name].as_u64().unwrap());
    assert!(left_out > 0 && created + left_out == 3_000, "{ended}");
    wait_until("all of the other one are delivered again", || broker.arrivals().len() == 3_000);
    tidings.assert_balanced();
}

#[test]
fn other_lanes_and_a_reload_do_not_disturb_replays_and_are_not_held_up_by_them() {
    let broker = ScriptedBroker::usual();
    let config = |workers: u32| connection(broker.port, &format!("workers = {workers}")) + SOON + PIPELINES;
    let mut tidings = Tidings::start(&config(2));
    let mut ledger = Ledger::default();
    delivered(&tidings, &mut ledger, 2, &["one", "two"], 300);
    let id = begin(&tidings, &json!({ "filter": {}, "by": "ops", "rate": 100 }));
    wait_until("some are replayed", || job(&tidings, &id)["delivered"].as_u64().unwrap() >= 50);
    // The lane for replays has a lower number than the new ones, and always something to deliver.
    assert!(tidings.reload(&config(3)));
    let before = ledger.accepted.len();
    for number in 0..50 {
        ledger.post(&tidings, 2, "three", 900_000 + number);
    }
    wait_until("fresh reports are delivered", || of(&broker.arrivals(), "zuul/three").len() == 50);
    assert_eq!(ledger.accepted.len(), before + 50);
    tidings.kill();
    tidings.configure(&config(4));
    tidings.run();
    let ended = wait_for(&tidings, &id);
    assert_eq!((&ended["created"], &ended["delivered"]), (&json!(600), &json!(600)));
    let times = times(&broker.arrivals());
    assert!(
        times.iter().all(|((topic, _), count)| *count == if topic == "zuul/three" { 1 } else { 2 }),
        "each once more, and the fresh ones once"
    );
    tidings.assert_balanced();
    broker.assert_no_violations();
}
