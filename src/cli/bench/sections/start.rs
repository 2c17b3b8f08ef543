//! A long backlog, five times the reports of the bench (1,000,000 by default), and a short one, a twentieth of them (10,000): how long a start takes, after a clean stop
//! and after `kill -9`; what the service has resident; and whether it delivers as fast.
//!
//! The control is the service itself with the short backlog, since what is promised is that the length does not matter. A start after a kill reads
//! the raw files of the log, at what the disk or the page cache gives. Each round delivers a part of the long backlog, and as many reports that have nothing behind
//! them: ten thousand are delivered in a moment that is too short to be a measure.

use tokio::time::Duration;

use super::announce;
use crate::cli::bench::mosquitto;
use crate::cli::bench::plan::{Section, WINDOW};
use crate::cli::bench::reports::pool;
use crate::cli::bench::row::{Bar, Better, Measured, short as shown};
use crate::cli::bench::service::{Service, Settings};
use crate::cli::bench::{Bench, BenchError};

/// The long backlog, in reports of the bench.
const LONG: u64 = 5;

/// The short one is this part of them.
const SHORT: u64 = 20;

/// What is promised: resident memory, in MiB.
const MEMORY: f64 = 200.0;

const MIB_PER_GIB: f64 = 1_024.0;

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let (long_count, short_count) = (plan.reports * LONG, (plan.reports / SHORT).max(10));
    let row = |name: &str, unit, better| {
        Measured::new(Section::Start, format!("{name}, {} pending", shown(long_count as f64)), unit, better, long_count)
    };
    let short_one = "the same with a short backlog";
    let mut clean = row("start after a clean stop", "ms", Better::Less).against(short_one).bar(Bar::AtMost(3.0));
    let mut killed = row("start after kill -9", "ms", Better::Less).against(short_one);
    let mut per_gib = row("start after kill -9, by its log", "s per GiB", Better::Less).bar(Bar::AtMost(2.0));
    let mut filling = row("most resident while filling", "MiB", Better::Less).bar(Bar::AtMost(MEMORY));
    let mut waiting = row("resident after a start", "MiB", Better::Less).bar(Bar::AtMost(MEMORY));
    let mut delivering = row("most resident while delivering", "MiB", Better::Less).bar(Bar::AtMost(MEMORY));
    let mut rate = row("delivery", "reports/s", Better::More).against("as many with nothing behind them").bar(Bar::AtLeast(0.9));

    let reports = pool(plan.kind, plan.seed);
    let nobody = Settings::to(None);
    let mut long = Service::new(bench, "long")?;
    announce(Section::Start, &format!("filling with {long_count}"), 0, 1);
    long.start(nobody).await?;
    long.fill(&reports, long_count).await?;
    filling.note(long.process().memory()[1]);
    long.stop().await?;
    let mut short = Service::new(bench, "short")?;
    for round in 0..plan.rounds {
        announce(Section::Start, "starts", round, plan.rounds);
        short.forget();
        short.start(nobody).await?;
        short.fill(&reports, short_count).await?;
        short.stop().await?;
        let [short_clean, short_killed] = starts(&mut short).await?;
        let [long_clean, long_killed] = starts(&mut long).await?;
        clean.compare(ms(long_clean), ms(short_clean));
        killed.compare(ms(long_killed), ms(short_killed));
        // As much as there is: a part of a second for a part of a GiB, with what any start takes in it.
        per_gib.note(long_killed.as_secs_f64() / (long.log_bytes() as f64 / (MIB_PER_GIB * 1_048_576.0)));
        announce(Section::Start, "delivery", round, plan.rounds);
        let broker = mosquitto::broker(bench, Some(WINDOW)).await?;
        let settings = Settings::to(Some(broker.address));
        long.start(settings).await?;
        waiting.note(long.process().memory()[0]);
        // What is left is still long after as many rounds as there may be in practice.
        let part = (long_count / (2 * u64::from(plan.rounds))).min(plan.reports / 2).max(1);
        let long_rate = long.deliver(part).await?;
        delivering.note(long.process().memory()[1]);
        long.stop().await?;
        if part > short_count {
            short.start(nobody).await?;
            short.fill(&reports, part - short_count).await?;
            short.stop().await?;
        }
        short.start(settings).await?;
        rate.compare(long_rate, short.deliver(part.max(short_count)).await?);
        short.stop().await?;
    }
    Ok(vec![clean, killed, per_gib, filling, waiting, delivering, rate])
}

/// How long a start takes after a clean stop, and after a kill. It ends as it began: stopped cleanly.
async fn starts(service: &mut Service<'_>) -> Result<[Duration; 2], BenchError> {
    let nobody = Settings::to(None);
    // Once before: that there is another broker than the last time is something to write down, and not what is measured.
    service.start(nobody).await?;
    service.stop().await?;
    let clean = service.start(nobody).await?;
    service.kill();
    let killed = service.start(nobody).await?;
    service.stop().await?;
    Ok([clean, killed])
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
