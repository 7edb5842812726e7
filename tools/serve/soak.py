"""Hours of videos: memory and open files of server and worker at the start and the end, and the same video bit for bit.

    cargo build --release -p navicache && python3 tools/serve/soak.py target/release/navicache --hours 1
"""

import argparse
import http.client
import os
import re
import tempfile
import threading
import time

from kills import patiently
from server import Server

REQUEST = {"prompt": "a red circle bouncing on a navy background", "steps": 10, "frames": 9, "size": "32x32"}


def look(process):
    with open(f"/proc/{process}/status") as status:
        memory = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1000
    return memory, len(os.listdir(f"/proc/{process}/fd"))


def follow(server, id):
    """Reads events and previews to the end, as the page does."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request("GET", f"/v1/videos/{id}/events")
    for line in connection.getresponse():
        if line.startswith(b'data: {"height"') or b'"url":' in line:
            url = re.search(rb'"url":"([^"]+)"', line)
            if url:
                other = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                other.request("GET", url[1].decode())
                other.getresponse().read()
    connection.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--hours", type=float, default=24)
    options = parser.parse_args()
    end = time.monotonic() + 3600 * options.hours
    with tempfile.TemporaryDirectory() as data, Server(options.program, data) as server:
        made, seen, digests, told = 0, [], {}, 0.0
        while time.monotonic() < end:
            seed = made % 10
            id = patiently(server, "POST", "/v1/videos", {**REQUEST, "seed": seed})["id"]
            follower = threading.Thread(target=follow, args=(server, id))
            follower.start()
            follower.join()
            video = patiently(server, "GET", f"/v1/videos/{id}")
            assert video["status"] == "completed", video
            assert digests.setdefault(seed, video["navicache"]["sha256"]) == video["navicache"]["sha256"], "another video"
            made += 1
            seen.append((time.monotonic(), *look(server.process.pid), *look(server.worker())))
            if time.monotonic() > told + 300:
                told = time.monotonic()
                print(f"{made} videos; server {seen[-1][1]:.0f} MB, {seen[-1][2]} files; worker {seen[-1][3]:.0f} MB, {seen[-1][4]} files", flush=True)
        steady = seen[min(50, len(seen) // 2) :]
        hours = (steady[-1][0] - steady[0][0]) / 3600

        def slope(column):
            """Megabytes an hour, by least squares."""
            times, values = [(row[0] - steady[0][0]) / 3600 for row in steady], [row[column] for row in steady]
            middle, mean = sum(times) / len(times), sum(values) / len(values)
            return sum((t - middle) * (v - mean) for t, v in zip(times, values)) / sum((t - middle) ** 2 for t in times)

        first, last = steady[0], steady[-1]
        server.stop()
        print(
            f"{made} videos; after the first {made - len(steady)}, over {hours:.2f} h: server {first[1]:.1f} to {last[1]:.1f} MB ({slope(1):+.2f} MB/h), {first[2]} to {last[2]} files; "
            f"worker {first[3]:.1f} to {last[3]:.1f} MB ({slope(3):+.2f} MB/h), {first[4]} to {last[4]} files; each seed the same in every bit"
        )


if __name__ == "__main__":
    main()
