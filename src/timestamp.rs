//! RFC 3339 times as Kubernetes writes and reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since the epoch and nanoseconds of a time in UTC, such as `2024-01-31T12:00:00.5Z`.
pub fn parse(text: &str) -> Option<(i64, u32)> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').map_or((time, None), |(time, f)| (time, Some(f)));
    let numbers = |text: &str, separator| -> Option<Vec<i64>> {
        text.split(separator).map(|part| part.parse().ok().filter(|n: &i64| *n >= 0)).collect()
    };
    let ([year, month, day], [hour, minute, second]) =
        (*numbers(date, '-')?.first_chunk()?, *numbers(time, ':')?.first_chunk()?);
    let valid = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let nanoseconds = fraction.map_or(Some(0), nanoseconds)?;
    // Days of the proleptic Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    valid.then_some((((days * 24 + hour) * 60 + minute) * 60 + second, nanoseconds))
}

fn nanoseconds(fraction: &str) -> Option<u32> {
    let digits = fraction.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Digits beyond nanoseconds say nothing that is kept.
    Some((0..9).fold(0, |n, i| n * 10 + u32::from(digits.get(i).map_or(0, |d| d - b'0'))))
}

/// The same as a point in time; times before 1970 have none.
pub fn parse_system_time(text: &str) -> Option<SystemTime> {
    let (seconds, nanoseconds) = parse(text)?;
    UNIX_EPOCH.checked_add(Duration::new(u64::try_from(seconds).ok()?, nanoseconds))
}

/// A time in UTC with nanoseconds; times before 1970 count as its start.
pub fn format(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // The reverse of `parse`: eras of 400 years, years that begin in March.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// The same with microseconds: Kubernetes' MicroTime takes no other number of digits.
pub fn format_micros(time: SystemTime) -> String {
    let text = format(time);
    format!("{}Z", text.get(..text.len().saturating_sub(4)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_times_have_six_digits() {
        assert_eq!(format_micros(UNIX_EPOCH + Duration::new(0, 1_234_999)), "1970-01-01T00:00:00.001234Z");
    }

    #[test]
    fn what_is_written_is_read() {
        // Figures of `date -u -d @SECONDS`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(format(UNIX_EPOCH + Duration::from_secs(seconds)), text);
            assert_eq!(parse(text), Some((seconds as i64, 0)));
        }
        let day = |n: u64| UNIX_EPOCH + Duration::new(n * 86_400 + n % 86_400, n as u32);
        for time in (0..80_000).map(day) {
            assert_eq!(parse_system_time(&format(time)), Some(time));
        }
    }

    #[test]
    fn fractions_are_optional() {
        assert_eq!(parse("1970-01-01T00:00:01Z"), Some((1, 0)));
        assert_eq!(parse("1970-01-01T00:00:01.5Z"), Some((1, 500_000_000)));
        assert_eq!(parse("1970-01-01T00:00:01.1234567891Z"), Some((1, 123_456_789)));
        for bad in [
            "",
            "1970-01-01T00:00:01",
            "1970-01-01T00:00:01.Z",
            "1970-01-01T00:00:01.+5Z",
            "1970-13-01T00:00:01Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
