//! `tidings completions`: from the same definition as the command line itself.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, output};

/// The arguments of `tidings completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: Shell,
}

/// Prints the completions.
pub fn run(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "tidings", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
