//! Backlogs that are given to another connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::pipelines;
use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT, free_port};
use crate::support::scripted::{Act, Packet, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{SOON, Tidings, named_connection};
use crate::support::wait_until;

fn mixed(count: u64) -> Vec<String> {
    (0..count).map(|number| report(action_for([1, 2, 2][number as usize % 3]), &format!("p{}", number % 7), number)).collect()
}

fn total(tidings: &Tidings, connection: &str, name: &str) -> u64 {
    tidings.status(connection)["totals"][name].as_u64().unwrap()
}

fn ask(tidings: &Tidings, from: &str, to: &str) -> Value {
    let reply = tidings.post("/v1/moves", &json!({ "from": from, "to": to, "by": "ops" }).to_string()).expect("the service answers");
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

#[test]
fn what_waits_for_a_connection_that_has_another_name_now_is_moved_in_order_and_arrives_once() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    // Nobody was ever there under the old name.
    let tidings = Tidings::start(&(named_connection("old", free_port(), "workers = 3") + SOON + &pipelines("old")));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &mixed(1_500));
    assert!(tidings.reload(&(named_connection("new", mosquitto.port, "workers = 2") + SOON + &pipelines("new"))));
    let (code, text) = tidings.command(&["move", "--from", "old", "--to", "new"]);
    assert_eq!((code, text.as_str()), (Some(0), "moved 1500 from old to new\n"));
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    tidings.assert_balanced();
    assert_eq!((total(&tidings, "old", "discarded"), total(&tidings, "old", "pending")), (1_500, 0));
    assert_eq!((total(&tidings, "new", "created"), total(&tidings, "new", "acknowledged")), (1_500, 1_500));
    assert_eq!(tidings.metric("tidings_deliveries_total{connection=\"old\",qos=\"2\",result=\"discarded\"}"), 1_000.0);
    assert_eq!(tidings.metric("tidings_deliveries_created_total{connection=\"new\"}"), 1_500.0);
    assert_eq!(tidings.logged("\"by\":\"somebody\"").len(), 1, "the log names who it was");
    // Again: there is nothing left to do.
    assert_eq!(ask(&tidings, "old", "new")["moved"], 0);
}

#[test]
fn a_connection_that_is_configured_is_stopped_for_a_move_and_goes_on_with_what_comes_later() {
    let mut mosquitto = Mosquitto::prepare(PERSISTENT);
    let next = ScriptedBroker::usual();
    let brokers = named_connection("old", mosquitto.port, "") + &named_connection("new", next.port, "");
    let tidings = Tidings::start(&(brokers + SOON + &pipelines("old")));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &mixed(500));
    wait_until("all lanes are there", || next.connects().len() == 4);
    let answer = ask(&tidings, "old", "new");
    let expected = json!({ "from": "old", "to": "new", "moved": 500, "possible_duplicates": 0, "remaining": 0, "dead_letters": 0 });
    assert_eq!(answer, expected);
    wait_until("all arrive", || ledger.is_complete(&next.arrivals()));
    ledger.assert_kept_exactly(&next.arrivals());
    assert_eq!(next.connects().len(), 4, "the lanes that take them are not touched");
    mosquitto.run();
    let subscriber = Subscriber::start(mosquitto.port);
    let mut later = Ledger::default();
    for number in 1_000..1_010 {
        later.post(&tidings, 2, "one", number);
    }
    wait_until("what comes later arrives", || later.is_complete(&subscriber.arrivals()));
    later.assert_kept_exactly(&subscriber.arrivals());
    tidings.assert_balanced();
}

#[test]
fn reports_go_on_while_a_backlog_is_moved_and_what_is_moved_comes_behind_them() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let old = named_connection("old", free_port(), "");
    let with = |pipelines: String| old.clone() + &named_connection("new", mosquitto.port, "") + SOON + &pipelines;
    let tidings = Tidings::start(&with(pipelines("old")));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &mixed(2_500));
    assert!(tidings.reload(&with(pipelines("new"))));
    let (is_over, client) = (AtomicBool::new(false), tidings.client());
    let later = std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut later = Ledger::default();
            let mut number = 100_000;
            while !is_over.load(Ordering::Relaxed) {
                later.post_raw(&client, &report("success", &format!("p{}", number % 7), number));
                number += 1;
            }
            later
        });
        assert_eq!(ask(&tidings, "old", "new")["moved"], 2_500);
        is_over.store(true, Ordering::Relaxed);
        producer.join().unwrap()
    });
    tidings.wait_until_delivered();
    let is_of = |ledger: &Ledger, payload: &[u8]| ledger.accepted.iter().any(|known| known.payload == payload);
    wait_until("all arrive", || subscriber.count() >= 2_500 + later.accepted.len());
    // Each of the two keeps its own order.
    let arrivals = subscriber.arrivals();
    let (fresh, moved): (Vec<_>, Vec<_>) = arrivals.into_iter().partition(|arrival| is_of(&later, &arrival.payload));
    ledger.assert_kept_exactly(&moved);
    later.assert_kept_exactly(&fresh);
}

#[test]
fn a_kill_during_a_move_leaves_every_report_on_exactly_one_side() {
    const COUNT: u64 = 12_000;
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    let mut tidings = Tidings::prepare(&(named_connection("old", free_port(), "") + SOON + &pipelines("old")));
    // The first kill comes in the middle for sure.
    tidings.environment = vec![("TIDINGS_CRASH_AT", "move-piece:3".to_owned())];
    tidings.run();
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..COUNT).map(|number| report("success", &format!("p{}", number % 7), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    assert!(tidings.reload(&(named_connection("new", mosquitto.port, "") + SOON + &pipelines("new"))));
    let mut kills = 0;
    let mut sides = Vec::new();
    while total(&tidings, "old", "pending") > 0 {
        let mut killer = tidings.killer();
        let before = total(&tidings, "new", "created");
        std::thread::scope(|scope| {
            let moving = scope.spawn(|| tidings.post("/v1/moves", r#"{"from":"old","to":"new","by":"ops"}"#));
            // Somewhere in the middle: after a piece or two, and now and then a little later.
            wait_until("it moves", || {
                moving.is_finished() || tidings.get("/v1/status").is_some_and(|reply| created(&reply.json()) > before)
            });
            std::thread::sleep(Duration::from_millis(kills % 5));
            killer.kill();
            drop(moving.join());
        });
        // It is done with that process before another may have its number.
        drop(killer);
        tidings.end();
        tidings.environment.clear();
        tidings.run();
        kills += 1;
        let (pending, created) = (total(&tidings, "old", "pending"), total(&tidings, "new", "created"));
        sides.push(created);
        assert_eq!(pending + created, COUNT, "after kill {kills}");
        assert_eq!(total(&tidings, "old", "discarded"), created);
        tidings.assert_balanced();
    }
    assert!(sides.iter().any(|created| (1..COUNT).contains(created)), "no kill came in the middle: {sides:?}");
    mosquitto.run();
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
}

fn created(status: &Value) -> u64 {
    let new = status["connections"].as_array().unwrap().iter().find(|known| known["name"] == "new").unwrap();
    new["totals"]["created"].as_u64().unwrap()
}

#[test]
fn a_stop_during_a_move_ends_it_at_once_and_it_goes_on_when_it_is_asked_for_again() {
    const COUNT: u64 = 12_000;
    let next = ScriptedBroker::usual();
    let mut tidings = Tidings::start(&(named_connection("old", free_port(), "") + SOON + &pipelines("old")));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &mixed(COUNT));
    assert!(tidings.reload(&(named_connection("new", next.port, "") + SOON + &pipelines("new"))));
    let reply = std::thread::scope(|scope| {
        let moving = scope.spawn(|| tidings.post("/v1/moves", r#"{"from":"old","to":"new","by":"ops"}"#));
        wait_until("it moves", || tidings.get("/v1/status").is_some_and(|reply| created(&reply.json()) > 0));
        tidings.terminate();
        moving.join().unwrap().expect("it is answered")
    });
    assert_eq!(tidings.end(), Some(0));
    tidings.run();
    let moved = total(&tidings, "old", "discarded");
    if reply.status != 200 {
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("stopping")));
        assert!(reply.text.contains(&format!("; {moved} deliveries were moved")), "{moved}: {reply:?}");
        assert!(moved < COUNT);
    }
    assert_eq!(ask(&tidings, "old", "new")["moved"], COUNT - moved);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&next.arrivals());
}

#[test]
fn what_may_have_arrived_at_the_old_broker_is_counted_and_said_in_its_history() {
    let silent = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![Act::Usual] });
    let next = ScriptedBroker::usual();
    let new = named_connection("new", next.port, "") + SOON;
    let old = named_connection("old", silent.port, "workers = 1\nwindow = 3\nwindow_3_1_1 = 3");
    let tidings = Tidings::start(&(old + &new + &pipelines("old")));
    let mut ledger = Ledger::default();
    for number in 0..20 {
        ledger.post(&tidings, 2, "one", number);
    }
    wait_until("three are in flight", || silent.count(|packet| packet.publish().is_some()) == 3);
    drop(silent);
    assert!(tidings.reload(&(new + &pipelines("new"))));
    let (code, text) = tidings.command(&["move", "--from", "old", "--to", "new", "--by", "ops"]);
    // Two windows: the log does not know how much of them was sent.
    let expected = "moved 20 from old to new\n6 of them, at most, may have arrived at the old broker as well\n";
    assert_eq!((code, text.as_str()), (Some(0), expected));
    assert_eq!(tidings.logged("6 of the moved deliveries may have arrived at the old broker as well").len(), 1);
    assert_eq!(tidings.metric("tidings_possible_duplicates_total{connection=\"old\"}"), 6.0);
    let says = |number: usize| {
        let told = tidings.get(&format!("/v1/deliveries/{}", ledger.accepted[number].id)).unwrap().json();
        let moved = told["history"].as_array().unwrap().iter().find(|entry| entry["event"] == "moved").cloned().unwrap();
        moved["says"].as_str().unwrap().to_owned()
    };
    assert_eq!([0, 19].map(says), ["moved to new (it may have arrived at old) by ops", "moved to new by ops"]);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&next.arrivals());
}

#[test]
fn what_waits_for_a_retry_is_moved_in_its_place_and_dead_letters_stay() {
    // It never takes the second, and the fifth may not be taken at all.
    let refusing = ScriptedBroker::start(|packet| match packet {
        packet if packet.carries("\"change\":\"2\"") => vec![Act::Refuse(0x87)],
        packet if packet.carries("\"change\":\"5\"") => vec![Act::Refuse(0x90)],
        _ => vec![Act::Usual],
    });
    let next = ScriptedBroker::usual();
    let new = named_connection("new", next.port, "protocol = \"5\"");
    let retry = "[retry]\ninitial = \"10m\"\nmax = \"10m\"\nattempts = 100\n";
    let old = named_connection("old", refusing.port, "workers = 1\nprotocol = \"5\"");
    let tidings = Tidings::start(&(old + &new + retry + &pipelines("old")));
    let (mut first, mut ledger) = (Ledger::default(), Ledger::default());
    for number in [1, 5] {
        first.post(&tidings, 2, "other", number);
    }
    wait_until("one is dead", || total(&tidings, "old", "dead") == 1);
    for number in [2, 3, 4, 6] {
        ledger.post(&tidings, 2, "one", number);
        wait_until("one is refused", || refusing.count(|packet: &Packet| packet.carries("\"change\":\"2\"")) == 1);
    }
    wait_until("one waits", || tidings.status("old")["lanes"][0]["waiting"] == 1);
    let answer = ask(&tidings, "old", "new");
    assert_eq!((&answer["moved"], &answer["dead_letters"]), (&json!(4), &json!(1)));
    wait_until("all arrive", || ledger.is_complete(&next.arrivals()));
    ledger.assert_kept_exactly(&next.arrivals());
    assert_eq!((total(&tidings, "old", "dead"), total(&tidings, "old", "pending")), (1, 0));
    tidings.assert_balanced();
}

#[test]
fn a_move_that_makes_no_sense_is_refused_and_moves_nothing() {
    let (away, next) = (free_port(), ScriptedBroker::usual());
    let tidings = Tidings::start(&(named_connection("old", away, "") + &named_connection("new", next.port, "") + SOON + &pipelines("old")));
    Ledger::default().post(&tidings, 2, "one", 1);
    let long = "x".repeat(65);
    for (body, status, code, field) in [
        (json!({ "from": "odl", "to": "new", "by": "ops" }), 404, "unknown_connection", "from"),
        (json!({ "from": "old", "to": "nwe", "by": "ops" }), 409, "not_configured", "to"),
        (json!({ "from": "old", "to": "old", "by": "ops" }), 422, "invalid_move", "to"),
        (json!({ "from": "old", "to": "new", "by": " " }), 422, "invalid_query", "by"),
        (json!({ "from": "old", "to": "new", "by": long }), 422, "invalid_query", "by"),
        (json!({ "from": "old", "to": "new" }), 422, "invalid_query", "by"),
        (json!(["old", "new", "ops"]), 422, "invalid_move", ""),
        (json!({ "from": "old", "to": "new", "by": "ops", "limit": 3 }), 422, "invalid_move", "limit"),
        (json!({ "to": "new", "by": "ops" }), 422, "invalid_move", "from"),
        (json!({ "from": 7, "to": "new", "by": "ops" }), 422, "invalid_move", "from"),
        (json!({ "from": "old", "to": "new", "by": "x".repeat(5_000) }), 413, "too_large", ""),
    ] {
        let reply = tidings.post("/v1/moves", &body.to_string()).unwrap();
        let error = &reply.json()["error"];
        assert_eq!((reply.status, error["code"].as_str().unwrap()), (status, code), "{reply:?}");
        assert_eq!(error["field"].as_str().unwrap_or_default(), field, "{reply:?}");
    }
    let (code, text) = tidings.command(&["move", "--from", "odl", "--to", "new"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("nothing is known of a connection odl; known are: new, old"), "{text}");
    assert_eq!(total(&tidings, "old", "pending"), 1);
    assert_eq!(total(&tidings, "new", "created"), 0);
}

#[test]
fn a_request_that_comes_again_after_a_move_still_gets_its_first_answer() {
    let next = ScriptedBroker::usual();
    let tidings = Tidings::start(&(named_connection("old", free_port(), "") + SOON + &pipelines("old")));
    let post = || tidings.client().post(report("success", "one", 1).as_bytes(), "application/json", Some("key")).unwrap();
    let first = post();
    assert!(tidings.reload(&(named_connection("new", next.port, "") + SOON + &pipelines("new"))));
    assert_eq!(ask(&tidings, "old", "new")["moved"], 1);
    let again = post();
    assert_eq!((again.status, again.text), (202, first.text));
    tidings.wait_until_delivered();
    assert_eq!(next.arrivals().len(), 1);
}

#[test]
fn a_sighup_during_a_move_takes_its_turn_and_neither_loses_anything() {
    let next = ScriptedBroker::usual();
    let with = |more: &str| named_connection("old", free_port(), "") + &named_connection("new", next.port, more) + SOON + &pipelines("new");
    let tidings = Tidings::start(&(named_connection("old", free_port(), "") + SOON + &pipelines("old")));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &mixed(4_000));
    assert!(tidings.reload(&with("")));
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| ask(&tidings, "old", "new"));
        for workers in [2, 5, 3] {
            assert!(tidings.reload(&with(&format!("workers = {workers}"))));
        }
        assert_eq!(moving.join().unwrap()["moved"], 4_000);
    });
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&next.arrivals());
    next.assert_no_violations();
    tidings.assert_balanced();
}
