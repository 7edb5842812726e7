#!/usr/bin/env python3
"""Makes crates/engine/tests/golden/layouts: configurations of a small image-to-video pipeline whose rows are whole blocks of every
quantised format, the shapes of its weights, and their names in every packaging.

    golden.py OUT

No weights: the tests make them from their names. Made with diffusers 0.42.1, transformers 5.23.0, sentencepiece 0.2.1.
"""
import io, json, sys
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from relayout import TRANSFORMER, UMT5, UMT5_GGUF, clip, renamed, vae

TEXTS = ["a red circle bouncing on a navy background", "a blue star spinning on a cream background, slowly", "größer, kleiner: niño; 色调 艳丽"] * 8


def tokenizer(folder):
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=buffer, vocab_size=120, model_type="unigram", pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, pad_piece="<pad>", character_coverage=1.0, hard_vocab_limit=False, num_threads=1, minloglevel=2, normalization_rule_name="identity")
    (folder / "spiece.model").write_bytes(buffer.getvalue())
    model = pb.ModelProto()
    model.ParseFromString(buffer.getvalue())
    made = Tokenizer(models.Unigram([(p.piece, float(p.score)) for p in model.pieces], unk_id=3, byte_fallback=False))
    # As transformers' converter for T5 makes it.
    made.normalizer = normalizers.Sequence([normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    made.save(str(folder / "tokenizer.json"))
    return model


def main():
    out = Path(sys.argv[1])
    model = tokenizer(out / "tokenizer")
    vocabulary = len(model.pieces) + -len(model.pieces) % 64
    with torch.device("meta"):
        parts = {
            "transformer": WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=36, out_channels=16, text_dim=256,
                freq_dim=256, ffn_dim=512, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", image_dim=256, added_kv_proj_dim=256),
            "text_encoder": UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")),
            "vae": AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1),
            "vae22": AutoencoderKLWan(base_dim=8, decoder_base_dim=12, z_dim=48, num_res_blocks=1, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
                scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48),
            "image_encoder": CLIPVisionModel(CLIPVisionConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14, hidden_act="gelu")),
        }
    index, names = {}, {}
    for part, module in parts.items():
        shapes = {n: list(p.shape) for n, p in module.state_dict().items() if n != "encoder.embed_tokens.weight"}
        if part == "image_encoder":
            shapes = {n if n.startswith("vision_model.") else f"vision_model.{n}": s for n, s in shapes.items()}
        index[part] = shapes
        # Every tensor is filled with a number of its own, so that it can be told where it went.
        tagged = {n: torch.full(s, float(i)) for i, (n, s) in enumerate(shapes.items())}
        order = list(shapes)
        tables = {"transformer": {"authors": lambda t: renamed(t, TRANSFORMER)}, "text_encoder": {"authors": lambda t: renamed(t, UMT5), "llama_cpp": lambda t: renamed(t, UMT5_GGUF)},
            "vae": {"authors": lambda t: vae(t, dict(module.config))}, "vae22": {"authors": lambda t: vae(t, dict(module.config))}, "image_encoder": {"authors": clip}}
        names[part] = {
            naming: {n: {"shape": list(t.shape), "from": [order[int(i)] for i in dict.fromkeys(t.flatten().tolist())]}
                     for n, t in rename(tagged).items() if not n.startswith(("textual.", "log_scale"))}
            for naming, rename in tables[part].items()
        }
        if part != "vae22":
            (out / part).mkdir(parents=True, exist_ok=True)
            module.config.save_pretrained(out / part) if part in ("text_encoder", "image_encoder") else module.save_config(out / part)
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000).save_pretrained(out / "scheduler")
    (out / "image_processor").mkdir(exist_ok=True)
    (out / "image_processor" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}))
    (out / "model_index.json").write_text(json.dumps({"_class_name": "WanImageToVideoPipeline", "_diffusers_version": "0.42.1"}))
    (out / "index.json").write_text(json.dumps(index, sort_keys=True))
    (out / "names.json").write_text(json.dumps(names, sort_keys=True))


if __name__ == "__main__":
    main()
