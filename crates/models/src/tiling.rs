//! Decoding in parts of a frame, for memory that a whole frame does not fit into.
//!
//! What sees the whole frame, the attention of the middle block, runs at the size of the latents, once for all. What is
//! above it is convolutions, which see a few pixels around, and by far the most memory. So only they run part by part,
//! on windows that overlap.

use std::ops::Range;

/// A part of a frame, in latents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Rows.
    pub rows: Range<usize>,
    /// Columns.
    pub columns: Range<usize>,
}

/// Latents that neighbouring windows share.
pub const OVERLAP: usize = 8;
/// Of these, how many at a window's edge are not used: they have seen the edge, which the frame does not have there.
pub const EDGE: usize = 2;
/// Smallest window along an axis.
pub const SMALLEST: usize = 2 * OVERLAP;

/// Ranges of a length, at most `window` long and of about equal size, that cover an axis and overlap by [`OVERLAP`] or
/// more.
pub fn ranges(length: usize, window: usize) -> Vec<Range<usize>> {
    let window = window.max(SMALLEST);
    if length <= window {
        return std::iter::once(0..length).collect();
    }
    let count = (length - OVERLAP).div_ceil(window - OVERLAP);
    // As long as they have to be for so many.
    let size = (length + (count - 1) * OVERLAP).div_ceil(count);
    let start = |i: usize| i * (length - size) / (count - 1);
    (0..count).map(|i| start(i)..start(i) + size).collect()
}

/// The windows of a frame, row by row.
pub fn windows(height: usize, width: usize, window: usize) -> Vec<Window> {
    let columns = ranges(width, window);
    ranges(height, window)
        .into_iter()
        .flat_map(|rows| columns.iter().map(move |columns| Window { rows: rows.clone(), columns: columns.clone() }))
        .collect()
}

/// The size of the largest windows of a frame that fit, or of the smallest there are.
pub fn largest_window(height: usize, width: usize, fits: impl Fn(&Window) -> bool) -> usize {
    let longest = height.max(width);
    let smaller = (SMALLEST..longest).rev().step_by(OVERLAP / 2);
    let fits = |size: &usize| windows(height, width, *size).iter().all(&fits);
    std::iter::once(longest).chain(smaller).find(fits).unwrap_or(SMALLEST)
}

/// How much of what lies at every place of a range comes from its window, given the windows before and after it along
/// an axis: the shares of all windows add up to one. `scale`: places to a latent.
pub fn shares(all: &[Range<usize>], range: &Range<usize>, scale: usize) -> Vec<f32> {
    let before = all.iter().filter(|other| other.start < range.start).map(|other| other.end).max();
    let after = all.iter().filter(|other| other.start > range.start).map(|other| other.start).min();
    let edge = (EDGE * scale) as f32;
    let rising = |place: f32, shared: f32| ((place + 0.5 - edge) / (shared - 2.0 * edge)).clamp(0.0, 1.0);
    let length = range.len() * scale;
    let share = |i: usize| {
        let up = before.map_or(1.0, |end| rising(i as f32, ((end - range.start) * scale) as f32));
        let shared = after.map(|start| ((range.end - start) * scale) as f32);
        let down = shared.map_or(1.0, |shared| 1.0 - rising(i as f32 - (length as f32 - shared), shared));
        up * down
    };
    (0..length).map(share).collect()
}

/// How a window's pixels go into the frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    /// Its rows in the frame, in pixels.
    pub rows: Range<usize>,
    /// Its columns.
    pub columns: Range<usize>,
    /// Share of the window in each of its rows; the rest is what is there.
    pub down: Vec<f32>,
    /// Share of the window in each of its columns.
    pub across: Vec<f32>,
}

impl Blend {
    /// Of a window among others, each latent of `factor` pixels. Windows come row by row: what comes after is mixed
    /// into what is there, so that only those before count.
    pub fn new(windows: &[Window], window: &Window, factor: usize) -> Self {
        let before = |axis: fn(&Window) -> &Range<usize>| {
            let upto = axis(window).start;
            let ranges = windows.iter().map(axis).filter(|range| range.start <= upto).cloned().collect::<Vec<_>>();
            shares(&ranges, axis(window), factor)
        };
        let scaled = |range: &Range<usize>| range.start * factor..range.end * factor;
        Blend {
            rows: scaled(&window.rows),
            columns: scaled(&window.columns),
            down: before(|window| &window.rows),
            across: before(|window| &window.columns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_one() {
        for (length, window) in [(40, 16), (41, 20), (90, 33), (20, 64)] {
            let ranges = ranges(length, window);
            for scale in [1, 8] {
                let mut sum = vec![0.0; length * scale];
                for range in &ranges {
                    for (i, share) in shares(&ranges, range, scale).into_iter().enumerate() {
                        sum[range.start * scale + i] += share;
                    }
                }
                assert!(sum.iter().all(|sum| (sum - 1.0f32).abs() < 1e-5), "{length} {window} {scale}: {sum:?}");
            }
        }
    }

    #[test]
    fn ranges_cover_and_overlap() {
        for length in 1..200 {
            for window in 0..80 {
                let ranges = ranges(length, window);
                assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, length));
                assert!(ranges.iter().all(|range| range.len() <= window.max(SMALLEST)), "{length} {window}");
                for pair in ranges.windows(2) {
                    assert!(pair[0].start < pair[1].start && pair[0].end >= pair[1].start + OVERLAP, "{ranges:?}");
                }
            }
        }
    }
}
