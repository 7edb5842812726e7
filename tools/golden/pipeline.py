"""Writes crates/engine/tests/golden/tiny/: a random Wan2.1 pipeline and what the reference implementation makes of it.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 ftfy pillow && python tools/golden/pipeline.py

The weights are not stored: every tensor is torch.randn with a seed that follows from its name, which the test repeats bit for bit.
`index.json` holds names and shapes, `expected.safetensors` the outputs of every component and of the whole pipeline.
"""
import json
import pathlib
import shutil
import sys

import torch
from diffusers import (AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline,
                       WanTransformer3DModel)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

ROOT = pathlib.Path(__file__).parents[2]
OUT = ROOT / "crates/engine/tests/golden/tiny"
sys.path.insert(0, str(ROOT / "tools/demo"))
from train import make_tokenizer  # noqa: E402

PROMPT, NEGATIVE = "a red circle bouncing on a navy background", "a blue star spinning on a cream background"
LENGTH, STEPS, GUIDANCE, SEED = 20, 50, 5.0, 7
FRAMES, HEIGHT, WIDTH = 9, 32, 48


def seed_of(name):
    """FNV-1a, 32 bits."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def fill(component, model):
    """Random weights of about the size a trained model has."""
    index = {}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = torch.randn(p.numel(), generator=torch.Generator("cpu").manual_seed(seed_of(f"{component}.{name}"))).view(p.shape)
            wide = p.ndim > 1 and p[0].numel() > 1
            p.copy_(x / p[0].numel() ** 0.5 if wide else 0.1 * x + (1.0 if "norm" in name and "bias" not in name else 0.0))
            index[name] = list(p.shape)
    return index


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    text = UMT5EncoderModel(UMT5Config(vocab_size=128, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=2,
                                       feed_forward_proj="gated-gelu", dropout_rate=0.0)).eval()
    dit = WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=20, in_channels=4, out_channels=4,
                                text_dim=24, freq_dim=16, ffn_dim=56, num_layers=2, cross_attn_norm=True,
                                qk_norm="rms_norm_across_heads", rope_max_seq_len=64).eval()
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, attn_scales=[],
                           temperal_downsample=[False, True, True], latents_mean=[0.3, -0.2, 0.1, 0.4],
                           latents_std=[1.5, 2.0, 1.2, 0.8]).eval()
    vae22 = AutoencoderKLWan(base_dim=4, decoder_base_dim=6, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, attn_scales=[],
                             temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
                             is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16).eval()
    clip = CLIPVisionModel(CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                                            image_size=28, patch_size=14, hidden_act="gelu")).eval()
    i2v = WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=20, in_channels=12, out_channels=4,
                                text_dim=24, freq_dim=16, ffn_dim=56, num_layers=2, cross_attn_norm=True, image_dim=16,
                                added_kv_proj_dim=40, qk_norm="rms_norm_across_heads", rope_max_seq_len=64).eval()
    index = {"text_encoder": fill("text_encoder", text), "transformer": fill("transformer", dit), "vae": fill("vae", vae),
             "vae22": fill("vae22", vae22), "image_encoder": fill("image_encoder", clip), "transformer_i2v": fill("transformer_i2v", i2v)}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000,
                                        flow_shift=3.0)
    pipe = WanPipeline(tokenizer=make_tokenizer(), text_encoder=text, vae=vae, transformer=dit, scheduler=scheduler)
    pipe.save_pretrained(OUT, safe_serialization=True)
    vae22.save_config(OUT / "vae22")
    i2v.save_config(OUT / "transformer_i2v")
    clip.config.save_pretrained(OUT / "image_encoder")
    preprocessor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    preprocessor.save_pretrained(OUT / "image_processor")
    for weights in OUT.rglob("*.safetensors"):
        weights.unlink()
    (OUT / "index.json").write_text(json.dumps(index, indent=0) + "\n")

    expected = {}
    with torch.no_grad():
        ids = pipe.tokenizer(PROMPT, return_tensors="pt").input_ids
        expected["text.ids"] = ids[0].to(torch.int64)
        expected["text.hidden"] = text(ids).last_hidden_state
        latents = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator("cpu").manual_seed(1))
        context = torch.randn(1, LENGTH, 24, generator=torch.Generator("cpu").manual_seed(2))
        for t in (999, 421, 3):
            expected[f"transformer.{t}"] = dit(latents, torch.tensor([t]), context, return_dict=False)[0]
        expected["vae.frames"] = vae.decode(latents[..., :2, :3]).sample
        expected["vae22.frames"] = vae22.decode(latents[..., :1, :2]).sample
        clip_frames = torch.randn(1, 3, 9, 16, 32, generator=torch.Generator("cpu").manual_seed(3)).clamp(-1, 1)
        expected["vae.mean"] = vae.encode(clip_frames).latent_dist.mode()
        expected["vae22.mean"] = vae22.encode(clip_frames).latent_dist.mode()
        pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator("cpu").manual_seed(4))
        expected["clip.hidden"] = clip(pixels, output_hidden_states=True).hidden_states[-2]
        # The reference takes the last 512 tokens of the context for the text.
        text512 = torch.randn(1, 512, 24, generator=torch.Generator("cpu").manual_seed(5))
        channels = torch.randn(1, 8, 3, 4, 6, generator=torch.Generator("cpu").manual_seed(6))
        expected["transformer_i2v.421"] = i2v(torch.cat([latents, channels], 1), torch.tensor([421]), text512,
                                              expected["clip.hidden"], return_dict=False)[0]
        # Two timesteps: the first frame's tokens, 2 x 3 of them, are told 0.
        timesteps = torch.tensor([[0.0] * 6 + [421.0] * 12])
        expected["transformer.still"] = dit(latents, timesteps, context, return_dict=False)[0]
        for name, size in (("larger", (50, 35)), ("smaller", (13, 22))):
            picture = (torch.rand(29, 37, 3, generator=torch.Generator("cpu").manual_seed(8)) * 256).to(torch.uint8)
            expected["picture"] = picture
            image = Image.fromarray(picture.numpy())
            for filter in ("LANCZOS", "BICUBIC"):
                resized = image.resize(size, getattr(Image.Resampling, filter))
                expected[f"picture.{filter.lower()}.{name}"] = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
        picture = Image.fromarray(expected["picture"].numpy())
        picture.save(OUT / "picture.png")
        for name, size, parts in (
            ("i2v", (48, 32), dict(vae=vae, transformer=i2v, image_encoder=clip, image_processor=preprocessor)),
            ("ti2v", (64, 32), dict(vae=vae22, transformer=dit, expand_timesteps=True)),
        ):
            still = WanImageToVideoPipeline(tokenizer=pipe.tokenizer, text_encoder=text, scheduler=scheduler, **parts)
            still.set_progress_bar_config(disable=True)
            expected[f"{name}.latents"] = still(image=picture, prompt=PROMPT, negative_prompt=NEGATIVE, width=size[0], height=size[1],
                                                num_frames=FRAMES, guidance_scale=GUIDANCE, num_inference_steps=12,
                                                output_type="latent", generator=torch.Generator("cpu").manual_seed(SEED)).frames
        pipe.set_progress_bar_config(disable=True)

        def keep(pipe, step, timestep, tensors):
            if step == STEPS - 1:
                expected["pipeline.latents"] = tensors["latents"]
            return {}

        frames = pipe(prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, guidance_scale=GUIDANCE,
                      num_inference_steps=STEPS, max_sequence_length=LENGTH, output_type="pt",
                      generator=torch.Generator("cpu").manual_seed(SEED), callback_on_step_end=keep).frames[0]
        expected["pipeline.frames"] = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors",
              metadata={"torch": torch.__version__, "diffusers": __import__("diffusers").__version__,
                        "transformers": __import__("transformers").__version__, "script": "tools/golden/pipeline.py"})


if __name__ == "__main__":
    main()
