//! An Open-Sora pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_control::guidance::Branch;
use navicache_models::opensora::{Transformer, TransformerConfig, Vae, VaeConfig, VideoSize};
use navicache_models::text::t5::{self, T5};
use navicache_models::{Autoencoder, Branches, Weights};
use navicache_weights::Role;
use tokenizers::Tokenizer;

use super::{prompt, sizes};
use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditioning, Family, ImageConditioning, Inputs, Shared};
use crate::field::Field;
use crate::host::Resident;
use crate::limits::{Frames, Limits};
use crate::prompt::tokenize;
use crate::request::Resolved;
use crate::size::Size;
use crate::sizes::Sizes;
use crate::{Error, Request, Result};

/// A clip is one frame, or at least as many as one chunk of the VAE: in between the schedule is not defined.
const FEWEST_FRAMES: usize = 17;
/// Longest and largest clip that is taken.
const LARGEST: (usize, usize, usize) = (4080, 16384, 16384);
/// Smallest side: one token.
const SMALLEST: usize = 16;
/// The frame rate that the model is conditioned on for a single frame.
const STILL_FPS: f64 = 120.0;
/// Side of the square that the schedule's shift is relative to, and the latent frames that stand for a chunk there.
const SHIFT_SIDE: f64 = 512.0;
const SHIFT_LATENT_FRAMES: usize = 5;
/// The encoded prompt. // (1, tokens, caption channels)
const TEXT: &str = "text";

/// An Open-Sora pipeline.
pub(super) struct OpenSora {
    pub(super) shared: Shared,
    pub(super) tokenizer: Tokenizer,
    pub(super) text_encoder: t5::Config,
    pub(super) transformer: TransformerConfig,
    pub(super) vae: VaeConfig,
    pub(super) transformer_model: Resident<Transformer>,
}

impl OpenSora {
    /// What the transformer is conditioned on beside the text.
    fn video_size(&self, request: &Resolved) -> VideoSize {
        let fps = if request.frames == 1 { STILL_FPS } else { request.fps.number() };
        VideoSize { height: request.height, width: request.width, fps }
    }
}

/// Latents are rounded down to whole ones, tokens up: any size is taken.
pub(super) struct Rounded {
    pub(super) channels: usize,
    pub(super) patch: [usize; 3],
    pub(super) vae: VaeConfig,
}

impl Sizes for Rounded {
    fn limits(&self) -> Limits {
        Limits { width_multiple: 1, height_multiple: 1, frames: Frames::From(FEWEST_FRAMES), largest: LARGEST }
    }

    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5] {
        let factor = self.vae.space_factor();
        [1, self.channels, self.vae.latent_frames(frames), height / factor, width / factor]
    }

    fn video_shape(&self, [_, _, frames, height, width]: &[usize; 5]) -> (usize, usize, usize) {
        let factor = self.vae.space_factor();
        (width * factor, height * factor, self.vae.frames_of(*frames))
    }

    fn patch(&self) -> [usize; 3] {
        self.patch
    }

    fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.patch;
        frames.div_ceil(patch_t) * height.div_ceil(patch_h) * width.div_ceil(patch_w)
    }
}

impl Family for OpenSora {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shared_mut(&mut self) -> &mut Shared {
        &mut self.shared
    }

    fn configuration(&self) -> String {
        format!("{:?} {:?} {:?}", self.text_encoder, self.transformer, self.vae)
    }

    fn named_size(&self, request: &Request) -> Result<Option<Size>> {
        match (&request.resolution, request.aspect_ratio) {
            (None, None) => Ok(None),
            (resolution, ratio) => sizes::of(resolution.as_ref(), ratio).map(Some),
        }
    }

    /// Larger and longer clips spend more steps at high noise.
    fn shift(&self, width: usize, height: usize, frames: usize) -> f64 {
        let latent_frames = if frames == 1 { 1 } else { frames / FEWEST_FRAMES * SHIFT_LATENT_FRAMES };
        ((height * width) as f64 / (SHIFT_SIDE * SHIFT_SIDE)).sqrt() * (latent_frames as f64).sqrt()
    }

    fn check(&self, request: &Resolved, _: &mut Reporter) -> Result<()> {
        request.refuse_picture()?;
        request.refuse_true_guidance("this model has no other guidance; take `guidance`")?;
        let refuse = |field, found: String, expected: String| Err(Error::Invalid { field, found, expected });
        if request.width.min(request.height) < SMALLEST {
            let found = format!("{}x{}", request.width, request.height);
            return refuse(Field::Size, found, format!("expected at least {SMALLEST} each way"));
        }
        if !request.negative_prompt.is_empty() {
            let expected = "Open-Sora has no negative prompt; leave it out".to_string();
            return refuse(Field::NegativePrompt, format!("{:?}", request.negative_prompt), expected);
        }
        let longest = self.transformer.model_max_length;
        if request.max_sequence_length > longest {
            let expected = format!("expected at most {longest}, which this model was made for");
            return refuse(Field::MaxSequenceLength, request.max_sequence_length.to_string(), expected);
        }
        Ok(())
    }

    /// The prompt's tokens alone, without padding. The other branch has a learned text of as many.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Inputs>> {
        let longest = request.max_sequence_length;
        let prepared = prompt::prepare(&request.prompt).map_err(|expected| Error::Invalid {
            field: Field::Prompt,
            found: format!("{:?}", request.prompt),
            expected,
        })?;
        let tokens = tokenize(&self.tokenizer, &prepared, longest)?;
        tokens.warn_if_cut(longest, &Field::MaxSequenceLength.to_string(), reporter);
        let weights = self.shared.host.weights(self.shared.weights(Role::TextEncoder)?);
        let text = T5::new(&self.text_encoder, weights)?.forward(&tokens.ids)?; // (1, tokens, caption channels)
        Ok(vec![[(TEXT, text)].into(); branches.len()])
    }

    /// The branch without a prompt: the learned text stands in its place, and its numbers do not matter.
    fn blank(&self, request: &Resolved, _: &[usize; 5]) -> Result<Conditioning> {
        let shape = (1, request.max_sequence_length, self.transformer.caption_channels);
        let text = Tensor::zeros(shape, DType::F32, &self.shared.host.device)?;
        let branches = vec![(Branch::Uncond, [(TEXT, text)].into())];
        Ok(Conditioning { branches, image: ImageConditioning::default() })
    }

    fn denoiser(&self, request: &Resolved, conditioning: &Conditioning) -> Result<Box<dyn Branches>> {
        let weights = self.shared.weights(Role::Transformer)?;
        let read = || Ok(Arc::new(Transformer::new(&self.transformer, self.shared.host.weights(weights))?));
        let size = self.video_size(request);
        conditioning.apply(self.transformer_model.get(read)?, |transformer, branch, inputs| {
            let text = inputs.require(TEXT)?;
            Ok(match branch {
                Branch::Cond => transformer.cond(text, size)?,
                Branch::Uncond | Branch::Other(_) => transformer.null_cond(text.dim(1)?, size)?,
            })
        })
    }

    fn free_transformer(&self) {
        self.transformer_model.free();
    }

    fn read_autoencoder(&self, weights: Weights) -> Result<Arc<dyn Autoencoder>> {
        Ok(Arc::new(Vae::new(&self.vae, weights)?))
    }

    /// A block holds its input, queries, keys, values and output, and the feed-forward's middle before and after its
    /// activation.
    fn working_bytes(&self, stage: Stage, request: &Resolved) -> u64 {
        const F32: usize = 4;
        if stage == Stage::Denoise {
            let shape = self.shared.sizes.latents_shape(request.width, request.height, request.frames);
            let width = 6 * self.transformer.hidden_size + 2 * self.transformer.mlp_dim();
            return (self.shared.sizes.tokens(&shape) * width * F32) as u64;
        }
        self.text_encoder.encode_bytes(request.max_sequence_length)
    }
}
