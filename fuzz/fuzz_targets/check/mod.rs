//! What has to be true of every file that is listed.

/// Every tensor lies inside of the file.
pub fn listed_inside(bytes: &[u8]) {
    if let Ok((_, listing)) = navicache_weights::list(bytes) {
        for stored in listing.tensors.values() {
            assert!(stored.start.checked_add(stored.length).is_some_and(|end| end <= bytes.len()));
        }
    }
}
