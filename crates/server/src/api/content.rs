//! Bytes of finished videos, whole or a range of them, and previews of those under way.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::error::ApiError;
use super::gate::{has_already, text};
use super::videos::find;
use crate::auth::Caller;
use crate::job::{Job, Status};
use crate::server::Server;

/// Which of a job's files.
#[derive(Debug, Deserialize)]
pub struct Which {
    variant: Option<String>,
}

/// `GET /v1/videos/{id}/content`
pub async fn content(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(which): Query<Which>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&server, &caller, &id)?;
    let (digest, kind, ending) = chosen(&job, which.variant.as_deref().unwrap_or("video"))?;
    let gone = |_| ApiError::new(StatusCode::GONE, "video_expired", "the video was there, and is not kept any more");
    let file = server.blobs.open_blob(&digest).map_err(gone)?;
    let length = file.metadata().map_err(gone)?.len();
    let tag = format!("\"{digest}\"");
    let common = [
        (header::CONTENT_TYPE, kind.to_string()),
        (header::ETAG, tag.clone()),
        (header::ACCEPT_RANGES, "bytes".to_string()),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable".to_string()),
        (header::CONTENT_DISPOSITION, format!("inline; filename=\"{id}{ending}\"")),
    ];
    if has_already(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let is_same = text(&headers, header::IF_RANGE).is_none_or(|known| known == tag);
    let asked =
        text(&headers, header::RANGE).filter(|_| is_same).map_or(Range::Whole, |range| Range::of(range, length));
    let (status, first, count) = match asked {
        Range::Whole => (StatusCode::OK, 0, length),
        Range::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Range::Outside => {
            let message = format!("the range is outside of its {length} bytes");
            let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "bad_range", message);
            return Ok(([(header::CONTENT_RANGE, format!("bytes */{length}"))], error).into_response());
        }
    };
    let body = match method {
        Method::HEAD => Body::empty(),
        _ => {
            let mut file = tokio::fs::File::from_std(file);
            file.seek(SeekFrom::Start(first)).await.map_err(gone)?;
            Body::from_stream(ReaderStream::with_capacity(file.take(count), 64 << 10))
        }
    };
    let mut response = (status, common, [(header::CONTENT_LENGTH, count.to_string())], body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{length}", first + count - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, range.parse().map_err(|_| ApiError::no_video())?);
    }
    Ok(response)
}

/// Digest, type and ending of a job's file.
fn chosen(job: &Job, variant: &str) -> Result<(String, &'static str, &'static str), ApiError> {
    let made = &job.made;
    let (digest, kind, ending) = match variant {
        "video" => (&made.video, "video/mp4", ".mp4"),
        "thumbnail" => (&made.thumbnail, "image/webp", ".webp"),
        "spritesheet" => (&made.spritesheet, "image/jpeg", ".jpg"),
        "report" => (&made.report, "application/json", ".json"),
        _ => return Err(ApiError::field("variant", "expected video, thumbnail, spritesheet or report")),
    };
    match (job.status, digest) {
        (Status::Completed, Some(digest)) => Ok((digest.clone(), kind, ending)),
        (Status::Completed, None) => {
            let message = "the video was there, and is not kept any more";
            Err(ApiError::new(StatusCode::GONE, "video_expired", message))
        }
        (Status::Failed, _) => {
            let reason = job.error.as_ref().map_or("", |error| error.message.as_str());
            Err(ApiError::missing("video_failed", format!("the video was not made: {reason}")))
        }
        _ => Err(ApiError::missing("video_not_ready", "the video is not ready yet")),
    }
}

/// What a `Range` header asks for. Of several ranges, and of what cannot be read, all is sent (RFC 9110, 14.2).
#[derive(Debug, PartialEq)]
enum Range {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Outside,
}

impl Range {
    fn of(header: &str, length: u64) -> Self {
        let range = header.strip_prefix("bytes=").filter(|ranges| !ranges.contains(','));
        let Some((first, last)) = range.and_then(|range| range.trim().split_once('-')) else { return Range::Whole };
        let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        match (first, last) {
            ("", last) => match number(last) {
                None => Range::Whole,
                Some(0) => Range::Outside,
                Some(_) if length == 0 => Range::Outside,
                Some(count) => Range::Part(length.saturating_sub(count), length - 1),
            },
            (first, "") => match number(first) {
                None => Range::Whole,
                Some(first) if first >= length => Range::Outside,
                Some(first) => Range::Part(first, length - 1),
            },
            (first, last) => match (number(first), number(last)) {
                (Some(first), Some(last)) if first > last => Range::Whole,
                (Some(first), Some(_)) if first >= length => Range::Outside,
                (Some(first), Some(last)) => Range::Part(first, last.min(length - 1)),
                _ => Range::Whole,
            },
        }
    }
}

/// Which preview.
#[derive(Debug, Deserialize)]
pub struct Step {
    step: Option<usize>,
}

/// `GET /v1/videos/{id}/preview`
pub async fn preview(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(Step { step }): Query<Step>,
) -> Result<Response, ApiError> {
    find(&server, &caller, &id)?;
    let jpeg = server.board.preview(&id, step);
    let jpeg = jpeg.ok_or_else(|| ApiError::missing("no_preview", "there is no preview of that step now"))?;
    let head = [(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "private, max-age=3600")];
    Ok((head, jpeg.to_vec()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Range::{Outside, Part, Whole};
        for (header, expected) in [
            ("bytes=0-0", Part(0, 0)),
            ("bytes=-1", Part(9, 9)),
            ("bytes=-100", Part(0, 9)),
            ("bytes=5-", Part(5, 9)),
            ("bytes=5-100", Part(5, 9)),
            ("bytes=9-2", Whole),
            ("bytes=10-", Outside),
            ("bytes=10-20", Outside),
            ("bytes=-0", Outside),
            ("bytes=0-1,3-4", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=a-b", Whole),
            ("bytes=", Whole),
            ("lines=0-1", Whole),
            ("bytes=0-99999999999999999999999", Whole),
        ] {
            assert_eq!(Range::of(header, 10), expected, "{header}");
        }
        assert_eq!(Range::of("bytes=-1", 0), Outside);
    }
}
