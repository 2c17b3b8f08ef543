//! What a service takes that has nothing to do: processor time, with its lanes connected. There is nothing to compare it with; the bar is a tick of the
//! kernel's clock in ten seconds, below which tools show none.

use tokio::time::{Instant, sleep};

use super::announce;
use crate::cli::bench::mosquitto;
use crate::cli::bench::plan::{Section, WINDOW};
use crate::cli::bench::reports::pool;
use crate::cli::bench::row::{Bar, Better, Measured};
use crate::cli::bench::service::{Service, Settings};
use crate::cli::bench::{Bench, BenchError};

/// A tick of a hundredth of a second in ten seconds, as a share of one processor in percent.
const ONE_TICK: f64 = 0.1;

/// Reports before it is idle: so that the lanes have connected.
const BEFORE: u64 = 100;

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let mut row =
        Measured::new(Section::Idle, "processor time of an idle service", "% of a core", Better::Less, 0).bar(Bar::AtMost(ONE_TICK));
    for round in 0..plan.rounds {
        announce(Section::Idle, &format!("{} s", plan.idle.as_secs_f64()), round, plan.rounds);
        let broker = mosquitto::broker(bench, Some(WINDOW)).await?;
        let mut service = Service::new(bench, "idle")?;
        service.start(Settings::to(Some(broker.address))).await?;
        service.fill(&pool(plan.kind, plan.seed), BEFORE).await?;
        service.deliver(BEFORE).await?;
        let (begin, before) = (Instant::now(), service.process().processor_time());
        sleep(plan.idle).await;
        let used = service.process().processor_time() - before;
        row.note(100.0 * used / begin.elapsed().as_secs_f64());
        service.stop().await?;
    }
    Ok(vec![row])
}
