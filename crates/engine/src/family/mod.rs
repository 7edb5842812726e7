//! Families of models: what each of them does in its own way. Everything else is the same for all of them.
//!
//! A family is a folder here and a line in [`FAMILIES`].

mod cogvideox;
mod hunyuan;
mod opensora;
mod piece;
mod seam;
mod wan;

use crate::field::Field;
use crate::{Error, Result};
use navicache_weights::layout::{INDEX, Parts};
use navicache_weights::{Folder, Role};

pub(crate) use seam::{Assembly, Conditioning, Family, ImageConditioning, Inputs, Shared};

use seam::About;

/// All families.
const FAMILIES: [&About; 4] = [&wan::ABOUT, &hunyuan::ABOUT, &opensora::ABOUT, &cogvideox::ABOUT];

/// Understands what was found, as a pipeline of the family that it is of.
pub(crate) fn read(parts: Parts) -> Result<Box<dyn Assembly>> {
    let about = match &parts.folder {
        Some(folder) => of_index(folder)?,
        None => of_weights(&parts)?,
    };
    for (role, found) in &parts.found {
        let component = found.recognised.component;
        if about.components.contains(&component) && component.role() == *role {
            continue;
        }
        let expected = about.components.iter().find(|expected| expected.role() == *role);
        let reason = match expected {
            Some(expected) if parts.given.contains(role) => {
                format!("`{}`: expected {expected}, found {component}", role.field())
            }
            Some(expected) => format!("expected {expected}, found {component}: they do not belong together"),
            None if parts.given.contains(role) => format!("`{}`: {} has no such part", role.field(), about.name),
            None => format!("{component} is no part of {}", about.name),
        };
        return Err(Error::file(&found.file.path, reason));
    }
    let has_second = about.components.iter().any(|component| component.role() == Role::SecondTextEncoder);
    if parts.tokenizers[1].is_some() && !has_second {
        let expected = format!("nothing: {} has one text encoder", about.name);
        return Err(Error::Invalid { field: Field::Tokenizer2, found: "is given".to_string(), expected });
    }
    (about.read)(parts)
}

/// The family of a Diffusers folder.
fn of_index(folder: &Folder) -> Result<&'static About> {
    let index: serde_json::Value = folder.json(INDEX)?;
    let class = index["_class_name"].as_str().unwrap_or("nothing");
    FAMILIES.into_iter().find(|about| about.pipelines.contains(&class)).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|about| about.pipelines).copied().collect();
        Error::file(folder.path(INDEX), format!("_class_name: expected one of {}, found {class}", known.join(", ")))
    })
}

/// The family of loose weights: that of the transformer, or of whatever else there is.
fn of_weights(parts: &Parts) -> Result<&'static About> {
    let found = parts.found.get(&Role::Transformer).or_else(|| parts.found.values().next());
    let family = found
        .and_then(|found| FAMILIES.into_iter().find(|about| about.components.contains(&found.recognised.component)));
    family.ok_or_else(|| Error::file("", "expected weights, found none"))
}
