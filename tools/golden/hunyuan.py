"""Writes crates/engine/tests/golden/hunyuan/: a random HunyuanVideo pipeline and what the reference implementation makes of it.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 && python tools/golden/hunyuan.py

As in pipeline.py, weights are not stored but follow from their names.
"""
import inspect
import json
import shutil

import torch
from diffusers.loaders import single_file_utils
from diffusers import (AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline,
                       HunyuanVideoTransformer3DModel)
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel,
                          PreTrainedTokenizerFast)

from pipeline import ROOT, fill

OUT = ROOT / "crates/engine/tests/golden/hunyuan"
PROMPT, NEGATIVE = "a Red circle, bouncing  on niño's desk 42!", "blue"
SEED, STEPS, FEW = 7, 50, 8
LENGTH = 600  # the tokenizer knows letters only, and so makes many tokens of the template
SKIPPED = 2  # the reference takes the hidden states before the last two layers


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def authors(config):
    """The transformer under the authors' names, and as diffusers converts it."""
    dim, head = config.num_attention_heads * config.attention_head_dim, config.attention_head_dim
    shapes = {}

    def linear(name, rows, columns):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [rows, columns], [rows]

    shapes["img_in.proj.weight"], shapes["img_in.proj.bias"] = [dim, config.in_channels, 1, 2, 2], [dim]
    for name in ("time_in", "guidance_in", "txt_in.t_embedder"):
        linear(f"{name}.mlp.0", dim, 256)
        linear(f"{name}.mlp.2", dim, dim)
    linear("vector_in.in_layer", dim, config.pooled_projection_dim)
    linear("vector_in.out_layer", dim, dim)
    linear("txt_in.input_embedder", dim, config.text_embed_dim)
    linear("txt_in.c_embedder.linear_1", dim, config.text_embed_dim)
    linear("txt_in.c_embedder.linear_2", dim, dim)
    for i in range(config.num_refiner_layers):
        block = f"txt_in.individual_token_refiner.blocks.{i}"
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"], shapes[f"{block}.{norm}.bias"] = [dim], [dim]
        for name, rows, columns in (("self_attn_qkv", 3 * dim, dim), ("self_attn_proj", dim, dim), ("mlp.fc1", 4 * dim, dim),
                                    ("mlp.fc2", dim, 4 * dim), ("adaLN_modulation.1", 2 * dim, dim)):
            linear(f"{block}.{name}", rows, columns)
    for i in range(config.num_layers):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            for name, rows, columns in (("mod.linear", 6 * dim, dim), ("attn_qkv", 3 * dim, dim), ("attn_proj", dim, dim), ("mlp.fc1", 4 * dim, dim),
                                        ("mlp.fc2", dim, 4 * dim)):
                linear(f"{block}_{name}", rows, columns)
            shapes[f"{block}_attn_q_norm.weight"] = shapes[f"{block}_attn_k_norm.weight"] = [head]
    for i in range(config.num_single_layers):
        block = f"single_blocks.{i}"
        linear(f"{block}.linear1", 7 * dim, dim)
        linear(f"{block}.linear2", dim, 5 * dim)
        linear(f"{block}.modulation.linear", 3 * dim, dim)
        shapes[f"{block}.q_norm.weight"] = shapes[f"{block}.k_norm.weight"] = [head]
    linear("final_layer.linear", config.out_channels * 4, dim)
    linear("final_layer.adaLN_modulation.1", 2 * dim, dim)

    holder = torch.nn.ParameterDict()
    named = {name: torch.nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}
    holder.named_parameters = named.items
    fill("authors", holder)
    # Its width is written into the converter.
    source = inspect.getsource(single_file_utils.convert_hunyuan_video_transformer_to_diffusers).replace("3072", str(dim))
    scope = {"torch": torch}
    exec(source, scope)
    return shapes, scope["convert_hunyuan_video_transformer_to_diffusers"]({name: p.detach() for name, p in named.items()})


def byte_level():
    """Bytes as characters, in the order that the vocabularies have them."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def llama_tokenizer(path):
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(byte_level())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    begin = tokenizer.token_to_id(special[0])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], begin)])
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), bos_token=special[0], eos_token=special[1], pad_token=special[1],
                                   padding_side="right", model_max_length=LENGTH)


def clip_tokenizer(path):
    """In the two files that the published pipeline has: a vocabulary and merges."""
    tokens = byte_level() + [c + "</w>" for c in byte_level()]
    merges = [("c", "i"), ("r", "e"), ("re", "d</w>"), ("ci", "r"), ("o", "n</w>")]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    return CLIPTokenizer(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt"), model_max_length=77)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    dit = HunyuanVideoTransformer3DModel(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=20, num_layers=2, num_single_layers=2,
                                         num_refiner_layers=2, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=24,
                                         pooled_projection_dim=16, rope_axes_dim=(4, 8, 8)).eval()
    llama = LlamaModel(LlamaConfig(vocab_size=261, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                                   hidden_act="silu", rms_norm_eps=1e-5, rope_theta=500000.0)).eval()
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=519, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=517, eos_token_id=518, pad_token_id=518)).eval()
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(4, 8, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=0.476986).eval()
    index = {"vae": fill("vae", vae), "transformer": fill("transformer", dit), "text_encoder": fill("text_encoder", llama), "text_encoder_2": fill("text_encoder_2", clip)}
    dit.save_config(OUT / "transformer")
    vae.save_config(OUT / "vae")
    llama.config.save_pretrained(OUT / "text_encoder")
    clip.config.save_pretrained(OUT / "text_encoder_2")
    index["authors"], converted = authors(dit.config)
    (OUT / "index.json").write_text(json.dumps(index, indent=0) + "\n")

    tokenizer, tokenizer_2 = llama_tokenizer(OUT / "tokenizer"), clip_tokenizer(OUT / "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.save_pretrained(OUT / "scheduler")
    pipe = HunyuanVideoPipeline(text_encoder=llama, tokenizer=tokenizer, transformer=dit, vae=vae, scheduler=scheduler, text_encoder_2=clip,
                                tokenizer_2=tokenizer_2)
    pipe.save_config(OUT)
    pipe.set_progress_bar_config(disable=True)

    expected = {}
    with torch.no_grad():
        def run(steps, **options):
            return pipe(prompt=PROMPT, height=32, width=48, num_frames=9, num_inference_steps=steps, guidance_scale=6.0, max_sequence_length=LENGTH,
                        output_type="latent", generator=torch.Generator("cpu").manual_seed(SEED), **options).frames

        expected["pipeline.latents"] = run(STEPS)
        expected["pipeline.true_guidance"] = run(FEW, negative_prompt=NEGATIVE, true_cfg_scale=3.0)
        expected["pipeline.clip_ids"] = tokenizer_2(PROMPT, return_tensors="pt").input_ids[0]
        expected["pipeline.frames"] = pipe.video_processor.postprocess_video(vae.decode(expected["pipeline.latents"] / 0.476986).sample, output_type="pt")[0]
        expected["pipeline.frames"] = (expected["pipeline.frames"] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        # Padded as the reference pads; what is kept is what belongs to the text.
        ids = torch.tensor([[1, 9, 33, 5, 17, 60, 2]])
        padded = torch.nn.functional.pad(ids, (0, 5), value=3)
        mask = torch.tensor([[1] * 7 + [0] * 5])
        expected["llama.ids"] = ids[0]
        expected["llama.hidden"] = llama(padded, attention_mask=mask, output_hidden_states=True).hidden_states[-(SKIPPED + 1)][:, :7]
        ids = torch.tensor([[517, 5, 40, 11, 518]])
        expected["clip.ids"] = ids[0]
        expected["clip.pooled"] = clip(torch.nn.functional.pad(ids, (0, 7), value=518)).pooler_output
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
        dit.load_state_dict(converted, strict=True)
        expected["authors.421"] = dit(randn(1, 1, 4, 3, 4, 6), torch.tensor([421]), randn(2, 1, 9, 24), torch.ones(1, 9), randn(3, 1, 16),
                                      torch.tensor([6000.0]), return_dict=False)[0]
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors",
              metadata={"torch": torch.__version__, "diffusers": __import__("diffusers").__version__,
                        "transformers": __import__("transformers").__version__, "script": "tools/golden/hunyuan.py"})


if __name__ == "__main__":
    main()
