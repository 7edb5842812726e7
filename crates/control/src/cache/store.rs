//! What is kept of computed values, to approximate later ones from, and what that takes of memory.

use std::collections::{HashMap, VecDeque};

use super::references::{Counts, remembered};
use serde::{Deserialize, Serialize};

use super::{Approx, Asks, Form, Kept, Recipe, Run, Scope};
use crate::guidance::Branch;
use crate::resume::{Convert, ResumeError};

/// The kept values of one generation.
#[derive(Debug)]
pub struct Store<V> {
    depths: HashMap<Kept, usize>,
    slots: HashMap<(Branch, Kept), VecDeque<V>>,
}

impl<V> Store<V> {
    /// A store that keeps what the answers to `asks` may need.
    pub fn new(asks: &Asks) -> Self {
        Store { depths: depths(asks), slots: HashMap::new() }
    }

    /// Whether this is kept at all.
    pub fn wants(&self, kept: Kept) -> bool {
        self.depths.contains_key(&kept)
    }

    /// Keeps a branch's value.
    pub fn keep(&mut self, branch: Branch, kept: Kept, value: V) {
        let Some(&depth) = self.depths.get(&kept) else { return };
        let slot = self.slots.entry((branch, kept)).or_default();
        slot.push_front(value);
        slot.truncate(depth);
    }

    /// The terms of a weighted sum of what was kept; `None` when there is less than the recipe takes.
    pub fn terms(&self, recipe: &Recipe) -> Option<Vec<(f64, &V)>> {
        let slot = self.slots.get(&(recipe.branch, recipe.kept))?;
        let enough = !recipe.weights.is_empty() && slot.len() >= recipe.weights.len();
        enough.then(|| recipe.weights.iter().copied().zip(slot).collect())
    }

    /// Another network takes over: nothing that was kept is of any use to it.
    pub fn clear(&mut self) {
        self.slots.clear();
    }
}

impl<V: Clone> Store<V> {
    /// All of it, in order.
    pub(super) fn save(&self) -> Vec<Stocked<V>> {
        let saved = self.slots.iter().map(|(&(branch, kept), values)| Stocked { branch, kept, values: values.clone() });
        let mut saved: Vec<_> = saved.collect();
        saved.sort_by_key(Stocked::name);
        saved
    }

    /// The same in a run under `asks`.
    pub(super) fn resume(asks: &Asks, run: &Run, saved: Vec<Stocked<V>>) -> Result<Self, ResumeError> {
        let mut store = Store::new(asks);
        for one in saved {
            let name = one.name();
            let known = run.branches.contains(&one.branch);
            ResumeError::unless(known, "the branch of what was kept", &name, format!("{:?}", run.branches))?;
            let (found, most) = (one.values.len(), store.depths.get(&one.kept).copied().unwrap_or_default());
            ResumeError::unless(found <= most, &name, format!("{found} kept"), format!("{most} kept"))?;
            let twice = store.slots.insert((one.branch, one.kept), one.values).is_some();
            ResumeError::unless(!twice, "what was kept", format!("{name} twice"), "each once")?;
        }
        Ok(store)
    }
}

/// What is kept of one branch in one form, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stocked<V> {
    branch: Branch,
    kept: Kept,
    values: VecDeque<V>,
}

impl<V> Stocked<V> {
    /// The same over other values.
    pub(super) fn map<W, E>(self, convert: Convert<V, W, E>) -> Result<Stocked<W>, E> {
        let name = self.name();
        let values = self.values.into_iter().enumerate();
        let values = values.map(|(age, value)| convert(&format!("store.{name}.{age}"), value));
        Ok(Stocked { values: values.collect::<Result<_, E>>()?, branch: self.branch, kept: self.kept })
    }

    /// `cond.residual`, `cond.3.output`: no two have the same.
    fn name(&self) -> String {
        let form = |form: Form| match form {
            Form::Residual => "residual",
            Form::Output => "output",
        };
        let branch = self.branch.name();
        match self.kept {
            Kept::Prediction(of) => format!("{branch}.{}", form(of)),
            Kept::CfgDifference => format!("{branch}.cfg_difference"),
            Kept::Span(span, of) => format!("{branch}.{span}.{}", form(of)),
        }
    }
}

/// How many values are kept of what.
fn depths(asks: &Asks) -> HashMap<Kept, usize> {
    let mut depths: HashMap<Kept, usize> = HashMap::new();
    let mut note = |approximations: &[Approx], scope: Scope| {
        for approx in approximations {
            let Some(kept) = approx.kept(scope) else { continue };
            let depth = depths.entry(kept).or_default();
            *depth = approx.depth().max(*depth);
        }
    };
    for question in [&asks.step, &asks.branch].into_iter().flatten() {
        note(&question.to_reuse, Scope::Step);
    }
    if let Some(spans) = &asks.spans {
        for (span, _) in spans.cut.iter().enumerate().filter(|(_, span)| span.reusable) {
            note(&spans.question.to_reuse, Scope::Span { branch: Branch::Cond, span });
        }
    }
    depths
}

/// What caching takes of memory, known before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheMemory {
    /// All of it, in bytes.
    pub bytes: u64,
    /// Values as large as the latents.
    pub latents: Item,
    /// Values as large as the tokens of a block.
    pub features: Item,
}

/// Values of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub bytes_each: u64,
}

impl CacheMemory {
    /// Of what is kept and remembered for `asks`, with tensors of so many bytes and so many blocks.
    pub fn new(asks: &Asks, branches: usize, latents_bytes: u64, features_bytes: u64, blocks: usize) -> Self {
        let kept = |of_features: bool| -> usize {
            let is_features = |kept: &Kept| matches!(kept, Kept::Span(..));
            depths(asks).iter().filter(|(kept, _)| is_features(kept) == of_features).map(|(_, depth)| depth).sum()
        };
        let Counts { latents, features } = remembered(asks, blocks);
        let count = |values: usize| (values * branches) as u64;
        // What the solver keeps to go back to is of the guided prediction: not one a branch.
        let of_solver = asks.step.iter().flat_map(|q| &q.to_reuse).map(|approx| approx.solver_values()).max();
        let latents =
            Item { count: count(kept(false) + latents) + of_solver.unwrap_or(0) as u64, bytes_each: latents_bytes };
        let features = Item { count: count(kept(true) + features), bytes_each: features_bytes };
        let bytes = latents.count * latents.bytes_each + features.count * features.bytes_each;
        CacheMemory { bytes, latents, features }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Question, Span, Spans};
    use super::*;

    const RESIDUAL: Kept = Kept::Prediction(Form::Residual);

    fn question(approximations: Vec<Approx>) -> Question {
        Question { to_reuse: approximations, ..Question::default() }
    }

    #[test]
    fn as_much_is_kept_as_answers_need() {
        let mut store = Store::new(&Asks { step: Some(question(vec![Approx::Linear])), ..Asks::default() });
        assert!(store.wants(RESIDUAL) && !store.wants(Kept::CfgDifference));
        let terms = |store: &Store<f64>, branch, weights: &[f64]| {
            let recipe = Recipe { branch, kept: RESIDUAL, weights: weights.to_vec(), split: None };
            store.terms(&recipe).map(|terms| terms.iter().map(|(w, v)| w * **v).sum::<f64>())
        };
        assert_eq!(terms(&store, Branch::Cond, &[1.0]), None);
        for value in [7.0, 2.0, 5.0] {
            store.keep(Branch::Cond, RESIDUAL, value);
        }
        assert_eq!(terms(&store, Branch::Cond, &[1.0]), Some(5.0));
        assert_eq!(terms(&store, Branch::Cond, &[2.0, -1.0]), Some(8.0));
        assert_eq!(terms(&store, Branch::Cond, &[1.0, 1.0, 1.0]), None, "two are kept for a line");
        assert_eq!(terms(&store, Branch::Uncond, &[1.0]), None, "branches keep apart");
        store.clear();
        assert_eq!(terms(&store, Branch::Cond, &[1.0]), None);
    }

    #[test]
    fn memory_counts_what_is_kept_and_what_is_remembered() {
        let cut = vec![Span::probe(0..3), Span::of(3..9)];
        let asks = Asks {
            spans: Some(Spans { cut, question: question(vec![Approx::Quadratic]) }),
            step: Some(question(vec![Approx::Residual])),
            branch: None,
        };
        // two branches: three residuals of one span of 1000 bytes, one residual of 10 bytes
        assert_eq!(CacheMemory::new(&asks, 2, 10, 1000, 3).bytes, 2 * (3 * 1000 + 10));
    }
}
