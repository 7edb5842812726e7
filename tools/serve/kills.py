"""Kills the server, its worker or both at random moments while videos are made, and counts what was lost: nothing may be.

    cargo build -p navicache && python3 tools/serve/kills.py target/debug/navicache --kills 100 --jobs 60

Creates go on meanwhile, each with an Idempotency-Key, and are sent again until they are answered. At the end every job
is completed, each once, every video has the digest of an undisturbed run, and nothing is left over. The next kill comes at a
random moment after a worker is there again: a job whose worker dies three times without a later checkpoint has failed by
rule, so that on a busy machine `--pause` has to be longer.
"""

import argparse
import http.client
import json
import os
import random
import sqlite3
import tempfile
import threading
import time

from server import Server

STEPS = 12


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def patiently(server, method, path, body=None, headers=None):
    while True:
        try:
            status, answer = ask(server, method, path, body, headers)
            if status == 200:
                return answer
            assert status >= 500 or status == 429, (status, answer)
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            pass
        time.sleep(0.1)


def ready(server):
    try:
        return ask(server, "GET", "/ready")[0] == 200
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return False


def request(index, size):
    colour = ["red", "green", "blue", "yellow", "purple"][index % 5]
    prompt = f"a {colour} circle bouncing on a navy background"
    return {"prompt": prompt, "seed": index // 5, "steps": STEPS, "frames": 5, "size": size, "cache": "none"}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program")
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--jobs", type=int, default=60)
    arguments.add_argument("--size", default="64x64")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--pause", type=float, default=3.0, help="longest time from a worker's start to a kill")
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = make_all(options, os.path.join(folder, "undisturbed"))
        began = time.monotonic()
        data = os.path.join(folder, "killed")
        every = ("--checkpoint-every", "1")
        server = Server(options.program, data, *every).start()
        ids, done = {}, threading.Event()

        def create():
            for index in range(options.jobs):
                answer = patiently(server, "POST", "/v1/videos", request(index, options.size), {"Idempotency-Key": f"job-{index}"})
                ids[index] = answer["id"]
                time.sleep(0.05)
            done.set()

        creator = threading.Thread(target=create, daemon=True)
        creator.start()
        counts = {"server": 0, "worker": 0, "both": 0}
        for _ in range(options.kills):
            while not ready(server):
                time.sleep(0.05)
            time.sleep(chance.uniform(0.0, options.pause))
            what = chance.choice(list(counts))
            counts[what] += 1
            if what in ("worker", "both"):
                server.kill_worker()
            if what in ("server", "both"):
                server.kill()
                server = restart(server)
        creator.join()
        for index in ids:
            while (video := patiently(server, "GET", f"/v1/videos/{ids[index]}"))["status"] not in ("completed", "failed"):
                time.sleep(0.2)
            assert video["status"] == "completed", video
            assert video["navicache"]["sha256"] == undisturbed[index], f"job {index}: another video"
        assert len(set(ids.values())) == options.jobs
        time.sleep(1)
        server.stop()
        left = os.listdir(os.path.join(data, "work"))
        assert not left, f"left over: {left}"
        database = sqlite3.connect(os.path.join(data, "jobs.sqlite"))
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows, attempts, most = database.execute("SELECT count(*), sum(attempt), max(attempt) FROM jobs").fetchone()
        assert rows == options.jobs, f"{rows} rows for {options.jobs} jobs"
        seconds = time.monotonic() - began
        print(
            f"{options.kills} kills {counts} over {options.jobs} jobs in {seconds:.0f} s: each job completed once, every "
            f"video as undisturbed; {attempts} attempts in all, {most} at most for a job"
        )


def restart(server):
    fresh = server
    fresh.start()
    return fresh


def make_all(options, data):
    with Server(options.program, data) as server:
        ids = [patiently(server, "POST", "/v1/videos", request(index, options.size))["id"] for index in range(options.jobs)]
        digests = {}
        for index, id in enumerate(ids):
            while (video := patiently(server, "GET", f"/v1/videos/{id}"))["status"] not in ("completed", "failed"):
                time.sleep(0.1)
            assert video["status"] == "completed", video
            digests[index] = video["navicache"]["sha256"]
        server.stop()
        return digests


if __name__ == "__main__":
    main()
