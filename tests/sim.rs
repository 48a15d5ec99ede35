//! The bundled simulator proves itself before it judges anything else: its algorithms against given series and against
//! brute-force definitions, its HTTP behaviours over real sockets.

use std::time::Duration;

use paceline::sim::enforce::{Admission, Edge, Limit, Meter, Nanos};
use paceline::sim::measure::Utilisation;
use paceline::sim::{
    CostSource, KeyPlace, Lognormal, Outage, ProviderHandle, ProviderOptions, ProviderSim, RateHeaders, ReceiverHandle,
    ReceiverOptions, ReceiverSim, RetryAfter, Rule, SimError, SimKey, Verdict,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// Far above anything that is waited for here; only a failing test waits so long.
const LONG: Duration = Duration::from_secs(20);

// ------------------------------------------------------------------------------------------- the algorithms

const PER: Duration = Duration::from_nanos(100);

/// Offers one unit at each time; returns what happened, refusals as the wait that was told.
fn series(limit: &Limit, times: &[Nanos]) -> Vec<Admission> {
    let mut meter = Meter::new(limit).expect("a limit");
    times
        .iter()
        .map(|&now| {
            let admission = meter.admit(now, 1);
            if admission == Admission::Now {
                meter.take(now, 1);
            }
            admission
        })
        .collect()
}

use Admission::{In, Now};

#[test]
fn sliding_log_counts_the_window_that_ends_now() {
    let limit = Limit::SlidingLog { limit: 2, per: PER };
    let seen = series(&limit, &[0, 30, 30, 99, 100, 101, 129, 130]);
    assert_eq!(seen, [Now, Now, In(70), In(1), Now, In(29), In(1), Now]);
}

#[test]
fn sliding_counter_weighs_the_previous_window() {
    let limit = Limit::SlidingCounter { limit: 4, per: PER };
    // Four in the first window; in the second they fade: 4·(100 − into)/100 + current + 1 ≤ 4.
    let seen = series(&limit, &[10, 20, 30, 90, 95, 110, 124, 125, 149, 150, 300]);
    assert_eq!(
        seen,
        [Now, Now, Now, Now, In(30), In(15), In(1), Now, In(1), Now, Now],
        "a sliding counter refuses a burst that a sliding log lets through at 110"
    );
}

#[test]
fn fixed_window_on_the_clock_lets_twice_the_limit_through_at_its_edge() {
    let limit = Limit::FixedWindow { limit: 2, per: PER, edge: Edge::Clock };
    let seen = series(&limit, &[98, 99, 99, 100, 101, 199, 200]);
    assert_eq!(seen, [Now, Now, In(1), Now, Now, In(1), Now]);
}

#[test]
fn fixed_window_from_the_first_call_begins_with_it() {
    let limit = Limit::FixedWindow { limit: 2, per: PER, edge: Edge::FirstCall };
    let seen = series(&limit, &[98, 99, 100, 197, 198, 250, 297, 298, 500, 599, 600]);
    assert_eq!(
        seen,
        [Now, Now, In(98), In(1), Now, Now, In(1), Now, Now, Now, Now],
        "windows begin at 98, 198, 298, 500 and 600"
    );
}

#[test]
fn token_bucket_has_burst_and_then_its_rate() {
    let limit = Limit::TokenBucket { limit: 10, per: PER, burst: 3 };
    let seen = series(&limit, &[0, 0, 0, 0, 9, 10, 15, 20, 1000, 1000, 1000, 1000]);
    assert_eq!(seen, [Now, Now, Now, In(10), In(1), Now, In(5), Now, Now, Now, Now, In(10)]);
}

#[test]
fn leaky_bucket_drains_and_takes_what_fits() {
    let limit = Limit::LeakyBucket { limit: 10, per: PER, room: 2 };
    let seen = series(&limit, &[0, 0, 5, 10, 10, 30, 30, 30]);
    assert_eq!(seen, [Now, Now, In(5), Now, In(10), Now, Now, In(10)]);
}

#[test]
fn odd_rates_are_not_rounded() {
    // Three per 100 ns: a token every 33⅓ ns. Refused at 33, let through at 34; after 300 ns exactly nine came.
    let limit = Limit::TokenBucket { limit: 3, per: PER, burst: 1 };
    assert_eq!(series(&limit, &[0, 33, 34, 66, 67, 100]), [Now, In(1), Now, In(2), In(1), Now]);
    let mut meter = Meter::new(&limit).expect("a limit");
    let mut passed = 0;
    for now in 0..=30_000 {
        if meter.admit(now, 1) == Now {
            meter.take(now, 1);
            passed += 1;
        }
    }
    // Each call takes the next whole nanosecond (34 ns), since the bucket holds one token only.
    assert_eq!(passed, 30_000 / 34 + 1);
}

#[test]
fn concurrency_is_held_until_it_is_released() {
    let mut meter = Meter::new(&Limit::Concurrency { limit: 2 }).expect("a limit");
    for _ in 0..2 {
        assert_eq!(meter.admit(0, 1), Now);
        meter.take(0, 1);
    }
    assert_eq!(meter.admit(1_000, 1), Admission::WhenReleased);
    assert_eq!(meter.gauge(0).remaining, 0);
    meter.release();
    assert_eq!(meter.admit(1_000, 1), Now);
}

#[test]
fn costs_are_counted_in_units_and_never_in_parts() {
    let limit = Limit::SlidingLog { limit: 10, per: PER };
    let mut meter = Meter::new(&limit).expect("a limit");
    for (now, units) in [(0, 3), (10, 3), (20, 4)] {
        assert_eq!(meter.admit(now, units), Now);
        meter.take(now, units);
    }
    assert_eq!(meter.admit(30, 4), In(80), "three units come back at 100, three more at 110");
    assert_eq!(meter.admit(30, 3), In(70));
    assert_eq!(meter.admit(30, 11), Admission::Never);
    assert_eq!(meter.admit(100, 3), Now, "the refusals took nothing");
}

#[test]
fn impossible_limits_are_refused() {
    assert!(Meter::new(&Limit::SlidingLog { limit: 0, per: PER }).is_err());
    assert!(Meter::new(&Limit::SlidingLog { limit: 1, per: Duration::ZERO }).is_err());
    assert!(Meter::new(&Limit::TokenBucket { limit: 1, per: PER, burst: 0 }).is_err());
    assert!("key requests 0/1s sliding_log".parse::<Rule>().is_err());
    for text in [
        "",
        "key",
        "key requests 5 sliding_log",
        "key requests 5/1x sliding_log",
        "key requests 5/1s token_bucket",
        "key requests 5/1s sliding_log burst=2",
        "all concurrency 3",
    ] {
        let error = text.parse::<Rule>().expect_err(text).to_string();
        assert!(error.contains("rule"), "{error}");
    }
}

/// The definitions, by brute force over every call accepted so far.
mod oracle {
    use super::{Edge, Limit, Nanos};

    fn sum(accepted: &[(Nanos, u64)], within: impl Fn(Nanos) -> bool) -> u64 {
        accepted.iter().filter(|(at, _)| within(*at)).map(|(_, units)| units).sum()
    }

    /// Whether `units` at `now` may pass after what was accepted.
    pub fn allows(limit: &Limit, accepted: &[(Nanos, u64)], now: Nanos, units: u64) -> bool {
        match *limit {
            Limit::SlidingLog { limit, per } => {
                let per = per.as_nanos() as Nanos;
                sum(accepted, |at| at + per > now) + units <= limit
            }
            Limit::SlidingCounter { limit, per } => {
                let per = per.as_nanos() as Nanos;
                let index = now / per;
                let current = sum(accepted, |at| at / per == index);
                let previous = sum(accepted, |at| at / per + 1 == index);
                let left = per - now % per;
                previous * left + (current + units) * per <= limit * per
            }
            Limit::FixedWindow { limit, per, edge: Edge::Clock } => {
                let per = per.as_nanos() as Nanos;
                sum(accepted, |at| at / per == now / per) + units <= limit
            }
            Limit::FixedWindow { limit, per, edge: Edge::FirstCall } => {
                let per = per.as_nanos() as Nanos;
                let mut start: Option<Nanos> = None;
                for &(at, _) in accepted {
                    if start.is_none_or(|start| at >= start + per) {
                        start = Some(at);
                    }
                }
                match start.filter(|start| now < start + per) {
                    Some(start) => sum(accepted, |at| at >= start) + units <= limit,
                    None => units <= limit,
                }
            }
            // Both buckets: no interval that ends now may hold more than the burst and what the rate gives.
            Limit::TokenBucket { limit, per, burst } | Limit::LeakyBucket { limit, per, room: burst } => {
                let per = per.as_nanos() as Nanos;
                let fits = |from: Nanos, held: u64| held * per <= burst * per + limit * (now - from);
                let mut held = units;
                accepted.iter().rev().all(|&(at, more)| {
                    held += more;
                    fits(at, held)
                }) && units <= burst
            }
            Limit::Concurrency { .. } => unreachable!("has no time"),
        }
    }
}

mod by_definition {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> impl Strategy<Value = Limit> {
        (0..6_u8, 1..12_u64, 1..200_u64, 1..12_u64).prop_map(|(kind, limit, per, burst)| {
            let per = Duration::from_nanos(per);
            match kind {
                0 => Limit::SlidingLog { limit, per },
                1 => Limit::SlidingCounter { limit, per },
                2 => Limit::FixedWindow { limit, per, edge: Edge::Clock },
                3 => Limit::FixedWindow { limit, per, edge: Edge::FirstCall },
                4 => Limit::TokenBucket { limit, per, burst },
                _ => Limit::LeakyBucket { limit, per, room: burst },
            }
        })
    }

    proptest! {
        /// Every decision is the definition's, and the wait told with a refusal is exact to the nanosecond.
        #[test]
        fn every_algorithm_is_its_definition(
            limit in limits(),
            calls in prop::collection::vec((0..40_u64, 1..4_u64), 1..120),
        ) {
            let mut meter = Meter::new(&limit).expect("a limit");
            let (mut now, mut accepted) = (1_000, Vec::new());
            for (pause, units) in calls {
                now += pause;
                let admission = meter.admit(now, units);
                let allowed = oracle::allows(&limit, &accepted, now, units);
                prop_assert_eq!(admission == Now, allowed, "{:?} at {}: {:?}", limit, now, admission);
                match admission {
                    Now => {
                        meter.take(now, units);
                        accepted.push((now, units));
                    }
                    In(wait) => {
                        prop_assert!(wait > 0);
                        prop_assert!(oracle::allows(&limit, &accepted, now + wait, units));
                        prop_assert!(!oracle::allows(&limit, &accepted, now + wait - 1, units));
                    }
                    Admission::Never | Admission::WhenReleased => {
                        let later = now + 1_000_000;
                        prop_assert!(!oracle::allows(&limit, &accepted, later, units));
                    }
                }
                let gauge = meter.gauge(now);
                let one_more = oracle::allows(&limit, &accepted, now, gauge.remaining.max(1));
                prop_assert_eq!(one_more, gauge.remaining > 0);
                prop_assert!(!oracle::allows(&limit, &accepted, now, gauge.remaining + 1));
            }
        }
    }
}

#[test]
fn utilisation_is_the_window_over_the_mean_distance_of_n_calls() {
    let measured = |n, calls: &[(Nanos, u64)]| {
        let mut used = Utilisation::new(n, 100);
        calls.iter().for_each(|&(at, units)| used.arrived(at, units));
        (used.value(), used.gaps())
    };
    assert_eq!(measured(2, &[(0, 1), (0, 1)]), (None, 0), "no window is over yet");
    assert_eq!(measured(2, &[(0, 1), (0, 1), (100, 1), (100, 1)]), (Some(1.0), 2), "bunched");
    assert_eq!(measured(2, &[(0, 1), (50, 1), (100, 1), (150, 1)]), (Some(1.0), 2), "even");
    assert_eq!(measured(2, &[(0, 1), (0, 1), (125, 1), (125, 1)]), (Some(0.8), 2), "too slow");
    let single: Vec<(Nanos, u64)> = (0..40).map(|i| (i / 4 * 110, 1)).collect();
    let as_cost: Vec<(Nanos, u64)> = (0..10).map(|i| (i * 110, 4)).collect();
    assert_eq!(measured(4, &single), measured(4, &as_cost), "a cost of c is c calls at once");
}

#[test]
fn delays_have_the_median_and_the_percentile_they_were_given() {
    let delay: Lognormal = "15ms,120ms".parse().expect("a delay");
    assert_eq!(delay, Lognormal::ms(15, 120));
    assert_eq!(delay.at(0.0).as_millis(), 15);
    assert!((delay.at(2.326_347_874).as_secs_f64() - 0.120).abs() < 1e-6);
    let cut: Lognormal = "15ms,120ms,200ms".parse().expect("a delay");
    assert_eq!(cut.at(9.0).as_millis(), 200);
    for text in ["", "15ms", "120ms,15ms", "0ms,1ms", "1ms,x"] {
        assert!(text.parse::<Lognormal>().is_err(), "{text}");
    }
}

// --------------------------------------------------------------------------------------------- the provider

fn client() -> Client {
    Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().timeout(LONG).build().expect("a client")
}

async fn provider(options: ProviderOptions) -> ProviderHandle {
    ProviderSim::start(options).await.expect("a provider")
}

/// A provider with one key, `a1`, whose secret is `one`.
async fn keyed(rules: &[&str]) -> ProviderHandle {
    provider(ProviderOptions { keys: vec![SimKey::new("a1", "one")], ..ruled(rules) }).await
}

fn ruled(rules: &[&str]) -> ProviderOptions {
    let rules = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
    ProviderOptions { rules, ..ProviderOptions::default() }
}

async fn get(sim: &ProviderHandle, path: &str) -> Response {
    send(Client::get(&client(), sim.base_url() + path).bearer_auth("one")).await
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

async fn json(response: Response) -> Value {
    serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("text"))
}

#[tokio::test]
async fn a_call_over_the_limit_is_429_with_retry_after_and_costs_nothing() {
    let sim = keyed(&["key requests 2/1h sliding_log"]).await;
    assert_eq!(get(&sim, "/ok").await.status(), 200);
    assert_eq!(get(&sim, "/anything/else").await.status(), 200);
    for _ in 0..3 {
        let refused = get(&sim, "/ok").await;
        assert_eq!(refused.status(), 429);
        let wait: u64 = header(&refused, "retry-after").expect("Retry-After").parse().expect("seconds");
        assert!((3_590..=3_600).contains(&wait), "{wait}");
        assert_eq!(json(refused).await["error"]["code"], "rate_limited");
    }
    let stats = sim.stats();
    assert_eq!((stats.accepted, stats.rejected, stats.refused_limit), (2, 3, 3));
    assert_eq!((stats.keys[0].key.as_str(), stats.keys[0].accepted), ("a1", 2));
    assert_eq!(stats.rules[0].refused, 3);
    let verdicts: Vec<Verdict> = sim.ledger().iter().map(|arrival| arrival.verdict).collect();
    assert_eq!(verdicts[..2], [Verdict::Accepted; 2]);
    assert_eq!(verdicts[2..], [Verdict::OverLimit { rule: 0 }; 3]);
    sim.shutdown().await;
    assert!(client().get(sim.base_url()).send().await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn keys_are_counted_apart_accounts_and_the_server_together() {
    let sim = provider(ProviderOptions {
        keys: vec![
            SimKey::new("a1", "one"),
            SimKey::new("b1", "two").of_account("org"),
            SimKey::new("b2", "three").of_account("org"),
        ],
        ..ruled(&[
            "key requests 2/1h fixed_clock",
            "account requests 3/1h sliding_log",
            "server requests 1/1h sliding_log on=/v1/search",
        ])
    })
    .await;
    let call = async |secret: &str, path: &str| {
        send(client().get(sim.base_url() + path).bearer_auth(secret)).await.status().as_u16()
    };
    assert_eq!([call("two", "/ok").await, call("two", "/ok").await], [200, 200]);
    assert_eq!(call("two", "/ok").await, 429, "the key's own limit");
    assert_eq!([call("three", "/ok").await, call("three", "/ok").await], [200, 429], "the account's");
    assert_eq!(call("one", "/v1/search/x").await, 200);
    assert_eq!(call("one", "/v1/search/x").await, 429, "the route's");
    assert_eq!(call("one", "/ok").await, 200, "what the route refused was not counted for the key");
    assert_eq!(call("one", "/ok").await, 429);
}

#[tokio::test]
async fn credentials_are_found_where_they_may_stand_and_nowhere_else() {
    let sim = keyed(&[]).await;
    let url = sim.base_url() + "/ok";
    let status = async |request: RequestBuilder| send(request).await.status().as_u16();
    let http = client();
    assert_eq!(status(http.get(&url).bearer_auth("one")).await, 200);
    assert_eq!(status(http.get(&url).basic_auth("user", Some("one"))).await, 200);
    assert_eq!(status(http.get(&url).basic_auth("one", Some(""))).await, 200);
    assert_eq!(status(http.get(&url).header("X-Api-Key", "one")).await, 200);
    assert_eq!(status(http.get(url.clone() + "?api_key=one")).await, 200);
    assert_eq!(status(http.get(&url)).await, 401);
    assert_eq!(status(http.get(&url).bearer_auth("other")).await, 401);
    assert_eq!(status(http.get(&url).header("authorization", "Basic !!")).await, 401);
    assert!(sim.set_revoked("a1", true) && !sim.set_revoked("nobody", true));
    assert_eq!(status(http.get(&url).bearer_auth("one")).await, 401);
    sim.set_revoked("a1", false);
    assert_eq!(status(http.get(&url).bearer_auth("one")).await, 200);
    let written = format!("{:?} {:?}", sim.ledger(), sim);
    assert!(!written.contains("\"one\""), "secrets stay out: {written}");

    let sim = provider(ProviderOptions {
        keys: vec![SimKey::new("a1", "one")],
        key_places: vec![KeyPlace::Header {
            name: "x-token".parse().expect("a name"),
            scheme: Some("Token".to_owned()),
        }],
        ..ProviderOptions::default()
    })
    .await;
    let url = sim.base_url() + "/ok";
    assert_eq!(status(http.get(&url).header("x-token", "token one")).await, 200);
    assert_eq!(status(http.get(&url).bearer_auth("one")).await, 401);
}

#[tokio::test]
async fn where_everybody_is_accepted_each_credential_is_a_key() {
    let sim = provider(ruled(&["key requests 1/1h sliding_log"])).await;
    let call = async |key: &str| send(client().get(sim.base_url() + "/ok").bearer_auth(key)).await.status().as_u16();
    assert_eq!([call("x").await, call("y").await, call("x").await], [200, 200, 429]);
    let keys: Vec<String> = sim.stats().keys.into_iter().map(|key| key.key).collect();
    assert_eq!(keys[0], "anonymous");
    assert!(keys[1].starts_with("sha256:") && keys.len() == 3, "{keys:?}");
}

#[tokio::test]
async fn headers_tell_the_tightest_limit() {
    let with = async |rate_headers| {
        let rules = ["key requests 10/1h fixed_first_call", "server requests 1000/1h sliding_log"];
        let sim = provider(ProviderOptions { rate_headers, ..ruled(&rules) }).await;
        get(&sim, "/ok").await;
        get(&sim, "/ok").await
    };
    let reply = with(RateHeaders::XDeltaSeconds).await;
    let told = ["limit", "remaining", "reset"].map(|name| {
        let value = header(&reply, &format!("x-ratelimit-{name}")).expect(name);
        value.parse::<u64>().expect("a number")
    });
    assert_eq!(told[..2], [10, 8]);
    assert!((3_595..=3_600).contains(&told[2]), "{told:?}");
    let reply = with(RateHeaders::XEpochSeconds).await;
    let reset: u64 = header(&reply, "x-ratelimit-reset").expect("reset").parse().expect("epoch");
    assert!(reset > 1_700_000_000 && reset < 100_000_000_000, "{reset}");
    let reply = with(RateHeaders::Ietf).await;
    assert_eq!(header(&reply, "ratelimit-policy"), Some("\"default\";q=10;w=3600"));
    assert!(header(&reply, "ratelimit").expect("ratelimit").starts_with("\"default\";r=8;t=3"));
    assert_eq!(header(&with(RateHeaders::None).await, "x-ratelimit-limit"), None);
}

#[tokio::test]
async fn retry_after_can_be_a_date_or_absent() {
    let with = async |retry_after| {
        let rules = ["key requests 1/1h sliding_log"];
        let sim = provider(ProviderOptions { retry_after, ..ruled(&rules) }).await;
        get(&sim, "/ok").await;
        let reply = get(&sim, "/ok").await;
        assert_eq!(reply.status(), 429);
        header(&reply, "retry-after").map(str::to_owned)
    };
    assert_eq!(with(RetryAfter::None).await, None);
    let date = with(RetryAfter::HttpDate).await.expect("a date");
    assert!(date.ends_with(" GMT"), "{date}");
}

#[tokio::test]
async fn behaviours_answer_as_asked() {
    let sim = keyed(&[]).await;
    for (path, status) in [
        ("/ok", 200),
        ("/v1/geocode?q=1", 200),
        ("/status/503", 503),
        ("/status/204", 204),
        ("/status/abc", 400),
        ("/status/100", 400),
        ("/gone/17", 404),
        ("/bad-key", 200),
        ("/v1/geocode?sim=status/418", 418),
        ("/big/x", 400),
        ("/ok?h=nonsense", 400),
    ] {
        assert_eq!(get(&sim, path).await.status().as_u16(), status, "{path}");
    }
    let reply = get(&sim, "/redirect?to=http://elsewhere/x").await;
    assert_eq!((reply.status(), header(&reply, "location")), (StatusCode::FOUND, Some("http://elsewhere/x")));
    let reply = get(&sim, "/status/403?reason=rateLimitExceeded&retry_after=7&h=X-Scope:%20user").await;
    assert_eq!((header(&reply, "retry-after"), header(&reply, "x-scope")), (Some("7"), Some("user")));
    assert_eq!(json(reply).await["error"]["code"], "rateLimitExceeded");
    let garbage = get(&sim, "/html").await;
    assert_eq!(garbage.status(), 200);
    assert!(serde_json::from_slice::<Value>(&garbage.bytes().await.expect("bytes")).is_err());
    assert_eq!(get(&sim, "/big/10485760").await.bytes().await.expect("bytes").len(), 10 << 20);
    assert_eq!(get(&sim, "/drip/5/1").await.text().await.expect("a body"), "xxxxx");
    let reply = json(get(&sim, "/cost/17").await).await;
    assert_eq!(reply["usage"]["total_tokens"], 17);
    assert_eq!(sim.ledger().last().expect("a call").cost, 17);
    let begun = std::time::Instant::now();
    get(&sim, "/slow/60").await;
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn echo_shows_what_was_sent() {
    let sim = keyed(&[]).await;
    let request = client().request(Method::PUT, sim.base_url() + "/echo/x?a=1&a=%2F").bearer_auth("one");
    let reply = json(send(request.header("x-trace", "t1").body("{\"k\":[1]}")).await).await;
    assert_eq!((&reply["method"], &reply["path"]), (&Value::from("PUT"), &Value::from("/echo/x")));
    assert_eq!(reply["query"], serde_json::json!([["a", "1"], ["a", "/"]]));
    assert_eq!((&reply["headers"]["x-trace"], &reply["body"]), (&Value::from("t1"), &Value::from("{\"k\":[1]}")));
    assert_eq!(reply["headers"]["authorization"], "Bearer one", "providers echo keys: so does this one");
    let request = client().post(sim.base_url() + "/echo").bearer_auth("one").body(vec![0xff, 0]);
    assert_eq!(json(send(request).await).await["body_base64"], "/wA=");
}

#[tokio::test]
async fn failures_are_counted_by_idempotency_key() {
    let sim = keyed(&[]).await;
    let call = async |key: Option<&str>, path: &str| {
        let request = client().post(sim.base_url() + path).bearer_auth("one");
        let request = match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        send(request).await.status().as_u16()
    };
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push((call(Some("j1"), "/fail/2").await, call(Some("j2"), "/fail/1?status=500").await));
    }
    assert_eq!(seen, [(503, 500), (503, 200), (200, 200), (200, 200)]);
    assert_eq!(
        [call(None, "/fail/1?a").await, call(None, "/fail/1?b").await, call(None, "/fail/1?a").await],
        [503, 503, 200]
    );
    assert_eq!(call(Some("j3"), "/status/500?executed=1").await, 500);
    let repeated: Vec<(String, u64, u64)> = sim
        .executions(1)
        .into_iter()
        .map(|found| (found.idempotency_key.into(), found.accepted, found.executed))
        .collect();
    let expected = [("j1", 4, 2), ("j2", 4, 3), ("j3", 1, 1)].map(|(key, a, e)| (key.to_owned(), a, e));
    assert_eq!(repeated, expected);
    assert_eq!(sim.stats().executed_more_than_once, Some(2));
}

#[tokio::test]
async fn an_outage_begins_and_ends() {
    let sim = keyed(&[]).await;
    let both =
        async || [get(&sim, "/ok").await.status().as_u16(), get(&sim, "/outage?status=422").await.status().as_u16()];
    assert_eq!(both().await, [200, 200]);
    sim.set_outage(Outage::Marked);
    assert_eq!(both().await, [200, 422]);
    sim.set_outage(Outage::All);
    assert_eq!(both().await, [503, 503]);
    sim.set_outage(Outage::None);
    assert_eq!(both().await, [200, 200]);
}

#[tokio::test]
async fn bad_keys_are_bad_on_their_path_only() {
    let sim = provider(ProviderOptions {
        keys: vec![SimKey::new("a1", "one"), SimKey::new("a2", "two")],
        bad_keys: vec!["a1".to_owned()],
        ..ProviderOptions::default()
    })
    .await;
    assert_eq!(get(&sim, "/bad-key/x").await.status(), 401);
    assert_eq!(get(&sim, "/ok").await.status(), 200);
    let other = client().get(sim.base_url() + "/bad-key").bearer_auth("two");
    assert_eq!(send(other).await.status(), 200);
}

#[tokio::test]
async fn broken_answers_break_where_they_should() {
    let sim = keyed(&["server concurrency 50"]).await;
    let http = client();
    let call =
        |path: &str| http.post(sim.base_url() + path).header("idempotency-key", path).bearer_auth("one").body("x");
    assert!(call("/reset").send().await.is_err());
    assert!(call("/reset/before").send().await.is_err());
    let half = call("/half").send().await.expect("a head");
    assert_eq!(half.content_length(), Some(1_000));
    assert!(half.bytes().await.is_err());
    let hang = call("/hang").timeout(Duration::from_millis(80)).send().await;
    assert!(hang.expect_err("no answer").is_timeout());
    let headers = call("/headers/90").send().await.expect("an answer");
    assert!(headers.headers().len() > 90);
    let executed: Vec<String> = sim.executions(1).into_iter().map(|found| found.idempotency_key.into()).collect();
    assert_eq!(executed, ["/half", "/hang", "/headers/90", "/reset"]);
    let told: Vec<Option<u16>> = sim.ledger().iter().map(|arrival| arrival.status).collect();
    assert_eq!(told, [None, None, Some(200), None, Some(200)]);
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let sim = keyed(&[]).await;
    let mut stream = TcpStream::connect(sim.addr()).await.expect("a connection");
    let request = b"GET /reset HTTP/1.1\r\nhost: x\r\nauthorization: Bearer one\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let error = stream.read(&mut [0; 64]).await.expect_err("no end of file");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn open_calls_are_limited_and_come_back() {
    let sim = keyed(&["key concurrency 2"]).await;
    let http = client();
    let call = |path: &str| http.get(sim.base_url() + path).bearer_auth("one").send();
    let held = [tokio::spawn(call("/hang")), tokio::spawn(call("/hang"))];
    sim.wait_accepted(2, LONG).await.expect("two calls");
    let refused = call("/ok").await.expect("an answer");
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    let error = sim.wait_accepted(3, Duration::from_millis(20)).await;
    let error = error.expect_err("only two");
    assert_eq!((error.wanted, error.seen), (3, 2));
    held.iter().for_each(|call| call.abort());
    let begun = std::time::Instant::now();
    while call("/ok").await.expect("an answer").status() != 200 {
        assert!(begun.elapsed() < LONG, "callers that left hold nothing");
    }
    let stats = sim.stats();
    assert_eq!(stats.keys[0].open_peak, 2);
    assert!(stats.refused_concurrency > 0);
}

#[tokio::test]
async fn a_call_in_flight_is_judged_although_its_sender_is_gone() {
    let delay = Some(Lognormal::ms(150, 151));
    for delay_before in [None, delay] {
        let sim = provider(ProviderOptions { delay_before, ..ProviderOptions::default() }).await;
        for body in ["", "x"] {
            let mut stream = TcpStream::connect(sim.addr()).await.expect("a connection");
            let head = format!(
                "POST /ok HTTP/1.1\r\nhost: x\r\nidempotency-key: k{body}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.expect("sent");
        } // gone
        sim.wait_accepted(2, LONG).await.expect("both were judged");
        assert_eq!(sim.executions(1).len(), 2);
    }
}

#[tokio::test]
async fn a_call_is_judged_after_its_delay_and_answered_after_the_others() {
    let sim = provider(ProviderOptions {
        delay_before: Some(Lognormal::ms(60, 61)),
        latency: Some(Lognormal::ms(40, 41)),
        delay_after: Some(Lognormal::ms(80, 81)),
        ..ProviderOptions::default()
    })
    .await;
    let begun = sim.stats().uptime_ms;
    let clock = std::time::Instant::now();
    get(&sim, "/ok").await;
    assert!(clock.elapsed() >= Duration::from_millis(175), "{:?}", clock.elapsed());
    let judged = sim.ledger()[0].at.as_millis() as u64;
    assert!(judged >= begun + 55, "judged at {judged}, asked at {begun}");
    let mean = sim.stats().mean_delay_ms.expect("a mean");
    assert!((175.0..190.0).contains(&mean), "{mean}");
}

#[tokio::test]
async fn costs_come_from_a_header_or_the_body() {
    let with = async |cost| provider(ProviderOptions { cost, ..ruled(&["key cost 10/1h sliding_log"]) }).await;
    let http = client();
    let sim = with(CostSource::Header("x-cost".parse().expect("a name"))).await;
    let call = async |cost: &str| send(http.get(sim.base_url() + "/ok").header("x-cost", cost)).await.status().as_u16();
    assert_eq!([call("6").await, call("5").await, call("4").await, call("").await], [200, 429, 200, 429]);
    assert_eq!(sim.stats().keys[0].cost, 10);
    let sim = with(CostSource::Json("/max/tokens".to_owned())).await;
    let call = async |body: &'static str| send(http.post(sim.base_url() + "/ok").body(body)).await.status().as_u16();
    assert_eq!(call(r#"{"max":{"tokens":9}}"#).await, 200);
    assert_eq!(call(r#"{"max":{"tokens":2}}"#).await, 429);
    assert_eq!(call("not JSON").await, 200);
    let refused = send(http.post(sim.base_url() + "/ok").body(r#"{"max":{"tokens":11}}"#)).await;
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")), (429, None), "never passes");
}

#[tokio::test]
async fn bodies_and_ledgers_are_bounded() {
    let sim = provider(ProviderOptions { body_max_bytes: 100, ledger_capacity: 2, ..ProviderOptions::default() }).await;
    let post = async |bytes: usize| {
        let sent = client().post(sim.base_url() + "/ok").body(vec![b'x'; bytes]).send().await;
        sent.map(|reply| reply.status().as_u16())
    };
    assert_eq!(post(100).await.expect("an answer"), 200);
    assert_eq!(post(101).await.expect("an answer"), 413);
    assert_eq!(post(1).await.expect("an answer"), 200);
    let stats = sim.stats();
    assert_eq!((stats.ledger_written, stats.ledger_dropped), (2, 1));
    assert_eq!((stats.arrivals, stats.refused_malformed), (3, 1));

    let sim = provider(ProviderOptions { ledger_capacity: 0, ..ProviderOptions::default() }).await;
    get(&sim, "/ok").await;
    let stats = sim.stats();
    assert_eq!((stats.accepted, stats.ledger_written, stats.executed_more_than_once), (1, 0, None));
}

#[tokio::test]
async fn other_processes_read_and_steer_it_over_http() {
    let sim = keyed(&["key requests 3/1h sliding_log"]).await;
    for _ in 0..4 {
        send(client().get(sim.base_url() + "/ok").bearer_auth("one").header("idempotency-key", "j1")).await;
    }
    let url = |path: &str| sim.base_url() + "/_sim/" + path;
    let stats = json(send(client().get(url("stats"))).await).await;
    assert_eq!((&stats["accepted"], &stats["rejected"]), (&Value::from(3), &Value::from(1)));
    assert_eq!(stats["rules"][0]["rule"], "key requests 3/1h sliding_log");
    let page = json(send(client().get(url("ledger?from=2&limit=5"))).await).await;
    assert_eq!((&page["total"], page["items"].as_array().map(Vec::len)), (&Value::from(4), Some(2)));
    assert_eq!(page["items"][1]["verdict"], serde_json::json!({"kind": "over_limit", "rule": 0}));
    assert_eq!(page["items"][0]["key"], "a1");
    let repeated = json(send(client().get(url("executions?least=2"))).await).await;
    assert_eq!(repeated, serde_json::json!([{"idempotency_key": "j1", "accepted": 3, "executed": 3}]));
    assert_eq!(send(client().post(url("outage?mode=all"))).await.status(), 204);
    assert_eq!(send(client().post(url("outage?mode=some"))).await.status(), 400);
    assert_eq!(send(client().post(url("reset"))).await.status(), 204);
    assert_eq!(get(&sim, "/ok").await.status(), 429, "limits go on counting");
    assert_eq!(sim.stats().arrivals, 1, "and only the measurements began again");
    assert_eq!(send(client().post(url("revoke?key=a1"))).await.status(), 204);
    assert_eq!(get(&sim, "/ok").await.status(), 401);
    assert_eq!(send(client().get(url("nothing"))).await.status(), 404);
}

#[tokio::test]
async fn utilisation_of_a_real_run_is_what_was_sent() {
    // Ten per 100 ms allowed; twenty calls in two bursts 250 ms apart use 40 %.
    let sim = keyed(&["key requests 10/100ms sliding_log"]).await;
    for _ in 0..2 {
        for _ in 0..10 {
            assert_eq!(get(&sim, "/ok").await.status(), 200);
        }
        tokio::time::sleep(Duration::from_millis(250)).await; // the pause is what is measured
    }
    let arrivals = sim.ledger();
    let mean = (0..10).map(|i| (arrivals[i + 10].at - arrivals[i].at).as_secs_f64()).sum::<f64>() / 10.0;
    let stats = sim.stats();
    let told = stats.rules[0].utilisation.expect("measured");
    assert!((told - 0.1 / mean).abs() < 1e-3, "told {told}, by the ledger {}", 0.1 / mean);
    assert_eq!((stats.rules[0].windows, stats.keys[0].utilisation[0].windows), (1.0, 1.0));
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused_by_name() {
    let named = async |options| match ProviderSim::start(options).await {
        Err(SimError::Option { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let twice = vec![SimKey::new("a", "one"), SimKey::new("a", "two")];
    assert_eq!(named(ProviderOptions { keys: twice, ..ProviderOptions::default() }).await, "keys");
    let bad_keys = vec!["x".to_owned()];
    assert_eq!(named(ProviderOptions { bad_keys, ..ProviderOptions::default() }).await, "bad_keys");
    let latency = Some(Lognormal::ms(20, 10));
    assert_eq!(named(ProviderOptions { latency, ..ProviderOptions::default() }).await, "latency");
    let rules = vec![Rule::key(Limit::Concurrency { limit: 0 })];
    assert_eq!(named(ProviderOptions { rules, ..ProviderOptions::default() }).await, "rules");
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let listen = taken.local_addr().expect("an address");
    let refused = ProviderSim::start(ProviderOptions { listen, ..ProviderOptions::default() }).await;
    assert!(matches!(refused, Err(SimError::Listen { .. })));
}

#[tokio::test]
async fn servers_end_with_the_token_of_their_owner() {
    let owner = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let sim = ProviderSim::start_on(ProviderOptions::default(), listener, owner.clone()).expect("a provider");
    let hanging = tokio::spawn(client().get(sim.base_url() + "/hang").send());
    sim.wait_arrived(1, LONG).await.expect("a call");
    owner.cancel();
    assert!(hanging.await.expect("joined").is_err());
    sim.shutdown().await;
}

// --------------------------------------------------------------------------------------------- the receiver

async fn receiver(secrets: &[&str]) -> ReceiverHandle {
    let secrets = secrets.iter().map(|&secret| secret.to_owned()).collect();
    ReceiverSim::start(ReceiverOptions { secrets, ..ReceiverOptions::default() }).await.expect("a receiver")
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("before the end of time")
}

fn event(job: &str, state: &str) -> String {
    format!(
        r#"{{"type":"job.{state}","timestamp":"2026-11-20T10:00:00.123Z","data":{{"job_id":"{job}","tenant":"acme","state":"{state}","metadata":{{}}}}}}"#
    )
}

fn signed(secret: &str, url: &str, id: &str, at: i64, body: &str) -> RequestBuilder {
    let signature = Webhook::new(secret).expect("a secret").sign(id, at, body.as_bytes()).expect("signed");
    client()
        .post(url)
        .header("webhook-id", id)
        .header("webhook-timestamp", at.to_string())
        .header("webhook-signature", signature)
        .body(body.to_owned())
}

async fn deliver(url: &str, id: &str, job: &str) -> Response {
    send(signed(SECRET, url, id, now(), &event(job, "succeeded"))).await
}

#[tokio::test]
async fn a_good_signature_is_kept_and_a_bad_one_refused() {
    let sim = receiver(&[SECRET, OTHER_SECRET]).await;
    let (url, body) = (sim.hook(""), event("j1", "succeeded"));
    assert_eq!(deliver(&url, "e1", "j1").await.status(), 204);
    assert_eq!(send(signed(OTHER_SECRET, &url, "e2", now(), &event("j2", "dead"))).await.status(), 204);
    let tampered = signed(SECRET, &url, "e3", now(), &body).body(event("j9", "succeeded"));
    assert_eq!(send(tampered).await.status(), 401);
    assert_eq!(send(signed(SECRET, &url, "e4", now() - 301, &body)).await.status(), 401, "too old");
    assert_eq!(
        send(signed(SECRET, &url, "e5", now(), &body).header("webhook-id", "e6")).await.status(),
        204,
        "the first of two ids is the one that counts, and it was signed"
    );
    assert_eq!(send(client().post(&url).body(body.clone())).await.status(), 401);
    assert_eq!(send(signed("whsec_AAAA", &url, "e7", now(), &body)).await.status(), 401);
    assert_eq!(send(client().get(&url)).await.status(), 405);
    let stats = sim.stats();
    assert_eq!((stats.verified, stats.bad_signature, stats.distinct, stats.requests), (3, 4, 3, 8));
    assert_eq!((stats.by_type["job.succeeded"], stats.by_type["job.dead"]), (2, 1));
    let events = sim.events();
    assert_eq!((&*events[1].job_id, &*events[1].state, events[1].secret), ("j2", "dead", 1));
    assert_eq!(events[0].tenant.as_deref(), Some("acme"));
    assert!(
        ReceiverSim::start(ReceiverOptions { secrets: vec!["whsec_!".to_owned()], ..ReceiverOptions::default() })
            .await
            .is_err()
    );
}

#[tokio::test]
async fn repeats_are_counted_by_id_and_endpoint() {
    let sim = receiver(&[SECRET]).await;
    let fails = sim.hook("/fail/2/tenant-a");
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(deliver(&fails, "e1", "j1").await.status().as_u16());
    }
    assert_eq!(seen, [503, 503, 204, 204]);
    assert_eq!(deliver(&sim.hook("/tenant-b"), "e1", "j1").await.status(), 204);
    assert_eq!(deliver(&sim.hook("/tenant-b"), "e1", "other").await.status(), 204);
    let stats = sim.stats();
    assert_eq!((stats.verified, stats.distinct, stats.acknowledged), (6, 1, 1));
    assert_eq!((stats.duplicates, stats.duplicates_acknowledged), (4, 2));
    assert_eq!(stats.endpoints["/hook/fail/2/tenant-a"].acknowledged, 2);
    let events = sim.events();
    assert_eq!((events.len(), events[0].deliveries, events[0].changed), (2, 4, false));
    assert!(events[1].changed, "the same id told two stories");
    sim.reset();
    assert_eq!((sim.stats().distinct, sim.events().len()), (0, 0));
}

#[tokio::test]
async fn endpoints_behave_as_their_path_says() {
    let sim = receiver(&[SECRET]).await;
    assert_eq!(deliver(&sim.hook("/gone"), "e1", "j").await.status(), 410);
    assert_eq!(deliver(&sim.hook("/status/500"), "e1", "j").await.status(), 500);
    let first = deliver(&sim.hook("/retry-after/3"), "e1", "j").await;
    assert_eq!((first.status().as_u16(), header(&first, "retry-after")), (503, Some("3")));
    assert_eq!(deliver(&sim.hook("/retry-after/3"), "e1", "j").await.status(), 204);
    let moved = deliver(&sim.hook("/redirect?to=http://elsewhere/"), "e1", "j").await;
    assert_eq!((moved.status().as_u16(), header(&moved, "location")), (302, Some("http://elsewhere/")));
    let hang = signed(SECRET, &sim.hook("/hang"), "e2", now(), &event("j", "dead"));
    let hang = hang.timeout(Duration::from_millis(80)).send().await;
    assert!(hang.expect_err("no answer").is_timeout());
    assert_eq!((sim.stats().distinct, sim.stats().acknowledged), (2, 1));
    assert_eq!(sim.stats().endpoints["/hook/hang"].open_peak, 1);
}

#[tokio::test]
async fn a_test_waits_for_events_without_sleeping() {
    let sim = receiver(&[SECRET]).await;
    let url = sim.hook("");
    let sending = tokio::spawn(async move {
        for at in 0..20 {
            deliver(&url, &format!("e{at}"), &format!("j{at}")).await;
            deliver(&url, &format!("e{at}"), &format!("j{at}")).await;
        }
    });
    sim.wait_distinct(20, LONG).await.expect("twenty events");
    sim.wait_acknowledged(20, LONG).await.expect("twenty answers");
    sending.await.expect("sent");
    let late = sim.wait_distinct(21, Duration::from_millis(10)).await.expect_err("only twenty");
    assert_eq!((late.wanted, late.seen), (21, 20));
    let page = json(send(client().get(sim.base_url() + "/_sim/events?from=18")).await).await;
    assert_eq!((&page["total"], &page["items"][1]["job_id"]), (&Value::from(20), &Value::from("j19")));
    let stats = json(send(client().get(sim.base_url() + "/_sim/stats")).await).await;
    assert_eq!((&stats["distinct"], &stats["duplicates_acknowledged"]), (&Value::from(20), &Value::from(20)));
    sim.shutdown().await;
}

#[tokio::test]
async fn a_full_book_refuses_instead_of_forgetting() {
    let options = ReceiverOptions { ledger_capacity: 1, ..ReceiverOptions::default() };
    let sim = ReceiverSim::start(options).await.expect("a receiver");
    assert_eq!(deliver(&sim.hook(""), "e1", "j").await.status(), 204);
    assert_eq!(deliver(&sim.hook(""), "e2", "j").await.status(), 503);
    assert_eq!(deliver(&sim.hook(""), "e1", "j").await.status(), 204);
    let stats = sim.stats();
    assert_eq!((stats.dropped, stats.distinct, stats.verified), (1, 1, 0), "nothing to verify with");
}
