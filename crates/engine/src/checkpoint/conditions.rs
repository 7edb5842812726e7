//! What a run is conditioned on: encoded prompts and the encoded picture, so that a run that goes on need not read
//! their encoders, which may be the largest part of a model.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::family::{Conditioning, ImageConditioning, Inputs};

/// How names begin in the file: `text.0.hidden` is what the first branch has under `hidden`.
const TEXT: &str = "text.";
const PICTURE: &str = "picture.";
/// The latents that a picture makes known.
const KNOWN: &str = "known_latents";
/// Most bytes of all prompts, and of a picture, that are kept.
const MOST: usize = 64 << 20;

/// The tensors by their names in the file, where they are kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditions(BTreeMap<String, Tensor>);

impl Conditions {
    /// Those that are not too large.
    pub fn of(conditioning: &Conditioning) -> Self {
        let named = |prefix: String, inputs: &Inputs| -> Vec<(String, Tensor)> {
            inputs.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect()
        };
        let texts = conditioning.branches.iter().enumerate();
        let texts = texts.flat_map(|(branch, (_, inputs))| named(of_branch(branch), inputs)).collect();
        let image = &conditioning.image;
        let mut picture = named(PICTURE.to_string(), &image.inputs);
        picture.extend(image.known_latents.iter().map(|known| (KNOWN.to_string(), known.clone())));
        let small = [texts, picture].into_iter().filter(|tensors| bytes(tensors) <= MOST);
        Conditions(small.flatten().collect())
    }

    /// Puts one that was read; false where a name is none of them.
    pub fn put(&mut self, name: &str, tensor: Tensor) -> bool {
        let is_one = name.starts_with(TEXT) || name.starts_with(PICTURE) || name == KNOWN;
        if is_one {
            self.0.insert(name.to_string(), tensor);
        }
        is_one
    }

    /// All of them by their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }

    /// The encoded prompts of so many branches and the encoded picture, each where it was kept. `like`: what they are
    /// like, of one branch. `latents`: the shape of the run's.
    ///
    /// # Errors
    /// One of them is missing, of another shape, or of no use.
    pub fn read(
        &self,
        like: &Conditioning,
        branches: usize,
        latents: &[usize; 5],
    ) -> Result<(Option<Vec<Inputs>>, Option<ImageConditioning>), String> {
        let of = |prefix: &str, like: &Inputs| {
            let found = |name: &str| self.0.get(&format!("{prefix}{name}")).cloned();
            like.filled(found).map_err(|reason| format!("{prefix}{reason}"))
        };
        let has = |prefix: &str| self.0.keys().any(|name| name.starts_with(prefix));
        let of_text = like.branches.first().map(|(_, inputs)| inputs).filter(|_| has(TEXT));
        let texts = of_text.map(|like| (0..branches).map(|branch| of(&of_branch(branch), like)).collect());
        let texts: Option<Vec<Inputs>> = texts.transpose()?;
        let known_latents = self.0.get(KNOWN).cloned();
        if let Some(known) = known_latents.as_ref().filter(|known| !is_beginning(known.dims(), latents)) {
            return Err(format!("{KNOWN}: expected the first frames of {latents:?}, found {:?}", known.dims()));
        }
        let inputs = if has(PICTURE) { of(PICTURE, &like.image.inputs)? } else { Inputs::default() };
        let used = texts.iter().flatten().chain([&inputs]).map(|inputs| inputs.iter().count()).sum::<usize>();
        if used + usize::from(known_latents.is_some()) != self.0.len() {
            return Err(format!("has more conditions than this model takes: {:?}", self.0.keys()));
        }
        let picture = has(PICTURE) || known_latents.is_some();
        Ok((texts, picture.then_some(ImageConditioning { inputs, known_latents })))
    }
}

fn of_branch(branch: usize) -> String {
    format!("{TEXT}{branch}.")
}

fn bytes(tensors: &[(String, Tensor)]) -> usize {
    tensors.iter().map(|(_, tensor)| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
}

/// Whether latents of one shape may be the first frames of another's. // (1, channels, frames, height, width)
fn is_beginning(first: &[usize], latents: &[usize; 5]) -> bool {
    let frames = 2;
    let fits = |axis: usize| match axis == frames {
        true => (1..=latents[axis]).contains(&first[axis]),
        false => first[axis] == latents[axis],
    };
    first.len() == latents.len() && (0..latents.len()).all(fits)
}
