//! Why the log could not be opened, written or read.

use std::path::PathBuf;

use crate::core::types::Seq;

/// Why an append failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The disk failed, or is full. Nothing of this commit is accepted, and the log is dead until a restart.
    #[error("writing to the store failed: {0}; nothing of this request was accepted. Look at the disk (space, health), then restart")]
    Io(String),
    /// The events can't be stored: a single one is larger than the format allows.
    #[error("an event of {size} bytes is larger than the store takes ({limit} bytes)")]
    TooLarge {
        /// Its encoded size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The log is shared, and others have appended to it first: catch up, and try again.
    #[error("another instance appended first; nothing of this was stored")]
    Overtaken,
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The generation was deleted: the delivery is done and past its retention.
    #[error("event {0} is past the retention and no longer stored")]
    Gone(Seq),
    /// What is stored is not what was written.
    #[error("the store is damaged at event {seq}: {what}. Stop the service, copy the store away, then see the runbook")]
    Damaged {
        /// Where.
        seq: Seq,
        /// What is wrong.
        what: String,
    },
    /// The disk failed.
    #[error("reading the store failed: {0}")]
    Io(String),
}

/// Why a store could not be opened. But for [`OpenError::NotShown`], nothing has been changed when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store {path} is in use by another process{holder}; stop that one, or choose another `store.path`")]
    Locked {
        /// The store.
        path: PathBuf,
        /// ` (pid 123)` if known.
        holder: String,
    },
    /// A newer release wrote it.
    #[error(
        "the store {path} has format {found} (so says `identity` in it), and this release of Tidings knows formats up to {known}; \
         run the release that wrote it, or restore a backup made before the upgrade"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The folder holds something else.
    #[error("{path} is not a Tidings store: {what}; choose an empty or new folder as `store.path`")]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Something that was accepted is missing or unreadable.
    #[error(
        "the store {path} is damaged: {what}. Nothing was opened or changed. Copy the folder away before anything else, then see the runbook"
    )]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What and where.
        what: String,
    },
    /// The raw files held all that was accepted, and the database does not show it. Here, and only here, it has been opened.
    #[error(
        "the store {path} does not show what it holds: {what}. All that was accepted was found in its raw files before they were opened. \
         Copy the folder away before anything else, then see the runbook"
    )]
    NotShown {
        /// The store.
        path: PathBuf,
        /// What and where.
        what: String,
    },
    /// The disk failed, is full, or denies access.
    #[error("opening the store {path} failed: {what}; look at the disk (space, health, rights), then start again")]
    Io {
        /// The store.
        path: PathBuf,
        /// What failed.
        what: String,
    },
    /// The servers that keep it don't answer, or refuse.
    #[error("the store {store} can't be opened: {what}; look at the servers (`nats server report jetstream`), then start again")]
    Unreachable {
        /// The stream and its servers.
        store: String,
        /// What failed.
        what: String,
    },
    /// Instances are at work on the stream, which is to be moved.
    #[error("the store {store} is in use by {holder}; stop every Tidings on it first")]
    InUse {
        /// The stream and its servers.
        store: String,
        /// One of them.
        holder: String,
    },
    /// The stream, or its bucket, is not what was made for it.
    #[error("the store {store} is not what Tidings makes: {what}")]
    NotAStream {
        /// The stream and its servers.
        store: String,
        /// What was found, and what would be right.
        what: String,
    },
    /// Something that was accepted is missing from the stream.
    #[error("the store {store} is damaged: {what}. Nothing was changed. Back the stream up before anything else (`nats stream backup`)")]
    StreamDamaged {
        /// The stream and its servers.
        store: String,
        /// What and where.
        what: String,
    },
}

impl AppendError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            AppendError::Io(_) => "store_failed",
            AppendError::TooLarge { .. } => "too_large",
            AppendError::Overtaken => "overtaken",
        }
    }
}

impl ReadError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            ReadError::Gone(_) => "gone",
            ReadError::Damaged { .. } => "store_damaged",
            ReadError::Io(_) => "store_failed",
        }
    }
}

impl OpenError {
    /// Stable name for logs.
    pub fn code(&self) -> &'static str {
        match self {
            OpenError::Locked { .. } | OpenError::InUse { .. } => "store_locked",
            OpenError::Newer { .. } => "store_newer",
            OpenError::NotAStore { .. } | OpenError::NotAStream { .. } => "not_a_store",
            OpenError::Damaged { .. } | OpenError::NotShown { .. } | OpenError::StreamDamaged { .. } => "store_damaged",
            OpenError::Io { .. } | OpenError::Unreachable { .. } => "store_failed",
        }
    }
}
