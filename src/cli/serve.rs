//! `tidings serve`: the service.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::WRONG_USAGE;
use crate::config::{self, Config};

/// The arguments of `tidings serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The configuration file [default: $TIDINGS_CONFIG, ./tidings.toml, /etc/tidings/tidings.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the service until it is told to stop.
pub fn run(args: &ServeArgs) -> ExitCode {
    match read_config(args) {
        Ok(config) => serve(config),
        Err(mistakes) => {
            eprintln!("{mistakes}");
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn read_config(args: &ServeArgs) -> Result<Config, String> {
    let from_env = std::env::var_os("TIDINGS_CONFIG");
    let path = config::find(args.config.as_deref(), from_env.as_deref()).map_err(|error| error.to_string())?;
    config::load(&path).map_err(|mistakes| mistakes.to_string())
}

fn serve(_config: Config) -> ExitCode {
    eprintln!("tidings serve: not built yet");
    ExitCode::from(super::FAILED)
}
