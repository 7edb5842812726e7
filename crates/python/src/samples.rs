//! Several prompts in one batch: a policy for each of them, and one decision for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use navicache_control::cache::{Asks, At, Decision, Measurements, Policy, Quantity, Scope};

/// A measurement: of a quantity, at a question of a step.
type Key = (usize, Scope, Quantity);

/// What was measured of every sample in a run. Who measures writes it, the policies read it; the walk in between knows
/// one number for all samples.
#[derive(Clone, Default)]
pub struct Samples(Arc<Mutex<HashMap<Key, Vec<f64>>>>);

impl Samples {
    /// What was measured of each sample.
    pub fn put(&self, at: At, quantity: Quantity, of_samples: Vec<f64>) {
        self.lock().insert((at.step, at.scope, quantity), of_samples);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<f64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same measurements, of one sample.
    fn of(&self, sample: usize, at: At, measured: &Measurements) -> Measurements {
        let all = self.lock();
        let one = |(quantity, joint)| {
            let of_samples = all.get(&(at.step, at.scope, quantity));
            (quantity, of_samples.and_then(|values| values.get(sample)).copied().unwrap_or(joint))
        };
        measured.iter().map(one).collect()
    }
}

/// One policy a sample. What all of them would reuse alike is reused: no sample is reused against its own policy.
pub struct PerSample {
    policies: Vec<Box<dyn Policy>>,
    samples: Samples,
}

impl PerSample {
    /// Of policies that were started alike, one a sample; there is at least one.
    pub fn new(policies: Vec<Box<dyn Policy>>, samples: Samples) -> Self {
        PerSample { policies, samples }
    }
}

impl Policy for PerSample {
    fn asks(&self) -> Asks {
        self.policies.first().map(|policy| policy.asks()).unwrap_or_default()
    }

    fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        let samples = &self.samples;
        let each = self.policies.iter_mut().enumerate();
        let decisions: Vec<Decision> =
            each.map(|(sample, policy)| policy.decide(at, &samples.of(sample, at, measured))).collect();
        match decisions.split_first() {
            Some((first, others)) if others.iter().all(|decision| decision == first) => *first,
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        // All of them are turned, whatever one answers.
        let turned: Vec<bool> = self.policies.iter_mut().map(|policy| policy.dial(threshold)).collect();
        turned.into_iter().all(|turned| turned)
    }

    fn expected_miss(&self) -> Option<f64> {
        self.policies.iter().filter_map(|policy| policy.expected_miss()).reduce(f64::max)
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        for (sample, policy) in self.policies.iter_mut().enumerate() {
            policy.computed(at, &self.samples.of(sample, at, measured));
        }
    }
}
