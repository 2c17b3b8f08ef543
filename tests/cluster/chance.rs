//! What is left to chance, of which a seed tells everything but how threads and processes take turns.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::from_environment;
use crate::support::splitmix;

pub struct Chance(u64);

impl Chance {
    /// From `TIDINGS_CLUSTER_SEED`, or the time. Says which.
    pub fn new() -> Chance {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let seed = from_environment("TIDINGS_CLUSTER_SEED", u64::try_from(time & 0xffff_ffff).unwrap());
        println!("TIDINGS_CLUSTER_SEED={seed}");
        Chance(seed)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(splitmix::next(&mut self.0) % limit as u64).expect("below a usize")
    }

    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
