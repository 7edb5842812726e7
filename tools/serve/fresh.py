"""A fresh machine: the server is started, its page opens, a video is begun, the server is killed in the middle and started again, and the
same video is finished.

    cargo build --release -p navicache && python3 tools/serve/fresh.py target/release/navicache
"""

import http.client
import sys
import tempfile
import time

from kills import patiently
from server import Server

REQUEST = {"prompt": "a red circle bouncing on a navy background", "seed": 7, "steps": 100, "cache": "none"}


def get(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type"), answer.read()


def until(server, id, is_so):
    while not is_so(video := patiently(server, "GET", f"/v1/videos/{id}")):
        assert video["status"] != "failed", video
        time.sleep(0.02)
    return video


def made(video):
    return video["status"] == "completed"


def main(program):
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        server = Server(program, f"{folder}/data").start()
        ready = time.monotonic() - began
        status, kind, page = get(server, "/")
        assert status == 200 and kind.startswith("text/html") and b"<title>navicache</title>" in page
        for path in ["/page.css", "/page.js", "/favicon.svg"]:
            assert get(server, path)[0] == 200, path
        id = patiently(server, "POST", "/v1/videos", REQUEST)["id"]
        killed = until(server, id, lambda video: video["navicache"]["step"] >= 30 and video["status"] == "in_progress")
        server.kill()
        server.start()
        went_on = until(server, id, lambda video: video["navicache"]["resumed_at_step"] or made(video))["navicache"]["resumed_at_step"]
        video = until(server, id, made)
        assert video["navicache"]["attempts"] == 2 and went_on, video
        status, kind, bytes = get(server, f"/v1/videos/{id}/content")
        assert status == 200 and bytes[4:8] == b"ftyp"
        server.stop()
        with Server(program, f"{folder}/other") as undisturbed:
            other = until(undisturbed, patiently(undisturbed, "POST", "/v1/videos", REQUEST)["id"], made)
            undisturbed.stop()
        assert other["navicache"]["sha256"] == video["navicache"]["sha256"], "another video"
        print(
            f"answers after {ready:.2f} s; killed at step {killed['navicache']['step']} of 100, went on from step {went_on}, and made the same "
            f"{len(bytes)} bytes as a server that was left alone"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "target/release/navicache")
