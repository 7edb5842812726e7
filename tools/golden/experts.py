"""Writes crates/engine/tests/golden/experts/: what the reference makes of Wan2.2 A14B, where two transformers share the steps.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 ftfy pillow && python tools/golden/experts.py

Text encoder, VAE, tokenizer, scheduler and weights are those of pipeline.py, whose names and seeds go on here; `transformer` is the first
transformer of text-to-video.
"""
import json
import shutil

import torch
from diffusers import (AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline,
                       WanTransformer3DModel)
from PIL import Image
from safetensors.torch import save_file
from transformers import UMT5EncoderModel

from pipeline import FRAMES, GUIDANCE, HEIGHT, LENGTH, NEGATIVE, OUT as TINY, PROMPT, SEED, STEPS, WIDTH, fill, make_tokenizer

OUT = TINY.parent / "experts"
GUIDANCE_2 = 3.0


def transformer(name, index, channels):
    """A transformer of the small pipeline's shape; a picture's channels stand beside those of the latents."""
    config = dict(WanTransformer3DModel.load_config(TINY / "transformer"), in_channels=channels)
    model = WanTransformer3DModel.from_config(config).eval()
    index[name] = fill(name, model)
    return model


def traced(pipe, expected, name, **options):
    """Runs a pipeline; keeps the final latents, the frames, and which transformer was called, call by call."""
    called = []
    for which, model in enumerate((pipe.transformer, pipe.transformer_2), 1):
        model.forward = (lambda forward, which: lambda *x, **k: (called.append(which), forward(*x, **k))[1])(type(model).forward.__get__(model), which)

    def keep(pipe, step, timestep, tensors):
        expected[f"{name}.latents"] = tensors["latents"]
        return {}

    pipe.set_progress_bar_config(disable=True)
    frames = pipe(prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, output_type="pt",
                  generator=torch.Generator("cpu").manual_seed(SEED), callback_on_step_end=keep, **options).frames[0]
    expected[f"{name}.frames"] = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    expected[f"{name}.called"] = torch.tensor(called, dtype=torch.uint8)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    text = UMT5EncoderModel(UMT5EncoderModel.config_class.from_pretrained(TINY / "text_encoder")).eval()
    vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(TINY / "vae")).eval()
    fill("text_encoder", text)
    fill("vae", vae)
    index, expected = {}, {}
    high = transformer("transformer", {}, 4)
    low = transformer("transformer_2", index, 4)
    high_i2v, low_i2v = (transformer(name, index, 12) for name in ("transformer_a14b", "transformer_a14b_2"))
    high_i2v.save_config(OUT / "transformer_a14b")
    (OUT / "index.json").write_text(json.dumps(index, indent=0) + "\n")
    scheduler = UniPCMultistepScheduler.from_pretrained(TINY, subfolder="scheduler")
    parts = dict(tokenizer=make_tokenizer(), text_encoder=text, vae=vae, scheduler=scheduler)
    with torch.no_grad():
        latents = torch.randn(1, 12, 3, 4, 6, generator=torch.Generator("cpu").manual_seed(1))
        context = torch.randn(1, LENGTH, 24, generator=torch.Generator("cpu").manual_seed(2))
        for name, model in (("transformer_a14b", high_i2v), ("transformer_a14b_2", low_i2v)):
            expected[f"{name}.421"] = model(latents, torch.tensor([421]), context, return_dict=False)[0]
        pipe = WanPipeline(transformer=high, transformer_2=low, boundary_ratio=0.875, **parts)
        traced(pipe, expected, "t2v", num_inference_steps=STEPS, guidance_scale=GUIDANCE, guidance_scale_2=GUIDANCE_2, max_sequence_length=LENGTH)
        traced(pipe, expected, "one_branch", num_inference_steps=12, guidance_scale=1.0, guidance_scale_2=GUIDANCE_2, max_sequence_length=LENGTH)
        pipe = WanImageToVideoPipeline(transformer=high_i2v, transformer_2=low_i2v, boundary_ratio=0.9, image_encoder=None, image_processor=None, **parts)
        traced(pipe, expected, "i2v", num_inference_steps=STEPS, guidance_scale=GUIDANCE, max_sequence_length=LENGTH, image=Image.open(TINY / "picture.png"))
    del expected["one_branch.frames"]
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors",
              metadata={"torch": torch.__version__, "diffusers": __import__("diffusers").__version__,
                        "transformers": __import__("transformers").__version__, "script": "tools/golden/experts.py"})
    print({k: v.tolist() for k, v in expected.items() if k.endswith("called")})


if __name__ == "__main__":
    main()
