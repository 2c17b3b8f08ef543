//! How much may be read ahead: bytes that have come and are not durable, of one connection and of all.
//!
//! A packet gets what it needs in one piece or waits for it. Who waits holds whole packets, which go to the store, and of the one that has begun what came with
//! its first bytes. So those that have room use it or are closed, and hardly anybody waits for somebody who waits as well; where many hundreds do, the wait has an end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Each connection may hold so many bytes without asking: a few reports.
pub const FREE: usize = 16 << 10;

/// What one connection holds of the common budget.
#[derive(Debug)]
pub struct Lease {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Lease {
    /// Nothing yet.
    pub fn new(budget: Arc<Semaphore>) -> Self {
        Lease { budget, held: None }
    }

    fn bytes(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// What is missing for `usage` bytes.
    fn missing(&self, usage: usize) -> usize {
        usage.saturating_sub(FREE + self.bytes())
    }

    /// Whether `usage` bytes may be held; takes what is missing if it is there.
    pub fn covers(&mut self, usage: usize) -> bool {
        let missing = self.missing(usage);
        if missing == 0 {
            return true;
        }
        let taken = u32::try_from(missing).ok().and_then(|missing| Arc::clone(&self.budget).try_acquire_many_owned(missing).ok());
        let is_taken = taken.is_some();
        self.add(taken);
        is_taken
    }

    /// Whether what is held is enough for `usage` bytes.
    pub fn has(&self, usage: usize) -> bool {
        self.missing(usage) == 0
    }

    /// Waits for what is missing for `usage` bytes, but no longer than `patience`: none then.
    pub fn wait_for(&self, usage: usize, patience: Duration) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + 'static {
        let missing = u32::try_from(self.missing(usage)).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget);
        async move { tokio::time::timeout(patience, budget.acquire_many_owned(missing)).await.ok()?.ok() }
    }

    /// Takes what was waited for.
    pub fn add(&mut self, more: Option<OwnedSemaphorePermit>) {
        match (&mut self.held, more) {
            (Some(held), Some(more)) => held.merge(more),
            (held @ None, more) => *held = more,
            (Some(_), None) => {}
        }
    }

    /// Gives back what is not needed for `usage` bytes.
    pub fn shrink_to(&mut self, usage: usize) {
        let spare = self.bytes().saturating_sub(usage.saturating_sub(FREE));
        if spare > 0
            && let Some(held) = &mut self.held
        {
            drop(held.split(spare));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_has_given_back_another_may_take() {
        let budget = Arc::new(Semaphore::new(100));
        let (mut one, mut other) = (Lease::new(Arc::clone(&budget)), Lease::new(Arc::clone(&budget)));
        assert!(one.covers(FREE + 80) && one.covers(FREE + 70), "what is taken stays until it is given back");
        assert!(other.covers(FREE + 20) && !other.covers(FREE + 21), "and no more is there");
        one.shrink_to(FREE + 10);
        assert!(other.covers(FREE + 90));
        drop((one, other));
        assert_eq!(budget.available_permits(), 100);
    }

    #[tokio::test]
    async fn two_that_hold_all_and_wait_for_more_do_not_wait_for_each_other_for_ever() {
        let budget = Arc::new(Semaphore::new(100));
        let (mut one, mut other) = (Lease::new(Arc::clone(&budget)), Lease::new(Arc::clone(&budget)));
        assert!(one.covers(FREE + 50) && other.covers(FREE + 50));
        assert!(one.wait_for(FREE + 60, Duration::from_millis(10)).await.is_none(), "there is nothing to be had");
        let waiting = other.wait_for(FREE + 60, Duration::from_secs(600));
        drop(one);
        other.add(waiting.await);
        assert!(other.has(FREE + 60), "who is left goes on with what the first one had");
    }
}
