//! Reports at which the broker hangs up: found, charged and condemned, at nobody else's cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::scripted::{Act, Packet, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

fn start(broker: &ScriptedBroker, more: &str) -> Tidings {
    Tidings::start(&(connection(broker.port, &format!("workers = 1\n{more}")) + SOON + PIPELINES))
}

fn hang_up_at(is_poison: impl Fn(&Packet) -> bool + Send + 'static) -> impl FnMut(&Packet) -> Vec<Act> + Send + 'static {
    move |packet| if is_poison(packet) { vec![Act::Close] } else { vec![Act::Usual] }
}

fn possible_duplicates(tidings: &Tidings) -> f64 {
    tidings.metric(r#"tidings_possible_duplicates_total{connection="mqtt"}"#)
}

#[test]
fn a_report_at_which_the_broker_hangs_up_is_a_dead_letter_after_its_attempts_and_all_others_arrive_once() {
    for (protocol, qos) in [("5", 2), ("3.1.1", 2), ("5", 1)] {
        let broker = ScriptedBroker::start(hang_up_at(|packet| packet.carries("poison")));
        let tidings = start(&broker, &format!("protocol = \"{protocol}\""));
        let mut ledger = Ledger::default();
        let name = |number: u64| if number == 20 { "poison".to_owned() } else { format!("p{}", number % 4) };
        let reports: Vec<String> = (0..60).map(|number| report(action_for(qos), &name(number), number)).collect();
        ledger.post_many(&tidings.client(), &reports);
        tidings.wait_until_delivered();
        assert_eq!(tidings.total("dead"), 1);
        ledger.accepted.remove(20);
        ledger.assert_kept(&broker.arrivals());
        if qos == 2 {
            // The suspect is sent again after its first charges, and only the suspect.
            assert!(possible_duplicates(&tidings) <= 3.0, "{}", possible_duplicates(&tidings));
        }
        let lines = tidings.logged("dead letter");
        assert!(
            lines.len() == 1 && lines[0].to_string().contains("the connection ended each of the 3 times that it was sent, last because"),
            "{lines:?}"
        );
        broker.assert_no_violations();
        tidings.assert_balanced();
    }
}

#[test]
fn what_comes_behind_the_poison_in_its_topic_arrives_in_order_when_it_is_dead() {
    let broker = ScriptedBroker::start(hang_up_at(|packet| packet.carries(r#""change":"1""#)));
    let tidings = start(&broker, "window = 1");
    let mut ledger = Ledger::default();
    for number in 0..10 {
        ledger.post(&tidings, 2, "one", number);
    }
    tidings.wait_until_delivered();
    ledger.accepted.remove(1);
    ledger.assert_kept_exactly(&broker.arrivals());
    assert_eq!(tidings.total("dead"), 1);
}

#[test]
fn a_broker_that_hangs_up_at_everything_suspends_the_lane_and_is_not_fed_to_the_dead_letters() {
    let broker = ScriptedBroker::start(hang_up_at(|packet| packet.publish().is_some()));
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    for number in 0..30 {
        ledger.post(&tidings, 2, &format!("p{number}"), number);
    }
    wait_until("the lane is suspended", || tidings.status("mqtt")["lanes"][0]["state"] == "suspended");
    wait_until("and tries again and again", || tidings.logged("the lane is suspended").len() > 4);
    assert_eq!((tidings.total("dead"), tidings.total("pending")), (2, 28), "two were condemned before it was clear");
    assert_eq!(tidings.metric(r#"tidings_lanes_suspended{connection="mqtt"}"#), 1.0);
    let error = tidings.status("mqtt")["lanes"][0]["last_error"]["message"].to_string();
    assert!(!error.is_empty() && error != "null", "{error}");
    broker.behave();
    tidings.wait_until_delivered();
    let arrived: Vec<_> = broker.arrivals();
    assert_eq!(arrived.len(), 28);
    assert_eq!(tidings.total("dead"), 2);
    wait_until("the alarm ends", || tidings.metric(r#"tidings_lanes_suspended{connection="mqtt"}"#) == 0.0);
    tidings.assert_balanced();
}

#[test]
fn the_alarm_of_a_suspended_lane_ends_when_the_broker_answers_again_be_it_with_a_refusal() {
    let refuses = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&refuses);
    let broker = ScriptedBroker::start(move |packet| match packet.publish() {
        Some(_) if answers.load(Ordering::Relaxed) => vec![Act::Refuse(0x87)],
        Some(_) => vec![Act::Close],
        None => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    for number in 0..10 {
        ledger.post(&tidings, 2, &format!("p{number}"), number);
    }
    wait_until("the lane is suspended", || tidings.status("mqtt")["lanes"][0]["state"] == "suspended");
    refuses.store(true, Ordering::Relaxed);
    wait_until("the lane is connected", || tidings.status("mqtt")["lanes"][0]["state"] == "connected");
    assert_eq!(tidings.metric(r#"tidings_lanes_suspended{connection="mqtt"}"#), 0.0);
    assert!(broker.arrivals().is_empty(), "nothing got through");
}

#[test]
fn a_broker_that_is_restarted_again_and_again_condemns_nobody() {
    let broker = ScriptedBroker::usual();
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    for round in 0..20 {
        for number in 0..5 {
            ledger.post(&tidings, 2, &format!("p{number}"), round * 5 + number);
        }
        broker.hang_up();
    }
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("dead"), 0);
    ledger.assert_kept(&broker.arrivals());
}

#[test]
fn a_report_that_is_never_acknowledged_is_found_like_one_at_which_the_broker_hangs_up() {
    // An acknowledgement is waited for as long as half a minute, so this is about what the broker closes after a while.
    let broker = ScriptedBroker::start(|packet| match packet.carries("poison") {
        true => {
            std::thread::sleep(std::time::Duration::from_millis(300));
            vec![Act::Close]
        }
        false => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "poison", 0);
    for number in 1..10 {
        ledger.post(&tidings, 2, &format!("p{number}"), number);
    }
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("dead"), 1);
    ledger.accepted.remove(0);
    ledger.assert_kept(&broker.arrivals());
}

#[test]
fn what_mosquitto_hangs_up_at_over_3_1_1_is_a_dead_letter_and_everything_else_arrives_once() {
    let mosquitto = Mosquitto::start(&format!("{PERSISTENT}max_packet_size 2000\n"));
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "workers = 1\nprotocol = \"3.1.1\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    let large = report("success", &format!("large-{}", "x".repeat(3_000)), 1_000);
    for number in 0..20 {
        ledger.post(&tidings, 2, &format!("p{}", number % 3), number);
        if number == 7 {
            ledger.post_raw(&tidings.client(), &large);
        }
    }
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("dead"), 1);
    ledger.accepted.retain(|accepted| accepted.payload.len() < 2_000);
    wait_until("the others arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept(&subscriber.arrivals());
    tidings.assert_balanced();
}
