//! `tidings move-store`: a store moves from a folder to a stream on other machines, or back.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{WRONG_USAGE, output};
use crate::app::{MovedStore, move_store, move_store_back};
use crate::config::{self, Backend, Config};

/// What stands before the file that names a stream.
const SCHEME: &str = "jetstream:";

/// The arguments of `tidings move-store`.
#[derive(Debug, Clone, Args)]
pub struct MoveStoreArgs {
    /// The store: its folder, or the configuration that names its stream. No service may run on it; it is left as it is, and marked as moved
    #[arg(long, value_name = "DIR|jetstream:FILE", value_parser = place)]
    pub from: Place,
    /// Where to: the configuration that names the stream, or a folder; nothing may be there
    #[arg(long, value_name = "jetstream:FILE|DIR", value_parser = place)]
    pub to: Place,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Where a store is.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this folder.
    Folder(PathBuf),
    /// In the stream that this configuration names.
    Stream(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(folder) => write!(f, "{}", folder.display()),
            Place::Stream(file) => write!(f, "{SCHEME}{}", file.display()),
        }
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text.strip_prefix(SCHEME) {
        Some("") => Err(format!("expected a folder, or {SCHEME}FILE, where FILE is a tidings.toml with `backend = \"jetstream\"`")),
        Some(file) => Ok(Place::Stream(file.into())),
        None => Ok(Place::Folder(text.into())),
    }
}

/// Moves.
pub fn run(args: &MoveStoreArgs) -> ExitCode {
    let (folder, file) = match (&args.from, &args.to) {
        (Place::Folder(folder), Place::Stream(file)) | (Place::Stream(file), Place::Folder(folder)) => (folder, file),
        _ => {
            output::complain(&format!(
                "a store moves from a folder to a stream, or back: one of --from and --to is {SCHEME}FILE, where FILE is a tidings.toml with \
                 `backend = \"jetstream\"`, and the other a folder"
            ));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let config = match config::load(file) {
        Ok(config) => config,
        Err(mistakes) => {
            output::tell(&mistakes.to_string());
            return ExitCode::from(WRONG_USAGE);
        }
    };
    if !matches!(config.store.backend, Backend::JetStream(_)) {
        output::complain(&format!("{}: `store.backend` is not \"jetstream\"", file.display()));
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
    let moved = match args.from {
        Place::Folder(_) => move_store(folder, &config, &done),
        Place::Stream(_) => move_store_back(&config, folder, &done),
    };
    bar.finish_and_clear();
    match moved {
        Ok(moved) => output::print(&text(args, &moved, folder, &config)),
        Err(error) => output::complain(&format!("{error}\nnothing was changed in {}", args.from)),
    }
}

fn text(args: &MoveStoreArgs, moved: &MovedStore, folder: &Path, config: &Config) -> String {
    let MovedStore { first, last, pending } = *moved;
    let (folder, stream) = (folder.display().to_string(), config.store.place());
    let (from, to) = match args.from {
        Place::Folder(_) => (&folder, &stream),
        Place::Stream(_) => (&stream, &folder),
    };
    if args.json {
        return format!("{:#}\n", json!({ "from": from, "to": to, "first": first, "last": last, "pending": pending }));
    }
    let what_now = match args.from {
        Place::Folder(_) => format!(
            "- start the service with this configuration; {folder} is marked as moved, and a service is refused on it\n\
             - keep {folder} until you have seen it deliver, then delete it\n"
        ),
        Place::Stream(_) => format!(
            "- start one service with `store.path = {folder:?}` and without `backend`; the stream is marked as moved, and a service is refused on it\n\
             - keep the stream until you have seen it deliver, then delete it and its bucket\n"
        ),
    };
    let deliveries = output::count(pending, "delivery", "deliveries");
    format!("moved {from} to {to}: events {first} to {last}, {deliveries} pending; read again and compared\n{what_now}")
}
