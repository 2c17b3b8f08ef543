//! `kill -9` of the service while a publisher with a persistent session goes on.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::publisher::{Hello, publish};
use crate::python::{PAHO_2, python};
use crate::support::ledger::Arrival;
use crate::support::mosquitto::{IN_ORDER, Mosquitto, free_port};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{SOON, Tidings, connection};
use crate::support::wait_within;
use crate::support::wire::{self, Frame};

const REPORTS: usize = 5_000;

fn number(arrival: &Arrival) -> usize {
    serde_json::from_slice::<serde_json::Value>(&arrival.payload).unwrap()["number"].as_u64().unwrap().try_into().unwrap()
}

/// What arrived of 5,000 reports of paho's, the service being killed every 2 s.
fn arrivals_through_kills(qos: u8) -> Vec<Arrival> {
    let interpreter = python(PAHO_2);
    let broker = Mosquitto::start(IN_ORDER);
    let subscriber = Subscriber::start(broker.port);
    let port = free_port();
    let listener = format!("[listener]\nlisten = \"127.0.0.1:{port}\"\nconnection = \"mqtt\"\n");
    let mut tidings = Tidings::start(&(listener + &connection(broker.port, "") + SOON));
    let [acknowledged, sends] = ["acknowledged", "sends"].map(|name| tidings.folder().join(name));
    let mut publisher = Command::new(interpreter)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener/paho_publisher.py"))
        .args(["--port", &port.to_string(), "--qos", &qos.to_string(), "--client-id", "persistent"])
        .args(["--count", &REPORTS.to_string(), "--topics", "5", "--rate", "600", "--sends"])
        .arg(&sends)
        .stdout(Stdio::from(fs::File::create(&acknowledged).unwrap()))
        .spawn()
        .unwrap();
    let (mut kills, begun) = (0, Instant::now());
    while publisher.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(170), "the publisher did not come through");
        std::thread::sleep(Duration::from_secs(2));
        if publisher.try_wait().unwrap().is_none() {
            tidings.kill();
            tidings.run();
            kills += 1;
        }
    }
    assert!(publisher.wait().unwrap().success(), "paho got an acknowledgement for each report");
    assert_eq!(fs::read_to_string(acknowledged).unwrap().lines().count(), REPORTS);
    tidings.wait_until_delivered();
    wait_within(Duration::from_secs(30), "all have arrived", || {
        subscriber.arrivals().iter().map(number).collect::<HashSet<_>>().len() == REPORTS
    });
    tidings.assert_balanced();
    assert!(kills >= 3, "{kills} kills");
    assert_in_an_order_that_was_sent(&subscriber.arrivals(), &fs::read_to_string(sends).unwrap());
    subscriber.arrivals()
}

/// paho sends what was published while it was away after what came later, so the order of the numbers says nothing. But each report was accepted
/// by one of its sends: of two of one topic, the one that arrives first was sent at least once before the other was sent for the last time.
fn assert_in_an_order_that_was_sent(arrivals: &[Arrival], sends: &str) {
    let (mut first, mut last) = (HashMap::new(), HashMap::new());
    for (place, packet_id) in sends.lines().enumerate() {
        // paho counts packet identifiers from 1.
        let number = packet_id.parse::<usize>().unwrap() - 1;
        first.entry(number).or_insert(place);
        last.insert(number, place);
    }
    let (mut seen, mut latest) = (HashSet::new(), HashMap::new());
    for arrival in arrivals.iter().filter(|arrival| seen.insert(number(arrival))) {
        let (number, before) = (number(arrival), latest.entry(arrival.topic.clone()).or_insert(0));
        assert!(*before <= last[&number], "{}: {number} was sent before what has arrived before it", arrival.topic);
        *before = first[&number].max(*before);
    }
}

#[test]
fn every_acknowledged_report_arrives_although_the_service_is_killed_every_two_seconds() {
    arrivals_through_kills(1);
}

#[test]
fn at_qos_2_none_arrives_twice_although_the_service_is_killed_every_two_seconds() {
    let mut times: HashMap<usize, usize> = HashMap::new();
    arrivals_through_kills(2).iter().for_each(|arrival| *times.entry(number(arrival)).or_default() += 1);
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// A publisher with a session, a window, and no imagination: it sends in order, and what was not acknowledged again, in order.
struct Orderly {
    next: u16,
    /// Sent, and not released yet; whether its PUBREC has come.
    window: std::collections::VecDeque<(u16, bool)>,
}

impl Orderly {
    /// One connection, until it breaks or all is done.
    fn converse(&mut self, address: std::net::SocketAddr, last: u16) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(&Hello::v4("orderly").bytes())?;
        let mut reader = stream.try_clone()?;
        let next = |reader: &mut TcpStream| Frame::read(reader)?.ok_or(std::io::ErrorKind::UnexpectedEof.into());
        let connack: std::io::Result<Frame> = next(&mut reader);
        assert_eq!(connack?.body[1], 0);
        for (id, has_come) in &self.window {
            let again = match has_come {
                true => wire::ack(wire::PUBREL, *id, 0),
                false => publish(4, "orderly", id.to_string().as_bytes(), 2, *id, true, &[]),
            };
            stream.write_all(&again)?;
        }
        loop {
            while self.window.len() < 20 && self.next <= last {
                let id = self.next;
                self.next += 1;
                self.window.push_back((id, false));
                stream.write_all(&publish(4, "orderly", id.to_string().as_bytes(), 2, id, false, &[]))?;
            }
            if self.window.is_empty() {
                return Ok(());
            }
            let frame: Frame = next(&mut reader)?;
            let id = frame.packet_id();
            match frame.kind() {
                wire::PUBREC => {
                    self.window.iter_mut().filter(|(sent, _)| *sent == id).for_each(|(_, has_come)| *has_come = true);
                    stream.write_all(&wire::ack(wire::PUBREL, id, 0))?;
                }
                wire::PUBCOMP => self.window.retain(|(sent, _)| *sent != id),
                kind => panic!("a packet of kind {kind} came"),
            }
        }
    }
}

#[test]
fn what_one_client_sends_in_order_arrives_in_order_and_once_over_kills_at_any_moment() {
    const LAST: u16 = 3_000;
    let broker = Mosquitto::start(IN_ORDER);
    let subscriber = Subscriber::start(broker.port);
    let port = free_port();
    let listener = format!("[listener]\nlisten = \"127.0.0.1:{port}\"\nconnection = \"mqtt\"\n");
    let mut tidings = Tidings::start(&(listener + &connection(broker.port, "") + SOON));
    let address = tidings.listener();
    let publishing = std::thread::spawn(move || {
        let mut orderly = Orderly { next: 1, window: std::collections::VecDeque::new() };
        let begun = Instant::now();
        while orderly.converse(address, LAST).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(100), "it did not come through");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    for kill in 1..=8 {
        let goal = usize::from(LAST) * kill / 10;
        wait_within(Duration::from_secs(60), "it goes on", || subscriber.count() >= goal);
        tidings.kill();
        tidings.run();
    }
    publishing.join().unwrap();
    tidings.wait_until_delivered();
    wait_within(Duration::from_secs(30), "all have arrived", || subscriber.count() >= usize::from(LAST));
    let arrived: Vec<u16> =
        subscriber.arrivals().iter().map(|arrival| String::from_utf8_lossy(&arrival.payload).parse().unwrap()).collect();
    assert_eq!(arrived, (1..=LAST).collect::<Vec<_>>());
}
