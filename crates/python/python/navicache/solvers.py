"""Steps that are left to the solver, in diffusers' loops: `scheduler.step` of one run's scheduler, replaced for the run.

The coefficients are Rust's (`control/solver`). Until the first step is skipped the scheduler's own result is handed
on, so that a run that skips nothing is the plain one, bit for bit; the solver in Rust takes everything in beside it,
and goes on alone from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What each solver's own configuration must be, for its coefficients to be the scheduler's.
_UNIPC: dict[str, Any] = {
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "lower_order_final": True,
    "thresholding": False,
    "final_sigmas_type": "zero",
    "solver_p": None,
}
_DPMPP: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "thresholding": False,
    "final_sigmas_type": "zero",
}
_EULER: dict[str, Any] = {"stochastic_sampling": False, "invert_sigmas": False}
_SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "UniPCMultistepScheduler": ("unipc", _UNIPC),
    "DPMSolverMultistepScheduler": ("dpmpp", _DPMPP),
    "FlowMatchEulerDiscreteScheduler": ("euler", _EULER),
}


def solver_of(pipe: Any) -> tuple[str | None, str]:
    """The solver that a pipeline's scheduler is; or `None`, and the reason why no steps can be left to it."""
    scheduler = pipe.scheduler
    name = type(scheduler).__name__
    if name not in _SOLVERS:
        known = ", ".join(_SOLVERS)
        return None, f"steps cannot be left to {name}; they can to {known}. reuse=residual and reuse=linear work here"
    solver, wanted = _SOLVERS[name]
    for option, value in wanted.items():
        found = scheduler.config.get(option)
        if found != value:
            return None, f"steps can be left to {name} with {option}={value!r}, this one has {found!r}"
    if solver == "unipc" and list(scheduler.config.get("disable_corrector") or []):
        return None, f"steps can be left to {name} with its corrector, this one has disable_corrector"
    if getattr(pipe.config, "expand_timesteps", False) and "ImageToVideo" in type(pipe).__name__:
        return None, "the first frame is given here, and the scheduler does not know: steps cannot be left to it"
    return solver, ""


class Steps:
    """`scheduler.step` of one scheduler object, replaced for one run and given back after it."""

    def __init__(self, scheduler: Any, step: Callable[..., Any]) -> None:
        self.scheduler = scheduler
        self.solver = _SOLVERS.get(type(scheduler).__name__, ("", {}))[0]
        self.own = scheduler.step
        self.leapt = False  # whether the scheduler's own history has gaps
        self.result: Any = None
        self.returned: Tensor | None = None
        self._before = scheduler.__dict__.get("step")
        self._step = step
        scheduler.step = step

    def give_back(self) -> None:
        """The scheduler is as it was before, and may go on by itself from any sample."""
        if self.scheduler.__dict__.get("step") is self._step:
            if self._before is None:
                del self.scheduler.step
            else:
                self.scheduler.step = self._before
        if self.leapt:
            self.leapt = False
            if self.solver in ("unipc", "dpmpp"):
                self.scheduler.model_outputs = [None] * self.scheduler.config.solver_order
                self.scheduler.lower_order_nums = 0
            if self.solver == "unipc":
                self.scheduler.last_sample = None
        self.returned = None

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The scheduler's own step."""
        result = self.own(*args, **kwargs)
        self.result = result
        self.returned = result[0] if isinstance(result, tuple) else result.prev_sample
        return result

    def is_changed(self, sample: Tensor) -> bool:
        """Whether the latents are others than the last step handed out."""
        given = self.returned
        if given is None or given is sample:
            return False
        return given.shape != sample.shape or not torch.equal(given, sample.to(given.dtype))

    def leap(self, velocity: Tensor, timestep: Any, sample: Tensor, following: Tensor, return_dict: bool) -> Any:
        """Hands out what the solver in Rust says in the place of the scheduler's own step."""
        self.leapt = True
        scheduler = self.scheduler
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        scheduler._step_index += 1
        following = following.to(sample.dtype if self.solver == "unipc" else velocity.dtype)
        self.returned = following
        if not return_dict:
            return (following,)
        return (following,) if isinstance(self.result, tuple) else type(self.result)(prev_sample=following)
