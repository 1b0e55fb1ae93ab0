//! Growing delays between tries: containers that crash, images that do not pull. Upstream: `flowcontrol.Backoff`.

use jiff::{SignedDuration, Timestamp};

/// First delay of a crashing container or a failing pull, in seconds.
pub const DELAY_SECONDS_MIN: i64 = 10;
/// Longest delay, in seconds.
pub const DELAY_SECONDS_MAX: i64 = 300;

/// The delay of one container or image; forgotten after twice the longest delay without failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The present delay in seconds.
    pub seconds: i64,
    /// When the delay was last raised.
    pub raised_at: Timestamp,
}

impl Backoff {
    /// The delay after one more try that begins at `now`, the last failure being at `failed_at`.
    #[must_use]
    pub fn next(before: Option<Self>, failed_at: Timestamp, now: Timestamp) -> Self {
        let seconds = match before {
            Some(before) if !before.expired(failed_at) => {
                (before.seconds * 2).min(DELAY_SECONDS_MAX)
            }
            _ => DELAY_SECONDS_MIN,
        };
        Self { seconds, raised_at: now }
    }

    /// When the next try may begin after a failure at `failed_at`.
    #[must_use]
    pub fn until(before: Option<Self>, failed_at: Timestamp) -> Option<Timestamp> {
        let before = before.filter(|before| !before.expired(failed_at))?;
        Some(later(failed_at, before.seconds))
    }

    fn expired(self, at: Timestamp) -> bool {
        at.duration_since(self.raised_at) > SignedDuration::from_secs(2 * DELAY_SECONDS_MAX)
    }

    /// The delay as Go prints it: `10s`, `1m20s`, `5m0s`.
    #[must_use]
    pub fn text(self) -> String {
        duration(self.seconds)
    }
}

/// `at` plus whole seconds, saturating.
#[must_use]
pub fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// Whole seconds as Go's `time.Duration` prints them.
#[must_use]
pub fn duration(seconds: i64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn delay_doubles_from_ten_seconds_to_five_minutes() {
        assert_eq!(Backoff::until(None, at(0)), None);
        let mut backoff = None;
        let mut seen = Vec::new();
        for round in 0..7 {
            let next = Backoff::next(backoff, at(round), at(round));
            seen.push(next.text());
            backoff = Some(next);
        }
        assert_eq!(seen, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        assert_eq!(Backoff::until(backoff, at(100)), Some(at(400)));
    }

    #[test]
    fn delay_is_forgotten_after_ten_quiet_minutes() {
        let backoff = Some(Backoff { seconds: 160, raised_at: at(0) });
        assert_eq!(Backoff::until(backoff, at(601)), None);
        assert_eq!(Backoff::next(backoff, at(601), at(602)).seconds, 10);
    }
}
