"""The adapter on tiny pipelines: decisions, nothing left behind, nothing in the way."""

from __future__ import annotations

import copy
import gc
import logging
import os
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import published  # noqa: E402
import tiny  # noqa: E402

from navicache import diffusers as nc  # noqa: E402
from navicache.blocks import layout_of  # noqa: E402

torch.set_num_threads(1)

WHOLE_STEPS = ["navicache", "easycache", "trend", "taylorseer", "stride"]


def free(method: str, threshold: float, first: int = 3) -> str:
    """A method with a threshold and few steps that are computed in any case."""
    name = {"easycache": "warmup_steps", "navicache": "align_steps"}[method]
    noise = ",process_noise=0.05,measurement_noise=0.05" if method == "navicache" else ""
    return f"{method},threshold={threshold},{name}={first}{noise}"


def reused(strip: str) -> float:
    """The share of forwards that were reused."""
    return strip.count(".") / (len(strip) - strip.count("|"))


# T1


@pytest.mark.parametrize("method", ["easycache", "navicache"])
@pytest.mark.parametrize(
    "make, guidance",
    [
        (tiny.wan, 5.0),
        (tiny.wan, 1.0),
        (tiny.hunyuan, 5.0),
        (tiny.cogvideox, 5.0),
        (tiny.flux, 1.0),
        (tiny.flux, 4.0),
        (tiny.qwen, 4.0),
    ],
)
def test_decisions_and_latents_are_those_of_the_published_rules(method: str, make: Any, guidance: float) -> None:
    steps, shares = 24, []
    branches = 2 if make in (tiny.wan, tiny.flux, tiny.qwen) and guidance > 1 else 1
    for threshold in (0.0, 0.3, 0.8, 2.0):
        reference = make()
        rule = published.Published(
            reference.transformer, method, threshold, 3, steps, branches, is_batched=make is tiny.cogvideox
        )
        expected = tiny.run(reference, steps, guidance)
        pipe = make()
        with nc.cached(pipe, free(method, threshold), guards="off") as session:
            found = tiny.run(pipe, steps, guidance)
            report = session.report
        assert report is not None and report.strip == rule.strip, threshold
        assert report["ended"] == "done"
        assert torch.equal(found, expected), threshold
        shares.append(reused(report.strip))
        assert report.seconds_saved is not None and report.speedup is not None
        if shares[-1] > 0.3:
            assert report.seconds_saved > 0 and report.speedup > 1
    # Where nothing is reused nothing is shown.
    assert shares[0] == 0 and sum(share > 0.3 for share in shares) >= 2, shares


# T2


@pytest.mark.parametrize("make", [tiny.wan, tiny.hunyuan, tiny.cogvideox, tiny.flux, tiny.qwen])
def test_a_threshold_of_zero_is_the_plain_pipeline(make: Any) -> None:
    pipe = make()
    expected = tiny.run(pipe, 12)
    for cache in [
        free("navicache", 0),
        free("easycache", 0),
        "trend,threshold=0,warmup_steps=3",
        "taylorseer,interval=1,order=1,warmup_steps=3,level=output",
        "stride,threshold=0,warmup_steps=3,reuse=corrected",
        "navicache,threshold=0,align_steps=3,process_noise=0.05,measurement_noise=0.05,reuse=corrected",
    ]:
        if nc.refused(pipe, cache) is not None:
            assert make is tiny.cogvideox and ("stride" in cache or "corrected" in cache), cache
            continue
        with nc.cached(pipe, cache) as session:
            assert torch.equal(tiny.run(pipe, 12), expected), cache
            report = session.report
            assert report is not None and "." not in report.strip and report.strip.count("|") == 12, cache
    assert torch.equal(tiny.run(pipe, 12), expected)


# T14


@pytest.mark.parametrize("make, guidance", [(tiny.wan, 5.0), (tiny.hunyuan, 5.0), (tiny.cogvideox, 5.0)])
@pytest.mark.parametrize("batch", ["any", "joint"])
def test_several_prompts_of_a_batch(make: Any, guidance: float, batch: Any) -> None:
    """`any`: what is reused is what the rule of each prompt reuses. `joint`: one rule sees the mean over them."""
    steps, strips = 24, []
    for threshold in (0.3, 0.8, 2.0):
        reference = make()
        rule = published.Published(
            reference.transformer,
            "easycache",
            threshold,
            3,
            steps,
            2 if make is tiny.wan else 1,
            is_batched=make is tiny.cogvideox,
            samples=2 if batch == "any" else 1,
        )
        expected = tiny.run(reference, steps, guidance, batch=2)
        pipe = make()
        with nc.cached(pipe, free("easycache", threshold), guards="off", batch=batch) as session:
            found = tiny.run(pipe, steps, guidance, batch=2)
            report = session.report
        assert report is not None and report.strip == rule.strip, threshold
        assert torch.equal(found, expected), threshold
        strips.append(report.strip)
    assert max(reused(strip) for strip in strips) > 0.3, strips


def test_a_prompt_in_company_is_reused_no_more_than_alone() -> None:
    def run(cache: str, **options: Any) -> Any:
        pipe = tiny.wan()
        with nc.cached(pipe, cache, guards="off") as session:
            latents = tiny.run(pipe, 24, **options)
            assert session.report is not None
            return latents, session.report

    cache = free("navicache", 0.8)
    alone, report = run(cache)
    # Two equal samples decide as one alone.
    same = {"prompt_embeds": tiny.text(0).repeat(2, 1, 1), "negative_prompt_embeds": tiny.text(500).repeat(2, 1, 1)}
    both, of_both = run(cache, batch=2, **same, latents=tiny.noise(0).repeat(2, 1, 1, 1, 1))
    assert of_both.strip == report.strip and "." in report.strip
    assert torch.allclose(both, alone.repeat(2, 1, 1, 1, 1), atol=1e-5)
    # A target steers one policy.
    pipe = tiny.wan()
    with nc.cached(pipe, "navicache:mid", target="steps=12") as session:
        tiny.run(pipe, 24, batch=2)
        assert session.report is not None
        assert "2 samples under a target: one decision for all, by the mean over them" in session.report.warnings


# T3


class Broken(Exception):
    """Raised on the way."""


def failing(pipe: Any, at_call: int) -> None:
    """A run whose transformer raises in its n-th call."""
    calls = 0
    forward = type(pipe.transformer).forward

    def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > at_call:
            raise Broken
        return forward(module, *args, **kwargs)

    pipe.transformer.forward = counted.__get__(pipe.transformer)
    try:
        with pytest.raises(Broken):
            tiny.run(pipe, 24, seed=3)
    finally:
        del pipe.transformer.forward


@pytest.mark.parametrize("cache", [free("easycache", 0.8), "stride,threshold=2"])
def test_no_run_leaves_anything_to_the_next(cache: str) -> None:
    def fresh(**given: Any) -> Any:
        pipe = tiny.wan()
        with nc.cached(pipe, cache, guards="off") as session:
            latents = tiny.run(pipe, **given)
            report = session.report
        assert report is not None and reused(report.strip) > 0.4, report
        return latents

    first, second = {"steps": 24}, {"steps": 20, "size": 48, "seed": 7}
    expected, other = fresh(**first), fresh(**second)

    pipe = tiny.wan()
    plain_step = pipe.scheduler.step
    nc.enable(pipe, cache, guards="off")
    assert torch.equal(tiny.run(pipe, **first), expected)
    assert torch.equal(tiny.run(pipe, **second), other)
    for call in (0, 1, 4, 7):  # in the first call of a run, of a step, and of a branch
        failing(pipe, call)
        assert torch.equal(tiny.run(pipe, **first), expected), call

    def interrupt(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step == 9
        return {}

    def ctrl_c(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 11:
            raise KeyboardInterrupt
        return {}

    tiny.run(pipe, **first, callback_on_step_end=interrupt)
    assert nc.report(pipe)["ended"] == "interrupted"  # type: ignore[index]
    assert torch.equal(tiny.run(pipe, **first), expected)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(pipe, **first, callback_on_step_end=ctrl_c)
    assert torch.equal(tiny.run(pipe, **first), expected)
    pipe.scheduler = tiny.scheduler("unipc")
    assert torch.equal(tiny.run(pipe, **first), expected)
    assert [report["ended"] for report in nc.reports(pipe)].count("done") == 9
    nc.disable(pipe)
    assert pipe.scheduler.step.__func__ is plain_step.__func__ and "step" not in pipe.scheduler.__dict__


# T4


def test_nothing_is_kept_after_a_run() -> None:
    pipe = tiny.wan()
    nc.enable(pipe, free("easycache", 0.8), guards="off")
    tiny.run(pipe, 12)

    def large() -> int:
        gc.collect()
        sizes = (o.numel() for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.shape == tiny.SHAPE)
        return sum(1 for _ in sizes)

    before = large()
    for run in range(6):
        if run % 3 == 2:
            failing(pipe, 13)
        else:
            latents = tiny.run(pipe, 12)
            del latents
    tiny.run(pipe, 12)
    assert large() <= before


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this system does not say what a process holds")
def test_two_hundred_runs_hold_no_more_than_one() -> None:
    """Every seventh is ended by an exception; methods that keep predictions, spans and the solver's latents."""
    caches = [free("easycache", 0.8), "fbcache,threshold=0.8", "stride,threshold=2"]
    pipe, sizes = tiny.wan(), []
    for number in range(200):
        if number % 20 == 0:
            nc.enable(pipe, caches[number // 20 % 3], guards="off")
        if number % 7 == 6:
            failing(pipe, 13)
        else:
            tiny.run(pipe, 12, seed=number)
        if number % 20 == 19:
            gc.collect()
            sizes.append(resident())
    assert len(nc.reports(pipe)) == 16
    first, last = sizes[2], sizes[-1]  # every method ran once
    assert last <= 1.02 * first, [size // 2**20 for size in sizes]


# T6


def test_two_experts_share_a_run_and_nothing_else() -> None:
    pipe = tiny.wan(experts=2)
    with nc.cached(pipe, free("easycache", 50), guards="off") as session:
        tiny.run(pipe, 20)
        timesteps = [float(t) for t in pipe.scheduler.timesteps]
        strip = session.report.strip.split("|")  # type: ignore[union-attr]
    switch = next(step for step, t in enumerate(timesteps) if t < 800)
    assert 3 < switch < 18
    computed = [step for step, ran in enumerate(strip[:-1]) if ran == "SS"]
    assert computed == [0, 1, 2, switch, 19]


# T10


def test_hooks_come_and_go() -> None:
    accelerate = pytest.importorskip("accelerate.hooks")
    pipe = tiny.wan()
    nc.enable(pipe, free("navicache", 0.8), guards="off")
    strips = []
    for _ in range(2):
        accelerate.add_hook_to_module(pipe.transformer, accelerate.ModelHook())
        latents = tiny.run(pipe, 20)
        strips.append((nc.report(pipe).strip, latents))  # type: ignore[union-attr]
        accelerate.remove_hook_from_module(pipe.transformer)
    assert strips[0][0] == strips[1][0] and torch.equal(strips[0][1], strips[1][1])
    assert reused(strips[0][0]) > 0.2


# T9


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_transformers_are_one_graph(when: str) -> None:
    eager = tiny.wan()
    with nc.cached(eager, free("navicache", 0.8), guards="off") as session:
        expected = tiny.run(eager, 12)
        strip = session.report.strip  # type: ignore[union-attr]

    graphs = tiny.Graphs()
    pipe = tiny.wan()
    if when == "before":
        pipe.transformer.compile(backend=graphs.backend, fullgraph=True)
    nc.enable(pipe, free("navicache", 0.8), guards="off")
    if when == "after":
        pipe.transformer.compile(backend=graphs.backend, fullgraph=True)
    for _ in range(2):
        assert torch.equal(tiny.run(pipe, 12), expected)
        assert nc.report(pipe).strip == strip  # type: ignore[union-attr]
    assert len(graphs) == 1 and "." in strip

    # The other way to compile: a module around the module.
    graphs = tiny.Graphs()
    pipe = tiny.wan()
    if when == "after":
        nc.enable(pipe, free("navicache", 0.8), guards="off")
    pipe.transformer = torch.compile(pipe.transformer, backend=graphs.backend, fullgraph=True)
    if when == "before":
        nc.enable(pipe, free("navicache", 0.8), guards="off")
        assert torch.equal(tiny.run(pipe, 12), expected)
        assert nc.report(pipe).strip == strip and len(graphs) == 1  # type: ignore[union-attr]
    else:
        tiny.run(pipe, 12)
        assert nc.report(pipe) is None  # which says that the transformer was replaced


# T11


@pytest.mark.parametrize(
    "cache, most",
    [
        (free("navicache", 0.5, 5), 20 - 5 - 1 + 1),
        ("taylorseer,interval=3", 0),
        ("magcache:mid", 0),
        ("pab,self_range=2,cross_range=3", 0),
        ("schedule,strip=" + "SS|..|" * 10, 0),
    ],
)
def test_read_backs(cache: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from navicache import measure

    reads = []
    read = measure.read
    monkeypatch.setattr(measure, "read", lambda scalars, group: reads.append(len(scalars)) or read(scalars, group))
    pipe = tiny.wan()
    with nc.cached(pipe, cache, guards="off") as session:
        tiny.run(pipe, 20)
        report = session.report
    assert report is not None and report["totals"]["units_reused"] > 0
    # One a step that is free to be reused, and one after the run, for the report.
    assert sum(count > 0 for count in reads) <= most, reads


# T15


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0, 2.0])
def test_bf16_decides_as_f32(threshold: float) -> None:
    strips = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = tiny.wan()
        pipe.transformer.to(dtype)
        with nc.cached(pipe, free("navicache", threshold), guards="off") as session:
            tiny.run(pipe, 24)
            strips.append(session.report.strip)  # type: ignore[union-attr]
    one, other = (strip.split("|") for strip in strips)
    assert sum(a != b for a, b in zip(one, other, strict=True)) <= 1, strips


# T16


def test_what_cannot_help_or_did_not_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def warned(cache: str, steps: int) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "navicache"):
            pipe = tiny.wan()
            with nc.cached(pipe, cache, guards="off") as session:
                tiny.run(pipe, steps)
                report = session.report
        assert report is not None
        assert [record.getMessage() for record in caplog.records] == report.warnings
        return report.warnings

    assert warned(free("easycache", 0.8), 20) == []
    assert warned("navicache:mid", 8) == [
        "caching does nothing in 8 steps: navicache always computes the first 8 and the last 1"
    ]
    few = warned(free("easycache", 0.8), 6)
    assert len(few) == 1 and few[0].startswith("easycache may reuse up to 2 of only 6 steps")
    assert warned(free("easycache", 1e-9), 12) == ["0 of 12 steps reused: the threshold never allowed it"]


# Whose presets


def test_families_are_the_engines() -> None:
    """Names are those of the engine's `published.rs`."""
    small: Any = {"in_channels": 12, "image_dim": 16, "added_kv_proj_dim": 24}
    for pipe, family in [
        (tiny.wan(), "wan-t2v-1.3b"),
        (tiny.wan(**small), "wan-i2v-480p"),
        (tiny.wan(experts=2), "wan2.2-t2v-a14b"),
        (tiny.wan(experts=2, in_channels=12), "wan2.2-i2v-a14b"),
        (tiny.hunyuan(), "hunyuanvideo"),
        (tiny.cogvideox(), "cogvideox-2b"),
    ]:
        assert nc.family_of(pipe) == family
    pipe = tiny.wan()
    pipe.register_to_config(expand_timesteps=True)
    assert nc.family_of(pipe) == "wan2.2-ti2v-5b"
    pipe = tiny.wan(**small)
    pipe.scheduler = tiny.scheduler(shift=5.0)
    assert nc.family_of(pipe) == "wan-i2v-720p"
    # Presets are there by these names.
    assert nc.refused(tiny.wan(experts=2), "magcache:mid") is None
    assert nc.refused(tiny.cogvideox(), "navicache:mid") is None


# What an object is


def test_the_transformer_stays_what_it_is(tmp_path: Any) -> None:
    from diffusers import WanTransformer3DModel

    pipe = tiny.wan()
    plain = type(pipe.transformer)
    nc.enable(pipe, "navicache:mid")
    model = pipe.transformer
    assert isinstance(model, WanTransformer3DModel) and type(model).__name__ == "WanTransformer3DModel"
    model.save_pretrained(tmp_path)
    assert WanTransformer3DModel.from_pretrained(tmp_path).config.num_layers == 4
    assert type(copy.deepcopy(model)) is plain
    with pytest.raises(TypeError, match="navicache.disable"):
        model.__reduce_ex__(2)
    nc.disable(pipe)
    assert type(pipe.transformer) is plain


def test_what_cannot_run_is_refused_with_the_reason() -> None:
    pipe, cog = tiny.wan(), tiny.cogvideox()
    for given, cache, part in [
        (pipe, "teecache", "known are none"),
        (pipe, "navicache:warp", "it has fast, mid, slow"),
        (cog, "fastercache:mid", "both in one batch"),
        (tiny.hunyuan(), "pab:mid,keep=none", "keep"),
        (cog, "stride,threshold=0.1,warmup_steps=3,reuse=corrected", "steps cannot be left to CogVideoXDDIMScheduler"),
    ]:
        with pytest.raises(ValueError, match=part):
            nc.enable(given, cache)
    for cache, part in [("navicache:mid", "no preset"), ("navicache", "must be given")]:
        with pytest.raises(ValueError, match=part):
            nc.enable(cog, cache, family="mochi")
    with pytest.raises(ValueError, match='memory "2 apples"'):
        nc.enable(pipe, "navicache:mid", memory="2 apples")
    pipe.transformer.enable_cache(_first_block_cache())
    with pytest.raises(ValueError, match="diffusers' own cache"):
        nc.enable(pipe, "navicache:mid")


def _first_block_cache() -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=0.1)


def test_what_a_method_would_do_is_said_beforehand() -> None:
    pipe, cog = tiny.wan(), tiny.cogvideox()
    said = nc.explain(pipe, "navicache:mid", latents=tiny.SHAPE)
    assert said.splitlines()[0] == "navicache on WanPipeline, family wan-t2v-1.3b"
    assert "threshold=" in said and "decides about whole steps" in said and "cond and uncond" in said
    latents = 4 * 8 * 3 * 8 * 8
    kept = int(re.search(r"keeps (\d+) tensors", said).group(1))  # type: ignore[union-attr]
    assert said.splitlines()[4].endswith(f": {kept * latents / 1e6:.1f} MB")
    with nc.cached(pipe, "navicache:mid") as session:
        tiny.run(pipe, 20)
        assert session.report is not None and session.report["totals"]["store_bytes"] == kept * latents
    said = nc.explain(pipe, "fbcache,threshold=0.1")
    assert "spans of blocks" in said and "of a block's features" in said
    assert "it cannot run here: fastercache makes one branch" in nc.explain(cog, "fastercache:mid")
    with pytest.raises(ValueError, match="known are none"):
        nc.explain(pipe, "teecache")


@pytest.mark.parametrize("make", [tiny.wan, tiny.flux, tiny.qwen])
@pytest.mark.parametrize("cache", [free("easycache", 0.8), "fbcache,threshold=0.8"])
def test_the_bill_is_of_the_branches_that_there_are(make: Any, cache: str) -> None:
    """Pipelines of pictures do not say beforehand whether there are two."""
    bills = []
    for guidance in (1.0, 4.0):
        pipe = make()
        with nc.cached(pipe, cache, guards="off") as session:
            tiny.run(pipe, 12, guidance)
            assert session.report is not None and session.report["ended"] == "done"
            bills.append(session.report["totals"]["store_bytes"])
        with nc.cached(pipe, cache, guards="off", memory=bills[-1] - 1) as session:
            tiny.run(pipe, 12, guidance)
            assert session._run is not None and "the budget is" in str(session._run.warnings)
    assert bills[1] == 2 * bills[0]


def test_the_bill_knows_what_is_kept_of_blocks() -> None:
    """As the engine reckons it: residuals of all tokens in 32 bits, of both branches."""
    pipe = tiny.wan()
    with nc.cached(pipe, "fbcache,threshold=0.8", guards="off") as session:
        tiny.run(pipe, 12)
        assert session.report is not None
        features = 4 * (3 * 4 * 4) * 24
        assert session.report["totals"]["store_bytes"] % features == 0
        assert session.report["totals"]["store_bytes"] >= 2 * 2 * features
    # Pictures that go in beside the latents are not kept; tokens that are packed are counted as they are.
    for pipe, shown, predicted, grid in [
        (tiny.wan(in_channels=20), (2, 20, 3, 8, 8), (2, 8, 3, 8, 8), (3, 4, 4)),
        (tiny.hunyuan(), tiny.SHAPE, tiny.SHAPE, (3, 4, 4)),
        (tiny.cogvideox(), (2, 3, 8, 8, 8), (2, 3, 8, 8, 8), (3, 4, 4)),
        (tiny.mochi(), (2, 8, 3, 8, 8), (2, 8, 3, 8, 8), (3, 4, 4)),
        (tiny.ltx(), (2, 48, 8), (2, 48, 8), None),
    ]:
        layout = layout_of(pipe.transformer, torch.empty(shown, device="meta"))
        assert layout is not None and layout.predicted == predicted and layout.grid == grid
        config = pipe.transformer.config
        assert layout.features == 4 * shown[0] * 48 * config.num_attention_heads * config.attention_head_dim


def test_problems_of_a_run_leave_it_plain(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny.wan()
    expected = tiny.run(pipe, 12)
    with caplog.at_level(logging.WARNING, "navicache"), nc.cached(pipe, free("easycache", 0.8), memory=1000):
        assert torch.equal(tiny.run(pipe, 12), expected)
    assert "keeps 0.1 MB, the budget is 0.0 MB" in caplog.text
    with nc.cached(pipe, free("easycache", 0.8), memory=1000, on_problem="error"), pytest.raises(ValueError, match="keeps"):
        tiny.run(pipe, 12)


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
def test_a_problem_after_the_schedulers_step_does_not_repeat_it(
    solver: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from navicache.forward import Forward

    expected = tiny.run(tiny.wan(solver), 12)
    raised = []
    add = Forward.sum

    def fails_once(self: Forward, *given: Any) -> Any:
        if not raised:
            raised.append(True)
            raise RuntimeError("the sum failed")
        return add(self, *given)

    # The solver in Rust adds up beside the scheduler, whose own step is made by then.
    monkeypatch.setattr(Forward, "sum", fails_once)
    pipe = tiny.wan(solver)
    with caplog.at_level(logging.WARNING, "navicache"), nc.cached(pipe, "stride,threshold=2", guards="off"):
        found = tiny.run(pipe, 12)
        assert pipe.scheduler.step_index == 12
    assert raised and "the sum failed; everything is computed from here" in caplog.text
    assert torch.equal(found, expected)


def test_a_run_that_is_refused_has_failed() -> None:
    pipe = tiny.wan()
    with nc.cached(pipe, free("easycache", 0.8), memory=1000, on_problem="error") as session:
        with pytest.raises(ValueError, match="keeps"):
            tiny.run(pipe, 12)
        run = session._run
        assert run is not None and run.is_over and run.ended == "failed" and run.forward.run_thinned is None
        assert session.reports == []


@pytest.mark.parametrize("on_problem, said", [("warn", 2), ("quiet", 0)])
def test_quiet_is_quiet(on_problem: Any, said: int, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny.wan()
    with caplog.at_level(logging.WARNING, "navicache"), nc.cached(pipe, free("easycache", 0.8), on_problem=on_problem):
        for _ in range(2):
            with torch.enable_grad():
                pipe.transformer(tiny.noise(0), torch.tensor([500], device=tiny.DEVICE), tiny.text(0))
        tiny.run(pipe, 3)  # of which none can be reused
    assert len(caplog.records) == said, caplog.text


def test_a_trace_leaves_what_was_enabled(tmp_path: Any) -> None:
    pipe = tiny.wan()
    session = nc.enable(pipe, free("easycache", 0.8), guards="off")
    expected = tiny.run(pipe, 12)
    before = session.report
    given = {"num_inference_steps": 12, "output_type": "latent", "height": 64, "width": 64, "num_frames": 9}
    embeds = {"prompt_embeds": tiny.text(0), "negative_prompt_embeds": tiny.text(500), "latents": tiny.noise(0)}
    nc.trace(pipe, tmp_path / "a.jsonl", **given, **embeds)
    assert nc.report(pipe) == before and len(nc.reports(pipe)) == 1
    assert torch.equal(tiny.run(pipe, 12), expected)
    assert len(session.reports) == 2 and "." in session.reports[1].strip
    nc.disable(pipe)
    nc.trace(pipe, tmp_path / "b.jsonl", **given, **embeds)
    with pytest.raises(ValueError, match="not enabled"):
        nc.report(pipe)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_a_target_is_met() -> None:
    pipe = tiny.wan()
    with nc.cached(pipe, "navicache:mid", target="steps=15") as session:
        tiny.run(pipe, 40)
        report = session.report
    assert report is not None and report["target"]["met"], report["target"]


def test_a_pipeline_is_let_go_of() -> None:
    import weakref

    for cache in (free("easycache", 0.8), "fbcache,threshold=0.3", "stride,threshold=0.1"):
        pipe = tiny.wan()
        nc.enable(pipe, cache)
        failing(pipe, 9)
        gone = weakref.ref(pipe), weakref.ref(pipe.transformer)
        del pipe
        gc.collect()
        assert gone[0]() is None and gone[1]() is None, cache
