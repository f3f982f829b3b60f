//! Durations as Go writes them: `15s`, `1h30m`, `1.5s`, `-1ms`, `0`.

use std::{fmt, str::FromStr, time::Duration};

const NANOSECOND: u64 = 1;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Longest first where one unit begins with another.
const UNITS: [(&str, u64); 8] = [
    ("ns", NANOSECOND),
    ("us", MICROSECOND),
    ("\u{b5}s", MICROSECOND),
    ("\u{3bc}s", MICROSECOND),
    ("ms", MILLISECOND),
    ("s", SECOND),
    ("m", MINUTE),
    ("h", HOUR),
];

/// A signed duration with the range and text form of Go's `time.Duration`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GoDuration {
    nanoseconds: i64,
}

/// The text is no duration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// Not a sequence of numbers with units.
    #[error("write a duration like 15s, 1h30m or 100ms")]
    Syntax,
    /// A number stands without `ns`, `us`, `ms`, `s`, `m` or `h`.
    #[error("a duration needs a unit, as in 15s, 1h30m or 100ms")]
    Unit,
    /// Beyond the 292 years that 64 bits of nanoseconds can hold.
    #[error("the duration is too long")]
    Range,
}

impl GoDuration {
    /// A duration of whole seconds.
    pub const fn from_seconds(seconds: u32) -> Self {
        Self { nanoseconds: seconds as i64 * SECOND as i64 }
    }

    /// A duration of nanoseconds.
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self { nanoseconds }
    }

    /// The duration, or `None` if it is negative.
    pub fn to_duration(self) -> Option<Duration> {
        u64::try_from(self.nanoseconds).ok().map(Duration::from_nanos)
    }

    /// Whether this is no time at all.
    pub fn is_zero(self) -> bool {
        self.nanoseconds == 0
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) | None => (false, text),
        };
        if rest == "0" {
            return Ok(Self { nanoseconds: 0 });
        }
        if rest.is_empty() {
            return Err(DurationError::Syntax);
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (part, after) = leading_part(rest)?;
            total = total.checked_add(part).ok_or(DurationError::Range)?;
            rest = after;
        }
        let nanoseconds = i64::try_from(total).map_err(|_| DurationError::Range)?;
        Ok(Self { nanoseconds: if negative { -nanoseconds } else { nanoseconds } })
    }
}

/// Takes one number with its unit off the front: nanoseconds, and what follows.
fn leading_part(text: &str) -> Result<(u64, &str), DurationError> {
    let (whole, after_whole) = leading_digits(text);
    let (fraction, after_number) = match after_whole.strip_prefix('.') {
        Some(after_point) => leading_digits(after_point),
        None => ("", after_whole),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::Syntax);
    }
    let (unit, after_unit) = UNITS
        .iter()
        .find_map(|(name, unit)| after_number.strip_prefix(name).map(|after| (*unit, after)))
        .ok_or(DurationError::Unit)?;
    let whole = match whole {
        "" => 0,
        digits => digits.parse::<u64>().map_err(|_| DurationError::Range)?,
    };
    let mut part = whole.checked_mul(unit).ok_or(DurationError::Range)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        part = part.checked_add(u64::from(digit - b'0') * place).ok_or(DurationError::Range)?;
    }
    Ok((part, after_unit))
}

fn leading_digits(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.nanoseconds.unsigned_abs();
        if rest == 0 {
            return formatter.write_str("0s");
        }
        if self.nanoseconds < 0 {
            formatter.write_str("-")?;
        }
        for (name, unit) in [
            ("h", HOUR),
            ("m", MINUTE),
            ("s", SECOND),
            ("ms", MILLISECOND),
            ("us", MICROSECOND),
            ("ns", NANOSECOND),
        ] {
            if rest >= unit {
                write!(formatter, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("-0", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("-5s", -5_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("100ms", 100_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1m0.25s", 60_250_000_000),
            ("3us4ns", 3_004),
            ("3\u{b5}s", 3_000),
            ("0.0000000001s", 0),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration { nanoseconds }), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for (text, error) in [
            ("", DurationError::Syntax),
            ("-", DurationError::Syntax),
            ("s", DurationError::Syntax),
            (".s", DurationError::Syntax),
            ("5 s", DurationError::Unit),
            ("5", DurationError::Unit),
            ("5d", DurationError::Unit),
            ("5S", DurationError::Unit),
            ("9223372037s", DurationError::Range),
            ("99999999999999999999s", DurationError::Range),
            ("9000000000s9000000000s", DurationError::Range),
        ] {
            assert_eq!(text.parse::<GoDuration>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC*") {
            let _ = text.parse::<GoDuration>();
        }

        #[test]
        fn likely_texts_are_judged(text in "[-+]?([0-9.]{0,22}(ns|us|ms|s|m|h|))*") {
            let _ = text.parse::<GoDuration>();
        }

        #[test]
        fn display_is_read_back(nanoseconds in -i64::MAX..=i64::MAX) {
            let duration = GoDuration { nanoseconds };
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
