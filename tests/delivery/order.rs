//! Order per topic.

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, Tidings, connection};
use crate::support::wait_until;

#[test]
fn reports_of_one_topic_arrive_as_they_were_accepted_among_many_topics_and_producers() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + PIPELINES));
    let client = tidings.client();
    let produce = |producer: u64| {
        let mut ledger = Ledger::default();
        let reports: Vec<String> = (0..1_000)
            .map(|number| {
                report(action_for(if number % 25 < 12 { 1 } else { 2 }), &format!("p{}", number % 25), producer * 10_000 + number)
            })
            .collect();
        ledger.post_many(&client, &reports);
        ledger
    };
    let mut ledger = Ledger::default();
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..3).map(|producer| scope.spawn(move || produce(producer))).collect();
        producers.into_iter().for_each(|producer| ledger.accepted.extend(producer.join().unwrap().accepted));
    });
    wait_until("all arrive", || subscriber.count() >= 3_000);
    ledger.assert_kept_exactly(&subscriber.arrivals());
    tidings.wait_until_delivered();
}

#[test]
fn a_topic_whose_qos_changes_all_the_time_keeps_its_order() {
    // It passes on QoS 2 at PUBREL: whatever is sent before that overtakes.
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1\nprotocol = \"5\"") + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..400).map(|number| report(action_for([2, 0, 1, 1, 0, 2, 2][number % 7]), "one", number as u64)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    broker.assert_no_violations();
}

#[test]
fn a_qos_0_report_waits_until_the_qos_2_reports_before_it_are_done() {
    // PUBREC, and then nothing.
    let broker = ScriptedBroker::start(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1\nprotocol = \"5\"") + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    ledger.post(&tidings, 0, "one", 2);
    wait_until("PUBREL comes", || broker.count(|packet| packet.is_pubrel()) >= 1);
    broker.behave();
    broker.hang_up();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    broker.assert_no_violations();
}
