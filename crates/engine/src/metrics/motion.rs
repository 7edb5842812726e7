//! How much moves from frame to frame.

use super::Frames;

/// Mean absolute difference of neighbouring frames, of RGB in [0, 1]; 0 for a single frame.
pub fn motion(video: Frames) -> f64 {
    let frames: Vec<&[u8]> = video.frames().collect();
    let values = (frames.len() - 1) * frames[0].len();
    if values == 0 {
        return 0.0;
    }
    let differences = |pair: &[&[u8]]| pair[0].iter().zip(pair[1]).map(|(a, b)| a.abs_diff(*b) as u64).sum::<u64>();
    frames.windows(2).map(differences).sum::<u64>() as f64 / 255.0 / values as f64
}
