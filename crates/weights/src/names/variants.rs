//! Models that are not run here although most of their tensors are those of one that is: by the tensors that they have
//! beside them, or by their channels. What is known of them comes from the files' own code and from ComfyUI's.

use std::collections::BTreeMap;

use crate::component::Component;
use crate::file::Stored;

/// How a tensor's name begins that only this model has.
const MARKS: [(&str, &str); 42] = [
    ("vace_blocks.", WAN_VACE),
    ("vace_patch_embedding.", WAN_VACE),
    ("audio_injector.", WAN_S2V),
    ("casual_audio_encoder.", WAN_S2V),
    ("trainable_cond_mask.", WAN_S2V),
    ("frame_packer.", WAN_S2V),
    ("cond_encoder.", WAN_S2V),
    ("face_adapter.", WAN_ANIMATE),
    ("face_encoder.", WAN_ANIMATE),
    ("motion_encoder.", WAN_ANIMATE),
    ("pose_patch_embedding.", WAN_ANIMATE),
    ("control_adapter.", "a Wan Fun-Camera transformer"),
    ("ref_conv.", "a Wan Fun-Control transformer"),
    ("fps_embedding.", SKYREELS),
    ("fps_projection.", SKYREELS),
    ("condition_embedder.fps_embedding.", SKYREELS),
    ("condition_embedder.fps_projection.", SKYREELS),
    ("audio_proj.", WAN_TALKING),
    ("audio_model.", WAN_TALKING),
    ("blocks.0.audio_cross_attn", WAN_TALKING),
    ("blocks.0.norm_x.", WAN_TALKING),
    ("proj_model.", "a FantasyTalking transformer"),
    ("blocks.0.cross_attn.processor.", "a FantasyTalking transformer"),
    ("blocks.0.cam_encoder.", "a ReCamMaster transformer"),
    ("dwpose_embedding.", "a UniAnimate transformer"),
    ("randomref_embedding_pose.", "a UniAnimate transformer"),
    ("blocks.0.self_attn.ref_adapter.", "a Lynx transformer"),
    ("blocks.0.cross_attn.ip_adapter.", "a Lynx transformer"),
    ("clean_x_embedder.", FRAMEPACK),
    ("image_projection.", FRAMEPACK),
    ("byt5_in.", HUNYUAN_15),
    ("vision_in.", HUNYUAN_15),
    ("cond_type_embedding.", HUNYUAN_15),
    ("cond_type_embed.", HUNYUAN_15),
    ("context_embedder_2.", HUNYUAN_15),
    ("double_blocks.0.img_attn_q.", HUNYUAN_15),
    ("audio_proj_model.", HUNYUAN_AVATAR),
    ("audio_adapter_blocks.", HUNYUAN_AVATAR),
    ("motion_exp.", HUNYUAN_AVATAR),
    ("decoder.mid.block_1.", "the VAE of an image model"),
    ("blocks.0.attn.qkv.", "a transformer of another model"),
    ("double_stream_modulation_img.", "a Flux transformer"),
];
const WAN_VACE: &str = "a Wan VACE transformer";
const WAN_S2V: &str = "a Wan2.2 S2V (speech-to-video) transformer";
const WAN_ANIMATE: &str = "a Wan2.2 Animate transformer";
const WAN_TALKING: &str = "a Wan transformer with audio (MultiTalk, InfiniteTalk, HuMo)";
const SKYREELS: &str = "a SkyReels-V2 diffusion forcing transformer";
const FRAMEPACK: &str = "a FramePack transformer";
const HUNYUAN_15: &str = "a HunyuanVideo-1.5 transformer";
const HUNYUAN_AVATAR: &str = "a HunyuanVideo-Avatar transformer";

/// The model that a name, without prefix, is the mark of.
pub(super) fn marked(name: &str) -> Option<&'static str> {
    MARKS.iter().find(|(mark, _)| name.starts_with(mark)).map(|(_, what)| *what)
}

/// What the channels of a transformer say it is, where that is not what is run. The tensors have canonical names.
pub(crate) fn by_channels(component: Component, tensors: &BTreeMap<String, Stored>) -> Option<String> {
    let shape = |name: &str| tensors.get(name).map(|stored| stored.shape.as_slice());
    let volume = |kernel: &[usize]| kernel.iter().product::<usize>().max(1);
    let (embedding, rows) = match component {
        Component::WanTransformer => (shape("patch_embedding.weight")?, shape("proj_out.weight")?),
        Component::HunyuanTransformer => (shape("x_embedder.proj.weight")?, shape("proj_out.weight")?),
        _ => return None,
    };
    let (&[_, taken, ref kernel @ ..], &[rows, _]) = (embedding, rows) else { return None };
    let made = rows / volume(kernel);
    let sees = shape("condition_embedder.image_embedder.norm1.weight").is_some();
    if component == Component::WanTransformer && shape("condition_embedder.image_embedder.pos_embed").is_some() {
        return Some("a Wan first-last-frame transformer (FLF2V)".to_string());
    }
    // A picture comes as its latents and four channels that say which frames are known.
    let (picture, control) = (2 * made + 4, 3 * made);
    let what = match component {
        Component::WanTransformer if sees => match taken {
            _ if taken == picture => return None,
            _ if taken == control || taken == control + 4 => "a Wan2.1 Fun-Control transformer",
            _ => "a Wan transformer of pictures of another kind",
        },
        Component::WanTransformer => match taken {
            _ if taken == made || taken == picture => return None,
            _ if taken == control + 4 => "one of the two transformers of Wan2.2 Fun-Control A14B",
            _ => "a Wan transformer with a condition of another kind",
        },
        _ if taken == made => return None,
        _ if taken == 2 * made + 1 => "a HunyuanVideo transformer of pictures (I2V)",
        _ => "a HunyuanVideo transformer with a condition of another kind",
    };
    Some(format!("{what}: it takes {taken} channels and makes {made}"))
}
