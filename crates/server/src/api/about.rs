//! What the server is and how it stands: models, queue, health, metrics, and its own description.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use navicache_engine::control::cache::CacheConfig;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::auth::Caller;
use crate::job::Status;
use crate::metrics::Status as StatusLabel;
use crate::models::Model;
use crate::server::Server;
use crate::store::{Page, queries};

/// `GET /v1/models`
pub async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    let all: Vec<Value> = server.models.all().iter().map(|model| described(&server, model)).collect();
    Json(json!({"object": "list", "data": all}))
}

/// `GET /v1/models/{id}`
pub async fn model(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let model = server.models.named(&id);
    let model = model.ok_or_else(|| ApiError::missing("model_not_found", "there is no such model here"))?;
    Ok(Json(described(&server, model)))
}

fn described(server: &Server, model: &Model) -> Value {
    let (width, height) = model.pipeline.multiples();
    let limits = &server.options.limits;
    let methods: Vec<&str> =
        CacheConfig::METHODS.iter().map(|about| about.name).filter(|name| *name != "schedule").collect();
    json!({
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "navicache",
        "navicache": {
            "family": model.pipeline.defaults().presets,
            "defaults": model.pipeline.defaults(),
            "limits": {
                "width_multiple": width,
                "height_multiple": height,
                "max_steps": limits.max_steps,
                "max_video": limits.max_video.map(|(size, frames)| format!("{size}x{frames}")),
                "max_upload": limits.max_upload,
            },
            "cache_methods": methods,
            "steerable": CacheConfig::STEERABLE,
            "loaded": server.board.loaded().as_deref() == Some(&model.name),
        },
    })
}

/// `GET /v1/queue`
pub async fn queue(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    let (places, running) = server.board.queue();
    let page = Page { key: Some(caller.name), status: Some(Status::Queued), after: None, ascending: true, limit: 1000 };
    let (own, _) = server.store.read(|db| queries::list(db, &page))?;
    let first = own.iter().filter_map(|job| places.get(&job.id)).min_by_key(|place| place.position);
    Ok(Json(json!({
        "object": "queue",
        "length": places.len(),
        "running": usize::from(running.is_some()),
        "position": first.map(|place| place.position),
        "seconds_ahead": first.and_then(|place| place.seconds_ahead),
    })))
}

/// `GET /health`
pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`
pub async fn ready(State(server): State<Arc<Server>>) -> Response {
    let reason = match () {
        () if server.is_stopping() => "stopping",
        () if server.board.worker().is_none() => "no worker",
        () if server.store.write(|_| Ok(())).await.is_err() => "the store cannot be written",
        () => "",
    };
    let status = if reason.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": reason.is_empty(), "reason": reason}))).into_response()
}

/// `GET /metrics`
pub async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let counts = server.store.read(queries::counts)?;
    for status in Status::ALL {
        let count = counts.iter().find(|(name, _)| name == status.name()).map_or(0, |(_, count)| *count);
        server.metrics.jobs.get_or_create(&StatusLabel { status: status.name().to_string() }).set(count);
    }
    server.disk_free().map(|free| server.metrics.disk_free.set(free as i64));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], server.metrics.text()).into_response())
}

/// `GET /openapi.json`
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../openapi.json")).into_response()
}
