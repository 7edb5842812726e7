"""How the package is used, for the type checker alone."""

import numpy as np
from numpy.typing import NDArray

import navicache


def make() -> NDArray[np.uint8]:
    pipeline = navicache.Pipeline("demo", memory="4GiB", loras=["style.safetensors:0.8", ("other.safetensors", 0.5)])
    job = navicache.start(pipeline, "a cat", size=(832, 480), steps=20, cache="navicache:mid", preview=1.0)
    for event in job:
        print(event.kind, event.image is None)
    video = job.result(timeout=60.0)
    speedup: float | None = video.report.speedup
    print(speedup, video.report.strip)
    preset = navicache.tune(navicache.Trace.load("a.jsonl"), speedup=2.0)
    navicache.generate(pipeline, "a dog", cache=preset, output="dog.mp4", on_event=print)
    return video.frames
