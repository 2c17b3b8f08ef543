//! How often something happened lately, for each of a bounded number of keys.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Counts within windows of a fixed length, which begin with the first thing that is counted.
#[derive(Debug)]
pub struct Tally<K> {
    window: Duration,
    most: usize,
    seen: HashMap<K, (Instant, u32)>,
}

impl<K: Eq + Hash> Tally<K> {
    /// For at most so many keys at once.
    pub fn new(window: Duration, most: usize) -> Self {
        Tally { window, most, seen: HashMap::new() }
    }

    /// Counts one more, and says how many that makes in this window. Where there are too many keys at once to know, it is as many as can be.
    pub fn note(&mut self, key: K, now: Instant) -> u32 {
        let window = self.window;
        let is_over = |since: &Instant| now.saturating_duration_since(*since) >= window;
        if !self.seen.contains_key(&key) && self.seen.len() >= self.most {
            self.seen.retain(|_, (since, _)| !is_over(since));
            if self.seen.len() >= self.most {
                return u32::MAX;
            }
        }
        let (since, count) = self.seen.entry(key).or_insert((now, 0));
        if is_over(since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn each_key_is_counted_by_itself_and_anew_in_each_window() {
        let (mut tally, start) = (Tally::new(MINUTE, 10), Instant::now());
        assert_eq!([tally.note("a", start), tally.note("a", start), tally.note("b", start)], [1, 2, 1]);
        assert_eq!(tally.note("a", start + MINUTE - Duration::from_millis(1)), 3);
        assert_eq!(tally.note("a", start + MINUTE), 1);
    }

    #[test]
    fn there_is_room_for_so_many_keys_and_no_more() {
        let (mut tally, start) = (Tally::new(MINUTE, 3), Instant::now());
        assert_eq!((0..5).map(|key| tally.note(key, start)).collect::<Vec<_>>(), [1, 1, 1, u32::MAX, u32::MAX]);
        assert_eq!(tally.note(1, start), 2, "those that are known are counted on");
        assert_eq!(tally.note(9, start + MINUTE), 1, "and make room when their window is over");
        assert!(tally.seen.len() <= 3);
    }
}
