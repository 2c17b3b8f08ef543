//! A connection's life: greeting, refusals, keepalive, takeover, wills.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::listener;
use crate::publisher::{Hello, Publisher, publish};
use crate::support::mosquitto::{Mosquitto, free_port};
use crate::support::scripted::ScriptedBroker;
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{Tidings, connection};
use crate::support::{signal, wait_for_end, wait_until, wire};

/// No broker is needed: what is taken stays in the log.
fn alone() -> Tidings {
    Tidings::start(&(listener("") + &connection(9, "")))
}

fn rejected(tidings: &Tidings, code: &str) -> f64 {
    tidings.metric(&format!("tidings_ingest_rejected_total{{code=\"{code}\",source=\"mqtt\"}}"))
}

fn refused(tidings: &Tidings, hello: &Hello) -> u8 {
    let (mut publisher, connack) = Publisher::try_connect(tidings.listener(), hello);
    assert_eq!(publisher.expect_end(), None);
    connack[1]
}

#[test]
fn client_ids_are_as_the_standards_say() {
    let tidings = alone();
    let (publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4(""));
    publisher.disconnect();
    assert_eq!(refused(&tidings, &Hello { clean: false, ..Hello::v4("") }), 2, "a session that is to last needs a name");
    assert_eq!(refused(&tidings, &Hello::v4(&"x".repeat(257))), 2);
    assert_eq!(refused(&tidings, &Hello::v5(&"x".repeat(257))), 0x85);
    let (_publisher, connack) = Publisher::try_connect(tidings.listener(), &Hello { client_id: String::new(), ..Hello::v5("") });
    let assigned = String::from_utf8_lossy(&connack[3..]).into_owned();
    assert!(connack[1] == 0 && assigned.contains("tidings-assigned-"), "{assigned:?}");
}

#[test]
fn another_version_of_mqtt_is_told_so_in_words_that_it_understands() {
    let tidings = alone();
    for level in [3, 6] {
        assert_eq!(refused(&tidings, &Hello { level, ..Hello::v4("x") }), 1);
    }
    assert_eq!(rejected(&tidings, "protocol_version"), 2.0);
}

#[test]
fn a_connection_without_a_connect_is_closed_and_says_why() {
    let tidings = alone();
    let mut publisher = Publisher::open(tidings.listener(), 4);
    publisher.publish("t", "x", 0, 0, false);
    assert_eq!(publisher.expect_end(), None);
    let mut http = Publisher::open(tidings.listener(), 4);
    http.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(http.expect_end(), None);
    wait_until("both are counted", || rejected(&tidings, "no_connect") >= 2.0);
    assert_eq!(tidings.logged("an MQTT connection was closed").len(), 2);
    assert_eq!(tidings.total("created"), 0);
}

#[test]
fn what_is_against_the_rules_ends_the_connection_with_its_reason() {
    let tidings = alone();
    let second = Hello::v4("x").bytes();
    let wrong: &[(&str, Vec<u8>, u8)] = &[
        ("protocol_error", second, 0x82),
        ("malformed_packet", publish(4, "t", b"x", 3, 1, false, &[]), 0x81),
        ("malformed_packet", publish(4, "t", b"x", 0, 0, true, &[]), 0x81),
        ("malformed_packet", publish(4, "t", b"x", 1, 0, false, &[]), 0x81),
        ("malformed_packet", wire::packet(wire::PUBREL << 4, &[0, 1]), 0x81),
        ("malformed_packet", wire::packet(wire::PUBREL << 4 | 2, &[0, 1, 0, 0, 0]), 0x81),
        ("malformed_packet", wire::packet(wire::PINGREQ << 4, &[0]), 0x81),
        ("malformed_packet", wire::packet(wire::SUBSCRIBE << 4, &[0, 1, 0, 1, b'a', 0]), 0x81),
        ("malformed_packet", wire::packet(wire::PUBLISH << 4, &[0, 2, 0xff, 0xfe, b'x']), 0x81),
        ("malformed_packet", vec![wire::PUBLISH << 4, 0xff, 0xff, 0xff, 0xff, 1], 0x81),
        ("protocol_error", wire::ack(wire::PUBACK, 1, 0), 0x82),
        ("protocol_error", wire::packet(0xf0, &[0]), 0x82),
        ("topic_wildcard", publish(4, "a/#", b"x", 1, 1, false, &[]), 0x90),
        ("topic_reserved", publish(4, "$SYS/x", b"x", 1, 1, false, &[]), 0x90),
        ("topic_empty", publish(4, "", b"x", 1, 1, false, &[]), 0x90),
        ("topic_character", publish(4, "a\0b", b"x", 1, 1, false, &[]), 0x90),
        ("too_large", vec![wire::PUBLISH << 4, 0xff, 0xff, 0xff, 0x01], 0x95),
    ];
    for (code, bytes, _) in wrong {
        let before = rejected(&tidings, code);
        let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4(""));
        publisher.send(bytes);
        assert_eq!(publisher.expect_end(), None, "{code} {bytes:02x?}");
        wait_until("it is counted", || rejected(&tidings, code) > before);
    }
    // On MQTT 5 the reason is said.
    let properties = |bytes: &[u8], qos: u8| {
        // PUBLISH has properties there.
        [&bytes[..if qos > 0 { 5 } else { 3 }], &[0], &bytes[if qos > 0 { 5 } else { 3 }..]].concat()
    };
    for (kind, body, code) in [
        (wire::PUBLISH << 4 | 6, properties(b"\0\x01t\0\x01x", 2), 0x81),
        (wire::PUBLISH << 4 | 8, properties(b"\0\x01tx", 0), 0x81),
        (wire::PUBLISH << 4, properties(b"\0\x01#x", 0), 0x90),
        (wire::PUBLISH << 4, b"\0\x01t\x01".to_vec(), 0x81),
        (wire::PUBLISH << 4, b"\0\x01t\x04\x01\0\x01\0".to_vec(), 0x82),
        (wire::PUBLISH << 4, b"\0\0\0x".to_vec(), 0x82),
        (wire::PUBLISH << 4, b"\0\x01t\x02\x0b\x01".to_vec(), 0x82),
        (wire::CONNECT << 4, Hello::v5("x").bytes()[2..].to_vec(), 0x82),
    ] {
        let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v5("").clean());
        publisher.send(&wire::packet(kind, &body));
        assert_eq!(publisher.expect_end(), Some(code), "{body:02x?}");
    }
    assert_eq!(tidings.total("created"), 0);
    assert!(tidings.logged("an MQTT connection was closed").len() <= 20, "a client can't fill the log");
}

#[test]
fn what_comes_before_a_mistake_at_qos_0_is_kept() {
    let tidings = alone();
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4(""));
    let good = publish(4, "t", b"good", 0, 0, false, &[]);
    publisher.send(&[good, publish(4, "a/#", b"bad", 0, 0, false, &[])].concat());
    publisher.expect_end();
    tidings.wait_for_total("created", 1);
}

#[test]
fn subscribing_is_refused_politely_and_the_connection_stays() {
    let tidings = alone();
    for (hello, suback, unsuback) in
        [(Hello::v4(""), vec![0, 9, 0x80, 0x80], vec![0, 9]), (Hello::v5("").clean(), vec![0, 9, 0, 0x83, 0x83], vec![0, 9, 0, 0x11, 0x11])]
    {
        let (mut publisher, _) = Publisher::connect(tidings.listener(), &hello);
        let properties: &[u8] = if hello.level == 5 { &[0] } else { &[] };
        publisher.send(&wire::packet(wire::SUBSCRIBE << 4 | 2, &[&[0, 9], properties, b"\0\x01#\0\0\x01a\x02"].concat()));
        assert_eq!(publisher.expect(wire::SUBACK).body, suback);
        publisher.send(&wire::packet(10 << 4 | 2, &[&[0, 9], properties, b"\0\x01#\0\x01a"].concat()));
        assert_eq!(publisher.expect(11).body, unsuback);
        publisher.ping();
        publisher.publish("t", "x", 1, 1, false);
        publisher.expect_ack(wire::PUBACK, 1);
    }
}

#[test]
fn silence_ends_a_connection_after_one_and_a_half_keepalives_and_not_before() {
    let tidings = alone();
    let begun = Instant::now();
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello { keepalive_s: 2, ..Hello::v5("").clean() });
    assert_eq!(publisher.expect_end(), Some(0x8d));
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    wait_until("it is counted", || rejected(&tidings, "keepalive_timeout") > 0.0);
}

#[test]
fn a_session_is_taken_over_by_the_same_client_id() {
    let tidings = alone();
    let (mut old, _) = Publisher::connect(tidings.listener(), &Hello::v5("one"));
    old.publish("t", "x", 2, 1, false);
    old.expect_ack(wire::PUBREC, 1);
    let (mut new, had_session) = Publisher::connect(tidings.listener(), &Hello::v5("one"));
    assert!(had_session);
    assert_eq!(old.expect_end(), Some(0x8e));
    new.release(1);
    assert_eq!(new.expect_ack(wire::PUBCOMP, 1), 0);
}

#[test]
fn acknowledgements_come_in_the_order_of_the_packets() {
    let tidings = alone();
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4("one"));
    let packets = (1..=200).flat_map(|id| publish(4, "t", b"x", if id % 3 == 0 { 2 } else { 1 }, id, false, &[]));
    publisher.send(&packets.collect::<Vec<u8>>());
    for id in 1..=200 {
        publisher.expect_ack(if id % 3 == 0 { wire::PUBREC } else { wire::PUBACK }, id);
    }
    // All that was read together is one commit, or a few.
    let commits = tidings.metric("tidings_commit_events_count");
    assert!(commits < 50.0, "{commits} commits for 200 packets");
}

#[test]
fn the_will_of_a_client_that_vanishes_is_published_and_of_one_that_leaves_is_not() {
    let broker = Mosquitto::start("");
    let subscriber = Subscriber::start(broker.port);
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    let with_will = |hello: Hello, text: &str, properties: &[u8]| {
        let will = Some(("will".to_owned(), text.as_bytes().to_vec(), 1, false, properties.to_vec()));
        Publisher::connect(tidings.listener(), &Hello { will, ..hello }).0
    };
    with_will(Hello::v4(""), "polite", &[]).disconnect();
    with_will(Hello::v4(""), "vanished", &[]).cut();
    tidings.wait_for_total("created", 1);
    // With a delay there is time to come back.
    with_will(Hello::v5("late"), "came back", &[0x18, 0, 0, 0, 60]).cut();
    let (back, _) = Publisher::connect(tidings.listener(), &Hello::v5("late"));
    with_will(Hello::v5("gone"), "did not come back", &[0x18, 0, 0, 0, 1]).cut();
    tidings.wait_for_total("created", 2);
    // DISCONNECT with 0x04 asks for it.
    let mut asks = with_will(Hello::v5("asks"), "asked for", &[]);
    asks.send(&[wire::DISCONNECT << 4, 1, 4]);
    asks.expect_end();
    tidings.wait_for_total("created", 3);
    back.disconnect();
    tidings.wait_until_delivered();
    wait_until("they have arrived", || subscriber.count() >= 3);
    let arrived: Vec<_> =
        subscriber.arrivals().into_iter().map(|arrival| (arrival.topic, String::from_utf8(arrival.payload).unwrap())).collect();
    assert_eq!(arrived, ["vanished", "did not come back", "asked for"].map(|text| ("will".to_owned(), text.to_owned())));
}

#[test]
fn a_stop_stores_and_acknowledges_what_was_read_and_leaves_no_will() {
    let mut tidings = alone();
    let will = Some(("will".to_owned(), b"x".to_vec(), 1, false, Vec::new()));
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello { will, ..Hello::v5("one") });
    publisher.send(&(1..=100).flat_map(|id| publish(5, "t", b"x", 1, id, false, &[])).collect::<Vec<u8>>());
    publisher.expect_ack(wire::PUBACK, 1);
    tidings.terminate();
    let mut acknowledged = 1;
    while let Some(frame) = publisher.next() {
        match frame.kind() {
            wire::PUBACK => acknowledged += 1,
            kind => assert_eq!((kind, frame.body.first()), (wire::DISCONNECT, Some(&0x8b))),
        }
    }
    assert_eq!(tidings.end(), Some(0));
    tidings.run();
    assert_eq!(tidings.total("created"), acknowledged);
}

/// Binds a port, says so, waits for a line, and becomes the service with the socket handed over as systemd does it.
const HANDS_OVER: &str = r#"
import os, socket, sys
held = socket.socket()
held.bind(("127.0.0.1", int(sys.argv[1])))
held.listen(128)
print("bound", flush=True)
sys.stdin.readline()
os.dup2(held.fileno(), 3, inheritable=True)
# It may be 3 already, and then nothing was changed.
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], [sys.argv[2], "serve", "--log-format", "json", "--config", sys.argv[3]])
"#;

#[test]
fn who_connects_while_systemd_holds_the_port_is_answered_once_the_service_is_there() {
    let tidings = Tidings::prepare("");
    let port = free_port();
    tidings.configure(&(format!("[listener]\nlisten = \"127.0.0.1:{port}\"\nconnection = \"mqtt\"\n") + &connection(9, "")));
    let mut holder = Command::new("python3");
    holder.args(["-c", HANDS_OVER, &port.to_string(), env!("CARGO_BIN_EXE_tidings")]).arg(tidings.config_file());
    let mut service = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(service.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "bound\n");
    // Nobody serves yet: connections, and what they send, wait in the backlog.
    let mut publishers: Vec<Publisher> = (0..50).map(|_| Publisher::open(([127, 0, 0, 1], port).into(), 4)).collect();
    for publisher in &mut publishers {
        publisher.send(&Hello::v4("").bytes());
        publisher.publish("t", "x", 1, 1, false);
    }
    service.stdin.take().unwrap().write_all(b"go\n").unwrap();
    for publisher in &mut publishers {
        assert_eq!(publisher.expect(wire::CONNACK).body, [0, 0]);
        publisher.expect_ack(wire::PUBACK, 1);
    }
    signal(&service, "TERM");
    assert_eq!(wait_for_end(&mut service, "the service stops"), Some(0));
}

#[test]
fn the_status_shows_the_listener() {
    let tidings = alone();
    let (publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4(""));
    // It has its CONNACK a moment before it is counted.
    wait_until("it is counted", || tidings.metric("tidings_listener_connections") == 1.0);
    let status = tidings.get("/v1/status").unwrap().json();
    assert_eq!(status["listener"], serde_json::json!({"address": tidings.listener().to_string(), "connections": 1}));
    publisher.disconnect();
    wait_until("it is gone", || tidings.metric("tidings_listener_connections") == 0.0);
}

#[test]
fn a_report_whose_names_are_as_long_as_itself_is_taken_and_delivered() {
    let broker = ScriptedBroker::usual();
    let limits = "max_report = \"15MiB\"\nmax_batch = \"15MiB\"\n";
    let tidings = Tidings::start(&(limits.to_owned() + &listener("") + &connection(broker.port, "workers = 1")));
    let change = "7".repeat(9 << 20);
    let report = format!(r#"{{"action":"success","tenant":"t","pipeline":"p","change":"{change}"}}"#);
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4("long"));
    publisher.publish("topic", &report, 1, 1, false);
    publisher.expect_ack(wire::PUBACK, 1);
    tidings.wait_until_delivered();
    assert_eq!(broker.arrivals().iter().map(|arrival| arrival.payload.len()).collect::<Vec<_>>(), [report.len()]);
}
