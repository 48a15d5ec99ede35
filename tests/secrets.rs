//! No secret leaves the place it belongs to: a whole system runs with keys from the environment, from a file and from
//! the vault, with tokens, a signing secret, endpoints with secrets of their own and a master key, against a provider that
//! repeats whatever it is sent; then everything that it wrote, told and sent is searched for each of them, in every form
//! that they may take.

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use common::broker::Broker;
use common::world::{Mode, World, in_world};
use common::{SOON, holds, until};
use hkdf::Hkdf;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tokio::net::TcpListener;

/// What must be found nowhere: what it is, and the secret.
type Secrets = BTreeMap<&'static str, String>;

/// One of each kind, with characters that encodings change.
fn secrets() -> Secrets {
    let make = |name: &str| format!("sk-{name}/Zm9+bar==?{name}&7Qx2LpW9");
    let mut all: Secrets = [
        "key-env",
        "key-file",
        "key-vault",
        "key-rotated-away",
        "key-query",
        "key-basic",
        "key-down",
        "key-stored",
        "key-refused",
        "token-admin",
        "token-reader",
        "token-wrong",
    ]
    .map(|name| (name, make(name)))
    .into();
    for name in ["endpoint-given", "endpoint-given-before", "endpoint-down"] {
        all.insert(name, format!("whsec_{}", STANDARD.encode(format!("{name:<32}?>/"))));
    }
    all.insert("endpoint-refused", "whsec_this/is+no-base64-at-all".to_owned());
    all.insert("webhook", format!("whsec_{}", STANDARD.encode(b"a signing secret of 32 bytes. ok")));
    all.insert("master", STANDARD.encode(b"a master key that has 32 bytes. "));
    all
}

/// The forms that a secret may take in a text or in bytes: as it is, in base64 at every place, in hexadecimal digits,
/// percent-encoded a little or wholly, escaped for JSON.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec()];
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    forms.push(hex.to_uppercase().into_bytes());
    forms.push(hex.into_bytes());
    for engine in [&STANDARD, &URL_SAFE] {
        for before in 0..3 {
            let text = engine.encode([&vec![0; before][..], secret].concat());
            // What its neighbours cannot change.
            let (from, to) = ((before * 8).div_ceil(6), (before + secret.len()) * 8 / 6);
            forms.push(text.as_bytes()[from..to].to_vec());
        }
    }
    for case in [|byte: &u8| format!("%{byte:02X}"), |byte: &u8| format!("%{byte:02x}")] {
        forms.push(secret.iter().map(case).collect::<String>().into_bytes());
        let some = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(*byte).to_string() } else { case(byte) };
        forms.push(secret.iter().map(some).collect::<String>().into_bytes());
    }
    forms.push(url::form_urlencoded::byte_serialize(secret).collect::<String>().into_bytes());
    forms.push(String::from_utf8_lossy(secret).replace('/', "\\/").into_bytes());
    forms
}

/// Everything that a run left behind, by where it was found.
#[derive(Default)]
struct Found(Vec<(String, Vec<u8>)>);

impl Found {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    /// Which secrets were found where, and what stands around them.
    fn leaks(&self, secrets: &Secrets) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, secret) in secrets {
            let mut all = forms(secret.as_bytes());
            // Its bytes beside its text.
            all.extend(STANDARD.decode(secret.trim_start_matches("whsec_")).iter().flat_map(|bytes| forms(bytes)));
            for (place, bytes) in &self.0 {
                for form in &all {
                    if let Some(at) = find(bytes, form) {
                        let around = &bytes[at.saturating_sub(120)..(at + form.len() + 40).min(bytes.len())];
                        leaks.push(format!("{name} in {place}: {}", String::from_utf8_lossy(around)));
                        break;
                    }
                }
            }
        }
        leaks
    }
}

fn find(bytes: &[u8], form: &[u8]) -> Option<usize> {
    let first = *form.first()?;
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|byte| *byte == first).map(|at| at + from) {
        if bytes[at..].starts_with(form) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[test]
fn every_form_of_a_secret_is_found() {
    let all = secrets();
    let secret = all["key-env"].as_bytes();
    let hex: String = secret.iter().map(|byte| format!("{byte:02X}")).collect();
    let planted: [Vec<u8>; 8] = [
        secret.to_vec(),
        STANDARD.encode(secret).into_bytes(),
        STANDARD.encode([b"user:", secret].concat()).into_bytes(),
        URL_SAFE.encode([b"ab", secret, b"tail"].concat()).into_bytes(),
        hex.into_bytes(),
        percent_encoding::utf8_percent_encode(&all["key-env"], percent_encoding::NON_ALPHANUMERIC).to_string().into(),
        url::form_urlencoded::byte_serialize(secret).collect::<String>().into(),
        json!({ "deep": [all["key-env"]] }).to_string().into(),
    ];
    for bytes in planted {
        let mut found = Found::default();
        found.add("a place", [b"before ".as_slice(), &bytes, b" after"].concat());
        assert_eq!(found.leaks(&all).len(), 1, "{}", String::from_utf8_lossy(&bytes));
    }
    let mut found = Found::default();
    found.add("a place", b"a master key that has 32 bytes. ".to_vec());
    assert_eq!(found.leaks(&all).len(), 1, "the bytes behind the base64");
    let mut found = Found::default();
    found.add("a place", "nothing of it: sk-key-env/Zm9+bar".as_bytes());
    assert_eq!(found.leaks(&all), Vec::<String>::new());
}

/// Repeats what it is sent: in headers, bodies and errors.
async fn parrot(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let credential = parts.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = credential.trim_start_matches("Bearer ").to_owned();
    let asked: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let key = asked.get("api_key").cloned().unwrap_or(key);
    drop(axum::body::to_bytes(body, 1 << 20).await);
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-key", key.clone()), ("x-query", query.clone()), ("x-credential", credential.to_owned())] {
        headers.insert(name, value.parse().expect("a header"));
    }
    let told = json!({ "key": key, "query": query, "authorization": credential, "text": format!("your key {key}!") });
    match parts.uri.path() {
        "/refuse" => (StatusCode::BAD_REQUEST, headers, axum::Json(told)).into_response(),
        "/fail" => (StatusCode::INTERNAL_SERVER_ERROR, headers, axum::Json(told)).into_response(),
        "/unauthorized" => (StatusCode::UNAUTHORIZED, headers, axum::Json(told)).into_response(),
        "/elsewhere" => {
            headers.insert("location", format!("http://127.0.0.1:1/?{query}&key={key}").parse().expect("a header"));
            (StatusCode::FOUND, headers).into_response()
        }
        "/cut" => {
            // Announces more than it sends.
            let half = futures_util::stream::iter([Ok(told.to_string()), Err(std::io::Error::other("cut"))]);
            (headers, axum::body::Body::from_stream(half)).into_response()
        }
        _ => (headers, axum::Json(told)).into_response(),
    }
}

/// What a webhook receiver was sent.
type Received = Arc<Mutex<Vec<String>>>;

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn receiver(received: Received) -> String {
    let router = Router::new().fallback(async move |request: Request| {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
        let text = format!("{parts:?} {}", String::from_utf8_lossy(&body));
        received.lock().expect("not poisoned").push(text);
        StatusCode::OK
    });
    serve(router).await
}

/// The API, with a token; every answer is kept.
struct Client<'a> {
    world: &'a World,
    token: String,
    found: Found,
}

impl Client<'_> {
    async fn call(&mut self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let token = self.token.clone();
        self.call_as(&token, method, path, body).await
    }

    async fn call_as(&mut self, token: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let url = format!("http://127.0.0.1:{}{path}", self.world.port);
        let mut request = client.request(method.clone(), url).bearer_auth(token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), format!("{:?}", response.headers()));
        let body = response.text().await.expect("a body");
        self.found.add(format!("the answer to {method} {path}"), format!("{status} {headers}\n{body}"));
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// An endpoint whose secret is told, this once, and the secret. The rest of the answer is kept.
    async fn told(&mut self, path: &str, body: Value) -> (Value, String) {
        let (status, endpoint) = self.call(Method::POST, path, Some(body)).await;
        assert!(matches!(status, 200 | 201), "{endpoint}");
        let secret = endpoint["secret"].as_str().expect("told").to_owned();
        let (_, kept) = self.found.0.last_mut().expect("it was kept");
        *kept = String::from_utf8_lossy(kept).replacen(&secret, "", 1).into_bytes();
        (endpoint, secret)
    }

    async fn get(&mut self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.1
    }
}

fn configure(world: &World, all: &Secrets, base: &str) {
    for (name, secret) in all {
        world.set(&name.to_uppercase().replace('-', "_"), secret);
    }
    let file = world.path("key-file");
    std::fs::write(&file, &all["key-file"]).expect("written");
    world.set("PACELINE_MASTER_KEY", &all["master"]);
    let limits = "key_limits = [ { requests = 50, per = \"1s\" } ]\nbreaker = { failures = 1000000 }\n\
                  retry = { max_attempts = 2, base = \"10ms\", cap = \"20ms\" }";
    let p = &world.provider;
    world.configure_all(&format!(
        "[api]\nlisten = \"127.0.0.1:{port}\"\ntokens = [\n\
         {{ name = \"admin\", secret = \"env:TOKEN_ADMIN\", scopes = [\"admin\"] }},\n\
         {{ name = \"reader\", secret = \"env:TOKEN_READER\", scopes = [\"read\"], tenant = \"acme\" }} ]\n\
         [webhooks]\nsecret = \"env:WEBHOOK\"\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n\
         [[provider]]\nname = \"{p}\"\nbase_url = \"{base}\"\n{limits}\n\
         keys = [ {{ label = \"env\", secret = \"env:KEY_ENV\" }}, {{ label = \"file\", secret = \"file:{file}\" }},\n\
         {{ label = \"vault\", secret = \"vault\" }} ]\n\
         [[provider]]\nname = \"{p}-query\"\nbase_url = \"{base}\"\nauth = {{ query = \"api_key\" }}\n{limits}\n\
         keys = [ {{ label = \"query\", secret = \"env:KEY_QUERY\" }} ]\n\
         [[provider]]\nname = \"{p}-basic\"\nbase_url = \"{base}\"\nauth = {{ basic_user = \"me\" }}\n{limits}\n\
         keys = [ {{ label = \"basic\", secret = \"env:KEY_BASIC\" }} ]\n\
         [[provider]]\nname = \"{p}-down\"\nbase_url = \"http://127.0.0.1:1\"\nauth = {{ query = \"api_key\" }}\n{limits}\n\
         keys = [ {{ label = \"down\", secret = \"env:KEY_DOWN\" }} ]\n",
        port = world.port,
        file = file.display(),
    ));
}

/// Adds keys, rotates one, and tries what is refused.
async fn use_keys(client: &mut Client<'_>, all: &Secrets) {
    let keys = format!("/v1/providers/{}/keys", client.world.provider);
    let add = |label: &str, secret: &str| Some(json!({ "label": label, "secret": secret }));
    assert_eq!(client.call(Method::POST, &keys, add("vault", &all["key-rotated-away"])).await.0, 201);
    assert_eq!(client.call(Method::POST, &keys, add("stored", &all["key-stored"])).await.0, 201);
    let rotate = format!("{keys}/vault/rotate");
    assert_eq!(client.call(Method::POST, &rotate, Some(json!({ "secret": all["key-vault"] }))).await.0, 200);
    let blank = format!("{} with a blank", all["key-refused"]);
    let refused = &all["key-refused"];
    for (path, body, status) in [
        (&keys, json!({ "label": "odd", "secret": blank }), 422),
        (&keys, json!({ "label": refused, "secret": refused }), 422),
        (&keys, json!({ "label": "odd", "secret": { (refused): refused } }), 422),
        (&keys, json!({ "label": "odd", "secret": refused, "budget": refused }), 422),
        (&keys, json!({ "label": "odd", "secret": refused, (refused): 1 }), 422),
        (&keys, json!(refused), 422),
        (&keys, json!({ "label": "env", "secret": refused }), 409),
        (&keys, json!({ "label": "again", "secret": all["key-stored"] }), 409),
        (&rotate, json!({ "secret": blank }), 422),
    ] {
        assert_eq!(client.call(Method::POST, path, Some(body)).await.0, status);
    }
    let wrong = &all["token-wrong"];
    for _ in 0..12 {
        let (status, _) = client.call_as(wrong, Method::GET, "/v1/jobs", None).await;
        assert!(matches!(status, 401 | 429), "{status}");
    }
    client.call_as(wrong, Method::GET, "/readyz", None).await;
    client.call_as(&all["token-reader"], Method::GET, &keys, None).await;
}

/// Registers endpoints with every kind of secret, and rotates them; how many hear of each job. The secrets that were
/// generated are among `all` then.
async fn use_endpoints(client: &mut Client<'_>, all: &mut Secrets, receiver: &str) -> i64 {
    let register = |path: &str, secret: Option<&str>| {
        let mut body = json!({ "url": format!("{receiver}{path}"), "ed25519": true, "description": path });
        if let Some(secret) = secret {
            body["secret"] = secret.into();
        }
        body
    };
    let (path, before) = ("/v1/endpoints", all["endpoint-given-before"].clone());
    let (status, given) = client.call(Method::POST, path, Some(register("/given", Some(&before)))).await;
    assert_eq!(status, 201, "{given}");
    assert!(given.get("secret").is_none(), "whoever gave it knows it");
    let id_of = |endpoint: &Value| endpoint["id"].as_str().expect("an id").to_owned();
    let given = id_of(&given);
    let another = json!({ "secret": all["endpoint-given"], "overlap": "1h" });
    assert_eq!(client.call(Method::POST, &format!("{path}/{given}/rotate"), Some(another)).await.0, 200);
    let generated = client.told(path, register("/generated", None)).await;
    let anew = client.told(&format!("{path}/{}/rotate", id_of(&generated.0)), json!({})).await;
    let mut down = register("", Some(&all["endpoint-down"]));
    down["url"] = "http://127.0.0.1:1/down".into();
    assert_eq!(client.call(Method::POST, path, Some(down)).await.0, 201);
    for (refused, status) in [
        (register("/odd", Some(&all["endpoint-refused"])), 422),
        (json!({ "url": receiver, "secret": { "is": all["endpoint-refused"] } }), 422),
        (json!({ "url": receiver, "secret": [all["endpoint-refused"]] }), 422),
    ] {
        assert_eq!(client.call(Method::POST, path, Some(refused)).await.0, status);
    }
    // What stands for the private key of Ed25519: derived, as the documentation says.
    let base = STANDARD.decode(all["webhook"].trim_start_matches("whsec_")).expect("base64");
    let mut seed = [0; 32];
    let info = format!("paceline/webhook/ed25519/v1\0{given}\x002");
    Hkdf::<Sha256>::new(None, &base).expand(info.as_bytes(), &mut seed).expect("32 bytes");
    all.insert("endpoint-ed25519", STANDARD.encode(seed));
    all.insert("endpoint-generated-before", generated.1);
    all.insert("endpoint-generated", anew.1);
    2
}

/// Looks at endpoints and deliveries, and sends again what can be.
async fn use_deliveries(client: &mut Client<'_>) {
    let endpoints = client.get("/v1/endpoints").await;
    for endpoint in endpoints["items"].as_array().expect("items") {
        let path = format!("/v1/endpoints/{}", endpoint["id"].as_str().expect("an id"));
        client.get(&path).await;
        for (rest, body) in [
            ("/test", json!({})),
            ("/disable", json!({})),
            ("/test", json!({})),
            ("/enable", json!({})),
            ("/resend", json!({ "since": "2026-01-01T00:00:00Z", "all": true })),
        ] {
            client.call(Method::POST, &format!("{path}{rest}"), Some(body)).await;
        }
    }
    let deliveries = client.get("/v1/deliveries?limit=500").await;
    for delivery in deliveries["items"].as_array().expect("items").iter().take(20) {
        let path = format!("/v1/deliveries/{}", delivery["id"].as_str().expect("an id"));
        client.get(&path).await;
        client.call(Method::POST, &format!("{path}/resend"), Some(json!({}))).await;
    }
}

/// One job for every provider, key and way of answering; how many there are.
async fn use_jobs(client: &mut Client<'_>, callback: &str) -> i64 {
    let p = client.world.provider.clone();
    let mut jobs = Vec::new();
    let paths = ["/echo", "/refuse", "/fail", "/elsewhere", "/cut"];
    let places = [
        (p.clone(), Some("env")),
        (p.clone(), Some("file")),
        (p.clone(), Some("vault")),
        (p.clone(), Some("stored")),
        (format!("{p}-query"), None),
        (format!("{p}-basic"), None),
        (format!("{p}-down"), None),
    ];
    for (n, (provider, key)) in places.iter().enumerate() {
        for (m, path) in paths.iter().enumerate() {
            let mut job = json!({
                "id": format!("j{n}-{m}"), "provider": provider, "request": { "method": "POST", "path": path },
                "callback": { "url": callback },
            });
            if let Some(key) = key {
                job["key"] = json!(key);
            }
            jobs.push(job);
        }
    }
    let count = i64::try_from(jobs.len()).expect("few");
    let (status, answer) = client.call(Method::POST, "/v1/jobs", Some(Value::Array(jobs))).await;
    assert_eq!(status, 202, "{answer}");
    count
}

/// Every answer that tells of what happened.
async fn ask_everything(client: &mut Client<'_>) {
    let p = client.world.provider.clone();
    let jobs = client.get("/v1/jobs?limit=500").await;
    let ids = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["id"].as_str().map(str::to_owned)).collect()
    };
    for id in ids(&jobs) {
        client.get(&format!("/v1/jobs/{id}")).await;
        client.get(&format!("/v1/jobs/{id}/result")).await;
    }
    let letters = client.get("/v1/dead-letters?limit=500").await;
    assert!(ids(&letters).len() >= 7, "{letters}");
    for id in ids(&letters) {
        client.get(&format!("/v1/dead-letters/{id}")).await;
    }
    for path in ["/v1/providers", "/v1/audit", "/v1/replays", "/metrics", "/readyz", "/healthz", "/openapi.json", "/"] {
        client.get(path).await;
    }
    client.get(&format!("/v1/providers/{p}")).await;
    client.get(&format!("/v1/providers/{p}/keys")).await;
    client.call(Method::POST, "/v1/vault/rekey", None).await;
}

/// Every row of every table, as text and as it is stored.
async fn database(world: &World, found: &mut Found) {
    match world.mode {
        Mode::Scaled => {
            let mut connection = PgConnection::connect(world.database()).await.expect("the database");
            let sql = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'";
            let tables: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&mut connection).await.expect("tables");
            assert!(tables.len() > 10);
            for (table,) in tables {
                let sql = AssertSqlSafe(format!("SELECT row_to_json(t)::text || t::text FROM {table} t"));
                let rows: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&mut connection).await.expect("rows");
                rows.into_iter().for_each(|row| found.add(format!("a row of {table}"), row.0));
            }
            connection.close().await.expect("closed");
        }
        Mode::Embedded => {
            let url = format!("sqlite://{}?mode=ro", world.path("paceline.db").display());
            let mut connection = SqliteConnection::connect(&url).await.expect("the file");
            let sql =
                "SELECT m.name, c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'";
            let columns: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&mut connection).await.expect("columns");
            assert!(columns.len() > 60);
            for (table, column) in columns {
                let sql = format!("SELECT CAST(\"{column}\" AS BLOB) FROM \"{table}\" WHERE \"{column}\" IS NOT NULL");
                let rows: Vec<(Vec<u8>,)> =
                    sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await.expect("rows");
                rows.into_iter().for_each(|row| found.add(format!("{table}.{column}"), row.0));
            }
            connection.close().await.expect("closed");
        }
    }
}

/// Logs, database files, and whatever else lies in the folder, but for the file that holds a key.
fn files(world: &World, found: &mut Found) {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(world.folder()).expect("the folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != "key-file" && path.is_file() {
            found.add(format!("the file {name}"), std::fs::read(&path).expect("read"));
            names.push(name);
        }
    }
    assert!(names.iter().any(|name| name == "serve.log"), "{names:?}");
}

/// A queue that gets a copy of everything.
fn listener(world: &World) -> String {
    format!("test.secrets.{}", world.provider)
}

async fn no_secret_leaves_its_place(world: &World) {
    let mut all = secrets();
    if world.mode == Mode::Scaled {
        let password = |url: &str| url::Url::parse(url).ok()?.password().map(str::to_owned);
        all.insert("password-broker", password(&common::broker::url()).expect("a password"));
        all.insert("password-database", password(world.database()).expect("a password"));
    }
    let received = Received::default();
    let base = serve(Router::new().fallback(parrot)).await;
    let receiver = receiver(Arc::clone(&received)).await;
    let callback = format!("{receiver}/hook");
    configure(world, &all, &base);
    world.prepare().await;
    let events = match world.mode {
        Mode::Scaled => Some(Broker::connect().await),
        Mode::Embedded => None,
    };
    if let Some(broker) = &events {
        broker.listen(&listener(world), "paceline.events", "#").await;
        broker.listen(&listener(world), "paceline.jobs", &format!("{}.#", world.provider)).await;
    }
    world.set("RUST_LOG", "trace");
    let mut serve = world.serve();
    let mut client = Client { world, token: all["token-admin"].clone(), found: Found::default() };
    world.ready(&mut serve).await;
    use_keys(&mut client, &all).await;
    let subscribed = use_endpoints(&mut client, &mut all, &receiver).await;
    let mut count = use_jobs(&mut client, &callback).await;
    if let Some(broker) = &events {
        let job = json!({ "request": { "method": "POST", "path": "/echo" }, "callback": { "url": callback } });
        broker.publish(&world.provider, Some("over-amqp"), job.to_string().as_bytes()).await;
        count += 1;
    }
    world.all_done(count, SOON * 3).await;
    until("every webhook has come", SOON, async || {
        let webhooks = count * (1 + subscribed);
        holds(i64::try_from(received.lock().expect("not poisoned").len()).is_ok_and(|n| n >= webhooks))
    })
    .await;
    use_deliveries(&mut client).await;
    ask_everything(&mut client).await;
    let Client { mut found, .. } = client;
    if let Some(broker) = &events {
        for message in broker.take_all(&listener(world)).await {
            found.add("a message in a queue", message);
        }
        broker.delete(&listener(world)).await;
        assert!(found.0.iter().any(|(place, _)| place == "a message in a queue"), "the job at least");
    }
    database(world, &mut found).await;
    files(world, &mut found);
    serve.stop().await;
    files(world, &mut found);
    for text in received.lock().expect("not poisoned").iter() {
        found.add("a webhook", text.as_str());
    }
    let signed = |text: &&String| text.matches("v1,").count() == 2 && text.matches("v1a,").count() == 2;
    assert!(received.lock().expect("not poisoned").iter().filter(signed).count() >= 2, "both secrets sign, both ways");
    let log = world.path("serve.log");
    let log = std::fs::read_to_string(log).expect("the log");
    assert!(log.contains("TRACE") && log.contains("a token that nobody knows was sent"), "it says everything");
    let leaks = found.leaks(&all);
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    assert!(found.0.iter().any(|(_, bytes)| find(bytes, b"your key ***!").is_some()), "the provider repeats keys");
}

#[tokio::test]
async fn no_secret_leaves_its_place_embedded() {
    in_world(Mode::Embedded, no_secret_leaves_its_place).await;
}

#[tokio::test]
async fn no_secret_leaves_its_place_scaled() {
    in_world(Mode::Scaled, no_secret_leaves_its_place).await;
}
