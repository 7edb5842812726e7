//! What every request passes: a name for it, a count, who may ask from where, and who asks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, in_shape};
use crate::auth::Denied;
use crate::blobs::hex;
use crate::id::random_bytes;
use crate::metrics::{Http, Route};
use crate::seats::Seat;
use crate::server::Server;

/// A request's connection.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    pub seat: Arc<Seat>,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ID_MOST: usize = 64;

/// Names a request, or keeps the client's name for it.
pub async fn named(request: Request, next: Next) -> Response {
    let is_good = |id: &HeaderValue| {
        (1..=ID_MOST).contains(&id.len())
            && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(b))
    };
    let given = request.headers().get(REQUEST_ID).filter(|id| is_good(id)).cloned();
    let made = || HeaderValue::from_str(&format!("req_{}", hex(&random_bytes::<12>()))).ok();
    let id = given.or_else(made);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    id.map(|id| headers.insert(REQUEST_ID, id));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Counts, and gives every error its shape.
pub async fn counted(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let clock = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_string();
    let method = match *request.method() {
        Method::GET | Method::HEAD | Method::POST | Method::DELETE | Method::OPTIONS => request.method().to_string(),
        _ => "other".to_string(), // a label that clients cannot make up
    };
    let response = in_shape(next.run(request).await);
    let status = response.status().as_u16();
    let labels = Http { method, route: route.clone(), status };
    server.metrics.http_requests.get_or_create(&labels).inc();
    server.metrics.http_seconds.get_or_create(&Route { route }).observe(clock.elapsed().as_secs_f64());
    response
}

/// Refuses what a page of another origin sends, and names that are not this server's (DNS rebinding).
pub async fn origins(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let refuse = |code, message: String| {
        server.metrics.refuse(code);
        ApiError::new(StatusCode::FORBIDDEN, code, message).into_response()
    };
    let headers = request.headers();
    let host = text(headers, header::HOST).unwrap_or_default();
    if !is_our_name(&server, host) {
        return refuse("bad_host", "this server is not called so; `--name` adds names".to_string());
    }
    let Some(origin) = headers.get(header::ORIGIN).cloned() else { return next.run(request).await };
    let said = origin.to_str().unwrap_or_default().to_string();
    let scheme = if server.options.tls.is_some() { "https" } else { "http" };
    if said.eq_ignore_ascii_case(&format!("{scheme}://{host}")) {
        return next.run(request).await;
    }
    if !server.options.cors.contains(&said) {
        return refuse("bad_origin", "pages of this origin may not use this server; `--cors` allows one".to_string());
    }
    let mut response = match *request.method() {
        Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    let answer = response.headers_mut();
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    answer.insert(header::VARY, HeaderValue::from_static("Origin"));
    let methods = HeaderValue::from_static("GET, HEAD, POST, DELETE");
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allowed = "authorization, content-type, idempotency-key, last-event-id, range, if-range, x-request-id";
    answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    let shown = "x-request-id, openai-poll-after-ms, idempotency-replayed, retry-after, content-range, etag";
    answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(shown));
    response
}

fn is_our_name(server: &Server, host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let known = [&server.options.host].into_iter().chain(&server.options.names);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || known.into_iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Finds out who asks; the routes behind get a [`Caller`](crate::auth::Caller).
pub async fn keys(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let address = request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.address.ip());
    let caller = server.keys.caller(text(request.headers(), header::AUTHORIZATION), address);
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => {
            server.metrics.auth_failures.inc();
            refused(&denied)
        }
    }
}

fn refused(denied: &Denied) -> Response {
    match denied {
        Denied::Unknown => {
            let message = "expected a key of this server: Authorization: Bearer nvk_...";
            let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        Denied::TooMany => {
            let message = "too many wrong keys came from this address; wait a minute";
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", message);
            error.after(60).for_good().into_response()
        }
    }
}

/// Whether a client says that it has what a tag stands for (RFC 9110, 13.1.2).
pub fn has_already(headers: &HeaderMap, tag: &str) -> bool {
    let is_it = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag;
    text(headers, header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|known| is_it(known.trim())))
}

/// A header as text.
pub fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
