//! Many connections, slow ones, and such as never read.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use crate::listener;
use crate::publisher::{Hello, Publisher, publish};
use crate::support::tidings::{Tidings, connection};
use crate::support::{wait_until, wire};

fn alone() -> Tidings {
    Tidings::start(&(listener("") + &connection(9, "")))
}

/// A round trip of somebody who behaves.
fn round_trip(address: SocketAddr) {
    let (mut publisher, _) = Publisher::connect(address, &Hello::v4(""));
    publisher.publish("t", "x", 1, 1, false);
    publisher.expect_ack(wire::PUBACK, 1);
}

#[test]
fn a_thousand_idle_connections_cost_little_and_hinder_nobody() {
    let tidings = alone();
    let before = tidings.metric("process_resident_memory_bytes");
    let idle: Vec<Publisher> = (0..1_000).map(|_| Publisher::connect(tidings.listener(), &Hello::v4("")).0).collect();
    wait_until("they are counted", || tidings.metric("tidings_listener_connections") == 1_000.0);
    let each = (tidings.metric("process_resident_memory_bytes") - before) / 1_000.0;
    assert!(each < 64_000.0, "{each} bytes a connection");
    round_trip(tidings.listener());
    let status = tidings.get("/v1/status").unwrap().json();
    assert!(status["listener"]["connections"].as_u64().unwrap() >= 1_000, "{status}");
    drop(idle);
}

#[test]
fn beyond_the_limit_a_connection_is_closed_at_once_and_room_is_used_again() {
    let tidings = alone();
    // Such as have said their CONNECT: whoever stays mute is let go after a while.
    let mut all: Vec<Publisher> = (0..2_048).map(|_| Publisher::connect(tidings.listener(), &Hello::v4("")).0).collect();
    wait_until("they are all there", || tidings.metric("tidings_listener_connections") == 2_048.0);
    let mut one_more = Publisher::open(tidings.listener(), 4);
    assert_eq!(one_more.expect_end(), None);
    all.truncate(2_000);
    wait_until("there is room", || tidings.metric("tidings_listener_connections") < 2_048.0);
    round_trip(tidings.listener());
}

#[test]
fn slow_senders_and_such_as_never_read_hinder_nobody() {
    let tidings = alone();
    let address = tidings.listener();
    // Each has begun a packet of a MiB, and goes on a byte at a time; together they want more than is read ahead of all.
    let mut slow: Vec<Publisher> = (0..200).map(|_| Publisher::connect(address, &Hello::v4("")).0).collect();
    let large = publish(4, "t", &vec![0; 1 << 20], 1, 1, false, &[]);
    for publisher in &mut slow {
        publisher.stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        // As much as is taken.
        let _ = publisher.stream.write(&large[..large.len() - 100]);
    }
    // One asks for answers without an end, and never reads one.
    let (mut deaf, _) = Publisher::connect(address, &Hello::v4(""));
    deaf.stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let pings = [wire::PINGREQ << 4, 0].repeat(32 << 10);
    let is_full = (0..2_000).any(|_| deaf.stream.write_all(&pings).is_err());
    assert!(is_full, "it is not read for ever");
    for _ in 0..20 {
        for publisher in slow.iter_mut().take(20) {
            let _ = publisher.stream.write(&[0]);
        }
        round_trip(address);
    }
    let memory = tidings.metric("process_resident_memory_bytes");
    assert!(memory < 500e6, "{memory} bytes");
    assert_eq!(tidings.total("created"), 20);
    // And who never reads is let go in the end.
    wait_until("it is let go", || !tidings.logged("it took nothing of its answers").is_empty());
}
