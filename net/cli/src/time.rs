//! Points in time as people write them, to and from milliseconds since 1970 (UTC). Reads no clock.

/// Milliseconds since 1970 that `text` names: a number of milliseconds, or a date in the manner of RFC 3339
/// (`2026-01-31`, `2026-01-31T12:00`, `2026-01-31T12:00:00.250Z`, `…+02:00`). No zone means UTC.
///
/// # Errors
/// A sentence that says what was expected.
pub(crate) fn parse_timestamp_ms(text: &str) -> Result<i64, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text} milliseconds is too far in the future"));
    }
    parse_date(text)
        .ok_or_else(|| format!("{text:?} is not a time: write milliseconds since 1970, or 2026-01-31T12:00:00Z"))
}

/// `ms` milliseconds since 1970 as `2026-01-31T12:00:00.250Z`.
pub(crate) fn format_timestamp(ms: i64) -> String {
    let days = ms.div_euclid(86_400_000);
    let in_day = ms.rem_euclid(86_400_000);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second, milli) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60, in_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn parse_date(text: &str) -> Option<i64> {
    let (date, clock) = match text.split_once(['T', 't', ' ']) {
        Some((date, clock)) => (date, Some(clock)),
        None => (text, None),
    };
    let mut fields = date.split('-');
    let year: i64 = number(fields.next()?, 4)?;
    let month: i64 = number(fields.next()?, 2)?;
    let day: i64 = number(fields.next()?, 2)?;
    if fields.next().is_some() || !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    let midnight = days_from_civil(year, month, day) * 86_400_000;
    Some(midnight + clock.map_or(Some(0), parse_clock)?)
}

/// Milliseconds after midnight UTC of `12:00`, `12:00:00`, `12:00:00.250`, each with an optional `Z` or `+02:00`.
fn parse_clock(text: &str) -> Option<i64> {
    let (clock, zone_minutes) = match text.find(['Z', 'z', '+', '-']) {
        None => (text, 0),
        Some(at) => (text.get(..at)?, parse_zone(text.get(at..)?)?),
    };
    let mut fields = clock.split(':');
    let hour: i64 = number(fields.next()?, 2)?;
    let minute: i64 = number(fields.next()?, 2)?;
    let (second, milli) = fields.next().map_or(Some((0, 0)), parse_seconds)?;
    if fields.next().is_some() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some(((hour * 60 + minute - zone_minutes) * 60 + second) * 1_000 + milli)
}

fn parse_seconds(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let milli = fraction.bytes().chain(*b"00").take(3).fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    Some((number(whole, 2)?, milli))
}

/// Minutes east of UTC.
fn parse_zone(text: &str) -> Option<i64> {
    let sign = match text {
        "Z" | "z" => return Some(0),
        _ if text.starts_with('+') => 1,
        _ => -1,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let (hours, minutes): (i64, i64) = (number(hours, 2)?, number(minutes, 2)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Years start in March, so that a leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_parse() {
        assert_eq!(parse_timestamp_ms("0"), Ok(0));
        assert_eq!(parse_timestamp_ms("1970-01-01"), Ok(0));
        assert_eq!(parse_timestamp_ms("2000-02-29T23:59:59.999Z"), Ok(951_868_799_999));
        assert_eq!(parse_timestamp_ms("2001-09-09 01:46:40"), Ok(1_000_000_000_000));
        assert_eq!(parse_timestamp_ms("2001-09-09T03:46:40+02:00"), Ok(1_000_000_000_000));
        assert_eq!(parse_timestamp_ms("2001-09-09T01:46"), Ok(999_999_960_000));
        assert_eq!(parse_timestamp_ms("1969-12-31T23:59:59.5Z"), Ok(-500));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "noon", "2001-02-29", "2001-13-01", "2001-01-01T24:00", "2001-01-01T1:00", "2001-01-01T01:00+2"]
        {
            assert!(parse_timestamp_ms(text).is_err(), "{text}");
        }
        assert!(parse_timestamp_ms("99999999999999999999").is_err());
    }

    #[test]
    fn formatting_and_parsing_agree() {
        for ms in [0, 1, -1, 951_868_799_999, 1_769_860_800_000, 4_102_444_800_000, -86_400_001] {
            assert_eq!(parse_timestamp_ms(&format_timestamp(ms)), Ok(ms));
        }
    }
}
