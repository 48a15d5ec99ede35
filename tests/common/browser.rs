//! A real browser without a window, driven over WebDriver: a client of the few commands that tests need.

use std::panic::AssertUnwindSafe;
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{OnceCell, Semaphore};

use super::world::checkout;
use super::{SOON, holds, until};

/// Browsers at once: each is several processes.
static PLACES: Semaphore = Semaphore::const_new(2);
/// The key of an element in an answer (W3C WebDriver).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
const ARGUMENTS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// One session of its own, with a profile of its own.
pub struct Browser {
    http: reqwest::Client,
    session: String,
    /// Where all of its pages are.
    pub origin: String,
    /// Chromium ends with it.
    driver: Child,
    _profile: tempfile::TempDir,
}

/// Runs a test in a browser at that origin, and ends it however the test ends. Afterwards nothing was asked of another
/// host, no script failed and no policy was broken; answers that are no success are the test's business.
pub async fn in_browser(origin: String, test: impl AsyncFnOnce(&Browser)) {
    let _place = PLACES.acquire().await.expect("a place");
    let browser = Browser::start(origin).await;
    let done = AssertUnwindSafe(async {
        test(&browser).await;
        browser.check().await;
    });
    let done = done.catch_unwind().await;
    if done.is_err() {
        browser.tell().await;
    }
    browser.end().await;
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// Browser and driver, installed where they are missing: one that cannot be had is a failure, never a skipped test.
async fn programs() -> &'static (String, String) {
    static PROGRAMS: OnceCell<(String, String)> = OnceCell::const_new();
    PROGRAMS
        .get_or_init(async || {
            let script = checkout().join("deploy/services");
            let output = Command::new(script).arg("browser").output().await.expect("deploy/services");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said = String::from_utf8(output.stdout).expect("text");
            let named = |name: &str| {
                let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                value.unwrap_or_else(|| panic!("no {name}: {said}")).to_owned()
            };
            (named("browser"), named("driver"))
        })
        .await
}

impl Browser {
    async fn start(origin: String) -> Self {
        let (program, driver) = programs().await;
        let profile = tempfile::tempdir().expect("a folder");
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the driver starts");
        let mut said = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
        let port = tokio::time::timeout(SOON, async {
            while let Some(line) = said.next_line().await.expect("text") {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
            panic!("the driver ended");
        });
        let port = port.await.expect("the driver listens");
        // Whatever it says later must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().expect("a client");
        let arguments: Vec<String> = (ARGUMENTS.iter().map(|argument| (*argument).to_owned()))
            .chain([format!("--user-data-dir={}", profile.path().join("profile").display())])
            .chain(["--window-size=1280,900".to_owned()])
            .collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "binary": program, "args": arguments, "perfLoggingPrefs": { "enableNetwork": true, "enablePage": false } },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let base = format!("http://127.0.0.1:{port}/session");
        let begun = Self::ask(&http, "POST", &base, Some(&wanted)).await.expect("a session");
        let session = format!("{base}/{}", begun["sessionId"].as_str().expect("an id"));
        Self { http, session, origin, driver, _profile: profile }
    }

    async fn end(mut self) {
        Self::ask(&self.http, "DELETE", &self.session, None).await.ok();
        self.driver.kill().await.ok();
    }

    async fn ask(http: &reqwest::Client, method: &str, url: &str, body: Option<&Value>) -> Result<Value, Value> {
        let mut request = http.request(method.parse().expect("a method"), url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("the driver answers");
        let fine = response.status().is_success();
        let mut answer: Value = serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON");
        let value = answer["value"].take();
        if fine { Ok(value) } else { Err(value) }
    }

    async fn try_post(&self, path: &str, body: Value) -> Result<Value, Value> {
        Self::ask(&self.http, "POST", &format!("{}/{path}", self.session), Some(&body)).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.try_post(path, body.clone()).await;
        answer.unwrap_or_else(|error| panic!("{path} {body}: {}", error["message"]))
    }

    /// Goes to a view, such as `#/jobs`.
    pub async fn open(&self, view: &str) {
        self.post("url", json!({ "url": format!("{}/{view}", self.origin) })).await;
    }

    pub async fn reload(&self) {
        self.post("refresh", json!({})).await;
    }

    /// What a function body of JavaScript returns.
    pub async fn run(&self, script: &str, arguments: Value) -> Value {
        self.post("execute/sync", json!({ "script": script, "args": arguments })).await
    }

    /// A command of the browser's own protocol.
    pub async fn command(&self, name: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({ "cmd": name, "params": parameters })).await
    }

    /// All text that can be seen.
    pub async fn text(&self) -> String {
        let text = self.run("return document.body.innerText", json!([])).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// The text of the first element that fits.
    pub async fn text_of(&self, css: &str) -> Option<String> {
        let text = self.run("return document.querySelector(arguments[0])?.textContent", json!([css])).await;
        text.as_str().map(str::to_owned)
    }

    /// Waits for a text to be seen.
    pub async fn sees(&self, text: &str) {
        let mut last = String::new();
        let seen = until("", SOON * 2, async || {
            last = self.text().await;
            holds(last.contains(text))
        });
        assert!(tokio::time::timeout(SOON, seen).await.is_ok(), "{text:?} is not seen within {SOON:?}:\n{last}");
    }

    /// The element that an XPath finds, once there is one that can be seen.
    async fn element(&self, path: &str) -> String {
        let seen = until("", SOON * 2, async || {
            let found = self.try_post("element", json!({ "using": "xpath", "value": path })).await.ok()?;
            let id = found[ELEMENT].as_str()?.to_owned();
            let url = format!("{}/element/{id}/displayed", self.session);
            (Self::ask(&self.http, "GET", &url, None).await.ok()? == true).then_some(id)
        });
        match tokio::time::timeout(SOON, seen).await {
            Ok(id) => id,
            Err(_) => panic!("there is no {path} within {SOON:?}:\n{}", self.text().await),
        }
    }

    /// Clicks as a person does: where it is covered or goes away meanwhile, again.
    async fn click_at(&self, path: &str) {
        until(&format!("{path} is clicked"), SOON, async || {
            let id = self.element(path).await;
            self.try_post(&format!("element/{id}/click"), json!({})).await.ok().map(drop)
        })
        .await;
    }

    /// The button of that name; in the open dialog where there is one.
    pub async fn press(&self, name: &str) {
        let inside = if self.run("return document.querySelector('dialog[open]') !== null", json!([])).await == true {
            "//dialog"
        } else {
            ""
        };
        self.click_at(&format!("{inside}//button[normalize-space()='{name}' or @aria-label='{name}'][not(@disabled)]"))
            .await;
    }

    /// The link of that text.
    pub async fn follow(&self, text: &str) {
        self.click_at(&format!("//a[normalize-space()='{text}']")).await;
    }

    /// Replaces what is in the field of that label.
    pub async fn fill(&self, label: &str, text: &str) {
        let id = self
            .element(&format!("//label[starts-with(normalize-space(),'{label}')]//*[self::input or self::textarea]"))
            .await;
        self.post(&format!("element/{id}/clear"), json!({})).await;
        self.post(&format!("element/{id}/value"), json!({ "text": text })).await;
    }

    /// Chooses an option of the field of that label.
    pub async fn choose(&self, label: &str, option: &str) {
        self.click_at(&format!(
            "//label[starts-with(normalize-space(),'{label}')]//option[normalize-space()='{option}']"
        ))
        .await;
    }

    /// Keys that go to whatever has the focus.
    pub async fn keys(&self, keys: &str) {
        let pressed: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|what| json!({ "type": what, "value": key.to_string() })))
            .collect();
        self.post("actions", json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": pressed }] })).await;
    }

    /// The size of the page, as on a telephone or a desk.
    pub async fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// `light` or `dark`.
    pub async fn scheme(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.command("Emulation.setEmulatedMedia", features).await;
    }

    /// A picture of the page, for whoever wants to look at it (`PACELINE_PICTURES` names a folder).
    pub async fn picture(&self, name: &str) {
        use base64::Engine as _;
        let Some(folder) = std::env::var_os("PACELINE_PICTURES") else { return };
        let shot = self.command("Page.captureScreenshot", json!({ "format": "png" })).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("a picture"));
        let path = std::path::Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(path, bytes.expect("base64")).expect("written");
    }

    /// What was logged since the last time: of the console, or of the network.
    pub async fn log(&self, kind: &str) -> Vec<Value> {
        self.post("se/log", json!({ "type": kind })).await.as_array().cloned().unwrap_or_default()
    }

    /// What the console complains about beside answers that are no success.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        let serious = entries.into_iter().filter(|entry| entry["level"] != "DEBUG" && entry["level"] != "INFO");
        serious.filter(|entry| entry["source"] != "network").map(|entry| entry["message"].to_string()).collect()
    }

    /// Addresses that were asked for since the last time, all of them of the own origin; what the policy stopped was not.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.log("performance").await;
        let parsed = entries.iter().filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok());
        let (mut sent, mut stopped) = (Vec::new(), Vec::new());
        for event in parsed {
            let (method, of) = (&event["message"]["method"], &event["message"]["params"]);
            // The browser's own first page; and icons of its fields, which are no requests.
            let is_ours = !of["documentURL"].as_str().unwrap_or_default().starts_with("chrome:");
            match (method.as_str(), of["request"]["url"].as_str()) {
                (Some("Network.requestWillBeSent"), Some(url)) if is_ours && !url.starts_with("data:") => {
                    sent.push((of["requestId"].clone(), url.to_owned()));
                }
                (Some("Network.loadingFailed"), _) if of["blockedReason"] == "csp" => {
                    stopped.push(of["requestId"].clone());
                }
                _ => {}
            }
        }
        sent.retain(|(id, _)| !stopped.contains(id));
        let inside = format!("{}/", self.origin);
        let elsewhere: Vec<_> = sent.iter().filter(|(_, url)| !url.starts_with(&inside)).collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        sent.into_iter().map(|(_, url)| url).collect()
    }

    async fn check(&self) {
        assert_eq!(self.complaints().await, [""; 0]);
        self.requests().await;
    }

    /// For whoever reads a failure.
    async fn tell(&self) {
        let script = "return location.href + '\\n' + document.body.innerText";
        let page = self.try_post("execute/sync", json!({ "script": script, "args": [] })).await.unwrap_or_default();
        eprintln!("---- the page\n{}", page.as_str().unwrap_or_default());
        let console = self.try_post("se/log", json!({ "type": "browser" })).await.unwrap_or_default();
        eprintln!("---- its console\n{console:#}");
    }
}
