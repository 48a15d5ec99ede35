//! Dead letters: shown, replayed, purged.

use super::*;

#[tokio::test]
async fn a_dead_letter_tells_everything_and_is_run_again() {
    let api = Api::start().await;
    let id = api.dead(job("d-1")).await;
    let page = api.get("/v1/dead-letters?reason=attempts_exhausted&provider=geo&replayed=false").await.ok(200);
    assert_eq!(page["items"][0]["id"], "d-1");
    assert_eq!(page["next_cursor"], json!(null));
    let dead = api.get("/v1/dead-letters/d-1").await.ok(200);
    assert_eq!(dead["reason"], "attempts_exhausted");
    assert_eq!(dead["error"], "the provider said 500");
    assert_eq!(dead["envelope"]["request"]["query"]["q"], "Berlin");
    assert_eq!(dead["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!((&dead["raw"], &dead["replayed_at"]), (&json!(null), &json!(null)));
    assert!(dead["dead_at"].is_string());
    let replayed = api.post(&format!("/v1/dead-letters/{id}/replay"), "").await.ok(202);
    assert_eq!(replayed, json!({ "id": "d-1", "run": 2, "state": "queued" }));
    let shown = api.get("/v1/jobs/d-1").await.ok(200);
    assert_eq!((&shown["state"], &shown["lane"], &shown["run"]), (&json!("queued"), &json!("replay"), &json!(2)));
    let problem = api.post("/v1/dead-letters/d-1/replay", "{}").await.problem(409, "not-replayable");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("queued")), "{problem}");
    assert!(api.get("/v1/dead-letters/d-1").await.ok(200)["replayed_at"].is_string());
    assert_eq!(api.get("/v1/dead-letters?replayed=false").await.ok(200)["items"], json!([]));
}

#[tokio::test]
async fn a_replay_is_edited_and_checked_like_a_new_job() {
    let api = Api::start().await;
    api.dead(job("e-1")).await;
    let replay = async |body: Value| api.post("/v1/dead-letters/e-1/replay", body.to_string()).await;
    for (body, path) in [
        (json!({ "request": { "path": "//evil" } }), "$.request.path"),
        (json!({ "request": { "path": "/", "headers": { "cookie": "x" } } }), "$.request.headers.cookie"),
        (json!({ "request": { "method": "GET" } }), "$.request"),
        (json!({ "lane": "fast" }), "$.lane"),
        (json!({ "not_before": "tomorrow" }), "$.not_before"),
        (json!({ "idempotency_key": "maybe" }), "$.idempotency_key"),
        (json!([]), "$"),
    ] {
        let problem = replay(body.clone()).await.problem(422, "invalid");
        assert_eq!(problem["errors"][0]["path"], path, "{body}: {problem}");
    }
    api.post("/v1/dead-letters/e-1/replay", "{").await.problem(400, "not-json");
    let large = json!({ "request": { "path": "/", "text": "x".repeat(ENVELOPE_BYTES_MAX) } });
    replay(large).await.problem(413, "too-large");
    let body = json!({ "request": { "method": "POST", "path": "/v2", "body": { "a": 1 } }, "lane": "high",
        "not_before": "2099-01-01T00:00:00Z", "idempotency_key": "new" });
    assert_eq!(replay(body).await.ok(202)["state"], "waiting");
    let shown = api.get("/v1/jobs/e-1").await.ok(200);
    assert_eq!((&shown["state"], &shown["lane"]), (&json!("waiting"), &json!("high")));
    assert_eq!(api.get("/v1/dead-letters/e-1").await.ok(200)["envelope"]["request"]["path"], "/v2");
}

#[tokio::test]
async fn a_replay_after_the_deadline_goes_without_it() {
    let api = Api::start().await;
    let mut with_deadline = job("l-1");
    with_deadline["deadline"] = "2098-01-01T00:00:00Z".into();
    api.dead(with_deadline).await;
    let body = json!({ "not_before": "2099-01-01T00:00:00Z" }).to_string();
    assert_eq!(api.post("/v1/dead-letters/l-1/replay", body).await.ok(202)["state"], "waiting");
}

#[tokio::test]
async fn a_message_that_never_was_a_job_is_kept_whole_and_not_run() {
    let api = Api::start().await;
    let buried = Buried {
        reason: DeadReason::Malformed,
        error: "expected JSON".to_owned(),
        tenant: String::new(),
        provider: None,
        lane: None,
        raw: Bytes::from_static(b"\x00\xff not json"),
        headers: json!({ "x": "y" }).to_string(),
        identity: None,
    };
    let id = api.store.bury(buried, now()).await.expect("buried");
    let dead = api.get(&format!("/v1/dead-letters/{id}")).await.ok(200);
    assert_eq!((&dead["raw"], &dead["headers"]["x"]), (&json!("AP8gbm90IGpzb24="), &json!("y")));
    assert_eq!((&dead["envelope"], &dead["attempts"]), (&json!(null), &json!([])));
    api.post(&format!("/v1/dead-letters/{id}/replay"), "{}").await.problem(409, "not-replayable");
    api.get(&format!("/v1/jobs/{id}")).await.problem(404, "not-found");
}

#[tokio::test]
async fn dead_letters_are_purged_by_filter_and_never_by_accident() {
    let api = Api::start().await;
    for n in 0..3 {
        api.dead(job(&format!("p-{n}"))).await;
    }
    api.dead(json!({ "id": "p-mail", "provider": "mail", "request": { "path": "/" } })).await;
    let problem = api.delete("/v1/dead-letters").await.problem(400, "bad-parameter");
    assert_eq!(problem["errors"][0]["path"], "?all");
    api.delete("/v1/dead-letters?all=true&provider=geo").await.problem(400, "bad-parameter");
    api.delete("/v1/dead-letters?provder=geo").await.problem(400, "bad-parameter");
    assert_eq!(api.delete("/v1/dead-letters?provider=mail").await.ok(200), json!({ "purged": 1, "more": false }));
    assert_eq!(api.get("/v1/dead-letters?limit=2").await.ok(200)["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(api.delete("/v1/dead-letters?all=true").await.ok(200), json!({ "purged": 3, "more": false }));
    assert_eq!(api.get("/v1/dead-letters").await.ok(200)["items"], json!([]));
}

#[tokio::test]
async fn a_page_of_large_dead_letters_stays_bounded() {
    let api = Api::start().await;
    for n in 0..6 {
        let id = format!("big-{n}");
        api.dead(json!({ "id": id, "provider": "geo", "request": { "path": "/", "text": "x".repeat(900_000) } })).await;
    }
    let page = api.get("/v1/dead-letters").await;
    assert!(page.body.len() < 5 * 1024 * 1024, "{}", page.body.len());
    let items = page.ok(200)["items"].as_array().cloned().expect("items");
    assert_eq!(items.len(), 6);
    assert_eq!(items.iter().filter(|item| item["omitted"] == true && item["envelope"].is_null()).count(), 2);
    assert!(api.get("/v1/dead-letters/big-0").await.ok(200)["envelope"].is_object());
}
