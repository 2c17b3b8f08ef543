//! When a lane wakes up by itself, and the chance that spreads lanes which wait for the same broker.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::core::types::Millis;

/// A lane that waits for nothing looks at itself after this, in milliseconds.
const NOTHING_DUE_MS: u64 = 3_600_000;

/// One timer for a lane's whole life. What is due moves on with nearly every packet, and setting a timer costs more than handling one: so it is set
/// again only if something is due sooner than it is, and otherwise goes off for nothing now and then.
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// When it goes off.
    at: Millis,
}

impl Timer {
    pub(super) fn new() -> Self {
        Timer { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), at: Millis(0) }
    }

    /// Goes off when it is due, or before.
    pub(super) async fn until(&mut self, now: Millis, due: Option<Millis>) {
        let due = due.unwrap_or(now.plus(NOTHING_DUE_MS));
        if self.at <= now || due < self.at {
            self.at = due;
            self.sleep.as_mut().reset(Instant::now() + Duration::from_millis(due.since(now)));
        }
        self.sleep.as_mut().await;
    }
}

/// Random numbers for backoff, of no more than that quality: one is asked for with everything that happens.
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new() -> Self {
        // Without randomness lanes come back together, which is no harm in itself.
        Jitter(getrandom::u64().unwrap_or(u64::MAX / 2) | 1)
    }

    /// Marsaglia's xorshift.
    pub(super) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}
