"""Writes crates/control/tests/golden/solvers.json: schedules and trajectories of the reference solvers.

    python tools/golden/solvers.py

The model is velocity = tanh(1.3 x) (0.5 + sigma) - 0.2 x, elementwise, in f32 as the reference computes.
Needs torch and diffusers; the versions used are in the file.
"""
import json
import pathlib

import diffusers
import torch

OUT = pathlib.Path(__file__).parents[2] / "crates/control/tests/golden/solvers.json"
FLOW = dict(num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
MAKE = {
    "unipc": lambda shift: diffusers.UniPCMultistepScheduler(flow_shift=shift, solver_type="bh2", **FLOW),
    "dpmpp": lambda shift: diffusers.DPMSolverMultistepScheduler(flow_shift=shift, algorithm_type="dpmsolver++", **FLOW),
    "euler": lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, num_train_timesteps=1000),
}


def run(name, steps, shift):
    scheduler = MAKE[name](shift)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    start = torch.linspace(-2, 2, 8).view(1, 8, 1, 1, 1)
    x, samples = start, []
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        velocity = torch.tanh(1.3 * x) * (0.5 + sigma) - 0.2 * x
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        samples.append(x.flatten().tolist())
    keep = sorted({0, 1, 2, steps // 2, steps - 2, steps - 1} & set(range(steps)))
    return {"solver": name, "steps": steps, "shift": shift, "timesteps": [float(t) for t in scheduler.timesteps],
            "sigmas": scheduler.sigmas.tolist(), "start": start.flatten().tolist(),
            "samples": {str(i): samples[i] for i in keep}}


def main():
    cases = [run(name, steps, shift) for name in MAKE for steps in (1, 2, 3, 7, 10, 20, 50) for shift in (1.0, 3.0, 5.0)
             if steps in (10, 20, 50) or shift == 3.0]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    OUT.write_text(json.dumps({"made_by": "tools/golden/solvers.py", "versions": versions, "cases": cases}) + "\n")
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
