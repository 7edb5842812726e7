//! What is kept of computed values, to make later ones up from, and what that takes.

use std::collections::{HashMap, VecDeque};

use candle_core::Tensor;
use navicache_control::cache::{Approx, Asks, Kept, Recipe, Scope};
use navicache_control::guidance::Branch;

use crate::measure::Meter;
use crate::spectrum::low_pass;
use crate::{Error, Result};

/// The kept values of one generation.
pub(crate) struct Store {
    depths: HashMap<Kept, usize>,
    slots: HashMap<(Branch, Kept), VecDeque<Value>>,
}

/// A prediction; or the features of the video, and of the text where the model has them.
pub(crate) type Value = Vec<Tensor>;

impl Store {
    /// A store that keeps what the answers to `asks` may need.
    pub fn new(asks: &Asks) -> Self {
        Store { depths: depths(asks), slots: HashMap::new() }
    }

    /// Whether this is kept at all.
    pub fn wants(&self, kept: Kept) -> bool {
        self.depths.contains_key(&kept)
    }

    /// Keeps a branch's value.
    pub fn keep(&mut self, branch: Branch, kept: Kept, value: Value) {
        let Some(&depth) = self.depths.get(&kept) else { return };
        let slot = self.slots.entry((branch, kept)).or_default();
        slot.push_front(value);
        slot.truncate(depth);
    }

    /// The weighted sum of what was kept; `None` when there is less than the recipe takes.
    pub fn make_up(&self, recipe: &Recipe) -> Result<Option<Value>> {
        let Some(slot) = self.slots.get(&(recipe.branch, recipe.kept)) else { return Ok(None) };
        if slot.len() < recipe.weights.len() {
            return Ok(None);
        }
        let Some(newest) = slot.front() else { return Ok(None) };
        let sum = (0..newest.len()).map(|part| {
            let mut sum: Option<Tensor> = None;
            for (value, &weight) in slot.iter().zip(&recipe.weights) {
                let term = if weight == 1.0 { value[part].clone() } else { (&value[part] * weight)? };
                sum = Some(match sum {
                    None => term,
                    Some(sum) => (sum + term)?,
                });
            }
            let sum = sum.unwrap_or(newest[part].zeros_like()?);
            Ok(match recipe.split {
                None => sum,
                Some((low, high)) => {
                    let lows = low_pass(&sum)?;
                    ((&lows * low)? + ((sum - &lows)? * high)?)?
                }
            })
        });
        sum.collect::<Result<Value>>().map(Some)
    }
}

/// How many values are kept of what.
fn depths(asks: &Asks) -> HashMap<Kept, usize> {
    let mut depths: HashMap<Kept, usize> = HashMap::new();
    let mut note = |approximations: &[Approx], scope: Scope| {
        for approx in approximations {
            let depth = depths.entry(approx.kept(scope)).or_default();
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

/// What caching takes of memory, told before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bill {
    /// All of it, in bytes.
    pub bytes: u64,
    latents: Item,
    features: Item,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    count: u64,
    bytes_each: u64,
}

impl Bill {
    /// For tensors of so many bytes and so many blocks.
    pub fn new(asks: &Asks, branches: usize, latents_bytes: u64, features_bytes: u64, blocks: usize) -> Self {
        let kept = |of_features: bool| -> usize {
            let is_features = |kept: &Kept| matches!(kept, Kept::Span(..));
            depths(asks).iter().filter(|(kept, _)| is_features(kept) == of_features).map(|(_, depth)| depth).sum()
        };
        let remembered = Meter::remembered(asks, blocks);
        let count = |tensors: usize| (tensors * branches) as u64;
        let latents = Item { count: count(kept(false) + remembered.latents), bytes_each: latents_bytes };
        let features = Item { count: count(kept(true) + remembered.features), bytes_each: features_bytes };
        let bytes = latents.count * latents.bytes_each + features.count * features.bytes_each;
        Bill { bytes, latents, features }
    }

    /// Refuses a bill over the budget, with both numbers.
    pub fn check(&self, budget: u64, method: &str) -> Result<()> {
        if self.bytes <= budget {
            return Ok(());
        }
        Err(Error::Request {
            what: "--cache",
            found: method.to_string(),
            expected: format!(
                "keeps {} tensors of {} and {} of {}, {} in all; the budget is {} (--cache-memory). \
                 Take a method that keeps less, a smaller video, or a larger budget",
                self.features.count,
                size(self.features.bytes_each),
                self.latents.count,
                size(self.latents.bytes_each),
                size(self.bytes),
                size(budget)
            ),
        })
    }
}

/// `4.4 MB`
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000 => return format!("{bytes} B"),
        1_000..1_000_000 => (1e3, "kB"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{:.1} {name}", bytes as f64 / unit)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use navicache_control::cache::{Form, Question, Span, Spans};

    use super::*;

    const RESIDUAL: Kept = Kept::Prediction(Form::Residual);

    fn question(approximations: Vec<Approx>) -> Question {
        Question { to_reuse: approximations, ..Question::default() }
    }

    #[test]
    fn sums_of_what_was_kept() {
        let tensor = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
        let mut store = Store::new(&Asks { step: Some(question(vec![Approx::Linear])), ..Asks::default() });
        assert!(store.wants(RESIDUAL) && !store.wants(Kept::Gap));
        let made_up = |store: &Store, branch, weights: &[f64]| {
            let recipe = Recipe { branch, kept: RESIDUAL, weights: weights.to_vec(), split: None };
            store.make_up(&recipe).unwrap().map(|value| value[0].to_vec1::<f32>().unwrap()[0])
        };
        assert_eq!(made_up(&store, Branch::Cond, &[1.0]), None);
        for value in [7.0, 2.0, 5.0] {
            store.keep(Branch::Cond, RESIDUAL, vec![tensor(value)]);
        }
        assert_eq!(made_up(&store, Branch::Cond, &[1.0]), Some(5.0));
        assert_eq!(made_up(&store, Branch::Cond, &[2.0, -1.0]), Some(8.0));
        assert_eq!(made_up(&store, Branch::Cond, &[1.0, 1.0, 1.0]), None, "two are kept for a line");
        assert_eq!(made_up(&store, Branch::Uncond, &[1.0]), None, "branches keep apart");
    }

    #[test]
    fn the_bill_counts_what_is_kept_and_what_is_remembered() {
        let cut = vec![Span::probe(0..3), Span::of(3..9)];
        let asks = Asks {
            spans: Some(Spans { cut, question: question(vec![Approx::Quadratic]) }),
            step: Some(question(vec![Approx::Residual])),
            branch: None,
        };
        // two branches: three residuals of one span of 1000 bytes, one residual of 10 bytes
        let bill = Bill::new(&asks, 2, 10, 1000, 3);
        assert_eq!(bill.bytes, 2 * (3 * 1000 + 10));
        assert!(bill.check(6020, "x").is_ok());
        let message = bill.check(6000, "x").unwrap_err().to_string();
        assert!(
            message.contains("--cache x") && message.contains("the budget is 6.0 kB (--cache-memory)"),
            "{message}"
        );
    }
}
