//! Mutations of bytes.

use crate::chance::Chance;

/// What text readers stumble over: byte order marks, half and overlong characters, surrogates, zero, separators that look like blanks.
const TRAPS: &[&[u8]] = &[
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc3",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\0",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xef\xbf\xbf",
    b"\xf0\x9f\xa6\x80",
    b"\r",
    b"\r\n",
    b"\x1c",
    b"\x7f",
];

pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], chance: &mut Chance) {
    let at = chance.below(bytes.len() + 1);
    let piece = at..(at + 1 + chance.below(16)).min(bytes.len());
    match chance.below(14) {
        0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
        1 if at < bytes.len() => bytes[at] = u8::try_from(chance.below(256)).unwrap(),
        2 => bytes.truncate(at),
        3 if at < bytes.len() => drop(bytes.drain(piece)),
        4 if at < bytes.len() => {
            let again = bytes[piece].to_vec();
            bytes.splice(at..at, again);
        }
        5 if !words.is_empty() => drop(bytes.splice(at..at, chance.pick(words).bytes())),
        6 if !words.is_empty() && at < bytes.len() => drop(bytes.splice(piece, chance.pick(words).bytes())),
        7 => drop(bytes.splice(at..at, chance.pick(TRAPS).iter().copied())),
        8 => {
            // The beginning of this one, the end of another.
            bytes.truncate(at);
            bytes.extend_from_slice(&other[chance.below(other.len() + 1)..]);
        }
        9 => number(bytes, at, chance),
        10 => {
            let digits = chance.boundary().to_string();
            bytes.splice(at..at, digits.into_bytes());
        }
        11 if chance.one_in(8) => {
            let byte = bytes.get(at).copied().unwrap_or(b'x');
            let count = [300, 5_000, 70_000][chance.below(3)];
            bytes.splice(at..at, std::iter::repeat_n(byte, count));
        }
        12 => {
            let piece = &other[chance.below(other.len() + 1)..];
            let piece = &piece[..chance.below(40).min(piece.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        _ if bytes.len() > 1 => {
            let (from, to) = (chance.below(bytes.len()), chance.below(bytes.len()));
            bytes.swap(from, to);
        }
        _ => bytes.push(b'x'),
    }
}

/// A length or a count at its bounds, in either byte order.
fn number(bytes: &mut [u8], at: usize, chance: &mut Chance) {
    let width = [1, 2, 4, 8][chance.below(4)];
    let Some(place) = bytes.get_mut(at..at + width) else { return };
    let old = place.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let new = match chance.below(3) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        _ => chance.boundary(),
    };
    let new = new.to_be_bytes();
    place.copy_from_slice(&new[8 - width..]);
    if chance.one_in(2) {
        place.reverse();
    }
}
