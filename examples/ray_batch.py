"""A batch on Ray. Stop it however you like and start it again: it goes on.

    python examples/ray_batch.py videos
"""

import sys

import navicache.ray

colours, motions = ["red", "green", "blue"], ["bouncing", "spinning", "moving left"]
jobs = [
    {"name": f"{colour}-{motion.replace(' ', '-')}", "prompt": f"a {colour} circle {motion} on a navy background"}
    for colour in colours
    for motion in motions
]


def show(result: navicache.ray.Result) -> None:
    print(f"{'made' if result.is_new else 'there'}  {result.job.name:<20} {result.report.strip.replace('|', '')}")


print(navicache.ray.generate(jobs, out=sys.argv[1], model="demo", cache="navicache:mid", cpus=1, on_result=show))
