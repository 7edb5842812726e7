//! Errors as OpenAI's clients expect them.

use axum::http::StatusCode;
use axum::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::store::StoreError;

/// An answer that refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// The field that it is about.
    pub param: Option<String>,
    /// Seconds after which it is worth trying again.
    pub retry_after: Option<u64>,
    /// A client that tries again by itself is told not to.
    pub is_final: bool,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, code, message: message.into(), param: None, retry_after: None, is_final: false }
    }

    /// 400
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400, about a field.
    pub fn field(name: &str, reason: &str) -> Self {
        let param = Some(name.to_string());
        ApiError { param, ..Self::bad("invalid_value", format!("`{name}`: {reason}")) }
    }

    /// 404
    pub fn missing(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 404 for a job that is not there, or another's.
    pub fn no_video() -> Self {
        Self::missing("video_not_found", "there is no such video")
    }

    /// 413
    pub fn too_large(most: u64) -> Self {
        let message = format!("the body is too large: expected at most {most} bytes here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// Seconds after which to try again.
    pub fn after(self, seconds: u64) -> Self {
        ApiError { retry_after: Some(seconds), ..self }
    }

    /// It will not change by trying again.
    pub fn for_good(self) -> Self {
        ApiError { is_final: true, ..self }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        eprintln!("navicache: {error}");
        match error {
            StoreError::Full(_) => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "disk_full", "the server's disk is full")
            }
            StoreError::Other(_) => {
                let message = "the server could not use its store; its log says why";
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({
            "error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code},
        });
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.is_final {
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        response
    }
}

/// Puts an error of the router into the same shape, with its headers.
pub fn in_shape(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get("content-type");
    let is_shaped = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if is_shaped || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (code, message) = match status {
        StatusCode::NOT_FOUND => ("not_found", "there is no such route; GET /openapi.json lists them".to_string()),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this route has other methods, see Allow".to_string()),
        other => ("bad_request", other.canonical_reason().unwrap_or("refused").to_lowercase()),
    };
    let mut shaped = ApiError::new(status, code, message).into_response();
    for (name, value) in response.headers() {
        if name != "content-type" && name != "content-length" {
            shaped.headers_mut().insert(name.clone(), value.clone());
        }
    }
    shaped
}
