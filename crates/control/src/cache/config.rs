//! The registry: every method's options as one tagged record, and the text form that the command line takes.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Method, easycache, navicache, none, presets};

/// A method with all its options. In JSON: `{"method": "navicache", "threshold": 0.05, ...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum CacheConfig {
    /// See [`none`].
    None(none::Config),
    /// See [`easycache`].
    EasyCache(easycache::Config),
    /// See [`navicache`].
    NaviCache(navicache::Config),
}

impl CacheConfig {
    /// The names that `--cache` takes.
    pub const NAMES: &[&str] = &["none", "easycache", "navicache"];

    /// The method behind the record.
    pub fn method(&self) -> &dyn Method {
        match self {
            CacheConfig::None(config) => config,
            CacheConfig::EasyCache(config) => config,
            CacheConfig::NaviCache(config) => config,
        }
    }

    /// Refuses numbers that make no sense.
    fn check(self) -> Result<Self, CacheError> {
        let numbers = match &self {
            CacheConfig::None(_) => vec![],
            CacheConfig::EasyCache(c) => vec![("threshold", c.threshold)],
            CacheConfig::NaviCache(c) => vec![
                ("threshold", c.threshold),
                ("process_noise", c.process_noise),
                ("measurement_noise", c.measurement_noise),
                ("noise_floor", c.noise_floor),
                ("uncertainty", c.uncertainty),
                ("drift", c.drift.unwrap_or_default()),
            ],
        };
        if let CacheConfig::NaviCache(c) = &self {
            let parts = [("noise_floor", c.noise_floor), ("drift", c.drift.unwrap_or_default())];
            if let Some((option, value)) = parts.into_iter().find(|(_, value)| *value > 1.0) {
                let reason = format!("{option} is {value}, expected 0 to 1");
                return Err(CacheError::Options { method: "navicache".to_string(), reason });
            }
        }
        match numbers.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            Some((option, value)) => {
                let reason = format!("{option} is {value}, expected a finite number of 0 or more");
                Err(CacheError::Options { method: self.method().name().to_string(), reason })
            }
            None => Ok(self),
        }
    }
}

/// What was asked for: `METHOD[:PRESET][,key=value...]`, for example `navicache:fast,max_run=3`.
///
/// Which numbers a preset stands for depends on the model: [`CacheSpec::resolve`].
#[derive(Debug, Clone, PartialEq)]
pub struct CacheSpec {
    /// Name of the method.
    pub method: String,
    /// Name of the preset; `None`: the model's `mid`.
    pub preset: Option<String>,
    /// Options given one by one; they win over the preset's.
    pub options: Map<String, Value>,
}

/// What is wrong with a `--cache` argument.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CacheError {
    /// No such method.
    #[error("cache method {found:?} is not known; known are {}", CacheConfig::NAMES.join(", "))]
    UnknownMethod {
        /// What was asked for.
        found: String,
    },
    /// The method has no such preset for the model.
    #[error("cache method {method} has no preset {preset:?} for model {model}; {}", known_presets(known))]
    UnknownPreset {
        /// The method.
        method: String,
        /// What was asked for.
        preset: String,
        /// The model's preset family.
        model: String,
        /// The presets there are.
        known: Vec<String>,
    },
    /// Text between commas that is not `key=value`.
    #[error("cache option {found:?}: expected key=value, as in \"navicache:mid,threshold=0.05\"")]
    NotAnOption {
        /// The text.
        found: String,
    },
    /// An option is unknown, missing or out of range.
    #[error("cache method {method}: {reason}")]
    Options {
        /// The method.
        method: String,
        /// Which option, and what was expected.
        reason: String,
    },
}

fn known_presets(known: &[String]) -> String {
    if known.is_empty() { "it has none".to_string() } else { format!("it has {}", known.join(", ")) }
}

impl FromStr for CacheSpec {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default().trim();
        let (method, preset) = match head.split_once(':') {
            Some((method, preset)) => (method, Some(preset.to_string())),
            None => (head, None),
        };
        if !CacheConfig::NAMES.contains(&method) {
            return Err(CacheError::UnknownMethod { found: method.to_string() });
        }
        let mut options = Map::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .filter(|(key, value)| !key.trim().is_empty() && !value.trim().is_empty())
                .ok_or_else(|| CacheError::NotAnOption { found: part.to_string() })?;
            let value = value.trim();
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_string()));
            options.insert(key.trim().to_string(), value);
        }
        Ok(CacheSpec { method: method.to_string(), preset, options })
    }
}

impl CacheSpec {
    /// The options in full: the preset's numbers for a model's preset family (see [`presets`]), then those given one by one.
    pub fn resolve(&self, model: &str) -> Result<CacheConfig, CacheError> {
        let mut options = presets::options(&self.method, model, self.preset.as_deref()).ok_or_else(|| {
            let known = presets::names(&self.method, model);
            let preset = self.preset.clone().unwrap_or_default();
            CacheError::UnknownPreset { method: self.method.clone(), preset, model: model.to_string(), known }
        })?;
        options.extend(self.options.clone());
        options.insert("method".to_string(), Value::String(self.method.clone()));
        serde_json::from_value::<CacheConfig>(Value::Object(options))
            .map_err(|e| CacheError::Options { method: self.method.clone(), reason: e.to_string() })?
            .check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<CacheConfig, CacheError> {
        text.parse::<CacheSpec>()?.resolve("wan")
    }

    #[test]
    fn presets_and_options_combine() {
        let CacheConfig::NaviCache(fast) = resolve("navicache:fast,align_steps=6, max_run=3").unwrap() else {
            panic!("not navicache")
        };
        assert_eq!((fast.threshold, fast.align_steps, fast.max_run), (0.07, 6, Some(3)));
        assert_eq!(resolve("navicache").unwrap(), resolve("navicache:mid").unwrap());
        assert_eq!(resolve("none").unwrap(), CacheConfig::None(none::Config {}));
    }

    #[test]
    fn errors_say_what_is_known() {
        let says = |text: &str, part: &str| {
            let message = resolve(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        };
        says("teecache", "known are none, easycache, navicache");
        says("navicache:warp", "it has fast, mid, slow");
        says("none:mid", "it has none");
        says("navicache,threshold", "expected key=value");
        says("navicache,treshold=1", "unknown field `treshold`");
        says("navicache,threshold=-1", "threshold is -1");
        says("navicache,threshold=much", "invalid type");
        says("navicache,drift=1.5", "drift is 1.5, expected 0 to 1");
        says("navicache,projection=never", "at_computed");
        says("none,threshold=0", "unknown field `threshold`");
    }

    #[test]
    fn json_round_trips() {
        let config = resolve("easycache").unwrap();
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["method"], "easycache");
        assert_eq!(serde_json::from_value::<CacheConfig>(json).unwrap(), config);
    }
}
