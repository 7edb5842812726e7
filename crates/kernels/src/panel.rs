//! What products multiply, in the order in which a tile reads it.

/// What a row or a column of a product is made of.
pub(crate) trait Number: Copy + Default + Send + Sync {
    /// So many of these are as many as `count` numbers.
    fn row(count: usize) -> usize;
}

impl Number for f32 {
    fn row(count: usize) -> usize {
        count
    }
}

/// Two bf16, the first in the lower half; the second is zero where a row ends with the first.
pub(crate) type Pair = u32;

impl Number for Pair {
    fn row(count: usize) -> usize {
        count.div_ceil(2)
    }
}

/// Writes rows as the columns of a panel, a small square at a time so that both sides stay in the cache.
///
/// * `rows` - (at most `columns`, depth)
/// * `panel` - (depth, columns)
pub(crate) fn turn<N: Number>(rows: &[N], depth: usize, panel: &mut [N], columns: usize) {
    const SIDE: usize = 16;
    for (j, rows) in rows.chunks(SIDE * depth).enumerate() {
        for k in (0..depth).step_by(SIDE) {
            let side = SIDE.min(depth - k);
            for (i, row) in rows.chunks_exact(depth).enumerate() {
                let to = panel[k * columns + j * SIDE + i..].iter_mut().step_by(columns);
                to.zip(&row[k..k + side]).for_each(|(to, number)| *to = *number);
            }
        }
    }
}
