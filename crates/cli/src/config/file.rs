//! The configuration file: TOML. Keys are options; those above all tables count for every command that has them, those
//! in a table for the command that it is named after.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use navicache_engine::control::nearest::did_you_mean;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Error, Setting, Source, commands, option_of, options};

/// The variable that names the file; empty, none is read.
pub const VARIABLE: &str = "NAVICACHE_CONFIG";

/// Below the folder for configurations.
const NAME: &str = "navicache/config.toml";

/// The file that counts, where there is one.
pub fn place() -> Result<Option<PathBuf>, Error> {
    match std::env::var_os(VARIABLE) {
        Some(named) if named.is_empty() => Ok(None),
        Some(named) if Path::new(&named).is_file() => Ok(Some(named.into())),
        Some(named) => Err(Error::new(
            VARIABLE,
            format!("{} is no file; leave the variable empty to read none", Path::new(&named).display()),
        )),
        None => Ok(usual_place().filter(|path| path.is_file())),
    }
}

/// Where it is looked for.
pub fn usual_place() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| if cfg!(windows) { set("APPDATA") } else { None });
    Some(folder.or_else(|| Some(std::env::home_dir()?.join(".config")))?.join(NAME))
}

type Read = (Vec<Setting>, BTreeMap<String, Vec<Setting>>);

/// What a file sets: for all commands, and for each.
pub fn read(path: &Path, program: &Command) -> Result<Read, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(path.display(), e.to_string()))?;
    parse(&text, path, program)
}

fn parse(text: &str, path: &Path, program: &Command) -> Result<Read, Error> {
    let line = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let at = |offset: usize| Source::File { path: path.to_path_buf(), line: line(offset) };
    let table = DeTable::parse(text).map_err(|e| {
        let place = at(e.span().map_or(0, |span| span.start));
        Error::new(place, format!("not TOML: {}", e.message()))
    })?;
    let (mut for_all, mut for_one) = (Vec::new(), BTreeMap::new());
    for (key, value) in table.into_inner() {
        let (name, place) = (key.get_ref().replace('_', "-"), at(key.span().start));
        match value.get_ref() {
            DeValue::Table(inner) => {
                let Some(command) = program.find_subcommand(&name) else {
                    let known = program.get_subcommands().map(Command::get_name);
                    let reason = format!("[{name}] is no command of navicache{}", did_you_mean(&name, known));
                    return Err(Error::new(place, reason));
                };
                let mut own = Vec::new();
                for (key, value) in inner {
                    let (name, place) = (key.get_ref().replace('_', "-"), at(key.span().start));
                    let Some(option) = option_of(command, &name) else {
                        let known = options(command).filter_map(Arg::get_long);
                        let reason = format!("{name} is no option of {command}{}", did_you_mean(&name, known));
                        return Err(Error::new(place, reason));
                    };
                    own.push(setting(option, name, value, place)?);
                }
                for_one.insert(name, own);
            }
            _ => {
                let Some(option) = commands(program).into_iter().find_map(|command| option_of(command, &name)) else {
                    let known = commands(program).into_iter().flat_map(options).filter_map(Arg::get_long);
                    let reason = format!("{name} is no option of navicache{}", did_you_mean(&name, known));
                    return Err(Error::new(place, reason));
                };
                for_all.push(setting(option, name, &value, place)?);
            }
        }
    }
    Ok((for_all, for_one))
}

fn setting(option: &Arg, name: String, value: &Spanned<DeValue<'_>>, source: Source) -> Result<Setting, Error> {
    let wrong = |expected: &str| Error::new(&source, format!("{name}: expected {expected}"));
    let single = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(OsString::from(text.as_ref())),
        DeValue::Integer(number) => Ok(number.to_string().into()),
        DeValue::Float(number) => Ok(number.to_string().into()),
        DeValue::Boolean(on) => Ok(on.to_string().into()),
        _ => Err(wrong("a text, a number, or true or false")),
    };
    let values = match value.get_ref() {
        DeValue::Array(list) if matches!(option.get_action(), ArgAction::Append) => {
            list.iter().map(|value| single(value.get_ref())).collect::<Result<Vec<_>, _>>()?
        }
        DeValue::Array(_) => return Err(wrong("one value, found a list")),
        value => vec![single(value)?],
    };
    Ok(Setting { option: name, values, source })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(text: &str) -> Result<Read, String> {
        parse(text, Path::new("c.toml"), &crate::args::Args::command()).map_err(|e| e.to_string())
    }

    #[test]
    fn options_for_all_and_for_one() {
        let (for_all, for_one) =
            parsed("threads = 2\ncache_memory = \"2GiB\"\n\n[generate]\nseeds = [1, 2]\nguidance = 4.5\njson = true\n")
                .unwrap();
        let texts = |setting: &Setting| setting.values.iter().map(|v| v.to_string_lossy().into_owned()).collect();
        let all: Vec<(String, Vec<String>)> = for_all.iter().map(|s| (s.option.clone(), texts(s))).collect();
        assert_eq!(all, [("cache-memory".into(), vec!["2GiB".into()]), ("threads".into(), vec!["2".into()])]);
        let own = &for_one["generate"];
        assert_eq!(texts(own.iter().find(|s| s.option == "seeds").unwrap()), ["1", "2"]);
        assert_eq!(texts(own.iter().find(|s| s.option == "guidance").unwrap()), ["4.5"]);
        let place = &own.iter().find(|s| s.option == "json").unwrap().source;
        assert_eq!(place.to_string(), "c.toml, line 7");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("\nthreds = 2", "c.toml, line 2: threds is no option of navicache; did you mean threads?"),
            ("[generat]", "c.toml, line 1: [generat] is no command of navicache; did you mean generate?"),
            ("[generate]\nstpes = 2", "c.toml, line 2: stpes is no option of generate; did you mean steps?"),
            ("[metrics]\nsteps = 2", "c.toml, line 2: steps is no option of metrics"),
            ("steps = [1, 2]", "c.toml, line 1: steps: expected one value, found a list"),
            ("steps = 2026-01-01", "c.toml, line 1: steps: expected a text, a number, or true or false"),
            ("steps = ", "c.toml, line 1: not TOML"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }
}
