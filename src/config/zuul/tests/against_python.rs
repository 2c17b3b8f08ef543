//! `ini` and `interpolate` against Python's own `configparser`, used as Zuul uses it: files made of everything that matters to the
//! format, in every order that a fixed seed gives, read by one Python and by Tidings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::config::zuul::ini::{self, Ini, Section};
use crate::config::zuul::interpolate::{Resolver, Unresolved};

/// Files to be compared.
const FILES: usize = 4_000;
/// The one variable of the environment that both have.
const VARIABLE: (&str, &str) = ("ZUUL_HOST", "from %(x)s");

/// Reads every file of a folder as `zuul.cmd.ZuulApp.readConfig` does, and prints what came of it, one line of JSON each.
const SCRIPT: &str = r#"
import configparser, json, os, sys
folder = sys.argv[1]
for name in sorted(os.listdir(folder)):
    config = configparser.ConfigParser({sys.argv[2]: sys.argv[3]})
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            config.read_file(file)
    except configparser.ParsingError as error:
        lines = [line for line, _ in getattr(error, "errors", [])] or [error.lineno]
        print(json.dumps({"refused": lines[0]}))
        continue
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        print(json.dumps({"refused": error.lineno}))
        continue
    found = {}
    for section in config.sections():
        options = {}
        for option in config.options(section):
            raw = config.get(section, option, raw=True)
            try:
                options[option] = [raw, config.get(section, option), None]
            except configparser.InterpolationError as error:
                options[option] = [raw, None, type(error).__name__]
        options.pop(sys.argv[2].lower(), None)
        found[section] = options
    print(json.dumps({"found": found}))
"#;

/// What is left of the format when all that is the same to it is taken away.
const SECTIONS: &[&str] = &["a", "b", "DEFAULT", "default", "connection mqtt", "connection \"x y\"", "a]b", " a ", "[a", "é"];
const KEYS: &[&str] = &["x", "X", "y", "server", "Port", "É", "two words", "x y", "", "a]", "[k", "%(x)s", "σΣ"];
const DELIMITERS: &[&str] = &["=", ":", " = ", " : ", "=\t", " ", "", ": =", "==", "\u{a0}="];
const PIECES: &[&str] = &[
    "1",
    "value",
    "value",
    "value",
    " ",
    "%%",
    "%%",
    "%(k1)s",
    "%(k2)s",
    "%(k3)s",
    "%(x)s",
    "%(Y)s",
    "%(server)s",
    "%(nope)s",
    "%",
    "%(x)",
    "%()s",
    "% (x)s",
    "%(x",
    "%(zuul_host)s",
    "%(ZUUL_HOST)s",
    "%(zuul_other)s",
    "%s",
    "#",
    "; c",
    "=",
    ":",
    "[a]",
    "\u{a0}",
    "é",
    "\u{1c}",
    "%(a\u{a0}b)s",
    "%(x)s%(x)s",
];
const INDENTS: &[&str] = &["", "", "", "", " ", "  ", "\t", "\t ", "\u{a0}", "\u{1c}", "\u{3000} "];
const ENDS: &[&str] = &["\n", "\n", "\n", "\r\n", "\r", "\n\n", "\n \n"];

/// A sequence that is the same in every run (xorshift64*).
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % most
    }

    fn one<'o>(&mut self, of: &[&'o str]) -> &'o str {
        of[self.below(of.len())]
    }

    fn value(&mut self) -> String {
        let pieces = [0, 1, 1, 1, 2, 3][self.below(6)];
        (0..pieces).map(|_| self.one(PIECES)).collect()
    }

    fn file(&mut self) -> String {
        let mut text = String::new();
        // Most files begin as they should, or little else would be seen.
        if self.below(8) > 0 {
            text += "[first]\n";
        }
        for _ in 0..1 + self.below(9) {
            text += self.one(INDENTS);
            text += &match self.below(12) {
                0 | 1 => format!("[{}]{}", self.one(SECTIONS), ["", "", "", " ", " x", "]"][self.below(6)]),
                2 => format!("{} comment", self.one(&["#", ";", "#=", ";x:"])),
                3 => self.value(),
                4 => String::new(),
                5 | 6 => self.one(KEYS).to_owned() + self.one(DELIMITERS) + &self.value(),
                _ => format!("k{} = {}", self.below(20), self.value()),
            };
            text += self.one(ENDS);
        }
        text
    }
}

/// What a file comes to: raw value, value, and the name of Python's error, by section and option.
type Found = BTreeMap<String, BTreeMap<String, (String, Option<String>, Option<&'static str>)>>;

fn found(ini: &Ini) -> Found {
    let environment = |name: &str| (name == VARIABLE.0).then(|| VARIABLE.1.to_owned());
    let options = |section: &Section| {
        let resolver = Resolver::new(ini, section, &environment);
        let names: BTreeSet<&String> = section.options.keys().chain(ini.defaults.options.keys()).collect();
        let option = |name: &String| {
            let raw = resolver.setting(name).unwrap().raw.clone();
            let (value, error) = match resolver.value(name).unwrap() {
                Ok(value) => (Some(value.text), None),
                Err(Unresolved::Missing(_)) => (None, Some("InterpolationMissingOptionError")),
                Err(Unresolved::Syntax) => (None, Some("InterpolationSyntaxError")),
                Err(Unresolved::Depth | Unresolved::TooLong) => (None, Some("InterpolationDepthError")),
            };
            (name.clone(), (raw, value, error))
        };
        names.into_iter().map(option).collect()
    };
    ini.sections.iter().map(|section| (section.name.clone(), options(section))).collect()
}

fn python(folder: &Path) -> Vec<Value> {
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).arg(folder).args([VARIABLE.0, VARIABLE.1]).env("PYTHONUTF8", "1");
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("this test compares with a real Python: install python3 (Debian's package `python3`)")
        }
        ran => ran.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_file_is_to_tidings_what_it_is_to_python() {
    let folder = tempfile::tempdir().unwrap();
    let mut chance = Chance(0x7469_6469_6e67_7321);
    let texts: Vec<String> = (0..FILES).map(|_| chance.file()).collect();
    for (place, text) in texts.iter().enumerate() {
        fs::write(folder.path().join(format!("{place:05}")), text).unwrap();
    }
    let answers = python(folder.path());
    assert_eq!(answers.len(), FILES);
    let (mut refused, mut values, mut errors) = (0, 0, 0);
    for (text, answer) in texts.iter().zip(answers) {
        let (ini, faults) = ini::parse(text);
        if let Some(line) = answer["refused"].as_u64() {
            assert!(faults.iter().any(|fault| fault.line as u64 == line), "{text:?}: Python refuses line {line}: {faults:?}");
            refused += 1;
            continue;
        }
        assert_eq!(faults, [], "{text:?}");
        let found = found(&ini);
        assert_eq!(serde_json::to_value(&found).unwrap(), answer["found"], "{text:?}");
        for (_, value, _) in found.values().flat_map(BTreeMap::values) {
            *(if value.is_some() { &mut values } else { &mut errors }) += 1;
        }
    }
    // Each kind came often enough for the comparison to mean something.
    assert!(refused > FILES / 10 && refused < FILES * 9 / 10, "{refused} refused");
    assert!(values > FILES / 4 && errors > FILES / 20, "{values} values, {errors} errors");
}
