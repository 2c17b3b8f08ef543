//! What happened, line by line. Written only in a run that is told again because it has failed: a run is what its seed makes of it, so it fails
//! again in the same way, and all others need not pay for the words.

use std::collections::VecDeque;

/// A promise was broken: ends the run. Not a panic, so that a run which is told again for its trace does not print it twice.
pub struct Violation(pub String);

/// Ends the run.
pub fn violated(what: String) -> ! {
    std::panic::resume_unwind(Box::new(Violation(what)))
}

/// The last lines, or all of them.
pub struct Trace {
    lines: VecDeque<String>,
    limit: usize,
}

impl Trace {
    /// Keeps the last `limit` lines; with 0 nothing is written at all.
    pub fn new(limit: usize) -> Self {
        Trace { lines: VecDeque::new(), limit }
    }

    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    pub fn write(&mut self, now: u64, line: &str) {
        if self.lines.len() == self.limit {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>9.3} s  {line}", now as f64 / 1_000.0));
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// Says what happens, if anybody listens.
macro_rules! say {
    ($world:expr, $($words:tt)*) => {
        if $world.trace.is_on() {
            let line = format!($($words)*);
            $world.trace.write($world.now, &line);
        }
    };
}
pub(crate) use say;
