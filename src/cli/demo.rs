//! `tidings demo`: not built yet.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

/// The arguments of `tidings demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many reports
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    pub reports: u32,
    /// Reports per second
    #[arg(long, default_value_t = 400, value_name = "N")]
    pub rate: u32,
    /// How long the broker is away
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub outage: Duration,
    /// Go on serving afterwards
    #[arg(long)]
    pub stay: bool,
}

/// Runs the command.
pub fn run(_args: &DemoArgs) -> ExitCode {
    eprintln!("tidings demo: not built yet");
    ExitCode::from(super::FAILED)
}
