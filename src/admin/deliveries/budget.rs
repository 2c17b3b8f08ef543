//! How much one request may read: looking for something must not keep the disk or a processor busy for long, whatever is asked for.

use std::time::{Duration, Instant};

/// Pages that are looked at without being decoded, at about 10 µs each.
const GLIMPSES: u32 = 20_000;

/// Pages that are decoded, at about 200 µs each.
const PAGES: u32 = 2_000;

/// On a slow disk time is up first.
const TIME: Duration = Duration::from_millis(1_500);

/// How the deliveries of one piece of a job ended is found within this, or not at all.
const JOB_TIME: Duration = Duration::from_secs(600);

/// What is left to one request.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    glimpses: u32,
    pages: u32,
    until: Instant,
}

impl Budget {
    /// What one request may read.
    pub fn of_a_request() -> Budget {
        Budget { glimpses: GLIMPSES, pages: PAGES, until: Instant::now() + TIME }
    }

    /// What a job may read before it looks up: whether it is to stop, and whether it may go on.
    pub fn of_a_piece() -> Budget {
        Budget { glimpses: GLIMPSES, pages: PAGES / 4, until: Instant::now() + TIME }
    }

    /// Of a job that has to know, and has the time.
    pub fn of_a_job() -> Budget {
        Budget { glimpses: u32::MAX, pages: u32::MAX, until: Instant::now() + JOB_TIME }
    }

    /// So many glimpses and pages, and no limit of time.
    #[cfg(test)]
    pub fn of(glimpses: u32, pages: u32) -> Budget {
        Budget { glimpses, pages, until: Instant::now() + Duration::from_secs(600) }
    }

    /// Takes a page that is looked at; false if there is no more.
    pub fn glimpse(&mut self) -> bool {
        self.glimpses = self.glimpses.saturating_sub(1);
        // Asking the clock costs less than reading a page.
        self.glimpses > 0 && self.pages > 0 && Instant::now() < self.until
    }

    /// Takes a page that is decoded.
    pub fn page(&mut self) {
        self.pages = self.pages.saturating_sub(1);
    }
}
