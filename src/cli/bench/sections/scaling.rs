//! Curves: how rate, latency and memory go with producers, sizes, lanes, windows, backlogs and connections. Nothing is promised here, so there are no
//! bars; with sizes goes the control of `append`, because there the disk's share changes most.

use super::{announce, append, deliver, http};
use crate::cli::bench::mosquitto;
use crate::cli::bench::plan::{Section, WINDOW};
use crate::cli::bench::reports::Kind;
use crate::cli::bench::row::{Better, Measured, percentile, short};
use crate::cli::bench::service::Settings;
use crate::cli::bench::{Bench, BenchError};
use crate::cli::output;

const PRODUCERS: [u32; 5] = [1, 4, 16, 64, 256];
const SIZES: [usize; 5] = [256, 1_536, 16 << 10, 64 << 10, 256 << 10];
const BUILDS: [usize; 3] = [1, 10, 200];
const LANE_COUNTS: [u32; 4] = [1, 2, 4, 8];
const WINDOWS: [u16; 5] = [1, 5, 20, 100, 400];
const CONNECTION_COUNTS: [usize; 4] = [1, 8, 64, 256];

/// Producers where something else is looked at.
const SOME_PRODUCERS: u32 = 16;

/// A point of a curve has this share of the bench's reports.
const SHARE: f64 = 0.1;

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let mut rows = Vec::new();
    over_producers(bench, &mut rows).await?;
    over_sizes(bench, &mut rows).await?;
    over_connections(bench, &mut rows).await?;
    over_lanes_and_windows(bench, &mut rows).await?;
    over_backlogs(bench, &mut rows).await?;
    Ok(rows)
}

fn rate(name: String, count: u64, series: &'static str, x: f64) -> Measured {
    Measured::rate(Section::Scaling, name, count).at(series, x)
}

fn other(name: String, unit: &'static str, count: u64, series: &'static str, x: f64) -> Measured {
    Measured::new(Section::Scaling, name, unit, Better::Less, count).at(series, x)
}

async fn over_producers(bench: &Bench, rows: &mut Vec<Measured>) -> Result<(), BenchError> {
    let plan = &bench.plan;
    for producers in PRODUCERS {
        let (count, x) = (plan.appended_by(producers).min(plan.share(SHARE)).max(u64::from(producers)), f64::from(producers));
        let who = output::count(producers.into(), "producer", "producers");
        let mut speed = rate(format!("append, {who}"), count, "append over producers", x);
        let mut half = other(format!("append, {who}, p50"), "ms", count, "wait over producers, p50", x);
        let mut most = other(format!("append, {who}, p99"), "ms", count, "wait over producers, p99", x);
        for round in 0..plan.rounds {
            announce(Section::Scaling, &who, round, plan.rounds);
            let appended = append::committer(bench, plan.kind, producers, 1, count).await?;
            speed.note(appended.rate());
            half.note(appended.p50_ms);
            most.note(appended.p99_ms);
        }
        rows.extend([speed, half, most]);
    }
    Ok(())
}

async fn over_sizes(bench: &Bench, rows: &mut Vec<Measured>) -> Result<(), BenchError> {
    let plan = &bench.plan;
    let sized = SIZES.map(|size| (Kind::Sized(size), format!("append, {}", output::size(size as u64)), "append over size"));
    let start = [(Kind::Start, "append, start".to_owned(), "append over kind")];
    let builds = BUILDS.map(|builds| {
        (Kind::Success(builds), format!("append, success with {}", output::count(builds as u64, "build", "builds")), "append over kind")
    });
    for (kind, name, series) in sized.into_iter().chain(start).chain(builds) {
        // As many bytes for each, within bounds.
        let bytes = plan.share(SHARE) * 1_536;
        let count = (bytes / kind.size() as u64).clamp(10, plan.share(SHARE));
        let mut speed = rate(name.clone(), count, series, kind.size() as f64).against(append::RAW);
        for round in 0..plan.rounds {
            announce(Section::Scaling, &name, round, plan.rounds);
            let pair = append::pair(bench, kind, SOME_PRODUCERS, 1, count).await?;
            speed.compare(pair.committer.rate(), pair.raw.rate());
        }
        rows.push(speed);
    }
    Ok(())
}

async fn over_connections(bench: &Bench, rows: &mut Vec<Measured>) -> Result<(), BenchError> {
    let plan = &bench.plan;
    let requests = http::singles(plan.kind, plan.seed);
    for connections in CONNECTION_COUNTS {
        // One alone waits for the disk each time.
        let (count, x) = (plan.share(SHARE.min(0.02 * connections as f64)), connections as f64);
        let who = output::count(connections as u64, "connection", "connections");
        let mut speed = rate(format!("HTTP, {who}"), count, "HTTP over connections", x);
        let mut half = other(format!("HTTP, {who}, p50"), "ms", count, "accept over connections, p50", x);
        let mut most = other(format!("HTTP, {who}, p99"), "ms", count, "accept over connections, p99", x);
        let mut memory = other(format!("HTTP, {who}, most resident"), "MiB", count, "memory over connections", x);
        for round in 0..plan.rounds {
            announce(Section::Scaling, &who, round, plan.rounds);
            let accepted = http::accepted(bench, None, &requests, connections, count).await?;
            speed.note(accepted.rate);
            half.note(percentile(&accepted.latencies_ms, 0.5));
            most.note(percentile(&accepted.latencies_ms, 0.99));
            memory.note(accepted.memory);
        }
        rows.extend([speed, half, most, memory]);
    }
    Ok(())
}

async fn over_lanes_and_windows(bench: &Bench, rows: &mut Vec<Measured>) -> Result<(), BenchError> {
    let plan = &bench.plan;
    let (count, to_nobody) = (plan.share(SHARE), Settings::to(None));
    let lanes = LANE_COUNTS.map(|lanes| {
        (
            Settings { lanes, ..to_nobody },
            format!("delivery, {}", output::count(lanes.into(), "lane", "lanes")),
            "delivery over lanes",
            f64::from(lanes),
        )
    });
    let windows = WINDOWS
        .map(|window| (Settings { window, ..to_nobody }, format!("delivery, window {window}"), "delivery over window", f64::from(window)));
    for (settings, name, series, x) in lanes.into_iter().chain(windows) {
        let mut speed = rate(name.clone(), count, series, x);
        for round in 0..plan.rounds {
            announce(Section::Scaling, &name, round, plan.rounds);
            let broker = mosquitto::broker(bench, Some(settings.window)).await?;
            speed.note(deliver::backlog(bench, Settings { broker: Some(broker.address), ..settings }, count).await?.rate);
        }
        rows.push(speed);
    }
    Ok(())
}

async fn over_backlogs(bench: &Bench, rows: &mut Vec<Measured>) -> Result<(), BenchError> {
    let plan = &bench.plan;
    for share in [0.01, 0.1, 1.0] {
        let count = plan.share(share);
        let name = format!("backlog of {}", short(count as f64));
        let mut speed = rate(format!("delivery, {name}"), count, "delivery over backlog", count as f64);
        let mut memory = other(format!("delivery, {name}, most resident"), "MiB", count, "memory over backlog", count as f64);
        for round in 0..plan.rounds {
            announce(Section::Scaling, &name, round, plan.rounds);
            let broker = mosquitto::broker(bench, Some(WINDOW)).await?;
            let delivered = deliver::backlog(bench, Settings::to(Some(broker.address)), count).await?;
            speed.note(delivered.rate);
            memory.note(delivered.memory);
        }
        rows.extend([speed, memory]);
    }
    Ok(())
}
