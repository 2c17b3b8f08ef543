//! Packet ids, sessions, and what a clean session sends again.

use std::collections::HashSet;

use crate::listener;
use crate::publisher::{Hello, Publisher};
use crate::support::mosquitto::Mosquitto;
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{Tidings, connection};
use crate::support::{wait_until, wire};

struct Scene {
    tidings: Tidings,
    subscriber: Subscriber,
    _broker: Mosquitto,
}

fn scene() -> Scene {
    let broker = Mosquitto::start("");
    let subscriber = Subscriber::start(broker.port);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    Scene { tidings, subscriber, _broker: broker }
}

impl Scene {
    fn connect(&self, hello: &Hello) -> (Publisher, bool) {
        Publisher::connect(self.tidings.listener(), hello)
    }

    /// The only connection vanishes, and the service has seen it: what a live one has stored is nobody else's repetition.
    fn cut(&self, publisher: Publisher) {
        publisher.cut();
        wait_until("its end is noticed", || self.tidings.metric("tidings_listener_connections") == 0.0);
    }

    /// What arrived at the broker, once as much has arrived as was accepted.
    fn arrived(&self) -> Vec<String> {
        self.tidings.wait_until_delivered();
        let created = usize::try_from(self.tidings.total("created")).unwrap();
        wait_until("all of it has arrived", || self.subscriber.count() >= created);
        self.subscriber.arrivals().into_iter().map(|arrival| String::from_utf8(arrival.payload).unwrap()).collect()
    }
}

#[test]
fn a_packet_that_is_sent_again_on_its_connection_counts_once_until_it_is_released() {
    let scene = scene();
    for hello in [Hello::v4("one"), Hello::v4(""), Hello::v5("two"), Hello::v5("three").clean()] {
        let (mut publisher, _) = scene.connect(&hello);
        let payload = format!("{} {}", hello.level, hello.client_id);
        publisher.publish("t", &payload, 2, 7, false);
        publisher.expect_ack(wire::PUBREC, 7);
        publisher.publish("t", &payload, 2, 7, true);
        publisher.expect_ack(wire::PUBREC, 7);
        publisher.release(7);
        assert_eq!(publisher.expect_ack(wire::PUBCOMP, 7), 0);
        publisher.release(7);
        let unknown = publisher.expect_ack(wire::PUBCOMP, 7);
        assert_eq!(unknown, if hello.level == 5 { 0x92 } else { 0 }, "it is not known any more");
        publisher.publish("t", &(payload + " again"), 2, 7, false);
        publisher.expect_ack(wire::PUBREC, 7);
        publisher.disconnect();
    }
    let expected: Vec<_> =
        ["4 one", "4 ", "5 two", "5 three"].iter().flat_map(|name| [(*name).to_owned(), format!("{name} again")]).collect();
    assert_eq!(scene.arrived(), expected);
}

#[test]
fn a_session_remembers_what_it_has_received_over_a_kill_until_it_is_released() {
    let mut scene = scene();
    for hello in [Hello::v4("one"), Hello::v5("two")] {
        let (mut publisher, had_session) = scene.connect(&hello);
        assert!(!had_session);
        publisher.publish("t", &hello.client_id, 2, 1, false);
        publisher.expect_ack(wire::PUBREC, 1);
    }
    scene.tidings.kill();
    scene.tidings.run();
    for hello in [Hello::v4("one"), Hello::v5("two")] {
        let (mut publisher, had_session) = scene.connect(&hello);
        assert!(had_session, "the session is there");
        publisher.publish("t", &hello.client_id, 2, 1, true);
        publisher.expect_ack(wire::PUBREC, 1);
        publisher.release(1);
        assert_eq!(publisher.expect_ack(wire::PUBCOMP, 1), 0);
    }
    scene.tidings.kill();
    scene.tidings.run();
    let (mut publisher, had_session) = scene.connect(&Hello::v4("one"));
    assert!(had_session, "also without anything in it");
    publisher.publish("t", "one, another time", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    let (mut publisher, _) = scene.connect(&Hello::v5("two"));
    publisher.release(1);
    assert_eq!(publisher.expect_ack(wire::PUBCOMP, 1), 0x92, "the release was durable");
    assert_eq!(scene.arrived(), ["one", "two", "one, another time"]);
}

#[test]
fn a_client_that_has_lost_its_memory_loses_no_report() {
    let scene = scene();
    let (mut publisher, _) = scene.connect(&Hello::v4("forgetful"));
    publisher.publish("t", "before", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    publisher.cut();
    // Its process has restarted: it counts from 1 again, and knows nothing of a PUBREL that is due.
    let (mut publisher, _) = scene.connect(&Hello::v4("forgetful"));
    publisher.publish("t", "after", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    publisher.release(1);
    publisher.expect_ack(wire::PUBCOMP, 1);
    assert_eq!(scene.arrived(), ["before", "after"]);
}

#[test]
fn a_clean_start_ends_the_session_and_with_it_what_it_had_received() {
    let mut scene = scene();
    let (mut publisher, _) = scene.connect(&Hello::v5("one"));
    publisher.publish("t", "x", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    publisher.cut();
    let (publisher, had_session) = scene.connect(&Hello::v5("one").clean());
    assert!(!had_session);
    publisher.disconnect();
    scene.tidings.kill();
    scene.tidings.run();
    let (mut publisher, had_session) = scene.connect(&Hello::v5("one"));
    assert!(!had_session, "it was ended for good");
    publisher.publish("t", "x", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    assert_eq!(scene.arrived(), ["x", "x"]);
}

#[test]
fn a_session_expires_when_it_was_said_to() {
    let scene = scene();
    let second = Hello { properties: vec![0x11, 0, 0, 0, 1], ..Hello::v5("brief") };
    let (publisher, _) = scene.connect(&second);
    publisher.cut();
    wait_until("the session has expired", || !scene.tidings.logged("an MQTT session has expired").is_empty());
    let (_, had_session) = scene.connect(&second);
    assert!(!had_session);
}

#[test]
fn what_a_clean_session_sends_again_after_a_cut_is_not_stored_again_also_after_a_kill() {
    let mut scene = scene();
    for qos in [1, 2] {
        let ack = if qos == 1 { wire::PUBACK } else { wire::PUBREC };
        let (mut publisher, _) = scene.connect(&Hello::v4(""));
        for id in 1..=3 {
            publisher.publish("t", &format!("{qos} {id}"), qos, id, false);
            publisher.expect_ack(ack, id);
        }
        publisher.cut();
        scene.tidings.kill();
        scene.tidings.run();
        // The acknowledgements have not reached it, for all that it knows: twice.
        for _ in 0..2 {
            let (mut publisher, _) = scene.connect(&Hello::v4(""));
            for id in 1..=4 {
                publisher.publish("t", &format!("{qos} {id}"), qos, id, true);
                publisher.expect_ack(ack, id);
            }
            scene.cut(publisher);
        }
    }
    wait_until("the last has arrived", || scene.subscriber.arrivals().iter().any(|arrival| arrival.payload == b"2 4"));
    let mut arrived = scene.arrived();
    // Behind the kill the lane may have delivered QoS 1 again, some of it in a row, which is no doing of the listener.
    let mut seen = HashSet::new();
    arrived.retain(|payload| !payload.starts_with('1') || seen.insert(payload.clone()));
    assert_eq!(arrived, ["1 1", "1 2", "1 3", "1 4", "2 1", "2 2", "2 3", "2 4"]);
    assert_eq!(scene.tidings.total("created"), 8);
}

#[test]
fn equal_reports_that_are_meant_both_count() {
    let scene = scene();
    let (mut publisher, _) = scene.connect(&Hello::v4(""));
    publisher.publish("t", "same", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    scene.cut(publisher);
    // Of two equal ones only the first was stored when the connection broke.
    let (mut publisher, _) = scene.connect(&Hello::v4(""));
    for id in [1, 2] {
        publisher.publish("t", "same", 2, id, true);
        publisher.expect_ack(wire::PUBREC, id);
    }
    // And one more, the ordinary way.
    publisher.publish("t", "same", 2, 3, false);
    publisher.expect_ack(wire::PUBREC, 3);
    assert_eq!(scene.arrived(), ["same"; 3]);
}

#[test]
fn a_publish_that_is_stored_stands_for_one_repetition_on_a_connection() {
    let scene = scene();
    let (mut publisher, _) = scene.connect(&Hello::v4(""));
    publisher.publish("t", "same", 1, 1, false);
    publisher.expect_ack(wire::PUBACK, 1);
    scene.cut(publisher);
    let (mut publisher, _) = scene.connect(&Hello::v4(""));
    // The first is the repetition. The second has an id that was acknowledged just before: it is another report.
    for _ in 0..2 {
        publisher.publish("t", "same", 1, 1, true);
        publisher.expect_ack(wire::PUBACK, 1);
    }
    assert_eq!(scene.arrived(), ["same"; 2]);
}

#[test]
fn what_another_client_has_published_is_nobody_elses_repetition() {
    let scene = scene();
    let (mut one, _) = scene.connect(&Hello::v4(""));
    one.publish("t", "same", 1, 1, false);
    one.expect_ack(wire::PUBACK, 1);
    // It is still there, so this is not its next connection.
    let (mut other, _) = scene.connect(&Hello::v4(""));
    other.publish("t", "same", 1, 1, true);
    other.expect_ack(wire::PUBACK, 1);
    assert_eq!(scene.arrived(), ["same"; 2]);
}
