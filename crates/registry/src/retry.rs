//! How long to wait before asking again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, header};

use crate::limits;

/// The times of one client; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) first_delay: Duration,
    pub(crate) retry_after_max: Duration,
    pub(crate) head_timeout: Duration,
    pub(crate) stall_window: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_delay: limits::RETRY_DELAY,
            retry_after_max: limits::RETRY_AFTER_MAX,
            head_timeout: limits::HEAD_TIMEOUT,
            stall_window: limits::STALL_WINDOW,
        }
    }
}

impl Pace {
    /// The wait after the `failed`-th failure (from 1): what the server asked for, or doubling, with
    /// up to half of it added by chance, so that nodes that failed together do not come back together.
    pub(crate) fn delay(&self, failed: u32, asked: Option<Duration>) -> Duration {
        if let Some(asked) = asked {
            return asked.min(self.retry_after_max);
        }
        let base = self.first_delay * (1 << failed.saturating_sub(1).min(5));
        // A RandomState is seeded by the system: chance enough, without a generator of our own.
        let chance = u32::try_from(RandomState::new().hash_one(failed) % 512).unwrap_or(0);
        (base + base * chance / 1024).min(self.retry_after_max)
    }
}

/// `Retry-After`: seconds or a date (RFC 9110, 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = UNIX_EPOCH + Duration::from_secs(unix_seconds(text)?);
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970.
fn unix_seconds(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_weekday, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next().filter(|m| m.len() == 3)?;
    let month = u64::try_from(MONTHS.find(month)? / 3 + 1).ok()?;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|p| p.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if parts.next() != Some("GMT") || !(1970..=9999).contains(&year) || day > 31 || hour > 24 {
        return None;
    }
    // Days since the civil epoch, with March as the first month so that leap days come last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day;
    let since_1970 = days.checked_sub(719_469)?;
    Some(since_1970 * 86_400 + hour * 3_600 + minute.min(60) * 60 + second.min(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_read() {
        assert_eq!(unix_seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            unix_seconds("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(
            unix_seconds("Tue, 29 Feb 2028 23:59:60 GMT"),
            Some(1_835_481_600)
        );
        for bad in [
            "",
            "soon",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
        ] {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_server_cannot_make_us_wait_for_hours() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "86400".parse().unwrap());
        let pace = Pace::default();
        assert_eq!(
            pace.delay(1, retry_after(&headers)),
            Duration::from_secs(60)
        );
        assert!(pace.delay(1, None) >= Duration::from_millis(500));
        assert!(pace.delay(2, None) >= Duration::from_secs(1));
        assert!(pace.delay(u32::MAX, None) <= Duration::from_secs(60));
    }
}
