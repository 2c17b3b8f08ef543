//! How much memory a call takes at most, against how long its input is.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What any call may take, in bytes: contexts, tables, messages.
const FLOOR: u64 = 256 << 10;

/// Calls, and fails if at any moment it held more than so many times its input.
pub fn bounded<T>(input: usize, times: u64, call: impl FnOnce() -> T) -> T {
    let mut result = None;
    // Caught inside, so that the counter's own books stay right.
    let used = allocation_counter::measure(|| result = Some(catch_unwind(AssertUnwindSafe(call))));
    let result = result.expect("it was called").unwrap_or_else(|panic| resume_unwind(panic));
    let most = FLOOR + input as u64 * times;
    assert!(used.bytes_max <= most, "{} bytes were held for an input of {input}; {most} are allowed", used.bytes_max);
    result
}
