//! Who may ask for what.

use super::*;

#[tokio::test]
async fn without_tokens_only_this_machine_is_served_and_no_foreign_page() {
    let api = Api::start().await;
    let own = format!("http://{}", api.address);
    for host in ["localhost", "localhost:1234", "127.0.0.1", "127.1.2.3:80", "[::1]:8080"] {
        assert_eq!(api.send(Method::GET, "/v1/jobs", &[("host", host)], "").await.status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io"] {
        // The page itself is for everybody: what it asks for is refused here.
        for path in ["/v1/jobs", "/v1/providers", "/metrics", "/nowhere"] {
            api.send(Method::GET, path, &[("host", host)], "").await.problem(403, "forbidden");
        }
    }
    let json = ("content-type", "application/json");
    assert_eq!(api.send(Method::POST, "/v1/jobs", &[json, ("origin", &own)], job("x").to_string()).await.status, 202);
    for origin in ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1"] {
        let answer = api.send(Method::POST, "/v1/jobs", &[json, ("origin", origin)], job("y").to_string()).await;
        answer.problem(403, "forbidden");
        api.send(Method::DELETE, "/v1/jobs/x", &[("origin", origin)], "").await.problem(403, "forbidden");
    }
    assert_eq!(api.get("/v1/jobs/x").await.ok(200)["state"], "queued");
}

#[tokio::test]
async fn bodies_are_json_and_nothing_else() {
    let api = Api::start().await;
    let body = || job("ct").to_string();
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"]
    {
        api.send(Method::POST, "/v1/jobs", &[("content-type", kind)], body())
            .await
            .problem(415, "unsupported-media-type");
        let path = "/v1/dead-letters/x/replay";
        api.send(Method::POST, path, &[("content-type", kind)], "").await.problem(415, "unsupported-media-type");
    }
    api.send(Method::POST, "/v1/jobs", &[], body()).await.problem(415, "unsupported-media-type");
    let packed = [("content-type", "application/json"), ("content-encoding", "br")];
    api.send(Method::POST, "/v1/jobs", &packed, body()).await.problem(415, "unsupported-media-type");
    let utf8 = [("content-type", "application/json; charset=utf-8")];
    api.send(Method::POST, "/v1/jobs", &utf8, body()).await.ok(202);
}

const ENQUEUER: &str = "enqueue-secret-0123456789";
const READER: &str = "read-secret-0123456789";
const OTHER: &str = "other-secret-0123456789";
const REPLAYER: &str = "replay-secret-0123456789";
const ADMIN: &str = "admin-secret-0123456789";

async fn guarded() -> Api {
    let tokens = [
        token("orders", ENQUEUER, &[Scope::Enqueue], Some("acme")),
        token("dash", READER, &[Scope::Read], Some("acme")),
        token("other", OTHER, &[Scope::Enqueue, Scope::Read, Scope::Replay], Some("other")),
        token("fixer", REPLAYER, &[Scope::Replay], None),
        token("ops", ADMIN, &[Scope::Admin], None),
    ];
    Api::with(&tokens, ServeLimits::default()).await
}

#[tokio::test]
async fn with_tokens_everything_but_health_wants_one() {
    let api = guarded().await;
    for (method, path) in [
        (Method::GET, "/v1/jobs"),
        (Method::GET, "/v1/jobs/x"),
        (Method::POST, "/v1/jobs"),
        (Method::DELETE, "/v1/jobs/x"),
        (Method::GET, "/v1/dead-letters"),
        (Method::DELETE, "/v1/dead-letters?all=true"),
        (Method::GET, "/metrics"),
        (Method::GET, "/nowhere"),
    ] {
        let answer = api.send(method, path, &[], "").await;
        answer.problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"paceline\"");
    }
    for value in ["Bearer nope", "Bearer ", "bearer", "Basic YTpi", "read-secret-0123456789"] {
        let answer = api.send(Method::GET, "/v1/jobs", &[("authorization", value)], "").await;
        answer.problem(401, "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{value}");
    }
    let foreign = [("authorization", "Bearer admin-secret-0123456789"), ("host", "paceline.example")];
    assert_eq!(api.send(Method::GET, "/v1/jobs", &foreign, "").await.status, 200, "a token is enough from anywhere");
    assert_eq!(api.get("/healthz").await.status, 200);
    assert_eq!(api.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let mut api = guarded().await;
    for (token, method, path, scope) in [
        (READER, Method::POST, "/v1/jobs", "enqueue"),
        (READER, Method::DELETE, "/v1/jobs/x", "enqueue"),
        (ENQUEUER, Method::GET, "/v1/jobs", "read"),
        (ENQUEUER, Method::GET, "/v1/jobs/x/result", "read"),
        (ENQUEUER, Method::GET, "/v1/dead-letters/x", "read"),
        (READER, Method::POST, "/v1/dead-letters/x/replay", "replay"),
        (READER, Method::DELETE, "/v1/dead-letters?all=true", "replay"),
        (ENQUEUER, Method::GET, "/metrics", "read"),
    ] {
        api.token = Some(token);
        let answer = api.send(method, path, &[], "").await;
        let problem = answer.problem(403, "forbidden");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains(scope)), "{problem}");
        assert!(answer.header("www-authenticate").contains(&format!("scope=\"{scope}\"")), "{path}");
    }
    api.token = Some(READER);
    api.get("/metrics").await.problem(403, "forbidden");
    api.token = Some(ADMIN);
    assert_eq!(api.get("/metrics").await.status, 200);
    assert_eq!(api.submit(job("by-admin")).await.status, 202);
}

#[tokio::test]
async fn a_bound_token_sees_and_makes_only_its_tenant_s() {
    let mut api = guarded().await;
    api.token = Some(ENQUEUER);
    api.submit(job("t-1")).await.ok(202);
    let mut foreign = job("t-2");
    foreign["tenant"] = "other".into();
    let problem = api.submit(foreign.clone()).await.problem(422, "invalid");
    assert_eq!(problem["errors"][0]["path"], "$.tenant");
    api.token = Some(OTHER);
    api.submit(foreign).await.ok(202);
    api.submit(job("t-1")).await.ok(202);
    api.token = Some(ADMIN);
    let dead =
        api.dead(json!({ "id": "t-dead", "provider": "mail", "tenant": "acme", "request": { "path": "/" } })).await;
    assert_eq!(api.get("/v1/jobs?tenant=acme").await.ok(200)["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(api.get("/v1/jobs/t-1?tenant=other").await.ok(200)["tenant"], "other");
    api.token = Some(OTHER);
    let page = api.get("/v1/jobs").await.ok(200);
    assert!(
        page["items"].as_array().is_some_and(|i| i.len() == 2 && i.iter().all(|i| i["tenant"] == "other")),
        "{page}"
    );
    api.get("/v1/jobs?tenant=acme").await.problem(403, "forbidden");
    let unknown = api.get(&format!("/v1/jobs/{dead}")).await.problem(404, "not-found")["detail"].clone();
    assert_eq!(api.get("/v1/jobs/nothing").await.problem(404, "not-found")["detail"], unknown);
    api.get(&format!("/v1/dead-letters/{dead}")).await.problem(404, "not-found");
    api.post(&format!("/v1/dead-letters/{dead}/replay"), "{}").await.problem(404, "not-found");
    assert_eq!(api.get("/v1/dead-letters").await.ok(200)["items"], json!([]));
    assert_eq!(api.delete("/v1/dead-letters?all=true").await.ok(200)["purged"], 0, "all is all of its own");
    assert_eq!(api.delete("/v1/jobs/t-1").await.ok(200)["tenant"], "other");
    api.token = Some(READER);
    assert_eq!(api.get("/v1/jobs/t-1").await.ok(200)["state"], "queued", "acme's job of that id is another");
    assert_eq!(api.get(&format!("/v1/dead-letters/{dead}")).await.ok(200)["tenant"], "acme");
    api.token = Some(REPLAYER);
    assert_eq!(api.post(&format!("/v1/dead-letters/{dead}/replay"), "{}").await.ok(202)["run"], 2);
}
