"""The nodes inside ComfyUI's own sampling, on the CPU, with a tiny Wan of random weights.

    COMFYUI=/path/to/ComfyUI pytest comfyui/tests        # ComfyUI's requirements and navicache installed

Tried with ComfyUI 0.3.64.
"""

import importlib.util
import json
import os
import pathlib
import sys

import pytest

PACK = pathlib.Path(__file__).parent.parent
if "COMFYUI" not in os.environ:
    pytest.skip("COMFYUI names no checkout of ComfyUI", allow_module_level=True)
sys.path.insert(0, os.environ["COMFYUI"])
_arguments, sys.argv = sys.argv, ["comfyui", "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402

sys.argv = _arguments
spec = importlib.util.spec_from_file_location("navicache_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = importlib.util.module_from_spec(spec)
sys.modules["navicache_nodes"] = pack
spec.loader.exec_module(pack)
nodes = pack.NODE_CLASS_MAPPINGS

torch.set_num_threads(1)
STEPS = 20
CONFIG = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 96, "num_heads": 4, "num_layers": 2,
    "text_dim": 32, "freq_dim": 32, "in_dim": 16, "out_dim": 16, "dtype": torch.float32,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = comfy.supported_models.WAN21_T2V(dict(CONFIG))
    config.set_inference_dtype(torch.float32, None)
    made = config.get_model({}, "")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))


def sample(model, size=8, cfg=5.0, steps=STEPS, sampler="euler", seed=0, start=None, last=None, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 16, 3, size, size, generator=generator)
    prompts = [[[torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(s)), {}]] for s in (seed + 1, 99)]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, "simple", prompts[0], prompts[1], torch.zeros_like(noise),
            start_step=start, last_step=last, disable_pbar=True, seed=seed, **kwargs,
        )  # fmt: skip


def cached(model, threshold, method="navicache", options="align_steps=3"):
    return nodes["NaviCache"]().patch(model, method, "mid", threshold, options)


def steps_of(report):
    """The strip, a character a step."""
    return "".join(step[0] for step in report.strip.split("|") if step)


def test_a_threshold_of_nothing_changes_nothing(model):
    patched, run = cached(model, 1e-9)
    assert torch.equal(sample(patched), sample(model))
    assert steps_of(run.report) == "S" * STEPS and run.report["ended"] == "done"


def test_a_sampling_leaves_nothing_to_the_next(model):
    patched, run = cached(model, 0.3)
    first = sample(patched)
    strip = steps_of(run.report)
    assert strip.count(".") > 0.3 * STEPS, f"with little reused this shows little: {strip}"
    sample(patched, size=12, steps=9, seed=5)
    assert torch.equal(sample(patched), first) and steps_of(run.report) == strip
    assert not torch.equal(first, sample(model))

    class Ours(Exception):
        pass

    def stop(step, *_):
        if step == 10:
            raise Ours

    with pytest.raises(Ours):
        sample(patched, callback=stop)
    assert run.report["ended"] == "interrupted" and len(steps_of(run.report)) <= 12
    assert torch.equal(sample(patched), first)


def test_the_last_of_two_nodes_counts(model):
    patched, _ = cached(model, 0.3)
    twice, run = cached(patched, 1e-9)
    assert torch.equal(sample(twice), sample(model)) and steps_of(run.report) == "S" * STEPS
    assert run.report.warnings == ["0 of 20 steps reused: the threshold never allowed it"]


def test_without_guidance_there_is_one_branch(model):
    patched, run = cached(model, 0.3)
    sample(patched, cfg=1.0)
    assert run.report.strip.count("|") == len(run.report.strip) / 2 and "." in run.report.strip


def test_a_sampler_that_evaluates_twice_a_step(model):
    for sampler in ("heun", "dpm_2"):
        patched, run = cached(model, 1e-9)
        assert torch.equal(sample(patched, sampler=sampler), sample(model, sampler=sampler)), sampler
        patched, run = cached(model, 0.5)
        made = sample(patched, sampler=sampler)
        assert len(steps_of(run.report)) == STEPS and "." in steps_of(run.report), sampler
        assert torch.isfinite(made).all() and not run.report.warnings, sampler


def test_two_samplers_in_a_row(model):
    """Wan2.2's two models are sampled one after the other: each is a run of its own."""
    strips = []
    for start, last in ((0, 10), (10, 20)):
        patched, run = cached(model, 0.3)
        sample(patched, start=start, last=last)
        strips.append(steps_of(run.report))
    assert [len(strip) for strip in strips] == [10, 10] and "." in "".join(strips)


def test_conditions_in_one_call_or_in_two(model, monkeypatch):
    patched, run = cached(model, 0.3)
    together = sample(patched)
    strip = run.report.strip
    needed = model.model.memory_required
    monkeypatch.setattr(
        model.model, "memory_required", lambda shape, **k: 1e30 if shape[0] > 1 else needed(shape, **k)
    )
    calls = []
    inner = model.model.diffusion_model._forward
    monkeypatch.setattr(
        model.model.diffusion_model, "_forward", lambda x, *a, **k: calls.append(len(x)) or inner(x, *a, **k)
    )
    apart = sample(patched)
    assert set(calls) == {1}, "memory was short and conditions came in one call"
    assert run.report.strip == strip
    assert torch.allclose(apart, together, rtol=1e-5, atol=1e-5)


def test_what_was_recorded_can_be_tuned_and_repeated(model):
    recorded, trace = nodes["NaviCacheTrace"]().patch(model)
    assert torch.equal(sample(recorded), sample(model))
    assert len(trace.trace.steps) == STEPS
    tuned, prediction = nodes["NaviCacheTune"]().tune(None, trace, 1.3, "easycache")
    patched, run = nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", tuned)
    made = sample(patched)
    assert run.report["cache"]["method"] == "easycache" and "speedup" in prediction
    (schedule,) = nodes["NaviCacheSchedule"]().schedule(run.report.strip)
    again, repeated = nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", schedule)
    assert torch.equal(sample(again), made) and repeated.report.strip == run.report.strip


STRIDE = "stride,threshold=2"


def test_steps_are_left_to_the_solver(model):
    """How close they come is what test_doors.py compares with the engine."""
    plain = sample(model)
    patched, run = cached(model, 1e-9, method="stride", options="")
    assert torch.equal(sample(patched), plain) and steps_of(run.report) == "S" * STEPS
    patched, run = nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", STRIDE)
    skipped = sample(patched)
    strip = steps_of(run.report)
    assert strip.count(".") > 0.3 * STEPS and run.report["ended"] == "done" and not run.report.warnings, strip
    assert torch.isfinite(skipped).all() and not torch.equal(skipped, plain)
    assert torch.equal(sample(patched), skipped)
    # A correction of what was skipped before.
    patched, run = cached(model, 0.3, options="align_steps=3,reuse=corrected")
    sample(patched)
    assert "." in steps_of(run.report) and run.report["ended"] == "done" and not run.report.warnings


def test_the_solvers_step_is_the_samplers(model, monkeypatch):
    """Everything computed, and every step as the solver in Rust says: to 1e-5 what the sampler makes of it."""
    adapter = sys.modules["navicache_nodes.adapter"]
    begin = adapter.Sampling.__init__

    def leapt(self, *given):
        begin(self, *given)
        self.has_leapt = True

    monkeypatch.setattr(adapter.Sampling, "__init__", leapt)
    patched, run = nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", "stride,threshold=0")
    plain = sample(model)
    assert (sample(patched) - plain).norm() <= 1e-5 * plain.norm() and steps_of(run.report) == "S" * STEPS


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sampler": "heun"}, "steps can be left to the sampler euler without churn, this one is heun"),
        ({"start": 0, "last": 10}, "the sampling ends at noise level"),
    ],
)
def test_other_samplers_keep_their_steps(model, given, text):
    patched, run = nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", STRIDE)
    assert torch.equal(sample(patched, **given), sample(model, **given))
    assert run.report is None and any(text in warning for warning in run.warnings)
    assert text in nodes["NaviCacheReport"]().show("latent", run)["result"][1]


def test_the_report_is_shown_and_kept(model, tmp_path):
    patched, run = cached(model, 0.3)
    node = nodes["NaviCacheReport"]()
    assert node.show("latent", run)["result"] == ("latent", "nothing was sampled with this model yet")
    sample(patched)
    shown = node.show("latent", run, str(tmp_path / "report.json"))
    assert shown["result"][1].startswith(run.report.strip) and (tmp_path / "report.json").exists()


def test_what_cannot_run_is_refused(model):
    with pytest.raises(ValueError, match="fbcache needs the model's blocks one by one"):
        cached(model, 0.1, method="fbcache", options="")
    with pytest.raises(ValueError, match="precisecache needs forwards of thinned-out latents"):
        nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", "precisecache:mid")
    with pytest.raises(ValueError, match="not known"):
        nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", "nothing")


def test_a_sample_outlives_a_report_that_fails(model, monkeypatch, caplog):
    from navicache.forward import Forward

    patched, run = cached(model, 0.3)
    expected = sample(patched)
    assert run.report is not None
    read = Forward.read

    def fails_at_the_end(self, scalars):
        if self.shown is None:  # no step is under way
            raise RuntimeError("nothing can be read")
        return read(self, scalars)

    monkeypatch.setattr(Forward, "read", fails_at_the_end)
    assert torch.equal(sample(patched), expected)
    assert run.report is None and "nothing can be read; there is no report of this sampling" in caplog.text


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({}, "wan-t2v-1.3b"),
        ({"num_layers": 40}, "wan-t2v-14b"),
        ({"num_layers": 40, "model_type": "i2v", "in_dim": 36}, "wan-i2v-480p"),
        ({"num_layers": 40, "in_dim": 36}, "wan2.2-i2v-a14b"),
        ({"in_dim": 48, "out_dim": 48}, "wan2.2-ti2v-5b"),
        ({"image_model": "hunyuan_video"}, "hunyuanvideo"),
        ({"image_model": "ltxv"}, "ltxv"),
    ],
)
def test_the_family_is_read_from_the_configuration(model, monkeypatch, config, family):
    monkeypatch.setattr(model.model.model_config, "unet_config", {**CONFIG, **config})
    assert sys.modules["navicache_nodes.adapter"].family_of(model) == family


def test_the_workflow_gives_every_node_what_it_takes():
    graph = json.loads((PACK / "workflow.json").read_text())
    ours = [node for node in graph.values() if node["class_type"] in nodes]
    assert [node["class_type"] for node in ours] == ["NaviCache", "NaviCacheReport"]
    for node in ours:
        inputs = nodes[node["class_type"]].INPUT_TYPES()
        assert set(inputs["required"]) <= set(node["inputs"]) <= {*inputs["required"], *inputs.get("optional", {})}
