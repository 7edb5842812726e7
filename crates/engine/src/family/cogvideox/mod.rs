//! CogVideoX: video from text, or from a picture and text.
//!
//! What is done around the models follows diffusers `CogVideoXPipeline` and `CogVideoXImageToVideoPipeline`.

mod assemble;
mod image;
mod pipeline;
mod published;
mod v_prediction;

use super::seam::About;
use navicache_weights::Component;

pub(super) const ABOUT: About = About {
    name: "CogVideoX",
    components: &[Component::CogVideoXTransformer, Component::T5, Component::CogVideoXVae],
    pipelines: &["CogVideoXPipeline", "CogVideoXImageToVideoPipeline"],
    read: assemble::read,
};
