//! `tidings move-store`: a store moves from a folder to a stream on other machines.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{WRONG_USAGE, output};
use crate::app::{MovedStore, move_store};
use crate::config::{self, Backend};

/// What stands before the file that names the target.
const SCHEME: &str = "jetstream:";

/// The arguments of `tidings move-store`.
#[derive(Debug, Clone, Args)]
pub struct MoveStoreArgs {
    /// The store's folder; no service may run on it. It is left as it is
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Where to: the configuration that names the stream, in which nothing may be
    #[arg(long, value_name = "jetstream:FILE", value_parser = target)]
    pub to: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

fn target(text: &str) -> Result<PathBuf, String> {
    let file = text.strip_prefix(SCHEME).filter(|file| !file.is_empty());
    file.map(PathBuf::from).ok_or_else(|| format!("expected {SCHEME}FILE, where FILE is a tidings.toml with `backend = \"jetstream\"`"))
}

/// Moves.
pub fn run(args: &MoveStoreArgs) -> ExitCode {
    let config = match config::load(&args.to) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    if !matches!(config.store.backend, Backend::JetStream(_)) {
        output::complain(&format!("{}: `store.backend` is not \"jetstream\"", args.to.display()));
        return ExitCode::from(WRONG_USAGE);
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} events copied, {per_sec}") {
        bar.set_style(style);
    }
    let copied = Cell::new(0);
    let done = |events: u64| {
        copied.set(copied.get() + events);
        bar.set_position(copied.get());
    };
    let moved = move_store(&args.from, &config, &done);
    bar.finish_and_clear();
    match moved {
        Ok(moved) => output::print(&text(args, &moved, &args.from, &config.store.place())),
        Err(error) => output::complain(&format!("{error}\nnothing was changed in {}", args.from.display())),
    }
}

fn text(args: &MoveStoreArgs, moved: &MovedStore, from: &Path, to: &str) -> String {
    let MovedStore { first, last, pending } = *moved;
    if args.json {
        return format!("{:#}\n", json!({ "from": from, "to": to, "first": first, "last": last, "pending": pending }));
    }
    format!(
        "moved {} to {to}: events {first} to {last}, {} pending; read again and compared\n\
         - start the service with this configuration, and never again on {0}: both have the same sessions at the broker\n\
         - keep {0} until you have seen it deliver, then delete it\n",
        from.display(),
        output::count(pending, "delivery", "deliveries"),
    )
}
