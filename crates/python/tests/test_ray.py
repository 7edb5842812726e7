"""Batches on Ray lose nothing: actors and drivers are killed in the middle of a job.

Ray gives itself 30 seconds to start; on a busy machine it may need a second try.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install navicache[ray]")
pytestmark = pytest.mark.slow

# Ray lets its workers wait for everything else on the machine.
os.environ["RAY_worker_niceness"] = "0"

import navicache  # noqa: E402
import navicache.ray  # noqa: E402
from navicache.ray.jobs import Journal, read_jobs  # noqa: E402

PROMPT = "a red circle bouncing on a navy background"
JOBS = [{"prompt": PROMPT, "seed": seed, "steps": 12, "name": f"job-{seed}"} for seed in range(6)]
START = dict(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)


def start():
    for attempt in range(3):
        try:
            return ray.init(**START)
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise


@pytest.fixture(scope="module")
def cluster():
    start()
    yield
    ray.shutdown()


def journal(out):
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def count(out, event):
    return sum(line["event"] == event for line in journal(out))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The same videos without Ray."""
    out = tmp_path_factory.mktemp("expected")
    pipeline = navicache.Pipeline("demo")
    for job in read_jobs(JOBS, {"cache": "none"}):
        navicache.generate(pipeline, job.prompt, output=out / f"{job.name}.mp4", **job.options)
    return {file.name: file.read_bytes() for file in out.glob("*.mp4")}


def videos(out):
    return {file.name: file.read_bytes() for file in out.glob("*.mp4")}


def test_a_killed_actor_loses_nothing(cluster, expected, tmp_path):
    killed = []

    def kill_the_other(result):
        """After the first video: a process that holds another job dies."""
        if not killed:
            busy = [process for process in actors() if process not in killed]
            time.sleep(0.3)  # it is in the middle of its job
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])

    summary = navicache.ray.generate(
        JOBS, out=tmp_path, model="demo", cache="none", actors=2, cpus=1, on_result=kill_the_other
    )
    assert killed and not summary.failed and summary.made == len(JOBS)
    assert videos(tmp_path) == expected
    lost = count(tmp_path, "lost")
    assert lost >= 1 and count(tmp_path, "end") == len(JOBS) and count(tmp_path, "begin") == len(JOBS) + lost

    again = navicache.ray.generate(JOBS, out=tmp_path, model="demo", cache="none", cpus=1)
    assert again.made == 0 and len(again.results) == len(JOBS)
    # Another request is another video.
    changed = [JOBS[0] | {"steps": 4}, *JOBS[1:]]
    assert navicache.ray.generate(changed, out=tmp_path, model="demo", cache="none", cpus=1).made == 1


def actors():
    """Processes of actors that make videos."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.name.isdigit() and b"ray::Actor.make" in title:
            found.append(int(folder.name))
    return found


def test_a_job_at_fault_fails_and_the_others_are_made(cluster, tmp_path):
    wrong = {"prompt": PROMPT, "name": "wrong", "steps": 0}
    summary = navicache.ray.generate([wrong, JOBS[0] | {"steps": 2}], out=tmp_path, model="demo", cpus=1)
    assert summary.made == 1 and str(summary) == "1 videos made, 0 were there, 1 failed"
    assert "`steps` 0" in summary.failed[0].reasons[0] and count(tmp_path, "failed") == 1


def test_a_model_that_cannot_be_opened_is_an_error(cluster, tmp_path):
    with pytest.raises(navicache.MissingError, match="nothing"):
        navicache.ray.generate(JOBS, out=tmp_path, model="nothing", cpus=1)


def test_rows_of_ray_data(cluster, tmp_path):
    rows = [{"prompt": PROMPT, "name": f"row-{seed}", "seed": seed, "steps": 2} for seed in range(3)]
    made = ray.data.from_items(rows).map_batches(
        navicache.ray.Generator,
        batch_size=1,
        concurrency=1,
        num_cpus=1,
        fn_constructor_kwargs={"out": str(tmp_path), "model": "demo", "cache": "none"},
    )
    paths = sorted(row["path"] for row in made.take_all())
    assert [pathlib.Path(path).name for path in paths] == ["row-0.mp4", "row-1.mp4", "row-2.mp4"]
    assert all(pathlib.Path(path).stat().st_size > 1000 for path in paths)


def test_a_killed_driver_leaves_what_is_done(expected, tmp_path):
    """Run last: its own Ray dies with it."""
    ray.shutdown()
    out = tmp_path / "out"
    code = (
        "import json, sys, ray, navicache.ray\n"
        f"ray.init(**{START!r})\n"
        f"navicache.ray.generate({JOBS!r}, out={str(out)!r}, model='demo', cache='none', actors=1, cpus=1)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    begun = time.monotonic()
    while len(list(out.glob("*.json"))) < 3:
        assert driver.poll() is None and time.monotonic() - begun < 120, "the driver made no videos"
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    there = len(list(out.glob("*.json")))
    assert there < len(JOBS)
    time.sleep(2)  # actors follow their driver
    there = len(list(out.glob("*.json")))
    start()
    summary = navicache.ray.generate(JOBS, out=out, model="demo", cache="none", actors=1, cpus=1)
    ray.shutdown()
    assert summary.made == len(JOBS) - there and not summary.failed
    assert videos(out) == expected
