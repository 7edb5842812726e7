//! What a user is told of a method that cannot help, or did not.

use navicache_control::cache::{Method, StepRecord};
use navicache_control::strip::{Ran, Strip};

/// Steps up to which nothing is left between the guarded steps at both ends.
const FEW_STEPS: usize = 8;

/// Before a run of so many steps: whether the method can reuse anything in it.
pub fn before(method: &dyn Method, steps: usize) -> Option<String> {
    let guard = method.guard(steps);
    let (name, first, last) = (method.name(), guard.first_steps.min(steps), guard.last_steps);
    if !method.caches() {
        None
    } else if first + last >= steps {
        Some(format!(
            "caching does nothing in {steps} steps: {name} always computes the first {first} and the last {last}"
        ))
    } else if steps <= FEW_STEPS {
        let most = steps - first.max(1) - last; // nothing is there to be reused at first
        Some(format!(
            "{name} may reuse up to {most} of only {steps} steps; in a run this short every step counts, and the video \
             may be far from the uncached one"
        ))
    } else {
        None
    }
}

/// After a run: whether the method reused anything.
pub fn after(method: &dyn Method, strip: &Strip, records: &[StepRecord]) -> Option<String> {
    let steps = strip.steps().len();
    let guard = method.guard(steps);
    let free = steps.saturating_sub(guard.first_steps + guard.last_steps);
    let reused = strip.count(Ran::Reused) + strip.count(Ran::Mixed);
    // Where a guard stepped in, it has said so.
    let is_guarded = records.iter().any(|record| !record.alarms.is_empty());
    let is_inert = method.caches() && steps > FEW_STEPS && free > 0 && reused == 0 && !is_guarded;
    is_inert.then(|| format!("0 of {steps} steps reused: the threshold never allowed it"))
}
