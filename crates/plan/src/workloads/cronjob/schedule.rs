//! Cron schedules as upstream's parser (`robfig/cron`) reads them: five fields, descriptors, `@every`.
//!
//! Times are walked in the zone's real time: an hour that the clocks skip has no run, one that they repeat has two.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// How far ahead a time is looked for, in years: `30 2 30 2 *` never comes.
const YEARS_MAX: i16 = 5;

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Minutes of the clock.
    Clock(Fields),
    /// A fixed delay of at least a second.
    Every(SignedDuration),
}

/// The five fields of a schedule, one bit a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// Day and weekday must both match when either is `*`; otherwise one of them is enough.
    both: bool,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule that the API server has accepted; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(delay) = text.strip_prefix("@every ") {
            return go_duration(delay).map(Self::Every);
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else { return None };
        let (day, any_day) = bits(day, 1, 31, &[])?;
        let (weekday, any_weekday) = bits(weekday, 0, 6, &WEEKDAYS)?;
        Some(Self::Clock(Fields {
            minute: bits(minute, 0, 59, &[])?.0,
            hour: bits(hour, 0, 23, &[])?.0,
            day,
            month: bits(month, 1, 12, &MONTHS)?.0,
            weekday,
            both: any_day || any_weekday,
        }))
    }

    /// The first time after `after`; `None` when there is none within five years.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(delay) => {
                let next = after.checked_add(*delay).ok()?;
                Timestamp::from_second(next.as_second()).ok()
            }
            Self::Clock(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn matches_day(self, at: &Zoned) -> bool {
        let day = has(self.day, at.day());
        let weekday = has(self.weekday, at.weekday().to_sunday_zero_offset());
        if self.both { day && weekday } else { day || weekday }
    }

    fn next(self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = Timestamp::from_second(after.as_second().div_euclid(60) * 60 + 60).ok()?;
        let mut at = minute.to_zoned(zone.clone());
        let end = at.year().checked_add(YEARS_MAX)?;
        while at.year() <= end {
            at = if !has(self.month, at.month()) {
                at.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?
            } else if !self.matches_day(&at) {
                at.tomorrow().ok()?.start_of_day().ok()?
            } else if !has(self.hour, at.hour()) {
                let rest = 60 - i64::from(at.minute());
                at.checked_add(SignedDuration::from_mins(rest)).ok()?
            } else if !has(self.minute, at.minute()) {
                at.checked_add(SignedDuration::from_mins(1)).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1)
}

/// The values of a field, and whether it is `*`.
fn bits(field: &str, low: u32, high: u32, names: &[&str]) -> Option<(u64, bool)> {
    let number = |text: &str| -> Option<u32> {
        let lower = text.to_lowercase();
        let named = (low..).zip(names).find(|(_, name)| **name == lower);
        named.map(|(number, _)| number).or_else(|| text.parse().ok())
    };
    let (mut all, mut any) = (0, false);
    for part in field.split(',').filter(|part| !part.is_empty()) {
        let (range, step) =
            part.split_once('/').map_or((part, None), |(one, two)| (one, Some(two)));
        let step: usize = step.map_or(Some(1), |step| step.parse().ok())?;
        let (start, end) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => {
                any |= step == 1;
                (low, high)
            }
            Some((start, end)) => (number(start)?, number(end)?),
            None if part.contains('/') => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if start < low || end > high || start > end || step == 0 {
            return None;
        }
        all |= (start..=end).step_by(step).fold(0, |bits, value| bits | 1_u64 << value);
    }
    Some((all, any))
}

/// A duration as Go writes it (`1h30m`), in whole seconds, at least one.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let mut nanos: i128 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        nanos += whole.parse::<i128>().ok()?.checked_mul(scale)?;
        if !part.is_empty() {
            let tenths = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
            nanos += part.parse::<i128>().ok()?.checked_mul(scale)? / tenths;
        }
        rest = tail;
    }
    let seconds = i64::try_from(nanos / 1_000_000_000).ok()?;
    Some(SignedDuration::from_secs(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).unwrap();
        let after: Timestamp = after.parse().unwrap();
        let found = Schedule::parse(schedule).expect(schedule).next(after, &zone);
        found.map_or_else(
            || "never".to_owned(),
            |at| at.to_zoned(zone).strftime("%F %H:%M:%S").to_string(),
        )
    }

    #[test]
    fn times_are_upstream_s() {
        for (schedule, after, wanted) in [
            ("*/15 * * * *", "2026-07-09T14:45:00Z", "2026-07-09 15:00:00"),
            ("*/15 * * * *", "2026-07-09T14:59:59Z", "2026-07-09 15:00:00"),
            ("20-35/15 * * * *", "2026-07-09T14:45:00Z", "2026-07-09 15:20:00"),
            ("5/20 * * * *", "2026-07-09T14:26:00Z", "2026-07-09 14:45:00"),
            ("0 0 * * *", "2026-12-31T23:59:45Z", "2027-01-01 00:00:00"),
            ("0 0 9 apr-oct ?", "2026-07-08T23:35:51Z", "2026-07-09 00:00:00"),
            ("0 0 * feb mon", "2026-07-09T23:35:00Z", "2027-02-01 00:00:00"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29 00:00:00"),
            ("0 12 1,15 * 0", "2026-07-02T00:00:00Z", "2026-07-05 12:00:00"),
            ("0 12 */2 * 0", "2026-07-02T00:00:00Z", "2026-07-03 12:00:00"),
            ("0 12 * * 0", "2026-07-02T00:00:00Z", "2026-07-05 12:00:00"),
            ("0 0 30 2 *", "2026-07-09T00:00:00Z", "never"),
            ("@hourly", "2026-07-09T14:26:00Z", "2026-07-09 15:00:00"),
            ("@weekly", "2026-07-09T14:26:00Z", "2026-07-12 00:00:00"),
            ("@every 1m30s", "2026-07-09T14:26:00.5Z", "2026-07-09 14:27:30"),
            ("@every 1.5h", "2026-07-09T14:26:00Z", "2026-07-09 15:56:00"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), wanted, "{schedule} after {after}");
        }
    }

    #[test]
    fn clocks_that_are_put_on_and_back() {
        let (spring, autumn) = ("2026-03-28T23:00:00Z", "2026-10-24T22:30:00Z");
        assert_eq!(next("30 2 * * *", spring, "Europe/Berlin"), "2026-03-30 02:30:00", "no 2:30");
        assert_eq!(
            next("0 * * * *", "2026-03-29T00:30:00Z", "Europe/Berlin"),
            "2026-03-29 03:00:00"
        );
        assert_eq!(next("30 2 * * *", autumn, "Europe/Berlin"), "2026-10-25 02:30:00");
        let first = "2026-10-25T00:30:00Z";
        assert_eq!(next("30 2 * * *", first, "Europe/Berlin"), "2026-10-25 02:30:00", "again");
        assert_eq!(
            next("0 0 * * *", "2026-07-09T22:30:00Z", "Europe/Berlin"),
            "2026-07-11 00:00:00"
        );
    }

    #[test]
    fn what_is_no_schedule() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* * * * 7",
            "*/0 * * * *",
            "5-1 * * * *",
            "@often",
            "@every x",
        ] {
            assert_eq!(Schedule::parse(text), None, "{text}");
        }
    }
}
