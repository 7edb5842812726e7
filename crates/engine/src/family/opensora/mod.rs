//! Open-Sora 1.2: video from text, of almost any size.
//!
//! What is done around the models follows hpcaitech/Open-Sora v1.2.

mod assemble;
mod pipeline;
mod prompt;
mod sizes;

use super::seam::About;
use navicache_weights::Component;

pub(super) const ABOUT: About = About {
    name: "Open-Sora",
    components: &[Component::OpenSoraTransformer, Component::T5, Component::OpenSoraVae],
    pipelines: &[],
    read: assemble::read,
};
