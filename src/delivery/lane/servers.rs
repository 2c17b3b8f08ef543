//! The servers of a connection: opening one, and finding out which can be reached.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::TcpStream;

use super::Lane;
use super::socket::Connecting;
use crate::core::address::Address;

/// A look for the most preferred server that can be reached, by its place.
pub(super) type Looking = Pin<Box<dyn Future<Output = Option<usize>> + Send>>;

impl Lane<'_> {
    /// Begins to connect to one of the servers.
    pub(super) fn open(&self, server: usize) -> Connecting {
        match (&self.config.servers[server], &self.config.tls) {
            (Address::Tcp { host, port }, None) => Box::pin(TcpStream::connect((host.clone(), *port))),
            // Never in the clear what was meant to be encrypted.
            (address, _) => {
                let message = format!("{} needs a transport that is not available in this version", address.written());
                Box::pin(std::future::ready(Err(std::io::Error::other(message))))
            }
        }
    }

    /// Begins to look which of the servers before this one can be reached. Nothing is said to them.
    pub(super) fn look(&mut self, before: usize) {
        let attempts: Vec<Connecting> = (0..before).map(|server| self.open(server)).collect();
        let limit = Duration::from_millis(self.config.settings.connect_timeout_ms);
        self.looking = Some(Box::pin(async move {
            for (server, attempt) in attempts.into_iter().enumerate() {
                if matches!(tokio::time::timeout(limit, attempt).await, Ok(Ok(_))) {
                    return Some(server);
                }
            }
            None
        }));
    }
}

/// The end of a look, if there is one under way.
pub(super) async fn looking(under_way: &mut Option<Looking>) -> Option<usize> {
    match under_way {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}
