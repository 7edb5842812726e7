//! Convolutions of a video autoencoder: over frames, and over frames and time with memory of the frames before.
//!
//! What a convolution over time keeps of a clip is the last frames that it was given, as many as the next outputs look
//! back at, so that a clip can be decoded chunk by chunk with the result of the whole.

use candle_core::Tensor;
use navicache_kernels::{Convolution, Precision};
pub use navicache_kernels::{Edge, Resize};

use crate::{Result, Weights};

/// What a convolution multiplies: f32 where there are few channels on either side, whatever the others do. Those are
/// the first and the last layer of a network: little of its time, and what is rounded in the last is seen as it is.
fn precision(inputs: usize, outputs: usize, w: &Weights) -> Precision {
    const FEW: usize = 16;
    if inputs.min(outputs) <= FEW { Precision::F32 } else { w.precision() }
}

/// A square kernel over single frames, padded with zeros.
#[derive(Debug, Clone)]
pub struct Conv2d(Convolution);

impl Conv2d {
    /// Keeps the frame's size. Reads `weight` (out, in, size, size) and `bias` (out); `size` is odd.
    pub fn new(inputs: usize, outputs: usize, size: usize, w: Weights) -> Result<Self> {
        Self::resizing(inputs, outputs, size, Resize::Same, w)
    }

    /// The same for frames that are made larger before, or smaller after.
    pub fn resizing(inputs: usize, outputs: usize, size: usize, resize: Resize, w: Weights) -> Result<Self> {
        let weight = w.f32("weight", &[outputs, inputs, size, size])?.unsqueeze(2)?;
        let bias = w.f32("bias", &[outputs])?;
        let precision = precision(inputs, outputs, &w);
        Ok(Conv2d(Convolution::new(&weight, Some(&bias), Edge::Zeros, resize, precision)?))
    }

    /// (frames, in, h, w) -> (frames, out, its h, its w)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.0.forward(x, None, None)?)
    }

    /// The same added to `residual`, of the result's shape.
    pub fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(self.0.forward(x, None, Some(residual))?)
    }
}

/// A kernel over frames and time that sees no later frame.
#[derive(Debug, Clone)]
pub struct CausalConv3d {
    conv: Convolution,
    time: usize,
}

/// The last frames of a clip so far, at most one less than there are taps. // (n, in, h, w)
#[derive(Debug, Clone, Default)]
pub struct ConvState(Option<Tensor>);

impl CausalConv3d {
    /// Reads `weight` (out, in, time, size, size) and `bias` (out); `size` is odd. Zeros are beyond the edges.
    pub fn new(inputs: usize, outputs: usize, time: usize, size: usize, w: Weights) -> Result<Self> {
        Self::with_edge([inputs, outputs, time, size], Edge::Zeros, Resize::Same, w)
    }

    /// The same with another edge, for frames that may be made larger before.
    pub fn with_edge(shape: [usize; 4], edge: Edge, resize: Resize, w: Weights) -> Result<Self> {
        let bias = w.f32("bias", &[shape[1]])?;
        Self::of(shape, Some(&bias), edge, resize, w)
    }

    /// The same without a bias, zeros beyond the edges.
    pub fn without_bias(inputs: usize, outputs: usize, time: usize, size: usize, w: Weights) -> Result<Self> {
        Self::of([inputs, outputs, time, size], None, Edge::Zeros, Resize::Same, w)
    }

    fn of(shape: [usize; 4], bias: Option<&Tensor>, edge: Edge, resize: Resize, w: Weights) -> Result<Self> {
        let [inputs, outputs, time, size] = shape;
        let weight = w.f32("weight", &[outputs, inputs, time, size, size])?;
        let conv = Convolution::new(&weight, bias, edge, resize, precision(inputs, outputs, &w))?;
        Ok(CausalConv3d { conv, time })
    }

    /// The next frames of a clip: (frames, in, h, w) -> (frames, out, its h, its w). An empty state stands for the
    /// beginning of the clip.
    pub fn forward(&self, x: &Tensor, state: &mut ConvState) -> Result<Tensor> {
        let y = self.conv.forward(x, state.0.as_ref(), None)?;
        state.push(x, self.time - 1)?;
        Ok(y)
    }

    /// The same for clips before which the first frame stands as often as the kernel looks back.
    pub fn forward_repeating(&self, x: &Tensor, state: &mut ConvState) -> Result<Tensor> {
        let before = self.time - 1;
        if state.0.is_none() && before > 0 {
            let first = x.narrow(0, 0, 1)?;
            state.0 = Some(Tensor::cat(&vec![&first; before], 0)?);
        }
        self.forward(x, state)
    }

    /// The same added to `residual`, of the result's shape.
    pub fn forward_onto(&self, residual: &Tensor, x: &Tensor, state: &mut ConvState) -> Result<Tensor> {
        let y = self.conv.forward(x, state.0.as_ref(), Some(residual))?;
        state.push(x, self.time - 1)?;
        Ok(y)
    }

    /// A whole clip: (frames, in, h, w) -> (frames, out, its h, its w).
    pub fn clip(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.conv.forward(x, None, None)?)
    }

    /// The same added to `residual`, of the result's shape.
    pub fn clip_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(self.conv.forward(x, None, Some(residual))?)
    }
}

impl ConvState {
    /// Keeps the last `count` frames, in memory of their own: what they came with goes.
    fn push(&mut self, x: &Tensor, count: usize) -> Result<()> {
        let frames = x.dim(0)?;
        if count == 0 || frames == 0 {
            return Ok(());
        }
        self.0 = Some(match self.0.take() {
            _ if frames == count => x.contiguous()?,
            _ if frames > count => x.narrow(0, frames - count, count)?.force_contiguous()?,
            None => x.contiguous()?,
            Some(before) => {
                let kept = before.dim(0)?.min(count - frames);
                Tensor::cat(&[&before.narrow(0, before.dim(0)? - kept, kept)?, x], 0)?
            }
        });
        Ok(())
    }
}
