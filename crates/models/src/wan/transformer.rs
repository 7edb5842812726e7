//! The Wan2.1 transformer.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::ops::silu;
use candle_nn::rotary_emb::rope_i;

use super::TransformerConfig;
use crate::nn::{Grid, LayerNorm, Linear, Modulation, RmsNorm, Rope3d, attention, patchify, sinusoid, unpatchify};
use crate::{Denoiser, Error, Features, Part, Result, Signal, Unit, Weights};

/// Predicts the velocity of latents, given a timestep and a text.
pub struct Transformer {
    patch_embedding: Linear,
    condition_embedder: ConditionEmbedder,
    blocks: Vec<Block>,
    norm_out: LayerNorm,
    modulation: Modulation,
    proj_out: Linear,
    rope: Rope3d,
    units: Vec<Unit>,
    patch: [usize; 3],
    channels: usize,
    width: usize,
    text_dim: usize,
    device: Device,
}

/// What a text conditions: keys and values of every block's cross-attention, which no timestep changes.
#[derive(Clone)]
pub struct Cond(Arc<[KeysValues]>);

struct KeysValues {
    k: Tensor, // (heads, text tokens, head dim)
    v: Tensor, // (heads, text tokens, head dim)
}

/// A forward pass under way.
pub struct State {
    video: Tensor,       // (tokens, dim)
    embedding: Tensor,   // (1, dim)
    modulations: Tensor, // (6, dim)
    rotations: Rotations,
    grid: Grid,
    cond: Cond,
}

struct Rotations {
    cos: Tensor, // (tokens, head dim / 2)
    sin: Tensor, // (tokens, head dim / 2)
}

impl Transformer {
    /// Reads the weights of `WanTransformer3DModel`.
    pub fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (dim, patch) = (config.dim(), config.patch_size);
        let volume = patch.iter().product::<usize>();
        let blocks: Vec<Block> =
            (0..config.num_layers).map(|i| Block::new(config, w.pp("blocks").pp(i))).collect::<Result<_>>()?;
        let parts = [Part::SelfAttn, Part::CrossAttn, Part::Mlp];
        Ok(Transformer {
            patch_embedding: patch_embedding(config, w.pp("patch_embedding"))?,
            condition_embedder: ConditionEmbedder::new(config, w.pp("condition_embedder"))?,
            units: (0..blocks.len()).flat_map(|block| parts.map(|part| Unit { block, part })).collect(),
            blocks,
            norm_out: LayerNorm::plain(dim, config.eps, w.device())?,
            modulation: Modulation::new(2, dim, &w)?,
            proj_out: Linear::new(dim, config.out_channels * volume, w.pp("proj_out"))?,
            rope: Rope3d::new(config.attention_head_dim, config.rope_max_seq_len, w.device())?,
            patch,
            channels: config.in_channels,
            width: dim,
            text_dim: config.text_dim,
            device: w.device().clone(),
        })
    }

    /// Conditioning on a text, `(1, text tokens, text_dim)`.
    pub fn cond(&self, text: &Tensor) -> Result<Cond> {
        let (_, _, text_dim) = text.dims3()?;
        if text_dim != self.text_dim {
            return Err(Error::Input {
                what: "width of the encoded text",
                expected: format!("{} (text_dim of transformer/config.json)", self.text_dim),
                found: format!("{text_dim} (d_model of text_encoder/config.json)"),
            });
        }
        let text = self.condition_embedder.text(&text.squeeze(0)?)?; // (text tokens, dim)
        self.blocks.iter().map(|block| block.attn2.keys_values(&text)).collect::<Result<Arc<[_]>>>().map(Cond)
    }

    fn grid(&self, latents: &Tensor) -> Result<Grid> {
        let (_, channels, frames, height, width) = latents.dims5()?;
        let [pf, ph, pw] = self.patch;
        if channels != self.channels || frames % pf != 0 || height % ph != 0 || width % pw != 0 {
            return Err(Error::Input {
                what: "shape of the latents",
                expected: format!(
                    "{} channels, and frames, height and width divisible by {:?}",
                    self.channels, self.patch
                ),
                found: format!("{:?}", latents.dims()),
            });
        }
        Ok(Grid { frames: frames / pf, height: height / ph, width: width / pw })
    }
}

impl Denoiser for Transformer {
    type Cond = Cond;
    type State = State;

    fn units(&self) -> &[Unit] {
        &self.units
    }

    fn patch(&self) -> [usize; 3] {
        self.patch
    }

    fn width(&self) -> usize {
        self.width
    }

    fn begin(&self, latents: &Tensor, timestep: f64, cond: &Cond) -> Result<State> {
        let grid = self.grid(latents)?;
        let (embedding, modulations) = self.condition_embedder.time(timestep, &self.device)?;
        let (cos, sin) = self.rope.at(grid)?;
        Ok(State {
            video: self.patch_embedding.forward(&patchify(latents, self.patch, grid)?)?,
            embedding,
            modulations,
            rotations: Rotations { cos, sin },
            grid,
            cond: cond.clone(),
        })
    }

    fn run_unit(&self, unit: usize, state: &mut State) -> Result<()> {
        let Unit { block, part } = self.units[unit];
        let Block { norm1, attn1, norm2, attn2, norm3, ffn, modulation } = &self.blocks[block];
        let x = &state.video; // (tokens, dim)
        // Shift, scale and gate of self-attention, then of the feed-forward. // (6, dim)
        let rows = || modulation.at(&state.modulations);
        let change = match part {
            Part::SelfAttn => {
                let rows = rows()?;
                let x = norm1.modulated(x, &rows.get(1)?, &rows.get(0)?)?;
                attn1.to_itself(&x, &state.rotations)?.broadcast_mul(&rows.get(2)?)?
            }
            Part::CrossAttn => {
                let normalized = norm2.as_ref().map(|norm| norm.forward(x)).transpose()?;
                attn2.to(normalized.as_ref().unwrap_or(x), &state.cond.0[block])?
            }
            Part::Mlp | Part::Whole => {
                let rows = rows()?;
                let x = norm3.modulated(x, &rows.get(4)?, &rows.get(3)?)?;
                ffn.forward(&x)?.broadcast_mul(&rows.get(5)?)?
            }
        };
        state.video = (x + change)?;
        Ok(())
    }

    fn finish(&self, state: State) -> Result<Tensor> {
        let rows = self.modulation.at(&state.embedding)?; // (2, dim): shift, scale
        let x = self.norm_out.modulated(&state.video, &rows.get(1)?, &rows.get(0)?)?;
        unpatchify(&self.proj_out.forward(&x)?, self.channels, self.patch, state.grid)
    }

    fn signal(&self, signal: Signal, state: &State) -> Result<Tensor> {
        match (signal, self.blocks.first()) {
            (Signal::TimeEmbedding, _) => Ok(state.embedding.clone()),
            (Signal::TimeProjection, _) => Ok(state.modulations.clone()),
            (Signal::ModulatedInput, None) => Ok(state.video.clone()),
            (Signal::ModulatedInput, Some(block)) => {
                let rows = block.modulation.at(&state.modulations)?;
                block.norm1.modulated(&state.video, &rows.get(1)?, &rows.get(0)?)
            }
        }
    }

    fn features(&self, state: &State) -> Features {
        Features { video: state.video.clone(), text: None }
    }

    fn set_features(&self, state: &mut State, to: Features) {
        state.video = to.video;
    }
}

/// A convolution whose stride is its kernel is a matrix product on patches.
fn patch_embedding(config: &TransformerConfig, w: Weights) -> Result<Linear> {
    let [pf, ph, pw] = config.patch_size;
    let weight = w.matrix("weight", &[config.dim(), config.in_channels, pf, ph, pw])?.flatten_from(1)?;
    Ok(Linear::from_tensors(weight, w.f32("bias", &[config.dim()])?))
}

struct ConditionEmbedder {
    freq_dim: usize,
    time_embedder: [Linear; 2],
    time_proj: Linear,
    text_embedder: [Linear; 2],
}

impl ConditionEmbedder {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let dim = config.dim();
        let (time, text) = (w.pp("time_embedder"), w.pp("text_embedder"));
        Ok(ConditionEmbedder {
            freq_dim: config.freq_dim,
            time_embedder: [
                Linear::in_f32(config.freq_dim, dim, time.pp("linear_1"))?,
                Linear::in_f32(dim, dim, time.pp("linear_2"))?,
            ],
            time_proj: Linear::new(dim, 6 * dim, w.pp("time_proj"))?,
            text_embedder: [
                Linear::new(config.text_dim, dim, text.pp("linear_1"))?,
                Linear::new(dim, dim, text.pp("linear_2"))?,
            ],
        })
    }

    /// The embedding of a timestep, for the head, and its rows for the blocks. // (1, dim), (6, dim)
    fn time(&self, timestep: f64, device: &Device) -> Result<(Tensor, Tensor)> {
        let [linear_1, linear_2] = &self.time_embedder;
        let hidden = silu(&linear_1.forward(&sinusoid(timestep, self.freq_dim, device)?)?)?;
        let embedding = linear_2.forward(&hidden)?;
        let rows = self.time_proj.forward(&silu(&embedding)?)?.reshape((6, ()))?;
        Ok((embedding, rows))
    }

    /// (text tokens, text_dim) -> (text tokens, dim)
    fn text(&self, text: &Tensor) -> Result<Tensor> {
        let [linear_1, linear_2] = &self.text_embedder;
        linear_2.forward(&linear_1.forward(text)?.gelu()?)
    }
}

struct Block {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: Option<LayerNorm>,
    attn2: Attention,
    norm3: LayerNorm,
    ffn: FeedForward,
    modulation: Modulation,
}

impl Block {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let (dim, eps) = (config.dim(), config.eps);
        let norm2 = config.cross_attn_norm.then(|| LayerNorm::affine(dim, eps, w.pp("norm2")));
        Ok(Block {
            norm1: LayerNorm::plain(dim, eps, w.device())?,
            attn1: Attention::new(config, w.pp("attn1"))?,
            norm2: norm2.transpose()?,
            attn2: Attention::new(config, w.pp("attn2"))?,
            norm3: LayerNorm::plain(dim, eps, w.device())?,
            ffn: FeedForward::new(dim, config.ffn_dim, w.pp("ffn").pp("net"))?,
            modulation: Modulation::new(6, dim, &w)?,
        })
    }
}

/// Attention with queries and keys normalised across all heads.
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    heads: usize,
    scale: f64,
}

impl Attention {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let dim = config.dim();
        Ok(Attention {
            to_q: Linear::new(dim, dim, w.pp("to_q"))?,
            to_k: Linear::new(dim, dim, w.pp("to_k"))?,
            to_v: Linear::new(dim, dim, w.pp("to_v"))?,
            to_out: Linear::new(dim, dim, w.pp("to_out").pp(0))?,
            norm_q: RmsNorm::new(dim, config.eps, w.pp("norm_q"))?,
            norm_k: RmsNorm::new(dim, config.eps, w.pp("norm_k"))?,
            heads: config.num_attention_heads,
            scale: 1.0 / (config.attention_head_dim as f64).sqrt(),
        })
    }

    /// Among the video's tokens. // (tokens, dim) -> (tokens, dim)
    fn to_itself(&self, x: &Tensor, rotations: &Rotations) -> Result<Tensor> {
        let rotate = |x: Tensor| -> Result<Tensor> {
            Ok(rope_i(&x.unsqueeze(0)?, &rotations.cos, &rotations.sin)?.squeeze(0)?) // (heads, tokens, head dim)
        };
        let q = rotate(self.queries(x)?)?;
        let KeysValues { k, v } = self.keys_values(x)?;
        self.to_out.forward(&attention(&q, &rotate(k)?, &v, self.scale, None)?)
    }

    /// To keys and values from elsewhere. // (tokens, dim) -> (tokens, dim)
    fn to(&self, x: &Tensor, KeysValues { k, v }: &KeysValues) -> Result<Tensor> {
        self.to_out.forward(&attention(&self.queries(x)?, k, v, self.scale, None)?)
    }

    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.split(self.norm_q.forward(&self.to_q.forward(x)?)?)
    }

    fn keys_values(&self, x: &Tensor) -> Result<KeysValues> {
        let k = self.norm_k.forward(&self.to_k.forward(x)?)?;
        Ok(KeysValues { k: self.split(k)?, v: self.split(self.to_v.forward(x)?)? })
    }

    /// (tokens, dim) -> (heads, tokens, head dim)
    fn split(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.reshape((x.dim(0)?, self.heads, ()))?.transpose(0, 1)?.contiguous()?)
    }
}

struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(dim: usize, ffn_dim: usize, w: Weights) -> Result<Self> {
        Ok(FeedForward {
            proj: Linear::new(dim, ffn_dim, w.pp(0).pp("proj"))?,
            out: Linear::new(ffn_dim, dim, w.pp(2))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&self.proj.forward(x)?.gelu()?)
    }
}
