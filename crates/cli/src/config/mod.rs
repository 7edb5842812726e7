//! Options that the command line leaves out: from `NAVICACHE_*` variables, then from the configuration file, then as
//! they are without either.
//!
//! What options there are is known from the command line's own description, so that a new one can be set in all three
//! places at once. Values that apply are put behind the command's name as if they had been typed there.

mod environment;
mod file;
mod setting;
mod show;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};

pub use setting::Error;
use setting::{Setting, is_switch, option_of, options};
pub use show::show;

/// Everything that is set outside of the command line.
pub struct Settings {
    /// The configuration file, where there is one.
    file: Option<PathBuf>,
    /// From the file: for all commands, and for one.
    for_all: Vec<Setting>,
    for_one: BTreeMap<String, Vec<Setting>>,
    /// From the environment.
    variables: Vec<Setting>,
    /// Variables that look like ours and are not.
    unknown_variables: Vec<String>,
}

impl Settings {
    /// Reads both. Names are checked against every option there is, values when they are used.
    pub fn read(program: &Command) -> Result<Settings, Error> {
        let (variables, unknown_variables) = environment::read(program, std::env::vars_os())?;
        let path = file::place()?;
        let mut settings =
            Settings { file: None, for_all: Vec::new(), for_one: BTreeMap::new(), variables, unknown_variables };
        if let Some(path) = path {
            (settings.for_all, settings.for_one) = file::read(&path, program)?;
            settings.file = Some(path);
        }
        Ok(settings)
    }

    /// What is set for the options of a command: the environment before the file, in the file the command's own table
    /// before what stands for all.
    pub fn of(&self, command: &Command) -> Vec<Setting> {
        let own = self.for_one.get(command.get_name()).into_iter().flatten();
        let mut settings: Vec<Setting> = Vec::new();
        for setting in self.variables.iter().chain(own).chain(&self.for_all) {
            let is_set = settings.iter().any(|other| other.option == setting.option);
            if !is_set && option_of(command, &setting.option).is_some() {
                settings.push(setting.clone());
            }
        }
        settings
    }
}

/// A command line with what was set elsewhere.
#[derive(Default)]
pub struct Completed {
    pub arguments: Vec<OsString>,
    /// Variables that look like ours and are not, each with what it may mean.
    pub unknown_variables: Vec<String>,
    /// What was added.
    added: Vec<Setting>,
}

/// Adds what is set elsewhere to a command line, behind the name of the command that it calls. For a command without
/// options nothing is read.
pub fn complete(arguments: Vec<OsString>, program: &Command) -> Result<Completed, Error> {
    // What is wrong with the command line itself is said when it is read for good.
    let lenient = program.clone().ignore_errors(true);
    let Ok(matches) = lenient.try_get_matches_from(&arguments) else {
        return Ok(Completed { arguments, ..Completed::default() }); // --help and --version
    };
    let (mut command, mut given, mut place) = (program, &matches, 1);
    while let Some((name, inner)) = given.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        place += arguments[place..].iter().position(|argument| argument == name).map_or(0, |ahead| ahead + 1);
        (command, given) = (found, inner);
    }
    if options(command).next().is_none() {
        return Ok(Completed { arguments, ..Completed::default() });
    }
    let settings = Settings::read(program)?;
    let mut added: Vec<Setting> = Vec::new();
    for setting in settings.of(command) {
        let Some(option) = option_of(command, &setting.option) else { continue };
        let yields = is_given(given, option)
            || conflicting(command, option).any(|other| {
                is_given(given, other) || added.iter().any(|added| Some(added.option.as_str()) == other.get_long())
            });
        if !yields {
            added.push(setting);
        }
    }
    let mut typed = Vec::new();
    for setting in &added {
        let option = option_of(command, &setting.option);
        typed.extend(as_typed(setting, option.is_some_and(is_switch))?);
    }
    let mut arguments = arguments;
    arguments.splice(place..place, typed);
    Ok(Completed { arguments, unknown_variables: settings.unknown_variables, added })
}

impl Completed {
    /// Where what an error complains of comes from, if it was not typed.
    pub fn blamed(&self, error: &str) -> Option<String> {
        let named = |setting: &&Setting| error.contains(&format!("'--{}", setting.option));
        let blamed: Vec<&Setting> = self.added.iter().filter(named).collect();
        let said = blamed.iter().map(|setting| format!("--{} is set by {}", setting.option, setting.source));
        (!blamed.is_empty()).then(|| said.collect::<Vec<_>>().join("; "))
    }
}

fn is_given(matches: &ArgMatches, option: &Arg) -> bool {
    use clap::parser::ValueSource;
    matches.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine)
}

/// Arguments that cannot stand beside an option, whichever of the two says so.
fn conflicting<'a>(command: &'a Command, option: &'a Arg) -> impl Iterator<Item = &'a Arg> {
    command.get_arguments().filter(move |other| {
        let says = |one: &Arg, other: &Arg| {
            command.get_arg_conflicts_with(one).iter().any(|conflict| conflict.get_id() == other.get_id())
        };
        other.get_id() != option.get_id() && (says(option, other) || says(other, option))
    })
}

/// The words that would have been typed.
fn as_typed(setting: &Setting, switch: bool) -> Result<Vec<OsString>, Error> {
    let named = OsString::from(format!("--{}", setting.option));
    if !switch {
        let with_value = |value: &OsString| [named.as_os_str(), OsStr::new("="), value].into_iter().collect();
        return Ok(setting.values.iter().map(with_value).collect());
    }
    let text = setting.values.first().and_then(|value| value.to_str()).unwrap_or_default();
    match text.to_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(vec![named]),
        "false" | "0" | "no" | "off" => Ok(Vec::new()),
        _ => Err(Error::new(&setting.source, format!("--{}: expected true or false, found {text:?}", setting.option))),
    }
}
