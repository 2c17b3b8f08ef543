//! One page appended and synced at a rate: the least that an accept can wait for.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Told, result};
use crate::cli::bench::BenchError;
use crate::cli::bench::reports::{Kind, pool};

/// Bytes of a page: the least that a disk writes.
const PAGE: usize = 4 << 10;

/// The arguments of `tidings bench-part pacer`.
#[derive(Debug, Clone, Args)]
pub struct PacerArgs {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    pages: u64,
    #[arg(long)]
    seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paced {
    /// How long each page took, in milliseconds.
    pub latencies_ms: Vec<f64>,
}

/// Runs it. The clock of a page begins when its write does: with one page after another, those that a slow one has held up would count twice, and
/// make the disk look slower than it is for whoever shares its syncs.
///
/// # Errors
/// If the disk does not take them.
pub fn run(args: &PacerArgs, told: &Told) -> Result<String, BenchError> {
    let bytes: Vec<u8> = pool(Kind::Sized(1_536), args.seed).iter().flat_map(|report| report.payload.to_vec()).collect();
    let path = args.folder.join("paced");
    let failed = || BenchError::file(format!("{} can't be written", path.display()));
    let mut file = File::create(&path).map_err(failed())?;
    told.wait_to_go("");
    let begin = Instant::now();
    let mut latencies_ms = Vec::new();
    for number in 0..args.pages {
        let due = begin + Duration::from_secs_f64(number as f64 / f64::from(args.rate));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let from = (number as usize * PAGE) % (bytes.len() - PAGE);
        let started = Instant::now();
        file.write_all(&bytes[from..from + PAGE]).and_then(|()| file.sync_data()).map_err(failed())?;
        latencies_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(result(&Paced { latencies_ms }))
}
