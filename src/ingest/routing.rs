//! By what a request is handled: routes, lanes and limits. In force together, and replaced together while requests come in.
//!
//! ```text
//!   request ─▶ current() ─▶ routed, bound, committed by it ─▶ let go
//!   reload  ─▶ replace() ─▶ who comes from now on gets the new one ─▶ Replaced::unused(): the last request of the old one is committed
//! ```
//!
//! A request holds what it began with until its commit has been answered. So when the old one is unused, nothing more comes to the lanes that
//! only it knew: they may be retired, and the lanes that follow them may begin.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::oneshot;

use super::lanes::LaneDirectory;
use crate::core::route::Routes;

/// Routes, lanes and limits.
#[derive(Debug)]
pub struct Routing {
    /// Which reporters want a report.
    pub routes: Routes,
    /// Which lane a delivery takes. Has every connection that the routes name.
    pub lanes: LaneDirectory,
    /// A report may be so large, in bytes (`http.max_report`).
    pub max_report: usize,
    /// An NDJSON body may be so large, in bytes (`http.max_batch`).
    pub max_batch: usize,
}

/// A routing, held by whoever is at work by it.
#[derive(Debug)]
pub struct Held {
    routing: Routing,
    /// Goes with the last holder, which is how [`Replaced`] learns of it.
    _in_use: oneshot::Sender<Infallible>,
}

impl Deref for Held {
    type Target = Routing;

    fn deref(&self) -> &Routing {
        &self.routing
    }
}

/// The routing in force. Cheap to clone; all clones see a replacement at once.
#[derive(Debug, Clone)]
pub struct InForce(Arc<RwLock<Slot>>);

#[derive(Debug)]
struct Slot {
    held: Arc<Held>,
    unused: oneshot::Receiver<Infallible>,
}

impl Slot {
    fn new(routing: Routing) -> Self {
        let (in_use, unused) = oneshot::channel();
        Slot { held: Arc::new(Held { routing, _in_use: in_use }), unused }
    }
}

/// A routing that is no longer in force, and may still be in use.
#[derive(Debug)]
#[must_use = "lanes that only the old routing knows have to wait until it is unused"]
pub struct Replaced(oneshot::Receiver<Infallible>);

impl Replaced {
    /// Waits until no request is at work by it any more. A request ends with its commit, so this takes as long as one.
    pub async fn unused(self) {
        // Nothing is ever sent: what comes is that the sender is gone.
        let _ = self.0.await;
    }
}

impl InForce {
    /// Puts the first routing in force.
    pub fn new(routing: Routing) -> Self {
        InForce(Arc::new(RwLock::new(Slot::new(routing))))
    }

    /// The routing in force. To be held until what it led to is durable, and no longer.
    pub fn current(&self) -> Arc<Held> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).held)
    }

    /// Puts another routing in force. Its lanes have to be durable.
    pub fn replace(&self, routing: Routing) -> Replaced {
        let mut slot = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *slot, Slot::new(routing));
        Replaced(old.unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(max_report: usize) -> Routing {
        Routing { routes: Routes::default(), lanes: LaneDirectory::default(), max_report, max_batch: max_report }
    }

    #[test]
    fn a_request_keeps_what_it_began_with_and_the_next_one_gets_what_is_new() {
        let in_force = InForce::new(routing(1));
        let before = in_force.current();
        drop(in_force.clone().replace(routing(2)));
        assert_eq!((before.max_report, in_force.current().max_report), (1, 2));
    }

    #[test]
    fn the_old_one_is_unused_when_its_last_request_is_done_and_not_before() {
        let in_force = InForce::new(routing(1));
        let (one, other) = (in_force.current(), in_force.current());
        let mut replaced = in_force.replace(routing(2));
        for request in [one, other] {
            assert!(replaced.0.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
            drop(request);
        }
        assert!(replaced.0.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    }
}
