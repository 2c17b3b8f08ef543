//! Connections with several servers: in their order, a session each, and back to the first.

use crate::support::ledger::{Arrival, Ledger};
use crate::support::mosquitto::{Mosquitto, PERSISTENT, free_port};
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings};
use crate::support::wait_until;

fn config(ports: &[u16], more: &str) -> String {
    let servers: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    format!("[connection.mqtt]\ndriver = \"mqtt\"\nservers = [{}]\nfailback = \"1s\"\n{more}\n{SOON}{PIPELINES}", servers.join(", "))
}

fn possible_duplicates(tidings: &Tidings) -> f64 {
    tidings.metric(r#"tidings_possible_duplicates_total{connection="mqtt"}"#)
}

#[test]
fn with_the_first_server_away_the_next_is_used_and_the_first_again_when_it_is_back_without_a_repetition() {
    let away = free_port();
    let second = ScriptedBroker::usual();
    let tidings = Tidings::start(&config(&[away, second.port], "workers = 2\nprotocol = \"5\""));
    let mut ledger = Ledger::default();
    for number in 0..20 {
        ledger.post(&tidings, 2, &format!("p{}", number % 5), number);
    }
    tidings.wait_until_delivered();
    assert_eq!(second.arrivals().len(), 20);
    let used = tidings.status("mqtt")["lanes"][0]["server"].clone();
    assert_eq!(used, format!("127.0.0.1:{}", second.port), "the status says which server is used");

    // The first one is there at last: a mosquitto, which can be given its port.
    let mut first = Mosquitto::prepare_at(away, PERSISTENT);
    first.run();
    let subscriber = Subscriber::start(away);
    wait_until("both lanes are back at the first", || {
        let status = tidings.status("mqtt");
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().all(|lane| lane["server"] == format!("127.0.0.1:{away}") && lane["state"] == "connected")
    });
    for number in 20..40 {
        ledger.post(&tidings, 2, &format!("p{}", number % 5), number);
    }
    tidings.wait_until_delivered();
    wait_until("the first passes them on", || subscriber.count() == 20);
    let all: Vec<Arrival> = second.arrivals().into_iter().chain(subscriber.arrivals()).collect();
    ledger.assert_kept_exactly(&all);
    assert_eq!(possible_duplicates(&tidings), 0.0);
    second.assert_no_violations();
}

#[test]
fn a_server_that_is_restarted_settles_what_was_in_doubt_or_it_is_sent_elsewhere_and_counted() {
    let mut first = Mosquitto::start(&format!("{PERSISTENT}max_inflight_messages 20\n"));
    let subscriber = Subscriber::start(first.port);
    let second = ScriptedBroker::usual();
    let tidings = Tidings::start(&config(&[first.port, second.port], "workers = 1\nprotocol = \"5\""));
    let mut ledger = Ledger::default();
    first.freeze();
    for number in 0..50 {
        ledger.post(&tidings, 2, "one", number);
    }
    wait_until("something is in flight", || tidings.status("mqtt")["lanes"][0]["in_flight"].as_u64() > Some(0));
    first.thaw();
    first.stop();
    first.run();
    tidings.wait_until_delivered();
    // On a slow machine its restart can take longer than it is waited for.
    let all = || second.arrivals().into_iter().chain(subscriber.arrivals()).collect::<Vec<Arrival>>();
    wait_until("all arrive", || ledger.is_complete(&all()));
    match second.arrivals().is_empty() {
        true => drop(ledger.assert_kept(&all())),
        false => assert!(possible_duplicates(&tidings) > 0.0, "elsewhere only what is counted"),
    }
}

#[test]
fn a_server_that_stays_away_with_something_in_doubt_is_given_up_and_what_may_arrive_twice_is_counted() {
    // It takes the reports and never answers for them; then it goes.
    let first = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![Act::Usual] });
    let second = ScriptedBroker::usual();
    let tidings = Tidings::start(&config(&[first.port, second.port], "workers = 1\nprotocol = \"5\""));
    let mut ledger = Ledger::default();
    for number in 0..5 {
        ledger.post(&tidings, 2, "one", number);
    }
    wait_until("they are in flight", || tidings.status("mqtt")["lanes"][0]["in_flight"] == 5);
    drop(first);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&second.arrivals());
    assert!(possible_duplicates(&tidings) >= 5.0);
    assert_eq!(tidings.logged("goes on with another of its servers").len(), 1);
    second.assert_no_violations();
    tidings.assert_balanced();
}

#[test]
fn a_server_that_refuses_the_connection_is_passed_over() {
    let first = ScriptedBroker::start(|packet| if packet.is_connect() { vec![Act::Refuse(0x88), Act::Close] } else { vec![Act::Usual] });
    let second = ScriptedBroker::usual();
    let tidings = Tidings::start(&config(&[first.port, second.port], "workers = 1\nprotocol = \"5\""));
    let mut ledger = Ledger::default();
    for number in 0..5 {
        ledger.post(&tidings, 1, "one", number);
    }
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&second.arrivals());
    assert!(first.arrivals().is_empty());
}

#[test]
fn after_a_kill_what_was_in_doubt_is_settled_with_the_server_that_has_its_session() {
    let away = free_port();
    let second = ScriptedBroker::start(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
    let mut tidings = Tidings::start(&config(&[away, second.port], "workers = 1\nprotocol = \"5\""));
    let mut ledger = Ledger::default();
    for number in 0..5 {
        ledger.post(&tidings, 2, "one", number);
    }
    wait_until("they are released", || second.count(|packet| packet.is_pubrel()) == 5);
    tidings.kill();
    second.behave();
    let mut first = Mosquitto::prepare_at(away, PERSISTENT);
    first.run();
    tidings.run();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&second.arrivals());
    assert_eq!(possible_duplicates(&tidings), 0.0, "its session was not given up");
}
