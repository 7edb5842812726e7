"""Draws docs/demo.gif: prompts of the built-in model, uncached above, cached below, with the strip of what was computed.

    pip install torch safetensors pillow && cargo build --release && python tools/demo/gallery.py
"""
import json
import pathlib
import subprocess
import tempfile

from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = [("a red circle bouncing on a navy background", 0), ("a white circle moving right on a black background", 0),
           ("an orange ring growing on a brown background", 0), ("a pink triangle shrinking on a brown background", 0),
           ("an orange square moving down on a teal background", 0)]
CACHES = ["none", "navicache:mid"]
SIDE, GAP, TEXT = 144, 12, 34
INK, PAPER, COMPUTED, REUSED = (35, 35, 40), (250, 250, 248), (46, 125, 80), (205, 205, 200)


def make(prompt, seed, cache):
    """Frames and, step by step, whether it was computed."""
    with tempfile.TemporaryDirectory() as folder:
        frames, report = pathlib.Path(folder, "f.safetensors"), pathlib.Path(folder, "r.json")
        subprocess.run([ROOT / "target/release/navicache", "generate", prompt, "--seed", str(seed), "--cache", cache, "-q", "-o", frames,
                        "--report", report], check=True)
        strip = json.loads(report.read_text())["strip"].split("|")[:-1]
        return load_file(frames)["frames"].numpy(), ["S" in step for step in strip]


def main():
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
                cell = SIDE / len(strip)
                for step, computed in enumerate(strip):
                    x = left + step * cell
                    draw.rectangle([x, top + 20, x + cell - 1, top + 28], COMPUTED if computed else REUSED)
                frame = Image.fromarray(frames[index]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.paste(frame, (left, top + TEXT))
        palette = picture.quantize(256)
        pictures.append(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    pictures[0].save(ROOT / "docs/demo.gif", save_all=True, append_images=pictures[1:], duration=125, loop=0)


if __name__ == "__main__":
    main()
