"""Writes crates/engine/tests/golden/cogvideox/: random CogVideoX pipelines and what the reference implementation makes of them.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 pillow && python tools/golden/cogvideox.py

As in pipeline.py, weights are not stored but follow from their names. One text encoder, one VAE and one tokenizer serve five
transformers, in the arrangements of the five published models.
"""
import json
import shutil

import numpy as np
import torch
from diffusers import (AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline, CogVideoXPipeline,
                       CogVideoXTransformer3DModel)
from PIL import Image
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from pipeline import ROOT, fill, make_tokenizer, seed_of

OUT = ROOT / "crates/engine/tests/golden/cogvideox"
PROMPT, NEGATIVE = "a red circle bouncing on a navy background", "a blue star spinning on a cream background"
LENGTH, SEED, GUIDANCE = 20, 7, 6.0
FRAMES, HEIGHT, WIDTH = 9, 32, 48
SCHEDULE = dict(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                set_alpha_to_one=True, timestep_spacing="trailing")
SHARED = dict(num_attention_heads=2, attention_head_dim=16, out_channels=4, time_embed_dim=12, text_embed_dim=24, num_layers=2, patch_size=2,
              max_text_seq_length=LENGTH)
TINY = dict(sample_height=4, sample_width=6, sample_frames=9)
LARGE = dict(sample_height=60, sample_width=90, sample_frames=49)  # as published, so that places are cut from those of a larger frame
SECOND = dict(sample_height=300, sample_width=300, sample_frames=81, patch_size_t=2, patch_bias=False, use_rotary_positional_embeddings=True)
MODELS = {
    "2b": dict(in_channels=4, **TINY),
    "5b": dict(in_channels=4, use_rotary_positional_embeddings=True, **LARGE),
    "5b_i2v": dict(in_channels=8, use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True, **TINY),
    "15": dict(in_channels=4, **SECOND),
    "15_i2v": dict(in_channels=8, ofs_embed_dim=12, **SECOND),
}
# Model, name, solver, steps, what else
RUNS = [
    ("2b", "50", "ddim", 50, {}), ("2b", "30", "ddim", 30, {}), ("2b", "7", "ddim", 7, {}), ("2b", "dpm30", "dpm", 30, {}),
    ("5b", "50", "dpm", 50, dict(use_dynamic_cfg=True)), ("5b", "30", "dpm", 30, {}), ("5b", "7", "dpm", 7, {}),
    ("5b_i2v", "50", "ddim", 50, {}), ("5b_i2v", "dpm", "dpm", 8, {}),
    ("15", "50", "ddim", 50, dict(use_dynamic_cfg=True)), ("15_i2v", "50", "dpm", 50, {}),
]


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def channels_first(latents):
    return latents.permute(0, 2, 1, 3, 4)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    text = T5EncoderModel(T5Config(vocab_size=128, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
                                   dropout_rate=0.0)).eval()
    vae = AutoencoderKLCogVideoX(block_out_channels=(4, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7).eval()
    index = {"text_encoder": fill("text_encoder", text), "vae": fill("vae", vae)}
    index["text_encoder"].pop("encoder.embed_tokens.weight", None)
    text.config.save_pretrained(OUT / "text_encoder")
    vae.save_config(OUT / "vae")
    models = {}
    for name, options in MODELS.items():
        component = f"transformer_{name}"
        models[name] = CogVideoXTransformer3DModel(**SHARED, **options).eval()
        index[component] = fill(component, models[name])
        if options.get("use_learned_positional_embeddings"):
            table = models[name].patch_embed.pos_embedding
            table.copy_(randn(seed_of(f"{component}.patch_embed.pos_embedding"), *table.shape) / table[0].numel() ** 0.5)
            index[component]["patch_embed.pos_embedding"] = list(table.shape)
        models[name].save_config(OUT / component)
    (OUT / "index.json").write_text(json.dumps(index, indent=0) + "\n")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(OUT / "tokenizer")
    picture = (torch.rand(29, 37, 3, generator=torch.Generator("cpu").manual_seed(8)) * 256).to(torch.uint8)
    Image.fromarray(picture.numpy()).save(OUT / "picture.png")

    expected = {}
    with torch.no_grad():
        ids = tokenizer(PROMPT, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        expected["text.ids"] = ids[0].to(torch.int64)
        expected["text.hidden"] = text(ids)[0]
        for frames in (1, 2, 3, 5):
            expected[f"vae.frames.{frames}"] = vae.decode(randn(5, 1, 4, 5, 2, 3)[:, :, :frames]).sample
        posterior = vae.encode(randn(3, 1, 3, 1, 16, 32).clamp(-1, 1)).latent_dist
        expected["vae.mean"], expected["vae.std"] = posterior.mean, posterior.std
        for name, model in models.items():
            pipe = CogVideoXPipeline(tokenizer, text, vae, model, CogVideoXDDIMScheduler(**SCHEDULE))
            frames = 4 if "15" in name else 3
            rotary = None
            if model.config.use_rotary_positional_embeddings:
                rotary = pipe._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, frames, "cpu")
            latents = torch.cat([randn(1, 1, 4, frames, 4, 6)] + ([randn(6, 1, 4, frames, 4, 6)] if "i2v" in name else []), 1)
            for t in (999, 421, 3):
                out = model(channels_first(latents), randn(2, 1, LENGTH, 24), torch.tensor([t]), image_rotary_emb=rotary,
                            ofs=torch.tensor([2.0]) if "15_i2v" == name else None, return_dict=False)[0]
                expected[f"transformer_{name}.{t}"] = channels_first(out)
        for name, run, solver, steps, options in RUNS:
            cls = CogVideoXDDIMScheduler if solver == "ddim" else CogVideoXDPMScheduler
            scheduler = cls(**SCHEDULE, snr_shift_scale=3.0 if name == "2b" else 1.0)
            i2v = "i2v" in name
            vae.register_to_config(invert_scale_latents=name.startswith("15"))
            pipe = (CogVideoXImageToVideoPipeline if i2v else CogVideoXPipeline)(tokenizer, text, vae, models[name], scheduler)
            pipe.set_progress_bar_config(disable=True)
            image = dict(image=Image.fromarray(picture.numpy())) if i2v else {}
            seen = {}

            def keep(p, i, t, kwargs):
                seen["latents"] = kwargs["latents"].clone()
                return {}

            frames = pipe(prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=steps,
                          guidance_scale=GUIDANCE, max_sequence_length=LENGTH, generator=torch.Generator("cpu").manual_seed(SEED),
                          output_type="np", callback_on_step_end=keep, **image, **options).frames[0]
            expected[f"pipeline.{name}.{run}"] = channels_first(seen["latents"])
            if run == "50":
                expected[f"pipeline.{name}.frames"] = torch.from_numpy(np.rint(frames * 255).astype(np.uint8))
        for kind, cls in (("ddim", CogVideoXDDIMScheduler), ("dpm", CogVideoXDPMScheduler)):
            (OUT / f"scheduler_{kind}").mkdir()
            for shift in (3.0, 1.0):
                text_of = cls(**SCHEDULE, snr_shift_scale=shift).to_json_string()
                (OUT / f"scheduler_{kind}" / f"shift{shift:.0f}.json").write_text(text_of)
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors",
              metadata={"torch": torch.__version__, "diffusers": __import__("diffusers").__version__,
                        "transformers": __import__("transformers").__version__, "script": "tools/golden/cogvideox.py"})


if __name__ == "__main__":
    main()
