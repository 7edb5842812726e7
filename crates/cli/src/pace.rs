//! What decoding took in earlier runs, so that a run can say how long it will take before it has come to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Below the folder in which this program remembers things.
const NAME: &str = "decoding.json";

/// Where this program remembers what it can find out again.
pub fn cache_folder() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    Some(set.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("navicache"))
}

/// Seconds that decoding took for a pixel of a frame, by model.
fn all() -> BTreeMap<String, f64> {
    let read = || std::fs::read(cache_folder()?.join(NAME)).ok();
    read().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The same of one model, if it was ever run here.
pub fn of(model: &str) -> Option<f64> {
    all().get(model).copied().filter(|seconds| seconds.is_finite() && *seconds > 0.0)
}

/// Remembers it. Where that cannot be written, the next run does not know.
pub fn remember(model: &str, seconds: f64) {
    let mut all = all();
    all.insert(model.to_string(), seconds);
    if let (Some(folder), Ok(text)) = (cache_folder(), serde_json::to_string(&all)) {
        let written = std::fs::create_dir_all(&folder).map_err(drop).and_then(|()| {
            let file = navicache_media::WholeFile::create(&folder.join(NAME)).map_err(drop)?;
            file.finish_with(text.as_bytes()).map_err(drop)
        });
        let _ = written;
    }
}
