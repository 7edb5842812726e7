"""Draws the pictures of the documentation with the built-in model:

    demo       docs/demo.gif: five prompts, uncached above, cached below, with the strip of what was computed
    captions   docs/captions.jpg: the twenty held-out captions, uncached, seed 0
    pushed     docs/pushed.jpg: where caching goes wrong when it is pushed

    pip install torch safetensors pillow && cargo build --release && python tools/demo/gallery.py captions
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import shapes
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = [("a white circle moving right on a black background", 0), ("an orange ring growing on a brown background", 0),
           ("a red star circling on a navy background", 0), ("a pink triangle shrinking on a brown background", 0),
           ("a blue square spinning on a teal background", 0)]
CACHES = ["none", "navicache:mid"]
PUSHED = [("none", "act"), ("stride:faster", "act"), ("navicache:fast", "act"), ("navicache,threshold=10,align_steps=2", "off"),
          ("navicache,threshold=10,align_steps=2,reuse=linear", "off"), ("navicache,threshold=10,align_steps=2,reuse=linear", "act")]
SIDE, GAP, TEXT = 144, 12, 34
INK, PAPER, COMPUTED, REUSED = (35, 35, 40), (250, 250, 248), (46, 125, 80), (205, 205, 200)


def make(prompt, seed, cache, guard="act"):
    """Frames and, step by step, whether it was computed."""
    with tempfile.TemporaryDirectory() as folder:
        frames, report = pathlib.Path(folder, "f.safetensors"), pathlib.Path(folder, "r.json")
        subprocess.run([ROOT / "target/release/navicache", "generate", prompt, "--seed", str(seed), "--cache", cache, "--guard", guard, "-q",
                        "-o", frames, "--report", report], check=True)
        strip = json.loads(report.read_text())["strip"].split("|")[:-1]
        return load_file(frames)["frames"].numpy(), ["S" in step for step in strip]


def draw_strip(draw, strip, left, top, width):
    cell = width / len(strip)
    for step, computed in enumerate(strip):
        x = left + step * cell
        draw.rectangle([x, top, x + cell - 1, top + 8], COMPUTED if computed else REUSED)


def row_of(picture, frames, left, top, side, count=5):
    """So many frames beside each other, from the first to the last."""
    for i in range(count):
        frame = Image.fromarray(frames[i * (len(frames) - 1) // (count - 1)]).resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(frame, (left + i * (side + 4), top))


def captions():
    font, side = ImageFont.load_default(size=14), 96
    wide, high = 5 * (side + 4) + 20, side + 26
    picture = Image.new("RGB", (2 * wide, 10 * high), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, caption in enumerate(shapes.held_out()):
        left, top = i % 2 * wide + 8, i // 2 * high
        draw.text((left, top + 2), caption, INK, font)
        row_of(picture, make(caption, 0, "none")[0], left, top + 22, side)
    picture.save(ROOT / "docs/captions.jpg", quality=85)


def pushed():
    font, side, (prompt, seed) = ImageFont.load_default(size=13), 120, PROMPTS[1]
    wide, high = 5 * (side + 4) + 2 * GAP, side + 48
    picture = Image.new("RGB", (2 * wide, math.ceil(len(PUSHED) / 2) * high), PAPER)
    draw = ImageDraw.Draw(picture)
    reference, _ = make(prompt, seed, *PUSHED[0])
    for i, (cache, guard) in enumerate(PUSHED):
        frames, strip = make(prompt, seed, cache, guard)
        errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(frames, reference, strict=True)]
        psnr = "" if cache == "none" else f", {sum(10 * math.log10(255**2 / e) for e in errors) / len(errors):.0f} dB"
        left, top = i % 2 * wide + GAP, i // 2 * high
        off = " --guard off" if guard == "off" else ""
        draw.text((left, top + 2), f"{cache}{off}: {sum(strip)} of {len(strip)}{psnr}", INK, font)
        draw_strip(draw, strip, left, top + 22, 5 * (side + 4) - 4)
        row_of(picture, frames, left, top + 36, side)
    picture.save(ROOT / "docs/pushed.jpg", quality=88)


def demo():
    font = ImageFont.load_default(size=13)
    videos = {(p, c): make(*p, c) for p in PROMPTS for c in CACHES}
    count = min(len(frames) for frames, _ in videos.values())
    width = GAP + len(PROMPTS) * (SIDE + GAP)
    height = GAP + len(CACHES) * (TEXT + SIDE + GAP)
    pictures = []
    for index in range(count):
        picture = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(picture)
        for row, cache in enumerate(CACHES):
            top = GAP + row * (TEXT + SIDE + GAP)
            for column, prompt in enumerate(PROMPTS):
                frames, strip = videos[prompt, cache]
                left = GAP + column * (SIDE + GAP)
                label = cache if cache == "none" else f"{cache}  {sum(strip)} of {len(strip)}"
                draw.text((left, top), label, INK, font)
                draw_strip(draw, strip, left, top + 20, SIDE)
                frame = Image.fromarray(frames[index]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.paste(frame, (left, top + TEXT))
        palette = picture.quantize(256)
        pictures.append(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    pictures[0].save(ROOT / "docs/demo.gif", save_all=True, append_images=pictures[1:], duration=125, loop=0)


if __name__ == "__main__":
    pictures = {"demo": demo, "captions": captions, "pushed": pushed}
    draw = pictures.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if draw is None or len(sys.argv) > 2:
        sys.exit(__doc__)
    draw()
