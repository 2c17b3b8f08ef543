//! Numbers in topics, as Python writes them: Zuul's reporter renders a topic from what `json.loads` has made of a report.

/// A number of a report, by how it stands in it: a whole one keeps its digits, however many they are; any other is written as Python's `repr` does.
pub(super) fn as_python(written: &str) -> String {
    let is_whole = !written.contains(['.', 'e', 'E']);
    match (is_whole, written.parse::<f64>()) {
        // Python's whole numbers know no zero but one.
        (true, _) if written == "-0" => "0".to_owned(),
        (false, Ok(number)) => float(number),
        _ => written.to_owned(),
    }
}

/// Rust and Python both write the fewest digits that mean the same, and an exponent from 1e16 on and below 1e-4. Python's has a sign and two digits.
fn float(number: f64) -> String {
    let text = format!("{number:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `str(json.loads(…))` of Python 3 is.
    const KNOWN: &[(&str, &str)] = &[
        ("0", "0"),
        ("-0", "0"),
        ("-7", "-7"),
        ("18446744073709551616", "18446744073709551616"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("100000000000000000000000000000000000001", "100000000000000000000000000000000000001"),
        ("0.0", "0.0"),
        ("-0.0", "-0.0"),
        ("-0e0", "-0.0"),
        ("3.0", "3.0"),
        ("1.50e1", "15.0"),
        ("1E2", "100.0"),
        ("0.1", "0.1"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("1524801179.8557224", "1524801179.8557224"),
        ("1e15", "1000000000000000.0"),
        ("9999999999999998.0", "9999999999999998.0"),
        ("1e16", "1e+16"),
        ("12345678901234567890.0", "1.2345678901234567e+19"),
        ("-1.5e300", "-1.5e+300"),
        ("0.0001", "0.0001"),
        ("0.00009999", "9.999e-05"),
        ("1e-7", "1e-07"),
        ("5e-324", "5e-324"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
    ];

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (written, expected) in KNOWN {
            assert_eq!(as_python(written), *expected, "{written}");
        }
    }

    proptest! {
        #[test]
        fn two_whole_numbers_are_never_written_alike(one in "-?[1-9][0-9]{0,40}", other in "-?[1-9][0-9]{0,40}") {
            prop_assert_eq!(as_python(&one) == as_python(&other), one == other);
        }

        #[test]
        fn a_float_means_the_same_as_before(number in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO) {
            let written = as_python(&format!("{number:e}"));
            prop_assert_eq!(written.parse::<f64>().unwrap().to_bits(), number.to_bits());
            prop_assert!(written.contains(['.', 'e']), "{}", written);
        }
    }
}
