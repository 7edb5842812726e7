#!/usr/bin/env python3
"""Which keys of a component's config.json change what is computed: writes crates/models/tests/golden/config_keys.json.

Every key of the classes is set to other values, one at a time, on a tiny model of random weights. Its weights and what
it computes are compared with those without the change. Made with diffusers 0.42.1, transformers 5.23.0, torch 2.11.0.
"""
import copy
import json
import os
import warnings

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
from diffusers import (AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo, AutoencoderKLWan,  # noqa: E402
                       CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel)
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig,  # noqa: E402
                          LlamaModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel)

OUT = os.path.join(os.path.dirname(__file__), "../../crates/models/tests/golden/config_keys.json")
IDS = torch.tensor([[5, 9, 3, 40, 2, 61]])


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def wan(model, config):
    channels = config["in_channels"]
    return model(rand(1, channels, 3, 8, 8), torch.tensor([500]), rand(1, 7, config["text_dim"]), return_dict=False)[0]


def hunyuan(model, config):
    text = rand(1, 7, config["text_embed_dim"])
    return model(rand(1, config["in_channels"], 3, 8, 8), torch.tensor([500]), text, torch.ones(1, 7),
                 rand(1, config["pooled_projection_dim"]), torch.tensor([6000.0]), return_dict=False)[0]


def cogvideox(model, config):
    size, frames, head = 8, 3, config["attention_head_dim"]
    tokens = frames * (size // config["patch_size"]) ** 2
    rotary = (rand(tokens, head), rand(tokens, head)) if config["use_rotary_positional_embeddings"] else None
    return model(rand(1, frames, config["in_channels"], size, size), rand(1, config["max_text_seq_length"], config["text_embed_dim"]),
                 torch.tensor([500]), image_rotary_emb=rotary, return_dict=False)[0]


def vae(model, config):
    mode = model.encode(rand(1, config["in_channels"], 5, 32, 32)).latent_dist.mode()
    return torch.cat([mode.flatten(), model.decode(mode, return_dict=False)[0].flatten()])


def text(model, config):
    found = model(IDS, output_hidden_states=True)
    pooled = getattr(found, "pooler_output", None)
    return found.last_hidden_state if pooled is None else pooled


def llama(model, config):
    return model(IDS, output_hidden_states=True).hidden_states[-3]


def vision(model, config):
    return model(rand(1, 3, config["image_size"], config["image_size"]), output_hidden_states=True).hidden_states[-2]


DIFFUSERS = [
    (WanTransformer3DModel, wan, dict(num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=2)),
    (HunyuanVideoTransformer3DModel, hunyuan, dict(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1, num_refiner_layers=1, in_channels=4, out_channels=4,
        text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=[4, 2, 2])),
    (CogVideoXTransformer3DModel, cogvideox, dict(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=8,
        max_text_seq_length=6, sample_width=8, sample_height=8, sample_frames=9, use_rotary_positional_embeddings=True)),
    (AutoencoderKLWan, vae, dict(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.2] * 4)),
    (AutoencoderKLHunyuanVideo, vae, dict(latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=4)),
    (AutoencoderKLCogVideoX, vae, dict(latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=4)),
]
T5 = dict(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
CLIP = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
TRANSFORMERS = [
    (T5Config, T5EncoderModel, text, T5),
    (UMT5Config, UMT5EncoderModel, text, T5),
    (LlamaConfig, LlamaModel, llama, dict(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=8)),
    (CLIPTextConfig, CLIPTextModel, text, dict(vocab_size=64, eos_token_id=61, bos_token_id=60, **CLIP)),
    (CLIPVisionConfig, CLIPVisionModel, vision, dict(image_size=32, patch_size=16, **CLIP)),
]
OTHERS = {
    "qk_norm": ["rms_norm", "layer_norm", None],
    "image_dim": [8],
    "added_kv_proj_dim": [24],
    "pos_embed_seq_len": [8],
    "image_condition_type": ["token_replace", "latent_concat"],
    "ofs_embed_dim": [16],
    "patch_size_t": [2],
    "activation_fn": ["gelu"],
    "timestep_activation_fn": ["gelu"],
    "decoder_base_dim": [12],
    "dim_mult": [[1, 2, 2, 4]],
    "attn_scales": [[1.0]],
    "temperal_downsample": [[True, True, False]],
    "latents_mean": [[0.3] * 4],
    "latents_std": [[0.7] * 4],
    "down_block_types": [["DownBlock3D"] * 4],
    "up_block_types": [["UpBlock3D"] * 4],
    "block_out_channels": [[8, 8, 8, 16]],
    "act_fn": ["gelu"],
    "shift_factor": [0.1],
    "rope_axes_dim": [[2, 2, 4]],
    "hidden_act": ["gelu", "relu", "silu", "quick_gelu"],
    "dense_act_fn": ["relu"],
    "feed_forward_proj": ["gated-relu", "gelu"],
    "rope_parameters": [{"rope_theta": 500.0, "rope_type": "default"}, {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
                        {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}],
    "rope_scaling": [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "default"}],
    "rope_theta": [500.0],
    "head_dim": [4],
}
# Keys of older files, which the classes take without listing them.
OLDER = {
    "LlamaConfig": ["rope_scaling", "rope_theta"],
    "T5Config": ["n_positions", "output_past", "decoder_start_token_id"],
    "UMT5Config": ["scalable_attention", "output_past"],
}
# Of no model in particular.
COMMON = {"transformers_version", "architectures", "output_hidden_states", "return_dict", "id2label", "label2id", "problem_type",
          "model_type", "output_attentions"}


def alternatives(key, value):
    if key in OTHERS:
        return [other for other in OTHERS[key] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value or 1]
    if isinstance(value, float):
        return [2 * value or 0.5]
    return {"dtype": ["float16"], "pad_token_id": [1], "scalable_attention": [True]}.get(key, [3] if value is None else [])


def tried(make, compute, base):
    """Cases: a key, its other value, and what became of it."""
    def run(config):
        torch.manual_seed(0)
        model = make(config).eval().float()
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
            shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            return shapes, compute(model, config)

    shapes, found = run(base)
    cases = []
    for key, value in base.items():
        if key in COMMON or key.startswith("_"):
            continue
        for other in alternatives(key, value):
            try:
                other_shapes, other_found = run({**base, key: copy.deepcopy(other)})
                same = other_found.shape == found.shape and torch.equal(other_found, found)
                effect = "weights" if other_shapes != shapes else "same" if same else "differs"
            except Exception:  # noqa: BLE001, whatever it refuses
                effect = "refused"
            cases.append({"key": key, "value": other, "effect": effect})
    return cases


def main():
    classes = []
    for cls, compute, settings in DIFFUSERS:
        base = json.loads(cls(**settings).to_json_string())
        base = {key: value for key, value in base.items() if not key.startswith("_")}
        cases = tried(lambda config, cls=cls: cls(**config), compute, base)
        classes.append({"class": cls.__name__, "file": base, "cases": cases})
    for config_cls, cls, compute, settings in TRANSFORMERS:
        base = json.loads(config_cls(**settings).to_json_string(use_diff=False))
        older = {key: None for key in OLDER.get(config_cls.__name__, [])}
        make = lambda config, cls=cls, made=config_cls: cls(made(**{k: v for k, v in config.items() if v is not None or k not in older}))  # noqa: E731
        cases = tried(make, compute, {**base, **older})
        classes.append({"class": config_cls.__name__, "file": base, "cases": cases})
    with open(OUT, "w") as file:
        file.write("[\n")
        file.write(",\n".join(
            '{"class": %s,\n "file": %s,\n "cases": [\n  %s\n ]}' % (
                json.dumps(of["class"]), json.dumps(of["file"]), ",\n  ".join(json.dumps(case) for case in of["cases"])) for of in classes))
        file.write("\n]\n")


main()
