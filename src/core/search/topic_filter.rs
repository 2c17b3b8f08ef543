//! Topic filters with wildcards (MQTT 5.0 §4.7), to look for topics with.

/// A topic filter that is valid by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFilter(String);

/// The longest filter, in bytes, which is the longest topic (MQTT 5.0 §1.5.4).
const LONGEST: usize = 65_535;

/// Why a text is no topic filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopicFilter {
    /// Empty, or longer than a topic can be.
    #[error("a topic filter has 1 to {LONGEST} bytes")]
    Length,
    /// `+` beside other characters.
    #[error("+ stands for a whole level, so it has to stand alone between slashes")]
    Plus,
    /// `#` elsewhere than at the end.
    #[error("# stands for everything from there on, so it has to be the last level, alone")]
    Hash,
    /// A character that no topic has.
    #[error("a topic has no null character")]
    Null,
}

impl TopicFilter {
    /// Reads a filter.
    ///
    /// # Errors
    /// See [`InvalidTopicFilter`].
    pub fn parse(text: &str) -> Result<Self, InvalidTopicFilter> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(InvalidTopicFilter::Length);
        }
        if text.contains('\0') {
            return Err(InvalidTopicFilter::Null);
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('+') && level != "+" {
                return Err(InvalidTopicFilter::Plus);
            }
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(InvalidTopicFilter::Hash);
            }
        }
        Ok(TopicFilter(text.to_owned()))
    }

    /// The one topic that it means, if it has no wildcards.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains(['+', '#'])).then_some(&self.0)
    }

    /// Whether a topic is meant. A wildcard in the first level means no topic that begins with `$` (MQTT 5.0 §4.7.2).
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = topic.split('/');
        for wanted in self.0.split('/') {
            match (wanted, levels.next()) {
                // Also where nothing follows: `a/#` means `a`, too (MQTT 5.0 §4.7.1.2).
                ("#", _) => return true,
                (_, None) => return false,
                ("+", Some(_)) => {}
                (wanted, Some(level)) if wanted == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_match_as_the_standard_has_it() {
        for (filter, topic) in [
            ("a/b", "a/b"),
            ("a/+", "a/b"),
            ("a/+", "a/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("#", "a/b/c"),
            ("a/#", "a"),
            ("a/#", "a/b/c"),
            ("a/+/c", "a//c"),
            ("$SYS/#", "$SYS/x"),
        ] {
            assert!(TopicFilter::parse(filter).unwrap().matches(topic), "{filter} means {topic}");
        }
        for (filter, topic) in [
            ("a/b", "a"),
            ("a", "a/b"),
            ("a/+", "a"),
            ("a/+", "a/b/c"),
            ("+", "/finance"),
            ("#", "$SYS/x"),
            ("+/x", "$SYS/x"),
            ("a/b/#", "a"),
            ("A", "a"),
        ] {
            assert!(!TopicFilter::parse(filter).unwrap().matches(topic), "{filter} does not mean {topic}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for (text, expected) in [
            ("", InvalidTopicFilter::Length),
            ("a+/b", InvalidTopicFilter::Plus),
            ("a/++", InvalidTopicFilter::Plus),
            ("a/#/b", InvalidTopicFilter::Hash),
            ("a#", InvalidTopicFilter::Hash),
            ("a\0", InvalidTopicFilter::Null),
        ] {
            assert_eq!(TopicFilter::parse(text), Err(expected), "{text:?}");
        }
        assert_eq!(TopicFilter::parse(&"a".repeat(65_536)), Err(InvalidTopicFilter::Length));
    }
}
