//! STDiT3: attention within frames, then across them at each place, each with attention to the text and a feed-forward
//! network.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use navicache_kernels::{rotate_pairs, silu};

use super::TransformerConfig;
use crate::nn::{
    Grid, LayerNorm, Linear, Modulation, RmsNorm, attention, by_runs, patchify, sinusoid, split_heads, unpatchify,
};
use crate::{Denoiser, Error, Features, Observed, Part, Result, Signal, Unit, Weights};

/// Width of the sinusoids of a timestep and of a frame rate.
const FREQUENCIES: usize = 256;
/// Base of the frequencies of places.
const PLACE_THETA: f64 = 10000.0;
/// Base of the rotary embedding's frequencies.
const ROPE_THETA: f64 = 10000.0;
/// Epsilon of the norms, which no configuration names.
const EPSILON: f64 = 1e-6;
/// Units of a pair of blocks: of the one within frames, then of the one across them.
const PARTS: [Part; 6] =
    [Part::SpatialAttn, Part::CrossAttn, Part::Mlp, Part::TemporalAttn, Part::CrossAttn, Part::Mlp];

/// Predicts the velocity of latents, from noise to data, given a timestep and a text.
pub struct Transformer {
    x_embedder: Linear,
    t_embedder: Embedder,
    fps_embedder: Embedder,
    t_block: Linear,
    y_embedding: Tensor, // (model_max_length, caption_channels)
    y_proj: Mlp,
    spatial_blocks: Vec<Block>,
    temporal_blocks: Vec<Block>,
    final_layer: FinalLayer,
    rope: Rope,
    units: Vec<Unit>,
    config: TransformerConfig,
    device: Device,
}

/// What the model is conditioned on beside the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoSize {
    /// Rows of pixels that were asked for, before any rounding.
    pub height: usize,
    /// Columns of pixels, likewise.
    pub width: usize,
    /// Frames a second; a picture has 120.
    pub fps: f64,
}

/// What a prediction is conditioned on; no timestep changes it.
#[derive(Clone)]
pub struct Cond {
    /// Of every pair of blocks: for the one within frames, for the one across them.
    keys_values: Arc<[[KeysValues; 2]]>,
    size: VideoSize,
    /// Which latent frames are noise; `None`: all.
    frame_mask: Option<Arc<[bool]>>,
}

impl Cond {
    /// The same, with latent frames of which some are no noise: those are conditioned on timestep 0. One flag a latent
    /// frame, true for noise.
    pub fn with_frame_mask(self, mask: impl Into<Arc<[bool]>>) -> Self {
        Cond { frame_mask: Some(mask.into()), ..self }
    }
}

struct KeysValues {
    k: Tensor, // (heads, text tokens, head dim)
    v: Tensor, // (heads, text tokens, head dim)
}

/// A forward pass under way.
pub struct State {
    video: Tensor, // (tokens, dim)
    /// Of what is noise.
    time: Time,
    /// Runs of tokens, each with its length and the timestep it is conditioned on.
    runs: Vec<(usize, TokenTime)>,
    rotations: (Tensor, Tensor), // (frames, head dim / 2) each
    grid: Grid,
    height: usize, // of the latents, not padded
    width: usize,
    cond: Cond,
}

/// A timestep and the frame rate, for the head and for the blocks.
#[derive(Clone)]
struct Time {
    embedding: Tensor,   // (1, dim)
    modulations: Tensor, // (6, dim)
}

/// The timestep that tokens are conditioned on.
struct TokenTime {
    time: Time,
    noise: bool,
}

impl Transformer {
    /// Reads the weights of `STDiT3`.
    pub fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (dim, [pf, ph, pw]) = (config.hidden_size, config.patch_size);
        let proj = w.pp("x_embedder").pp("proj");
        let kernel = proj.f32("weight", &[dim, config.in_channels, pf, ph, pw])?;
        let captions = w.pp("y_embedder");
        let blocks = |name: &str| -> Result<Vec<Block>> {
            (0..config.depth).map(|i| Block::new(config, w.pp(name).pp(i))).collect()
        };
        Ok(Transformer {
            // A convolution whose stride is its kernel is a matrix product on patches.
            x_embedder: Linear::from_tensors(kernel.flatten_from(1)?, proj.f32("bias", &[dim])?)?,
            t_embedder: Embedder::new(dim, w.pp("t_embedder").pp("mlp"))?,
            fps_embedder: Embedder::new(dim, w.pp("fps_embedder").pp("mlp"))?,
            t_block: Linear::new(dim, 6 * dim, w.pp("t_block").pp(1))?,
            y_embedding: captions.f32("y_embedding", &[config.model_max_length, config.caption_channels])?,
            y_proj: Mlp::new(config.caption_channels, dim, dim, captions.pp("y_proj"))?,
            spatial_blocks: blocks("spatial_blocks")?,
            temporal_blocks: blocks("temporal_blocks")?,
            final_layer: FinalLayer::new(config, w.pp("final_layer"))?,
            rope: Rope::new(config.head_dim(), w.pp("rope"))?,
            units: (0..config.depth).flat_map(|block| PARTS.map(|part| Unit { block, part })).collect(),
            config: config.clone(),
            device: w.device().clone(),
        })
    }

    /// Conditioning on a text, `(1, text tokens, caption_channels)`, without padding.
    pub fn cond(&self, text: &Tensor, size: VideoSize) -> Result<Cond> {
        let (_, tokens, channels) = text.dims3()?;
        if channels != self.config.caption_channels || tokens == 0 {
            return Err(Error::Input {
                what: "shape of the encoded text",
                expected: format!(
                    "one token or more of width {} (caption_channels of the transformer)",
                    self.config.caption_channels
                ),
                found: format!("{tokens} tokens of width {channels} (d_model of the text encoder)"),
            });
        }
        if size.height == 0 || size.width == 0 {
            return Err(Error::Input {
                what: "size of the video",
                expected: "one pixel or more in height and width".to_string(),
                found: format!("{}x{}", size.width, size.height),
            });
        }
        let text = self.y_proj.forward(&text.squeeze(0)?)?; // (text tokens, dim)
        let pair = |(spatial, temporal): (&Block, &Block)| {
            Ok([spatial.cross_attn.keys_values(&text)?, temporal.cross_attn.keys_values(&text)?])
        };
        Ok(Cond {
            keys_values: self.spatial_blocks.iter().zip(&self.temporal_blocks).map(pair).collect::<Result<_>>()?,
            size,
            frame_mask: None,
        })
    }

    /// Conditioning on no text, for guidance: the learned null caption, cut to the length of the prompt, as in the
    /// reference.
    pub fn null_cond(&self, tokens: usize, size: VideoSize) -> Result<Cond> {
        if tokens > self.config.model_max_length {
            return Err(Error::Input {
                what: "tokens of the text",
                expected: format!("at most {} (model_max_length of the transformer)", self.config.model_max_length),
                found: tokens.to_string(),
            });
        }
        self.cond(&self.y_embedding.narrow(0, 0, tokens)?.unsqueeze(0)?, size)
    }

    fn time(&self, timestep: f64, fps: f64) -> Result<Time> {
        let embedding =
            (self.t_embedder.forward(timestep, &self.device)? + self.fps_embedder.forward(fps, &self.device)?)?;
        let modulations = self.t_block.forward(&silu(&embedding)?)?.reshape((6, ()))?;
        Ok(Time { embedding, modulations })
    }

    /// Times of tokens in a row, for latent frames of so many tokens.
    fn runs(&self, noise: &Time, frames: usize, tokens: usize, cond: &Cond) -> Result<Vec<(usize, TokenTime)>> {
        let Some(mask) = &cond.frame_mask else {
            return Ok(vec![(frames * tokens, TokenTime { time: noise.clone(), noise: true })]);
        };
        if mask.len() != frames {
            return Err(Error::Input {
                what: "mask of latent frames",
                expected: format!("{frames} flags, one a latent frame"),
                found: mask.len().to_string(),
            });
        }
        let still = self.time(0.0, cond.size.fps)?;
        let run = |run: &[bool]| {
            let time = if run[0] { noise } else { &still };
            (run.len() * tokens, TokenTime { time: time.clone(), noise: run[0] })
        };
        Ok(mask.chunk_by(|a, b| a == b).map(run).collect())
    }

    /// Embedding of every token's place in its frame: column first, then row. // (1, height, width, dim)
    ///
    /// Places are measured so that a frame has the extent of a square one of `input_sq_size`, whatever its size and
    /// shape.
    fn places(&self, grid: Grid, size: VideoSize) -> Result<Tensor> {
        let half = self.config.hidden_size / 2;
        let base = ((grid.height * grid.width) as f64).sqrt().round_ties_even();
        let scale = ((size.height * size.width) as f64).sqrt() / self.config.input_sq_size as f64;
        let table = |places: usize| -> Result<Tensor> {
            let step = base / places as f64 / scale;
            let rows = (0..places).flat_map(|place| {
                let angle = move |i: usize| place as f64 * step / PLACE_THETA.powf(2.0 * i as f64 / half as f64);
                let sines = (0..half / 2).map(move |i| angle(i).sin() as f32);
                sines.chain((0..half / 2).map(move |i| angle(i).cos() as f32))
            });
            Ok(Tensor::from_vec(rows.collect(), (places, half), &self.device)?)
        };
        let shape = (1, grid.height, grid.width, half);
        let columns = table(grid.width)?.unsqueeze(0)?.broadcast_as(shape)?;
        let rows = table(grid.height)?.unsqueeze(1)?.broadcast_as(shape)?;
        Ok(Tensor::cat(&[columns, rows], 3)?)
    }
}

impl Denoiser for Transformer {
    type Cond = Cond;
    type State = State;

    fn units(&self) -> &[Unit] {
        &self.units
    }

    fn patch(&self) -> [usize; 3] {
        self.config.patch_size
    }

    fn width(&self) -> usize {
        self.config.hidden_size
    }

    fn observed(&self) -> Observed {
        Observed::Tokens
    }

    /// Frames that no whole number of patches fills are continued with zeros.
    fn begin(&self, latents: &Tensor, timestep: f64, cond: &Cond) -> Result<State> {
        let (_, _, _, height, width) = latents.dims5()?;
        let [_, ph, pw] = self.config.patch_size;
        let (bottom, right) = (height.next_multiple_of(ph) - height, width.next_multiple_of(pw) - width);
        let padded = latents.pad_with_zeros(3, 0, bottom)?.pad_with_zeros(4, 0, right)?;
        let grid = Grid::of(&padded, self.config.in_channels, self.config.patch_size)?;
        let patches = self.x_embedder.forward(&patchify(&padded, self.config.patch_size, grid)?)?; // (tokens, dim)
        let dim = self.config.hidden_size;
        let video = patches
            .reshape((grid.frames, grid.height, grid.width, dim))?
            .broadcast_add(&self.places(grid, cond.size)?)?
            .reshape((grid.tokens(), dim))?;
        let time = self.time(timestep, cond.size.fps)?;
        Ok(State {
            video,
            runs: self.runs(&time, grid.frames, grid.height * grid.width, cond)?,
            time,
            rotations: self.rope.at(grid.frames)?,
            grid,
            height,
            width,
            cond: cond.clone(),
        })
    }

    fn run_unit(&self, unit: usize, state: &mut State) -> Result<()> {
        let Unit { block: i, part } = self.units[unit];
        let temporal = unit % PARTS.len() >= PARTS.len() / 2;
        let block = if temporal { &self.temporal_blocks[i] } else { &self.spatial_blocks[i] };
        let change = match part {
            Part::CrossAttn => block.cross_attn.to(&state.video, &state.cond.keys_values[i][temporal as usize])?,
            Part::Mlp => block.gated(&block.mlp.forward(&block.modulated(state, 3)?)?, state, 5)?,
            _ => {
                let (x, frames) = (block.modulated(state, 0)?, state.grid.frames);
                let mixed = if temporal {
                    block.attn.across_frames(&x, frames, &state.rotations)?
                } else {
                    block.attn.within_frames(&x, frames)?
                };
                block.gated(&mixed, state, 2)?
            }
        };
        state.video = (&state.video + change)?;
        Ok(())
    }

    fn finish(&self, state: State) -> Result<Tensor> {
        let out = self.final_layer.forward(&state)?; // (tokens, pf * ph * pw * channels)
        let out = unpatchify(&out, self.config.out_channels(), self.config.patch_size, state.grid)?;
        let velocity = out.narrow(1, 0, self.config.in_channels)?;
        // The network predicts the way from noise to data; a velocity here is that from data to noise, as of every
        // other model.
        Ok(velocity.narrow(3, 0, state.height)?.narrow(4, 0, state.width)?.neg()?)
    }

    /// Only the mask of frames has the latents' shape.
    fn thinned(&self, cond: &Cond, stay: &[Tensor; 3]) -> Result<Cond> {
        let Some(mask) = &cond.frame_mask else { return Ok(cond.clone()) };
        let flag = |frame: u32| {
            mask.get(frame as usize).copied().ok_or_else(|| Error::Input {
                what: "latent frame that stays",
                expected: format!("less than {}, the flags of the mask of latent frames", mask.len()),
                found: frame.to_string(),
            })
        };
        let mask: Vec<bool> = stay[0].to_vec1::<u32>()?.into_iter().map(flag).collect::<Result<_>>()?;
        Ok(cond.clone().with_frame_mask(mask))
    }

    /// Of tokens that are conditioned on different timesteps, those that are noise.
    fn signal(&self, signal: Signal, state: &State) -> Result<Tensor> {
        match (signal, self.spatial_blocks.first()) {
            (Signal::TimeEmbedding, _) => Ok(state.time.embedding.clone()),
            (Signal::TimeProjection, _) => Ok(state.time.modulations.clone()),
            (Signal::ModulatedInput, Some(block)) => block.modulated(state, 0),
            (Signal::ModulatedInput, None) => Ok(state.video.clone()),
        }
    }

    fn features(&self, state: &State) -> Features {
        Features { video: state.video.clone(), text: None }
    }

    fn set_features(&self, state: &mut State, to: Features) {
        state.video = to.video;
    }
}

/// A number's sinusoid through two layers.
struct Embedder([Linear; 2]);

impl Embedder {
    fn new(dim: usize, w: Weights) -> Result<Self> {
        Ok(Embedder([Linear::new(FREQUENCIES, dim, w.pp(0))?, Linear::new(dim, dim, w.pp(2))?]))
    }

    /// (1, dim)
    fn forward(&self, value: f64, device: &Device) -> Result<Tensor> {
        let [inward, outward] = &self.0;
        outward.forward(&silu(&inward.forward(&sinusoid(value, FREQUENCIES, device)?)?)?)
    }
}

/// Angles by which channels of a head turn from one frame to the next.
struct Rope {
    freqs: Tensor, // (1, head dim / 2)
}

impl Rope {
    /// Published files have them; where they are missing they follow from the head's width.
    fn new(head_dim: usize, w: Weights) -> Result<Self> {
        let pairs = head_dim / 2;
        let freqs = if w.contains("freqs") {
            w.f32("freqs", &[pairs])?
        } else {
            let freqs = (0..pairs).map(|i| ROPE_THETA.powf(-2.0 * i as f64 / head_dim as f64) as f32);
            Tensor::from_iter(freqs, w.device())?
        };
        Ok(Rope { freqs: freqs.unsqueeze(0)? })
    }

    /// Cosines and sines for every frame. // (frames, head dim / 2) each
    fn at(&self, frames: usize) -> Result<(Tensor, Tensor)> {
        let positions = Tensor::arange(0, frames as u32, self.freqs.device())?.to_dtype(DType::F32)?;
        let angles = positions.unsqueeze(1)?.broadcast_mul(&self.freqs)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}

struct Block {
    norm: LayerNorm,
    attn: SelfAttention,
    cross_attn: CrossAttention,
    mlp: Mlp,
    /// Shift, scale and gate of self-attention, then of the feed-forward.
    modulation: Modulation,
}

impl Block {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let dim = config.hidden_size;
        Ok(Block {
            norm: LayerNorm::plain(dim, EPSILON, w.device())?,
            attn: SelfAttention::new(config, w.pp("attn"))?,
            cross_attn: CrossAttention::new(config, w.pp("cross_attn"))?,
            mlp: Mlp::new(dim, config.mlp_dim(), dim, w.pp("mlp"))?,
            modulation: Modulation::of_rows(6, dim, &w)?,
        })
    }

    /// The video, normalised, then scaled and shifted by the row after `shift` and by that row. // (tokens, dim)
    fn modulated(&self, state: &State, shift: usize) -> Result<Tensor> {
        by_runs(&state.video, &state.runs, |x, token_time| {
            let rows = self.modulation.at(&token_time.time.modulations)?;
            self.norm.modulated(x, &rows.get(shift + 1)?, &rows.get(shift)?)
        })
    }

    /// (tokens, dim) -> (tokens, dim)
    fn gated(&self, x: &Tensor, state: &State, gate: usize) -> Result<Tensor> {
        by_runs(x, &state.runs, |x, token_time| {
            let rows = self.modulation.at(&token_time.time.modulations)?;
            Ok(x.broadcast_mul(&rows.get(gate)?)?)
        })
    }
}

/// Attention among tokens of one frame, or of one place, with norms of each head.
struct SelfAttention {
    qkv: Linear,
    proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    heads: usize,
}

impl SelfAttention {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let (dim, head_dim) = (config.hidden_size, config.head_dim());
        Ok(SelfAttention {
            qkv: Linear::new(dim, 3 * dim, w.pp("qkv"))?,
            proj: Linear::new(dim, dim, w.pp("proj"))?,
            q_norm: RmsNorm::new(head_dim, EPSILON, w.pp("q_norm"))?,
            k_norm: RmsNorm::new(head_dim, EPSILON, w.pp("k_norm"))?,
            heads: config.num_heads,
        })
    }

    /// At each place, tokens of all frames: places are heads. // (tokens, dim) -> (tokens, dim)
    fn across_frames(&self, x: &Tensor, frames: usize, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
        let heads = x.dim(0)? / frames * self.heads;
        let split = |x: Tensor| split_heads(&x.reshape((frames, ()))?, heads); // (places * heads, frames, head dim)
        let rotate = |x: Tensor| rotate_pairs(&x, cos, sin);
        let [q, k, v] = self.queries_keys_values(x)?;
        let (q, k) = (rotate(self.q_norm.forward(&split(q)?)?)?, rotate(self.k_norm.forward(&split(k)?)?)?);
        let mixed = self.attend(&q, &k, &split(v)?)?; // (frames, places * dim)
        self.proj.forward(&mixed.reshape(x.shape())?)
    }

    /// In each frame, its tokens. // (tokens, dim) -> (tokens, dim)
    fn within_frames(&self, x: &Tensor, frames: usize) -> Result<Tensor> {
        let [q, k, v] = self.queries_keys_values(x)?;
        let places = x.dim(0)? / frames;
        let mixed = (0..frames).map(|frame| {
            let split = |x: &Tensor| split_heads(&x.narrow(0, frame * places, places)?, self.heads);
            let (q, k) = (self.q_norm.forward(&split(&q)?)?, self.k_norm.forward(&split(&k)?)?);
            self.attend(&q, &k, &split(&v)?) // (places, dim)
        });
        self.proj.forward(&Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// (tokens, dim) each
    fn queries_keys_values(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (qkv, dim) = (self.qkv.forward(x)?, x.dim(1)?);
        Ok([qkv.narrow(1, 0, dim)?, qkv.narrow(1, dim, dim)?, qkv.narrow(1, 2 * dim, dim)?])
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        attention(q, k, v, 1.0 / (q.dim(D::Minus1)? as f64).sqrt(), None, self.proj.precision())
    }
}

/// Attention of all video tokens to a text.
struct CrossAttention {
    q_linear: Linear,
    kv_linear: Linear,
    proj: Linear,
    heads: usize,
}

impl CrossAttention {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let dim = config.hidden_size;
        Ok(CrossAttention {
            q_linear: Linear::new(dim, dim, w.pp("q_linear"))?,
            kv_linear: Linear::new(dim, 2 * dim, w.pp("kv_linear"))?,
            proj: Linear::new(dim, dim, w.pp("proj"))?,
            heads: config.num_heads,
        })
    }

    /// `text`: (text tokens, dim)
    fn keys_values(&self, text: &Tensor) -> Result<KeysValues> {
        let (kv, dim) = (self.kv_linear.forward(text)?, text.dim(1)?);
        let half = |first: usize| split_heads(&kv.narrow(1, first, dim)?, self.heads);
        Ok(KeysValues { k: half(0)?, v: half(dim)? })
    }

    /// (tokens, dim) -> (tokens, dim)
    fn to(&self, x: &Tensor, KeysValues { k, v }: &KeysValues) -> Result<Tensor> {
        let q = split_heads(&self.q_linear.forward(x)?, self.heads)?;
        let scale = 1.0 / (q.dim(2)? as f64).sqrt();
        self.proj.forward(&attention(&q, k, v, scale, None, self.proj.precision())?)
    }
}

struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(inputs: usize, hidden: usize, outputs: usize, w: Weights) -> Result<Self> {
        Ok(Mlp { fc1: Linear::new(inputs, hidden, w.pp("fc1"))?, fc2: Linear::new(hidden, outputs, w.pp("fc2"))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc1.forward_gelu_into(&self.fc2, x)
    }
}

struct FinalLayer {
    norm_final: LayerNorm,
    linear: Linear,
    modulation: Modulation, // shift, scale
}

impl FinalLayer {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let dim = config.hidden_size;
        let outputs = config.out_channels() * config.patch_size.iter().product::<usize>();
        Ok(FinalLayer {
            norm_final: LayerNorm::plain(dim, EPSILON, w.device())?,
            linear: Linear::new(dim, outputs, w.pp("linear"))?,
            modulation: Modulation::of_rows(2, dim, &w)?,
        })
    }

    fn forward(&self, state: &State) -> Result<Tensor> {
        let modulated = |x: &Tensor, time: &Time| {
            let rows = self.modulation.at(&time.embedding)?;
            self.norm_final.modulated(x, &rows.get(1)?, &rows.get(0)?)
        };
        let x = by_runs(&state.video, &state.runs, |x, token_time| {
            let as_noise = modulated(x, &state.time)?;
            // What is no noise goes through twice: the model was trained so.
            if token_time.noise { Ok(as_noise) } else { modulated(&as_noise, &token_time.time) }
        })?;
        self.linear.forward(&x)
    }
}
