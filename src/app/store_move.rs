//! A store moves from a folder to servers, or back: for `tidings move-store`.
//!
//! Both have the same sessions at the broker then, so the one that was left is marked: a stream in its bucket, a folder by the file `moved`. A service that is
//! started there again, by habit or by systemd, is refused. Whatever only reads the store goes on working.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::log::OpenError;

/// Stands in a folder whose store has moved, and says where to.
const MARK: &str = "moved";

/// A store that was moved away is not to be used any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store {path} was moved to {to}, and both have the same sessions at the broker. Serve from there, with the configuration that it was moved with; or, if that \
     one will never be used again, delete the file `{MARK}` in this folder, which makes it what it was before the move"
)]
pub struct Moved {
    path: PathBuf,
    to: String,
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovedStore {
    /// The oldest event.
    pub first: u64,
    /// The newest event.
    pub last: u64,
    /// Deliveries that are still to be made.
    pub pending: u64,
}

/// Why a store was not moved. The source is as it was.
#[derive(Debug, thiserror::Error)]
pub enum MoveStoreError {
    /// The source can't be opened: a service runs on it, or it is none.
    #[error("the source: {0}")]
    Source(OpenError),
    /// It was moved before.
    #[error(transparent)]
    Moved(#[from] Moved),
    /// There is no store in the folder.
    #[error("{0} holds no store")]
    Empty(PathBuf),
    /// It is a copy, and the broker's sessions are the original's.
    #[error(
        "{0} is a copy of another store, or was restored: what is moved takes the broker's sessions along, and those belong to the original. \
         Start a service on it once, which opens sessions of its own, stop it, and move it then"
    )]
    Copy(PathBuf),
    /// The configuration names no stream.
    #[error("the configuration has no `backend = \"jetstream\"` in [store]")]
    NoStream,
    /// What stands in the way.
    #[error("{0}")]
    Failed(String),
}

/// Refuses a folder whose store was moved away.
///
/// # Errors
/// [`Moved`], with where to.
pub(super) fn refuse_moved(folder: &Path) -> Result<(), Moved> {
    let mark = folder.join(MARK);
    if fs::symlink_metadata(&mark).is_err() {
        return Ok(());
    }
    // Whatever it says, it stands there.
    let to = fs::read_to_string(&mark).unwrap_or_else(|error| format!("a place that its file `{MARK}` does not show ({error})"));
    Err(Moved { path: folder.to_owned(), to: to.trim_end().to_owned() })
}

/// Marks a folder whose store has moved, durably.
#[cfg(any(test, feature = "jetstream"))]
fn mark(folder: &Path, to: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    let mut file = fs::File::create(folder.join(MARK))?;
    // It is for whoever starts a service here, also where root has moved the store.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    writeln!(file, "{to}")?;
    file.sync_all()?;
    fs::File::open(folder)?.sync_all()
}

/// Copies the store in the folder `from` to the stream that `to` names, compares both, and marks the folder as moved. `done` is told how many events were
/// copied.
///
/// # Errors
/// See [`MoveStoreError`].
#[cfg(feature = "jetstream")]
pub fn move_store(from: &Path, to: &Config, done: &dyn Fn(u64)) -> Result<MovedStore, MoveStoreError> {
    use crate::config::Backend;
    use crate::log::committer::{encode_checkpoint, recover};
    use crate::log::jetstream_log::import;
    use crate::log::sled_log::{Options, SledLog};

    let Backend::JetStream(servers) = &to.store.backend else { return Err(MoveStoreError::NoStream) };
    if !from.join("identity").exists() {
        return Err(MoveStoreError::Empty(from.to_owned()));
    }
    refuse_moved(from)?;
    let source = SledLog::open(from, Options::for_store(from, to.store.max_size)).map_err(MoveStoreError::Source)?;
    if source.is_copy {
        return Err(MoveStoreError::Copy(from.to_owned()));
    }
    let failed = |error: &dyn std::error::Error| MoveStoreError::Failed(error.to_string());
    let moved = import(&source, super::store::remote::options(servers.clone(), to.store.max_size), done).map_err(|error| failed(&error));
    // Closed as it was found, whatever came of it.
    let outbox = recover(&source).map_err(|error| failed(&error))?;
    source.log.close(&encode_checkpoint(&outbox)).map_err(|error| failed(&error))?;
    let moved = moved?;
    mark(from, &to.store.place()).map_err(|error| {
        MoveStoreError::Failed(format!(
            "it was moved, and marking {} as moved failed: {error}; never start a service on that folder again",
            from.display()
        ))
    })?;
    Ok(MovedStore { first: moved.first.0, last: moved.last.0, pending: moved.pending })
}

/// Copies the store in the stream that `from` names to the folder `to`, in which nothing may be, compares both, and marks the stream as moved. `done` is told
/// how many events were copied.
///
/// # Errors
/// See [`MoveStoreError`].
#[cfg(feature = "jetstream")]
pub fn move_store_back(from: &Config, to: &Path, done: &dyn Fn(u64)) -> Result<MovedStore, MoveStoreError> {
    use crate::config::Backend;
    use crate::log::jetstream_log::export;
    use crate::log::sled_log::Options;

    let Backend::JetStream(servers) = &from.store.backend else { return Err(MoveStoreError::NoStream) };
    let max_size = from.store.max_size;
    let moved = export(super::store::remote::options(servers.clone(), max_size), to, Options::for_store(to, max_size), done);
    let moved = moved.map_err(|error| MoveStoreError::Failed(error.to_string()))?;
    Ok(MovedStore { first: moved.first.0, last: moved.last.0, pending: moved.pending })
}

/// A configuration that needs it is refused before it comes here.
///
/// # Errors
/// Always.
#[cfg(not(feature = "jetstream"))]
pub fn move_store_back(_from: &Config, _to: &Path, _done: &dyn Fn(u64)) -> Result<MovedStore, MoveStoreError> {
    Err(MoveStoreError::NoStream)
}

/// A configuration that needs it is refused before it comes here.
///
/// # Errors
/// Always.
#[cfg(not(feature = "jetstream"))]
pub fn move_store(_from: &Path, _to: &Config, _done: &dyn Fn(u64)) -> Result<MovedStore, MoveStoreError> {
    Err(MoveStoreError::NoStream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{self, StartError};
    use crate::config;
    use crate::log::sled_log::{backup_stopped, fsck};

    #[test]
    fn on_a_folder_that_was_left_no_service_starts_and_the_store_can_still_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        let text = format!("store.path = {:?}\nhttp.listen = '127.0.0.1:0'\nconnection.mqtt.driver = 'mqtt'", store.display().to_string());
        let config = || config::from_str(&text, "test.toml").unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let serve = || {
            runtime.block_on(async { app::start(config()).await?.stop().await.map_err(|error| StartError::Internal(error.to_string())) })
        };
        serve().unwrap();
        mark(&store, "the stream `tidings` on nats://10.0.0.1:4222").unwrap();
        let told = serve().unwrap_err().to_string();
        for part in [store.to_str().unwrap(), "was moved to the stream `tidings` on nats://10.0.0.1:4222,", "delete the file `moved`"] {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
        assert!(fsck(&store, &()).unwrap().findings.is_empty());
        backup_stopped(&store, &folder.path().join("backup"), &()).unwrap();
        fs::remove_file(store.join(MARK)).unwrap();
        serve().unwrap();
    }
}
