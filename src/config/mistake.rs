//! Mistakes in a configuration: each with its place, all of them together.

use std::fmt;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file's name, as it was given.
    pub file: String,
    /// The line, counted from 1; none if it is about the file as a whole.
    pub line: Option<usize>,
    /// The key, such as `connection.mqtt.port`; none if the text could not be read as TOML.
    pub key: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Mistake {
    /// A mistake about the file as a whole.
    pub(super) fn of_file(file: &str, message: String) -> Mistake {
        Mistake { file: file.to_owned(), line: None, key: None, message }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Every mistake in a configuration, in the order of lines. Prints one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

impl ConfigErrors {
    pub(super) fn one(mistake: Mistake) -> ConfigErrors {
        ConfigErrors { mistakes: vec![mistake] }
    }

    /// Stable, for machines.
    pub fn code(&self) -> &'static str {
        "invalid_config"
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, mistake) in self.mistakes.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The known name that was probably meant.
pub(super) fn closest<'n>(meant: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // One slip in a short name, two in a longer one: more would suggest what nobody meant.
    let most = if meant.chars().count() < 5 { 1 } else { 2 };
    let near = known.into_iter().map(|name| (slips(meant, name), name)).filter(|(slips, _)| *slips <= most);
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

/// How many letters have to be typed, dropped, replaced or swapped with their neighbour to come from one name to the other.
fn slips(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut fewest = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                fewest = fewest.min(before_last[j - 2] + 1);
            }
            row.push(fewest);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood_and_a_different_word_is_not() {
        let known = ["port", "server", "keepalive", "include-returned-data"];
        assert_eq!(closest("prot", known), Some("port"));
        assert_eq!(closest("serve", known), Some("server"));
        assert_eq!(closest("include_returned_data", known), Some("include-returned-data"));
        assert_eq!(closest("keep-alive", known), Some("keepalive"));
        assert_eq!(closest("host", known), None);
        assert_eq!(closest("", known), None);
    }
}
