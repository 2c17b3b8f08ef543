//! The servers of a connection: opening one, and finding out which can be reached.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::Lane;
use super::socket::Connecting;
use crate::delivery::transport;

/// A connection that takes too long is given up so much before the session gives it up: the transport knows which step it was.
const STEP_AHEAD: Duration = Duration::from_millis(500);

/// A look for the most preferred server that can be reached, by its place.
pub(super) type Looking = Pin<Box<dyn Future<Output = Option<usize>> + Send>>;

impl Lane<'_> {
    /// Begins to connect to one of the servers.
    pub(super) fn open(&self, server: usize) -> Connecting {
        let (address, tls) = (self.config.servers[server].clone(), self.config.tls.clone());
        let limit = Duration::from_millis(self.config.settings.connect_timeout_ms).saturating_sub(STEP_AHEAD);
        Box::pin(async move { transport::connect(&address, tls.as_ref(), limit).await })
    }

    /// Begins to look which of the servers before this one can be reached. Nothing is said to them.
    pub(super) fn look(&mut self, before: usize) {
        let attempts: Vec<Connecting> = (0..before).map(|server| self.open(server)).collect();
        begin(&mut self.looking, async move {
            for (server, attempt) in attempts.into_iter().enumerate() {
                if attempt.await.is_ok() {
                    return Some(server);
                }
            }
            None
        });
    }
}

/// Begins a look, unless one is under way: a server that swallows packets takes longer than it may be until the next, which would never get beyond it.
fn begin(under_way: &mut Option<Looking>, look: impl Future<Output = Option<usize>> + Send + 'static) {
    under_way.get_or_insert_with(|| Box::pin(look));
}

/// The end of a look, if there is one under way.
pub(super) async fn looking(under_way: &mut Option<Looking>) -> Option<usize> {
    match under_way {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_that_takes_long_is_not_begun_anew_and_finds_what_is_behind_a_server_that_swallows_packets() {
        let (gives_up, swallowed) = tokio::sync::oneshot::channel::<()>();
        let mut under_way = None;
        begin(&mut under_way, async move {
            let _ = swallowed.await;
            Some(1)
        });
        for _ in 0..3 {
            begin(&mut under_way, std::future::pending());
        }
        gives_up.send(()).expect("the first look is still under way");
        assert_eq!(looking(&mut under_way).await, Some(1));
    }
}
