//! Dead letters that go back or are given up, and pending deliveries that are given up; also when the service is killed meanwhile.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::free_port;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection, named_connection};
use crate::support::{wait_until, wait_within};

/// A broker that takes nothing of these topics until it is told to.
fn picky(is_picky: &Arc<AtomicBool>, refused: &'static str) -> ScriptedBroker {
    let is_picky = Arc::clone(is_picky);
    ScriptedBroker::start(move |packet| match packet.carries(refused) && is_picky.load(Ordering::SeqCst) {
        true => vec![Act::Refuse(0x90)],
        false => vec![Act::Usual],
    })
}

/// This many dead letters, and a broker that would take them now.
fn dead_letters(count: u64, workers: u32) -> (ScriptedBroker, Tidings, Ledger) {
    let is_picky = Arc::new(AtomicBool::new(true));
    let broker = picky(&is_picky, "one");
    let tidings = Tidings::start(&(connection(broker.port, &format!("workers = {workers}")) + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..count).map(|number| report(action_for(2), &format!("one-{}", number % 5), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_for_total("dead", count);
    is_picky.store(false, Ordering::SeqCst);
    (broker, tidings, ledger)
}

fn post(tidings: &Tidings, path: &str, body: &Value) -> Value {
    let reply = tidings.post(path, &body.to_string()).expect("the service answers");
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    reply.json()
}

/// The events of a delivery's history, and who decided.
fn history(tidings: &Tidings, id: u64) -> Vec<(String, Option<String>)> {
    let story = tidings.get(&format!("/v1/deliveries/{id}")).unwrap().json();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    story["history"].as_array().unwrap().iter().map(|chapter| (text(&chapter["event"]).unwrap(), text(&chapter["by"]))).collect()
}

#[test]
fn a_requeued_dead_letter_is_delivered_once_and_asking_again_changes_nothing() {
    let (broker, tidings, ledger) = dead_letters(3, 2);
    let id = ledger.accepted[1].id;
    let ask = json!({ "ids": [id.to_string(), "999999"], "by": "ops" });
    let dry = post(&tidings, "/v1/dead/requeue", &json!({ "ids": [id.to_string(), "999999"], "by": "ops", "dry_run": true }));
    let expected = json!({"done": 1, "ids": [id.to_string()], "remaining": 0, "in_flight": 0, "skipped": ["999999"], "dry_run": true});
    assert_eq!((dry, tidings.total("dead")), (expected, 3));
    assert_eq!(post(&tidings, "/v1/dead/requeue", &ask)["done"], 1);
    wait_until("it arrives", || broker.arrivals().len() == 1);
    tidings.wait_until_delivered();
    assert_eq!((tidings.total("dead"), tidings.total("acknowledged")), (2, 1));
    let again = post(&tidings, "/v1/dead/requeue", &ask);
    assert_eq!((&again["done"], &again["skipped"]), (&json!(0), &json!([id.to_string(), "999999"])));
    let events: Vec<String> = history(&tidings, id).into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, ["accepted", "dead", "requeued", "sent_again", "received_by_broker", "delivered"]);
    assert_eq!(history(&tidings, id)[2].1.as_deref(), Some("ops"));
    tidings.assert_balanced();
    broker.assert_no_violations();
    assert_eq!(tidings.metric("tidings_dead_letters{connection=\"mqtt\"}"), 2.0);
}

#[test]
fn dead_letters_are_found_by_a_filter_requeued_and_discarded_by_command() {
    let (broker, tidings, ledger) = dead_letters(10, 1);
    let (code, text) = tidings.command(&["dead", "list", "--topic", "zuul/one-1"]);
    assert!(code == Some(0) && text.contains("refused") && text.lines().count() == 3, "{text}");
    // Nobody is there to confirm.
    let (code, text) = tidings.command(&["dead", "discard", "--topic", "zuul/one-1"]);
    assert!(code == Some(2) && text.contains("--yes"), "{text}");
    let (code, text) = tidings.command(&["dead", "discard", "--topic", "zuul/one-1", "--dry-run"]);
    assert_eq!((code, text.as_str()), (Some(0), "would discard 2 dead letters\n"));
    let (code, text) = tidings.command(&["dead", "discard", "--topic", "zuul/one-1", "--yes", "--reason", "obsolete"]);
    assert_eq!((code, text.as_str()), (Some(0), "discarded 2 dead letters\n"));
    let discarded = history(&tidings, ledger.accepted[1].id).pop().unwrap();
    assert_eq!(discarded, ("discarded".to_owned(), Some("somebody".to_owned())));
    let (code, text) = tidings.command(&["dead", "requeue", "--tenant", "acme", "--yes"]);
    assert_eq!((code, text.as_str()), (Some(0), "requeued 8 dead letters\n"));
    wait_until("they arrive", || broker.arrivals().len() == 8);
    tidings.wait_until_delivered();
    assert_eq!((tidings.total("dead"), tidings.total("discarded"), tidings.total("acknowledged")), (0, 2, 8));
    assert_eq!(tidings.metric("tidings_deliveries_total{connection=\"mqtt\",qos=\"2\",result=\"discarded\"}"), 2.0);
    tidings.assert_balanced();
    let (code, text) = tidings.command(&["dead", "requeue", &ledger.accepted[1].id.to_string()]);
    assert!(code == Some(1) && text.contains("not among the dead letters"), "{text}");
}

#[test]
fn a_kill_in_the_middle_of_a_requeue_of_thousands_leaves_each_dead_or_delivered_once() {
    let (broker, mut tidings, ledger) = dead_letters(3_000, 2);
    let mut killed = 0;
    loop {
        // The kill comes with the request: before the commit, in it, or behind it.
        let client = tidings.client();
        let ask = json!({ "filter": {}, "by": "ops" }).to_string();
        let (address, mut killer) = (tidings.address(), Some(tidings.killer()));
        let asking = std::thread::spawn(move || {
            let _ = client;
            let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build().new_agent();
            agent.post(format!("http://{address}/v1/dead/requeue")).content_type("application/json").send(&ask).is_ok()
        });
        if killed < 2 {
            std::thread::sleep(std::time::Duration::from_millis(30 * killed));
            if let Some(mut killer) = killer.take() {
                killer.kill();
            }
        }
        let is_answered = asking.join().unwrap();
        if killed < 2 {
            tidings.end();
            tidings.run();
            killed += 1;
            let (dead, created) = (tidings.total("dead"), tidings.total("created"));
            assert!(dead == 0 || dead == 3_000, "{dead} of {created} are dead");
            tidings.assert_balanced();
            continue;
        }
        assert!(is_answered);
        break;
    }
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&broker.arrivals()));
    // At QoS 2 each of them once; in what order is the operator's doing.
    let mut times: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    broker.arrivals().into_iter().for_each(|arrival| *times.entry(arrival.payload).or_default() += 1);
    assert!(times.len() == 3_000 && times.values().all(|count| *count == 1));
    assert_eq!((tidings.total("dead"), tidings.total("acknowledged"), tidings.total("discarded")), (0, 3_000, 0));
    tidings.assert_balanced();
    broker.assert_no_violations();
    // Nothing is requeued twice.
    let requeued = history(&tidings, ledger.accepted[7].id).iter().filter(|(event, _)| event == "requeued").count();
    assert_eq!(requeued, 1);
}

#[test]
fn a_kill_in_the_middle_of_a_discard_of_thousands_leaves_all_or_none_given_up() {
    let mut tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..5_000).map(|number| report(action_for(2), &format!("p{}", number % 7), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    let ask = json!({ "filter": {"topic": "zuul/+"}, "state": "pending", "by": "ops" });
    for delay in [0, 40] {
        let (address, mut killer, body) = (tidings.address(), tidings.killer(), ask.to_string());
        let asking = std::thread::spawn(move || {
            let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build().new_agent();
            agent.post(format!("http://{address}/v1/deliveries/discard")).content_type("application/json").send(&body).is_ok()
        });
        std::thread::sleep(std::time::Duration::from_millis(delay));
        killer.kill();
        let _ = asking.join();
        tidings.end();
        tidings.run();
        let discarded = tidings.total("discarded");
        assert!(discarded == 0 || discarded == 5_000, "{discarded} are discarded");
        tidings.assert_balanced();
    }
    let left = tidings.total("pending");
    assert_eq!(post(&tidings, "/v1/deliveries/discard", &ask)["done"], left);
    assert_eq!((tidings.total("pending"), tidings.total("discarded")), (0, 5_000));
    assert_eq!(post(&tidings, "/v1/deliveries/discard", &ask)["done"], 0);
    tidings.assert_balanced();
}

#[test]
fn what_may_be_in_flight_is_left_alone_when_pending_ones_are_given_up_unless_that_is_wanted() {
    // It takes what is published, and says nothing.
    let broker = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![Act::Usual] });
    let config = |workers: &str| connection(broker.port, &format!("workers = {workers}\nwindow = 5")) + SOON + PIPELINES;
    let tidings = Tidings::start(&config("1"));
    let mut ledger = Ledger::default();
    for number in 0..200 {
        ledger.post(&tidings, 2, "one", number);
    }
    wait_until("the window is full", || broker.count(|packet| packet.publish().is_some()) >= 5);
    broker.hang_up();
    broker.change(|_| vec![Act::Close]);
    let ask = |more: Value| {
        let mut body = json!({ "filter": {}, "state": "pending", "by": "ops" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(&tidings, "/v1/deliveries/discard", &body)
    };
    let first = ask(json!({}));
    let (done, in_flight) = (first["done"].as_u64().unwrap(), first["in_flight"].as_u64().unwrap());
    assert!(done + in_flight == 200 && (5..=100).contains(&in_flight), "{first}");
    assert_eq!(tidings.total("pending"), in_flight);
    let ids: Vec<u64> = first["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().parse().unwrap()).collect();
    assert!(ledger.accepted[..5].iter().all(|known| !ids.contains(&known.id)), "those that were sent are kept");
    broker.behave();
    tidings.wait_until_delivered();
    assert_eq!((tidings.total("acknowledged"), tidings.total("discarded")), (in_flight, done));
    // What comes later is delivered as ever.
    ledger.post(&tidings, 2, "two", 1_000);
    tidings.wait_until_delivered();
    assert_eq!(ask(json!({"even_in_flight": true}))["done"], 0);
    tidings.assert_balanced();
}

#[test]
fn all_that_is_pending_for_a_broker_that_never_comes_back_can_be_given_up_by_command() {
    let broker = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![Act::Usual] });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    for number in 0..20 {
        ledger.post(&tidings, 2, &format!("p{}", number % 3), number);
    }
    wait_until("it is on the wire", || broker.count(|packet| packet.publish().is_some()) >= 20);
    broker.change(|_| vec![Act::Close]);
    broker.hang_up();
    let (code, text) = tidings.command(&["discard", "--state", "pending", "--yes", "--connection", "mqtt"]);
    assert!(code == Some(0) && text.contains("discarded 0 pending deliveries") && text.contains("20 may be in flight"), "{text}");
    let (code, text) = tidings.command(&["discard", "--state", "pending", "--yes", "--even-in-flight", &ledger.accepted[3].id.to_string()]);
    assert_eq!((code, text.as_str()), (Some(0), "discarded 1 pending delivery\n"));
    let (code, text) = tidings.command(&["discard", "--state", "pending", "--yes", "--even-in-flight"]);
    assert_eq!((code, text.as_str()), (Some(0), "discarded 19 pending deliveries\n"));
    assert_eq!((tidings.total("pending"), tidings.total("discarded")), (0, 20));
    broker.behave();
    ledger.post(&tidings, 2, "later", 99);
    wait_within(crate::support::PATIENCE, "what comes later arrives", || broker.arrivals().len() == 1);
    tidings.assert_balanced();
}

#[test]
fn giving_up_what_is_pending_leaves_the_lanes_alone_that_have_nothing_of_it() {
    let broker = ScriptedBroker::start(|packet| if packet.carries("later") { vec![Act::Refuse(0x87)] } else { vec![Act::Usual] });
    let routes = "[retry]\ninitial = \"1m\"\n[[pipeline]]\nname = \"check\"\nfailure.mqtt = { topic = \"here/{project}\", qos = 1 }\n\
                  success.away = { topic = \"away/{project}\", qos = 2 }\n";
    let (here, away) = (connection(broker.port, "workers = 1"), named_connection("away", free_port(), ""));
    let tidings = Tidings::start(&(here + &away + routes));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 1, "later", 1);
    wait_until("it waits for its retry", || tidings.logged("the broker refused a report").len() == 1);
    (2..5).for_each(|number| ledger.post(&tidings, 2, "one", number));
    let ask = json!({ "filter": { "topic": "away/+" }, "state": "pending", "by": "ops", "even_in_flight": true });
    assert_eq!(post(&tidings, "/v1/deliveries/discard", &ask)["done"], 3);
    ledger.post(&tidings, 1, "now", 5);
    wait_until("what comes next is delivered", || tidings.status("mqtt")["totals"]["acknowledged"] == 1);
    assert_eq!(broker.connects().len(), 1);
    assert_eq!(tidings.status("mqtt")["totals"]["pending"], 1);
}

#[test]
fn a_dead_letter_of_a_set_of_lanes_that_is_gone_is_delivered_all_the_same_and_holds_up_nobody() {
    let (broker, tidings, ledger) = dead_letters(2, 2);
    assert!(tidings.reload(&(connection(broker.port, "workers = 3") + SOON + PIPELINES)));
    wait_until("the older lanes have ended", || {
        let lanes = tidings.status("mqtt")["lanes"].clone();
        lanes.as_array().unwrap().iter().all(|lane| lane["lane"].as_u64().unwrap() >= 2)
    });
    assert_eq!(post(&tidings, "/v1/dead/requeue", &json!({ "filter": {}, "by": "ops" }))["done"], 2);
    wait_until("both arrive", || ledger.is_complete(&broker.arrivals()));
    let mut later = Ledger::default();
    later.post(&tidings, 2, "two", 50);
    wait_until("what comes later arrives", || later.is_complete(&broker.arrivals()));
    tidings.wait_until_delivered();
    tidings.assert_balanced();
}

#[test]
fn what_makes_no_sense_changes_nothing_and_is_named() {
    let (_broker, tidings, ledger) = dead_letters(1, 1);
    let id = ledger.accepted[0].id.to_string();
    let requeue = "/v1/dead/requeue";
    for (path, body, status, code, field) in [
        (requeue, "".into(), 400, "invalid_json", None),
        (requeue, "{".into(), 400, "invalid_json", None),
        (requeue, "[]".into(), 422, "invalid_query", None),
        // By the order of the fields these would say something: all of them, for the second.
        (requeue, json!([[id], null, "ops"]).to_string(), 422, "invalid_query", None),
        ("/v1/dead/discard", json!({"by": "ops", "filter": [null, null]}).to_string(), 422, "invalid_query", Some("filter")),
        (requeue, json!({"ids": [id]}).to_string(), 422, "invalid_query", Some("by")),
        (requeue, json!({"by": "ops"}).to_string(), 422, "invalid_query", Some("filter")),
        (requeue, json!({"by": "ops", "ids": [], }).to_string(), 422, "invalid_query", Some("ids")),
        (requeue, json!({"by": "ops", "ids": ["x"]}).to_string(), 422, "invalid_query", Some("ids")),
        (requeue, json!({"by": "ops", "ids": [id], "filter": {}}).to_string(), 422, "invalid_query", Some("filter")),
        (requeue, json!({"by": " ", "ids": [id]}).to_string(), 422, "invalid_query", Some("by")),
        (requeue, json!({"by": "a\u{1b}b", "ids": [id]}).to_string(), 422, "invalid_query", Some("by")),
        (requeue, json!({"by": "ops", "reason": "", "ids": [id]}).to_string(), 422, "invalid_query", Some("reason")),
        (
            "/v1/dead/discard",
            json!({"by": "ops", "reason": "moved to B by hand", "ids": [id]}).to_string(),
            422,
            "invalid_query",
            Some("reason"),
        ),
        (requeue, json!({"by": "ops", "filter": {"topic": "a#"}}).to_string(), 422, "invalid_query", Some("topic")),
        (requeue, json!({"by": "ops", "filter": {"tenat": "a"}}).to_string(), 422, "invalid_query", Some("tenat")),
        (requeue, json!({"by": "ops", "filter": {}, "state": "pending"}).to_string(), 422, "invalid_query", Some("state")),
        ("/v1/deliveries/discard", json!({"by": "ops", "filter": {}}).to_string(), 422, "invalid_query", Some("state")),
        (
            "/v1/dead/discard",
            json!({"by": "ops", "filter": {}, "even_in_flight": true}).to_string(),
            422,
            "invalid_query",
            Some("even_in_flight"),
        ),
    ] {
        let reply = tidings.post(path, &body).unwrap_or_else(|| panic!("{path} answers"));
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, error["code"].as_str(), error["field"].as_str()),
            (status, Some(code), field),
            "{path} {}: {error}",
            &body[..body.len().min(80)]
        );
    }
    // 100 MB are refused before they are sent.
    for path in [requeue, "/v1/dead/discard", "/v1/deliveries/discard"] {
        let mut stream = TcpStream::connect(tidings.address()).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n{{").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413", "{path}");
    }
    assert_eq!(tidings.total("dead"), 1);
}
