//! What the parts of a model make of a request, each by itself, in one file: to be held against another
//! implementation of the same model (`tools/real`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::denoise::Start;
use crate::draws::Draws;
use crate::event::{Event, Reporter, Stage};
use crate::family::{Conditioning, ImageConditioning};
use crate::machine::computing;
use crate::{Error, Pipeline, Request, Result, WholeFile, latents};

/// Encodes the prompts and the picture of a request, runs the transformer on its noise, and writes what they made, in
/// f32:
///
/// * `text.BRANCH`, and whatever else the family makes of a prompt, as `pooled.BRANCH`
/// * `picture.NAME`: what the picture means, by the family's own names
/// * `timesteps` // (steps)
/// * `noise` // (1, channels, latent frames, height, width)
/// * `velocity.first.BRANCH` and `velocity.last.BRANCH`: what the transformer predicts for that noise at the timesteps
///   of the first and the last step, which are two transformers' where two share the steps // the same shape
///
/// # Errors
/// What `generate` would refuse, and a file that cannot be written.
pub fn save(
    pipeline: &Pipeline,
    request: &Request,
    path: &Path,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<()> {
    let file = WholeFile::create(path)?; // unwritable? now is the time to know
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    let tensors = made(pipeline, request, &mut reporter)?;
    let wrong = |e: safetensors::SafeTensorError| Error::file(path, e.to_string());
    let stored = tensors.iter().map(|(name, tensor)| Ok((name, tensor.dims().to_vec(), latents::f32_bytes(tensor)?)));
    let stored = stored.collect::<Result<Vec<_>>>()?;
    let view = |(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape, bytes).map_err(wrong)?));
    let views = stored.iter().map(|(name, shape, bytes)| view((*name, shape.clone(), bytes)));
    let views = views.collect::<Result<Vec<_>>>()?;
    Ok(file.finish_with(&safetensors::serialize(views, None).map_err(wrong)?)?)
}

/// By their names.
fn made(pipeline: &Pipeline, request: &Request, reporter: &mut Reporter) -> Result<BTreeMap<String, Tensor>> {
    let family = pipeline.family();
    let shared = family.shared();
    let (resolved, picture) = pipeline.understood(request)?;
    family.check(&resolved, reporter)?;
    pipeline.check_memory(&resolved)?;
    reporter.emit(Event::Resolved(&resolved));
    let mut tensors = BTreeMap::new();

    // 1. Schedule and noise
    let steps = shared.scheduler.schedule(resolved.solver, resolved.steps, resolved.shift)?.steps;
    let timesteps = steps.iter().map(|step| step.timestep.0 as f32).collect();
    tensors.insert("timesteps".to_string(), Tensor::from_vec(timesteps, steps.len(), &Device::Cpu)?);
    let shape = shared.sizes.latents_shape(resolved.width, resolved.height, resolved.frames);
    let noise = match &resolved.latents {
        Some(path) => latents::from_file(path, &shape, &shared.host.device)?,
        None => Draws { given: false, ..family.draws(&resolved, &shape) }.start(&shared.host.device)?,
    };
    tensors.insert("noise".to_string(), noise.clone());

    // 2. What the model is conditioned on
    reporter.emit(Event::Stage(Stage::Text));
    let branches = family.branches(&resolved);
    let texts = family.encode(&resolved, &branches, reporter)?;
    for ((branch, _), inputs) in branches.iter().zip(&texts) {
        tensors.extend(inputs.iter().map(|(name, tensor)| (format!("{name}.{}", branch.name()), tensor.clone())));
    }
    let image = match &picture {
        Some(picture) => {
            reporter.emit(Event::Stage(Stage::Picture));
            family.encode_image(picture, &resolved)?
        }
        None => ImageConditioning::default(),
    };
    let known = image.known_latents.as_ref().map(|known| ("known", known));
    for (name, tensor) in image.inputs.iter().chain(known) {
        tensors.insert(format!("picture.{name}"), tensor.clone());
    }

    // 3. The transformer
    reporter.emit(Event::Stage(Stage::Load));
    let seen = Start::shown(image.known_latents.as_ref(), &noise)?;
    let conditioning =
        Conditioning { branches: branches.iter().map(|(branch, _)| *branch).zip(texts).collect(), image };
    let denoiser = family.denoiser(&resolved, &conditioning)?;
    reporter.emit(Event::Stage(Stage::Denoise));
    for (place, step) in [("first", steps.first()), ("last", steps.last())] {
        for (index, (branch, _)) in branches.iter().enumerate() {
            reporter.stop_if_cancelled(0, steps.len())?;
            let Some(step) = step else { continue };
            let velocity = computing(|| {
                let mut pass = denoiser.begin(index, &seen, step.timestep.0, None)?;
                (0..denoiser.anatomy().units.len()).try_for_each(|unit| pass.run_unit(unit))?;
                pass.finish()
            })?;
            tensors.insert(format!("velocity.{place}.{}", branch.name()), velocity);
        }
    }
    Ok(tensors)
}
