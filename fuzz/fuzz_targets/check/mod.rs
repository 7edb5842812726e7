//! What targets have in common.

#![allow(dead_code)] // no target needs all of it

use std::path::{Path, PathBuf};

/// Every tensor of a file that is listed lies inside of it.
pub fn listed_inside(bytes: &[u8]) {
    if let Ok((_, listing)) = navicache_weights::list(bytes) {
        for stored in listing.tensors.values() {
            assert!(stored.start.checked_add(stored.length).is_some_and(|end| end <= bytes.len()));
        }
    }
}

/// A folder of this process for readers that want files.
pub fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("navicache-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Gives a reader a file with some bytes.
pub fn in_file<T>(name: &str, bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let path = folder().join(name);
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

/// A safetensors file of f32 tensors, all numbers one.
pub fn safetensors(tensors: &[(String, Vec<usize>)], metadata: &[(String, String)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let said = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into()));
    header.insert("__metadata__".to_string(), serde_json::Value::Object(said.collect()));
    let mut numbers = 0;
    for (name, shape) in tensors {
        let begin = 4 * numbers;
        numbers += shape.iter().product::<usize>();
        let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, 4 * numbers]});
        if header.insert(name.clone(), info).is_some() {
            return Vec::new(); // the same name twice
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let data = (0..numbers).flat_map(|_| 1.0f32.to_le_bytes());
    (header.len() as u64).to_le_bytes().into_iter().chain(header.into_bytes()).chain(data).collect()
}

/// Reads the first frames of a video.
pub fn frames(name: &str, bytes: &[u8]) {
    /// More are as these.
    const FRAMES: usize = 4;
    let video = in_file(name, bytes, navicache_media::video::Reader::open);
    let Ok(mut video) = video else { return };
    for _ in 0..FRAMES {
        match video.next_frame() {
            Ok(Some(frame)) => assert!(!frame.is_empty()),
            _ => break,
        }
    }
}
