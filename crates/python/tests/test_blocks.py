"""Methods that look into the blocks, on tiny pipelines: what they say ran is what ran."""

from __future__ import annotations

import functools
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny  # noqa: E402

from navicache import diffusers as nc  # noqa: E402
from navicache.blocks import modules_of  # noqa: E402

torch.set_num_threads(1)

PARTS = ["pab,self_range=2,cross_range=3", "pab,self_range=3,cross_range=5,temporal_range=2,warmup=0.2,tail=0.1"]
METHODS = [
    "navicache,threshold=0.8,align_steps=3,process_noise=0.05,measurement_noise=0.05",
    "magcache:mid",
    "fbcache,threshold=0.8",
    "dicache:mid",
    "adacache:mid",
    "bwcache,threshold=0.8,run=0.2",
    "tafc:mid",
    "taylorseer:mid",
    "mixcache:mid",
    "seacache,threshold=0.8",
    "teacache:mid",
    "pab:mid",
    "fastercache:mid",
    "precisecache:mid",
    "dbcache:mid",
    "easycache,threshold=0.8,warmup_steps=3",
    "taylorseer,interval=3,order=1,warmup_steps=3,level=output",
    *PARTS,
]
IN_PARTS = [tiny.wan, tiny.hunyuan, tiny.cogvideox, tiny.ltx, tiny.mochi]
MAKES = [*IN_PARTS, tiny.flux, tiny.qwen]
# Those that must run, and reuse something, on these pipelines.
RUN = {tiny.wan: 12, tiny.hunyuan: 12, tiny.cogvideox: 8, tiny.ltx: 5, tiny.mochi: 5, tiny.flux: 5, tiny.qwen: 5}
# A layer of each part of a block, in the order of the parts.
LAYERS = {
    "WanTransformerBlock": ("attn1", "attn2", "ffn"),
    "HunyuanVideoTransformerBlock": ("attn", "ff"),
    "HunyuanVideoSingleTransformerBlock": ("attn",),
    "CogVideoXBlock": ("attn1", "ff"),
    "LTXVideoTransformerBlock": ("attn1", "attn2", "ff"),
    "MochiTransformerBlock": ("attn1", "ff"),
    "FluxTransformerBlock": ("attn",),
    "FluxSingleTransformerBlock": ("attn",),
    "QwenImageTransformerBlock": ("attn",),
}


def layers_of(transformer: Any) -> list[Any]:
    """A layer of every unit."""
    return [getattr(block, name) for block in modules_of(transformer) for name in LAYERS[type(block).__name__]]


@pytest.mark.parametrize("make", MAKES)
def test_what_is_reported_is_what_ran(make: Any) -> None:
    ran = []
    for cache in METHODS:
        pipe = make()
        if nc.refused(pipe, cache) is not None:
            with pytest.raises(ValueError):
                nc.enable(pipe, cache)
            continue
        layers = layers_of(pipe.transformer)
        calls = [0] * len(layers)
        for unit, layer in enumerate(layers):
            layer.register_forward_hook(lambda *_, unit=unit: calls.__setitem__(unit, calls[unit] + 1))
        with nc.cached(pipe, cache, guards="off") as session:
            latents = tiny.run(pipe, 24)
            report = session.report
        assert report is not None and report["ended"] == "done", (cache, report and report["warnings"])
        assert torch.isfinite(latents).all()
        if "precisecache" not in cache:  # its trial passes are not counted
            first = LAYERS[type(modules_of(pipe.transformer)[0]).__name__]
            checked = len(first) if cache.startswith(("pab", "fastercache")) else 0  # runs once more, as a whole
            assert calls == [n + (unit < checked) for unit, n in enumerate(_units(report, len(layers)))], cache
        units = report["totals"]["units_computed"] + report["totals"]["units_reused"]
        assert units == len(layers) * (len(report.strip) - report.strip.count("|"))
        ran += [cache] if report["totals"]["units_reused"] > 0 else []
    assert len(ran) >= RUN[make], ran


def _units(report: Any, count: int) -> list[int]:
    """How often each unit was computed, by a report."""
    computed = [0] * count
    for step in report["steps"]:
        for branch in step["branches"].values():
            units = branch.get("units") or ("S" if branch["decision"] == "compute" else ".") * count
            for unit, ran in enumerate(units):
                computed[unit] += ran == "S"
    return computed


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("cache", ["fbcache,threshold=0", "bwcache,threshold=0,run=0.2", "pab,self_range=1,cross_range=1"])
def test_spans_with_everything_computed_are_the_plain_pipeline(make: Any, cache: str) -> None:
    pipe = make()
    if make not in IN_PARTS and cache.startswith("pab"):
        assert "no attention of their own" in str(nc.refused(pipe, cache))
        return
    expected = tiny.run(pipe, 10)
    with nc.cached(pipe, cache) as session:
        assert torch.equal(tiny.run(pipe, 10), expected)
        assert session.report is not None and set(session.report.strip) == {"S", "|"}
    assert torch.equal(tiny.run(pipe, 10), expected)


@pytest.mark.parametrize("make", IN_PARTS)
def test_parts_of_blocks_make_up_the_block(make: Any) -> None:
    """Run part by part, a pipeline is the plain one in every bit; one whose blocks do more is given up."""
    pipe = make()
    expected = tiny.run(pipe, 6)
    kind = type(modules_of(pipe.transformer)[0])
    with nc.cached(pipe, "pab,self_range=1,cross_range=1") as session:
        assert torch.equal(tiny.run(pipe, 6), expected)
        assert session.report is not None and session.report["ended"] == "done"
    plain = kind.forward

    def more(block: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(block, *args, **kwargs)
        return tuple(1.2 * t for t in output) if isinstance(output, tuple) else 1.2 * output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", functools.wraps(plain)(more))
        expected = tiny.run(pipe, 6)
        with nc.cached(pipe, "pab,self_range=2,cross_range=2") as session:
            assert torch.equal(tiny.run(pipe, 6), expected)
            report = session.report
        assert report is not None and report["ended"] == "failed"
        assert "is not made of the parts that are known of it" in str(report["warnings"])


def test_what_is_hooked_into_blocks_is_not_passed_by() -> None:
    pipe = tiny.wan()
    block = pipe.transformer.blocks[1]
    block.forward = functools.partial(type(block).forward, block)  # as accelerate does
    expected = tiny.run(pipe, 6)
    with nc.cached(pipe, "pab,self_range=2,cross_range=2") as session:
        assert torch.equal(tiny.run(pipe, 6), expected)
        assert session.report is None and session._run is not None
        assert "something is hooked into the blocks" in str(session._run.warnings)


def test_a_problem_inside_of_a_forward_leaves_it_to_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    from navicache.blocks import Spans

    def fails(*_: Any) -> Any:
        raise RuntimeError("the subject failed")

    pipe = tiny.wan()
    expected = tiny.run(pipe, 6)
    monkeypatch.setattr(Spans, "subject", fails)
    with nc.cached(pipe, "fbcache,threshold=0.8", guards="off") as session:
        assert torch.equal(tiny.run(pipe, 6), expected)
        assert session.report is not None and "the subject failed" in str(session.report["warnings"])


@pytest.mark.parametrize("cache", ["fbcache,threshold=0.8", "magcache:mid"])
def test_blocks_that_are_compiled_one_by_one(cache: str) -> None:
    eager = tiny.wan()
    with nc.cached(eager, cache, guards="off") as session:
        expected = tiny.run(eager, 12)
        strip = session.report.strip  # type: ignore[union-attr]
    graphs = tiny.Graphs()
    pipe = tiny.wan()
    pipe.transformer.compile_repeated_blocks(backend=graphs.backend, fullgraph=True)
    nc.enable(pipe, cache, guards="off")
    for _ in range(2):
        assert torch.equal(tiny.run(pipe, 12), expected)
        assert nc.report(pipe).strip == strip  # type: ignore[union-attr]
    assert len(graphs) == 1 and "m" in strip or "." in strip
    nc.disable(pipe)
    # A transformer that is compiled as a whole has no blocks to look into.
    for whole in (True, False):
        pipe = tiny.wan()
        if whole:
            pipe.transformer = torch.compile(pipe.transformer, backend=graphs.backend)
        else:
            pipe.transformer.compile(backend=graphs.backend)
        with nc.cached(pipe, cache, on_problem="error"), pytest.raises(ValueError, match="compile_repeated_blocks"):
            tiny.run(pipe, 12)
