//! What has to be the same for a run to go on: the request, the method, the model, and the program that computes.

use std::collections::BTreeMap;
use std::path::Path;

use navicache_control::cache::{CacheConfig, CacheSpec, Method};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Step;
use navicache_media::read_file;
use navicache_weights::{Fingerprint, WeightFile, sample};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::field::Field;
use crate::report::described;
use crate::size::Size;
use crate::{Error, Pipeline, Request, Resolved, Result};

/// What has to be the same for a run to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Every field of the resolved request but [`FILES`].
    request: Map<String, Value>,
    /// How many times larger the file is than what the model makes, where that was asked for. It may differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<usize>,
    /// The cache method with its options.
    cache: Value,
    /// SHA-256 of the picture, and of latents that stood for noise.
    picture: Option<String>,
    latents: Option<String>,
    /// SHA-256 of the steps and branches.
    steps: String,
    model: Model,
    build: Build,
}

/// A model, wherever it lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    /// As it was opened; not compared.
    name: String,
    /// Which presets it goes by.
    family: String,
    /// SHA-256 of its configurations.
    configuration: String,
    /// Format that matrices are kept in.
    dtype: String,
    weights: BTreeMap<String, Fingerprint>,
}

/// What computes. Where it differs, results may in the last digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    navicache: String,
    /// A sample of the program's own file: see [`sample`].
    program: String,
    target: String,
    kernels: String,
    device: String,
}

/// Files are no part of it: what they hold is, and where they lie is the user's own.
const FILES: [&str; 3] = ["image", "latents", "save_latents"];
/// What may differ: it changes nothing of the steps.
const FREE: [&str; 3] = ["cache_memory", "tile", "steered"];

impl Identity {
    /// Of a generation that is about to run.
    pub fn of(
        pipeline: &Pipeline,
        request: &Resolved,
        scale: Option<usize>,
        method: &dyn Method,
        steps: &[Step],
        branches: &[(Branch, f64)],
    ) -> Result<Self> {
        let mut fields = match json!(request) {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        FILES.iter().for_each(|file| drop(fields.remove(*file)));
        let content = |path: &Path| Ok::<_, Error>(sha256(&read_file(path)?));
        let shared = pipeline.family().shared();
        let weights = shared.weights.iter().map(|(role, weights)| (format!("{role:?}"), weights.fingerprint()));
        Ok(Identity {
            request: fields,
            scale,
            cache: described(method),
            picture: request.image.as_deref().map(content).transpose()?,
            latents: request.latents.as_deref().map(content).transpose()?,
            steps: sha256(format!("{steps:?} {branches:?}").as_bytes()),
            model: Model {
                name: pipeline.name().to_string(),
                family: pipeline.defaults().presets.clone(),
                configuration: sha256(pipeline.family().configuration().as_bytes()),
                dtype: pipeline.dtype_name(),
                weights: weights.collect(),
            },
            build: Build::here(pipeline),
        })
    }

    /// Latents to start from need not be given again; they are those of the whole run.
    pub fn go_on_from(&mut self, before: &Identity) {
        self.latents.clone_from(&before.latents);
    }

    /// Whether the whole run began with latents from a file.
    pub fn has_latents(&self) -> bool {
        self.latents.is_some()
    }

    /// Frames of the video.
    pub fn frames(&self) -> u64 {
        self.request.get("frames").and_then(Value::as_u64).unwrap_or(0)
    }

    /// A request with what it leaves open filled in.
    pub fn complete(&self, given: &Request) -> Result<Request, String> {
        let asked = serde_json::from_value(Value::Object(self.request.clone()));
        let asked: Resolved = asked.map_err(|e| format!("request: {e}"))?;
        let size = Size { width: asked.width, height: asked.height };
        let sized = given.size.is_some() || given.resolution.is_some() || given.aspect_ratio.is_some();
        Ok(Request {
            prompt: if given.prompt.is_empty() { asked.prompt } else { given.prompt.clone() },
            negative_prompt: given.negative_prompt.clone().or(Some(asked.negative_prompt)),
            size: if sized { given.size } else { Some(size) },
            frames: given.frames.or(Some(asked.frames)),
            fps: given.fps.or(Some(asked.fps)),
            scale: given.scale.or(self.scale),
            steps: given.steps.or(Some(asked.steps)),
            solver: given.solver.or(Some(asked.solver)),
            shift: given.shift.or(Some(asked.shift)),
            guidance: given.guidance.or(Some(asked.guidance)),
            guidance_2: given.guidance_2.or(asked.guidance_2),
            dynamic_guidance: given.dynamic_guidance || asked.dynamic_guidance,
            true_guidance: given.true_guidance.or(asked.true_guidance),
            seed: given.seed.or(Some(asked.seed)),
            max_sequence_length: given.max_sequence_length.or(Some(asked.max_sequence_length)),
            cache: given.cache.clone().or_else(|| asked.steered.or_else(|| method_of(&self.cache))),
            target: given.target.clone().or(asked.target),
            guard: given.guard.or(Some(asked.guard)),
            ..given.clone()
        })
    }

    /// Why a run may not go on, both sides named. Another build is waived where that is allowed: what is to be said of
    /// it then.
    pub fn check(&self, here: &Identity, allow_other_build: bool) -> Result<Option<String>, String> {
        if let Some(reason) = self.refusal(here) {
            return Err(reason);
        }
        let (there, here) = (&self.build, &here.build);
        let differs = || format!("was made by {there}, this is {here}: the rest may differ in the last digits");
        match (there == here, allow_other_build) {
            (true, _) => Ok(None),
            (false, true) => Ok(Some(differs())),
            (false, false) => Err(format!("{}; {} goes on all the same", differs(), Field::AllowOtherBuild)),
        }
    }

    /// What has to agree and does not, both sides named; nothing where the run may go on.
    fn refusal(&self, here: &Identity) -> Option<String> {
        let (there, here_model) = (&self.model, &here.model);
        let name = |model: &Model| format!("{} ({})", model.name, model.family);
        if there.family != here_model.family || there.configuration != here_model.configuration {
            return Some(format!("was made by the model {}, this is {}", name(there), name(here_model)));
        }
        different(&self.request, &here.request)
            .or_else(|| different_method(&self.cache, &here.cache))
            .or_else(|| different_file("picture", self.picture.as_deref(), here.picture.as_deref()))
            .or_else(|| {
                let given = here.latents.as_deref()?;
                different_file("latents to start from", self.latents.as_deref(), Some(given))
            })
            .or_else(|| there.different_weights(here_model))
            .or_else(|| {
                (self.steps != here.steps)
                    .then(|| format!("has other steps or branches ({}, {} here)", self.steps, here.steps))
            })
    }
}

impl Model {
    fn different_weights(&self, here: &Model) -> Option<String> {
        if self.dtype != here.dtype {
            return Some(format!("was made with weights kept as {}, here they are {}", self.dtype, here.dtype));
        }
        let roles = self.weights.keys().chain(here.weights.keys());
        let role = roles.into_iter().find(|role| self.weights.get(*role) != here.weights.get(*role))?;
        let said = |weights: Option<&Fingerprint>| match weights {
            None => "none".to_string(),
            Some(Fingerprint { formats, listing, content }) => {
                let formats = formats.iter().map(|(format, count)| format!("{count} of {format}"));
                format!("{} ({} {})", formats.collect::<Vec<_>>().join(", "), &short(listing), &short(content))
            }
        };
        let (there, here) = (said(self.weights.get(role)), said(here.weights.get(role)));
        Some(format!("was made with other weights of the {role}: {there}, here {here}"))
    }
}

impl Build {
    fn here(pipeline: &Pipeline) -> Self {
        let machine = pipeline.machine();
        let program = std::env::current_exe().ok().and_then(|path| WeightFile::map(&path).ok());
        Build {
            navicache: machine.navicache.to_string(),
            program: program.map_or("unknown".to_string(), |file| sample(file.bytes())),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            kernels: machine.kernels,
            device: machine.device,
        }
    }
}

impl std::fmt::Display for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Build { navicache, program, target, kernels, device } = self;
        write!(f, "navicache {navicache} ({}, {target}, {kernels}, {device})", short(program))
    }
}

/// The method of a description; a method of somebody's own has none.
fn method_of(described: &Value) -> Option<CacheSpec> {
    let mut options = described.as_object()?.clone();
    let method = options.remove("method")?;
    let about = CacheConfig::about(method.as_str()?).ok()?;
    Some(CacheSpec::new(about.name, options))
}

/// The first field that differs.
fn different(there: &Map<String, Value>, here: &Map<String, Value>) -> Option<String> {
    let mut fields = there.keys().chain(here.keys()).filter(|field| !FREE.contains(&field.as_str()));
    let field = fields.find(|field| there.get(*field) != here.get(*field))?;
    let said = |fields: &Map<String, Value>| fields.get(field).map_or("none".to_string(), Value::to_string);
    Some(format!("was made for {} {}, this is {}", field.replace('_', " "), said(there), said(here)))
}

fn different_method(there: &Value, here: &Value) -> Option<String> {
    let name = |described: &Value| described.get("method").map_or("none".to_string(), Value::to_string);
    if name(there) != name(here) {
        return Some(format!("was made with the cache method {}, this is {}", name(there), name(here)));
    }
    let difference = match (there, here) {
        (Value::Object(there), Value::Object(here)) => different(there, here)?,
        _ if there == here => return None,
        _ => format!("was made with {there}, this is {here}"),
    };
    Some(format!("{difference}, of the cache method {}", name(here)))
}

fn different_file(what: &str, there: Option<&str>, here: Option<&str>) -> Option<String> {
    let said = |digest: Option<&str>| digest.map_or(format!("no {what}"), |digest| format!("{what} {}", short(digest)));
    (there != here).then(|| format!("was made with {}, here there is {}", said(there), said(here)))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Enough of a digest to see that two differ.
fn short(digest: &str) -> String {
    digest.chars().take(8).collect()
}
