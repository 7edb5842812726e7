//! `navicache config`: which value an option has, and from where.

use clap::{Arg, Command};
use serde_json::{Value, json};

use super::setting::{Setting, is_switch, options};
use super::{Settings, file};
use crate::args::Config;
use crate::error::{Error, Result};
use crate::terminal::print;

/// An option as it is without the command line.
struct Row {
    option: String,
    value: Option<String>,
    from: String,
}

/// Prints what is set; with the name of a command, all of its options.
pub fn show(asked: &Config, program: &Command) -> Result<()> {
    let settings = &Settings::read(program)?;
    let shown: Vec<(&Command, Vec<Row>)> = match &asked.command {
        Some(name) => {
            let command = program.find_subcommand(name).ok_or_else(|| unknown(name, program))?;
            vec![(command, rows(command, settings, |_| true))]
        }
        None => program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| (command, rows(command, settings, Row::is_set)))
            .collect(),
    };
    let shown: Vec<_> = shown.into_iter().filter(|(_, rows)| asked.command.is_some() || !rows.is_empty()).collect();
    if asked.json {
        let commands = shown.iter().map(|(command, rows)| (command.get_name().to_string(), as_json(rows))).collect();
        let file = &settings.file;
        print(&format!("{:#}", json!({"file": file, "commands": Value::Object(commands)})));
        return Ok(());
    }
    let place = match (&settings.file, file::usual_place()) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(usual)) if std::env::var_os(file::VARIABLE).is_none() => format!("{} (not there)", usual.display()),
        _ => "none".to_string(),
    };
    let mut lines = vec![format!("configuration file: {place}")];
    for (command, rows) in &shown {
        lines.push(format!("\n{}", command.get_name()));
        lines.extend(table(rows));
    }
    if asked.command.is_none() {
        let others = if shown.is_empty() { "Nothing is set there or by" } else { "Nothing else is set there or by" };
        lines.push(format!(
            "\n{others} NAVICACHE_* variables. `navicache config generate` lists all options of generate."
        ));
    }
    print(&lines.join("\n"));
    Ok(())
}

impl Row {
    fn is_set(&self) -> bool {
        !["default", ""].contains(&self.from.as_str())
    }
}

fn rows(command: &Command, settings: &Settings, wanted: impl Fn(&Row) -> bool) -> Vec<Row> {
    let set = settings.of(command);
    options(command).map(|option| row(option, &set)).filter(wanted).collect()
}

fn row(option: &Arg, set: &[Setting]) -> Row {
    let name = option.get_long().unwrap_or_default().to_string();
    if let Some(setting) = set.iter().find(|setting| setting.option == name) {
        let values: Vec<_> = setting.values.iter().map(|value| value.to_string_lossy()).collect();
        return Row { option: name, value: Some(values.join(",")), from: setting.source.to_string() };
    }
    let default: Vec<_> = option.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let value = match is_switch(option) {
        true => Some("false".to_string()),
        false => (!default.is_empty()).then(|| default.join(",")),
    };
    let from = if value.is_some() { "default" } else { "" };
    Row { option: name, value, from: from.to_string() }
}

fn as_json(rows: &[Row]) -> Value {
    let one = |row: &Row| {
        let from = Some(&row.from).filter(|from| !from.is_empty());
        (row.option.clone(), json!({"value": row.value, "from": from}))
    };
    Value::Object(rows.iter().map(one).collect())
}

fn table(rows: &[Row]) -> Vec<String> {
    let width = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let (names, values) = (width(|row| row.option.len()), width(|row| row.value.as_deref().unwrap_or("-").len()));
    let line = |row: &Row| {
        let value = row.value.as_deref().unwrap_or("-");
        format!("  --{:<names$}  {value:<values$}  {}", row.option, row.from).trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

fn unknown(name: &str, program: &Command) -> Error {
    let known: Vec<&str> = program.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name).collect();
    let meant = navicache_engine::control::nearest::did_you_mean(name, known.iter().copied());
    let expected = format!("expected one of {}{meant}", known.join(", "));
    Error::Arguments { what: "command", found: name.to_string(), expected }
}
