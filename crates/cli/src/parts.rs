//! `navicache parts`: what the parts of a model make, each by itself.

use std::path::PathBuf;

use crate::error::Result;
use crate::progress::Progress;
use crate::settings::Sampling;
use crate::terminal::{go_on_unless, stop_on_ctrl_c};
use crate::values::file;

/// Text embeddings, what the picture means, and one call of the transformer in every branch, at the timesteps of the
/// first and the last step. tools/real/check.sh holds them against the reference.
#[derive(clap::Args)]
#[command(args_override_self = true, mut_arg("prompt", |prompt| prompt.required(true)))]
pub struct Parts {
    #[command(flatten)]
    pub sampling: Sampling,

    /// File to write
    #[arg(short, long, value_name = "FILE.safetensors", default_value = "parts.safetensors", value_parser = file)]
    pub output: PathBuf,
}

/// Writes them.
pub fn parts(options: &Parts) -> Result<()> {
    let interrupted = stop_on_ctrl_c();
    let settings = &options.sampling.settings;
    let mut progress = Progress::new(settings.quiet);
    let pipeline = settings.loading.open()?;
    navicache_engine::parts::save(&pipeline, &options.sampling.request(), &options.output, &mut |event| {
        progress.show(&event);
        go_on_unless(&interrupted)
    })?;
    progress.line(&format!("{}: the parts are written.", progress.paint("1", &options.output.display().to_string())));
    Ok(())
}
