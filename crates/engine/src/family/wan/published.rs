//! Which of the published pipelines a set of weights is, and what their cards and reference pipelines say of them.

use navicache_control::solver::SolverKind;
use navicache_media::Rate;
use navicache_models::wan::{TransformerConfig, VaeConfig};

use crate::request::Defaults;
use crate::scheduler::Scheduler;
use crate::{Error, Result};
use navicache_weights::Folder;
use navicache_weights::layout::INDEX;

/// The published pipelines that differ in more than size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// Wan2.1 text-to-video, 1.3B and 14B.
    Wan21,
    /// Wan2.1 image-to-video, 14B.
    Wan21I2v,
    /// Wan2.2 TI2V-5B: from text, or from text and a picture.
    Wan22Ti2v,
    /// Wan2.2 T2V-A14B: two transformers.
    Wan22T2vA14b,
    /// Wan2.2 I2V-A14B: the same from a picture, which CLIP does not see.
    Wan22I2vA14b,
}

impl Published {
    /// The pipeline that a transformer and a VAE belong to. `has_two`: there is a second transformer.
    pub fn of(transformer: &TransformerConfig, vae: &VaeConfig, has_two: bool) -> Self {
        let sees_picture = transformer.in_channels > transformer.out_channels;
        match transformer.image_dim {
            None if has_two && sees_picture => Published::Wan22I2vA14b,
            None if has_two => Published::Wan22T2vA14b,
            Some(_) => Published::Wan21I2v,
            None if vae.is_residual => Published::Wan22Ti2v,
            None => Published::Wan21,
        }
    }

    /// Where the first of two transformers hands over to the second, as a part of the training's timesteps: the
    /// authors' configurations, Wan2.2 at 42bf4cf.
    pub fn boundary(self) -> Option<f64> {
        match self {
            Published::Wan22T2vA14b => Some(0.875),
            Published::Wan22I2vA14b => Some(0.9),
            _ => None,
        }
    }

    /// The schedule and solver of the reference pipeline; of two transformers, the authors' shift.
    pub fn scheduler(self, is_720p: bool) -> Scheduler {
        let shift = match self {
            Published::Wan21I2v if is_720p => 5.0,
            Published::Wan21 | Published::Wan21I2v => 3.0,
            Published::Wan22Ti2v | Published::Wan22I2vA14b => 5.0,
            Published::Wan22T2vA14b => 12.0,
        };
        Scheduler::published(SolverKind::UniPc, shift)
    }

    /// The defaults of the reference pipeline and of the model's card. The number of layers tells the sizes of
    /// text-to-video apart, the schedule's shift those of image-to-video.
    pub fn defaults(self, layers: usize, shift: f64) -> Defaults {
        let (width, height, frames, fps, presets) = match self {
            Published::Wan21 if layers == 40 => (832, 480, 81, 16, "wan-t2v-14b"),
            Published::Wan21 => (832, 480, 81, 16, "wan-t2v-1.3b"),
            Published::Wan21I2v if shift >= 5.0 => (1280, 720, 81, 16, "wan-i2v-720p"),
            Published::Wan21I2v => (832, 480, 81, 16, "wan-i2v-480p"),
            Published::Wan22Ti2v => (1280, 704, 121, 24, "wan2.2-ti2v-5b"),
            Published::Wan22T2vA14b => (1280, 720, 81, 16, "wan2.2-t2v-a14b"),
            Published::Wan22I2vA14b => (1280, 720, 81, 16, "wan2.2-i2v-a14b"),
        };
        let presets = presets.to_string();
        // The authors' own, of the transformers for high and low noise.
        let (steps, guidance, guidance_2) = match self {
            Published::Wan22T2vA14b => (40, 4.0, Some(3.0)),
            Published::Wan22I2vA14b => (40, 3.5, None),
            _ => (50, 5.0, None),
        };
        Defaults {
            width,
            height,
            frames,
            fps: Rate::whole(fps),
            scale: None,
            steps,
            guidance,
            guidance_2,
            max_sequence_length: 512,
            presets,
            trained: None,
        }
    }

    /// What the index of a Diffusers folder says, and where the second of two transformers takes over; refuses those
    /// that would load but sample something else.
    pub fn of_index(folder: &Folder) -> Result<(Published, Option<f64>)> {
        let index: serde_json::Value = folder.json(INDEX)?;
        let refuse = |reason: String| Err(Error::file(folder.path(INDEX), reason));
        let has = |part: &str| index[part].get(0).is_some_and(|library| !library.is_null());
        let (has_two, boundary) = (has("transformer_2"), &index["boundary_ratio"]);
        let ratio = boundary.as_f64().filter(|ratio| (0.0..=1.0).contains(ratio));
        if has_two != ratio.is_some() || has_two == boundary.is_null() {
            return refuse(format!(
                "boundary_ratio: expected a number from 0 to 1 with transformer_2 and null without, found {boundary} and \
                 transformer_2 {}",
                index["transformer_2"]
            ));
        }
        let expands = index["expand_timesteps"].as_bool() == Some(true);
        let published = match index["_class_name"].as_str().unwrap_or("nothing") {
            "WanPipeline" | "WanImageToVideoPipeline" if expands && has_two => {
                return refuse("expand_timesteps: expected false with transformer_2, found true".to_string());
            }
            "WanPipeline" if has_two => Published::Wan22T2vA14b,
            "WanImageToVideoPipeline" if has_two => Published::Wan22I2vA14b,
            "WanPipeline" | "WanImageToVideoPipeline" if expands => Published::Wan22Ti2v,
            "WanPipeline" => Published::Wan21,
            "WanImageToVideoPipeline" => Published::Wan21I2v,
            found => {
                return refuse(format!("_class_name: expected WanPipeline or WanImageToVideoPipeline, found {found}"));
            }
        };
        Ok((published, ratio))
    }
}
