//! The numbers behind preset names, for each method and each family of models.
//!
//! Published numbers where there are any. The demo model's own were measured so that `fast`, `mid` and `slow` save about as much
//! on it as on Wan2.1 (2.2, 2.0 and 1.85 times): docs/results.md.

use serde_json::{Map, Value, json};

/// The preset that is taken when none is named.
const DEFAULT: &str = "mid";

/// (method, model family, preset, options)
fn table() -> [(&'static str, &'static str, &'static str, Value); 10] {
    let navicache = |threshold: f64, align_steps: usize| json!({"threshold": threshold, "align_steps": align_steps, "process_noise": 0.05, "measurement_noise": 0.05});
    let easycache = |threshold: f64, warmup_steps: usize| json!({"threshold": threshold, "warmup_steps": warmup_steps});
    [
        // NaviCache README at the ICML 2026 release: Wan2.1, all sizes.
        ("navicache", "wan", "fast", navicache(0.07, 10)),
        ("navicache", "wan", "mid", navicache(0.05, 10)),
        ("navicache", "wan", "slow", navicache(0.04, 10)),
        // EasyCache README: Wan2.1, all sizes.
        ("easycache", "wan", "mid", easycache(0.05, 10)),
        // The same for Wan2.2 TI2V-5B.
        ("navicache", "wan2.2-ti2v", "mid", navicache(0.05, 10)),
        ("easycache", "wan2.2-ti2v", "mid", easycache(0.05, 10)),
        ("navicache", "demo", "fast", navicache(0.05, 10)),
        ("navicache", "demo", "mid", navicache(0.04, 10)),
        ("navicache", "demo", "slow", navicache(0.03, 10)),
        ("easycache", "demo", "mid", easycache(0.04, 10)),
    ]
}

/// The options of a preset (`None`: the default one), or `None` when the method has no such preset for the model family.
/// A method without presets has the empty set of options for no preset.
pub fn options(method: &str, model: &str, preset: Option<&str>) -> Option<Map<String, Value>> {
    if preset.is_none() && names(method, model).is_empty() {
        return Some(Map::new());
    }
    let wanted = preset.unwrap_or(DEFAULT);
    let row = table().into_iter().find(|(m, f, p, _)| (*m, *f, *p) == (method, model, wanted))?;
    row.3.as_object().cloned()
}

/// The presets that a method has for a model family.
pub fn names(method: &str, model: &str) -> Vec<String> {
    table().into_iter().filter(|(m, f, ..)| (*m, *f) == (method, model)).map(|(_, _, p, _)| p.to_string()).collect()
}
