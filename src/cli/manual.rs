//! `tidings manual`: the manual pages, from the same definition as the command line itself. For those who make packages.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::{Arguments, output};

/// The arguments of `tidings manual`.
#[derive(Debug, Clone, Args)]
pub struct ManualArgs {
    /// The folder, which is made if it is not there
    pub folder: PathBuf,
}

/// Writes tidings.1, and a page for each command.
pub fn run(args: &ManualArgs) -> ExitCode {
    let folder = &args.folder;
    match fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Arguments::command(), folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::complain(&format!("the manual pages can't be written to {}: {error}", folder.display())),
    }
}
