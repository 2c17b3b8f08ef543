//! Topics, and the templates that make them.
//!
//! A [`Topic`] can't be wrong: whoever holds one may publish to it. That matters because a broker answers a bad topic by closing
//! the connection, and everything behind it would wait. A [`TopicTemplate`] is parsed when the configuration is loaded, so that a
//! misspelt component is found then, and rendering fails only for what a report lacks.

mod template;

pub use template::{RenderError, TemplateError, TopicTemplate};

use std::fmt;

use thiserror::Error;

/// The longest topic, in bytes of UTF-8: its length is sent in 16 bits (MQTT 5.0 §1.5.4).
pub const MAX_TOPIC: usize = 65_535;

/// First levels that belong to the broker. What is published there is dropped by some without a word, and acknowledged.
///
/// Other topics beginning with `$` are left alone: there are brokers that take publishes on some (`$aws/rules/…`).
const BROKERS_OWN: [&str; 2] = ["$SYS", "$share"];

/// A topic name that can be published to (MQTT 5.0 §4.7): not empty, at most [`MAX_TOPIC`] bytes, no wildcards, no control or
/// non-characters (§1.5.4: a receiver may close the connection for them, and mosquitto does), none of the broker's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(String);

/// Why a text is no topic.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TopicError {
    /// It has no characters at all.
    #[error("the topic is empty")]
    Empty,
    /// It doesn't fit into the packet.
    #[error("the topic has {bytes} bytes, at most {MAX_TOPIC} can be sent")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It has `+` or `#`, which are for subscriptions.
    #[error("the topic contains the wildcard `{found}`")]
    Wildcard {
        /// Which.
        found: char,
    },
    /// It has a character that brokers may not accept.
    #[error("the topic contains U+{:04X}, for which brokers may close the connection", u32::from(*found))]
    Character {
        /// Which.
        found: char,
    },
    /// It belongs to the broker.
    #[error("topics below `{level}` are the broker's own")]
    BrokersOwn {
        /// The first level.
        level: &'static str,
    },
}

impl TopicError {
    /// Stable, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            TopicError::Empty => "topic_empty",
            TopicError::TooLong { .. } => "topic_too_long",
            TopicError::Wildcard { .. } => "topic_wildcard",
            TopicError::Character { .. } => "topic_character",
            TopicError::BrokersOwn { .. } => "topic_reserved",
        }
    }
}

impl Topic {
    /// Checks the text.
    ///
    /// # Errors
    /// Says what in it can't be in a topic name.
    pub fn new(text: impl Into<String>) -> Result<Topic, TopicError> {
        let text = text.into();
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        if text.len() > MAX_TOPIC {
            return Err(TopicError::TooLong { bytes: text.len() });
        }
        // Nearly every topic passes here, at a byte a look.
        if !text.bytes().all(is_harmless) {
            if let Some(found) = text.chars().find(|c| is_wildcard(*c)) {
                return Err(TopicError::Wildcard { found });
            }
            if let Some(found) = text.chars().find(|c| is_risky(*c)) {
                return Err(TopicError::Character { found });
            }
        }
        match brokers_own(&text) {
            Some(level) => Err(TopicError::BrokersOwn { level }),
            None => Ok(Topic(text)),
        }
    }

    /// The topic as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic as text, without a copy.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsRef<str> for Topic {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Printable ASCII without the wildcards.
fn is_harmless(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'+' | b'#')
}

fn is_wildcard(c: char) -> bool {
    matches!(c, '+' | '#')
}

/// Control characters, and the code points that Unicode promises never to assign: the last two of each plane, U+FDD0 to U+FDEF.
fn is_risky(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || code & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&code)
}

/// The first level of a topic, if it is the broker's.
fn brokers_own(text: &str) -> Option<&'static str> {
    if !text.starts_with('$') {
        return None;
    }
    let first = text.split('/').next().unwrap_or_default();
    BROKERS_OWN.into_iter().find(|level| *level == first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_topic_is_what_a_broker_takes() {
        for text in ["a", "/", "a//b", "a b/ü/✓", "None", "$aws/rules/x", "$SYSTEM/x", "a/$SYS"] {
            assert_eq!(Topic::new(text).unwrap().as_str(), text);
        }
        assert_eq!(Topic::new("x".repeat(MAX_TOPIC)).unwrap().as_str().len(), MAX_TOPIC);
    }

    #[test]
    fn a_topic_that_a_broker_would_choke_on_can_not_be_made() {
        let cases = [
            ("", "topic_empty"),
            ("a/+/b", "topic_wildcard"),
            ("a/#", "topic_wildcard"),
            ("a\0b", "topic_character"),
            ("a\nb", "topic_character"),
            ("a\u{7f}", "topic_character"),
            ("a\u{85}", "topic_character"),
            ("a\u{fdd0}", "topic_character"),
            ("a\u{10ffff}", "topic_character"),
            ("$SYS", "topic_reserved"),
            ("$SYS/broker/x", "topic_reserved"),
            ("$share/g/x", "topic_reserved"),
        ];
        for (text, code) in cases {
            assert_eq!(Topic::new(text).unwrap_err().code(), code, "{text:?}");
        }
        assert_eq!(Topic::new("é".repeat(MAX_TOPIC / 2 + 1)), Err(TopicError::TooLong { bytes: 65_536 }), "bytes count, not characters");
    }

    proptest! {
        #[test]
        fn whatever_becomes_a_topic_is_sendable(text in any::<String>()) {
            if let Ok(topic) = Topic::new(text.clone()) {
                prop_assert_eq!(topic.as_str(), text.as_str());
                prop_assert!(!text.is_empty() && !text.contains(['+', '#', '\0']));
            }
        }
    }
}
