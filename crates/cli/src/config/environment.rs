//! `NAVICACHE_*` variables.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Command;
use navicache_engine::control::nearest::nearest;
use navicache_engine::models::LEVEL_VARIABLE;

use super::file;
use super::setting::{Error, Setting, Source, commands, options};

/// What the names of our variables begin with.
const PREFIX: &str = "NAVICACHE_";

/// Variables that stand for no option.
const OTHERS: &[&str] = &[file::VARIABLE, LEVEL_VARIABLE];

/// What is set, and the names that look like ours and are not. An empty variable sets nothing.
pub fn read(
    program: &Command,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Vec<Setting>, Vec<String>), Error> {
    let known: BTreeMap<String, &str> = commands(program)
        .into_iter()
        .flat_map(options)
        .filter_map(|option| option.get_long())
        .map(|name| (variable(name), name))
        .collect();
    let (mut settings, mut unknown) = (Vec::new(), Vec::new());
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)).map(str::to_string) else { continue };
        match known.get(&name) {
            _ if OTHERS.contains(&name.as_str()) => {}
            Some(_) if value.is_empty() => {}
            Some(option) => {
                let option = option.to_string();
                settings.push(Setting { option, values: vec![value], source: Source::Variable(name) });
            }
            None => {
                let names = known.keys().map(String::as_str).chain(OTHERS.iter().copied());
                let meant = nearest(&name, names).map_or(String::new(), |meant| format!("; did you mean {meant}?"));
                unknown.push(format!("{name} is no variable of navicache, and does nothing{meant}"));
            }
        }
    }
    Ok((settings, unknown))
}

/// `NAVICACHE_CACHE_MEMORY` of `cache-memory`.
fn variable(option: &str) -> String {
    format!("{PREFIX}{}", option.to_uppercase().replace('-', "_"))
}
