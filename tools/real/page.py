#!/usr/bin/env python3
"""Holds what navicache made against what the reference made, and prints a page of Markdown: see check.sh.

    page.py DIR --model NAME --command TEXT --navicache FILE

Exit codes: 0 all parts agree; 1 some do not.
"""
import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

# Most relative L2 distance of a part, by the beginning of its name. Both sides compute in f32, in another order.
BOUNDS = [("timesteps", 1e-6), ("noise", 1e-6), ("text", 1e-4), ("pooled", 1e-4), ("picture", 1e-4), ("velocity", 1e-4), ("latents", 1e-3)]
# Most grey levels that a pixel may be off.
GREY_LEVELS = 2
WHAT = {
    "timesteps": "timesteps", "noise": "noise of the seed", "text": "text embeddings", "pooled": "CLIP's vector of the text",
    "picture": "the picture's conditions", "velocity": "one call of the transformer", "latents": "final latents", "frames": "frames",
}


def tensors(path):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def compared(name, ours, theirs):
    """A row of the table: what it is, what was found, what is allowed, and whether it is."""
    kind = name.split(".")[0]
    what = f"{WHAT[kind]} (`{name}`)"
    if ours is None or theirs is None:
        return what, f"only {'the reference' if ours is None else 'navicache'} has it", "", False
    if ours.shape != theirs.shape:
        return what, f"shape {list(ours.shape)}, the reference's {list(theirs.shape)}", "", False
    if kind == "frames":
        off = np.abs(ours.astype(int) - theirs.astype(int))
        found = f"{off.max()} grey levels at most, {off.mean():.4f} on average"
        return what, found + where(off.max(axis=(1, 2, 3)) > GREY_LEVELS, "frame"), f"{GREY_LEVELS}", off.max() <= GREY_LEVELS
    bound = dict(BOUNDS)[kind]
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    off = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)
    found = f"{off:.1e}"
    if kind == "text":
        norm = np.linalg.norm(theirs[0], axis=-1)
        found += where(np.linalg.norm(ours[0] - theirs[0], axis=-1) > bound * np.maximum(norm, norm.mean()), "token")
    return what, found, f"{bound:.0e}", bool(off <= bound)  # false for NaN


def where(wrong, unit):
    """Which of several are wrong."""
    wrong = np.flatnonzero(wrong)
    return f", from {unit} {wrong[0]} on ({len(wrong)} of them)" if len(wrong) else ""


def rows(folder):
    ours, _ = tensors(folder / "parts.safetensors")
    ours["latents"] = tensors(folder / "latents.safetensors")[0]["latents"]
    ours["frames"] = tensors(folder / "frames.safetensors")[0]["frames"]
    theirs, about = tensors(folder / "reference.safetensors")
    known = ours.get("picture.known")
    if known is not None:  # frames that are known stand in the noise of one side, and are put into the other's latents at the end
        for side in (ours, theirs):
            side.update({name: side[name][:, :, known.shape[2] :] for name in ("noise", "latents")})
    order = list(WHAT)
    names = sorted(set(ours) | set(theirs), key=lambda name: (order.index(name.split(".")[0]), name))
    return [compared(name, ours.get(name), theirs.get(name)) for name in names], json.loads(about["about"])


def methods(folder):
    """The table of the comparison, from its results."""
    path = folder / "compare" / "results.json"
    if not path.exists():
        return []
    results = json.loads(path.read_text())
    number = lambda value, digits: "–" if value is None else f"{value:.{digits}f}"
    lines = [
        f"\n### Methods, {len(results['prompts'])} prompts\n",
        "| method | videos | work | speed-up | s denoising | PSNR, dB | worst video | SSIM | motion kept |", "|---|---|---|---|---|---|---|---|---|",
    ]
    for m in results["methods"]:
        cells = [f"`{m['method']}`", m["runs"], f"{100 * m['work']:.0f} %", number(m["speedup"], 2), number(m["seconds"]["denoise"], 1),
                 number(m["psnr"], 1), number(m["psnr_worst"], 1), number(m.get("ssim"), 3), number(m["motion_kept"], 2)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    first = results["runs"][0]
    lines += ["", f"What ran, of \"{first['prompt']}\" (`S` a computed step, `.` a skipped one):", "", "```"]
    same = [run for run in results["runs"] if (run["prompt"], run["seed"]) == (first["prompt"], first["seed"])]
    width = max(len(run["method"]) for run in same)
    lines += [f"{run['method']:<{width}}  {run['report']['strip']}" for run in same] + ["```"]
    return lines + [f"\n{warning}" for warning in results["warnings"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("model", "command", "navicache"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--with", dest="extra", default="")
    options = parser.parse_args()
    parts, about = rows(options.folder)
    report = json.loads((options.folder / "report.json").read_text())
    request, totals = report["request"], report["totals"]
    wrong = [what for what, _, _, agrees in parts if not agrees]
    verdict = f"all {len(parts)} parts agree" if not wrong else f"{len(wrong)} of {len(parts)} parts differ"
    version = subprocess.run([options.navicache, "--version"], capture_output=True, text=True).stdout.split("\n")
    gigabytes = lambda bytes: f"{bytes / 1e9:.1f} GB" if bytes else "–"
    seconds = totals["seconds"]
    lines = [
        f"## {options.model}: {verdict}\n",
        f"{about['pipeline']}, {request['width']}x{request['height']}, {request['frames']} frames, {request['steps']} steps, guidance {request['guidance']:g}, "
        f"seed {request['seed']}, f32 on both sides" + (f"; navicache with `{options.extra}`" if options.extra else "") + f". `{options.command}`\n",
        "| part | relative distance | at most | |", "|---|---|---|---|",
    ]
    lines += [f"| {what} | {found} | {bound} | {'yes' if agrees else '**differs**'} |" for what, found, bound, agrees in parts]
    lines += [
        "\n| | conditions | denoising | decoding | peak memory |", "|---|---|---|---|---|",
        f"| navicache | {seconds['text']:.1f} s | {seconds['denoise']:.1f} s | {seconds['decode']:.1f} s | {gigabytes(totals['peak_memory_bytes'])} |",
        f"| reference | {about['seconds_conditions']:.1f} s | {about['seconds_denoise']:.1f} s | {about['seconds_decode']:.1f} s | {gigabytes(about['peak_bytes'])} |\n",
    ]
    if about["streamed"]:
        lines.append(f"The reference read {' and '.join(about['streamed'])} block by block, at every call: its times are no measure.\n")
    lines += [
        f"- navicache: {'; '.join(line.strip() for line in version if line.strip())}",
        f"- reference: diffusers {about['diffusers']}, transformers {about['transformers']}, torch {about['torch']}, {about['threads']} threads",
        f"- machine: {report['machine'].get('cpu') or report['machine'].get('device')}, {os.cpu_count()} threads, "
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB, {platform.system()} {platform.machine()}; {datetime.date.today()}",
    ]
    print("\n".join(lines + methods(options.folder)))
    if wrong:
        print(f"check.sh: these parts differ: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
