//! The page: four files in the program, nothing from elsewhere.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use navicache_page::{BASICS, PALETTE, PARTS, PLOT};

use super::gate::has_already;
use crate::server::Server;

const HTML: &str = include_str!("../page.html");
const ICON: &str = include_str!("../favicon.svg");
/// What all pages share, then the page's own.
static CSS: LazyLock<String> = LazyLock::new(|| format!("{PALETTE}{PLOT}{BASICS}{}", include_str!("../page.css")));
static JS: LazyLock<String> = LazyLock::new(|| format!("{PARTS}{}", include_str!("../page.js")));

/// Scripts and styles of this server alone; pictures and videos that the page made of what it fetched.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' blob: data:; media-src 'self' blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// The routes of the page.
pub fn router() -> Router<Arc<Server>> {
    Router::new()
        .route("/", get(async |headers: HeaderMap| file(&headers, HTML, "text/html; charset=utf-8", &HTML_TAG)))
        .route("/page.css", get(async |headers: HeaderMap| file(&headers, &CSS, "text/css; charset=utf-8", &CSS_TAG)))
        .route(
            "/page.js",
            get(async |headers: HeaderMap| file(&headers, &JS, "text/javascript; charset=utf-8", &JS_TAG)),
        )
        .route("/favicon.svg", get(async |headers: HeaderMap| file(&headers, ICON, "image/svg+xml", &ICON_TAG)))
}

static HTML_TAG: LazyLock<String> = LazyLock::new(|| tag(HTML));
static CSS_TAG: LazyLock<String> = LazyLock::new(|| tag(&CSS));
static JS_TAG: LazyLock<String> = LazyLock::new(|| tag(&JS));
static ICON_TAG: LazyLock<String> = LazyLock::new(|| tag(ICON));

fn tag(text: &str) -> String {
    format!("\"{}\"", &crate::blobs::sha256(text.as_bytes())[..16])
}

fn file(headers: &HeaderMap, text: &'static str, kind: &'static str, tag: &str) -> Response {
    let head = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, tag),
    ];
    match has_already(headers, tag) {
        true => (StatusCode::NOT_MODIFIED, head).into_response(),
        false => (head, text).into_response(),
    }
}
