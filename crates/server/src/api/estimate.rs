//! What a video will take, before it is asked for.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::error::ApiError;
use super::gate::Peer;
use super::videos::{Wish, let_go, wish};
use crate::auth::Caller;
use crate::server::Server;

/// `POST /v1/estimate`: the body of a request to make a video. The time is that of the last videos of the model,
/// scaled; before there was one it is not known.
pub async fn estimate(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let Wish { asked, input } = wish(&server, &caller, &peer, &headers, body).await?;
    let_go(&server, input);
    let meant = &asked.meant;
    let seconds = server.board.expected_seconds(&asked.model, meant);
    let (places, running) = server.board.queue();
    let ahead = server.board.seconds_ahead();
    let rounded = |seconds: f64| (10.0 * seconds).round() / 10.0;
    Ok(Json(json!({
        "object": "estimate",
        "model": asked.model,
        "size": format!("{}x{}", meant.width, meant.height),
        "seconds": meant.seconds(),
        "frames": meant.frames,
        "steps": meant.steps,
        "cache": meant.cache,
        "target": meant.target,
        "device_seconds": seconds.map(rounded),
        "queue_length": places.len() + usize::from(running.is_some()),
        "seconds_ahead": ahead.map(rounded),
        "warnings": asked.warnings,
    })))
}
