//! How long an accept takes at 500 reports a second, while what is accepted is delivered: a CI system at its busiest, and a service that is far from its limits.
//!
//! The control appends and syncs one page at the same rate, in the same folder: the disk's own answer.

use super::{announce, expect};
use crate::cli::bench::client::{self, Requests};
use crate::cli::bench::mosquitto;
use crate::cli::bench::parts::pacer::Paced;
use crate::cli::bench::parts::{Started, words};
use crate::cli::bench::plan::{CONNECTIONS, RATE, Section, WINDOW};
use crate::cli::bench::reports::pool;
use crate::cli::bench::row::{Bar, Better, Measured, percentile};
use crate::cli::bench::service::{Service, Settings};
use crate::cli::bench::{Bench, BenchError};

/// Seconds at the rate, at most.
const SECONDS: u64 = 10;

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let count = plan.reports.min(SECONDS * u64::from(RATE));
    let row = |name| {
        Measured::new(Section::Latency, format!("accept at {RATE} reports/s, {name}"), "ms", Better::Less, count)
            .against("append + fdatasync of one page at the same rate")
    };
    let (mut half, mut most) = (row("p50"), row("p99").bar(Bar::AtMost(3.0)));
    let requests = Requests::single(&pool(plan.kind, plan.seed));
    for round in 0..plan.rounds {
        announce(Section::Latency, &format!("{RATE} reports/s"), round, plan.rounds);
        let broker = mosquitto::broker(bench, Some(WINDOW)).await?;
        let mut service = Service::new(bench, "latency")?;
        service.start(Settings::to(Some(broker.address))).await?;
        let ours = client::paced(service.address(), CONNECTIONS, &requests, RATE, count).await?.latencies_ms;
        expect("deliveries in the books", count, service.books().await?.created)?;
        service.stop().await?;
        let folder = bench.scratch.folder("paced")?;
        let line = words("pacer", &[("folder", &folder.display()), ("rate", &RATE), ("pages", &count), ("seed", &plan.seed)]);
        let control = Started::run::<Paced>(bench, &line).await?.latencies_ms;
        half.compare(percentile(&ours, 0.5), percentile(&control, 0.5));
        most.compare(percentile(&ours, 0.99), percentile(&control, 0.99));
    }
    Ok(vec![half, most])
}
