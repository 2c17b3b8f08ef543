//! Ctrl-C, and its relatives where there are any: for commands that have something to take down.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a command. Once this exists, they don't end the process by themselves.
pub struct Signals {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
    /// The terminal was closed.
    #[cfg(unix)]
    hangup: Signal,
}

#[cfg(unix)]
impl Signals {
    /// Listens for them.
    ///
    /// # Errors
    /// If the system doesn't let it.
    pub fn new() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next one.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    /// Listens for them.
    ///
    /// # Errors
    /// If the system doesn't let it.
    pub fn new() -> io::Result<Self> {
        Ok(Signals {})
    }

    /// Resolves at the next one.
    pub async fn any(&mut self) {
        // Where Ctrl-C can't be listened for, it ends the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
