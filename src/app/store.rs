//! The store's place in the service: which log is opened, how, and how long one of its commits may take.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::StartError;
use super::members::Member;
use super::store_move::refuse_moved;
use crate::config::{Backend, Config};
use crate::core::event::Event;
use crate::core::outbox::FoldError;
use crate::core::types::InstanceId;
use crate::ingest::http;
use crate::log::committer::{self, CommitError, Limits, LogHandle, now};
use crate::log::sled_log::{Options, SledLog};
use crate::log::{LastStop, OpenError, Opened};
use crate::metrics::Metrics;

/// A commit that takes longer than this hangs: the disk is gone, or a thread of the store has died. The process ends, and restarts.
const COMMIT_HANGS: Duration = Duration::from_secs(60);

/// Beyond what a commit to other machines may be tried: it ends by itself, and says more than a watchdog.
const BEYOND_PATIENCE: Duration = Duration::from_secs(60);

/// How long a commit may take before it is taken for dead.
pub(super) fn commit_hangs(config: &Config) -> Duration {
    match &config.store.backend {
        Backend::Sled => COMMIT_HANGS,
        Backend::JetStream(_) => remote::PATIENCE + BEYOND_PATIENCE,
    }
}

/// So long an answer waits for a commit to servers before a producer is told that nobody knows yet: longer than an election of theirs takes as a rule, and shorter than
/// most clients and proxies wait.
const REMOTE_COMMIT: Duration = Duration::from_secs(15);

/// How long an answer over HTTP waits for its commit.
pub(super) fn commit_timeout(config: &Config) -> Duration {
    match &config.store.backend {
        Backend::Sled => http::Limits::default().commit_timeout,
        Backend::JetStream(_) => REMOTE_COMMIT,
    }
}

/// The folder that the store is in, if it is in one.
pub(super) fn folder(config: &Config) -> Option<PathBuf> {
    matches!(config.store.backend, Backend::Sled).then(|| config.store.path.clone())
}

/// Opens and recovers the store, off the runtime's threads.
///
/// Where the log is shared this process is one instance of several.
pub(super) async fn open(config: &Config, limits: Limits, metrics: &Arc<Metrics>) -> Result<(LogHandle, Option<Member>), StartError> {
    let (store, path, max_size) = (config.store.backend.clone(), config.store.path.clone(), limits.max_size);
    let opening = tokio::task::spawn_blocking(move || {
        let opened = match store {
            Backend::Sled => {
                refuse_moved(&path)?;
                SledLog::open(&path, Options::for_store(&path, max_size))?
            }
            Backend::JetStream(servers) => remote::open(servers, max_size)?,
        };
        let outbox = committer::recover(&opened)?;
        Ok::<(Opened, _), StartError>((opened, outbox))
    });
    let (opened, outbox) = opening.await.map_err(|error| StartError::Internal(error.to_string()))??;
    match opened.last_stop {
        LastStop::Fresh => tracing::info!(store = config.store.place(), "a new store"),
        LastStop::Clean => {}
        // Others may be at work on it this moment.
        LastStop::Unclean if opened.log.is_shared() => {}
        LastStop::Unclean => tracing::warn!("the last run did not stop cleanly; everything that was accepted has been recovered"),
    }
    let (log, member) = match opened.log.peers() {
        None => (committer::start(opened.log, outbox, limits, Arc::clone(metrics))?, None),
        Some(peers) => {
            let me = getrandom::u64().map_err(|error| StartError::Internal(format!("the system gives no random numbers: {error}")))?;
            let member = Member::new(InstanceId(me), name(), peers);
            tracing::info!(instance = %member.me, name = member.name, "one instance of several on this log");
            (committer::start_shared(opened.log, outbox, limits, Arc::clone(metrics), member.me)?, Some(member))
        }
    };
    if opened.is_copy {
        let reason = "the store is a copy of another".to_owned();
        tracing::warn!("the store is a copy: the broker's sessions are left to the original, and new ones are opened");
        match log.record(vec![Event::EpochBumped { reason, at: now() }]).await {
            // Another instance has started on the copy at the same time, and was first.
            Ok(_) | Err(CommitError::ChangedMeanwhile(FoldError::AlreadyBumped)) => {}
            Err(error) => return Err(error.into()),
        }
        log.adopt_copy().await?;
    }
    Ok((log, member))
}

/// Names this process for the people who run it.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} (pid {})", host.trim(), std::process::id())
}

#[cfg(feature = "jetstream")]
pub(super) mod remote {
    use super::{Duration, OpenError, Opened};
    use crate::config::{JetStreamConfig, JetStreamLogin};
    use crate::log::jetstream_log::{JetStreamLog, Login, Options};

    pub(super) const PATIENCE: Duration = Options::PATIENCE;

    pub(super) fn open(config: JetStreamConfig, max_size: u64) -> Result<Opened, OpenError> {
        JetStreamLog::open(options(config, max_size))
    }

    /// The log's options as the configuration has them.
    pub(in crate::app) fn options(config: JetStreamConfig, max_size: u64) -> Options {
        let login = match config.login {
            None => Login::Nobody,
            Some(JetStreamLogin::User(user, password)) => Login::User { user, password: password.expose().to_owned() },
            Some(JetStreamLogin::Token(token)) => Login::Token(token.expose().to_owned()),
            Some(JetStreamLogin::Credentials(file)) => Login::Credentials(file),
        };
        Options {
            replicas: config.replicas.into(),
            login,
            ca_certs: config.ca_certs,
            identity: config.identity.map(|identity| (identity.certfile, identity.keyfile)),
            instance: super::name(),
            ..Options::new(config.servers, &config.stream, max_size)
        }
    }
}

/// A configuration that needs it is refused before it comes here.
#[cfg(not(feature = "jetstream"))]
mod remote {
    use super::{Duration, OpenError, Opened};
    use crate::config::JetStreamConfig;

    pub(super) const PATIENCE: Duration = Duration::ZERO;

    pub(super) fn open(config: JetStreamConfig, _max_size: u64) -> Result<Opened, OpenError> {
        let what = "this build has no JetStream".to_owned();
        Err(OpenError::Unreachable { store: config.stream, what })
    }
}
