//! Values that may be anything their parser takes, some of which completions offer.

use std::ffi::OsStr;
use std::str::FromStr;
use std::sync::LazyLock;

use clap::builder::{PossibleValue, TypedValueParser};
use navicache_engine::control::cache::{CacheConfig, CacheSpec, presets};
use navicache_engine::{cache_argument, catalog};

/// How a value is read, and what is offered for it.
#[derive(Clone)]
pub struct Listed<T> {
    parse: fn(&str) -> Result<T, String>,
    offered: fn() -> Vec<&'static str>,
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Listed<T> {
    type Value = T;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<T, clap::Error> {
        self.parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.offered)().into_iter().map(PossibleValue::new)))
    }
}

/// A cache method, its presets with it.
pub fn cache() -> Listed<CacheSpec> {
    Listed { parse: |text| cache_argument(text).map_err(|e| e.to_string()), offered: methods_and_presets }
}

/// The same as text: of ranges and lists of methods.
pub fn caches() -> Listed<String> {
    Listed { parse: |text| Ok(text.to_string()), offered: methods_and_presets }
}

/// The name of a method alone.
pub fn method() -> Listed<String> {
    Listed {
        parse: |text| Ok(text.to_string()),
        offered: || CacheConfig::METHODS.iter().map(|about| about.name).collect(),
    }
}

/// A model, by name or path.
pub fn model() -> Listed<String> {
    Listed { parse: |text| Ok(text.to_string()), offered: || [vec!["demo"], published()].concat() }
}

/// A model that can be downloaded.
pub fn published_model() -> Listed<String> {
    Listed { parse: |text| Ok(text.to_string()), offered: published }
}

/// One of few values, which its own parser knows.
pub fn one_of<T>(offered: fn() -> Vec<&'static str>) -> Listed<T>
where
    T: FromStr + Clone,
    T::Err: ToString,
{
    Listed { parse: |text| text.parse::<T>().map_err(|e| e.to_string()), offered }
}

fn published() -> Vec<&'static str> {
    catalog::models().iter().map(|model| model.name.as_str()).collect()
}

/// `navicache`, `navicache:fast`, ...
pub fn methods_and_presets() -> Vec<&'static str> {
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let mut all = Vec::new();
        for about in CacheConfig::METHODS {
            all.push(about.name.to_string());
            let families = presets::families(about.name);
            let mut names: Vec<String> =
                families.iter().flat_map(|family| presets::names(about.name, family)).collect();
            names.sort();
            names.dedup();
            all.extend(names.iter().map(|preset| format!("{}:{preset}", about.name)));
        }
        all
    });
    ALL.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_can_be_read() {
        for offered in methods_and_presets() {
            // The strip of a report has to be named.
            assert!(offered == "schedule" || cache_argument(offered).is_ok(), "{offered}");
        }
        assert!(methods_and_presets().contains(&"navicache:fast"));
        assert!((model().offered)().contains(&"wan2.1-t2v-1.3b"));
    }
}
