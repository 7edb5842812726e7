//! How much moves from frame to frame.

use navicache_media::Frames;

/// Mean absolute difference of each frame and the one before, of RGB in [0, 1]; one value less than there are frames.
pub fn motion_of_frames(video: Frames) -> Vec<f64> {
    let frames: Vec<&[u8]> = video.iter().collect();
    let difference = |pair: &[&[u8]]| {
        let sum: u64 = pair[0].iter().zip(pair[1]).map(|(a, b)| a.abs_diff(*b) as u64).sum();
        sum as f64 / 255.0 / pair[0].len() as f64
    };
    frames.windows(2).map(difference).collect()
}

/// Its mean over the video; 0 for a single frame.
pub fn motion(video: Frames) -> f64 {
    mean(&motion_of_frames(video))
}

/// Of the differences from frame to frame.
pub(crate) fn mean(differences: &[f64]) -> f64 {
    differences.iter().sum::<f64>() / differences.len().max(1) as f64
}
