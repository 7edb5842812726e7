//! What happens to a job, as it happens: `text/event-stream`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::ApiError;
use super::gate::text;
use super::videos::find;
use crate::auth::Caller;
use crate::board::{DONE, Message};
use crate::metrics::Kind;
use crate::server::Server;
use crate::store::queries;

/// A silent connection is cut by proxies; this keeps it.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Streams in all.
const STREAMS: i64 = 256;
/// Chunks that a slow reader may be behind.
const BEHIND: usize = 16;

/// Where to go on.
#[derive(Debug, Deserialize)]
pub struct After {
    after: Option<u64>,
}

/// `GET /v1/videos/{id}/events`
pub async fn events(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(After { after }): Query<After>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    find(&server, &caller, &id)?;
    let open = server.metrics.connections.get_or_create(&Kind { kind: "events".to_string() }).clone();
    if open.get() >= STREAMS {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", "too many follow jobs already");
        return Err(error.after(10));
    }
    let last = text(&headers, "last-event-id").and_then(|id| id.trim().parse().ok()).or(after);
    let (sender, receiver) = mpsc::channel::<Bytes>(BEHIND);
    tokio::spawn(async move {
        open.inc();
        let _ = follow(&server, &id, last, &sender).await; // the reader went away
        open.dec();
    });
    let body = stream::unfold(receiver, |mut receiver| async {
        let chunk = receiver.recv().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(chunk), receiver))
    });
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    let buffering = [("x-accel-buffering", "no")];
    Ok((head, buffering, Body::from_stream(body)).into_response())
}

/// The reader has gone.
struct Gone;

/// Sends what is kept, then what comes, up to the last event.
async fn follow(server: &Server, id: &str, after: Option<u64>, sender: &mpsc::Sender<Bytes>) -> Result<(), Gone> {
    let send = async |text: String| sender.send(text.into()).await.map_err(|_| Gone);
    let (kept, mut more) = server.board.follow(id, after.unwrap_or(u64::MAX));
    let mut last = *more.borrow_and_update();
    match kept.filter(|_| after.is_some()) {
        Some(kept) => {
            for message in kept {
                last = message.id;
                if send_one(sender, &message).await? {
                    return Ok(());
                }
            }
        }
        // From the beginning, or from before what is kept: how it stands comes first.
        None => {
            let Ok(Some(job)) = server.store.read(|db| queries::job(db, id)) else { return Ok(()) };
            let video = server.board.video(&job);
            send(format!("id: {last}\nevent: video\ndata: {video}\n\n")).await?;
            if job.status.is_final() {
                return send(format!("id: {last}\nevent: {DONE}\ndata: {video}\n\n")).await;
            }
        }
    }
    loop {
        tokio::select! {
            () = server.stopped() => return send("event: bye\ndata: {}\n\n".to_string()).await,
            waited = timeout(HEARTBEAT, more.changed()) => match waited {
                Err(_) => send(": hb\n\n".to_string()).await?,
                Ok(Err(_)) => return Ok(()),
                Ok(Ok(())) => {}
            },
        }
        // Who is slower than 512 events goes on with the oldest that is kept.
        let (kept, _) = server.board.follow(id, last);
        let kept = match kept {
            Some(kept) => kept,
            None => server.board.follow(id, 0).0.unwrap_or_default(),
        };
        for message in kept {
            last = message.id;
            if send_one(sender, &message).await? {
                return Ok(());
            }
        }
    }
}

/// Sends an event; says whether it was the last.
async fn send_one(sender: &mpsc::Sender<Bytes>, message: &Message) -> Result<bool, Gone> {
    let Message { id, event, data } = message;
    sender.send(format!("id: {id}\nevent: {event}\ndata: {data}\n\n").into()).await.map_err(|_| Gone)?;
    Ok(*event == DONE)
}
