//! How much moves from frame to frame.

/// Mean absolute difference of a frame and the one before, of RGB in [0, 1].
pub(crate) fn between(before: &[u8], frame: &[u8]) -> f64 {
    let sum: u64 = before.iter().zip(frame).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / 255.0 / frame.len() as f64
}

/// Its mean over a video; 0 for a single frame.
pub(crate) fn mean(differences: &[f64]) -> f64 {
    differences.iter().sum::<f64>() / differences.len().max(1) as f64
}
