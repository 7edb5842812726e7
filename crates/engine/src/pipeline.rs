//! A pipeline on disk or inside the program, ready to generate.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use navicache_control::cache::{self, CacheMemory};
use navicache_control::nearest::did_you_mean;
use navicache_models::{Branches, Observed};

use crate::device::{DeviceChoice, DtypeChoice, device_name};
use crate::event::Stage;
use crate::family::{self, Family, Shared};
use crate::field::Field;
use crate::host::Host;
use crate::report::Machine;
use crate::request::{Defaults, Request, Resolved};
use crate::size::{AspectRatio, Size};
use crate::{Error, Result, demo, latents, machine};
use candle_core::Device;
use navicache_media::Picture;
use navicache_media::video::Scale;
use navicache_weights::catalog;
use navicache_weights::hub_cache::HubCache;
use navicache_weights::layout::{Base, Files, Parts};
use navicache_weights::{Expert, Folder, LeftOut, Lora, Residence, Role, Tensors, add_lora};

/// How a pipeline is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Where tensors live.
    pub device: DeviceChoice,
    /// In which format matrices are kept; those that are quantised stay so.
    pub dtype: DtypeChoice,
    /// Weights that take the place of the pipeline's own, or make one up.
    pub files: Files,
    /// What is added to the transformer's weights.
    pub loras: Vec<Lora>,
    /// Most bytes of memory to use; `None`: what is free. Weights that would take more than three quarters of it are
    /// streamed from their files, and the VAE works in tiles that fit.
    pub memory: Option<u64>,
}

impl LoadOptions {
    fn added(&self) -> Vec<String> {
        let Files {
            transformer,
            transformer_2,
            text_encoder,
            text_encoder_2,
            vae,
            image_encoder,
            tokenizer,
            tokenizer_2,
        } = &self.files;
        let files = [
            ("transformer", transformer),
            ("transformer_2", transformer_2),
            ("text_encoder", text_encoder),
            ("text_encoder_2", text_encoder_2),
            ("vae", vae),
            ("image_encoder", image_encoder),
            ("tokenizer", tokenizer),
            ("tokenizer_2", tokenizer_2),
        ];
        let files = files.into_iter().filter_map(|(name, file)| Some(format!("{name} {}", file.as_ref()?.display())));
        let lora = |Lora { path, weight, expert }: &Lora| {
            let of = expert.map_or(String::new(), |expert| format!(" for {expert}"));
            format!("lora {} x {weight}{of}", path.display())
        };
        files.chain(self.loras.iter().map(lora)).collect()
    }
}

/// A pipeline of some family.
///
/// Opening it reads configurations and checks that every weight file is whole. Weights are read when they are first
/// needed: the text encoder for each generation and freed after it, transformer and VAE once.
pub struct Pipeline {
    name: String,
    family: Box<dyn Family>,
    warnings: Vec<String>,
    added: Vec<String>,
}

impl Pipeline {
    /// Opens `demo`, the embedded model; a Diffusers folder (the one with `model_index.json`); or another folder or
    /// file of weights, which are recognised by what is in them. An empty name stands for what [`LoadOptions::files`]
    /// give alone.
    pub fn open(model: &str, options: &LoadOptions) -> Result<Self> {
        let base = match model {
            "" => None,
            demo::NAME => Some(Base::Diffusers(Folder::Embedded(demo::FILES))),
            name => Some(Base::of(located(name)?)),
        };
        let place = [Some(Path::new(model)), options.files.transformer.as_deref(), options.files.vae.as_deref()];
        let place = place.into_iter().flatten().find(|path| !path.as_os_str().is_empty());
        let name = place.map(|path| path.display().to_string()).unwrap_or_default();
        let host = Host { device: options.device.open()?, dtype: options.dtype, memory: options.memory };
        let assembly = family::read(Parts::gather(base, &options.files)?)?;
        let mut warnings = assembly.warnings();
        let mut family = assembly.complete(&name, host)?;
        warnings.extend(family.shared().weights.values().flat_map(|weights| weights.notes().iter().cloned()));
        for lora in &options.loras {
            warnings.extend(add_to_transformers(family.shared_mut(), lora)?);
        }
        decide_residence(family.shared_mut());
        Ok(Pipeline { name, family, warnings, added: options.added() })
    }

    /// The model family's implementation.
    pub(crate) fn family(&self) -> &dyn Family {
        &*self.family
    }

    /// What the user should know of what was loaded.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Name or path, as it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Weight files given beside the model, for the report.
    pub fn added(&self) -> &[String] {
        &self.added
    }

    /// What a request leaves open.
    pub fn defaults(&self) -> &Defaults {
        &self.family.shared().defaults
    }

    /// How large videos are in files: as asked for, or as the model has it for files that people look at.
    pub fn scale(&self, asked: Option<usize>) -> Scale {
        asked.map_or(Scale::Watched(self.defaults().scale.unwrap_or(1)), Scale::Asked)
    }

    /// What a request means for this pipeline: every field decided and checked.
    pub fn resolve(&self, request: &Request) -> Result<Resolved> {
        Ok(self.understood(request)?.0)
    }

    /// The same, with the picture that it starts from. A picture and latents from a file say size and length where the
    /// request does not.
    pub(crate) fn understood(&self, request: &Request) -> Result<(Resolved, Option<Picture>)> {
        let family = self.family();
        let mut request = request.clone();
        let picture = request.image.as_ref().map(|path| Picture::open(path)).transpose()?;
        if request.size.is_none() {
            // A picture has an aspect ratio of its own.
            if let (Some(picture), Some(_), None) = (&picture, &request.resolution, request.aspect_ratio) {
                let ratio = AspectRatio { width: picture.width as f64, height: picture.height as f64 };
                request.aspect_ratio = Some(ratio);
            }
            request.size = family.named_size(&request)?;
        }
        if let Some(path) = &request.latents {
            let saved = latents::saved(path)?;
            let (width, height, most) = family.shared().sizes.video_shape(&saved.shape);
            request.size.get_or_insert(Size { width, height });
            request.frames.get_or_insert(saved.frames.unwrap_or(most));
        }
        let (defaults, limits) = (self.defaults(), family.shared().sizes.limits());
        if let Some(picture) = &picture {
            let multiples = (limits.width_multiple, limits.height_multiple);
            request.size.get_or_insert(picture.size_for(defaults.width * defaults.height, multiples).into());
        }
        let shift = |width, height, frames| family.shift(width, height, frames);
        let resolved = request.resolve(defaults, &limits, family.shared().scheduler.solver, &shift)?;
        if !family.shared().weights.contains_key(&Role::SecondTransformer) {
            resolved.refuse_second_guidance()?;
        }
        family.check_dynamic_guidance(&resolved)?;
        Ok((resolved, picture))
    }

    /// The number of frames nearest to one that was wished for, of those that it can make.
    pub fn nearest_frames(&self, wished: usize) -> usize {
        self.family.shared().sizes.limits().nearest_frames(wished)
    }

    /// What width and height must be multiples of.
    pub fn multiples(&self) -> (usize, usize) {
        let limits = self.family.shared().sizes.limits();
        (limits.width_multiple, limits.height_multiple)
    }

    /// Where it runs.
    pub fn machine(&self) -> Machine {
        Machine {
            cpu: machine::cpu_name(),
            threads: machine::threads(),
            device: device_name(self.device()),
            dtype: self.dtype_name(),
            vae: self.family.shared().vae_precision().name().to_string(),
            kernels: navicache_models::Level::current().name().to_string(),
            navicache: env!("CARGO_PKG_VERSION").to_string(),
        }
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.family.shared().host.device
    }

    /// Shape of a request's latents. // (1, channels, latent frames, height, width)
    pub fn latents_shape(&self, request: &Resolved) -> [usize; 5] {
        self.family.shared().sizes.latents_shape(request.width, request.height, request.frames)
    }

    /// The weights of the transformer.
    pub(crate) fn transformer_weights(&self) -> Option<&Tensors> {
        self.family.shared().weights(Role::Transformer).ok()
    }

    /// Format of the transformer's matrices, for the report.
    pub fn dtype_name(&self) -> String {
        let Some(tensors) = self.transformer_weights() else { return "stored".to_string() };
        match (tensors.main_format(), self.family.shared().host.dtype_of(tensors)) {
            (Some(format), dtype) if format.is_packed() || dtype.is_none() => format.to_string(),
            (_, dtype) => dtype.map_or("stored", |dtype| dtype.as_str()).to_string(),
        }
    }

    /// Refuses a video whose activations alone are beyond the memory there is, before anything is loaded.
    pub(crate) fn check_memory(&self, request: &Resolved) -> Result<()> {
        let Some(available) = self.family.shared().host.memory() else { return Ok(()) };
        let tokens = self.tokens(request);
        let needed = self.family.working_bytes(Stage::Denoise, request);
        if needed <= available {
            return Ok(());
        }
        let size = |bytes: u64| ByteSize(bytes).display().iec();
        Err(Error::Invalid {
            field: Field::Size,
            found: format!("{}x{}, {} frames", request.width, request.height, request.frames),
            expected: format!(
                "{tokens} tokens need at least {} beside the weights, {} are free; ask for a smaller or shorter video",
                size(needed),
                size(available)
            ),
        })
    }

    /// Tokens of a request's latents.
    pub fn tokens(&self, request: &Resolved) -> usize {
        self.family.shared().sizes.tokens(&self.latents_shape(request))
    }

    /// What caching will take of memory.
    pub(crate) fn cache_memory(
        &self,
        asks: &cache::Asks,
        run: &cache::Run,
        request: &Resolved,
        denoiser: &dyn Branches,
    ) -> CacheMemory {
        const F32: usize = 4;
        let shape = self.family.shared().sizes.latents_shape(request.width, request.height, request.frames);
        let features = self.family.shared().sizes.tokens(&shape) * denoiser.anatomy().width * F32;
        let predictions = match denoiser.anatomy().observed {
            Observed::Latents => shape.iter().product::<usize>() * F32,
            Observed::Tokens => features,
        };
        CacheMemory::new(asks, run.branches.len(), predictions as u64, features as u64, run.block_count())
    }

    /// Most bytes that caching may keep.
    pub(crate) fn cache_budget(&self, request: &Resolved) -> u64 {
        request.cache_memory.unwrap_or_else(|| self.family.shared().host.memory().unwrap_or(u64::MAX))
    }

    /// Frees the VAE, which was read to see that it is whole, when the transformer needs much of the memory there is.
    pub(crate) fn make_room_for_denoising(&self) {
        if !self.keeps_autoencoder() {
            self.family.free_autoencoder();
        }
    }

    /// Whether the VAE stays loaded during the steps.
    pub(crate) fn keeps_autoencoder(&self) -> bool {
        let needed = self.transformer_weights().map_or(0, Tensors::bytes);
        self.family.shared().host.memory().is_none_or(|memory| needed <= memory / 2)
    }
}

/// Adds a LoRA to the transformer; of two, to the one that it is for, or to both. Says what the user should know.
fn add_to_transformers(Shared { weights, .. }: &mut Shared, lora: &Lora) -> Result<Vec<String>> {
    let (roles, note) = roles_of(lora, weights.contains_key(&Role::SecondTransformer))?;
    let mut said: Vec<String> = note.into_iter().collect();
    for role in roles {
        let Some(transformer) = weights.get_mut(role) else { continue };
        said.extend(add_to_transformer(transformer, lora)?);
    }
    Ok(said)
}

/// The transformers that a LoRA goes into, and what the user should know of that. Of one transformer its name says
/// nothing.
pub(crate) fn roles_of(lora: &Lora, has_two: bool) -> Result<(&'static [Role], Option<String>)> {
    let role_of = |expert| match expert {
        Expert::HighNoise => &[Role::Transformer],
        Expert::LowNoise => &[Role::SecondTransformer],
    };
    match (lora.expert, Expert::of_path(&lora.path).filter(|_| has_two)) {
        (Some(expert), _) if !has_two => {
            let reason = format!("it is for the transformer of {expert}, and this model has one transformer");
            Err(Error::file(&lora.path, reason))
        }
        (Some(expert), _) => Ok((role_of(expert), None)),
        (None, Some(expert)) => {
            let note = format!("{}: added to the transformer of {expert} alone, by its name", lora.path.display());
            Ok((role_of(expert), Some(note)))
        }
        (None, None) => Ok((&[Role::Transformer, Role::SecondTransformer], None)),
    }
}

/// Adds a LoRA to a transformer. Says what was left out of it.
pub(crate) fn add_to_transformer(transformer: &mut Tensors, lora: &Lora) -> Result<Option<String>> {
    let left_out = add_lora(transformer, lora)?;
    Ok(left_out.first().map(|LeftOut { module, reason }| {
        format!("{}: left out {} of its modules, as {module}: {reason}", lora.path.display(), left_out.len())
    }))
}

/// Decides which weights are kept and which are streamed. Those of the VAE are kept: they are small, and used again and
/// again.
fn decide_residence(Shared { host, weights, .. }: &mut Shared) {
    let budget = host.budget();
    for (_, tensors) in weights.iter_mut().filter(|(role, _)| **role != Role::Vae) {
        let kept = host.kept_bytes(tensors);
        tensors.reside(if kept > budget { Residence::Streamed } else { Residence::Mapped });
    }
}

/// The folders or the file of a model: one that is there, or those of a known name which have been downloaded.
pub(crate) fn located(model: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(vec![path.to_path_buf()]);
    }
    let known = catalog::repositories(model);
    let cache = HubCache::from_env()?;
    let here: Option<Vec<PathBuf>> = known.iter().map(|repository| cache.snapshot(repository)).collect();
    if let Some(here) = here.filter(|here| !here.is_empty()) {
        return Ok(here);
    }
    let expected = match known.is_empty() {
        false => format!(
            "it is not here yet: `navicache pull {model}` downloads it; or give the path of a folder or file of weights"
        ),
        true => format!(
            "expected {}, a name that `navicache models` lists, or the path of a folder or file of weights; there is no such file or folder{}",
            demo::NAME,
            did_you_mean(model, catalog::models().iter().map(|known| known.name.as_str()).chain([demo::NAME]))
        ),
    };
    Err(Error::Missing { field: Field::Model, found: model.to_string(), expected })
}
