"""Fits what TeaCache and MagCache need of a model, from traces: a polynomial, and a table of magnitude ratios.

    for i in 0 1 2 3; do navicache trace "PROMPT $i" --seed $i -o $i.jsonl; done
    python tools/demo/calibrate.py *.jsonl

TeaCache: the relative change of the timestep's embedding against that of the output, both between neighbouring steps, a polynomial of
degree 4 by least squares (https://arxiv.org/abs/2411.19108). MagCache: for each step and branch the mean over tokens of the ratio
of residual sizes to the step before, mean over traces (https://arxiv.org/abs/2506.09045). Needs numpy.
"""

import json
import sys

import numpy as np

LAST_BLOCKS = 2  # the watched span that is the whole stack
FIRST_BLOCK = 0


def relative_change(steps, i, name):
    return steps[i][f"{name[0]}_lag_1{name[1]}"] / steps[i - 1][f"{name[0]}_magnitude{name[1]}"]


def main(paths):
    xs, ys, ratios = [], [], {"cond": [], "uncond": []}
    for path in paths:
        lines = [json.loads(line) for line in open(path)]
        for branch, rows in ratios.items():
            steps = [line["seen"][branch] for line in lines[1:]]
            rows.append([1.0] + [s[f"span_residual_token_ratio_since_visit[{LAST_BLOCKS}]"] for s in steps[1:]])
            for i in range(1, len(steps)):
                xs.append(relative_change(steps, i, ("time_embedding", f"[{FIRST_BLOCK}]")))
                ys.append(relative_change(steps, i, ("output", "")))
    coefficients = np.polyfit(xs, ys, 4)
    fitted = np.polyval(coefficients, xs)
    print(f"mean absolute error of the fit {np.abs(fitted - ys).mean():.4f}, of the mean {np.abs(np.mean(ys) - ys).mean():.4f}")
    print("teacache", json.dumps([float(f"{c:.9g}") for c in coefficients]))
    tables = {branch: [round(float(r), 5) for r in np.mean(rows, axis=0)] for branch, rows in ratios.items()}
    print("magcache", json.dumps(tables))


main(sys.argv[1:])
