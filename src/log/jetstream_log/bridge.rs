//! From the log's thread, which blocks, to the client, which doesn't: a runtime of the log's own, and waits that end.
//!
//! The committer is a plain thread, and readers call from anywhere, a runtime's threads included, where another runtime must not be waited
//! for by its own means. So what is to be done runs here, and its answer comes through a channel.

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// What the answer may take beyond its limit: the way through the channel.
const GRACE: Duration = Duration::from_secs(1);

/// The runtime of one log.
pub(super) struct Bridge {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Bridge {
    pub(super) fn new() -> io::Result<Bridge> {
        // One thread: the client's work is to move bytes, and pages are made and read elsewhere.
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("nats").enable_all().build()?;
        Ok(Bridge { runtime: Some(runtime) })
    }

    /// Waits for an answer for at most `limit`; none if it did not come.
    pub(super) fn wait<T: Send + 'static>(&self, limit: Duration, act: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.spawn(async move {
            if let Ok(answer) = tokio::time::timeout(limit, act).await {
                // Whoever asked may have given up.
                let _ = sender.send(answer);
            }
        });
        receiver.recv_timeout(limit.saturating_add(GRACE)).ok()
    }

    /// Has something done that nobody waits for.
    pub(super) fn spawn(&self, act: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(act);
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: the last reader may go away on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}
