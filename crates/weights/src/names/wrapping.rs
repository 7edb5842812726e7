//! What training code and packagings put around the names of tensors.

use std::borrow::Cow;
use std::collections::BTreeSet;

/// What wrappers of modules leave inside of names, wherever they stand.
const INSIDE: [&str; 3] = ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."];

/// What stands before all names of a model; often several of them, one after the other.
const BEFORE: [&str; 18] = [
    "generator_ema.",
    "model_ema.",
    "ema.",
    "generator.",
    "student.",
    "state_dict.",
    "module.",
    "model.",
    "diffusion_model.",
    "transformer.",
    "pipe.",
    "dit.",
    "net.",
    "vae.",
    "first_stage_model.",
    "language_model.",
    "text_encoder.",
    "image_encoder.",
];
/// How many of them may stand one after the other.
const DEPTH: usize = 5;
/// Most prefixes that are looked at.
const PREFIXES_MAX: usize = 64;

/// Parts of a whole pipeline in one file that have names of their own there.
const PARTS: [&str; 5] = ["text_encoders.", "cond_stage_model.", "conditioner.", "clip_vision.", "audio_vae."];

/// A name without what wrappers of modules left in it.
pub(crate) fn without_wrappers(name: &str) -> Cow<'_, str> {
    let mut name = Cow::Borrowed(name);
    for wrapper in INSIDE {
        if name.contains(wrapper) {
            name = Cow::Owned(name.replace(wrapper, ""));
        }
    }
    name
}

/// What may stand before the names of a model, the shortest first; averaged weights come before those they are of.
pub(super) fn prefixes<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut found = BTreeSet::from([""]);
    for name in names {
        let mut length = 0;
        for _ in 0..DEPTH {
            let Some(more) = BEFORE.iter().find(|prefix| name[length..].starts_with(*prefix)) else { break };
            length += more.len();
            found.insert(&name[..length]);
        }
        if found.len() > PREFIXES_MAX {
            break;
        }
    }
    let mut found: Vec<&str> = found.into_iter().collect();
    found.sort_by_key(|prefix| (!is_averaged(prefix), prefix.len()));
    found
}

/// Whether a prefix, or a key, is that of averaged weights.
pub(crate) fn is_averaged(prefix: &str) -> bool {
    prefix.split(['.', '_']).any(|part| part == "ema")
}

/// The part of a pipeline, or the other copy of the weights, that a name outside of a prefix belongs to; and what is
/// left of the name there.
pub(super) fn part_of(name: &str) -> Option<(&'static str, &str)> {
    let part = PARTS.iter().chain(&BEFORE).find(|part| name.starts_with(*part))?;
    let mut bare = &name[part.len()..];
    for _ in 0..DEPTH {
        let Some(rest) = BEFORE.iter().find_map(|prefix| bare.strip_prefix(prefix)) else { break };
        bare = rest;
    }
    Some((part, bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_found_and_taken_off() {
        let names = ["generator.model.blocks.0.x", "generator_ema.model.blocks.0.x", "blocks.0.x"].map(String::from);
        let expected = ["generator_ema.", "generator_ema.model.", "", "generator.", "generator.model."];
        assert_eq!(prefixes(names.iter()), expected);
        assert_eq!(without_wrappers("model._fsdp_wrapped_module.blocks.0._orig_mod.x"), "model.blocks.0.x");
        assert_eq!(part_of("language_model.lm_head.weight"), Some(("language_model.", "lm_head.weight")));
        assert_eq!(part_of("model.vision_tower.x"), Some(("model.", "vision_tower.x")));
        assert_eq!(part_of("text_encoders.umt5.x"), Some(("text_encoders.", "umt5.x")));
        assert_eq!(part_of("blocks.0.x"), None);
    }
}
