//! The seam between a transformer and whoever decides which parts of it run.

use candle_core::Tensor;

use crate::Result;

/// Which part of a block a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The whole block: its parts share a projection and cannot be separated.
    Whole,
    /// Attention among the video's tokens.
    SelfAttn,
    /// Attention within each frame, in models that have it apart from that across frames.
    SpatialAttn,
    /// Attention across frames, of every place by itself.
    TemporalAttn,
    /// Attention to the text.
    CrossAttn,
    /// The feed-forward network.
    Mlp,
}

/// The smallest piece of a transformer that may be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Index of the block, from 0.
    pub block: usize,
    /// Which part of it.
    pub part: Part,
}

/// What flows between two units.
#[derive(Debug, Clone)]
pub struct Features {
    /// Video tokens. // (tokens, dim)
    pub video: Tensor,
    /// Text tokens, where the model updates them too. // (text tokens, dim)
    pub text: Option<Tensor>,
}

/// What is known of a pass before its blocks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// The timestep's embedding. // (1, dim)
    TimeEmbedding,
    /// Its projection to the modulation of the blocks. // (rows, dim)
    TimeProjection,
    /// The first block's input, normalised and modulated. // (tokens, dim)
    ModulatedInput,
}

/// Which tensors step-level cache policies observe: latents and velocity, or tokens before and after the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// The latents that go in and the velocity that comes out, of the conditional branch.
    Latents,
    /// The tokens after the embedder and those after the last block, of all branches together. The output head runs at
    /// every step.
    Tokens,
}

/// A transformer that predicts the velocity of latents and can be run piece by piece.
///
/// `forward` equals `begin`, every unit in order, `finish`, bit for bit.
pub trait Denoiser: Sync {
    /// What the prediction is conditioned on, prepared once per generation and branch.
    type Cond: Sync;
    /// A forward pass under way.
    type State: Send + 'static;

    /// The units, in the order they run.
    fn units(&self) -> &[Unit];

    /// Latent frames, rows and columns that make one token.
    fn patch(&self) -> [usize; 3];

    /// Numbers of one token's features.
    fn width(&self) -> usize;

    /// Which tensors step-level cache policies observe, as the methods' authors chose for the model.
    fn observed(&self) -> Observed {
        Observed::Latents
    }

    /// Embeds latents and timestep; nothing of the blocks has run yet.
    ///
    /// * `latents` - (1, channels, latent frames, height, width), f32
    /// * `timestep` - the noise level as the model is conditioned on it, 0 to 1000
    fn begin(&self, latents: &Tensor, timestep: f64, cond: &Self::Cond) -> Result<Self::State>;

    /// Runs one unit.
    fn run_unit(&self, unit: usize, state: &mut Self::State) -> Result<()>;

    /// Output head: the predicted velocity, of the latents' shape, f32.
    fn finish(&self, state: Self::State) -> Result<Tensor>;

    /// The same conditioning for latents of which some frames, rows and columns are left out: the indices that stay, as
    /// u32.
    fn thinned(&self, cond: &Self::Cond, stay: &[Tensor; 3]) -> Result<Self::Cond>;

    /// What is known before the first unit runs.
    fn signal(&self, signal: Signal, state: &Self::State) -> Result<Tensor>;

    /// The features as they stand. Shares storage; nothing is copied.
    fn features(&self, state: &Self::State) -> Features;

    /// Puts other features in their place.
    fn set_features(&self, state: &mut Self::State, to: Features);

    /// The whole pass.
    fn forward(&self, latents: &Tensor, timestep: f64, cond: &Self::Cond) -> Result<Tensor> {
        let mut state = self.begin(latents, timestep, cond)?;
        for unit in 0..self.units().len() {
            self.run_unit(unit, &mut state)?;
        }
        self.finish(state)
    }
}
