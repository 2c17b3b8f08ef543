//! `%(name)s` in the values of `zuul.conf`: Python's `BasicInterpolation`.
//!
//! A name is looked for in the section, then in `[DEFAULT]`, then among the environment's `ZUUL_*` variables, which is where Zuul
//! itself takes defaults from. `%%` is a percent sign, and any other `%` is a mistake. What is put in may refer further, ten deep.
//! Names lose their case before the look-up, so of the environment only variables in capitals are found.

use super::ini::{Ini, Section, Setting};

/// How deep references may refer to others: Python's `MAX_INTERPOLATION_DEPTH`.
const MAX_DEPTH: usize = 10;
/// How many references one value may take. Python has no bound; ten levels of ten would be enough to never end.
const MAX_REFERENCES: usize = 10_000;
/// The longest value, in bytes. A password has up to 65,535.
const MAX_VALUE: usize = 1 << 17;
/// What an environment variable has to begin with to be a default.
const VARIABLES: &str = "zuul_";
/// How much of a name that is not there is quoted, in characters.
const QUOTED: usize = 40;
/// The option whose value is never shown.
const SECRET: &str = "password";

/// A value in which every reference is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    /// The text.
    pub text: String,
    /// Whether the password is a part of it, other than by its own name.
    pub has_password: bool,
}

/// Why the references of a value can't be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// There is nothing of that name.
    Missing(String),
    /// A `%` that is neither `%%` nor the beginning of `%(name)s`.
    Syntax,
    /// References refer to each other too deeply, or in a circle.
    Depth,
    /// It would be longer, or take more references, than any value of a connection.
    TooLong,
}

impl Unresolved {
    /// What is wrong with the option `name`, without any part of its value if it is the password.
    pub(super) fn message(&self, name: &str) -> String {
        match self {
            Unresolved::Missing(_) if name == SECRET => "refers to a value that is not there: write `%%` for a percent sign".to_owned(),
            Unresolved::Missing(reference) => format!(
                "refers to `%({})s`, which is neither in this section nor in [DEFAULT] nor, in capitals, a ZUUL_ variable of the environment",
                reference.chars().take(QUOTED).collect::<String>()
            ),
            Unresolved::Syntax => {
                "has a `%` that is neither `%%` nor the beginning of `%(name)s`: write `%%` for a percent sign".to_owned()
            }
            Unresolved::Depth => format!("refers to values that refer to others more than {MAX_DEPTH} deep, or in a circle"),
            Unresolved::TooLong => format!("becomes longer than {MAX_VALUE} bytes, or takes more than {MAX_REFERENCES} references"),
        }
    }
}

/// Replaces references in one section.
pub(super) struct Resolver<'i> {
    ini: &'i Ini,
    section: &'i Section,
    environment: &'i dyn Fn(&str) -> Option<String>,
}

struct Progress {
    text: String,
    references: usize,
    has_password: bool,
}

impl<'i> Resolver<'i> {
    pub(super) fn new(ini: &'i Ini, section: &'i Section, environment: &'i dyn Fn(&str) -> Option<String>) -> Self {
        Resolver { ini, section, environment }
    }

    /// The option as it is written, of this section or of `[DEFAULT]`.
    pub(super) fn setting(&self, name: &str) -> Option<&'i Setting> {
        self.section.options.get(name).or_else(|| self.ini.defaults.options.get(name))
    }

    /// The option's value.
    ///
    /// # Errors
    /// If a reference in it can't be replaced.
    pub(super) fn value(&self, name: &str) -> Option<Result<Value, Unresolved>> {
        let setting = self.setting(name)?;
        let mut progress = Progress { text: String::new(), references: 0, has_password: false };
        let done = self.put(&setting.raw, 1, &mut progress);
        Some(done.map(|()| Value { text: progress.text, has_password: progress.has_password }))
    }

    fn put(&self, raw: &str, depth: usize, progress: &mut Progress) -> Result<(), Unresolved> {
        if depth > MAX_DEPTH {
            return Err(Unresolved::Depth);
        }
        let mut rest = raw;
        while let Some(at) = rest.find('%') {
            progress.push(&rest[..at])?;
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                progress.push("%")?;
                rest = after;
                continue;
            }
            let (name, after) = reference(rest).ok_or(Unresolved::Syntax)?;
            rest = after;
            progress.references += 1;
            if progress.references > MAX_REFERENCES {
                return Err(Unresolved::TooLong);
            }
            let name = name.to_lowercase();
            progress.has_password |= name == SECRET;
            match self.setting(&name).map(|setting| setting.raw.clone()).or_else(|| self.variable(&name)) {
                Some(found) if found.contains('%') => self.put(&found, depth + 1, progress)?,
                Some(found) => progress.push(&found)?,
                None => return Err(Unresolved::Missing(name)),
            }
        }
        progress.push(rest)
    }

    fn variable(&self, name: &str) -> Option<String> {
        name.starts_with(VARIABLES).then(|| (self.environment)(&name.to_uppercase())).flatten()
    }
}

impl Progress {
    fn push(&mut self, text: &str) -> Result<(), Unresolved> {
        self.text.push_str(text);
        if self.text.len() > MAX_VALUE { Err(Unresolved::TooLong) } else { Ok(()) }
    }
}

/// `(name)s…` → the name, and what follows.
fn reference(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('(')?.split_once(')')?;
    let after = after.strip_prefix('s')?;
    (!name.is_empty()).then_some((name, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::zuul::ini;

    /// The value of `x` in the first section.
    fn x(text: &str) -> Result<Value, Unresolved> {
        let (ini, faults) = ini::parse(text);
        assert_eq!(faults, []);
        let environment = |name: &str| (name == "ZUUL_HOST").then(|| "from-env".to_owned());
        Resolver::new(&ini, &ini.sections[0], &environment).value("x").unwrap()
    }

    fn text(of: &str) -> String {
        x(of).unwrap().text
    }

    #[test]
    fn a_reference_finds_section_then_default_then_environment() {
        assert_eq!(text("[a]\nx = %(Y)s-%%\ny = 1\n[DEFAULT]\ny = 2"), "1-%");
        assert_eq!(text("[DEFAULT]\nhost = h\nx = <%(host)s>\n[a]"), "<h>");
        assert_eq!(text("[a]\nx = %(zuul_host)s"), "from-env");
        assert_eq!(text("[a]\nx = %(ZUUL_HOST)s\nzuul_host = own"), "own");
    }

    #[test]
    fn what_can_not_be_replaced_is_said_why() {
        assert_eq!(x("[a]\nx = %(no)s"), Err(Unresolved::Missing("no".into())));
        assert_eq!(x("[a]\nx = %(HOST)s"), Err(Unresolved::Missing("host".into())));
        for wrong in ["50%", "% (a)s", "%(a)", "%()s", "%(a)d", "%a"] {
            assert_eq!(x(&format!("[a]\na = 1\nx = {wrong}")), Err(Unresolved::Syntax), "{wrong}");
        }
        assert_eq!(x("[a]\nx = %(x)s"), Err(Unresolved::Depth));
    }

    #[test]
    fn references_that_would_grow_without_end_are_refused() {
        let mut text = "[a]\nx = %(a0)s\n".to_owned();
        for level in 0..9 {
            text += &format!("a{level} = {}\n", format!("%(a{})s", level + 1).repeat(30));
        }
        assert_eq!(x(&(text.clone() + "a9 =\n")), Err(Unresolved::TooLong));
        assert_eq!(x(&(text + "a9 = long\n")), Err(Unresolved::TooLong));
    }

    #[test]
    fn what_a_password_is_part_of_is_known() {
        assert!(x("[a]\nx = %(y)s\ny = %(password)s\npassword = p").unwrap().has_password);
        assert!(!x("[a]\nx = 1\npassword = p").unwrap().has_password);
        assert!(!Unresolved::Missing("hunter2".into()).message("password").contains("hunter2"));
    }
}
