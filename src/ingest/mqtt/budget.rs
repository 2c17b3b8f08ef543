//! How much may be read ahead: bytes that have come and are not durable, of one connection and of all.

use std::sync::Arc;

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

    /// Waits for what is missing for `usage` bytes.
    pub fn wait_for(&self, usage: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + 'static {
        let missing = u32::try_from(self.missing(usage)).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget);
        async move { budget.acquire_many_owned(missing).await.ok() }
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
}
