//! Another configuration while the built binary runs (SIGHUP): nothing is exceeded and nothing is lost; what is not valid
//! changes nothing; the API answers all the while.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::broker::{self, Broker};
use common::world::{Mode, Serve, World, in_world};
use common::{SOON, holds, until};
use paceline::sim::{Lognormal, ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

const KEYS: [(&str, &str); 2] = [("a1", "first-key-of-two"), ("a2", "second-key-of-two")];
const IN_EFFECT: &str = "the new configuration is in effect";

async fn strict(rules: &[&str]) -> ProviderHandle {
    let rules = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
    let keys = KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect();
    let latency = Some(Lognormal::ms(20, 120));
    ProviderSim::start(ProviderOptions { keys, rules, latency, ..ProviderOptions::default() })
        .await
        .expect("a provider")
}

fn jobs(world: &World, from: u64, count: u64) -> Vec<Value> {
    let job = |n| json!({ "id": format!("r{n}"), "provider": world.provider, "request": { "path": "/ok" } });
    (from..from + count).map(job).collect()
}

/// How often the log says that.
fn said(serve: &Serve, text: &str) -> usize {
    serve.log().matches(text).count()
}

/// Asks for the configuration to be read again, and waits until the log says `text` once more.
async fn reload(serve: &Serve, text: &str) {
    let before = said(serve, text);
    serve.signal("-HUP");
    until(&format!("{text:?} in the log"), SOON * 2, async || holds(said(serve, text) > before)).await;
}

async fn changes_under_load(mode: Mode) {
    in_world(mode, async |world| {
        world.prepare().await;
        // Every configuration below allows at most this.
        let provider = strict(&["key requests 30/1s sliding_log", "server requests 55/1s sliding_log"]).await;
        let configure = |limits: &str, more: &str| {
            let text = format!("counted_within = \"1s\"\nlimits = [ {limits} ]\n{more}");
            world.provider(&provider.base_url(), &KEYS, &text);
        };
        let key = "{ requests = 30, per = \"1s\", algorithm = \"sliding_window\" }";
        let all = "{ requests = 55, per = \"1s\", algorithm = \"sliding_window\" }";
        configure(all, &format!("key_limits = [ {key} ]"));
        let serve = world.serving().await;
        let api = world.api();
        api.accept_all(&jobs(world, 0, 400)).await;
        until("calls are made", SOON, async || holds(provider.stats().accepted > 20)).await;
        for (limits, more) in [
            // Fewer, other algorithms, other places, more; and policies that have nothing to do with limits.
            ("{ requests = 40, per = \"1s\", algorithm = \"sliding_window\" }", format!("key_limits = [ {key} ]")),
            ("{ requests = 25, per = \"1s\", algorithm = \"smooth\" }", String::new()),
            (all, format!("key_limits = [ {key} ]\nlanes = {{ high = 8, low = 1 }}")),
            (all, format!("key_limits = [ {key} ]\nretry = {{ max_attempts = 2 }}\ntimeout = \"9s\"")),
            (all, format!("key_limits = [ {key}, {{ concurrency = 9 }} ]")),
        ] {
            configure(limits, &more);
            reload(&serve, IN_EFFECT).await;
            let calls = provider.stats().accepted;
            until("it goes on", SOON, async || holds(provider.stats().accepted > calls + 10)).await;
        }
        // The API has taken jobs in all the while.
        api.accept_all(&jobs(world, 400, 50)).await;
        world.all_done(450, SOON * 4).await;
        world.at_rest(450).await;
        let stats = provider.stats();
        assert_eq!(stats.rejected, 0, "{stats:?}");
        assert_eq!((stats.accepted, stats.executed), (450, 450), "each once: {stats:?}");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, 450);
        assert_eq!(said(&serve, "unclean=0"), said(&serve, "this process dispatches now"), "{}", serve.log());
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_load_and_nothing_is_exceeded_or_lost() {
    changes_under_load(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_load_on_rabbitmq_and_postgresql() {
    changes_under_load(Mode::Scaled).await;
}

/// A provider that is changed, and one that must not notice.
struct Two<'a> {
    world: &'a World,
    changed: ProviderHandle,
    other: ProviderHandle,
}

/// Calls of the other one leave evenly, so many a second.
const EVEN: u64 = 20;
/// No longer between two of them; a crowded machine may be slow between decision and arrival.
const GAP_MAX: Duration = Duration::from_millis(1_500);
/// A call of the changed one that a reload waits for.
const SLOW: &str = "/slow/3000";

impl<'a> Two<'a> {
    async fn start(world: &'a World) -> Self {
        KEYS.iter().for_each(|(label, secret)| world.set(&format!("KEY_{label}"), secret));
        let changed = strict(&["key requests 30/1s sliding_log"]).await;
        let other = strict(&[&format!("key requests {EVEN}/1s sliding_log")]).await;
        Self { world, changed, other }
    }

    fn other_name(&self) -> String {
        format!("{}o", self.world.provider)
    }

    /// `changed`: what its provider says, as it is written; none: it is not configured.
    fn configure(&self, hooks: &str, changed: Option<&str>) {
        let provider = |name: &str, url: String, key: &str, more: &str| {
            format!(
                "[[provider]]\nname = \"{name}\"\nbase_url = \"{url}\"\ncounted_within = \"1s\"\n\
                 keys = [ {{ label = \"{key}\", secret = \"env:KEY_{key}\" }} ]\n{more}\n"
            )
        };
        let even = format!("limits = [ {{ requests = {EVEN}, per = \"1s\", algorithm = \"smooth\" }} ]");
        let changed = changed.map(|more| provider(&self.world.provider, self.changed.base_url(), "a1", more));
        let other = provider(&self.other_name(), self.other.base_url(), "a2", &even);
        self.world.configure_all(&format!(
            "[api]\nlisten = \"127.0.0.1:{}\"\n[webhooks]\nsecret = \"env:WEBHOOK_SECRET\"\n{hooks}\n{}{other}",
            self.world.port,
            changed.unwrap_or_default(),
        ));
    }

    fn job(&self, id: String, provider: &str, path: &str) -> Value {
        json!({ "id": id, "provider": provider, "request": { "path": path } })
    }

    /// Over HTTP, and over the broker where there is one.
    async fn enqueue(&self, prefix: &str, provider: &str, path: &str, count: usize) {
        let jobs: Vec<Value> = (0..count).map(|n| self.job(format!("{prefix}{n}"), provider, path)).collect();
        match self.world.mode {
            Mode::Embedded => self.world.api().accept_all(&jobs).await,
            Mode::Scaled => {
                let broker = Broker::connect().await;
                let body = |job: &Value| (job["id"].as_str().expect("an id").to_owned(), job.to_string().into_bytes());
                broker.publish_all(provider, jobs.iter().map(body)).await;
                broker.close().await;
            }
        }
    }

    async fn epoch(&self, provider: &str) -> i64 {
        self.world.number(&format!("SELECT CAST(SUM(epoch) AS BIGINT) FROM leases WHERE provider = '{provider}'")).await
    }

    /// Its leases, and the connections that were open when it was asked first.
    async fn traces(&self, serve: &Serve) -> (i64, BTreeSet<String>) {
        let ports = [Some(self.other.base_url()), (self.world.mode == Mode::Scaled).then(broker::url)];
        let port = |url: &String| url::Url::parse(url).expect("a URL").port().expect("a port");
        let sockets = ports.iter().flatten().flat_map(|url| serve.sockets_to(port(url))).collect();
        (self.epoch(&self.other_name()).await, sockets)
    }
}

async fn one_changes_and_the_other_does_not_notice(mode: Mode) {
    in_world(mode, async |world| {
        let two = Two::start(world).await;
        let (name, other) = (world.provider.clone(), two.other_name());
        let window =
            |n: u32| format!("limits = [ {{ requests = {n}, per = \"1s\", algorithm = \"sliding_window\" }} ]");
        two.configure("", Some(&window(25)));
        world.prepare().await;
        let serve = world.serving().await;
        two.enqueue("even", &other, "/ok", 700).await;
        until("the other one is called", SOON, async || holds(two.other.stats().accepted > 20)).await;
        let (epoch, sockets) = two.traces(&serve).await;
        assert!(!sockets.is_empty());
        let began = two.other.stats().accepted;
        let mut jobs = 0;
        for (n, (hooks, changed)) in [
            ("", Some(format!("{}\ntimeout = \"9s\"", window(25)))),
            ("", Some(window(10))),
            ("", Some("limits = [ { requests = 20, per = \"1s\", algorithm = \"smooth\" } ]".to_owned())),
            ("timeout = \"7s\"", Some(window(20))),
            // It goes, and comes again.
            ("timeout = \"7s\"", None),
            ("timeout = \"7s\"", Some(window(30))),
        ]
        .into_iter()
        .enumerate()
        {
            let before = two.epoch(&name).await;
            if n != 5 {
                // A call is open meanwhile: whatever is replaced waits for it.
                two.enqueue(&format!("slow{n}-"), &name, SLOW, 1).await;
                two.enqueue(&format!("quick{n}-"), &name, "/ok", 20).await;
                jobs += 21;
                let calls = two.changed.stats().arrivals;
                until("it is called", SOON, async || holds(two.changed.stats().arrivals > calls)).await;
            }
            two.configure(hooks, changed.as_deref());
            reload(&serve, IN_EFFECT).await;
            if changed.is_some() {
                until("its dispatcher is another one", SOON, async || holds(two.epoch(&name).await > before)).await;
            }
        }
        // What concerns neither.
        let before = two.epoch(&name).await;
        two.configure("timeout = \"6s\"", Some(&window(30)));
        reload(&serve, IN_EFFECT).await;
        world.configure_all(
            &std::fs::read_to_string(world.path("paceline.toml")).expect("a file").replace(&other, &name),
        );
        reload(&serve, "the new configuration is not valid").await;
        assert!(serve.log().replace('\\', "").contains(&format!("provider \"{name}\": there are two")));
        assert_eq!(two.epoch(&name).await, before);

        let (epoch_now, sockets_now) = two.traces(&serve).await;
        assert_eq!(epoch_now, epoch, "its lease was held all the while");
        assert!(sockets.is_subset(&sockets_now), "{sockets:?} were open, {sockets_now:?} are");
        let calls = two.other.ledger();
        assert!(calls.len() < 700, "there was work for it all the while");
        let at: Vec<Duration> = calls.iter().skip(usize::try_from(began).expect("few")).map(|call| call.at).collect();
        let gap = at.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().expect("calls");
        assert!(gap < GAP_MAX, "nothing of the other one was sent for {gap:?}");

        world.all_done(700 + jobs, SOON * 4).await;
        world.at_rest(700 + jobs).await;
        for (sim, jobs) in [(&two.other, 700), (&two.changed, u64::try_from(jobs).expect("a count"))] {
            let stats = sim.stats();
            assert_eq!((stats.rejected, stats.accepted, stats.executed), (0, jobs, jobs), "each once: {stats:?}");
        }
        serve.stop().await;
        assert_eq!(world.number("SELECT COUNT(*) FROM owners").await, 0);
        if mode == Mode::Scaled {
            let broker = Broker::connect().await;
            broker.delete(&format!("paceline.jobs.{other}.default")).await;
            broker.close().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_did_not_change_does_not_notice() {
    one_changes_and_the_other_does_not_notice(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_did_not_change_does_not_notice_on_rabbitmq_and_postgresql() {
    one_changes_and_the_other_does_not_notice(Mode::Scaled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_every_problem_is_told() {
    in_world(Mode::Embedded, async |world| {
        let provider = strict(&[]).await;
        world.provider(&provider.base_url(), &KEYS, "key_limits = [ { requests = 50, per = \"1s\" } ]");
        let mut serve = world.serving().await;
        let good = std::fs::read_to_string(world.path("paceline.toml")).expect("a file");
        let refused = "the new configuration is not valid; the running one stays in effect";
        let restart = "these settings need a restart; the running configuration stays in effect";
        let twice = format!("{good}timeout = \"0s\"\nlanes = {{ high = 0 }}\n");
        let port = format!("127.0.0.1:{}", world.port);
        let job = format!("{{ provider = \"{}\", request = {{ path = \"/ok\" }} }}", world.provider);
        let schedule = format!("[[schedules]]\nname = \"s\"\ncron = \"0 0 1 1 *\"\njob = {job}\n");
        for (text, message, told) in [
            (twice, refused, &["timeout: expected more than 0s", "lanes.high: expected a weight"][..]),
            (good.replace("key_limits", "key_limit"), refused, &["key_limit", "line"]),
            (good.replace("env:KEY_a1", "env:NOT_THERE"), refused, &["NOT_THERE"]),
            (format!("{good}ca_file = \"/nowhere/ca.pem\"\n"), refused, &["/nowhere/ca.pem"]),
            (
                format!("{good}[[provider]]\nname = \"{}\"\nbase_url = \"http://x\"\n", world.provider),
                refused,
                &["there are two providers of this name: give one of them another name"],
            ),
            (format!("{good}[[provider.route]]\nmatch = \"v1\"\n"), refused, &["route[0].match: expected a path"]),
            (good.replace("env:KEY_a1\"", "env:KEY_a1\", weight = 0"), refused, &["key \"a1\": expected a weight"]),
            (format!("{good}window = \"22:00-22:00 UTC\"\n"), refused, &["window: \"22:00-22:00 UTC\" never opens"]),
            (format!("{good}{schedule}zone = \"Mars/Base\"\n"), refused, &["schedules \"s\": zone: unknown time zone"]),
            (
                format!("{good}{schedule}").replace("1 1 *", "30 2 *"),
                refused,
                &["schedules \"s\": cron", "never comes"],
            ),
            (good.replace(&port, "127.0.0.1:1"), restart, &["api.listen"]),
            (format!("[store]\nurl = \"sqlite://other.db\"\n{good}"), restart, &["store.url"]),
            (format!("[queue]\nurl = \"amqp://nowhere\"\n{good}"), restart, &["queue.url"]),
        ] {
            world.configure_all(&text);
            reload(&serve, message).await;
            let log = serve.log().replace('\\', "");
            assert!(told.iter().all(|part| log.contains(part)), "{told:?} in {log}");
        }
        assert!(!world.path("other.db").exists());
        world.configure_all(&good);
        reload(&serve, "the configuration says what it said before").await;
        assert_eq!(said(&serve, IN_EFFECT), 0);
        assert_eq!(said(&serve, "this process dispatches now"), 1, "nothing began anew");
        world.api().accept_all(&jobs(world, 0, 5)).await;
        world.all_done(5, SOON).await;
        assert!(serve.is_alive());
        serve.stop().await;
    })
    .await;
}

/// A window of the next seconds: it opens and shuts so long after now.
fn window(opens: Duration, shuts: Duration) -> String {
    let shown = |after: Duration| (jiff::Timestamp::now() + after).strftime("%H:%M:%S").to_string();
    format!("window = \"{}-{} UTC\"", shown(opens), shown(shuts))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_leave_only_within_the_window_and_when_it_is_gone() {
    in_world(Mode::Embedded, async |world| {
        let begun = jiff::Timestamp::now();
        let provider = strict(&[]).await;
        let limit =
            "limits = [ { requests = 4, per = \"1s\", algorithm = \"sliding_window\" } ]\ncounted_within = \"1s\"";
        let (opens, shuts) = (Duration::from_secs(8), Duration::from_secs(12));
        world.provider(&provider.base_url(), &KEYS, &format!("{limit}\n{}", window(opens, shuts)));
        let serve = world.serving().await;
        let api = world.api();
        api.accept_all(&jobs(world, 0, 40)).await;
        let waits = api.job_in("r0", &["queued"]).await;
        assert_eq!(waits["waiting_for"]["reason"], "window", "{waits:#}");
        let opening: jiff::Timestamp = waits["waiting_for"]["until"].as_str().expect("a time").parse().expect("a time");
        assert!(opening.duration_since(begun).as_secs_f64() < 10.0, "{opening}");
        assert_eq!(provider.stats().arrivals, 0);
        until_calls(&provider, 3).await;
        // It shuts though jobs wait; what is left waits for the next day.
        let shut = "it is shut, and nothing is open";
        until(shut, SOON, async || {
            let left = api.get("/v1/jobs?limit=100").await.1;
            let waiting = left["items"].as_array()?.iter().filter(|job| job["waiting_for"]["reason"] == "window");
            let far = |job: &&Value| {
                job["waiting_for"]["until"].as_str().is_some_and(|until| {
                    until.parse::<jiff::Timestamp>().is_ok_and(|until| until.duration_since(begun).as_hours() > 20)
                })
            };
            holds(
                waiting.filter(far).count() > 5
                    && world.number("SELECT COUNT(*) FROM jobs WHERE owner IS NOT NULL").await == 0,
            )
        })
        .await;
        let calls = provider.ledger();
        // The ledger counts from the start of the provider; a crowded machine may be slow between decision and arrival.
        for call in calls.iter() {
            let at = call.at.as_secs_f64();
            assert!((6.0..13.5).contains(&at), "{at}: {call:?}");
        }
        assert!(calls.len() < 30, "{}", calls.len());
        world.provider(&provider.base_url(), &KEYS, limit);
        reload(&serve, IN_EFFECT).await;
        world.all_done(40, SOON * 2).await;
        assert_eq!(provider.stats().executed, 40);
        serve.stop().await;
    })
    .await;
}

async fn until_calls(provider: &ProviderHandle, calls: u64) {
    until("the window opens", SOON, async || holds(provider.stats().accepted >= calls)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_tokens_and_keys_come_and_go() {
    in_world(Mode::Embedded, async |world| {
        let provider = strict(&[]).await;
        let base = provider.base_url();
        world.set("KEY", KEYS[0].1);
        world.set("TOKEN_1", "the-first-token-of-ops");
        world.set("TOKEN_2", "the-second-token-of-ops");
        let configure = |names: &[&str], token: u8, path: &str| {
            let mut text = format!(
                "[api]\nlisten = \"127.0.0.1:{}\"\ntokens = [ {{ name = \"ops\", secret = \"env:TOKEN_{token}\", scopes = [\"admin\"] }} ]\n",
                world.port
            );
            for name in names {
                text += &format!("[[provider]]\nname = \"{name}\"\nbase_url = \"{base}{path}\"\nkeys = [ {{ label = \"k\", secret = \"env:KEY\" }} ]\nlimits = [ {{ requests = 50, per = \"1s\" }} ]\n");
            }
            world.configure_all(&text);
        };
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let url = format!("http://127.0.0.1:{}/v1/jobs", world.port);
        let post = async |id: &str, provider: &str, token: &str| {
            let body = json!({ "id": id, "provider": provider, "request": { "path": "/ok" } }).to_string();
            let request = http.post(&url).bearer_auth(token).header("content-type", "application/json").body(body);
            request.send().await.expect("an answer").status().as_u16()
        };
        let (first, second) = ("the-first-token-of-ops", "the-second-token-of-ops");
        configure(&["one", "two"], 1, "");
        let serve = world.serving().await;
        assert_eq!(post("j1", "one", first).await, 202);
        assert_eq!(post("j2", "three", first).await, 422);

        configure(&["one", "two"], 2, "");
        reload(&serve, IN_EFFECT).await;
        assert_eq!((post("j3", "two", first).await, post("j3", "two", second).await), (401, 202));
        assert_eq!(said(&serve, "taking a new configuration over"), 0, "tokens do not concern what dispatches");

        configure(&["two", "three"], 2, "");
        reload(&serve, IN_EFFECT).await;
        let log = serve.log().replace('\\', "");
        assert!(log.contains("provider \"one\" removed, provider \"three\" added"), "{log}");
        assert_eq!((post("j4", "one", second).await, post("j5", "three", second).await), (422, 202));
        world.all_done(3, SOON).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, 3);
        // A shutdown right after a signal to reload is heeded.
        configure(&["two"], 2, "");
        serve.signal("-HUP");
        serve.stop().await;
        tokio::time::timeout(Duration::from_secs(1), provider.shutdown()).await.ok();
    })
    .await;
}
