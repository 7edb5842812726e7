//! What is kept of computed predictions, by branch, to make later ones up from.

use std::collections::HashMap;

use candle_core::Tensor;
use navicache_control::cache::Approx;
use navicache_control::guidance::Branch;

use crate::Result;

/// The kept predictions of one generation.
pub(crate) struct Store {
    forms: Vec<Approx>,
    slots: HashMap<(Branch, Approx), Tensor>,
}

impl Store {
    /// A store that keeps predictions in the given forms.
    pub fn new(forms: Vec<Approx>) -> Self {
        Store { forms, slots: HashMap::new() }
    }

    /// Bytes the store will hold at most: one tensor of the latents' size for each branch and form.
    pub fn bytes(&self, branches: usize, latents: &Tensor) -> u64 {
        (branches * self.forms.len() * latents.elem_count() * latents.dtype().size_in_bytes()) as u64
    }

    /// Keeps a branch's prediction `output` for input `x`.
    pub fn keep(&mut self, branch: Branch, x: &Tensor, output: &Tensor) -> Result<()> {
        for &form in &self.forms {
            let kept = match form {
                Approx::Residual => (output - x)?,
                Approx::Output => output.clone(),
            };
            self.slots.insert((branch, form), kept);
        }
        Ok(())
    }

    /// Makes a branch's prediction for input `x` up; `None` when nothing was kept for it.
    pub fn make_up(&self, branch: Branch, approx: Approx, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = self.slots.get(&(branch, approx)) else { return Ok(None) };
        Ok(Some(match approx {
            Approx::Residual => (x + kept)?,
            Approx::Output => kept.clone(),
        }))
    }
}
