//! Work that comes to its end also when nobody waits for it any more.
//!
//! ```text
//!   awaited ─ polled where it is awaited ─▶ its output
//!      └ given up ─▶ a task of its own ─▶ its end, of which nobody hears
//! ```
//! A task for each request would do the same, and costs one: its memory, and two wake-ups instead of one. Clients that go away are rare.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;

/// Work that is finished whatever becomes of whoever waits for it.
pub struct Finishing<F>(Option<Pin<Box<F>>>)
where
    F: Future<Output: Send> + Send + 'static;

/// The work panicked; its message is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

impl<F: Future<Output: Send> + Send + 'static> Finishing<F> {
    /// Work that begins when it is awaited for the first time.
    pub fn new(work: F) -> Self {
        Finishing(Some(Box::pin(work)))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for Finishing<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let work = self.0.as_mut().expect("nobody awaits what has ended");
        let output = match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(polled) => Ok(ready!(polled)),
            Err(_) => Err(Panicked),
        };
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Finishing<F> {
    fn drop(&mut self) {
        // Without a runtime the process is at its end, and so is the work.
        if let (Some(rest), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn its_output_is_given_to_whoever_waits() {
        assert_eq!(Finishing::new(async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn what_is_given_up_half_way_is_finished_all_the_same() {
        let (go_on, told) = oneshot::channel::<()>();
        let (finished, is_finished) = oneshot::channel();
        let mut work = Box::pin(Finishing::new(async move {
            told.await.unwrap();
            finished.send(()).unwrap();
        }));
        assert!(futures_util::poll!(work.as_mut()).is_pending());
        drop(work);
        go_on.send(()).unwrap();
        is_finished.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_told_and_its_rest_is_not_gone_on_with() {
        let work = Finishing::new(async {
            tokio::task::yield_now().await;
            panic!("on purpose");
        });
        assert_eq!(work.await, Err(Panicked));
    }
}
