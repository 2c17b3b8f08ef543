//! Spans of time, as people write them: `2h`, `1d 12h`.

use std::time::Duration;

/// The span that a text says. None if it says none, or one that is longer than there are numbers for.
///
/// Part by part: of several whose sum is too much `humantime` makes a panic and not an error.
pub fn parse(text: &str) -> Option<Duration> {
    let parts = parts(text);
    if let [_] = parts[..] {
        return humantime::parse_duration(text).ok();
    }
    let has_unit = |part: &&str| part.contains(char::is_alphabetic);
    parts.iter().try_fold(Duration::ZERO, |sum, part| {
        let span = humantime::parse_duration(Some(part).filter(|part| has_unit(part))?).ok()?;
        sum.checked_add(span)
    })
}

/// Each number with its unit: a digit behind a unit begins the next one.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut begun, mut is_unit) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if c.is_ascii_digit() && is_unit {
            parts.push(&text[begun..at]);
            begun = at;
        }
        is_unit = c.is_alphabetic() || is_unit && c.is_whitespace();
    }
    parts.push(&text[begun..]);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_span_is_the_sum_of_its_parts_and_one_that_is_too_long_is_none() {
        assert_eq!(parse("1d 12h"), Some(Duration::from_secs(36 * 3_600)));
        assert_eq!(parse(" 1m30s500ms "), Some(Duration::from_millis(90_500)));
        assert_eq!(parse("1.5h"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse("0"), Some(Duration::ZERO));
        assert_eq!(parse("18446744073709551615s 999ms"), Some(Duration::new(u64::MAX, 999_000_000)));
        for wrong in ["", "2", "h", "1d 2", "1d 0", "-2h", "2 parsecs", "18446744073709551615s 1000ms", "18446744073709551615s 1s"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_said_in_parts_is_what_humantime_makes_of_it(text in "([0-9]{1,6} ?(ns|us|ms|s|m|h|d|weeks|M|y) ?){0,4}") {
            prop_assert_eq!(parse(&text), humantime::parse_duration(&text).ok());
        }
    }
}
