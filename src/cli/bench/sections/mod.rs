//! What is measured, a section a file. Each says what it compares with what, and what bounds either.

mod append;
mod cluster;
mod deliver;
mod http;
mod idle;
mod latency;
mod scaling;
mod start;
mod through;

use super::plan::Section;
use super::row::Measured;
use super::{Bench, BenchError, tell};

/// Measures a section.
///
/// # Errors
/// If something that was started fails, or a count is off.
pub async fn run(section: Section, bench: &Bench) -> Result<Vec<Measured>, BenchError> {
    match section {
        Section::Append => append::run(bench).await,
        Section::Http => http::run(bench).await,
        Section::Deliver => deliver::run(bench).await,
        Section::Through => through::run(bench).await,
        Section::Latency => latency::run(bench).await,
        Section::Start => start::run(bench).await,
        Section::Idle => idle::run(bench).await,
        Section::Scaling => scaling::run(bench).await,
        Section::Cluster => cluster::run(bench).await,
    }
}

/// Says what is being measured.
fn announce(section: Section, what: &str, round: u32, rounds: u32) {
    tell(&format!("{}: {what}, round {} of {rounds}", section.name(), round + 1));
}

/// A count has to be what it should be.
fn expect(what: &str, expected: u64, found: u64) -> Result<(), BenchError> {
    match found == expected {
        true => Ok(()),
        false => Err(BenchError::Count { what: what.into(), expected, found }),
    }
}
