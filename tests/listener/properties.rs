//! MQTT 5: what passes through, aliases, expiry.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::listener;
use crate::publisher::{Hello, Publisher, publish};
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::tidings::{SOON, Tidings, connection};
use crate::support::wire::{self, Cursor, Frame};
use crate::support::{PATIENCE, wait_until};

/// A subscriber of MQTT 5: topic, properties and payload of what arrives.
struct Reader(TcpStream);

impl Reader {
    fn new(port: u16) -> Reader {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello = Hello { keepalive_s: 0, ..Hello::v5("reader").clean() };
        std::io::Write::write_all(&mut stream, &hello.bytes()).unwrap();
        assert_eq!(Frame::read(&mut stream).unwrap().unwrap().kind(), wire::CONNACK);
        let subscribe = [&[0, 1, 0][..], &wire::text("#"), &[0]].concat();
        std::io::Write::write_all(&mut stream, &wire::packet(wire::SUBSCRIBE << 4 | 2, &subscribe)).unwrap();
        assert_eq!(Frame::read(&mut stream).unwrap().unwrap().kind(), wire::SUBACK);
        Reader(stream)
    }

    fn next(&mut self) -> (String, Vec<u8>, String) {
        let frame = Frame::read(&mut self.0).unwrap().unwrap();
        assert_eq!(frame.kind(), wire::PUBLISH);
        let mut rest = Cursor(&frame.body);
        let topic = rest.text();
        let properties = rest.properties().to_vec();
        (topic, properties, String::from_utf8(rest.0.to_vec()).unwrap())
    }
}

fn pair(name: &str, value: &str) -> Vec<u8> {
    [vec![0x26], wire::text(name), wire::text(value)].concat()
}

/// The Message Expiry Interval among properties.
fn expiry_in(properties: &[u8]) -> Option<u32> {
    let mut rest = Cursor(properties);
    while !rest.0.is_empty() {
        match rest.u8() {
            0x01 => _ = rest.u8(),
            0x02 => return Some(u32::from_be_bytes(rest.take(4).try_into().unwrap())),
            0x03 | 0x08 => _ = rest.text(),
            0x26 => _ = (rest.text(), rest.text()),
            other => panic!("property {other}"),
        }
    }
    None
}

fn holds(properties: &[u8], part: &[u8]) -> bool {
    properties.windows(part.len()).any(|window| window == part)
}

#[test]
fn properties_pass_through_to_a_broker_of_mqtt_5() {
    let broker = Mosquitto::start("");
    let mut reader = Reader::new(broker.port);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v5("").clean());
    let given: [Vec<u8>; 6] = [
        vec![0x01, 1],
        [vec![0x03], wire::text("text/plain")].concat(),
        [vec![0x08], wire::text("answers")].concat(),
        [&[0x09, 0, 3][..], &[0xff, 0, 7]].concat(),
        pair("a", "1"),
        pair("a", "2"),
    ];
    publisher.send(&publish(5, "t", b"x", 1, 1, false, &given.concat()));
    publisher.expect_ack(wire::PUBACK, 1);
    let (topic, properties, payload) = reader.next();
    assert_eq!((topic.as_str(), payload.as_str()), ("t", "x"));
    for part in &given {
        assert!(holds(&properties, part), "{part:02x?} is not in {properties:02x?}");
    }
    assert!(holds(&properties, &[pair("a", "1"), pair("a", "2")].concat()), "in their order");
}

#[test]
fn a_topic_alias_stands_for_the_topic_on_its_connection() {
    let broker = Mosquitto::start("");
    let mut reader = Reader::new(broker.port);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v5("").clean());
    for (topic, payload, id) in [("one", "1", 1), ("", "2", 2), ("other", "3", 3), ("", "4", 4)] {
        publisher.send(&publish(5, topic, payload.as_bytes(), 1, id, false, &[0x23, 0, 7]));
        publisher.expect_ack(wire::PUBACK, id);
        let (arrived, properties, _) = reader.next();
        assert_eq!(arrived, if id <= 2 { "one" } else { "other" });
        assert!(!holds(&properties, &[0x23, 0, 7]), "an alias is about one connection");
    }
    for (alias, topic, code) in [(0_u16, "t", 0x94), (65, "t", 0x94), (9, "", 0x82)] {
        let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v5("").clean());
        let [high, low] = alias.to_be_bytes();
        publisher.send(&publish(5, topic, b"x", 0, 0, false, &[0x23, high, low]));
        assert_eq!(publisher.expect_end(), Some(code), "alias {alias}");
    }
}

#[test]
fn a_message_that_expires_while_the_broker_is_away_is_not_sent_and_what_is_left_of_its_time_is_passed_on() {
    let mut broker = Mosquitto::prepare(PERSISTENT);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "workers = 1\nprotocol = \"5\"") + SOON));
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v5("").clean());
    let expiry = |seconds: u8| [0x02, 0, 0, 0, seconds];
    for (payload, qos, seconds, id) in [("brief", 1, 1, 1), ("brief too", 2, 2, 2), ("brief, QoS 0", 0, 1, 0), ("long", 1, 200, 3)] {
        publisher.send(&publish(5, "t", payload.as_bytes(), qos, id, false, &expiry(seconds)));
    }
    publisher.send(&publish(5, "t", b"for ever", 1, 4, false, &[]));
    publisher.expect_ack(wire::PUBACK, 1);
    publisher.expect_ack(wire::PUBREC, 2);
    publisher.expect_ack(wire::PUBACK, 3);
    publisher.expect_ack(wire::PUBACK, 4);
    std::thread::sleep(Duration::from_secs(3));
    broker.run();
    let mut reader = Reader::new(broker.port);
    tidings.wait_until_delivered();
    // What the reader has missed is sent again, so that it sees the time that is left.
    let begun = Instant::now();
    publisher.send(&publish(5, "t", b"seen", 1, 5, false, &expiry(200)));
    let (_, properties, payload) = loop {
        let next = reader.next();
        if next.2 == "seen" {
            break next;
        }
    };
    let left = expiry_in(&properties).expect("it has an expiry");
    assert!(left <= 200 && u64::from(left) + begun.elapsed().as_secs() + 2 >= 200, "{left} s are left of 200");
    assert_eq!(payload, "seen");
    wait_until("all is done", || tidings.total("pending") == 0);
    assert_eq!((tidings.total("expired"), tidings.total("acknowledged")), (3, 3));
    for (qos, count) in [("0", 1.0), ("1", 1.0), ("2", 1.0)] {
        assert_eq!(tidings.metric(&format!("tidings_deliveries_total{{connection=\"mqtt\",qos=\"{qos}\",result=\"expired\"}}")), count);
    }
    tidings.assert_balanced();
}

#[test]
fn what_expires_is_told_on_the_topic_for_gaps() {
    let mut broker = Mosquitto::prepare(PERSISTENT);
    let notice = "[gap_notice]\nconnection = \"mqtt\"\ntopic = \"ci/gaps\"\n";
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "workers = 1\nprotocol = \"5\"") + notice + SOON));
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v5("").clean());
    for id in 1..=3 {
        publisher.send(&publish(5, "t", b"brief", 1, id, false, &[0x02, 0, 0, 0, 1]));
        publisher.expect_ack(wire::PUBACK, id);
    }
    // Their time has to pass.
    std::thread::sleep(Duration::from_secs(2));
    broker.run();
    let mut reader = Reader::new(broker.port);
    tidings.wait_until_delivered();
    wait_until("all is done", || tidings.total("expired") == 3);
    tidings.wait_until_delivered();
    let list = tidings.get("/v1/deliveries?topic=ci/gaps").unwrap().json();
    let ids: Vec<&str> = list["deliveries"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    let gap = |id: &&str| tidings.get(&format!("/v1/deliveries/{id}/payload")).unwrap().json()["gap"].clone();
    let gaps: Vec<serde_json::Value> = ids.iter().map(gap).collect();
    assert_eq!(gaps.iter().map(|gap| gap["count"].as_u64().unwrap()).sum::<u64>(), 3, "{gaps:?}");
    assert!(gaps.iter().all(|gap| gap["reason"] == "expired" && gap["deliveries"][0]["topic"] == "t"), "{gaps:?}");
    assert_eq!(tidings.total("acknowledged"), gaps.len() as u64);
    publisher.send(&publish(5, "t", b"seen", 1, 9, false, &[]));
    while reader.next().2 != "seen" {}
    tidings.assert_balanced();
}

#[test]
fn more_in_flight_than_was_said_ends_the_connection() {
    let broker = Mosquitto::prepare("");
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    let (mut publisher, connack) = Publisher::try_connect(tidings.listener(), &Hello::v5("").clean());
    let told = connack.windows(3).any(|window| window == [0x21, 0x04, 0x00]);
    assert!(told, "Receive Maximum is 1,024: {connack:02x?}");
    // PUBRECs come, and are not answered: these stay in flight.
    let packets = (1..=1_025_u16).flat_map(|id| publish(5, "t", b"x", 2, id, false, &[]));
    publisher.send(&packets.collect::<Vec<u8>>());
    assert_eq!(publisher.expect_end(), Some(0x93));
    let _ = publisher.stream.read(&mut [0]);
}
