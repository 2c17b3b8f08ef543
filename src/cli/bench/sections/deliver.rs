//! A backlog is delivered, at each QoS: how fast the log is read, sent and settled.
//!
//! The control is a plain publisher: the same reports from memory, over the same number of connections with the same windows and the same codec, without a
//! store. At QoS 0 and 1 the window is 100 a lane, at QoS 2 the 20 that a mosquitto allows which nobody has configured.
//! Both are bounded by the broker, and at QoS 2 by round trips: with Tidings one of them waits for a commit.

use super::{announce, expect};
use crate::cli::bench::mosquitto::{self, Broker};
use crate::cli::bench::parts::publisher::Published;
use crate::cli::bench::parts::{Started, words};
use crate::cli::bench::plan::{LANES, Section, WINDOW};
use crate::cli::bench::reports::pool;
use crate::cli::bench::row::{Bar, Measured};
use crate::cli::bench::service::{Service, Settings};
use crate::cli::bench::{Bench, BenchError};

/// What a mosquitto allows that nobody has configured.
const DEFAULT_WINDOW: u16 = 20;

/// What the control is.
const PLAIN: &str = "a plain publisher with the same lanes and windows";

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let window = |qos: u8| if qos == 2 { DEFAULT_WINDOW } else { WINDOW };
    let name = |qos: u8| format!("backlog at QoS {qos}, {LANES} lanes, window {}", window(qos));
    let row = |qos: u8| {
        let row = Measured::rate(Section::Deliver, name(qos), plan.reports).against(PLAIN);
        match qos {
            1 => row.bar(Bar::AtLeast(0.9)),
            2 => row.bar(Bar::AtLeast(0.7)),
            _ => row,
        }
    };
    let mut rows: Vec<Measured> = plan.levels.iter().map(|qos| row(*qos)).collect();
    for round in 0..plan.rounds {
        for (row, qos) in rows.iter_mut().zip(&plan.levels) {
            announce(Section::Deliver, &name(*qos), round, plan.rounds);
            let broker = mosquitto::broker(bench, Some(window(*qos))).await?;
            let settings = Settings { qos: *qos, window: window(*qos), ..Settings::to(Some(broker.address)) };
            let ours = backlog(bench, settings, plan.reports).await?;
            row.compare(ours.rate, plain(bench, &broker, settings, plan.reports).await?);
        }
    }
    Ok(rows)
}

/// What came of delivering.
pub struct Delivered {
    /// Reports a second.
    pub rate: f64,
    /// The most that the service had resident, in MiB.
    pub memory: f64,
}

/// Fills a service that has no broker, gives it one, and sees it deliver.
///
/// # Errors
/// If a report is not accepted, or not delivered.
pub async fn backlog(bench: &Bench, settings: Settings, reports: u64) -> Result<Delivered, BenchError> {
    let mut service = Service::new(bench, "deliver")?;
    service.start(Settings { broker: None, ..settings }).await?;
    service.fill(&pool(bench.plan.kind, bench.plan.seed), reports).await?;
    let filled = service.books().await?.created;
    service.stop().await?;
    service.start(settings).await?;
    let rate = service.deliver(filled).await?;
    let books = service.books().await?;
    expect("deliveries that are done", filled, books.acknowledged + books.sent)?;
    let memory = service.process().memory()[1];
    service.stop().await?;
    Ok(Delivered { rate, memory })
}

/// The plain publisher's rate, in reports a second.
///
/// # Errors
/// If the broker refuses something.
pub async fn plain(bench: &Bench, broker: &Broker, settings: Settings, reports: u64) -> Result<f64, BenchError> {
    let line = words(
        "publisher",
        &[
            ("broker", &broker.address),
            ("reports", &reports),
            ("kind", &bench.plan.kind.word()),
            ("qos", &settings.qos),
            ("lanes", &settings.lanes),
            ("window", &settings.window),
            ("seed", &bench.plan.seed),
        ],
    );
    let published: Published = Started::run(bench, &line).await?;
    expect("acknowledged reports of the plain publisher", reports, published.done)?;
    Ok(published.rate())
}
