//! Which method is used where none is asked for.

use serde_json::Map;

use super::CacheSpec;
use crate::solver::SolverKind;

/// A choice, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// The method, with its preset.
    pub spec: CacheSpec,
    /// The reason, in one line.
    pub why: &'static str,
}

/// The method that came closest to the uncached video of the same solver, at every number of computed steps that was
/// measured: docs/skipping.md has the tables. It was measured on the built-in model, with each of the solvers, its
/// ingredients on one small network of another kind; on the other families' published weights it was not seen yet, and
/// `why` says so, as it does of a solver that is not listed here.
pub fn best(family: &str, solver: SolverKind) -> Best {
    if solver.adds_noise() {
        let why = "the solver adds fresh noise in every step, which no kept prediction knows of; name a method to cache \
                   all the same";
        return Best { spec: CacheSpec::new("none", Map::new()), why };
    }
    let spec = CacheSpec { preset: Some("mid".to_string()), ..CacheSpec::new("stride", Map::new()) };
    let why = match (family, solver) {
        ("demo", SolverKind::UniPc | SolverKind::Euler | SolverKind::DpmPp2M | SolverKind::Ddim) => {
            "closest to the uncached video of all methods for the steps it computes, measured on this model"
        }
        _ => {
            "closest to the uncached video of all methods for the steps it computes, measured on the built-in model; here it was \
             not measured yet"
        }
    };
    Best { spec, why }
}
