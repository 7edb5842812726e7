"""Writes crates/engine/tests/golden/metrics.json: PSNR and SSIM of random clips, straight from the definitions.

    pip install torch==2.11.0 numpy && python tools/golden/metrics.py

SSIM by a two-dimensional 11x11 window and explicit sums; the clips are drawn again by the test.
"""
import json
import math
import pathlib

import numpy as np
import torch


def draw(case):
    n = case["frames"] * case["height"] * case["width"] * 3
    randn = lambda seed: torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    reference = np.clip(np.trunc(np.float32(128) + np.float32(50) * randn(case["reference_seed"])), 0, 255)
    other = reference
    if case["noise_seed"] is not None:
        noise = np.float32(case["amount"]) * randn(case["noise_seed"])
        other = np.clip(np.trunc(reference.astype(np.float32) + noise), 0, 255)
    shape = (case["frames"], case["height"], case["width"], 3)
    return reference.reshape(shape).astype(np.float64) / 255, other.reshape(shape).astype(np.float64) / 255


def psnr(a, b):
    mse = ((a - b) ** 2).mean()
    return 100.0 if mse < 1e-10 else -10 * math.log10(mse)


def ssim(a, b):
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2

    def smooth(x):
        views = np.lib.stride_tricks.sliding_window_view(x, (11, 11))
        return (views * window).sum(axis=(-2, -1))

    values = []
    for c in range(3):
        x, y = a[..., c], b[..., c]
        mx, my = smooth(x), smooth(y)
        vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        values.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())
    return float(np.mean(values))


cases = []
for name, w, h, f, seed, noise, amount in [("noisy", 20, 14, 3, 1, 2, 9.0), ("equal", 16, 16, 2, 3, None, 0.0),
                                           ("smallest", 11, 11, 1, 4, 5, 30.0), ("far", 17, 12, 2, 6, 7, 200.0)]:
    case = {"name": name, "width": w, "height": h, "frames": f, "reference_seed": seed, "noise_seed": noise, "amount": amount}
    a, b = draw(case)
    case |= {"psnr": [psnr(x, y) for x, y in zip(a, b)], "psnr_of_video": psnr(a, b), "ssim": [ssim(x, y) for x, y in zip(a, b)]}
    cases.append(case)
out = pathlib.Path(__file__).parents[2] / "crates/engine/tests/golden/metrics.json"
out.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
