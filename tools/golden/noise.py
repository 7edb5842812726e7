"""Writes crates/engine/tests/golden/noise.json: what torch.randn gives for a seed.

    pip install torch==2.11.0 && python tools/golden/noise.py
"""
import json
import pathlib

import torch


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


cases = []
for seed, n in [(0, 16), (1, 17), (42, 5), (42, 15), (7, 100), (2026, 80 * 64), (123456789, 100_000), (2**40 + 3, 1000)]:
    values = torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed))
    cases.append({"seed": seed, "n": n, "first": values[:8].tolist(), "last": values[-8:].tolist(),
                  "fnv1a": fnv1a(values.numpy().tobytes())})
out = pathlib.Path(__file__).parents[2] / "crates/engine/tests/golden/noise.json"
out.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
