//! What the file says: tables and values that know their line and key, and a list for every mistake that is found in them.
//!
//! A getter that meets a wrong value notes the mistake and gives a stand-in, so that reading goes on and finds the next one. What was
//! read is used only if the list is empty at the end.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, closest};
use super::units::{format_duration, format_size, parse_duration_ms, parse_size};

/// How much of a wrong text is quoted, in characters.
const QUOTED: usize = 40;

/// So many mistakes of one file are told; beyond them it is said how many more there are. What is no configuration has one in each line.
const MAX_MISTAKES: usize = 100;

/// A file under examination.
pub(super) struct File<'f> {
    name: &'f str,
    text: &'f str,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
    mistakes: RefCell<Vec<Mistake>>,
    /// Found beyond those that are told.
    more: Cell<usize>,
    /// Those in files that this one refers to, in the order in which they are to be shown.
    elsewhere: RefCell<Vec<Mistake>>,
}

impl<'f> File<'f> {
    pub(super) fn new(name: &'f str, text: &'f str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        File { name, text, lines, mistakes: RefCell::default(), more: Cell::default(), elsewhere: RefCell::default() }
    }

    /// The whole file as a table; none if it is not TOML, which is noted with every place where it is not.
    pub(super) fn root(&'f self) -> Option<Table<'f>> {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let line = error.span().map(|span| self.line_of(span.start));
            self.note(line, None, format!("not TOML: {}", error.message().replace('\n', "; ")));
        }
        errors.is_empty().then(|| Table::new(self, String::new(), 1, root.into_inner()))
    }

    /// What is wrong, in the order of lines, and then what is wrong in files that it refers to.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.take_mistakes()
    }

    /// The same, of a file that is still being read.
    pub(super) fn take_mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.take();
        mistakes.sort_by_key(|mistake| mistake.line);
        match self.more.take() {
            0 => {}
            more => mistakes.push(Mistake::of_file(self.name, format!("and {more} more mistakes: mend these first"))),
        }
        mistakes.extend(self.elsewhere.take());
        mistakes
    }

    pub(super) fn note(&self, line: Option<usize>, key: Option<String>, message: String) {
        let mut mistakes = self.mistakes.borrow_mut();
        match mistakes.len() < MAX_MISTAKES {
            true => mistakes.push(Mistake { file: self.name.to_owned(), line, key, message }),
            false => self.more.set(self.more.get() + 1),
        }
    }

    fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|begin| *begin <= offset)
    }
}

/// A value, and where it stands.
pub(super) struct Item<'f> {
    file: &'f File<'f>,
    /// Its key, from the top of the file.
    pub key: String,
    line: usize,
    value: DeValue<'f>,
}

/// A value of the right type, or what stands in for it.
pub(super) struct Field<T> {
    pub value: T,
    /// Where it stands, if it was given.
    pub line: Option<usize>,
    /// Given, and wrong. Rules between two keys are checked only where neither is.
    pub wrong: bool,
}

impl<'f> Item<'f> {
    /// Notes a mistake in this value.
    pub(super) fn mistake(&self, message: impl fmt::Display) {
        self.file.note(Some(self.line), Some(self.key.clone()), message.to_string());
    }

    fn unexpected(&self, expected: impl fmt::Display) {
        self.mistake(format_args!("expected {expected}, found {}", shown(&self.value)));
    }

    /// The line, for messages that refer to it.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        self.value.as_str()
    }

    pub(super) fn as_whole(&self) -> Option<u64> {
        let number = self.value.as_integer()?;
        u64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    pub(super) fn as_flag(&self) -> Option<bool> {
        self.value.as_bool()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    /// How many entries a list has; none if it is something else.
    pub(super) fn count(&self) -> usize {
        self.value.as_array().map_or(0, |list| list.len())
    }

    /// The text, which may not be empty.
    pub(super) fn text(&self) -> Option<String> {
        let text = self.as_text().filter(|text| !text.is_empty());
        if text.is_none() {
            self.unexpected("a text in quotes that is not empty");
        }
        text.map(str::to_owned)
    }

    /// The value as `read` makes it from the item; `expected` is what the mistake says otherwise.
    pub(super) fn read<T>(&self, expected: impl fmt::Display, read: impl FnOnce(&Self) -> Option<T>) -> Option<T> {
        let value = read(self);
        if value.is_none() {
            self.unexpected(expected);
        }
        value
    }

    pub(super) fn table(self) -> Option<Table<'f>> {
        if !self.value.is_table() {
            self.unexpected("a table");
        }
        match self.value {
            DeValue::Table(table) => Some(Table::new(self.file, self.key, self.line, table)),
            _ => None,
        }
    }

    /// The tables of a list of tables.
    fn tables(self) -> Vec<Table<'f>> {
        if !self.value.is_array() {
            self.unexpected(format_args!("`[[{}]]`", self.key));
        }
        self.entries().into_iter().filter_map(Item::table).collect()
    }

    /// The entries of a list; none if it is something else.
    pub(super) fn entries(self) -> Vec<Item<'f>> {
        let DeValue::Array(list) = self.value else { return Vec::new() };
        let items = list.into_iter().enumerate().map(|(index, value)| Item {
            file: self.file,
            key: format!("{}[{index}]", self.key),
            line: self.file.line_of(value.span().start),
            value: value.into_inner(),
        });
        items.collect()
    }
}

/// A setting of a file that is not TOML.
pub(super) struct Setting {
    pub name: &'static str,
    pub line: usize,
    pub text: String,
    /// The text is a number as TOML writes it, and is to be taken for one.
    pub is_number: bool,
}

/// A table of which each key is taken once.
pub(super) struct Table<'f> {
    file: &'f File<'f>,
    key: String,
    line: usize,
    /// What has not been taken yet, in the order of lines.
    items: Vec<(String, Item<'f>)>,
    /// What was asked for.
    known: Vec<&'f str>,
}

impl<'f> Table<'f> {
    fn new(file: &'f File<'f>, key: String, line: usize, table: DeTable<'f>) -> Self {
        let mut items: Vec<_> = table.into_iter().map(|(name, value)| item(file, &key, &name, value)).collect();
        items.sort_by_key(|(_, item)| item.line);
        Table { file, key, line, items, known: Vec::new() }
    }

    /// A table of settings that stand in a file which is not TOML.
    pub(super) fn of_settings(file: &'f File<'f>, key: &str, line: usize, settings: &'f [Setting]) -> Self {
        let item = |setting: &'f Setting| {
            let text = setting.text.as_str();
            let number = setting.is_number.then(|| DeValue::parse(text).ok()).flatten();
            let value = number.map_or_else(|| DeValue::String(text.into()), Spanned::into_inner);
            (setting.name.to_owned(), Item { file, key: format!("{key}.{}", setting.name), line: setting.line, value })
        };
        Table { file, key: key.to_owned(), line, items: settings.iter().map(item).collect(), known: Vec::new() }
    }

    /// What the file is called in mistakes.
    pub(super) fn file_name(&self) -> &str {
        self.file.name
    }

    /// Notes the mistakes of a file that this one refers to.
    pub(super) fn mistakes_elsewhere(&self, mistakes: Vec<Mistake>) {
        self.file.elsewhere.borrow_mut().extend(mistakes);
    }

    /// The name of one of this table's keys, from the top of the file.
    fn key_of(&self, name: &str) -> String {
        if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) }
    }

    /// Notes a mistake about a key that is not there.
    pub(super) fn missing(&self, name: &str, message: impl fmt::Display) {
        self.mistake(name, None, message);
    }

    /// Notes a mistake about a key, in the line of its value, or where the table begins.
    pub(super) fn mistake(&self, name: &str, line: Option<usize>, message: impl fmt::Display) {
        self.file.note(Some(line.unwrap_or(self.line)), Some(self.key_of(name)), message.to_string());
    }

    pub(super) fn take(&mut self, name: &'f str) -> Option<Item<'f>> {
        self.known.push(name);
        let place = self.items.iter().position(|(known, _)| known == name)?;
        Some(self.items.remove(place).1)
    }

    /// Everything that is left, for tables whose keys are the user's own names.
    pub(super) fn take_rest(&mut self) -> Vec<(String, Item<'f>)> {
        std::mem::take(&mut self.items)
    }

    pub(super) fn table(&mut self, name: &'f str) -> Option<Table<'f>> {
        self.take(name)?.table()
    }

    pub(super) fn tables(&mut self, name: &'f str) -> Vec<Table<'f>> {
        self.take(name).map(Item::tables).unwrap_or_default()
    }

    pub(super) fn text(&mut self, name: &'f str) -> Option<String> {
        self.take(name)?.text()
    }

    pub(super) fn field<T>(
        &mut self,
        name: &'f str,
        default: T,
        expected: impl fmt::Display,
        read: impl FnOnce(&Item<'f>) -> Option<T>,
    ) -> Field<T> {
        let Some(item) = self.take(name) else { return Field { value: default, line: None, wrong: false } };
        let (line, value) = (Some(item.line), item.read(expected, read));
        Field { line, wrong: value.is_none(), value: value.unwrap_or(default) }
    }

    pub(super) fn flag(&mut self, name: &'f str, default: bool) -> bool {
        self.field(name, default, "true or false", |item| item.value.as_bool()).value
    }

    pub(super) fn whole<N: TryFrom<u64>>(&mut self, name: &'f str, bounds: RangeInclusive<u64>, default: N) -> N {
        let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let read = |item: &Item<'f>| item.as_whole().filter(|number| bounds.contains(number)).and_then(|number| N::try_from(number).ok());
        self.field(name, default, expected, read).value
    }

    pub(super) fn duration_ms(&mut self, name: &'f str, bounds: RangeInclusive<u64>, default: u64) -> Field<u64> {
        let (least, most) = (format_duration(*bounds.start()), format_duration(*bounds.end()));
        let expected = format!("a duration from \"{least}\" to \"{most}\" in quotes");
        self.field(name, default, expected, |item| parse_duration_ms(item.as_text()?).filter(|ms| bounds.contains(ms)))
    }

    /// A size in bytes; a plain number counts bytes.
    pub(super) fn size(&mut self, name: &'f str, bounds: RangeInclusive<u64>, default: u64) -> Field<u64> {
        let expected = format!("a size from \"{}\" to \"{}\"", format_size(*bounds.start()), format_size(*bounds.end()));
        let read = |item: &Item<'f>| item.as_text().map_or_else(|| item.as_whole(), parse_size).filter(|size| bounds.contains(size));
        self.field(name, default, expected, read)
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        for (name, item) in &self.items {
            let meant = closest(name, self.known.iter().copied());
            let hint = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            item.mistake(format_args!("unknown key{hint}"));
        }
    }
}

fn item<'f>(
    file: &'f File<'f>,
    parent: &str,
    name: &Spanned<std::borrow::Cow<'f, str>>,
    value: Spanned<DeValue<'f>>,
) -> (String, Item<'f>) {
    let bare = name.get_ref().as_ref();
    let key = if parent.is_empty() { bare.to_owned() } else { format!("{parent}.{bare}") };
    // A table begins where it is named, which for `[a.b]` is not where its value is.
    let start = if value.get_ref().is_table() || value.get_ref().is_array() { name.span().start } else { value.span().start };
    (bare.to_owned(), Item { file, key, line: file.line_of(start), value: value.into_inner() })
}

/// A value for a message.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => match text.char_indices().nth(QUOTED) {
            None => format!("{text:?}"),
            Some((end, _)) => format!("{:?}…", &text[..end]),
        },
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
