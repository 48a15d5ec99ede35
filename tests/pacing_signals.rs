//! What responses say about limits, in every dialect, and what that may do to a pool.

mod oracle;

use oracle::world::{Delay, Dice, Job, World, run, seconds};
use oracle::*;
use paceline::pace::*;
use proptest::prelude::*;
use std::time::Duration;

/// Mon, 02 Mar 2026 12:00:00 GMT.
const DATE: &str = "Mon, 02 Mar 2026 12:00:00 GMT";
const DATE_SECONDS: u64 = 1_772_452_800;

fn parse(status: u16, heads: &[(&'static str, &'static str)]) -> Signal {
    Signal::parse(heads.iter().copied().chain([("Date", DATE)]), status, None)
}

type Heads<'a> = &'a [(&'a str, &'a str)];

/// Unit, limit, remaining, reset in milliseconds, window in seconds, family.
type Row = (Unit, Option<u64>, Option<u64>, Option<u64>, Option<u64>, Family);

fn rows(signal: &Signal) -> Vec<Row> {
    let millis = |time: Duration| time.as_millis() as u64;
    let row =
        |r: &Reading| (r.unit, r.limit, r.remaining, r.resets_in.map(millis), r.window.map(|w| w.as_secs()), r.family);
    signal.readings.iter().map(row).collect()
}

#[test]
fn every_family_is_read() {
    use Family::*;
    use Unit::*;
    let table: &[(Heads<'_>, &[Row])] = &[
        (
            &[
                ("RateLimit-Policy", "\"burst\";q=100;w=60,\"daily\";q=1000;w=86400"),
                ("RateLimit", "\"burst\";r=50;t=30"),
            ],
            &[
                (Requests, Some(100), Some(50), Some(30_000), Some(60), Ietf),
                (Requests, Some(1000), None, None, Some(86_400), Ietf),
            ],
        ),
        (
            &[
                ("ratelimit-policy", "\"a,b\";q=10;w=1;qu=\"content-bytes\";pk=:cGs=:"),
                ("ratelimit", "\"a,b\";r=0;t=1"),
            ],
            &[(Cost, Some(10), Some(0), Some(1_000), Some(1), Ietf)],
        ),
        (
            &[("RateLimit", "limit=100, remaining=7, reset=12")],
            &[(Requests, Some(100), Some(7), Some(12_000), None, Ietf)],
        ),
        (
            &[("RateLimit-Limit", "100, 100;w=60"), ("RateLimit-Remaining", "3"), ("RateLimit-Reset", "5")],
            &[(Requests, Some(100), Some(3), Some(5_000), None, Ietf)],
        ),
        // GitHub: epoch seconds, read against Date.
        (
            &[
                ("X-RateLimit-Limit", "5000"),
                ("X-RateLimit-Remaining", "4999"),
                ("X-RateLimit-Reset", "1772452860"),
                ("X-RateLimit-Used", "1"),
            ],
            &[(Requests, Some(5000), Some(4999), Some(60_000), None, XRateLimit)],
        ),
        // Epoch milliseconds.
        (
            &[("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1772452801500")],
            &[(Requests, Some(10), Some(0), Some(1_500), None, XRateLimit)],
        ),
        // Discord: the wait in seconds beside the epoch; the wait is finer.
        (
            &[
                ("X-RateLimit-Limit", "5"),
                ("X-RateLimit-Remaining", "0"),
                ("X-RateLimit-Reset", "1772452899.123"),
                ("X-RateLimit-Reset-After", "1.234"),
                ("X-RateLimit-Bucket", "abcd"),
            ],
            &[(Requests, Some(5), Some(0), Some(1_234), None, XRateLimit)],
        ),
        // X.
        (
            &[("x-rate-limit-limit", "15"), ("x-rate-limit-remaining", "2"), ("x-rate-limit-reset", "1772453700")],
            &[(Requests, Some(15), Some(2), Some(900_000), None, XRateLimit)],
        ),
        (
            &[
                ("x-ratelimit-limit-requests", "60"),
                ("x-ratelimit-limit-tokens", "150000"),
                ("x-ratelimit-remaining-requests", "59"),
                ("x-ratelimit-remaining-tokens", "149984"),
                ("x-ratelimit-reset-requests", "250ms"),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ],
            &[
                (Requests, Some(60), Some(59), Some(250), None, OpenAi),
                (Cost, Some(150_000), Some(149_984), Some(360_000), None, OpenAi),
            ],
        ),
        (
            &[("X-RateLimit-Limit-Minute", "20"), ("X-RateLimit-Remaining-Minute", "19")],
            &[(Requests, Some(20), Some(19), None, Some(60), OpenAi)],
        ),
        (
            &[
                ("anthropic-ratelimit-requests-limit", "50"),
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", "2026-03-02T12:00:01Z"),
                ("anthropic-ratelimit-input-tokens-limit", "40000"),
                ("anthropic-ratelimit-input-tokens-remaining", "39000"),
                ("anthropic-ratelimit-input-tokens-reset", "2026-03-02T14:00:00.5+02:00"),
            ],
            &[
                (Requests, Some(50), Some(0), Some(1_000), None, Anthropic),
                (Cost, Some(40_000), Some(39_000), Some(500), None, Anthropic),
            ],
        ),
        (&[("X-Shopify-Shop-Api-Call-Limit", "32/40")], &[(Requests, Some(40), Some(8), None, None, Shopify)]),
        (
            &[
                ("X-HubSpot-RateLimit-Max", "100"),
                ("X-HubSpot-RateLimit-Remaining", "0"),
                ("X-HubSpot-RateLimit-Interval-Milliseconds", "10000"),
                ("X-HubSpot-RateLimit-Daily", "250000"),
                ("X-HubSpot-RateLimit-Daily-Remaining", "249000"),
            ],
            &[
                (Requests, Some(100), Some(0), Some(10_000), Some(10), HubSpot),
                (Requests, Some(250_000), Some(249_000), None, Some(86_400), HubSpot),
            ],
        ),
        (
            &[("Sforce-Limit-Info", "api-usage=18/5000; per-app-api-usage=17/250(appName=sample)")],
            &[(Requests, Some(5_000), Some(4_982), None, Some(86_400), Salesforce)],
        ),
        (&[("Twilio-Concurrent-Requests", "3")], &[(Concurrency, None, None, None, None, Twilio)]),
        (&[("x-amzn-RateLimit-Limit", "0.0167")], &[(Requests, Some(1), None, None, Some(59), Amazon)]),
        (&[("x-amzn-RateLimit-Limit", "15.0")], &[(Requests, Some(15), None, None, Some(1), Amazon)]),
    ];
    for (heads, expected) in table {
        assert_eq!(&rows(&parse(200, heads)), expected, "{heads:?}");
    }
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let wait = |status, value| parse(status, &[("Retry-After", value)]).retry_after;
    assert_eq!(wait(429, "120"), Some(Duration::from_secs(120)));
    assert_eq!(wait(503, "Mon, 02 Mar 2026 12:01:30 GMT"), Some(Duration::from_secs(90)));
    assert_eq!(wait(429, "Mon, 02 Mar 2026 11:00:00 GMT"), Some(Duration::ZERO));
    assert_eq!(wait(429, "1.5"), Some(Duration::from_millis(1_500)));
    let both = |millis, seconds| parse(429, &[("retry-after-ms", millis), ("retry-after", seconds)]).retry_after;
    assert_eq!(both("250", "1"), Some(Duration::from_millis(250)), "finer");
    assert_eq!(both("250.5", "1"), Some(Duration::from_millis(251)), "rounded up");
    assert_eq!(both("0", "60"), Some(Duration::from_secs(60)), "they contradict each other");
    assert_eq!(both("90000", "1"), Some(Duration::from_secs(90)));
    assert_eq!(both("-1", "1"), Some(Duration::from_secs(1)));
    assert_eq!(both("NaN", "x"), None);
    // Elsewhere it is about something else.
    assert_eq!(wait(202, "5"), None);
    assert_eq!(wait(301, "5"), None);
    // Without a Date the caller's clock serves; without either, a date says nothing.
    let date = [("Retry-After", "Mon, 02 Mar 2026 12:00:10 GMT")];
    assert_eq!(
        Signal::parse(date, 429, Some(Duration::from_secs(DATE_SECONDS))).retry_after,
        Some(Duration::from_secs(10))
    );
    assert_eq!(Signal::parse(date, 429, None).retry_after, None);
}

#[test]
fn what_counts_as_refused() {
    assert!(parse(429, &[]).limited);
    assert!(!parse(403, &[]).limited);
    assert!(!parse(503, &[("retry-after", "5")]).limited);
    assert!(parse(403, &[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "0")]).limited);
    let jira = parse(503, &[("RateLimit-Reason", "jira-quota-global-based"), ("X-RateLimit-NearLimit", "true")]);
    assert!(jira.limited && jira.near_limit);
    assert_eq!(jira.reason.as_deref(), Some("jira-quota-global-based"));
    let stripe = parse(429, &[("Stripe-Rate-Limited-Reason", "endpoint-concurrency")]);
    assert_eq!(stripe.reason.as_deref(), Some("endpoint-concurrency"));
    assert_eq!(parse(429, &[("retry-after", "1")]).families().collect::<Vec<_>>(), [Family::RetryAfter]);
}

#[test]
fn absurd_values_are_left_out_and_contradictions_read_tightly() {
    for absurd in [
        "-1",
        "NaN",
        "inf",
        "-inf",
        "1e400",
        "99999999999999999999999",
        "",
        " ",
        "abc",
        "0x10",
        "1772452860abc",
        "+",
        "-0.5",
        "\u{feff}5",
    ] {
        let signal = parse(
            429,
            &[
                ("retry-after", absurd),
                ("x-ratelimit-reset", absurd),
                ("ratelimit-reset", absurd),
                ("x-ratelimit-reset-tokens", absurd),
            ],
        );
        assert_eq!(signal.retry_after, None, "{absurd:?}");
        assert!(signal.readings.is_empty(), "{absurd:?}");
        let signal = parse(
            200,
            &[
                ("x-ratelimit-limit", absurd),
                ("x-ratelimit-remaining", absurd),
                ("x-amzn-ratelimit-limit", absurd),
                ("x-shopify-shop-api-call-limit", absurd),
                ("sforce-limit-info", absurd),
            ],
        );
        assert!(
            signal.readings.iter().all(|reading| reading.limit.is_none() && reading.remaining.is_none()),
            "{absurd:?} {signal:?}"
        );
    }
    // A year 2300 reset, and one long ago.
    assert_eq!(rows(&parse(200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "10413792000")]))[0].3, None);
    assert_eq!(rows(&parse(200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1500000000")]))[0].3, Some(0));
    let twice = [
        ("x-ratelimit-remaining", "5"),
        ("X-RateLimit-Remaining", "2"),
        ("x-ratelimit-reset", "1"),
        ("x-ratelimit-reset", "9"),
    ];
    assert_eq!(rows(&parse(200, &twice))[0], (Unit::Requests, None, Some(2), Some(9_000), None, Family::XRateLimit));
}

const NAMES: &[&str] = &[
    "date",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "x-ratelimit-used",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-reset",
    "ratelimit-remaining",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
    "x-shopify-shop-api-call-limit",
    "x-hubspot-ratelimit-max",
    "x-hubspot-ratelimit-remaining",
    "x-hubspot-ratelimit-interval-milliseconds",
    "sforce-limit-info",
    "twilio-concurrent-requests",
    "x-amzn-ratelimit-limit",
    "ratelimit-reason",
    "x-ratelimit-nearlimit",
];

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9.,;:/ \"=-]{0,24}",
        any::<f64>().prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        (0..100_u64).prop_map(|n| n.to_string()),
        (0..100_u64, 0..100_u64).prop_map(|(a, b)| format!("\"p\";q={a};w={b};r={b};t={a}")),
        (0..100_000_u64).prop_map(|n| (DATE_SECONDS + n).to_string()),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
        "([0-9]{1,3}(h|m|s|ms|us|ns)){1,3}",
        Just(DATE.to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a provider writes into its headers: no panic, and never more than the declared limit.
    #[test]
    fn hostile_headers_make_nothing_faster(
        algorithm in prop_oneof![
            Just(Algorithm::SlidingWindow), Just(Algorithm::TokenBucket), Just(Algorithm::Smooth), Just(Algorithm::FixedWindow),
        ],
        answers in prop::collection::vec(
            (prop::collection::vec((0..NAMES.len(), any_value()), 0..6), prop_oneof![Just(200), Just(429), Just(403), Just(503)]),
            1..12,
        ),
    ) {
        let limits = vec![LimitSpec::requests(5, Duration::from_secs(1), algorithm)];
        let keys = vec![KeySpec { label: "k".into(), weight: 1, budget: None }];
        let mut pool = Pool::new(&PoolSpec { key_limits: limits, keys, ..PoolSpec::default() }, Time::ZERO).unwrap();
        let mut sent = Vec::new();
        let mut said = answers.iter().cycle();
        for step in 0..400_u64 {
            let now = Time::from_nanos(step * 25 * MILLI);
            if let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) {
                sent.push(step * 25);
                let mut flight = pool.depart(permit, now);
                let (heads, status) = said.next().unwrap();
                let heads = heads.iter().map(|(name, value)| (NAMES[*name], value.as_str()));
                pool.first_byte(&mut flight, now, Some(&Signal::parse(heads, *status, None)));
                pool.finish(flight, now, None);
            }
        }
        // Fixed windows allow twice N around an edge, and one edge more than the window's own once.
        let most = if algorithm == Algorithm::FixedWindow { 15 } else { 5 };
        for (n, at) in sent.iter().enumerate() {
            let window = sent[n..].iter().take_while(|other| **other < at + 1_000).count();
            prop_assert!(window <= most, "{window} within a second: {sent:?}");
        }
        prop_assert!(sent.len() <= 60);
    }
}

fn one_key(limit: LimitSpec) -> PoolSpec {
    let keys = vec![KeySpec { label: "k".into(), weight: 1, budget: None }];
    PoolSpec { key_limits: vec![limit], keys, ..PoolSpec::default() }
}

const CALL: Job = Job { ask: Ask { cost: 1, routes: Routes::NONE, pin: None }, lane: 0, actual: None };

/// A provider that says `remaining: 0` in most of its answers does not slow an exact pacer down.
#[test]
fn remaining_zero_at_full_use_costs_nothing() {
    for (n, window) in [(100, 10 * SECOND), (10, SECOND)] {
        for seed in 0..4 {
            let limit = LimitSpec::requests(n, Duration::from_nanos(window), Algorithm::SlidingWindow);
            let mut spec = one_key(limit);
            if seed % 2 == 1 {
                // The same limit, declared of the provider as a whole.
                std::mem::swap(&mut spec.limits, &mut spec.key_limits);
            }
            let used = |tells| {
                let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
                let mut server = SlidingLog::new(n, window);
                let world = World { tells, ..World::default() };
                let report = run(
                    &mut pool,
                    &mut line,
                    &world,
                    &mut [&mut server],
                    (SECOND, 20 * window),
                    9,
                    &mut Dice(seed),
                    |_, _| Some(CALL),
                );
                assert_eq!(report.refused(), 0, "seed {seed}");
                report.utilisation(n, window, None)
            };
            let (silent, telling) = (used(false), used(true));
            assert!(telling >= silent - 1e-9, "seed {seed}: {silent} silent, {telling} telling");
        }
    }
}

/// Somebody else uses the same key: what the answers say keeps most refusals away.
#[test]
fn foreign_use_is_noticed() {
    let spec = one_key(LimitSpec::requests(50, seconds(5.0), Algorithm::Smooth));
    let refused = |tells| {
        let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
        let mut server = SlidingLog::new(50, 5 * SECOND);
        let world = World { tells, foreign: 0.3, ..World::default() };
        let report =
            run(&mut pool, &mut line, &world, &mut [&mut server], (SECOND, 100 * SECOND), 9, &mut Dice(3), |_, _| {
                Some(CALL)
            });
        (report.refused(), report.arrivals.len(), pool.snapshot(Time::from_nanos(101 * SECOND)).pacing_errors)
    };
    let (blind, seeing) = (refused(false), refused(true));
    println!("refused of sent: {blind:?} blind, {seeing:?} seeing");
    let share = |refused: usize, sent: usize| refused as f64 / sent as f64;
    assert!(share(seeing.0, seeing.1) < share(blind.0, blind.1) / 2.0);
    assert!(seeing.1 > blind.1);
}

fn flown(pool: &mut Pool, at: u64, heads: &[(&str, &str)], status: u16) {
    let now = Time::from_nanos(at * MILLI);
    let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!("not granted at {at} ms") };
    let mut flight = pool.depart(permit, now);
    pool.first_byte(&mut flight, now, Some(&Signal::parse(heads.iter().copied(), status, None)));
    pool.finish(flight, now, None);
}

fn room(pool: &Pool, at: u64) -> usize {
    let mut pool = pool.clone();
    let now = Time::from_nanos(at * MILLI);
    let permit = |_| match pool.acquire(&Ask::default(), now) {
        Acquire::Granted(permit) => Some(pool.depart(permit, now)),
        _ => None,
    };
    (0..1_000).map_while(permit).count()
}

/// What others used is counted from when it was told of, each part for itself.
#[test]
fn foreign_use_that_is_told_of_later_counts_for_longer() {
    let limit = LimitSpec::requests(20, Duration::from_secs(10), Algorithm::SlidingWindow);
    let mut pool = Pool::new(&one_key(limit), Time::ZERO).unwrap();
    flown(&mut pool, 0, &[("x-ratelimit-limit", "20"), ("x-ratelimit-remaining", "16")], 200);
    flown(&mut pool, 5_000, &[("x-ratelimit-limit", "20"), ("x-ratelimit-remaining", "10")], 200);
    assert_eq!(room(&pool, 5_001), 10, "three others, and five more");
    assert_eq!(room(&pool, 12_000), 14);
    assert_eq!(room(&pool, 15_003), 20);
}

fn used_of_all(pool: &mut Pool, at: u64) -> Vec<u64> {
    let limits = 0..pool.snapshot(Time::from_nanos(at * MILLI)).budgets[0].keys[0].limits.len();
    limits.filter_map(|n| pool.used(Place::Key(KeyId(0)), n, Time::from_nanos(at * MILLI))).collect()
}

/// A reading is about the limit of its unit, amount and window, and about no other.
#[test]
fn a_reading_is_compared_with_its_limit_alone() {
    let window = |n, seconds| LimitSpec::requests(n, Duration::from_secs(seconds), Algorithm::SlidingWindow);
    let cost = LimitSpec::cost(10, Duration::from_secs(10), Algorithm::SlidingWindow);
    let bucket = LimitSpec::requests(10, Duration::from_secs(1_000), Algorithm::TokenBucket).with_burst(5);
    let old: fn(&'static str) -> Vec<(&'static str, &'static str)> =
        |n| vec![("x-ratelimit-limit", n), ("x-ratelimit-remaining", "3")];
    let named = |window| vec![("ratelimit-policy", window), ("ratelimit", "\"p\";r=3;t=30")];
    let tokens = vec![("x-ratelimit-limit-tokens", "10"), ("x-ratelimit-remaining-tokens", "3")];
    // Limits, what is told, and what is used of them then: one call, or what makes three be left.
    let cases = [
        (vec![window(100, 60), window(10, 10)], old("10"), vec![1, 7]),
        (vec![window(10, 10), window(100, 60)], old("10"), vec![7, 1]),
        (vec![window(100, 60), window(10, 10)], old("50"), vec![1, 1]),
        (vec![window(10, 10), window(10, 60)], old("10"), vec![1, 1]),
        (vec![window(10, 10), window(10, 60)], named("\"p\";q=10;w=60"), vec![1, 7]),
        (vec![window(10, 60), window(20, 60)], named("\"p\";q=20;w=60"), vec![1, 17]),
        (vec![window(10, 10), cost.clone()], tokens.clone(), vec![1, 7]),
        (vec![cost, window(10, 10)], old("10"), vec![1, 7]),
        // A bucket may be told by its rate or by its depth; one more may have been missing from it.
        (vec![window(100, 60), bucket.clone()], old("10"), vec![1, 6]),
        (vec![window(100, 60), bucket], vec![("x-ratelimit-limit", "5"), ("x-ratelimit-remaining", "0")], vec![1, 4]),
    ];
    for (limits, heads, expected) in cases {
        let mut pool = Pool::new(&PoolSpec { key_limits: limits, ..one_key(window(1, 1)) }, Time::ZERO).unwrap();
        flown(&mut pool, 1, &heads, 200);
        let used = used_of_all(&mut pool, 2);
        assert_eq!(used, expected, "{heads:?}");
    }
}

/// Single fields, names with commas in them, and what is left where only what is used is told.
#[test]
fn parts_of_a_dialect_are_understood() {
    let read = |heads: &[(&str, &str)]| {
        let signal = Signal::parse(heads.iter().copied(), 200, None);
        let parts = signal.readings.iter().map(|reading| (reading.limit, reading.remaining));
        parts.collect::<Vec<_>>()
    };
    assert_eq!(read(&[("x-ratelimit-remaining-requests", "0")]), [(None, Some(0))]);
    assert_eq!(read(&[("x-ratelimit-limit-requests", "9")]), [(Some(9), None)]);
    assert_eq!(
        read(&[("ratelimit-policy", "\"a, b\";q=100;w=60"), ("ratelimit", "\"a, b\";r=7")]),
        [(Some(100), Some(7))]
    );
    assert_eq!(read(&[("x-ratelimit-limit", "100"), ("x-ratelimit-used", "95")]), [(Some(100), Some(5))]);
    let both = [
        ("x-ratelimit-limit", "100"),
        ("x-ratelimit-used", "95"),
        ("x-ratelimit-used", "97"),
        ("x-ratelimit-remaining", "9"),
    ];
    assert_eq!(read(&both), [(Some(100), Some(3))], "the tighter one");
}

/// When the next call may leave after this answer at one second.
fn after(limit: LimitSpec, heads: &[(&str, &str)], status: u16) -> u64 {
    let mut pool = Pool::new(&one_key(limit), Time::ZERO).unwrap();
    flown(&mut pool, 1_000, heads, status);
    match pool.acquire(&Ask::default(), Time::from_nanos(1_001 * MILLI)) {
        Acquire::Blocked { until: Some(at), .. } => at.as_nanos() / MILLI,
        Acquire::Granted(permit) => {
            pool.abandon(permit, Time::from_nanos(1_001 * MILLI));
            0
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pause_is_as_long_as_is_stated() {
    let limit = || LimitSpec::requests(100, Duration::from_secs(60), Algorithm::SlidingWindow);
    let about = |wait: u64, seconds: u64| (1_000 + seconds * 1_000..=1_000 + seconds * 1_063).contains(&wait);
    assert!(about(after(limit(), &[("retry-after", "5")], 503), 5), "though no limit is meant");
    assert_eq!(after(limit(), &[("retry-after", "5")], 200), 0);
    assert_eq!(after(limit(), &[("retry-after", "0")], 429), 0);
    let mut pool = Pool::new(&one_key(limit()), Time::ZERO).unwrap();
    let (sent, at) = (Time::from_nanos(1_000 * MILLI), Time::from_nanos(1_010 * MILLI));
    pool.throttled(KeyId(0), sent, at, Some(Duration::from_secs(5)));
    let blocked = pool.acquire(&Ask::default(), Time::from_nanos(6_009 * MILLI));
    assert!(matches!(blocked, Acquire::Blocked { why: Why::BudgetPaused(_), .. }), "told by a body: {blocked:?}");
    // Of two limits the one of which nothing is left says how long.
    let heads = [
        ("x-ratelimit-limit-requests", "500"),
        ("x-ratelimit-remaining-requests", "400"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-limit-tokens", "700"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "30s"),
    ];
    assert!(about(after(limit(), &heads, 429), 30));
    let heads = heads.map(|(name, value)| {
        (
            name,
            if value == "30s" {
                "1s"
            } else if value == "1s" {
                "30s"
            } else {
                value
            },
        )
    });
    assert!(about(after(limit(), &heads, 429), 1));
}

/// Two rounds of refusals widen every guard by a hundredth, wherever the limit is declared; later it is half of that.
#[test]
fn guards_of_shared_limits_are_widened_and_shrink_by_half() {
    let limit = || vec![LimitSpec::requests(1, Duration::from_secs(10), Algorithm::SlidingWindow)];
    let route = |limits| vec![RouteSpec { limits, key_limits: Vec::new() }];
    let plain = one_key(LimitSpec::concurrency(9));
    let specs = [
        PoolSpec { key_limits: limit(), ..plain.clone() },
        PoolSpec { limits: limit(), ..plain.clone() },
        PoolSpec { routes: route(limit()), ..plain },
    ];
    for (n, spec) in specs.into_iter().enumerate() {
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        let ask = Ask { routes: Routes::NONE.with(0), ..Ask::default() };
        let mut flown = |at: u64, status| {
            let now = Time::from_nanos(at * MILLI);
            let Acquire::Granted(permit) = pool.acquire(&ask, now) else { panic!("not granted at {at} ms") };
            let mut flight = pool.depart(permit, now);
            pool.first_byte(&mut flight, now, Some(&Signal::parse([("retry-after", "1")], status, None)));
            pool.finish(flight, now, None);
            let later = now + Duration::from_secs(5);
            let Acquire::At(next) = pool.acquire(&ask, later) else { panic!("at once") };
            next.since(now).as_millis() as u64 - 10_002
        };
        flown(0, 429);
        flown(100_000, 429);
        let steps = [200_000, 800_000, 900_000].map(|at| flown(at, 200));
        assert_eq!(steps, [100, 50, 50], "place {n}");
    }
}

/// A guard that was widened and has shrunk again is as wide as it was, clock drift and all.
#[test]
fn a_guard_shrinks_to_what_it_was() {
    let wait = |refused: bool| {
        let limit = LimitSpec::requests(1, Duration::from_secs(1_000), Algorithm::SlidingWindow);
        let mut pool = Pool::new(&one_key(limit), Time::ZERO).unwrap();
        flown(&mut pool, 0, &[("retry-after", "1")], if refused { 429 } else { 200 });
        for round in 1..6 {
            flown(&mut pool, round * 2_000_000, &[], 200);
        }
        let now = Time::from_nanos(10_000_001 * MILLI);
        let Acquire::At(at) = pool.acquire(&Ask::default(), now) else { panic!("at once") };
        at
    };
    assert_eq!(wait(true), wait(false));
}

#[test]
fn where_nothing_is_declared_the_answer_pauses() {
    let mut spec = one_key(LimitSpec::concurrency(5));
    spec.key_limits.clear();
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    flown(
        &mut pool,
        1,
        &[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "30")],
        200,
    );
    flown(
        &mut pool,
        2,
        &[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "30")],
        200,
    );
    let blocked = pool.acquire(&Ask::default(), Time::from_nanos(3 * MILLI));
    assert!(
        matches!(blocked, Acquire::Blocked { why: Why::BudgetPaused(_), until: Some(at) } if at >= Time::from_nanos(30_002 * MILLI))
    );
    assert!(matches!(pool.snapshot(Time::from_nanos(3 * MILLI)).budgets[0].state, BudgetState::Paused(_)));
}

#[test]
fn a_refusal_pauses_counts_and_widens_once_per_round() {
    let mut pool =
        Pool::new(&one_key(LimitSpec::requests(10, seconds(1.0), Algorithm::SlidingWindow)), Time::ZERO).unwrap();
    let now = Time::from_nanos(SECOND);
    let mut flights = Vec::new();
    for _ in 0..4 {
        let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!() };
        flights.push(pool.depart(permit, now));
    }
    for (n, mut flight) in flights.into_iter().enumerate() {
        let at = now + Duration::from_millis(50 + n as u64);
        pool.first_byte(&mut flight, at, Some(&Signal::parse([], 429, None)));
        pool.finish(flight, at, None);
    }
    let state = pool.snapshot(now + seconds(0.1));
    assert_eq!(state.pacing_errors, 4);
    assert!((state.budgets[0].guard - 0.005).abs() < 1e-9, "{}", state.budgets[0].guard);
    // No time was given: one second, and a little jitter; then the pauses double.
    let Acquire::Blocked { until: Some(first), .. } = pool.acquire(&Ask::default(), now + seconds(0.1)) else {
        panic!()
    };
    let wait = first.since(now + seconds(0.05));
    assert!(wait >= seconds(1.0) && wait < seconds(1.07), "{wait:?}");
    flown(&mut pool, first.as_nanos().div_ceil(MILLI), &[], 429);
    let Acquire::Blocked { until: Some(second), .. } = pool.acquire(&Ask::default(), first + seconds(0.1)) else {
        panic!()
    };
    assert!(second.since(first) >= seconds(2.0) && second.since(first) < seconds(2.2));
    assert!((pool.snapshot(second).budgets[0].guard - 0.010).abs() < 1e-9);
    // Long after, the guard shrinks again.
    for minute in 1..60 {
        flown(&mut pool, second.as_nanos() / MILLI + minute * 300_000, &[], 200);
    }
    assert_eq!(pool.snapshot(Time::from_nanos(20_000 * SECOND)).budgets[0].guard, 0.0);
}

/// Fixed windows whose edges the answers tell are used wholly, wherever they begin.
#[test]
fn fixed_windows_are_used_up_to_their_edges() {
    for (on_the_clock, floor) in [(true, 0.985), (false, 0.95)] {
        for seed in 0..4 {
            let (n, window) = (100, 10 * SECOND);
            let spec = one_key(LimitSpec::requests(n, Duration::from_nanos(window), Algorithm::FixedWindow));
            let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
            let mut server = if on_the_clock {
                FixedWindow::on_the_clock(n, window, Dice(seed).below(window))
            } else {
                FixedWindow::from_the_first_call(n, window)
            };
            let world = World { tells: true, work: Delay::new(50.0, 500.0), ..World::default() };
            let report = run(
                &mut pool,
                &mut line,
                &world,
                &mut [&mut server],
                (SECOND, 300 * SECOND),
                9,
                &mut Dice(seed),
                |_, _| Some(CALL),
            );
            assert_eq!(report.refused(), 0, "seed {seed}");
            let used = report.utilisation(n, window, None);
            println!("fixed window, clock {on_the_clock}, seed {seed}: {used:.4}");
            assert!(used >= floor, "seed {seed}: {used}");
        }
    }
}

/// Late answers and answers of earlier windows change nothing for the worse.
#[test]
fn answers_out_of_order_only_tighten() {
    let mut pool =
        Pool::new(&one_key(LimitSpec::requests(10, seconds(10.0), Algorithm::SlidingWindow)), Time::ZERO).unwrap();
    let now = Time::from_nanos(SECOND);
    let mut flights = Vec::new();
    for _ in 0..3 {
        let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!() };
        flights.push(pool.depart(permit, now));
    }
    let used = |pool: &mut Pool| pool.snapshot(now).budgets[0].keys[0].limits[0].used;
    // Own use of 3 explains 7 remaining; 4 remaining mean 3 foreign calls; 9 remaining afterwards change nothing.
    for (remaining, expected) in [("7", 3), ("4", 6), ("9", 6)] {
        let mut flight = flights.remove(0);
        let heads = [("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", remaining), ("x-ratelimit-reset", "4")];
        pool.first_byte(&mut flight, now, Some(&Signal::parse(heads, 200, None)));
        pool.finish(flight, now, None);
        assert_eq!(used(&mut pool), expected, "{remaining}");
    }
    // The stated reset may be that of the oldest call only: all of it counts for a whole window.
    assert_eq!(pool.snapshot(now + seconds(9.9)).budgets[0].keys[0].limits[0].used, 6);
    assert_eq!(pool.snapshot(now + seconds(10.1)).budgets[0].keys[0].limits[0].used, 0);
}

/// An edge told in whole seconds lies somewhere within two seconds (and the time of that answer): a call answered in
/// between may have been counted after it, and keeps its slot for a whole window.
#[test]
fn a_coarse_edge_frees_only_what_was_surely_counted_before() {
    let t = |millis: u64| Time::from_nanos(millis * MILLI);
    for (later, freed) in [(3_900, true), (4_100, false), (5_500, false), (6_900, false)] {
        let mut pool =
            Pool::new(&one_key(LimitSpec::requests(2, seconds(10.0), Algorithm::FixedWindow)), Time::ZERO).unwrap();
        let Acquire::Granted(permit) = pool.acquire(&Ask::default(), t(0)) else { panic!() };
        let mut flight = pool.depart(permit, t(0));
        let heads = [("x-ratelimit-limit", "2"), ("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "5")];
        pool.first_byte(&mut flight, t(1_000), Some(&Signal::parse(heads, 200, None)));
        pool.finish(flight, t(1_000), None);
        // Between 4 s (departure + 5 s − 1 s) and 7 s (answer + 5 s + 1 s): the first call is free then in any case.
        flown(&mut pool, later, &[], 200);
        let Acquire::At(next) = pool.acquire(&Ask::default(), t(later)) else { panic!() };
        assert!(next >= t(7_000) && next < t(7_010), "{next:?}");
        flown(&mut pool, 7_010, &[], 200);
        match pool.acquire(&Ask::default(), t(7_010)) {
            Acquire::Granted(permit) => {
                assert!(freed, "{later}");
                pool.abandon(permit, t(7_010));
            }
            Acquire::At(next) => assert!(!freed && next >= t(later + 10_000), "{later}: {next:?}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Shopify answers 200 with `THROTTLED`; GitHub with `RATE_LIMITED`.
#[test]
fn refusals_in_graphql_bodies_are_read() {
    let throttled = r#"{"errors":[{"message":"Throttled","extensions":{"code":"THROTTLED","documentation":"https://shopify.dev"}}],
        "extensions":{"cost":{"requestedQueryCost":752,"actualQueryCost":null,
        "throttleStatus":{"maximumAvailable":1000.0,"currentlyAvailable":602,"restoreRate":50.0}}}}"#;
    let signal = Signal::of_graphql(throttled.as_bytes());
    assert!(signal.limited);
    assert_eq!(signal.reason.as_deref(), Some("THROTTLED"));
    assert_eq!(signal.retry_after, Some(Duration::from_secs(3)), "150 points at 50 a second");
    assert_eq!(rows(&signal), [(Unit::Cost, Some(1_000), Some(602), None, None, Family::Shopify)]);
    let served = r#"{"data":{"shop":{"name":"THROTTLED"}},"extensions":{"cost":{"requestedQueryCost":3,"actualQueryCost":3,
        "throttleStatus":{"maximumAvailable":2000,"currentlyAvailable":1997,"restoreRate":100}}}}"#;
    let signal = Signal::of_graphql(served.as_bytes());
    assert!(!signal.limited && signal.retry_after.is_none());
    assert_eq!(rows(&signal), [(Unit::Cost, Some(2_000), Some(1_997), None, None, Family::Shopify)]);
    let github = r#"{"errors":[{"type":"RATE_LIMITED","message":"API rate limit exceeded for user ID 1."}]}"#;
    assert!(Signal::of_graphql(github.as_bytes()).limited);
    let partial = r#"{"data":{"a":1},"errors":[{"extensions":{"code":"THROTTLED"}}]}"#;
    assert!(!Signal::of_graphql(partial.as_bytes()).limited, "it was executed");
    let null = r#"{"data":null,"errors":[{"extensions":null},{"extensions":{"code":"THROTTLED"}}]}"#;
    assert!(Signal::of_graphql(null.as_bytes()).limited);
}

#[test]
fn absurd_graphql_bodies_say_nothing() {
    for body in
        ["", "null", "[]", "THROTTLED", "{", r#"{"errors":"THROTTLED"}"#, r#"{"errors":[{"extensions":{"code":5}}]}"#]
    {
        assert_eq!(Signal::of_graphql(body.as_bytes()), Signal::default(), "{body}");
    }
    for (available, rate) in [
        ("-5", "50"),
        ("1e300", "50"),
        ("null", "50"),
        ("\"602\"", "50"),
        ("602", "0"),
        ("602", "-1"),
        ("602", "1e-300"),
    ] {
        let body = format!(
            r#"{{"errors":[{{"extensions":{{"code":"THROTTLED"}}}}],"extensions":{{"cost":{{"requestedQueryCost":752,
            "throttleStatus":{{"maximumAvailable":1000,"currentlyAvailable":{available},"restoreRate":{rate}}}}}}}}}"#
        );
        let signal = Signal::of_graphql(body.as_bytes());
        assert!(signal.limited && signal.retry_after.is_none(), "{body}");
        assert!(signal.readings.iter().all(|reading| reading.remaining.is_none_or(|left| left == 602)), "{body}");
    }
}

/// A refusal in the body pauses as one in the status does, and its call is no own use.
#[test]
fn a_refusal_in_a_body_pauses_the_budget() {
    let mut pool =
        Pool::new(&one_key(LimitSpec::cost(1_000, seconds(20.0), Algorithm::TokenBucket)), Time::ZERO).unwrap();
    let now = Time::from_nanos(SECOND);
    let Acquire::Granted(permit) = pool.acquire(&Ask { cost: 100, ..Ask::default() }, now) else { panic!() };
    let mut flight = pool.depart(permit, now);
    pool.first_byte(&mut flight, now + seconds(0.1), Some(&Signal::parse([], 200, None)));
    let told = Signal { limited: true, retry_after: Some(seconds(3.0)), ..Signal::default() };
    pool.body_told(&flight, now + seconds(0.2), &told);
    pool.finish(flight, now + seconds(0.2), None);
    let blocked = pool.acquire(&Ask::default(), now + seconds(0.3));
    let Acquire::Blocked { why: Why::BudgetPaused(_), until: Some(until) } = blocked else { panic!("{blocked:?}") };
    assert!(until >= now + seconds(3.2) && until < now + seconds(4.3), "{until:?}");
    assert_eq!(pool.snapshot(now + seconds(0.3)).pacing_errors, 1);
}
