//! Made-up signals of two branches.

use navicache_control::cache::Scope;
use navicache_control::guidance::Branch;

/// Wobble of a trajectory: deterministic, different for every seed.
pub fn wobble(seed: u32, i: usize, k: f64) -> f64 {
    ((i as f64 + 1.0) * (seed as f64 * 0.37 + k)).sin()
}

/// A positive signal for a branch, that falls and wobbles.
pub fn signal(seed: u32, i: usize, branch: usize, scale: f64) -> f64 {
    scale * (1.2 - i as f64 / 60.0) * (1.0 + 0.6 * wobble(seed + 1000 * branch as u32, i, 0.9))
}

/// The index of a scope's branch.
pub fn branch_of(scope: Scope) -> usize {
    match scope {
        Scope::Branch(Branch::Uncond) | Scope::Span { branch: Branch::Uncond, .. } => 1,
        _ => 0,
    }
}
