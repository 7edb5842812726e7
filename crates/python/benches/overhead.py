"""What the adapter takes a step beside the model, in processor time: everything, and the part that is Rust's.

    OMP_NUM_THREADS=1 python crates/python/benches/overhead.py
"""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import tiny  # noqa: E402
from navicache import _core  # noqa: E402
from navicache import diffusers as nc  # noqa: E402

STEPS, ROUNDS = 50, 7


def took(work: Any) -> float:
    """Processor time of the fastest of some rounds, in seconds."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


class Answers:
    """A holder of values that answers at once: what is left is the session's."""

    value = (0.0,)

    def begin_step(self, *_: Any) -> None: ...

    def subject(self, *_: Any) -> Any:
        return self.value

    def measure(self, *_: Any) -> float:
        return 0.01

    def read(self, scalars: Any) -> list[list[float]]:
        return [[scalar] for scalar in scalars]

    def kept(self, *_: Any) -> Any:
        return self.value

    def sum(self, *_: Any) -> Any:
        return self.value

    def approximate(self, *_: Any) -> None: ...


def led(cache: str) -> None:
    """A run of a session without tensors."""
    schedule = [(1000.0 * (1 - step / STEPS), 1 - step / STEPS) for step in range(STEPS)]
    branches, answers = ["cond", "uncond"], Answers()
    session = _core.Session(_core.Method(cache, "wan-t2v-1.3b"), schedule, branches, [["whole"]])
    for step in range(STEPS):
        session.begin_step(step, answers)
        for branch in branches:
            if session.open_branch(branch, answers) != "approximated":
                session.close_branch(answers)
        session.end_step(answers)


def main() -> None:
    torch.set_num_threads(1)
    pipe = tiny.wan()
    tiny.run(pipe, STEPS)
    print(f"{'method':40} {'adapter, ms a step':>20} {'session, us a step':>20}")
    for cache in ("navicache:mid", "easycache:mid", "taylorseer:mid"):
        everything = cache.replace(":mid", ":mid,threshold=0") if "taylorseer" not in cache else "taylorseer:mid,interval=1"
        plain = took(lambda: tiny.run(pipe, STEPS))
        with nc.cached(pipe, everything, on_problem="quiet"):
            computed = took(lambda: tiny.run(pipe, STEPS))
        plain = min(plain, took(lambda: tiny.run(pipe, STEPS)))
        own, rust = (computed - plain) / STEPS, took(lambda cache=cache: led(cache)) / STEPS
        print(f"{cache:40} {1e3 * own:20.3f} {1e6 * rust:20.1f}")


main()
