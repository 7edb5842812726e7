//! From the fields of a form to a request of the engine.

use std::path::PathBuf;
use std::str::FromStr;

use navicache_engine::control::cache::{CacheSpec, watch};
use navicache_engine::control::solver::SolverKind;
use navicache_engine::control::target::Target;
use navicache_engine::{AspectRatio, Error as EngineError, Field, Pipeline, Request, Resolution, Size, check};

use crate::api::error::ApiError;
use crate::fields::Field as Known;
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
            resolution: fields.parsed::<Resolution>("resolution", "expected a number of lines, as in 480p")?,
            aspect_ratio: fields.parsed::<AspectRatio>("aspect_ratio", "expected WIDTH:HEIGHT, as in 16:9")?,
            frames: fields.parsed("frames", "expected a number of frames")?,
            fps: fields.parsed("fps", "expected 1 to 1000 frames a second, as in 24 or 23.976")?,
            steps: fields.parsed("steps", "expected a number of steps")?,
            guidance: fields.parsed("guidance", "expected a number")?,
            guidance_2: fields.parsed("guidance_2", "expected a number")?,
            true_guidance: fields.parsed("true_guidance", "expected a number")?,
            dynamic_guidance: fields.parsed("dynamic_guidance", "expected true or false")?.unwrap_or_default(),
            shift: fields.parsed("shift", "expected a number")?,
            seed: fields.parsed("seed", "expected a number from 0 to 2^63-1")?,
            solver: fields.parsed("solver", &format!("expected one of: {}", SolverKind::NAMES.join(", ")))?,
            cache: fields.cache()?,
            target: fields.target()?,
            guard: fields.parsed::<watch::Mode>("guard", "expected off, warn or act")?,
            max_sequence_length: fields.parsed("max_sequence_length", "expected a number of text tokens")?,
            ..Request::default()
        };
        if request.seed.is_some_and(|seed| seed > SEED) {
            return Err(ApiError::field("seed", "expected a number from 0 to 2^63-1"));
        }
        let seconds: Option<f64> = fields.parsed("seconds", "expected a number of seconds")?;
        if seconds.is_some_and(|seconds| !seconds.is_finite() || seconds <= 0.0) {
            return Err(ApiError::field("seconds", "expected a number more than 0"));
        }
        if let (Some(_), Some((frames, _))) = (seconds, fields.get("frames")?) {
            return Err(ApiError::field("seconds", &format!("is said by `{frames}` too; give one of the two")));
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
        let of_seconds = |seconds: f64| pipeline.nearest_frames((seconds * fps.number()).round().min(1e9) as usize);
        let frames = self.request.frames.or(self.seconds.map(of_seconds));
        Ok(Request { seed: Some(seed), frames, image, ..self.request })
    }
}

struct Fields<'a>(&'a Form);

impl Fields<'_> {
    /// The text of a field, under any of its names; the name that was used.
    fn get(&self, name: &'static str) -> Result<Option<(&str, &str)>, ApiError> {
        let others = Known::named(name).map_or(&[][..], |field| field.others);
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

/// A warning for each field that is not known.
fn unknown(form: &Form) -> Vec<String> {
    form.fields.keys().filter(|name| Known::named(name).is_none()).map(|name| not_known(name)).collect()
}

fn not_known(name: &str) -> String {
    format!("`{}` is not known here and was left out", name.chars().take(SHOWN).collect::<String>())
}

/// A warning for each field of a remix but its prompt: everything else is as it was.
pub fn beside_prompt(form: &Form) -> Vec<String> {
    let picture = form.picture.as_ref().map(|_| "input_reference");
    let fields = form.fields.keys().map(String::as_str).filter(|name| *name != "prompt").chain(picture);
    let warning = |name: &str| match Known::named(name).is_some() || Some(name) == picture {
        true => format!("`{name}` is as it was in the video that is remixed; what was given was left out"),
        false => not_known(name),
    };
    fields.map(warning).collect()
}

pub fn unknown_model(models: &Models) -> ApiError {
    let names: Vec<&str> = models.all().iter().map(|model| model.name.as_str()).collect();
    let mut error = ApiError::field("model", &format!("is not here; expected one of: {}", names.join(", ")));
    error.code = "model_not_found";
    error
}

/// What a request means.
pub struct Understood {
    pub meant: Meant,
    /// The same request as JSON, with all that a second run of it has to have.
    pub request: String,
    pub warnings: Vec<String>,
}

/// What a request means. Refuses what this server does not make.
pub fn understand(
    server: &Server,
    model: &str,
    request: Request,
    user: Option<String>,
) -> Result<Understood, ApiError> {
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
        resolution: None,
        aspect_ratio: None,
        frames: Some(resolved.frames),
        fps: Some(resolved.fps),
        steps: Some(resolved.steps),
        ..request
    };
    let request = serde_json::to_string(&kept).map_err(|e| ApiError::bad("invalid_value", e.to_string()))?;
    Ok(Understood { meant, request, warnings })
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
    fn what_the_engine_has_can_be_asked_for() {
        let ask = Ask::new(&form(&[
            ("prompt", "x"),
            ("resolution", "480p"),
            ("aspect_ratio", "16:9"),
            ("guidance_scale_2", "3.5"),
            ("dynamic_guidance", "true"),
            ("guard", "warn"),
            ("max_sequence_length", "226"),
            ("solver", "dpmpp_sde"),
        ]));
        let expected = Request {
            prompt: "x".to_string(),
            resolution: Some("480p".parse().unwrap()),
            aspect_ratio: Some("16:9".parse().unwrap()),
            guidance_2: Some(3.5),
            dynamic_guidance: true,
            guard: Some(watch::Mode::Warn),
            max_sequence_length: Some(226),
            solver: Some(SolverKind::DpmPp2MSde),
            ..Request::default()
        };
        assert_eq!(ask.unwrap().request, expected);
        let solver = Ask::new(&form(&[("prompt", "x"), ("solver", "magic")])).unwrap_err().message;
        assert!(SolverKind::NAMES.iter().all(|name| solver.contains(name)), "{solver}");
        let both = Ask::new(&form(&[("prompt", "x"), ("seconds", "2"), ("num_frames", "17")])).unwrap_err().message;
        assert!(both.contains("`seconds`") && both.contains("`num_frames`"), "{both}");
    }

    #[test]
    fn a_remix_takes_a_prompt_and_nothing_else() {
        let mut form = form(&[("prompt", "x"), ("steps", "7"), ("new", "1")]);
        form.picture = Some("picture".into());
        let warnings = beside_prompt(&form);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for name in ["`new` is not known", "`steps` is as it was", "`input_reference` is as it was"] {
            assert!(warnings.iter().any(|warning| warning.contains(name)), "{warnings:?}");
        }
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
            (&[("prompt", "x"), ("target", "psnr=40,curve=/etc/passwd")], "target"),
            (&[("prompt", "x"), ("guard", "maybe")], "guard"),
            (&[("prompt", "x"), ("dynamic_guidance", "7")], "dynamic_guidance"),
            (&[("prompt", "x"), ("resolution", "large")], "resolution"),
            (&[("prompt", "x"), ("aspect_ratio", "16")], "aspect_ratio"),
            (&[("prompt", "x"), ("guidance_2", "much")], "guidance_2"),
            (&[("prompt", "x"), ("max_sequence_length", "-1")], "max_sequence_length"),
            (&[("prompt", "x"), ("seconds", "2"), ("frames", "17")], "seconds"),
            (&[("prompt", "x"), ("priority", "1000")], "priority"),
        ] {
            let error = Ask::new(&form(fields)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
