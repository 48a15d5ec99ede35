//! When something recurs: `30 2 * * mon-fri` in a time zone. Pure: wall time in, wall time out.
//!
//! Times are those that a clock on the wall of the zone shows. One that a clock change skips comes at the first moment
//! after it; one that is repeated comes once, the first time.

use std::fmt;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::calendar;
use crate::clock::WallMs;

/// A time that does not come within so many days never comes: 29 February is at most eight years away.
const DAYS_MAX: u32 = 9 * 366;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A cron line and its zone.
///
/// ```
/// use paceline::clock::parse_rfc3339;
/// use paceline::cron::Cron;
/// let cron = Cron::parse("30 2 * * mon-fri", "Europe/Berlin").unwrap();
/// let friday = parse_rfc3339("2026-11-20T12:00:00Z").unwrap();
/// assert_eq!(cron.next_after(friday), parse_rfc3339("2026-11-23T01:30:00Z").ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
    zone: TimeZone,
    line: String,
    zone_name: String,
}

/// The numbers that fit, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// It begins with `*`: every number, or every so many.
    is_any: bool,
}

/// What a field may hold.
struct Range {
    name: &'static str,
    from: u8,
    to: u8,
    names: &'static [&'static str],
}

const MINUTE: Range = Range { name: "minute", from: 0, to: 59, names: &[] };
const HOUR: Range = Range { name: "hour", from: 0, to: 23, names: &[] };
const DAY: Range = Range { name: "day of the month", from: 1, to: 31, names: &[] };
const MONTH: Range = Range { name: "month", from: 1, to: 12, names: &MONTHS };
/// 7 is Sunday, too.
const WEEKDAY: Range = Range { name: "day of the week", from: 0, to: 7, names: &DAYS };

impl Cron {
    /// Reads five fields: minute, hour, day of the month, month, day of the week. Each is `*`, a number, a range, a list of
    /// these, or any with a step (`*/5`); months and days of the week have names, too. Where neither of both days begins
    /// with `*`, one of them has to fit.
    ///
    /// # Errors
    /// What was expected, for the person who wrote it: also where such a time never comes, or there is no such zone.
    pub fn parse(line: &str, zone_name: &str) -> Result<Self, String> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            let found = fields.len();
            return Err(format!(
                "expected five fields: minute, hour, day of the month, month, day of the week, such as \"30 2 * * mon-fri\"; found {found} in {line:?}"
            ));
        };
        let mut weekdays = WEEKDAY.read(weekdays)?;
        weekdays.bits |= weekdays.bits >> 7 & 1;
        let cron = Self {
            minutes: MINUTE.read(minutes)?,
            hours: HOUR.read(hours)?,
            days: DAY.read(days)?,
            months: MONTH.read(months)?,
            weekdays,
            zone: calendar::zone(zone_name)?,
            line: fields.join(" "),
            zone_name: zone_name.to_owned(),
        };
        match cron.next_after(0) {
            Some(_) => Ok(cron),
            None => Err(format!("{line:?} never comes: there is no such day")),
        }
    }

    /// The first time after that one. `None`: there is none within nine years.
    pub fn next_after(&self, wall_ms: WallMs) -> Option<WallMs> {
        let after = Timestamp::from_millisecond(wall_ms).ok()?;
        let shown = self.zone.to_datetime(after);
        let mut date = shown.date();
        for _ in 0..DAYS_MAX {
            if self.is_on(date) {
                let times = self.times(date).filter(|time| *time >= minute_of(shown));
                if let Some(found) = times.filter_map(|time| self.moment(time)).find(|time| *time > after) {
                    return Some(found.as_millisecond());
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The line, with single blanks.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The name of the zone.
    pub fn zone_name(&self) -> &str {
        &self.zone_name
    }

    fn is_on(&self, date: Date) -> bool {
        let (day, weekday) = (self.days.has(date.day()), self.weekdays.has(number_of(date.weekday())));
        let fits = if self.days.is_any || self.weekdays.is_any { day && weekday } else { day || weekday };
        fits && self.months.has(date.month())
    }

    fn times(&self, date: Date) -> impl Iterator<Item = DateTime> + '_ {
        let hours = (0..24).filter(|hour| self.hours.has(*hour));
        hours.flat_map(move |hour| {
            let minutes = (0..60).filter(|minute| self.minutes.has(*minute));
            minutes.map(move |minute| date.at(hour, minute, 0, 0))
        })
    }

    /// When the clock shows that: the first time where it does twice, and the moment of the change where it never does.
    fn moment(&self, shown: DateTime) -> Option<Timestamp> {
        match self.zone.to_ambiguous_timestamp(shown).offset() {
            AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
                offset.to_timestamp(shown).ok()
            }
            AmbiguousOffset::Gap { before, .. } => {
                let beyond = before.to_timestamp(shown).ok()?.checked_add(SignedDuration::from_nanos(1)).ok()?;
                self.zone.preceding(beyond).next().map(|change| change.timestamp())
            }
        }
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.line, self.zone_name)
    }
}

/// The minute that it shows.
fn minute_of(shown: DateTime) -> DateTime {
    shown.date().at(shown.hour(), shown.minute(), 0, 0)
}

fn number_of(weekday: Weekday) -> i8 {
    weekday.to_sunday_zero_offset()
}

impl Field {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| self.bits >> number & 1 == 1)
    }
}

impl Range {
    fn read(&self, text: &str) -> Result<Field, String> {
        let mut bits = 0;
        for part in text.split(',') {
            bits |= self.part(part).ok_or_else(|| self.wrong(part))?;
        }
        Ok(Field { bits, is_any: text.starts_with('*') })
    }

    fn wrong(&self, part: &str) -> String {
        let Self { name, from, to, names } = self;
        let names =
            if names.is_empty() { String::new() } else { format!(", {} to {}", names[0], names[names.len() - 1]) };
        format!("{name}: expected *, or numbers from {from} to {to}{names}, such as 1,10-20,*/5; found {part:?}")
    }

    /// `*`, `7`, `1-5`, any of them with `/2`.
    fn part(&self, text: &str) -> Option<u64> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u8>().ok().filter(|step| (1..=self.to).contains(step))?)),
            None => (text, None),
        };
        let (from, to) = match range.split_once('-') {
            // Sunday once.
            _ if range == "*" => (self.from, if self.to == WEEKDAY.to { 6 } else { self.to }),
            Some((from, to)) => (self.number(from)?, self.number(to)?),
            // `5/15`: from there on.
            None if step.is_some() => (self.number(range)?, self.to),
            None => (self.number(range)?, self.number(range)?),
        };
        // `fri-sun`: Sunday is the seventh day, too.
        let to = if to < from && to == 0 && self.to == 7 { 7 } else { to };
        (from <= to).then(|| (from..=to).step_by(usize::from(step.unwrap_or(1))).fold(0, |bits, n| bits | 1 << n))
    }

    fn number(&self, text: &str) -> Option<u8> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        if let Some(place) = named {
            return u8::try_from(place).ok().map(|place| place + self.from);
        }
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|number| digits && (self.from..=self.to).contains(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{parse_rfc3339, rfc3339};

    /// The next times after one, without seconds.
    fn next(line: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let cron = Cron::parse(line, zone).expect(line);
        let mut now = parse_rfc3339(after).expect(after);
        let mut times = Vec::new();
        for _ in 0..count {
            now = cron.next_after(now).expect("a time");
            times.push(rfc3339(now).replace(":00.000Z", "Z"));
        }
        times
    }

    #[test]
    fn lines_say_when() {
        let from = "2026-11-20T12:00:00Z";
        for (line, expected) in [
            ("*/20 * * * *", ["2026-11-20T12:20Z", "2026-11-20T12:40Z", "2026-11-20T13:00Z"]),
            ("5/30 12-13 * * *", ["2026-11-20T12:05Z", "2026-11-20T12:35Z", "2026-11-20T13:05Z"]),
            ("0 3 * * *", ["2026-11-21T03:00Z", "2026-11-22T03:00Z", "2026-11-23T03:00Z"]),
            ("30 2 * * mon-fri", ["2026-11-23T02:30Z", "2026-11-24T02:30Z", "2026-11-25T02:30Z"]),
            ("0 0 * * 7", ["2026-11-22T00:00Z", "2026-11-29T00:00Z", "2026-12-06T00:00Z"]),
            ("0 0 * * fri-sun", ["2026-11-21T00:00Z", "2026-11-22T00:00Z", "2026-11-27T00:00Z"]),
            ("0 0 1,15 * *", ["2026-12-01T00:00Z", "2026-12-15T00:00Z", "2027-01-01T00:00Z"]),
            ("0 0 31 * *", ["2026-12-31T00:00Z", "2027-01-31T00:00Z", "2027-03-31T00:00Z"]),
            ("0 0 29 feb *", ["2028-02-29T00:00Z", "2032-02-29T00:00Z", "2036-02-29T00:00Z"]),
            // Either day, where both are given.
            ("0 0 1 * mon", ["2026-11-23T00:00Z", "2026-11-30T00:00Z", "2026-12-01T00:00Z"]),
            // Both, where one begins with *.
            ("0 0 */2 * mon", ["2026-11-23T00:00Z", "2026-12-07T00:00Z", "2026-12-21T00:00Z"]),
        ] {
            assert_eq!(next(line, "UTC", from, 3), expected, "{line}");
        }
    }

    /// Berlin: 2026-03-29 02:00 → 03:00 (01:00Z), 2026-10-25 03:00 → 02:00 (01:00Z).
    #[test]
    fn what_is_skipped_comes_at_the_change_and_what_is_repeated_comes_once() {
        let berlin = |line: &str, after: &str, count| next(line, "Europe/Berlin", after, count);
        let nights = berlin("30 2 * * *", "2026-03-28T00:00:00Z", 3);
        assert_eq!(nights, ["2026-03-28T01:30Z", "2026-03-29T01:00Z", "2026-03-30T00:30Z"]);
        let nights = berlin("30 2 * * *", "2026-10-24T00:00:00Z", 3);
        assert_eq!(nights, ["2026-10-24T00:30Z", "2026-10-25T00:30Z", "2026-10-26T01:30Z"]);
        // Several that are skipped are one, with the one that is at that time anyway.
        let spring = berlin("*/30 1-3 * * *", "2026-03-29T00:00:00Z", 4);
        assert_eq!(spring, ["2026-03-29T00:30Z", "2026-03-29T01:00Z", "2026-03-29T01:30Z", "2026-03-29T23:00Z"]);
        let autumn = berlin("*/30 2-3 * * *", "2026-10-24T23:00:00Z", 4);
        assert_eq!(autumn, ["2026-10-25T00:00Z", "2026-10-25T00:30Z", "2026-10-25T02:00Z", "2026-10-25T02:30Z"]);
        // Lord Howe changes by half an hour.
        let howe = next("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2);
        assert_eq!(howe, ["2026-10-03T15:30Z", "2026-10-04T15:15Z"]);
    }

    #[test]
    fn times_rise_and_none_is_left_out() {
        for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"] {
            let cron = Cron::parse("17 * * * *", zone).expect(zone);
            let (mut now, end) = (1_767_225_600_000, 1_798_761_600_000);
            let mut count = 0;
            while let Some(time) = cron.next_after(now).filter(|time| *time < end) {
                let apart = time - now;
                assert!(apart > 0 && (count == 0 || apart <= 2 * 3_600_000), "{zone}: {}", rfc3339(time));
                assert_eq!(cron.next_after(time - 1), Some(time), "{zone}");
                (now, count) = (time, count + 1);
            }
            assert!((8_700..=8_770).contains(&count), "{zone}: {count}");
        }
    }

    #[test]
    fn what_is_no_cron_line_is_named() {
        for (line, zone, part) in [
            ("* * * *", "UTC", "expected five fields"),
            ("* * * * * *", "UTC", "expected five fields"),
            ("@daily", "UTC", "expected five fields"),
            ("60 * * * *", "UTC", "minute: expected"),
            ("* 24 * * *", "UTC", "hour: expected"),
            ("* * 0 * *", "UTC", "day of the month: expected"),
            ("* * * 13 *", "UTC", "month: expected"),
            ("* * * * 8", "UTC", "day of the week: expected"),
            ("* * * * someday", "UTC", "sun to sat"),
            ("5-1 * * * *", "UTC", "minute: expected"),
            ("*/0 * * * *", "UTC", "minute: expected"),
            ("1, * * * *", "UTC", "minute: expected"),
            ("+1 * * * *", "UTC", "minute: expected"),
            ("0 0 30 feb *", "UTC", "never comes"),
            ("0 0 31 4,6,9,11 *", "UTC", "never comes"),
            ("0 0 * * *", "Mars/Olympus", "unknown time zone"),
        ] {
            let error = Cron::parse(line, zone).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
