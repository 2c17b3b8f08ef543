//! `zuul.conf` as a text: sections, options and their lines, exactly as Python's `configparser.ConfigParser` reads them.
//!
//! A parser of our own, because none of the crates reads this dialect: `rust-ini` and `configparser` know neither continuation by
//! indentation as Python has it nor `%(name)s`, take duplicates without a word, and give no line numbers. It follows the algorithm
//! of Python 3.8 to 3.14 with `ConfigParser`'s defaults, and `tests/against_python.rs` holds it against a real one.
//!
//! | Line | Meaning |
//! |---|---|
//! | `# …`, `; …` | a comment, also when indented and also within a value. After a value they belong to it |
//! | `[name]` | a section, up to the last `]` of the line. Case counts. Twice: a mistake. `[DEFAULT]`: what every section has; may stand twice |
//! | `key = value`, `key: value` | an option; what comes first of `=` and `:` ends its name. Case does not count. Twice: a mistake |
//! | deeper than the option's line | the value goes on; also what looks like a section or an option |
//! | blank | within a value: an empty line of it |
//! | anything else | a mistake |

use std::collections::BTreeMap;

/// The section whose options every other one has, too.
pub(super) const DEFAULT: &str = "DEFAULT";

/// A file that has been taken apart.
#[derive(Debug, Default)]
pub(super) struct Ini {
    /// `[DEFAULT]`, whether it is there or not.
    pub defaults: Section,
    /// All other sections, in the order of the file.
    pub sections: Vec<Section>,
}

/// One section.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// What stands between the brackets.
    pub name: String,
    /// Where it begins.
    pub line: usize,
    /// Its options by their names in small letters.
    pub options: BTreeMap<String, Setting>,
}

/// One option's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// As it was written, nothing replaced.
    pub raw: String,
    /// Where the option stands.
    pub line: usize,
}

/// What Python would refuse the whole file for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where.
    pub line: usize,
    /// Section and option, as far as it is about one.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
}

/// What Python's `str.isspace` calls so: Unicode's white space, and four separators more.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Lines as Python's text files have them: ended by `\n`, `\r\n` or `\r`.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        let line = &rest[..end];
        let after = &rest[end..];
        rest = after.strip_prefix("\r\n").or_else(|| after.strip_prefix(['\n', '\r'])).unwrap_or_default();
        Some(line)
    })
}

/// Takes a text apart, and lists everything that Python would refuse it for.
pub(super) fn parse(text: &str) -> (Ini, Vec<Fault>) {
    let mut reader = Reader::default();
    for (place, line) in lines(text).enumerate() {
        reader.line(place + 1, line);
    }
    reader.end_of_value();
    (reader.ini, reader.faults)
}

#[derive(Default)]
struct Reader {
    ini: Ini,
    faults: Vec<Fault>,
    /// The lines of the sections so far, by name.
    seen: BTreeMap<String, usize>,
    section: Place,
    /// The option whose value may go on.
    open: Option<Open>,
    /// The indentation of the last line that was not a continuation.
    indent: usize,
}

/// Which section the lines belong to.
#[derive(Clone, Copy, Default, PartialEq)]
enum Place {
    /// None yet.
    #[default]
    Nowhere,
    /// None yet, and something stood there: said once.
    Lost,
    Default,
    /// By its place in [`Ini::sections`].
    Named(usize),
}

struct Open {
    name: String,
    value: Vec<String>,
    line: usize,
    /// It stands for the first time: only then it is kept.
    is_new: bool,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        let text = strip(line);
        if text.starts_with(['#', ';']) {
            return;
        }
        if text.is_empty() {
            if let Some(open) = &mut self.open {
                open.value.push(String::new());
            }
            return;
        }
        let indent = line.chars().take_while(|c| is_space(*c)).count();
        if let Some(open) = self.open.as_mut().filter(|_| indent > self.indent) {
            open.value.push(text.to_owned());
            return;
        }
        self.indent = indent;
        if let Some(name) = header(text) {
            self.end_of_value();
            self.begin_section(number, name);
        } else if matches!(self.section, Place::Nowhere | Place::Lost) {
            if self.section == Place::Nowhere {
                let hint = if line.starts_with('\u{feff}') { ": the file begins with a byte order mark, take it out" } else { "" };
                self.faults.push(Fault { line: number, key: None, message: format!("stands before the first `[section]`{hint}") });
            }
            self.section = Place::Lost;
        } else if let Some((name, value)) = text.split_once(['=', ':']) {
            self.end_of_value();
            self.begin_option(number, strip(name).to_lowercase(), strip(value));
        } else {
            let message = "expected `[section]`, `key = value`, or the indented next line of a value".to_owned();
            self.faults.push(Fault { line: number, key: None, message });
        }
    }

    fn begin_section(&mut self, number: usize, name: &str) {
        if name == DEFAULT {
            self.section = Place::Default;
            return;
        }
        match self.seen.get(name) {
            Some(first) => {
                let message = format!("stands in line {first} already");
                self.faults.push(Fault { line: number, key: Some(format!("[{name}]")), message });
                let place = self.ini.sections.iter().position(|section| section.name == name);
                self.section = place.map_or(Place::Lost, Place::Named);
            }
            None => {
                self.seen.insert(name.to_owned(), number);
                self.section = Place::Named(self.ini.sections.len());
                self.ini.sections.push(Section { name: name.to_owned(), line: number, options: BTreeMap::new() });
            }
        }
    }

    fn begin_option(&mut self, number: usize, name: String, value: &str) {
        if name.is_empty() {
            self.faults.push(Fault { line: number, key: None, message: "there is no name before the `=` or `:`".to_owned() });
            return;
        }
        let Some(section) = self.current() else { return };
        let (of, first) = (section.name.clone(), section.options.get(&name).map(|setting| setting.line));
        if let Some(first) = first {
            let of = if of.is_empty() { DEFAULT } else { &of };
            let message = format!("stands in line {first} already");
            self.faults.push(Fault { line: number, key: Some(format!("[{of}] {name}")), message });
        }
        self.open = Some(Open { name, value: vec![value.to_owned()], line: number, is_new: first.is_none() });
    }

    fn end_of_value(&mut self) {
        let Some(open) = self.open.take().filter(|open| open.is_new) else { return };
        let joined = open.value.join("\n");
        let setting = Setting { raw: joined.trim_end_matches(is_space).to_owned(), line: open.line };
        if let Some(section) = self.current() {
            section.options.insert(open.name, setting);
        }
    }

    fn current(&mut self) -> Option<&mut Section> {
        match self.section {
            Place::Nowhere | Place::Lost => None,
            Place::Default => Some(&mut self.ini.defaults),
            Place::Named(place) => self.ini.sections.get_mut(place),
        }
    }
}

/// The name of a section, if the line is the beginning of one.
fn header(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('[')?;
    let end = inside.rfind(']').filter(|end| *end > 0)?;
    Some(&inside[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Ini {
        let (ini, faults) = parse(text);
        assert_eq!(faults, []);
        ini
    }

    fn faults(text: &str) -> Vec<String> {
        let (_, faults) = parse(text);
        faults
            .into_iter()
            .map(|fault| format!("{}: {}{}", fault.line, fault.key.map_or(String::new(), |key| key + ": "), fault.message))
            .collect()
    }

    fn value<'i>(ini: &'i Ini, section: &str, option: &str) -> &'i str {
        &ini.sections.iter().find(|known| known.name == section).unwrap().options[option].raw
    }

    #[test]
    fn options_have_lines_and_names_without_case() {
        let ini = read("# first\n[DEFAULT]\nx: 1\n\n[connection a]\nServer = b ; not a comment\r\nport:1=2\n");
        assert_eq!(ini.defaults.options["x"], Setting { raw: "1".into(), line: 3 });
        assert_eq!((value(&ini, "connection a", "server"), value(&ini, "connection a", "port")), ("b ; not a comment", "1=2"));
        assert_eq!((ini.sections[0].line, ini.sections[0].options["port"].line), (5, 7));
    }

    #[test]
    fn what_is_indented_deeper_belongs_to_the_value_whatever_it_looks_like() {
        let ini = read("[a]\nx = 1\n  [b]\n  # comment\n\n  y = 2\n z\nw = 3\n   \n");
        assert_eq!(value(&ini, "a", "x"), "1\n[b]\n\ny = 2\nz");
        assert_eq!(value(&ini, "a", "w"), "3");
        assert_eq!(ini.sections.len(), 1);
    }

    #[test]
    fn what_python_refuses_is_named_with_every_line() {
        assert_eq!(faults("x = 1\ny = 2\n[a]\nz = 3\n"), ["1: stands before the first `[section]`"]);
        assert_eq!(
            faults("\u{feff}[a]\n")[0],
            "1: stands before the first `[section]`: the file begins with a byte order mark, take it out"
        );
        assert_eq!(faults("[a]\nX = 1\nx: 2\n[a]\n"), ["3: [a] x: stands in line 2 already", "4: [a]: stands in line 1 already"]);
        assert_eq!(faults("[DEFAULT]\nx = 1\n[DEFAULT]\nx = 2\n"), ["4: [DEFAULT] x: stands in line 2 already"]);
        assert_eq!(faults("[a]\nword\n = 1\n[]\n").len(), 3);
    }
}
