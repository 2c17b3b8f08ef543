//! What a plain scalar is in YAML 1.1, which is what PyYAML reads and so Zuul: a number, a truth value, a date, or a text.
//!
//! In YAML 1.2 fewer things are anything else than a text, so a parser's own idea of it won't do. Compared with PyYAML 6.0 over
//! 260,000 random scalars.

use std::ops::RangeInclusive;

use super::yaml::Value;

/// What a plain scalar means in YAML 1.1, as PyYAML resolves it.
pub(super) fn plain(text: &str) -> Value<'_> {
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        Value::Null
    } else if let Some(flag) = truth(text) {
        Value::Bool(flag)
    } else if let Some(number) = whole(text) {
        Value::Whole(number)
    } else if is_float(text) {
        Value::Other("a fraction")
    } else if is_time(text) {
        Value::Other("a date")
    } else {
        Value::Text(text)
    }
}

/// A truth value, by any of its names: small, capitalized or in capitals.
pub(super) fn truth(text: &str) -> Option<bool> {
    const NAMES: [(&str, bool); 6] = [("yes", true), ("true", true), ("on", true), ("no", false), ("false", false), ("off", false)];
    let written = |name: &str| {
        // Small, capitalized or in capitals; `yEs` is a text.
        text == name || text == name.to_uppercase() || (text.eq_ignore_ascii_case(name) && text[1..] == name[1..])
    };
    NAMES.into_iter().find(|(name, _)| written(name)).map(|(_, flag)| flag)
}

/// A whole number: decimal, `0b…`, octal with a leading zero, `0x…`, or in sixties (`1:30`), with underscores anywhere but in front.
/// The outer option: whether it is one; the inner: whether it is of a size that means anything.
pub(super) fn whole(text: &str) -> Option<Option<i64>> {
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all = |text: &str, set: &dyn Fn(char) -> bool| !text.is_empty() && text.chars().all(|c| c == '_' || set(c));
    let number = |digits: &str, radix: u32| {
        // `0_` is zero to Python.
        let digits = format!("0{}", digits.replace('_', ""));
        let magnitude = i64::from_str_radix(&digits, radix).ok()?;
        Some(if negative { -magnitude } else { magnitude })
    };
    if let Some(binary) = digits.strip_prefix("0b") {
        return all(binary, &|c| matches!(c, '0' | '1')).then(|| number(binary, 2));
    }
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return all(hexadecimal, &|c| c.is_ascii_hexdigit()).then(|| number(hexadecimal, 16));
    }
    if digits == "0" {
        return Some(Some(0));
    }
    if let Some(octal) = digits.strip_prefix('0') {
        return all(octal, &|c| ('0'..='7').contains(&c)).then(|| number(octal, 8));
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut sixties = digits.split(':');
    let first = sixties.next().filter(|first| all(first, &|c| c.is_ascii_digit()))?;
    let mut value = number(first, 10);
    for part in sixties {
        let part = sixtieth(part)?;
        value = value.and_then(|value| value.checked_mul(60)?.checked_add(if negative { -part } else { part }));
    }
    Some(value)
}

/// A number with a point, perhaps with an exponent, which needs its sign; or in sixties (`1:30.5`), or infinite, or none.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let Some((before, after)) = unsigned.split_once('.') else { return false };
    let is_digits = |text: &str| text.chars().all(|c| c == '_' || c.is_ascii_digit());
    let begins_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let mut sixties = before.split(':');
    let first = sixties.next().unwrap_or_default();
    if before.contains(':') {
        return begins_with_digit(first) && is_digits(first) && sixties.all(|part| sixtieth(part).is_some()) && is_digits(after);
    }
    let (fraction, exponent) = match after.find(['e', 'E']) {
        None => (after, None),
        Some(at) => (&after[..at], Some(&after[at + 1..])),
    };
    let is_exponent = |text: &str| text.strip_prefix(['-', '+']).is_some_and(|digits| is_number(digits, 1..=usize::MAX));
    // Without anything before the point there is no sign either.
    let is_begun =
        if first.is_empty() { text.starts_with('.') && begins_with_digit(fraction) } else { begins_with_digit(first) && is_digits(first) };
    is_begun && is_digits(fraction) && exponent.is_none_or(is_exponent)
}

/// `2001-12-14`, or that with a time and perhaps a zone: `2001-12-14t21:59:43.10-05:00`.
fn is_time(text: &str) -> bool {
    let (date, time) = text.split_at(text.find(['T', 't', ' ', '\t']).unwrap_or(text.len()));
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    if time.is_empty() {
        return is_number(year, 4..=4) && is_number(month, 2..=2) && is_number(day, 2..=2);
    }
    let is_date = is_number(year, 4..=4) && is_number(month, 1..=2) && is_number(day, 1..=2);
    let time = if time.starts_with(['T', 't']) { &time[1..] } else { time.trim_start_matches([' ', '\t']) };
    let clock: Vec<&str> = time.splitn(3, ':').collect();
    let [hour, minute, rest] = clock[..] else { return false };
    let Some((second, rest)) = rest.split_at_checked(2) else { return false };
    let zone = rest.strip_prefix('.').map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    is_date && is_number(hour, 1..=2) && is_number(minute, 2..=2) && is_number(second, 2..=2) && (zone.is_empty() || is_zone(zone))
}

fn is_zone(text: &str) -> bool {
    let zone = text.trim_start_matches([' ', '\t']);
    let Some(offset) = zone.strip_prefix(['-', '+']) else { return zone == "Z" };
    match offset.split_once(':') {
        None => is_number(offset, 1..=2),
        Some((hours, minutes)) => is_number(hours, 1..=2) && is_number(minutes, 2..=2),
    }
}

/// The value of one place in sixties.
fn sixtieth(part: &str) -> Option<i64> {
    part.parse::<i64>().ok().filter(|value| *value < 60 && is_number(part, 1..=2))
}

fn is_number(text: &str, length: RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_scalar_means_what_it_means_to_pyyaml() {
        for text in ["yes", "Yes", "YES", "on", "On", "true", "TRUE"] {
            assert_eq!(plain(text), Value::Bool(true), "{text}");
        }
        for text in ["no", "off", "OFF", "False"] {
            assert_eq!(plain(text), Value::Bool(false), "{text}");
        }
        for (text, number) in [("0", 0), ("2", 2), ("+2", 2), ("-1_0", -10), ("010", 8), ("0x1F", 31), ("0b10", 2), ("1:30", 90), ("00", 0)]
        {
            assert_eq!(plain(text), Value::Whole(Some(number)), "{text}");
        }
        assert_eq!(plain("99999999999999999999"), Value::Whole(None));
        for text in ["", "~", "null", "NULL"] {
            assert_eq!(plain(text), Value::Null, "{text}");
        }
        for text in ["1.0", "1.", ".5", "-1.5e+3", "1:30.5", ".inf", "-.INF", ".NaN"] {
            assert_eq!(plain(text), Value::Other("a fraction"), "{text}");
        }
        for text in ["2024-01-31", "2024-1-1T1:00:00Z", "2001-12-14 21:59:43.10 -05:00"] {
            assert_eq!(plain(text), Value::Other("a date"), "{text}");
        }
        for text in [
            "y",
            "n",
            "yEs",
            "08",
            "1e5",
            "0o17",
            "a",
            "1.2.3",
            "-",
            "1:99",
            "2024-1-1",
            "nUll",
            "_1",
            "0b",
            "1a",
            "é",
            "82:.88",
            "3:.",
            "2001-12-14 21:59:43x",
            "2001-12-14T21:59:43 -5:3",
            "-.5",
        ] {
            assert_eq!(plain(text), Value::Text(text), "{text}");
        }
    }
}
