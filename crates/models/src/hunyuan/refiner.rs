//! What prepares the text and the timestep for the transformer.

use candle_core::{Device, Tensor};
use navicache_kernels::silu;

use super::TransformerConfig;
use crate::nn::{LayerNorm, Linear, attention, sinusoid, split_heads};
use crate::{Result, Weights};

/// Width of the sinusoid of a timestep.
const FREQUENCIES: usize = 256;
/// Epsilon of the layer norms, which no configuration names.
pub(super) const EPSILON: f64 = 1e-6;
/// Width of the refiner's feed-forward networks over that of its stream, whatever the transformer's.
const MLP_RATIO: usize = 4;

/// Two layers with SiLU between them.
struct Embedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl Embedder {
    fn new(inputs: usize, dim: usize, w: Weights) -> Result<Self> {
        Ok(Embedder {
            linear_1: Linear::new(inputs, dim, w.pp("linear_1"))?,
            linear_2: Linear::new(dim, dim, w.pp("linear_2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&silu(&self.linear_1.forward(x)?)?)
    }
}

/// A timestep, a vector for the text, and perhaps a guidance scale, as one vector.
pub(super) struct TimeTextEmbedding {
    timestep_embedder: Embedder,
    text_embedder: Embedder,
    guidance_embedder: Option<Embedder>,
}

impl TimeTextEmbedding {
    /// `text`: width of the text's vector.
    pub(super) fn new(text: usize, dim: usize, guidance: bool, w: Weights) -> Result<Self> {
        let guidance = guidance.then(|| Embedder::new(FREQUENCIES, dim, w.pp("guidance_embedder")));
        Ok(TimeTextEmbedding {
            timestep_embedder: Embedder::new(FREQUENCIES, dim, w.pp("timestep_embedder"))?,
            text_embedder: Embedder::new(text, dim, w.pp("text_embedder"))?,
            guidance_embedder: guidance.transpose()?,
        })
    }

    /// `text`: (1, its width); `guidance`: a thousand times the scale. // (1, dim)
    pub(super) fn forward(&self, timestep: f64, text: &Tensor, guidance: f64) -> Result<Tensor> {
        let waves = |value: f64| sinusoid(value, FREQUENCIES, text.device());
        let sum = (self.timestep_embedder.forward(&waves(timestep)?)? + self.text_embedder.forward(text)?)?;
        Ok(match &self.guidance_embedder {
            Some(embedder) => (sum + embedder.forward(&waves(guidance)?)?)?,
            None => sum,
        })
    }
}

/// Attention among the tokens of a text, conditioned on the timestep.
pub(super) struct TokenRefiner {
    time_text_embed: TimeTextEmbedding,
    proj_in: Linear,
    refiner_blocks: Vec<Block>,
}

impl TokenRefiner {
    pub(super) fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let (dim, text) = (config.dim(), config.text_embed_dim);
        let blocks = w.pp("token_refiner").pp("refiner_blocks");
        let block = |i| Block::new(dim, config.num_attention_heads, blocks.pp(i));
        Ok(TokenRefiner {
            time_text_embed: TimeTextEmbedding::new(text, dim, false, w.pp("time_text_embed"))?,
            proj_in: Linear::new(text, dim, w.pp("proj_in"))?,
            refiner_blocks: (0..config.num_refiner_layers).map(block).collect::<Result<_>>()?,
        })
    }

    /// (tokens, text_embed_dim) -> (tokens, dim)
    pub(super) fn forward(&self, text: &Tensor, timestep: f64) -> Result<Tensor> {
        let time = silu(&self.time_text_embed.forward(timestep, &text.mean_keepdim(0)?, 0.0)?)?; // (1, dim)
        let mut x = self.proj_in.forward(text)?;
        for block in &self.refiner_blocks {
            x = block.forward(&x, &time)?;
        }
        Ok(x)
    }
}

struct Block {
    norm1: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm2: LayerNorm,
    ff: [Linear; 2],
    norm_out: Linear,
    heads: usize,
}

impl Block {
    fn new(dim: usize, heads: usize, w: Weights) -> Result<Self> {
        let (attn, net) = (w.pp("attn"), w.pp("ff").pp("net"));
        Ok(Block {
            norm1: LayerNorm::affine(dim, EPSILON, w.pp("norm1"))?,
            to_q: Linear::new(dim, dim, attn.pp("to_q"))?,
            to_k: Linear::new(dim, dim, attn.pp("to_k"))?,
            to_v: Linear::new(dim, dim, attn.pp("to_v"))?,
            to_out: Linear::new(dim, dim, attn.pp("to_out").pp(0))?,
            norm2: LayerNorm::affine(dim, EPSILON, w.pp("norm2"))?,
            ff: [
                Linear::new(dim, MLP_RATIO * dim, net.pp(0).pp("proj"))?,
                Linear::new(MLP_RATIO * dim, dim, net.pp(2))?,
            ],
            norm_out: Linear::new(dim, 2 * dim, w.pp("norm_out").pp("linear"))?,
            heads,
        })
    }

    /// `time`: (1, dim), through SiLU already. // (tokens, dim) -> (tokens, dim)
    fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let gates = self.norm_out.forward(time)?.chunk(2, 1)?; // of attention and of the feed-forward, (1, dim) each
        let h = self.norm1.forward(x)?;
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|layer| split_heads(&layer.forward(&h)?, self.heads));
        let (q, k, v) = (q?, k?, v?);
        let scale = 1.0 / (q.dim(2)? as f64).sqrt();
        let mixed = self.to_out.forward(&attention(&q, &k, &v, scale, None, self.to_out.precision())?)?;
        let x = (x + mixed.broadcast_mul(&gates[0])?)?;
        let h = self.ff[1].forward(&silu(&self.ff[0].forward(&self.norm2.forward(&x)?)?)?)?;
        Ok((x + h.broadcast_mul(&gates[1])?)?)
    }
}

/// A layer norm without scale and shift of its own.
pub(super) fn plain_norm(dim: usize, device: &Device) -> Result<LayerNorm> {
    LayerNorm::plain(dim, EPSILON, device)
}
