//! Calendar periods of quotas: "a day, from midnight in Los Angeles". Pure: wall time in, wall times out.
//!
//! A reset that a clock change skips or repeats has several readings, and providers choose differently. It is
//! therefore given as two moments between which it lies; whoever counts takes the worse one.

use std::fmt;
use std::time::Duration;

use jiff::civil::{self, Date, Weekday};
use jiff::tz::{Offset, TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp};

use crate::clock::WallMs;

/// The latest day of a month on which a quota may begin: later ones do not exist in every month.
const LAST_DAY: i8 = 28;
/// By how much clock changes lengthen a period at most (two hours in Antarctica/Troll).
const CLOCK_CHANGE: Duration = Duration::from_secs(2 * 3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// How often a quota begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// Every day.
    Day,
    /// Every week.
    Week,
    /// Every month.
    Month,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Every {
    Day,
    Week(Weekday),
    Month(i8),
}

/// When a quota begins anew: every day, week or month at a time of some time zone.
///
/// ```
/// use paceline::calendar::{Calendar, Per};
/// use paceline::clock::parse_rfc3339;
/// let calendar = Calendar::parse(Per::Day, "00:00 America/Los_Angeles").unwrap();
/// let period = calendar.period(parse_rfc3339("2026-11-20T10:00:00Z").unwrap()).unwrap();
/// assert_eq!(period.begins.earliest_ms, parse_rfc3339("2026-11-20T08:00:00Z").unwrap());
/// assert_eq!(period.ends.latest_ms, parse_rfc3339("2026-11-21T08:00:00Z").unwrap());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    every: Every,
    at: civil::Time,
    zone: TimeZone,
    zone_name: String,
}

/// A moment that lies between two times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Not before.
    pub earliest_ms: WallMs,
    /// Not after.
    pub latest_ms: WallMs,
}

/// From one reset to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The last reset that surely is over.
    pub begins: Moment,
    /// The one after it.
    pub ends: Moment,
}

impl Calendar {
    /// Reads `resets`: `"00:00 America/Los_Angeles"` for days, `"monday 00:00 UTC"` for weeks, `"00:00 +01:00"` (on the
    /// first) or `"day 15 00:00 UTC"` for months.
    ///
    /// # Errors
    /// What was expected, for the person who wrote it.
    pub fn parse(per: Per, resets: &str) -> Result<Self, String> {
        let words: Vec<&str> = resets.split_whitespace().collect();
        let [start @ .., at, zone_name] = &words[..] else { return Err(expected(per, resets)) };
        let every = match (per, start) {
            (Per::Day, []) => Every::Day,
            (Per::Week, [name]) => Every::Week(weekday(name).ok_or_else(|| expected(per, resets))?),
            (Per::Month, []) => Every::Month(1),
            (Per::Month, ["day", day]) => Every::Month(day_of_month(day)?),
            _ => return Err(expected(per, resets)),
        };
        let at = time_of_day(at).ok_or_else(|| expected(per, resets))?;
        let zone = zone(zone_name)?;
        Ok(Self { every, at, zone, zone_name: (*zone_name).to_owned() })
    }

    /// The period in which a time lies; `None` for times beyond the year 9998 or before −9998.
    pub fn period(&self, wall_ms: WallMs) -> Option<Period> {
        let now = Timestamp::from_millisecond(wall_ms).ok()?;
        // A day ahead, since the reset of a later date may already be over where the clock was set back.
        let mut date = self.reset_date(self.zone.to_datetime(now).date().tomorrow().ok()?)?;
        let mut ends = self.reset_on(self.next(date)?)?;
        loop {
            let begins = self.reset_on(date)?;
            if begins.latest_ms <= wall_ms {
                return Some(Period { begins, ends });
            }
            ends = begins;
            date = self.reset_date(date.yesterday().ok()?)?;
        }
    }

    /// The reset that is nearest to a time.
    pub fn nearest(&self, wall_ms: WallMs) -> Option<Moment> {
        let Period { begins, ends } = self.period(wall_ms)?;
        let since = wall_ms - begins.latest_ms;
        Some(if ends.earliest_ms - wall_ms < since { ends } else { begins })
    }

    /// The length of a usual period.
    pub fn usual(&self) -> Duration {
        match self.every {
            Every::Day => DAY,
            Every::Week(_) => 7 * DAY,
            Every::Month(_) => 30 * DAY,
        }
    }

    /// No period is longer.
    pub fn longest(&self) -> Duration {
        let longest = match self.every {
            Every::Day | Every::Week(_) => self.usual(),
            Every::Month(_) => 31 * DAY,
        };
        longest + CLOCK_CHANGE
    }

    /// The last date on which there is a reset, up to this one.
    fn reset_date(&self, date: Date) -> Option<Date> {
        match self.every {
            Every::Day => Some(date),
            Every::Week(weekday) => date.checked_sub(Span::new().days(date.weekday().since(weekday))).ok(),
            Every::Month(day) if date.day() >= day => date.with().day(day).build().ok(),
            Every::Month(day) => date.first_of_month().yesterday().ok()?.with().day(day).build().ok(),
        }
    }

    /// The reset date after a reset date.
    fn next(&self, date: Date) -> Option<Date> {
        let step = match self.every {
            Every::Day => Span::new().days(1),
            Every::Week(_) => Span::new().weeks(1),
            Every::Month(_) => Span::new().months(1),
        };
        date.checked_add(step).ok()
    }

    fn reset_on(&self, date: Date) -> Option<Moment> {
        let moment = self.zone.to_ambiguous_timestamp(date.to_datetime(self.at));
        let (earlier, later) = (moment.earlier().ok()?, moment.later().ok()?);
        Some(Moment { earliest_ms: earlier.as_millisecond(), latest_ms: later.as_millisecond() })
    }
}

/// The canonical form; two calendars of the same text are the same.
impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.every {
            Every::Day => f.write_str("every day at ")?,
            Every::Week(weekday) => write!(f, "every {} at ", weekday_name(weekday))?,
            Every::Month(day) => write!(f, "every month on day {day} at ")?,
        }
        write!(f, "{} {}", self.at, self.zone.iana_name().unwrap_or(&self.zone_name))
    }
}

fn expected(per: Per, found: &str) -> String {
    let form = match per {
        Per::Day => "a time and a zone such as \"00:00 America/Los_Angeles\"",
        Per::Week => "a weekday, a time and a zone such as \"monday 00:00 Europe/Berlin\"",
        Per::Month => "a time and a zone such as \"00:00 UTC\", or \"day 15 00:00 UTC\"",
    };
    format!("expected {form}, found {found:?}")
}

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

fn weekday(name: &str) -> Option<Weekday> {
    WEEKDAYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, weekday)| *weekday)
}

fn weekday_name(weekday: Weekday) -> &'static str {
    WEEKDAYS.iter().find(|(_, known)| *known == weekday).map_or("", |(name, _)| name)
}

fn day_of_month(text: &str) -> Result<i8, String> {
    let day = text.parse().ok().filter(|day| (1..=LAST_DAY).contains(day));
    day.ok_or_else(|| format!("expected a day from 1 to {LAST_DAY}, which every month has, found {text:?}"))
}

/// `00:00` or `00:00:00`.
pub(crate) fn time_of_day(text: &str) -> Option<civil::Time> {
    let mut parts = text.split(':').map(two_digits);
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    if parts.next().is_some() || second > 59 {
        return None;
    }
    civil::Time::new(hour, minute, second, 0).ok()
}

fn two_digits(text: &str) -> Option<i8> {
    (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// A name of the IANA database (as this machine knows it, else as it was built in), `UTC`, `Z`, or an offset.
pub(crate) fn zone(name: &str) -> Result<TimeZone, String> {
    if name.eq_ignore_ascii_case("utc") || name.eq_ignore_ascii_case("z") {
        return Ok(TimeZone::UTC);
    }
    if name.starts_with(['+', '-']) {
        return offset(name).ok_or_else(|| format!("expected an offset such as +02:00 or -03:30, found {name:?}"));
    }
    let known = jiff::tz::db().get(name).or_else(|_| TimeZoneDatabase::bundled().get(name));
    known
        .map_err(|_| format!("unknown time zone {name:?}: expected a name such as America/Los_Angeles, UTC, or +02:00"))
}

/// At most 14 hours: no zone is further off.
fn offset(text: &str) -> Option<TimeZone> {
    let (sign, rest) = (if text.starts_with('-') { -1 } else { 1 }, text.get(1..)?);
    let (hours, minutes) = rest.split_once(':').or_else(|| rest.split_at_checked(2))?;
    let (hours, minutes) = (i32::from(two_digits(hours)?), i32::from(two_digits(minutes)?));
    let seconds = hours * 3_600 + minutes * 60;
    if minutes > 59 || seconds > 14 * 3_600 {
        return None;
    }
    Offset::from_seconds(sign * seconds).ok().map(TimeZone::fixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{parse_rfc3339, rfc3339};

    fn calendar(per: Per, resets: &str) -> Calendar {
        Calendar::parse(per, resets).unwrap_or_else(|error| panic!("{resets}: {error}"))
    }

    fn ms(text: &str) -> WallMs {
        parse_rfc3339(text).expect(text)
    }

    /// Earliest and latest beginning, earliest and latest end.
    fn period(calendar: &Calendar, at: &str) -> [String; 4] {
        let Period { begins, ends } = calendar.period(ms(at)).expect(at);
        [begins.earliest_ms, begins.latest_ms, ends.earliest_ms, ends.latest_ms]
            .map(|ms| rfc3339(ms).replace(":00.000Z", "Z"))
    }

    fn sharp(calendar: &Calendar, at: &str) -> [String; 2] {
        let [first, second, third, fourth] = period(calendar, at);
        assert_eq!((&first, &third), (&second, &fourth), "no clock change is near");
        [first, third]
    }

    #[test]
    fn days_weeks_and_months_in_their_zone() {
        let days = calendar(Per::Day, "00:00 America/Los_Angeles");
        assert_eq!(sharp(&days, "2026-11-20T07:59:59Z"), ["2026-11-19T08:00Z", "2026-11-20T08:00Z"]);
        assert_eq!(sharp(&days, "2026-11-20T08:00:00Z"), ["2026-11-20T08:00Z", "2026-11-21T08:00Z"]);
        let weeks = calendar(Per::Week, "Monday 00:00 Europe/Berlin");
        assert_eq!(sharp(&weeks, "2026-11-20T10:00:00Z"), ["2026-11-15T23:00Z", "2026-11-22T23:00Z"]);
        assert_eq!(sharp(&weeks, "2026-11-22T23:00:00Z"), ["2026-11-22T23:00Z", "2026-11-29T23:00Z"]);
        let months = calendar(Per::Month, "00:00 UTC");
        assert_eq!(sharp(&months, "2026-02-28T23:59:59Z"), ["2026-02-01T00:00Z", "2026-03-01T00:00Z"]);
        let billing = calendar(Per::Month, "day 15 06:30 +05:30");
        assert_eq!(sharp(&billing, "2026-01-15T00:59:59Z"), ["2025-12-15T01:00Z", "2026-01-15T01:00Z"]);
        assert_eq!(sharp(&billing, "2026-01-15T01:00:00Z"), ["2026-01-15T01:00Z", "2026-02-15T01:00Z"]);
    }

    #[test]
    fn a_day_has_23_or_25_hours_where_the_clock_is_changed() {
        let days = calendar(Per::Day, "00:00 America/Los_Angeles");
        assert_eq!(sharp(&days, "2026-03-08T20:00:00Z"), ["2026-03-08T08:00Z", "2026-03-09T07:00Z"]);
        assert_eq!(sharp(&days, "2026-11-01T20:00:00Z"), ["2026-11-01T07:00Z", "2026-11-02T08:00Z"]);
    }

    #[test]
    fn a_reset_that_is_repeated_lies_between_both() {
        let days = calendar(Per::Day, "01:30 America/Los_Angeles");
        let [.., earliest, latest] = period(&days, "2026-11-01T09:00:00Z");
        assert_eq!([earliest, latest], ["2026-11-01T08:30Z", "2026-11-01T09:30Z"], "between the two it still runs");
        let [earliest, latest, ..] = period(&days, "2026-11-01T09:30:00Z");
        assert_eq!([earliest, latest], ["2026-11-01T08:30Z", "2026-11-01T09:30Z"]);
    }

    #[test]
    fn a_reset_that_is_skipped_lies_around_the_gap() {
        // Cairo goes from 00:00 to 01:00: the day begins at 01:00, an hour later than by the old offset of its night.
        let days = calendar(Per::Day, "00:00 Africa/Cairo");
        let [earliest, latest, ..] = period(&days, "2026-04-24T12:00:00Z");
        assert_eq!([earliest, latest], ["2026-04-23T21:00Z", "2026-04-23T22:00Z"]);
        let gap = calendar(Per::Day, "02:30 America/New_York");
        let [earliest, latest, ..] = period(&gap, "2026-03-08T12:00:00Z");
        assert_eq!([earliest, latest], ["2026-03-08T06:30Z", "2026-03-08T07:30Z"]);
    }

    #[test]
    fn every_moment_lies_in_its_period_and_periods_follow_each_other() {
        let hour = 3_600_000;
        for calendar in [
            calendar(Per::Day, "00:00 America/Los_Angeles"),
            calendar(Per::Day, "02:30 Australia/Lord_Howe"),
            calendar(Per::Day, "01:00 Antarctica/Troll"),
            calendar(Per::Day, "00:00 Pacific/Apia"),
            calendar(Per::Week, "sunday 02:00 Europe/Berlin"),
            calendar(Per::Month, "day 28 23:59:59 Asia/Kathmandu"),
        ] {
            // A year, and the days in which Samoa had no 30 December.
            for start in ["2026-01-01T00:30:00Z", "2011-12-25T00:30:00Z"] {
                let mut last: Option<Period> = None;
                for n in 0..366 * 24 {
                    let now = ms(start) + n * hour;
                    let period = calendar.period(now).expect("in range");
                    assert!(
                        period.begins.latest_ms <= now && now < period.ends.latest_ms,
                        "{calendar} {}",
                        rfc3339(now)
                    );
                    let length = period.ends.latest_ms - period.begins.earliest_ms;
                    assert!(length <= i64::try_from(calendar.longest().as_millis()).expect("small"), "{calendar}");
                    match last {
                        // The day that Samoa skipped ended when it began.
                        Some(last) if last != period => {
                            assert_eq!(last.ends.latest_ms, period.begins.latest_ms, "{calendar}");
                        }
                        _ => {}
                    }
                    last = Some(period);
                }
            }
        }
    }

    #[test]
    fn the_nearest_reset_may_be_the_last_or_the_next() {
        let days = calendar(Per::Day, "00:00 UTC");
        for (at, nearest) in [
            ("2026-11-20T11:59:00Z", "2026-11-20T00:00:00Z"),
            ("2026-11-20T12:01:00Z", "2026-11-21T00:00:00Z"),
            ("2026-11-20T00:00:00Z", "2026-11-20T00:00:00Z"),
        ] {
            assert_eq!(days.nearest(ms(at)).map(|moment| moment.latest_ms), Some(ms(nearest)), "{at}");
        }
    }

    #[test]
    fn times_beyond_the_calendar_have_no_period() {
        let days = calendar(Per::Day, "00:00 UTC");
        for wall_ms in [i64::MIN, i64::MAX, 253_402_300_799_999] {
            assert_eq!(days.period(wall_ms), None, "{wall_ms}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (per, resets, part) in [
            (Per::Day, "", "a time and a zone"),
            (Per::Day, "00:00", "a time and a zone"),
            (Per::Day, "24:00 UTC", "a time and a zone"),
            (Per::Day, "0:00 UTC", "a time and a zone"),
            (Per::Day, "00:00:60 UTC", "a time and a zone"),
            (Per::Day, "monday 00:00 UTC", "a time and a zone"),
            (Per::Week, "00:00 UTC", "a weekday"),
            (Per::Week, "someday 00:00 UTC", "a weekday"),
            (Per::Month, "monday 00:00 UTC", "day 15"),
            (Per::Month, "day 29 00:00 UTC", "from 1 to 28"),
            (Per::Month, "day 0 00:00 UTC", "from 1 to 28"),
            (Per::Day, "00:00 Mars/Base", "\"Mars/Base\""),
            (Per::Day, "00:00 PST", "\"PST\""),
            (Per::Day, "00:00 +15:00", "\"+15:00\""),
            (Per::Day, "00:00 +2", "\"+2\""),
            (Per::Day, "00:00 +02:60", "\"+02:60\""),
            (Per::Day, "00:00 -é0", "offset"),
        ] {
            let error = Calendar::parse(per, resets).expect_err(resets);
            assert!(error.contains(part), "{resets}: {error}");
        }
    }

    #[test]
    fn offsets_and_names_have_one_form() {
        for (resets, shown) in [
            ("00:00 utc", "every day at 00:00:00 UTC"),
            ("00:00 Z", "every day at 00:00:00 UTC"),
            ("00:00 america/los_angeles", "every day at 00:00:00 America/Los_Angeles"),
            ("08:15 -0330", "every day at 08:15:00 -0330"),
        ] {
            assert_eq!(calendar(Per::Day, resets).to_string(), shown);
        }
        let west = calendar(Per::Day, "00:00 -08:00");
        assert_eq!(sharp(&west, "2026-07-01T12:00:00Z"), ["2026-07-01T08:00Z", "2026-07-02T08:00Z"]);
    }

    #[test]
    fn zones_are_known_without_those_of_the_machine() {
        let bundled = TimeZoneDatabase::bundled();
        assert!(bundled.get("America/Los_Angeles").is_ok() && bundled.get("Europe/Berlin").is_ok());
    }
}
