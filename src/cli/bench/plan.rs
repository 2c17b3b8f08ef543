//! What is measured, and how much of it: everything follows from a few arguments.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::reports::Kind;
use super::{BenchArgs, BenchError};

/// A part of the bench that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Section {
    /// The committer alone
    Append,
    /// Reports over HTTP
    Http,
    /// A backlog is delivered
    Deliver,
    /// From a publisher, over the listener, to a subscriber
    Through,
    /// How long an accept takes
    Latency,
    /// Starts, memory and delivery with a long backlog
    Start,
    /// What an idle service takes
    Idle,
    /// Curves over producers, sizes, lanes, windows, backlogs and connections
    Scaling,
    /// The log on one and on three NATS servers, beside the one on disk; only when it is asked for
    Cluster,
}

impl Section {
    /// Its name on the command line and in the results.
    pub fn name(self) -> &'static str {
        match self {
            Section::Append => "append",
            Section::Http => "http",
            Section::Deliver => "deliver",
            Section::Through => "through",
            Section::Latency => "latency",
            Section::Start => "start",
            Section::Idle => "idle",
            Section::Scaling => "scaling",
            Section::Cluster => "cluster",
        }
    }
}

/// Lanes of the service and of the plain publisher, where that is not what is looked at: the service's default.
pub const LANES: u32 = 4;

/// Deliveries in flight on a lane: the service's default.
pub const WINDOW: u16 = 100;

/// Connections that post at once.
pub const CONNECTIONS: usize = 64;

/// Reports of one NDJSON request.
pub const BATCH: usize = 100;

/// Accepts a second whose latency is looked at: a large Zuul at its busiest makes a tenth of that.
pub const RATE: u32 = 500;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sections, in their order.
    pub sections: Vec<Section>,
    /// Reports of the largest measurements.
    pub reports: u64,
    /// The reports.
    pub kind: Kind,
    /// Which QoS is delivered at.
    pub levels: Vec<u8>,
    /// Producers of `append`.
    pub producers: Vec<u32>,
    /// How often everything is measured.
    pub rounds: u32,
    /// What reports are made from.
    pub seed: u64,
    /// A broker that was there before.
    pub broker: Option<SocketAddr>,
    /// How long an idle service is watched.
    pub idle: Duration,
}

/// The arguments that shape the results, as they are printed with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Reports of the largest measurements.
    pub reports: u64,
    /// Bytes of a report, about.
    pub size: u64,
    /// Rounds.
    pub rounds: u32,
    /// The seed.
    pub seed: u64,
    /// The broker, if it was not started for this.
    pub broker: Option<String>,
}

impl Plan {
    /// The plan that the arguments ask for.
    ///
    /// # Errors
    /// If the broker's name can't be resolved.
    pub fn of(args: &BenchArgs) -> Result<Plan, BenchError> {
        let mut sections = match args.only.is_empty() {
            // It needs another program, and a build with JetStream.
            true => Section::value_variants().iter().copied().filter(|section| *section != Section::Cluster).collect(),
            false => args.only.clone(),
        };
        sections.sort_unstable();
        sections.dedup();
        let broker = args.broker.as_ref().map(|name| resolve(name)).transpose()?;
        Ok(Plan {
            sections,
            reports: args.reports.into(),
            kind: Kind::Sized(args.size as usize),
            levels: args.qos.map_or_else(|| vec![0, 1, 2], |qos| vec![qos]),
            producers: args.producers.map_or_else(|| vec![1, 16, 256], |producers| vec![producers]),
            rounds: args.rounds,
            seed: args.seed,
            broker,
            idle: args.idle,
        })
    }

    /// What is printed with the results.
    pub fn settings(&self) -> Settings {
        Settings {
            reports: self.reports,
            size: self.kind.size() as u64,
            rounds: self.rounds,
            seed: self.seed,
            broker: self.broker.map(|broker| broker.to_string()),
        }
    }

    /// Reports that so many producers append in a round: two seconds of work or more for each of them, so that what comes up only once in a while counts, on
    /// both sides: new generations, and a page cache that has to be written back. One alone waits for the disk each time, so it gets fewer.
    pub fn appended_by(&self, producers: u32) -> u64 {
        let share = (0.02 + 0.03 * f64::from(producers)).min(2.0);
        self.share(share).max(u64::from(producers))
    }

    /// A share of the reports, and a few at least.
    pub fn share(&self, share: f64) -> u64 {
        ((self.reports as f64 * share) as u64).max(10)
    }
}

fn resolve(name: &str) -> Result<SocketAddr, BenchError> {
    let wrong = |what: String| BenchError::Broker(name.to_owned(), what);
    let mut found = name.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("it has no address".into()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(words: &[&str]) -> Result<Plan, BenchError> {
        Plan::of(&Line::try_parse_from([&["bench"], words].concat()).unwrap().args)
    }

    #[test]
    fn without_arguments_everything_is_measured_as_the_bars_say() {
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.sections.len(), plan.reports, plan.rounds), (8, 200_000, 5));
        assert_eq!((plan.levels, plan.producers), (vec![0, 1, 2], vec![1, 16, 256]));
    }

    #[test]
    fn sections_are_run_once_and_in_their_order() {
        assert_eq!(plan(&["--only", "idle,append", "--only", "idle"]).unwrap().sections, [Section::Append, Section::Idle]);
    }

    #[test]
    fn a_broker_without_a_port_is_refused() {
        assert!(matches!(plan(&["--broker", "localhost"]), Err(BenchError::Broker(..))));
        assert_eq!(plan(&["--broker", "127.0.0.1:1883"]).unwrap().broker, "127.0.0.1:1883".parse().ok());
    }

    #[test]
    fn who_waits_for_the_disk_each_time_gets_less_to_do() {
        let plan = plan(&[]).unwrap();
        let counts = [1, 16, 256].map(|producers| plan.appended_by(producers));
        assert!(counts.is_sorted() && counts[0] == 10_000 && counts[2] == 400_000, "{counts:?}");
    }
}
