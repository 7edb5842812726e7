//! The numbers behind preset names, for each method and each family of models: `presets.json`.
//!
//! A family is a path with dashes, `wan-t2v-14b`: what it has no presets for it takes from `wan-t2v`, then from `wan`.
//! A name in place of presets stands for those of another family.
//!
//! Where there are published numbers, they are the presets: the READMEs of NaviCache, EasyCache, TeaCache, MagCache,
//! SeaCache and TAFC for the models that they have, the papers of PreciseCache and BWCache, the defaults of DiCache
//! (`mid`), diffusers (FasterCache, TaylorSeer), cache-dit (DBCache) and VideoSys (PAB on Open-Sora). EasyCache's on
//! Open-Sora are NaviCache's. On CogVideoX, TeaCache's are those of its README (1.5) and of its evaluation (2B, 5B),
//! PAB's VideoSys'; of the others none is published, and Wan's stand in their place. The demo model's own were chosen
//! on the demo model: docs/results.md.

use std::sync::OnceLock;

use serde_json::{Map, Value};

/// The preset that is taken when none is named.
const DEFAULT: &str = "mid";

const TABLE: &str = include_str!("presets.json");

fn table() -> &'static Value {
    static PARSED: OnceLock<Value> = OnceLock::new();
    PARSED.get_or_init(|| serde_json::from_str(TABLE).unwrap_or_default())
}

/// All presets of a method for a family.
fn of(method: &str, family: &str) -> Option<&'static Map<String, Value>> {
    let families = &table()[method];
    let mut name = family;
    loop {
        match &families[name] {
            Value::Object(presets) => return Some(presets),
            Value::String(other) => name = other,
            _ => name = name.rsplit_once('-')?.0,
        }
    }
}

/// The options of a preset (`None`: the default one), or `None` when the method has no such preset for the model
/// family. A method without presets has the empty set of options for no preset.
pub fn options(method: &str, family: &str, preset: Option<&str>) -> Option<Map<String, Value>> {
    let Some(presets) = of(method, family) else { return preset.is_none().then(Map::new) };
    presets.get(preset.unwrap_or(DEFAULT))?.as_object().cloned()
}

/// The presets that a method has for a model family.
pub fn names(method: &str, family: &str) -> Vec<String> {
    of(method, family).map(|presets| presets.keys().cloned().collect()).unwrap_or_default()
}

/// The families that a method has presets for.
pub fn families(method: &str) -> Vec<String> {
    table()[method].as_object().map(|families| families.keys().cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{CacheConfig, CacheSpec};
    use super::*;

    #[test]
    fn every_preset_is_a_configuration() {
        assert!(table().is_object(), "presets.json is JSON");
        for about in CacheConfig::METHODS {
            for family in families(about.name) {
                let presets = names(about.name, &family);
                assert!(presets.contains(&DEFAULT.to_string()), "{} for {family} has no {DEFAULT}", about.name);
                for preset in presets {
                    let spec: CacheSpec = format!("{}:{preset}", about.name).parse().unwrap();
                    let config = spec.resolve(&family).unwrap_or_else(|e| panic!("{family}: {e}"));
                    assert_eq!(config.method().name(), about.name);
                }
            }
        }
        let methods: Vec<&str> = CacheConfig::METHODS.iter().map(|about| about.name).collect();
        let unknown = table().as_object().unwrap().keys().find(|row| !methods.contains(&row.as_str()));
        assert_eq!(unknown, None, "a row of no method");
    }

    #[test]
    fn families_inherit() {
        let ratios = |family| options("magcache", family, None).unwrap()["ratios"].clone();
        assert_eq!(ratios("wan-t2v-14b"), "wan-t2v-14b");
        assert_eq!(ratios("wan-t2v-1.3b"), "wan-t2v-1.3b");
        assert_eq!(ratios("wan"), "wan-t2v-1.3b");
        assert_eq!(options("seacache", "wan2.2-ti2v-5b", None), options("seacache", "wan", None));
        assert!(options("teacache", "wan2.2-ti2v-5b", Some("mid")).is_none(), "no polynomial is published");
    }
}
