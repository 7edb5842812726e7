//! Work on rows, in parallel where it is worth it.

use rayon::prelude::*;

/// Below so many multiplications, threads are not worth it.
pub(crate) const SMALL: usize = 1 << 20;
/// Numbers in a piece: enough to hide what handing it to a thread costs, few enough to stay in a core's cache.
const PIECE: usize = 1 << 14;

/// Calls `f` for pieces of `out`, which has rows of `width`: with the first row of each and the rows themselves. Little
/// work stays on the calling thread. The pieces are the same for any number of threads.
pub(crate) fn by_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.is_empty() {
        return;
    }
    let rows = (PIECE / width).max(1);
    if out.len() <= 2 * PIECE {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(|(i, piece)| f(i * rows, piece));
}
