//! Providers, as they are shown and ordered about.

use super::*;

fn key<'a>(provider: &'a Value, label: &str) -> &'a Value {
    let budgets = provider["budgets"].as_array().expect("budgets");
    let mut keys = budgets.iter().flat_map(|budget| budget["keys"].as_array().expect("keys"));
    keys.find(|key| key["label"] == label).unwrap_or_else(|| panic!("no key {label}: {provider}"))
}

#[tokio::test]
async fn a_provider_is_shown_as_its_dispatcher_tells_it() {
    let api = Api::start().await;
    let unknown = api.get("/v1/providers/geo").await.ok(200);
    assert_eq!((&unknown["state"], &unknown["keys"]), (&json!("open"), &json!({ "unknown": 2 })));
    api.submit(json!({ "id": "hi", "provider": "geo", "lane": "high", "request": { "path": "/" } })).await.ok(202);
    let me = "12-ab".to_owned();
    let groups = [String::new()];
    let leases = api.store.leases_take("geo", &[""], &groups, &me, Duration::from_secs(60)).await.expect("asked");
    assert!(matches!(leases.answers[..], [paceline::store::LeaseTake::Taken { epoch: 1, .. }]));
    let limit = LimitReport { unit: "requests".into(), amount: 600, per_ms: Some(60_000), used: 7, most: 600 };
    let a1 = KeyReport { label: "a1".into(), state: "refused".into(), until_ms: Some(0), limits: vec![limit] };
    let gone = KeyReport { label: "gone".into(), state: "open".into(), ..KeyReport::default() };
    let budget = |name: &str, key: KeyReport| BudgetReport {
        name: name.into(),
        state: "open".into(),
        allowed_per_second: Some(10.0),
        achieved_per_second: 2.5,
        pacing_errors: 1,
        signals: Some("ietf".into()),
        keys: vec![key],
        ..BudgetReport::default()
    };
    let report = Report {
        allowed_per_second: Some(10.0),
        achieved_per_second: 2.5,
        open: 3,
        breaker: Some("half_open".into()),
        permits_waiting: vec![("high".into(), 4)],
        budgets: vec![budget("a1", a1), budget("gone", gone)],
        keys_left_out: 0,
    };
    api.store.write_report("geo", &me, Some(&report)).await.expect("written");
    // One that holds nothing any more is not believed.
    let stale = Report { achieved_per_second: 1_000.0, ..report.clone() };
    api.store.write_report("geo", &"old".to_owned(), Some(&stale)).await.expect("written");
    let shown = api.get("/v1/providers/geo").await.ok(200);
    for (member, expected) in [
        ("allowed_per_second", json!(10.0)),
        ("achieved_per_second", json!(2.5)),
        ("utilisation", json!(0.25)),
        ("open_calls", json!(3)),
        ("breaker", json!("half_open")),
        ("pacing_errors", json!(1)),
        ("keys", json!({ "refused": 1, "unknown": 1 })),
        ("keys_left_out", json!(0)),
        ("paused_by", json!(null)),
    ] {
        assert_eq!(shown[member], expected, "{member} of {shown}");
    }
    let lanes: Vec<_> = shown["queue"].as_array().expect("lanes").iter().map(|lane| &lane["lane"]).collect();
    assert_eq!(lanes, ["default", "high", "replay"]);
    assert_eq!(
        shown["queue"][1],
        json!({ "lane": "high", "queued": 1, "waiting": 0, "running": 0, "permits_waiting": 4 })
    );
    let a1 = key(&shown, "a1");
    assert_eq!((&a1["until"], &a1["limits"][0]["used"]), (&json!("1970-01-01T00:00:00.000Z"), &json!(7)));
    assert_eq!((&shown["budgets"][1]["name"], &shown["budgets"][1]["declared"]), (&json!("org-1"), &json!(true)));
    assert_eq!((&shown["leases"][0]["owner"], &shown["leases"][0]["held"]), (&json!(me), &json!(true)));
    let all = api.get("/v1/providers").await.ok(200);
    assert_eq!(all["items"][0]["achieved_per_second"], 2.5);
    assert_eq!((&all["items"][1]["name"], &all["next_cursor"]), (&json!("mail"), &json!(null)));
    api.stop().await;
}

#[tokio::test]
async fn orders_are_kept_and_shown_at_once() {
    let api = Api::start().await;
    let paused = api.post("/v1/providers/geo/pause", "").await.ok(200);
    assert_eq!(
        (&paused["provider"], &paused["state"], &paused["by"]),
        (&json!("geo"), &json!("paused"), &json!("local"))
    );
    api.submit(job("j")).await.ok(202);
    let job = api.get("/v1/jobs/j").await.ok(200);
    assert_eq!((&job["state"], &job["waiting_for"]), (&json!("queued"), &json!({ "reason": "paused", "until": null })));
    assert_eq!(api.get("/v1/jobs").await.ok(200)["items"][0]["waiting_for"]["reason"], "paused");
    assert_eq!(api.get("/v1/providers/geo").await.ok(200)["state"], "paused");
    api.post("/v1/providers/geo/resume", " {} ").await.ok(200);
    assert_eq!(api.get("/v1/jobs/j").await.ok(200)["waiting_for"], json!(null));
    let disabled = api.post("/v1/providers/geo/keys/b1/disable", "{}").await.ok(200);
    assert_eq!((&disabled["key"], &disabled["state"]), (&json!("b1"), &json!("disabled")));
    let shown = api.get("/v1/providers/geo").await.ok(200);
    assert_eq!((&key(&shown, "b1")["state"], &key(&shown, "b1")["disabled_by"]), (&json!("disabled"), &json!("local")));
    api.post("/v1/providers/geo/keys/b1/enable", "").await.ok(200);
    assert_eq!(key(&api.get("/v1/providers/geo").await.ok(200), "b1")["state"], "unknown");
    for budget in ["org-1", "a1"] {
        let resumed = api.post(&format!("/v1/providers/geo/budgets/{budget}/resume"), "").await.ok(200);
        assert_eq!((&resumed["budget"], &resumed["state"]), (&json!(budget), &json!("resumed")));
    }
    let kept = api.store.orders(Some("geo")).await.expect("read");
    assert_eq!(kept.iter().map(|order| order.version).collect::<Vec<_>>(), [1, 1, 2, 2]);
    api.stop().await;
}

#[tokio::test]
async fn orders_about_what_is_not_there_or_that_say_too_much_change_nothing() {
    let api = Api::start().await;
    let long = "x".repeat(5_000);
    for name in
        ["nobody", "%2e%2e%2e", "geo%00", "GEO", "geo%2Fkeys", "%F0%9F%92%A9", "'; DROP TABLE orders; --", &long]
    {
        let name = name.replace(' ', "%20");
        for what in ["pause", "resume", "keys/a1/disable", "budgets/a1/resume"] {
            let problem = api.post(&format!("/v1/providers/{name}/{what}"), "").await.problem(404, "not-found");
            assert!(problem["detail"].as_str().expect("a text").len() < 300, "{problem}");
        }
        api.get(&format!("/v1/providers/{name}")).await.problem(404, "not-found");
        api.post(&format!("/v1/providers/geo/keys/{name}/disable"), "").await.problem(404, "not-found");
        api.post(&format!("/v1/providers/geo/budgets/{name}/resume"), "").await.problem(404, "not-found");
    }
    api.post("/v1/providers/%ff/pause", "").await.problem(404, "not-found");
    api.post("/v1/providers/geo/keys/%ff/disable", "").await.problem(404, "not-found");
    // A key within a declared budget is no budget, a budget no key.
    api.post("/v1/providers/geo/budgets/b1/resume", "").await.problem(404, "not-found");
    api.post("/v1/providers/geo/keys/org-1/disable", "").await.problem(404, "not-found");
    for body in ["{\"until\":\"tomorrow\"}", "[]", "null", "{", "x"] {
        api.post("/v1/providers/geo/pause", body).await.problem(422, "invalid");
    }
    api.send(Method::POST, "/v1/providers/geo/pause", &[], "x=1").await.problem(415, "unsupported-media-type");
    api.post("/v1/providers/geo/pause?force=true", "").await.problem(400, "bad-parameter");
    api.get("/v1/providers?limit=5").await.problem(400, "bad-parameter");
    api.get("/v1/providers/geo/pause").await.problem(405, "method-not-allowed");
    api.delete("/v1/providers/geo").await.problem(405, "method-not-allowed");
    let body = format!("{{{}}}", " ".repeat(2 * ENVELOPE_BYTES_MAX));
    api.post("/v1/providers/geo/pause", body).await.problem(413, "too-large");
    assert!(api.store.orders(None).await.expect("read").is_empty());
    api.stop().await;
}

#[tokio::test]
async fn orders_want_their_scope_and_all_tenants() {
    let tokens = [
        token("keeper", "keeper-token-01234", &[Scope::Keys], None),
        token("mine", "tenant-token-01234", &[Scope::Admin], Some("acme")),
        token("dash", "reader-token-01234", &[Scope::Read], None),
        token("ops", "admins-token-01234", &[Scope::Admin], None),
    ];
    let mut api = Api::with(&tokens, ServeLimits::default()).await;
    let (pause, disable, resume) = ("/pause", "/keys/a1/disable", "/budgets/a1/resume");
    for (secret, allowed) in [
        ("keeper-token-01234", vec![disable, resume]),
        ("tenant-token-01234", vec![]),
        ("reader-token-01234", vec![]),
        ("admins-token-01234", vec![pause, disable, resume]),
    ] {
        api.token = Some(secret);
        for what in [pause, disable, resume] {
            let answer = api.post(&format!("/v1/providers/geo{what}"), "").await;
            match allowed.contains(&what) {
                true => drop(answer.ok(200)),
                false => drop(answer.problem(403, "forbidden")),
            }
        }
        let reads = ["reader-token-01234", "admins-token-01234"].contains(&secret);
        let expected = if reads { 200 } else { 403 };
        assert_eq!(api.get("/v1/providers").await.status, expected, "{secret}");
        assert_eq!(api.get("/v1/providers/geo").await.status, expected, "{secret}");
    }
    api.token = Some("reader-token-01234");
    let shown = api.get("/v1/providers/geo").await.ok(200);
    assert_eq!((&shown["paused_by"], &key(&shown, "a1")["disabled_by"]), (&json!("ops"), &json!("keeper")));
    api.token = None;
    api.post("/v1/providers/geo/resume", "").await.problem(401, "unauthorized");
    api.stop().await;
}
