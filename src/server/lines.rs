//! A bounded rate of log lines: what clients do wrong is said, and never more often than somebody can read.

use std::time::{Duration, Instant};

/// So many lines.
pub const LINES: u32 = 20;

/// In this time.
pub const LINES_EVERY: Duration = Duration::from_secs(60);

/// Counts lines, and those that were not written.
#[derive(Debug, Default)]
pub struct Lines {
    since: Option<Instant>,
    said: u32,
    unsaid: u32,
}

impl Lines {
    /// Whether a line may be written; with how many were not written before.
    pub fn take(&mut self) -> Option<u32> {
        if self.since.is_none_or(|since| since.elapsed() >= LINES_EVERY) {
            (self.since, self.said) = (Some(Instant::now()), 0);
        }
        if self.said < LINES {
            self.said += 1;
            return Some(std::mem::take(&mut self.unsaid));
        }
        self.unsaid = self.unsaid.saturating_add(1);
        None
    }
}
