//! A CogVideoX pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_control::guidance::{Branch, Guidance, dynamic_scale};
use navicache_control::schedule::Step;
use navicache_media::Picture;
use navicache_models::cogvideox::{Transformer, TransformerConfig, Vae, VaeConfig};
use navicache_models::text::t5::{self, T5};
use navicache_models::{Autoencoder, Branches, Weights};
use navicache_weights::Role;
use tokenizers::Tokenizer;

use super::image;
use super::v_prediction::OnFlow;
use crate::draws::{Draws, Order};
use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditioning, Family, ImageConditioning, Inputs, Shared};
use crate::field::Field;
use crate::host::Resident;
use crate::prompt::tokenize;
use crate::request::Resolved;
use crate::{Error, Result};

/// The encoded prompt. // (1, tokens, text dim)
const TEXT: &str = "text";
/// The picture as latents of the first frame. // (1, channels, latent frames, height, width)
const PICTURE: &str = "picture";
/// What a text is continued with to its full length; the encoder sees it.
const PADDING: u32 = 0;

/// A CogVideoX pipeline.
pub(super) struct CogVideoX {
    pub(super) shared: Shared,
    pub(super) tokenizer: Tokenizer,
    pub(super) text_encoder: t5::Config,
    pub(super) transformer: TransformerConfig,
    pub(super) vae: VaeConfig,
    pub(super) transformer_model: Resident<Transformer>,
}

impl Family for CogVideoX {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shared_mut(&mut self) -> &mut Shared {
        &mut self.shared
    }

    fn configuration(&self) -> String {
        let CogVideoX { text_encoder, transformer, vae, .. } = self;
        format!("{text_encoder:?} {transformer:?} {vae:?} {:?}", self.shared.scheduler.grid)
    }

    fn check(&self, request: &Resolved, reporter: &mut Reporter) -> Result<()> {
        request.refuse_true_guidance("this model has no other guidance; take `guidance`")?;
        let refuse = |field, found: String, expected: String| Err(Error::Invalid { field, found, expected });
        match (&request.image, self.transformer.takes_picture()) {
            (_, false) => request.refuse_picture()?,
            (None, true) => {
                let expected = "this model makes video from a picture; add one";
                return refuse(Field::Image, "(none)".to_string(), expected.to_string());
            }
            (Some(_), true) => {}
        }
        // Places are counted over text and video together, except where only the video turns.
        let TransformerConfig { max_text_seq_length: longest, use_learned_positional_embeddings: learned, .. } =
            self.transformer;
        let is_fixed = learned || !self.transformer.use_rotary_positional_embeddings;
        let length = request.max_sequence_length;
        if length > longest || is_fixed && length != longest {
            let expected = format!("expected {longest}{}", if is_fixed { "" } else { " at most" });
            return refuse(Field::MaxSequenceLength, length.to_string(), expected);
        }
        let factor = self.vae.spatial();
        let (width, height) = (factor * self.transformer.sample_width, factor * self.transformer.sample_height);
        if learned && (request.width, request.height) != (width, height) {
            let found = format!("{}x{}", request.width, request.height);
            return refuse(
                Field::Size,
                found,
                format!("expected {width}x{height}, the one size that this model knows"),
            );
        }
        if learned && request.frames != self.transformer.sample_frames {
            reporter.warn(format!(
                "this model learned the places of {} frames; for {} it falls back to others, as the reference does",
                self.transformer.sample_frames, request.frames
            ));
        }
        if request.dynamic_guidance && self.branches(request).len() < 2 {
            reporter.warn("`dynamic_guidance` has no effect without `guidance` above 1".to_string());
        }
        Ok(())
    }

    fn check_dynamic_guidance(&self, _: &Resolved) -> Result<()> {
        Ok(())
    }

    fn guided(&self, request: &Resolved, steps: &[Step]) -> Vec<Vec<(Branch, f64)>> {
        let branches = self.branches(request);
        if !request.dynamic_guidance || branches.len() < 2 {
            return vec![branches; steps.len()];
        }
        let scale = |step: &Step| dynamic_scale(request.guidance, step.timestep, steps.len());
        steps.iter().map(|step| Guidance::Cfg { scale: scale(step) }.branches()).collect()
    }

    /// The reference has frames before channels, and draws for the picture first.
    fn draws(&self, request: &Resolved, shape: &[usize; 5]) -> Draws {
        let [_, channels, _, height, width] = shape;
        let of_picture = if self.transformer.takes_picture() { channels * height * width } else { 0 };
        Draws { order: Order::FramesFirst, before: of_picture, ..Draws::of(request.seed, shape) }
    }

    /// Each text is as long as the model's longest, padding included: the encoder has no mask.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Inputs>> {
        let encoder = T5::new(&self.text_encoder, self.shared.host.weights(self.shared.weights(Role::TextEncoder)?))?;
        let longest = request.max_sequence_length;
        let texts = request.prompts(branches).map(|prompt| {
            let tokens = tokenize(&self.tokenizer, prompt, longest)?;
            tokens.warn_if_cut(longest, "this model takes no more", reporter);
            let mut ids = tokens.ids;
            ids.resize(longest, PADDING);
            Ok([(TEXT, encoder.forward(&ids)?)].into())
        });
        texts.collect()
    }

    fn encode_image(&self, picture: &Picture, request: &Resolved) -> Result<ImageConditioning> {
        let latents = image::latents(&self.shared, &self.vae, picture, request)?;
        Ok(ImageConditioning { inputs: [(PICTURE, latents)].into(), known_latents: None })
    }

    fn blank(&self, request: &Resolved, latents: &[usize; 5]) -> Result<Conditioning> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.shared.host.device);
        let text = zeros(&[1, request.max_sequence_length, self.transformer.text_embed_dim])?;
        let mut image = ImageConditioning::default();
        if self.transformer.takes_picture() {
            image.inputs.extend([(PICTURE, zeros(latents)?)]);
        }
        Ok(Conditioning { branches: vec![(Branch::Cond, [(TEXT, text)].into())], image })
    }

    fn denoiser(&self, request: &Resolved, conditioning: &Conditioning) -> Result<Box<dyn Branches>> {
        let weights = self.shared.weights(Role::Transformer)?;
        let read = || Ok(Arc::new(Transformer::new(&self.transformer, self.shared.host.weights(weights))?));
        let picture = conditioning.image.inputs.get(PICTURE);
        let model = conditioning.apply(self.transformer_model.get(read)?, |transformer, _, inputs| {
            Ok(transformer.cond(inputs.require(TEXT)?, picture)?)
        })?;
        Ok(match self.shared.scheduler.diffusion(request.shift) {
            Some(diffusion) => Box::new(OnFlow { model, diffusion }),
            None => model,
        })
    }

    fn free_transformer(&self) {
        self.transformer_model.free();
    }

    fn read_autoencoder(&self, weights: Weights) -> Result<Arc<dyn Autoencoder>> {
        Ok(Arc::new(Vae::new(&self.vae, weights)?))
    }

    /// A block holds its input, its norm, queries, keys, values and output, and the feed-forward's middle, of text and
    /// video.
    fn working_bytes(&self, stage: Stage, request: &Resolved) -> u64 {
        const F32: usize = 4;
        const WIDTHS: usize = 12;
        let shape = self.shared.sizes.latents_shape(request.width, request.height, request.frames);
        match stage {
            Stage::Denoise => {
                let tokens = self.shared.sizes.tokens(&shape) + request.max_sequence_length;
                (tokens * WIDTHS * self.transformer.dim() * F32) as u64
            }
            Stage::Picture => {
                let parameters = self.shared.weights(Role::Vae).map_or(0, |weights| weights.parameters());
                parameters * F32 as u64 + self.vae.encode_bytes(shape[3], shape[4])
            }
            _ => self.text_encoder.encode_bytes(request.max_sequence_length),
        }
    }
}
