"""What stands around a transformer: LoRA, offloading, quantised weights. Nothing of it is known to the adapter."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny  # noqa: E402

from navicache import diffusers as nc  # noqa: E402

torch.set_num_threads(1)

# One that decides about steps, one about blocks, one about parts of them, and one that leaves steps to the solver.
STEPS = "easycache,threshold=0.8,warmup_steps=3"
BLOCKS = "fbcache,threshold=0.8"
PARTS = "pab,self_range=2,cross_range=3"
SOLVER = "stride,threshold=2"
# The same with everything computed.
NOTHING = ["easycache,threshold=0,warmup_steps=3", "fbcache,threshold=0", "pab,self_range=1,cross_range=1", "stride,threshold=0"]


def cached(pipe: Any, cache: str, **options: Any) -> tuple[Any, Any]:
    with nc.cached(pipe, cache, guards="off", **options) as session:
        latents = tiny.run(pipe, 12)
        assert session.report is not None and session.report["ended"] == "done", session.report
        return latents, session.report


def plain_when_nothing_is_reused(pipe: Any, caches: list[str] = NOTHING) -> None:
    expected = tiny.run(pipe, 12)
    for cache in caches:
        assert torch.equal(cached(pipe, cache)[0], expected), cache


# LoRA


def with_lora(pipe: Any, scale: float) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, adapter_name="style")
    pipe.transformer.set_adapters(["style"], [scale])
    return pipe


@pytest.mark.parametrize("make", [tiny.wan, tiny.cogvideox])
def test_a_lora_is_in_force_and_its_scale_leaves_nothing(make: Any) -> None:
    caches = [cache for cache in NOTHING if nc.refused(make(), cache) is None]
    plain_when_nothing_is_reused(with_lora(make(), 1.0), caches)
    for cache in (STEPS, BLOCKS, PARTS):
        expected = {scale: cached(with_lora(make(), scale), cache)[0] for scale in (1.0, 0.3)}
        assert not torch.equal(expected[1.0], expected[0.3])
        pipe = with_lora(make(), 1.0)
        nc.enable(pipe, cache, guards="off")
        for scale in (1.0, 0.3, 1.0):
            pipe.transformer.set_adapters(["style"], [scale])
            assert torch.equal(tiny.run(pipe, 12), expected[scale]), (cache, scale)
        assert "S" in nc.report(pipe).strip and nc.report(pipe).strip != "SS|" * 12  # type: ignore[union-attr]


def test_a_lora_that_changes_within_a_run_ends_reuse_until_the_next_computed_step() -> None:
    pipe = with_lora(tiny.wan(), 1.0)
    session = nc.enable(pipe, STEPS, guards="off")
    tiny.run(pipe, 12)
    before = session.report.strip.split("|")  # type: ignore[union-attr]
    change = next(step for step in range(5, 11) if before[step] == "..")

    def weaker(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == change - 1:
            pipe.transformer.set_adapters(["style"], [0.3])
            session.forget()
        return {}

    tiny.run(pipe, 12, callback_on_step_end=weaker)
    after = session.report.strip.split("|")  # type: ignore[union-attr]
    assert after[:change] == before[:change] and after[change] == "SS"


# Offloading


@pytest.mark.parametrize("cache", [STEPS, BLOCKS, SOLVER])
def test_weights_that_come_layer_by_layer(cache: str) -> None:
    """accelerate's: every layer's weights are brought when it runs, as `enable_sequential_cpu_offload` does."""
    accelerate = pytest.importorskip("accelerate")
    expected, report = cached(tiny.wan(), cache)
    pipe = tiny.wan()
    accelerate.cpu_offload(pipe.transformer, execution_device=tiny.DEVICE)
    assert next(pipe.transformer.parameters()).device.type == "meta"
    found, of_offloaded = cached(pipe, cache)
    assert of_offloaded.strip == report.strip and torch.equal(found, expected)
    # Placed after `enable`, and removed.
    pipe = tiny.wan()
    session = nc.enable(pipe, cache, guards="off")
    accelerate.cpu_offload(pipe.transformer, execution_device=tiny.DEVICE)
    assert torch.equal(tiny.run(pipe, 12), expected)
    accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
    assert session.report is not None and session.report.strip == report.strip


def test_parts_of_blocks_that_something_is_hooked_into_are_refused() -> None:
    """A hook of accelerate's stands around a block for the table that is the block's own."""
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny.wan()
    accelerate.cpu_offload(pipe.transformer, execution_device=tiny.DEVICE)
    with nc.cached(pipe, PARTS, on_problem="error"), pytest.raises(ValueError, match="hooked into the blocks"):
        tiny.run(pipe, 12)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_weights_that_come_group_by_group(kind: str) -> None:
    from diffusers.hooks import apply_group_offloading

    is_gpu = tiny.DEVICE.type == "cuda"  # where the next group comes on a stream of its own
    more = {"num_blocks_per_group": 1 if is_gpu else 2} if kind == "block_level" else {}
    for cache in (STEPS, BLOCKS, PARTS, SOLVER):
        expected, report = cached(tiny.wan(), cache)
        pipe = tiny.wan()
        away = torch.device("cpu")
        apply_group_offloading(pipe.transformer, tiny.DEVICE, away, offload_type=kind, use_stream=is_gpu, **more)
        if cache == PARTS:  # a hook stands around the block, for all of it or for its own table
            with nc.cached(pipe, cache, on_problem="error"), pytest.raises(ValueError, match="hooked into the blocks"):
                tiny.run(pipe, 12)
            continue
        found, of_offloaded = cached(pipe, cache)
        assert of_offloaded.strip == report.strip and torch.equal(found, expected), cache


@pytest.mark.parametrize("keep_on", ["auto", "device", "cpu"])
def test_where_kept_tensors_are_changes_no_bit(keep_on: Any) -> None:
    for cache in (STEPS, BLOCKS, PARTS):
        assert torch.equal(cached(tiny.wan(), cache, keep_on=keep_on)[0], cached(tiny.wan(), cache)[0])
    with pytest.raises(ValueError, match="keep_on 'disk': expected one of auto, device, cpu"):
        nc.enable(tiny.wan(), STEPS, keep_on="disk")  # type: ignore[arg-type]


def test_what_is_kept_is_elsewhere_and_comes_back() -> None:
    """Another device than the CPU, without one: tensors of `meta` are kept, their numbers are not."""
    from navicache.forward import Forward

    forward = Forward(keep_on=torch.device("meta"))
    forward.begin_step(tiny.noise(0))
    forward.take("cond", tiny.noise(1))
    (kept,) = forward.kept("cond", "residual")
    assert kept.device.type == "meta" and kept.shape == torch.Size(tiny.SHAPE)
    forward.keep_on = torch.device("cpu")
    (kept,) = forward.kept("cond", "output")
    (back,) = forward.sum([(2.0, (kept,))], None)
    assert torch.equal(back, 2 * tiny.noise(1))


# Quantised weights


def quantised(pipe: Any) -> Any:
    """torch's own: 8-bit weights in every linear layer of the blocks, inputs quantised as they come."""
    for module in (pipe.transformer.blocks,):
        torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return pipe


@pytest.mark.skipif(tiny.DEVICE.type != "cpu", reason="torch's dynamic 8 bits are of the CPU")
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights() -> None:
    pipe = quantised(tiny.wan())
    assert "quantized.dynamic" in type(pipe.transformer.blocks[0].attn1.to_q).__module__
    assert not torch.equal(tiny.run(pipe, 12), tiny.run(tiny.wan(), 12))
    plain_when_nothing_is_reused(pipe)
    for cache in (STEPS, BLOCKS, PARTS, SOLVER):
        latents, report = cached(quantised(tiny.wan()), cache)
        assert torch.isfinite(latents).all() and report["totals"]["units_reused"] > 0, cache
