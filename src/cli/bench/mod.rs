//! `tidings bench`: how fast this build is on this machine, as ratios against controls of the same run.
//!
//! A number of reports a second says as much about the machine as about Tidings, and a machine is not the same an hour later. So each
//! number here has a *control*: the least that anybody could do for the same purpose, measured beside it. Both take turns (A B A B …),
//! `--rounds` times; what counts is the median of the rounds' ratios, and how far the rounds lie apart is printed beside it.
//!
//! | Section | Tidings | Control |
//! |---|---|---|
//! | `append` | the committer alone, with 1, 16 and 256 producers | raw append + fdatasync of the batches that it has formed, uncompressed, in the same folder |
//! | `http` | 64 kept connections: single reports, and NDJSON of 100 | the same server, whose handler reads and drops the body; for NDJSON also the committer alone |
//! | `deliver` | a backlog, at QoS 0, 1 and 2 | a plain publisher on the same codec, with the same lanes and windows, and no store |
//! | `through` | publisher → listener → service → mosquitto → subscriber, QoS 1 | mosquitto's own bridge instead: in memory, and saving every 1,000 changes |
//! | `latency` | accepts at 500 reports a second | an append + fdatasync of one page at the same rate |
//! | `start` | with a long backlog: start, memory, rate of delivery | the same with a short one |
//! | `idle` | the processor time of a service that has nothing to do | |
//! | `scaling` | over producers, sizes, lanes, windows, backlogs, connections | raw appends, over sizes |
//! | `cluster` | the committer and HTTP over the log on one and on three NATS servers; only with `--only` | the same over the log on disk |
//!
//! ```text
//!   bench ──starts──▶ tidings serve       this very binary, in a process of its own
//!     │ loads, counts ▶ mosquitto         in processes of its own, with a scratch configuration; or --broker
//!     └───────starts──▶ tidings bench-part …   controls, and the committer alone: each a process of its own
//! ```
//! The payloads are reports as Zuul makes them, different ones, made from `--seed`: constant bytes would flatter compression. What is measured is
//! counted at the other end: a run in which a report is missing is an error and no number.
//!
//! # What `--json` prints
//! One object: `format` (1), `machine`, `settings`, and `rows`, of which each has
//!
//! | Field | |
//! |---|---|
//! | `section`, `name` | what was measured |
//! | `unit`, `better` | of `ours` and `control`; `more` or `less` is better |
//! | `ours`, `control` | medians over the rounds; `control` is null where there is nothing to compare with |
//! | `against` | what the control is, in words; null without one |
//! | `ratio` | the median of the rounds' `ours / control`; null without a control |
//! | `bar` | `{"at_least": x}` or `{"at_most": x}`: of the ratio, or of `ours` where there is no control; null where nothing is promised |
//! | `met` | whether the bar was reached; null without one |
//! | `spread` | the lowest and the highest of the rounds: `{"ours": [l, h], "control": [l, h], "ratio": [l, h]}` |
//! | `rounds`, `count` | how often it was measured, and how many reports (commits, starts) each time |
//! | `series`, `x` | of a row of `scaling`: which curve, and where on it |
//!
//! # Modules
//! | Module | Holds |
//! |---|---|
//! | `plan` | what is measured, and how much of it |
//! | `row` | a measurement: medians, spread, bar |
//! | `reports` | the reports |
//! | `place` | the scratch folder, its file system, the machine |
//! | `process`, `service`, `mosquitto`, `nats` | what is started, and gone at the end |
//! | `client`, `subscriber` | loads over HTTP, and who counts what arrives over MQTT |
//! | [`parts`] | what runs in processes of its own: `tidings bench-part` |
//! | `sections` | one a file |
//! | `draw` | pictures and tables |

mod client;
mod draw;
mod mosquitto;
mod nats;
pub(super) mod parts;
mod place;
mod plan;
mod process;
mod reports;
mod row;
mod sections;
mod service;
mod subscriber;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::place::{Machine, Scratch};
use self::plan::{Plan, Section};
use self::row::{Results, Row};
use super::output;
use super::signals::Signals;
use super::{FAILED, WRONG_USAGE};

/// What is logged if `TIDINGS_LOG` doesn't say: the bench prints its own results, and the service under test has a log of its own.
pub const LOG_FILTER: &str = "error";

/// The arguments of `tidings bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Reports of the largest measurements; the smaller ones, and the backlogs of `start`, follow from it
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=2_000_000))]
    pub reports: u32,
    /// Bytes of a report, about
    #[arg(long, default_value_t = 1_536, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(256..=262_144))]
    pub size: u32,
    /// Deliver at this QoS only [default: each, where a section has more than one]
    #[arg(long, value_name = "QOS", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: Option<u8>,
    /// Append with so many producers only [default: 1, 16 and 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub producers: Option<u32>,
    /// How often each measurement and its control take turns
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// Sections to run, with commas [default: all but `cluster`, for which nats-server has to be installed]
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    pub only: Vec<Section>,
    /// What the reports are made from: the same seed, the same reports
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// How long an idle service is watched
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = super::span_of)]
    pub idle: Duration,
    /// A broker to deliver to [default: mosquitto is started, on a free port]
    #[arg(long, value_name = "HOST:PORT")]
    pub broker: Option<String>,
    /// Where the scratch folder is made; its disk is what is measured [default: the working directory]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
    /// Draw pictures into this folder, and write the tables into its performance.md
    #[arg(long, value_name = "FOLDER")]
    pub draw: Option<PathBuf>,
    /// Measure nothing: take the results from a file that `--json` has written
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Exit with 1 if a bar is missed
    #[arg(long)]
    pub check: bool,
}

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The scratch folder, or a file in it.
    #[error("{what}: {error}")]
    File {
        /// What was to be done.
        what: String,
        /// What the system says.
        error: io::Error,
    },
    /// A program is missing.
    #[error("{program} is not installed: install the package `{program}`{instead}")]
    Missing {
        /// The program, and its package.
        program: &'static str,
        /// What can be done instead.
        instead: &'static str,
    },
    /// Something that was started did not do what it should.
    #[error("{who} {what}")]
    Part {
        /// Which.
        who: String,
        /// What happened; the end of what it said.
        what: String,
    },
    /// A count is off: the number would mean nothing.
    #[error("{what}: {found} instead of {expected}, so nothing was measured")]
    Count {
        /// What was counted.
        what: String,
        /// What should be.
        expected: u64,
        /// What is.
        found: u64,
    },
    /// It did not come to its end.
    #[error("{what} did not come about within {limit_s} s")]
    OutOfTime {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        limit_s: u64,
    },
    /// MQTT or HTTP failed.
    #[error("{0}")]
    Wire(String),
    /// The broker can't be reached under its name.
    #[error("--broker {0}: {1}; give it as HOST:PORT")]
    Broker(String, String),
    /// Results that can't be read.
    #[error("{0} holds no results of `tidings bench --json`: {1}")]
    Results(PathBuf, String),
    /// Ctrl-C.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
}

impl BenchError {
    fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> BenchError {
        let what = what.into();
        move |error| BenchError::File { what, error }
    }
}

/// What the sections work with.
struct Bench {
    plan: Plan,
    scratch: Scratch,
    /// This very binary.
    program: PathBuf,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> ExitCode {
    let results = match &args.from {
        Some(file) => read_results(file),
        None => measure(args),
    };
    let results = match results {
        Ok(results) => results,
        Err(error @ BenchError::Broker(..)) => {
            output::complain(&error.to_string());
            return ExitCode::from(WRONG_USAGE);
        }
        Err(error) => return output::complain(&error.to_string()),
    };
    if let Some(folder) = &args.draw
        && let Err(error) = draw::draw(&results, folder)
    {
        return output::complain(&error.to_string());
    }
    let printed = output::print(&if args.json { results.json() } else { results.text() });
    match args.check && results.rows.iter().any(|row| row.met == Some(false)) {
        true => ExitCode::from(FAILED),
        false => printed,
    }
}

fn read_results(file: &std::path::Path) -> Result<Results, BenchError> {
    let text = fs::read(file).map_err(BenchError::file(format!("{} can't be read", file.display())))?;
    serde_json::from_slice(&text).map_err(|error| BenchError::Results(file.to_owned(), error.to_string()))
}

/// Measures what was asked for. Whatever was started is gone when this returns, also after Ctrl-C.
fn measure(args: &BenchArgs) -> Result<Results, BenchError> {
    let starting = |error| BenchError::File { what: "the system gives no threads".into(), error };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(starting)?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new().map_err(BenchError::file("signals can't be listened to"))?;
        // Dropped at a signal, the sections take along what they have started.
        tokio::select! {
            outcome = run_sections(args) => outcome,
            () = signals.any() => Err(BenchError::Interrupted),
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn run_sections(args: &BenchArgs) -> Result<Results, BenchError> {
    let plan = Plan::of(args)?;
    let program = std::env::current_exe().map_err(BenchError::file("where this program is can't be found out"))?;
    let parent = match &args.folder {
        Some(folder) => folder.clone(),
        None => std::env::current_dir().map_err(BenchError::file("there is no working directory"))?,
    };
    let scratch = Scratch::new(&parent)?;
    let machine = Machine::look(scratch.path());
    tell(&format!("scratch folder {}, on {}", scratch.path().display(), machine.file_system));
    if machine.is_in_memory {
        tell("that is memory: what is measured there says nothing about a disk; choose another with --folder");
    }
    if cfg!(debug_assertions) {
        tell("this is a debug build: its numbers mean nothing");
    }
    let bench = Bench { plan, scratch, program };
    let mut rows: Vec<Row> = Vec::new();
    for section in &bench.plan.sections {
        let measured = sections::run(*section, &bench).await?;
        rows.extend(measured.iter().map(row::Measured::row));
    }
    Ok(Results { format: row::FORMAT, machine, settings: bench.plan.settings(), rows })
}

/// Says on standard error what is going on.
fn tell(what: &str) {
    use std::io::Write;
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{what}");
}
