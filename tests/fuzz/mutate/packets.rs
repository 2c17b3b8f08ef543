//! Mutations of a stream of MQTT packets.

use super::bytes;
use crate::chance::Chance;
use crate::support::wire;

/// The stream's packets: first byte and body. What is no packet is the last one's rest.
fn split(mut rest: &[u8]) -> (Vec<(u8, Vec<u8>)>, &[u8]) {
    let mut packets = Vec::new();
    loop {
        let before = rest;
        let mut end = 1;
        let mut length = 0;
        loop {
            let Some(byte) = rest.get(end).filter(|_| end < 5) else { return (packets, before) };
            length |= usize::from(byte & 0x7f) << (7 * (end - 1));
            end += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let Some(body) = rest.get(end..end + length) else { return (packets, before) };
        packets.push((rest[0], body.to_vec()));
        rest = &rest[end + length..];
    }
}

pub fn mutate(stream: &mut Vec<u8>, other: &[u8], words: &[&str], chance: &mut Chance) {
    let (mut packets, rest) = split(stream);
    if packets.is_empty() {
        return bytes::mutate(stream, other, words, chance);
    }
    let rest = rest.to_vec();
    let at = chance.below(packets.len());
    match chance.below(9) {
        0 => drop(packets.remove(at)),
        1 => {
            let again = packets[at].clone();
            packets.insert(chance.below(packets.len() + 1), again);
        }
        2 => {
            let to = chance.below(packets.len());
            packets.swap(at, to);
        }
        3 => {
            let (others, _) = split(other);
            if !others.is_empty() {
                packets.insert(at, chance.pick(&others).clone());
            }
        }
        4 => packets[at].0 ^= 1 << chance.below(8),
        // Within the body, its length made right again: what is behind the frame gets to see it.
        _ => {
            let (_, body) = &mut packets[at];
            bytes::mutate(body, other, words, chance);
            // Longer ones are slow to make, and tell no more.
            body.truncate(100_000);
        }
    }
    *stream = packets.iter().flat_map(|(first, body)| wire::packet(*first, body)).chain(rest).collect();
}
