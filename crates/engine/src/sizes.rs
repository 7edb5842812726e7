//! Sizes of videos, latents and tokens.

use crate::limits::{Frames, Limits};

/// Sizes of videos, latents and tokens.
pub(crate) trait Sizes: Send + Sync {
    /// What can be made.
    fn limits(&self) -> Limits;
    /// Shape of the latents for a size. // (1, channels, latent frames, height, width)
    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5];
    /// Width, height and most frames of latents of a shape.
    fn video_shape(&self, latents: &[usize; 5]) -> (usize, usize, usize);
    /// Latents to a token, along time, height and width.
    fn patch(&self) -> [usize; 3];
    /// Tokens of latents of a shape.
    fn tokens(&self, latents: &[usize; 5]) -> usize;
}

/// Sizes of a model whose latent frames stand for 1, `temporal`, `temporal`, ... frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Causal {
    /// Channels of the latents.
    pub channels: usize,
    /// Frames to a latent frame, after the first.
    pub temporal: usize,
    /// Pixels to a latent.
    pub spatial: usize,
    /// Latents to a token, along time, height and width.
    pub patch: [usize; 3],
    /// Tokens along any axis, at most.
    pub positions: usize,
}

impl Sizes for Causal {
    fn limits(&self) -> Limits {
        let Causal { temporal, spatial, patch: [patch_t, patch_h, patch_w], positions, .. } = *self;
        Limits {
            frames: Frames::Causal { factor: temporal, latent_multiple: patch_t },
            // The reference pipelines ask for multiples of 16 whatever the patch.
            width_multiple: least_common_multiple(16, spatial * patch_w),
            height_multiple: least_common_multiple(16, spatial * patch_h),
            largest: (
                (positions * patch_t - 1) * temporal + 1,
                positions * patch_h * spatial,
                positions * patch_w * spatial,
            ),
        }
    }

    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5] {
        let latent_frames = (frames - 1) / self.temporal + 1;
        [1, self.channels, latent_frames, height / self.spatial, width / self.spatial]
    }

    fn video_shape(&self, [_, _, frames, height, width]: &[usize; 5]) -> (usize, usize, usize) {
        (width * self.spatial, height * self.spatial, frames.saturating_sub(1) * self.temporal + 1)
    }

    fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.patch;
        (frames / patch_t) * (height / patch_h) * (width / patch_w)
    }

    fn patch(&self) -> [usize; 3] {
        self.patch
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b) * b
}
