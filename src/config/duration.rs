//! Go's durations (`30s`, `1m30s`, `24h`), as `metav1.Duration` and kube-proxy's flags have them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A signed number of nanoseconds; Go's `time.Duration`.
///
/// In text it is a string only: `metav1.Duration` takes no numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

/// Text that is no duration.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotADuration {
    /// No digits, an odd sign, or an unknown unit.
    #[error("{0:?} is not a duration such as 30s, 1m30s or 24h")]
    Malformed(String),
    /// A number without a unit; only 0 may stand alone.
    #[error("{0:?} is not a duration: a unit is missing (ns, us, ms, s, m, h)")]
    NoUnit(String),
    /// More than 2^63 ns, some 292 years.
    #[error("{0:?} is not a duration: it is out of range (some 292 years)")]
    OutOfRange(String),
}

const SECOND: i64 = 1_000_000_000;
/// Nanoseconds of each unit. Both letters that look like a micro sign are taken, as in Go.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// Nothing.
    pub const ZERO: GoDuration = GoDuration(0);

    /// Of whole seconds; saturates.
    pub const fn from_secs(seconds: i64) -> GoDuration {
        GoDuration(seconds.saturating_mul(SECOND))
    }

    /// Of nanoseconds.
    pub const fn from_nanos(nanos: i64) -> GoDuration {
        GoDuration(nanos)
    }

    /// The length; `None` for a negative one.
    pub fn length(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }

    /// In nanoseconds.
    pub fn nanos(self) -> i64 {
        self.0
    }
}

/// A number: its whole part (an error where that is out of range), the digits behind the point with their scale, and
/// the text after it.
fn number(text: &str) -> Option<(Result<u64, ()>, u64, u64, &str)> {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let value = if whole.is_empty() { Ok(0) } else { whole.parse().map_err(|_| ()) };
    let (mut numerator, mut scale) = (0_u64, 1_u64);
    for digit in fraction.bytes() {
        let next = numerator.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0')));
        // Where Go's int64 is full, further digits are left out.
        let Some(next) = next.filter(|n| i64::try_from(*n).is_ok()) else { break };
        (numerator, scale) = (next, scale.saturating_mul(10));
    }
    Some((value, numerator, scale, rest))
}

impl FromStr for GoDuration {
    type Err = NotADuration;

    /// As Go's `time.ParseDuration`.
    fn from_str(text: &str) -> Result<GoDuration, NotADuration> {
        let malformed = || NotADuration::Malformed(text.into());
        let out_of_range = || NotADuration::OutOfRange(text.into());
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(GoDuration::ZERO);
        }
        if rest.is_empty() {
            return Err(malformed());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (whole, numerator, scale, after) = number(rest).ok_or_else(malformed)?;
            let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, next) = after.split_at(end);
            if unit.is_empty() {
                return Err(NotADuration::NoUnit(text.into()));
            }
            let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
            // In floating point, as Go does: the same text is the same number of nanoseconds.
            let fraction = (numerator as f64 * (*nanos as f64 / scale as f64)) as u64;
            let part = whole.ok().and_then(|w| w.checked_mul(*nanos));
            let part = part.and_then(|p| p.checked_add(fraction));
            total = part.and_then(|p| total.checked_add(p)).ok_or_else(out_of_range)?;
            rest = next;
        }
        let nanos = match negative {
            true => 0_i64.checked_sub_unsigned(total),
            false => i64::try_from(total).ok(),
        };
        nanos.map(GoDuration).ok_or_else(out_of_range)
    }
}

impl fmt::Display for GoDuration {
    /// As Go's `Duration.String`: `24h0m0s`, `1.5s`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let (unit, name) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s"),
        };
        let (mut whole, fraction) = (nanos / unit, nanos % unit);
        if name == "s" {
            let (hours, minutes) = (whole / 3600, whole / 60);
            if hours > 0 {
                write!(f, "{hours}h")?;
            }
            if minutes > 0 {
                write!(f, "{}m", minutes % 60)?;
            }
            whole %= 60;
        }
        write!(f, "{whole}")?;
        if fraction > 0 {
            let width = unit.ilog10() as usize;
            let digits = format!("{fraction:0width$}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str(name)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `TimeOrMetaDuration` of the logging section: a duration, or a number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NanosOrDuration(pub GoDuration);

impl Serialize for NanosOrDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NanosOrDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NanosOrDuration, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 5s, or nanoseconds")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
                Ok(GoDuration(nanos))
            }

            fn visit_u64<E: serde::de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                i64::try_from(nanos).map(GoDuration).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either).map(NanosOrDuration)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Go's own examples (time/time_test.go), and what stands in kube-proxy's configurations.
    #[test]
    fn what_go_reads() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("+0", 0),
            ("-0", 0),
            ("5s", 5 * SECOND),
            ("30s", 30 * SECOND),
            ("1478s", 1478 * SECOND),
            ("-5s", -5 * SECOND),
            ("+5s", 5 * SECOND),
            ("5.0s", 5 * SECOND),
            ("5.6s", 5_600_000_000),
            ("5.s", 5 * SECOND),
            (".5s", SECOND / 2),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("14s", 14 * SECOND),
            ("15m", 900 * SECOND),
            ("24h", 86_400 * SECOND),
            ("24h0m0s", 86_400 * SECOND),
            ("1m30s", 90 * SECOND),
            ("3h30m", 12_600 * SECOND),
            ("10.5s4m", 250_500_000_000),
            ("-2m3.4s", -123_400_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_200 * SECOND),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.100000000000000000000h", 360 * SECOND),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration(nanos)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses() {
        for text in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1.2.3s",
            "1d",
            "3000000h",
            "9223372036854775808ns",
            "9223372036854775.808us",
            "-9223372036854775809ns",
            "99999999999999999999s",
            " 5s",
            "5 s",
            "1e3s",
            "--5s",
            "30S",
            "10s5",
            "\u{85}1s",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
        let error = "30".parse::<GoDuration>().unwrap_err();
        assert_eq!(error.to_string(), "\"30\" is not a duration: a unit is missing (ns, us, ms, s, m, h)");
    }

    #[test]
    fn what_go_writes() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (250_000_000, "250ms"),
            (3_300_000_000, "3.3s"),
            (245 * SECOND, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (86_400 * SECOND, "24h0m0s"),
            (-90 * SECOND, "-1m30s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), text);
        }
    }

    #[test]
    fn only_logging_takes_numbers() {
        assert!(serde_json::from_str::<GoDuration>("5").is_err());
        let five = |json| serde_json::from_str::<NanosOrDuration>(json).unwrap().0;
        assert_eq!(five("5000000000"), GoDuration::from_secs(5));
        assert_eq!(five("\"5s\""), GoDuration::from_secs(5));
        assert_eq!(five("0"), GoDuration::ZERO);
        assert!(serde_json::from_str::<NanosOrDuration>("true").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(nanos: i64) {
            let text = GoDuration(nanos).to_string();
            prop_assert_eq!(text.parse(), Ok(GoDuration(nanos)));
        }

        #[test]
        fn nothing_panics(text in "[-+]?([0-9.]{0,25}(ns|us|µs|ms|s|m|h|x)?){0,4}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
