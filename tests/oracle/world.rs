//! A network with delays between the pacer and its provider, in virtual time, the same for the same seed.

use super::{MILLI, SECOND, Server};
use paceline::pace::{Ask, Flight, KeyId, Line, Next, Pool, Signal, Time};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A small generator of random numbers (splitmix64).
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }
}

/// A long-tailed delay: lognormal, given by its median and 99th percentile in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    pub median_ms: f64,
    pub p99_ms: f64,
}

impl Delay {
    pub const NONE: Delay = Delay { median_ms: 0.0, p99_ms: 0.0 };
    /// The network of the project's figures.
    pub const LONG_TAIL: Delay = Delay { median_ms: 15.0, p99_ms: 120.0 };

    pub const fn new(median_ms: f64, p99_ms: f64) -> Delay {
        Delay { median_ms, p99_ms }
    }

    pub fn roll(&self, dice: &mut Dice) -> u64 {
        if self.median_ms <= 0.0 {
            return 0;
        }
        let sigma = (self.p99_ms / self.median_ms).ln() / 2.326_347_9;
        (self.median_ms * (sigma * dice.normal()).exp() * 1e6) as u64
    }
}

/// What is sent through the world.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub ask: Ask,
    pub lane: usize,
    /// What it really costs, where that is told in the answer.
    pub actual: Option<u64>,
}

/// One arrival at a provider.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: u64,
    pub sent: u64,
    pub key: KeyId,
    pub lane: usize,
    pub cost: u64,
    pub accepted: bool,
}

pub struct World<'a> {
    pub there: Delay,
    pub work: Delay,
    pub back: Delay,
    /// The answer never comes with this probability (the call is judged all the same); given up after `timeout`.
    pub lost: f64,
    pub timeout: u64,
    /// Late departures: so much at most between permit and departure.
    pub late: u64,
    /// The provider tells limits in its answers.
    pub tells: bool,
    /// A refusal says when to come back, in whole seconds.
    pub retry_after: bool,
    /// Calls that somebody else makes with the same key: probability per own call.
    pub foreign: f64,
    /// Which server judges a call of this key.
    pub server_of: Box<dyn Fn(KeyId) -> usize + 'a>,
}

impl Default for World<'_> {
    fn default() -> Self {
        World {
            there: Delay::LONG_TAIL,
            work: Delay::NONE,
            back: Delay::LONG_TAIL,
            lost: 0.0,
            timeout: 30 * SECOND,
            late: 0,
            tells: false,
            retry_after: false,
            foreign: 0.0,
            server_of: Box::new(|_| 0),
        }
    }
}

enum Event {
    Arrives(usize),
    Answered(usize),
    Done(usize),
}

struct Call {
    flight: Option<Flight>,
    job: Job,
    arrived: u64,
    accepted: bool,
    lost: bool,
    server: usize,
    said: Option<(u64, u64, u64)>,
}

/// Everything that arrived, in the order of arrival.
pub struct Report {
    pub arrivals: Vec<Arrival>,
    pub mean_rtt: f64,
    pub left: usize,
}

impl Report {
    pub fn refused(&self) -> usize {
        self.arrivals.iter().filter(|arrival| !arrival.accepted).count()
    }

    /// W ÷ mean(aᵢ₊ₙ − aᵢ) over the accepted arrivals of one key (or of all).
    pub fn utilisation(&self, n: u64, window: u64, key: Option<KeyId>) -> f64 {
        let of_key = |arrival: &&Arrival| arrival.accepted && key.is_none_or(|key| key == arrival.key);
        let times: Vec<u64> = self.arrivals.iter().filter(of_key).map(|arrival| arrival.at).collect();
        let n = n as usize;
        assert!(times.len() > 2 * n, "only {} arrivals", times.len());
        let gaps: Vec<u64> = (n..times.len()).map(|i| times[i] - times[i - n]).collect();
        window as f64 / (gaps.iter().sum::<u64>() as f64 / gaps.len() as f64)
    }

    /// Units accepted between two instants per window, as a share of `n`.
    pub fn share(&self, n: u64, window: u64, (from, to): (u64, u64), cost: impl Fn(&Arrival) -> u64) -> f64 {
        let inside = |arrival: &&Arrival| arrival.accepted && (from..to).contains(&arrival.at);
        let sum: u64 = self.arrivals.iter().filter(inside).map(cost).sum();
        sum as f64 / ((to - from) as f64 / window as f64) / n as f64
    }
}

/// Runs for `length` nanoseconds from `start` on: `feed` gives jobs (kept `backlog` waiting), `servers` judge them.
#[allow(clippy::too_many_arguments, reason = "a world has that many parts")]
pub fn run(
    pool: &mut Pool,
    line: &mut Line<Job>,
    world: &World<'_>,
    servers: &mut [&mut dyn Server],
    (start, length): (u64, u64),
    backlog: usize,
    dice: &mut Dice,
    mut feed: impl FnMut(&mut Dice, u64) -> Option<Job>,
) -> Report {
    let mut events: BinaryHeap<Reverse<(u64, u64, usize, u8)>> = BinaryHeap::new();
    let mut calls: Vec<Call> = Vec::new();
    let mut arrivals = Vec::new();
    let (mut now, end, mut order, mut rtt) = (start, start + length, 0_u64, (0_u64, 0_u64));
    let mut more = true;
    loop {
        while more && line.len() < backlog {
            match feed(dice, now) {
                Some(job) => {
                    let _ = line.push(job, job.lane, job.ask);
                }
                None => more = false,
            }
        }
        let next = match line.next(pool, Time::from_nanos(now)) {
            Next::Ready(job, permit, key) => {
                let sent = now + dice.below(world.late + 1);
                let flight = pool.depart(permit, Time::from_nanos(sent));
                let arrives = sent + world.there.roll(dice);
                let server = (world.server_of)(key);
                let lost = dice.unit() < world.lost;
                calls.push(Call {
                    flight: Some(flight),
                    job,
                    arrived: arrives,
                    accepted: false,
                    lost,
                    server,
                    said: None,
                });
                order += 1;
                events.push(Reverse((arrives, order, calls.len() - 1, 0)));
                continue;
            }
            Next::At(time) => {
                assert!(time.as_nanos() > now, "a slot in the past: {time:?} at {now}");
                time.as_nanos()
            }
            Next::Waiting | Next::Empty => u64::MAX,
        };
        let event = events.peek().map_or(u64::MAX, |event| event.0.0);
        now = next.min(event);
        if now >= end {
            break;
        }
        if event > now {
            continue;
        }
        let Some(Reverse((_, _, number, what))) = events.pop() else {
            break;
        };
        let call = &mut calls[number];
        match [Event::Arrives(number), Event::Answered(number), Event::Done(number)].into_iter().nth(what as usize) {
            Some(Event::Arrives(_)) => {
                let server = &mut servers[call.server];
                call.accepted = server.arrive(now, call.job.ask.cost);
                if world.foreign > 0.0 && dice.unit() < world.foreign {
                    server.arrive(now, 1);
                }
                call.said = (world.tells || world.retry_after).then(|| server.says(now)).flatten();
                let flight = call.flight.as_ref().unwrap();
                let (key, sent) = (flight.key(), flight.sent().as_nanos());
                arrivals.push(Arrival {
                    at: now,
                    sent,
                    key,
                    lane: call.job.lane,
                    cost: call.job.actual.unwrap_or(call.job.ask.cost),
                    accepted: call.accepted,
                });
                order += 1;
                let at =
                    if call.lost { sent + world.timeout } else { now + world.work.roll(dice) + world.back.roll(dice) };
                events.push(Reverse((at.max(now), order, number, if call.lost { 2 } else { 1 })));
            }
            Some(Event::Answered(_)) => {
                let flight = call.flight.as_mut().unwrap();
                rtt = (rtt.0 + now - flight.sent().as_nanos(), rtt.1 + 1);
                let signal = signal(call.accepted, call.said, world.tells);
                pool.first_byte(flight, Time::from_nanos(now), signal.as_ref());
                order += 1;
                events.push(Reverse((now, order, number, 2)));
            }
            Some(Event::Done(_)) => {
                if call.accepted {
                    servers[call.server].leave(call.arrived);
                    if let Some(actual) = call.job.actual {
                        servers[call.server].correct(call.arrived, call.job.ask.cost, actual);
                    }
                }
                let actual = call.job.actual.filter(|_| call.accepted && !call.lost);
                pool.finish(call.flight.take().unwrap(), Time::from_nanos(now), actual);
            }
            None => unreachable!(),
        }
    }
    Report { arrivals, mean_rtt: rtt.0 as f64 / rtt.1.max(1) as f64, left: line.len() }
}

/// The answer's headers, written and parsed as they would be.
pub fn signal(accepted: bool, said: Option<(u64, u64, u64)>, tells: bool) -> Option<Signal> {
    let status = if accepted { 200 } else { 429 };
    let Some((limit, remaining, reset)) = said else {
        return (!accepted).then(|| Signal::parse([], status, None));
    };
    if !tells {
        let after = reset.div_ceil(SECOND).to_string();
        return (!accepted).then(|| Signal::parse([("retry-after", after.as_str())], status, None));
    }
    let (limit, remaining) = (limit.to_string(), remaining.to_string());
    let reset = format!("{:.3}", (reset.div_ceil(MILLI)) as f64 / 1e3);
    let heads = [
        ("x-ratelimit-limit", limit.as_str()),
        ("x-ratelimit-remaining", remaining.as_str()),
        ("x-ratelimit-reset", reset.as_str()),
    ];
    Some(Signal::parse(heads, status, None))
}

pub fn seconds(n: f64) -> Duration {
    Duration::from_secs_f64(n)
}
