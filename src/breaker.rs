//! Stops calling a provider that is down, and finds out when it is back. Pure: time is an argument.
//!
//! ```text
//!            enough failures, and a large share          `open` is over
//!   closed ───────────────────────────────────▶ open ──────────────────▶ half open
//!      ▲                                          ▲                      │      │
//!      │                                          └── a probe failed ────┘      │
//!      └───────────────── as many probes as asked for were answered ────────────┘
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use crate::pace::Time;

/// The window is counted in so many parts: it forgets a tenth of itself at a time.
const PARTS: u32 = 10;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerPolicy {
    /// It opens at so many failures within the window,
    pub failures: u32,
    /// if they are at least this share of the calls (0 to 1).
    pub ratio: f64,
    /// How far back calls count.
    pub window: Duration,
    /// It stays open for so long before it is tried out.
    pub open: Duration,
    /// So many probes at once, all of which have to be answered.
    pub probes: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        let (window, open) = (Duration::from_secs(30), Duration::from_secs(15));
        Self { failures: 10, ratio: 0.5, window, open, probes: 3 }
    }
}

/// What the end of a call says of its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answered, whatever it thought of the call.
    Up,
    /// It did not, or said that it cannot.
    Down,
}

/// What a breaker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing is sent until then.
    Opened(Time),
    /// Calls go out as before.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Time,
    },
    /// So many probes are on their way, so many were answered.
    HalfOpen {
        flying: u32,
        answered: u32,
    },
}

/// A call that a breaker let go. Calls from before it opened say nothing about whether the provider is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    round: u64,
    probe: bool,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    from: Time,
    calls: u32,
    failures: u32,
}

/// The breaker of one provider.
#[derive(Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    state: State,
    /// Rises whenever it opens or closes.
    round: u64,
    parts: VecDeque<Part>,
}

impl Breaker {
    /// A closed one.
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { policy, state: State::Closed, round: 0, parts: VecDeque::new() }
    }

    /// How many more calls may be let go now; `None`: as many as there are.
    pub fn room(&mut self, now: Time) -> Option<u32> {
        if let State::Open { until } = self.state
            && until <= now
        {
            self.state = State::HalfOpen { flying: 0, answered: 0 };
        }
        match self.state {
            State::Closed => None,
            State::Open { .. } => Some(0),
            State::HalfOpen { flying, answered } => Some(self.policy.probes.saturating_sub(flying + answered)),
        }
    }

    /// Until when nothing is let go, where that is so.
    pub fn open_until(&self) -> Option<Time> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// Its name in reports and metrics.
    pub fn name(&self) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }

    /// Whether a call that has this pass, and has not left yet, still may.
    pub fn honours(&self, pass: Pass) -> bool {
        pass.round == self.round && !matches!(self.state, State::Open { .. })
    }

    /// A call leaves. To be asked only while there is room.
    pub fn pass(&mut self) -> Pass {
        let probe = match &mut self.state {
            State::HalfOpen { flying, .. } => {
                *flying += 1;
                true
            }
            State::Closed | State::Open { .. } => false,
        };
        Pass { round: self.round, probe }
    }

    /// A call ended so; `None`: it says nothing (it never left, or was let go of).
    pub fn ended(&mut self, pass: Pass, health: Option<Health>, now: Time) -> Option<Change> {
        if pass.round != self.round {
            return None;
        }
        match (&mut self.state, health) {
            (State::HalfOpen { flying, .. }, None) => {
                *flying = flying.saturating_sub(u32::from(pass.probe));
                None
            }
            (State::HalfOpen { .. }, Some(Health::Down)) => Some(self.open(now)),
            (State::HalfOpen { flying, answered }, Some(Health::Up)) => {
                *flying = flying.saturating_sub(1);
                *answered += 1;
                (*answered >= self.policy.probes).then(|| self.close())
            }
            (State::Closed, Some(health)) => self.count(health, now).then(|| self.open(now)),
            (State::Closed, None) | (State::Open { .. }, _) => None,
        }
    }

    /// Counts a call; whether that is too many failures.
    fn count(&mut self, health: Health, now: Time) -> bool {
        let width = self.policy.window / PARTS;
        while self.parts.front().is_some_and(|part| part.from + self.policy.window <= now) {
            self.parts.pop_front();
        }
        let current = self.parts.back_mut().filter(|part| now < part.from + width);
        let failed = u32::from(health == Health::Down);
        match current {
            Some(part) => {
                part.calls = part.calls.saturating_add(1);
                part.failures = part.failures.saturating_add(failed);
            }
            None => self.parts.push_back(Part { from: now, calls: 1, failures: failed }),
        }
        let calls: u64 = self.parts.iter().map(|part| u64::from(part.calls)).sum();
        let failures: u64 = self.parts.iter().map(|part| u64::from(part.failures)).sum();
        failed > 0 && failures >= u64::from(self.policy.failures) && failures as f64 >= self.policy.ratio * calls as f64
    }

    fn open(&mut self, now: Time) -> Change {
        let until = now + self.policy.open;
        self.state = State::Open { until };
        self.round += 1;
        self.parts.clear();
        Change::Opened(until)
    }

    fn close(&mut self) -> Change {
        self.state = State::Closed;
        self.round += 1;
        Change::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    fn breaker() -> Breaker {
        Breaker::new(BreakerPolicy::default())
    }

    fn call(breaker: &mut Breaker, health: Health, seconds: f64) -> Option<Change> {
        let pass = breaker.pass();
        breaker.ended(pass, Some(health), at(seconds))
    }

    fn opened() -> Breaker {
        let mut breaker = breaker();
        for n in 0..9 {
            assert_eq!(call(&mut breaker, Health::Down, f64::from(n)), None);
        }
        assert_eq!(call(&mut breaker, Health::Down, 9.0), Some(Change::Opened(at(24.0))));
        breaker
    }

    #[test]
    fn both_the_number_and_the_share_have_to_be_reached() {
        let mut breaker = breaker();
        for n in 0..20 {
            assert_eq!(call(&mut breaker, Health::Up, f64::from(n) / 10.0), None);
        }
        for n in 0..19 {
            assert_eq!(call(&mut breaker, Health::Down, 2.0 + f64::from(n) / 10.0), None, "failure {n}");
        }
        assert!(call(&mut breaker, Health::Down, 5.0).is_some(), "20 of 40");
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut breaker = breaker();
        for n in 0..9 {
            assert_eq!(call(&mut breaker, Health::Down, f64::from(n) / 10.0), None);
        }
        for n in 0..9 {
            assert_eq!(call(&mut breaker, Health::Down, 31.0 + f64::from(n) / 10.0), None);
        }
        assert!(call(&mut breaker, Health::Down, 32.0).is_some());
    }

    #[test]
    fn an_open_breaker_lets_nothing_go_and_then_as_many_probes_as_asked_for() {
        let mut breaker = opened();
        assert_eq!((breaker.room(at(23.9)), breaker.name()), (Some(0), "open"));
        assert_eq!(breaker.room(at(24.0)), Some(3));
        let probes = [breaker.pass(), breaker.pass(), breaker.pass()];
        assert_eq!((breaker.room(at(24.0)), breaker.name()), (Some(0), "half_open"));
        assert_eq!(breaker.ended(probes[0], Some(Health::Up), at(24.1)), None);
        assert_eq!(breaker.room(at(24.1)), Some(0), "the others are still on their way");
        assert_eq!(breaker.ended(probes[1], Some(Health::Up), at(24.2)), None);
        assert_eq!(breaker.ended(probes[2], Some(Health::Up), at(24.3)), Some(Change::Closed));
        assert_eq!(breaker.room(at(24.3)), None);
    }

    #[test]
    fn one_probe_that_fails_opens_it_again() {
        let mut breaker = opened();
        assert_eq!(breaker.room(at(24.0)), Some(3));
        let (first, second) = (breaker.pass(), breaker.pass());
        assert_eq!(breaker.ended(first, Some(Health::Down), at(25.0)), Some(Change::Opened(at(40.0))));
        assert_eq!(breaker.ended(second, Some(Health::Up), at(26.0)), None, "of an earlier round");
        assert_eq!(breaker.room(at(30.0)), Some(0));
    }

    #[test]
    fn a_probe_that_never_left_makes_room_for_another() {
        let mut breaker = opened();
        assert_eq!(breaker.room(at(24.0)), Some(3));
        let probes = [breaker.pass(), breaker.pass(), breaker.pass()];
        assert_eq!(breaker.ended(probes[1], None, at(24.5)), None);
        assert_eq!(breaker.room(at(24.5)), Some(1));
    }

    #[test]
    fn answers_to_calls_from_before_it_opened_decide_nothing() {
        let mut breaker = breaker();
        let early = breaker.pass();
        for n in 0..10 {
            call(&mut breaker, Health::Down, f64::from(n));
        }
        assert_eq!(breaker.room(at(24.0)), Some(3));
        assert_eq!(breaker.ended(early, Some(Health::Down), at(24.1)), None);
        assert_eq!(breaker.room(at(24.1)), Some(3));
    }

    #[test]
    fn memory_is_bounded_by_the_parts_of_the_window() {
        let mut breaker = breaker();
        for n in 0..100_000 {
            call(&mut breaker, Health::Up, f64::from(n) / 100.0);
        }
        assert!(breaker.parts.len() <= PARTS as usize + 1);
    }
}
