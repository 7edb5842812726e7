//! A Wan pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_control::guidance::{Branch, Guidance};
use navicache_control::schedule::Step;
use navicache_models::image::clip;
use navicache_models::text::t5::{self, T5};
use navicache_models::wan::{ImageCond, Transformer, TransformerConfig, Vae, VaeConfig};
use navicache_models::{Autoencoder, Branches, Conditioned, Weights};
use navicache_weights::Role;
use tokenizers::Tokenizer;

use super::experts::{Experts, InMemory};
use super::image::{CHANNELS, EMBEDDING, Encoders, Preprocessor, condition_on};
use super::published::Published;
use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditioning, Family, ImageConditioning, Inputs, Shared};
use crate::field::Field;
use crate::prompt::{self, tokenize};
use crate::request::Resolved;
use crate::{Error, Result};
use navicache_media::Picture;

/// The encoded prompt. // (1, tokens, text dim)
const TEXT: &str = "text";

/// A Wan pipeline.
pub(super) struct Wan {
    pub(super) shared: Shared,
    pub(super) published: Published,
    pub(super) tokenizer: Tokenizer,
    pub(super) text_encoder: t5::Config,
    pub(super) transformer: TransformerConfig,
    pub(super) vae: VaeConfig,
    pub(super) image_encoder: Option<clip::Config>,
    pub(super) preprocessor: Preprocessor,
    /// Where there are two transformers: the timestep from which on the first computes.
    pub(super) boundary: Option<f64>,
    pub(super) in_memory: InMemory<Transformer>,
}

impl Wan {
    /// Whether the second of two transformers computes a step.
    fn is_of_second(&self, step: &Step) -> bool {
        self.boundary.is_some_and(|boundary| step.timestep.0 < boundary)
    }

    /// A transformer under a generation's conditions. Reads it on first use.
    fn conditioned(&self, role: Role, conditioning: &Conditioning) -> Result<Conditioned<Transformer>> {
        let weights = self.shared.weights(role)?;
        let read = || Ok(Transformer::new(&self.transformer, self.shared.host.weights(weights))?);
        let transformer = self.in_memory.get(role, read)?;
        let ImageConditioning { inputs, known_latents } = &conditioning.image;
        let picture = ImageCond {
            embedding: inputs.get(EMBEDDING).cloned(),
            channels: inputs.get(CHANNELS).cloned(),
            still_frames: known_latents.as_ref().map_or(Ok(0), |known| known.dim(2))?,
        };
        let of_branch =
            |(_, inputs): &(Branch, Inputs)| Ok(transformer.cond_with_image(inputs.require(TEXT)?, &picture)?);
        let conditions = conditioning.branches.iter().map(of_branch).collect::<Result<_>>()?;
        Ok(Conditioned::new(transformer, conditions))
    }
}

impl Family for Wan {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shared_mut(&mut self) -> &mut Shared {
        &mut self.shared
    }

    fn configuration(&self) -> String {
        let Wan { published, text_encoder, transformer, vae, image_encoder, preprocessor, boundary, .. } = self;
        let boundary = boundary.map(|boundary| format!(" {boundary}")).unwrap_or_default();
        format!("{published:?} {text_encoder:?} {transformer:?} {vae:?} {image_encoder:?} {preprocessor:?}{boundary}")
    }

    fn check(&self, request: &Resolved, _: &mut Reporter) -> Result<()> {
        request.refuse_true_guidance("this model has no other guidance; take `guidance`")?;
        match (self.published, &request.image) {
            (Published::Wan21 | Published::Wan22T2vA14b, _) => request.refuse_picture(),
            (Published::Wan21I2v | Published::Wan22I2vA14b, None) => Err(Error::Invalid {
                field: Field::Image,
                found: "(none)".to_string(),
                expected: "this model makes video from a picture; add one".to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether there is an unconditional branch is up to the first transformer's guidance alone.
    fn guided(&self, request: &Resolved, steps: &[Step]) -> Vec<Vec<(Branch, f64)>> {
        let first = self.branches(request);
        let second = match first.len() {
            1 => first.clone(),
            _ => Guidance::Cfg { scale: request.guidance_2.unwrap_or(request.guidance) }.branches(),
        };
        steps.iter().map(|step| if self.is_of_second(step) { second.clone() } else { first.clone() }).collect()
    }

    fn segments(&self, steps: &[Step]) -> Vec<usize> {
        let taken_over = steps.iter().position(|step| self.is_of_second(step));
        taken_over.filter(|&step| step > 0).into_iter().collect()
    }

    /// Each text is `max_sequence_length` tokens long, zero beyond its end.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Inputs>> {
        let encoder = T5::new(&self.text_encoder, self.shared.host.weights(self.shared.weights(Role::TextEncoder)?))?;
        let longest = request.max_sequence_length;
        let texts = request.prompts(branches).map(|prompt| {
            let tokens = tokenize(&self.tokenizer, &prompt::clean(prompt), longest)?;
            tokens.warn_if_cut(longest, &Field::MaxSequenceLength.to_string(), reporter);
            let hidden = encoder.forward(&tokens.ids)?; // (1, ids, text dim)
            let padding = longest - hidden.dim(1)?;
            Ok([(TEXT, hidden.pad_with_zeros(1, 0, padding)?)].into())
        });
        texts.collect()
    }

    fn encode_image(&self, picture: &Picture, request: &Resolved) -> Result<ImageConditioning> {
        let encoders = Encoders {
            shared: &self.shared,
            published: self.published,
            vae: &self.vae,
            image_encoder: self.image_encoder.as_ref(),
            preprocessor: &self.preprocessor,
        };
        condition_on(&encoders, picture, request)
    }

    fn blank(&self, request: &Resolved, [_, _, frames, rows, columns]: &[usize; 5]) -> Result<Conditioning> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.shared.host.device);
        let text = zeros(&[1, request.max_sequence_length, self.text_encoder.d_model])?;
        let mut image = ImageConditioning::default();
        if let Some(clip) = &self.image_encoder {
            image.inputs.extend([(EMBEDDING, zeros(&[1, clip.tokens(), clip.hidden_size])?)]);
        }
        match self.transformer.in_channels - self.transformer.out_channels {
            0 => {}
            more => image.inputs.extend([(CHANNELS, zeros(&[1, more, *frames, *rows, *columns])?)]),
        }
        Ok(Conditioning { branches: vec![(Branch::Cond, [(TEXT, text)].into())], image })
    }

    fn denoiser(&self, _: &Resolved, conditioning: &Conditioning) -> Result<Box<dyn Branches + '_>> {
        Ok(match self.boundary {
            None => Box::new(self.conditioned(Role::Transformer, conditioning)?),
            Some(boundary) => {
                let conditioning = conditioning.clone();
                Box::new(Experts::new(Box::new(move |role| self.conditioned(role, &conditioning)), boundary)?)
            }
        })
    }

    fn free_transformer(&self) {
        self.in_memory.free();
    }

    fn read_autoencoder(&self, weights: Weights) -> Result<Arc<dyn Autoencoder>> {
        Ok(Arc::new(Vae::new(&self.vae, weights)?))
    }

    /// A block holds its input, queries, keys, values, output and the feed-forward's middle at once, in f32.
    fn working_bytes(&self, stage: Stage, request: &Resolved) -> u64 {
        const F32: usize = 4;
        let shape = self.shared.sizes.latents_shape(request.width, request.height, request.frames);
        match stage {
            Stage::Denoise => {
                let width = 6 * self.transformer.dim() + self.transformer.ffn_dim;
                (self.shared.sizes.tokens(&shape) * width * F32) as u64
            }
            Stage::Picture => {
                let encoding = self.vae.encode_bytes(shape[3], shape[4]).min(self.shared.host.budget());
                let parameters = self.shared.weights(Role::Vae).map_or(0, |weights| weights.parameters());
                parameters * F32 as u64 + encoding
            }
            _ => self.text_encoder.encode_bytes(request.max_sequence_length),
        }
    }
}
