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
    let mut more = server.board.follow(id);
    let mut seen = after;
    loop {
        let last = *more.borrow_and_update();
        match seen.and_then(|seen| server.board.after(id, seen)) {
            Some(messages) => {
                for message in messages {
                    seen = Some(message.id);
                    if send_one(sender, &message).await? {
                        return Ok(());
                    }
                }
            }
            // From the beginning, from before what is kept, or after the end: how it stands takes the place of that.
            None => {
                seen = Some(last);
                let Ok(Some(job)) = server.store.read(|db| queries::job(db, id)) else { return Ok(()) };
                let video = server.board.video(&job);
                send(format!("id: {last}\nevent: video\ndata: {video}\n\n")).await?;
                if job.status.is_final() {
                    return send(format!("id: {last}\nevent: {DONE}\ndata: {video}\n\n")).await;
                }
            }
        }
        tokio::select! {
            () = server.stopped() => return send("event: bye\ndata: {}\n\n".to_string()).await,
            waited = timeout(HEARTBEAT, more.changed()) => match waited {
                Err(_) => send(": hb\n\n".to_string()).await?,
                Ok(Err(_)) => return Ok(()),
                Ok(Ok(())) => {}
            },
        }
    }
}

/// Sends an event; says whether it was the last.
async fn send_one(sender: &mpsc::Sender<Bytes>, message: &Message) -> Result<bool, Gone> {
    let Message { id, event, data } = message;
    sender.send(format!("id: {id}\nevent: {event}\ndata: {data}\n\n").into()).await.map_err(|_| Gone)?;
    Ok(*event == DONE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::server::test_server;
    use crate::store::test_job;

    /// Reads until the stream ends, or nothing more comes.
    async fn heard(receiver: &mut mpsc::Receiver<Bytes>) -> Vec<(u64, String)> {
        let mut events = Vec::new();
        while let Ok(Some(chunk)) = timeout(Duration::from_millis(200), receiver.recv()).await {
            let text = String::from_utf8(chunk.to_vec()).unwrap();
            let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_string();
            events.push((line("id: ").parse().unwrap(), line("event: ")));
        }
        events
    }

    fn start(server: &Arc<Server>, id: &str, after: Option<u64>) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        let (server, id) = (server.clone(), id.to_string());
        tokio::spawn(async move { follow(&server, &id, after, &sender).await.is_ok() });
        receiver
    }

    async fn cancelled(server: &Server, id: &str) {
        let (of, error) = (id.to_string(), crate::job::JobError { code: "x".to_string(), message: "x".to_string() });
        assert!(server.store.write(move |writer| queries::cancel(writer, &of, &error)).await.unwrap());
        let job = server.store.read(|db| queries::job(db, id)).unwrap().unwrap();
        server.tell(&job);
    }

    fn names(events: &[(u64, String)]) -> Vec<&str> {
        events.iter().map(|(_, name)| name.as_str()).collect()
    }

    #[tokio::test]
    async fn who_falls_behind_is_told_how_it_stands_and_goes_on_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let server = Arc::new(test_server(folder.path()));
        let id = test_job(&server.store, "1").await.id;
        let mut reader = start(&server, &id, None);
        assert_eq!(names(&heard(&mut reader).await), ["video"]);
        // It takes nothing while far more comes than is kept.
        for index in 0..2000 {
            server.board.tell(&id, "step", &json!({"index": index}));
            tokio::task::yield_now().await;
        }
        let events = heard(&mut reader).await;
        assert_eq!(events.iter().filter(|(_, name)| name == "video").count(), 1, "{events:?}");
        assert!(events.is_sorted(), "{events:?}");
        cancelled(&server, &id).await;
        assert_eq!(names(&heard(&mut reader).await), ["done"]);
        assert!(reader.is_closed(), "the stream ends");
    }

    #[tokio::test]
    async fn who_comes_back_goes_on_and_after_the_end_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let id = {
            let server = Arc::new(test_server(folder.path()));
            let id = test_job(&server.store, "1").await.id;
            let first = *server.board.follow(&id).borrow();
            for index in 0..3 {
                server.board.tell(&id, "step", &json!({"index": index}));
            }
            let events = heard(&mut start(&server, &id, Some(first + 1))).await;
            assert_eq!(events, [(first + 2, "step".to_string()), (first + 3, "step".to_string())]);
            server.stop();
            while Arc::strong_count(&server) > 1 {
                tokio::task::yield_now().await; // until nobody uses the store
            }
            id
        };
        // A server that was started again has later numbers: the client's own is not taken for one of them.
        let server = Arc::new(test_server(folder.path()));
        let before = *server.board.follow(&id).borrow() - 1;
        assert_eq!(names(&heard(&mut start(&server, &id, Some(before))).await), ["video"]);
        cancelled(&server, &id).await;
        let events = heard(&mut start(&server, &id, None)).await;
        assert_eq!(names(&events), ["video", "done"]);
        let again = heard(&mut start(&server, &id, Some(events[1].0))).await;
        assert_eq!(names(&again), ["video", "done"], "no heartbeats for ever");
    }
}
