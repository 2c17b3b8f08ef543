//! The whole way at QoS 1: a publisher, something in the middle, a broker, a subscriber. In the middle is the service with its listener, or another mosquitto
//! that is a bridge to the broker: one that keeps everything in memory, and one that saves every 1,000 changes. The service keeps
//! everything before it acknowledges it.
//!
//! The publisher has 4 connections with windows of 100. The bridge has one connection, and may have as much in flight on it as the service's lanes have
//! together. All of it shares the machine's processors, which bound it: the middle, twice the broker's work, publisher and subscriber.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::{announce, expect};
use crate::cli::bench::mosquitto::{self, Mosquitto};
use crate::cli::bench::parts::publisher::Published;
use crate::cli::bench::parts::{Started, words};
use crate::cli::bench::plan::{LANES, Section, WINDOW};
use crate::cli::bench::row::{Bar, Measured};
use crate::cli::bench::service::{PREFIX, Service, Settings};
use crate::cli::bench::subscriber::Subscriber;
use crate::cli::bench::{Bench, BenchError};

/// In flight at once, of all lanes together.
const IN_FLIGHT: u16 = LANES as u16 * WINDOW;

/// Keeps everything in memory.
const IN_MEMORY: &str = "persistence false\n";

/// Saves every 1,000 changes.
const SAVING: &str = "persistence true\nautosave_interval 1000\nautosave_on_changes true\n";

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let count = plan.share(0.5);
    let row =
        |against, bar| Measured::rate(Section::Through, format!("QoS 1 to a subscriber, against {against}"), count).bar(Bar::AtLeast(bar));
    let mut memory = row("a bridge in memory", 1.0).against("mosquitto's bridge, in memory");
    let mut saving = row("a bridge that saves", 3.0).against("mosquitto's bridge, saving every 1,000 changes");
    for round in 0..plan.rounds {
        announce(Section::Through, "the service and two bridges", round, plan.rounds);
        let ours = by_service(bench, count).await?;
        memory.compare(ours, by_bridge(bench, IN_MEMORY, count).await?);
        saving.compare(ours, by_bridge(bench, SAVING, count).await?);
    }
    Ok(vec![memory, saving])
}

async fn by_service(bench: &Bench, count: u64) -> Result<f64, BenchError> {
    let broker = mosquitto::broker(bench, Some(IN_FLIGHT)).await?;
    let mut service = Service::new(bench, "through")?;
    service.start(Settings { has_listener: true, ..Settings::to(Some(broker.address)) }).await?;
    let rate = publish(bench, service.listener(), broker.address, count).await?;
    expect("deliveries in the books", count, service.books().await?.created)?;
    service.stop().await?;
    Ok(rate)
}

async fn by_bridge(bench: &Bench, keeping: &str, count: u64) -> Result<f64, BenchError> {
    let broker = mosquitto::broker(bench, Some(IN_FLIGHT)).await?;
    let lines = format!(
        "max_inflight_messages {IN_FLIGHT}\n{keeping}connection onward\naddress {}\ntopic {PREFIX}/# out 1\nnotifications false\n\
         bridge_protocol_version mqttv50\n",
        broker.address
    );
    let bridge = Mosquitto::start(bench, "bridge", &lines).await?;
    publish(bench, bridge.address(), broker.address, count).await
}

/// Publishes at one end, counts at the other, and says at what rate reports went through.
async fn publish(bench: &Bench, middle: SocketAddr, broker: SocketAddr, count: u64) -> Result<f64, BenchError> {
    let mut subscriber = Subscriber::start(broker).await?;
    let line = words(
        "publisher",
        &[
            ("broker", &middle),
            ("reports", &count),
            ("kind", &bench.plan.kind.word()),
            ("qos", &1),
            ("lanes", &LANES),
            ("window", &WINDOW),
            ("seed", &bench.plan.seed),
        ],
    );
    let mut publisher = Started::start(bench, &line).await?;
    let begin = Instant::now();
    publisher.go()?;
    let end = subscriber.all(count).await?;
    let published: Published = publisher.result().await?;
    expect("reports that the publisher saw acknowledged", count, published.done)?;
    Ok(count as f64 / (end - begin).as_secs_f64())
}
