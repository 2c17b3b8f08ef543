//! Mutations that know what they mutate.
//!
//! | Module | Knows |
//! |---|---|
//! | `bytes` | bits, numbers in both byte orders, lengths, UTF-8, pieces of other inputs |
//! | `json` | the tree: keys gone, twice, renamed, swapped; nesting; numbers and texts at their bounds |
//! | `lines` | indentation, keys and values, order: TOML, YAML, INI, NDJSON, HTTP |
//! | `packets` | MQTT's frames: swapped, repeated, with lengths made right again, or not |

mod bytes;
mod json;
mod lines;
mod packets;

use crate::chance::Chance;

/// What an input is made of.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    Bytes,
    Json,
    /// Lines; each of them may be JSON.
    JsonLines,
    Lines,
    Packets,
}

pub struct Mutator {
    pub form: Form,
    /// What means something to whoever reads it.
    pub words: &'static [&'static str],
}

impl Mutator {
    /// One of the population, changed in one place or several.
    pub fn mutate(&self, chance: &mut Chance, population: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = chance.pick(population).clone();
        let times = if chance.one_in(2) { 1 } else { 1 + chance.below(4) };
        for _ in 0..times {
            let other = chance.pick(population);
            // Now and then without any regard for the form.
            let form = if chance.one_in(6) { Form::Bytes } else { self.form };
            match form {
                Form::Bytes => bytes::mutate(&mut bytes, other, self.words, chance),
                Form::Json => json::mutate(&mut bytes, other, self.words, chance),
                Form::JsonLines if chance.one_in(2) => lines::mutate(&mut bytes, other, self.words, chance),
                Form::JsonLines => lines::mutate_one(&mut bytes, chance, |line, chance| json::mutate(line, other, self.words, chance)),
                Form::Lines => lines::mutate(&mut bytes, other, self.words, chance),
                Form::Packets => packets::mutate(&mut bytes, other, self.words, chance),
            }
        }
        bytes
    }
}
