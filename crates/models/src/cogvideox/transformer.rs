//! The expert transformer: one stream of text and video, whose norms have vectors for each of the two.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use navicache_kernels::{gated_residual, rotate_pairs, silu};

use super::TransformerConfig;
use super::places::{Added, rotations};
use crate::nn::{Grid, LayerNorm, Linear, attention, patchify, sinusoid, split_heads, unpatchify};
use crate::{Denoiser, Error, Features, Part, Result, Signal, Unit, Weights};

/// Epsilon of the norms of queries and keys, which no configuration names.
const HEAD_EPSILON: f64 = 1e-6;
/// The second number that version 1.5 of pictures is conditioned on; the pipeline knows no other.
const OFS: f64 = 2.0;
/// Width of the feed-forward networks over that of the stream.
const MLP_RATIO: usize = 4;

/// Predicts `v` of latents, given a timestep, a text and perhaps a picture.
pub struct Transformer {
    patch_proj: Linear,
    text_proj: Linear,
    added: Added,
    time_embedding: [Linear; 2],
    ofs_embedding: Option<[Linear; 2]>,
    transformer_blocks: Vec<Block>,
    norm_final: LayerNorm,
    norm_out: Modulated,
    proj_out: Linear,
    units: Vec<Unit>,
    config: TransformerConfig,
    device: Device,
}

/// What a prediction is conditioned on; no timestep changes it.
#[derive(Clone)]
pub struct Cond {
    text: Tensor, // (tokens, dim)
    /// The picture as latents of the first frame, zeros after it. // (1, channels, latent frames, height, width)
    picture: Option<Tensor>,
    /// Frames, rows and columns of tokens that stay, where others are left out.
    stay: Option<Arc<[Vec<usize>; 3]>>,
}

/// A forward pass under way.
pub struct State {
    video: Tensor,                       // (tokens, dim)
    text: Tensor,                        // (text tokens, dim)
    embedding: Tensor,                   // (1, time_embed_dim)
    time: Tensor,                        // the same through SiLU
    rotations: Option<(Tensor, Tensor)>, // (tokens, head dim / 2) each
    grid: Grid,
}

impl Transformer {
    /// Reads the weights of `CogVideoXTransformer3DModel`.
    pub fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (dim, time) = (config.dim(), config.time_embed_dim);
        let embed = w.pp("patch_embed");
        let volume: usize = config.patch().iter().product();
        let patch_proj = match config.patch_size_t {
            Some(_) => Linear::new(config.in_channels * volume, dim, embed.pp("proj"))?,
            None => {
                // A convolution whose stride is its kernel is a matrix product on patches.
                let shape = [dim, config.in_channels, config.patch_size, config.patch_size];
                let kernel = embed.pp("proj").f32("weight", &shape)?;
                Linear::from_tensors(kernel.flatten_from(1)?, embed.pp("proj").f32("bias", &[dim])?)?
            }
        };
        let embedder = |inputs: usize, outputs: usize, w: Weights| -> Result<[Linear; 2]> {
            Ok([Linear::new(inputs, outputs, w.pp("linear_1"))?, Linear::new(outputs, outputs, w.pp("linear_2"))?])
        };
        let parts = [Part::SelfAttn, Part::Mlp];
        let block = |i| Block::new(config, w.pp("transformer_blocks").pp(i));
        Ok(Transformer {
            patch_proj,
            text_proj: Linear::new(config.text_embed_dim, dim, embed.pp("text_proj"))?,
            added: Added::new(config, &embed)?,
            time_embedding: embedder(dim, time, w.pp("time_embedding"))?,
            ofs_embedding: config
                .ofs_embed_dim
                .map(|width| embedder(width, width, w.pp("ofs_embedding")))
                .transpose()?,
            transformer_blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            norm_final: LayerNorm::affine(dim, config.norm_eps, w.pp("norm_final"))?,
            norm_out: Modulated::new(config, 2, w.pp("norm_out"))?,
            proj_out: Linear::new(dim, config.out_channels * volume, w.pp("proj_out"))?,
            units: (0..config.num_layers).flat_map(|block| parts.map(|part| Unit { block, part })).collect(),
            config: config.clone(),
            device: w.device().clone(),
        })
    }

    /// Conditioning on an encoded text, (1, tokens, text_embed_dim), and on a picture, (1, channels, latent frames,
    /// height, width), in models that take one.
    pub fn cond(&self, text: &Tensor, picture: Option<&Tensor>) -> Result<Cond> {
        let (_, tokens, width) = text.dims3()?;
        let (longest, expected) = (self.config.max_text_seq_length, self.config.text_embed_dim);
        let is_any_length = matches!(self.added, Added::Nothing);
        if width != expected || tokens == 0 || !is_any_length && tokens != longest {
            return Err(Error::Input {
                what: "shape of the encoded text",
                expected: format!("{longest} tokens of width {expected} (transformer/config.json)"),
                found: format!("{tokens} tokens of width {width}"),
            });
        }
        if picture.is_some() != self.config.takes_picture() {
            let said = |takes: bool| if takes { "a picture" } else { "no picture" }.to_string();
            return Err(Error::Input {
                what: "conditions",
                expected: said(self.config.takes_picture()),
                found: said(picture.is_some()),
            });
        }
        Ok(Cond { text: self.text_proj.forward(&text.squeeze(0)?)?, picture: picture.cloned(), stay: None })
    }

    /// The embedding of what is not a token. // (1, time_embed_dim)
    fn embedding(&self, timestep: f64) -> Result<Tensor> {
        let embed = |[inward, outward]: &[Linear; 2], value: f64, width: usize| -> Result<Tensor> {
            outward.forward(&silu(&inward.forward(&sinusoid(value, width, &self.device)?)?)?)
        };
        let time = embed(&self.time_embedding, timestep, self.config.dim())?;
        match (&self.ofs_embedding, self.config.ofs_embed_dim) {
            (Some(layers), Some(width)) => Ok((time + embed(layers, OFS, width)?)?),
            _ => Ok(time),
        }
    }
}

impl Denoiser for Transformer {
    type Cond = Cond;
    type State = State;

    fn units(&self) -> &[Unit] {
        &self.units
    }

    fn patch(&self) -> [usize; 3] {
        self.config.patch()
    }

    fn width(&self) -> usize {
        self.config.dim()
    }

    fn begin(&self, latents: &Tensor, timestep: f64, cond: &Cond) -> Result<State> {
        let latents = match &cond.picture {
            Some(picture) => Tensor::cat(&[latents, picture], 1)?,
            None => latents.clone(),
        };
        let patch = self.config.patch();
        let grid = Grid::of(&latents, self.config.in_channels, patch)?;
        let mut video = self.patch_proj.forward(&patchify(&latents, patch, grid)?)?;
        let mut text = cond.text.clone();
        if let Some((of_video, of_text)) = self.added.of(&self.config, grid, cond.stay.as_deref(), &self.device)? {
            video = (video + of_video)?;
            if let Some(of_text) = of_text {
                text = (text + of_text)?;
            }
        }
        let embedding = self.embedding(timestep)?;
        let turns = self.config.use_rotary_positional_embeddings;
        Ok(State {
            video,
            text,
            time: silu(&embedding)?,
            embedding,
            rotations: turns.then(|| rotations(&self.config, grid, &self.device)).transpose()?,
            grid,
        })
    }

    fn run_unit(&self, unit: usize, state: &mut State) -> Result<()> {
        let Unit { block, part } = self.units[unit];
        let block = &self.transformer_blocks[block];
        match part {
            Part::SelfAttn => block.attend(state),
            _ => block.feed_forward(state),
        }
    }

    fn finish(&self, state: State) -> Result<Tensor> {
        let x = self.norm_final.forward(&state.video)?;
        let rows = self.norm_out.rows(&state.time)?; // shift, scale
        let x = self.proj_out.forward(&self.norm_out.apply(&x, &rows.get(0)?, &rows.get(1)?)?)?;
        // Channels come before the places of a patch.
        let (tokens, volume) = (x.dim(0)?, self.config.patch().iter().product::<usize>());
        let channels = self.config.out_channels;
        let x = x.reshape((tokens, channels, volume))?.transpose(1, 2)?.reshape((tokens, volume * channels))?;
        unpatchify(&x, channels, self.config.patch(), state.grid)
    }

    fn thinned(&self, cond: &Cond, stay: &[Tensor; 3]) -> Result<Cond> {
        let mut picture = cond.picture.clone();
        if let Some(whole) = &picture {
            picture = Some(whole.index_select(&stay[0], 2)?.index_select(&stay[1], 3)?.index_select(&stay[2], 4)?);
        }
        // A token's place is that of its first latent.
        let places = |axis: usize| -> Result<Vec<usize>> {
            let patch = self.config.patch()[axis];
            let stay = stay[axis].to_vec1::<u32>()?;
            Ok(stay.into_iter().step_by(patch).map(|latent| latent as usize / patch).collect())
        };
        Ok(Cond { text: cond.text.clone(), picture, stay: Some(Arc::new([places(0)?, places(1)?, places(2)?])) })
    }

    fn signal(&self, signal: Signal, state: &State) -> Result<Tensor> {
        match (signal, self.transformer_blocks.first()) {
            (Signal::TimeEmbedding, _) => Ok(state.embedding.clone()),
            (Signal::TimeProjection, Some(block)) => block.norm1.rows(&state.time),
            (Signal::ModulatedInput, Some(block)) => {
                let rows = block.norm1.rows(&state.time)?;
                block.norm1.apply(&state.video, &rows.get(0)?, &rows.get(1)?)
            }
            (_, None) => Ok(state.video.clone()),
        }
    }

    fn features(&self, state: &State) -> Features {
        Features { video: state.video.clone(), text: Some(state.text.clone()) }
    }

    fn set_features(&self, state: &mut State, to: Features) {
        state.video = to.video;
        if let Some(text) = to.text {
            state.text = text;
        }
    }
}

/// A layer norm with a scale and a shift of its own, and others that the timestep gives.
struct Modulated {
    /// One for all vectors; or one for those of the video and one for those of the text, as in the authors' files.
    linears: Vec<Linear>,
    weight: Tensor, // (dim)
    bias: Tensor,   // (dim)
    plain: LayerNorm,
    vectors: usize,
}

impl Modulated {
    fn new(config: &TransformerConfig, vectors: usize, w: Weights) -> Result<Self> {
        let dim = config.dim();
        let apart = ["linear_of_video", "linear_of_text"];
        let names = if w.contains("linear_of_video.weight") { &apart[..] } else { &["linear"] };
        let rows = vectors / names.len() * dim;
        let linear = |name: &&str| Linear::new(config.time_embed_dim, rows, w.pp(name));
        Ok(Modulated {
            linears: names.iter().map(linear).collect::<Result<_>>()?,
            weight: w.pp("norm").f32("weight", &[dim])?,
            bias: w.pp("norm").f32("bias", &[dim])?,
            plain: LayerNorm::plain(dim, config.norm_eps, w.device())?,
            vectors,
        })
    }

    /// The vectors of a timestep. // (vectors, dim)
    fn rows(&self, time: &Tensor) -> Result<Tensor> {
        let rows = self.linears.iter().map(|linear| linear.forward(time)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&rows, 1)?.reshape((self.vectors, ()))?)
    }

    /// Its own norm, then `(1 + scale) x + shift`, in one pass. // (n, dim) -> (n, dim)
    fn apply(&self, x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let factor = (scale + 1.0)?;
        let (scale, shift) = (((&self.weight * &factor)? - 1.0)?, ((&self.bias * factor)? + shift)?);
        self.plain.modulated(x, &scale, &shift)
    }

    /// Of text and video, each with vectors of its own, one after the other; and the gates of both.
    fn both(&self, state: &State) -> Result<(Tensor, Tensor, Tensor)> {
        let rows = self.rows(&state.time)?; // shift, scale, gate of the video, then of the text
        let video = self.apply(&state.video, &rows.get(0)?, &rows.get(1)?)?;
        let text = self.apply(&state.text, &rows.get(3)?, &rows.get(4)?)?;
        Ok((Tensor::cat(&[text, video], 0)?, rows.get(2)?, rows.get(5)?))
    }
}

struct Block {
    norm1: Modulated,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    norm_q: LayerNorm,
    norm_k: LayerNorm,
    to_out: Linear,
    norm2: Modulated,
    ff: [Linear; 2],
    heads: usize,
}

impl Block {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let (dim, head) = (config.dim(), config.attention_head_dim);
        let (attn, net) = (w.pp("attn1"), w.pp("ff").pp("net"));
        Ok(Block {
            norm1: Modulated::new(config, 6, w.pp("norm1"))?,
            to_q: Linear::new(dim, dim, attn.pp("to_q"))?,
            to_k: Linear::new(dim, dim, attn.pp("to_k"))?,
            to_v: Linear::new(dim, dim, attn.pp("to_v"))?,
            norm_q: LayerNorm::affine(head, HEAD_EPSILON, attn.pp("norm_q"))?,
            norm_k: LayerNorm::affine(head, HEAD_EPSILON, attn.pp("norm_k"))?,
            to_out: Linear::new(dim, dim, attn.pp("to_out").pp(0))?,
            norm2: Modulated::new(config, 6, w.pp("norm2"))?,
            ff: [
                Linear::new(dim, MLP_RATIO * dim, net.pp(0).pp("proj"))?,
                Linear::new(MLP_RATIO * dim, dim, net.pp(2))?,
            ],
            heads: config.num_attention_heads,
        })
    }

    /// Attention among all tokens of text and video; only the video's have a place.
    fn attend(&self, state: &mut State) -> Result<()> {
        let (x, gate, text_gate) = self.norm1.both(state)?;
        let texts = state.text.dim(0)?;
        let head = |linear: &Linear| split_heads(&linear.forward(&x)?, self.heads); // (heads, all tokens, head dim)
        let turned = |x: Tensor| -> Result<Tensor> {
            let Some((cos, sin)) = &state.rotations else { return Ok(x) };
            let video = x.narrow(1, texts, x.dim(1)? - texts)?;
            Ok(Tensor::cat(&[&x.narrow(1, 0, texts)?, &rotate_pairs(&video, cos, sin)?], 1)?)
        };
        let q = turned(self.norm_q.forward(&head(&self.to_q)?)?)?;
        let k = turned(self.norm_k.forward(&head(&self.to_k)?)?)?;
        let v = head(&self.to_v)?;
        let scale = 1.0 / (q.dim(2)? as f64).sqrt();
        let mixed = attention(&q, &k, &v, scale, None, self.to_out.precision())?; // (all tokens, dim)
        add(state, &self.to_out.forward(&mixed)?, &gate, &text_gate)
    }

    fn feed_forward(&self, state: &mut State) -> Result<()> {
        let (x, gate, text_gate) = self.norm2.both(state)?;
        add(state, &self.ff[0].forward_gelu_into(&self.ff[1], &x)?, &gate, &text_gate)
    }
}

/// Adds what text and video change by, each with a gate of its own. // (text tokens + tokens, dim)
fn add(state: &mut State, change: &Tensor, gate: &Tensor, text_gate: &Tensor) -> Result<()> {
    let texts = state.text.dim(0)?;
    state.text = gated_residual(&state.text, &change.narrow(0, 0, texts)?, text_gate)?;
    state.video = gated_residual(&state.video, &change.narrow(0, texts, change.dim(0)? - texts)?, gate)?;
    Ok(())
}
