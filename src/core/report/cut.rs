//! Cutting members out of JSON text without touching the rest of it.

use std::ops::Range;

use bytes::Bytes;

/// The text without the object members whose *values* stand at these places: rising, in valid JSON, at most one of each object.
///
/// With a member goes one comma and the white space on that side; every other byte stays.
pub(super) fn without(json: &Bytes, values: &[Range<usize>]) -> Bytes {
    if values.is_empty() {
        return json.clone();
    }
    let mut rest = Vec::with_capacity(json.len());
    let mut from = 0;
    for value in values {
        let member = member(json, value);
        rest.extend_from_slice(&json[from..member.start]);
        from = member.end;
    }
    rest.extend_from_slice(&json[from..]);
    Bytes::from(rest)
}

/// The value with its key and its comma.
fn member(json: &[u8], value: &Range<usize>) -> Range<usize> {
    let colon = last_visible(json, value.start);
    let key_end = last_visible(json, colon);
    // The key has no quote in it, not even an escaped one: it was found by its name.
    let key = json[..key_end].iter().rposition(|byte| *byte == b'"').unwrap_or(0);
    let after = next_visible(json, value.end);
    if json.get(after) == Some(&b',') {
        return key..next_visible(json, after + 1);
    }
    let before = last_visible(json, key);
    if json[before] == b',' { before..value.end } else { key..value.end }
}

/// Where the last byte before `end` stands that is not white space.
fn last_visible(json: &[u8], end: usize) -> usize {
    json[..end].iter().rposition(|byte| !is_space(*byte)).unwrap_or(0)
}

/// Where the first byte from `start` on stands that is not white space.
fn next_visible(json: &[u8], start: usize) -> usize {
    json[start..].iter().position(|byte| !is_space(*byte)).map_or(json.len(), |offset| start + offset)
}

/// White space as JSON has it (RFC 8259 §2).
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
