//! The time of day, and how a log line says it.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(u32::try_from(now.tv_nsec).unwrap_or(0)))
}

/// Length of a [`Stamp`].
pub(crate) const STAMP_LEN: usize = 30;

/// `2006-01-02T15:04:05.000000000Z`: RFC 3339 in UTC, always as wide, so that log lines sort as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([u8; STAMP_LEN]);

impl Stamp {
    /// Now.
    pub(crate) fn now() -> Self {
        Self::at(realtime_ns())
    }

    /// `ns` nanoseconds since 1970.
    pub(crate) fn at(ns: i64) -> Self {
        let seconds = ns.div_euclid(1_000_000_000);
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        let (year, month, day) = civil(days);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let parts = [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, of_day / 3600),
            (14, 2, of_day / 60 % 60),
            (17, 2, of_day % 60),
            (20, 9, ns.rem_euclid(1_000_000_000)),
        ];
        for (at, width, value) in parts {
            digits(&mut text[at..at + width], value);
        }
        Self(text)
    }

    /// Its characters.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn digits(place: &mut [u8], mut value: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value.rem_euclid(10)).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of a day number counted from 1970-01-01, in the proleptic Gregorian calendar.
/// Years are taken to begin in March, so that the leap day is their last one.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let from_march_0000 = days + 719_468;
    let era = from_march_0000.div_euclid(DAYS_IN_400_YEARS);
    let day_of_era = from_march_0000.rem_euclid(DAYS_IN_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ns: i64) -> String {
        String::from_utf8(Stamp::at(ns).bytes().to_vec()).unwrap()
    }

    #[test]
    fn stamps_have_a_fixed_width_and_know_leap_years() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(1), "1970-01-01T00:00:00.000000001Z");
        // date -u -d @951782399 and the next second; 2000 is a leap year.
        assert_eq!(
            text(951_782_399_999_999_999),
            "2000-02-28T23:59:59.999999999Z"
        );
        assert_eq!(
            text(951_782_400_000_000_000),
            "2000-02-29T00:00:00.000000000Z"
        );
        // 2100 is not.
        assert_eq!(
            text(4_107_542_400_000_000_000),
            "2100-03-01T00:00:00.000000000Z"
        );
        assert_eq!(
            text(1_795_226_400_123_000_000),
            "2026-11-21T02:00:00.123000000Z"
        );
    }
}
