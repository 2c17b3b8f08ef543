//! Brokers that fall silent. These tests wait for the service's own time limits, so several connections wait side by side.

use std::time::{Duration, Instant};

use crate::support::ledger::{Ledger, report};
use crate::support::scripted::{Act, Packet, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection, named_connection};
use crate::support::{wait_until, wait_within};

/// A broker that does this on the first connection on which something is heard, and behaves on all others.
fn on_the_first_connection(is_meant: impl Fn(&Packet) -> bool + Send + 'static, acts: Vec<Act>) -> ScriptedBroker {
    let mut first = None;
    ScriptedBroker::start(move |packet| match is_meant(packet) && *first.get_or_insert(packet.connection) == packet.connection {
        true => acts.clone(),
        false => vec![Act::Usual],
    })
}

#[test]
fn a_broker_that_falls_silent_is_left_after_a_while_and_everything_is_delivered_in_the_next_connection() {
    // PUBREC and then nothing; reads nothing any more; never answers CONNECT.
    let mute = on_the_first_connection(Packet::is_pubrel, vec![]);
    let deaf = on_the_first_connection(|packet| packet.publish().is_some(), vec![Act::Usual, Act::Deaf]);
    let stern = on_the_first_connection(Packet::is_connect, vec![]);
    let brokers = [("mute", &mute), ("deaf", &deaf), ("stern", &stern)];
    let mut config = SOON.to_owned() + "[[pipeline]]\nname = \"check\"\n";
    for (name, broker) in brokers {
        config += &format!("success.{name} = {{ topic = \"{name}/{{project}}\", qos = 2 }}\n");
        config += &format!("failure.{name} = {{ topic = \"{name}/{{project}}\", qos = 1 }}\n");
        config.insert_str(0, &named_connection(name, broker.port, "workers = 1\nprotocol = \"5\""));
    }
    let tidings = Tidings::start(&config);
    let began = Instant::now();
    let mut ledger = Ledger::default();
    for number in 0..60 {
        // Large enough that a broker which reads nothing also stops the writing.
        let action = if number % 2 == 0 { "success" } else { "failure" };
        let large = report(action, "one", number).replace("acme", &"a".repeat(200_000));
        ledger.post_raw(&tidings.client(), &large);
    }
    wait_within(Duration::from_secs(90), "everything is delivered", || {
        brokers.iter().all(|(name, _)| tidings.status(name)["backlog"] == 0)
    });
    assert!(began.elapsed() > Duration::from_secs(29), "a broker may be slow");
    for (name, broker) in brokers {
        let of_one = ledger.accepted.iter().filter(|accepted| accepted.connection == name).cloned().collect();
        Ledger { accepted: of_one }.assert_kept(&broker.arrivals());
        broker.assert_no_violations();
        let series = format!("tidings_possible_duplicates_total{{connection=\"{name}\"}}");
        assert_eq!(tidings.metric(&series), 0.0, "{name}");
    }
    tidings.assert_balanced();
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_broker_that_acknowledges_nothing() {
    let broker = ScriptedBroker::start(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
    let mut tidings = Tidings::start(&(connection(broker.port, "protocol = \"5\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    wait_until("PUBREL is on its way", || broker.count(Packet::is_pubrel) == 1);
    let began = Instant::now();
    assert_eq!(tidings.stop(), Some(0));
    assert!(began.elapsed() >= Duration::from_secs(5), "it is given its time: {:?}", began.elapsed());
    broker.behave();
    tidings.run();
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    broker.assert_no_violations();
}
