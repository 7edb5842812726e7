"""Where a pipeline of diffusers stands in its loop: which steps there are, which one this is, which branch.

Nothing is asked of the user, and nothing is counted across runs: it is read from the pipeline and its scheduler as
they are at the moment of a call. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What cache_context calls the branches, and what reports call them. Others are numbered as they come.
_BRANCHES = {"cond": "cond", "uncond": "uncond", "cond_uncond": "cond"}


class Unfit(Exception):
    """The pipeline or its tensors do not allow what the method needs; the text says why."""


# What may go wrong on our side; the run goes on without us then.
PROBLEMS = (Unfit, RuntimeError, ValueError)


@dataclass(frozen=True)
class Steps:
    """The steps of a run: pairs of a timestep and a noise level, noisiest first."""

    pairs: list[tuple[float, float]]
    # Of the run's first step, among the scheduler's.
    first: int
    # Steps at which another network takes over, where the pipeline says so beforehand.
    segments: list[int]


def steps_of(pipe: Any) -> Steps:
    """The steps that are left of the scheduler's from here on."""
    scheduler = pipe.scheduler
    timesteps = _numbers(scheduler.timesteps)
    sigmas = _sigmas(scheduler, timesteps)
    first = _first(pipe, timesteps)
    timesteps, sigmas = timesteps[first:], sigmas[first:]
    if any(later >= earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False)):
        raise Unfit(
            f"the noise levels of {type(scheduler).__name__} do not fall from step to step: "
            "a scheduler that calls the model several times a step is not supported"
        )
    if len(timesteps) > 1 and timesteps[0] < timesteps[1]:  # Mochi counts upwards
        timesteps = [1000.0 - timestep for timestep in timesteps]
    return Steps(list(zip(timesteps, sigmas, strict=True)), first, _segments(pipe, timesteps))


def token_of(pipe: Any, context: Mapping[str, Any]) -> Any:
    """What tells this step from the others of the run: another token is another step."""
    if context.get("step_index") is not None:
        return ("index", context["step_index"])
    current = getattr(pipe, "_current_timestep", None)
    if current is not None:
        return current  # the loop makes a new object for every step
    if hasattr(pipe.scheduler, "_step_index"):
        return ("scheduler", pipe.scheduler._step_index)
    raise Unfit(f"the steps of {type(pipe).__name__} cannot be told apart")


def same_token(one: Any, other: Any) -> bool:
    """Whether two tokens are of one step. Tensors are the same if they are one object: nothing is read back."""
    return one is other or (isinstance(one, tuple) and isinstance(other, tuple) and one == other)


def branch_of(context: Mapping[str, Any], place: int, others: dict[str, str]) -> str:
    """The name of a branch in reports: from the pipeline's own, else from its place among the calls of the step.

    `others`: the names that further kinds of guidance were given so far; a new one is added.
    """
    name = context.get("name")
    if name is None:
        return ("cond", "uncond")[place] if place < 2 else f"other{place - 2}"
    if name in _BRANCHES:
        return _BRANCHES[name]
    return others.setdefault(name, f"other{len(others)}")


def _numbers(values: Any) -> list[float]:
    listed: Sequence[float] = values.tolist() if hasattr(values, "tolist") else values
    return [float(value) for value in listed]


def _sigmas(scheduler: Any, timesteps: list[float]) -> list[float]:
    count = len(timesteps)
    if getattr(scheduler, "sigmas", None) is not None:
        sigmas = _numbers(scheduler.sigmas)[:count]
    elif getattr(scheduler, "alphas_cumprod", None) is not None:
        kept = _numbers(scheduler.alphas_cumprod)
        sigmas = [(1 - kept[int(t)]) ** 0.5 for t in timesteps]
    else:
        raise Unfit(f"{type(scheduler).__name__} has no noise levels")
    if len(sigmas) != count:
        raise Unfit(f"{type(scheduler).__name__} has {len(sigmas)} noise levels for {count} timesteps")
    if count > 1 and sigmas[0] < sigmas[-1]:
        sigmas = [1 - sigma for sigma in sigmas]
    if any(sigma > 1 + 1e-6 for sigma in sigmas):
        sigmas = [sigma / (1 + sigma) for sigma in sigmas]
    return sigmas


def _first(pipe: Any, timesteps: list[float]) -> int:
    """The place of the run's first step: later than 0 where it starts from a picture or a video."""
    scheduler = pipe.scheduler
    for name in ("_begin_index", "_step_index"):
        place = getattr(scheduler, name, None)
        if place is not None:
            return int(place)
    current = getattr(pipe, "_current_timestep", None)
    if current is None:
        return 0
    value = float(current)
    nearest = min(range(len(timesteps)), key=lambda place: abs(timesteps[place] - value), default=0)
    return nearest


def _segments(pipe: Any, timesteps: list[float]) -> list[int]:
    """Where `transformer_2` takes over from `transformer`."""
    ratio = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    if ratio is None or getattr(pipe, "transformer_2", None) is None or getattr(pipe, "transformer", None) is None:
        return []
    boundary = ratio * pipe.scheduler.config.num_train_timesteps
    later = [step for step, timestep in enumerate(timesteps) if timestep < boundary]
    return [step for step in later[:1] if step > 0]
