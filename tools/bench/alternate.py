"""Times the same shapes here and in PyTorch, alternating in one run, and prints the medians, the median ratio and the peaks of memory.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0
    cargo build --release && python tools/bench/alternate.py [--rounds 5] [--threads 2] [PART ...]

A part is one of those below, alone (f32) or with -bf16; the VAE's is Wan2.1's with random weights, in PyTorch f32 whatever
is asked for here. Each side is a process of its
own in every round; of its runs the median counts. A ratio below 1: navicache is faster. With --device cuda, which needs navicache-cuda beside
navicache, memory is still the processes' own, not the GPU's. Where stable-diffusion.cpp's `sd` is on the PATH, --sd "ARGUMENTS" times its
sampling too, once a round: say which models and size, and --steps, as one would to it.
"""
import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
NAVICACHE = ROOT / "target/release/navicache"
PARTS = {  # what `navicache bench` calls it, tokens or frames, height and width of latents, runs that count
    "matmul": ("matmul", 1560, 5),
    "attention": ("attention", 1560, 5),
    "attention-4096": ("attention", 4096, 3),
    "block": ("block", 1560, 3),
    "forward": ("forward", 1755, 1),
    "vae-small": ("vae", (3, 16, 16), 1),
    "vae": ("vae", (5, 32, 32), 1),
}
DIM, HEADS, FFN, TEXT, TEXT_DIM = 1536, 12, 8960, 512, 4096


def torch_side(part, tokens, grid, dtype):
    """The same computation in PyTorch, to be called again and again."""
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if part == "vae":
        from diffusers import AutoencoderKLWan

        vae, latents = AutoencoderKLWan().eval(), torch.randn(1, 16, *grid)
        return lambda: vae.decode(latents, return_dict=False)
    if part == "matmul":
        x, layer = torch.randn(tokens, DIM).to(dtype), torch.nn.Linear(DIM, FFN).to(dtype)
        return lambda: layer(x)
    if part == "attention":
        x = torch.randn(1, HEADS, tokens, DIM // HEADS).to(dtype)
        return lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x)
    frames, rows, columns = grid
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel, WanTransformerBlock

    if part == "block":
        block = WanTransformerBlock(DIM, FFN, HEADS, "rms_norm_across_heads", True, 1e-6, None).eval().to(dtype)
        keep_in_f32(block, WanTransformer3DModel)
        x, text, times = torch.randn(1, tokens, DIM).to(dtype), torch.randn(1, TEXT, DIM).to(dtype), torch.randn(1, 6, DIM)
        rope = WanRotaryPosEmbed(DIM // HEADS, (1, 2, 2), 1024)(torch.zeros(1, 16, frames, 2 * rows, 2 * columns))
        return lambda: block(x, text, times, rope)
    torch.set_default_dtype(dtype)
    model = WanTransformer3DModel(num_attention_heads=HEADS, num_layers=30, ffn_dim=FFN, in_channels=16, out_channels=16).eval()
    torch.set_default_dtype(torch.float32)
    keep_in_f32(model, WanTransformer3DModel)
    model.rope.__init__(DIM // HEADS, (1, 2, 2), 1024)
    x, text = torch.randn(1, 16, frames, 2 * rows, 2 * columns).to(dtype), torch.randn(1, TEXT, TEXT_DIM).to(dtype)
    return lambda: model(x, torch.tensor([500]), text, return_dict=False)[0]


def save_pipeline(folder):
    """Wan2.1's VAE, as part of a pipeline that is tiny otherwise."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    sys.path.insert(0, str(ROOT / "tools/demo"))
    from train import make_tokenizer

    text = UMT5EncoderModel(UMT5Config(vocab_size=128, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"))
    transformer = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=20, text_dim=24, freq_dim=16, ffn_dim=56, num_layers=1)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    WanPipeline(tokenizer=make_tokenizer(), text_encoder=text, vae=AutoencoderKLWan(), transformer=transformer, scheduler=scheduler).save_pretrained(folder)


def keep_in_f32(module, model):
    """What `from_pretrained` keeps in f32 whatever the dtype."""
    for name, parameter in module.named_parameters():
        if any(kept in name for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()


def time_torch(options):
    """Prints what one side of a round prints."""
    import torch

    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    run = torch_side(options.torch, options.tokens, options.grid, {"bf16": torch.bfloat16, "f32": torch.float32}[options.dtype])
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    run(), wait()
    runs = []
    for _ in range(options.runs):
        begun = time.perf_counter()
        run(), wait()
        runs.append(time.perf_counter() - begun)
    print(json.dumps({"median_seconds": statistics.median(runs)}))


def measured(command):
    """What a process printed, and its peak of memory in bytes."""
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return printed, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sd", metavar="ARGUMENTS")
    for name, kind in [("torch", str), ("tokens", int), ("dtype", str), ("runs", int), ("grid", json.loads)]:
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch:
        return time_torch(options)
    for name in options.parts or [*PARTS, "matmul-bf16", "attention-bf16", "attention-4096-bf16", "block-bf16", "forward-bf16", "vae-bf16"]:
        (part, size, runs), dtype = PARTS[name.removesuffix("-bf16")], "bf16" if name.endswith("-bf16") else "f32"
        sides = {"navicache": [], "PyTorch": []}
        common = ["--runs", runs, "--threads", options.threads, "--device", options.device]
        with tempfile.TemporaryDirectory() as folder:
            if part == "vae":
                frames, rows, columns = size
                save_pipeline(folder)
                asked = ["--model", folder, "--size", f"{8 * columns}x{8 * rows}", "--frames", 4 * frames - 3, "--dtype", dtype]
            else:
                asked = ["--tokens", size, "--dtype", dtype]
            for _ in range(options.rounds):
                printed, peak = measured([NAVICACHE, "bench", part, *common, *asked, "--json"])
                timing = json.loads(printed)
                sides["navicache"].append((timing["median_seconds"], peak))
                grid = size if part == "vae" else timing["grid"]
                theirs = ["--torch", part, *common, "--dtype", dtype, "--tokens", timing["tokens"], "--grid", json.dumps(grid)]
                printed, peak = measured([sys.executable, __file__, *theirs])
                sides["PyTorch"].append((json.loads(printed)["median_seconds"], peak))
        ratios = [ours / theirs for (ours, _), (theirs, _) in zip(*sides.values())]
        medians = [
            f"{side} {1e3 * statistics.median(time for time, _ in rounds):.0f} ms and {max(peak for _, peak in rounds) / 2**30:.2f} GiB"
            for side, rounds in sides.items()
        ]
        print(f"{name}: {', '.join(medians)}, ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    if options.sd:
        time_sd(options)


def time_sd(options):
    sd = shutil.which("sd") or sys.exit("--sd: there is no `sd` on the PATH; build stable-diffusion.cpp and put it there")
    arguments = shlex.split(options.sd)
    steps = int(arguments[arguments.index("--steps") + 1]) if "--steps" in arguments else sys.exit("--sd: say --steps N too")
    times = []
    for _ in range(options.rounds):
        printed, peak = measured([sd, *arguments, "-t", options.threads])
        taken = re.search(r"sampling completed, taking ([0-9.]+)\s*s", printed)
        times.append(float(taken[1]) / steps if taken else sys.exit("--sd: it did not say how long sampling took"))
    print(f"stable-diffusion.cpp: {statistics.median(times):.1f} s a step, {peak / 2**30:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
