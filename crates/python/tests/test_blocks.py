"""Methods that look into the blocks, on tiny pipelines: what they say ran is what ran."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny  # noqa: E402

from navicache import diffusers as nc  # noqa: E402
from navicache.blocks import modules_of  # noqa: E402

torch.set_num_threads(1)

METHODS = [
    "navicache,threshold=0.8,align_steps=3,process_noise=0.05,measurement_noise=0.05",
    "magcache:mid",
    "fbcache,threshold=0.8",
    "dicache:mid",
    "adacache:mid",
    "bwcache,threshold=0.8",
    "tafc:mid",
    "taylorseer:mid",
    "mixcache:mid",
    "seacache,threshold=0.8",
    "teacache:mid",
    "pab:mid",
    "fastercache:mid",
    "precisecache:mid",
    "dbcache:mid",
]
# Those that must run, and reuse something, on these pipelines.
RUN = {tiny.wan: 8, tiny.hunyuan: 8}


@pytest.mark.parametrize("make", [tiny.wan, tiny.hunyuan])
def test_what_is_reported_is_what_ran(make: Any) -> None:
    ran = 0
    for cache in METHODS:
        pipe = make()
        if nc.refused(pipe, cache) is not None:
            with pytest.raises(ValueError):
                nc.enable(pipe, cache)
            continue
        calls: list[int] = [0]
        for block in modules_of(pipe.transformer):
            block.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        with nc.cached(pipe, cache, guards="off") as session:
            latents = tiny.run(pipe, 24)
            report = session.report
        assert report is not None and report["ended"] == "done", (cache, report and report["warnings"])
        assert torch.isfinite(latents).all()
        parts = sum(stack["blocks"] * len(stack["parts"]) for stack in report["stacks"])
        blocks = sum(stack["blocks"] for stack in report["stacks"])
        if "precisecache" not in cache:  # its trial passes are not counted
            assert calls[0] == _blocks(report), cache
        units = report["totals"]["units_computed"] + report["totals"]["units_reused"]
        assert units == parts * (len(report.strip) - report.strip.count("|")) and blocks >= 4
        ran += report["totals"]["units_reused"] > 0
    assert ran >= RUN[make]


def _blocks(report: Any) -> int:
    """Blocks that a report says were computed: spans end where blocks do."""
    first = [0]
    for stack in report["stacks"]:
        for _ in range(stack["blocks"]):
            first.append(first[-1] + len(stack["parts"]))
    computed = 0
    for step in report["steps"]:
        for branch in step["branches"].values():
            units = branch.get("units") or ("S" if branch["decision"] == "compute" else ".") * first[-1]
            computed += sum(units[unit] == "S" for unit in first[:-1])
    return computed


@pytest.mark.parametrize("make", [tiny.wan, tiny.hunyuan])
@pytest.mark.parametrize("cache", ["fbcache,threshold=0", "magcache:mid,threshold=0", "bwcache:mid,threshold=0"])
def test_spans_with_everything_computed_are_the_plain_pipeline(make: Any, cache: str) -> None:
    pipe = make()
    expected = tiny.run(pipe, 10)
    with nc.cached(pipe, cache) as session:
        assert torch.equal(tiny.run(pipe, 10), expected)
        assert session.report is not None and set(session.report.strip) == {"S", "|"}
    assert torch.equal(tiny.run(pipe, 10), expected)
