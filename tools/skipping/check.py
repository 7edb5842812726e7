"""The solvers against diffusers': a run of a made-up model, step by step. Fails where they differ by more than 1e-5."""

import itertools

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from skipping import DPMSolver, Euler, Fixed, Schedule, UniPC, walk

STABLE_DIFFUSION = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="trailing",
)
TO_ZERO = {**STABLE_DIFFUSION, "final_sigmas_type": "zero"}
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def model(x, t):
    return np.tanh(x) * np.cos(3 * t) + 0.3 * x


def ours(start, schedule, solver):
    steps = walk(start, schedule, solver, Fixed(range(schedule.steps)), "hold")
    x, i = next(steps)
    try:
        while True:
            w = model(x, schedule.t[i])
            x, i = steps.send((w, w))
    except StopIteration as end:
        return end.value[0]


def theirs(start, schedule, scheduler):
    x = torch.from_numpy(start)
    for i, timestep in enumerate(scheduler.timesteps):
        w = torch.from_numpy(model(x.numpy(), schedule.t[i]))
        x = scheduler.step(w, timestep, x, return_dict=False)[0]
    return x.numpy()


CASES = {
    "UniPC, flow": ("flow", UniPC, UniPCMultistepScheduler, FLOW),
    "Euler, flow": ("flow", Euler, FlowMatchEulerDiscreteScheduler, {}),
    "UniPC, epsilon": ("epsilon", UniPC, UniPCMultistepScheduler, TO_ZERO),
    "DPM-Solver++, epsilon": ("epsilon", DPMSolver, DPMSolverMultistepScheduler, TO_ZERO),
    "DDIM": ("epsilon", Euler, DDIMScheduler, {**STABLE_DIFFUSION, "clip_sample": False, "set_alpha_to_one": True}),
}

if __name__ == "__main__":
    start = np.random.default_rng(0).standard_normal((1, 3, 8, 8))
    # DDIM steps over timesteps that divide 1000 alone.
    for steps, (name, (prediction, solver, scheduler, options)) in itertools.product((50, 20), CASES.items()):
        schedule, scheduler = Schedule(steps, prediction), scheduler(**options)
        if name == "Euler, flow":
            scheduler.set_timesteps(sigmas=schedule.sigma[:-1].tolist())
        else:
            scheduler.set_timesteps(steps)
        expected = theirs(start, schedule, scheduler)
        off = np.abs(ours(start, schedule, solver) - expected).max() / np.abs(expected).max()
        print(f"{name:22} {steps} steps: {off:.1e}")
        assert off < 1e-5, name
