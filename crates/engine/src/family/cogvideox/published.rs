//! The published models: which one some weights are, its defaults and its sizes.

use navicache_control::solver::SolverKind;
use navicache_media::Rate;
use navicache_models::cogvideox::{TransformerConfig, VaeConfig};

use crate::limits::{Frames, Limits};
use crate::request::Defaults;
use crate::scheduler::Scheduler;
use crate::sizes::Sizes;

/// Frames beside the first come eight at a time: two latent frames make one chunk of the VAE.
const FRAMES: usize = 8;
/// Longest clips, of the first version and of 1.5.
const LONGEST: (usize, usize) = (49, 161);
/// Sides are multiples of this.
const MULTIPLE: usize = 16;
/// Longest side of the first version, whose places span any size.
const LARGEST: usize = 16384;

/// A published model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// 2B.
    Small,
    /// 5B, from text.
    Large,
    /// 5B, from a picture.
    LargeI2v,
    /// 1.5-5B, from text.
    Large15,
    /// 1.5-5B, from a picture.
    Large15I2v,
}

impl Published {
    /// The one that a transformer is of.
    pub fn of(transformer: &TransformerConfig) -> Self {
        match (transformer.patch_size_t.is_some(), transformer.takes_picture()) {
            (true, true) => Published::Large15I2v,
            (true, false) => Published::Large15,
            (false, true) => Published::LargeI2v,
            (false, false) if transformer.use_rotary_positional_embeddings => Published::Large,
            (false, false) => Published::Small,
        }
    }

    /// The schedule and solver of the published pipeline.
    pub fn scheduler(self) -> Scheduler {
        let shift = if self == Published::Small { 3.0 } else { 1.0 };
        Scheduler::of_diffusion(SolverKind::Ddim, shift)
    }

    /// What latents are multiplied by for the sampler, and whether those of pictures are divided by it: no weight says.
    pub fn scaled(self, mut vae: VaeConfig) -> VaeConfig {
        if self != Published::Small {
            vae.scaling_factor = 0.7;
        }
        vae.invert_scale_latents = matches!(self, Published::Large15 | Published::Large15I2v);
        vae
    }

    /// What the models' cards and the reference pipeline take.
    pub fn defaults(self, transformer: &TransformerConfig) -> Defaults {
        let presets = match self {
            Published::Small => "cogvideox-2b",
            Published::Large => "cogvideox-5b",
            Published::LargeI2v => "cogvideox-5b-i2v",
            Published::Large15 => "cogvideox1.5-5b",
            Published::Large15I2v => "cogvideox1.5-5b-i2v",
        };
        // The second version's configuration speaks of a square that nobody asks for.
        let (width, height, fps) = match self {
            Published::Large15 | Published::Large15I2v => (1360, 768, 16),
            _ => (8 * transformer.sample_width, 8 * transformer.sample_height, 8),
        };
        Defaults {
            width,
            height,
            frames: transformer.sample_frames,
            fps: Rate::whole(fps),
            scale: None,
            steps: 50,
            guidance: 6.0,
            guidance_2: None,
            max_sequence_length: transformer.max_text_seq_length,
            presets: presets.to_string(),
            trained: None,
        }
    }
}

/// Sizes of videos and latents. Latent frames stand for 1, 4, 4, ... frames; where a token is of two of them, one more
/// stands before the clip, and is cut off before decoding.
#[derive(Debug, Clone)]
pub(super) struct Padded {
    pub transformer: TransformerConfig,
    pub vae: VaeConfig,
}

impl Sizes for Padded {
    fn limits(&self) -> Limits {
        let TransformerConfig { patch_size_t, sample_height, sample_width, .. } = self.transformer;
        let largest = match patch_size_t {
            None => (LONGEST.0, LARGEST, LARGEST),
            Some(_) => (LONGEST.1, sample_height * self.vae.spatial(), sample_width * self.vae.spatial()),
        };
        let multiple = MULTIPLE.max(self.vae.spatial() * self.transformer.patch_size);
        Limits {
            width_multiple: multiple,
            height_multiple: multiple,
            frames: Frames::Causal { factor: FRAMES, latent_multiple: 1 },
            largest,
        }
    }

    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5] {
        let [patch, ..] = self.patch();
        let latent_frames = self.vae.latent_frames(frames).next_multiple_of(patch);
        let spatial = self.vae.spatial();
        [1, self.transformer.out_channels, latent_frames, height / spatial, width / spatial]
    }

    fn video_shape(&self, [_, _, frames, height, width]: &[usize; 5]) -> (usize, usize, usize) {
        let spatial = self.vae.spatial();
        // Chunks of the VAE make the number of its latent frames odd.
        let of_clip = if self.patch()[0] > 1 { frames.saturating_sub(1) } else { *frames };
        let most = of_clip.saturating_sub(1) * self.vae.temporal_compression_ratio + 1;
        (width * spatial, height * spatial, most)
    }

    fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.patch();
        (frames / patch_t) * (height / patch_h) * (width / patch_w)
    }

    fn patch(&self) -> [usize; 3] {
        self.transformer.patch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(patch_size_t: Option<usize>) -> Padded {
        let mut transformer = TransformerConfig::default();
        transformer.patch_size_t = patch_size_t;
        Padded { transformer, vae: VaeConfig::default() }
    }

    #[test]
    fn latent_frames_fill_a_token() {
        for frames in [1, 9, 17, 49] {
            let shape = padded(None).latents_shape(720, 480, frames);
            assert_eq!(shape, [1, 16, (frames - 1) / 4 + 1, 60, 90]);
            assert_eq!(padded(None).video_shape(&shape), (720, 480, frames));
            let shape = padded(Some(2)).latents_shape(720, 480, frames);
            assert_eq!(shape[2], (frames - 1) / 4 + 2);
            assert_eq!(padded(Some(2)).video_shape(&shape), (720, 480, frames));
        }
    }
}
