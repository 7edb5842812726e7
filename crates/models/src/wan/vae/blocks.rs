//! What encoder and decoder are both made of.

use candle_core::Tensor;
use navicache_kernels::{Activation, channel_rms_norm};

use crate::nn::{CausalConv3d, Conv2d, ConvState, attention};
use crate::{Error, Precision, Result, Weights};

/// The first latent frame stands for one frame; every later one for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    First,
    Later,
}

pub(super) struct MidBlock {
    resnets: [Resnet; 2],
    attention: FrameAttention,
}

impl MidBlock {
    pub(super) fn new(dim: usize, w: Weights) -> Result<Self> {
        let resnet = |i: usize| Resnet::new(dim, dim, w.pp("resnets").pp(i));
        Ok(MidBlock {
            resnets: [resnet(0)?, resnet(1)?],
            attention: FrameAttention::new(dim, w.pp("attentions").pp(0))?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, state: &mut [ResnetState; 2]) -> Result<Tensor> {
        let x = self.resnets[0].forward(x, &mut state[0])?;
        self.resnets[1].forward(&self.attention.forward(&x)?, &mut state[1])
    }
}

pub(super) struct Resnet {
    norm1: ChannelNorm,
    conv1: CausalConv3d,
    norm2: ChannelNorm,
    conv2: CausalConv3d,
    conv_shortcut: Option<CausalConv3d>,
}

#[derive(Default)]
pub(super) struct ResnetState {
    conv1: ConvState,
    conv2: ConvState,
}

impl Resnet {
    /// Several in a row, of which the first changes the width.
    pub(super) fn row(inputs: usize, outputs: usize, n: usize, w: &Weights) -> Result<Vec<Self>> {
        let resnet = |i: usize| Resnet::new(if i == 0 { inputs } else { outputs }, outputs, w.pp("resnets").pp(i));
        (0..n).map(resnet).collect()
    }

    pub(super) fn new(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        let shortcut = || CausalConv3d::new(inputs, outputs, 1, 1, w.pp("conv_shortcut"));
        Ok(Resnet {
            norm1: ChannelNorm::of_clips(inputs, w.pp("norm1"))?,
            conv1: CausalConv3d::new(inputs, outputs, 3, 3, w.pp("conv1"))?,
            norm2: ChannelNorm::of_clips(outputs, w.pp("norm2"))?,
            conv2: CausalConv3d::new(outputs, outputs, 3, 3, w.pp("conv2"))?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, state: &mut ResnetState) -> Result<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.silu(x)?, &mut state.conv1)?;
        h = self.norm2.silu(&h)?;
        match &self.conv_shortcut {
            Some(conv) => self.conv2.forward_onto(&conv.clip(x)?, &h, &mut state.conv2),
            None => self.conv2.forward_onto(x, &h, &mut state.conv2),
        }
    }
}

/// Attention of one head among the pixels of a frame.
pub(super) struct FrameAttention {
    norm: ChannelNorm,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl FrameAttention {
    pub(super) fn new(dim: usize, w: Weights) -> Result<Self> {
        Ok(FrameAttention {
            norm: ChannelNorm::of_frames(dim, w.pp("norm"))?,
            to_qkv: Conv2d::new(dim, 3 * dim, 1, w.pp("to_qkv"))?,
            proj: Conv2d::new(dim, dim, 1, w.pp("proj"))?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (frames, dim, h, w) = x.dims4()?;
        let qkv = self.to_qkv.forward(&self.norm.forward(x)?)?.reshape((frames, 3, dim, h * w))?;
        let scale = 1.0 / (dim as f64).sqrt();
        let mixed = (0..frames).map(|frame| {
            let tokens = |i: usize| qkv.get(frame)?.narrow(0, i, 1)?.transpose(1, 2)?.contiguous(); // (1, pixels, dim)
            attention(&tokens(0)?, &tokens(1)?, &tokens(2)?, scale, None, Precision::F32)?
                .t()?
                .reshape((dim, h, w))
                .map_err(Error::from)
        });
        let mixed = Tensor::stack(&mixed.collect::<Result<Vec<_>>>()?, 0)?;
        self.proj.forward_onto(x, &mixed)
    }
}

/// Every pixel's channels scaled to a root mean square of 1, then by `gamma`.
pub(super) struct ChannelNorm {
    gamma: Tensor, // (dim)
}

impl ChannelNorm {
    /// Where the reference keeps `gamma` for clips. // (dim, 1, 1, 1)
    pub(super) fn of_clips(dim: usize, w: Weights) -> Result<Self> {
        Ok(ChannelNorm { gamma: w.f32("gamma", &[dim, 1, 1, 1])?.flatten_all()? })
    }

    /// Where it keeps it for frames. // (dim, 1, 1)
    pub(super) fn of_frames(dim: usize, w: Weights) -> Result<Self> {
        Ok(ChannelNorm { gamma: w.f32("gamma", &[dim, 1, 1])?.flatten_all()? })
    }

    /// (frames, dim, h, w)
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(channel_rms_norm(x, &self.gamma, Activation::None)?)
    }

    /// The same, then SiLU.
    pub(super) fn silu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(channel_rms_norm(x, &self.gamma, Activation::Silu)?)
    }
}
