//! Factors of 8-bit weights: one for all of a matrix, for a row, or for a block of it.

use rayon::prelude::*;

use crate::file::Stored;

/// Factors of a matrix.
#[derive(Debug, PartialEq)]
pub(crate) struct Factors {
    /// Row by row.
    values: Vec<f32>,
    /// How many a row of blocks has.
    across: usize,
    /// Rows and columns of the matrix that share one.
    rows: usize,
    columns: usize,
    /// Where the matrix begins in its file, and the bytes of one of its rows.
    start: usize,
    row_bytes: usize,
}

impl Factors {
    /// Factors of a shape for a matrix: (), (1) or (1, 1); (rows) or (rows, 1); or (blocks down, blocks across).
    pub fn of(matrix: &Stored, values: Vec<f32>, shape: &[usize]) -> Result<Self, String> {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("expected finite factors, found {value}"));
        }
        let rows = matrix.shape.first().copied().unwrap_or(1);
        let width: usize = matrix.shape.iter().skip(1).product();
        let down = shape.first().copied().unwrap_or(1);
        let across = shape.iter().skip(1).product::<usize>();
        let misfit = || format!("factors {shape:?} do not fit a matrix {:?}", matrix.shape);
        let (down, across) = if values.len() == 1 { (1, 1) } else { (down, across) };
        if shape.len() == 1 && ![1, rows].contains(&down) {
            return Err(misfit());
        }
        Ok(Factors {
            across,
            rows: block(rows, down).ok_or_else(misfit)?,
            columns: block(width, across).ok_or_else(misfit)?,
            start: matrix.start,
            row_bytes: matrix.length.checked_div(rows).unwrap_or(0).max(1),
            values,
        })
    }

    /// All of them, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The one factor of all numbers, if it is one.
    pub fn single(&self) -> Option<f32> {
        if let [value] = self.values[..] { Some(value) } else { None }
    }

    /// Multiplies numbers of the matrix, whole rows, by their factors. `part`: which rows they are.
    pub fn multiply(&self, part: &Stored, numbers: &mut [f32]) {
        if let Some(factor) = self.single() {
            return numbers.iter_mut().for_each(|number| *number *= factor);
        }
        let first = part.start.saturating_sub(self.start) / self.row_bytes;
        let width = part.shape.iter().skip(1).product::<usize>().max(1);
        numbers.par_chunks_mut(width).enumerate().for_each(|(row, numbers)| {
            let begin = (first + row) / self.rows * self.across;
            let factors = self.values.get(begin..begin + self.across).unwrap_or_default();
            for (block, factor) in numbers.chunks_mut(self.columns).zip(factors) {
                block.iter_mut().for_each(|number| *number *= factor);
            }
        });
    }
}

/// Numbers in a block where `count` blocks cover `length`, the last of them perhaps in part: the sizes in use first,
/// else what divides it.
fn block(length: usize, count: usize) -> Option<usize> {
    const IN_USE: [usize; 7] = [128, 64, 32, 256, 512, 1024, 16];
    match count {
        0 => None,
        1 => Some(length.max(1)),
        _ if count == length => Some(1),
        _ => IN_USE
            .into_iter()
            .find(|&size| length.div_ceil(size) == count)
            .or_else(|| length.is_multiple_of(count).then_some(length / count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;

    fn matrix(rows: usize, columns: usize) -> Stored {
        Stored { format: Format::F8E4m3, shape: vec![rows, columns], start: 40, length: rows * columns }
    }

    /// Every number of the matrix times its factor, read in two runs of rows.
    fn multiplied(rows: usize, columns: usize, shape: &[usize]) -> Vec<f32> {
        let values: Vec<f32> = (1..=shape.iter().product::<usize>()).map(|v| v as f32).collect();
        let factors = Factors::of(&matrix(rows, columns), values, shape).unwrap();
        let mut numbers = vec![1.0; rows * columns];
        let (above, below) = numbers.split_at_mut(columns);
        factors.multiply(&matrix(rows, columns).rows(0, 1).unwrap(), above);
        factors.multiply(&matrix(rows, columns).rows(1, rows - 1).unwrap(), below);
        numbers
    }

    #[test]
    fn a_factor_for_all_for_a_row_and_for_a_block() {
        assert_eq!(multiplied(2, 3, &[1, 1]), [1.0; 6]);
        assert_eq!(multiplied(3, 2, &[3]), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        assert_eq!(multiplied(3, 2, &[3, 1]), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        let blocks = multiplied(3, 128, &[3, 2]);
        assert_eq!((blocks[63], blocks[64], blocks[128], blocks[383]), (1.0, 2.0, 3.0, 6.0));
        let blocks = multiplied(200, 130, &[2, 2]); // of 128, the last ones cut
        assert_eq!((blocks[127], blocks[128], blocks[128 * 130], blocks[200 * 130 - 1]), (1.0, 2.0, 3.0, 4.0));
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        let error = |values: &[f32], shape: &[usize]| Factors::of(&matrix(4, 6), values.to_vec(), shape).unwrap_err();
        assert_eq!(error(&[1.0; 3], &[3]), "factors [3] do not fit a matrix [4, 6]");
        assert_eq!(error(&[1.0; 6], &[6]), "factors [6] do not fit a matrix [4, 6]");
        assert_eq!(error(&[], &[0]), "factors [0] do not fit a matrix [4, 6]");
        assert!(error(&[f32::NAN], &[]).contains("expected finite factors"));
    }
}
