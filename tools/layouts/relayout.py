#!/usr/bin/env python3
"""Writes a Diffusers folder of Wan in the other packagings that people have.

    relayout.py PIPELINE --out DIR

makes, below DIR:

    authors/        config.json, diffusion_pytorch_model.safetensors, *.pth, google/umt5-xxl/ (the authors' repository)
    comfy/          diffusion_models/, text_encoders/, vae/, clip_vision/: single files, as they are stored
    comfy-f16/, comfy-fp8/, comfy-fp8-scaled/, comfy-fp8-new/      the same with other number formats of the matrices
    gguf-TYPE/      transformer.gguf and text_encoder.gguf, the latter with its tokenizer; TYPE: f16, q8_0, q5_1, q5_0, q4_1, q4_0

Needs torch, safetensors, numpy and gguf (the package that llama.cpp publishes). K-quants are not written by that package: see the
tests of the engine, which write them with another.
"""
import argparse, json, re, shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

TRANSFORMER = [
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    (r"blocks.(\d+).scale_shift_table", r"blocks.\1.modulation"),
    (r"blocks.(\d+).attn2.add_k_proj", r"blocks.\1.cross_attn.k_img"),
    (r"blocks.(\d+).attn2.add_v_proj", r"blocks.\1.cross_attn.v_img"),
    (r"blocks.(\d+).attn2.norm_added_k", r"blocks.\1.cross_attn.norm_k_img"),
    (r"blocks.(\d+).attn1.to_([qkv])\b", r"blocks.\1.self_attn.\2"),
    (r"blocks.(\d+).attn2.to_([qkv])\b", r"blocks.\1.cross_attn.\2"),
    (r"blocks.(\d+).attn1.to_out.0", r"blocks.\1.self_attn.o"),
    (r"blocks.(\d+).attn2.to_out.0", r"blocks.\1.cross_attn.o"),
    (r"blocks.(\d+).attn1.norm_([qk])", r"blocks.\1.self_attn.norm_\2"),
    (r"blocks.(\d+).attn2.norm_([qk])", r"blocks.\1.cross_attn.norm_\2"),
    (r"blocks.(\d+).norm2", r"blocks.\1.norm3"),
    (r"blocks.(\d+).ffn.net.0.proj", r"blocks.\1.ffn.0"),
    (r"blocks.(\d+).ffn.net.2", r"blocks.\1.ffn.2"),
    ("^scale_shift_table", "head.modulation"),
    ("^proj_out", "head.head"),
]
LAYER = r"encoder.block.(\d+).layer."
UMT5 = [
    ("^shared", "token_embedding"),
    (LAYER + "0.SelfAttention.relative_attention_bias", r"blocks.\1.pos_embedding.embedding"),
    (LAYER + "0.SelfAttention.([qkvo])", r"blocks.\1.attn.\2"),
    (LAYER + "0.layer_norm", r"blocks.\1.norm1"),
    (LAYER + "1.layer_norm", r"blocks.\1.norm2"),
    (LAYER + "1.DenseReluDense.wi_0", r"blocks.\1.ffn.gate.0"),
    (LAYER + "1.DenseReluDense.wi_1", r"blocks.\1.ffn.fc1"),
    (LAYER + "1.DenseReluDense.wo", r"blocks.\1.ffn.fc2"),
    ("encoder.final_layer_norm", "norm"),
]
UMT5_GGUF = [
    ("^shared", "token_embd"),
    (LAYER + "0.SelfAttention.relative_attention_bias", r"enc.blk.\1.attn_rel_b"),
    (LAYER + "0.SelfAttention.([qkvo])", r"enc.blk.\1.attn_\2"),
    (LAYER + "0.layer_norm", r"enc.blk.\1.attn_norm"),
    (LAYER + "1.layer_norm", r"enc.blk.\1.ffn_norm"),
    (LAYER + "1.DenseReluDense.wi_0", r"enc.blk.\1.ffn_gate"),
    (LAYER + "1.DenseReluDense.wi_1", r"enc.blk.\1.ffn_up"),
    (LAYER + "1.DenseReluDense.wo", r"enc.blk.\1.ffn_down"),
    ("encoder.final_layer_norm", "enc.output_norm"),
]
RESNET = [("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6"), ("conv_shortcut", "shortcut")]


def renamed(tensors, table):
    def name(n):
        for pattern, to in table:
            m, k = re.subn(pattern.replace(".", r"\.").replace(r"\\.", r"\."), to, n, count=1)
            if k:
                return m
        return n

    return {name(n): t for n, t in tensors.items()}


def vae(tensors, config):
    resnets = config["num_res_blocks"]
    decoder = config["num_res_blocks"] + 1

    def leaf(n):
        for a, b in RESNET:
            n = re.sub(rf"(^|\.){a}\.", rf"\g<1>{b}.", n)
        return n

    def name(n):
        n = re.sub(r"^quant_conv", "conv1", n)
        n = re.sub(r"^post_quant_conv", "conv2", n)
        n = n.replace("coder.conv_in", "coder.conv1").replace("coder.norm_out", "coder.head.0").replace("coder.conv_out", "coder.head.2")
        n = re.sub(r"coder\.mid_block\.resnets\.(\d)\.(.*)", lambda m: f"coder.middle.{2 * int(m[1])}.{leaf(m[2])}", n)
        n = n.replace("coder.mid_block.attentions.0", "coder.middle.1")
        if config.get("is_residual"):
            n = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", lambda m: f"encoder.downsamples.{m[1]}.downsamples.{m[2]}.{leaf(m[3])}", n)
            n = re.sub(r"encoder\.down_blocks\.(\d+)\.downsampler\.", rf"encoder.downsamples.\1.downsamples.{resnets}.", n)
            n = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", lambda m: f"decoder.upsamples.{m[1]}.upsamples.{m[2]}.{leaf(m[3])}", n)
            return re.sub(r"decoder\.up_blocks\.(\d+)\.upsampler\.", rf"decoder.upsamples.\1.upsamples.{decoder}.", n)
        n = re.sub(r"encoder\.down_blocks\.(\d+)\.(.*)", lambda m: f"encoder.downsamples.{m[1]}.{leaf(m[2])}", n)
        flat = lambda m, j: int(m) * (decoder + 1) + j
        n = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", lambda m: f"decoder.upsamples.{flat(m[1], int(m[2]))}.{leaf(m[3])}", n)
        return re.sub(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.upsamples.{flat(m[1], decoder)}", n)

    return {name(n): t for n, t in tensors.items()}


def clip(tensors):
    out, bare = {}, {n.removeprefix("vision_model."): t for n, t in tensors.items()}
    width = bare["embeddings.class_embedding"].shape[-1]
    out["visual.cls_embedding"] = bare["embeddings.class_embedding"].reshape(1, 1, width)
    out["visual.pos_embedding"] = bare["embeddings.position_embedding.weight"].unsqueeze(0)
    out["visual.patch_embedding.weight"] = bare["embeddings.patch_embedding.weight"]
    names = {"self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    for n, t in bare.items():
        for a, b in (("pre_layrnorm", "pre_norm"), ("post_layernorm", "post_norm")):
            if n.startswith(a):
                out[f"visual.{n.replace(a, b)}"] = t
        if m := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", n):
            if m[2] == "self_attn.q_proj":
                rows = [bare[f"encoder.layers.{m[1]}.self_attn.{k}_proj.{m[3]}"] for k in "qkv"]
                out[f"visual.transformer.{m[1]}.attn.to_qkv.{m[3]}"] = torch.cat(rows)
            elif m[2] in names:
                out[f"visual.transformer.{m[1]}.{names[m[2]]}.{m[3]}"] = t
    out["textual.token_embedding.weight"] = torch.zeros(2, 2)
    out["log_scale"] = torch.ones(())
    return out


def component(folder, name):
    files = sorted((folder / name).glob("*.safetensors"))
    tensors = {}
    for file in files:
        tensors |= load_file(file)
    return tensors


def is_matrix(name, t):
    return t.ndim == 2 and min(t.shape) > 1 and not any(k in name for k in ("time_", "text_embedding", "head", "img_emb", "norm", "pos_embedding", "embed"))


def fp8(tensors, scaled, new=False):
    out = {}
    for n, t in tensors.items():
        if not is_matrix(n, t):
            out[n] = t
            continue
        scale = t.abs().max().float() / 448 if scaled else torch.tensor(1.0)
        out[n] = (t.float() / scale).to(torch.float8_e4m3fn)
        if scaled and new:
            out[n.removesuffix("weight") + "weight_scale"] = scale
            out[n.removesuffix("weight") + "comfy_quant"] = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8).clone()
        elif scaled:
            out[n.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
            out[n.removesuffix("weight") + "scale_input"] = torch.ones(1)
    if scaled and not new:
        out["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return out


def spiece(folder):
    file = folder / "tokenizer" / "spiece.model"
    return file.read_bytes() if file.exists() else None


def write_gguf(path, arch, tensors, kind, tokenizer=None):
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    quantised = getattr(gguf.GGMLQuantizationType, kind.upper())
    if tokenizer:
        from sentencepiece import sentencepiece_model_pb2 as pb

        model = pb.ModelProto()
        model.ParseFromString(tokenizer)
        writer.add_tokenizer_model("t5")
        writer.add_token_list([p.piece.encode() for p in model.pieces])
        writer.add_token_scores([p.score for p in model.pieces])
        writer.add_token_types([p.type for p in model.pieces])
        writer.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)
    for n, t in tensors.items():
        values = t.float().numpy()
        block = gguf.GGML_QUANT_SIZES[quantised][0]
        if values.ndim == 2 and values.size > 1024 and values.shape[-1] % block == 0 and not n.startswith(("time_", "text_embedding", "img_emb", "head")):
            writer.add_tensor(n, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        elif values.ndim == 5:
            folded = values.reshape(-1, *values.shape[2:])
            writer.add_array(f"comfy.gguf.orig_shape.{n}", [int(s) for s in values.shape])
            writer.add_tensor(n, np.ascontiguousarray(folded), raw_dtype=gguf.GGMLQuantizationType.F32)
        else:
            writer.add_tensor(n, np.ascontiguousarray(values), raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("pipeline", type=Path)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--gguf", nargs="*", default=["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
    a = args.parse_args()

    transformer = renamed(component(a.pipeline, "transformer"), TRANSFORMER)
    text = component(a.pipeline, "text_encoder")
    config = json.loads((a.pipeline / "transformer" / "config.json").read_text())
    autoencoder = vae(component(a.pipeline, "vae"), json.loads((a.pipeline / "vae" / "config.json").read_text()))
    image = component(a.pipeline, "image_encoder") if (a.pipeline / "image_encoder").exists() else None
    tokenizer = spiece(a.pipeline)

    authors = a.out / "authors"
    (authors / "google" / "umt5-xxl").mkdir(parents=True, exist_ok=True)
    save_file(transformer, authors / "diffusion_pytorch_model.safetensors")
    wan22 = config["in_channels"] == 48
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    kind = "i2v" if image else "ti2v" if wan22 else "t2v"
    (authors / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": kind, "dim": dim, "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"], "in_dim": config["in_channels"], "out_dim": config["out_channels"], "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"], "eps": config["eps"], "text_len": 512}))
    torch.save(autoencoder, authors / ("Wan2.2_VAE.pth" if wan22 else "Wan2.1_VAE.pth"))
    torch.save(renamed(text, UMT5), authors / "models_t5_umt5-xxl-enc-bf16.pth")
    if image:
        torch.save(clip(image), authors / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    for file in (a.pipeline / "tokenizer").iterdir():
        shutil.copy(file, authors / "google" / "umt5-xxl" / file.name)

    def single(name, change, prefix=""):
        folder = a.out / name
        for part, tensors in (("diffusion_models", {prefix + n: t for n, t in change(transformer).items()}), ("text_encoders", change(text)),
                              ("vae", autoencoder), ("clip_vision", image)):
            if tensors is None:
                continue
            (folder / part).mkdir(parents=True, exist_ok=True)
            tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
            if part == "text_encoders" and tokenizer:
                tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8).clone()
            save_file(tensors, folder / part / f"{part}.safetensors")

    single("comfy", dict, "model.diffusion_model.")
    single("comfy-f16", lambda ts: {n: t.half() if is_matrix(n, t) else t for n, t in ts.items()})
    single("comfy-fp8", lambda ts: fp8(ts, False))
    single("comfy-fp8-scaled", lambda ts: fp8(ts, True), "model.diffusion_model.")
    single("comfy-fp8-new", lambda ts: fp8(ts, True, True))

    for kind in a.gguf:
        folder = a.out / f"gguf-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        write_gguf(folder / "transformer.gguf", "wan", transformer, kind)
        write_gguf(folder / "text_encoder.gguf", "t5encoder", renamed(text, UMT5_GGUF), kind, tokenizer)
    print("wrote", a.out)


if __name__ == "__main__":
    main()
