//! Chance that can be repeated, as far as the machine allows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::from_environment;

/// xorshift.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    /// From `TIDINGS_CRASH_SEED`, or the time. Says which.
    pub fn new() -> Chance {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let seed = from_environment("TIDINGS_CRASH_SEED", u64::try_from(time & 0xffff_ffff).unwrap());
        println!("TIDINGS_CRASH_SEED={seed}");
        Chance(seed | 1 << 40)
    }

    /// Another one, for a thread of its own.
    pub fn fork(&mut self) -> Chance {
        Chance(self.next() | 1 << 40)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn wait_ms(&mut self, from: u64, to: u64) {
        std::thread::sleep(Duration::from_millis(from + self.below(to - from)));
    }

    /// So many characters that hardly compress.
    pub fn noise(&mut self, length: usize) -> String {
        let mut noise = String::with_capacity(length + 16);
        while noise.len() < length {
            noise.push_str(&format!("{:016x}", self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
        noise.truncate(length);
        noise
    }
}
