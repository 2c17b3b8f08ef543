//! Stopping and starting the service.

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::scripted::{Act, Heard, Packet, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

const COUNT: u64 = 4_000;

/// A service whose backlog lies before a broker that is away.
fn with_a_backlog(mosquitto: &mut Mosquitto, protocol: &str) -> (Tidings, Ledger) {
    mosquitto.stop();
    let tidings = Tidings::start(&(connection(mosquitto.port, &format!("protocol = \"{protocol}\"")) + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    let qos = |number| 1 + u8::from(number % 3 > 0);
    let reports: Vec<String> = (0..COUNT).map(|number| report(action_for(qos(number)), &format!("p{}", number % 10), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    mosquitto.run();
    (tidings, ledger)
}

#[test]
fn sigterm_in_the_middle_of_a_backlog_ends_with_0_and_the_rest_follows_after_a_restart() {
    for protocol in ["5", "3.1.1"] {
        let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
        let subscriber = Subscriber::start(mosquitto.port);
        let (mut tidings, ledger) = with_a_backlog(&mut mosquitto, protocol);
        for stop in 1..3 {
            wait_until("a part arrives", || subscriber.count() >= stop * 200);
            assert_eq!(tidings.stop(), Some(0));
            assert!(tidings.logged("was not acknowledged in time").is_empty());
            tidings.run();
            assert!(tidings.logged("did not stop cleanly").is_empty());
        }
        assert!(tidings.total("pending") > 0 || tidings.total("acknowledged") == COUNT);
        tidings.wait_until_delivered();
        wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
        // In order means that nothing was in doubt: not even QoS 1 comes twice.
        ledger.assert_kept_exactly(&subscriber.arrivals());
        assert_eq!(tidings.total("possible_duplicates"), 0);
        tidings.assert_balanced();
    }
}

#[test]
fn kill_in_the_middle_of_a_backlog_loses_nothing_and_repeats_no_qos_2() {
    for protocol in ["5", "3.1.1"] {
        let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
        let subscriber = Subscriber::start(mosquitto.port);
        let (mut tidings, ledger) = with_a_backlog(&mut mosquitto, protocol);
        for kill in 1..5 {
            wait_until("a part arrives", || subscriber.count() >= kill * 150);
            tidings.kill();
            tidings.run();
            tidings.assert_balanced();
        }
        tidings.wait_until_delivered();
        wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
        ledger.assert_kept(&subscriber.arrivals());
    }
}

#[test]
fn a_kill_between_pubrec_and_pubrel_or_pubrel_and_pubcomp_repeats_no_qos_2() {
    for is_released in [false, true] {
        for protocol in ["5", "3.1.1"] {
            // The broker answers nothing from that step on, until the service has been killed.
            let broker = ScriptedBroker::start(move |packet| match packet.is_pubrel() {
                true if is_released => vec![Act::Usual, Act::Close],
                true => vec![],
                false => vec![Act::Usual],
            });
            let mut tidings = Tidings::start(&(connection(broker.port, &format!("protocol = \"{protocol}\"")) + SOON + PIPELINES));
            let mut ledger = Ledger::default();
            for number in 0..10 {
                ledger.post(&tidings, 2, &format!("p{number}"), number);
            }
            wait_until("PUBREL comes", || broker.count(Packet::is_pubrel) >= 3);
            tidings.kill();
            broker.behave();
            tidings.run();
            tidings.wait_until_delivered();
            ledger.assert_kept_exactly(&broker.arrivals());
            broker.assert_no_violations();
        }
    }
}

#[test]
fn a_kill_at_the_moment_when_a_resumed_session_is_left_repeats_no_qos_2() {
    for protocol in ["5", "3.1.1"] {
        let broker = ScriptedBroker::usual();
        let config = connection(broker.port, &format!("protocol = \"{protocol}\"\nworkers = 1")) + SOON + PIPELINES;
        let mut tidings = Tidings::start(&config);
        let mut ledger = Ledger::default();
        for round in 0..8 {
            broker.change(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
            let pubrels = broker.count(Packet::is_pubrel);
            let reports: Vec<String> = (0..5).map(|number| report("success", "one", round * 5 + number)).collect();
            ledger.post_many(&tidings.client(), &reports);
            wait_until("PUBREL comes for all", || broker.count(Packet::is_pubrel) >= pubrels + 5);
            // Everything is done then, but that it is done may not be durable yet.
            let mut killer = tidings.killer();
            broker.change(move |packet| {
                if packet.heard == Heard::Disconnect {
                    killer.kill();
                }
                vec![Act::Usual]
            });
            broker.hang_up();
            tidings.end();
            broker.behave();
            tidings.run();
            tidings.wait_until_delivered();
        }
        ledger.assert_kept_exactly(&broker.arrivals());
        assert_eq!(tidings.total("possible_duplicates"), 0);
        broker.assert_no_violations();
    }
}

#[test]
fn a_second_process_on_the_store_is_refused_and_the_first_goes_on() {
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(connection(broker.port, "") + PIPELINES));
    let (code, log) = tidings.refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is in use by another process (pid "), "{log}");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
}

#[test]
fn a_second_sigterm_stops_at_once_and_loses_nothing() {
    let broker = ScriptedBroker::start(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
    let mut tidings = Tidings::start(&(connection(broker.port, "protocol = \"5\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    wait_until("PUBREL is on its way", || broker.count(Packet::is_pubrel) == 1);
    tidings.terminate();
    // What comes within half a second is taken for the same signal. A stop that took its time would end with 0.
    wait_until("it has ended", || {
        tidings.terminate();
        tidings.has_ended()
    });
    assert_eq!(tidings.end(), Some(1));
    assert_eq!(tidings.logged("stopped at once").len(), 1);
    broker.behave();
    tidings.run();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    tidings.assert_balanced();
}

#[test]
fn another_number_of_workers_takes_over_in_order() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let (mut tidings, mut ledger) = with_a_backlog(&mut mosquitto, "5");
    for (round, workers) in [1, 3, 2].into_iter().enumerate() {
        wait_until("a part arrives", || subscriber.count() >= (round + 1) * 150);
        assert_eq!(tidings.stop(), Some(0));
        tidings.configure(&(connection(mosquitto.port, &format!("protocol = \"5\"\nworkers = {workers}")) + SOON + PIPELINES));
        tidings.run();
        let first = COUNT + 100 * round as u64;
        let reports: Vec<String> = (first..first + 100).map(|number| report("success", &format!("p{}", number % 10), number)).collect();
        ledger.post_many(&tidings.client(), &reports);
    }
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept(&subscriber.arrivals());
    tidings.assert_balanced();
}
