//! Mutations of a text of lines.

use crate::chance::Chance;

const INDENTS: &[&str] = &["", " ", "  ", "    ", "\t", "- ", "\u{a0}", "# "];

const VALUES: &[&str] = &[
    "0",
    "-1",
    "1",
    "2",
    "65535",
    "65536",
    "18446744073709551616",
    "\"\"",
    "\"x\"",
    "'x'",
    "true",
    "false",
    "yes",
    "[]",
    "{}",
    "[1, 2]",
    "1.5",
    "nan",
    "1979-05-27",
    "\"1s\"",
    "\"1MiB\"",
    "\"127.0.0.1:1\"",
    "~",
    "null",
    "&a x",
    "*a",
    "!x y",
    "|",
    ">",
    "%(x)s",
    "%%",
    "%",
];

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Changes one line by a function of the caller's.
pub fn mutate_one(bytes: &mut Vec<u8>, chance: &mut Chance, change: impl FnOnce(&mut Vec<u8>, &mut Chance)) {
    let mut lines = split(bytes);
    let at = chance.below(lines.len());
    change(&mut lines[at], chance);
    *bytes = lines.join(&b'\n');
}

pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], chance: &mut Chance) {
    let mut lines = split(bytes);
    let at = chance.below(lines.len());
    match chance.below(11) {
        0 => drop(lines.remove(at)),
        1 => {
            let again = lines[at].clone();
            lines.insert(chance.below(lines.len() + 1), again);
        }
        2 => {
            let to = chance.below(lines.len());
            lines.swap(at, to);
        }
        3 => {
            let indent = chance.pick(INDENTS).as_bytes().to_vec();
            lines[at].splice(0..0, indent);
        }
        4 => lines[at] = lines[at].trim_ascii_start().to_vec(),
        5 | 6 => {
            let value = if chance.one_in(2) && !words.is_empty() { *chance.pick(words) } else { *chance.pick(VALUES) };
            set_value(&mut lines[at], value);
        }
        7 => {
            let others = split(other);
            let from = chance.below(others.len());
            let piece = others[from..(from + 1 + chance.below(4)).min(others.len())].to_vec();
            lines.splice(at..at, piece);
        }
        8 if !words.is_empty() => {
            let value = if chance.one_in(2) { *chance.pick(VALUES) } else { *chance.pick(words) };
            let between = [" = ", ": ", "=", "."][chance.below(4)];
            lines.insert(at, format!("{}{}{between}{value}", chance.pick(INDENTS), chance.pick(words)).into_bytes());
        }
        9 if chance.one_in(20) => {
            let (open, count) = (chance.pick(&["[", "{", "- ", "{a: ", "[[", "a.", "? "]), [50, 101, 3_000][chance.below(3)]);
            lines[at].extend(open.repeat(count).into_bytes());
        }
        _ => super::bytes::mutate(&mut lines[at], other, words, chance),
    }
    *bytes = lines.join(&b'\n');
}

/// Replaces what follows `=` or `:`.
fn set_value(line: &mut Vec<u8>, value: &str) {
    if let Some(at) = line.iter().position(|byte| matches!(byte, b'=' | b':')) {
        line.truncate(at + 1);
        line.push(b' ');
    }
    line.extend_from_slice(value.as_bytes());
}
