//! What is added to a tensor when it is read.

use std::ops::Range;

use candle_core::{Result, Tensor};

/// What is added to a tensor when it is read.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub form: Form,
    /// What the form is multiplied by.
    pub factor: f64,
    /// The form's rows that are the tensor's, where it has more.
    pub rows: Option<Range<usize>>,
    /// Norms that the rows of the changed tensor have.
    pub magnitudes: Option<Tensor>, // (rows)
    /// How much of it is added: 1 is as it was trained.
    pub weight: f64,
}

/// A change before it is multiplied.
#[derive(Debug, Clone)]
pub(crate) enum Form {
    /// `up down`: LoRA.
    Product {
        up: Tensor,   // (out, rank)
        down: Tensor, // (rank, in)
    },
    /// Two such products, multiplied number by number: LoHa.
    Hadamard([[Tensor; 2]; 2]),
    /// Every number of `left` times all of `right`: LoKr.
    Kronecker {
        left: Tensor,  // (a, b)
        right: Tensor, // (out / a, in / b)
    },
    /// Numbers in the tensor's order.
    Sum(Tensor),
}

impl Form {
    /// Its rows and columns.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Form::Product { up, down } => Ok((up.dim(0)?, down.dim(1)?)),
            Form::Hadamard([[a, b], _]) => Ok((a.dim(0)?, b.dim(1)?)),
            Form::Kronecker { left, right } => Ok((left.dim(0)? * right.dim(0)?, left.dim(1)? * right.dim(1)?)),
            Form::Sum(numbers) => {
                let rows = numbers.dims().first().copied().unwrap_or(1);
                Ok((rows, numbers.elem_count() / rows.max(1)))
            }
        }
    }

    /// Whether it is zero everywhere, as that of a module that was never trained.
    pub fn is_zero(&self) -> Result<bool> {
        let zero = |tensor: &Tensor| Ok(tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? == 0.0);
        match self {
            Form::Product { up, down } => Ok(zero(up)? || zero(down)?),
            Form::Hadamard([[a, b], [c, d]]) => Ok(zero(a)? || zero(b)? || zero(c)? || zero(d)?),
            Form::Kronecker { left, right } => Ok(zero(left)? || zero(right)?),
            Form::Sum(numbers) => zero(numbers),
        }
    }

    /// All of it, or some of its rows. // (rows, columns)
    fn numbers(&self, rows: Option<&Range<usize>>) -> Result<Tensor> {
        let part = |tensor: &Tensor| match rows {
            Some(rows) => tensor.narrow(0, rows.start, rows.len())?.contiguous(),
            None => Ok(tensor.clone()),
        };
        match self {
            Form::Product { up, down } => part(up)?.matmul(down),
            Form::Hadamard([[a, b], [c, d]]) => part(a)?.matmul(b)? * part(c)?.matmul(d)?,
            Form::Kronecker { left, right } => {
                let ((a, b), (c, d)) = (left.dims2()?, right.dims2()?);
                let all = left.reshape((a, 1, b, 1))?.broadcast_mul(&right.reshape((1, c, 1, d))?)?;
                part(&all.reshape((a * c, b * d))?)
            }
            Form::Sum(numbers) => part(numbers),
        }
    }
}

impl Change {
    /// A form as it is, all of it.
    pub fn plain(form: Form, factor: f64, weight: f64) -> Self {
        Change { form, factor, rows: None, magnitudes: None, weight }
    }

    /// Whether it depends on the numbers that it is added to.
    pub fn needs_base(&self) -> bool {
        self.magnitudes.is_some()
    }

    /// Adds it to numbers of a tensor. `base`: what they are without any change, for a change that needs it.
    pub fn add_to(&self, base: &[f32], numbers: &mut [f32]) -> std::result::Result<(), String> {
        let factor = if self.magnitudes.is_some() { self.factor } else { self.factor * self.weight };
        let change = self.form.numbers(self.rows.as_ref()).and_then(|change| change * factor);
        let change = change.and_then(|change| change.flatten_all()?.to_vec1::<f32>()).map_err(|e| e.to_string())?;
        if change.len() != numbers.len() {
            return Err(format!("a LoRA changes {} numbers, it has {}", change.len(), numbers.len()));
        }
        let Some(magnitudes) = &self.magnitudes else {
            numbers.iter_mut().zip(change).for_each(|(number, change)| *number += change);
            return Ok(());
        };
        let magnitudes = magnitudes.to_vec1::<f32>().map_err(|e| e.to_string())?;
        let width = numbers.len().checked_div(magnitudes.len()).unwrap_or(0).max(1);
        let rows = numbers.chunks_mut(width).zip(base.chunks(width)).zip(change.chunks(width)).zip(magnitudes);
        for (((numbers, base), change), magnitude) in rows {
            let changed = || base.iter().zip(change).map(|(base, change)| base + change);
            let norm = changed().map(|number| number as f64 * number as f64).sum::<f64>().sqrt();
            let scale = (magnitude as f64 / norm.max(f64::MIN_POSITIVE)) as f32;
            for ((number, changed), base) in numbers.iter_mut().zip(changed()).zip(base) {
                *number += self.weight as f32 * (scale * changed - base);
            }
        }
        Ok(())
    }
}
