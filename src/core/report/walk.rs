//! One pass over the text of a report: serde's visitors, led by the [`schema`](super::schema), with the path at hand.
//!
//! The path is a chain on the stack that is spelled out only for a mistake, so a report that is right pays nothing for it.

use std::fmt;
use std::ops::Range;

use memchr::{memchr2, memchr2_iter};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::number::as_python;
use super::schema::{Field, Keep, Object, REPORT, SLOTS, Shape};
use super::{MAX_NESTING, ReportError};

/// How much of a wrong string is quoted in a message, in characters.
const QUOTED: usize = 40;

/// So many members of changes are made room for at once: a change of Zuul's has nine.
const MEMBERS: usize = 16;

/// A text of a report. Most stand in it as they are, and are not copied: a report has some thirty of them that are kept, and one in ten is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Text {
    /// Where in the payload it stands.
    Place(Range<usize>),
    /// It stands there with escapes, or as a number.
    Read(String),
    /// A word of the schema, or of Python's.
    Word(&'static str),
}

impl Text {
    /// The text, in the report that it was read from.
    pub(super) fn within<'r>(&'r self, payload: &'r [u8]) -> &'r str {
        match self {
            Text::Place(place) => std::str::from_utf8(&payload[place.clone()]).expect("it was a text when the report was read"),
            Text::Read(text) => text,
            Text::Word(word) => word,
        }
    }
}

/// A value as far as a topic can use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plain {
    Null,
    /// A string, or a number or truth value as Python writes it.
    Text(Text),
    /// Not plain: `a list` or `an object`.
    Nested(&'static str),
}

/// A member of one of the report's changes.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Which change, counted from 0.
    pub change: usize,
    pub key: Text,
    pub value: Plain,
}

/// What is kept of a report.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// By [`Slot`](super::schema::Slot): what was given and is not null.
    pub named: [Option<Text>; SLOTS],
    /// How many changes there are.
    pub changes: usize,
    /// Their members, in the order given.
    pub members: Vec<Member>,
    /// Where in the payload the values of `returned_data` stand, rising.
    pub returned_data: Vec<Range<usize>>,
}

/// Checks the text against the schema.
pub(super) fn walk(text: &str) -> Result<Kept, ReportError> {
    if let Some((line, column)) = first_too_deep(text) {
        let message = format!("nested deeper than {MAX_NESTING} levels at line {line} column {column}");
        return Err(ReportError::InvalidJson { message });
    }
    match walk_through(text, false)? {
        // It is right, and a topic may want a number of it that is not what serde has made of it.
        State { has_float: true, .. } => Ok(walk_through(text, true)?.kept),
        State { kept, .. } => Ok(kept),
    }
}

/// One pass. `is_exact`: numbers that are kept are read as they stand.
fn walk_through(text: &str, is_exact: bool) -> Result<State, ReportError> {
    let mut state = State { start: text.as_ptr() as usize, kept: Kept::default(), mistake: None, is_exact, has_float: false };
    let mut json = serde_json::Deserializer::from_str(text);
    let walked = Walk { shape: &REPORT, path: Path::Whole, wanted: false, state: &mut state }.deserialize(&mut json);
    match walked.and_then(|_| json.end()) {
        Ok(()) => Ok(state),
        Err(error) => Err(state.mistake.take().unwrap_or_else(|| ReportError::InvalidJson { message: format!("not JSON: {error}") })),
    }
}

/// Where the nesting exceeds its limit, as line and column. What is ignored is not walked into, so it is bounded here.
fn first_too_deep(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    // Most reports have not even so many brackets, and that is known at memory speed.
    memchr2_iter(b'{', b'[', bytes).nth(MAX_NESTING)?;
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at + 1)?,
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_NESTING {
                    let before = &text[..at];
                    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
                    return Some((line, at - before.rfind('\n').map_or(0, |newline| newline + 1) + 1));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the quote stands that ends a string; none if nothing does.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        // What is escaped ends nothing.
        at += 2;
    }
}

struct State {
    /// Where the text begins in memory, so that a part of it knows its place.
    start: usize,
    kept: Kept,
    /// The mistake that ended the walk; serde's own error then means nothing.
    mistake: Option<ReportError>,
    /// Numbers that are kept are read as they stand in the text.
    is_exact: bool,
    /// A number was kept that serde takes for a float: with a fraction or an exponent, or beyond 64 bits.
    has_float: bool,
}

impl State {
    /// Where a part of the text stands in it.
    fn place(&self, part: &str) -> Range<usize> {
        place_in(self.start, part)
    }

    fn keep(&mut self, member: Member) {
        if self.kept.members.is_empty() {
            self.kept.members.reserve(MEMBERS);
        }
        self.kept.members.push(member);
    }
}

/// Where a part stands of a text that begins at this address.
fn place_in(start: usize, part: &str) -> Range<usize> {
    let from = part.as_ptr() as usize - start;
    from..from + part.len()
}

/// The way to a value.
#[derive(Clone, Copy)]
enum Path<'p> {
    Whole,
    Key(&'p Path<'p>, &'static str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Whole => Ok(()),
            Path::Key(Path::Whole, key) => f.write_str(key),
            Path::Key(parent, key) => write!(f, "{parent}.{key}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// One value to be read.
struct Walk<'w> {
    shape: &'static Shape,
    path: Path<'w>,
    /// Whether the caller wants the value back.
    wanted: bool,
    state: &'w mut State,
}

impl Walk<'_> {
    fn mistake<E: Error>(&mut self, message: String) -> E {
        let field = if matches!(self.path, Path::Whole) { None } else { Some(self.path.to_string()) };
        self.state.mistake = Some(ReportError::InvalidReport { field, message });
        E::custom("the mistake is in the state")
    }

    fn unexpected<E: Error>(&mut self, found: impl fmt::Display) -> E {
        self.mistake(format!("expected {}, found {found}", self.shape.expected()))
    }

    fn give(&self, value: impl FnOnce() -> Plain) -> Option<Plain> {
        self.wanted.then(value)
    }

    fn number<E: Error>(mut self, number: serde_json::Number) -> Result<Option<Plain>, E> {
        match self.shape {
            Shape::Anything | Shape::TextOrNumber | Shape::Time => Ok(self.give(|| Plain::Text(Text::Read(number.to_string())))),
            _ => Err(self.unexpected(number)),
        }
    }

    /// Reads a value of which a number's spelling counts.
    fn exactly<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Plain>, D::Error> {
        let written = <&RawValue>::deserialize(deserializer)?.get();
        match written.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            true => Ok(self.give(|| Plain::Text(Text::Read(as_python(written))))),
            false => serde_json::Deserializer::from_str(written).deserialize_any(self).map_err(D::Error::custom),
        }
    }

    fn text<E: Error>(mut self, value: &str, keep: impl FnOnce(&State) -> Text) -> Result<Option<Plain>, E> {
        let fits = match self.shape {
            Shape::Anything | Shape::Text | Shape::TextOrNumber => true,
            Shape::Name => !value.is_empty(),
            Shape::Time => value.trim().parse::<f64>().is_ok_and(f64::is_finite),
            Shape::Flag | Shape::List(_) | Shape::Object(_) => false,
        };
        if fits { Ok(self.give(|| Plain::Text(keep(self.state)))) } else { Err(self.unexpected(quoted(value))) }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Option<Plain>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.shape {
            Shape::Anything if !self.wanted => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| None),
            Shape::Anything | Shape::TextOrNumber | Shape::Time if self.wanted && self.state.is_exact => self.exactly(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Option<Plain>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shape.expected())
    }

    fn visit_unit<E: Error>(mut self) -> Result<Self::Value, E> {
        match (self.shape, &self.path) {
            // A list entry can't be left out: `changes[1]` has to stay the second one.
            (Shape::Name, _) | (_, Path::Whole) | (Shape::Object(_), Path::Index(..)) => Err(self.unexpected("null")),
            _ => Ok(self.give(|| Plain::Null)),
        }
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<Self::Value, E> {
        match self.shape {
            Shape::Anything | Shape::Flag => Ok(self.give(|| Plain::Text(Text::Word(if value { "True" } else { "False" })))),
            _ => Err(self.unexpected(value)),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.number(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        self.number(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        self.state.has_float |= self.wanted;
        let number = serde_json::Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        self.number(number)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Self::Value, E> {
        self.text(value, |state| Text::Place(state.place(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        self.text(value, |_| Text::Read(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
        let shape: &'static Shape = match self.shape {
            Shape::List(shape) => shape,
            Shape::Anything => &Shape::Anything,
            _ => return Err(self.unexpected("a list")),
        };
        let mut index = 0;
        while list.next_element_seed(Walk { shape, path: Path::Index(&self.path, index), wanted: false, state: self.state })?.is_some() {
            index += 1;
        }
        Ok(self.give(|| Plain::Nested("a list")))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let object: &'static Object = match self.shape {
            Shape::Object(object) => object,
            Shape::Anything => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(self.give(|| Plain::Nested("an object")));
            }
            _ => return Err(self.unexpected("an object")),
        };
        let mut seen = 0u64;
        // Which change this is.
        let change = self.state.kept.changes;
        // Producers write keys in the schema's order, so the next one is looked for where the last one was found.
        let mut next = 0;
        while let Some(key) = map.next_key_seed(KeyOf { object, next, start: self.state.start })? {
            match key {
                Key::Known(place, field) => {
                    if seen & (1 << place) != 0 {
                        let path = Path::Key(&self.path, field.key);
                        return Err(Walk { shape: &field.shape, path, wanted: false, state: self.state }.mistake("given twice".to_owned()));
                    }
                    seen |= 1 << place;
                    next = place + 1;
                    if let Some(value) = self.known(&mut map, field, object.is_change)? {
                        self.state.keep(Member { change, key: Text::Word(field.key), value });
                    }
                }
                Key::Unknown(Some(key)) => {
                    let walk = Walk { shape: &Shape::Anything, path: Path::Whole, wanted: true, state: self.state };
                    if let Some(value) = map.next_value_seed(walk)? {
                        self.state.keep(Member { change, key, value });
                    }
                }
                Key::Unknown(None) => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        if object.is_change {
            self.state.kept.changes += 1;
        }
        Ok(self.give(|| Plain::Nested("an object")))
    }
}

impl Walk<'_> {
    /// Reads the value of a field of the schema; gives it back if it belongs to a change.
    fn known<'de, A: MapAccess<'de>>(&mut self, map: &mut A, field: &'static Field, of_change: bool) -> Result<Option<Plain>, A::Error> {
        let path = Path::Key(&self.path, field.key);
        match field.keep {
            Keep::Place => {
                let place = self.state.place(map.next_value::<&RawValue>()?.get());
                self.state.kept.returned_data.push(place);
                Ok(None)
            }
            Keep::Nothing => map.next_value_seed(Walk { shape: &field.shape, path, wanted: of_change, state: self.state }),
            Keep::Named(slot) => {
                let value = map.next_value_seed(Walk { shape: &field.shape, path, wanted: true, state: self.state })?;
                if let Some(Plain::Text(text)) = value {
                    self.state.kept.named[slot as usize] = Some(text);
                }
                Ok(None)
            }
        }
    }
}

/// A key of an object, looked up without a copy where the schema has it.
enum Key {
    Known(usize, &'static Field),
    /// Not in the schema. With its name only where that is kept.
    Unknown(Option<Text>),
}

struct KeyOf {
    object: &'static Object,
    /// Where among its fields it is looked for first.
    next: usize,
    /// See [`State::start`].
    start: usize,
}

impl KeyOf {
    fn find(&self, key: &str, keep: impl FnOnce() -> Text) -> Key {
        let fields = self.object.fields;
        let (before, after) = fields.split_at(self.next.min(fields.len()));
        let after = (before.len()..).zip(after);
        match after.chain((0..).zip(before)).find(|(_, field)| field.key == key) {
            Some((place, field)) => Key::Known(place, field),
            None => Key::Unknown(self.object.is_change.then(keep)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for KeyOf {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeyOf {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, key: &'de str) -> Result<Key, E> {
        Ok(self.find(key, || Text::Place(place_in(self.start, key))))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
        Ok(self.find(key, || Text::Read(key.to_owned())))
    }
}

/// A string in quotes, shortened: what is in a report can be megabytes, and a message is read by people.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
    }
}
