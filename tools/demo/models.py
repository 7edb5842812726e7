"""The demo model's arithmetic as plain functions over the Diffusers modules' weights, made for training: whole clips at once, no
Python state, nothing that waits for the device, so that a step can be one CUDA graph. `python models.py` compares each with its module.
"""
import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

TEXT_LEN = 32


def make_vae():
    return AutoencoderKLWan(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
                            temperal_downsample=[False, True, True])


def make_text():
    return UMT5EncoderModel(UMT5Config(vocab_size=128, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
                                       feed_forward_proj="gated-gelu", dropout_rate=0.0))


def make_dit():
    return WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=64, in_channels=16,
                                 out_channels=16, text_dim=128, freq_dim=256, ffn_dim=768, num_layers=8,
                                 cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=1024)


def linear(x, m):
    return F.linear(x, m.weight.flatten(1).to(x.dtype), m.bias.to(x.dtype))


# ---- VAE. The modules go through a clip in pieces and carry the last frames along; a causal network may as well see all at once,
# and a kernel of three frames is a 2-D kernel over three frames' channels. Clips are (b, t, h, w, c) throughout. ----

def with_past(x):
    """Each frame's channels behind those of the two frames before it: (b, t, h, w, c) -> (b, t, h, w, 3 c)."""
    t = x.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))
    return torch.cat([x[:, :t], x[:, 1 : t + 1], x[:, 2:]], dim=-1)


def conv2d(x, weight, bias, **how):
    """A 2-D convolution of every frame; weight (out, c, kh, kw). Filled up to eights of channels, which tensor cores ask for."""
    out, more = weight.shape[0], -weight.shape[0] % 8
    missing = -x.shape[-1] % 8
    x = F.pad(x, (0, missing))
    weight, bias = F.pad(weight, (0, 0, 0, 0, 0, missing, 0, more)).to(x.dtype, memory_format=torch.channels_last), F.pad(bias, (0, more))
    y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias.to(x.dtype), **how)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])[..., :out]


def causal(x, m):
    """WanCausalConv3d of kernel 3x3x3 or 3x1x1, whose weight is (out, c, 3, kh, kw)."""
    weight = m.weight.transpose(1, 2).flatten(1, 2)
    return conv2d(with_past(x), weight, m.bias, padding=weight.shape[-1] // 2)


def norm(x, m):
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    return x * (x.shape[-1] ** 0.5 / length).to(x.dtype) * m.gamma.flatten().to(x.dtype)


def residual(x, m):
    h = causal(F.silu(norm(x, m.norm1)), m.conv1)
    h = causal(F.silu(norm(h, m.norm2)), m.conv2)
    return h + (linear(x, m.conv_shortcut) if m.in_dim != m.out_dim else x)


def frame_attention(x, m):
    b, t, h, w, c = x.shape
    q, k, v = linear(norm(x, m.norm), m.to_qkv).view(b * t, 1, h * w, 3 * c).chunk(3, dim=-1)
    return x + linear(F.scaled_dot_product_attention(q, k, v).view(b, t, h, w, c), m.proj)


def middle(x, m):
    return residual(frame_attention(residual(x, m.resnets[0]), m.attentions[0]), m.resnets[1])


def halve(x, m):
    conv = m.resample[1]
    x = conv2d(F.pad(x, (0, 0, 0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    if m.mode == "downsample2d" or x.shape[1] == 1:
        return x
    windows = torch.cat([x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2]], dim=-1)
    weight = m.time_conv.weight.transpose(1, 2).flatten(1).to(x.dtype)
    return torch.cat([x[:, :1], F.linear(windows, weight, m.time_conv.bias.to(x.dtype))], dim=1)


def double(x, m):
    if m.mode == "upsample3d" and x.shape[1] > 1:  # the first frame stays one
        later = causal(x[:, 1:], m.time_conv)
        b, t, h, w, _ = later.shape
        later = later.view(b, t, h, w, 2, -1).permute(0, 1, 4, 2, 3, 5).reshape(b, 2 * t, h, w, -1)
        x = torch.cat([x[:, :1], later], dim=1)
    b, t, h, w, c = x.shape
    x = x[:, :, :, None, :, None].expand(b, t, h, 2, w, 2, c).reshape(b, t, 2 * h, 2 * w, c)
    return conv2d(x, m.resample[1].weight, m.resample[1].bias, padding=1)


def encode(vae, video):
    """The posterior's mean: (b, 3, t, h, w) -> (b, 16, 1 + (t - 1) / 4, h / 8, w / 8)."""
    m = vae.encoder
    x = causal(video.permute(0, 2, 3, 4, 1).contiguous(), m.conv_in)
    for block in m.down_blocks:
        x = halve(x, block) if hasattr(block, "resample") else residual(x, block)
    x = causal(F.silu(norm(middle(x, m.mid_block), m.norm_out)), m.conv_out)
    return linear(x, vae.quant_conv).chunk(2, dim=-1)[0].permute(0, 4, 1, 2, 3)


def decode(vae, z):
    """The clip, not clamped."""
    m = vae.decoder
    x = middle(causal(linear(z.permute(0, 2, 3, 4, 1).contiguous(), vae.post_quant_conv), m.conv_in), m.mid_block)
    for block in m.up_blocks:
        for resnet in block.resnets:
            x = residual(x, resnet)
        if block.upsamplers is not None:
            x = double(x, block.upsamplers[0])
    return causal(F.silu(norm(x, m.norm_out)), m.conv_out).permute(0, 4, 1, 2, 3)


# ---- text encoder ----

def text_tables(text, tok, captions, device):
    """What `encode_text` reads: tokens one-hot (n, TEXT_LEN, vocabulary), their mask, and the position buckets one-hot."""
    ids = tok(captions, padding="max_length", max_length=TEXT_LEN, truncation=True, return_tensors="pt")
    attention = text.encoder.block[0].layer[0].SelfAttention
    where = torch.arange(TEXT_LEN)
    buckets = attention._relative_position_bucket(where[None] - where[:, None])
    return (F.one_hot(ids.input_ids, text.config.vocab_size).to(device, torch.bfloat16), ids.attention_mask.to(device).bool(),
            F.one_hot(buckets, attention.relative_attention_num_buckets).to(device, torch.bfloat16))


def rms(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def encode_text(text, tables, rows, dtype):
    """(b, TEXT_LEN, d), zero beyond each caption's end, as the pipeline has it."""
    tokens, masks, buckets = tables
    mask, eps = masks[rows], text.config.layer_norm_epsilon
    x = tokens[rows].to(dtype) @ text.shared.weight.to(dtype)  # (b, n, d)
    for block in text.encoder.block:
        a, f = block.layer[0].SelfAttention, block.layer[1]
        h = rms(x, block.layer[0].layer_norm.weight, eps)
        q, k, v = (F.linear(h, m.weight.to(dtype)).unflatten(-1, (a.n_heads, -1)).transpose(1, 2) for m in (a.q, a.k, a.v))
        bias = (buckets.to(dtype) @ a.relative_attention_bias.weight.to(dtype)).permute(2, 0, 1)  # (heads, n, n)
        scores = (q @ k.transpose(2, 3) + bias).float().masked_fill(~mask[:, None, None], -1e9)
        x = x + F.linear((scores.softmax(-1).to(dtype) @ v).transpose(1, 2).flatten(2), a.o.weight.to(dtype))
        h, m = rms(x, f.layer_norm.weight, eps), f.DenseReluDense
        gate = F.gelu(F.linear(h, m.wi_0.weight.to(dtype)), approximate="tanh")
        x = x + F.linear(gate * F.linear(h, m.wi_1.weight.to(dtype)), m.wo.weight.to(dtype))
    return rms(x, text.encoder.final_layer_norm.weight, eps) * mask[..., None].to(dtype)


# ---- transformer. Latents are tokens: (b, frames * h / 2 * w / 2, 16 * 2 * 2), channels outermost. ----

def to_tokens(z):
    b, c, t, h, w = z.shape
    return z.view(b, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t * (h // 2) * (w // 2), 4 * c)


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def rotate(x, cos, sin):
    """x: (b, heads, n, d); cos, sin: (n, d / 2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def block(x, context, modulation, cos, sin, count, eps, table, qkv, qkv_b, nq, nk, o, o_b, n2, n2_b, cq, cq_b, ckv, ckv_b, cnq, cnk,
          co, co_b, up, up_b, down, down_b):
    """One transformer block; x (b, n, d) stays in f32, products are in the context's type. Weights are arguments, so that compiling it
    once serves all layers."""
    to = lambda *ws: (w.to(context.dtype) for w in ws)
    size = (x.shape[-1],)
    shift1, scale1, gate1, shift2, scale2, gate2 = (table + modulation).chunk(6, dim=1)
    h = (F.layer_norm(x, size, eps=eps) * (1 + scale1) + shift1).to(context.dtype)
    q, k, v = F.linear(h, *to(qkv, qkv_b)).chunk(3, dim=-1)
    q, k = rotate(heads(rms(q, nq, eps), count), cos, sin), rotate(heads(rms(k, nk, eps), count), cos, sin)
    a = F.scaled_dot_product_attention(q, k, heads(v, count)).transpose(1, 2).flatten(2)
    x = x + F.linear(a, *to(o, o_b)) * gate1
    h = F.layer_norm(x, size, n2, n2_b, eps).to(context.dtype)
    q = rms(F.linear(h, *to(cq, cq_b)), cnq, eps)
    k, v = F.linear(context, *to(ckv, ckv_b)).chunk(2, dim=-1)
    a = F.scaled_dot_product_attention(heads(q, count), heads(rms(k, cnk, eps), count), heads(v, count)).transpose(1, 2).flatten(2)
    x = x + F.linear(a, *to(co, co_b))
    h = (F.layer_norm(x, size, eps=eps) * (1 + scale2) + shift2).to(context.dtype)
    h = F.gelu(F.linear(h, *to(up, up_b)), approximate="tanh")
    return x + F.linear(h, *to(down, down_b)) * gate2


def block_weights(m):
    a, c = m.attn1, m.attn2
    qkv, kv = (a.to_q, a.to_k, a.to_v), (c.to_k, c.to_v)
    return (m.scale_shift_table, torch.cat([p.weight for p in qkv]), torch.cat([p.bias for p in qkv]), a.norm_q.weight, a.norm_k.weight,
            a.to_out[0].weight, a.to_out[0].bias, m.norm2.weight, m.norm2.bias, c.to_q.weight, c.to_q.bias,
            torch.cat([p.weight for p in kv]), torch.cat([p.bias for p in kv]), c.norm_q.weight, c.norm_k.weight,
            c.to_out[0].weight, c.to_out[0].bias, m.ffn.net[0].proj.weight, m.ffn.net[0].proj.bias, m.ffn.net[2].weight, m.ffn.net[2].bias)


def angles(dit, latent_shape, dtype):
    """The rotary embedding's cosines and sines, each (n, head_dim / 2)."""
    cos, sin = dit.rope(torch.empty(1, 16, *latent_shape, device=dit.proj_out.weight.device))
    return cos[0, :, 0, 0::2].to(dtype), sin[0, :, 0, 1::2].to(dtype)


def transformer(dit, tokens, sigma, context, rotary, run=block):
    """The velocity in `to_tokens`' order, f32; sigma in [0, 1], (b,). `run` is `block` or its compiled form."""
    e, cfg, dtype = dit.condition_embedder, dit.config, context.dtype
    half = cfg.freq_dim // 2
    rates = torch.exp(torch.arange(half, device=tokens.device) * (-math.log(10000) / half))
    phase = (1000 * sigma)[:, None] * rates
    time = linear(F.silu(linear(torch.cat([phase.cos(), phase.sin()], dim=1), e.time_embedder.linear_1)), e.time_embedder.linear_2)
    modulation = linear(F.silu(time), e.time_proj).unflatten(1, (6, -1))
    context = linear(F.gelu(linear(context, e.text_embedder.linear_1), approximate="tanh"), e.text_embedder.linear_2)
    x = linear(tokens.to(dtype), dit.patch_embedding).float()
    for m in dit.blocks:
        x = run(x, context, modulation, *rotary, cfg.num_attention_heads, cfg.eps, *block_weights(m))
    shift, scale = (dit.scale_shift_table + time[:, None]).chunk(2, dim=1)
    x = F.layer_norm(x, (x.shape[-1],), eps=cfg.eps) * (1 + scale) + shift
    y = linear(x.to(dtype), dit.proj_out).float()
    return y.unflatten(-1, (2, 2, -1)).permute(0, 1, 4, 2, 3).flatten(2)


def check():
    """Largest difference from each module, in f32."""
    import shapes
    import train
    torch.manual_seed(0)
    vae, text, dit = make_vae().eval(), make_text().eval(), make_dit().eval()
    with torch.no_grad():
        found = {}
        for frames in (1, 13):
            video = shapes.batch(2, frames, 48, None, torch.device("cpu"))[0]
            z = vae.encode(video).latent_dist.mode()
            found[f"encode {frames}"] = encode(vae, video) - z
            found[f"decode {frames}"] = decode(vae, z).clamp(-1, 1) - vae.decode(z).sample
        tok, captions = train.make_tokenizer(), [shapes.all_captions()[5], "", shapes.all_captions()[7]]
        ids = tok(captions, padding="max_length", max_length=TEXT_LEN, return_tensors="pt")
        hidden = text(ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state * ids.attention_mask[..., None]
        tables = text_tables(text, tok, captions, "cpu")
        context = encode_text(text, tables, torch.arange(3), torch.float32)
        found["text"] = context - hidden
        z, sigma = torch.randn(3, 16, 4, 6, 8), torch.tensor([0.1, 0.5, 0.95])
        theirs = dit(hidden_states=z, timestep=1000 * sigma, encoder_hidden_states=hidden, return_dict=False)[0]
        found["transformer"] = transformer(dit, to_tokens(z), sigma, context, angles(dit, (4, 6, 8), torch.float32)) - to_tokens(theirs)
    for name, difference in found.items():
        print(f"{name}: {difference.abs().max():.1e}")
        assert difference.abs().max() < 1e-4, name


if __name__ == "__main__":
    check()
