//! Requests to where they must not go: every way to write an inside address, names that resolve to one, names that
//! change their mind, redirects. Judged when an endpoint is registered, and again at every call.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use paceline::api::{HookRules, Hooks, Problem, Tenancy};
use paceline::clock::{Clock, SystemClock};
use paceline::net_guard::{NetGuard, Refused};
use paceline::secrets::Secret;
use paceline::store::{DeliveryJob, Endpoint, Occasion, Store, StoreOptions};
use paceline::webhook::{Answer, Keyring, Prepared, SendError, Sender, WebhookSecrets, WebhookSettings};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use url::Url;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A host as it may be written, and the range that it is refused for.
const INSIDE: [(&str, &str); 62] = [
    // Loopback, in every notation that a browser understands.
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("127.1", "loopback"),
    ("127.0.1", "loopback"),
    ("2130706433", "loopback"),
    ("0x7f000001", "loopback"),
    ("0x7F.1", "loopback"),
    ("0x7f.0x0.0x0.0x1", "loopback"),
    ("017700000001", "loopback"),
    ("0177.0.0.01", "loopback"),
    ("0x7f.0.0.01", "loopback"),
    ("127.0.0.1.", "loopback"),
    ("%31%32%37.0.0.1", "loopback"),
    ("127\u{3002}0\u{3002}0\u{3002}1", "loopback"),
    ("127\u{ff0e}0\u{ff0e}0\u{ff0e}1", "loopback"),
    ("\u{ff11}\u{ff12}\u{ff17}.0.0.1", "loopback"),
    ("\u{2460}\u{2461}\u{2466}.0.0.1", "loopback"),
    ("[::1]", "loopback"),
    ("[0:0:0:0:0:0:0:1]", "loopback"),
    ("[0000::0001]", "loopback"),
    // This host, this network.
    ("0", "unspecified"),
    ("0.0.0.0", "unspecified"),
    ("0.1.2.3", "unspecified"),
    ("[::]", "unspecified"),
    // Private.
    ("10.0.0.1", "private"),
    ("0x0a000001", "private"),
    ("167772161", "private"),
    ("172.16.0.1", "private"),
    ("172.31.255.254", "private"),
    ("192.168.1.1", "private"),
    ("0300.0250.1.1", "private"),
    ("100.64.0.1", "carrier-grade NAT"),
    ("100.100.100.200", "carrier-grade NAT"),
    ("[fd12:3456:789a::1]", "unique-local"),
    ("[fc00::1]", "unique-local"),
    ("[fec0::1]", "site-local"),
    // Link-local and metadata.
    ("169.254.0.1", "link-local"),
    ("169.254.169.254", "metadata"),
    ("0xa9fea9fe", "metadata"),
    ("2852039166", "metadata"),
    ("168.63.129.16", "metadata"),
    ("[fe80::1]", "link-local"),
    ("[fd00:ec2::254]", "metadata"),
    ("[fd20:ce::254]", "metadata"),
    // Multicast, broadcast, reserved, documentation.
    ("224.0.0.1", "multicast"),
    ("255.255.255.255", "broadcast"),
    ("240.0.0.1", "reserved"),
    ("192.0.2.1", "documentation"),
    ("198.18.0.1", "benchmarking"),
    ("[ff02::1]", "multicast"),
    ("[2001:db8::1]", "documentation"),
    // IPv4 inside of IPv6: mapped, compatible, translated, NAT64, 6to4, Teredo.
    ("[::ffff:127.0.0.1]", "loopback"),
    ("[::ffff:7f00:1]", "loopback"),
    ("[::ffff:a9fe:a9fe]", "metadata"),
    ("[::127.0.0.1]", "loopback"),
    ("[::ffff:0:10.0.0.1]", "private"),
    ("[64:ff9b::10.0.0.1]", "private"),
    ("[64:ff9b::169.254.169.254]", "metadata"),
    ("[64:ff9b:1::7f00:1]", "local NAT64"),
    ("[2002:7f00:1::]", "loopback"),
    ("[2002:c0a8:101:1::5]", "private"),
    ("[2001:0:808:808:0:0:80ff:fffe]", "reserved"),
];

/// Hosts outside; nobody calls them here.
const OUTSIDE: [&str; 6] =
    ["1.1.1.1", "8.8.8.8", "[2606:4700:4700::1111]", "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]", "[2002:808:808::1]"];

fn settings(allowed: &[&str]) -> WebhookSettings {
    let secrets = WebhookSecrets::new(&Secret::new(SECRET.into())).expect("a valid secret");
    WebhookSettings {
        allow_http: true,
        allow_networks: networks(allowed),
        timeout: Duration::from_secs(2),
        ..WebhookSettings::new(secrets)
    }
}

fn networks(allowed: &[&str]) -> Vec<IpNet> {
    allowed.iter().map(|text| text.parse().expect("a network")).collect()
}

fn delivery(url: &str) -> Prepared {
    let endpoint =
        Endpoint { pk: 1, id: "ep_1".into(), tenant: String::new(), url: url.into(), implicit: true, secrets: None };
    let occasion = Occasion::Test { event_id: "evt_1".into(), at_ms: 0 };
    let job = DeliveryJob { pk: 1, epoch: 1, attempts: 0, attempts_before: 0, endpoint: Arc::new(endpoint), occasion };
    Prepared::new(job, None).expect("written")
}

async fn send(sender: &Sender, url: &str) -> Result<Answer, SendError> {
    sender.send(&delivery(url), SystemClock::new().wall_ms()).await
}

/// Something inside that must not be called; counts who does.
struct Inside {
    port: u16,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inside {
    /// Answers every request with that head.
    async fn answering(head: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.is_err() {
                    continue;
                }
                stream.write_all(head.as_bytes()).await.ok();
            }
        });
        Self { port, connections, task }
    }

    async fn new() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Endpoints of a store of their own.
struct House {
    hooks: Hooks,
    store: Store,
    _folder: tempfile::TempDir,
}

impl House {
    async fn new(allowed: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
        let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 2 }).await.expect("opened");
        store.migrate().await.expect("migrated");
        let keyring = Keyring::new(WebhookSecrets::new(&Secret::new(SECRET.into())).expect("valid"), Arc::default());
        let rules = HookRules { keyring: Some(keyring), allow_http: true, guard: NetGuard::new(&networks(allowed)) };
        Self { hooks: Hooks::new(store.clone(), Arc::new(SystemClock::new()), rules), store, _folder: folder }
    }

    async fn register(&self, url: &str) -> Result<(), Problem> {
        let body = serde_json::json!({ "url": url }).to_string();
        self.hooks.register(Tenancy::all(), body.as_bytes()).await.map(drop)
    }

    async fn known(&self) -> usize {
        self.store.endpoints(None, None, 500).await.expect("read").items.len()
    }
}

#[tokio::test]
async fn inside_addresses_are_refused_in_every_notation() {
    let inside = Inside::new().await;
    let house = House::new(&[]).await;
    let sender = Sender::new(&settings(&[])).expect("a client");
    for (host, range) in INSIDE {
        let url = format!("http://{host}:{}/hook", inside.port);
        let parsed = Url::parse(&url).expect(host);
        let refused = NetGuard::default().check_url(&parsed).expect_err(host);
        assert!(matches!(refused, Refused::Address { range: found, .. } if found == range), "{host}: {refused}");
        let problem = house.register(&url).await.expect_err(host);
        assert_eq!(problem.errors[0].path, "$.url", "{host}");
        assert!(problem.errors[0].message.contains(range), "{host}: {problem}");
        let error = send(&sender, &url).await.expect_err(host);
        assert!(
            matches!(&error, SendError::Refused(Refused::Address { range: found, .. }) if *found == range),
            "{host}: {error:?}"
        );
    }
    assert_eq!((house.known().await, inside.connections()), (0, 0));
}

#[tokio::test]
async fn outside_addresses_may_be_registered() {
    let house = House::new(&[]).await;
    for host in OUTSIDE {
        for port in ["", ":8443"] {
            house.register(&format!("https://{host}{port}/hook")).await.expect(host);
        }
    }
    assert_eq!(house.known().await, 2 * OUTSIDE.len());
}

#[tokio::test]
async fn names_that_resolve_inside_are_refused_without_saying_where_to() {
    let inside = Inside::new().await;
    let house = House::new(&[]).await;
    let sender = Sender::new(&settings(&[])).expect("a client");
    for host in [
        "localhost",
        "LOCALHOST",
        "\u{24db}\u{24de}\u{24d2}\u{24d0}\u{24db}host",
        "localhost.",
        "metadata.localhost",
        "a.b.LocalHost.",
    ] {
        let url = format!("http://{host}:{}/hook", inside.port);
        let problem = house.register(&url).await.expect_err(host);
        assert!(problem.errors[0].message.contains("loopback"), "{host}: {problem}");
        // Where the machine's own lookup knows nothing of the last ones, there is nobody to connect to.
        let error = send(&sender, &url).await.expect_err(host);
        let refused = matches!(error, SendError::Refused(Refused::Name { range: "loopback", .. }));
        let is_plain = Url::parse(&url).expect(host).host_str() == Some("localhost");
        assert!(refused || (!is_plain && matches!(error, SendError::Connect(_))), "{host}: {error:?}");
        assert!(!error.to_string().contains("127."), "{error}");
    }
    assert_eq!((house.known().await, inside.connections()), (0, 0));
}

#[tokio::test]
async fn what_is_no_url_to_call_is_refused_at_registration() {
    let house = House::new(&["127.0.0.0/8"]).await;
    for (url, expected) in [
        ("", "absolute URL"),
        ("/hook", "absolute URL"),
        ("http://", "absolute URL"),
        ("http://[::1", "absolute URL"),
        ("http://256.256.256.256/", "absolute URL"),
        ("http://127.0.0.1:99999/", "absolute URL"),
        ("ftp://127.0.0.1/", "expected https"),
        ("file:///etc/passwd", "expected https"),
        ("gopher://127.0.0.1:6379/_INFO", "expected https"),
        ("javascript:alert(1)", "expected https"),
        ("http://user@127.0.0.1/", "without user name"),
        ("http://user:pass@127.0.0.1/", "without user name"),
        ("http://:pass@127.0.0.1/", "without user name"),
        ("http://example.com@127.0.0.1/", "without user name"),
    ] {
        let problem = house.register(url).await.expect_err(url);
        assert_eq!(problem.errors[0].path, "$.url", "{url}");
        assert!(problem.errors[0].message.contains(expected), "{url}: {problem}");
    }
    let long = format!("http://127.0.0.1/{}", "a".repeat(2048));
    assert!(house.register(&long).await.expect_err("long").errors[0].message.contains("2048"));
    assert_eq!(house.known().await, 0);
}

/// Answers in turn: what a name resolves to when it is looked up the first time, the second, and so on.
struct Fickle {
    turns: Vec<IpAddr>,
    asked: AtomicUsize,
}

impl Resolve for Fickle {
    fn resolve(&self, _: Name) -> Resolving {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst);
        let address = self.turns[turn.min(self.turns.len() - 1)];
        Box::pin(async move { Ok(Box::new(std::iter::once((address, 0_u16).into())) as Addrs) })
    }
}

/// The name is outside when it is checked, and inside when it is called.
#[tokio::test]
async fn a_name_that_changes_between_check_and_connect_is_not_called() {
    let inside = Inside::new().await;
    let outside: IpAddr = "1.1.1.1".parse().expect("an address");
    for hidden in ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
        let turns = vec![outside, hidden.parse().expect("an address")];
        let resolver = Arc::new(Fickle { turns, asked: AtomicUsize::new(0) });
        // The check, at registration or before the call.
        let seen = NetGuard::default().resolver_over(Arc::clone(&resolver) as Arc<dyn Resolve>);
        let first = seen.resolve("rebind.test".parse().expect("a name")).await.map(Iterator::count);
        assert_eq!(first.ok(), Some(1), "it is outside when it is looked at");
        // The call looks it up itself, and connects to nothing but what it judged.
        let sender = Sender::over(&settings(&[]), resolver).expect("a client");
        let error = send(&sender, &format!("http://rebind.test:{}/", inside.port)).await.expect_err("inside now");
        assert!(matches!(error, SendError::Refused(Refused::Name { .. })), "{hidden}: {error:?}");
    }
    assert_eq!(inside.connections(), 0);
}

/// Of a name with addresses of both kinds only the outside ones are connected to.
#[tokio::test]
async fn a_name_with_both_kinds_of_addresses_leads_only_outside() {
    struct Both;
    impl Resolve for Both {
        fn resolve(&self, _: Name) -> Resolving {
            let found =
                ["127.0.0.1", "10.0.0.1", "127.0.0.2"].map(|a| (a.parse::<IpAddr>().expect("one"), 0_u16).into());
            Box::pin(async move { Ok(Box::new(found.into_iter()) as Addrs) })
        }
    }
    let inside = Inside::new().await;
    // Only 127.0.0.2 counts as outside here, and nobody listens there.
    let sender = Sender::over(&settings(&["127.0.0.2/32"]), Arc::new(Both)).expect("a client");
    let error = send(&sender, &format!("http://both.test:{}/", inside.port)).await.expect_err("nobody there");
    assert!(matches!(error, SendError::Connect(_)), "{error:?}");
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn redirects_lead_nowhere() {
    let inside = Inside::new().await;
    for status in [301, 302, 303, 307, 308] {
        for location in [
            format!("http://127.0.0.1:{}/stolen", inside.port),
            format!("http://localhost:{}/stolen", inside.port),
            format!("//127.0.0.1:{}/stolen", inside.port),
        ] {
            let head = format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            let receiver = Inside::answering(head).await;
            let sender = Sender::new(&settings(&["127.0.0.0/8"])).expect("a client");
            let answer = send(&sender, &format!("http://127.0.0.1:{}/", receiver.port)).await.expect("answered");
            assert_eq!(answer.status, status);
        }
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn allowed_networks_are_reached_in_every_form_and_nothing_else_is() {
    let inside = Inside::new().await;
    let house = House::new(&["127.0.0.0/8", "::1/128"]).await;
    let sender = Sender::new(&settings(&["127.0.0.0/8", "::1/128"])).expect("a client");
    for host in ["127.0.0.1", "0x7f.1", "2130706433", "localhost"] {
        let url = format!("http://{host}:{}/", inside.port);
        house.register(&url).await.expect(host);
        assert_eq!(send(&sender, &url).await.expect(host).status, 200, "{host}");
    }
    // Whether such a socket can be opened is the machine's affair; that it is tried is the guard's.
    match send(&sender, &format!("http://[::ffff:127.0.0.1]:{}/", inside.port)).await {
        Ok(answer) => assert_eq!(answer.status, 200),
        Err(error) => assert!(matches!(error, SendError::Connect(_)), "{error:?}"),
    }
    for host in ["10.0.0.1", "169.254.169.254", "[fe80::1]"] {
        house.register(&format!("http://{host}/")).await.expect_err(host);
    }
}
