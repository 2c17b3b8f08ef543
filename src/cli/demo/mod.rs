//! `tidings demo`: the promise, kept before one's eyes, on one machine with nothing installed.
//!
//! ```text
//! reports ──HTTP──▶ the service ──MQTT──▶ proxy ──▶ broker ──▶ subscriber that checks
//!  (posts)         (scratch store)      (cuts off)  (embedded)   (connected directly)
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `story` | what happens, in its order, and within which time |
//! | `reports` | the reports, as a busy Zuul makes them |
//! | `post` | posting them |
//! | `settings` | the service's configuration |
//! | `proxy`, `wire` | taking the broker away at the worst moments |
//! | `broker` | the embedded broker |
//! | `subscriber`, `check` | what arrived, held against what was posted |
//! | `progress` | what is shown meanwhile |
//!
//! The embedded broker brings as many crates as the rest of the service has, so all of this is behind the feature `demo`, which is on by default.

#[cfg(feature = "demo")]
mod broker;
#[cfg(feature = "demo")]
mod check;
#[cfg(feature = "demo")]
mod post;
#[cfg(feature = "demo")]
mod progress;
#[cfg(feature = "demo")]
mod proxy;
#[cfg(feature = "demo")]
mod reports;
#[cfg(feature = "demo")]
mod settings;
#[cfg(feature = "demo")]
mod story;
#[cfg(feature = "demo")]
mod subscriber;
#[cfg(feature = "demo")]
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

/// What the service logs in the demo if `TIDINGS_LOG` doesn't say: an outage is what it is about, so warnings of one would only stand in the way.
pub const LOG_FILTER: &str = "error";

/// The arguments of `tidings demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many reports
    #[arg(long, default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    pub reports: u32,
    /// Reports per second [default: 250, and fewer where that would take less than 3 seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
    /// How long the broker is away
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = super::span_of)]
    pub outage: Duration,
    /// Go on serving afterwards, until Ctrl-C
    #[arg(long)]
    pub stay: bool,
}

/// Runs the command.
#[cfg(feature = "demo")]
pub fn run(args: &DemoArgs) -> ExitCode {
    story::run(args)
}

/// Runs the command.
#[cfg(not(feature = "demo"))]
pub fn run(_args: &DemoArgs) -> ExitCode {
    super::output::complain("this tidings was built without the demo; build it with `cargo build --release --features demo`")
}
