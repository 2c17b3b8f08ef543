//! The log on NATS servers, one and three, beside the one on disk: the committer alone, and reports over HTTP, single and in batches.
//!
//! All servers run on this machine and share its processor and its disk with Tidings: with a machine for each, three are faster than here, and each commit
//! takes a way over the network in addition. What the disk does is not the same either: the store on disk syncs each commit, and a server answers when
//! the operating system has it (see `sync_interval` in `ops/nats.conf`).

use super::{announce, append, http};
use crate::cli::bench::client::Requests;
use crate::cli::bench::nats::Nats;
use crate::cli::bench::plan::{BATCH, CONNECTIONS, Section};
use crate::cli::bench::reports::pool;
use crate::cli::bench::row::Measured;
use crate::cli::bench::{Bench, BenchError};
use crate::cli::output;

/// How many servers keep the log.
const SERVERS: [usize; 2] = [1, 3];

const ON_DISK: &str = "the store on disk";

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    if !cfg!(feature = "jetstream") {
        return Err(BenchError::Wire("this build has no JetStream: build it with `--features jetstream`".into()));
    }
    let plan = &bench.plan;
    let reports = pool(plan.kind, plan.seed);
    let mut rows = Vec::new();
    for &producers in &plan.producers {
        let what = output::count(producers.into(), "producer", "producers");
        let count = plan.appended_by(producers);
        let mut measured = SERVERS.map(|servers| row(&what, servers, count));
        for round in 0..plan.rounds {
            announce(Section::Cluster, &what, round, plan.rounds);
            let on_disk = append::committer(bench, plan.kind, producers, 1, count).await?.rate();
            for (row, servers) in measured.iter_mut().zip(SERVERS) {
                let nats = Nats::start(bench, servers).await?;
                row.compare(append::committer_on(bench, &nats, plan.kind, producers, 1, count).await?.rate(), on_disk);
            }
        }
        rows.extend(measured);
    }
    for (what, requests, share) in [
        ("single reports over HTTP", Requests::single(&reports), 0.25),
        ("NDJSON of 100 over HTTP", Requests::ndjson(&reports, BATCH), 1.0),
    ] {
        let (_, count) = requests.for_reports(plan.share(share));
        let mut measured = SERVERS.map(|servers| row(what, servers, count));
        for round in 0..plan.rounds {
            announce(Section::Cluster, what, round, plan.rounds);
            let on_disk = http::accepted(bench, None, &requests, CONNECTIONS, count).await?.rate;
            for (row, servers) in measured.iter_mut().zip(SERVERS) {
                let nats = Nats::start(bench, servers).await?;
                row.compare(http::accepted(bench, Some(&nats), &requests, CONNECTIONS, count).await?.rate, on_disk);
            }
        }
        rows.extend(measured);
    }
    Ok(rows)
}

fn row(what: &str, servers: usize, count: u64) -> Measured {
    Measured::rate(Section::Cluster, format!("{what}, {}", output::count(servers as u64, "server", "servers")), count).against(ON_DISK)
}
