//! The HunyuanVideo transformer: blocks with a stream each for video and text, then blocks with one stream for both.

use std::sync::Arc;

use candle_core::Tensor;
use navicache_kernels::{gated_residual, rotate_pairs, silu};

use super::TransformerConfig;
use super::refiner::{EPSILON, TimeTextEmbedding, TokenRefiner, plain_norm};
use crate::nn::{Grid, LayerNorm, Linear, RmsNorm, Rope3d, attention, patchify, split_heads, unpatchify};
use crate::{Denoiser, Error, Features, Part, Precision, Result, Signal, Unit, Weights};

/// Positions that the rotary embedding's tables have for each axis.
const POSITIONS: usize = 1024;
/// What a guidance scale is multiplied by before the model is conditioned on it.
const GUIDANCE_SCALE: f64 = 1000.0;

/// Predicts the velocity of latents, given a timestep, a text and a guidance scale.
pub struct Transformer {
    x_embedder: Linear,
    context_embedder: TokenRefiner,
    time_text_embed: TimeTextEmbedding,
    transformer_blocks: Vec<DoubleBlock>,
    single_transformer_blocks: Vec<SingleBlock>,
    norm_out: (LayerNorm, Head),
    proj_out: Linear,
    rope: Rope3d,
    units: Vec<Unit>,
    config: TransformerConfig,
}

/// What a prediction is conditioned on; no timestep changes it.
#[derive(Clone)]
pub struct Cond(Arc<Conditioning>);

struct Conditioning {
    text: Tensor,   // (tokens, text_embed_dim)
    pooled: Tensor, // (1, pooled_projection_dim)
    guidance: f64,
}

/// A forward pass under way.
pub struct State {
    video: Tensor,               // (tokens, dim)
    text: Tensor,                // (text tokens, dim)
    time: Tensor,                // (1, dim), through SiLU already
    embedding: Tensor,           // (1, dim), before it
    rotations: (Tensor, Tensor), // (tokens, head dim / 2) each
    grid: Grid,
}

impl Transformer {
    /// Reads the weights of `HunyuanVideoTransformer3DModel`.
    pub fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (dim, patch) = (config.dim(), config.patch());
        let volume = patch.iter().product::<usize>();
        let double = |i| DoubleBlock::new(config, w.pp("transformer_blocks").pp(i));
        let single = |i| SingleBlock::new(config, w.pp("single_transformer_blocks").pp(i));
        let (doubles, singles) = (config.num_layers, config.num_single_layers);
        let parts = [Part::SelfAttn, Part::Mlp];
        let units = (0..doubles).flat_map(|block| parts.map(|part| Unit { block, part }));
        let units = units.chain((doubles..doubles + singles).map(|block| Unit { block, part: Part::Whole }));
        let proj = w.pp("x_embedder").pp("proj");
        let kernel = proj.f32("weight", &[dim, config.in_channels, patch[0], patch[1], patch[2]])?;
        Ok(Transformer {
            // A convolution whose stride is its kernel is a matrix product on patches.
            x_embedder: Linear::from_tensors(kernel.flatten_from(1)?, proj.f32("bias", &[dim])?)?,
            context_embedder: TokenRefiner::new(config, w.pp("context_embedder"))?,
            time_text_embed: TimeTextEmbedding::new(
                config.pooled_projection_dim,
                dim,
                config.guidance_embeds,
                w.pp("time_text_embed"),
            )?,
            transformer_blocks: (0..doubles).map(double).collect::<Result<_>>()?,
            single_transformer_blocks: (0..singles).map(single).collect::<Result<_>>()?,
            norm_out: (plain_norm(dim, w.device())?, Head::new(dim, &w)?),
            proj_out: Linear::new(dim, config.out_channels * volume, w.pp("proj_out"))?,
            rope: Rope3d::new(config.rope_axes_dim, config.rope_theta, POSITIONS, w.device())?,
            units: units.collect(),
            config: config.clone(),
        })
    }

    /// Conditioning on a text: `text`, (1, tokens, text_embed_dim), without padding; `pooled`, (1,
    /// pooled_projection_dim). `guidance` is told to models that were distilled to know it, and has no meaning for
    /// others.
    pub fn cond(&self, text: &Tensor, pooled: &Tensor, guidance: f64) -> Result<Cond> {
        let widths = (text.dim(2)?, pooled.dim(1)?);
        let expected = (self.config.text_embed_dim, self.config.pooled_projection_dim);
        if widths != expected {
            return Err(Error::Input {
                what: "widths of the encoded text",
                expected: format!("{expected:?} (text_embed_dim, pooled_projection_dim of transformer/config.json)"),
                found: format!("{widths:?}"),
            });
        }
        Ok(Cond(Arc::new(Conditioning { text: text.squeeze(0)?, pooled: pooled.clone(), guidance })))
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
        let grid = Grid::of(latents, self.config.in_channels, self.config.patch())?;
        let Conditioning { text, pooled, guidance } = &*cond.0;
        let embedding = self.time_text_embed.forward(timestep, pooled, guidance * GUIDANCE_SCALE)?;
        Ok(State {
            video: self.x_embedder.forward(&patchify(latents, self.config.patch(), grid)?)?,
            text: self.context_embedder.forward(text, timestep)?,
            time: silu(&embedding)?,
            embedding,
            rotations: self.rope.at(grid)?,
            grid,
        })
    }

    fn run_unit(&self, unit: usize, state: &mut State) -> Result<()> {
        let Unit { block, part } = self.units[unit];
        let doubles = self.transformer_blocks.len();
        match (self.transformer_blocks.get(block), part) {
            (Some(block), Part::SelfAttn) => block.attend(state),
            (Some(block), _) => block.feed_forward(state),
            (None, _) => self.single_transformer_blocks[block - doubles].run(state),
        }
    }

    fn finish(&self, state: State) -> Result<Tensor> {
        let (norm, head) = &self.norm_out;
        let (scale, shift) = head.scale_shift(&state.time)?;
        let x = norm.modulated(&state.video, &scale, &shift)?;
        let x = self.proj_out.forward(&x)?; // (tokens, c * pf * ph * pw): channels before the places of a patch
        let (tokens, volume) = (x.dim(0)?, self.config.patch().iter().product::<usize>());
        let channels = self.config.out_channels;
        let x = x.reshape((tokens, channels, volume))?.transpose(1, 2)?.reshape((tokens, volume * channels))?;
        unpatchify(&x, channels, self.config.patch(), state.grid)
    }

    /// Nothing of the conditioning has the latents' shape.
    fn thinned(&self, cond: &Cond, _stay: &[Tensor; 3]) -> Result<Cond> {
        Ok(cond.clone())
    }

    fn signal(&self, signal: Signal, state: &State) -> Result<Tensor> {
        match (signal, self.transformer_blocks.first()) {
            (Signal::TimeEmbedding, _) => Ok(state.embedding.clone()),
            (Signal::TimeProjection, Some(block)) => block.video.modulation(&state.time),
            (Signal::ModulatedInput, Some(block)) => {
                let rows = block.video.modulation(&state.time)?;
                block.video.norm.modulated(&state.video, &rows.get(1)?, &rows.get(0)?)
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

/// The vectors of the last norm. The authors' files have them in another order than Diffusers', and under another name.
enum Head {
    ScaleShift(Linear),
    ShiftScale(Linear),
}

impl Head {
    fn new(dim: usize, w: &Weights) -> Result<Self> {
        let authors = w.pp("final_layer").pp("adaLN_modulation").pp(1);
        if authors.contains("weight") {
            return Ok(Head::ShiftScale(Linear::new(dim, 2 * dim, authors)?));
        }
        Ok(Head::ScaleShift(Linear::new(dim, 2 * dim, w.pp("norm_out").pp("linear"))?))
    }

    /// (dim) each
    fn scale_shift(&self, time: &Tensor) -> Result<(Tensor, Tensor)> {
        let rows = |linear: &Linear| -> Result<(Tensor, Tensor)> {
            let rows = linear.forward(time)?.reshape((2, ()))?;
            Ok((rows.get(0)?, rows.get(1)?))
        };
        match self {
            Head::ScaleShift(linear) => rows(linear),
            Head::ShiftScale(linear) => rows(linear).map(|(shift, scale)| (scale, shift)),
        }
    }
}

/// A block with a stream each for video and text, which meet in its attention.
struct DoubleBlock {
    video: Stream,
    text: Stream,
}

/// One of the two streams of a block.
struct Stream {
    modulation: Linear,
    norm: LayerNorm,
    heads: Heads,
    to_out: Linear,
    ff: [Linear; 2],
}

impl Stream {
    /// Vectors of the attention's and the feed-forward's shift, scale and gate, for a timestep. // (6, dim)
    fn modulation(&self, time: &Tensor) -> Result<Tensor> {
        Ok(self.modulation.forward(time)?.reshape((6, ()))?)
    }

    /// What the attention sees of it. // (heads, tokens, head dim) each
    fn queries_keys_values(&self, x: &Tensor, rows: &Tensor) -> Result<[Tensor; 3]> {
        self.heads.of(&self.norm.modulated(x, &rows.get(1)?, &rows.get(0)?)?)
    }

    fn feed_forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let rows = self.modulation(time)?;
        let h = self.norm.modulated(x, &rows.get(4)?, &rows.get(3)?)?;
        let h = self.ff[0].forward_gelu_into(&self.ff[1], &h)?;
        Ok(gated_residual(x, &h, &rows.get(5)?)?)
    }
}

/// Projections to queries, keys and values, with norms of each head.
struct Heads {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    heads: usize,
}

impl Heads {
    fn new(config: &TransformerConfig, names: [&str; 5], w: &Weights) -> Result<Self> {
        let (dim, width) = (config.dim(), config.attention_head_dim);
        let [q, k, v, norm_q, norm_k] = names;
        Ok(Heads {
            to_q: Linear::new(dim, dim, w.pp(q))?,
            to_k: Linear::new(dim, dim, w.pp(k))?,
            to_v: Linear::new(dim, dim, w.pp(v))?,
            norm_q: RmsNorm::new(width, EPSILON, w.pp(norm_q))?,
            norm_k: RmsNorm::new(width, EPSILON, w.pp(norm_k))?,
            heads: config.num_attention_heads,
        })
    }

    /// (tokens, dim) -> (heads, tokens, head dim) each
    fn of(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let q = self.norm_q.forward(&split_heads(&self.to_q.forward(x)?, self.heads)?)?;
        let k = self.norm_k.forward(&split_heads(&self.to_k.forward(x)?, self.heads)?)?;
        Ok([q, k, split_heads(&self.to_v.forward(x)?, self.heads)?])
    }
}

impl DoubleBlock {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let (dim, mlp) = (config.dim(), config.mlp_dim());
        let attn = w.pp("attn");
        let stream = |norm: &str, names: [&str; 5], out: Weights, ff: &str| -> Result<Stream> {
            let net = w.pp(ff).pp("net");
            Ok(Stream {
                modulation: Linear::new(dim, 6 * dim, w.pp(norm).pp("linear"))?,
                norm: plain_norm(dim, w.device())?,
                heads: Heads::new(config, names, &attn)?,
                to_out: Linear::new(dim, dim, out)?,
                ff: [Linear::new(dim, mlp, net.pp(0).pp("proj"))?, Linear::new(mlp, dim, net.pp(2))?],
            })
        };
        let video = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
        let text = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];
        Ok(DoubleBlock {
            video: stream("norm1", video, attn.pp("to_out").pp(0), "ff")?,
            text: stream("norm1_context", text, attn.pp("to_add_out"), "ff_context")?,
        })
    }

    fn attend(&self, state: &mut State) -> Result<()> {
        let (video, text) = (self.video.modulation(&state.time)?, self.text.modulation(&state.time)?);
        let of_video = self.video.queries_keys_values(&state.video, &video)?;
        let of_text = self.text.queries_keys_values(&state.text, &text)?;
        let [mixed_video, mixed_text] =
            joint_attention(of_video, of_text, &state.rotations, self.video.to_out.precision())?;
        let add = |x: &Tensor, stream: &Stream, mixed: Tensor, rows: &Tensor| -> Result<Tensor> {
            Ok(gated_residual(x, &stream.to_out.forward(&mixed)?, &rows.get(2)?)?)
        };
        state.video = add(&state.video, &self.video, mixed_video, &video)?;
        state.text = add(&state.text, &self.text, mixed_text, &text)?;
        Ok(())
    }

    fn feed_forward(&self, state: &mut State) -> Result<()> {
        state.video = self.video.feed_forward(&state.video, &state.time)?;
        state.text = self.text.feed_forward(&state.text, &state.time)?;
        Ok(())
    }
}

/// A block with one stream for video and text; attention and feed-forward share their projections.
struct SingleBlock {
    modulation: Linear,
    norm: LayerNorm,
    heads: Heads,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    fn new(config: &TransformerConfig, w: Weights) -> Result<Self> {
        let (dim, mlp) = (config.dim(), config.mlp_dim());
        Ok(SingleBlock {
            modulation: Linear::new(dim, 3 * dim, w.pp("norm").pp("linear"))?,
            norm: plain_norm(dim, w.device())?,
            heads: Heads::new(config, ["to_q", "to_k", "to_v", "norm_q", "norm_k"], &w.pp("attn"))?,
            proj_mlp: Linear::new(dim, mlp, w.pp("proj_mlp"))?,
            proj_out: Linear::new(dim + mlp, dim, w.pp("proj_out"))?,
        })
    }

    fn run(&self, state: &mut State) -> Result<()> {
        let tokens = state.video.dim(0)?;
        let both = Tensor::cat(&[&state.video, &state.text], 0)?; // (all tokens, dim)
        let rows = self.modulation.forward(&state.time)?.reshape((3, ()))?; // shift, scale, gate
        let h = self.norm.modulated(&both, &rows.get(1)?, &rows.get(0)?)?;
        let [q, k, v] = self.heads.of(&h)?;
        let part = |x: &Tensor, first: usize, count: usize| x.narrow(1, first, count);
        let text = both.dim(0)? - tokens;
        let of_video = [part(&q, 0, tokens)?, part(&k, 0, tokens)?, part(&v, 0, tokens)?];
        let of_text = [part(&q, tokens, text)?, part(&k, tokens, text)?, part(&v, tokens, text)?];
        let mixed = joint_attention(of_video, of_text, &state.rotations, self.proj_out.precision())?;
        let mixed = Tensor::cat(&[&Tensor::cat(&mixed, 0)?, &self.proj_mlp.forward_gelu(&h)?], 1)?;
        let both = gated_residual(&both, &self.proj_out.forward(&mixed)?, &rows.get(2)?)?;
        state.video = both.narrow(0, 0, tokens)?;
        state.text = both.narrow(0, tokens, text)?;
        Ok(())
    }
}

/// Attention among all tokens of video and text; only the video's have a place. Takes queries, keys and values of each,
/// gives what they become. // (heads, tokens, head dim) -> (tokens, dim)
fn joint_attention(
    video: [Tensor; 3],
    text: [Tensor; 3],
    (cos, sin): &(Tensor, Tensor),
    precision: Precision,
) -> Result<[Tensor; 2]> {
    let rotate = |x: &Tensor| rotate_pairs(x, cos, sin); // (heads, tokens, head dim)
    let [q, k, v] = video;
    let tokens = q.dim(1)?;
    let both = |video: &Tensor, text: &Tensor| Tensor::cat(&[video, text], 1);
    let (q, k, v) = (both(&rotate(&q)?, &text[0])?, both(&rotate(&k)?, &text[1])?, both(&v, &text[2])?);
    let mixed = attention(&q, &k, &v, 1.0 / (q.dim(2)? as f64).sqrt(), None, precision)?; // (all tokens, dim)
    Ok([mixed.narrow(0, 0, tokens)?, mixed.narrow(0, tokens, mixed.dim(0)? - tokens)?])
}
