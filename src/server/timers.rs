//! Timers that are used again: nearly every wait of a service ends long before its limit, and the next one begins at once.
//!
//! ```text
//!   lend ─▶ a timer that lies here, put off; or a new one ─▶ the wait ends ─▶ it lies here again, still running
//! ```
//! A timer that runs is put off without a lock and without memory, as long as it is put off to later; to make one, and to take it out of the runtime's wheel,
//! takes both. One that runs out while it lies here wakes whom it woke last, for nothing.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt;
use tokio::time::{Sleep, sleep_until};

/// So many timers lie here at most: as many as there are connections.
const MOST: usize = 1_024;

/// A place for timers. All clones are the same place.
#[derive(Debug, Clone, Default)]
pub struct Timers(Arc<Mutex<Vec<Pin<Box<Sleep>>>>>);

/// A timer, for as long as it is needed.
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    home: Timers,
}

impl Timers {
    /// A timer that ends at this time. Asked for within a runtime.
    pub fn lend(&self, deadline: Instant) -> Timer {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let sleep = match used {
            Some(mut sleep) => {
                sleep.as_mut().reset(deadline.into());
                sleep
            }
            None => Box::pin(sleep_until(deadline.into())),
        };
        Timer { sleep: Some(sleep), home: self.clone() }
    }

    /// What comes of some work within this time, or nothing. Work that ends at once needs no timer.
    pub async fn limit<F: Future>(&self, time: Duration, work: F) -> Option<F::Output> {
        let (mut work, mut timer) = (pin!(work), None);
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            ready!(Pin::new(timer.get_or_insert_with(|| self.lend(Instant::now() + time))).poll(cx));
            Poll::Ready(None)
        })
        .await
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().map_or(Poll::Ready(()), |sleep| sleep.as_mut().poll(cx))
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut lying = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lying.len() < MOST {
            lying.extend(self.sleep.take());
        }
    }
}

impl rt::Sleep for Timer {}

/// hyper makes a timer for the head of each request.
impl rt::Timer for Timers {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        rt::Timer::sleep_until(self, Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(self.lend(deadline))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const LATE: Duration = Duration::from_secs(3_600);

    fn lying(timers: &Timers) -> usize {
        timers.0.lock().unwrap().len()
    }

    #[tokio::test]
    async fn work_that_takes_too_long_comes_to_nothing_and_other_work_to_its_output() {
        let timers = Timers::default();
        assert_eq!(timers.limit(SOON, pending::<()>()).await, None);
        assert_eq!(timers.limit(LATE, tokio::task::yield_now()).await, Some(()));
        assert_eq!(timers.limit(SOON, pending::<()>()).await, None, "a timer that is brought forward ends in time, too");
        assert_eq!(lying(&timers), 1, "one timer did for all of them");
    }

    #[tokio::test]
    async fn a_timer_that_has_run_out_does_not_end_the_next_wait() {
        let timers = Timers::default();
        assert_eq!(timers.limit(SOON, pending::<()>()).await, None);
        let mut next = pin!(timers.limit(LATE, pending::<()>()));
        assert!(futures_util::poll!(next.as_mut()).is_pending());
    }

    #[tokio::test]
    async fn work_that_ends_at_once_needs_no_timer() {
        let timers = Timers::default();
        assert_eq!(timers.limit(LATE, async { 7 }).await, Some(7));
        assert_eq!(lying(&timers), 0);
    }

    #[tokio::test]
    async fn waits_at_the_same_time_have_a_timer_each() {
        let timers = Timers::default();
        let (_one, soon) = (timers.lend(Instant::now() + LATE), timers.limit(SOON, pending::<()>()));
        assert_eq!(soon.await, None);
    }
}
