//! Jobs: accepted, listed, fetched, cancelled.

use super::*;

#[tokio::test]
async fn a_job_is_accepted_once_and_known_by_its_id() {
    let api = Api::start().await;
    let first = api.submit(job("order-1")).await.ok(202);
    assert_eq!(first, json!({ "id": "order-1", "state": "queued", "created": true }));
    let again = api.submit(job("order-1")).await.ok(200);
    assert_eq!(again, json!({ "id": "order-1", "state": "queued", "created": false }));
    let mut other = job("order-1");
    other["request"]["path"] = "/v1/other".into();
    let problem = api.submit(other).await.problem(409, "conflict");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("order-1")), "{problem}");
    let shown = api.get("/v1/jobs/order-1").await.ok(200);
    for (member, expected) in [
        ("id", json!("order-1")),
        ("state", json!("queued")),
        ("provider", json!("geo")),
        ("lane", json!("default")),
        ("tenant", json!(null)),
        ("metadata", json!(null)),
        ("run", json!(1)),
        ("attempts", json!([])),
        ("finished_at", json!(null)),
        ("next_attempt_at", json!(null)),
        ("waiting_for", json!(null)),
        ("error", json!(null)),
    ] {
        assert_eq!(shown[member], expected, "{member} of {shown}");
    }
    let created = shown["created_at"].as_str().expect("a time");
    assert!(created.len() == 24 && created.ends_with('Z'), "{created}");
}

#[tokio::test]
async fn an_id_is_made_where_none_is_chosen_and_a_start_time_is_waited_for() {
    let api = Api::start().await;
    let body = json!({ "provider": "geo", "request": { "path": "/" }, "not_before": "2099-01-01T00:00:00+01:00",
        "metadata": { "n": 1.50 }, "tenant": "acme" });
    let accepted = api.submit(body).await.ok(202);
    assert_eq!(accepted["state"], "waiting");
    let id = accepted["id"].as_str().expect("an id");
    let shown = api.get(&format!("/v1/jobs/{id}")).await.ok(200);
    assert_eq!(shown["waiting_for"], json!({ "reason": "not_before", "until": "2098-12-31T23:00:00.000Z" }));
    assert_eq!(shown["next_attempt_at"], "2098-12-31T23:00:00.000Z");
    assert_eq!(shown["tenant"], "acme");
    assert_eq!(shown["metadata"].to_string(), r#"{"n":1.5}"#);
}

#[tokio::test]
async fn what_is_not_a_job_is_refused_with_the_field() {
    let api = Api::start().await;
    for body in ["", "{", "nope", "[1,", "{\"provider\":\"geo\"}}"] {
        api.post("/v1/jobs", body).await.problem(400, "not-json");
    }
    api.post("/v1/jobs", vec![b'"', 0xff, b'"']).await.problem(400, "not-json");
    let deep = "[".repeat(50_000) + &"]".repeat(50_000);
    for (body, path) in [
        (json!({ "provider": "geo", "request": {} }).to_string(), "$.request"),
        (json!({ "provider": "nope", "request": { "path": "/" } }).to_string(), "$.provider"),
        (json!({ "request": { "path": "/" } }).to_string(), "$.provider"),
        (json!({ "provider": "geo", "request": { "path": "//evil" } }).to_string(), "$.request.path"),
        (json!({ "provider": "geo", "request": { "path": "/a/../b" } }).to_string(), "$.request.path"),
        (json!({ "provider": "geo", "request": { "path": "@evil" } }).to_string(), "$.request.path"),
        (
            json!({ "provider": "geo", "request": { "path": "/", "headers": { "x": "a\r\nb" } } }).to_string(),
            "$.request.headers.x",
        ),
        (
            json!({ "provider": "geo", "request": { "path": "/", "headers": { "Authorization": "x" } } }).to_string(),
            "$.request.headers.Authorization",
        ),
        (json!({ "provider": "geo", "request": { "path": "/" }, "lane": "fast" }).to_string(), "$.lane"),
        (json!({ "provider": "geo", "request": { "path": "/" }, "id": "a b" }).to_string(), "$.id"),
        (json!({ "provider": "geo", "request": { "path": "/" }, "key": "zz" }).to_string(), "$.key"),
        (format!("{{\"provider\":\"geo\",\"request\":{{\"path\":\"/\",\"body\":{deep}}}}}"), "$.request.body"),
        ("7".to_owned(), "$"),
        ("null".to_owned(), "$"),
    ] {
        let problem = api.post("/v1/jobs", body.clone()).await.problem(422, "invalid");
        assert_eq!(problem["errors"][0]["path"], path, "{body:.80}: {problem}");
        assert!(problem["errors"][0]["message"].as_str().is_some_and(|m| !m.is_empty()));
    }
    let problem =
        api.post("/v1/jobs", r#"{"provider":"geo","request":{"path":"/"},"colour":1}"#).await.problem(422, "invalid");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("colour")), "{problem}");
    assert_eq!(api.get("/v1/jobs").await.ok(200)["items"], json!([]), "nothing came in");
}

#[tokio::test]
async fn an_array_is_answered_item_by_item_in_order() {
    let api = Api::start().await;
    api.submit(job("old")).await.ok(202);
    let mut conflict = job("old");
    conflict["cost"] = 7.into();
    let large = "x".repeat(ENVELOPE_BYTES_MAX);
    let body = json!([
        job("a"), { "provider": "nope", "request": { "path": "/" } }, job("old"), 7, conflict, job("a"),
        { "provider": "geo", "request": { "path": "/", "text": large } }, { "provider": "geo", "request": { "path": "/" } }
    ]);
    let answer = api.submit(body).await.ok(202);
    let items = answer["items"].as_array().expect("items");
    assert_eq!(items.len(), 8);
    assert_eq!(items[0], json!({ "id": "a", "state": "queued", "created": true }));
    assert_eq!(items[1]["error"]["status"], 422);
    assert_eq!(items[1]["error"]["errors"][0]["path"], "$.provider");
    assert_eq!(items[2], json!({ "id": "old", "state": "queued", "created": false }));
    assert_eq!(items[3]["error"]["errors"][0]["path"], "$");
    assert_eq!(items[4]["error"]["status"], 409);
    assert_eq!(items[5], json!({ "id": "a", "state": "queued", "created": false }));
    assert_eq!(items[6]["error"]["status"], 413);
    assert_eq!(items[7]["created"], true);
    assert_eq!(api.submit(json!([])).await.ok(202), json!({ "items": [] }));
    let too_many = vec![job("x"); 1001];
    let problem = api.submit(json!(too_many)).await.problem(422, "invalid");
    assert_eq!(problem["errors"][0]["path"], "$");
    let many: Vec<Value> = (0..1000).map(|n| job(&format!("many-{n}"))).collect();
    let answer = api.submit(json!(many)).await.ok(202);
    assert!(answer["items"].as_array().is_some_and(|i| i.len() == 1000 && i.iter().all(|i| i["created"] == true)));
}

#[tokio::test]
async fn bodies_that_are_too_large_are_told_so() {
    let api = Api::start().await;
    let text =
        |bytes: usize| json!({ "provider": "geo", "request": { "path": "/", "text": "x".repeat(bytes) } }).to_string();
    api.post("/v1/jobs", text(ENVELOPE_BYTES_MAX - 200)).await.ok(202);
    for bytes in [ENVELOPE_BYTES_MAX, 10 * 1024 * 1024] {
        let problem = api.post("/v1/jobs", text(bytes)).await.problem(413, "too-large");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains("1048576")), "{problem}");
    }
    let item = text(900_000);
    let array = |items: usize| format!("[{}]", vec![item.as_str(); items].join(","));
    assert!(array(18).len() < MANY_BYTES_MAX && array(19).len() > MANY_BYTES_MAX);
    assert_eq!(api.post("/v1/jobs", array(18)).await.ok(202)["items"].as_array().map(Vec::len), Some(18));
    let problem = api.post("/v1/jobs", array(19)).await.problem(413, "too-large");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains(&MANY_BYTES_MAX.to_string())), "{problem}");
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let api = Api::start().await;
    for n in 0..5 {
        api.submit(job(&format!("geo-{n}"))).await.ok(202);
    }
    api.submit(json!({ "id": "m", "provider": "mail", "request": { "path": "/" }, "tenant": "acme" })).await.ok(202);
    api.submit(json!({ "id": "h", "provider": "geo", "lane": "high", "request": { "path": "/" } })).await.ok(202);
    let ids = |page: &Value| -> Vec<String> {
        page["items"].as_array().into_iter().flatten().filter_map(|i| i["id"].as_str().map(str::to_owned)).collect()
    };
    let all = api.get("/v1/jobs").await.ok(200);
    assert_eq!(ids(&all), ["h", "m", "geo-4", "geo-3", "geo-2", "geo-1", "geo-0"]);
    assert_eq!(all["next_cursor"], json!(null));
    assert_eq!(ids(&api.get("/v1/jobs?provider=mail").await.ok(200)), ["m"]);
    assert_eq!(ids(&api.get("/v1/jobs?tenant=acme").await.ok(200)), ["m"]);
    assert_eq!(ids(&api.get("/v1/jobs?lane=high&state=queued").await.ok(200)), ["h"]);
    assert!(ids(&api.get("/v1/jobs?state=dead").await.ok(200)).is_empty());
    let (mut seen, mut path) = (Vec::new(), "/v1/jobs?limit=3".to_owned());
    loop {
        let page = api.get(&path).await.ok(200);
        seen.extend(ids(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/jobs?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ids(&all));
    let problem = api.get("/v1/jobs?state=done&colour=red&limit=501&cursor=AAAA").await.problem(400, "bad-parameter");
    let paths: Vec<_> = problem["errors"].as_array().into_iter().flatten().map(|e| e["path"].clone()).collect();
    assert_eq!(paths, ["?colour", "?state", "?limit", "?cursor"]);
    api.get("/v1/jobs/m?x=1").await.problem(400, "bad-parameter");
    api.post("/v1/jobs?x=1", job("q").to_string()).await.problem(400, "bad-parameter");
}

#[tokio::test]
async fn ids_that_cannot_be_are_simply_not_there() {
    let api = Api::start().await;
    let long = "x".repeat(129);
    for id in ["nope", "a%20b", "%0d%0ax:%20y", "%ff", "%2e%2e%2f", long.as_str(), "a%2fb"] {
        let answer = api.get(&format!("/v1/jobs/{id}")).await;
        answer.problem(404, "not-found");
        api.get(&format!("/v1/jobs/{id}/result")).await.problem(404, "not-found");
        api.delete(&format!("/v1/jobs/{id}")).await.problem(404, "not-found");
        api.get(&format!("/v1/dead-letters/{id}")).await.problem(404, "not-found");
        api.post(&format!("/v1/dead-letters/{id}/replay"), "{}").await.problem(404, "not-found");
    }
}

#[tokio::test]
async fn a_result_is_a_file_that_no_browser_runs() {
    let api = Api::start().await;
    let claimed = api.claimed(job("r-1")).await;
    let problem = api.get("/v1/jobs/r-1/result").await.problem(404, "no-result");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("queued")), "{problem}");
    api.finish(&claimed, JobState::Succeeded).await;
    let answer = api.get("/v1/jobs/r-1/result").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(&answer.body[..], b"<script>alert(1)</script>");
    for (name, expected) in [
        ("content-type", "text/html"),
        ("content-disposition", "attachment"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'"),
        ("paceline-provider-status", "200"),
        ("paceline-truncated", "false"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(name), expected, "{name}");
    }
    let shown = api.get("/v1/jobs/r-1").await.ok(200);
    assert_eq!(shown["state"], "succeeded");
    let attempt = &shown["attempts"][0];
    assert_eq!((&attempt["run"], &attempt["n"], &attempt["key"]), (&json!(1), &json!(1), &json!("a1")));
    assert_eq!((&attempt["status"], &attempt["latency_ms"]), (&json!(500), &json!(12)));
    assert!(attempt["at"].is_string() && shown["finished_at"].is_string());
    api.submit(job("r-2")).await.ok(202);
    api.delete("/v1/jobs/r-2").await.ok(200);
    let problem = api.get("/v1/jobs/r-2/result").await.problem(404, "no-result");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("cancelled")), "{problem}");
}

#[tokio::test]
async fn a_job_that_waits_is_cancelled_and_one_that_ended_is_not() {
    let api = Api::start().await;
    api.submit(job("c-1")).await.ok(202);
    assert_eq!(api.delete("/v1/jobs/c-1").await.ok(200)["state"], "cancelled");
    assert_eq!(api.delete("/v1/jobs/c-1").await.ok(200)["state"], "cancelled", "asking twice is no error");
    let backing_off = api.claimed(job("c-2")).await;
    let due_ms = now() + 3_600_000;
    api.record(&backing_off, Next::Wait { due_ms, reason: WaitReason::Backoff, backoff: Duration::from_secs(1) }).await;
    assert_eq!(api.get("/v1/jobs/c-2").await.ok(200)["waiting_for"]["reason"], "backoff");
    assert_eq!(api.delete("/v1/jobs/c-2").await.ok(200)["state"], "cancelled");
    let running = api.claimed(job("c-3")).await;
    api.record(&running, Next::Running).await;
    let problem = api.delete("/v1/jobs/c-3").await.problem(409, "too-late");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("running")), "{problem}");
    api.finish(&running, JobState::Succeeded).await;
    api.delete("/v1/jobs/c-3").await.problem(409, "too-late");
}

#[tokio::test]
async fn a_claimed_job_is_cancelled_when_its_owner_lets_go() {
    let api = Api::start().await;
    let mut wakes = api.store.wakes();
    let claimed = api.claimed(job("o-1")).await;
    let owner = async {
        loop {
            if wakes.recv().await.expect("a wake") == Wake::Cancel(claimed.pk) {
                break;
            }
        }
        let next = Next::Finish { state: JobState::Cancelled, reason: None, error: None, response: None };
        api.record(&claimed, next).await;
    };
    let (answer, ()) = soon(async { tokio::join!(api.delete("/v1/jobs/o-1"), owner) }).await;
    assert_eq!(answer.ok(200)["state"], "cancelled");
    api.claimed(job("o-2")).await;
    let problem = soon(api.delete("/v1/jobs/o-2")).await.problem(409, "cancel-pending");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("look again")), "{problem}");
}
