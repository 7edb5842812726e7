//! The Wan2.1 transformer.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use navicache_kernels::{residual, rotate_pairs, silu};

use super::TransformerConfig;
use crate::nn::{
    Grid, LayerNorm, Linear, Modulation, RmsNorm, Rope3d, attention, by_runs, gated_by_runs, patchify, sinusoid,
    split_heads, unpatchify,
};
use crate::{Denoiser, Error, Features, Part, Result, Signal, Unit, Weights};

/// Base of the rotary embedding's frequencies.
const ROPE_THETA: f64 = 10000.0;

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
    out_channels: usize,
    width: usize,
    text_dim: usize,
    device: Device,
}

/// What a prediction is conditioned on; no timestep changes it.
#[derive(Clone)]
pub struct Cond {
    /// Of every block's cross-attention.
    keys_values: Arc<[CrossKeysValues]>,
    /// Channels that stand beside those of the latents. // (1, channels, latent frames, height, width)
    channels: Option<Tensor>,
    still_frames: usize,
}

/// What a picture adds to a text.
#[derive(Debug, Clone, Default)]
pub struct ImageCond {
    /// Its embedding, for models that attend to it. // (1, tokens, image_dim)
    pub embedding: Option<Tensor>,
    /// Channels that stand beside those of the latents, for models that take them.
    /// // (1, channels, latent frames, height, width)
    pub channels: Option<Tensor>,
    /// Latent frames at the start that are no noise: their tokens are conditioned on timestep 0.
    pub still_frames: usize,
}

struct CrossKeysValues {
    text: KeysValues,
    image: Option<KeysValues>,
}

struct KeysValues {
    k: Tensor, // (heads, text tokens, head dim)
    v: Tensor, // (heads, text tokens, head dim)
}

/// A forward pass under way.
pub struct State {
    video: Tensor, // (tokens, dim)
    /// Tokens in a row that are conditioned on the same timestep. Usually one run; two where the first frames are
    /// still.
    times: Vec<(usize, Time)>,
    rotations: Rotations,
    grid: Grid,
    cond: Cond,
}

struct Time {
    embedding: Tensor,   // (1, dim)
    modulations: Tensor, // (6, dim)
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
            rope: Rope3d::new(config.rope_channels(), ROPE_THETA, config.rope_max_seq_len, w.device())?,
            patch,
            channels: config.in_channels,
            out_channels: config.out_channels,
            width: dim,
            text_dim: config.text_dim,
            device: w.device().clone(),
        })
    }

    /// Conditioning on a text, `(1, text tokens, text_dim)`.
    pub fn cond(&self, text: &Tensor) -> Result<Cond> {
        self.cond_with_image(text, &ImageCond::default())
    }

    /// Conditioning on a text and a picture.
    pub fn cond_with_image(&self, text: &Tensor, picture: &ImageCond) -> Result<Cond> {
        let (_, _, text_dim) = text.dims3()?;
        if text_dim != self.text_dim {
            return Err(Error::Input {
                what: "width of the encoded text",
                expected: format!("{} (text_dim of transformer/config.json)", self.text_dim),
                found: format!("{text_dim} (d_model of text_encoder/config.json)"),
            });
        }
        let text = self.condition_embedder.text(&text.squeeze(0)?)?; // (text tokens, dim)
        let image = match (&picture.embedding, &self.condition_embedder.image_embedder) {
            (Some(embedding), Some(embedder)) => Some(embedder.forward(&embedding.squeeze(0)?)?), // (image tokens, dim)
            (None, None) => None,
            (given, _) => {
                let say = |there: bool| if there { "an image" } else { "no image" }.to_string();
                return Err(Error::Input {
                    what: "conditioning of the transformer",
                    expected: say(given.is_none()),
                    found: say(given.is_some()),
                });
            }
        };
        let keys_values = |block: &Block| {
            let image = match (&image, &block.added) {
                (Some(image), Some(added)) => Some(added.keys_values(image, block.attn2.heads)?),
                _ => None,
            };
            Ok(CrossKeysValues { text: block.attn2.keys_values(&text)?, image })
        };
        Ok(Cond {
            keys_values: self.blocks.iter().map(keys_values).collect::<Result<_>>()?,
            channels: picture.channels.clone(),
            still_frames: picture.still_frames,
        })
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
        let latents = match &cond.channels {
            Some(channels) => Tensor::cat(&[latents, channels], 1)?,
            None => latents.clone(),
        };
        let grid = Grid::of(&latents, self.channels, self.patch)?;
        let frame = grid.height * grid.width;
        let still = (cond.still_frames / self.patch[0]).min(grid.frames);
        let parts = [(0.0, still * frame), (timestep, (grid.frames - still) * frame)];
        let times = parts.into_iter().filter(|(_, tokens)| *tokens > 0).map(|(timestep, tokens)| {
            let (embedding, modulations) = self.condition_embedder.time(timestep, &self.device)?;
            Ok((tokens, Time { embedding, modulations }))
        });
        let (cos, sin) = self.rope.at(grid)?;
        Ok(State {
            video: self.patch_embedding.forward(&patchify(&latents, self.patch, grid)?)?,
            times: times.collect::<Result<_>>()?,
            rotations: Rotations { cos, sin },
            grid,
            cond: cond.clone(),
        })
    }

    fn run_unit(&self, unit: usize, state: &mut State) -> Result<()> {
        let Unit { block, part } = self.units[unit];
        let Block { norm1, attn1, norm2, attn2, norm3, ffn, modulation, .. } = &self.blocks[block];
        let x = &state.video; // (tokens, dim)
        // Shift, scale and gate of self-attention, then of the feed-forward. // (6, dim)
        let rows = |time: &Time| modulation.at(&time.modulations);
        let modulated = |norm: &LayerNorm, first: usize| {
            by_runs(x, &state.times, |x, time| {
                let rows = rows(time)?;
                norm.modulated(x, &rows.get(first + 1)?, &rows.get(first)?)
            })
        };
        let gated =
            |change: Tensor, row: usize| gated_by_runs(x, &change, &state.times, |time| Ok(rows(time)?.get(row)?));
        state.video = match part {
            Part::SelfAttn | Part::SpatialAttn | Part::TemporalAttn => {
                gated(attn1.to_itself(&modulated(norm1, 0)?, &state.rotations)?, 2)?
            }
            Part::CrossAttn => {
                let normalized = norm2.as_ref().map(|norm| norm.forward(x)).transpose()?;
                residual(x, &attn2.to(normalized.as_ref().unwrap_or(x), &state.cond.keys_values[block])?)?
            }
            _ => gated(ffn.forward(&modulated(norm3, 3)?)?, 5)?,
        };
        Ok(())
    }

    fn finish(&self, state: State) -> Result<Tensor> {
        let x = by_runs(&state.video, &state.times, |x, time| {
            let rows = self.modulation.at(&time.embedding)?; // (2, dim): shift, scale
            self.norm_out.modulated(x, &rows.get(1)?, &rows.get(0)?)
        })?;
        unpatchify(&self.proj_out.forward(&x)?, self.out_channels, self.patch, state.grid)
    }

    fn thinned(&self, cond: &Cond, stay: &[Tensor; 3]) -> Result<Cond> {
        let Some(channels) = &cond.channels else { return Ok(cond.clone()) };
        let mut thin = channels.clone();
        for (axis, stay) in (2..).zip(stay) {
            thin = thin.index_select(stay, axis)?;
        }
        Ok(Cond { channels: Some(thin), ..cond.clone() })
    }

    /// Of tokens that are conditioned on different timesteps, those that are noise.
    fn signal(&self, signal: Signal, state: &State) -> Result<Tensor> {
        let Some((_, time)) = state.times.last() else { return Ok(state.video.clone()) };
        match (signal, self.blocks.first()) {
            (Signal::TimeEmbedding, _) => Ok(time.embedding.clone()),
            (Signal::TimeProjection, _) => Ok(time.modulations.clone()),
            (Signal::ModulatedInput, None) => Ok(state.video.clone()),
            (Signal::ModulatedInput, Some(block)) => by_runs(&state.video, &state.times, |x, time| {
                let rows = block.modulation.at(&time.modulations)?;
                block.norm1.modulated(x, &rows.get(1)?, &rows.get(0)?)
            }),
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
    let weight = w.f32("weight", &[config.dim(), config.in_channels, pf, ph, pw])?.flatten_from(1)?;
    Linear::from_tensors(weight, w.f32("bias", &[config.dim()])?)
}

struct ConditionEmbedder {
    freq_dim: usize,
    time_embedder: [Linear; 2],
    time_proj: Linear,
    text_embedder: [Linear; 2],
    image_embedder: Option<ImageEmbedder>,
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
            image_embedder: config
                .image_dim
                .map(|image_dim| ImageEmbedder::new(image_dim, dim, w.pp("image_embedder")))
                .transpose()?,
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
        linear_2.forward(&linear_1.forward_gelu(text)?)
    }
}

/// From the image encoder's features to the transformer's width.
struct ImageEmbedder {
    norm1: LayerNorm,
    ff: [Linear; 2],
    norm2: LayerNorm,
}

impl ImageEmbedder {
    /// Epsilon of its norms, which no configuration names.
    const EPSILON: f64 = 1e-5;

    fn new(image_dim: usize, dim: usize, w: Weights) -> Result<Self> {
        let net = w.pp("ff").pp("net");
        Ok(ImageEmbedder {
            norm1: LayerNorm::affine(image_dim, Self::EPSILON, w.pp("norm1"))?,
            ff: [Linear::new(image_dim, image_dim, net.pp(0).pp("proj"))?, Linear::new(image_dim, dim, net.pp(2))?],
            norm2: LayerNorm::affine(dim, Self::EPSILON, w.pp("norm2"))?,
        })
    }

    /// (image tokens, image_dim) -> (image tokens, dim)
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.ff[0].forward(&self.norm1.forward(x)?)?.gelu_erf()?;
        self.norm2.forward(&self.ff[1].forward(&x)?)
    }
}

struct Block {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: Option<LayerNorm>,
    attn2: Attention,
    /// Of the cross-attention to a picture.
    added: Option<AddedKeysValues>,
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
            added: config.image_dim.is_some().then(|| AddedKeysValues::new(config, w.pp("attn2"))).transpose()?,
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
            Ok(rotate_pairs(&x, &rotations.cos, &rotations.sin)?) // (heads, tokens, head dim)
        };
        let x = self.to_q.operand(x)?;
        let q = rotate(self.queries(&x)?)?;
        let KeysValues { k, v } = self.keys_values(&x)?;
        self.to_out.forward(&self.mixed(&q, &rotate(k)?, &v)?)
    }

    /// To a text, and to a picture if there is one: two attentions that add up. // (tokens, dim) -> (tokens, dim)
    fn to(&self, x: &Tensor, CrossKeysValues { text, image }: &CrossKeysValues) -> Result<Tensor> {
        let q = self.queries(x)?;
        let mut mixed = self.mixed(&q, &text.k, &text.v)?;
        if let Some(image) = image {
            mixed = (mixed + self.mixed(&q, &image.k, &image.v)?)?;
        }
        self.to_out.forward(&mixed)
    }

    /// (heads, tokens, head dim) -> (tokens, dim)
    fn mixed(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        attention(q, k, v, self.scale, None, self.to_out.precision())
    }

    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        split_heads(&self.norm_q.forward(&self.to_q.forward(x)?)?, self.heads)
    }

    fn keys_values(&self, x: &Tensor) -> Result<KeysValues> {
        let k = self.norm_k.forward(&self.to_k.forward(x)?)?;
        Ok(KeysValues { k: split_heads(&k, self.heads)?, v: split_heads(&self.to_v.forward(x)?, self.heads)? })
    }
}

/// Keys and values of a picture's tokens.
struct AddedKeysValues {
    add_k_proj: Linear,
    add_v_proj: Linear,
    norm_added_k: RmsNorm,
}

impl AddedKeysValues {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let dim = config.dim();
        Ok(AddedKeysValues {
            add_k_proj: Linear::new(dim, dim, w.pp("add_k_proj"))?,
            add_v_proj: Linear::new(dim, dim, w.pp("add_v_proj"))?,
            norm_added_k: RmsNorm::new(dim, config.eps, w.pp("norm_added_k"))?,
        })
    }

    /// In so many heads. // (image tokens, dim)
    fn keys_values(&self, image: &Tensor, heads: usize) -> Result<KeysValues> {
        let k = self.norm_added_k.forward(&self.add_k_proj.forward(image)?)?;
        Ok(KeysValues { k: split_heads(&k, heads)?, v: split_heads(&self.add_v_proj.forward(image)?, heads)? })
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
        self.proj.forward_gelu_into(&self.out, x)
    }
}
