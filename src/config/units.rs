//! Durations and sizes, as they are written and shown.

use std::time::Duration;

use crate::core::span;

/// Units of sizes with their bytes, largest first within each kind. Binary ones are what is shown.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// The bytes of a text such as `10GiB`.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let (_, bytes) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(bytes)
}

/// A number of bytes in the largest binary unit that it is a multiple of.
pub fn format_size(bytes: u64) -> String {
    let unit = SIZE_UNITS[..4].iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    unit.map_or_else(|| format!("{bytes}B"), |(name, size)| format!("{}{name}", bytes / size))
}

/// The milliseconds of a text such as `30s` or `7d`.
pub(super) fn parse_duration_ms(text: &str) -> Option<u64> {
    u64::try_from(span::parse(text)?.as_millis()).ok()
}

/// A number of milliseconds, as humantime writes it.
pub fn format_duration(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_a_whole_number_and_a_unit() {
        assert_eq!(parse_size("10GiB"), Some(10 << 30));
        assert_eq!(parse_size(" 1 MiB "), Some(1 << 20));
        assert_eq!(parse_size("500MB"), Some(500_000_000));
        assert_eq!(parse_size("0B"), Some(0));
        for wrong in ["", "10", "GiB", "1.5GiB", "-1B", "10gib", "10G", "99999999999TiB", "1MiB 2KiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_duration_beyond_all_numbers_is_none() {
        assert_eq!(parse_duration_ms("1h 30m"), Some(5_400_000));
        for wrong in ["", "30", "18446744073709551615s 1000ms"] {
            assert_eq!(parse_duration_ms(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_size_that_is_shown_reads_back(number in 0u64..5_000, shift in prop::sample::select(vec![0u32, 3, 10, 20, 30, 40])) {
            prop_assert_eq!(parse_size(&format_size(number << shift)), Some(number << shift));
        }

        #[test]
        fn a_duration_that_is_shown_reads_back(ms in 0u64..100_000_000_000) {
            prop_assert_eq!(parse_duration_ms(&format_duration(ms)), Some(ms));
        }
    }
}
