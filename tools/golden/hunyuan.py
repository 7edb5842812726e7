"""Writes crates/engine/tests/golden/hunyuan/: random parts of a HunyuanVideo pipeline and what the reference implementation makes of them.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 && python tools/golden/hunyuan.py

As in pipeline.py, weights are not stored but follow from their names.
"""
import json
import shutil

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from pipeline import ROOT, fill

OUT = ROOT / "crates/engine/tests/golden/hunyuan"
SKIPPED = 2  # the reference takes the hidden states before the last two layers


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    dit = HunyuanVideoTransformer3DModel(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=20, num_layers=2, num_single_layers=2,
                                         num_refiner_layers=2, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=24,
                                         pooled_projection_dim=16, rope_axes_dim=(4, 8, 8)).eval()
    llama = LlamaModel(LlamaConfig(vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                                   hidden_act="silu", rms_norm_eps=1e-5, rope_theta=500000.0)).eval()
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        max_position_embeddings=12, hidden_act="quick_gelu", bos_token_id=62, eos_token_id=63, pad_token_id=63)).eval()
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(4, 8, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=0.476986).eval()
    index = {"vae": fill("vae", vae), "transformer": fill("transformer", dit), "text_encoder": fill("text_encoder", llama), "text_encoder_2": fill("text_encoder_2", clip)}
    dit.save_config(OUT / "transformer")
    vae.save_config(OUT / "vae")
    llama.config.save_pretrained(OUT / "text_encoder")
    clip.config.save_pretrained(OUT / "text_encoder_2")
    (OUT / "index.json").write_text(json.dumps(index, indent=0) + "\n")

    expected = {}
    with torch.no_grad():
        # Padded as the reference pads; what is kept is what belongs to the text.
        ids = torch.tensor([[1, 9, 33, 5, 17, 60, 2]])
        padded = torch.nn.functional.pad(ids, (0, 5), value=3)
        mask = torch.tensor([[1] * 7 + [0] * 5])
        expected["llama.ids"] = ids[0]
        expected["llama.hidden"] = llama(padded, attention_mask=mask, output_hidden_states=True).hidden_states[-(SKIPPED + 1)][:, :7]
        ids = torch.tensor([[62, 5, 40, 11, 63]])
        expected["clip.ids"] = ids[0]
        expected["clip.pooled"] = clip(torch.nn.functional.pad(ids, (0, 7), value=63)).pooler_output
        latents = randn(5, 1, 4, 7, 3, 4)
        for frames in (1, 4, 5, 7):
            expected[f"vae.frames.{frames}"] = vae.decode(latents[:, :, :frames]).sample
        vae.enable_tiling(tile_sample_min_height=64, tile_sample_min_width=64, tile_sample_stride_height=48, tile_sample_stride_width=48)
        expected["vae.tiled"] = vae.decode(randn(6, 1, 4, 2, 5, 10)).sample
        text = torch.cat([randn(2, 1, 9, 24), 100 * randn(4, 1, 4, 24)], 1)
        mask = torch.tensor([[1] * 9 + [0] * 4])
        for t in (999, 421, 3):
            expected[f"transformer.{t}"] = dit(randn(1, 1, 4, 3, 4, 6), torch.tensor([t]), text, mask, randn(3, 1, 16), torch.tensor([6000.0]),
                                               return_dict=False)[0]
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors",
              metadata={"torch": torch.__version__, "diffusers": __import__("diffusers").__version__,
                        "transformers": __import__("transformers").__version__, "script": "tools/golden/hunyuan.py"})


if __name__ == "__main__":
    main()
