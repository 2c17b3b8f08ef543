//! By what a request is handled: routes, lanes and limits. In force together, and replaced together while requests come in.
//!
//! ```text
//!   request A ─ current() ────▶ routed, bound, committed ─┐
//!   reload    ─ replace() ── waits for A ─────────────────┴─ replaced ─┐
//!   request B ─ current() ── waits ────────────────────────────────────┴─▶ routed, bound, committed by the new one
//! ```
//!
//! A request holds what it began with until its commit has been answered, and a replacement lets nobody begin meanwhile. So everything that was
//! bound to the old lanes stands before everything that is bound to the new ones, also in the log: order per topic rests on that. And
//! nothing more comes to lanes that only the old one knew. It costs the requests of that moment one commit.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

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

/// A routing that somebody is at work by.
pub type InUse = OwnedRwLockReadGuard<Routing>;

/// The routing in force. Cheap to clone; all clones see a replacement.
#[derive(Debug, Clone)]
pub struct InForce(Arc<RwLock<Routing>>);

impl InForce {
    /// Puts the first routing in force.
    pub fn new(routing: Routing) -> Self {
        InForce(Arc::new(RwLock::new(routing)))
    }

    /// The routing in force. To be held until what it led to is durable, and no longer; never to be asked for by who holds it already.
    pub async fn current(&self) -> InUse {
        Arc::clone(&self.0).read_owned().await
    }

    /// Puts another routing in force, whose lanes have to be durable. When this returns nobody is at work by the old one. Takes as long as the
    /// commits that are under way; given up before that, nothing is replaced.
    pub async fn replace(&self, routing: Routing) {
        *self.0.write().await = routing;
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn routing(max_report: usize) -> Routing {
        Routing { routes: Routes::default(), lanes: LaneDirectory::default(), max_report, max_batch: max_report }
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_replacement_waits_for_who_is_at_work_and_who_comes_later_waits_for_the_replacement() {
        let in_force = InForce::new(routing(1));
        let Poll::Ready(before) = poll(pin!(in_force.current())) else { panic!("nobody is in the way") };
        let mut replacing = pin!(in_force.replace(routing(2)));
        assert!(poll(replacing.as_mut()).is_pending());
        let mut later = pin!(in_force.current());
        assert!(poll(later.as_mut()).is_pending());
        assert_eq!(before.max_report, 1);
        drop(before);
        assert!(poll(later.as_mut()).is_pending(), "the replacement was there first");
        assert!(poll(replacing.as_mut()).is_ready());
        let Poll::Ready(later) = poll(later.as_mut()) else { panic!("it is replaced") };
        assert_eq!(later.max_report, 2);
    }

    #[test]
    fn a_replacement_that_is_given_up_lets_everybody_go_on() {
        let in_force = InForce::new(routing(1));
        let Poll::Ready(_before) = poll(pin!(in_force.current())) else { panic!("nobody is in the way") };
        {
            let mut replacing = pin!(in_force.replace(routing(2)));
            assert!(poll(replacing.as_mut()).is_pending());
        }
        let Poll::Ready(later) = poll(pin!(in_force.current())) else { panic!("nobody replaces anything") };
        assert_eq!(later.max_report, 1);
    }
}
