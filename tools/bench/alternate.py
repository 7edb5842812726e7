"""Times the same shapes here and in PyTorch, alternating in one run, and prints the medians and the median ratio.

    pip install torch==2.11.0 diffusers==0.42.1 && cargo build --release && python tools/bench/alternate.py [--rounds 5] [--threads 2] [PART ...]

Parts: matmul, attention (1560 tokens), attention-4096, block (1566 tokens, the next grid); vae-small and vae, which decode 9 frames of 128x128
and 17 of 256x256 with Wan2.1's VAE, random weights (transformers==5.23.0 for the rest of a pipeline), and print the peaks of both
processes' memory too. All f32. A ratio below 1: navicache is faster.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
NAVICACHE = ROOT / "target/release/navicache"
# What is computed, of how many tokens or latents, and how often a round.
PARTS = {"matmul": ("matmul", 1560, 3), "attention": ("attention", 1560, 3), "attention-4096": ("attention", 4096, 3),
         "block": ("block", 1560, 3), "vae-small": ("vae", (3, 16, 16), 1), "vae": ("vae", (5, 32, 32), 1)}
DIM, HEADS, FFN, TEXT = 1536, 12, 8960, 512


def torch_side(part, size, folder):
    """The same computation, to be called again and again, and what navicache's is asked with."""
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if part == "vae":
        frames, rows, columns = size
        vae, latents = wan_vae(folder), torch.randn(1, 16, *size)
        asked = ["--model", folder, "--size", f"{8 * columns}x{8 * rows}", "--frames", str(4 * frames - 3)]
        return lambda: vae.decode(latents, return_dict=False), asked
    asked = ["--tokens", str(size)]
    if part == "matmul":
        x, layer = torch.randn(size, DIM), torch.nn.Linear(DIM, FFN)
        return lambda: layer(x), asked
    if part == "attention":
        x = torch.randn(1, HEADS, size, DIM // HEADS)
        return lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x), asked
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock

    block = WanTransformerBlock(DIM, FFN, HEADS, "rms_norm_across_heads", True, 1e-6, None).eval()
    rows = int((size / 2) ** 0.5)
    columns = -(-size // (2 * rows))
    x, text, time_rows = torch.randn(1, 2 * rows * columns, DIM), torch.randn(1, TEXT, DIM), torch.randn(1, 6, DIM)
    rope = WanRotaryPosEmbed(DIM // HEADS, (1, 2, 2), 1024)(torch.zeros(1, 16, 2, 2 * rows, 2 * columns))
    return lambda: block(x, text, time_rows, rope), asked


def wan_vae(folder):
    """Wan2.1's VAE, written to a folder as part of a pipeline that is tiny otherwise."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    sys.path.insert(0, str(ROOT / "tools/demo"))
    from train import make_tokenizer

    vae = AutoencoderKLWan().eval()
    text = UMT5EncoderModel(UMT5Config(vocab_size=128, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"))
    transformer = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=20, text_dim=24, freq_dim=16, ffn_dim=56, num_layers=1)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(tokenizer=make_tokenizer(), text_encoder=text, vae=vae, transformer=transformer, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    return vae


def ours(command):
    """Median seconds, and the peak of memory in GiB."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(output)["median_seconds"], usage.ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--navicache", default=str(NAVICACHE), help="the program, where it is not in target/release")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    for name in options.parts or PARTS:
        part, size, runs = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            run, asked = torch_side(part, size, folder)
            command = [options.navicache, "bench", part, *asked, "--runs", str(runs), "--threads", str(options.threads), "--json"]
            mine, theirs, peak = [], [], 0
            run()
            for _ in range(options.rounds):
                if runs > 1:
                    run()
                begun = [time.perf_counter()]
                for _ in range(runs):
                    run()
                    begun.append(time.perf_counter())
                theirs.append(statistics.median(b - a for a, b in zip(begun, begun[1:])))
                seconds, used = ours(command)
                mine.append(seconds)
                peak = max(peak, used)
        ratios = [a / b for a, b in zip(mine, theirs)]
        print(f"{name}: navicache {1e3 * statistics.median(mine):.0f} ms, PyTorch {1e3 * statistics.median(theirs):.0f} ms, "
              f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
        if part == "vae":
            theirs_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"  peaks: navicache {peak:.2f} GiB, PyTorch {theirs_peak:.2f} GiB, of the process", flush=True)


if __name__ == "__main__":
    main()
