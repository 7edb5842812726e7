"""Kills a generation at random moments until it is done, and compares the video with that of a run that was left alone.

    cargo build --release && python tools/resume/kill.py [--kills 100] [--seed 0] [--program target/release/navicache] [-- OPTIONS OF generate]

Every run leaves a checkpoint after every step and goes on from the last one. Each kill is a SIGKILL at a moment drawn from 0 to --longest
seconds after the start. When the run is done before all kills are spent, it begins anew. It fails where the videos differ, where a step was lost
that a checkpoint held, or where something half-written is left.
"""
import argparse
import hashlib
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
DEFAULT = ["a red circle bouncing on a navy background", "--cache", "navicache,threshold=0.1", "--steps", "40"]


def steps_in(path):
    """Steps that a checkpoint holds."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return int(json.loads(file.read(length))["__metadata__"]["step"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--program", default=ROOT / "target/release/navicache")
    parser.add_argument("options", nargs="*", default=DEFAULT)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        checkpoint, video = folder / "killed.ckpt", folder / "killed.mp4"
        program = [pathlib.Path(arguments.program).resolve(), "generate", *arguments.options, "--quiet"]
        subprocess.run([*program, "-o", folder / "whole.mp4"], check=True)
        whole = hashlib.sha256((folder / "whole.mp4").read_bytes()).hexdigest()
        kills, runs, finished, begun = 0, 0, 0, time.time()
        while kills < arguments.kills or finished == 0:
            held = steps_in(checkpoint)
            go_on = ["--resume", checkpoint] if held else []
            run = subprocess.Popen([*program, "-o", video, "--checkpoint", checkpoint, "--checkpoint-every", "1", *go_on])
            runs += 1
            if kills < arguments.kills:
                try:
                    run.wait(chance.uniform(0, arguments.longest))
                except subprocess.TimeoutExpired:
                    run.kill()
                    kills += 1
            code = run.wait()
            left = sorted(path.name for path in folder.iterdir())
            if video.exists():  # whole, though the run may have been killed before it ended
                finished += 1
                made = hashlib.sha256(video.read_bytes()).hexdigest()
                if made != whole or (code == 0 and left != ["killed.mp4", "whole.mp4"]):
                    sys.exit(f"after {kills} kills: {made}, expected {whole}; in the folder {left}")
                video.unlink()
            elif code != -9:
                sys.exit(f"after {kills} kills: exit code {code}")
            elif steps_in(checkpoint) < held:
                sys.exit(f"after {kills} kills: {steps_in(checkpoint)} steps, {held} were there")
        print(f"{kills} kills, {runs} runs, {finished} videos finished, all {whole}, {time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
