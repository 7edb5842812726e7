"""A server that lacks something: room on its disk, memory, open files. Each time the store stays whole, and the next video is made.

    cargo build -p navicache && unshare -m python3 tools/serve/lacks.py target/debug/navicache [disk|memory|files ...]

`disk` mounts a small file system, so that it wants to be root in a mount namespace of its own.
"""

import os
import resource
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from kills import ask, patiently
from server import Server

SMALL = {"prompt": "a red circle", "steps": 3, "frames": 5, "size": "32x32", "seed": 7}
LONG = {**SMALL, "steps": 100, "cache": "none"}


def finished(server, id):
    while (video := patiently(server, "GET", f"/v1/videos/{id}"))["status"] not in ("completed", "failed"):
        time.sleep(0.05)
    return video


def create(server, body):
    return patiently(server, "POST", "/v1/videos", body)["id"]


def check_store(data):
    database = sqlite3.connect(os.path.join(data, "jobs.sqlite"))
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def shrink(data, room):
    """Leaves so many kilobytes free, give or take what is written meanwhile."""
    while True:
        about = os.statvfs(data)
        used = (about.f_blocks - about.f_bfree) * about.f_frsize // 1024
        if subprocess.run(["mount", "-o", f"remount,size={used + room}k", data], capture_output=True).returncode == 0:
            return
        room += 4


def disk(program):
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "small")
        os.mkdir(data)
        mount = lambda options: subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", data], check=True)

        # 2 MB from the beginning: no job is taken.
        mount("size=2m")
        with Server(program, data) as server:
            status, answer = ask(server, "POST", "/v1/videos", SMALL)
            assert (status, answer["error"]["code"]) == (503, "disk_full"), (status, answer)
            server.stop()
        check_store(data)
        subprocess.run(["umount", data], check=True)

        # Full while a video is made.
        outcomes = []
        for room in [0, 8, 16, 32, 64, 128, 512]:
            mount("size=3g")
            with Server(program, data, "--checkpoint-every", "1") as server:
                reference = finished(server, create(server, SMALL))["navicache"]["sha256"]
                id = create(server, LONG)
                while patiently(server, "GET", f"/v1/videos/{id}")["navicache"]["step"] < 3:
                    time.sleep(0.02)
                shrink(data, room)
                time.sleep(3)
                answered = ask(server, "POST", "/v1/videos", SMALL)[0]
                assert answered == 503, answered
                assert ask(server, "GET", "/health")[0] == 200
                subprocess.run(["mount", "-o", "remount,size=3g", data], check=True)
                video = finished(server, id)
                outcomes.append(f"{room} kB left: {video['status']} {(video['error'] or {}).get('code', '')}".strip())
                assert video["status"] == "completed" or video["error"]["code"] == "disk_full", video
                again = finished(server, create(server, SMALL))
                assert again["navicache"]["sha256"] == reference, again
                server.stop()
            check_store(data)
            subprocess.run(["umount", data], check=True)
        print(f"disk: 2 MB: 503 disk_full; full in the middle of a video, then room again: {'; '.join(outcomes)}; the next video the same in every bit; the store whole", flush=True)


def memory(program):
    """Each worker gets so little address space that a large video does not fit, and a small one does."""
    with tempfile.TemporaryDirectory() as data, Server(program, data) as server:
        reference = finished(server, create(server, SMALL))["navicache"]["sha256"]
        limited, going = set(), True

        def limit():
            while going:
                worker = server.worker()
                if worker and worker not in limited:
                    try:
                        with open(f"/proc/{worker}/status") as status:
                            size = int(next(line for line in status if line.startswith("VmSize")).split()[1])
                        resource.prlimit(worker, resource.RLIMIT_AS, ((size + 150_000) * 1024,) * 2)
                        limited.add(worker)
                    except (ProcessLookupError, FileNotFoundError, StopIteration):
                        pass
                time.sleep(0.01)

        thread = threading.Thread(target=limit)
        thread.start()
        large = finished(server, create(server, {**SMALL, "size": "256x256", "frames": 33}))
        after = finished(server, create(server, SMALL))
        going = False
        thread.join()
        assert large["status"] == "failed" and large["error"]["code"] in ("worker_crashed", "out_of_memory"), large
        assert large["navicache"]["attempts"] <= 3, large
        assert after["navicache"]["sha256"] == reference, after
        server.stop()
        check_store(data)
        print(f"memory (RLIMIT_AS): {large['error']['code']} after {large['navicache']['attempts']} attempts and {len(limited)} workers; the next video the same in every bit; the server up", flush=True)


def files(program):
    """160 open files, and more connections than that."""
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
    with tempfile.TemporaryDirectory() as data, Server(program, data, preexec_fn=few) as server:
        held, slowest, most = [], 0, 0
        ids = []
        for index in range(500):
            held.append(socket.create_connection(("127.0.0.1", server.port)))
            if index % 25 == 0:
                began = time.monotonic()
                assert ask(server, "GET", "/health")[0] == 200
                slowest = max(slowest, time.monotonic() - began)
                ids.append(create(server, {**SMALL, "seed": index}))
                most = max(most, len(os.listdir(f"/proc/{server.process.pid}/fd")))
        assert all(finished(server, id)["status"] == "completed" for id in ids)
        server.stop()
        check_store(data)
        print(f"files (RLIMIT_NOFILE 160): 500 silent connections, {most} files open at most, /health within {1000 * slowest:.0f} ms, {len(ids)} videos made", flush=True)


if __name__ == "__main__":
    for name in sys.argv[2:] or ["disk", "memory", "files"]:
        {"disk": disk, "memory": memory, "files": files}[name](sys.argv[1])
