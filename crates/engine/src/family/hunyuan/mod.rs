//! HunyuanVideo: video from text, in one branch that is conditioned on the guidance scale.
//!
//! What is done around the models follows diffusers `HunyuanVideoPipeline`.

mod assemble;
mod pipeline;

use super::seam::About;
use navicache_weights::Component;

pub(super) const ABOUT: About = About {
    name: "HunyuanVideo",
    components: &[Component::HunyuanTransformer, Component::Llama, Component::ClipText, Component::HunyuanVae],
    pipelines: &["HunyuanVideoPipeline"],
    read: assemble::read,
};
