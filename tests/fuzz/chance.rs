//! Chance that can be repeated.

use crate::support::splitmix;

/// SplitMix64, so that neighbouring cases have nothing in common.
pub struct Chance(u64);

impl Chance {
    /// The chance of one case of one target.
    pub fn of(seed: u64, target: &str, case: u64) -> Chance {
        let name = target.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut chance = Chance(seed ^ name);
        chance.0 = chance.next() ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        chance
    }

    pub fn next(&mut self) -> u64 {
        splitmix::next(&mut self.0)
    }

    /// Below the bound; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap()
    }

    /// Once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'o, T>(&mut self, of: &'o [T]) -> &'o T {
        &of[self.below(of.len())]
    }

    /// A number where bounds are, and what is next to them.
    pub fn boundary(&mut self) -> u64 {
        const BOUNDS: [u64; 12] =
            [0, 1, 0x7f, 0x80, 0xff, 0x3fff, 0x7fff, 0xffff, 0x1f_ffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff];
        match self.below(3) {
            0 => *self.pick(&BOUNDS),
            1 => self.pick(&BOUNDS).wrapping_add(1),
            _ => self.pick(&BOUNDS).wrapping_sub(1),
        }
    }
}
