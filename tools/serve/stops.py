"""Stops the server by SIGTERM at random moments of a video: it ends with code 0 within its grace, and the video goes on.

    cargo build -p navicache && python3 tools/serve/stops.py target/debug/navicache --stops 50
"""

import argparse
import random
import tempfile
import time

from kills import patiently
from server import Server

REQUEST = {"prompt": "a red circle bouncing on a navy background", "seed": 7, "steps": 100, "size": "32x32", "cache": "none"}


def finished(server, id):
    while (video := patiently(server, "GET", f"/v1/videos/{id}"))["status"] not in ("completed", "failed"):
        time.sleep(0.1)
    assert video["status"] == "completed", video
    return video


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program")
    arguments.add_argument("--stops", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as data:
        server = Server(options.program, data).start()
        expected = finished(server, patiently(server, "POST", "/v1/videos", REQUEST)["id"])["navicache"]["sha256"]
        times, resumed, videos, id = [], 0, 0, None
        while len(times) < options.stops:
            if id is None:
                id = patiently(server, "POST", "/v1/videos", REQUEST)["id"]
                videos += 1
            time.sleep(chance.uniform(0.0, 1.5))
            times.append(server.stop())
            server.start()
            video = patiently(server, "GET", f"/v1/videos/{id}")
            assert video["status"] != "failed", video
            resumed += video["navicache"]["step"] > 0 and video["status"] != "completed"
            if video["status"] == "completed":
                assert video["navicache"]["sha256"] == expected
                id = None
        if id is not None:
            assert finished(server, id)["navicache"]["sha256"] == expected
        server.stop()
    print(f"{options.stops} stops, {max(times):.1f} s at most, over {videos} videos; {resumed} times a video went on from a step")


if __name__ == "__main__":
    main()
