//! `convert`: weights of any packaging, written anew.

use navicache_engine::convert::{Conversion, Converted, Progress, convert as converted};
use serde_json::json;

use crate::args::Convert;
use crate::error::Result;
use crate::models::gb;
use crate::progress;
use crate::terminal::{print, spelled};

pub fn convert(options: &Convert) -> Result<()> {
    let mut progress = progress::Progress::new(options.quiet);
    let conversion = Conversion {
        from: options.from.clone(),
        to: options.output.clone(),
        numbers: options.numbers,
        loras: options.lora.clone(),
    };
    let made = converted(&conversion, &mut |Progress { path, done, tensors }| {
        let text = format!("{}: {done} of {tensors} tensors", path.display());
        match progress.terminal {
            true => progress.status(&text),
            false if done == tensors => progress.line(&text),
            false => {}
        }
    })?;
    for note in made.iter().flat_map(|file| &file.notes) {
        progress.line(&format!("warning: {}", spelled(note)));
    }
    match options.json {
        true => print(&format!("{:#}", json!(made))),
        false => print(&made.iter().map(line).collect::<Vec<_>>().join("\n")),
    }
    Ok(())
}

fn line(file: &Converted) -> String {
    let Converted { path, what, bytes, tensors, error, .. } = file;
    let rounded = match error {
        0.0 => "no number was changed".to_string(),
        error => format!("rounding changed what it touched by {:.2} %", 100.0 * error),
    };
    format!("{}: {what}, {tensors} tensors, {}; {rounded}; read again and compared", path.display(), gb(*bytes))
}
