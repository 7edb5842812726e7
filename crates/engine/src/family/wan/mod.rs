//! Wan2.1 and Wan2.2: video from text, or from text and a picture.

mod assemble;
mod experts;
mod image;
mod pipeline;
mod published;

use super::seam::About;
use navicache_weights::Component;

pub(super) const ABOUT: About = About {
    name: "Wan",
    components: &[
        Component::WanTransformer,
        Component::WanLowNoise,
        Component::Umt5,
        Component::WanVae,
        Component::ClipVision,
    ],
    pipelines: &["WanPipeline", "WanImageToVideoPipeline"],
    read: assemble::read,
};
