use super::*;
use crate::breaker::BreakerPolicy;

const SAMPLE: &str = r#"
[webhooks]
secret = "env:HOOKS"

[[provider]]
name = "geocoder"
base_url = "https://api.example.com/base"
safety = { headroom = "2%" }
limits = [ { concurrency = 100 } ]
key_limits = [ { requests = 600, per = "1m", algorithm = "sliding_window" }, { cost = 90000, per = "1m" } ]
keys = [ { label = "a1", secret = "env:GEO_A1" }, { label = "a2", secret = "env:GEO_A2", weight = 2 } ]
lanes = { high = 8, default = 4, low = 1 }
retry = { max_attempts = 3, jitter = "decorrelated" }
breaker = { failures = 7, ratio = "12.5%", open = "2s" }

[[provider.budget]]
name = "org-1"
keys = [ { label = "b1", secret = "env:GEO_A1" } ]
limits = [ { requests = 1000, per = "1m" } ]

[[provider.route]]
match = "POST /v1/search*"
limits = [ { requests = 5, per = "1s" } ]
"#;

fn env(extra: &[(&str, &str)]) -> Vec<(String, String)> {
    [("GEO_A1", "k1"), ("GEO_A2", "k2"), ("HOOKS", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
        .iter()
        .chain(extra)
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect()
}

fn load(text: &str, extra: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::parse(text, Some("paceline.toml".into()), &env(extra))
}

fn error(text: &str, extra: &[(&str, &str)]) -> String {
    load(text, extra).expect_err("should be refused").to_string()
}

#[test]
fn a_full_configuration_loads() {
    let config = load(SAMPLE, &[]).expect("valid");
    let provider = config.provider("geocoder").expect("there");
    assert_eq!(provider.pool.keys.len(), 3);
    assert_eq!(provider.pool.keys[2].budget, Some(0));
    assert_eq!(provider.secrets[0].as_ref().map(|s| s.expose()), Some("k1"));
    assert_eq!(provider.policy.retry.max_attempts, 3);
    let breaker = BreakerPolicy { failures: 7, ratio: 0.125, open: Duration::from_secs(2), ..BreakerPolicy::default() };
    assert_eq!(provider.breaker, breaker);
    assert_eq!(provider.pool.counted_within, Duration::from_secs(30), "the timeout unless given");
    let rules = provider.rules();
    assert!(rules.lanes.contains("replay") && rules.lanes.contains("default") && rules.lanes.contains("high"));
    assert!(rules.pins.contains("org-1") && rules.pins.contains("b1"));
    assert_eq!(provider.routes_of("POST", "/v1/search/x").collect::<Vec<_>>(), [0]);
}

#[test]
fn no_configuration_at_all_is_the_embedded_default() {
    let config = load("", &[]).expect("valid");
    assert_eq!(config.queue, QueueConfig::Embedded);
    assert_eq!(config.store.url.expose(), "sqlite://paceline.db");
    assert!(config.api.listen.ip().is_loopback());
}

#[test]
fn unknown_keys_name_the_key_and_the_line() {
    for (text, key, line) in [
        ("[store]\nurk = \"x\"", "urk", "line 2"),
        ("\n\nnonsense = 1", "nonsense", "line 3"),
        ("[[provider]]\nname = \"a\"\nbase_url = \"http://x\"\nlimits = [ { request = 5 } ]", "request", "line 4"),
    ] {
        let message = error(text, &[]);
        assert!(message.contains(&format!("`{key}`")) && message.contains(line), "{message}");
    }
}

#[test]
fn secrets_that_are_not_set_are_named_and_never_shown() {
    let missing = SAMPLE.replace("env:GEO_A2", "env:NOT_SET");
    let message = error(&missing, &[]);
    assert!(message.contains("key \"a2\"") && message.contains("NOT_SET"), "{message}");
    let inline = SAMPLE.replace("env:GEO_A2", "sk-live-abc");
    let message = error(&inline, &[]);
    assert!(message.contains("never written into the configuration") && !message.contains("sk-live"), "{message}");
    let shown = format!("{:?}", load(SAMPLE, &[]).expect("valid"));
    assert!(!shown.contains("k1\"") && !shown.contains("MfKQ9r8"), "{shown}");
}

#[test]
fn urls_with_passwords_may_stand_where_secrets_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("amqp_url");
    std::fs::write(&file, "amqps://u:hunter2@mq/%2f\n").expect("written");
    let text = format!("[store]\nurl = \"env:STORE\"\n[queue]\nurl = \"file:{}\"\n", file.display());
    let config = load(&text, &[("STORE", "postgres://u:hunter2@db/paceline")]).expect("valid");
    assert_eq!(config.store.url.expose(), "postgres://u:hunter2@db/paceline");
    let QueueConfig::Amqp(url) = &config.queue else { panic!("{:?}", config.queue) };
    assert_eq!(url.expose(), "amqps://u:hunter2@mq/%2f");
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    for (value, told) in [(None, "STORE is not set"), (Some("mysql://u:hunter2@db"), "postgres://")] {
        let env: Vec<(&str, &str)> = value.map(|value| ("STORE", value)).into_iter().collect();
        let message = error(&text, &env);
        assert!(message.contains("store.url") && message.contains(told) && !message.contains("hunter2"), "{message}");
    }
}

#[test]
fn a_signing_secret_that_cannot_sign_is_refused_at_once() {
    for secret in ["whsec_abc", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAA", "whsec_?"] {
        let text = SAMPLE.replace("env:HOOKS", "env:BAD_HOOKS");
        let message = error(&text, &[("BAD_HOOKS", secret)]);
        assert!(message.contains("webhooks.secret") && !message.contains("AAAA"), "{message}");
    }
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let text = r#"
        [api]
        listen = "0.0.0.0:8080"
        [[provider]]
        name = "Bad Name"
        base_url = "ftp://x"
        key_limits = [ { requests = 5 }, { requests = 1, cost = 1, per = "1s" }, { requests = 0, per = "1s" } ]
        lanes = { replay = 3 }
        breaker = { failures = 0, ratio = "101%", window = "0s", open = "2h", probes = 0 }
    "#;
    let Err(ConfigError::Invalid(problems)) = load(text, &[]) else { panic!("should be refused") };
    let shown = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let breaker = ["breaker.failures", "breaker.ratio", "breaker.window", "breaker.open", "breaker.probes"];
    for part in breaker.into_iter().chain([
        "api.tokens",
        "Bad Name",
        "base_url",
        "key_limits[0]",
        "key_limits[1]",
        "lanes.replay",
    ]) {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn two_providers_of_one_name_are_refused() {
    let provider = "[[provider]]\nname = \"a\"\nbase_url = \"http://x\"\n";
    assert!(error(&provider.repeat(2), &[]).contains("two providers"));
}

#[test]
fn labels_and_budgets_share_one_namespace() {
    let text = SAMPLE.replace("label = \"b1\"", "label = \"a1\"");
    assert!(error(&text, &[]).contains("same name"));
}

#[test]
fn the_environment_overrides_single_values() {
    let config = load(
        SAMPLE,
        &[
            ("PACELINE__API__LISTEN", "127.0.0.1:9999"),
            ("PACELINE__PROVIDER__GEOCODER__TIMEOUT", "7s"),
            ("PACELINE__PROVIDER__GEOCODER__RETRY__MAX_ATTEMPTS", "9"),
            ("PACELINE__WEBHOOKS__ALLOW_HTTP", "true"),
            ("AMQP_URL", "amqp://guest:guest@127.0.0.1/%2f"),
            ("DATABASE_URL", "postgres://a/b"),
            ("PACELINE__STORE__URL", "sqlite://elsewhere.db"),
        ],
    )
    .expect("valid");
    assert_eq!(config.api.listen.port(), 9999);
    let provider = config.provider("geocoder").expect("there");
    assert_eq!(provider.policy.timeout, Duration::from_secs(7));
    assert_eq!(provider.policy.retry.max_attempts, 9);
    assert!(config.webhooks.allow_http);
    assert!(matches!(config.queue, QueueConfig::Amqp(_)));
    assert_eq!(config.store.url.expose(), "sqlite://elsewhere.db", "PACELINE__ wins over DATABASE_URL");
}

#[test]
fn overrides_that_do_not_fit_name_the_variable() {
    assert!(error(SAMPLE, &[("PACELINE__API__LISTEM", "x")]).contains("PACELINE__API__LISTEM"));
    assert!(error(SAMPLE, &[("PACELINE__PROVIDER__NOBODY__TIMEOUT", "1s")]).contains("nobody"));
    assert!(error(SAMPLE, &[("PACELINE__PROVIDER__GEOCODER__LIMITS", "[]")]).contains("only be given in the file"));
    assert!(error(SAMPLE, &[("PACELINE__PROVIDER__GEOCODER__TIMEOUT", "soon")]).contains("soon"));
}

#[test]
fn calendar_quotas_are_read_wherever_limits_are() {
    let quota = r#"{ requests = 50000, per = "1d", resets = "00:00 America/Los_Angeles" }"#;
    let text = format!(
        r#"
        [[provider]]
        name = "p"
        base_url = "http://x"
        limits = [ {{ concurrency = 9 }}, {quota} ]
        key_limits = [ {{ cost = 9, per = "7d", resets = "monday 00:00 Europe/Berlin", algorithm = "quota" }} ]
        [[provider.budget]]
        name = "b"
        keys = [ {{ label = "k", secret = "env:GEO_A1" }} ]
        limits = [ {quota} ]
        [[provider.route]]
        match = "/a"
        [[provider.route]]
        match = "/b"
        limits = [ {{ requests = 5, per = "1 month", resets = "day 15 00:00 +02:00" }} ]
        key_limits = [ {quota} ]
    "#
    );
    let config = load(&text, &[]).expect("valid");
    let quotas = &config.providers[0].quotas;
    let places: Vec<_> = quotas.iter().map(|quota| (quota.place, quota.limit)).collect();
    assert_eq!(
        places,
        [
            (QuotaPlace::Budget(0), 0),
            (QuotaPlace::Route(1), 0),
            (QuotaPlace::RouteKeys(1), 0),
            (QuotaPlace::Provider, 1),
            (QuotaPlace::Keys, 0)
        ]
    );
    assert_eq!(quotas[0].calendar, quotas[3].calendar);
    assert_eq!(quotas[1].calendar.to_string(), "every month on day 15 at 00:00:00 +02:00");
}

#[test]
fn what_is_wrong_with_a_quota_is_said() {
    for (limit, part) in [
        (
            r#"{ requests = 5, per = "1d", resets = "00:00 Mars/Base" }"#,
            "key_limits[0]: resets: unknown time zone \"Mars/Base\"",
        ),
        (r#"{ requests = 5, per = "1d", resets = "midnight" }"#, "resets: expected a time and a zone"),
        (r#"{ requests = 5, per = "7d", resets = "00:00 UTC" }"#, "expected a weekday"),
        (r#"{ requests = 5, per = "30d", resets = "00:00 UTC" }"#, "per = \"1d\", \"7d\" or \"1 month\""),
        (r#"{ requests = 5, per = "1h", resets = "00:00 UTC" }"#, "per = \"1d\""),
        (r#"{ requests = 5, per = "86400001ms", resets = "00:00 UTC" }"#, "per = \"1d\""),
        (r#"{ requests = 5, resets = "00:00 UTC" }"#, "expected per"),
        (r#"{ requests = 5, per = "1 month" }"#, "needs resets"),
        (r#"{ requests = 5, per = "2 months", resets = "00:00 UTC" }"#, "expected a duration"),
        (r#"{ requests = 5, per = "1d", algorithm = "quota" }"#, "quota needs resets"),
        (
            r#"{ requests = 5, per = "1d", algorithm = "smooth", resets = "00:00 UTC" }"#,
            "belongs to the algorithm quota",
        ),
        (r#"{ requests = 5, per = "1d", burst = 2, resets = "00:00 UTC" }"#, "burst belongs to"),
        (r#"{ concurrency = 5, resets = "00:00 UTC" }"#, "concurrency has neither"),
    ] {
        let text = format!("[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\nkey_limits = [ {limit} ]");
        let message = error(&text, &[]);
        assert!(message.contains(part), "{limit}: {message}");
    }
}

#[test]
fn the_first_route_that_matches_says_where_the_cost_stands() {
    let text = r#"
        [[provider]]
        name = "p"
        base_url = "http://x"
        [[provider.route]]
        match = "POST /v1/chat"
        cost_from = "/usage/total_tokens"
        [[provider.route]]
        match = "/v1/embed*"
        [[provider.route]]
        match = "/v1/*"
        cost_from = "/usage/tokens"
    "#;
    let config = load(text, &[]).expect("valid");
    let from = |method, path| {
        let body = br#"{"usage":{"total_tokens":7,"tokens":8}}"#;
        config.providers[0].policy_of(method, path).cost_from.as_ref().and_then(|from| from.read(body))
    };
    assert_eq!(from("POST", "/v1/chat"), Some(7));
    assert_eq!(from("GET", "/v1/chat"), Some(8));
    assert_eq!(from("GET", "/v1/embed"), None, "policies are those of the first route");
    assert_eq!(from("GET", "/v2"), None);
    let message = error(&text.replace("/usage/tokens", "usage.tokens"), &[]);
    assert!(message.contains("route[2].cost_from: expected a JSON pointer"), "{message}");
}

#[test]
fn routes_have_policies_of_their_own_and_inherit_the_rest() {
    let text = r#"
        [[provider]]
        name = "p"
        base_url = "http://x"
        timeout = "5s"
        retry = { max_attempts = 3, base = "2s" }
        success = "2xx"
        idempotency_header = "X-Key"
        outcomes = [ { status = "5xx", outcome = "unknown" } ]
        [[provider.route]]
        match = "/v1/a"
        timeout = "1m"
        retry = { max_attempts = 9 }
        success = [200, "404"]
        outcomes = [ { status = 409, header = "x-error", outcome = "quota" }, { pointer = "/ok", equals = false, outcome = "permanent" } ]
        [[provider.route]]
        match = "/v1/*"
    "#;
    let config = load(text, &[]).expect("valid");
    let provider = &config.providers[0];
    let (own, other) = (provider.policy_of("GET", "/v1/a"), provider.policy_of("GET", "/v1/b"));
    assert_eq!((own.retry.max_attempts, own.retry.base), (9, Duration::from_secs(2)));
    assert_eq!((own.timeout, other.timeout), (Duration::from_secs(60), Duration::from_secs(5)));
    assert_eq!((own.answers.rules.len(), other.answers.rules.len()), (3, 1), "those of the route come first");
    assert_eq!(own.answers.success.as_ref().map(ToString::to_string).as_deref(), Some("200, 404"));
    assert_eq!(other.as_ref(), provider.policy.as_ref());
    assert!(own.is_idempotent && own.idempotency_header == "x-key");
    assert_eq!(provider.pool.counted_within, Duration::from_secs(60), "as long as a call can be on its way");
    assert!(provider.rules().idempotency_headers.contains("x-key"));
}

#[test]
fn windows_are_one_or_several_and_each_opens() {
    let text = |window: &str| format!("[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\nwindow = {window}\n");
    let shown = |window: &str| load(&text(window), &[]).expect("valid").providers[0].windows.to_string();
    assert_eq!(shown("\"22:00-06:00 Europe/Berlin\""), "22:00-06:00 Europe/Berlin");
    assert_eq!(shown("[ \"08:00-09:00 UTC\", \"10:00:30-11:00 +02:00\" ]"), "08:00-09:00 UTC, 10:00:30-11:00 +02:00");
    for (window, part) in [
        ("[]", "never opens"),
        ("\"06:00-06:00 UTC\"", "never opens"),
        ("\"22:00-06:00 Mars/Olympus\"", "unknown time zone"),
        ("\"always\"", "two times and a zone"),
        ("7", "line 4"),
    ] {
        let message = error(&text(window), &[]);
        assert!(message.contains(part) && message.contains("window"), "{window}: {message}");
    }
}

#[test]
fn policies_that_make_no_sense_are_refused_with_their_place() {
    let load = |policy: &str, route: &str| {
        let text = format!(
            "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\n{policy}\n[[provider.route]]\nmatch = \"/a\"\n{route}\n"
        );
        error(&text, &[])
    };
    for (policy, route, parts) in [
        ("", "timeout = \"0s\"", &["route[0].timeout", "more than 0s"][..]),
        ("", "retry = { max_attempts = 0 }", &["route[0].retry.max_attempts"]),
        ("retry = { cap = \"10s\" }", "retry = { base = \"1m\" }", &["route[0].retry.cap"]),
        ("", "success = []", &["route[0].success", "at least one"]),
        ("success = 99", "", &["provider \"p\": success", "status such as 404"]),
        ("success = 4.5", "", &["a status such as 404", "line 4"]),
        ("outcomes = [ { outcome = \"quota\" } ]", "", &["outcomes[0]", "status, header and pointer"]),
        ("outcomes = [ { status = 409, outcome = \"fatal\" } ]", "", &["key_refused", "line 4"]),
        (
            "outcomes = [ { status = 409, equals = \"x\", outcome = \"quota\" } ]",
            "",
            &["outcomes[0]", "needs a pointer"],
        ),
        ("", "outcomes = [ { pointer = \"error\", outcome = \"quota\" } ]", &["route[0].outcomes[0].pointer"]),
        ("", "outcomes = [ { header = \"x y\", outcome = \"quota\" } ]", &["route[0].outcomes[0].header"]),
        ("", "outcomes = [ { status = \"6xx\", outcome = \"quota\" } ]", &["route[0].outcomes[0].status"]),
        (
            "",
            "outcomes = [ { status = 409, outcome = \"quota\", retry_after_pointer = \"x\" } ]",
            &["retry_after_pointer"],
        ),
        ("", "idempotency_header = \"a b\"", &["route[0].idempotency_header"]),
        ("idempotency_header = \"Authorization\"", "", &["idempotency_header", "something else"]),
        ("auth = { header = \"x-k\" }\nidempotency_header = \"X-K\"", "", &["idempotency_header", "something else"]),
    ] {
        let message = load(policy, route);
        assert!(parts.iter().all(|part| message.contains(part)), "{policy} {route}: {message}");
    }
    let many = "{ status = 409, outcome = \"quota\" },".repeat(65);
    assert!(load(&format!("outcomes = [{many}]"), "").contains("outcomes: expected at most 64 rules"));
}

#[test]
fn schedules_are_checked_whole() {
    let head = "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\n[[schedules]]\n";
    let job = "job = { provider = \"p\", request = { path = \"/a\" } }";
    let config = load(&format!("{head}name = \"n\"\ncron = \"0 3 * * *\"\n{job}\n"), &[]).expect("valid");
    assert_eq!(config.schedules[0].cron.to_string(), "0 3 * * * UTC");
    assert_eq!(config.schedules[0].missed, crate::schedule::Missed::RunOnce);
    let named = "name = \"n\"\n";
    for (text, part) in [
        (format!("name = \"N\"\ncron = \"0 3 * * *\"\n{job}"), "expected a name"),
        (format!("{named}cron = \"0 3 * *\"\n{job}"), "schedules \"n\": cron: expected five fields"),
        (format!("{named}cron = \"0 3 31 2 *\"\n{job}"), "never comes"),
        (
            format!("{named}cron = \"0 3 * * *\"\nzone = \"Mars/Olympus\"\n{job}"),
            "schedules \"n\": zone: unknown time zone",
        ),
        (format!("{named}cron = \"0 3 * * *\"\nmissed = \"later\"\n{job}"), "run_once"),
        (format!("{named}cron = \"0 3 * * *\"\nmissed_max = 0\n{job}"), "missed_max: expected 1 to 1000"),
        (
            format!("{named}cron = \"0 3 * * *\"\njob = {{ provider = \"q\", request = {{ path = \"/a\" }} }}"),
            "unknown provider",
        ),
        (
            format!("{named}cron = \"0 3 * * *\"\njob = {{ provider = \"p\", request = {{ path = \"a\" }} }}"),
            "$.request.path",
        ),
        (
            format!(
                "{named}cron = \"0 3 * * *\"\njob = {{ id = \"x\", provider = \"p\", request = {{ path = \"/a\" }} }}"
            ),
            "job.id",
        ),
        (
            format!("{named}cron = \"0 3 * * *\"\n{job}\n[[schedules]]\n{named}cron = \"0 4 * * *\"\n{job}"),
            "two schedules",
        ),
    ] {
        let message = error(&format!("{head}{text}\n"), &[]);
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn each_part_of_a_call_has_its_time() {
    let provider = |more: &str| {
        let text = format!("[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\n{more}");
        Config::parse(&text, None, &[]).map(|config| config.providers[0].clone())
    };
    let seconds = |more: &str| {
        let provider = provider(more).expect("valid");
        let policy = &provider.policy;
        [policy.connect_timeout(), policy.first_byte_timeout(), policy.timeout].map(|span| span.as_secs_f64())
    };
    assert_eq!(seconds(""), [10.0, 30.0, 30.0]);
    assert_eq!(seconds("timeout = \"5s\""), [4.0, 5.0, 5.0]);
    let all = "timeout = \"60s\"\nconnect_timeout = \"2s\"\nfirst_byte_timeout = \"20s\"";
    assert_eq!(seconds(all), [2.0, 20.0, 60.0]);
    for (wrong, field) in [
        ("connect_timeout = \"31s\"", "connect_timeout"),
        ("first_byte_timeout = \"0s\"", "first_byte_timeout"),
        ("timeout = \"5s\"\nfirst_byte_timeout = \"6s\"", "first_byte_timeout"),
    ] {
        let error = provider(wrong).expect_err(wrong).to_string();
        assert!(error.contains(field) && error.contains("at most timeout"), "{error}");
    }
}
