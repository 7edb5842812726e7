"""Writes crates/engine/tests/golden/measures.json: every measure of small tensors over a few steps, by numpy.

    pip install numpy==2.4.6 && python tools/golden/measures.py

Differences are taken in f32, as both sides take them, and summed in f64. The tensors follow from whole numbers: both
the engine (`denoise/arithmetic.rs`) and `navicache.measure` make them again and are held to the same numbers.
"""
import json
from pathlib import Path

import numpy as np

TOKENS, DIM = 64, 48
# Whether each step is computed in full.
FULL = [True, False, True, True, False, True]


def tensor(step):
    i = np.arange(TOKENS * DIM, dtype=np.int64)
    return ((i * i * 7919 + i * 104729 * (step + 1) + 15485863 * step) % 65537 / 32768 - 1).astype(np.float32).reshape(TOKENS, DIM)


def timestep(step):
    return 1000.0 - 10.0 * step


def mean_abs(t):
    return np.abs(t).astype(np.float64).mean()


def norm(t):
    return np.sqrt(np.square(t.astype(np.float64)).sum())


def of_two(name, a, b):
    match name:
        case "change": return mean_abs(a - b)
        case "relative": return mean_abs(a - b) / mean_abs(b)
        case "distance": return norm(a - b)
        case "cosine": return (a.astype(np.float64) * b.astype(np.float64)).sum() / (norm(a) * norm(b))
        case "tokens":
            sizes = lambda t: np.sqrt(np.square(t.astype(np.float64)).sum(1))
            return (sizes(a) / sizes(b)).mean()


# By name: what is measured, and the value that it refers to.
MEASURES = {
    "change_since_visit": ("change", "visit"), "change_since_compute": ("change", 1),
    "relative_change_since_visit": ("relative", "visit"), "relative_change_since_compute": ("relative", 1),
    "distance_since_visit": ("distance", "visit"), "cosine_since_compute": ("cosine", 1),
    "token_ratio_since_visit": ("tokens", "visit"),
    "lag_1": ("change", 1), "lag_2": ("change", 2), "lag_distance_2": ("distance", 2),
}


def seen(name, step):
    a = tensor(step)
    computed = [before for before in reversed(range(step)) if FULL[before]]
    if name == "magnitude": return mean_abs(a)
    if name == "norm": return norm(a)
    if name in MEASURES:
        what, refers = MEASURES[name]
        earlier = [step - 1] if refers == "visit" and step > 0 else computed[refers - 1:refers] if refers != "visit" else []
        return of_two(what, a, tensor(earlier[0])) if earlier else None
    if len(computed) < 2: return None
    newer, older = tensor(computed[0]), tensor(computed[1])
    if name == "anchor_position": return mean_abs(a - older) / mean_abs(newer - older)
    along = (timestep(step) - timestep(computed[0])) / (timestep(computed[0]) - timestep(computed[1]))
    return mean_abs(a - (newer + (newer - older) * np.float32(along))) / mean_abs(a)


names = ["magnitude", "norm", *MEASURES, "anchor_position", "line_error"]
golden = {
    "made by": f"tools/golden/measures.py, numpy {np.__version__}", "tokens": TOKENS, "dim": DIM, "full": FULL,
    "measures": {name: [None if (v := seen(name, step)) is None else float(v) for step in range(len(FULL))] for name in names},
}
path = Path(__file__).parents[2] / "crates/engine/tests/golden/measures.json"
path.write_text(json.dumps(golden, indent=1) + "\n")
