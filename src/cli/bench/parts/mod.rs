//! `tidings bench-part`: what the bench runs in processes of its own.
//!
//! ```text
//!   bench ── starts ──▶ part: prepares, prints `ready …`, waits for a line on standard input
//!     │ ── `go` ──────▶ part: runs, prints one line of JSON, ends
//! ```
//! A part whose standard input ends has lost its bench, and ends too: nothing is left behind, however the bench was ended.
//!
//! | Module | Part |
//! |---|---|
//! | [`committer`] | the committer alone, and the same batches appended raw |
//! | [`publisher`] | a plain publisher, without a store |
//! | [`dropper`] | the HTTP server, with a handler that reads and drops |
//! | [`pacer`] | one page appended and synced at a rate |
//! | [`mqtt`] | the wire, for the publisher and the bench's subscriber |

pub mod committer;
pub mod dropper;
pub mod mqtt;
pub mod pacer;
pub mod publisher;

use std::io::{self, BufRead, Write};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process::Process;
use super::{Bench, BenchError};
use crate::cli::output;

/// A part is ready within this: it makes its reports meanwhile.
const READY: Duration = Duration::from_secs(60);

/// And has ended within this: 1,000,000 reports at a few hundred a second.
const END: Duration = Duration::from_secs(3_600);

/// The arguments of `tidings bench-part`.
#[derive(Debug, Clone, Args)]
pub struct PartArgs {
    #[command(subcommand)]
    part: Part,
}

/// Which part.
#[derive(Debug, Clone, Subcommand)]
enum Part {
    /// The committer alone
    Committer(committer::CommitterArgs),
    /// Raw appends of the batches that a committer has formed
    Raw(committer::RawArgs),
    /// A plain publisher
    Publisher(publisher::PublisherArgs),
    /// An HTTP server that drops what it reads
    Dropper,
    /// A page appended and synced, at a rate
    Pacer(pacer::PacerArgs),
}

/// Runs a part.
pub fn run(args: &PartArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::complain(&error.to_string()),
    };
    let told = Told::listen();
    let outcome = match &args.part {
        Part::Committer(args) => runtime.block_on(committer::run(args, &told)),
        Part::Raw(args) => committer::run_raw(args, &told),
        Part::Publisher(args) => runtime.block_on(publisher::run(args, &told)),
        Part::Dropper => runtime.block_on(dropper::run(&told)),
        Part::Pacer(args) => pacer::run(args, &told),
    };
    runtime.shutdown_background();
    match outcome {
        Ok(result) => output::print(&format!("{result}\n")),
        Err(error) => output::complain(&error.to_string()),
    }
}

/// What a part hears from its bench.
pub struct Told(Receiver<()>);

impl Told {
    /// Listens to standard input; its end is the end of the process.
    fn listen() -> Told {
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in io::stdin().lock().lines() {
                // Nobody listens any more: the part is about to end.
                if line.is_err() || tell.send(()).is_err() {
                    break;
                }
            }
            std::process::exit(i32::from(crate::cli::FAILED));
        });
        Told(told)
    }

    /// Says that everything is prepared, and waits for the word. Blocks.
    pub fn wait_to_go(&self, what: &str) {
        output::print(&format!("ready {what}\n"));
        // A bench that is gone ends the process.
        let _ = self.0.recv();
    }
}

/// A part's result, as it is printed.
fn result(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and text are JSON")
}

/// A part, as the bench has it.
pub struct Started {
    process: Process,
    stdin: Option<ChildStdin>,
    /// What it said behind `ready`.
    pub ready: String,
}

impl Started {
    /// Starts a part, and waits until it is ready.
    ///
    /// # Errors
    /// If it is not.
    pub(in crate::cli::bench) async fn start(bench: &Bench, words: &[String]) -> Result<Started, BenchError> {
        let name = format!("part-{}", words.first().map_or("", String::as_str));
        let said = bench.scratch.path().join(&name);
        // The part before it is gone, and so is what it said.
        let _ = std::fs::remove_file(&said);
        let mut command = Command::new(&bench.program);
        command.arg("bench-part").args(words).stdin(Stdio::piped()).env_remove("TIDINGS_LOG");
        let mut process = Process::start(&name, &mut command, &said)?;
        let stdin = process.take_stdin();
        let ready = |said: &str| {
            let (line, _) = said.split_once("ready ")?.1.split_once('\n')?;
            Some(line.to_owned())
        };
        let ready = process.until_said(READY, ready).await?;
        Ok(Started { process, stdin, ready })
    }

    /// Lets it run.
    ///
    /// # Errors
    /// If it is gone.
    pub fn go(&mut self) -> Result<(), BenchError> {
        let told = self.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(b"go\n").and_then(|()| stdin.flush()));
        told.map_err(|_| self.process.failed("is gone:"))
    }

    /// Waits for its result.
    ///
    /// # Errors
    /// If there is none.
    pub async fn result<T: DeserializeOwned>(mut self) -> Result<T, BenchError> {
        self.process.end(END).await?;
        let said = self.process.said();
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).map_err(|error| self.process.failed(&format!("gave no result ({error}):")))
    }

    /// All of it: starts a part, lets it run, and gives its result.
    ///
    /// # Errors
    /// See the others.
    pub(in crate::cli::bench) async fn run<T: DeserializeOwned>(bench: &Bench, words: &[String]) -> Result<T, BenchError> {
        let mut part = Started::start(bench, words).await?;
        part.go()?;
        part.result().await
    }
}

/// The words of a command line: `--name value` for each pair.
pub fn words(part: &str, options: &[(&str, &dyn ToString)]) -> Vec<String> {
    let pairs = options.iter().flat_map(|(name, value)| [format!("--{name}"), value.to_string()]);
    std::iter::once(part.to_owned()).chain(pairs).collect()
}
