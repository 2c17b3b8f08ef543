//! Reports over HTTP, from 64 kept connections: single ones, and NDJSON of 100.
//!
//! The control is the same server in a process of its own, with a handler that reads the body and drops it: what is between the two is parsing, routing
//! and the disk. NDJSON is also held against the committer alone, which gets the same reports in the same batches without HTTP and JSON.
//! The service delivers to nobody meanwhile.

use std::net::SocketAddr;

use super::{announce, append, expect};
use crate::cli::bench::client::{self, Requests};
use crate::cli::bench::nats::Nats;
use crate::cli::bench::parts::Started;
use crate::cli::bench::plan::{BATCH, CONNECTIONS, Section};
use crate::cli::bench::reports::{Kind, pool};
use crate::cli::bench::row::{Bar, Measured};
use crate::cli::bench::service::{Service, Settings};
use crate::cli::bench::{Bench, BenchError};

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let reports = pool(plan.kind, plan.seed);
    let (single, batches) = (Requests::single(&reports), Requests::ndjson(&reports, BATCH));
    let (_, singles) = single.for_reports(plan.share(0.5));
    let (_, batched) = batches.for_reports(plan.reports);
    let dropping = "the same server, dropping the body";
    let mut one = Measured::rate(Section::Http, "single reports, 64 connections", singles).against(dropping).bar(Bar::AtLeast(0.6));
    let mut many = Measured::rate(Section::Http, "NDJSON of 100, against the server", batched).against(dropping);
    let mut alone = Measured::rate(Section::Http, "NDJSON of 100, against the committer", batched)
        .against("the committer alone, with the same batches")
        .bar(Bar::AtLeast(0.6));
    for round in 0..plan.rounds {
        announce(Section::Http, "single reports", round, plan.rounds);
        let ours = accepted(bench, None, &single, CONNECTIONS, singles).await?;
        one.compare(ours.rate, dropped(bench, &single, CONNECTIONS, singles).await?);
        announce(Section::Http, "NDJSON", round, plan.rounds);
        let ours = accepted(bench, None, &batches, CONNECTIONS, batched).await?;
        many.compare(ours.rate, dropped(bench, &batches, CONNECTIONS, batched).await?);
        let connections = u32::try_from(CONNECTIONS).expect("it is a small number");
        let committer = append::committer(bench, plan.kind, connections, batches.for_reports(1).1, batched).await?;
        alone.compare(ours.rate, committer.rate());
    }
    Ok(vec![one, many, alone])
}

/// What came of posting to a service.
pub struct Accepted {
    /// Reports a second.
    pub rate: f64,
    /// How long each request took, in milliseconds.
    pub latencies_ms: Vec<f64>,
    /// The most that the service had resident, in MiB.
    pub memory: f64,
}

/// Posts to a service with an empty store, on disk or on these servers, that delivers to nobody.
///
/// # Errors
/// If a report is not accepted, or is missing in the books.
pub async fn accepted(
    bench: &Bench,
    nats: Option<&Nats>,
    requests: &Requests,
    connections: usize,
    reports: u64,
) -> Result<Accepted, BenchError> {
    let mut service = Service::new(bench, "http")?;
    service.keep_on(nats);
    service.start(Settings::to(None)).await?;
    let load = client::load(service.address(), connections, requests, reports).await?;
    expect("deliveries in the books", load.reports, service.books().await?.created)?;
    let memory = service.process().memory()[1];
    service.stop().await?;
    Ok(Accepted { rate: load.rate(), latencies_ms: load.latencies_ms, memory })
}

/// Posts to a server that drops what it reads, and says at what rate, in reports a second.
async fn dropped(bench: &Bench, requests: &Requests, connections: usize, reports: u64) -> Result<f64, BenchError> {
    let dropper = Started::start(bench, &["dropper".to_owned()]).await?;
    let address: SocketAddr = dropper.ready.parse().map_err(|_| BenchError::Wire(format!("{} is no address", dropper.ready)))?;
    Ok(client::load(address, connections, requests, reports).await?.rate())
}

/// Single reports of a kind, for curves.
pub fn singles(kind: Kind, seed: u64) -> Requests {
    Requests::single(&pool(kind, seed))
}
