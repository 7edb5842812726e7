//! Which of the published pipelines a set of weights is, and what their cards and reference pipelines say of them.

use navicache_control::solver::SolverKind;
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
}

impl Published {
    /// The pipeline that a transformer and a VAE belong to.
    pub fn of(transformer: &TransformerConfig, vae: &VaeConfig) -> Self {
        match transformer.image_dim {
            Some(_) => Published::Wan21I2v,
            None if vae.is_residual => Published::Wan22Ti2v,
            None => Published::Wan21,
        }
    }

    /// The schedule and solver of the reference pipeline.
    pub fn scheduler(self, is_720p: bool) -> Scheduler {
        let shift = match self {
            Published::Wan21I2v if is_720p => 5.0,
            Published::Wan21 | Published::Wan21I2v => 3.0,
            Published::Wan22Ti2v => 5.0,
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
        };
        let presets = presets.to_string();
        Defaults {
            width,
            height,
            frames,
            fps,
            steps: 50,
            guidance: 5.0,
            max_sequence_length: 512,
            presets,
            trained: None,
        }
    }

    /// What the index of a Diffusers folder says; refuses those that would load but sample something else.
    pub fn of_index(folder: &Folder) -> Result<Published> {
        let index: serde_json::Value = folder.json(INDEX)?;
        let refuse = |reason: String| Err(Error::file(folder.path(INDEX), reason));
        if index["transformer_2"].get(0).is_some_and(|library| !library.is_null()) {
            return refuse(
                "transformer_2: expected one transformer, found two (Wan2.2 A14B), not supported yet".to_string(),
            );
        }
        let expands = index["expand_timesteps"].as_bool() == Some(true);
        match index["_class_name"].as_str().unwrap_or("nothing") {
            "WanPipeline" | "WanImageToVideoPipeline" if expands => Ok(Published::Wan22Ti2v),
            "WanPipeline" => Ok(Published::Wan21),
            "WanImageToVideoPipeline" => Ok(Published::Wan21I2v),
            found => refuse(format!("_class_name: expected WanPipeline or WanImageToVideoPipeline, found {found}")),
        }
    }
}
