"""Two doors to one method: the engine in Rust and a pipeline of diffusers, of one tiny model and one noise."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny  # noqa: E402

import navicache  # noqa: E402
from navicache import diffusers as nc  # noqa: E402

torch.set_num_threads(1)

PROMPT, NEGATIVE, STEPS, SEED = "a cat walks on grass", "blurry", 24, 3
NAVI = "navicache,align_steps=3,process_noise=0.05,measurement_noise=0.05"
CACHES = [
    NAVI + ",threshold=0.2",
    NAVI + ",threshold=0.2,reuse=linear",
    NAVI + ",threshold=0.2,reuse=corrected",
    NAVI + ",threshold=0.2,reuse=step_over",
    "easycache,threshold=0.2,warmup_steps=3",
    "trend:fast",
    "taylorseer:mid",
    "stride,threshold=0.02",
    "magcache:mid",
    "fbcache,threshold=0.2",
    "bwcache,threshold=0.2",
    "dicache:mid",
    "adacache:mid",
    "seacache,threshold=0.3",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("wan")
    tiny.save_wan(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Any) -> Any:
    from diffusers import WanPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_diffusers(pipe: Any, **more: Any) -> Any:
    given: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(SEED)
    return pipe(PROMPT, NEGATIVE, generator=generator, output_type="latent", **given, **more).frames


def by_engine(model: Any, cache: str) -> Any:
    given: Any = {"size": (64, 64), "frames": 9, "steps": STEPS, "guidance": 5.0, "seed": SEED}
    return navicache.generate(model, PROMPT, negative_prompt=NEGATIVE, cache=cache, guard="act", **given)


@pytest.mark.slow
def test_both_doors_decide_the_same(folder: Any, pipe: Any) -> None:
    model = navicache.Pipeline(folder)
    assert nc.family_of(pipe) == model.defaults["presets"]
    reusing = 0
    for cache in CACHES:
        if (reason := nc.refused(pipe, cache)) is not None:
            assert "seacache" in cache or "dicache" in cache or "adacache" in cache, (cache, reason)
            continue
        video = by_engine(model, cache)
        with nc.cached(pipe, cache) as session:
            latents = by_diffusers(pipe)
            report = session.report
        assert report is not None and report.strip == video.report.strip, cache
        error = (latents - torch.from_numpy(video.latents.copy())).abs().max() / latents.abs().max()
        assert error < 1e-3, (cache, float(error))
        for ours, theirs in zip(report["steps"], video.report["steps"], strict=True):
            for branch, of in ours["branches"].items():
                other = theirs["branches"][branch]
                assert of["units_computed"] == other["units_computed"] and of["seen"].keys() == other["seen"].keys()
                for name, value in of["seen"].items():
                    assert value == pytest.approx(other["seen"][name], rel=2e-3, abs=1e-6), (cache, ours["index"], name)
        reusing += report["totals"]["units_reused"] > 0
    assert reusing >= 8


@pytest.mark.slow
def test_traces_of_both_doors_are_one(folder: Any, pipe: Any, tmp_path: Any) -> None:
    path = tmp_path / "torch.jsonl"
    given: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(SEED)
    output = nc.trace(
        pipe, path, prompt=PROMPT, negative_prompt=NEGATIVE, generator=generator, output_type="latent", **given
    )
    assert torch.isfinite(output.frames).all()
    recorded = navicache.Trace.record(
        navicache.Pipeline(folder),
        PROMPT,
        negative_prompt=NEGATIVE,
        size=(64, 64),
        frames=9,
        steps=STEPS,
        guidance=5.0,
        seed=SEED,
    )
    recorded.save(tmp_path / "rust.jsonl")
    ours, theirs = ([json.loads(line) for line in open(tmp_path / name)] for name in ("torch.jsonl", "rust.jsonl"))
    # diffusers does not say which of our solvers its scheduler is, nor the guidance.
    assert "made" not in ours[0] and theirs[0]["made"] == {"guidance": 5.0, "solver": "unipc"}
    own = {"model": 0, "seed": 0, "made": 0}
    assert {**ours[0], **own} == {**theirs[0], **own}
    compared = 0
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        first = next(iter(mine["seen"].values()))
        for branch, seen in mine["seen"].items():
            for name, value in seen.items():
                # Differences of nearly equal tensors keep the rounding of what they are differences of.
                size = first["output_norm"] if "norm" in name or "distance" in name else first["output_magnitude"]
                assert abs(value - other["seen"][branch][name]) <= 1e-5 * max(size, value), (mine["step"], name)
                compared += 1
    assert compared > 4000
    # Both play the same.
    for cache in CACHES[:8]:
        strips = [
            [replay["strip"] for replay in navicache.replay(navicache.Trace.load(tmp_path / name), cache)]
            for name in ("torch.jsonl", "rust.jsonl")
        ]
        assert strips[0] == strips[1], cache
