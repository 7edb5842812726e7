"""What caching costs and saves on a GPU: a transformer of the size of Wan2.1 1.3B with random weights, under diffusers.

    python crates/python/benches/gpu.py OUT [PART ...] [--device cuda] [--seconds 60] [--small]

* overhead: steps with everything computed, with and without `enable`, alternating
* saved: the time of a run by the share that was computed, with diffusers' own caches on the same pipeline beside ours
* busy: how much of a step the GPU waits, by torch's profiler
* memory: what a method takes at its peak beyond the plain pipeline, and what its report says

Parts run in this order, as far as the seconds reach; OUT/PART.json has what was measured. Weights are random, and
most parts take 10 of the 30 layers, on latents long enough to keep the GPU busy: times and memory are those of such
sizes, pictures and the strips of presets are not. `--small` is for trying the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from navicache import _core
from navicache import diffusers as nc

# Every run is this long, unless said.
STEPS = 24
METHODS = [
    "navicache:mid",
    "easycache:mid",
    "trend:mid",
    "taylorseer:mid",
    "stride,threshold=0.05",
    "magcache:mid",
    "tafc:mid",
    "fbcache,threshold=0.1",
    "dbcache:mid",
    "dicache:mid",
    "adacache:mid",
    "bwcache:mid",
    "teacache:mid",
    "seacache:mid",
    "mixcache:mid",
    "pab:mid",
    "fastercache:mid",
    "precisecache:mid",
]


class Bench:
    """Where it runs, until when, and what came of it."""

    def __init__(self, device: str, seconds: float, small: bool, out: pathlib.Path) -> None:
        self.device, self.small, self.out = torch.device(device), small, out
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.end = time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.end

    def say(self, part: str, name: str, **numbers: Any) -> None:
        """A row of the table, kept as it comes."""
        self.rows.append({"part": part, "name": name, **numbers})
        line = "  ".join(f"{key}={_short(value)}" for key, value in numbers.items())
        print(f"{part:9} {name:44} {line}", flush=True)
        self.out.write_text(json.dumps(self.rows, indent=1) + "\n")

    def tried(self, part: str, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """One row; what fails stops no other."""
        if self.is_late:
            self.say(part, name, left_out="no time left")
            return None
        try:
            numbers = work()
        except Exception as error:
            traceback.print_exc()
            self.say(part, name, failed=f"{type(error).__name__}: {error}"[:300])
            return None
        self.say(part, name, **numbers)
        return numbers

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def took(self, work: Callable[[], Any]) -> float:
        """Seconds from an idle device to an idle device."""
        self.wait()
        begun = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begun

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes of the device at most, beyond those taken before."""
        if self.device.type != "cuda":
            work()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.wait()
        return int(torch.cuda.max_memory_allocated()) - before


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pipeline(bench: Bench, layers: int) -> WanPipeline:
    """Wan2.1 1.3B but for its number of layers, with weights from a seed and a velocity that changes slowly."""
    heads, dim, ffn, layers = (2, 16, 64, min(layers, 10)) if bench.small else (12, 128, 8960, layers)
    with bench.device:
        model = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=dim,
            ffn_dim=ffn,
            num_layers=layers,
            text_dim=32 if bench.small else 4096,
        )
        torch.manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2:
                    weight.normal_().div_(weight[0].numel() ** 0.5)
                elif "norm" in name and name.endswith("weight"):
                    weight.normal_(1, 0.1)
                else:
                    weight.normal_(0, 0.05)
            model.condition_embedder.time_embedder.linear_2.weight.mul_(0.1)
            model.condition_embedder.time_proj.weight.mul_(0.1)
            model.proj_out.weight.mul_(0.3)
    in_full = model._keep_in_fp32_modules or []  # as from_pretrained leaves them
    for name, weight in model.named_parameters():
        if not any(part in name.split(".") for part in in_full):
            weight.data = weight.data.to(bench.dtype)
    model.eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    empty: Any = None
    pipe = WanPipeline(tokenizer=empty, text_encoder=empty, vae=empty, transformer=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(bench: Bench, pipe: Any, frames: int, steps: int = STEPS, guidance: float = 5.0) -> Any:
    """Latents of 832 x 480 pixels, `frames` of latents long."""
    height, width, tokens = (64, 64, 8) if bench.small else (480, 832, 512)
    text = pipe.transformer.config.text_dim
    source = torch.Generator().manual_seed(1)
    positive, negative = (torch.randn((1, tokens, text), generator=source).to(bench.device, bench.dtype) for _ in range(2))
    latents = torch.randn((1, 16, frames, height // 8, width // 8), generator=source).to(bench.device)
    return pipe(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        latents=latents,
        height=height,
        width=width,
        num_frames=4 * (frames - 1) + 1,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).frames


@contextlib.contextmanager
def counted(pipe: Any) -> Iterator[dict[str, int]]:
    """How often the layers of a block in the middle run."""
    block = pipe.transformer.blocks[len(pipe.transformer.blocks) // 2]
    counts = {"attention": 0, "feed_forward": 0}
    hooks = []
    for name, layer in (("attention", block.attn1.to_q), ("feed_forward", block.ffn)):

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        hooks.append(layer.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def overhead(bench: Bench, pipe: Any, frames: int, steps: int, rounds: int, guidance: float) -> None:
    """A step with everything computed, plain and enabled in turns: the median of what each pair differs by."""
    # The second reads a number back at all steps but the first two and the last; the third adds up the solver's latents.
    caches = [
        "taylorseer,interval=1,order=1,warmup_steps=2,level=output",
        "navicache:mid,threshold=0,align_steps=2",
        "stride,threshold=0",
    ]

    def step() -> float:
        return 1e3 * bench.took(lambda: run(bench, pipe, frames, steps, guidance)) / steps

    def measured() -> dict[str, Any]:
        plain: list[float] = []
        added: dict[str, list[float]] = {cache: [] for cache in caches}
        step()
        for _ in range(rounds):
            for cache in caches:
                plain.append(step())
                with nc.cached(pipe, cache, on_problem="quiet"):
                    added[cache].append(step() - plain[-1])
        median = statistics.median(plain)
        found: dict[str, Any] = {"plain_ms_a_step": median, "from_ms": min(plain), "to_ms": max(plain)}
        for cache, differences in added.items():
            name = cache.split(":")[0].split(",")[0]
            found[f"{name}_adds_ms"] = statistics.median(differences)
            found[f"{name}_adds_percent"] = 100 * statistics.median(differences) / median
        return found

    bench.tried("overhead", f"{size(pipe, frames)}, guidance {guidance:g}", measured)


def size(pipe: Any, frames: int) -> str:
    """Of a model and its latents, in words."""
    return f"{len(pipe.transformer.blocks)} layers, {frames} latent frames"


def saved(bench: Bench, pipe: Any, frames: int) -> None:
    """Runs under methods of ours and of diffusers, by what they computed."""
    first = bench.took(lambda: run(bench, pipe, frames))
    with counted(pipe) as counts:
        plain = min(first, bench.took(lambda: run(bench, pipe, frames)))
        of_plain = dict(counts)
    bench.say("saved", f"plain, {size(pipe, frames)}", seconds=plain, first_seconds=first)

    def compared(seconds: float, ran: dict[str, int], peak: int) -> dict[str, Any]:
        shares = {f"{name}_share": count / of_plain[name] for name, count in ran.items()}
        rest = (seconds / plain - ran["attention"] / of_plain["attention"]) * plain
        return {"seconds": seconds, "speedup": plain / seconds, **shares, "beyond_share_ms": 1e3 * rest, "peak_MB": peak / 1e6}

    half = "|".join(["SS"] * 4 + ["..", "SS"] * ((STEPS - 6) // 2) + ["SS", "SS"]) + "|"
    third = "|".join(["SS"] * 3 + ["..", "..", "SS"] * ((STEPS - 3) // 3)) + "|"

    def ours(name: str, cache: str, target: str | None = None) -> None:
        def measured() -> dict[str, Any]:
            # Guards stay off: they compute where random weights frighten them.
            options: Any = {"on_problem": "quiet", "guards": "off", "memory": "20GiB", "target": target}
            with nc.cached(pipe, cache, **options) as session, counted(pipe) as counts:
                seconds: list[float] = []
                peak = bench.peak(lambda: seconds.append(bench.took(lambda: run(bench, pipe, frames))))
                numbers = compared(seconds[0], dict(counts), peak)
                assert session.report is not None
                return {**numbers, "strip": session.report.strip, "ended": session.report["ended"]}

        bench.tried("saved", name, measured)

    def theirs(name: str, config: Any) -> None:
        def measured() -> dict[str, Any]:
            pipe.transformer.enable_cache(config)
            try:
                with counted(pipe) as counts:
                    seconds: list[float] = []
                    peak = bench.peak(lambda: seconds.append(bench.took(lambda: run(bench, pipe, frames))))
                    return compared(seconds[0], dict(counts), peak)
            finally:
                pipe.transformer.disable_cache()

        bench.tried("saved", f"diffusers' {name}", measured)

    ours("schedule, every third", f"schedule,strip={third}")
    ours("schedule, every third, by the solver", f"schedule,strip={third},reuse=corrected")
    ours("taylorseer, every third", "taylorseer,interval=3,order=1,warmup_steps=3,level=output")
    ours("magcache:mid", "magcache:mid")
    ours("fbcache,threshold=0.1", "fbcache,threshold=0.1")
    ours("pab:mid", "pab:mid")
    for name, config in peers(pipe):
        theirs(name, config)
    ours("navicache:mid, target speedup=2", "navicache:mid", "speedup=2")
    ours("easycache:mid, target speedup=2", "easycache:mid", "speedup=2")
    ours("stride,threshold=0.05", "stride,threshold=0.05")
    ours("schedule, every second", f"schedule,strip={half}")
    ours("navicache:mid", "navicache:mid")


def peers(pipe: Any) -> list[tuple[str, Any]]:
    """diffusers' own caches, each so that it reuses as often as its rule allows."""
    import diffusers as d

    def now() -> int:
        return int(pipe.current_timestep)

    return [
        (
            "TaylorSeer of layers, interval 3",
            d.TaylorSeerCacheConfig(
                cache_interval=3,
                disable_cache_before_step=3,
                max_order=1,
                cache_identifiers=["blocks[.][0-9]+[.](attn1|attn2|ffn)"],  # its own patterns match none of Wan's
            ),
        ),
        (
            "TaylorSeer lite, interval 3",
            d.TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=3, max_order=1, use_lite_mode=True),
        ),
        (
            "MagCache, at most 2 in a row",
            d.MagCacheConfig(
                threshold=1e9, max_skip_steps=2, retention_ratio=3 / STEPS, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
            ),
        ),
        ("FirstBlockCache, everything", d.FirstBlockCacheConfig(threshold=1e9)),
        (
            "PyramidAttentionBroadcast, 2 and 3",
            d.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                cross_attention_block_skip_range=3,
                spatial_attention_timestep_skip_range=(100, 930),
                cross_attention_timestep_skip_range=(100, 930),
                current_timestep_callback=now,
            ),
        ),
    ]


def memory(bench: Bench, pipe: Any, frames: int) -> None:
    """What every method takes at its peak, beyond the plain pipeline."""
    run(bench, pipe, frames, 4)
    plain = bench.peak(lambda: run(bench, pipe, frames, 12))
    bench.say("memory", f"plain, {size(pipe, frames)}", peak_MB=plain / 1e6)
    for cache in METHODS:

        def taken(cache: str = cache) -> dict[str, Any]:
            with nc.cached(pipe, cache, on_problem="quiet", guards="off", memory="20GiB") as session:
                seconds: list[float] = []
                peak = bench.peak(lambda: seconds.append(bench.took(lambda: run(bench, pipe, frames, 12))))
                assert session.report is not None
                totals = session.report["totals"]
                added, said = (peak - plain) / 1e6, totals["store_bytes"] / 1e6
                shares = totals["units_reused"] / max(1, totals["units_reused"] + totals["units_computed"])
                return {"added_MB": added, "said_MB": said, "seconds": seconds[0], "reused": shares, "ended": session.report["ended"]}

        bench.tried("memory", cache, taken)


def busy(bench: Bench, pipe: Any, frames: int) -> None:
    """How long the GPU waits in a run, plain and enabled, and how often the host waits for it."""
    from torch.profiler import ProfilerActivity, profile

    if bench.device.type != "cuda":
        return
    for cache in ("", "easycache,threshold=0,warmup_steps=1", "stride,threshold=0.05"):

        def profiled(cache: str = cache) -> dict[str, Any]:
            around = nc.cached(pipe, cache, on_problem="quiet", guards="off") if cache else contextlib.nullcontext()
            with around:
                run(bench, pipe, frames, 4)
                with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                    run(bench, pipe, frames, 5)
                    bench.wait()
            on_gpu = [
                (event.time_range.start, event.time_range.end)
                for event in profiler.events()
                if event.device_type == torch.autograd.DeviceType.CUDA
            ]
            on_gpu.sort()
            waited, until = 0.0, on_gpu[0][1]
            for start, end in on_gpu:
                waited, until = waited + max(0.0, start - until), max(until, end)
            names = [event.name for event in profiler.events()]
            return {
                "span_ms": (until - on_gpu[0][0]) / 1e3,
                "gpu_waits_ms": waited / 1e3,
                "cudaStreamSynchronize": names.count("cudaStreamSynchronize"),
                "cudaMemcpyAsync": names.count("cudaMemcpyAsync"),
                "local_scalar_dense": names.count("aten::_local_scalar_dense"),
            }

        bench.tried("busy", f"{cache or 'plain'}, 5 steps", profiled)


PARTS = ("overhead", "saved", "busy", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("parts", nargs="*", default=PARTS, help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.device, given.seconds, given.small, given.out / f"{given.parts[0]}.json")
    import diffusers

    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    bench.say("machine", name, torch=torch.__version__, diffusers=diffusers.__version__, navicache=_core.__version__)
    few = pipeline(bench, layers=10)
    run(bench, few, 5, 2)
    if "overhead" in given.parts:
        overhead(bench, few, frames=5, steps=8, rounds=2, guidance=5.0)
    if "saved" in given.parts:
        saved(bench, few, frames=5)
    if "busy" in given.parts:
        busy(bench, few, frames=5)
    if "overhead" in given.parts:
        overhead(bench, pipeline(bench, layers=30), frames=21, steps=3, rounds=1, guidance=1.0)
    if "memory" in given.parts:
        memory(bench, few, frames=5)


main()
