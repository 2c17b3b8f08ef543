//! `tidings health`: whether a running service is alive, for whoever restarts what is not. Needs no token, and says one line.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::client::{Client, ClientError, ServiceArgs};
use super::output;

/// A service that is alive answers this at once, however busy it is; supervisors wait a few seconds longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments of `tidings health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Ask whether it takes reports, too
    #[arg(long)]
    pub ready: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Asks the service.
pub fn run(args: &HealthArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client.waiting_for(TIMEOUT),
        Err(error) => return error.complain(),
    };
    let (path, good, bad) = match args.ready {
        false => ("/healthz", "alive", "not alive: restart it"),
        true => ("/readyz", "taking reports", "not taking reports"),
    };
    match client.get(path) {
        Ok(_) => output::print(&format!("{good}\n")),
        // The answer has a reason, and is no error of the usual shape.
        Err(ClientError::Refused { status: 503, .. }) => output::complain(&format!("the service is {bad}; `tidings status` says why")),
        Err(error) => error.complain(),
    }
}
