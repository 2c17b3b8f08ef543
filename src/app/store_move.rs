//! A store moves from a folder to servers, or back: for `tidings move-store`.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::log::OpenError;

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

/// Copies the store in the folder `from` to the stream that `to` names, and compares both. `done` is told how many events were copied.
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
    let source = SledLog::open(from, Options::for_store(from, to.store.max_size)).map_err(MoveStoreError::Source)?;
    if source.is_copy {
        return Err(MoveStoreError::Copy(from.to_owned()));
    }
    let failed = |error: &dyn std::error::Error| MoveStoreError::Failed(error.to_string());
    let moved = import(&source, super::store::remote::options(servers.clone(), to.store.max_size), done).map_err(|error| failed(&error));
    // Closed as it was found, whatever came of it.
    let outbox = recover(&source).map_err(|error| failed(&error))?;
    source.log.close(&encode_checkpoint(&outbox)).map_err(|error| failed(&error))?;
    moved.map(|moved| MovedStore { first: moved.first.0, last: moved.last.0, pending: moved.pending })
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
