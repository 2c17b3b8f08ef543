//! A map by small keys that Tidings has made, or that there are few of: send numbers, packet identifiers, the topics of one window.
//!
//! The standard library's maps guard against keys that somebody has chosen to collide, and that costs more than all the rest of a look-up. Here nobody
//! gains by it: numbers are counted, and of topics there are as many as deliveries in flight.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// See the module.
pub type Keyed<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// Eight bytes at a time: rotate, add, multiply.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quick(u64);

/// An odd number without a pattern: 2^64 by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Quick {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        // A map takes the lowest bits and the highest; a product has its best ones high up.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(u64::from_le_bytes(word.try_into().expect("a chunk of eight bytes has eight")));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.add(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.add(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.add(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn numbers_in_a_row_and_topics_that_differ_in_one_place_are_told_apart_in_the_bits_that_a_map_looks_at() {
        let hasher = BuildHasherDefault::<Quick>::default();
        let numbers = (0..256_u64).map(|number| hasher.hash_one(number));
        let topics = (0..256).map(|number| hasher.hash_one(format!("acme/zuul/check/project-{}/main/{number}", number % 7)));
        for (what, hashes) in [("numbers", numbers.collect::<Vec<_>>()), ("topics", topics.collect())] {
            let low: HashSet<u64> = hashes.iter().map(|hash| hash & 0xff).collect();
            assert!(low.len() > 128, "{what}: 256 keys fall on {} of 256 places", low.len());
        }
    }
}
