//! Reports that the broker refuses: each ends as its reason code says, in sight, and holds up nothing but its own topic.

use std::collections::HashSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::ledger::{Ledger, report};
use crate::support::mosquitto::Mosquitto;
use crate::support::scripted::{Act, Packet, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

fn start(broker: &ScriptedBroker) -> Tidings {
    Tidings::start(&(connection(broker.port, "workers = 1") + SOON + PIPELINES))
}

/// Refuses every PUBLISH that is counted here.
fn refuse(code: u8, is_refused: impl Fn(&Packet) -> bool + Send + 'static) -> impl FnMut(&Packet) -> Vec<Act> + Send + 'static {
    move |packet| if is_refused(packet) { vec![Act::Refuse(code)] } else { vec![Act::Usual] }
}

/// A dead letter is seen in the status, in the metrics and in the log; nothing else is missing from the books.
fn assert_one_is_dead(tidings: &Tidings, qos: u8, reason: &str) {
    let status = tidings.status("mqtt");
    assert_eq!((&status["dead_letters"], &status["totals"]["dead"], &status["backlog"]), (&1.into(), &1.into(), &0.into()), "{status}");
    assert_eq!(tidings.metric(r#"tidings_dead_letters{connection="mqtt"}"#), 1.0);
    let series = format!(r#"tidings_deliveries_total{{connection="mqtt",qos="{qos}",result="dead"}}"#);
    assert_eq!(tidings.metric(&series), 1.0);
    let lines = tidings.logged("dead letter");
    assert!(lines.len() == 1 && lines[0].to_string().contains(reason), "{lines:?}");
    tidings.assert_balanced();
}

#[test]
fn a_topic_name_that_the_broker_calls_invalid_is_dead_at_once_and_what_is_behind_it_arrives() {
    for qos in [1, 2] {
        let broker = ScriptedBroker::start(refuse(0x90, |packet| packet.carries(r#""change":"3""#)));
        let tidings = start(&broker);
        let mut ledger = Ledger::default();
        for number in 0..10 {
            ledger.post(&tidings, qos, "one", number);
        }
        tidings.wait_until_delivered();
        tidings.wait_for_total("dead", 1);
        ledger.accepted.remove(3);
        ledger.assert_kept(&broker.arrivals());
        assert_eq!(broker.count(|packet| packet.carries(r#""change":"3""#)), 1, "no retry can change it");
        assert_one_is_dead(&tidings, qos, "0x90 (topic name invalid)");
        broker.assert_no_violations();
    }
}

#[test]
fn what_is_not_authorized_is_tried_as_often_as_the_policy_says_and_then_dead() {
    for qos in [1, 2] {
        let broker = ScriptedBroker::start(refuse(0x87, |packet| packet.carries("secret")));
        let tidings = start(&broker);
        let mut ledger = Ledger::default();
        ledger.post(&tidings, qos, "secret", 1);
        for number in 2..30 {
            ledger.post(&tidings, qos, "open", number);
        }
        tidings.wait_for_total("dead", 1);
        tidings.wait_until_delivered();
        ledger.accepted.remove(0);
        ledger.assert_kept_exactly(&broker.arrivals());
        assert_eq!(broker.count(|packet| packet.carries("secret")), 3, "`attempts` is 3");
        assert_one_is_dead(&tidings, qos, "3 times, last with 0x87 (not authorized)");
        broker.assert_no_violations();
    }
}

#[test]
fn while_one_waits_for_its_retry_others_of_its_topic_wait_and_other_topics_do_not() {
    // It is refused until the other topic is through, however long that takes.
    let (mut refusals, mut free) = (0, HashSet::new());
    let broker = ScriptedBroker::start(move |packet| {
        let Some(publish) = packet.publish() else { return vec![Act::Usual] };
        if publish.topic == "zuul/free" {
            free.insert(publish.payload.clone());
        }
        if packet.carries(r#""change":"0""#) && (refusals < 2 || free.len() < 10) {
            refusals += 1;
            return vec![Act::Refuse(0x87)];
        }
        vec![Act::Usual]
    });
    let retry = "[retry]\ninitial = \"600ms\"\nmax = \"600ms\"\nattempts = 1000\n";
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1\nwindow = 1") + retry + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..20).map(|number| report("success", if number % 2 == 0 { "held" } else { "free" }, number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    let arrivals = broker.arrivals();
    assert!(arrivals.iter().take(10).all(|arrival| arrival.topic == "zuul/free"), "{arrivals:?}");
    ledger.assert_kept_exactly(&arrivals);
    assert_eq!(tidings.total("dead"), 0);
    broker.assert_no_violations();
}

#[test]
fn a_quota_that_is_exceeded_pauses_the_lane_and_is_charged_to_nobody() {
    // More refusals than `attempts`. What is measured is the least time that the lane kept still: a slow machine can only make it longer.
    const REFUSALS: usize = 5;
    let pauses = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut refusals, mut refused_at) = (Arc::clone(&pauses), 0, None::<Instant>);
    let broker = ScriptedBroker::start(move |packet| {
        if packet.publish().is_none() {
            return vec![Act::Usual];
        }
        seen.lock().unwrap().extend(refused_at.take().map(|at| at.elapsed()));
        if refusals == REFUSALS {
            return vec![Act::Usual];
        }
        refusals += 1;
        refused_at = Some(Instant::now());
        vec![Act::Refuse(0x97)]
    });
    let retry = "[retry]\ninitial = \"400ms\"\nmax = \"400ms\"\nattempts = 3\n";
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1\nwindow = 1") + retry + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..20).map(|number| report("success", &format!("p{}", number % 4), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    let pauses = pauses.lock().unwrap().clone();
    assert_eq!(pauses.len(), REFUSALS);
    assert!(pauses.iter().all(|pause| *pause > Duration::from_millis(150)), "half of `initial` at least, for other topics too: {pauses:?}");
    assert_eq!(tidings.total("dead"), 0, "more refusals than `attempts` make no dead letter");
    tidings.assert_balanced();
    broker.assert_no_violations();
}

#[test]
fn an_error_that_says_nothing_is_charged_only_while_others_get_through() {
    // For everyone first: nobody is to blame. For one topic alone later: that one is.
    let broker = ScriptedBroker::start(refuse(0x80, |packet| packet.publish().is_some()));
    let tidings = start(&broker);
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 1, "bad", 0);
    ledger.post(&tidings, 1, "good", 1);
    wait_until("it is tried more often than `attempts`", || broker.count(|packet| packet.carries("bad")) > 6);
    assert_eq!(tidings.total("dead"), 0);
    broker.change(refuse(0x80, |packet| packet.carries("bad")));
    let mut number = 1;
    wait_until("it is dead", || {
        number += 1;
        ledger.post(&tidings, 1, "good", number);
        tidings.total("dead") == 1
    });
    tidings.wait_until_delivered();
    ledger.accepted.remove(0);
    ledger.assert_kept_exactly(&broker.arrivals());
    assert_one_is_dead(&tidings, 1, "0x80 (unspecified error)");
}

#[test]
fn what_mosquittos_access_control_denies_over_mqtt_5_is_a_dead_letter_and_not_lost_in_silence() {
    let mosquitto = Mosquitto::prepare("");
    let acl = mosquitto.folder().join("acl");
    fs::write(&acl, "topic read #\ntopic write zuul/open\n").unwrap();
    let mut mosquitto = mosquitto.with(&format!("acl_file {}\n", acl.display()));
    mosquitto.run();
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "workers = 1\nprotocol = \"5\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "secret", 0);
    for number in 1..20 {
        ledger.post(&tidings, 2, "open", number);
    }
    tidings.wait_for_total("dead", 1);
    tidings.wait_until_delivered();
    ledger.accepted.remove(0);
    wait_until("the others arrive", || subscriber.count() >= 19);
    ledger.assert_kept_exactly(&subscriber.arrivals());
    assert_one_is_dead(&tidings, 2, "0x87 (not authorized)");
}

#[test]
fn a_dead_letter_is_still_there_after_a_restart_and_nothing_else_is_sent_again() {
    let broker = ScriptedBroker::start(refuse(0x90, |packet| packet.carries(r#""change":"1""#)));
    let mut tidings = start(&broker);
    let mut ledger = Ledger::default();
    for number in 0..5 {
        ledger.post(&tidings, 2, "one", number);
    }
    tidings.wait_for_total("dead", 1);
    tidings.wait_until_delivered();
    tidings.kill();
    tidings.run();
    ledger.post(&tidings, 2, "one", 5);
    tidings.wait_until_delivered();
    let totals = tidings.status("mqtt")["totals"].clone();
    assert_eq!((&totals["dead"], &totals["acknowledged"]), (&1.into(), &5.into()), "{totals}");
    ledger.accepted.remove(1);
    ledger.assert_kept(&broker.arrivals());
    tidings.assert_balanced();
}
