"""Load by wrk: how a job is looked up, with an idle worker and while a video is made, and how much slower the video gets.

    apt-get install wrk
    cargo build --release -p navicache && python3 tools/serve/load.py target/release/navicache [--seconds 30]
"""

import argparse
import re
import subprocess
import tempfile
import threading
import time

from kills import patiently
from server import Server

SMALL = {"prompt": "a red circle", "steps": 3, "frames": 5, "size": "32x32"}
LONG = {"prompt": "a red circle bouncing on a navy background", "seed": 7, "steps": 100, "cache": "none"}


def wrk(server, path, seconds):
    said = subprocess.run(["wrk", "-t", "2", "-c", "64", "-d", f"{seconds}s", "--latency", server.url + path], capture_output=True, text=True, check=True).stdout
    rate, slow = re.search(r"Requests/sec:\s+([\d.]+)", said)[1], re.search(r"99%\s+(\S+)", said)[1]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", said)
    return f"{float(rate):.0f}/s, 99 % within {slow}" + (f", {failed[0]}" if failed else "")


def made(server, body):
    began = time.monotonic()
    id = patiently(server, "POST", "/v1/videos", body)["id"]
    while (video := patiently(server, "GET", f"/v1/videos/{id}"))["status"] not in ("completed", "failed"):
        time.sleep(0.2)
    assert video["status"] == "completed", video
    return id, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, Server(options.program, data) as server:
        id, _ = made(server, SMALL)
        for path in [f"/v1/videos/{id}", "/v1/videos", f"/v1/videos/{id}/content", "/health"]:
            print(f"idle worker, {path.replace(id, 'ID')}: {wrk(server, path, options.seconds)}", flush=True)
        _, alone = made(server, LONG)
        times = []
        maker = threading.Thread(target=lambda: [times.append(made(server, {**LONG, "seed": seed})[1]) for seed in range(2)])
        maker.start()
        print(f"while videos are made, /v1/videos/ID: {wrk(server, f'/v1/videos/{id}', options.seconds)}", flush=True)
        maker.join()
        server.stop()
        print(f"a video takes {alone:.1f} s alone, {', '.join(f'{seconds:.1f}' for seconds in times)} s with all cores asked for 64 answers at a time")


if __name__ == "__main__":
    main()
