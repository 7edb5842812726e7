"""A video of the built-in model, with its strip as it grows.

    python examples/native.py "a red circle bouncing on a navy background" out.mp4
"""

import sys

import navicache

prompt, output = sys.argv[1:3]
job = navicache.start("demo", prompt, output=output, cache="navicache:mid")
for event in job:
    if event.kind == "step":
        print(f"\r{event.index + 1}/{event.steps} {event.strip[-60:]}", end="", flush=True)
    elif event.kind == "warning":
        print(f"\nwarning: {event.text}")
report = job.result().report
print(f"\n{report}\n{output}: {report.seconds_saved:.1f} s saved, {report.speedup:.2f} times as fast")
