//! `tidings backup`: a copy of the store, of a running service or a stopped one.
//!
//! A running service is asked to begin a new generation and to keep what stands still before it; the command copies that from the store's
//! folder, on the same machine, and says every few seconds that it is still at it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::{Client, ClientError, ServiceArgs};
use super::output;
use super::store::{Bar, StoreArgs, describe};
use crate::admin::backups::BackupBegun;
use crate::core::types::Seq;
use crate::log::OpenError;
use crate::log::sled_log::{BackupError, Copied, backup_running, backup_stopped};

/// The arguments of `tidings backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// Where to: a new or empty folder
    #[arg(value_name = "DIR")]
    pub target: PathBuf,
    /// Which store, if no service answers.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Makes the backup.
pub fn run(args: &BackupArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => Arc::new(client),
        Err(error) => return error.complain(),
    };
    // Before the service is asked for anything.
    if std::fs::read_dir(&args.target).is_ok_and(|mut entries| entries.next().is_some()) {
        return output::complain(&format!("{} is not empty: choose a new folder for the backup", args.target.display()));
    }
    let asked = client.post("/v1/backups", &[], &[]);
    let copied = match asked {
        Ok(reply) => match serde_json::from_slice::<BackupBegun>(&reply.body) {
            Ok(begun) => of_running(args, &client, begun),
            Err(error) => return output::complain(&format!("the service's answer can't be read: {error}")),
        },
        Err(unreachable @ ClientError::Unreachable { .. }) => of_stopped(args, &unreachable),
        Err(error) => return error.complain(),
    };
    match copied {
        Ok((store, copied)) => output::print(&text(args, &store, &copied)),
        Err(Failed::Said(code)) => code,
        Err(Failed::Because(what)) => output::complain(&what),
    }
}

enum Failed {
    Said(ExitCode),
    Because(String),
}

fn of_running(args: &BackupArgs, client: &Arc<Client>, begun: BackupBegun) -> Result<(PathBuf, Copied), Failed> {
    let hold = Hold::keep(Arc::clone(client), &begun);
    if let Some(named) = &args.store.store
        && named.canonicalize().ok().as_ref() != Some(&begun.store)
    {
        let (named, other) = (named.display(), begun.store.display());
        return Err(Failed::Because(format!("the service at {} has the store {other}, and not {named}; see --url", args.service.url)));
    }
    let generations: Vec<Seq> = begun.generations.iter().map(|known| Seq(known.first)).collect();
    let bar = Bar::default();
    let copied = backup_running(&begun.store, &generations, Seq(begun.position), &args.target, &bar, &mut || hold.is_alive());
    copied.map(|copied| (begun.store, copied)).map_err(|error| Failed::Because(error.to_string()))
}

fn of_stopped(args: &BackupArgs, unreachable: &ClientError) -> Result<(PathBuf, Copied), Failed> {
    let store = args.store.folder().map_err(Failed::Said)?;
    let bar = Bar::default();
    match backup_stopped(&store, &args.target, &bar) {
        Ok(copied) => Ok((store, copied)),
        Err(BackupError::Open(locked @ OpenError::Locked { .. })) => {
            Err(Failed::Because(format!("{locked}\na service runs on it, and it is not where it was asked: {unreachable}")))
        }
        Err(BackupError::Open(error)) => Err(Failed::Because(describe(&error))),
        Err(error) => Err(Failed::Because(error.to_string())),
    }
}

/// Says to the service that the backup is still at work, until this is dropped.
struct Hold {
    client: Arc<Client>,
    id: String,
    stop: Option<mpsc::Sender<()>>,
    renewing: Option<JoinHandle<()>>,
    lost: Arc<Mutex<Option<String>>>,
}

impl Hold {
    fn keep(client: Arc<Client>, begun: &BackupBegun) -> Hold {
        let (stop, stopped) = mpsc::channel::<()>();
        let lost = Arc::new(Mutex::new(None));
        // So that two may fail.
        let every = Duration::from_secs((begun.holds_s / 4).max(1));
        let path = format!("/v1/backups/{}", begun.id);
        let (asking, tell) = (Arc::clone(&client), Arc::clone(&lost));
        let renewing = std::thread::spawn(move || {
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Err(error @ ClientError::Refused { .. }) = asking.put(&path) {
                    *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    return;
                }
            }
        });
        Hold { client, id: begun.id.clone(), stop: Some(stop), renewing: Some(renewing), lost }
    }

    fn is_alive(&self) -> Result<(), String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewing) = self.renewing.take() {
            // It has nothing to tell.
            let _ = renewing.join();
        }
        // If the service can't be told, it forgets the backup by itself.
        let _ = self.client.delete(&format!("/v1/backups/{}", self.id));
    }
}

fn text(args: &BackupArgs, store: &Path, copied: &Copied) -> String {
    let manifest = &copied.manifest;
    let time = manifest.taken.rfc3339();
    if args.json {
        let answer = json!({
            "store": store, "store_id": manifest.store_id().to_string(), "backup": args.target, "position": manifest.position,
            "taken": time, "generations": manifest.generations(), "bytes": copied.bytes,
        });
        return format!("{answer:#}\n");
    }
    format!(
        "backup of {} (id {}) in {}\n{}, {}, copied and checked\nit holds everything up to event {}, {time}\n",
        store.display(),
        manifest.store_id(),
        args.target.display(),
        output::count(manifest.generations() as u64, "generation", "generations"),
        output::size(copied.bytes),
        manifest.position,
    )
}
