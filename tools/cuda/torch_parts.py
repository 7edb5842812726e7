"""Times a part of Wan2.1-1.3B in PyTorch as `navicache bench` times it here: random weights, bf16, by events.

    python torch_parts.py attention|block|forward [--tokens 32760] [--runs 5] [--device cuda]

Prints one JSON object. Attention runs in every backend that PyTorch has for it; the fastest one is used, and named. Needs PyTorch only, so that it
runs where nothing can be installed; `tools/bench/alternate.py` has the same parts of diffusers.
"""
import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

DIM, HEADS, FFN, LAYERS, TEXT, TEXT_DIM, FREQUENCIES = 1536, 12, 8960, 30, 512, 4096, 256
EPSILON = 1e-6


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(DIM, EPSILON), nn.RMSNorm(DIM, EPSILON)

    def forward(self, x, context, rope=None):
        heads = lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (1, heads, tokens, 128)
        q, k, v = heads(self.norm_q(self.q(x))), heads(self.norm_k(self.k(context))), heads(self.v(context))
        if rope is not None:
            q, k = turned(q, rope), turned(k, rope)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def turned(x, rope):
    """Neighbouring channels turned by their angles, in f32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.text = Attention(), Attention()
        self.norm = nn.LayerNorm(DIM, EPSILON)
        self.up, self.down = nn.Linear(DIM, FFN), nn.Linear(FFN, DIM)
        self.table = nn.Parameter(torch.randn(1, 6, DIM) / DIM**0.5)

    def forward(self, x, text, times, rope):
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.table.float() + times).chunk(6, dim=1)
        centred = lambda x: functional.layer_norm(x.float(), (DIM,), eps=EPSILON)
        y = (centred(x) * (1 + scale) + shift).to(x.dtype)
        x = (x.float() + self.own(y, y, rope) * gate).to(x.dtype)
        y = functional.layer_norm(x.float(), (DIM,), self.norm.weight.float(), self.norm.bias.float(), EPSILON).to(x.dtype)
        x = x + self.text(y, text)
        y = (centred(x) * (1 + ffn_scale) + ffn_shift).to(x.dtype)
        y = self.down(functional.gelu(self.up(y), approximate="tanh"))
        return (x.float() + y.float() * ffn_gate).to(x.dtype)


class Forward(nn.Module):
    """All blocks, and what is before and after them; latents are patches already, which costs nothing."""

    def __init__(self):
        super().__init__()
        self.patches, self.last = nn.Linear(64, DIM), nn.Linear(DIM, 64)
        self.times = nn.Sequential(nn.Linear(FREQUENCIES, DIM), nn.SiLU(), nn.Linear(DIM, DIM))
        self.project = nn.Linear(DIM, 6 * DIM)
        self.text = nn.Sequential(nn.Linear(TEXT_DIM, DIM), nn.GELU("tanh"), nn.Linear(DIM, DIM))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, patches, time, text, rope):
        x, text = self.patches(patches), self.text(text)
        times = self.project(functional.silu(self.times(time))).unflatten(-1, (6, DIM)).float()
        for block in self.blocks:
            x = block(x, text, times, rope)
        return self.last(functional.layer_norm(x.float(), (DIM,), eps=EPSILON).to(x.dtype))


def made(part, tokens, device):
    """The part, to be called again and again."""
    drawn = lambda *shape: torch.randn(*shape, device=device, dtype=torch.bfloat16)
    if part == "attention":
        x = drawn(1, HEADS, tokens, DIM // HEADS)
        return lambda: functional.scaled_dot_product_attention(x, x, x)
    angles = torch.rand(tokens, DIM // HEADS // 2, device=device)
    rope = torch.polar(torch.ones_like(angles), angles)
    with torch.device(device):
        module = (Block() if part == "block" else Forward()).to(torch.bfloat16).eval()
    if part == "block":
        x, text, times = drawn(1, tokens, DIM), drawn(1, TEXT, DIM), torch.randn(1, 6, DIM, device=device)
        return lambda: module(x, text, times, rope)
    patches, time, text = drawn(1, tokens, 64), drawn(1, FREQUENCIES), drawn(1, TEXT, TEXT_DIM)
    return lambda: module(patches, time, text, rope)


def seconds(run, device):
    if device != "cuda":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def fastest_backend(tokens, device):
    """Of PyTorch's kernels for attention, the one that takes least, and what each took."""
    run, took = made("attention", tokens, device), {}
    for backend in [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]:
        if backend == SDPBackend.MATH and took:
            continue  # it holds all scores
        try:
            with sdpa_kernel(backend):
                seconds(run, device)
                took[backend] = min(seconds(run, device) for _ in range(2))
        except RuntimeError:
            continue  # not for these shapes, or not in this build
    return min(took, key=took.get), {backend.name: time for backend, time in took.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["attention", "block", "forward"])
    parser.add_argument("--tokens", type=int, default=32760)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    backend, backends = fastest_backend(options.tokens, options.device)
    run = made(options.part, options.tokens, options.device)
    with sdpa_kernel(backend):
        seconds(run, options.device)
        runs = [seconds(run, options.device) for _ in range(options.runs)]
    print(json.dumps({
        "what": f"{options.part}, PyTorch {torch.__version__}, {backend.name}",
        "tokens": options.tokens,
        "median_seconds": statistics.median(runs),
        "runs": runs,
        "backends": backends,
    }, indent=2))


if __name__ == "__main__":
    main()
