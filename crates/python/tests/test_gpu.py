"""What only a GPU shows: read-backs, streams, number formats, CUDA graphs, memory, and the strips that a CPU makes.

    NAVICACHE_TEST_DEVICE=cuda pytest tests/test_gpu.py
"""

from __future__ import annotations

import gc
import pathlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny  # noqa: E402

from navicache import diffusers as nc  # noqa: E402
from navicache import measure  # noqa: E402

pytestmark = pytest.mark.skipif(tiny.DEVICE.type != "cuda", reason="NAVICACHE_TEST_DEVICE is not a GPU")

STEPS = "easycache,threshold=0.8,warmup_steps=3"
NAVI = "navicache,align_steps=3,process_noise=0.05,measurement_noise=0.05"
TAYLOR = "taylorseer,interval=3,order=1,warmup_steps=3,level=output"
# With everything computed, each in its own way.
NOTHING = [
    NAVI + ",threshold=0",
    "easycache,threshold=0,warmup_steps=3",
    "trend,threshold=0,warmup_steps=3",
    "taylorseer,interval=1,order=1,warmup_steps=3,level=output",
    "stride,threshold=0",
    "fbcache,threshold=0",
    "bwcache,threshold=0,run=0.2",
    "pab,self_range=1,cross_range=1",
]
# One of every way to decide, with something to reuse.
METHODS = [
    NAVI + ",threshold=0.8",
    STEPS,
    "trend:fast",
    TAYLOR,
    "stride,threshold=2",
    "magcache:mid",
    "fbcache,threshold=0.8",
    "dbcache:mid,first_blocks=1,last_blocks=1",
    "dicache:mid",
    "adacache:mid",
    "bwcache,threshold=0.8,run=0.2",
    "tafc:mid",
    "teacache:mid",
    "seacache,threshold=0.8",
    "mixcache:mid",
    "pab:mid",
    "fastercache:mid",
    "precisecache:mid",
]


@contextmanager
def on(device: str) -> Iterator[None]:
    """Tiny pipelines are made on this device."""
    before, tiny.DEVICE = tiny.DEVICE, torch.device(device)
    try:
        yield
    finally:
        tiny.DEVICE = before


def cached(pipe: Any, cache: str, steps: int = 24, guidance: float = 5.0, **options: Any) -> tuple[Any, Any]:
    with nc.cached(pipe, cache, guards="off", **options) as session:
        latents = tiny.run(pipe, steps, guidance)
        assert session.report is not None and session.report["ended"] == "done", (cache, session.report)
        return latents, session.report


def units(report: Any) -> list[Any]:
    return [[branch.get("units") for branch in step["branches"].values()] for step in report["steps"]]


# Decisions


@pytest.mark.parametrize("make", [tiny.wan, tiny.hunyuan, tiny.cogvideox, tiny.ltx, tiny.mochi, tiny.flux, tiny.qwen])
def test_strips_are_those_of_the_cpu(make: Any) -> None:
    reusing = 0
    for cache in METHODS:
        if nc.refused(make(), cache) is not None:
            continue
        with on("cpu"):
            expected, of_cpu = cached(make(), cache)
        found, of_gpu = cached(make(), cache)
        assert of_gpu.strip == of_cpu.strip and units(of_gpu) == units(of_cpu), cache
        error = (found.cpu() - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, (cache, float(error))
        reusing += of_gpu["totals"]["units_reused"] > 0
    assert reusing >= 4


# T2, in the formats that a GPU is for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [tiny.wan, tiny.hunyuan])
def test_nothing_reused_is_the_plain_pipeline(make: Any, dtype: Any) -> None:
    pipe = make()
    pipe.transformer.to(dtype)
    expected = tiny.run(pipe, 12)
    assert torch.equal(tiny.run(pipe, 12), expected), "the plain pipeline is not deterministic"
    for cache in NOTHING:
        if nc.refused(pipe, cache) is None:
            assert torch.equal(cached(pipe, cache, 12)[0], expected), cache


def test_nothing_reused_under_autocast() -> None:
    pipe = tiny.wan()
    with torch.autocast("cuda", torch.bfloat16):
        expected = tiny.run(pipe, 12)
        for cache in NOTHING:
            assert torch.equal(cached(pipe, cache, 12)[0], expected), cache


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decisions_do_not_hang_on_the_format(dtype: Any) -> None:
    for cache in (NAVI + ",threshold=0.8", STEPS):
        expected = cached(tiny.wan(), cache)[1].strip
        pipe = tiny.wan()
        pipe.transformer.to(dtype)
        found = cached(pipe, cache)[1].strip
        differing = sum(a != b for a, b in zip(found.split("|"), expected.split("|"), strict=True))
        assert differing <= 1, (cache, found, expected)


@pytest.mark.parametrize("keep", ["f32", "model"])
def test_what_waits_in_the_memory_of_the_cpu_changes_no_bit(keep: Any) -> None:
    for cache in METHODS:
        made = []
        for keep_on in ("device", "cpu"):
            pipe = tiny.wan()
            pipe.transformer.to(torch.bfloat16)
            made.append(cached(pipe, cache, keep=keep, keep_on=keep_on)[0])
        assert torch.equal(*made), cache


# T11


def waits(pipe: Any, cache: str, guards: Any) -> tuple[list[int], Any]:
    """How often we waited for the device: at the steps that ran, and at the last after them all."""
    counts: list[int] = []

    def ours() -> int:
        places = [pathlib.Path(w.filename).parent for w in caught if "synchronizing" in str(w.message)]
        return places.count(pathlib.Path(measure.__file__).parent)

    def step_ended(*_: Any) -> dict[str, Any]:
        counts.append(ours() - sum(counts))
        return {}

    with nc.cached(pipe, cache, guards=guards) as session, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            tiny.run(pipe, 20, callback_on_step_end=step_ended)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(ours() - sum(counts))
        return counts, session.report


@pytest.mark.parametrize("cache", METHODS)
def test_at_most_one_wait_a_decision(cache: str) -> None:
    """One a step; of methods that decide within a forward, one a branch, and one for the guards."""
    counts, report = waits(tiny.wan(), cache, "act")
    assert report["ended"] == "done"
    is_of_steps = cache.startswith(("navicache", "easycache", "trend", "taylorseer", "stride", "precisecache"))
    most = 1 if is_of_steps else 3
    # As the run begins: its timesteps. Where parts of blocks are run: once, whether they make up the whole.
    assert counts[0] <= 2 + most and all(count <= most for count in counts[1:-1]), counts


@pytest.mark.parametrize("cache", [TAYLOR, "magcache:mid", "pab:mid"])
def test_what_measures_nothing_waits_for_nothing(cache: str) -> None:
    counts, report = waits(tiny.wan(), cache, "off")
    assert report["totals"]["units_reused"] > 0 and sum(counts[1:-1]) == 0, counts


def test_nothing_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on, with every wait but our one read an error. HunyuanVideo's own loop waits for nothing."""
    read = measure.read

    def allowed(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        numbers = read(*given)
        torch.cuda.set_sync_debug_mode("error")
        return numbers

    def watched(_: Any, step: int, *__: Any) -> dict[str, Any]:
        is_watched = step < 17
        torch.cuda.set_sync_debug_mode("error" if is_watched else "default")
        monkeypatch.setattr(measure, "read", allowed if is_watched else read)
        return {}

    def run(pipe: Any) -> None:
        try:
            tiny.run(pipe, 20, callback_on_step_end=watched)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            monkeypatch.setattr(measure, "read", read)

    run(tiny.hunyuan())
    for cache in METHODS:
        pipe = tiny.hunyuan()
        if nc.refused(pipe, cache) is None:
            with nc.cached(pipe, cache, guards="off") as session:
                run(pipe)
                assert session.report is not None and session.report["ended"] == "done", (cache, session.report)


# T9, with code that is made


def graphs_of(run: Any) -> tuple[int, int]:
    """Graphs that were made, and breaks between them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run()
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_transformers(mode: str) -> None:
    expected, report = cached(tiny.wan(), STEPS, 12, 1.0)
    pipe = tiny.wan()
    pipe.transformer.compile(fullgraph=True, mode=mode)
    strips, made = [], []

    def twice() -> None:
        for _ in range(2):
            latents, of_run = cached(pipe, STEPS, 12, 1.0)
            strips.append(of_run.strip)
            made.append(latents)

    assert graphs_of(twice) == (1, 0)
    assert strips == [report.strip] * 2 and "." in report.strip
    assert torch.equal(*made) and torch.allclose(made[0], expected, atol=1e-3, rtol=1e-3)


def test_cuda_graphs_with_two_branches() -> None:
    """A graph's output is written over by the next replay: so it is with the plain pipeline, if anywhere."""

    def compiled() -> Any:
        pipe = tiny.wan()
        pipe.transformer.compile(fullgraph=True, mode="reduce-overhead")
        return pipe

    try:
        plain = tiny.run(compiled(), 12)
    except RuntimeError as error:
        assert "overwritten" in str(error)
        pytest.skip("the plain pipeline cannot do it either: cond is written over by uncond")
    assert torch.equal(cached(compiled(), NOTHING[0], 12)[0], plain)
    strip = cached(tiny.wan(), STEPS, 12)[1].strip
    assert cached(compiled(), STEPS, 12)[1].strip == strip


@pytest.mark.parametrize("cache", ["fbcache,threshold=0.8", "magcache:mid"])
def test_blocks_that_are_compiled_one_by_one(cache: str) -> None:
    expected, report = cached(tiny.wan(), cache, 12)
    pipe = tiny.wan()
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    made: list[Any] = []
    assert graphs_of(lambda: made.extend(cached(pipe, cache, 12))) == (1, 0)
    assert made[1].strip == report.strip and torch.allclose(made[0], expected, atol=1e-3, rtol=1e-3)


def test_enabled_after_a_compiled_run_is_one_graph_more() -> None:
    """The object has another class then, and had its first before: each class has a graph."""
    pipe = tiny.wan()
    pipe.transformer.compile(fullgraph=True)

    def both() -> None:
        expected = tiny.run(pipe, 6)
        assert torch.equal(cached(pipe, NOTHING[1], 6)[0], expected)
        assert torch.equal(tiny.run(pipe, 6), expected)

    assert graphs_of(both) == (2, 0)


# T10, with something to bring


@pytest.mark.parametrize("cache", [STEPS, "fbcache,threshold=0.8", "stride,threshold=2"])
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("experts", [1, 2])
def test_weights_that_wait_in_the_memory_of_the_cpu(cache: str, how: str, experts: int) -> None:
    pytest.importorskip("accelerate")
    expected, report = cached(tiny.wan(experts=experts), cache)

    def on_the_cpu() -> Any:
        with on("cpu"):
            return tiny.wan(experts=experts)

    plain, pipe = on_the_cpu(), on_the_cpu()
    try:
        getattr(plain, how)(device=tiny.DEVICE)
        tiny.run(plain, 1)
    except TypeError as error:  # accelerate 1.15 makes a parameter of Wan's buffers
        pytest.skip(f"the plain pipeline cannot do it: {error}"[:80])
    session = nc.enable(pipe, cache, guards="off")
    getattr(pipe, how)(device=tiny.DEVICE)
    for _ in range(2):
        assert torch.equal(tiny.run(pipe, 24), expected)
        assert session.report is not None and session.report.strip == report.strip


# Streams and threads


def test_two_pipelines_in_two_threads_on_streams_of_their_own() -> None:
    caches = [STEPS, "fbcache,threshold=0.8"]
    expected = [cached(tiny.wan(seed=seed), caches[seed])[0] for seed in range(2)]
    found: list[Any] = [None, None]

    def make(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            pipe = tiny.wan(seed=seed)
            found[seed] = [cached(pipe, caches[seed], keep_on=keep_on)[0] for keep_on in ("device", "cpu", "device")]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        assert found[seed] is not None and all(torch.equal(latents, expected[seed]) for latents in found[seed])


# T4


@pytest.mark.parametrize("cache", [STEPS, "fbcache,threshold=0.8", "pab:mid", "stride,threshold=2"])
def test_runs_that_fail_leave_no_memory_taken(cache: str) -> None:
    pipe = tiny.wan()
    nc.enable(pipe, cache, guards="off")

    class Broken(Exception):
        """Raised on the way."""

    def fails(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 9:
            raise Broken
        return {}

    def taken() -> int:
        tiny.run(pipe, 12)
        gc.collect()
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())

    taken()  # what libraries keep is there from now on
    before = taken()
    for _ in range(20):
        with pytest.raises(Broken):
            tiny.run(pipe, 12, callback_on_step_end=fails)
    assert taken() == before
