"""A service on Ray Serve: a worker is killed in the middle of a job, and every video is made once."""

import json
import os
import pathlib
import signal
import time
import urllib.error
import urllib.request

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install navicache[ray]")
pytest.importorskip("fastapi", reason="Ray Serve is not installed: pip install navicache[ray]")
pytestmark = pytest.mark.slow
os.environ["RAY_worker_niceness"] = "0"

from ray import serve  # noqa: E402

from navicache.ray.serving import application  # noqa: E402

PORT = 18431
URL = f"http://127.0.0.1:{PORT}"
PROMPT = "a red circle bouncing on a navy background"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    for attempt in range(3):
        try:
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(application("demo", folder, lease=3.0), route_prefix="/")
    yield folder
    serve.shutdown()
    ray.shutdown()


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def create(**options):
    return json.loads(ask("POST", "/v1/videos", {"prompt": PROMPT, "cache": "none", **options}))


def wait(name, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        video = json.loads(ask("GET", f"/v1/videos/{name}"))
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.2)
    raise AssertionError(f"{video} after {seconds} s")


def workers():
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.name.isdigit() and b"ray::ServeReplica" in title and b"Worker" in title:
            found.append(int(folder.name))
    return found


def test_a_killed_worker_loses_no_job(data):
    jobs = [create(seed=seed, steps=30) for seed in range(3)]
    assert all(job["status"] == "queued" and job["object"] == "video" for job in jobs)
    while json.loads(ask("GET", f"/v1/videos/{jobs[0]['id']}"))["status"] == "queued":
        time.sleep(0.05)
    time.sleep(1)  # it is in the middle of the first
    [worker] = workers()
    os.kill(worker, signal.SIGKILL)
    done = [wait(job["id"]) for job in jobs]
    assert [video["status"] for video in done] == ["completed"] * 3
    videos = [ask("GET", f"/v1/videos/{job['id']}/content") for job in jobs]
    assert len({*videos}) == 3 and all(video[4:8] == b"ftyp" for video in videos)
    listed = json.loads(ask("GET", "/v1/videos"))["data"]
    assert [video["id"] for video in listed] == [job["id"] for job in reversed(jobs)]
    assert sorted(file.name for file in data.glob("*.mp4")) == sorted(f"{job['id']}.mp4" for job in jobs)


def test_a_deleted_job_stops_and_the_next_is_made(data):
    long = create(steps=1000)
    while json.loads(ask("GET", f"/v1/videos/{long['id']}"))["status"] == "queued":
        time.sleep(0.05)
    assert json.loads(ask("DELETE", f"/v1/videos/{long['id']}"))["deleted"]
    assert wait(create(steps=2)["id"], 60)["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "expected an object with a `prompt`"),
        ({"prompt": "a", "stepz": 1}, "unexpected options stepz"),
        ({"prompt": "a", "model": "other"}, "this service runs 'demo'"),
        ({"prompt": "a", "save_latents": "/etc/x"}, "files of the server cannot be named"),
        ({"prompt": "a", "cache": "schedule:strip.json"}, "files of the server cannot be named"),
        ({"prompt": "a", "cache": "@/etc/passwd"}, "files of the server cannot be named"),
    ],
)
def test_what_is_no_job_is_refused(data, body, text):
    with pytest.raises(urllib.error.HTTPError) as raised:
        ask("POST", "/v1/videos", body)
    assert raised.value.code == 400 and text in raised.value.read().decode()


def test_a_job_that_makes_no_sense_fails_with_the_reason(data):
    video = wait(create(steps=0)["id"])
    assert video["status"] == "failed" and "`steps` 0" in video["error"]["message"]
    with pytest.raises(urllib.error.HTTPError) as raised:
        ask("GET", f"/v1/videos/{video['id']}/content")
    assert raised.value.code == 409
