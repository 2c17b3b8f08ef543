//! `tidings restore`: a store out of a backup.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::output;
use super::store::{Bar, StoreArgs, describe};
use crate::log::sled_log::{BackupError, restore};

/// The arguments of `tidings restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "DIR")]
    pub backup: PathBuf,
    /// Where to: a new or empty folder. What root restores gets its owner, or that of the folder above.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Restores.
pub fn run(args: &RestoreArgs) -> ExitCode {
    let store = match args.store.folder() {
        Ok(store) => store,
        Err(code) => return code,
    };
    let bar = Bar::default();
    let restored = restore(&args.backup, &store, &bar);
    drop(bar);
    let copied = match restored {
        Ok(copied) => copied,
        Err(BackupError::Open(error)) => return output::complain(&describe(&error)),
        Err(error) => return output::complain(&error.to_string()),
    };
    let manifest = &copied.manifest;
    let time = manifest.taken.rfc3339();
    if args.json {
        let answer = json!({
            "store": store, "store_id": manifest.store_id().to_string(), "backup": args.backup, "position": manifest.position,
            "taken": time, "generations": manifest.generations(), "bytes": copied.bytes,
        });
        return output::print(&format!("{answer:#}\n"));
    }
    output::print(&format!(
        "restored {} (id {}) from {}: {}, {}, copied and checked\n\
         it holds everything up to event {}, {time}\n\
         - what was accepted after that is not in it\n\
         - what was delivered after that is pending in it, and is delivered again\n\
         - the next start opens new sessions at the broker; a service that still runs on the original has to be stopped first\n",
        store.display(),
        manifest.store_id(),
        args.backup.display(),
        output::count(manifest.generations() as u64, "generation", "generations"),
        output::size(copied.bytes),
        manifest.position,
    ))
}
