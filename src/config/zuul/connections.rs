//! `[connection NAME]` of `zuul.conf`: which of them lead to MQTT brokers, and what they say.
//!
//! Values are checked by what checks `[connection.NAME]` of `tidings.toml`, so bounds and messages are the same. What differs is what
//! Zuul makes of them before:
//! - an option that is there and empty is one that is not there, but for server, port and keepalive;
//! - numbers are what Python's `int()` takes: `+1883`, `1_883`;
//! - options that the driver doesn't know are ignored, and so is a password without a user. Both are noted;
//! - of two sections for one name (`[connection mqtt]`, `[connection "mqtt"]`) the later one counts, which is noted too.

use super::Findings;
use super::ini::{Ini, Section};
use super::interpolate::Resolver;
use crate::config::raw::{File, Setting, Table};
use crate::config::{ConnectionConfig, connection};

/// The options of Zuul's MQTT driver, in the order of its documentation.
const OPTIONS: [&str; 11] =
    ["driver", "server", "port", "keepalive", "user", "password", "ca_certs", "certfile", "keyfile", "ciphers", "client_id"];
/// Those that Zuul passes on even when they are empty.
const NEVER_ABSENT: [&str; 3] = ["server", "port", "keepalive"];
/// Those that are numbers.
const NUMBERS: [&str; 2] = ["port", "keepalive"];

/// The connections of a `zuul.conf`.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Those of the driver `mqtt`, in the order of the file.
    pub mqtt: Vec<MqttConnection>,
    /// The names of all others.
    pub others: Vec<String>,
}

/// A connection of the driver `mqtt`, and where its options stand.
#[derive(Debug, Clone)]
pub struct MqttConnection {
    /// What it says; not read if `tidings.toml` has a connection of that name.
    pub config: Option<ConnectionConfig>,
    /// Its name.
    pub name: String,
    /// The name of its section, without the brackets.
    pub section: String,
    /// Where the section begins.
    pub line: usize,
    /// Its options that the driver knows, in the order of [`OPTIONS`].
    pub options: Vec<OptionPlace>,
}

/// Where an option stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionPlace {
    /// Its name.
    pub name: &'static str,
    /// Its line.
    pub line: usize,
    /// Whether that is in `[DEFAULT]`, and so goes for other sections too.
    pub is_default: bool,
    /// What stands there, as it is written; none for the password.
    pub written: Option<String>,
}

impl MqttConnection {
    /// The option's place, if it is given.
    pub fn option(&self, name: &str) -> Option<&OptionPlace> {
        self.options.iter().find(|option| option.name == name)
    }
}

/// Reads them. `taken` are the names of the connections that `tidings.toml` gives itself: those are passed over.
pub(super) fn read(
    file: &File<'_>,
    ini: &Ini,
    taken: &[String],
    environment: &dyn Fn(&str) -> Option<String>,
    findings: &mut Findings,
) -> Connections {
    let mut connections = Connections::default();
    for section in &ini.sections {
        let Some(name) = name_of(&section.name) else { continue };
        let resolver = Resolver::new(ini, section, environment);
        let driver = match resolver.value("driver") {
            None => {
                file.note(Some(section.line), Some(format!("connection.{name}.driver")), "is required".to_owned());
                continue;
            }
            Some(driver) => driver,
        };
        match driver {
            Err(unresolved) => {
                let line = resolver.setting("driver").map(|setting| setting.line);
                file.note(line, Some(format!("connection.{name}.driver")), unresolved.message("driver"));
            }
            Ok(driver) if driver.text != "mqtt" => connections.others.push(name.to_owned()),
            Ok(_) => {
                let is_taken = taken.iter().any(|taken| taken == name);
                let reader = Reader { file, section, resolver, name };
                let connection = reader.connection(is_taken, environment, findings);
                if let Some(earlier) = connections.mqtt.iter().position(|known| known.name == name) {
                    let earlier = connections.mqtt.remove(earlier);
                    findings.note(format!(
                        "{}:{}: the connection `{name}` stands in line {} already; as in Zuul, the later one counts",
                        findings.name, section.line, earlier.line
                    ));
                }
                connections.mqtt.push(connection);
            }
        }
    }
    connections
}

/// The name in a section's, by Zuul's expression `^connection (['"]?)(.*)(\1)$`, in which case doesn't count.
fn name_of(section: &str) -> Option<&str> {
    const WORD: &str = "connection ";
    let (word, name) = section.split_at_checked(WORD.len())?;
    if !word.eq_ignore_ascii_case(WORD) {
        return None;
    }
    let unquoted = ['\'', '"'].into_iter().find_map(|quote| name.strip_prefix(quote)?.strip_suffix(quote));
    Some(unquoted.unwrap_or(name))
}

struct Reader<'r> {
    file: &'r File<'r>,
    section: &'r Section,
    resolver: Resolver<'r>,
    name: &'r str,
}

impl Reader<'_> {
    fn connection(&self, is_taken: bool, environment: &dyn Fn(&str) -> Option<String>, findings: &mut Findings) -> MqttConnection {
        let options = self.places();
        let config = if is_taken {
            findings.note(format!(
                "{}:{}: the connection `{}` is given in tidings.toml, and what stands here is not used",
                findings.name, self.section.line, self.name
            ));
            None
        } else {
            self.note_unknown(findings);
            if let Some(wrong) = connection::wrong_name(self.name) {
                self.file.note(Some(self.section.line), Some(format!("connection.{}", self.name)), wrong);
            }
            let settings = self.settings(&options, findings);
            // The file outlives what is read from it here, and the settings don't.
            let own = File::new("", "");
            let key = format!("connection.{}", self.name);
            let table = Table::of_settings(&own, &key, self.section.line, &settings);
            let config = connection::connection(self.name, table, environment);
            for mistake in own.into_mistakes() {
                self.file.note(mistake.line, mistake.key, mistake.message);
            }
            Some(config)
        };
        MqttConnection { config, name: self.name.to_owned(), section: self.section.name.clone(), line: self.section.line, options }
    }

    fn places(&self) -> Vec<OptionPlace> {
        let place = |name: &'static str| {
            let setting = self.resolver.setting(name)?;
            let is_default = !self.section.options.contains_key(name);
            let written = (name != "password").then(|| setting.raw.clone());
            Some(OptionPlace { name, line: setting.line, is_default, written })
        };
        OPTIONS.into_iter().filter_map(place).collect()
    }

    fn note_unknown(&self, findings: &mut Findings) {
        let mut unknown: Vec<_> = self.section.options.iter().filter(|(name, _)| !OPTIONS.contains(&name.as_str())).collect();
        unknown.sort_by_key(|(_, setting)| setting.line);
        for (name, setting) in unknown {
            findings.note(format!(
                "{}:{}: connection.{}.{name}: Zuul doesn't know this key and ignores it, and so does Tidings",
                findings.name, setting.line, self.name
            ));
            // Zuul puts in the references of what it ignores, too.
            if let Some(Err(unresolved)) = self.resolver.value(name) {
                self.mistake(setting.line, name, unresolved.message(name));
            }
        }
    }

    /// The options as Zuul understands them. What can't be understood is left out, and noted.
    fn settings(&self, options: &[OptionPlace], findings: &mut Findings) -> Vec<Setting> {
        let mut settings: Vec<Setting> = Vec::new();
        for OptionPlace { name, line, .. } in options {
            let value = match self.resolver.value(name) {
                None => continue,
                Some(Err(unresolved)) => {
                    self.mistake(*line, name, unresolved.message(name));
                    continue;
                }
                Some(Ok(value)) => value,
            };
            if value.has_password && *name != "password" {
                self.mistake(*line, name, "is made of the password, and this key is shown and logged".to_owned());
                continue;
            }
            if value.text.is_empty() && !NEVER_ABSENT.contains(name) {
                continue;
            }
            if value.text.is_empty() {
                self.mistake(*line, name, "is empty".to_owned());
                continue;
            }
            let number = NUMBERS.contains(name).then(|| python_int(&value.text)).flatten();
            settings.push(Setting { name, line: *line, is_number: number.is_some(), text: number.unwrap_or(value.text) });
        }
        // Without a user there is no password; where the user is wrong, that has been said.
        if !settings.iter().any(|setting| setting.name == "user")
            && let Some(place) = settings.iter().position(|setting| setting.name == "password")
        {
            let password = settings.remove(place);
            if self.resolver.value("user").is_none_or(|user| user.is_ok_and(|user| user.text.is_empty())) {
                findings.note(format!(
                    "{}:{}: connection.{}.password: there is no `user`; as in Zuul, no password is sent",
                    findings.name, password.line, self.name
                ));
            }
        }
        settings
    }

    fn mistake(&self, line: usize, name: &str, message: String) {
        self.file.note(Some(line), Some(format!("connection.{}.{name}", self.name)), message);
    }
}

/// A number as Python's `int()` takes it, in plain digits: a sign, digits, and single underscores between them.
fn python_int(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let groups: Vec<&str> = digits.split('_').collect();
    if !groups.iter().all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit())) {
        return None;
    }
    let digits = groups.concat();
    let digits = digits.trim_start_matches('0');
    Some(if digits.is_empty() { "0".to_owned() } else { format!("{sign}{digits}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_stand_in_quotes_that_match() {
        for (section, name) in [
            ("connection mqtt", "mqtt"),
            ("Connection 'mqtt'", "mqtt"),
            ("CONNECTION \"a b\"", "a b"),
            ("connection \"mqtt", "\"mqtt"),
            ("connection 'mqtt\"", "'mqtt\""),
            ("connection \"", "\""),
            ("connection \"\"", ""),
            ("connection  mqtt", " mqtt"),
        ] {
            assert_eq!(name_of(section), Some(name), "{section}");
        }
        for section in ["connection", "connections mqtt", " connection mqtt", "scheduler", "gerrit"] {
            assert_eq!(name_of(section), None, "{section}");
        }
    }

    #[test]
    fn numbers_are_what_python_takes() {
        for (text, number) in [("1883", "1883"), ("+1_883", "1883"), ("-5", "-5"), ("007", "7"), ("-0", "0"), ("0", "0")] {
            assert_eq!(python_int(text).as_deref(), Some(number), "{text}");
        }
        for text in ["", "+", "1__0", "_1", "1_", "1.0", "0x10", "1 0", "--1", "ten"] {
            assert_eq!(python_int(text), None, "{text}");
        }
    }
}
