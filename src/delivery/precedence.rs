//! Fresh first, replay in the gaps: who of a connection's lanes may send.
//!
//! ```text
//!   fresh lanes ──▶ has something to send? ──▶ one count for the connection ──▶ replay lane: 0: sends · otherwise: gives way
//! ```
//! A fresh lane has something to send from when it has read a delivery until that is written, and while it reads. What waits for a retry, or behind
//! one that does, is nothing that could be sent. So a replay lane sends when every fresh one has written all that it has; what it may have on the wire
//! at once is little, and that is by how much a fresh report can be late.
//!
//! There is no share kept for replays: while fresh reports come in faster than the broker takes them, replays wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// The fresh lanes of one connection, together.
#[derive(Debug, Clone)]
pub struct Precedence(Arc<watch::Sender<usize>>);

/// A lane's part in it.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Its deliveries go first.
    Fresh(Arc<FreshTurn>),
    /// It sends when nobody else has anything to send.
    Replay(watch::Receiver<usize>),
}

/// Whether a fresh lane has something to send. Gone with the lane.
#[derive(Debug)]
pub struct FreshTurn {
    busy: Arc<watch::Sender<usize>>,
    is_busy: AtomicBool,
}

impl Default for Precedence {
    fn default() -> Self {
        Precedence(Arc::new(watch::channel(0).0))
    }
}

impl Precedence {
    /// A fresh lane's part. It counts as busy from now on, until it says otherwise: what it has in the log it has not read yet.
    pub fn fresh(&self) -> Turn {
        self.0.send_modify(|busy| *busy += 1);
        Turn::Fresh(Arc::new(FreshTurn { busy: Arc::clone(&self.0), is_busy: AtomicBool::new(true) }))
    }

    /// A replay lane's part.
    pub fn replay(&self) -> Turn {
        Turn::Replay(self.0.subscribe())
    }
}

impl Turn {
    /// A fresh lane says whether it has something to send.
    pub fn say(&self, is_busy: bool) {
        let Turn::Fresh(turn) = self else { return };
        if turn.is_busy.swap(is_busy, Ordering::Relaxed) != is_busy {
            turn.busy.send_modify(|busy| *busy = if is_busy { *busy + 1 } else { busy.saturating_sub(1) });
        }
    }

    /// Whether this lane has to let others go first.
    pub fn gives_way(&self) -> bool {
        match self {
            Turn::Fresh(_) => false,
            Turn::Replay(busy) => *busy.borrow() > 0,
        }
    }

    /// Waits until it has to give way, or no longer has to: whichever is not so now.
    pub async fn changed(&mut self, gives_way: bool) {
        if let Turn::Replay(busy) = self
            && busy.wait_for(|busy| (*busy > 0) != gives_way).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Drop for FreshTurn {
    fn drop(&mut self) {
        if *self.is_busy.get_mut() {
            self.busy.send_modify(|busy| *busy = busy.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_gives_way_while_any_fresh_lane_has_something_to_send() {
        let precedence = Precedence::default();
        let replay = precedence.replay();
        assert!(!replay.gives_way(), "nobody is there");
        let [one, other] = [precedence.fresh(), precedence.fresh()];
        one.say(false);
        assert!(replay.gives_way(), "the other has not said yet");
        other.say(false);
        other.say(false);
        assert!(!replay.gives_way() && !one.gives_way());
        one.say(true);
        assert!(replay.gives_way());
        drop(one.clone());
        assert!(replay.gives_way(), "it is there still");
        drop(one);
        assert!(!replay.gives_way(), "a lane that has gone holds nobody up");
    }
}
