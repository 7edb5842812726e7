#!/usr/bin/env python3
"""Writes crates/engine/tests/golden/loras/: adapters as PEFT and diffusers write them for the transformer of tests/golden/tiny, and
the weights that they make of it.

    pip install torch==2.11.0 diffusers==0.42.1 peft==0.19.1 && python tools/golden/loras.py

The base weights follow from seeds, as in tools/golden/pipeline.py. KIND/ holds the file and, where the writer has one, its
configuration; `merged.safetensors` the changed tensors by KIND and name.
"""
import json
import pathlib
import shutil
import sys

import torch
from diffusers import WanTransformer3DModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "crates/engine/tests/golden"
OUT = GOLDEN / "loras"
MODULES = ["blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj", "blocks.1.attn2.to_out.0"]


def seed_of(name):
    """FNV-1a, 32 bits."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def randn(name, shape):
    numbers = torch.Size(shape).numel()
    return torch.randn(numbers, generator=torch.Generator("cpu").manual_seed(seed_of(name))).view(shape)


def base():
    model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(GOLDEN / "tiny/transformer"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = randn(f"transformer.{name}", p.shape)
            wide = p.ndim > 1 and p[0].numel() > 1
            one = 1.0 if "norm" in name and "bias" not in name else 0.0
            p.copy_(x / p[0].numel() ** 0.5 if wide else 0.1 * x + one)
    return model.eval()


def train(model, kind):
    """Other numbers than those that training begins with."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "magnitude" in name:
                p.mul_(1 + 0.3 * randn(f"{kind}.{name}", p.shape))
            elif any(mark in name for mark in ("lora_", "hada_", "lokr_")):
                p.copy_(0.2 * randn(f"{kind}.{name}", p.shape))


def changed(model, plain):
    found = {name: tensor for name, tensor in model.state_dict().items() if not torch.equal(tensor, plain[name])}
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


KINDS = {
    "alpha": LoraConfig(r=4, lora_alpha=6, target_modules=MODULES),
    "rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=MODULES),
    "patterns": LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, rank_pattern={"blocks.0.attn1.to_q": 2},
                           alpha_pattern={"ffn.net.0.proj": 3}),
    "biases": LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=MODULES),
    "dora": LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=MODULES),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=MODULES),
    "lokr": LoKrConfig(r=2, alpha=5, target_modules=MODULES),
    "lokr_whole": LoKrConfig(r=64, alpha=32, target_modules=MODULES),
    "lokr_both": LoKrConfig(r=2, alpha=5, decompose_both=True, target_modules=MODULES),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    plain = base().state_dict()
    merged = {}
    for kind, config in KINDS.items():
        model = get_peft_model(base(), config)
        train(model, kind)
        model.save_pretrained(OUT / kind)
        (OUT / kind / "README.md").unlink(missing_ok=True)
        done = changed(model.merge_and_unload(), plain)
        merged.update({f"{kind}/{name}": tensor for name, tensor in done.items()})
    # As diffusers' training scripts leave it: the strength in the header.
    model = base()
    model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=MODULES))
    train(model, "header")
    model.save_lora_adapter(OUT / "header")
    model.fuse_lora()
    model.unload_lora()
    merged.update({f"header/{name}": tensor for name, tensor in changed(model, plain).items()})
    for kind in [*KINDS, "header"]:
        file = next((OUT / kind).glob("*.safetensors"))
        print(kind, file.name, sorted(load_file(file))[:2], sum(key.startswith(kind + "/") for key in merged))
    save_file(merged, OUT / "merged.safetensors")
    for config in OUT.glob("*/adapter_config.json"):
        text = json.loads(config.read_text())
        config.write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
