//! What is not kept for ever: results, rows, and what nobody refers to.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::id::now_ms;
use crate::server::Server;
use crate::store::{StoreError, queries};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(60);
/// Rows stay so long after their job has failed, or its video has expired.
const ROWS_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Events of a finished job are kept so long for those who come back.
const EVENTS: Duration = Duration::from_secs(60);

/// Looks again and again, until the server stops.
pub async fn run(server: Arc<Server>) {
    while !server.is_stopping() {
        if let Err(error) = sweep(&server).await {
            eprintln!("navicache: {error}"); // the next look may do better
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = server.stopped() => {}
        }
    }
}

/// Expires results, then removes files that no job refers to.
pub async fn sweep(server: &Arc<Server>) -> Result<(), StoreError> {
    let (most, rows) = (server.options.keep_bytes.min(i64::MAX as u64) as i64, now_ms() - ROWS_MS);
    server.store.write(move |writer| queries::expire(writer, most, rows)).await?;
    server.board.forget(EVENTS);
    let of = server.clone();
    let swept = tokio::task::spawn_blocking(move || -> Result<(), StoreError> {
        let bytes = of.blobs.sweep(SystemTime::now(), |digests| of.referenced(digests))?;
        of.metrics.blob_bytes.set(bytes as i64);
        of.disk_free().map(|free| of.metrics.disk_free.set(free as i64));
        let work = std::fs::read_dir(of.options.data.join("work"))?;
        for entry in work.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|id| !of.is_wanted(id)) {
                let _ = std::fs::remove_dir_all(entry.path()); // it is tried again
            }
        }
        Ok(())
    });
    swept.await.unwrap_or(Ok(()))
}
