//! What is kept of computed predictions, by branch, to make later ones up from.

use std::collections::HashMap;

use candle_core::Tensor;
use navicache_control::cache::Approx;
use navicache_control::guidance::Branch;
use navicache_control::schedule::Sigma;

use crate::Result;

/// The kept predictions of one generation.
pub(crate) struct Store {
    forms: Vec<Approx>,
    slots: HashMap<(Branch, Approx), Slot>,
}

/// What was kept of the last computed step, and of the one before it where the form needs two.
struct Slot {
    last: (Sigma, Tensor),
    before: Option<(Sigma, Tensor)>,
}

impl Store {
    /// A store that keeps predictions in the given forms.
    pub fn new(forms: Vec<Approx>) -> Self {
        Store { forms, slots: HashMap::new() }
    }

    /// Bytes the store will hold at most: one or two tensors of the latents' size for each branch and form.
    pub fn bytes(&self, branches: usize, latents: &Tensor) -> u64 {
        let tensors: usize = self.forms.iter().map(|&form| if form == Approx::Linear { 2 } else { 1 }).sum();
        (branches * tensors * latents.elem_count() * latents.dtype().size_in_bytes()) as u64
    }

    /// Keeps a branch's prediction `output` for input `x` at a noise level.
    pub fn keep(&mut self, branch: Branch, sigma: Sigma, x: &Tensor, output: &Tensor) -> Result<()> {
        for &form in &self.forms {
            let kept = match form {
                Approx::Residual | Approx::Linear => (output - x)?,
                Approx::Output => output.clone(),
            };
            let before = self.slots.remove(&(branch, form)).filter(|_| form == Approx::Linear).map(|slot| slot.last);
            self.slots.insert((branch, form), Slot { last: (sigma, kept), before });
        }
        Ok(())
    }

    /// Makes a branch's prediction for input `x` at a noise level up; `None` when nothing was kept for it.
    pub fn make_up(&self, branch: Branch, approx: Approx, sigma: Sigma, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(Slot { last: (last_sigma, last), before }) = self.slots.get(&(branch, approx)) else {
            return Ok(None);
        };
        Ok(Some(match (approx, before) {
            (Approx::Output, _) => last.clone(),
            (Approx::Linear, Some((before_sigma, before))) => {
                let along = (sigma.0 - last_sigma.0) / (last_sigma.0 - before_sigma.0);
                ((x + last)? + ((last - before)? * along)?)?
            }
            (Approx::Residual | Approx::Linear, _) => (x + last)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn every_form_from_what_was_kept() {
        let tensor = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
        let value = |t: Option<Tensor>| t.map(|t| t.to_vec1::<f32>().unwrap()[0]);
        let mut store = Store::new(vec![Approx::Residual, Approx::Output, Approx::Linear]);
        let make_up =
            |store: &Store, approx| value(store.make_up(Branch::Cond, approx, Sigma(0.4), &tensor(1.0)).unwrap());
        assert_eq!(make_up(&store, Approx::Residual), None);

        store.keep(Branch::Cond, Sigma(0.8), &tensor(3.0), &tensor(5.0)).unwrap(); // residual 2
        assert_eq!(make_up(&store, Approx::Linear), Some(3.0), "one step is no line");
        store.keep(Branch::Cond, Sigma(0.6), &tensor(2.0), &tensor(7.0)).unwrap(); // residual 5
        assert_eq!(make_up(&store, Approx::Residual), Some(6.0));
        assert_eq!(make_up(&store, Approx::Output), Some(7.0));
        assert_eq!(make_up(&store, Approx::Linear), Some(9.0), "1 + 5 + 3");
        assert!(store.make_up(Branch::Uncond, Approx::Residual, Sigma(0.4), &tensor(1.0)).unwrap().is_none());
        assert_eq!(store.bytes(2, &tensor(0.0)), 2 * 4 * 4);
    }
}
