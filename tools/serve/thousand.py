"""Fills the queue: twenty clients at once, a thousand jobs and some more; then pages through them, and asks for one after the other.

    cargo build -p navicache && python3 tools/serve/thousand.py target/debug/navicache
"""

import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter

from server import Server

CLIENTS, EACH, MOST = 20, 53, 1000
REQUEST = {"prompt": "a red circle growing on a black background", "steps": 100, "cache": "none"}


def main(program):
    with tempfile.TemporaryDirectory() as data, Server(program, data, "--max-queue-per-key", "5000") as server:
        answers = Counter()

        def create():
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            for seed in range(EACH):
                client.request("POST", "/v1/videos", json.dumps({**REQUEST, "seed": seed}), {"Content-Type": "application/json"})
                answer = client.getresponse()
                answer.read()
                answers[answer.status] += 1

        began = time.monotonic()
        clients = [threading.Thread(target=create) for _ in range(CLIENTS)]
        [client.start() for client in clients]
        [client.join() for client in clients]
        seconds = time.monotonic() - began
        with open(f"/proc/{server.process.pid}/status") as status:
            memory = next(line.split()[1] for line in status if line.startswith("VmHWM"))
        taken = answers[200]
        assert MOST <= taken <= MOST + 2 and answers[429] == CLIENTS * EACH - taken, answers

        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        seen, after = [], ""
        while True:
            client.request("GET", "/v1/videos?limit=100" + after)
            page = json.loads(client.getresponse().read())
            seen += [video["id"] for video in page["data"]]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert seen == sorted(set(seen), reverse=True) and len(seen) == taken
        times = []
        for _ in range(500):
            began = time.monotonic()
            client.request("GET", f"/v1/videos/{random.choice(seen)}")
            client.getresponse().read()
            times.append(1000 * (time.monotonic() - began))
        times.sort()
        server.stop()
        print(
            f"{taken} jobs taken and {answers[429]} refused in {seconds:.1f} s; {int(memory) / 1000:.0f} MB at most; every job "
            f"listed once; a job is looked up in {times[250]:.2f} ms (median), {times[495]:.1f} ms (99 %)"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "target/debug/navicache")
