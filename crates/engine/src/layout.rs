//! The parts of a pipeline, wherever they were found: a Diffusers folder, a folder or files of any other packaging, recognised by what
//! is in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use navicache_models::image::clip;
use navicache_models::text::umt5;
use navicache_models::wan::{TransformerConfig, VaeConfig};
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::published::Published;
use crate::request::Defaults;
use crate::scheduler::Scheduler;
use crate::weights::{Component, Folder, Found, Tensors, shards};
use crate::{Error, Result, tokenizer};

/// Files that take the place of a pipeline's own, or make one up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Files {
    /// The transformer.
    pub transformer: Option<PathBuf>,
    /// The text encoder.
    pub text_encoder: Option<PathBuf>,
    /// The VAE.
    pub vae: Option<PathBuf>,
    /// The image encoder.
    pub image_encoder: Option<PathBuf>,
    /// `tokenizer.json` or `spiece.model`.
    pub tokenizer: Option<PathBuf>,
}

/// A component's configuration and weights.
pub(crate) struct Piece<C> {
    pub config: C,
    pub tensors: Tensors,
}

/// What was found of a pipeline.
#[derive(Default)]
pub(crate) struct Pieces {
    pub published: Option<Published>,
    pub defaults: Option<Defaults>,
    pub scheduler: Option<Scheduler>,
    pub tokenizer: Option<Tokenizer>,
    pub text_encoder: Option<Piece<umt5::Config>>,
    pub transformer: Option<Piece<TransformerConfig>>,
    pub vae: Option<Piece<VaeConfig>>,
    pub image_encoder: Option<Piece<clip::Config>>,
    pub preprocessor: Option<Preprocessor>,
    /// Files that hold no part of a pipeline, and why.
    pub unknown: Vec<String>,
    /// Configurations without weights, for weights that are given apart.
    like: Like,
    /// Whether some name speaks of 720P: the one thing that tells two published models apart that are not the same size.
    is_720p: bool,
}

/// What configurations a base has for parts that are given apart.
#[derive(Default)]
struct Like {
    transformer: Option<TransformerConfig>,
    vae: Option<VaeConfig>,
    image_encoder: Option<clip::Config>,
}

/// What the image encoder expects of pixels; `image_processor/preprocessor_config.json`.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Preprocessor {
    pub image_mean: [f64; 3],
    pub image_std: [f64; 3],
}

impl Default for Preprocessor {
    /// CLIP's own (Radford et al. 2021).
    fn default() -> Self {
        Preprocessor {
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

/// Everything that a pipeline needs, complete.
pub(crate) struct Pipeline {
    pub published: Published,
    pub defaults: Defaults,
    pub scheduler: Scheduler,
    pub tokenizer: Tokenizer,
    pub text_encoder: Piece<umt5::Config>,
    pub transformer: Piece<TransformerConfig>,
    pub vae: Piece<VaeConfig>,
    pub image_encoder: Option<Piece<clip::Config>>,
    pub preprocessor: Preprocessor,
}

impl Pieces {
    /// Reads what is at a place and what is given apart; nothing is missing yet.
    pub fn read(base: Option<Base>, files: &Files) -> Result<Self> {
        let mut pieces = match base {
            Some(Base::Diffusers(folder)) => diffusers(&folder, files)?,
            Some(Base::Loose(paths)) => loose(&paths, files)?,
            None => Pieces::default(),
        };
        let given = [
            (&files.transformer, Component::Transformer, "--transformer"),
            (&files.text_encoder, Component::TextEncoder, "--text-encoder"),
            (&files.vae, Component::Vae, "--vae"),
            (&files.image_encoder, Component::ImageEncoder, "--image-encoder"),
        ];
        for (path, expected, option) in given {
            let Some(path) = path else { continue };
            let found = Found::open(&group_of(path)?)?;
            if found.recognised.component != expected {
                let reason = format!("{option}: expected {expected}, found {}", found.recognised.component);
                return Err(Error::file(path, reason));
            }
            pieces.take(found)?;
        }
        if files.transformer.is_some() || files.vae.is_some() {
            pieces.published = None; // the parts say so themselves
        }
        if let Some(path) = &files.tokenizer {
            pieces.tokenizer = Some(tokenizer::from_file(path)?);
        }
        Ok(pieces)
    }

    /// Adds a component that was recognised.
    fn take(&mut self, found: Found) -> Result<()> {
        match found.recognised.component {
            Component::Transformer => {
                refuse_half(&found.file.path)?;
                self.is_720p |= found.file.path.to_string_lossy().to_lowercase().contains("720p");
                let config = TransformerConfig::from_weights(&found.tensors, self.like.transformer.as_ref())?;
                self.transformer = Some(Piece { config, tensors: found.tensors });
            }
            Component::TextEncoder => {
                if let Some(tokenizer) = tokenizer::from_weights(&found)? {
                    self.tokenizer.get_or_insert(tokenizer);
                }
                let config = umt5::Config::from_weights(&found.tensors)?;
                self.text_encoder = Some(Piece { config, tensors: found.tensors });
            }
            Component::Vae => {
                let config = VaeConfig::from_weights(&found.tensors, self.like.vae.as_ref())?;
                self.vae = Some(Piece { config, tensors: found.tensors });
            }
            Component::ImageEncoder => {
                let config = clip::Config::from_weights(&found.tensors, self.like.image_encoder.as_ref())?;
                self.image_encoder = Some(Piece { config, tensors: found.tensors });
            }
        }
        Ok(())
    }

    /// What a generation would still need: what it is, and how to give it.
    pub fn missing(&self) -> Vec<String> {
        let needs_image = self.transformer.as_ref().is_some_and(|piece| piece.config.image_dim.is_some());
        [
            (self.transformer.is_none(), "a transformer (--transformer FILE)"),
            (self.text_encoder.is_none(), "a UMT5 text encoder (--text-encoder FILE)"),
            (self.tokenizer.is_none(), "a tokenizer (--tokenizer FILE: tokenizer.json or spiece.model)"),
            (self.vae.is_none(), "a VAE (--vae FILE)"),
            (needs_image && self.image_encoder.is_none(), "a CLIP image encoder (--image-encoder FILE)"),
        ]
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, what)| what.to_string())
        .collect()
    }

    /// All of a pipeline, or what is missing. `place`: what was looked at.
    pub fn complete(self, place: &str) -> Result<Pipeline> {
        let missing = self.missing();
        let (Some(transformer), Some(text_encoder), Some(vae), Some(tokenizer), true) =
            (self.transformer, self.text_encoder, self.vae, self.tokenizer, missing.is_empty())
        else {
            let others = match self.unknown.is_empty() {
                true => String::new(),
                false => format!(". Not used: {}", self.unknown.join("; ")),
            };
            let reason = format!(
                "not all of a pipeline; missing: {}; or give the folder of a whole one with --model{others}",
                missing.join(", ")
            );
            return Err(Error::file(place, reason));
        };
        let published = self.published.unwrap_or_else(|| Published::of(&transformer.config, &vae.config));
        let (found, expected) = (transformer.config.out_channels, vae.config.z_dim);
        if found != expected {
            return Err(Error::file(
                place,
                format!(
                    "the transformer makes latents of {found} channels, the VAE takes {expected}: they do not belong together"
                ),
            ));
        }
        let scheduler = self.scheduler.unwrap_or_else(|| published.scheduler(self.is_720p));
        let layers = transformer.config.num_layers;
        Ok(Pipeline {
            published,
            defaults: self.defaults.unwrap_or_else(|| published.defaults(layers, scheduler.shift)),
            scheduler,
            tokenizer,
            text_encoder,
            transformer,
            vae,
            image_encoder: self.image_encoder.filter(|_| published == Published::Wan21I2v),
            preprocessor: self.preprocessor.unwrap_or_default(),
        })
    }
}

/// What `--model` points at.
pub(crate) enum Base {
    /// A Diffusers folder.
    Diffusers(Folder),
    /// Weight files of any packaging.
    Loose(Vec<PathBuf>),
}

impl Base {
    /// Looks at a path.
    pub fn at(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Ok(Base::Loose(vec![path.to_path_buf()]));
        }
        if path.join(INDEX).exists() {
            return Ok(Base::Diffusers(Folder::Disk(path.to_path_buf())));
        }
        Ok(Base::Loose(vec![path.to_path_buf()]))
    }
}

/// The file that makes a folder a Diffusers pipeline.
pub(crate) const INDEX: &str = "model_index.json";
/// Optional file of a pipeline's own defaults, beside `model_index.json`.
const DEFAULTS_FILE: &str = "navicache.json";

/// Reads a Diffusers folder, but for the parts that are given apart.
fn diffusers(folder: &Folder, files: &Files) -> Result<Pieces> {
    let published = Published::of_index(folder)?;
    let scheduler = Scheduler::read(folder)?;
    let transformer_config: TransformerConfig = config(folder, "transformer", "_class_name", "WanTransformer3DModel")?;
    let vae_config: VaeConfig = config(folder, "vae", "_class_name", "AutoencoderKLWan")?;
    let defaults = match folder.contains(DEFAULTS_FILE) {
        true => folder.json(DEFAULTS_FILE)?,
        false => published.defaults(transformer_config.num_layers, scheduler.shift),
    };
    let tokenizer = match &files.tokenizer {
        Some(_) => None,
        None => {
            let names = ["tokenizer/tokenizer.json", "tokenizer/spiece.model"];
            let file = names.into_iter().find(|file| folder.contains(file)).unwrap_or(names[0]);
            let read = tokenizer::from_bytes(&folder.bytes(file)?);
            Some(read.map_err(|reason| Error::file(folder.path(file), reason))?)
        }
    };
    let text_encoder = match files.text_encoder {
        Some(_) => None,
        None => Some(Piece {
            config: config(folder, "text_encoder", "model_type", "umt5")?,
            tensors: folder.tensors("text_encoder", "model", Component::TextEncoder)?,
        }),
    };
    let transformer = match files.transformer {
        Some(_) => None,
        None => Some(Piece {
            config: transformer_config.clone(),
            tensors: folder.tensors("transformer", "diffusion_pytorch_model", Component::Transformer)?,
        }),
    };
    let vae = match files.vae {
        Some(_) => None,
        None => Some(Piece {
            config: vae_config.clone(),
            tensors: folder.tensors("vae", "diffusion_pytorch_model", Component::Vae)?,
        }),
    };
    let has_image_encoder = published == Published::Wan21I2v;
    let image_config: Option<clip::Config> =
        has_image_encoder.then(|| folder.json("image_encoder/config.json")).transpose()?;
    let image_encoder = match &image_config {
        Some(config) if files.image_encoder.is_none() => Some(Piece {
            config: config.clone(),
            tensors: folder.tensors("image_encoder", "model", Component::ImageEncoder)?,
        }),
        _ => None,
    };
    let preprocessor =
        has_image_encoder.then(|| folder.json("image_processor/preprocessor_config.json")).transpose()?;
    Ok(Pieces {
        published: Some(published),
        defaults: Some(defaults),
        scheduler: Some(scheduler),
        tokenizer,
        text_encoder,
        transformer,
        vae,
        image_encoder,
        preprocessor,
        unknown: Vec::new(),
        like: Like { transformer: Some(transformer_config), vae: Some(vae_config), image_encoder: image_config },
        is_720p: false,
    })
}

/// Reads loose weight files, and those in folders, by their contents.
fn loose(paths: &[PathBuf], files: &Files) -> Result<Pieces> {
    let mut pieces = Pieces::default();
    let mut from: BTreeMap<Component, PathBuf> = BTreeMap::new();
    for path in paths {
        if path.is_dir() {
            pieces.is_720p |= path.to_string_lossy().to_lowercase().contains("720p");
            pieces.like.transformer = authors_config(&path.join("config.json"))?;
            pieces.tokenizer = pieces.tokenizer.or(tokenizer_in(path)?);
        }
        for group in groups(path)? {
            let found = match Found::open(&group) {
                Ok(found) => found,
                Err(error) if path.is_file() => return Err(error),
                Err(error) => {
                    pieces.unknown.push(error.to_string());
                    continue;
                }
            };
            let component = found.recognised.component;
            let given = match component {
                Component::Transformer => &files.transformer,
                Component::TextEncoder => &files.text_encoder,
                Component::Vae => &files.vae,
                Component::ImageEncoder => &files.image_encoder,
            };
            if given.is_some() {
                continue;
            }
            if let Some(other) = from.insert(component, group[0].clone()) {
                let reason = format!(
                    "{component} is in {} and in {}; say which with --transformer, --text-encoder, --vae or --image-encoder",
                    other.display(),
                    group[0].display()
                );
                return Err(Error::file(path, reason));
            }
            pieces.take(found)?;
        }
    }
    let gives_none = *files == Files::default();
    if from.is_empty() && gives_none {
        let place = paths.first().cloned().unwrap_or_default();
        let found = if pieces.unknown.is_empty() { "no weight file".to_string() } else { pieces.unknown.join("; ") };
        return Err(Error::file(place, format!("expected a Diffusers folder or weight files of Wan, found {found}")));
    }
    Ok(pieces)
}

/// Endings of weight files.
const ENDINGS: [&str; 5] = ["safetensors", "gguf", "pth", "pt", "bin"];
/// Folders inside of folders that are searched.
const DEPTH: usize = 2;

/// The weight files at a path, those that belong together in one group.
pub(crate) fn groups(path: &Path) -> Result<Vec<Vec<PathBuf>>> {
    if path.is_file() {
        return Ok(vec![group_of(path)?]);
    }
    let mut files = Vec::new();
    weight_files(path, DEPTH, &mut files)?;
    let mut groups: Vec<Vec<PathBuf>> = Vec::new();
    for file in &files {
        if !groups.iter().any(|group| group.contains(file)) {
            groups.push(group_of(file)?);
        }
    }
    Ok(groups)
}

fn weight_files(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(Error::io(folder))?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() && depth > 0 {
            weight_files(&path, depth - 1, found)?;
        } else if path.extension().is_some_and(|e| ENDINGS.iter().any(|ending| e == *ending)) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// A file and the shards beside it: `NAME-00001-of-00003.ENDING`, or those that `NAME.ENDING.index.json` lists. Of a folder, the one
/// set of weights in it.
fn group_of(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        let mut groups = groups(path)?;
        return match groups.len() {
            1 => Ok(groups.remove(0)),
            found => {
                Err(Error::file(path, format!("expected the weights of one component, found {found} sets of them")))
            }
        };
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name.ends_with(".index.json") {
        return shards(crate::whole_file::folder_of(path), path);
    }
    let Some((stem, first, count, ending)) = shard_name(&name) else { return Ok(vec![path.to_path_buf()]) };
    let digits = first.len();
    let numbered = |i: usize| path.with_file_name(format!("{stem}-{i:0digits$}-of-{count}{ending}"));
    let all: Vec<PathBuf> = (1..=count.parse().unwrap_or(0)).map(numbered).collect();
    match all.iter().find(|path| !path.exists()) {
        Some(missing) => {
            Err(Error::file(missing, format!("expected {count} shards, this one is missing; download it again")))
        }
        None => Ok(all),
    }
}

/// Splits `NAME-00001-of-00003.ENDING`.
fn shard_name(name: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, after) = name.rsplit_once("-of-")?;
    let (stem, first) = before.rsplit_once('-')?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let (count, ending) = after.split_at(digits);
    let numbers = [first, count].iter().all(|n| (1..=5).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()));
    numbers.then_some((stem, first, count, ending))
}

/// The configuration of the authors' repositories: `config.json` of the class `WanModel`.
fn authors_config(path: &Path) -> Result<Option<TransformerConfig>> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(rename = "_class_name")]
        class_name: String,
        model_type: String,
        dim: usize,
        num_heads: usize,
        #[serde(default = "eps")]
        eps: f64,
    }
    fn eps() -> f64 {
        1e-6
    }
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(path).map_err(Error::io(path))?;
    // Other repositories have a config.json too; theirs is not this one's business.
    let Ok(file) = serde_json::from_slice::<File>(&text) else { return Ok(None) };
    if file.class_name != "WanModel" {
        return Ok(None);
    }
    if !["t2v", "i2v", "ti2v"].contains(&file.model_type.as_str()) {
        let reason = format!("model_type: expected t2v, i2v or ti2v, found {}, not supported yet", file.model_type);
        return Err(Error::file(path, reason));
    }
    Ok(Some(TransformerConfig::with_heads(file.dim, file.num_heads, file.eps)))
}

/// The UMT5 tokenizer of a folder of the authors' repositories, or of one that was made like it.
fn tokenizer_in(folder: &Path) -> Result<Option<Tokenizer>> {
    let places = ["google/umt5-xxl", "umt5-xxl", "tokenizer", ""];
    let files =
        places.iter().flat_map(|place| ["tokenizer.json", "spiece.model"].map(|name| folder.join(place).join(name)));
    files.into_iter().find(|file| file.exists()).map(|file| tokenizer::from_file(&file)).transpose()
}

/// Of Wan2.2 A14B one half has the shapes of a whole model, and would make noise.
fn refuse_half(path: &Path) -> Result<()> {
    let name = path.to_string_lossy().to_lowercase().replace(['-', '_', ' '], "");
    if name.contains("highnoise") || name.contains("lownoise") {
        let reason = "one of the two transformers of Wan2.2 A14B by its name, which is not supported yet";
        return Err(Error::file(path, reason));
    }
    Ok(())
}

/// A JSON file that says in `key` what it describes. That comes first: fields of another model's make no sense.
fn identified(folder: &Folder, file: &str, key: &str, expected: &str) -> Result<serde_json::Value> {
    let json: serde_json::Value = folder.json(file)?;
    match json[key].as_str().unwrap_or("nothing") {
        found if found == expected => Ok(json),
        found => Err(Error::file(folder.path(file), format!("{key}: expected {expected}, found {found}"))),
    }
}

/// A component's `config.json`.
fn config<T: DeserializeOwned>(folder: &Folder, component: &str, key: &str, expected: &str) -> Result<T> {
    let file = format!("{component}/config.json");
    let json = identified(folder, &file, key, expected)?;
    serde_json::from_value(json).map_err(|e| Error::file(folder.path(&file), e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert_eq!(shard_name("m-00001-of-00003.safetensors"), Some(("m", "00001", "00003", ".safetensors")));
        assert_eq!(shard_name("wan-Q4_K-00002-of-00002.gguf"), Some(("wan-Q4_K", "00002", "00002", ".gguf")));
        assert_eq!(shard_name("best-of-4.gguf"), None);
        assert_eq!(shard_name("models_t5_umt5-xxl-enc-bf16.pth"), None);
    }
}
