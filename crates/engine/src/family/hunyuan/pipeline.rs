//! A HunyuanVideo pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_control::guidance::{Branch, Guidance};
use navicache_models::hunyuan::{Transformer, TransformerConfig, Vae, VaeConfig};
use navicache_models::text::clip::{self, ClipText};
use navicache_models::text::llama::{self, Llama};
use navicache_models::{Autoencoder, Branches, Weights};
use navicache_weights::Role;
use tokenizers::Tokenizer;

use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditioning, Family, ImageConditioning, Inputs, Shared};
use crate::field::Field;
use crate::host::Resident;
use crate::prompt::tokenize;
use crate::request::Resolved;
use crate::{Error, Result};

/// What stands before a prompt for LLaMA. Its tokens, and the one that begins a text, are cut off again.
const BEFORE_PROMPT: &str = "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: \
1. The main content and theme of the video.\
2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.\
3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.\
4. background environment, light, style and atmosphere.\
5. camera angles, movements, and transitions used in the video:<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n";
const AFTER_PROMPT: &str = "<|eot_id|>";
/// So many tokens are cut off.
const CROP: usize = 95;
/// Layers of LLaMA that do not run: hidden states are taken before the last two.
const SKIPPED_LAYERS: usize = 2;
/// Most tokens of a prompt that CLIP takes, the first and the last included.
const CLIP_TOKENS: usize = 77;
/// Positions that the rotary embedding has for each axis.
pub(super) const POSITIONS: usize = 1024;
/// What LLaMA makes of a prompt. // (1, tokens, dim)
const TEXT: &str = "text";
/// What CLIP makes of it. // (1, dim)
const POOLED: &str = "pooled";

/// A HunyuanVideo pipeline.
pub(super) struct Hunyuan {
    pub(super) shared: Shared,
    pub(super) tokenizer: Tokenizer,
    pub(super) tokenizer_2: Tokenizer,
    pub(super) text_encoder: llama::Config,
    pub(super) text_encoder_2: clip::Config,
    pub(super) transformer: TransformerConfig,
    pub(super) vae: VaeConfig,
    pub(super) transformer_model: Resident<Transformer>,
}

impl Family for Hunyuan {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shared_mut(&mut self) -> &mut Shared {
        &mut self.shared
    }

    fn configuration(&self) -> String {
        let Hunyuan { text_encoder, text_encoder_2, transformer, vae, .. } = self;
        format!("{text_encoder:?} {text_encoder_2:?} {transformer:?} {vae:?}")
    }

    fn check(&self, request: &Resolved, reporter: &mut Reporter) -> Result<()> {
        request.refuse_picture()?;
        if !self.transformer.guidance_embeds {
            return request.refuse_true_guidance("this model is not conditioned on a guidance scale; take `guidance`");
        }
        if !request.negative_prompt.is_empty() && self.branches(request).len() < 2 {
            reporter.warn("the negative prompt has no effect without `true_guidance` above 1".to_string());
        }
        Ok(())
    }

    /// A model that is conditioned on the guidance scale needs one branch; a second one, when it is asked for.
    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)> {
        let scale = match self.transformer.guidance_embeds {
            true => request.true_guidance.unwrap_or(1.0),
            false => request.guidance,
        };
        Guidance::from_scale(scale).branches()
    }

    /// LLaMA describes the prompt within a template, token by token; CLIP gives one vector. One encoder is loaded at a
    /// time.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Inputs>> {
        let longest = request.max_sequence_length;
        let host = &self.shared.host;
        let weights = host.weights(self.shared.weights(Role::TextEncoder)?);
        let llama = Llama::new(&self.text_encoder, SKIPPED_LAYERS, weights)?;
        let mut hidden = Vec::with_capacity(branches.len());
        for prompt in request.prompts(branches) {
            let whole = format!("{BEFORE_PROMPT}{prompt}{AFTER_PROMPT}");
            let tokens = tokenize(&self.tokenizer, &whole, longest + CROP)?;
            tokens.warn_if_cut(longest + CROP, "template included; `max_sequence_length`", reporter);
            let states = llama.forward(&tokens.ids)?; // (1, ids, hidden)
            let kept = states.dim(1)?.checked_sub(CROP).filter(|&kept| kept > 0).ok_or_else(|| Error::Invalid {
                field: Field::Tokenizer,
                found: format!("makes {} tokens of the prompt within its template", tokens.ids.len()),
                expected: format!("expected more than {CROP}; it is not the tokenizer of this model"),
            })?;
            hidden.push(states.narrow(1, CROP, kept)?);
        }
        drop(llama);

        let clip = ClipText::new(&self.text_encoder_2, host.weights(self.shared.weights(Role::SecondTextEncoder)?))?;
        let longest = CLIP_TOKENS.min(self.text_encoder_2.max_position_embeddings);
        let texts = request.prompts(branches).zip(hidden).map(|(prompt, hidden)| {
            let tokens = tokenize(&self.tokenizer_2, prompt, longest)?;
            tokens.warn_if_cut(longest, "by CLIP; LLaMA sees more of it", reporter);
            Ok([(TEXT, hidden), (POOLED, clip.forward(&tokens.ids)?)].into())
        });
        texts.collect()
    }

    fn blank(&self, request: &Resolved, _: &[usize; 5]) -> Result<Conditioning> {
        let config = &self.transformer;
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.shared.host.device);
        let text = zeros(&[1, request.max_sequence_length, config.text_embed_dim])?;
        let pooled = zeros(&[1, config.pooled_projection_dim])?;
        let branches = vec![(Branch::Cond, [(TEXT, text), (POOLED, pooled)].into())];
        Ok(Conditioning { branches, image: ImageConditioning::default() })
    }

    fn denoiser(&self, request: &Resolved, conditioning: &Conditioning) -> Result<Box<dyn Branches>> {
        let weights = self.shared.weights(Role::Transformer)?;
        let read = || Ok(Arc::new(Transformer::new(&self.transformer, self.shared.host.weights(weights))?));
        conditioning.apply(self.transformer_model.get(read)?, |transformer, _, inputs| {
            Ok(transformer.cond(inputs.require(TEXT)?, inputs.require(POOLED)?, request.guidance)?)
        })
    }

    fn free_transformer(&self) {
        self.transformer_model.free();
    }

    fn read_autoencoder(&self, weights: Weights) -> Result<Arc<dyn Autoencoder>> {
        Ok(Arc::new(Vae::new(&self.vae, weights)?))
    }

    /// A single block holds its input, its norm, queries, keys, values, what they become beside the feed-forward's
    /// middle, and that twice.
    fn working_bytes(&self, stage: Stage, request: &Resolved) -> u64 {
        const F32: usize = 4;
        if stage == Stage::Denoise {
            let shape = self.shared.sizes.latents_shape(request.width, request.height, request.frames);
            let width = 8 * self.transformer.dim() + 2 * self.transformer.mlp_dim();
            return (self.shared.sizes.tokens(&shape) * width * F32) as u64;
        }
        let config = &self.text_encoder;
        let tokens = request.max_sequence_length + CROP;
        let width = 6 * config.hidden_size + 2 * config.intermediate_size + config.num_attention_heads * tokens;
        ((tokens * width + config.hidden_size * config.intermediate_size) * F32) as u64
    }
}
