//! How long something that has failed waits before it starts again.

use std::time::Duration;

/// What it failed at may end by itself.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// And after this at most.
const AFTER_FAILURE_AT_MOST: Duration = Duration::from_secs(300);

/// The waits between starts of something that fails: each twice as long as the one before.
#[derive(Debug)]
pub(super) struct Patience {
    next: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { next: AFTER_FAILURE }
    }
}

impl Patience {
    /// It has failed after so long. What works for longer than the longest wait does not fail again and again: it failed once, as at first.
    pub(super) fn after(&mut self, worked: Duration) -> Duration {
        let wait = if worked > AFTER_FAILURE_AT_MOST { AFTER_FAILURE } else { self.next };
        self.next = (wait * 2).min(AFTER_FAILURE_AT_MOST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_waits_ever_longer_and_what_has_worked_since_starts_again_soon() {
        let mut patience = Patience::default();
        let waits: Vec<u64> = (0..8).map(|_| patience.after(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(patience.after(AFTER_FAILURE_AT_MOST), AFTER_FAILURE_AT_MOST);
        assert_eq!(patience.after(AFTER_FAILURE_AT_MOST + Duration::from_secs(1)), AFTER_FAILURE);
        assert_eq!(patience.after(Duration::ZERO), AFTER_FAILURE * 2);
    }
}
