//! The routes.

mod about;
mod content;
pub mod error;
mod estimate;
mod events;
mod gate;
mod page;
mod videos;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::server::Server;

pub use gate::Peer;

/// The openings of everything that may be asked, each as in `openapi.json`.
pub fn router(server: Arc<Server>) -> Router {
    let with_key = Router::new()
        .route("/v1/videos", get(videos::list).post(videos::create))
        .route("/v1/videos/{id}", get(videos::retrieve).delete(videos::delete))
        .route("/v1/videos/{id}/cancel", post(videos::cancel))
        .route("/v1/videos/{id}/remix", post(videos::remix))
        .route("/v1/videos/{id}/content", get(content::content))
        .route("/v1/videos/{id}/events", get(events::events))
        .route("/v1/videos/{id}/preview", get(content::preview))
        .route("/v1/videos/edits", post(videos::not_supported))
        .route("/v1/videos/extensions", post(videos::not_supported))
        .route("/v1/videos/characters", get(videos::not_supported).post(videos::not_supported))
        .route("/v1/videos/characters/{id}", get(videos::not_supported))
        .route("/v1/estimate", post(estimate::estimate))
        .route("/v1/models", get(about::models))
        .route("/v1/models/{id}", get(about::model))
        .route("/v1/queue", get(about::queue))
        .route("/metrics", get(about::metrics))
        .layer(from_fn_with_state(server.clone(), gate::keys));
    Router::new()
        .merge(with_key)
        .route("/health", get(about::health))
        .route("/ready", get(about::ready))
        .route("/openapi.json", get(about::openapi))
        .merge(page::router())
        .layer(from_fn_with_state(server.clone(), gate::origins))
        .layer(from_fn_with_state(server.clone(), gate::counted))
        .layer(from_fn(gate::named))
        .with_state(server)
}

/// Only the metrics, for an address of their own.
pub fn metrics_router(server: Arc<Server>) -> Router {
    Router::new().route("/metrics", get(about::metrics)).layer(from_fn(gate::named)).with_state(server)
}
