//! A setting: an option, its values, and where they are from. What options there are.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};

/// Where a value was set.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    Variable(String),
    File { path: PathBuf, line: usize },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Variable(name) => f.write_str(name),
            Source::File { path, line } => write!(f, "{}, line {line}", path.display()),
        }
    }
}

/// What is set for an option; several values where the option may be given again.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// As on the command line, without the dashes.
    pub option: String,
    pub values: Vec<OsString>,
    pub source: Source,
}

/// A file or variable that cannot be used: where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct Error {
    place: String,
    reason: String,
}

impl Error {
    pub fn new(place: impl fmt::Display, reason: impl Into<String>) -> Error {
        Error { place: place.to_string(), reason: reason.into() }
    }
}

/// The option of a command by its long name.
pub fn option_of<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    options(command).find(|option| option.get_long() == Some(name))
}

/// What can be set: everything but what has no name, and what shows something instead of doing it.
pub fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let shows = |option: &Arg| matches!(option.get_action(), ArgAction::Help | ArgAction::Version);
    let is_option = move |option: &&Arg| option.get_long().is_some_and(|name| name != "help") && !shows(option);
    command.get_arguments().filter(is_option)
}

/// Commands that have options to set, with those inside of others.
pub fn commands(program: &Command) -> Vec<&Command> {
    let inner = program.get_subcommands().flat_map(commands);
    program.get_subcommands().chain(inner).collect()
}

pub fn is_switch(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}
