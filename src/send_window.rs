//! The times of a day at which calls may leave: `22:00-06:00 Europe/Berlin`. Pure: wall time in, wall times out.
//!
//! A window is open while a clock on the wall of its zone shows a time within it: from the first one on, up to the second
//! one. So what a clock change skips is not there, and what it repeats is there twice; a window that lies wholly within
//! the hour that is skipped does not open that day.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::{self, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

use crate::calendar;
use crate::clock::WallMs;

/// How far ahead the next change is looked for: a window may be skipped for a day.
const DAYS_AHEAD: i8 = 4;
/// Changes that are passed when work is laid into windows: some years of days.
const CHANGES_MAX: usize = 10_000;

/// One window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendWindow {
    from: civil::Time,
    to: civil::Time,
    zone: TimeZone,
    zone_name: String,
}

/// The windows of a provider: calls leave while one of them is open.
///
/// ```
/// use paceline::clock::parse_rfc3339;
/// use paceline::send_window::SendWindows;
/// let night = SendWindows::new(vec!["22:00-06:00 Europe/Berlin".parse().unwrap()]);
/// let now = night.at(parse_rfc3339("2026-11-20T12:00:00Z").unwrap());
/// assert!(!now.is_open);
/// assert_eq!(now.until_ms, parse_rfc3339("2026-11-20T21:00:00Z").ok());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendWindows(Vec<SendWindow>);

/// How the windows are at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Calls may leave.
    pub is_open: bool,
    /// Until then; `None`: for longer than anybody looked.
    pub until_ms: Option<WallMs>,
}

impl FromStr for SendWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected two times and a zone, such as \"22:00-06:00 Europe/Berlin\", found {text:?}");
        let (times, zone_name) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let (from, to) = times.split_once('-').ok_or_else(wrong)?;
        let time = |text: &str| calendar::time_of_day(text.trim()).ok_or_else(wrong);
        let (from, to) = (time(from)?, time(to)?);
        if from == to {
            return Err(format!(
                "{text:?} never opens: it ends when it begins; without any window calls leave all day"
            ));
        }
        let zone_name = zone_name.trim();
        Ok(Self { from, to, zone: calendar::zone(zone_name)?, zone_name: zone_name.to_owned() })
    }
}

impl fmt::Display for SendWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |time: civil::Time| time.strftime(if time.second() == 0 { "%H:%M" } else { "%H:%M:%S" }).to_string();
        write!(f, "{}-{} {}", shown(self.from), shown(self.to), self.zone_name)
    }
}

impl SendWindow {
    fn is_open(&self, at: Timestamp) -> bool {
        let shown = self.zone.to_datetime(at).time();
        if self.from < self.to { (self.from..self.to).contains(&shown) } else { shown >= self.from || shown < self.to }
    }

    /// The times after `at` at which it may open or shut: when its clock shows one of its times, and when its clock is
    /// changed.
    fn changes_after(&self, at: Timestamp) -> Vec<Timestamp> {
        let today = self.zone.to_datetime(at).date();
        let mut times: Vec<Timestamp> = self.zone.following(at).take(1).map(|change| change.timestamp()).collect();
        for day in -1..=DAYS_AHEAD {
            let Ok(date) = today.checked_add(i64::from(day).days()) else { continue };
            times.extend([self.from, self.to].into_iter().flat_map(|time| self.readings(date.to_datetime(time))));
        }
        times.retain(|time| *time > at);
        times
    }

    /// When the clock shows that: twice where it is put back; never where it is put forward, and then the change counts.
    fn readings(&self, shown: DateTime) -> Vec<Timestamp> {
        let offsets = match self.zone.to_ambiguous_timestamp(shown).offset() {
            AmbiguousOffset::Unambiguous { offset } => vec![offset],
            AmbiguousOffset::Gap { .. } => vec![],
            AmbiguousOffset::Fold { before, after } => vec![before, after],
        };
        offsets.into_iter().filter_map(|offset| offset.to_timestamp(shown).ok()).collect()
    }
}

impl SendWindows {
    /// These; without any, calls may always leave.
    pub fn new(windows: Vec<SendWindow>) -> Self {
        Self(windows)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How they are at that time.
    pub fn at(&self, wall_ms: WallMs) -> Standing {
        let always = Standing { is_open: true, until_ms: None };
        let Ok(now) = Timestamp::from_millisecond(wall_ms) else { return always };
        if self.0.is_empty() {
            return always;
        }
        let is_open = self.is_open(now);
        let mut changes: Vec<Timestamp> = self.0.iter().flat_map(|window| window.changes_after(now)).collect();
        changes.sort_unstable();
        let change = changes.into_iter().find(|change| self.is_open(*change) != is_open);
        Standing { is_open, until_ms: change.map(Timestamp::as_millisecond) }
    }

    /// How long something takes that begins then, needs calls to leave for so long, and stands still while the windows are
    /// shut. `None`: longer than anybody can tell.
    pub fn stretched(&self, start_ms: WallMs, mut needs: Duration) -> Option<Duration> {
        let mut now = start_ms;
        for _ in 0..CHANGES_MAX {
            let standing = self.at(now);
            let Some(until) = standing.until_ms else {
                return standing.is_open.then(|| span(start_ms, now) + needs);
            };
            let left = span(now, until);
            if standing.is_open {
                if needs <= left {
                    return Some(span(start_ms, now) + needs);
                }
                needs -= left;
            }
            now = until;
        }
        None
    }

    fn is_open(&self, at: Timestamp) -> bool {
        self.0.iter().any(|window| window.is_open(at))
    }
}

impl fmt::Display for SendWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

fn span(from_ms: WallMs, to_ms: WallMs) -> Duration {
    Duration::from_millis(u64::try_from(to_ms.saturating_sub(from_ms)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{parse_rfc3339, rfc3339};

    fn windows(list: &[&str]) -> SendWindows {
        SendWindows::new(list.iter().map(|text| text.parse().expect(text)).collect())
    }

    fn ms(text: &str) -> WallMs {
        parse_rfc3339(text).expect(text)
    }

    /// Whether it is open, and until when.
    fn at(windows: &SendWindows, time: &str) -> (bool, String) {
        let standing = windows.at(ms(time));
        let until = standing.until_ms.map(|until| rfc3339(until).replace(":00.000Z", "Z"));
        (standing.is_open, until.unwrap_or_default())
    }

    fn open(until: &str) -> (bool, String) {
        (true, until.to_owned())
    }

    fn shut(until: &str) -> (bool, String) {
        (false, until.to_owned())
    }

    #[test]
    fn windows_open_and_shut_over_midnight_too() {
        let night = windows(&["22:00-06:00 Europe/Berlin"]);
        assert_eq!(at(&night, "2026-11-20T12:00:00Z"), shut("2026-11-20T21:00Z"));
        assert_eq!(at(&night, "2026-11-20T20:59:59.999Z"), shut("2026-11-20T21:00Z"));
        assert_eq!(at(&night, "2026-11-20T21:00:00Z"), open("2026-11-21T05:00Z"));
        assert_eq!(at(&night, "2026-11-21T04:59:59.999Z"), open("2026-11-21T05:00Z"));
        assert_eq!(at(&night, "2026-11-21T05:00:00Z"), shut("2026-11-21T21:00Z"));
        let day = windows(&["09:00-17:30 UTC"]);
        assert_eq!(at(&day, "2026-11-20T09:00:00Z"), open("2026-11-20T17:30Z"));
        assert_eq!(at(&day, "2026-11-20T17:30:00Z"), shut("2026-11-21T09:00Z"));
        assert_eq!(at(&windows(&["22:00-00:00 UTC"]), "2026-11-20T23:59:00Z"), open("2026-11-21T00:00Z"));
    }

    #[test]
    fn several_are_one_where_they_touch() {
        let two = windows(&["08:00-12:00 UTC", "12:00-14:00 UTC", "20:00-21:00 UTC"]);
        assert_eq!(at(&two, "2026-11-20T08:00:00Z"), open("2026-11-20T14:00Z"));
        assert_eq!(at(&two, "2026-11-20T14:00:00Z"), shut("2026-11-20T20:00Z"));
        assert_eq!(
            at(&windows(&["00:00-12:00 UTC", "12:00-00:00 UTC"]), "2026-11-20T08:00:00Z"),
            (true, String::new())
        );
        assert_eq!(at(&SendWindows::default(), "2026-11-20T08:00:00Z"), (true, String::new()));
    }

    /// Berlin: 2026-03-29 02:00 → 03:00 (01:00Z), 2026-10-25 03:00 → 02:00 (01:00Z).
    #[test]
    fn what_is_skipped_is_not_there_and_what_is_repeated_is_there_twice() {
        let within = windows(&["02:15-02:45 Europe/Berlin"]);
        assert_eq!(at(&within, "2026-03-28T12:00:00Z"), shut("2026-03-30T00:15Z"), "not on the 29th");
        assert_eq!(at(&within, "2026-10-25T00:00:00Z"), shut("2026-10-25T00:15Z"));
        assert_eq!(at(&within, "2026-10-25T00:15:00Z"), open("2026-10-25T00:45Z"));
        assert_eq!(at(&within, "2026-10-25T00:45:00Z"), shut("2026-10-25T01:15Z"), "once more");
        assert_eq!(at(&within, "2026-10-25T01:15:00Z"), open("2026-10-25T01:45Z"));
        let begins_in_it = windows(&["02:30-05:00 Europe/Berlin"]);
        assert_eq!(at(&begins_in_it, "2026-03-29T00:00:00Z"), shut("2026-03-29T01:00Z"), "when the clock is changed");
        let ends_in_it = windows(&["01:00-02:30 Europe/Berlin"]);
        assert_eq!(at(&ends_in_it, "2026-03-29T00:00:00Z"), open("2026-03-29T01:00Z"));
        assert_eq!(at(&ends_in_it, "2026-10-24T23:00:00Z"), open("2026-10-25T00:30Z"));
        assert_eq!(at(&ends_in_it, "2026-10-25T00:30:00Z"), shut("2026-10-25T01:00Z"), "02:00 comes once more");
        let night = windows(&["22:00-06:00 Europe/Berlin"]);
        assert_eq!(at(&night, "2026-03-28T21:00:00Z"), open("2026-03-29T04:00Z"), "seven hours");
        assert_eq!(at(&night, "2026-10-24T20:00:00Z"), open("2026-10-25T05:00Z"), "nine hours");
    }

    #[test]
    fn every_change_is_one_and_nothing_changes_before_it() {
        let all =
            windows(&["22:00-06:00 Europe/Berlin", "02:15-02:45 America/New_York", "01:59-02:01 Australia/Lord_Howe"]);
        let (mut now, end) = (ms("2026-02-01T00:00:00Z"), ms("2026-12-01T00:00:00Z"));
        while now < end {
            let standing = all.at(now);
            let until = standing.until_ms.expect("a change");
            assert!(until > now);
            for part in 1..7 {
                let between = now + (until - now) * part / 7;
                assert_eq!(all.at(between).is_open, standing.is_open, "{} of {}", rfc3339(between), rfc3339(until));
            }
            assert_ne!(all.at(until).is_open, standing.is_open, "{}", rfc3339(until));
            now = until;
        }
    }

    #[test]
    fn work_is_laid_into_the_windows() {
        let night = windows(&["22:00-06:00 UTC"]);
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let takes = |start: &str, needs| night.stretched(ms(start), needs);
        assert_eq!(takes("2026-11-20T22:00:00Z", hours(3)), Some(hours(3)));
        assert_eq!(takes("2026-11-20T12:00:00Z", hours(3)), Some(hours(13)));
        assert_eq!(takes("2026-11-20T22:00:00Z", hours(8)), Some(hours(8)));
        assert_eq!(takes("2026-11-20T22:00:00Z", hours(9)), Some(hours(25)));
        assert_eq!(takes("2026-11-20T22:00:00Z", hours(24)), Some(hours(56)));
        assert_eq!(SendWindows::default().stretched(0, hours(24)), Some(hours(24)));
        assert_eq!(takes("2026-11-20T22:00:00Z", hours(1_000_000)), None);
    }

    #[test]
    fn what_is_no_window_is_named() {
        for (text, part) in [
            ("22:00-06:00", "two times and a zone"),
            ("22:00 UTC", "two times and a zone"),
            ("25:00-06:00 UTC", "two times and a zone"),
            ("22-6 UTC", "two times and a zone"),
            ("22:00-22:00 UTC", "never opens"),
            ("22:00-06:00 Mars/Olympus", "unknown time zone"),
        ] {
            let error = text.parse::<SendWindow>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(windows(&["22:00-06:00 UTC", "07:00-08:00 UTC"]).to_string(), "22:00-06:00 UTC, 07:00-08:00 UTC");
    }
}
