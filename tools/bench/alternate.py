"""Times the same shapes here and in PyTorch, alternating in one run, and prints the medians and the median ratio.

    pip install torch==2.11.0 diffusers==0.42.1 && cargo build --release && python tools/bench/alternate.py [--rounds 5] [--threads 2] [PART ...]

Parts: matmul, attention (1560 tokens), attention-4096, block (1566 tokens, the next grid). On the CPU all is f32; with --device cuda, which needs
navicache-cuda beside navicache, PyTorch is in bf16 and navicache keeps bf16 matrices. A ratio below 1: navicache is faster.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import time

NAVICACHE = pathlib.Path(__file__).parents[2] / "target/release/navicache"
PARTS = {"matmul": ("matmul", 1560), "attention": ("attention", 1560), "attention-4096": ("attention", 4096), "block": ("block", 1560)}
DIM, HEADS, FFN, TEXT = 1536, 12, 8960, 512


def torch_side(part, tokens, device):
    """The same computation, to be called again and again; when it returns, it is done."""
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_device(device)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    run = computation(torch, part, tokens)
    return run if device == "cpu" else lambda: (run(), torch.cuda.synchronize())


def computation(torch, part, tokens):
    if part == "matmul":
        x, layer = torch.randn(tokens, DIM), torch.nn.Linear(DIM, FFN)
        return lambda: layer(x)
    if part == "attention":
        x = torch.randn(1, HEADS, tokens, DIM // HEADS)
        return lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x)
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock

    block = WanTransformerBlock(DIM, FFN, HEADS, "rms_norm_across_heads", True, 1e-6, None).eval()
    rows = int((tokens / 2) ** 0.5)
    columns = -(-tokens // (2 * rows))
    x, text, time_rows = torch.randn(1, 2 * rows * columns, DIM), torch.randn(1, TEXT, DIM), torch.randn(1, 6, DIM)
    rope = WanRotaryPosEmbed(DIM // HEADS, (1, 2, 2), 1024)(torch.zeros(1, 16, 2, 2 * rows, 2 * columns))
    return lambda: block(x, text, time_rows, rope)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    for name in options.parts or PARTS:
        part, tokens = PARTS[name]
        run, ours, theirs = torch_side(part, tokens, options.device), [], []
        for _ in range(options.rounds):
            run()
            begun = [time.perf_counter()]
            for _ in range(3):
                run()
                begun.append(time.perf_counter())
            theirs.append(statistics.median(b - a for a, b in zip(begun, begun[1:])))
            command = [NAVICACHE, "bench", part, "--tokens", str(tokens), "--runs", "3", "--threads", str(options.threads), "--json"]
            command += ["--device", options.device, "--dtype", "f32" if options.device == "cpu" else "bf16"]
            ours.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["median_seconds"])
        ratios = [a / b for a, b in zip(ours, theirs)]
        print(f"{name}: navicache {1e3 * statistics.median(ours):.0f} ms, PyTorch {1e3 * statistics.median(theirs):.0f} ms, "
              f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


if __name__ == "__main__":
    main()
