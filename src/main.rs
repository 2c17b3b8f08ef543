//! The binary: arguments → telemetry → command → exit code.

use std::process::ExitCode;

use clap::Parser;
use tidings::{cli, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    if let Err(error) = telemetry::start(arguments.log_format, arguments.command.log_filter()) {
        cli::output::complain(&error.to_string());
        return ExitCode::from(cli::WRONG_USAGE);
    }
    cli::run(&arguments.command)
}
