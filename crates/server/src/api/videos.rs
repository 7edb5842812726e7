//! Making, finding, cancelling and removing jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::ApiError;
use super::gate::{Peer, has_already, text};
use crate::ask::{self, Ask, Understood};
use crate::auth::Caller;
use crate::blobs::{Pinned, sha256};
use crate::bodies::{Held, most_of_body};
use crate::form::{self, Content, Form};
use crate::id::is_name;
use crate::job::{Job, JobError, Status, code};
use crate::metrics::Model;
use crate::pictures;
use crate::server::{Limits, Server};
use crate::store::{Asked, Created, Page, Room, StoreError, queries};

type Answer = Result<Response, ApiError>;

/// Under so many bytes of free disk no job is taken.
const DISK_LEAST: u64 = 2 << 30;
/// A body may take so long, and a second more for each 100 kB.
const BODY_TIME: Duration = Duration::from_secs(60);
const BODY_RATE: u64 = 100_000;
/// Longest Idempotency-Key.
const IDEMPOTENCY_KEY: usize = 255;

/// `POST /v1/videos`
pub async fn create(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let wish = wish(&server, &caller, &peer, &headers, body).await?;
    take(&server, wish.asked, wish.input).await
}

/// A request for a video as it was understood, before it is a job.
pub struct Wish {
    pub asked: Asked,
    /// Its picture.
    pub input: Option<Pinned>,
}

/// Reads a request for a video.
pub async fn wish(
    server: &Arc<Server>,
    caller: &Caller,
    peer: &Peer,
    headers: &HeaderMap,
    body: Body,
) -> Result<Wish, ApiError> {
    let content = admit(server, caller, headers)?;
    let (form, _room) = read(server, peer, content, headers, body).await?;
    let attempt = Try::of(headers)?;
    let prints = fingerprint(&form);
    let ask = Ask::new(&form)?;
    if ask.priority != 0 && !caller.is_admin {
        return Err(ApiError::field("priority", "only keys of administrators may set it"));
    }
    let picture = form.picture;
    let (model, note) = server.models.asked(ask.model.as_deref()).ok_or_else(|| ask::unknown_model(&server.models))?;
    let warnings: Vec<String> = ask.warnings.iter().cloned().chain(note).collect();
    let (priority, user) = (ask.priority, ask.user.clone());

    let input = keep_picture(server, picture).await?;
    let path = input.as_ref().map(|input| server.blobs.path(input.digest()));
    let understood = match ask.request(&model.pipeline, path) {
        Ok(request) => understood(server, &model.name, request, user).await,
        Err(error) => Err(error),
    };
    let understood = match understood {
        Ok(understood) => understood,
        Err(error) => {
            let_go(server, input);
            return Err(error);
        }
    };
    let asked = Asked {
        key: caller.name.clone(),
        priority,
        model: model.name.clone(),
        request: understood.request,
        meant: understood.meant,
        input: input.as_ref().map(|input| input.digest().to_string()),
        warnings: warnings.into_iter().chain(understood.warnings).collect(),
        remixed_from: None,
        idem: attempt.key,
        body: prints,
        is_retry: attempt.is_retry,
    };
    Ok(Wish { asked, input })
}

/// The picture of a request that became no job is not kept.
pub fn let_go(server: &Server, input: Option<Pinned>) {
    let digest = input.as_ref().map(|input| input.digest().to_string());
    drop(input);
    if let Some(Err(error)) = digest.map(|digest| server.forget(&[digest])) {
        eprintln!("navicache: {error}"); // the sweep comes after it
    }
}

/// `POST /v1/videos/{id}/remix`
pub async fn remix(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let job = find(&server, &caller, &id)?;
    let gone = || {
        let message = "the video was there, and is not kept any more";
        ApiError::new(StatusCode::GONE, "video_expired", message)
    };
    if job.is_expired() {
        return Err(gone()); // a picture that it started from has left with it
    }
    let content = admit(&server, &caller, &headers)?;
    let (form, _room) = read(&server, &peer, content, &headers, body).await?;
    let attempt = Try::of(&headers)?;
    let prompt = ask::prompt(&form)?;
    let mut request: navicache_engine::Request =
        serde_json::from_str(&job.request).map_err(|_| ApiError::missing("video_not_found", "its request is gone"))?;
    request.prompt = prompt;
    let input = job.input.as_ref().map(|digest| server.blobs.hold(digest).ok_or_else(gone)).transpose()?;
    request.image = input.as_ref().map(|input| server.blobs.path(input.digest()));
    let mut warnings = ask::beside_prompt(&form);
    let understood = understood(&server, &job.model, request, job.meant.user.clone()).await?;
    warnings.extend(understood.warnings);
    let asked = Asked {
        key: caller.name.clone(),
        priority: 0,
        model: job.model.clone(),
        request: understood.request,
        meant: understood.meant,
        input: job.input.clone(),
        warnings,
        remixed_from: Some(job.id.clone()),
        idem: attempt.key,
        body: sha256(format!("{} {}", job.id, fingerprint(&form)).as_bytes()),
        is_retry: attempt.is_retry,
    };
    take(&server, asked, input).await
}

/// What can be refused before a byte of the body is read.
fn admit(server: &Server, caller: &Caller, headers: &HeaderMap) -> Result<Content, ApiError> {
    let refuse = |error: ApiError| {
        server.metrics.refuse(error.code);
        error
    };
    let unsupported =
        |message: &str| refuse(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(unsupported("expected a body without Content-Encoding"));
    }
    let content = text(headers, header::CONTENT_TYPE).and_then(Content::of);
    let content =
        content.ok_or_else(|| unsupported("expected multipart/form-data with a boundary, or application/json"))?;
    let most = most_of_body(server.options.limits.max_upload);
    if length(headers).is_some_and(|length| length > most) {
        return Err(refuse(ApiError::too_large(most)));
    }
    let unavailable = |code, message| refuse(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message).after(5));
    if server.is_stopping() {
        return Err(unavailable("stopping", "the server stops; try again when it is back"));
    }
    if server.disk_free().is_some_and(|free| free < DISK_LEAST) {
        return Err(unavailable("disk_full", "the server's disk is nearly full; it takes no more jobs"));
    }
    let (places, _) = server.board.queue();
    let room = room(&server.options.limits, &caller.name);
    if places.len() >= room.all {
        return Err(refuse(queue_full(server, (places.len(), 0), room)));
    }
    Ok(content)
}

/// How many jobs may wait. Where there are no keys, none has a share of its own.
fn room(limits: &Limits, key: &str) -> Room {
    let of_key = if key.is_empty() { limits.max_queue } else { limits.max_queue_per_key };
    Room { all: limits.max_queue, of_key }
}

/// `waiting` are all jobs that do, and those of the key.
fn queue_full(server: &Server, waiting: (usize, usize), room: Room) -> ApiError {
    let (all, of_key) = waiting;
    let (_, running) = server.board.queue();
    let until_next = running.and_then(|running| running.eta).unwrap_or(10.0).clamp(1.0, 600.0);
    let message = match all >= room.all {
        true => format!("the queue is full: {all} jobs wait, {} may; try again later", room.all),
        false => {
            format!("the queue is full for this key: {of_key} jobs of it wait, {} may; try again later", room.of_key)
        }
    };
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).after(until_next.ceil() as u64)
}

/// A body as fields. Its room is held as long as what comes beside them.
async fn read(
    server: &Server,
    peer: &Peer,
    content: Content,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Form, Arc<Held>), ApiError> {
    let most = server.options.limits.max_upload;
    let length = length(headers).unwrap_or(most_of_body(most));
    let time = BODY_TIME + Duration::from_secs(length / BODY_RATE);
    let (body, room) = server.bodies.counted(body);
    let reads = peer.seat.reads_body();
    let form = timeout(time, form::read(content, body, most)).await;
    drop(reads);
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive in time");
    let busy = || {
        let message = "others send too much at the same time; try again";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).after(5)
    };
    let form = match form {
        Err(_) => Err(late()),
        Ok(Err(_)) if room.was_refused() => Err(busy()),
        Ok(form) => form,
    };
    Ok((form.inspect_err(|error| server.metrics.refuse(error.code))?, room))
}

/// What a request says of the length of its body.
fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

/// Which attempt of a client's it is.
struct Try {
    key: Option<String>,
    is_retry: bool,
}

impl Try {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let key = headers.get("idempotency-key").map(|key| {
            let is_good = |b: &u8| (0x21..0x7f).contains(b);
            let bytes = key.as_bytes();
            match (1..=IDEMPOTENCY_KEY).contains(&bytes.len()) && bytes.iter().all(is_good) {
                true => Ok(String::from_utf8_lossy(bytes).into_owned()),
                false => Err(ApiError::bad(
                    "invalid_value",
                    format!("Idempotency-Key: expected 1 to {IDEMPOTENCY_KEY} visible ASCII characters"),
                )),
            }
        });
        let count = text(headers, "x-stainless-retry-count").and_then(|count| count.parse::<u32>().ok());
        Ok(Try { key: key.transpose()?, is_retry: count.is_some_and(|count| count >= 1) })
    }
}

/// What tells a request from another: its fields and its picture, not the bytes of its body.
fn fingerprint(form: &Form) -> String {
    let picture = form.picture.as_ref().map(|bytes| sha256(bytes));
    sha256(json!([form.fields, picture]).to_string().as_bytes())
}

/// Looks at a picture, and keeps it.
async fn keep_picture(server: &Arc<Server>, picture: Option<axum::body::Bytes>) -> Result<Option<Pinned>, ApiError> {
    let Some(bytes) = picture else { return Ok(None) };
    let blobs = server.blobs.clone();
    let kept = tokio::task::spawn_blocking(move || {
        pictures::check(&bytes).map_err(bad_image)?;
        blobs.put(&bytes).map_err(|e| ApiError::from(StoreError::from(e)))
    });
    kept.await.map_err(|_| internal())?.map(Some)
}

fn bad_image(reason: String) -> ApiError {
    let mut error = ApiError::field("input_reference", &reason);
    error.code = "bad_image";
    error
}

fn internal() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server made a mistake; its log says which")
}

/// What a request means to the engine.
async fn understood(
    server: &Arc<Server>,
    model: &str,
    request: navicache_engine::Request,
    user: Option<String>,
) -> Result<Understood, ApiError> {
    let (of, model) = (server.clone(), model.to_string());
    // A picture is unpacked here: one at a time, and not where requests are answered.
    let _one = match request.image {
        Some(_) => Some(server.pictures.acquire().await.map_err(|_| internal())?),
        None => None,
    };
    let checked = tokio::task::spawn_blocking(move || ask::understand(&of, &model, request, user));
    checked.await.map_err(|_| internal())?
}

/// Writes a job down, and says what came of it.
async fn take(server: &Arc<Server>, asked: Asked, input: Option<Pinned>) -> Answer {
    let room = room(&server.options.limits, &asked.key);
    let (model, prompt) = (asked.model.clone(), asked.meant.prompt.clone());
    // The picture is let go of with the answer, which comes after the commit, even where the client has gone.
    let (created, input) =
        server.store.write(move |writer| Ok((queries::create(writer, &asked, room)?, input))).await?;
    match created {
        Created::New(job) => {
            server.metrics.created.get_or_create(&Model { model }).inc();
            if server.options.log_prompts {
                eprintln!("navicache: {}: {}", job.id, prompt.escape_debug());
            }
            server.board.append(&job);
            Ok(Json(server.board.video(&job)).into_response())
        }
        Created::Replayed(job) => {
            let mut response = Json(server.board.video(&job)).into_response();
            response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
            Ok(response)
        }
        Created::Conflict => {
            let_go(server, input);
            let message = "this Idempotency-Key stands for another request";
            Err(ApiError::new(StatusCode::CONFLICT, "idempotency_conflict", message).for_good())
        }
        Created::Full(all, of_key) => {
            let_go(server, input);
            server.metrics.refuse("queue_full");
            Err(queue_full(server, (all, of_key), room))
        }
    }
}

/// The caller's job of that name.
pub fn find(server: &Server, caller: &Caller, id: &str) -> Result<Job, ApiError> {
    if !is_name(id) {
        return Err(ApiError::no_video());
    }
    let job = server.store.read(|db| queries::job(db, id))?.ok_or_else(ApiError::no_video)?;
    if job.key == caller.name || caller.is_admin { Ok(job) } else { Err(ApiError::no_video()) }
}

/// `GET /v1/videos/{id}`
pub async fn retrieve(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    const POLL: (f64, f64) = (500.0, 10_000.0);
    let job = find(&server, &caller, &id)?;
    let body = server.board.video(&job).to_string();
    let tag = format!("\"{}\"", &sha256(body.as_bytes())[..32]);
    if has_already(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let head = [(header::CONTENT_TYPE, "application/json".to_string()), (header::ETAG, tag)];
    let mut response = (head, body).into_response();
    if !job.status.is_final() {
        let wait = server.board.eta(&id).unwrap_or(20.0) * 1000.0 / 20.0;
        let wait = HeaderValue::from(wait.clamp(POLL.0, POLL.1) as u64);
        response.headers_mut().insert("openai-poll-after-ms", wait);
    }
    Ok(response)
}

/// What a list may be asked for.
#[derive(Debug, Deserialize)]
pub struct Listing {
    after: Option<String>,
    limit: Option<String>,
    order: Option<String>,
    status: Option<String>,
}

/// `GET /v1/videos`
pub async fn list(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Query(listing): Query<Listing>,
) -> Answer {
    const LIMIT: (usize, usize) = (20, 100);
    let limit = match &listing.limit {
        None => LIMIT.0,
        Some(limit) => {
            let number = limit.parse().ok().filter(|limit| (1..=LIMIT.1).contains(limit));
            number.ok_or_else(|| ApiError::field("limit", &format!("expected 1 to {}", LIMIT.1)))?
        }
    };
    let ascending = match listing.order.as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(ApiError::field("order", "expected asc or desc")),
    };
    let status = listing.status.as_deref().map(|name| {
        Status::from_name(name)
            .ok_or_else(|| ApiError::field("status", "expected queued, in_progress, completed or failed"))
    });
    let after = listing.after.filter(|after| !after.is_empty());
    if after.as_ref().is_some_and(|after| !is_name(after)) {
        return Err(ApiError::field("after", "expected the id of a video"));
    }
    let page = Page { key: Some(caller.name), status: status.transpose()?, after, ascending, limit };
    let (jobs, has_more) = server.store.read(|db| queries::list(db, &page))?;
    let videos: Vec<Value> = jobs.iter().map(|job| server.board.video(job)).collect();
    let id = |job: Option<&Job>| job.map(|job| job.id.clone());
    let body = json!({
        "object": "list", "data": videos, "first_id": id(jobs.first()), "last_id": id(jobs.last()), "has_more": has_more,
    });
    Ok(Json(body).into_response())
}

/// `DELETE /v1/videos/{id}`
pub async fn delete(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer {
    let job = find(&server, &caller, &id)?;
    let of = id.clone();
    if !server.store.write(move |writer| queries::delete(writer, &of)).await? {
        return Err(ApiError::no_video()); // somebody else was faster
    }
    server.board.cancel(&id);
    let gone = JobError { code: code::CANCELLED.to_string(), message: "it was deleted".to_string() };
    if !job.status.is_final() {
        server.tell(&Job { status: Status::Failed, error: Some(gone), ..job.clone() });
    }
    let made = job.made;
    let digests = [job.input, made.video, made.thumbnail, made.spritesheet, made.report];
    let digests: Vec<String> = digests.into_iter().flatten().collect();
    server.forget(&digests)?;
    Ok(Json(json!({"id": id, "object": "video.deleted", "deleted": true})).into_response())
}

/// `POST /v1/videos/{id}/cancel`
pub async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer {
    find(&server, &caller, &id)?;
    let error = JobError { code: code::CANCELLED.to_string(), message: "it was cancelled".to_string() };
    let of = id.clone();
    let was_open = server.store.write(move |writer| queries::cancel(writer, &of, &error)).await?;
    if !was_open {
        let message = "the video is finished; there is nothing to cancel";
        return Err(ApiError::new(StatusCode::CONFLICT, "already_finished", message).for_good());
    }
    server.board.cancel(&id);
    let job = find(&server, &caller, &id)?;
    server.tell(&job);
    Ok(Json(server.board.video(&job)).into_response())
}

/// Routes of OpenAI's that are not built.
pub async fn not_supported() -> ApiError {
    ApiError::missing("not_supported", "this server makes videos from text, from a picture, and by remix")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::test_server;

    #[tokio::test]
    async fn a_share_of_the_queue_is_a_keys() {
        let folder = tempfile::tempdir().unwrap();
        let server = test_server(folder.path());
        let limits = &server.options.limits;
        assert_eq!((room(limits, "").of_key, room(limits, "ann").of_key), (1000, 100));
        for (waiting, key, expected) in [
            ((1000, 1000), "", "the queue is full: 1000 jobs wait, 1000 may;"),
            ((1000, 7), "ann", "the queue is full: 1000 jobs wait, 1000 may;"),
            ((300, 100), "ann", "the queue is full for this key: 100 jobs of it wait, 100 may;"),
        ] {
            let error = queue_full(&server, waiting, room(limits, key));
            assert!(error.message.starts_with(expected), "{}", error.message);
        }
    }
}
