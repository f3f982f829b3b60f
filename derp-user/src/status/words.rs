//! Numbers in words, the same on the page and in the terminal.

use std::time::{Duration, UNIX_EPOCH};

/// A number with at most four digits and a prefix of the SI: `999`, `1.5 k`, `12 M`.
pub fn number(value: f64) -> String {
    scaled(value, ["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes by the second as bits by the second, which is how links are measured.
pub fn bits(bytes_per_second: f64) -> String {
    scaled(
        bytes_per_second * 8.0,
        ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"],
    )
}

/// An amount of bytes.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, ["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A rate by the second.
pub fn rate(per_second: f64) -> String {
    format!("{}/s", number(per_second))
}

/// Packets by the second.
pub fn packets(per_second: f64) -> String {
    format!("{} packets/s", number(per_second))
}

/// A time in its two largest units.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A moment, given in seconds since the Unix epoch.
pub fn date(seconds: u64) -> String {
    /// The end of the year 9999, beyond which dates have no common form.
    const LAST: u64 = 253_402_300_799;
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.min(LAST)))
}

fn scaled(value: f64, units: [&str; 7]) -> String {
    let (mut number, mut unit) = (if value.is_finite() { value } else { 0.0 }, 0);
    // What is rounded up to 1000 has the next unit.
    while number.abs() >= 999.5 && unit + 1 < units.len() {
        (number, unit) = (number / 1000.0, unit + 1);
    }
    let is_whole = unit == 0 && number.fract() == 0.0;
    let digits = if is_whole || number.abs() >= 99.95 {
        0
    } else if number.abs() >= 9.995 {
        1
    } else {
        2
    };
    let text = format!("{number:.digits$} {}", units[unit]);
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (value, expected) in [
            (0.0, "0"),
            (7.0, "7"),
            (0.5, "0.50"),
            (12.34, "12.3"),
            (999.0, "999"),
            (999.6, "1.00 k"),
            (1000.0, "1.00 k"),
            (12_345.0, "12.3 k"),
            (123_456.0, "123 k"),
            (1e6, "1.00 M"),
            (f64::NAN, "0"),
            (1e30, "1000000000000 E"),
        ] {
            assert_eq!(number(value), expected, "{value}");
        }
        assert_eq!(bits(125_000.0), "1.00 Mbit/s");
        assert_eq!(bits(0.0), "0 bit/s");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        assert_eq!(date(1_900_000_000), "Sun, 17 Mar 2030 17:46:40 GMT");
        assert_eq!(date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!((rate(3.0).as_str(), rate(1500.0).as_str()), ("3/s", "1.50 k/s"));
    }
}
