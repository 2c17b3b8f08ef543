//! Commands that work on a store's folder themselves: which one it is, how far they are, and how its errors are told.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{WRONG_USAGE, output};
use crate::config::{self, Backend};
use crate::log::OpenError;
use crate::log::sled_log::Progress;

/// Which store.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// The configuration file that names the store [default: as for `tidings serve`]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The store's folder, whatever a configuration says
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub store: Option<PathBuf>,
}

impl StoreArgs {
    /// The store's folder; or the exit code, if none is named, once that has been said.
    pub fn folder(&self) -> Result<PathBuf, ExitCode> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let from_env = std::env::var_os("TIDINGS_CONFIG");
        let found = config::find(self.config.as_deref(), from_env.as_deref()).map_err(|error| error.to_string());
        match found.and_then(|path| config::load(&path).map_err(|mistakes| mistakes.to_string())) {
            Ok(config) if matches!(config.store.backend, Backend::JetStream(_)) => {
                let place = config.store.place();
                output::complain(&format!(
                    "the store is {place}, and this command works on a folder; see ops/cluster.md for what to do instead"
                ));
                Err(ExitCode::from(WRONG_USAGE))
            }
            Ok(config) => Ok(config.store.path),
            Err(what) => {
                output::complain(&format!("{what}\nthe store can also be named by --store"));
                Err(ExitCode::from(WRONG_USAGE))
            }
        }
    }
}

/// What went wrong with the store, with what these commands know more about it than a start.
pub fn describe(error: &OpenError) -> String {
    match error {
        OpenError::Locked { path, holder } => format!(
            "the store {} is in use{holder}; stop the service first. Only `tidings backup` works on the store of a running service",
            path.display()
        ),
        other => other.to_string(),
    }
}

/// A bar on a terminal, and nothing elsewhere.
#[derive(Default)]
pub struct Bar(Mutex<Option<ProgressBar>>);

impl Progress for Bar {
    fn begins(&self, what: &str, bytes: u64) {
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        let bar = ProgressBar::new(bytes).with_message(what.to_owned());
        if let Ok(style) = style {
            bar.set_style(style);
        }
        if let Some(before) = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).replace(bar) {
            before.finish_and_clear();
        }
    }

    fn done(&self, bytes: u64) {
        if let Some(bar) = &*self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            bar.inc(bytes);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) {
            bar.finish_and_clear();
        }
    }
}
