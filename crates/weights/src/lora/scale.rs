//! What a LoRA file, or the configuration beside it, says of the strength that it was trained with.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::file::{Meta, read_description};

/// The configuration that PEFT writes beside a file.
const BESIDE: &str = "adapter_config.json";
/// The key of a header that holds the same, where Diffusers writes it.
const IN_HEADER: &str = "lora_adapter_metadata";
/// What stands before the keys of the model that is changed.
const MODEL: &str = "transformer.";

/// Strengths by module.
#[derive(Debug, Default)]
pub(super) struct Scales {
    /// Where they were found, for messages.
    place: String,
    keys: Map<String, Value>,
}

impl Scales {
    /// What the header of a file says, or else the configuration beside it.
    pub fn of(path: &Path, metadata: &std::collections::BTreeMap<String, Meta>) -> Result<Self> {
        let text = |key: &str| match metadata.get(key) {
            Some(Meta::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        if let Some(json) = text(IN_HEADER) {
            let keys = serde_json::from_str(json).map_err(|e| Error::file(path, format!("{IN_HEADER}: {e}")))?;
            return Scales { place: IN_HEADER.to_string(), keys }.checked(path);
        }
        let mut keys = Map::new();
        for key in ["r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora"] {
            let Some(found) = text(&format!("{MODEL}{key}")).or(text(key)) else { continue };
            let wrong = |_| Error::file(path, format!("{key} of its header: expected JSON, found {found:?}"));
            keys.insert(key.to_string(), serde_json::from_str(&found.to_lowercase()).map_err(wrong)?);
        }
        let beside = path.with_file_name(BESIDE);
        if !keys.is_empty() {
            return Scales { place: "its header".to_string(), keys }.checked(path);
        }
        if !beside.exists() {
            return Ok(Scales::default());
        }
        let keys =
            serde_json::from_slice(&read_description(&beside)?).map_err(|e| Error::file(&beside, e.to_string()))?;
        Scales { place: beside.display().to_string(), keys }.checked(path)
    }

    /// Refuses what would change more than the strength.
    fn checked(self, path: &Path) -> Result<Self> {
        match self.key("fan_in_fan_out") {
            Some(Value::Bool(true)) => {
                Err(Error::file(path, format!("fan_in_fan_out of {}: expected false, found true", self.place)))
            }
            _ => Ok(self),
        }
    }

    fn key(&self, key: &str) -> Option<&Value> {
        self.keys.get(&format!("{MODEL}{key}")).or_else(|| self.keys.get(key)).filter(|value| !value.is_null())
    }

    /// What the change of a module is multiplied by. `found`: the rank of its matrices, `None` where they have none.
    pub fn factor(&self, module: &str, found: Option<usize>) -> Result<f64, String> {
        let alpha = match self.of_module("alpha_pattern", module)? {
            Some(alpha) => Some(alpha),
            None => self
                .key("lora_alpha")
                .or_else(|| self.key("alpha"))
                .map(|value| self.number("alpha", value))
                .transpose()?,
        };
        let rank = match self.of_module("rank_pattern", module)? {
            Some(rank) => Some(rank),
            None => self.key("r").map(|value| self.number("r", value)).transpose()?,
        };
        let Some(alpha) = alpha else { return Ok(1.0) };
        if let (Some(said), Some(found)) = (rank, found)
            && said != found as f64
        {
            return Err(format!("expected a rank of {said}, as {} says, found {found}", self.place));
        }
        let rank = rank.or(found.map(|rank| rank as f64)).unwrap_or(1.0);
        if rank <= 0.0 {
            return Err(format!("r of {}: expected more than 0, found {rank}", self.place));
        }
        Ok(match self.key("use_rslora") {
            Some(Value::Bool(true)) => alpha / rank.sqrt(),
            _ => alpha / rank,
        })
    }

    /// The number of a table of modules, each by its name or by the end of it.
    fn of_module(&self, table: &str, module: &str) -> Result<Option<f64>, String> {
        let Some(Value::Object(numbers)) = self.key(table) else { return Ok(None) };
        for (pattern, value) in numbers {
            if pattern.contains(['*', '+', '?', '[', '(', '|', '\\', '$', '^']) {
                return Err(format!("{table} of {}: {pattern:?} is no name of a module", self.place));
            }
            if module.strip_suffix(pattern.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
                return self.number(table, value).map(Some);
            }
        }
        Ok(None)
    }

    fn number(&self, key: &str, value: &Value) -> Result<f64, String> {
        let number = value.as_f64().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("{key} of {}: expected a number, found {value}", self.place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales(json: &str) -> Scales {
        Scales { place: "here".to_string(), keys: serde_json::from_str(json).unwrap() }
    }

    #[test]
    fn strength_is_alpha_over_rank() {
        assert_eq!(scales("{}").factor("a", Some(4)), Ok(1.0));
        assert_eq!(scales(r#"{"r": 4, "lora_alpha": 8}"#).factor("a", Some(4)), Ok(2.0));
        assert_eq!(scales(r#"{"transformer.r": 4, "transformer.lora_alpha": 8}"#).factor("a", Some(4)), Ok(2.0));
        assert_eq!(scales(r#"{"r": 4, "lora_alpha": 8, "use_rslora": true}"#).factor("a", Some(4)), Ok(4.0));
        assert_eq!(scales(r#"{"r": 4, "alpha": 2}"#).factor("a", None), Ok(0.5));
        let tables = r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"q": 16}, "rank_pattern": {"attn.q": 2}}"#;
        assert_eq!(scales(tables).factor("blocks.0.attn.q", Some(2)), Ok(8.0));
        assert_eq!(scales(tables).factor("blocks.0.attn.kq", Some(4)), Ok(2.0));
        let error = scales(tables).factor("k", Some(8)).unwrap_err();
        assert_eq!(error, "expected a rank of 4, as here says, found 8");
        assert!(scales(r#"{"lora_alpha": "x"}"#).factor("a", Some(4)).unwrap_err().contains("expected a number"));
        assert!(scales(r#"{"alpha_pattern": {"a.*": 1}}"#).factor("a", Some(4)).unwrap_err().contains("no name"));
    }
}
