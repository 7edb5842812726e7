//! Convolutions of a video autoencoder: over frames, and over frames and time with memory of the frames before.
//!
//! Both unfold a frame into columns (9 shifted copies for a 3x3 kernel) and multiply once by the kernel as a matrix, in bands of
//! rows so that the columns stay small. In time the kernel's taps are stacked: one product gives what a frame owes to its own
//! output and to the outputs of the frames after it. What is owed to later frames is kept as state, so that a clip can be decoded
//! frame by frame with the result of the whole.

use candle_core::Tensor;

use crate::{Result, Weights};

/// Bytes of columns that are unfolded at a time.
const COLUMNS_BYTES: usize = 32 << 20;

/// A square kernel over single frames, odd in size, padded with zeros to keep the frame's size.
#[derive(Debug, Clone)]
pub struct Conv2d {
    kernel: Kernel,
    bias: Tensor, // (out, 1, 1)
}

impl Conv2d {
    /// Reads `weight` (out, in, size, size) and `bias` (out).
    pub fn new(inputs: usize, outputs: usize, size: usize, w: Weights) -> Result<Self> {
        let weight = w.f32("weight", &[outputs, inputs, size, size])?;
        let kernel = Kernel::new(&weight.unsqueeze(2)?, Edge::Zeros)?;
        Ok(Conv2d { kernel, bias: bias(outputs, &w)? })
    }

    /// (frames, in, h, w) -> (frames, out, h, w)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let frames = frames(x)?.iter().map(|frame| self.kernel.forward(frame)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&frames, 0)?.squeeze(1)?.broadcast_add(&self.bias)?)
    }
}

/// What a kernel sees beyond the edge of a frame, and before the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// Nothing.
    Zeros,
    /// The nearest pixel, and the first frame.
    Repeated,
}

/// A kernel over frames and time that sees no later frame.
#[derive(Debug, Clone)]
pub struct CausalConv3d {
    kernel: Kernel,
    bias: Option<Tensor>, // (out, 1, 1)
}

/// What the frames so far owe to the outputs of the next ones, nearest first. // (out, h, w) each
#[derive(Debug, Clone, Default)]
pub struct ConvState(Vec<Tensor>);

impl CausalConv3d {
    /// Reads `weight` (out, in, time, size, size) and `bias` (out). Zeros are beyond the edges.
    pub fn new(inputs: usize, outputs: usize, time: usize, size: usize, w: Weights) -> Result<Self> {
        Self::with_edge(inputs, outputs, time, size, Edge::Zeros, w)
    }

    /// The same with another edge.
    pub fn with_edge(inputs: usize, outputs: usize, time: usize, size: usize, edge: Edge, w: Weights) -> Result<Self> {
        let bias = Some(bias(outputs, &w)?);
        Ok(CausalConv3d { bias, ..Self::of([outputs, inputs, time, size, size], edge, w)? })
    }

    /// The same without a bias, zeros beyond the edges.
    pub fn without_bias(inputs: usize, outputs: usize, time: usize, size: usize, w: Weights) -> Result<Self> {
        Self::of([outputs, inputs, time, size, size], Edge::Zeros, w)
    }

    fn of(shape: [usize; 5], edge: Edge, w: Weights) -> Result<Self> {
        Ok(CausalConv3d { kernel: Kernel::new(&w.f32("weight", &shape)?, edge)?, bias: None })
    }

    /// The next frames of a clip: (frames, in, h, w) -> (frames, out, h, w). An empty state stands for the beginning of the clip.
    pub fn forward(&self, x: &Tensor, state: &mut ConvState) -> Result<Tensor> {
        let mut outputs = Vec::with_capacity(x.dim(0)?);
        for frame in frames(x)? {
            let owed = self.kernel.forward(&frame)?; // (time, out, h, w), to its own output first
            let mut owed: Vec<Tensor> = (0..owed.dim(0)?).map(|tap| owed.get(tap)).collect::<Result<_, _>>()?;
            if state.0.is_empty() && self.kernel.edge == Edge::Repeated {
                // The frames before owe what the first one does: to every output all that later taps give.
                for tap in (1..owed.len()).rev() {
                    owed[tap - 1] = (&owed[tap - 1] + &owed[tap])?;
                }
            }
            for (new, old) in owed.iter_mut().zip(&state.0) {
                *new = (&*new + old)?;
            }
            outputs.push(owed.remove(0));
            state.0 = owed;
        }
        let outputs = Tensor::stack(&outputs, 0)?;
        Ok(match &self.bias {
            Some(bias) => outputs.broadcast_add(bias)?,
            None => outputs,
        })
    }
}

fn bias(outputs: usize, w: &Weights) -> Result<Tensor> {
    Ok(w.f32("bias", &[outputs])?.reshape((outputs, 1, 1))?)
}

fn frames(x: &Tensor) -> Result<Vec<Tensor>> {
    (0..x.dim(0)?).map(|i| Ok(x.get(i)?)).collect()
}

/// A kernel as the matrix that columns are multiplied by.
#[derive(Debug, Clone)]
struct Kernel {
    matrix: Tensor, // (time * out, size * size * in); the newest tap first
    time: usize,
    outputs: usize,
    size: usize,
    edge: Edge,
}

impl Kernel {
    /// From (out, in, time, size, size).
    fn new(weight: &Tensor, edge: Edge) -> Result<Self> {
        let (outputs, inputs, time, size, _) = weight.dims5()?;
        let newest_first = (0..time).rev().map(|tap| weight.narrow(2, tap, 1)).collect::<Result<Vec<_>, _>>()?;
        let matrix = Tensor::cat(&newest_first, 2)?
            .permute((2, 0, 3, 4, 1))? // (time, out, size, size, in)
            .reshape((time * outputs, size * size * inputs))?;
        Ok(Kernel { matrix, time, outputs, size, edge })
    }

    /// (in, h, w) -> (time, out, h, w)
    fn forward(&self, frame: &Tensor) -> Result<Tensor> {
        let (inputs, h, w) = frame.dims3()?;
        let margin = self.size / 2;
        let padded = match self.edge {
            Edge::Zeros => frame.pad_with_zeros(1, margin, margin)?.pad_with_zeros(2, margin, margin)?,
            Edge::Repeated => frame.pad_with_same(1, margin, margin)?.pad_with_same(2, margin, margin)?,
        };
        let band = (COLUMNS_BYTES / (4 * self.size * self.size * inputs * w)).clamp(1, h);
        let mut bands = Vec::with_capacity(h.div_ceil(band));
        for top in (0..h).step_by(band) {
            let rows = band.min(h - top);
            let columns = if self.size == 1 {
                frame.narrow(1, top, rows)?
            } else {
                let mut shifted = Vec::with_capacity(self.size * self.size);
                for dy in 0..self.size {
                    for dx in 0..self.size {
                        shifted.push(padded.narrow(1, top + dy, rows)?.narrow(2, dx, w)?);
                    }
                }
                Tensor::cat(&shifted, 0)?
            };
            let columns = columns.reshape(((), rows * w))?; // (size * size * in, rows * w)
            bands.push(self.matrix.matmul(&columns)?.reshape((self.time, self.outputs, rows, w))?);
        }
        Ok(if bands.len() == 1 { bands.remove(0) } else { Tensor::cat(&bands, 2)? })
    }
}
