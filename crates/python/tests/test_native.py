"""The engine from Python: the same video as the engine's own, other threads run meanwhile, and it stops when asked to.

The built-in model at few steps takes about a second a video.
"""

import asyncio
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import navicache

PROMPT = "a red circle bouncing on a navy background"
SHORT = {"steps": 6, "cache": "none"}


@pytest.fixture(scope="module")
def demo():
    return navicache.Pipeline("demo")


@pytest.fixture(scope="module")
def video(demo):
    return navicache.generate(demo, PROMPT, **SHORT)


def test_frames_are_numpy_and_cannot_be_written(demo, video):
    defaults = demo.defaults
    assert video.frames.shape == (defaults["frames"], defaults["height"], defaults["width"], 3)
    assert video.frames.dtype == np.uint8 and video.frames.std() > 1
    assert video.latents.dtype == np.float32 and video.latents.ndim == 5 and video.latents.std() > 0.1
    with pytest.raises(ValueError, match="read-only"):
        video.frames[0] = 0


def test_it_makes_what_a_program_of_its_own_makes(video):
    """A second process, started afresh, makes the same frames in every bit."""
    code = (
        "import navicache, hashlib\n"
        f"video = navicache.generate('demo', {PROMPT!r}, **{SHORT!r})\n"
        "print(hashlib.sha256(video.frames.tobytes()).hexdigest(), video.report.strip)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed == [hashlib.sha256(video.frames.tobytes()).hexdigest(), video.report.strip]


@pytest.mark.skipif("NAVICACHE_PROGRAM" not in os.environ, reason="NAVICACHE_PROGRAM names no navicache program")
def test_it_makes_what_the_command_line_makes(video, tmp_path):
    program, file = os.environ["NAVICACHE_PROGRAM"], tmp_path / "latents.safetensors"
    command = [program, "generate", PROMPT, "--steps", "6", "--cache", "none", "-q", "--save-latents", file]
    subprocess.run([*command, "-o", tmp_path / "out.y4m"], check=True)
    video.save(tmp_path / "ours.y4m")
    assert (tmp_path / "ours.y4m").read_bytes() == (tmp_path / "out.y4m").read_bytes()
    assert file.read_bytes()[-video.latents.nbytes :] == video.latents.tobytes()


def test_the_report_says_what_ran(video):
    report = video.report
    assert report.strip == "SS|" * 6 and report.forwards_computed == 12 and report["version"] == 1
    assert report.seconds_saved == 0 and report.speedup == 1
    assert str(report) == "SS|SS|SS|SS|SS|SS|\n12 forwards computed, 0 reused"


def test_a_method_saves_time_and_says_how_much(demo):
    report = navicache.generate(demo, PROMPT, steps=20, cache="navicache,threshold=0.3").report
    assert ".." in report.strip and report.seconds_saved > 0 and report.speedup > 1


OPTIONS = {"method": "navicache", "threshold": 0.3}


@pytest.mark.parametrize("cache", ["navicache,threshold=0.3", OPTIONS, {"cache": OPTIONS, "family": "demo"}])
def test_a_cache_is_a_text_an_object_or_a_preset(demo, cache):
    report = navicache.generate(demo, PROMPT, steps=12, cache=cache).report
    assert (report["cache"]["method"], report["cache"]["threshold"]) == ("navicache", 0.3)


def test_options_are_the_engines():
    """The names of types are the names that the engine reads."""
    from navicache import _core, options

    assert {*options.Options.__annotations__, "prompt"} == set(_core.request_fields())


def test_paths_sizes_and_numbers_are_taken_as_python_has_them(demo, tmp_path):
    saved = tmp_path / "latents.safetensors"
    video = navicache.generate(
        demo, PROMPT, steps=np.int64(2), size=(64, 64), frames=5, seed=3, cache="none", save_latents=saved
    )
    assert video.frames.shape == (5, 64, 64, 3) and video.report["request"]["seed"] == 3
    again = navicache.generate(demo, PROMPT, latents=saved, steps=1, cache="none")
    assert again.frames.shape == video.frames.shape


def test_events_come_in_order_and_carry_previews(demo):
    job = navicache.start(demo, PROMPT, preview=0, **SHORT)
    events = list(job)
    kinds = [event.kind for event in events]
    assert kinds[0] == "resolved" and kinds.count("step") == 6 and "frames" in kinds
    assert [event.index for event in events if event.kind == "step"] == list(range(6))
    assert events[0].request["prompt"] == PROMPT
    pictures = [event.image for event in events if event.kind == "preview"]
    assert pictures and all(picture.ndim == 3 and picture.dtype == np.uint8 for picture in pictures)
    with pytest.raises(AttributeError, match="'resolved' has no 'nothing'"):
        events[0].nothing
    assert job.done and job.result() is job.result()


def test_events_of_asyncio(demo):
    async def strips():
        return [event.strip async for event in navicache.start(demo, PROMPT, **SHORT) if event.kind == "step"]

    assert asyncio.run(strips()) == ["SS|" * step for step in range(1, 7)]


def test_cancel_stops_within_a_step(demo):
    job = navicache.start(demo, PROMPT, steps=200, cache="none")
    for event in job:
        if event.kind == "step":
            seen = event.index
            job.cancel()
            break
    with pytest.raises(navicache.Cancelled, match="cancelled after") as raised:
        job.result(timeout=60)
    done = int(str(raised.value).split()[2])
    # The step under way is finished; on a busy machine another one may have begun before we were asked.
    assert seen + 1 <= done <= seen + 4


def test_false_and_exceptions_of_on_event_stop_the_run(demo):
    seen = []

    def stop(event):
        seen.append(event.kind)
        return event.kind != "step"

    with pytest.raises(navicache.Cancelled):
        navicache.generate(demo, PROMPT, steps=200, cache="none", on_event=stop)
    assert seen.count("step") < 20

    class Ours(Exception):
        pass

    def fail(event):
        raise Ours(event.kind)

    with pytest.raises(Ours, match="resolved"):
        navicache.generate(demo, PROMPT, on_event=fail, **SHORT)


def test_ctrl_c_stops(tmp_path):
    code = (
        "import navicache, os, signal\n"
        "def on_event(event):\n"
        "    if event.kind == 'step' and event.index == 1: os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        f"    navicache.generate('demo', {PROMPT!r}, steps=1000, cache='none', on_event=on_event)\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "stopped\n"


def test_other_threads_run_meanwhile(demo):
    """A thread that only sleeps wakes up about as often while a video is made: the lock of Python is free."""

    def woken(seconds, until=lambda: False):
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end and not until():
            time.sleep(0.002)
            count += 1
        return count / (seconds - max(0.0, end - time.monotonic()))

    idle = woken(0.5)
    job = navicache.start(demo, PROMPT, steps=200, cache="none")
    busy = woken(1.0)
    job.cancel()
    assert busy > 0.3 * idle, f"{busy:.0f} against {idle:.0f} a second"


def test_a_wait_has_an_end_and_a_dropped_job_stops(demo):
    job = navicache.start(demo, PROMPT, steps=1000, cache="none")
    with pytest.raises(TimeoutError, match="0.01 seconds"):
        job.result(timeout=0.01)
    del job
    begun = time.monotonic()
    navicache.generate(demo, PROMPT, steps=1, cache="none")
    assert time.monotonic() - begun < 60, "it had to wait for 1000 steps that nobody wants"


def test_two_threads_share_a_pipeline(demo, video):
    made = {}

    def make(seed):
        made[seed] = navicache.generate(demo, PROMPT, seed=seed, **SHORT)

    threads = [threading.Thread(target=make, args=(seed,)) for seed in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert np.array_equal(made[0].frames, video.frames) and not np.array_equal(made[1].frames, video.frames)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stepz": 3}, TypeError, "unexpected options stepz; there are .*steps"),
        ({"device": "cpu"}, TypeError, "options device; device: for Pipeline.model, ....,"),
        ({"steps": 0}, ValueError, "`steps` 0"),
        ({"steps": "many"}, ValueError, "invalid type: string"),
        ({"cache": "nothing"}, navicache.RequestError, 'cache method "nothing" is not known'),
        ({"cache": 3}, navicache.RequestError, "`cache` 3: expected a text or an object"),
        ({"image": pathlib.Path("/nowhere.png")}, FileNotFoundError, "/nowhere.png"),
        ({"seed": object()}, TypeError, "expected a text, a number or a path, found object"),
    ],
)
def test_errors_are_what_python_expects(demo, options, error, text):
    with pytest.raises(error, match=text):
        navicache.generate(demo, PROMPT, **options)


def test_an_error_names_its_field(demo):
    with pytest.raises(navicache.RequestError) as raised:
        demo.resolve(PROMPT, steps=0)
    assert raised.value.field == "steps"
    with pytest.raises(navicache.MissingError) as raised:
        navicache.Pipeline("nothing")
    assert raised.value.field == "model" and isinstance(raised.value, navicache.Error)
    with pytest.raises(navicache.RequestError, match="expected a size, as in"):
        navicache.Pipeline("demo", memory="much")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_says_that_it_cannot(demo):
    """Threads that compute do not survive a fork; waiting for them would never end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            demo.resolve(PROMPT)
            os.write(write, b"nothing was said")
        except navicache.RequestError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"is a fork of" in os.read(read, 1000)


def test_files_are_written_whole(demo, tmp_path, video):
    for name in ("a.mp4", "a.gif", "a.y4m", "a.safetensors"):
        video.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    made = navicache.generate(demo, PROMPT, output=tmp_path / "b.y4m", **SHORT)
    assert (tmp_path / "b.y4m").read_bytes() == (tmp_path / "a.y4m").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "a.mp4", "a.safetensors", "a.y4m", "b.y4m"]
    with pytest.raises(navicache.Error, match="a.unknown"):
        video.save(tmp_path / "a.unknown")
    made.report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["strip"] == made.report.strip


def test_two_files_of_a_run_are_two(demo, tmp_path):
    both = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="save_latents.*is the file of the video too"):
        navicache.generate(demo, PROMPT, output=both, save_latents=both, **SHORT)
    assert not both.exists()


def test_metrics_take_arrays_videos_and_files(demo, video, tmp_path):
    video.save(tmp_path / "a.safetensors")
    same = navicache.metrics(video, video.frames)
    assert same["psnr"]["mean"] is None or same["psnr"]["mean"] > 90
    noisy = video.frames.copy()
    noisy[..., 0] ^= 8
    far = navicache.metrics(tmp_path / "a.safetensors", noisy)
    assert far == navicache.metrics(video, noisy)
    # One channel of three is off by 8: 10 log10(255^2 / (64 / 3))
    assert far["psnr"]["mean"] == pytest.approx(10 * np.log10(255**2 / (64 / 3)), abs=1e-4)
    with pytest.raises(ValueError, match="expected uint8"):
        navicache.metrics(video, noisy.astype(float))
    with pytest.raises(ValueError, match="convention x: expected one of"):
        navicache.metrics(video, noisy, convention="x")


def test_what_there_is_to_run(demo):
    names = {method["name"] for method in navicache.methods()}
    assert {"navicache", "stride", "none"} <= names
    assert all(model["repositories"] for model in navicache.models())
    expected = demo.estimate(PROMPT, steps=4, cache="none")
    assert expected["forwards"] == 8 and expected["peak_bytes"] > 1e6
