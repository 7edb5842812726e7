"""Writes crates/models/tests/golden/opensora/: random parts of an Open-Sora 1.2 pipeline and what the reference implementation makes of them.

    pip install torch==2.11.0 torchvision==0.26.0 diffusers==0.42.1 transformers==5.23.0 accelerate einops timm mmengine rotary_embedding_torch==0.5.3
    git clone --branch v1.2.0 https://github.com/hpcaitech/Open-Sora && python tools/golden/opensora.py --code Open-Sora

Weights and inputs are not stored but follow from their names. The test knows no torch, so here they come from a generator of three lines.
"""
import argparse
import importlib.abc
import importlib.machinery
import json
import math
import pathlib
import shutil
import sys
import types

import diffusers
import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parents[2] / "crates/models/tests/golden/opensora"
TRANSFORMER = dict(model_type="STDiT3", depth=2, hidden_size=24, num_heads=2, patch_size=[1, 2, 2], in_channels=4, caption_channels=20, model_max_length=12,
                   mlp_ratio=2.5, qk_norm=True, pred_sigma=True, input_sq_size=128)
VAE = dict(model_type="VideoAutoencoderPipeline", micro_frame_size=17, scale=[1.0] * 4, shift=[0.0] * 4,
           vae_2d=dict(type="VideoAutoencoderKL", from_pretrained="", subfolder="vae", micro_batch_size=4),
           vae_temporal=dict(type="VAE_Temporal", filters=4, num_res_blocks=1, channel_multipliers=[1, 2, 2, 4], temporal_downsample=[False, True, True], num_groups=2))
VAE_2D = dict(block_out_channels=[4, 4, 8, 8], down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4,
              layers_per_block=1, norm_num_groups=2)
T5 = dict(vocab_size=64, d_model=20, d_kv=6, d_ff=28, num_layers=3, num_heads=3, feed_forward_proj="gated-gelu")
# Name: latents, pixels, frames a second, timestep, which latent frames are noise.
CASES = dict(wide=((3, 4, 8), (32, 64), 24, 987.5, None), odd=((2, 5, 7), (41, 58), 8, 421.25, None), picture=((1, 8, 4), (64, 32), 120, 3.0, None),
             wide_masked=((3, 4, 8), (32, 64), 24, 987.5, (True, False, False)), odd_masked=((2, 5, 7), (41, 58), 8, 421.25, (False, True)))
TOKENS = 7


def numbers(name, *shape):
    """In [-1, 1). The seed is the name's FNV-1a, 32 bits."""
    state = 0x811C9DC5
    for byte in name.encode():
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    values = []
    for _ in range(math.prod(shape)):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values.append(state / 2**31 - 1)
    return torch.tensor(values, dtype=torch.float64).view(shape)


def fill(component, model, but=()):
    """Weights of about the size that a trained model has."""
    index = {}
    for name, p in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        if name in but or name.endswith("inv_freq"):
            continue
        x, wide = numbers(f"{component}.{name}", *p.shape), p.ndim > 1 and p[0].numel() > 1
        p.copy_(x * math.sqrt(3 / p[0].numel()) if wide else 0.1 * x + ("norm" in name and "bias" not in name))
        index[name] = list(p.shape)
    return index


class Blank(types.ModuleType):
    """Stands in for a module that the parts run here do not use: every name in it is an empty class."""
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Blanks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("colossalai", "bs4", "ftfy", "av", "cv2", "pandas", "omegaconf"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Blank(spec.name)

    def exec_module(self, module):
        pass


class Whole:
    """Stands in for the mask of xformers; with one sample there is nothing to mask."""
    @staticmethod
    def from_seqlens(queries, keys):
        assert len(queries) == len(keys) == 1


def attention(q, k, v, p=0.0, attn_bias=None):
    """Stands in for that of xformers. // (1, tokens, heads, head dim)"""
    return torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def reference(code):
    """The modules of STDiT3 and of the VAE."""
    sys.meta_path.insert(0, Blanks())
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
        sys.modules[name] = types.ModuleType(name)
    ops = sys.modules["xformers"].ops = sys.modules["xformers.ops"]
    ops.memory_efficient_attention, ops.fmha = attention, sys.modules["xformers.ops.fmha"]
    ops.fmha.BlockDiagonalMask = Whole
    sys.path.insert(0, code)
    return [importlib.import_module(f"opensora.models.{name}") for name in ("stdit.stdit3", "vae.vae")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", required=True, help="a checkout of hpcaitech/Open-Sora v1.2.0")
    stdit, vaes = reference(parser.parse_args().code)
    torch.set_grad_enabled(False)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)

    def transformer():
        return stdit.STDiT3(stdit.STDiT3Config(**{k: v for k, v in TRANSFORMER.items() if k != "model_type"})).eval()

    dit, turned = transformer(), transformer()
    vaes.AutoencoderKL = types.SimpleNamespace(from_pretrained=lambda *_, **__: diffusers.AutoencoderKL(**VAE_2D))
    vae = vaes.VideoAutoencoderPipeline(vaes.VideoAutoencoderPipelineConfig(**{k: v for k, v in VAE.items() if k != "model_type"})).eval()
    t5 = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    for coder in (vae.spatial_vae.module, vae.temporal_vae):  # only decoders are tested
        del coder.encoder, coder.quant_conv
    fill("transformer", dit, but=("rope.freqs",))
    index = {"transformer": fill("transformer", turned), "vae": fill("vae", vae), "text_encoder": fill("text_encoder", t5)}
    configs = {"transformer": TRANSFORMER, "vae": {**VAE, "vae_2d_config": VAE_2D}, "text_encoder": {"model_type": "t5", **T5}}
    (OUT / "index.json").write_text(json.dumps(index, indent=0) + "\n")
    (OUT / "configs.json").write_text(json.dumps(configs, indent=1) + "\n")

    expected = {}
    ids, mask = torch.tensor([[9, 33, 5, 17, 60, 2, 1] + [0] * 5]), torch.tensor([[1] * TOKENS + [0] * 5])
    expected["text.hidden"] = t5(ids, attention_mask=mask).last_hidden_state[:, :TOKENS]

    def velocity(model, case, text):
        (frames, height, width), (rows, columns), fps, timestep, noise = CASES[case]
        latents = numbers("latents", 1, 4, frames, height, width).float()
        told = {name: torch.tensor([float(value)]) for name, value in (("fps", fps), ("height", rows), ("width", columns))}
        return model(latents, torch.tensor([timestep]), text[None, None], mask, x_mask=None if noise is None else torch.tensor([noise]), **told)[:, :4]

    text = numbers("text", 12, 20).float()
    for case in CASES:
        expected[f"transformer.{case}"] = velocity(dit, case, text)
    expected["transformer.null"] = velocity(dit, "wide", dit.y_embedder.y_embedding)
    expected["transformer.turned"] = velocity(turned, "wide", text)

    # Chunks of 17 frames are apart: a shorter clip only differs in its last one.
    latents = numbers("vae latents", 10, 4, 2, 3).float().transpose(0, 1)[None]
    frames = expected["vae.frames.34"] = vae.decode(latents, num_frames=34)[0].transpose(0, 1)
    for count, latent_frames in ((1, 1), (17, 5), (20, 6)):
        assert vae.get_latent_size([count, 16, 24])[0] == latent_frames
        shorter = vae.decode(latents[:, :, :latent_frames], num_frames=count)[0].transpose(0, 1)
        assert len(shorter) == count and (count < 17 or torch.allclose(shorter[:17], frames[:17], atol=1e-5))
        if count != 17:
            expected[f"vae.frames.{count}"] = shorter[-3:]
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors",
              metadata={"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
                        "script": "tools/golden/opensora.py", "Open-Sora": "v1.2.0"})


if __name__ == "__main__":
    main()
