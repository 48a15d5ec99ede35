//! Health, metrics, and what is not there.

use super::*;

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_too() {
    let api = Api::start().await;
    for path in ["/index", "/v1", "/v2/jobs", "/v1/jobs/a/b/c", "/v1/jobs/", "/%ff"] {
        api.get(path).await.problem(404, "not-found");
    }
    for (method, path, allow) in [
        (Method::PUT, "/v1/jobs", "POST"),
        (Method::POST, "/v1/jobs/x", "DELETE"),
        (Method::PATCH, "/v1/dead-letters/x", "GET"),
        (Method::GET, "/v1/dead-letters/x/replay", "POST"),
        (Method::POST, "/healthz", "GET"),
    ] {
        let answer = api.send(method, path, &[("content-type", "application/json")], "{}").await;
        answer.problem(405, "method-not-allowed");
        assert!(answer.header("allow").contains(allow), "{path}: {}", answer.header("allow"));
    }
}

#[tokio::test]
async fn health_is_about_the_process_and_readiness_about_its_parts() {
    let api = Api::start().await;
    assert_eq!(api.get("/healthz").await.ok(200), json!({ "status": "ok", "service": "paceline" }));
    api.readiness.declare("queue");
    let starting = api.get("/readyz").await.ok(503);
    assert_eq!(
        starting,
        json!({ "ready": false, "parts": { "queue": { "state": "starting" }, "store": { "state": "ok" } } })
    );
    api.readiness.set("queue", Err("connection refused".to_owned()));
    let failed = api.get("/readyz").await.ok(503);
    assert_eq!(failed["parts"]["queue"], json!({ "state": "failed", "error": "connection refused" }));
    let stranger = api.send(Method::GET, "/readyz", &[("host", "evil.example")], "").await.ok(503);
    assert_eq!(stranger["parts"]["queue"], json!({ "state": "failed" }), "not told why");
    api.readiness.set("queue", Ok(()));
    assert_eq!(api.get("/readyz").await.ok(200)["ready"], true);
}

/// The store is opened first: who publishes then would find no queue yet.
#[tokio::test]
async fn a_process_that_starts_is_not_ready_whatever_of_it_works_already() {
    let readiness = Readiness::default();
    readiness.set("store", Ok(()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/readyz", listener.local_addr().expect("an address"));
    let (_running, stopped) = oneshot::channel::<()>();
    let router = starting_router(readiness, Tokens::new(&[]));
    tokio::spawn(serve(listener, router, ServeLimits::default(), async move { stopped.await.unwrap_or_default() }));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(url).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let told: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    assert_eq!(told, json!({ "ready": false, "parts": { "store": { "state": "ok" } } }));
}

#[tokio::test]
async fn a_store_that_is_gone_is_a_503_that_says_so() {
    let api = Api::start().await;
    api.submit(job("s-1")).await.ok(202);
    api.store.close().await;
    let ready = api.get("/readyz").await.ok(503);
    assert_eq!(ready["parts"]["store"]["state"], "failed");
    let answer = api.submit(job("s-2")).await;
    answer.problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), "1");
    api.get("/v1/jobs/s-1").await.problem(503, "unavailable");
    assert_eq!(api.get("/healthz").await.status, 200);
    let metrics = api.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("paceline_store_counted 0"));
}

#[tokio::test]
async fn metrics_count_requests_and_jobs() {
    let api = Api::start().await;
    api.submit(job("m-1")).await.ok(202);
    api.get("/v1/jobs/unknown").await.problem(404, "not-found");
    api.dead(json!({ "id": "m-dead", "provider": "mail", "request": { "path": "/" } })).await;
    let answer = api.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"));
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    for line in [
        "paceline_http_requests_total{route=\"/v1/jobs\",method=\"POST\",status=\"202\"} 2",
        "paceline_http_requests_total{route=\"/v1/jobs/{id}\",method=\"GET\",status=\"404\"} 1",
        "paceline_jobs{provider=\"geo\",lane=\"default\",state=\"queued\"} 1",
        "paceline_dead_letters 1",
        "paceline_store_counted 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
