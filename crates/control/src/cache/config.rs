//! The registry: every method's options as one tagged record, and the text form that the command line takes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::watch::Mode;
use super::{Method, presets};
use crate::nearest::did_you_mean;

/// What a method is, in a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct About {
    /// As given to `--cache`.
    pub name: &'static str,
    /// What decides.
    pub line: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// What it was written from.
    pub source: &'static str,
    /// What it takes beside the model, if anything.
    pub needs: Option<&'static str>,
}

/// Lists every method once: `Variant module`.
macro_rules! methods {
    ($($variant:ident $module:ident,)*) => {
        /// A method with all its options. In JSON: `{"method": "navicache", "threshold": 0.05, ...}`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "method", rename_all = "lowercase")]
        pub enum CacheConfig {
            $(#[doc = concat!("See [`", stringify!($module), "`](super::", stringify!($module), ").")]
            $variant(super::$module::Config),)*
        }

        impl CacheConfig {
            /// Every method.
            pub const METHODS: &[About] = &[$(super::$module::ABOUT),*];

            /// A method's options, each with its meaning.
            fn options_of(name: &str) -> &'static [(&'static str, &'static str)] {
                $(if name == super::$module::ABOUT.name {
                    return super::$module::Config::OPTIONS;
                })*
                &[]
            }

            /// The method behind the record.
            pub fn method(&self) -> &dyn Method {
                match self {
                    $(CacheConfig::$variant(config) => config,)*
                }
            }
        }
    };
}

methods! {
    None none,
    EasyCache easycache,
    NaviCache navicache,
    PreciseCache precisecache,
    MixCache mixcache,
    TeaCache teacache,
    MagCache magcache,
    Pab pab,
    FbCache fbcache,
    DbCache dbcache,
    TaylorSeer taylorseer,
    FasterCache fastercache,
    DiCache dicache,
    SeaCache seacache,
    Tafc tafc,
    BwCache bwcache,
    AdaCache adacache,
    Trend trend,
    Stride stride,
    Schedule schedule,
}

impl CacheConfig {
    /// Methods with a threshold that a target can move.
    pub const STEERABLE: &[&str] = &[
        "stride",
        "trend",
        "navicache",
        "easycache",
        "precisecache",
        "teacache",
        "magcache",
        "fbcache",
        "dbcache",
        "dicache",
        "seacache",
        "adacache",
    ];

    /// What is known of a method.
    pub fn about(name: &str) -> Result<&'static About, CacheError> {
        let found = CacheConfig::METHODS.iter().find(|about| about.name == name);
        found.ok_or_else(|| CacheError::UnknownMethod { found: name.to_string() })
    }

    /// Everything there is to say of a method: [`About`], its options with meaning and default, its presets by family.
    pub fn describe(about: &About) -> Value {
        let families = presets::families(about.name);
        let example = families.first().map_or("", String::as_str);
        let spec = CacheSpec::new(about.name, Map::new());
        let defaults = spec.resolve(example).map(|config| config.method().options()).unwrap_or_default();
        let set = presets::options(about.name, example, None).unwrap_or_default();
        let option = |(name, meaning): &(&str, &str)| {
            let default = if set.contains_key(*name) { None } else { defaults.get(*name) };
            let meaning = meaning.trim();
            serde_json::json!({"name": name, "meaning": meaning, "default": default, "preset": set.contains_key(*name)})
        };
        let options: Vec<Value> = CacheConfig::options_of(about.name).iter().map(option).collect();
        let of_family = |family: &String| {
            let presets = presets::names(about.name, family).into_iter();
            let presets = presets.map(|preset| {
                let options = presets::options(about.name, family, Some(&preset)).unwrap_or_default();
                (preset, Value::Object(options))
            });
            (family.clone(), Value::Object(presets.collect()))
        };
        let mut described = serde_json::json!(about);
        described["options"] = options.into();
        described["presets"] = Value::Object(families.iter().map(of_family).collect());
        described
    }

    /// What guards may do, where so much was asked for: a strip that is to run again is not to be improved on.
    pub fn guarded(&self, asked: Mode) -> Mode {
        match (self, asked) {
            (CacheConfig::Schedule(_), Mode::Act) => Mode::Warn,
            _ => asked,
        }
    }

    /// Refuses numbers that make no sense.
    pub fn check(self) -> Result<Self, CacheError> {
        let refuse = |reason| CacheError::Options { method: self.method().name().to_string(), reason };
        let options = self.method().options();
        for (option, value) in options.as_object().into_iter().flatten() {
            // Whatever the option, a number counts or measures something: JSON has no infinity, and null stands for it.
            if value.is_null() || value.as_f64().is_some_and(|number| number < 0.0) {
                return Err(refuse(format!("{option} is {value}, expected a finite number of 0 or more")));
            }
        }
        self.method().check().map_err(refuse)?;
        Ok(self)
    }
}

fn method_names() -> impl Iterator<Item = &'static str> {
    CacheConfig::METHODS.iter().map(|about| about.name)
}

fn known_methods() -> String {
    method_names().collect::<Vec<_>>().join(", ")
}

/// What was asked for: `METHOD[:PRESET][,key=value...]`, for example `navicache:fast,max_run=3`.
///
/// Which numbers a preset stands for depends on the model: [`CacheSpec::resolve`].
///
/// In JSON it is that text; for which models a file's options were tuned is not part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheSpec {
    /// Name of the method.
    pub method: String,
    /// Name of the preset; `None`: the model's `mid`.
    pub preset: Option<String>,
    /// Options given one by one; they win over the preset's.
    pub options: Map<String, Value>,
    /// The family of models that the options were tuned for, where a file says so.
    pub tuned_for: Option<String>,
}

impl CacheSpec {
    /// A method with options, without a preset.
    pub fn new(method: impl Into<String>, options: Map<String, Value>) -> Self {
        CacheSpec { method: method.into(), preset: None, options, tuned_for: None }
    }
}

/// What is wrong with a `--cache` argument.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CacheError {
    /// No such method.
    #[error(
        "cache method {found:?} is not known; known are {}{}",
        known_methods(),
        did_you_mean(found, method_names())
    )]
    UnknownMethod {
        /// What was asked for.
        found: String,
    },
    /// The method has no such preset for the model.
    #[error("cache method {method} has no preset {preset:?} for model {model}; {}", known_presets(preset, known))]
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
    /// An option that is given again.
    #[error("cache option {key} is given twice: expected it once")]
    Twice {
        /// Which.
        key: String,
    },
    /// A list of methods that begins with an option.
    #[error("cache option {found:?} belongs to no method: expected one before it, as in \"navicache,threshold=0.05\"")]
    NoMethod {
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

fn known_presets(found: &str, known: &[String]) -> String {
    let meant = did_you_mean(found, known.iter().map(String::as_str));
    if known.is_empty() { "it has none".to_string() } else { format!("it has {}{meant}", known.join(", ")) }
}

impl fmt::Display for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.method)?;
        if let Some(preset) = &self.preset {
            write!(f, ":{preset}")?;
        }
        for (option, value) in &self.options {
            match value {
                Value::String(text) => write!(f, ",{option}={text}")?,
                value => write!(f, ",{option}={value}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for CacheSpec {
    type Error = CacheError;

    fn try_from(text: String) -> Result<Self, CacheError> {
        text.parse()
    }
}

impl From<CacheSpec> for String {
    fn from(spec: CacheSpec) -> Self {
        spec.to_string()
    }
}

impl FromStr for CacheSpec {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        let mut parts = split_outside_brackets(text).into_iter();
        let head = parts.next().unwrap_or_default().trim();
        let (method, preset) = match head.split_once(':') {
            Some((method, preset)) => (method, Some(preset.to_string())),
            None => (head, None),
        };
        let method = CacheConfig::about(method)?.name.to_string();
        let mut options = Map::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .filter(|(key, value)| !key.trim().is_empty() && !value.trim().is_empty())
                .ok_or_else(|| CacheError::NotAnOption { found: part.to_string() })?;
            let value = value.trim();
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_string()));
            if options.insert(key.trim().to_string(), value).is_some() {
                return Err(CacheError::Twice { key: key.trim().to_string() });
            }
        }
        Ok(CacheSpec { preset, ..CacheSpec::new(method, options) })
    }
}

/// The text between commas, those of a list `[1, 2]` aside.
fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

impl CacheSpec {
    /// The texts of a list of methods between commas. Options stand between commas too: one belongs to the method
    /// before it, so that `none,navicache,threshold=0.1` is `none` and `navicache,threshold=0.1`.
    pub fn list(text: &str) -> Result<Vec<String>, CacheError> {
        let mut list: Vec<String> = Vec::new();
        for part in split_outside_brackets(text).into_iter().map(str::trim).filter(|part| !part.is_empty()) {
            // The name of a file may hold anything.
            let is_option = part.contains('=') && !part.starts_with('@') && !part.starts_with("schedule:");
            match list.last_mut() {
                Some(method) if is_option => *method = format!("{method},{part}"),
                None if is_option => return Err(CacheError::NoMethod { found: part.to_string() }),
                _ => list.push(part.to_string()),
            }
        }
        Ok(list)
    }

    /// The options in full: the preset's numbers for a model's preset family (see [`presets`]), then those given one by
    /// one.
    pub fn resolve(&self, model: &str) -> Result<CacheConfig, CacheError> {
        let mut options = presets::options(&self.method, model, self.preset.as_deref()).ok_or_else(|| {
            let known = presets::names(&self.method, model);
            let preset = self.preset.clone().unwrap_or_default();
            CacheError::UnknownPreset { method: self.method.clone(), preset, model: model.to_string(), known }
        })?;
        options.extend(self.options.clone());
        options.insert("method".to_string(), Value::String(self.method.clone()));
        serde_json::from_value::<CacheConfig>(Value::Object(options))
            .map_err(|e| CacheError::Options { method: self.method.clone(), reason: self.unreadable(model, &e) })?
            .check()
    }

    /// `threshold is "abc", expected a number`, where a text stands for one.
    fn not_a_number(&self, error: &str) -> Option<String> {
        let (name, text) = self.options.iter().find_map(|(name, value)| {
            let text = value.as_str()?;
            error.starts_with(&format!("invalid type: string {text:?}")).then_some((name, text))
        })?;
        let expected = match error.rsplit_once("expected ")?.1.split_whitespace().next()? {
            "f64" => "a number",
            "bool" => "true or false",
            "usize" | "u64" | "u32" => "a whole number",
            _ => return None,
        };
        Some(format!("{name} is {text:?}, expected {expected}"))
    }

    /// Where there are no presets, a missing option is no mistake of typing.
    fn unreadable(&self, family: &str, error: &serde_json::Error) -> String {
        let known = || CacheConfig::options_of(&self.method).iter().map(|(name, _)| *name);
        if let Some(unknown) = self.options.keys().find(|option| !known().any(|name| name == *option)) {
            return format!("{error}{}", did_you_mean(unknown, known()));
        }
        if let Some(wrong) = self.not_a_number(&error.to_string()) {
            return wrong;
        }
        if self.method == "none" || !presets::names(&self.method, family).is_empty() {
            return error.to_string();
        }
        let method = &self.method;
        format!(
            "{error}; it has no presets for {family}, so that its options must be given (navicache methods {method})"
        )
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
        let text = "teacache:fast,coefficients=[1.0,2.0,3.0,4.0,5.0],reuse=linear";
        assert_eq!(text.parse::<CacheSpec>().unwrap().to_string(), text);
        assert_eq!(resolve("none").unwrap(), CacheConfig::None(super::super::none::Config {}));
    }

    #[test]
    fn options_of_a_list_belong_to_the_method_before_them() {
        let list = CacheSpec::list("none, navicache:fast,easycache,navicache,threshold=0.1,max_run=3,").unwrap();
        assert_eq!(list, ["none", "navicache:fast", "easycache", "navicache,threshold=0.1,max_run=3"]);
        let brackets = "teacache,coefficients=[1.0,2.0,3.0,4.0,5.0]";
        assert_eq!(CacheSpec::list(&format!("@a=b.json,{brackets}")).unwrap(), ["@a=b.json", brackets]);
        assert!(CacheSpec::list("").unwrap().is_empty());
        let alone = CacheSpec::list("threshold=0.1,none").unwrap_err().to_string();
        assert!(alone.contains("\"threshold=0.1\" belongs to no method"), "{alone}");
    }

    #[test]
    fn errors_say_what_is_known() {
        let says = |text: &str, part: &str| {
            let message = resolve(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        };
        says("teecache", "known are none, easycache, navicache, precisecache");
        says("navicache:warp", "it has fast, mid, slow");
        says("none:mid", "it has none");
        says("navicache,threshold", "expected key=value");
        says("navicache,threshold=0.1, threshold=0.2", "threshold is given twice");
        says("navicache,treshold=1", "unknown field `treshold`");
        says("navicache,treshold=1", "; did you mean threshold?");
        says("navicache,threshold=abc", "threshold is \"abc\", expected a number");
        says("navicahe", "; did you mean navicache?");
        says("navicache:midd", "; did you mean mid?");
        says("navicache,threshold=-1", "threshold is -1");
        says("navicache,drift=1.5", "drift is 1.5, expected 0 to 1");
        says("navicache,projection=never", "at_computed");
        says("none,threshold=0", "unknown field `threshold`");
        let unknown = "teacache".parse::<CacheSpec>().unwrap().resolve("wan2.2-ti2v-5b").unwrap_err().to_string();
        assert!(unknown.contains("missing field `threshold`; it has no presets for wan2.2-ti2v-5b"), "{unknown}");
        says("teacache,coefficients=[1,2]", "coefficients");
        says("teacache,coefficients=wan-15b", "expected five numbers or one of");
        says("teacache,reuse=from_cond", "leaves a branch out");
        says("navicache,reuse=two_anchors", "dicache, fbcache and dbcache have them");
        says("pab,reuse=output", "would overwrite");
        says("pab,self_range=0", "expected 1 or more");
        says("schedule,strip=..|SS|", "nothing was computed");
        says("schedule,strip=SS|mS|", "only whole branches");
    }

    #[test]
    fn guards_act_on_everything_but_a_strip() {
        let strip = resolve("schedule,strip=SS|SS|..|SS|").unwrap();
        let found = [Mode::Act, Mode::Warn, Mode::Off].map(|asked| strip.guarded(asked));
        assert_eq!(found, [Mode::Warn, Mode::Warn, Mode::Off]);
        assert_eq!(resolve("navicache").unwrap().guarded(Mode::Act), Mode::Act);
    }

    #[test]
    fn json_round_trips() {
        let config = resolve("easycache").unwrap();
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["method"], "easycache");
        assert_eq!(serde_json::from_value::<CacheConfig>(json).unwrap(), config);
    }
}
