"""Times a generation with checkpoints against one without, alternating, and prints the median of the ratios of each round.

    cargo build --release && python tools/resume/overhead.py [--rounds 10] [--program target/release/navicache] [-- OPTIONS OF generate]

What is timed is the denoising and the whole run, as reports say them, and the processor time of each process; the first pair warms up and does
not count.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
DEFAULT = ["a red circle bouncing on a navy background", "--steps", "50"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--program", default=ROOT / "target/release/navicache")
    parser.add_argument("options", nargs="*", default=DEFAULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)

        def run(extra):
            files = ["-o", folder / "a.mp4", "--report", folder / "r.json"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([arguments.program, "generate", *arguments.options, "-q", *files, *extra], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = json.loads((folder / "r.json").read_text())["totals"]["seconds"]
            processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return seconds["denoise"], seconds["total"], processor

        sides = {"without": [], "with": []}
        for number in range(arguments.rounds + 1):
            order = list(sides) if number % 2 else list(sides)[::-1]
            for side in order:
                extra = ["--checkpoint", folder / "a.ckpt"] if side == "with" else []
                measured = run(extra)
                if number:
                    sides[side].append(measured)
        for index, what in enumerate(["denoising", "the whole run", "processor time"]):
            columns = {side: [pair[index] for pair in pairs] for side, pairs in sides.items()}
            ratios = [a / b for a, b in zip(columns["with"], columns["without"])]
            medians = {side: statistics.median(values) for side, values in columns.items()}
            print(
                f"{what}: {medians['without']:.3f} s without, {medians['with']:.3f} s with; "
                f"median ratio {statistics.median(ratios):.4f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


if __name__ == "__main__":
    main()
