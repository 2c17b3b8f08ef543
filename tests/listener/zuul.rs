//! Zuul's own driver, in front of a broker that goes away.

use std::collections::HashSet;
use std::process::Command;

use serde_json::Value;

use crate::listener;
use crate::python::{ZUUL, python};
use crate::support::ledger::Arrival;
use crate::support::mosquitto::{AWAY, IN_ORDER, Mosquitto, PERSISTENT, WITH_PACKETS};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{SOON, Tidings, connection};
use crate::support::wait_until;

const REPORTS: u64 = 2_000;

fn number(arrival: &Arrival) -> u64 {
    serde_json::from_slice::<serde_json::Value>(&arrival.payload).unwrap()["number"].as_u64().unwrap()
}

/// Zuul publishes at 400 reports a second while the broker is away for seconds; what arrived in the end. The broker took the reports of each
/// topic in order, whatever it made of that for a subscriber that was behind. And how many were accepted when it was known to be away.
fn arrivals_through_an_outage(qos: u8) -> (Vec<Arrival>, u64) {
    let interpreter = python(ZUUL);
    let mut broker = Mosquitto::start(&[PERSISTENT, WITH_PACKETS].concat());
    let subscriber = Subscriber::start(broker.port);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "") + SOON));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener/zuul_publisher.py");
    let arguments = [script.to_owned(), tidings.listener().port().to_string(), qos.to_string(), REPORTS.to_string(), "400".to_owned()];
    let mut zuul = Command::new(interpreter).args(arguments).spawn().unwrap();
    tidings.wait_for_total("created", REPORTS / 4);
    broker.stop();
    let is_connected = |lane: &Value| lane["state"] == "connected";
    wait_until("all lanes know it", || !tidings.status("mqtt")["lanes"].as_array().unwrap().iter().any(is_connected));
    let known = tidings.total("created");
    std::thread::sleep(AWAY);
    // At QoS 0 the broker keeps nothing for a subscriber that is not there yet.
    tidings.freeze();
    broker.run();
    wait_until("the subscriber is back", || subscriber.is_connected());
    tidings.thaw();
    wait_until("Zuul has published", || zuul.try_wait().unwrap().is_some());
    assert!(zuul.wait().unwrap().success());
    tidings.wait_for_total("created", REPORTS);
    tidings.wait_until_delivered();
    // At QoS 0 the last of each topic, behind which none of its topic comes.
    let (expected, last) = if qos == 0 { (0, REPORTS - 7..REPORTS) } else { (REPORTS, 0..0) };
    wait_until("what was delivered has arrived", || {
        subscriber.count() as u64 >= expected
            && last.clone().all(|last| subscriber.arrivals().iter().any(|arrival| number(arrival) == last))
    });
    tidings.assert_balanced();
    assert_eq!(tidings.metric("tidings_reports_accepted_total{source=\"mqtt\"}"), REPORTS as f64);
    let arrivals = subscriber.arrivals();
    // What it refused for lack of room comes again later, under another identifier.
    if tidings.logged("the broker refused a report").is_empty() {
        broker.assert_taken_in_order(&HashSet::new());
    }
    (arrivals, known)
}

/// How many came more than once.
fn repeated(arrivals: &[Arrival]) -> usize {
    let seen: HashSet<u64> = arrivals.iter().map(number).collect();
    arrivals.len() - seen.len()
}

fn missing(arrivals: &[Arrival]) -> Vec<u64> {
    let seen: HashSet<u64> = arrivals.iter().map(number).collect();
    (0..REPORTS).filter(|number| !seen.contains(number)).collect()
}

#[test]
fn no_report_of_zuuls_is_lost_while_the_broker_is_away_at_qos_1() {
    let (arrivals, _) = arrivals_through_an_outage(1);
    assert_eq!(missing(&arrivals), [0; 0]);
}

#[test]
fn none_is_lost_and_none_comes_twice_at_qos_2() {
    let (arrivals, _) = arrivals_through_an_outage(2);
    assert_eq!(missing(&arrivals), [0; 0]);
    assert_eq!(repeated(&arrivals), 0);
}

#[test]
fn at_qos_0_only_what_was_in_the_socket_is_lost() {
    let (arrivals, known) = arrivals_through_an_outage(0);
    let missing = missing(&arrivals);
    // What came while the broker was known to be away was kept for it.
    assert!(missing.iter().all(|number| *number < known), "{missing:?}, and {known} were accepted when it was known to be away");
    assert_eq!(repeated(&arrivals), 0);
    let topics: HashSet<&str> = arrivals.iter().map(|arrival| arrival.topic.as_str()).collect();
    for topic in topics {
        // QoS 0 waits in no queue of the broker's.
        assert!(arrivals.iter().filter(|arrival| arrival.topic == topic).map(number).is_sorted(), "{topic}");
    }
}

#[test]
fn a_report_of_zuuls_is_passed_on_byte_for_byte() {
    let interpreter = python(ZUUL);
    let broker = Mosquitto::start(IN_ORDER);
    let subscriber = Subscriber::start(broker.port);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener/zuul_publisher.py");
    let zuul = Command::new(interpreter).args([script, &tidings.listener().port().to_string(), "2", "20", "1000"]).status().unwrap();
    assert!(zuul.success());
    wait_until("all have arrived", || subscriber.count() >= 20);
    let mut arrivals = subscriber.arrivals();
    // Topics are spread over lanes, and only within one there is an order.
    arrivals.sort_by_key(number);
    for (expected, arrival) in (0..).zip(arrivals) {
        let report = format!(
            r#"{{"action": "success", "tenant": "acme", "pipeline": "gate", "project": "widgets", "change": {expected}, "number": {expected}, "pad": "{}"}}"#,
            "x".repeat(1_500)
        );
        assert_eq!(String::from_utf8(arrival.payload).unwrap(), report);
        assert_eq!((arrival.topic, arrival.qos, arrival.retain), (format!("zuul/{}", expected % 7), 2, false));
    }
}
