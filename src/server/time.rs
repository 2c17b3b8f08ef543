//! Times in questions: RFC 3339, and how long ago.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::core::span;

/// A moment: RFC 3339 in UTC, or how long before `now_ms` (`2h`, `1d 12h`); in milliseconds since the Unix epoch.
///
/// # Errors
/// Says what was expected.
pub fn moment(text: &str, now_ms: u64) -> Result<u64, String> {
    let text = text.trim();
    if let Some(span) = span::parse(text) {
        return Ok(now_ms.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)));
    }
    let at = humantime::parse_rfc3339_weak(text).map_err(|_| {
        let example = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms.min(1 << 46)));
        format!("expected how long ago (2h, 30m, 1d 12h) or a time in UTC like {example}, found {text:?}")
    })?;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now = 1_524_801_179_855;
        assert_eq!(moment("2h", now), Ok(now - 7_200_000));
        assert_eq!(moment(" 1d 12h ", now), Ok(now - 36 * 3_600_000));
        assert_eq!(moment("2018-04-27T03:52:59.855Z", now), Ok(now));
        assert_eq!(moment("2018-04-27 03:52:59", now), Ok(now - 855));
        assert_eq!(moment("1000000d", now), Ok(0), "before all times is all of it");
        for wrong in
            ["", "yesterday", "2018-04-27T03:52:59+02:00", "-2h", "2 parsecs", "99999999999999999999d", "18446744073709551615s 1000ms"]
        {
            assert!(moment(wrong, now).unwrap_err().contains("like 2018-04-27T03:52:59Z"), "{wrong:?}");
        }
    }
}
