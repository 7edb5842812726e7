//! From the fields of a form to a request of the engine.

use std::path::PathBuf;
use std::str::FromStr;

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::control::solver::SolverKind;
use navicache_engine::control::target::Target;
use navicache_engine::{Error as EngineError, Field, Pipeline, Request, Size, check};

use crate::api::error::ApiError;
use crate::form::Form;
use crate::id::random_bytes;
use crate::job::Meant;
use crate::models::Models;
use crate::server::Server;

/// Longest prompt, in characters.
const PROMPT: usize = 4096;
/// Longest `user`.
const USER: usize = 256;
/// Longest text of a name that a warning repeats.
const SHOWN: usize = 64;
/// Priorities that may be asked for.
const PRIORITIES: std::ops::RangeInclusive<i64> = -100..=100;
/// Largest seed: what other programs hold in a signed number.
const SEED: u64 = i64::MAX as u64;

/// Every field, and other names of it.
const FIELDS: &[(&str, &[&str])] = &[
    ("prompt", &[]),
    ("model", &[]),
    ("size", &[]),
    ("seconds", &[]),
    ("negative_prompt", &[]),
    ("frames", &["num_frames"]),
    ("fps", &[]),
    ("steps", &["num_inference_steps"]),
    ("guidance", &["guidance_scale"]),
    ("true_guidance", &[]),
    ("shift", &["flow_shift"]),
    ("seed", &[]),
    ("solver", &[]),
    ("cache", &[]),
    ("target", &[]),
    ("priority", &[]),
    ("user", &[]),
];

/// What a client asks for.
#[derive(Debug, Default)]
pub struct Ask {
    pub model: Option<String>,
    pub priority: i64,
    pub user: Option<String>,
    pub warnings: Vec<String>,
    seconds: Option<f64>,
    request: Request,
}

impl Ask {
    /// Reads the fields. Those that are not known are named in a warning.
    pub fn new(form: &Form) -> Result<Self, ApiError> {
        let fields = Fields(form);
        let request = Request {
            prompt: prompt(form)?,
            negative_prompt: fields.text("negative_prompt", PROMPT)?,
            size: fields.parsed::<Size>("size", "expected WIDTHxHEIGHT, as in 832x480")?,
            frames: fields.parsed("frames", "expected a number of frames")?,
            fps: fields.parsed("fps", "expected a whole number")?,
            steps: fields.parsed("steps", "expected a number of steps")?,
            guidance: fields.parsed("guidance", "expected a number")?,
            true_guidance: fields.parsed("true_guidance", "expected a number")?,
            shift: fields.parsed("shift", "expected a number")?,
            seed: fields.parsed("seed", "expected a number from 0 to 2^63-1")?,
            solver: fields.parsed::<SolverKind>("solver", "expected unipc, dpmpp or euler")?,
            cache: fields.cache()?,
            target: fields.target()?,
            ..Request::default()
        };
        if request.seed.is_some_and(|seed| seed > SEED) {
            return Err(ApiError::field("seed", "expected a number from 0 to 2^63-1"));
        }
        let seconds: Option<f64> = fields.parsed("seconds", "expected a number of seconds")?;
        if seconds.is_some_and(|seconds| !seconds.is_finite() || seconds <= 0.0) {
            return Err(ApiError::field("seconds", "expected a number more than 0"));
        }
        let priority: Option<i64> = fields.parsed("priority", "expected a whole number")?;
        if priority.is_some_and(|priority| !PRIORITIES.contains(&priority)) {
            return Err(ApiError::field("priority", "expected -100 to 100"));
        }
        Ok(Ask {
            model: fields.text("model", USER)?.filter(|model| !model.is_empty()),
            priority: priority.unwrap_or(0),
            user: fields.text("user", USER)?,
            warnings: unknown(form),
            seconds,
            request,
        })
    }

    /// The request for a pipeline: with a seed, and with frames where seconds were given.
    pub fn request(self, pipeline: &Pipeline, image: Option<PathBuf>) -> Result<Request, ApiError> {
        let seed = self.request.seed.unwrap_or_else(|| u64::from(u32::from_le_bytes(random_bytes())));
        let fps = self.request.fps.unwrap_or(pipeline.defaults().fps);
        let of_seconds = |seconds: f64| pipeline.nearest_frames((seconds * f64::from(fps)).round().min(1e9) as usize);
        let frames = self.request.frames.or(self.seconds.map(of_seconds));
        Ok(Request { seed: Some(seed), frames, image, ..self.request })
    }
}

struct Fields<'a>(&'a Form);

impl Fields<'_> {
    /// The text of a field, under any of its names; the name that was used.
    fn get(&self, name: &'static str) -> Result<Option<(&str, &str)>, ApiError> {
        let others = FIELDS.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, others)| others);
        let mut given = [name].into_iter().chain(others.iter().copied());
        let mut given = given.by_ref().filter_map(|name| Some((name, self.0.fields.get(name)?.as_str())));
        match (given.next(), given.next()) {
            (Some(_), Some((second, _))) => Err(ApiError::field(second, &format!("is `{name}` again"))),
            (first, _) => Ok(first),
        }
    }

    fn text(&self, name: &'static str, most: usize) -> Result<Option<String>, ApiError> {
        let Some((name, text)) = self.get(name)? else { return Ok(None) };
        if text.chars().count() > most {
            return Err(ApiError::field(name, &format!("expected at most {most} characters")));
        }
        Ok(Some(text.to_string()))
    }

    fn parsed<T: FromStr>(&self, name: &'static str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some((name, text)) = self.get(name)? else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| ApiError::field(name, expected))
    }

    /// A method by name: a request opens no file.
    fn cache(&self) -> Result<Option<CacheSpec>, ApiError> {
        let Some((name, text)) = self.get("cache")? else { return Ok(None) };
        if text.trim_start().starts_with(['@']) || text.trim_start().starts_with("schedule:") {
            return Err(ApiError::field(name, "a request opens no file; expected METHOD[:PRESET][,KEY=VALUE...]"));
        }
        text.parse().map(Some).map_err(|e| ApiError::field(name, &format!("{e}")))
    }

    fn target(&self) -> Result<Option<Target>, ApiError> {
        let Some((name, text)) = self.get("target")? else { return Ok(None) };
        let target: Target = text.parse().map_err(|e| ApiError::field(name, &format!("{e}")))?;
        match target.curve {
            Some(_) => Err(ApiError::field(name, "a request opens no file; expected no curve=")),
            None => Ok(Some(target)),
        }
    }
}

/// The prompt of a form.
pub fn prompt(form: &Form) -> Result<String, ApiError> {
    let text = Fields(form).text("prompt", PROMPT)?.filter(|prompt| !prompt.trim().is_empty());
    text.ok_or_else(|| ApiError::field("prompt", "is missing: say what the video shows"))
}

fn unknown(form: &Form) -> Vec<String> {
    let is_known = |name: &str| FIELDS.iter().any(|(known, others)| *known == name || others.contains(&name));
    let unknown = form.fields.keys().filter(|name| !is_known(name));
    unknown
        .map(|name| format!("`{}` is not known here and was left out", name.chars().take(SHOWN).collect::<String>()))
        .collect()
}

pub fn unknown_model(models: &Models) -> ApiError {
    let names: Vec<&str> = models.all().iter().map(|model| model.name.as_str()).collect();
    let mut error = ApiError::field("model", &format!("is not here; expected one of: {}", names.join(", ")));
    error.code = "model_not_found";
    error
}

/// What a request means, and the same request as JSON with all that a second run has to have. Refuses what this server
/// does not make.
pub fn understand(
    server: &Server,
    model: &str,
    request: Request,
    user: Option<String>,
) -> Result<(Meant, String, Vec<String>), ApiError> {
    let model = server.models.named(model).ok_or_else(|| unknown_model(&server.models))?;
    let (resolved, warnings) = check(&model.pipeline, &request).map_err(|error| refused(&error))?;
    let limits = &server.options.limits;
    if resolved.steps > limits.max_steps {
        let reason = format!("{} steps are too many: expected at most {} here", resolved.steps, limits.max_steps);
        return Err(too_large("steps", &reason));
    }
    if let Some((most, frames)) = limits.max_video {
        let (asked, allowed) = (resolved.width * resolved.height * resolved.frames, most.width * most.height * frames);
        if asked > allowed {
            let found = format!("{}x{}x{}", resolved.width, resolved.height, resolved.frames);
            let reason = format!("{found} is too large: expected at most {most}x{frames} here, or as many pixels");
            return Err(too_large("size", &reason));
        }
    }
    let cache = request.cache.as_ref().or(resolved.chosen.as_ref().map(|best| &best.spec));
    let cache = cache.map_or("none".to_string(), ToString::to_string);
    let meant = Meant::new(&resolved, cache, user);
    // What is left open would be decided again by a later program, and differently.
    let kept = Request {
        image: None,
        size: Some(Size { width: resolved.width, height: resolved.height }),
        frames: Some(resolved.frames),
        fps: Some(resolved.fps),
        steps: Some(resolved.steps),
        ..request
    };
    let text = serde_json::to_string(&kept).map_err(|e| ApiError::bad("invalid_value", e.to_string()))?;
    Ok((meant, text, warnings))
}

fn too_large(field: &str, reason: &str) -> ApiError {
    let mut error = ApiError::field(field, reason);
    error.code = "too_large";
    error
}

/// An error of the engine, without a path of the server.
fn refused(error: &EngineError) -> ApiError {
    let name = |field: Field| match field {
        Field::Image => "input_reference",
        field => field.name(),
    };
    let spelled = |message: &str| Field::spell(message, |field| format!("`{}`", name(field)));
    match (error, error.field()) {
        (EngineError::Media(_) | EngineError::Io { .. } | EngineError::File { .. }, _) => {
            let mut error = ApiError::field("input_reference", "the picture is damaged, or of a kind that is not read");
            error.code = "bad_image";
            error
        }
        (EngineError::Invalid { field: Field::Image, expected, .. }, _) => {
            ApiError::field("input_reference", &spelled(expected))
        }
        (error, field) => {
            let message = spelled(&error.to_string());
            let mut refused = ApiError::bad("invalid_value", message);
            refused.param = field.map(|field| name(field).to_string());
            refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(fields: &[(&str, &str)]) -> Form {
        let fields = fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Form { fields, picture: None }
    }

    #[test]
    fn fields_have_other_names_and_unknown_ones_are_named() {
        let ask = Ask::new(&form(&[("prompt", "x"), ("num_inference_steps", "7"), ("new", "1"), ("seconds", "2.5")]))
            .unwrap();
        assert_eq!((ask.request.steps, ask.seconds), (Some(7), Some(2.5)));
        assert_eq!(ask.warnings, ["`new` is not known here and was left out"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(4097);
        for (fields, param) in [
            (&[][..], "prompt"),
            (&[("prompt", "  ")], "prompt"),
            (&[("prompt", &long)], "prompt"),
            (&[("prompt", "x"), ("size", "large")], "size"),
            (&[("prompt", "x"), ("steps", "7"), ("num_inference_steps", "7")], "num_inference_steps"),
            (&[("prompt", "x"), ("seed", "-1")], "seed"),
            (&[("prompt", "x"), ("seed", "9223372036854775808")], "seed"),
            (&[("prompt", "x"), ("seconds", "nan")], "seconds"),
            (&[("prompt", "x"), ("seconds", "0")], "seconds"),
            (&[("prompt", "x"), ("solver", "magic")], "solver"),
            (&[("prompt", "x"), ("cache", "@/etc/passwd")], "cache"),
            (&[("prompt", "x"), ("cache", " schedule:/etc/passwd")], "cache"),
            (&[("prompt", "x"), ("cache", "nothing-known")], "cache"),
            (&[("prompt", "x"), ("target", "speedup=2,curve=/etc/passwd")], "target"),
            (&[("prompt", "x"), ("priority", "1000")], "priority"),
        ] {
            let error = Ask::new(&form(fields)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
