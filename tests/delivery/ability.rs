//! Brokers that can't do everything, and say so: Maximum QoS, Retain Available, Server Keep Alive. And what Tidings says of each delivery.

use crate::support::ledger::{Ledger, report};
use crate::support::mosquitto::Mosquitto;
use crate::support::scripted::{Act, Heard, Limits, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

fn start(broker: &ScriptedBroker, more: &str) -> Tidings {
    let pipelines = PIPELINES.to_owned() + "config-error.mqtt = { topic = \"kept/{project}\", qos = 1, retain = true }\n";
    Tidings::start(&(connection(broker.port, &format!("workers = 1\nprotocol = \"5\"\n{more}")) + SOON + &pipelines))
}

#[test]
fn what_is_beyond_the_brokers_maximum_qos_is_held_in_sight_and_others_go_on() {
    let limits = Limits { maximum_qos: Some(1), ..Limits::default() };
    let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
    let tidings = start(&broker, "");
    let mut ledger = Ledger::default();
    for number in 0..10 {
        ledger.post(&tidings, if number % 2 == 0 { 2 } else { 1 }, &format!("p{}", number % 2), number);
    }
    tidings.wait_for_total("acknowledged", 5);
    wait_until("the reason is in the status", || {
        let message = tidings.status("mqtt")["lanes"][0]["last_error"]["message"].to_string();
        message.contains("Maximum QoS is 1") && message.contains("downgrade = true")
    });
    assert_eq!((tidings.total("pending"), tidings.total("dead")), (5, 0));
    assert_eq!(broker.arrivals().len(), 5);
    assert_eq!(tidings.logged("a report is held").len(), 1, "once for each connection, not for each report");
    broker.assert_no_violations();
    // The broker is given QoS 2.
    broker.limit(Limits::default());
    broker.hang_up();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    tidings.assert_balanced();
}

#[test]
fn what_is_held_is_still_held_after_a_restart() {
    let limits = Limits { maximum_qos: Some(1), ..Limits::default() };
    let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
    let mut tidings = start(&broker, "");
    let mut ledger = Ledger::default();
    for number in 0..4 {
        ledger.post(&tidings, 2, "held", number);
    }
    wait_until("it is held", || !tidings.logged("a report is held").is_empty());
    tidings.kill();
    tidings.run();
    ledger.post(&tidings, 1, "free", 4);
    tidings.wait_for_total("acknowledged", 1);
    broker.limit(Limits::default());
    broker.hang_up();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    broker.assert_no_violations();
}

#[test]
fn with_downgrade_it_is_sent_at_the_most_that_the_broker_has() {
    for most in [0, 1] {
        let limits = Limits { maximum_qos: Some(most), retain_available: Some(false), ..Limits::default() };
        let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
        let tidings = start(&broker, "downgrade = true");
        let mut ledger = Ledger::default();
        for number in 0..10 {
            ledger.post(&tidings, 2, &format!("p{}", number % 2), number);
        }
        ledger.post_raw(&tidings.client(), &report("config-error", "retained", 10));
        tidings.wait_until_delivered();
        let mut arrivals = broker.arrivals();
        assert_eq!(arrivals.len(), 11);
        assert!(arrivals.iter().all(|arrival| arrival.qos == most && !arrival.retain), "{arrivals:?}");
        arrivals.pop();
        assert_eq!((tidings.total("dead"), tidings.total("pending")), (0, 0));
        broker.assert_no_violations();
    }
}

#[test]
fn retained_reports_are_held_where_the_broker_has_no_retained_messages() {
    let limits = Limits { retain_available: Some(false), ..Limits::default() };
    let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
    let tidings = start(&broker, "");
    let mut ledger = Ledger::default();
    ledger.post_raw(&tidings.client(), &report("config-error", "kept", 0));
    ledger.post(&tidings, 1, "free", 1);
    tidings.wait_for_total("acknowledged", 1);
    wait_until("the reason is in the log", || tidings.logged("no retained messages").len() == 1);
    assert_eq!((broker.arrivals().len(), tidings.total("dead")), (1, 0));
    broker.limit(Limits::default());
    broker.hang_up();
    tidings.wait_until_delivered();
    assert!(broker.arrivals().iter().any(|arrival| arrival.retain));
    broker.assert_no_violations();
}

#[test]
fn the_brokers_keep_alive_counts_and_not_ones_own() {
    let broker = ScriptedBroker::with_limits(Limits { keepalive_s: Some(1), ..Limits::default() }, |_| vec![Act::Usual]);
    let _tidings = start(&broker, "keepalive = 600");
    wait_until("PINGREQ after a second of silence", || broker.count(|packet| packet.heard == Heard::PingReq) >= 2);
}

#[test]
fn a_delivery_says_which_it_is_and_when_it_was_accepted_and_says_the_same_again() {
    let mut publishes = 0;
    let broker = ScriptedBroker::start(move |packet| {
        publishes += u64::from(packet.publish().is_some());
        if packet.publish().is_some() && publishes == 1 { vec![Act::Close] } else { vec![Act::Usual] }
    });
    let tidings = start(&broker, "");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 0);
    tidings.wait_until_delivered();
    let sent: Vec<Vec<u8>> =
        broker.heard().iter().filter_map(|packet| packet.publish().map(|publish| publish.properties.clone())).collect();
    assert_eq!(sent.len(), 2, "the first was not acknowledged");
    assert_eq!(sent[0], sent[1], "brokers compare what is sent again");
    let text = String::from_utf8_lossy(&sent[0]).into_owned();
    for expected in ["application/json", "tidings-id", "tidings-accepted-at", &ledger.accepted[0].id.to_string()] {
        assert!(text.contains(expected), "{expected} is not in {text:?}");
    }
}

#[test]
fn a_connection_that_is_not_to_stamp_sends_the_content_type_and_nothing_else() {
    let broker = ScriptedBroker::usual();
    let tidings = start(&broker, "stamp = false");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 1, "one", 0);
    tidings.wait_until_delivered();
    let heard = broker.heard();
    let publish = heard.iter().find_map(|packet| packet.publish()).unwrap();
    let mut expected = vec![3, 0, 16];
    expected.extend(b"application/json");
    assert_eq!(publish.properties, expected, "Content Type (MQTT 5.0 §3.3.2.3.9)");
}

#[test]
fn mosquitto_with_a_maximum_qos_holds_what_is_more_and_takes_it_downgraded() {
    let mosquitto = Mosquitto::start("max_qos 1\n");
    let config = |more: &str| connection(mosquitto.port, &format!("workers = 1\nprotocol = \"5\"\n{more}")) + SOON + PIPELINES;
    let mut tidings = Tidings::start(&config(""));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 0);
    wait_until("it is held", || tidings.logged("Maximum QoS is 1").len() == 1);
    assert_eq!(tidings.total("pending"), 1);
    assert_eq!(tidings.stop(), Some(0));
    tidings.configure(&config("downgrade = true"));
    tidings.run();
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("acknowledged"), 1);
}
