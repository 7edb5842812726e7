#!/usr/bin/env python3
"""Which keys of scheduler_config.json change what is sampled: writes crates/engine/tests/golden/scheduler_keys.json.

Every key of the five classes is set to other values, or left out, one at a time; what diffusers samples with it in
20 steps of a made-up model is compared with what it samples without. Made with diffusers 0.42.1, torch 2.11.0.
"""
import json
import os
import warnings

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
from diffusers import (CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DPMSolverMultistepScheduler,  # noqa: E402
                       FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)

OUT = os.path.join(os.path.dirname(__file__), "../../crates/engine/tests/golden/scheduler_keys.json")
MULTISTEP = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
COGVIDEOX = dict(clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
BASES = [
    (UniPCMultistepScheduler, MULTISTEP),
    (DPMSolverMultistepScheduler, MULTISTEP),
    (FlowMatchEulerDiscreteScheduler, dict(shift=7.0)),
    (CogVideoXDDIMScheduler, COGVIDEOX),
    (CogVideoXDPMScheduler, COGVIDEOX),
]
SHARED = {
    "num_train_timesteps": [500],
    "use_dynamic_shifting": [True],
    "time_shift_type": ["linear"],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
}
OTHERS = {
    "flow_shift": [5.0],
    "beta_start": [0.001],
    "beta_end": [0.03],
    "beta_schedule": ["scaled_linear", "linear"],
    "trained_betas": [[0.001] * 4],
    "solver_order": [1, 3],
    "prediction_type": ["epsilon", "sample", "v_prediction"],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [2.0],
    "predict_x0": [False],
    "lower_order_final": [False],
    "euler_at_final": [True],
    "disable_corrector": [[0, 1]],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [False],
    "final_sigmas_type": ["sigma_min"],
    "lambda_min_clipped": [-5.0],
    "variance_type": ["learned"],
    "timestep_spacing": ["leading", "trailing"],
    "steps_offset": [1],
    "rescale_betas_zero_snr": [True, False],
    "sigma_min": [0.1],
    "sigma_max": [0.9],
    "shift_terminal": [0.1],
    "shift": [3.0],
    "base_shift": [0.6],
    "max_shift": [1.3],
    "base_image_seq_len": [128],
    "max_image_seq_len": [2048],
    "invert_sigmas": [True],
    "stochastic_sampling": [True],
    "snr_shift_scale": [1.0],
    "clip_sample": [True],
    "clip_sample_range": [0.1],
    "set_alpha_to_one": [False],
}
SOLVER_TYPES = {
    "UniPCMultistepScheduler": ["bh1", "midpoint", "heun", "logrho"],
    "DPMSolverMultistepScheduler": ["heun", "logrho", "bh1", "bh2"],
}
ALGORITHMS = {"DPMSolverMultistepScheduler": ["dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"]}


def sampled(cls, config):
    """Timesteps and latents of 20 steps from a fixed noise with a velocity that depends on both."""
    torch.manual_seed(3)
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 3, 8, 8, generator=generator)
    direction = torch.randn(1, 4, 3, 8, 8, generator=generator)
    data, before = None, None  # what the stochastic solver remembers
    for t in scheduler.timesteps:
        velocity = 3 * torch.tanh(x) - direction * (t / 1000)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            x, data = scheduler.step(velocity, data, int(t), before, x, generator=generator, return_dict=False)
            before = int(t)
            continue
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return scheduler.timesteps, x


def main():
    classes = []
    for cls, settings in BASES:
        name = cls.__name__
        config = {key: value for key, value in cls(**settings).config.items() if not key.startswith("_")}
        config.pop("solver_p", None)
        base = sampled(cls, config)
        found = []

        def tried(key, other, change):
            try:
                timesteps, x = sampled(cls, other)
                same = len(timesteps) == len(base[0]) and torch.equal(timesteps, base[0]) and torch.equal(x, base[1])
                effect = "same" if same else "differs"
            except Exception:  # noqa: BLE001, whatever it refuses
                effect = "refused"
            found.append({"key": key, **change, "effect": effect})

        values = {**SHARED, **OTHERS, "solver_type": SOLVER_TYPES.get(name, []), "algorithm_type": ALGORITHMS.get(name, [])}
        for key in config:
            for value in values.get(key, []):
                tried(key, {**config, key: value}, {"value": value})
            tried(key, {k: v for k, v in config.items() if k != key}, {})
        untried = [key for key in config if key not in values]
        assert not untried, untried
        text = cls(**settings).to_json_string()
        classes.append({"class": name, "file": text, "cases": found})
    with open(OUT, "w") as file:
        json.dump(classes, file, indent=1)
        file.write("\n")


main()
