//! How many bytes of bodies are held at once, over all requests: each may be large, and many may come together.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::body::Body;
use futures_util::TryStreamExt;

/// So many bytes of a body need no room, so that large bodies do not keep small ones out. Connections bound these.
const FREE: u64 = 64 << 10;

/// What a body may have beside its picture.
pub const BESIDE: u64 = 64 << 10;

/// Most bytes of a body whose picture has at most so many: in base64 it is a third larger.
pub fn most_of_body(picture: u64) -> u64 {
    picture.div_ceil(3).saturating_mul(4).saturating_add(BESIDE)
}

/// Room for the large bodies of all requests.
pub struct Bodies {
    most: u64,
    taken: Arc<AtomicU64>,
}

/// The room that one body takes; it is free again when this is dropped.
pub struct Held {
    taken: Arc<AtomicU64>,
    came: AtomicU64,
    holds: AtomicU64,
    was_refused: AtomicBool,
}

impl Bodies {
    /// `most`: bytes.
    pub fn new(most: u64) -> Self {
        Bodies { most, taken: Arc::default() }
    }

    /// A body that takes room while it comes, and ends with an error where there is none left.
    pub fn counted(&self, body: Body) -> (Body, Arc<Held>) {
        let held = Arc::new(Held {
            taken: self.taken.clone(),
            came: AtomicU64::new(0),
            holds: AtomicU64::new(0),
            was_refused: AtomicBool::new(false),
        });
        let (of, most) = (held.clone(), self.most);
        let chunks = body.into_data_stream().map_err(io::Error::other);
        let counted = chunks.and_then(move |chunk| {
            let has_room = of.take(chunk.len() as u64, most);
            async move { if has_room { Ok(chunk) } else { Err(io::Error::from(io::ErrorKind::QuotaExceeded)) } }
        });
        (Body::from_stream(counted), held)
    }
}

impl Held {
    fn take(&self, bytes: u64, most: u64) -> bool {
        let came = self.came.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let more = came.saturating_sub(FREE) - self.holds.load(Ordering::Relaxed);
        let fits = |taken: u64| taken.checked_add(more).filter(|sum| *sum <= most);
        let has_room = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if has_room {
            self.holds.fetch_add(more, Ordering::Relaxed);
        } else {
            self.was_refused.store(true, Ordering::Relaxed);
        }
        has_room
    }

    /// Whether there was no room for all of it.
    pub fn was_refused(&self) -> bool {
        self.was_refused.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.taken.fetch_sub(*self.holds.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Bytes, to_bytes};

    use super::*;

    fn body(chunks: usize) -> Body {
        let chunk = Bytes::from(vec![0; FREE as usize]);
        Body::from_stream(futures_util::stream::iter((0..chunks).map(move |_| Ok::<_, io::Error>(chunk.clone()))))
    }

    async fn length(body: Body) -> Option<usize> {
        to_bytes(body, usize::MAX).await.ok().map(|bytes| bytes.len())
    }

    #[tokio::test]
    async fn large_bodies_share_what_there_is_and_small_ones_always_fit() {
        let bodies = Bodies::new(3 * FREE);
        let (first, held) = bodies.counted(body(3));
        assert_eq!(length(first).await, Some(3 * FREE as usize));
        assert_eq!(bodies.taken.load(Ordering::Relaxed), 2 * FREE);
        let (second, refused) = bodies.counted(body(3));
        assert_eq!((length(second).await, refused.was_refused()), (None, true));
        let (small, small_held) = bodies.counted(body(1));
        assert_eq!((length(small).await, small_held.was_refused()), (Some(FREE as usize), false));
        drop((held, refused));
        let (again, _held) = bodies.counted(body(4));
        assert_eq!(length(again).await, Some(4 * FREE as usize));
    }
}
