//! The committer alone: reports are handed in by tasks of one process, and each waits until its own is durable.
//!
//! The control appends the very batches that the committer has formed, uncompressed, with one write and one fdatasync each. Both are bounded by the
//! disk's fdatasync; with many producers by how much is written, where compression tells.

use std::path::Path;

use super::{announce, expect};
use crate::cli::bench::nats::Nats;
use crate::cli::bench::parts::committer::Appended;
use crate::cli::bench::parts::{Started, words};
use crate::cli::bench::plan::Section;
use crate::cli::bench::reports::Kind;
use crate::cli::bench::row::{Bar, Measured};
use crate::cli::bench::{Bench, BenchError};
use crate::cli::output;

/// What the control is.
pub const RAW: &str = "raw append + fdatasync of the same batches";

pub async fn run(bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    let plan = &bench.plan;
    let name = |producers: u32| output::count(producers.into(), "producer", "producers");
    let row =
        |producers: u32| Measured::rate(Section::Append, name(producers), plan.appended_by(producers)).against(RAW).bar(Bar::AtLeast(0.6));
    let mut rows: Vec<Measured> = plan.producers.iter().map(|producers| row(*producers)).collect();
    for round in 0..plan.rounds {
        for (row, producers) in rows.iter_mut().zip(&plan.producers) {
            announce(Section::Append, &name(*producers), round, plan.rounds);
            let pair = pair(bench, plan.kind, *producers, 1, plan.appended_by(*producers)).await?;
            row.compare(pair.committer.rate(), pair.raw.rate());
        }
    }
    Ok(rows)
}

/// A committer, and the control on its batches.
pub struct Pair {
    pub committer: Appended,
    pub raw: Appended,
}

/// Measures both, one after the other: the control needs the batches.
///
/// # Errors
/// If the disk fails, or a report is missing.
pub async fn pair(bench: &Bench, kind: Kind, producers: u32, batch: u64, reports: u64) -> Result<Pair, BenchError> {
    let folder = bench.scratch.folder("append")?;
    let committer = committer_in(bench, &folder, kind, producers, batch, reports).await?;
    let raw = words("raw", &[("folder", &folder.display()), ("kind", &kind.word()), ("seed", &bench.plan.seed)]);
    let raw: Appended = Started::run(bench, &raw).await?;
    expect("reports in the control", committer.reports, raw.reports)?;
    Ok(Pair { committer, raw })
}

/// The committer, without its control.
///
/// # Errors
/// As [`pair`].
pub async fn committer(bench: &Bench, kind: Kind, producers: u32, batch: u64, reports: u64) -> Result<Appended, BenchError> {
    let folder = bench.scratch.folder("append")?;
    committer_in(bench, &folder, kind, producers, batch, reports).await
}

/// As [`committer`], over a log on servers.
///
/// # Errors
/// As [`pair`].
pub async fn committer_on(
    bench: &Bench,
    nats: &Nats,
    kind: Kind,
    producers: u32,
    batch: u64,
    reports: u64,
) -> Result<Appended, BenchError> {
    let folder = bench.scratch.folder("append")?;
    let servers = nats.servers().join(",");
    run_committer(bench, &folder, kind, producers, batch, reports, &["--servers".to_owned(), servers]).await
}

async fn committer_in(bench: &Bench, folder: &Path, kind: Kind, producers: u32, batch: u64, reports: u64) -> Result<Appended, BenchError> {
    run_committer(bench, folder, kind, producers, batch, reports, &[]).await
}

async fn run_committer(
    bench: &Bench,
    folder: &Path,
    kind: Kind,
    producers: u32,
    batch: u64,
    reports: u64,
    more: &[String],
) -> Result<Appended, BenchError> {
    let mut line = words(
        "committer",
        &[
            ("folder", &folder.display()),
            ("reports", &reports),
            ("kind", &kind.word()),
            ("producers", &producers),
            ("batch", &batch),
            ("seed", &bench.plan.seed),
        ],
    );
    line.extend_from_slice(more);
    let appended: Appended = Started::run(bench, &line).await?;
    expect("durable reports", reports.div_ceil(batch) * batch, appended.reports)?;
    Ok(appended)
}
