#!/usr/bin/env python3
"""Runs the pipeline of diffusers on a Diffusers folder, in f32 on the CPU, and writes what its parts make: see check.sh.

    reference.py FOLDER --like report.json --out reference.safetensors
    reference.py --draw WxH picture.png

The names in the file are those of `navicache parts`, and `latents` and `frames` of the whole run.
"""
import argparse
import json
import resource
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from weights import Lazy, component, whole  # noqa: E402


def tokenizer(folder, library, name):
    """As its tokenizer.json says: transformers 5 makes some classes of the vocabulary alone, with other ids."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return getattr(transformers, name).from_pretrained(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    text = lambda token: token["content"] if isinstance(token, dict) else token
    special = {key: text(said[key]) for key in ("bos_token", "eos_token", "pad_token", "unk_token") if said.get(key)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(file), padding_side=said.get("padding_side", "right"), model_max_length=said.get("model_max_length", 1 << 30), **special)


def opened(folder, from_picture, most_bytes):
    """The pipeline of a folder, and its components that are read when they are called, by name."""
    index = json.loads((folder / "model_index.json").read_text())
    name = index["_class_name"]
    if name == "WanPipeline" and from_picture:  # TI2V-5B does both
        name = "WanImageToVideoPipeline"
    parts, lazy = {}, {}
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        library, cls = entry
        here = folder / part
        if part == "scheduler":
            parts[part] = getattr(diffusers, cls).from_pretrained(here)
        elif part.startswith("tokenizer"):
            parts[part] = tokenizer(here, library, cls)
        elif part == "image_processor":
            parts[part] = transformers.CLIPImageProcessor.from_pretrained(here)
        elif part == "vae":
            parts[part] = whole(here, library, cls)
        else:
            lazy[part] = component(here, library, cls, most_bytes)
            parts[part] = lazy[part].module
    options = {key: index[key] for key in ("boundary_ratio", "expand_timesteps") if index.get(key) is not None}
    cls = getattr(diffusers, name)
    absent = {key: None for key in ("transformer_2", "image_encoder", "image_processor") if name.startswith("WanImage") and key not in parts}
    pipe = cls(**parts, **absent, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe, lazy


class Watch:
    """What a pipeline's transformers are called with, and what they make of it."""

    def __init__(self, pipe, steps):
        self.pipe, self.steps, self.made, self.timesteps = pipe, steps, {}, []
        self.is_cogvideox = type(pipe).__name__.startswith("CogVideoX")
        self.begun = None
        for name in ("transformer", "transformer_2"):
            module = getattr(pipe, name, None)
            if module is not None:
                self.watch(module)

    def watch(self, module):
        original = module.forward

        def forward(**call):
            self.begun = self.begun or time.monotonic()
            timestep = float(call["timestep"].max())
            if not self.timesteps or self.timesteps[-1] != timestep:
                self.timesteps.append(timestep)
                self.branch = 0
            step = len(self.timesteps)
            made = original(**call)
            if step == 1:
                self.first = self.first if self.branch else call["hidden_states"]
                self.conditions(call)
                self.keep("first", call, made)
            if step == self.steps:  # the same noise at the last timestep
                again = {**call, "hidden_states": self.scaled(self.first, timestep)}
                self.keep("last", again, original(**again))
            self.branch += 1
            return made

        module.forward = forward

    def names(self, batch):
        """Of the branches in a call: CogVideoX has both in one, the unconditional one first."""
        if batch == 2:
            return ["uncond", "cond"]
        return ["uncond" if self.branch else "cond"]

    def conditions(self, call):
        texts, mask = call["encoder_hidden_states"], call.get("encoder_attention_mask")
        for i, name in enumerate(self.names(len(texts))):
            text = texts[i : i + 1]
            if mask is not None:
                text = text[:, mask[i].bool()]
            self.made[f"text.{name}"] = text
            if call.get("pooled_projections") is not None:
                self.made[f"pooled.{name}"] = call["pooled_projections"][i : i + 1]
        if call.get("encoder_hidden_states_image") is not None:
            self.made["picture.embedding"] = call["encoder_hidden_states_image"]
        hidden = call["hidden_states"]
        if self.is_cogvideox:
            channels = self.pipe.vae.config.latent_channels
            hidden = hidden.transpose(1, 2)[:1]
            if hidden.shape[1] > channels:
                self.made["picture.picture"] = hidden[:, channels:]
            self.made["noise"] = hidden[:, :channels]
            return
        channels = getattr(self.pipe.vae.config, "z_dim", hidden.shape[1])
        if hidden.shape[1] > channels:
            self.made["picture.channels"] = hidden[:, channels:]
        self.made["noise"] = hidden[:, :channels]
        if call["timestep"].ndim > 1 and float(call["timestep"].min()) != float(call["timestep"].max()):
            self.made["picture.known"] = hidden[:, :, :1]

    def keep(self, place, call, made):
        for i, name in enumerate(self.names(len(made[0]))):
            out = made[0][i : i + 1]
            self.made[f"velocity.{place}.{name}"] = self.velocity(call, out) if self.is_cogvideox else out

    # CogVideoX is no flow: its latents are alpha * data + sigma * noise, and it predicts v. Ours are those of the flow
    # at the same level, latents / (alpha + sigma), and its velocity, noise - data.

    def level(self, timestep):
        signal = float(self.pipe.scheduler.alphas_cumprod[int(timestep)])
        return signal**0.5, (1 - signal) ** 0.5

    def scaled(self, hidden, timestep):
        if not self.is_cogvideox:
            return hidden
        alpha, sigma = self.level(timestep)
        channels = self.pipe.vae.config.latent_channels
        return torch.cat([hidden[:, :, :channels] * (alpha + sigma), hidden[:, :, channels:]], 2)

    def velocity(self, call, v):
        alpha, sigma = self.level(call["timestep"].max())
        seen = call["hidden_states"][:1, :, : v.shape[2]]
        return ((sigma - alpha) * seen + (sigma + alpha) * v).transpose(1, 2)


def run(folder, request, options):
    """`request`: as navicache understood it."""
    image = Image.open(request["image"]).convert("RGB") if request.get("image") else None
    pipe, lazy = opened(folder, image is not None, int(options.memory * 2**30 / 2))
    steps = request["steps"]
    watch = Watch(pipe, steps)
    last = {}

    def after_step(pipe, step, timestep, tensors):
        last["latents"] = tensors["latents"].clone()
        if step + 1 == steps:
            Lazy.in_memory.free()  # the decoder needs the room
            last["denoised"] = time.monotonic()
        return {}

    call = dict(
        prompt=request["prompt"], negative_prompt=request["negative_prompt"], height=request["height"], width=request["width"],
        num_frames=request["frames"], num_inference_steps=steps, guidance_scale=request["guidance"],
        max_sequence_length=request["max_sequence_length"], generator=torch.Generator("cpu").manual_seed(request["seed"]), output_type="np",
        callback_on_step_end=after_step)
    if image is not None:
        call["image"] = image
    if request.get("guidance_2") is not None:
        call["guidance_scale_2"] = request["guidance_2"]
    if request.get("dynamic_guidance"):
        call["use_dynamic_cfg"] = True
    if request.get("true_guidance") is not None:
        call["true_cfg_scale"] = request["true_guidance"]
    begun = time.monotonic()
    with torch.no_grad():
        frames = pipe(**call).frames[0]
    ended = time.monotonic()
    made = dict(watch.made)
    made["timesteps"] = torch.tensor(watch.timesteps)
    latents = last["latents"]
    made["latents"] = latents.transpose(1, 2) if watch.is_cogvideox else latents
    made = {name: tensor.detach().float().contiguous().clone() for name, tensor in made.items()}
    made["frames"] = torch.from_numpy(np.ascontiguousarray(np.rint(np.asarray(frames) * 255).astype(np.uint8)))
    about = {
        "pipeline": type(pipe).__name__, "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "seconds_conditions": watch.begun - begun, "seconds_denoise": last["denoised"] - watch.begun,
        "seconds_decode": ended - last["denoised"],
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "streamed": [name for name, part in lazy.items() if part.is_streamed],
    }
    save_file(made, options.out, metadata={"about": json.dumps(about)})


def draw(size, path):
    """A picture for models that need one: two gradients and three discs."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x * 7 + y * 13) % 64 + 96], -1)
    for part, color in ((0.3, (230, 60, 40)), (0.5, (250, 220, 60)), (0.75, (30, 60, 200))):
        picture[(x - part * width) ** 2 + (y - (1 - part) * height) ** 2 < (min(size) / 6) ** 2] = color
    Image.fromarray(picture.astype(np.uint8)).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--like", type=Path, help="the report of navicache's run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", type=float, default=24.0, help="GiB; half of it may hold the weights of one component")
    parser.add_argument("--draw", nargs=2, metavar=("WxH", "FILE"))
    options = parser.parse_args()
    if options.draw:
        draw(tuple(map(int, options.draw[0].split("x"))), options.draw[1])
    else:
        run(options.folder, json.loads(options.like.read_text())["request"], options)


if __name__ == "__main__":
    main()
