//! The dashboard: a static page, its style and its modules, compiled in.
//!
//! The page holds nothing of this server: all it shows comes from `/v1`, with the reader's own token. So everybody may
//! read it, also while the store is away. What a provider or a producer wrote is only ever set as text; the policy below
//! is the second line: no script but these files runs, nothing else is fetched, and no string becomes markup.

use axum::response::{IntoResponse, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};

use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::path::Id;
use super::routes::Routes;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// The page.
const PAGE: Asset = Asset { name: "index.html", kind: HTML, text: include_str!("index.html") };

macro_rules! assets {
    ($($name:literal: $kind:ident),* $(,)?) => {
        /// What the page is made of, below `/dashboard/`.
        const ASSETS: &[Asset] = &[$(Asset { name: $name, kind: $kind, text: include_str!($name) }),*];
        /// Their names, for the document.
        pub(super) const NAMES: &[&str] = &[$($name),*];
    };
}

assets! {
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "dead.js": SCRIPT,
    "dialog.js": SCRIPT,
    "dom.js": SCRIPT,
    "format.js": SCRIPT,
    "hooks.js": SCRIPT,
    "icon.svg": IMAGE,
    "jobs.js": SCRIPT,
    "json.js": SCRIPT,
    "live.js": SCRIPT,
    "overview.js": SCRIPT,
    "parts.js": SCRIPT,
    "provider.js": SCRIPT,
    "style.css": STYLE,
}

/// A file that was compiled in.
struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

/// The routes, and what is said of them. They need nothing of the server.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Routes<S> {
    let page = Operation::open("getDashboard", "The dashboard")
        .about("A page for people. It asks this API, with the token that they enter.")
        .answer_as(200, "The page", HTML);
    let asset = Operation::open("getDashboardFile", "Styles and scripts of the dashboard")
        .answer_as(200, "The file", "*/*")
        .problems(&[ProblemKind::NotFound]);
    Routes::new().get("/", async |headers: HeaderMap| PAGE.answer(&headers), page).get(
        "/dashboard/{file}",
        async |Id(name): Id, headers: HeaderMap| file(&name, &headers),
        asset,
    )
}

fn file(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    asset
        .map(|asset| asset.answer(headers))
        .ok_or_else(|| Problem::new(ProblemKind::NotFound, "the dashboard has no such file"))
}

impl Asset {
    /// The file, or 304 where the reader has it already. It is asked about every time, so that after an upgrade no page
    /// is made of files of two versions.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let tag = self.tag();
        let known = headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let fixed = [
            (CONTENT_TYPE, self.kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            (CACHE_CONTROL, "no-cache"),
            // For browsers that do not know frame-ancestors.
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        let body = if known { "" } else { self.text };
        let status = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        // Weak: the same file may be packed for one reader and plain for another.
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(ETAG, tag);
        }
        response
    }

    fn tag(&self) -> String {
        let hash = Sha256::digest(self.text);
        let short: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        format!("W/\"{short}\"")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_served_and_every_module_that_is_imported_is_a_file() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/dashboard");
        let there = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut there: Vec<String> = there.map(|name| name.to_string_lossy().into_owned()).collect();
        there.retain(|name| name != "mod.rs" && name != PAGE.name);
        there.sort();
        assert_eq!(there, NAMES);
        for asset in ASSETS.iter().filter(|asset| asset.kind == SCRIPT) {
            let imported = asset.text.split(" from './").skip(1).filter_map(|rest| rest.split('\'').next());
            for name in imported {
                assert!(NAMES.contains(&name), "{} imports {name}", asset.name);
            }
        }
    }

    /// The policy would stop them; nothing is written that relies on it.
    #[test]
    fn nothing_in_the_files_turns_text_into_markup_or_reaches_elsewhere() {
        let ways = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"];
        for asset in ASSETS.iter().chain([&PAGE]) {
            for way in ways {
                assert!(!asset.text.contains(way), "{} has {way}", asset.name);
            }
            let elsewhere = asset.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("https://") && !elsewhere.contains("http://"), "{}", asset.name);
        }
        let inline = PAGE.text.split("<script").skip(1).filter(|rest| !rest.contains("></script>")).count();
        assert_eq!((inline, PAGE.text.matches("<style").count(), PAGE.text.matches(" style=").count()), (0, 0, 0));
    }
}
