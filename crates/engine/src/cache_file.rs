//! Cache configurations in files: presets that were tuned (`@FILE`), and strips that are to run again
//! (`schedule:FILE`).

use std::path::Path;

use navicache_control::cache::{CacheConfig, CacheSpec};
use navicache_media::read_text;
use serde_json::{Map, Value, json};

use crate::{Error, Result, WholeFile};

/// Reads a `--cache` argument: a method with options; `@FILE`, a preset; or `schedule:FILE`, a strip. Options may
/// follow a file too.
pub fn cache_argument(text: &str) -> Result<CacheSpec> {
    let (head, options) = text.split_once(',').unwrap_or((text, ""));
    let file = |prefix: &str| head.trim().strip_prefix(prefix).map(Path::new);
    let (path, mut spec) = match (file("@"), file("schedule:")) {
        (Some(path), _) => (path, read_preset(path)?),
        (_, Some(path)) => (path, read_schedule(path)?),
        _ => return Ok(text.parse::<CacheSpec>()?),
    };
    if !options.is_empty() {
        let given: CacheSpec = format!("{},{options}", spec.method).parse()?;
        spec.options.extend(given.options);
    }
    checked(spec, path)
}

/// Whatever the model, the options must make sense; the file is the place to say so.
fn checked(spec: CacheSpec, path: &Path) -> Result<CacheSpec> {
    let mut options = spec.options.clone();
    options.insert("method".to_string(), Value::String(spec.method.clone()));
    let config: CacheConfig =
        serde_json::from_value(Value::Object(options)).map_err(|e| Error::file(path, e.to_string()))?;
    config.check().map_err(|e| Error::file(path, e.to_string()))?;
    Ok(spec)
}

/// A preset as it stands in a file.
pub fn preset(config: &CacheConfig, family: &str, predicted: Value) -> Value {
    json!({"cache": config, "family": family, "predicted": predicted})
}

/// Writes a preset that `@FILE` takes.
pub fn save_preset(config: &CacheConfig, family: &str, predicted: Value, path: &Path) -> Result<()> {
    let preset = preset(config, family, predicted);
    Ok(WholeFile::create(path)?.finish_with(format!("{preset:#}\n").as_bytes())?)
}

/// A preset is an object with the field `cache`, as reports have it too; or that field's value alone.
fn read_preset(path: &Path) -> Result<CacheSpec> {
    preset_from_json(read_json(path)?).map_err(|reason| Error::file(path, reason))
}

/// What a preset says, whether it came from a file or not.
pub fn preset_from_json(mut json: Map<String, Value>) -> Result<CacheSpec, String> {
    let tuned_for = json.get("family").and_then(Value::as_str).map(str::to_string);
    let mut options = match json.remove("cache") {
        Some(Value::Object(cache)) => cache,
        Some(other) => return Err(format!("cache is {other}, expected an object")),
        None => json,
    };
    let Some(Value::String(method)) = options.remove("method") else {
        return Err("has no method, expected {\"cache\": {\"method\": ...}}".to_string());
    };
    let method = CacheConfig::about(&method).map_err(|e| e.to_string())?.name.to_string();
    Ok(CacheSpec { tuned_for, ..CacheSpec::new(method, options) })
}

/// A schedule is a report, or an object with the field `strip` and optionally `family`.
fn read_schedule(path: &Path) -> Result<CacheSpec> {
    let json = read_json(path)?;
    let Some(strip) = json.get("strip").filter(|strip| strip.is_string()) else {
        return Err(Error::file(path, "has no strip, expected a report or {\"strip\": \"SS|..|\"}"));
    };
    let mut options = Map::from_iter([("strip".to_string(), strip.clone())]);
    options.extend(json.get("family").map(|family| ("family".to_string(), family.clone())));
    Ok(CacheSpec::new("schedule", options))
}

fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not a JSON object: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_and_schedules_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let argument = |prefix: &str, name: &str, options: &str| {
            cache_argument(&format!("{prefix}{}{options}", path(name).display()))
        };

        let config = "navicache:fast,max_run=3".parse::<CacheSpec>().unwrap().resolve("wan").unwrap();
        save_preset(&config, "wan", json!({"speedup": 2.0}), &path("preset.json")).unwrap();
        let read = argument("@", "preset.json", "").unwrap();
        assert_eq!((read.resolve("demo").unwrap(), read.tuned_for.as_deref()), (config, Some("wan")));
        let changed = argument("@", "preset.json", ",threshold=0.5").unwrap().resolve("demo").unwrap();
        assert_eq!(changed.method().options()["threshold"], 0.5);

        write("report.json", r#"{"strip": "SS|..|SS|", "family": "demo", "steps": []}"#);
        let forced = argument("schedule:", "report.json", ",reuse=output").unwrap().resolve("demo").unwrap();
        assert_eq!(forced.method().options(), json!({"strip": "SS|..|SS|", "family": "demo", "reuse": "output"}));

        write("bad.json", r#"{"cache": {"method": "navicache", "treshold": 1}}"#);
        write("none.json", "[1]");
        for (prefix, name, part) in [
            ("@", "bad.json", "unknown field `treshold`"),
            ("@", "none.json", "not a JSON object"),
            ("@", "missing.json", "No such file"),
            ("@", "report.json", "has no method"),
            ("schedule:", "bad.json", "has no strip"),
        ] {
            let message = argument(prefix, name, "").unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(name), "{message}");
        }
        assert_eq!(cache_argument("navicache:mid").unwrap(), "navicache:mid".parse().unwrap());
    }
}
